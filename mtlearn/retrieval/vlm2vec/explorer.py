"""One picture under eleven instructions: what is ranked first among words, texts, pictures and crops, and where the query's vector goes."""

from functools import cache, lru_cache

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from mtlearn.explore.explorer import Explorer, choice, menu, slider
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE
from mtlearn.lab.checkpoints import load
from mtlearn.lab.seeds import stream
from mtlearn.retrieval.vlm2vec.experiment import ENCODERS
from mtlearn.retrieval.vlm2vec.method import Inputs, joined
from mtlearn.retrieval.vlm2vec.worlds import KINDS, STYLES, Drawings, answers, ask, named, split

COLOURS = {"word": BLUE, "text": ORANGE, "image": GREEN, "crop": PURPLE}
ENCODER_NAMES = ("VLM2Vec", "fusion")
SHOWN, DRAWINGS, MAPPED = 5, 8, 70  # first candidates in the picture; drawings to choose from; candidates of a kind on the map
KEYS = torch.cat([torch.arange(910), torch.arange(1000, 1900), torch.arange(2000, 2030)])  # every answer there is

INSTRUCTIONS: dict[str, tuple[str, int]] = {}  # as the reader sees it, to task and side
for _name, _kind in KINDS.items():
    if _name != "t2i":
        for _side, _word in enumerate(("left", "right") if "side" in _kind.instruction.split() else ("",)):
            INSTRUCTIONS[_kind.instruction.replace("side", _word) if _word else _kind.instruction] = (_name, _side)


@cache
def encoders() -> nn.Module:
    """The shipped encoders."""
    return load(ENCODERS)


@cache
def drawings() -> Drawings:
    """Digits that none of them has seen."""
    return split(ENCODERS.settings.seed)[1]


@cache
def candidates() -> tuple[Inputs, ...]:
    """All 1,840 answers: words, texts, pictures and crops."""
    draws = stream(0, "vlm2vec", "explorer")
    bounds = [(0, 10), (10, 910), (910, 1810), (1810, 1840)]
    return tuple(answers(KEYS[low:high], drawings(), generator=draws) for low, high in bounds)


@cache
def thumbnails() -> dict[int, np.ndarray]:
    """Pixels of each picture and crop, by its place among the candidates."""
    _, _, pictures, crops = candidates()
    assert pictures.images is not None and crops.images is not None
    return {910 + i: image[0].numpy() for i, image in enumerate(torch.cat([pictures.images, crops.images]))}


@cache
@torch.no_grad()
def vectors(name: str) -> tuple[Tensor, Tensor]:
    """Vectors (1840, d) of the candidates, and the plane (d, 2) in which they and the means of their kinds spread most."""
    encode = encoders().get_submodule(name)
    found = torch.cat([encode(part) for part in candidates()])
    few = found[mapped()]
    _, axes = torch.linalg.eigh(torch.cov(few.T))
    plane = axes[:, -2:].flip(1)
    return found, plane * plane.gather(0, plane.abs().argmax(0, keepdim=True)).sign()


@cache
def mapped() -> Tensor:
    """Places of the candidates on the map: all words and crops, some texts and pictures."""
    draws = stream(0, "vlm2vec", "map")
    some = torch.randperm(900, generator=draws)[:MAPPED]
    return torch.cat([torch.arange(10), 10 + some, 910 + some, torch.arange(1810, 1840)])


@lru_cache(maxsize=256)
@torch.no_grad()
def asked(left: int, right: int, first: int, second: int, drawing: int) -> tuple[np.ndarray, dict[str, Tensor]]:
    """The picture, and the query's vector under every instruction (11, d) by encoder."""
    contents = torch.tensor([[left, right, first, second]])
    picture = drawings().pictures(contents, generator=stream(drawing, "vlm2vec", "picture"))
    queries = joined([ask(name, contents, torch.tensor([side]), picture) for name, side in INSTRUCTIONS.values()])
    return picture[0, 0].numpy(), {name: encoders().get_submodule(name)(queries) for name in ENCODER_NAMES}


def right_answer(instruction: str, contents: Tensor) -> int | None:
    """The key of the right answer, or None where the instruction asks for what is not there."""
    name, side = INSTRUCTIONS[instruction]
    styles = contents[0, 2:].tolist()
    if name == "ground":
        if styles.count(2) != 1:
            return None
        side = styles.index(2)
    if (name == "cir" and styles[side] == 1) or (name in ("large", "small") and contents[0, 0] == contents[0, 1]):
        return None
    return int(KINDS[name].key(contents, torch.tensor([side])))


def kind_of(place: int) -> str:
    """Word, text, image or crop, of a candidate's place."""
    return named(int(KEYS[place])).split(":")[0]


def explorer() -> Explorer:
    """The picture stays, the instruction changes: first candidates of both encoders, and a map of each one's vectors."""

    def draw(figure: Figure, instruction: str, left: int, right: int, first: str, second: str, drawing: int) -> str:
        figure.set_layout_engine("none")
        styles = STYLES.index(first), STYLES.index(second)
        picture, queries = asked(left, right, *styles, drawing)
        at = list(INSTRUCTIONS).index(instruction)
        wanted = right_answer(instruction, torch.tensor([[left, right, *styles]]))
        shown = figure.add_axes((0.03, 0.66, 0.22, 0.22))
        _thumbnail(shown, picture)
        figure.text(0.03, 0.945, "the query", fontsize=12, weight="bold")
        figure.text(0.03, 0.60, f"{instruction}", fontsize=11.5)
        right_name = "nothing: it has no answer here" if wanted is None else named(wanted)
        figure.text(0.03, 0.55, f"right: {right_name}", fontsize=10)
        trained = KINDS[INSTRUCTIONS[instruction][0]].trained
        figure.text(0.03, 0.505, "trained on" if trained else "never trained on", fontsize=10, color=GREY)
        leaders = []
        for column, name in enumerate(ENCODER_NAMES):
            pool, plane = vectors(name)
            query = queries[name][at]
            scores = pool @ query
            best = scores.topk(SHOWN)
            start = 0.30 + 0.355 * column
            figure.text(start, 0.945, f"{name}: first of 1,840", fontsize=12, weight="bold")
            strip = np.zeros((12 * SHOWN, 18))
            for row, (place, score) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True)):
                key = int(KEYS[place])
                low = 0.86 - 0.0846 * row
                if place in thumbnails():
                    strip[12 * row : 12 * row + 10, :] = 0.15  # a rim, so that an empty half is seen
                    strip[12 * row + 1 : 12 * row + 9, 1:17] = thumbnails()[place]
                weight, colour = "bold" if key == wanted else "normal", COLOURS[kind_of(place)]
                figure.text(start + 0.085, low, f"{named(key)}  {score:.2f}", fontsize=9.2, color=colour, weight=weight)
            column_of_pictures = figure.add_axes((start, 0.482, 0.075, 0.423))
            column_of_pictures.imshow(strip, cmap="gray_r", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            column_of_pictures.set_axis_off()
            leaders.append(named(int(KEYS[best.indices[0]])))
            chart = figure.add_axes((start, 0.075, 0.32, 0.35))
            flat = (pool[mapped()] @ plane).numpy()
            chart.scatter(flat[:, 0], flat[:, 1], s=9, c=[COLOURS[kind_of(int(place))] for place in mapped()], linewidths=0)
            moved = (queries[name] @ plane).numpy()
            chart.scatter(moved[:, 0], moved[:, 1], s=26, facecolors="white", edgecolors=GREY, linewidths=1.2, zorder=3)
            chart.scatter(moved[at, 0], moved[at, 1], s=110, marker="*", color=BLACK, zorder=4)
            _frame(chart)
            chart.set_title("the query (star), two widest directions", loc="left", fontsize=10.5, pad=3)
        for row, (kind, colour) in enumerate(COLOURS.items()):
            figure.text(0.03, 0.42 - 0.042 * row, f"● {kind}", fontsize=10.5, color=colour)
        figure.text(0.03, 0.215, "○ the same picture,\n    other instructions", fontsize=10, color=GREY)
        order = [words_order(name, queries[name][at]) for name in ENCODER_NAMES]
        figure.text(0.03, 0.05, f"words by VLM2Vec:\n{order[0]}\nwords by fusion:\n{order[1]}", fontsize=10, color=BLACK)
        verdict = ["it has no answer here" if wanted is None else "right" if leader == named(wanted) else "wrong" for leader in leaders]
        return (
            f"{instruction}: right is {right_name}. VLM2Vec first: {leaders[0]} ({verdict[0]}); fusion first: {leaders[1]} ({verdict[1]}). "
            f"Words by VLM2Vec {order[0]}, by fusion {order[1]}"
        )

    controls = {
        "instruction": menu("instruction", list(INSTRUCTIONS)),
        "left": slider("left digit", 3, 0, 9),
        "right": slider("right digit", 7, 0, 9),
        "first": choice("left style", list(STYLES), "plain"),
        "second": choice("right style", list(STYLES), "framed"),
        "drawing": slider("drawing", 0, 0, DRAWINGS - 1),
    }
    start = {name: control.value for name, control in controls.items()}
    return Explorer(
        draw,
        controls,
        title="The picture stays, the instruction changes: words, texts, crops, images",
        figsize=(10.0, 6.0),
        seed=ENCODERS.settings.seed,
        presets={
            "the other digit": {**start, "instruction": "what digit is on the right"},
            "a text": {**start, "instruction": "describe the image"},
            "a crop": {**start, "instruction": "crop the framed digit"},
            "another image": {**start, "instruction": "invert the left"},
            "never trained on": {**start, "instruction": "swap the digits"},
        },
    )


def words_order(name: str, query: Tensor) -> str:
    """The ten words as digits, best first."""
    return " ".join(map(str, (vectors(name)[0][:10] @ query).argsort(descending=True).tolist()))


def _thumbnail(axes: Axes, pixels: np.ndarray) -> None:
    axes.imshow(pixels, cmap="gray_r", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    _frame(axes)


def _frame(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(True)
        side.set_color(LIGHT)
