"""BM25: the ranking by words that every retriever must be measured beside (Robertson and Zaragoza 2009).

    index = BM25(texts)
    index.scores(["qr factorization"])        # (1, n), higher is better

The scores are those of the library bm25s, in Lucene's form; words are those of :func:`mtlearn.layers.tokens.words`.
"""

from collections.abc import Sequence

import bm25s
import numpy as np
import torch
from torch import Tensor

from mtlearn.layers.tokens import words


class BM25:
    """An index of texts.

    Args:
        texts: n texts.
        k1: how soon a word's repetitions stop to count.
        b: how much a long text is marked down, 0 to 1.

    Raises:
        ValueError: no text has a word, or a setting is out of range.
    """

    def __init__(self, texts: Sequence[str], *, k1: float = 1.5, b: float = 0.75) -> None:
        if not (k1 >= 0 and 0 <= b <= 1):
            raise ValueError(f"k1 must be 0 or more and b between 0 and 1, got {k1} and {b}")
        found = [words(text) for text in texts]
        if not any(found):
            raise ValueError(f"no word is left in {len(texts)} texts")
        self._size = len(found)
        self._number = {word: i for i, word in enumerate(sorted({word for row in found for word in row}))}
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene")
        self._index.index(([[self._number[word] for word in row] for row in found], self._number), show_progress=False)

    def scores(self, queries: Sequence[str]) -> Tensor:
        """(q, n) float64; 0 where a query shares no word with a text."""
        rows = np.zeros((len(queries), self._size))
        for i, query in enumerate(queries):
            known = [self._number[word] for word in words(query) if word in self._number]
            if known:
                rows[i] = self._index.get_scores_from_ids(known)
        return torch.from_numpy(rows)
