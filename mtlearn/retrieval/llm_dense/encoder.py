"""The shipped encoder as a function of texts: a two-layer causal language model, fine-tuned to search docstrings, its vector that of the end token.

vectors = encode(["Compute the QR factorization."])                                   # (1, 64), of length 1
vectors = encode(["Compute the QR factorization."], instruction="find the notes")     # a query that says what kind of document is wanted
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from mtlearn.lab.checkpoints import load
from mtlearn.retrieval.llm_dense.experiment import SHIPPED, Backbones, EncoderSettings, vectors_of
from mtlearn.retrieval.llm_dense.method import DenseRetriever, HashedWords


@cache
def shipped() -> tuple[DenseRetriever, HashedWords]:
    """The retriever and its words."""
    model = load(SHIPPED)
    assert isinstance(model, Backbones)
    return DenseRetriever(model.body("M")).eval(), model.words()


def encode(texts: Sequence[str], *, instruction: str = "", longest: int | None = None) -> Tensor:
    """Vectors (n, 64) of length 1.

    Args:
        texts: n texts; one without a word has the vector of the end token, and a warning.
        instruction: stands before each text; for queries alone.
        longest: tokens of a text that are read; those of training when omitted.
    """
    retriever, words = shipped()
    settings: EncoderSettings = SHIPPED.settings
    most = settings.options.recipe.document if longest is None else longest
    if not texts:
        return torch.zeros(0, dict(settings.pretraining.widths)["M"])
    return vectors_of(retriever, words(list(texts), most, truncate=True, instructions=[instruction] * len(texts)))
