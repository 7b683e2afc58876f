"""Touch CUR retrieval: choose how many items are anchors, watch the score matrix come back, and what is left of the calls to find the best."""

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from typing import cast, get_args

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mtlearn.explore.explorer import Explorer, PointerEvent, choice, menu, slider
from mtlearn.explore.style import BLACK, BLUE, DIVERGING, GREEN, GREY, LIGHT, ORANGE, PURPLE, SKY, VERMILION
from mtlearn.lab.checkpoints import load
from mtlearn.lab.seeds import stream
from mtlearn.pairs.cur_retrieval.anchors import Choice, choose_anchors
from mtlearn.pairs.cur_retrieval.experiment import CHECKPOINTS, HEADS, ScoreTable, TableSettings
from mtlearn.pairs.cur_retrieval.method import CUTOFF, PUBLISHED_CUTOFF, approximate, pseudo_inverse
from mtlearn.pairs.cur_retrieval.worlds import made_scores

SIZES = TableSettings()
LEAST, MOST, STEP = 10, 150, 10
COUNTS = tuple(range(LEAST, MOST + 1, STEP))
CALLS = 200  # the largest budget
DEEPEST = 50  # the largest k
SHOWN_ROWS, SHOWN_COLUMNS = 40, 120
MADE = {"made: rank 10": (0.0, 0.0), "made: rank 10 and noise": (0.3, 0.0), "made: rank 10 and spikes": (0.0, 6.0)}
TEXT = {f"docstrings, {head} head": head for head in HEADS}
SOURCES = (*TEXT, *MADE)
RIVALS = {"TF-IDF": ORANGE, "dual encoder": GREEN, "distilled dual": PURPLE, "random": GREY}
IMAGES, CURVE = (0, 1, 2), 4  # numbers of the axes that can be touched


@dataclass(frozen=True)
class Source:
    """A score matrix: (k_q, m) of the anchor queries, (n, m) of the test queries, what the rivals say (n, m), and an order of rows and columns."""

    anchors: Tensor
    tests: Tensor
    cheap: dict[str, Tensor]
    rows: Tensor
    columns: Tensor


@cache
def table() -> ScoreTable:
    """The shipped scores."""
    return cast(ScoreTable, load(CHECKPOINTS[0]))


@cache
def source(kind: str) -> Source:
    """Scores of the trained cross-encoder, or made ones of the same size."""
    if kind in TEXT:
        head = HEADS.index(TEXT[kind])
        anchors, tests = table().anchors[head].double(), table().tests[head].double()
        cheap = dict(zip(RIVALS, table().cheap, strict=False))
    else:
        noise, spike = MADE[kind]
        found = made_scores(SIZES.seed, noise=noise, spike=spike, queries=2 * SIZES.anchors, items=SIZES.items)
        anchors, tests = found.anchors, found.tests[: SIZES.tests]
        cheap = {"random": torch.rand(tests.shape, generator=stream(0, "cur_retrieval", "explorer random"))}
    first, _, directions = torch.linalg.svd(tests - tests.mean(), full_matrices=False)
    shown = directions[0].argsort()[:: SIZES.items // SHOWN_COLUMNS][:SHOWN_COLUMNS]  # neighbours score alike: the picture has a shape
    return Source(anchors, tests, cheap, first[:, 0].argsort()[:SHOWN_ROWS], shown)


@lru_cache(maxsize=512)
def anchors_of(kind: str, how: Choice, count: int) -> Tensor:
    """Numbers of the anchor items."""
    return choose_anchors(source(kind).anchors, count, how, generator=stream(0, "cur_retrieval", "explorer anchors"))


@lru_cache(maxsize=64)
def estimates(kind: str, how: Choice, count: int, cutoff: float) -> Tensor:
    """Ŝ (n, m) of the test queries."""
    found, items = source(kind), anchors_of(kind, how, count)
    weights = found.tests[:, items] @ pseudo_inverse(found.anchors[:, items], cutoff)
    return approximate(weights, found.anchors)


@lru_cache(maxsize=1024)
def places(kind: str, how: Choice, count: int, cutoff: float) -> Tensor:
    """(n, 50): when each query's best items are scored, the first call being 0; the anchors come first."""
    found, items = source(kind), anchors_of(kind, how, count)
    return _places(estimates(kind, how, count, cutoff).index_fill(1, items, torch.inf), found.tests)


@cache
def rival_places(kind: str, rival: str) -> Tensor:
    """The same where a cheaper model orders the items."""
    return _places(source(kind).cheap[rival], source(kind).tests)


def _places(estimate: Tensor, exact: Tensor) -> Tensor:
    """(n, 50): how many items are scored before each of the best; the anchors, whose estimate is infinite, are all scored at the beginning."""
    own = estimate.gather(1, exact.topk(DEEPEST).indices)
    return estimate.shape[1] - torch.searchsorted(estimate.sort(1).values, own, right=True)


def recall_by_calls(when: Tensor, k: int) -> np.ndarray:
    """(CALLS + 1,): share of the best k that are scored within so many calls, mean over the queries."""
    counts = torch.bincount(when[:, :k].flatten().clamp(max=CALLS), minlength=CALLS + 1)[:CALLS]
    return np.concatenate([[0.0], (counts.cumsum(0) / (k * len(when))).numpy()])


def explorer() -> Explorer:
    """The score matrix, its approximation and what is left; recall against calls and against anchors; one query's scores.

    Press in an image to take another query, drag in the curve of the anchors to take more or fewer; by keyboard up and down, left and right.
    """
    for kind, how in [*product(TEXT, get_args(Choice)), *product(MADE, ["uniform"])]:  # so that no control waits for the curve of the anchors
        for count, cutoff in product(COUNTS, (CUTOFF, PUBLISHED_CUTOFF)):
            places(kind, how, count, cutoff)

    def draw(figure: Figure, scores: str, anchors: Choice, count: int, cutoff: float, budget: int, k: int, query: int) -> str:
        figure.set_layout_engine("none")
        found, row = source(scores), query - 1
        estimate = estimates(scores, anchors, count, cutoff)
        items = anchors_of(scores, anchors, count)
        limit = float(found.tests.std()) * 2.2
        shown = _rows(found, row)
        _draw_matrix(figure.add_axes((0.055, 0.585, 0.27, 0.335)), found, items, shown, row, limit)
        part = estimate[shown][:, found.columns]
        _draw_image(figure.add_axes((0.37, 0.585, 0.27, 0.335)), part, shown, row, limit, "approximation Ŝ of the test rows")
        rest = found.tests[shown][:, found.columns] - part
        error = float((found.tests - estimate).square().mean().sqrt() / found.tests.std())
        _draw_image(figure.add_axes((0.685, 0.585, 0.27, 0.335)), rest, shown, row, limit, f"what is left, S - Ŝ (size {min(error, 99):.2f})")
        curve = recall_by_calls(places(scores, anchors, count, cutoff), k)
        words = _draw_calls(figure.add_axes((0.055, 0.09, 0.27, 0.34)), scores, curve, count, budget, k)
        by_count = _draw_anchors(figure.add_axes((0.40, 0.09, 0.24, 0.34)), scores, anchors, count, cutoff, budget, k)
        _draw_query(figure.add_axes((0.735, 0.09, 0.23, 0.34)), found.tests[row], estimate[row], items, k)
        best, first = int(found.tests[row].argmax()), _found(found.tests[row], estimate[row], items, budget)
        if scores in TEXT:
            figure.text(0.055, 0.515, f"query {query}: {table().text('asked', row)}", fontsize=10, color=VERMILION)
            mark = "the best of all" if first == best else f"better: {_short(best)}"
            figure.text(0.055, 0.48, f"found: {_short(first)}   ({mark})", fontsize=10)
        else:
            said = "the best of all" if first == best else "not the best of all"
            figure.text(0.055, 0.50, f"query {query}: found item {first}, {said}", fontsize=10, color=VERMILION)
        return (
            f"{scores}, {count} {anchors} anchors, cut-off {cutoff:g}: of the variation {min(error, 99):.2f} is left; "
            f"recall of the best {k} with {budget} calls: CUR {by_count}, {words}; query {query}: {'best found' if first == best else 'best missed'}"
        )

    controls = {
        "scores": menu("scores", list(SOURCES), SOURCES[0]),
        "anchors": choice("anchor items", ["uniform", "k-means", "leverage"]),
        "count": slider("anchor items k_i", 50, LEAST, MOST, STEP),
        "cutoff": choice("cut-off", [("1/100", CUTOFF), ("none", PUBLISHED_CUTOFF)], CUTOFF),
        "budget": slider("calls for a query", 100, 20, CALLS, 10),
        "k": choice("k", [1, 10, DEEPEST], 10),
        "query": slider("query", 1, 1, SIZES.tests),
    }

    def on_pointer(event: PointerEvent) -> None:
        if event.kind == "key":
            controls["count"].value += {"ArrowLeft": -STEP, "ArrowRight": STEP}.get(event.key, 0)
            controls["query"].value += {"ArrowUp": -1, "ArrowDown": 1}.get(event.key, 0)
        elif event.kind in ("press", "drag") and event.axes == CURVE:
            controls["count"].value = round(min(max(event.x, LEAST), MOST) / STEP) * STEP
        elif event.kind == "press" and event.axes in IMAGES:
            found = source(controls["scores"].value)
            place = round(event.y) - (0 if event.axes else SHOWN_ROWS)
            shown = _rows(found, controls["query"].value - 1)
            controls["query"].value = int(shown[min(max(place, 0), len(shown) - 1)]) + 1

    start = {"scores": SOURCES[0], "anchors": "uniform", "count": 50, "cutoff": CUTOFF, "budget": 100, "k": 10, "query": 1}
    return Explorer(
        draw,
        controls,
        title="Which scores must be known to find the best? Drag the number of anchors; press in an image to ask another query.",
        figsize=(10.0, 6.6),
        seed=0,
        on_pointer=on_pointer,
        presets={
            "few anchors": {**start, "count": 10},
            "as many as queries, no cut-off": {**start, "count": 100, "cutoff": PUBLISHED_CUTOFF, "budget": 200},
            "the same, cut off": {**start, "count": 100, "budget": 200},
            "only the best, few calls": {**start, "count": 10, "k": 1, "budget": 20},
            "the best fifty": {**start, "k": 50, "budget": 200},
            "exactly rank 10": {**start, "scores": SOURCES[2], "count": 20},
            "a spike a query, k = 1": {**start, "scores": SOURCES[4], "count": 20, "k": 1},
            "a spike a query, k = 50": {**start, "scores": SOURCES[4], "count": 20, "k": 50},
        },
    )


def _rows(found: Source, row: int) -> Tensor:
    """The test queries that are shown; the one that is asked is always among them."""
    return found.rows if row in found.rows.tolist() else torch.cat([found.rows[:-1], torch.tensor([row])])


def _short(item: int) -> str:
    return table().text("items", item)[:52]


def _found(exact: Tensor, estimate: Tensor, items: Tensor, budget: int) -> int:
    """What a search with this budget returns first."""
    order = estimate.index_fill(0, items, torch.inf).argsort(descending=True)[:budget]
    return int(order[exact[order].argmax()])


def _colours(values: Tensor, limit: float) -> np.ndarray:
    return np.asarray(colormaps[DIVERGING]((values / limit).clamp(-1, 1).numpy() / 2 + 0.5)[..., :3])


def _draw_matrix(axes: Axes, found: Source, items: Tensor, shown: Tensor, row: int, limit: float) -> None:
    """Anchor queries above, test queries below; what is known is in full colour."""
    both = torch.cat([found.anchors[:SHOWN_ROWS], found.tests[shown]])[:, found.columns]
    middle = found.tests.mean()
    picture = _colours(both - middle, limit)
    known = np.zeros(both.shape, dtype=bool)
    known[:SHOWN_ROWS] = True
    known[:, torch.isin(found.columns, items).numpy()] = True
    picture[~known] = 0.8 + 0.2 * picture[~known]
    axes.imshow(picture, aspect="auto", interpolation="nearest")
    axes.axhline(SHOWN_ROWS - 0.5, color=BLACK, linewidth=1)
    _mark_row(axes, SHOWN_ROWS + shown.tolist().index(row))
    for place, name in ((0.75, "anchors"), (0.25, "tests")):
        axes.text(-0.02, place, name, rotation=90, ha="right", va="center", fontsize=10, transform=axes.transAxes)
    _name(axes, "scores S: known in full colour", f"{SHOWN_COLUMNS} of {SIZES.items} items, {int(known[-1].sum())} of them anchors")


def _draw_image(axes: Axes, values: Tensor, shown: Tensor, row: int, limit: float, title: str) -> None:
    axes.imshow(_colours(values - (0 if "left" in title else float(values.median())), limit), aspect="auto", interpolation="nearest")
    _mark_row(axes, shown.tolist().index(row))
    _name(axes, title, "the same items")


def _name(axes: Axes, title: str, below: str) -> None:
    """Title and label of an image, without the ticks of axes, which take long to draw."""
    axes.axis("off")
    axes.text(0, 1.03, title, fontsize=11, transform=axes.transAxes)
    axes.text(0.5, -0.07, below, fontsize=10, ha="center", transform=axes.transAxes)


def _mark_row(axes: Axes, place: int) -> None:
    axes.plot([-1.6], [place], marker=">", color=VERMILION, markersize=8, clip_on=False)
    axes.set_xlim(-0.5, SHOWN_COLUMNS - 0.5)


def _draw_calls(axes: Axes, kind: str, curve: np.ndarray, count: int, budget: int, k: int) -> str:
    """Recall against calls, of CUR with these anchors and of the rivals."""
    calls = np.arange(CALLS + 1)
    ends: list[tuple[float, str, str]] = []
    for name in source(kind).cheap:
        other = recall_by_calls(rival_places(kind, name), k)
        axes.plot(calls, other, color=RIVALS[name], linewidth=1.6)
        ends.append((float(other[budget]), name, RIVALS[name]))
    axes.plot(calls[count:], curve[count:], color=BLUE, linewidth=2.6)
    axes.plot([count, count], [0, curve[count]], color=BLUE, linewidth=1, linestyle=":")
    axes.axvline(budget, color=BLACK, linewidth=1, linestyle="--")
    names = {"CUR": BLUE, **{name: colour for _, name, colour in ends}}
    for line, (name, colour) in enumerate(names.items()):
        axes.text(0.98, 0.04 + 0.085 * (len(names) - 1 - line), name, color=colour, fontsize=10, ha="right", transform=axes.transAxes)
    axes.set_xlim(0, CALLS)
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0, 0.5, 1])
    axes.set_xticks([0, 100, 200])
    _label(axes, f"recall of the best {k} (CUR from k_i on)", "calls of the cross-encoder")
    return ", ".join(f"{name} {value:.2f}" for value, name, _ in ends)


def _draw_anchors(axes: Axes, kind: str, how: Choice, count: int, cutoff: float, budget: int, k: int) -> str:
    """Recall against the number of anchors at one budget, with and without a cut-off."""
    possible = [number for number in COUNTS if number <= budget]
    for other in (PUBLISHED_CUTOFF, CUTOFF):
        colour = BLUE if other == cutoff else LIGHT
        values = [recall_by_calls(places(kind, how, number, other), k)[budget] for number in possible]
        axes.plot(possible, values, color=colour, linewidth=2.4 if colour == BLUE else 2, zorder=3 if colour == BLUE else 2)
    axes.axvline(SIZES.anchors, color=GREY, linewidth=1, linestyle=":")
    axes.text(SIZES.anchors + 2, 0.03, "k_i = k_q", fontsize=10, color=GREY)
    said = "too few calls"
    if count <= budget:
        value = float(recall_by_calls(places(kind, how, count, cutoff), k)[budget])
        axes.plot([count], [value], "o", color=VERMILION, markersize=9, zorder=4)
        said = f"{value:.2f}"
    axes.set_xlim(0, MOST + 5)
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0, 0.5, 1])
    axes.set_xticks([0, 50, 100, 150])
    _label(axes, f"at {budget} calls: drag", "anchor items k_i (pale: other cut-off)")
    return said


def _draw_query(axes: Axes, exact: Tensor, estimate: Tensor, items: Tensor, k: int) -> None:
    """Estimates against exact scores of one query."""
    low, high = float(exact.min()), float(exact.max())
    room = 0.06 * (high - low)
    inside = estimate.clamp(low - room, high + room)  # what explodes lies on the border
    top = exact.topk(max(k, 10)).indices[:10]
    axes.plot([low, high], [low, high], color=GREY, linewidth=1)
    for chosen, colour, size in ((slice(None), SKY, 2.5), (items, BLUE, 4), (top, VERMILION, 5.5)):
        axes.plot(exact[chosen], inside[chosen], "o", color=colour, markersize=size, markeredgewidth=0)
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(low - 1.5 * room, high + 1.5 * room)
    ticks = MaxNLocator(3).tick_values(low, high)
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.set_yticks([tick for tick in ticks if low <= tick <= high])
    axes.text(0.04, 0.93, "best ten", color=VERMILION, fontsize=10, transform=axes.transAxes)
    axes.text(0.04, 0.85, "anchors", color=BLUE, fontsize=10, transform=axes.transAxes)
    _label(axes, "this query: estimate", "exact score")


def _label(axes: Axes, title: str, below: str) -> None:
    """Title and label of a plot, placed by hand: measuring them takes longer than drawing them."""
    axes.tick_params(labelsize=9)
    axes.text(0, 1.04, title, fontsize=11, transform=axes.transAxes)
    axes.text(0.5, -0.19, below, fontsize=10, ha="center", transform=axes.transAxes)
