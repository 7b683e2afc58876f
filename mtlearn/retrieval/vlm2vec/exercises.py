"""Exercises on negatives, repeated answers and the order of image and text."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.lab.checkpoints import load
from mtlearn.lab.seeds import stream
from mtlearn.retrieval.vlm2vec.experiment import ENCODERS
from mtlearn.retrieval.vlm2vec.method import IMAGE, Inputs, VisionLanguageModel
from mtlearn.retrieval.vlm2vec.worlds import mixed, split


@cache
@torch.no_grad()
def trained_scores() -> tuple[Tensor, Tensor]:
    """Scores (96, 96) of the shipped encoder, cosines divided by 0.05, on a batch of three tasks, and the task of each row (96,)."""
    encoder = load(ENCODERS).get_submodule("VLM2Vec")
    batch = mixed(("left", "cir", "ground"), 32, split(0)[1], generator=stream(0, "vlm2vec", "exercise"))
    return encoder(batch.queries) @ encoder(batch.targets).T / 0.05, torch.arange(3).repeat_interleave(32)


def _foreign(scores: Tensor, task: Tensor) -> float:
    share = scores.softmax(1)
    wrong = share * (1 - torch.eye(len(scores)))
    return ((wrong * (task[:, None] != task)).sum() / wrong.sum()).item()


def _judge_foreign(answer: Callable[[Tensor, Tensor], Any]) -> str | None:
    draws = torch.Generator().manual_seed(0)
    cases = [(torch.randn(9, 9, generator=draws), torch.arange(9) // 3), (torch.zeros(6, 6), torch.arange(6) // 2), trained_scores()]
    for scores, task in cases:
        found = float(answer(scores.clone(), task.clone()))
        if abs(found - _foreign(scores, task)) > 1e-4:
            return f"on a batch of {len(scores)} rows you say {found:.4f}: sum the softmax over wrong columns; which part of it lies in other tasks?"
    return None


def _solve_foreign() -> Any:
    def foreign(scores: Tensor, task: Tensor) -> float:
        # the gradient at a wrong score is its share of the softmax: what has none pushes nothing
        wrong = scores.softmax(1) * (1 - torch.eye(len(scores)))
        return float((wrong * (task[:, None] != task)).sum() / wrong.sum())

    return foreign


def _wrong_foreign(scores: Tensor, task: Tensor) -> float:
    return float((task[:, None] != task).double().mean())


def _judge_bound(answer: Callable[[Tensor], Any]) -> str | None:
    for keys in ([0, 1, 2, 3], [5, 5, 5, 5], [1, 2, 1, 3, 1, 2]):
        found = float(answer(torch.tensor(keys)))
        count = torch.tensor([keys.count(key) for key in keys], dtype=torch.float64)
        if abs(found - count.log().mean().item()) > 1e-5:
            return f"for the answers {keys} you say {found:.4f}; at best all columns of the right answer are equal and all others have no share."
    return None


def _solve_bound() -> Any:
    def bound(keys: Tensor) -> Tensor:
        # m columns hold the right answer, each gets at most 1 / m of the softmax: -log(1 / m); masked, the bound is 0
        return (keys[:, None] == keys).sum(1).double().log().mean()

    return bound


def _wrong_bound(keys: Tensor) -> float:
    return 0.0


def _judge_move(answer: Callable[[Inputs], Any]) -> str | None:
    tokens = torch.tensor([[IMAGE, 5, 6, 7], [IMAGE, 8, 9, 0]])
    draws = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = VisionLanguageModel(12, (1, 8, 16), 4, width=16)
    found = [answer(Inputs(tokens.clone(), torch.rand(2, 1, 8, 16, generator=draws))) for _ in range(2)]
    if not isinstance(found[0], Inputs):
        return "an Inputs is wanted, with the same words and images in another order."
    order = [[number for number in row if number] for row in found[0].tokens.tolist()]
    if [sorted(row) for row in order] != [[1, 5, 6, 7], [1, 8, 9]]:
        return "the words of a row must stay, each once, and its image token too."
    if order != [[5, 6, 7, IMAGE], [8, 9, IMAGE]]:
        return "the image token must come behind the last word, and the words keep their order."
    with torch.no_grad():
        (first, *_), (second, *_) = (model.read(inputs) for inputs in found)
    if not torch.equal(first[1, :2], second[1, :2]):
        return "the words still see the image: is it behind them?"
    return None


def _solve_move() -> Any:
    def move(inputs: Inputs) -> Inputs:
        # the words first, then the image token; padding may stand anywhere
        words = inputs.tokens.masked_fill(inputs.tokens == IMAGE, 0)
        slot = torch.full((len(words), 1), IMAGE)
        return Inputs(torch.cat([words, slot], 1), inputs.images)

    return move


def _wrong_move(inputs: Inputs) -> Inputs:
    return inputs


EXERCISES = (
    Exercise(
        question=(
            "**1. Easy negatives.** A batch of 96 rows mixes three tasks. The gradient at a wrong column's score is its share of the softmax. Write "
            "`foreign(scores, task)`: of all the softmax's mass on wrong columns, over the whole batch, the part that lies on columns of *another* "
            "task. `scores` is (n, n), the right column of row i is i; `task` is (n,). Set `answer` to your function, and call it on "
            "`trained_scores()`: two thirds of the columns are of another task."
        ),
        judge=_judge_foreign,
        solve=_solve_foreign,
        wrong=_wrong_foreign,
        reason="columns of other tasks are most of the batch and hardly push a trained encoder: sub-batches of one task make hard negatives.",
    ),
    Exercise(
        question=(
            "**2. The same answer twice.** Ten class names in a batch of 32: many rows share their answer, and without a mask each is the other's "
            "negative. Write `bound(keys)` that gives the smallest value which the unmasked loss can reach for the answers `keys` (n,), whatever the "
            "encoder. Set `answer` to your function."
        ),
        judge=_judge_bound,
        solve=_solve_bound,
        wrong=_wrong_bound,
        reason="the mean of log m, where m is how often a row's answer stands in the batch; masking brings the bound back to 0.",
    ),
    Exercise(
        question=(
            "**3. The image behind the text.** Write `move(inputs)` that puts each row's image token behind its words. Set `answer` to your "
            "function. Which tasks would suffer in a causal model, and why?"
        ),
        judge=_judge_move,
        solve=_solve_move,
        wrong=_wrong_move,
        reason=(
            "the words no longer see the image, so the question cannot pick what it needs from the patches; only the last patch sees both, and tasks "
            "that join them (left, right, crop) hang on it alone. Tasks whose instruction changes nothing lose least."
        ),
    ),
)
