"""Models to be ranked: eighteen classical embedders that are fitted on the benchmark's own texts, and the suite's own encoders.

models = classical(texts)                     # {"words, tf-idf": encoder, ...}: word or letter statistics, whole, by SVD, by projection
suite()["xmc"](["Sort an array."])            # the encoders that the suite ships, by the paper they are of
load_encoder("my_module:encode")              # anybody's
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.random_projection import GaussianRandomProjection
from torch import Tensor

from mtlearn.layers.embedding import Encode

TERMS = 2048  # most frequent terms
KINDS: Mapping[str, Callable[[], Any]] = {
    "words, tf-idf": lambda: TfidfVectorizer(sublinear_tf=True, max_features=TERMS),
    "letters, tf-idf": lambda: TfidfVectorizer(sublinear_tf=True, max_features=TERMS, analyzer="char_wb", ngram_range=(3, 3)),
    "words, counts": lambda: CountVectorizer(max_features=TERMS),
}
SVD, PROJECTED = (8, 32, 128), (16, 128)
SUITE = {  # every encoder of the suite that reads English
    "matryoshka_2d": "mtlearn.retrieval.matryoshka_2d.encoder:encode",
    "moe_embedding": "mtlearn.retrieval.moe_embedding.encoder:encode",
    "xmc": "mtlearn.retrieval.xmc.encoder:encode",
    "promptagator": "mtlearn.retrieval.promptagator.encoder:encode",
    "llm_dense": "mtlearn.retrieval.llm_dense.encoder:encode",
}


class Terms:
    """A fitted vectorizer that keeps the tables it has made: six models share each of them.

    Args:
        vectorizer: of scikit-learn, fitted.
    """

    def __init__(self, vectorizer: Any) -> None:
        self._vectorizer = vectorizer
        self._kept: dict[tuple[str, ...], csr_matrix] = {}

    def __call__(self, texts: Sequence[str]) -> csr_matrix:
        """(n, terms)."""
        key = tuple(texts)
        if key not in self._kept:
            self._kept[key] = self._vectorizer.transform(key)
        return self._kept[key]


class Classical:
    """A matrix of term statistics, and what is made of it.

    Args:
        terms: texts to a sparse matrix (n, terms).
        directions: (terms, d) to project on; the terms themselves are the vector when omitted.
    """

    def __init__(self, terms: Terms, directions: np.ndarray | None = None) -> None:
        self._terms, self._directions = terms, directions

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(n, d) float32; 0 for a text without a known term."""
        table = self._terms(texts)
        found = table.toarray() if self._directions is None else table @ self._directions
        return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))


def classical(texts: Sequence[str], *, seed: int = 0, kinds: Sequence[str] = tuple(KINDS)) -> dict[str, Encode]:
    """The eighteen embedders, fitted on ``texts``: three statistics, each whole, cut to 8, 32 and 128 dimensions by SVD, projected to 16 and 128.

    Args:
        texts: to be fitted on.
        seed: of the decompositions and projections.
        kinds: some of :data:`KINDS`.
    """
    found: dict[str, Encode] = {}
    for name in kinds:
        vectorizer = KINDS[name]()
        table = vectorizer.fit_transform(list(texts))
        terms = Terms(vectorizer)
        found[name] = Classical(terms)
        components = TruncatedSVD(min(max(SVD), table.shape[1] - 1), random_state=seed).fit(table).components_.T
        for size in SVD:  # the leading directions of the largest are those of the smaller ones
            found[f"{name}, SVD {size}"] = Classical(terms, components[:, :size])
        for size in PROJECTED:
            found[f"{name}, projected {size}"] = Classical(terms, GaussianRandomProjection(size, random_state=seed).fit(table).components_.T)
    return found


@cache
def suite() -> dict[str, Encode]:
    """The suite's own encoders, those whose model is there."""
    return {name: load_encoder(where) for name, where in SUITE.items()}


def load_encoder(where: str) -> Encode:
    """A function by ``module:name``; a module of the current folder will do.

    Raises:
        ValueError: not of that form, no such module or name, or nothing that can be called.
    """
    module, colon, name = where.partition(":")
    if not colon or not module or not name:
        raise ValueError(f"an encoder is named as module:function, such as my_module:encode, got {where!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise ValueError(f"there is no module {module!r}, neither installed nor in {here}") from None
        raise ValueError(f"{module} cannot be imported: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{module} has no {name!r}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{where} is {type(found).__name__}, not a function from a list of texts to (n, d) numbers")
    encode: Encode = found
    return encode
