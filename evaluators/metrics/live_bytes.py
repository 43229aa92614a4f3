"""Count the bytes that a piece of code holds at its height, by running it on tensors without values.

The tensors have shapes, dtypes and storages, but no memory, so an 8B model is counted on a laptop. Every
operation runs its shape function alone. Autograd and autocast work as usual, because they act before an
operation reaches the device: what they save for the backward pass, and which weights they convert, is what
the run saves and converts. A storage counts from the operation that made it until nothing refers to it.

What a kernel needs inside itself, as a workspace, is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

#: A storage has fewer bytes than two to this power.
_LONGEST_STORAGE = 48


class Valueless(torch.Tensor):
    """A tensor on the CPU, as autograd and autocast see it, whose storage is one of the meta device."""

    content: Tensor

    @staticmethod
    def __new__(cls, content: Tensor) -> Valueless:
        """Wrap a tensor of the meta device."""
        made: Valueless = torch.Tensor._make_wrapper_subclass(
            cls,
            content.size(),
            strides=content.stride(),
            storage_offset=content.storage_offset(),
            dtype=content.dtype,
            device=torch.device("cpu"),
        )
        made.content = content
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        """Run the shape function of an operation outside of any ``LiveBytes``."""
        return _run(operation, arguments, keywords or {})

    def data_ptr(self) -> int:
        """Return a number that is another one for each element of each storage, as addresses are."""
        start = self.content.untyped_storage()._cdata << _LONGEST_STORAGE
        return int(start + self.content.storage_offset() * self.content.element_size())

    def __repr__(self) -> str:  # type: ignore[override]
        """Without values."""
        return f"Valueless({tuple(self.shape)}, {self.dtype})"


def _content(tensor: Tensor) -> Tensor:
    return tensor.content if isinstance(tensor, Valueless) else tensor


def _shape(tensor: Tensor) -> Tensor:
    return tensor.content if isinstance(tensor, Valueless) else tensor.to("meta")


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in what an operation takes or returns: tensors, other values, and lists of both."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _mapped(value: Any, of_tensor: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return of_tensor(value)
    if isinstance(value, list | tuple):
        return [_mapped(one, of_tensor) for one in value]
    return value


def _run(operation: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
    """Run an operation on the contents; on tensors with values as usual."""
    if not any(isinstance(one, Valueless) for one in _tensors([*arguments, *keywords.values()])):
        return operation(*arguments, **keywords)
    if operation is torch.ops.aten._local_scalar_dense.default:
        return 0  # whoever asks for a value adds it up: a sum of losses, a number of tokens
    given = [_mapped(one, _shape) for one in arguments]
    named = {name: _mapped(one, _shape) for name, one in keywords.items()}
    if "device" in named:
        named["device"] = torch.device("meta")
    found = operation(*given, **named)
    if found is not None and given and found is given[0] and isinstance(arguments[0], Valueless):
        return arguments[0]  # changed in place
    return _mapped(found, Valueless)


class LiveBytes(TorchDispatchMode):
    """Within the context, adds up the bytes of storages that operations made and that are still in use."""

    def __init__(self, models: Sequence[nn.Module] = ()) -> None:
        """Count from here on; parameters and buffers of ``models`` are left out."""
        super().__init__()  # type: ignore[no-untyped-call]
        held = [one for model in models for one in (*model.parameters(), *model.buffers())]
        self._others = {_content(one).untyped_storage()._cdata for one in held}
        self.now = 0
        """Bytes in use."""
        self.peak = 0
        """The most bytes in use since the last ``reset``."""
        self._counted: dict[int, weakref.ref[Any]] = {}

    def reset(self) -> None:
        """Let the peak begin with what is in use now."""
        self.peak = self.now

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        """Run an operation, and count what it made."""
        found = _run(operation, arguments, keywords or {})
        for one in _tensors(found):
            self.add(one)
        return found

    def add(self, tensor: Tensor) -> None:
        """Count the storage of a tensor, unless it is counted already."""
        storage = _content(tensor).untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._counted or key in self._others:
            return

        def free(_: Any) -> None:
            self.now -= size
            del self._counted[key]

        self._counted[key] = weakref.ref(storage, free)
        self.now += size
        self.peak = max(self.peak, self.now)


def valueless_model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Build a model of a config whose parameters and buffers have no values, in evaluation mode."""
    with torch.device("meta"), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(Valueless(parameter.data), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Valueless(buffer)
    model.tie_weights()
    model.eval()
    return model


def valueless(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor without values."""
    return Valueless(torch.empty(shape, dtype=dtype, device="meta"))


@contextmanager
def counted(*models: nn.Module) -> Iterator[LiveBytes]:
    """Within the context, count live bytes beside the weights of the models.

    What autocast converted is forgotten at the end.
    """
    with LiveBytes(models) as live:
        try:
            yield live
        finally:
            torch.clear_autocast_cache()
