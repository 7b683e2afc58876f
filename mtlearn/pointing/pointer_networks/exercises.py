"""Exercises on pointer networks."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.lab.seeds import stream
from mtlearn.pointing.pointer_networks.method import PointerAttention


def _judge_scores(answer: Callable[..., Tensor]) -> str | None:
    draws = stream(0, "exercise")
    for batch, entries, steps, hidden in ((2, 5, 3, 8), (1, 1, 1, 4), (3, 7, 2, 6)):
        e, d = torch.randn(batch, entries, hidden, generator=draws), torch.randn(batch, steps, hidden, generator=draws)
        w1, w2 = torch.randn(hidden, hidden, generator=draws), torch.randn(hidden, hidden, generator=draws)
        v = torch.randn(hidden, generator=draws)
        attention = PointerAttention(hidden)
        with torch.no_grad():
            attention.W1.weight.copy_(w1)
            attention.W2.weight.copy_(w2)
            attention.v.copy_(v)
            right = attention(e, d)
        scores = answer(e, d, w1, w2, v)
        if scores.shape != right.shape:
            return f"the scores must have shape (batch, steps, entries) = {tuple(right.shape)}, yours have {tuple(scores.shape)}."
        if not torch.allclose(scores, right, atol=1e-4):
            return "the shape is right, the numbers are not: is the sum of both terms inside the tanh, and v outside?"
    return None


def _solve_scores() -> Any:
    def scores(e: Tensor, d: Tensor, W1: Tensor, W2: Tensor, v: Tensor) -> Tensor:
        # (batch, 1, entries, hidden) + (batch, steps, 1, hidden)
        return torch.tanh((e @ W1.T)[:, None] + (d @ W2.T)[:, :, None]) @ v

    return scores


def _wrong_scores(e: Tensor, d: Tensor, W1: Tensor, W2: Tensor, v: Tensor) -> Tensor:
    return torch.tanh((e @ W1.T)[:, None]) @ v + torch.tanh((d @ W2.T)[:, :, None]) @ v


def _judge_floor(answer: Callable[[int], float]) -> str | None:
    for corners in (3, 4, 7, 12):
        right, given = math.log(corners) / (corners + 1), float(answer(corners))
        if math.isclose(given, math.log(corners), rel_tol=1e-6):
            return "that is the loss of the first pointer alone; the loss is the mean over all pointers, stop included."
        if math.isclose(given, math.log(corners) / corners, rel_tol=1e-6):
            return "nearly: how many pointers does the answer have when stop is counted?"
        if not math.isclose(given, right, rel_tol=1e-6):
            return f"for a hull of {corners} corners yours is {given:.4f}. Which pointers are uncertain, once the first is known?"
    return None


def _solve_floor() -> Any:
    def floor(corners: int) -> float:
        # any corner may come first: log(corners). After it nothing is open, so the other pointers and stop cost nothing.
        return math.log(corners) / (corners + 1)

    return floor


def _judge_sorter(answer: Callable[..., Tensor]) -> str | None:
    draws = stream(1, "exercise")
    for n in (1, 2, 5, 40):
        numbers = torch.rand(n, generator=draws)
        used, last, order = torch.zeros(n, dtype=torch.bool), torch.tensor(-1.0), []
        for at in range(n):
            scores = answer(numbers, last, used)
            if scores.shape != (n,):
                return f"one score for each of the n={n} numbers is wanted, yours have shape {tuple(scores.shape)}."
            chosen = int(scores.argmax())
            if used[chosen]:
                return f"step {at + 1} of n={n} points at a number that was used before: give used numbers the score -inf."
            used[chosen], last = True, numbers[chosen]
            order.append(chosen)
        if order != numbers.argsort().tolist():
            return f"for n={n} the order is {[index + 1 for index in order[:8]]}, it should begin {(numbers.argsort()[:8] + 1).tolist()}."
    return None


def _solve_sorter() -> Any:
    def scores(numbers: Tensor, last: Tensor, used: Tensor) -> Tensor:
        # the nearest number above the last one has the highest score
        return (-(numbers - last)).masked_fill(used | (numbers < last), -torch.inf)

    return scores


def _wrong_sorter(numbers: Tensor, last: Tensor, used: Tensor) -> Tensor:
    return -(numbers - last)


EXERCISES = (
    Exercise(
        question=(
            "**1. The equation.** Write `answer(e, d, W1, W2, v)`, the pointer scores $u^i_j = v^\\top \\tanh(W_1 e_j + W_2 d_i)$ "
            "without a loop: `e` is (batch, entries, hidden), `d` (batch, steps, hidden), the result (batch, steps, entries)."
        ),
        judge=_judge_scores,
        solve=_solve_scores,
        wrong=_wrong_scores,
        reason="one broadcast sum gives all scores of all steps at once, since no context flows back into the decoder.",
    ),
    Exercise(
        question=(
            "**2. Why a canonical start?** Suppose the hull's corners were listed counter-clockwise from a *random* corner. Even a perfect "
            "model could not know which comes first. Write `answer(corners)`: the lowest mean loss (in nats a pointer, stop included) that "
            "any model can reach on hulls of that many corners."
        ),
        judge=_judge_floor,
        solve=_solve_floor,
        wrong=math.log,
        reason="only the first pointer is a guess, yet no model gets below it; an exact answer comes once in as many times as there are corners.",
    ),
    Exercise(
        question=(
            "**3. A pointer without parameters.** Sorting needs no training: write `answer(numbers, last, used)`, a score for each of the n "
            "numbers, given the number pointed at last (-1 at first) and a bool mask of those used, so that pointing at the highest score, "
            "again and again, sorts any list."
        ),
        judge=_judge_sorter,
        solve=_solve_sorter,
        wrong=_wrong_sorter,
        reason="sorting is pointing at the smallest number not yet used; a trained network approximates this and blurs where numbers lie close.",
    ),
)
