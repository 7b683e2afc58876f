"""Exercises on gates, memory, and who earns the credit."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from mtlearn.datasets.scenes import Scenes, sample_scenes
from mtlearn.explore.exercises import Exercise
from mtlearn.lab.checkpoints import load
from mtlearn.lab.result import recorded
from mtlearn.lab.seeds import stream
from mtlearn.moe.task_expert.experiment import CHECKPOINTS, TASKS, decode, probed
from mtlearn.moe.task_expert.method import Decoded, DenseModel, pool

# which pool sees which change


def pooled_changes(name: str) -> dict[str, bool]:
    """For a flat grey image of 8 x 8 (0.5): does the pool's value change by more than 0.1 when ...?"""
    flat = torch.full((1, 8, 8), 0.5)
    bright, everywhere, moved = flat.clone(), flat + 0.3, flat.clone()
    bright[0, 1, 1], moved[0, 6, 6] = 3.0, 3.0

    def value(x: Tensor) -> float:
        return float(pool(x, (name,))[0])  # type: ignore[arg-type]  # the name of a pool

    pairs = {"one pixel": (flat, bright), "all pixels": (flat, everywhere), "where the pixel is": (bright, moved)}
    return {change: abs(value(a) - value(b)) > 0.1 for change, (a, b) in pairs.items()}


def _judge_pools(answer: dict[str, set[str]]) -> str | None:
    pools = ("mean", "max", "min")
    if not isinstance(answer, dict) or set(answer) != set(pools):
        return "give a dict with the keys 'mean', 'max' and 'min', each with a set of the changes that it sees."
    for name in pools:
        sees = {change for change, seen in pooled_changes(name).items() if seen}
        if set(answer[name]) != sees:
            given = ", ".join(sorted(answer[name])) or "nothing"
            return f"{name}: not {given}. Compute the {name} of the 64 pixels before and after: a pixel that becomes 3 adds 2.5/64 to the mean."
    return None


def _solve_pools() -> Any:
    # a mean dilutes one pixel among 64, a maximum keeps it, and none of the three knows where it was
    return {"mean": {"all pixels"}, "max": {"one pixel", "all pixels"}, "min": {"all pixels"}}


# dynamic or not, memory or not


TABLE = {
    ("static", "memory"): "static gates, memory",
    ("dynamic", "no memory"): "dynamic gates, no memory",
    ("dynamic", "memory"): "TaskExpert",
}


def _judge_credit(answer: dict[str, float]) -> str | None:
    if not isinstance(answer, dict) or set(answer) != {"gates", "memory"}:
        return "give a dict with the keys 'gates' and 'memory': what each adds to the mIoU while the other is there."
    arms = recorded("task_expert").arms
    full = arms["TaskExpert"]["mIoU"].mean
    for part, without in (("gates", TABLE["static", "memory"]), ("memory", TABLE["dynamic", "no memory"])):
        gain = full - arms[without]["mIoU"].mean
        if abs(float(answer[part]) - gain) > 2e-3:
            return f"{part}: {float(answer[part]):+.3f} is not TaskExpert minus {without!r} in the mean mIoU over the seeds."
    return None


def _solve_credit() -> Any:
    arms = recorded("task_expert").arms
    full = arms["TaskExpert"]["mIoU"].mean
    return {
        "gates": full - arms["static gates, memory"]["mIoU"].mean,
        "memory": full - arms["dynamic gates, no memory"]["mIoU"].mean,
    }


# where the model decides


@cache
def shipped() -> tuple[Decoded, Scenes, Decoded, Scenes]:
    """The shipped model on 400 scenes to fit a probe and on 400 others, decoded."""
    model = load(CHECKPOINTS[0])
    assert isinstance(model, DenseModel)
    known, fresh = (sample_scenes(400, generator=stream(7, part)) for part in ("known", "fresh"))
    return decode(model, known.images), known, decode(model, fresh.images), fresh


@cache
def parity_accuracy(task: str, layer: int) -> float:
    """How well a logistic regression tells odd from even regimes by the gates of one task at one layer (from 0)."""
    seen, known, found, fresh = shipped()
    number = [one.name for one in TASKS].index(task)
    return probed(seen.gates[layer][:, number], known.regime % 2, found.gates[layer][:, number], fresh.regime % 2)


def _judge_where(answer: dict[str, list[float]]) -> str | None:
    names = [task.name for task in TASKS]
    if not isinstance(answer, dict) or set(answer) != set(names):
        return f"give a dict with the keys {', '.join(names)}, each with one accuracy for each of the three layers."
    for name in names:
        for layer, given in enumerate(answer[name]):
            wanted = parity_accuracy(name, layer)
            if abs(float(given) - wanted) > 0.03:
                return (
                    f"{name}, layer {layer + 1}: {float(given):.2f} is not what `parity_accuracy({name!r}, {layer})` measures. Layers count from 0."
                )
        if len(answer[name]) != 3:
            return f"{name}: three layers, so three numbers."
    return None


def _solve_where() -> Any:
    return {task.name: [parity_accuracy(task.name, layer) for layer in range(3)] for task in TASKS}


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            "**1. What a pool sees.** A flat grey picture of 8 × 8 pixels (value 0.5) changes in three ways: `'one pixel'` becomes 3; `'all pixels'` "
            "rise by 0.3; `'where the pixel is'`: the pixel of value 3 moves to another place. Which of them move the mean, the maximum, the minimum "
            "by more than 0.1? Set `answer = {'mean': {...}, 'max': {...}, 'min': {...}}`, sets of these names."
        ),
        judge=_judge_pools,
        solve=_solve_pools,
        wrong={"mean": {"one pixel", "all pixels"}, "max": {"one pixel", "where the pixel is"}, "min": set()},
        reason=(
            "a small mark is lost in a mean and stands out in a maximum (a dark one in a minimum), which is why the gate has all three. "
            "No pool knows where: that takes learned weights over positions."
        ),
    ),
    Exercise(
        question=(
            "**2. Who earns it?** Gates that look at the image (dynamic) or not (static), memory or none, at equal size: three of the "
            "four combinations are arms of `recorded('task_expert')`. `'TaskExpert'` has both, `'static gates, memory'` and "
            "`'dynamic gates, no memory'` one each. How much mIoU (`.mean` over the seeds) do dynamic gates add while there is a memory, and the "
            "memory while gates are dynamic? Set `answer = {'gates': ..., 'memory': ...}`."
        ),
        judge=_judge_credit,
        solve=_solve_credit,
        wrong={"gates": 0.3, "memory": 0.3},
        reason=(
            "on these scenes the gates do the work and the memory adds next to nothing. "
            "An ablation ladder that adds one thing after another and stops at the full model would not have shown that."
        ),
    ),
    Exercise(
        question=(
            "**3. Where does the model decide?** `parity_accuracy(task, layer)` (from `mtlearn.moe.task_expert.exercises`) fits a logistic "
            "regression that tells odd regimes from even ones by one task's gates at one layer of the shipped model, and says how often it is right "
            "on other scenes. "
            "Collect it for all tasks and layers 0, 1, 2: `answer = {'segmentation': [...], 'depth': [...], 'boundary': [...]}`."
        ),
        judge=_judge_where,
        solve=_solve_where,
        wrong={"segmentation": [1.0, 1.0, 1.0], "depth": [0.5, 0.5, 0.5], "boundary": [0.5, 0.5, 0.5]},
        reason=(
            "segmentation's gates tell odd from even where the model decides. Those of a task that does not need to know can still tell something: "
            "they are functions of the same pooled feature. That a probe can read a thing does not mean that it is used; freezing the gates shows "
            "what is used."
        ),
    ),
)
