r"""The auto-encoders that IsoC-VGAE starts from, GAE and VGAE: they decode edges from pairs of embeddings.

Thomas Kipf, Max Welling, "Variational Graph Auto-Encoders", 2016, arXiv:1611.07308.

An encoder gives every node a Gaussian, :math:`q(z_v) = N(\mu_v, \sigma_v^2)`, and the decoder is the inner product:
:math:`p(A_{uv} = 1) = \mathrm{sigmoid}(z_u^\top z_v)`. With edges E and non-edges N (all of them, or as many as there are
edges, drawn anew in each step),

.. math::
    L = \tfrac1{|E|} \sum_{E} \log(1 + e^{-z_u^\top z_v}) + \tfrac1{|N|} \sum_{N} \log(1 + e^{z_u^\top z_v})
    + \tfrac1n\, \tfrac1n \sum_v \mathrm{KL}\big(q(z_v) \,\|\, N(0, 1)\big)

GAE is the same with :math:`z = \mu` and without the KL. The first two terms over all pairs are twice the weighted cross-entropy of the authors' code.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GCNConv, GINConv
from torch_geometric.utils import to_dense_batch

from mtlearn.graphs.graph import Graph
from mtlearn.graphs.isoc_vgae.method import Encoder

LARGEST_LOG_DEVIATION = 10.0

Negatives = Literal["all", "sampled"]


def pair_scores(z: Tensor, pairs: Tensor) -> Tensor:
    """The inner products z_u . z_v of ``pairs`` (2, m): (m,)."""
    return (z.index_select(0, pairs[0]) * z.index_select(0, pairs[1])).sum(-1)


def sampled_reconstruction(z: Tensor, edges: Tensor, negatives: Tensor) -> Tensor:
    """Cross-entropy of the inner product on edges and on non-edges, (2, m) each: the sum of the two means."""
    return F.softplus(-pair_scores(z, edges)).mean() + F.softplus(pair_scores(z, negatives)).mean()


def full_reconstruction(z: Tensor, graph: Graph) -> Tensor:
    """The same over all pairs of nodes of a graph, a node with itself counted among the edges: O(n^2) time and memory.

    The sum over non-edges is that over all pairs without the edges', so no matrix of labels is made.
    """
    if graph.batch is None:
        everything, pairs = F.softplus(z @ z.T).sum(), graph.nodes**2
    else:
        dense, real = to_dense_batch(z, graph.batch)  # (graphs, most nodes, d)
        scores = dense @ dense.transpose(1, 2)
        everything = F.softplus(scores)[real[:, :, None] & real[:, None, :]].sum()
        pairs = int(torch.bincount(graph.batch).square().sum())
    positive = torch.cat([pair_scores(z, graph.edge_index), z.square().sum(-1)])
    others = pairs - len(positive)
    if not others:
        raise ValueError("every pair of nodes is an edge: there is nothing to tell apart")
    return F.softplus(-positive).mean() + (everything - F.softplus(positive).sum()) / others


def sample_non_edges(graph: Graph, count: int, *, generator: torch.Generator | None = None) -> Tensor:
    """``count`` pairs of different nodes of one graph that are no edge, drawn uniformly with replacement: (2, count) int64.

    Raises:
        ValueError: some graph of the batch has no such pair.
    """
    n, device = graph.nodes, graph.x.device
    size = torch.tensor([n], device=device) if graph.batch is None else torch.bincount(graph.batch)
    if graph.batch is None:
        free = size * (n - 1) - graph.edge_index.shape[1]
    else:
        free = size * (size - 1) - torch.bincount(graph.batch[graph.edge_index[0]], minlength=len(size))
    if int(free.sum()) <= 0:
        raise ValueError(f"every pair of the {n} nodes is an edge: there is no non-edge to draw")
    found: list[Tensor] = []
    missing = count
    while missing > 0:
        draws = max(missing + missing // 8 + 16, 64)
        if graph.batch is None:
            pair = torch.randint(n, (2, draws), generator=generator, device=device)
        else:  # a graph by its number of pairs, then two of its nodes
            which = torch.multinomial(size.double().square(), draws, replacement=True, generator=generator)
            within = torch.rand(2, draws, generator=generator, device=device, dtype=torch.float64)
            pair = (size.cumsum(0) - size)[which] + (within * size[which]).long()
        key = pair[0] * n + pair[1]
        place = torch.searchsorted(graph.edge_keys, key).clamp(max=max(len(graph.edge_keys) - 1, 0))
        taken = graph.edge_keys[place] == key if len(graph.edge_keys) else torch.zeros_like(key, dtype=torch.bool)
        kept = pair[:, ~taken & (pair[0] != pair[1])][:, :missing]
        found.append(kept)
        missing -= kept.shape[1]
    return torch.cat(found, 1)


def standard_normal_kl(mean: Tensor, log_deviation: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)): summed over features, averaged over nodes."""
    return -0.5 * (1 + 2 * log_deviation - mean.square() - (2 * log_deviation).exp()).sum(1).mean()


class VGAE(nn.Module):
    """GAE or VGAE around an encoder: mu is its last layer, log sigma a further layer beside it.

    Args:
        encoder: its weights are trained in place; mu, its last embedding, is what is used afterwards.
        variational: False for GAE.
        negatives: ``all`` pairs that are no edge, or as many ``sampled`` ones as there are edges.
    """

    def __init__(self, encoder: Encoder, *, variational: bool = True, negatives: Negatives = "all") -> None:
        super().__init__()
        if negatives not in ("all", "sampled"):
            raise ValueError(f"negatives must be 'all' or 'sampled', got {negatives!r}")
        self.encoder, self.negatives = encoder, negatives
        wide, narrow = encoder.widths[-2:]
        self.log_deviation: nn.Module | None = None
        if variational:
            gin = isinstance(encoder.layers[-1], GINConv)
            self.log_deviation = GINConv(nn.Linear(wide, narrow)) if gin else GCNConv(wide, narrow, bias=False)

    def encode(self, graph: Graph) -> tuple[Tensor, Tensor | None]:
        """The mean mu (n, d) and, for VGAE, log sigma (n, d)."""
        hidden = self.encoder(graph)
        if self.log_deviation is None:
            return hidden[-1], None
        h = self.encoder.entering(len(hidden) - 2, hidden[-2], graph)
        return hidden[-1], self.log_deviation(h, graph.edge_index).clamp(max=LARGEST_LOG_DEVIATION)

    def loss(self, graph: Graph, *, generator: torch.Generator | None = None) -> Tensor:
        """Reconstruction and, for VGAE, KL / n.

        Raises:
            ValueError: the graph has no edge, or every pair is one.
        """
        if not graph.edge_index.numel():
            raise ValueError("an auto-encoder of edges needs at least one edge, the graph has none")
        z, log_deviation = self.encode(graph)
        kl: Tensor | float = 0.0
        if log_deviation is not None:
            kl = standard_normal_kl(z, log_deviation) / graph.nodes
            if self.training:
                z = z + log_deviation.exp() * torch.randn(z.shape, generator=generator, device=z.device)
        if self.negatives == "all":
            return full_reconstruction(z, graph) + kl
        return sampled_reconstruction(z, graph.edge_index, sample_non_edges(graph, graph.edge_index.shape[1], generator=generator)) + kl
