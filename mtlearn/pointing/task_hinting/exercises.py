"""Exercises on task hinting."""

import math
from collections.abc import Callable
from typing import Any

import torch

from mtlearn.datasets.sequences import carries, sample_numbers
from mtlearn.explore.exercises import Exercise
from mtlearn.lab.seeds import stream
from mtlearn.pointing.task_hinting.method import copy_temperature, min_temperature


def _mass(logits: list[float]) -> float:
    return float(torch.tensor(logits, dtype=torch.float64).softmax(0)[0])


def _judge_temperatures(answer: tuple[Callable[[int, float], float], Callable[[int, float], float]]) -> str | None:
    linear, gap = answer
    for epsilon in (0.1, 0.01):
        for n in (10, 100, 1000):
            beta, gamma = float(linear(n, epsilon)), float(gap(n, epsilon))
            falling, level = [-beta * k for k in range(n)], [0.0] + [-gamma] * (n - 1)
            for name, logits in (("linear logits", falling), ("a constant gap", level)):
                if _mass(logits) < 1 - epsilon - 1e-9:
                    return (
                        f"{name}: at n = {n}, epsilon = {epsilon} the first of the n keys gets only {_mass(logits):.4f}; it should get {1 - epsilon}."
                    )
            if beta > 1.05 * min_temperature(epsilon):
                return f"linear logits: {beta:.2f} is enough at n = {n}, but less would do. Sum the geometric series 1 + e^-beta + e^-2beta + ..."
            if gamma > 1.05 * copy_temperature(n, epsilon):
                return f"a constant gap: {gamma:.2f} is enough at n = {n}, but less would do: solve 1 / (1 + (n - 1) e^-gamma) = 1 - epsilon."
    return None


def _solve_temperatures() -> Any:
    def linear(n: int, epsilon: float) -> float:
        # 1 / (1 + e^-beta + e^-2beta + ...) = 1 - e^-beta, whatever n is
        return math.log(1 / epsilon)

    def gap(n: int, epsilon: float) -> float:
        # 1 / (1 + (n - 1) e^-gamma) = 1 - epsilon
        return math.log((n - 1) * (1 - epsilon) / epsilon)

    return linear, gap


def _wrong_temperature(n: int, epsilon: float) -> float:
    return math.log(1 / epsilon)


def _judge_hint(answer: Callable[[list[int]], list[int]]) -> str | None:
    numbers = sample_numbers(200, 4, generator=stream(0, "exercise"))
    wanted = carries(numbers).tolist()
    given = [list(answer(number)) for number in numbers.tolist()]
    for number, mine, right in zip(numbers.tolist(), given, wanted, strict=True):
        if len(mine) != len(number):
            return f"one answer for each digit: {number} has {len(number)} digits, your hint has {len(mine)} entries."
        if [int(bool(entry)) for entry in mine] != right:
            text = "".join(map(str, number))
            plus = str(int(text) + 1).rjust(4, "0")
            return (
                f"for {text} (plus one is {plus}) yours is {mine}. A good hint is a step of the main computation: which digits does the one reach? "
                "Begin at the last digit and ask when it moves on to the left."
            )
    return None


def _solve_hint() -> Any:
    def hint(digits: list[int]) -> list[int]:
        carry, answer = 1, []
        for digit in reversed(digits):
            answer.append(carry)
            carry = carry * (digit == 9)
        return answer[::-1]

    return hint


def _wrong_hint(digits: list[int]) -> list[int]:
    return [int(digit == 9) for digit in digits]


def _judge_budget(answer: dict[str, int]) -> str | None:
    if not isinstance(answer, dict) or set(answer) != {"equal steps", "equal sequences"}:
        return "give a dict with the keys 'equal steps' and 'equal sequences'."
    steps, sequences = answer["equal steps"], answer["equal sequences"]
    if steps == sequences:
        return "the two comparisons give the baseline different amounts of data; in one of them it sees half of what the hint arm sees."
    if sequences != 700 * 128:
        return f"equal sequences: the hint arm reads 64 + 64 rows in each of 700 steps; the baseline must read as many, not {sequences}."
    if steps != 700 * 64:
        return f"equal steps: the baseline does the same 700 steps with the main batch of 64 alone, not {steps} sequences."
    return None


def _solve_budget() -> Any:
    return {"equal steps": 700 * 64, "equal sequences": 700 * (64 + 64)}


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            "**1. How sharp must the attention be?** One of n keys should get at least $1-\\epsilon$ of the softmax. "
            "Write two functions of `(n, epsilon)` that return the smallest inverse temperature which is enough: `linear` for logits "
            "$0, -\\beta, -2\\beta, \\dots$ (values one apart), `gap` for one logit 0 and all others $-\\gamma$. "
            "Set `answer = (linear, gap)`. `linear` may ignore n where no n needs more."
        ),
        judge=_judge_temperatures,
        solve=_solve_temperatures,
        wrong=(_wrong_temperature, _wrong_temperature),
        reason=(
            "with linear logits a constant is enough at every length, a geometric series; with a constant gap it grows like log n. "
            "A trained model's logits are bounded, so it is in the second case: that is what a length-dependent temperature mends."
        ),
    ),
    Exercise(
        question=(
            "**2. Design a hint.** The main task adds 1 to a decimal number. A good hint is a small step of that computation, asked at every digit. "
            "Write a function from a list of digits (leading digit first) to a list of 0 and 1 of the same length, and set `answer` to it. "
            "Number of digits, say, is no such step: it is nowhere needed on the way."
        ),
        judge=_judge_hint,
        solve=_solve_hint,
        wrong=_wrong_hint,
        reason=(
            "the carry is a local step of the main computation, and the answer's digits are the old ones plus it. 'Is it a nine?' is nearer to "
            "the input, but does not yet say what is needed: a nine that no one reaches stays a nine."
        ),
    ),
    Exercise(
        question=(
            "**3. Which comparison?** A hint arm trains for 700 steps, each with 64 main rows and 64 hint rows. How many main rows does a baseline "
            "without hints read in a comparison at *equal steps* (the same main batches, nothing added), and how many at *equal sequences*? "
            "Set `answer = {'equal steps': ..., 'equal sequences': ...}`."
        ),
        judge=_judge_budget,
        solve=_solve_budget,
        wrong={"equal steps": 700 * 128, "equal sequences": 700 * 128},
        reason=(
            "at equal steps the hint arm reads twice as much, and its hints are extra training of the shared layers; at equal sequences the "
            "baseline gets main rows instead. Where a main row teaches more than a hint (a sorted list answers every successor question about it), "
            "the second comparison can turn the first around."
        ),
    ),
)
