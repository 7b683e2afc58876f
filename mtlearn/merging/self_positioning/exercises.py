"""Exercises on Self Positioning."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import stream
from mtlearn.merging.self_positioning.method import SelfPositioning, fold_coefficients, two_task_position

Loss = Callable[[Tensor], Tensor]


def _judge_reach(answer: Callable[[float, float, float], tuple[float, float]]) -> str | None:
    for first, second, alpha in ((0.7, 0.7, math.pi / 2), (1.0, 0.2, 1.0), (0.4, 2.0, 2.2), (0.0, 1.5, 0.6)):
        beta, length = (float(value) for value in answer(first, second, alpha))
        found = [length * math.sin(part * alpha) / math.sin(alpha) for part in (1 - beta, beta)]
        if not math.isclose(found[0], first, abs_tol=1e-4) or not math.isclose(found[1], second, abs_tol=1e-4):
            return (
                f"for {first:g} V_1 + {second:g} V_2 at {math.degrees(alpha):.0f} degrees your beta = {beta:.3f} and lambda = {length:.3f} "
                f"give {found[0]:.3f} V_1 + {found[1]:.3f} V_2. Start from the ratio of the two weights, which lambda leaves alone."
            )
    return None


def _solve_reach() -> Any:
    def reach(first: float, second: float, alpha: float) -> tuple[float, float]:
        # with u = beta alpha: second / first = sin u / sin(alpha - u), solved for tan u
        turned = math.atan2(second * math.sin(alpha), first + second * math.cos(alpha))
        weights = math.sin(alpha - turned) + math.sin(turned)
        return turned / alpha, (first + second) * math.sin(alpha) / weights

    return reach


def _wrong_reach(first: float, second: float, alpha: float) -> tuple[float, float]:
    return second / (first + second), first + second


def _judge_order(answer: Callable[[Tensor, Tensor, Sequence[int]], float]) -> str | None:
    vectors = torch.randn(4, 30, generator=stream(0, "exercise", "order"), dtype=torch.float64) * torch.tensor([[1.0], [2.0], [1.0], [3.0]])
    gram, a = vectors @ vectors.T, torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    before = fold_coefficients(gram, a) @ vectors
    for order in itertools.islice(itertools.permutations(range(4)), 0, 24, 5):
        rows = list(order)
        after = fold_coefficients(gram[rows][:, rows], a[rows]) @ vectors[rows]
        wanted = float((after - before).norm() / before.norm())
        given = float(answer(gram.clone(), a.clone(), order))
        if not math.isclose(given, wanted, rel_tol=1e-4, abs_tol=1e-6):
            hint = (
                "Are both sets of coefficients in the same order of tasks when you subtract them?" if given else "Does your fold see the new order?"
            )
            return f"in the order {rows} the vector moves by {wanted:.4f} of its length, you say {given:.4f}. {hint}"
    return None


def _solve_order() -> Any:
    def moved(gram: Tensor, a: Tensor, order: Sequence[int]) -> float:
        rows = list(order)
        before, after = fold_coefficients(gram, a), torch.zeros_like(a)
        after[rows] = fold_coefficients(gram[rows][:, rows], a[rows])  # back to the first order
        change = after - before
        return float(((change @ gram @ change) / (before @ gram @ before)).sqrt())  # |sum c_i V_i|^2 = c G c

    return moved


def _wrong_order(gram: Tensor, a: Tensor, order: Sequence[int]) -> float:
    rows = list(order)
    change = fold_coefficients(gram[rows][:, rows], a[rows]) - fold_coefficients(gram, a)
    return float(((change @ gram @ change) / (gram.trace())).sqrt())


def _bowls() -> tuple[Loss, Loss, Tensor, Tensor]:
    """Two quadratic losses over the coefficients of orthogonal task vectors: R is best near V_R, T near V_T and steeper."""
    at_r, at_t = torch.tensor([1.1, 0.2], dtype=torch.float64), torch.tensor([0.3, 1.2], dtype=torch.float64)
    return (lambda c: (c - at_r).square().sum()), (lambda c: 2 * (c - at_t).square().sum()), at_r, at_t


def _judge_probe(answer: Callable[[float, Loss, Loss], float]) -> str | None:
    loss_r, loss_t, at_r, at_t = _bowls()
    gram = torch.eye(2, dtype=torch.float64)
    for share in (0.5, 0.9, 0.1):
        best = (share * at_r + 2 * (1 - share) * at_t) / (share + 2 * (1 - share))
        wanted, _ = two_task_position(gram, best)
        given = float(answer(share, loss_r, loss_t))
        if not math.isclose(given, wanted, abs_tol=0.01):
            where = f"with a share of {share:g} for R the best beta is {wanted:.3f}, you found {given:.3f}"
            return f"{where}. Is the loss weighed by the share, and the search long enough?"
    return None


def _solve_probe() -> Any:
    def learned_beta(share: float, loss_r: Loss, loss_t: Loss) -> float:
        position = SelfPositioning(torch.eye(2, dtype=torch.float64))  # orthogonal task vectors of length 1
        optimizer = torch.optim.SGD(position.parameters(), lr=0.1, momentum=0.9)

        def loss_at(step: int) -> Tensor:
            c = position.coefficients()
            return position.objective(share * loss_r(c) + (1 - share) * loss_t(c))

        fit(position, loss_at, steps=400, optimizer=optimizer)
        return position.beta.item()

    return learned_beta


def _wrong_probe(share: float, loss_r: Loss, loss_t: Loss) -> float:
    return 1 - share


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            "**1. What can slerp reach?** Two task vectors at the angle `alpha` (radians). Someone wants the point $c_1 V_1 + c_2 V_2$ with "
            "$c_1, c_2 \\ge 0$. Write a function of `(c_1, c_2, alpha)` that returns the pair `(beta, lambda)` whose slerp, times lambda, is that "
            "point. Set `answer` to it."
        ),
        judge=_judge_reach,
        solve=_solve_reach,
        wrong=_wrong_reach,
        reason=(
            "so for two tasks beta and lambda are another way to write two positive coefficients, and nothing else is restricted: free linear "
            "coefficients reach as much. With N tasks each step of the fold is a free angle, so every positive direction is within reach, and "
            "lambda sets the length."
        ),
    ),
    Exercise(
        question=(
            "**2. The order of the tasks.** Fold four task vectors with fixed weights `a`, once in the order 0, 1, 2, 3 and once in another. Write a "
            "function of `(gram, a, order)` that returns how far the merged vector moves, as a share of its length in the first order. Set "
            "`answer` to it. (You have `fold_coefficients(gram, a)`.) Would the score move as well, if `a` were learned again?"
        ),
        judge=_judge_order,
        solve=_solve_order,
        wrong=_wrong_order,
        reason=(
            "with fixed weights the order matters much, because whoever comes later weighs more. Learned weights make up for it: every positive "
            "direction can be reached in every order, so the best score within reach is the same."
        ),
    ),
    Exercise(
        question=(
            "**3. The probe set is a data mixture.** Write a function of `(share, loss_R, loss_T)` that learns a `SelfPositioning` for two "
            "orthogonal task vectors of length 1 on share loss_R + (1 - share) loss_T and returns the learned beta. The losses take the coefficients "
            "(2,). Set `answer` to it, and then compare a share of 0.5 with one of 0.9."
        ),
        judge=_judge_probe,
        solve=_solve_probe,
        wrong=_wrong_probe,
        reason=(
            "the search minimises the loss of the probe's mixture, so with 90 % R it goes where R is better off. What the shares of the training "
            "data decided in joint training, the shares of the probe set decide now; but they can be changed in seconds."
        ),
    ),
)
