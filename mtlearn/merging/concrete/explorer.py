"""Touch Concrete: the relaxed coin, the mask of the first layer while it is learned, and what it does to a strong and to a weak generalist."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mtlearn.explore.explorer import Explorer, PointerEvent, choice, slider, switch
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, SEQUENTIAL, VERMILION
from mtlearn.lab.checkpoints import load
from mtlearn.lab.seeds import stream
from mtlearn.merging.composition import entropy
from mtlearn.merging.concrete.experiment import CHECKPOINTS, SHIPPED, ShippedMasks, shipped_world
from mtlearn.merging.concrete.method import concrete, masked_vectors, shuffled
from mtlearn.merging.concrete.worlds import World
from mtlearn.merging.task_vectors import apply, unflatten

STRONG, WEAK = "strong", "weak"
MEAN, SOFT, COINS = "σ(x)", "soft sample", "coins"
UNITS = SHIPPED.settings.family.width
ACROSS, SIDE = 16, 9  # tiles a row, pixels from one tile to the next
FIRST = "0.weight"  # of the encoder: (units, 64)


@cache
def shipped() -> ShippedMasks:
    """The shipped masks and models."""
    found = load(CHECKPOINTS[0])
    assert isinstance(found, ShippedMasks)
    return found


@cache
def world_of(kind: str) -> World:
    """The shipped test images with one of the generalists."""
    return shipped_world(shipped(), kind)


@dataclass(frozen=True)
class Judged:
    """What a merged model says of the shipped test images of all tasks.

    Attributes:
        accuracy: mean over the tasks.
        entropy: mean of the predictions, in nats.
        shares: (10,) of the predictions.
    """

    accuracy: float
    entropy: float
    shares: Tensor


@torch.no_grad()
def judge(kind: str, mask: dict[str, Tensor]) -> Judged:
    """Merge under a mask and look."""
    world = world_of(kind)
    kept = shipped().strong if kind == STRONG else shipped().weak
    state = apply(world.base, masked_vectors(world.vectors, mask)[0], float(kept.scale))
    logits = torch.stack(world.logits(state))  # (T, n, 10)
    said = logits.argmax(-1)
    return Judged(
        float((said == shipped().labels).float().mean()), float(entropy(logits)), torch.bincount(said.flatten(), minlength=10) / said.numel()
    )


def probabilities(kind: str, step: int) -> dict[str, Tensor]:
    """Name to σ(x) as it was after ``step`` steps."""
    kept = shipped().strong if kind == STRONG else shipped().weak
    return unflatten(kept.masks[SHIPPED.steps.index(step)].float() / 255, world_of(kind).vectors[0])


def mask_at(kind: str, step: int, form: str, temperature: float, mixed: bool) -> dict[str, Tensor]:
    """σ(x) of a step or one sample from it, in place or shuffled within each tensor."""
    mask = probabilities(kind, step)
    if form != MEAN:
        draws = stream(SHIPPED.seed, "explorer")
        for name, value in mask.items():
            soft = concrete(torch.logit(value.clamp(0.002, 0.998)), torch.rand(value.shape, generator=draws), temperature)
            mask[name] = soft if form == SOFT else (soft > 0.5).float()
    return shuffled(mask, generator=stream(SHIPPED.seed, "shuffle")) if mixed else mask


@cache
def curves(kind: str, mixed: bool) -> tuple[Judged, ...]:
    """Judged after each of the steps, without noise."""
    return tuple(judge(kind, mask_at(kind, step, MEAN, 1.0, mixed)) for step in SHIPPED.steps)


def tiles(first: Tensor) -> Tensor:
    """(units, 64) to one picture of 8 x 8 tiles with gaps of NaN: (rows * 9 - 1, 16 * 9 - 1)."""
    rows = len(first) // ACROSS
    grid = torch.full((rows, SIDE, ACROSS, SIDE), torch.nan)
    grid[:, : SIDE - 1, :, : SIDE - 1] = first.view(rows, ACROSS, SIDE - 1, SIDE - 1).transpose(1, 2)
    return grid.view(rows * SIDE, ACROSS * SIDE)[:-1, :-1]


def explorer() -> Explorer:
    """The coin, the tiles, accuracy, entropy and classes.

    Press or drag on tiles to drop a hidden unit's incoming changes (with shift: to keep them all); by keyboard the arrows move a frame, the space bar
    drops, Enter keeps, Escape forgets what was done by hand.
    """
    by_hand: dict[int, float] = {}  # hidden unit to the mask of its row
    frame: list[int] = []  # the unit that the keyboard is on

    def draw(figure: Figure, generalist: str, step: int, mixed: bool, form: str, temperature: float, x: float) -> str:
        figure.set_layout_engine("none")
        mask = mask_at(generalist, step, form, temperature, mixed)
        for unit, value in by_hand.items():
            mask[FIRST][unit] = value
        known = form == MEAN and not by_hand
        found = curves(generalist, mixed)[SHIPPED.steps.index(step)] if known else judge(generalist, mask)
        _draw_coin(figure.add_axes((0.075, 0.60, 0.235, 0.33)), temperature, x)
        _draw_tiles(figure.add_axes((0.36, 0.44, 0.63, 0.50)), mask[FIRST], frame, form)
        _draw_accuracy(figure.add_axes((0.075, 0.10, 0.235, 0.33)), generalist, step, found)
        _draw_entropy(figure.add_axes((0.425, 0.10, 0.215, 0.24)), generalist, step, found)
        _draw_classes(figure.add_axes((0.74, 0.10, 0.245, 0.24)), found)
        kept = torch.cat([value.flatten() for value in mask.values()])
        how = f"{form}{', shuffled' if mixed else ''}{f', {len(by_hand)} units by hand' if by_hand else ''}"
        return (
            f"{generalist} generalist, step {step}, {how}: accuracy {found.accuracy:.3f} (unmasked {curves(generalist, False)[0].accuracy:.3f}), "
            f"entropy {found.entropy:.3f}, most frequent class {found.shares.max():.2f} of the predictions, mean of the mask {kept.mean():.2f}, "
            f"below 0.1 for {(kept < 0.1).float().mean():.2f} of the weights; coin of logit {x:g} at temperature {temperature:g}: "
            f"kept with probability {1 / (1 + np.exp(-x)):.2f}"
        )

    def on_pointer(event: PointerEvent) -> None:
        moves = {"ArrowLeft": -1, "ArrowRight": 1, "ArrowUp": -ACROSS, "ArrowDown": ACROSS}
        if event.kind == "key":
            unit = frame[0] if frame else UNITS // 2
            if event.key in moves:
                if 0 <= unit + moves[event.key] < UNITS:
                    frame[:] = [unit + moves[event.key]]
            elif event.key == "Escape":
                by_hand.clear()
            elif event.key in (" ", "Enter"):
                frame[:] = [unit]
                by_hand[unit] = float(event.key == "Enter")
        elif event.axes == 1 and event.kind in ("press", "drag"):
            unit = int(event.y + 0.5) // SIDE * ACROSS + int(event.x + 0.5) // SIDE
            if 0 <= unit < UNITS:
                by_hand[unit] = float(event.key == "Shift")

    def forget() -> None:
        by_hand.clear()
        frame.clear()

    for generalist in (STRONG, WEAK):
        curves(generalist, True)  # before the first redraw needs them
        curves(generalist, False)
    steps = SHIPPED.steps
    start = {"generalist": STRONG, "step": steps[-1], "mixed": False, "form": MEAN, "temperature": 0.5, "x": 1.0}
    controls = {
        "generalist": choice("generalist", [STRONG, WEAK]),
        "step": slider("steps of training the mask", steps[-1], 0, steps[-1], steps[1]),
        "mixed": switch("shuffle mask"),
        "form": choice("mask", [MEAN, SOFT, COINS]),
        "temperature": slider("temperature T", 0.5, 0.05, 2.0, 0.05),
        "x": slider("logit x of the coin", 1.0, -4.0, 4.0, 0.25),
    }
    return Explorer(
        draw,
        controls,
        title="Train the mask, shuffle it, take the weak generalist; drop a hidden unit by pressing its tile.",
        figsize=(10.0, 6.2),
        seed=SHIPPED.seed,
        on_pointer=on_pointer,
        on_reset=forget,
        presets={
            "before training": {**start, "step": 0},
            "shuffle: the gain is gone": {**start, "mixed": True},
            "weak: surer and wrong": {**start, "generalist": WEAK},
            "coins": {**start, "form": COINS, "temperature": 0.05},
            "one soft sample": {**start, "form": SOFT, "temperature": 0.5},
            "hot: no longer a coin": {**start, "form": SOFT, "temperature": 2.0},
        },
    )


def _draw_coin(axes: Axes, temperature: float, x: float) -> None:
    """M against u, for this temperature and three others."""
    u = torch.linspace(0, 1, 401)
    for other in (0.05, 2.0):
        axes.plot(u, concrete(torch.tensor(x).expand(401), u, other), color=LIGHT, linewidth=1.5)
    likely = 1 / (1 + np.exp(-x))
    axes.axvspan(1 - likely, 1, color=ORANGE, alpha=0.18, linewidth=0)
    axes.plot(u, concrete(torch.tensor(x).expand(401), u, temperature), color=BLUE, linewidth=2.5)
    axes.axhline(0.5, color=GREY, linewidth=1, linestyle=":")
    axes.plot([1 - likely], [0.5], "o", color=VERMILION, markersize=7)
    right = likely > 0.5
    axes.text(float(right), 0.06 if right else 0.9, f"m > ½: {likely:.2f} of all u", ha="right" if right else "left", fontsize=10)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], xlabel="uniform number u", ylabel="mask m")
    axes.set_title(f"the coin: x = {x:g}, T = {temperature:g}".replace("-", "−"), loc="left", fontsize=11)


def _draw_tiles(axes: Axes, first: Tensor, frame: list[int], form: str) -> None:
    """The mask of the first layer, a tile of 8 x 8 pixels for each hidden unit."""
    picture = tiles(first)
    axes.imshow(picture.numpy(), cmap=SEQUENTIAL, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    for unit in frame:
        row, column = divmod(unit, ACROSS)
        axes.add_patch(Rectangle((column * SIDE - 1, row * SIDE - 1), SIDE, SIDE, fill=False, edgecolor=VERMILION, linewidth=2.5))
    axes.set_axis_off()
    axes.set_title(f"first layer, {form}: a tile is a hidden unit, a pixel its weight for that pixel", loc="left", fontsize=11)
    words = f"dark blue: dropped, yellow: kept (mean {float(first.mean()):.2f})"
    axes.text(0.5, -0.02, words, transform=axes.transAxes, ha="center", va="top", fontsize=11)


def _draw_accuracy(axes: Axes, kind: str, step: int, found: Judged) -> None:
    """Learned and shuffled masks over the steps, and the model as it is now."""
    steps = SHIPPED.steps
    lines = {mixed: [100 * judged.accuracy for judged in curves(kind, mixed)] for mixed in (False, True)}
    low, high = (pick([*lines[False], *lines[True], 100 * found.accuracy]) for pick in (min, max))
    room = max(high - low, 2.0)
    late = len(steps) // 2  # the words stand beside the second half of their lines, clear of them
    for mixed, word, colour in ((False, "learned", GREEN), (True, "shuffled", GREY)):
        axes.plot(steps, lines[mixed], color=colour)
        above = lines[mixed][-1] >= lines[not mixed][-1]
        edge = max(lines[mixed][late:]) + 0.05 * room if above else min(lines[mixed][late:]) - 0.05 * room
        axes.text(0.92 * steps[-1], edge, word, ha="right", va="bottom" if above else "top", fontsize=10, color=colour)
    axes.plot([step], [100 * found.accuracy], "o", color=VERMILION, markersize=9)
    axes.text(0.02, 0.98, f"now {100 * found.accuracy:.1f}", transform=axes.transAxes, va="top", color=VERMILION, fontsize=11)
    axes.set(xlim=(-6, steps[-1] + 6), ylim=(low - 0.25 * room, high + 0.35 * room), xticks=[0, 125, 250], xlabel="steps", ylabel="per cent right")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_title("accuracy of the merged model", loc="left", fontsize=11)


def _draw_entropy(axes: Axes, kind: str, step: int, found: Judged) -> None:
    """What is minimised, over the steps."""
    values = [judged.entropy for judged in curves(kind, False)]
    axes.plot(SHIPPED.steps, values, color=PURPLE)
    axes.plot([step], [found.entropy], "o", color=VERMILION, markersize=9)
    axes.set_ylim(0, 1.25 * max(*values, found.entropy))
    axes.set(xlim=(-6, SHIPPED.steps[-1] + 6), xticks=[0, 125, 250], xlabel="steps", ylabel="nats")
    axes.set_title(f"entropy of the answers: {found.entropy:.2f}", loc="left", fontsize=11)


def _draw_classes(axes: Axes, found: Judged) -> None:
    """How often each class is the answer."""
    shares = 100 * found.shares.numpy()
    largest = int(shares.argmax())
    axes.bar(range(10), shares, width=0.75, color=[VERMILION if c == largest and shares[c] > 20 else BLUE for c in range(10)])
    axes.axhline(10, color=BLACK, linewidth=1, linestyle=":")
    axes.set(xlim=(-0.6, 9.6), ylim=(0, max(25.0, 1.15 * shares.max())), xticks=range(10), xlabel="answer (dotted: all alike)", ylabel="per cent")
    axes.set_title("answers over all tasks", loc="left", fontsize=11)
