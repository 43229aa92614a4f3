"""Where a corpus comes from: the standard library, local files, or a dataset of the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from evaluators.corpus.documents import Document, in_hash_order, standard_library
from evaluators.corpus.hub_text import HubText
from evaluators.corpus.local_text import find_files, local_documents, sha256_of_files

STANDARD_LIBRARY = "stdlib"


@dataclass(frozen=True)
class Source:
    """Text that can be read any number of times.

    Attributes:
        id: what the user calls it.
        identity: what tells it from other sources whose version may be the same; of local text the
            version says it all, wherever the files lie.
        version: finds out what changes whenever the text does: SHA-256 of the content, or the
            commit on the hub.
        documents: reads a version's documents in the order in which they are to be used.
    """

    id: str
    identity: str
    version: Callable[[], str]
    documents: Callable[[str], Iterator[Document]]


def find_source(data: str) -> Source:
    """The source that a name means; the hub is not asked yet.

    Args:
        data: ``stdlib``; a file, folder or glob; or a hub dataset as ``ID``, ``ID@REVISION`` or
            ``ID:CONFIG``.

    Raises:
        InputError: there is no such file, its suffix is unknown, or the hub can have no such dataset.
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
        )
    hub = HubText.named(data)
    return Source(
        id=data,
        identity=f"hub {data}",
        version=hub.commit,
        documents=lambda commit: in_hash_order(hub.documents(commit)),
    )


def hub_text(data: str) -> HubText | None:
    """The data set of the hub that a name means; None if it means something else.

    Raises:
        InputError: as for ``find_source``.
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
    )


def _sha256(documents: Iterable[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.name}\0{document.text}\0".encode())
    return digest.hexdigest()
