"""Exercises on Mod-Squad: the two halves of the information, the softmax's denominator, and how a new router should start."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.moe.mod_squad.experiment import DIGITS, LETTERS, PHOTOS, score
from mtlearn.moe.mod_squad.explorer import squad, world
from mtlearn.moe.mod_squad.method import add_task
from mtlearn.moe.mod_squad.model import Head, task_loss

STARTS: dict[str, tuple[str, ...] | str | None] = {"copy": DIGITS, "mean": (DIGITS, PHOTOS, LETTERS), "other": PHOTOS, "zero": None}


@cache
def race(start: str, *, steps: int = 30) -> float:
    """Accuracy on digits under *new names* (each digit gets another digit's name) after a few steps of a new router and head.

    Args:
        start: of the routers: ``copy`` (of digits', where the same images are at home), ``mean`` (of all tasks'), ``other`` (of photos'), or
            ``zero``.
        steps: of Adam on 48 images each.
    """
    if start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}, got {start!r}")
    model = copy.deepcopy(squad(0.15))
    names = torch.randperm(10, generator=stream(0, "names"))
    images, labels = world().train[DIGITS]
    draws = stream(0, "race")
    with seeded(0):
        trained = add_task(model, "renamed", Head("image", 10), like=STARTS[start], train="router")

    def loss_at(step: int) -> Tensor:
        rows = torch.randint(len(images), (48,), generator=draws)
        return task_loss(model.tasks["renamed"], model(images[rows], "renamed").prediction, names[labels[rows]])

    fit(model, loss_at, steps=steps, optimizer=torch.optim.Adam(trained, lr=1e-2, fused=True))
    test_images, test_labels = world().test[DIGITS]
    return score(model.eval(), "renamed", (test_images, names[test_labels]))


def _judge_halves(answer: tuple[Callable[[Tensor], tuple[Tensor, Tensor]], str]) -> str | None:
    halves, name = answer
    for seed in range(3):
        joint = torch.rand(3, 5, generator=stream(seed, "joint"), dtype=torch.float64) ** 3
        joint = joint / joint.sum()
        found = [float(value) for value in halves(joint)]
        marginal, conditional = (float(value) for value in _halves(joint))
        if abs(found[0] - marginal) > 1e-9:
            return "the first value is not H(E): sum the joint over tasks, then take the entropy of that row."
        if abs(found[1] - conditional) > 1e-9:
            return "the second value is not H(E | T): it is the entropy of each task's own row (scaled to sum to 1), weighted by P(t)."
    if str(name).replace(" ", "") not in ("H(E)", "H(E|T)"):
        return "name the half as 'H(E)' or 'H(E|T)'."
    if str(name).replace(" ", "") == "H(E|T)":
        return "with H(E | T) small alone, all tasks could send everything to one expert: it is 0 there. Which half is small then?"
    return None


def _halves(joint: Tensor) -> tuple[Tensor, Tensor]:
    rows = joint.sum(1)
    return torch.special.entr(joint.sum(0)).sum(), (rows * torch.special.entr(joint / rows[:, None]).sum(1)).sum()


def _solve_halves() -> Any:
    def halves(joint: Tensor) -> tuple[Tensor, Tensor]:
        task = joint.sum(1)  # P(t)
        given = joint / task[:, None]  # P(e | t)
        return torch.special.entr(joint.sum(0)).sum(), (task * torch.special.entr(given).sum(1)).sum()

    return halves, "H(E)"


def _judge_factor(answer: tuple[Callable[[Tensor, Tensor], Tensor], float]) -> str | None:
    factor, largest = answer
    p = torch.rand(20, 6, generator=stream(1, "gates"), dtype=torch.float64).softmax(-1)
    for kept in (torch.tensor([0, 2, 3]), torch.tensor([5]), torch.arange(6)):
        given = torch.as_tensor(factor(p, kept))
        if given.shape != (20,):
            return f"factor must return one number for each token, shape (20,), not {tuple(given.shape)}."
        again = p.log()[:, kept].softmax(-1) / p[:, kept]  # the same factor for every kept expert of a token
        if not torch.allclose(given.double(), again[:, 0]):
            return "the factor is the new gate over the old one: the softmax over the kept columns alone, divided by the softmax over all."
    if abs(float(largest) - (1 - 1 / 1.01)) > 5e-5:
        return "all gates grow by one part in a hundred where 1 / (1 - dropped) = 1.01: solve for what is dropped, to four digits."
    return None


def _solve_factor() -> Any:
    def factor(p: Tensor, kept: Tensor) -> Tensor:
        return 1 / p[:, kept].sum(-1)  # what the dropped columns had is shared out in proportion

    return factor, 1 - 1 / 1.01


def _judge_race(answer: tuple[str, dict[str, float]]) -> str | None:
    name, found = answer
    if name not in STARTS or set(found) != set(STARTS):
        return f"give (name, accuracies): name and the keys of the dict from {', '.join(STARTS)}."
    for start in STARTS:
        if abs(float(found[start]) - race(start)) > 0.02:
            return f"after 30 steps `race({start!r})` does not give {float(found[start]):.3f}: call it for each start."
    if race(name) < max(map(race, STARTS)) - 0.01:
        return f"{name!r} is not among the fastest of these four: compare the accuracies again."
    return None


def _solve_race() -> Any:
    found = {start: race(start) for start in STARTS}
    return max(found, key=lambda start: found[start]), found


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            "**1. Two halves.** $I(T;E) = H(E) - H(E\\mid T)$. Write `halves(joint)` that returns both entropies (in nats) of a joint "
            "distribution (tasks, experts), and say which half keeps all tasks from falling onto one expert. "
            "Set `answer = (halves, 'H(E)')` or `(halves, 'H(E|T)')`."
        ),
        judge=_judge_halves,
        solve=_solve_halves,
        wrong=(_halves, "H(E|T)"),
        reason=(
            "H(E | T) is smallest where each task uses one expert, and it does not mind if that is the same one; H(E) is then 0. "
            "Maximising H(E) as well asks that the tasks together use all experts evenly: it takes the place of a load-balancing loss."
        ),
    ),
    Exercise(
        question=(
            "**2. The denominator.** When a sub-network is lifted out and the router's columns of dropped experts go too, the softmax is over fewer "
            "columns, and all gates of a token grow by one factor. Write `factor(p, kept)`: `p` (tokens, experts) are the full softmax's "
            "probabilities, `kept` are expert numbers; return (tokens,). How much probability may the dropped experts have together so "
            "that gates grow by at most 1 %? Set `answer = (factor, largest)`."
        ),
        judge=_judge_factor,
        solve=_solve_factor,
        wrong=(lambda p, kept: p[:, kept].sum(-1), 0.01),
        reason=(
            "the factor is 1 / (kept probability). Cutting only experts that are rarely used, as the authors do, keeps it near 1; with half of the "
            "experts gone it is not, and everything above the layer sees louder experts than it was trained with."
        ),
    ),
    Exercise(
        question=(
            "**3. How should a new router start?** `race(start)` (from `mtlearn.moe.mod_squad.exercises`) adds a task to the shipped model: "
            "digits again, but with new names. It trains a new router and head for 30 steps, the router started as a `copy` of digits', as the "
            "`mean` of all three tasks', as that of the `other` task photos, or at `zero`, and returns the accuracy. "
            "Which is fastest (name one if two tie)? "
            "Set `answer = (name, {'copy': ..., 'mean': ..., 'other': ..., 'zero': ...})`."
        ),
        judge=_judge_race,
        solve=_solve_race,
        wrong=("zero", {"copy": 0.1, "mean": 0.1, "other": 0.1, "zero": 0.9}),
        reason=(
            "the experts of digits know these images already, and the copied router sends them there from the first step; in the mean "
            "it is there as well, and wins where the others are not sure. Zero is close: all experts begin as equals. "
            "The start to avoid is the router of a task that is far: it is sure of the wrong experts, and top-k lets it hear nothing of the others."
        ),
    ),
)
