"""Exercises on TALL-masks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.lab.seeds import stream
from mtlearn.merging.tall_masks.method import keeps


def _draw(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=stream(0, "tall_masks", "exercise", name))


def _judge_squares(answer: Callable[[Tensor, Tensor], Tensor]) -> str | None:
    for size in (5, 9):
        own = _draw(size, name="own") * (torch.arange(size) != 2)
        merged = own + _draw(size, name="others") * (torch.arange(size) != 3)
        given = answer(own.clone(), merged.clone())
        if not isinstance(given, Tensor) or given.shape != own.shape or given.dtype != torch.bool:
            return f"a mask is wanted: a bool tensor of shape ({size},)."
        masks = torch.tensor([[bool(number >> bit & 1) for bit in range(size)] for number in range(2**size)])
        least = (masks * merged - own).square().sum(1).min()
        found = (given * merged - own).square().sum()
        if found > least * (1 + 1e-6):
            return f"your mask leaves a squared error of {float(found):.3f}; of all {2**size} masks the best leaves {float(least):.3f}."
    return None


def _solve_squares() -> Any:
    def mask(own: Tensor, merged: Tensor) -> Tensor:
        # weight by weight: keep it when the merged value is nearer than 0. Squaring both sides changes no comparison, so it is the L1 mask.
        return own.abs() > (merged - own).abs()

    return mask


def _wrong_squares(own: Tensor, merged: Tensor) -> Tensor:
    return own.abs() > own.abs().median()


def _judge_harm(answer: Callable[[Tensor, Tensor, int], int]) -> str | None:
    for seed in range(4):
        own = torch.randn(12, generator=stream(seed, "tall_masks", "harm"))
        merged = own + 2 * torch.randn(12, generator=stream(seed, "tall_masks", "harm", "others"))
        count = 5
        largest = torch.zeros(12, dtype=torch.bool)
        largest[own.abs().topk(count).indices] = True
        right = int((largest & ~keeps(own[None], merged)[0]).sum())
        given = answer(own.clone(), merged.clone(), count)
        if isinstance(given, bool) or not isinstance(given, int):
            return "a whole number is wanted: how many of the task's largest weights its TALL mask (λ = 1) drops."
        if given != right:
            return f"with the first vectors {right} of the {count} largest are dropped, you say {given}. Compare the two masks weight by weight."
    return None


def _solve_harm() -> Any:
    def harmed(own: Tensor, merged: Tensor, count: int) -> int:
        largest = own.abs().topk(count).indices
        return int((own[largest].abs() <= (merged - own)[largest].abs()).sum())

    return harmed


def _wrong_harm(own: Tensor, merged: Tensor, count: int) -> int:
    return count


def _judge_double(answer: Callable[[Tensor, int], Tensor]) -> str | None:
    for task in range(3):
        rows = _draw(3, 40, name=f"rows {task}")
        scaled = rows.clone()
        scaled[task] *= 2
        before, after = keeps(rows, rows.sum(0)), keeps(scaled, scaled.sum(0))
        right = after.sum(1) - before.sum(1)
        given = answer(rows.clone(), task)
        if not isinstance(given, Tensor) or given.shape != right.shape:
            return "one number a task is wanted: by how many weights its mask grows or shrinks, shape (3,)."
        if given.long().tolist() != right.tolist():
            return (
                f"doubling task {task} changes the sizes of the masks by {right.tolist()}, you say {given.long().tolist()}. "
                "The merged vector changes for every task, not for the doubled one alone."
            )
    return None


def _solve_double() -> Any:
    def change(rows: Tensor, task: int) -> Tensor:
        def sizes(vectors: Tensor) -> Tensor:
            return (vectors.abs() > (vectors.sum(0) - vectors).abs()).sum(1)

        scaled = rows.clone()
        scaled[task] *= 2
        return sizes(scaled) - sizes(rows)

    return change


def _wrong_double(rows: Tensor, task: int) -> Tensor:
    def sizes(vectors: Tensor, total: Tensor) -> Tensor:
        return (vectors.abs() > (total - vectors).abs()).sum(1)

    scaled = rows.clone()
    scaled[task] *= 2
    return sizes(scaled, rows.sum(0)) - sizes(rows, rows.sum(0))


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            "**1. Another norm.** The mask is derived from $\\|\\theta_0 + m \\odot \\tau_{MTL} - \\theta_t\\|_1$. Derive it for the *squared* "
            "distance. Write a function of `(own, merged)`, the task vector and the merged vector, both (P,), that returns the best mask, bool (P,). "
            "Set `answer` to it."
        ),
        judge=_judge_squares,
        solve=_solve_squares,
        wrong=_wrong_squares,
        reason="nothing changes: both distances are sums over weights, and for one weight the nearer value is nearer in any norm.",
    ),
    Exercise(
        question=(
            "**2. Why does magnitude fail?** A magnitude mask keeps the `count` largest entries of the task vector. Write a function of "
            "`(own, merged, count)` that returns how many of these the TALL mask at λ = 1 would drop, because the other tasks moved the same weight "
            "further. Set `answer` to it."
        ),
        judge=_judge_harm,
        solve=_solve_harm,
        wrong=_wrong_harm,
        reason=(
            "a large own change says nothing of what the others did to that weight. Where they moved it more, keeping the merged value is worse than "
            "going back to the pretrained one."
        ),
    ),
    Exercise(
        question=(
            "**3. The longest vector.** Double one task vector before summing. Write a function of `(rows, task)`, task vectors (3, P) and the "
            "number of the doubled one, that returns by how many weights the mask (λ = 1) of each task grows, shape (3,). Set `answer` "
            "to it, then look at the signs."
        ),
        judge=_judge_double,
        solve=_solve_double,
        wrong=_wrong_double,
        reason=(
            "the doubled task's mask grows and the others' shrink: the sum has come nearer to it. That is how a merged model favours the task with "
            "the longest vector, and masks inherit it."
        ),
    ),
)
