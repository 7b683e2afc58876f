"""The shipped encoder of functions with an expert a library, as a function of texts.

encode(["Compute the QR factorization."])                          # (1, 64), of length 1, by the expert of numpy
encode(["Compute the QR factorization."], library="scipy")         # by another one
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlearn.lab.checkpoints import load
from mtlearn.layers.tokens import Vocabulary
from mtlearn.retrieval.moe_embedding.experiment import FUNCTIONS, Embedder, ShippedMixture, slotted
from mtlearn.retrieval.moe_embedding.worlds import LIBRARIES


@cache
def shipped() -> tuple[Embedder, Vocabulary]:
    """The model and its words."""
    found = load(FUNCTIONS)
    assert isinstance(found, ShippedMixture)
    return found.model, found.vocabulary()


def encode(texts: Sequence[str], *, library: str = LIBRARIES[0]) -> Tensor:
    """Vectors (n, 64) of length 1; the first 48 words of a text are read.

    Args:
        texts: n texts.
        library: the domain, which must be known: both texts that are compared need the same.

    Raises:
        ValueError: an unknown library, or a text without words.
        CheckpointError: the shipped model is missing or damaged.
    """
    if library not in LIBRARIES:
        raise ValueError(f"library must be one of {', '.join(LIBRARIES)}, got {library!r}")
    model, vocabulary = shipped()
    tokens = slotted(vocabulary, texts)
    with torch.no_grad():
        return F.normalize(model(tokens, torch.full((len(tokens),), LIBRARIES.index(library)))[0], dim=-1)
