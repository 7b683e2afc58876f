"""From a bank and a task to a prior: similarity to the bank's tasks, neighbours, their best designs.

    transfer = transferred_prior(shipped_bank(), data)      # data: a torch_geometric Data of yours; about a second
    print(transfer)                                         # the neighbours, and the prior of every dimension
    search(scores, SPACE, TPE(), prior=transfer.prior)

``AS_PUBLISHED`` is the paper's recipe, ``PUBLISHED_CODE`` that of the published program with its slips.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch_geometric.data import Data

from mtlearn.datasets.graph_tasks import plain_statistics
from mtlearn.graphs.autotransfer.bank import Bank, checked_task
from mtlearn.graphs.autotransfer.method import (
    DesignSpace,
    Projection,
    design_distribution,
    design_prior,
    draw_triples,
    kendall,
    normalised_features,
    task_feature,
    triple_loss,
)
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import stream

Flaw = Literal["gradients add up", "shifted index", "repeated members"]
FLAWS: tuple[Flaw, ...] = ("gradients add up", "shifted index", "repeated members")


@dataclass(frozen=True)
class Recipe:
    """How features become a prior.

    Attributes:
        log: take logarithms and standardise over the bank before the features are made as long as 1.
        project: train the projection; without it the cosine of the features themselves is the similarity.
        steps, learning_rate, decay, triples, margin: of the projection's training.
        k, best, floor, smoothing: of the prior, see :func:`design_prior` and :func:`design_distribution`.
        best_by: which score says what the best designs of a bank's task are.
        flaws: slips of the published program to repeat: its projection never clears the gradients; with a task held out, it looks tau up in the
            full matrix by positions in the reduced one, so that from the gap on every index is off by one; and its triples may have a = i.
    """

    log: bool = True
    project: bool = True
    steps: int = 400
    learning_rate: float = 3e-3
    decay: float = 5e-3
    triples: int = 128
    margin: float = 0.1
    k: int = 3
    best: int = 16
    floor: float = 0.01
    smoothing: float = 0.1
    best_by: Literal["validation", "test"] = "validation"
    flaws: tuple[Flaw, ...] = ()


AS_PUBLISHED = Recipe(log=False, steps=1001, learning_rate=1e-4)
PUBLISHED_CODE = replace(AS_PUBLISHED, floor=1e-3, smoothing=0.0, best_by="test", flaws=FLAWS)


def similarities(features: Tensor, held_out: Tensor, tau: Tensor, recipe: Recipe, *, seed: int = 0) -> Tensor:
    """Similarity of tasks to the tasks of banks that do not hold them, all banks at once: (banks, tasks).

    Args:
        features: (banks, tasks, anchors) of the tasks in each bank, positive where ``recipe.log``.
        held_out: (banks, anchors) the new task of each bank.
        tau: (banks, tasks, tasks) Kendall's tau inside each bank.
        recipe: how.
        seed: of the projection's weights and triples.
    """
    return similarity_of(embedded(features, held_out, tau, recipe, seed=seed))


def embedded(features: Tensor, held_out: Tensor, tau: Tensor, recipe: Recipe, *, seed: int = 0) -> Tensor:
    """The embeddings that :func:`similarities` compares: (banks, tasks + 1, width) of length 1, the new task last."""
    if features.shape[1] < 3:
        raise ValueError(f"a bank needs at least 3 tasks to compare a new one with, got {features.shape[1]}")
    both = torch.cat([features, held_out[:, None]], 1)
    points = torch.stack([normalised_features(one, bank, log=recipe.log) for one, bank in zip(both, features, strict=True)]).float()
    return projected(points, tau, recipe, seed=seed) if recipe.project else points


def similarity_of(points: Tensor) -> Tensor:
    """Cosine of the last task to the others: (..., tasks + 1, width) to (..., tasks) float64."""
    return (points[..., :-1, :] @ points[..., -1, :, None])[..., 0].double()


def projected(points: Tensor, tau: Tensor, recipe: Recipe, *, seed: int = 0) -> Tensor:
    """Train a projection for each bank on all but its last point, and apply it to all: (banks, tasks + 1, anchors) to (banks, tasks + 1, 16)."""
    draws = stream(seed, "triples")
    projection = Projection(points.shape[-1], copies=len(points), generator=stream(seed, "projection"))
    if "gradients add up" in recipe.flaws:
        for parameter in projection.parameters():
            _never_clear(parameter)

    def loss_at(step: int) -> Tensor:
        triples = draw_triples(tau, recipe.triples, repeats="repeated members" in recipe.flaws, generator=draws)
        return triple_loss(projection(points[:, :-1]), triples, margin=recipe.margin)

    optimizer = torch.optim.Adam(projection.parameters(), lr=recipe.learning_rate, weight_decay=recipe.decay)
    fit(projection, loss_at, steps=recipe.steps, optimizer=optimizer)
    with torch.no_grad():
        embedding: Tensor = projection(points)
    return embedding


def _never_clear(parameter: Tensor) -> None:
    """Make every backward pass give the sum of all gradients so far."""
    total = torch.zeros_like(parameter)
    parameter.register_hook(lambda gradient: total.add_(gradient).clone())  # type: ignore[no-untyped-call]


def others(matrix: Tensor) -> Tensor:
    """Rows of all tasks but one, for each task that is left out: (tasks, ...) to (tasks, tasks - 1, ...)."""
    count = len(matrix)
    return matrix[_left(count)]


def _left(count: int) -> Tensor:
    return torch.stack([torch.cat([torch.arange(place), torch.arange(place + 1, count)]) for place in range(count)])


def leave_one_out(features: Tensor, tau: Tensor, recipe: Recipe, *, seed: int = 0) -> Tensor:
    """Similarity of every task to all others by projections that never saw it: (tasks, tasks - 1), row t without column t.

    Args:
        features: (tasks, anchors).
        tau: (tasks, tasks) Kendall's tau of all.
        recipe: how.
        seed: of the projections.
    """
    return similarity_of(leave_one_out_embeddings(features, tau, recipe, seed=seed))


def leave_one_out_embeddings(features: Tensor, tau: Tensor, recipe: Recipe, *, seed: int = 0) -> Tensor:
    """The embeddings behind :func:`leave_one_out`: (tasks, tasks, width), in row t all tasks but t in their order, then t."""
    left = _left(len(features))
    inside = tau[left[:, :, None], left[:, None, :]]
    if "shifted index" in recipe.flaws:
        inside = tau[:-1, :-1].expand(len(left), -1, -1)
    return embedded(features[left], features, inside, recipe, seed=seed)


def leave_one_out_priors(scores: Tensor, similarity: Tensor, space: DesignSpace, recipe: Recipe) -> Tensor:
    """The prior of every task from all others: (tasks, options).

    Args:
        scores: (tasks, designs) that say which designs are best.
        similarity: (tasks, tasks - 1), as :func:`leave_one_out` gives it.
        space: the designs.
        recipe: k, best, floor and smoothing.
    """
    distributions = others(design_distribution(scores, space, best=recipe.best))
    return torch.stack(
        [
            design_prior(those, near, space, k=recipe.k, floor=recipe.floor, smoothing=recipe.smoothing)
            for those, near in zip(distributions, similarity, strict=True)
        ]
    )


@dataclass(frozen=True)
class Transfer:
    """What the bank says of a new task; ``print`` shows it.

    Attributes:
        tasks: of the bank, the most similar first.
        similarity: (tasks,) their cosines.
        k: how many of them make the prior.
        prior: (options,).
        space: the designs.
    """

    tasks: tuple[str, ...]
    similarity: Tensor
    k: int
    prior: Tensor
    space: DesignSpace

    def best_designs(self, count: int = 3) -> list[dict[str, object]]:
        """The designs that the prior makes likeliest."""
        return [self.space.designs[place] for place in self.space.joint(self.prior).argsort(descending=True, stable=True)[:count].tolist()]

    def __str__(self) -> str:
        near = ", ".join(f"{name} ({cosine:.2f})" for name, cosine in zip(self.tasks[: self.k], self.similarity.tolist(), strict=False))
        lines = [f"nearest tasks   {near}"]
        for name, options in self.space.by_dimension(self.prior).items():
            lines.append(f"{name:<15} " + "  ".join(f"{option}: {100 * share:3.0f} %" for option, share in options.items()))
        return "\n".join(lines)


def transferred_prior(
    bank: Bank, data: Data, recipe: Recipe = Recipe(), *, seed: int = 0, directed: bool = False, allow_self: bool = False
) -> Transfer:
    """Embed a new task and make its prior from the bank; nothing is trained in full.

    Args:
        bank: with features of the embedding seed.
        data: a ``Data`` with labels of nodes or a ``Batch`` with labels of graphs; split 40/40/20 where it has no masks.
        recipe: how.
        seed: of the embedding and the projection.
        directed: whether edges have a direction.
        allow_self: whether the bank may hold the task already.

    Raises:
        ValueError: the task is not fit (:meth:`GraphTask.of`), the bank holds it already, the bank is too small for k or for a projection.
    """
    _check_size(bank, recipe)
    task = checked_task(data, directed=directed)
    if not allow_self:
        same = torch.isclose(bank.statistics, plain_statistics(data), rtol=0, atol=1e-5).all(1)
        if same.any():
            name = bank.tasks[int(same.int().argmax())]
            raise ValueError(
                f"the bank holds this task already, as {name!r} (same nodes, edges and labels): its scores would answer the question. "
                f"Take bank.without({name!r}), or allow_self=True"
            )
    return prior_of(bank, task_feature(task, bank.making.features, seed=seed), recipe, seed=seed)


def prior_of(bank: Bank, feature: Tensor, recipe: Recipe = Recipe(), *, seed: int = 0) -> Transfer:
    """The prior of a task whose feature (anchors,) is known."""
    _check_size(bank, recipe)
    tau = kendall(bank.validation, bank.tasks)
    similarity = similarities(bank.features(seed)[None], feature[None], tau[None], recipe, seed=seed)[0]
    return from_similarity(bank, similarity, recipe)


def from_similarity(bank: Bank, similarity: Tensor, recipe: Recipe = Recipe()) -> Transfer:
    """The prior of a task whose similarity to each of the bank's tasks (tasks,) is known."""
    scores = bank.validation if recipe.best_by == "validation" else bank.test
    distributions = design_distribution(scores, bank.space, best=recipe.best)
    prior = design_prior(distributions, similarity, bank.space, k=recipe.k, floor=recipe.floor, smoothing=recipe.smoothing)
    order = similarity.argsort(descending=True, stable=True)
    return Transfer(tuple(bank.tasks[place] for place in order.tolist()), similarity[order], recipe.k, prior, bank.space)


def _check_size(bank: Bank, recipe: Recipe) -> None:
    if len(bank.tasks) < 3:
        raise ValueError(f"a bank needs at least 3 tasks to compare a new one with, this one has {len(bank.tasks)}")
    if not 1 <= recipe.k <= len(bank.tasks):
        raise ValueError(f"k must be between 1 and the {len(bank.tasks)} tasks of the bank, got {recipe.k}")
