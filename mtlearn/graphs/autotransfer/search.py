"""Searches that take a prior, replayed by look-up: random search, a TPE-like search, evolution. Many replays run side by side.

A search is a rule that says how likely each design is to be tried next, given what was tried so far. With the uniform prior each is the
plain search. No design is tried twice.

    random      the prior's product over the dimensions
    tpe         start-up trials from the prior; then, each dimension by itself, the counts of options among the good and among the other trials,
                l(o) and g(o), start from pseudo-counts prior(o) * options, 1 for the uniform prior; of a few options drawn from l the one
                with the largest l / g is taken (Bergstra et al. 2011)
    evolution   a first population from the prior; then the best of three of the last trials is changed in one dimension, the new option drawn
                from the prior, and takes the place of the oldest (Real et al. 2019)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mtlearn.graphs.autotransfer.method import DesignSpace

TINY = 1e-30  # weight of a design that the rule excludes: it is tried when nothing else is left


@dataclass(frozen=True)
class Random:
    """Draw from the prior."""


@dataclass(frozen=True)
class TPE:
    """Settings of the TPE-like search.

    Attributes:
        startup: trials drawn from the prior (20 in the published configuration, whose budget is 100).
        good: share of the trials that count as good, rounded up.
        most_good: at most so many.
        candidates: options drawn from l for each dimension.
    """

    startup: int = 5
    good: float = 0.1
    most_good: int = 25
    candidates: int = 24


@dataclass(frozen=True)
class Evolution:
    """Settings of evolution.

    Attributes:
        population: trials that live.
        tournament: of these a parent is the best of so many.
    """

    population: int = 6
    tournament: int = 3


Algorithm = Random | TPE | Evolution
ALGORITHMS: Mapping[str, Algorithm] = {"random": Random(), "TPE": TPE(), "evolution": Evolution()}


def search(
    scores: Tensor,
    space: DesignSpace,
    algorithm: Algorithm,
    *,
    prior: Tensor | None = None,
    budget: int = 30,
    replays: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Replay a search by look-up: the designs that were tried, in order, (replays, budget) int64.

    Args:
        scores: (designs,) of the task, finite; larger is better.
        space: the designs.
        algorithm: ``Random()``, ``TPE(...)`` or ``Evolution(...)``.
        prior: (options,), see :meth:`DesignSpace.check_prior`; uniform when omitted.
        budget: trials, at most the number of designs.
        replays: independent searches.
        generator: of all draws; two searches with generators of the same state are paired.

    Raises:
        ValueError: a budget, scores or prior out of range.
    """
    designs = len(space.designs)
    if not 1 <= budget <= designs:
        raise ValueError(f"budget must be between 1 and the {designs} designs of the space, got {budget}")
    if scores.shape != (designs,) or not scores.isfinite().all():
        raise ValueError(f"scores must be {designs} finite numbers, one a design, got shape {tuple(scores.shape)}")
    prior = space.uniform if prior is None else space.check_prior(prior).double()
    from_prior = space.joint(prior)
    if isinstance(algorithm, Random):  # one race for all trials: the order of arrival is a draw without replacement
        return (from_prior.clamp(min=TINY) / _noise(replays, designs, generator)).topk(budget, 1).indices
    propose = _proposal(algorithm, scores, space, prior)
    tried = torch.zeros(replays, designs, dtype=torch.bool)
    order = torch.zeros(replays, budget, dtype=torch.int64)
    for trial in range(budget):
        weight = propose(order[:, :trial]) if trial >= _startup(algorithm) else from_prior.expand(replays, -1)
        weight = weight.masked_fill(tried, 0.0)
        weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, from_prior.masked_fill(tried, 0.0))  # all that was proposed has been tried
        weight = weight.clamp(min=TINY).masked_fill(tried, 0.0)
        order[:, trial] = (weight / _noise(replays, designs, generator)).argmax(1)  # design d wins the race with probability weight[d] / sum
        tried.scatter_(1, order[:, trial : trial + 1], True)
    return order


def regret(scores: Tensor, order: Tensor) -> Tensor:
    """Best score of all designs minus the best tried so far, in points of 100: (replays, budget)."""
    return 100 * (scores.max() - scores[order].cummax(1).values)


def trials_until(regrets: Tensor, within: float) -> Tensor:
    """Trials until the regret is at most ``within`` points: (replays,) float64; one more than the budget where it never is."""
    reached = regrets <= within + 1e-9
    first = torch.where(reached.any(1), reached.int().argmax(1) + 1, regrets.shape[1] + 1)
    return first.double()


def _noise(replays: int, designs: int, generator: torch.Generator | None) -> Tensor:
    """Arrival times of an exponential race, at rate 1: (replays, designs)."""
    return -torch.rand(replays, designs, generator=generator, dtype=torch.float64).log()


def _startup(algorithm: TPE | Evolution) -> int:
    return algorithm.startup if isinstance(algorithm, TPE) else algorithm.population


def _proposal(algorithm: TPE | Evolution, scores: Tensor, space: DesignSpace, prior: Tensor) -> Callable[[Tensor], Tensor]:
    """The rule after the start-up trials: designs tried (replays, trials) to weights (replays, designs)."""
    if isinstance(algorithm, TPE):
        return lambda order: space.joint(tpe_options(space, scores, order, prior, algorithm))
    return _breed(algorithm, scores, space, prior)


def tpe_options(space: DesignSpace, scores: Tensor, order: Tensor, prior: Tensor, algorithm: TPE) -> Tensor:
    """How likely TPE is to take each option next: (replays, options), each dimension summing to 1.

    The best of n candidates drawn from l is option o with probability (L(o)^n - L'(o)^n), where L is the mass of l on options whose ratio l / g is
    at most o's and L' of those below: so nothing need be drawn. Options of the same ratio share by l.

    Args:
        space: the designs.
        scores: (designs,).
        order: (replays, trials) designs tried.
        prior: (options,).
        algorithm: its settings.
    """
    trials = order.shape[1]
    good = min(-int(-algorithm.good * trials // 1), algorithm.most_good)
    rank = scores[order].argsort(dim=1, descending=True, stable=True)  # of equal scores the earlier is better
    options = space.indicator[order.gather(1, rank)]  # (replays, trials, options), best first
    sizes = torch.tensor(space.sizes)
    pseudo = prior * sizes.repeat_interleave(sizes)
    dimension = torch.arange(len(sizes)).repeat_interleave(sizes)
    rival = (dimension[:, None] == dimension).double()  # (options, options) of the same dimension
    density, other = (count / (count @ rival) for count in (options[:, :good].sum(1) + pseudo, options[:, good:].sum(1) + pseudo))
    ratio = torch.where(density > 0, density / other, 0.0)
    mass = density[:, None] * rival  # (replays, option, rival)
    at_most = (mass * (ratio[:, None] <= ratio[:, :, None] * (1 + 1e-12))).sum(2)
    below = (mass * (ratio[:, None] < ratio[:, :, None] * (1 - 1e-12))).sum(2)
    chance: Tensor = (at_most**algorithm.candidates - below**algorithm.candidates) * density / (at_most - below).clamp(min=TINY)
    return chance


def _breed(algorithm: Evolution, scores: Tensor, space: DesignSpace, prior: Tensor) -> Callable[[Tensor], Tensor]:
    """Weights of the children of the best of three of the population: each dimension as likely to change, its new option drawn from the prior."""
    mutation = mutations(space, prior)

    def propose(order: Tensor) -> Tensor:
        living = scores[order[:, -algorithm.population :]]  # (replays, population)
        # the best of a tournament of 3 is the one of rank r with probability C(n - r, 2) / C(n, 3): all parents are weighed at once
        size = living.shape[1]
        rank = living.argsort(dim=1, descending=True, stable=True)
        below = torch.arange(size - 1, -1, -1, dtype=torch.float64)  # members that the one of rank r beats
        chance = torch.ones(size, dtype=torch.float64)
        for place in range(min(algorithm.tournament, size) - 1):
            chance = chance * (below - place).clamp(min=0)
        parents = order[:, -algorithm.population :].gather(1, rank)
        return torch.einsum("p,rpd->rd", chance / chance.sum(), mutation[parents])

    return propose


def mutations(space: DesignSpace, prior: Tensor) -> Tensor:
    """Probability that a parent's child is a design: (designs, designs). One dimension, each as likely, takes another option by the prior."""
    same = space.indicator @ space.indicator.T  # dimensions in which two designs agree
    chance = prior[space.options]  # (designs, dimensions) of the design's own options
    differs = space.options[:, None] != space.options[None]  # (parent, child, dimension)
    of_option = differs * chance[None] / (1 - chance[:, None]).clamp(min=TINY)
    one = same == len(space.sizes) - 1
    return torch.where(one, of_option.sum(-1), 0.0) / len(space.sizes)
