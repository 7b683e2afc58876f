r"""AutoTransfer: start the architecture search of a new task from what was best on similar tasks.

Kaidi Cao, Jiaxuan You, Jiaju Liu, Jure Leskovec, "AutoTransfer: AutoML with Knowledge Transfer -- An Application to Graph Neural Networks", ICLR
2023, arXiv:2303.07669.

**Idea.** A bank remembers how every design did on a number of tasks. For a new task a few *untrained* networks, the anchors, tell in a second which
tasks of the bank it resembles: their message-passing weights stay random, only the last linear layer is fitted, and the Fisher information
of the weights says how the task would pull at them. The best designs of the most similar tasks, counted choice by choice, are the prior from which
any search draws.

**Task feature.** For anchor m with random weights w and a fitted head, labels drawn from the network's own prediction, batches b of the
validation items,

.. math::
    F_j = \textstyle\sum_b (\partial \ell_b / \partial w_j)^2, \qquad a_m = \mathrm{mean}_j(F_j^2) / \mathrm{mean}_j(F_j)^2 \ge 1

over the weights of the message passing alone. a is 1 where all weights matter alike and grows as few of them carry everything; it does not change
when F is scaled. The mean over initialisations gives v_T, one number an anchor (:func:`task_feature`).

**Projection.** A small network g, trained on the bank's tasks, makes the cosine of two tasks follow tau, Kendall's correlation of their scores
over all designs: on triples with tau(a, i) > tau(a, j) it minimises :math:`\max(0,\ 0.1 - g_a \cdot g_i + g_a \cdot g_j)`
(:class:`Projection`, :func:`draw_triples`, :func:`triple_loss`).

**Prior.** P_k is the frequency of each option among the 16 best designs of task k, each dimension by itself. With d_k = 1 - cos of the new task
and k,

.. math::
    P_{new}(c) \propto \textstyle\sum_{k \in top K} P_k(c) / d_k

(:func:`design_distribution`, :func:`design_prior`; the searches that take it are in ``search.py``, the bank in ``bank.py``).

**What differs from the paper.** The logarithm of v_T is taken and standardised over the bank before it is normalised: raw values run from 1 to
hundreds, and what distinguishes tasks is lost when such vectors get length 1 (``log=False`` is the paper's way). BN sees all nodes, not those of one
split. d_k has a floor, the prior is mixed with a little of the uniform one, designs that tie for the last of the 16 places share it, and "best"
means best on validation (the published code reads the test score). The anchors are 2 and 4 layers of width 16 with skip sum; ``PAPER_ANCHORS``
are of the paper's size. On a task whose nodes all have the same input, the mean and the maximum over neighbours are the same number everywhere,
BN makes 0 of it, and no gradient reaches the weights: F is 0 and a is 0/0. A program that does not look takes the ratio of rounding errors, which
comes out large; here such an F is exactly 0 and a is n, its largest value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.graphs.autotransfer.gnn import AGGREGATIONS, SKIPS, Architecture, GraphTask, Weights, head_input, initial_weights, logits


@dataclass(frozen=True)
class DesignSpace:
    """Every combination of a few options in each dimension.

    Probabilities over a space are one tensor (options,): those of all dimensions side by side, each dimension summing to 1.

    Attributes:
        dimensions: name and options of each.
    """

    dimensions: tuple[tuple[str, tuple[Any, ...]], ...]

    def __post_init__(self) -> None:
        for name, options in self.dimensions:
            if not options or len(set(options)) < len(options):
                raise ValueError(f"dimension {name!r} needs options that differ, got {options}")

    @cached_property
    def designs(self) -> tuple[dict[str, Any], ...]:
        """All designs, the last dimension changing fastest."""
        names = [name for name, _ in self.dimensions]
        return tuple(dict(zip(names, choice, strict=True)) for choice in product(*(options for _, options in self.dimensions)))

    @cached_property
    def sizes(self) -> list[int]:
        """How many options each dimension has."""
        return [len(options) for _, options in self.dimensions]

    @cached_property
    def options(self) -> Tensor:
        """The column of each design's option among all options: (designs, dimensions) int64."""
        starts = [sum(self.sizes[:place]) for place in range(len(self.sizes))]
        return torch.cartesian_prod(*(start + torch.arange(size) for start, size in zip(starts, self.sizes, strict=True))).view(-1, len(self.sizes))

    @cached_property
    def indicator(self) -> Tensor:
        """1 where a design has an option: (designs, options) float64."""
        return torch.zeros(len(self.options), sum(self.sizes), dtype=torch.float64).scatter(1, self.options, 1.0)

    @property
    def uniform(self) -> Tensor:
        """The same probability for every option of a dimension: (options,) float64."""
        return torch.cat([torch.full((size,), 1 / size, dtype=torch.float64) for size in self.sizes])

    def number(self, design: Mapping[str, Any]) -> int:
        """Its place among the designs. ValueError names the dimension and the option that are not in the space."""
        if missing := [name for name, _ in self.dimensions if name not in design]:
            raise ValueError(f"the design {dict(design)} lacks the dimension {missing[0]!r}")
        place = 0
        for name, options in self.dimensions:
            if design[name] not in options:
                raise ValueError(f"{name} must be one of {', '.join(map(str, options))}, got {design[name]!r}")
            place = place * len(options) + options.index(design[name])
        return place

    def joint(self, prior: Tensor) -> Tensor:
        """Probability of every design, the dimensions being independent: (..., options) to (..., designs)."""
        joint: Tensor = prior[..., self.options].prod(-1)
        return joint

    def by_dimension(self, prior: Tensor) -> dict[str, dict[Any, float]]:
        """Probabilities (options,) under the names of dimensions and options."""
        parts = torch.split(prior, self.sizes)
        return {name: dict(zip(options, part.tolist(), strict=True)) for (name, options), part in zip(self.dimensions, parts, strict=True)}

    def check_prior(self, prior: Tensor) -> Tensor:
        """Return ``prior`` (options,) when each dimension is a probability; else ValueError names the dimension."""
        if prior.shape != (sum(self.sizes),):
            raise ValueError(f"a prior over this space has shape ({sum(self.sizes)},), got {tuple(prior.shape)}")
        for (name, _), part in zip(self.dimensions, torch.split(prior, self.sizes), strict=True):
            if not (part >= 0).all() or abs(float(part.sum()) - 1) > 1e-6:
                raise ValueError(f"the prior of {name!r} must be 0 or more and sum to 1, got {part.tolist()}")
        return prior


SPACE = DesignSpace(
    (("layers", (0, 1, 2, 4)), ("aggregation", AGGREGATIONS), ("skip", SKIPS), ("learning rate", (0.1, 0.01, 0.001))),
)


# step 1: the feature of a task


@dataclass(frozen=True)
class Features:
    """How the feature of a task is computed.

    Attributes:
        anchors: the untrained networks.
        initialisations: random weights of each.
        steps, learning_rate, decay: of the head's Adam.
        patience, tolerance: the head's fit ends when no step of the last ``patience`` lowered the loss by a share of ``tolerance``.
        draws: how often labels are drawn for the Fisher information.
        batch: validation items whose mean loss is differentiated together, or None for all, as a task on one whole graph has it.
    """

    anchors: tuple[Architecture, ...] = tuple(Architecture(layers, aggregation, "sum") for layers in (2, 4) for aggregation in AGGREGATIONS)
    initialisations: int = 16
    steps: int = 50
    learning_rate: float = 1e-2
    decay: float = 1e-4
    patience: int = 10
    tolerance: float = 1e-4
    draws: int = 5
    batch: int | None = None


# twelve of the paper's size; which of the 24 combinations of 2 to 8 layers, both skips and three aggregations they are is our choice
PAPER_ANCHORS = tuple(
    Architecture(layers, aggregation, "sum" if (place + number) % 2 == 0 else "concat", 256)
    for number, layers in enumerate((2, 4, 6, 8))
    for place, aggregation in enumerate(AGGREGATIONS)
)


def task_feature(task: GraphTask, recipe: Features, *, seed: int = 0) -> Tensor:
    """v_T, the mean over initialisations of a for every anchor: (anchors,) float64, each at least 1.

    The message-passing weights of a seed are the same for every task.
    """
    device = task.y.device
    found = []
    for number, anchor in enumerate(recipe.anchors):
        first = (seed * len(recipe.anchors) + number) * (recipe.initialisations + 1)  # a number of its own for each network
        generators = [torch.Generator().manual_seed(first + k) for k in range(recipe.initialisations)]
        weights = initial_weights(anchor, task.graph.x.shape[1], task.classes, generators)
        weights = {name: weight.to(device) for name, weight in weights.items()}
        with torch.no_grad():
            cached = head_input(weights, anchor, task)[:, task.train]
        head = fit_head(cached, task.y[task.train], weights["post"], weights["post bias"], recipe)
        labels = torch.Generator(device).manual_seed(first + recipe.initialisations)
        information = message_fisher({**weights, "post": head[0], "post bias": head[1]}, anchor, task, recipe, labels)
        found.append(concentration(information).mean())
    return torch.stack(found).cpu()


def fit_head(inputs: Tensor, y: Tensor, weight: Tensor, bias: Tensor, recipe: Features, *, loss: Any = F.cross_entropy) -> tuple[Tensor, Tensor]:
    """Fit the last linear layer on cached features, all models side by side, by Adam with weight decay.

    Args:
        inputs: (models, items, width).
        y: (items,) int64 labels, or whatever ``loss`` compares the output with.
        weight: (models, width, classes) to start from.
        bias: (models, classes).
        recipe: steps, rate, decay, patience and tolerance.
        loss: of torch.nn.functional; called with the output, the target and ``reduction="none"``.

    Returns:
        Fitted weight and bias.
    """
    models = len(inputs)
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=recipe.learning_rate, weight_decay=recipe.decay)
    best, waited = torch.full((models,), torch.inf, device=inputs.device), torch.zeros(models, device=inputs.device)
    target = y.repeat(models, *[1] * (y.dim() - 1))
    for _ in range(recipe.steps):
        output = inputs @ weight + bias[:, None]
        each = loss(output.flatten(0, 1), target, reduction="none").view(models, -1).mean(1)
        optimizer.zero_grad()
        each.sum().backward()
        optimizer.step()
        lower = each.detach() < best * (1 - recipe.tolerance)
        best, waited = torch.where(lower, each.detach(), best), torch.where(lower, 0, waited + 1)
        if (waited >= recipe.patience).all():
            break
    return weight.detach(), bias.detach()


def message_fisher(weights: Weights, architecture: Architecture, task: GraphTask, recipe: Features, generator: torch.Generator) -> Tensor:
    """F of the message-passing weights on the validation items: (models, weights)."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items() if name.startswith("message")}
    output = logits({**weights, **leaves}, architecture, task)[:, task.validation]
    return fisher(output, list(leaves.values()), batch=recipe.batch, draws=recipe.draws, generator=generator)


def fisher(output: Tensor, parameters: Sequence[Tensor], *, batch: int | None = None, draws: int = 1, generator: torch.Generator) -> Tensor:
    """Monte-Carlo Fisher information, the diagonal: labels drawn from the prediction itself, the gradient of each batch's mean loss squared.

    Args:
        output: (models, items, classes) logits.
        parameters: what to differentiate by, each (models, ...); a model's output depends on its own alone.
        batch: items in a batch, None for one batch of all.
        draws: labels are drawn so often; the mean over the draws is returned.
        generator: of the draws.

    Returns:
        (models, weights), the parameters side by side; summed over the batches.
    """
    models, items, _ = output.shape
    probability = output.detach().softmax(-1).flatten(0, 1)
    total = torch.zeros((), device=output.device)
    for _ in range(draws):
        drawn = torch.multinomial(probability, 1, generator=generator).view(models, items)
        loss = F.cross_entropy(output.transpose(1, 2), drawn, reduction="none")
        for part in torch.split(loss, batch or items, 1):
            gradients = torch.autograd.grad(part.mean(1).sum(), parameters, retain_graph=True)
            total = total + torch.cat([gradient.flatten(1) for gradient in gradients], 1).square()
    return total / draws


def concentration(information: Tensor) -> Tensor:
    """The ratio a = mean(F^2) / mean(F)^2 over the last dimension, float64: n over the number of entries that matter.

    It is 1 where all n entries are equal, n / m where m of them are equal and the others 0, so n where one holds all. Where no gradient reaches
    any weight, F = 0 and the ratio is 0 / 0; it is n there too, where the sequence n / m ends.
    """
    exact = information.double()
    exact = exact / exact.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)  # squares of tiny gradients stay in range
    mean = exact.mean(-1)
    return torch.where(mean > 0, exact.square().mean(-1) / mean.square(), float(information.shape[-1]))


def normalised_features(features: Tensor, bank: Tensor, *, log: bool = True) -> Tensor:
    """Features of length 1: (tasks, anchors).

    Args:
        features: (tasks, anchors) positive.
        bank: (bank tasks, anchors), over which the logarithms are standardised.
        log: whether to take logarithms and standardise them; False is the paper's way, the raw features made as long as 1.
    """
    if not log:
        return F.normalize(features, dim=-1)
    mean, spread = bank.log().mean(0), bank.log().std(0)
    return F.normalize((features.log() - mean) / spread.clamp(min=1e-9), dim=-1)


# step 2: a projection in which distances tell what transfers


def kendall(scores: Tensor, names: Sequence[str] | None = None) -> Tensor:
    """Kendall's tau-b between the tasks' scores over all designs: (tasks, designs) to (tasks, tasks) float64.

    Raises:
        ValueError: a task whose scores are all equal, where tau is undefined.
    """
    first, second = torch.triu_indices(scores.shape[1], scores.shape[1], 1)
    order = (scores[:, first] - scores[:, second]).sign().double()  # (tasks, pairs of designs)
    untied = order.square().sum(1)
    if (untied == 0).any():
        place = int((untied == 0).nonzero()[0])
        raise ValueError(f"all designs have the same score on {names[place] if names else f'task {place}'}: Kendall's tau is undefined")
    return order @ order.T / (untied[:, None] * untied).sqrt()


class Projection(nn.Module):
    """g: Linear(anchors, 16), ReLU, Linear(16, 16), length 1; several of them side by side, one for each task that is held out.

    Args:
        inputs: anchors.
        copies: how many projections.
        width: units and outputs.
        generator: of the starting weights; every copy starts from the same.
    """

    def __init__(self, inputs: int, *, copies: int = 1, width: int = 16, generator: torch.Generator | None = None) -> None:
        super().__init__()

        def linear(rows: int, columns: int) -> nn.Parameter:
            drawn = (2 * torch.rand(rows + 1, columns, generator=generator) - 1) / rows**0.5  # the last row is the bias
            return nn.Parameter(drawn.repeat(copies, 1, 1))

        self.first, self.second = linear(inputs, width), linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """(copies, tasks, anchors) to (copies, tasks, width)."""
        hidden = (features @ self.first[:, :-1] + self.first[:, -1:]).relu()
        return F.normalize(hidden @ self.second[:, :-1] + self.second[:, -1:], dim=-1)


def draw_triples(tau: Tensor, count: int, *, repeats: bool = False, generator: torch.Generator | None = None) -> Tensor:
    """Triples (a, i, j) with tau(a, i) > tau(a, j), uniformly: (copies, count, 3) int64.

    Args:
        tau: (copies, tasks, tasks).
        count: triples for each copy.
        repeats: whether a triple may have a = i, as the published code draws them; a task is always most similar to itself.
        generator: of the draws.

    Raises:
        ValueError: fewer than 3 tasks, or no such triple.
    """
    tasks = tau.shape[-1]
    if tasks < 3:
        raise ValueError(f"the projection learns from triples of tasks: the bank needs at least 3, got {tasks}")
    allowed = tau[..., :, None] > tau[..., None, :]  # (copies, a, i, j)
    if not repeats:
        same = torch.eye(tasks, dtype=torch.bool, device=tau.device)
        allowed = allowed & ~same[:, :, None] & ~same[:, None, :]
    flat = allowed.flatten(1).float()
    if not (flat.sum(1) > 0).all():
        raise ValueError("no triple of tasks has one more similar than the other: Kendall's tau is the same for all pairs")
    drawn = torch.multinomial(flat, count, replacement=True, generator=generator)
    return torch.stack([drawn // tasks**2, drawn // tasks % tasks, drawn % tasks], -1)


def triple_loss(embedding: Tensor, triples: Tensor, *, margin: float = 0.1) -> Tensor:
    """Mean over the triples of max(0, margin - cos(a, i) + cos(a, j)), summed over the copies.

    Args:
        embedding: (copies, tasks, width) of length 1.
        triples: (copies, count, 3).
        margin: how much more similar i must be.
    """
    cosine = embedding @ embedding.transpose(1, 2)
    copy = torch.arange(len(embedding), device=embedding.device)[:, None]
    a, i, j = triples.unbind(-1)
    return (margin - cosine[copy, a, i] + cosine[copy, a, j]).clamp(min=0).mean(1).sum()


# step 3: what was best on similar tasks


def design_distribution(scores: Tensor, space: DesignSpace, *, best: int = 16) -> Tensor:
    """P_k(c), the frequency of every option among the ``best`` designs of each task: (tasks, designs) to (tasks, options).

    Designs that tie for the last places share them.

    Raises:
        ValueError: ``best`` out of range, scores of another number of designs, or NaN among them.
    """
    if not 1 <= best <= scores.shape[-1]:
        raise ValueError(f"best must be between 1 and {scores.shape[-1]} designs, got {best}")
    if scores.shape[-1] != len(space.designs):
        raise ValueError(f"this space has {len(space.designs)} designs, the scores are of {scores.shape[-1]}")
    if scores.isnan().any():
        raise ValueError(f"the score of design {int(scores.isnan().nonzero()[0][-1])} is NaN")
    last = scores.topk(best, -1).values[..., -1:]
    above, level = scores > last, scores == last
    chosen = above + level * (best - above.sum(-1, keepdim=True)) / level.sum(-1, keepdim=True)
    return (chosen / best).double() @ space.indicator.to(scores.device)


def design_prior(distributions: Tensor, similarity: Tensor, space: DesignSpace, *, k: int = 3, floor: float = 0.01, smoothing: float = 0.1) -> Tensor:
    """P_new(c): the distributions of the ``k`` most similar tasks, mixed by 1 / (1 - similarity): (options,).

    Args:
        distributions: (tasks, options).
        similarity: (tasks,) cosines.
        space: what the options are of.
        k: neighbours.
        floor: smallest distance d_k, since 1 / d_k explodes where two tasks coincide.
        smoothing: eta, the share of the uniform prior, so that no option is ruled out.

    Raises:
        ValueError: k out of range.
    """
    if not 1 <= k <= len(similarity):
        raise ValueError(f"k must be between 1 and the {len(similarity)} tasks of the bank, got {k}")
    nearest = similarity.topk(k).indices
    weight = 1 / (1 - similarity[nearest]).clamp(min=floor)
    mixed = (weight / weight.sum()) @ distributions[nearest]
    return (1 - smoothing) * mixed + smoothing * space.uniform.to(mixed)
