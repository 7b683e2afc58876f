"""Touch isomorphic consistency: two nodes that look alike within one hop, and what is decoded of their neighbourhoods, level by level."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import matplotlib as mpl
import networkx as nx
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import WLConv

from mtlearn.explore.explorer import Explorer, PointerEvent, choice, menu
from mtlearn.explore.style import BLACK, BLUE, DIVERGING, GREEN, GREY, LIGHT, ORANGE, VERMILION
from mtlearn.graphs.graph import Graph
from mtlearn.graphs.isoc_vgae.experiment import CHECKPOINTS, NEIGHBOUR_WEIGHTS, Unfolders, unfolder
from mtlearn.graphs.isoc_vgae.method import IsoCVGAE
from mtlearn.lab.checkpoints import load, provenance

COLOURS = (BLUE, ORANGE, GREEN)  # what a node's one-hot features mean
DEPTHS = Unfolders().depths
EQUAL = 1e-5  # of a typical difference: below it two decoded numbers are the same but for rounding
Place = tuple[float, float]


@dataclass(frozen=True)
class Side:
    """One graph of a pair: edges, where its nodes are drawn, their colours, and the node that is looked at."""

    edges: tuple[tuple[int, int], ...]
    places: tuple[Place, ...]
    colours: tuple[int, ...]
    marked: int


def _path(n: int, marked: int, colours: tuple[int, ...] | None = None) -> Side:
    places = tuple((k / (n - 1), 0.5 + 0.16 * (-1) ** k) for k in range(n))
    return Side(tuple((k, k + 1) for k in range(n - 1)), places, colours or (0,) * n, marked)


def _drawn(graph: nx.Graph, places: tuple[Place, ...], marked: int, colours: tuple[int, ...] | None = None) -> Side:
    return Side(tuple(graph.edges), places, colours or (0,) * len(graph), marked)


def _circle(n: int, centre: Place = (0.5, 0.5), radius: float = 0.36, start: float = 0.0) -> tuple[Place, ...]:
    angles = start + 2 * np.pi * np.arange(n) / n
    return tuple((centre[0] + radius * float(np.cos(a)), centre[1] + radius * float(np.sin(a))) for a in angles)


TRIANGLES = _circle(3, (0.22, 0.5), 0.22, np.pi / 2) + _circle(3, (0.78, 0.5), 0.22, np.pi / 2)
FORK = ((0.5, 0.9), (0.25, 0.5), (0.75, 0.5), (0.08, 0.1), (0.42, 0.1), (0.75, 0.1))
TWO, THREE, COLOUR, FAR, NEVER = (
    "a path of six: beside its end, in the middle",
    "a path of seven: two from its end, in the middle",
    "another colour two steps away",
    "a fork: leaves on one side, on both",
    "a hexagon and two triangles",
)
PAIRS: Mapping[str, Callable[[], tuple[Side, Side]]] = {
    TWO: lambda: (_path(6, 1), _path(6, 2)),
    THREE: lambda: (_path(7, 2), _path(7, 3)),
    COLOUR: lambda: (_path(5, 2), _path(5, 2, (0, 0, 0, 0, 1))),
    FAR: lambda: (
        _drawn(nx.Graph([(0, 1), (0, 2), (1, 3), (1, 4)]), FORK[:5], 0),
        _drawn(nx.Graph([(0, 1), (0, 2), (1, 3), (2, 4)]), (*FORK[:4], FORK[5]), 0),
    ),
    NEVER: lambda: (
        _drawn(nx.cycle_graph(6), _circle(6), 0),
        _drawn(nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(3)), TRIANGLES, 0),
    ),
}


@cache
def unfolders() -> dict[str, IsoCVGAE]:
    """The shipped models by name."""
    models = load(CHECKPOINTS[0])
    assert isinstance(models, nn.ModuleDict)
    return {name: model for name, model in models.items() if isinstance(model, IsoCVGAE)}


@cache
def scale(model: str, level: int) -> float:
    """The standard deviation of what a model decodes at a level, over all small graphs."""
    return float(provenance(CHECKPOINTS[0])["measured"][f"{model}, level {level}: scale"])


def as_graph(side: Side) -> Graph:
    """The graph of a side, colours as one-hot features."""
    edges = torch.tensor(side.edges).reshape(-1, 2).T
    return Graph.of(F.one_hot(torch.tensor(side.colours), len(COLOURS)).float(), torch.cat([edges, edges.flip(0)], 1))


@dataclass(frozen=True)
class Rung:
    """One level of the ladder at one node.

    Attributes:
        own, decoded, mean: (d,) the embedding one layer below, what is decoded of it, and its mean over the node and its neighbours.
        everyone: (n, d) the embeddings one layer below of all nodes of the graph.
        degree, decoded_degree: how many neighbours, and how many are decoded.
    """

    own: np.ndarray
    decoded: np.ndarray
    mean: np.ndarray
    everyone: np.ndarray
    degree: int
    decoded_degree: float


def ladder(side: Side, model: str) -> list[Rung]:
    """The levels 1, ..., L of a shipped model at the marked node of a side."""
    graph = as_graph(side)
    hidden, levels = unfolders()[model].decode(graph)
    at = side.marked
    return [
        Rung(
            target[at].numpy(),
            level.mean[at].numpy(),
            graph.neighbour_mean(target)[at].numpy(),
            target.numpy(),
            int(graph.degree[at]),
            float(level.degree[at].expm1()),
        )
        for level, target in zip(levels, hidden, strict=False)
    ]


def apart(first: list[Rung], second: list[Rung], model: str) -> list[float]:
    """How far two nodes are apart at each level, in typical differences: the larger of that of decoded embeddings and of decoded degrees."""
    return [
        max(
            float(np.sqrt(np.square(a.decoded - b.decoded).mean())) / scale(model, level),
            abs(a.decoded_degree - b.decoded_degree),
        )
        for level, (a, b) in enumerate(zip(first, second, strict=True), 1)
    ]


def refined(first: Side, second: Side, rounds: int) -> tuple[list[int], list[int]]:
    """The colours of 1-WL after some rounds, numbered together: nodes with one number have one embedding under every weight."""
    colours = torch.tensor(first.colours + second.colours)
    shift = len(first.colours)
    edges = torch.tensor([*first.edges, *((a + shift, b + shift) for a, b in second.edges)]).T
    for _ in range(rounds):
        colours = WLConv()(colours, torch.cat([edges, edges.flip(0)], 1))
    numbers = torch.unique(colours, return_inverse=True)[1].tolist()
    return numbers[:shift], numbers[shift:]


class Pair:
    """The two sides as a reader has changed them."""

    def __init__(self) -> None:
        self.name = ""
        self.sides: list[Side] = []
        self.touched = 0

    def open(self, name: str) -> None:
        """Lay a pair out afresh."""
        self.name, self.sides, self.touched = name, list(PAIRS[name]()), 0

    def mark(self, number: int, node: int) -> None:
        """Look at another node of a side."""
        side = self.sides[number]
        self.sides[number] = Side(side.edges, side.places, side.colours, node % len(side.places))
        self.touched = number

    def paint(self, number: int, node: int) -> None:
        """Give a node the next colour."""
        side = self.sides[number]
        colours = tuple((c + 1) % len(COLOURS) if k == node else c for k, c in enumerate(side.colours))
        self.sides[number] = Side(side.edges, side.places, colours, side.marked)
        self.touched = number

    def handle(self, event: PointerEvent) -> None:
        """Click: look at a node. Shift and click, or c: paint it. Arrow keys: another node, another graph."""
        side = self.sides[self.touched]
        if event.kind == "press" and event.axes in (0, 1):
            places = np.array(self.sides[event.axes].places)
            near = int(np.square(places - (event.x, event.y)).sum(1).argmin())
            (self.paint if event.key == "Shift" else self.mark)(event.axes, near)
        elif event.kind == "key" and event.key in ("ArrowRight", "ArrowLeft"):
            self.mark(self.touched, side.marked + (1 if event.key == "ArrowRight" else -1))
        elif event.kind == "key" and event.key in ("ArrowUp", "ArrowDown"):
            self.touched = 1 - self.touched
        elif event.kind == "key" and event.key == "c":
            self.paint(self.touched, side.marked)


def explorer(*, pair: str = TWO, levels: int = 2) -> Explorer:
    """Two nodes, and the ladder of what each number of layers decodes of their neighbourhoods.

    Click a node to look at it, shift and click to paint it; with the keyboard the arrow keys and c.
    """
    shown = Pair()

    def draw(figure: Figure, pair: str, levels: int, neighbour: str) -> str:
        if pair != shown.name:
            shown.open(pair)
        first, second = shown.sides
        model = unfolder(levels, neighbour)
        ladders = [ladder(side, model) for side in shown.sides]
        distances = apart(ladders[0], ladders[1], model)
        colours = refined(first, second, levels)
        figure.set_layout_engine("none")
        for number, (left, side) in enumerate(zip((0.02, 0.63), shown.sides, strict=True)):
            _draw_graph(figure.add_axes((left, 0.60, 0.35, 0.32)), side, colours[number], touched=shown.touched == number)
        _draw_apart(figure.add_axes((0.43, 0.665, 0.145, 0.19)), distances)
        for number, left in enumerate((0.135, 0.655)):
            everyone = [np.concatenate([a.everyone, b.everyone]) for a, b in zip(*ladders, strict=True)]
            _draw_ladder(figure.add_axes((left, 0.035, 0.215, 0.46)), ladders[number], everyone, model, words=number == 0)
        same = max(distances) < EQUAL
        forced = colours[0][first.marked] == colours[1][second.marked]
        verdict = f"{levels} layer{'s' * (levels > 1)}: the two ringed nodes are decoded {'alike' if same else 'differently'}"
        figure.text(0.5, 0.955, verdict, ha="center", fontsize=13, color=VERMILION if same else GREEN, fontweight="bold")
        where = "; ".join(
            f"level {level}: {distance:.2g} apart, degrees {a.degree} and {b.degree} decoded as {a.decoded_degree:.1f} and {b.decoded_degree:.1f}"
            for level, (distance, a, b) in enumerate(zip(distances, *ladders, strict=True), 1)
        )
        rounds = f"{levels} round{'s' * (levels > 1)}"
        return f"{pair}. {verdict}; after {rounds} of 1-WL they have {'one colour' if forced else 'two colours'}. {where}"

    controls = {
        "pair": menu("two nodes", list(PAIRS), pair),
        "levels": choice("levels decoded", list(DEPTHS), levels),
        "neighbour": choice("neighbour loss", [(f"λ = {weight:g}, {name}", name) for name, weight in NEIGHBOUR_WEIGHTS.items()], "published"),
    }

    def state(pair: str, levels: int, neighbour: str = "published") -> dict[str, object]:
        return {"pair": pair, "levels": levels, "neighbour": neighbour}

    return Explorer(
        draw,
        controls,
        title="How far does an embedding see?",
        figsize=(10.0, 6.4),
        seed=Unfolders().seed,
        on_pointer=shown.handle,
        on_reset=lambda: setattr(shown, "name", ""),
        presets={
            "alike within one hop": state(TWO, 1),
            "two hops tell": state(TWO, 2),
            "a heavier neighbour loss": state(TWO, 2, "heavier"),
            "not yet at two": state(THREE, 2),
            "three hops tell": state(THREE, 3),
            "a colour two steps away": state(COLOUR, 2),
            "never: 1-WL's ceiling": state(NEVER, 3),
        },
    )


def _draw_graph(axes: Axes, side: Side, numbers: list[int], *, touched: bool) -> None:
    """Nodes in their colours with the number of their 1-WL colour; the node that is looked at has a ring."""
    places = np.array(side.places)
    axes.add_collection(LineCollection(places[np.array(side.edges)], colors=GREY, linewidths=2, zorder=1))
    axes.scatter(places[:, 0], places[:, 1], s=330, c=[COLOURS[c] for c in side.colours], zorder=2)
    x, y = side.places[side.marked]
    axes.scatter(x, y, s=640, facecolors="none", edgecolors=BLACK, linewidths=2.6, zorder=3)
    for place, number in zip(side.places, numbers, strict=True):
        axes.text(*place, str(number), ha="center", va="center_baseline", color="white", fontsize=11, fontweight="bold")
    axes.set(xlim=(-0.12, 1.12), ylim=(-0.1, 1.1), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(GREY if touched else LIGHT)
    hint = "click: look at a node; shift and click: paint it" if touched else "in a node: the number of its 1-WL colour"
    axes.set_xlabel(hint, fontsize=9.5, color=GREY)


def _draw_apart(axes: Axes, distances: list[float]) -> None:
    """How far the two are apart at each level, on a logarithmic scale from rounding to a typical difference."""
    low, high = EQUAL, 10.0
    for level, distance in enumerate(distances, 1):
        axes.barh(level, max(distance, low) - low, left=low, color=VERMILION, height=0.5)
        word = "equal" if distance < EQUAL else f"{distance:.2g}" if distance >= 1e-3 else f"{distance:.0e}"
        axes.text(max(distance, low) * 1.6, level, word, va="center", fontsize=10)
    axes.set_xscale("log")
    axes.set(xlim=(low, high * 30), ylim=(0.4, len(DEPTHS) + 0.6), yticks=range(1, len(DEPTHS) + 1))
    axes.set_xticks([1e-5, 1e-2, 1], ["", "0.01", "1"], fontsize=9.5)
    axes.minorticks_off()
    axes.axvline(1, color=LIGHT, linewidth=1, zorder=0)
    axes.set_ylabel("level", fontsize=10, labelpad=2)
    axes.set_title("what is decoded: how far apart\n(1: a typical difference)", fontsize=10)


def _draw_ladder(axes: Axes, rungs: list[Rung], everyone: list[np.ndarray], model: str, *, words: bool) -> None:
    """Three strips a level: the node's own embedding one layer below, what is decoded, the mean over its neighbourhood."""
    wide = Unfolders().width
    image = np.ones((4 * len(DEPTHS) - 1, wide, 3))
    for level in DEPTHS:
        top = 4 * (len(DEPTHS) - level)
        if level > len(rungs):
            axes.text(wide / 2 - 0.5, top + 1, f"no layer {level}", ha="center", va="center", color=GREY, fontsize=10)
            continue
        rung = rungs[level - 1]
        image[top : top + 3] = _strips(rung, everyone[level - 1], 0.08 * scale(model, level), level, wide)
        right = abs(rung.degree - rung.decoded_degree) < 0.5
        told = f"{rung.degree}, decoded {rung.decoded_degree:.1f}"
        axes.text(wide - 0.2, top + 1, told, va="center", fontsize=10, color=BLACK if right else VERMILION)
    axes.imshow(image, aspect="auto", interpolation="nearest")
    axes.text(wide - 0.2, -1.0, "neighbours", va="center", fontsize=10, color=GREY)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks([])
    axes.tick_params(length=0)
    first = 4 * (len(DEPTHS) - len(rungs))
    rows = [first, first + 1, first + 2, *(4 * (len(DEPTHS) - level) for level in range(1, len(rungs)))]
    names = [f"level {len(rungs)}: own", "decoded", "neighbourhood", *(f"level {level}: own" for level in range(1, len(rungs)))]
    axes.set_yticks(rows if words else [], names if words else [], fontsize=9.5)


def _strips(rung: Rung, everyone: np.ndarray, floor: float, level: int, wide: int) -> np.ndarray:
    """Own, decoded and mean as colours (3, wide, 3).

    At level 1 the shares of node colours; above, how the node differs from the average node of the two graphs, in standard deviations of these
    nodes (at least ``floor``, so that rounding is not blown up where all are alike).
    """
    rows = np.stack([rung.own, rung.decoded, rung.mean])  # (3, d)
    if level == 1:
        share = np.clip(rows, 0, 1)[..., None]
        cells = 1 - share * (1 - np.array([to_rgb(colour) for colour in COLOURS]))
    else:
        unusual = (rows - everyone.mean(0)) / max(float(everyone.std(0).max()), floor)
        cells = mpl.colormaps[DIVERGING](0.5 + np.clip(unusual, -1.5, 1.5) / 3)[..., :3]
    image = np.ones((3, wide, 3))
    image[:, : rows.shape[1]] = cells
    return image
