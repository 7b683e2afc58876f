"""Self-attention over sets of tokens, with padding handled exactly, and a stack of transformer layers."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """Multi-head self-attention in which every token sees every other that the mask allows (Vaswani et al. 2017); no positions, no dropout.

    Args:
        width: of a token.
        heads: number of heads; it divides ``width``.
        tied: queries and keys share one projection, so that equal tokens look at each other from the first step on.
    """

    def __init__(self, width: int, heads: int, *, tied: bool = False) -> None:
        super().__init__()
        if heads < 1 or width < 1 or width % heads:
            raise ValueError(f"width must be a multiple of heads, got width={width}, heads={heads}")
        self.heads, self.tied = heads, tied
        self.query_key_value = nn.Linear(width, (2 if tied else 3) * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(..., length, width) to the same shape.

        Args:
            x: the tokens.
            mask: bool; (..., length) says which tokens may be looked at, (..., length, length) which token (row) may look at which (column).
                Every row needs at least one.
        """
        parts = self.query_key_value(x).unflatten(-1, (-1, self.heads, x.shape[-1] // self.heads)).movedim(-3, 0).transpose(-2, -3)
        query, key, value = parts[0], parts[-2], parts[-1]  # (..., heads, length, d)
        if mask is None:
            seen = None
        elif mask.dim() == x.dim():
            seen = mask[..., None, :, :]
        else:
            seen = mask[..., None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        out: Tensor = self.out(mixed.transpose(-2, -3).flatten(-2))
        return out


class TransformerLayer(nn.Module):
    """Self-attention and a perceptron, each with a residual connection and layer normalisation; no dropout.

    Args:
        width: of a token.
        heads: number of heads; it divides ``width``.
        hidden: units of the perceptron; four times the width when omitted.
        norm_first: normalise before each part, as GPT-2 does, not after the sum, as BERT does.
        tied: queries and keys share one projection.
    """

    def __init__(self, width: int, heads: int, hidden: int | None = None, *, norm_first: bool = False, tied: bool = False) -> None:
        super().__init__()
        hidden = 4 * width if hidden is None else hidden
        self.norm_first = norm_first
        self.attention = SelfAttention(width, heads, tied=tied)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(..., length, width) to the same shape; the mask is that of :class:`SelfAttention`."""
        first, second = self.norms
        if self.norm_first:
            x = x + self.attention(first(x), mask)
            return cast(Tensor, x + self.feed(second(x)))
        x = first(x + self.attention(x, mask))
        return cast(Tensor, second(x + self.feed(x)))


class Transformer(nn.Module):
    """A stack of :class:`TransformerLayer` over vectors, with padding handled exactly.

    Args:
        width: of a token.
        heads: number of heads; it divides ``width``.
        layers: number of layers.
        hidden: units of the perceptrons; four times the width when omitted.
        norm_first: normalise before each part; then a last normalisation follows the stack.
        tied: queries and keys share one projection.

    Raises:
        ValueError: fewer than one layer, or ``heads`` does not divide ``width``.
    """

    def __init__(
        self, width: int, heads: int = 4, layers: int = 2, hidden: int | None = None, *, norm_first: bool = False, tied: bool = False
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}")
        self.width = width
        self.layers = nn.ModuleList([TransformerLayer(width, heads, hidden, norm_first=norm_first, tied=tied) for _ in range(layers)])
        self.norm = nn.LayerNorm(width) if norm_first else nn.Identity()

    def states(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """The input, then what each layer gives: layers + 1 tensors (..., length, width); the last one normalised where ``norm_first``.

        Args:
            x: (..., length, width).
            mask: bool, (..., length) or (..., length, length) as in :class:`SelfAttention`. A token whose row allows nothing (padding) looks
                at itself, so that no NaN arises.
        """
        if mask is not None and mask.dim() == x.dim():
            nothing = ~mask.any(-1, keepdim=True)
            mask = mask | (nothing & torch.eye(x.shape[-2], dtype=torch.bool, device=x.device))
        elif mask is not None:
            mask = mask | ~mask.any(-1, keepdim=True)  # a sequence of padding alone
        found = [x]
        for layer in self.layers:
            found.append(layer(found[-1], mask))
        found[-1] = self.norm(found[-1])
        return tuple(found)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The last of :meth:`states`."""
        return self.states(x, mask)[-1]
