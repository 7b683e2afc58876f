"""The shipped dual encoder as a function of texts: ``encode(["Compute the inverse of a matrix."])``."""

from collections.abc import Sequence
from functools import cache

from torch import Tensor

from mtlearn.lab.checkpoints import load
from mtlearn.layers.embedding import TextEncoder
from mtlearn.layers.tokens import Vocabulary
from mtlearn.retrieval.xmc.experiment import SHOWN, Scorer
from mtlearn.retrieval.xmc.method import DualEncoder
from mtlearn.retrieval.xmc.worlds import QUERY_WORDS, shown_vocabulary


@cache
def vocabulary() -> Vocabulary:
    """The words that the encoder knows."""
    return shown_vocabulary(SHOWN.settings.seed)


@cache
def _encoder() -> TextEncoder:
    scorer = load(SHOWN)
    assert isinstance(scorer, Scorer) and isinstance(scorer.model, DualEncoder)
    return TextEncoder(vocabulary(), scorer.model.embed, QUERY_WORDS)


def encode(texts: Sequence[str]) -> Tensor:
    """Vectors (n, 64) of length 1; the first 48 words of a text are read.

    Raises:
        ValueError: a text without words.
        CheckpointError: the shipped model is missing or damaged.
    """
    return _encoder()(texts)
