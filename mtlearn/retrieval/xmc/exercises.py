"""Exercises on losses for many right answers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.retrieval.xmc.method import decoupled_softmax, log_soft_top_k, sample_positive, softmax_loss


def _judge_confidence(answer: Any) -> str | None:
    if not isinstance(answer, tuple) or len(answer) != 2:
        return "a pair is wanted: the probability, and the loss at the optimum."
    share, least = (float(value) for value in answer)
    if abs(share - 0.2) > 1e-6:
        return "set the gradient |P| p - 1 to zero."
    if abs(least - 5 * float(torch.tensor(5.0).log())) > 1e-3:
        return "at the optimum the negatives have nothing and the five positives share everything equally; the loss is summed over them."
    return None


def _solve_confidence() -> Any:
    # |P| p - 1 > 0 above p = 1/5. All p_i = 1/5 is the optimum: the loss is -5 log(1/5), and no training brings it below
    share = 1 / 5
    return share, float(-5 * torch.tensor(share).log())


def _judge_sampled(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str | None:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        scores = 2 * torch.randn(5, 9, generator=generator, dtype=torch.float64)
        targets = torch.rand(5, 9, generator=generator).argsort(1).argsort(1) < 3
        drawn, rest = sample_positive(targets, generator=generator)
        given = answer(scores.clone(), drawn.clone(), rest.clone())
        if not isinstance(given, Tensor) or given.dim() != 0:
            return "a scalar tensor is wanted."
        if not torch.allclose(given.double(), softmax_loss(scores, drawn), atol=1e-6):
            if torch.allclose(given.double(), decoupled_softmax(scores, drawn, dropped=rest), atol=1e-6):
                return "this is the decoupled loss: the other positives are gone. Keep them in the denominator."
            return "the drawn positive stands against everything, the other positives included."
    return None


def _solve_sampled() -> Any:
    def loss(scores: Tensor, drawn: Tensor, rest: Tensor) -> Tensor:
        # nothing is dropped, so `rest` counts as negative: this is InfoNCE with one drawn positive, and positives compete again
        return decoupled_softmax(scores, drawn)

    return loss


def _wrong_sampled(scores: Tensor, drawn: Tensor, rest: Tensor) -> Tensor:
    return decoupled_softmax(scores, drawn, dropped=rest)


def _judge_vanishing(answer: Callable[[int], Tensor]) -> str | None:
    for k in (1, 3):
        scores = answer(k)
        if not isinstance(scores, Tensor) or scores.shape != (1, 8):
            return f"scores (1, 8) are wanted, got {tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__}."
        leaf = scores.double().detach().requires_grad_()
        loss = -log_soft_top_k(leaf, k, steps=60)[0, :k].mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        if float(gradient.abs().max()) > 1e-6:
            return f"k = {k}: the largest gradient is still {float(gradient.abs().max()):.1e}. A wider gap after label k would help."
        top = scores[0, :k]
        if k > 1 and float(top.max() - top.min()) < 1:
            return "spread the first k labels over at least 1: the loss must not care for their order."
    return None


def _solve_vanishing() -> Any:
    def scores(k: int) -> Tensor:
        # once the k positives are inside by far, every share is 1 and the loss has nothing more to ask: neither their order nor a wider gap
        inside = 30 + torch.linspace(0, 5, k)
        return torch.cat([inside, torch.zeros(8 - k)])[None]

    return scores


def _wrong_vanishing(k: int) -> Tensor:
    return torch.cat([2 + torch.linspace(0, 2, k), torch.zeros(8 - k)])[None]


EXERCISES = (
    Exercise(
        question=(
            "**1. Too sure.** A query has $|P| = 5$ right labels. From which softmax probability on does InfoNCE push a right label *down*, and how "
            "low can its loss (summed over the five) become at best? Set `answer` to the pair of numbers."
        ),
        judge=_judge_confidence,
        solve=_solve_confidence,
        wrong=(0.5, 0.0),
        reason="above 1/5 a right label is demoted; the optimum is all five equal, where the loss is 5 log 5 = 8.05, not 0.",
    ),
    Exercise(
        question=(
            "**2. One drawn positive, done wrong.** `sample_positive` gives the drawn positive and the `rest`. Write `loss(scores, drawn, rest)` "
            "that keeps the rest in the denominator. Set `answer` to your function. Which known loss is it?"
        ),
        judge=_judge_sampled,
        solve=_solve_sampled,
        wrong=_wrong_sampled,
        reason="with the rest in the denominator it is InfoNCE with one drawn positive: the competition that decoupling removed is back.",
    ),
    Exercise(
        question=(
            "**3. When the soft top k falls silent.** Write `scores(k)` that gives scores (1, 8) in which the first k labels are the right ones, "
            "spread over at least 1, and the soft top-k loss (α = 2) has a gradient below $10^{-6}$ everywhere. Set `answer` to your function."
        ),
        judge=_judge_vanishing,
        solve=_solve_vanishing,
        wrong=_wrong_vanishing,
        reason="inside the top k all shares are 1, so the order there is never learned: the loss buys precision at k, not at 1.",
    ),
)
