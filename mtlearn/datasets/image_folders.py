"""ImageNet, ADE20K and COCO from the folders in which they are published, a sample of each as tensors: one task a set.

    images, labels = imagenet("train", 1000, size=224, generator=stream(seed, "imagenet"))     a class an image, 0 to 999
    images, labels = ade20k("train", 1000, size=224, generator=stream(seed, "ade20k"))         a class a pixel, 0 to 149, -100 where there is none
    images, labels = coco("train", 1000, size=224, cells=14, generator=stream(seed, "coco"))   centres of objects on a grid of cells

They are large, and ImageNet asks for an account, so nothing is downloaded: unpack them below ``MTLEARN_DATA`` (or the user's cache) as
``imagenet/{train,val}/<class>/*.JPEG``; ``ade20k/{images,annotations}/{training,validation}``; ``coco/{train2017,val2017}`` with
``coco/annotations/instances_{train,val}2017.json``. Images are scaled so that the shorter side fits, then cut to the middle square.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mtlearn.datasets.benchmarks import unpacked

Part = Literal["train", "test"]
UNLABELLED = -100  # what torch's cross-entropy leaves out


def imagenet(part: Part, count: int, *, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random images with their class, the classes numbered in the order of their folders' names.

    Returns:
        images (count, 3, size, size) in [0, 1]; labels (count,) int64.

    Raises:
        MissingFileError: the folder is not there, with the places that were looked at.
    """
    root = unpacked("imagenet") / {"train": "train", "test": "val"}[part]
    classes = sorted(path.name for path in root.iterdir() if path.is_dir())
    files = sorted(path for path in root.glob("*/*") if path.suffix.lower() in (".jpeg", ".jpg"))
    drawn = _drawn(files, count, generator, root)
    return torch.stack([_image(path, size) for path in drawn]), torch.tensor([classes.index(path.parent.name) for path in drawn])


def ade20k(part: Part, count: int, *, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random images with a class of every pixel.

    Returns:
        images (count, 3, size, size) in [0, 1]; labels (count, size, size) int64, 0 to 149, :data:`UNLABELLED` where the file says 0.
    """
    name = {"train": "training", "test": "validation"}[part]
    root = unpacked("ade20k")
    drawn = _drawn(sorted((root / "images" / name).glob("*.jpg")), count, generator, root / "images" / name)
    maps = [_square(Image.open(root / "annotations" / name / f"{path.stem}.png"), size, Image.Resampling.NEAREST) for path in drawn]
    labels = torch.from_numpy(np.stack([np.asarray(page, dtype=np.int64) for page in maps])) - 1
    return torch.stack([_image(path, size) for path in drawn]), labels.masked_fill(labels < 0, UNLABELLED)


def coco(part: Part, count: int, *, size: int, cells: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random images with the centres of their objects' boxes.

    Returns:
        images (count, 3, size, size) in [0, 1]; labels (count, 3, cells, cells): 1 where a centre lies in the cell, then its row and
        column inside it. Of several centres in a cell the last one listed counts; centres that the cut leaves out are left out.
    """
    year = {"train": "train2017", "test": "val2017"}[part]
    root = unpacked("coco")
    listing: dict[str, Any] = json.loads((root / "annotations" / f"instances_{year}.json").read_text(encoding="utf-8"))
    boxes: dict[int, list[Sequence[float]]] = {}
    for row in listing["annotations"]:
        boxes.setdefault(row["image_id"], []).append(row["bbox"])
    rows = sorted(listing["images"], key=lambda row: row["id"])
    drawn = _drawn(rows, count, generator, root)
    labels = torch.zeros(count, 3, cells, cells)
    for number, row in enumerate(drawn):
        scale = size / min(row["width"], row["height"])
        for left, top, wide, high in boxes.get(row["id"], ()):
            x = ((left + wide / 2 - row["width"] / 2) * scale + size / 2) / size * cells
            y = ((top + high / 2 - row["height"] / 2) * scale + size / 2) / size * cells
            if 0 <= x < cells and 0 <= y < cells:
                labels[number, :, int(y), int(x)] = torch.tensor([1.0, y % 1, x % 1])
    return torch.stack([_image(root / year / row["file_name"], size) for row in drawn]), labels


def _drawn(files: Sequence[Any], count: int, generator: torch.Generator, root: Path) -> list[Any]:
    if not 1 <= count <= len(files):
        raise ValueError(f"count must be between 1 and the {len(files)} images in {root}, got {count}")
    return [files[row] for row in torch.randperm(len(files), generator=generator)[:count].tolist()]


def _image(path: Path, size: int) -> Tensor:
    with Image.open(path) as found:
        square = _square(found.convert("RGB"), size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(square, dtype=np.float32)).permute(2, 0, 1) / 255


def _square(found: Image.Image, size: int, how: Image.Resampling) -> Image.Image:
    """Scaled so that the shorter side is ``size``, and the middle of the longer one."""
    scale = size / min(found.size)
    wide, high = (max(size, round(scale * side)) for side in found.size)
    left, top = (wide - size) // 2, (high - size) // 2
    return found.resize((wide, high), how).crop((left, top, left + size, top + size))
