"""The memory that a run may use."""

from __future__ import annotations

import pytest
import torch

from evaluators.metrics.capacity import Capacity, capacity_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    host = 8000 * 1024
    monkeypatch.setattr("evaluators.metrics.capacity.host_bytes", lambda: host)
    assert capacity_of(CPU) == Capacity(None, host, shared=True)
    assert capacity_of(CPU, 5) == Capacity(None, 5, shared=True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert capacity_of(CUDA, 80) == Capacity(80, None, shared=False, told=True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (1, 100))
    assert capacity_of(CUDA) == Capacity(100, host, shared=False)
    assert capacity_of(CUDA, 80) == Capacity(80, host, shared=False, told=True)
