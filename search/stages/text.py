"""The text of a run: how its documents lie in blocks, and the blocks."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from evaluators.corpus.blocks import Corpus, fingerprint
from evaluators.corpus.corpus import CorpusRequest, tokenizer_fingerprint
from evaluators.corpus.layout import Layout, possible_layouts
from evaluators.corpus.mixture import parse_data, read_mixture
from evaluators.corpus.sources import find_source
from evaluators.corpus.splits import DocumentTokenizer
from evaluators.metrics.layouts import TOKENS, best_layout
from evaluators.teacher import Teacher
from evaluators.teacher.vocabulary import check_texts, check_tokens
from evaluators.teacher.written_once import cache_directory
from search.settings.config import RunConfig
from search.settings.placement import Placement
from search.stages.provenance import read_provenance
from search.storage.run_directory import atomic_write

logger = logging.getLogger(__name__)
#: Documents of each text from which the layout is found out, and characters of each that count.
_DOCUMENTS, _CHARACTERS = 64, 4096
ANSWERS = "answers"


def read_text(config: RunConfig, teacher: Teacher, placement: Placement) -> Corpus:
    """Read, tokenise and mix the texts of a run.

    Args:
        config: the run.
        teacher: whose tokenizer and, for the layout of documents, whose loss counts.
        placement: where the teacher lies.

    Raises:
        InputError: a text cannot be found or read, is too short, or has tokens unknown to the teacher.
    """
    correction_blocks = math.ceil(config.teacher_correction / config.block)
    request = CorpusRequest(
        data="",
        block=config.block,
        calibration_blocks=config.calibration_blocks,
        distillation_blocks=max(config.distillation_blocks, correction_blocks),
        validation_blocks=config.validation_blocks,
        layout=layout_of(config, teacher, placement),
        answers_alone=config.learn == ANSWERS,
        long_block=config.long_block,
        long_blocks=config.long_blocks,
    )
    corpus = read_mixture(parse_data(config.data), request, teacher.tokenizer, cache_directory() / "text")
    read = [*corpus.blocks.values(), *([] if corpus.long is None else [corpus.long])]
    check_tokens(read, teacher.tokenizer, teacher.rows, teacher.id)
    logger.info("blocks have %s", corpus.layout.words(teacher.tokenizer))
    return corpus


def layout_of(config: RunConfig, teacher: Teacher, placement: Placement) -> Layout:
    """Return how documents lie in blocks, as the teacher knows it best; what was found before is reused.

    A model that a run wrote knows what it learnt from, so later runs of a family are measured alike.
    A teacher of which one layer at a time is in memory is not asked: its tokenizer decides.

    Raises:
        InputError: a text cannot be found or read, or has tokens unknown to the teacher.
    """
    layouts = possible_layouts(teacher.tokenizer)
    learnt = read_provenance(teacher.directory.resolve().parent.parent).layout
    if learnt in layouts:
        return learnt
    if len(layouts) == 1 or placement.layer_by_layer:
        return layouts[0]
    key = fingerprint(
        teacher.fingerprint, tokenizer_fingerprint(teacher.tokenizer), *config.data, config.block
    )
    file = cache_directory() / "text" / f"layout-{key[:16]}.json"
    found = _saved(file)
    if found is None:
        texts = list(_beginnings(config, teacher))
        check_texts(texts, teacher.tokenizer, teacher.rows, teacher.id)
        with teacher.on_device():
            found = best_layout(teacher.model, teacher.tokenizer, texts, min(config.block, TOKENS))
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps(vars(found)))
    return found


def _saved(file: Path) -> Layout | None:
    try:
        return Layout(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _beginnings(config: RunConfig, teacher: Teacher) -> Iterator[str]:
    """Yield the beginnings of the first documents of each text."""
    writer = DocumentTokenizer(teacher.tokenizer)
    for one in parse_data(config.data):
        source = find_source(one.data)
        documents = source.documents(source.version())
        yield from (text[:_CHARACTERS] for text in islice(writer.texts(documents), _DOCUMENTS))
