"""Which items become anchors: at random as in the paper, or chosen by what the anchor queries say of them."""

import warnings
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Choice = Literal["uniform", "k-means", "leverage"]


def choose_anchors(rows: Tensor, count: int, how: Choice = "uniform", *, generator: torch.Generator | None = None) -> Tensor:
    """Numbers of the anchor items, in ascending order.

    Args:
        rows: R (k_q, m), the scores of the anchor queries with all items.
        count: k_i, from 1 to m.
        how: "uniform" draws at random (the paper). "k-means" groups the items by their columns of R and takes the item nearest to each centre.
            "leverage" draws items with probability proportional to their leverage scores, which are high for columns that the others do not
            explain (Mahoney and Drineas, PNAS 2009).
        generator: where random numbers come from.

    Returns:
        (k_i,) int64, each once.

    Raises:
        ValueError: ``count`` out of range, or an unknown way.
    """
    if how not in get_args(Choice):
        raise ValueError(f"how must be one of {', '.join(get_args(Choice))}, got {how!r}")
    items = rows.shape[1]
    if not 1 <= count <= items:
        raise ValueError(f"the number of anchors must be between 1 and m={items}, the number of items, got {count}")
    order = torch.randperm(items, generator=generator)
    if how == "uniform":
        chosen = order[:count]
    elif how == "leverage":
        chance = leverage_scores(rows, count).cpu()
        chosen = torch.multinomial(chance.clamp(min=1e-12 * float(chance.max()) + 1e-300), count, generator=generator)
    else:
        centres = _medoids(rows.T.double().cpu().numpy(), count, int(order[0]))
        others = order[~torch.isin(order, centres)]  # equal columns make fewer groups than were asked for
        chosen = torch.cat([centres, others[: count - len(centres)]])
    return chosen.sort().values.to(rows.device)


def leverage_scores(rows: Tensor, rank: int) -> Tensor:
    """(m,): the squared length of each item's part in the leading right singular vectors of R; they sum to their number, at most ``rank``."""
    _, s, directions = torch.linalg.svd(rows.double(), full_matrices=False)
    there = s > 1e-12 * s[:1]  # a direction of size 0 is noise
    leading: Tensor = (directions * there[:, None])[:rank]
    return leading.square().sum(0)


def _medoids(points: np.ndarray, count: int, seed: int) -> Tensor:
    """The member nearest to the centre of each group of k-means."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(count, n_init=1, random_state=seed).fit(points)
    distance = np.linalg.norm(points - found.cluster_centers_[found.labels_], axis=1)
    order = np.lexsort((distance, found.labels_))
    _, first = np.unique(found.labels_[order], return_index=True)
    return torch.from_numpy(order[first])
