"""Touch ICM-LoRA: turn a dial, and an adapter for digits at that angle is generated and loaded at once."""

import math
from functools import cache, lru_cache

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from mtlearn.datasets.digits import Digits, digits, rotated
from mtlearn.explore.canvas import Words
from mtlearn.explore.explorer import Explorer, PointerEvent, choice, slider
from mtlearn.explore.style import BLUE, GREY, LIGHT, ORANGE, VERMILION
from mtlearn.lab.checkpoints import load
from mtlearn.lab.seeds import stream
from mtlearn.merging.icm_lora.baselines import Ridge, nearest
from mtlearn.merging.icm_lora.experiment import CHECKPOINTS, PENALTIES, ShippedTasks, accuracy, examples_of, task_vectors
from mtlearn.merging.icm_lora.method import generate

WAYS = ("CVAE", "nearest seen LoRA", "ridge", "average")
SPACINGS = {f"every {checkpoint.settings.angles.spacing} degrees": checkpoint for checkpoint in CHECKPOINTS}
GRID = torch.arange(0.0, 360.0, 5.0)  # degrees at which accuracies are drawn
JUDGED = 200  # test images an angle
SHOWN = 6  # test digits in the picture
REACH = 3.0  # of the latent plane


@cache
def tasks_of(spacing: str) -> ShippedTasks:
    """Base model, generator and adapters."""
    found = load(SPACINGS[spacing])
    assert isinstance(found, ShippedTasks)
    return found


@cache
def split(spacing: str) -> tuple[Digits, Digits]:
    """The training images that describe a task, and test images."""
    shipped = tasks_of(spacing).shipped
    order = torch.randperm(len(digits()), generator=stream(shipped.seed, "split"))
    train, test = order[: shipped.recipe.train], order[shipped.recipe.train :]
    return digits().take(train[examples_of(shipped.recipe, len(train), shipped.seed)]), digits().take(test[:JUDGED])


@lru_cache(maxsize=512)
def test_at(spacing: str, degrees: float) -> Tensor:
    """(JUDGED, 64) test images at an angle."""
    return rotated(split(spacing)[1].images, degrees).flatten(1)


@cache
def test_grid(spacing: str) -> Tensor:
    """(G, JUDGED, 64) test images at all angles of the grid."""
    return torch.stack([test_at(spacing, degrees) for degrees in GRID.tolist()])


@lru_cache(maxsize=512)
def described(spacing: str, degrees: float) -> Tensor:
    """(hidden,) the task vector at an angle, from the base model's states on 30 turned images."""
    return task_vectors(tasks_of(spacing).base, rotated(split(spacing)[0].images, degrees).flatten(1)[None])[0]


@cache
def described_grid(spacing: str) -> Tensor:
    """(G, hidden) at all angles of the grid."""
    return torch.stack([described(spacing, degrees) for degrees in GRID.tolist()])


@cache
def ridge(spacing: str) -> Ridge:
    """From task vectors to adapters; the penalty is chosen as in the experiment, on the images that describe the tasks."""
    tasks, images = tasks_of(spacing), split(spacing)[0]
    angles = tasks.shipped.angles
    fits = [Ridge(tasks.conditions[angles.seen], tasks.adapters[angles.seen], penalty) for penalty in PENALTIES]
    turned = torch.stack([rotated(images.images, degrees).flatten(1) for degrees in angles.degrees[angles.seen].tolist()])
    right = [accuracy(tasks.base, tasks.shipped.recipe, tasks.layout, fit.left_out, turned, images.labels).mean().item() for fit in fits]
    return fits[right.index(max(right))]


def adapters(spacing: str, way: str, raw: Tensor, z: tuple[float, float]) -> Tensor:
    """(T, P) adapters for raw task vectors (T, hidden), made in one of the ways; z are the first two latent numbers, the others are 0."""
    tasks = tasks_of(spacing)
    seen = tasks.shipped.angles.seen
    if way == "CVAE":
        latent = torch.zeros(1, tasks.generator.latent)
        latent[0, :2] = torch.tensor(z)
        return tasks.layout.flatten(generate(tasks.generator, tasks.whiten(raw), tasks.statistics, z=latent))[:, 0]
    if way == "ridge":
        return ridge(spacing)(tasks.whiten(raw))
    if way == "average":
        return tasks.adapters[seen].mean(0).expand(len(raw), -1)
    return tasks.adapters[seen[nearest(tasks.conditions[seen], tasks.whiten(raw))]]


@lru_cache(maxsize=256)
def curve(spacing: str, way: str, z: tuple[float, float]) -> np.ndarray:
    """(G,) accuracy at each angle of the adapter that is made for that angle."""
    vectors = adapters(spacing, way, described_grid(spacing), z)
    return judged(spacing, vectors, test_grid(spacing)).numpy()


def judged(spacing: str, vectors: Tensor, images: Tensor) -> Tensor:
    """(T,) accuracy of adapters (T, P) on images (T, JUDGED, 64)."""
    tasks = tasks_of(spacing)
    return accuracy(tasks.base, tasks.shipped.recipe, tasks.layout, vectors, images, split(spacing)[1].labels)


@torch.no_grad()
def answers(spacing: str, vector: Tensor, images: Tensor) -> Tensor:
    """(..., ) digits that the model with one adapter (P,) reads in images (..., 64)."""
    tasks = tasks_of(spacing)
    hidden, state, recipe = images, tasks.layout.split(vector), tasks.shipped.recipe
    scale = recipe.alpha / recipe.rank**0.5
    for name, layer in tasks.base.named_children():
        if f"{name}.lora_A" in state:  # merged: W + s B A
            weight = layer.weight + scale * state[f"{name}.lora_B"] @ state[f"{name}.lora_A"]
            hidden = hidden @ weight.T + layer.bias
        else:
            hidden = layer(hidden)
    return hidden.argmax(-1)


def explorer(*, angle: int = 22) -> Explorer:
    """A dial for the angle; the generated adapter is judged there and everywhere.

    Drag the hand of the dial, or click on the curves; drag in the latent plane to change z. By keyboard: left and right turn by 1 degree, up and down
    by 15.
    """

    def draw(figure: Figure, angle: int, way: str, spacing: str, z1: float, z2: float) -> str:
        figure.set_layout_engine("none")
        z, degrees = (z1, z2), float(angle)
        tasks, raw = tasks_of(spacing), described(spacing, degrees)
        vector = adapters(spacing, way, raw[None], z)[0]
        images, labels = test_at(spacing, degrees), split(spacing)[1].labels
        said = answers(spacing, vector, images)
        here = float((said == labels).float().mean())
        everywhere = (answers(spacing, vector, test_grid(spacing)) == labels).float().mean(1).numpy()
        made = curve(spacing, way, z)
        _draw_dial(figure.add_axes((0.015, 0.36, 0.31, 0.57)), tasks, degrees, rotated(split(spacing)[1].images[_first_seven(spacing)], degrees))
        _draw_accuracy(figure.add_axes((0.405, 0.53, 0.58, 0.40)), tasks, degrees, here, made, everywhere)
        _draw_task_vectors(figure.add_axes((0.405, 0.10, 0.245, 0.27)), tasks, spacing, tasks.whiten(raw))
        _draw_latent(figure.add_axes((0.75, 0.10, 0.16, 0.27)), z, way)
        _draw_answers(figure.add_axes((0.02, 0.06, 0.30, 0.18)), images[:SHOWN], said[:SHOWN], labels[:SHOWN])
        known = tasks.shipped.angles.degrees[tasks.shipped.angles.seen].tolist()
        return (
            f"{way}, {spacing}: the LoRA for {angle} degrees ({'seen' if degrees in known else 'not seen'} in training) reads {100 * here:.0f} % of "
            f"the digits at this angle; over all angles {100 * made.mean():.0f} %, with z = ({z1:g}, {z2:g})"
        )

    controls = {
        "angle": slider("angle, degrees", angle, 0, 359),
        "way": choice("LoRA from", WAYS),
        "spacing": choice("tasks", tuple(SPACINGS)),
        "z1": slider("latent z₁", 0.0, -REACH, REACH, 0.25),
        "z2": slider("latent z₂", 0.0, -REACH, REACH, 0.25),
    }

    def on_pointer(event: PointerEvent) -> None:
        turn = {"ArrowRight": 1, "ArrowLeft": -1, "ArrowUp": 15, "ArrowDown": -15}
        if event.kind == "key":
            if event.key in turn:
                controls["angle"].value = (controls["angle"].value + turn[event.key]) % 360
        elif event.kind in ("press", "drag"):
            if event.axes == 0 and (event.x or event.y):
                controls["angle"].value = round(math.degrees(math.atan2(-event.x, event.y))) % 360
            elif event.axes == 1:
                controls["angle"].value = round(min(max(event.x, 0), 359))
            elif event.axes == 3:
                controls["z1"].value, controls["z2"].value = (min(max(round(4 * v) / 4, -REACH), REACH) for v in (event.x, event.y))

    for tasks in SPACINGS:  # worked out before the first click, so that every later one is quick
        for way in WAYS:
            curve(tasks, way, (0.0, 0.0))
    coarse, fine = tuple(SPACINGS)
    start = {"angle": angle, "way": "CVAE", "spacing": coarse, "z1": 0.0, "z2": 0.0}
    return Explorer(
        draw,
        controls,
        title="Turn the dial: a LoRA for digits at that angle is generated. Is it any good between the angles that were seen?",
        figsize=(10.0, 5.8),
        seed=CHECKPOINTS[0].settings.seed,
        on_pointer=on_pointer,
        presets={
            "a seen angle": {**start, "angle": 30},
            "a hole: 45 degrees was held out": {**start, "angle": 45},
            "the nearest LoRA falls less deep": {**start, "angle": 45, "way": "nearest seen LoRA"},
            "one average for all": {**start, "angle": 180, "way": "average"},
            "denser tasks fill the holes": {**start, "angle": 45, "spacing": fine},
            "z says nothing": {**start, "angle": 30, "z1": 3.0, "z2": -3.0},
        },
    )


def _first_seven(spacing: str) -> int:
    """The test image in the dial: a seven looks different from every side."""
    return int((split(spacing)[1].labels == 7).nonzero()[0])


def _places(degrees: Tensor, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Points on the dial: 0 degrees is up, and the angle grows counter-clockwise, as the digits turn."""
    angle = torch.deg2rad(degrees)
    return (-radius * angle.sin()).numpy(), (radius * angle.cos()).numpy()


def _draw_dial(axes: Axes, tasks: ShippedTasks, degrees: float, image: Tensor) -> None:
    """The tasks around a turned digit, and the hand."""
    angles = tasks.shipped.angles
    axes.imshow(image.numpy(), cmap="Greys", vmin=0, vmax=1.3, extent=(-0.52, 0.52, -0.52, 0.52), interpolation="nearest")
    axes.plot(*_places(torch.arange(361.0), 1.0), color=LIGHT, linewidth=1.5, zorder=0)
    size = 7 if angles.spacing > 10 else 3.5
    axes.plot(*_places(angles.degrees[angles.seen], 1.0), "o", color=BLUE, markersize=size)
    axes.plot(*_places(angles.degrees[angles.unseen], 1.0), "o", color=ORANGE, markersize=size + 1.5, markerfacecolor="white", markeredgewidth=2)
    hand = torch.tensor([degrees])
    tip, start = (np.concatenate(_places(hand, radius)) for radius in (0.93, 0.62))
    axes.annotate(
        "", (float(tip[0]), float(tip[1])), (float(start[0]), float(start[1])), arrowprops={"arrowstyle": "-|>", "color": VERMILION, "linewidth": 3}
    )
    for mark in (0, 90, 180, 270):
        x, y = np.concatenate(_places(torch.tensor([float(mark)]), 1.24)).tolist()
        axes.text(x, y, f"{mark}°", ha="center", va="center", fontsize=10, color=GREY)
    axes.set_xlim(-1.4, 1.4)
    axes.set_ylim(-1.32, 1.38)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title("the task: digits at this angle", loc="center", fontsize=11)
    axes.text(-1.4, -1.32, "● seen", color=BLUE, fontsize=10, va="bottom")
    axes.text(1.4, -1.32, "○ held out", color=ORANGE, fontsize=10, va="bottom", ha="right")


def _draw_accuracy(axes: Axes, tasks: ShippedTasks, degrees: float, here: float, made: np.ndarray, everywhere: np.ndarray) -> None:
    """Accuracy over all angles: of the adapter made for each, and of the one made for the dial's angle."""
    angles, grid = tasks.shipped.angles, GRID.numpy()
    around, everywhere, closed = np.append(grid, 360.0), np.append(everywhere, everywhere[:1]), np.append(made, made[:1])
    axes.plot(around, everywhere, color=VERMILION, linewidth=1.5, alpha=0.9)
    axes.plot(around, closed, color=BLUE, linewidth=1.5)
    for rows, colour, face in ((angles.seen, BLUE, BLUE), (angles.unseen, ORANGE, "white")):
        at = angles.degrees[rows].numpy()
        size = 5 if angles.spacing > 10 else 3.5
        axes.plot(at, made[(at / 5).astype(int)], "o", color=colour, markerfacecolor=face, markersize=size, markeredgewidth=1.5)
    axes.axvline(degrees, color=VERMILION, linewidth=1, linestyle=":")
    axes.plot([degrees], [here], "D", color=VERMILION, markersize=8, markeredgecolor="white")
    axes.text(-45, 1.04, "blue: a LoRA made for each angle", color=BLUE, fontsize=10, va="bottom")
    axes.text(
        360,
        1.04,
        f"red: the LoRA made for {degrees:.0f}° ({100 * here:.0f} % there), everywhere",
        color=VERMILION,
        fontsize=10,
        va="bottom",
        ha="right",
    )
    axes.axhline(0.1, color=GREY, linewidth=1, linestyle=":")
    axes.text(2, 0.02, "guessing", color=GREY, fontsize=9, va="bottom")
    axes.set_xlim(-4, 361)
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0, 0.5, 1])
    axes.set_xticks(range(0, 361, 45))
    axes.set_xlabel("angle of the test digits, degrees")
    axes.set_ylabel("share read right")


def _draw_task_vectors(axes: Axes, tasks: ShippedTasks, spacing: str, c: Tensor) -> None:
    """First two whitened components of the task vectors: the curve of all angles, the seen tasks, the dial's."""
    path = tasks.whiten(torch.cat([described_grid(spacing), described_grid(spacing)[:1]]))
    seen = tasks.conditions[tasks.shipped.angles.seen]
    axes.plot(path[:, 0], path[:, 1], color=LIGHT, linewidth=2)
    axes.plot(seen[:, 0], seen[:, 1], "o", color=BLUE, markersize=4 if len(seen) < 30 else 2.5)
    axes.plot(c[:1], c[1:2], "D", color=VERMILION, markersize=8, markeredgecolor="white")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(f"task vector, 2 of {len(c)} components", loc="left", fontsize=11)


def _draw_latent(axes: Axes, z: tuple[float, float], way: str) -> None:
    """The latent plane with the chosen point, and circles of one and two standard deviations of the prior."""
    colour = VERMILION if way == "CVAE" else LIGHT
    for radius in (1, 2):
        axes.plot(*_places(torch.arange(361.0), radius), color=LIGHT, linewidth=1)
    axes.plot(z[0], z[1], "D", color=colour, markersize=8, markeredgecolor="white")
    axes.set_xlim(-REACH - 0.3, REACH + 0.3)
    axes.set_ylim(-REACH - 0.3, REACH + 0.3)
    axes.set_xticks([-3, 0, 3])
    axes.set_yticks([-3, 0, 3])
    axes.set_xlabel("z₁", labelpad=1)
    axes.set_ylabel("z₂", labelpad=1)
    axes.set_title("latent z" if way == "CVAE" else "latent z (CVAE alone)", loc="left", fontsize=11)


def _draw_answers(axes: Axes, images: Tensor, said: Tensor, labels: Tensor) -> None:
    """Some test digits with what the adapted model reads in them."""
    side = math.isqrt(images.shape[1])
    strip = F.pad(images.view(-1, side, side), (0, 1)).transpose(0, 1).flatten(1)  # side by side, a blank column after each
    axes.imshow(strip.numpy(), cmap="Greys", vmin=0, vmax=1.3, interpolation="nearest")
    right = (said == labels).tolist()
    places = [((side + 1) * k + side / 2 - 0.5, side + 1.0) for k in range(len(images))]
    words = [f"{digit} {'✓' if good else '✗'}" for digit, good in zip(said.tolist(), right, strict=True)]
    axes.add_artist(Words(places, words, [BLUE if good else VERMILION for good in right], size=11))
    axes.set_ylim(side + 2.5, -0.5)
    axes.axis("off")
    axes.set_title("what the model with this LoRA reads", loc="center", fontsize=11)
