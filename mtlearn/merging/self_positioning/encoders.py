"""Text encoders: tokens (n, length) to vectors (n, width). A small one of our own, and a user's pretrained one of the library transformers."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers import pretrained as library
from mtlearn.layers.text_encoders import masked_mean
from mtlearn.layers.tokens import PADDING, SPECIAL, Vocabulary

Tokenise = Callable[[Sequence[str], int], Tensor]


def vocabulary(texts: Iterable[str], size: int) -> Tokenise:
    """The ``size`` - 1 most frequent words, numbered from 1; unknown words are left out and long texts are cut."""
    known = Vocabulary.of(texts, size, special=SPECIAL[:1])
    return lambda texts, most: known(texts, most, truncate=True)


class WordEncoder(nn.Module):
    """Mean of word vectors, then a perceptron with a residual connection; the result has length 1.

    Args:
        size: of the vocabulary, padding included.
        width: of word vectors and of the result.
        hidden: of the perceptron.
    """

    def __init__(self, size: int = 5000, width: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(size, width, mode="mean", padding_idx=PADDING)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        with torch.no_grad():
            self.embedding.weight[PADDING].zero_()

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, length) to (n, width)."""
        mean = self.embedding(tokens)
        return F.normalize(mean + self.feed(mean), dim=-1)


class PretrainedEncoder(nn.Module):
    """A model of the library transformers: mean of its last hidden states over the tokens that are there; the result has length 1.

    Args:
        body: of the library.
    """

    def __init__(self, body: library.PretrainedBody) -> None:
        super().__init__()
        self.body = body

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, length) to (n, width)."""
        return F.normalize(masked_mean(self.body(tokens), tokens != self.body.padding), dim=-1)


def pretrained(name: str) -> tuple[PretrainedEncoder, Tokenise]:
    """An encoder of the library transformers and its tokeniser, which cuts long texts: from a folder, or by its public name.

    Raises:
        ImportError: the library is not installed; the extra ``mtlearn[hf]`` has it.
        ValueError: the tokeniser has no padding token.
    """
    body, tokeniser = library.pretrained(name)
    return PretrainedEncoder(body), lambda texts, most: tokeniser(texts, most, truncate=True)
