"""The networks that are searched over: message passing of every design, many networks of one design side by side.

A network reads its nodes with one linear layer, passes messages, and ends in one linear layer, the head. With W_1, W_2 of a layer,

    h_{l+1} = ReLU(BN(agg_{u -> v} h_l[u] W_1 + h_l[v] W_2))      skip "none"
    h_{l+1} = h_l[v] + ReLU(...)                                 skip "sum"
    the head reads h_0, h_1 .. h_L side by side                  skip "concat"

BN takes mean and variance of all nodes and has no parameters. A task on whole graphs is read from the mean over each graph's nodes.

Weights are a dict of tensors whose first dimension counts the networks, so one call runs all of them: initialisations, or learning rates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import SimpleConv, global_mean_pool

from mtlearn.graphs.graph import Graph

AGGREGATIONS = ("add", "mean", "max")
SKIPS = ("none", "sum", "concat")
Weights = Mapping[str, Tensor]  # name to (models, rows, columns), biases (models, columns)
EPSILON = 1e-5  # of the batch statistics
SAME = 1e-10  # a unit whose variance is below this share of its layer's mean square has the same value at every node, up to rounding


@dataclass(frozen=True)
class Architecture:
    """What a design says of the network.

    Attributes:
        layers: rounds of message passing, 0 or more.
        aggregation: ``add``, ``mean`` or ``max`` over the neighbours; a node without any hears 0.
        skip: ``none``, ``sum`` or ``concat``.
        width: units of every layer.
    """

    layers: int
    aggregation: str
    skip: str
    width: int = 16

    def __post_init__(self) -> None:
        if self.layers < 0 or self.width < 1:
            raise ValueError(f"layers must be 0 or more and width at least 1, got layers={self.layers}, width={self.width}")
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(f"aggregation must be one of {', '.join(AGGREGATIONS)}, got {self.aggregation!r}")
        if self.skip not in SKIPS:
            raise ValueError(f"skip must be one of {', '.join(SKIPS)}, got {self.skip!r}")

    @property
    def head_width(self) -> int:
        """How many numbers the head reads."""
        return self.width * (1 + self.layers) if self.skip == "concat" else self.width


@dataclass(frozen=True)
class GraphTask:
    """A classification task on the nodes of a graph, or on whole graphs, that was checked once. Make it with :meth:`of`.

    Attributes:
        graph: nodes, edges, and the graph of each node where the labels are of graphs.
        y: (items,) int64 label of each node, or of each graph.
        train, validation, test: (items,) bool.
    """

    graph: Graph
    y: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor

    @classmethod
    def of(cls, data: Any, *, directed: bool = False) -> "GraphTask":
        """Check a ``Data`` (labels of nodes) or ``Batch`` (labels of graphs) with ``train_mask``, ``val_mask`` and ``test_mask``.

        Isolated nodes are welcome. Self-loops are left out with a warning, as every layer reads the node itself anyway. A directed graph keeps
        its directions where ``directed`` is true: a node hears those that point to it.

        Raises:
            ValueError: the graph (see :meth:`mtlearn.graphs.graph.Graph.of`: empty, NaN, a direction without the other), labels that are not
                one whole number from 0 an item, masks that are missing, overlap or are empty, fewer than two classes among the training labels.
        """
        graph = Graph.from_data(data, directed=directed)
        graph = graph.with_features(graph.x.float())
        items, what = (graph.nodes, "node") if graph.batch is None else (graph.graphs, "graph")
        y = data.y
        if not isinstance(y, Tensor) or y.shape != (items,) or y.dtype != torch.int64 or int(y.min()) < 0:
            got = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"y must hold one class from 0 for each {what}, int64 of shape ({items},), got {got}")
        masks = []
        for name in ("train_mask", "val_mask", "test_mask"):
            mask = getattr(data, name, None)
            if not isinstance(mask, Tensor) or mask.shape != (items,) or mask.dtype != torch.bool:
                raise ValueError(
                    f"{name} must be a bool for each {what}, of shape ({items},); mtlearn.datasets.graph_tasks.with_split(data) makes the three"
                )
            if name != "test_mask" and not mask.any():
                raise ValueError(f"{name} is empty: the {'training' if name == 'train_mask' else 'validation'} split needs at least one {what}")
            masks.append(mask)
        if (torch.stack(masks).sum(0) > 1).any():
            raise ValueError(f"the three masks overlap: {what} {int((torch.stack(masks).sum(0) > 1).nonzero()[0])} is in two of them")
        if int(y[masks[0]].min()) == int(y[masks[0]].max()):
            raise ValueError(f"the training split has one class alone, {int(y[masks[0]][0])}: there is nothing to tell apart")
        return cls(graph, y, *masks)

    @property
    def classes(self) -> int:
        """One more than the largest label."""
        return int(self.y.max()) + 1

    @property
    def constant(self) -> bool:
        """Whether every node has the same input, so that the graph alone can tell nodes apart."""
        return bool((self.graph.x == self.graph.x[0]).all())

    def to(self, device: torch.device | str) -> "GraphTask":
        """The task on a device."""
        return GraphTask(self.graph.to(device), *(part.to(device) for part in (self.y, self.train, self.validation, self.test)))


def shapes(architecture: Architecture, inputs: int, classes: int) -> dict[str, tuple[int, ...]]:
    """The shapes of one network's weights, those that do not depend on the task first: there a generator draws the same for every task."""
    width = architecture.width
    layers = {f"message {layer} {part}": (width, width) for layer in range(architecture.layers) for part in ("neighbours", "self")}
    head = (architecture.head_width, classes)
    return {**layers, "pre bias": (width,), "pre": (inputs, width), "post": head, "post bias": (classes,)}


def initial_weights(architecture: Architecture, inputs: int, classes: int, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
    """Untrained weights, one network a generator: uniform in +-1/sqrt(rows), as ``torch.nn.Linear`` draws them."""
    wanted = shapes(architecture, inputs, classes)
    rows = {"pre bias": inputs, "post bias": architecture.head_width}

    def draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(rows.get(name, shape[0]))

    drawn = [[draw(name, shape, generator) for name, shape in wanted.items()] for generator in generators]
    return {name: torch.stack(parts) for name, parts in zip(wanted, zip(*drawn, strict=True), strict=True)}


def head_input(weights: Weights, architecture: Architecture, task: GraphTask) -> Tensor:
    """What the head reads: (models, items, head_width)."""
    x = task.graph.x
    h = x @ weights["pre"] + weights["pre bias"][:, None]
    h = (h if task.constant else normalised(h)).relu()  # (models, nodes, width); normalising a constant would leave nothing
    streams = [h]
    for layer in range(architecture.layers):
        heard = aggregate(h, task.graph.edge_index, architecture.aggregation)
        step = normalised(heard @ weights[f"message {layer} neighbours"] + h @ weights[f"message {layer} self"]).relu()
        h = h + step if architecture.skip == "sum" else step
        streams.append(h)
    read = torch.cat(streams, -1) if architecture.skip == "concat" else h
    return read if task.graph.batch is None else _fold(read, lambda flat: global_mean_pool(flat, task.graph.batch))


def logits(weights: Weights, architecture: Architecture, task: GraphTask) -> Tensor:
    """The output of every network: (models, items, classes)."""
    return head_input(weights, architecture, task) @ weights["post"] + weights["post bias"][:, None]


def aggregate(h: Tensor, edge_index: Tensor, aggregation: str) -> Tensor:
    """Sum, mean or maximum over the neighbours of each node: (models, nodes, width) to the same shape; 0 without neighbours."""
    return _fold(h, lambda flat: _convolution(aggregation)(flat, edge_index))


def normalised(h: Tensor) -> Tensor:
    """Batch normalisation over the nodes, without parameters: (models, nodes, width).

    A unit that has the same value at every node becomes exactly 0, as it would be with exact numbers. Else its rounding errors would be blown up
    by 1/sqrt(epsilon), and what a network makes of them would differ from one processor to another.
    """
    mean = h.mean(-2, keepdim=True)
    variance = (h - mean).square().mean(-2, keepdim=True)
    varies = variance > SAME * h.square().mean((-2, -1), keepdim=True)
    return torch.where(varies, (h - mean) * (variance + EPSILON).rsqrt(), 0.0)


@cache
def _convolution(aggregation: str) -> Any:
    return SimpleConv(aggr=aggregation)


def _fold(h: Tensor, of_nodes: Any) -> Tensor:
    """Apply a map of (nodes, features) to all models at once, as further features."""
    models, _, width = h.shape
    flat = of_nodes(h.transpose(0, 1).flatten(1))
    result: Tensor = flat.unflatten(1, (models, width)).transpose(0, 1)
    return result
