"""The shipped elastic encoder as a function of texts, to be cut at any layer and any size.

encode(["Compute the QR factorization."])                       # (1, 64), of length 1: all four layers
encode(["Compute the QR factorization."], layer=1, size=16)     # (1, 16): the three layers above are not run
"""

from collections.abc import Sequence
from functools import cache

from torch import Tensor

from mtlearn.lab.checkpoints import load
from mtlearn.layers.embedding import TextEncoder
from mtlearn.layers.tokens import Vocabulary
from mtlearn.retrieval.matryoshka_2d.experiment import SHIPPED, ShippedEncoder
from mtlearn.retrieval.matryoshka_2d.method import ElasticEncoder
from mtlearn.retrieval.matryoshka_2d.worlds import BODY_WORDS


@cache
def shipped() -> tuple[ElasticEncoder, Vocabulary]:
    """The encoder and its words."""
    model = load(SHIPPED)
    assert isinstance(model, ShippedEncoder)
    return model.encoder(), model.vocabulary()


@cache
def _truncated(layer: int) -> ElasticEncoder:
    return shipped()[0].truncated(layer)


def encode(texts: Sequence[str], *, layer: int = 4, size: int = 64) -> Tensor:
    """Vectors (n, size) of length 1; the first 24 words of a text are read.

    Raises:
        ValueError: a layer outside 1 to 4, a size outside 1 to 64, a text without words.
        CheckpointError: the shipped model is missing or damaged.
    """
    encoder = _truncated(layer)
    return TextEncoder(shipped()[1], lambda tokens: encoder(tokens, size), BODY_WORDS)(texts)
