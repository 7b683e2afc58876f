r"""MMTEB: Massive Multilingual Text Embedding Benchmark (Enevoldsen, Chung, Kerboua, Kardos and others, ICLR 2025, arXiv:2502.13595).

The idea: collect very many tasks for text embeddings, then make the collection cheap in two ways that leave the ranking of models as it is. Make
each task smaller (hard negatives instead of a whole corpus, a sample instead of a whole clustering), and drop tasks that the others already predict.

**Which tasks can go** (section 3.3 of the paper, ``task_selection.py`` of the code). Given scores :math:`R` (m models, n tasks), each column
:math:`t` is predicted for each model :math:`i` by linear regression on the other columns, fitted on the other models:

.. math:: \hat R_{it} = \bar R_{-i,t} + (R_{i,-t} - \bar R_{-i,-t})\, X^{+} y, \qquad X = R_{-i,-t} - \bar R_{-i,-t},\; y = R_{-i,t} - \bar R_{-i,t}

with the pseudo-inverse :math:`X^+`, so that with fewer models than tasks the least-squares solution of smallest norm is taken. A task goes when the
Spearman correlation of predicted and observed scores is at least ``threshold`` and the mean squared error, both standardised by the *observed* mean
and deviation, at most ``most_error``; best predicted first, one at a time, and never the last task of its group (its type, or type and language).

**Hard negatives.** A query's documents are the best ``depth`` of several retrievers, and every relevant one (:func:`hard_pool`).

**Clustering.** A sample is embedded; then, ten times, as many items are drawn from it with replacement, clustered by mini-batch k-means and judged by
the V-measure (:func:`bootstrap_v_measure`).

**One order of models.** Each task is a voter and gives a model one point for each other model that it beats, half a point for a tie
(:func:`borda`); a mean over tasks and a mean over types of tasks stand beside it (:func:`mean_scores`).

What differs. The published function fits one regression for each model and task; where there are more models than tasks its left-out predictions
follow from one fit a task, :math:`y_i - \hat y^{(-i)}_i = (y_i - \hat y_i) / (1 - h_{ii})`, and that is how they are computed here. Where there
are about as many tasks as models this regression interpolates and its predictions explode, whatever the tasks have in common: a selection then stops
there. A penalty (``ridge``) takes the peak away; it is ours. The rule
of removal is that of the notebook for MTEB(eng, v2), written as one function.
"""

import warnings
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import v_measure_score
from torch import Tensor

FLAT = 1e-12  # a column that varies less than this share of its size is constant


# which tasks the others predict


def check_scores(scores: Tensor, *, tasks: Sequence[str] = (), models: Sequence[str] = (), least: tuple[int, int] = (3, 2)) -> None:
    """Raise ValueError where a score matrix (m models, n tasks) cannot be used: too small, NaN (naming the tasks), or two models of one name."""
    if scores.dim() != 2 or len(scores) < least[0] or scores.shape[1] < least[1]:
        raise ValueError(f"scores must be (models, tasks) with at least {least[0]} models and {least[1]} tasks, got {tuple(scores.shape)}")
    if (tasks and len(tasks) != scores.shape[1]) or (models and len(models) != len(scores)):
        raise ValueError(f"scores are {tuple(scores.shape)}, but {len(models)} models and {len(tasks)} tasks are named")
    if twice := sorted({name for name in models if list(models).count(name) > 1}):
        raise ValueError(f"models must have different names; {twice[0]!r} is there more than once")
    bad = ~scores.isfinite().all(0)
    if bad.any():
        which = [tasks[i] if tasks else str(i) for i in torch.nonzero(bad)[:, 0].tolist()]
        raise ValueError(
            f"{len(which)} tasks have missing or infinite scores: {', '.join(which[:5])}{' ...' if len(which) > 5 else ''}; drop them first"
        )


def complete(scores: Tensor) -> Tensor:
    """Indices of the tasks that have every score, the columns with which a selection can be made."""
    return torch.nonzero(scores.isfinite().all(0))[:, 0]


def predict_left_out(scores: Tensor, *, ridge: float = 0.0) -> Tensor:
    """Each score predicted from the model's other scores by a regression fitted on the other models, (m, n) float64.

    Args:
        scores: (m, n).
        ridge: penalty of the squared weights, in units of the mean variance of the models; 0 is the paper's regression, which breaks down where
            there are about as many tasks as models.

    Raises:
        ValueError: fewer than 3 models or 2 tasks, scores that are not finite, or a penalty below 0.
    """
    check_scores(scores)
    if not ridge >= 0:
        raise ValueError(f"ridge must be 0 or more, got {ridge}")
    scores = scores.double()
    models, tasks = scores.shape
    centred = scores - scores.mean(0)
    found = torch.empty_like(scores)
    exact = ~torch.ones(tasks, dtype=torch.bool)  # tasks whose predictions are there already
    if not ridge and tasks > models:
        found, exact = _left_out_interpolated(centred, scores)
    for task in torch.nonzero(~exact)[:, 0].tolist():
        others = torch.cat([centred[:, :task], centred[:, task + 1 :]], 1)
        y = scores[:, task]
        if ridge:
            gram = others @ others.T
            fit = torch.linalg.solve(gram + ridge * float(gram.diagonal().mean()) * torch.eye(models, dtype=torch.float64), gram)
        else:
            fit = others @ torch.linalg.pinv(others)  # onto the space of the columns
        leverage = fit.diagonal() + 1 / models
        if (ridge or models > tasks) and float(leverage.max()) < 1 - 1e-9:  # then leaving a model out takes no direction away
            found[:, task] = y - (y - y.mean() - fit @ (y - y.mean())) / (1 - leverage)
        else:
            found[:, task] = _left_out_one_by_one(others, y)
    return found


def _left_out_interpolated(centred: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    r"""More tasks than models: every fit is exact, and all predictions follow from one inverse a task: (m, n), and for which tasks (n,) it is sure.

    The shortest weights that fit solve :math:`K a + b 1 = y,\\; 1^T a = 0` with :math:`K = X X^T`; without row i the residual there is
    :math:`a_i / (B^{-1})_{ii}`, :math:`B` being that system's matrix.
    """
    models = len(scores)
    gram = centred @ centred.T - centred.T[:, :, None] * centred.T[:, None, :]  # (n, m, m), each without its own task
    values = torch.linalg.eigvalsh(gram)
    sure = values[:, 1] > 1e-10 * values[:, -1]  # the first is 0: rows are centred
    bordered = torch.zeros(len(gram), models + 1, models + 1, dtype=torch.float64)
    bordered[:, :models, :models] = gram / values[:, -1, None, None].clamp(min=1e-300)
    bordered[:, :models, models] = bordered[:, models, :models] = 1.0
    bordered[~sure] = torch.eye(models + 1, dtype=torch.float64)
    inverse = torch.linalg.inv(bordered)[:, :models, :models]
    residual = (inverse @ scores.T[:, :, None])[..., 0] / inverse.diagonal(dim1=1, dim2=2)
    return scores - residual.T, sure


def _left_out_one_by_one(others: Tensor, y: Tensor) -> Tensor:
    """Predictions (m,) by m regressions at once."""
    models = len(y)
    kept = ~torch.eye(models, dtype=torch.bool)
    rest = torch.stack([others[row] for row in kept])  # (m, m - 1, n - 1)
    target = torch.stack([y[row] for row in kept])
    mean, middle = rest.mean(1), target.mean(1)
    weights = torch.linalg.pinv(rest - mean[:, None]) @ (target - middle[:, None])[..., None]
    found: Tensor = middle + ((others - mean) * weights[..., 0]).sum(1)
    return found


@dataclass(frozen=True)
class Predictability:
    """How well each of n tasks is predicted: Spearman and Pearson correlation (n,), and the mean squared error of standardised scores (n,).

    A constant task has NaN correlations and an infinite error.
    """

    spearman: Tensor
    pearson: Tensor
    error: Tensor


def predictability(scores: Tensor, *, ridge: float = 0.0) -> Predictability:
    """How well each task is predicted by the others. Arguments and errors as for :func:`predict_left_out`."""
    predicted, scores = predict_left_out(scores, ridge=ridge), scores.double()
    deviation = scores.std(0, correction=0)
    flat = deviation <= FLAT * scores.abs().amax(0).clamp(min=FLAT)
    error = ((predicted - scores) / deviation).square().mean(0)
    error[flat] = torch.inf
    return Predictability(_nan_where(flat, spearman(predicted, scores)), _nan_where(flat, _pearson(predicted, scores)), error)


def _nan_where(flat: Tensor, values: Tensor) -> Tensor:
    return values.masked_fill(flat, torch.nan)


def spearman(one: Tensor, other: Tensor) -> Tensor:
    """Rank correlation of columns, (n,) float64, or of two vectors, a scalar; equal values share their mean rank, NaN for a constant."""
    return _pearson(_ranks(one), _ranks(other))


def _ranks(values: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(rankdata(values.double().numpy(), axis=0)))


def _pearson(one: Tensor, other: Tensor) -> Tensor:
    one, other = one - one.mean(0), other - other.mean(0)
    scale = one.square().sum(0) * other.square().sum(0)
    return (one * other).sum(0) / scale.sqrt()


@dataclass(frozen=True)
class Removal:
    """A task that was dropped, how well the others predicted it then, and the Spearman correlation of every task at that moment.

    Attributes:
        task: its column.
        spearman, error: of its prediction.
    """

    task: int
    spearman: float
    error: float


@dataclass(frozen=True)
class Selection:
    """What is left of a collection.

    Attributes:
        kept: columns that stay, in their order.
        removed: what went, first to last.
    """

    kept: tuple[int, ...]
    removed: tuple[Removal, ...]

    def at(self, count: int) -> tuple[int, ...]:
        """The columns that were left after the first ``count`` removals."""
        if not 0 <= count <= len(self.removed):
            raise ValueError(f"count must be between 0 and {len(self.removed)}, the number of removals, got {count}")
        return tuple(sorted((*self.kept, *(removal.task for removal in self.removed[count:]))))


def select_tasks(
    scores: Tensor,
    groups: Sequence[Collection[Hashable]] | None = None,
    *,
    threshold: float = 0.95,
    most_error: float = 0.2,
    keep: Collection[int] = (),
    ridge: float = 0.0,
) -> Selection:
    """Drop the tasks that the others predict, one at a time (section 3.3).

    Args:
        scores: (m models, n tasks), all finite.
        groups: of each task what must stay represented, such as ``{"Retrieval"}``, or ``{("Retrieval", "fin")}`` where languages count; nothing
            need stay when omitted, but for one task.
        threshold: Spearman correlation from which a task is predictable (0.95 for MTEB(eng, v2), 0.8 for the European one).
        most_error: largest standardised error of a predictable task.
        keep: columns that stay whatever happens, for their known quality.
        ridge: of the regression, see :func:`predict_left_out`.

    Raises:
        ValueError: scores that cannot be used, a task without a group, or columns to keep that are not there.
    """
    check_scores(scores)
    tasks = scores.shape[1]
    if groups is not None and len(groups) != tasks:
        raise ValueError(f"{tasks} tasks need as many groups, got {len(groups)}")
    if groups is not None and (lone := [i for i, group in enumerate(groups) if not group]):
        raise ValueError(f"task {lone[0]} has no type; give each task at least one group, or no groups at all")
    if outside := sorted(set(keep) - set(range(tasks))):
        raise ValueError(f"keep must be columns 0 to {tasks - 1}, got {outside[0]}")
    left = list(range(tasks))
    removed: list[Removal] = []
    while len(left) > 2:
        found = predictability(scores[:, left], ridge=ridge)
        if not removed and found.spearman.isnan().any():
            flat = [left[i] for i in torch.nonzero(found.spearman.isnan())[:, 0].tolist()]
            warnings.warn(f"tasks {flat} have one score for all models: no correlation is defined and they are kept", stacklevel=2)
        chosen = None
        for place in torch.argsort(found.spearman.nan_to_num(-torch.inf), descending=True, stable=True).tolist():
            value, error = float(found.spearman[place]), float(found.error[place])
            if not value >= threshold:  # also where it is NaN
                break
            if error <= most_error and left[place] not in keep and _represented(left, left[place], groups):
                chosen = Removal(left[place], value, error)
                break
        if chosen is None:
            break
        left.remove(chosen.task)
        removed.append(chosen)
    return Selection(tuple(left), tuple(removed))


def _represented(left: Sequence[int], task: int, groups: Sequence[Collection[Hashable]] | None) -> bool:
    """Whether each group of a task has another task."""
    if groups is None:
        return True
    others = {group for other in left if other != task for group in groups[other]}
    return set(groups[task]) <= others


def random_subsets(scores: Tensor, size: int, reference: Tensor, *, draws: int = 200, generator: torch.Generator | None = None) -> Tensor:
    """Spearman correlation of the mean over ``size`` random tasks with a reference order, (draws,): what any selection must be held against.

    Args:
        scores: (m, n).
        size: tasks of a subset, 1 to n.
        reference: (m,) what the models are ranked by.
        draws: subsets.
        generator: of the draws.
    """
    check_scores(scores)
    if not 1 <= size <= scores.shape[1] or draws < 1:
        raise ValueError(f"size must be between 1 and the {scores.shape[1]} tasks and draws at least 1, got {size} and {draws}")
    chosen = torch.rand(draws, scores.shape[1], generator=generator).argsort(1)[:, :size]
    means = scores.double()[:, chosen].mean(2)  # (m, draws)
    return spearman(means, reference.double()[:, None].expand_as(means))


# one number a model


def borda(scores: Tensor) -> Tensor:
    """Points (m,) of each model: over the tasks, models beaten, and half of those tied; a missing score (NaN) gives none, to itself.

    m (m - 1) / 2 points go to each task without a missing score. Raises ValueError for fewer than 2 models or no task.
    """
    if scores.dim() != 2 or len(scores) < 2 or scores.shape[1] == 0:
        raise ValueError(f"scores must be (models, tasks) with at least 2 models and a task, got {tuple(scores.shape)}")
    missing = scores.isnan()
    filled = scores.double().masked_fill(missing, -torch.inf)
    points = _ranks(filled) - 1  # the worst gets 0
    return points.masked_fill(missing, 0).sum(1)


def places(values: Tensor) -> Tensor:
    """Place (m,) of each model, 1 for the largest; equal ones share the better place."""
    return torch.from_numpy(np.asarray(rankdata(-values.double().numpy(), method="min")))


def type_means(scores: Tensor, types: Sequence[str]) -> dict[str, Tensor]:
    """Mean (m,) over the tasks of each type, in the order in which types first occur. ValueError: not as many types as tasks."""
    if len(types) != scores.shape[1]:
        raise ValueError(f"{scores.shape[1]} tasks need as many types, got {len(types)}")
    return {name: scores[:, [i for i, kind in enumerate(types) if kind == name]].mean(1) for name in dict.fromkeys(types)}


def mean_scores(scores: Tensor, types: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Mean over tasks (m,), and mean over the means of types (m,): the second does not let a type win by its number of tasks."""
    return scores.mean(1), torch.stack(list(type_means(scores, types).values()), 1).mean(1)


# smaller tasks


def hard_pool(rankings: Sequence[Tensor], relevance: Tensor, depth: int = 250, *, union: bool = False) -> Tensor:
    """Which documents each query keeps, bool (q, n): the best ``depth`` of each retriever, and every relevant document.

    Args:
        rankings: scores (q, n) of some retrievers; the paper takes three, BM25 and two embedders of different size.
        relevance: (q, n), above 0 where a document is relevant.
        depth: documents of one retriever, 1 or more; all where there are fewer.
        union: one corpus for all queries, of what any of them keeps, as the paper's data sets are; otherwise a pool for each query.

    Raises:
        ValueError: no retriever, shapes that do not fit, a depth below 1, or a query without a relevant document.
    """
    if depth < 1 or not rankings:
        raise ValueError(f"at least one ranking and a depth of at least 1 are needed, got {len(rankings)} and {depth}")
    for ranking in rankings:
        if ranking.shape != relevance.shape or ranking.dim() != 2:
            raise ValueError(f"rankings and relevance must be (queries, documents), got {tuple(ranking.shape)} and {tuple(relevance.shape)}")
    _check_relevance(relevance)
    kept = relevance > 0
    for ranking in rankings:
        best = ranking.topk(min(depth, ranking.shape[1]), 1).indices
        kept = kept.scatter(1, best, torch.ones_like(best, dtype=torch.bool))
    return kept.any(0).expand_as(kept).clone() if union else kept


def random_pool(relevance: Tensor, sizes: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """As many documents a query as ``sizes`` (q,) says, every relevant one among them, the others drawn at random: bool (q, n)."""
    _check_relevance(relevance)
    order = torch.rand(relevance.shape, generator=generator).masked_fill(relevance > 0, 2.0).argsort(1, descending=True)
    taken = torch.arange(relevance.shape[1]) < sizes.clamp(min=0)[:, None]
    return torch.zeros_like(taken).scatter(1, order, taken) | (relevance > 0)


def _check_relevance(relevance: Tensor) -> None:
    lost = ~(relevance > 0).any(1)
    if lost.any():
        raise ValueError(f"every query needs a relevant document; query {int(lost.nonzero()[0, 0])} has none ({int(lost.sum())} of {len(lost)})")


def within(scores: Tensor, pool: Tensor) -> Tensor:
    """Scores with what is outside the pool below everything inside: a ranking of the pool alone."""
    return scores.masked_fill(~pool, float(scores.min()) - 1)


def bootstrap_v_measure(
    vectors: Tensor,
    labels: Sequence[Hashable],
    *,
    fraction: float = 0.04,
    draws: int = 10,
    most: int = 16384,
    embed: Callable[[list[int]], Tensor] | None = None,
    seed: int = 0,
) -> Tensor:
    """V-measures (draws,) of clusterings of samples (section 3.2 and ``AbsTaskClusteringFast`` of the code).

    Args:
        vectors: (n, d) of all items; or (0, d) with ``embed``, which is then asked for the sampled items alone: that is what is saved.
        labels: n labels.
        fraction: of the items that are embedded, above 0 and at most 1; drawn without replacement, at least one.
        draws: samples with replacement of the embedded items, as large as these, or ``most``.
        most: items of one clustering.
        embed: indices to their vectors.
        seed: of all draws and of k-means.

    Returns:
        with a fraction of 1 and ``draws`` of 0 the one classical score, of all items once.

    Raises:
        ValueError: a fraction outside (0, 1], as many vectors and labels not being there, or fewer than two labels in what was drawn.
    """
    if not 0 < fraction <= 1 or draws < 0 or most < 2:
        raise ValueError(f"fraction must be above 0 and at most 1, draws 0 or more and most at least 2, got {fraction}, {draws} and {most}")
    if embed is None and len(vectors) != len(labels):
        raise ValueError(f"as many vectors as labels are needed, got {len(vectors)} and {len(labels)}")
    draw = np.random.default_rng(seed)
    items = np.sort(draw.permutation(len(labels))[: max(1, int(fraction * len(labels)))])
    sample = (embed(items.tolist()) if embed is not None else vectors[torch.from_numpy(items)]).double().numpy()
    names = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    truth = np.array([names[labels[i]] for i in items.tolist()])
    size = min(len(items), most)
    rows = [draw.integers(len(items), size=size) for _ in range(draws)] or [np.arange(len(items))]
    return torch.tensor([_v_measure(sample[row], truth[row], seed + i) for i, row in enumerate(rows)], dtype=torch.float64)


def _v_measure(vectors: np.ndarray, truth: np.ndarray, seed: int) -> float:
    clusters = len(np.unique(truth))
    if clusters < 2:
        raise ValueError("the items that were drawn have one label only; draw a larger fraction")
    found = MiniBatchKMeans(n_clusters=clusters, n_init=1, batch_size=512, random_state=seed).fit_predict(vectors)
    return float(v_measure_score(truth, found))
