"""Two explorers: one question under twelve instructions, and what it is shown; eight scores of a language model and what their ranks pull."""

from functools import cache, lru_cache
from typing import cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from mtlearn.explore.canvas import Words
from mtlearn.explore.explorer import Explorer, PointerEvent, choice, slider
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, SEQUENTIAL, VERMILION
from mtlearn.lab.checkpoints import load
from mtlearn.retrieval.udr.experiment import SHOWN, by_retriever, own_choice, shown_world
from mtlearn.retrieval.udr.method import UnifiedRetriever, rank_loss, ranks
from mtlearn.retrieval.udr.worlds import ASKED, PLACES, Copier, World, surface

# ------------------------------------------------------------------------------------------------------------------- demonstrations

WAYS = ("UDR", "no instruction", "pixels", "the model's own choice")
QUESTIONS = 40
MOST = 8


@cache
def world() -> World:
    """The rows of digits that the shipped models know."""
    return shown_world(SHOWN.settings)[0]


@cache
def models() -> nn.ModuleDict:
    """The shipped models."""
    return cast(nn.ModuleDict, load(SHOWN))


@lru_cache(maxsize=64)
@torch.no_grad()
def chosen(way: str, number: int) -> Tensor:
    """The eight best demonstrations of each question of a task, (questions, 8)."""
    rows, tests = world().train[number], world().test[number]
    if way == "pixels":
        return surface("digits", tests.inputs[:QUESTIONS], rows.inputs).topk(MOST, 1).indices
    if way == "the model's own choice":
        return own_choice(world(), cast(Copier, models()["model"]))(number, MOST)[:QUESTIONS]
    return by_retriever(world(), cast(UnifiedRetriever, models()[way]), told=way == "UDR")(number, MOST)[:QUESTIONS]


def task_number(place: str, asked: str) -> int:
    """Of the world's tasks."""
    return next(i for i, task in enumerate(world().tasks) if task.instruction == (place, asked))


@torch.no_grad()
def said(way: str, number: int, question: int, shown: int) -> tuple[np.ndarray, Tensor, Tensor]:
    """What the model answers from the demonstrations: probabilities (C,), the rows shown and their shares of attention."""
    model = cast(Copier, models()["model"])
    rows, test = world().train[number], world().test[number]
    found = chosen(way, number)[question, :shown]
    match = model.vectors(rows.inputs[found], number) @ model.vectors(test.inputs[question], number)
    share = torch.cat([model.sharp * match, model.none[None]]).softmax(0)[:-1]
    return model.answers(match, rows.answers[found], world().tasks[number].classes).numpy(), found, share


def explorer() -> Explorer:
    """One question of four digits: ask for another place, or another property, and see which rows are shown to the model, and what it says."""

    def draw(figure: Figure, place: str, asked: str, way: str, question: int, shown: int) -> str:
        figure.set_layout_engine("none")
        number = task_number(place, asked)
        task, test = world().tasks[number], world().test[number]
        probabilities, found, share = said(way, number, question, shown)
        at = PLACES.index(place)
        right, best = int(test.answers[question]), int(probabilities.argmax())
        asking = figure.add_axes((0.03, 0.70, 0.30, 0.20))
        _draw_row(asking, test.inputs[question], at, BLACK)
        figure.text(0.03, 0.945, f"question: {place} digit, {asked}", fontsize=12, weight="bold")
        figure.text(0.03, 0.645, f"right answer: {right}", fontsize=11)
        for row in range(shown):
            slot = 0.43 if shown <= 4 else 0.215  # as large as there is room for
            left, bottom = 0.40 + 0.30 * (row % 2), 0.89 - slot * (row // 2 + 1) + 0.06
            axes = figure.add_axes((left, bottom + max(slot - 0.28, 0), 0.27, min(slot - 0.07, 0.21)))
            says = int(world().train[number].answers[found[row]])
            _draw_row(axes, world().train[number].inputs[found[row]], at, GREEN if says == right else VERMILION)
            axes.set_title(
                f"says {says}, looked at {100 * float(share[row]):.0f} %",
                fontsize=10.5,
                loc="left",
                pad=3,
                color=GREEN if says == right else VERMILION,
            )
        figure.text(0.40, 0.945, f"shown to the model, chosen by {way}", fontsize=12, weight="bold")
        bars = figure.add_axes((0.06, 0.12, 0.26, 0.38))
        colours = [GREEN if i == right else VERMILION if i == best else LIGHT for i in range(task.classes)]
        bars.bar(range(task.classes), probabilities, color=colours)
        bars.set_ylim(0, 1.05)
        bars.set_xticks(range(task.classes))
        bars.set_xlabel("answer")
        bars.set_ylabel("probability")
        bars.set_title("the model's answer", loc="left", fontsize=11.5)
        agree = int((world().train[number].answers[found] == right).sum())
        return (
            f"{place} digit, {asked}, demonstrations by {way}: {agree} of {shown} have the right answer; the model says {best} "
            f"with {probabilities[best]:.2f}, which is {'right' if best == right else 'wrong'} ({right})"
        )

    controls = {
        "place": choice("asked for: digit", list(PLACES), "second"),
        "asked": choice("property", list(ASKED), "parity"),
        "way": choice("demonstrations by", list(WAYS), "UDR"),
        "question": slider("question", 3, 0, QUESTIONS - 1),
        "shown": slider("demonstrations", 4, 1, MOST),
    }
    start = {name: control.value for name, control in controls.items()}
    return Explorer(
        draw,
        controls,
        title="The pixels stay, the instruction changes: which rows help the model to answer?",
        figsize=(10.0, 5.4),
        seed=SHOWN.settings.seed,
        presets={
            "another digit of the same row": {**start, "place": "fourth"},
            "by pixels: misled": {**start, "way": "pixels", "asked": "copy", "question": 5},
            "told nothing": {**start, "way": "no instruction", "asked": "copy", "place": "fourth", "question": 9},
            "one is enough": {**start, "asked": "copy", "shown": 1},
        },
    )


def _draw_row(axes: Axes, digits: Tensor, at: int, colour: str) -> None:
    """Four digits side by side, the one that is asked for in a frame."""
    image = digits.view(4, 8, 8)
    axes.imshow(torch.cat([*image], 1).numpy(), cmap="gray_r", vmin=0, vmax=2, aspect="auto", interpolation="nearest")
    axes.add_patch(Rectangle((8 * at - 0.5, -0.5), 8, 8, fill=False, edgecolor=colour, linewidth=2.5, clip_on=False))
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


# -------------------------------------------------------------------------------------------------------------------- pairs of a list

LIST = 8
START = (0.95, 0.80, 0.72, 0.55, 0.41, 0.30, 0.18, 0.06)
LIKE = (1.0, 1.5, 0.2, 2.0, -0.5, 0.4, 1.2, -1.0)  # similarities of the retriever


def pairs() -> Explorer:
    """Scores of eight candidates: drag one; only ranks count. Which pairs pull, and where does each similarity go?"""
    scores, marked = list(START), [0]

    def draw(figure: Figure, spread: float, weight: str) -> str:
        figure.set_layout_engine("none")
        values = torch.tensor([scores], dtype=torch.float64)
        similarities = (spread * torch.tensor([LIKE], dtype=torch.float64)).requires_grad_()
        kind = "lm" if weight.startswith("ranks") else "predicted"
        (gradient,) = torch.autograd.grad(rank_loss(similarities, values, weight=kind), similarities)  # type: ignore[arg-type]
        rank = ranks(values)[0]
        left, middle, right = (figure.add_axes((0.07 + 0.325 * i, 0.15, 0.25, 0.68)) for i in range(3))
        left.bar(range(LIST), scores, color=[ORANGE if i == marked[0] else BLUE for i in range(LIST)])
        left.add_artist(Words([(i, scores[i] + 0.05) for i in range(LIST)], [f"{float(r):g}" for r in rank], [BLACK] * LIST, size=10.5))
        left.set_ylim(0, 1.12)
        left.set_title("the model's scores (above: ranks)", loc="left", fontsize=11.5)
        left.set_ylabel("probability of the right answer")
        gain = 1 / rank
        table = (gain[:, None] - gain).clamp(min=0)
        if kind == "predicted":
            inverse = 1 / (1 + similarities.detach()[0].argsort(descending=True).argsort())
            table = (inverse[:, None] - inverse).abs() * (table > 0)
        middle.imshow(table.numpy(), cmap=SEQUENTIAL, vmin=0, vmax=1)
        middle.set_title("weight of a pair", loc="left", fontsize=11.5)
        middle.set_ylabel("the better candidate")
        strongest = divmod(int(table.argmax()), LIST)
        place = similarities.detach()[0].numpy()
        along = -gradient[0].numpy()
        right.scatter(range(LIST), place, color=BLACK, s=26, zorder=3)
        size = max(float(np.abs(along).max()), 1e-9)
        right.quiver(
            range(LIST), place, np.zeros(LIST), 1.3 * along / size, color=[GREEN if a > 0 else VERMILION for a in along], angles="xy",
            scale_units="xy", scale=1, width=0.012,
        )  # fmt: skip
        right.set_ylim(-6.5, 8)
        right.axhline(0, color=GREY, linewidth=0.8)
        right.set_title("similarities and their pull", loc="left", fontsize=11.5)
        for axes in (left, middle, right):
            axes.set_xticks(range(LIST), [str(i + 1) for i in range(LIST)])
            axes.set_xlabel("candidate")
        middle.set_yticks(range(LIST), [str(i + 1) for i in range(LIST)])
        up = ", ".join(str(i + 1) for i in range(LIST) if along[i] > 1e-9)
        return (
            f"ranks {', '.join(f'{float(r):g}' for r in rank)}; the heaviest pair is {strongest[0] + 1} before {strongest[1] + 1}; "
            f"pulled up: {up or 'none'}"
        )

    controls = {
        "spread": slider("spread of the similarities", 1.0, 0.0, 3.0, 0.25),
        "weight": choice("pairs weigh by", ["ranks of the model (paper)", "predicted places (code)"]),
    }
    start = {name: control.value for name, control in controls.items()}

    def on_pointer(event: PointerEvent) -> None:
        if event.kind == "key":
            marked[0] = (marked[0] + {"ArrowLeft": -1, "ArrowRight": 1}.get(event.key, 0)) % LIST
            step = {"ArrowUp": 0.02, "ArrowDown": -0.02}.get(event.key, 0.0)
            scores[marked[0]] = float(np.clip(scores[marked[0]] + step, 0.0, 1.0))
        elif event.kind in ("press", "drag") and event.axes == 0:
            if event.kind == "press":
                marked[0] = int(np.clip(round(event.x), 0, LIST - 1))
            scores[marked[0]] = float(np.clip(event.y, 0.0, 1.0))

    def reset() -> None:
        scores[:], marked[0] = START, 0

    return Explorer(
        draw,
        controls,
        title="Drag a score of the language model: what does its rank pull?",
        figsize=(10.0, 4.2),
        on_pointer=on_pointer,
        on_reset=reset,
        presets={
            "equal similarities": {**start, "spread": 0.0},
            "the order is nearly right in the code's eyes": {**start, "weight": "predicted places (code)", "spread": 3.0},
        },
    )
