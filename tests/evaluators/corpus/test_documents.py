from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice, pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from evaluators.corpus.documents import Document, in_hash_order, standard_library

documents = st.lists(st.text(min_size=1), unique=True).map(
    lambda texts: [Document.unnamed(text) for text in texts]
)


def test_modules_of_the_standard_library_have_the_same_name_on_every_machine() -> None:
    modules = list(standard_library())
    names = [module.name for module in modules]
    assert names == sorted(set(names))
    assert "argparse.py" in names
    assert "json/decoder.py" in names
    assert not any(name.startswith(("/", ".", "site-packages")) or "\\" in name for name in names)


@given(documents, st.randoms())
def test_hash_order_depends_on_the_documents_alone(read: list[Document], random: Random) -> None:
    shuffled = random.sample(read, len(read))
    assert list(in_hash_order(shuffled)) == list(in_hash_order(read))
    assert set(in_hash_order(read)) == set(read)


@given(documents, st.integers(min_value=1, max_value=20))
def test_no_window_loses_a_document(read: list[Document], window: int) -> None:
    ordered = list(in_hash_order(read, window=window))
    assert sorted(document.text for document in ordered) == sorted(document.text for document in read)


def test_neighbours_in_the_source_are_no_neighbours_after() -> None:
    modules = [Document(f"module {number:03d}", "text") for number in range(100)]
    places = [int(document.name.split()[1]) for document in in_hash_order(modules)]
    assert sum(abs(left - right) == 1 for left, right in pairwise(places)) < 10


def test_of_copies_one_is_kept() -> None:
    texts = ["a story", "another", "a story", "a story"]
    ordered = list(in_hash_order(Document.unnamed(text) for text in texts))
    assert sorted(document.text for document in ordered) == ["a story", "another"]


def test_an_endless_source_is_read_a_window_at_a_time() -> None:
    read = 0

    def endless() -> Iterator[Document]:
        nonlocal read
        for read in count(1):
            yield Document.unnamed(f"{read:010d}")

    assert len(list(islice(in_hash_order(endless(), window=100), 15))) == 15
    assert read == 20
