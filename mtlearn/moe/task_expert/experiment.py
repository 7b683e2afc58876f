"""Where the right decoding depends on the whole image: do gates and memory beat a static decoder, and which of the two earns it?"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.datasets import nyud
from mtlearn.datasets.photos import photo_segments
from mtlearn.datasets.scenes import Cue, Scenes, sample_scenes
from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.cost import count_parameters
from mtlearn.moe.task_expert.backbones import ConvBackbone, PretrainedBackbone, TransformerBackbone
from mtlearn.moe.task_expert.baselines import SharedDecoder
from mtlearn.moe.task_expert.method import NYUD_TASKS, Decoded, DenseModel, Task, TaskExpert, gate_statistics, multitask_loss

Metrics = dict[str, float]
Batch = tuple[Tensor, dict[str, Tensor]]  # images, and each task's target by name

TASKS = (Task("segmentation", "classes", 3), Task("depth", "value", 1, weight=2.0), Task("boundary", "edge", 1))
COLOURS = 4
PHOTO_TASKS = (Task("clusters", "classes", COLOURS), Task("blur", "value", 1, weight=2.0), Task("edges", "value", 1, weight=2.0))
SIZE, PATCH = 16, 2


@dataclass(frozen=True)
class Nyud:
    """The recipe on NYUD-v2 (the authors' for their related models; a cosine instead of their polynomial schedule, and no augmentation).

    Attributes:
        vit: name or folder of a vision transformer of the library transformers.
        layers: of it, that are decoded.
        width, num_experts, hidden: of the decoder.
        size: of the pictures.
        steps, batch, learning_rate, clip: of Adam with weight decay 1e-6.
        test: pictures of the test to read; all 654 when None.
    """

    vit: str = "google/vit-large-patch16-224-in21k"
    layers: tuple[int, ...] = (5, 11, 17, 23)
    width: int = 256
    num_experts: int = 5
    hidden: int = 256
    size: tuple[int, int] = (448, 576)
    steps: int = 40_000
    batch: int = 2
    learning_rate: float = 2e-5
    clip: float = 10.0
    test: int | None = None


@dataclass(frozen=True)
class SceneSettings(Settings):
    """What is trained, on what, for how long.

    Attributes:
        train, test: scenes.
        steps, batch, learning_rate: of Adam under a one-cycle schedule, the same for every arm.
        photo_steps: of the arms on photographs.
        channels, num_experts, width, hidden: C of the backbone; N, R and the gates' hidden width of TaskExpert.
        nyud: a recipe on NYUD-v2 to run as well.
    """

    train: int = 1500
    test: int = 500
    steps: int = 400
    batch: int = 16
    learning_rate: float = 6e-3
    photo_steps: int = 200
    channels: int = 24
    num_experts: int = 4
    width: int = 16
    hidden: int = 16
    nyud: Nyud | None = None


@dataclass(frozen=True)
class Arm:
    """A model and the world that it is trained in.

    Attributes:
        options: of :class:`TaskExpert`, or of :class:`SharedDecoder` where ``shared``.
        shared: whether the decoder is a :class:`SharedDecoder`.
        matched: whether its width is chosen so that the decoder has as many parameters as TaskExpert.
        transformer: whether the backbone is one.
        cue: what tells the regime.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False
    matched: bool = True
    transformer: bool = False
    cue: Cue = "value"


FULL, SMALL, WIDE, CONTEXT = "TaskExpert", "shared decoder", "shared decoder, wide", "shared decoder, context"
STATIC_LAST, DYNAMIC_LAST, STATIC_ALL = "static gates, last layer", "dynamic gates, last layer", "static gates, memory"
NO_MEMORY, BLIND = "dynamic gates, no memory", "gates blind to memory"
FROZEN, CUT = "TaskExpert, gates frozen", "TaskExpert, memory cut"
TRANSFORMER, TRANSFORMER_WIDE = "transformer, TaskExpert", "transformer, shared wide"
COLUMN, COLUMN_POSITION, POSITION = "column cue, pooled gate", "column cue, position gate", "TaskExpert, position gate"
LAST: dict[str, Any] = {"layers": (2,), "memory": False}
POSITIONED: dict[str, Any] = {"gate": "position", "positions": (SIZE // PATCH) ** 2}
ARMS: Mapping[str, Arm] = {
    SMALL: Arm(shared=True, matched=False),
    WIDE: Arm(shared=True),
    CONTEXT: Arm({"context": True}, shared=True),
    STATIC_LAST: Arm({**LAST, "gate": "static"}),
    DYNAMIC_LAST: Arm(LAST),
    STATIC_ALL: Arm({"gate": "static"}),
    NO_MEMORY: Arm({"memory": False}),
    BLIND: Arm({"sees_memory": False}),
    FULL: Arm(matched=False),
    POSITION: Arm(POSITIONED),
    COLUMN: Arm(matched=False, cue="column"),
    COLUMN_POSITION: Arm(POSITIONED, cue="column"),
    TRANSFORMER_WIDE: Arm(shared=True, transformer=True),
    TRANSFORMER: Arm(matched=False, transformer=True),
}
CONV_GAP, TRANSFORMER_GAP = "gap, convolutions", "gap, transformer"
PHOTO_ARMS = (WIDE, STATIC_ALL, FULL)


# models and training


def make_decoder(arm: Arm, settings: SceneSettings, width: int, tasks: Sequence[Task] = TASKS) -> nn.Module:
    """The untrained decoder of an arm at a given width."""
    if arm.shared:
        return SharedDecoder(tasks, settings.channels, width=width, scale=PATCH, **arm.options)
    sizes: dict[str, Any] = {"num_experts": settings.num_experts, "width": width, "hidden": settings.hidden}
    return TaskExpert(tasks, settings.channels, scale=PATCH, **sizes, **arm.options)


def narrowest(make: Callable[[int], nn.Module], parameters: int) -> int:
    """The width whose model has the nearest number of parameters to ``parameters``."""

    @lru_cache
    def count(width: int) -> int:
        with torch.device("meta"):  # shapes alone: nothing is drawn
            return count_parameters(make(width))

    most = 1
    while count(most) < parameters:
        most *= 2
    width = bisect_left(range(most), parameters, lo=1, key=count)  # the first that has at least as many
    return width if width == 1 or count(width) - parameters <= parameters - count(width - 1) else width - 1


def width_of(arm: Arm, settings: SceneSettings) -> int:
    """The arm's width: the settings', or the one that gives TaskExpert's number of parameters."""
    if not arm.matched:
        return settings.width
    with torch.device("meta"):
        wanted = count_parameters(make_decoder(ARMS[FULL], settings, settings.width))
    return narrowest(lambda width: make_decoder(arm, settings, width), wanted)


def build(arm: Arm, settings: SceneSettings, seed: int, *, tasks: Sequence[Task] = TASKS, inputs: int = 1) -> DenseModel:
    """The untrained model of a seed: arms with the same backbone start from the same weights of it."""
    with seeded(seed):
        options = {"inputs": inputs, "patch": PATCH}
        backbone = TransformerBackbone(settings.channels, size=SIZE, **options) if arm.transformer else ConvBackbone(settings.channels, **options)
    with seeded(seed):
        return DenseModel(backbone, make_decoder(arm, settings, width_of(arm, settings), tasks))


def scene_targets(scenes: Scenes) -> dict[str, Tensor]:
    """The targets by the tasks' names."""
    return {"segmentation": scenes.segmentation, "depth": scenes.depth, "boundary": scenes.boundary}


def train(model: DenseModel, data: Batch, settings: SceneSettings, seed: int, *, steps: int, progress: str | None = None) -> DenseModel:
    """Train on batches of ``data``, the same for every arm of a seed."""
    images, targets = data
    tasks, batches = model.tasks, stream(seed, "batches")
    noise = stream(seed, "gate noise", device=images.device)

    def loss_at(step: int) -> Tensor:
        rows = torch.randint(len(images), (settings.batch,), generator=batches).to(images.device)
        decoded = model(images[rows], generator=noise)
        return multitask_loss(tasks, decoded.predictions, {name: target[rows] for name, target in targets.items()})

    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    fit(model, loss_at, steps=steps, optimizer=optimizer, schedule="one_cycle", warmup=steps // 10, progress=progress)
    return model.eval()


@torch.no_grad()
def decode(model: DenseModel, images: Tensor, *, batch: int = 250, **options: Any) -> Decoded:
    """Predictions, gates and memory of many images."""
    parts = [model(chunk, **options) for chunk in torch.split(images, batch)]
    predictions = {name: torch.cat([part.predictions[name] for part in parts]) for name in parts[0].predictions}
    gates = tuple(torch.cat(layer) for layer in zip(*(part.gates for part in parts), strict=True))
    return Decoded(predictions, gates, torch.cat([part.memory for part in parts]))


# what is measured


def mean_iou(predicted: Tensor, target: Tensor, classes: Sequence[int]) -> float:
    """Intersection over union of ``classes`` over all pixels together, averaged; a class that is nowhere does not count."""
    known = target != nyud.IGNORED
    ratios = []
    for label in classes:
        found, true = (predicted == label) & known, target == label
        either = int((found | true).sum())
        if either:
            ratios.append(int((found & true).sum()) / either)
    return sum(ratios) / len(ratios)


def f_scores(logits: Tensor, target: Tensor, thresholds: Tensor) -> Tensor:
    """F1 of edge pixels at each threshold of the probability: (thresholds,)."""
    wanted = (target > 0.5).flatten()
    found = logits.sigmoid().flatten() > thresholds[:, None]
    return 2 * (found & wanted).sum(1) / (found.sum(1) + wanted.sum()).clamp(min=1)


def measure(decoded: Decoded, scenes: Scenes, seen: Decoded, known: Scenes) -> Metrics:
    """All tasks on test ``scenes``; the threshold of the boundary is the best on training scenes (``seen`` and ``known``)."""
    thresholds = torch.linspace(0.02, 0.98, 49, device=scenes.images.device)
    best = f_scores(seen.predictions["boundary"][:, 0], known.boundary, thresholds).argmax()
    on_shapes = scenes.segmentation > 0
    missed = (decoded.predictions["depth"][:, 0] - scenes.depth)[on_shapes]
    return {
        "mIoU": mean_iou(decoded.predictions["segmentation"].argmax(1), scenes.segmentation, (1, 2)),
        "depth RMSE": float(missed.square().mean().sqrt()),
        "boundary F1": float(f_scores(decoded.predictions["boundary"][:, 0], scenes.boundary, thresholds[best][None])),
    }


def probed(gates: Tensor, labels: Tensor, tested: Tensor, truth: Tensor) -> float:
    """Accuracy of logistic regression from gates (n, features) to labels, fitted on one set of images and measured on another."""
    scaler = StandardScaler().fit(gates.cpu().double().numpy())
    model = LogisticRegression(C=10.0, max_iter=5000).fit(scaler.transform(gates.cpu().double().numpy()), labels.cpu().numpy())
    return float(model.score(scaler.transform(tested.cpu().double().numpy()), truth.cpu().numpy()))


def read_gates(decoded: Decoded, scenes: Scenes, seen: Decoded, known: Scenes) -> Arms:
    """What each task's gates tell of the regime, and how much they move: one row a task."""
    rows: Arms = {}
    for number, task in enumerate(TASKS):
        chosen, tested = (torch.cat([layer[:, number] for layer in found.gates], -1) for found in (seen, decoded))  # (n, L * choices)
        rows[f"{task.name} gates"] = {
            "parity from gates": probed(chosen, known.regime % 2, tested, scenes.regime % 2),
            "half from gates": probed(chosen, known.regime // 2, tested, scenes.regime // 2),
            "gate deviation": float(gate_statistics(decoded.gates).dynamic[:, number].mean().sqrt()),
        }
        for layer, (own, other) in enumerate(zip(seen.gates, decoded.gates, strict=True), 1):
            parity = probed(own[:, number], known.regime % 2, other[:, number], scenes.regime % 2)
            rows[f"{task.name} gates"][f"parity, layer {layer}"] = parity
    return rows


def average_gates(decoded: Decoded) -> list[Tensor]:
    """The mean gates over images, (T, choices) for each layer: what a static decoder with these experts would use."""
    return [layer.mean(0) for layer in decoded.gates]


def scene_arms(settings: SceneSettings, seed: int, device: torch.device) -> Arms:
    """Every arm on the scenes of one seed."""
    worlds = {
        cue: tuple(
            _on(sample_scenes(count, cue=cue, generator=stream(seed, cue, part)), device)
            for part, count in (("train", settings.train), ("test", settings.test))
        )
        for cue in sorted({arm.cue for arm in ARMS.values()})
    }
    arms: Arms = {}
    for name, arm in ARMS.items():
        known, scenes = worlds[arm.cue]
        few = known.take(torch.arange(min(len(known), settings.test), device=device))  # of training: to fit a probe, to choose a threshold
        model = build(arm, settings, seed).to(device).eval()
        if name == FULL:  # random gates tell something as well: what is read off them is where learning starts
            rows = read_gates(decode(model, scenes.images), scenes, decode(model, few.images), few)
            arms |= {f"untrained {row}": metrics for row, metrics in rows.items()}
        model = train(model, (known.images, scene_targets(known)), settings, seed, steps=settings.steps)
        seen, decoded = decode(model, few.images), decode(model, scenes.images)
        arms[name] = measure(decoded, scenes, seen, few) | {"decoder parameters": count_parameters(model.decoder)}
        if name == FULL:
            arms[FULL]["memory slot"] = float(torch.stack(decoded.gates)[..., -1].mean())
            arms |= read_gates(decoded, scenes, seen, few)
            frozen: dict[str, Any] = {"gates": average_gates(seen)}
            arms[FROZEN] = measure(decode(model, scenes.images, **frozen), scenes, decode(model, few.images, **frozen), few)
            cut: dict[str, Any] = {"cut_memory": True}
            arms[CUT] = measure(decode(model, scenes.images, **cut), scenes, decode(model, few.images, **cut), few)
    for name, full, wide in ((CONV_GAP, FULL, WIDE), (TRANSFORMER_GAP, TRANSFORMER, TRANSFORMER_WIDE)):
        arms[name] = {"mIoU gap": arms[full]["mIoU"] - arms[wide]["mIoU"]}
    return arms


def _on(scenes: Scenes, device: torch.device) -> Scenes:
    if device.type == "cpu":
        return scenes
    moved = {name: getattr(scenes, name).to(device) for name in ("images", "segmentation", "depth", "boundary", "regime")}
    layouts = replace(scenes.layouts, **{name: value.to(device) for name, value in vars(scenes.layouts).items()})
    return replace(scenes, **moved, layouts=layouts)


# real pictures


def photo_batch(part: Any, count: int, *, generator: torch.Generator) -> Batch:
    """Noisy crops of the photographs with three targets: the cluster of the colour, the blurred luminance, the strength of its edges.

    Blur and edges are of the crop without the noise, so that all three ask for more than one pixel.
    """
    images, clusters = photo_segments(part, count, size=SIZE, step=4, colours=COLOURS, generator=generator)
    luminance = (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    ramp, smooth = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 1.0]) / 4
    bell = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    blur = _filtered(luminance, bell[:, None] * bell)
    across, down = _filtered(luminance, smooth[:, None] * ramp), _filtered(luminance, ramp[:, None] * smooth)
    noisy = images + 0.1 * torch.randn(images.shape, generator=generator)
    return noisy, {"clusters": clusters, "blur": blur[:, 0], "edges": torch.hypot(across, down)[:, 0]}


def _filtered(images: Tensor, kernel: Tensor) -> Tensor:
    half = kernel.shape[0] // 2
    return F.conv2d(F.pad(images, (half,) * 4, mode="replicate"), kernel[None, None])


def photo_arms(settings: SceneSettings, seed: int, device: torch.device) -> Arms:
    """The arms that differ in what the claim is about, on real pictures, where no regime is hidden."""
    (images, targets), (others, wanted) = (
        photo_batch(part, count, generator=stream(seed, "photos", part)) for part, count in (("train", settings.train), ("test", settings.test))
    )
    data = images.to(device), {name: target.to(device) for name, target in targets.items()}
    arms: Arms = {}
    for name in PHOTO_ARMS:
        model = build(ARMS[name], settings, seed, tasks=PHOTO_TASKS, inputs=3).to(device)
        found = decode(train(model, data, settings, seed, steps=settings.photo_steps), others.to(device)).predictions
        arms[name] = {
            "cluster accuracy": float((found["clusters"].argmax(1).cpu() == wanted["clusters"]).float().mean()),
            "blur error": float((found["blur"][:, 0].cpu() - wanted["blur"]).abs().mean()),
            "edge error": float((found["edges"][:, 0].cpu() - wanted["edges"]).abs().mean()),
        }
    return arms


# NYUD-v2


def pretrained_vit(name: str) -> Any:
    """A vision transformer of the library transformers: from its cache, or from a folder."""
    from transformers import ViTModel

    return ViTModel.from_pretrained(name, add_pooling_layer=False)


def room_targets(rooms: nyud.Rooms) -> dict[str, Tensor]:
    """The targets by the names of NYUD_TASKS; NaN where nothing was measured."""
    depth = rooms.depth.masked_fill(rooms.depth <= 0, torch.nan)
    normals = rooms.normals.masked_fill((rooms.normals == 0).all(1, keepdim=True), torch.nan)
    return {"segmentation": rooms.segmentation, "depth": depth, "normals": normals, "boundary": rooms.boundary}


def nyud_arms(recipe: Nyud, seed: int, device: torch.device) -> Arms:
    """A shared decoder, static gates and TaskExpert on NYUD-v2, over the same pretrained transformer."""
    tasks = NYUD_TASKS
    arms: Arms = {}
    pictures = len(nyud.names("train"))
    for name in PHOTO_ARMS:
        backbone = PretrainedBackbone(pretrained_vit(recipe.vit))
        more: dict[str, Any] = {"scale": backbone.patch, "up": "bilinear"}

        def of_width(width: int, arm: Arm = ARMS[name], channels: int = backbone.channels, more: dict[str, Any] = more) -> nn.Module:
            if arm.shared:
                return SharedDecoder(tasks, channels, width=width, **more)
            sizes: dict[str, Any] = {"num_experts": recipe.num_experts, "hidden": recipe.hidden, "layers": recipe.layers}
            return TaskExpert(tasks, channels, width=width, **sizes, **more, **arm.options)

        with torch.device("meta"):
            wanted = count_parameters(of_width(recipe.width, ARMS[FULL]))
        with seeded(seed):
            decoder = of_width(narrowest(of_width, wanted) if ARMS[name].matched else recipe.width)
        model = DenseModel(backbone, decoder).to(device)
        order = stream(seed, "rooms")

        def loss_at(step: int, model: DenseModel = model, order: torch.Generator = order) -> Tensor:
            chosen = torch.randint(pictures, (recipe.batch,), generator=order).tolist()
            rooms = nyud.read_rooms("train", only=chosen, size=recipe.size)
            targets = {task: target.to(device) for task, target in room_targets(rooms).items()}
            return multitask_loss(tasks, model(rooms.images.to(device)).predictions, targets)

        optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=1e-6)
        fit(model, loss_at, steps=recipe.steps, optimizer=optimizer, schedule="cosine", clip=recipe.clip)
        arms[f"NYUD, {name}"] = measure_rooms(model.eval(), recipe, device)
    return arms


@torch.no_grad()
def measure_rooms(model: DenseModel, recipe: Nyud, device: torch.device) -> Metrics:
    """All tasks on the rooms of the test; the boundary at the threshold that is best on training rooms."""
    thresholds = torch.linspace(0.02, 0.98, 49)
    known = nyud.read_rooms("train", count=recipe.batch, size=recipe.size)
    best = f_scores(model(known.images.to(device)).predictions["boundary"][:, 0].cpu(), known.boundary, thresholds).argmax()
    labels, truth, squares, angles, edges, boundary = [], [], [], [], [], []
    for number in range(len(nyud.names("val")[: recipe.test])):
        room = nyud.read_rooms("val", only=[number], size=recipe.size)
        found = {name: value.cpu() for name, value in model(room.images.to(device)).predictions.items()}
        targets = room_targets(room)
        labels.append(found["segmentation"].argmax(1))
        truth.append(room.segmentation)
        missed = (found["depth"][:, 0] - targets["depth"]).square()
        squares.append(missed[~missed.isnan()])
        cosine = F.cosine_similarity(found["normals"], targets["normals"], dim=1)
        angles.append(cosine[~cosine.isnan()].clamp(-1, 1).acos().rad2deg())
        edges.append(found["boundary"][:, 0].flatten())
        boundary.append(room.boundary.flatten())
    return {
        "mIoU": mean_iou(torch.cat(labels), torch.cat(truth), range(nyud.CLASSES)),
        "depth RMSE": float(torch.cat(squares).mean().sqrt()),
        "normal error": float(torch.cat(angles).mean()),
        "boundary F1": float(f_scores(torch.cat(edges), torch.cat(boundary), thresholds[best][None])),
    }


def run(settings: SceneSettings, seed: int, device: torch.device) -> Arms:
    """One seed: every arm on scenes, three on photographs, and on NYUD-v2 where the settings have its recipe."""
    arms = scene_arms(settings, seed, device)
    for name, metrics in photo_arms(settings, seed, device).items():
        arms[name] |= metrics
    if settings.nyud is not None:
        arms |= nyud_arms(settings.nyud, seed, device)
    return arms


LOWER: dict[str, Any] = {"higher_is_better": False}
EXPERIMENT = Experiment(
    paper="task_expert",
    question="Where the right labels depend on the image as a whole, do per-image gates and a memory beat a static decoder of the same size?",
    scales={
        "quick": SceneSettings(seeds=2, train=64, test=48, steps=6, batch=8, photo_steps=3, channels=8, width=4, hidden=4),
        "laptop": SceneSettings(seeds=3),
        "paper": SceneSettings(
            seeds=3, train=10_000, test=2_000, steps=4_000, batch=64, photo_steps=2_000, channels=64, width=48, hidden=64, nyud=Nyud()
        ),
    },
    claims=(
        Claim(FULL, WIDE, "mIoU", 0.02, says="TaskExpert segments better than a static decoder of the same size, by 2 points or more."),
        Claim(FULL, STATIC_ALL, "mIoU", 0.02, says="Gates that look at the image beat learned gates that do not, all else equal (layers, memory)."),
        Claim(FULL, None, "mIoU", 0.85, says="TaskExpert finds out the regime: more than 0.85 of mIoU."),
        Claim(FULL, WIDE, "depth RMSE", 0.01, says="TaskExpert's depth is better than the static decoder's.", **LOWER),
        Claim(WIDE, FULL, "boundary F1", -0.02, says="The control: on the boundary, the same in all regimes, static is within 2 points or ahead."),
        Claim(FULL, FROZEN, "mIoU", 0.2, says="The gates are used: frozen to their average they cost 20 points or more."),
        Claim(FULL, NO_MEMORY, "mIoU", 0.02, says="The memory is worth 2 points over the plain sum of the layers' features."),
        Claim(FULL, BLIND, "mIoU", 0.02, says="Letting the gate look at the memory is worth 2 points."),
        Claim(FULL, DYNAMIC_LAST, "mIoU", 0.02, says="Gates at all layers with a memory beat gates at the last layer alone, at equal size."),
        Claim(FULL, CONTEXT, "mIoU", 0.02, says="Gates are worth 2 points over a static decoder that is told the pooled feature of the whole image."),
        Claim("segmentation gates", None, "parity from gates", 0.95, says="Segmentation's gates tell in 95 % of images whether the regime is odd."),
        Claim("segmentation gates", "boundary gates", "parity from gates", 0.2, says="The boundary's gates tell it less, by 20 points."),
        Claim("segmentation gates", "untrained segmentation gates", "parity from gates", 0.05, says="They tell it better than before training."),
        Claim("segmentation gates", "boundary gates", "gate deviation", 0.02, says="Segmentation's gates move more over images than the boundary's."),
        Claim(CONV_GAP, TRANSFORMER_GAP, "mIoU gap", 0.1, says="The limit: over a transformer, where all see all, the lead is smaller by 10 points."),
        Claim(COLUMN_POSITION, COLUMN, "mIoU", 0.2, says="Where the place of the mark tells the regime, a gate that weighs positions beats pooling."),
        Claim(STATIC_ALL, FULL, "cluster accuracy", -0.02, says="On photographs static gates are within 2 points or ahead in naming colours."),
        Claim(STATIC_ALL, FULL, "blur error", -0.01, says="On photographs static gates are at most 0.01 behind on blurred luminance.", **LOWER),
        Claim(STATIC_ALL, FULL, "edge error", -0.01, says="On photographs static gates are at most 0.01 behind on the strength of edges.", **LOWER),
    ),
    run=run,
    units={
        "mIoU": "mean over the two classes of shapes",
        "mIoU gap": "TaskExpert minus the static decoder of its size",
        "depth RMSE": "on shapes, in units of strength",
        "boundary F1": "threshold from training scenes",
        "normal error": "degrees",
        "decoder parameters": "numbers",
        "memory slot": "mean gate over images, tasks and layers",
        "parity from gates": "accuracy of logistic regression",
        "half from gates": "accuracy of logistic regression",
        **{f"parity, layer {layer}": "accuracy of logistic regression" for layer in (1, 2, 3)},
        "gate deviation": "standard deviation over images",
        "cluster accuracy": "share of pixels",
        "blur error": "mean absolute, luminance 0 to 1",
        "edge error": "mean absolute, luminance a pixel",
    },
)  # fmt: skip


# the model that the explorer opens


@dataclass(frozen=True)
class ExplorerModel:
    """Settings of the shipped model: TaskExpert over convolutions, trained until it knows all regimes.

    Attributes:
        seed: of weights and scenes.
        train: scenes.
        scene: sizes and learning rate.
    """

    seed: int = 0
    train: int = 6000
    scene: SceneSettings = field(default_factory=lambda: SceneSettings(seeds=1, steps=1500, batch=32))


def build_model(settings: ExplorerModel) -> DenseModel:
    """The untrained model."""
    return build(ARMS[FULL], settings.scene, settings.seed)


def train_model(settings: ExplorerModel, progress: str | None = None) -> DenseModel:
    """The trained model."""
    scenes = sample_scenes(settings.train, generator=stream(settings.seed, "explorer"))
    data = scenes.images, scene_targets(scenes)
    return train(build_model(settings), data, settings.scene, settings.seed, steps=settings.scene.steps, progress=progress)


def measure_model(model: nn.Module) -> dict[str, float]:
    """All tasks on fresh scenes."""
    assert isinstance(model, DenseModel)
    known, scenes = (sample_scenes(500, generator=stream(1, part)) for part in ("known", "fresh"))
    found = measure(decode(model, scenes.images), scenes, decode(model, known.images), known)
    return {name: round(value, 4) for name, value in found.items()}


CHECKPOINTS = (Checkpoint("task_expert-scenes", ExplorerModel(), build_model, train_model, measure_model),)
