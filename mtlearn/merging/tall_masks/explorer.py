"""Touch TALL-masks: move a task's threshold and watch its weights come and go, then drag how many tasks must agree and see what is left to merge."""

from functools import cache, lru_cache

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from mtlearn.explore.explorer import Explorer, PointerEvent, choice, menu, slider
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, SKY, VERMILION
from mtlearn.lab.seeds import stream
from mtlearn.merging.tall_masks.experiment import validation_curve
from mtlearn.merging.tall_masks.method import agreement, consensus, localise, profile, tall_masks
from mtlearn.merging.task_vectors import add, apply, flatten, ties
from mtlearn.merging.transformed_digits import Family, FamilySettings, make_family

SMALL = FamilySettings(width=128)
SHOWN = 70  # weights in the strip
LOW, HIGH, STEP = 0.1, 2.0, 0.1
LAMBDAS = tuple(round(LOW + STEP * i, 2) for i in range(round((HIGH - LOW) / STEP) + 1))
SCALES = (0.1, 0.2, 0.3, 0.4, 0.6, 1.0)
UNITS = 18  # hidden units whose weights are drawn
START = 6  # the task that is shown first: shuffled pixels
HISTOGRAM, CURVE = 2, 1  # numbers of the axes that can be dragged


@cache
def family() -> Family:
    """The models that are merged: small ones, trained in seconds the first time and kept in the user's cache."""
    return make_family(SMALL, 0)


@cache
def merged(rule: str) -> dict[str, Tensor]:
    """The merged vector, unscaled."""
    return add(family().vectors) if rule == "sum" else ties(family().vectors, combine="sum")


@lru_cache(maxsize=64)
def masks(rule: str, threshold: float) -> Tensor:
    """(T, P): every task's mask at one threshold."""
    return tall_masks(family().vectors, merged(rule), threshold)


@cache
def curves(rule: str) -> Tensor:
    """(thresholds, T): validation accuracy of each task with its mask."""
    return validation_curve(family(), merged(rule), LAMBDAS)


@lru_cache(maxsize=64)
def test_accuracy(rule: str, threshold: float) -> Tensor:
    """(T,): test accuracy of each task with its mask."""
    found = family()
    return found.own_accuracy([localise(found.base, merged(rule), mask) for mask in masks(rule, threshold)])


@cache
def ends() -> tuple[float, float]:
    """Mean test accuracy of the pretrained and of the fine-tuned encoders."""
    found = family()
    return found.accuracy(found.base).mean().item(), found.own_accuracy(found.tuned).mean().item()


@lru_cache(maxsize=256)
def agreed(rule: str, threshold: float, agree: int) -> tuple[float, float]:
    """Mean test accuracy of the consensus model and the scale that validation chose for it."""
    found = family()
    vector = consensus(merged(rule), masks(rule, threshold), agree)
    scale = found.best_scale(vector, SCALES)
    return found.accuracy(apply(found.base, vector, scale)).mean().item(), scale


@cache
def sampled() -> Tensor:
    """Which weights the strip shows, and the hidden units of the picture: a fixed draw from the first layer."""
    return torch.randperm(SMALL.width * 64, generator=stream(0, "tall_masks", "strip"))[:SHOWN]


def explorer() -> Explorer:
    """Eight merged tasks: the weights that each keeps, and what a merge of the agreed ones can do.

    Drag in the curve to move the threshold, in the histogram to move the agreement; by keyboard left and right move λ, up and down move k.
    """
    found = family()
    tasks = len(found.names)

    def draw(figure: Figure, task: int, threshold: float, agree: int, rule: str) -> str:
        figure.set_layout_engine("none")
        threshold = round(threshold, 2)
        kept = masks(rule, threshold)
        accuracy = test_accuracy(rule, threshold)
        _draw_strip(figure.add_axes((0.065, 0.60, 0.55, 0.32)), rule, task, kept[task])
        _draw_curve(figure.add_axes((0.70, 0.60, 0.28, 0.32)), rule, task, threshold)
        shares = 100 * profile(kept).numpy() / kept.shape[1]
        _draw_histogram(figure.add_axes((0.065, 0.09, 0.27, 0.34)), shares, agree)
        _draw_units(figure.add_axes((0.37, 0.06, 0.245, 0.37)), agreement(kept), agree)
        score, scale = agreed(rule, threshold, agree)
        words = _draw_scores(figure.add_axes((0.80, 0.09, 0.14, 0.34)), float(accuracy.mean()), score, agree)
        density = 100 * kept[task].float().mean().item()
        return (
            f"{found.names[task]}, λ = {threshold:g}: the mask keeps {density:.0f} % of the weights and has "
            f"{100 * accuracy[task].item():.0f} % right; "
            f"with at least {agree} tasks agreeing {shares[agree:].sum():.0f} % of the weights are merged, at scale {scale:g}; {words}"
        )

    controls = {
        "task": menu("task", [(name, number) for number, name in enumerate(found.names)], START),
        "threshold": slider("threshold λ", 0.4, LOW, HIGH, STEP),
        "agree": slider("tasks that must agree, k", 2, 0, tasks + 1),
        "rule": choice("merged vector", ["sum", "TIES"]),
    }

    def on_pointer(event: PointerEvent) -> None:
        if event.kind == "key":
            step = {"ArrowLeft": -STEP, "ArrowRight": STEP}.get(event.key)
            if step is not None:
                controls["threshold"].value += step
            controls["agree"].value += {"ArrowUp": 1, "ArrowDown": -1}.get(event.key, 0)
        elif event.kind in ("press", "drag") and event.axes == HISTOGRAM:
            controls["agree"].value = round(min(max(event.x + 0.5, 0), tasks + 1))
        elif event.kind in ("press", "drag") and event.axes == CURVE:
            controls["threshold"].value = round(min(max(event.x, LOW), HIGH) / STEP) * STEP

    start = {"task": START, "threshold": 0.4, "agree": 2, "rule": "sum"}
    return Explorer(
        draw,
        controls,
        title="Which weights does a task keep of a merged model? Drag the threshold, then drag how many tasks must agree.",
        figsize=(10.0, 6.2),
        seed=0,
        on_pointer=on_pointer,
        presets={
            "keep almost everything": {**start, "threshold": LOW},
            "the L1 minimiser": {**start, "threshold": 1.0},
            "plain task arithmetic": {**start, "agree": 0},
            "only what most tasks keep": {**start, "agree": 5},
            "nothing left": {**start, "agree": tasks + 1},
            "an easy task": {**start, "task": 2},
            "TIES instead of the sum": {**start, "rule": "TIES"},
        },
    )


def _draw_strip(axes: Axes, rule: str, task: int, kept: Tensor) -> None:
    """The task's own change of some weights as bars, the merged change as strokes; what the mask keeps is coloured."""
    rows = sampled()
    own, total = (1000 * flatten(vector)[rows].numpy() for vector in (family().vectors[task], merged(rule)))
    order = np.argsort(-np.abs(own))
    own, total, on = own[order], total[order], kept[rows].numpy()[order]
    x = np.arange(SHOWN)
    axes.bar(x, own, width=0.9, color=np.where(on, BLUE, LIGHT))
    axes.hlines(total, x - 0.45, x + 0.45, colors=[ORANGE if shown else GREY for shown in on], linewidth=2)
    reach = 1.1 * max(np.abs(own).max(), np.quantile(np.abs(total), 0.97))
    axes.set_ylim(-reach, reach)
    axes.set_xlim(-1, SHOWN)
    axes.axhline(0, color=BLACK, linewidth=0.8)
    axes.set_xticks([])
    axes.set_ylabel("change, thousandths")
    axes.set_xlabel(f"{SHOWN} weights of the first layer, by the task's own change (coloured: kept, {int(on.sum())})")
    axes.set_title("bars: what the task changed     strokes: what the merge changed", loc="left", fontsize=11)


def _draw_curve(axes: Axes, rule: str, task: int, threshold: float) -> None:
    """Validation accuracy over the threshold: the task's own curve, the others pale, its best place marked."""
    table = 100 * curves(rule).numpy()
    axes.plot(LAMBDAS, np.delete(table, task, 1), color=LIGHT, linewidth=1.2)
    axes.plot(LAMBDAS, table[:, task], color=BLUE)
    best = int(table[:, task].argmax())
    axes.plot(LAMBDAS[best], table[best, task], "o", color=GREEN, markersize=8)
    axes.annotate("best", (LAMBDAS[best], table[best, task]), xytext=(0, 7), textcoords="offset points", ha="center", color=GREEN, fontsize=10)
    axes.axvline(threshold, color=VERMILION, linewidth=1.5)
    axes.set_xlim(0, HIGH + 0.05)
    axes.set_ylim(min(50.0, float(table.min()) - 2), 102)
    axes.set_xlabel("threshold λ")
    axes.set_ylabel("right, per cent", labelpad=2)
    axes.set_title("validation, this task and the others", loc="left", fontsize=11)


def _draw_histogram(axes: Axes, shares: np.ndarray, agree: int) -> None:
    """How many weights are kept by so many tasks; what the consensus drops is pale."""
    x = np.arange(len(shares))
    names = [VERMILION, ORANGE, *[BLUE] * (len(shares) - 2)]
    bars = axes.bar(x, shares, color=names, width=0.8)
    for number, bar in enumerate(bars):
        bar.set_alpha(1.0 if number >= agree else 0.3)
    axes.axvline(agree - 0.5, color=BLACK, linewidth=2)
    top = 1.25 * shares.max()
    inside = agree < 7
    axes.text(agree - 0.4 if inside else agree - 0.6, 0.93 * top, f"k = {agree}", ha="left" if inside else "right", fontsize=10)
    axes.set_xlim(-0.9, len(shares) - 0.1)
    axes.set_ylim(0, top)
    axes.set_xticks(x)
    axes.set_xlabel("tasks that keep the weight (0 catastrophic, 1 selfish)", fontsize=10)
    axes.set_ylabel("weights, per cent")
    axes.set_title("agreement: drag the bar k", loc="left", fontsize=11)


def _draw_units(axes: Axes, counts: Tensor, agree: int) -> None:
    """The first layer's weights as 8 x 8 pictures, one a hidden unit, coloured as in the histogram."""
    first = counts[: SMALL.width * 64].view(SMALL.width, 8, 8)[:UNITS]  # the first entry of the state is the first layer's weight
    kinds = first.clamp(max=2) * 2 + (first >= agree)
    tiles = torch.nn.functional.pad(kinds, (0, 1, 0, 1), value=6).view(3, 6, 9, 9).transpose(1, 2).reshape(27, 54)
    pale = ("#F7DCCB", VERMILION, "#FBEBCB", ORANGE, "#CFE3F0", BLUE, "#FFFFFF")
    axes.imshow(tiles.numpy(), cmap=ListedColormap(pale), vmin=-0.5, vmax=6.5, interpolation="nearest", aspect="auto")
    axes.axis("off")
    axes.set_title(f"{UNITS} hidden units (pale: dropped)", loc="left", fontsize=11)


def _draw_scores(axes: Axes, tall: float, score: float, agree: int) -> str:
    """Mean accuracy over the eight tasks of every way to use the models."""
    zero, tuned = ends()
    plain, _ = agreed("sum", 0.4, 0)
    rows = (
        ("pretrained", zero, GREY),
        ("task arithmetic", plain, SKY),
        (f"consensus, k = {agree}", score, ORANGE),
        ("a mask a task", tall, BLUE),
        ("fine-tuned", tuned, GREEN),
    )
    for row, (_, value, colour) in enumerate(rows):
        axes.barh(row, 100 * value, height=0.62, color=colour)
        axes.text(100 * value + 1, row, f"{100 * value:.1f}", va="center", fontsize=10)
    axes.set_xlim(50, 100)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("right, per cent")
    axes.set_title("test, mean of 8 tasks", loc="right", fontsize=11)
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value, _ in rows)
