from dataclasses import replace

import pytest
import torch
from quick_experiment import run_quick
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from mtlearn.datasets import nyud
from mtlearn.lab.checkpoints import load as load_shipped
from mtlearn.lab.checkpoints import provenance
from mtlearn.lab.result import recorded
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.cost import count_flops, count_parameters
from mtlearn.layers.experts import Experts, load, top_k_routes
from mtlearn.moe.m3vit import baselines, experiment
from mtlearn.moe.m3vit.dense_prediction import TaskFusion, UpsamplingHead, load_vit
from mtlearn.moe.m3vit.experiment import EXPERIMENT, RoomModel, Teachers
from mtlearn.moe.m3vit.explorer import explorer
from mtlearn.moe.m3vit.method import (
    M3ViT,
    MeanHead,
    MoELayer,
    TaskEmbedding,
    TaskGate,
    balance_loss,
    expert_windows,
    multitask_loss,
    patch_tokens,
    path_flops,
    pathway,
)
from mtlearn.moe.m3vit.reordering import execute, schedule, simulate, switch_cost

CPU = torch.device("cpu")
TASKS = ("depth", "edges", "parts")


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=stream(0, name))


def made(**changes: object) -> M3ViT:
    sizes: dict[str, object] = {"token_width": 10, "width": 8, "depth": 2, "attention_heads": 2, "num_experts": 6, "k": 2, "hidden": 5}
    with seeded(0):
        return M3ViT({task: MeanHead(8, 2) for task in TASKS}, **{**sizes, **changes}).eval()  # type: ignore[arg-type]


def layer_of(model: M3ViT, index: int = 1) -> MoELayer:
    layer = model.blocks[index].feed
    assert isinstance(layer, MoELayer)
    return layer


# ------------------------------------------------------------------------------------------------------------------------------ the method


def test_mixtures_stand_in_odd_blocks() -> None:
    assert [isinstance(block.feed, MoELayer) for block in made(depth=5).blocks] == [False, True, False, True, False]
    assert not any(isinstance(block.feed, MoELayer) for block in made(num_experts=0).blocks)


def test_all_experts_with_a_zero_gate_are_their_mean() -> None:
    model = made(k=6)
    layer = layer_of(model)
    with torch.no_grad():
        layer.gate.router.weight.zero_()
    x = draw(7, 8)
    said, _ = layer(x, torch.zeros(7, dtype=torch.int64))
    torch.testing.assert_close(said, torch.stack([layer.experts.expert(e)(x) for e in range(6)]).mean(0), atol=1e-6, rtol=1e-5)


def test_all_experts_are_the_gate_weighted_sum() -> None:
    layer, x, task = layer_of(made(k=6)), draw(7, 8), torch.arange(7) % 3
    said, _ = layer(x, task)
    gates = layer.gate(x, task).softmax(-1)
    truth = sum(gates[:, e, None] * layer.experts.expert(e)(x) for e in range(6))
    torch.testing.assert_close(said, truth, atol=1e-6, rtol=1e-5)


def test_one_expert_is_the_plain_perceptron_and_needs_no_balance() -> None:
    model = made(num_experts=1, k=1)
    layer, x = layer_of(model), draw(7, 8)
    torch.testing.assert_close(layer(x, torch.zeros(7, dtype=torch.int64))[0], layer.experts.expert(0)(x), atol=1e-6, rtol=1e-5)
    assert float(balance_loss(model(draw(4, 3, 10)).visits, 3)) == 0


def test_equal_experts_with_renormalised_gates_are_one_perceptron() -> None:
    layer, x = layer_of(made(renormalise=True)), draw(7, 8)
    layer.experts = layer.experts.subset(torch.zeros(6, dtype=torch.int64))
    torch.testing.assert_close(layer(x, torch.zeros(7, dtype=torch.int64))[0], layer.experts.expert(0)(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("gating", ["multi", "conditioned", "shared"])
def test_a_task_alone_is_its_pass_among_all(gating: str) -> None:
    model, tokens = made(gating=gating, task_width=4 if gating == "conditioned" else 0), draw(5, 4, 10)
    together = model(tokens).outputs
    assert set(together) == set(TASKS)
    for task in TASKS:
        torch.testing.assert_close(model.single(tokens, task), together[task], atol=1e-6, rtol=1e-5)


def test_equal_matrices_make_a_multi_gate_the_gate_without_a_task() -> None:
    one, many = made(gating="shared"), made(gating="multi")
    state = one.state_dict()
    for name, value in many.state_dict().items():
        many.state_dict()[name].copy_(state[name].expand_as(value) if "router" in name else state[name])
    tokens = draw(5, 4, 10)
    for task in TASKS:  # one pass each: the same bits
        assert torch.equal(many.single(tokens, task), one.single(tokens, task))
        torch.testing.assert_close(many(tokens).outputs[task], one(tokens).outputs[task], atol=1e-6, rtol=1e-5)


def test_a_task_vector_only_shifts_the_logits() -> None:
    with seeded(0):
        gate, vectors = TaskGate(8, 6, 3, gating="conditioned", task_width=4), TaskEmbedding(3, 4).vectors()
    x = draw(7, 8)
    logits = [gate(x, torch.full((7,), task), vectors) for task in range(3)]
    for task in range(3):
        shift = logits[task] - logits[0]
        torch.testing.assert_close(shift, shift[:1].expand_as(shift), atol=1e-6, rtol=0)
        torch.testing.assert_close(logits[task], x @ gate.router.weight[0, :8] + vectors[task] @ gate.router.weight[0, 8:], atol=1e-6, rtol=1e-5)


def test_the_bound_of_the_gate() -> None:
    assert 0.9 < float(TaskGate(384, 16, 2, gating="multi").router.weight.detach().abs().max()) * 16**0.5 <= 1
    assert float(TaskGate(384, 16, 2, gating="multi", bound=0.01).router.weight.detach().abs().max()) <= 0.01


def test_kept_mass_of_the_published_and_of_a_linear_layers_bound() -> None:
    x, found = draw(2000, 384), []
    for bound in (None, 384**-0.5):
        with seeded(0):
            gate = TaskGate(384, 16, 1, gating="shared", bound=bound)
        found.append(top_k_routes(gate(x, torch.zeros(2000, dtype=torch.int64)), 4).gate.view(2000, 4).sum(1).mean().item())
    assert found[0] == pytest.approx(0.91, abs=0.02)
    assert found[1] == pytest.approx(0.45, abs=0.02)


def test_noise_in_training_alone() -> None:
    model, tokens = made(noise=6.0), draw(100, 4, 10)
    assert torch.equal(model.single(tokens, "depth"), model.single(tokens, "depth"))
    with seeded(0):
        visits = model.train()(tokens).visits
    assert visits[0].std == 1.0
    noise = visits[0].routes.logits - visits[0].clean  # type: ignore[operator]
    assert float(noise.detach().std()) == pytest.approx(1, abs=0.1)


def test_balance_within_each_tasks_pass() -> None:
    model, tokens = made(), draw(9, 4, 10)
    visits = model(tokens).visits
    total = torch.zeros(())
    for task in range(3):
        mine = visits[0].task[visits[0].routes.token] == task
        routes = visits[0].routes.where(mine)
        importance = torch.zeros(6).index_add(0, routes.expert, routes.gate)
        for values in (importance, load(routes).float()):
            total = total + values.var() / values.mean() ** 2
    torch.testing.assert_close(balance_loss(visits, 3), total, atol=1e-5, rtol=1e-5)
    noisy = made(noise=6.0).train()(tokens).visits
    (gradient,) = torch.autograd.grad(balance_loss(noisy, 3), noisy[0].clean)
    assert (gradient != 0).all()  # the load under noise reaches experts that were not chosen


def test_windows_fit_for_any_number_of_tasks() -> None:
    for tasks, experts, window in ((3, 16, 8), (5, 16, 4), (1, 4, 2), (7, 8, 8)):
        found = expert_windows(tasks, experts, window)
        assert found.sum(1).tolist() == [window] * tasks
        assert found[-1, -1] or tasks == 1
        assert found[0, 0]
    model, tokens = made(window=2), draw(5, 4, 10)
    _, visits = model.encode(tokens, torch.arange(3))
    for task in range(3):
        mine = visits[0].routes.expert[visits[0].task[visits[0].routes.token] == task]
        assert set(mine.tolist()) == set(expert_windows(3, 6, 2)[task].nonzero()[:, 0].tolist())


def test_pruned_gates_are_skipped() -> None:
    model, tokens = made(), draw(5, 4, 10)
    _, visits = model.encode(tokens, torch.tensor([1]), prune=0.4)
    assert (visits[0].routes.gate >= 0.4).all()
    assert len(visits[0].routes.gate) < 5 * 4 * 2
    assert not torch.equal(model.single(tokens, "edges", prune=0.4), model.single(tokens, "edges"))
    assert torch.equal(model.single(tokens, "edges", prune=1e-9), model.single(tokens, "edges"))


def test_a_path_of_its_own_gives_the_same_bits_with_fewer_experts() -> None:
    model, tokens = made(depth=4, num_experts=32), draw(3, 4, 10)
    for task in TASKS:
        alone = pathway(model, task, tokens)
        assert torch.equal(alone.single(tokens, task), model.single(tokens, task))
        assert count_parameters(alone) < 0.8 * count_parameters(model)
        assert list(alone.heads) == [task]
        other = draw(50, 4, 10, name="other")  # wants experts that are gone: their visits are skipped
        assert alone.single(other, task).isfinite().all()
        assert not torch.equal(alone.single(other, task), model.single(other, task))
    again = pathway(pathway(model, "depth", tokens), "depth", tokens)
    assert torch.equal(again.single(tokens, "depth"), model.single(tokens, "depth"))


def test_permuting_experts_changes_nothing() -> None:
    model, tokens = made(), draw(5, 4, 10)
    before = model.single(tokens, "parts")
    layer, order = layer_of(model), torch.tensor([3, 1, 5, 0, 2, 4])
    layer.experts = layer.experts.subset(order)
    with torch.no_grad():
        layer.gate.router.weight.copy_(layer.gate.router.weight[..., order])
    torch.testing.assert_close(model.single(tokens, "parts"), before, atol=1e-6, rtol=1e-5)


def test_flops_of_a_path_are_those_that_the_counter_finds() -> None:
    tokens = draw(1, 4, 10)
    for changes in ({}, {"num_experts": 0}, {"gating": "conditioned", "task_width": 3}, {"class_token": True, "positions": 4}, {"depth": 5, "k": 3}):
        model = made(**changes)
        for head in model.heads:
            model.heads[head] = nn.Identity()
        assert path_flops(model, 4) == count_flops(lambda model=model: model.single(tokens, "depth"))


def test_dense_is_the_vision_transformer_of_the_library() -> None:
    config = ViTConfig(
        hidden_size=12, num_hidden_layers=3, num_attention_heads=3, intermediate_size=20, image_size=8, patch_size=4, layer_norm_eps=1e-5
    )
    with seeded(0):
        theirs = ViTModel(config, add_pooling_layer=False).eval()
    sizes = {"token_width": 48, "width": 12, "depth": 3, "attention_heads": 3, "positions": 4, "class_token": True}
    model = M3ViT({"all": nn.Identity()}, num_experts=0, k=4, hidden=5, **sizes)  # type: ignore[arg-type]
    assert load_vit(model, theirs) == []
    images = draw(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().single(patch_tokens(images, 4), "all"), theirs(images).last_hidden_state, atol=1e-5, rtol=1e-4)
    mixed = M3ViT({"all": nn.Identity()}, num_experts=4, k=4, hidden=5, gating="shared", **sizes)  # type: ignore[arg-type]
    assert {name.split(".")[3] for name in load_vit(mixed, theirs)} == {"gate", "experts"}
    with pytest.raises(ValueError, match=r"blocks.0.feed.0.weight has the shape \(24, 12\) here and \(20, 12\) there"):
        load_vit(M3ViT({"all": nn.Identity()}, num_experts=0, k=4, hidden=6, **sizes), theirs)  # type: ignore[arg-type]


def test_heads_that_make_maps_and_the_fusion_that_is_dropped() -> None:
    with seeded(0):
        head = UpsamplingHead(8, 3, (2, 3), channels=6, steps=2)
        fusion = TaskFusion({"depth": 1, "parts": 4}, 6)
    tokens = draw(2, 7, 8)  # with a class token
    assert head(tokens).shape == (2, 3, 8, 12)
    assert [level.shape[-2:] for level in head.levels(tokens)] == [(4, 6), (8, 12)]
    extra = fusion({task: head.levels(tokens)[0] for task in ("depth", "parts")}, (8, 12))
    assert {task: found.shape for task, found in extra.items()} == {"depth": (2, 1, 8, 12), "parts": (2, 4, 8, 12)}
    with pytest.raises(ValueError, match=r"tokens of a grid of 2 x 3 .* got 5"):
        head(draw(2, 5, 8))
    with pytest.raises(ValueError, match="features of task 'parts' are missing"):
        fusion({"depth": head.levels(tokens)[0]}, (8, 12))


# -------------------------------------------------------------------------------------------------------------------------- the reordering


def test_both_orders_give_the_same_bits_and_those_of_the_layer() -> None:
    with seeded(0):
        experts = Experts(6, 8, 5)
    x, routes = draw(40, 8), top_k_routes(draw(40, 6, name="logits"), 2)
    with torch.no_grad():
        token, expert = (execute(schedule(routes, order), experts, x) for order in ("token", "expert"))
        assert torch.equal(token, expert)
        torch.testing.assert_close(experts(x, routes), token, atol=1e-5, rtol=1e-5)


def test_gradients_of_both_orders_are_equal() -> None:
    found = []
    for order in ("token", "expert"):
        with seeded(0):
            experts = Experts(6, 8, 5)
        x = draw(12, 8).requires_grad_()
        plan = schedule(top_k_routes(draw(12, 6, name="logits"), 2), order)
        rows = [plan.gate[v] * experts.expert(int(plan.expert[v]))(x[plan.token[v]]) for v in range(len(plan.token))]
        torch.zeros(12, 8).index_add(0, plan.token, torch.stack(rows)).square().sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(found[0], found[1], atol=2e-7, rtol=1e-5)


def test_loads_of_both_orders() -> None:
    routes = top_k_routes(draw(40, 6, name="logits"), 2)
    one_buffer = simulate(schedule(routes, "token", buffers=1))
    visits = schedule(routes, "token").expert
    assert one_buffer.loads == 1 + int((visits[1:] != visits[:-1]).sum())  # every change of expert
    assert simulate(schedule(routes, "token", buffers=6)).loads == 6  # all fit
    queued = simulate(schedule(routes, "expert", buffers=2))
    assert queued.loads == 6
    assert int((queued.resident >= 0).sum(1).max()) == 2
    unused = top_k_routes(torch.eye(6)[torch.tensor([1, 1, 4])], 1)
    assert simulate(schedule(unused, "expert")).loads == 2  # an expert that nobody wants is not loaded


def test_times_by_hand() -> None:
    routes = top_k_routes(torch.eye(3)[torch.tensor([0, 1, 0, 1])], 1)
    naive = simulate(schedule(routes, "token", buffers=1), load_time=5, visit_time=1)
    assert naive.finish.tolist() == [6, 12, 18, 24]
    assert naive.waited == 20
    queued = simulate(schedule(routes, "expert"), load_time=5, visit_time=1)  # the second load starts at 5, when the first expert computes
    assert queued.finish.tolist() == [6, 7, 11, 12]
    assert queued.waited == 5 + 3
    hidden = simulate(schedule(routes, "expert"), load_time=1, visit_time=1)
    assert hidden.waited == 1  # only the first load is not hidden behind computing
    serial = simulate(schedule(routes, "expert", buffers=1), load_time=5, visit_time=1)
    assert serial.finish.tolist() == [6, 7, 13, 14]


def test_a_switch_of_task_costs_its_gates_and_its_head_alone() -> None:
    head = 8 * 2 + 2
    assert switch_cost(made(depth=4), "parts") == 2 * 8 * 6 + head  # two mixtures
    assert switch_cost(made(gating="shared"), "parts") == head
    assert switch_cost(made(gating="conditioned", task_width=4), "parts") == 4 + head
    model, tokens = made(num_experts=64), draw(3, 4, 10)
    assert switch_cost(model, "parts") < 0.5 * count_parameters(pathway(model, "parts", tokens))
    with pytest.raises(ValueError, match="there is no task 'normals'"):
        switch_cost(model, "normals")


# ------------------------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: made(k=0), "k must be between 1 and num_experts=6, got 0"),
        (lambda: made(k=7), "k must be between 1 and num_experts=6, got 7"),
        (lambda: made(gating="both"), "gating must be 'shared', 'multi' or 'conditioned', got 'both'"),
        (lambda: made(gating="multi", task_width=4), "task_width=4 belongs to gating='conditioned'; 'multi' cannot be combined with it"),
        (lambda: made(gating="conditioned"), "a conditioned gate needs task_width of at least 1, got 0"),
        (lambda: made(noise=-1.0), "noise must be at least 0, got -1.0"),
        (lambda: made().single(draw(2, 4, 10), "normals"), "there is no task 'normals'; the tasks are depth, edges, parts"),
        (lambda: made().single(draw(2, 4, 9), "depth"), r"tokens must be \(batch, length, 10\), got \(2, 4, 9\)"),
        (lambda: made().single(draw(2, 4, 10), "depth", prune=1.0), "prune must be at least 0 and below 1, got 1.0"),
        (lambda: made().single(torch.full((2, 4, 10), torch.nan), "depth"), "routing is undefined: the router's logits of token 0"),
        (lambda: made(positions=5).single(draw(2, 4, 10), "depth"), "this model has positions for 5 tokens, got 4"),
        (lambda: M3ViT({}, token_width=3), "at least one task with a head is needed"),
        (lambda: multitask_loss({"depth": torch.ones(())}, {"depth": 1.0}, torch.ones(()), -1.0), "balance_weight must be at least 0, got -1.0"),
        (
            lambda: multitask_loss({"depth": torch.ones(())}, {"edges": 1.0}, torch.ones(())),
            "task 'depth' has no weight; there are weights for edges",
        ),
        (lambda: patch_tokens(draw(1, 3, 8, 9), 4), "images of 8 x 9 cannot be cut into patches of 4 x 4"),
        (lambda: expert_windows(3, 4, 5), "window must be between 1 and num_experts=4, got 5"),
        (lambda: schedule(top_k_routes(draw(3, 4), 1), "random"), "order must be 'token' or 'expert', got 'random'"),
        (lambda: schedule(top_k_routes(draw(3, 4), 1), "token", buffers=0), "buffers must be at least 1, got 0"),
        (lambda: simulate(schedule(top_k_routes(draw(3, 4), 1), "token"), load_time=-1), "load_time must be at least 0 and visit_time positive"),
    ],
)
def test_bad_input(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]


# -------------------------------------------------------------------------------------------------------------------------- the experiment


def test_patches_of_images_row_by_row() -> None:
    image = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    tokens = patch_tokens(image, 2)
    assert tokens.shape == (1, 6, 8)
    assert tokens[0, 1].tolist() == [2, 3, 8, 9, 26, 27, 32, 33]


def test_teachers_are_scaled_and_differ() -> None:
    train, test = experiment.split_digits(generator=stream(0, "split"))
    teachers = Teachers.draw(train, 5, generator=stream(0, "teachers"))
    answers = teachers(experiment.digit_patches(test, 4000, count=4, generator=stream(0, "test")))
    assert answers.shape == (5, 4000)
    torch.testing.assert_close(answers.mean(1), torch.zeros(5), atol=0.15, rtol=0)
    torch.testing.assert_close(answers.std(1), torch.ones(5), atol=0.15, rtol=0)
    x = experiment.digit_patches(test, 1, count=4, generator=stream(0, "one"))
    by_hand = sum(teachers.outer[2] @ torch.tanh(teachers.inner[2] @ (x[0, p] - teachers.centre)) for p in range(4))
    torch.testing.assert_close(teachers(x)[2, 0], (by_hand - teachers.mean[2]) / teachers.std[2], atol=1e-5, rtol=1e-4)


def test_arms_start_from_the_same_weights() -> None:
    recipe = EXPERIMENT.scales["quick"].recipe  # type: ignore[attr-defined]
    models = {name: experiment.build(recipe, arm, ("0", "1"), 3).state_dict() for name, arm in experiment.ARMS.items()}
    dense = models[experiment.DENSE]
    for name, state in models.items():
        for parameter, value in state.items():
            if parameter in dense and dense[parameter].shape == value.shape:
                assert torch.equal(value, dense[parameter]), (name, parameter)
    multi, conditioned = models[experiment.MULTI], models[experiment.CONDITIONED]
    assert torch.equal(multi["blocks.1.feed.experts.first"], conditioned["blocks.1.feed.experts.first"])


def test_equal_active_flops() -> None:
    recipe = EXPERIMENT.scales["laptop"].recipe  # type: ignore[attr-defined]
    flops = {name: path_flops(experiment.build(recipe, arm, ("0",), 0), 4) for name, arm in experiment.ARMS.items()}
    gate = 2 * 4 * recipe.width * recipe.num_experts
    assert flops[experiment.MULTI] == flops[experiment.SHARED] == flops[experiment.DENSE] + gate
    assert flops[experiment.VECTOR] == flops[experiment.DENSE]


def test_measures_by_hand() -> None:
    usage = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    assert experiment.usage_cosine(usage) == pytest.approx((0 + 2 * 0.5**0.5) / 3)
    assert experiment.delta_m({"a": 0.9, "b": 0.4}, {"a": 1.0, "b": 0.5}) == pytest.approx(-15)


def test_resnet50_is_resnet50() -> None:
    parameters = count_parameters(baselines.dilated_resnet50())
    assert parameters == pytest.approx(23.5e6, rel=0.01)  # 25.6 million with the classifier and BatchNorm
    with torch.device("meta"):
        assert baselines.dilated_resnet50()(torch.zeros(1, 3, 64, 64)).shape == (1, 2048, 8, 8)
    assert baselines.encoder_focused_flops(64, 3) == 3 * baselines.encoder_focused_flops(64, 1)


def test_quick_experiment() -> None:
    arms = run_quick(EXPERIMENT)
    assert arms[experiment.SHARED]["usage cosine"] == pytest.approx(1)
    assert arms[experiment.QUEUED]["weight loads"] <= 8 / 256 / 4 + 1e-9
    assert arms == run_quick(EXPERIMENT)


def test_the_recorded_costs_are_those_of_the_code() -> None:
    arms = recorded("m3vit").arms
    for name, metrics in experiment.costs(512).items():
        assert arms[name]["GFLOPs"].mean == pytest.approx(metrics["GFLOPs"])


def test_paper_scale_runs_on_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    def rooms(part: str, *, count: int, size: tuple[int, int]) -> nyud.Rooms:
        draws = stream(0, part)
        labels = torch.randint(3, (2, *size), generator=draws)
        labels[0, :2] = nyud.IGNORED
        images = torch.randn(2, 3, *size, generator=draws)
        return nyud.Rooms(images, labels, torch.rand(2, *size, generator=draws) + 1, images, labels.float())

    monkeypatch.setattr(nyud, "read_rooms", rooms)
    monkeypatch.setattr(experiment, "ARMS", {name: experiment.ARMS[name] for name in (experiment.DENSE, experiment.CONDITIONED)})
    arms = experiment.run(replace(EXPERIMENT.scales["paper"], rooms=2, room_size=(32, 48), epochs=2, image=64), 0, CPU)  # type: ignore[arg-type]
    for name in (experiment.DENSE, experiment.CONDITIONED):
        assert 0 <= arms[name]["mIoU"] <= 100
        assert 0 < arms[name]["depth RMSE"] < 5


def test_single_task_inference_of_the_room_model_drops_the_fusion() -> None:
    with seeded(0):
        model = RoomModel(experiment.Arm("multi"), (32, 32), ("segmentation", "depth")).eval()
    tokens = patch_tokens(draw(1, 3, 32, 32), 16)
    with torch.no_grad():
        before = model.body.single(tokens, "depth")
        for parameter in model.fusion.parameters():
            parameter.fill_(torch.nan)
        assert torch.equal(model.body.single(tokens, "depth"), before)
        assert before.shape == (1, 1, 32, 32)
        assert F.mse_loss(before, before) == 0


def test_shipped_models_are_trained_and_measured_as_they_say() -> None:
    checkpoint = experiment.CHECKPOINTS[0]
    for name, value in experiment.measure_shipped(load_shipped(checkpoint)).items():
        assert value == pytest.approx(provenance(checkpoint)["measured"][name], abs=1e-3)
    tiny = experiment.Shipped(recipe=replace(checkpoint.settings.recipe, steps=1, batch=4, num_tasks=2))
    models = experiment.train_shipped(tiny)
    assert set(models) == set(experiment.SHIPPED_ARMS)


# ---------------------------------------------------------------------------------------------------------------------------- the explorer


def test_painting_changes_the_experts_of_the_token_under_the_brush() -> None:
    shown = explorer()
    before, picture = shown.text, shown.png
    for column in range(4):
        shown.point("drag" if column else "press", column + 0.5, 1.5)
        shown.point("drag", column + 0.5, 3.5)
    assert shown.png != picture
    changed = [a != b for a, b in zip(_experts(before), _experts(shown.text), strict=True)]
    assert not any(changed[4:])  # the other digits are inputs of their own
    inked = shown.png
    shown.point("press", 2.5, 1.5, key="Shift")
    assert shown.png != inked
    shown.point("press", 2.5, 1.5, axes=1)  # elsewhere: nothing
    shown.preset("reset")
    assert (shown.text, shown.png) == (before, picture)


def test_painting_by_keyboard() -> None:
    shown = explorer()
    before = shown.text
    for key in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"):
        picture = shown.png
        shown.point("key", 0, 0, key=key)
        assert shown.png != picture  # the brush has moved
    assert shown.text == before
    for _ in range(20):  # it stops at the edge
        shown.point("key", 0, 0, key="ArrowRight")
    for _ in range(4):
        shown.point("key", 0, 0, key="ArrowUp")
        shown.point("key", 0, 0, key=" ")
    assert _experts(shown.text)[4:8] != _experts(before)[4:8]  # in the upper right digit
    shown.point("key", 0, 0, key="Escape")
    painted = shown.png
    shown.point("key", 0, 0, key="Delete")
    assert shown.png != painted


def _experts(text: str) -> list[str]:
    return text.split("tokens are ")[1].split(";")[0].split()


def test_what_the_explorer_says_is_what_the_model_does() -> None:
    shown = explorer()
    shared = [shown.text]
    for task in (1, 2, 5):
        shown.set(kind="shared", task=task)
        shared.append(shown.text)
    assert _experts(shared[1]) == _experts(shared[2]) == _experts(shared[3])
    shown.preset("another task, other experts")
    assert _experts(shown.text) != _experts(shared[0])
    shown.preset("hot: no choice left")
    assert "token by token: 128 loads" in shown.text
    assert "expert by expert: 8 loads" in shown.text
    shown.preset("prune: unused experts go")
    assert "never used" in shown.text
    shown.set(prune=0.6, temperature=4.0, done=0)
    assert "none" in _experts(shown.text)
    assert "nothing on chip" in shown.text
