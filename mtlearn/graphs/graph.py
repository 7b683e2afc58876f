"""An attributed graph that was checked once: what the methods of this chapter read, and what they all need of it.

graph = Graph.of(data.x, data.edge_index)        # PyTorch Geometric's convention: both directions of an edge are listed
graph = Graph.from_adjacency(A, x)               # a dense or sparse 0/1 matrix
"""

import warnings
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Graph:
    """Nodes with features, and the edges between them; also several graphs side by side, as PyTorch Geometric batches them.

    Make it with :meth:`of`, :meth:`from_adjacency` or :meth:`from_data`, which check.

    Attributes:
        x: (n, F) node features.
        edge_index: (2, E) int64, from the node above to the node below; every undirected edge is listed in both directions. No self-loops,
            no edge twice.
        batch: (n,) int64, the graph of each node, or None where there is one graph.
    """

    x: Tensor
    edge_index: Tensor
    batch: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, edge_index: Tensor, *, batch: Tensor | None = None, directed: bool = False) -> "Graph":
        """Check the parts of a graph and put them together.

        Self-loops are left out with a warning: the layers that need one add it. A directed graph keeps its directions, and the neighbours of a
        node are those that point to it.

        Raises:
            ValueError: no nodes, features that are not finite real numbers or of another number of rows than there are nodes, edges that
                are out of range, repeated, or lack their other direction where ``directed`` is false.
        """
        if x.dim() != 2 or not x.is_floating_point():
            raise ValueError(f"x must be a real matrix of shape (nodes, features), got shape {tuple(x.shape)} and {x.dtype}")
        n = len(x)
        if n == 0 or x.shape[1] == 0:
            raise ValueError(f"the graph is empty: x must have at least one node and one feature, got shape {tuple(x.shape)}")
        if not (finite := x.isfinite().all(1)).all():
            raise ValueError(f"x must be finite; {int((~finite).sum())} of {n} nodes hold NaN or infinity, the first is node {_first(~finite)}")
        if edge_index.dim() != 2 or len(edge_index) != 2 or edge_index.dtype != torch.int64:
            raise ValueError(f"edge_index must be an int64 tensor of shape (2, edges), got shape {tuple(edge_index.shape)} and {edge_index.dtype}")
        if edge_index.numel() and (int(edge_index.min()) < 0 or int(edge_index.max()) >= n):
            raise ValueError(
                f"edge_index names nodes {int(edge_index.min())} to {int(edge_index.max())}, but x has {n} rows: nodes are numbered 0 to {n - 1}"
            )
        if batch is not None and (batch.shape != (n,) or batch.dtype != torch.int64 or bool((batch.diff() < 0).any()) or int(batch[0]) < 0):
            raise ValueError(
                f"batch must give each of the {n} nodes its graph, int64 and ascending from 0, got shape {tuple(batch.shape)} and {batch.dtype}"
            )
        loops = edge_index[0] == edge_index[1]
        if loops.any():
            warnings.warn(f"{int(loops.sum())} self-loops are left out: layers that need a self-loop add it", UserWarning, stacklevel=2)
            edge_index = edge_index[:, ~loops]
        key = (edge_index[0] * n + edge_index[1]).sort().values
        if (twice := key[1:] == key[:-1]).any():
            source, target = divmod(int(key[1:][twice][0]), n)
            raise ValueError(f"the edge {source} -> {target} is listed twice; torch_geometric.utils.coalesce merges repeated edges")
        if not directed and not torch.equal(key, (edge_index[1] * n + edge_index[0]).sort().values):
            reverse = edge_index[1] * n + edge_index[0]
            source, target = edge_index[:, _first(~torch.isin(reverse, key))].tolist()
            raise ValueError(
                f"the graph is directed: {source} -> {target} is listed without {target} -> {source}. "
                "Give directed=True, or add the other directions with torch_geometric.utils.to_undirected"
            )
        return cls(x, edge_index, batch)

    @classmethod
    def from_adjacency(cls, adjacency: Tensor, x: Tensor, *, directed: bool = False) -> "Graph":
        """A graph from its matrix of zeros and ones, dense or sparse; entry (i, j) is the edge from i to j.

        Raises:
            ValueError: the matrix is not square or has entries other than 0 and 1; and see :meth:`of`.
        """
        if adjacency.dim() != 2 or adjacency.shape[0] != adjacency.shape[1]:
            raise ValueError(f"the adjacency must be a square matrix, got shape {tuple(adjacency.shape)}")
        if len(adjacency) != len(x):
            raise ValueError(f"the adjacency {tuple(adjacency.shape)} and the features {tuple(x.shape)} must have as many rows")
        entries = adjacency.to_sparse().coalesce()
        wrong = ~((entries.values() == 1) | (entries.values() == 0))
        if wrong.any():
            at = entries.indices()[:, _first(wrong)].tolist()
            raise ValueError(
                f"entries of the adjacency must be 0 or 1, as neighbours are counted; {int(wrong.sum())} are not, "
                f"the first at row {at[0]}, column {at[1]}: {float(entries.values()[_first(wrong)])}"
            )
        return cls.of(x, entries.indices()[:, entries.values() == 1], directed=directed)

    @classmethod
    def from_data(cls, data: object, *, directed: bool = False) -> "Graph":
        """The graph of a ``torch_geometric.data.Data`` or ``Batch``: its ``x``, ``edge_index`` and, where it has one, ``batch``."""
        x, edge_index = getattr(data, "x", None), getattr(data, "edge_index", None)
        if not isinstance(x, Tensor) or not isinstance(edge_index, Tensor):
            raise ValueError(f"a Data with x and edge_index is needed, got {data}; constant features are x = torch.ones(nodes, 1)")
        return cls.of(x, edge_index, batch=getattr(data, "batch", None), directed=directed)

    @property
    def nodes(self) -> int:
        """The number of nodes n."""
        return len(self.x)

    @property
    def graphs(self) -> int:
        """How many graphs lie side by side."""
        return 1 if self.batch is None else int(self.batch[-1]) + 1

    @cached_property
    def degree(self) -> Tensor:
        """The number of neighbours of each node, of x's type: (n,)."""
        return torch.bincount(self.edge_index[1], minlength=self.nodes).to(self.x.dtype)

    @cached_property
    def edge_keys(self) -> Tensor:
        """The edges as sorted numbers ``source * n + target``: (E,). With them, whether a pair is an edge is one binary search."""
        return (self.edge_index[0] * self.nodes + self.edge_index[1]).sort().values

    def neighbour_mean(self, t: Tensor) -> Tensor:
        """The mean of ``t`` (n, d) over each node and its neighbours, (deg + 1)^-1 (t + A t): (n, d). An isolated node keeps its own."""
        source, target = self.edge_index
        return t.index_add(0, target, t.index_select(0, source)) / (self.degree + 1)[:, None]

    def pool(self, t: Tensor) -> Tensor:
        """The sum of ``t`` (n, d) over the nodes of each graph: (graphs, d)."""
        if self.batch is None:
            return t.sum(0, keepdim=True)
        return t.new_zeros(self.graphs, t.shape[1]).index_add(0, self.batch, t)

    def permuted(self, order: Tensor) -> "Graph":
        """The same graph with its nodes listed in another order: new node k is old node ``order[k]``."""
        batch = None if self.batch is None else self.batch[order]
        return Graph.of(self.x[order], order.argsort()[self.edge_index], batch=batch, directed=True)

    def with_features(self, x: Tensor) -> "Graph":
        """The same edges under other features (n, F)."""
        if len(x) != self.nodes:
            raise ValueError(f"x must have a row for each of the {self.nodes} nodes, got shape {tuple(x.shape)}")
        return replace(self, x=x)

    def to(self, device: torch.device | str) -> "Graph":
        """The graph on a device."""
        return Graph(self.x.to(device), self.edge_index.to(device), None if self.batch is None else self.batch.to(device))


def _first(mask: Tensor) -> int:
    return int(mask.nonzero()[0, 0])
