"""Exercises on Promptagator."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.lab.seeds import stream


def _judge_round_trip(answer: Callable[[Tensor, Tensor, int], Tensor]) -> str | None:
    draws = stream(0, "promptagator", "exercise")
    scores, source = torch.randn(12, 7, generator=draws), torch.randint(7, (12,), generator=draws)
    level = torch.tensor([[0.5, 0.9, 0.9, 0.1], [0.9, 0.9, 0.9, 0.9]])
    for table, own in ((scores, source), (level, torch.tensor([2, 3]))):
        mine = table.gather(1, own[:, None])
        for k in (1, 2, 4):
            right = (table > mine).sum(1) < k
            given = answer(table.clone(), own.clone(), k)
            if not isinstance(given, Tensor) or given.shape != right.shape:
                return "a mask is wanted: a bool tensor (m,), one for each query."
            if not torch.equal(given.bool(), right):
                row = int((given.bool() != right).nonzero()[0])
                return (
                    f"query {row} scores the documents {[round(v, 2) for v in table[row].tolist()]}, its source is {int(own[row])}; with K = {k} "
                    f"it is {'kept' if right[row] else 'dropped'}: {int((table[row] > mine[row]).sum())} documents score strictly higher."
                )
    return None


def _solve_round_trip() -> Any:
    def keep(scores: Tensor, source: Tensor, k: int) -> Tensor:
        own = scores.gather(1, source[:, None])
        return (scores > own).sum(1) < k

    return keep


def _wrong_round_trip(scores: Tensor, source: Tensor, k: int) -> Tensor:
    return (scores.topk(k, 1).indices == source[:, None]).any(1)


def _judge_purity(answer: Callable[[float, float, float], float]) -> str | None:
    for share, good, bad in ((0.3, 0.75, 0.05), (0.5, 0.6, 0.2), (0.9, 0.4, 0.4), (0.0, 0.8, 0.1)):
        right = share * bad / (share * bad + (1 - share) * good)
        given = float(answer(share, good, bad))
        if not abs(given - right) < 1e-6:
            return (
                f"{share:.0%} of the pairs are wrong, the filter keeps {good:.0%} of the good and {bad:.0%} of the wrong ones: of 1,000 "
                f"pairs {1000 * share * bad:.0f} wrong and {1000 * (1 - share) * good:.0f} good ones stay, so it is {right:.3f}; you say {given:.3f}."
            )
    return None


def _solve_purity() -> Any:
    def wrong_among_kept(share: float, good: float, bad: float) -> float:
        return share * bad / (share * bad + (1 - share) * good)

    return wrong_among_kept


def _wrong_purity(share: float, good: float, bad: float) -> float:
    return share * bad


def _judge_spread(answer: Callable[[Tensor], tuple[float, float]]) -> str | None:
    for examples, batches in ((0.03, 0.01), (0.0, 0.02), (0.02, 0.02)):
        draws = stream(1, "promptagator", "exercise", str(examples))
        table = 0.5 + examples * torch.randn(4000, 1, generator=draws) + batches * torch.randn(4000, 5, generator=draws)
        given = answer(table.clone())
        one, two = float(given[0]), float(given[1])
        if not (abs(one - examples) < 0.002 and abs(two - batches) < 0.002):
            return (
                f"in a table that was made with {examples:g} (examples) and {batches:g} (batches) you find {one:.4f} and {two:.4f}. The mean "
                "of a row still has a fifth of the batches' variance in it."
            )
    return None


def _solve_spread() -> Any:
    def spreads(table: Tensor) -> tuple[float, float]:
        batches = table.var(1).mean().item()
        examples = table.mean(1).var().item() - batches / table.shape[1]
        return math.sqrt(max(examples, 0.0)), math.sqrt(batches)

    return spreads


def _wrong_spread(table: Tensor) -> tuple[float, float]:
    return float(table.mean(1).std()), float(table.std(1).mean())


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            "**1. The round trip.** Write a function of `scores` (m, n), `source` (m,) and `k` that returns which queries are kept, a bool (m,): "
            "fewer than K documents score strictly higher than the source. Set `answer` to it."
        ),
        judge=_judge_round_trip,
        solve=_solve_round_trip,
        wrong=_wrong_round_trip,
        reason=(
            "twins of a document score as high as the document itself. Whoever takes the top K by index drops a good query whenever the twin "
            "happens to stand first."
        ),
    ),
    Exercise(
        question=(
            "**2. When does the filter fail?** A `share` of the pairs is wrong. The filter keeps the part `good` of the good and the part `bad` of "
            "the wrong ones. Write a function of `(share, good, bad)` that returns the share of wrong pairs among those kept. Set `answer` to it. "
            "Then find in the explorer from which share of wrong queries on most of the pairs that K = 1 keeps are wrong."
        ),
        judge=_judge_purity,
        solve=_solve_purity,
        wrong=_wrong_purity,
        reason=(
            "what counts is the ratio of the two parts. In the explorer it keeps 73 % and 23 % (good and wrong) at 30 % wrong "
            "queries, 65 % and 22 % at 90 %: it judges nearly as well, but wrong ones are nine times as many, and three of four kept pairs are wrong."
        ),
    ),
    Exercise(
        question=(
            "**3. Eight examples are few.** A `table` (sets of examples, training seeds) holds the nDCG of every combination. Write a function of it "
            "that returns two standard deviations: due to the choice of the examples alone, and due to the training seed. Set `answer` to it."
        ),
        judge=_judge_spread,
        solve=_solve_spread,
        wrong=_wrong_spread,
        reason=(
            "the variance of the row means is that of the examples plus that of the seeds divided by their number. A figure with one set of "
            "eight examples and five training seeds hides the first of the two."
        ),
    ),
)
