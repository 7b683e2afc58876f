r"""Task hinting: train a simpler, related task beside the main one, so that the main one reaches longer inputs.

Pranjal Awasthi, Anupam Gupta, "Improving Length-Generalization in Transformers via Task Hinting", 2023, arXiv:2310.00726.

**Idea.** A transformer that learned to sort short lists fails on long ones. The paper trains the same transformer at the same time on a piece of
the work, the *hint*: "which element comes after this one?". Examples of both kinds share all weights and are told apart by their first
token. When sorting is tested, the hint is gone, so it costs nothing then.

**Loss.** With the mask :math:`m_t = 1` on answer tokens, and :math:`\lambda` the hint's share,

.. math::
    L(\theta) = (1-\lambda)\, E_{main}\big[-\textstyle\sum_t m_t \log p_\theta(s_{t+1} \mid s_{\le t})\big]
    + \lambda\, E_{hint}\big[-\textstyle\sum_t m_t \log p_\theta(s_{t+1} \mid s_{\le t})\big]

**Length-dependent temperature.** A softmax over n keys flattens as n grows. Row i of the attention gets a factor of its own,
:math:`\mathrm{softmax}(\tau_i\, q_i K^\top / \sqrt d)`: learned numbers (:class:`LearnedLength`) or
:math:`\tau_i = \log i / \log n_0` (:class:`LogLength`).

**Construction.** :func:`hand_set_sorter` sets by hand the weights of a transformer of depth 2 that sorts distinct integers of any length.
Layer 1 finds the *successor* of the number written last, the smallest of the larger ones: its logits fall linearly with the value,
:math:`-\beta y`, so the mass on the successor is at least :math:`1 - e^{-\beta}` however long the list is. Layer 2 *copies* it: it matches the
successor with the inputs, a match or none, so all others trail by the same gap and the mass is :math:`1 / (1 + (n-1) e^{-\gamma\delta})`:
:math:`\gamma` must grow like :math:`\log n`. One network shows where a length-dependent temperature is needed and where it is not.

**What differs from the paper.** No code is public; what follows is in its manner. The layout of rows (``mtlearn.datasets.sequences``), the
extrapolation of learned temperatures and the split of the construction over two layers are ours. Each expectation is a mean per answer token,
not per row: else a long answer would outweigh the hint's single token.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.pointing.transformer import Attention, CausalTransformer

SMALLEST_TAU = 0.05  # log 1 = 0 would switch row 1 off


class LogLength(nn.Module):
    """tau_i = log i / log n_0: rows with more keys than ``reference`` are sharpened, rows with fewer are flattened.

    Args:
        reference: n_0, the number of keys at which tau is 1; at least 2.
        smallest: tau is never below it. With 1, only rows longer than ``reference`` change: a model trained without a scale, on rows up to
            ``reference``, keeps all its answers there and is sharpened beyond.
    """

    def __init__(self, reference: int, *, smallest: float = SMALLEST_TAU) -> None:
        super().__init__()
        if reference <= 1:
            raise ValueError(f"the reference length n_0 must be at least 2, as log n_0 divides; got {reference}")
        if not smallest > 0:
            raise ValueError(f"the smallest tau must be positive, got {smallest}")
        self.reference, self.smallest = reference, smallest

    def forward(self, length: int) -> Tensor:
        """The tau of the rows with 1..length keys: (length,)."""
        return (torch.arange(1, length + 1).log() / math.log(self.reference)).clamp(min=self.smallest)


class LearnedLength(nn.Module):
    """One learned tau for each bucket of lengths, and beyond the trained lengths a + b log i through the buckets.

    Buckets are equally wide in log i. The line is the least-squares fit through the buckets' taus, each weighted by its rows, so that it
    moves with them; nothing else is learned.

    Args:
        longest: the longest trained row, in keys.
        buckets: how many numbers to learn, at least 2.
    """

    bucket: Tensor
    line: Tensor

    def __init__(self, longest: int, buckets: int = 5) -> None:
        super().__init__()
        if buckets < 2 or longest < 2 * buckets:
            raise ValueError(f"longest must be at least 2 * buckets and buckets at least 2, got longest={longest}, buckets={buckets}")
        rows = torch.arange(1, longest + 1)
        place = (rows.log() / math.log(longest + 1) * buckets).long()
        bucket = torch.unique(place, return_inverse=True)[1]  # short rows can leave a bucket empty
        count = bucket.bincount().double()
        centre = torch.zeros_like(count).index_add(0, bucket, rows.double().log()) / count
        design = torch.stack([torch.ones_like(centre), centre], 1)  # (buckets, 2)
        weighted = design.T * count
        self.longest = longest
        self.log_tau = nn.Parameter(torch.zeros(len(count)))
        self.register_buffer("bucket", bucket, persistent=False)
        self.register_buffer("line", torch.linalg.solve(weighted @ design, weighted).float(), persistent=False)  # (2, buckets): taus to a, b

    def forward(self, length: int) -> Tensor:
        """The tau of the rows with 1..length keys: (length,)."""
        tau = self.log_tau.exp()
        inside = tau[self.bucket[:length]]
        if length <= self.longest:
            return inside
        a, b = self.line @ tau
        beyond = torch.arange(self.longest + 1, length + 1, device=tau.device).log()
        return torch.cat([inside, a + b * beyond]).clamp(min=SMALLEST_TAU)


class Weighted(NamedTuple):
    """A batch of one task and its share of the loss: tokens and mask (batch, length), mask true on the answer."""

    tokens: Tensor
    mask: Tensor
    share: float


def token_loss(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over the answer tokens of -log p(s_{t+1} | s_{<=t}), in nats.

    Args:
        logits: (batch, length, vocabulary), of the token after each position.
        tokens: (batch, length).
        mask: (batch, length) bool, true on the answer.
    """
    asked = mask[:, 1:]
    return F.cross_entropy(logits[:, :-1][asked], tokens[:, 1:][asked])


def multitask_loss(model: nn.Module, batches: Sequence[Weighted]) -> Tensor:
    """Hard sharing: the same model on every task, losses summed by share. A task of share 0 is not run, so it cannot change anything.

    Raises:
        ValueError: shares that are negative or do not sum to 1.
    """
    shares = [batch.share for batch in batches]
    if min(shares, default=0.0) < 0 or not math.isclose(sum(shares), 1.0):
        raise ValueError(f"the shares of the tasks must be 0 or more and sum to 1, got {shares}")
    losses = [share * token_loss(model(tokens), tokens, mask) for tokens, mask, share in batches if share > 0]
    return torch.stack(losses).sum()


@torch.no_grad()
def answer_accuracy(model: Callable[[Tensor], Tensor], tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which whole answers are right (batch,), and the share of right tokens at each position of the answer (batch, m), m the longest answer.

    Each token is judged with the true ones before it; an answer that is right in all of them is the one that greedy decoding writes.
    Behind a shorter answer stands NaN.
    """
    right = model(tokens)[:, :-1].argmax(-1) == tokens[:, 1:]
    asked = mask[:, 1:]
    width = int(asked.sum(1).max())
    place = torch.where(asked, asked.cumsum(1) - 1, width)  # all that is not asked goes to one extra column
    answers = torch.full((len(tokens), width + 1), torch.nan, device=tokens.device).scatter(1, place, right.float())
    return (right | ~asked).all(1), answers[:, :width]


def hand_set_sorter(
    values: int, *, tokens: int, start: int, sep: int, end: int, beta: float = 3.0, gamma: float = 12.0, scale: nn.Module | None = None
) -> CausalTransformer:
    r"""A transformer of depth 2, one head, whose weights are set by hand to sort distinct integers of every length.

    The stream has three blocks of one-hot directions: who am I (*identity*), who comes next (*successor*), what to write (*output*).

    Layer 1 (Min). The query of the written number a scores the values v as :math:`\beta (2V [v > a] - v)`: the larger ones, the smallest of
    them first. ``sep`` counts as below all. The ``start`` token scores between the two groups, so it wins when nothing is larger, and it
    stands for ``end``.

    Layer 2 (Copy). The query is gamma times *successor*, the keys are identities: logits in 0..gamma. What is attended goes to *output*.

    Args:
        values: V, the integers 0..V-1.
        tokens: size of the vocabulary; values come first in it.
        start: the token before the list.
        sep: the token between the list and what is written.
        end: the token after what is written.
        beta: inverse temperature of layer 1, see :func:`min_temperature`.
        gamma: inverse temperature of layer 2, see :func:`copy_temperature`.
        scale: length scale of layer 2.

    Raises:
        ValueError: an inverse temperature that is not positive, or tokens that are not in the vocabulary.
    """
    if not beta > 0 or not gamma > 0:
        raise ValueError(f"beta and gamma must be positive, got beta={beta}, gamma={gamma}")
    marks = (start, sep, end)
    if values < 2 or len(set(marks)) < 3 or not all(values <= mark < tokens for mark in marks):
        raise ValueError(f"start, sep and end must be three tokens in {values}..{tokens - 1}, got {marks}")
    model = CausalTransformer(tokens, 3 * tokens, 2, 1, head_width=tokens, expansion=0, normalised=False)
    number = torch.arange(values)
    identity, successor, output = (slice(k * tokens, (k + 1) * tokens) for k in range(3))
    one = torch.eye(tokens)

    score = torch.full((tokens, tokens), -float(values))  # (written token, key)
    score[:values, :values] = 2 * values * (number > number[:, None]) - number
    score[sep, :values] = 2.0 * values - number
    score[:, start] = (values + 1) / 2
    spoken = one.clone()  # what a key token stands for
    spoken[start] = one[end]

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embedding.weight[:, identity] = one
        model.unembedding.weight[:, output] = one
        root = tokens**0.5  # attention divides by it
        for number_of_layer, (inverse, read, query, key, write) in enumerate(
            ((beta, identity, score.T, one, successor), (gamma, successor, one, spoken.T, output))
        ):
            attention = model.blocks[number_of_layer].attention
            assert isinstance(attention, Attention)
            to_query, to_key, to_value = attention.query_key_value.weight.chunk(3)
            to_query[:, read] = inverse * root * query
            to_key[:, identity] = key
            to_value[:, identity] = spoken.T
            attention.out.weight[write] = one
            attention.scale = scale if number_of_layer else None
    return model.eval().requires_grad_(False)


def min_temperature(epsilon: float) -> float:
    """The beta at which the mass on the smallest of any number of distinct integers is at least 1 - epsilon, with logits -beta y.

    The others trail by beta, 2 beta, 3 beta ...: 1 / (1 + e^-beta + e^-2beta + ...) = 1 - e^-beta, whatever the length.
    """
    return math.log(1 / _share(epsilon))


def copy_temperature(n: int, epsilon: float, gap: float = 1.0) -> float:
    """The gamma at which the mass on one of ``n`` keys is at least 1 - epsilon when all others trail by gamma * ``gap``: it grows like log n.

    Raises:
        ValueError: ``n`` below 2, ``epsilon`` outside (0, 1) or a gap that is not positive.
    """
    if n < 2 or not gap > 0:
        raise ValueError(f"n must be at least 2 and the gap positive, got n={n}, gap={gap}")
    return math.log((n - 1) * (1 - _share(epsilon)) / epsilon) / gap


def _share(epsilon: float) -> float:
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon must lie between 0 and 1, got {epsilon}")
    return epsilon


def attention_by_value(weights: Tensor, inputs: Tensor, values: int) -> Tensor:
    """Attention from one row to the inputs, laid out by value: the mass that each value gets, equal values together.

    Args:
        weights: (..., length) one row of attention for the sequence ``start x_1 .. x_n sep ...``.
        inputs: (n,) the list x.
        values: how many values there are.

    Returns:
        (..., values); it sums to the row's mass on the inputs, the rest lies on marks and written numbers.
    """
    to_inputs = weights[..., 1 : 1 + len(inputs)]
    by_value: Tensor = to_inputs.new_zeros(*to_inputs.shape[:-1], values)
    return by_value.index_add(-1, inputs, to_inputs)


def linear_probe(features: Tensor, labels: Tensor, *, ridge: float = 1e-2) -> Tensor:
    """Weights (width + 1, classes) that read ``labels`` off ``features`` linearly: ridge regression on one-hot labels, the bias last.

    Args:
        features: (rows, width).
        labels: (rows,) int64.
        ridge: weight of the penalty, relative to the rows.
    """
    padded = F.pad(features, (0, 1), value=1.0).double()
    target = F.one_hot(labels).double()
    gram = padded.T @ padded + ridge * len(padded) * torch.eye(padded.shape[1], dtype=torch.float64, device=padded.device)
    probe: Tensor = torch.linalg.solve(gram, padded.T @ target)
    return probe


def probe_accuracy(probe: Tensor, features: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest probe output is the label."""
    read = (F.pad(features, (0, 1), value=1.0).double() @ probe).argmax(-1)
    return float((read == labels).double().mean())
