"""Exercises on the Uni-Encoder."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.lab.seeds import stream
from mtlearn.pairs.uni_encoder.method import attention_mask, cost, reach
from mtlearn.pairs.uni_encoder.world import FIRST, VALUES, draw


def _judge_cost(answer: Callable[[int, int, int, int], int]) -> str | None:
    for n, m, d, h in ((128, 12, 128, 512), (64, 32, 64, 64), (16, 16, 32, 32)):
        right = next(count for count in range(1, 100_000) if _dense(n, m, d, h, count) > _alone(n, m, d, h, count))
        given = answer(n, m, d, h)
        if isinstance(given, bool) or not isinstance(given, int):
            return "a whole number is wanted: the smallest number of candidates at which one dense sequence costs more."
        if given != right:
            return (
                f"with n = {n}, m = {m}, d = {d}, h = {h} it is {right}, you say {given}. A layer costs 4d² + 2dh a token and 2d a pair of tokens; "
                "a dense kernel computes all T² pairs."
            )
    return None


def _dense(n: int, m: int, d: int, h: int, count: int) -> int:
    return cost(n, [m] * count).multiply_adds(d, h, 1)


def _alone(n: int, m: int, d: int, h: int, count: int) -> int:
    return cost(n, [m] * count, "cross").multiply_adds(d, h, 1)


def _solve_cost() -> Any:
    def crossing(n: int, m: int, d: int, h: int) -> int:
        count = 1
        while True:
            token, pair = 4 * d * d + 2 * d * h, 2 * d
            together = (n + count * m) * token + (n + count * m) ** 2 * pair
            alone = count * ((n + m) * token + (n + m) ** 2 * pair)
            if together > alone:
                return count
            count += 1

    return crossing


def _wrong_cost(n: int, m: int, d: int, h: int) -> int:
    return next(count for count in range(2, 100_000) if (n + count * m) ** 2 > count * (n + m) ** 2)  # attention alone, without the token-wise part


def _judge_leak(answer: Callable[[Tensor, int], Tensor]) -> str | None:
    for n, lengths in ((3, (2, 3, 1)), (1, (1, 1)), (4, (2, 2, 2, 2))):
        segments = torch.tensor([-1] * n + [c for c, m in enumerate(lengths) for _ in range(m)])
        for attention in ("arrow", "strict", "diagonal", "square"):
            mask = attention_mask(segments, attention)
            for layers in (1, 2, 3):
                given = answer(mask.clone(), layers)
                if not isinstance(given, Tensor) or given.shape != mask.shape or given.dtype != torch.bool:
                    return f"a bool tensor of shape {tuple(mask.shape)} is wanted: entry (a, b) says whether a's state can depend on b's token."
                if not torch.equal(given, reach(mask, layers)):
                    return (
                        f"with the {attention} mask and {layers} layers your answer has {int(given.sum())} pairs, there are "
                        f"{int(reach(mask, layers).sum())}. What a token knows after a layer is what those that it looks at knew before."
                    )
    return None


def _solve_leak() -> Any:
    def reached(mask: Tensor, layers: int) -> Tensor:
        step = (mask | torch.eye(len(mask), dtype=torch.bool)).float()  # the residual keeps what a token has
        known = torch.eye(len(mask))
        for _ in range(layers):
            known = (step @ known > 0).float()
        return known > 0

    return reached


def _wrong_leak(mask: Tensor, layers: int) -> Tensor:
    return mask  # the mask is the same in every layer, so what it forbids seems forbidden for good


def _judge_reader(answer: Callable[[Tensor, Tensor], Tensor]) -> str | None:
    for facts, parts in ((2, 1), (6, 1), (6, 2)):
        context, candidates, label = draw(50, facts, 8, parts=parts, generator=stream(facts + parts, "uni_encoder", "exercise"))
        given = answer(context.clone(), candidates.clone())
        if not isinstance(given, Tensor) or given.shape != (50, 8):
            return "scores of all candidates are wanted, shape (contexts, 8)."
        right = (given.float().argmax(1) == label).float().mean()
        if right < 1:
            said = f"with {facts} facts and {parts} in a candidate {float(right):.0%} are right"
            return f"{said}, and all can be: does every word of the candidate stand in the context?"
        shuffled = torch.randperm(8, generator=stream(0, "uni_encoder", "exercise", "order"))
        if not torch.equal(answer(context.clone(), candidates[:, shuffled].clone()), given[:, shuffled]):
            return "your scores depend on the order of the pool."
    return None


def _solve_reader() -> Any:
    def scores(context: Tensor, candidates: Tensor) -> Tensor:
        words = candidates[:, :, 1:-1]  # without [bos] and [eos]
        return (words[..., None] == context[:, None, None]).any(-1).float().mean(-1)

    return scores


def _wrong_reader(context: Tensor, candidates: Tensor) -> Tensor:
    words, facts = candidates[:, :, 1:-1] - FIRST, (context - FIRST)[:, None, None]
    known_key = (words[..., None] // VALUES == facts // VALUES).any(-1)
    known_value = (words[..., None] % VALUES == facts % VALUES).any(-1)
    return (known_key & known_value).float().mean(-1)  # a bag of keys and values: it cannot tell which belong together


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            "**1. When does one sequence stop paying?** A layer costs $4d^2 + 2dh$ multiply-adds a token and $2d$ a pair of tokens, and a dense "
            "kernel computes all $T^2$ pairs, masked or not. Write a function of `(n, m, d, h)`, context length, candidate length, width and "
            "hidden units, that returns the smallest number of candidates $C$ at which one sequence of $n + Cm$ tokens costs more than $C$ "
            "sequences of $n + m$. Set `answer` to it."
        ),
        judge=_judge_cost,
        solve=_solve_cost,
        wrong=_wrong_cost,
        reason=(
            "token-wise work is always less in one sequence, since the context is there once; attention grows as (Cm)² there and as C outside. For "
            "n = 128, m = 12, d = 128, h = 512 the two meet at 797 candidates: far beyond the pools of 10 to 20 that the paper is about."
        ),
    ),
    Exercise(
        question=(
            "**2. The leak.** Write a function of `(mask, layers)`, a mask (T, T) bool whose entry (a, b) says that a may look at b, that returns "
            "bool (T, T): can a's state after that many layers depend on b's token? Every layer has a residual connection. Set `answer` to it, and "
            "try it on the arrow with one layer and with two."
        ),
        judge=_judge_leak,
        solve=_solve_leak,
        wrong=_wrong_leak,
        reason=(
            "it is a Boolean power of the mask. With the arrow, two layers join every candidate to every other through the context; the strict and "
            "the diagonal mask are their own powers, so nothing leaks however deep the model is."
        ),
    ),
    Exercise(
        question=(
            "**3. What must a reader see?** Write a function of `(context, candidates)`, tokens (B, M) and (B, C, 3 or 4) of "
            "`mtlearn.pairs.uni_encoder.world.draw`, that gives every candidate a score, highest for the true one, without any training. "
            "Set `answer` to it. Then ask: could it be written if the context came as the *sum* of its words' vectors, key plus value?"
        ),
        judge=_judge_reader,
        solve=_solve_reader,
        wrong=_wrong_reader,
        reason=(
            "a candidate is true when its words stand in the context as they are. That compares words with words, which a cross- or Uni-Encoder "
            "does in its first layer. In the sum of the key and value vectors it is lost which value belonged to which key, so a bi-encoder must "
            "find another code for M facts in one vector, and needs the more room the larger M is."
        ),
    ),
)
