"""The models that atlas, tall_masks and concrete merge: made the same way twice, kept in the cache, refused where the settings make no sense."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from real_files import REAL

from mtlearn.merging import transformed_digits as module
from mtlearn.merging.task_vectors import apply, norm
from mtlearn.merging.transformed_digits import FamilySettings, make_family

SMALL = FamilySettings(tasks=3, width=32, features=8, train=300, validation=100, labelled=20, pretrain_steps=60, tune_steps=40)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTLEARN_CACHE", str(tmp_path))
    make_family.cache_clear()
    return tmp_path


def test_a_family_repeats_to_the_bit_and_is_read_from_the_cache(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_family(SMALL, 0)
    make_family.cache_clear()
    for path in (own_cache / "families").iterdir():
        path.write_bytes(path.read_bytes()[:100])  # broken: trained again
    again = make_family(SMALL, 0)
    make_family.cache_clear()
    monkeypatch.setattr(module, "_train", lambda *_: pytest.fail("trained although it was kept"))
    kept = make_family(SMALL, 0)
    for family in (again, kept):
        for one, other in zip(first.tuned, family.tuned, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(first.labels["test"], make_unkept(monkeypatch).labels["test"])


def make_unkept(monkeypatch: pytest.MonkeyPatch) -> module.Family:
    monkeypatch.undo()
    return make_family(replace(SMALL, tune_steps=0, pretrain_steps=0), 1)


def test_fine_tuning_helps_each_task_and_leaves_the_head() -> None:
    family = make_family(SMALL, 0)
    assert family.names == ("rotate 90", "rotate 270", "invert")
    assert {part: tuple(found.shape) for part, found in family.images.items()} == {
        "train": (3, 300, 64),
        "validation": (3, 100, 64),
        "test": (3, 1397, 64),
    }
    base, own = family.accuracy(family.base), family.own_accuracy(family.tuned)
    assert own.mean() > base.mean()
    for task, state in enumerate(family.tuned):
        torch.testing.assert_close(family.accuracy(state)[task], own[task])
        torch.testing.assert_close(family.accuracy(apply(family.base, family.vectors[task]))[task], own[task], rtol=0, atol=2e-3)
    assert not any(p.requires_grad for p in (*family.encoder.parameters(), *family.head.parameters()))
    images, labels = family.sample("train", 7, generator=torch.Generator().manual_seed(0))
    assert images.shape == (3, 7, 64)
    assert labels.shape == (3, 7)
    assert family.best_scale(family.vectors[0], [0.0, 0.0]) == 0
    with pytest.raises(ValueError, match="grid of scales is empty"):
        family.best_scale(family.vectors[0], [])


def test_a_penalty_makes_the_vectors_short_and_a_full_disk_costs_only_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise module.StoreError("no space")

    monkeypatch.setattr(module, "write_atomically", full)
    plain, sparse = make_family(SMALL, 0), make_family(replace(SMALL, sparsity=1e-2), 0)
    assert norm(sparse.vectors[0]) < norm(plain.vectors[0])


def test_the_convolutional_encoder() -> None:
    family = make_family(replace(SMALL, encoder="conv", width=4), 0)
    assert family.accuracy(family.base).shape == (3,)
    assert any(value.dim() == 4 for value in family.base.values())


@pytest.mark.skipif(not (REAL / "mnist10k").is_dir(), reason="the published files are not here")
def test_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    family = make_family(replace(SMALL, source="mnist", encoder="conv", width=4, pretrain_steps=2, tune_steps=2), 0)
    assert family.images["test"].shape == (3, 9600, 784)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="tasks must be between 2 and 20, got 21"):
        FamilySettings(tasks=21)
    with pytest.raises(ValueError, match="labelled must be between 0 and train=1000 images, got 1001"):
        FamilySettings(labelled=1001)
    with pytest.raises(ValueError, match=r"leave some of 1797 images for the test, got 1700 \+ 97"):
        make_family(FamilySettings(train=1700, validation=97), 0)
