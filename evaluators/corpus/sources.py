"""The sources of a corpus: the Python standard library, local files, or a dataset of the hub."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from datasets import Features, load_dataset
from huggingface_hub import HfApi

from evaluators.corpus.documents import (
    Document,
    contents_of_rows,
    documents_of_lines,
    in_hash_order,
    standard_library,
)
from evaluators.corpus.local_files import find_files, sha256_of_files, size_of
from evaluators.corpus.local_text import local_documents
from evaluators.corpus.rejoining import lines_of_rows, recognise_lines
from evaluators.corpus.splitting import row_limit, split_long
from evaluators.huggingface.hub import HubRequest, hub_refusals, refusal_of
from evaluators.huggingface.library_output import quiet_libraries, short_message
from space.input_error import InputError

logger = logging.getLogger(__name__)
STANDARD_LIBRARY = "stdlib"
_NAME = re.compile(r"(?P<id>[^@:]+)(@(?P<revision>[^:]+))?(:(?P<config>.+))?")


@dataclass(frozen=True)
class HubText:
    """A dataset of the hub, as a user names it: ``ID``, ``ID@REVISION``, ``ID:CONFIG`` or all three."""

    wanted: HubRequest
    config: str | None

    @classmethod
    def named(cls, data: str) -> HubText:
        """Parse a name; its first part has to look like a hub id (``hub.may_be_hub_id``)."""
        parts = _NAME.fullmatch(data)
        assert parts is not None, data
        return cls(HubRequest("dataset", parts["id"], parts["revision"]), parts["config"])

    def commit(self) -> str:
        """Ask the hub for the commit that the name refers to now.

        Raises:
            InputError: the hub cannot be reached, or has no such dataset.
        """
        logger.info("looking up %s on the hub", self.wanted.id)
        with hub_refusals(self.wanted), quiet_libraries():
            commit = HfApi().dataset_info(self.wanted.id, revision=self.wanted.revision).sha
        assert commit is not None
        return commit

    def documents(self, commit: str) -> Iterator[Document]:
        """Stream the documents of the training split of a commit, or of the first split if there is none.

        Raises:
            InputError: the hub does not provide them, or there is no text column.
        """
        try:
            splits = load_dataset(self.wanted.id, self.config, streaming=True, revision=commit)
            split = splits["train"] if "train" in splits else next(iter(splits.values()))
            are_lines, rows = recognise_lines(split, split.features or Features())
            if are_lines:
                yield from map(Document.unnamed, documents_of_lines(lines_of_rows(rows)))
                return
            for content in contents_of_rows(rows, self.wanted.id):
                if isinstance(content, str):
                    yield from map(Document.unnamed, split_long(content, row_limit(None)))
                else:
                    yield Document.unnamed(content)
        except InputError:
            raise
        except Exception as error:  # the hub's, or anything wrong with a user's dataset
            raise refusal_of(error, self.wanted) or InputError(
                "the dataset has to be one that the datasets library can stream",
                f"of {self.wanted.id} it says: {short_message(error)}",
                f"Name a part of it as {self.wanted.id}:PART, or another dataset",
            ) from error


@dataclass(frozen=True)
class Source:
    """A text that can be read any number of times.

    Attributes:
        id: the user's name for it.
        identity: distinguishes it from other sources that may have the same version. All local files share
            one identity, since their version depends on their content alone.
        version: returns a value that changes whenever the text does: the SHA-256 of the content, or the
            commit on the hub.
        documents: reads the documents of a version in the order in which they are used.
        head: reads the documents in the order in which they lie, for a look at the first ones.
        size: its bytes, where they are known.
    """

    id: str
    identity: str
    version: Callable[[], str]
    documents: Callable[[str], Iterator[Document]]
    head: Callable[[], Iterator[Document]]
    size: int | None = None


def find_source(data: str) -> Source:
    """Return the source that a name refers to; the hub is not asked yet.

    Args:
        data: ``stdlib``; a file, folder or glob; or a hub dataset as ``ID``, ``ID@REVISION`` or
            ``ID:CONFIG``.

    Raises:
        InputError: there is no such file, its suffix is unknown, or the name cannot be a hub id.
    """
    if data == STANDARD_LIBRARY:
        return _standard_library()
    files = find_files(data)
    if files:
        return Source(
            id=data,
            identity="files",
            version=lambda: sha256_of_files(files),
            documents=lambda _: in_hash_order(local_documents(files)),
            head=lambda: local_documents(files),
            size=sum(map(size_of, files)),
        )
    hub = HubText.named(data)
    return Source(
        id=data,
        identity=f"hub {data}",
        version=hub.commit,
        documents=lambda commit: in_hash_order(hub.documents(commit)),
        head=lambda: hub.documents(hub.commit()),
    )


def hub_text(data: str) -> HubText | None:
    """Return the hub dataset that a name refers to; None if it refers to something else.

    Raises:
        InputError: as in ``find_source``.
    """
    return None if data == STANDARD_LIBRARY or find_files(data) else HubText.named(data)


def _standard_library() -> Source:
    modules = list(standard_library())
    characters = sum(len(module.text) for module in modules)
    return Source(
        id="the Python standard library",
        identity=STANDARD_LIBRARY,
        version=lambda: _sha256(modules),
        documents=lambda _: in_hash_order(modules, window=characters),
        head=lambda: iter(modules),
        size=sum(len(module.text.encode()) for module in modules),
    )


def _sha256(documents: Iterable[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.name}\0{document.text}\0".encode())
    return digest.hexdigest()
