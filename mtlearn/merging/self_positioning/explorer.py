"""Touch Self Positioning: the plane of two task vectors, in which every point is a model; drag a point and watch the search walk from it."""

import math
from functools import cache, lru_cache
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
import traitlets
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

from mtlearn.explore.explorer import Explorer, PointerEvent, choice, slider
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from mtlearn.lab.checkpoints import load
from mtlearn.lab.fit import fit
from mtlearn.merging.self_positioning.experiment import CHECKPOINTS, SHIPPED, Landscape, plane
from mtlearn.merging.self_positioning.method import SelfPositioning, line_fit, power_law, two_task_position

RATIOS = ("10 : 1", "1 : 3", "2 : 3", "1 : 1", "3 : 2", "3 : 1")  # R : T of the shipped joint runs, in their order
SHOWN = ("10 : 1", "3 : 1", "3 : 2", "1 : 1", "2 : 3", "1 : 3")
STEPS = SHIPPED.recipe.probe_steps
R_COLOUR, T_COLOUR, JOINT_COLOUR, HERE = SKY, ORANGE, PURPLE, VERMILION
FINE = 61  # points a side on which the contours are drawn
KEY_STEP = 0.5  # of an arrow key, in units of the plane


@cache
def landscape() -> Landscape:
    """The shipped measurements."""
    found = load(CHECKPOINTS[0])
    assert isinstance(found, Landscape)
    return found


@cache
def surfaces() -> tuple[RectBivariateSpline, RectBivariateSpline]:
    """Splines over (x, y) through the measured scores of R and T."""
    places = landscape().places.numpy()
    first, second = (RectBivariateSpline(places, places, values.T) for values in landscape().scores.numpy())
    return first, second


@cache
def contours() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Places (FINE,) and the mean metric (FINE, FINE) at [y, x]."""
    places = np.linspace(float(landscape().places[0]), float(landscape().places[-1]), FINE)
    first, second = (surface(places, places) for surface in surfaces())
    return places, (0.5 * (first + second)).T


def scores_at(x: float, y: float) -> tuple[float, float]:
    """R and T at a point, read from the surfaces."""
    first, second = (float(surface.ev(x, y)) for surface in surfaces())
    return first, second


@lru_cache(maxsize=32)
def probe_surface(share: float) -> RectBivariateSpline:
    """Spline through share L_R + (1 - share) L_T."""
    places = landscape().places.numpy()
    first, second = landscape().losses.numpy()
    return RectBivariateSpline(places, places, (share * first + (1 - share) * second).T)


class ProbeLoss(torch.autograd.Function):
    """The probe loss share L_R + (1 - share) L_T at a point (2,), with the surface's own derivatives."""

    @staticmethod
    def forward(ctx: Any, point: Tensor, share: float) -> Tensor:
        """The loss, a scalar."""
        x, y = point.tolist()
        surface = probe_surface(share)
        ctx.slope = point.new_tensor([float(surface.ev(x, y, dx=1)), float(surface.ev(x, y, dy=1))])
        return point.new_tensor(float(surface.ev(x, y)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Along the surface."""
        return gradients[0] * ctx.slope, None


@lru_cache(maxsize=256)
def walk(x: float, y: float, mu: float, share: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The search from a point: SGD on a and lambda with the shipped settings, on the surfaces of the probe loss, so without the noise of batches.

    Returns:
        (steps + 1, 2) places, (steps + 1, 2) beta and lambda. A start outside the vectors' sector is taken to its nearest edge.
    """
    found, recipe = landscape(), SHIPPED.recipe
    rows = plane(found.gram)
    c = (torch.tensor([x, y], dtype=torch.float64) @ torch.linalg.inv(rows)).clamp(min=0.02)
    beta, length = two_task_position(found.gram, c)
    beta = min(max(beta, 0.02), 0.98)
    position = SelfPositioning(found.gram, a=[2 * (1 - beta), 2 * beta], length=length)
    places: list[list[float]] = []
    scalars: list[Tensor] = []

    def look() -> Tensor:
        point = position.coefficients() @ rows
        places.append(point.tolist())
        scalars.append(torch.cat([position.raw.detach(), position.length.detach()[None]]))
        return point

    optimizer = torch.optim.SGD(position.parameters(), lr=recipe.probe_rate, momentum=recipe.momentum)
    fit(position, lambda step: position.objective(ProbeLoss.apply(look(), share), mu), steps=STEPS, optimizer=optimizer)  # type: ignore[no-untyped-call]
    look()
    values = torch.stack(scalars)  # (steps + 1, 3)
    a = torch.nn.functional.softplus(values[:, :2])
    return np.array(places), torch.stack([a[:, 1] / a.sum(1), values[:, 2]], 1).numpy()


def start() -> tuple[float, float]:
    """Where the method begins: a = lambda = 1."""
    x, y = landscape().walk[0].tolist()
    return x, y


FAR = (2.5, 16.0)  # where the explorer begins: mostly T, and too long


def explorer(*, step: int = STEPS) -> Explorer:
    """The plane with the point, what the models at its places score, and the norm by number of training pairs.

    Drag the point, or move it with the arrow keys (Enter puts it at a = lambda = 1); "search" walks from there.
    """
    place = list(FAR)

    def draw(figure: Figure, data: str, mu: float, share: float, step: int) -> str:
        figure.set_layout_engine("none")
        found = landscape()
        number = RATIOS.index(data)
        path, scalars = walk(place[0], place[1], mu, share)
        axes = figure.add_axes((0.055, 0.105, 0.475, 0.82))
        _draw_plane(axes, number, path[: step + 1], tuple(place))
        here = tuple(path[step])
        rows = [
            ("the point", scores_at(*place), GREY),
            (f"search, step {step}", scores_at(*here), HERE),
            (f"joint, {data}", tuple(found.joint_scores[number].tolist()), JOINT_COLOUR),
        ]
        _draw_scores(figure.add_axes((0.685, 0.60, 0.295, 0.325)), rows)
        growth = _draw_growth(figure.add_axes((0.625, 0.105, 0.355, 0.305)))
        angle, length = math.degrees(math.atan2(here[1], here[0])), math.hypot(*here)
        beta, factor = scalars[step]
        words = f"step {step}: β = {beta:.2f}, λ = {factor:.2f}; {angle:.0f}° from V_R, length {length:.1f}"
        axes.set_title(words, loc="left", fontsize=11)
        scored = "; ".join(f"{name}: R {values[0]:.3f}, T {values[1]:.3f}, mean {sum(values) / 2:.3f}" for name, values, _ in rows)
        return f"{words}; {scored}; {growth}"

    controls = {
        "data": choice("joint model's data, R : T", SHOWN),
        "mu": slider("μ, weight of the length", 0.0, 0.0, 1.0, 0.05),
        "share": slider("R's share of the probe", 0.5, 0.0, 1.0, 0.05),
        "step": slider("steps of the search", step, 0, STEPS),
    }
    play = widgets.Play(value=step, min=0, max=STEPS, step=4, interval=200, show_repeat=False)
    traitlets.link((play, "value"), (controls["step"], "value"))
    low, high = float(landscape().places[0]), float(landscape().places[-1])

    def on_pointer(event: PointerEvent) -> None:
        moves = {"ArrowLeft": (-1, 0), "ArrowRight": (1, 0), "ArrowUp": (0, 1), "ArrowDown": (0, -1)}
        if event.kind == "key" and event.key in moves:
            across, up = moves[event.key]
            wanted = place[0] + KEY_STEP * across, place[1] + KEY_STEP * up
        elif event.kind in ("press", "drag") and event.axes == 0:
            wanted = event.x, event.y
        elif event.kind == "key" and event.key == "Enter":
            wanted = start()
        else:
            return
        place[:] = [round(min(max(value, low), high), 2) for value in wanted]

    def home() -> None:
        place[:] = FAR

    first = {"data": SHOWN[0], "mu": 0.0, "share": 0.5, "step": STEPS}
    return Explorer(
        draw,
        controls,
        title="Every point of this plane is a model. Drag the point (or arrow keys; Enter: a = λ = 1); ▶ lets the search walk from it.",
        figsize=(10.0, 5.8),
        seed=SHIPPED.seed,
        on_pointer=on_pointer,
        on_reset=home,
        extra=(widgets.HBox([widgets.Label("search"), play]),),
        presets={
            "before the search": {**first, "step": 0},
            "joint on balanced data": {**first, "data": "1 : 1"},
            "joint on mostly T": {**first, "data": "1 : 3"},
            "a probe of R alone": {**first, "share": 1.0},
            "a probe of T alone": {**first, "share": 0.0},
            "a dear length": {**first, "mu": 0.6},
        },
    )


def _draw_plane(axes: Axes, number: int, path: np.ndarray[Any, Any], place: tuple[float, ...]) -> None:
    """Contours of the mean metric with base, task vectors, joint model, the point, and the walk from it."""
    found = landscape()
    places, mean = contours()
    rows = plane(found.gram).numpy()
    levels = np.arange(math.floor(mean.min() * 50) / 50, mean.max() + 0.02, 0.02)
    axes.contourf(places, places, mean, levels=levels, cmap="cividis", alpha=0.6)
    best = np.unravel_index(mean.argmax(), mean.shape)
    axes.contour(places, places, mean, levels=[mean.max() - 0.01], colors=["white"], linewidths=1.2)
    summit = places[best[1]], places[best[0]]
    _label(axes, f"best mean in the plane, {mean.max():.3f}\n(white: within 0.01)", summit, (16.0, 16.6))
    axes.plot(*summit, "+", color=BLACK, markersize=9)
    for row, name, colour, shift in ((rows[0], "V_R", R_COLOUR, (-30, -16)), (rows[1], "V_T", T_COLOUR, (-32, -4))):
        axes.annotate("", row, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2.6, "shrinkA": 0, "shrinkB": 0})
        axes.annotate(name, row, shift, textcoords="offset points", fontsize=12, fontweight="bold")
    axes.plot(0, 0, "o", color="white", markersize=6)
    axes.annotate("base", (0, 0), (-8, -14), textcoords="offset points", ha="right", fontsize=10)
    joint = tuple(found.joint[number].tolist())
    outside = 100 * float(found.joint_outside[number])
    axes.plot(*joint, "s", color=JOINT_COLOUR, markersize=9, markeredgecolor="white")
    words = f"joint, {RATIOS[number]}\n({outside:.0f} % outside the plane)"
    _label(axes, words, joint, (20.2, -4.2))
    axes.plot(*path.T, color=HERE, linewidth=2)
    end = tuple(found.walk[-1].tolist())
    axes.plot(*end, "x", color=BLACK, markersize=9, markeredgewidth=2)
    _label(axes, "found on real batches\nfrom a = λ = 1", end, (6.5, -4.2))
    axes.plot(*place, "o", color=GREY, markersize=9, markeredgecolor="white", markeredgewidth=1.5)
    axes.plot(*path[-1], "o", color=HERE, markersize=10, markeredgecolor="white", markeredgewidth=1.5)
    axes.set_xlim(places[0], places[-1])
    axes.set_ylim(places[0], places[-1])
    ticks = [0, 10, 20]
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.set_xlabel("along V_R, in units of weight")
    axes.set_ylabel("across it", labelpad=1)


def _label(axes: Axes, words: str, point: tuple[float, ...], place: tuple[float, float]) -> None:
    """Words at a place of their own, with a thin line to the point they are about."""
    across, up = point
    axes.plot([across, place[0]], [up, place[1]], color=BLACK, linewidth=0.7)
    axes.text(*place, words, ha="center", va="bottom" if place[1] > up else "top", fontsize=9)


def _draw_scores(axes: Axes, rows: list[tuple[str, tuple[float, ...], str]]) -> None:
    """R, T and their mean of three models."""
    for row, (name, (first, second), colour) in enumerate(rows):
        values = (first, second, (first + second) / 2)
        axes.barh([row, 4 + row, 8 + row], values, height=0.86, color=colour, alpha=0.85)
        for metric, value in enumerate(values):
            axes.text(value + 0.008, 4 * metric + row, f"{value:.3f}", va="center", fontsize=9)
            axes.text(0.008, 4 * metric + row, name, va="center", fontsize=8.5, color="white")
    axes.set_yticks([1, 5, 9], ["R, MRR@10", "T, average\nprecision", "mean"])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(10.6, -0.6)
    axes.set_xlim(0, 0.78)
    axes.set_xticks([0, 0.2, 0.4, 0.6])
    axes.set_xlabel("score on the test pages", labelpad=1)
    axes.set_title("what the models score", loc="left", fontsize=11)


def _draw_growth(axes: Axes) -> str:
    """Norm of V_R against the number of training pairs, with a line and a power law."""
    counts, norms = np.array(SHIPPED.recipe.growth, dtype=float), landscape().norms[0].numpy()
    intercept, slope, fit_of_line = line_fit(counts.tolist(), norms.tolist())
    factor, exponent, fit_of_power = power_law(counts.tolist(), norms.tolist())
    x = np.linspace(1, 1.05 * counts[-1], 60)
    axes.plot(x, intercept + slope * x, color=BLUE, linewidth=1.5)
    axes.plot(x, factor * x**exponent, color=GREEN, linewidth=1.5, linestyle="--")
    axes.plot(counts, norms, "o", color=BLACK, markersize=6)
    top = 1.12 * norms.max()
    axes.text(0.04, 0.93, f"line, R² {fit_of_line:.3f}", color=BLUE, transform=axes.transAxes, va="top", fontsize=10)
    axes.text(0.04, 0.80, f"pairs$^{{{exponent:.2f}}}$, R² {fit_of_power:.3f}", color=GREEN, transform=axes.transAxes, va="top", fontsize=10)
    axes.set_xlim(0, x[-1])
    axes.set_ylim(0, top)
    axes.set_xticks(counts[[0, len(counts) // 2, -1]])
    axes.set_yticks([0, round(top / 2), round(top)])
    axes.set_xlabel("training pairs of R, one epoch")
    axes.set_ylabel("norm of V_R")
    axes.set_title("the norm grows with the data", loc="left", fontsize=11)
    return f"norm of V_R {norms[0]:.1f} to {norms[-1]:.1f}; a line fits with R² {fit_of_line:.3f}, a power of {exponent:.2f} with {fit_of_power:.3f}"
