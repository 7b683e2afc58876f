"""Handwritten digits that need no download: scikit-learn's 1,797 images of 8 x 8 pixels, split by image.

Everything that shows a digit (patches, scenes, moving digits, captions, transforms) draws from these, so that no test picture is made of an image
that was seen in training::

    train, test = split_digits(generator=stream(seed, "digits"))     1,200 and 597 images
"""

from dataclasses import dataclass
from functools import cache

import torch
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from torch import Tensor

SIZE = 8  # pixels a side
TRAIN = 1200  # images in training


@dataclass(frozen=True)
class Digits:
    """Images of digits.

    Attributes:
        images: (n, 8, 8) float32 ink from 0 to 1.
        labels: (n,) int64, 0 to 9.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> "Digits":
        """The images of ``rows``, an index or a mask."""
        return Digits(self.images[rows], self.labels[rows])


@cache
def digits() -> Digits:
    """All 1,797 images, in scikit-learn's order."""
    found = load_digits()
    return Digits(torch.tensor(found.images, dtype=torch.float32) / 16, torch.tensor(found.target, dtype=torch.int64))


def split_digits(*, generator: torch.Generator, train: int = TRAIN) -> tuple[Digits, Digits]:
    """Disjoint images for training and test.

    Args:
        generator: decides the split.
        train: images in training, 1 to 1,796; the others are for the test.
    """
    everything = digits()
    if not 1 <= train < len(everything):
        raise ValueError(f"train must be between 1 and {len(everything) - 1} images, got {train}")
    order = torch.randperm(len(everything), generator=generator)
    return everything.take(order[:train]), everything.take(order[train:])


TRANSFORMS = ("rotate 90", "rotate 270", "invert", "flip left-right", "flip top-bottom", "shift", "shuffle", "difference")
HALF_SHUFFLES = tuple(f"half shuffle {number}" for number in range(1, 13))
_PERMUTATIONS = 20_240_507  # seed of the fixed pixel permutations: they are part of what the tasks are, not of a run


def transformed(images: Tensor, transform: str) -> Tensor:
    """The same images seen otherwise: each fixed transform makes a task of its own, with the same labels.

    Args:
        images: (n, height, width) ink from 0 to 1, square.
        transform: one of :data:`TRANSFORMS` (rotations counter-clockwise; ``shift`` moves by 3/8 of the side, around the edge; ``shuffle`` is a fixed
            permutation of all pixels; ``difference`` is each pixel minus its left neighbour, from -1 to 1) or of :data:`HALF_SHUFFLES` (a fixed
            permutation of a fixed random half of the pixels).

    Returns:
        (n, height, width).

    Raises:
        ValueError: the images are not square or there is no such transform.
    """
    if images.dim() != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images must be (n, side, side), got {tuple(images.shape)}")
    side = images.shape[1]
    if transform in ("rotate 90", "rotate 270"):
        return images.rot90(int(transform.split()[1]) // 90, (1, 2))
    if transform == "invert":
        return 1 - images
    if transform in ("flip left-right", "flip top-bottom"):
        return images.flip(2 if transform == "flip left-right" else 1)
    if transform == "shift":
        return images.roll((3 * side // 8, 3 * side // 8), (1, 2))
    if transform == "difference":
        return images - torch.nn.functional.pad(images, (1, 0))[:, :, :-1]
    if transform == "shuffle" or transform in HALF_SHUFFLES:
        return images.flatten(1)[:, _permutation(side, transform)].view_as(images)
    raise ValueError(f"there is no transform {transform!r}; there are {', '.join((*TRANSFORMS, *HALF_SHUFFLES))}")


@cache
def _permutation(side: int, transform: str) -> Tensor:
    number = 0 if transform == "shuffle" else int(transform.split()[-1])
    draws = torch.Generator().manual_seed(_PERMUTATIONS + number)
    order = torch.arange(side * side)
    chosen = torch.randperm(side * side, generator=draws)[: side * side if transform == "shuffle" else side * side // 2]
    order[chosen] = chosen[torch.randperm(len(chosen), generator=draws)]
    return order


def patches(images: Tensor, size: int) -> Tensor:
    """Cut images into square patches, row by row.

    Args:
        images: (..., height, width).
        size: pixels a side of a patch; it divides height and width.

    Returns:
        (..., patches, size * size).

    Raises:
        ValueError: ``size`` does not divide the images.
    """
    height, width = images.shape[-2:]
    if size < 1 or height % size or width % size:
        raise ValueError(f"patches of {size} x {size} do not tile an image of {height} x {width}")
    tiles = images.reshape(*images.shape[:-2], height // size, size, width // size, size)  # (..., rows, size, columns, size)
    return tiles.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Images (..., height, width) turned about their centre, counter-clockwise as they are shown; bilinear, with 0 from outside."""
    turned = rotate(images.numpy(), degrees, axes=(-2, -1), reshape=False, order=1)
    return torch.from_numpy(turned)


def digit_patches(source: Digits, batch: int, *, count: int, size: int = 4, generator: torch.Generator) -> Tensor:
    """Inputs that never run out: each is ``count`` patches, each from another randomly drawn image and place.

    Returns:
        (batch, count, size * size) ink from 0 to 1.
    """
    tiles = patches(source.images, size)  # (n, places, size * size)
    drawn = torch.randint(tiles.shape[0] * tiles.shape[1], (batch, count), generator=generator)
    return tiles.flatten(0, 1)[drawn]


NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MOTIONS = ("still", "left", "right", "up", "down")
CANVAS, FRAMES = 12, 4  # pixels a side and frames of a clip
IMAGE_CAPTIONS = ("a {}", "the digit {}", "a handwritten {}", "this is a {}", "someone wrote the number {}", "a picture of a {}")
CLIP_CAPTIONS = ("a {} {}", "the digit {} {}", "a handwritten {} that {}", "in this clip a {} {}", "watch the number {} : it {}", "a {} which {}")
_MOVES = {
    "still": ("stays still", "does not move", "rests"),
    **{way: (f"moves {way}", f"goes {way}", f"slides {way}") for way in MOTIONS[1:]},
}
_STEP = torch.tensor([(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)])  # rows down, columns right, each frame


@dataclass(frozen=True)
class Clips:
    """Short films of a digit that moves one pixel a frame, or rests.

    Attributes:
        frames: (n, 4, 12, 12) float32 ink from 0 to 1.
        labels: (n,) the digit.
        motions: (n,) index into :data:`MOTIONS`.
    """

    frames: Tensor
    labels: Tensor
    motions: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def moving_digits(source: Digits, *, generator: torch.Generator) -> Clips:
    """Let each image move in a drawn direction from a drawn place, such that all of it stays on the canvas.

    Args:
        source: n images.
        generator: of motions and places.
    """
    count, room = len(source), CANVAS - SIZE
    motions = torch.randint(len(MOTIONS), (count,), generator=generator)
    travel = _STEP[motions] * (FRAMES - 1)  # (n, 2)
    low, high = (-travel).clamp(min=0), room - travel.clamp(min=0)
    start = low + (torch.rand(count, 2, generator=generator) * (high - low + 1)).long()
    corner = start[:, None] + _STEP[motions][:, None] * torch.arange(FRAMES)[:, None]  # (n, frames, 2): of the digit's upper left pixel
    place = torch.arange(CANVAS)
    row, column = (place - corner[..., axis, None] for axis in (0, 1))  # (n, frames, 12): which pixel of the digit is there
    inside = ((row >= 0) & (row < SIZE))[..., :, None] & ((column >= 0) & (column < SIZE))[..., None, :]
    pixel = row.clamp(0, SIZE - 1)[..., :, None] * SIZE + column.clamp(0, SIZE - 1)[..., None, :]
    frames = source.images.flatten(1)[:, None].expand(-1, FRAMES, -1).gather(2, pixel.flatten(2)).view(count, FRAMES, CANVAS, CANVAS)
    return Clips(frames * inside, source.labels, motions)


def image_captions(labels: Tensor, *, generator: torch.Generator) -> list[str]:
    """A sentence for each digit, from one of six templates: "someone wrote the number seven"."""
    drawn = torch.randint(len(IMAGE_CAPTIONS), (len(labels),), generator=generator).tolist()
    return [_article(IMAGE_CAPTIONS[template].format(NAMES[label])) for template, label in zip(drawn, labels.tolist(), strict=True)]


def clip_captions(labels: Tensor, motions: Tensor, *, generator: torch.Generator) -> list[str]:
    """A sentence for each clip: "a handwritten seven that slides left"."""
    drawn = torch.randint(len(CLIP_CAPTIONS), (len(labels),), generator=generator).tolist()
    verbs = torch.randint(len(_MOVES["still"]), (len(labels),), generator=generator).tolist()
    rows = zip(drawn, verbs, labels.tolist(), motions.tolist(), strict=True)
    return [_article(CLIP_CAPTIONS[template].format(NAMES[label], _MOVES[MOTIONS[motion]][verb])) for template, verb, label, motion in rows]


def _article(sentence: str) -> str:
    return sentence.replace("a eight", "an eight")
