"""Can one generator stand for the adapters of many tasks, and make those of tasks that it has not seen?

A family of tasks with a known geometry: handwritten digits, turned by a fixed angle a task. An adapter is trained for every angle, the generator on
the late checkpoints of the seen angles, and all are judged by the accuracy of the adapted model on test images of the angle. Every arm of a seed
has the same images, the same base model, and the same adapters to learn from.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from mtlearn.datasets.digits import digits, rotated
from mtlearn.datasets.mnist import mnist
from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.cost import count_parameters
from mtlearn.layers.lora import add_lora, load_lora, lora_state, merge_lora
from mtlearn.merging.icm_lora.baselines import Ridge, angular_neighbours, harmonics, mean_of_products, nearest
from mtlearn.merging.icm_lora.method import CVAE, MLPCVAE, ConvCVAE, Whitening, cvae_loss, generate, in_context_task_vector, kl_nats, storage
from mtlearn.merging.icm_lora.vectors import Checkpoints, Layout, Statistics, pad

MULTIPLE = 64  # the small generator's vectors are padded as if six blocks halved them
LAYERS = ("0", "2", "4")  # the linear layers of the base model
LAST_HIDDEN = 3  # its last hidden layer


@dataclass(frozen=True)
class Angles:
    """The tasks: every ``spacing`` degrees, some of them held out.

    Attributes:
        spacing: degrees between two tasks.
        held: degrees of the tasks that no generator learns from.
        components: of the whitened task vectors.
    """

    spacing: int = 15
    held: tuple[int, ...] = (45, 135, 225, 315)
    components: int = 12

    @property
    def degrees(self) -> Tensor:
        """(T,) of all tasks."""
        return torch.arange(0, 360, self.spacing).float()

    @property
    def seen(self) -> Tensor:
        """(S,) numbers of the seen tasks."""
        return (~torch.isin(self.degrees, torch.tensor(self.held).float())).nonzero()[:, 0]

    @property
    def unseen(self) -> Tensor:
        """(H,) numbers of the held-out tasks."""
        return torch.isin(self.degrees, torch.tensor(self.held).float()).nonzero()[:, 0]


COARSE = Angles()
FINE = Angles(5, tuple(range(15, 360, 30)), 20)


@dataclass(frozen=True)
class Recipe:
    """Sizes and training of base model, adapters and generator.

    Attributes:
        images: ``digits`` (scikit-learn's, 8 x 8) or ``mnist`` (28 x 28).
        train: images in training; the others are for the test.
        hidden: units of the base model's two hidden layers.
        base_steps, base_rate: of Adam on upright images.
        rank, alpha, std: of the adapters; scale alpha / sqrt(rank), A normal with ``std``.
        lora_steps, lora_rate: of Adam, the rate falls linearly to 0.
        last: checkpoints a run that the generator learns from.
        examples: images that a task vector is the mean over.
        convolutional: the published generator instead of the small one.
        latent, units: of the generator; ``units`` are the small one's.
        kl_weight: beta.
        steps, rate: of Adam on the generator, the rate falls along the first half of a half cosine.
        batch: images a task and step.
        generator_batch: checkpoints a step.
    """

    images: str = "digits"
    train: int = 1000
    hidden: int = 64
    base_steps: int = 400
    base_rate: float = 3e-3
    rank: int = 4
    alpha: float = 8.0
    std: float = 0.125
    lora_steps: int = 200
    lora_rate: float = 1e-2
    last: int = 20
    examples: int = 30
    convolutional: bool = False
    latent: int = 16
    units: int = 128
    kl_weight: float = 0.05
    steps: int = 2000
    rate: float = 1e-3
    batch: int = 64
    generator_batch: int = 32


@dataclass(frozen=True)
class IcmLoraSettings(Settings):
    """Settings of a run.

    Attributes:
        recipe: of everything that is trained.
        coarse: tasks of the main comparison.
        fine: tasks, more densely spaced, of the second one.
    """

    recipe: Recipe = field(default_factory=Recipe)
    coarse: Angles = COARSE
    fine: Angles = FINE


# ---------------------------------------------------------------------------------------------------------- images, base model, adapters


@dataclass(frozen=True)
class Images:
    """Images of the tasks.

    Attributes:
        train, test: (T, n, pixels), the same images turned by each task's angle.
        train_labels, test_labels: (n,).
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def turned_images(recipe: Recipe, degrees: Tensor, seed: int) -> Images:
    """Split the images, then turn each part by every angle."""
    everything = digits() if recipe.images == "digits" else mnist()
    order = torch.randperm(len(everything), generator=stream(seed, "split"))
    train, test = everything.take(order[: recipe.train]), everything.take(order[recipe.train :])

    def turn(images: Tensor) -> Tensor:  # (n, height, width) to (T, n, pixels)
        return torch.stack([rotated(images, angle).flatten(1) for angle in degrees.tolist()])

    return Images(turn(train.images), train.labels, turn(test.images), test.labels)


def base_model(recipe: Recipe) -> nn.Sequential:
    """The perceptron with two hidden layers, untrained."""
    pixels = 64 if recipe.images == "digits" else 784
    widths = (pixels, recipe.hidden, recipe.hidden)
    return nn.Sequential(nn.Linear(pixels, widths[1]), nn.ReLU(), nn.Linear(widths[1], widths[2]), nn.ReLU(), nn.Linear(widths[2], 10))


def train_base(recipe: Recipe, upright: Tensor, labels: Tensor, seed: int) -> nn.Sequential:
    """Adam on upright images (n, pixels)."""
    with seeded(seed):
        model = base_model(recipe)
    draws = stream(seed, "base")

    def loss_at(step: int) -> Tensor:
        rows = torch.randint(len(labels), (recipe.batch,), generator=draws)
        return F.cross_entropy(model(upright[rows]), labels[rows])

    fit(model, loss_at, steps=recipe.base_steps, optimizer=torch.optim.Adam(model.parameters(), lr=recipe.base_rate))
    return model.eval()


def falling(optimizer: Optimizer, factor: Callable[[int], float]) -> Callable[[int, float], None]:
    """For ``after_step`` of fit: the rate of step s is the first one times ``factor(s)``."""
    first = [group["lr"] for group in optimizer.param_groups]

    def after(step: int, loss: float) -> None:
        for group, rate in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = rate * factor(step + 1)

    return after


def adapted(base: nn.Sequential, recipe: Recipe, tasks: int | None, seed: int, *, shared_start: bool = True) -> nn.Sequential:
    """A copy of the base model with ``tasks`` adapters side by side on every layer; its first A are drawn anew where it is trained."""
    with torch.random.fork_rng():
        model = base_model(recipe)
    model.load_state_dict(base.state_dict())
    add_lora(
        model, LAYERS, rank=recipe.rank, alpha=recipe.alpha, rank_stabilised=True, std=recipe.std,
        adapters=tasks, shared_start=shared_start, generator=stream(seed, "A"),
    )  # fmt: skip
    return model


def train_adapters(base: nn.Sequential, recipe: Recipe, images: Images, seed: int, *, shared_start: bool = True) -> Checkpoints:
    """Train the adapters of all tasks at once, on the same minibatches, and keep the last checkpoints of every run."""
    tasks = len(images.train)
    model = adapted(base, recipe, tasks, seed, shared_start=shared_start)
    draws, labels, states = stream(seed, "adapters"), images.train_labels, []

    def loss_at(step: int) -> Tensor:
        rows = torch.randint(len(labels), (recipe.batch,), generator=draws)
        logits = model(images.train[:, rows])  # (T, batch, 10)
        each = F.cross_entropy(logits.flatten(0, 1), labels[rows].repeat(tasks), reduction="none")
        return each.view(tasks, -1).mean(1).sum()  # each task's adapter gets the gradient that it would get alone

    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=recipe.lora_rate)

    def after_step(step: int, loss: float) -> None:
        if step >= recipe.lora_steps - recipe.last:
            states.append(lora_state(model))

    fit(model, loss_at, steps=recipe.lora_steps, optimizer=optimizer, schedule="linear", after_step=after_step)
    return Checkpoints.of_runs(states, last=recipe.last)


@torch.no_grad()
def accuracy(base: nn.Sequential, recipe: Recipe, layout: Layout, vectors: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """(T,) share of right answers when each task's adapter, (T, P), is merged and meets that task's images (T, n, pixels)."""
    model = adapted(base, recipe, len(vectors), 0).eval()
    load_lora(model, layout.split(vectors))
    merge_lora(model)
    right: Tensor = model(images).argmax(-1) == labels
    return right.float().mean(1)


def examples_of(recipe: Recipe, count: int, seed: int) -> Tensor:
    """The rows of the training images that describe a task, the same for every task."""
    return torch.randperm(count, generator=stream(seed, "examples"))[: recipe.examples]


def task_vectors(base: nn.Sequential, images: Tensor) -> Tensor:
    """(T, hidden) task vectors of the base model from example images (T, examples, pixels)."""
    return torch.stack([in_context_task_vector(base, [batch], layer=base[LAST_HIDDEN]) for batch in images])


# ------------------------------------------------------------------------------------------------------------------------- the generator


def build_generator(recipe: Recipe, size: int, condition: int, seed: int) -> CVAE:
    """An untrained generator for adapters of ``size`` numbers; P' follows from its kind."""
    with seeded(seed):
        if recipe.convolutional:
            return ConvCVAE(-(-size // 4096) * 4096, condition, latent=recipe.latent)
        return MLPCVAE(-(-size // MULTIPLE) * MULTIPLE, condition, latent=recipe.latent, hidden=recipe.units)


def train_generator(recipe: Recipe, vectors: Tensor, conditions: Tensor, seed: int, progress: str | None = None) -> CVAE:
    """Adam on normalised checkpoints (n, P) with the task vector of each (n, d)."""
    model = build_generator(recipe, vectors.shape[1], conditions.shape[1], seed)
    vectors, draws, noise = pad(vectors, model.length), stream(seed, "generator"), stream(seed, "noise")

    def loss_at(step: int) -> Tensor:
        rows = torch.randint(len(vectors), (recipe.generator_batch,), generator=draws)
        targets = vectors[rows]
        return cvae_loss(model(targets, conditions[rows], generator=noise), targets, recipe.kl_weight)

    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.rate, fused=True)
    half_cosine = falling(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / (2 * recipe.steps))))  # it ends half way, as published
    fit(model, loss_at, steps=recipe.steps, optimizer=optimizer, after_step=half_cosine, progress=progress)
    return model.eval()


def generated(model: CVAE, conditions: Tensor, statistics: Statistics, *, seed: int, z: Tensor | None = None) -> Tensor:
    """(T, P) an adapter for each task vector; one z is drawn for each, unless one (latent,) is given for all."""
    state = generate(model, conditions, statistics, generator=stream(seed, "z"), z=None if z is None else z[None])
    return statistics.layout.flatten(state)[:, 0]


# ------------------------------------------------------------------------------------------------------------------------------ the arms

CVAE_ARM, ORIGINAL, BASE, LOOKUP, AVERAGE, VAE = "CVAE", "original LoRA", "no LoRA", "lookup: mean checkpoint", "average LoRA", "unconditional VAE"
AT_ZERO, SHUFFLED, SHUFFLED_TRAIN = "CVAE, z = 0", "CVAE, vectors shuffled at generation", "CVAE, vectors shuffled before training"
WEAK, RAW = "CVAE, KL weight 0.005", "CVAE, raw task vectors"
RIDGE, RIDGE_RAW, HARMONICS = "ridge from task vector", "ridge from raw task vector", "ridge from 3 harmonics"
NEAREST, NEAREST_RAW = "nearest seen LoRA", "nearest seen LoRA by raw vectors"
STEP_ON, NEIGHBOURS = "neighbour's LoRA", "mean of two neighbours"
OWN_A = "own A: "
OWN_ORIGINAL, OWN_CVAE, OWN_NEIGHBOURS, OWN_PRODUCTS = (
    OWN_A + name for name in ("original", "CVAE", "mean of two neighbours", "mean of two products")
)
SAVED, GENERATOR, DECODER, PUBLISHED = "the seen LoRAs, saved", "generator", "its decoder alone", "published sizes"


@dataclass(frozen=True)
class Prepared:
    """What all generators of a seed start from.

    Attributes:
        angles: the tasks.
        images: of the tasks.
        base: the frozen model.
        checkpoints: of all tasks, the held-out ones too.
        raw: (T, hidden) task vectors.
        conditions: (T, components) whitened by the seen tasks.
    """

    angles: Angles
    images: Images
    base: nn.Sequential
    checkpoints: Checkpoints
    raw: Tensor
    conditions: Tensor

    @property
    def known(self) -> Checkpoints:
        """Those of the seen tasks, the only ones that anything learns from."""
        return self.checkpoints.only(self.angles.seen)


def prepare(recipe: Recipe, angles: Angles, seed: int, *, shared_start: bool = True, like: Prepared | None = None) -> Prepared:
    """Images, base model, adapters and task vectors of one seed; what does not change is taken from ``like``."""
    images = turned_images(recipe, angles.degrees, seed) if like is None else like.images
    base = train_base(recipe, images.train[0], images.train_labels, seed) if like is None else like.base
    checkpoints = train_adapters(base, recipe, images, seed, shared_start=shared_start)
    rows = examples_of(recipe, len(images.train_labels), seed)
    raw = task_vectors(base, images.train[:, rows])
    return Prepared(angles, images, base, checkpoints, raw, Whitening.fit(raw[angles.seen], angles.components)(raw))


def run(settings: IcmLoraSettings, seed: int, device: torch.device) -> Arms:
    """Train and measure every arm of one seed."""
    coarse = prepare(settings.recipe, settings.coarse, seed)
    found = compare(settings.recipe, coarse, seed, device, every=True)
    own = compare_own_starts(settings.recipe, prepare(settings.recipe, settings.coarse, seed, shared_start=False, like=coarse), seed, device)
    fine = compare(settings.recipe, prepare(settings.recipe, settings.fine, seed), seed, device, every=False)
    for arm, metrics in fine.items():
        found[arm] |= {f"{name}, densely spaced": value for name, value in metrics.items() if "accuracy" in name}
    return found | own | storages(settings.recipe, coarse)


def compare(recipe: Recipe, world: Prepared, seed: int, device: torch.device, *, every: bool, raw: bool = True) -> Arms:
    """The arms on one spacing of the angles; the main ones alone unless ``every``, the generator from raw task vectors where ``raw``."""
    seen, known, layout, conditions = world.angles.seen, world.known, world.checkpoints.layout, world.conditions
    statistics = Statistics.over(layout, known.vectors)
    normalised = statistics.normalise(known.vectors)
    lookup = world.checkpoints.means()  # (T, P)
    found: Arms = {}

    def judge(arm: str, vectors: Tensor) -> None:
        found[arm] = scores(recipe, world, vectors, statistics)

    def judge_generator(arm: str, given: Tensor, *, kl_weight: float = recipe.kl_weight) -> CVAE:
        own = replace(recipe, kl_weight=kl_weight)
        model = train_generator(own, normalised.to(device), given[known.task].to(device), seed).cpu()
        judge(arm, generated(model, given, statistics, seed=seed))
        with torch.no_grad():
            found[arm]["KL"] = kl_nats(model.encode(pad(normalised, model.length), given[known.task])).item()
        return model

    judge(ORIGINAL, world.checkpoints.vectors.view(len(lookup), recipe.last, -1)[:, -1])
    model = judge_generator(CVAE_ARM, conditions)
    for arm, vectors in simple_ways(recipe, world).items():
        judge(arm, vectors)
    if every:
        judge(BASE, torch.zeros_like(lookup))
        judge(LOOKUP, lookup)
        judge(AT_ZERO, generated(model, conditions, statistics, seed=seed, z=torch.zeros(model.latent)))
        judge(SHUFFLED, generated(model, conditions[deranged(len(conditions), seed)], statistics, seed=seed))
        judge_generator(VAE, conditions[:, :0])
        mixed = conditions.clone()
        mixed[seen] = conditions[seen[deranged(len(seen), seed)]]
        judge_generator(SHUFFLED_TRAIN, mixed)
        judge_generator(WEAK, conditions, kl_weight=0.005)
    if raw:
        judge_generator(RAW, world.raw)
    return found


PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


def best_ridge(recipe: Recipe, world: Prepared, features: Tensor) -> Ridge:
    """Ridge regression from features (T, k) to the seen tasks' adapters.

    Of :data:`PENALTIES` it takes the one whose predictions for each seen task, left out of the regression, do best on that task's training images.
    """
    seen, images = world.angles.seen, world.images
    lookup = world.checkpoints.means()[seen]
    fits = [Ridge(features[seen], lookup, penalty) for penalty in PENALTIES]
    right = [
        accuracy(world.base, recipe, world.checkpoints.layout, fit.left_out, images.train[seen], images.train_labels).mean().item() for fit in fits
    ]
    return fits[right.index(max(right))]


def simple_ways(recipe: Recipe, world: Prepared) -> dict[str, Tensor]:
    """(T, P) adapters for every task without a generator, from the mean checkpoints of the other seen tasks, or of all seen ones."""
    angles, conditions, lookup = world.angles, world.conditions, world.checkpoints.means()
    seen = angles.seen
    behind, ahead = seen[angular_neighbours(angles.degrees[seen], angles.degrees)].T
    itself = torch.arange(len(lookup))[:, None] == seen
    circle = harmonics(angles.degrees, 3)
    return {
        AVERAGE: lookup[seen].mean(0).expand_as(lookup),
        NEAREST: lookup[seen[nearest(conditions[seen], conditions, but=itself)]],
        NEAREST_RAW: lookup[seen[nearest(world.raw[seen], world.raw, but=itself)]],
        STEP_ON: lookup[ahead],
        NEIGHBOURS: (lookup[behind] + lookup[ahead]) / 2,
        RIDGE: best_ridge(recipe, world, conditions)(conditions),
        RIDGE_RAW: best_ridge(recipe, world, world.raw)(world.raw),
        HARMONICS: best_ridge(recipe, world, circle)(circle),
    }


def scores(recipe: Recipe, world: Prepared, vectors: Tensor, statistics: Statistics) -> dict[str, float]:
    """Accuracy of adapters (T, P), and their squared distance from the mean checkpoints, normalised so that predicting the mean gives about 1."""
    layout, images = world.checkpoints.layout, world.images
    right = accuracy(world.base, recipe, layout, vectors, images.test, images.test_labels)
    error = (statistics.normalise(vectors) - statistics.normalise(world.checkpoints.means())).square().mean(1)
    parts = {"seen": world.angles.seen, "held-out": world.angles.unseen}
    return {f"{name} accuracy": right[rows].mean().item() for name, rows in parts.items()} | {
        f"{name} error": error[rows].mean().item() for name, rows in parts.items()
    }


def deranged(count: int, seed: int) -> Tensor:
    """An order in which nothing stays where it is: each task gets another one's vector."""
    order = torch.randperm(count, generator=stream(seed, "shuffle"))
    return torch.empty_like(order).scatter(0, order, order.roll(1))


def compare_own_starts(recipe: Recipe, world: Prepared, seed: int, device: torch.device) -> Arms:
    """What is left when every run starts from an A of its own."""
    every = compare(recipe, world, seed, device, every=False, raw=False)
    found = {arm: every[plain] for arm, plain in ((OWN_ORIGINAL, ORIGINAL), (OWN_CVAE, CVAE_ARM), (OWN_NEIGHBOURS, NEIGHBOURS))}
    angles, images = world.angles, world.images
    pairs = angles.seen[angular_neighbours(angles.degrees[angles.seen], angles.degrees)]  # (T, 2)
    factors = world.checkpoints.layout.split(world.checkpoints.means()[pairs])  # (T, 2, *shape)
    state: dict[str, Tensor] = {}
    for name in LAYERS:
        a, b = mean_of_products(factors[f"{name}.lora_A"], factors[f"{name}.lora_B"])
        state |= {f"{name}.lora_A": a, f"{name}.lora_B": b}
    layout = Layout.of(state, lead=1)
    twice = replace(recipe, rank=2 * recipe.rank, alpha=recipe.alpha * 2**0.5)  # the same scale at twice the rank
    right = accuracy(world.base, twice, layout, layout.flatten(state), images.test, images.test_labels)
    found[OWN_PRODUCTS] = {"seen accuracy": right[angles.seen].mean().item(), "held-out accuracy": right[angles.unseen].mean().item()}
    return found


def storages(recipe: Recipe, world: Prepared) -> Arms:
    """Numbers that must be kept, here and at the published sizes."""
    size = world.checkpoints.layout.size
    model = build_generator(recipe, size, world.conditions.shape[1], 0)
    whole = count_parameters(model)
    half = sum(value.numel() for name, value in model.named_parameters() if name.startswith(("decoder", "open")))
    with torch.device("meta"):
        published = count_parameters(ConvCVAE(PUBLISHED_LENGTH, 768))
    return {
        SAVED: {"numbers": len(world.angles.seen) * size},
        GENERATOR: {"numbers": whole, "tasks to break even": storage(layout_size=size, generator_size=whole)},
        DECODER: {"numbers": half, "tasks to break even": storage(layout_size=size, generator_size=half)},
        PUBLISHED: {
            "numbers": published,
            "tasks to break even": storage(layout_size=PUBLISHED_SIZE, generator_size=published),
            "tasks to reach 1 %": storage(layout_size=PUBLISHED_SIZE, generator_size=PUBLISHED_BYTES // 4, share=0.01),
        },
    }


PUBLISHED_SIZE, PUBLISHED_LENGTH, PUBLISHED_BYTES = 1_929_928, 1_933_312, 283_000_000  # P, P' and the paper's 283 MB

EXPERIMENT = Experiment(
    paper="icm_lora",
    question="Does one generator give every task an adapter as good as its own, and does it make good ones for tasks that it has not seen?",
    scales={
        "quick": IcmLoraSettings(
            seeds=2,
            recipe=Recipe(base_steps=60, lora_steps=20, last=5, steps=30),
            coarse=Angles(45, (90, 270), 4),
            fine=Angles(30, (60, 240), 6),
        ),
        "laptop": IcmLoraSettings(seeds=5),
        "paper": IcmLoraSettings(
            seeds=3,
            recipe=Recipe(
                images="mnist",
                train=8000,
                hidden=512,
                base_steps=2000,
                base_rate=1e-3,
                rank=8,
                std=784**-0.5,
                lora_steps=2000,
                lora_rate=3e-3,
                last=49,
                convolutional=True,
                latent=256,
                kl_weight=0.005,
                steps=60_000,
                rate=2e-4,
                generator_batch=16,
            ),
        ),
    },
    claims=(
        Claim(CVAE_ARM, ORIGINAL, "seen accuracy", -0.03, says="On seen tasks a generated LoRA is as good as the original, within 0.03."),
        Claim(CVAE_ARM, VAE, "seen accuracy", 0.3, says="The task vector matters: far better than a generator that does not get it."),
        Claim(CVAE_ARM, AVERAGE, "seen accuracy", 0.3, says="Far better than one average LoRA for all tasks."),
        Claim(CVAE_ARM, SHUFFLED, "seen accuracy", 0.3, says="With another task's vector the generated LoRA is useless."),
        Claim(CVAE_ARM, NEAREST, "held-out accuracy", says="On unseen tasks it beats the nearest seen task's LoRA."),
        Claim(CVAE_ARM, RIDGE, "held-out accuracy", says="On unseen tasks it beats ridge regression from the task vector."),
        Claim(CVAE_ARM, HARMONICS, "held-out accuracy", says="On unseen tasks it beats ridge regression that is told the angle."),
        Claim(CVAE_ARM, NEAREST, "held-out accuracy, densely spaced", says="With three times as many tasks it beats the nearest seen task's LoRA."),
        Claim(RAW, NEAREST, "held-out accuracy, densely spaced", says="With three times as many tasks it does so from raw task vectors."),
        Claim(CVAE_ARM, RIDGE, "held-out accuracy, densely spaced", says="With three times as many tasks it beats ridge regression."),
        Claim(CVAE_ARM, STEP_ON, "held-out accuracy, densely spaced", says="With three times as many tasks it beats the LoRA of the next angle."),
        Claim(CVAE_ARM, SHUFFLED_TRAIN, "held-out accuracy", says="It learned how tasks relate: with vectors shuffled in training it is worse."),
        Claim(CVAE_ARM, OWN_CVAE, "held-out accuracy", says="It needs comparable weights: with an A of its own for every run it is worse."),
        Claim(CVAE_ARM, WEAK, "seen accuracy", says="A KL weight of 0.05 instead of the published 0.005 helps."),
        Claim(CVAE_ARM, RAW, "seen accuracy", says="Whitening the task vectors helps."),
        Claim(
            GENERATOR, SAVED, "numbers", higher_is_better=False, says="The generator takes less room than the LoRAs of the tasks that it has seen."
        ),
    ),
    run=run,
    units={
        "seen accuracy": "share right, mean over seen tasks",
        "held-out accuracy": "share right, mean over held-out tasks",
        "seen error": "squared error of normalised weights",
        "held-out error": "squared error of normalised weights",
        "KL": "nats a checkpoint",
        "seen accuracy, densely spaced": "share right, mean over seen tasks",
        "held-out accuracy, densely spaced": "share right, mean over held-out tasks",
        "numbers": "numbers to keep",
        "tasks to break even": "tasks",
        "tasks to reach 1 %": "tasks",
    },
)


# ------------------------------------------------------------------------------------------------------------------------ what ships


@dataclass(frozen=True)
class Shipped:
    """Settings of the explorer's tasks.

    Attributes:
        seed: of all draws.
        angles: the tasks.
        recipe: as in the experiment.
    """

    seed: int = 1000
    angles: Angles = COARSE
    recipe: Recipe = field(default_factory=Recipe)


class ShippedTasks(nn.Module):
    """Base model, generator, adapters and what is needed to describe a new task."""

    adapters: Tensor
    raw: Tensor
    centre: Tensor
    matrix: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, shipped: Shipped) -> None:
        super().__init__()
        recipe, angles = shipped.recipe, shipped.angles
        self.shipped, self.base = shipped, base_model(recipe).requires_grad_(False)
        self.layout = Layout.of(lora_state(adapted(self.base, recipe, None, 0)))
        self.generator = build_generator(recipe, self.layout.size, angles.components, shipped.seed)
        tasks, tensors = len(angles.degrees), len(self.layout.names)
        shapes = {"adapters": (tasks, self.layout.size), "raw": (tasks, recipe.hidden), "centre": (recipe.hidden,)}
        shapes |= {"matrix": (recipe.hidden, angles.components), "mean": (tensors,), "std": (tensors,)}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    @property
    def statistics(self) -> Statistics:
        """For all tasks."""
        return Statistics(self.layout, self.mean, self.std)

    def whiten(self, raw: Tensor) -> Tensor:
        """Task vectors (T, hidden) to what the generator takes, (T, components)."""
        return Whitening(self.centre, self.matrix)(raw)

    @property
    def conditions(self) -> Tensor:
        """(T, components) the tasks' whitened vectors."""
        return self.whiten(self.raw)


def train_shipped(shipped: Shipped, progress: str | None = None) -> ShippedTasks:
    """As the experiment does it."""
    world = prepare(shipped.recipe, shipped.angles, shipped.seed)
    known, made = world.known, ShippedTasks(shipped)
    statistics = Statistics.over(made.layout, known.vectors)
    generator = train_generator(shipped.recipe, statistics.normalise(known.vectors), world.conditions[known.task], shipped.seed, progress)
    whitening = Whitening.fit(world.raw[shipped.angles.seen], shipped.angles.components)
    made.base.load_state_dict(world.base.state_dict())
    made.generator.load_state_dict(generator.state_dict())
    made.adapters, made.raw, made.centre, made.matrix = world.checkpoints.means(), world.raw, whitening.mean, whitening.matrix
    made.mean, made.std = statistics.mean, statistics.std
    return made


def measure_shipped(made: nn.Module) -> dict[str, float]:
    """Accuracy of generated and original adapters, on seen and on held-out angles."""
    assert isinstance(made, ShippedTasks)
    shipped = made.shipped
    images = turned_images(shipped.recipe, shipped.angles.degrees, shipped.seed)
    found = {}
    for name, vectors in (("original", made.adapters), ("generated", generated(made.generator, made.conditions, made.statistics, seed=shipped.seed))):
        right = accuracy(made.base, shipped.recipe, made.layout, vectors, images.test, images.test_labels)
        found[f"{name}, seen"] = round(right[shipped.angles.seen].mean().item(), 4)
        found[f"{name}, held out"] = round(right[shipped.angles.unseen].mean().item(), 4)
    return found


CHECKPOINTS = tuple(
    Checkpoint(f"icm_lora-{angles.spacing}-degrees", Shipped(angles=angles), ShippedTasks, train_shipped, measure_shipped)
    for angles in (COARSE, FINE)
)
