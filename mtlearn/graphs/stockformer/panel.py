"""From days to training windows: returns, factors and time marks by day, cut into batches of windows with their targets.

A window is named by its last input day t: it reads the T1 days up to t and predicts the T2 days after it. Targets of a split lie within the split;
inputs may reach back into the days before it. Only factors by day are kept in memory: windows are gathered when they are asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from mtlearn.graphs.stockformer.embedding import check_returns
from mtlearn.graphs.stockformer.method import Split, WaveletSplit


@dataclass(frozen=True)
class Panel:
    """What is known of every stock and day.

    Attributes:
        returns: (days, N), any unit.
        factors: (days, N, F), of the day itself or before.
        marks: (days, 2) int64, two positions in time, such as weekday and day of the month.

    Raises:
        ValueError: shapes that do not fit, a single stock, values that are not finite.
    """

    returns: Tensor
    factors: Tensor
    marks: Tensor

    def __post_init__(self) -> None:
        check_returns(self.returns)
        if self.factors.dim() != 3 or self.factors.shape[:2] != self.returns.shape:
            raise ValueError(
                f"factors must be of shape (days, stocks, factors) on returns {tuple(self.returns.shape)}, got {tuple(self.factors.shape)}"
            )
        if self.marks.shape != (len(self.returns), 2) or self.marks.is_floating_point():
            raise ValueError(f"marks must be whole numbers of shape ({len(self.returns)}, 2), got {tuple(self.marks.shape)} of {self.marks.dtype}")
        if not self.factors.isfinite().all():
            day, stock, factor = (~self.factors.isfinite()).nonzero()[0].tolist()
            raise ValueError(f"factors must be finite: factor {factor} of stock {stock} on day {day} is {float(self.factors[day, stock, factor])}")


class Batch(NamedTuple):
    """Eight tensors of B windows: inputs (B, T1, N), factors (B, T1, N, F), marks (B, T1 + T2, 2), targets (B, T2, N)."""

    low: Tensor
    high: Tensor
    up: Tensor
    factors: Tensor
    marks: Tensor
    target: Tensor
    low_target: Tensor
    target_up: Tensor


class Windows:
    """The windows of a panel.

    Args:
        panel: returns, factors and marks by day.
        days: T1.
        horizon: T2.
        split: takes windows of returns to their low and high parts, for inputs.
        target_split: the same for targets, whose low part alone is used; the wavelet of ``split`` on the short target window when omitted.

    Raises:
        ValueError: T1 or T2 below 1, or fewer days than T1 + T2.
    """

    def __init__(self, panel: Panel, *, days: int = 20, horizon: int = 2, split: Split | None = None, target_split: Split | None = None) -> None:
        if days < 1 or horizon < 1:
            raise ValueError(f"days and horizon must be at least 1, got days={days}, horizon={horizon}")
        if len(panel.returns) < days + horizon:
            raise ValueError(f"a window needs T1 + T2 = {days + horizon} days, the panel has {len(panel.returns)}")
        self.panel, self.days, self.horizon = panel, days, horizon
        self.split = split or WaveletSplit()
        if target_split is None:
            wavelet = self.split
            target_split = WaveletSplit(wavelet.wavelet, wavelet.level, wavelet.mode, short=True) if isinstance(wavelet, WaveletSplit) else wavelet
        self.target_split = target_split

    def ends(self, targets: range) -> Tensor:
        """The last input days of all windows whose T2 target days lie in ``targets`` and whose inputs the panel has: (windows,)."""
        first, last = max(targets.start - 1, self.days - 1), min(targets.stop, len(self.panel.returns)) - 1 - self.horizon
        if last < first:
            raise ValueError(
                f"days {targets.start} to {targets.stop - 1} hold no window of {self.days} input days and {self.horizon} target days "
                f"in a panel of {len(self.panel.returns)} days"
            )
        return torch.arange(first, last + 1)

    def batch(self, ends: Tensor) -> Batch:
        """The windows whose last input days are ``ends`` (B,)."""
        past = ends[:, None] + torch.arange(1 - self.days, 1)  # (B, T1)
        ahead = ends[:, None] + torch.arange(1, self.horizon + 1)  # (B, T2)
        inputs, target = self.panel.returns[past], self.panel.returns[ahead]
        low, high = self.split(inputs)
        marks = self.panel.marks[torch.cat([past, ahead], 1)]
        up = (inputs > 0).to(inputs)
        return Batch(low, high, up, self.panel.factors[past], marks, target, self.target_split(target)[0], (target > 0).long())


def check_splits(splits: Mapping[str, range]) -> None:
    """Raise ValueError unless the splits' target days follow one another in time without overlap."""
    named = list(splits.items())
    for name, days in named:
        if days.start < 0 or not len(days) or days.step != 1:
            raise ValueError(f"split {name!r} must be a range of days, got {days}")
    for (earlier, before), (later, after) in pairwise(named):
        if after.start < before.stop:
            raise ValueError(f"splits overlap in time: {later!r} begins on day {after.start}, {earlier!r} ends on day {before.stop - 1}")


def lag_means(returns: Tensor, lengths: Sequence[int]) -> Tensor:
    """Means over the last days up to each day, as far back as there are days: (days, N) to (days, N, len(lengths))."""
    if min(lengths, default=0) < 1:
        raise ValueError(f"lengths must be at least 1, got {list(lengths)}")
    total = torch.cat([torch.zeros_like(returns[:1]), returns.cumsum(0)])
    day = torch.arange(len(returns))
    first = [(day + 1 - length).clamp(min=0) for length in lengths]
    return torch.stack([(total[1:] - total[start]) / (day + 1 - start)[:, None] for start in first], -1)
