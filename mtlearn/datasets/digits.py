"""Handwritten digits that need no download: scikit-learn's 1,797 images of 8 x 8 pixels, split by image.

Everything that shows a digit (patches, scenes, moving digits, captions) draws from these, so that no test picture is made of an image that was seen in
training::

    train, test = split_digits(generator=stream(seed, "digits"))     1,200 and 597 images
"""

from dataclasses import dataclass
from functools import cache

import torch
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
    tiles = images.unflatten(-1, (width // size, size)).unflatten(-3, (height // size, size))  # (..., rows, size, columns, size)
    return tiles.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def digit_patches(source: Digits, batch: int, *, count: int, size: int = 4, generator: torch.Generator) -> Tensor:
    """Inputs that never run out: each is ``count`` patches, each from another randomly drawn image and place.

    Returns:
        (batch, count, size * size) ink from 0 to 1.
    """
    tiles = patches(source.images, size)  # (n, places, size * size)
    drawn = torch.randint(tiles.shape[0] * tiles.shape[1], (batch, count), generator=generator)
    return tiles.flatten(0, 1)[drawn]
