r"""Uni-Encoder.

C. Song, H. He, H. Yu, P. Fang, L. Cui, Z. Lan, "Uni-Encoder: A Fast and Accurate Response Selection Paradigm for Generation-Based Dialogue Systems",
Findings of ACL 2023, https://arxiv.org/abs/2106.01263.

One long context, a small pool of candidate replies: which is best? A cross-encoder reads context and candidate together, and so reads the context
once for every candidate. The Uni-Encoder writes the context once and **all** candidates behind it into one sequence of ``T = n + Σ m_c`` tokens.

**The same positions for all.** A context of n tokens has the positions 0 .. n - 1; *every* candidate begins at n, so that each stands where the reply
stands (:func:`lay_out`)::

    position of token j of candidate c = n + j          type = 0 in the context, 1 in a candidate

**The attention mask.** ``g`` is -1 in the context and c in candidate c. Token a may look at token b where (:func:`attention_mask`)::

    arrow         M_ab = 1[g_a = g_b]  or  1[g_b = -1]  or  1[g_a = -1]       the paper's: a candidate sees the context and itself
    strict        M_ab = 1[g_a = g_b]  or  1[g_b = -1]                        the context sees no candidate
    diagonal      M_ab = 1[g_a = g_b]                                         every text alone
    square        M_ab = 1

**The score.** Mean of the last states over a candidate's own tokens, then one linear layer; softmax cross-entropy over the pool::

    s_c = w · mean_{a: g_a = c} h_a + b                 L = -log softmax(s)_label + L_MLM          UniEncoder, training_loss

**In training** the negatives are the right replies of the other contexts of the batch (:func:`in_batch`), and 15 % of the tokens of the whole
sequence are hidden and guessed (:func:`hide`); the sequence with the hidden tokens feeds both losses.

**The other paradigms are masks of the same encoder**::

    diagonal, then the dot product of the means          = a bi-encoder
    light arrow: diagonal in all layers, then codes      = a poly-encoder     y_i = attend(code_i; context), s = h_c · attend(h_c; y)
    square with one candidate a sequence                 = a cross-encoder    each_alone

**How far it is a cross-encoder.** With one candidate, or with one layer, the arrow gives a cross-encoder's scores exactly. With more of both it does
not: the context looks at all candidates, so from the second layer on a candidate can hear of another through the context (:func:`reach`), and a
score depends on the pool. The strict mask closes that path; then a context's states never depend on a candidate, which a cross-encoder's do.

What differs from the public code: the diagonal mask there leaves the step out in which context and candidate meet, which is here; a batch of one
keeps its axis; pools of several sizes may stand in one batch; padding is a token that looks at itself, not a row without a key; dropout is up to the
body.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.text_encoders import Body, late_attention, masked_mean
from mtlearn.layers.tokens import UNSEEN, joined, replace_words

Attention = Literal["arrow", "strict", "diagonal", "light arrow", "square"]
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
Positions = Literal["repeated", "running", "alone"]
CONTEXT, NOTHING = -1, -2  # segments that are no candidate


# ------------------------------------------------------------------------------------------------------------------------ one sequence


@dataclass(frozen=True)
class Sequences:
    """Contexts with all their candidates, one sequence each, padding only at the end.

    Attributes:
        tokens, positions, types: (B, T) int64.
        segments: (B, T) int64, -1 in the context, c in candidate c, -2 in padding.
        candidates: C, the largest number of candidates.
    """

    tokens: Tensor
    positions: Tensor
    types: Tensor
    segments: Tensor
    candidates: int


def lay_out(context: Tensor, candidates: Tensor, *, padding: int = 0, positions: Positions = "repeated", present: Tensor | None = None) -> Sequences:
    """The context and behind it all its candidates.

    Args:
        context: (B, n) int64, padded.
        candidates: (B, C, m) int64, padded, each with its own first and last token ([CLS] and [SEP]).
        padding: number of the padding token.
        positions: ``repeated`` (all candidates from n on), ``running`` (0 to T - 1, as an ordinary sequence has them) or ``alone`` (every text
            from 0 and of type 0, as a bi-encoder reads it).
        present: (B, C) bool, false where a smaller pool is filled up.

    Raises:
        ValueError: shapes that do not fit, an empty pool, a context or candidate without a token, or unknown positions.
    """
    if positions not in get_args(Positions):
        raise ValueError(f"positions must be one of {', '.join(get_args(Positions))}, got {positions!r}")
    if context.dim() != 2 or candidates.dim() != 3 or len(context) != len(candidates):
        raise ValueError(f"context must be (B, n) and candidates (B, C, m), got {tuple(context.shape)} and {tuple(candidates.shape)}")
    pool = candidates.shape[1]
    if not pool:
        raise ValueError("the pool is empty; at least one candidate is needed")
    there = candidates != padding
    if present is not None:
        if present.shape != candidates.shape[:2] or present.dtype != torch.bool:
            raise ValueError(f"present must be bool {tuple(candidates.shape[:2])}, got {present.dtype} {tuple(present.shape)}")
        if not present.any(1).all():
            raise ValueError(f"pool {int((~present.any(1)).nonzero()[0])} is empty; at least one candidate is needed")
        candidates = candidates.where(present[..., None], padding)
        there = candidates != padding
    lengths = there.sum(2)  # (B, C)
    if bad := ((lengths == 0) & (True if present is None else present)).nonzero().tolist():
        raise ValueError(f"candidate {bad[0][1]} of row {bad[0][0]} has no token; where a pool is smaller, say so by present")
    own = (context != padding).sum(1, keepdim=True)  # n of each row, (B, 1)
    if not own.all():
        raise ValueError(f"context {int((own == 0).nonzero()[0, 0])} has no token")
    tokens, part = joined((context, candidates.flatten(1)), padding)
    at = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    ends = lengths.cumsum(1)
    inside = at - own  # number of the token among those of all candidates
    number = torch.searchsorted(ends, inside.contiguous(), right=True).clamp(max=pool - 1)
    segments = torch.where(part == 1, number, torch.where(part == 0, CONTEXT, NOTHING))
    since = inside - (ends - lengths).gather(1, number)  # j, the place in its own candidate
    if positions == "running":
        places = at
    else:
        places = torch.where(part == 1, since + (own if positions == "repeated" else 0), at)
    places = places.where(part >= 0, 0)
    return Sequences(tokens, places, (part == 1).long() * (positions != "alone"), segments, pool)


def attention_mask(segments: Tensor, attention: Attention = "arrow") -> Tensor:
    """Which token (row) may look at which (column): segments (..., T) to bool (..., T, T).

    ``light arrow`` is the diagonal mask: its one step from candidates to the context comes after the layers. Rows and columns of padding are false.

    Raises:
        ValueError: an unknown name.
    """
    if attention not in ATTENTIONS:
        raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}, got {attention!r}")
    row, column = segments[..., :, None], segments[..., None, :]
    real = (row != NOTHING) & (column != NOTHING)
    if attention == "square":
        return real
    seen = row == column
    if attention in ("arrow", "strict"):
        seen = seen | (column == CONTEXT)
    if attention == "arrow":
        seen = seen | (row == CONTEXT)
    return seen & real


def reach(mask: Tensor, layers: int) -> Tensor:
    """Which token's state can depend on which token's input after ``layers`` layers: the Boolean power of a mask (..., T, T).

    Each layer adds a residual, so a token always keeps what it has.

    Raises:
        ValueError: fewer than one layer.
    """
    if layers < 1:
        raise ValueError(f"layers must be at least 1, got {layers}")
    step = (mask | torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)).float()
    found = step
    for _ in range(layers - 1):
        found = (step @ found).clamp(max=1)
    return found > 0


# ------------------------------------------------------------------------------------------------------------------------------ the model


class UniEncoder(nn.Module):
    r"""Scores all candidates of a context in one pass, and by other masks as other paradigms do.

    Args:
        body: tokens, types, positions and a mask (B, T, T) to states; a small one of ours or a pretrained one.
        attention: ``arrow``, ``strict`` or ``square`` (a linear layer scores the mean of a candidate's states); ``diagonal`` (dot product with the
            mean of the context's states) or ``light arrow`` (:func:`mtlearn.layers.text_encoders.late_attention` with learned codes).
        positions: as in :func:`lay_out`.
        codes: number of codes of the light arrow.
        words: size of the vocabulary where hidden words are to be guessed; without, there is no head for it.
        longest: number of positions of the body, which is asked where it has a ``longest``.

    Raises:
        ValueError: an unknown attention or unknown positions, or fewer than one code.
    """

    def __init__(
        self,
        body: Body,
        attention: Attention = "arrow",
        *,
        positions: Positions = "repeated",
        codes: int = 16,
        words: int | None = None,
        longest: int | None = None,
    ) -> None:
        super().__init__()
        attention_mask(torch.zeros(1, dtype=torch.long), attention)
        if positions not in get_args(Positions):
            raise ValueError(f"positions must be one of {', '.join(get_args(Positions))}, got {positions!r}")
        if codes < 1:
            raise ValueError(f"codes must be at least 1, got {codes}")
        width = body.width
        self.body, self.attention, self.positions = body, attention, positions
        self.longest = getattr(body, "longest", None) if longest is None else longest
        self.head = nn.Linear(width, 1) if attention in ("arrow", "strict", "square") else None
        self.codes = nn.Parameter(torch.randn(codes, width) * width**-0.5) if attention == "light arrow" else None
        self.words = None if words is None else nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, words))

    def lay_out(self, context: Tensor, candidates: Tensor, present: Tensor | None = None) -> Sequences:
        """:func:`lay_out` for this model.

        Raises:
            ValueError: as there, or a context and candidate that need more positions than the body has.
        """
        laid = lay_out(context, candidates, padding=self.body.padding, positions=self.positions, present=present)
        if self.longest is not None and laid.positions.numel() and (most := int(laid.positions.max()) + 1) > self.longest:
            row, at = divmod(int(laid.positions.argmax()), laid.positions.shape[1])
            segment = int(laid.segments[row, at])
            what = "its context" if segment == CONTEXT else f"its context and candidate {segment}"
            raise ValueError(f"row {row}: {what} need {most} positions, {most - self.longest} more than the {self.longest} of the body")
        return laid

    def states(self, laid: Sequences) -> Tensor:
        """Last states (B, T, width) under the mask."""
        mask = attention_mask(laid.segments, self.attention)
        return self.body(laid.tokens, types=laid.types, positions=laid.positions, mask=mask)

    def score(self, states: Tensor, laid: Sequences) -> Tensor:
        """Logits (B, C) of the last states (B, T, width); -inf for a candidate that is not there."""
        inside = laid.segments[:, None] == torch.arange(laid.candidates, device=states.device)[:, None]  # (B, C, T)
        vectors = candidate_means(states, inside)
        if self.head is not None:
            logits: Tensor = self.head(vectors)[..., 0]
        else:
            before = laid.segments == CONTEXT
            if self.codes is not None:
                logits = late_attention(states, before, vectors, self.codes)
            else:
                logits = (vectors @ masked_mean(states, before)[..., None])[..., 0] * states.shape[-1] ** -0.5
        return logits.masked_fill(~inside.any(2), -torch.inf)

    def forward(self, context: Tensor, candidates: Tensor, present: Tensor | None = None) -> Tensor:
        """Logits (B, C) of contexts (B, n) and their candidates (B, C, m); errors as in :meth:`lay_out`.

        A candidate that is not ``present`` (B, C) has the logit -inf.
        """
        laid = self.lay_out(context, candidates, present)
        return self.score(self.states(laid), laid)


def candidate_means(states: Tensor, inside: Tensor) -> Tensor:
    """Means (B, C, width) of states (B, T, width) over the tokens of each candidate, (B, C, T) bool; 0 where there are none."""
    weight = inside.to(states.dtype)
    return weight @ states / weight.sum(2, keepdim=True).clamp(min=1)


def each_alone(model: UniEncoder, context: Tensor, candidates: Tensor, present: Tensor | None = None) -> Tensor:
    """Logits (B, C) with every candidate in a sequence of its own: with the arrow or the square this is the cross-encoder.

    Args:
        model: its weights.
        context: (B, n).
        candidates: (B, C, m).
        present: (B, C) bool; the others get -inf.
    """
    rows, pool = candidates.shape[:2]
    if present is None:
        found: Tensor = model(context.repeat_interleave(pool, 0), candidates.flatten(0, 1)[:, None])
        return found.view(rows, pool)
    logits = torch.full((rows, pool), -torch.inf, device=context.device)
    row, column = present.nonzero(as_tuple=True)
    return logits.index_put((row, column), model(context[row], candidates[row, column][:, None])[:, 0])


# ---------------------------------------------------------------------------------------------------------------------------- training


def in_batch(replies: Tensor) -> tuple[Tensor, Tensor]:
    """The right replies (B, m) of a batch as every context's pool: candidates (B, B, m) and labels (B,)."""
    if replies.dim() != 2 or not len(replies):
        raise ValueError(f"replies must be (B, m) with at least one, got {tuple(replies.shape)}")
    return replies.expand(len(replies), -1, -1), torch.arange(len(replies), device=replies.device)


def hide(
    tokens: Tensor, *, mask: int, words: tuple[int, int], share: float = 0.15, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Hide words as BERT does: of those chosen 80 % become ``mask``, 10 % a random word, 10 % stay.

    Args:
        tokens: any shape, int64.
        mask: number of the token that hides.
        words: first number and one past the last that are words; others (special tokens, padding) are never chosen.
        share: of the words that are chosen.
        generator: for the draws, of the CPU.

    Returns:
        the tokens with the chosen ones hidden, and labels: the word where one was chosen, -100 elsewhere.

    Raises:
        ValueError: a share outside 0 .. 1, or no words.
    """
    first, end = words
    if not 0 <= share <= 1 or first >= end:
        raise ValueError(f"share must be in 0..1 and words a range, got share={share}, words={words}")
    draw = torch.rand(2, *tokens.shape, generator=generator).to(tokens.device)
    other = torch.randint(first, end, tokens.shape, generator=generator).to(tokens.device)
    chosen = (draw[0] < share) & (tokens >= first) & (tokens < end)
    return replace_words(tokens, chosen, fate=draw[1], other=other, mask=mask)


def pool_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Softmax cross-entropy of logits (B, C) over the pool.

    Raises:
        ValueError: a label (B,) outside 0 .. C - 1, or of a candidate that is not there.
    """
    if label.shape != logits.shape[:1] or (len(label) and not (int(label.min()) >= 0 and int(label.max()) < logits.shape[1])):
        raise ValueError(f"label must be ({len(logits)},) between 0 and {logits.shape[1] - 1}, got {label.tolist()}")
    if not logits.gather(1, label[:, None]).isfinite().all():
        raise ValueError("the logit of a right candidate is not finite: it is not there, or the model has diverged")
    return F.cross_entropy(logits, label)


def training_loss(
    model: UniEncoder,
    context: Tensor,
    candidates: Tensor,
    label: Tensor,
    *,
    mask: int,
    words: tuple[int, int],
    share: float = 0.15,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``L_CE + L_MLM`` from one pass over the sequence with hidden words, both with weight 1.

    Args:
        model: with a head for ``words``.
        context: (B, n).
        candidates: (B, C, m).
        label: (B,) int64, the right candidate.
        mask: as in :func:`hide`.
        words: as in :func:`hide`.
        share: as in :func:`hide`.
        generator: as in :func:`hide`.

    Raises:
        ValueError: the model cannot guess words, or as in :func:`pool_loss`.
    """
    if model.words is None:
        raise ValueError("the model has no head to guess words: give it words=size of the vocabulary")
    laid = model.lay_out(context, candidates)
    shown, wanted = hide(laid.tokens, mask=mask, words=words, share=share, generator=generator)
    laid = Sequences(shown, laid.positions, laid.types, laid.segments, laid.candidates)
    states = model.states(laid)
    chosen = wanted != UNSEEN
    guessed = F.cross_entropy(model.words(states[chosen]), wanted[chosen], reduction="sum") / chosen.sum().clamp(min=1)
    return pool_loss(model.score(states, laid), label) + guessed


# -------------------------------------------------------------------------------------------------------------------------------- cost


@dataclass(frozen=True)
class Cost:
    """What one context with its pool costs.

    Attributes:
        tokens: that pass through the layers.
        pairs: of tokens that may look at each other, a layer: the ones in the mask.
        dense: of tokens that a dense kernel computes, masked or not, a layer.
    """

    tokens: int
    pairs: int
    dense: int

    def multiply_adds(self, width: int, hidden: int, layers: int) -> int:
        """Of all layers: four projections and the perceptron a token, two products a dense pair."""
        return layers * (self.tokens * (4 * width**2 + 2 * width * hidden) + 2 * width * self.dense)


def cost(context: int, candidates: Sequence[int], attention: Attention | Literal["cross"] = "arrow") -> Cost:
    """Cost of a context of n tokens with candidates of the given lengths.

    ``cross`` is every candidate alone with the context; ``diagonal`` and ``light arrow`` are counted as a bi-encoder reads: every text by itself.

    Raises:
        ValueError: no candidate, an empty text, or an unknown name.
    """
    lengths = list(candidates)
    if context < 1 or not lengths or min(lengths) < 1:
        raise ValueError(f"the context and every candidate need a token, and there must be a candidate, got {context} and {lengths}")
    if attention != "cross" and attention not in ATTENTIONS:
        raise ValueError(f"attention must be one of {', '.join((*ATTENTIONS, 'cross'))}, got {attention!r}")
    total = sum(lengths)
    own = sum(m * m for m in lengths)
    if attention == "cross":
        pairs = sum((context + m) ** 2 for m in lengths)
        return Cost(len(lengths) * context + total, pairs, pairs)
    tokens, dense = context + total, (context + total) ** 2
    if attention in ("diagonal", "light arrow"):
        return Cost(tokens, context**2 + own, context**2 + own)
    pairs = {"arrow": context**2 + 2 * context * total + own, "strict": context**2 + context * total + own, "square": dense}[attention]
    return Cost(tokens, pairs, dense)
