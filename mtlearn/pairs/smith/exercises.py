"""Exercises on SMITH."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlearn.explore.exercises import Exercise
from mtlearn.lab.seeds import stream


def _entries(length: int, size: float) -> float:
    return length * size + (length / size) ** 2


def _judge_size(answer: Callable[[int], float]) -> str | None:
    for length in (256, 864, 2048, 16384):
        best = min(range(1, length + 1), key=lambda s: _entries(length, s))
        given = answer(length)
        if isinstance(given, (bool, Tensor)) or not isinstance(given, (int, float)) or not given > 0:
            return "a positive number is wanted: the block size s."
        if round(given) != best:
            return (
                f"for {length} tokens you say s = {given:g}, {_entries(length, given):,.0f} entries; s = {best} needs {_entries(length, best):,.0f}. "
                "Write n = L / s and set the derivative to 0."
            )
    return None


def _solve_size() -> Any:
    def block_size(length: int) -> int:
        # n s² + n² with n = L / s is L s + L² / s²; its derivative L - 2 L² / s³ is 0 where s³ = 2 L
        return int((2 * length) ** (1 / 3) + 0.5)

    return block_size


def _wrong_size(length: int) -> int:
    return int(length**0.5 + 0.5)


def _judge_threshold(answer: Callable[[Tensor, Tensor], float]) -> str | None:
    for seed in range(3):
        draws = stream(seed, "smith", "relu")
        centre = torch.randn(40, 1, 24, generator=draws)
        pair = (centre + 0.8 * torch.randn(40, 2, 24, generator=draws)).relu()
        e = F.normalize(torch.cat([pair, torch.stack([pair[:, 0], pair[:, 1].roll(1, 0)], 1)]), dim=-1)
        labels = torch.arange(80) < 40
        probability = (6 * (e[:, 0] * e[:, 1]).sum(-1)).sigmoid()
        tried = torch.cat([probability - 1e-6, probability.max()[None]])
        best = ((probability > tried[:, None]) == labels).float().mean(1).max().item()
        given = float(answer(probability.clone(), labels.clone()))
        got = ((probability > given) == labels).float().mean().item()
        if got < best - 1e-6:
            return (
                f"the smallest σ(6 cos) here is {probability.min().item():.2f}; above your threshold {given:.3f} lie "
                f"{int((probability > given).sum())} of 80 pairs, and {100 * got:.0f} % are right. The best threshold has {100 * best:.0f} %."
            )
    return None


def _solve_threshold() -> Any:
    def threshold(probability: Tensor, labels: Tensor) -> float:
        tried = torch.cat([probability - 1e-6, probability.max()[None]])
        right = ((probability > tried[:, None]) == labels).float().mean(1)
        return float(tried[right.argmax()])

    return threshold


def _wrong_threshold(probability: Tensor, labels: Tensor) -> float:
    return 0.5


def _judge_guesses(answer: Callable[[Tensor, int], tuple[float, float]]) -> str | None:
    for documents, k in ((6, 2), (5, 4)):
        draws = stream(k, "smith", "guesses")
        logits = torch.randn(documents * k, documents * k, generator=draws)
        logits += 3 * torch.kron(torch.eye(documents), torch.ones(k, k))
        guess, place = logits.argmax(1), torch.arange(documents * k)
        right = ((guess // k == place // k).float().mean().item(), (guess == place).float().mean().item())
        given: Any = answer(logits.clone(), k)
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            return "two shares are wanted: right document and right block."
        if any(abs(float(a) - b) > 1e-4 for a, b in zip(given, right, strict=True)):
            return (
                f"with {documents} documents and k = {k} the shares are {right[0]:.2f} and {right[1]:.2f}, you say {float(given[0]):.2f} and "
                f"{float(given[1]):.2f}. Row r is block r % k of document r // k, and so is column r."
            )
    return None


def _solve_guesses() -> Any:
    def shares(logits: Tensor, k: int) -> tuple[float, float]:
        guess, place = logits.argmax(1), torch.arange(len(logits))
        return (guess // k == place // k).float().mean().item(), (guess == place).float().mean().item()

    return shares


def _wrong_guesses(logits: Tensor, k: int) -> tuple[float, float]:
    guess, place = logits.argmax(1), torch.arange(len(logits))
    return (guess % k == place % k).float().mean().item(), (guess == place).float().mean().item()


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            "**1. How long should a block be?** A document of $L = ns$ tokens in $n$ blocks of $s$ costs $ns^2 + n^2$ attention entries. Write a "
            "function of `length` that returns the block size with the fewest entries (a whole number; $n = L / s$ need not be one). "
            "Set `answer` to it."
        ),
        judge=_judge_size,
        solve=_solve_size,
        wrong=_wrong_size,
        reason="s³ = 2 L: 16 for 2,048 tokens. The paper's 32 costs little more there, and a block should hold whole sentences.",
    ),
    Exercise(
        question=(
            "**2. The published ReLU.** With a ReLU before the norm every cosine is at least 0, so $\\sigma(6\\cos) \\ge 0.5$ and the "
            "rule $\\sigma > 0.5$ calls everything a match. Repair the rule: write a function of `(probability, labels)`, (n,) and bool (n,), that "
            "returns the threshold with the most right pairs (a match lies above it). Set `answer` to it."
        ),
        judge=_judge_threshold,
        solve=_solve_threshold,
        wrong=_wrong_threshold,
        reason="a threshold from held-out pairs, a learned bias, or no ReLU: each repairs it. The ranking of pairs was never wrong, the rule was.",
    ),
    Exercise(
        question=(
            "**3. Right document, right block.** Of each document `k` blocks are masked; row and column r of `logits` (B k, B k) belong to masked "
            "block r % k of document r // k. Write a function of `(logits, k)` that returns two shares: how often the most likely candidate is of "
            "the right document, and how often it is the right block. Set `answer` to it. Then mask 2, 4 and 8 blocks in the shipped model "
            "(`masked_block_scores`) and watch both."
        ),
        judge=_judge_guesses,
        solve=_solve_guesses,
        wrong=_wrong_guesses,
        reason=(
            "in documents of one topic the masked blocks of a document differ in nothing but their background words and their place: the right "
            "document can be found, the right block among its k is a guess of 1 in k."
        ),
    ),
)
