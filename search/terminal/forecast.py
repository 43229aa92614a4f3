"""How long a run still takes: work that is left, by kind, at the pace of each kind so far.

A piece of work, such as a training, takes so long for each token and so long for itself: to cut the student,
to measure it, to validate it. The pace is the median of the steps, whatever stood between them; the rest of
what whole pieces took is their overhead. Short trainings so foretell long ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

#: Work of a kind before any of it was timed, relative to a forward pass of the teacher over a token.
_RELATIVE = {"correct": 3.0, "forward": 1.0, "score": 1.0, "distil": 2.0, "retrain": 2.0, "benchmark": 1.0}
_STEPS = 256


@dataclass
class _Whole:
    """Pieces that were done from their beginning to their end."""

    pieces: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Forecast:
    """Counts tokens of work by kind: ``correct``, ``forward``, ``score``, ``distil``, ``retrain``.

    Of ``benchmark`` it counts tasks, since nobody knows their tokens before.

    Args:
        planned: tokens by kind.
        pieces: trainings and the like that the tokens of a kind are made of, where it is several.
    """

    def __init__(self, planned: Mapping[str, int], pieces: Mapping[str, int] | None = None) -> None:
        self.planned, self.pieces = Counter(planned), Counter(pieces or {})
        self.extra: Counter[str] = Counter()
        """Tokens beyond the plan."""
        self.extra_pieces: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.timed: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}
        self.hands = 1
        """Workers that share what is left."""
        self._pieces_done: Counter[str] = Counter()
        self._begun: dict[str, float] = {}
        self._whole: dict[str, _Whole] = defaultdict(_Whole)
        self._steps: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_STEPS))

    def skip(self, kind: str, tokens: int, pieces: int = 0) -> None:
        """Work that needed no time, because an earlier process did it."""
        self.done[kind] += tokens
        self._pieces_done[kind] += pieces

    def spend(self, kind: str, tokens: int, seconds: float) -> None:
        """Work done and the time it took."""
        self.done[kind] += tokens
        self.timed[kind] += tokens
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds

    def step(self, kind: str, tokens: int, seconds: float, share: float) -> None:
        """A step of a piece of work that is not its first; ``share`` of the piece is done."""
        self._steps[kind].append(seconds / tokens)
        self._begun[kind] = share

    def finish(self, kind: str, tokens: int, seconds: float, whole: bool) -> None:
        """A piece has come to its end; only if it was ``whole`` does it say how long others take."""
        self._pieces_done[kind] += 1
        self._begun.pop(kind, None)
        if whole:
            found = self._whole[kind]
            found.pieces, found.tokens = found.pieces + 1, found.tokens + tokens
            found.seconds += seconds

    def pace(self, kind: str) -> float | None:
        """Seconds a token of a kind; from kinds like it while it was not timed; None at the start."""
        paces = {k: self._own_pace(k) for k in self.seconds if self.timed[k]}
        if kind in paces:
            return paces[kind]
        alike = [k for k in paces if _RELATIVE[k] == _RELATIVE[kind]] or list(paces)
        guesses = [paces[k] / _RELATIVE[k] * _RELATIVE[kind] for k in alike]
        return sum(guesses) / len(guesses) if guesses else None

    def overhead(self, kind: str) -> float:
        """Seconds of a piece beside those of its tokens; of pieces like it while none was finished."""
        alike = [kind, *(k for k in _RELATIVE if _RELATIVE[k] == _RELATIVE[kind] and self.pieces[k])]
        known = next((k for k in alike if self._whole[k].pieces), None)
        if known is None:
            return 0.0
        whole = self._whole[known]
        return max(0.0, (whole.seconds - whole.tokens * self._own_pace(known)) / whole.pieces)

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
            if open_tokens and self.pieces[kind]:
                total += self._open_pieces(kind) * self.overhead(kind)
        return total / self.hands

    def _open_pieces(self, kind: str) -> float:
        planned = self.pieces[kind] + self.extra_pieces[kind]
        return max(0.0, planned - self._pieces_done[kind] - self._begun.get(kind, 0.0))

    def _own_pace(self, kind: str) -> float:
        if self._steps[kind]:
            return median(self._steps[kind])
        return self.seconds[kind] / self.timed[kind]
