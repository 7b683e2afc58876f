"""Touch Promptagator: choose the eight examples, watch what the writer learns from them and writes; then turn the filter's K."""

import textwrap
import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtlearn.datasets.docstring_search import DocstringPair, docstring_pairs
from mtlearn.explore.canvas import Words
from mtlearn.explore.explorer import Explorer, PointerEvent, choice, entry, slider
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, SKY, VERMILION, YELLOW
from mtlearn.lab.checkpoints import load
from mtlearn.lab.seeds import stream
from mtlearn.layers.tokens import words
from mtlearn.retrieval.promptagator.experiment import FILTER, FilterSettings, FilterTable
from mtlearn.retrieval.promptagator.method import MOST_EXAMPLES, Example
from mtlearn.retrieval.promptagator.worlds import Intent, asked, sectioned
from mtlearn.retrieval.promptagator.writers import Statistics, WordScore, few_shot_writer

SETTINGS: FilterSettings = FILTER.settings
CANDIDATES, DOCUMENTS = 60, 40  # pages to choose examples from, and pages to write for
NAMES = ("summary", "Parameters", "Returns", "Notes", "Examples", "rest", "position", "log idf", "idf", "frequency", "length", "common")
SHARES = ("none", "30 %", "60 %", "90 %")
INTENTS: tuple[Intent, ...] = ("summary", "parameter")
EXAMPLES, FILTERED = 0, 3  # axes that can be clicked
START = "0 1 2 3 4 5 6 7"
WRITTEN = 4  # queries shown


@dataclass(frozen=True)
class Shelf:
    """Pages to touch.

    Attributes:
        candidates, documents: pages to choose examples from and to write for.
        statistics: of all documents of the corpus.
    """

    candidates: tuple[DocstringPair, ...]
    documents: tuple[DocstringPair, ...]
    statistics: Statistics


@cache
def shelf() -> Shelf:
    """Pages of scipy of which both intents have a query with words of the document, in a random order."""
    pairs = docstring_pairs(("scipy",))
    texts = {pair.page.name: sectioned(pair.page) for pair in pairs}
    fit = []
    for i in torch.randperm(len(pairs), generator=stream(0, "promptagator", "shelf")).tolist():
        there = set(words(texts[pairs[i].page.name]))
        if all(there & set(words(asked(pairs[i], intent))) for intent in INTENTS):
            fit.append(pairs[i])
        if len(fit) == CANDIDATES + DOCUMENTS:
            break
    return Shelf(tuple(fit[:CANDIDATES]), tuple(fit[CANDIDATES:]), Statistics.of(list(texts.values())))


@cache
def table() -> FilterTable:
    """The shipped figures of the filter."""
    model = load(FILTER)
    assert isinstance(model, FilterTable)
    return model


def chosen_from(text: str) -> list[int]:
    """Numbers of candidates from a line of text.

    Raises:
        ValueError: no number, a number twice, or one that is no candidate.
    """
    try:
        found = [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"examples must be numbers from 0 to {CANDIDATES - 1}, got {text!r}") from None
    if not found or len(set(found)) < len(found) or not all(0 <= i < CANDIDATES for i in found):
        raise ValueError(f"examples must be different numbers from 0 to {CANDIDATES - 1}, at least one, got {text!r}")
    return found


def explorer() -> Explorer:
    """Click an example to change it for another (keys 1 to 8 do the same), left and right go through the documents, up and down through K."""

    def draw(figure: Figure, examples: str, intent: Intent, document: int, temperature: float, share: str, k: int) -> str:
        figure.set_layout_engine("none")
        chosen = chosen_from(examples)[:MOST_EXAMPLES]
        found, page = shelf(), shelf().documents[document]
        pairs = [found.candidates[i] for i in chosen]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            writer = few_shot_writer([Example(asked(p, intent), sectioned(p.page)) for p in pairs], found.statistics, temperature=temperature)
        queries = writer([sectioned(page.page)], per_document=WRITTEN, generator=stream(document, "promptagator", "touch"))[0]
        assert isinstance(writer.score, WordScore)
        weights = writer.score.weights.numpy()
        _draw_examples(figure.add_axes((0.02, 0.50, 0.50, 0.48)), chosen, [asked(p, intent) for p in pairs])
        _draw_weights(figure.add_axes((0.645, 0.51, 0.335, 0.47)), weights)
        _draw_queries(figure.add_axes((0.02, 0.02, 0.50, 0.44)), page, asked(page, intent), queries)
        _draw_kept(figure.add_axes((0.565, 0.10, 0.19, 0.32)), SHARES.index(share), k)
        _draw_ndcg(figure.add_axes((0.80, 0.10, 0.19, 0.32)), SHARES.index(share), k)
        row, best = SHARES.index(share), int(np.abs(weights).argmax())
        good, bad, score = (float(table().get_buffer(name)[row, k]) for name in ("good", "bad", "ndcg"))
        return (
            f"{len(chosen)} examples, intent {intent}: the largest weight is that of {NAMES[best]} ({weights[best]:+.2f}); for "
            f"{page.page.name} it writes: {queries[0]}. Filter with K = {_k(k)} and {share} wrong queries: {good:.0f} good and {bad:.0f} wrong pairs "
            f"kept, nDCG@10 {score:.3f}"
        )

    controls = {
        "examples": entry("examples, by number (0 to 59)", START),
        "intent": choice("a query is", list(INTENTS)),
        "document": slider("document to write for", 0, 0, DOCUMENTS - 1),
        "temperature": slider("temperature", 0.7, 0.0, 3.0, 0.1),
        "share": choice("wrong queries", list(SHARES), "30 %"),
        "k": slider("K of the filter (step)", 0, 0, len(SETTINGS.ks) - 1),
    }

    def exchange(place: int) -> None:
        chosen = chosen_from(controls["examples"].value)
        if 0 <= place < len(chosen):
            following = (chosen[place] + 1) % CANDIDATES
            while following in chosen:
                following = (following + 1) % CANDIDATES
            chosen[place] = following
            controls["examples"].value = " ".join(map(str, chosen))

    def on_pointer(event: PointerEvent) -> None:
        if event.kind == "key":
            controls["document"].value += {"ArrowLeft": -1, "ArrowRight": 1}.get(event.key, 0)
            controls["k"].value += {"ArrowUp": 1, "ArrowDown": -1}.get(event.key, 0)
            if event.key.isdigit():
                exchange(int(event.key) - 1)
        elif event.kind == "press" and event.axes == EXAMPLES:
            exchange(int(event.y))
        elif event.kind in ("press", "drag") and event.axes == FILTERED:
            controls["k"].value = min(max(round(event.x), 0), len(SETTINGS.ks) - 1)

    return Explorer(
        draw,
        controls,
        title="Eight examples say what a query is. Click one to change it for another; watch the weights and what is written.",
        figsize=(11.0, 6.6),
        seed=SETTINGS.seed,
        on_pointer=on_pointer,
        presets={
            "eight examples": {"examples": START, "intent": "summary", "temperature": 0.7},
            "eight others": {"examples": "20 21 22 23 24 25 26 27", "intent": "summary", "temperature": 0.7},
            "another intent": {"examples": START, "intent": "parameter", "temperature": 0.7},
            "one example": {"examples": "0", "intent": "summary", "temperature": 0.7},
            "always the best words": {"examples": START, "temperature": 0.0},
            "a writer that errs": {"share": "60 %", "k": 0, "temperature": 0.7},
            "no filter": {"share": "60 %", "k": len(SETTINGS.ks) - 1, "temperature": 0.7},
            "a writer that is lost": {"share": "90 %", "k": 0, "temperature": 0.7},
        },
    )


def _k(step: int) -> str:
    return str(SETTINGS.ks[step]) if step < len(SETTINGS.ks) - 1 else "all"


def _draw_examples(axes: Axes, chosen: list[int], queries: list[str]) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(8.05, -0.9)
    axes.axis("off")
    axes.text(0, -0.45, "examples: what people ask (click to change)", va="center", fontsize=12)
    places = np.arange(len(chosen)) + 0.5
    axes.hlines(places, 0, 1, color=LIGHT, alpha=0.45, linewidth=23)
    axes.add_artist(Words(np.stack([np.full(len(chosen), 0.025), places], 1), [str(i) for i in chosen], [BLUE] * len(chosen), size=10))
    for y, query in zip(places, queries, strict=True):
        axes.text(0.065, y, textwrap.shorten(query, 66).replace("$", r"\$"), va="center", fontsize=10)


def _draw_weights(axes: Axes, weights: np.ndarray) -> None:
    places = np.arange(len(weights))
    reach = max(1.0, float(np.abs(weights).max()) * 1.1)
    axes.axis("off")
    axes.set_xlim(-reach, reach)
    axes.set_ylim(len(weights) - 0.4, -1.6)
    axes.hlines(places, 0, weights, color=[BLUE] * 6 + [ORANGE] * 6, linewidth=11)
    axes.vlines(0, -0.6, len(weights) - 0.4, color=BLACK, linewidth=1)
    axes.text(-reach, -1.3, "weights: which words are taken", va="center", fontsize=12)
    axes.add_artist(Words(np.stack([np.full(len(weights), -1.22 * reach), places], 1), NAMES, [BLACK] * len(weights), size=9))
    ends = weights + np.where(weights < 0, -0.11, 0.11) * reach
    said = [f"{weight:+.1f}" if abs(weight) >= 0.05 else "" for weight in weights]
    axes.add_artist(Words(np.stack([ends, places], 1), said, [GREY] * len(weights), size=9))


def _draw_queries(axes: Axes, page: DocstringPair, real: str, queries: list[str]) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.axis("off")
    axes.text(0, 0.95, f"written for {page.page.name}", va="center", fontsize=12)
    asks = set(words(real))
    hits = [sum(word in asks for word in words(query)) for query in queries]
    places = np.stack([np.full(len(queries), 0.02), 0.78 - 0.155 * np.arange(len(queries))], 1)
    axes.scatter(places[:, 0], places[:, 1], s=260, color=GREEN, linewidths=0)
    axes.add_artist(Words(places, [str(hit) for hit in hits], ["white"] * len(hits), size=10))
    for (_, y), query in zip(places, queries, strict=True):
        axes.text(0.055, y, textwrap.shorten(query, 72), va="center", fontsize=10)
    axes.text(0, 0.10, "people ask:", va="center", fontsize=10, color=VERMILION)
    axes.text(0.17, 0.10, textwrap.shorten(real, 58).replace("$", r"\$"), va="center", fontsize=10, color=VERMILION)
    axes.text(0, 0.01, "green: how many of its words people use too", va="center", fontsize=9, color=GREY)


def _draw_kept(axes: Axes, row: int, k: int) -> None:
    good, bad = (table().get_buffer(name)[row].numpy() / 1000 for name in ("good", "bad"))
    high = float((good + bad).max())
    edges = np.arange(len(good) + 1) - 0.5
    axes.axvspan(k - 0.5, k + 0.5, color=YELLOW, alpha=0.6, linewidth=0)
    for low, top, colour, hatch in ((0 * good, good, SKY, ""), (good, good + bad, VERMILION, "//")):
        below, above = (np.append(side, side[-1]) for side in (low, top))
        axes.fill_between(edges, below, above, step="post", facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0.5)
    _plain(axes, 0, high * 1.02, [0, 5, 10], ["0", "5", "10"])
    axes.set_title("thousand pairs kept", loc="left", fontsize=11)
    axes.text(7.4, 0.4, "good", ha="right", fontsize=9)
    axes.text(7.4, float((good + bad)[-1]) - 0.35, "wrong", ha="right", va="top", fontsize=9, bbox={"facecolor": "white", "pad": 1, "linewidth": 0})


def _draw_ndcg(axes: Axes, row: int, k: int) -> None:
    values = table().get_buffer("ndcg").numpy()
    places = np.arange(values.shape[1])
    axes.plot(places, np.delete(values, row, 0).T, color=LIGHT, linewidth=1.2)
    axes.plot(places, values[row], color=BLUE, linewidth=2.5)
    axes.plot(k, values[row, k], "o", color=BLUE, markersize=10, markeredgecolor=BLACK)
    low, high = float(values.min()) - 0.01, float(values.max()) + 0.015
    ticks = [0.3, 0.4]
    _plain(axes, low, high, ticks, [f"{tick:g}" for tick in ticks])
    ends = np.stack([np.full(len(values), len(places) - 1.4), values[:, -2:].max(1) + 0.009], 1)
    axes.add_artist(Words(ends, SHARES, [BLUE if i == row else GREY for i in range(len(values))], size=9))
    axes.set_title("nDCG@10, by share wrong", loc="left", fontsize=11)


def _plain(axes: Axes, low: float, high: float, ticks: list[float], names: list[str]) -> None:
    """Limits, and names at a few places: cheaper to draw than the axis of a figure that is not touched."""
    steps = len(SETTINGS.ks)
    axes.set_xlim(-0.6, steps - 0.4)
    axes.set_ylim(low, high)
    axes.set_xticks([])
    axes.set_yticks([])
    reach = high - low
    across = [(i, low - 0.07 * reach) for i in range(steps)]
    up = [(-0.13 * steps, tick) for tick in ticks]
    shown = [_k(i) for i in range(steps)]
    axes.add_artist(Words(across + up + [((steps - 1) / 2, low - 0.16 * reach)], [*shown, *names, "K"], [BLACK] * (steps + len(names) + 1), size=9))
