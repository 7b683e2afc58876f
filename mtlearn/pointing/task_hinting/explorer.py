"""Touch length generalisation: which input the model looks at before it writes the next number, and how that melts as lists grow."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from mtlearn.datasets.sequences import Vocabulary, sample_lists, sort_examples
from mtlearn.explore.canvas import Words
from mtlearn.explore.explorer import Explorer, PointerEvent, choice, entry, menu, slider
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, SKY, VERMILION
from mtlearn.lab.checkpoints import load, provenance
from mtlearn.lab.result import recorded
from mtlearn.lab.seeds import stream
from mtlearn.pointing.task_hinting.experiment import CHECKPOINTS, DISTINCT, SHIPPED, Sorters, hand_set, recipe_of
from mtlearn.pointing.task_hinting.method import attention_by_value
from mtlearn.pointing.transformer import CausalTransformer

SEED = 1
HAND_SET = "hand-set"
LONGEST = 40
CURVES = {  # arms of the recorded result that are drawn beside the model, by world, with the names on their lines
    True: {
        "distinct, main only": ("main only", BLUE),
        "distinct, + successor": ("+ successor", ORANGE),
        "distinct, twice the main": ("twice the main", GREEN),
        "distinct, sharpened at test": ("sharpened", PURPLE),
    },
    False: {
        "main only": ("main only", BLUE),
        "+ successor": ("+ successor", ORANGE),
        "twice the main": ("twice the main", GREEN),
        "+ count": ("+ count", SKY),
    },
}

# the recorded arms that differ in the share of the loss that successor hints have, by that share
SHARES = {0.0: "distinct, main only", 0.25: "distinct, hint share 0.25", 0.5: "distinct, + successor", 0.75: "distinct, hint share 0.75"}


@dataclass(frozen=True)
class Look:
    """One list under one model.

    Attributes:
        written: the sorted list, then the end: n + 1 tokens.
        right: whether the model predicts each of them, given the ones before.
        attention: (layers, rows, values) mean over heads of what the row that writes each token gives to the inputs, by value.
    """

    written: tuple[int, ...]
    right: tuple[bool, ...]
    attention: Tensor


@lru_cache(maxsize=1)
def sorters() -> nn.ModuleDict:
    """The shipped models and the hand-set one, by arm."""
    models = load(CHECKPOINTS[0])
    assert isinstance(models, nn.ModuleDict)
    models[HAND_SET] = hand_set(Sorters().distinct.values)
    return models


def vocabulary_of(arm: str) -> Vocabulary:
    """The tokens of an arm's world."""
    return recipe_of(Sorters(), arm).vocabulary if arm != HAND_SET else Sorters().distinct.vocabulary


def is_distinct(arm: str) -> bool:
    """Whether the arm's lists hold each value once."""
    return arm == HAND_SET or arm in DISTINCT


@lru_cache(maxsize=256)
def look(arm: str, numbers: tuple[int, ...], tau: float) -> Look:
    """Run the model of an arm over a list and its sorted copy, all attention logits multiplied by ``tau``."""
    model, vocabulary = sorters()[arm], vocabulary_of(arm)
    assert isinstance(model, CausalTransformer)
    inputs = torch.tensor(numbers)
    examples = sort_examples(inputs[None], vocabulary)
    trace = model.trace(examples.tokens, sharpness=tau)
    first = len(numbers) + 1  # the row of the separator writes the first number
    written = examples.tokens[0, first + 1 :]
    predicted = trace.logits[0, first:-1].argmax(-1)
    rows = torch.stack([weights[0, :, first:-1].mean(0) for weights in trace.attention])
    attention = attention_by_value(rows, inputs, vocabulary.values)
    return Look(tuple(written.tolist()), tuple((predicted == written).tolist()), attention)


def drawn_list(arm: str, n: int) -> tuple[int, ...]:
    """The first ``n`` numbers of one fixed random order, so that a longer list keeps the numbers of a shorter one."""
    values = vocabulary_of(arm).values
    whole = sample_lists(1, LONGEST, values, distinct=is_distinct(arm), generator=stream(SEED, "explorer", values))
    return tuple(whole[0, :n].tolist())


def read_list(text: str, arm: str) -> tuple[int, ...]:
    """The numbers of a typed list, separated by blanks or commas.

    Raises:
        ValueError: what is wrong with the list, for the model of the arm.
    """
    values = vocabulary_of(arm).values
    try:
        numbers = tuple(int(word) for word in text.replace(",", " ").split())
    except ValueError:
        raise ValueError("type whole numbers, separated by blanks") from None
    if not 1 <= len(numbers) <= LONGEST:
        raise ValueError(f"type 1 to {LONGEST} numbers, not {len(numbers)}")
    if not all(0 <= number < values for number in numbers):
        raise ValueError(f"this model knows the numbers 0 to {values - 1}")
    if is_distinct(arm) and len(set(numbers)) < len(numbers):
        raise ValueError("this model was made for lists without repeated numbers")
    return numbers


def explorer(*, n: int = 32, tau: float = 1.0) -> Explorer:
    """A list, what a model writes below it, where it looks for the next number, and how often whole lists come out right.

    Click on a value to put it into the list or to take it out, type a list, or move through what is written with the arrow keys.
    """
    start = "distinct, main only"
    shown = {"numbers": drawn_list(start, n)}

    def draw(figure: Figure, model: str, n: int, numbers: str, tau: float, written: float, layer: str, measure: str, share: float) -> str:
        complaint = ""
        try:
            shown["numbers"] = read_list(numbers, model)
        except ValueError as error:
            complaint = str(error)
            try:
                read_list(" ".join(map(str, shown["numbers"])), model)
            except ValueError:
                shown["numbers"] = drawn_list(model, len(shown["numbers"]))
        found = look(model, shown["numbers"], round(tau, 2))
        at = min(round(written * len(shown["numbers"])), len(shown["numbers"]))
        figure.set_layout_engine("none")  # fixed places: laying out eighty numbers costs more than drawing them
        _draw_lists(figure.add_axes((0.065, 0.755, 0.925, 0.19)), shown["numbers"], found, at, vocabulary_of(model), complaint)
        left, right = figure.add_axes((0.065, 0.095, 0.505, 0.565)), figure.add_axes((0.645, 0.095, 0.345, 0.565))
        mass = _draw_attention(left, shown["numbers"], found, at, int(layer) - 1, vocabulary_of(model))
        accuracy = _draw_curves(right, model, round(tau, 2), len(shown["numbers"]), measure, share)
        wrong, count = found.right.count(False), len(shown["numbers"])
        return (
            f"{complaint + '. ' if complaint else ''}{model}, tau {tau:g}: {count} numbers, {wrong} of {count + 1} tokens wrong; "
            f"after {at} written numbers layer {layer} gives {mass:.2f} of its attention to the right input; {accuracy}"
        )

    controls = {
        "model": menu("model", [*reversed(SHIPPED), HAND_SET], start),
        "n": slider("draw n numbers", n, 2, LONGEST),
        "numbers": entry("the list", " ".join(map(str, shown["numbers"]))),
        "tau": slider("τ (multiplies all attention logits)", tau, 0.5, 3.0, 0.25),
        "written": slider("share of the answer written", 0.5, 0.0, 1.0, 0.05),
        "layer": choice("attention of layer", ["1", "2"]),
        "measure": choice("accuracy", ["exact", "tokens"]),
        "share": slider("hints' share of the loss (orange curve)", 0.5, 0.0, 0.75, 0.25),
    }

    def redraw_list(change: object) -> None:
        controls["numbers"].value = " ".join(map(str, drawn_list(controls["model"].value, controls["n"].value)))

    controls["n"].observe(redraw_list, "value")

    def on_pointer(event: PointerEvent) -> None:
        if event.kind == "key" and event.key in ("ArrowRight", "ArrowLeft"):
            step = 1 / len(shown["numbers"])
            moved = made.values["written"] + (step if event.key == "ArrowRight" else -step)
            controls["written"].value = min(max(moved, 0.0), 1.0)
        elif event.kind == "press" and event.axes == 1:
            value, held = round(event.x), list(shown["numbers"])
            if not 0 <= value < vocabulary_of(made.values["model"]).values:
                return
            if value in held and (is_distinct(made.values["model"]) or event.key == "Shift"):
                held.remove(value)
            else:
                held.append(value)
            controls["numbers"].value = " ".join(map(str, held[:LONGEST]))

    def state(model: str, n: int, tau: float, **others: object) -> dict[str, object]:
        numbers = " ".join(map(str, drawn_list(model, n)))
        return {"model": model, "n": n, "numbers": numbers, "tau": tau, "written": 0.5, "layer": "1", "measure": "exact", "share": 0.5, **others}

    made = Explorer(
        draw,
        controls,
        title="Where does it look for the next number?",
        figsize=(10.0, 6.2),
        seed=SEED,
        on_pointer=on_pointer,
        presets={
            "as long as in training": state(start, 8, 1.0),
            "four times as long": state(start, 32, 1.0),
            "... and sharpened": state(start, 32, 1.5),
            "... too sharp": state(start, 32, 3.0),
            "trained with hints": state("distinct, + successor", 32, 1.0),
            "... with few hints": state("distinct, + successor", 32, 1.0, share=0.25),
            "repeated values": state("main only", 16, 1.0),
            "set by hand": state(HAND_SET, 40, 1.0, layer="2"),
        },
    )
    return made


def _draw_lists(axes: Axes, numbers: tuple[int, ...], found: Look, at: int, vocabulary: Vocabulary, complaint: str) -> None:
    """The list above, and below it what is written: green where the model is right, vermilion where it is wrong."""
    slots = max(len(numbers) + 1, 12)
    size = 11 if slots <= 24 else 8.5
    names = {vocabulary.end: "."}  # as the rows are written everywhere
    corner, faces, words = [], [], []
    for row, tokens in ((1, numbers), (0, found.written)):
        for place, token in enumerate(tokens):
            corner.append((place, row))
            faces.append(LIGHT if row else "#007A5A" if found.right[place] else VERMILION)
            words.append(names.get(token, str(token)))
    shape = np.array([(0.06, 0.1), (0.94, 0.1), (0.94, 0.9), (0.06, 0.9)])
    axes.add_collection(PolyCollection(np.array(corner)[:, None] + shape, facecolors=faces))
    axes.add_artist(Words(np.array(corner) + 0.5, words, [BLACK if row else "white" for _, row in corner], size=size))
    axes.add_patch(Rectangle((at + 0.03, 0.05), 0.94, 0.9, fill=False, edgecolor=BLACK, linewidth=2.2))
    axes.set_xlim(0, slots)
    axes.set_ylim(-0.02, 1.98)
    axes.set_yticks([1.5, 0.5], ["the list", "sorted"])
    axes.set_xticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    wrong = found.right.count(False)
    verdict = "every token is right" if not wrong else f"{wrong} wrong token{'s' * (wrong > 1)} (vermilion), each judged with the true ones before it"
    axes.set_title(complaint or verdict, loc="left", fontsize=11, color=VERMILION if wrong or complaint else GREEN)


def _draw_attention(axes: Axes, numbers: tuple[int, ...], found: Look, at: int, layer: int, vocabulary: Vocabulary) -> float:
    """Attention of the row that writes token ``at``, by value; returns the mass on the right value."""
    mass = found.attention[layer, at].tolist()
    wanted = found.written[at]
    colours = [ORANGE if value == wanted else BLUE for value in range(vocabulary.values)]
    axes.vlines(range(vocabulary.values), 0, mass, colors=colours, linewidth=290 / vocabulary.values, capstyle="butt")
    held = sorted(set(numbers))
    axes.plot(held, [-0.025] * len(held), "|", color=GREY, markersize=8, markeredgewidth=1.4, clip_on=False)
    last = found.written[at - 1] if at else None
    if last is not None:
        axes.axvline(last, color=BLACK, linewidth=1.2, linestyle=":")
        axes.annotate(
            f"written last: {last}",
            (last, 1.0),
            (-5, 0),
            textcoords="offset points",
            ha="right" if last > 0.3 * vocabulary.values else "left",
            va="top",
        )
    right = mass[wanted] if wanted < vocabulary.values else 0.0
    if wanted < vocabulary.values:
        side = -1 if wanted > 0.75 * vocabulary.values else 1
        axes.annotate(
            f"next: {wanted}\ngets {right:.2f}",
            (wanted, min(right, 0.78)),
            (8 * side, 4),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            color="#9C6B00",
        )
    axes.set_xlim(-1, vocabulary.values)
    axes.set_ylim(-0.05, 1.0)
    axes.set_xlabel("value of the input (grey ticks: in the list; click to add or remove)")
    axes.set_ylabel("share of attention")
    axes.set_title(f"layer {layer + 1}: where the row of the last written number looks", loc="left", fontsize=11)
    return right


def _draw_curves(axes: Axes, arm: str, tau: float, n: int, measure: str, share: float) -> str:
    """Accuracy against length: recorded arms as thin lines, this model at this tau as a thick one; returns the latter in words.

    Among distinct values the arm with successor hints is the one whose hints have ``share`` of the loss.
    """
    distinct = is_distinct(arm)
    recipe = Sorters().distinct if distinct else Sorters().repeated
    prefix = "distinct " if distinct else ""
    if arm != HAND_SET:
        axes.axvspan(recipe.shortest, recipe.longest, color=LIGHT, alpha=0.7, linewidth=0)
        axes.text(recipe.longest, 1.04, "trained ", ha="right", va="bottom", fontsize=9, color=GREY)
    ends: list[tuple[float, str, str]] = []
    for name, (label, colour) in CURVES[distinct].items():
        if name == SHARES[0.5]:
            name, label = SHARES[share], f"{share:.0%} hints"
        curve = _recorded_curve(name, f"{prefix}{measure} at ", recipe.longest)
        if curve:
            axes.plot(*zip(*curve, strict=True), color=colour, linewidth=1.4, marker="o", markersize=3)
            ends.append((curve[-1][1], label, colour))
    here = [(float(recipe.longest), 1.0), (float(LONGEST), 1.0)] if arm == HAND_SET else _measured_curve(arm, tau, measure, recipe.longest)
    axes.plot(*zip(*here, strict=True), color=BLACK, linewidth=3, marker="o", markersize=5)
    ends.append((here[-1][1], "this model", BLACK))
    last = int(max(x for x, _ in here))
    place = -1.0
    for height, label, colour in sorted(ends):
        place = max(height, place + 0.065)
        axes.annotate(label, (last, place), (6, 0), textcoords="offset points", va="center", fontsize=9, color=colour, annotation_clip=False)
    axes.axvline(min(n, last), color=BLACK, linewidth=1.0, linestyle=":")
    axes.set_xlim(recipe.shortest, last * 1.38)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xticks([length for length, _ in here])
    axes.set_xlabel("length n of the list")
    axes.set_ylabel("share of lists without a mistake" if measure == "exact" else "share of right tokens")
    axes.set_title(f"τ = {tau:g}", loc="right", fontsize=11)
    return "this model: " + ", ".join(f"{value:.2f} at n = {length:g}" for length, value in here) + (f"; hints' share {share:g}" if distinct else "")


@lru_cache(maxsize=64)
def _recorded_curve(arm: str, metric: str, longest: int) -> tuple[tuple[float, float], ...]:
    """Mean over the recorded seeds at each length; empty where nothing is recorded yet."""
    try:
        metrics = recorded("task_hinting").arms[arm]
    except LookupError:
        return ()
    return _curve({name: spread.mean for name, spread in metrics.items()}, metric, longest)


@lru_cache(maxsize=256)
def _measured_curve(arm: str, tau: float, measure: str, longest: int) -> tuple[tuple[float, float], ...]:
    """What was measured of a shipped model when it was made."""
    return _curve(provenance(CHECKPOINTS[0])["measured"], f"{arm}, tau {tau:g}: {measure} at ", longest)


def _curve(metrics: dict[str, float], start: str, longest: int) -> tuple[tuple[float, float], ...]:
    found = [(float(name[len(start) : -1]) * longest, value) for name, value in metrics.items() if name.startswith(start)]
    return tuple(sorted(found))
