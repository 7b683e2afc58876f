"""Why an explorer answers in the blink of an eye: what matplotlib would work out again at every redraw is remembered.

Two things take most of the time of a small figure, and rarely change while a slider moves. Words: each is set and rasterised glyph by
glyph; :class:`Canvas` keeps it as a small image. Places: constrained layout measures every label several times; :class:`Layout` measures again
only when something that takes room has changed. Many words in a grid are one artist, :class:`Words`.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.transforms import Bbox

MARGIN = 4  # pixels around a word, for what its glyphs reach beyond the box that they are said to fill


class Layout(ConstrainedLayoutEngine):
    """Constrained layout that is worked out once for each arrangement of axes, labels and ticks."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[object, list[Bbox]] = {}

    def execute(self, fig: Figure) -> Any:
        """Place the axes of ``fig``."""
        axes, key = fig.axes, _arrangement(fig)
        if key in self._known:
            for one, box in zip(axes, self._known[key], strict=True):
                one.set_position(box, which="original")
            return None
        grid = super().execute(fig)
        self._known[key] = [one.get_position(original=True) for one in axes]
        return grid


def _arrangement(figure: Figure) -> object:
    """Everything that the places of the axes depend on: two figures with an equal arrangement have one layout."""
    return tuple(figure.get_size_inches()), tuple(map(_room, figure.axes)), tuple(text.get_text() for text in figure.texts), len(figure.legends)


def _room(axes: Any) -> object:
    spec, grid = axes.get_subplotspec(), axes.get_gridspec()
    place = () if spec is None or grid is None else (*spec.get_geometry(), *grid.get_width_ratios(), *grid.get_height_ratios())
    titles = tuple((title.count("\n"), bool(title)) for title in map(axes.get_title, ("left", "center", "right")))
    return axes.axison, axes.get_label(), place, titles, axes.get_aspect(), _ticks(axes.xaxis), _ticks(axes.yaxis)


def _ticks(axis: Any) -> object:
    formatter = axis.get_major_formatter()
    words = formatter.format_ticks(axis.get_majorticklocs()) or [""]
    if axis.axis_name == "y":
        room: object = max(map(len, words))
    else:
        room = max(word.count("\n") for word in words), any(words), len(words[0]), len(words[-1])  # the outer two may reach beyond the axes
    label, sides = axis.get_label_text(), (axis.get_label_position(), axis.get_ticks_position())
    return room, bool(formatter.get_offset()), label.count("\n"), bool(label), axis.get_visible(), sides


class Canvas(FigureCanvasAgg):
    """An Agg canvas whose renderer keeps the words that it has drawn."""

    _size: tuple[float, float, float] | None = None

    def get_renderer(self) -> Any:
        """The renderer for the figure's size, made anew when that changes."""
        width, height = self.get_width_height(physical=True)
        if self._size != (width, height, self.figure.dpi):
            self._size = width, height, self.figure.dpi
            self.renderer = _renderer(*self._size)
        return self.renderer


class _Renderer(RendererAgg):
    """Draws a word that it has drawn before by copying its image."""

    def draw_text(self, gc: Any, x: float, y: float, s: str, prop: FontProperties, angle: float, ismath: Any = False, mtext: Any = None) -> None:
        """As the base class, at whole pixels."""
        if ismath:
            super().draw_text(gc, x, y, s, prop, angle, ismath, mtext)  # type: ignore[no-untyped-call]
            return
        image, left, below = _word(s, prop.copy(), angle % 360, tuple(gc.get_rgb()), self.dpi)
        if image.size:
            self.draw_image(gc, round(x) + left, int(self.height) - round(y) + below, image)


_renderer: Any = _Renderer  # matplotlib has no types here
_plain_renderer: Any = RendererAgg


@lru_cache(maxsize=4096)
def _word(s: str, prop: FontProperties, angle: float, colour: tuple[float, ...], dpi: float) -> tuple[np.ndarray, int, int]:
    """The word as RGBA rows from the bottom, and where its lower left corner lies from the start of its base line, in pixels right and up."""
    wide, high, _ = _plain_renderer(1, 1, dpi).get_text_width_height_descent(s, prop, False)
    reach = math.ceil(math.hypot(wide, high)) + MARGIN
    renderer = _plain_renderer(2 * reach, 2 * reach, dpi)
    gc = renderer.new_gc()
    gc.set_foreground(colour, isRGBA=True)
    renderer.draw_text(gc, reach, reach, s, prop, angle)
    pixels = np.asarray(renderer.buffer_rgba())
    rows, columns = np.nonzero(pixels[..., 3].any(1))[0], np.nonzero(pixels[..., 3].any(0))[0]
    if not len(rows):
        return np.zeros((0, 0, 4), np.uint8), 0, 0
    image = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1][::-1].copy()
    return image, int(columns[0]) - reach, reach - int(rows[-1]) - 1


class Words(Artist):
    """Words centred at places, as one artist: a tenth of the time of a text object each.

    Args:
        places: (n, 2) in data coordinates of the axes that it is added to.
        words: n words.
        colours: n colours.
        size: of the font, in points.
    """

    def __init__(self, places: Any, words: Sequence[str], colours: Sequence[str], *, size: float) -> None:
        super().__init__()
        self.places, self.words = np.asarray(places, dtype=float).reshape(-1, 2), tuple(words)
        self.colours, self.font = [to_rgba(colour) for colour in colours], FontProperties(size=size)
        if not len(self.places) == len(self.words) == len(self.colours):
            raise ValueError(f"as many places, words and colours are needed, got {len(self.places)}, {len(self.words)} and {len(self.colours)}")
        self.set_in_layout(False)
        self.set_zorder(3)  # where matplotlib has its own words

    def draw(self, renderer: Any) -> None:
        """Draw the words."""
        assert self.axes is not None
        gc = renderer.new_gc()
        flip = renderer.height if renderer.flipy() else 0
        for (x, y), word, colour in zip(self.axes.transData.transform(self.places), self.words, self.colours, strict=True):
            wide, high = _extent(word, self.font, renderer.dpi)
            gc.set_foreground(colour, isRGBA=True)
            renderer.draw_text(gc, x - wide / 2, abs(flip - (y - high / 2)), word, self.font, 0)
        gc.restore()


@lru_cache(maxsize=4096)
def _extent(word: str, font: FontProperties, dpi: float) -> tuple[float, float]:
    """Width of the word and height of a digit, in pixels."""
    measure = _plain_renderer(1, 1, dpi).get_text_width_height_descent
    return measure(word, font, False)[0], measure("0", font, False)[1]
