"""Exercises on CUR retrieval."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.lab.seeds import stream
from mtlearn.pairs.cur_retrieval.method import embeddings, recall, retrieve
from mtlearn.pairs.cur_retrieval.worlds import made_scores

BUDGET = 100


def _draw(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=stream(0, "cur_retrieval", "exercise", name), dtype=torch.float64)


def _recall_of_split(rows: Tensor, tests: Tensor, count: int) -> float:
    """Recall@10 at a budget of 100, the first ``count`` of a random order of items being anchors."""
    anchors = torch.randperm(rows.shape[1], generator=stream(0, "cur_retrieval", "exercise", "order"))[:count]
    items, _ = retrieve(lambda numbers: tests.gather(1, numbers), rows, embeddings(rows, anchors), anchors, BUDGET, queries=len(tests))
    return float(recall(items, tests, 10).mean())


def _judge_split(answer: Callable[[Tensor, Tensor, Callable[[Tensor, Tensor, int], float]], int]) -> str | None:
    for rank in (8, 25):
        scores = made_scores(3, rank=rank, noise=0.5, queries=160, items=400)
        rows, tests = scores.anchors, scores.tests
        given = answer(rows.clone(), tests.clone(), _recall_of_split)
        if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= BUDGET:
            return f"a whole number of anchors from 1 to {BUDGET} is wanted."
        best = max(_recall_of_split(rows, tests, count) for count in range(5, BUDGET, 5))
        found = _recall_of_split(rows, tests, given)
        if found < best - 0.02:
            return f"with a matrix of rank {rank} and noise your {given} anchors find {found:.2f} of the best ten; another split finds {best:.2f}."
    return None


def _solve_split() -> Any:
    def split(rows: Tensor, tests: Tensor, measure: Callable[[Tensor, Tensor, int], float]) -> int:
        # too few anchors: a poor estimate. All calls for anchors: nothing is left to look at what the estimate says
        return max(range(5, 100, 5), key=lambda count: measure(rows, tests, count))

    return split


def _wrong_split(rows: Tensor, tests: Tensor, measure: Callable[[Tensor, Tensor, int], float]) -> int:
    return 95


def _judge_leverage(answer: Callable[[Tensor, int], Tensor]) -> str | None:
    for rank in (2, 4):
        rows = _draw(12, 5, name="left") @ _draw(5, 40, name="right")
        directions = torch.linalg.svd(rows, full_matrices=False)[2][:rank]
        right = directions.square().sum(0)
        given = answer(rows.clone(), rank)
        if not isinstance(given, Tensor) or given.shape != right.shape:
            return "one number an item is wanted, shape (40,)."
        if not torch.allclose(given.double(), right, atol=1e-6):
            if torch.allclose(given.double() / given.sum(), rows.square().sum(0) / rows.square().sum(), atol=1e-6):
                return (
                    "these are the lengths of the columns. Leverage asks how much of each leading *direction* an item carries, be it short or long."
                )
            return f"with rank {rank} yours sum to {float(given.sum()):.2f}; leverage scores sum to the rank. Take right singular vectors."
    return None


def _solve_leverage() -> Any:
    def leverage(rows: Tensor, rank: int) -> Tensor:
        directions = torch.linalg.svd(rows, full_matrices=False)[2]  # (queries, items), each row of length 1
        leading: Tensor = directions[:rank]
        return leading.square().sum(0)

    return leverage


def _wrong_leverage(rows: Tensor, rank: int) -> Tensor:
    lengths = rows.square().sum(0)
    return lengths / lengths.sum() * rank


def _judge_spike(answer: Callable[[Tensor, Tensor, Tensor, int], Any]) -> str | None:
    for seed in (1, 2):
        scores = made_scores(seed, spike=6.0, queries=120, items=400)
        anchors = torch.arange(20)
        estimate = scores.tests[:, anchors] @ embeddings(scores.anchors, anchors)
        top = scores.tests.topk(50).indices
        error = (scores.tests - estimate).abs().gather(1, top)
        right = float(error[:, 0].mean()), float(error[:, 1:].mean())
        given = answer(scores.tests.clone(), estimate.clone(), anchors.clone(), 50)
        if not isinstance(given, tuple) or len(given) != 2:
            return "two numbers are wanted, as a tuple: the mean error at each query's best item, and at its second to k-th best."
        if any(abs(float(ours) - float(theirs)) > 1e-6 for ours, theirs in zip(given, right, strict=True)):
            return (
                f"with these scores the mean absolute errors are {right[0]:.2f} and {right[1]:.2f}, "
                f"you say {float(given[0]):.2f} and {float(given[1]):.2f}. The best items are those of the exact scores."
            )
    return None


def _solve_spike() -> Any:
    def errors(exact: Tensor, estimate: Tensor, anchors: Tensor, k: int) -> tuple[float, float]:
        error = (exact - estimate).abs().gather(1, exact.topk(k).indices)  # best item first
        return float(error[:, 0].mean()), float(error[:, 1:].mean())

    return errors


def _wrong_spike(exact: Tensor, estimate: Tensor, anchors: Tensor, k: int) -> tuple[float, float]:
    error = (exact - estimate).abs().gather(1, estimate.topk(k).indices)
    return float(error[:, 0].mean()), float(error[:, 1:].mean())


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            "**1. How to split the budget.** First on paper: from $AA^+A = A$, show that $CA^+R$ repeats the columns of the anchor items "
            "where $A$ has full column rank ($k_i \\le k_q$), and the rows of the anchor queries where it has full row rank. Then: 100 calls "
            "are to be split into $k_i$ anchors and $k_r = 100 - k_i$ retrieved items. Write a function of `(rows, tests, measure)` that "
            "returns the $k_i$ with the best recall@10; `measure(rows, tests, k_i)` gives the recall of one split. Set `answer` to it. Where "
            "does the optimum lie?"
        ),
        judge=_judge_split,
        solve=_solve_split,
        wrong=_wrong_split,
        reason=(
            "the optimum lies inside: with few anchors the estimate is poor, with 95 only five calls are left for what it says. For the "
            "paper part: a matrix of full column rank has A⁺A = 1, so the columns of C A⁺R at the anchors are C A⁺A = C; with full row rank "
            "A A⁺ = 1 does the same for rows."
        ),
    ),
    Exercise(
        question=(
            "**2. Anchors by leverage.** An item's leverage score is the squared length of its part in the leading `rank` right singular "
            "vectors of R. Write a function of `(rows, rank)`, R of shape (k_q, m), that returns the scores, shape (m,). Set `answer` to it. "
            "Then look at the arms `CUR, leverage anchors` and `CUR, k-means anchors` of the recorded result: does recall@1 gain over "
            "uniform anchors?"
        ),
        judge=_judge_leverage,
        solve=_solve_leverage,
        wrong=_wrong_leverage,
        reason=(
            "the recorded result compares them over the draws of five seeds: what helps k = 1 is choosing anchors for each query, not better "
            "ones for all."
        ),
    ),
    Exercise(
        question=(
            "**3. A spike.** Each query has one item of its own whose score is raised by 6, as a right answer's may be. Write a function of "
            "`(exact, estimate, anchors, k)`, scores (n, m), estimates (n, m), anchors (k_i,), that returns two numbers: the mean absolute "
            "error of the estimate at each query's best item, and at its second to k-th best. Set `answer` to it. Why does k = 1 suffer and "
            "k = 50 does not?"
        ),
        judge=_judge_spike,
        solve=_solve_spike,
        wrong=_wrong_spike,
        reason=(
            "the spike is in no anchor query's row at this item and in none of this query's anchor items, so nothing can foretell it: the "
            "error at the best item is the whole spike. The other 49 lie in the low-rank part, which is estimated well."
        ),
    ),
)
