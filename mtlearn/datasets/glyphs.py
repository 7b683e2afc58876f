"""Letters and words drawn with the fonts that come with matplotlib, and small canvases made of them: nothing to download.

Three uses::

    word = draw_text("gnu", height=12, font="DejaVu Serif")                 (12, width) ink from 0 to 1
    shapes = letters("ABC", size=8)                                         (fonts, 3, 8, 8), each as large as fits
    scenes = letter_scenes(100, generator=stream(seed, "scenes"))           1 or 2 letters on a noisy canvas, and in which cell each is
    one = centred_letters(100, generator=stream(seed, "letters"))           one letter near the middle, and which it is
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FONTS = ("DejaVu Sans", "DejaVu Sans Bold", "DejaVu Sans Oblique", "DejaVu Serif", "DejaVu Serif Bold", "DejaVu Sans Mono", "STIX", "Computer Modern")
_FILES = {
    "DejaVu Sans": "DejaVuSans",
    "DejaVu Sans Bold": "DejaVuSans-Bold",
    "DejaVu Sans Oblique": "DejaVuSans-Oblique",
    "DejaVu Serif": "DejaVuSerif",
    "DejaVu Serif Bold": "DejaVuSerif-Bold",
    "DejaVu Sans Mono": "DejaVuSansMono",
    "STIX": "STIXGeneral",
    "Computer Modern": "cmr10",
}
ALPHABET = "ABCDEFGHIJ"
OVERSAMPLING = 8  # glyphs are set this many times larger, then averaged: every size is smooth, whatever the font's hinting


def draw_text(text: str, *, height: int, font: str = FONTS[0]) -> Tensor:
    """A line of text, its ink cropped left and right; letters keep their relative heights and their baseline.

    Args:
        text: without line breaks; at least one character that leaves ink.
        height: pixels from the font's highest ascender to its lowest descender.
        font: one of :data:`FONTS`.

    Returns:
        (height, width) float32 ink from 0 to 1.

    Raises:
        ValueError: an unknown font, a height below 4, or a text without ink.
    """
    return _line(text, height, font).clone()


def letters(characters: str = ALPHABET, *, size: int = 8, fonts: tuple[str, ...] = FONTS) -> Tensor:
    """Each character in each font, as large as fits a square, in its middle.

    Args:
        characters: such as "ABC".
        size: pixels a side.
        fonts: some of :data:`FONTS`.

    Returns:
        (fonts, characters, size, size) float32 ink from 0 to 1.
    """
    return torch.stack([torch.stack([_letter(character, size, font) for character in characters]) for font in fonts])


@dataclass(frozen=True)
class LetterScenes:
    """Canvases with letters, each of which lies about one cell of a coarse grid.

    Attributes:
        images: (n, size, size) ink with noise, 0 to 1.
        present: (n, cells, cells) float32, 1 in the cell that holds a letter's centre.
        offset: (n, cells, cells, 2) float32, the centre's row and column inside its cell, from 0 to 1; 0 where there is no letter.
        label: (n, cells, cells) int64, which character; -1 where there is none.
    """

    images: Tensor
    present: Tensor
    offset: Tensor
    label: Tensor


def letter_scenes(
    count: int,
    *,
    size: int = 16,
    letter: int = 8,
    cells: int = 4,
    most: int = 2,
    noise: float = 0.15,
    characters: str = ALPHABET,
    fonts: tuple[str, ...] = FONTS,
    generator: torch.Generator,
) -> LetterScenes:
    """1 to ``most`` letters at random places of a noisy canvas, none in the cell of another; where they overlap, the darker ink counts.

    Args:
        count: canvases.
        size: pixels a side of a canvas.
        letter: pixels a side of a letter.
        cells: rows and columns of the coarse grid; it divides ``size``.
        most: letters on a canvas, at least 1.
        noise: standard deviation of the noise added to every pixel, before clipping to [0, 1].
        characters: which letters.
        fonts: some of :data:`FONTS`.
        generator: of everything that is random.

    Raises:
        ValueError: a letter larger than the canvas, cells that do not divide it, or fewer cells that a centre can reach than letters.
    """
    room = size - letter + 1  # places of a letter along a side
    if not 1 <= letter <= size or cells < 1 or size % cells:
        raise ValueError(f"letters of {letter} pixels and {cells} x {cells} cells do not fit a canvas of {size} x {size}")
    wide = size // cells
    centre = torch.arange(room) + letter / 2  # of a letter that begins there, in pixels
    reachable = len(set((centre / wide).long().tolist())) ** 2
    if not 1 <= most <= reachable:
        raise ValueError(f"most must be between 1 and {reachable}, the cells that a letter's centre can lie in, got {most}")
    numbers = torch.randint(1, most + 1, (count,), generator=generator)
    # a random order of all places of the canvas; a place counts where no earlier one has its cell, so the first such ones are letters apart
    cell_of = (centre / wide).long()
    place_cell = (cell_of[:, None] * cells + cell_of[None, :]).flatten()  # (room * room,)
    order = torch.rand(count, room * room, generator=generator).argsort(1)
    rank = order.argsort(1)
    first = torch.full((count, cells * cells), room * room).scatter_reduce(1, place_cell.expand(count, -1), rank, "amin")  # best rank of each cell
    chosen = order.gather(1, first.sort(1).values[:, :most])  # (count, most) places in different cells
    row, column = chosen // room, chosen % room
    which = torch.randint(len(characters), (count, most), generator=generator)
    font = torch.randint(len(fonts), (count, most), generator=generator)
    drawn = torch.arange(most) < numbers[:, None]
    images = _pasted(letters(characters, size=letter, fonts=fonts)[font, which] * drawn[..., None, None], row, column, size).amax(1)
    images = (images + noise * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    present, offset = torch.zeros(count, cells, cells), torch.zeros(count, cells, cells, 2)
    label = torch.full((count, cells, cells), -1)
    scene, slot = drawn.nonzero(as_tuple=True)
    down, across = row[scene, slot] + letter / 2, column[scene, slot] + letter / 2
    at = (scene, (down / wide).long(), (across / wide).long())
    present[at], label[at] = 1.0, which[scene, slot]
    offset[at] = torch.stack([down / wide % 1, across / wide % 1], 1)
    return LetterScenes(images, present, offset, label)


def centred_letters(
    count: int,
    *,
    size: int = 16,
    letter: int = 8,
    jitter: int = 2,
    noise: float = 0.15,
    characters: str = ALPHABET,
    fonts: tuple[str, ...] = FONTS,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """One letter near the middle of a noisy canvas.

    Args:
        count: canvases.
        size: pixels a side of a canvas.
        letter: pixels a side of a letter.
        jitter: largest shift from the middle, in pixels, up or down and left or right.
        noise: standard deviation of the noise added to every pixel, before clipping to [0, 1].
        characters: which letters.
        fonts: some of :data:`FONTS`.
        generator: of everything that is random.

    Returns:
        images (count, size, size) in [0, 1]; labels (count,) int64.

    Raises:
        ValueError: a letter that its shift can move off the canvas.
    """
    start = (size - letter) // 2
    if letter < 1 or not 0 <= jitter <= start or start + jitter + letter > size:
        raise ValueError(f"a letter of {letter} pixels shifted by up to {jitter} leaves a canvas of {size} x {size}")
    which = torch.randint(len(characters), (count,), generator=generator)
    font = torch.randint(len(fonts), (count,), generator=generator)
    row, column = start + torch.randint(-jitter, jitter + 1, (2, count), generator=generator)
    images = _pasted(letters(characters, size=letter, fonts=fonts)[font, which][:, None], row[:, None], column[:, None], size)[:, 0]
    return (images + noise * torch.randn(images.shape, generator=generator)).clamp(0, 1), which


def _pasted(shapes: Tensor, row: Tensor, column: Tensor, size: int) -> Tensor:
    """Each shape (n, m, h, h) on an empty canvas of its own, its upper left corner at (row, column): (n, m, size, size)."""
    along = torch.arange(shapes.shape[-1])
    canvas = torch.zeros(*shapes.shape[:2], size, size)
    scene = torch.arange(shapes.shape[0])[:, None, None, None]
    slot = torch.arange(shapes.shape[1])[None, :, None, None]
    canvas[scene, slot, (row[..., None] + along)[..., None], (column[..., None] + along)[..., None, :]] = shapes
    return canvas


@cache
def _line(text: str, height: int, font: str) -> Tensor:
    if height < 4:
        raise ValueError(f"height must be at least 4 pixels, got {height}")
    tall = height * OVERSAMPLING
    ink, above = _ink(text, font, line=tall)
    page = torch.zeros(tall, -(-ink.shape[1] // OVERSAMPLING) * OVERSAMPLING)
    top = max(0, above)  # an accent higher than the ascender, or a tail below the descender, is cut
    rows = ink[top - above : top - above + tall - top]
    page[top : top + len(rows), : ink.shape[1]] = rows
    return page.unfold(0, OVERSAMPLING, OVERSAMPLING).unfold(1, OVERSAMPLING, OVERSAMPLING).mean((-2, -1))


@cache
def _letter(character: str, size: int, font: str) -> Tensor:
    if size < 3 or len(character) != 1:
        raise ValueError(f"a letter is one character of at least 3 pixels, got {character!r}, {size}")
    ink, _ = _ink(character, font, line=2 * size * OVERSAMPLING)
    ink = ink[ink.amax(1) > 0]
    scale = size / max(ink.shape)
    high, wide = (max(1, round(scale * side)) for side in ink.shape)
    found = torch.zeros(size, size)
    top, left = (size - high) // 2, (size - wide) // 2
    found[top : top + high, left : left + wide] = F.adaptive_avg_pool2d(ink[None], (high, wide))[0]
    return found


def _ink(text: str, font: str, *, line: int) -> tuple[Tensor, int]:
    """The ink of a text whose line is ``line`` pixels high, cropped left and right, and how many rows lie above it in its line."""
    from matplotlib import get_data_path  # only who draws pays for matplotlib
    from matplotlib.ft2font import FT2Font

    if font not in FONTS:
        raise ValueError(f"font must be one of {', '.join(FONTS)}, got {font!r}")
    face = FT2Font(str(Path(get_data_path()) / "fonts" / "ttf" / f"{_FILES[font]}.ttf"))
    if missing := sorted({character for character in text if not face.get_char_index(ord(character))}):
        raise ValueError(f"{font} has no glyph for {', '.join(map(repr, missing))}")
    em = line / (face.ascender - face.descender) * face.units_per_EM
    face.set_size(em, 72)
    face.set_text(text, 0.0)
    face.draw_glyphs_to_bitmap(antialiased=True)
    ink = torch.from_numpy(np.array(face.get_image(), dtype=np.float32)) / 255
    if not ink.any():
        raise ValueError(f"the text {text!r} leaves no ink")
    columns = (ink.amax(0) > 0).nonzero()[:, 0]
    baseline = round(em / face.units_per_EM * face.ascender)
    above = baseline - (len(ink) - face.get_descent() // 64)
    return ink[:, int(columns[0]) : int(columns[-1]) + 1], above
