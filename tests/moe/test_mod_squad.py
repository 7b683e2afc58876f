"""Mod-Squad: mutual information, mixtures of perceptrons and heads, heterogeneous steps, extraction, adding tasks, and all parts of the paper."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from quick_experiment import run_quick
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mtlearn.datasets.glyphs import letter_scenes
from mtlearn.lab.checkpoints import provenance
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.cost import count_flops, count_parameters
from mtlearn.moe.mod_squad import experiment, explorer
from mtlearn.moe.mod_squad.baselines import add_adapters, held_loss
from mtlearn.moe.mod_squad.exercises import EXERCISES, race
from mtlearn.moe.mod_squad.experiment import EXPERIMENT, HEADS, World, adapt, build, cut, forgetting, score, train
from mtlearn.moe.mod_squad.method import (
    LossWeights,
    RunningUsage,
    UncertaintyWeights,
    above_threshold,
    add_task,
    extract,
    freeze,
    heterogeneous_loss,
    information_loss,
    layer_joints,
    log_bound,
    most_used,
    routing_loss,
    sampling_share,
    usage_of,
)
from mtlearn.moe.mod_squad.mixtures import MoEAttention, MoEMLP, TaskRouter, joined
from mtlearn.moe.mod_squad.model import MLP, Attention, Batch, Head, ModularTransformer, Shape, size_of, split_by_task, task_loss

SMALL = Shape(size=8, width=12, depth=2, heads=4, top_heads=2, head_width=5, experts=6, top_experts=2, hidden=7)
SHORT = Shape(size=16, width=12, depth=2, heads=4, top_heads=2, head_width=5, experts=6, top_experts=2, hidden=7)
TASKS = {"kinds": Head("image", 3), "parts": Head("pixel", 2), "places": Head("cell")}


def some_model(seed: int = 0, *, start: float = 0.5, **options: object) -> ModularTransformer:
    """A small model whose routers differ, so that tasks choose differently."""
    common = bool(options.pop("common", False))
    with seeded(seed):
        return ModularTransformer(replace(SMALL, **options), TASKS, start=start, common=common)  # type: ignore[arg-type]


def some_batches(seed: int = 0, n: int = 5) -> dict[str, Batch]:
    draws = stream(seed, "batch")
    images = torch.rand(3, n, 3, 8, 8, generator=draws)
    cells = torch.rand(n, 3, 2, 2, generator=draws)
    cells[:, 0] = (cells[:, 0] > 0.5).float()
    return {
        "kinds": (images[0], torch.randint(3, (n,), generator=draws)),
        "parts": (images[1], torch.randint(2, (n, 8, 8), generator=draws)),
        "places": (images[2], cells),
    }


def everyone(model: ModularTransformer) -> list[Tensor]:
    return [torch.arange(len(mixture.bank)) for mixture in model.mixtures]


def checksum(named: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(named.items()):
        digest.update(name.encode() + value.detach().numpy().tobytes())
    return digest.hexdigest()


def outputs(model: ModularTransformer, batches: dict[str, Batch]) -> dict[str, Tensor]:
    with torch.no_grad():
        return {task: model(images, task).prediction for task, (images, _) in batches.items()}


# mutual information


@given(tasks=st.integers(1, 6), experts=st.integers(1, 9), seed=st.integers(0, 10**6), sharp=st.floats(0.1, 8))
@settings(deadline=None, max_examples=60)
def test_the_loss_is_minus_the_mutual_information_and_bounded(tasks: int, experts: int, seed: int, sharp: float) -> None:
    counts = (torch.rand(tasks, experts, generator=stream(seed), dtype=torch.float64) ** sharp * 1000).ceil()
    joint = counts / counts.sum()
    loss = float(information_loss(joint))
    assert -min(math.log(tasks), math.log(experts)) - 1e-12 <= loss <= 1e-12
    p = joint.numpy()
    assert loss == pytest.approx(-mutual_info_score(None, None, contingency=counts.numpy()), abs=1e-12)
    assert loss == pytest.approx(-(entropy(p.sum(0)) + entropy(p.sum(1)) - entropy(p.ravel())), abs=1e-12)
    # H(E) - H(E | T)
    conditional = (p.sum(1) * entropy(p / p.sum(1, keepdims=True), axis=1)).sum()
    assert loss == pytest.approx(-(entropy(p.sum(0)) - conditional), abs=1e-12)


def test_the_loss_is_zero_for_equal_tasks_and_log_t_for_disjoint_ones() -> None:
    same = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64).expand(4, -1) / 4
    assert float(information_loss(same)) == pytest.approx(0, abs=1e-15)
    disjoint = torch.eye(3, dtype=torch.float64).repeat_interleave(2, 1) / 6  # two experts a task, no one shares
    assert float(information_loss(disjoint)) == pytest.approx(-math.log(3), abs=1e-15)
    # the predecessor's three terms of 1e-4 lift every value by about 0.001
    assert float(information_loss(torch.full((3, 8), 1 / 24, dtype=torch.float64), epsilon=1e-4)) == pytest.approx(0.001, abs=1e-4)
    assert 0 < float(information_loss(disjoint, epsilon=1e-4)) + math.log(3) < 2e-3
    by_hand = -sum(1 / 6 * math.log((1 / 6) / (1 / 3 + 1e-4) / (1 / 6 + 1e-4) + 1e-4) for _ in range(6))
    assert float(information_loss(disjoint, epsilon=1e-4)) == pytest.approx(by_hand, abs=1e-12)


def test_the_share_of_a_task_is_what_is_set_and_not_its_number_of_tokens() -> None:
    model, batches = some_model(), some_batches()
    routes = {task: model(images[: 1 if task == "kinds" else 5], task).routes for task, (images, _) in batches.items()}
    for joint in layer_joints(routes):
        torch.testing.assert_close(joint.sum(1), torch.full((3,), 1 / 3))
    for joint in layer_joints(routes, {"kinds": 0.5, "parts": 0.3, "places": 0.2}):
        torch.testing.assert_close(joint.sum(1), torch.tensor([0.5, 0.3, 0.2]))
    kinds = model(batches["kinds"][0][:1], "kinds").routes[0]
    torch.testing.assert_close(layer_joints(routes)[0][0], kinds.probabilities.mean(0) / 3)
    # a task without samples is left out, and the shares of the others are scaled
    two = {task: routes[task] for task in ("kinds", "places")}
    torch.testing.assert_close(layer_joints(two, {"kinds": 0.5, "places": 0.2})[0].sum(1), torch.tensor([5 / 7, 2 / 7]))
    with pytest.raises(ValueError, match="mutual information needs the routes of at least one task"):
        layer_joints({})


def test_information_of_chosen_experts_is_bounded_by_log_e_over_k() -> None:
    model, batches = some_model(start=5.0), some_batches()
    routes = {task: model(images, task).routes for task, (images, _) in batches.items()}
    for joint, part in zip(layer_joints(routes, chosen=True), routes["kinds"], strict=True):
        k = len(part.expert) // part.tokens
        assert 0 <= -float(information_loss(joint)) <= log_bound(3, part.num_experts, k) + 1e-6
        visits = torch.stack([torch.bincount(routes[task][0].expert, minlength=4) for task in routes]).double()
        if part.num_experts == 4:
            torch.testing.assert_close(joint.double(), visits / visits.sum())
    assert log_bound(3, 6) == math.log(3)
    assert log_bound(3, 6, 3) == math.log(2)


def test_with_zero_routers_the_information_has_no_gradient_and_noise_breaks_the_tie() -> None:
    batches = some_batches()
    for start, moves in ((0.0, False), (0.02, True)):
        model = some_model(start=start)
        routes = {task: model(images, task).routes for task, (images, _) in batches.items()}
        routing_loss(routes, LossWeights(information=1.0)).backward()
        largest = max(float(router.weight.grad.abs().max()) for mixture in model.mixtures for router in mixture.routers.values())
        assert (largest > 1e-6) == moves
        if not moves:
            assert largest < 1e-8
            chosen = {tuple(sorted(set(part.expert.tolist()))) for task in routes for part in routes[task]}
            assert all(len(experts) == 2 for experts in chosen), "every token of every task goes to the same k experts"


# mixtures


@pytest.mark.parametrize("k", [1, 2, 6])
def test_moe_mlp_equals_the_loop_over_experts(k: int) -> None:
    with seeded(1):
        layer = MoEMLP(12, 7, num_experts=6, k=k, tasks=["a", "b"], start=0.5).double()
        x = torch.randn(6, 4, 12, dtype=torch.float64)
    found, routes = layer(x, {"a": 2, "b": 4})
    wanted = torch.zeros_like(x)
    weight = layer.bank.stacked
    for image in range(6):
        for place in range(4):
            token = x[image, place]
            p = (token @ layer.router("a" if image < 2 else "b").weight).softmax(-1)
            for e in p.topk(k).indices.tolist():
                hidden = F.gelu(token @ weight("first")[e] + weight("first_bias")[e])
                wanted[image, place] += p[e] * (hidden @ weight("second")[e] + weight("second_bias")[e])
    torch.testing.assert_close(found, wanted)
    assert [part.tokens for part in routes.values()] == [8, 16]
    if k == 6:  # every expert of every token: the dense mixture, whose gates sum to 1
        torch.testing.assert_close(joined(routes).gate.view(-1, 6).sum(-1), torch.ones(24, dtype=torch.float64))


def test_equal_experts_under_renormalised_gates_are_the_plain_mlp() -> None:
    with seeded(2):
        layer, mlp = MoEMLP(12, 7, num_experts=5, k=5, tasks=["a"], start=0.7), MLP(12, 7)
        x = torch.randn(3, 4, 12)
    first, _, second = mlp
    with torch.no_grad():
        bank = layer.bank.generations[0]
        values = {"first": first.weight.T, "first_bias": first.bias, "second": second.weight.T, "second_bias": second.bias}
        for name, value in values.items():
            bank[name].copy_(value.expand_as(bank[name]))
    torch.testing.assert_close(layer(x, {"a": 3})[0], mlp(x))  # with k = E the gates sum to 1 as they are
    layer.router("a").k = 2
    changed, routes = layer(x, {"a": 3})
    gates = routes["a"].gate.view(3, 4, 2).sum(-1, keepdim=True)
    torch.testing.assert_close(changed / gates, mlp(x))


@pytest.mark.parametrize("k", [1, 3])
def test_moe_attention_equals_the_loop_over_heads(k: int) -> None:
    with seeded(3):
        layer = MoEAttention(12, 5, num_experts=4, k=k, tasks=["a"], start=0.5).double()
        x = torch.randn(3, 6, 12, dtype=torch.float64)
    found, _ = layer(x, {"a": 3})
    p = (x @ layer.router("a").weight).softmax(-1)  # (batch, length, E)
    chosen = torch.zeros_like(p).scatter(-1, p.topk(k).indices, 1.0)
    wanted = torch.zeros_like(x)
    for e in range(4):
        query, output = layer.bank.stacked("query")[e], layer.bank.stacked("output")[e]
        attention = ((x @ query) @ layer.key(x).transpose(1, 2) / math.sqrt(5)).softmax(-1)
        wanted = wanted + (p * chosen)[..., e, None] * (attention @ layer.value(x) @ output)
    torch.testing.assert_close(found, wanted)


def test_all_heads_with_gates_of_one_are_multi_query_attention() -> None:
    with seeded(4):
        layer, dense = MoEAttention(12, 5, num_experts=3, k=3, tasks=["a"], start=0.0), Attention(12, 5, 3, shared=True)
        x = torch.randn(2, 6, 12)
    with torch.no_grad():
        dense.key.weight.copy_(layer.key.weight)
        dense.value.weight.copy_(layer.value.weight)
        dense.query.weight.copy_(layer.bank.stacked("query").permute(0, 2, 1).flatten(0, 1))
        dense.output.weight.copy_(layer.bank.stacked("output").permute(2, 0, 1).flatten(1))
    torch.testing.assert_close(3 * layer(x, {"a": 2})[0], dense(x))  # zero routers: all gates 1 / 3
    query = torch.einsum("bld,hde->bhle", x, layer.bank.stacked("query"))
    key, value = (part(x)[:, None].expand(-1, 3, -1, -1) for part in (layer.key, layer.value))
    read = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(dense(x), torch.einsum("bhle,hed->bld", read, layer.bank.stacked("output")))


def test_dense_attention_is_that_of_torch() -> None:
    with seeded(5):
        ours, theirs = Attention(12, 4, 3), nn.MultiheadAttention(12, 3, bias=False, batch_first=True)
        x = torch.randn(2, 6, 12)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.out_proj.weight.copy_(ours.output.weight)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=10)
def test_permuting_experts_with_router_columns_changes_nothing(seed: int) -> None:
    model, batches = some_model(seed), some_batches(seed)
    before = outputs(model, batches)
    for mixture in model.mixtures:
        order = torch.randperm(len(mixture.bank), generator=stream(seed, "order"))
        mixture.bank = mixture.bank.subset(order)
        for router in mixture.routers.values():
            router.weight.data = router.weight.data[:, order]
    for task, after in outputs(model, batches).items():
        torch.testing.assert_close(after, before[task])


def test_a_mixture_of_k_costs_what_the_dense_model_costs() -> None:
    images = torch.rand(2, 3, 16, 16)
    sparse, dense = ModularTransformer(Shape(), HEADS), ModularTransformer(Shape(dense=True), HEADS)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # a fused attention is not counted on every processor
        costs = [count_flops(lambda model=model: model(images, "digits")) for model in (sparse, dense)]
        routers = 2 * 2 * 16 * 24 * (6 + 8 + 6 + 8)  # two images, multiply and add
    assert costs[0] - costs[1] == routers
    assert size_of(sparse).total == 39_869
    assert size_of(dense).total == 21_101
    assert size_of(sparse).experts == 2 * 6 * 2 * 24 * 8 + 2 * 8 * (2 * 24 * 24 + 48)
    assert size_of(sparse).routers == 3 * 24 * (6 + 8 + 6 + 8)


def test_gradients_of_both_mixtures_are_right() -> None:
    with seeded(6):
        mlp = MoEMLP(4, 3, num_experts=3, k=2, tasks=["a"], start=1.0).double()
        attention = MoEAttention(4, 3, num_experts=3, k=2, tasks=["a"], start=1.0).double()
        x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    for layer in (mlp, attention):
        names, values = zip(*layer.named_parameters(), strict=True)

        def changed(x: Tensor, *values: Tensor, layer: nn.Module = layer, names: tuple = names) -> Tensor:
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, {"a": 2}))[0]

        assert torch.autograd.gradcheck(changed, (x, *values))


# heterogeneous training


def test_one_pass_for_all_tasks_is_a_pass_for_each() -> None:
    model, batches = some_model(task_embedding=True), some_batches()
    together = model.forward_all({task: images for task, (images, _) in batches.items()})
    for task, (images, _) in batches.items():
        alone = model(images, task)
        torch.testing.assert_close(together[task].prediction, alone.prediction)
        for one, other in zip(together[task].routes, alone.routes, strict=True):
            assert torch.equal(one.expert, other.expert)
    assert together["kinds"].prediction.shape == (5, 3)
    assert together["parts"].prediction.shape == (5, 2, 8, 8)
    assert together["places"].prediction.shape == (5, 3, 2, 2)


def test_a_sample_gives_no_gradient_to_routers_and_heads_of_other_tasks() -> None:
    model, batches = some_model(task_embedding=True), some_batches()
    heterogeneous_loss(model, {"kinds": batches["kinds"]}, LossWeights()).backward()
    for name, parameter in model.named_parameters():
        other = any(f"{task}" in name.split(".") for task in ("parts", "places"))
        assert (parameter.grad is None) == other or (parameter.grad is not None and other and not parameter.grad.any()), name
    own = [router.weight.grad for mixture in model.mixtures for router in [mixture.router("kinds")]]
    assert all(grad is not None and grad.any() for grad in own)


def test_gradients_of_tasks_add_up_in_any_order() -> None:
    batches = some_batches()
    sums = []
    for order in (list(batches), list(batches)[::-1]):
        model = some_model()
        for task in order:  # one after the other: gradients accumulate
            heterogeneous_loss(model, {task: batches[task]}, LossWeights()).backward()
        sums.append({name: p.grad.clone() for name, p in model.named_parameters()})
    model = some_model()
    heterogeneous_loss(model, batches, LossWeights()).backward()
    for name, parameter in model.named_parameters():
        for found in sums:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_a_mixed_batch_is_split_by_task() -> None:
    images = torch.rand(4, 3, 8, 8)
    rows = {"kinds": (torch.tensor([3, 0]), torch.tensor([1, 2])), "parts": (torch.tensor([1, 2]), torch.zeros(2, 8, 8, dtype=torch.int64))}
    parts = split_by_task(images, rows)
    assert torch.equal(parts["kinds"][0], images[[3, 0]])
    assert parts["kinds"][1].tolist() == [1, 2]
    assert set(split_by_task(images, rows | {"places": (torch.tensor([], dtype=torch.int64), torch.zeros(0, 3, 2, 2))})) == {"kinds", "parts"}
    with pytest.raises(ValueError, match="sample 2 has no task: give it rows in the labels of one"):
        split_by_task(images, {**rows, "parts": (torch.tensor([1]), torch.zeros(1, 8, 8))})
    with pytest.raises(ValueError, match="sample 3 has labels of two tasks, kinds and parts"):
        split_by_task(images, {**rows, "parts": (torch.tensor([1, 2, 3]), torch.zeros(3, 8, 8))})
    with pytest.raises(ValueError, match="parts has 2 rows and 1 labels"):
        split_by_task(images, {**rows, "parts": (torch.tensor([1, 2]), torch.zeros(1, 8, 8))})
    with pytest.raises(ValueError, match="kinds names row 4; the batch has rows 0 to 3"):
        split_by_task(images, {"kinds": (torch.tensor([4]), torch.tensor([1]))})


def test_an_empty_task_is_skipped() -> None:
    model, batches = some_model(), some_batches()
    some = {**batches, "parts": (batches["parts"][0][:0], batches["parts"][1][:0])}
    without = {task: batches[task] for task in ("kinds", "places")}
    weights = LossWeights(information=0.3)
    assert heterogeneous_loss(model, some, weights).isfinite()
    torch.testing.assert_close(heterogeneous_loss(model, some, weights), heterogeneous_loss(model, without, weights))
    with pytest.raises(ValueError, match="every batch is empty: at least one task needs samples"):
        heterogeneous_loss(model, {"parts": some["parts"]}, weights)


def test_weights_of_the_losses_on_the_routes() -> None:
    model, batches = some_model(), some_batches()
    plain = heterogeneous_loss(model, batches, LossWeights())
    routes = {task: output.routes for task, output in model.forward_all({task: b[0] for task, b in batches.items()}).items()}
    by_name = {name: heterogeneous_loss(model, batches, LossWeights(**{name: 0.5})) - plain for name in ("information", "cv", "switch", "z")}
    torch.testing.assert_close(by_name["information"], 0.5 * sum(information_loss(joint) for joint in layer_joints(routes)))
    gates = [
        sum(part.gate.new_zeros(part.num_experts).index_add(0, part.expert, part.gate) for part in layer)
        for layer in zip(*routes.values(), strict=True)
    ]
    torch.testing.assert_close(by_name["cv"], 0.5 * sum(g.var() / g.mean() ** 2 for g in gates))
    squares = [part.logits.logsumexp(-1).square().mean() for layer in routes.values() for part in layer]
    torch.testing.assert_close(by_name["z"], 0.5 * sum(squares), atol=1e-4, rtol=1e-4)
    assert by_name["switch"] >= 0.5 * 6 * 0.9  # six pairs of task and layer, each about 1 or more
    with pytest.raises(ValueError, match="weights must be 0 or more"):
        LossWeights(information=-1)


def test_uncertainty_weights_start_at_half_the_loss_plus_log_two() -> None:
    weights = UncertaintyWeights(["a", "b"])
    losses = {"a": torch.tensor(3.0), "b": torch.tensor(1.0)}
    torch.testing.assert_close(weights(losses), torch.tensor(0.5 * 4 + 2 * math.log(2)))
    weights.deviation["a"].data.fill_(2.0)
    torch.testing.assert_close(weights(losses), torch.tensor(0.5 / 4 * 3 + math.log(5) + 0.5 + math.log(2)))
    model, batches = some_model(), some_batches()
    learned = UncertaintyWeights(list(TASKS))
    total = heterogeneous_loss(model, batches, LossWeights(), uncertainty=learned)
    torch.testing.assert_close(total, 0.5 * heterogeneous_loss(model, batches, LossWeights()) + 3 * math.log(2))
    total.backward()
    assert all(parameter.grad.any() for parameter in learned.parameters())


def test_losses_of_heads_by_hand() -> None:
    cells = torch.zeros(1, 3, 1, 2)
    labels = torch.tensor([[[[1.0, 0.0]], [[0.5, 0.0]], [[0.1, 0.0]]]])
    wanted = (3 * math.log(2) + math.log(2)) / 2 + (0.25 + 0.01) / 2
    assert float(task_loss(Head("cell"), cells, labels)) == pytest.approx(wanted)
    assert float(task_loss(Head("cell"), cells, torch.zeros_like(labels))) == pytest.approx(math.log(2)), "no object: no offset counts"
    pixels = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(
        task_loss(Head("pixel", 3), pixels, torch.ones(2, 4, 4, dtype=torch.int64)), F.cross_entropy(pixels, torch.ones(2, 4, 4).long())
    )
    for head, shape, labels in (
        (Head("image", 3), (2, 3), torch.zeros(2, 2)),
        (Head("pixel", 3), (2, 3, 4, 4), torch.zeros(2, 2, 2)),
        (Head("cell"), (2, 3, 2, 2), torch.zeros(2, 2, 2)),
    ):
        with pytest.raises(ValueError, match=f"a head of kind '{head.kind}' gives .* and needs labels .*, got"):
            task_loss(head, torch.zeros(shape), labels)


def test_shares_of_tasks_lie_between_their_sizes_and_alike() -> None:
    sizes = {"a": 900, "b": 100}
    assert sampling_share(sizes, 1)["a"] == pytest.approx(0.9)
    assert sampling_share(sizes, 0)["a"] == pytest.approx(0.5)
    assert sampling_share(sizes)["a"] == pytest.approx(0.75)
    with pytest.raises(ValueError, match="every task needs at least one sample"):
        sampling_share({"a": 0})


# extraction


def test_extraction_of_all_chosen_experts_changes_no_output() -> None:
    model, batches = some_model(), some_batches()
    for task, (images, _) in batches.items():
        with torch.no_grad():
            whole = model(images, task)
        kept = [part.expert.unique() for part in whole.routes]
        assert any(len(experts) < len(mixture.bank) for experts, mixture in zip(kept, model.mixtures, strict=True))
        lifted = extract(model, task, kept)
        with torch.no_grad():
            alone = lifted(images, task)
        torch.testing.assert_close(alone.prediction, whole.prediction, atol=1e-6, rtol=1e-5)
        # dropped columns: one factor a token on all its gates, the share of the softmax that was kept
        smaller = extract(model, task, kept, denominator="kept")
        with torch.no_grad():
            first, full = smaller(images, task).routes[0], whole.routes[0]
        grown = first.gate.view(first.tokens, -1) / full.gate.view(first.tokens, -1)
        factor = 1 / full.probabilities[:, kept[0]].sum(-1)
        torch.testing.assert_close(grown, factor[:, None].expand_as(grown))
        assert (factor > 1 + 1e-6).any()
        assert smaller.mixtures[0].router(task).weight.shape[1] == len(kept[0])


def test_an_extracted_model_stands_alone() -> None:
    model, batches = some_model(task_embedding=True), some_batches()
    before = checksum(model.state_dict())
    kept = most_used(usage_of(model, "parts", batches["parts"][0]), 0.5)
    assert [len(experts) for experts in kept] == [2, 3]
    lifted = extract(model, "parts", kept)
    assert checksum(model.state_dict()) == before
    assert list(lifted.tasks) == list(lifted.heads) == list(lifted.task_vectors) == ["parts"]
    assert [len(mixture.bank) for mixture in lifted.mixtures] == [2, 3]
    assert size_of(lifted).experts == size_of(model).experts / 2
    nn.init.zeros_(model.mixtures[0].bank.generations[0]["query"])
    assert lifted.mixtures[0].bank.stacked("query").any(), "weights are copies"
    with pytest.raises(ValueError, match="task must be one of parts, got 'kinds'"):
        lifted(batches["kinds"][0], "kinds")
    again = extract(lifted, "parts", [torch.tensor([1]), torch.tensor([0, 2])])
    assert [mixture.router("parts").k for mixture in again.mixtures] == [1, 2], "k is at most what is kept"
    with torch.no_grad():
        gates = again(batches["parts"][0], "parts").routes[0].gate
        full = model.mixtures[0].router("parts")
    assert full.weight.shape[1] == again.mixtures[0].router("parts").weight.shape[1], "columns stay in the denominator, twice cut"
    assert (gates < 1).all()
    assert extract(model, "parts", kept, k=1).mixtures[0].router("parts").k == 1


def test_a_common_router_can_be_cut_too() -> None:
    model, batches = some_model(common=True), some_batches()
    lifted = extract(model, "kinds", everyone(model))
    for task in ("kinds",):
        torch.testing.assert_close(outputs(lifted, {task: batches[task]})[task], outputs(model, {task: batches[task]})[task])
    assert model.mixtures[0].router("kinds") is model.mixtures[0].router("parts")


def test_usage_running_usage_and_threshold() -> None:
    model, batches = some_model(), some_batches()
    images = batches["kinds"][0]
    usage = usage_of(model, "kinds", images)
    assert [float(layer.sum()) for layer in usage] == pytest.approx([2, 2])
    routes = model(images, "kinds").routes
    running = RunningUsage()
    running.update(routes)
    torch.testing.assert_close(running.usage, usage)
    others = model(batches["parts"][0], "kinds").routes
    running.update(others)
    now = usage_of(model, "kinds", batches["parts"][0])
    torch.testing.assert_close(running.usage, [0.95 * a + 0.05 * b for a, b in zip(usage, now, strict=True)])
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1"):
        RunningUsage(1)
    layer = torch.tensor([0.9, 0.5, 0.02, 0.01, 0.57])
    assert above_threshold([layer], [2])[0].tolist() == [0, 1, 2, 4]  # more than 1.5 %
    assert above_threshold([layer], [2], threshold=110)[0].tolist() == [0, 4]
    with pytest.warns(UserWarning, match="layer 0: 1 experts get more than 80 % of the tokens; the k=2 most used are kept"):
        assert above_threshold([layer], [2], threshold=160)[0].tolist() == [0, 4]
    assert [kept.tolist() for kept in most_used([layer], 0.4)] == [[0, 4]]
    assert [kept.tolist() for kept in most_used([layer], 0.01)] == [[0]]
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got 0"):
        most_used([layer], 0)


def test_what_cannot_be_extracted_is_refused() -> None:
    model = some_model()
    kept = everyone(model)
    with pytest.raises(ValueError, match="task must be one of kinds, parts, places, got 'cats'"):
        extract(model, "cats", kept)
    with pytest.raises(ValueError, match="denominator must be 'original' or 'kept', got 'all'"):
        extract(model, "kinds", kept, denominator="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kept must have one list of experts for each of the 2 mixtures, got 1"):
        extract(model, "kinds", kept[:1])
    with pytest.raises(ValueError, match=r"kept experts must be at least one number between 0 and 3, got \[4\]"):
        extract(model, "kinds", [torch.tensor([4]), kept[1]])
    add_task(model, "more", Head("image", 2), like="kinds", kept=[torch.tensor([0, 1]), torch.arange(6)])
    with pytest.raises(ValueError, match=r"the router of more can choose none of the experts \[2, 3\]"):
        extract(model, "more", [torch.tensor([2, 3]), torch.arange(6)])


# a new task


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"train": "head"}, 12 * 4 + 4),
        ({"train": "router"}, 12 * 4 + 4 + 12 * (4 + 6)),
        ({"train": "experts", "new_experts": 2}, 12 * 4 + 4 + 12 * (6 + 8) + 2 * (2 * 12 * 5) + 2 * (2 * 12 * 7 + 7 + 12)),
        ({"train": "experts", "retrain": 1}, 12 * 4 + 4 + 12 * (4 + 6) + 2 * 12 * 5 + 2 * 12 * 7 + 7 + 12),
        ({"train": "experts", "new_experts": 1, "retrain": 1, "k": 1, "like": ["kinds", "parts"]}, None),
    ],
)
def test_a_new_task_changes_nothing_of_the_old_ones(options: dict, count: int | None) -> None:
    model, batches = some_model(task_embedding=False), some_batches()
    before, old = outputs(model, batches), {name: value.clone() for name, value in model.state_dict().items()}
    usage = usage_of(model, "kinds", batches["kinds"][0])
    with seeded(1):
        trained = add_task(model, "new", Head("image", 4), **{"like": "kinds", "usage": usage, **options})
    assert {id(p) for p in trained} == {id(p) for p in model.parameters() if p.requires_grad}
    if count is not None:
        assert sum(p.numel() for p in trained) == count_parameters(model, trainable=True) == count
    for task, after in outputs(model, batches).items():
        assert torch.equal(after, before[task]), "bit for bit, right after adding"
    images, labels = batches["kinds"]
    optimizer = torch.optim.Adam(trained, lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        task_loss(model.tasks["new"], model(images, "new").prediction, labels).backward()
        optimizer.step()
    assert checksum({name: model.state_dict()[name] for name in old}) == checksum(old)
    for task, after in outputs(model, batches).items():
        assert torch.equal(after, before[task]), "bit for bit, after training"


def test_the_new_router_starts_as_it_is_told() -> None:
    batches = some_batches()
    images = batches["kinds"][0]
    model = some_model()
    add_task(model, "copy", Head("image", 3), like="kinds")
    add_task(model, "mean", Head("image", 3), like=("kinds", "parts"))
    add_task(model, "zero", Head("image", 3))
    first = model.mixtures[0]
    assert torch.equal(first.router("copy").weight, first.router("kinds").weight)
    torch.testing.assert_close(first.router("mean").weight, (first.router("kinds").weight + first.router("parts").weight) / 2)
    assert not first.router("zero").weight.any()
    assert torch.equal(model(images, "copy").routes[1].expert, model(images, "kinds").routes[1].expert)
    # a third of the experts, a smaller k, two new experts: independent, so they combine
    usage = usage_of(model, "kinds", images)
    kept = most_used(usage, 0.5)
    add_task(model, "combined", Head("image", 3), like="kinds", kept=kept, k=1, new_experts=2)
    router = first.router("combined")
    assert router.experts.tolist() == [*kept[0].tolist(), 4, 5]
    assert router.k == 1
    torch.testing.assert_close(router.weight[:, -1], router.weight[:, :2].mean(1))
    routes = model(images, "combined").routes
    assert set(routes[0].expert.tolist()) <= {*kept[0].tolist(), 4, 5}
    torch.testing.assert_close(routes[0].probabilities.sum(-1), torch.ones(routes[0].tokens))
    assert routes[0].probabilities[:, [e for e in range(4) if e not in kept[0].tolist()]].abs().max() == 0
    # old routers never see new experts, and a later task starts from the mean column for what its model does not know
    assert first.router("kinds").experts.tolist() == [0, 1, 2, 3]
    add_task(model, "later", Head("image", 3), like="kinds")
    torch.testing.assert_close(first.router("later").weight[:, 5], first.router("kinds").weight.mean(1))
    with pytest.raises(ValueError, match="tasks with another number of heads a token cannot share a pass, got kinds, combined"):
        model.forward_all({"kinds": images, "combined": images})


def test_retraining_works_on_copies_of_the_least_used() -> None:
    model, batches = some_model(), some_batches()
    usage = usage_of(model, "kinds", batches["kinds"][0])
    add_task(model, "new", Head("image", 3), like="kinds", retrain=2, usage=usage)
    for mixture, layer in zip(model.mixtures, usage, strict=True):
        total = len(layer)
        least = layer.topk(2, largest=False).indices
        experts = mixture.router("new").experts
        assert sorted(experts[least].tolist()) == [total, total + 1]
        name = next(iter(mixture.bank.shapes))
        torch.testing.assert_close(mixture.bank.stacked(name)[experts[least]], mixture.bank.stacked(name)[least])
    with torch.no_grad():
        one, other = (model(batches["kinds"][0], task).routes[0] for task in ("kinds", "new"))
    torch.testing.assert_close(one.gate, other.gate)


def test_full_fine_tuning_trains_everything_and_task_vectors_grow() -> None:
    model = some_model(task_embedding=True)
    trained = add_task(model, "new", Head("image", 3), like="kinds", train="all")
    assert sum(p.numel() for p in trained) == count_parameters(model) == size_of(model).total
    model = some_model(task_embedding=True)
    trained = add_task(model, "new", Head("image", 3), like="kinds", train="router")
    assert any(p is model.task_vectors["new"] for p in trained)
    model(torch.rand(2, 3, 8, 8), "new")


def test_the_flag_belongs_on_parameters_not_on_modules() -> None:
    layer = nn.Linear(2, 2)
    layer.requires_grad = False  # type: ignore[assignment]  # what the published freezing does
    assert layer.weight.requires_grad
    freeze(layer)
    assert not layer.weight.requires_grad


def test_what_cannot_be_added_is_refused() -> None:
    model = some_model()
    with pytest.raises(ValueError, match="the task 'kinds' is already known; tasks are kinds, parts, places"):
        add_task(model, "kinds", Head("image", 2))
    with pytest.raises(ValueError, match="like must name tasks of kinds, parts, places, got 'cats'"):
        add_task(model, "new", Head("image", 2), like="cats")
    with pytest.raises(ValueError, match="train must be 'head', 'router', 'experts' or 'all', got 'some'"):
        add_task(model, "new", Head("image", 2), train="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="retrain needs usage, got 0, 1"):
        add_task(model, "new", Head("image", 2), retrain=1)
    with pytest.raises(ValueError, match="a task can be added where every task has its own routers"):
        add_task(some_model(common=True), "new", Head("image", 2))
    with pytest.raises(ValueError, match="k must be between 1 and the 4 experts that the router can choose, got 5"):
        add_task(some_model(), "new", Head("image", 2), k=5)
    with pytest.raises(ValueError, match=r"kept experts must be at least one number between 0 and 3, got \[\]"):
        add_task(some_model(), "new", Head("image", 2), kept=[torch.tensor([], dtype=torch.int64), torch.arange(6)])


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="k must be between 1 and the number of experts: top_heads=3 of 2"):
        Shape(heads=2, top_heads=3)
    with pytest.raises(ValueError, match="patch must divide size=10, got 4"):
        Shape(size=10)
    with pytest.raises(ValueError, match="k must be between 1 and num_experts=2, got 3"):
        MoEMLP(4, 4, num_experts=2, k=3, tasks=["a"])
    with pytest.raises(ValueError, match="num_experts must be at least 1, got 0"):
        MoEMLP(4, 4, num_experts=0, k=1, tasks=["a"])
    with pytest.raises(ValueError, match="k must be between 1 and the 1 experts that the router can choose, got 2"):
        TaskRouter(torch.zeros(4, 2), torch.tensor([0, -1]), 2)
    with pytest.raises(ValueError, match="heads must name at least one task"):
        ModularTransformer(SMALL, {})
    with pytest.raises(ValueError, match="kind must be 'image', 'pixel' or 'cell' and classes at least 1, got 'box', 1"):
        Head("box")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"images must be \(batch, 3, 8, 8\), those of kinds are \(2, 1, 8, 8\)"):
        some_model()(torch.rand(2, 1, 8, 8), "kinds")


# baselines


def test_adapters_start_as_the_identity_and_leave_old_tasks_alone() -> None:
    model, batches = some_model(), some_batches()
    before = outputs(model, batches)
    trained = add_task(model, "new", Head("image", 3), like="kinds", train="head")
    whole = outputs(model, {"new": batches["kinds"]})["new"]
    trained += add_adapters(model, "new", 5)
    torch.testing.assert_close(outputs(model, {"new": batches["kinds"]})["new"], whole)
    for parameter in trained:
        nn.init.normal_(parameter)
    assert not torch.allclose(outputs(model, {"new": batches["kinds"]})["new"], whole)
    for task, after in outputs(model, batches).items():
        assert torch.equal(after, before[task])
    together = model.forward_all(dict.fromkeys(("kinds", "new"), batches["kinds"][0]))
    torch.testing.assert_close(together["kinds"].prediction, before["kinds"])
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        add_adapters(some_model(), "new", 0)


def test_held_outputs_cost_least_where_nothing_moved() -> None:
    model, images = some_model(), some_batches()["kinds"][0]
    before = {task: model(images, task).prediction.detach() for task in TASKS}
    still = held_loss(model, before, images)
    still.backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-5 for p in model.parameters()), "no gradient where it holds"
    moved = held_loss(some_model(1), before, images)
    assert moved > still


# the experiment


def test_every_arm_starts_alike_where_it_can() -> None:
    plain, common, dense = (
        build(Shape(), arm, 0) for arm in (experiment.ARMS[name] for name in (experiment.PLAIN, experiment.SHARED, experiment.DENSE))
    )
    for other in (common, dense):
        own = plain.state_dict()
        shared = [name for name, value in other.state_dict().items() if name in own and own[name].shape == value.shape]
        assert all(torch.equal(own[name], other.state_dict()[name]) for name in shared)
        assert "embed.weight" in shared
        assert "heads.digits.weight" in shared
    assert "blocks.0.attention.bank.generations.0.query" in common.state_dict()
    assert torch.equal(plain.mixtures[1].bank.stacked("first"), common.mixtures[1].bank.stacked("first"))


def test_no_test_image_is_in_training() -> None:
    world = World.of(0, train=300, test=100)
    for task in (*HEADS, "letters"):
        train_images, test_images = (part[task][0].flatten(1) for part in (world.train, world.test))
        assert not (train_images[:, None] == test_images[None]).all(-1).any(), task
        assert torch.equal(World.of(0, train=300, test=100).train[task][1], world.train[task][1])


def test_score_of_cells_is_their_f1() -> None:
    scenes = letter_scenes(20, size=16, generator=stream(0, "f1"))
    labels = torch.cat([scenes.present[:, None], scenes.offset.permute(0, 3, 1, 2)], 1)
    model = ModularTransformer(Shape(), HEADS)
    nn.init.zeros_(model.heads["scenes"].weight)
    nn.init.ones_(model.heads["scenes"].bias)
    everywhere = score(model, "scenes", (torch.rand(20, 3, 16, 16), labels))
    share = float(scenes.present.mean())
    assert everywhere == pytest.approx(2 * share / (1 + share))


def test_quick_experiment() -> None:
    arms = run_quick(EXPERIMENT)
    assert arms[experiment.EXPERT]["change of old outputs"] == 0
    assert arms["adapters"]["change of old outputs"] == 0
    assert arms[experiment.FULL]["change of old outputs"] > 0
    assert arms[experiment.MODULAR]["mutual information"] <= math.log(3)
    assert arms[experiment.HEAD_ONLY]["trained parameters"] == 250


def test_training_repeats_to_the_bit_and_learns() -> None:
    world = World.of(0, train=200, test=50)
    recipe = experiment.Recipe(steps=25, batch=16)
    found = [train(build(Shape(), experiment.ARMS[experiment.MODULAR], 0), world, recipe, LossWeights(information=0.5), 0) for _ in range(2)]
    assert checksum(found[0].state_dict()) == checksum(found[1].state_dict())
    untrained = build(Shape(), experiment.ARMS[experiment.MODULAR], 0)
    assert experiment.information(found[0], world.test, chosen=False) > 10 * experiment.information(untrained, world.test, chosen=False)
    lifted = cut(found[0], "digits", world, 0.5)
    assert count_parameters(lifted) < count_parameters(found[0])
    grown = adapt(found[0], world, experiment.ADAPTATIONS[experiment.EXPERT], experiment.Lesson(steps=3, batch=8), 0)
    assert forgetting(found[0], grown, world) == 0
    assert "letters" not in found[0].tasks


def test_paper_scale_reads_the_published_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few pictures in the folders of ImageNet, ADE20K and COCO; every arm for two steps."""
    monkeypatch.setenv("MTLEARN_DATA", str(tmp_path))
    draws = np.random.default_rng(0)

    def picture(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(path)

    for part, split, year in (("train", "training", "train2017"), ("val", "validation", "val2017")):
        for number in range(3):
            picture(tmp_path / "imagenet" / part / f"n{number}" / "a.JPEG")
            picture(tmp_path / "ade20k" / "images" / split / f"{number}.jpg")
            page = tmp_path / "ade20k" / "annotations" / split / f"{number}.png"
            page.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 151, (40, 48), dtype=np.uint8)).save(page)
            picture(tmp_path / "coco" / year / f"{number}.jpg")
        listing = {
            "images": [{"id": number, "file_name": f"{number}.jpg", "width": 48, "height": 40} for number in range(3)],
            "annotations": [{"image_id": number, "bbox": [20, 10 + number, 8, 8]} for number in range(3)],
        }
        (tmp_path / "coco" / "annotations").mkdir(exist_ok=True)
        (tmp_path / "coco" / "annotations" / f"instances_{year}.json").write_text(json.dumps(listing))
    paper = EXPERIMENT.scales["paper"]
    assert paper.world == "published"
    small = replace(paper, shape=SHORT, recipe=experiment.Recipe(steps=2, batch=2), lesson=experiment.Lesson(steps=1, batch=2), train=3, test=3)
    with seeded(0):
        arms = experiment.run(small, 0, torch.device("cpu"))
    assert arms[experiment.EXPERT]["change of old outputs"] == 0
    with pytest.raises(ValueError, match="world must be 'small' or 'published', got 'large'"):
        replace(paper, world="large")


# explorers


def test_extraction_explorer() -> None:
    shown = explorer.explorer()
    assert "digits" in shown.text
    assert f"of {count_parameters(explorer.squad(0.15)):,} parameters" in shown.text
    seen = {shown.png}
    for label in shown.presets:
        shown.preset(label)
        seen.add(shown.png)
    assert len(seen) >= len(shown.presets) - 1
    shown.preset("reset")
    for axes, row, task in ((2, 2, "scenes"), (0, 1, "photos"), (3, 0, "digits")):
        shown.point("press", 1.0, row, axes=axes)
        assert shown.values["task"] == task
    shown.point("key", 0, 0, key="ArrowDown")
    assert shown.values["task"] == "photos"
    shown.point("key", 0, 0, key="ArrowUp")
    shown.point("key", 0, 0, key="ArrowLeft")
    assert shown.values == {"weight": 0.15, "task": "digits", "eighths": 3, "dropped": False}
    shown.point("key", 0, 0, key="ArrowRight")
    shown.point("release", 0, 0)
    assert shown.values["eighths"] == 4


def test_recorded_scores_are_those_of_the_shipped_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for weight, task, eighths in ((0.0, "digits", 4), (0.15, "scenes", 8), (0.5, "photos", 3)):
        found = explorer.lifted(weight, task, eighths, False)
        assert found.score == pytest.approx(score(found.model, task, explorer.world().test[task]), abs=0.005)
        assert found.parameters == size_of(found.model).total
    monkeypatch.setattr(experiment, "EIGHTHS", (3, 8))
    measured = experiment.measure_squads(nn.ModuleDict({"w015": explorer.squad(0.15)}))
    recorded = provenance(experiment.SQUADS)["measured"]
    assert len(measured) == 1 + 3 * 2
    assert measured == pytest.approx({name: recorded[name] for name in measured}, abs=0.005)
    assert explorer.lifted(0.15, "digits", 4, True).parameters < explorer.lifted(0.15, "digits", 4, False).parameters
    assert explorer.lifted(0.15, "digits", 2, False).flops < explorer.lifted(0.15, "digits", 8, False).flops, "k is at most what is kept"


def test_builder() -> None:
    shown = explorer.builder()
    assert "old tasks: unchanged" in shown.text
    for label in shown.presets:
        shown.preset(label)
    for way in ("head", "router", "1", "2"):
        shown.set(way=way, base="scenes", share=1.0, fewer=0)
        found = explorer.built("scenes", 1.0, 0, way)
        assert f"{found.parameters:,} trained parameters" in shown.text
        assert found.score == pytest.approx(score(found.model, "letters", explorer.world().test["letters"]), abs=0.005)
    shown.point("key", 0, 0, key="ArrowLeft")
    assert shown.values["way"] == "1"
    shown.point("key", 0, 0, key="ArrowRight")
    assert shown.values["way"] == "2"
    shown.point("press", 2.0, 0.0, axes=0)
    assert shown.values["share"] == 0.5
    shown.point("press", 8.0, 0.0, axes=0)
    assert shown.values["way"] == "1"
    shown.point("press", 9.0, 0.0, axes=0)
    assert shown.values["way"] == "2"


def test_shipped_models_are_what_their_settings_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first steps of their training, on the same images from the same weights."""
    short = replace(experiment.SQUADS.settings, weights=(0.15,), recipe=experiment.Recipe(steps=2))
    model = experiment.train_squads(short, None)[experiment.key_of(0.15)]
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in explorer.squad(0.15).named_parameters()]
    brief = replace(experiment.BUILDS.settings, bases=("digits",), shares=(0.5,), fewer=(1,), ways=("1",), lesson=experiment.Lesson(steps=2, batch=4))
    learned = experiment.train_builds(brief, None)
    monkeypatch.setattr(experiment, "BUILDS", replace(experiment.BUILDS, settings=brief))
    measured = experiment.measure_builds(learned)
    assert set(measured) == {"digits_50_1_1", "full fine-tuning"}
    assert all(0 <= value <= 1 for value in measured.values())
    assert [tuple(value.shape) for value in learned["digits_50_1_1"].values] == [
        tuple(value.shape) for value in experiment.build_builds(brief)["digits_50_1_1"].values
    ]


def test_exercises_hint() -> None:
    halves, factor, start = EXERCISES
    solved, name = halves.solve()
    assert "H(E): sum the joint" in halves.check((lambda joint: (joint.sum(), joint.sum()), name)).text
    assert "the second value" in halves.check((lambda joint: (solved(joint)[0], joint.sum()), name)).text
    assert "with H(E | T) small alone" in halves.check((solved, "H(E|T)")).text
    marginal, conditional = solved(torch.full((2, 4), 1 / 8))
    assert float(marginal - conditional) == pytest.approx(-float(information_loss(torch.full((2, 4), 1 / 8))), abs=1e-6)
    assert "name the half" in halves.check((solved, "both")).text
    right, largest = factor.solve()
    assert "the factor is the new gate" in factor.check((lambda p, kept: p[:, kept].sum(-1), largest)).text
    assert "one number for each token" in factor.check((lambda p, kept: p[:, kept], largest)).text
    assert "all gates grow by one part" in factor.check((right, 0.01)).text
    found = start.solve()[1]
    assert "give (name, accuracies)" in start.check(("fast", found)).text
    assert "does not give" in start.check(("copy", {**found, "zero": 0.99})).text
    slowest = min(found, key=found.get)
    assert "is not among the fastest" in start.check((slowest, found)).text
    with pytest.raises(ValueError, match="start must be one of copy, mean, other, zero, got 'near'"):
        race("near")
