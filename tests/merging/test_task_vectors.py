"""Task vectors as plain mappings, and the merging rules that every paper of the chapter needs."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtlearn.merging import task_vectors as tv

PUBLIC = json.loads((Path(__file__).parent / "public" / "fusion_bench.json").read_text())


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def state(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    g = draws(seed)
    return {
        "weight": torch.randn(3, 4, generator=g).to(dtype),
        "bias": torch.randn(3, generator=g).to(dtype),
        "count": torch.tensor(7),
    }


BASE = state(0)
TUNED = [state(n) for n in (1, 2, 3)]
VECTORS = [tv.task_vector(BASE, tuned) for tuned in TUNED]


def same(first: tv.State, second: tv.State, tolerance: float = 0.0) -> None:
    assert list(first) == list(second)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=tolerance, atol=tolerance)


def test_a_vector_takes_the_base_to_the_fine_tuned_model_and_leaves_counters() -> None:
    assert list(VECTORS[0]) == ["weight", "bias"]
    moved = tv.apply(BASE, VECTORS[0])
    same(moved, TUNED[0], 1e-6)
    assert moved["count"] is BASE["count"]
    same(tv.apply(BASE, VECTORS[0], 0.0), BASE)
    same(tv.apply(tv.apply(BASE, VECTORS[0]), tv.negate(VECTORS[0])), BASE, 1e-6)


def test_the_sum_is_task_arithmetic() -> None:
    merged = tv.apply(BASE, tv.add(VECTORS), 0.3)
    for name in ("weight", "bias"):
        by_hand = BASE[name] + 0.3 * sum(tuned[name] - BASE[name] for tuned in TUNED)
        torch.testing.assert_close(merged[name], by_hand, rtol=0, atol=1e-6)


def test_an_average_is_the_mean_of_the_weights() -> None:
    same(tv.apply(BASE, tv.average(VECTORS)), {k: torch.stack([t[k] for t in TUNED]).float().mean(0).to(v.dtype) for k, v in BASE.items()}, 1e-6)
    lean = tv.average(VECTORS, [1, 0, 3])
    torch.testing.assert_close(lean["bias"], 0.25 * VECTORS[0]["bias"] + 0.75 * VECTORS[2]["bias"])


def test_lengths_and_angles() -> None:
    flat = [tv.flatten(vector).double() for vector in VECTORS]
    assert tv.norm(VECTORS[0]) == pytest.approx(flat[0].norm().item())
    assert tv.cosine(VECTORS[0], VECTORS[1]) == pytest.approx(torch.cosine_similarity(flat[0], flat[1], 0).item())
    assert tv.cosine(VECTORS[0], tv.scaled(VECTORS[0], 3)) == pytest.approx(1)
    assert tv.cosine(VECTORS[0], tv.negate(VECTORS[0])) == pytest.approx(-1)
    torch.testing.assert_close(tv.gram(VECTORS), torch.stack(flat) @ torch.stack(flat).T)
    with pytest.raises(ValueError, match="no direction"):
        tv.cosine(VECTORS[0], tv.scaled(VECTORS[0], 0))


def test_flatten_and_unflatten_are_inverse() -> None:
    same(tv.unflatten(tv.flatten(VECTORS[0]), VECTORS[0]), VECTORS[0])
    assert tv.stack(VECTORS)["weight"].shape == (3, 3, 4)
    with pytest.raises(ValueError, match=r"\(14,\), these entries need \(15,\)"):
        tv.unflatten(torch.zeros(14), VECTORS[0])
    with pytest.raises(ValueError, match="without entries"):
        tv.flatten({})


def test_half_precision_is_summed_in_single() -> None:
    base, tuned = state(0, torch.bfloat16), state(1, torch.bfloat16)
    vector = tv.task_vector(base, tuned)
    assert vector["weight"].dtype == torch.float32
    moved = tv.apply(base, vector)
    assert moved["weight"].dtype == torch.bfloat16
    assert torch.equal(moved["weight"], tuned["weight"])


def test_tied_weights_stay_tied() -> None:
    def model(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        tied[1].weight = tied[0].weight
        return tied

    base, tuned = model(0).state_dict(), model(1).state_dict()
    vector = tv.task_vector(base, tuned)
    assert vector["0.weight"] is vector["1.weight"]
    moved = tv.apply(base, vector, 0.5)
    assert moved["0.weight"] is moved["1.weight"]
    untied = {name: value.clone() for name, value in tuned.items()}
    assert tv.task_vector(base, untied)["0.weight"] is not tv.task_vector(base, untied)["1.weight"]


def test_a_vector_of_some_entries_moves_those_alone() -> None:
    moved = tv.apply(BASE, {"bias": torch.ones(3)}, 2.0)
    torch.testing.assert_close(moved["bias"], BASE["bias"] + 2)
    assert moved["weight"] is BASE["weight"]


# ----------------------------------------------------------------------------------------------------------------------- merging rules


@pytest.mark.parametrize("case", PUBLIC["ties"], ids=lambda case: f"{case['combine']}-{case['keep']}")
def test_ties_has_the_numbers_of_public_code(case: dict[str, object]) -> None:
    rows = torch.tensor(PUBLIC["vectors"])
    merged = tv.ties([{"w": row} for row in rows], keep=case["keep"], combine=case["combine"])["w"]  # type: ignore[arg-type]
    torch.testing.assert_close(merged, torch.tensor(case["merged"]), rtol=0, atol=1e-6)


def test_ties_by_hand() -> None:
    # kept: the two largest of each; signs of the sums: -, +, -; the second weight has two that agree
    vectors = [{"w": torch.tensor([0.1, 2.0, -3.0])}, {"w": torch.tensor([-1.0, 4.0, 0.5])}]
    torch.testing.assert_close(tv.ties(vectors, keep=0.4)["w"], torch.tensor([-1.0, 3.0, -3.0]))
    torch.testing.assert_close(tv.ties(vectors, keep=0.4, combine="sum")["w"], torch.tensor([-1.0, 6.0, -3.0]))
    torch.testing.assert_close(tv.ties(vectors, keep=0.4, combine="max")["w"], torch.tensor([-1.0, 4.0, -3.0]))


def test_weights_that_cancel_take_the_sign_of_most() -> None:
    vectors = [{"w": torch.tensor([1.0, -1.0, -1.0])}, {"w": torch.tensor([-1.0, -1.0, -1.0])}]
    torch.testing.assert_close(tv.ties(vectors, keep=1)["w"], torch.tensor([-1.0, -1.0, -1.0]))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 4), factor=st.floats(0.1, 10))
def test_ties_is_equivariant(seed: int, count: int, factor: float) -> None:
    rows = torch.randn(count, 40, generator=draws(seed))
    once = tv.ties([{"w": row} for row in rows])["w"]
    torch.testing.assert_close(tv.ties([{"w": row} for row in rows.flip(0)])["w"], once)
    torch.testing.assert_close(tv.ties([{"w": factor * row} for row in rows])["w"], factor * once, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tv.ties([{"w": row} for row in rows[:1]], keep=1)["w"], rows[0])


def test_dare_keeps_the_mean_and_drops_the_share() -> None:
    vector = {"w": torch.ones(100_000)}
    kept = tv.dare(vector, 0.9, generator=draws())["w"]
    assert set(kept.unique().tolist()) == {0.0, kept.max().item()}
    assert kept.max().item() == pytest.approx(10)
    assert (kept > 0).float().mean().item() == pytest.approx(0.1, abs=3 * (0.09 / 1e5) ** 0.5)
    assert torch.equal(tv.dare(vector, 0.0)["w"], vector["w"])


def test_masks_keep_exactly_their_share() -> None:
    vector = VECTORS[0]
    largest = tv.magnitude_mask(vector, 0.4)
    assert sum(int(m.sum()) for m in largest.values()) == 6
    inside, outside = tv.flatten(tv.masked(vector, largest)).abs(), tv.flatten(vector).abs()[~tv.flatten(largest)]
    assert inside[inside > 0].min() >= outside.max()
    for density, count in ((0.0, 0), (0.4, 6), (1.0, 15)):
        assert int(tv.flatten(tv.random_mask(vector, density, generator=draws())).sum()) == count
    assert not torch.equal(tv.flatten(tv.random_mask(vector, 0.4, generator=draws(1))), tv.flatten(tv.random_mask(vector, 0.4, generator=draws(2))))


# ------------------------------------------------------------------------------------------------------------------------------- errors


def changed(**entries: Tensor | None) -> dict[str, Tensor]:
    return {name: value for name, value in {**TUNED[0], **entries}.items() if value is not None}


@pytest.mark.parametrize(
    ("tuned", "words"),
    [
        (changed(bias=None), "'bias' is in the base but not in fine-tuned model 0"),
        (changed(extra=torch.ones(1)), "'extra' is in fine-tuned model 0 but not in the base"),
        (changed(bias=torch.ones(4)), r"'bias' has shape \(4,\) in fine-tuned model 0, \(3,\) in the base"),
        (changed(bias=torch.ones(3).half()), "'bias' is torch.float16 in fine-tuned model 0, torch.float32 in the base"),
        (changed(bias=torch.tensor([1, float("nan"), 2])), "'bias' holds 1 of 3 values that are NaN"),
        (changed(bias=torch.tensor([1, float("inf"), 2])), "'bias' holds 1 of 3 values that are NaN or infinite"),
    ],
)
def test_states_that_do_not_fit_are_refused(tuned: dict[str, Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tv.task_vector(BASE, tuned)


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match="no floating-point entry"):
        tv.task_vector({"n": torch.tensor(1)}, {"n": torch.tensor(2)})
    with pytest.raises(ValueError, match="there is no task vector"):
        tv.add([])
    with pytest.raises(ValueError, match="'weight' is in vector 0 but not in vector 1"):
        tv.add([VECTORS[0], {"bias": torch.ones(3)}])
    with pytest.raises(ValueError, match=r"'bias' has shape \(1,\) in vector 1"):
        tv.add([VECTORS[0], {**VECTORS[0], "bias": torch.ones(1)}])
    with pytest.raises(ValueError, match="an entry 'other' that the base lacks"):
        tv.apply(BASE, {"other": torch.ones(3)})
    with pytest.raises(ValueError, match=r"'bias' has shape \(1,\) in the task vector"):
        tv.apply(BASE, {"bias": torch.ones(1)})
    with pytest.raises(ValueError, match="got 2 weights and 3 vectors"):
        tv.average(VECTORS, [1, 2])
    with pytest.raises(ValueError, match="sum not 0"):
        tv.average(VECTORS, [1, -1, 0])
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"keep must be in \(0, 1\]"):
            tv.ties(VECTORS, keep=share)
    with pytest.raises(ValueError, match="'mean', 'sum' or 'max'"):
        tv.ties(VECTORS, combine="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"drop must be in \[0, 1\)"):
        tv.dare(VECTORS[0], 1.0)
    with pytest.raises(ValueError, match=r"density must be in \[0, 1\]"):
        tv.magnitude_mask(VECTORS[0], -0.1)
    with pytest.raises(ValueError, match="there is no fine-tuned model"):
        tv.check_states(BASE, [])
