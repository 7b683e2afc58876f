"""Exercises on DSE."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.lab.seeds import stream
from mtlearn.pairs.dse.method import PairHead, dse_loss


def _draw(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=stream(0, "dse", "exercise", name))


def _judge_cost(answer: Callable[[int, int, int, int], Any]) -> str | None:
    for queries, candidates, width, hidden in ((1, 1000, 64, 64), (20, 50, 8, 16), (1, 1, 4096, 512)):
        every = queries * candidates * 4 * width * hidden
        split = (queries + candidates) * width * hidden + queries * candidates * 2 * width * hidden
        given = answer(queries, candidates, width, hidden)
        if not isinstance(given, tuple) or len(given) != 2:
            return "two whole numbers are wanted: (multiplications of the plain first layer, of the split one)."
        if (int(given[0]), int(given[1])) != (every, split):
            return (
                f"for {queries} queries, {candidates} candidates, width {width} and {hidden} units the plain layer multiplies {every:,} times and "
                f"the split one {split:,} times, you say {given[0]:,} and {given[1]:,}. Which of W_u, W_v, W_p and W_d meet every pair?"
            )
    return None


def _solve_cost() -> Any:
    def multiplications(queries: int, candidates: int, width: int, hidden: int) -> tuple[int, int]:
        one = width * hidden  # of one of the four blocks of W_1
        return queries * candidates * 4 * one, queries * one + candidates * one + queries * candidates * 2 * one

    return multiplications


def _wrong_cost(queries: int, candidates: int, width: int, hidden: int) -> tuple[int, int]:
    return queries * candidates * 4 * width * hidden, (queries + candidates) * 4 * width * hidden


def _judge_slip(answer: Callable[[Tensor, Tensor], Any]) -> str | None:
    for classes in (1, 3, 5):
        scores, teacher = _draw(8, classes, name=f"scores {classes}"), _draw(8, classes, name=f"teacher {classes}")
        right = float(dse_loss(scores, torch.zeros(8, dtype=torch.int64), teacher, alpha=1.0, task="classes"))
        given = float(answer(scores.clone(), teacher.clone()))
        if abs(given - right) > 1e-4 * right:
            return f"with {classes} classes L_dist is {right:.3f}, you say {given:.3f}. The square of a *vector's* length, averaged over pairs."
    return None


def _solve_slip() -> Any:
    def distance(scores: Tensor, teacher: Tensor) -> float:
        return float((scores - teacher).square().sum(1).mean())

    return distance


def _wrong_slip(scores: Tensor, teacher: Tensor) -> float:
    return float(torch.nn.functional.mse_loss(scores, teacher))


def _judge_equal(answer: Callable[[PairHead], Any]) -> str | None:
    head = PairHead(3, 12)
    answer(head)
    u, v = _draw(200, 3, name="u"), _draw(200, 3, name="v")
    with torch.no_grad():
        same, other = head(u, u), head(u, v)
    if not torch.allclose(same, same[:1].expand(200), atol=1e-4):
        return "for equal vectors the score still depends on the vector; take the blocks of [u, v] and of u * v out."
    if not (other < same - 1e-3).all():
        return f"{int((other >= same - 1e-3).sum())} of 200 different pairs score as high as equal ones; |u - v| is 0 where they are equal."
    return None


def _solve_equal() -> Any:
    def set_weights(head: PairHead) -> None:
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.zero_()
            d = head.width
            head.first.weight[:d, 3 * d :] = torch.eye(d)  # |u - v|, which the ReLU leaves as it is
            head.second.weight[0, :d] = -1.0

    return set_weights


def _wrong_equal(head: PairHead) -> None:
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        d = head.width
        head.first.weight[:d, 2 * d : 3 * d] = torch.eye(d)
        head.second.weight[0, :d] = 1.0


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            "**1. What the split saves.** The head's first layer meets $[u, v, u \\odot v, |u - v|]$. Write a function of "
            "`(queries, candidates, width, hidden)` that returns how often it multiplies, `(plain, split)`: plain for every pair as it stands, split "
            "with $W_u u$ and $W_v v$ computed once for each sentence. Set `answer` to it."
        ),
        judge=_judge_cost,
        solve=_solve_cost,
        wrong=_wrong_cost,
        reason=(
            "half of the products go away with many candidates, no more: the product and the difference belong to the pair. To get orders of "
            "magnitude the *encoder* must leave the pair, which it does."
        ),
    ),
    Exercise(
        question=(
            "**2. A frequent slip.** Write $L_{dist} = \\frac1B \\sum_b \\|s_b - t_b\\|_2^2$ as a function of `(scores, teacher)`, both "
            "(B, classes), that returns a number. Set `answer` to it."
        ),
        judge=_judge_slip,
        solve=_solve_slip,
        wrong=_wrong_slip,
        reason=(
            "the squares are summed over classes and averaged over pairs. `mse_loss` also divides by the number of classes, which weakens the "
            "teacher against the labels by as much."
        ),
    ),
    Exercise(
        question=(
            "**3. Which feature can say “equal”?** Write a function that sets the weights of a `PairHead` of width 3 (`head.first`, `head.second`) "
            "by hand such that equal vectors get the highest score, the same for all, and every other pair less. Set `answer` to it."
        ),
        judge=_judge_equal,
        solve=_solve_equal,
        wrong=_wrong_equal,
        reason=(
            "|u - v| does it in one layer. From u * v one gets an inner product, which is larger for longer vectors, and from [u, v] alone a linear "
            "layer cannot tell pairs at all: f(u) + g(v) has no interaction."
        ),
    ),
)
