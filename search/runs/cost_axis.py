"""What stands beside the loss: latency if it was measured, else the second objective, else size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from search.terminal.format import quantity

_FIELDS = {
    "latency": "latency_ms",
    "latency_ms": "latency_ms",
    "parameters": "parameters",
    "memory": "memory_bytes",
}
_LOSS = "loss"


@dataclass(frozen=True)
class CostAxis:
    """The second axis of the front.

    Attributes:
        name: the objective's name.
        unit: its unit, maybe empty.
    """

    name: str
    unit: str

    @property
    def title(self) -> str:
        """Name and unit, as an axis title."""
        return f"{self.name}, {self.unit}" if self.unit not in ("", self.name) else self.name

    def written(self, value: float) -> str:
        """A value with its unit, for a sentence."""
        return quantity(value, self.unit) if self.unit != self.name else quantity(value)

    def of(self, evaluation: dict[str, Any]) -> float | None:
        """The value in an entry of the summary (trial, student or teacher), None if not measured."""
        value = evaluation.get(_FIELDS.get(self.name, ""))
        if value is None:
            value = evaluation.get("objectives", {}).get(self.name)
        return None if value is None else float(value)


def cost_axis(summary: dict[str, Any]) -> CostAxis:
    """The axis to draw against the loss: the first of the candidates for which anything was measured."""
    shown = [*summary["objectives"], *summary["bounds"]]
    asked = [CostAxis(entry["name"], entry["unit"]) for entry in shown if entry["name"] != _LOSS]
    asked.sort(key=lambda axis: _FIELDS.get(axis.name) != "latency_ms")
    measured = [*summary["trials"], *summary["promoted"], *summary["baselines"]]
    for axis in asked:
        if any(axis.of(evaluation) is not None for evaluation in measured):
            return axis
    return CostAxis("parameters", "")
