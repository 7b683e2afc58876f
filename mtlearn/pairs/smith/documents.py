"""Long real documents in two halves: is the second half of the same document as the first?

    documents = library_documents(least=200)          # Python's reference topics and long docstrings of numpy, scipy, scikit-learn
    pairs = halved_pairs(documents)                   # each with its own other half, and with that of the document that is most like it

The published benchmarks of the paper are not here: GWikiMatch is released as addresses of Wikipedia pages and labels, without their texts, and AAN
as a collection of papers. What stands for them where files are to be published ones: the Cranfield collection, whose abstracts that answer one
question are joined to two long documents (:func:`question_documents`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mtlearn.datasets.cranfield import read_cranfield
from mtlearn.datasets.documentation import documentation
from mtlearn.datasets.texts import plain, reference_topics
from mtlearn.datasets.tfidf import TfIdf
from mtlearn.layers.tokens import words
from mtlearn.pairs.smith.blocks import sentences

LIBRARIES = ("numpy", "scipy", "sklearn")


@dataclass(frozen=True)
class Halves:
    """A document in two halves.

    Attributes:
        name: what it is.
        source: library or collection: non-matches are drawn within it.
        first, second: every other paragraph (or sentence, or abstract), in order.
    """

    name: str
    source: str
    first: str
    second: str


@dataclass(frozen=True)
class TextPairs:
    """Pairs of texts and whether they match, (n,) float."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    labels: Tensor


def halve(parts: Sequence[str]) -> tuple[str, str]:
    """Parts in turn to one half and the other."""
    return "\n\n".join(parts[::2]), "\n\n".join(parts[1::2])


def _long(name: str, source: str, parts: Sequence[str], least: int) -> Halves | None:
    first, second = halve([part for part in parts if words(part)])
    return Halves(name, source, first, second) if min(len(words(first)), len(words(second))) >= least // 2 else None


@cache
def library_documents(least: int = 200, libraries: tuple[str, ...] = LIBRARIES) -> tuple[Halves, ...]:
    """Python's reference topics and the docstrings whose halves have at least ``least // 2`` words, in the order of names.

    Raises:
        ValueError: ``least`` is below 2.
    """
    if least < 2:
        raise ValueError(f"least must be at least 2 words, got {least}")
    found = [_long(topic.name, "python", topic.text.split("\n\n"), least) for topic in reference_topics()]
    pages = documentation(libraries).pages
    found += [_long(page.name, page.library, [page.summary, *plain(page.body()).split("\n\n")], least) for page in pages]
    return tuple(document for document in found if document is not None)


@cache
def abstracts() -> tuple[Halves, ...]:
    """Cranfield's abstracts in halves of alternating sentences, by their number; those of fewer than two sentences are left out.

    Raises:
        MissingFileError: the files are not here and cannot be downloaded.
    """
    found = []
    for number, document in enumerate(read_cranfield().documents):
        parts = [part for part in sentences(document.text.replace(" . ", ". ")) if words(part)]
        if len(parts) > 1:
            found.append(Halves(str(number), "cranfield", *halve(parts)))
    return tuple(found)


@cache
def question_documents(least: int = 4) -> tuple[Halves, ...]:
    """For each Cranfield question with enough answers the abstracts that answer it, in turn joined to two long documents.

    Raises:
        MissingFileError: the files are not here and cannot be downloaded.
    """
    collection = read_cranfield()
    found = []
    for number, relevant in enumerate(collection.relevant):
        texts = [collection.documents[i].text.replace(" . ", ". ") for i in sorted(relevant)]
        texts = [text for text in texts if words(text)]
        if len(texts) >= least:
            found.append(Halves(str(number), "questions", *halve(texts)))
    return tuple(found)


def nearest_of_source(documents: Sequence[Halves]) -> Tensor:
    """For each document the most alike of the same source by TF-IDF, (n,) int64; itself where it is the only one."""
    texts = [f"{d.first} {d.second}" for d in documents]
    like = TfIdf(texts, stop_words=True).scores(texts)
    number = {name: i for i, name in enumerate(dict.fromkeys(d.source for d in documents))}
    source = torch.tensor([number[d.source] for d in documents])
    like.masked_fill_(source[:, None] != source, -1.0)
    like.fill_diagonal_(-0.5)  # before those of another source, after all others
    return like.argmax(1)


def halved_pairs(documents: Sequence[Halves]) -> TextPairs:
    """Each document's halves as a match, and its first half with the second of its nearest neighbour as a non-match.

    Raises:
        ValueError: fewer than two documents.
    """
    if len(documents) < 2:
        raise ValueError(f"at least two documents are needed for a non-match, got {len(documents)}")
    other = nearest_of_source(documents).tolist()
    kept = [i for i, j in enumerate(other) if i != j]
    first = [documents[i].first for i in range(len(documents))] + [documents[i].first for i in kept]
    second = [document.second for document in documents] + [documents[other[i]].second for i in kept]
    labels = torch.cat([torch.ones(len(documents)), torch.zeros(len(kept))])
    return TextPairs(tuple(first), tuple(second), labels)


def fold(documents: Sequence[Halves], number: int, folds: int = 5) -> tuple[tuple[Halves, ...], tuple[Halves, ...]]:
    """Training and test documents: every ``folds``-th one is for the test, beginning at ``number``."""
    held = [(i - number) % folds == 0 for i in range(len(documents))]
    return (
        tuple(d for d, out in zip(documents, held, strict=True) if not out),
        tuple(d for d, out in zip(documents, held, strict=True) if out),
    )
