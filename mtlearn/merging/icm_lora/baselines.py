"""What a generator of adapters has to beat: a table, averages, the nearest task, and linear regression."""

import torch
from torch import Tensor


def nearest(seen: Tensor, wanted: Tensor, *, but: Tensor | None = None) -> Tensor:
    """The seen task whose vector is nearest.

    Args:
        seen: (S, d) task vectors.
        wanted: (T, d).
        but: (T, S) bool, pairs that are left out: a task itself, where the nearest *other* one is wanted.

    Returns:
        (T,) row of ``seen``, by Euclidean distance.
    """
    distance = torch.cdist(wanted, seen)
    return (distance if but is None else distance.masked_fill(but, torch.inf)).argmin(1)


def angular_neighbours(seen: Tensor, wanted: Tensor) -> Tensor:
    """The seen angles next below and next above each wanted one, on the circle.

    Args:
        seen: (S,) degrees, different from each other.
        wanted: (T,) degrees.

    Returns:
        (T, 2) rows of ``seen``; the wanted angle itself is never among them.
    """
    ahead = (seen - wanted[:, None]) % 360  # (T, S): degrees until the seen angle when turning on
    behind = (wanted[:, None] - seen) % 360
    ahead = torch.where(ahead == 0, 360.0, ahead)
    behind = torch.where(behind == 0, 360.0, behind)
    return torch.stack([behind.argmin(1), ahead.argmin(1)], 1)


def harmonics(degrees: Tensor, count: int) -> Tensor:
    """(..., 2 count): cos and sin of 1 to ``count`` times the angle."""
    angle = torch.deg2rad(degrees)[..., None] * torch.arange(1, count + 1)
    return torch.cat([angle.cos(), angle.sin()], -1)


class Ridge:
    """Ridge regression from features to vectors, with an intercept that is not shrunk.

    Args:
        features: (n, k).
        targets: (n, P).
        penalty: on the squared coefficients.
    """

    def __init__(self, features: Tensor, targets: Tensor, penalty: float) -> None:
        if len(features) != len(targets) or len(features) < 3:
            raise ValueError(f"at least 3 rows of features and as many targets are wanted, got {len(features)} and {len(targets)}")
        if not penalty > 0:
            raise ValueError(f"penalty must be positive, got {penalty}")
        self.centre, self.mean = features.mean(0), targets.mean(0)
        left, singular, axes = torch.linalg.svd(features - self.centre, full_matrices=False)
        inner = left.T @ (targets - self.mean)  # (k, P)
        shrink = singular.square() / (singular.square() + penalty)
        self.weight = axes.T @ (inner * (singular / (singular.square() + penalty))[:, None])  # (k, P)
        fitted = (left * shrink) @ inner + self.mean
        leverage = (left.square() * shrink).sum(1) + 1 / len(features)  # of each row, the intercept's included
        self.left_out = targets - (targets - fitted) / (1 - leverage).clamp(min=1e-6)[:, None]

    left_out: Tensor
    """(n, P) what is predicted for each row by the regression on all other rows."""

    def __call__(self, features: Tensor) -> Tensor:
        """(..., k) to (..., P)."""
        predicted: Tensor = (features - self.centre) @ self.weight + self.mean
        return predicted


def mean_of_products(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the mean of n adapters' products B A, exact, of n times the rank.

    Averaging the factors instead gives (mean B)(mean A), which is another matrix unless all share one A or one B.

    Args:
        down: (..., n, rank, inputs) factors A.
        up: (..., n, outputs, rank) factors B.

    Returns:
        A (..., n * rank, inputs) and B (..., outputs, n * rank).
    """
    count = down.shape[-3]
    stacked = down.flatten(-3, -2)
    side_by_side = up.movedim(-3, -2).flatten(-2, -1) / count  # (..., outputs, n * rank)
    return stacked, side_by_side
