"""A teacher with fewer tokens: what each size of vocabulary costs, and the directory of such a teacher.

A student of a teacher with a smaller vocabulary learns from that teacher, whose predictions are the whole
one's over the tokens that stay. So a run on it is like any other, and the whole pipeline of models, targets
and tasks knows nothing of tokens that are gone. Losses of different vocabularies are compared in bits per
byte of text.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import ModelCardData
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluators.corpus.corpus import Corpus, CorpusRequest
from evaluators.corpus.mixture import parse_data, read_mixture
from evaluators.importance.token_mass import token_mass
from evaluators.metrics.loss import bits_per_byte, predicted_tokens, validation_loss
from evaluators.teacher import Teacher
from evaluators.teacher.writing import licence_files, read_terms, write_directory
from evaluators.teacher.written_once import cache_directory
from search.stages.provenance import TAG
from search.storage.run_directory import atomic_write
from space.input_error import InputError
from space.vocabulary.rows import check_vocabulary, named_tokens, smaller_vocabulary
from space.vocabulary.smaller_tokenizer import described, smaller_tokenizer
from space.vocabulary.token_table import TokenTable

_BLOCK = 512
#: Tokens of the held-out text by which a size is judged.
VALIDATION = 16_384
#: A size is worth a look while at least this share of the text falls to its tokens.
_MOST = 0.75
#: Sizes are multiples of it, as suits matrix products.
STEP = 64


@dataclass(frozen=True)
class SmallerVocabulary:
    """What a size of vocabulary keeps and costs."""

    tokens: int
    parameters: int
    mass: float
    """Share of the text, and of what the teacher expects, that falls to the tokens that are kept."""
    tokens_per_byte: float
    """Of the validation text, written in these tokens."""
    bits_per_byte: float
    """The teacher's loss there over these tokens."""


class SmallerTeacher:
    """Makes teachers of fewer tokens.

    Args:
        teacher: the whole one.
        data: the texts that tokens are ranked by, as the user names them.
        tokens: of the calibration set.

    Raises:
        InputError: of this tokenizer, or in this class, no token can go.
    """

    def __init__(self, teacher: Teacher, data: tuple[str, ...], tokens: int) -> None:
        check_vocabulary(teacher.model.config)
        self.teacher, self.data, self.tokens = teacher, data, tokens
        self.table = TokenTable.of(described(teacher.tokenizer))
        self.mass, self.order = torch.zeros(0), list[int]()

    def rank(self, advance: Callable[[int], None] = lambda tokens: None) -> None:
        """Measure the share of each token, ``mass``, and put all in ``order``, the most important first.

        Args:
            advance: called with the number of tokens that the teacher has read.

        Raises:
            InputError: a text cannot be read.
        """
        model = self.teacher.model
        blocks = self._corpus(self.teacher.tokenizer, calibration=self.tokens).calibration
        with self.teacher.on_device():
            self.mass = token_mass(model, blocks, advance)
        self.order = self.table.order(self.mass.tolist(), named_tokens(model.config, model.generation_config))

    @property
    def whole(self) -> int:
        """The tokens of the teacher's tokenizer that the model has a row for."""
        return sum(number < self.teacher.rows for number in self.table.names)

    @property
    def fewest(self) -> int:
        """The smallest vocabulary: that of the tokens which always stay."""
        return -(-len(self.table.always) // STEP) * STEP

    def sizes(self) -> list[int]:
        """Return the sizes that are worth a look: the tokenizer's, and its halves while most text stays.

        The tokens have to be ranked.
        """
        halves = [self.whole // 2**power // STEP * STEP for power in range(1, 8)]
        kept = [size for size in halves if size >= self.fewest and self.share(size) >= _MOST]
        return [self.whole, *kept]

    def share(self, tokens: int) -> float:
        """Return the share of the text, and of what the teacher expects, that falls to a vocabulary."""
        return float(self.mass[self.kept(tokens)].sum())

    def check(self, tokens: int) -> None:
        """Check that a vocabulary may have this size.

        Raises:
            InputError: it is below the smallest, or above the teacher's.
        """
        if not self.fewest <= tokens <= self.whole:
            raise InputError(
                "A vocabulary has at least the tokens with which every text can be written",
                f"{tokens:,} were asked of a tokenizer that has {self.whole:,}, of which "
                f"{len(self.table.always):,} always stay",
                f"Ask for {self.fewest:,} to {self.whole:,}",
            )

    def kept(self, tokens: int) -> list[int]:
        """Return the tokens of a vocabulary of this size, ascending."""
        return sorted(self.order[:tokens])

    def model(self, tokens: int) -> PreTrainedModel:
        """Return the teacher with a vocabulary of this size; it shares the other weights."""
        return smaller_vocabulary(self.teacher.model, self.kept(tokens))

    def tokenizer(self, tokens: int) -> PreTrainedTokenizerBase:
        """Return the tokenizer of that teacher."""
        return smaller_tokenizer(self.teacher.tokenizer, self.kept(tokens))

    def measured(
        self, tokens: int, advance: Callable[[int], None] = lambda tokens: None
    ) -> SmallerVocabulary:
        """Measure a vocabulary of this size on the validation split of the text.

        Args:
            tokens: of the vocabulary.
            advance: called with the number of tokens that are read.
        """
        with self.teacher.on_device():
            model = self.model(tokens)
            corpus = self._corpus(self.tokenizer(tokens))
            loss = validation_loss(model, corpus.validation, advance=advance)
        predicted = predicted_tokens(corpus.validation)
        return SmallerVocabulary(
            tokens,
            model.num_parameters(),
            self.share(tokens),
            predicted / corpus.validation_bytes,
            bits_per_byte(loss, predicted, corpus.validation_bytes),
        )

    def write(self, tokens: int, path: Path) -> None:
        """Write the teacher of this size as a directory that transformers loads.

        Raises:
            OSError: the disk is full.
        """
        teacher = self.teacher
        path.parent.mkdir(parents=True, exist_ok=True)
        write_directory(
            self.model(tokens), self.tokenizer(tokens), teacher.stored_dtype, path, teacher.other_dtypes
        )
        for file in licence_files(teacher.directory):
            shutil.copyfile(file, path / file.name)
        atomic_write(path / "README.md", self._card(tokens))

    def _card(self, tokens: int) -> str:
        terms, local = read_terms(self.teacher.directory), Path(self.teacher.id).expanduser().is_dir()
        data = ModelCardData(
            base_model=None if local else self.teacher.id,
            language=terms.language,
            license=terms.licence,  # type: ignore[arg-type]  # the hub takes several as well
            license_name=terms.licence_name,
            license_link=terms.licence_link,
            library_name="transformers",
            pipeline_tag="text-generation",
            tags=[TAG],
        )
        name = Path(self.teacher.id).name
        return (
            f"---\n{data.to_yaml()}\n---\n\n# {name}, {tokens:,} tokens\n\n"
            f"The weights are those of {name}, with the rows of {tokens:,} of its {self.whole:,} "
            "tokens; nothing was trained.\n"
        )

    def _corpus(self, tokenizer: PreTrainedTokenizerBase, calibration: int = _BLOCK) -> Corpus:
        request = CorpusRequest(
            data="",
            block=_BLOCK,
            calibration_blocks=max(1, calibration // _BLOCK),
            distillation_blocks=1,
            validation_blocks=VALIDATION // _BLOCK,
        )
        return read_mixture(parse_data(self.data), request, tokenizer, cache_directory() / "text")
