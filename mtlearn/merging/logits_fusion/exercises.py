"""Exercises on dynamic logits fusion."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mtlearn.datasets.texts import encode
from mtlearn.explore.exercises import Exercise
from mtlearn.lab.checkpoints import load as load_shipped
from mtlearn.lab.seeds import stream
from mtlearn.merging.logits_fusion.baselines import recent
from mtlearn.merging.logits_fusion.experiment import (
    DOMAINS,
    EXPERTS_CHECKPOINT,
    LARGE_CHECKPOINT,
    SMALL_CHECKPOINT,
    domain_text,
    draw_stretches,
    gap_closed,
    logits_along,
)
from mtlearn.merging.logits_fusion.method import EVIDENCE, GRID, change, dynamic, moves, objective, targets

LAST = 60


def _judge_strength(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str | None:
    draws = stream(0, "exercise")
    log_p, log_q = (scale * torch.randn(40, 12, generator=draws, dtype=torch.float64) for scale in (1.5, 1.5))
    log_p, log_q = log_p.log_softmax(-1), log_q.log_softmax(-1)
    delta = 1e-3 * torch.randn(40, 12, generator=draws, dtype=torch.float64)
    given = answer(log_p.clone(), log_q.clone(), delta.clone())
    if not isinstance(given, Tensor) or given.shape != (40,):
        return "one strength for each row is wanted: a tensor of shape (n,)."
    found = dynamic(log_p, log_q, (log_q + delta)[None], grid=[0.005 * step for step in range(1201)]).alpha[:, 0]
    miss = (given - found).abs()
    if (given - 1 / found).abs().max() < 0.1:
        return "upside down: where the large model's variance is big, a small strength moves it far."
    if miss.max() > 0.02 + 0.01 * float(found.max()):
        worst = int(miss.argmax())
        return (
            f"the search over a fine grid gives {found[worst].item():.3f} for row {worst}, yours is {given[worst].item():.3f}. Both divergences are "
            "about half the variance of the change: under which distribution, and with which factor, on each side?"
        )
    return None


def _solve_strength() -> Any:
    def strength(log_p: Tensor, log_q: Tensor, delta: Tensor) -> Tensor:
        # alpha^2 Var_P / 2 = Var_Q / 2
        def variance(log_p: Tensor) -> Tensor:
            p = log_p.exp()
            return (p * delta**2).sum(-1) - (p * delta).sum(-1) ** 2

        return (variance(log_q) / variance(log_p)).sqrt()

    return strength


def _wrong_strength(log_p: Tensor, log_q: Tensor, delta: Tensor) -> Tensor:
    return torch.ones(len(delta), dtype=delta.dtype)


@cache
def _positions() -> tuple[Tensor, Tensor, Tensor]:
    """At test characters of all domains: lowest objective on each expert's axis (n, T), evidence (n, T), the right expert (n,)."""
    large, small, experts = load_shipped(LARGE_CHECKPOINT), load_shipped(SMALL_CHECKPOINT), load_shipped(EXPERTS_CHECKPOINT)
    assert isinstance(experts, torch.nn.ModuleDict)
    values, evidence, right = [], [], []
    for number, name in enumerate(DOMAINS):
        test = encode(domain_text(name, 200_000).split(validation=0.1, test=0.15)[2].characters)
        pieces = draw_stretches(test, 8, LAST, stream(0, "exercise", name))
        log_p = logits_along(large, pieces, LAST).log_softmax(-1)
        log_q, *of_experts = (logits_along(model, pieces, LAST + EVIDENCE).log_softmax(-1) for model in (small, *experts.values()))
        delta = change(log_q, torch.stack(of_experts))  # (T, B, LAST + EVIDENCE, V)
        gained = delta.gather(-1, pieces[:, -LAST - EVIDENCE :, None].expand(len(DOMAINS), -1, -1, -1))[..., 0]
        total = gained.unfold(-1, EVIDENCE, 1)[..., :-1, :].sum(-1)  # (T, B, LAST): the 64 characters before each
        wanted = targets(log_q[:, -LAST:], torch.stack(of_experts)[:, :, -LAST:])
        axes = [objective(moves(log_p, one[None, :, -LAST:], torch.tensor(GRID)[:, None]), wanted).amin(-1) for one in delta]
        values.append(torch.stack(axes, -1).flatten(0, 1))
        evidence.append(total.movedim(0, -1).flatten(0, 1))
        right.append(torch.full((8 * LAST,), number))
        assert torch.equal(recent(gained)[:, -LAST:].argmax(-1).flatten(), evidence[-1].argmax(-1))
    return torch.cat(values), torch.cat(evidence), torch.cat(right)


def _judge_choice(answer: Callable[[Tensor, Tensor], Tensor]) -> str | None:
    value, evidence, right = _positions()
    given = answer(value.clone(), evidence.clone())
    if not isinstance(given, Tensor) or given.shape != right.shape or given.is_floating_point():
        return f"one expert's number for each of the {len(right)} positions is wanted: an integer tensor of shape (n,)."
    share = (given == right).float().mean().item()
    if share < 0.7:
        published = (value.argmin(-1) == right).float().mean().item()
        return (
            f"right at {100 * share:.0f} % of the positions; the objective alone is right at {100 * published:.0f} %, and 70 % are wanted. "
            "Which of the two arguments says how well an expert predicted the text so far?"
        )
    return None


def _solve_choice() -> Any:
    def choose(value: Tensor, evidence: Tensor) -> Tensor:
        # the objective with a relevance term so heavy that it decides: sizes of divergences say nothing of the text
        return (value - 10 * evidence).argmin(-1)

    return choose


def _wrong_choice(value: Tensor, evidence: Tensor) -> Tensor:
    return value.argmin(-1)


def _judge_gap(answer: Callable[[float, float, float], tuple[float, float]]) -> str | None:
    rows = {"table 1, from 7B": (29.93, 46.09, 47.79), "table 2, four experts": (37.93, 39.42, 45.68), "table 1, from 1.1B": (29.93, 34.86, 47.79)}
    for name, row in rows.items():
        ratio, share = answer(*row)
        right = gap_closed(*row)
        if abs(ratio - right[0]) > 1e-6:
            return f"{name}: the ratio is the fused model's score over the tuned one's, {right[0]:.3f}; yours is {ratio:.3f}."
        if abs(share - right[1]) > 1e-6:
            return f"{name}: from {row[0]} to {row[2]} is the whole way, and {row[1]} is how far it went. Your share is {share:.3f}."
    return None


def _solve_gap() -> Any:
    def gap(base: float, fused: float, tuned: float) -> tuple[float, float]:
        return fused / tuned, (fused - base) / (tuned - base)

    return gap


def _wrong_gap(base: float, fused: float, tuned: float) -> tuple[float, float]:
    return fused / tuned, 1 - (tuned - fused) / tuned


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            "**1. A formula for the strength.** For a small change $\\Delta$, both divergences between a distribution and its tilted self are about "
            "half the variance of $\\Delta$ under it. Derive the strength at which the large model moves as far as the small one did, and write "
            "it as a function of `(log_p, log_q, delta)`, each (n, V), that returns (n,). Set `answer` to it. When does the rule amplify the expert?"
        ),
        judge=_judge_strength,
        solve=_solve_strength,
        wrong=_wrong_strength,
        reason=(
            "the square root of Var_Q over Var_P. Where P is sharper than Q, the change hardly moves P, its variance is small, and the rule "
            "amplifies: it is loudest exactly where the large model is sure. That is not obviously where one wants a small model to speak; find "
            "bright characters in the strip and judge."
        ),
    ),
    Exercise(
        question=(
            "**2. Who should speak?** At each of n test characters you get `value` (n, 3), the lowest objective on each expert's axis, and "
            "`evidence` (n, 3), the sum of $\\log Q_t(x)/Q(x)$ over the last 64 characters. The published rule takes the lowest value. Write a "
            "function of `(value, evidence)` that returns the number of an expert for each character (n,) and is right at 70 % of them. Set `answer` "
            "to it."
        ),
        judge=_judge_choice,
        solve=_solve_choice,
        wrong=_wrong_choice,
        reason=(
            "with the evidence most choices are right, with the objective alone a third of them, as by chance. The objective compares sizes of "
            "divergences: any expert whose change can be scaled to the wanted size is as good as the right one."
        ),
    ),
    Exercise(
        question=(
            "**3. The gap, counted twice.** Write a function of the scores `(base, fused, tuned)` that returns the pair (ratio, share): the fused "
            "score over the tuned one, and the share of the way from base to tuned. Set `answer` to it. Which of the two would you put into an "
            "abstract?"
        ),
        judge=_judge_gap,
        solve=_solve_gap,
        wrong=_wrong_gap,
        reason=(
            "the paper's 96.4 % and 86.3 % are ratios; as shares they are 90 % and 19 %. A ratio counts what the untuned model could do already: "
            "doing nothing at all would close 63 % and 83 % of the gap."
        ),
    ),
)
