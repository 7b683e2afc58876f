"""Does one retriever, trained on a language model's feedback from all tasks, find better demonstrations than a likeness of the whole input?

All arms of a seed choose demonstrations from the same rows for the same questions, and one frozen model answers from what they chose.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.retrieval.udr.method import (
    Candidates,
    Instructions,
    Task,
    UnifiedRetriever,
    class_score,
    draw_lists,
    epr_loss,
    generation_score,
    mine,
    task_probabilities,
    udr_loss,
)
from mtlearn.retrieval.udr.worlds import Copier, Kind, Rows, Source, World, encoder_of, known_words, make_world, surface, tasks_of, train_copier

Loss = Literal["udr", "predicted", "in-batch", "epr"]
ANY = "any"  # the instruction of a retriever that is told nothing
COUNTS = (1, 2, 4, 8)  # demonstrations
UNSEEN = (("third", "parity"), ("second", "modulo three"), ("first", "copy"))
KINDS: tuple[Kind, ...] = ("digits", "sentences")


@dataclass(frozen=True)
class Recipe:
    """Training of a retriever.

    Attributes:
        steps: in all iterations together, by Adam.
        iterations: of mining; the first candidates come from the likeness of the whole.
        rate, batch: of Adam.
        candidates, listed: proposed at each iteration, and drawn of them for a question.
        balance: of the ranking loss.
        alpha: of the choice of a task.
        told: width of an instruction's vector.
    """

    steps: int = 720
    iterations: int = 3
    rate: float = 3e-3
    batch: int = 48
    candidates: int = 50
    listed: int = 8
    balance: float = 0.8
    alpha: float = 0.5
    told: int = 16


@dataclass(frozen=True)
class UDRSettings(Settings):
    """Settings of a run.

    Attributes:
        recipe: of training.
        sizes: training rows of the tasks that ask for the first place, the second ...
        test: test rows of each task.
        copier: steps of the language model; the second one has half of them.
        alone: steps of each retriever of one task.
        shown: demonstrations in the main comparison.
        few: candidates of the arms that start from few.
    """

    recipe: Recipe = field(default_factory=Recipe)
    sizes: tuple[int, int, int, int] = (1500, 1000, 600, 200)
    test: int = 200
    copier: int = 1200
    alone: int = 120
    shown: int = 4
    few: int = 10


def run(settings: UDRSettings, seed: int, device: torch.device) -> Arms:
    """All arms of one seed."""
    arms: Arms = {}
    for kind in KINDS:
        found = study(kind, settings, seed, device)
        for arm, metrics in found.items():
            arms.setdefault(arm, {}).update({metric if kind == "digits" else f"{metric}_sentences": value for metric, value in metrics.items()})
    return arms


def study(kind: Kind, settings: UDRSettings, seed: int, device: torch.device) -> Arms:
    """One kind of input."""
    world, source = make_world(kind, seed, sizes=settings.sizes, test=settings.test)
    world = world.to(device)
    model = train_copier(kind, source, seed, steps=settings.copier).to(device)
    other = train_copier(kind, source, seed + 1000, steps=settings.copier // 2).to(device)
    recipe = settings.recipe

    def measured(choose: "Choose", of: World = world) -> dict[str, float]:
        return accuracy(of, model, choose, settings.shown)

    likeness = [surface(kind, test.inputs, train.inputs) for train, test in zip(world.train, world.test, strict=True)]
    draws = stream(seed, "udr", kind, "random")
    chance = [torch.rand(len(test), len(train), generator=draws).to(device) for train, test in zip(world.train, world.test, strict=True)]
    choosers: dict[str, Choose] = {
        "random": lambda number, k: chance[number].topk(k, 1).indices,
        "surface": lambda number, k: likeness[number].topk(k, 1).indices,
        "model's own choice": own_choice(world, model),
    }
    first = first_candidates(world, recipe.candidates)
    trained: dict[str, UnifiedRetriever] = {}
    variants: dict[str, dict[str, object]] = {
        "UDR": {},
        "no instruction": {"told": False},
        "EPR loss": {"loss": "epr"},
        "in-batch loss alone": {"loss": "in-batch"},
        "one iteration": {"recipe": replace(recipe, iterations=1)},
    }
    if kind == "digits":
        few = replace(recipe, candidates=settings.few)
        variants |= {
            "predicted weights": {"loss": "predicted"},
            "few candidates": {"recipe": few},
            "few candidates, one iteration": {"recipe": replace(few, iterations=1)},
        }
    arms: Arms = {}
    for arm, options in variants.items():
        calls: list[int] = []
        trained[arm] = train_retriever(world, model, **{"recipe": recipe, "seed": seed, "first": first, "calls": calls, **options})  # type: ignore[arg-type]
        told = bool(options.get("told", True))
        choosers[arm] = by_retriever(world, trained[arm], told=told)
        arms[arm] = {"scored": calls[0] / 1000}
    for arm, choose in choosers.items():
        arms.setdefault(arm, {}).update(measured(choose))
    for arm in ("random", "surface", "UDR"):
        for count in COUNTS:
            arms[f"{arm}, {count} shown"] = {"accuracy": accuracy(world, model, choosers[arm], count)["accuracy"]}
        arms[arm]["accuracy_other_model"] = accuracy(world, other, choosers[arm], settings.shown)["accuracy"]
    seen = [i for i, task in enumerate(world.tasks) if task.instruction not in UNSEEN]
    unseen = [i for i in range(len(world.tasks)) if i not in seen]
    partial = train_retriever(world.take(seen), model, recipe=recipe, seed=seed, first=[first[i] for i in seen], numbers=seen)
    left = world.take(unseen)
    for arm, chooser in (
        ("UDR", by_retriever(world, trained["UDR"])),
        ("UDR, tasks unseen", by_retriever(world, partial)),
        ("surface", choosers["surface"]),
    ):
        found = accuracy(left, model, lambda number, k, chooser=chooser: chooser(unseen[number], k), settings.shown, numbers=unseen)  # type: ignore[misc]
        arms.setdefault(arm, {})["accuracy_unseen"] = found["accuracy"]
    if kind == "digits":
        alone = [
            train_retriever(world.take([i]), model, recipe=replace(recipe, steps=settings.alone), seed=seed, first=[first[i]], numbers=[i])
            for i in range(len(world.tasks))
        ]
        arms["a retriever a task"] = measured(lambda number, k: by_retriever(world, alone[number])(number, k))
    return arms


# the language model's feedback and answers


Choose = Callable[[int, int], Tensor]  # number of a task and of demonstrations, to rows (test, k) of its training set


def feedback(model: Copier, rows: Rows, task: Task, number: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Scores of demonstrations, shown one at a time: questions (m,) and candidates (m,), both rows of the training set, to (m,)."""
    with torch.no_grad():
        vectors = model.vectors(rows.inputs, number)

    @torch.no_grad()
    def score(questions: Tensor, candidates: Tensor) -> Tensor:
        match = (vectors[questions] * vectors[candidates]).sum(-1, keepdim=True)
        found = model.answers(match, rows.answers[candidates, None], task.classes)
        if task.instruction[-1] == "copy":  # an answer that is written, of one token
            log = found.gather(1, rows.answers[questions, None]).log()
            return generation_score(log, torch.ones_like(log, dtype=torch.bool))
        return class_score(found, rows.answers[questions])

    return score


@torch.no_grad()
def accuracy(world: World, model: Copier, choose: Choose, shown: int, *, numbers: Sequence[int] | None = None) -> dict[str, float]:
    """Share of right answers from the chosen demonstrations: over all tasks, over those of classes, and over those that copy.

    Args:
        world: tasks and rows.
        model: that answers.
        choose: demonstrations.
        shown: how many of them.
        numbers: of the world's tasks among the model's; their own order when omitted.
    """
    right: dict[str, list[float]] = {"classify": [], "copy": []}
    for place, (task, train, test) in enumerate(zip(world.tasks, world.train, world.test, strict=True)):
        number = place if numbers is None else numbers[place]
        rows = choose(place, shown)
        vectors, asked = model.vectors(train.inputs, number), model.vectors(test.inputs, number)
        match = torch.einsum("qd,qkd->qk", asked, vectors[rows])
        answers = model.answers(match, train.answers[rows], task.classes).argmax(1)
        right["copy" if task.instruction[-1] == "copy" else "classify"].append(float((answers == test.answers).double().mean()))
    every = [value for values in right.values() for value in values]
    return {"accuracy": sum(every) / len(every), **{f"accuracy_{name}": sum(values) / len(values) for name, values in right.items() if values}}


def own_choice(world: World, model: Copier) -> Choose:
    """What the language model itself would look at: the ceiling, for which every row must be read for every question."""

    @torch.no_grad()
    def choose(number: int, k: int) -> Tensor:
        return (model.vectors(world.test[number].inputs, number) @ model.vectors(world.train[number].inputs, number).T).topk(k, 1).indices

    return choose


def by_retriever(world: World, retriever: UnifiedRetriever, *, told: bool = True) -> Choose:
    """The retriever's nearest."""

    @torch.no_grad()
    def choose(number: int, k: int) -> Tensor:
        instruction = world.tasks[number].instruction if told else (ANY,)
        queries = retriever.embed_queries(world.test[number].inputs, instruction)
        train = world.train[number]
        return (queries @ retriever.embed_demonstrations(train.inputs, train.answers, instruction).T).topk(k, 1).indices

    return choose


# training


def build(kind: Kind, told: int) -> UnifiedRetriever:
    """An untrained retriever; both encoders begin alike, as two copies of one pretrained model do."""
    query = encoder_of(kind, told)
    demonstration = deepcopy(query)
    answers = max(task.classes for task in tasks_of(kind))
    return UnifiedRetriever(query, demonstration, Instructions((*known_words(), ANY), told), answers, query.width)


def train_retriever(
    world: World,
    model: Copier,
    *,
    recipe: Recipe,
    seed: int,
    first: Sequence[Tensor] | None = None,
    loss: Loss = "udr",
    told: bool = True,
    numbers: Sequence[int] | None = None,
    calls: list[int] | None = None,
    watch: Callable[[int, UnifiedRetriever, list[Candidates]], None] | None = None,
) -> UnifiedRetriever:
    """Score candidates, train, mine new candidates, and so on.

    Args:
        world: tasks and rows.
        model: that gives the feedback.
        recipe: of training.
        seed: of weights and draws; the same for every variant.
        first: of :func:`first_candidates`, where several retrievers of one world are trained; worked out when omitted.
        loss: "udr", "predicted" (the code's weights), "in-batch" (lambda = 0) or "epr".
        told: whether the retriever gets the instruction.
        numbers: of the world's tasks among the model's; their own order when omitted.
        calls: gets the number of candidates that were scored.
        watch: called after each iteration.
    """
    device = world.train[0].answers.device
    with seeded(seed):
        retriever = build(world.kind, recipe.told).to(device)
    draws = stream(seed, "udr", world.kind, "batches")
    numbers = list(range(len(world.tasks))) if numbers is None else list(numbers)
    scorers = [feedback(model, rows, task, number) for rows, task, number in zip(world.train, world.tasks, numbers, strict=True)]
    kept = [Candidates(len(rows), device) for rows in world.train]
    instructions = [task.instruction if told else (ANY,) for task in world.tasks]
    chance = task_probabilities(torch.tensor([len(rows) for rows in world.train]), recipe.alpha)
    optimizer = torch.optim.Adam(retriever.parameters(), lr=recipe.rate, fused=True)
    first = first_candidates(world, recipe.candidates) if first is None else first
    for iteration in range(recipe.iterations):
        lists = []
        for rows, candidates, score, instruction, nearest in zip(world.train, kept, scorers, instructions, first, strict=True):
            most = min(recipe.candidates, len(rows) - 1)
            candidates.add(nearest[:, :most] if iteration == 0 else _mined(retriever, rows, instruction, most), score)
            lists.append(candidates.best())
        steps = recipe.steps * (iteration + 1) // recipe.iterations - recipe.steps * iteration // recipe.iterations

        def loss_at(step: int, lists: list[tuple[Tensor, Tensor]] = lists) -> Tensor:
            number = int(torch.multinomial(chance, 1, generator=draws))
            rows, (order, scores), instruction = world.train[number], lists[number], instructions[number]
            asked = torch.randint(len(rows), (min(recipe.batch, len(rows)),), generator=draws).to(device)
            columns = _columns(order[asked], recipe.listed, loss, draws)
            chosen = order[asked].gather(1, columns)
            queries = retriever.embed_queries(rows.inputs[asked], instruction)
            shown = retriever.embed_demonstrations(rows.inputs[chosen].flatten(0, 1), rows.answers[chosen].flatten(), instruction)
            shown = shown.view(*chosen.shape, -1)
            if loss == "epr":
                return epr_loss(queries, shown[:, 0], shown[:, 1])
            balance = 0.0 if loss == "in-batch" else recipe.balance
            return udr_loss(queries, shown, scores[asked].gather(1, columns), balance=balance, weight="predicted" if loss == "predicted" else "lm")

        fit(retriever, loss_at, steps=steps, optimizer=optimizer)
        if watch is not None:
            watch(iteration, retriever, kept)
    if calls is not None:
        calls.append(sum(candidates.calls for candidates in kept))
    return retriever.eval()


def _columns(order: Tensor, listed: int, loss: Loss, draws: torch.Generator) -> Tensor:
    """Which candidates of each row are drawn: a list, or for EPR one of the best five and one of the worst five."""
    size = order.shape[1]
    if loss != "epr":
        return draw_lists(order, min(listed, size), generator=draws)
    end = min(5, size // 2)
    best = torch.randint(end, (len(order), 1), generator=draws)
    worst = size - 1 - torch.randint(end, (len(order), 1), generator=draws)
    return torch.cat([best, worst], 1).to(order.device)


def first_candidates(world: World, count: int) -> list[Tensor]:
    """The nearest by the likeness of the whole of each task's rows, a row itself left out: (n, count), or all others where there are fewer."""
    found = []
    for rows in world.train:
        likeness = surface(world.kind, rows.inputs, rows.inputs).fill_diagonal_(-torch.inf)
        found.append(likeness.topk(min(count, len(rows) - 1), 1).indices)
    return found


@torch.no_grad()
def _mined(retriever: UnifiedRetriever, rows: Rows, instruction: Sequence[str], count: int) -> Tensor:
    return mine(retriever.embed_queries(rows.inputs, instruction), retriever.embed_demonstrations(rows.inputs, rows.answers, instruction), count)


_FEW = Recipe(steps=12, iterations=3, batch=16, candidates=20)

SCALES: Mapping[str, UDRSettings] = {
    "quick": UDRSettings(seeds=1, recipe=_FEW, sizes=(120, 80, 60, 40), test=40, copier=60, alone=6, few=6),
    "laptop": UDRSettings(seeds=3),
    "paper": UDRSettings(seeds=3, recipe=Recipe(steps=6000, batch=128), sizes=(6000, 4000, 2000, 600), test=2000, copier=5000, alone=1500),
}


def _both(better: str, worse: str, metric: str, margin: float, says: str) -> tuple[Claim, Claim]:
    """The claim on digits and on sentences."""
    return Claim(better, worse, metric, margin, says=says), Claim(better, worse, f"{metric}_sentences", margin, says=f"{says}: sentences")


CLAIMS = (
    *_both("UDR", "surface", "accuracy", 0.05, "demonstrations that the model's feedback taught to find over those alike as a whole (pixels; BM25)"),
    *_both("UDR", "random", "accuracy", 0.2, "over random demonstrations"),
    *_both("UDR", "no instruction", "accuracy", 0.02, "told the task over told nothing"),
    *_both("UDR", "EPR loss", "accuracy", 0.01, "a ranked list over one good and one bad candidate (the paper: 4.4 points)"),
    *_both("UDR", "in-batch loss alone", "accuracy", 0.01, "with the ranking loss over without (the paper: 2.7 points)"),
    *_both("UDR", "one iteration", "accuracy", 0.01, "mined candidates over the first ones, at equal steps (the paper: 1.9 points)"),
    Claim("few candidates", "few candidates, one iteration", "accuracy", 0.01, says="the same with ten candidates a question"),
    Claim("UDR", "predicted weights", "accuracy", says="pair weights of the model's ranks (paper) over those of the predicted order (code)"),
    Claim("UDR", "a retriever a task", "accuracy", 0.01, says="one retriever of twelve tasks over twelve retrievers with twice its steps"),
    *_both("UDR", "model's own choice", "accuracy", -0.02, "within 0.02 of what the model itself would look at"),
    *_both("UDR, 2 shown", "surface, 8 shown", "accuracy", 0.0, "two of its demonstrations over eight that are alike as a whole"),
    *_both("UDR", "surface", "accuracy_other_model", 0.05, "shown to another model than the one that taught it"),
    *_both("UDR, tasks unseen", "surface", "accuracy_unseen", 0.05, "on tasks that it was not trained on, their instructions new combinations"),
)

UNITS = {
    "accuracy": "share of right answers",
    "accuracy_classify": "share of right answers, tasks of classes",
    "accuracy_copy": "share of right answers, tasks that write a value",
    "accuracy_other_model": "share of right answers of another model",
    "accuracy_unseen": "share of right answers on three tasks",
    "scored": "thousand candidates scored",
}
UNITS |= {f"{metric}_sentences": f"{unit}, sentences" for metric, unit in UNITS.items()}

EXPERIMENT = Experiment(
    paper="udr",
    question="Does one retriever, trained on a language model's feedback from all tasks, find better demonstrations than a likeness of the whole?",
    scales=SCALES,
    claims=CLAIMS,
    run=run,
    units=UNITS,
)


# what the explorer shows


@dataclass(frozen=True)
class ShownSettings:
    """What the shipped models depend on.

    Attributes:
        settings: of the world and training.
        seed: of everything.
    """

    settings: UDRSettings = field(default_factory=lambda: UDRSettings(seeds=1))
    seed: int = 0


def build_shown(shown: ShownSettings) -> nn.Module:
    """The language model of digits, the retriever, and one that is told nothing."""
    told = shown.settings.recipe.told
    return nn.ModuleDict({"model": Copier("digits", len(tasks_of("digits"))), "UDR": build("digits", told), "no instruction": build("digits", told)})


def shown_world(shown: ShownSettings) -> tuple[World, Source]:
    """Rows of digits."""
    return make_world("digits", shown.seed, sizes=shown.settings.sizes, test=shown.settings.test)


def train_shown(shown: ShownSettings, progress: str | None) -> nn.Module:
    """Train the three."""
    world, source = shown_world(shown)
    model = train_copier("digits", source, shown.seed, steps=shown.settings.copier)
    recipe = shown.settings.recipe
    found = {name: train_retriever(world, model, recipe=recipe, seed=shown.seed, told=name == "UDR") for name in ("UDR", "no instruction")}
    return nn.ModuleDict({"model": model, **found})


def measure_shown(models: nn.Module) -> dict[str, float]:
    """Accuracy with four demonstrations."""
    assert isinstance(models, nn.ModuleDict)
    world, _ = shown_world(SHOWN.settings)
    model, found = models["model"], {}
    assert isinstance(model, Copier)
    for name in ("UDR", "no instruction"):
        retriever = models[name]
        assert isinstance(retriever, UnifiedRetriever)
        found[name] = round(accuracy(world, model, by_retriever(world, retriever, told=name == "UDR"), SHOWN.settings.settings.shown)["accuracy"], 4)
    return found


SHOWN = Checkpoint("udr-digits", ShownSettings(), build_shown, train_shown, measure_shown)
CHECKPOINTS = (SHOWN,)
