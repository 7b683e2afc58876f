"""Where a stock stands in the graph of return correlations, as a fixed vector that is added to the input of every spatial attention.

The graph is complete and weighted: an edge for each pair of stocks, its weight the positive part of the correlation of their returns. It must be
built from training days alone. Three ways to a vector:

* :func:`laplacian_embedding`: the first eigenvectors of the normalised Laplacian. Stocks that move together get like vectors (*who is near whom*).
* :func:`struc2vec_embedding`: in the manner of struc2vec (Ribeiro et al. 2017), which the paper names. Stocks with like *roles* get like vectors: how
  strongly a stock is tied, and how strongly those it is tied to are. Two sectors of equal build look the same to it.
* :func:`walk_embedding`: the same walks and the same skip-gram on the correlations themselves (DeepWalk, Perozzi et al. 2014).

Instead of dynamic time warping, structural distances compare quantiles of the rings' log strengths, one tensor operation for all pairs. Skip-gram
with negative sampling factorises the matrix of pointwise mutual information (Levy and Goldberg 2014); here it is factorised at once, by SVD.

The published script passes the edges i < j as a *directed* graph to a struc2vec that counts neighbours and reads no weights (we ran it on two drawn
markets). The k-th stock of the file then has N - 1 - k neighbours whatever the returns are, and the vectors tell the order of the file alone.
"""

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F


def check_returns(returns: Tensor) -> Tensor:
    """Returns (days, N) as they came, when they are finite and of at least 2 stocks; else ValueError names the day and the stock."""
    if returns.dim() != 2 or returns.shape[1] < 2:
        raise ValueError(f"returns must be of shape (days, stocks) with at least 2 stocks, got {tuple(returns.shape)}")
    wrong = ~returns.isfinite()
    if wrong.any():
        day, stock = wrong.nonzero()[0].tolist()
        raise ValueError(f"returns must be finite: stock {stock} has {float(returns[day, stock])} on day {day}; drop that stock or fill the gap")
    return returns


def drop_constant(returns: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out stocks whose return never changes, with a warning: they have no correlation.

    Returns:
        What is left (days, N') and the indices of the stocks that are kept (N',).
    """
    check_returns(returns)
    moves = (returns != returns[:1]).any(0)
    if not moves.all():
        warnings.warn(f"stocks {(~moves).nonzero()[:, 0].tolist()} are left out: their returns never change", stacklevel=2)
    return returns[:, moves], moves.nonzero()[:, 0]


def return_correlation(returns: Tensor) -> Tensor:
    """Correlation of the stocks' returns: (days, N) to (N, N).

    Raises:
        ValueError: fewer than 2 stocks or 2 days, a return that is not finite, or a stock whose return never changes.
    """
    check_returns(returns)
    if len(returns) < 2:
        raise ValueError(f"a correlation needs at least 2 days, got {len(returns)}")
    still = ~(returns != returns[:1]).any(0)
    if still.any():
        raise ValueError(f"stock {int(still.nonzero()[0])} never changes, so its correlation is undefined: drop_constant leaves such stocks out")
    return torch.corrcoef(returns.T)


def edge_weights(correlation: Tensor) -> Tensor:
    """Positive part of the correlations between different stocks: (N, N), symmetric, zero diagonal."""
    if correlation.dim() != 2 or correlation.shape[0] != correlation.shape[1] or not correlation.isfinite().all():
        raise ValueError(f"correlation must be a square matrix of finite numbers, got shape {tuple(correlation.shape)}")
    weights = correlation.clamp(min=0).clone()
    return weights.fill_diagonal_(0)


def laplacian_embedding(correlation: Tensor, width: int, *, count: int, scale: float = 3.0) -> Tensor:
    """The first eigenvectors of I - D^-1/2 W D^-1/2, times sqrt(N) times ``scale``, padded with zeros: (N, width).

    Args:
        correlation: (N, N); W is its positive part.
        width: channels of the model.
        count: how many eigenvectors; as many as there are groups.
        scale: root mean square of each column. It sets how sharply like attends to like; too large a scale makes attention collapse on single stocks.
    """
    weights = edge_weights(correlation)
    if not 1 <= count <= min(width, len(weights)):
        raise ValueError(f"count must lie between 1 and min(width, stocks) = {min(width, len(weights))}, got {count}")
    root = weights.sum(1).clamp(min=1e-12).rsqrt() * (weights.sum(1) > 0)
    laplacian = torch.eye(len(weights), dtype=weights.dtype) - root[:, None] * weights * root
    vectors = torch.linalg.eigh(laplacian).eigenvectors[:, :count]
    sign = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()  # an eigenvector's sign is nobody's choice: its largest entry is positive
    return F.pad(vectors * sign * scale * len(weights) ** 0.5, (0, width - count)).float()


def structural_weights(weights: Tensor, *, rings: int = 2, quantiles: int = 16) -> Tensor:
    """How alike the roles of two stocks are, ring by ring: exp(-f_k(u, v)), (rings, N, N).

    f_0 compares the strengths (sums of edge weights) of u and v; f_k adds the difference between the ordered strengths of those k steps away.
    Only the order of the strengths counts, not whose they are, and edge weights enter by the strengths alone.
    """
    strength = weights.sum(1)
    log_strength = (strength / strength.mean().clamp(min=1e-12)).clamp(min=1e-3).log()
    linked = (weights > 0).double()
    reached = torch.eye(len(weights), dtype=torch.float64)
    at = torch.linspace(0, 1, quantiles, dtype=torch.float64)
    distance = torch.zeros(len(weights), len(weights), dtype=torch.float64)
    found = []
    ring = reached
    for _ in range(rings):
        size = ring.sum(1, keepdim=True)  # (N, 1); 0 where a stock has nobody that far away
        ordered = log_strength.double().expand(len(weights), -1).masked_fill(ring == 0, torch.inf).sort(1).values
        place = (at * (size - 1).clamp(min=0)).round().long()
        sequence = torch.where(size > 0, ordered.gather(1, place), 0.0)  # (N, quantiles)
        distance = distance + torch.cdist(sequence, sequence, p=1) / quantiles
        found.append((-distance).exp())
        wider = ((reached @ linked + reached) > 0).double()
        ring, reached = wider - reached, wider
    return torch.stack(found).to(weights).masked_fill(torch.eye(len(weights), dtype=torch.bool), 0.0)


def random_walks(layers: Tensor, *, walks: int, length: int, generator: torch.Generator, stay: float = 0.3) -> Tensor:
    """Walks over a graph of several layers with the same nodes, as struc2vec takes them; all walk at once.

    With probability ``stay`` a walker takes an edge of its layer, in proportion to the weights. Else it changes the layer: upwards with the weight
    log(e + edges of its node heavier than the layer's mean), downwards with weight 1. A graph of one layer has steps alone.

    Args:
        layers: edge weights (K, N, N), zero diagonal.
        walks: from each node.
        length: nodes of a walk.
        generator: of the draws.
        stay: see above.

    Returns:
        (N * walks, length) int64.
    """
    depth, nodes = layers.shape[:2]
    if walks < 1 or length < 2:
        raise ValueError(f"walks must be at least 1 and length at least 2, got walks={walks}, length={length}")
    if (layers.sum(2) <= 0).any():
        layer, node = (layers.sum(2) <= 0).nonzero()[0].tolist()
        raise ValueError(f"node {node} has no edge in layer {layer}, so a walk cannot leave it")
    mean = layers.sum((1, 2), keepdim=True) / (nodes * (nodes - 1))
    upwards = (torch.e + (layers > mean).sum(2)).log()  # (K, N)
    rise = upwards / (upwards + 1)
    at = torch.arange(nodes).repeat(walks)
    layer = torch.zeros_like(at)
    path = [at]
    for _ in range(length - 1):
        moving = torch.ones_like(at, dtype=torch.bool)
        while depth > 1 and moving.any():  # change layers until every walker takes a step
            here = moving & (torch.rand(len(at), generator=generator) >= stay)
            up = torch.rand(len(at), generator=generator) < rise[layer, at]
            up = torch.where(layer == 0, True, torch.where(layer == depth - 1, False, up))
            layer = torch.where(here, layer + torch.where(up, 1, -1), layer)
            moving = here
        at = torch.multinomial(layers[layer, at], 1, generator=generator)[:, 0]
        path.append(at)
    return torch.stack(path, 1)


def skip_gram(walks: Tensor, nodes: int, width: int, *, window: int = 5, scale: float = 3.0) -> Tensor:
    """Vectors (nodes, width) of the nodes that explain which meet within ``window`` steps of a walk; padded with zeros beyond their rank.

    The matrix of pointwise mutual information (negative entries at 0) is factorised by SVD; ``scale`` is the root mean square of the widest column.
    """
    met = torch.zeros(nodes, nodes, dtype=torch.float64)
    for lag in range(1, min(window, walks.shape[1] - 1) + 1):
        pairs = torch.stack([walks[:, lag:].flatten(), walks[:, :-lag].flatten()])
        met.index_put_((pairs[0], pairs[1]), torch.ones(pairs.shape[1], dtype=torch.float64), accumulate=True)
    met = met + met.T
    expected = met.sum(1, keepdim=True) * met.sum(0) / met.sum()
    information = (met / expected.clamp(min=1e-12)).clamp(min=1.0).log()
    left, size, _ = torch.linalg.svd(information)
    kept = min(width, nodes)
    vectors = left[:, :kept] * size[:kept].sqrt()
    sign = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    widest = vectors.square().mean(0).max().sqrt().clamp(min=1e-12)
    return F.pad(vectors * sign * scale / widest, (0, width - kept)).float()


def struc2vec_embedding(
    correlation: Tensor, width: int, *, generator: torch.Generator, walks: int = 80, length: int = 10, rings: int = 2, scale: float = 3.0
) -> Tensor:
    """Structural roles of the stocks: struc2vec on the weighted graph, (N, width)."""
    layers = structural_weights(edge_weights(correlation), rings=rings)
    return skip_gram(random_walks(layers, walks=walks, length=length, generator=generator), len(correlation), width, scale=scale)


def walk_embedding(correlation: Tensor, width: int, *, generator: torch.Generator, walks: int = 80, length: int = 10, scale: float = 3.0) -> Tensor:
    """Neighbourhoods of the stocks: walks on the correlations themselves, (N, width)."""
    weights = edge_weights(correlation)
    return skip_gram(random_walks(weights[None], walks=walks, length=length, generator=generator), len(weights), width, scale=scale)
