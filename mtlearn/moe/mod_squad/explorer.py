"""Two explorers: which experts does a task use and what is left of it when the others go; and build a model for a new task out of modules."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mtlearn.datasets.glyphs import ALPHABET
from mtlearn.datasets.photos import colour_centres
from mtlearn.explore import Explorer, PointerEvent, choice, switch
from mtlearn.explore.canvas import Words
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, SEQUENTIAL, VERMILION
from mtlearn.lab.checkpoints import load, provenance
from mtlearn.layers.cost import count_flops, count_parameters
from mtlearn.moe.mod_squad.experiment import (
    BUILDS,
    DIGITS,
    EIGHTHS,
    HEADS,
    INFORMATION,
    LETTERS,
    NEW,
    PHOTOS,
    SCORES,
    SQUADS,
    Learned,
    World,
    build_key,
    grown_model,
    key_of,
    score,
)
from mtlearn.moe.mod_squad.method import extract, log_bound, most_used, usage_of
from mtlearn.moe.mod_squad.mixtures import MoEAttention
from mtlearn.moe.mod_squad.model import ModularTransformer

TASKS = (*HEADS,)
SHOWN = 9  # test images in the strip
LAYERS = ("block 1: heads", "block 2: MLP experts", "block 3: heads", "block 4: MLP experts")


# what is looked at


@cache
def world() -> World:
    """The images of the shipped models."""
    return World.of(SQUADS.settings.seed)


@cache
def squad(weight: float) -> ModularTransformer:
    """The shipped model with this weight of the mutual information."""
    model = load(SQUADS).get_submodule(key_of(weight))
    assert isinstance(model, ModularTransformer)
    return model


@cache
def usage(weight: float, task: str) -> tuple[Tensor, ...]:
    """What share of a task's training tokens visit each expert, a layer each."""
    return tuple(usage_of(squad(weight), task, world().train[task][0]))


@cache
def score_of(weight: float, task: str, eighths: int) -> float:
    """The recorded score of a cut."""
    return float(provenance(SQUADS)["measured"][f"{key_of(weight)}, {task}, {eighths}/8"])


@dataclass(frozen=True)
class Lifted:
    """A sub-network and what it is worth.

    Attributes:
        model: of one task.
        kept: experts, a layer each.
        score: on the task's test set, as recorded where it was.
        parameters: of all of it, or those that were trained where it was built.
        flops: for one image.
    """

    model: ModularTransformer
    kept: tuple[Tensor, ...]
    score: float
    parameters: int
    flops: int


@cache
def lifted(weight: float, task: str, eighths: int, dropped: bool) -> Lifted:
    """Lift a task's sub-network out of a shipped model; ``dropped``: router columns go too."""
    kept = tuple(most_used(usage(weight, task), eighths / 8))
    model = extract(squad(weight), task, kept, denominator="kept" if dropped else "original")
    value = score(model, task, world().test[task]) if dropped else score_of(weight, task, eighths)
    return Lifted(model, kept, value, count_parameters(model), lifted_flops(eighths))


@cache
def lifted_flops(eighths: int) -> int:
    """Operations of a sub-network for one image, which depend only on how many experts are left to choose from."""
    model = extract(squad(0.0), DIGITS, most_used(usage(0.0, DIGITS), eighths / 8))
    return flops_of(model, DIGITS)


@cache
def whole_of(weight: float) -> tuple[int, int]:
    """Parameters of a shipped model, and its operations for one image."""
    return count_parameters(squad(weight)), flops_of(squad(weight), DIGITS)


def flops_of(model: ModularTransformer, task: str) -> int:
    """Of one image; the attention that is counted on every processor."""
    image = world().test[DIGITS][0][:1]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return count_flops(lambda: model(image, task))


# extraction


def explorer(*, weight: float = 0.15, task: str = DIGITS, eighths: int = 4) -> Explorer:
    """Which expert serves which task, and a sub-network lifted out.

    Click a row of a map to choose the task; arrow keys up and down too; left and right keep fewer or more experts.
    """
    for w, name in itertools.product(INFORMATION, TASKS):
        usage(w, name)  # now, so that no control waits for it later
    for n in EIGHTHS:
        lifted_flops(n)

    def draw(figure: Figure, weight: float, task: str, eighths: int, dropped: bool) -> str:
        figure.set_layout_engine("none")
        found, whole = lifted(weight, task, eighths, dropped), score_of(weight, task, 8)
        for layer, (left, bottom) in enumerate(((0.085, 0.70), (0.32, 0.70), (0.085, 0.43), (0.32, 0.43))):
            wide = 0.165 if layer % 2 == 0 else 0.22
            axes = figure.add_axes((left, bottom, wide, 0.16))
            _draw_map(axes, layer, [usage(weight, name)[layer] for name in TASKS], TASKS.index(task), found.kept[layer], names=layer % 2 == 0)
        _draw_curves(figure.add_axes((0.645, 0.47, 0.245, 0.39)), weight, task, eighths, found.score)
        _draw_size(figure.add_axes((0.085, 0.09, 0.2, 0.17)), found, whole_of(weight))
        _draw_strip(figure.add_axes((0.325, 0.06, 0.655, 0.25)), found.model, task)
        bits = float(provenance(SQUADS)["measured"][f"{key_of(weight)}, information"])
        heads, experts = len(found.kept[0]), len(found.kept[1])
        verdict = f"{task}: {found.score:.2f} with {heads} of 6 heads and {experts} of 8 MLP experts, {whole:.2f} with all"
        close = found.score > whole - 0.02
        figure.text(0.5, 0.955, verdict, ha="center", fontsize=13, fontweight="bold", color=GREEN if close else VERMILION)
        note = f"information of task and expert: {bits:.2f} of at most {log_bound(3, 6):.2f} nats"
        figure.text(0.29, 0.90, note, ha="center", fontsize=10, color=GREY)
        columns = "; router columns dropped too" if dropped else ""
        return f"w = {weight:g}. {verdict}{columns}. {note}. The sub-network has {found.parameters:,} of {whole_of(weight)[0]:,} parameters."

    controls = {
        "weight": choice("weight w of the mutual information", [(f"{w:g}", w) for w in INFORMATION], weight),
        "task": choice("task", list(TASKS), task),
        "eighths": choice("experts kept", [(f"{n}/8", n) for n in EIGHTHS], eighths),
        "dropped": switch("drop router columns too (gates grow)"),
    }

    def state(weight: float, task: str, eighths: int, dropped: bool = False) -> dict[str, object]:
        return {"weight": weight, "task": task, "eighths": eighths, "dropped": dropped}

    def handle(event: PointerEvent) -> None:
        values = shown.values
        if event.kind == "press" and 0 <= event.axes < len(LAYERS):
            shown.set(task=TASKS[min(max(round(event.y), 0), len(TASKS) - 1)])
        elif event.kind == "key" and event.key in ("ArrowUp", "ArrowDown"):
            step = 1 if event.key == "ArrowDown" else -1
            shown.set(task=TASKS[(TASKS.index(values["task"]) + step) % len(TASKS)])
        elif event.kind == "key" and event.key in ("ArrowLeft", "ArrowRight"):
            step = 1 if event.key == "ArrowRight" else -1
            shown.set(eighths=min(max(values["eighths"] + step, EIGHTHS[0]), EIGHTHS[-1]))

    shown = Explorer(
        draw,
        controls,
        title="Whose expert is whose? Click a task's row and lift its sub-network out",
        figsize=(10.0, 6.4),
        seed=SQUADS.settings.seed,
        on_pointer=handle,
        presets={
            "without the loss": state(0.0, DIGITS, 4),
            "with the loss": state(0.15, DIGITS, 4),
            "too much of it": state(0.5, DIGITS, 4),
            "segmentation hardly notices": state(0.0, PHOTOS, 3),
            "columns dropped": state(0.15, DIGITS, 4, True),
            "detection, lifted": state(0.15, LETTERS, 3),
        },
    )
    return shown


def _draw_map(axes: Axes, layer: int, rows: Sequence[Tensor], chosen: int, kept: Tensor, *, names: bool) -> None:
    """Tasks by experts: the share of a task's tokens that visit each; the chosen task's row is framed, experts that go are crossed out."""
    shares = torch.stack(list(rows)).numpy()
    axes.imshow(shares, vmin=0, vmax=1, aspect="auto", cmap=SEQUENTIAL)
    count = shares.shape[1]
    gone = [expert for expert in range(count) if expert not in kept.tolist()]
    axes.plot(gone, [chosen] * len(gone), "x", color="white", markersize=9, markeredgewidth=2)
    axes.add_patch(Rectangle((-0.5, chosen - 0.5), count, 1, fill=False, edgecolor=VERMILION, linewidth=2.5, clip_on=False, zorder=5))
    axes.set_xticks([])  # numbers as words: ticks are most of what a small axes costs
    axes.set_yticks([])
    axes.add_artist(
        Words([(expert, len(TASKS) - 0.15) for expert in range(count)], [str(expert + 1) for expert in range(count)], [BLACK] * count, size=9)
    )
    for row, name in enumerate(TASKS if names else ()):
        axes.text(-0.65, row, name, ha="right", va="center", fontsize=11, fontweight="bold" if row == chosen else "normal")
    axes.set_title(LAYERS[layer], fontsize=10.5)
    if layer == 2:
        note = "colour: share of a task's tokens that visit the expert,\n0 dark to 1 bright; crossed out: goes"
        axes.text(-0.5, len(TASKS) + 0.2, note, fontsize=9, color=GREY, va="top")


def _draw_curves(axes: Axes, weight: float, task: str, eighths: int, value: float) -> None:
    """Score against the share of the experts kept, for every weight; the chosen one in colour."""
    places = [n / 8 for n in EIGHTHS]
    ends = {}
    for w in INFORMATION:
        scores = [score_of(w, task, n) for n in EIGHTHS]
        mine = w == weight
        axes.plot(places, scores, color=BLUE if mine else LIGHT, linewidth=2.5 if mine else 1.5, zorder=3 if mine else 2)
        ends[w] = scores[-1]
    low, high = axes.get_ylim()
    gap = 0.075 * (high - low)
    placed = -np.inf
    for w, end in sorted(ends.items(), key=lambda pair: pair[1]):
        placed = max(end, placed + gap)  # labels of close ends are moved apart
        axes.text(
            1.02, placed, f"w = {w:g}", fontsize=9.5, color=BLUE if w == weight else GREY, va="center", fontweight="bold" if w == weight else "normal"
        )
    axes.plot(eighths / 8, value, "o", color=VERMILION, markersize=9, zorder=4)
    axes.set_ylim(min(low, value - gap), max(high, placed + gap / 2))
    axes.set_xlim(EIGHTHS[0] / 8 - 0.03, 1.0)
    axes.set_xticks([0.25, 0.5, 0.75, 1.0], ["1/4", "1/2", "3/4", "all"])
    axes.set_xlabel("experts kept", labelpad=1)
    axes.set_title(f"{SCORES[task]} (test)", fontsize=10.5)


def _draw_size(axes: Axes, found: Lifted, whole: tuple[int, int]) -> None:
    """Parameters of the sub-network beside the whole model's, and operations."""
    bars = (
        (f"{found.parameters:,} parameters", found.parameters / whole[0], BLUE),
        (f"{found.flops / 1e3:,.0f} kFLOPs an image", found.flops / whole[1], ORANGE),
    )
    for row, (label, share, colour) in enumerate(bars):
        axes.barh(row, 1, color=LIGHT, height=0.42)
        axes.barh(row, share, color=colour, height=0.42)
        axes.text(0, row - 0.33, label, fontsize=10, va="bottom")
    axes.set(xlim=(0, 1), ylim=(1.35, -0.75), yticks=[])
    axes.set_xticks([])
    axes.axvline(1, color=BLACK, linewidth=1)
    axes.text(1.0, 1.42, "whole", fontsize=9, ha="right", va="top", color=GREY)
    axes.spines["left"].set_visible(False)
    axes.set_title("the sub-network beside the whole", fontsize=10.5, pad=4)


@torch.no_grad()
def _draw_strip(axes: Axes, model: ModularTransformer, task: str) -> None:
    """Test images with what the model says of them: right in green, wrong in vermilion."""
    images, labels = (part[:SHOWN] for part in world().test[task])
    prediction, size = model(images, task).prediction, images.shape[-1]
    wide = size + 2
    canvas = np.ones((2 * wide if task == PHOTOS else size, SHOWN * wide - 2, 3))
    for number, image in enumerate(images):
        canvas[:size, number * wide : number * wide + size] = image.permute(1, 2, 0).numpy()
    kind = model.tasks[task].kind
    if kind == "pixel":
        colours, said = colour_centres(4, 4.0).numpy(), prediction.argmax(1)
        for number in range(SHOWN):
            painted = colours[said[number].numpy()]
            painted[(said[number] != labels[number]).numpy()] = to_rgb(VERMILION)
            canvas[wide : wide + size, number * wide : number * wide + size] = painted
    axes.imshow(canvas, interpolation="nearest", aspect="equal")
    if kind == "cell":
        found, present = prediction[:, 0] > 0, labels[:, 0] > 0.5
        patch = model.shape.patch
        scene, row, column = (found | present).nonzero(as_tuple=True)
        offset = torch.where(found[scene, row, column, None], prediction[scene, 1:, row, column], labels[scene, 1:, row, column])
        x, y = (column + offset[:, 1].clamp(0, 1)) * patch - 0.5 + scene * wide, (row + offset[:, 0].clamp(0, 1)) * patch - 0.5
        right, missed = (found & present)[scene, row, column], ~found[scene, row, column]
        for which, marker, colour in ((right, "o", GREEN), (~right & ~missed, "X", VERMILION), (missed, "s", ORANGE)):
            axes.scatter(x[which], y[which], s=55, marker=marker, color=colour, edgecolors="white", linewidths=1)
    if kind == "image":
        names = ALPHABET if task == NEW else "0123456789"
        said, middles = prediction.argmax(1), [number * wide + size / 2 - 0.5 for number in range(SHOWN)]
        tints = [GREEN if right else VERMILION for right in (said == labels).tolist()]
        axes.add_artist(Words([(x, size + 2.2) for x in middles], [names[answer] for answer in said.tolist()], tints, size=13))
        axes.set_ylim(size + 4.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    said_of = {
        "image": "test images and what the model says (green right, red wrong)",
        "pixel": "test images, and the labels given (red: wrong)",
        "cell": "test scenes: letters found (●), missed (■), where none is (✕)",
    }[kind]
    axes.set_title(said_of, fontsize=10.5, pad=4)


# build a model


@cache
def adaptations() -> nn.Module:
    """All shipped adaptations."""
    return load(BUILDS)


@cache
def built(base: str, share: float, fewer: int, way: str) -> Lifted:
    """A shipped adaptation to letters: lifted out of the grown model, with its score on letters' test set."""
    settings = BUILDS.settings
    values = adaptations().get_submodule(build_key(base, share, fewer, way))
    assert isinstance(values, Learned)
    grown = values.into(grown_model(squad(settings.weight), usage(settings.weight, base), base, share, fewer, way))
    kept = tuple(mixture.router(NEW).experts for mixture in grown.mixtures)
    lifted = extract(grown, NEW, kept)
    value = float(provenance(BUILDS)["measured"][build_key(base, share, fewer, way)])
    return Lifted(lifted, kept, value, count_parameters(values), flops_of(lifted, NEW))


def builder(*, base: str = LETTERS, share: float = 1.0, fewer: int = 0, way: str = "1") -> Explorer:
    """Build a model that reads letters out of the modules of the shipped model: what it may use, what is new, what is trained."""

    def draw(figure: Figure, base: str, share: float, fewer: int, way: str) -> str:
        figure.set_layout_engine("none")
        found = built(base, share, fewer, way)
        full = float(provenance(BUILDS)["measured"]["full fine-tuning"])
        new = int(way) if way.isdigit() else 0
        with torch.no_grad():
            routes = found.model(world().test[NEW][0], NEW).routes
        shares = [torch.bincount(part.expert, minlength=part.num_experts) / part.tokens for part in routes]
        _draw_modules(figure.add_axes((0.13, 0.43, 0.40, 0.43)), found, shares, new)
        _draw_bars(figure.add_axes((0.62, 0.43, 0.33, 0.43)), found, full)
        _draw_strip(figure.add_axes((0.08, 0.05, 0.86, 0.27)), found.model, NEW)
        verdict = f"letters: {found.score:.2f} with {found.parameters:,} trained parameters; full fine-tuning {full:.2f}; old tasks: unchanged"
        figure.text(0.5, 0.945, verdict, ha="center", fontsize=13, fontweight="bold")
        ks = [mixture.router(NEW).k for mixture in found.model.mixtures]
        return f"{verdict}. Started from {base}, {share:.0%} of its experts, {new} new in each mixture, k = {ks[0]} heads and {ks[1]} MLP experts."

    controls = {
        "base": choice("start from the routers of", list(TASKS), base),
        "share": choice("old experts it may use", [("all", 1.0), ("most used half", 0.5)], share),
        "fewer": choice("experts a token", [("3 heads, 2 MLPs", 0), ("2 heads, 1 MLP", 1)], fewer),
        "way": choice("train", [("head", "head"), ("+ routers", "router"), ("+ 1 new expert each", "1"), ("+ 2 new experts each", "2")], way),
    }

    def state(base: str, share: float, fewer: int, way: str) -> dict[str, object]:
        return {"base": base, "share": share, "fewer": fewer, "way": way}

    ways = ("head", "router", "1", "2")

    def handle(event: PointerEvent) -> None:
        values = shown.values
        if event.kind == "key" and event.key in ("ArrowRight", "ArrowLeft"):
            step = 1 if event.key == "ArrowRight" else -1
            shown.set(way=ways[min(max(ways.index(values["way"]) + step, 0), len(ways) - 1)])
        elif event.kind == "press" and event.axes == 0:  # on the modules: right of the old experts asks for new ones, left for fewer
            old = 8
            shown.set(way="2" if event.x > old + 0.5 else "1" if event.x > old - 0.5 else values["way"])
            if event.x <= old - 0.5:
                shown.set(share=1.0 if values["share"] == 0.5 else 0.5)

    shown = Explorer(
        draw,
        controls,
        title="Build a model for letters out of modules",
        figsize=(10.0, 6.0),
        seed=BUILDS.settings.seed,
        on_pointer=handle,
        presets={
            "a linear probe": state(LETTERS, 1.0, 0, "head"),
            "let the routers choose": state(LETTERS, 1.0, 0, "router"),
            "one new expert": state(LETTERS, 1.0, 0, "1"),
            "start from photos": state(PHOTOS, 1.0, 0, "router"),
            "half, cheaper, two new": state(LETTERS, 0.5, 1, "2"),
        },
    )
    return shown


def _draw_modules(axes: Axes, found: Lifted, shares: Sequence[Tensor], new: int) -> None:
    """The experts of each mixture: dropped, frozen, new; the fuller, the more of letters' tokens visit them."""
    for row, (mixture, kept, share) in enumerate(zip(found.model.mixtures, found.kept, shares, strict=True)):
        total = 6 if isinstance(mixture, MoEAttention) else 8
        for expert in range(total):
            axes.add_patch(Rectangle((expert - 0.42, row - 0.36), 0.84, 0.72, facecolor="none", edgecolor=LIGHT, linewidth=1.2))
        for number, expert in enumerate(kept.tolist()):
            fresh = expert >= total
            x = expert if not fresh else 8 + expert - total
            colour, height = ORANGE if fresh else BLUE, 0.72 * float(share[number])
            axes.add_patch(Rectangle((x - 0.42, row + 0.36 - height), 0.84, height, facecolor=colour, edgecolor="none"))
            axes.add_patch(Rectangle((x - 0.42, row - 0.36), 0.84, 0.72, facecolor="none", edgecolor=colour, linewidth=2))
    axes.set(xlim=(-0.6, 9.6), ylim=(3.5, -0.5), xticks=[])
    axes.set_yticks(range(4), [name.replace(": ", "\n") for name in LAYERS], fontsize=9.5)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title("modules: old and frozen (blue), new (orange), left out (grey)", fontsize=10.5)
    axes.set_xlabel("filled: share of letters' tokens that visit the expert" + ("" if new else "; no new ones"), fontsize=9.5, color=GREY)


def _draw_bars(axes: Axes, found: Lifted, full: float) -> None:
    """Accuracy, trained parameters, parameters and operations, each beside full fine-tuning of the whole model."""
    parameters, flops = whole_of(BUILDS.settings.weight)
    everything = parameters + count_parameters(found.model.heads)
    size = count_parameters(found.model)
    bars = (
        ("letters accuracy (test)", f"{found.score:.2f}", found.score / full, GREEN),
        ("parameters trained", f"{found.parameters:,}", found.parameters / everything, ORANGE),
        ("parameters, lifted out", f"{size:,}", size / everything, BLUE),
        ("operations an image", f"{found.flops / 1e3:,.0f} kFLOPs", found.flops / flops, GREY),
    )
    for row, (label, value, share, colour) in enumerate(bars):
        axes.barh(row, share, color=colour, height=0.4)
        axes.text(0, row - 0.28, f"{label}: {value}", fontsize=10, va="bottom", color=BLACK)
    axes.axvline(1, color=BLACK, linewidth=1.2, linestyle="--")
    axes.set(xlim=(0, 1.25), ylim=(3.4, -0.75), yticks=[])
    axes.set_xticks([0, 0.5, 1], ["0", "1/2", "full fine-tuning"], fontsize=9.5)
    axes.spines["left"].set_visible(False)
