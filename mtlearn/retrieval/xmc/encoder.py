"""The shipped dual encoder as a function of texts: ``encode(["Compute the inverse of a matrix."])``."""

from collections.abc import Sequence
from functools import cache

from torch import Tensor

from mtlearn.lab.checkpoints import load
from mtlearn.layers.embedding import TextEncoder
from mtlearn.retrieval.xmc.experiment import SHOWN, ShownEncoder
from mtlearn.retrieval.xmc.worlds import QUERY_WORDS


@cache
def _encoder() -> TextEncoder:
    found = load(SHOWN)
    assert isinstance(found, ShownEncoder)
    return TextEncoder(found.vocabulary(), found.model.embed, QUERY_WORDS)


def encode(texts: Sequence[str]) -> Tensor:
    """Vectors (n, 64) of length 1; the first 48 words of a text are read.

    Raises:
        ValueError: a text without words.
        CheckpointError: the shipped model is missing or damaged.
    """
    return _encoder()(texts)
