"""Exercises on Stockformer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.graphs.stockformer.backtest import rank_ic
from mtlearn.graphs.stockformer.method import WaveletSplit
from mtlearn.lab.seeds import stream


def _noise(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=stream(0, "exercise", name), dtype=torch.float64)


def _lowest(share: float, name: str) -> Tensor:
    """True in a share of the entries."""
    noise = _noise(60, 255, name=name)
    return noise < noise.quantile(share)


def _judge_mirror(answer: Callable[[Tensor, int], Tensor]) -> str | None:
    returns, scores = _noise(40, 6, name="returns"), _noise(1, 6, name="scores")
    for day in (25, 39):
        given = answer(returns.clone(), day)
        if not isinstance(given, Tensor) or given.shape != returns.shape:
            return "return the returns of all days, a tensor of the same shape (days, stocks)."
        others = torch.arange(40) != day
        if not torch.equal(given[others], returns[others]):
            return f"only day {day} may change: the model must see the same past."
        before, after = (float(rank_ic(scores, r[day : day + 1])[0]) for r in (returns, given))
        if abs(before + after) > 1e-6:
            return (
                f"the IC of a fixed prediction of day {day} was {before:.2f} and is now {after:.2f}; it should have turned around, to {-before:.2f}."
            )
        if not torch.allclose(given.T @ given, returns.T @ returns):
            return "the products r_i r_j summed over the days, of which the graph is made, have changed. What leaves a product of two as it is?"
    return None


def _solve_mirror() -> Any:
    def mirror(returns: Tensor, day: int) -> Tensor:
        # (-r_i) (-r_j) = r_i r_j: no product changes, every sign does
        turned = returns.clone()
        turned[day] = -returns[day]
        return turned

    return mirror


def _wrong_mirror(returns: Tensor, day: int) -> Tensor:
    turned = returns.clone()
    turned[day] = returns[day].flip(0)
    return turned


def _judge_skill(answer: Callable[[Tensor, Tensor], float]) -> str | None:
    for share in (0.458, 0.5, 0.7):
        up = _lowest(share, "labels")
        called = torch.where(_lowest(0.534, "calls"), up, ~up)
        right, often = float((called == up).double().mean()), max(float(up.double().mean()), 1 - float(up.double().mean()))
        given = float(answer(called, up))
        if abs(given - (right - 0.5)) < 1e-6 and abs(often - 0.5) > 0.01:
            return f"{100 * share:.1f} % of the labels are up. Who always says the same word is then right more often than half of the time."
        if abs(given - (right - often)) > 1e-6:
            return (
                f"with {100 * share:.1f} % of the labels up, {100 * right:.1f} % of the calls are right and the best constant call is right in "
                f"{100 * often:.1f} %; the gain is {100 * (right - often):+.1f} points, yours is {100 * given:+.1f}."
            )
    return None


def _solve_skill() -> Any:
    def skill(called: Tensor, up: Tensor) -> float:
        accuracy = (called == up).double().mean()
        share = up.double().mean()
        return float(accuracy - torch.maximum(share, 1 - share))

    return skill


def _wrong_skill(called: Tensor, up: Tensor) -> float:
    return float((called == up).double().mean()) - 0.5


def _judge_split(answer: Callable[[Tensor], tuple[Tensor, Tensor]]) -> str | None:
    x = _noise(2, 20, 3, name="windows")
    low, high = answer(x.clone())
    if low.shape != x.shape or high.shape != x.shape:
        return f"low and high must both have the shape of the window {tuple(x.shape)}; yours are {tuple(low.shape)} and {tuple(high.shape)}."
    if not torch.allclose(low + high, x):
        return "low and high must sum to the window, or something of it is lost."
    flat = torch.full_like(x, 2.0)
    if not torch.allclose(answer(flat)[0][:, 8:], flat[:, 8:]):
        return "a series that never changes is all trend: after the first days its low part must be the series itself."
    if float(low.std()) > 0.8 * float(x.std()):
        return (
            f"the low part of noise should be calmer than the noise: its standard deviation is {float(low.std() / x.std()):.2f} of it, not below 0.8."
        )
    for first in range(9, 15):
        later = x.clone()
        later[:, first:] = _noise(2, 20 - first, 3, name="later")
        if not torch.allclose(answer(later)[0][:, :first], low[:, :first]):
            return f"the low part of the first {first} days changes with the days after them. (That of the wavelet does, too.) Look back alone."
    return None


def _solve_split() -> Any:
    def split(x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.nn.functional.pad(x, (0, 0, 1, 0)).cumsum(1)
        day = torch.arange(1, x.shape[1] + 1)
        first = (day - 3).clamp(min=0)
        low = (total[:, day] - total[:, first]) / (day - first)[:, None]
        return low, x - low

    return split


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            "**1. Does a graph of all days leak the future?** Suppose the graph is built from the products $r_i r_j$ summed over *all* days, "
            "test days included. Can it tell the model whether a stock will rise on a test day? Write a function of `(returns, day)`, returns of "
            "shape (days, stocks), that changes that day alone, leaves all those sums exactly as they are, and yet turns the IC of every fixed "
            "prediction of that day around. Set `answer` to it."
        ),
        judge=_judge_mirror,
        solve=_solve_mirror,
        wrong=_wrong_mirror,
        reason=(
            "the mirrored day is as likely as the day itself where returns are noise, and model and graph are the same for both: so the IC has "
            "mean exactly 0. Such a graph leaks who moves with whom, and how much, never the direction. It is still no graph that one could have "
            "had in time."
        ),
    ),
    Exercise(
        question=(
            "**2. When is 53.4 % worse than guessing?** The published predictions of one test period call 53.4 % of the directions right. Write a "
            "function of `(called, up)`, two bool tensors, that returns by how much the calls beat the best *constant* call (always up, or always "
            "down). Set `answer` to it."
        ),
        judge=_judge_skill,
        solve=_solve_skill,
        wrong=_wrong_skill,
        reason=(
            "in that period 54.2 % of the labels were down, so calling everything down is right more often: the gain is -0.8 points. An accuracy "
            "says nothing without its base rate, as an error says nothing without that of predicting zero."
        ),
    ),
    Exercise(
        question=(
            "**3. A split without a wavelet.** Write a function from windows (batch, days, stocks) to two tensors of that shape, `low` and `high`: "
            "they sum to the window, a constant series is all low (after its first days), the low part of noise is calmer than the noise, and no "
            "day's low part depends on later days. Set `answer` to it."
        ),
        judge=_judge_split,
        solve=_solve_split,
        wrong=WaveletSplit("sym2"),
        reason=(
            "a moving average and what it leaves do. Trained in the place of the wavelet, they rank as well within what five seeds can tell (the arm "
            "'moving average' of the recorded result): both splits are linear, and the layers behind can mix the parts again."
        ),
    ),
)
