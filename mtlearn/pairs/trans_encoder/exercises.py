"""Exercises on Trans-Encoder."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.lab.seeds import stream
from mtlearn.pairs.trans_encoder.method import bi_to_cross_loss


def _draw(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=stream(0, "trans_encoder", "exercise", name))


def _judge_still(answer: Callable[[Tensor], Tensor]) -> str | None:
    logits = 2 * _draw(6, name="still")
    given = answer(logits.clone())
    if not isinstance(given, Tensor) or given.shape != logits.shape:
        return "labels are wanted: a tensor (n,), one for each logit."
    variable = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(bi_to_cross_loss(variable, given.detach().float()), variable)
    if (largest := gradient.abs().max().item()) > 1e-6:
        return f"with your labels the gradient with respect to the logits is up to {largest:.3g}; derive dL/dz = (σ(z) - y) / n."
    return None


def _solve_still() -> Any:
    def labels(logits: Tensor) -> Tensor:
        return logits.sigmoid()  # dL/dz = (σ(z) - y) / n

    return labels


def _wrong_still(logits: Tensor) -> Tensor:
    return (logits > 0).float()


def _judge_floor(answer: Callable[[Tensor], Any]) -> str | None:
    for rows in ([0.5, 0.5], [0.2, 0.9, 0.6], [0.0, 1.0, 0.3]):
        labels = torch.tensor(rows)
        floor = float(bi_to_cross_loss(labels.double().logit(1e-12), labels.double()))
        given = float(answer(labels.clone()))
        if abs(given - floor) > 1e-3:
            return f"for the labels {rows} the lowest loss that any logits reach is {floor:.3f}, you say {given:.3f}. Put z = logit(y) into the loss."
    return None


def _solve_floor() -> Any:
    def floor(labels: Tensor) -> float:
        entropy = -(torch.special.xlogy(labels, labels) + torch.special.xlogy(1 - labels, 1 - labels))
        return float(entropy.mean())

    return floor


def _wrong_floor(labels: Tensor) -> float:
    return 0.0


def _judge_mean(answer: Callable[[int, float, float], Any]) -> str | None:
    for families, spread, correlation in ((1, 0.2, 0.0), (2, 0.2, 0.0), (2, 0.2, 1.0), (4, 0.3, 0.5)):
        common, own = _draw(1, 200_000, name="common"), _draw(families, 200_000, name="own")
        errors = spread * (correlation**0.5 * common + (1 - correlation) ** 0.5 * own)
        measured = float(errors.mean(0).std())
        given = float(answer(families, spread, correlation))
        if abs(given - measured) > 0.01 * spread:
            return (
                f"{families} families whose labels err by {spread:g} with correlation {correlation:g}: the mean label errs by {measured:.3f} "
                f"(200,000 draws), you say {given:.3f}."
            )
    return None


def _solve_mean() -> Any:
    def error(families: int, spread: float, correlation: float) -> float:
        return spread * math.sqrt((1 + (families - 1) * correlation) / families)

    return error


def _wrong_mean(families: int, spread: float, correlation: float) -> float:
    return spread / math.sqrt(families)


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            "**1. A teacher that teaches nothing.** For which labels does the cross-entropy $L_{bi \\to cross}$ leave a cross-encoder as it is? "
            "Write a function of the `logits` (n,) that returns these labels (n,). Set `answer` to it. Then say why a bi-encoder that is trained "
            "on its own cosines does not move, and why the one that is trained on a cross-encoder's scores does."
        ),
        judge=_judge_still,
        solve=_solve_still,
        wrong=_wrong_still,
        reason=(
            "labels equal to a model's own output are a fixed point of its loss; so bi to bi is stuck at the start. The cross-encoder is another "
            "kind of model: what it cannot copy of the bi-encoder's mistakes is what the next bi-encoder learns."
        ),
    ),
    Exercise(
        question=(
            "**2. A loss that never reaches 0.** With soft labels the cross-entropy has a floor. Write a function of the `labels` (n,) in [0, 1] "
            "that returns the lowest value that any logits can reach. Set `answer` to it."
        ),
        judge=_judge_floor,
        solve=_solve_floor,
        wrong=_wrong_floor,
        reason=(
            "the floor is the labels' own entropy. Watch the loss less its floor, else a cross-encoder that has learned its teacher looks as if it "
            "had learned nothing. The squared error of the other half-cycle has the floor 0."
        ),
    ),
    Exercise(
        question=(
            "**3. Why two families?** Labels of F families err by `spread` (standard deviation) each, any two with the same `correlation`. By how "
            "much does their mean err? Write a function of `(families, spread, correlation)`. Set `answer` to it."
        ),
        judge=_judge_mean,
        solve=_solve_mean,
        wrong=_wrong_mean,
        reason=(
            "s sqrt((1 + (F - 1) r) / F). Two models of one family err alike (r near 1), and nothing is gained: mutual distillation of twins is "
            "self-distillation. What helps is that BERT and RoBERTa are wrong about different pairs."
        ),
    ),
)
