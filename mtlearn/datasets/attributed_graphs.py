"""Small graphs with node features, made to ask one question each; no download.

- :func:`heterophilous_ring`: classes on a ring, edges only between neighbouring classes, so that linked nodes are never alike::

      class   0 -- 1 -- 2 -- 3 -- 4 -- 5 -- 0

- :func:`wired_graphs`: graphs with the same types of nodes and the same number of edges; what differs is which types are linked::

      label 0: type c with c + 1 and c - 1        label 1: type c with c + 2 and c - 2

- :func:`coloured_atlas`: all graphs with up to seven nodes, coloured at random.
- :func:`random_graph`: edges at random, for measuring time and memory.

All come as ``torch_geometric.data.Data``; undirected edges are listed in both directions.
"""

from functools import cache

import networkx as nx
import torch
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.utils import from_networkx


def heterophilous_ring(
    nodes: int = 600, *, classes: int = 6, degree: float = 6.0, noise: float = 0.4, generator: torch.Generator | None = None
) -> Data:
    """One graph whose edges join neighbouring classes of a ring only.

    Args:
        nodes: how many.
        classes: how many, at least 3; their sizes differ by at most 1.
        degree: mean number of neighbours.
        noise: standard deviation of what is added to the one-hot class.
        generator: source of the draws.

    Returns:
        x (nodes, classes): one-hot class plus noise; edge_index; y (nodes,): the class.

    Raises:
        ValueError: a number out of range, or more edges than there are pairs of neighbouring classes.
    """
    _check_types("classes", classes, nodes, noise)
    y = torch.arange(nodes) % classes
    edges = _edges_by_step(y, classes, 1, round(nodes * degree / 2), generator)
    x = F.one_hot(y, classes) + noise * torch.randn(nodes, classes, generator=generator)
    return Data(x=x, edge_index=edges, y=y)


def wired_graphs(
    count: int = 100, *, nodes: int = 20, types: int = 6, degree: float = 4.0, noise: float = 0.4, generator: torch.Generator | None = None
) -> list[Data]:
    """Graphs of two kinds with the same types of nodes: in the first type c is linked with c + 1 and c - 1, in the second with c + 2 and c - 2.

    Args:
        count: how many graphs; the labels alternate.
        nodes: of each graph.
        types: on a ring, at least 5, so that the two wirings differ.
        degree: mean number of neighbours.
        noise: standard deviation of what is added to the one-hot type.
        generator: source of the draws.

    Returns:
        Graphs with x (nodes, types), edge_index, types (nodes,) and y (1,), the wiring 0 or 1.

    Raises:
        ValueError: as :func:`heterophilous_ring`; count below 1 or fewer than 5 types.
    """
    _check_types("types", types, nodes, noise)
    if count < 1 or types < 5:
        raise ValueError(f"count must be at least 1 and types at least 5, got count={count}, types={types}")
    graphs = []
    for number in range(count):
        kind = torch.arange(nodes) % types
        edges = _edges_by_step(kind, types, 1 + number % 2, round(nodes * degree / 2), generator)
        x = F.one_hot(kind, types) + noise * torch.randn(nodes, types, generator=generator)
        graphs.append(Data(x=x, edge_index=edges, types=kind, y=torch.tensor([number % 2])))
    return graphs


@cache
def _atlas() -> tuple[Data, ...]:
    return tuple(from_networkx(graph) for graph in nx.graph_atlas_g() if graph.number_of_nodes())


def coloured_atlas(colours: int = 3, *, generator: torch.Generator | None = None) -> list[Data]:
    """All 1,252 graphs with one to seven nodes (Read and Wilson's atlas, from networkx), every node in a colour drawn at random.

    A third of the graphs draws from one colour alone, a third from two, a third from all.

    Returns:
        Graphs with x (nodes, colours), one-hot, and edge_index.
    """
    if colours < 1:
        raise ValueError(f"colours must be at least 1, got {colours}")
    graphs = []
    for number, shape in enumerate(_atlas()):
        palette = torch.randperm(colours, generator=generator)[: max(1, round(colours * (1 + number % 3) / 3))]
        colour = palette[torch.randint(len(palette), (shape.num_nodes,), generator=generator)]
        graphs.append(Data(x=F.one_hot(colour, colours).float(), edge_index=shape.edge_index))
    return graphs


def random_graph(nodes: int, edges: int, *, features: int = 16, generator: torch.Generator | None = None) -> Data:
    """Exactly ``edges`` undirected edges between pairs of nodes drawn at random, and normal features.

    Raises:
        ValueError: fewer than 2 nodes, or more than a quarter of all pairs asked for as edges (drawing would get slow).
    """
    if nodes < 2 or not 0 <= edges <= nodes * (nodes - 1) // 8:
        raise ValueError(f"nodes must be at least 2 and edges at most a quarter of all pairs, got nodes={nodes}, edges={edges}")
    keys = torch.zeros(0, dtype=torch.int64)
    while len(keys) < edges:
        pair = torch.randint(nodes, (2, 2 * (edges - len(keys)) + 16), generator=generator).sort(0).values
        keys = torch.unique(torch.cat([keys, (pair[0] * nodes + pair[1])[pair[0] != pair[1]]]))
    keys = keys[torch.randperm(len(keys), generator=generator)[:edges]].sort().values
    return Data(x=torch.randn(nodes, features, generator=generator), edge_index=_both(torch.stack([keys // nodes, keys % nodes])))


def _check_types(name: str, types: int, nodes: int, noise: float) -> None:
    if types < 3 or nodes < types or not noise >= 0:
        raise ValueError(f"{name} must be at least 3, nodes at least as many, noise 0 or more, got {name}={types}, nodes={nodes}, noise={noise}")


def _edges_by_step(kind: Tensor, types: int, step: int, edges: int, generator: torch.Generator | None) -> Tensor:
    """``edges`` different pairs, uniform among those whose kinds are ``step`` apart on the ring: (2, 2 edges)."""
    apart = (kind[:, None] - kind) % types
    allowed = ((apart == step) | (apart == types - step)).triu(1).nonzero().T  # (2, pairs)
    if not 1 <= edges <= allowed.shape[1]:
        raise ValueError(f"the degree asks for {edges} edges; kinds {step} apart allow 1 to {allowed.shape[1]}")
    return _both(allowed[:, torch.randperm(allowed.shape[1], generator=generator)[:edges]])


def _both(edges: Tensor) -> Tensor:
    return torch.cat([edges, edges.flip(0)], 1)
