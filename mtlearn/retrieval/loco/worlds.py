"""Two worlds with long documents: evidence that is scattered among noise, and docstrings.

**Scattered evidence.** A document is 64 words, two of them different *keys*, the others noise. What it is about is the ordered pair of its keys::

    ~ ~ ~ ~ K7 ~ ~ ~ ~ ~ ~ ~ ~ ~ K2 ~ ~      query: K7 K2        another document: K2 before K7

Each reader fails for its own reason: who reads the beginning misses a key, who reads chunk by chunk sees one key at a time, and the mean of chunks
has forgotten which of them came first. A bag of words, of any length, cannot tell the two orders either.

**Docstrings.** The summary of a function is the query, the rest of its docstring the document; compared by words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mtlearn.datasets.bm25 import BM25
from mtlearn.datasets.docstring_search import DocstringPair, docstring_pairs
from mtlearn.datasets.tfidf import TfIdf
from mtlearn.layers.tokens import Vocabulary, words
from mtlearn.retrieval.loco.method import READERS, Reader

# scattered evidence


@dataclass(frozen=True)
class Scattered:
    """Documents with two keys among noise. Token 0 is padding, keys are 1 to ``keys``, noise comes after.

    Attributes:
        keys, noise: numbers of words.
        length: of a document.
    """

    keys: int = 20
    noise: int = 50
    length: int = 64

    @property
    def vocabulary(self) -> int:
        """Numbers of tokens."""
        return 1 + self.keys + self.noise

    @property
    def classes(self) -> Tensor:
        """All ordered pairs of different keys, (keys (keys - 1), 2): these are the queries, too."""
        pairs = torch.cartesian_prod(*[torch.arange(1, self.keys + 1)] * 2)
        return pairs[pairs[:, 0] != pairs[:, 1]]

    def documents(self, pairs: Tensor, *, generator: torch.Generator, length: int | None = None) -> tuple[Tensor, Tensor]:
        """A new document of each pair (n, 2): tokens (n, length) and the places (n, 2) of its keys, the first before the second."""
        length = self.length if length is None else length
        tokens = torch.randint(self.keys + 1, self.vocabulary, (len(pairs), length), generator=generator)
        places = torch.rand(len(pairs), length, generator=generator).argsort(1)[:, :2].sort(1).values
        return tokens.scatter(1, places, pairs), places

    def both_orders(self, count: int, *, generator: torch.Generator) -> Tensor:
        """``count`` different pairs in both orders, (2 count, 2)."""
        pairs = torch.combinations(torch.arange(1, self.keys + 1))
        chosen = pairs[torch.randperm(len(pairs), generator=generator)[:count]]
        return torch.stack([chosen, chosen.flip(1)], 1).flatten(0, 1)

    def different(self, count: int, *, generator: torch.Generator) -> Tensor:
        """``count`` different classes, (count, 2)."""
        return self.classes[torch.randperm(len(self.classes), generator=generator)[:count]]


def moved(document: Tensor, keys: Tensor, places: Tensor, *, noise: Tensor) -> Tensor:
    """One document (L,) with its keys (2,) taken from where they were to other places (m, 2): (m, L).

    Args:
        document: with keys anywhere; where they were stands noise afterwards.
        keys: the two tokens.
        places: where they shall stand.
        noise: (L,) words for the places that are left.
    """
    clean = torch.where(torch.isin(document, keys), noise, document)
    return clean.expand(len(places), -1).scatter(1, places, keys.expand(len(places), -1))


# docstrings

SETS: dict[str, tuple[str, ...]] = {"numpy": ("numpy", "scipy"), "networkx": ("networkx",), "sklearn": ("sklearn",), "torch": ("torch",)}


def docstring_task(name: str, count: int, *, generator: torch.Generator) -> tuple[list[str], list[str]]:
    """Queries and documents of ``count`` random pairs of one of :data:`SETS`; all of them where there are fewer."""
    pairs = docstring_pairs(SETS[name])
    chosen = [pairs[i] for i in torch.randperm(len(pairs), generator=generator)[:count].tolist()]
    return [pair.query for pair in chosen], [pair.document for pair in chosen]


def word_scores(queries: Sequence[str], documents: Sequence[str], reader: Reader | str, window: int = 64) -> Tensor:
    """Scores (q, n) by TF-IDF of what a reader of ``window`` words sees, or by "BM25" of the whole.

    Each reader counts words in what it reads. The mean of chunks is that of their unit vectors, compared by cosine.
    """
    if reader == "BM25":
        return BM25(documents).scores(queries)
    rows = [words(document) for document in documents]
    if reader in ("whole", "truncated"):
        return TfIdf([" ".join(row if reader == "whole" else row[:window]) for row in rows]).scores(queries)
    if reader not in READERS:
        raise ValueError(f"reader must be BM25 or one of {', '.join(READERS)}, got {reader!r}")
    chunks = [" ".join(row[start : start + window]) for row in rows for start in range(0, len(row), window)]
    owner = torch.tensor([i for i, row in enumerate(rows) for _ in range(0, len(row), window)])
    index = TfIdf(chunks)
    scores = index.scores(queries)  # (q, chunks)
    if reader == "chunk-max":
        return scores.new_zeros(len(queries), len(documents)).scatter_reduce(1, owner.expand_as(scores), scores, "amax", include_self=False)
    total = scores.new_zeros(len(queries), len(documents)).index_add(1, owner, scores)
    alike = index.scores(chunks)
    same = torch.where(owner[:, None] == owner, alike, 0.0).sum(1)
    norm = alike.new_zeros(len(documents)).index_add(0, owner, same).sqrt()  # |sum of a document's unit vectors|
    return total / norm


# texts for pretraining

SPECIAL = ("[PAD]", "[UNK]", "[SEP]", "[MASK]")
UNKNOWN, SEPARATOR, MASK = 1, 2, 3


@dataclass(frozen=True)
class Texts:
    """Docstrings as token numbers.

    Attributes:
        vocabulary: of the training texts.
        short, long: training texts: summaries, and whole docstrings.
        held_short, held_long: the same of functions that were set aside.
    """

    vocabulary: Vocabulary
    short: tuple[tuple[int, ...], ...]
    long: tuple[tuple[int, ...], ...]
    held_short: tuple[tuple[int, ...], ...]
    held_long: tuple[tuple[int, ...], ...]


@cache
def _pairs() -> tuple[DocstringPair, ...]:
    return docstring_pairs()


def docstring_texts(size: int, *, held: int, generator: torch.Generator) -> Texts:
    """All docstrings, ``held`` random functions set aside, with a vocabulary of ``size`` numbers."""
    pairs = _pairs()
    order = torch.randperm(len(pairs), generator=generator).tolist()
    train, test = [pairs[i] for i in order[held:]], [pairs[i] for i in order[:held]]
    vocabulary = Vocabulary.of((f"{pair.query} {pair.document}" for pair in train), size, special=SPECIAL)

    def numbers(texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(vocabulary.number.get(word, UNKNOWN) for word in words(text)) for text in texts)

    found = (
        numbers([pair.query if short else f"{pair.query} {pair.document}" for pair in part]) for part in (train, test) for short in (True, False)
    )
    return Texts(vocabulary, *found)
