"""Self-attention over sets of tokens, with padding handled exactly."""

from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """Multi-head self-attention in which every token sees every other (Vaswani et al. 2017); no positions, no dropout.

    Args:
        width: of a token.
        heads: number of heads; it divides ``width``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width < 1 or width % heads:
            raise ValueError(f"width must be a multiple of heads, got width={width}, heads={heads}")
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(..., length, width) to the same shape; ``mask`` (..., length) bool says which tokens may be looked at, at least one a sequence."""
        query, key, value = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)  # (..., heads, length, d)
        seen = None if mask is None else mask[..., None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        out: Tensor = self.out(mixed.transpose(-2, -3).flatten(-2))
        return out
