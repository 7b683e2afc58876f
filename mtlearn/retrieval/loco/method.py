r"""LoCo and M2-BERT (Saad-Falcon and others, ICML 2024): measuring and building retrieval encoders that read whole long documents.

Jon Saad-Falcon, Daniel Y. Fu, Simran Arora, Neel Guha, Christopher Ré: Benchmarking and Building Long-Context Retrieval Models with LoCo and
M2-BERT. https://arxiv.org/abs/2402.07440. Layers and losses follow the released code, https://github.com/HazyResearch/m2 (folder ``bert``).

**Idea.** Encoders of 512 tokens cut long documents off, or cut them into chunks. LoCo is a benchmark of tasks where both lose; M2-BERT is an encoder
without attention whose cost grows like :math:`L \log L`, so that it reads all. It is pretrained on short *and* long texts, longer versions start
from shorter ones, and it is fine-tuned with a loss that asks nothing of a batch, because one long text may be all that fits in memory.

**The sequence mixer** of an input :math:`u` (B, L, d), :math:`W_{in}` (d, 3d)::

    x1, x2, v = ShortConv3(u W_in)             causal, a filter of three taps for each channel
    y = LongConv1(v * x1) * x2                 gates before and after
    y = y + LongConv2(u)                       the residual long convolution
    out = y W_out

**The long convolution** looks both ways, channel by channel, with a weight :math:`b` for the input itself:

.. math:: y_i = \sum_{j \le i} k_{i-j} v_j + \sum_{j > i} k^{rev}_{j-i-1} v_j + b\, v_i ,
    \qquad y = \mathrm{irfft}\big(\widehat{[k, \mathrm{flip}(k^{rev})]} \odot \hat v\big)_{:L}

with Fourier transforms of size :math:`2L`, since a shorter one would wrap around: what stands at place :math:`2L - 1 - j` of the one long filter has
the lag :math:`-1 - j`. The released code has another form as well, which its mixer does not use: the conjugate of the reverse filter's transform,
where that filter begins at lag 0, so that lag 0 counts in both (``first_lag=0``).

**The implicit filter** (Hyena) is a function of time: :math:`k_c(t) = \mathrm{MLP}_c(z(t))\, e^{-|\delta_c| t}`,
:math:`z(t) = [t, \Re e^{-if\omega t}, \Im e^{-if\omega t}]`, activation :math:`\sin(wx)`, :math:`w` trained. Its parameters do not grow with L.

**The dimension mixer** is a gated MLP whose matrices are block-diagonal. Two such with a permutation between are a Monarch matrix, which mixes all
dimensions for :math:`O(d^{3/2})`.

**Losses.** OPL :math:`= (\cos(E(q), E(p)) - y)^2` with :math:`y = 1` for a right pair and 0 for a wrong one; MNRL, the softmax over the documents of
a batch; PL, the vectors of a short-context teacher as targets.

**What differs.** The frequencies w of the sines are each layer's and each filter's own; the released code shares one set of them among all layers of
both filters. Padding is set to zero where tokens are mixed, so that a text's vector does not depend on its batch. Squared errors stay in float32,
where the released code takes bfloat16 (three digits). A layer adds its sequence mixer to its input and normalises, as BERT does; in the released code
only the MLP is added to what it reads (``skip=False``), which at our size learns more slowly. When a model is made longer the filters' time may
stretch with it, as in the code, or stay: :func:`extend`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.contrastive import info_nce
from mtlearn.layers.text_encoders import masked_mean
from mtlearn.layers.tokens import PADDING, UNSEEN, replace_words

FAST, SLOW, TARGET = 0.3, 1.5, 0.01  # the fastest channel is down to 0.01 at t = 0.3, the slowest at 1.5
Pooling = Literal["first", "pooler", "mean"]
Reader = Literal["whole", "truncated", "chunk-mean", "chunk-max"]
READERS: tuple[Reader, ...] = get_args(Reader)


# the sequence mixer


def time_features(length: int, longest: int, dim: int) -> Tensor:
    """z(t) (length, dim): time, 0 to 1 over ``longest`` steps, and cosines and sines of (dim - 1) / 2 frequencies.

    Raises:
        ValueError: ``dim`` is even or below 3.
    """
    if dim < 3 or dim % 2 == 0:
        raise ValueError(f"emb_dim must be odd and at least 3 (time, and a cosine and a sine for each frequency), got {dim}")
    bands = (dim - 1) // 2
    steps = torch.arange(length, dtype=torch.float64)
    angle = 2 * math.pi * steps[:, None] / longest * torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64)
    return torch.cat([steps[:, None] / max(longest - 1, 1), angle.cos(), -angle.sin()], 1)


class Sine(nn.Module):
    """sin(w x), a trained w for each unit."""

    def __init__(self, width: int, frequency: float = 10.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((width,), frequency))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape (..., width)."""
        out: Tensor = torch.sin(self.w * x)
        return out


class ImplicitFilter(nn.Module):
    """A filter for each channel as a function of time (Hyena, Poli et al. 2023), with an exponential decay.

    Args:
        channels: C.
        longest: steps that stand for t from 0 to 1.
        emb_dim: of z(t), odd and at least 3.
        width: of the MLP.
        inner: hidden layers after the first.
    """

    decay: Tensor

    def __init__(self, channels: int, longest: int, *, emb_dim: int = 5, width: int = 128, inner: int = 2) -> None:
        super().__init__()
        time_features(1, longest, emb_dim)  # checks
        self.longest, self.emb_dim = longest, emb_dim
        layers: list[nn.Module] = [nn.Linear(emb_dim, width), Sine(width)]
        for _ in range(inner):
            layers += [nn.Linear(width, width), Sine(width)]
        self.mlp = nn.Sequential(*layers, nn.Linear(width, channels, bias=False))
        self.register_buffer("decay", torch.linspace(math.log(TARGET) / SLOW, math.log(TARGET) / FAST, channels), persistent=False)

    def forward(self, length: int) -> Tensor:
        """The filter (C, length)."""
        z = time_features(length, self.longest, self.emb_dim).to(self.decay)
        k: Tensor = self.mlp(z) * torch.exp(-z[:, :1] * self.decay.abs())
        out: Tensor = k.transpose(0, 1)
        return out


def long_convolution(v: Tensor, k: Tensor, k_reverse: Tensor, b: Tensor, *, first_lag: int = 1) -> Tensor:
    """Both filters by the fast Fourier transform.

    Args:
        v: (B, L, C).
        k: (C, L), looks to the left from lag 0 on.
        k_reverse: (C, L), looks to the right.
        b: (C,), weight of the input itself.
        first_lag: where the reverse filter begins: 1, the next token, or 0, the token itself, which is then in both filters.

    Raises:
        ValueError: another first lag.
    """
    if first_lag not in (0, 1):
        raise ValueError(f"first_lag must be 1 (the released mixer) or 0 (lag 0 in both filters), got {first_lag}")
    length = v.shape[1]
    size = 2 * length  # zero padding: with L the end would wrap around to the start
    both = torch.cat([k, k_reverse.flip(-1)], -1)  # place 2L - 1 - j has the lag -1 - j
    spectrum = torch.fft.rfft(both) if first_lag else torch.fft.rfft(k, n=size) + torch.fft.rfft(k_reverse, n=size).conj()
    y: Tensor = torch.fft.irfft(torch.fft.rfft(v, n=size, dim=1) * spectrum.T, n=size, dim=1)[:, :length]
    return y + b * v


class LongConv(nn.Module):
    """A bidirectional long convolution with implicit filters.

    Args:
        channels: C.
        longest: tokens at most.
        emb_dim, width: of the filters.
        first_lag: of the filter to the right, see :func:`long_convolution`.
    """

    def __init__(self, channels: int, longest: int, *, emb_dim: int = 5, width: int = 128, first_lag: int = 1) -> None:
        super().__init__()
        self.first_lag = first_lag
        self.left = ImplicitFilter(channels, longest, emb_dim=emb_dim, width=width)
        self.right = ImplicitFilter(channels, longest, emb_dim=emb_dim, width=width)
        self.b = nn.Parameter(torch.randn(channels))

    def forward(self, v: Tensor) -> Tensor:
        """(B, L, C)."""
        return long_convolution(v, self.left(v.shape[1]), self.right(v.shape[1]), self.b, first_lag=self.first_lag)


class ShortConv(nn.Module):
    """A causal filter of three taps for each channel: a depth-wise convolution, padded by two on the left.

    Args:
        channels: C.
        taps: of the filter.
    """

    def __init__(self, channels: int, taps: int = 3) -> None:
        super().__init__()
        bound = 1 / math.sqrt(taps)
        self.weight = nn.Parameter(torch.empty(taps, channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C)."""
        taps, length = len(self.weight), x.shape[1]
        padded = F.pad(x, (0, 0, taps - 1, 0))
        shifted = torch.stack([padded[:, i : i + length] for i in range(taps)], -2)  # (B, L, taps, C)
        return (shifted * self.weight).sum(-2) + self.bias


class M2Mixer(nn.Module):
    """Mixes the tokens of a sequence without attention.

    Args:
        width: d.
        longest: tokens at most.
        residual: whether a second long convolution of the raw input is added.
        emb_dim, filter_width: of the implicit filters.
        first_lag: of the filters to the right, see :func:`long_convolution`.
    """

    def __init__(self, width: int, longest: int, *, residual: bool = True, emb_dim: int = 5, filter_width: int = 128, first_lag: int = 1) -> None:
        super().__init__()
        self.longest = longest
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.short = ShortConv(3 * width)
        self.long = LongConv(width, longest, emb_dim=emb_dim, width=filter_width, first_lag=first_lag)
        self.residual = LongConv(width, longest, emb_dim=emb_dim, width=filter_width, first_lag=first_lag) if residual else None

    def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, d).

        Args:
            u: (B, L, d).
            mask: bool (B, L), False for padding, which then reaches no other token.

        Raises:
            ValueError: more tokens than ``longest``.
        """
        check_length(u.shape[1], self.longest)
        x1, x2, v = self.short(self.into(u)).chunk(3, -1)
        v = v * x1
        if mask is not None:
            v, u = v * mask[..., None], u * mask[..., None]
        y = self.long(v) * x2
        if self.residual is not None:
            y = y + self.residual(u)
        out: Tensor = self.out(y)
        return out


def check_length(length: int, longest: int) -> None:
    """ValueError where a sequence is longer than the model: nothing is cut off in silence."""
    if length > longest:
        raise ValueError(f"the sequence has {length} tokens and the model reads at most {longest}; cut it with readings(), or extend() the model")


# the dimension mixer


class BlockDiagonal(nn.Module):
    """A linear map whose matrix has ``blocks`` blocks on its diagonal, without bias.

    Args:
        inputs, outputs: widths; both are divided evenly among the blocks.
        blocks: number of blocks.

    Raises:
        ValueError: a width that the number of blocks does not divide.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        for name, size in (("inputs", inputs), ("outputs", outputs)):
            if blocks < 1 or size % blocks:
                raise ValueError(f"{name} must be divisible by the number of blocks, got {name}={size} and blocks={blocks}")
        bound = 1 / math.sqrt(inputs // blocks)
        self.weight = nn.Parameter(torch.empty(blocks, outputs // blocks, inputs // blocks).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        blocks, _, size = self.weight.shape
        return torch.einsum("...bi,boi->...bo", x.reshape(*x.shape[:-1], blocks, size), self.weight).flatten(-2)

    def dense(self) -> Tensor:
        """The matrix (outputs, inputs)."""
        matrix: Tensor = torch.block_diag(*self.weight)  # type: ignore[no-untyped-call]
        return matrix


class Monarch(nn.Module):
    """Block-diagonal, a fixed permutation, block-diagonal (Dao et al. 2022): every output sees every input, for 2 d^2 / blocks products.

    The permutation reads the (blocks, d / blocks) values of the first map column by column.

    Args:
        inputs, outputs: widths.
        blocks: about the root of the width makes it cheapest.

    Raises:
        ValueError: a width that the blocks do not divide, or so many blocks that an output could not see every input.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.first, self.second = BlockDiagonal(inputs, inputs, blocks), BlockDiagonal(inputs, outputs, blocks)
        self.blocks = blocks
        if blocks * blocks > inputs:
            raise ValueError(
                f"blocks must be at most the root of the inputs, {math.isqrt(inputs)}, so that every output sees every input, got {blocks}"
            )

    def permuted(self, x: Tensor) -> Tensor:
        """(..., inputs) in the order of the permutation."""
        return x.reshape(*x.shape[:-1], self.blocks, -1).transpose(-1, -2).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        out: Tensor = self.second(self.permuted(self.first(x)))
        return out

    def dense(self) -> Tensor:
        """The matrix (outputs, inputs)."""
        columns = self.permuted(self.first.dense().T).T
        return self.second.dense() @ columns


class GatedMLP(nn.Module):
    """W_3 (GELU(W_1 x) * W_2 x), with block-diagonal matrices (as in the released model) or Monarch matrices.

    Args:
        width: d.
        hidden: units.
        blocks: 1 for dense matrices.
        monarch: take Monarch matrices.
    """

    def __init__(self, width: int, hidden: int, blocks: int = 4, *, monarch: bool = False) -> None:
        super().__init__()
        kind = Monarch if monarch else BlockDiagonal
        self.gate, self.value, self.down = kind(width, hidden, blocks), kind(width, hidden, blocks), kind(hidden, width, blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d)."""
        out: Tensor = self.down(F.gelu(self.gate(x)) * self.value(x))
        return out


# the encoder


@dataclass(frozen=True)
class M2Config:
    """Sizes of an encoder; the defaults are those of M2-BERT-80M.

    Attributes:
        vocabulary: numbers of tokens, 0 being padding.
        longest: S, tokens at most.
        width, layers, hidden: d, number of layers, units of the gated MLP.
        blocks: of its matrices.
        monarch: Monarch matrices there.
        residual: the second long convolution.
        skip: whether a layer adds its sequence mixer to its input; the released code does not.
        emb_dim, filter_width: of the implicit filters.
        first_lag: of the filters to the right, 1 or 0, see :func:`long_convolution`.
        std: of the table of words at the start; BERT's.
        pooling: "pooler" (first token, dense and tanh: the paper's code), "first" (that token's state) or "mean".
    """

    vocabulary: int = 30528
    longest: int = 2048
    width: int = 768
    layers: int = 12
    hidden: int = 3072
    blocks: int = 4
    monarch: bool = False
    residual: bool = True
    skip: bool = True
    emb_dim: int = 5
    filter_width: int = 128
    first_lag: int = 1
    std: float = 0.02
    pooling: Pooling = "pooler"


class M2Layer(nn.Module):
    """Sequence mixer, dimension mixer, each added to its input and normalised."""

    def __init__(self, config: M2Config) -> None:
        super().__init__()
        self.mixer = M2Mixer(
            config.width,
            config.longest,
            residual=config.residual,
            emb_dim=config.emb_dim,
            filter_width=config.filter_width,
            first_lag=config.first_lag,
        )
        self.mlp = GatedMLP(config.width, config.hidden, config.blocks, monarch=config.monarch)
        self.norm1 = nn.LayerNorm(config.width) if config.skip else None
        self.norm2 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, d)."""
        mixed = self.mixer(x, mask)
        x = mixed if self.norm1 is None else self.norm1(x + mixed)
        out: Tensor = self.norm2(x + self.mlp(x))
        return out


class M2Encoder(nn.Module):
    """M2-BERT: learned positions, layers without attention, one vector for each text."""

    def __init__(self, config: M2Config) -> None:
        super().__init__()
        if config.pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {config.pooling!r}")
        self.longest, self.pooling = config.longest, config.pooling
        self.word, self.position = nn.Embedding(config.vocabulary, config.width), nn.Embedding(config.longest, config.width)
        nn.init.normal_(self.word.weight, std=config.std)
        nn.init.normal_(self.position.weight, std=0.02)
        self.norm = nn.LayerNorm(config.width)
        self.layers = nn.ModuleList(M2Layer(config) for _ in range(config.layers))
        self.dense = nn.Linear(config.width, config.width) if config.pooling == "pooler" else None

    def states(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) int64, padded with 0 on the right, to states (B, L, d). ValueError: more than ``longest`` tokens."""
        check_length(tokens.shape[1], self.longest)
        mask = tokens != PADDING
        x: Tensor = self.norm(self.word(tokens) + self.position.weight[: tokens.shape[1]])
        for layer in self.layers:
            x = layer(x, mask)
        return x

    def forward(self, tokens: Tensor) -> Tensor:
        """Vectors (B, d) of length 1."""
        states = self.states(tokens)
        if self.pooling == "mean":
            return unit(masked_mean(states, tokens != PADDING))
        return unit(states[:, 0] if self.dense is None else torch.tanh(self.dense(states[:, 0])))


def unit(vectors: Tensor) -> Tensor:
    """(..., d) at length 1.

    Raises:
        ValueError: a vector of length 0, which has no direction.
    """
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    if bool((norm == 0).any()):
        raise ValueError(f"an embedding has length 0, so no cosine: {int((norm == 0).sum())} of {norm.numel()} vectors")
    out: Tensor = vectors / norm
    return out


def extend(encoder: M2Encoder, longest: int, *, stretch: bool = True) -> M2Encoder:
    """A longer encoder that starts from a shorter one (section 3.3): the table of positions is repeated, everything else is kept.

    Args:
        encoder: the shorter one; it is left as it is.
        longest: a multiple of its length.
        stretch: the filters' time runs from 0 to 1 over the new length, as in the released code, so that each filter reaches further in tokens.
            Otherwise time keeps its step, runs beyond 1, and short inputs give exactly what they gave.

    Raises:
        ValueError: ``longest`` is no multiple of the encoder's length.
    """
    if longest < encoder.longest or longest % encoder.longest:
        raise ValueError(f"longest must be a multiple of the encoder's {encoder.longest}, whose table of positions is repeated, got {longest}")
    longer = deepcopy(encoder)
    table = encoder.position.weight.detach().repeat(longest // encoder.longest, 1)
    longer.longest, longer.position = longest, nn.Embedding(longest, table.shape[1], _weight=table)
    for part in longer.modules():
        if isinstance(part, M2Mixer) or (isinstance(part, ImplicitFilter) and stretch):
            part.longest = longest
    return longer


# pretraining


class MaskedWords(nn.Module):
    """The encoder with a head that names hidden words; the head's last matrix is the table of words.

    Args:
        encoder: to be pretrained.
    """

    def __init__(self, encoder: M2Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.word.embedding_dim
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(encoder.word.num_embeddings))

    def forward(self, shown: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (m, vocabulary) at the m places that have a label, and these labels (m,).

        Args:
            shown: tokens (B, L), some hidden.
            labels: (B, L), :data:`~mtlearn.layers.tokens.UNSEEN` where nothing is asked.
        """
        asked = labels != UNSEEN
        states = self.head(self.encoder.states(shown)[asked])
        logits: Tensor = states @ self.encoder.word.weight.T + self.bias
        return logits, labels[asked]


def hide(tokens: Tensor, rate: float, *, mask: int, words: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens (B, L) with some words hidden, and the labels: the paper's rate is 0.30 in training, 0.15 in validation.

    Args:
        tokens: with padding 0, which is never hidden.
        rate: share of the words.
        mask: number of the token that hides.
        words: first and one past the last number of the words that may stand for another.
        generator: of the draws.

    Raises:
        ValueError: a rate outside 0 to 1.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate must be above 0 and at most 1, got {rate}")
    draw, fate = (torch.rand(tokens.shape, generator=generator) for _ in range(2))
    other = torch.randint(words[0], words[1], tokens.shape, generator=generator)
    device = tokens.device
    chosen = (draw.to(device) < rate) & (tokens != PADDING)
    if not bool(chosen.any()):
        chosen[0, 0] = True  # a loss needs something to ask
    return replace_words(tokens, chosen, fate=fate.to(device), other=other.to(device), mask=mask)


def concatenated(rows: Sequence[Sequence[int]], length: int, *, separator: int) -> Tensor:
    """Texts one after the other, a separator behind each, cut into rows (n, length); what is left at the end is dropped.

    Raises:
        ValueError: too little text for one row.
    """
    stream = [number for row in rows for number in (*row, separator)]
    count = len(stream) // length
    if count == 0:
        raise ValueError(f"the texts have {len(stream)} tokens with separators, too few for one row of {length}")
    return torch.tensor(stream[: count * length], dtype=torch.int64).view(count, length)


def mixture_batch(short: Tensor, long: Tensor, *, share: float = 0.3, tokens: int, generator: torch.Generator) -> Tensor:
    """Rows of one kind, short natural examples with probability ``share`` and full ones otherwise, as many as fit into ``tokens``.

    Args:
        short: (n, s), padded.
        long: (m, l), full.
        share: of short batches; 1 and 0 are the ablations "short only" and "long only".
        tokens: of a batch.
        generator: of the draws.

    Raises:
        ValueError: a share outside 0 to 1, or fewer tokens than a row has.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    rows = short if float(torch.rand((), generator=generator)) < share else long
    if tokens < rows.shape[1]:
        raise ValueError(f"tokens must be at least those of a row, {rows.shape[1]}, got {tokens}")
    chosen = torch.randint(len(rows), (tokens // rows.shape[1],), generator=generator)
    return rows[chosen.to(rows.device)]


# losses


def opl(queries: Tensor, documents: Tensor, labels: Tensor) -> Tensor:
    """Orthogonal projection loss: mean of (cos - y)^2, a scalar.

    Args:
        queries: (B, d).
        documents: (B, d).
        labels: (B,), 1 for a right pair, 0 for a wrong one.

    Raises:
        ValueError: shapes that do not fit, other labels, or a vector of length 0.
    """
    if queries.dim() != 2 or queries.shape != documents.shape or labels.shape != queries.shape[:1]:
        raise ValueError(
            f"queries and documents must both be (B, d) and labels (B,), got {tuple(queries.shape)}, {tuple(documents.shape)}, {tuple(labels.shape)}"
        )
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError(f"labels must be 0 or 1, got {sorted(set(labels.tolist()) - {0, 1})[:3]}")
    cosine = (unit(queries) * unit(documents)).sum(-1)
    return (cosine - labels).square().mean()


def mnrl(scores: Tensor, *, scale: float = 20.0) -> Tensor:
    """Multiple negatives ranking: cross-entropy of each query's own document among those of its block, a scalar.

    Args:
        scores: cosines (blocks, b, b), the diagonal being right. With b = 1 the loss and its gradient are 0, whatever the scores are.
        scale: inverse of the temperature.
    """
    target = torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape[:-1])
    return F.cross_entropy(scale * scores.flatten(0, 1), target.flatten())


def block_mnrl(queries: Tensor, documents: Tensor, block: int, *, scale: float = 20.0) -> Tensor:
    """MNRL when only ``block`` pairs fit in memory: the mean over blocks, which is what accumulation computes.

    Args:
        queries: (B, d).
        documents: (B, d), row i belongs to query i.
        block: divides B.
        scale: inverse of the temperature.

    Raises:
        ValueError: a block that does not divide the batch.
    """
    if block < 1 or len(queries) % block:
        raise ValueError(f"block must divide the batch of {len(queries)}, got {block}")
    if block == len(queries) > 1:
        return info_nce(queries, documents, scale=scale)
    q, d = (unit(vectors).view(-1, block, vectors.shape[-1]) for vectors in (queries, documents))
    return mnrl(q @ d.transpose(1, 2), scale=scale)


def prototype_loss(queries: Tensor, documents: Tensor, teacher_queries: Tensor, teacher_documents: Tensor) -> Tensor:
    """PL: one minus the cosine with what a short-context teacher gives for the same text, summed over both sides; a scalar.

    Args:
        queries: (B, d) of the student.
        documents: (B, d) of the student.
        teacher_queries: (B, d) of the teacher.
        teacher_documents: (B, d) of the teacher.
    """
    q, d = ((unit(a) * unit(b)).sum(-1) for a, b in ((queries, teacher_queries), (documents, teacher_documents)))
    return (2 - q - d).mean()


def opl_rows(positives: Tensor, corpus: int, negatives: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Each query with its document and with random others: rows (query, document, label), which need no batch.

    Args:
        positives: (n,) number of each query's document.
        corpus: number of documents, from which the others are drawn.
        negatives: of each query (the paper: 32). There may be repetitions.
        generator: of the draws.

    Returns:
        queries, documents, labels: (n (1 + negatives),) each.

    Raises:
        ValueError: fewer than two documents, a positive outside the corpus, or no negatives.
    """
    if corpus < 2:
        raise ValueError(f"a corpus needs at least 2 documents, so that there is a wrong one, got {corpus}")
    if negatives < 1:
        raise ValueError(f"negatives must be at least 1, got {negatives}")
    if positives.numel() == 0 or int(positives.min()) < 0 or int(positives.max()) >= corpus:
        raise ValueError(f"every query needs a relevant document between 0 and {corpus - 1}")
    others = torch.randint(1, corpus, (len(positives), negatives), generator=generator)
    documents = torch.cat([positives[:, None], (positives[:, None] + others) % corpus], 1)  # never the positive itself
    labels = torch.zeros(documents.shape)
    labels[:, 0] = 1
    return torch.arange(len(positives)).repeat_interleave(1 + negatives), documents.flatten(), labels.flatten()


def accumulate(loss_of: Callable[[slice], Tensor], rows: int, block: int = 1) -> float:
    """Add the gradient of the mean of ``loss_of`` over all rows, with the graph of ``block`` rows at a time; returns that mean.

    Args:
        loss_of: rows to their mean loss.
        rows: how many there are.
        block: rows that fit in memory.

    Raises:
        ValueError: no row, or a block below 1.
    """
    if rows < 1 or block < 1:
        raise ValueError(f"rows and block must be at least 1, got {rows} and {block}")
    total = 0.0
    for start in range(0, rows, block):
        end = min(start + block, rows)
        part = loss_of(slice(start, end)) * ((end - start) / rows)
        if part.requires_grad:
            part.backward()  # type: ignore[no-untyped-call]
        total += part.item()
    return total


# reading long documents, and the benchmark


def readings(tokens: Tensor, reader: Reader, window: int) -> Tensor:
    """What a reader of ``window`` tokens reads of documents (n, L): (n, parts, tokens of a part).

    Args:
        tokens: padded with 0.
        reader: "whole" reads all; "truncated" the first window; "chunk-mean" and "chunk-max" every window, the last one filled up.
        window: tokens.

    Raises:
        ValueError: an unknown reader, or a window below 1.
    """
    if reader not in READERS:
        raise ValueError(f"reader must be one of {', '.join(READERS)}, got {reader!r}")
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if reader == "whole":
        return tokens[:, None]
    if reader == "truncated":
        return tokens[:, None, :window]
    return F.pad(tokens, (0, -tokens.shape[1] % window), value=PADDING).view(len(tokens), -1, window)


def read(encode: Callable[[Tensor], Tensor], tokens: Tensor, reader: Reader, window: int) -> Tensor:
    """Vectors (n, parts, d) of length 1: one for each document, but for "chunk-max" one for each chunk. Empty chunks count as copies of the first.

    Args:
        encode: tokens (m, length) to vectors of length 1.
        tokens: documents (n, L).
        reader: as for :func:`readings`.
        window: tokens.
    """
    parts = readings(tokens, reader, window)
    there = (parts != PADDING).any(-1)
    parts = torch.where(there[..., None], parts, parts[:, :1])
    vectors = encode(parts.flatten(0, 1)).view(*parts.shape[:2], -1)
    return unit(masked_mean(vectors, there))[:, None] if reader == "chunk-mean" else vectors


def similarity(queries: Tensor, documents: Tensor) -> Tensor:
    """Scores (q, n) of vectors (q, d) with what was read of documents (n, parts, d): the best part counts."""
    return torch.einsum("qd,npd->qnp", queries, documents).amax(-1)


def ndcg(scores: Tensor, relevance: Tensor, k: int = 10) -> Tensor:
    """nDCG@k (q,) of each query, the benchmark's measure; equal scores fall in the order of the documents.

    Args:
        scores: (q, n), n at least 2.
        relevance: (q, n), above 0 for what is relevant.
        k: places that count.

    Raises:
        ValueError: shapes that differ, fewer than two documents, or a query without a relevant document.
    """
    if scores.dim() != 2 or scores.shape != relevance.shape:
        raise ValueError(f"scores and relevance must both be (queries, documents), got {tuple(scores.shape)} and {tuple(relevance.shape)}")
    if scores.shape[1] < 2:
        raise ValueError(f"a corpus needs at least 2 documents, got {scores.shape[1]}")
    if bool((relevance <= 0).all(1).any()):
        raise ValueError(f"query {int((relevance <= 0).all(1).nonzero()[0])} has no relevant document")
    k = min(k, scores.shape[1])
    discount = 1 / torch.arange(2, k + 2, device=scores.device, dtype=torch.float64).log2()
    gains = relevance.double()
    found = gains.gather(1, scores.argsort(dim=1, descending=True, stable=True)[:, :k])
    best = gains.sort(dim=1, descending=True).values[:, :k]
    return (found @ discount) / (best @ discount)


def qualifies(measured: Mapping[Reader, float], margin: float) -> bool:
    """LoCo's design rule: a task is about long context only if every truncated and every chunked reader fails.

    Args:
        measured: nDCG of the whole reader and of shorter ones.
        margin: by how much each of these must stay behind.

    Raises:
        ValueError: the whole reader, the truncated one or a chunked one is missing.
    """
    chunked = [reader for reader in measured if reader.startswith("chunk")]
    if "whole" not in measured or "truncated" not in measured or not chunked:
        raise ValueError(f"the rule needs the readers whole, truncated and a chunked one, got {', '.join(measured)}")
    return all(measured["whole"] - value >= margin for reader, value in measured.items() if reader != "whole")


def loco_score(tasks: Mapping[str, float]) -> float:
    """The benchmark's figure: the plain mean of nDCG@10 over tasks.

    Raises:
        ValueError: no task.
    """
    if not tasks:
        raise ValueError("there is no task to average over")
    return sum(tasks.values()) / len(tasks)
