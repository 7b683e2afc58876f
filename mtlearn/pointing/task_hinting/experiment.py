"""Does a hint reach longer lists? Sorting with side tasks, at equal steps and at equal sequences, and what length scales add."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

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
from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.pointing.task_hinting.method import (
    LearnedLength,
    LogLength,
    Weighted,
    answer_accuracy,
    hand_set_sorter,
    linear_probe,
    multitask_loss,
    probe_accuracy,
)
from mtlearn.pointing.transformer import Attention, CausalTransformer

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


REPEATED: dict[str, Arm] = {
    "main only": Arm(),
    "+ successor": Arm(beside="successor"),
    "+ count": Arm(beside="count"),
    "twice the main": Arm(beside="main"),
    "main only, log n": Arm(scale="log"),
}
DISTINCT: dict[str, Arm] = {
    "distinct, main only": Arm(),
    "distinct, + successor": Arm(beside="successor"),
    "distinct, hint share 0.25": Arm(beside="successor", share=0.25),
    "distinct, hint share 0.75": Arm(beside="successor", share=0.75),
    "distinct, twice the main": Arm(beside="main"),
    "distinct, log n": Arm(scale="log"),
    "distinct, learned tau": Arm(scale="learned"),
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
    """Train one arm. Main batches are the same in every arm of a seed and a world: what comes beside them draws from a stream of its own."""
    model = build(recipe, seed, arm.scale).to(device)
    world = "distinct" if recipe.distinct else "repeated"
    main = draw_from(recipe, arm.main, stream(seed, world, "main"))
    other = draw_from(recipe, arm.main if arm.beside == "main" else arm.beside, stream(seed, world, "beside")) if arm.beside else None

    def loss_at(step: int) -> Tensor:
        first = main().to(device)
        if other is None:
            return multitask_loss(model, [Weighted(first.tokens, first.mask, 1.0)])
        second = other().to(device)
        return multitask_loss(model, [Weighted(first.tokens, first.mask, 1 - arm.share), Weighted(second.tokens, second.mask, arm.share)])

    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    warmup = min(recipe.warmup, recipe.steps)
    fit(model, loss_at, steps=recipe.steps, optimizer=optimizer, schedule="cosine", warmup=warmup, clip=recipe.clip, progress=progress)
    return model.eval()


def stretched(longest: int, stretch: float) -> int:
    """The length that is ``stretch`` times the longest trained one."""
    return round(stretch * longest)


def accuracies(
    model: Callable[[Tensor], Tensor],
    recipe: Recipe,
    stretches: Sequence[float],
    rows: int,
    *,
    task: str = "sort",
    seed: int = 0,
    device: torch.device | str = "cpu",
    metric: str = "",
) -> dict[str, float]:
    """Accuracy on ``rows`` fresh inputs of each length, named by the length over the longest trained one.

    Returns:
        ``exact at 2x``, the share of inputs answered without a mistake, and ``tokens at 2x``, the share of right tokens, for every stretch;
        ``metric`` is put before the names.
    """
    found = {}
    for stretch in stretches:
        n = stretched(recipe.longest, stretch)
        draws = stream(seed, "test", n)
        if task == "increment":
            examples = increment_examples(sample_numbers(rows, n, generator=draws), recipe.vocabulary)
        else:
            examples = sort_examples(sample_lists(rows, n, recipe.values, distinct=recipe.distinct, generator=draws), recipe.vocabulary)
        examples = examples.to(device)
        exact, tokens = answer_accuracy(model, examples.tokens, examples.mask)
        found[f"{metric}exact at {stretch:g}x"] = float(exact.double().mean())
        found[f"{metric}tokens at {stretch:g}x"] = float(tokens.nanmean())
    return found


def sharpened_at_test(model: CausalTransformer, recipe: Recipe) -> CausalTransformer:
    """A copy of a model trained without a length scale, with tau = log i / log n_0 on the rows that are longer than any it was trained on."""
    copy = deepcopy(model)
    for attention in copy.modules():
        if isinstance(attention, Attention):
            attention.scale = LogLength(recipe.longest_row, smallest=1.0)
    return copy


def probe_streams(model: CausalTransformer, recipe: Recipe, n: int, lists: int = 400, seed: int = 0) -> list[dict[str, float]]:
    """What can be read linearly off the stream at the written numbers: after the embedding and after each layer.

    Probes are fitted on ``lists`` lists of length ``n`` and tested on as many fresh ones, in the rows of all written numbers but the last.

    Returns:
        For each depth the share of rows whose ``identity`` (the written number) and whose ``successor`` (the next one) a probe gets right.
    """
    if n < 2:
        raise ValueError(f"a list needs at least 2 numbers for one to have a successor, got n={n}")
    draws = stream(seed, "probe", n)
    drawn = sample_lists(2 * lists, n, recipe.values, distinct=recipe.distinct, generator=draws)
    tokens = sort_examples(drawn, recipe.vocabulary).tokens
    written = slice(n + 2, 2 * n + 1)  # y_1 .. y_{n-1}
    labels = {"identity": tokens[:, written], "successor": tokens[:, n + 3 : 2 * n + 2]}
    found = []
    for residual in model.trace(tokens).streams:
        features = residual[:, written]
        fitted, fresh = features[:lists].flatten(0, 1), features[lists:].flatten(0, 1)
        scores = {}
        for name, label in labels.items():
            probe = linear_probe(fitted, label[:lists].flatten())
            scores[name] = probe_accuracy(probe, fresh, label[lists:].flatten())
        found.append(scores)
    return found


def hand_set(values: int) -> CausalTransformer:
    """The hand-set sorter of integers 0..values-1 over the tokens of this world."""
    vocabulary = Vocabulary(values)
    return hand_set_sorter(values, tokens=vocabulary.size, start=vocabulary.task("sort"), sep=vocabulary.sep, end=vocabulary.end)


@dataclass(frozen=True)
class HintingSettings(Settings):
    """Settings of a scale.

    Attributes:
        repeated: sorting lists that repeat values.
        distinct: sorting lists of distinct values.
        increment: incrementing decimal numbers; lengths are digits.
        stretches: test lengths over the longest trained one; the first is 1, the others beyond it.
        distinct_stretches: the same for distinct values, where models reach farther.
        rows: test inputs of each length.
        hand_set_length: the longest list, and the number of values, on which the hand-set sorter is tried.
    """

    repeated: Recipe = Recipe()
    distinct: Recipe = Recipe(values=50, distinct=True)
    increment: Recipe = Recipe(shortest=1, longest=4)
    stretches: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0, 2.5)
    distinct_stretches: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0)
    rows: int = 200
    hand_set_length: int = 100


def run(settings: HintingSettings, seed: int, device: torch.device) -> Arms:
    """One seed: in each of three worlds, every arm trained from the same weights on the same main batches, tested on the same fresh inputs."""
    stretches, rows = settings.stretches, settings.rows
    for recipe, tested in ((settings.repeated, stretches), (settings.distinct, settings.distinct_stretches), (settings.increment, stretches)):
        extrapolation_lengths([recipe.longest], [stretched(recipe.longest, stretch) for stretch in tested[1:]])
    arms: Arms = {}
    for name, arm in REPEATED.items():
        model = train(settings.repeated, arm, seed, device)
        arms[name] = accuracies(model, settings.repeated, stretches, rows, seed=seed, device=device)
        arms[name]["exact lost"] = arms[name][f"exact at {stretches[0]:g}x"] - arms[name][f"exact at {stretches[-1]:g}x"]

    def measure(model: CausalTransformer) -> dict[str, float]:
        return accuracies(model, settings.distinct, settings.distinct_stretches, rows, seed=seed, device=device, metric="distinct ")

    for name, arm in DISTINCT.items():
        model = train(settings.distinct, arm, seed, device)
        arms[name] = measure(model)
        if arm == Arm():
            arms["distinct, sharpened at test"] = measure(sharpened_at_test(model, settings.distinct))
    for name, arm in INCREMENT.items():
        model = train(settings.increment, arm, seed, device)
        arms[name] = accuracies(model, settings.increment, stretches, rows, task="increment", seed=seed, device=device, metric="increment ")
    longest = settings.hand_set_length
    world = Recipe(values=longest, distinct=True, longest=longest)
    arms["hand-set"] = accuracies(hand_set(longest).to(device), world, HAND_SET_SHARES, rows, seed=seed, device=device, metric="hand-set ")
    return arms


HAND_SET_SHARES = (0.1, 0.5, 1.0)  # of the hand-set sorter's longest list
QUICK = Recipe(values=5, longest=4, steps=10, batch=16, width=32, learning_rate=1e-2, warmup=5)
PAPER = Recipe(values=100, longest=20, steps=160_000, batch=64, width=256, depth=4, heads=4, learning_rate=5e-4, warmup=1000)

EXPERIMENT = Experiment(
    paper="task_hinting",
    question="Does training a simpler, related task beside sorting make a transformer sort longer lists than it was trained on?",
    scales={
        "quick": HintingSettings(
            seeds=2,
            repeated=QUICK,
            distinct=replace(QUICK, values=16, distinct=True, steps=50),
            increment=replace(QUICK, values=10, shortest=1),
            rows=20,
            hand_set_length=40,
        ),
        "laptop": HintingSettings(seeds=5),
        "paper": HintingSettings(
            seeds=5,
            repeated=PAPER,
            distinct=replace(PAPER, distinct=True),
            increment=replace(PAPER, shortest=1),
            stretches=(1.0, 1.25, 1.5, 2.0, 2.5, 5.0),
            distinct_stretches=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0),
            rows=1000,
        ),
    },
    claims=(
        Claim(
            "+ successor",
            "main only",
            "exact at 1.25x",
            says="With the same main examples and steps, adding successor hints sorts more of the longer lists.",
        ),
        Claim("+ successor", "+ count", "exact at 1.25x", 0.05, says="Hints differ: successor beats count by at least 5 points on longer lists."),
        Claim("+ successor", "twice the main", "exact at 1.25x", says="At equal sequences, successor hints beat further main examples."),
        Claim(
            "twice the main",
            None,
            "exact lost",
            0.5,
            says="Plain training loses at least half of its exact accuracy at 2.5 times the trained length.",
        ),
        Claim("main only, log n", "main only", "exact at 1.25x", says="Attention logits that grow like log n sort more of the longer lists."),
        Claim(
            "distinct, + successor",
            "distinct, main only",
            "distinct exact at 4x",
            says="Where all values differ, successor hints added on top sort more lists of 4 times the trained length.",
        ),
        Claim(
            "distinct, + successor",
            "distinct, twice the main",
            "distinct exact at 4x",
            says="Where all values differ, successor hints beat further main examples at equal sequences.",
        ),
        Claim(
            "distinct, log n",
            "distinct, main only",
            "distinct exact at 4x",
            says="Training with log n scaling reaches longer lists of distinct values.",
        ),
        Claim(
            "distinct, learned tau",
            "distinct, main only",
            "distinct exact at 4x",
            says="Temperatures learned per length reach longer lists of distinct values.",
        ),
        Claim(
            "distinct, sharpened at test",
            "distinct, main only",
            "distinct exact at 4x",
            says="Sharpening only the rows beyond the trained length, after training, reaches longer lists of distinct values.",
        ),
        Claim("hand-set", None, "hand-set exact at 1x", 0.999, says="The hand-set network of depth 2 sorts every list of distinct integers."),
        Claim(
            "increment + carry",
            "increment only",
            "increment exact at 1.5x",
            says="Carry hints help to increment longer numbers, with the same main examples.",
        ),
    ),
    run=run,
    units={
        **{
            f"{task}{kind} at {stretch:g}x": f"share of {what} at {stretch:g} times the trained length"
            for task, tested in (("", (1, 1.25, 1.5, 2, 2.5, 5)), ("increment ", (1, 1.25, 1.5, 2, 2.5, 5)), ("distinct ", (1, 1.5, 2, 3, 4, 5)))
            for kind, what in (("exact", "answers without a mistake"), ("tokens", "right tokens"))
            for stretch in tested
        },
        **{
            f"hand-set {kind} at {share:g}x": f"share of {what} at {share:g} times the longest list"
            for kind, what in (("exact", "answers without a mistake"), ("tokens", "right tokens"))
            for share in HAND_SET_SHARES
        },
        "exact lost": "share of answers without a mistake, at the trained length minus at the longest tested",
    },
)


@dataclass(frozen=True)
class Sorters:
    """Settings of the shipped models: one seed of four arms, trained as the experiment trains them."""

    seed: int = 0
    repeated: Recipe = Recipe()
    distinct: Recipe = Recipe(values=50, distinct=True)


SHARPNESS = tuple(k / 4 for k in range(2, 13))  # 0.5 to 3
SHIPPED = ("main only", "twice the main", "distinct, main only", "distinct, + successor")


def recipe_of(sorters: Sorters, arm: str) -> Recipe:
    """The world in which a shipped arm was trained."""
    return sorters.distinct if arm in DISTINCT else sorters.repeated


def build_sorters(sorters: Sorters) -> nn.ModuleDict:
    """The four models, untrained, by the names of their arms."""
    return nn.ModuleDict({arm: build(recipe_of(sorters, arm), sorters.seed) for arm in SHIPPED})


def train_sorters(sorters: Sorters, progress: str | None = None) -> nn.ModuleDict:
    """The four models, trained."""
    arms = {**REPEATED, **DISTINCT}
    return nn.ModuleDict(
        {arm: train(recipe_of(sorters, arm), arms[arm], sorters.seed, progress=progress and f"{progress}: {arm}") for arm in SHIPPED}
    )


def measure_sorters(models: nn.Module) -> dict[str, float]:
    """Accuracy of each model at every tested length, with all its attention logits multiplied by each of ``SHARPNESS``.

    The names are ``<arm>, tau 1.5: exact at 2x``.
    """
    assert isinstance(models, nn.ModuleDict)
    found = {}
    for arm, model in models.items():
        recipe = recipe_of(Sorters(), arm)
        stretches = HintingSettings(1).distinct_stretches if recipe.distinct else HintingSettings(1).stretches
        for tau in SHARPNESS:
            measured = accuracies(partial(_sharpened_logits, model, tau), recipe, stretches, 100)
            found.update({f"{arm}, tau {tau:g}: {metric}": round(value, 4) for metric, value in measured.items()})
    return found


def _sharpened_logits(model: nn.Module, tau: float, tokens: Tensor) -> Tensor:
    assert isinstance(model, CausalTransformer)
    return model.trace(tokens, sharpness=tau).logits


CHECKPOINTS = (Checkpoint("task_hinting-sorters", Sorters(), build_sorters, train_sorters, measure_sorters),)
