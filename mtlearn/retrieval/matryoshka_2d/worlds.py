"""Texts to search: a function's name and summary is the query, the beginning of the rest of its docstring what is to be found; or graded pairs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtlearn.datasets.docstring_search import docstring_pairs
from mtlearn.datasets.sentence_pairs import ScoredPair, read_pairs
from mtlearn.lab.seeds import stream
from mtlearn.layers.tokens import Tokeniser, Vocabulary

QUERY_WORDS, BODY_WORDS = 12, 24


@dataclass(frozen=True)
class Texts:
    """Pairs of texts.

    Attributes:
        train: first and second texts.
        test: the same, held out.
        train_scores, test_scores: how alike they are; None where each first text has one right second text.
    """

    train: tuple[tuple[str, ...], tuple[str, ...]]
    test: tuple[tuple[str, ...], tuple[str, ...]]
    train_scores: Tensor | None = None
    test_scores: Tensor | None = None


@dataclass(frozen=True)
class World:
    """Texts as tokens: two columns (n, length) for training, two for the test."""

    texts: Texts
    tokeniser: Tokeniser
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def to(self, device: torch.device) -> "World":
        """On a device."""
        (a, b), (c, d) = self.train, self.test
        return World(self.texts, self.tokeniser, (a.to(device), b.to(device)), (c.to(device), d.to(device)))


def docstring_texts(seed: int, *, held_out: int = 400, most: int | None = None) -> Texts:
    """Name and summary with the rest of the docstring; ``held_out`` functions by seed are for the test.

    Args:
        seed: of the split.
        held_out: number of test pairs.
        most: pairs in all at most; every pair when omitted.

    Raises:
        ValueError: nothing is left to train on.
    """
    pairs = docstring_pairs(query=(3, 30), document=15)
    order = torch.randperm(len(pairs), generator=stream(seed, "matryoshka_2d", "split"))[:most].tolist()
    if not 1 <= held_out < len(order):
        raise ValueError(f"held_out must be between 1 and {len(order) - 1}, got {held_out}")
    found = [(f"{pairs[i].name} {pairs[i].query}", pairs[i].document) for i in order]
    (test_first, test_second), (first, second) = zip(*found[:held_out], strict=True), zip(*found[held_out:], strict=True)
    return Texts((first, second), (test_first, test_second))


def graded_texts(sources: tuple[str, ...] = ("sick", "sts")) -> Texts:
    """Published sentence pairs with scores of 0 to 1.

    Raises:
        MissingFileError: a file is not here and cannot be downloaded.
    """
    found = {part: [pair for source in sources for pair in read_pairs(source, part)] for part in ("train", "test")}  # type: ignore[arg-type]

    def columns(pairs: list[ScoredPair]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return tuple(pair.first for pair in pairs), tuple(pair.second for pair in pairs)

    scores = {part: torch.tensor([pair.score for pair in pairs]) for part, pairs in found.items()}
    return Texts(columns(found["train"]), columns(found["test"]), scores["train"], scores["test"])


def tokenised(
    texts: Texts, tokeniser: Tokeniser | None = None, *, vocabulary: int = 5000, longest: tuple[int, int] = (QUERY_WORDS, BODY_WORDS)
) -> World:
    """Texts as tokens, cut to the ``longest`` of each column; the vocabulary is read from the training texts when no tokeniser is given."""
    if tokeniser is None:
        tokeniser = Vocabulary.of([*texts.train[0], *texts.train[1]], vocabulary)
    train, test = (
        tuple(tokeniser(column, most, truncate=True) for column, most in zip(columns, longest, strict=True)) for columns in (texts.train, texts.test)
    )
    return World(texts, tokeniser, (train[0], train[1]), (test[0], test[1]))
