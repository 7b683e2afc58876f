"""A decoder-only causal transformer without positions, small enough to read and to look into.

Row i of the attention sees the tokens 1..i, as a set: nothing tells it their order but the causal mask itself, which lets earlier tokens see
less. A *length scale* multiplies the attention logits of row i by a factor tau_i that depends on how many keys the row has::

    tempered attention    softmax(tau_i * q_i . k_j / sqrt(d)),  j <= i

With tau = 1 this is ordinary attention. The factor is put on the queries, so the fused kernel of PyTorch does the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def tempered_attention(query: Tensor, key: Tensor, value: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention with the logits of row i multiplied by ``tau[i]``, written out: what the fused kernel computes, with the weights.

    Args:
        query: (..., length, d).
        key: (..., length, d).
        value: (..., length, d').
        tau: (length,), or one number for all rows.

    Returns:
        Outputs (..., length, d') and weights (..., length, length).
    """
    length, d = query.shape[-2:]
    logits = (_per_row(tau) * query) @ key.transpose(-1, -2) / d**0.5
    future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    weights = logits.masked_fill(future, -torch.inf).softmax(-1)
    return weights @ value, weights


def _per_row(tau: Tensor) -> Tensor:
    return tau[..., None] if tau.dim() else tau


class Attention(nn.Module):
    """Causal multi-head attention with a length scale.

    Args:
        width: of the residual stream.
        heads: number of heads.
        head_width: of each head's queries, keys and values; width / heads when omitted.
        scale: module from a length to tau (length,); none means tau = 1.
    """

    def __init__(self, width: int, heads: int, head_width: int | None = None, scale: nn.Module | None = None) -> None:
        super().__init__()
        if width < 1 or heads < 1 or (head_width is None and width % heads):
            raise ValueError(f"width must be a multiple of heads where head_width is not given, got width={width}, heads={heads}")
        inner = heads * (head_width or width // heads)
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.scale = scale

    def tau(self, length: int) -> Tensor:
        """The factor of each row (length,), rows counted from 1 key to ``length`` keys."""
        if self.scale is None:
            return self.out.weight.new_ones(length)
        factors: Tensor = self.scale(length)
        return factors

    def split(self, stream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads, each (batch, heads, length, head_width)."""
        query, key, value = self.query_key_value(stream).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return query, key, value

    def forward(self, stream: Tensor) -> Tensor:
        """(batch, length, width) to the same shape."""
        query, key, value = self.split(stream)
        if self.scale is not None:
            query = query * _per_row(self.tau(stream.shape[1]))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.join(mixed)

    def join(self, mixed: Tensor) -> Tensor:
        """The heads' outputs (batch, heads, length, head_width) back in the stream (batch, length, width)."""
        stream: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return stream

    def look(self, stream: Tensor, sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` returns, and the attention weights (batch, heads, length, length), all logits multiplied by ``sharpness``."""
        mixed, weights = tempered_attention(*self.split(stream), sharpness * self.tau(stream.shape[1]))
        return self.join(mixed), weights


class Block(nn.Module):
    """stream + attention(norm(stream)), then + feed-forward(norm(stream)); without feed-forward where ``expansion`` is 0."""

    def __init__(self, width: int, attention: Attention, *, expansion: int, normalised: bool) -> None:
        super().__init__()
        self.attention = attention
        self.before_attention = nn.LayerNorm(width) if normalised else nn.Identity()
        self.feed_forward = None
        if expansion:
            norm = nn.LayerNorm(width) if normalised else nn.Identity()
            self.feed_forward = nn.Sequential(norm, nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))

    def forward(self, stream: Tensor) -> Tensor:
        """(batch, length, width) to the same shape."""
        return self.feed(stream + self.attention(self.before_attention(stream)))

    def feed(self, stream: Tensor) -> Tensor:
        """Add what the feed-forward layer makes of the stream."""
        return stream if self.feed_forward is None else stream + self.feed_forward(stream)

    def look(self, stream: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` returns, and the attention weights."""
        change, weights = self.attention.look(self.before_attention(stream), sharpness)
        return self.feed(stream + change), weights


@dataclass(frozen=True)
class Trace:
    """What a forward pass went through.

    Attributes:
        logits: (batch, length, tokens).
        streams: the residual stream after the embedding and after each layer, depth + 1 tensors (batch, length, width).
        attention: the weights of each layer, depth tensors (batch, heads, length, length).
    """

    logits: Tensor
    streams: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]


class CausalTransformer(nn.Module):
    """Next-token logits from a stack of blocks, pre-norm, without positions.

    Args:
        tokens: size of the vocabulary.
        width: of the residual stream.
        depth: number of blocks.
        heads: of each block.
        head_width: see :class:`Attention`.
        expansion: hidden units of the feed-forward layers as a multiple of ``width``; 0 leaves them out.
        normalised: whether there are layer norms.
        scale: makes the length scale of one layer, a module from a length to tau (length,); called once a layer.
    """

    def __init__(
        self,
        tokens: int,
        width: int = 64,
        depth: int = 2,
        heads: int = 2,
        *,
        head_width: int | None = None,
        expansion: int = 4,
        normalised: bool = True,
        scale: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if tokens < 1 or depth < 1:
            raise ValueError(f"tokens and depth must be at least 1, got tokens={tokens}, depth={depth}")
        self.embedding = nn.Embedding(tokens, width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        layers = (Attention(width, heads, head_width, scale() if scale else None) for _ in range(depth))
        self.blocks = nn.ModuleList(Block(width, attention, expansion=expansion, normalised=normalised) for attention in layers)
        self.norm = nn.LayerNorm(width) if normalised else nn.Identity()
        self.unembedding = nn.Linear(width, tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at each position: (batch, length) int64 to (batch, length, tokens)."""
        stream = self.embedding(self.check(tokens))
        for block in self.blocks:
            stream = block(stream)
        logits: Tensor = self.unembedding(self.norm(stream))
        return logits

    @torch.no_grad()
    def trace(self, tokens: Tensor, *, sharpness: float = 1.0) -> Trace:
        """The forward pass with everything in between kept; ``sharpness`` multiplies all attention logits (an inverse temperature)."""
        streams, attention = [self.embedding(self.check(tokens))], []
        for block in self.blocks:
            assert isinstance(block, Block)
            stream, weights = block.look(streams[-1], sharpness)
            streams.append(stream)
            attention.append(weights)
        return Trace(self.unembedding(self.norm(streams[-1])), tuple(streams), tuple(attention))

    @torch.no_grad()
    def write(self, prompt: Tensor, steps: int, *, end: int | None = None, sharpness: float = 1.0) -> Tensor:
        """Greedy continuation of ``prompt`` (batch, length) by up to ``steps`` tokens: (batch, written).

        It stops when every row has written ``end``; what a row writes after its ``end`` is ``end``.
        """
        tokens, done = prompt, torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
        for _ in range(steps):
            logits = self.forward(tokens) if sharpness == 1.0 else self.trace(tokens, sharpness=sharpness).logits
            token = logits[:, -1].argmax(-1)
            if end is not None:
                token = token.masked_fill(done, end)
                done = done | (token == end)
            tokens = torch.cat([tokens, token[:, None]], 1)
            if end is not None and bool(done.all()):
                break
        return tokens[:, prompt.shape[1] :]

    def check(self, tokens: Tensor) -> Tensor:
        """Return ``tokens`` when it is (batch, length) of the vocabulary; else raise ValueError."""
        size = self.embedding.num_embeddings
        if tokens.dim() != 2 or not tokens.numel() or tokens.is_floating_point():
            raise ValueError(f"tokens must be whole numbers of shape (batch, length), got {tuple(tokens.shape)} of {tokens.dtype}")
        if int(tokens.min()) < 0 or int(tokens.max()) >= size:
            raise ValueError(f"tokens must lie in 0..{size - 1}, got {int(tokens.min())} to {int(tokens.max())}")
        return tokens
