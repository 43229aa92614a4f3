"""Targets cached on disk: the teacher runs once, and all candidates share what it computed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.states import StatePlace, states_at
from evaluators.distillation.targets.batch import PADDING, Batch, Form, Predictions, rows
from evaluators.distillation.targets.live import Hidden
from evaluators.distillation.targets.records import Records
from evaluators.huggingface.final_states import final_states
from evaluators.huggingface.residence import Residence

logger = logging.getLogger(__name__)
_TOKENS_AT_ONCE = 4096
#: Tokens whose states between two layers lie on the disk at once: a teacher is read once for so many.
_TOKENS_ON_DISK = 2**20
_STATES = "states of "
#: Less a token, or less padding, it is a number below both, and another one for each.
_BELOW = 2 * PADDING - 1

Record = Mapping[str, Tensor]


class CachedTargets:
    """Targets read from disk; the teacher recomputes a record that is missing or corrupt.

    Args:
        teacher: in evaluation mode.
        tokens: (N, T) token ids of all blocks, on the host; a longer text reuses the records of its start.
        form: what is stored for a block.
        folder: the folder of the records, for this teacher and form alone.
        fingerprint: identifies the teacher and its precision.
        places: intermediate states to store too, in bfloat16.
        precision: the context in which the teacher runs, such as ``Accelerator.autocast``.
        residence: brings the teacher to its device; by default it stays where it is.
        learnt: (N, T) bool, True at each token whose next one is to be learnt, of which alone something is
            stored; None: all are. Records made with another mask are made again.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        tokens: Tensor,
        form: Form,
        folder: Path,
        fingerprint: str,
        places: Sequence[StatePlace] = (),
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
        residence: Residence | None = None,
        learnt: Tensor | None = None,
    ) -> None:
        self.teacher, self.tokens, self.learnt, self.form = teacher, tokens, learnt, form
        self.places, self.precision = tuple(places), precision
        self.residence = residence or Residence(teacher)
        names = [str(place) for place in self.places]
        self.records = Records(folder, {**form.description, "states": names, "fingerprint": fingerprint})

    @property
    def blocks(self) -> int:
        """See ``Targets``."""
        return len(self.tokens)

    @property
    def head_of(self) -> PreTrainedModel | None:
        """The model whose head turns final states into logits; None for sparse forms."""
        return self.form.teacher if isinstance(self.form, Hidden) else None

    def on_device(self) -> AbstractContextManager[None]:
        """See ``Targets``: final states need the teacher's head, sparse forms nothing of it."""
        return nullcontext() if self.head_of is None else self.residence.head_on_device()

    def missing(self) -> list[int]:
        """Return the numbers of the blocks that have no record yet.

        Raises:
            OSError: the folder cannot be written.
        """
        with self.records.locked():
            return self._missing()

    def fill(self, advance: Callable[[int], None] = lambda blocks: None) -> None:
        """Compute the missing records, after waiting for any other process that does the same.

        Args:
            advance: called with the number of blocks after each batch.

        Raises:
            OSError: the disk is full. The records written so far are kept, and used by the next call.
        """
        with self.records.locked():
            missing = self._missing()
            size = max(1, _TOKENS_AT_ONCE // self.tokens.shape[1])
            if not missing:
                return
            with self.residence.on_device():
                for at in range(0, len(missing), size):
                    numbers = missing[at : at + size]
                    self._compute(numbers)
                    advance(len(numbers))
            self.records.sync()

    @torch.no_grad()
    def fill_by(
        self,
        final: Callable[[Sequence[Tensor]], Iterator[Tensor]],
        advance: Callable[[int], None] = lambda blocks: None,
    ) -> None:
        """Compute the missing records from final states that the teacher itself does not make here.

        Args:
            final: yields for each (B, T) batch its final states (B, T, D), such as ``LayersInTurn.final``.
            advance: called with the number of blocks after each batch.

        Raises:
            OSError: as for ``fill``.
        """
        assert not self.places, "intermediate states need the whole teacher"
        with self.records.locked():
            missing = torch.tensor(self._missing(), dtype=torch.long)
            for some in missing.split(max(1, _TOKENS_ON_DISK // self.tokens.shape[1])):
                numbers = some.split(max(1, _TOKENS_AT_ONCE // self.tokens.shape[1]))
                batches = [self.tokens[part].long().clamp(min=0) for part in numbers]
                for part, states in zip(numbers, final(batches), strict=True):
                    with self.precision():
                        self._write(part.tolist(), states, {})
                    advance(len(part))
            if len(missing):
                self.records.sync()

    def batch(self, numbers: Tensor) -> Batch:
        """See ``Targets``.

        Raises:
            OSError: a record had to be recomputed, and the disk is full.
        """
        device, records = self.residence.device, [self._record(number) for number in numbers.tolist()]
        states = {str(p): torch.cat([record[f"{_STATES}{p}"] for record in records]) for p in self.places}
        return Batch(
            self.tokens[numbers].to(device, torch.long),
            tuple(self._at_places(part, numbers).to(device) for part in self.form.collate(records)),
            {name: self._at_places(state, numbers).to(device) for name, state in states.items()},
            rows(self.learnt, numbers, device),
        )

    def predictions(self, *targets: Tensor) -> Predictions:
        """See ``Targets``."""
        return self.form.predictions(*targets)

    def _at_places(self, stored: Tensor, numbers: Tensor) -> Tensor:
        """Return (B, T, …) from what is stored (n, …) of these blocks; 0 at what is not learnt."""
        learnt = rows(self.learnt, numbers)
        if learnt is None:
            return stored.view(len(numbers), -1, *stored.shape[1:])
        placed = stored.new_zeros(*learnt.shape, *stored.shape[1:])
        placed[learnt] = stored
        return placed

    def _key(self, number: int) -> Tensor:
        """Return (T,) numbers for what a record is of: the tokens, and below them those not learnt."""
        tokens = self.tokens[number]
        return tokens if self.learnt is None else torch.where(self.learnt[number], tokens, _BELOW - tokens)

    def _missing(self) -> list[int]:
        return [n for n in range(self.blocks) if not self.records.has(n, self._key(n))]

    def _record(self, number: int) -> Record:
        found = self.records.read(number, self._key(number))
        return self._recomputed(number) if found is None else found

    def _recomputed(self, number: int) -> Record:
        with self.records.locked():
            found = self.records.read(number, self._key(number))  # another process may have made it
            if found is not None:
                return found
            logger.warning(
                "the teacher's targets of block %d in %s are missing or not as they were written: made again",
                number,
                self.records.folder,
            )
            return self._compute([number])[0]

    @torch.no_grad()
    def _compute(self, numbers: list[int]) -> list[Record]:
        """Run the teacher on these blocks in one batch, and write their records."""
        tokens = self.tokens[numbers].to(self.residence.device, torch.long)
        with self.residence.on_device(), self.precision(), states_at(self.teacher, self.places) as states:
            final = final_states(self.teacher, tokens.clamp(min=0))
            return self._write(numbers, final, states)

    def _write(self, numbers: list[int], final: Tensor, states: Mapping[str, Tensor]) -> list[Record]:
        """Write the records of blocks from their (n, T, D) final states and the intermediate ones."""
        computed: list[Record] = []
        for row, number in enumerate(numbers):
            learnt = slice(None) if self.learnt is None else self.learnt[number].to(final.device)
            record = self.form.record(final[row][learnt], number)
            for name, state in states.items():
                record[f"{_STATES}{name}"] = state[row][learnt].to(torch.bfloat16).cpu()
            self.records.write(number, self._key(number), record)
            computed.append(record)
        return computed
