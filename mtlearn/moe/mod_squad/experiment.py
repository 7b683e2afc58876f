"""Does mutual information make modules? One vision model for three image sets, taken apart and extended, with and without the loss."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mtlearn.datasets.digits import Digits, split_digits
from mtlearn.datasets.glyphs import centred_letters, letter_scenes
from mtlearn.datasets.image_folders import ade20k, coco, imagenet
from mtlearn.datasets.photos import Part, photo_segments
from mtlearn.lab.checkpoints import Checkpoint, load
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.cost import count_parameters
from mtlearn.moe.mod_squad.baselines import add_adapters, held_loss
from mtlearn.moe.mod_squad.method import LossWeights, add_task, extract, heterogeneous_loss, information_loss, layer_joints, most_used, usage_of
from mtlearn.moe.mod_squad.model import Batch, Head, ModularTransformer, Shape, task_loss

DIGITS, PHOTOS, LETTERS, NEW = "digits", "photos", "scenes", "letters"
HEADS: Mapping[str, Head] = {DIGITS: Head("image", 10), PHOTOS: Head("pixel", 4), LETTERS: Head("cell")}
PUBLISHED_HEADS: Mapping[str, Head] = {DIGITS: Head("image", 1000), PHOTOS: Head("pixel", 150), LETTERS: Head("cell")}  # ImageNet, ADE20K, COCO
SCORES: Mapping[str, str] = {DIGITS: "digits accuracy", PHOTOS: "photo pixels right", LETTERS: "scenes F1", NEW: "letters accuracy"}
CUTS: Mapping[str, float] = {"3/4": 3 / 4, "1/2": 1 / 2, "3/8": 3 / 8}


# worlds


@dataclass(frozen=True)
class World:
    """The image sets of one seed, task to images and labels; no image is in two, none of training is in the test."""

    train: Mapping[str, Batch]
    test: Mapping[str, Batch]

    @classmethod
    def of(cls, seed: int, *, train: int = 1500, test: int = 500, size: int = 16) -> "World":
        """Digits 8 x 8 enlarged (1,200 and 597 at most), crops of photos with segments, scenes of 1 or 2 letters, and single letters (held out)."""
        parts = {}
        for part, split, count in zip(("train", "test"), split_digits(generator=stream(seed, "digits")), (train, test), strict=True):
            parts[part] = _sets(part, split, count, size, seed)  # type: ignore[arg-type]
        return cls(parts["train"], parts["test"])

    @classmethod
    def published(cls, seed: int, *, train: int, test: int, size: int, cells: int) -> "World":
        """ImageNet, ADE20K and COCO in the places of digits, photos and scenes, so many of each; enlarged letters stay the new task."""
        parts: dict[str, dict[str, Batch]] = {}
        for part, count in (("train", train), ("test", test)):
            draws = {task: stream(seed, part, task) for task in (*HEADS, NEW)}
            letters, which = centred_letters(count, size=size, letter=size // 2, generator=draws[NEW])
            parts[part] = {
                DIGITS: imagenet(part, count, size=size, generator=draws[DIGITS]),  # type: ignore[arg-type]
                PHOTOS: ade20k(part, count, size=size, generator=draws[PHOTOS]),  # type: ignore[arg-type]
                LETTERS: coco(part, count, size=size, cells=cells, generator=draws[LETTERS]),  # type: ignore[arg-type]
                NEW: (_coloured(letters), which),
            }
        return cls(parts["train"], parts["test"])

    def to(self, device: torch.device) -> "World":
        """The same on another device."""
        moved = ({task: (x.to(device), y.to(device)) for task, (x, y) in part.items()} for part in (self.train, self.test))
        return World(*moved)


def _sets(part: Part, found: Digits, count: int, size: int, seed: int) -> dict[str, Batch]:
    draws = {task: stream(seed, part, task) for task in (PHOTOS, LETTERS, NEW)}
    scenes = letter_scenes(count, size=size, letter=size // 2, generator=draws[LETTERS])
    letters, which = centred_letters(count, size=size, letter=size // 2, generator=draws[NEW])
    cells = torch.cat([scenes.present[:, None], scenes.offset.permute(0, 3, 1, 2)], 1)  # (n, 3, rows, columns)
    enlarged = found.images[:count].repeat_interleave(size // 8, 1).repeat_interleave(size // 8, 2)
    return {
        DIGITS: (_coloured(enlarged), found.labels[:count]),
        PHOTOS: photo_segments(part, count, size=size, step=4, generator=draws[PHOTOS]),
        LETTERS: (_coloured(scenes.images), cells),
        NEW: (_coloured(letters), which),
    }


def _coloured(ink: Tensor) -> Tensor:
    """Grey images (n, height, width) in three channels."""
    return ink[:, None].expand(-1, 3, -1, -1).contiguous()


@torch.no_grad()
def score(model: ModularTransformer, task: str, data: Batch) -> float:
    """Share of the images or pixels that are right, or the F1 of cells with an object."""
    images, labels = data
    prediction = model(images, task).prediction
    if model.tasks[task].kind != "cell":
        return float((prediction.argmax(1) == labels)[labels >= 0].float().mean())
    found, present = prediction[:, 0] > 0, labels[:, 0] > 0.5
    return float(2 * (found & present).sum() / (found.sum() + present.sum()))


# training


@dataclass(frozen=True)
class Recipe:
    """How a model is trained on all sets.

    Attributes:
        steps, batch: of training; samples of each task in a step.
        learning_rate, warmup: of Adam, a linear rise and half a cosine to 0.
        start: standard deviation of the routers' first weights.
    """

    steps: int = 500
    batch: int = 24
    learning_rate: float = 3e-3
    warmup: int = 20
    start: float = 0.02


@dataclass(frozen=True)
class Arm:
    """A way to train on all sets.

    Attributes:
        weights: of the losses on the routes.
        dense: no experts.
        common: one router for all tasks.
    """

    weights: LossWeights = field(default_factory=LossWeights)
    dense: bool = False
    common: bool = False


INFORMATION = (0.0, 0.05, 0.15, 0.5)


def named(weight: float) -> str:
    """The arm with this weight of the mutual information."""
    return f"task routers, w = {weight:g}"


SINGLE, DENSE, SHARED = "one dense model a task", "dense", "common router, balanced"
PLAIN, MODULAR = named(0.0), named(0.15)
ARMS: Mapping[str, Arm] = {
    DENSE: Arm(dense=True),
    SHARED: Arm(LossWeights(cv=0.01), common=True),
    **{named(weight): Arm(LossWeights(information=weight)) for weight in INFORMATION},
}


def build(shape: Shape, arm: Arm, seed: int, *, heads: Mapping[str, Head] = HEADS, start: float = 0.02) -> ModularTransformer:
    """The untrained model of an arm; whatever two arms both have starts alike."""
    with seeded(seed):
        model = ModularTransformer(shape, heads, start=start)
        if not (arm.dense or arm.common):
            return model
        other = ModularTransformer(replace(shape, dense=arm.dense), heads, common=arm.common, start=start)
    first, own = model.state_dict(), other.state_dict()
    other.load_state_dict({name: first[name] if name in first and first[name].shape == value.shape else value for name, value in own.items()})
    return other


def train(
    model: ModularTransformer,
    world: World,
    recipe: Recipe,
    weights: LossWeights,
    seed: int,
    *,
    tasks: tuple[str, ...] = (DIGITS, PHOTOS, LETTERS),
    progress: str | None = None,
) -> ModularTransformer:
    """Train in place, each step on samples of every task; every arm of a seed sees the same samples."""
    device = model.position.device
    sets = {task: world.train[task] for task in tasks}
    draws = {task: stream(seed, "batches", task) for task in tasks}

    def loss_at(step: int) -> Tensor:
        batches = {}
        for task, (images, labels) in sets.items():
            rows = torch.randint(len(images), (recipe.batch,), generator=draws[task]).to(device)
            batches[task] = (images[rows], labels[rows])
        return heterogeneous_loss(model, batches, weights)

    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)
    fit(model, loss_at, steps=recipe.steps, optimizer=optimizer, schedule="cosine", warmup=min(recipe.warmup, recipe.steps), progress=progress)
    return model.eval()


# modules


@torch.no_grad()
def information(model: ModularTransformer, data: Mapping[str, Batch], *, chosen: bool) -> float:
    """I(task; expert) in nats, mean over the layers, with P(t) = 1 / 3: of the full softmax, or of the experts that are chosen."""
    routes = {task: model(data[task][0], task).routes for task in HEADS}
    return float(torch.stack([-information_loss(joint) for joint in layer_joints(routes, chosen=chosen)]).mean())


def cut(model: ModularTransformer, task: str, world: World, share: float, *, denominator: str = "original") -> ModularTransformer:
    """The sub-network of a task with a share of the experts, those that its training inputs use most."""
    kept = most_used(usage_of(model, task, world.train[task][0]), share)
    return extract(model, task, kept, denominator=denominator)  # type: ignore[arg-type]


def measure(model: ModularTransformer, world: World) -> dict[str, float]:
    """Scores on the test sets, whole and cut, and how far experts are bound to tasks."""
    found = {SCORES[task]: score(model, task, world.test[task]) for task in model.tasks}
    if not model.mixtures:
        return found
    found["mutual information"] = information(model, world.test, chosen=False)
    found["mutual information, chosen"] = information(model, world.test, chosen=True)
    for task in HEADS:
        for name, share in CUTS.items():
            lifted = cut(model, task, world, share)
            found[f"{SCORES[task]}, {name} kept"] = score(lifted, task, world.test[task])
            if task == DIGITS and name == "1/2":
                found["parameters, 1/2 kept"] = count_parameters(lifted)
    found["digits accuracy, 1/2 kept, columns dropped"] = score(cut(model, DIGITS, world, 0.5, denominator="kept"), DIGITS, world.test[DIGITS])
    found["share of digits accuracy left at 1/2"] = found["digits accuracy, 1/2 kept"] / max(found["digits accuracy"], 1e-9)
    return found


# a new task


@dataclass(frozen=True)
class Adaptation:
    """How a new task is learned.

    Attributes:
        train: see :func:`mtlearn.moe.mod_squad.method.add_task`.
        new_experts: a mixture.
        retrain: least-used experts, copied and trained.
        share: of the old experts that may be chosen, those that the task it starts from uses most.
        k: experts a token; None as in the old tasks.
        adapter: hidden units of an adapter after each block; 0 for none.
        held: weight of keeping old outputs on the new images.
    """

    train: str = "experts"
    new_experts: int = 0
    retrain: int = 0
    share: float = 1.0
    k: int | None = None
    adapter: int = 0
    held: float = 0.0


HEAD_ONLY, ROUTER, EXPERT, FULL = "head", "router + head", "router + new expert + head", "full fine-tuning"
ADAPTATIONS: Mapping[str, Adaptation] = {
    HEAD_ONLY: Adaptation("head"),
    ROUTER: Adaptation("router"),
    EXPERT: Adaptation("experts", new_experts=1),
    "router + least-used expert": Adaptation("experts", retrain=1),
    "half the experts + new one, k = 2": Adaptation("experts", new_experts=1, share=0.5, k=2),
    "adapters": Adaptation("head", adapter=17),
    FULL: Adaptation("all"),
    "full, old outputs held": Adaptation("all", held=1.0),
}


@dataclass(frozen=True)
class Lesson:
    """How a new task is trained: Adam at a constant rate, the same for every way."""

    steps: int = 400
    batch: int = 48
    learning_rate: float = 1e-2


def adapt(
    model: ModularTransformer, world: World, way: Adaptation, lesson: Lesson, seed: int, *, like: str = LETTERS, progress: str | None = None
) -> ModularTransformer:
    """A copy of a trained model that has learned to tell letters, its new router started from that of ``like``."""
    usage = usage_of(model, like, world.train[like][0])
    grown = copy.deepcopy(model)
    with seeded(seed):
        add_task(
            grown,
            NEW,
            Head("image", 10),
            like=like,
            new_experts=way.new_experts,
            retrain=way.retrain,
            usage=usage,
            kept=most_used(usage, way.share) if way.share < 1 else None,
            k=way.k,
            train=way.train,  # type: ignore[arg-type]
        )
        if way.adapter:
            add_adapters(grown, NEW, way.adapter)
    with torch.no_grad():
        before = {task: model(world.train[NEW][0], task).prediction for task in model.tasks} if way.held else {}
    return learn(grown, world, lesson, seed, before=before, held=way.held, progress=progress)


def learn(
    grown: ModularTransformer,
    world: World,
    lesson: Lesson,
    seed: int,
    *,
    before: Mapping[str, Tensor] | None = None,
    held: float = 0.0,
    progress: str | None = None,
) -> ModularTransformer:
    """Train what is trainable of ``grown`` on letters, in place; where ``held`` is positive, also to keep the outputs ``before``."""
    images, labels = world.train[NEW]
    draws = stream(seed, "letters batches")

    def loss_at(step: int) -> Tensor:
        rows = torch.randint(len(images), (lesson.batch,), generator=draws).to(images.device)
        loss = task_loss(grown.tasks[NEW], grown(images[rows], NEW).prediction, labels[rows])
        if held and before:
            loss = loss + held * held_loss(grown, {task: target[rows] for task, target in before.items()}, images[rows])
        return loss

    trained = [parameter for parameter in grown.parameters() if parameter.requires_grad]
    fit(grown, loss_at, steps=lesson.steps, optimizer=torch.optim.Adam(trained, lr=lesson.learning_rate, fused=True), progress=progress)
    return grown.eval()


@torch.no_grad()
def forgetting(before: ModularTransformer, after: ModularTransformer, world: World) -> float:
    """The largest change of any output of any old task on its test inputs."""
    moves = (
        (before(images, task).prediction - after(images, task).prediction).abs().max()
        for task, (images, _) in world.test.items()
        if task in before.tasks
    )
    return float(torch.stack(list(moves)).max())


def adaptation_arms(model: ModularTransformer, world: World, lesson: Lesson, seed: int) -> Arms:
    """Every way to learn letters, from one trained model."""
    arms: Arms = {}
    for name, way in ADAPTATIONS.items():
        grown = adapt(model, world, way, lesson, seed)
        arms[name] = {
            SCORES[NEW]: score(grown, NEW, world.test[NEW]),
            "trained parameters": count_parameters(grown, trainable=True),
            "change of old outputs": forgetting(model, grown, world),
            SCORES[DIGITS]: score(grown, DIGITS, world.test[DIGITS]),
        }
    return arms


# the experiment


@dataclass(frozen=True)
class ModSquadSettings(Settings):
    """Settings of a scale.

    Attributes:
        shape: of the model.
        recipe: of training on all sets.
        lesson: of the new task.
        train, test: images a task (digits have 1,200 and 597 at most).
        world: ``small`` (:meth:`World.of`) or ``published`` (:meth:`World.published`).
    """

    world: str = "small"
    shape: Shape = field(default_factory=Shape)
    recipe: Recipe = Recipe()
    lesson: Lesson = Lesson()
    train: int = 1500
    test: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.world not in ("small", "published"):
            raise ValueError(f"world must be 'small' or 'published', got {self.world!r}")


def run(settings: ModSquadSettings, seed: int, device: torch.device) -> Arms:
    """One seed: every arm on the same images from the same weights; then letters from the model with modules."""
    shape, recipe = settings.shape, settings.recipe
    if settings.world == "small":
        world, heads = World.of(seed, train=settings.train, test=settings.test, size=shape.size), HEADS
    else:
        world = World.published(seed, train=settings.train, test=settings.test, size=shape.size, cells=shape.size // shape.patch)
        heads = PUBLISHED_HEADS
    world = world.to(device)
    models = {}
    for name, arm in ARMS.items():
        models[name] = train(build(shape, arm, seed, heads=heads, start=recipe.start).to(device), world, recipe, arm.weights, seed)
    arms = {name: measure(model, world) for name, model in models.items()}
    arms[SINGLE] = {}
    for task in HEADS:
        alone = train(build(shape, ARMS[DENSE], seed, heads=heads).to(device), world, recipe, LossWeights(), seed, tasks=(task,))
        arms[SINGLE][SCORES[task]] = score(alone, task, world.test[task])
    return arms | adaptation_arms(models[MODULAR], world, settings.lesson, seed)


_SHARE, _INFORMATION = "share right", "nats, mean over layers"
EXPERIMENT = Experiment(
    paper="mod_squad",
    question="Does tying experts to tasks by mutual information make modules that can be taken out, and built on, without loss?",
    scales={
        "quick": ModSquadSettings(seeds=2, recipe=Recipe(steps=8, batch=8), lesson=Lesson(steps=3, batch=8), train=120, test=60),
        "laptop": ModSquadSettings(seeds=5),
        "paper": ModSquadSettings(
            seeds=3,
            world="published",
            shape=Shape(
                size=224,
                patch=16,
                width=768,
                depth=12,
                heads=24,
                top_heads=12,
                head_width=128,
                experts=16,
                top_experts=4,
                hidden=768,
            ),
            recipe=Recipe(steps=50_000, batch=64, learning_rate=4e-4, warmup=5_000),
            lesson=Lesson(steps=2_000, batch=64, learning_rate=4e-4),
            train=10_000,
            test=1_000,
        ),
    },
    claims=(
        Claim(MODULAR, PLAIN, "digits accuracy, 1/2 kept", 0.05, says="With half the experts cut, digits lose less where information was maximised."),
        Claim(MODULAR, PLAIN, "mutual information", 0.5, says="The loss binds experts to tasks: information rises by half a nat (of log 3) or more."),
        Claim(MODULAR, PLAIN, SCORES[PHOTOS], -0.01, says="Uncut, segmentation pays at most one point for being modular."),
        Claim(MODULAR, PLAIN, SCORES[LETTERS], -0.01, says="Uncut, detection pays at most one point for being modular."),
        Claim(MODULAR, PLAIN, SCORES[DIGITS], -0.01, says="Uncut, digits pay at most one point for being modular."),
        Claim(PLAIN, SHARED, SCORES[DIGITS], says="A router a task serves digits better than one router for all."),
        Claim(MODULAR, DENSE, SCORES[DIGITS], says="The modular mixture beats the dense model of equal cost on digits."),
        Claim(
            EXPERT, None, "change of old outputs", -1e-12, higher_is_better=False, says="A new task with a new expert changes no old output at all."
        ),
        Claim(
            EXPERT, HEAD_ONLY, SCORES[NEW], 0.03, says="A new expert and router learn a new task better than a new head alone, by 3 points or more."
        ),
        Claim(EXPERT, FULL, SCORES[NEW], -0.05, says="A new expert and router learn a new task within 5 points of full fine-tuning."),
    ),
    run=run,
    units={
        **dict.fromkeys((SCORES[DIGITS], SCORES[PHOTOS], SCORES[NEW]), _SHARE),
        SCORES[LETTERS]: "F1 of cells with a letter",
        "mutual information": _INFORMATION,
        "mutual information, chosen": _INFORMATION,
        **{f"{SCORES[task]}, {name} kept": "share right" if task != LETTERS else "F1" for task in HEADS for name in CUTS},
        "digits accuracy, 1/2 kept, columns dropped": _SHARE,
        "share of digits accuracy left at 1/2": "of the whole model's",
        "parameters, 1/2 kept": "parameters",
        "trained parameters": "parameters",
        "change of old outputs": "largest, of any output on test images",
    },
)


# the models that the explorers open


@dataclass(frozen=True)
class Squads:
    """Settings of the shipped models: one for each weight of the mutual information, all from the same weights on the same images.

    Attributes:
        seed: of everything.
        weights: of the mutual information.
        recipe: of training.
    """

    seed: int = 0
    weights: tuple[float, ...] = INFORMATION
    recipe: Recipe = Recipe()


EIGHTHS = tuple(range(2, 9))  # shares of the experts that explorers keep; with one eighth not even one head of six would be left


def key_of(weight: float) -> str:
    """A weight as the name of a module."""
    return f"w{round(100 * weight):03d}"


def build_squads(settings: Squads) -> nn.ModuleDict:
    """Untrained models by :func:`key_of`."""
    return nn.ModuleDict({key_of(weight): build(Shape(), ARMS[MODULAR], settings.seed, start=settings.recipe.start) for weight in settings.weights})


def train_squads(settings: Squads, progress: str | None) -> nn.ModuleDict:
    """Train every model."""
    world, models = World.of(settings.seed), build_squads(settings)
    for weight in settings.weights:
        model = models[key_of(weight)]
        assert isinstance(model, ModularTransformer)
        train(model, world, settings.recipe, LossWeights(information=weight), settings.seed, progress=progress)
    return models


def measure_squads(models: nn.Module) -> dict[str, float]:
    """Scores of every task under every cut, on its test set."""
    assert isinstance(models, nn.ModuleDict)
    world, found = World.of(SQUADS.settings.seed), {}
    for name, model in models.items():
        assert isinstance(model, ModularTransformer)
        found[f"{name}, information"] = information(model, world.test, chosen=False)
        for task in HEADS:
            for eighths in EIGHTHS:
                found[f"{name}, {task}, {eighths}/8"] = score(cut(model, task, world, eighths / 8), task, world.test[task])
    return found


SQUADS = Checkpoint("mod_squad-squads", Squads(), build_squads, train_squads, measure_squads)


@dataclass(frozen=True)
class Builds:
    """Settings of the shipped adaptations to letters, all from the shipped model with ``weight``: what each has learned, and nothing else.

    Attributes:
        seed: of everything.
        weight: of the mutual information of the model that is adapted.
        bases: tasks whose routers the new one starts as.
        shares: of the old experts that may be chosen, those that the base uses most.
        fewer: subtracted from k.
        ways: what is trained: ``head``, ``router``, or a number of new experts.
        lesson: of training.
    """

    seed: int = 0
    weight: float = 0.15
    bases: tuple[str, ...] = (DIGITS, PHOTOS, LETTERS)
    shares: tuple[float, ...] = (1.0, 0.5)
    fewer: tuple[int, ...] = (0, 1)
    ways: tuple[str, ...] = ("head", "router", "1", "2")
    lesson: Lesson = Lesson(steps=250)

    @property
    def grid(self) -> list[tuple[str, float, int, str]]:
        """Every combination."""
        return list(itertools.product(self.bases, self.shares, self.fewer, self.ways))


def build_key(base: str, share: float, fewer: int, way: str) -> str:
    """A combination as the name of a module."""
    return f"{base}_{round(100 * share)}_{fewer}_{way}"


def grown_model(model: ModularTransformer, usage: Sequence[Tensor], base: str, share: float, fewer: int, way: str) -> ModularTransformer:
    """A copy of ``model`` with the new task, untrained; what is to be trained has its flag set."""
    grown = copy.deepcopy(model)
    new = int(way) if way.isdigit() else 0
    kept = most_used(usage, share)
    add_task(grown, NEW, Head("image", 10), like=base, new_experts=new, kept=kept, train="experts" if new else way)  # type: ignore[arg-type]
    for mixture in grown.mixtures:
        mixture.router(NEW).k -= fewer
    return grown


class Learned(nn.Module):
    """The trained parameters of an adaptation, in the order of the model's parameters."""

    def __init__(self, grown: ModularTransformer) -> None:
        super().__init__()
        self.values = nn.ParameterList(p.detach().clone() for p in grown.parameters() if p.requires_grad)

    def into(self, grown: ModularTransformer) -> ModularTransformer:
        """Put them into a model of the same combination, in place."""
        with torch.no_grad():
            for parameter, value in zip((p for p in grown.parameters() if p.requires_grad), self.values, strict=True):
                parameter.copy_(value)
        return grown.eval()


def _base(settings: Builds, *, trained: bool) -> ModularTransformer:
    """The shipped model, or one of its shape, which is enough to know what is trained."""
    if not trained:
        return build(Shape(), ARMS[MODULAR], settings.seed)
    model = load(SQUADS).get_submodule(key_of(settings.weight))
    assert isinstance(model, ModularTransformer)
    return model


def build_builds(settings: Builds) -> nn.ModuleDict:
    """Untrained adaptations of every combination."""
    model = _base(settings, trained=False)
    usage = [torch.arange(len(mixture.bank), dtype=torch.float32) for mixture in model.mixtures]  # any: shapes do not depend on which are kept
    return nn.ModuleDict({build_key(*row): Learned(grown_model(model, usage, *row)) for row in settings.grid})


def train_builds(settings: Builds, progress: str | None) -> nn.ModuleDict:
    """Train every combination on letters."""
    world, model = World.of(settings.seed), _base(settings, trained=True)
    usage = {base: usage_of(model, base, world.train[base][0]) for base in settings.bases}
    found = nn.ModuleDict()
    for row in settings.grid:
        with seeded(settings.seed):
            grown = grown_model(model, usage[row[0]], *row)
        learn(grown, world, settings.lesson, settings.seed, progress=progress)
        found[build_key(*row)] = Learned(grown)
    return found


def measure_builds(learned: nn.Module) -> dict[str, float]:
    """Accuracy on letters' test set of every combination, and of full fine-tuning by the same lesson."""
    assert isinstance(learned, nn.ModuleDict)
    settings: Builds = BUILDS.settings
    world, model = World.of(settings.seed), _base(settings, trained=True)
    usage = {base: usage_of(model, base, world.train[base][0]) for base in settings.bases}
    found = {}
    for row in settings.grid:
        values = learned[build_key(*row)]
        assert isinstance(values, Learned)
        found[build_key(*row)] = score(values.into(grown_model(model, usage[row[0]], *row)), NEW, world.test[NEW])
    found["full fine-tuning"] = score(adapt(model, world, ADAPTATIONS[FULL], settings.lesson, settings.seed), NEW, world.test[NEW])
    return found


BUILDS = Checkpoint("mod_squad-builds", Builds(), build_builds, train_builds, measure_builds)
CHECKPOINTS: tuple[Checkpoint, ...] = (SQUADS, BUILDS)
