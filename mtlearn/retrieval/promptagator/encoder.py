"""The shipped encoder as a function of texts: trained on queries that a writer with eight examples wrote for docstrings.

vectors = encode(["Compute the QR factorization."])     # (1, 128), of length 1
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from mtlearn.lab.checkpoints import load
from mtlearn.layers.tokens import Vocabulary
from mtlearn.retrieval.promptagator.experiment import SHIPPED, ShippedEncoder
from mtlearn.retrieval.promptagator.method import BagEncoder, Bags


@cache
def shipped() -> tuple[BagEncoder, Vocabulary]:
    """The encoder and its words."""
    model = load(SHIPPED)
    assert isinstance(model, ShippedEncoder)
    return model.encoder(), model.vocabulary()


def encode(texts: Sequence[str]) -> Tensor:
    """Vectors (n, 128) of length 1; a text without a known word has the vector of the unknown word."""
    encoder, vocabulary = shipped()
    with torch.no_grad():
        found: Tensor = encoder(Bags.of(list(texts), vocabulary))
    return found
