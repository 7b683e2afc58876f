"""Touch SMITH: move the evidence along a document and let fewer blocks be read; then hide a block and see which blocks the model would put there."""

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from torch import Tensor, nn

from mtlearn.explore.canvas import Words
from mtlearn.explore.explorer import Explorer, PointerEvent, choice, slider
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, SKY, VERMILION, YELLOW
from mtlearn.lab.checkpoints import load
from mtlearn.lab.seeds import stream
from mtlearn.layers.decomposable_attention import MeanOfWords
from mtlearn.pairs.smith.experiment import CHECKPOINTS, Shipped
from mtlearn.pairs.smith.method import Pretraining, Smith, attention_entries
from mtlearn.pairs.smith.world import TopicWorld

SHIPPED = Shipped()
WORLD: TopicWorld = SHIPPED.settings.world
BLOCKS, HELD = WORLD.blocks, WORLD.held
QUARTER = BLOCKS // 4
PAIRS = 150  # test pairs behind the bars
POOL = 12  # documents whose blocks are candidates
STRIP = 0  # number of the axes that can be clicked
TOPIC_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, "#8C564B")


@cache
def models() -> nn.ModuleDict:
    """The shipped models."""
    found = load(CHECKPOINTS[0])
    assert isinstance(found, nn.ModuleDict)
    return found


@dataclass(frozen=True)
class Bank:
    """Blocks of 2 x PAIRS documents, encoded once: which of them stand where does not change their vectors.

    Attributes:
        held, other: tokens of the blocks with evidence and of background blocks, (2 PAIRS, HELD or BLOCKS - HELD, size).
        held_e, other_e: their vectors of SMITH.
        short_held, short_other: of the short reader.
        bag_held, bag_other: sums of word vectors of the bag.
        labels: (PAIRS,).
    """

    held: Tensor
    other: Tensor
    held_e: Tensor
    other_e: Tensor
    short_held: Tensor
    short_other: Tensor
    bag_held: Tensor
    bag_other: Tensor
    labels: Tensor


@cache
@torch.no_grad()
def bank() -> Bank:
    """Test pairs whose evidence can be moved."""
    pairs = WORLD.evidence(PAIRS, "early", generator=stream(SHIPPED.seed, "explorer"))
    tokens = torch.cat([pairs.first, pairs.second])
    has = (WORLD.topic_of(tokens) >= 0).any(-1)
    held, other = tokens[has].view(2 * PAIRS, HELD, -1), tokens[~has].view(2 * PAIRS, BLOCKS - HELD, -1)
    smith, short, bag = models()["smith"], models()["short"], models()["bag"]
    assert isinstance(smith, Smith)
    assert isinstance(short, Smith)
    word = bag.mean
    assert isinstance(word, MeanOfWords)
    ours, theirs = ([model.blocks(side)[0] for side in (held, other)] for model in (smith, short))
    sums = [word.word(side).sum(2) for side in (held, other)]
    return Bank(held, other, ours[0], ours[1], theirs[0], theirs[1], sums[0], sums[1], pairs.labels)


def placed(held: Tensor, other: Tensor, at: int) -> Tensor:
    """Documents with the evidence in blocks ``at`` to ``at + HELD - 1``."""
    return torch.cat([other[:, :at], held, other[:, at:]], 1)


@lru_cache(maxsize=1024)
@torch.no_grad()
def accuracies(at: int, read: int) -> tuple[float, float, float]:
    """Share of right pairs of SMITH reading ``read`` blocks, of the short reader, and of the bag of words over as many blocks."""
    found, values = bank(), []
    smith, short, bag = models()["smith"], models()["short"], models()["bag"]
    for model, held, other, most in ((smith, found.held_e, found.other_e, read), (short, found.short_held, found.short_other, min(read, QUARTER))):
        assert isinstance(model, Smith)
        e = placed(held, other, at)[:, :most]
        one, two = model.document(e, torch.ones(e.shape[:2], dtype=torch.bool)).chunk(2)
        values.append(model.score(one, two))
    one, two = torch.nn.functional.normalize(placed(found.bag_held, found.bag_other, at)[:, :read].sum(1), dim=-1).chunk(2)
    values.append(bag.score(one, two))  # type: ignore[operator]
    smith_right, short_right, bag_right = (((z > 0) == (found.labels > 0)).float().mean().item() for z in values)
    return smith_right, short_right, bag_right


@cache
def pool() -> Tensor:
    """Documents of two topics (POOL, BLOCKS, size)."""
    return WORLD.two_topics(POOL, generator=stream(SHIPPED.seed, "pool"))


@lru_cache(maxsize=512)
@torch.no_grad()
def candidates(document: int, block: int, read: int) -> tuple[list[int], list[float], int]:
    """The ten candidate blocks nearest to the hidden one by h · e, their scores, and the rank of the right one, from 1."""
    pretraining = models()["pretraining"]
    assert isinstance(pretraining, Pretraining)
    e, real = pretraining.smith.blocks(pool())
    h = pretraining.masked(e[document : document + 1, :read], real[document : document + 1, :read], torch.tensor([[block]]))[0, 0]
    score = e.flatten(0, 1) @ h
    order = score.argsort(descending=True)
    right = int((order == document * BLOCKS + block).nonzero()[0, 0]) + 1
    return order[:10].tolist(), score[order[:10]].tolist(), right


def explorer() -> Explorer:
    """A document as a strip of 24 blocks, in two views.

    Click a block to put the evidence there, or to hide it. By keyboard: left and right move the block, up and down the number of blocks read.
    """

    def draw(figure: Figure, view: str, block: int, read: int, document: int) -> str:
        figure.set_layout_engine("none")
        return _draw_evidence(figure, block, read, document) if view == "evidence" else _draw_masked(figure, block, read, document)

    controls = {
        "view": choice("view", ["evidence", "masked block"]),
        "block": slider("block: evidence begins, or is hidden", 15, 1, BLOCKS),
        "read": slider("blocks that the model reads", BLOCKS, 1, BLOCKS),
        "document": slider("document", 1, 1, POOL),
    }

    def on_pointer(event: PointerEvent) -> None:
        if event.kind == "key":
            controls["block"].value += {"ArrowRight": 1, "ArrowLeft": -1}.get(event.key, 0)
            controls["read"].value += {"ArrowUp": 1, "ArrowDown": -1}.get(event.key, 0)
        elif event.kind in ("press", "drag") and event.axes == STRIP:
            controls["block"].value = min(max(int(event.x) + 1, 1), BLOCKS)

    start = {"view": "evidence", "block": 15, "read": BLOCKS, "document": 1}
    return Explorer(
        draw,
        controls,
        title="A document is a strip of 24 blocks. Click where the evidence shall stand, and let the model read fewer blocks.",
        figsize=(10.0, 5.6),
        seed=SHIPPED.seed,
        on_pointer=on_pointer,
        presets={
            "early evidence": {**start, "block": 1},
            "just out of reach": {**start, "block": 20, "read": 19},
            "a short reader": {**start, "read": QUARTER},
            "hide a block": {**start, "view": "masked block", "block": 6},
            "hide one of the other half": {**start, "view": "masked block", "block": 18},
            "hide it, reading little": {**start, "view": "masked block", "block": 3, "read": 4},
        },
    )


def _draw_evidence(figure: Figure, block: int, read: int, document: int) -> str:
    at = min(block - 1, BLOCKS - HELD)
    found = bank()
    tokens = placed(found.held, found.other, at)[document - 1]
    _draw_strip(figure.add_axes((0.03, 0.63, 0.94, 0.30)), tokens, read, f"document {document}, evidence in blocks {at + 1} to {at + HELD}")
    smith, short, bag = accuracies(at, read)
    axes = figure.add_axes((0.27, 0.11, 0.26, 0.35))
    rows = ((f"bag of words, {read} blocks", bag, GREY), (f"short, first {QUARTER} blocks", short, ORANGE), (f"SMITH, {read} blocks", smith, BLUE))
    for row, (_, value, colour) in enumerate(rows):
        axes.barh(row, 100 * value, height=0.6, color=colour)
        axes.text(100 * value + 1.5, row, f"{100 * value:.0f}", va="center", fontsize=10)
    axes.axvline(50, color=BLACK, linewidth=1, linestyle=":")
    axes.set_xlim(0, 112)
    axes.set_xticks([0, 50, 100])
    axes.set_yticks(range(3), [name for name, _, _ in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("right, per cent (chance: 50)")
    axes.set_title(f"{PAIRS} test pairs", loc="left", fontsize=11)
    _draw_costs(figure.add_axes((0.68, 0.13, 0.29, 0.33)), read)
    ours, full = attention_entries(read, WORLD.size)
    return (
        f"evidence in blocks {at + 1} to {at + HELD}, SMITH reads {read} blocks: right {100 * smith:.0f} %, the short reader {100 * short:.0f} %, "
        f"the bag of words {100 * bag:.0f} %; attention entries {ours:,}, flat {full:,}"
    )


def _draw_masked(figure: Figure, block: int, read: int, document: int) -> str:
    block = min(block, read) - 1
    tokens = pool()[document - 1]
    topics = sorted(set(WORLD.topic_of(tokens).flatten().tolist()) - {-1})
    first = WORLD.topic_of(tokens)[: BLOCKS // 2].flatten()
    a = int(first.max())
    colours = {a: BLUE, next((topic for topic in topics if topic != a), a): ORANGE}
    _draw_strip(
        figure.add_axes((0.03, 0.63, 0.94, 0.30)), tokens, read, f"document {document}, block {block + 1} is hidden from level 2", colours, block
    )
    order, score, right = candidates(document - 1, block, read)
    axes = figure.add_axes((0.30, 0.09, 0.27, 0.37))
    names, same = [], 0
    for row, (number, value) in enumerate(zip(order, score, strict=True)):
        where, place = divmod(number, BLOCKS)
        topic = int(WORLD.topic_of(pool()[where, place]).max())
        shown = colours.get(topic, LIGHT)
        same += where == document - 1
        axes.barh(row, value, height=0.7, color=shown, edgecolor=BLACK, linewidth=2 if number == (document - 1) * BLOCKS + block else 0)
        names.append(f"{'this one' if where == document - 1 else f'document {where + 1}'}, block {place + 1}")
    axes.set_ylim(9.6, -0.6)
    axes.set_xlim(0, 1.05 * max(*score, 0.1))
    axes.set_yticks(range(10), names, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("h · e")
    axes.set_title(f"the ten nearest of {POOL * BLOCKS} blocks", loc="left", fontsize=11)
    note = figure.add_axes((0.62, 0.09, 0.36, 0.37))
    note.axis("off")
    lines = (
        ("topic of the first half", BLUE),
        ("topic of the second half", ORANGE),
        ("another topic, or background alone", GREY),
    )
    for row, (text, colour) in enumerate(lines):
        note.text(0, 0.9 - 0.14 * row, text, color=colour, fontsize=11, transform=note.transAxes)
    note.text(0, 0.38, f"{same} of ten are of this document", fontsize=11, transform=note.transAxes)
    note.text(0, 0.24, f"the hidden block itself is number {right}", fontsize=11, transform=note.transAxes)
    note.text(0, 0.10, "(black frame where it is among the ten)", fontsize=10, color=GREY, transform=note.transAxes)
    return (
        f"document {document}, block {block + 1} of {read} hidden: of the ten nearest {same} are of this document, the hidden block itself "
        f"is number {right} of {POOL * BLOCKS}"
    )


def _draw_strip(axes: Axes, tokens: Tensor, read: int, title: str, colours: dict[int, str] | None = None, hidden: int | None = None) -> None:
    """Blocks as columns of words, coloured by topic; what is not read is pale."""
    topic = WORLD.topic_of(tokens[:, 1:])
    n, rows = topic.shape
    x, y = (place.ravel() for place in np.meshgrid(np.arange(n) + 0.08, np.arange(rows) + 0.1, indexing="ij"))
    corners = np.stack([np.stack([x, y], 1), np.stack([x + 0.84, y], 1), np.stack([x + 0.84, y + 0.8], 1), np.stack([x, y + 0.8], 1)], 1)
    shown = {-1: LIGHT, **(colours or {})}
    faces = [shown.get(value, BLUE) if i // rows != hidden else "#FFFFFF" for i, value in enumerate(topic.flatten().tolist())]
    alpha = np.where(np.arange(n * rows) // rows < read, 1.0, 0.25)
    axes.add_collection(PolyCollection(list(corners), facecolors=faces, edgecolors=faces, alpha=alpha, linewidths=0.5))
    if hidden is not None:
        axes.add_artist(Words([(hidden + 0.5, rows / 2)], ["?"], [VERMILION], size=22))
    axes.axvline(read, color=VERMILION, linewidth=2)
    axes.set_xlim(0, n)
    axes.set_ylim(rows, 0)
    axes.set_xticks(np.arange(n) + 0.5, [str(i + 1) for i in range(n)], fontsize=9)
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel(f"blocks of {rows} words (colour: topic words; the red line: read up to here)", fontsize=10)
    axes.set_title(title, loc="left", fontsize=11)


def _draw_costs(axes: Axes, read: int) -> None:
    """Attention entries over the blocks read, hierarchical and flat."""
    blocks = np.arange(1, BLOCKS + 1)
    both = np.array([attention_entries(int(n), WORLD.size) for n in blocks]) / 1000
    axes.plot(blocks, both[:, 1], color=GREY)
    axes.plot(blocks, both[:, 0], color=BLUE)
    axes.plot([read, read], both[read - 1], "o", color=VERMILION)
    axes.text(BLOCKS - 1, both[-1, 1] * 0.98, "flat (ns)²", ha="right", va="top", color=GREY, fontsize=10, rotation=0)
    axes.text(BLOCKS, both[-1, 0] + 1, "n s² + n²", ha="right", va="bottom", color=BLUE, fontsize=10)
    axes.set_xlim(0, BLOCKS + 0.5)
    axes.set_ylim(0, 1.08 * both[-1, 1])
    axes.set_xlabel("blocks read, n")
    axes.set_ylabel("entries, thousands")
    axes.set_title("attention entries of a document", loc="left", fontsize=11)
