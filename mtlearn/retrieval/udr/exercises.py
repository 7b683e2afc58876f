"""Exercises on demonstrations and their ranks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.retrieval.udr.method import rank_loss, task_probabilities


def _judge_weights(answer: Callable[[int], Tensor]) -> str | None:
    for size in (2, 4, 7):
        found = answer(size)
        if not isinstance(found, Tensor) or found.shape != (size, size):
            return f"a matrix ({size}, {size}) is wanted for a list of {size}."
        similarities = torch.zeros(1, size, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(rank_loss(similarities, torch.arange(size, 0, -1.0)[None].double()), similarities)
        # at equal similarities each pair pulls with half of its weight
        if not torch.allclose(found.double().sum(0) / 2 - found.double().sum(1) / 2, gradient[0], atol=1e-6):
            return "row i, column j: how much more candidate i (rank i + 1) is worth than j, by 1 / rank, and 0 where it is worth less."
    return None


def _solve_weights() -> Any:
    def weights(size: int) -> Tensor:
        gain = 1 / torch.arange(1, size + 1, dtype=torch.float64)
        # 1/1 - 1/2 is as much as 1/2 - 0: the first place is worth all others together
        return (gain[:, None] - gain).clamp(min=0)

    return weights


def _wrong_weights(size: int) -> Tensor:
    rank = torch.arange(size, dtype=torch.float64)
    return (rank[None] - rank[:, None]).clamp(min=0)


def _judge_alpha(answer: Any) -> str | None:
    if isinstance(answer, bool) or not isinstance(answer, (int, float)):
        return "a number is wanted, between 0 and 1."
    share = float(task_probabilities(torch.tensor([1500, 200]), float(answer))[1])
    if abs(share - 1 / 3) > 0.005:
        return f"with alpha = {answer} the small task gives {share:.3f} of the batches."
    return None


def _solve_alpha() -> Any:
    # (200 / 1500)^alpha = (1/3) / (2/3) = 1/2, so alpha = log(1/2) / log(200/1500)
    return float(torch.tensor(0.5).log() / torch.tensor(200 / 1500).log())


def _judge_transform(answer: Callable[[Tensor], Tensor]) -> str | None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(5, 8, generator=generator, dtype=torch.float64) + 0.1
    similarities = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    changed = answer(scores.clone())
    if not isinstance(changed, Tensor) or changed.shape != scores.shape:
        return "scores of the same shape are wanted."
    if torch.allclose(changed, scores):
        return "that is the identity: change the values."
    if not torch.allclose(changed.sum(1), torch.ones(5, dtype=torch.float64)):
        return "the changed scores of each list must sum to 1."
    if not torch.allclose(rank_loss(similarities, changed), rank_loss(similarities, scores)):
        return "the loss has changed, so the order has."
    return None


def _solve_transform() -> Any:
    def change(scores: Tensor) -> Tensor:
        # any increasing function within a list will do: only ranks enter the loss, so tasks with different scales of scores can share it
        return scores.softmax(1)

    return change


def _wrong_transform(scores: Tensor) -> Tensor:
    return scores / scores.sum(0)


EXERCISES = (
    Exercise(
        question=(
            "**1. What a pair weighs.** Write `weights(size)` that gives the matrix of pair weights of the ranking loss for a list whose candidates "
            "stand in the order of their ranks. Set `answer` to your function. Which pair weighs most?"
        ),
        judge=_judge_weights,
        solve=_solve_weights,
        wrong=_wrong_weights,
        reason="the first against the last weighs most, and the first against the second as much as the second against nothing: the top counts.",
    ),
    Exercise(
        question=(
            "**2. A small task's share.** Two tasks have 1,500 and 200 rows. Which alpha gives the small one a third of the batches? Set `answer` to "
            "the number."
        ),
        judge=_judge_alpha,
        solve=_solve_alpha,
        wrong=0.5,
        reason="alpha = 0.34; alpha 1 would give it 0.12, alpha 0 a half.",
    ),
    Exercise(
        question=(
            "**3. One scale for all tasks.** The feedback of two tasks has different scales. Write `change(scores)` that makes each list (a row) sum "
            "to 1 and leaves the ranking loss as it is, whatever the similarities are. Set `answer` to your function."
        ),
        judge=_judge_transform,
        solve=_solve_transform,
        wrong=_wrong_transform,
        reason="only ranks enter, so a softmax, or any increasing change within a list, leaves the loss as it is.",
    ),
)
