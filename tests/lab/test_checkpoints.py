"""Shipped models: made, loaded to the bit, and refused where a file is not what was recorded."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_experiment import LINE, Recipe, build

from mtlearn import paths
from mtlearn.lab import checkpoints
from mtlearn.lab.checkpoints import Checkpoint, CheckpointError, load, make, provenance
from mtlearn.lab.store import StoreError

AGAIN = "`mtlearn checkpoints make toy-line` makes it again"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    return tmp_path / "data" / "checkpoints"


@pytest.fixture
def made(folder: Path) -> Path:
    """The safetensors file of LINE; its JSON file lies beside it."""
    make(LINE)
    return folder / "toy-line.safetensors"


def refuses(message: str, checkpoint: Checkpoint = LINE) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load(checkpoint)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(AGAIN)


def test_what_is_made_is_loaded_to_the_bit(folder: Path):
    trained = []

    def train(recipe: Recipe, progress: str | None) -> nn.Module:
        trained.append(LINE.train(recipe, progress))
        return trained[0]

    found = make(dataclasses.replace(LINE, train=train))
    model = load(LINE)
    assert model.state_dict().keys() == trained[0].state_dict().keys()
    assert all(torch.equal(value, trained[0].state_dict()[name]) for name, value in model.state_dict().items())
    assert not model.training and model is not trained[0]
    inputs = torch.randn(5, 2)
    assert torch.equal(model(inputs), trained[0].eval()(inputs))

    content = (folder / "toy-line.safetensors").read_bytes()
    assert found == provenance(LINE) == json.loads((folder / "toy-line.json").read_text())
    assert (found["name"], found["paper"], found["bytes"], found["sha256"]) == ("toy-line", "toy", len(content), hashlib.sha256(content).hexdigest())
    assert found["settings"] == {"width": 3, "steps": 5, "seed": 0} and found["command"] == "mtlearn checkpoints make toy-line"
    assert found["measured"]["weights"] > 0 and set(found["versions"]) >= {"torch", "python"}
    assert sorted(path.name for path in folder.iterdir()) == ["toy-line.json", "toy-line.safetensors"]


def test_made_again_it_is_the_same_file(made: Path):
    before = made.read_bytes()
    torch.manual_seed(99)
    make(LINE)
    assert made.read_bytes() == before
    make(dataclasses.replace(LINE, settings=Recipe(seed=1)))
    assert made.read_bytes() != before


def test_without_a_measure(folder: Path):
    assert make(dataclasses.replace(LINE, measure=None))["measured"] == {}


@pytest.mark.parametrize("where", [0, 60, -1])
def test_a_damaged_byte(made: Path, where: int):
    content = bytearray(made.read_bytes())
    right = hashlib.sha256(content).hexdigest()
    content[where] ^= 1
    made.write_bytes(content)
    refuses(rf"^{made} is damaged: SHA-256 {hashlib.sha256(content).hexdigest()[:12]}\.\.\., recorded {right[:12]}\.\.\.; restore it, or ")


def test_a_file_that_is_cut_off(made: Path):
    made.write_bytes(made.read_bytes()[:-10])
    refuses("is damaged")


def test_missing_files(made: Path):
    content = made.read_bytes()
    made.unlink()
    refuses(rf"^{made} is missing; ")
    made.write_bytes(content)
    made.with_suffix(".json").unlink()
    refuses(rf"^{made.with_suffix('.json')} is missing; ")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"settings": 5}', b'{"settings": {}}', b"\xff"])
def test_provenance_that_cannot_be_read(made: Path, text: bytes):
    made.with_suffix(".json").write_bytes(text)
    refuses(rf"^{made.with_suffix('.json')} cannot be read; ")


def test_other_settings(made: Path):
    other = dataclasses.replace(LINE, settings=Recipe(width=4, seed=2))
    refuses(rf"^{made.with_suffix('.json')} was made with other settings \(seed: 0 there, 2 in the code, width: 3 there, 4 in the code\); ", other)


def test_a_model_of_another_shape(made: Path):
    wide = dataclasses.replace(LINE, build=lambda recipe: build(Recipe(width=5)))
    refuses(rf"^{made} does not fit the code: Error\(s\) in loading state_dict for Sequential: size mismatch for 0\.weight.*; ", wide)
    other = dataclasses.replace(LINE, build=lambda recipe: nn.Linear(2, 1))
    refuses("does not fit the code: .*Missing key", other)


def test_a_file_that_is_no_safetensors_though_its_hash_is_right(made: Path):
    made.write_bytes(b"pickle" * 10)
    found = json.loads(made.with_suffix(".json").read_text())
    made.with_suffix(".json").write_text(json.dumps({**found, "sha256": hashlib.sha256(made.read_bytes()).hexdigest()}))
    refuses(f"^{made} does not fit the code: ")


def test_a_model_too_large_to_ship(made: Path, monkeypatch: pytest.MonkeyPatch):
    before = made.read_bytes()
    assert checkpoints.LARGEST == 2_000_000
    monkeypatch.setattr(checkpoints, "LARGEST", len(before) - 1)
    with pytest.raises(CheckpointError, match=rf"^toy-line has {len(before)} bytes; at most {len(before) - 1} ship$"):
        make(LINE)
    assert made.read_bytes() == before
    monkeypatch.setattr(checkpoints, "LARGEST", 2_000_000)
    with pytest.raises(CheckpointError, match=re.escape("at most 2000000 ship")):
        make(dataclasses.replace(LINE, train=lambda recipe, progress: nn.Linear(1000, 600), measure=None))


def test_a_full_disk(made: Path, monkeypatch: pytest.MonkeyPatch):
    before = made.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match="No space left on device; what it held before is kept"):
        make(dataclasses.replace(LINE, settings=Recipe(seed=5)))
    assert made.read_bytes() == before
    load(LINE)
