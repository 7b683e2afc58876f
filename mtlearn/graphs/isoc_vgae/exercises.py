"""Exercises on isomorphic consistency."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import networkx as nx
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch_geometric.nn import WLConv
from torch_geometric.utils import from_networkx

from mtlearn.explore.exercises import Exercise
from mtlearn.lab.result import recorded
from mtlearn.lab.seeds import stream

Edges = list[tuple[int, int]]


def _judge_twins(answer: tuple[Edges, Edges]) -> str | None:
    first, second = (nx.Graph(edges) for edges in answer)
    for graph in (first, second):
        if not graph.number_of_edges():
            return "both graphs need at least one edge; give a list of pairs for each."
        if nx.number_of_selfloops(graph):
            return "leave self-loops out."
    if nx.is_isomorphic(first, second):
        return "these two are isomorphic: the same graph drawn twice. Equal embeddings are what one wants there."
    if sorted(d for _, d in first.degree) != sorted(d for _, d in second.degree):
        return "already one layer of GIN tells these apart: their nodes do not have the same numbers of neighbours. Try graphs where all have two."
    data = from_networkx(nx.disjoint_union(first, second))
    colours = torch.zeros(data.num_nodes, dtype=torch.int64)
    for layers in range(1, data.num_nodes + 1):
        colours = WLConv()(colours, data.edge_index)
        if Counter(colours[: len(first)].tolist()) != Counter(colours[len(first) :].tolist()):
            return f"{layers} layers are enough to tell these apart: after so many rounds of 1-WL the two graphs have different colours."
    return None


def _solve_twins() -> Any:
    hexagon = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0)]
    two_triangles = [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3)]
    # every node has two neighbours, each of which has two neighbours, ...: one colour for ever
    return hexagon, two_triangles


def _leads() -> dict[str, float]:
    arms = recorded("isoc_vgae").arms
    return {
        probe: arms["VGAE"][metric].mean - arms["untrained"][metric].mean
        for probe, metric in (("linear", "node accuracy"), ("deep", "node accuracy, deep probe"))
    }


def _judge_probes(answer: dict[str, float]) -> str | None:
    if not isinstance(answer, dict) or set(answer) != {"linear", "deep"}:
        return "give a dict with the keys 'linear' and 'deep'."
    for probe, lead in _leads().items():
        if abs(float(answer[probe]) - lead) > 5e-4:
            return (
                f"{probe}: {float(answer[probe]):+.3f} is not VGAE's mean minus the untrained encoder's. "
                "Both metrics are in result.arms[arm]: 'node accuracy' (linear) and 'node accuracy, deep probe'; .mean is over the seeds."
            )
    return None


def _solve_probes() -> Any:
    arms = recorded("isoc_vgae").arms

    def lead(metric: str) -> float:
        return arms["VGAE"][metric].mean - arms["untrained"][metric].mean

    return {"linear": lead("node accuracy"), "deep": lead("node accuracy, deep probe")}


def _judge_spread(answer: tuple[Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], list[float], list[float]]) -> str | None:
    kl, first, second = answer
    draws = stream(0, "exercise")
    mean, centre = torch.randn(2, 50, generator=draws)
    deviation, spread = torch.rand(2, 50, generator=draws) + 0.2
    wanted = kl_divergence(Normal(mean, deviation), Normal(centre, spread))
    given = torch.as_tensor(kl(mean, deviation, centre, spread))
    if given.shape != wanted.shape:
        return f"kl must return one number for each entry, shape {tuple(wanted.shape)}, not {tuple(given.shape)}."
    if not torch.allclose(given, wanted, atol=1e-4):
        alone = torch.allclose(given, kl_divergence(Normal(mean, deviation), Normal(centre, torch.ones(50))), atol=1e-4)
        hint = "it ignores the spread: that is the published loss, where it is 1." if alone else "see the KL of two Gaussians."
        return f"kl is not KL(N(mean, deviation^2) || N(centre, spread^2)); {hint}"
    a, b = torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)
    if len(a) != len(b) or len(a) < 2:
        return "the two neighbourhoods need as many members, at least two: sizes are told apart by the degree already."
    if abs(float(a.mean() - b.mean())) > 1e-9:
        return f"the means differ, {float(a.mean()):g} and {float(b.mean()):g}: the mean tells them apart already."
    if abs(float(a.std() - b.std())) < 1e-9:
        return "mean and variance are both equal: these two still cannot be told apart."
    return None


def _solve_spread() -> Any:
    def kl(mean: Tensor, deviation: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        return (spread / deviation).log() + (deviation**2 + (mean - centre) ** 2) / (2 * spread**2) - 0.5

    return kl, [1.0, 1.0], [0.0, 2.0]


def _wrong_kl(mean: Tensor, deviation: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
    return 0.5 * (-1 - 2 * deviation.log() + (mean - centre) ** 2 + deviation**2)


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            "**1. Beyond the ceiling.** Find two graphs without features that are *not* isomorphic and get equal embeddings from every "
            "message-passing network, however deep. Set `answer = (edges, edges)`, each a list of pairs of node numbers."
        ),
        judge=_judge_twins,
        solve=_solve_twins,
        wrong=([(0, 1), (1, 2), (2, 3)], [(0, 1), (0, 2), (0, 3)]),
        reason=(
            "L layers tell at most what L rounds of 1-WL colour refinement tell (Xu et al. 2019, Morris et al. 2019), "
            "and refinement cannot begin where every node has as many neighbours. No decoder changes that: what the encoder merges is gone."
        ),
    ),
    Exercise(
        question=(
            "**2. What does the probe hide?** In `recorded('isoc_vgae').arms`, how far is VGAE ahead of the untrained encoder in node accuracy under "
            "the linear probe, and how far under the probe with four hidden layers? "
            "Set `answer = {'linear': ..., 'deep': ...}`, differences of the means over the seeds."
        ),
        judge=_judge_probes,
        solve=_solve_probes,
        wrong={"linear": 0.0, "deep": 0.0},
        reason=(
            "a supervised probe of four layers learns from the labels what the encoder did not bring, so the difference between encoders shrinks. "
            "Read a table of embeddings together with its probe, and look for the untrained encoder in it."
        ),
    ),
    Exercise(
        question=(
            "**3. Mean and variance.** The neighbour loss compares with $N(\\bar t, 1)$, so neighbourhoods with one mean look alike. Write "
            "`kl(mean, deviation, centre, spread)` for $KL(N(mean, deviation^2)\\,\\|\\,N(centre, spread^2))$, entry by entry, and give two "
            "neighbourhoods (lists of numbers) of the same size that it tells apart and the published loss does not. "
            "Set `answer = (kl, first, second)`."
        ),
        judge=_judge_spread,
        solve=_solve_spread,
        wrong=(_wrong_kl, [1.0, 1.0], [0.0, 2.0]),
        reason=(
            "two neighbours with the value 1, or one with 0 and one with 2: size and mean are equal, the spread is not. Each further moment "
            "tells more neighbourhoods apart; only all of them together, or an injective encoding, tell all multisets apart."
        ),
    ),
)
