"""Touch 2D Matryoshka: choose layers and numbers of a vector, and see what a query finds for that price."""

import statistics
import time
from functools import cache

import matplotlib.patches as patches
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from torch import Tensor

from mtlearn.explore.canvas import Words
from mtlearn.explore.explorer import Explorer, PointerEvent, choice, slider
from mtlearn.explore.style import BLACK, BLUE, GREEN, LIGHT, ORANGE, SEQUENTIAL, VERMILION
from mtlearn.lab.checkpoints import load
from mtlearn.layers.cost import count_flops
from mtlearn.retrieval.matryoshka_2d.encoder import shipped
from mtlearn.retrieval.matryoshka_2d.experiment import RIVALS, SHIPPED, SHOWN, SIZES, exits_of, grid
from mtlearn.retrieval.matryoshka_2d.method import ElasticEncoder, sliced
from mtlearn.retrieval.matryoshka_2d.worlds import World, docstring_texts, tokenised

LAYERS: int = SHIPPED.settings.recipe.layers
COLOURS = {"plain": VERMILION, "MRL": ORANGE, "2DMSE": BLUE}
MARKERS = {"plain": "s", "MRL": "^", "2DMSE": "o"}
DOCUMENTS = 10_000  # that a search is thought to go through, for the price
TEXT = 11  # points
WIDE = 10.0  # inches of the figure
HEAT, FRONT = 0, 1  # numbers of the axes that can be clicked


@cache
def world() -> World:
    """The held-out functions."""
    return tokenised(docstring_texts(SHIPPED.settings.seed, held_out=SHIPPED.settings.held_out), shipped()[1])


@cache
def exits() -> dict[str, tuple[Tensor, Tensor]]:
    """Exits (N + 1, n, D) of queries and documents by model: the shipped encoder runs, its rivals' are stored."""
    stored = load(RIVALS).get_buffer("exits").float()
    rivals = {name: (rows[:, 0], rows[:, 1]) for name, rows in zip(SHOWN, stored, strict=False)}
    return rivals | {SHOWN[-1]: exits_of(shipped()[0], world())}


@cache
def tables() -> dict[str, np.ndarray]:
    """MRR (N + 1, sizes) by model, among the held-out functions."""
    return {name: grid(found, SIZES).numpy() for name, found in exits().items()}


@cache
def costs() -> np.ndarray:
    """Million operations (N + 1, sizes) of a search: encode the query, then a product and a sum for each number of each document."""
    tokens = world().test[0][:1]
    with torch.no_grad():
        flops = [0.0] + [float(count_flops(lambda n=n: shortened(n)(tokens))) for n in range(1, LAYERS + 1)]  # type: ignore[misc]
    found: np.ndarray = (np.array(flops)[:, None] + 2 * DOCUMENTS * np.array(SIZES)[None]) / 1e6
    return found


@cache
def shortened(layer: int) -> ElasticEncoder:
    """The shipped encoder without the layers above."""
    return shipped()[0].truncated(layer)


@cache
def milliseconds() -> list[float]:
    """Time (N + 1,) to encode one query here, the median of a few; layer 0 is not timed."""
    tokens = world().test[0][:1]
    found = [0.0]
    for n in range(1, LAYERS + 1):
        encoder = shortened(n)
        with torch.no_grad():
            encoder(tokens)
            seconds = []
            for _ in range(9):
                began = time.perf_counter()
                encoder(tokens)
                seconds.append(time.perf_counter() - began)
        found.append(1e3 * statistics.median(seconds))
    return found


def front(cost: np.ndarray, quality: np.ndarray) -> list[int]:
    """Numbers of the points that no other point beats in both, in the order of cost."""
    order = np.lexsort((-quality, cost))
    found: list[int] = []
    best = -np.inf
    for i in order.tolist():
        if quality[i] > best:
            found.append(i)
            best = quality[i]
    return found


def explorer() -> Explorer:
    """Click a cell, or a point of the front; by keyboard up and down change the layer, left and right the size, ``n`` and ``p`` the query."""
    held_out = len(world().texts.test[0])

    def draw(figure: Figure, model: str, layer: int, step: int, query: int) -> str:
        figure.set_layout_engine("none")
        size = SIZES[step]
        _draw_heat(figure.add_axes((0.07, 0.52, 0.33, 0.40)), model, layer, step)
        _draw_front(figure.add_axes((0.55, 0.55, 0.43, 0.37)), model, layer, step)
        rank = _draw_found(figure.add_axes((0.02, 0.01, 0.96, 0.40)), model, layer, size, query)
        return (
            f"{model}, {layer} of {LAYERS} layers, {size} numbers: MRR {tables()[model][layer, step]:.3f} among {held_out} functions; the right "
            f"document of query {query} has rank {rank}; {2 * size} bytes an embedding in half precision"
        )

    controls = {
        "model": choice("training", list(SHOWN)),
        "layer": slider("layers", 1, 1, LAYERS),
        "step": slider("size: 4, 8, 16, 32, 64", 2, 0, len(SIZES) - 1),
        "query": slider("query", 31, 0, held_out - 1),
    }
    controls["model"].value = SHOWN[-1]

    def on_pointer(event: PointerEvent) -> None:
        if event.kind == "key":
            controls["layer"].value += {"ArrowUp": 1, "ArrowDown": -1}.get(event.key, 0)
            controls["step"].value += {"ArrowRight": 1, "ArrowLeft": -1}.get(event.key, 0)
            controls["query"].value += {"n": 1, "p": -1}.get(event.key, 0)
        elif event.kind in ("press", "drag") and event.axes == HEAT:
            controls["layer"].value = min(max(round(event.y), 1), LAYERS)
            controls["step"].value = min(max(round(event.x), 0), len(SIZES) - 1)
        elif event.kind == "press" and event.axes == FRONT:
            cells = [(name, n, j) for name in SHOWN for n in range(1, LAYERS + 1) for j in range(len(SIZES))]
            far = [np.hypot((costs()[n, j] - event.x) / costs().max(), 2.5 * (tables()[name][n, j] - event.y)) for name, n, j in cells]
            controls["model"].value, controls["layer"].value, controls["step"].value = cells[int(np.argmin(far))]

    return Explorer(
        draw,
        controls,
        title="How many layers, how many numbers? Click a cell or a point and see what the query finds for that price.",
        figsize=(WIDE, 7.2),
        seed=SHIPPED.settings.seed,
        on_pointer=on_pointer,
        presets={
            "all there is": {"model": "2DMSE", "layer": LAYERS, "step": 4},
            "one layer, Matryoshka alone": {"model": "MRL", "layer": 1, "step": 4},
            "one layer, 2DMSE": {"model": "2DMSE", "layer": 1, "step": 4},
            "cheap corner, plain": {"model": "plain", "layer": 1, "step": 2},
            "cheap corner, 2DMSE": {"model": "2DMSE", "layer": 1, "step": 2},
            "eight numbers, plain": {"model": "plain", "layer": LAYERS, "step": 1},
            "eight numbers, Matryoshka": {"model": "MRL", "layer": LAYERS, "step": 1},
        },
    )


def _draw_heat(axes: Axes, model: str, layer: int, step: int) -> None:
    table = tables()[model]
    highest = max(float(found.max()) for found in tables().values())
    axes.imshow(table, origin="lower", cmap=SEQUENTIAL, vmin=0, vmax=highest, aspect="auto")
    cells = [(j, n) for n in range(LAYERS + 1) for j in range(len(SIZES))]
    colours = ["white" if table[n, j] < 0.6 * highest else BLACK for j, n in cells]
    axes.add_artist(Words(cells, [f"{table[n, j]:.2f}" for j, n in cells], colours, size=11))
    axes.add_patch(patches.Rectangle((step - 0.48, layer - 0.46), 0.96, 0.92, fill=False, edgecolor="white", linewidth=5))
    axes.add_patch(patches.Rectangle((step - 0.48, layer - 0.46), 0.96, 0.92, fill=False, edgecolor=VERMILION, linewidth=2.5))
    axes.set_xticks(range(len(SIZES)), [str(size) for size in SIZES])
    axes.set_yticks(range(LAYERS + 1), ["none", *(str(n) for n in range(1, LAYERS + 1))])
    axes.set_xlabel("numbers of the vector")
    axes.set_ylabel("layers that run")
    axes.text(0, 1.03, f"MRR of {model}", transform=axes.transAxes, fontsize=12)  # a title would measure every tick first
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _draw_front(axes: Axes, model: str, layer: int, step: int) -> None:
    cost = costs()
    for name in SHOWN:
        x, y = cost[1:].ravel(), tables()[name][1:].ravel()
        kept = front(x, y)
        mine = name == model
        axes.scatter(x, y, s=18, marker=MARKERS[name], color=COLOURS[name], alpha=0.35, linewidths=0)
        axes.plot(x[kept], y[kept], drawstyle="steps-post", color=COLOURS[name], linewidth=3 if mine else 1.5, marker=MARKERS[name])
    axes.scatter([cost[layer, step]], [tables()[model][layer, step]], s=200, facecolor="none", edgecolor=BLACK, linewidth=2, zorder=4)
    axes.set_xlabel("million operations: one query, 10,000 documents")
    axes.set_ylabel("MRR")
    axes.text(0, 1.03, "what the best cells cost", transform=axes.transAxes, fontsize=12)
    axes.set_xticks([1, 2, 3, 4])
    axes.set_yticks([0.1, 0.2, 0.3, 0.4])
    for row, name in enumerate(SHOWN):
        axes.plot([0.78], [0.08 + 0.09 * row], MARKERS[name], color=COLOURS[name], transform=axes.transAxes)
        axes.text(0.81, 0.08 + 0.09 * row, name, transform=axes.transAxes, va="center", fontsize=11)


def _draw_found(axes: Axes, model: str, layer: int, size: int, query: int) -> int:
    texts = world().texts
    if model == SHOWN[-1]:  # the shortened encoder itself runs
        with torch.no_grad():
            asked = shortened(layer)(world().test[0][query : query + 1], size)
    else:
        asked = sliced(exits()[model][0][layer, query : query + 1], size)
    scores = (asked @ sliced(exits()[model][1][layer], size).T)[0]
    order = scores.argsort(descending=True, stable=True).tolist()
    rank: int = order.index(query) + 1
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 7)
    axes.axis("off")
    price = f"{layer} of {LAYERS} layers, {milliseconds()[layer]:.1f} ms; {size} numbers, {2 * size} bytes; right document at rank {rank}"
    places: list[tuple[float, float]] = []
    words: list[str] = []
    colours: list[str] = []
    heading = f"query {query}: {_short(texts.test[0][query], 90)}"
    for y, said, colour in ((6.45, heading, BLACK), (5.7, price, GREEN if rank == 1 else VERMILION)):
        for x, word in _set(said, 0.0):
            places.append((x, y))
            words.append(word)
            colours.append(colour)
    for place, i in enumerate(order[:5]):
        right = i == query
        y = 4.75 - 1.0 * place
        axes.add_patch(patches.Rectangle((0.0, y - 0.42), 0.055, 0.84, facecolor=GREEN if right else LIGHT, linewidth=0))
        line = [(0.0275, f"{float(scores[i]):.2f}"), *_set(_short(texts.test[1][i], 72), 0.065)]
        places += [(x, y) for x, _ in line]
        words += [word for _, word in line]
        colours += ["white" if right else BLACK, *[BLACK] * (len(line) - 1)]
    axes.add_artist(Words(places, words, colours, size=TEXT))
    return rank


def _set(line: str, start: float) -> list[tuple[float, str]]:
    """Centres, in shares of the axes' width, and words of a line of text: a word is kept once drawn, a line would be drawn anew each time."""
    found, x = [], start
    for word in line.split():
        width = _width(word)
        found.append((x + width / 2, word))
        x += width + _width("-")
    return found


@cache
def _width(word: str) -> float:
    return float(text_to_path.get_text_width_height_descent(word, FontProperties(size=TEXT), False)[0]) / (72 * WIDE * 0.96)


def _short(text: str, most: int) -> str:
    line = " ".join(text.split()).replace("$", "")
    return line if len(line) <= most else line[: most - 3] + "..."
