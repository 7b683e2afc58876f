"""What a forecast is worth: rank correlation, error against predicting zero, and a portfolio that pays for its trades.

**Top-k with dropout** (a strategy of the qlib library). Hold k stocks. Every day rank the held stocks and the ``drop`` best of the others together,
sell the held ones that lie among the last ``drop`` of that list, and buy as many of the best others. With ``drop`` = k the portfolio follows the
ranking at once; a small ``drop`` trades less, which matters once trades cost. What is sold pays ``sell``, what is bought ``buy``, as shares of the
amount; the proceeds are split equally over the purchases, and what is held is left as it is. The published notebook holds the k best of each day in
equal parts, with costs set to 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

YEAR = 252  # trading days


def ranks(values: Tensor) -> Tensor:
    """Ranks 1..N along the last axis, equal values at their mean rank."""
    below = (values[..., :, None] > values[..., None, :]).sum(-1)
    equal = (values[..., :, None] == values[..., None, :]).sum(-1)
    return below + (equal.double() + 1) / 2


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation along the last axis; NaN where one side is constant."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    spread = (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return torch.where(spread > 0, (a * b).sum(-1) / spread.clamp(min=1e-30), torch.nan)


def rank_ic(scores: Tensor, returns: Tensor) -> Tensor:
    """Information coefficient of every day, the Spearman correlation over the stocks of score and return: (days, N) twice to (days,).

    A day on which all scores are equal has none: NaN.
    """
    if scores.shape != returns.shape or scores.dim() != 2:
        raise ValueError(f"scores and returns must be of one shape (days, stocks), got {tuple(scores.shape)} and {tuple(returns.shape)}")
    if not (scores.isfinite().all() and returns.isfinite().all()):
        raise ValueError("scores and returns must be finite")
    return correlation(ranks(scores.double()), ranks(returns.double()))


@dataclass(frozen=True)
class MeanIC:
    """Mean over the days with its 95 % interval (days as draws), and how many days have no IC."""

    mean: float
    low: float
    high: float
    undefined: int


def mean_ic(ics: Tensor) -> MeanIC:
    """Summarise daily ICs. All NaN where no day, no interval where one day has one."""
    known = ics[~ics.isnan()]
    if not len(known):
        return MeanIC(torch.nan, torch.nan, torch.nan, len(ics))
    mean = float(known.mean())
    half = 1.96 * float(known.std()) / len(known) ** 0.5 if len(known) > 1 else torch.nan
    return MeanIC(mean, mean - half, mean + half, len(ics) - len(known))


def mae_ratio(predicted: Tensor, returns: Tensor) -> float:
    """Mean absolute error over that of predicting zero; 1 is no gain."""
    return float((predicted - returns).abs().mean() / returns.abs().mean())


def direction_accuracy(up: Tensor, returns: Tensor) -> float:
    """Share of right calls of up (return above 0) and not up; ``up`` is bool."""
    return float((up == (returns > 0)).double().mean())


def running_gain(predicted: Tensor, returns: Tensor) -> Tensor:
    """MAE of zero less MAE of the prediction over all days so far, as a share of the MAE of zero over all days: (days, N) twice to (days,).

    Above 0 the prediction is better than nothing.
    """
    daily = (returns.abs() - (predicted - returns).abs()).mean(1)
    return daily.cumsum(0) / torch.arange(1, len(daily) + 1, device=daily.device) / returns.abs().mean()


@dataclass(frozen=True)
class Backtest:
    """A portfolio's days.

    Attributes:
        net: return of each day after costs, as a share (days,).
        gross: the same before that day's costs.
        turnover: what was sold, as a share of the portfolio (days,).
        held: which stocks were held over the day (days, N) bool.
    """

    net: Tensor
    gross: Tensor
    turnover: Tensor
    held: Tensor

    @property
    def wealth(self) -> Tensor:
        """What 1 has become after each day: (days,)."""
        return (1 + self.net).cumprod(0)

    @property
    def annual_return(self) -> float:
        """Compound return of a year, as a share."""
        return float(self.wealth[-1] ** (YEAR / len(self.net)) - 1)

    @property
    def sharpe(self) -> float:
        """Mean over standard deviation of the daily net return, times the root of the days of a year; NaN where it never changes."""
        spread = float(self.net.std()) if len(self.net) > 1 else 0.0
        return float(self.net.mean()) / spread * YEAR**0.5 if spread > 0 else torch.nan

    @property
    def drawdown(self) -> float:
        """Largest loss from a peak, as a share of the peak."""
        wealth = torch.cat([torch.ones(1, dtype=self.net.dtype), self.wealth])
        return float((1 - wealth / wealth.cummax(0).values).max())


def top_k_dropout(scores: Tensor, returns: Tensor, *, k: int, drop: int, buy: float = 0.0005, sell: float = 0.0015) -> Backtest:
    """Run the strategy of this module's docstring.

    Args:
        scores: (days, N), known before the day begins; larger is better.
        returns: (days, N) of the same days, as shares (0.01 is one per cent).
        k: how many stocks are held.
        drop: how many may be sold a day.
        buy: cost of buying, a share of the amount.
        sell: cost of selling.

    Raises:
        ValueError: shapes that differ, values that are not finite, a return of -1 or less, k outside 1..N, drop outside 0..k, a cost outside [0, 1).
    """
    if scores.shape != returns.shape or scores.dim() != 2 or not len(scores):
        raise ValueError(f"scores and returns must be of one shape (days, stocks), got {tuple(scores.shape)} and {tuple(returns.shape)}")
    if not (scores.isfinite().all() and returns.isfinite().all()):
        raise ValueError("scores and returns must be finite")
    if not (returns > -1).all():
        raise ValueError(f"returns are shares of the price and above -1, got {float(returns.min()):.3g}: were they per cent?")
    days, stocks = scores.shape
    if not 1 <= k <= stocks or not 0 <= drop <= k:
        raise ValueError(f"k must lie in 1..{stocks} and drop in 0..k, got k={k}, drop={drop}")
    if not 0 <= buy < 1 or not 0 <= sell < 1:
        raise ValueError(f"costs are shares of the amount in [0, 1), got buy={buy}, sell={sell}")
    drop = min(drop, stocks - k)  # no more can be exchanged than are not held
    order = scores.argsort(dim=1, descending=True, stable=True)  # (days, N)
    growth = 1 + returns.double()
    value = torch.zeros(stocks, dtype=torch.float64)  # of each position
    cash = torch.tensor(1.0, dtype=torch.float64)
    net, gross, turnover = (torch.zeros(days, dtype=torch.float64) for _ in range(3))
    held = torch.zeros(days, stocks, dtype=torch.bool)
    holding = torch.zeros(stocks, dtype=torch.bool)
    for day in range(days):
        before = value.sum() + cash
        ranked = order[day]
        others = ranked[~holding[ranked]]
        free = k - int(holding.sum())
        listed = holding.clone()
        listed[others[: drop + free]] = True
        last = ranked[listed[ranked]].flip(0)[:drop]
        sold = last[holding[last]]
        amount = value[sold].sum()
        cash = cash + amount * (1 - sell)
        value[sold], holding[sold] = 0.0, False
        bought = others[: len(sold) + free]
        if len(bought):
            value[bought] = cash / (1 + buy) / len(bought)
            holding[bought], cash = True, torch.zeros_like(cash)
        invested = value.sum() + cash
        value = value * growth[day]
        after = value.sum() + cash
        gross[day], net[day], turnover[day], held[day] = after / invested - 1, after / before - 1, amount / before, holding
    return Backtest(net, gross, turnover, held)


def equal_weights(returns: Tensor) -> Tensor:
    """Return of each day of all stocks in equal parts, without costs: (days,). What a portfolio must beat."""
    return returns.double().mean(1)


def regimes(returns: Tensor, *, days: int = 20) -> Tensor:
    """Falling, flat or rising, 0, 1, 2: thirds of the days by the return of the equal-weighted market over the ``days`` before: (days,).

    The first ``days`` days, which have no such past, are -1.
    """
    market = equal_weights(returns)
    if len(market) <= days + 2:
        raise ValueError(f"thirds by the last {days} days need more than {days + 2} days, got {len(market)}")
    total = torch.cat([torch.zeros(1, dtype=market.dtype), market.cumsum(0)])
    past = total[days:-1] - total[: -1 - days]  # of the days before day ``days``, and so on
    place = past.argsort().argsort()
    return torch.cat([torch.full((days,), -1), 3 * place // len(past)])
