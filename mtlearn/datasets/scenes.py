"""Scenes under four regimes: small pictures whose right labels depend on a mark elsewhere in the picture.

    scenes = sample_scenes(1500, generator=stream(seed, "train"))
    scenes.images         (1500, 1, 16, 16)  a bright square, a dark disc, a 3 x 3 mark in the top rows, noise
    scenes.segmentation   (1500, 16, 16)     0 background; square 1 and disc 2 in even regimes, the other way round in odd ones
    scenes.depth          (1500, 16, 16)     a shape's strength a in the regimes 0 and 1, 1.4 - a in 2 and 3; 0 elsewhere
    scenes.boundary       (1500, 16, 16)     1 where a shape's pixel touches another label: the same in every regime

What a pixel looks like does not say what it should be called: the mark says it, and the mark is far away::

    regime                  0      1      2     3
    value of the mark      -3   -1.5    1.5     3
    the square is called    1      2      1     2
    depth of a shape        a      a   1.4 - a   1.4 - a

With ``cue="column"`` the regime is told by *where* the mark is, not by its value; with ``cue="none"`` there is no mark and every regime is 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Cue = Literal["value", "column", "none"]
MARK_VALUES = (-3.0, -1.5, 1.5, 3.0)  # by regime
REGIMES = len(MARK_VALUES)
MARK = 3  # pixels a side
HALF_SQUARE, RADIUS = 2, 2.4  # the square has 5 pixels a side
STRENGTHS = (0.4, 1.0)  # of a shape: how far it stands out from the grey around it
MIRRORED_DEPTH = 1.4  # of which the strength is taken in the regimes 2 and 3
SMALLEST = 12  # pixels a side: two shapes side by side below a mark


@dataclass(frozen=True)
class Layouts:
    """What is where in n scenes; everything in a scene but its noise follows from it.

    Attributes:
        square, disc: (n, 2) int64 row and column of the centres.
        strength: (n, 2) of the square and of the disc.
        mark: (n,) int64 column of the mark's centre.
        value: (n,) of the mark's pixels; 0 where there is none.
        regime: (n,) int64, 0 to 3.
    """

    square: Tensor
    disc: Tensor
    strength: Tensor
    mark: Tensor
    value: Tensor
    regime: Tensor


@dataclass(frozen=True)
class Scenes:
    """Pictures with a label for every pixel.

    Attributes:
        images: (n, 1, size, size) float32.
        segmentation: (n, size, size) int64, 0 to 2.
        depth: (n, size, size) float32.
        boundary: (n, size, size) float32, 0 or 1.
        regime: (n,) int64; for tests of what a model has found out, not a label to train on.
        layouts: what is where.
    """

    images: Tensor
    segmentation: Tensor
    depth: Tensor
    boundary: Tensor
    regime: Tensor
    layouts: Layouts

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Tensor) -> "Scenes":
        """The scenes of ``rows``, an index or a mask."""
        layouts = Layouts(**{field.name: getattr(self.layouts, field.name)[rows] for field in fields(Layouts)})
        return Scenes(self.images[rows], self.segmentation[rows], self.depth[rows], self.boundary[rows], self.regime[rows], layouts)


def sample_layouts(
    count: int, *, size: int = 16, cue: Cue = "value", regimes: Sequence[int] = range(REGIMES), generator: torch.Generator | None = None
) -> Layouts:
    """Draw where things are: two shapes that do not touch, below the rows of the mark.

    Args:
        count: scenes, at least 1.
        size: pixels a side, at least 12.
        cue: what tells the regime: the mark's ``value``, its ``column``, or ``none``.
        regimes: those to draw from, with equal chances; a test may hold one out.
        generator: source of all draws.

    Raises:
        ValueError: a setting is out of range.
    """
    if count < 1 or size < SMALLEST:
        raise ValueError(f"count must be at least 1 and size at least {SMALLEST} pixels, got count={count}, size={size}")
    if cue not in get_args(Cue):
        raise ValueError(f"cue must be one of {', '.join(get_args(Cue))}, got {cue!r}")
    known = torch.tensor(list(regimes), dtype=torch.int64)
    if not known.numel() or not ((known >= 0) & (known < REGIMES)).all():
        raise ValueError(f"regimes must be some of 0 to {REGIMES - 1}, got {list(regimes)}")
    regime = known[torch.randint(len(known), (count,), generator=generator)]
    column = torch.randint(1, size - 1, (count,), generator=generator)
    value = torch.tensor(MARK_VALUES)[regime]
    if cue == "column":  # the columns 1 to size - 2 in four parts; the value tells nothing
        part = (size - 2) // REGIMES
        column = 1 + regime * part + (column - 1) % part
        value = torch.full((count,), MARK_VALUES[-1])
    elif cue == "none":
        regime, value = torch.zeros_like(regime), torch.zeros(count)
    low, high = STRENGTHS
    strength = low + (high - low) * torch.rand(count, 2, generator=generator)
    places = _places(count, size, generator)
    while (touching := _touching(places)).any():
        places[touching] = _places(int(touching.sum()), size, generator)
    return Layouts(places[:, 0], places[:, 1], strength, column, value, regime)


def _places(count: int, size: int, generator: torch.Generator | None) -> Tensor:
    """Centres of square and disc, rows and columns: (count, 2, 2)."""
    low = torch.tensor([MARK + HALF_SQUARE, HALF_SQUARE])
    room = torch.tensor([size - MARK - 2 * HALF_SQUARE, size - 2 * HALF_SQUARE])
    return low + (torch.rand(count, 2, 2, generator=generator) * room).long()


def _touching(places: Tensor) -> Tensor:
    """Whether less than a pixel is left between the two shapes: (count,)."""
    return (places[:, 0] - places[:, 1]).abs().amax(-1) <= 2 * HALF_SQUARE + 1


def render_scenes(layouts: Layouts, *, size: int = 16, noise: float = 0.1, generator: torch.Generator | None = None) -> Scenes:
    """Paint the scenes of ``layouts``; a disc lies before a square where they overlap.

    Args:
        layouts: see :class:`Layouts`; drawn by :func:`sample_layouts`, or made by hand.
        size: pixels a side.
        noise: standard deviation of what is added to every pixel.
        generator: source of the noise.
    """
    row, column = torch.arange(size)[:, None], torch.arange(size)
    square = ((row - _pixel(layouts.square, 0)).abs() <= HALF_SQUARE) & ((column - _pixel(layouts.square, 1)).abs() <= HALF_SQUARE)
    disc = (row - _pixel(layouts.disc, 0)).square() + (column - _pixel(layouts.disc, 1)).square() <= RADIUS**2
    square = square & ~disc  # (n, size, size)
    mark = (row < MARK) & ((column - layouts.mark[:, None, None]).abs() <= MARK // 2)
    bright, dark = layouts.strength[:, :, None, None].unbind(1)
    images = square * bright - disc * dark
    images = torch.where(mark, layouts.value[:, None, None], images)
    images = images + noise * torch.randn(images.shape, generator=generator)
    odd, mirrored = (layouts.regime % 2)[:, None, None], (layouts.regime >= REGIMES // 2)[:, None, None]
    segmentation = square * (1 + odd) + disc * (2 - odd)
    strength = square * bright + disc * dark
    depth = torch.where(mirrored & (square | disc), MIRRORED_DEPTH - strength, strength)
    return Scenes(images[:, None].float(), segmentation, depth.float(), boundaries(segmentation), layouts.regime, layouts)


def _pixel(places: Tensor, axis: int) -> Tensor:
    return places[:, axis, None, None]


def boundaries(labels: Tensor) -> Tensor:
    """Pixels of a thing (a label above 0) beside a pixel, left, right, above or below, that has another label.

    Args:
        labels: (n, height, width); beyond the border a picture goes on as it ends.

    Returns:
        (n, height, width) float32, 0 or 1.
    """
    padded = F.pad(labels[:, None].float(), (1, 1, 1, 1), mode="replicate")[:, 0]
    beside = torch.stack([padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]])
    return ((beside != labels).any(0) & (labels > 0)).float()


def sample_scenes(
    count: int,
    *,
    size: int = 16,
    noise: float = 0.1,
    cue: Cue = "value",
    regimes: Sequence[int] = range(REGIMES),
    generator: torch.Generator | None = None,
) -> Scenes:
    """Draw and paint ``count`` scenes: :func:`sample_layouts`, then :func:`render_scenes`."""
    layouts = sample_layouts(count, size=size, cue=cue, regimes=regimes, generator=generator)
    return render_scenes(layouts, size=size, noise=noise, generator=generator)
