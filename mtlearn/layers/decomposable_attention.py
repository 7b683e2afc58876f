r"""Decomposable attention (Parikh, Täckström, Das and Uszkoreit, EMNLP 2016): attend, compare, aggregate.

The smallest cross-encoder: every word looks at the words of the *other* text, is compared with what it found, and the comparisons are averaged.
A few thousand weights, trained in seconds, and yet no text is a vector before it has met the other. With :math:`x_i` the words of one text and
:math:`z_j` those of the other,

.. math::
    y_i = \sum_j \mathrm{softmax}_j\Big(\frac{(W x_i) \cdot (W z_j)}{\sqrt d}\Big) z_j, \qquad
    u = \frac1n \sum_i g([x_i; y_i; x_i \odot y_i]), \qquad s = h\big(\tfrac12 (u + v)\big)

with :math:`v` the same from the other side, :math:`g` and :math:`h` perceptrons.

**What differs from the paper.** Queries and keys share one matrix, which starts as a multiple of the identity: from the first step on a word
finds the words whose vectors are like its own, as a pretrained model's words do. The product :math:`x \odot y` is among the features, the means
are averages in place of sums, and the order of the texts does not matter unless they carry segment vectors.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.text_encoders import masked_mean
from mtlearn.layers.tokens import PADDING


def word_embedding(vectors: Tensor) -> nn.Embedding:
    """A trained table that starts from a copy of the vectors (size, d); row 0 is padding and stays 0."""
    if vectors.dim() != 2:
        raise ValueError(f"vectors must be (size, d), got {tuple(vectors.shape)}")
    table = nn.Embedding(vectors.shape[0], vectors.shape[1], padding_idx=PADDING)
    with torch.no_grad():
        table.weight.copy_(vectors)
        table.weight[PADDING].zero_()
    return table


class DecomposableAttention(nn.Module):
    """Scores pairs of texts word against word.

    Args:
        vectors: (size, d) word vectors to start from; row 0 is padding. They are copied and trained.
        hidden: units of the comparing perceptron.
        features: what it gives.
        start: the query-key matrix starts as this times the identity.
        attended: compare [x, y, x * y]; without, [x, x * y].
        segments: add a learned vector for "first" and "second" text, which makes the score depend on the order.
        outputs: logits of a pair.

    Raises:
        ValueError: vectors that are no matrix, or a size below 1.
    """

    def __init__(
        self,
        vectors: Tensor,
        *,
        hidden: int = 64,
        features: int = 32,
        start: float = 1.5,
        attended: bool = True,
        segments: bool = False,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        if min(hidden, features, outputs) < 1:
            raise ValueError(f"hidden, features and outputs must be at least 1, got {hidden}, {features} and {outputs}")
        width = vectors.shape[-1]
        self.attended, self.features = attended, features
        self.word = word_embedding(vectors)
        self.segment = nn.Parameter(0.02 * torch.randn(2, width)) if segments else None
        self.query_key = nn.Parameter(start * torch.eye(width))
        self.compare = nn.Sequential(nn.Linear((3 if attended else 2) * width, hidden), nn.GELU(), nn.Linear(hidden, features), nn.GELU())
        self.head = nn.Sequential(nn.Linear(features, features), nn.GELU(), nn.Linear(features, outputs))

    def pooled(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The two texts after they have met: u and v (n, features) of tokens (n, length).

        Raises:
            ValueError: not as many first as second texts, or a text of padding alone.
        """
        if len(first) != len(second):
            raise ValueError(f"as many first as second texts are needed, got {len(first)} and {len(second)}")
        here, there = first != PADDING, second != PADDING
        if not (here.any(1).all() and there.any(1).all()):
            raise ValueError("every text needs at least one token that is not padding")
        x, z = self.word(first), self.word(second)
        if self.segment is not None:
            x, z = x + self.segment[0], z + self.segment[1]
        similarity = (x @ self.query_key) @ (z @ self.query_key).mT / math.sqrt(x.shape[-1])  # (n, length of first, length of second)
        from_second = similarity.masked_fill(~there[:, None], -torch.inf).softmax(2) @ z
        from_first = similarity.masked_fill(~here[..., None], -torch.inf).softmax(1).mT @ x
        return masked_mean(self._compared(x, from_second), here), masked_mean(self._compared(z, from_first), there)

    def _compared(self, x: Tensor, y: Tensor) -> Tensor:
        return cast(Tensor, self.compare(torch.cat([x, y, x * y] if self.attended else [x, x * y], -1)))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Tokens (n, length) of two texts each to logits (n,), or (n, outputs) where there are several."""
        u, v = self.pooled(first, second)
        logits: Tensor = self.head((u + v) / 2)
        return logits[:, 0] if logits.shape[1] == 1 else logits


class MeanOfWords(nn.Module):
    """Mean of word vectors: the bi-encoder that goes with :class:`DecomposableAttention`; the result has length 1.

    Args:
        vectors: (size, d) word vectors to start from; row 0 is padding. They are copied and trained.
    """

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.word = word_embedding(vectors)

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (n, length) to (n, d)."""
        return F.normalize(masked_mean(self.word(tokens), tokens != PADDING), dim=-1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Cosine (n,) of two texts each."""
        return (self.embed(first) * self.embed(second)).sum(-1)
