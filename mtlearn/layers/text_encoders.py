r"""Encoders of texts and of pairs of texts: bi-, cross- and poly-encoder on one body.

A *body* turns tokens (n, length) into states (n, length, width). Ours is :class:`TokenEncoder`, a small BERT; a pretrained one of the library
transformers stands in its place by one argument (:func:`mtlearn.layers.pretrained.pretrained`)::

    body = TokenEncoder(len(vocabulary), width=64, layers=2)         # or: body, vocabulary = pretrained("folder or name")
    BiEncoder(body).embed(tokens)                                    # (n, width): each text alone
    CrossEncoder(body)(tokens, types)                                # (n,): both texts in one input
    PolyEncoder(body, codes=16)(context, candidates)                 # (n, candidates): the context read once, met late

Every state, vector and score is independent of padding and of what else is in the batch.
"""

import math
from typing import Literal, Protocol, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.attention import Transformer
from mtlearn.layers.tokens import PADDING, check_range, joined

Pooling = Literal["mean", "first"]


class Body(Protocol):
    """What encoders are built on."""

    width: int
    padding: int

    def states(
        self, tokens: Tensor, *, types: Tensor | None = None, positions: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """States (n, length, width), the embedding first, then one for each layer."""
        ...

    def __call__(self, tokens: Tensor, *, types: Tensor | None = None, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The last of the states."""
        ...


class TokenEncoder(nn.Module):
    """A small BERT (Devlin et al. 2019) without dropout: embeddings of token, position and type, then a transformer.

    Args:
        size: of the vocabulary.
        width: of a state.
        heads: number of attention heads; it divides ``width``.
        layers: number of layers.
        hidden: units of the perceptrons; four times the width when omitted.
        longest: number of positions.
        types: number of token types.
        norm_first: normalise before each part of a layer (GPT-2) in place of after it (BERT).
        norm_embedding: normalise the sum of the embeddings, as BERT does; not where ``norm_first``.
        tied: queries and keys share one projection: equal tokens look at each other from the first step on.
        padding: number of the padding token.
        vectors: (size, width) word vectors to start from.

    Raises:
        ValueError: a size below 1, or vectors of another shape.
    """

    def __init__(
        self,
        size: int,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        hidden: int | None = None,
        *,
        longest: int = 512,
        types: int = 2,
        norm_first: bool = False,
        norm_embedding: bool = True,
        tied: bool = False,
        padding: int = PADDING,
        vectors: Tensor | None = None,
    ) -> None:
        super().__init__()
        if min(size, longest, types) < 1:
            raise ValueError(f"size, longest and types must be at least 1, got {size}, {longest} and {types}")
        if vectors is not None and vectors.shape != (size, width):
            raise ValueError(f"vectors must be ({size}, {width}), got {tuple(vectors.shape)}")
        self.width, self.padding, self.longest = width, padding, longest
        self.token = nn.Embedding(size, width, padding_idx=padding)
        self.position = nn.Embedding(longest, width)
        self.segment = nn.Embedding(types, width)
        for table in (self.token, self.position, self.segment):
            nn.init.normal_(table.weight, std=0.02)
        with torch.no_grad():
            if vectors is not None:
                self.token.weight.copy_(vectors)
            self.token.weight[padding].zero_()
        self.norm = nn.LayerNorm(width) if norm_embedding and not norm_first else nn.Identity()
        self.transformer = Transformer(width, heads, layers, hidden, norm_first=norm_first, tied=tied)

    def embed(self, tokens: Tensor, *, types: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Embeddings (n, length, width) of tokens, positions (0, 1 ... when omitted) and types (0 when omitted).

        Raises:
            ValueError: a token, position or type that the tables do not have; no tokens at all.
        """
        if tokens.dim() != 2 or tokens.shape[1] == 0:
            raise ValueError(f"tokens must be (n, length) with a length of at least 1, got {tuple(tokens.shape)}")
        check_range("tokens", tokens, self.token.num_embeddings)
        if positions is None:
            if tokens.shape[1] > self.longest:
                over = tokens.shape[1] - self.longest
                raise ValueError(f"the input has {tokens.shape[1]} tokens, {over} more than the {self.longest} positions")
            places = self.position.weight[: tokens.shape[1]]
        else:
            check_range("positions", positions, self.longest)
            places = self.position(positions)
        if types is not None:
            check_range("types", types, self.segment.num_embeddings)
        segment = self.segment.weight[0] if types is None else self.segment(types)
        return cast(Tensor, self.norm(self.token(tokens) + places + segment))

    def states(
        self, tokens: Tensor, *, types: Tensor | None = None, positions: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The embedding and the state after each layer, layers + 1 tensors (n, length, width).

        Args:
            tokens: (n, length) int64.
            types: (n, length) int64.
            positions: (n, length) int64.
            mask: bool, (n, length) or (n, length, length): which token may look at which. Tokens that are not padding when omitted.
        """
        seen = tokens != self.padding if mask is None else mask
        return self.transformer.states(self.embed(tokens, types=types, positions=positions), seen)

    def forward(self, tokens: Tensor, *, types: Tensor | None = None, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The last state (n, length, width)."""
        return self.states(tokens, types=types, positions=positions, mask=mask)[-1]


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of (..., length, width) over the tokens where ``mask`` (..., length) is true; 0 where there are none."""
    weight = mask[..., None].to(states.dtype)
    return (states * weight).sum(-2) / weight.sum(-2).clamp(min=1)


def pool(states: Tensor, mask: Tensor, pooling: Pooling = "mean") -> Tensor:
    """One vector (..., width) of the states (..., length, width): their mean over ``mask`` (..., length), or the first.

    Raises:
        ValueError: an unknown pooling.
    """
    _check_pooling(pooling)
    return masked_mean(states, mask) if pooling == "mean" else states[..., 0, :]


def _check_pooling(pooling: str) -> None:
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling must be 'mean' or 'first', got {pooling!r}")


class BiEncoder(nn.Module):
    """Encodes each text alone; the score of a pair is the cosine of two vectors (Sentence-BERT, Reimers and Gurevych 2019).

    Args:
        body: tokens to states.
        pooling: ``mean`` of the states, or the ``first``.
    """

    def __init__(self, body: Body, pooling: Pooling = "mean") -> None:
        super().__init__()
        _check_pooling(pooling)
        self.body, self.pooling = body, pooling

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (n, length) to vectors (n, width) of length 1."""
        return F.normalize(pool(self.body(tokens), tokens != self.body.padding, self.pooling), dim=-1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Cosine (n,) of two texts each, tokens (n, length)."""
        return (self.embed(first) * self.embed(second)).sum(-1)


class CrossEncoder(nn.Module):
    """Reads both texts as one input, so that each word of one meets each word of the other in every layer.

    Args:
        body: tokens and types to states.
        outputs: logits of a pair.
        pooling: ``first`` (the [CLS] token) or ``mean``.
    """

    def __init__(self, body: Body, outputs: int = 1, pooling: Pooling = "first") -> None:
        super().__init__()
        if outputs < 1:
            raise ValueError(f"outputs must be at least 1, got {outputs}")
        _check_pooling(pooling)
        self.body, self.pooling = body, pooling
        self.head = nn.Linear(body.width, outputs)

    def forward(self, tokens: Tensor, types: Tensor | None = None) -> Tensor:
        """Joint tokens and types (n, length) to logits (n,), or (n, outputs) where there are several."""
        logits: Tensor = self.head(pool(self.body(tokens, types=types), tokens != self.body.padding, self.pooling))
        return logits[:, 0] if logits.shape[1] == 1 else logits


class JointEncoder(CrossEncoder):
    """A cross-encoder that is called with two texts, as a bi-encoder is, and joins them itself.

    Args:
        body: tokens and types to states.
        outputs: logits of a pair.
        pooling: ``first`` (the [CLS] token) or ``mean``.
        class_token: texts begin with [CLS], as those of a pretrained tokeniser do; that of the second is left out.
    """

    def __init__(self, body: Body, outputs: int = 1, pooling: Pooling = "first", *, class_token: bool = False) -> None:
        super().__init__(body, outputs, pooling)
        self.class_token = class_token

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        """Tokens (n, length) of two texts each to logits (n,), or (n, outputs) where there are several.

        Raises:
            ValueError: no second text, or not as many as first ones.
        """
        if second is None or len(first) != len(second):
            raise ValueError(f"as many first as second texts are needed, got {len(first)} and {0 if second is None else len(second)}")
        tokens, part = joined([first, second[:, 1:] if self.class_token else second], self.body.padding)
        return super().forward(tokens, part.clamp(min=0))


class PolyEncoder(nn.Module):
    r"""The context as several vectors, of which each candidate takes what it needs (Humeau et al., ICLR 2020).

    Learned codes :math:`c_i` attend to the context's states :math:`h_j`, the candidate's vector :math:`y` attends to the results, and the score
    is a dot product:

    .. math:: y_i = \sum_j \mathrm{softmax}_j(c_i \cdot h_j)\, h_j, \qquad y_{ctxt} = \sum_i \mathrm{softmax}_i(y \cdot y_i)\, y_i, \qquad
        s = y \cdot y_{ctxt}

    The dot products of attention are divided by the root of the width, which the paper does not do; so is the score.

    Args:
        body: tokens to states; shared by context and candidates.
        codes: number of codes.
        pooling: of a candidate.
    """

    def __init__(self, body: Body, codes: int = 16, pooling: Pooling = "mean") -> None:
        super().__init__()
        if codes < 1:
            raise ValueError(f"codes must be at least 1, got {codes}")
        _check_pooling(pooling)
        self.body, self.pooling = body, pooling
        self.codes = nn.Parameter(torch.randn(codes, body.width) * body.width**-0.5)

    def forward(self, context: Tensor, candidates: Tensor) -> Tensor:
        """Scores (n, candidates) of a context (n, length) and its candidates (n, candidates, length)."""
        vectors = pool(self.body(candidates.flatten(0, 1)), (candidates != self.body.padding).flatten(0, 1), self.pooling)
        return late_attention(self.body(context), context != self.body.padding, vectors.view(*candidates.shape[:2], -1), self.codes)


def late_attention(states: Tensor, mask: Tensor, candidates: Tensor, codes: Tensor) -> Tensor:
    """The poly-encoder's scores (n, C) from the context's states (n, L, width), its mask (n, L), vectors (n, C, width), codes (m, width)."""
    summary = F.scaled_dot_product_attention(codes.expand(len(states), -1, -1), states, states, attn_mask=mask[:, None])  # (n, m, width)
    met = F.scaled_dot_product_attention(candidates, summary, summary)  # (n, C, width)
    return (candidates * met).sum(-1) / math.sqrt(states.shape[-1])
