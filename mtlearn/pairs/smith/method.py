r"""SMITH: a Siamese, multi-depth, transformer-based, hierarchical encoder of long documents.

L. Yang, M. Zhang, C. Li, M. Bendersky, M. Najork, "Beyond 512 Tokens: Siamese Multi-depth Transformer-based Hierarchical Encoder for Long-Form
Document Matching", CIKM 2020, https://arxiv.org/abs/2004.12297.

Attention over the L tokens of a long document costs L² and BERT stops at 512. SMITH cuts the document into blocks of whole sentences, encodes each
block alone, and then lets the *blocks* attend to each other. A document of n blocks of s tokens costs n s² + n² attention entries in place of
(n s)², and it is encoded once, whatever it is compared with.

**Blocks** hold as many whole sentences as fit                                                       blocks.fill, blocks.text_blocks
**Level 1**, one transformer for all blocks of both documents, the vector of [CLS]::

    e_i = norm(V tanh(P h_cls))                                                                      Smith.blocks, Head
**Level 2**, a transformer over the blocks, padding blocks masked, the vector of the first block::

    x_i = LayerNorm(e_i + p_i),    d = norm(V' tanh(P' x'_1))                                        Smith.document
**Representation** E, one of four                                                                    Smith.combined
    normal         d
    sum-concat     [Σ_i e_i; d]
    mean-concat    [1/n Σ_i e_i; d]
    attention      [Σ_i α_i e_i; d],    α = softmax_i(c · tanh(W e_i))
**Matching**: ``z = 6 <E_1, E_2>`` into a sigmoid cross-entropy, a match where ``σ(z) > 0.5``         Smith.forward, matching_loss
**Pre-training**: masked words and masked sentence blocks of both documents::

    L = L_word(1) + L_word(2) + L_sent(1) + L_sent(2)  (+ the matching loss in joint mode)           Pretraining
    L_sent = - Σ_r w_r log softmax_c(h_r · e_c)_r / (Σ_r w_r + 1e-5)                                 block_loss

A masked block's e is replaced by one learned vector m; h_r is what level 2 makes of that place, and the candidates c are the true e of all masked
places of the batch. w_r is 0 where the place drawn holds padding.

**What differs from the paper and its code.** Sums, means and attention leave padding blocks out, where the code takes them in. The last ReLU before
the norms is off by default: it makes every cosine at least 0, so that ``σ(6 cos) >= 0.5`` and everything is a match (``relu=True`` has it back). A
learned bias can be added to z for the same reason. Level 2 can read its result from a document token of its own, or average over blocks, in place of
the first block; its input can be scaled. The output bias of the block loss, one number for each place of the batch, is left out, and a temperature is
there. The word loss is the mean over blocks; the code sums over the blocks of a document, so it grows with their number (``sum_blocks=True``).
Where k < 2 blocks are to be masked the code silently takes 2; here it is an error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.attention import Transformer
from mtlearn.layers.pretrained import PretrainedBody
from mtlearn.layers.text_encoders import Body, TokenEncoder, masked_mean
from mtlearn.layers.tokens import UNSEEN
from mtlearn.pairs.smith.blocks import Marks, mask_words

Combine = Literal["normal", "sum-concat", "mean-concat", "attention"]
Output = Literal["first", "token", "mean"]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a published configuration.

    Attributes:
        width, heads, hidden: of both levels.
        block_layers, document_layers: transformer layers of levels 1 and 2.
        block: tokens of a block s.
        blocks: that are prepared at most.
        read: blocks that are read.
    """

    width: int = 256
    heads: int = 4
    hidden: int = 512
    block_layers: int = 4
    document_layers: int = 3
    block: int = 32
    blocks: int = 64
    read: int = 48

    def block_encoder(self, size: int, padding: int = 0) -> TokenEncoder:
        """Level 1's transformer for a vocabulary of ``size``, with random weights."""
        return TokenEncoder(size, self.width, self.heads, self.block_layers, self.hidden, longest=self.block, padding=padding)

    def smith(self, body: Body, **options: object) -> "Smith":
        """The model on a block encoder, ours or a pretrained one of any width."""
        heads = self.heads if body.width % self.heads == 0 else 1
        given: dict[str, object] = {
            "heads": heads, "layers": self.document_layers, "hidden": self.hidden, "places": self.blocks, "read": self.read, **options
        }  # fmt: skip
        return Smith(body, **given)  # type: ignore[arg-type]


SMITH = Sizes()  # the released best configuration: 48 blocks of 32 are 1,536 tokens; at most 64 blocks, 2,048 tokens
SMITH_SHORT = Sizes(width=768, heads=12, hidden=3072, block_layers=12, document_layers=3, read=8)  # its block encoder starts as BERT-base


class Head(nn.Module):
    """``norm(V tanh(P x))``, with a ReLU before the norm where asked: the vector of a block or a document, of length 1.

    Args:
        width: of the input and the result.
        relu: as in the published code.
    """

    def __init__(self, width: int, *, relu: bool = False) -> None:
        super().__init__()
        self.pooler, self.dense, self.relu = nn.Linear(width, width), nn.Linear(width, width), relu

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same shape."""
        out = self.dense(self.pooler(x).tanh())
        return F.normalize(out.relu() if self.relu else out, dim=-1)


class Smith(nn.Module):
    """The two-level encoder and the matching score.

    Args:
        body: level 1, tokens to states: :class:`~mtlearn.layers.text_encoders.TokenEncoder` or a pretrained model.
        heads, layers, hidden: of level 2; its width is the body's.
        places: positions of blocks: a document may have as many.
        read: blocks of a document that are read, the rest is cut off; all when omitted.
        combine: representation of a document.
        attention_size: of the representation "attention".
        output: where level 2's result is read: ``first`` block as in the paper, a document ``token`` that starts at 0, ``mean`` over blocks.
        positions: add learned block positions.
        position_std: standard deviation of the positions at the start.
        gain: block vectors times this enter level 2.
        relu: the published ReLU before both norms.
        scale: factor of the inner product.
        bias: start of a learned number added to z; none, as in the paper, when omitted.

    Raises:
        ValueError: an unknown representation or output, or a number out of range.
    """

    def __init__(
        self,
        body: Body,
        *,
        heads: int = 4,
        layers: int = 3,
        hidden: int | None = None,
        places: int = 64,
        read: int | None = None,
        combine: Combine = "normal",
        attention_size: int = 256,
        output: Output = "first",
        positions: bool = True,
        position_std: float = 0.02,
        gain: float = 1.0,
        relu: bool = False,
        scale: float = 6.0,
        bias: float | None = None,
    ) -> None:
        super().__init__()
        if combine not in get_args(Combine):
            raise ValueError(f"combine must be one of {', '.join(get_args(Combine))}, got {combine!r}")
        if output not in get_args(Output):
            raise ValueError(f"output must be one of {', '.join(get_args(Output))}, got {output!r}")
        if places < 1 or attention_size < 1 or (read is not None and not 1 <= read <= places):
            raise ValueError(f"places and attention_size must be at least 1 and read in 1..places={places}, got read={read}")
        self.body = body
        self.width, self.places, self.read = body.width, places, read
        self.combine, self.output, self.gain, self.scale = combine, output, gain, scale
        self.block_head, self.document_head = Head(body.width, relu=relu), Head(body.width, relu=relu)
        self.position = nn.Parameter(position_std * torch.randn(places, body.width)) if positions else None
        self.token = nn.Parameter(torch.zeros(body.width)) if output == "token" else None
        self.norm = nn.LayerNorm(body.width)
        self.transformer = Transformer(body.width, heads, layers, hidden)
        if combine == "attention":
            self.attend = nn.Linear(body.width, attention_size)
            self.context = nn.Parameter(torch.randn(attention_size) * attention_size**-0.5)
        self.bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    def seen(self, tokens: Tensor) -> Tensor:
        """The blocks that are read: at most ``read`` of (B, n, s).

        Raises:
            ValueError: no blocks, a document of padding alone, or more blocks than positions.
        """
        if tokens.dim() != 3 or tokens.shape[1] == 0 or tokens.shape[2] == 0:
            raise ValueError(f"documents must be (B, n, s) with at least one block, got {tuple(tokens.shape)}")
        tokens = tokens[:, : self.read]
        if tokens.shape[1] > self.places:
            raise ValueError(f"the documents have {tokens.shape[1]} blocks, {tokens.shape[1] - self.places} more than the {self.places} positions")
        if empty := (~self.real(tokens).any(1)).nonzero()[:1, 0].tolist():
            raise ValueError(f"document {empty[0]} has no block with a token; every document needs at least one")
        return tokens

    def real(self, tokens: Tensor) -> Tensor:
        """The block mask (B, n): blocks with any token."""
        return (tokens != self.body.padding).any(-1)

    def states(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Level 1's states of the blocks that are not padding, (R, s, width), and the block mask (B, n); R blocks in the order of the mask."""
        real = self.real(tokens)
        return self.body(tokens[real]), real

    def blocks(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Level 1: e (B, n, width), 0 for padding blocks, and the block mask (B, n), of documents (B, n, s)."""
        states, real = self.states(tokens)
        return self.placed(self.block_head(states[:, 0]), real), real

    def placed(self, vectors: Tensor, real: Tensor) -> Tensor:
        """The vectors (R, width) of the blocks that are not padding at their places: (B, n, width)."""
        return vectors.new_zeros(*real.shape, self.width).masked_scatter(real[..., None], vectors)

    def contextual(self, e: Tensor, real: Tensor) -> Tensor:
        """Level 2's states (B, n, width), or (B, 1 + n, width) behind a document token, of block vectors e (B, n, width)."""
        x = self.gain * e
        if self.position is not None:
            x = x + self.position[: e.shape[1]]
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), 1, -1), x], 1)
            real = F.pad(real, (1, 0), value=True)
        return cast(Tensor, self.transformer(self.norm(x), real))

    def document(self, e: Tensor, real: Tensor) -> Tensor:
        """Level 2: d (B, width) of length 1."""
        states = self.contextual(e, real)
        return cast(Tensor, self.document_head(masked_mean(states, real) if self.output == "mean" else states[:, 0]))

    def combined(self, e: Tensor, real: Tensor, d: Tensor) -> Tensor:
        """The representation (B, width) in the normal mode, (B, 2 width) in the others; padding blocks count for nothing."""
        if self.combine == "normal":
            return d
        if self.combine == "attention":
            weights = (self.attend(e).tanh() @ self.context).masked_fill(~real, -torch.inf).softmax(-1)  # (B, n)
            summary = (weights[..., None] * e).sum(1)
        else:
            summary = (e * real[..., None]).sum(1) if self.combine == "sum-concat" else masked_mean(e, real)
        return torch.cat([summary, d], -1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Documents (B, n, s) to their representations.

        Raises:
            ValueError: see :meth:`seen`.
        """
        e, real = self.blocks(self.seen(tokens))
        return self.combined(e, real, self.document(e, real))

    def score(self, first: Tensor, second: Tensor) -> Tensor:
        """Scores z (B,) of representations (B, features)."""
        z = self.scale * (first * second).sum(-1)
        return z if self.bias is None else z + self.bias

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Scores z (B,) of two documents each, (B, n, s); above 0 is a match."""
        if first.shape == second.shape:  # one call for both
            one, two = self.embed(torch.cat([first, second])).chunk(2)
            return self.score(one, two)
        return self.score(self.embed(first), self.embed(second))


def matching_loss(z: Tensor, labels: Tensor, *, positive_weight: float = 1.0) -> Tensor:
    """Sigmoid cross-entropy of z (B,), a match weighing ``positive_weight``, as a mean over the pairs.

    Raises:
        ValueError: labels other than 0 and 1, another number of them, or a weight that is not positive.
    """
    if labels.shape != z.shape or not ((labels == 0) | (labels == 1)).all():
        raise ValueError(f"labels must be 0 or 1, one a pair: shape {tuple(z.shape)}, got {labels.tolist()[:8]} of shape {tuple(labels.shape)}")
    if not positive_weight > 0:
        raise ValueError(f"positive_weight must be positive, got {positive_weight}")
    labels = labels.to(z.dtype)
    return F.binary_cross_entropy_with_logits(z, labels, weight=1 + (positive_weight - 1) * labels)


# ---------------------------------------------------------------------------------------------------------------------------- pre-training


def draw_blocks(real: Tensor, k: int, *, generator: torch.Generator, only_real: bool = False) -> tuple[Tensor, Tensor]:
    """Places to mask: k different ones of each document.

    Args:
        real: (B, n) block mask.
        k: from 2 to n.
        generator: of the draw, on the CPU.
        only_real: draw blocks before padding; the published code draws over all n places, so that short documents waste draws.

    Returns:
        places (B, k) in ascending order, and their weights (B, k): 1, or 0 where there is padding.

    Raises:
        ValueError: k out of range.
    """
    n = real.shape[1]
    if not 2 <= k <= n:
        raise ValueError(f"k, the blocks masked in a document, must be between 2 and the {n} blocks, got {k}")
    order = torch.rand(real.shape, generator=generator).to(real.device)
    if only_real:
        order = order + (~real).to(order.dtype)
    places = order.argsort(1)[:, :k].sort(1).values
    return places, real.gather(1, places).float()


def block_loss(h: Tensor, e: Tensor, weights: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Masked sentence block loss: which of the masked blocks of the batch stands here?

    Args:
        h: (B, k, width) level 2's predictions at the masked places.
        e: (B, k, width) the true block vectors there: the candidates.
        weights: (B, k), 0 for padding.
        temperature: logits are divided by it.

    Returns:
        A scalar; the gradient flows into ``h`` and ``e``.
    """
    logits = h.flatten(0, 1) @ e.flatten(0, 1).T / temperature  # (B k, B k)
    losses = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
    w = weights.flatten()
    return (w * losses).sum() / (w.sum() + 1e-5)


class Prediction(nn.Module):
    """``LayerNorm(GELU(W x))``: what stands before both output layers of pre-training, and is thrown away after it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same shape."""
        return cast(Tensor, self.norm(F.gelu(self.dense(x))))


def word_table(body: Body) -> Tensor:
    """The weights (size, width) of a body's word embedding, to which the output layer of masked words is tied.

    Raises:
        ValueError: a body that is neither ours nor a pretrained one.
    """
    if isinstance(body, TokenEncoder):
        return body.token.weight
    if isinstance(body, PretrainedBody):
        inputs = cast(Callable[[], nn.Embedding], body.model.get_input_embeddings)
        return inputs().weight
    raise ValueError(f"the word embedding of a {type(body).__name__} is not known")


@dataclass(frozen=True)
class Losses:
    """Parts of a pre-training loss, each a scalar; ``matching`` is 0 without labels."""

    words: Tensor
    blocks: Tensor
    matching: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum."""
        return self.words + self.blocks + self.matching


class Pretraining(nn.Module):
    """Masked words and masked sentence blocks for a :class:`Smith`.

    Args:
        smith: the model that is pre-trained; its parameters are part of this module.
        marks: special tokens of the tokeniser.
        k: blocks masked in a document; 0 leaves the block loss out (the paper's SMITH-WP).
        share, most: of masked words, see :func:`~mtlearn.pairs.smith.blocks.mask_words`.
        temperature: of the block loss.
        only_real: draw no padding blocks.
        sum_blocks: sum the word loss over the blocks of a document, as the published code does, in place of the mean over all blocks.

    Raises:
        ValueError: k is 1 or negative.
    """

    def __init__(
        self,
        smith: Smith,
        marks: Marks,
        *,
        k: int = 2,
        share: float = 0.15,
        most: int = 5,
        temperature: float = 1.0,
        only_real: bool = False,
        sum_blocks: bool = False,
    ) -> None:
        super().__init__()
        if k == 1 or k < 0:
            raise ValueError(f"k, the blocks masked in a document, must be at least 2, or 0 for no block loss, got {k}")
        self.smith, self.marks, self.k = smith, marks, k
        self.share, self.most, self.temperature, self.only_real, self.sum_blocks = share, most, temperature, only_real, sum_blocks
        self.word, self.block = Prediction(smith.width), Prediction(smith.width)
        self.word_bias = nn.Parameter(torch.zeros(word_table(smith.body).shape[0]))
        self.mask = nn.Parameter(0.02 * torch.randn(smith.width))

    def masked(self, e: Tensor, real: Tensor, places: Tensor) -> Tensor:
        """Level 2's predictions h (B, k, width) at the places (B, k), whose block vectors are replaced by m."""
        hidden = torch.zeros_like(real).scatter(1, places, True) & real
        states = self.smith.contextual(torch.where(hidden[..., None], self.mask, e), real)[:, -e.shape[1] :]
        return cast(Tensor, self.block(states.gather(1, places[..., None].expand(-1, -1, e.shape[2]))))

    def forward(self, tokens: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """L_word and L_sent of documents (B, n, s)."""
        word, block, _, _ = self._losses(tokens, generator)
        return word, block

    def _losses(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        masked, wanted = mask_words(self.smith.seen(tokens), self.marks, share=self.share, most=self.most, generator=generator)
        states, real = self.smith.states(masked)
        at = wanted[real]  # (R, s)
        row, column = (at != UNSEEN).nonzero(as_tuple=True)
        logits = F.linear(self.word(states[row, column]), word_table(self.smith.body), self.word_bias)  # only where a word is wanted
        losses = F.cross_entropy(logits, at[row, column], reduction="none")
        count = (at != UNSEEN).sum(1)
        per_block = torch.zeros(len(at), device=losses.device, dtype=losses.dtype).index_add(0, row, losses) / (count + 1e-5)
        word = per_block.sum() / (len(tokens) if self.sum_blocks else len(per_block))
        e = self.smith.placed(self.smith.block_head(states[:, 0]), real)
        if not self.k:
            return word, word.new_zeros(()), e, real
        places, weights = draw_blocks(real, self.k, generator=generator, only_real=self.only_real)
        true = e.gather(1, places[..., None].expand(-1, -1, e.shape[2]))
        return word, block_loss(self.masked(e, real, places), true, weights, temperature=self.temperature), e, real

    def losses(self, first: Tensor, second: Tensor, labels: Tensor | None = None, *, generator: torch.Generator) -> Losses:
        """Both documents' losses added up; with labels (B,) the joint mode, whose matching loss reads the same masked words."""
        word1, block1, e1, real1 = self._losses(first, generator)
        word2, block2, e2, real2 = self._losses(second, generator)
        matching = word1.new_zeros(())
        if labels is not None:
            one, two = (self.smith.combined(e, real, self.smith.document(e, real)) for e, real in ((e1, real1), (e2, real2)))
            matching = matching_loss(self.smith.score(one, two), labels)
        return Losses(word1 + word2, block1 + block2, matching)

    @torch.no_grad()
    def guesses(self, tokens: Tensor, *, k: int | None = None, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Masked blocks without masked words: logits (B k, B k) of each masked place against each candidate, places and weights (B, k)."""
        e, real = self.smith.blocks(self.smith.seen(tokens))
        places, weights = draw_blocks(real, self.k if k is None else k, generator=generator, only_real=self.only_real)
        true = e.gather(1, places[..., None].expand(-1, -1, e.shape[2]))
        return self.masked(e, real, places).flatten(0, 1) @ true.flatten(0, 1).T, places, weights


def attention_entries(blocks: int, size: int) -> tuple[int, int]:
    """Entries of the attention matrices of one document, a layer and head: hierarchical n s² + n², and flat (n s)²."""
    return blocks * size**2 + blocks**2, (blocks * size) ** 2
