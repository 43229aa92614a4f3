"""An accelerator for a test of its own: Accelerate shares its state within a process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

Accelerators = Callable[[str], Accelerator]


@pytest.fixture(scope="package", autouse=True)
def _quick_collection() -> Iterator[None]:
    """Accelerate collects garbage around each training: spare it what the libraries have loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def accelerators() -> Iterator[Accelerators]:
    """Make an accelerator on the CPU by its precision; the last one made is the one to use."""

    def make(precision: str) -> Accelerator:
        forget()
        return Accelerator(cpu=True, mixed_precision=precision)

    yield make
    forget()


@pytest.fixture
def accelerator(accelerators: Accelerators) -> Accelerator:
    """In float32."""
    return accelerators("no")


def forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
