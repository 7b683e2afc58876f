"""BM25 by its formula, and what it refuses."""

import math

import pytest
import torch

from mtlearn.datasets.bm25 import BM25

TEXTS = ["the cat sat on the mat", "the dog sat", "a cat and a dog and a cat", "numbers only 12"]


def test_scores_are_the_formula() -> None:
    k1, b = 1.2, 0.6
    words = [["the", "cat", "sat", "on", "the", "mat"], ["the", "dog", "sat"], ["cat", "and", "dog", "and", "cat"], ["numbers", "only"]]
    mean = sum(map(len, words)) / 4
    wanted = torch.zeros(2, 4)
    for i, query in enumerate((["cat", "sat"], ["dog", "dog"])):
        for word in query:
            df = sum(word in row for row in words)
            idf = math.log(1 + (4 - df + 0.5) / (df + 0.5))  # Lucene's
            for j, row in enumerate(words):
                tf = row.count(word)
                wanted[i, j] += idf * tf / (tf + k1 * (1 - b + b * len(row) / mean))
    torch.testing.assert_close(BM25(TEXTS, k1=k1, b=b).scores(["A cat sat?", "dog, dog"]).float(), wanted)


def test_unknown_words_count_nothing() -> None:
    index = BM25(TEXTS)
    assert torch.equal(index.scores(["zebra", "zebra cat"])[0], torch.zeros(4, dtype=torch.float64))
    assert torch.equal(index.scores(["zebra cat"]), index.scores(["cat"]))
    assert index.scores([]).shape == (0, 4)


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="no word is left in 2 texts"):
        BM25(["1", "?"])
    with pytest.raises(ValueError, match=r"b between 0 and 1, got 1\.5 and 2"):
        BM25(TEXTS, b=2)
