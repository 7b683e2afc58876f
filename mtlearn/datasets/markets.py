"""Markets: a synthetic one whose best prediction can be computed, and the real prices that ship with matplotlib.

The synthetic market has sectors of stocks. On day t stock i of sector s returns, in per cent::

    r[t, i] = u[t, s] + J[t, s] - reversion * J[t-1, s] + noise_sd * e[t, i]

    u   the sector's slow trend: u[t] = phi * u[t-1] + innovation, with standard deviation trend_sd
    J   the sector's jumps: 0 on most days, else +-jump_size times a factor from 0.7 to 1.3; part of each is taken back the next day
    e   normal noise of each stock alone

What can be known of tomorrow is the trend, which shows in the mean over the sector's stocks, and what yesterday's jump will give back.
:func:`best_prediction` computes it for one who sees the jumps: a Kalman filter on the sector means, less the reversion. No model that reads
returns alone can have a smaller expected squared or absolute error (the conditional distribution is symmetric around its mean): a bound for all.

The real prices are two files of matplotlib's sample data: monthly closes of a few stocks and indices since 1990, and one stock daily with
open, high, low, close and volume.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Dates = NDArray[np.datetime64]


@dataclass(frozen=True)
class World:
    """The constants of a synthetic market.

    Attributes:
        sectors: how many sectors.
        stocks: stocks of each sector.
        phi: what is left of the trend after a day, in (-1, 1).
        trend_sd: standard deviation of the trend, per cent.
        jump_probability: of a sector on a day.
        jump_size: middle of the jumps' sizes, per cent.
        reversion: share of a jump that is taken back the next day.
        noise_sd: standard deviation of each stock's own noise, per cent.
    """

    sectors: int = 2
    stocks: int = 12
    phi: float = 0.95
    trend_sd: float = 0.6
    jump_probability: float = 0.15
    jump_size: float = 2.0
    reversion: float = 0.6
    noise_sd: float = 1.5

    def __post_init__(self) -> None:
        if self.sectors < 1 or self.stocks < 1 or self.sectors * self.stocks < 2:
            raise ValueError(f"a market needs at least 2 stocks, got {self.sectors} sectors of {self.stocks}")
        if not -1 < self.phi < 1:
            raise ValueError(f"phi must lie between -1 and 1, got {self.phi}")
        if not 0 <= self.jump_probability <= 1:
            raise ValueError(f"jump_probability must lie in 0..1, got {self.jump_probability}")
        for name in ("trend_sd", "jump_size", "noise_sd"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")

    @property
    def sector(self) -> Tensor:
        """The sector of each stock: (sectors * stocks,) int64; a sector's stocks lie side by side."""
        return torch.arange(self.sectors).repeat_interleave(self.stocks)


@dataclass(frozen=True)
class Market:
    """A drawn market.

    Attributes:
        world: its constants.
        returns: (days, sectors * stocks) float64, per cent.
        trend: u (days, sectors).
        jumps: J (days, sectors); 0 where there is none.
    """

    world: World
    returns: Tensor
    trend: Tensor
    jumps: Tensor

    @property
    def shocked(self) -> Tensor:
        """Whether a stock's sector jumped the day before: (days, stocks) bool, the days on which part of a jump is taken back."""
        before = torch.cat([torch.zeros_like(self.jumps[:1]), self.jumps[:-1]])
        return (before != 0)[:, self.world.sector]


def sample_market(days: int, world: World | None = None, *, generator: torch.Generator) -> Market:
    """Draw a market of ``days`` days. The trend starts in its stationary distribution.

    Raises:
        ValueError: fewer than 2 days.
    """
    world = world or World()
    if days < 2:
        raise ValueError(f"days must be at least 2, got {days}")
    size = (days, world.sectors)
    shocks = torch.randn(size, generator=generator, dtype=torch.float64) * world.trend_sd
    shocks[1:] *= (1 - world.phi**2) ** 0.5
    trend = torch.empty_like(shocks)
    level = torch.zeros(world.sectors, dtype=torch.float64)
    for day, shock in enumerate(shocks):
        trend[day] = level = world.phi * level + shock
    happens = torch.rand(size, generator=generator, dtype=torch.float64) < world.jump_probability
    sign = 2.0 * torch.randint(2, size, generator=generator) - 1
    factor = 0.7 + 0.6 * torch.rand(size, generator=generator, dtype=torch.float64)
    jumps = happens * sign * world.jump_size * factor
    noise = world.noise_sd * torch.randn(days, len(world.sector), generator=generator, dtype=torch.float64)
    moves = trend + jumps
    moves[1:] -= world.reversion * jumps[:-1]
    return Market(world, moves[:, world.sector] + noise, trend, jumps)


def best_prediction(market: Market) -> Tensor:
    """The expected return of every stock on every day, given all returns and jumps of the days before: (days, stocks), per cent.

    The sector mean less what jumps made of it is the trend plus noise of variance ``noise_sd**2 / stocks``; a Kalman filter predicts it.
    """
    world = market.world
    means = market.returns.view(-1, world.sectors, world.stocks).mean(2)  # (days, sectors)
    taken_back = torch.zeros_like(market.jumps)
    taken_back[1:] = -world.reversion * market.jumps[:-1]
    seen = means - market.jumps - taken_back
    variance, step, noise = world.trend_sd**2, world.trend_sd**2 * (1 - world.phi**2), world.noise_sd**2 / world.stocks
    expected = torch.zeros_like(seen)
    level = torch.zeros(world.sectors, dtype=torch.float64)
    for day in range(len(seen)):
        expected[day] = level
        gain = variance / (variance + noise) if variance + noise > 0 else 0.0
        level = world.phi * (level + gain * (seen[day] - level))
        variance = world.phi**2 * (1 - gain) * variance + step
    return (expected + taken_back)[:, world.sector]


def price_fields(returns: Tensor, *, generator: torch.Generator) -> dict[str, Tensor]:
    """Daily bars around drawn returns: close, open, high, low, vwap and volume, each (days, stocks), with nothing in them that the returns lack.

    The close starts at 100 and follows ``returns`` (per cent). The open lies near the close before, high and low outside of both, the mean
    traded price between them, and volume grows with the size of the move; all by draws of their own.
    """

    def draw() -> Tensor:
        return torch.randn(returns.shape, generator=generator, dtype=returns.dtype)

    close = 100 * (1 + returns / 100).cumprod(0)
    before = torch.cat([torch.full_like(close[:1], 100.0), close[:-1]])
    opened = before * (1 + 0.002 * draw())
    high = torch.maximum(opened, close) * (1 + 0.004 * draw().abs())
    low = torch.minimum(opened, close) * (1 - 0.004 * draw().abs())
    volume = (13.0 + 0.3 * draw() + 0.1 * returns.abs()).exp()
    return {"close": close, "open": opened, "high": high, "low": low, "vwap": (high + low + close) / 3, "volume": volume}


@dataclass(frozen=True)
class Prices:
    """Prices of several stocks on the same dates, without a gap.

    Attributes:
        names: of the stocks.
        dates: (days,) datetime64[D], increasing.
        close: (days, stocks) float64.

    Raises:
        ValueError: dates that do not increase, a missing, infinite or non-positive price; it names the date and the stock.
    """

    names: tuple[str, ...]
    dates: Dates
    close: Tensor

    def __post_init__(self) -> None:
        if self.close.shape != (len(self.dates), len(self.names)) or not self.close.numel():
            raise ValueError(f"close must be of shape (dates, names) = ({len(self.dates)}, {len(self.names)}), got {tuple(self.close.shape)}")
        steps = np.diff(self.dates).astype("int64")
        if (steps <= 0).any():
            at = int((steps <= 0).argmax()) + 1
            what = "comes twice" if steps[at - 1] == 0 else f"comes after {self.dates[at - 1]}"
            raise ValueError(f"dates must increase: {self.dates[at]} {what}")
        wrong = ~(self.close.isfinite() & (self.close > 0))
        if wrong.any():
            day, stock = wrong.nonzero()[0].tolist()
            value = float(self.close[day, stock])
            found = "has no price" if value != value else f"has the price {value}"
            raise ValueError(
                f"{self.names[stock]} {found} on {self.dates[day]}: prices must be positive and without gaps; drop that stock or these dates"
            )

    @property
    def log_returns(self) -> Tensor:
        """(days - 1, stocks): the change of the logarithm up to each date but the first, per cent."""
        return 100 * self.close.log().diff(dim=0)


def read_prices(lines: Iterable[str], *, gaps: Literal["error", "drop stocks"] = "error") -> Prices:
    """Read closes from CSV: a column ``Date`` (year-month-day), then a column for each stock; lines that begin with # are comments.

    Rows without any price are left out. The last row is left out too where it only repeats the prices before it.

    Args:
        lines: of the file.
        gaps: what becomes of stocks with a missing price: an error, or they are left out.

    Raises:
        ValueError: no column ``Date``, no rows, a date or a price that cannot be read, dates that do not increase, or gaps.
    """
    if gaps not in ("error", "drop stocks"):
        raise ValueError(f"gaps must be 'error' or 'drop stocks', got {gaps!r}")
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    if not rows or "Date" not in rows[0]:
        raise ValueError("prices must have a column Date, a column for each stock, and rows")
    names = tuple(name for name in rows[0] if name != "Date")
    rows = [row for row in rows if any(row[name] for name in names)]
    if not rows:
        raise ValueError("prices must have a column Date, a column for each stock, and rows")
    dates = np.array([_date(row["Date"]) for row in rows])
    close = torch.tensor([[_number(row[name], name, row["Date"]) for name in names] for row in rows], dtype=torch.float64)
    if len(close) > 1 and torch.equal(close[-1].nan_to_num(), close[-2].nan_to_num()):
        dates, close = dates[:-1], close[:-1]
    if gaps == "drop stocks":
        whole = ~close.isnan().any(0)
        names, close = tuple(name for name, keep in zip(names, whole.tolist(), strict=True) if keep), close[:, whole]
    return Prices(names, dates, close)


def _date(text: str) -> np.datetime64:
    try:
        return np.datetime64(text, "D")
    except ValueError:
        raise ValueError(f"{text!r} is not a date of the form 1990-01-31") from None


def _number(text: str | None, name: str, date: str) -> float:
    try:
        return float(text) if text else float("nan")
    except ValueError:
        raise ValueError(f"{name} has the price {text!r} on {date}: it must be a number") from None


def monthly_stocks() -> Prices:
    """The complete series of matplotlib's ``Stocks.csv``: five companies and two indices, 390 months from January 1990."""
    from matplotlib.cbook import get_sample_data

    file: Any = get_sample_data("Stocks.csv")
    with file as lines:
        return read_prices(lines, gaps="drop stocks")


def daily_google() -> tuple[Dates, Mapping[str, Tensor]]:
    """One stock day by day, matplotlib's ``goog.npz``: 1,047 trading days of one stock from August 2004.

    Returns:
        The dates, and close, open, high, low and volume by name, each (days, 1) float64.
    """
    from matplotlib.cbook import get_sample_data

    file: Any = get_sample_data("goog.npz")
    with file as arrays:
        rows = arrays["price_data"]
    order = np.argsort(rows["date"])
    fields = {name: torch.from_numpy(rows[name][order].astype(np.float64))[:, None] for name in ("close", "open", "high", "low", "volume")}
    return rows["date"][order].astype("datetime64[D]"), fields
