"""Does one learned mask, shared by all tasks, take interference out of a merged model without a label, and what else could explain a gain?

Every arm of a seed merges the same models and, where it learns, sees batches of the same unlabelled inputs: those of the validation part, which is
the clean setting (tested on others), or those of the test itself, as in the paper (transductive). The scale of task arithmetic and the start of all
coefficients is the best of a grid on validation labels; controls get a scale of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mtlearn.datasets.digits import TRANSFORMS, transformed
from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import History, fit
from mtlearn.lab.seeds import stream
from mtlearn.merging.composition import Composition, entropy
from mtlearn.merging.concrete.method import (
    Algorithm,
    ConcreteMerging,
    Loss,
    magnitude_masks,
    masked_vectors,
    random_masks,
    shuffled,
    summed_entropy,
)
from mtlearn.merging.concrete.worlds import PagesSettings, Part, World, world_of_digits, world_of_pages
from mtlearn.merging.task_vectors import State, add, apply, average, flatten, ties, unflatten
from mtlearn.merging.transformed_digits import CLASSES, FamilySettings, MLPEncoder, make_family

GRID = tuple(round(0.05 * k, 2) for k in range(1, 31))
LOOK = 25  # steps between two looks at the validation labels, which choose nothing but the metric "best step"


@dataclass(frozen=True)
class ConcreteSettings(Settings):
    """Settings of a run.

    Attributes:
        family: the vision domain.
        pages: the language domain.
        weak: labelled images of each transform that the weak generalist's pretraining saw.
        batch: unlabelled inputs of each task in a step.
        mask_steps, mask_rate, temperature: of the mask's training by Adam.
        inner_rate, clamp: of the inner step.
        adapt_steps, adapt_rate: of AdaMerging and of phase two, by Adam; the rate is the better of 0.003 and 0.01 for AdaMerging on other seeds.
        label_rate: of the coefficients that are trained by labels; on those seeds 0.03 and 0.1 were alike and better than less.
        seen: tasks from which the mask is learned in the arm on unseen tasks.
    """

    family: FamilySettings = field(default_factory=FamilySettings)
    pages: PagesSettings = field(default_factory=PagesSettings)
    weak: int = 0
    batch: int = 32
    mask_steps: int = 250
    mask_rate: float = 0.03
    temperature: float = 0.5
    inner_rate: float = 0.03
    clamp: bool = False
    adapt_steps: int = 300
    adapt_rate: float = 0.003
    label_rate: float = 0.03
    seen: int = 6


PRETRAINED, OWN, AVERAGE, ARITHMETIC, TIES = "pretrained", "own models", "average", "task arithmetic", "TIES"
ADA_TASK, ADA_BLOCK = "AdaMerging, task-wise", "AdaMerging, layer-wise"
CONCRETE, CONCRETE_TASK, CONCRETE_BLOCK = "Concrete Task Arithmetic", "Concrete AdaMerging, task-wise", "Concrete AdaMerging, layer-wise"
SOFT, COINS = "Concrete, one soft sample", "Concrete, one sample of coins"
SHUFFLED, RANDOM, MAGNITUDE = "mask shuffled", "random mask", "magnitude mask"
OWN_MASKED, LABELLED_MASK, LABELLED_COEFFICIENTS = "own models, shared mask", "mask, by labels", "coefficients, by labels"


def entropy_of(world: World, part: Part, batch: int, draws: torch.Generator) -> Loss:
    """The loss that all unlabelled arms share: fresh inputs of each task, and the summed entropy of what a model says of them."""
    return lambda model: summed_entropy(world.predict(model, world.sample(part, batch, generator=draws)[0]))


def learn_mask(
    world: World, settings: ConcreteSettings, *, scale: float, loss: Loss, draws: torch.Generator, algorithm: Algorithm = "arithmetic",
    after_step: Callable[[int, ConcreteMerging], None] | None = None,
) -> tuple[ConcreteMerging, History]:  # fmt: skip
    """Train the logits of a shared mask on ``loss``."""
    merging = ConcreteMerging(
        world.encoder, world.vectors, algorithm=algorithm, scale=scale, temperature=settings.temperature, inner_rate=settings.inner_rate,
        clamp=settings.clamp and algorithm == "task",
    )  # fmt: skip
    optimizer = torch.optim.Adam([merging.mask.logits], lr=settings.mask_rate)
    history = fit(
        merging.mask, lambda step: merging.objective(loss, generator=draws), steps=settings.mask_steps, optimizer=optimizer,
        after_step=None if after_step is None else lambda step, _: after_step(step, merging),
    )  # fmt: skip
    return merging, history


class BestStep:
    """The weights with the highest validation accuracy, looked at every :data:`LOOK` steps and at the start: what stopping by labels would give."""

    def __init__(self, world: World) -> None:
        self.world, self.highest, self.state = world, -1.0, dict(world.base)

    def look(self, state: State) -> None:
        """Keep ``state`` if it is the best so far."""
        found = float(self.world.accuracy(state, "validation").mean())
        if found > self.highest:
            self.highest, self.state = found, dict(state)


def adapt(world: World, composition: Composition, settings: ConcreteSettings, loss: Loss) -> dict[str, Tensor]:
    """AdaMerging, or phase two: train the coefficients; the weights at the best step."""
    best = BestStep(world)
    best.look(composition.state())

    def look(step: int, _: float) -> None:
        if (step + 1) % LOOK == 0 or step + 1 == settings.adapt_steps:
            best.look(composition.state())

    optimizer = torch.optim.Adam([composition.coefficients], lr=settings.adapt_rate)
    fit(composition, lambda step: loss(composition), steps=settings.adapt_steps, optimizer=optimizer, after_step=look)
    return best.state


def merge_unlabelled(
    world: World, settings: ConcreteSettings, seed: int, part: Part, scale: float
) -> tuple[dict[str, dict[str, State]], ConcreteMerging]:
    """Every arm that learns from the unlabelled inputs of ``part``: arm to its weights "at the end" and at the "best step"; and the learned mask."""

    def loss() -> Loss:  # every arm sees the same sequence of batches
        return entropy_of(world, part, settings.batch, stream(seed, "batches", part))

    found: dict[str, dict[str, State]] = {}
    for name, per in ((ADA_TASK, "task"), (ADA_BLOCK, "block")):
        composition = Composition(world.encoder, world.vectors, per=per, initial=scale)  # type: ignore[arg-type]
        best = adapt(world, composition, settings, loss())
        found[name] = {"at the end": composition.state(), "best step": best}
    best_mask = BestStep(world)
    best_mask.look(apply(world.base, add(world.vectors), scale))

    def look(step: int, merging: ConcreteMerging) -> None:
        if (step + 1) % LOOK == 0 or step + 1 == settings.mask_steps:
            best_mask.look(merging.merged("mean").state())

    concrete, _ = learn_mask(world, settings, scale=scale, loss=loss(), draws=stream(seed, "mask"), after_step=look)
    found[CONCRETE] = {"at the end": concrete.merged("mean").state(), "best step": best_mask.state}
    for name, kind in ((SOFT, "continuous"), (COINS, "discrete")):
        found[name] = {"at the end": concrete.merged(kind, generator=stream(seed, "final mask")).state()}  # type: ignore[arg-type]
    for name, algorithm in ((CONCRETE_TASK, "task"), (CONCRETE_BLOCK, "block")):
        learned, _ = learn_mask(world, settings, scale=scale, loss=loss(), draws=stream(seed, "mask"), algorithm=algorithm)  # type: ignore[arg-type]
        composition = learned.merged("mean")
        best = adapt(world, composition, settings, entropy_of(world, part, settings.batch, stream(seed, "phase two", part)))
        found[name] = {"at the end": composition.state(), "best step": best}
    return found, concrete


def fixed_rules(world: World, scale: float) -> dict[str, State]:
    """The arms that learn nothing."""
    base, summed, tied = world.base, add(world.vectors), ties(world.vectors)
    wide = tuple(2 * value for value in GRID)  # a mean of agreeing entries is shorter than a sum
    return {
        PRETRAINED: base,
        AVERAGE: apply(base, average(world.vectors)),
        ARITHMETIC: apply(base, summed, scale),
        TIES: apply(base, tied, world.best_scale(tied, wide)),
    }


def controls(world: World, mask: State, seed: int) -> dict[str, State]:
    """Masks that share something with the learned one, but not which weights it chose; each with the best scale of its own."""
    summed = add(world.vectors)
    density = {name: value.mean() for name, value in mask.items()}
    masks = {
        SHUFFLED: shuffled(mask, generator=stream(seed, "shuffled")),
        RANDOM: random_masks(density, summed, generator=stream(seed, "random")),
        MAGNITUDE: magnitude_masks(summed, density),
    }
    found: dict[str, State] = {}
    for name, values in masks.items():
        (vector,) = masked_vectors([summed], values)
        found[name] = apply(world.base, vector, world.best_scale(vector, GRID))
    return found


def by_labels(world: World, settings: ConcreteSettings, seed: int, scale: float) -> dict[str, State]:
    """The same mask, and a coefficient a task and block, trained on cross-entropy with the validation labels: what labels would have bought."""

    def loss() -> Loss:
        draws = stream(seed, "labelled")

        def cross(model: Callable[..., Tensor]) -> Tensor:
            inputs, answers = world.sample("validation", settings.batch, generator=draws)
            return cross_entropy(world.predict(model, inputs).flatten(0, 1), answers.flatten())

        return cross

    learned, _ = learn_mask(world, settings, scale=scale, loss=loss(), draws=stream(seed, "mask"))
    composition = Composition(world.encoder, world.vectors, per="block", initial=scale)
    adapt(world, composition, replace(settings, adapt_steps=settings.mask_steps, adapt_rate=settings.label_rate), loss())
    return {LABELLED_MASK: learned.merged("mean").state(), LABELLED_COEFFICIENTS: composition.state()}


def mask_of(merging: ConcreteMerging) -> dict[str, Tensor]:
    """σ(x), without a gradient."""
    return {name: value.detach() for name, value in merging.mask.probabilities().items()}


def mean_accuracy(world: World, states: State | list[dict[str, Tensor]]) -> float:
    """Over the tasks, on the test inputs."""
    return float(world.accuracy(states).mean())


def run(settings: ConcreteSettings, seed: int, device: torch.device) -> Arms:
    """Merge and measure every arm of one seed."""
    found: Arms = {}

    def note(arm: str, **metrics: float) -> None:
        found.setdefault(arm, {}).update({name.replace("__", ", ").replace("_", " "): value for name, value in metrics.items()})

    world = world_of_digits(make_family(settings.family, seed)).to(device)
    scale = world.best_scale(add(world.vectors), GRID)
    fixed = fixed_rules(world, scale)
    own = [apply(world.base, vector) for vector in world.vectors]
    for arm, state in fixed.items():
        value = mean_accuracy(world, state)
        note(arm, accuracy=value, accuracy__transductive=value, accuracy__best_step=value)
    note(OWN, accuracy=mean_accuracy(world, own))
    learned, concrete = merge_unlabelled(world, settings, seed, "validation", scale)
    mask = mask_of(concrete)
    for arm, states in learned.items():
        note(arm, accuracy=mean_accuracy(world, states["at the end"]))
        if "best step" in states:
            note(arm, accuracy__best_step=mean_accuracy(world, states["best step"]))
    for arm, state in controls(world, mask, seed).items():
        note(arm, accuracy=mean_accuracy(world, state))
    for arm, state in by_labels(world, settings, seed, scale).items():
        note(arm, accuracy=mean_accuracy(world, state), accuracy__adapted_inputs=float(world.accuracy(state, "validation").mean()))
    masked = [apply(world.base, vector) for vector in masked_vectors(world.vectors, mask)]
    note(OWN_MASKED, accuracy=mean_accuracy(world, masked))
    everything = flatten(mask)
    note(CONCRETE, share_kept=float(everything.mean()), almost_dropped=float((everything < 0.1).float().mean()))
    for arm in (ARITHMETIC, CONCRETE):
        state = fixed[arm] if arm in fixed else learned[arm]["at the end"]
        note(arm, entropy=entropy_on_test(world, state), most_frequent_class=float(world.shares(state).max()))

    for arm, states in merge_unlabelled(world, settings, seed, "test", scale)[0].items():
        note(arm, accuracy__transductive=mean_accuracy(world, states["at the end"]))

    unseen_tasks(world, settings, seed, scale, note)
    weak = world_of_digits(make_family(replace(settings.family, labelled=settings.weak), seed)).to(device)
    scale = weak.best_scale(add(weak.vectors), GRID)
    loss = entropy_of(weak, "validation", settings.batch, stream(seed, "batches", "weak"))
    collapsed, _ = learn_mask(weak, settings, scale=scale, loss=loss, draws=stream(seed, "mask"))
    for arm, state in ((ARITHMETIC, apply(weak.base, add(weak.vectors), scale)), (CONCRETE, collapsed.merged("mean").state())):
        note(arm, accuracy__weak_start=mean_accuracy(weak, state), entropy__weak_start=entropy_on_test(weak, state))
        note(arm, most_frequent_class__weak_start=float(weak.shares(state).max()))
    pages = world_of_pages(settings.pages, seed).to(device)
    scale = pages.best_scale(add(pages.vectors), GRID)
    learned, concrete = merge_unlabelled(pages, settings, seed, "validation", scale)
    own = [apply(pages.base, vector) for vector in pages.vectors]
    ends = {arm: states["at the end"] for arm, states in learned.items()}
    for arm, state in {**fixed_rules(pages, scale), **ends, **controls(pages, mask_of(concrete), seed)}.items():
        note(arm, accuracy__language=mean_accuracy(pages, state))
    note(OWN, accuracy__language=mean_accuracy(pages, own))
    masked = [apply(pages.base, vector) for vector in masked_vectors(pages.vectors, mask_of(concrete))]
    note(OWN_MASKED, accuracy__language=mean_accuracy(pages, masked))
    return found


def unseen_tasks(world: World, settings: ConcreteSettings, seed: int, scale: float, note: Callable[..., None]) -> None:
    """A mask learned on some of the tasks, worn by the merge of all of them."""
    seen = list(range(min(settings.seen, len(world.names) - 1)))
    some = world.only(seen)
    fewer = some.best_scale(add(some.vectors), GRID)
    loss = entropy_of(some, "validation", settings.batch, stream(seed, "batches", "seen"))
    concrete, _ = learn_mask(some, settings, scale=fewer, loss=loss, draws=stream(seed, "mask"))
    mask = mask_of(concrete)
    (vector,) = masked_vectors([add(world.vectors)], mask)
    own = [apply(world.base, own) for own in masked_vectors(world.vectors, mask)]
    for arm, states in (
        (ARITHMETIC, apply(world.base, add(world.vectors), scale)),
        (CONCRETE, apply(world.base, vector, scale)),
        (OWN, [apply(world.base, vector) for vector in world.vectors]),
        (OWN_MASKED, own),
    ):
        each = world.accuracy(states)
        note(arm, accuracy__seen_tasks=float(each[seen].mean()), accuracy__unseen_tasks=float(each[len(seen) :].mean()))


def entropy_on_test(world: World, state: State) -> float:
    """Mean entropy of the predictions for the test inputs, in nats."""
    return float(torch.stack([entropy(rows) for rows in world.logits(state)]).mean())


EXPERIMENT = Experiment(
    paper="concrete",
    question="Does one learned mask, shared by all tasks, take interference out of a merged model without a label?",
    scales={
        "quick": ConcreteSettings(
            seeds=2,
            family=FamilySettings(tasks=3, width=32, features=16, pretrain_steps=60, tune_steps=30, train=400, validation=100),
            pages=PagesSettings(libraries=("numpy", "networkx"), topics=3, dim=32, pretrain_steps=60, tune_steps=30),
            mask_steps=15, adapt_steps=15, batch=16, seen=2,
        ),
        "laptop": ConcreteSettings(seeds=5),
        "paper": ConcreteSettings(
            seeds=3,
            family=FamilySettings(source="mnist", encoder="conv", width=32, features=64, train=5000, validation=1000, labelled=200,
                                  pretrain_steps=2000, pretrain_rate=1e-3, tune_steps=1000, tune_rate=3e-4),
            batch=16, mask_steps=2000, mask_rate=1e-3, inner_rate=1.0, clamp=True, adapt_steps=1000, adapt_rate=1e-3,
        ),
    },
    claims=(
        Claim(CONCRETE, ARITHMETIC, "accuracy", says="The learned mask is better than task arithmetic, on inputs it has not seen."),
        Claim(CONCRETE, SHUFFLED, "accuracy", says="It is better than the same mask with its values shuffled within each tensor."),
        Claim(CONCRETE, ARITHMETIC, "accuracy", 0.01, says="The learned mask adds more than a point to task arithmetic, on inputs it has not seen."),
        Claim(CONCRETE, SHUFFLED, "accuracy", 0.01, says="The same mask with its values shuffled within each tensor does not do it."),
        Claim(CONCRETE, RANDOM, "accuracy", 0.01, says="A random mask of the same density does not do it."),
        Claim(CONCRETE, MAGNITUDE, "accuracy", 0.01, says="A mask of the largest changes, of the same density, does not do it."),
        Claim(ARITHMETIC, RANDOM, "accuracy", -0.01, says="Masking at random and rescaling alone gains less than a point."),
        Claim(CONCRETE, TIES, "accuracy", 0.01, says="It beats TIES."),
        Claim(CONCRETE, ADA_TASK, "accuracy", 0.01, says="It beats task-wise AdaMerging on the same unlabelled inputs."),
        Claim(CONCRETE, ADA_BLOCK, "accuracy", 0.01, says="It beats layer-wise AdaMerging on the same unlabelled inputs."),
        Claim(CONCRETE, ADA_BLOCK, "accuracy, best step", 0.01, says="It does so even where labels choose when to stop each of them."),
        Claim(CONCRETE_BLOCK, ADA_BLOCK, "accuracy", 0.01, says="A mask improves layer-wise AdaMerging by more than a point."),
        Claim(CONCRETE_TASK, ADA_TASK, "accuracy", 0.01, says="A mask improves task-wise AdaMerging by more than a point."),
        Claim(CONCRETE_BLOCK, CONCRETE, "accuracy", 0.01, says="Layer-wise coefficients add more than a point to the mask."),
        Claim(OWN_MASKED, OWN, "accuracy", -0.01, says="The shared mask costs each single model less than a point."),
        Claim(COINS, SOFT, "accuracy", -0.01, says="A final mask of coins costs less than a point against a soft one."),
        Claim(CONCRETE, ARITHMETIC, "accuracy, transductive", 0.01, says="The same when the mask is learned on the test inputs, as in the paper."),
        Claim(CONCRETE_BLOCK, ADA_BLOCK, "accuracy, transductive", 0.01, says="The same for layer-wise AdaMerging on the test inputs."),
        Claim(CONCRETE, ARITHMETIC, "accuracy, unseen tasks", says="A mask learned on six tasks helps the merge on the two others."),
        Claim(CONCRETE, ARITHMETIC, "accuracy, seen tasks", 0.01, says="It helps the six themselves by more than a point."),
        Claim(CONCRETE, ARITHMETIC, "accuracy, language", 0.01, says="In the language domain, too, the mask adds more than a point."),
        Claim(CONCRETE_BLOCK, ADA_BLOCK, "accuracy, language", says="In the language domain a mask improves layer-wise AdaMerging."),
        Claim(CONCRETE, ARITHMETIC, "entropy, weak start", 0.3, higher_is_better=False, says="From a weak generalist the entropy falls, too."),
        Claim(ARITHMETIC, CONCRETE, "accuracy, weak start", 0.05, says="But there the procedure makes the model worse, by over five points."),
        Claim(CONCRETE, ARITHMETIC, "most frequent class, weak start", 0.1, says="Its answers collapse onto few classes."),
        Claim(LABELLED_MASK, CONCRETE, "accuracy", says="With the labels of the same inputs the mask gets better."),
        Claim(LABELLED_COEFFICIENTS, LABELLED_MASK, "accuracy", says="With labels, a coefficient a task and block is better than a logit a weight."),
    ),
    run=run,
    units={
        "accuracy": "share right, mean over the tasks",
        "accuracy, adapted inputs": "share right of the inputs it learned from",
        "accuracy, best step": "share right, mean over the tasks",
        "accuracy, transductive": "share right, mean over the tasks",
        "accuracy, language": "share right, mean over the libraries",
        "accuracy, seen tasks": "share right, mean over six tasks",
        "accuracy, unseen tasks": "share right, mean over two tasks",
        "accuracy, weak start": "share right, mean over the tasks",
        "entropy": "nats",
        "entropy, weak start": "nats",
        "most frequent class": "share of the predictions",
        "most frequent class, weak start": "share of the predictions",
        "share kept": "mean of σ(x)",
        "almost dropped": "share of the weights with σ(x) below 0.1",
    },
)  # fmt: skip


@dataclass(frozen=True)
class Shipped:
    """Settings of the explorer's masks: a smaller encoder, looked at while its mask is learned, from a strong and from a weak generalist.

    Attributes:
        seed: of all draws.
        settings: as in the experiment.
        pictures: test images that ship with it.
    """

    seed: int = 1000
    settings: ConcreteSettings = field(default_factory=lambda: ConcreteSettings(seeds=1, family=FamilySettings(width=128)))
    pictures: int = 120

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps at which the mask was kept."""
        return tuple(range(0, self.settings.mask_steps + 1, LOOK))


class Snapshots(nn.Module):
    """A base, the sum of its task vectors, and the mask at some steps of its training, as numbers of P weights.

    Attributes:
        base, summed: (P,).
        masks: (S, P) uint8, σ(x) in steps of 1/255.
        scale: of the merge.
        weight, bias: of the frozen head.
    """

    base: Tensor
    summed: Tensor
    masks: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, family: FamilySettings, steps: int) -> None:
        super().__init__()
        like = encoder_like(family)
        size = sum(value.numel() for value in like.values())
        self.register_buffer("base", torch.zeros(size))
        self.register_buffer("summed", torch.zeros(size))
        self.register_buffer("masks", torch.zeros(steps, size, dtype=torch.uint8))
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(CLASSES, family.features))
        self.register_buffer("bias", torch.zeros(CLASSES))


class ShippedMasks(nn.Module):
    """The two generalists, and test images with their labels.

    Attributes:
        strong, weak: what was kept of each.
        images: (n, 64) uint8, ink in 1/16.
        labels: (n,).
    """

    images: Tensor
    labels: Tensor

    def __init__(self, shipped: Shipped) -> None:
        super().__init__()
        self.strong = Snapshots(shipped.settings.family, len(shipped.steps))
        self.weak = Snapshots(shipped.settings.family, len(shipped.steps))
        self.register_buffer("images", torch.zeros(shipped.pictures, 64, dtype=torch.uint8))
        self.register_buffer("labels", torch.zeros(shipped.pictures, dtype=torch.int64))


def encoder_like(family: FamilySettings) -> dict[str, Tensor]:
    """Names and shapes of the encoder's weights."""
    with torch.device("meta"):
        return dict(MLPEncoder(64, family.width, family.features).state_dict())


def train_shipped(shipped: Shipped, progress: str | None = None) -> ShippedMasks:
    """Learn the two masks on unlabelled validation inputs, and keep them at each of the steps."""
    model = ShippedMasks(shipped)
    settings = shipped.settings
    for kept, labelled in ((model.strong, settings.family.labelled), (model.weak, settings.weak)):
        family = make_family(replace(settings.family, labelled=labelled), shipped.seed)
        world = world_of_digits(family)
        summed = add(world.vectors)
        scale = world.best_scale(summed, GRID)
        rows = [torch.full_like(flatten(summed), 0.5)]

        def look(step: int, merging: ConcreteMerging, rows: list[Tensor] = rows) -> None:
            if step + 1 in shipped.steps:
                rows.append(flatten(mask_of(merging)))

        loss = entropy_of(world, "validation", settings.batch, stream(shipped.seed, "batches", "validation"))
        learn_mask(world, settings, scale=scale, loss=loss, draws=stream(shipped.seed, "mask"), after_step=look)
        kept.base.copy_(flatten(world.base))
        kept.summed.copy_(flatten(summed))
        kept.masks.copy_((255 * torch.stack(rows)).round())
        kept.scale.fill_(scale)
        kept.weight.copy_(family.head.weight)
        kept.bias.copy_(family.head.bias)
    rows_of_test = torch.randperm(len(family.labels["test"]), generator=stream(shipped.seed, "pictures"))[: shipped.pictures]
    model.images.copy_((16 * upright(shipped)[rows_of_test]).round())
    model.labels.copy_(family.labels["test"][rows_of_test])
    return model


def upright(shipped: Shipped) -> Tensor:
    """(n, 64): the test images of the family before any transform; the first task turns them by a quarter."""
    turned = make_family(shipped.settings.family, shipped.seed).images["test"][0]
    return turned.view(-1, 8, 8).rot90(-1, (1, 2)).flatten(1)


def shipped_world(model: ShippedMasks, kind: str) -> World:
    """The shipped test images under each transform, with the base and head of the ``strong`` or ``weak`` generalist; its one vector is the sum."""
    kept = model.strong if kind == "strong" else model.weak
    family = SHIPPED.settings.family
    like = encoder_like(family)
    encoder = MLPEncoder(64, family.width, family.features).requires_grad_(False)
    encoder.load_state_dict(unflatten(kept.base, like))
    names = TRANSFORMS[: family.tasks]
    ink = model.images.view(-1, 8, 8).float() / 16
    inputs = tuple(transformed(ink, name).flatten(1) for name in names)
    heads = kept.weight.expand(len(names), -1, -1), kept.bias.expand(len(names), -1)
    return World(names, encoder, heads, (unflatten(kept.summed, like),), {"test": inputs}, {"test": (model.labels,) * len(names)})


def measure_shipped(model: nn.Module) -> dict[str, float]:
    """Accuracy and entropy on the shipped test images before and after the mask was learned."""
    assert isinstance(model, ShippedMasks)
    found = {}
    for kind, kept in (("strong", model.strong), ("weak", model.weak)):
        world = shipped_world(model, kind)
        for step in (0, SHIPPED.steps[-1]):
            mask = unflatten(kept.masks[SHIPPED.steps.index(step)].float() / 255, encoder_like(SHIPPED.settings.family))
            state = apply(world.base, masked_vectors(world.vectors, mask)[0], float(kept.scale))
            found[f"{kind}, step {step}: accuracy"] = round(mean_accuracy(world, state), 4)
            found[f"{kind}, step {step}: entropy"] = round(entropy_on_test(world, state), 4)
    return found


SHIPPED = Shipped()
CHECKPOINTS = (Checkpoint("concrete-masks", SHIPPED, ShippedMasks, train_shipped, measure_shipped),)
