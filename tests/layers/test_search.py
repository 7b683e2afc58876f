"""Exact search finds what sorting all dot products finds, here and by faiss."""

import re
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlearn.layers.search import ExactIndex, FaissIndex


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 30), st.integers(0, 9), st.integers(1, 12), st.data())
@settings(deadline=None, max_examples=40)
def test_it_is_sorting_with_ties_in_the_order_of_rows(n: int, q: int, block: int, data: st.DataObject) -> None:
    documents, queries = torch.randint(-1, 2, (n, 2)).float(), torch.randint(-1, 2, (q, 2)).float()  # many ties
    k = data.draw(st.integers(1, n))
    scores, found = ExactIndex(documents, block=block).search(queries, k)
    every = queries @ documents.T
    order = every.argsort(dim=1, descending=True, stable=True)[:, :k]
    assert torch.equal(found, order)
    assert torch.equal(scores, every.gather(1, order))


def test_faiss_finds_the_same() -> None:
    documents, queries = vectors(500, 16), vectors(40, 16, seed=1)
    ids = torch.randperm(500, generator=torch.Generator().manual_seed(2)) + 1000
    ours, theirs = ExactIndex(documents, ids).search(queries, 10), FaissIndex(documents, ids).search(queries, 10)
    torch.testing.assert_close(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert len(ExactIndex(documents)) == len(FaissIndex(documents)) == 500


@pytest.mark.parametrize("kind", [ExactIndex, FaissIndex])
def test_what_an_index_refuses(kind: type[ExactIndex] | type[FaissIndex]) -> None:
    documents = vectors(3, 4)
    for bad, ids, message in (
        (vectors(0, 4), None, "vectors must be (n, d) with at least one document, got (0, 4)"),
        (torch.full((3, 4), torch.nan), None, "vectors must be finite; row 0 is not (3 of 3 rows)"),
        (documents, [1, 2], "ids must be 3 numbers"),
        (documents, [7, 2, 7], "ids must differ; 7 is there 2 times (1 ids more than once)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            kind(bad, ids)
    index = kind(documents)
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k must be between 1 and the 3 documents, got {k}"):
            index.search(documents, k)
    with pytest.raises(ValueError, match=re.escape("queries must be (q, 4), got (3, 5)")):
        index.search(vectors(3, 5), 1)
    with pytest.raises(ValueError, match="queries must be finite; row 1 is not"):
        index.search(torch.stack([documents[0], documents[1] / 0]), 1)


def test_a_block_and_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        ExactIndex(vectors(2, 2), block=0)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'mtlearn[index]'")):
        FaissIndex(vectors(2, 2))
