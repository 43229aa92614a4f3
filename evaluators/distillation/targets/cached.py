"""What the teacher says of the distillation set: computed once, kept on disk, shared by all candidates."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluators.distillation.states import StatePlace, states_at
from evaluators.distillation.targets.batch import Batch, Form, Predictions
from evaluators.distillation.targets.live import Hidden
from evaluators.distillation.targets.records import Records
from evaluators.huggingface.final_states import final_states

logger = logging.getLogger(__name__)
_TOKENS_AT_ONCE = 4096
_STATES = "states of "

Record = Mapping[str, Tensor]


class CachedTargets:
    """Targets read from disk; a record that is not there, or not as it was written, the teacher makes again.

    Args:
        teacher: in evaluation mode.
        tokens: (N, T) of all blocks, on the host; those before a longer text keep their records.
        form: what is kept of a block.
        folder: of the records, for this teacher and form alone.
        fingerprint: of teacher and precision.
        places: of intermediate states that are kept too, in bfloat16.
        precision: the context that the teacher runs in, such as ``Accelerator.autocast``.
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
    ) -> None:
        self.teacher, self.tokens, self.form = teacher, tokens, form
        self.places, self.precision = tuple(places), precision
        names = [str(place) for place in self.places]
        self.records = Records(folder, {**form.description, "states": names, "fingerprint": fingerprint})

    @property
    def blocks(self) -> int:
        """See ``Targets``."""
        return len(self.tokens)

    @property
    def head_of(self) -> PreTrainedModel | None:
        """Whose head makes the answers out of final states, if they are made so."""
        return self.form.teacher if isinstance(self.form, Hidden) else None

    def missing(self) -> list[int]:
        """The numbers of the blocks that have no record yet.

        Raises:
            OSError: the folder cannot be written.
        """
        with self.records.locked():
            return self._missing()

    def fill(self, advance: Callable[[int], None] = lambda blocks: None) -> None:
        """Let the teacher make what is missing; another process that does the same is waited for.

        Args:
            advance: told the number of blocks after each batch.

        Raises:
            OSError: the disk is full. The records before are kept, and used when it is begun again.
        """
        with self.records.locked():
            missing = self._missing()
            size = max(1, _TOKENS_AT_ONCE // self.tokens.shape[1])
            for at in range(0, len(missing), size):
                some = missing[at : at + size]
                self._make(some)
                advance(len(some))
            if missing:
                self.records.sync()

    def batch(self, numbers: Tensor) -> Batch:
        """See ``Targets``.

        Raises:
            OSError: a record had to be made again, and the disk is full.
        """
        device, records = self.teacher.device, [self._record(number) for number in numbers.tolist()]
        states = {str(p): torch.stack([record[f"{_STATES}{p}"] for record in records]) for p in self.places}
        return Batch(
            self.tokens[numbers].to(device, torch.long),
            tuple(part.to(device) for part in self.form.collate(records)),
            {name: state.to(device) for name, state in states.items()},
        )

    def predictions(self, *targets: Tensor) -> Predictions:
        """See ``Targets``."""
        return self.form.predictions(*targets)

    def _missing(self) -> list[int]:
        return [n for n in range(self.blocks) if not self.records.has(n, self.tokens[n])]

    def _record(self, number: int) -> Record:
        found = self.records.read(number, self.tokens[number])
        return self._again(number) if found is None else found

    def _again(self, number: int) -> Record:
        with self.records.locked():
            found = self.records.read(number, self.tokens[number])  # another process may have made it
            if found is not None:
                return found
            logger.warning(
                "the teacher's targets of block %d in %s are missing or not as they were written: made again",
                number,
                self.records.folder,
            )
            return self._make([number])[0]

    @torch.no_grad()
    def _make(self, numbers: list[int]) -> list[Record]:
        """Ask the teacher about these blocks, all at once, and write what it says."""
        made: list[Record] = []
        tokens = self.tokens[numbers].to(self.teacher.device, torch.long)
        with self.precision(), states_at(self.teacher, self.places) as states:
            final = final_states(self.teacher, tokens.clamp(min=0))
            for place, number in enumerate(numbers):
                record = self.form.record(final[place], number)
                for name, state in states.items():
                    record[f"{_STATES}{name}"] = state[place].to(torch.bfloat16).cpu()
                self.records.write(number, self.tokens[number], record)
                made.append(record)
        return made
