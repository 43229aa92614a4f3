"""Look at every tensor of a teacher once: all its values have to be finite, and to stay so in use."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from evaluators.teacher.weights import too_narrow
from space.input_error import InputError

_NARROW = {
    *(torch.int8, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
}


def check_finite(files: Sequence[Path], names: Collection[str], dtype: torch.dtype, id: str) -> None:
    """Refuse a teacher with values that are not finite, whether a text touches them or not.

    Args:
        files: its safetensors files; each is read once, tensor by tensor.
        names: the stored tensors that are used.
        dtype: in which they are used.
        id: the teacher's name in messages.

    Raises:
        InputError: a value is not finite as it is stored, or is too large for ``dtype``; or a tensor is
            stored in 8 bits, whose values mean nothing without scales.
    """
    for path in files:
        with safe_open(path, "pt") as file:
            for name in sorted(set(file.keys()) & set(names)):
                values = file.get_tensor(name)
                if values.dtype in _NARROW:
                    raise too_narrow(f"{name} of {id} is stored as {_word(values.dtype)}")
                if not stays_finite(values, values.dtype):
                    raise _not_finite(values, name, path, id)
                if not stays_finite(values, dtype):
                    raise _too_large(values, name, dtype, id)


def stays_finite(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether all values are finite, and stay so when they are converted to a dtype.

    Conversion is monotone, so that of the smallest and of the largest value tells; NaN is passed on by both.
    """
    if not values.is_floating_point() or not values.numel():
        return True
    values = values.detach()
    if values.itemsize < torch.float16.itemsize:
        values = values.float()
    extremes = torch.stack(torch.aminmax(values))
    return bool(extremes.to(dtype).isfinite().all())


def _not_finite(values: Tensor, name: str, path: Path, id: str) -> InputError:
    places = (~values.isfinite()).nonzero()
    first = places[0].tolist()
    others = f", and {len(places) - 1} more of its values are not finite" if len(places) > 1 else ""
    return InputError(
        "every value of a teacher's weights has to be finite",
        f"{name}{first} of {id} is {values[tuple(first)].item()} in {path.name}{others}",
        "Compare the file with its source; if it is so there, only another checkpoint helps",
    )


def _too_large(values: Tensor, name: str, dtype: torch.dtype, id: str) -> InputError:
    first = values.abs().argmax()
    place = [int(at) for at in torch.unravel_index(first, values.shape)]
    kind = _word(dtype)
    return InputError(
        "every value of a teacher's weights has to be finite in the precision of the run",
        f"{name}{place} of {id} is {values.flatten()[first].item():g}, more than {kind} holds",
        "Give --dtype float32",
    )


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
