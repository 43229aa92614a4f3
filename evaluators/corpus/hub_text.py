"""Text from a dataset of the hub, streamed: nothing but what is used is fetched."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass

from datasets import load_dataset
from huggingface_hub import HfApi

from evaluators.corpus.columns import texts_of
from evaluators.corpus.documents import Document
from evaluators.huggingface.hub import Wanted, hub_refusals, refusal_of
from evaluators.huggingface.one_line import one_line
from evaluators.huggingface.quiet import quiet
from space.input_error import InputError

logger = logging.getLogger(__name__)
_NAME = re.compile(r"(?P<id>[^@:]+)(@(?P<revision>[^:]+))?(:(?P<config>.+))?")


@dataclass(frozen=True)
class HubText:
    """A dataset of the hub as a user names it: ``ID``, ``ID@REVISION``, ``ID:CONFIG`` or all three."""

    wanted: Wanted
    config: str | None

    @classmethod
    def named(cls, data: str) -> HubText:
        """Take a name apart; it has to look like a hub id (see ``evaluators.huggingface.paths``)."""
        parts = _NAME.fullmatch(data)
        assert parts is not None, data
        return cls(Wanted("dataset", parts["id"], parts["revision"]), parts["config"])

    def commit(self) -> str:
        """The commit that the name means now.

        Raises:
            InputError: the hub does not say.
        """
        logger.info("looking up %s on the hub", self.wanted.id)
        with hub_refusals(self.wanted), quiet():
            commit = HfApi().dataset_info(self.wanted.id, revision=self.wanted.revision).sha
        assert commit is not None
        return commit

    def documents(self, commit: str) -> Iterator[Document]:
        """Stream the documents of the training split as of a commit.

        Raises:
            InputError: the hub does not hand them out, or there is no column of text.
        """
        try:
            splits = load_dataset(self.wanted.id, self.config, streaming=True, revision=commit)
            split = splits["train"] if "train" in splits else next(iter(splits.values()))
            for text in texts_of(split, self.wanted.id, split.features):
                yield Document.unnamed(text)
        except InputError:
            raise
        except Exception as error:  # the hub's, or whatever is wrong with a dataset that the user named
            raise refusal_of(error, self.wanted) or InputError(
                "the dataset has to be one that the datasets library can stream",
                f"of {self.wanted.id} it says: {one_line(error)}",
                f"Name a part of it as {self.wanted.id}:PART, or another dataset",
            ) from error
