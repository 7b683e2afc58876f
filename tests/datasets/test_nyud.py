"""NYUD-v2's folders: what is read from a small folder of the same form, and what is said where a file is missing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtlearn.datasets import nyud
from mtlearn.datasets.benchmarks import MissingFileError


def write_rooms(root: Path, *, count: int = 3, size: tuple[int, int] = (12, 16)) -> Path:
    """A folder of the published form with ``count`` random rooms for training and one for the test."""
    draws = np.random.default_rng(0)
    for folder in (*nyud.FOLDERS, "gt_sets"):
        (root / "nyud" / folder).mkdir(parents=True)
    names = [f"{k:04d}" for k in range(count + 1)]
    for name in names:
        for folder, high, shape in (("images", 256, (*size, 3)), ("segmentation", 41, size), ("normals", 256, (*size, 3)), ("edge", 2, size)):
            array = draws.integers(0, high, shape).astype(np.uint8) * (255 if folder == "edge" else 1)
            Image.fromarray(array).save(root / "nyud" / folder / f"{name}.png")
        np.save(root / "nyud" / "depth" / f"{name}.npy", draws.uniform(0.5, 9, size).astype(np.float32))
    (root / "nyud/gt_sets/train.txt").write_text("\n".join(names[:-1]) + "\n")
    (root / "nyud/gt_sets/val.txt").write_text(names[-1])
    return root


@pytest.fixture
def rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTLEARN_DATA", str(write_rooms(tmp_path)))
    return tmp_path / "nyud"


def test_rooms_are_read_as_they_are_stored(rooms: Path) -> None:
    found = nyud.read_rooms("train", size=(12, 16))
    assert nyud.names("train") == ["0000", "0001", "0002"] and nyud.names("val") == ["0003"]
    assert found.images.shape == (3, 3, 12, 16) and found.normals.shape == (3, 3, 12, 16)
    stored = torch.from_numpy(np.array(Image.open(rooms / "images/0001.png"))).float() / 255
    mean, sd = torch.tensor(nyud.MEAN), torch.tensor(nyud.SD)
    torch.testing.assert_close(found.images[1], ((stored - mean) / sd).permute(2, 0, 1))
    labels = torch.from_numpy(np.array(Image.open(rooms / "segmentation/0002.png"))).long()
    assert torch.equal(found.segmentation[2], torch.where(labels > 0, labels - 1, 255)) and int((labels == 0).sum())
    torch.testing.assert_close(found.depth[0], torch.from_numpy(np.load(rooms / "depth/0000.npy")))
    assert set(found.boundary.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(found.normals.norm(dim=1), torch.ones(3, 12, 16))
    assert torch.equal(nyud.read_rooms("train", only=[2], size=(12, 16)).depth[0], found.depth[2])


def test_labels_are_scaled_without_mixing_them(rooms: Path) -> None:
    small, large = (nyud.read_rooms("train", count=1, size=size) for size in ((12, 16), (24, 32)))
    assert large.segmentation.shape == (1, 24, 32)
    assert torch.equal(large.segmentation[:, ::2, ::2], small.segmentation) and torch.equal(large.depth[:, ::2, ::2], small.depth)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rooms: Path) -> None:
    (rooms / "normals/0001.png").unlink()
    with pytest.raises(MissingFileError, match=r"normals/0001\.png is missing"):
        nyud.read_rooms("train")
    with pytest.raises(ValueError, match="part must be 'train' or 'val', got 'test'"):
        nyud.read_rooms("test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no picture to read"):
        nyud.read_rooms("val", count=0)
    monkeypatch.setenv("MTLEARN_DATA", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("mtlearn.paths.cache", lambda: tmp_path / "cache")
    with pytest.raises(
        MissingFileError, match=r"nyud is not on this machine: unpack it as .*elsewhere/nyud, so that .*elsewhere/nyud/gt_sets/train\.txt exists"
    ):
        nyud.names("train")
