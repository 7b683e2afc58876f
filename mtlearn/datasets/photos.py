"""Crops of two real photographs that need no download: scikit-learn's china.jpg and flower.jpg, each 427 x 640 pixels in colour.

The left half of each photo is for training, the right half for the test, so no pixel is in both. A crop takes every ``step``-th pixel, so that small
crops still show something; segments say which of a few colours a pixel has once the photo is blurred::

    images = photo_crops("train", 100, size=16, step=4, generator=stream(seed, "crops"))                 (100, 3, 16, 16)
    images, labels = photo_segments("test", 100, size=16, step=4, generator=stream(seed, "segments"))    and (100, 16, 16), 0 to 3
"""

from functools import cache
from typing import Literal

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_image
from torch import Tensor

PHOTOS = ("china.jpg", "flower.jpg")
Part = Literal["train", "test"]


@cache
def photo_half(name: str, part: Part) -> Tensor:
    """One half of a photo: (3, 427, 320) float32 from 0 to 1.

    Raises:
        ValueError: an unknown photo or part.
    """
    if name not in PHOTOS or part not in ("train", "test"):
        raise ValueError(f"photo must be one of {PHOTOS} and part 'train' or 'test', got {name!r}, {part!r}")
    whole = torch.from_numpy(np.array(load_sample_image(name), dtype=np.float32)).permute(2, 0, 1) / 255  # (3, height, width)
    middle = whole.shape[2] // 2
    return (whole[..., :middle] if part == "train" else whole[..., middle:]).contiguous()


@cache
def colour_centres(colours: int, blur: float) -> Tensor:
    """The ``colours`` means that k-means finds in the blurred training halves, dark ones first: (colours, 3)."""
    if colours < 1 or blur < 0:
        raise ValueError(f"colours must be at least 1 and blur at least 0, got {colours}, {blur}")
    pixels = torch.cat([_blurred(name, "train", blur)[:, ::4, ::4].flatten(1).T for name in PHOTOS]).double().numpy()  # a sixteenth of them
    centres = KMeans(colours, n_init=4, random_state=0).fit(pixels).cluster_centers_
    return torch.from_numpy(centres[np.argsort(centres.sum(1))]).float()


@cache
def colour_map(name: str, part: Part, colours: int, blur: float) -> Tensor:
    """The nearest of :func:`colour_centres` for every pixel of a blurred half: (427, 320) int64."""
    pixels = _blurred(name, part, blur).flatten(1).T
    return torch.cdist(pixels, colour_centres(colours, blur)).argmin(1).view(photo_half(name, part).shape[1:])


@cache
def _blurred(name: str, part: Part, blur: float) -> Tensor:
    """A half blurred by itself, so that nothing of the other half bleeds in."""
    return torch.from_numpy(gaussian_filter(photo_half(name, part).numpy(), (0, blur, blur)))


def photo_crops(part: Part, count: int, *, size: int, step: int = 1, generator: torch.Generator) -> Tensor:
    """Square crops at random places of both photos.

    Args:
        part: ``train`` (left halves) or ``test`` (right halves).
        count: how many; each is of either photo with equal chance.
        size: pixels a side of a crop.
        step: every which pixel is taken, so a crop covers size * step pixels of the photo.
        generator: of photos and places.

    Returns:
        (count, 3, size, size) in [0, 1].

    Raises:
        ValueError: an unknown part, or a crop that is larger than half a photo.
    """
    which, rows, columns = _places(part, count, size, step, generator)
    halves = torch.stack([photo_half(name, part) for name in PHOTOS])  # (photos, 3, height, width)
    return halves[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def photo_segments(
    part: Part, count: int, *, size: int, step: int = 1, colours: int = 4, blur: float = 1.0, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Crops with a label a pixel: the nearest of a few colours that k-means finds in the blurred training halves.

    Args:
        part: ``train`` (left halves) or ``test`` (right halves).
        count: how many.
        size: pixels a side of a crop.
        step: every which pixel is taken.
        colours: classes.
        blur: standard deviation in pixels of the crop (so blur * step pixels of the photo).
        generator: of photos and places; in the same state it gives the crops of :func:`photo_crops`.

    Returns:
        images (count, 3, size, size) in [0, 1]; labels (count, size, size) int64, the darkest colour first.
    """
    which, rows, columns = _places(part, count, size, step, generator)
    index = (which[:, None, None], rows[:, :, None], columns[:, None, :])
    halves = torch.stack([photo_half(name, part) for name in PHOTOS])
    maps = torch.stack([colour_map(name, part, colours, blur * step) for name in PHOTOS])
    return halves.permute(0, 2, 3, 1)[index].permute(0, 3, 1, 2).contiguous(), maps[index]


def _places(part: Part, count: int, size: int, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Which photo (count,), and the rows and columns (count, size) of its pixels."""
    height, width = photo_half(PHOTOS[0], part).shape[1:]
    reach = (size - 1) * step + 1
    if size < 1 or step < 1 or reach > min(height, width):
        raise ValueError(f"a crop of {size} pixels at every {step} covers {reach} pixels; half a photo has {height} x {width}")
    which = torch.randint(len(PHOTOS), (count,), generator=generator)
    top = torch.randint(height - reach + 1, (count, 1), generator=generator)
    left = torch.randint(width - reach + 1, (count, 1), generator=generator)
    along = torch.arange(size) * step
    return which, top + along, left + along
