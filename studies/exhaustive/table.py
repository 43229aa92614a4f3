"""The truth that was measured: every architecture of a space at every rung and after retraining."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from search.rungs.evaluation import Evaluation
from search.rungs.rung import Rung
from space.axes.architecture import Architecture
from studies.bench.results import Row
from studies.exhaustive.work import FINAL


@dataclass(frozen=True)
class Table:
    """One seed's figures."""

    seed: int
    rows: Mapping[str, Mapping[int, Row]]
    """By label and rung, retraining last; only architectures that have all."""

    @classmethod
    def of(cls, rows: Sequence[Row], seed: int) -> Table:
        """What was measured with a seed; latencies are the mean of all seeds, since weights do not matter."""
        found: dict[str, dict[int, Row]] = {}
        latencies: dict[str, list[float]] = {}
        for row in rows:
            if row["rung"] == 0:
                latencies.setdefault(row["label"], []).append(row["latency_ms"])
            if row["seed"] == seed:
                found.setdefault(row["label"], {})[row["rung"]] = dict(row)
        whole = {label: by_rung for label, by_rung in found.items() if len(by_rung) == FINAL + 1}
        for label, by_rung in whole.items():
            by_rung[0]["latency_ms"] = sum(latencies[label]) / len(latencies[label])
        return cls(seed, whole)

    @cached_property
    def final(self) -> dict[str, float]:
        """Loss after retraining, by label."""
        return {label: by_rung[FINAL]["exact_loss"] for label, by_rung in self.rows.items()}

    @cached_property
    def best(self) -> str:
        """The label of the lowest loss after retraining."""
        return min(self.final, key=self.final.__getitem__)

    def losses(self, rung: int) -> dict[str, float]:
        """Loss at a rung, by label; after retraining in float32."""
        return self.final if rung == FINAL else {label: row[rung]["loss"] for label, row in self.rows.items()}

    @property
    def tokens(self) -> int:
        """That the whole table took with this seed."""
        return sum(row.get("tokens", 0) for by_rung in self.rows.values() for row in by_rung.values())


@dataclass(frozen=True)
class Lookup:
    """An evaluator that answers from a table at once what took minutes to measure."""

    table: Table
    rungs: Sequence[int]
    """Of the table, for each rung of the search."""

    def evaluate(self, architecture: Architecture, rung: int, advance: Callable[[int], None]) -> Evaluation:
        """See ``Evaluator``."""
        by_rung = self.table.rows[architecture.label]
        row = by_rung[self.rungs[rung]]
        values = {"loss": row["loss"], "latency": by_rung[0]["latency_ms"], "parameters": row["parameters"]}
        curve = [(tokens, loss) for tokens, loss in row.get("curve", [])]
        return Evaluation(values, row.get("tokens", 0), curve)

    def tidy(self, rungs: Sequence[Rung], candidates: Sequence[int]) -> None:
        """Nothing is left behind."""
