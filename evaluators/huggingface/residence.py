"""Where a model's weights lie: on the host, memory-mapped where they can be, or on the device that computes.

A model that does not stay on its device comes there for a context. Its host tensors are kept meanwhile, and
pointed to again at the end: nothing is copied back, and processes go on sharing the pages of a mapped file.
Host memory is not pinned, since that would copy a mapped file into private memory of each process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.huggingface.final_states import decoder, head_parameters


class Residence:
    """Brings a model to its device for as long as it is needed there.

    Args:
        model: the model; it lies on the device if it stays there, else on the host.
        device: where it computes; by default where it lies.
        stays: whether it lies on the device for good; contexts then do nothing.
    """

    def __init__(
        self, model: PreTrainedModel, device: torch.device | None = None, *, stays: bool = True
    ) -> None:
        self.model, self.stays = model, stays
        self.device = model.device if device is None else device
        self._here: set[int] = set()
        """The ids of the tensors that are on the device."""

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Within the context, the whole model is on the device; contexts may nest."""
        with self._bringing([*self.model.parameters(), *self.model.buffers()]):
            yield

    @contextmanager
    def head_on_device(self) -> Iterator[None]:
        """Within the context, what turns final states into logits is on the device."""
        below = {id(buffer) for buffer in decoder(self.model).buffers()}
        buffers = [buffer for buffer in self.model.buffers() if id(buffer) not in below]
        with self._bringing([*head_parameters(self.model), *buffers]):
            yield

    @contextmanager
    def _bringing(self, tensors: Iterable[Tensor]) -> Iterator[None]:
        """Bring those tensors that no outer context has brought, and leave them at the end."""
        absent = {id(one): one for one in tensors if not self.stays and id(one) not in self._here}
        on_host = [(tensor, tensor.data) for tensor in absent.values()]
        self._here |= absent.keys()
        try:
            for tensor, values in on_host:
                tensor.data = transfer(values, self.device)
            yield
        finally:
            for tensor, values in on_host:
                tensor.data = values
            self._here -= absent.keys()


def transfer(values: Tensor, device: torch.device) -> Tensor:
    """Return the values on a device; the same tensor if it lies there."""
    return values.to(device)
