r"""Dual-Encoders for Extreme Multi-Label Classification. Gupta, Khatri, Rawat, Bhojanapalli, Jain, Dhillon. ICLR 2024, arXiv 2310.10636.

A query has several right answers among :math:`L` labels that are texts themselves. One encoder reads queries and labels, so its parameters do not
grow with :math:`L`; a classifier head has a vector a label. The paper finds that the loss held dual encoders back. With scores
:math:`s_j = E(q) \cdot E(y_j) / \tau`, positives :math:`P` and all other labels :math:`N`:

.. math::
    \text{softmax:} \quad & \ell = -\sum_{i \in P} \log \frac{e^{s_i}}{\sum_{j \in P \cup N} e^{s_j}}, \qquad
        \frac{\partial \ell}{\partial s_i} = |P|\, p_i - 1 \\
    \text{decoupled softmax:} \quad & \ell = -\frac{1}{|P|} \sum_{i \in P} \log \frac{e^{s_i}}{e^{s_i} + \sum_{j \in N} e^{s_j}}, \qquad
        \frac{\partial \ell}{\partial s_i} = -\frac{1 - p_i^{dec}}{|P|} \le 0

InfoNCE's softmax makes positives compete: one that already has more than :math:`1/|P|` of the probability is pushed *down*. Decoupled, each positive
meets negatives alone. The third loss asks for the right set of :math:`k`, by a soft top-k operator of sharpness :math:`\alpha`:

.. math:: z_i = \sigma(\alpha (s_i + t)), \quad t \text{ such that } \sum_i z_i = k, \qquad \ell = -\frac{1}{|P|} \sum_{i \in P} \log z_i

whose gradient comes from the implicit function theorem, not from the bisection that finds :math:`t`.

All labels as negatives cost memory. :func:`blocked_decoupled_softmax` never holds the scores (B, L);
:func:`mtlearn.layers.contrastive.cached_gradients` never holds the graph of more than a chunk of encoded labels; :func:`hard_negatives` and
:func:`label_pool` choose few labels in their place.

What differs from the released code: the bracket of the bisection, which there is too narrow for k / L below exp(-10); masked scores are -inf
where there they are -100, which scores that are not normalised can reach.
"""

import math
import warnings
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.search import ExactIndex


class ScoreLoss(Protocol):
    """A loss of scores (B, L) and targets (B, L) bool, or (m, 2) pairs of row and label."""

    def __call__(self, scores: Tensor, targets: Tensor) -> Tensor:
        """A scalar."""
        ...


def positive_pairs(scores: Tensor, targets: Tensor, *, dropped: Tensor | None = None) -> Tensor:
    """The positives as pairs (m, 2) int64 of row and label, by row.

    Args:
        scores: (B, L).
        targets: bool (B, L), or whole numbers (m, 2).
        dropped: bool (B, L), labels that are neither positive nor negative.

    Raises:
        TypeError: targets that are neither bool nor whole numbers.
        ValueError: scores with a NaN, another shape, a label outside 0..L-1, a pair twice, a row without a positive, or a dropped positive.
    """
    if scores.dim() != 2 or 0 in scores.shape:
        raise ValueError(f"scores must be (B, L) with at least one query and label, got {tuple(scores.shape)}")
    if scores.isnan().any():
        raise ValueError(f"scores must not be NaN; query {int(scores.isnan().any(1).nonzero()[0, 0])} has one")
    pairs = _pairs(targets, *scores.shape)
    if dropped is not None:
        if dropped.shape != scores.shape or dropped.dtype != torch.bool:
            raise ValueError(f"dropped must be bool {tuple(scores.shape)}, got {dropped.dtype} {tuple(dropped.shape)}")
        if bool(dropped[pairs[:, 0], pairs[:, 1]].any()):
            raise ValueError("a label cannot be positive and dropped at once")
    return pairs


def _pairs(targets: Tensor, rows: int, labels: int) -> Tensor:
    if targets.dtype == torch.bool:
        if targets.shape != (rows, labels):
            raise ValueError(f"targets must have the shape of the scores, ({rows}, {labels}), got {tuple(targets.shape)}")
        pairs = targets.nonzero()
    elif targets.is_floating_point() or targets.is_complex():
        raise TypeError(f"targets must be bool ({rows}, {labels}) or whole numbers (m, 2), pairs of row and label, got {targets.dtype}")
    else:
        if targets.dim() != 2 or targets.shape[1] != 2:
            raise ValueError(f"targets as whole numbers must be (m, 2), pairs of row and label, got {tuple(targets.shape)}")
        pairs = targets.long()
        for name, column, size in (("row", 0, rows), ("label", 1, labels)):
            bad = (pairs[:, column] < 0) | (pairs[:, column] >= size)
            if bad.any():
                raise ValueError(f"targets must name {name}s between 0 and {size - 1}, got {int(pairs[bad][0, column])}")
        order = torch.argsort(pairs[:, 0] * labels + pairs[:, 1])
        pairs = pairs[order]
        twice = (pairs[1:] == pairs[:-1]).all(1)
        if twice.any():
            row, label = pairs[:-1][twice][0].tolist()
            raise ValueError(f"targets must not repeat a pair; row {row} has label {label} twice")
    none = torch.bincount(pairs[:, 0], minlength=rows) == 0
    if none.any():
        raise ValueError(
            f"every query needs a positive label; query {int(none.nonzero()[0, 0])} has none ({int(none.sum())} of {rows}): leave them out"
        )
    return pairs


def _share(pairs: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """1 / |P| of each pair's row, (m,)."""
    return 1 / torch.bincount(pairs[:, 0], minlength=rows).to(dtype)[pairs[:, 0]]


def _without(scores: Tensor, dropped: Tensor | None) -> Tensor:
    return scores if dropped is None else scores.masked_fill(dropped, -torch.inf)


# ---------------------------------------------------------------------------------------------------------------------------- losses


def binary_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """One-vs-all: the mean binary cross-entropy over all queries and labels (the code's ``bce``)."""
    pairs = positive_pairs(scores, targets)
    return (F.softplus(scores).sum() - scores[pairs[:, 0], pairs[:, 1]].sum()) / scores.numel()


def softmax_loss(scores: Tensor, targets: Tensor, *, average: bool = False, dropped: Tensor | None = None) -> Tensor:
    """InfoNCE with many positives (section 3.1): each against all labels, the other positives too. Summed over positives, averaged over queries.

    Args:
        scores: (B, L).
        targets: bool (B, L), or (m, 2) pairs of row and label.
        average: over the positives of a query, too.
        dropped: bool (B, L), labels that are left out.
    """
    pairs = positive_pairs(scores, targets, dropped=dropped)
    each = _without(scores, dropped).logsumexp(1)[pairs[:, 0]] - scores[pairs[:, 0], pairs[:, 1]]  # (m,)
    return (each * _share(pairs, len(scores), scores.dtype) if average else each).sum() / len(scores)


def decoupled_softmax(scores: Tensor, targets: Tensor, *, average: bool = True, dropped: Tensor | None = None) -> Tensor:
    """Each positive against the negatives alone (section 3.2); the mean over a query's positives, then over queries.

    Args:
        scores: (B, L).
        targets: bool (B, L), or (m, 2) pairs of row and label.
        average: over the positives of a query; otherwise their sum.
        dropped: bool (B, L), labels that are neither positive nor negative.

    Raises:
        TypeError, ValueError: as :func:`positive_pairs`. Warns of queries for which no negative is left: their loss is 0.
    """
    pairs = positive_pairs(scores, targets, dropped=dropped)
    masked = _without(scores, dropped).index_put((pairs[:, 0], pairs[:, 1]), scores.new_tensor(-torch.inf))
    negatives = _log_sum(masked)  # (B,), log of the sum over N
    _warn_of_none(negatives)
    return _decoupled(negatives, scores[pairs[:, 0], pairs[:, 1]], pairs, average)


def _decoupled(negatives: Tensor, positives: Tensor, pairs: Tensor, average: bool) -> Tensor:
    each = F.softplus(negatives[pairs[:, 0]] - positives)  # -log(e^s / (e^s + Z)) = log(1 + Z e^-s)
    return (each * _share(pairs, len(negatives), each.dtype) if average else each).sum() / len(negatives)


def _log_sum(scores: Tensor) -> Tensor:
    """Logsumexp whose gradient is 0, not NaN, for a row of -inf alone."""
    empty = scores.isneginf().all(1)
    if not empty.any():
        return scores.logsumexp(1)
    return scores.masked_fill(empty[:, None], 0.0).logsumexp(1).masked_fill(empty, -torch.inf)


def _warn_of_none(negatives: Tensor) -> None:
    if (none := int(negatives.isneginf().sum())) > 0:
        warnings.warn(f"{none} of {len(negatives)} queries have no negative label: their loss is 0", stacklevel=3)


def sample_positive(
    targets: Tensor, *, relevance: Tensor | None = None, count: int = 1, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw ``count`` positives a query, without replacement and in proportion to their relevance (section 3.2, for memory).

    The mean over the draws of one positive is the full decoupled loss, where all are equally relevant.

    Args:
        targets: bool (B, L), at least one positive a row.
        relevance: (B, L), above 0 where there is a positive; equal when omitted.
        count: a row with fewer positives keeps them all.
        generator: of the draws.

    Returns:
        the positives that were drawn and the ones that were not, bool (B, L) each: ``targets`` and ``dropped`` of a loss.
    """
    if targets.dtype != torch.bool or targets.dim() != 2:
        raise TypeError(f"targets must be bool (B, L), got {targets.dtype} {tuple(targets.shape)}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    pairs = _pairs(targets, *targets.shape)
    weight = torch.ones(len(pairs), device=targets.device) if relevance is None else relevance[pairs[:, 0], pairs[:, 1]].float()
    if not (weight > 0).all():
        raise ValueError("relevance must be above 0 for every positive")
    uniform = torch.rand(len(pairs), generator=generator).to(weight.device)
    key = -(-uniform.clamp(min=1e-12).log() / weight).log()  # Gumbel's maxima: the largest are a draw without replacement
    rank = torch.full(targets.shape, -torch.inf, device=targets.device).index_put((pairs[:, 0], pairs[:, 1]), key)
    best = rank.topk(min(count, targets.shape[1]), 1).indices
    drawn = torch.zeros_like(targets).scatter(1, best, True) & targets
    return drawn, targets & ~drawn


# ---------------------------------------------------------------------------------------------------------------------- the soft top k


class _LogSoftTopK(torch.autograd.Function):
    """log z of the soft top k; the gradient by the implicit function theorem."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, k: float, alpha: float, steps: int) -> Tensor:
        level = _level(scores, k, alpha, steps)
        log_z = F.logsigmoid(alpha * (scores + level))
        ctx.save_for_backward(log_z)
        ctx.alpha = alpha
        return log_z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (log_z,) = ctx.saved_tensors
        z = log_z.exp()
        v = z * (1 - z)  # dz/ds at a fixed t, up to alpha, which cancels in v / sum(v)
        u = grad * ctx.alpha * (1 - z)  # through log z_i at a fixed t
        total = v.sum(1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
        return u - u.sum(1, keepdim=True) * v / total, None, None, None  # dt/ds_j = -v_j / sum(v)


def _level(scores: Tensor, k: float, alpha: float, steps: int) -> Tensor:
    """The t (B, 1) at which the sigmoids sum to k, by bisection.

    With t = c - s_max no sigmoid is above k / L, with t = c - s_min none is below, so the root lies between them.
    """
    c = math.log(k / (scores.shape[1] - k)) / alpha
    low, high = c - scores.amax(1, keepdim=True), c - scores.amin(1, keepdim=True)
    for _ in range(steps):
        middle = (low + high) / 2
        short = torch.sigmoid(alpha * (scores + middle)).sum(1, keepdim=True) < k
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return (low + high) / 2


def log_soft_top_k(scores: Tensor, k: int, *, alpha: float = 2.0, steps: int = 32) -> Tensor:
    """Logarithm of each label's share in the top k (section 3.3), (B, L).

    Args:
        scores: (B, L), finite.
        k: 1 to L - 1.
        alpha: sharpness; the result tends to the indicator of the k best as it grows, where the k-th and the next score differ.
        steps: of the bisection; the error of the level halves at each.

    Raises:
        ValueError: ``k``, ``alpha`` or ``steps`` out of range, or scores that are not finite.
    """
    if scores.dim() != 2 or not scores.isfinite().all():
        raise ValueError(f"scores must be (B, L) and finite, got {tuple(scores.shape)} with {int((~scores.isfinite()).sum())} that are not")
    if not 1 <= k < scores.shape[1]:
        raise ValueError(f"k must be between 1 and L - 1 = {scores.shape[1] - 1}, got {k}")
    if not alpha > 0 or steps < 1:
        raise ValueError(f"alpha must be above 0 and steps at least 1, got {alpha} and {steps}")
    return cast(Tensor, _LogSoftTopK.apply(scores, float(k), alpha, steps))  # type: ignore[no-untyped-call]


def soft_top_k(scores: Tensor, k: int, *, alpha: float = 2.0, steps: int = 32) -> Tensor:
    """Each label's share in the top k, (B, L), between 0 and 1; a row sums to k. Arguments and errors of :func:`log_soft_top_k`."""
    return log_soft_top_k(scores, k, alpha=alpha, steps=steps).exp()


def soft_top_k_loss(
    scores: Tensor, targets: Tensor, *, k: int = 5, alpha: float = 2.0, steps: int = 32, generator: torch.Generator | None = None
) -> Tensor:
    """Ask every positive to be among the k best: the mean of -log z over a query's positives, then over queries (section 3.3).

    A query with more than ``k`` positives, which cannot all be there, keeps ``k`` drawn ones; the others are removed.

    Args:
        scores: (B, L).
        targets: bool (B, L), or (m, 2) pairs of row and label.
        k: places.
        alpha: sharpness.
        steps: of the bisection.
        generator: of the draws.
    """
    pairs = positive_pairs(scores, targets)
    if int(torch.bincount(pairs[:, 0]).max()) > k:
        every = torch.zeros_like(scores, dtype=torch.bool).index_put((pairs[:, 0], pairs[:, 1]), scores.new_tensor(True, dtype=torch.bool))
        drawn, dropped = sample_positive(every, count=k, generator=generator)
        low = scores.detach().amin(1, keepdim=True) - 40 / alpha  # so low that their share is nothing, and finite
        scores, pairs = torch.where(dropped, low, scores), drawn.nonzero()
    log_z = log_soft_top_k(scores, k, alpha=alpha, steps=steps)
    return -(log_z[pairs[:, 0], pairs[:, 1]] * _share(pairs, len(scores), log_z.dtype)).sum() / len(scores)


# -------------------------------------------------------------------------------------------------------- all labels in little memory


class _LogNegatives(torch.autograd.Function):
    """log of the sum of exp(score) over the negatives of each query, from blocks of labels that are worked out again on the way back."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, labels: Tensor, pairs: Tensor, scale: float, block: int) -> Tensor:
        total = queries.new_full((len(queries),), -torch.inf)
        for start in range(0, len(labels), block):
            scores = _block(queries, labels, pairs, scale, start, block)
            total = torch.logaddexp(total, scores.logsumexp(1))
        ctx.save_for_backward(queries, labels, pairs, total)
        ctx.scale, ctx.block = scale, block
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        queries, labels, pairs, total = ctx.saved_tensors
        scale, safe = ctx.scale, total.masked_fill(total.isneginf(), 0.0)
        to_queries, to_labels = torch.zeros_like(queries), torch.empty_like(labels)
        for start in range(0, len(labels), ctx.block):
            part = labels[start : start + ctx.block]
            share = (_block(queries, labels, pairs, scale, start, ctx.block) - safe[:, None]).exp_()  # (B, block), softmax over the negatives
            share *= scale * grad[:, None]
            to_queries += share @ part
            torch.mm(share.T, queries, out=to_labels[start : start + ctx.block])
        return to_queries, to_labels, None, None, None


def _block(queries: Tensor, labels: Tensor, pairs: Tensor, scale: float, start: int, block: int) -> Tensor:
    """Scores (B, block) of some labels, -inf where the label is a positive."""
    scores = torch.mm(queries, labels[start : start + block].T).mul_(scale)
    here = pairs[(pairs[:, 1] >= start) & (pairs[:, 1] < start + block)]
    scores[here[:, 0], here[:, 1] - start] = -torch.inf
    return scores


def blocked_decoupled_softmax(
    queries: Tensor, labels: Tensor, targets: Tensor, *, scale: float = 20.0, average: bool = True, block: int = 8192
) -> Tensor:
    """:func:`decoupled_softmax` of ``scale * queries @ labels.T`` without ever holding the scores of more than a block of labels.

    What a query needs of a block is one number, the logarithm of a sum: so it is, too, when labels lie on several machines (section 3.2).

    Args:
        queries: (B, d).
        labels: (L, d).
        targets: bool (B, L), or better (m, 2) pairs of row and label, which need no memory.
        scale: 1 / temperature.
        average: over the positives of a query; otherwise their sum.
        block: labels at a time.

    Raises:
        TypeError, ValueError: as :func:`positive_pairs`; vectors that do not fit or are not finite, ``scale`` or ``block`` out of range.
    """
    if queries.dim() != 2 or labels.dim() != 2 or queries.shape[1] != labels.shape[1] or 0 in (len(queries), len(labels)):
        raise ValueError(f"queries and labels must be (B, d) and (L, d), got {tuple(queries.shape)} and {tuple(labels.shape)}")
    if not scale > 0 or block < 1:
        raise ValueError(f"scale must be above 0 and block at least 1, got {scale} and {block}")
    if not (queries.isfinite().all() and labels.isfinite().all()):
        raise ValueError("queries and labels must be finite")
    pairs = _pairs(targets, len(queries), len(labels))
    negatives = cast(Tensor, _LogNegatives.apply(queries, labels, pairs, scale, block))  # type: ignore[no-untyped-call]
    _warn_of_none(negatives)
    positives = scale * (queries[pairs[:, 0]] * labels[pairs[:, 1]]).sum(1)
    return _decoupled(negatives, positives, pairs, average)


def hard_negatives(queries: Tensor, labels: Tensor, targets: Tensor, *, k: int = 100) -> Tensor:
    """The ``k`` labels nearest to each query that are not its positives, (q, k) int64, best first (section 4.3, ``dist-de-hnm``).

    Args:
        queries: (q, d).
        labels: (L, d).
        targets: bool (q, L), or (m, 2) pairs.
        k: at most the labels that are left to the query with most positives.
    """
    pairs = _pairs(targets, len(queries), len(labels))
    most = int(torch.bincount(pairs[:, 0]).max())
    if not 1 <= k <= len(labels) - most:
        raise ValueError(f"k must be between 1 and {len(labels) - most}, the labels that are negatives of every query, got {k}")
    found = ExactIndex(labels).search(queries, k + most)[1]  # (q, k + most)
    positive = torch.isin(found + len(labels) * torch.arange(len(queries), device=found.device)[:, None], pairs[:, 0] * len(labels) + pairs[:, 1])
    return found.gather(1, positive.to(torch.uint8).argsort(dim=1, stable=True)[:, :k])


def label_pool(targets: Tensor, negatives: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The labels that a batch needs, each once, and the targets among them.

    Args:
        targets: bool (B, L), the positives of the batch, all of them: one that is left out would become another query's and its own negative.
        negatives: (B, k) labels that are proposed as negatives.

    Returns:
        numbers of the labels (p,) ascending, and bool (B, p).
    """
    wanted = targets.any(0)
    if negatives is not None:
        wanted = wanted.clone()
        wanted[negatives.flatten()] = True
    pool = wanted.nonzero()[:, 0]
    return pool, targets[:, pool]


# ---------------------------------------------------------------------------------------------------------------------------- models


class DualEncoder(nn.Module):
    """One encoder for queries and labels (section 2): scores are products of vectors over a temperature.

    Args:
        encoder: inputs (n, ...) to vectors (n, width).
        width: of its vectors.
        bottleneck: width of a linear map behind it; none when omitted.
        temperature: divides the scores. The code uses 0.05 with normalised vectors, 1 without.
        normalize: bring vectors to length 1.
    """

    def __init__(self, encoder: nn.Module, width: int, *, bottleneck: int | None = None, temperature: float = 0.05, normalize: bool = True) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if bottleneck is not None and bottleneck < 1:
            raise ValueError(f"bottleneck must be at least 1, got {bottleneck}")
        self.encoder, self.normalize, self.temperature = encoder, normalize, temperature
        self.bottleneck = nn.Identity() if bottleneck is None else nn.Linear(width, bottleneck)
        self.width = width if bottleneck is None else bottleneck

    def embed(self, inputs: Tensor) -> Tensor:
        """Inputs (n, ...) to vectors (n, width)."""
        vectors: Tensor = self.bottleneck(self.encoder(inputs))
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def forward(self, queries: Tensor, labels: Tensor) -> Tensor:
        """Scores (B, L) of queries (B, ...) and labels (L, ...)."""
        return self.embed(queries) @ self.embed(labels).T / self.temperature


class LabelHead(nn.Module):
    """The usual answer: the same encoder for queries, and a vector of its own for each label; it never reads a label's text.

    Args:
        model: encodes queries.
        labels: their number L; the head has L * width parameters.
    """

    def __init__(self, model: DualEncoder, labels: int) -> None:
        super().__init__()
        if labels < 1:
            raise ValueError(f"labels must be at least 1, got {labels}")
        self.model = model
        self.weight = nn.Parameter(torch.randn(labels, model.width) * model.width**-0.5)

    def forward(self, queries: Tensor) -> Tensor:
        """Scores (B, L)."""
        weight = F.normalize(self.weight, dim=-1) if self.model.normalize else self.weight
        return self.model.embed(queries) @ weight.T / self.model.temperature
