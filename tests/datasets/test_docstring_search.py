"""Summaries and documents of docstrings: one right answer each, and no hint in the document."""

import pytest

from mtlearn.datasets.docstring_search import docstring_pairs
from mtlearn.layers.tokens import words


def test_each_query_has_one_document_and_each_document_one_query() -> None:
    pairs = docstring_pairs()
    assert len(pairs) > 3000 and {pair.library for pair in pairs} == {"numpy", "scipy", "networkx", "sklearn", "torch"}
    assert len({tuple(words(pair.query)) for pair in pairs}) == len(pairs)
    assert len({tuple(words(pair.document)[:40]) for pair in pairs}) == len(pairs)
    assert all(4 <= len(words(pair.query)) <= 30 and len(words(pair.document)) >= 30 for pair in pairs)
    assert [pair.page.name for pair in docstring_pairs(("numpy",))] == [pair.page.name for pair in pairs if pair.library == "numpy"]


def test_a_document_holds_neither_the_summary_nor_what_is_like_it() -> None:
    pair = next(pair for pair in docstring_pairs(("numpy",)) if pair.page.name == "numpy.linalg.qr")
    assert pair.query == pair.page.summary == "Compute the qr factorization of a matrix."
    assert pair.query not in pair.document and pair.page.section("Notes") in pair.document
    assert pair.page.section("See Also") and pair.page.section("See Also") not in pair.document
    assert pair.name == "qr"


def test_bounds() -> None:
    assert all(len(words(pair.document)) >= 100 for pair in docstring_pairs(("numpy",), document=100))
    for bad in ({"query": (0, 3)}, {"query": (5, 4)}, {"document": 0}):
        with pytest.raises(ValueError, match="bounds must be at least 1"):
            docstring_pairs(("numpy",), **bad)
    with pytest.raises(ValueError, match="libraries must be some of"):
        docstring_pairs(("pandas",))
