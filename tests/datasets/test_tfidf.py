import math

import pytest
import torch

from mtlearn.datasets.tfidf import TfIdf

TEXTS = ["the matrix", "the graph the graph", "sort"]


def test_cosines_by_hand() -> None:
    rare, common = math.log(4 / 2) + 1, math.log(4 / 3) + 1  # in one and in two of three texts, smoothed
    twice = 1 + math.log(2)
    first = torch.tensor([common, rare]) / math.hypot(common, rare)  # the, matrix
    second = torch.tensor([twice * common, twice * rare]) / math.hypot(twice * common, twice * rare)  # the, graph
    scores = TfIdf(TEXTS).scores(["the matrix", "unknown"])
    torch.testing.assert_close(scores[0], torch.tensor([1.0, float(first[0] * second[0]), 0.0], dtype=torch.float64))
    assert not scores[1].any()
    torch.testing.assert_close(TfIdf(TEXTS).pairs(TEXTS[:2], TEXTS[1:]), torch.tensor([float(first[0] * second[0]), 0.0], dtype=torch.float64))


def test_stop_words_and_texts_without_words() -> None:
    assert TfIdf(TEXTS, stop_words=True).scores(["the matrix"])[0].tolist() == pytest.approx([1, 0, 0])
    with pytest.raises(ValueError, match="no word is left in 1 texts"):
        TfIdf(["the"], stop_words=True)
