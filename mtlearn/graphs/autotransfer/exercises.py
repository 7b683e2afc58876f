"""Exercises on AutoTransfer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from mtlearn.datasets.graph_tasks import graph_task, plain_statistics, rewired
from mtlearn.explore.exercises import Exercise
from mtlearn.lab.seeds import stream


def _judge_reduced(answer: Callable[[Tensor, int], Tensor]) -> str | None:
    for count in (4, 7):
        tau = torch.rand(count, count, generator=stream(count, "exercise"))
        for held_out in range(count):
            kept = [place for place in range(count) if place != held_out]
            wanted = torch.stack([tau[a, kept] for a in kept])
            given = answer(tau.clone(), held_out)
            if not isinstance(given, Tensor) or given.shape != wanted.shape:
                got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
                return f"with {count} tasks and one held out a tensor of shape {tuple(wanted.shape)} is needed, got {got}."
            if not torch.equal(given, wanted):
                where = "the last one, where every way works" if held_out == count - 1 else f"task {held_out} of {count}"
                return (
                    f"holding out {where}: entry (a, i) of the smaller matrix must be the tau of the tasks that are a-th and i-th in the list "
                    "without it. Did you take the row and the column of the task away, or the last ones?"
                )
    return None


def _solve_reduced() -> Any:
    def reduced(tau: Tensor, held_out: int) -> Tensor:
        kept = torch.arange(len(tau)) != held_out
        # first the rows, then the columns; tau[index, index] with one list of numbers would be the diagonal
        return tau[kept][:, kept]

    return reduced


def _wrong_reduced(tau: Tensor, held_out: int) -> Tensor:
    return tau[: len(tau) - 1, : len(tau) - 1]


def _judge_summary(answer: Callable[[Tensor], Tensor]) -> str | None:
    information = torch.rand(3, 50, generator=stream(0, "summary"), dtype=torch.float64).square()
    plain = torch.as_tensor(answer(information.clone()))
    if plain.shape != (3,):
        return f"one number a row: of information (3, 50) the summary must have shape (3,), got {tuple(plain.shape)}."
    louder = torch.as_tensor(answer(100 * information))  # a loss ten times as large has gradients ten times, and squares a hundred times as large
    if not torch.allclose(plain, louder, rtol=1e-6):
        return (
            "with a loss ten times as large F is a hundred times as large, and your summary goes from "
            f"{float(plain[0]):.3g} to {float(louder[0]):.3g}: the same task would lie elsewhere. Which ratio of two averages of F does not change?"
        )
    few, many = (torch.zeros(1, 50, dtype=torch.float64) for _ in range(2))
    few[0, :2], many[0, :40] = 1.0, 1.0
    if not float(answer(few)) > 1.5 * float(answer(many)):
        return (
            f"where 2 of 50 weights hold everything your summary is {float(answer(few)):.3g}, where 40 do it is {float(answer(many)):.3g}: "
            "it should be clearly larger for the few."
        )
    if not torch.allclose(plain, torch.as_tensor(answer(information.flip(1))), rtol=1e-6):
        return "the order of the weights changes your summary; it should not."
    return None


def _solve_summary() -> Any:
    def summary(information: Tensor) -> Tensor:
        return information.square().mean(1) / information.mean(1).square()

    return summary


def _wrong_summary(information: Tensor) -> Tensor:
    return information.mean(1)


def _judge_useless(answer: Callable[[Data], Data]) -> str | None:
    data = graph_task("n_wine")
    changed = answer(data.clone())
    if not isinstance(changed, Data) or any(not torch.equal(changed[key], data[key]) for key in ("x", "y", "train_mask", "val_mask", "test_mask")):
        return "return the task with the same nodes, labels and split; only its edges may change."
    edges = changed.edge_index.shape[1]
    if abs(edges - data.edge_index.shape[1]) > 0.1 * data.edge_index.shape[1]:
        return f"keep the number of edges: the graph has {data.edge_index.shape[1]}, yours {edges}. A graph without edges is another kind of task."
    same = float(plain_statistics(changed)[2])
    chance = float((data.y.bincount() / len(data.y)).square().sum())
    if same > chance + 0.1:
        return f"{same:.0%} of your edges join equal labels, by chance it would be {chance:.0%}: the graph still tells something."
    return None


def _solve_useless() -> Any:
    def useless(data: Data) -> Data:
        return rewired(data, seed=7)

    return useless


def _wrong_useless(data: Data) -> Data:
    return data


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            "**1. Hold a task out.** The projection learns from $\\tau$ between the bank's tasks. When one task is held out, the published "
            "program numbers the remaining tasks anew, 0, 1, 2 ..., but looks $\\tau$ up in the full matrix by these new numbers: behind the gap "
            "every one is off. Write `reduced(tau, held_out)`, which returns the matrix of the remaining tasks in their order, and set "
            "`answer` to it."
        ),
        judge=_judge_reduced,
        solve=_solve_reduced,
        wrong=_wrong_reduced,
        reason=(
            "row and column of the held-out task go, whichever it is. A test that holds out the last task alone would never see the slip, and "
            "nothing crashes: the projection learns from wrong pairs, among them those of the task that it must not know."
        ),
    ),
    Exercise(
        question=(
            "**2. Why a ratio?** Suppose the feature were simply the mean of $F$. Multiply the loss by 10, and the neighbours change although "
            "the task is the same. Write `summary(information)` from $F$ of shape (networks, weights) to one number a network that is the same "
            "for $cF$, does not depend on the order of the weights, and is larger where fewer weights hold everything. Set `answer` to it."
        ),
        judge=_judge_summary,
        solve=_solve_summary,
        wrong=_wrong_summary,
        reason=(
            "mean(F²) / mean(F)² is n over the number of weights that matter, so neither the size of the loss nor that of the labels or of "
            "the network enters. Any other measure of concentration would pass this check; the paper takes this one."
        ),
    ),
    Exercise(
        question=(
            "**3. A useless graph.** Write a function that takes a task (a `torch_geometric` `Data`) and returns it with a graph that says "
            "nothing about the labels: the same nodes, inputs, labels and split, about as many edges. Set `answer` to it. The check tries it on "
            "`n_wine`. Before you run it: what will the prior of the whole bank say about the number of layers, and what a good transferred one?"
        ),
        judge=_judge_useless,
        solve=_solve_useless,
        wrong=_wrong_useless,
        reason=(
            "the prior of the whole bank stays with message passing, because most of its tasks want 2 or 4 layers. Where the embedding finds the "
            "other tasks with a useless graph, as it does with enough random networks, the transferred prior moves to 0 layers."
        ),
    ),
)
