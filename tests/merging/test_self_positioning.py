import json
import math
import re
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from real_files import REAL
from tiny_bert import tiny_bert
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mtlearn.lab.checkpoints import load, provenance
from mtlearn.lab.result import recorded
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.tokens import PADDING
from mtlearn.merging.self_positioning import experiment, published, tasks
from mtlearn.merging.self_positioning import explorer as shown
from mtlearn.merging.self_positioning.baselines import rescaled_ties, squared_gradients
from mtlearn.merging.self_positioning.encoders import WordEncoder, pretrained, vocabulary
from mtlearn.merging.self_positioning.experiment import CHECKPOINTS, EXPERIMENT, Recipe, Run, SelfPositioningSettings
from mtlearn.merging.self_positioning.explorer import explorer
from mtlearn.merging.self_positioning.method import (
    SelfPositioning,
    TaskSpace,
    angles,
    check_probe,
    fold_coefficients,
    info_nce,
    line_fit,
    power_law,
    slerp,
    slerp_weights,
    two_task_position,
)
from mtlearn.merging.task_vectors import norm, scaled, ties

PUBLIC = Path(__file__).parent / "public"
CPU = torch.device("cpu")
WEIGHTS = st.floats(0.01, 10.0)


def draw(*shape: int, name: str | int = "x") -> Tensor:
    return torch.randn(shape, generator=stream(0, name))


def gram_of(*vectors: Tensor) -> Tensor:
    rows = torch.stack(vectors).double()
    return rows @ rows.T


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def states(count: int = 3) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """A base with an integer counter, and task vectors."""
    base = {"weight": draw(4, 3), "bias": draw(4), "seen": torch.tensor(7)}
    vectors = {f"task {i}": {name: draw(*base[name].shape, name=f"{name} {i}") for name in ("weight", "bias")} for i in range(count)}
    return base, vectors


# ------------------------------------------------------------------------------------------------------------------------ slerp and fold


def test_slerp_ends_at_its_vectors() -> None:
    first, second = draw(50), 3 * draw(50, name="y")
    torch.testing.assert_close(slerp(first, second, 1.0, 0.0), first, atol=1e-6, rtol=0)
    torch.testing.assert_close(slerp(first, second, 0.0, 2.0), second, atol=1e-6, rtol=0)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), WEIGHTS, WEIGHTS, st.floats(0.1, 9.0))
def test_slerp_of_equal_norms_is_an_arc(seed: int, a: float, b: float, length: float) -> None:
    first, second = (length * F.normalize(draw(6, name=f"{seed} {i}").double(), dim=0) for i in range(2))
    found, beta = slerp(first, second, a, b), b / (a + b)
    assert float(found.norm()) == pytest.approx(length, rel=1e-6)
    alpha = math.acos(max(-1.0, min(1.0, float(first @ second) / length**2)))
    turned = math.atan2(float((found - (found @ first) / length**2 * first).norm()), float(found @ first) / length)
    assert turned == pytest.approx(beta * alpha, abs=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), WEIGHTS, WEIGHTS, st.floats(0.01, 100.0))
def test_slerp_scales_with_its_vectors_and_not_with_its_weights(seed: int, a: float, b: float, c: float) -> None:
    first, second = draw(6, name=f"{seed} 0").double(), draw(6, name=f"{seed} 1").double()
    found = slerp(first, second, a, b)
    torch.testing.assert_close(slerp(c * first, c * second, a, b), c * found, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(slerp(first, second, c * a, c * b), found, rtol=1e-7, atol=1e-9)


def test_parallel_vectors_are_interpolated_linearly() -> None:
    first = draw(20).double()
    torch.testing.assert_close(slerp(first, 3 * first, 1.0, 3.0), 2.5 * first)
    almost = 3 * first + 1e-6 * draw(20, name="y").double()
    torch.testing.assert_close(slerp(first, almost, 1.0, 3.0), 0.25 * first + 0.75 * almost)


def test_both_formulas_agree_where_they_meet() -> None:
    for beta in (0.0, 0.2, 0.5, 0.9, 1.0):
        above, below = (slerp_weights(tensor(1 - gap), tensor(beta)) for gap in (0.99e-6, 1.01e-6))
        for left, right in zip(above, below, strict=True):
            torch.testing.assert_close(left, right, atol=1e-6, rtol=0)


def test_slerp_is_that_of_the_public_merging_code_below_its_threshold() -> None:
    cases = json.loads((PUBLIC / "slerp.json").read_text())["cases"]  # fusion-bench: linear above a cosine of 0.9995, which none of these reaches
    assert len(cases) == 6
    for case in cases:
        first, second = tensor(*case["first"]), tensor(*case["second"])
        torch.testing.assert_close(slerp(first, second, 1 - case["t"], case["t"]), tensor(*case["slerp"]))


def test_orthogonal_pair_by_hand() -> None:
    c = fold_coefficients(torch.eye(2).double() * 4, tensor(1, 1))
    torch.testing.assert_close(c, tensor(0.70710678, 0.70710678))
    assert float((c * 2).norm() / (tensor(0.5, 0.5) * 2).norm()) == pytest.approx(2**0.5)  # 1.414 times longer than the average


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.floats(0.2, 5.0))
def test_slerp_with_equal_weights_is_the_average_made_longer(seed: int, scale: float) -> None:
    first, second = draw(8, name=f"{seed} 0").double(), scale * draw(8, name=f"{seed} 1").double()
    half = math.acos(float(F.cosine_similarity(first, second, dim=0))) / 2
    torch.testing.assert_close(slerp(first, second, 1.0, 1.0), (first + second) / 2 / math.cos(half))


def test_later_tasks_weigh_more() -> None:
    c = fold_coefficients(torch.eye(4).double(), torch.ones(4).double())
    torch.testing.assert_close(c, tensor(0.3536, 0.3536, 0.5, 0.7071), atol=5e-5, rtol=0)


@settings(deadline=None, max_examples=40)
@given(st.lists(WEIGHTS, min_size=1, max_size=6), st.integers(0, 1000))
def test_the_fold_from_the_gram_matrix_is_the_fold_of_the_vectors(a: list[float], seed: int) -> None:
    vectors = [(i + 1) * draw(12, name=f"{seed} {i}").double() for i in range(len(a))]
    found = vectors[0]
    for k in range(1, len(a)):
        found = slerp(found, vectors[k], sum(a[:k]) / k, a[k])
    c = fold_coefficients(gram_of(*vectors), torch.tensor(a, dtype=torch.float64))
    torch.testing.assert_close(c @ torch.stack(vectors), found, atol=1e-5, rtol=1e-5)


def test_identical_vectors_and_a_single_one() -> None:
    vector = draw(9).double()
    for a in (tensor(1, 2, 3), tensor(5, 0.1, 0.1)):
        c = fold_coefficients(gram_of(vector, vector, vector), a)
        torch.testing.assert_close(c @ torch.stack([vector] * 3), vector)
    one = SelfPositioning(gram_of(vector), length=1.7)
    torch.testing.assert_close(one.coefficients().detach(), tensor(1.7))
    total = one.objective((one.coefficients() * 3).sum(), 0.1)
    (slope,) = torch.autograd.grad(total, one.raw, allow_unused=True, materialize_grads=True)
    assert slope.tolist() == [0.0]  # its direction is its own, whatever a is


def test_no_length_is_the_base_model() -> None:
    base, vectors = states(3)
    space = TaskSpace(base, vectors)
    found = space.state(SelfPositioning(space.gram, length=0.0).coefficients().detach())
    for name in ("weight", "bias"):
        assert torch.equal(found[name], base[name])


def test_gradients_of_weights_and_length_against_finite_differences() -> None:
    vectors = [(i + 1) * draw(12, name=i).double() for i in range(4)]
    gram, target = gram_of(*vectors), draw(12, name="target").double()

    def loss(a: Tensor, length: Tensor) -> Tensor:
        return (length * fold_coefficients(gram, a) @ torch.stack(vectors) - target).square().sum()

    inputs = (tensor(1.0, 0.5, 2.0, 0.7).requires_grad_(), tensor(1.3)[0].requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)
    nearly = gram_of(vectors[0], vectors[0] + 1e-5 * vectors[1])
    weights = tensor(1, 1).requires_grad_()
    fold_coefficients(nearly, weights)[0].backward()
    assert weights.grad is not None and weights.grad.isfinite().all()  # where acos has no derivative


def test_the_penalty_has_the_slope_mu() -> None:
    position = SelfPositioning(torch.eye(3).double())
    position.objective(torch.zeros(()), 0.03).backward()
    assert float(position.length.grad) == 0.03  # type: ignore[arg-type]
    assert position.raw.grad is None


def test_softplus_keeps_the_start_and_beta_its_meaning() -> None:
    position = SelfPositioning(torch.eye(3).double(), a=[1.0, 3.0, 2.0])
    torch.testing.assert_close(position.a.detach(), tensor(1, 3, 2))
    torch.testing.assert_close(position.beta.detach(), tensor(0.75, 0.5))


@example(seed=294, c1=0.0, c2=1.0)  # rounding once turned beyond the second vector
@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.floats(0.0, 5.0), st.floats(0.01, 5.0))
def test_slerp_reaches_every_positive_combination_of_two(seed: int, c1: float, c2: float) -> None:
    gram = gram_of(draw(7, name=f"{seed} 0"), 2 * draw(7, name=f"{seed} 1"))
    beta, length = two_task_position(gram, tensor(c1, c2))
    torch.testing.assert_close(length * fold_coefficients(gram, tensor(1 - beta, beta)), tensor(c1, c2), atol=1e-6, rtol=1e-6)


def test_the_position_of_parallel_vectors_is_on_their_line() -> None:
    beta, length = two_task_position(gram_of(draw(5), 2 * draw(5)), tensor(1.0, 3.0))
    assert (beta, length) == pytest.approx((0.75, 4.0))


# ----------------------------------------------------------------------------------------------------------------------- space of models


def test_a_point_of_the_space_is_a_model_and_leaves_counters_alone() -> None:
    base, vectors = states(2)
    space = TaskSpace(base, vectors)
    found = space.state(tensor(0.5, -2.0))
    for name in ("weight", "bias"):
        torch.testing.assert_close(found[name], base[name] + 0.5 * vectors["task 0"][name] - 2 * vectors["task 1"][name])
    assert set(found) == {"weight", "bias"}
    assert space.tasks == ("task 0", "task 1")
    torch.testing.assert_close(space.gram[0, 0].sqrt(), tensor(norm(vectors["task 0"]))[0])


def test_coordinates_undo_a_combination_and_tell_what_is_outside() -> None:
    base, vectors = states(3)
    space = TaskSpace(base, dict(list(vectors.items())[:2]))
    inside = {name: 0.3 * vectors["task 0"][name] + 2 * vectors["task 1"][name] for name in ("weight", "bias")}
    c, outside = space.coordinates(inside)
    torch.testing.assert_close(c, tensor(0.3, 2.0), atol=1e-5, rtol=1e-5)
    assert outside < 1e-3
    assert space.coordinates(vectors["task 2"])[1] > 0.1
    assert space.coordinates(scaled(inside, 0.0))[1] == 0


def test_the_search_learns_scalars_alone() -> None:
    base, vectors = states(2)
    space, model = TaskSpace(base, vectors), nn.Linear(3, 4)
    position = SelfPositioning(space.gram)
    functional_call(model, space.state(position.coefficients()), (draw(5, 3, name="in"),)).square().sum().backward()
    assert sum(p.numel() for p in position.parameters()) == 3
    assert all(p.grad is not None and p.grad.isfinite().all() for p in position.parameters())
    assert not any(p.requires_grad for p in space.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_angles_in_degrees() -> None:
    found = angles(gram_of(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 5.0]), torch.tensor([2.0, 2.0])))
    torch.testing.assert_close(found, torch.tensor([[0, 90, 45], [90, 0, 45], [45, 45, 0]]).double(), atol=1e-5, rtol=0)


def test_lines_and_powers_are_found_again() -> None:
    x = [1.0, 2.0, 5.0, 9.0]
    assert line_fit(x, [3 + 2 * v for v in x]) == pytest.approx((3, 2, 1))
    assert power_law(x, [3 * v**0.6 for v in x]) == pytest.approx((3, 0.6, 1))
    noisy = [1.0, 4.0, 2.0, 8.0]
    intercept, slope, r2 = line_fit(x, noisy)
    from scipy.stats import linregress

    theirs = linregress(x, noisy)
    assert (intercept, slope, r2) == pytest.approx((theirs.intercept, theirs.slope, theirs.rvalue**2))
    assert line_fit(x, [2.0] * 4)[2] == power_law(x, [2.0] * 4)[2] == 1.0


# ------------------------------------------------------------------------------------------------------------------------------ the loss


def test_info_nce_is_the_cross_entropy_of_the_similarities() -> None:
    query, positive = draw(8, 5), 3 * draw(8, 5, name="y")
    scores = F.normalize(query, dim=1) @ F.normalize(positive, dim=1).T / 0.07
    torch.testing.assert_close(info_nce(query, positive, temperature=0.07), F.cross_entropy(scores, torch.arange(8)))
    hard = draw(3, 5, name="hard")
    both = torch.cat([scores, F.normalize(query, dim=1) @ F.normalize(hard, dim=1).T / 0.07], 1)
    torch.testing.assert_close(info_nce(query, positive, temperature=0.07, negatives=hard), F.cross_entropy(both, torch.arange(8)))


def test_info_nce_by_the_papers_formula() -> None:
    query, positive, t = draw(6, 4), draw(6, 4, name="y"), 0.2
    total = 0.0
    for i in range(6):
        scores = [math.exp(float(F.cosine_similarity(query[i], positive[j], dim=0)) / t) for j in range(6)]
        total -= math.log(scores[i] / sum(scores))
    assert float(info_nce(query, positive, temperature=t)) == pytest.approx(total / 6, rel=1e-5)


def test_info_nce_is_the_public_librarys_loss() -> None:
    stored = json.loads((PUBLIC / "multiple_negatives.json").read_text())
    for case in stored["cases"]:
        arguments = [torch.tensor(case[name]) for name in ("query", "positive")]
        hard = torch.tensor(case["negative"]) if "negative" in case else None
        found = info_nce(*arguments, temperature=1 / case["scale"], negatives=hard)
        assert float(found) == pytest.approx(case["loss"], rel=1e-5)


def test_pairs_that_are_left_out_are_no_negatives() -> None:
    query, positive = draw(4, 5), draw(4, 5, name="y")
    left_out = torch.zeros(4, 4, dtype=torch.bool)
    left_out[0, 2] = left_out[1, 1] = True  # the diagonal stays all the same
    logits = F.normalize(query, dim=1) @ F.normalize(positive, dim=1).T / 0.05
    logits[0, 2] = -torch.inf
    torch.testing.assert_close(info_nce(query, positive, left_out=left_out), F.cross_entropy(logits, torch.arange(4)))


# ------------------------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fold_coefficients(gram_of(draw(4), torch.zeros(4)), tensor(1, 1)), "task vector 1 is zero, so it has no angle to the others"),
        (lambda: SelfPositioning(gram_of(torch.zeros(4), draw(4))), "task vector 0 is zero"),
        (lambda: fold_coefficients(gram_of(draw(4), -draw(4)), tensor(1, 1)), r"the task vectors are antiparallel \(cosine -1.000000\)"),
        (lambda: SelfPositioning(gram_of(draw(4), -2 * draw(4))), "the task vectors are antiparallel"),
        (lambda: fold_coefficients(torch.eye(2).double(), tensor(0, 0)), r"at least 0 with a positive sum of the first two, got \[0.0, 0.0\]"),
        (lambda: fold_coefficients(torch.eye(2).double(), tensor(2, -1)), r"the weights a must be at least 0 .* got \[2.0, -1.0\]"),
        (lambda: fold_coefficients(torch.eye(3).double(), tensor(1, 1)), r"gram must be \(N, N\) and a \(N,\), got \(3, 3\) and \(2,\)"),
        (lambda: SelfPositioning(torch.eye(2).double(), a=0.0), "the weights must start above 0, got 0.0"),
        (lambda: SelfPositioning(torch.eye(2).double()).objective(torch.zeros(()), -0.1), "mu must be at least 0, got -0.1"),
        (lambda: two_task_position(torch.eye(3).double(), tensor(1, 1)), r"two tasks are wanted: gram \(2, 2\) and c \(2,\), got \(3, 3\)"),
        (lambda: two_task_position(torch.eye(2).double(), tensor(-1, 1)), "the coefficients must be at least 0 and one of them positive"),
        (lambda: two_task_position(torch.eye(2).double(), tensor(0, 0)), "the coefficients must be at least 0 and one of them positive"),
        (lambda: info_nce(draw(1, 4), draw(1, 4)), "a batch needs at least 2 pairs, got 1: without a negative InfoNCE is 0 and has no gradient"),
        (lambda: info_nce(draw(3, 4), draw(2, 4)), r"query and positive must both be \(batch, width\), got \(3, 4\) and \(2, 4\)"),
        (lambda: info_nce(draw(3, 4), draw(3, 4), temperature=0), "temperature must be positive, got 0"),
        (lambda: info_nce(draw(3, 4), draw(3, 4), left_out=torch.zeros(3, 2).bool()), r"left_out must be \(3, 3\), got \(3, 2\)"),
        (lambda: check_probe({"R": 1, "T": 9}, ["R", "T"], batch=4), "the probe set of task 'R' needs at least 2 pairs, got 1"),
        (lambda: check_probe({"R": 9, "T": 9}, ["R", "T"], batch=1), "a probe batch needs at least 2 pairs, got 1"),
        (lambda: check_probe({}, ["R", "T"], batch=4), "the probe set has no pairs of 'R', 'T'"),
        (lambda: line_fit([1, 2], [1, 2]), "at least 3 different x, got 2 and 2"),
        (lambda: power_law([1, 2, 3], [1, 0, 2]), "a power law needs positive x and y"),
    ],
)
def test_bad_input_is_refused(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]


def test_task_vectors_that_do_not_fit_are_refused() -> None:
    base, vectors = states(2)
    with pytest.raises(ValueError, match="'bias' is in vector 0 but not in vector 1"):
        TaskSpace(base, {"a": vectors["task 0"], "b": {"weight": vectors["task 1"]["weight"]}})
    with pytest.raises(ValueError, match=r"'weight' has shape \(3, 4\) in vector 1, \(4, 3\) in vector 0"):
        TaskSpace(base, {"a": vectors["task 0"], "b": {**vectors["task 1"], "weight": draw(3, 4)}})
    with pytest.raises(ValueError, match="the task vector has an entry 'other' that the base lacks"):
        TaskSpace(base, {"a": {"other": draw(2)}})
    with pytest.raises(ValueError, match="the matrix of task vectors holds 1 of 32 values that are NaN"):
        TaskSpace(base, {"a": vectors["task 0"], "b": {**vectors["task 1"], "bias": torch.tensor([1.0, torch.nan, 0.0, 0.0])}})
    with pytest.raises(ValueError, match="there is no task vector"):
        TaskSpace(base, {})


def test_a_probe_set_without_a_task_warns() -> None:
    with pytest.warns(UserWarning, match="the probe set has no pairs of task 'T': the search will walk away from it"):
        check_probe({"R": 50}, ["R", "T"], batch=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_probe({"R": 50, "T": 2}, ["R", "T"], batch=8)


# ------------------------------------------------------------------------------------------------------------------- encoders, baselines


def test_the_encoder_is_a_mean_of_words_and_blind_to_padding() -> None:
    with seeded(0):
        encoder = WordEncoder(20, 6, 8).eval()
    tokens = torch.tensor([[3, 7, 7, PADDING], [5, PADDING, PADDING, PADDING]])
    mean = torch.stack([encoder.embedding.weight[[3, 7, 7]].mean(0), encoder.embedding.weight[5]])
    torch.testing.assert_close(encoder(tokens), F.normalize(mean + encoder.feed(mean), dim=-1))
    torch.testing.assert_close(encoder(F.pad(tokens, (0, 3))), encoder(tokens))
    torch.testing.assert_close(encoder(tokens).norm(dim=1), torch.ones(2))
    assert sum(p.numel() for p in WordEncoder().parameters()) == 336_576


def test_vocabulary() -> None:
    known = vocabulary(["The QR factorization, the matrix", "a matrix 3x3 of the"], 4)
    assert known(["matrix the", "unknown", "the the the factorization"], 3).tolist() == [[2, 1, 0], [0, 0, 0], [1, 1, 1]]


def test_a_pretrained_encoder_is_a_mean_over_its_tokens(tmp_path: Path) -> None:
    encoder, tokenise = pretrained(tiny_bert(tmp_path))
    tokens = tokenise(["a matrix", "the transform of a long signal"], 12)
    assert tokens.shape == (2, 8)
    encoder.eval()
    alone = encoder(tokenise(["a matrix"], 12))
    with torch.no_grad():
        torch.testing.assert_close(encoder(tokens)[0], alone[0], atol=1e-5, rtol=1e-4)
        states = encoder.body.model(input_ids=tokenise(["a matrix"], 12)).last_hidden_state
        torch.testing.assert_close(alone[0], F.normalize(states[0].mean(0), dim=-1), atol=1e-5, rtol=1e-4)


def test_a_tokeniser_without_padding_and_a_missing_library_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_bert(tmp_path)
    import transformers

    real = transformers.AutoTokenizer.from_pretrained

    def without(name: str) -> object:
        found = real(name)
        found.pad_token = None
        return found

    with monkeypatch.context() as patched:
        patched.setattr(transformers.AutoTokenizer, "from_pretrained", without)
        with pytest.raises(ValueError, match="has no padding token: set one and save it again"):
            pretrained(folder)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'mtlearn\[hf\]'"):
        pretrained(folder)


def test_ties_is_brought_to_the_mean_norm() -> None:
    _, vectors = states(3)
    rows = list(vectors.values())
    merged = rescaled_ties(rows, 0.5, 1.5)
    assert norm(merged) == pytest.approx(1.5 * sum(map(norm, rows)) / 3, rel=1e-5)
    plain = ties(rows, 0.5)
    torch.testing.assert_close(merged["bias"] / norm(merged), plain["bias"] / norm(plain))


def test_squared_gradients_by_hand() -> None:
    model = nn.Linear(2, 1, bias=False)
    inputs = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])]
    found = squared_gradients(model, [lambda x=x: model(x).sum() for x in inputs])  # type: ignore[misc]
    torch.testing.assert_close(found["weight"], torch.tensor([[5.0, 2.5]]))


# -------------------------------------------------------------------------------------------------------------------------- tasks, scores


SMALL = EXPERIMENT.scales["quick"]


@pytest.fixture(scope="module")
def world() -> tasks.Texts:
    return tasks.texts(0)


def test_the_texts(world: tasks.Texts) -> None:
    kept = tasks.entries()
    assert len(kept) > 2000
    assert len({entry.summary for entry in kept}) == len({entry.body for entry in kept}) == len(kept)
    assert {entry.page.module for entry in kept} <= set(tasks.MODULES)
    assert all(len(entry.summary.split()) >= 3 and 8 <= len(entry.body.split()) <= 80 for entry in kept)
    own = next(entry for entry in kept if entry.page.name == "numpy.any")
    assert "any" not in own.body.split()  # the body does not give the name away
    rows = torch.cat([world.parts[part] for part in ("train", "validation", "test")])
    assert sorted(rows.tolist()) == list(range(len(kept)))
    assert int(world.body.max()) < 5000


def test_batches_of_retrieval(world: tasks.Texts) -> None:
    task = tasks.retrieval(world, 0, pairs=300)
    batch = task.draw("train", 64, stream(0, "draw"))
    assert batch.left_out is None
    assert len(batch.query) == len(batch.positive) == 64
    lookup = {(tuple(one), tuple(other)): i for i, (one, other) in enumerate(zip(world.summary.tolist(), world.body.tolist(), strict=True))}
    rows = [lookup[tuple(one), tuple(other)] for one, other in zip(batch.query.tolist(), batch.positive.tolist(), strict=True)]
    assert len(set(rows)) == 64
    assert int(world.module[rows].bincount().max()) >= 20  # half of the batch from one module, where it has so many
    assert task.pairs["train"] == 300
    assert task.pairs["test"] == 500
    assert set(rows) <= set(world.parts["train"].tolist())


def test_batches_of_topic(world: tasks.Texts) -> None:
    task = tasks.topic(world, 0, pairs=200)
    batch = task.draw("train", 64, stream(0, "draw"))
    lookup = {tuple(row): i for i, row in enumerate(world.body.tolist())}
    query, positive = ([lookup[tuple(row)] for row in side.tolist()] for side in (batch.query, batch.positive))
    assert torch.equal(world.module[query], world.module[positive])
    assert all(one != other for one, other in zip(query, positive, strict=True))
    assert batch.left_out is not None
    assert torch.equal(batch.left_out, world.module[query][:, None] == world.module[positive])
    probe = task.draw("validation", 400, stream(0, "draw"))  # more than there are: with repeats
    assert len(probe.query) == 400
    assert {lookup[tuple(row)] for row in probe.query.tolist()} <= set(world.parts["validation"].tolist())


def test_halves_are_the_whole_body(world: tasks.Texts) -> None:
    batch = tasks.halves(world, 16, stream(0, "halves"))
    assert not ((batch.query != PADDING) & (batch.positive != PADDING)).any()
    whole = {tuple(row) for row in world.body.tolist()}
    assert all(tuple(row) in whole for row in (batch.query + batch.positive).tolist())
    assert torch.equal((batch.query != PADDING).sum(1), (batch.query + batch.positive != PADDING).sum(1) // 2)


def test_scores_against_their_definitions() -> None:
    query, document = F.normalize(draw(30, 4), dim=1), F.normalize(draw(30, 4, name="y"), dim=1)
    total = 0.0
    for i in range(30):
        rank = sorted(range(30), key=lambda j: -float(query[i] @ document[j])).index(i) + 1
        total += 1 / rank if rank <= 10 else 0.0
    assert tasks.reciprocal_rank(query, document) == pytest.approx(total / 30)
    from sklearn.metrics import average_precision_score

    label = torch.randint(4, (30,), generator=stream(0, "label"))
    label[0] = 9  # without a mate
    found = []
    for i in range(1, 30):
        others = [j for j in range(30) if j != i]
        found.append(average_precision_score(label[others] == label[i], query[others] @ query[i]))
    assert tasks.average_precision(query, label) == pytest.approx(sum(found) / len(found), abs=1e-6)


# --------------------------------------------------------------------------------------------------------------------------- experiment


def test_quick_experiment() -> None:
    arms = run_quick(EXPERIMENT)
    share = arms["resampled, best ratio on the probe"]["share of R"]
    assert arms["resampled, best ratio on the probe"]["mean"] == arms[f"resampled, P(R) = {share:g}"]["mean"]
    assert arms["Self Positioning"]["batches"] == 2 * 25 + 2 * 10
    assert 0 < arms["Self Positioning"]["beta"] < 1
    assert arms["slerp"]["length of the vector"] == pytest.approx(arms["average, as long as slerp"]["length of the vector"], rel=1e-4)
    assert arms["slerp"]["length of the vector"] > arms["average"]["length of the vector"]
    assert arms["Self Positioning"]["lambda"] > arms["Self Positioning with mu"]["lambda"]
    assert arms["Self Positioning, probe 90 % R"]["beta"] < arms["Self Positioning"]["beta"]


def quick_run(**changes: object) -> Run:
    recipe = Recipe(**{**SMALL.recipe.__dict__, **changes})  # type: ignore[arg-type]
    return Run(experiment.world_of(SelfPositioningSettings(seeds=1, recipe=recipe), 0), recipe, 0, CPU)


def test_a_run_repeats_and_the_arms_share_their_data() -> None:
    now = quick_run()
    base = now.base()
    one, other = (now.trained(base, 1.0, 5).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(a, b) for a, b in zip(base.state_dict().values(), now.base().state_dict().values(), strict=True))


def test_a_probe_of_one_task_walks_to_that_task() -> None:
    now = quick_run(probe_steps=40)
    base = now.base()
    start = base.state_dict()
    vectors = {name: experiment.task_vector(start, now.trained(base, share, 25).state_dict()) for name, share in (("R", 1.0), ("T", 0.0))}
    space = TaskSpace(start, vectors)
    betas = [float(experiment.search(now, base, space, share=share).beta.detach()[0]) for share in (1.0, 0.5, 0.0)]
    assert betas[0] < betas[1] < betas[2]
    trace: list[Tensor] = []
    position = experiment.search(now, base, space, trace=trace)
    assert len(trace) == 41
    assert torch.equal(trace[-1], position.coefficients().detach())
    assert torch.equal(trace[0], fold_coefficients(space.gram, torch.ones(2).double()))
    best = experiment.best_on_probe(now, base, [space.state(c) for c in (trace[0], torch.zeros(2))])
    assert torch.equal(best["embedding.weight"], space.state(trace[0])["embedding.weight"])
    assert len(experiment.slerp_grid(space)) == 50


def test_the_recorded_result_says_what_the_notebook_says() -> None:
    result = recorded("self_positioning")
    verdicts = {(claim.better, claim.worse, claim.metric): claim.verdict for claim in result.claims}
    position = "Self Positioning"
    assert verdicts[position, "resampled, best ratio on the probe", "batches"] == "holds"
    assert verdicts[position, "resampled, best ratio on the probe", "mean"] == "fails"
    assert verdicts[position, "slerp, grid on the probe", "mean"] == "holds"
    assert verdicts[position, "free coefficients, same probe", "mean"] == "undecided"
    assert verdicts[position, "joint, then all weights on the probe", "mean"] == "fails"
    assert verdicts[position, "R, then T", "mean"] == "fails"
    assert verdicts["joint vector and V_R", "joint vector and V_T", "cosine"] == "holds"
    assert verdicts["gradients at the base", None, "cosine"] == "fails"
    joint = next(claim for claim in result.claims if (claim.better, claim.worse) == (position, "joint, by data"))
    assert joint.low is not None and joint.low > 0 and joint.verdict == "undecided"  # ahead for certain, by the margin or not


@pytest.mark.skipif(not (REAL / "sts").exists() or not (REAL / "cranfield").exists(), reason="needs the published files")
@pytest.mark.parametrize("pretrained_encoder", [False, True])
def test_paper_scale_for_a_few_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pretrained_encoder: bool) -> None:
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    monkeypatch.setattr(published, "LONGEST", 12)
    paper = EXPERIMENT.scales["paper"]
    assert paper.published
    few = {"base_steps": 2, "steps": 2, "batch": 8, "probe_steps": 2, "probe_batches": 1, "growth": (16, 32, 48), "ratios": (0.5,), "test": 40}
    recipe = Recipe(**{**paper.recipe.__dict__, **few, "vocabulary": 800, "width": 16, "hidden": 16, "pairs": (64, 64)})
    encoder = tiny_bert(tmp_path) if pretrained_encoder else ""
    found = experiment.run(SelfPositioningSettings(seeds=1, recipe=recipe, published=True, encoder=encoder), 0, CPU)
    assert set(found) >= {"Self Positioning", "joint, by data", "R, then T", "RegMean, grid on the probe"}
    assert all(math.isfinite(value) for metrics in found.values() for value in metrics.values())
    assert not any(math.isnan(value) for value in found["Self Positioning"].values())


def test_documentation_with_a_pretrained_encoder(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path)
    world = tasks.documentation_world(0, pairs=(40, 20), build=lambda size: WordEncoder(size), encoder=folder, most=20)
    assert world.first is None
    encoder = world.encoder().eval()
    with torch.no_grad():
        assert 0 <= world.tasks[0].score(encoder, "test") <= 1


# ----------------------------------------------------------------------------------------------------------------------------- explorer


def test_the_shipped_plane_is_that_of_the_code() -> None:
    found = load(CHECKPOINTS[0])
    assert isinstance(found, experiment.Landscape)
    measured = experiment.measure_landscape(found)
    assert measured == provenance(CHECKPOINTS[0])["measured"]
    rows = experiment.plane(found.gram)
    torch.testing.assert_close(rows @ rows.T, found.gram)
    assert float(rows[0, 1]) == 0
    torch.testing.assert_close(found.walk[0], fold_coefficients(found.gram, torch.ones(2).double()) @ rows)


def test_a_plane_is_made_by_the_code() -> None:
    small = Recipe(**{**SMALL.recipe.__dict__, "steps": 4, "base_steps": 4, "probe_steps": 2})
    with seeded(0):
        found = experiment.make_landscape(experiment.Shipped(seed=3, recipe=small, side=3))
    assert all(value.isfinite().all() for value in found.state_dict().values())
    assert found.scores.shape == (2, 3, 3)
    assert float(found.joint_outside.min()) > 0


def test_the_surfaces_give_the_measured_values_and_their_slopes() -> None:
    found = load(CHECKPOINTS[0])
    assert isinstance(found, experiment.Landscape)
    x, y = float(found.places[9]), float(found.places[5])
    assert shown.scores_at(x, y) == pytest.approx(found.scores[:, 5, 9].tolist(), abs=1e-6)
    assert float(shown.ProbeLoss.apply(tensor(x, y), 0.3)) == pytest.approx(0.3 * float(found.losses[0, 5, 9]) + 0.7 * float(found.losses[1, 5, 9]))
    assert torch.autograd.gradcheck(lambda point: shown.ProbeLoss.apply(point, 0.3), (tensor(5.1, 7.3).requires_grad_(),), atol=1e-4)


def test_explorer_starts_after_a_search_that_beats_its_start_and_the_joint_model() -> None:
    view = explorer()
    assert view.text.startswith("step 100: β = 0.")
    means = {name: float(value) for name, value in re.findall(r"(the point|search|joint)[^;]*?mean ([0-9.]+)", view.text)}
    assert means["search"] > means["joint"]
    losses = [float(shown.ProbeLoss.apply(torch.from_numpy(row), 0.5)) for row in shown.walk(*shown.FAR, 0.0, 0.5)[0]]
    assert losses[-1] < losses[0]


def test_explorer_drags_and_walks_by_keys() -> None:
    view = explorer()
    before = view.text
    view.point("press", 3.0, 8.0)
    moved = view.text
    assert moved != before
    view.point("key", 0, 0, key="ArrowRight")
    assert view.text != moved
    view.point("key", 0, 0, key="ArrowLeft")
    assert view.text == moved
    view.point("key", 0, 0, key="x")
    view.point("press", 3.0, 8.0, axes=1)
    assert view.text == moved
    view.point("drag", -100.0, 100.0)  # beyond the edge and outside the sector of positive weights: it stops at the edge, the walk starts nearby
    assert view.text != moved
    view.preset("reset")
    assert view.text == before


def test_explorer_sliders_do_what_they_say() -> None:
    view = explorer()

    def beta_and_length() -> tuple[float, float]:
        found = re.search(r"β = ([0-9.]+), λ = ([0-9.]+)", view.text)
        assert found
        return float(found[1]), float(found[2])

    beta, length = beta_and_length()
    view.set(mu=0.6)
    assert beta_and_length()[1] < length
    view.set(mu=0.0, share=1.0)
    assert beta_and_length()[0] < beta
    view.set(share=0.0)
    assert beta_and_length()[0] > beta
    view.preset("reset")
    view.point("key", 0, 0, key="Enter")
    view.set(step=0)
    assert beta_and_length() == pytest.approx((0.5, 1.0), abs=0.01)
    view.set(data="1 : 3")
    assert "joint, 1 : 3" in view.text
    play = view.widget.children[-2].children[1]
    play.value = 40
    assert view.controls["step"].value == 40
    for label in view.presets:
        view.preset(label)
        assert view.text
