"""Log-likelihoods of choices, kept in a file as they come, so that no example is scored twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScoreCache:
    """The log-likelihoods of a model's choices on one set of examples.

    Lines are appended, so that an interruption loses at most the last one; what is not of this key is passed
    over.
    """

    path: Path
    key: str
    """Names the model and the examples."""

    def read(self, choices: int) -> Tensor:
        """Return (C,) float64 log-likelihoods of the choices in nats, NaN where there is none yet."""
        found = torch.full((choices,), torch.nan, dtype=torch.float64)
        if not self.path.exists():
            return found
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # cut off by an interruption
                continue
            if isinstance(row, dict) and row.get("key") == self.key:
                found[row["numbers"]] = torch.tensor(row["values"], dtype=torch.float64)
        return found

    def add(self, numbers: Sequence[int], values: Tensor) -> None:
        """Append the log-likelihoods of these choices; values that are not finite are not kept.

        Args:
            numbers: of the choices.
            values: (n,) in nats.
        """
        if not bool(values.isfinite().all()):
            return
        line = json.dumps({"key": self.key, "numbers": list(numbers), "values": values.tolist()})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:  # the last line may have been cut off
            file.write(f"\n{line}")
