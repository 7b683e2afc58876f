import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import mutual_info_score
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func

from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers import experts as moe
from mtlearn.layers.cost import count_flops, count_parameters
from mtlearn.layers.experts import Experts, MixtureOfExperts, Router, Routes


def draw(*shape: int, name: str = "x", seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=stream(seed, name))


def made(num_experts: int = 6, width: int = 8, hidden: int = 12, seed: int = 0) -> Experts:
    with seeded(seed):
        return Experts(num_experts, width, hidden)


def plain(experts: Experts, x: Tensor, routes: Routes) -> Tensor:
    """The truth: one pair after the other, each expert as plain layers."""
    output = torch.zeros_like(x)
    for token, expert, gate in zip(routes.token.tolist(), routes.expert.tolist(), routes.gate, strict=True):
        hidden = F.gelu(x[token] @ experts.first[expert] + experts.first_bias[expert])
        output = output.index_add(0, torch.tensor([token]), (gate * (hidden @ experts.second[expert] + experts.second_bias[expert]))[None])
    return output


# ------------------------------------------------------------------------------------------------------------------------------- the layer


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 7), st.sampled_from(["before", "after", "expert", "capacity", "forced"]))
def test_the_sorted_layer_equals_the_loop_over_pairs(seed: int, tokens: int, num_experts: int, rule: str) -> None:
    experts, x = made(num_experts, seed=seed), draw(tokens, 8, seed=seed)
    logits, k = draw(tokens, num_experts, name="logits", seed=seed), 1 + seed % num_experts
    if rule == "expert":
        routes = moe.expert_choice_routes(logits, 1 + seed % tokens)
    elif rule == "forced":
        routes = moe.forced_routes(logits.topk(k).indices, num_experts, gate=logits.topk(k).values)
    else:
        routes = moe.top_k_routes(logits, k, softmax="after" if rule == "after" else "before")
        if rule == "capacity":
            routes = moe.limit_capacity(routes, 2)
    torch.testing.assert_close(experts(x, routes), plain(experts, x, routes), atol=1e-5, rtol=1e-4)


def test_gradients_equal_those_of_the_loop() -> None:
    found = []
    for compute in (lambda e, x, r: e(x, r), plain):
        experts, x, logits = made(), draw(20, 8).requires_grad_(), draw(20, 6, name="logits").requires_grad_()
        (compute(experts, x, moe.top_k_routes(logits, 2)) * draw(20, 8, name="weights")).sum().backward()
        found.append([x.grad, logits.grad, *(parameter.grad for parameter in experts.parameters())])
    for ours, truth in zip(*found, strict=True):
        torch.testing.assert_close(ours, truth, atol=2e-6, rtol=1e-5)


def test_gradient_of_the_grouped_product_is_that_of_finite_differences() -> None:
    rows, weight = draw(7, 3).double().requires_grad_(), draw(4, 3, 2).double().requires_grad_()
    bias, counts = draw(4, 2, name="bias").double().requires_grad_(), torch.tensor([3, 0, 1, 3])
    torch.autograd.gradcheck(lambda r, w, b: moe.grouped_linear(r, w, b, counts), (rows, weight, bias))
    torch.autograd.gradcheck(lambda r, w: moe.grouped_linear(r, w, None, counts), (rows, weight))
    frozen = moe.grouped_linear(rows, weight.detach(), bias.detach(), counts)
    torch.testing.assert_close(torch.autograd.grad(frozen.sum(), rows)[0], weight.detach().sum(-1)[[0, 0, 0, 2, 3, 3, 3]])


def test_experts_without_a_visitor_get_the_gradient_zero_and_are_not_read() -> None:
    experts, x = made(), draw(5, 8)
    routes = moe.forced_routes(torch.tensor([1, 1, 4, 4, 1]), 6)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter[[0, 2, 3, 5]] = torch.nan  # the empty ones
    experts(x, routes).sum().backward()
    for parameter in experts.parameters():
        assert parameter.grad is not None
        assert (parameter.grad[[0, 2, 3, 5]] == 0).all()
        assert (parameter.grad[[1, 4]] != 0).any()


def test_mixed_precision_is_that_of_pytorchs_layers() -> None:
    with seeded(0):
        layer = MixtureOfExperts(8, 12, num_experts=4, k=2, num_tasks=2, shared=1)
    x, task = draw(20, 8).requires_grad_(), torch.arange(20) % 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        change, routes = layer(x, task)
        alone = sum(layer.experts.expert(e)(x) * (routes.gate * (routes.expert == e)).view(20, 2).sum(1, keepdim=True) for e in range(4))
        assert layer.shared is not None
        alone = alone + layer.shared(x)
        masked, _ = layer(x, task, mask=torch.arange(20) < 15)
    assert change.dtype == masked.dtype == torch.bfloat16
    torch.testing.assert_close(masked[:15].float(), change[:15].float(), atol=0.02, rtol=0.02)
    torch.testing.assert_close(change.float(), alone.float(), atol=0.02, rtol=0.02)
    change.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32 and x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.experts.parameters())


def test_all_experts_with_uniform_gates_are_their_mean() -> None:
    experts, x = made(), draw(9, 8)
    mean = torch.stack([experts.expert(e)(x) for e in range(6)]).mean(0)
    torch.testing.assert_close(experts(x, moe.top_k_routes(torch.zeros(9, 6), 6)), mean, atol=1e-6, rtol=1e-5)


def test_one_expert_is_that_expert_and_equal_experts_are_one() -> None:
    one, x = made(1), draw(9, 8)
    torch.testing.assert_close(one(x, moe.top_k_routes(draw(9, 1), 1)), one.expert(0)(x), atol=1e-6, rtol=0)
    same = made(1).subset(torch.zeros(5, dtype=torch.int64))
    routes = moe.top_k_routes(draw(9, 5, name="logits"), 3, renormalise=True)
    torch.testing.assert_close(same(x, routes), one.expert(0)(x), atol=1e-6, rtol=1e-5)


def test_permuting_experts_permutes_nothing_but_names() -> None:
    experts, x, logits = made(), draw(30, 8), draw(30, 6, name="logits")
    order = torch.randperm(6, generator=stream(0, "order"))
    routes, renamed = moe.top_k_routes(logits, 2), moe.top_k_routes(logits[:, order], 2)
    torch.testing.assert_close(experts.subset(order)(x, renamed), experts(x, routes), atol=1e-6, rtol=1e-5)
    assert torch.equal(moe.load(renamed), moe.load(routes)[order])


def test_deleting_experts_that_nobody_visits_changes_no_bit() -> None:
    experts, x = made(), draw(30, 8)
    kept = torch.tensor([True, False, True, True, False, True])
    routes = moe.top_k_routes(draw(30, 6, name="logits"), 2, allowed=kept)
    new_name = kept.cumsum(0) - 1
    fewer = Routes(routes.token, new_name[routes.expert], routes.gate, 30, 4, None, routes.asked)
    assert torch.equal(experts.subset(kept)(x, fewer), experts(x, routes))


def test_flops_are_those_that_the_counter_finds() -> None:
    experts, x, logits = made(), draw(40, 8), draw(40, 6, name="logits")
    for k in (1, 2, 6):
        routes = moe.top_k_routes(logits, k)
        assert count_flops(lambda routes=routes: experts(x, routes)) == experts.flops(40 * k) == 40 * k * 2 * 2 * 8 * 12
    assert count_parameters(experts) == 6 * (8 * 12 + 12 + 12 * 8 + 8)
    experts.first.requires_grad_(False)
    assert count_parameters(experts, trainable=True) == 6 * (12 + 12 * 8 + 8)


def test_the_whole_layer_in_a_stream_of_any_shape() -> None:
    with seeded(0):
        layer = MixtureOfExperts(8, 12, num_experts=6, k=2, num_tasks=3, shared=2)
    x, task = draw(2, 5, 7, 8), torch.randint(3, (2, 5, 7), generator=stream(0, "task"))
    change, routes = layer(x, task)
    assert change.shape == x.shape
    assert routes.expert.view(-1, 2).shape == (70, 2)
    for t in range(3):  # token by token, task by task
        alone, _ = layer(x[task == t], t)
        torch.testing.assert_close(change[task == t], alone, atol=1e-6, rtol=1e-5)
    assert layer.shared is not None
    without = change.flatten(0, 2) - layer.shared(x.flatten(0, 2))
    torch.testing.assert_close(without, layer.experts(x.flatten(0, 2), routes), atol=1e-5, rtol=1e-4)
    again, _ = layer(x, routes=routes)  # forced: no router is asked
    torch.testing.assert_close(again, change)


def test_padding_visits_nobody() -> None:
    with seeded(0):
        layer = MixtureOfExperts(8, 12, num_experts=6, k=2, capacity_factor=0.5)
    x, mask = draw(3, 10, 8), torch.rand(3, 10, generator=stream(0, "mask")) < 0.6
    change, routes = layer(x, mask=mask)
    assert routes.tokens == int(mask.sum())
    assert (change[~mask] == 0).all()
    other, _ = layer(x.masked_fill(~mask[..., None], 7.0), mask=mask)
    assert torch.equal(change, other)
    torch.testing.assert_close(change[mask], layer(x[mask])[0])


def test_mixtrals_layer_gives_the_same_routes_and_gates() -> None:
    block = MixtralSparseMoeBlock(MixtralConfig(hidden_size=8, intermediate_size=12, num_local_experts=6, num_experts_per_tok=2))
    x = draw(1, 30, 8)
    with torch.no_grad():
        said, logits = block(x)
        routes = moe.top_k_routes(logits, 2, renormalise=True)
        output = torch.zeros(30, 8)
        for expert in range(6):
            at = routes.expert == expert
            output.index_add_(0, routes.token[at], block.experts[expert](x[0, routes.token[at]]) * routes.gate[at, None])
    torch.testing.assert_close(output, said[0], atol=1e-6, rtol=1e-5)
    theirs = load_balancing_loss_func((logits,), 6, 2)  # counts each of the k places, so it is k times ours
    torch.testing.assert_close(2 * moe.switch_loss(routes), theirs, atol=1e-6, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------------------------ the routes


def test_gates_before_and_after_the_top_k() -> None:
    logits = torch.tensor([[0.0, math.log(2), math.log(3), math.log(4)]])
    before, after = moe.top_k_routes(logits, 2), moe.top_k_routes(logits, 2, softmax="after")
    assert before.expert.tolist() == after.expert.tolist() == [3, 2]
    torch.testing.assert_close(before.gate, torch.tensor([0.4, 0.3]))
    torch.testing.assert_close(after.gate, torch.tensor([4 / 7, 3 / 7]))
    torch.testing.assert_close(moe.top_k_routes(logits, 2, renormalise=True).gate, after.gate)
    torch.testing.assert_close(before.probabilities, torch.tensor([[0.1, 0.2, 0.3, 0.4]]))


def test_only_allowed_experts_are_chosen_and_share_the_softmax() -> None:
    routes = moe.top_k_routes(torch.zeros(3, 4), 2, allowed=torch.tensor([True, False, True, False]))
    assert set(routes.expert.tolist()) == {0, 2}
    torch.testing.assert_close(routes.gate, torch.full((6,), 0.5))
    with pytest.raises(ValueError, match=r"token 1 may choose among 1 experts, and k=2 are wanted"):
        moe.top_k_routes(torch.zeros(2, 3), 2, allowed=torch.tensor([[True, True, False], [True, False, False]]))


def test_experts_that_choose_have_the_same_load() -> None:
    logits = draw(12, 4, name="logits")
    routes = moe.expert_choice_routes(logits, 3)
    assert moe.load(routes).tolist() == [3] * 4
    probabilities = logits.softmax(-1)
    for expert in range(4):
        taken = routes.token[routes.expert == expert]
        assert set(taken.tolist()) == set(probabilities[:, expert].topk(3).indices.tolist())
    for factor, choice, each in ((1.0, "expert", 6), (0.5, "expert", 3)):
        layer = MixtureOfExperts(8, 12, num_experts=4, k=2, choice=choice, capacity_factor=factor)
        assert moe.load(layer(draw(12, 8))[1]).tolist() == [each] * 4


def test_a_capacity_drops_the_last_or_the_least_wanted_and_the_residual_remains() -> None:
    logits = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    routes = moe.top_k_routes(logits, 1)
    assert moe.limit_capacity(routes, 2).token.tolist() == [0, 1, 3]
    assert moe.limit_capacity(routes, 2, first="gate").token.tolist() == [1, 2, 3]
    limited = moe.limit_capacity(routes, 2)
    assert limited.dropped == 0.25
    assert moe.limit_capacity(routes, 3).dropped == 0
    experts, x = made(2), draw(4, 8)
    stream_ = x + experts(x, limited)
    assert torch.equal(stream_[2], x[2])  # dropped: passed on unchanged
    assert not torch.equal(stream_[0], x[0])
    assert moe.capacity_of(100, 2, 8, 1.25) == 32


def test_usage_by_task() -> None:
    routes = moe.forced_routes(torch.tensor([[0, 1], [0, 2], [3, 1]]), 5)
    torch.testing.assert_close(moe.usage(routes), torch.tensor([2, 2, 1, 1, 0]) / 6)
    by_task = moe.usage_by_group(routes, torch.tensor([0, 0, 2]), 3)
    torch.testing.assert_close(by_task, torch.tensor([[0.5, 0.25, 0.25, 0, 0], [0, 0, 0, 0, 0], [0, 0.5, 0, 0.5, 0]]))
    torch.testing.assert_close(moe.importance(routes), torch.tensor([1.0, 1.0, 0.5, 0.5, 0.0]))
    apart = moe.importance_by_group(routes, torch.tensor([0, 0, 2]), 3)
    torch.testing.assert_close(apart, torch.tensor([[1.0, 0.5, 0.5, 0, 0], [0, 0, 0, 0, 0], [0, 0.5, 0, 0.5, 0]]))
    assert moe.load_by_group(routes, torch.tensor([0, 0, 2]), 3).sum(0).tolist() == moe.load(routes).tolist()


# ----------------------------------------------------------------------------------------------------------------------------- the routers


def test_a_multi_gate_with_equal_matrices_is_one_gate() -> None:
    with seeded(0):
        one, many = Router(8, 6), Router(8, 6, num_tasks=3)
    with torch.no_grad():
        many.weight.copy_(one.weight.expand(3, -1, -1))
    x = draw(30, 8)
    for task in range(3):
        assert torch.equal(many(x, task), one(x))
    torch.testing.assert_close(many(x, torch.arange(30) % 3), one(x), atol=1e-6, rtol=1e-5)


def test_noise_is_for_training_alone() -> None:
    for noise in (0.5, "learned"):
        with seeded(0):
            router = Router(8, 6, num_tasks=2, noise=noise)
        x, task = draw(4000, 8), torch.arange(4000) % 2
        logits, std = router(x, task), router.std(x, task)
        noisy = router.perturb(logits, std, stream(0, "noise"))
        expected = 0.5 if noise == 0.5 else math.log(2) + 0.01  # softplus(0)
        assert float((noisy - logits).detach().std()) == pytest.approx(expected, rel=0.02)
        assert torch.equal(router.eval().perturb(logits, std), logits)
    assert torch.equal(Router(8, 6).perturb(logits, torch.tensor(0.0)), logits)


# ------------------------------------------------------------------------------------------------------------------------------ the losses


def test_coefficient_of_variation() -> None:
    assert float(moe.cv_squared(torch.full((7,), 3.0))) == 0
    assert float(moe.cv_squared(torch.eye(5)[2])) == pytest.approx(5, rel=1e-6)
    assert float(moe.cv_squared(torch.tensor([4.0]))) == 0
    torch.testing.assert_close(moe.cv_squared(torch.stack([torch.ones(5), torch.eye(5)[0]])), torch.tensor([0.0, 5.0]))
    values = draw(9).abs()
    assert float(moe.cv_squared(values)) == pytest.approx(stats.variation(values.numpy(), ddof=1) ** 2, rel=1e-4)


def test_the_load_under_noise_is_that_of_many_draws() -> None:
    clean, std, k = draw(3, 5, name="clean"), torch.full((3, 5), 0.7), 2
    noisy = clean + std * draw(3, 5, name="noise")
    others = noisy.expand(20_000, -1, -1).clone()
    found = torch.zeros(5)
    for e in range(5):  # one expert's noise is drawn anew, that of the others stays
        fresh = others.clone()
        fresh[..., e] = clean[:, e] + std[:, e] * torch.randn(20_000, 3, generator=stream(0, "fresh", e))
        found[e] = (fresh.topk(k).indices == e).any(-1).float().mean(0).sum()
    torch.testing.assert_close(moe.noisy_load(clean, noisy, std, k), found, atol=0.02, rtol=0)


def test_the_load_under_noise_counts_k_experts_a_token() -> None:
    clean, std = 2 * draw(4000, 16, name="clean"), torch.ones(4000, 16)
    total = float(moe.noisy_load(clean, clean + draw(4000, 16, name="noise"), std, 4).sum())
    assert total / 4000 == pytest.approx(4, abs=0.05)


def test_balance_losses_at_their_ends() -> None:
    even = moe.top_k_routes(torch.eye(4) * 9, 1)
    assert float(moe.switch_loss(even)) == pytest.approx(1, abs=1e-6)
    all_to_one = moe.top_k_routes(torch.tensor([[60.0, 0, 0, 0]]).expand(8, -1), 1)
    assert float(moe.switch_loss(all_to_one)) == pytest.approx(4, abs=1e-6)
    assert float(moe.z_loss(torch.zeros(3, 8))) == pytest.approx(math.log(8) ** 2, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 20), min_size=4, max_size=4), min_size=3, max_size=3).filter(lambda rows: sum(map(sum, rows)) > 0))
def test_mutual_information_is_that_of_scikit_learn_and_of_the_entropies(rows: list[list[int]]) -> None:
    table = np.array(rows)
    joint = torch.tensor(table / table.sum())
    found = float(moe.mutual_information(joint))
    assert found == pytest.approx(mutual_info_score(None, None, contingency=table), abs=1e-12)
    entropies = stats.entropy(joint.sum(1)) + stats.entropy(joint.sum(0)) - stats.entropy(joint.flatten())
    assert found == pytest.approx(entropies, abs=1e-12)
    assert -1e-12 <= found <= min(math.log(3), math.log(4)) + 1e-12


def test_joint_distribution_of_tasks_and_experts() -> None:
    probabilities, task = draw(10, 4, name="logits").softmax(-1), torch.tensor([0, 0, 0, 0, 0, 0, 2, 2, 2, 2])
    joint = moe.joint_distribution(probabilities, task, 3)
    torch.testing.assert_close(joint.sum(1), torch.tensor([0.6, 0.0, 0.4]))
    equal = moe.joint_distribution(probabilities, task, 3, share=torch.ones(3) / 3)  # the empty task is left out
    torch.testing.assert_close(equal.sum(1), torch.tensor([0.5, 0.0, 0.5]))
    torch.testing.assert_close(equal[2], probabilities[6:].mean(0) / 2)
    apart = moe.joint_distribution(torch.eye(3), torch.arange(3), 3)
    assert float(moe.mutual_information(apart)) == pytest.approx(math.log(3), rel=1e-6)
    same = moe.joint_distribution(probabilities[:1].expand(6, -1), torch.arange(6) % 3, 3)
    assert float(moe.mutual_information(same)) == pytest.approx(0, abs=1e-6)


def test_mutual_information_has_a_gradient_for_experts_that_were_not_chosen() -> None:
    logits = draw(12, 5, name="logits").requires_grad_()
    routes = moe.top_k_routes(logits, 1)
    moe.mutual_information(moe.joint_distribution(routes.probabilities, torch.arange(12) % 3, 3)).backward()
    assert logits.grad is not None
    assert (logits.grad != 0).all()


# ------------------------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: moe.top_k_routes(torch.zeros(3, 4), 5), r"k must be between 1 and num_experts=4, got 5"),
        (lambda: moe.top_k_routes(torch.zeros(3, 4), 0), r"k must be between 1 and num_experts=4, got 0"),
        (lambda: moe.top_k_routes(torch.zeros(3, 4), 1, softmax="never"), r"softmax must be 'before' or 'after', got 'never'"),
        (lambda: moe.top_k_routes(torch.zeros(0, 4), 1), r"logits must be \(tokens >= 1, experts >= 1\), got \(0, 4\)"),
        (lambda: moe.top_k_routes(torch.tensor([[0.0, 1.0], [0.0, torch.nan]]), 1), r"routing is undefined: .* token 1 hold NaN or infinity"),
        (lambda: moe.expert_choice_routes(torch.zeros(3, 4), 4), r"capacity must be between 1 and tokens=3, got 4"),
        (lambda: moe.forced_routes(torch.tensor([0, 4]), 4), r"experts must be between 0 and 3, got 0 to 4"),
        (lambda: moe.forced_routes(torch.tensor([[0, 1], [2, 2]]), 4), r"token 1 has an expert twice: \[2, 2\]"),
        (lambda: moe.forced_routes(torch.zeros(0, 2, dtype=torch.int64), 4), r"expert must be \(tokens >= 1, experts a token >= 1\)"),
        (lambda: moe.forced_routes(torch.tensor([[0, 1]]), 4, gate=torch.ones(1, 3)), r"gate must have the shape of expert \(1, 2\), got \(1, 3\)"),
        (lambda: moe.forced_routes(torch.tensor([0]), 4).probabilities, r"forced routes have no logits"),
        (lambda: moe.limit_capacity(moe.forced_routes(torch.tensor([0]), 4), 0), r"capacity must be at least 1, got 0"),
        (lambda: moe.limit_capacity(moe.forced_routes(torch.tensor([0]), 4), 1, first="x"), r"first must be 'position' or 'gate', got 'x'"),
        (lambda: moe.capacity_of(8, 2, 4, 0.0), r"factor must be positive, got 0.0"),
        (lambda: Router(0, 4), r"width must be at least 1, got 0"),
        (lambda: Router(4, 4, noise=-1.0), r"noise must be 'learned' or at least 0, got -1.0"),
        (lambda: Router(4, 4)(torch.zeros(2, 3)), r"tokens must be \(tokens, width=4\), got \(2, 3\)"),
        (lambda: Router(4, 4, num_tasks=3)(torch.zeros(2, 4)), r"this router has 3 tasks: say which, 0 to 2"),
        (lambda: Router(4, 4, num_tasks=3)(torch.zeros(2, 4), 3), r"task must be between 0 and 2, got 3"),
        (lambda: Router(4, 4, num_tasks=3)(torch.zeros(2, 4), torch.tensor([0, 3])), r"task must be 2 numbers between 0 and 2"),
        (lambda: Experts(4, 0, 3), r"width must be at least 1, got 0"),
        (lambda: made()(torch.zeros(3, 8), moe.top_k_routes(torch.zeros(4, 6), 1)), r"routes of 4 tokens over 6 experts do not fit 6 experts"),
        (lambda: made().subset(torch.zeros(6, dtype=torch.bool)), r"at least one of the 6 experts must be kept"),
        (lambda: MixtureOfExperts(4, 4, num_experts=3, k=4), r"k must be between 1 and num_experts=3, got 4"),
        (lambda: MixtureOfExperts(4, 4, num_experts=3, k=1, shared=-1), r"shared must be at least 0, got -1"),
        (lambda: MixtureOfExperts(4, 4, num_experts=3, k=1, choice="x"), r"choice must be 'token' or 'expert', got 'x'"),
        (lambda: moe.grouped_linear(torch.zeros(3, 2), torch.zeros(2, 2, 4), None, torch.tensor([1, 1])), r"2 counts with the sum 2"),
        (lambda: moe.noisy_load(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3), 3), r"k must be between 1 and num_experts-1=2"),
        (lambda: moe.noisy_load(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(()), 1), r"needs a positive standard deviation"),
        (lambda: moe.joint_distribution(torch.zeros(0, 3), torch.zeros(0), 2), r"tokens and their tasks are needed"),
        (lambda: moe.joint_distribution(torch.ones(2, 3), torch.tensor([0, 2]), 2), r"tasks must be between 0 and 1, got 0 to 2"),
        (lambda: moe.joint_distribution(torch.ones(1, 3), torch.tensor([0]), 2, share=torch.tensor([0.0, 1.0])), r"shares .* must be positive"),
    ],
)
def test_bad_input(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]


def test_counting_flops_of_known_layers() -> None:
    assert count_flops(lambda: nn.Linear(8, 12)(torch.zeros(5, 8))) == 2 * 5 * 8 * 12
    assert count_flops(lambda: nn.Conv2d(3, 4, 3, padding=1)(torch.zeros(1, 3, 6, 6))) == 2 * 36 * 4 * 3 * 9
