"""Exercises on copies, on predicting a task, and on who chooses the negatives."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.retrieval.mmteb.method import borda, hard_pool, spearman


def _copied(generator: torch.Generator) -> Tensor:
    return torch.rand(6, 5, generator=generator, dtype=torch.float64)


def _judge_copies(answer: Any) -> str | None:
    ways = {"mean over tasks", "mean over categories", "Borda"}
    if not isinstance(answer, (set, frozenset, list, tuple)) or not set(answer) <= ways:
        return f"a set of some of these is wanted: {', '.join(sorted(ways))}."
    if "mean over categories" in set(answer):
        return "copies have one category together: its mean moves, but not what it counts among the categories."
    if set(answer) != {"mean over tasks", "Borda"}:
        return "try it: add 200 copies of one column to scores (6, 5) and compare the two orders, for the points as well."
    return None


def _solve_copies() -> Any:
    # with very many copies the mean over tasks is the score on the copied one, and each copy is one more voter for Borda
    scores = _copied(torch.Generator().manual_seed(0))
    more = torch.cat([scores, scores[:, [0]].expand(-1, 200)], 1)
    moved = {
        "mean over tasks": float(spearman(more.mean(1), scores[:, 0])) > 0.99,
        "Borda": float(spearman(borda(more), scores[:, 0])) > 0.99,
    }
    return {way for way, followed in moved.items() if followed}


def _judge_predict(answer: Callable[[Tensor, int, int], float]) -> str | None:
    generator = torch.Generator().manual_seed(1)
    for models, tasks in ((12, 4), (5, 9)):
        scores = torch.rand(models, tasks, generator=generator, dtype=torch.float64)
        for model, task in ((0, 0), (models - 1, 2)):
            rest = [i for i in range(models) if i != model]
            others = [j for j in range(tasks) if j != task]
            mean, middle = scores[rest][:, others].mean(0), scores[rest, task].mean()
            weights = torch.linalg.pinv(scores[rest][:, others] - mean) @ (scores[rest, task] - middle)
            wanted = float(middle + (scores[model, others] - mean) @ weights)
            found = float(answer(scores.clone(), model, task))
            if abs(found - wanted) > 1e-6:
                changed = scores.clone()
                changed[model, task] += 1
                if abs(float(answer(changed, model, task)) - found) > 1e-9:
                    return "the prediction changes with the score that is to be predicted: leave it out of the fit and of the inputs."
                return f"of {models} models and {tasks} tasks {wanted:.4f} is wanted, got {found:.4f}: is there an intercept, and the smallest norm?"
    return None


def _solve_predict() -> Any:
    def predict(scores: Tensor, model: int, task: int) -> float:
        rest = torch.cat([scores[:model], scores[model + 1 :]])
        inputs = torch.cat([rest[:, :task], rest[:, task + 1 :]], 1)
        own = torch.cat([scores[model, :task], scores[model, task + 1 :]])
        # means of the other models make the intercept; the pseudo-inverse takes the shortest of all fits that are exact
        weights = torch.linalg.pinv(inputs - inputs.mean(0)) @ (rest[:, task] - rest[:, task].mean())
        return float(rest[:, task].mean() + (own - inputs.mean(0)) @ weights)

    return predict


def _wrong_predict(scores: Tensor, model: int, task: int) -> float:
    inputs = torch.cat([scores[:, :task], scores[:, task + 1 :]], 1)
    weights = torch.linalg.pinv(inputs - inputs.mean(0)) @ (scores[:, task] - scores[:, task].mean())
    return float(scores[:, task].mean() + (inputs[model] - inputs.mean(0)) @ weights)


def _judge_pool(answer: Any) -> str | None:
    if not isinstance(answer, Tensor) or answer.shape != (1, 6) or answer.dtype != torch.bool:
        return "a bool tensor (1, 6) is wanted: which of six documents the query keeps."
    wanted = hard_pool(
        [torch.tensor([[0.9, 0.8, 0.1, 0.0, 0.2, 0.3]]), torch.tensor([[0.1, 0.2, 0.9, 0.0, 0.3, 0.8]])], torch.tensor([[0, 0, 0, 1, 0, 0]]), 2
    )
    if not torch.equal(answer, wanted):
        if not bool(answer[0, 3]):
            return "document 3 is relevant: it stays, although neither retriever found it."
        return "the two best documents of each of the two retrievers stay, and the relevant one."
    return None


def _solve_pool() -> Any:
    # the best two of the first retriever are 0 and 1, those of the second 2 and 5; the relevant one is 3
    return torch.tensor([[True, True, True, True, False, True]])


EXERCISES = (
    Exercise(
        question=(
            "**1. Two hundred copies.** One task is put into a benchmark two hundred times. Which of the three ways to one order now follow that "
            "task alone: `mean over tasks`, `mean over categories`, `Borda`? Set `answer` to the set of their names."
        ),
        judge=_judge_copies,
        solve=_solve_copies,
        wrong={"mean over tasks"},
        reason="each copy is a voter: Borda is fooled as the mean is. Only the mean over categories lets copies count once.",
    ),
    Exercise(
        question=(
            "**2. Predict a score.** Write `predict(scores, model, task)` for scores (models, tasks): the least-squares prediction, with an "
            "intercept and of the smallest norm, of one score from the model's other scores, fitted on the others. Set `answer` to your function."
        ),
        judge=_judge_predict,
        solve=_solve_predict,
        wrong=_wrong_predict,
        reason="with fewer models than tasks every fit on the others is exact; only the model that was left out tells whether it predicts.",
    ),
    Exercise(
        question=(
            "**3. A pool by hand.** Two retrievers score six documents: `[0.9, 0.8, 0.1, 0.0, 0.2, 0.3]` and `[0.1, 0.2, 0.9, 0.0, 0.3, 0.8]`; "
            "document 3 is relevant. Which documents are in the pool of depth 2? Set `answer` to a bool tensor (1, 6)."
        ),
        judge=_judge_pool,
        solve=_solve_pool,
        wrong=torch.tensor([[True, True, True, False, False, True]]),
        reason="a retriever that is ranked on this pool meets all of its own mistakes if it chose the negatives, and few of them if others did.",
    ),
)
