"""Two explorers: evidence that moves through a document under short and long readers; what a small batch does to the gradients of OPL and MNRL."""

from functools import cache, lru_cache
from typing import cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor, nn

from mtlearn.explore.explorer import Explorer, PointerEvent, choice, slider
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, SKY, VERMILION
from mtlearn.lab.checkpoints import load
from mtlearn.lab.seeds import stream
from mtlearn.retrieval.loco.experiment import ROWS, SHOWN, WINDOWS, WORLD, shown_readers
from mtlearn.retrieval.loco.method import READERS, LongConv, M2Encoder, Reader, mnrl, read, similarity, unit
from mtlearn.retrieval.loco.worlds import moved

COLOURS: dict[Reader, str] = {"whole": BLUE, "truncated": VERMILION, "chunk-mean": ORANGE, "chunk-max": GREEN}
NUMBER = len(WORLD.classes)
DOCUMENTS = 38  # every tenth class


@cache
def models() -> nn.ModuleDict:
    """The shipped readers."""
    return cast(nn.ModuleDict, load(SHOWN))


@cache
def corpus() -> tuple[Tensor, Tensor]:
    """A document of each class, and words for the places that keys have left: (380, 64) and (64,)."""
    draws = stream(SHOWN.settings.seed, "loco", "explorer")
    documents, _ = WORLD.documents(WORLD.classes, generator=draws)
    return documents, torch.randint(WORLD.keys + 1, WORLD.vocabulary, (WORLD.length,), generator=draws)


def _reader(reader: Reader, window: int) -> tuple[M2Encoder, Reader]:
    """The encoder of a reader."""
    return cast(M2Encoder, models()["whole" if reader == "whole" else f"{reader} {window}"]), reader


@lru_cache(maxsize=32)
@torch.no_grad()
def library(reader: Reader, window: int) -> tuple[Tensor, Tensor]:
    """Vectors of all queries and what was read of all documents."""
    model, way = _reader(reader, window)
    return model(WORLD.classes), read(model, corpus()[0], way, window)


def places(gap: int) -> Tensor:
    """Where the two keys stand for each depth of the second, (63, 2), numbers from 0."""
    second = torch.arange(1, WORLD.length)
    return torch.stack([(second - gap).clamp(min=0), second], 1)


@lru_cache(maxsize=256)
@torch.no_grad()
def followed(reader: Reader, window: int, number: int, gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks (63,) of the right document for each depth, and scores (63, 3): of it, of the one with the keys in the other order, of the best other."""
    model, way = _reader(reader, window)
    documents, noise = corpus()
    queries, others = library(reader, window)
    keys = WORLD.classes[number]
    own = similarity(queries[number][None], read(model, moved(documents[number], keys, places(gap), noise=noise), way, window))[0]
    rest = similarity(queries[number][None], others)[0]
    turned = int((WORLD.classes == keys.flip(0)).all(1).nonzero()[0])
    rest[number] = -2.0
    rank = 1 + (rest[None] > own[:, None]).sum(1)
    reverse = float(rest[turned])
    rest[turned] = -2.0
    scores = torch.stack([own, torch.full_like(own, reverse), rest.max().expand(len(own))], 1)
    return rank.numpy(), scores.numpy()


def explorer() -> Explorer:
    """Move the evidence through a document and see who still finds it: a reader of all, of the first window, or of window after window."""

    def draw(figure: Figure, depth: int, gap: int, window: int, document: int) -> str:
        figure.set_layout_engine("none")
        number = document * NUMBER // DOCUMENTS
        keys, at = WORLD.classes[number].tolist(), depth - 2
        first, second = places(gap)[at].tolist()
        strip = figure.add_axes((0.07, 0.78, 0.90, 0.08))
        _draw_document(strip, first, second, window)
        figure.text(0.07, 0.93, f"a document about key {keys[0]} then key {keys[1]}; each cell is a word, lines end a window", fontsize=11.5)
        curve, scores = figure.add_axes((0.07, 0.13, 0.45, 0.46)), figure.add_axes((0.69, 0.13, 0.28, 0.46))
        ranks = {}
        shift = {"whole": -0.02, "truncated": 0.02, "chunk-mean": 0.05, "chunk-max": -0.05}  # so that equal ranks are all seen
        points = []
        for reader in READERS:
            whole = reader == "whole" or window >= WORLD.length  # whose window is the document reads it whole
            rank, found = followed("whole" if whole else reader, WORLD.length if whole else window, number, gap)
            ranks[reader] = int(rank[at])
            points.append(found[at])
            curve.plot(range(2, WORLD.length + 1), np.log10(rank) + shift[reader], color=COLOURS[reader], linewidth=1.8)
        for column, (marker, size) in enumerate((("o", 70), ("|", 240), ("x", 40))):
            scores.scatter([found[column] for found in points], range(4), marker=marker, s=size, color=list(COLOURS.values()))
        curve.axvline(depth, color=BLACK, linewidth=1)
        for end in range(window, WORLD.length, window):
            curve.axvline(end + 0.5, color=GREY, linewidth=0.8, linestyle=":")
        curve.set_ylim(2.75, -0.15)
        curve.set_xlim(1, WORLD.length + 1)
        curve.set_yticks([0, 1, 2, np.log10(NUMBER)], ["1", "10", "100", str(NUMBER)])
        curve.set_xlabel("depth of the evidence: word of the second key")
        curve.set_ylabel(f"rank among {NUMBER}")
        curve.set_title("rank of the right document", loc="left", fontsize=11.5)
        scores.set_yticks(range(4), [f"{reader}: {ranks[reader]}" for reader in READERS])
        for label, reader in zip(scores.get_yticklabels(), READERS, strict=True):
            label.set_color(COLOURS[reader])
            label.set_fontweight("bold")
        scores.set_ylim(3.6, -0.6)
        scores.set_xlim(-0.65, 1.05)
        scores.set_xlabel("cosine with the query")
        scores.set_title("reader: rank here", loc="left", fontsize=11.5)
        figure.text(0.69, 0.645, "\u25cf right   | other order   \u00d7 best of the rest", fontsize=10, color=GREY)
        said = ", ".join(f"{reader} {rank}" for reader, rank in ranks.items())
        return (
            f"key {keys[0]} at word {first + 1}, second key at word {second + 1}, windows of {window} words: "
            f"rank of the right document among {NUMBER}: {said}"
        )

    controls = {
        "depth": slider("depth: second key at word", 36, 2, WORLD.length),
        "gap": slider("words from the first key to it", 9, 1, 40),
        "window": choice("window S", [*WINDOWS, WORLD.length]),
        "document": slider("document", 25, 0, DOCUMENTS - 1),
    }
    start = {name: control.value for name, control in controls.items()}
    for reader, window in shown_readers().values():
        library(reader, window)  # so that the first move is as quick as the next

    def on_pointer(event: PointerEvent) -> None:
        step = {"ArrowLeft": -1, "ArrowRight": 1}.get(event.key, 0) if event.kind == "key" else 0
        if step:
            shown.set(depth=controls["depth"].value + step)
        elif event.kind in ("press", "drag") and event.axes in (0, 1):
            word = round(event.x) + 1 if event.axes == 0 else round(event.x)
            shown.set(depth=int(np.clip(word, 2, WORLD.length)))

    shown = Explorer(
        draw,
        controls,
        title="Drag the evidence deeper: which reader still finds the document?",
        figsize=(10.0, 5.2),
        seed=SHOWN.settings.seed,
        on_pointer=on_pointer,
        presets={
            "both at the start": {**start, "depth": 12, "gap": 5},
            "both in a later chunk": {**start, "depth": 44, "gap": 5},
            "far apart": {**start, "depth": 58, "gap": 40},
            "a longer window": {**start, "window": 32},
        },
    )
    return shown


def _draw_document(axes: Axes, first: int, second: int, window: int) -> None:
    """The words as cells: what the truncated reader sees is darker, keys are coloured."""
    row = np.full((1, WORLD.length, 3), to_rgb("#EFEFEF"))
    row[0, :window] = to_rgb("#C9C9C9")
    row[0, first], row[0, second] = to_rgb(PURPLE), to_rgb(SKY)
    axes.imshow(row, aspect="auto", interpolation="nearest")
    for end in range(window, WORLD.length, window):
        axes.axvline(end - 0.5, color=BLACK, linewidth=1.4)
    axes.set_yticks([])
    axes.set_xticks([first, second], ["first", "second"] if second - first > 4 else ["", "keys"])
    for side in axes.spines.values():
        side.set_visible(False)


# -------------------------------------------------------------------------------------------------------- gradients and learned filters

BATCHES = (1, 2, 4, 8, 16, 32)
DRAWS = 32


@cache
@torch.no_grad()
def vectors() -> tuple[Tensor, Tensor, Tensor]:
    """Queries, right documents and random other ones, (draws, rows, d) each, as a reader of 16 words sees them that has learned little of order."""
    draws = stream(SHOWN.settings.seed, "loco", "gradients")
    model = cast(M2Encoder, models()["chunk-mean 16"])
    pairs = torch.stack([WORLD.different(ROWS, generator=draws) for _ in range(DRAWS)])
    documents, _ = WORLD.documents(pairs.flatten(0, 1), generator=draws, length=16)
    q, d = model(pairs.flatten(0, 1)).view(DRAWS, ROWS, -1), model(documents).view(DRAWS, ROWS, -1)
    return q, d, d.roll(1, 1)


@lru_cache(maxsize=64)
def gradients(scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Length of the mean gradient, and of what a step's gradient differs from it: (7,) each, MNRL for each of :data:`BATCHES`, then OPL.

    The gradient is that of one matrix behind the encoder, which is the identity now.
    """
    q, d, other = vectors()
    width = q.shape[-1]
    found = []
    for block in (*BATCHES, 0):
        matrix = torch.eye(width).expand(DRAWS, -1, -1).clone().requires_grad_()
        ours, right = unit(q @ matrix), unit(d @ matrix)
        if block:
            parts = [side.reshape(DRAWS * ROWS // block, block, width) for side in (ours, right)]
            loss = mnrl(parts[0] @ parts[1].transpose(1, 2), scale=scale) * DRAWS  # the sum over draws of each one's mean
        else:
            wrong = unit(other @ matrix)
            loss = (((ours * right).sum(-1) - 1).square().mean(1) + (ours * wrong).sum(-1).square().mean(1)).sum() / 2
        found.append(torch.autograd.grad(loss, matrix)[0].flatten(1))
    every = torch.stack(found)  # (7, draws, d d)
    mean = every.mean(1, keepdim=True)
    return mean.norm(dim=-1)[:, 0].numpy(), (every - mean).norm(dim=-1).mean(1).numpy()


@cache
@torch.no_grad()
def filters() -> np.ndarray:
    """Both filters of the reader of whole documents over lags -64 to 63, (channels, 128)."""
    long = cast(LongConv, cast(M2Encoder, models()["whole"]).layers[0].mixer.long)
    left, right = long.left(WORLD.length), long.right(WORLD.length)
    return torch.cat([right.flip(1), left], 1).numpy()


def pull() -> Explorer:
    """How much fits in memory? MNRL's gradient falls with its batch, to nothing at one row; OPL's is the same. Beside it: learned filters."""

    def draw(figure: Figure, batch: int, scale: float, channel: int) -> str:
        figure.set_layout_engine("none")
        size, noise = gradients(scale)
        at = BATCHES.index(batch)
        left, middle, right = (figure.add_axes((x, 0.15, 0.245, 0.74)) for x in (0.065, 0.39, 0.74))
        steps = range(len(BATCHES))
        for axes, lengths, title in ((left, size, "the mean gradient"), (middle, noise, "its noise: a step from the mean")):
            values = 1000 * lengths
            axes.plot(steps, values[:-1], "o-", color=BLUE, label="MNRL")
            axes.plot(steps, np.full(len(BATCHES), values[-1]), "s--", color=ORANGE, label="OPL")
            axes.axvline(at, color=BLACK, linewidth=1)
            axes.set_xticks(steps, [str(b) for b in BATCHES])
            axes.set_xlabel("rows in memory, of 32 a step")
            axes.set_ylabel("length of the gradient, thousandths")
            axes.set_ylim(0, 1.15 * float(values.max()))
            axes.set_title(title, loc="left", fontsize=11.5)
        left.legend(loc="best")
        lags = np.arange(-WORLD.length, WORLD.length)
        table = filters()
        right.plot(lags, table[::4].T, color=LIGHT, linewidth=1)
        right.plot(lags, table[channel], color=PURPLE)
        right.axvline(0, color=GREY, linewidth=0.8)
        right.set_xlabel("lag in words: right of it | left of it")
        right.set_ylabel("weight")
        right.set_title(f"learned filter of channel {channel}", loc="left", fontsize=11.5)
        strongest = int(lags[np.abs(table[channel]).argmax()])
        return (
            f"rows in memory {batch}, scale {scale:g}: mean gradient of MNRL {size[at]:.3f} (noise {noise[at]:.3f}), "
            f"of OPL {size[-1]:.3f} (noise {noise[-1]:.3f}); channel {channel} weighs lag {strongest} most"
        )

    controls = {
        "batch": choice("rows in memory", list(BATCHES), 4),
        "scale": slider("scale of MNRL, 1 / temperature", 20.0, 1.0, 40.0, 1.0),
        "channel": slider("channel of the filter", 20, 0, 31),
    }
    start = {name: control.value for name, control in controls.items()}
    return Explorer(
        draw,
        controls,
        title="How many rows fit in memory, and what is left of each loss?",
        figsize=(10.0, 4.0),
        seed=SHOWN.settings.seed,
        presets={
            "one row": {**start, "batch": 1},
            "all 32": {**start, "batch": 32},
            "a soft softmax": {**start, "scale": 2.0},
            "a fast channel": {**start, "channel": 31},
        },
    )
