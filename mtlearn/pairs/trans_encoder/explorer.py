"""Touch Trans-Encoder: step from half-cycle to half-cycle, and watch the labels that a model makes for the next one close in on the gold."""

from functools import cache

import matplotlib.patches as patches
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtlearn.datasets.concepts import Lexicon
from mtlearn.explore.explorer import Explorer, PointerEvent, choice, slider
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, SKY, VERMILION, YELLOW
from mtlearn.lab.checkpoints import load
from mtlearn.lab.seeds import stream
from mtlearn.pairs.labelled import Labelled
from mtlearn.pairs.trans_encoder.experiment import CHECKPOINTS, MODES, Lanes, LaneSettings, lane_world

SETTINGS: LaneSettings = CHECKPOINTS[0].settings
HALVES = ("E0", "C1", "E1", "C2", "E2", "C3", "E3")
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)
SYLLABLES = ("ba", "do", "fi", "gu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "wa", "zu")
LABELS = 1  # number of the axes that can be clicked


@cache
def lanes() -> Lanes:
    """The shipped scores."""
    model = load(CHECKPOINTS[0])
    assert isinstance(model, Lanes)
    return model


@cache
def shown() -> Labelled:
    """The fresh pairs that the scores belong to."""
    return lane_world(SETTINGS, 0.7).test


@cache
def jitter() -> np.ndarray:
    """Sideways places of the dots, so that they do not cover each other."""
    return torch.rand(lanes().score.shape[-1], generator=stream(0, "trans_encoder", "jitter")).numpy() * 0.6 - 0.3


def spelled(word: int) -> str:
    """A made-up word of a concept: synonyms share the first syllable and differ in the rest."""
    concept, synonym = divmod(word - 1, Lexicon().synonyms)
    first, second = divmod(concept, len(SYLLABLES))
    return SYLLABLES[second] + "nlrs"[first] + ("", "en", "ith")[synonym]


def explorer() -> Explorer:
    """Two lanes, seven models: click a dot to see its two sentences; by keyboard left and right go through the half-cycles, up and down the pairs."""
    model = lanes()

    def draw(figure: Figure, half: int, mode: str, noise: float, pair: int) -> str:
        figure.set_layout_engine("none")
        level = min(range(len(SETTINGS.noises)), key=lambda i: abs(SETTINGS.noises[i] - noise))
        row = 1 if mode == "mutual" else 0
        spearman, score = model.spearman[level, row].numpy(), model.score[level, row, half].numpy()
        _draw_lanes(figure.add_axes((0.02, 0.57, 0.96, 0.40)), half, mode, spearman, float(model.ensemble[level]))
        _draw_labels(figure.add_axes((0.08, 0.10, 0.40, 0.38)), half, score, pair)
        _draw_pair(figure.add_axes((0.53, 0.06, 0.45, 0.42)), pair, float(score[pair]))
        kind = "bi" if half % 2 == 0 else "cross"
        return (
            f"{mode}, noise {SETTINGS.noises[level]:g}: {HALVES[half]}, a {kind}-encoder, has a Spearman correlation of {spearman[half]:.3f} with "
            f"the gold on fresh pairs (start {spearman[0]:.3f}, average of two starts {float(model.ensemble[level]):.3f}); pair {pair} shares "
            f"{round(float(shown().labels[pair]) * 6)} of 6 concepts and is scored {score[pair]:.2f}"
        )

    controls = {
        "half": slider("half-cycle", 1, 0, len(HALVES) - 1),
        "mode": choice("labels", list(MODES)),
        "noise": slider("noise of the pretrained words", 0.7, 0.0, 1.2, 0.1),
        "pair": slider("pair", 3, 0, model.score.shape[-1] - 1),
    }

    def on_pointer(event: PointerEvent) -> None:
        if event.kind == "key":
            controls["half"].value += {"ArrowLeft": -1, "ArrowRight": 1}.get(event.key, 0)
            controls["pair"].value += {"ArrowUp": 1, "ArrowDown": -1}.get(event.key, 0)
        elif event.kind in ("press", "drag") and event.axes == LABELS:
            level = min(range(len(SETTINGS.noises)), key=lambda i: abs(SETTINGS.noises[i] - controls["noise"].value))
            score = model.score[level, MODES.index(controls["mode"].value), controls["half"].value].numpy()
            across = 6 * shown().labels[: len(score)].numpy() + jitter()
            controls["pair"].value = int(np.argmin(((across - event.x) / 6.6) ** 2 + ((score - event.y) / 1.3) ** 2))

    return Explorer(
        draw,
        controls,
        title="Who labels for whom? Step through the half-cycles; click a dot to see the two sentences behind it.",
        figsize=(10.0, 6.0),
        seed=SETTINGS.seed,
        on_pointer=on_pointer,
        presets={
            "the start": {"half": 0, "mode": "self", "noise": 0.7},
            "the first cross-encoder": {"half": 1, "mode": "self", "noise": 0.7},
            "two families": {"half": 5, "mode": "mutual", "noise": 0.7},
            "the last bi-encoder": {"half": 6, "mode": "mutual", "noise": 0.7},
            "words that are perfect": {"half": 1, "mode": "self", "noise": 0.0},
            "words that are mostly noise": {"half": 5, "mode": "mutual", "noise": 1.2},
        },
    )


def _draw_lanes(axes: Axes, half: int, mode: str, spearman: np.ndarray, ensemble: float) -> None:
    axes.set_xlim(-1.25, 6.75)
    axes.set_ylim(-1.1, 2.1)
    axes.axis("off")
    axes.text(-1.2, 1.0, "bi-encoder\nreads each alone", ha="left", va="center", color=BLUE)
    axes.text(-1.2, 0.0, "cross-encoder\nreads both", ha="left", va="center", color=VERMILION)
    for k, name in enumerate(HALVES):
        bi = k % 2 == 0
        y, colour, lit = (1.0 if bi else 0.0), (BLUE if bi else VERMILION), k <= half
        axes.add_patch(patches.Circle((k + 0.3, y), 0.23, facecolor=colour if lit else "white", edgecolor=colour if lit else LIGHT, linewidth=2))
        if k == half:
            axes.add_patch(patches.Circle((k + 0.3, y), 0.31, facecolor="none", edgecolor=BLACK, linewidth=2))
        axes.text(k + 0.3, y, f"${name[0]}_{name[1]}$", ha="center", va="center", color="white" if lit else GREY, fontsize=12)
        if lit:
            axes.text(k + 0.3, y + (0.55 if bi else -0.55), f"{spearman[k]:.3f}", ha="center", va="center", color=colour, fontsize=12)
        if k:
            before = 0.0 if bi else 1.0
            tail, head = (k - 0.42, before + 0.28 * (y - before)), (k + 0.02, y - 0.28 * (y - before))
            arrow = {"arrowstyle": "-|>", "color": BLACK if lit else LIGHT, "linewidth": 2 if k == half else 1.2}
            axes.annotate("", head, tail, arrowprops=arrow)
    said = {"self": "a model's own labels", "mutual": "the mean label of two families"}[mode]
    axes.text(6.7, -0.98, f"arrows: {said};  average of the two starts {ensemble:.3f}", ha="right", va="center", color=GREY, fontsize=10)
    axes.text(-1.2, 2.0, "Spearman correlation with the gold, fresh pairs", ha="left", va="center", fontsize=11)


def _draw_labels(axes: Axes, half: int, score: np.ndarray, pair: int) -> None:
    gold = 6 * shown().labels[: len(score)].numpy()
    colour = BLUE if half % 2 == 0 else VERMILION
    axes.scatter(gold + jitter(), score, s=14, color=colour, alpha=0.55, linewidths=0)
    axes.plot(range(7), [float(np.median(score[gold.round() == k])) for k in range(7)], color=BLACK, linewidth=1.5, marker="_", markersize=16)
    axes.scatter(gold[pair] + jitter()[pair], score[pair], s=120, facecolor=YELLOW, edgecolor=BLACK, linewidth=1.5, zorder=3)
    axes.set_xlim(-0.6, 6.6)
    axes.set_ylim(-0.25, 1.05)
    axes.set_xticks(range(7))
    axes.set_xlabel("gold: concepts that both sentences have, of 6")
    axes.set_ylabel("label for the next model")
    axes.set_title(f"what ${HALVES[half][0]}_{HALVES[half][1]}$ says (line: median)", loc="left")


def _draw_pair(axes: Axes, pair: int, score: float) -> None:
    first, second = shown().first[pair], shown().second[pair]
    lexicon = Lexicon()
    concepts = lexicon.concept(first).tolist(), lexicon.concept(second).tolist()
    both = [concept for concept in concepts[0] if concept in concepts[1]]
    axes.set_xlim(0, 6)
    axes.set_ylim(-0.55, 1.75)
    axes.axis("off")
    for y, side, tokens in ((1.0, 0, first), (0.0, 1, second)):
        for x, (word, concept) in enumerate(zip(tokens.tolist(), concepts[side], strict=True)):
            shared = concept in both
            colour = COLOURS[both.index(concept)] if shared else GREY
            box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": colour, "linewidth": 2 if shared else 0.8}
            axes.text(x + 0.5, y, spelled(word), ha="center", va="center", color=BLACK if shared else GREY, fontsize=10, bbox=box)
    for i, concept in enumerate(both):
        ends = concepts[0].index(concept) + 0.5, concepts[1].index(concept) + 0.5
        axes.plot(ends, (0.80, 0.20), color=COLOURS[i], linewidth=2.5)
    axes.text(0, 1.6, f"pair {pair}: {len(both)} of 6 shared, so gold {len(both) / 6:.2f}; scored {score:.2f}", ha="left", va="center", fontsize=12)
    axes.text(0, -0.45, "synonyms begin alike; the models see numbers only", ha="left", va="center", color=GREY, fontsize=10)
