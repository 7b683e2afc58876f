"""Does a hint reach longer lists? Sorting with side tasks, at equal steps and at equal sequences, and what length scales add."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtlearn.datasets.sequences import (
    Examples,
    Vocabulary,
    carry_examples,
    extrapolation_lengths,
    hint_examples,
    increment_examples,
    sample_lists,
    sample_numbers,
    sort_examples,
)
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.pointing.task_hinting.method import (
    LearnedLength,
    LogLength,
    Weighted,
    answer_accuracy,
    hand_set_sorter,
    multitask_loss,
)
from mtlearn.pointing.transformer import CausalTransformer

Draw = Callable[[], Examples]


@dataclass(frozen=True)
class Recipe:
    """A world of lists, a model and how it is trained.

    Attributes:
        values: lists hold numbers from 0..values-1.
        distinct: whether a number may come only once.
        shortest, longest: lengths of the training lists; each batch has one, drawn uniformly.
        steps, batch: updates, and rows of each task in a step.
        width, depth, heads: of the transformer.
        learning_rate, weight_decay, warmup, clip: of AdamW under a cosine schedule.
    """

    values: int = 10
    distinct: bool = False
    shortest: int = 2
    longest: int = 8
    steps: int = 700
    batch: int = 64
    width: int = 64
    depth: int = 2
    heads: int = 2
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warmup: int = 50
    clip: float = 1.0

    @property
    def vocabulary(self) -> Vocabulary:
        """Its tokens."""
        return Vocabulary(self.values)

    @property
    def longest_row(self) -> int:
        """Keys of the longest row of attention in training: task token, list, separator, the sorted list."""
        return 2 * self.longest + 2


@dataclass(frozen=True)
class Arm:
    """What an arm trains on in each step, and its length scale.

    Attributes:
        main: ``sort`` or ``increment``.
        beside: the task of a second batch of the same size: a hint, ``main`` again, or none.
        share: the second batch's share of the loss.
        scale: ``none``, ``log`` (tau = log i / log n_0, n_0 the longest training row) or ``learned``.
    """

    main: str = "sort"
    beside: str | None = None
    share: float = 0.5
    scale: str = "none"


SORTING: dict[str, Arm] = {
    "main only": Arm(),
    "+ successor": Arm(beside="successor"),
    "+ count": Arm(beside="count"),
    "twice the main": Arm(beside="main"),
    "twice the main, log n": Arm(beside="main", scale="log"),
    "twice the main, learned tau": Arm(beside="main", scale="learned"),
    "+ successor, share 1/4": Arm(beside="successor", share=0.25),
    "+ successor, share 3/4": Arm(beside="successor", share=0.75),
}
INCREMENT: dict[str, Arm] = {
    "increment only": Arm("increment"),
    "increment + carry": Arm("increment", beside="carry"),
}


def draw_from(recipe: Recipe, task: str, draws: torch.Generator) -> Draw:
    """A source of batches of a task, each of one length; its draws come from ``draws`` alone."""
    vocabulary = recipe.vocabulary

    def draw() -> Examples:
        n = int(torch.randint(recipe.shortest, recipe.longest + 1, (), generator=draws))
        if task in ("increment", "carry"):
            numbers = sample_numbers(recipe.batch, n, generator=draws)
            return (increment_examples if task == "increment" else carry_examples)(numbers, vocabulary)
        lists = sample_lists(recipe.batch, n, recipe.values, distinct=recipe.distinct, generator=draws)
        return sort_examples(lists, vocabulary) if task == "sort" else hint_examples(task, lists, vocabulary, generator=draws)

    return draw


def build(recipe: Recipe, seed: int, scale: str = "none") -> CausalTransformer:
    """The untrained model of a seed; length scales draw nothing, so every scale starts from the same weights."""
    scales: dict[str, Callable[[], nn.Module] | None] = {
        "none": None,
        "log": lambda: LogLength(recipe.longest_row),
        "learned": lambda: LearnedLength(recipe.longest_row),
    }
    with seeded(seed):
        return CausalTransformer(recipe.vocabulary.size, recipe.width, recipe.depth, recipe.heads, scale=scales[scale])


def train(recipe: Recipe, arm: Arm, seed: int, device: torch.device | str = "cpu", *, progress: str | None = None) -> CausalTransformer:
    """Train one arm. Main batches are the same in every arm of a seed: what comes beside them draws from a stream of its own."""
    model = build(recipe, seed, arm.scale).to(device)
    main = draw_from(recipe, arm.main, stream(seed, "main"))
    other = draw_from(recipe, arm.main if arm.beside == "main" else arm.beside, stream(seed, "beside")) if arm.beside else None

    def loss_at(step: int) -> Tensor:
        first = main().to(device)
        if other is None:
            return multitask_loss(model, [Weighted(first.tokens, first.mask, 1.0)])
        second = other().to(device)
        return multitask_loss(model, [Weighted(first.tokens, first.mask, 1 - arm.share), Weighted(second.tokens, second.mask, arm.share)])

    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    warmup = min(recipe.warmup, recipe.steps)
    fit(model, loss_at, steps=recipe.steps, optimizer=optimizer, schedule="cosine", warmup=warmup, clip=recipe.clip, progress=progress)
    return model.eval()


def accuracies(
    model: nn.Module, recipe: Recipe, lengths: Sequence[int], rows: int, *, task: str = "sort", seed: int = 0, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """``exact at n`` (share of lists sorted without a mistake) and ``tokens at n`` (share of right tokens) on ``rows`` fresh lists of each length."""
    metrics = {}
    for n in lengths:
        draws = stream(seed, "test", n)
        if task == "increment":
            examples = increment_examples(sample_numbers(rows, n, generator=draws), recipe.vocabulary)
        else:
            examples = sort_examples(sample_lists(rows, n, recipe.values, distinct=recipe.distinct, generator=draws), recipe.vocabulary)
        examples = examples.to(device)
        exact, tokens = answer_accuracy(model, examples.tokens, examples.mask)
        metrics[f"exact at {n}"] = float(exact.double().mean())
        metrics[f"tokens at {n}"] = float(tokens.nanmean())
    return metrics
