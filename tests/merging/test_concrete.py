import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from real_files import REAL
from torch import Tensor, nn
from torch.distributions import RelaxedBernoulli
from transformers import CLIPVisionConfig, CLIPVisionModel

from mtlearn.lab.checkpoints import load as load_shipped
from mtlearn.lab.checkpoints import provenance
from mtlearn.lab.fit import fit
from mtlearn.lab.result import recorded
from mtlearn.lab.seeds import seeded, stream
from mtlearn.merging.composition import Composition, entropy
from mtlearn.merging.concrete import experiment, worlds
from mtlearn.merging.concrete.exercises import EXERCISES
from mtlearn.merging.concrete.experiment import EXPERIMENT
from mtlearn.merging.concrete.explorer import ACROSS, UNITS, explorer
from mtlearn.merging.concrete.method import (
    ConcreteMask,
    ConcreteMerging,
    MaskedComposition,
    check_mask,
    concrete,
    magnitude_masks,
    masked_vectors,
    random_masks,
    rescale,
    shuffled,
    summed_entropy,
)
from mtlearn.merging.task_vectors import add, apply, flatten, random_mask, task_vector
from mtlearn.merging.transformed_digits import FamilySettings, make_family

CPU = torch.device("cpu")
PUBLIC = json.loads((Path(__file__).parent / "public" / "concrete.json").read_text(encoding="utf-8"))
TEMPERATURES = st.floats(0.05, 5)
LOGITS = st.floats(-6, 6)


def net(number: int = 0) -> nn.Sequential:
    with seeded(number):
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def vectors_of(count: int = 3) -> list[dict[str, Tensor]]:
    return [{name: torch.randn(value.shape, generator=stream(n, name)) for name, value in net().state_dict().items()} for n in range(count)]


def states_equal(one: dict[str, Tensor], two: dict[str, Tensor], **tolerance: float) -> None:
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], **(tolerance or {"atol": 1e-6, "rtol": 1e-6}))  # type: ignore[arg-type]


def drawn_mask(seed: int = 0) -> dict[str, Tensor]:
    return {name: torch.rand(value.shape, generator=stream(seed, "mask", name)) for name, value in net().state_dict().items()}


def loss_on(inputs: Tensor) -> object:
    return lambda model: summed_entropy(model(inputs)[None])


# -------------------------------------------------------------------------------------------------------------------------------- the mask


@settings(deadline=None)
@given(TEMPERATURES, LOGITS, st.integers(0, 1000))
def test_the_sampler_is_torchs(temperature: float, x: float, seed: int) -> None:
    logits = torch.full((50,), x)
    with seeded(seed):
        theirs = RelaxedBernoulli(torch.tensor(temperature), logits=logits).rsample()
    uniform = torch.rand(50, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(concrete(logits, uniform, temperature), theirs, atol=2e-6, rtol=1e-4)


def test_the_sampler_is_the_public_one() -> None:
    logits = torch.tensor(PUBLIC["sample_logits"])
    uniform = torch.rand(len(logits), generator=torch.Generator().manual_seed(PUBLIC["seed"]))
    for sample in PUBLIC["samples"]:
        mask = concrete(logits, uniform, sample["temperature"])
        torch.testing.assert_close(mask, torch.tensor(sample["mask"]), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(rescale(mask), torch.tensor(sample["rescaled"]), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("x", [-2.0, 0.0, 0.7])
def test_the_chance_of_more_than_half_is_the_sigmoid_at_every_temperature(temperature: float, x: float) -> None:
    draws = 100_000
    mask = concrete(torch.full((draws,), x), torch.rand(draws, generator=stream(0, "many")), temperature)
    p = 1 / (1 + math.exp(-x))
    assert abs(float((mask > 0.5).float().mean()) - p) < 3 * math.sqrt(p * (1 - p) / draws)


@settings(deadline=None)
@given(TEMPERATURES, LOGITS, st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=1, max_size=20))
def test_samples_lie_strictly_between_0_and_1_and_their_slope_is_known(temperature: float, x: float, uniform: list[float]) -> None:
    logits = torch.full((len(uniform),), x, dtype=torch.float64, requires_grad=True)
    mask = concrete(logits, torch.tensor(uniform, dtype=torch.float64), temperature)
    assert ((mask > 0) & (mask < 1)).all()
    (slope,) = torch.autograd.grad(mask.sum(), logits)
    inside = (mask > 1e-300) & (mask < 1 - 1e-15)
    torch.testing.assert_close(slope[inside], (mask * (1 - mask) / temperature)[inside].detach(), atol=1e-12, rtol=1e-6)
    single = concrete(torch.full((len(uniform),), x), torch.tensor(uniform), temperature)
    assert ((single > 0) & (single < 1)).all()


def test_low_temperatures_give_coins() -> None:
    logits, uniform = torch.randn(2000, generator=stream(0, "x")), torch.rand(2000, generator=stream(0, "u"))
    coins = (uniform > 1 - torch.sigmoid(logits)).float()
    assert ((concrete(logits, uniform, 1e-4) - coins).abs() > 0.01).float().mean() < 0.002


def test_gradients_of_sample_and_rescaling() -> None:
    uniform = torch.rand(7, generator=stream(0, "u"), dtype=torch.float64)
    logits = torch.randn(7, generator=stream(0, "x"), dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: concrete(x, uniform, 0.5), logits)
    torch.autograd.gradcheck(lambda x: rescale(concrete(x, uniform, 0.5)), logits)
    (through_mean,) = torch.autograd.grad(rescale(torch.sigmoid(logits)).sum(), logits)
    torch.testing.assert_close(through_mean, torch.zeros(7, dtype=torch.float64), atol=1e-12, rtol=0)  # the sum is 7, whatever the logits


@settings(deadline=None)
@given(st.floats(2**-20, 1, width=32), st.integers(1, 40))
def test_rescaling_has_mean_1_and_makes_constants_1(value: float, size: int) -> None:
    assert torch.allclose(rescale(torch.full((size,), value)), torch.ones(size), atol=1e-6)
    assert float(rescale(torch.rand(size, generator=stream(size, "r")) + value).mean()) == pytest.approx(1, abs=1e-5)


def test_a_dropped_tensor_is_left_unmasked() -> None:
    logits = torch.zeros(5, requires_grad=True)
    found = rescale(0 * logits)
    assert torch.equal(found, torch.ones(5))
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient.isfinite().all()


def test_kinds_of_final_mask() -> None:
    mask = ConcreteMask(vectors_of(1)[0])
    with torch.no_grad():
        mask.logits.copy_(2 * torch.randn(mask.logits.shape, generator=stream(0, "x")))
    soft, coins, mean = (mask(kind, generator=stream(0, "draw")) for kind in ("continuous", "discrete", "mean"))
    states_equal(mean, mask.probabilities())
    for name in soft:
        assert soft[name].shape == net().state_dict()[name].shape
        assert set(coins[name].flatten().tolist()) <= {0.0, 1.0}
        assert torch.equal(coins[name], (soft[name] > 0.5).float())
    assert flatten(mean).detach().equal(torch.sigmoid(mask.logits.detach()))
    many = torch.stack([flatten(mask("discrete", generator=stream(n, "coins"))) for n in range(4000)]).mean(0)
    torch.testing.assert_close(many, torch.sigmoid(mask.logits.detach()), atol=0.04, rtol=0)


def test_a_saved_mask_comes_back() -> None:
    like = vectors_of(1)[0]
    saved = {name: torch.randn(value.shape, generator=stream(0, name)) for name, value in like.items()}
    mask = ConcreteMask(like)
    mask.load(dict(reversed(saved.items())))  # in whatever order
    states_equal(mask.probabilities(), {name: value.sigmoid() for name, value in saved.items()})


# ------------------------------------------------------------------------------------------------------------------------------ the merge


@pytest.mark.parametrize("x", [-3.0, 0.0, 2.0])
def test_a_constant_mask_is_task_arithmetic(x: float) -> None:
    vectors = vectors_of()
    merging = ConcreteMerging(net(), vectors, scale=0.3, initial=x)
    states_equal(merging.merged("mean").state(), apply(net().state_dict(), add(vectors), 0.3))
    with torch.no_grad():
        merging.merged("mean")
        inputs = torch.randn(8, 4, generator=stream(0, "in"))
        plain = Composition(net(), [add(vectors)], per="task", initial=0.3)
        torch.testing.assert_close(merging.merging(inputs), plain(inputs))


def test_one_model_at_scale_1_is_the_fine_tuned_model() -> None:
    tuned = net(1).state_dict()
    vector = task_vector(net().state_dict(), tuned)
    states_equal(ConcreteMerging(net(), [vector], scale=1.0).merged("mean").state(), dict(tuned))


def test_scale_0_is_the_base_and_has_no_gradient() -> None:
    merging = ConcreteMerging(net(), vectors_of(), scale=0.0)
    states_equal(merging.merged("continuous", generator=stream(0, "m")).state(), dict(net().state_dict()))
    inputs = torch.randn(8, 4, generator=stream(0, "in"))
    merging.objective(loss_on(inputs), generator=stream(0, "m")).backward()  # type: ignore[arg-type, no-untyped-call]
    assert merging.mask.logits.grad is not None
    assert torch.equal(merging.mask.logits.grad, torch.zeros_like(merging.mask.logits))


def test_a_shared_mask_commutes_with_the_sum() -> None:
    vectors, mask = vectors_of(), drawn_mask()
    states_equal(add(masked_vectors(vectors, mask)), masked_vectors([add(vectors)], mask)[0], atol=1e-5, rtol=1e-5)
    for per in ("task", "block"):
        outside = MaskedComposition(net(), vectors, per=per, initial=0.2)  # type: ignore[arg-type]
        inside = Composition(net(), masked_vectors(vectors, mask), per=per, initial=0.2)  # type: ignore[arg-type]
        with torch.no_grad():
            for composition in (outside, inside):
                composition.coefficients.copy_(torch.rand(inside.coefficients.shape, generator=stream(0, "w")))
        outside.wear(mask)
        states_equal(outside.state(), inside.state(), atol=1e-5, rtol=1e-5)


def test_the_update_keeps_its_length_on_average() -> None:
    """Mean of the rescaled mask is 1, so the expected update is the unmasked one, as with DARE."""
    vector = {"w": torch.ones(30, 30)}
    masks = [ConcreteMask(vector, initial=-1.0)("continuous", generator=stream(n, "m")) for n in range(50)]
    updates = torch.stack([masked_vectors([vector], mask)[0]["w"].detach() for mask in masks])
    torch.testing.assert_close(updates.mean(), torch.tensor(1.0), atol=1e-5, rtol=0)
    assert (updates.mean(0) - 1).abs().max() < 0.7


def test_integer_entries_are_not_masked() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    vectors = [{name: torch.ones_like(value) for name, value in model.state_dict().items()} for _ in range(2)]
    merging = ConcreteMerging(model, vectors, scale=0.5)
    state = merging.merged("continuous", generator=stream(0, "m")).state()
    assert torch.equal(state["1.num_batches_tracked"], model.state_dict()["1.num_batches_tracked"])
    assert "1.num_batches_tracked" not in merging.mask.probabilities()
    assert "1.num_batches_tracked" not in masked_vectors(vectors, merging.mask.probabilities())[0]


# ----------------------------------------------------------------------------------------------------------------------------- two levels


@pytest.mark.parametrize("kind", ["arithmetic", "task", "block"])
def test_training_is_that_of_the_public_code(kind: str) -> None:
    base = {name: torch.tensor(value) for name, value in PUBLIC["base"].items()}
    tuned = [{name: torch.tensor(value) for name, value in state.items()} for state in PUBLIC["tuned"]]
    model = net()
    model.load_state_dict(base)
    merging = ConcreteMerging(model, [task_vector(base, state) for state in tuned], algorithm=kind, scale=0.3, inner_rate=0.1)  # type: ignore[arg-type]
    batches = iter(torch.tensor(PUBLIC["inputs"]))

    def loss(model: object) -> Tensor:
        return summed_entropy([model(next(batches)) for _ in tuned])  # type: ignore[operator]

    draws = torch.Generator().manual_seed(PUBLIC["seed"])
    public = PUBLIC["learned"][kind]
    optimizer = torch.optim.Adam([merging.mask.logits], lr=0.05)
    history = fit(merging.mask, lambda step: merging.objective(loss, generator=draws), steps=len(public["losses"]), optimizer=optimizer)
    assert history.losses == pytest.approx(public["losses"], abs=1e-5)
    theirs = {name: torch.tensor(value) for name, value in public["logits"].items()}
    torch.testing.assert_close(merging.mask.logits.detach(), flatten({name: theirs[name] for name in base}), atol=1e-4, rtol=1e-3)
    if kind != "arithmetic":
        torch.testing.assert_close(merging.merging.coefficients.detach(), torch.tensor(public["coefficients"]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("algorithm", ["task", "block"])
def test_the_outer_gradient_takes_the_coefficients_as_a_constant(algorithm: str) -> None:
    merging = ConcreteMerging(net().double(), [{k: v.double() for k, v in vector.items()} for vector in vectors_of()], algorithm=algorithm).double()  # type: ignore[arg-type]
    inner, outer = (torch.randn(20, 4, generator=stream(n, "in"), dtype=torch.float64) for n in range(2))
    batches = iter((inner, outer))

    def loss(model: object) -> Tensor:
        return summed_entropy(model(next(batches))[None])  # type: ignore[operator]

    value = merging.objective(loss, generator=stream(0, "m"))
    (gradient,) = torch.autograd.grad(value, merging.mask.logits)
    updated = merging.merging.coefficients.detach().clone()
    assert (updated - 0.3).abs().max() == pytest.approx(0.1, rel=1e-3)  # Adam's first step moves by its rate
    assert merging.merging.coefficients.requires_grad

    def held(place: int, change: float) -> float:
        """The outer loss at the updated coefficients, with one logit moved and the same noise."""
        with torch.no_grad():
            merging.mask.logits[place] += change
            merging.merging.factors = {k: rescale(v) for k, v in merging.mask("continuous", generator=stream(0, "m")).items()}
            merging.merging.coefficients.copy_(updated)
            found = float(summed_entropy(merging.merging(outer)[None]))
            merging.mask.logits[place] -= change
        return found

    for place in (0, 13, 40):
        assert (held(place, 1e-5) - held(place, -1e-5)) / 2e-5 == pytest.approx(float(gradient[place]), rel=1e-3, abs=1e-7)


def test_inner_and_outer_step_wear_the_same_mask_and_the_coefficients_start_anew() -> None:
    merging, seen = ConcreteMerging(net(), vectors_of(), algorithm="task", inner_rate=5.0, clamp=True), []

    def loss(model: object) -> Tensor:
        assert isinstance(model, MaskedComposition)
        assert model.factors is not None
        seen.append((model.factors, model.coefficients.detach().clone()))
        return summed_entropy(model(torch.ones(2, 4))[None])

    for _ in range(2):
        merging.objective(loss, generator=stream(0, "m"))
    for step in (0, 2):
        states_equal({k: v.detach() for k, v in seen[step][0].items()}, {k: v.detach() for k, v in seen[step + 1][0].items()})
        assert not any(value.requires_grad for value in seen[step][0].values())  # the mask is held inside
        assert all(value.requires_grad for value in seen[step + 1][0].values())
        assert torch.equal(seen[step][1], torch.full((3,), 0.3))
        assert set(seen[step + 1][1].tolist()) <= {0.0, 1.0}  # at a rate of 5 they saturate


def test_phase_two_with_a_constant_mask_is_adamerging() -> None:
    inputs = torch.randn(20, 4, generator=stream(0, "in"))
    learned = []
    for composition in (
        ConcreteMerging(net(), vectors_of(), algorithm="block").merged("mean"),
        Composition(net(), vectors_of(), per="block", initial=0.3),
    ):
        optimizer = torch.optim.Adam([composition.coefficients], lr=0.05)
        fit(composition, lambda step, c=composition: summed_entropy(c(inputs)[None]), steps=6, optimizer=optimizer)  # type: ignore[misc]
        learned.append(composition.state())
    states_equal(*learned, atol=1e-5, rtol=1e-5)


def test_the_entropy_is_bounded_and_summed_over_tasks() -> None:
    logits = 4 * torch.randn(3, 7, 5, generator=stream(0, "l"))
    value = float(summed_entropy(logits))
    assert 0 < value < 3 * math.log(5)
    assert value == pytest.approx(sum(float(entropy(rows)) for rows in logits), rel=1e-6)
    assert float(summed_entropy(torch.zeros(2, 4, 6))) == pytest.approx(2 * math.log(6))
    assert float(summed_entropy([torch.zeros(3, 2), torch.zeros(1, 8)])) == pytest.approx(math.log(2) + math.log(8))


def test_a_vision_transformer_of_clip_is_merged_as_it_is() -> None:
    config = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
    with seeded(0):
        base, tuned = CLIPVisionModel(config).eval(), CLIPVisionModel(config)
    vectors = [task_vector(dict(base.named_parameters()), dict(tuned.named_parameters()))]
    merging = ConcreteMerging(base, vectors, algorithm="block")
    images, head = torch.randn(4, 3, 8, 8, generator=stream(0, "i")), torch.randn(16, 5, generator=stream(0, "h"))
    optimizer = torch.optim.Adam([merging.mask.logits], lr=0.05)

    def loss(model: object) -> Tensor:
        return summed_entropy((model(images).pooler_output @ head)[None])  # type: ignore[operator]

    fit(merging.mask, lambda step: merging.objective(loss, generator=stream(step, "m")), steps=2, optimizer=optimizer)
    assert (merging.mask.logits != 0).any()
    base.load_state_dict(merging.merged("mean").state())


# -------------------------------------------------------------------------------------------------------------------------------- controls


def test_controls_keep_what_they_should() -> None:
    vector, mask = vectors_of(1)[0], drawn_mask()
    mixed = shuffled(mask, generator=stream(0, "s"))
    for name in mask:
        assert torch.equal(mixed[name].flatten().sort().values, mask[name].flatten().sort().values)
    assert any(not torch.equal(mixed[name], mask[name]) for name in mask)
    kept = magnitude_masks(vector, {name: torch.tensor(0.5) for name in vector})
    for name, value in vector.items():
        assert int(kept[name].sum()) == max(1, round(0.5 * value.numel()))
        assert value.abs()[kept[name] == 1].min() >= value.abs()[kept[name] == 0].max()
    coins = random_masks({"w": torch.tensor(0.3)}, {"w": torch.zeros(200, 200)}, generator=stream(0, "r"))["w"]
    assert float(coins.mean()) == pytest.approx(0.3, abs=0.01)


# -------------------------------------------------------------------------------------------------------------------------------- bad input


def _with(vectors: list[dict[str, Tensor]], name: str, value: Tensor | None) -> list[dict[str, Tensor]]:
    changed = {k: v for k, v in vectors[1].items() if k != name} | ({} if value is None else {name: value})
    return [vectors[0], changed]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: concrete(torch.zeros(2), torch.zeros(2), 0.0), "temperature must be positive, got 0.0; at 0 the mask is a coin"),
        (lambda: ConcreteMask(vectors_of(1)[0], temperature=-1.0), "temperature must be positive, got -1.0"),
        (lambda: ConcreteMask({"n": torch.tensor(3)}), "a mask needs a task vector with at least one floating-point entry"),
        (lambda: ConcreteMask(vectors_of(1)[0])("hard"), "kind must be 'continuous', 'discrete' or 'mean', got 'hard'"),
        (lambda: ConcreteMerging(net(), vectors_of(), algorithm="ties"), "algorithm must be 'arithmetic', 'task' or 'block', got 'ties'"),
        (lambda: ConcreteMerging(net(), vectors_of(), inner_rate=0.0), "inner_rate must be positive, got 0.0"),
        (lambda: ConcreteMerging(net(), []), "there is no task vector; at least one is needed"),
        (lambda: ConcreteMerging(net(), _with(vectors_of(), "0.bias", None)), "'0.bias' is in vector 0 but not in vector 1"),
        (lambda: ConcreteMerging(net(), _with(vectors_of(), "0.bias", torch.zeros(5))), r"'0.bias' has shape \(5,\) in vector 1, \(6,\) in vector 0"),
        (
            lambda: ConcreteMerging(net(), _with(vectors_of(), "0.bias", torch.full((6,), torch.nan))),
            "'0.bias' of the task vectors holds 6 of 6 values",
        ),
        (lambda: ConcreteMerging(net(), [{"2.bias": torch.zeros(3), "3.bias": torch.zeros(3)}]), "an entry '3.bias' that the model lacks"),
        (lambda: check_mask({"w": torch.full((3,), -0.5)}, {"w": torch.zeros(3)}), "the mask of 'w' is negative somewhere"),
        (
            lambda: check_mask({"w": torch.full((3,), torch.inf)}, {"w": torch.zeros(3)}),
            "the mask of 'w' holds 3 of 3 values that are NaN",
        ),
        (
            lambda: masked_vectors(vectors_of(), drawn_mask() | {"0.bias": torch.ones(5)}),
            r"'0.bias' has shape \(5,\) in the mask, \(6,\) in the model",
        ),
        (lambda: MaskedComposition(net(), vectors_of()).wear({}), "the mask has no entry '0.weight', which the model has"),
        (
            lambda: ConcreteMask(vectors_of(1)[0]).load(drawn_mask() | {"9.bias": torch.ones(1)}),
            "the mask has an entry '9.bias' that the model",
        ),
        (lambda: ConcreteMask({"w": torch.zeros(2)}).load({"w": torch.full((2,), torch.nan)}), "the saved logits of 'w' holds 2 of 2 values"),
        (lambda: summed_entropy([]), "the entropy needs the predictions of at least one task"),
        (lambda: summed_entropy([torch.zeros(3, 4), torch.zeros(0, 4)]), "task 1 has no unlabelled input"),
        (lambda: summed_entropy([torch.zeros(3, 1)]), "at least two classes, got shape .3, 1.: with one class it is always 0"),
    ],
)
def test_bad_input(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]


# -------------------------------------------------------------------------------------------------------------------------- the experiment


def test_a_world_reads_as_its_family() -> None:
    quick = EXPERIMENT.scales["quick"]
    assert isinstance(quick, experiment.ConcreteSettings)
    family = make_family(quick.family, 0)
    world = worlds.world_of_digits(family).to(CPU)
    torch.testing.assert_close(world.accuracy(world.base), family.accuracy(family.base))
    own = [apply(world.base, vector) for vector in world.vectors]
    torch.testing.assert_close(world.accuracy(own), family.own_accuracy(family.tuned))
    assert world.best_scale(add(world.vectors), experiment.GRID) == family.best_scale(add(family.vectors), experiment.GRID)
    inputs, labels = world.sample("validation", 7, generator=stream(0, "s"))
    assert inputs.shape == (3, 7, 64)
    assert labels.shape == (3, 7)
    for task in range(3):
        rows = (world.inputs["validation"][task][None] == inputs[task][:, None]).all(-1)
        assert torch.equal(world.labels["validation"][task][rows.int().argmax(1)], labels[task])  # inputs of the part, with their labels
    with torch.no_grad():
        torch.testing.assert_close(world.predict(world.encoder, inputs)[1], family.head(family.encoder(inputs[1])))
    assert float(world.shares(world.base).sum()) == pytest.approx(1)
    last = world.only([2])
    assert last.names == world.names[2:]
    torch.testing.assert_close(last.accuracy(world.base), world.accuracy(world.base)[2:])


def test_pages_are_split_by_topic_and_no_text_names_its_page() -> None:
    quick = EXPERIMENT.scales["quick"]
    assert isinstance(quick, experiment.ConcreteSettings)
    world = worlds.world_of_pages(replace(quick.pages, pretrain_steps=2, tune_steps=2), 0)
    assert world.names == ("numpy", "networkx")
    for part in worlds.PARTS:
        for found in world.labels[part]:
            counts = torch.bincount(found, minlength=3)
            assert (counts > 0).all()
            assert counts.max() <= quick.pages.most // 2
    rows = torch.cat([x for found in world.inputs.values() for x in found])
    assert rows.shape[1] == quick.pages.dim
    again = worlds.world_of_pages(replace(quick.pages, pretrain_steps=2, tune_steps=2), 0)
    assert all(torch.equal(one[name], two[name]) for one, two in zip(world.vectors, again.vectors, strict=True) for name in one)


def test_quick_experiment() -> None:
    arms = run_quick(EXPERIMENT)
    assert arms[experiment.ARITHMETIC]["accuracy, transductive"] == arms[experiment.ARITHMETIC]["accuracy"]  # it learns nothing from inputs
    assert 0 < arms[experiment.CONCRETE]["share kept"] < 1
    assert arms == run_quick(EXPERIMENT)


def test_unlabelled_arms_never_see_a_label_or_the_test() -> None:
    """Labels only choose scales and the best step: with them wrong and the test inputs gone, the merged weights are the same."""
    quick = EXPERIMENT.scales["quick"]
    assert isinstance(quick, experiment.ConcreteSettings)
    world = worlds.world_of_digits(make_family(quick.family, 0))
    blind = replace(
        world, labels={part: tuple(9 - y for y in found) for part, found in world.labels.items()},
        inputs={**world.inputs, "test": tuple(torch.full_like(x, torch.nan) for x in world.inputs["test"])},
    )  # fmt: skip
    one, two = (experiment.merge_unlabelled(w, quick, 0, "validation", 0.3)[0] for w in (world, blind))
    for arm, states in one.items():
        states_equal(dict(states["at the end"]), dict(two[arm]["at the end"]), atol=0.0, rtol=0.0)


def test_controls_have_the_density_of_the_learned_mask() -> None:
    quick = EXPERIMENT.scales["quick"]
    assert isinstance(quick, experiment.ConcreteSettings)
    world = worlds.world_of_digits(make_family(quick.family, 0))
    mask = {name: torch.rand(value.shape, generator=stream(1, name)) for name, value in world.base.items()}
    found = experiment.controls(world, mask, 0)
    assert set(found) == {experiment.SHUFFLED, experiment.RANDOM, experiment.MAGNITUDE}
    summed = add(world.vectors)
    share = {name: float((found[experiment.MAGNITUDE][name] != world.base[name]).float().mean()) for name in summed}
    assert share["0.weight"] == pytest.approx(float(mask["0.weight"].mean()), abs=0.02)


@pytest.mark.skipif(not (REAL / "mnist10k").is_dir(), reason="the published files are not here")
def test_paper_scale_runs_on_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    paper = EXPERIMENT.scales["paper"]
    assert isinstance(paper, experiment.ConcreteSettings)
    assert (paper.family.source, paper.family.encoder) == ("mnist", "conv")
    quick = EXPERIMENT.scales["quick"]
    assert isinstance(quick, experiment.ConcreteSettings)
    few = replace(
        paper, mask_steps=2, adapt_steps=2, seen=1, pages=quick.pages,
        family=replace(paper.family, tasks=2, width=4, train=9600, validation=200, labelled=20, pretrain_steps=3, tune_steps=2),
    )  # fmt: skip
    arms = experiment.run(few, 0, CPU)
    assert all(0 <= metrics["accuracy"] <= 1 for metrics in arms.values())


def test_what_was_recorded_is_of_these_arms() -> None:
    result = recorded("concrete")
    assert set(result.arms) >= {experiment.CONCRETE, experiment.SHUFFLED, experiment.TIES, experiment.ADA_BLOCK, experiment.OWN_MASKED}
    assert result.arms[experiment.CONCRETE]["share kept"].mean < 0.5


def test_the_shipped_masks_are_measured_as_they_say() -> None:
    checkpoint = experiment.CHECKPOINTS[0]
    for name, value in experiment.measure_shipped(load_shipped(checkpoint)).items():
        assert value == pytest.approx(provenance(checkpoint)["measured"][name], abs=3e-3)
    shipped = checkpoint.settings
    tiny = replace(
        shipped, pictures=10,
        settings=replace(shipped.settings, mask_steps=25, family=FamilySettings(tasks=2, width=16, pretrain_steps=3, tune_steps=2)),
    )  # fmt: skip
    made = experiment.train_shipped(tiny)
    assert made.strong.masks.shape[0] == 2
    assert (made.strong.masks[0] == 128).all()
    assert not torch.equal(made.strong.base, made.weak.base)
    family = make_family(tiny.settings.family, tiny.seed)
    picture = (made.images[0].float() / 16).view(8, 8)
    turned = family.images["test"][0].view(-1, 8, 8)
    assert any(torch.equal(picture.rot90(1, (0, 1)), other) for other in turned)
    assert random_mask({"w": torch.zeros(4)}, 0.5)["w"].sum() == 2


# ---------------------------------------------------------------------------------------------------------------------------- the explorer


def _accuracy(text: str) -> float:
    return float(text.split("accuracy ")[1].split(" ")[0])


def test_presets_say_what_they_are_named_after() -> None:
    shown = explorer()
    learned, start = _accuracy(shown.text), float(shown.text.split("unmasked ")[1].split(")")[0])
    assert learned > start
    shown.preset("before training")
    assert _accuracy(shown.text) == pytest.approx(start, abs=1e-3)
    shown.preset("shuffle: the gain is gone")
    assert _accuracy(shown.text) < learned - 0.005
    shown.preset("weak: surer and wrong")
    assert _accuracy(shown.text) < float(shown.text.split("unmasked ")[1].split(")")[0]) - 0.1
    shown.preset("coins")
    assert "coins: accuracy" in shown.text
    shown.preset("hot: no longer a coin")
    assert "temperature 2" in shown.text


def test_tiles_are_dropped_and_kept_by_mouse() -> None:
    shown = explorer()
    text, picture = shown.text, shown.png
    shown.point("press", 4, 4, axes=1)
    shown.point("drag", 4 + 9, 4, axes=1)
    assert "2 units by hand" in shown.text
    assert shown.png != picture
    dropped = shown.text
    shown.point("press", 4, 4, axes=1, key="Shift")
    assert shown.text != dropped
    shown.point("press", 0.5, 0.5, axes=0)  # elsewhere: nothing
    shown.point("press", 0, 9 * UNITS / ACROSS, axes=1)  # below the last row
    assert "2 units by hand" in shown.text
    shown.preset("reset")
    assert (shown.text, shown.png) == (text, picture)


def test_tiles_are_dropped_and_kept_by_keyboard() -> None:
    shown = explorer()
    text, picture = shown.text, shown.png
    for key in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"):
        shown.point("key", 0, 0, key=key)
        assert shown.png != picture  # the frame is there
    assert shown.text == text
    for key, word in ((" ", "1 units by hand"), ("Enter", "1 units by hand"), ("x", "1 units by hand")):
        shown.point("key", 0, 0, key=key)
        assert word in shown.text
    for _ in range(UNITS // ACROSS):
        shown.point("key", 0, 0, key="ArrowUp")  # it stops at the edge
    shown.point("key", 0, 0, key="Escape")
    assert shown.text == text


# --------------------------------------------------------------------------------------------------------------------------- the exercises


def test_hints_name_the_mistake() -> None:
    gain, gap = EXERCISES[1].solve()
    assert 0 < gain < 1
    assert "the second number should be" in EXERCISES[1].check((gain, gap + 0.1)).text
    assert "the first number is" in EXERCISES[1].check((gain + 0.1, gap)).text
    assert "needs an entry 'weight'" in EXERCISES[2].check(lambda base, vectors, mask, scale: {}).text
    assert "the sum over all 3 vectors" in EXERCISES[2].check(lambda base, vectors, mask, scale: base).text
    assert "divided by the mean of the whole mask" in EXERCISES[2].check(EXERCISES[2].wrong).text
    assert "the integral" in EXERCISES[0].check(lambda x, temperature: 1.0).text


def test_a_composition_without_a_mask_is_the_plain_one() -> None:
    vectors = vectors_of()
    states_equal(MaskedComposition(net(), vectors, initial=0.2).state(), Composition(net(), vectors, per="task", initial=0.2).state())
