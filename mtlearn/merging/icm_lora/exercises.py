"""Exercises on ICM-LoRA."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.lab.checkpoints import load
from mtlearn.lab.seeds import stream
from mtlearn.layers.cost import count_parameters
from mtlearn.merging.icm_lora.baselines import Ridge, harmonics
from mtlearn.merging.icm_lora.experiment import CHECKPOINTS, ShippedTasks, accuracy, generated, turned_images
from mtlearn.merging.icm_lora.method import MLPCVAE


def _draw(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=stream(0, "exercise", name))


def _judge_mean(answer: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> str | None:
    for rank in (1, 3):
        a1, b1, a2, b2 = (_draw(*shape, name=f"{k} {rank}") for k, shape in enumerate([(rank, 7), (5, rank), (rank, 7), (5, rank)]))
        a, b = answer(a1.clone(), b1.clone(), a2.clone(), b2.clone())
        mean = (b1 @ a1 + b2 @ a2) / 2
        if a.dim() != 2 or b.dim() != 2 or a.shape[1] != 7 or b.shape[0] != 5 or a.shape[0] != b.shape[1]:
            return f"A must be (rank, 7) and B (5, rank) for some rank; yours are {tuple(a.shape)} and {tuple(b.shape)}."
        if not torch.allclose(b @ a, mean, atol=1e-4):
            if torch.allclose(b @ a, (b1 + b2) @ (a1 + a2) / 4, atol=1e-4):
                return "(mean B)(mean A) has the terms B1 A2 and B2 A1, which belong to no task: that is why averaging factors fails. Raise the rank."
            return "your B A is not (B1 A1 + B2 A2) / 2. Put the factors beside each other instead of adding them."
    return None


def _solve_mean() -> Any:
    def mean(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
        # [B1 B2] times A1 over A2 is B1 A1 + B2 A2: no cross terms, at twice the rank
        return torch.cat([a1, a2], 0), torch.cat([b1, b2], 1) / 2

    return mean


def _wrong_mean(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    return (a1 + a2) / 2, (b1 + b2) / 2


def _judge_regression(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str | None:
    tasks = load(CHECKPOINTS[0])
    assert isinstance(tasks, ShippedTasks)
    shipped, angles = tasks.shipped, tasks.shipped.angles
    new = angles.degrees[angles.unseen]
    vectors = answer(angles.degrees[angles.seen].clone(), tasks.adapters[angles.seen].clone(), new.clone())
    if not isinstance(vectors, Tensor) or vectors.shape != (len(new), tasks.layout.size):
        return f"the function must return ({len(new)}, {tasks.layout.size}): an adapter for each new angle."
    images = turned_images(shipped.recipe, new, shipped.seed)
    judged = [vectors, generated(tasks.generator, tasks.conditions[angles.unseen], tasks.statistics, seed=shipped.seed)]
    yours, theirs = (accuracy(tasks.base, shipped.recipe, tasks.layout, rows, images.test, images.test_labels).mean().item() for rows in judged)
    if yours < theirs + 0.05:
        return (
            f"the held-out angles are read with {yours:.2f}; the CVAE has {theirs:.2f}, and 0.05 more is wanted. The weights swing faster "
            "than once a turn: which other waves close after 360 degrees?"
        )
    return None


def _solve_regression() -> Any:
    def adapters(seen: Tensor, vectors: Tensor, new: Tensor) -> Tensor:
        # cos and sin of one, two and three times the angle: seven numbers a weight from twenty tasks
        return Ridge(harmonics(seen, 3), vectors, penalty=0.1)(harmonics(new, 3))

    return adapters


def _wrong_regression(seen: Tensor, vectors: Tensor, new: Tensor) -> Tensor:
    return Ridge(harmonics(seen, 1), vectors, penalty=0.1)(harmonics(new, 1))


def _judge_tasks(answer: Callable[[int, int, int, int, float], float]) -> str | None:
    for size, condition, latent, units, share in ((1344, 12, 16, 128, 1.0), (640, 5, 3, 20, 1.0), (1344, 12, 16, 128, 0.01), (64, 0, 2, 7, 0.5)):
        right = count_parameters(MLPCVAE(size, condition, latent=latent, hidden=units)) / (share * size)
        given = float(answer(size, condition, latent, units, share))
        if abs(given - right) > 1e-3 * right:
            return (
                f"for P={size}, {condition} numbers of c, {latent} of z, {units} units, a share of {share:g} it is {right:.1f}, yours {given:.1f}. "
                "Count four layers with their biases: two of the encoder (whose last puts out mean and log variance), two of the decoder."
            )
    return None


def _solve_tasks() -> Any:
    def tasks(size: int, condition: int, latent: int, units: int, share: float) -> float:
        encoder = (size + condition + 1) * units + (units + 1) * 2 * latent
        decoder = (latent + condition + 1) * units + (units + 1) * size
        # about 2 * units * P numbers for T * P: it breaks even near T = 2 * units, whatever P is
        return (encoder + decoder) / (share * size)

    return tasks


def _wrong_tasks(size: int, condition: int, latent: int, units: int, share: float) -> float:
    return ((latent + condition + 1) * units + (units + 1) * size) / (share * size)


EXERCISES = (
    Exercise(
        question=(
            "**1. Average adapters that start apart.** With a random $A$ of its own for every task, $\\frac{B_1+B_2}2\\,\\frac{A_1+A_2}2$ is *not* "
            "the mean of the two changes $B_1A_1$ and $B_2A_2$. Write a function of `(a1, b1, a2, b2)`, with A (rank, in) and B (out, rank), that "
            "returns factors `(a, b)` whose product is that mean exactly. Set `answer` to it."
        ),
        judge=_judge_mean,
        solve=_solve_mean,
        wrong=_wrong_mean,
        reason=(
            "side by side there are no cross terms, at the price of twice the rank. In the recorded result the mean of two neighbours' products is "
            "far better than the mean of their factors when every run has its own A. A generator of B A instead of A and B has the same advantage."
        ),
    ),
    Exercise(
        question=(
            "**2. Beat the CVAE.** Write a function of `(seen, vectors, new)`: the seen angles in degrees (20,), their adapters (20, 1320), and new "
            "angles (4,), that returns adapters for the new angles (4, 1320). `Ridge` and `harmonics` of this paper's `baselines` may help. On the "
            "shipped tasks it must read 0.05 more of the held-out digits than the CVAE does. Set `answer` to it."
        ),
        judge=_judge_regression,
        solve=_solve_regression,
        wrong=_wrong_regression,
        reason=(
            "three harmonics are enough, one is not. A straight line that is told what varies (the angle) beats 355,000 weights that have to find it "
            "out from twenty tasks. A generator earns its size only where nobody knows the right coordinates and there are many more tasks."
        ),
    ),
    Exercise(
        question=(
            "**3. When does a generator save room?** Write a function of `(P, condition, latent, units, share)` that returns the number of tasks "
            "from which on an `MLPCVAE` takes at most `share` of the room of all tasks' adapters of P numbers each. (P is a multiple of 64, so there "
            "is no padding.) Set `answer` to it."
        ),
        judge=_judge_tasks,
        solve=_solve_tasks,
        wrong=_wrong_tasks,
        reason=(
            "about 2 * units / share tasks, whatever P is. By the same count the paper's 283 MB are 1 % of 3,666 adapters of 1.93 million numbers, "
            "and its one network of 7.5 million numbers breaks even at 4 tasks, because its convolutions share weights along the vector."
        ),
    ),
)
