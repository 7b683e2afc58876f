"""ImageNet, ADE20K and COCO read from folders of their shape, with a few pictures made here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtlearn.datasets.benchmarks import MissingFileError
from mtlearn.datasets.image_folders import UNLABELLED, ade20k, coco, imagenet
from mtlearn.lab.seeds import stream


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTLEARN_DATA", str(tmp_path))
    return tmp_path


def picture(path: Path, wide: int, high: int, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (wide, high), colour).save(path, quality=100)


def test_imagenet_gives_the_class_of_the_folder(folders: Path) -> None:
    for number, name in enumerate(("n02", "n01", "n03")):
        for copy in range(2):
            picture(folders / "imagenet" / "train" / name / f"{copy}.JPEG", 20 + copy, 30, (0, 100 * number, 0))
    images, labels = imagenet("train", 6, size=8, generator=stream(0, "draw"))
    assert images.shape == (6, 3, 8, 8)
    assert sorted(labels.tolist()) == [0, 0, 1, 1, 2, 2]
    green = {0: 100, 1: 0, 2: 200}  # by the order of names: n01, n02, n03
    for image, label in zip(images, labels.tolist(), strict=True):
        assert float(image[1].mean()) * 255 == pytest.approx(green[label], abs=3)
    with pytest.raises(ValueError, match=r"count must be between 1 and the 6 images in .*, got 7"):
        imagenet("train", 7, size=8, generator=stream(0))


def test_ade20k_cuts_image_and_labels_alike(folders: Path) -> None:
    base = folders / "ade20k"
    picture(base / "images" / "validation" / "a.jpg", 32, 16, (0, 0, 0))
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:, 8:16], pixels[:, 16:24], pixels[:, 24:] = 1, 150, 7
    (base / "annotations" / "validation").mkdir(parents=True)
    Image.fromarray(pixels).save(base / "annotations" / "validation" / "a.png")
    images, labels = ade20k("test", 1, size=16, generator=stream(0))
    assert images.shape == (1, 3, 16, 16)
    assert labels[0, 5].tolist() == [0] * 8 + [149] * 8, "the middle square; the file's 1 is class 0"
    pixels[:] = 0
    Image.fromarray(pixels).save(base / "annotations" / "validation" / "a.png")
    assert (ade20k("test", 1, size=16, generator=stream(0))[1] == UNLABELLED).all()


def test_coco_gives_centres_of_boxes_in_the_cut(folders: Path) -> None:
    base = folders / "coco"
    picture(base / "train2017" / "x.jpg", 64, 32, (9, 9, 9))
    boxes = [[20, 4, 8, 8], [0, 0, 4, 4]]  # centres (24, 8) and, outside of the middle square, (2, 2)
    listing = {
        "images": [{"id": 5, "file_name": "x.jpg", "width": 64, "height": 32}],
        "annotations": [{"image_id": 5, "bbox": box} for box in boxes],
    }
    (base / "annotations").mkdir()
    (base / "annotations" / "instances_train2017.json").write_text(json.dumps(listing))
    images, labels = coco("train", 1, size=16, cells=4, generator=stream(0))
    assert images.shape == (1, 3, 16, 16)
    assert labels[0, 0].nonzero().tolist() == [[1, 1]], "(24 - 16) / 32 across and 8 / 32 down"
    torch.testing.assert_close(labels[0, :, 1, 1], torch.tensor([1.0, 0.0, 0.0]))


def test_a_missing_folder_is_named(folders: Path) -> None:
    with pytest.raises(MissingFileError, match=r"imagenet is not on this machine: unpack it as .*imagenet"):
        imagenet("train", 1, size=8, generator=stream(0))
