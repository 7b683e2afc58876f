"""What is gained by one coefficient per parameter block instead of one per task vector: in merging, forgetting, few-shot, at test time, and as PEFT.

Eight transforms of the same digits are eight tasks with one head; a generalist is fine-tuned for each. All that is learned here are coefficients of
the eight task vectors, on images that neither the generalist nor the vectors were trained on. New tasks (few-shot, test time, PEFT) are four of
the eight transforms *tilted by 20 degrees*: related to what the pool knows, but in no vector's training data. A second few-shot panel leaves the
target's own vector out of the pool instead, so that the pool knows nothing related. Rates were chosen on seeds from 100 on, by arm.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mtlearn.datasets.digits import rotated
from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import Schedule, fit
from mtlearn.lab.seeds import stream
from mtlearn.layers.lora import LoRALayer, add_lora, lora_state
from mtlearn.merging.atlas.adaptation import Trusted, contrastive_loss, reliable_entropy, sharpness_aware, trust, ufm_loss, ufm_rows
from mtlearn.merging.atlas.few_shot import LPPlusPlus, TipAdapter
from mtlearn.merging.atlas.method import (
    LinearisedComposition,
    LinearisedModel,
    PartitionedComposition,
    coefficient_penalty,
    disentanglement_error,
    few_shot_pool,
    information,
    kept_step,
    lora_vector,
    mix,
    negation_loss,
    random_bases,
    select_blockwise,
    select_by_features,
    select_randomly,
    select_vectors,
)
from mtlearn.merging.composition import Composition, entropy
from mtlearn.merging.task_vectors import State, add, apply, average
from mtlearn.merging.transformed_digits import CLASSES, Family, FamilySettings, Part, make_family


@dataclass(frozen=True)
class AtlasSettings(Settings):
    """Settings of a run.

    Attributes:
        family: the generalist and its task vectors.
        weak: the same with a generalist of upright digits alone, whose vectors are long; None leaves this panel out.
        steps, rate, batch: of the coefficients of task addition; images of each task a step.
        random_rate: of the coefficients of random bases.
        entropy_rate: of the coefficients that learn without labels.
        weights_rate: of full fine-tuning on the same images.
        fractions: of the labelled images, for learning with less of them.
        tangent_steps, tangent_rate: of fine-tuning the linearised models.
        lora_rank, lora_steps, lora_rate: of the LoRAs that serve as task vectors.
        negation_steps, negation_rate: of forgetting.
        targets: numbers of the transforms that, tilted, are the new tasks.
        tilt: degrees.
        shots: labelled images of each class.
        few_steps, few_rate: of the coefficients, few-shot.
        tuning_rate: of full fine-tuning, few-shot and PEFT.
        feature_rate: of linear probe and Tip-Adapter.
        left_out_rates: of coefficients and of full fine-tuning where the pool has nothing related.
        adapt_steps, adapt_rate, norm_rate: of adaptation at test time: coefficients, and LayerNorm.
        budgets: vectors a block.
        partitions: K of aTLAS x K; 16 make as many parameters as a LoRA of rank 1 has.
        peft_steps, peft_rate, adapter_rate: of the PEFT panel: coefficients, and LoRA.
    """

    family: FamilySettings = field(default_factory=FamilySettings)
    weak: FamilySettings | None = field(default_factory=lambda: FamilySettings(labelled=0, tune_rate=1e-3))
    steps: int = 200
    rate: float = 0.05
    batch: int = 32
    random_rate: float = 3e-3
    entropy_rate: float = 1e-3
    weights_rate: float = 1e-3
    fractions: tuple[float, ...] = (0.1, 0.35, 1.0)
    tangent_steps: int = 100
    tangent_rate: float = 1e-3
    lora_rank: int = 4
    lora_steps: int = 100
    lora_rate: float = 3e-3
    negation_steps: int = 100
    negation_rate: float = 0.01
    targets: tuple[int, ...] = (0, 1, 3, 4)
    tilt: float = 20.0
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    few_steps: int = 60
    few_rate: float = 0.1
    tuning_rate: float = 1e-3
    feature_rate: float = 1e-2
    left_out_rates: tuple[float, float] = (0.03, 3e-4)
    adapt_steps: int = 60
    adapt_rate: float = 0.01
    norm_rate: float = 0.03
    budgets: tuple[int, ...] = (1, 2)
    partitions: int = 16
    peft_steps: int = 100
    peft_rate: float = 0.1
    adapter_rate: float = 3e-3


ZERO, OWN, AVERAGE, SEARCH = "zero-shot", "one fine-tuned encoder each", "average", "searched scalar"
ISOTROPIC, ATLAS, MATRICES, PENALTY = "learned isotropic", "aTLAS", "aTLAS, matrices alone", "aTLAS, L1 penalty"
PARTS, RANDOM, RANDOM8, ENTROPY = "aTLAS x K", "random bases", "eight times as many random bases", "AdaMerging (no labels)"
LORAS, TANGENT_SEARCH, TANGENT = "aTLAS of LoRAs", "linear, searched scalar", "linear aTLAS"
WEIGHTS = "all weights"
BIG, SMALL = "weight matrices of aTLAS", "biases and norms of aTLAS"
FEW, TEST_TIME, NEW = "few-shot: ", "test time: ", "new task: "
WEAK, FORGET, LEFT_OUT = "weak generalist: ", "forgetting: ", "nothing related: "

# ---------------------------------------------------------------------------------------------------------------------------- learning


def learn(
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    steps: int,
    rate: float,
    *,
    decay: float = 0.0,
    schedule: Schedule = "constant",
    after_step: Callable[[int], None] | None = None,
) -> None:
    """AdamW on what of ``model`` learns."""
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=rate, weight_decay=decay)
    seen = None if after_step is None else (lambda step, loss: after_step(step))
    fit(model, loss_at, steps=steps, optimizer=optimizer, schedule=schedule, after_step=seen)
    model.eval()


def free(encoder: nn.Module, learns: Callable[[nn.Module], bool] = lambda module: True) -> nn.Module:
    """A copy of the encoder in which the parameters of the modules that ``learns`` accepts learn."""
    copy = deepcopy(encoder).requires_grad_(False)
    for module in copy.modules():
        if learns(module):
            module.requires_grad_(True)
    return copy


def is_norm(module: nn.Module) -> bool:
    """Whether this is a normalisation with learned gain and bias."""
    return isinstance(module, (nn.LayerNorm, nn.GroupNorm))


def learn_addition(
    family: Family,
    model: nn.Module,
    settings: AtlasSettings,
    rate: float,
    *,
    fraction: float = 1.0,
    penalty: bool = False,
    labels: bool = True,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """All tasks at once on the validation images: ``batch`` images of each in one pass, and the sum of the losses."""
    images, answers, tasks = family.images["validation"], family.labels["validation"], torch.arange(len(family.names))[:, None]
    count = max(int(fraction * len(answers)), 1)
    draws = stream(family.seed, "addition")

    def loss_at(step: int) -> Tensor:
        rows = torch.randint(count, (len(tasks), settings.batch), generator=draws)
        logits = family.head(model(images[tasks, rows].flatten(0, 1)))
        loss = cross_entropy(logits, answers[rows].flatten()) if labels else entropy(logits)
        # the published loss is the sum over the tasks, ours is the mean
        return loss + coefficient_penalty(model.coefficients) / len(tasks) if penalty else loss  # type: ignore[arg-type]

    learn(model, loss_at, settings.steps, rate, after_step=after_step)


def lora_of(encoder: nn.Module, logits: Callable[[nn.Module, int], Tensor], steps: int, rate: float, *, rank: int, seed: int) -> dict[str, Tensor]:
    """The sparse task vector of a LoRA on all linear layers and convolutions, trained on the loss that ``logits(model, step)`` returns."""
    model = deepcopy(encoder)
    add_lora(model, lambda name, layer: True, rank=rank, generator=stream(seed, "lora"))
    learn(model, lambda step: logits(model, step), steps, rate)
    scale = next(layer.scale for layer in model.modules() if isinstance(layer, LoRALayer))
    return lora_vector(lora_state(model), scale, base=encoder.state_dict())


# ---------------------------------------------------------------------------------------------------------------------------- addition


def addition(family: Family, settings: AtlasSettings) -> tuple[Arms, dict[str, Tensor]]:
    """Every way to one model of all tasks; also the coefficients of the three that the disentanglement error compares."""
    grid = [step / 20 for step in range(21)]
    base, vectors, total, encoder = family.base, family.vectors, add(family.vectors), family.encoder
    own = family.own_accuracy(family.tuned).mean().item()
    found: Arms = {}

    def note(arm: str, each: Tensor, parameters: float) -> None:
        found[arm] = {"accuracy": each.mean().item(), "relative": each.mean().item() / own, "parameters": float(parameters)}

    def composed(arm: str, model: Composition, rate: float = settings.rate, **options: object) -> Tensor:
        learn_addition(family, model, settings, rate, **options)  # type: ignore[arg-type]
        note(arm, family.accuracy(model.state()), model.coefficients.numel())
        return model.by_block().detach()

    note(ZERO, family.accuracy(base), 0)
    note(OWN, family.own_accuracy(family.tuned), sum(value.numel() for value in total.values()) * len(vectors))
    note(AVERAGE, family.accuracy(apply(base, average(vectors))), 0)
    best = family.best_scale(total, grid)
    note(SEARCH, family.accuracy(apply(base, total, best)), 1)
    coefficients = {SEARCH: torch.full((len(vectors), len(total)), best)}
    coefficients[ISOTROPIC] = composed(ISOTROPIC, Composition(encoder, vectors, per="task"))
    learned = coefficients[ATLAS] = composed(ATLAS, Composition(encoder, vectors))
    fewer = composed(PENALTY, Composition(encoder, vectors), penalty=True)
    matrices = torch.tensor([value.dim() > 1 for value in vectors[0].values()])
    for arm, which in ((BIG, matrices), (SMALL, ~matrices)):
        found[arm] = {"coefficient size": learned[:, which].abs().mean().item(), "size, L1 penalty": fewer[:, which].abs().mean().item()}
    composed(MATRICES, Composition(encoder, [{name: value for name, value in vector.items() if value.dim() > 1} for vector in vectors]))
    composed(PARTS, PartitionedComposition(encoder, vectors, settings.partitions, generator=stream(family.seed, "parts")))
    for arm, count in ((RANDOM, len(vectors)), (RANDOM8, 8 * len(vectors))):
        composed(arm, Composition(encoder, random_bases(base, count, generator=stream(family.seed, "bases"))), settings.random_rate)
    composed(ENTROPY, Composition(encoder, vectors, initial=best), settings.entropy_rate, labels=False)
    composed(LORAS, Composition(encoder, lora_vectors(family, settings)))
    tangents = tangent_vectors(family, settings)
    whole = LinearisedComposition(encoder, tangents, per="task")
    note(TANGENT_SEARCH, linear_accuracy(family, whole, search_linear(family, whole, grid)), 1)
    straight = LinearisedComposition(encoder, tangents)
    learn_addition(family, straight, settings, settings.rate)
    note(TANGENT, linear_accuracy(family, straight), straight.coefficients.numel())
    for fraction in settings.fractions:
        model = free(encoder)
        learn_addition(family, model, settings, settings.weights_rate, fraction=fraction)
        note(at(WEIGHTS, fraction), family.accuracy(model.state_dict()), sum(value.numel() for value in total.values()))
        if fraction < 1:
            composed(at(ATLAS, fraction), Composition(encoder, vectors), fraction=fraction)
    return found, coefficients


def at(arm: str, fraction: float) -> str:
    """The arm's name with less of the images."""
    return arm if arm == ATLAS and fraction == 1 else f"{arm}, {fraction:.0%} of the images".replace("%", " %")


def tangent_vectors(family: Family, settings: AtlasSettings) -> list[dict[str, Tensor]]:
    """The encoder fine-tuned for each task in its tangent space."""
    return [_tangent(family, settings, number) for number in range(len(family.names))]


def _tangent(family: Family, settings: AtlasSettings, number: int) -> dict[str, Tensor]:
    model, draws = LinearisedModel(family.encoder), stream(family.seed, "tangent", number)
    images, answers = family.images["train"][number], family.labels["train"]

    def loss_at(step: int) -> Tensor:
        rows = torch.randint(len(answers), (64,), generator=draws)
        return cross_entropy(family.head(model(images[rows])), answers[rows])

    learn(model, loss_at, settings.tangent_steps, settings.tangent_rate)
    return model.vector()


@torch.no_grad()
def linear_accuracy(family: Family, model: Composition, scale: float | None = None, part: Part = "test") -> Tensor:
    """(T,) accuracy of a composition whose weights are no weights of the plain encoder; ``scale`` sets all of its coefficients."""
    if scale is not None:
        model.coefficients.fill_(scale)
    images = family.images[part]
    logits: Tensor = family.head(model(images.flatten(0, 1))).view(*images.shape[:2], -1)
    return (logits.argmax(-1) == family.labels[part]).float().mean(1)


def search_linear(family: Family, model: Composition, grid: Sequence[float]) -> float:
    """The scalar of the grid with the highest mean validation accuracy."""
    return max(grid, key=lambda scale: linear_accuracy(family, model, scale, "validation").mean().item())


def lora_vectors(family: Family, settings: AtlasSettings) -> list[dict[str, Tensor]]:
    """A LoRA for each task, as sparse task vectors."""
    found = []
    for number, images in enumerate(family.images["train"]):
        draws = stream(family.seed, "lora", number)
        loss = partial(_batch_loss, family, images, family.labels["train"], draws)
        found.append(lora_of(family.encoder, loss, settings.lora_steps, settings.lora_rate, rank=settings.lora_rank, seed=family.seed))
    return found


def _batch_loss(family: Family, images: Tensor, labels: Tensor, draws: torch.Generator, model: nn.Module, step: int) -> Tensor:
    rows = torch.randint(len(labels), (min(64, len(labels)),), generator=draws)
    return cross_entropy(family.head(model(images[rows])), labels[rows])


def disentanglement(family: Family, by_block: Tensor) -> float:
    """Mean ``ξ`` over all ordered pairs of tasks with these coefficients (n, m), on test images."""
    names = list(family.vectors[0])
    moved = [{name: by_block[i, j] * vector[name] for j, name in enumerate(names)} for i, vector in enumerate(family.vectors)]  # Λ_i τ_i
    errors = []
    with torch.no_grad():
        for i, first in enumerate(moved):
            images, state = family.images["test"][i], apply(family.base, first)
            alone = family.logits(state, images)
            errors += [disentanglement_error(alone, family.logits(apply(state, other), images)).item() for k, other in enumerate(moved) if k != i]
    return sum(errors) / len(errors)


def weak_panel(settings: AtlasSettings, seed: int) -> Arms:
    """Addition from a generalist that knows upright digits alone."""
    if settings.weak is None:
        return {}
    family = make_family(settings.weak, seed)
    total = add(family.vectors)
    best = family.best_scale(total, [step / 20 for step in range(21)])
    found = {ZERO: family.accuracy(family.base), OWN: family.own_accuracy(family.tuned), SEARCH: family.accuracy(apply(family.base, total, best))}
    for arm, model in ((ISOTROPIC, Composition(family.encoder, family.vectors, per="task")), (ATLAS, Composition(family.encoder, family.vectors))):
        learn_addition(family, model, settings, settings.rate)
        found[arm] = family.accuracy(model.state())
    own = found[OWN].mean().item()
    return {WEAK + arm: {"accuracy": each.mean().item(), "relative": each.mean().item() / own} for arm, each in found.items()}


# ---------------------------------------------------------------------------------------------------------------------------- negation


def upright(family: Family, part: Part) -> Tensor:
    """(n, pixels) the images as they were written: the task to keep."""
    turned = family.images[part][family.names.index("rotate 90")]
    side = isqrt(turned.shape[1])
    return turned.view(-1, side, side).rot90(-1, (1, 2)).flatten(1)


def negation(family: Family, settings: AtlasSettings) -> Arms:
    """Forget one transform, keep upright digits at 95 % of their accuracy: mean over the targets."""
    found: dict[str, list[tuple[float, float]]] = {ZERO: [], SEARCH: [], ATLAS: []}
    parts: tuple[Part, Part] = ("validation", "test")
    control = {part: upright(family, part) for part in parts}

    @torch.no_grad()
    def score(state: State, images: Tensor, part: Part) -> float:
        return (family.logits(state, images).argmax(-1) == family.labels[part]).float().mean().item()

    labels = family.labels["validation"]
    for target in settings.targets:
        images, vector = family.images["validation"][target], family.vectors[target]
        zero = score(family.base, control["validation"], "validation")
        grid = [apply(family.base, vector, -step / 20) for step in range(21)]

        def best(states: Sequence[State], images: Tensor = images, zero: float = zero) -> State:
            kept = kept_step(
                [score(state, images, "validation") for state in states],
                [score(state, control["validation"], "validation") for state in states],
                zero,
            )
            return family.base if kept is None else states[kept]

        model, draws = Composition(family.encoder, [vector]), stream(family.seed, "negation", target)
        states: list[State] = []

        def loss_at(step: int, model: Composition = model, images: Tensor = images, draws: torch.Generator = draws) -> Tensor:
            rows = torch.randint(len(labels), (2, 128), generator=draws)
            forget = cross_entropy(family.head(model(images[rows[0]])), labels[rows[0]])
            return negation_loss(forget, cross_entropy(family.head(model(control["validation"][rows[1]])), labels[rows[1]]))

        def keep(step: int, loss: float, model: Composition = model, states: list[State] = states) -> None:
            if step % 4 == 3:
                states.append(model.state())

        fit(
            model, loss_at, steps=settings.negation_steps, optimizer=torch.optim.AdamW(model.parameters(), lr=settings.negation_rate),
            clip=1.0, after_step=keep,
        )  # fmt: skip
        for arm, state in ((ZERO, family.base), (SEARCH, best(grid)), (ATLAS, best(states))):
            found[arm].append((score(state, family.images["test"][target], "test"), score(state, control["test"], "test")))
    return {
        FORGET + arm: {"target accuracy": torch.tensor(rows).mean(0)[0].item(), "control accuracy": torch.tensor(rows).mean(0)[1].item()}
        for arm, rows in found.items()
    }


# --------------------------------------------------------------------------------------------------------------------------- new tasks


@dataclass(frozen=True)
class Target:
    """A new task: images by part, with the family's labels, and the vectors that may be used for it.

    Attributes:
        family: the base, the head, the labels.
        number: of the transform that it is near to.
        images: part to (n, pixels).
        pool: task vectors.
    """

    family: Family
    number: int
    images: dict[Part, Tensor]
    pool: tuple[State, ...]

    @torch.no_grad()
    def accuracy(self, features: Callable[[Tensor], Tensor], head: Callable[[Tensor], Tensor] | None = None, images: Tensor | None = None) -> float:
        """The share of right answers on the test images, or on ``images`` with the same labels."""
        logits = (head or self.family.head)(features(self.images["test"] if images is None else images))
        return (logits.argmax(-1) == self.family.labels["test"]).float().mean().item()

    def draw(self, shots: int) -> tuple[Tensor, Tensor]:
        """``shots`` images of each class of the validation part: (10 shots, pixels) and labels."""
        labels = self.family.labels["validation"]
        order = torch.randperm(len(labels), generator=stream(self.family.seed, "shots", self.number, shots))
        rows = torch.cat([order[labels[order] == c][:shots] for c in range(CLASSES)])
        return self.images["validation"][rows], labels[rows]

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[int], Tensor]:
        """At every step the cross-entropy of all of ``images`` through the frozen head."""
        return lambda step: cross_entropy(self.family.head(model(images)), labels)


def tilted_target(family: Family, number: int, degrees: float) -> Target:
    """A transform of the family, turned by so many degrees more; the whole pool is allowed, as no vector was trained on it."""
    side = isqrt(family.images["test"].shape[-1])
    images = {part: rotated(family.images[part][number].view(-1, side, side), degrees).clamp(0, 1).flatten(1) for part in family.images}
    name = f"{family.names[number]}, tilted"
    pool = few_shot_pool(dict(zip(family.names, family.vectors, strict=True)), name)
    return Target(family, number, images, tuple(pool.values()))


def left_out_target(family: Family, number: int) -> Target:
    """A transform of the family itself, with its own vector left out of the pool."""
    pool = {name: vector for k, (name, vector) in enumerate(zip(family.names, family.vectors, strict=True)) if k != number}
    checked = few_shot_pool(pool, family.names[number], family.vectors[number])
    return Target(family, number, {part: images[number] for part, images in family.images.items()}, tuple(checked.values()))


def noisy(images: Tensor, seed: int) -> Tensor:
    """The same images from a worse camera: noise of standard deviation 0.2."""
    return images + 0.2 * torch.randn(images.shape, generator=stream(seed, "noise"))


def few_shot(targets: Sequence[Target], settings: AtlasSettings) -> Arms:
    """Learning from k images a class, by coefficients, by features, by all weights: mean accuracies over the targets."""
    rows: dict[str, dict[str, list[float]]] = {}

    def note(arm: str, metric: str, value: float) -> None:
        rows.setdefault(FEW + arm, {}).setdefault(metric, []).append(value)

    for target in targets:
        family, encoder = target.family, target.family.encoder
        for shots in settings.shots:
            images, labels = target.draw(shots)
            metric = f"{shots}-shot accuracy"
            note(ZERO, metric, target.accuracy(encoder))
            compositions = {
                ATLAS: Composition(encoder, target.pool),
                ISOTROPIC: Composition(encoder, target.pool, per="task"),
                WEIGHTS: free(encoder),
            }
            for arm, model in compositions.items():
                rate = settings.tuning_rate if arm == WEIGHTS else settings.few_rate
                learn(model, target.loss(model, images, labels), settings.few_steps, rate, decay=0.1, schedule="cosine")
                note(arm, metric, target.accuracy(model))
                if shots == settings.shots[len(settings.shots) // 2]:
                    shifted = target.accuracy(model, images=noisy(target.images["test"], family.seed))
                    note(arm, "kept under noise", shifted / target.accuracy(model))
            with torch.no_grad():
                features, composed = encoder(images), compositions[ATLAS](images)
            for arm, kind, known, eyes in (
                ("linear probe", "probe", features, encoder),
                ("Tip-Adapter", "tip", features, encoder),
                ("LP++", "lp", features, encoder),
                ("aTLAS, then LP++", "lp", composed, compositions[ATLAS]),
            ):
                note(arm, metric, target.accuracy(eyes, on_features(kind, family, known, labels, settings)))
            both = nn.ModuleList([Composition(encoder, target.pool), TipAdapter(family.head, features, labels, CLASSES)])
            parameters = [
                {"params": both[0].parameters(), "lr": settings.few_rate, "weight_decay": 0.1},
                {"params": both[1].parameters(), "lr": settings.feature_rate},
            ]

            def joint(step: int, both: nn.ModuleList = both, images: Tensor = images, labels: Tensor = labels) -> Tensor:
                return cross_entropy(both[1](both[0](images)), labels)

            fit(both, joint, steps=settings.few_steps, optimizer=torch.optim.AdamW(parameters), schedule="cosine")
            note("aTLAS with Tip-Adapter", metric, target.accuracy(both[0], both[1]))
    return {arm: {metric: sum(values) / len(values) for metric, values in metrics.items()} for arm, metrics in rows.items()}


def on_features(kind: str, family: Family, features: Tensor, labels: Tensor, settings: AtlasSettings) -> nn.Module:
    """A classifier that learns from frozen features."""
    if kind == "lp":
        lp = LPPlusPlus(family.head.weight, family.head.bias, features, labels)
        fit(lp, lambda step: cross_entropy(lp(features), labels), steps=3 * settings.few_steps, optimizer=torch.optim.SGD(lp.groups()))
        return lp
    model = TipAdapter(family.head, features, labels, CLASSES) if kind == "tip" else deepcopy(family.head).requires_grad_(True)
    learn(model, lambda step: cross_entropy(model(features), labels), settings.few_steps, settings.feature_rate, schedule="cosine")
    return model


def nothing_related(targets: Sequence[Target], settings: AtlasSettings) -> Arms:
    """The few-shot panel where the pool lacks the target's own vector and knows no neighbour of it; fewest and most shots."""
    rows: dict[str, dict[str, list[float]]] = {}
    for target in targets:
        for shots in (settings.shots[0], settings.shots[-1]):
            images, labels = target.draw(shots)
            models = {
                ATLAS: Composition(target.family.encoder, target.pool),
                ISOTROPIC: Composition(target.family.encoder, target.pool, per="task"),
                WEIGHTS: free(target.family.encoder),
            }
            for arm, model in {ZERO: target.family.encoder, **models}.items():
                if arm in models:
                    rate = settings.left_out_rates[arm == WEIGHTS]
                    learn(model, target.loss(model, images, labels), settings.few_steps, rate, decay=0.1, schedule="cosine")
                rows.setdefault(LEFT_OUT + arm, {}).setdefault(f"{shots}-shot accuracy", []).append(target.accuracy(model))
    return {arm: {metric: sum(values) / len(values) for metric, values in metrics.items()} for arm, metrics in rows.items()}


# -------------------------------------------------------------------------------------------------------------------------- test time


def views(images: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """A weak view (a little noise) and a strong one (more noise, 15 % of the pixels missing), for any transform."""
    weak = images + 0.05 * torch.randn(images.shape, generator=draws)
    strong = (images + 0.15 * torch.randn(images.shape, generator=draws)) * (torch.rand(images.shape, generator=draws) > 0.15)
    return weak, strong


def test_time(targets: Sequence[Target], settings: AtlasSettings) -> Arms:
    """Adaptation on the validation images without their labels: mean test accuracy over the targets, and what each has to learn."""
    rows: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    for target in targets:
        family, images = target.family, target.images["validation"]
        rows.setdefault(ZERO, []).append(target.accuracy(family.encoder))
        with torch.no_grad():
            trusted = trust(family.head(family.encoder(images)).softmax(1))
        for learner, objective in (("aTLAS", "UFM"), ("aTLAS", "SAR"), ("aTLAS", "SimCLR"), ("LayerNorm", "UFM"), ("LayerNorm", "SimCLR")):
            model = Composition(family.encoder, target.pool) if learner == "aTLAS" else free(family.encoder, is_norm)
            loss = partial(_unlabelled_loss, family, images, trusted, stream(family.seed, "test time", target.number), model, objective)
            learn(model, loss, settings.adapt_steps, settings.adapt_rate if learner == "aTLAS" else settings.norm_rate)
            rows.setdefault(f"{learner}, {objective}", []).append(target.accuracy(model))
            sizes[f"{learner}, {objective}"] = sum(value.numel() for value in model.parameters() if value.requires_grad)
    return {TEST_TIME + arm: {"adapted accuracy": sum(values) / len(values), "parameters": sizes.get(arm, 0)} for arm, values in rows.items()}


def _unlabelled_loss(family: Family, images: Tensor, trusted: Trusted, draws: torch.Generator, model: nn.Module, objective: str, step: int) -> Tensor:
    if objective == "UFM":
        chosen, labels = ufm_rows(len(images), trusted, 128, generator=draws)
        weak, strong = views(images[chosen], draws)
        with torch.no_grad():
            said = family.head(model(weak))
        return ufm_loss(said, family.head(model(strong)), labels, 0.9)
    chosen = torch.randint(len(images), (128,), generator=draws)
    if objective == "SAR":
        return sharpness_aware(model, lambda now: reliable_entropy(family.head(now(images[chosen]))))
    weak, strong = views(images[chosen], draws)
    return contrastive_loss(model(weak), model(strong))


# ------------------------------------------------------------------------------------------------------------------ budget, and PEFT


def selection(targets: Sequence[Target], settings: AtlasSettings) -> Arms:
    """Which blocks to keep when only ``b`` of the pool's vectors may stay: mean accuracy over the targets, with the middle number of shots."""
    rows: dict[str, dict[str, list[float]]] = {}
    shots = settings.shots[len(settings.shots) // 2]
    for target in targets:
        family, (images, labels) = target.family, target.draw(shots)
        names = list(target.pool[0])
        weights = {name: value.clone().requires_grad_() for name, value in family.base.items()}
        gradient = torch.autograd.grad(cross_entropy(family.logits(weights, images), labels), [weights[name] for name in names])
        scores = information(dict(zip(names, gradient, strict=True)), target.pool)
        with torch.no_grad():
            means = torch.stack([family.encoder(task).mean(0) for task in family.images["validation"]])
            mine = family.encoder(images).mean(0)
        for budget in settings.budgets:
            chosen = {
                "blockwise": select_blockwise(scores, budget),
                "whole vectors": select_vectors(scores, budget),
                "random blocks": select_randomly(scores, budget, generator=stream(family.seed, "select", target.number, budget)),
                "nearest features": select_by_features(mine, means, budget, blocks=len(names)),
            }
            for arm, which in chosen.items():
                model = Composition(family.encoder, mix(target.pool, which))
                learn(model, target.loss(model, images, labels), settings.few_steps, settings.few_rate, decay=0.1, schedule="cosine")
                rows.setdefault(arm, {}).setdefault(f"accuracy, budget {budget}", []).append(target.accuracy(model))
    return {"selected " + arm: {metric: sum(values) / len(values) for metric, values in metrics.items()} for arm, metrics in rows.items()}


def peft(targets: Sequence[Target], settings: AtlasSettings) -> Arms:
    """A new task from 10, 35 and 100 % of its training images: coefficients, K times as many, LoRA of rank 1, all weights."""
    rows: dict[str, dict[str, list[float]]] = {}
    sizes: dict[str, int] = {}
    for target in targets:
        family, encoder = target.family, target.family.encoder
        for fraction in settings.fractions:
            count = int(fraction * len(family.labels["train"]))
            images, labels = target.images["train"][:count], family.labels["train"][:count]
            models: dict[str, tuple[nn.Module, float]] = {
                ATLAS: (Composition(encoder, target.pool), settings.peft_rate),
                PARTS: (
                    PartitionedComposition(encoder, target.pool, settings.partitions, generator=stream(family.seed, "parts")),
                    settings.peft_rate,
                ),
                WEIGHTS: (free(encoder), settings.tuning_rate),
                "LoRA": (deepcopy(encoder), settings.adapter_rate),
            }
            add_lora(models["LoRA"][0], lambda name, layer: True, rank=1, generator=stream(family.seed, "lora"))
            for arm, (model, rate) in models.items():
                loss = partial(_batch_loss, family, images, labels, stream(family.seed, "peft", target.number), model)
                learn(model, loss, settings.peft_steps, rate)
                rows.setdefault(arm, {}).setdefault(f"accuracy, {fraction:.0%} of the data".replace("%", " %"), []).append(target.accuracy(model))
                sizes[arm] = sum(value.numel() for value in model.parameters() if value.requires_grad)
    return {
        NEW + arm: {**{metric: sum(values) / len(values) for metric, values in metrics.items()}, "parameters": sizes[arm]}
        for arm, metrics in rows.items()
    }


# ---------------------------------------------------------------------------------------------------------------------------- the run


def run(settings: AtlasSettings, seed: int, device: torch.device) -> Arms:
    """Train and measure every arm of one seed. The family is small and stays on the CPU."""
    family = make_family(settings.family, seed)
    found, coefficients = addition(family, settings)
    for arm, by_block in coefficients.items():
        found[arm]["disentanglement error"] = disentanglement(family, by_block)
    found |= weak_panel(settings, seed) | negation(family, settings)
    near = [tilted_target(family, number, settings.tilt) for number in settings.targets]
    far = [left_out_target(family, number) for number in settings.targets]
    found |= few_shot(near, settings) | nothing_related(far, settings)
    found |= test_time(near, settings) | selection(near, settings) | peft(near[:2], settings)
    return found


@dataclass(frozen=True)
class ShippedSettings:
    """What the explorer shows: the course of learning, and planes of two task vectors.

    Attributes:
        seed: of the family.
        every: steps between two snapshots of the coefficients.
        snapshots: how many follow the first, which is the base.
        rate: of the coefficients.
        pairs: tasks whose vectors span a plane.
        points: a side of the grid.
        low, high: ends of both of its axes.
        images: test images of each task that are judged on it.
    """

    seed: int = 0
    every: int = 10
    snapshots: int = 20
    rate: float = 0.05
    pairs: tuple[tuple[int, int], ...] = ((0, 1), (3, 4), (5, 2), (6, 7))
    points: int = 17
    low: float = -0.5
    high: float = 1.5
    images: int = 300


WHOLE = "whole vectors"
BLOCKS = ("0.weight", "3.weight", "6.weight")  # the three weight matrices
PLANES = (WHOLE, *BLOCKS)


class Story(nn.Module):
    """What the explorer shows, computed once.

    Attributes:
        coefficients: (3, snapshots + 1, T, m) of the isotropic and of the anisotropic model, and of the latter with the L1 penalty.
        accuracy: (3, snapshots + 1, T) of these on the test images.
        zero, tuned: (T,) of the base, and of the fine-tuned encoders on their own tasks.
        plane: (pairs, planes, points, points, 2) accuracy of either task where the first vector is scaled by the column's number and the second by
            the row's.
        learned: (pairs, planes, 2) the anisotropic model's coefficients; of whole vectors the isotropic model's.
        diagonal: (pairs,) the scalar that a search finds for both.
    """

    coefficients: Tensor
    accuracy: Tensor
    zero: Tensor
    tuned: Tensor
    plane: Tensor
    learned: Tensor
    diagonal: Tensor

    def __init__(self, settings: ShippedSettings, tasks: int = 8, blocks: int = 10) -> None:
        super().__init__()
        steps, pairs, points = settings.snapshots + 1, len(settings.pairs), settings.points
        shapes = {
            "coefficients": (3, steps, tasks, blocks), "accuracy": (3, steps, tasks), "zero": (tasks,), "tuned": (tasks,),
            "plane": (pairs, len(PLANES), points, points, 2), "learned": (pairs, len(PLANES), 2), "diagonal": (pairs,),
        }  # fmt: skip
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))


def tell(settings: ShippedSettings, progress: str | None = None) -> Story:
    """Learn and measure all that the explorer shows."""
    family, story = make_family(FamilySettings(), settings.seed), Story(settings)
    learning = AtlasSettings(seeds=1, steps=settings.every * settings.snapshots, rate=settings.rate)
    for row, (per, penalty) in enumerate((("task", False), ("block", False), ("block", True))):
        model = Composition(family.encoder, family.vectors, per=per)  # type: ignore[arg-type]
        seen = [(model.by_block().detach().clone(), family.accuracy(model.state()))]

        def look(step: int, model: Composition = model, seen: list[tuple[Tensor, Tensor]] = seen) -> None:
            if step % settings.every == settings.every - 1:
                seen.append((model.by_block().detach().clone(), family.accuracy(model.state())))

        learn_addition(family, model, learning, settings.rate, penalty=penalty, after_step=look)
        story.coefficients[row] = torch.stack([coefficients for coefficients, _ in seen])
        story.accuracy[row] = torch.stack([accuracy for _, accuracy in seen])
    story.zero.copy_(family.accuracy(family.base))
    story.tuned.copy_(family.own_accuracy(family.tuned))
    for number, pair in enumerate(settings.pairs):
        _tell_planes(story, settings, family, number, list(pair))
    return story


def _tell_planes(story: Story, settings: ShippedSettings, family: Family, number: int, pair: list[int]) -> None:
    """Fill in the planes of one pair of tasks."""
    vectors = [family.vectors[task] for task in pair]
    some = replace(
        family,
        names=tuple(family.names[task] for task in pair),
        vectors=tuple(vectors),
        images={part: images[pair] for part, images in family.images.items()},
    )
    learning = AtlasSettings(seeds=1, steps=settings.every * settings.snapshots)
    one, many = Composition(family.encoder, vectors, per="task"), Composition(family.encoder, vectors)
    for model in (one, many):
        learn_addition(some, model, learning, settings.rate)
    story.diagonal[number] = some.best_scale(add(vectors), [step / 20 for step in range(31)])
    axis = torch.linspace(settings.low, settings.high, settings.points).tolist()
    images = some.images["test"][:, : settings.images]
    labels = some.labels["test"][: settings.images]
    learned = many.state()
    for which, plane in enumerate(PLANES):
        block = None if plane == WHOLE else many.blocks.index(plane)
        story.learned[number, which] = one.coefficients.detach() if block is None else many.coefficients.detach()[:, block]
        moved = vectors if block is None else [{plane: vector[plane]} for vector in vectors]
        # where one block moves, the others stay where they were learned
        start = family.base if block is None else {**learned, plane: family.base[plane]}
        with torch.no_grad():
            for row, up in enumerate(axis):
                for column, across in enumerate(axis):
                    state = apply(apply(start, moved[0], across), moved[1], up)
                    story.plane[number, which, row, column] = (some.logits(state, images).argmax(-1) == labels).float().mean(1)


def shown(model: nn.Module) -> dict[str, float]:
    """What the shipped coefficients reach, on average over the tasks."""
    assert isinstance(model, Story)
    return {ZERO: model.zero.mean().item(), ISOTROPIC: model.accuracy[0, -1].mean().item(), ATLAS: model.accuracy[1, -1].mean().item()}


SHIPPED = ShippedSettings()
CHECKPOINTS = (Checkpoint("atlas-story", SHIPPED, build=Story, train=tell, measure=shown),)


QUICK = AtlasSettings(
    seeds=1, family=FamilySettings(pretrain_steps=60, tune_steps=15, width=48),
    weak=FamilySettings(pretrain_steps=60, tune_steps=15, width=48, labelled=0), steps=6, tangent_steps=3, lora_steps=3, negation_steps=8,
    targets=(0, 1), shots=(1, 16), few_steps=4, adapt_steps=4, budgets=(1, 2), peft_steps=4, fractions=(0.1, 0.35, 1.0),
)  # fmt: skip
PAPER = AtlasSettings(
    seeds=3,
    family=FamilySettings(
        source="mnist", encoder="conv", width=32, features=64, train=6000, validation=2000, labelled=300, pretrain_steps=3000, tune_steps=1000,
        batch=128,
    ),
    weak=FamilySettings(
        source="mnist", encoder="conv", width=32, features=64, train=6000, validation=2000, labelled=0, pretrain_steps=3000, tune_steps=1000,
        tune_rate=1e-3, batch=128,
    ),
    steps=1000, few_steps=200, adapt_steps=300, tangent_steps=500, lora_steps=500, negation_steps=400, peft_steps=1000,
)  # fmt: skip

EXPERIMENT = Experiment(
    paper="atlas",
    question="What does one learned coefficient per parameter block gain over one per task vector: in merging, forgetting, and on new tasks?",
    scales={"quick": QUICK, "laptop": AtlasSettings(seeds=5), "paper": PAPER},
    claims=(
        Claim(ATLAS, ISOTROPIC, "accuracy", 0.01, says="One coefficient per block beats one per vector by more than a point, on the same images."),
        Claim(ATLAS, SEARCH, "accuracy", 0.01, says="It beats the searched scalar by more than a point."),
        Claim(SEARCH, ISOTROPIC, "accuracy", -0.01, says="Learning the scalars instead of searching one gains less than a point."),
        Claim(ATLAS, RANDOM, "accuracy", 0.01, says="Task vectors are better directions than as many random ones."),
        Claim(ATLAS, RANDOM8, "accuracy", says="They are better than eight times as many random ones."),
        Claim(at(ATLAS, 0.1), at(WEIGHTS, 0.1), "accuracy", says="With 10 % of the images, aTLAS beats training all weights."),
        Claim(at(WEIGHTS, 1.0), ATLAS, "accuracy", says="With all images, training all weights beats aTLAS."),
        Claim(MATRICES, ATLAS, "accuracy", -0.02, says="Coefficients of the weight matrices alone lose less than two points."),
        Claim(BIG, SMALL, "coefficient size", says="Without a penalty the weight matrices get the larger coefficients."),
        Claim(BIG, SMALL, "size, L1 penalty", says="With the L1 penalty, the weight matrices get the larger coefficients."),
        Claim(PENALTY, ATLAS, "accuracy", -0.02, says="The L1 penalty costs less than two points."),
        Claim(PARTS, ATLAS, "accuracy", says="K coefficients a block beat one."),
        Claim(ATLAS, ENTROPY, "accuracy", says="With labels it beats the same coefficients learned from entropy without them."),
        Claim(LORAS, ATLAS, "accuracy", -0.03, says="LoRAs of rank 4 as task vectors lose less than three points."),
        Claim(TANGENT, TANGENT_SEARCH, "accuracy", 0.01, says="In the tangent space, too, learned blocks beat the searched scalar by a point."),
        Claim(ATLAS, TANGENT, "accuracy", says="The standard model beats the linearised one."),
        Claim(ATLAS, SEARCH, "disentanglement error", higher_is_better=False, says="The learned coefficients disentangle the tasks."),
        Claim(WEAK + ATLAS, WEAK + ISOTROPIC, "accuracy", 0.05, says="With long vectors (weak generalist) blocks gain more than five points."),
        Claim(FORGET + ATLAS, FORGET + SEARCH, "target accuracy", higher_is_better=False, says="Learned blocks forget the target more fully."),
        Claim(FORGET + ATLAS, FORGET + SEARCH, "control accuracy", -0.02, says="They keep the control within two points of the search's."),
        Claim(FEW + ATLAS, FEW + ZERO, "1-shot accuracy", says="One image a class is enough for aTLAS to beat zero-shot."),
        Claim(FEW + ATLAS, FEW + ISOTROPIC, "1-shot accuracy", says="Few-shot, blocks beat whole vectors: one image a class."),
        Claim(FEW + ATLAS, FEW + ISOTROPIC, "16-shot accuracy", says="Few-shot, blocks beat whole vectors: 16 images a class."),
        Claim(FEW + ATLAS, FEW + "Tip-Adapter", "1-shot accuracy", says="With one image a class aTLAS beats Tip-Adapter."),
        Claim(FEW + ATLAS, FEW + "LP++", "1-shot accuracy", says="With one image a class aTLAS beats LP++."),
        Claim(FEW + "Tip-Adapter", FEW + ATLAS, "16-shot accuracy", says="With 16 images a class Tip-Adapter beats aTLAS."),
        Claim(FEW + "aTLAS with Tip-Adapter", FEW + "Tip-Adapter", "16-shot accuracy", says="Together they beat Tip-Adapter: 16 images a class."),
        Claim(FEW + ATLAS, FEW + WEIGHTS, "1-shot accuracy", says="With one image a class aTLAS beats training all weights."),
        Claim(FEW + WEIGHTS, FEW + ATLAS, "16-shot accuracy", says="With 16 images a class training all weights beats aTLAS."),
        Claim(FEW + ATLAS, FEW + WEIGHTS, "kept under noise", says="aTLAS keeps more of its accuracy on noisy images than training all weights."),
        Claim(LEFT_OUT + ATLAS, LEFT_OUT + ZERO, "1-shot accuracy", says="aTLAS beats zero-shot also where the pool has nothing related."),
        Claim(TEST_TIME + "aTLAS, UFM", TEST_TIME + ZERO, "adapted accuracy", says="Without labels (UFM) aTLAS beats zero-shot."),
        Claim(TEST_TIME + "aTLAS, UFM", TEST_TIME + "LayerNorm, UFM", "adapted accuracy", says="It beats LayerNorm tuning (UFM)."),
        Claim(
            TEST_TIME + "aTLAS, UFM", TEST_TIME + "aTLAS, SimCLR", "adapted accuracy", says="Pseudo-labels are a better objective than contrast."
        ),
        Claim("selected blockwise", "selected whole vectors", "accuracy, budget 1", says="Budget 1: the best blocks beat the best vector."),
        Claim("selected blockwise", "selected random blocks", "accuracy, budget 1", says="Budget 1: the best blocks beat random ones."),
        Claim("selected blockwise", "selected nearest features", "accuracy, budget 1", says="Budget 1: they beat the nearest task's vector."),
        Claim(NEW + PARTS, NEW + "LoRA", "accuracy, 10 % of the data", says="aTLAS x K beats LoRA of as many parameters with 10 % of the data."),
        Claim(NEW + PARTS, NEW + "LoRA", "accuracy, 100 % of the data", says="It beats it with all data."),
        Claim(NEW + PARTS, NEW + ATLAS, "accuracy, 100 % of the data", says="More coefficients a block help when there are data (scalability)."),
    ),
    run=run,
    units={
        "accuracy": "mean test accuracy over the eight tasks",
        "relative": "accuracy over that of the fine-tuned encoders",
        "parameters": "learned numbers",
        "coefficient size": "mean absolute coefficient",
        "size, L1 penalty": "mean absolute coefficient",
        "disentanglement error": "share of predictions that change, mean over pairs",
        "target accuracy": "test accuracy on the task to forget; lower is better",
        "control accuracy": "test accuracy on upright digits",
        **{f"{shots}-shot accuracy": "mean test accuracy over the new tasks" for shots in AtlasSettings(seeds=1).shots},
        "kept under noise": "accuracy on noisy test images over that on clean ones",
        "adapted accuracy": "mean test accuracy over the new tasks",
        **{f"accuracy, budget {budget}": "mean test accuracy over the new tasks" for budget in AtlasSettings(seeds=1).budgets},
        **{f"accuracy, {100 * share:.0f} % of the data": "mean test accuracy over the new tasks" for share in AtlasSettings(seeds=1).fractions},
    },
)  # fmt: skip
