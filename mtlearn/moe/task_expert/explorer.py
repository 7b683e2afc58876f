"""Touch TaskExpert: move the mark and the shapes of a scene, and watch gates and labels of all tasks follow."""

from functools import cache
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mtlearn.datasets.scenes import HALF_SQUARE, MARK, MARK_VALUES, Layouts, Scenes, render_scenes, sample_scenes
from mtlearn.explore.explorer import Explorer, PointerEvent, choice, slider, switch
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, SEQUENTIAL, VERMILION
from mtlearn.lab.checkpoints import load
from mtlearn.lab.seeds import stream
from mtlearn.moe.task_expert.experiment import CHECKPOINTS, SIZE, TASKS, average_gates, decode, mean_iou
from mtlearn.moe.task_expert.method import Decoded, DenseModel

OWN, AVERAGE = "own", "average"
NAMES = [task.name for task in TASKS]
CLASSES = ("#FFFFFF", BLUE, ORANGE)  # background, class 1, class 2
GAP = 3  # pixels between two maps
SEED = 4  # of the noise, and of what comes first


@cache
def model() -> DenseModel:
    """The shipped model."""
    loaded = load(CHECKPOINTS[0])
    assert isinstance(loaded, DenseModel)
    return loaded


@cache
def averages() -> list[Tensor]:
    """The mean gates over 400 scenes of all regimes, (T, choices) for each layer."""
    return average_gates(decode(model(), sample_scenes(400, generator=stream(SEED, "average")).images))


def regime_of(value: float) -> int:
    """The regime whose mark is nearest to ``value``."""
    return int(np.abs(np.array(MARK_VALUES) - value).argmin())


class Scene:
    """What the reader has put where: rows and columns of the centres, and what was touched last."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Everything back to where it was at first."""
        self.places: dict[str, tuple[int, int]] = {"square": (6, 4), "disc": (11, 11), "mark": (1, 8)}
        self.touched = "mark"

    def handle(self, event: PointerEvent) -> None:
        """Press to take the nearest thing, drag it, or move it with the arrows."""
        if event.kind == "key":
            step = {"ArrowLeft": (0, -1), "ArrowRight": (0, 1), "ArrowUp": (-1, 0), "ArrowDown": (1, 0)}.get(event.key)
            if event.key in ("s", "d", "m"):
                self.touched = {"s": "square", "d": "disc", "m": "mark"}[event.key]
            elif step is not None:
                row, column = self.places[self.touched]
                self._move(row + step[0], column + step[1])
        elif event.axes == 0:
            if event.kind == "press":
                away = {name: np.hypot(row - event.y, column - event.x) for name, (row, column) in self.places.items()}
                self.touched = min(away, key=lambda name: float(away[name]))
            if event.kind in ("press", "drag"):
                self._move(round(event.y), round(event.x))

    def _move(self, row: int, column: int) -> None:
        """Put the touched thing at a place, or as near to it as the rows of its kind and the border allow."""
        if self.touched == "mark":
            self.places["mark"] = (1, min(max(column, 1), SIZE - 2))
        else:
            low, high = HALF_SQUARE, SIZE - 1 - HALF_SQUARE
            self.places[self.touched] = (min(max(row, MARK + HALF_SQUARE), high), min(max(column, low), high))

    def painted(self, value: float) -> Scenes:
        """The scene with a mark of ``value``, noise and all."""
        layouts = Layouts(
            torch.tensor([self.places["square"]]),
            torch.tensor([self.places["disc"]]),
            torch.tensor([[0.9, 0.5]]),
            torch.tensor([self.places["mark"][1]]),
            torch.tensor([value]),
            torch.tensor([regime_of(value)]),
        )
        return render_scenes(layouts, generator=stream(SEED, "noise"))


def explorer(value: float = -1.5, task: str = NAMES[0]) -> Explorer:
    """Build the explorer with a mark of ``value`` and the gates of ``task``."""
    shown = Scene()

    def draw(figure: Figure, value: float, task: str, gates: str, cut: bool) -> str:
        scene, number = shown.painted(value), NAMES.index(task)
        options: dict[str, Any] = {"cut_memory": cut}
        if gates == AVERAGE:
            options["gates"] = averages()
        decoded = decode(model(), scene.images, **options)
        figure.set_layout_engine("none")
        _draw_scene(figure.add_axes((0.03, 0.40, 0.313, 0.505)), scene, shown, value)
        _draw_maps(figure.add_axes((0.43, 0.40, 0.483, 0.505)), decoded, scene, number)
        _draw_gates(figure.add_axes((0.065, 0.085, 0.915, 0.2)), decoded, number, frozen=gates == AVERAGE, cut=cut)
        score = mean_iou(decoded.predictions["segmentation"].argmax(1), scene.segmentation, (1, 2))
        names = "square 1 (blue), disc 2 (orange)" if int(scene.regime) % 2 == 0 else "square 2 (orange), disc 1 (blue)"
        strips = "; ".join(
            f"layer {layer}: " + ", ".join(f"{share:.2f}" for share in weights[0, number].tolist()) for layer, weights in enumerate(decoded.gates, 1)
        )
        told = f"mark {value:+g}, {'' if value in MARK_VALUES else 'nearest '}regime {int(scene.regime)}: {names}"
        figure.text(0.03, 0.955, told, fontsize=13, fontweight="bold", color=BLACK)
        return f"{told}. mIoU of this image {score:.2f}. Gates of {task}{', frozen' if gates == AVERAGE else ''}: {strips}"

    controls = {
        "value": slider("value of the mark", value, -3.5, 3.5, 0.25),
        "task": choice("gates of", NAMES, task),
        "gates": choice("gates", [("its own for this image", OWN), ("frozen to the average", AVERAGE)], OWN),
        "cut": switch("cut the memory: every layer finds what the first one found"),
    }

    def state(value: float, task: str = NAMES[0], gates: str = OWN, cut: bool = False) -> dict[str, object]:
        return {"value": value, "task": task, "gates": gates, "cut": cut}

    return Explorer(
        draw,
        controls,
        title="What does the mark change?",
        figsize=(10.0, 6.2),
        seed=SEED,
        on_pointer=shown.handle,
        on_reset=shown.clear,
        presets={
            "−3: the square is 1": state(-3.0),
            "−1.5: the names swap": state(-1.5),
            "+3: and back the depth": state(3.0, "depth"),
            "the boundary's gates stay": state(-1.5, "boundary"),
            "frozen gates: wrong names": state(-1.5, gates=AVERAGE),
            "the memory cut": state(-1.5, cut=True),
            "between two regimes": state(-2.25),
        },
    )


def _draw_scene(axes: Axes, scene: Scenes, shown: Scene, value: float) -> None:
    """The picture, the mark's value in it, and a frame around what was touched last."""
    axes.imshow(scene.images[0, 0].numpy(), cmap="gray", vmin=-1.2, vmax=1.2, interpolation="nearest")
    axes.text(shown.places["mark"][1], 1, f"{value:+g}", ha="center", va="center_baseline", fontsize=11, color="white" if value < 0.5 else BLACK)
    row, column = shown.places[shown.touched]
    half = (1 if shown.touched == "mark" else HALF_SQUARE) + 0.75
    axes.add_patch(Rectangle((column - half, row - half), 2 * half, 2 * half, fill=False, edgecolor=VERMILION, linewidth=2))
    axes.set(xticks=[], yticks=[], xlim=(-0.5, SIZE - 0.5), ylim=(SIZE - 0.5, -0.5))
    axes.set_xlabel("drag the mark, the square, the disc", fontsize=10.5, color=GREY)


def _draw_maps(axes: Axes, decoded: Decoded, scene: Scenes, number: int) -> None:
    """Above what each task predicts, below the right answer: one picture, as axes of their own would take most of the time of drawing."""
    found = {name: value[0].numpy() for name, value in decoded.predictions.items()}
    labels, depth, boundary = found["segmentation"].argmax(0), found["depth"][0], found["boundary"][0]
    right = scene.segmentation[0].numpy(), scene.depth[0].numpy(), scene.boundary[0].numpy()
    rows = (labels, depth, 1 / (1 + np.exp(-boundary))), right
    wide = SIZE + GAP
    canvas = np.ones((2 * wide - GAP, 3 * wide - GAP, 3))
    for row, maps in enumerate(rows):
        for column, (paint, one) in enumerate(zip((_by_class, _by_depth, _by_ink), maps, strict=True)):
            canvas[row * wide : row * wide + SIZE, column * wide : column * wide + SIZE] = paint(one)
            colour, width = (BLACK, 2.2) if column == number else (LIGHT, 1.2)
            corner = (column * wide - 0.5, row * wide - 0.5)
            axes.add_patch(Rectangle(corner, SIZE, SIZE, fill=False, edgecolor=colour, linewidth=width, clip_on=False))
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    shapes = right[0] > 0
    wrong, off = float((labels != right[0])[shapes].mean()), float(np.abs(depth - right[1])[shapes].mean())
    words = (f"{wrong:.0%} of shapes wrong", f"off by {off:.2f}", "no regime changes it")
    for column, (name, word, bad) in enumerate(zip(NAMES, words, (wrong > 0.2, off > 0.2, False), strict=True)):
        centre = column * wide + SIZE / 2 - 0.5
        axes.text(centre, -1.6, name, ha="center", fontsize=11, fontweight="bold" if column == number else "normal")
        axes.text(centre, 2 * wide + 0.6, word, ha="center", fontsize=10, color=VERMILION if bad else GREY)
    for row, word in enumerate(("predicted", "right")):
        axes.text(-1.6, row * wide + SIZE / 2, word, rotation=90, ha="center", va="center", fontsize=10.5)


def _by_class(labels: np.ndarray) -> np.ndarray:
    """(height, width) to colours (height, width, 3)."""
    return np.asarray(np.array([to_rgb(colour) for colour in CLASSES])[labels])


def _by_depth(depth: np.ndarray) -> np.ndarray:
    return np.asarray(mpl.colormaps[SEQUENTIAL](np.clip(depth, 0, 1))[..., :3])


def _by_ink(probability: np.ndarray) -> np.ndarray:
    return np.repeat(1 - probability[..., None], 3, -1)


def _draw_gates(axes: Axes, decoded: Decoded, number: int, *, frozen: bool, cut: bool) -> None:
    """A strip for each layer: one bar an expert and one for the memory, with a tick at the average over images."""
    choices = decoded.gates[0].shape[-1]
    places = np.arange(len(decoded.gates))[:, None] * (choices + 1.0) + np.arange(choices)  # (layers, choices)
    shares = np.stack([weights[0, number].numpy() for weights in decoded.gates])
    average = np.stack([mean[number].numpy() for mean in averages()])
    colours = [
        GREEN if choice == choices - 1 and not (cut and layer) else LIGHT if choice == choices - 1 else GREY if frozen else BLUE
        for layer in range(len(shares))
        for choice in range(choices)
    ]
    axes.bar(places.ravel(), shares.ravel(), color=colours, width=0.75)
    axes.hlines(average.ravel(), places.ravel() - 0.45, places.ravel() + 0.45, color=BLACK, linewidth=2)
    names = [*(f"E{k}" for k in range(1, choices)), "memory"]
    axes.set_xticks(places.ravel(), names * len(shares), fontsize=9.5)
    axes.set(ylim=(0, 1.0), yticks=[0, 0.5, 1], xlim=(-0.7, places.max() + 0.7))
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("gate", fontsize=10.5)
    for layer, middle in enumerate(places.mean(1), 1):
        axes.text(middle, 1.05, f"{NAMES[number]}, layer {layer}" + (", frozen" if frozen else ""), ha="center", fontsize=11)
    axes.set_xlabel("black lines: average over images", fontsize=9.5, color=GREY)
