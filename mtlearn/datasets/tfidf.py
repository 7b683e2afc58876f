"""Texts compared by the words that they share, rare ones counting more: the cheap retriever that every new one must be measured beside.

    index = TfIdf(texts)
    index.scores(["qr factorization"])        # (1, n) cosines with all texts

The vectors are scikit-learn's.
"""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor


class TfIdf:
    """TF-IDF vectors of length 1, a term's frequency counting as 1 + log tf.

    Args:
        texts: n texts, whose document frequencies are used.
        stop_words: leave English stop words out.

    Raises:
        ValueError: no text has a word.
    """

    def __init__(self, texts: Sequence[str], *, stop_words: bool = False) -> None:
        self._vectorizer = TfidfVectorizer(stop_words="english" if stop_words else None, sublinear_tf=True)
        try:
            self._table = self._vectorizer.fit_transform(texts)
        except ValueError as error:  # what it says of an empty vocabulary is true but does not say of what
            raise ValueError(f"no word is left in {len(texts)} texts: {error}") from None

    def scores(self, queries: Sequence[str]) -> Tensor:
        """Cosine (q, n) float64 of each query with each text; 0 where they share no word."""
        return torch.from_numpy(np.asarray((self._vectorizer.transform(queries) @ self._table.T).todense()))

    def pairs(self, first: Sequence[str], second: Sequence[str]) -> Tensor:
        """Cosine (m,) float64 of two texts each."""
        one, two = self._vectorizer.transform(first), self._vectorizer.transform(second)
        return torch.from_numpy(np.asarray(one.multiply(two).sum(1)).ravel())
