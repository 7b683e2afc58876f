"""Does a point that a few scalars find between two task vectors beat joint training on unbalanced data, and what is it that helps?

Two embedding tasks on the same texts (:mod:`mtlearn.merging.self_positioning.tasks`): R has ten times as many training pairs as T, and each wants
what the other does not. All arms of a seed start from the same base model and see the same pairs. What may be learned or chosen beyond the training
pairs is learned and chosen on the same probe set, the validation part. The test part chooses nothing.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.merging.averaging import fisher_average, input_grams, regmean
from mtlearn.merging.composition import Composition
from mtlearn.merging.self_positioning.baselines import rescaled_ties, squared_gradients
from mtlearn.merging.self_positioning.encoders import WordEncoder
from mtlearn.merging.self_positioning.method import (
    SelfPositioning,
    TaskSpace,
    angles,
    check_probe,
    fold_coefficients,
    info_nce,
    line_fit,
    power_law,
    slerp_weights,
)
from mtlearn.merging.self_positioning.published import published_world
from mtlearn.merging.self_positioning.tasks import Batch, Task, World, documentation_world
from mtlearn.merging.task_vectors import State, apply, average, cosine, norm, task_vector


@dataclass(frozen=True)
class Recipe:
    """Sizes and training.

    Attributes:
        vocabulary, width, hidden: of the small encoder.
        base_steps, base_rate: Adam, to the base model.
        steps, rate, batch: Adam, of one single-task model; a joint model gets twice the steps.
        temperature: of InfoNCE.
        pairs: training pairs of R and of T.
        test: test pages at most.
        ratios: shares of R in the resampled joint runs.
        probe_steps, probe_rate, momentum: SGD on the scalars.
        mu: of the arm with a penalty on the length.
        probe_batches: of each task, on which grids are judged and Fisher information is taken.
        growth: numbers of pairs at which the norm of V_R is measured.
        growth_batch, growth_rate: of these runs with Adam at ``rate`` and with plain SGD at ``growth_rate``.
    """

    vocabulary: int = 5000
    width: int = 64
    hidden: int = 128
    base_steps: int = 300
    base_rate: float = 3e-3
    steps: int = 400
    rate: float = 1e-3
    batch: int = 64
    temperature: float = 0.05
    pairs: tuple[int, int] = (2000, 200)
    test: int = 500
    ratios: tuple[float, ...] = (0.25, 0.4, 0.5, 0.6, 0.75)
    probe_steps: int = 100
    probe_rate: float = 0.1
    momentum: float = 0.9
    mu: float = 0.05
    probe_batches: int = 8
    growth: tuple[int, ...] = (200, 500, 1000, 1500, 2000)
    growth_batch: int = 16
    growth_rate: float = 0.5


@dataclass(frozen=True)
class SelfPositioningSettings(Settings):
    """Settings of a run.

    Attributes:
        recipe: sizes and training.
        published: train on published files (Cranfield, STS) in the place of the documentation.
        encoder: folder or name of a pretrained encoder of the library transformers; "" for the small one.
    """

    recipe: Recipe = field(default_factory=Recipe)
    published: bool = False
    encoder: str = ""


BASE, R_ONLY, T_ONLY, JOINT = "base", "R only", "T only", "joint, by data"
BEST, MEAN_RATIO = "resampled, best ratio on the probe", "resampled, mean of the ratios"
AVERAGE, AVERAGE_LONG, AVERAGE_GRID = "average", "average, as long as slerp", "average, grid on the probe"
SLERP, SLERP_GRID = "slerp", "slerp, grid on the probe"
TIES, FISHER, REGMEAN = "TIES, grid on the probe", "Fisher average, grid on the probe", "RegMean, grid on the probe"
SP, SP_MU, SP_R = "Self Positioning", "Self Positioning with mu", "Self Positioning, probe 90 % R"
FREE, TUNED = "free coefficients, same probe", "joint, then all weights on the probe"
SEQUENCE, REVERSED, SP_SEQUENCE = "R, then T", "T, then R", "Self Positioning, sequential checkpoints"
LEAN_R, LEAN_T, TASKS = "joint vector and V_R", "joint vector and V_T", "V_R and V_T"
AT_BASE, AT_JOINT = "gradients at the base", "gradients at the joint model"
LINE, ROOT, POWER, SGD_LINE = "norm as a line", "norm as a square root", "norm as a power", "norm as a line, plain SGD"
LENGTHS = (0.75, 1.0, 1.25, 1.5, 2.0)  # lambda in the grids


def resampled(share: float) -> str:
    """Name of the arm with this share of R."""
    return f"resampled, P(R) = {share:g}"


@dataclass(frozen=True)
class Run:
    """What all arms of a seed have in common.

    Attributes:
        world: tasks and the base's batches.
        recipe: sizes and training.
        seed: of all draws.
        device: of the models.
    """

    world: World
    recipe: Recipe
    seed: int
    device: torch.device

    @property
    def tasks(self) -> tuple[Task, Task]:
        """R and T."""
        return self.world.tasks

    def loss(self, encode: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """InfoNCE of a batch."""
        batch = batch.to(self.device)
        return info_nce(encode(batch.query), encode(batch.positive), temperature=self.recipe.temperature, left_out=batch.left_out)

    def base(self) -> nn.Module:
        """The model from which everything starts: trained on halves of texts, or as it is where it comes pretrained."""
        with seeded(self.seed):
            model = self.world.encoder().to(self.device)
        draws = stream(self.seed, "base")
        first = self.world.first
        if first is not None:
            self.fit(model, lambda step: self.loss(model, first(self.recipe.batch, draws)), self.recipe.base_steps, self.recipe.base_rate)
        return model.eval()

    def fit(self, model: nn.Module, loss_at: Callable[[int], Tensor], steps: int, rate: float) -> None:
        """Adam on all weights."""
        fit(model, loss_at, steps=steps, optimizer=torch.optim.Adam(model.parameters(), lr=rate))
        model.eval()

    def trained(self, start: nn.Module, share: float, steps: int) -> nn.Module:
        """A copy of ``start``, each step on one task: R with probability ``share``, else T."""
        model = deepcopy(start)
        draws = [stream(self.seed, "train", number) for number in range(2)]  # the tasks' batches do not depend on which of them come when
        which = stream(self.seed, "which")

        def loss_at(step: int) -> Tensor:
            number = int(torch.rand((), generator=which) >= share)
            return self.loss(model, self.tasks[number].draw("train", self.recipe.batch, draws[number]))

        self.fit(model, loss_at, steps, self.recipe.rate)
        return model

    def probe_loss(self, share: float = 0.5) -> Callable[[Callable[[Tensor], Tensor]], Tensor]:
        """Draws a batch of each task from the probe set at each call: share L_R + (1 - share) L_T."""
        check_probe({task.name: task.pairs["validation"] for task in self.tasks}, [task.name for task in self.tasks], batch=self.recipe.batch)
        draws = [stream(self.seed, "probe", number) for number in range(2)]

        def loss(encode: Callable[[Tensor], Tensor]) -> Tensor:
            each = [
                self.loss(encode, task.draw("validation", self.recipe.batch, generator)) for task, generator in zip(self.tasks, draws, strict=True)
            ]
            return share * each[0] + (1 - share) * each[1]

        return loss

    @torch.no_grad()
    def judged(self, encode: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """Loss of R and of T on fixed batches of the probe set: what grids choose by."""
        found = []
        for number, task in enumerate(self.tasks):
            draws = stream(self.seed, "judge", number)
            batches = [task.draw("validation", self.recipe.batch, draws) for _ in range(self.recipe.probe_batches)]
            found.append(sum(float(self.loss(encode, batch)) for batch in batches) / len(batches))
        return found[0], found[1]

    @torch.no_grad()
    def scores(self, encode: Callable[[Tensor], Tensor], part: str = "test") -> dict[str, float]:
        """The metric of each task and their mean."""

        def on_device(tokens: Tensor) -> Tensor:
            return torch.cat([encode(chunk.to(self.device)).cpu() for chunk in torch.split(tokens, 512)])

        first, second = (task.score(on_device, part) for task in self.tasks)  # type: ignore[arg-type]
        return {"R": first, "T": second, "mean": (first + second) / 2}


def encoder_at(model: nn.Module, state: State) -> Callable[[Tensor], Tensor]:
    """The model as a function of tokens, with the weights of ``state``."""

    def encode(tokens: Tensor) -> Tensor:
        found: Tensor = functional_call(model, dict(state), (tokens,))
        return found

    return encode


def search(
    run: Run, model: nn.Module, space: TaskSpace, *, mu: float = 0.0, share: float = 0.5, trace: list[Tensor] | None = None
) -> SelfPositioning:
    """Learn the position on the probe set: SGD on N + 1 scalars, each step a batch of each task.

    Args:
        run: data and settings.
        model: of the right shape; its own weights are not used.
        space: base and task vectors.
        mu: weight of the length in the objective.
        share: of R in the probe's loss.
        trace: gets the coefficients before every step and at the end.
    """
    position = SelfPositioning(space.gram).to(run.device)
    loss_of = run.probe_loss(share)
    seen = [] if trace is None else trace

    def loss_at(step: int) -> Tensor:
        c = position.coefficients()
        seen.append(c.detach())
        return position.objective(loss_of(encoder_at(model, space.state(c))), mu)

    optimizer = torch.optim.SGD(position.parameters(), lr=run.recipe.probe_rate, momentum=run.recipe.momentum)
    fit(position, loss_at, steps=run.recipe.probe_steps, optimizer=optimizer)
    seen.append(position.coefficients().detach())
    return position


def free_coefficients(run: Run, model: nn.Module, vectors: Sequence[State]) -> Composition:
    """The control: the same search over N unconstrained factors of the task vectors, from 1/sqrt(2), where equal slerp of two stands, too."""
    composed = Composition(model, vectors, per="task", initial=0.5**0.5)
    loss_of = run.probe_loss()
    optimizer = torch.optim.SGD(composed.parameters(), lr=run.recipe.probe_rate, momentum=run.recipe.momentum)
    fit(composed, lambda step: loss_of(composed), steps=run.recipe.probe_steps, optimizer=optimizer)
    return composed


def best_on_probe(run: Run, model: nn.Module, states: Iterable[State]) -> State:
    """The state with the smallest mean loss on the probe's fixed batches."""
    return min(states, key=lambda state: sum(run.judged(encoder_at(model, state))))


def slerp_grid(space: TaskSpace) -> list[Tensor]:
    """(2,) coefficients of slerp at ten beta and five lambda."""
    cosine_ = space.gram[0, 1] / (space.gram[0, 0] * space.gram[1, 1]).sqrt()
    betas = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    weights = torch.stack(slerp_weights(cosine_, betas), 1)  # (10, 2)
    return [length * row for row in weights for length in LENGTHS]


def gradient_cosine(run: Run, model: nn.Module, *, batches: int = 8) -> dict[str, float]:
    """Cosine of the gradients of R and T on training batches: its mean, and how often it is negative."""
    found = []
    draws = [stream(run.seed, "gradient", number) for number in range(2)]
    for _ in range(batches):
        rows = []
        for task, generator in zip(run.tasks, draws, strict=True):
            loss = run.loss(model, task.draw("train", run.recipe.batch, generator))
            gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
        found.append(float(torch.nn.functional.cosine_similarity(rows[0], rows[1], dim=0)))
    return {"cosine": sum(found) / batches, "negative cosines": sum(value < 0 for value in found) / batches}


def norms_by_pairs(run: Run, start: nn.Module, *, adam: bool) -> list[float]:
    """The norm of V_R after as many steps as one epoch has, for each number of training pairs."""
    before = start.state_dict()
    found = []
    for pairs in run.recipe.growth:
        task = run.world.retrieval_of(pairs)
        model, draws = deepcopy(start), stream(run.seed, "growth", pairs)
        optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(model.parameters(), lr=run.recipe.rate) if adam else torch.optim.SGD(model.parameters(), lr=run.recipe.growth_rate)
        )

        def loss_at(step: int, model: nn.Module = model, task: Task = task, draws: torch.Generator = draws) -> Tensor:
            return run.loss(model, task.draw("train", run.recipe.growth_batch, draws))

        fit(model, loss_at, steps=max(1, pairs // run.recipe.growth_batch), optimizer=optimizer)
        found.append(norm(task_vector(before, model.state_dict())))
    return found


def growth_arms(counts: Sequence[float], adam: Sequence[float], sgd: Sequence[float]) -> Arms:
    """How well a line, a square root and a power describe norm against number of pairs."""
    roots = [count**0.5 for count in counts]
    _, exponent, power_fit = power_law(counts, adam)
    return {
        LINE: {"fit": line_fit(counts, adam)[2], "growth": adam[-1] / adam[0]},
        ROOT: {"fit": line_fit(roots, adam)[2]},
        POWER: {"fit": power_fit, "exponent": exponent},
        SGD_LINE: {"fit": line_fit(counts, sgd)[2], "growth": sgd[-1] / sgd[0]},
    }


def run(settings: SelfPositioningSettings, seed: int, device: torch.device) -> Arms:
    """Train and measure every arm of one seed."""
    world = world_of(settings, seed)
    with seeded(seed):
        now = Run(world, settings.recipe, seed, device)
        return arms(now)


def world_of(settings: SelfPositioningSettings, seed: int) -> World:
    """The tasks of a seed."""
    recipe = settings.recipe
    build = lambda size: WordEncoder(size, recipe.width, recipe.hidden)
    if settings.published:
        return published_world(seed, encoder=settings.encoder, vocabulary=recipe.vocabulary, build=build, pairs=recipe.pairs, most=recipe.test)
    return documentation_world(seed, encoder=settings.encoder, vocabulary=recipe.vocabulary, build=build, pairs=recipe.pairs, most=recipe.test)


def arms(now: Run) -> Arms:
    """Every arm of a run."""
    recipe = now.recipe
    steps, probe = recipe.steps, 2 * recipe.probe_steps
    base = now.base()
    start = base.state_dict()
    found: Arms = {}

    def measured(name: str, model: nn.Module, batches: int, **more: float) -> nn.Module:
        found[name] = {**now.scores(model), "batches": batches, **more}
        return model

    measured(BASE, base, 0)
    only = {"R": measured(R_ONLY, now.trained(base, 1.0, steps), steps), "T": measured(T_ONLY, now.trained(base, 0.0, steps), steps)}
    numbers = [task.pairs["train"] for task in now.tasks]
    share = numbers[0] / sum(numbers)
    joint = measured(JOINT, now.trained(base, share, 2 * steps), 2 * steps)

    # resampling: one whole run for each ratio, and the best by the metrics of the probe set
    runs = {ratio: now.trained(base, ratio, 2 * steps) for ratio in recipe.ratios}
    for ratio, model in runs.items():
        measured(resampled(ratio), model, 2 * steps)
    best = max(runs, key=lambda ratio: now.scores(runs[ratio], "validation")["mean"])
    found[BEST] = {**found[resampled(best)], "batches": 2 * steps * len(runs), "share of R": best}
    each = [found[resampled(ratio)] for ratio in runs]
    found[MEAN_RATIO] = {metric: sum(row[metric] for row in each) / len(each) for metric in ("R", "T", "mean")}

    # merging of separately trained models
    vectors = {name: task_vector(start, model.state_dict()) for name, model in only.items()}
    pair = list(vectors.values())
    space = TaskSpace(start, vectors)
    shell = deepcopy(base)

    def merged(name: str, state: State, batches: int, **more: float) -> None:
        found[name] = {
            **now.scores(encoder_at(shell, state)),
            "batches": batches,
            "length of the vector": norm(task_vector(start, full(state))),
            **more,
        }

    def full(state: State) -> dict[str, Tensor]:
        return {name: state.get(name, value) for name, value in start.items()}

    equal = fold_coefficients(space.gram, torch.ones(2, dtype=torch.float64))
    merged(AVERAGE, apply(start, average(pair)), 2 * steps)
    merged(SLERP, space.state(equal), 2 * steps)
    middle = torch.full_like(equal, 0.5)
    stretch = ((equal @ space.gram @ equal) / (middle @ space.gram @ middle)).sqrt()
    merged(AVERAGE_LONG, space.state(stretch * middle), 2 * steps)
    weights = torch.linspace(0.0, 1.0, 11).tolist()
    merged(AVERAGE_GRID, best_on_probe(now, shell, (space.state(torch.tensor([1 - w, w])) for w in weights)), 2 * steps)
    merged(SLERP_GRID, best_on_probe(now, shell, (space.state(c) for c in slerp_grid(space))), 2 * steps)
    trimmed = itertools.product((0.2, 0.5, 0.8), LENGTHS)
    merged(TIES, best_on_probe(now, shell, (apply(start, rescaled_ties(pair, keep, length)) for keep, length in trimmed)), 2 * steps)
    for name, vector in ((FISHER, fisher_average(pair, fishers(now, only))), (REGMEAN, regmean(pair, grams(now, only)))):
        merged(name, best_on_probe(now, shell, [apply(start, vector, length) for length in LENGTHS]), 2 * steps)

    def positioned(name: str, space: TaskSpace, *, mu: float = 0.0, share: float = 0.5) -> None:
        position = search(now, shell, space, mu=mu, share=share)
        more = {"beta": float(position.beta.detach()[0]), "lambda": float(position.length.detach())}
        merged(name, space.state(position.coefficients().detach()), 2 * steps + probe, **more)

    positioned(SP, space)
    positioned(SP_MU, space, mu=recipe.mu)
    positioned(SP_R, space, share=0.9)
    merged(FREE, free_coefficients(now, shell, pair).state(), 2 * steps + probe)

    # the other pipeline: one task after the other, and the checkpoints on the way
    sequence = measured(SEQUENCE, now.trained(only["R"], 0.0, steps), 2 * steps)
    measured(REVERSED, now.trained(only["T"], 1.0, steps), 2 * steps)
    checkpoints = {"R": vectors["R"], "R, then T": task_vector(start, sequence.state_dict())}
    positioned(SP_SEQUENCE, TaskSpace(start, checkpoints))

    # the probe set is data: what all weights make of it
    tuned, loss_of = deepcopy(joint), now.probe_loss()
    now.fit(tuned, lambda step: loss_of(tuned), recipe.probe_steps, recipe.rate)
    measured(TUNED, tuned, 2 * steps + probe)

    together = task_vector(start, joint.state_dict())
    found[TASKS] = {"cosine": cosine(*pair), "angle": float(angles(space.gram)[0, 1])}
    found[LEAN_R] = {"cosine": cosine(together, vectors["R"])}
    found[LEAN_T] = {"cosine": cosine(together, vectors["T"])}
    for name, model in ((R_ONLY, only["R"]), (T_ONLY, only["T"]), (JOINT, joint), (SEQUENCE, sequence)):
        found[name]["length of the vector"] = norm(task_vector(start, model.state_dict()))
    found[AT_BASE], found[AT_JOINT] = gradient_cosine(now, base), gradient_cosine(now, joint)
    adam, sgd = (norms_by_pairs(now, base, adam=adam) for adam in (True, False))
    return found | growth_arms(recipe.growth, adam, sgd)


def fishers(now: Run, only: Mapping[str, nn.Module]) -> list[dict[str, Tensor]]:
    """Fisher information of each single-task model on batches of 16 pairs of its own task from the probe set."""
    found = []
    for task, model in zip(now.tasks, only.values(), strict=True):
        draws = stream(now.seed, "fisher", task.name)
        batches = [task.draw("validation", 16, draws) for _ in range(4 * now.recipe.probe_batches)]
        found.append(squared_gradients(model, [lambda model=model, batch=batch: now.loss(model, batch) for batch in batches]))  # type: ignore[misc]
    return found


def grams(now: Run, only: Mapping[str, nn.Module]) -> list[dict[str, Tensor]]:
    """Input Gram matrices of each single-task model on texts of its own task from the probe set."""
    found = []
    for task, model in zip(now.tasks, only.values(), strict=True):
        batch = task.draw("validation", now.recipe.batch * 2, stream(now.seed, "gram", task.name)).to(now.device)
        sides = [input_grams(model, tokens) for tokens in (batch.query, batch.positive)]
        found.append({name: sides[0][name] + sides[1][name] for name in sides[0]})
    return found


EXPERIMENT = Experiment(
    paper="self_positioning",
    question="Does a point found between two task vectors beat joint training on unbalanced data, and what of the gain is the search's?",
    scales={
        "quick": SelfPositioningSettings(
            seeds=2,
            recipe=Recipe(
                vocabulary=1500,
                width=24,
                hidden=32,
                base_steps=40,
                steps=25,
                batch=32,
                pairs=(300, 60),
                test=150,
                ratios=(0.25, 0.5),
                probe_steps=10,
                probe_batches=1,
                growth=(64, 128, 256),
            ),
        ),
        "laptop": SelfPositioningSettings(seeds=5),
        "paper": SelfPositioningSettings(
            seeds=3,
            recipe=Recipe(rate=2e-5, steps=2000, pairs=(1400, 6000), probe_steps=500, growth=(140, 350, 700, 1050, 1400)),
            published=True,
            encoder="bert-base-uncased",
        ),
    },
    claims=(
        Claim(SP, JOINT, "mean", 0.02, says="Self Positioning beats joint training on unbalanced data."),
        Claim(SP, BEST, "mean", says="It beats the best of five resampling ratios."),
        Claim(SP, resampled(0.5), "mean", says="It beats resampling at the balanced ratio."),
        Claim(SP, MEAN_RATIO, "mean", says="It beats the five resampling ratios on average, as one guess of the ratio would do."),
        Claim(SP, BEST, "batches", higher_is_better=False, says="It needs fewer training batches than the five runs of resampling."),
        Claim(SP, SLERP_GRID, "mean", -0.01, says="The search finds what a grid of 50 points finds, within 0.01."),
        Claim(SLERP, AVERAGE, "mean", says="Slerp with equal weights beats the average with equal weights."),
        Claim(SP, FREE, "mean", says="The sphere matters: Self Positioning beats free linear coefficients learned on the same probe."),
        Claim(SP, TIES, "mean", says="It beats TIES."),
        Claim(SP, FISHER, "mean", says="It beats the Fisher average."),
        Claim(SP, REGMEAN, "mean", says="It beats RegMean."),
        Claim(SP, TUNED, "mean", says="It beats the joint model with all weights trained on the probe set for as many steps."),
        Claim(SP, SEQUENCE, "mean", says="It beats the last checkpoint of sequential training (R, then T)."),
        Claim(SP_SEQUENCE, SEQUENCE, "mean", says="Merging the sequential checkpoints beats the last of them."),
        Claim(SP_SEQUENCE, SP, "mean", says="Merging sequential checkpoints beats merging separate models."),
        Claim(SP, SP_MU, "lambda", says="The penalty mu = 0.05 shortens the vector."),
        Claim(SP_MU, SP, "mean", -0.01, says="It costs less than 0.01."),
        Claim(SP, SP_R, "beta", 0.05, says="A probe set of 90 % R turns the vector towards R."),
        Claim(T_ONLY, JOINT, "T", 0.05, says="Imbalance: joint training by data leaves T behind its single-task model."),
        Claim(T_ONLY, resampled(0.5), "T", 0.02, says="Conflict: with as many T batches, T is worse where R is trained as well."),
        Claim(BASE, R_ONLY, "T", says="Conflict: training R alone lowers T below the base."),
        Claim(AT_BASE, None, "cosine", higher_is_better=False, says="The gradients of R and T point against each other at the base."),
        Claim(AT_JOINT, None, "cosine", higher_is_better=False, says="They do at the jointly trained model."),
        Claim(LEAN_R, LEAN_T, "cosine", 0.1, says="The joint vector leans to the larger data set."),
        Claim(LINE, None, "growth", 2.0, says="From 200 to 2,000 pairs the norm of the task vector more than doubles (Adam)."),
        Claim(LINE, ROOT, "fit", says="It grows linearly: a line describes it better than a square root."),
        Claim(SGD_LINE, None, "growth", 2.0, says="With plain SGD the norm more than doubles, too."),
    ),
    run=run,
    units={
        "R": "MRR@10 of retrieval",
        "T": "mean average precision of the topic",
        "mean": "mean of the two tasks' metrics",
        "batches": "training batches of 64 pairs, probe included",
        "share of R": "share",
        "length of the vector": "distance from the base",
        "beta": "0 is V_R, 1 is V_T",
        "lambda": "factor on the length",
        "cosine": "cosine",
        "negative cosines": "share of batches",
        "angle": "degrees",
        "fit": "R² of norm against number of pairs",
        "growth": "norm at most pairs over norm at fewest",
        "exponent": "power of the number of pairs",
    },
)


def plane(space_gram: Tensor) -> Tensor:
    """(2, 2): the two task vectors as rows in coordinates of their plane, the first along x."""
    rows: Tensor = torch.linalg.cholesky(space_gram)  # L L^T = G: rows with just these inner products
    return rows


@dataclass(frozen=True)
class Shipped:
    """Settings of the explorer's landscape: one seed of the experiment, looked at everywhere in the plane of its task vectors.

    Attributes:
        seed: of all draws.
        recipe: as in the experiment.
        side: points a side of the grid.
        low, high: the grid's ends, in norms of V_R.
    """

    seed: int = 1000
    recipe: Recipe = field(default_factory=Recipe)
    side: int = 17
    low: float = -0.45
    high: float = 1.55


class Landscape(nn.Module):
    """What was measured, as buffers.

    Attributes:
        gram: (2, 2) of V_R and V_T, float64.
        places: (side,) coordinates of the grid, the same on both axes.
        scores: (2, side, side) test metrics of R and T at [task, y, x].
        losses: (2, side, side) probe losses of R and T.
        shares: (runs,) share of R in the joint runs: by data, then the ratios.
        joint: (runs, 2) where the joint vectors fall on the plane; joint_outside: (runs,) the share of their length that leaves it.
        joint_scores: (runs, 2) test metrics of R and T.
        walk: (steps + 1, 2) the search on real batches, from a = lambda = 1.
        norms: (2, counts) norm of V_R by number of pairs, with Adam and with plain SGD.
    """

    gram: Tensor
    places: Tensor
    scores: Tensor
    losses: Tensor
    shares: Tensor
    joint: Tensor
    joint_outside: Tensor
    joint_scores: Tensor
    walk: Tensor
    norms: Tensor

    def __init__(self, shipped: Shipped) -> None:
        super().__init__()
        recipe, side, runs = shipped.recipe, shipped.side, 1 + len(shipped.recipe.ratios)
        shapes = {
            "gram": (2, 2), "places": (side,), "scores": (2, side, side), "losses": (2, side, side), "shares": (runs,), "joint": (runs, 2),
            "joint_outside": (runs,), "joint_scores": (runs, 2), "walk": (recipe.probe_steps + 1, 2), "norms": (2, len(recipe.growth)),
        }  # fmt: skip
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))


@torch.no_grad()
def survey(now: Run, model: nn.Module, space: TaskSpace, places: Tensor) -> tuple[Tensor, Tensor]:
    """Test metrics and probe losses (2, side, side) of R and T at each point of the plane."""
    back = torch.linalg.inv(plane(space.gram))
    scores, losses = torch.zeros(2, len(places), len(places), dtype=torch.float64), torch.zeros(2, len(places), len(places), dtype=torch.float64)
    for row, y in enumerate(places.tolist()):
        for column, x in enumerate(places.tolist()):
            encode = encoder_at(model, space.state(torch.tensor([x, y], dtype=torch.float64) @ back))
            found = now.scores(encode)
            scores[:, row, column] = torch.tensor([found["R"], found["T"]])
            losses[:, row, column] = torch.tensor(now.judged(encode))
    return scores, losses


def make_landscape(shipped: Shipped, progress: str | None = None) -> Landscape:
    """Train the models of one seed and survey their plane."""
    recipe = shipped.recipe
    now = Run(world_of(SelfPositioningSettings(seeds=1, recipe=recipe), shipped.seed), recipe, shipped.seed, torch.device("cpu"))
    base = now.base()
    start = base.state_dict()
    vectors = {name: task_vector(start, now.trained(base, share, recipe.steps).state_dict()) for name, share in (("R", 1.0), ("T", 0.0))}
    space = TaskSpace(start, vectors)
    axes = plane(space.gram)
    found = Landscape(shipped)
    found.gram.copy_(space.gram)
    found.places.copy_(torch.linspace(shipped.low, shipped.high, shipped.side, dtype=torch.float64) * axes[0, 0])
    shell = deepcopy(base)
    scores, losses = survey(now, shell, space, found.places)
    found.scores.copy_(scores)
    found.losses.copy_(losses)
    numbers = [task.pairs["train"] for task in now.tasks]
    for number, share in enumerate((numbers[0] / sum(numbers), *recipe.ratios)):
        model = now.trained(base, share, 2 * recipe.steps)
        c, outside = space.coordinates(task_vector(start, model.state_dict()))
        metrics = now.scores(model)
        found.shares[number], found.joint[number], found.joint_outside[number] = share, c @ axes, outside
        found.joint_scores[number] = torch.tensor([metrics["R"], metrics["T"]])
    trace: list[Tensor] = []
    search(now, shell, space, trace=trace)
    found.walk.copy_(torch.stack(trace) @ axes)
    found.norms.copy_(torch.tensor([norms_by_pairs(now, base, adam=adam) for adam in (True, False)], dtype=torch.float64))
    return found


def measure_landscape(found: nn.Module) -> dict[str, float]:
    """The best mean metric on the grid, and where the norm grew to."""
    assert isinstance(found, Landscape)
    mean = found.scores.mean(0)
    return {
        "best mean on the grid": round(float(mean.max()), 4),
        "mean of the joint run by data": round(float(found.joint_scores[0].mean()), 4),
        "norm of V_R": round(float(found.gram[0, 0].sqrt()), 3),
        "norm of V_T": round(float(found.gram[1, 1].sqrt()), 3),
    }


SHIPPED = Shipped()
CHECKPOINTS = (Checkpoint("self_positioning-plane", SHIPPED, Landscape, make_landscape, measure_landscape),)
