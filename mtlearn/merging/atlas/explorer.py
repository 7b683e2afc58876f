"""Touch aTLAS: watch coefficients of blocks grow while it trains, and drag a point over the plane that two task vectors span."""

from functools import cache

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mtlearn.datasets.digits import TRANSFORMS
from mtlearn.explore.canvas import Words
from mtlearn.explore.explorer import Explorer, PointerEvent, choice, menu, slider
from mtlearn.explore.style import BLACK, BLUE, DIVERGING, GREEN, GREY, ORANGE, VERMILION
from mtlearn.lab.checkpoints import load
from mtlearn.merging.atlas.experiment import CHECKPOINTS, PLANES, SHIPPED, WHOLE, Story

KINDS = ("one a vector", "one a block", "one a block, L1 penalty")
BLOCK_NAMES = ("W1", "b1", "gain 1", "shift 1", "W2", "b2", "gain 2", "shift 2", "W3", "b3")
SHORT = ("rotate 90", "rotate 270", "invert", "flip l-r", "flip t-b", "shift", "shuffle", "difference")
PAIRS = {f"{SHORT[first]} + {SHORT[second]}": number for number, (first, second) in enumerate(SHIPPED.pairs)}
MOVES = dict(zip(("whole vectors", "W1 alone", "W2 alone", "W3 alone"), PLANES, strict=True))
AXIS = np.linspace(SHIPPED.low, SHIPPED.high, SHIPPED.points)
STEP = 0.05  # of the point, by an arrow key
assert len(SHORT) == len(TRANSFORMS)


@cache
def story() -> Story:
    """The shipped course of learning."""
    found = load(CHECKPOINTS[0])
    assert isinstance(found, Story)
    return found


def read_off(plane: Tensor, across: float, up: float) -> tuple[float, float]:
    """Both accuracies at a point of a plane (points, points, 2), interpolated between the grid's points."""
    places = [min(max((value - SHIPPED.low) / (SHIPPED.high - SHIPPED.low), 0.0), 1.0) * (SHIPPED.points - 1) for value in (up, across)]
    (row, column), last = (int(place) for place in places), SHIPPED.points - 2
    row, column = min(row, last), min(column, last)
    down, right = places[0] - row, places[1] - column
    weights = torch.tensor([[(1 - down) * (1 - right), (1 - down) * right], [down * (1 - right), down * right]])
    first, second = torch.einsum("rc,rca->a", weights, plane[row : row + 2, column : column + 2]).tolist()
    return first, second


def explorer(*, step: int = SHIPPED.every * SHIPPED.snapshots) -> Explorer:
    """Above, the coefficients of all blocks at one step of training, with the accuracies; below, the plane of two task vectors.

    Drag on the plane, or move the point with the arrow keys.
    """
    held: list[tuple[float, float]] = []  # the point, once it was moved

    def place(pair: str, moves: str) -> tuple[float, float]:
        if held:
            return held[0]
        both = story().diagonal[PAIRS[pair]].item()
        return both, both

    def draw(figure: Figure, kind: str, step: int, pair: str, moves: str) -> str:
        figure.set_layout_engine("none")
        row, snapshot = KINDS.index(kind), step // SHIPPED.every
        said = [
            _draw_map(figure.add_axes((0.095, 0.61, 0.47, 0.32)), story().coefficients[row, snapshot], kind),
            _draw_bars(figure.add_axes((0.68, 0.61, 0.30, 0.32)), story().accuracy[row, snapshot]),
        ]
        number, plane = PAIRS[pair], PLANES.index(MOVES[moves])
        point = place(pair, moves)
        found = read_off(story().plane[number, plane], *point)
        _draw_plane(figure.add_axes((0.095, 0.09, 0.36, 0.40)), number, plane, point)
        said.append(_draw_point(figure.add_axes((0.74, 0.20, 0.24, 0.20)), number, found))
        return f"step {step}, {kind}: " + "; ".join(said) + f" at ({point[0]:.2f}, {point[1]:.2f})"

    controls = {
        "kind": choice("coefficients", KINDS, "one a block"),
        "step": slider("training step", step, 0, SHIPPED.every * SHIPPED.snapshots, SHIPPED.every),
        "pair": menu("plane of", list(PAIRS)),
        "moves": choice("what moves on the plane", list(MOVES)),
    }

    def on_pointer(event: PointerEvent) -> None:
        moves = {"ArrowLeft": (-STEP, 0.0), "ArrowRight": (STEP, 0.0), "ArrowUp": (0.0, STEP), "ArrowDown": (0.0, -STEP)}
        if event.kind == "key" and event.key in moves:
            across, up = place(controls["pair"].value, controls["moves"].value)
            across, up = across + moves[event.key][0], up + moves[event.key][1]
        elif event.axes == 2 and event.kind in ("press", "drag"):
            across, up = event.x, event.y
        else:
            return
        held[:] = [(min(max(across, SHIPPED.low), SHIPPED.high), min(max(up, SHIPPED.low), SHIPPED.high))]

    last = SHIPPED.every * SHIPPED.snapshots
    start = {"kind": "one a block", "step": last, "pair": next(iter(PAIRS)), "moves": WHOLE}
    pairs = list(PAIRS)
    return Explorer(
        draw,
        controls,
        title="Coefficients of blocks: move the training step; drag the point over the plane of two task vectors.",
        figsize=(10.0, 6.6),
        seed=SHIPPED.seed,
        on_pointer=on_pointer,
        on_reset=held.clear,
        presets={
            "the start: the base": {**start, "step": 0},
            "one scalar a vector": {**start, "kind": "one a vector"},
            "the price of a coefficient": {**start, "kind": KINDS[2]},
            "half way": {**start, "step": last // 2},
            "a pair that shares well": {**start, "pair": pairs[-1]},
            "one matrix: off the diagonal": {**start, "moves": "W1 alone", "pair": pairs[2]},
        },
    )


def _draw_map(axes: Axes, coefficients: Tensor, kind: str) -> str:
    """Coefficients (T, m) as a heat map around zero."""
    largest = 3.0
    axes.imshow(coefficients.numpy(), cmap=DIVERGING, vmin=-largest, vmax=largest, aspect="auto")
    places, words, colours = [], [], []
    for task, row in enumerate(coefficients.tolist()):
        for block, value in enumerate(row):
            places.append((float(block), float(task)))
            words.append(f"{round(value, 1) + 0.0:.1f}".replace("-", "−"))  # + 0.0: no minus before a zero
            colours.append("white" if abs(value) > 2 else BLACK)
    axes.add_artist(Words(places, words, colours, size=9))
    axes.set_xticks(range(len(BLOCK_NAMES)), BLOCK_NAMES, fontsize=8.5)
    axes.set_yticks(range(len(SHORT)), SHORT, fontsize=9)
    axes.tick_params(length=0)
    axes.set_title(f"learned coefficients, {kind}", loc="left", fontsize=11)
    matrices = [block for block, name in enumerate(BLOCK_NAMES) if name.startswith("W")]
    others = [block for block in range(len(BLOCK_NAMES)) if block not in matrices]
    sizes = [coefficients[:, blocks].abs().mean().item() for blocks in (matrices, others)]
    axes.set_xlabel(f"mean size: weight matrices {sizes[0]:.2f}, biases and norms {sizes[1]:.2f}", fontsize=10)
    return f"mean coefficient of the matrices {sizes[0]:.2f}, of the others {sizes[1]:.2f}"


def _draw_bars(axes: Axes, accuracy: Tensor) -> str:
    """Accuracy of each task: now as a bar, of the base and of the task's own encoder as strokes."""
    now, zero, own = (100 * values.numpy() for values in (accuracy, story().zero, story().tuned))
    y = np.arange(len(now))
    axes.barh(y, now, height=0.62, color=BLUE)
    axes.vlines(zero, y - 0.42, y + 0.42, color=BLACK, linewidth=2)
    axes.vlines(own, y - 0.42, y + 0.42, color=ORANGE, linewidth=3)
    axes.text(zero[0], -0.62, "zero-shot", ha="right", va="bottom", fontsize=9, color=BLACK)
    axes.text(101, -0.62, "fine-tuned alone", ha="right", va="bottom", fontsize=9, color=BLACK)
    axes.set_yticks(y, SHORT, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(now) - 0.4, -0.6)
    axes.set_xlim(50, 101)
    axes.set_xticks([50, 75, 100])
    axes.set_xlabel(f"test accuracy, per cent (mean {now.mean():.1f})", fontsize=10)
    return f"mean accuracy {now.mean():.1f} per cent (zero-shot {zero.mean():.1f}, fine-tuned {own.mean():.1f})"


def _draw_plane(axes: Axes, number: int, which: int, point: tuple[float, float]) -> None:
    """The mean accuracy as colour, each task's as contours, the isotropic diagonal, the learned point, the point to drag."""
    plane = 100 * story().plane[number, which].numpy()
    first, second = (SHORT[task] for task in SHIPPED.pairs[number])
    mean = plane.mean(-1)
    axes.imshow(
        mean, origin="lower", extent=(SHIPPED.low, SHIPPED.high, SHIPPED.low, SHIPPED.high), cmap="Greys", vmin=20, vmax=140, aspect="auto",
        interpolation="bilinear",
    )  # fmt: skip
    top = plane.max((0, 1))
    for task, colour in ((0, BLUE), (1, VERMILION)):
        levels = [top[task] - drop for drop in (20, 10, 5, 2)]
        axes.contour(AXIS, AXIS, plane[..., task], levels=levels, colors=colour, linewidths=[0.8, 1.1, 1.5, 2.2])
    axes.plot([SHIPPED.low, SHIPPED.high], [SHIPPED.low, SHIPPED.high], color=GREY, linewidth=1.2, linestyle="--")
    across, up = story().learned[number, which].tolist()
    inside = np.clip((across, up), SHIPPED.low + 0.04, SHIPPED.high - 0.04)
    axes.plot(*inside, "*", color=GREEN, markersize=15, markeredgecolor="white")
    both = story().diagonal[number].item()
    axes.plot(both, both, "D", color=GREY, markersize=7, markeredgecolor="white")
    axes.plot(*point, "o", markersize=12, markerfacecolor="none", markeredgecolor=BLACK, markeredgewidth=2.5)
    axes.set_xticks([-0.5, 0, 0.5, 1, 1.5])
    axes.set_yticks([-0.5, 0, 0.5, 1, 1.5])
    axes.set_xlim(SHIPPED.low, SHIPPED.high)
    axes.set_ylim(SHIPPED.low, SHIPPED.high)
    axes.set_xlabel(f"coefficient of {first}", color=BLUE, fontsize=10)
    axes.set_ylabel(f"coefficient of {second}", color=VERMILION, fontsize=10)
    axes.set_title("accuracy where two vectors meet", loc="left", fontsize=11)
    axes.text(1.04, 0.98, "grey: mean accuracy\nlines: 20, 10, 5, 2 below\nthe best of each task", transform=axes.transAxes, fontsize=9, va="top")
    axes.text(1.04, 0.62, "★ learned", transform=axes.transAxes, fontsize=10, color=GREEN, va="top", family="DejaVu Sans")
    axes.text(1.04, 0.53, "◆ searched scalar", transform=axes.transAxes, fontsize=10, color=GREY, va="top", family="DejaVu Sans")
    axes.text(1.04, 0.44, "-- equal coefficients", transform=axes.transAxes, fontsize=10, color=GREY, va="top")
    axes.text(1.04, 0.35, "○ yours: drag it", transform=axes.transAxes, fontsize=10, va="top", family="DejaVu Sans")


def _draw_point(axes: Axes, number: int, found: tuple[float, float]) -> str:
    """Accuracy of both tasks at the point."""
    names = [SHORT[task] for task in SHIPPED.pairs[number]]
    values = [100 * value for value in found]
    axes.barh([0, 1], values, height=0.6, color=[BLUE, VERMILION])
    for row, value in enumerate(values):
        axes.text(value + 0.8, row, f"{value:.1f}", va="center", fontsize=10)
    axes.set_yticks([0, 1], names, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(1.5, -0.5)
    axes.set_xlim(0, 115)
    axes.set_xticks([0, 50, 100])
    axes.set_title("at your point", loc="left", fontsize=11)
    axes.set_xlabel(f"accuracy, per cent (mean {sum(values) / 2:.1f})", fontsize=10)
    return f"at the point {names[0]} {values[0]:.1f}, {names[1]} {values[1]:.1f} per cent"
