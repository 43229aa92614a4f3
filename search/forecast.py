"""How long a run still takes: work that is left, by kind, at the pace of each kind so far."""

from __future__ import annotations

from collections import Counter

#: Work of a kind before any of it was timed, relative to a forward pass of the teacher over a token.
_RELATIVE = {"correct": 3.0, "forward": 1.0, "score": 1.0, "distil": 2.0, "retrain": 2.0, "benchmark": 1.0}


class Forecast:
    """Counts tokens of work by kind: ``correct``, ``forward``, ``score``, ``distil``, ``retrain``.

    Of ``benchmark`` it counts tasks, since nobody knows their tokens before.
    """

    def __init__(self, planned: dict[str, int]) -> None:
        self.planned = Counter(planned)
        self.done: Counter[str] = Counter()
        self.timed: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}
        self.extra: Counter[str] = Counter()
        """Work beyond the plan."""
        self.hands = 1
        """Workers that share what is left."""

    def skip(self, kind: str, tokens: int) -> None:
        """Work that needed no time, because an earlier process did it."""
        self.done[kind] += tokens

    def spend(self, kind: str, tokens: int, seconds: float) -> None:
        """Work done and the time it took."""
        self.done[kind] += tokens
        self.timed[kind] += tokens
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds

    def pace(self, kind: str) -> float | None:
        """Seconds a token of a kind; from kinds like it while it was not timed; None at the start."""
        paces = {k: self.seconds[k] / self.timed[k] for k in self.seconds if self.timed[k]}
        if kind in paces:
            return paces[kind]
        alike = [k for k in paces if _RELATIVE[k] == _RELATIVE[kind]] or list(paces)
        guesses = [paces[k] / _RELATIVE[k] * _RELATIVE[kind] for k in alike]
        return sum(guesses) / len(guesses) if guesses else None

    def left(self) -> float | None:
        """Seconds left, or None before anything was planned or timed."""
        if not self.planned:
            return None
        total = 0.0
        for kind, planned in self.planned.items():
            open_tokens = max(0, planned + self.extra[kind] - self.done[kind])
            pace = self.pace(kind)
            if open_tokens and pace is None:
                return None
            total += open_tokens * (pace or 0.0)
        return total / self.hands
