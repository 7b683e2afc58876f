"""Two explorers: which axis of the backbone matters for which ability, and one query under two instructions."""

import textwrap
from dataclasses import dataclass
from functools import cache

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mtlearn.datasets.docstring_search import DocstringPair
from mtlearn.explore.canvas import Words
from mtlearn.explore.explorer import Explorer, PointerEvent, choice, menu, slider
from mtlearn.explore.style import BLACK, BLUE, DIVERGING, GREEN, GREY, LIGHT, ORANGE, SEQUENTIAL, VERMILION, YELLOW
from mtlearn.lab.checkpoints import load
from mtlearn.retrieval.llm_dense.encoder import encode
from mtlearn.retrieval.llm_dense.experiment import AMOUNTS, GRID, SHOWN, SIZES, GridSettings, GridTable
from mtlearn.retrieval.llm_dense.worlds import INSTRUCTIONS, KINDS, Kind, kind_text, pages, with_both

SETTINGS: GridSettings = GRID.settings
WHAT = (
    "nDCG@10 among 400 documents of numpy and scipy",
    "share of the score after 100 steps that is there already",
    "nDCG@10, mean of three libraries that training has not seen",
    "nDCG@10, documents of 256 tokens, trained at 64",
    "nDCG@10 with instructions less without",
    "nDCG@10 of one model for four tasks less one a task",
)
COLOURS = (BLUE, ORANGE, GREEN)
LINES = (":", "--", "-")
CELLS, CURVES = 0, 1  # axes that can be clicked


@cache
def table() -> GridTable:
    """The shipped figures."""
    model = load(GRID)
    assert isinstance(model, GridTable)
    return model


def explorer() -> Explorer:
    """Click a cell to follow its curve; left and right arrow move the step, up and down the ability."""
    marked = [1, 2]

    def draw(figure: Figure, ability: str, step: int, across: str) -> str:
        figure.set_layout_engine("none")
        number = SHOWN.index(ability)
        values = table().get_buffer("score")[number].numpy()
        cells, curves = figure.add_axes((0.075, 0.14, 0.34, 0.68)), figure.add_axes((0.53, 0.15, 0.37, 0.67))
        _draw_cells(cells, values, step, marked, number)
        _draw_curves(curves, values, step, marked, across)
        figure.text(0.01, 0.945, WHAT[number], fontsize=12, weight="bold")
        now, (i, j) = values[:, :, step], marked
        there = np.argwhere(~np.isnan(now))
        best = max(there.tolist(), key=lambda cell: now[cell[0], cell[1]])
        own = "not measured" if np.isnan(now[i, j]) else f"{now[i, j]:.3f}"
        said = f"{ability} after {SETTINGS.steps[step]} steps: {SIZES[i]} {AMOUNTS[j]} {own}; best is {SIZES[best[0]]} {AMOUNTS[best[1]]}"
        if len(there) == 9:
            size, pretraining = now[2].mean() - now[0].mean(), now[:, 2].mean() - now[:, 0].mean()
            said += f"; L less S {size:+.3f}, long less none {pretraining:+.3f}"
            figure.text(0.01, 0.885, f"L less S: {size:+.3f}        long less no pretraining: {pretraining:+.3f}   (means)", fontsize=11)
        else:
            figure.text(0.01, 0.885, "measured for M with long pretraining only", fontsize=11, color=GREY)
        return said

    controls = {
        "ability": menu("ability", list(SHOWN)),
        "step": slider(f"fine-tuning steps, one of {', '.join(map(str, SETTINGS.steps))}", len(SETTINGS.steps) - 1, 0, len(SETTINGS.steps) - 1),
        "across": choice("curves against", ["steps", "operations"]),
    }

    def on_pointer(event: PointerEvent) -> None:
        if event.kind == "key":
            controls["step"].value += {"ArrowLeft": -1, "ArrowRight": 1}.get(event.key, 0)
            moved = SHOWN.index(controls["ability"].value) + {"ArrowUp": -1, "ArrowDown": 1}.get(event.key, 0)
            controls["ability"].value = SHOWN[min(max(moved, 0), len(SHOWN) - 1)]
        elif event.kind == "press" and event.axes == CELLS:
            marked[:] = [min(max(round(event.y), 0), 2), min(max(round(event.x), 0), 2)]
        elif event.kind in ("press", "drag") and event.axes == CURVES and controls["across"].value == "steps":
            controls["step"].value = min(max(round(event.x), 0), len(SETTINGS.steps) - 1)

    def reset() -> None:
        marked[:] = [1, 2]

    last = len(SETTINGS.steps) - 1
    return Explorer(
        draw,
        controls,
        title="One recipe, nine backbones: which axis matters for which ability? Click a cell to follow its curve.",
        figsize=(10.0, 4.8),
        seed=SETTINGS.seed,
        on_pointer=on_pointer,
        on_reset=reset,
        presets={
            "little data": {"ability": "in-domain", "step": 3, "across": "steps"},
            "unseen libraries": {"ability": "zero-shot", "step": last, "across": "steps"},
            "what does it cost?": {"ability": "in-domain", "step": last, "across": "operations"},
            "who is quick?": {"ability": "data efficiency", "step": 3, "across": "steps"},
            "instructions": {"ability": "instructions", "step": last, "across": "steps"},
        },
    )


def _draw_cells(axes: Axes, values: np.ndarray, step: int, marked: list[int], number: int) -> None:
    """The 3 x 3 grid, each cell with its figure."""
    now = values[:, :, step]
    if number < 4:
        low, high, colours = float(np.nanmin(values)), float(np.nanmax(values)), mpl.colormaps[SEQUENTIAL]
    else:
        high = float(np.nanmax(np.abs(values)))
        low, colours = -high, mpl.colormaps[DIVERGING]
    share = (np.nan_to_num(now) - low) / (high - low)
    picture = colours(share)
    picture[np.isnan(now)] = mpl.colors.to_rgba(LIGHT)
    axes.imshow(picture, aspect="auto", interpolation="nearest")
    axes.add_patch(Rectangle((marked[1] - 0.47, marked[0] - 0.47), 0.94, 0.94, fill=False, edgecolor=VERMILION, linewidth=3))
    places = [(j, i) for i in range(3) for j in range(3)]
    said = ["not measured" if np.isnan(now[i, j]) else f"{now[i, j]:{'.3f' if number < 4 else '+.3f'}}" for j, i in places]
    light = [picture[i, j, :3] @ (0.299, 0.587, 0.114) < 0.5 for j, i in places]
    axes.add_artist(Words(places, said, ["white" if dark else BLACK for dark in light], size=11))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    below = [(j, 2.62) for j in range(3)]
    beside = [(-0.64, i) for i in range(3)]
    names = [f"{amount}" for amount in AMOUNTS]
    axes.add_artist(Words(below + beside, names + list(SIZES), [BLACK] * 6, size=11))
    axes.add_artist(Words([(1, 2.83), (-0.64, -0.64)], ["pretraining: 0, 40, 400 steps", "size"], [GREY] * 2, size=10))


def _draw_curves(axes: Axes, values: np.ndarray, step: int, marked: list[int], across: str) -> None:
    """All cells over the steps, or over the operations of fine-tuning and pretraining together."""
    steps = SETTINGS.steps
    cost = np.log10(np.maximum(table().get_buffer("cost").numpy(), 1e-9))
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.07 * (high - low or 1)
    ends, level = [], np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            if np.isnan(values[i, j]).all():
                continue
            own = [i, j] == marked
            x = np.arange(len(steps)) if across == "steps" else cost[i, j]
            first = 0 if across == "steps" else 1  # without a step and without pretraining nothing is spent, which has no logarithm
            axes.plot(x[first:], values[i, j, first:], LINES[j], color=COLOURS[i], linewidth=3.2 if own else 1.4, alpha=1 if own else 0.75)
            place = max(step, first)
            axes.plot(x[place], values[i, j, place], "o", color=COLOURS[i], markersize=9 if own else 5, markeredgecolor=BLACK if own else COLOURS[i])
            ends.append((float(values[i, j, -1]), float(x[-1]), i, j))
            level[i, j] = float(values[i, j].mean())
    axes.set_ylim(low - room, high + 1.3 * room)
    axes.set_xticks([])
    axes.set_yticks([])
    if across == "steps":
        axes.set_xlim(-0.3, len(steps) - 0.4)
        axes.axvspan(step - 0.12, step + 0.12, color=YELLOW, alpha=0.6, linewidth=0)
        places, names = [(float(k), low - 1.9 * room) for k in range(len(steps))], [str(s) for s in steps]
        label = "fine-tuning steps"
    else:
        left, right = float(cost[:, :, 1].min()) - 0.1, float(cost.max()) + 0.1
        axes.set_xlim(left, right)
        ticks = [t for t in range(0, 7) if left <= t <= right]
        places, names = [(float(t), low - 1.9 * room) for t in ticks], [f"{10**t:,}" for t in ticks]
        label = "billion operations, pretraining included"
    right_end = axes.get_xlim()
    span = right_end[1] - right_end[0]
    grid, digits = [low, (low + high) / 2, high], ".2f" if high - low > 0.1 else ".3f"
    up = [(right_end[0] - 0.075 * span, value) for value in grid]
    middle = [((right_end[0] + right_end[1]) / 2, low - 3.2 * room)]
    axes.add_artist(Words(places + up + middle, [*names, *[f"{v:{digits}}" for v in grid], label], [BLACK] * (len(names) + 4), size=9.5))
    gap = 0.062 * (high - low or 1)
    if across == "steps":
        # where curves end at one place, their names stand in the order of their means
        _label_ends(axes, sorted(ends, key=lambda end: (round(end[0], 4), level[end[2], end[3]])), right_end[1] + 0.07 * span, gap)
    else:
        tops = [max((end for end in ends if end[2] == size), default=None) for size in range(3)]
        named = [(top[1], top[0] + 0.75 * room, top[2]) for top in tops if top]
        axes.add_artist(Words([(x, y) for x, y, _ in named], [SIZES[i] for *_, i in named], [COLOURS[i] for *_, i in named], size=12))
        rows = [high - 0.9 * room * place for place in range(3)]
        for style, y in zip(LINES, rows, strict=True):
            axes.plot([right_end[0] + 0.03 * span, right_end[0] + 0.1 * span], [y, y], style, color=BLACK, linewidth=1.4)
        axes.add_artist(Words([(right_end[0] + 0.15 * span, y) for y in rows], AMOUNTS, [BLACK] * 3, size=9.5))


def _label_ends(axes: Axes, ends: list[tuple[float, float, int, int]], where: float, gap: float) -> None:
    """Names beside the ends of the curves, given from low to high, moved apart where they would overlap."""
    placed: list[float] = []
    for value, *_ in ends:
        placed.append(max(value, placed[-1] + gap) if placed else value)
    shift = max(placed[-1] - axes.get_ylim()[1], 0)
    places = [(where, y - shift) for y in placed]
    axes.add_artist(Words(places, [f"{SIZES[i]} {AMOUNTS[j]}" for *_, i, j in ends], [COLOURS[i] for *_, i, _ in ends], size=9.5))


# ------------------------------------------------------------------------------------------------------- one query, two instructions

QUERIES = 40
TOP = 5
WAYS: tuple[str, ...] = (
    "none",
    *INSTRUCTIONS["parameters"]["seen"],
    *INSTRUCTIONS["notes"]["seen"],
    *INSTRUCTIONS["parameters"]["unseen"],
    *INSTRUCTIONS["notes"]["unseen"],
)


@dataclass(frozen=True)
class Shelf:
    """What is searched: both kinds of document of each test page.

    Attributes:
        pairs: the pages.
        documents: page and kind of each.
        vectors: (documents, 64).
    """

    pairs: tuple[DocstringPair, ...]
    documents: tuple[tuple[DocstringPair, Kind], ...]
    vectors: Tensor


@cache
def shelf() -> Shelf:
    """The test pages that have both kinds, encoded by the shipped encoder."""
    pairs = with_both(pages().test)
    documents = tuple((pair, kind) for pair in pairs for kind in KINDS)
    return Shelf(pairs, documents, encode([kind_text(pair, kind) for pair, kind in documents]))


def found_for(query: int, instruction: str) -> list[tuple[float, DocstringPair, Kind]]:
    """The five best documents of a query under an instruction, with their cosines."""
    things = shelf()
    vector = encode([things.pairs[query].query], instruction="" if instruction == "none" else instruction)
    values, rows = (things.vectors @ vector[0]).topk(TOP)
    return [(float(value), *things.documents[row]) for value, row in zip(values, rows.tolist(), strict=True)]


def instructions() -> Explorer:
    """The same query under two instructions: which documents come first?"""

    def draw(figure: Figure, query: int, left: str, right: str) -> str:
        figure.set_layout_engine("none")
        pair = shelf().pairs[query]
        figure.text(0.02, 0.925, f"query: {textwrap.shorten(pair.query, 95)}".replace("$", r"\$"), fontsize=12, weight="bold")
        said = []
        for place, way in enumerate((left, right)):
            axes = figure.add_axes((0.02 + 0.5 * place, 0.04, 0.46, 0.84))
            rows = found_for(query, way)
            _draw_list(axes, rows, pair, way)
            said.append(f"{way}: {sum(kind == 'parameters' for _, _, kind in rows)} parameters, {sum(kind == 'notes' for _, _, kind in rows)} notes")
        return f"{pair.page.name}; the first five under " + "; under ".join(said)

    controls = {
        "query": slider("query", 3, 0, QUERIES - 1),
        "left": menu("left", list(WAYS), INSTRUCTIONS["parameters"]["seen"][0]),
        "right": menu("right", list(WAYS), INSTRUCTIONS["notes"]["seen"][0]),
    }
    return Explorer(
        draw,
        controls,
        title="The same query under two instructions: the first five documents side by side.",
        figsize=(10.0, 4.6),
        presets={
            "no instruction": {"left": "none", "right": INSTRUCTIONS["notes"]["seen"][0]},
            "two wordings of one wish": {"left": INSTRUCTIONS["notes"]["seen"][0], "right": INSTRUCTIONS["notes"]["seen"][5]},
            "wordings that were not trained": {"left": INSTRUCTIONS["parameters"]["unseen"][0], "right": INSTRUCTIONS["notes"]["unseen"][0]},
        },
    )


def _draw_list(axes: Axes, rows: list[tuple[float, DocstringPair, Kind]], pair: DocstringPair, way: str) -> None:
    """Five documents: kind by colour, the query's own page in bold, the cosine as a bar."""
    axes.set_xlim(0, 1)
    axes.set_ylim(TOP + 0.05, -0.55)
    axes.axis("off")
    axes.text(0, -0.28, f"instruction: {textwrap.shorten(way, 50)}", fontsize=10.5, va="center", color=VERMILION)
    for place, (value, page, kind) in enumerate(rows):
        colour = BLUE if kind == "parameters" else ORANGE
        own = page.page.name == pair.page.name
        axes.add_patch(Rectangle((0, place + 0.03), 1, 0.9, facecolor=YELLOW if own else LIGHT, alpha=0.45, linewidth=0))
        axes.add_patch(Rectangle((0, place + 0.03), 0.012, 0.9, facecolor=colour, linewidth=0))
        axes.add_patch(Rectangle((0.03, place + 0.78), 0.94 * max(value, 0), 0.07, facecolor=colour, linewidth=0))
        axes.text(0.03, place + 0.25, f"{kind} of {page.page.name}", fontsize=10, va="center", weight="bold" if own else "normal")
        text = textwrap.shorten(kind_text(page, kind), 64).replace("$", r"\$")
        axes.text(0.03, place + 0.55, text, fontsize=8.5, va="center", color=GREY)
        axes.text(0.985, place + 0.25, f"{value:.2f}", fontsize=9.5, va="center", ha="right")
