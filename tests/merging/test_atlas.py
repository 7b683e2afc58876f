import copy
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from real_files import REAL
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.functional import cross_entropy, mse_loss

from mtlearn.datasets.mnist import mnist
from mtlearn.lab.checkpoints import load as load_shipped
from mtlearn.lab.checkpoints import provenance
from mtlearn.lab.fit import fit
from mtlearn.lab.result import recorded
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.lora import LoRALayer, add_lora, lora_state, merged_state
from mtlearn.merging import transformed_digits
from mtlearn.merging.atlas import experiment
from mtlearn.merging.atlas.adaptation import Trusted, contrastive_loss, reliable_entropy, sharpness_aware, trust, ufm_loss, ufm_rows
from mtlearn.merging.atlas.clip import PooledVision, load_clip_vision
from mtlearn.merging.atlas.experiment import SHIPPED
from mtlearn.merging.atlas.explorer import explorer, read_off, story
from mtlearn.merging.atlas.few_shot import LPPlusPlus, TipAdapter
from mtlearn.merging.atlas.method import (
    LinearisedComposition,
    LinearisedModel,
    PartitionedComposition,
    coefficient_penalty,
    disentanglement_error,
    few_shot_pool,
    information,
    kept_step,
    linearised,
    lora_vector,
    mix,
    negation_loss,
    random_bases,
    select_blockwise,
    select_by_features,
    select_randomly,
    select_vectors,
)
from mtlearn.merging.composition import Composition
from mtlearn.merging.task_vectors import add, apply, scaled, task_vector

CPU = torch.device("cpu")
COUNT = 3  # task vectors of the little world


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=stream(0, name))


def little(seed: int = 0) -> nn.Sequential:
    with seeded(seed):
        return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 4)).requires_grad_(False).eval()


def tuned(base: nn.Module, number: int) -> dict[str, Tensor]:
    return {name: value + 0.3 * draw(*value.shape, name=f"tuned {number} {name}") for name, value in base.state_dict().items()}


def world() -> tuple[nn.Sequential, list[dict[str, Tensor]], Tensor]:
    base = little()
    return base, [task_vector(base.state_dict(), tuned(base, number)) for number in range(COUNT)], draw(7, 6)


C = TypeVar("C", bound=Composition)


def with_coefficients(composition: C, values: Tensor) -> C:
    with torch.no_grad():
        composition.coefficients.copy_(values)
    return composition


# ------------------------------------------------------------------------------------------------------- the learned coefficients, as used here


@pytest.mark.parametrize("kind", ["task", "block", "parts", "linear"])
def test_zero_coefficients_are_the_base_to_the_bit(kind: str) -> None:
    base, vectors, x = world()
    composition = {
        "task": lambda: Composition(base, vectors, per="task"),
        "block": lambda: Composition(base, vectors),
        "parts": lambda: PartitionedComposition(base, vectors, 4, generator=stream(0, "parts")),
        "linear": lambda: LinearisedComposition(base, vectors),
    }[kind]()
    assert torch.equal(composition(x), base(x))
    assert not composition.coefficients.detach().any()


@pytest.mark.parametrize("number", range(COUNT))
def test_one_row_of_ones_is_the_fine_tuned_model(number: int) -> None:
    base, vectors, x = world()
    composition = with_coefficients(Composition(base, vectors), torch.eye(COUNT)[number, :, None].expand(-1, len(vectors[0])))
    truth = functional_call(base, tuned(base, number), (x,))
    torch.testing.assert_close(composition(x), truth, atol=1e-5, rtol=0)


@given(scale=st.floats(-2, 2))
@settings(deadline=None, max_examples=25)
def test_equal_coefficients_are_task_arithmetic(scale: float) -> None:
    base, vectors, _ = world()
    composition = with_coefficients(Composition(base, vectors), torch.full((COUNT, len(vectors[0])), scale))
    # the published merge: the base plus the scaled sum, written out
    truth = {name: base.state_dict()[name] + scale * (vectors[0][name] + vectors[1][name] + vectors[2][name]) for name in vectors[0]}
    for name, value in composition.state().items():
        torch.testing.assert_close(value, truth[name], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(value, apply(base.state_dict(), add(vectors), scale)[name], atol=1e-6, rtol=1e-6)


def test_each_layer_by_its_own_weight_as_layerwise_merging_does() -> None:
    base, vectors, _ = world()
    by_block = draw(COUNT, len(vectors[0]), name="by block")
    found = with_coefficients(Composition(base, vectors), by_block).state()
    for j, name in enumerate(vectors[0]):  # layer-wise AdaMerging's formula, where each parameter is a layer
        truth = base.state_dict()[name] + sum(by_block[i, j] * vectors[i][name] for i in range(COUNT))
        torch.testing.assert_close(found[name], truth, atol=1e-6, rtol=1e-6)


def test_trainable_parameters_are_counted_exactly() -> None:
    base, vectors, _ = world()
    blocks = len(list(base.parameters()))
    for composition, wanted in (
        (Composition(base, vectors, per="task"), COUNT),
        (Composition(base, vectors), COUNT * blocks),
        (PartitionedComposition(base, vectors, 4), COUNT * blocks * 4),
    ):
        assert sum(p.numel() for p in composition.parameters() if p.requires_grad) == wanted


def test_integer_buffers_are_skipped() -> None:
    with seeded(0):
        base = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).requires_grad_(False)
    base.train()
    base(draw(9, 6))
    base.eval()
    other = {name: value + 1 for name, value in base.state_dict().items()}
    vector = {name: other[name] - value for name, value in base.state_dict().items()}  # the counter's difference is in it
    composition = with_coefficients(Composition(base, [vector]), torch.tensor(0.5))
    assert "1.num_batches_tracked" not in composition.blocks
    assert composition.state()["1.num_batches_tracked"] == base.state_dict()["1.num_batches_tracked"] == 1
    composition(draw(3, 6)).sum().backward()
    gradient = composition.coefficients.grad
    assert gradient is not None
    moves = [name for name, value in zip(composition.blocks, gradient[0], strict=True) if value]
    assert moves == ["0.weight", "0.bias", "1.weight", "1.bias"]  # running statistics get no gradient: from 0 they stay at the base


@pytest.mark.parametrize("kind", [Composition, LinearisedComposition, lambda model, vectors: PartitionedComposition(model, vectors, 2)])
def test_vectors_that_do_not_fit_are_refused(kind: object) -> None:
    base, vectors, _ = world()
    assert callable(kind)
    with pytest.raises(ValueError, match="there is no task vector"):
        kind(base, [])
    with pytest.raises(ValueError, match=r"'0\.weight' has shape \(2, 2\) in the task vectors, \(8, 6\) in the model"):
        kind(base, [{**vectors[0], "0.weight": torch.zeros(2, 2)}])
    with pytest.raises(ValueError, match=r"'0\.weight' has shape .* in vector 1"):
        kind(base, [vectors[0], {**vectors[1], "0.weight": torch.zeros(2, 2)}])
    with pytest.raises(ValueError, match=r"'3\.bias' is in vector 0 but not in vector 1"):
        kind(base, [vectors[0], {name: value for name, value in vectors[1].items() if name != "3.bias"}])
    with pytest.raises(ValueError, match="an entry 'stranger' that the model lacks"):
        kind(base, [{"stranger": torch.zeros(1)}])
    with pytest.raises(ValueError, match=r"'0\.bias' of the task vectors holds 8 of 24 values that are NaN or infinite"):
        kind(base, [*vectors[:2], {**vectors[2], "0.bias": torch.full((8,), torch.nan)}])


# ------------------------------------------------------------------------------------------------------------------------- aTLAS x K


def test_one_partition_is_the_blockwise_model() -> None:
    base, vectors, x = world()
    by_block = draw(COUNT, len(vectors[0]), name="by block")
    one = with_coefficients(PartitionedComposition(base, vectors, 1), by_block[..., None])
    torch.testing.assert_close(one(x), with_coefficients(Composition(base, vectors), by_block)(x), atol=1e-6, rtol=1e-6)


@given(partitions=st.integers(1, 4), seed=st.integers(0, 50))
@settings(deadline=None, max_examples=25)
def test_equal_coefficients_over_parts_are_blockwise_and_masks_share_out_every_entry(partitions: int, seed: int) -> None:
    base, vectors, x = world()
    by_block = draw(COUNT, len(vectors[0]), name="by block")
    made = PartitionedComposition(base, vectors, partitions, generator=stream(seed, "parts"))
    many = with_coefficients(made, by_block[..., None].expand(-1, -1, partitions))
    torch.testing.assert_close(many(x), with_coefficients(Composition(base, vectors), by_block)(x), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(many.by_block(), by_block, atol=1e-6, rtol=1e-6)
    for name in many.blocks:
        masks = many.masks(name)
        assert masks.shape == (partitions, *base.state_dict()[name].shape)
        assert torch.equal(masks.sum(0), torch.ones_like(masks[0]))


def test_parts_are_what_their_masks_say_for_every_kind_of_block() -> None:
    base, vectors, _ = world()
    made = PartitionedComposition(base, vectors, 3, generator=stream(0, "parts"))
    made = with_coefficients(made, draw(*made.coefficients.shape, name="parts"))
    for j, name in enumerate(made.blocks):  # biases and gains move too, which the published code leaves where they are
        masks = made.masks(name)
        truth = sum(made.coefficients[i, j, k] * masks[k] * vectors[i][name] for i in range(COUNT) for k in range(3))
        torch.testing.assert_close(made.displacement()[name], truth)
        assert made.displacement()[name].detach().any()
    assert not torch.equal(made.masks("0.bias"), made.masks("1.bias"))  # equal shapes, parts of their own


@pytest.mark.parametrize("partitions", [0, -1, 5])
def test_impossible_partitions_are_refused(partitions: int) -> None:
    base, vectors, _ = world()
    with pytest.raises(ValueError, match=rf"partitions must be between 1 and 4, the size of the smallest block \('3\.bias'\), got {partitions}"):
        PartitionedComposition(base, vectors, partitions)


# ----------------------------------------------------------------------------------------------------------------------- linearised


def test_the_linearised_model_is_affine_in_its_coefficients() -> None:
    base, vectors, x = world()
    composition = LinearisedComposition(base, vectors)
    first, second = (draw(COUNT, len(vectors[0]), name=name) for name in ("first", "second"))
    outputs = {}
    for share in (0.0, 0.3, 1.0):
        outputs[share] = with_coefficients(composition, share * first + (1 - share) * second)(x)
    torch.testing.assert_close(outputs[0.3], 0.3 * outputs[1.0] + 0.7 * outputs[0.0], atol=1e-5, rtol=1e-5)


def test_the_linearised_model_is_the_tangent_of_the_model() -> None:
    base, vectors, x = world()
    step = 1e-3
    _, change = linearised(base, vectors[0], x)
    ahead, behind = (functional_call(base, apply(base.state_dict(), vectors[0], sign * step), (x,)) for sign in (1, -1))
    torch.testing.assert_close(change, (ahead - behind) / (2 * step), atol=2e-3, rtol=1e-2)
    state = dict(base.named_parameters())
    torch.testing.assert_close(change, jvp(lambda w: functional_call(base, w, (x,)), (state,), (vectors[0],))[1])


def test_a_linearised_model_learns_its_task_vector() -> None:
    base, _, x = world()
    model = LinearisedModel(base)
    assert torch.equal(model(x), base(x))
    labels = torch.arange(7) % 4
    history = fit(model, lambda step: cross_entropy(model(x), labels), steps=30, optimizer=torch.optim.Adam(model.parameters(), lr=0.05))
    assert history.losses[-1] < 0.5 * history.losses[0]
    vector = model.vector()
    assert set(vector) == {name for name, _ in base.named_parameters()}
    whole = with_coefficients(LinearisedComposition(base, [vector]), torch.ones(1, len(vector)))
    torch.testing.assert_close(whole(x), model(x), atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------- scores from one pass


def loss_and_gradient(base: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    weights = {name: value.clone().requires_grad_() for name, value in base.named_parameters()}
    loss = cross_entropy(functional_call(base, weights, (x,)), torch.arange(len(x)) % 4)
    return loss, dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


def test_scores_are_the_gradients_of_the_coefficients_and_finite_differences() -> None:
    base, vectors, x = world()
    composition = Composition(base, vectors)
    (truth,) = torch.autograd.grad(cross_entropy(composition(x), torch.arange(7) % 4), composition.coefficients)
    scores = information(loss_and_gradient(base, x)[1], vectors)
    torch.testing.assert_close(scores, truth, atol=1e-5, rtol=1e-5)
    double = copy.deepcopy(base).double()
    step = 1e-6
    for i, j in ((0, 0), (1, 2), (2, 5)):
        values = []
        for sign in (1, -1):
            moved = {name: sign * step * value.double() for name, value in vectors[i].items() if name == composition.blocks[j]}
            values.append(cross_entropy(functional_call(double, apply(double.state_dict(), moved), (x.double(),)), torch.arange(7) % 4))
        assert ((values[0] - values[1]) / (2 * step)).item() == pytest.approx(scores[i, j].item(), abs=1e-5)


def test_scores_need_a_gradient_of_every_block() -> None:
    base, vectors, x = world()
    gradient = loss_and_gradient(base, x)[1]
    with pytest.raises(ValueError, match=r"the block '3\.bias' of shape \(4,\) needs a gradient of the same shape, got none"):
        information({name: value for name, value in gradient.items() if name != "3.bias"}, vectors)
    with pytest.raises(ValueError, match=r"got one of shape \(9,\)"):
        information({**gradient, "3.bias": torch.zeros(9)}, vectors)


def test_selection_by_hand() -> None:
    scores = torch.tensor([[5.0, 0.0, 1.0], [-4.0, 3.0, 0.0], [0.0, -1.0, -2.0]])
    assert select_blockwise(scores, 1).tolist() == [[0, 1, 2]]
    assert select_blockwise(scores, 2).tolist() == [[0, 1, 2], [1, 2, 0]]
    assert select_vectors(scores, 2).tolist() == [[1, 1, 1], [0, 0, 0]]  # L1 norms 6, 7, 3
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert select_by_features(torch.tensor([0.1, 1.0]), features, 2, blocks=3).tolist() == [[1, 1, 1], [2, 2, 2]]
    drawn = select_randomly(scores, 2, generator=stream(0, "random"))
    assert drawn.shape == (2, 3)
    assert (drawn[0] != drawn[1]).all()


@given(budget=st.integers(1, 5), seed=st.integers(0, 1000))
@settings(deadline=None)
def test_blockwise_selection_keeps_the_most_information_of_any(budget: int, seed: int) -> None:
    scores = torch.randn(5, 4, generator=stream(seed, "scores"))

    def kept(chosen: Tensor) -> float:
        assert all(len(set(column)) == budget for column in chosen.T.tolist())
        return scores.abs().gather(0, chosen).sum().item()

    best = kept(select_blockwise(scores, budget))
    assert best >= kept(select_vectors(scores, budget)) - 1e-5
    assert best >= kept(select_randomly(scores, budget, generator=stream(seed, "random"))) - 1e-5


def test_mixed_vectors_hold_the_chosen_blocks_and_all_of_them_are_all_vectors() -> None:
    base, vectors, _ = world()
    scores = information(loss_and_gradient(base, draw(7, 6))[1], vectors)
    mixed = mix(vectors, select_blockwise(scores, 1))
    assert len(mixed) == 1
    for name, number in zip(mixed[0], select_blockwise(scores, 1)[0].tolist(), strict=True):
        assert mixed[0][name] is vectors[number][name]  # the same memory, not a copy
    torch.testing.assert_close(add(mix(vectors, select_blockwise(scores, COUNT))), add(vectors))


@pytest.mark.parametrize("budget", [0, 4])
def test_a_budget_out_of_range_is_refused(budget: int) -> None:
    scores = torch.zeros(3, 5)
    for select in (
        select_blockwise,
        select_vectors,
        select_randomly,
        lambda scores, budget: select_by_features(torch.ones(5), scores, budget, blocks=2),
    ):
        with pytest.raises(ValueError, match=f"budget must be between 1 and the number of task vectors, 3, got {budget}"):
            select(scores, budget)


def test_a_choice_that_does_not_fit_is_refused() -> None:
    _, vectors, _ = world()
    with pytest.raises(ValueError, match=r"chosen must be \(budget, 6\), a vector for each block, got \(1, 2\)"):
        mix(vectors, torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="chosen names vectors 0 to 3; there are 0 to 2"):
        mix(vectors, torch.tensor([[0, 0, 3, 0, 0, 0]]))


# -------------------------------------------------------------------------------------------------------------------- the objectives


def test_a_linear_model_reaches_the_least_squares_solution() -> None:
    with seeded(0):
        base = nn.Linear(5, 3).requires_grad_(False).double()
    vectors = [{name: draw(*value.shape, name=f"{number} {name}").double() for name, value in base.state_dict().items()} for number in range(2)]
    x, y = draw(40, 5).double(), draw(40, 3, name="y").double()
    composition = Composition(base, vectors)
    composition.coefficients = nn.Parameter(composition.coefficients.detach().double())
    directions = [x @ vector["weight"].T for vector in vectors], [vector["bias"].expand(40, -1) for vector in vectors]
    matrix = torch.stack([part.flatten() for pair in zip(*directions, strict=True) for part in pair], 1)  # (120, 4): vector by block
    truth = torch.linalg.lstsq(matrix, (y - base(x)).flatten()[:, None]).solution.view(2, 2)
    optimizer = torch.optim.LBFGS(
        [composition.coefficients], lr=1, max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = mse_loss(composition(x), y)
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    torch.testing.assert_close(composition.coefficients.detach(), truth, atol=1e-6, rtol=1e-6)


def test_the_penalty_by_hand() -> None:
    coefficients = torch.tensor([[3.0, 0.0], [-4.0, 1.0]])
    assert coefficient_penalty(coefficients, 1).item() == pytest.approx(0.5 * (7 + 1) / 2)
    assert coefficient_penalty(coefficients, 2).item() == pytest.approx(0.5 * (5 + 1) / 2)
    assert coefficient_penalty(coefficients[..., None].expand(-1, -1, 4), 2).item() == pytest.approx(0.5 * (5 + 1) / 2)
    at_zero = torch.zeros(2, 2, requires_grad=True)
    coefficient_penalty(at_zero, 2).backward()
    assert at_zero.grad is not None
    assert at_zero.grad.isfinite().all()
    with pytest.raises(ValueError, match="p must be 1 or 2, got 3"):
        coefficient_penalty(coefficients, 3)
    with pytest.raises(ValueError, match=r"coefficients \(vectors, blocks\), got shape \(2,\)"):
        coefficient_penalty(torch.zeros(2))


def test_negation_goes_up_on_the_target_and_down_on_the_control() -> None:
    base, vectors, x = world()
    composition = Composition(base, vectors[:1])
    target, control = torch.arange(7) % 4, base(x).argmax(1)
    loss = lambda step: negation_loss(cross_entropy(composition(x + 1), target), cross_entropy(composition(x), control))
    before = [cross_entropy(composition(x + 1), target).item(), cross_entropy(composition(x), control).item()]
    fit(composition, loss, steps=15, optimizer=torch.optim.AdamW(composition.parameters(), lr=0.02))
    after = [cross_entropy(composition(x + 1), target).item(), cross_entropy(composition(x), control).item()]
    assert after[0] - after[1] > before[0] - before[1]
    with pytest.raises(ValueError, match="negation needs a control set"):
        negation_loss(torch.tensor(1.0), None)


def test_which_step_of_forgetting_is_kept() -> None:
    target, control = [0.9, 0.5, 0.2, 0.2, 0.1], [0.8, 0.79, 0.77, 0.76, 0.5]
    assert kept_step(target, control, 0.8) == 2
    assert kept_step(target, control, 0.8, threshold=0.6) == 4
    assert kept_step(target, [0.1] * 5, 0.8) is None
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\], got 0"):
        kept_step(target, control, 0.8, threshold=0)
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\], got 1.5"):
        kept_step(target, control, 0.8, threshold=1.5)
    with pytest.raises(ValueError, match="one accuracy a step each, got 5 and 1"):
        kept_step(target, [0.1], 0.8)


def test_the_targets_own_vector_is_refused() -> None:
    _, vectors, _ = world()
    pool = {"cars": vectors[0], "flowers": vectors[1]}
    assert list(few_shot_pool(pool, "digits", vectors[2])) == ["cars", "flowers"]
    with pytest.raises(ValueError, match="the pool holds 'cars', a vector trained on the target 'cars' itself"):
        few_shot_pool(pool, "cars")
    with pytest.raises(ValueError, match="the pool holds 'flowers', a vector trained on the target 'digits' itself"):
        few_shot_pool(pool, "digits", scaled(vectors[1], 0.5))  # under another name, and at another length
    with pytest.raises(ValueError, match="the pool has no task vector"):
        few_shot_pool({}, "cars")


# ------------------------------------------------------------------------------------------------------------- other sources of vectors


def test_a_lora_is_a_sparse_task_vector() -> None:
    base, _, x = world()
    adapted = copy.deepcopy(base)
    add_lora(adapted, ("0", "3"), rank=2, generator=stream(0, "lora"))
    layers = [layer for layer in adapted.modules() if isinstance(layer, LoRALayer)]
    for number, layer in enumerate(layers):
        layer.lora_B.data.copy_(draw(*layer.lora_B.shape, name=f"B {number}"))
    vector = lora_vector(lora_state(adapted), layers[0].scale)
    assert set(vector) == {"0.weight", "3.weight"}
    truth = task_vector(base.state_dict(), merged_state(adapted))
    for name, value in vector.items():
        torch.testing.assert_close(value, truth[name], atol=1e-6, rtol=1e-5)
    whole = with_coefficients(Composition(base, [vector]), torch.ones(1, 2))
    torch.testing.assert_close(whole(x), adapted.eval()(x), atol=1e-5, rtol=1e-5)


def test_broken_factors_are_refused() -> None:
    factors = {"0.lora_A": torch.zeros(2, 6), "0.lora_B": torch.zeros(8, 2)}
    with pytest.raises(ValueError, match=r"no factor named <layer>\.lora_A"):
        lora_vector({"0.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"the factor '0\.lora_B' is missing"):
        lora_vector({"0.lora_A": factors["0.lora_A"]})
    with pytest.raises(ValueError, match=r"the factors of '0' must be \(out, rank\) and \(rank, in\), got \(8, 3\) and \(2, 6\)"):
        lora_vector({**factors, "0.lora_B": torch.zeros(8, 3)})


def test_random_bases_have_the_base_moments_or_a_vectors_lengths() -> None:
    with seeded(0):
        base = nn.Linear(300, 200).state_dict()
    vectors = random_bases({**base, "counter": torch.tensor(3)}, 2, generator=stream(0, "bases"))
    assert [set(vector) for vector in vectors] == [{"weight", "bias"}] * 2
    assert not torch.equal(vectors[0]["weight"], vectors[1]["weight"])
    shifted = random_bases({"w": base["weight"] + 3}, 1, generator=stream(0, "bases"))[0]["w"]
    assert shifted.mean().item() == pytest.approx(3, abs=0.01)
    assert shifted.std().item() == pytest.approx(base["weight"].std().item(), rel=0.02)
    like = {name: draw(*value.shape, name=name) for name, value in base.items()}
    matched = random_bases(base, 1, matching=like, generator=stream(0, "bases"))[0]
    for name, value in matched.items():
        assert value.norm().item() == pytest.approx(like[name].norm().item(), rel=1e-4)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        random_bases(base, 0)


# ----------------------------------------------------------------------------------------------------------------- disentanglement


def test_disentanglement_error_by_hand_and_its_bounds() -> None:
    base, vectors, x = world()
    y = x + 2

    def xi(first: dict[str, Tensor], second: dict[str, Tensor], inputs: Tensor) -> float:
        alone = functional_call(base, apply(base.state_dict(), first), (inputs,))
        both = functional_call(base, apply(apply(base.state_dict(), first), second), (inputs,))
        return disentanglement_error(alone, both).item()

    assert xi(vectors[0], scaled(vectors[1], 0.0), x) == 0
    one, other = xi(vectors[0], scaled(vectors[1], 3.0), x), xi(scaled(vectors[1], 3.0), vectors[0], y)
    assert 0 <= one <= 1
    assert one != other  # not symmetric: each is judged on the inputs of its first task
    logits = torch.eye(4)
    assert disentanglement_error(logits, logits[[0, 1, 3, 2]]).item() == 0.5
    with pytest.raises(ValueError, match=r"the same n > 0 inputs, got \(4, 4\) and \(3, 4\)"):
        disentanglement_error(logits, logits[:3])
    with pytest.raises(ValueError, match=r"the same n > 0 inputs"):
        disentanglement_error(logits[:0], logits[:0])


# -------------------------------------------------------------------------------------------------------------------- without labels


def test_the_contrastive_loss_is_the_published_formula() -> None:
    first, second = draw(5, 6, name="first"), draw(5, 6, name="second")
    views = torch.cat([first, second])
    views = views / views.norm(dim=1, keepdim=True)
    each = []
    for i in range(10):
        cosines = views @ views[i] / 0.5
        others = torch.cat([cosines[:i], cosines[i + 1 :]])
        each.append(torch.logsumexp(others, 0) - cosines[(i + 5) % 10])
    torch.testing.assert_close(contrastive_loss(first, second), torch.stack(each).mean())
    assert contrastive_loss(first, first) < contrastive_loss(first, second)
    with pytest.raises(ValueError, match=r"two views must be \(n, d\) of the same n > 1 images, got \(1, 6\) and \(1, 6\)"):
        contrastive_loss(first[:1], first[:1])
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        contrastive_loss(first, second, 0)


def test_reliable_entropy_counts_the_sure_alone() -> None:
    logits = torch.tensor([[5.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 4.0, 0.0]])
    each = -(logits.softmax(1) * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(reliable_entropy(logits), each[[0, 2]].mean())
    torch.testing.assert_close(reliable_entropy(logits, 1.0), each.mean())
    unsure = torch.zeros(4, 3, requires_grad=True)
    loss = reliable_entropy(unsure)
    loss.backward()
    assert loss.item() == 0
    assert unsure.grad is not None
    assert not unsure.grad.any()
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got 0"):
        reliable_entropy(logits, 0)


def test_the_sharpness_aware_gradient_is_taken_at_the_worst_nearby_point() -> None:
    base, vectors, x = world()
    labels = torch.arange(7) % 4
    composition = with_coefficients(Composition(base, vectors), draw(COUNT, 6, name="start"))
    loss_of = lambda model: cross_entropy(model(x), labels)
    (gradient,) = torch.autograd.grad(loss_of(composition), composition.coefficients)
    (found,) = torch.autograd.grad(sharpness_aware(composition, loss_of, 0.1), composition.coefficients)
    moved = with_coefficients(Composition(base, vectors), composition.coefficients.detach() + 0.1 * gradient / gradient.norm())
    (truth,) = torch.autograd.grad(loss_of(moved), moved.coefficients)
    torch.testing.assert_close(found, truth, atol=1e-6, rtol=1e-5)
    assert sharpness_aware(composition, loss_of, 0.1) > loss_of(composition)
    torch.testing.assert_close(sharpness_aware(composition, loss_of, 0.0), loss_of(composition))
    with pytest.raises(ValueError, match="radius must be 0 or more, got -1"):
        sharpness_aware(composition, loss_of, -1)


def test_the_most_confident_of_each_class_are_trusted() -> None:
    probabilities = draw(60, 3, name="probabilities").softmax(1)
    probabilities[probabilities.argmax(1) == 2] = torch.tensor([0.6, 0.2, 0.2])  # nobody is predicted as class 2
    trusted = trust(probabilities)  # k = 60 // 30 = 2
    assert trusted.labels.tolist().count(0) == trusted.labels.tolist().count(1) == 2
    assert 2 not in trusted.labels.tolist()
    predicted = probabilities.argmax(1)
    for c in (0, 1):
        mine = trusted.rows[trusted.labels == c]
        assert (predicted[mine] == c).all()
        others = [row for row in (predicted == c).nonzero()[:, 0].tolist() if row not in mine.tolist()]
        assert probabilities[mine, c].min() >= probabilities[others, c].max()
    assert trust(draw(900, 3, name="many").softmax(1), largest=5).labels.bincount().tolist() == [5, 5, 5]
    assert len(trust(probabilities[:29]).rows) == 0  # 29 // 30 = 0
    with pytest.raises(ValueError, match="probabilities must be"):
        trust(probabilities[:0])


def test_a_batch_is_a_quarter_trusted() -> None:
    trusted = Trusted(torch.tensor([4, 9]), torch.tensor([1, 0]))
    rows, labels = ufm_rows(50, trusted, 40, generator=stream(0, "rows"))
    assert rows.shape == labels.shape == (40,)
    assert (labels >= 0).sum() == 10
    known = labels >= 0
    assert all({4: 1, 9: 0}[row] == label for row, label in zip(rows[known].tolist(), labels[known].tolist(), strict=True))
    nobody = Trusted(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    rows, labels = ufm_rows(50, nobody, 40, generator=stream(0, "rows"))
    assert rows.shape == (40,)
    assert (labels == -1).all()


def test_pseudo_labels_by_hand() -> None:
    weak = torch.tensor([[9.0, 0.0], [0.5, 0.0], [0.0, 1.0]])
    strong = draw(3, 2, name="strong").requires_grad_()
    labels = torch.tensor([-1, -1, 0])  # sure; unsure; trusted, against its own prediction
    truth = (cross_entropy(strong[:1], torch.tensor([0])) + cross_entropy(strong[2:], torch.tensor([0]))) / 2
    torch.testing.assert_close(ufm_loss(weak, strong, labels), truth)
    ufm_loss(weak, strong, labels).backward()
    assert strong.grad is not None
    assert not strong.grad[1].any()
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\), got 1"):
        ufm_loss(weak, strong, labels, 1)


def test_a_mean_over_nobody_is_zero_and_moves_nothing() -> None:
    strong = draw(3, 4, name="strong").requires_grad_()
    loss = ufm_loss(torch.zeros(3, 4), strong, torch.full((3,), -1))
    loss.backward()
    assert loss.item() == 0
    assert strong.grad is not None
    assert not strong.grad.any()


# ----------------------------------------------------------------------------------------------------------------- few-shot companions


def features_of_classes() -> tuple[Tensor, Tensor]:
    labels = torch.arange(60) % 3
    return draw(60, 8, name="features") + 2 * torch.eye(8)[labels], labels


def test_tip_adapter_is_the_published_formula() -> None:
    features, labels = features_of_classes()
    with seeded(0):
        head = nn.Linear(8, 3).requires_grad_(False)
    tip = TipAdapter(head, features, labels, 3, alpha=0.7, beta=4.0)
    x = draw(5, 8)
    truth = head(x).clone()
    for row in range(5):
        for key in range(60):
            likeness = torch.cosine_similarity(x[row], features[key], dim=0)
            truth[row, labels[key]] += 0.7 * torch.exp(-4.0 * (1 - likeness))
    torch.testing.assert_close(tip(x), truth, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(TipAdapter(head, features, labels, 3, alpha=0.0)(x), head(x))
    assert [name for name, _ in tip.named_parameters()] == ["keys"]
    with pytest.raises(ValueError, match="a label for each of at least one feature, got 60 features and 3 labels"):
        TipAdapter(head, features, labels[:3], 3)


def test_lpplusplus_never_rises_and_ends_near_a_linear_probe() -> None:
    features, labels = features_of_classes()
    with seeded(0):
        head = nn.Linear(8, 3).requires_grad_(False)
    probe = LPPlusPlus(head.weight, head.bias, features, labels)
    history = fit(probe, lambda step: cross_entropy(probe(features), labels), steps=400, optimizer=torch.optim.SGD(probe.groups()))
    assert all(later <= earlier + 1e-6 for earlier, later in zip(history.losses, history.losses[1:], strict=False))
    with torch.no_grad():
        blend = probe.w + probe.alpha[:, None] * probe.scale * probe.text
        unit = features / features.norm(dim=1, keepdim=True)
        torch.testing.assert_close(probe(features), unit @ blend.T + probe.bias, atol=1e-5, rtol=1e-5)
        peer = LogisticRegression(C=10.0).fit(unit.numpy(), labels.numpy())
        agree = (torch.from_numpy(peer.predict(unit.numpy())) == probe(features).argmax(1)).float().mean().item()
    assert agree > 0.9
    with pytest.raises(ValueError, match="class 2 has no labelled image"):
        LPPlusPlus(head.weight, head.bias, features[:2], labels[:2])
    with pytest.raises(ValueError, match="each feature needs a label, got 60 features and 2 labels"):
        LPPlusPlus(head.weight, head.bias, features, labels[:2])


# ---------------------------------------------------------------------------------------------------------------- a real vision encoder


def test_a_clip_vision_model_enters_by_one_argument() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    images = draw(2, 3, 16, 16)
    for kind in (CLIPVisionModel, CLIPVisionModelWithProjection):
        with seeded(0):
            encoder = PooledVision(kind._from_config(CLIPVisionConfig(projection_dim=6, **sizes), attn_implementation="eager")).eval()
        encoder.requires_grad_(False)
        vectors = [{name: 0.1 * draw(*value.shape, name=f"{number} {name}") for name, value in encoder.named_parameters()} for number in range(2)]
        composition = Composition(encoder, vectors)
        assert composition.coefficients.shape == (2, len(vectors[0]))
        assert torch.equal(composition(images), encoder(images))
        composition(images).square().sum().backward()
        assert composition.coefficients.grad is not None
        assert composition.coefficients.grad.abs().sum() > 0
        linear = LinearisedComposition(encoder, vectors)
        assert torch.equal(linear(images), encoder(images))
        assert not torch.equal(with_coefficients(linear, torch.ones(2, len(vectors[0])))(images), encoder(images))


def test_a_saved_clip_is_read(tmp_path: object) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with seeded(0):
        model = CLIPVisionModelWithProjection(
            CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
        ).eval()
    model.save_pretrained(tmp_path)
    images = draw(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(load_clip_vision(str(tmp_path))(images), model(images).image_embeds, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------------------ the experiment


def test_the_quick_experiment_runs() -> None:
    arms = run_quick(experiment.EXPERIMENT)
    assert arms[experiment.SEARCH]["parameters"] == 1
    assert arms[experiment.ISOTROPIC]["parameters"] == 8
    assert arms[experiment.ATLAS]["parameters"] == 8 * 10
    assert arms[experiment.MATRICES]["parameters"] == 8 * 3
    assert arms[experiment.PARTS]["parameters"] == 8 * 10 * 16
    assert 0 <= arms[experiment.ATLAS]["disentanglement error"] <= 1
    assert arms[experiment.OWN]["relative"] == 1


def test_a_part_of_the_experiment_repeats_to_the_bit() -> None:
    family = experiment.make_family(experiment.QUICK.family, 0)
    found = []
    for _ in range(2):
        with seeded(0):
            found.append(experiment.negation(family, experiment.QUICK))
    assert found[0] == found[1]


def test_parameters_are_matched_to_a_lora_of_rank_1() -> None:
    result = recorded("atlas")
    lora, parts = (result.arms[experiment.NEW + arm]["parameters"].values[0] for arm in ("LoRA", experiment.PARTS))
    assert parts == 8 * 10 * 16 == 1280
    assert lora == (64 + 256) + (256 + 256) + (256 + 32) == 1120


def test_new_tasks_never_see_their_own_vector() -> None:
    family = experiment.make_family(experiment.QUICK.family, 0)
    target = experiment.left_out_target(family, 1)
    assert len(target.pool) == 7
    assert all(vector is not family.vectors[1] for vector in target.pool)
    tilted = experiment.tilted_target(family, 1, 20)
    assert len(tilted.pool) == 8
    assert not torch.equal(tilted.images["test"], family.images["test"][1])
    images, labels = tilted.draw(2)
    assert labels.bincount().tolist() == [2] * 10
    assert images.shape == (20, 64)


def test_upright_digits_are_found_again() -> None:
    family = experiment.make_family(experiment.QUICK.family, 0)
    shown = experiment.upright(family, "test").view(-1, 8, 8)
    assert torch.equal(shown.rot90(1, (1, 2)).flatten(1), family.images["test"][0])


@pytest.mark.skipif(not (REAL / "mnist10k").is_dir(), reason="needs MNIST's test files")
def test_mnist_with_convolutions_runs_a_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    some = mnist().take(torch.arange(400))  # of the real file, for the sake of time
    monkeypatch.setattr(transformed_digits, "mnist", lambda: some)
    paper = experiment.EXPERIMENT.scales["paper"]
    assert isinstance(paper, experiment.AtlasSettings)
    few = {"pretrain_steps": 2, "tune_steps": 1, "train": 100, "validation": 250, "labelled": 10, "tasks": 3, "width": 4}
    short = replace(
        paper, family=replace(paper.family, **few), weak=None, steps=2, tangent_steps=1, lora_steps=1, negation_steps=4, targets=(0, 1), shots=(1, 2),
        few_steps=2, adapt_steps=1, budgets=(1,), peft_steps=1, fractions=(0.1, 1.0), batch=4, partitions=2,
    )  # fmt: skip
    with seeded(0):
        arms = experiment.run(short, 0, CPU)
    assert all(0 <= arms[arm]["accuracy"] <= 1 for arm in (experiment.ATLAS, experiment.ISOTROPIC, experiment.LORAS, experiment.TANGENT))


def test_the_shipped_story_is_what_its_makers_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    (checkpoint,) = experiment.CHECKPOINTS
    story = load_shipped(checkpoint)
    assert experiment.shown(story) == pytest.approx(provenance(checkpoint)["measured"])
    assert isinstance(story, experiment.Story)
    assert not story.coefficients[:, 0].any()  # both start at the base
    torch.testing.assert_close(story.accuracy[0, 0], story.zero)
    family = experiment.make_family(experiment.QUICK.family, 0)
    monkeypatch.setattr(experiment, "make_family", lambda settings, seed: family)
    small = experiment.ShippedSettings(every=2, snapshots=2, pairs=((0, 1),), points=3, images=20)
    told = experiment.tell(small)
    assert told.plane.shape == (1, 4, 3, 3, 2)
    assert told.coefficients[1, -1].any()
    isotropic = told.coefficients[0, -1]
    assert torch.equal(isotropic, isotropic[:, :1].expand(-1, 10))


# -------------------------------------------------------------------------------------------------------------------------- the explorer


def test_the_plane_is_read_between_its_points() -> None:
    low, high, points = SHIPPED.low, SHIPPED.high, SHIPPED.points
    axis = torch.linspace(low, high, points)
    plane = torch.stack([axis[None].expand(points, -1), 2 * axis[:, None].expand(-1, points)], -1)  # accuracy 1 = across, accuracy 2 = 2 up
    for across, up in ((low, high), (0.123, -0.321), (1.49, 0.77), (high, high)):
        assert read_off(plane, across, up) == pytest.approx((across, 2 * up), abs=1e-5)
    assert read_off(plane, 99, -99) == pytest.approx((high, 2 * low), abs=1e-5)


def test_the_explorer_tells_the_course_of_learning() -> None:
    shown = explorer()
    assert "step 200, one a block" in shown.text
    shown.preset("the start: the base")
    assert "mean coefficient of the matrices 0.00, of the others 0.00" in shown.text
    zero = f"mean accuracy {100 * story().zero.mean():.1f} per cent"
    assert zero in shown.text
    shown.preset("one scalar a vector")
    scalar = shown.text
    assert zero not in scalar
    shown.preset("the price of a coefficient")
    assert shown.text.split("; ")[0] != scalar.split("; ")[0]


def test_the_point_is_dragged_and_moved_by_keys() -> None:
    shown = explorer()
    shown.point("press", 0.0, 0.0, axes=2)
    assert "at (0.00, 0.00)" in shown.text
    at_base = shown.text
    shown.point("drag", 9.0, -9.0, axes=2)
    assert "at (1.50, -0.50)" in shown.text  # it stays on the plane
    shown.point("press", 0.5, 0.5, axes=0)  # the other axes take no point
    assert "at (1.50, -0.50)" in shown.text
    shown.point("key", 0.0, 0.0, key="ArrowLeft")
    shown.point("key", 0.0, 0.0, key="ArrowUp")
    assert "at (1.45, -0.45)" in shown.text
    shown.point("key", 0.0, 0.0, key="ArrowRight")
    shown.point("key", 0.0, 0.0, key="ArrowDown")
    shown.point("key", 0.0, 0.0, key="a")
    assert "at (1.50, -0.50)" in shown.text
    assert at_base != shown.text
    shown.preset("reset")
    assert f"at ({story().diagonal[0]:.2f}, {story().diagonal[0]:.2f})" in shown.text
