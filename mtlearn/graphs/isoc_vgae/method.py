r"""IsoC-VGAE: train a graph encoder so that a decoder can undo it layer by layer, down to each node's neighbourhood.

Hanxuan Yang, Qingchao Kong, Wenji Mao, "Isomorphic-Consistent Variational Graph Auto-Encoders for Multi-Level Graph Representation Learning",
2023, arXiv:2312.05519; as a journal article IEEE TKDE 37(10), 2025.

**Idea.** A layer of a graph neural network turns a node's embedding and those of its neighbours into the next embedding. If a decoder can undo
*every* layer, from layer l back to the node's own embedding at layer l - 1 **and** the multiset of its neighbours' embeddings there, then by
induction the last embedding determines all that lies within L hops: nodes get equal embeddings only where L rounds of colour refinement
(1-Weisfeiler-Lehman) give them equal colours. That is *isomorphic consistency*. A variational graph auto-encoder (``baselines.py``) decodes single
edges from pairs of embeddings: it asks for one hop.

**Encoder.** :math:`h^{(0)} = x`, :math:`h^{(l)} = \mathrm{GNN}_l(h^{(l-1)}, A)` for :math:`l = 1..L` (:class:`Encoder`). Nothing is sampled in it.

**Inverse GNN decoder** (:class:`InverseGNN`). From the top, :math:`l = L..1`, with the target :math:`t^{(l)} = h^{(l-1)}`:

.. math::
    \mu^{(l)} = f_l(h^{(l)}) + [l < L]\, p_l(z^{(l+1)}), \qquad \sigma^{(l)} = e^{s_l(h^{(l)})}, \qquad z^{(l)} = \mu^{(l)} + \sigma^{(l)} \epsilon

:math:`z^{(l+1)}` is what the step before has reconstructed: a ladder from the top down. A multiset of neighbours is described by its mean
and its size.

**Loss** (:func:`inverse_losses`, :class:`LossWeights`). With :math:`\bar t_v` the mean of t over v and its neighbours,

.. math::
    L = \frac 1L \sum_l \lambda_s\, \mathrm{MSE}(z^{(l)}, t^{(l)})
    + \lambda_n\, \mathrm{KL}\big(N(\mu^{(l)}, \sigma^{(l)2}) \,\|\, N(\bar t^{(l)}, 1)\big)
    + \lambda_d\, \mathrm{MSE}\big(\rho(g_l(h^{(l)})), \deg\big)

Targets are not detached: their gradient moves the layers below as well. "Variational" is the middle term alone; there is no standard-normal prior.

**What differs from the paper.** We read the abstract and the authors' code; theorems and tables we could not read. By default the degree's target is
:math:`\log(1 + \deg)`, as a squared error in raw degrees is many times the other losses and takes the gradient over (``log_degree=False`` is the
published one); :math:`\rho` is softplus, as the published ReLU gives 0 for ever where g starts out negative on all nodes (``relu_degree=True``);
s is clamped to [-6, 3] so that its exponential cannot overflow, the multilayer perceptrons are one hidden layer shallower and have no
BatchNorm, and there is a ReLU between the layers of the encoder. The published code means to have one, but its closure leaves every layer with
the identity. :func:`published` builds what that code computes. PairNorm centres each graph of a batch by itself, so that an embedding does not
depend on the graphs beside it. Noise is drawn in training mode only.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import MLP, GCNConv, GINConv

from mtlearn.graphs.graph import Graph

Layer = Literal["gcn", "gin"]
Norm = Literal["none", "batch", "pair"]
LOG_DEVIATION = (-6.0, 3.0)  # s is clamped to it


class PairNormSCS(nn.Module):
    """PairNorm, "scale individually, then centre" (Zhao and Akoglu 2020): scale * h_v / |h_v| - mean of h, each graph by itself.

    ``torch_geometric.nn.PairNorm(scale_individually=True)`` centres first, which is another function.
    """

    def __init__(self, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, h: Tensor, graph: Graph) -> Tensor:
        """(n, d) to (n, d)."""
        if graph.batch is None:
            centre = h.mean(0)
        else:
            centre = (graph.pool(h) / torch.bincount(graph.batch)[:, None])[graph.batch]
        return self.scale * F.normalize(h, eps=1e-6) - centre


class Encoder(nn.Module):
    """A stack of GCN or GIN layers that keeps what every layer gives.

    Args:
        widths: F, d_1, ..., d_L: the features, then the width of each layer; L is at least 1.
        layer: ``gcn`` (no bias, symmetric normalisation with self-loops) or ``gin`` (an MLP of 2 hidden layers on (1 + epsilon) h_v + sum_u h_u).
        relu: whether there is a ReLU between layers.
        norm: between layers: ``none``, ``batch`` or ``pair`` (:class:`PairNormSCS`). With ``batch`` or ``pair`` the MLPs of GIN have BatchNorm.
        dropout: before all layers but the first.
        epsilon: weight of a GIN node beside its neighbours; with 0, as published, a node and its neighbours are told apart by nothing.

    Raises:
        ValueError: no layer, a width below 1, an unknown layer or norm, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        layer: Layer = "gcn",
        relu: bool = True,
        norm: Norm = "none",
        dropout: float = 0.0,
        epsilon: float = 0.0,
    ) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths must be F, d_1, ..., d_L with at least one layer and all of them at least 1, got {tuple(widths)}")
        if layer not in ("gcn", "gin") or norm not in ("none", "batch", "pair") or not 0 <= dropout < 1:
            raise ValueError(f"layer must be 'gcn' or 'gin', norm 'none', 'batch' or 'pair', dropout in [0, 1), got {layer!r}, {norm!r}, {dropout}")
        self.widths, self.relu, self.dropout = tuple(widths), relu, dropout
        self.batch_norm = norm == "batch" or (norm == "pair" and layer == "gin")

        def build(wide: int, narrow: int) -> Any:
            if layer == "gcn":
                return GCNConv(wide, narrow, bias=False)
            return GINConv(MLP([wide, narrow, narrow, narrow], norm="batch_norm" if norm != "none" else None), eps=epsilon)

        self.layers = nn.ModuleList(build(*pair) for pair in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) if norm == "batch" else PairNormSCS() for width in widths[1:-1] if norm != "none")

    def forward(self, graph: Graph) -> list[Tensor]:
        """The embeddings h^(0) = x, h^(1), ..., h^(L): (n, d_l) each."""
        if graph.x.shape[1] != self.widths[0]:
            raise ValueError(f"the encoder was built for {self.widths[0]} features, the graph's x has shape {tuple(graph.x.shape)}")
        if self.training and self.batch_norm:
            _check_batch_norm(graph)
        hidden = [graph.x]
        for number, layer in enumerate(self.layers):
            hidden.append(layer(self.entering(number, hidden[-1], graph), graph.edge_index))
        return hidden

    def entering(self, number: int, h: Tensor, graph: Graph) -> Tensor:
        """What enters layer ``number`` (from 0) where the layer below gave ``h``: normalised, through the ReLU, dropped out. x enters as it is."""
        if not number:
            return h
        if self.norms:
            norm = self.norms[number - 1]
            h = norm(h, graph) if isinstance(norm, PairNormSCS) else norm(h)
        return F.dropout(F.relu(h) if self.relu else h, self.dropout, self.training)


class Level(NamedTuple):
    """What the decoder reads off h^(l): the embeddings at layer l - 1 and the number of neighbours.

    Attributes:
        mean: mu^(l), (n, d_{l-1}).
        deviation: sigma^(l), (n, d_{l-1}).
        sample: z^(l), (n, d_{l-1}); the mean outside of training.
        degree: (n,), in neighbours, or in log(1 + neighbours) where that is the target.
    """

    mean: Tensor
    deviation: Tensor
    sample: Tensor
    degree: Tensor


class InverseGNN(nn.Module):
    """The inverse GNN: from h^(L), ..., h^(1) back to the embedding and the neighbourhood one layer below.

    Args:
        widths: as of the encoder, F, d_1, ..., d_L.
        hidden: hidden layers of f, s and p, each as wide as its input; g has one more. The published code has 2.
        batch_norm: whether their hidden layers have BatchNorm, as in the published code.
        relu_degree: whether a ReLU keeps decoded degrees from being negative, as in the published code, or softplus.
    """

    def __init__(self, widths: Sequence[int], *, hidden: int = 1, batch_norm: bool = False, relu_degree: bool = False) -> None:
        super().__init__()
        if hidden < 0:
            raise ValueError(f"hidden must be 0 or more, got {hidden}")
        self.batch_norm = batch_norm and hidden > 0
        self.rho = F.relu if relu_degree else F.softplus

        def build(wide: int, narrow: int, depth: int = hidden) -> Any:
            return MLP([wide] * (depth + 1) + [narrow], norm="batch_norm" if batch_norm else None, bias=[True] * depth + [False])

        below, above = widths[:-1], widths[1:]
        self.f = nn.ModuleList(map(build, above, below))
        self.s = nn.ModuleList(map(build, above, below))
        self.p = nn.ModuleList(map(build, above[:-1], below[:-1]))  # from z^(l+1), as wide as h^(l)
        self.g = nn.ModuleList(build(width, 1, hidden + 1) for width in above)

    def forward(self, hidden: Sequence[Tensor], *, generator: torch.Generator | None = None) -> list[Level]:
        """Decode the embeddings h^(0), ..., h^(L) of an encoder, top down.

        Args:
            hidden: what :class:`Encoder` returns; h^(0) is not read.
            generator: source of the noise; the global one when omitted.

        Returns:
            The levels 1, ..., L (level l describes layer l - 1).
        """
        if len(hidden) != len(self.f) + 1:
            raise ValueError(f"the decoder was built for {len(self.f)} layers, got the embeddings of {len(hidden) - 1}")
        levels: list[Level] = []
        above: Tensor | None = None
        for number in reversed(range(len(self.f))):
            h = hidden[number + 1]
            mean = self.f[number](h)
            if above is not None:
                mean = mean + self.p[number](above)
            deviation = self.s[number](h).clamp(*LOG_DEVIATION).exp()
            above = mean
            if self.training:
                above = mean + deviation * torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
            levels.append(Level(mean, deviation, above, self.rho(self.g[number](h))[:, 0]))
        return levels[::-1]


@dataclass(frozen=True)
class LossWeights:
    """lambda_s, lambda_n, lambda_d; the defaults are those of all published scripts."""

    own: float = 1.0
    neighbour: float = 0.1
    degree: float = 1.0

    def __post_init__(self) -> None:
        if not all(weight >= 0 for weight in (self.own, self.neighbour, self.degree)):
            raise ValueError(f"the weights of the losses must be 0 or more, got {self}")


class Losses(NamedTuple):
    """The three losses, each averaged over nodes, features and levels."""

    own: Tensor
    neighbour: Tensor
    degree: Tensor

    def total(self, weights: LossWeights) -> Tensor:
        """The weighted sum that is minimised."""
        return weights.own * self.own + weights.neighbour * self.neighbour + weights.degree * self.degree


def neighbour_kl(mean: Tensor, deviation: Tensor, centre: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(tbar, 1)), the mean over all entries; 0 only where mu = tbar and sigma = 1."""
    return 0.5 * (-1 - 2 * deviation.log() + (mean - centre).square() + deviation.square()).mean()


def degree_target(graph: Graph, *, log_degree: bool) -> Tensor:
    """What g learns to tell: the number of neighbours, or log(1 + it): (n,)."""
    return graph.degree.log1p() if log_degree else graph.degree


def inverse_losses(levels: Sequence[Level], hidden: Sequence[Tensor], graph: Graph, *, log_degree: bool = True) -> Losses:
    """The losses of the decoded ``levels`` against the embeddings that they should give back.

    Args:
        levels: 1, ..., L, of :class:`InverseGNN`.
        hidden: h^(0), ..., h^(L), of :class:`Encoder`; the gradient flows into them.
        graph: where the neighbours are.
        log_degree: see :func:`degree_target`.
    """
    degree = degree_target(graph, log_degree=log_degree)
    by_level = [
        Losses(
            F.mse_loss(level.sample, target),
            neighbour_kl(level.mean, level.deviation, graph.neighbour_mean(target)),
            F.mse_loss(level.degree, degree),
        )
        for level, target in zip(levels, hidden, strict=False)
    ]
    return Losses(*(torch.stack(terms).mean() for terms in zip(*by_level, strict=True)))


class IsoCVGAE(nn.Module):
    """An encoder and the inverse GNN that trains it. What is used afterwards is the encoder's last embedding.

    Args:
        encoder: its weights are trained in place.
        decoder: made to fit the encoder when omitted.
        weights: of the three losses.
        log_degree: see :func:`degree_target`.
    """

    def __init__(self, encoder: Encoder, decoder: InverseGNN | None = None, *, weights: LossWeights | None = None, log_degree: bool = True) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = InverseGNN(encoder.widths) if decoder is None else decoder
        self.weights, self.log_degree = weights or LossWeights(), log_degree

    def losses(self, graph: Graph, *, generator: torch.Generator | None = None) -> Losses:
        """Encode, decode, compare: the three losses on a graph."""
        if self.training and self.decoder.batch_norm:
            _check_batch_norm(graph)
        hidden = self.encoder(graph)
        return inverse_losses(self.decoder(hidden, generator=generator), hidden, graph, log_degree=self.log_degree)

    def loss(self, graph: Graph, *, generator: torch.Generator | None = None) -> Tensor:
        """What is minimised, a scalar."""
        return self.losses(graph, generator=generator).total(self.weights)

    @torch.no_grad()
    def decode(self, graph: Graph) -> tuple[list[Tensor], list[Level]]:
        """The embeddings h^(0), ..., h^(L) and the decoded levels 1, ..., L, in evaluation mode: no noise, no dropout, no batch statistics."""
        training = self.training
        hidden = self.eval().encoder(graph)
        levels: list[Level] = self.decoder(hidden)
        self.train(training)
        return hidden, levels


@torch.no_grad()
def embed(encoder: Encoder, graph: Graph) -> Tensor:
    """The embedding h^(L) (n, d_L) in a clean pass: evaluation mode, all weights at rest. The mode is restored."""
    training = encoder.training
    h: Tensor = encoder.eval()(graph)[-1]
    encoder.train(training)
    return h


def published(features: int, *, width: int = 512, depth: int = 2, layer: Layer = "gcn") -> IsoCVGAE:
    """What the authors' scripts compute.

    Between layers BatchNorm (GCN) or PairNorm and dropout (GIN) and no ReLU; perceptrons of 2 hidden layers; raw degrees behind a ReLU.
    """
    widths = [features] + [width] * depth
    options: dict[str, Any] = {"norm": "batch"} if layer == "gcn" else {"norm": "pair", "dropout": 0.5}
    encoder = Encoder(widths, layer=layer, relu=False, **options)
    return IsoCVGAE(encoder, InverseGNN(widths, hidden=2, batch_norm=True, relu_degree=True), log_degree=False)


def published_optimizer(model: IsoCVGAE) -> torch.optim.Adam:
    """The authors' Adam: 5e-6 for everything but the degree decoders, 1e-2 for these, weight decay 3e-4."""
    degree = list(model.decoder.g.parameters())
    chosen = {id(parameter) for parameter in degree}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return torch.optim.Adam([{"params": rest, "lr": 5e-6}, {"params": degree, "lr": 1e-2}], weight_decay=3e-4)


def _check_batch_norm(graph: Graph) -> None:
    if graph.nodes < 2:
        raise ValueError("BatchNorm needs at least 2 nodes in training, the graph has 1: add graphs to the batch, or call eval() first")
