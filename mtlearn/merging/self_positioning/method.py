r"""Self Positioning (Li and others, arXiv 2024).

Mingxin Li, Zhijie Nie, Yanzhao Zhang, Dingkun Long, Richong Zhang, Pengjun Xie: Improving General Text Embedding Model: Tackling Task Conflict and
Data Imbalance through Model Merging. https://arxiv.org/abs/2410.15035

**Idea.** A text embedder that is trained jointly on several data sets follows the largest of them, and the tasks pull on each other. Train one model
per data set instead, from the same start, and take what each has learned as a *task vector*. With the start the task vectors span a plane (a space,
for more than two), in which every point is a model. Which point is best is then a question of a few scalars, a direction and a length, and
stochastic gradient descent on a small *probe set* finds it, while all weights stay as they are.

**Loss.** InfoNCE of a query, its positive and negatives, with the cosine s over a temperature t (:func:`info_nce`):

.. math:: L^{CL} = -\log \frac{e^{s(q, d^+)/t}}{e^{s(q, d^+)/t} + \sum_{d^-} e^{s(q, d^-)/t}}

**Task vectors.** :math:`V_i = \theta_i - \theta_0`, all weights as one vector. *Separate* pipeline: :math:`\theta_i` is trained on data set i alone,
from :math:`\theta_0`. *Iterative* pipeline: training goes from one data set to the next, and the checkpoints on the way are the
:math:`\theta_i`.

**Slerp** of two task vectors at the angle :math:`\alpha`, on their raw lengths, with :math:`\beta = a_j / (a_i + a_j)` (:func:`slerp`):

.. math:: f(V_i, V_j, a_i, a_j) = \frac{\sin((1 - \beta) \alpha)}{\sin \alpha} V_i + \frac{\sin(\beta \alpha)}{\sin \alpha} V_j

**Direction.** A fold over the tasks: :math:`V_{(1..k)} = f(V_{(1..k-1)}, V_k, \frac{1}{k-1} \sum_{i<k} a_i, a_k)`. Each step is linear in the
:math:`V_i` once its angle is known, and all angles follow from the Gram matrix :math:`G_{ij} = \langle V_i, V_j \rangle`; so the fold is
:math:`\sum_i c_i(a) V_i`, and the vectors themselves are needed for G once (:func:`fold_coefficients`).

**Length.** :math:`V_p = \lambda V_{(1..N)}`.

**Search.** Over N + 1 scalars, :class:`SelfPositioning`:

.. math:: \min_{a, \lambda} \frac{1}{|D_t|} \sum_{I \in D_t} L^{CL}(I; \theta_0 + V_p) + \mu \lambda

**What is reconstructed.** The authors' code was not found and the paper's text was not at hand: equations, probe size and the range of
:math:`\mu` are from public notes on it; the start :math:`a_i = \lambda = 1` and the softplus that keeps :math:`a_i` positive are our choice. The
notes print the two weights of the slerp in both orders; here :math:`a_j` is the weight of :math:`V_j`. Where the cosine of two vectors is within
1e-6 of 1 the weights are those of linear interpolation, which they equal there to six digits.
"""

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.merging.task_vectors import State, apply, check_finite, check_vectors, flatten, gram, unflatten

NEAR = 1e-6  # a cosine so near to 1 means parallel, to -1 antiparallel


def info_nce(
    query: Tensor, positive: Tensor, *, temperature: float = 0.05, left_out: Tensor | None = None, negatives: Tensor | None = None
) -> Tensor:
    """Mean InfoNCE of a batch: each query against its positive, the positives of the others, and the hard negatives.

    Args:
        query: (batch, width), any length.
        positive: (batch, width), row i belongs to query i.
        temperature: t.
        left_out: (batch, batch) bool, pairs of query and positive that are no negatives; the diagonal counts always.
        negatives: (m, width) hard negatives, of every query.

    Raises:
        ValueError: fewer than two candidates (the loss is then 0 and has no gradient), shapes that do not fit, a temperature that is not positive.
    """
    if query.dim() != 2 or query.shape != positive.shape:
        raise ValueError(f"query and positive must both be (batch, width), got {tuple(query.shape)} and {tuple(positive.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    batch = len(query)
    if batch + (0 if negatives is None else len(negatives)) < 2:
        raise ValueError(f"a batch needs at least 2 pairs, got {batch}: without a negative InfoNCE is 0 and has no gradient")
    if left_out is not None and left_out.shape != (batch, batch):
        raise ValueError(f"left_out must be ({batch}, {batch}), got {tuple(left_out.shape)}")
    query = F.normalize(query, dim=-1)
    logits = query @ F.normalize(positive, dim=-1).T / temperature  # (batch, batch)
    if left_out is not None:
        logits = logits.masked_fill(left_out & ~torch.eye(batch, dtype=torch.bool, device=logits.device), -torch.inf)
    if negatives is not None:
        logits = torch.cat([logits, query @ F.normalize(negatives, dim=-1).T / temperature], 1)  # (batch, batch + m)
    return F.cross_entropy(logits, torch.arange(batch, device=logits.device))


def slerp_weights(cosine: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of V_i and V_j in their slerp, for the cosine of the angle between them and beta in [0, 1].

    Raises:
        ValueError: the vectors are antiparallel, so that there is no plane to turn in.
    """
    if (cosine <= NEAR - 1).any():
        raise ValueError(f"the task vectors are antiparallel (cosine {float(cosine.min()):.6f}): any plane through them would do, so slerp has none")
    parallel = cosine >= 1 - NEAR
    alpha = torch.acos(cosine.clamp(NEAR - 1, 1 - NEAR))
    left = torch.where(parallel, 1 - beta, ((1 - beta) * alpha).sin() / alpha.sin())
    right = torch.where(parallel, beta, (beta * alpha).sin() / alpha.sin())
    return left, right


def slerp(first: Tensor, second: Tensor, a_first: float | Tensor, a_second: float | Tensor) -> Tensor:
    """f(V_i, V_j, a_i, a_j) of two vectors (n,) as they are, by its definition; the fold needs no such vectors."""
    gram = torch.stack([first, second]).double()
    gram = gram @ gram.T
    left, right = fold_coefficients(gram, torch.stack([torch.as_tensor(a, dtype=torch.float64) for a in (a_first, a_second)])).unbind()
    return left.to(first.dtype) * first + right.to(second.dtype) * second


def fold_coefficients(gram: Tensor, a: Tensor) -> Tensor:
    """c(a) (N,) such that the fold of the task vectors is sum_i c_i V_i.

    Args:
        gram: (N, N), inner products of the task vectors; better in float64.
        a: (N,) weights.

    Raises:
        ValueError: a zero task vector, antiparallel vectors on the way, a negative weight, no positive weight to begin with, shapes that do not fit.
    """
    count = len(gram)
    if gram.shape != (count, count) or count < 1 or a.shape != (count,):
        raise ValueError(f"gram must be (N, N) and a (N,), got {tuple(gram.shape)} and {tuple(a.shape)}")
    if zero := (gram.diagonal() <= 0).nonzero()[:, 0].tolist():
        raise ValueError(f"task vector {zero[0]} is zero, so it has no angle to the others: was its model trained?")
    if (a < 0).any() or not a[:2].sum() > 0:
        raise ValueError(f"the weights a must be at least 0 with a positive sum of the first two, got {[round(v, 4) for v in a.tolist()]}")
    a = a.to(gram.dtype)
    unit = torch.eye(count, dtype=gram.dtype, device=gram.device)
    c = unit[0]
    for k in range(1, count):  # a fold: step k needs the direction that step k - 1 has found
        cosine = (c @ gram[:, k]) / ((c @ gram @ c) * gram[k, k]).sqrt()
        left, right = slerp_weights(cosine, a[k] / (a[:k].mean() + a[k]))
        c = left * c + right * unit[k]
    return c


class TaskSpace(nn.Module):
    """Base and task vectors, frozen, as rows of one matrix: every point of the space they span is a model.

    Args:
        base: weights theta_0 by name.
        vectors: task name to its task vector.

    Attributes:
        tasks: the names, in the order of the fold.
        gram: (N, N) float64.

    Raises:
        ValueError: no vector, names or shapes that differ, a value that is not finite.
    """

    base: Tensor
    vectors: Tensor
    gram: Tensor

    def __init__(self, base: State, vectors: Mapping[str, State]) -> None:
        super().__init__()
        rows = list(vectors.values())
        check_vectors(rows)
        apply(base, rows[0])  # names and shapes are those of the base
        self.tasks = tuple(vectors)
        self.like = {name: base[name].detach() for name in rows[0]}
        self.register_buffer("base", flatten(self.like))  # (P,)
        self.register_buffer("vectors", torch.stack([flatten({name: row[name] for name in self.like}).detach() for row in rows]))  # (N, P)
        check_finite(self.vectors, "the matrix of task vectors")
        self.register_buffer("gram", gram(rows))

    def state(self, coefficients: Tensor) -> dict[str, Tensor]:
        """theta_0 + sum_i c_i V_i by name, for ``torch.func.functional_call`` or ``load_state_dict``; differentiable in c (N,)."""
        return unflatten(self.base + coefficients.to(self.base) @ self.vectors, self.like)

    def coordinates(self, vector: State) -> tuple[Tensor, float]:
        """Where another task vector lies: coefficients (N,) of its projection onto the space, and the share of its length that is outside."""
        flat = flatten({name: vector[name] for name in self.like}).double()
        inner = self.vectors.double() @ flat
        c = torch.linalg.solve(self.gram, inner)
        length = float(flat @ flat)
        outside = 1 - float(c @ inner) / length if length else 0.0
        return c, math.sqrt(max(outside, 0.0))


class SelfPositioning(nn.Module):
    """The N + 1 scalars: a direction by the fold, and the length lambda.

    Args:
        gram: (N, N) inner products of the task vectors, in the order of the fold.
        a: where the weights start: a number for all, or one each.
        length: where lambda starts.

    Raises:
        ValueError: what :func:`fold_coefficients` says of the Gram matrix, or a start that is not positive.
    """

    gram: Tensor

    def __init__(self, gram: Tensor, *, a: float | Sequence[float] = 1.0, length: float = 1.0) -> None:
        super().__init__()
        start = torch.as_tensor(a, dtype=torch.float64).expand(len(gram))
        if not (start > 0).all():
            raise ValueError(f"the weights must start above 0, got {a}")
        self.register_buffer("gram", gram.detach().double())
        self.raw = nn.Parameter(start.expm1().log())  # the inverse of softplus
        self.length = nn.Parameter(torch.tensor(length, dtype=torch.float64))
        fold_coefficients(self.gram, self.a.detach())

    @property
    def a(self) -> Tensor:
        """(N,) positive weights: softplus of the free parameters."""
        return F.softplus(self.raw)

    @property
    def beta(self) -> Tensor:
        """(N - 1,) beta of each step of the fold."""
        a = self.a
        before = a.cumsum(0)[:-1] / torch.arange(1, len(a), dtype=a.dtype, device=a.device)
        return a[1:] / (before + a[1:])

    def coefficients(self) -> Tensor:
        """(N,) lambda c(a)."""
        return self.length * fold_coefficients(self.gram, self.a)

    def objective(self, loss: Tensor, mu: float = 0.0) -> Tensor:
        """The loss on the probe plus mu lambda. ValueError for a negative mu, which would reward length."""
        if mu < 0:
            raise ValueError(f"mu must be at least 0, got {mu}: a negative one would reward length")
        return loss + mu * self.length


def two_task_position(gram: Tensor, c: Tensor) -> tuple[float, float]:
    """Beta and lambda that give c_1 V_1 + c_2 V_2: for two tasks, slerp reaches every positive combination.

    Raises:
        ValueError: not two tasks, a negative coefficient, or both 0.
    """
    if gram.shape != (2, 2) or c.shape != (2,):
        raise ValueError(f"two tasks are wanted: gram (2, 2) and c (2,), got {tuple(gram.shape)} and {tuple(c.shape)}")
    if (c < 0).any() or not c.sum() > 0:
        raise ValueError(f"the coefficients must be at least 0 and one of them positive, got {c.tolist()}")
    alpha = math.radians(float(angles(gram)[0, 1]))
    first, second = c.tolist()
    if alpha < math.acos(1 - NEAR):  # parallel: a line
        return second / (first + second), first + second
    turned = math.atan2(second * math.sin(alpha), first + second * math.cos(alpha))  # beta alpha
    left, right = math.sin(alpha - turned), math.sin(turned)
    return min(turned / alpha, 1.0), math.sin(alpha) * (first + second) / (left + right)  # rounding must not turn beyond the second vector


def check_probe(pairs: Mapping[str, int], tasks: Sequence[str], *, batch: int) -> None:
    """Look at a probe set before the search.

    Args:
        pairs: number of probe pairs by task.
        tasks: the tasks whose vectors are merged.
        batch: pairs a batch.

    Raises:
        ValueError: no pairs, or batches of fewer than two.

    Warns:
        UserWarning: a task is not in the probe set; the search then walks away from it.
    """
    if batch < 2:
        raise ValueError(f"a probe batch needs at least 2 pairs, got {batch}: without a negative InfoNCE is 0 and has no gradient")
    if short := [task for task, number in pairs.items() if 0 < number < 2]:
        raise ValueError(f"the probe set of task {short[0]!r} needs at least 2 pairs, got {pairs[short[0]]}")
    missing = [task for task in tasks if not pairs.get(task)]
    if len(missing) == len(tasks):
        raise ValueError(f"the probe set has no pairs of {', '.join(map(repr, tasks))}")
    if missing:
        warnings.warn(f"the probe set has no pairs of task {missing[0]!r}: the search will walk away from it", stacklevel=2)


def angles(gram: Tensor) -> Tensor:
    """(N, N) angles between task vectors, in degrees."""
    norm = gram.diagonal().sqrt()
    return torch.rad2deg(torch.acos((gram / norm / norm[:, None]).clamp(-1, 1)))


def line_fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Least squares y = intercept + slope x: intercept, slope and the coefficient of determination R2. ValueError for fewer than three points."""
    if len(x) != len(y) or len(set(x)) < 3:
        raise ValueError(f"a line needs as many y as x and at least 3 different x, got {len(x)} and {len(y)}")
    slope, intercept = statistics.linear_regression(x, y)
    return intercept, slope, explained(y, [intercept + slope * value for value in x])


def explained(y: Sequence[float], said: Sequence[float]) -> float:
    """The coefficient of determination R2 of predictions; 1 where y does not vary and is met."""
    mean = statistics.fmean(y)
    spread = math.fsum((value - mean) ** 2 for value in y)
    missed = math.fsum((value - guess) ** 2 for value, guess in zip(y, said, strict=True))
    return 1 - missed / spread if spread else float(missed < 1e-12)


def power_law(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Power law y = factor x^exponent, fitted on logarithms: factor, exponent, R2 of y itself. ValueError where a value is not positive."""
    if min(*x, *y) <= 0:
        raise ValueError("a power law needs positive x and y")
    intercept, exponent, _ = line_fit([math.log(v) for v in x], [math.log(v) for v in y])
    factor = math.exp(intercept)
    return factor, exponent, explained(y, [factor * value**exponent for value in x])
