"""Touch SkillNet: switch the skills of a call on and off, see what lights up, what the task scores, and what a sentence finds."""

from collections.abc import Mapping
from functools import cache, lru_cache

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mtlearn.datasets.functions import words
from mtlearn.explore.canvas import Words
from mtlearn.explore.explorer import Explorer, PointerEvent, choice, entry, menu, switch
from mtlearn.explore.style import BLACK, BLUE, GREY, LIGHT, ORANGE, VERMILION
from mtlearn.lab.checkpoints import load
from mtlearn.moe.skillnet.experiment import CHECKPOINTS, TASKS, Shipped, Skilled, calls_of, retrieval_score, score, vectors
from mtlearn.moe.skillnet.method import SKILLS, TABLE, SkillNet
from mtlearn.moe.skillnet.tasks import PATCH, Examples, Tasks, functions, make_tasks, to_words

SHIPPED = Shipped()
SHOWN = SHIPPED.shown  # test examples of a task
CALLS = {
    "text: docstring": ("text", 0),
    "sound: key tones": ("sound", 0),
    "image: caption": ("image", 0),
    "image: digit": ("image", 1),
    "video: caption": ("video", 0),
    "video: clip": ("video", 1),
    "code: docstring": ("code", 0),
    "code: code": ("code", 1),
}
FIND = {"digits": "image", "clips": "video", "functions": "code"}
METRIC = {"text": "accuracy", "sound": "1 - errors a key", "image": "right at rank 1", "video": "right at rank 1", "code": "mean 1 / rank"}


@cache
def skilled() -> Skilled:
    """The shipped model."""
    found = load(CHECKPOINTS[0])
    assert isinstance(found, Skilled)
    return found


@cache
def tasks() -> Tasks:
    """Its tasks, in the words of its vocabulary; the code is the running Python's."""
    return make_tasks(SHIPPED.data, SHIPPED.seed, skilled().vocabulary)


@cache
def shown_examples(task: str) -> Examples:
    """The first test examples of a task."""
    return tasks().test[task].take(torch.arange(SHOWN))


@lru_cache(maxsize=512)
def side_vectors(task: str, side: int, skills: tuple[str, ...]) -> Tensor:
    """Unit vectors of one call on the examples shown."""
    return vectors(skilled().net, task, side, shown_examples(task).calls[side], skills)


@lru_cache(maxsize=512)
def shown_score(task: str, side: int, skills: tuple[str, ...]) -> float:
    """The task's score on the examples shown, with other skills in one of its calls."""
    if TABLE[task].kind != "retrieve":
        return score(skilled().net, task, shown_examples(task), {(task, side): skills})
    used = [skills if number == side else call.skills for number, call in enumerate(TABLE[task].calls)]
    query, item = (side_vectors(task, number, one) for number, one in enumerate(used))
    return retrieval_score(task, query, item, shown_examples(task).labels)


@cache
def table_score(task: str) -> float:
    """The task's score on the examples shown, with the table's skills."""
    return shown_score(task, 0, TABLE[task].calls[0].skills)


def activated(call: str, skills: tuple[str, ...]) -> int:
    """Parameters that one call needs with these skills: shared ones, its embedder, |S| modules a layer."""
    net = skilled().net
    modality = TABLE[CALLS[call][0]].calls[CALLS[call][1]].modality
    return _fixed(modality) + len(skills) * _module_size(net)


@cache
def _module_size(net: SkillNet) -> int:
    return sum(p.numel() for name, p in net.named_parameters() if f".{SKILLS[0]}." in name)


@cache
def _fixed(modality: str) -> int:
    """Shared parameters and those of an embedder."""
    net = skilled().net
    total = 0
    for name, p in net.named_parameters():
        parts = name.split(".")
        inside = parts[0] == "layers" and parts[2] in ("qkv", "ffn")
        mine = parts[0] == "embedders" and parts[1] == modality and parts[2] not in ("hidden", "restore")
        worded = parts[0] == "words" and SHIPPED.data.modalities()[modality].features == 0
        total += p.numel() if mine or worded or (not inside and parts[0] not in ("embedders", "words", "heads")) else 0
    return total


def explorer(*, call: str = "image: digit", query: str = "someone wrote the number seven") -> Explorer:
    """The switchboard: press a cell of the table to switch a skill of a call; type a sentence and see what it finds."""

    def draw(figure: Figure, call: str, find: str, query: str, **on: bool) -> str:
        figure.set_layout_engine("none")
        skills = tuple(skill for skill in SKILLS if on[skill])
        _draw_board(figure.add_axes((0.145, 0.40, 0.375, 0.53)), call, skills)
        _draw_network(figure.add_axes((0.54, 0.36, 0.2, 0.62)), call, skills)
        said = _draw_scores(figure.add_axes((0.825, 0.42, 0.16, 0.46)), call, skills)
        found = _draw_found(figure.add_axes((0.02, 0.03, 0.96, 0.26)), call, skills, find, query)
        size = f"{activated(call, skills):,} activated parameters" if skills else "no parameter"
        return f"{call} with {', '.join(skills) or 'no skill'}: {size}; {said}; {found}"

    def on_pointer(event: PointerEvent) -> None:
        if event.kind == "press" and event.axes == 0:
            row, column = round(event.y), round(event.x)
            if 0 <= row < len(CALLS) and 0 <= column < len(SKILLS):
                picked = list(CALLS)[row]
                if controls["call"].value != picked:
                    shown.set(**_row(picked))
                controls[SKILLS[column]].value = not controls[SKILLS[column]].value
        elif event.kind == "key" and event.key in ("ArrowUp", "ArrowDown"):
            at = list(CALLS).index(controls["call"].value) + (1 if event.key == "ArrowDown" else -1)
            shown.set(**_row(list(CALLS)[min(max(at, 0), len(CALLS) - 1)]))
        elif event.kind == "key" and event.key in map(str, range(1, len(SKILLS) + 1)):
            skill = SKILLS[int(event.key) - 1]
            controls[skill].value = not controls[skill].value

    start = {**_row(call), "find": "digits", "query": query}
    controls = {
        "call": menu("call of the encoder", list(CALLS), call),
        **{skill: switch(skill, bool(start[skill])) for skill in SKILLS},
        "find": choice("find", list(FIND)),
        "query": entry("caption or docstring", query),
    }
    clip = {"find": "clips", "query": "a seven that moves left"}
    shown = Explorer(
        draw,
        controls,
        title="Switch the skills of a call: which modules light up, what does the task score, what does a sentence find?",
        figsize=(10.0, 6.6),
        seed=SHIPPED.seed,
        on_pointer=on_pointer,
        presets={
            "a digit without the image skill": {**start, "image": False},
            "all skills on": {**start, **dict.fromkeys(SKILLS, True)},
            "general off": {**start, "general": False},
            "sound without the sound skill": {**start, **_row("sound: key tones"), "sound": False},
            "clips without the image skill": {**start, **_row("video: clip"), **clip, "image": False},
            "find a clip": {**start, **_row("video: clip"), **clip},
            "find a function": {**start, **_row("code: code"), "find": "functions", "query": "return the number of days in a month"},
        },
    )
    return shown


def _row(call: str) -> dict[str, object]:
    """The table's row of a call, as values of the controls."""
    task, side = CALLS[call]
    return {"call": call, **{skill: skill in TABLE[task].calls[side].skills for skill in SKILLS}}


def _draw_board(axes: Axes, call: str, skills: tuple[str, ...]) -> None:
    """The activation table; in each cell, what switching it over does to the task's score."""
    changes = skilled().lesions
    cells, colours, places, told, inks = [], [], [], [], []
    for row, name in enumerate(CALLS):
        task, side = CALLS[name]
        active = skills if name == call else TABLE[task].calls[side].skills
        for column, skill in enumerate(SKILLS):
            cells.append(Rectangle((column - 0.45, row - 0.42), 0.9, 0.84))
            colours.append((BLUE if name == call else "#8FC1DE") if skill in active else "white")
            places.append((column, row))
            change = float(changes[calls_of().index((task, side)), column])
            told.append(f"{change:+.2f}".replace("-", "−") if round(abs(change), 2) else "0")
            inks.append("white" if skill in active and name == call else VERMILION if change <= -0.1 else GREY if skill not in active else BLACK)
    axes.add_collection(PatchCollection(cells, facecolor=colours, edgecolor=LIGHT, linewidth=1))
    row = list(CALLS).index(call)
    axes.add_patch(Rectangle((-0.5, row - 0.5), len(SKILLS), 1, fill=False, edgecolor=ORANGE, linewidth=2.5))
    axes.add_artist(Words(places, told, inks, size=9))
    axes.add_artist(Words([(column, -0.85) for column in range(len(SKILLS))], SKILLS, [BLACK] * len(SKILLS), size=11))
    for row, name in enumerate(CALLS):  # words of our own: ticks would take a third of the time of a redraw
        axes.text(-0.62, row, name, ha="right", va="center")
    axes.set_xlim(-0.55, len(SKILLS) - 0.45)
    axes.set_ylim(len(CALLS) - 0.45, -0.55)
    axes.axis("off")
    axes.text(-0.5, len(CALLS) - 0.2, "number: change of the score if this cell alone is pressed", fontsize=9, color=GREY, va="top")


def _draw_network(axes: Axes, call: str, skills: tuple[str, ...]) -> None:
    """Two layers from below: for each, six projections and six FFNs, of which the active ones are lit; grey is shared."""
    axes.set_xlim(-0.2, 6.2)
    axes.set_ylim(-1.55, 10.6)
    axes.axis("off")
    task, side = CALLS[call]
    boxes, colours, told, inks = [], [], [], []
    places: list[tuple[float, float]] = []

    def bar(y: float, text: str) -> None:
        boxes.append(Rectangle((0, y), 6, 0.8))
        colours.append("#C8C8C8")
        places.append((3, y + 0.4))
        told.append(text)
        inks.append(BLACK)

    bar(-1.2, f"embedder: {TABLE[task].calls[side].modality}")
    for layer in range(2):
        y = 4.4 * layer
        for row, part in ((0.0, "Q K V"), (2.2, "FFN")):
            for column, skill in enumerate(SKILLS):
                boxes.append(Rectangle((column + 0.05, y + row), 0.9, 0.8))
                colours.append(BLUE if skill in skills else "white")
                places.append((column + 0.5, y + row + 0.4))
                told.append(skill[0].upper() if skill != "video" else "V")
                inks.append("white" if skill in skills else "#B0B0B0")
            bar(y + row + 1.1, "attention, output" if part == "Q K V" else "add")
        axes.text(6.12, y + 0.4, "QKV", fontsize=7, color=GREY, va="center")
        axes.text(6.12, y + 2.6, "FFN", fontsize=7, color=GREY, va="center")
    axes.add_collection(PatchCollection(boxes, facecolor=colours, edgecolor=GREY, linewidth=0.8))
    axes.add_artist(Words(places, told, inks, size=9))
    size, whole = (activated(call, skills) if skills else 0), sum(p.numel() for p in skilled().net.parameters())
    axes.text(3, 10.5, f"{size / 1e3:.0f} of {whole / 1e3:.0f} thousand\nparameters are active", ha="center", va="top", fontsize=10)


def _draw_scores(axes: Axes, call: str, skills: tuple[str, ...]) -> str:
    """The five scores; the switched task's with and without the change."""
    task, side = CALLS[call]
    said = "at least one skill must be on"
    bars, colours = [], []
    for row, name in enumerate(TASKS):
        plain = now = table_score(name)
        bars.append(Rectangle((0, row - 0.16), plain, 0.32))
        colours.append("#8FC1DE")
        if name == task:
            now = shown_score(task, side, skills) if skills else 0.0
            bars += [Rectangle((0, row - 0.16), now, 0.32), Rectangle((plain - 0.012, row - 0.2), 0.024, 0.4)]
            colours += [BLUE, ORANGE]
            if skills:
                said = f"{METRIC[task]} of {task} {now:.2f}, with the table {plain:.2f}"
        axes.text(max(now, plain) + 0.04, row, f"{now:.2f}", va="center", fontsize=10, fontweight="bold" if name == task else None)
        axes.text(0.01, row - 0.21, METRIC[name], fontsize=8, color=GREY, va="bottom")
    axes.add_collection(PatchCollection(bars, facecolor=colours, linewidth=0))
    axes.set_xlim(0, 1.25)
    axes.set_ylim(len(TASKS) - 0.45, -0.95)
    axes.set_yticks([])
    for row, name in enumerate(TASKS):
        axes.text(-0.04, row, name, ha="right", va="center")
    axes.set_xticks([0, 0.5, 1])
    axes.set_title(f"score on {SHOWN} test examples\n(orange: with the table)", fontsize=10, loc="right")
    return said


def tiled(values: Tensor, rows: int, columns: int, side: int) -> np.ndarray:
    """Patches (..., rows * columns, side * side) as pictures (..., rows * side, columns * side)."""
    cut = values.reshape(*values.shape[:-2], rows, columns, side, side)
    return np.asarray(cut.transpose(-3, -2).flatten(-4, -3).flatten(-2))


def best_items(call: str, skills: tuple[str, ...], find: str, query: str, count: int = 5) -> tuple[list[int], list[str]]:
    """The items nearest to a sentence, and its words that the vocabulary lacks."""
    task = FIND[find]
    switched = {side: skills for name, side in [CALLS[call]] if name == task and skills}
    used = [switched.get(side, one.skills) for side, one in enumerate(TABLE[task].calls)]
    told = words(query)[: SHIPPED.data.text]
    unknown = [word for word in told if word not in _known()]
    if len(unknown) == len(told):
        return [], unknown
    sentence = to_words([told], skilled().vocabulary, SHIPPED.data.text)
    similarity = side_vectors(task, 1, used[1]) @ vectors(skilled().net, task, 0, sentence, used[0])[0]
    return similarity.topk(count).indices.tolist(), unknown


@cache
def _known() -> Mapping[str, int]:
    return {word: number for number, word in enumerate(skilled().vocabulary)}


def _draw_found(axes: Axes, call: str, skills: tuple[str, ...], find: str, query: str) -> str:
    items, unknown = best_items(call, skills, find, query)
    axes.axis("off")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 25)
    task, calls = FIND[find], [name for name, (task, _) in CALLS.items() if task == FIND[find]]
    switched = f", with the switches above for {call!r}" if call in calls else ", with the table's skills"
    axes.text(0, 24.5, f"“{query}” finds these {find} of {SHOWN}, best first{switched}", fontsize=11, va="bottom")
    if unknown:
        axes.text(0, -2.4, f"not in the vocabulary: {', '.join(unknown)[:100]}", fontsize=9, color=VERMILION, va="bottom")
    if not items:
        axes.text(50, 12, "type a sentence with words that the model knows, such as: a picture of a three", ha="center", color=VERMILION)
        return "no word of the sentence is known"
    examples = shown_examples(task)
    if task == "code":
        names = []
        for place, row in enumerate(items):
            function = functions()[int(examples.labels[row])]
            names.append(f"{function.module}.{function.name}")
            axes.text(1, 21 - 4.4 * place, f"{place + 1}  {names[-1]}", fontsize=10, va="center", family="DejaVu Sans Mono")
            line = " ".join(function.docstring.split())
            axes.text(46, 21 - 4.4 * place, line[:66] + ("…" if len(line) > 66 else ""), fontsize=9, color=GREY, va="center")
        return f"finds {', '.join(names)}"
    values = examples.calls[1].values[items]
    if task == "image":
        pictures = tiled(values, 4, 4, PATCH["image"])[:, None]  # (5, 1, 8, 8)
        labels = [str(int(examples.labels[row])) for row in items]
        high = 20.0
    else:
        pictures = tiled(values.view(len(values), 4, 9, -1), 3, 3, PATCH["video"])  # (5, 4, 12, 12)
        ways = ("still", "left", "right", "up", "down")
        labels = [f"{int(examples.labels[row]) // 5} {ways[int(examples.labels[row]) % 5]}" for row in items]
        high = 12.0
    # one picture of all: frames side by side with a grey line between, and room between the items
    lined = np.pad(pictures, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=0.3 * float(pictures.max()))  # (5, frames, rows, columns + 1)
    strips = lined.transpose(0, 2, 1, 3).reshape(len(items), lined.shape[2], -1)[..., :-1]
    room = 3 if task == "image" else 1
    strips = np.pad(strips, ((0, 0), (0, 0), (room, room)), constant_values=float(pictures.min()))
    base = 3 + (20 - high) / 2
    axes.imshow(np.concatenate(list(strips), 1), cmap="Greys", extent=(0, 100, base, base + high), aspect="auto")
    for place, label in enumerate(labels):
        axes.text(20 * place + 10, base - 0.6, label, ha="center", va="top", fontsize=10)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 25)
    return f"finds {', '.join(labels)}"
