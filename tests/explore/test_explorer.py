"""What explorers share, driven as a person would: controls, presets, mouse and keyboard, and what the picture then shows."""

import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import traitlets
from matplotlib.figure import Figure
from PIL import Image

from mtlearn.explore import Explorer, PointerEvent, choice, entry, menu, slider, suite_style, switch
from mtlearn.explore.style import CYCLE, RC


class Dots:
    """An explorer's state and drawing: ``n`` dots, and those that were put there by hand. Counts how often it is drawn."""

    def __init__(self) -> None:
        self.drawings = 0
        self.events: list[PointerEvent] = []
        self.put: list[tuple[float, float]] = []

    def draw(self, figure: Figure, n: int, shape: str, grid: bool) -> str:
        self.drawings += 1
        left, right = figure.subplots(1, 2)
        left.plot(range(n), range(n), shape, color=CYCLE[0])
        left.set(xlim=(0, 10), ylim=(0, 5), xticks=(0, 10), yticks=(0, 5))  # few ticks, because their layout takes most of the time
        left.grid(grid)
        right.set_xscale("log")
        right.set(xlim=(1, 100), ylim=(-1, 1), xticks=(), yticks=())
        right.minorticks_off()
        for x, y in self.put:
            right.plot([x], [y], "k^", markersize=15)
        return f"{n} dots, {len(self.put)} by hand"

    def on_pointer(self, event: PointerEvent) -> None:
        self.events.append(event)
        if event.kind == "press" and event.axes == 1:
            self.put.append((event.x, event.y))

    def explorer(self, **more: Any) -> Explorer:
        controls = {"n": slider("dots", 5, 3, 20), "shape": choice("shape", ("o", "s")), "grid": switch("grid")}
        return Explorer(self.draw, controls, **{"seed": 3, "on_pointer": self.on_pointer, "presets": {"many": {"n": 20, "shape": "s"}}, **more})


@pytest.fixture
def dots() -> Dots:
    return Dots()


@pytest.fixture
def shown(dots: Dots) -> Explorer:
    return dots.explorer()


def pixels(explorer: Explorer) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(explorer.png)))


def test_the_first_picture(shown: Explorer, dots: Dots):
    image = Image.open(io.BytesIO(shown.png))
    assert image.format == "PNG" and image.size == (900, 450) and image.mode == "RGB"
    assert len(np.unique(pixels(shown).reshape(-1, 3), axis=0)) > 5
    assert dots.drawings == 1 and shown.picture.drawn == 1
    assert shown.values == {"n": 5, "shape": "o", "grid": False}


def test_the_size_is_the_explorers(dots: Dots):
    assert Image.open(io.BytesIO(dots.explorer(figsize=(3.0, 2.0)).png)).size == (300, 200)


@pytest.mark.parametrize(("name", "value"), [("n", 7), ("shape", "s"), ("grid", True)])
def test_every_control_changes_the_picture_and_back(name: str, value: object, shown: Explorer):
    first = {"png": shown.png, "value": shown.values[name]}
    shown.controls[name].value = value  # what the browser does
    assert shown.values[name] == value
    moved = shown.png
    assert moved != first["png"]
    shown.set(**{name: first["value"]})
    assert shown.png == first["png"]
    shown.set(**{name: value})
    assert shown.png == moved


def test_the_picture_is_drawn_once_however_many_controls_move(shown: Explorer, dots: Dots):
    shown.set(n=9, shape="s", grid=True)
    assert dots.drawings == shown.picture.drawn == 2
    assert shown.values == {"n": 9, "shape": "s", "grid": True}
    shown.preset("many")
    assert dots.drawings == 3
    shown.controls["n"].value = 20  # where it is
    assert dots.drawings == 3


def test_the_picture_changes_in_one_message(shown: Explorer):
    seen = []
    shown.picture.observe(lambda change: seen.append(change["name"]))
    messages: list[dict] = []
    shown.picture.send_state = lambda key=None: messages.append(
        {name: getattr(shown.picture, name) for name in ([key] if isinstance(key, str) else key)}
    )
    shown.set(n=8)
    assert set(seen) == {"png", "alt", "drawn"}
    whole = [message for message in messages if "png" in message]
    assert len(whole) == 1 and whole[0]["alt"] == "8 dots, 0 by hand" and whole[0]["drawn"] == 2


def test_presets_and_reset(dots: Dots):
    resets: list[int] = []
    shown = dots.explorer(on_reset=lambda: resets.append(1))
    first = shown.png
    shown.preset("many")
    assert shown.values == {"n": 20, "shape": "s", "grid": False} and shown.png != first and resets == []
    shown.set(grid=True)
    shown.preset("reset")
    assert shown.png == first and resets == [1]
    with pytest.raises(KeyError, match="no preset 'few'; there are many, reset"):
        shown.preset("few")


def test_presets_are_buttons(shown: Explorer, dots: Dots):
    buttons = {button.description: button for box in shown.widget.children for button in getattr(box, "children", ()) if hasattr(button, "click")}
    assert list(buttons) == ["many", "reset"]
    first = shown.png
    buttons["many"].click()
    assert shown.values["n"] == 20 and shown.png != first
    buttons["reset"].click()
    assert shown.png == first and dots.drawings == 3


def test_reset_may_move_controls_itself(dots: Dots):
    shown = dots.explorer(on_reset=lambda: shown.set(n=9))
    shown.preset("reset")
    assert shown.values["n"] == 5 and dots.drawings == 2


def test_unknown_control_moves_nothing(shown: Explorer, dots: Dots):
    first = shown.png
    with pytest.raises(KeyError, match="no control 'm'; there are n, shape, grid"):
        shown.set(n=9, m=1)
    assert shown.png == first and shown.values["n"] == 5 and dots.drawings == 1


def test_values_out_of_range(shown: Explorer, dots: Dots):
    shown.set(n=100)
    assert shown.values["n"] == 20
    with pytest.raises(traitlets.TraitError):
        shown.set(n=4, shape="x")
    assert shown.values == {"n": 4, "shape": "o", "grid": False}
    assert shown.text == "4 dots, 0 by hand", "what moved is shown"


def test_the_seed_is_on_the_figure(dots: Dots):
    with_seed, without = dots.explorer(), dots.explorer(seed=None)
    assert [text.get_text() for text in with_seed.figure.texts] == ["seed 3"]
    assert [text.get_text() for text in without.figure.texts] == []
    different = np.argwhere((pixels(with_seed) != pixels(without)).any(-1))
    assert len(different) > 0 and (different > (400, 800)).all(), "in the lower right corner alone"
    with_seed.set(n=4)
    assert [text.get_text() for text in with_seed.figure.texts] == ["seed 3"]


def test_the_text_for_those_who_do_not_see_it(shown: Explorer):
    assert shown.text == shown.picture.alt == "5 dots, 0 by hand"
    shown.set(n=6)
    assert shown.text == shown.picture.alt == "6 dots, 0 by hand"


def test_a_drawing_need_not_say_anything():
    shown = Explorer(lambda figure, n: None, {"n": slider("n", 1, 0, 2)})
    assert shown.text == "" == shown.picture.alt


def test_a_drawing_that_fails_says_so(dots: Dots):
    def draw(figure: Figure, n: int) -> str:
        if n == 7:
            raise ValueError("seven")
        return ""

    shown = Explorer(draw, {"n": slider("n", 1, 0, 9)})
    with pytest.raises(ValueError, match="seven"):
        shown.set(n=7)
    shown.set(n=6)
    assert shown.picture.drawn == 2


# --- mouse and keyboard


def test_pointing_by_data_coordinates(shown: Explorer, dots: Dots):
    first = shown.png
    shown.point("press", 10.0, 0.5, axes=1)
    shown.point("drag", 20.0, -0.5, axes=1, key="Shift")
    shown.point("release", 20.0, -0.5, axes=1)
    shown.point("key", 1.0, 2.0, key="ArrowLeft")
    assert dots.events == [
        PointerEvent("press", 1, 10.0, 0.5),
        PointerEvent("drag", 1, 20.0, -0.5, "Shift"),
        PointerEvent("release", 1, 20.0, -0.5),
        PointerEvent("key", 0, 1.0, 2.0, "ArrowLeft"),
    ]
    assert dots.drawings == 5 and shown.png != first and shown.text == "5 dots, 1 by hand"


def send(explorer: Explorer, kind: str, across: float, up: float, **more: object) -> None:
    """What the browser sends: figure fractions from the lower left."""
    explorer.picture._handle_custom_msg({"kind": kind, "at": [across, up], **more}, [])


def fractions(explorer: Explorer, axes: int, x: float, y: float) -> tuple[float, float]:
    width, height = explorer.figure.canvas.get_width_height()
    across, up = explorer.figure.axes[axes].transData.transform((x, y))
    return float(across / width), float(up / height)


@pytest.mark.parametrize(("axes", "x", "y"), [(0, 2.0, 1.0), (0, 9.5, 4.5), (1, 10.0, 0.0), (1, 1.5, -0.9)])
def test_the_mouse_reaches_the_axes_under_it(axes: int, x: float, y: float, shown: Explorer, dots: Dots):
    send(shown, "press", *fractions(shown, axes, x, y), key="Shift")
    (event,) = dots.events
    assert (event.kind, event.axes, event.key) == ("press", axes, "Shift")
    assert (event.x, event.y) == (pytest.approx(x), pytest.approx(y))
    assert dots.drawings == 2


def test_outside_all_axes(shown: Explorer, dots: Dots):
    send(shown, "drag", 0.001, 0.999)
    assert dots.events == [PointerEvent("drag", -1, 0.001, 0.999)]


def test_a_press_is_seen_where_it_was(shown: Explorer):
    across, up = fractions(shown, 1, 10.0, 0.5)
    before = pixels(shown)
    send(shown, "press", across, up)
    changed = np.argwhere((pixels(shown) != before).any(-1))
    row, column = changed.mean(0)
    assert column == pytest.approx(across * 900, abs=5) and row == pytest.approx((1 - up) * 450, abs=5)
    assert shown.picture.alt == "5 dots, 1 by hand"


def test_keys_come_through(shown: Explorer, dots: Dots):
    send(shown, "key", *fractions(shown, 0, 1.0, 1.0), key="Shift+ArrowUp")
    assert (dots.events[0].kind, dots.events[0].key) == ("key", "Shift+ArrowUp")


def test_a_handler_that_moves_controls_draws_once(dots: Dots):
    shown = dots.explorer(on_pointer=lambda event: (shown.set(n=7), setattr(shown.controls["grid"], "value", True), shown.preset("many")))
    shown.point("press", 1.0, 1.0)
    assert dots.drawings == 2 and shown.values == {"n": 20, "shape": "s", "grid": True}


def test_a_handler_that_fails_leaves_the_explorer_alive(dots: Dots):
    def fails(event: PointerEvent) -> None:
        shown.set(n=8)
        raise ValueError("no such point")

    shown = dots.explorer(on_pointer=fails)
    with pytest.raises(ValueError, match="no such point"):
        shown.point("press", 1.0, 1.0)
    assert shown.text == "8 dots, 0 by hand"
    shown.controls["n"].value = 9
    assert shown.text == "9 dots, 0 by hand"


def test_without_a_handler(dots: Dots):
    shown = dots.explorer(on_pointer=None)
    assert not shown.picture.interactive
    with pytest.raises(ValueError, match="this explorer takes no mouse: give on_pointer"):
        shown.point("press", 1.0, 1.0)
    send(shown, "press", 0.5, 0.5)
    assert dots.drawings == 1
    assert dots.explorer().picture.interactive


# --- in a notebook


def test_what_a_notebook_shows(dots: Dots):
    note = entry("note", "hello")
    shown = dots.explorer(title="Dots", extra=(note,))
    kinds = [type(child).__name__ for child in shown.widget.children]
    assert kinds == ["HTML", "Box", "Box", "Text", "Picture"]
    assert shown.widget.children[0].value == "<b>Dots</b>" and shown.widget.children[1].children == tuple(shown.controls.values())
    bundle = shown._repr_mimebundle_()
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == shown.widget.model_id


@pytest.mark.parametrize(
    ("control", "kind", "value", "moved"),
    [
        (lambda: slider("n", 5, 0, 10), "IntSlider", 5, 6),
        (lambda: slider("n", 5, 0, 10, 5), "IntSlider", 5, 10),
        (lambda: slider("t", 0.5, 0, 1), "FloatSlider", 0.5, 0.25),
        (lambda: slider("t", 1.0, 0.1, 5.0, 0.1), "FloatSlider", 1.0, 0.3),
        (lambda: choice("c", ("a", "b")), "ToggleButtons", "a", "b"),
        (lambda: choice("c", ("a", "b"), "b"), "ToggleButtons", "b", "a"),
        (lambda: menu("m", ("a", "b")), "Dropdown", "a", "b"),
        (lambda: menu("m", (0, 1), 1), "Dropdown", 1, 0),
        (lambda: switch("s"), "Checkbox", False, True),
        (lambda: switch("s", True), "Checkbox", True, False),
        (lambda: entry("e", "text"), "Text", "text", "other"),
    ],
)
def test_controls(control: Callable[[], Any], kind: str, value: object, moved: object):
    made = control()
    assert type(made).__name__ == kind and made.value == value
    made.value = moved
    assert made.value == moved


def test_a_slider_of_reals_has_steps():
    assert slider("t", 0.5, 0, 1).step == pytest.approx(0.02)
    assert slider("n", 5, 0, 10).step == 1


def test_labels_are_whole():
    assert all(
        made.style.description_width == "initial" for made in (slider("long label", 1, 0, 2), choice("long label", "ab"), menu("long label", "ab"))
    )


# --- style


def test_style_is_the_suites_inside_and_nobodys_outside():
    before = mpl.rcParams["axes.spines.top"]
    with suite_style():
        assert {name: mpl.rcParams[name] for name in RC} == RC
    assert mpl.rcParams["axes.spines.top"] == before


def test_colours_differ_for_eyes_that_lack_a_cone():
    """Distances in the colours that deuteranopes and protanopes see (the matrices of Machado et al. 2009, severity 1, on linear light)."""
    seen = {
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    }
    colours = np.array([[int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)] for colour in CYCLE])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    assert len(set(CYCLE)) == len(CYCLE)
    for matrix in seen.values():
        light = np.clip(linear @ np.array(matrix).T, 0, 1)
        shown = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
        distance = np.linalg.norm(shown[:, None] - shown[None], axis=-1)
        assert distance[~np.eye(len(CYCLE), dtype=bool)].min() > 0.08
