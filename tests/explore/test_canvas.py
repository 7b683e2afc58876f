"""What explorers remember between redraws: the pictures of words and the places of axes."""

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mtlearn.explore import suite_style
from mtlearn.explore.canvas import Canvas, Layout, Words


def picture(figure: Figure, canvas: type[Any] = Canvas) -> np.ndarray:
    with suite_style():
        drawn = canvas(figure)
        drawn.draw()
        return np.asarray(drawn.buffer_rgba()).copy()


def plain(figure: Figure) -> np.ndarray:
    buffer = io.BytesIO()
    with suite_style():
        figure.savefig(buffer, format="png", dpi=figure.dpi)
    return np.asarray(Image.open(buffer).convert("RGBA"))


@pytest.mark.parametrize(
    "words", [{"s": "Agpqy, 17"}, {"s": "two\nlines"}, {"s": "up", "rotation": 90}, {"s": "askew", "rotation": 33}, {"s": r"$\lambda^2$"}]
)
@pytest.mark.parametrize("paint", [{"color": "#0072B2"}, {"color": "k", "alpha": 0.4}, {"color": (1, 0, 0, 0.5)}])
@pytest.mark.parametrize("place", [{"ha": "left", "va": "bottom"}, {"ha": "right", "va": "top"}, {"ha": "center", "va": "center"}])
def test_words_are_drawn_where_and_as_matplotlib_draws_them(words: dict[str, Any], paint: dict[str, Any], place: dict[str, Any]) -> None:
    figure = Figure(figsize=(2, 2), dpi=100)
    figure.text(0.5, 0.5, fontsize=14, **words, **paint, **place)
    expected, first, again = plain(figure), picture(figure), picture(figure)
    np.testing.assert_array_equal(first, again)
    inked = [np.argwhere((image[..., :3] < 250).any(-1)) for image in (expected, first)]
    # at whole pixels: edges move by one at most, and the ink stays the same
    assert np.abs(inked[0].min(0) - inked[1].min(0)).max() <= 1
    assert np.abs(inked[0].max(0) - inked[1].max(0)).max() <= 1
    ink = [(255 - image[..., :3].astype(float)).sum((0, 1)) for image in (expected, first)]
    np.testing.assert_allclose(ink[1], ink[0], rtol=0.03, atol=300)


def test_a_word_is_clipped_and_blank_ones_leave_no_ink() -> None:
    figure = Figure(figsize=(2, 2), dpi=100)
    axes = figure.add_axes((0.25, 0.25, 0.5, 0.5))
    axes.axis("off")
    axes.text(0.9, 0.5, "far too long to fit", clip_on=True, fontsize=14)
    axes.text(0.1, 0.1, "   ")
    ink = np.argwhere((picture(figure)[..., :3] < 250).any(-1))
    assert ink[:, 1].min() > 50 and ink[:, 1].max() <= 150


def arranged(figure: Figure, *, label: str = "value", high: float = 1.0, title: str = "a title", columns: int = 2) -> None:
    figure.clear()
    for axes in np.atleast_1d(figure.subplots(1, columns)):
        axes.plot([0, high], [0, high])
        axes.set(ylabel=label, title=title, ylim=(0, high))


CHANGES = [{"high": 1e6}, {"label": ""}, {"label": "two\nlines"}, {"title": ""}, {"title": "two\nlines"}, {"columns": 3}]


@pytest.mark.parametrize("change", CHANGES)
def test_axes_stand_where_constrained_layout_puts_them(change: dict[str, Any]) -> None:
    """Whatever was drawn before: what changes the room that is needed is measured again."""
    remembering, fresh = Figure(figsize=(6, 3), layout=Layout()), Figure(figsize=(6, 3), layout="constrained")
    for state in ({}, change, {}, change):
        arranged(remembering, **state)
        arranged(fresh, **state)
        picture(remembering)
        picture(fresh)
        for ours, theirs in zip(remembering.axes, fresh.axes, strict=True):
            np.testing.assert_allclose(ours.get_position().bounds, theirs.get_position().bounds, atol=0.004)


def test_the_same_arrangement_is_laid_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    figure, calls = Figure(layout=Layout()), []
    base = Layout.__mro__[1].execute
    monkeypatch.setattr(Layout.__mro__[1], "execute", lambda self, fig: calls.append(1) or base(self, fig))
    for high in (1.0, 1.0, 1e6, 1.0, 1e6):
        arranged(figure, high=high)
        picture(figure)
    assert len(calls) == 2  # 1e6 has an offset above its axis


@pytest.mark.parametrize("canvas", [Canvas, FigureCanvasAgg])
def test_many_words_are_centred_as_single_ones_are(canvas: type[Any]) -> None:
    pictures = []
    for many in (True, False):
        figure = Figure(figsize=(3, 2), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        axes.set(xlim=(0, 3), ylim=(0, 2))
        places, words, colours = [(0.5, 0.5), (1.5, 1.5), (2.5, 1.0)], ["7", "12", "305"], ["k", "#0072B2", "red"]
        if many:
            axes.add_artist(Words(places, words, colours, size=14))
        else:
            for place, word, colour in zip(places, words, colours, strict=True):
                axes.text(*place, word, color=colour, fontsize=14, ha="center", va="center_baseline")
        pictures.append(picture(figure, canvas))
    inked = [np.argwhere((image[..., :3] < 250).any(-1)) for image in pictures]
    assert np.abs(inked[0].min(0) - inked[1].min(0)).max() <= 2 and np.abs(inked[0].max(0) - inked[1].max(0)).max() <= 2
    ink = [(255 - image[..., :3].astype(float)).sum((0, 1)) for image in pictures]
    np.testing.assert_allclose(ink[0], ink[1], rtol=0.05)


def test_words_places_and_colours_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="as many places, words and colours are needed, got 1, 2 and 1"):
        Words([(0, 0)], ["a", "b"], ["k"], size=10)
