"""Price-volume factors: 360 numbers a stock and day, cleaned of what size and industry explain.

The factors are those of qlib's set Alpha360 by its public definition: close, open, high, low and vwap of the last 60 days over today's close, and
volume of the last 60 days over today's volume. Where there are fewer kinds of prices there are fewer factors, 60 for each kind.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

FIELDS = ("close", "open", "high", "low", "vwap", "volume")


def price_volume_factors(fields: Mapping[str, Tensor], *, lags: int = 60) -> Tensor:
    """The factors of every day from the ``lags``-th on: 6 fields of (days, N) to (days - lags + 1, N, 6 * lags); the oldest lag comes first.

    Args:
        fields: ``close`` and any of the others of FIELDS.
        lags: days back, the day itself included.

    Raises:
        ValueError: no close, an unknown field, shapes that differ, values that are not positive and finite, or fewer than ``lags`` days.
    """
    if "close" not in fields or set(fields) - set(FIELDS):
        raise ValueError(f"fields must hold close and may hold {', '.join(FIELDS[1:])}; got {', '.join(fields)}")
    close = fields["close"]
    if lags < 1 or len(close) < lags:
        raise ValueError(f"factors of {lags} lags need at least as many days, got {len(close)}")
    found = []
    for name in FIELDS:
        if name not in fields:
            continue
        field = fields[name]
        if field.shape != close.shape:
            raise ValueError(f"{name} must be of the shape of close {tuple(close.shape)}, got {tuple(field.shape)}")
        wrong = ~(field.isfinite() & (field > 0))
        if wrong.any():
            day, stock = wrong.nonzero()[0].tolist()
            raise ValueError(f"{name} must be positive and without gaps: stock {stock} has {float(field[day, stock])} on day {day}")
        unit = field if name == "volume" else close
        found.append(field.unfold(0, lags, 1) / unit[lags - 1 :, :, None])  # (days - lags + 1, N, lags)
    return torch.cat(found, -1)


def neutralise(factors: Tensor, exposures: Tensor) -> Tensor:
    """What exposures do not explain of each day's factors: residuals of least squares over the stocks, then z-scores.

    Args:
        factors: (days, N, F).
        exposures: (days, N, E), such as the log market value and one column for each industry.

    Returns:
        (days, N, F); 0 where the residuals of a day do not differ.
    """
    if factors.dim() != 3 or exposures.dim() != 3 or factors.shape[:2] != exposures.shape[:2]:
        raise ValueError(
            f"factors and exposures must be (days, stocks, ...) on the same days and stocks, got {tuple(factors.shape)}, {tuple(exposures.shape)}"
        )
    if not (factors.isfinite().all() and exposures.isfinite().all()):
        raise ValueError("factors and exposures must be finite")
    basis, size, _ = torch.linalg.svd(exposures, full_matrices=False)
    basis = basis * (size > 1e-9 * size[:, :1])[:, None]  # exposures that repeat others add nothing
    residual = factors - basis @ (basis.transpose(1, 2) @ factors)
    spread = residual.std(1, keepdim=True)
    centred = residual - residual.mean(1, keepdim=True)
    return torch.where(spread > 1e-9 * factors.abs().amax(1, keepdim=True), centred / spread.clamp(min=1e-30), 0.0)
