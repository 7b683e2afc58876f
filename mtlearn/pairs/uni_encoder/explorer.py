"""Two explorers: the masks of five paradigms with what they cost and what they let a score hear; and a description that three models understand."""

import time
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import cast, get_args

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor, nn

from mtlearn.explore.canvas import Words
from mtlearn.explore.explorer import Explorer, PointerEvent, choice, entry, menu, slider
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, SKY, VERMILION
from mtlearn.lab.checkpoints import load, provenance
from mtlearn.lab.seeds import stream
from mtlearn.layers.tokens import words
from mtlearn.pairs.uni_encoder.experiment import FACTS, SHOWN, TEXTS
from mtlearn.pairs.uni_encoder.method import (
    CONTEXT,
    Attention,
    Positions,
    UniEncoder,
    attention_mask,
    cost,
    each_alone,
    lay_out,
    reach,
)
from mtlearn.pairs.uni_encoder.selection import SHOWN as MODELS
from mtlearn.pairs.uni_encoder.selection import Functions, same_pages, text_scores
from mtlearn.pairs.uni_encoder.texts import wrapped
from mtlearn.pairs.uni_encoder.world import FIRST, VALUES, draw

# ------------------------------------------------------------------------------------------------------------------------ the masks

THINGS = ("dog", "cup", "hat", "car", "bed", "cat", "pen", "box", "key", "map", "jar", "bag", "bus", "fan", "oar", "toy")
LOOKS = ("red", "blue", "green", "black", "white", "pink", "gold", "grey", "old", "new", "big", "tiny", "wet", "dry", "hot", "cold")
NAMES = (*SHOWN,)  # arrow, strict, square, cross, light arrow, diagonal
TITLES = {
    "arrow": "Uni-Encoder: the arrow",
    "strict": "strict: the context is blind",
    "square": "no mask, all candidates together",
    "cross": "cross-encoder: one candidate a sequence",
    "light arrow": "poly-encoder: diagonal, then codes",
    "diagonal": "bi-encoder: every text alone",
}
CHANGES = ("as it is", "another false fact", "a copy of candidate 1", "things never heard of")
MOST = 8  # candidates
REPLY = 12  # tokens of a reply in the cost panel
SEED = 0  # of the shown pool, whose candidates all differ
MASK = 0  # number of the axes that can be clicked


def token_name(token: int) -> str:
    """How a token of the world is written."""
    if token < FIRST:
        return ("", "[bos]", "[eos]", "[mask]")[token]
    return f"{THINGS[(token - FIRST) // VALUES]}:{LOOKS[(token - FIRST) % VALUES]}"


@cache
def models() -> nn.ModuleDict:
    """The shipped models."""
    return cast(nn.ModuleDict, load(FACTS))


@cache
def example() -> tuple[Tensor, Tensor]:
    """One context (1, 6) and its eight candidates (1, 8, 3); the true one is the second."""
    context, candidates, label = draw(1, 6, MOST, generator=stream(SEED, "uni_encoder", "explorer"))
    order = [i for i in range(MOST) if i != int(label)]
    return context, candidates[:, [order[0], int(label), *order[1:]]]


def changed(candidates: Tensor, change: str) -> Tensor:
    """The pool with its third candidate replaced."""
    found = candidates.clone()
    if change == "another false fact":
        context = example()[0][0] - FIRST
        found[0, 2, 1] = FIRST + context[0] // VALUES * VALUES + context[4] % VALUES
    elif change == "a copy of candidate 1":
        found[0, 2] = found[0, 0]
    elif change == "things never heard of":
        used = (example()[0][0] - FIRST).tolist()
        key = next(k for k in range(VALUES) if k not in {fact // VALUES for fact in used})
        value = next(v for v in range(VALUES) if v not in {fact % VALUES for fact in used})
        found[0, 2, 1] = FIRST + key * VALUES + value
    return found


@lru_cache(maxsize=512)
@torch.no_grad()
def pool_scores(name: str, count: int, order: int, change: str, positions: str) -> tuple[float, ...]:
    """The logit of each of the first ``count`` candidates, in their own order, when the pool is written in another one."""
    context, candidates = example()
    pool = changed(candidates, change)[:, :count]
    places = shuffled(count, order)
    model = cast(UniEncoder, models()[name])
    before = model.positions
    model.positions = cast(Positions, positions)
    try:
        logits = each_alone(model, context, pool[:, places]) if name == "cross" else model(context, pool[:, places])
    finally:
        model.positions = before
    found = torch.empty(count)
    found[places] = logits[0]
    return tuple(found.tolist())


def small(change: float) -> str:
    """A change of a logit as it is read; what is left of rounding is 0."""
    return "0" if change < 2e-5 else f"{change:.2f}" if change >= 0.01 else f"{change:.4f}"


def shuffled(count: int, order: int) -> Tensor:
    """Which candidate stands first, second ...; order 0 is their own."""
    return torch.arange(count) if order == 0 else torch.randperm(count, generator=stream(order, "uni_encoder", "order"))


def explorer() -> Explorer:
    """The mask of each paradigm, how a candidate can hear of another, what it costs, and how the scores of a trained model move.

    Click a candidate in the mask, or press the arrow keys, to select it.
    """

    def draw_all(figure: Figure, attention: str, count: int, selected: int, order: int, change: str, positions: str, context_tokens: int) -> str:
        figure.set_layout_engine("none")
        selected = min(selected, count)
        context, candidates = example()
        places = shuffled(count, order)
        pool = changed(candidates, change)[:, :count][:, places]
        laid = lay_out(context, pool, positions=cast(Positions, positions))
        segments = laid.segments[0]
        numbers = torch.where(segments >= 0, places[segments.clamp(min=0)], segments)  # the candidates' own numbers
        mask = attention_mask(numbers, "square" if attention == "cross" else cast(Attention, attention))
        if attention == "cross":  # a sequence a candidate, drawn one over the other
            mask = mask & ((numbers[:, None] == numbers) | (numbers[:, None] == CONTEXT) | (numbers == CONTEXT))
        _draw_mask(figure.add_axes((0.085, 0.13, 0.44, 0.72)), mask, numbers, laid.tokens[0], laid.positions[0], selected - 1)
        figure.text(0.085, 0.965, TITLES[attention], fontsize=13, weight="bold")
        words_of_paths = _draw_paths(figure.add_axes((0.57, 0.67, 0.41, 0.27)), attention, mask, numbers, count, selected - 1)
        scores = pool_scores(attention, count, order, change, positions)
        still = pool_scores(attention, count, 0, "as it is", positions)
        kept = [i for i in range(count) if not (i == 2 and change != "as it is")]
        moved = max(abs(scores[i] - still[i]) for i in kept)
        names = [token_name(int(candidates_of[1])) for candidates_of in changed(candidates, change)[0, :count]]
        _draw_scores(figure.add_axes((0.66, 0.335, 0.30, 0.245)), names, np.array(scores), np.array(still), selected - 1, moved)
        words_of_cost = _draw_cost(figure.add_axes((0.66, 0.075, 0.27, 0.15)), attention, count, context_tokens)
        best = int(np.argmax(scores))
        return (
            f"{TITLES[attention]}, {count} candidates: {int(mask.sum())} ones in the mask; candidate {selected} {words_of_paths}; "
            f"highest score: candidate {best + 1} ({names[best]}), "
            f"{'the true one' if best == 1 else 'which is not candidate 2, the true one'}; against the first pool a kept score moved by at most "
            f"{small(moved)}; {words_of_cost}"
        )

    controls = {
        "attention": choice("mask", NAMES, "arrow"),
        "count": slider("candidates", 5, 1, MOST),
        "selected": slider("selected candidate", 4, 1, MOST),
        "order": slider("order of the pool (0: their own)", 0, 0, 6),
        "change": menu("candidate 3", CHANGES, CHANGES[0]),
        "positions": choice("positions", get_args(Positions)[:2], "repeated"),
        "context_tokens": slider("context in the cost panel, tokens", 128, 8, 512, 8),
    }

    def on_pointer(event: PointerEvent) -> None:
        count, selected = controls["count"].value, controls["selected"]
        if event.kind == "key":
            step = {"ArrowLeft": -1, "ArrowUp": -1, "ArrowRight": 1, "ArrowDown": 1}.get(event.key, 0)
            selected.value = min(max(min(selected.value, count) + step, 1), count)
        elif event.kind in ("press", "drag") and event.axes == MASK:
            places = shuffled(count, controls["order"].value)
            for at in (event.y, event.x):  # the row first; a context row leaves it to the column
                place = (round(at) - 6) // 3
                if 0 <= place < count:
                    selected.value = int(places[place]) + 1
                    return

    start = {name: control.value for name, control in controls.items()}
    return Explorer(
        draw_all,
        controls,
        title="Who may look at whom? Click a candidate: how can it hear of the others, and what does its score make of it?",
        figsize=(10.0, 7.0),
        seed=0,
        on_pointer=on_pointer,
        presets={
            "the leak: replace candidate 3": {**start, "change": CHANGES[3]},
            "the leak closed": {**start, "attention": "strict", "change": CHANGES[3]},
            "no mask: replace candidate 3": {**start, "attention": "square", "change": CHANGES[3]},
            "shuffle: nothing moves": {**start, "order": 3},
            "running positions, shuffled": {**start, "positions": "running", "order": 3},
            "one candidate: a cross-encoder": {**start, "count": 1, "selected": 1},
            "bi-encoder": {**start, "attention": "diagonal"},
        },
    )


def _draw_mask(axes: Axes, mask: Tensor, numbers: Tensor, tokens: Tensor, positions: Tensor, selected: int) -> None:
    """The mask: row may look at column. Colours by what looks at what."""
    row, column = numbers[:, None], numbers[None]
    kind = torch.full(mask.shape, 1)
    kind[((row >= 0) & (column == CONTEXT))] = 2
    kind[((row == CONTEXT) & (column >= 0))] = 3
    kind[(row == column) & (row >= 0)] = 4
    kind[(row >= 0) & (column >= 0) & (row != column)] = 5
    shown = torch.where(mask, kind, 0)
    axes.imshow(shown.numpy(), cmap=ListedColormap(("#FFFFFF", GREY, SKY, ORANGE, BLUE, VERMILION)), vmin=-0.5, vmax=5.5, aspect="auto")
    size = len(numbers)
    edges = [i - 0.5 for i in range(1, size) if numbers[i] != numbers[i - 1]]
    axes.vlines(edges, -0.5, size - 0.5, color=LIGHT, linewidth=0.8)
    axes.hlines(edges, -0.5, size - 0.5, color=LIGHT, linewidth=0.8)
    where = (numbers == selected).nonzero()[:, 0]
    low, high = int(where[0]) - 0.5, int(where[-1]) + 0.5
    axes.hlines([low, high], -0.5, size - 0.5, color=BLACK, linewidth=1.6)
    axes.vlines([low, high], -0.5, size - 0.5, color=BLACK, linewidth=1.6)
    tints = [BLACK if number == selected else GREY if number == CONTEXT else BLUE for number in numbers.tolist()]
    font = 9 if size <= 24 else 7.5
    rows = np.arange(size)
    wide = size / 440  # tokens a pixel
    axes.add_artist(Words(np.stack([np.full(size, -0.5 - 34 * wide), rows], 1), [token_name(int(token)) for token in tokens], tints, size=font))
    axes.add_artist(Words(np.stack([rows, np.full(size, size - 0.5 + 10 * size / 504)], 1), [str(int(x)) for x in positions], tints, size=font))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("position of each token (column: what is looked at)", labelpad=20)
    parts: tuple[tuple[str, str], ...] = (
        ("context to context", GREY),
        ("candidate to context", SKY),
        ("context to candidate", ORANGE),
        ("candidate to itself", BLUE),
    )
    if (shown == 5).any():
        parts = (*parts, ("to another", VERMILION))
    for number, (text, colour) in enumerate(parts):
        axes.text((number % 3) * 0.36, 1.065 - 0.045 * (number // 3), f"■ {text}", transform=axes.transAxes, color=colour, fontsize=9.5, va="bottom")


def _draw_paths(axes: Axes, attention: str, mask: Tensor, numbers: Tensor, count: int, selected: int) -> str:
    """The context above, the candidates below, and how the selected one hears of the others."""
    axes.set_xlim(-0.6, max(count, 2) - 0.4)
    axes.set_ylim(-0.75, 1.45)
    axes.axis("off")
    middle = (count - 1) / 2
    places = {i: (float(i), 0.0) for i in range(count)} | {CONTEXT: (middle, 1.0)}
    first = [int((numbers == i).nonzero()[0]) for i in range(count)]
    if attention == "cross":  # each in a sequence of its own
        one = two = torch.eye(count, dtype=torch.bool)
    else:
        one, two = (reach(mask, layers)[first][:, first] for layers in (1, 2))
    direct = [i for i in range(count) if i != selected and one[selected, i]]
    through = [i for i in range(count) if i != selected and two[selected, i] and not one[selected, i]]
    hears_context = bool(mask[first[selected], numbers == CONTEXT].any())

    straight = [(i, CONTEXT, ORANGE) for i in through]
    if hears_context or attention == "light arrow":
        straight.append((CONTEXT, selected, SKY))
    if straight:
        ends = np.array([[places[source], places[target]] for source, target, _ in straight])
        start, along = ends[:, 0], ends[:, 1] - ends[:, 0]
        start, along = start + 0.22 * along, 0.54 * along  # clear of the words
        colours = [colour for _, _, colour in straight]
        axes.quiver(*start.T, *along.T, color=colours, angles="xy", scale_units="xy", scale=1, width=0.006, headwidth=5)
    for i in direct:
        axes.add_patch(
            FancyArrowPatch(
                places[i], places[selected], arrowstyle="-|>", mutation_scale=13, color=VERMILION, linewidth=1.8, shrinkA=13, shrinkB=13,
                connectionstyle=f"arc3,rad={-0.35 if i > selected else 0.35}",
            )
        )  # fmt: skip
    at = np.array([*places.values()])
    tints = [BLACK if i == selected else GREY if i == CONTEXT else BLUE for i in places]
    axes.scatter(at[:-1, 0], at[:-1, 1], s=420, c=tints[:-1], marker="s", zorder=2)  # the context comes last
    axes.add_patch(Rectangle((middle - 0.5, 0.78), 1.0, 0.44, color=GREY, linewidth=0, zorder=2))
    axes.add_artist(Words(at, ["context" if i == CONTEXT else str(i + 1) for i in places], ["white"] * len(at), size=11))
    if attention == "light arrow":
        words_of = "meets the context once, after the layers, and hears of no other"
    elif not hears_context:
        words_of = "meets the context in the score alone"
    elif direct:
        words_of = f"hears of {len(direct)} others in one layer"
    elif through:
        words_of = f"hears of {len(through)} others in two layers, through the context"
    else:
        words_of = "hears of no other, in however many layers"
    axes.text(-0.02, 0.97, f"{selected + 1} {words_of}", transform=axes.transAxes, fontsize=10.5, va="bottom")
    return words_of


def _draw_scores(axes: Axes, names: list[str], scores: np.ndarray, still: np.ndarray, selected: int, moved: float) -> None:
    """Logits of the pool; a black line where the first pool had a candidate."""
    rows = np.arange(len(names))
    axes.barh(rows, scores, color=[GREEN if i == 1 else SKY for i in rows], height=0.7)
    axes.vlines(still, rows - 0.45, rows + 0.45, color=BLACK, linewidth=2)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(rows, [f"{i + 1}  {name}" for i, name in enumerate(names)], fontsize=9.5)
    if selected < len(names):
        axes.get_yticklabels()[selected].set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    reach_of = max(1.0, float(np.abs([*scores, *still]).max())) * 1.1
    axes.set_xlim(-reach_of, reach_of)
    axes.set_xlabel("score of a candidate, logit (black: first pool)", fontsize=10)
    axes.set_title(f"green: true.  kept scores moved by at most {small(moved)}", loc="right", fontsize=10.5)


def _draw_cost(axes: Axes, attention: str, count: int, tokens: int) -> str:
    """Multiply-adds of BERT's size for a long context, three paradigms beside the shown one."""
    lengths = [REPLY] * count
    rows = (("one sequence", "arrow"), ("cross-encoder", "cross"), ("bi-, poly-encoder", "diagonal"))
    found = {kind: cost(tokens, lengths, cast(Attention, kind)).multiply_adds(768, 3072, 12) / 1e9 for _, kind in rows}
    mine = {"strict": "arrow", "square": "arrow", "light arrow": "diagonal"}.get(attention, attention)
    for row, (_, kind) in enumerate(rows):
        axes.barh(row, found[kind], color=BLUE if kind == mine else LIGHT, height=0.65)
        axes.text(found[kind] + 0.01 * max(found.values()), row, f"{found[kind]:.1f}", va="center", fontsize=9.5)
    axes.set_ylim(2.6, -0.6)
    axes.set_yticks(range(3), [name for name, _ in rows], fontsize=9.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.16 * max(found.values()))
    axes.set_xticks([])
    axes.set_xlabel("billion multiply-adds in a model of BERT's size", fontsize=10)
    ratio = found["cross"] / found["arrow"]
    axes.set_title(f"context {tokens}, {count} replies of {REPLY} tokens: one sequence {ratio:.1f}x cheaper", loc="right", fontsize=9.5, x=1.15)
    return f"for a context of {tokens} tokens one sequence is {ratio:.1f} times cheaper than a cross-encoder"


# ---------------------------------------------------------------------------------------------------------------- descriptions of functions

EXAMPLES = (
    "solve a linear system whose matrix is symmetric and positive definite",
    "shortest path between two nodes of a weighted graph",
    "draw random samples from a gaussian distribution",
    "remove repeated values from an array and count them",
    "fit a line to points with outliers",
    "area under a curve given by samples",
)
COLOURS = {"bi": ORANGE, "uni": BLUE, "cross": PURPLE}


@dataclass(frozen=True)
class Ranked:
    """A pool and what each model makes of it.

    Attributes:
        pages: numbers of the candidates, TF-IDF's order.
        found: whether TF-IDF found a word at all.
        unknown: words of the query that the models do not know.
        shares: model to the softmax of its scores.
        seconds: model to the time of one scoring.
    """

    pages: tuple[int, ...]
    found: bool
    unknown: tuple[str, ...]
    shares: dict[str, np.ndarray]
    seconds: dict[str, float]


@cache
def text_models() -> dict[str, UniEncoder]:
    """The shipped models of the documentation."""
    return {name: cast(UniEncoder, load(TEXTS[name])) for name in MODELS}


@cache
def pages() -> Functions:
    """The functions that can be found."""
    return same_pages(TEXTS["uni"].settings)


@lru_cache(maxsize=128)
@torch.no_grad()
def ranked(query: str, count: int) -> Ranked | None:
    """The pool that TF-IDF proposes, scored by all models; None where the query has no word."""
    if not words(query):
        return None
    found = pages()
    best = found.index.nearest([query], count)
    context = wrapped(found.vocabulary, [query], found.settings.context, truncate=True)
    candidates = found.reply_tokens[best]
    shares, seconds = {}, {}
    for name, model in text_models().items():
        taken = []
        for _ in range(3):
            began = time.perf_counter()
            logits = text_scores(model, MODELS[name], context, candidates)
            taken.append(time.perf_counter() - began)
        shares[name], seconds[name] = logits[0].softmax(0).numpy(), sorted(taken)[1]
    unknown = tuple(dict.fromkeys(word for word in words(query) if word not in found.vocabulary.number))
    return Ranked(tuple(best[0].tolist()), bool(found.index.scores([query]).max() > 0), unknown, shares, seconds)


def search() -> Explorer:
    """Type what a function should do: TF-IDF proposes a pool of real functions, and three models of one backbone choose."""

    def draw_all(figure: Figure, query: str, count: int, shown: str) -> str:
        figure.set_layout_engine("none")
        result = ranked(query.strip(), count)
        if result is None:
            figure.text(0.5, 0.5, "Type at least one word, then press Enter.", ha="center", fontsize=13, color=GREY)
            return "there is no word to look for"
        found = pages()
        rows = np.arange(count)
        best = {name: int(share.argmax()) for name, share in result.shares.items()}
        widest = 125 * max(float(share.max()) for share in result.shares.values()) + 3
        for place, name in enumerate(("bi", "uni", "cross")):
            axes = figure.add_axes((0.30 + 0.235 * place, 0.20, 0.20, 0.64))
            share = 100 * result.shares[name]
            axes.barh(rows, share, height=0.7, color=[COLOURS[name] if row == best[name] else LIGHT for row in rows])
            axes.text(share[best[name]] + 0.01 * widest, best[name], f"{share[best[name]]:.0f} %", va="center", fontsize=10)
            axes.set_xlim(0, widest)
            axes.set_ylim(count - 0.4, -0.6)
            axes.set_yticks(rows, [found.names[page] for page in result.pages] if place == 0 else [""] * count, fontsize=9 if count <= 12 else 8)
            axes.tick_params(axis="y", length=0)
            axes.set_xlabel("share of the softmax, per cent", fontsize=10)
            times = result.seconds[name] / result.seconds["uni"]
            axes.set_title(f"{name}-encoder: {1000 * result.seconds[name]:.1f} ms ({times:.1f}x)", loc="left", fontsize=10.5, color=COLOURS[name])
        page = result.pages[best[shown]]
        figure.text(0.02, 0.955, f"“{query.strip()[:105]}”", fontsize=12, style="italic")
        remarks = [f"{found.settings.context} tokens are read"] if len(words(query)) > found.settings.context - 2 else []
        if result.unknown:
            remarks.append(f"unknown to the models: {', '.join(result.unknown[:6])}")
        if not result.found:
            remarks.append("no word of it is in the index: the pool is arbitrary")
        figure.text(0.02, 0.905, "; ".join(remarks), fontsize=10, color=VERMILION)
        summary = found.replies[page].partition(": ")[2]
        figure.text(0.02, 0.075, f"{shown}-encoder's choice: {found.names[page]}", fontsize=11, weight="bold", color=COLOURS[shown])
        figure.text(0.02, 0.035, summary[:130], fontsize=10.5)
        chosen = ", ".join(f"{name} {found.names[result.pages[row]]}" for name in ("bi", "uni", "cross") for row in (best[name],))
        return f"{query.strip()}: of {count} functions that TF-IDF proposes, chosen by {chosen}. {'; '.join(remarks)}"

    controls = {
        "query": entry("what should the function do?", EXAMPLES[0]),
        "count": slider("candidates that TF-IDF proposes", 10, 2, 16),
        "shown": choice("describe the choice of", ["uni", "bi", "cross"]),
    }
    return Explorer(
        draw_all,
        controls,
        title="Describe a function in your words: bi-, uni- and cross-encoder choose from what TF-IDF proposes.",
        figsize=(10.0, 5.6),
        seed=0,
        presets={text[:38] + ("..." if len(text) > 38 else ""): {"query": text, "count": 10, "shown": "uni"} for text in EXAMPLES[1:]},
    )


def text_figures() -> dict[str, dict[str, float]]:
    """What was measured of the shipped models of the documentation when they were made."""
    return {name: provenance(found)["measured"] for name, found in TEXTS.items()}
