"""Exercises on experts for domains."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.retrieval.moe_embedding.method import co_cited, f1_max


def _judge_cited(answer: Callable[[list[list[int]]], Any]) -> str | None:
    cases = [[[1, 2, 3], [0, 2], [], [1, 0]], [[3, 1], [], [1, 3], []], [[], [], [0, 1], [0, 1]]]
    for references in cases:
        found = answer([list(row) for row in references])
        right = {(int(i), int(j)) for i, j in co_cited(references)}
        if not isinstance(found, set):
            return "a set of pairs (i, j) is wanted."
        if found != right:
            cites = {(min(i, j), max(i, j)) for i, row in enumerate(references) for j in row}
            if found == cites:
                return "these are the citations. Co-cited are two texts that stand together in the list of a third one."
            return f"for the references {references} the pairs are {sorted(right)}, each once with the smaller number first; got {sorted(found)}."
    return None


def _solve_cited() -> Any:
    def pairs(references: list[list[int]]) -> set[tuple[int, int]]:
        # who cites does not matter, and neither does how often: a pair is similar or it is not
        return {(i, j) for cited in references for i in cited for j in cited if i < j}

    return pairs


def _wrong_cited(references: list[list[int]]) -> set[tuple[int, int]]:
    return {(min(i, j), max(i, j)) for i, row in enumerate(references) for j in row}


def _judge_chance(answer: Any) -> str | None:
    if isinstance(answer, bool) or not isinstance(answer, (int, float)):
        return "a number is wanted, between 0 and 1."
    positive = torch.arange(1000) < 250
    right = f1_max(torch.zeros(1000), positive)
    if abs(float(answer) - right) > 1e-3:
        return "call everything similar: recall is 1, precision is the share of similar pairs."
    return None


def _solve_chance() -> Any:
    # precision 1/4, recall 1: 2 * 1/4 / (1 + 1/4); with balanced pairs it would be 2/3
    return 2 * 0.25 / 1.25


def _judge_easy(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str | None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 6, generator=generator)
    domain = torch.tensor([0, 1, 0, 1, 0, 1])
    target = torch.arange(6)
    found = answer(scores.clone(), domain.clone(), target.clone())
    if not isinstance(found, Tensor) or found.dim() != 0:
        return "a scalar tensor is wanted."
    hidden = scores.masked_fill(domain[:, None] != domain, -torch.inf)
    right = torch.nn.functional.cross_entropy(hidden, target)
    if not torch.allclose(found, right, atol=1e-5):
        if torch.allclose(found, torch.nn.functional.cross_entropy(scores, target), atol=1e-5):
            return "texts of another domain are easy negatives; take them out of the denominator."
        return "set the scores between different domains to minus infinity, then take the cross-entropy of each row."
    return None


def _solve_easy() -> Any:
    def loss(scores: Tensor, domain: Tensor, target: Tensor) -> Tensor:
        # a mixed batch is solved by telling fields apart, which was no problem to begin with
        return torch.nn.functional.cross_entropy(scores.masked_fill(domain[:, None] != domain, -torch.inf), target)

    return loss


def _wrong_easy(scores: Tensor, domain: Tensor, target: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(scores, target)


EXERCISES = (
    Exercise(
        question=(
            "**1. Co-cited.** Write `pairs(references)` that takes a list of the numbers each text cites and gives the set of co-cited pairs (i, j), "
            "i < j. Set `answer` to your function."
        ),
        judge=_judge_cited,
        solve=_solve_cited,
        wrong=_wrong_cited,
        reason="a third text's list makes the pair; that the pair's texts cite each other is neither needed nor enough.",
    ),
    Exercise(
        question=(
            "**2. What is nothing worth?** A quarter of the pairs is similar. Which F1max has a model whose scores are all equal? Set `answer` to it."
        ),
        judge=_judge_chance,
        solve=_solve_chance,
        wrong=0.25,
        reason="0.4; on balanced pairs chance is 2/3, so 0.67 in a table of F1max means that nothing was learned.",
    ),
    Exercise(
        question=(
            "**3. Easy negatives.** A batch mixes domains. Write `loss(scores, domain, target)` that keeps texts of other domains from being "
            "negatives: `scores` (B, B), `domain` (B,), `target` (B,). Set `answer` to your function."
        ),
        judge=_judge_easy,
        solve=_solve_easy,
        wrong=_wrong_easy,
        reason="with other domains as negatives the loss falls fast because fields are told apart, which helps no one within a field.",
    ),
)
