"""TALL-masks and Consensus Merging."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from real_files import REAL
from torch import Tensor

from mtlearn.merging.merge import merge
from mtlearn.merging.tall_masks import explorer as touch
from mtlearn.merging.tall_masks.experiment import EXPERIMENT, TallMaskSettings, study
from mtlearn.merging.tall_masks.method import (
    Compressed,
    agreement,
    best_thresholds,
    bits_per_weight,
    compress,
    consensus,
    consensus_mask,
    consensus_rule,
    keeps,
    localise,
    pack,
    profile,
    tall_masks,
    unpack,
)
from mtlearn.merging.task_vectors import add, apply, flatten, task_vector, ties
from mtlearn.merging.transformed_digits import FamilySettings, make_family

PUBLIC = json.loads((Path(__file__).parent / "public" / "fusion_bench.json").read_text())


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def vectors_of(rows: Tensor) -> list[dict[str, Tensor]]:
    return [{"a": row[:4].view(2, 2), "b": row[4:]} for row in rows]


BASE = {"a": draw(2, 2, seed=1), "b": draw(6, seed=2), "count": torch.tensor(3)}


# ----------------------------------------------------------------------------------------------------------------------------- the mask


@pytest.mark.parametrize("case", PUBLIC["tall_masks"], ids=lambda case: f"lambda {case['threshold']}")
def test_masks_are_those_of_public_code(case: dict[str, object]) -> None:
    rows = torch.tensor(PUBLIC["vectors"])
    vectors = [{"w": row} for row in rows]
    assert tall_masks(vectors, add(vectors), case["threshold"]).int().tolist() == case["masks"]  # type: ignore[arg-type]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), tasks=st.integers(1, 4))
def test_at_one_no_mask_is_nearer(seed: int, tasks: int) -> None:
    rows = draw(tasks, 10, seed=seed)
    total = rows.sum(0)
    every = torch.tensor(list(product([0.0, 1.0], repeat=10)))
    for row, mask in zip(rows, keeps(rows, total), strict=True):
        found = (mask * total - row).abs().sum()
        assert found <= (every * total - row).abs().sum(1).min() + 1e-5
        assert found <= min(row.abs().sum(), (total - row).abs().sum()) + 1e-5


@pytest.mark.parametrize("threshold", [0.2, 1.0, 5.0])
def test_one_task_is_restored_to_the_bit(threshold: float) -> None:
    tuned = {"a": BASE["a"] + draw(2, 2, seed=3), "b": BASE["b"].clone(), "count": BASE["count"]}
    tuned["b"][2] += 1
    vector = task_vector(BASE, tuned)
    mask = tall_masks([vector], vector, threshold)[0]
    assert torch.equal(mask, flatten(vector) != 0)
    restored = localise(BASE, vector, mask)
    for name, value in apply(BASE, vector).items():
        assert torch.equal(restored[name], value)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 1.0])
def test_disjoint_supports_are_told_apart_and_consensus_destroys_them(threshold: float) -> None:
    rows = torch.zeros(3, 10)
    rows[0, :3], rows[1, 3:7], rows[2, 7:9] = draw(3), draw(4), draw(2)
    vectors = vectors_of(rows)
    total = add(vectors)
    masks = tall_masks(vectors, total, threshold)
    assert torch.equal(masks, rows != 0)
    for vector, mask in zip(vectors, masks, strict=True):
        for name, value in apply(BASE, vector).items():
            assert torch.equal(localise(BASE, total, mask)[name], value)
    assert profile(masks).tolist() == [1, 9, 0, 0]
    assert not flatten(consensus(total, masks, 2)).any()


def test_equal_vectors_are_kept_whole_or_not_at_all() -> None:
    vectors = vectors_of(draw(1, 10).expand(4, 10))
    total = add(vectors)
    assert tall_masks(vectors, total, 0.33).all()  # below 1 / (T - 1)
    assert not tall_masks(vectors, total, 0.34).any()


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), low=st.floats(0.05, 3), high=st.floats(0.05, 3), factor=st.sampled_from([0.25, 2.0, 8.0]))
def test_density_falls_with_the_threshold_and_scale_changes_nothing(seed: int, low: float, high: float, factor: float) -> None:
    rows = draw(3, 50, seed=seed)
    low, high = sorted((low, high))
    some, fewer = keeps(rows, rows.sum(0), low), keeps(rows, rows.sum(0), high)
    assert (some | ~fewer).all()
    assert torch.equal(keeps(factor * rows, factor * rows.sum(0), low), some)
    order = torch.tensor([2, 0, 1])
    total = rows[order].sum(0)
    same = (total - rows.sum(0)).abs() == 0  # where the sum did not round otherwise
    assert torch.equal(keeps(rows[order], total, low)[:, same], some[order][:, same])


def test_a_weight_that_nobody_moved_is_catastrophic() -> None:
    assert not keeps(torch.zeros(2, 3), torch.zeros(3), 0.2).any()


def test_masks_on_ties_are_made_against_the_ties_vector() -> None:
    vectors = vectors_of(draw(3, 10))
    merged = ties(vectors, combine="sum")
    rows = torch.stack([flatten(vector) for vector in vectors])
    assert torch.equal(tall_masks(vectors, merged, 0.4), rows.abs() > 0.4 * (flatten(merged) - rows).abs())
    own = tall_masks(vectors, merged, [0.2, 0.4, 0.6])
    assert torch.equal(own[0], tall_masks(vectors, merged, 0.2)[0])
    assert torch.equal(own[2], tall_masks(vectors, merged, 0.6)[2])


def test_the_threshold_of_each_task_is_the_best_by_validation() -> None:
    table = {0.2: [0.5, 0.9], 0.4: [0.7, 0.9], 0.6: [0.6, 0.8]}
    assert best_thresholds(lambda at: torch.tensor(table[at]), [0.6, 0.2, 0.4]) == [0.4, 0.2]


# ------------------------------------------------------------------------------------------------------------------ counting and merging


def test_consensus_runs_from_the_plain_rule_to_the_pretrained_model() -> None:
    vectors = vectors_of(draw(4, 10))
    total = add(vectors)
    masks = tall_masks(vectors, total, 0.8)
    flat, counts = flatten(total), agreement(masks)
    assert profile(masks).sum() == 10
    assert torch.equal(flatten(consensus(total, masks, 0)), flat)
    assert not flatten(consensus(total, masks, 5)).any()
    assert torch.equal(flatten(consensus(total, masks, 1)) == 0, counts == 0)
    for k in range(5):
        assert (consensus_mask(masks, k) | ~consensus_mask(masks, k + 1)).all()
    assert torch.equal(flatten(consensus(total, masks[[2, 0, 3, 1]], 2)), flatten(consensus(total, masks, 2)))


def test_the_rule_for_checkpoints_gives_the_same_model() -> None:
    tuned = [{**apply(BASE, vector), "count": BASE["count"]} for vector in vectors_of(draw(4, 10))]
    vectors = [task_vector(BASE, state) for state in tuned]
    total = add(vectors)
    wanted = apply(BASE, consensus(total, tall_masks(vectors, total, 0.4), 2), 0.3)
    for name, value in merge(BASE, tuned, consensus_rule(2, 0.4), scale=0.3).items():
        torch.testing.assert_close(value, wanted[name])


def test_a_consensus_of_one_task_warns() -> None:
    with pytest.warns(UserWarning, match="keeps no weight"):
        assert not consensus_mask(torch.ones(1, 4, dtype=torch.bool), 2).any()


# ---------------------------------------------------------------------------------------------------------------------------- on disk


@settings(deadline=None, max_examples=30)
@given(size=st.integers(1, 40), seed=st.integers(0, 1000))
def test_a_packed_mask_comes_back(size: int, seed: int) -> None:
    mask = draw(size, seed=seed) > 0
    packed = pack(mask)
    assert packed.shape == (-(-size // 8),)
    assert torch.equal(unpack(packed, size), mask)
    assert (np.unpackbits(packed.numpy())[:size] == mask.numpy()).all()


def test_compressed_models_come_back_to_the_bit_and_their_bytes_are_counted(tmp_path: Path) -> None:
    base = {"z": draw(40, 30, seed=1), "a": draw(30, seed=2), "count": torch.tensor(3)}
    tuned = [{**base, "z": base["z"] + draw(40, 30, seed=n), "a": base["a"] + draw(30, seed=n + 50)} for n in range(3, 8)]
    vectors = [task_vector(base, state) for state in tuned]
    total = add(vectors)
    masks = tall_masks(vectors, total, 0.4)
    path = tmp_path / "tasks.safetensors"
    written = compress(base, total, masks, list("vwxyz")).write(path)
    assert written == path.stat().st_size
    weights = 1230
    assert written == pytest.approx(weights * bits_per_weight(5) / 8, abs=1200)  # the file's head, the counter, and whole bytes
    found = Compressed.read(path)
    for task, mask in zip("vwxyz", masks, strict=True):
        for name, value in localise(base, total, mask).items():
            assert torch.equal(found.model(task)[name], value)
    assert bits_per_weight(8) / bits_per_weight(8, compressed=False) == pytest.approx(0.28, abs=0.002)
    assert bits_per_weight(20) / bits_per_weight(20, compressed=False) == pytest.approx(0.13, abs=0.002)
    with pytest.raises(ValueError, match="no task 'q'; there are v, w"):
        found.model("q")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        Compressed.read(path)
    from safetensors.torch import save_file

    save_file({"weights": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="'weights', which is no part of compressed"):
        Compressed.read(path)


def test_a_transformer_of_the_library_is_localised() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=16
    )
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(transformers.BertModel(config).eval())
    base, *tuned = (model.state_dict() for model in models)
    vectors = [task_vector(base, state) for state in tuned]
    total = add(vectors)
    models[0].load_state_dict(localise(base, total, tall_masks(vectors, total, 0.4)[0]))
    assert models[0](torch.arange(5)[None]).last_hidden_state.isfinite().all()


# ------------------------------------------------------------------------------------------------------------------------------- errors


def test_wrong_values_are_refused() -> None:
    vectors = vectors_of(draw(2, 10))
    total = add(vectors)
    masks = tall_masks(vectors, total)
    for threshold in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="thresholds must be positive"):
            tall_masks(vectors, total, threshold)
    with pytest.raises(ValueError, match="got 3 for 2 tasks"):
        tall_masks(vectors, total, [1, 1, 1])
    with pytest.raises(ValueError, match="there is no task vector"):
        tall_masks([], total)
    with pytest.raises(ValueError, match="'a' is in vector 0 but not in vector 2"):
        tall_masks([vectors[0], {"b": vectors[0]["b"]}], total)
    with pytest.raises(ValueError, match="the task vectors holds 1 of 20"):
        tall_masks([{**vectors[0], "b": torch.full((6,), 1.0).index_fill(0, torch.tensor([1]), torch.nan)}, vectors[1]], total)
    with pytest.raises(ValueError, match="the merged vector holds"):
        tall_masks(vectors, {**total, "b": torch.full((6,), torch.inf)})
    with pytest.raises(ValueError, match=r"the mask has shape \(9,\), this merged vector needs \(10,\)"):
        localise(BASE, total, masks[0, :9])
    for agree in (-1, 4, 1.5, True):
        with pytest.raises(ValueError, match="agree must be a whole number from 0 to 3"):
            consensus_mask(masks, agree)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the masks are over 9 weights"):
        consensus(total, masks[:, :9])
    with pytest.raises(ValueError, match="bool"):
        agreement(masks.float())
    with pytest.raises(ValueError, match="agree must be a whole number of tasks"):
        consensus_rule(-1)
    with pytest.raises(ValueError, match="threshold must be positive"):
        consensus_rule(2, 0)
    with pytest.raises(ValueError, match="grid of thresholds is empty"):
        best_thresholds(lambda _: torch.ones(2), [])
    with pytest.raises(ValueError, match="without validation data no threshold can be chosen"):
        best_thresholds(lambda _: torch.full((2,), torch.nan))
    with pytest.raises(ValueError, match=r"of 10 weights has \(2,\) bytes, got \(3,\)"):
        unpack(torch.zeros(3, dtype=torch.uint8), 10)
    with pytest.raises(ValueError, match="different name for each of 2 masks"):
        compress(BASE, total, masks, ["x", "x"])
    with pytest.raises(ValueError, match="all floating-point entries of the base"):
        compress({**BASE, "more": torch.ones(1)}, total, masks, ["x", "y"])
    with pytest.raises(ValueError, match="the masks are over 9 weights"):
        compress(BASE, total, masks[:, :9], ["x", "y"])
    with pytest.raises(ValueError, match="tasks must be at least 1"):
        bits_per_weight(0)


# ----------------------------------------------------------------------------------------------------------- experiment and explorer


def test_the_quick_experiment() -> None:
    arms = run_quick(EXPERIMENT)
    zero, plain = arms["zero-shot"]["accuracy"], arms["consensus, k = 0"]["accuracy"]
    assert arms["consensus, k = 9"]["accuracy"] == zero
    assert plain == arms["task arithmetic"]["accuracy"]
    assert arms["TALL masks"]["accuracy"] > arms["magnitude masks"]["accuracy"]
    assert sum(arms["TALL masks"][f"kept_by_{count}"] for count in range(9)) == pytest.approx(1)


@pytest.mark.skipif(not (REAL / "mnist10k").is_dir(), reason="the published files are not here")
def test_paper_scale_runs_on_the_published_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    family = make_family(
        FamilySettings(tasks=2, source="mnist", encoder="conv", width=4, features=16, train=500, validation=100, pretrain_steps=3, tune_steps=3), 0
    )
    found = study(family, TallMaskSettings(seeds=1, scales=(0.3,)), sweep=False)
    assert 0 <= found["TALL masks"]["accuracy"] <= 1


def test_the_explorer_is_moved_by_mouse_and_keyboard() -> None:
    shown = touch.explorer()
    assert "shuffle, λ = 0.4" in shown.text
    shown.point("drag", 4.2, 3.0, axes=touch.HISTOGRAM)
    assert shown.values["agree"] == 5
    shown.point("press", 1.22, 90.0, axes=touch.CURVE)
    assert shown.values["threshold"] == pytest.approx(1.2)
    shown.point("press", 1.0, 1.0, axes=0)
    for key, name, value in (("ArrowLeft", "threshold", 1.1), ("ArrowRight", "threshold", 1.2), ("ArrowUp", "agree", 6), ("ArrowDown", "agree", 5)):
        shown.point("key", 0, 0, key=key)
        assert shown.values[name] == pytest.approx(value)
    shown.preset("nothing left")
    assert "0 % of the weights are merged" in shown.text
