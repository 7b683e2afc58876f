"""NYUD-v2 in the folders in which multi-task papers pass it on: a picture of a room with segmentation, depth, normals and boundaries.

    rooms = read_rooms("train", count=2)      the first two of 795; "val" has 654

The files come from the authors of multi-task benchmarks as one archive that has moved several times, so nothing here downloads it: unpack it as
``<MTLEARN_DATA>/nyud`` (or into the user's cache), with ``gt_sets/train.txt``, ``images/*.png``, ``segmentation/*.png`` (0 unlabelled, 1 to 40),
``depth/*.npy`` in metres, ``normals/*.png`` (0 to 255 for -1 to 1) and ``edge/*.png``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mtlearn.datasets.benchmarks import MissingFileError, unpacked

CLASSES, IGNORED = 40, 255
MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which the backbones of the papers were trained with
FOLDERS = ("images", "segmentation", "depth", "normals", "edge")


@dataclass(frozen=True)
class Rooms:
    """Pictures of rooms with dense labels.

    Attributes:
        images: (n, 3, height, width), standardised as ImageNet's.
        segmentation: (n, height, width) int64, 0 to 39, 255 where nothing is labelled.
        depth: (n, height, width) in metres, 0 where it was not measured.
        normals: (n, 3, height, width) of length 1, or 0 where there is none.
        boundary: (n, height, width) 0 to 1.
    """

    images: Tensor
    segmentation: Tensor
    depth: Tensor
    normals: Tensor
    boundary: Tensor


def folder() -> Path:
    """Where NYUD_MT was unpacked, see :func:`mtlearn.datasets.benchmarks.unpacked`. MissingFileError where it was not."""
    return unpacked("nyud", "gt_sets/train.txt")


def names(part: Literal["train", "val"]) -> list[str]:
    """The names of the pictures of a part, in the order of its list."""
    if part not in ("train", "val"):
        raise ValueError(f"part must be 'train' or 'val', got {part!r}")
    return (folder() / "gt_sets" / f"{part}.txt").read_text(encoding="utf-8").split()


def read_rooms(part: Literal["train", "val"], *, count: int | None = None, size: tuple[int, int] = (448, 576), only: Sequence[int] = ()) -> Rooms:
    """Read pictures and labels, scaled to one size.

    Args:
        part: ``train`` or ``val``.
        count: the first so many; all when omitted.
        size: height and width; labels are scaled by the nearest pixel, so that none is mixed.
        only: positions in the part's list to read instead.

    Raises:
        MissingFileError: the folder or one of its files is not there; names it.
    """
    chosen = names(part)
    chosen = [chosen[k] for k in only] if only else chosen[:count]
    if not chosen:
        raise ValueError(f"no picture to read: count must be at least 1 and {part}.txt must name some, got count={count}")
    columns = zip(*(_read(name, size) for name in chosen), strict=True)
    return Rooms(*(torch.cat(column) for column in columns))


def _read(name: str, size: tuple[int, int]) -> tuple[Tensor, ...]:
    root = folder()
    files = [root / kind / f"{name}.{'npy' if kind == 'depth' else 'png'}" for kind in FOLDERS]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise MissingFileError(f"{missing[0]} is missing: the folder {root} is not a whole NYUD_MT")
    picture, labels, depth, normals, edge = (
        np.load(file, allow_pickle=False) if file.suffix == ".npy" else np.array(Image.open(file)) for file in files
    )
    mean, sd = torch.tensor(MEAN)[:, None, None], torch.tensor(SD)[:, None, None]
    image = (_planes(picture) / 255 - mean) / sd
    named = _planes(labels) - 1
    named[named < 0] = IGNORED
    direction = F.normalize(2 * _planes(normals) / 255 - 1, dim=1) * (_planes(normals).sum(1, keepdim=True) > 0)
    scaled = [F.interpolate(plane, size, mode="nearest") for plane in (named, _planes(depth), direction, _planes(edge) / 255)]
    return (
        F.interpolate(image, size, mode="bilinear", align_corners=False),
        scaled[0][:, 0].long(),
        scaled[1][:, 0],
        scaled[2],
        scaled[3][:, 0],
    )


def _planes(array: np.ndarray) -> Tensor:
    """(height, width) or (height, width, channels) to (1, channels, height, width)."""
    found = torch.from_numpy(np.ascontiguousarray(array)).float()
    found = found[..., None] if found.dim() == 2 else found[..., :3]
    return found.permute(2, 0, 1)[None]
