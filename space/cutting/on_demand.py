"""A mapping whose values are made each time that they are asked for, as they are too large to be kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import torch

T = TypeVar("T")
_HOST = torch.device("cpu")


class OnDemand(Mapping[str, T]):
    """Values by name.

    Args:
        names: of the values.
        make: makes the value of a name on a device.
    """

    def __init__(self, names: Iterable[str], make: Callable[[str, torch.device], T]) -> None:
        self._names, self._make = dict.fromkeys(names), make

    def on(self, name: str, device: torch.device) -> T:
        """Make a value on a device."""
        if name not in self._names:
            raise KeyError(name)
        return self._make(name, device)

    def __getitem__(self, name: str) -> T:
        return self.on(name, _HOST)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
