"""Exercises on language models as retrievers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise

# backbone, billion parameters, trillion tokens of pretraining, MRR@10 on MS MARCO (Table 5 of the paper)
TABLE = (
    ("Phi-1.5", 1.3, 0.15, 34.1),
    ("Phi-2", 2.7, 1.4, 36.6),
    ("Qwen1.5-0.5B", 0.5, 3.0, 36.7),
    ("Qwen1.5-4B", 4.0, 3.0, 40.0),
    ("Qwen1.5-14B", 14.0, 3.0, 41.3),
    ("Qwen1.5-32B", 32.0, 3.0, 42.6),
    ("Llama-2-7B", 7.0, 2.0, 40.8),
    ("Llama-3-8B", 8.0, 15.0, 42.1),
)


def _judge_seen(answer: Callable[[int], Any]) -> str | None:
    for length in (1, 2, 5, 8):
        given = torch.as_tensor(answer(length)).double()
        right = (length - torch.arange(length)).double() / length
        if given.shape != right.shape:
            return f"one share for each of the {length} tokens is wanted, got the shape {tuple(given.shape)}."
        if not torch.allclose(given, right, atol=1e-6):
            return f"for {length} tokens the shares are not right: token t is seen by its own state and by all that follow."
    return None


def _solve_seen() -> Any:
    def seen(length: int) -> Tensor:
        # row i of the causal mask: what state i has seen; the mean over rows is what mean pooling has seen
        return torch.ones(length, length).tril().mean(0)

    return seen


def _wrong_seen(length: int) -> Tensor:
    return torch.ones(length)


def _judge_exchange(answer: Callable[[Sequence[float], Sequence[float], float], float]) -> str | None:
    tests: tuple[tuple[tuple[float, ...], tuple[float, ...], float, float], ...] = (
        ((0, 10, 20, 50, 100), (0.0, 0.1, 0.2, 0.3, 0.4), 0.25, 35.0),
        ((0, 10, 20), (0.0, 0.1, 0.3), 0.3, 20.0),
        ((0, 50, 100), (0.0, 0.2, 0.3), 0.4, math.inf),
        ((0, 10, 20), (0.1, 0.2, 0.3), 0.05, 0.0),
    )
    for steps, scores, target, right in tests:
        given = float(answer(steps, scores, target))
        if not (given == right or abs(given - right) < 1e-6):
            return (
                f"scores {scores} after {steps} steps reach {target} after {right:g} steps, by a straight line between "
                f"two measurements; got {given:g}."
            )
    return None


def _solve_exchange() -> Any:
    def reached(steps: Sequence[float], scores: Sequence[float], target: float) -> float:
        for place, score in enumerate(scores):
            if score >= target:
                if place == 0:
                    return steps[0]
                before = scores[place - 1]
                return steps[place - 1] + (target - before) / (score - before) * (steps[place] - steps[place - 1])
        return math.inf

    return reached


def _wrong_exchange(steps: Sequence[float], scores: Sequence[float], target: float) -> float:
    return next((step for step, score in zip(steps, scores, strict=True) if score >= target), math.inf)


def _fitted(rows: Sequence[tuple[str, float, float, float]]) -> tuple[float, float]:
    table = np.array([[1.0, math.log10(parameters), math.log10(tokens)] for _, parameters, tokens, _ in rows])
    found = np.linalg.lstsq(table, np.array([row[3] for row in rows]), rcond=None)[0]
    return float(found[1]), float(found[2])


def _judge_fit(answer: Any) -> str | None:
    values = [float(value) for value in answer]
    if len(values) != 4:
        return "four numbers are wanted: b and c of all eight backbones, then b and c without the two Phi models."
    right = (*_fitted(TABLE), *_fitted(TABLE[2:]))
    for given, wanted, name in zip(values, right, ("b", "c", "b without Phi", "c without Phi"), strict=True):
        if abs(given - wanted) > 0.02:
            return f"{name} is not {given:.2f}: fit a constant too, take logarithms to base 10, and minimise the squares of MRR in points."
    return None


def _solve_fit() -> Any:
    def fit(rows: Sequence[tuple[str, float, float, float]]) -> list[float]:
        table = np.array([[1.0, math.log10(parameters), math.log10(tokens)] for _, parameters, tokens, _ in rows])
        _, b, c = np.linalg.lstsq(table, np.array([row[3] for row in rows]), rcond=None)[0]
        return [float(b), float(c)]

    return (*fit(TABLE), *fit([row for row in TABLE if not row[0].startswith("Phi")]))


EXERCISES = (
    Exercise(
        question=(
            "**1. The mean of a causal model.** Replace the end token's state by the mean of all states. Which tokens dominate? "
            "Write `seen(n)`: for a text of n tokens under a causal mask, the share of the n states that can depend on token t, for t"
            " = 0 to n - 1. Set `answer` to your "
            "function."
        ),
        judge=_judge_seen,
        solve=_solve_seen,
        wrong=_wrong_seen,
        reason=(
            "the first token is in every state, the last in one of n: a mean over a causal model leans to the beginning of a text. Measured on one "
            "seed (nDCG@10, mean and last): M long before fine-tuning 0.09 and 0.06, after it 0.40 and 0.40; M none after it 0.35 and 0.42."
        ),
    ),
    Exercise(
        question=(
            "**2. An exchange rate.** How many steps without pretraining are as good as pretraining? "
            "Write `reached(steps, scores, target)`: the number of steps after which a curve reaches a score, by a straight line "
            "between two measurements, infinity where it never does. Then try it on "
            "the curves of M none and the end of S long. Set `answer` to your function."
        ),
        judge=_judge_exchange,
        solve=_solve_exchange,
        wrong=_wrong_exchange,
        reason="times 32 it is the number of labelled pairs that pretraining has saved, at another size of model: data can be bought by parameters.",
    ),
    Exercise(
        question=(
            "**3. Size or tokens?** Fit MRR = a + b log10(parameters) + c log10(tokens) to `exercises.TABLE` (Table 5 of the paper) "
            "by least squares, "
            "then again without the two Phi models. Set `answer` to (b, c, b without Phi, c without Phi)."
        ),
        judge=_judge_fit,
        solve=_solve_fit,
        wrong=(4.0, 4.0, 4.0, 4.0),
        reason=(
            "b is the larger one with all eight, and more so without Phi, where c rests on Llama alone: families differ in their data, "
            "and size and tokens were not varied independently. Eight points do not tell the two apart."
        ),
    ),
)
