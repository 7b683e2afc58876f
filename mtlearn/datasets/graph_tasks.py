"""Fourteen small tasks on graphs that need no download, each a ``torch_geometric.data.Data`` with its split.

A node-level task has one label a node; a graph-level task is a ``Batch`` of graphs with one label a graph::

    n_iris  n_wine  n_cancer  n_digits    scikit-learn's tables: each row is a node, joined with its six nearest rows
    r_iris  r_wine  r_cancer  r_digits    the same nodes, labels and split, on a graph whose edges were swapped at random
    sbm_hom  sbm_het                      three blocks that keep to themselves, three blocks that avoid themselves
    roles                                 a ring with houses on it: a node's label is its place in the pattern
    gens                                  which of four random mechanisms made this graph?
    bip                                   is this graph bipartite?
    tri                                   has it more triangles than the median?

The nearest rows of ``n_*`` are found on the clean features, and the nodes carry the features plus noise of the same size, so that the
graph knows what the node does not. In ``r_*`` the graph knows nothing. ``roles``, ``gens``, ``bip`` and ``tri`` have one constant input: all
there is to know is the graph. Four tasks on published graphs are split the same way (:func:`published_task`).
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import networkx as nx
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.model_selection import train_test_split
from sklearn.neighbors import kneighbors_graph
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.utils import to_undirected

from mtlearn.datasets.graph_benchmarks import GRAPH_SETS, cora, graph_set
from mtlearn.tables import nearest

SHARES = (0.4, 0.4, 0.2)  # of training, validation and test: much validation, since a search compares scores on it
NEIGHBOURS = 6
SWAPS = 10  # per edge
TABLES: Mapping[str, tuple[Callable[..., Any], int]] = {  # loader and how many rows
    "iris": (load_iris, 150),
    "wine": (load_wine, 178),
    "cancer": (load_breast_cancer, 250),
    "digits": (load_digits, 300),
}
BLOCKS = {"sbm_hom": (0.06, 0.01), "sbm_het": (0.005, 0.04)}  # probability of an edge inside a block, and between two
REWIRED = tuple(f"r_{name}" for name in TABLES)
TASKS = (*(f"n_{name}" for name in TABLES), *REWIRED, *BLOCKS, "roles", "gens", "bip", "tri")


def graph_task(name: str, seed: int = 0) -> Data:
    """One of the fourteen tasks; the same for the same seed, everywhere.

    Args:
        name: one of ``TASKS``; ValueError suggests the nearest.
        seed: of the noise, the random graphs, the choice of rows and the split.

    Returns:
        ``x`` (nodes, inputs) float32, ``edge_index`` (2, edges) with both directions of every edge, ``y`` int64 with one entry a node, or a
        graph, and the masks ``train_mask``, ``val_mask``, ``test_mask`` of the same length. Graph-level tasks have ``batch`` (nodes,).
    """
    if name not in TASKS:
        raise ValueError(f"there is no graph task {name!r}{nearest(name, TASKS)}; the tasks are {', '.join(TASKS)}")
    kind, _, table = name.partition("_")
    source = f"n_{table}" if kind == "r" else name  # a rewired task has all but its edges from its sibling
    draws = np.random.default_rng([seed, zlib.crc32(source.encode())])
    if kind in ("n", "r"):
        data = _neighbours(table, draws)
    elif kind == "sbm":
        data = _blocks(*BLOCKS[name], draws)
    elif name == "roles":
        data = _roles(draws)
    else:
        data = {"gens": _generators, "bip": _bipartite, "tri": _triangles}[name](draws)
    data = with_split(data, seed=seed)
    return rewired(data, seed=seed) if kind == "r" else data


PUBLISHED = ("cora", *(name.lower() for name in GRAPH_SETS))


def published_task(name: str, seed: int = 0) -> Data:
    """A task on published graphs, split 40/40/20: the subjects of Cora's papers, the classes of MUTAG's, PROTEINS' or IMDB-BINARY's graphs.

    Args:
        name: one of ``PUBLISHED``; ValueError suggests the nearest.
        seed: of the split.

    Raises:
        MissingFileError: a file is not on this machine and cannot be downloaded.
        RefusedFileError: a file is not the published one.
    """
    if name not in PUBLISHED:
        raise ValueError(f"there is no published task {name!r}{nearest(name, PUBLISHED)}; the tasks are {', '.join(PUBLISHED)}")
    data = cora() if name == "cora" else Batch.from_data_list(graph_set(name.upper()))
    return with_split(data, seed=seed)


def with_split(data: Data, *, seed: int = 0) -> Data:
    """The same task with masks that split its labelled nodes, or graphs, 40/40/20, classes in proportion where they are large enough.

    Raises:
        ValueError: fewer than 5 labels, which leaves a part empty.
    """
    y = data.y
    if not isinstance(y, Tensor) or y.dim() != 1 or len(y) < 5:
        raise ValueError(f"a split needs one label for each of at least 5 nodes or graphs, got y of shape {tuple(getattr(y, 'shape', ()))}")
    if y.dtype != torch.int64 or int(y.min()) < 0:
        raise ValueError(f"labels must be whole numbers from 0, int64, got {y.dtype} from {y.min().item()}")
    count = y.bincount()[y.bincount() > 0]
    train, validation = round(SHARES[0] * len(y)), round(SHARES[1] * len(y))
    by_class = len(count) <= len(y) - train - validation and int(count.min()) >= 5
    places = np.arange(len(y))

    def halves(rows: Any, size: int, state: int) -> Any:
        return train_test_split(rows, train_size=size, random_state=state, stratify=y[rows].numpy() if by_class else None)

    first, rest = halves(places, train, seed)
    second, third = halves(rest, validation, seed + 1)
    split = data.clone()
    for mask, rows in zip(("train_mask", "val_mask", "test_mask"), (first, second, third), strict=True):
        split[mask] = torch.zeros(len(y), dtype=torch.bool).index_fill(0, torch.as_tensor(rows), True)
    return split


def rewired(data: Data, *, seed: int = 0, share: float = 1.0) -> Data:
    """The same nodes, labels and split on a random graph with the same degrees: ten double edge swaps an edge.

    Args:
        data: a node-level task without self-loops, every edge in both directions.
        seed: of the swaps.
        share: of the ten swaps an edge; 0 changes nothing.
    """
    if data.get("batch") is not None:
        raise ValueError("only a node-level task can be rewired: swaps inside small graphs would change their labels")
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    graph = nx.Graph(data.edge_index.t().tolist())
    if nx.number_of_selfloops(graph):
        raise ValueError("the graph has self-loops, which cannot be swapped; torch_geometric.transforms.RemoveSelfLoops()(data) takes them out")
    swaps = round(share * SWAPS * graph.number_of_edges())
    if swaps:
        nx.double_edge_swap(graph, nswap=swaps, max_tries=100 * swaps + 1000, seed=seed)
    changed = data.clone()
    changed.edge_index = _edges(graph)
    return changed


def plain_statistics(data: Data) -> Tensor:
    """Six numbers that say what a table of data sets says: (6,) float64.

    Log of nodes, log of mean degree, share of edges between equal labels (nodes of a graph have its label), classes, log of inputs, and 1 where
    the labels are of graphs.
    """
    nodes, edges = int(data.num_nodes or 0), data.edge_index
    batch = data.get("batch")
    label = data.y if batch is None else data.y[batch]
    same = float((label[edges[0]] == label[edges[1]]).double().mean()) if edges.shape[1] else 0.0
    classes = int(data.y.max()) + 1
    values = [np.log(nodes), np.log1p(edges.shape[1] / nodes), same, classes, np.log(data.x.shape[1]), float(batch is not None)]
    return torch.tensor(values, dtype=torch.float64)


def _edges(graph: nx.Graph) -> Tensor:
    """Both directions of every edge, (2, edges), sorted."""
    pairs = torch.tensor(sorted(graph.edges), dtype=torch.int64).reshape(-1, 2).t()
    edges: Tensor = to_undirected(pairs)
    return edges


def _neighbours(table: str, draws: np.random.Generator) -> Data:
    load, rows = TABLES[table]
    features, labels = load(return_X_y=True)
    chosen = np.sort(draws.choice(len(labels), rows, replace=False))
    clean = StandardScaler().fit_transform(features[chosen])
    near = kneighbors_graph(clean, NEIGHBOURS).tocoo()
    edges = to_undirected(torch.from_numpy(np.stack([near.row, near.col]).astype(np.int64)))
    noisy = clean + draws.normal(size=clean.shape)
    return Data(x=torch.from_numpy(noisy).float(), edge_index=edges, y=torch.from_numpy(labels[chosen].astype(np.int64)))


def _blocks(inside: float, between: float, draws: np.random.Generator) -> Data:
    y = np.repeat(np.arange(3), 80)
    probability = np.where(y[:, None] == y, inside, between)
    first, second = np.nonzero(np.triu(draws.random(probability.shape) < probability, 1))
    x = np.eye(3)[y] + 1.2 * draws.normal(size=(len(y), 3))
    edges = to_undirected(torch.from_numpy(np.stack([first, second])), num_nodes=len(y))
    return Data(x=torch.from_numpy(x).float(), edge_index=edges, y=torch.from_numpy(y))


def _roles(draws: np.random.Generator) -> Data:
    """A ring of 60 and 24 houses: on the ring 0, on the ring under a house 1, floor 2, walls 3, roof 4."""
    graph = nx.cycle_graph(60)
    roles = [0] * 60
    for foot in sorted(draws.choice(60, 24, replace=False).tolist()):
        roles[foot] = 1
        a, b, c, d, e = range(len(roles), len(roles) + 5)
        graph.add_edges_from([(foot, a), (a, b), (a, c), (b, d), (c, d), (c, e), (d, e)])
        roles += [2, 2, 3, 3, 4]
    return Data(x=torch.ones(len(roles), 1), edge_index=_edges(graph), y=torch.tensor(roles))


def _batch(graphs: list[nx.Graph], labels: list[int]) -> Data:
    items = []
    for graph, label in zip(graphs, labels, strict=True):
        items.append(Data(x=torch.ones(graph.number_of_nodes(), 1), edge_index=_edges(graph), y=torch.tensor([label])))
    batch: Data = Batch.from_data_list(items)
    return batch


def _generators(draws: np.random.Generator) -> Data:
    """Twelve graphs of 16 nodes and about 32 edges of each: random pairs, preferential attachment, small world, near in the plane."""
    nodes = 16
    makers: list[Callable[[int], nx.Graph]] = [
        lambda seed: nx.gnm_random_graph(nodes, 32, seed=seed),
        lambda seed: nx.barabasi_albert_graph(nodes, 2, seed=seed),
        lambda seed: nx.watts_strogatz_graph(nodes, 4, 0.2, seed=seed),
        lambda seed: nx.random_geometric_graph(nodes, 0.33, seed=seed),
    ]
    labels = [label for label in range(len(makers)) for _ in range(12)]
    return _batch([makers[label](int(draws.integers(2**31))) for label in labels], labels)


def _small_graphs() -> list[nx.Graph]:
    """The connected graphs of 6 and 7 nodes of the atlas that comes with networkx."""
    return [graph for graph in nx.graph_atlas_g() if graph.number_of_nodes() >= 6 and nx.is_connected(graph)]


def _bipartite(draws: np.random.Generator) -> Data:
    groups: tuple[list[nx.Graph], list[nx.Graph]] = ([], [])
    for graph in _small_graphs():
        groups[nx.is_bipartite(graph)].append(graph)
    chosen = [group[place] for group in groups for place in np.sort(draws.choice(len(group), 36, replace=False))]
    return _batch(chosen, [0] * 36 + [1] * 36)


def _triangles(draws: np.random.Generator) -> Data:
    graphs = _small_graphs()
    chosen = [graphs[place] for place in np.sort(draws.choice(len(graphs), 72, replace=False))]
    count = np.array([sum(nx.triangles(graph).values()) // 3 for graph in chosen])
    return _batch(chosen, (count > np.median(count)).astype(int).tolist())
