"""TaskExpert: gates, assembly, memory, what is independent of what, MMoE by its formula, the baselines, and all parts."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from sklearn.metrics import f1_score, jaccard_score
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.datasets.scenes import sample_scenes
from mtlearn.lab.checkpoints import load
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.cost import count_parameters
from mtlearn.moe.task_expert import experiment
from mtlearn.moe.task_expert.backbones import ConvBackbone, PretrainedBackbone, TransformerBackbone
from mtlearn.moe.task_expert.baselines import SharedDecoder
from mtlearn.moe.task_expert.exercises import EXERCISES
from mtlearn.moe.task_expert.experiment import ARMS, CHECKPOINTS, EXPERIMENT, FULL, TASKS, Nyud, SceneSettings, build, decode, width_of
from mtlearn.moe.task_expert.explorer import explorer
from mtlearn.moe.task_expert.method import (
    IGNORED,
    NYUD_TASKS,
    PASCAL_TASKS,
    ContextGate,
    DenseModel,
    Heads,
    MMoE,
    PositionGate,
    Task,
    TaskExpert,
    as_map,
    assemble,
    gate_statistics,
    multitask_loss,
    pool,
    task_loss,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from test_nyud import write_rooms

B, C, N, R, T, H, W = 5, 6, 3, 4, 3, 4, 4
GATES = ("context", "position", "static")


def some_layer(seed: int = 0, **options: object) -> MMoE:
    with seeded(seed):
        layer = MMoE(C, T, num_experts=N, width=R, positions=H * W, **options)
        for parameter in layer.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)  # no bias at 0, no static gate at rest
    return layer.eval()


def some_decoder(seed: int = 0, **options: object) -> TaskExpert:
    with seeded(seed):
        return TaskExpert(TASKS, C, **{"num_experts": N, "width": R, "positions": H * W, **options}).eval()


def some_inputs(seed: int = 0, batch: int = B) -> tuple[Tensor, Tensor]:
    draws = stream(seed, "inputs")
    return torch.randn(batch, C, H, W, generator=draws), torch.randn(batch, T, R, H, W, generator=draws)


def some_features(seed: int = 0, batch: int = B) -> list[Tensor]:
    return list(torch.randn(3, batch, C, H, W, generator=stream(seed, "features")))


# gates and assembly


@pytest.mark.parametrize("gate", GATES)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 30))
@settings(deadline=None, max_examples=10)
def test_gates_are_shares_of_all_experts_and_the_memory(gate: str, seed: int, scale: float) -> None:
    feature, memory = some_inputs(seed)
    gates = some_layer(seed % 100, gate=gate)(scale * feature, scale * memory).gates
    assert gates.shape == (B, T, N + 1)
    assert bool((gates >= 0).all())
    torch.testing.assert_close(gates.sum(-1), torch.ones(B, T))


def test_a_gate_on_one_expert_gives_that_expert_and_on_the_memory_what_is_read() -> None:
    layer, (feature, memory) = some_layer(), some_inputs()
    experts = layer.experts(feature)
    for choice in range(N + 1):
        found = layer(feature, memory, gates=F.one_hot(torch.full((T,), choice), N + 1).float()).decoded
        for task in range(T):
            # the read of one task by a convolution of its own, with its part of the weights
            read = F.conv2d(memory[:, task], layer.read.weight[task * R : (task + 1) * R], layer.read.bias[task * R : (task + 1) * R], padding=1)
            if choice < N:
                assert torch.equal(found[:, task], experts[:, choice])
            else:
                torch.testing.assert_close(found[:, task], read)


def test_equal_logits_give_the_plain_mean_of_all_candidates() -> None:
    layer, (feature, memory) = some_layer(gate="static"), some_inputs()
    nn.init.constant_(layer.gate.logits, 0.7)
    read = layer.read(memory.flatten(1, 2)).view(B, T, R, H, W)
    mean = (layer.experts(feature).sum(1, keepdim=True) + read) / (N + 1)
    torch.testing.assert_close(layer(feature, memory).decoded, mean, atol=1e-6, rtol=1e-5)


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_where_all_experts_are_equal_and_the_memory_is_off_the_gate_does_not_matter(seed: int) -> None:
    draws = stream(seed)
    one, logits = torch.randn(B, 1, R, H, W, generator=draws), torch.randn(B, T, N + 1, generator=draws)
    logits[..., -1] = -torch.inf
    read = torch.randn(B, T, R, H, W, generator=draws)
    torch.testing.assert_close(assemble(logits.softmax(-1), one.expand(-1, N, -1, -1, -1), read), one.expand(-1, T, -1, -1, -1))


def test_one_expert_without_memory_is_a_static_shared_decoder() -> None:
    decoder, features = some_decoder(memory=False, num_experts=1), some_features()
    shared = sum(layer.experts(feature)[:, 0] for layer, feature in zip(decoder.mixtures, features, strict=True))
    found = decoder(features)
    assert all(torch.equal(gates, torch.ones(B, T, 1)) for gates in found.gates)
    alone = decoder.heads(shared[:, None].expand(-1, T, -1, -1, -1))
    for task in TASKS:
        torch.testing.assert_close(found.predictions[task.name], alone[task.name])


def test_static_gates_are_dynamic_ones_whose_perceptron_is_zero_and_whose_bias_is_the_logits() -> None:
    static, dynamic = some_layer(gate="static"), some_layer(gate="context")
    dynamic.load_state_dict({k: v for k, v in static.state_dict().items() if not k.startswith("gate")}, strict=False)
    nn.init.zeros_(dynamic.gate.first.weight)
    nn.init.zeros_(dynamic.gate.last.weight)
    dynamic.gate.last.bias.data = static.gate.logits.data
    for mine, other in zip(static(*some_inputs()), dynamic(*some_inputs()), strict=True):
        torch.testing.assert_close(mine, other)
    assert float(gate_statistics([static(*some_inputs()).gates]).deviation.detach().abs().max()) < 1e-7


def test_permuting_experts_with_the_gates_columns_changes_nothing() -> None:
    layer, (feature, memory) = some_layer(), some_inputs()
    order = torch.tensor([2, 0, 1])
    gates = layer(feature, memory).gates
    experts = layer.experts(feature)
    columns = torch.cat([order, torch.tensor([N])])
    read = layer.read(memory.flatten(1, 2)).view(B, T, R, H, W)
    torch.testing.assert_close(assemble(gates, experts, read), assemble(gates[..., columns], experts[:, order], read))
    permuted = some_layer()
    channels = (order[:, None] * R + torch.arange(R)).flatten()
    for module in (permuted.experts.project, permuted.experts.context, permuted.experts.norm):
        for tensor in module.state_dict().values():
            if tensor.dim():
                tensor.copy_(tensor[channels].clone())
    permuted.gate.last.weight.data = permuted.gate.last.weight.data[..., columns]
    permuted.gate.last.bias.data = permuted.gate.last.bias.data[..., columns]
    torch.testing.assert_close(permuted(feature, memory).memory, layer(feature, memory).memory)


def test_assembly_is_the_sum_that_the_equation_says() -> None:
    draws = stream(0)
    gates, experts, read = (
        torch.rand(2, T, N + 1, generator=draws),
        torch.randn(2, N, R, H, W, generator=draws),
        torch.randn(2, T, R, H, W, generator=draws),
    )
    for b in range(2):
        for t in range(T):
            wanted = sum(gates[b, t, i] * experts[b, i] for i in range(N)) + gates[b, t, N] * read[b, t]
            torch.testing.assert_close(assemble(gates, experts, read)[b, t], wanted)


def test_gradients_of_the_assembly() -> None:
    draws = stream(1)
    gates, experts, read = (
        torch.randn(shape, generator=draws, dtype=torch.float64, requires_grad=True) for shape in ((2, 2, 3), (2, 2, 2, 2), (2, 2, 2, 2))
    )
    assert torch.autograd.gradcheck(assemble, (gates, experts, read))


def test_without_memory_and_on_vectors_it_is_mmoe() -> None:
    """MMoE (Ma et al. 2018): y_t = sum_i softmax(W_t x)_i f_i(x). Maps of one position, gates without hidden layer: the formula, task by task."""
    draws = stream(0)
    x, weights = torch.randn(B, C, generator=draws), torch.randn(T, C, N, generator=draws)
    layer = some_layer(memory=False, hidden=C, pools=("mean",))
    layer.gate.first.weight.data = 1e4 * torch.eye(C).expand(T, -1, -1)  # through GELU and back: a positive input passes, scaled
    layer.gate.first.bias.data.zero_()
    layer.gate.last.weight.data, layer.gate.last.bias.data = weights / 1e4, torch.zeros(T, N)
    x = x.abs() + 0.1
    found = layer(x[..., None, None], torch.zeros(B, T, R, 1, 1))
    outputs = [layer.experts(x[..., None, None])[:, i, :, 0, 0] for i in range(N)]
    for task in range(T):
        shares = torch.softmax(x @ weights[task], -1)
        mixed = sum(shares[:, i, None] * outputs[i] for i in range(N))
        torch.testing.assert_close(found.gates[:, task], shares, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.decoded[:, task, :, 0, 0], mixed, atol=1e-5, rtol=1e-4)


# what the gates see


def test_pooling_is_mean_maximum_and_minimum_side_by_side() -> None:
    x = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    assert pool(x).tolist() == [3.0, 6.0, 1.0] and pool(x, ("max",)).tolist() == [6.0]


def test_pooled_gates_do_not_see_where_and_position_gates_do() -> None:
    feature, _ = some_inputs()
    moved = feature.roll(2, -1)
    for kind, same in (
        (ContextGate(T, C, N, memory_width=0, hidden=8), True),
        (PositionGate(T, C, N, memory_width=0, width=R, positions=H * W), False),
    ):
        kind.eval()
        assert torch.allclose(kind(feature, None), kind(moved, None), atol=1e-5) == same


def test_the_position_gate_is_its_formula_task_by_task() -> None:
    with seeded(0):
        gate = PositionGate(T, C, N + 1, memory_width=R, width=7, positions=H * W).eval()
    feature, memory = some_inputs()
    for t in range(T):
        both = torch.cat([feature, memory[:, t]], 1).flatten(2)  # (B, C + R, HW)
        x = gate.norm(F.conv1d(both, gate.project.weight[t].T[..., None], gate.project.bias[t]).mT)  # a 1x1 convolution, LayerNorm over channels
        seen = torch.cat([x.mean(1), F.linear(x.mT, gate.over_positions.weight[t].T, gate.over_positions.bias[t])[..., 0]], -1)
        torch.testing.assert_close(gate(feature, memory)[:, t], seen @ gate.to_logits.weight[t] + gate.to_logits.bias[t], atol=1e-5, rtol=1e-4)


def test_noise_of_the_position_gate_is_there_in_training_alone_and_repeats() -> None:
    gate = some_layer(gate="position").gate
    inputs = some_inputs()
    assert torch.equal(gate(*inputs), gate(*inputs))
    gate.train()
    assert torch.equal(gate(*inputs, stream(0)), gate(*inputs, stream(0)))
    assert not torch.equal(gate(*inputs, stream(0)), gate(*inputs, stream(1)))


def test_a_gate_that_is_blind_to_the_memory_does_not_follow_it() -> None:
    feature, memory = some_inputs()
    for sees in (True, False):
        layer = some_layer(sees_memory=sees)
        assert torch.equal(layer(feature, memory).gates, layer(feature, 2 * memory).gates) != sees


# what is independent of what


@pytest.mark.parametrize("gate", GATES)
def test_in_evaluation_an_image_does_not_depend_on_the_others(gate: str) -> None:
    decoder, features = some_decoder(gate=gate), some_features()
    together, changed = decoder(features), [feature.clone() for feature in features]
    alone = decoder([feature[1:2] for feature in features])
    for feature in changed:
        feature[3] += 1
    other = decoder(changed)
    for name, prediction in together.predictions.items():
        torch.testing.assert_close(prediction[1:2], alone.predictions[name])
        torch.testing.assert_close(prediction[[0, 1, 2, 4]], other.predictions[name][[0, 1, 2, 4]])
    for one, two in zip(together.gates, other.gates, strict=True):
        torch.testing.assert_close(one[[0, 1, 2, 4]], two[[0, 1, 2, 4]])
        assert gate == "static" or bool((one[3] - two[3]).abs().max() > 1e-4)


def test_in_training_batch_norm_couples_the_images_of_a_batch() -> None:
    decoder, features = some_decoder().train(), some_features()
    together, alone = decoder(features), decoder([feature[:2] for feature in features])
    assert bool((together.gates[-1][:2] - alone.gates[-1]).abs().max() > 1e-6)


def test_another_tasks_gates_and_memory_leave_a_task_alone_to_the_bit() -> None:
    layer, (feature, memory) = some_layer(), some_inputs()
    before = layer(feature, memory)
    gates, other = before.gates.clone(), memory.clone()
    gates[:, 1] = gates[:, 1].flip(-1)
    other[:, 1] += 1
    after = layer(feature, other, gates=gates)
    rest = [0, 2]
    assert torch.equal(before.decoded[:, rest], after.decoded[:, rest]) and torch.equal(before.memory[:, rest], after.memory[:, rest])
    assert not torch.equal(before.decoded[:, 1], after.decoded[:, 1])
    decoder = some_decoder()
    mine = decoder(some_features())
    decoder.start.data[1] += 1
    for name, same in (("segmentation", True), ("depth", False), ("boundary", True)):
        assert torch.equal(mine.predictions[name], decoder(some_features()).predictions[name]) == same


# the memory


def test_where_nothing_is_written_the_memory_stays_and_the_prediction_sees_no_image() -> None:
    decoder = some_decoder()
    for layer in decoder.mixtures:
        nn.init.zeros_(layer.write.weight)
        nn.init.zeros_(layer.write.bias)
    one, other = decoder(some_features(0)), decoder(some_features(1))
    assert torch.equal(one.memory, decoder.start[None, :, :, None, None].expand(B, -1, -1, H, W))
    assert all(torch.equal(one.predictions[task.name], other.predictions[task.name]) for task in TASKS)


def test_one_layer_is_one_mixture_plus_the_start() -> None:
    decoder, features = some_decoder(layers=(1,), write="identity"), some_features()
    start = decoder.start[None, :, :, None, None].expand(B, -1, -1, H, W)
    mixture = decoder.mixtures[0](features[1], start)
    torch.testing.assert_close(decoder(features).memory, mixture.decoded + start)


def test_without_memory_the_layers_are_summed_with_equal_weight() -> None:
    decoder, features = some_decoder(memory=False), some_features()
    found = decoder(features)
    assert found.gates[0].shape == (B, T, N)
    parts = [assemble(gates, layer.experts(feature)) for layer, feature, gates in zip(decoder.mixtures, features, found.gates, strict=True)]
    torch.testing.assert_close(found.memory, parts[0] + parts[1] + parts[2])


def test_the_gradient_reaches_the_first_layers_experts_through_the_memory() -> None:
    decoder, features = some_decoder().train(), some_features()
    decoder(features).predictions["depth"].square().mean().backward()
    assert float(decoder.mixtures[0].experts.project.weight.grad.abs().max()) > 0
    assert float(decoder.start.grad[1].abs().max()) > 0 and float(decoder.start.grad[0].abs().max()) == 0


def test_a_cut_memory_leaves_the_last_layer_alone() -> None:
    decoder, features = some_decoder(), some_features()
    start = decoder.start[None, :, :, None, None].expand(B, -1, -1, H, W)
    torch.testing.assert_close(decoder(features, cut_memory=True).memory, decoder.mixtures[2](features[2], start).memory)
    assert not torch.allclose(decoder(features).memory, decoder(features, cut_memory=True).memory)


def test_gates_that_are_given_replace_a_layers_own() -> None:
    decoder, features = some_decoder(), some_features()
    own = decoder(features)
    again = decoder(features, gates=own.gates)
    torch.testing.assert_close(own.memory, again.memory)
    frozen = decoder(features, gates=[None, own.gates[1].mean(0), None])
    assert torch.equal(frozen.gates[0], own.gates[0]) and torch.equal(frozen.gates[1][0], frozen.gates[1][4])


# backbones, heads, loss


def test_both_backbones_give_maps_of_one_size_and_only_one_of_them_sees_far() -> None:
    scenes = sample_scenes(2, generator=stream(0)).images
    moved = scenes.clone()
    moved[:, :, :3] += 1  # the rows of the mark
    for kind, far in ((ConvBackbone, False), (TransformerBackbone, True)):
        with seeded(0):
            backbone = kind().eval()
        features, others = backbone(scenes), backbone(moved)
        assert [tuple(feature.shape) for feature in features] == [(2, 24, 8, 8)] * 3
        corner = (features[-1] - others[-1])[..., -2:, :].abs().max()  # 3 blocks of 3x3 reach 3 patches, no further
        assert bool(corner > 1e-5) == far


def test_the_shipped_sizes_reach_the_mark_with_no_more_than_three_patches() -> None:
    backbone = ConvBackbone().eval()
    x = torch.zeros(1, 1, 16, 16, requires_grad=True)
    backbone(x)[-1][0, :, 6, 4].sum().backward()
    rows = x.grad[0, 0].abs().sum(1)
    assert not rows[:6].any() and bool(rows[6:].all())


def test_a_vision_transformer_of_the_library_gives_maps() -> None:
    from transformers import ViTConfig, ViTModel

    with seeded(0):
        vit = ViTModel(
            ViTConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4),
            add_pooling_layer=False,
        ).eval()
    backbone = PretrainedBackbone(vit)
    images = torch.randn(2, 3, 8, 12, generator=stream(0))  # wider than it was made for
    features = backbone(images)
    assert [tuple(feature.shape) for feature in features] == [(2, 16, 2, 3)] * 3
    tokens = vit(images, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states[2][:, 1:]
    assert torch.equal(features[1][0, :, 1, 2], tokens[0, 5])
    with seeded(0):
        model = DenseModel(backbone, TaskExpert(NYUD_TASKS, 16, layers=(0, 2), width=R, scale=4, up="bilinear")).eval()
    shapes = {name: tuple(value.shape) for name, value in model(images).predictions.items()}
    assert shapes == {"segmentation": (2, 40, 8, 12), "depth": (2, 1, 8, 12), "normals": (2, 3, 8, 12), "boundary": (2, 1, 8, 12)}


def test_tokens_become_a_map_row_by_row() -> None:
    tokens = torch.arange(7.0)[None, :, None]
    assert as_map(tokens, (2, 3), skip=1)[0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(ValueError, match=r"0 \+ 2 x 3 tokens are needed, got 7"):
        as_map(tokens, (2, 3))


def test_channels_may_differ_from_layer_to_layer() -> None:
    features = [torch.randn(2, channels, 4, 4) for channels in (3, 5)]
    found = TaskExpert(TASKS, (3, 5), layers=(0, 1), width=R)(features)
    assert found.predictions["segmentation"].shape == (2, 3, 8, 8)


def test_the_weights_of_the_losses_are_those_of_the_authors_scaffold() -> None:
    assert [(task.name, task.weight) for task in PASCAL_TASKS] == [("semseg", 1), ("parts", 2), ("saliency", 5), ("boundary", 50), ("normals", 10)]
    assert {task.name: task.weight for task in NYUD_TASKS} == {"segmentation": 1, "depth": 1, "normals": 10, "boundary": 50}
    assert {task.positive for task in (*PASCAL_TASKS, *NYUD_TASKS)} == {0.95}


def test_losses_are_those_of_the_definitions() -> None:
    draws = stream(0)
    logits, target = torch.randn(2, 3, 4, 4, generator=draws), torch.randint(3, (2, 4, 4), generator=draws)
    target[0, 0] = IGNORED
    known = target != IGNORED
    chosen = logits.log_softmax(1).gather(1, target.where(known, 0)[:, None])[:, 0]
    torch.testing.assert_close(task_loss(Task("s", "classes", 3), logits, target), -chosen[known].mean())
    edge = (torch.rand(2, 4, 4, generator=draws) < 0.3).float()
    p = logits[:, 0].sigmoid()
    wanted = -(0.9 * edge * p.log() + 0.1 * (1 - edge) * (1 - p).log()).mean()
    torch.testing.assert_close(task_loss(Task("e", "edge", 1, positive=0.9), logits[:, :1], edge), wanted)
    depth = torch.rand(2, 4, 4, generator=draws)
    depth[1, 1, 1] = torch.nan
    error = (logits[:, 0] - depth).abs()
    torch.testing.assert_close(task_loss(Task("d", "value", 1), logits[:, :1], depth), error[~error.isnan()].mean())
    tasks = (Task("s", "classes", 3, 2.0), Task("d", "value", 1, 0.5))
    total = multitask_loss(tasks, {"s": logits, "d": logits[:, :1]}, {"s": target, "d": depth})
    torch.testing.assert_close(total, 2.0 * -chosen[known].mean() + 0.5 * error[~error.isnan()].mean())


def test_bilinear_heads_and_shuffled_ones_reach_the_pictures_size() -> None:
    features = torch.randn(2, T, R, 4, 6)
    for up in ("bilinear", "shuffle"):
        found = Heads(TASKS, R, scale=2, up=up)(features)
        assert {name: tuple(value.shape) for name, value in found.items()} == {
            "segmentation": (2, 3, 8, 12),
            "depth": (2, 1, 8, 12),
            "boundary": (2, 1, 8, 12),
        }


def test_the_shared_decoder_gives_all_tasks_one_feature_and_context_is_the_same_everywhere() -> None:
    features = some_features()
    with seeded(0):
        decoder = SharedDecoder(TASKS, C, width=R, context=True).eval()
    found = decoder(features)
    assert found.gates == () and torch.equal(found.memory[:, 0], found.memory[:, 2]) and decoder.tasks == TASKS
    added = decoder.context(pool(features[-1]))[:, :, None, None]
    wanted = F.relu(decoder.norm(decoder.shared(features[-1]) + added))
    torch.testing.assert_close(found.memory[:, 0], wanted)


def test_gate_statistics_tell_static_from_dynamic() -> None:
    still, moving = torch.full((6, 2, 4), 0.25), F.one_hot(torch.arange(12).reshape(6, 2) % 4, 4).float()
    for gates, dynamic in ((still, False), (moving, True)):
        found = gate_statistics([gates, gates])
        assert found.mean.shape == (2, 2, 4) and bool((found.dynamic > 0.01).all()) == dynamic
        torch.testing.assert_close(found.deviation, gates.std(0, correction=0).expand(2, -1, -1))
    torch.testing.assert_close(gate_statistics([still]).entropy, torch.full((1, 2), 4.0).log())


# bad input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: some_layer()(some_inputs()[0], some_inputs(batch=4)[1]), r"of this batch: \(5, 3, R, 4, 4\), got \(4, 3, 4, 4, 4\)"),
        (lambda: some_layer()(*some_inputs(), gates=torch.full((T, N + 1), torch.nan)), r"gates must be finite; the one at \[0, 0\] is nan"),
        (lambda: some_layer()(*some_inputs(), gates=torch.ones(T, N)), r"gates must have shape \(B, 3, 4\) or \(3, 4\), got \(3, 3\)"),
        (lambda: TaskExpert(TASKS, C, num_experts=0), "at least one expert .* got num_experts=0"),
        (lambda: TaskExpert(TASKS, C, layers=(0, 2, 1)), r"layers must be positions from 0 in increasing order, got \(0, 2, 1\)"),
        (lambda: TaskExpert(TASKS, C, layers=()), r"layers must be positions from 0 in increasing order, got \(\)"),
        (lambda: TaskExpert(TASKS, (C, C)), r"channels must be one number or one for each of the 3 layers, got \(6, 6\)"),
        (lambda: TaskExpert(TASKS, C, gate="sparse"), "gate must be one of context, position, static .* got 'sparse'"),
        (lambda: TaskExpert(TASKS, C, pools=("median",)), r"pools must be some of mean, max, min, got \('median',\)"),
        (lambda: TaskExpert((*TASKS, TASKS[0]), C), "tasks must have different names"),
        (lambda: some_decoder()(some_features()[:2]), "layer 2 is to be read, the backbone gave 2 features"),
        (lambda: some_decoder()([*some_features()[:2], torch.ones(B, 2, H, W)]), r"layer 2 must have shape \(B, 6, H, W\), got \(5, 2, 4, 4\)"),
        (lambda: some_decoder()([*some_features()[:2], torch.ones(B, C, 2, 2)]), r"layer 0 has \(5, 6, 4, 4\), layer 2 has \(5, 6, 2, 2\); resize"),
        (lambda: some_decoder()(some_features(), gates=[None]), "gates must be given for each of the 3 layers .* got 1"),
        (lambda: some_decoder().index("normals"), "there is no task 'normals'; the tasks are segmentation, depth, boundary"),
        (lambda: multitask_loss(TASKS, {}, {"depth": torch.ones(1), "parts": torch.ones(1)}), r"unknown: \['parts'\], missing: \['boundary', 'segm"),
        (lambda: some_layer(gate="position")(torch.ones(B, C, 2, 2), torch.ones(B, T, R, 2, 2)), "weights for 16 positions, the feature has 4"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_the_memory_is_made_anew_for_every_batch() -> None:
    decoder = some_decoder()
    first = decoder(some_features())
    assert decoder([feature[:2] for feature in some_features(1)]).memory.shape[0] == 2
    assert torch.equal(first.memory, decoder(some_features()).memory)


def test_a_task_has_a_number() -> None:
    assert [some_decoder().index(task.name) for task in TASKS] == [0, 1, 2]


# experiment


def test_arms_have_as_many_parameters_as_taskexpert_and_start_alike() -> None:
    laptop = EXPERIMENT.scales["laptop"]
    wanted = count_parameters(build(ARMS[FULL], laptop, 0).decoder)
    for arm in ARMS.values():
        model = build(arm, laptop, 0)
        if arm.matched:
            assert abs(count_parameters(model.decoder) / wanted - 1) < 0.04
            assert width_of(arm, laptop) > laptop.width
        if not arm.transformer:
            assert torch.equal(model.backbone.patch.weight, build(ARMS[FULL], laptop, 0).backbone.patch.weight)


def test_scores_are_those_of_scikit_learn() -> None:
    draws = stream(0)
    predicted, target = torch.randint(3, (2, 6, 6, 6), generator=draws)
    wanted = jaccard_score(target.flatten(), predicted.flatten(), labels=[1, 2], average="macro")
    assert experiment.mean_iou(predicted, target, (1, 2)) == pytest.approx(wanted)
    masked = target.clone()
    masked[0] = IGNORED
    wanted = jaccard_score(target[1:].flatten(), predicted[1:].flatten(), labels=[1, 2], average="macro")
    assert experiment.mean_iou(predicted, masked, (1, 2, 7)) == pytest.approx(wanted)  # a class that is nowhere does not count
    logits, edge = torch.randn(3, 5, 5, generator=draws), (torch.rand(3, 5, 5, generator=draws) < 0.4).float()
    found = experiment.f_scores(logits, edge, torch.tensor([0.3, 0.6]))
    for score, threshold in zip(found.tolist(), (0.3, 0.6), strict=True):
        assert score == pytest.approx(f1_score(edge.flatten(), (logits.sigmoid() > threshold).flatten()))


def test_decoding_in_parts_is_decoding_at_once() -> None:
    model = build(ARMS[FULL], EXPERIMENT.scales["quick"], 0).eval()
    images = sample_scenes(7, generator=stream(0)).images
    whole, parts = decode(model, images), decode(model, images, batch=3)
    torch.testing.assert_close(whole.predictions["depth"], parts.predictions["depth"])
    assert parts.gates[0].shape == (7, 3, 5) and parts.memory.shape[0] == 7


def test_scenes_move_to_a_device_as_a_whole() -> None:
    moved = experiment._on(sample_scenes(3, generator=stream(0)), torch.device("meta"))
    tensors = [value for part in (vars(moved), vars(moved.layouts)) for value in part.values() if isinstance(value, Tensor)]
    assert len(tensors) == 11 and {tensor.device.type for tensor in tensors} == {"meta"}


def test_photo_targets_are_blur_and_sobel_of_the_clean_crop() -> None:
    from scipy import ndimage

    from mtlearn.datasets.photos import photo_crops

    images, targets = experiment.photo_batch("test", 5, generator=stream(0))
    clean = photo_crops("test", 5, size=16, step=4, generator=stream(0))
    assert float((images - clean).std()) == pytest.approx(0.1, abs=0.01)
    luminance = (clean.permute(0, 2, 3, 1).double() @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)).numpy()
    for k in range(5):
        bell = [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16]
        blur = ndimage.correlate1d(ndimage.correlate1d(luminance[k], bell, 0, mode="nearest"), bell, 1, mode="nearest")
        sobel = [ndimage.sobel(luminance[k], axis, mode="nearest") / 4 for axis in (0, 1)]
        torch.testing.assert_close(targets["blur"][k], torch.from_numpy(blur).float(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(targets["edges"][k], torch.from_numpy((sobel[0] ** 2 + sobel[1] ** 2) ** 0.5).float(), atol=1e-5, rtol=1e-4)
    assert int(targets["clusters"].max()) < experiment.COLOURS


def test_quick_experiment_measures_every_arm_and_repeats_to_the_bit() -> None:
    arms = run_quick(EXPERIMENT)
    assert set(ARMS) < set(arms) and experiment.FROZEN in arms and experiment.CUT in arms
    tiny = replace(EXPERIMENT.scales["quick"], steps=2)
    model, again = (experiment.train(build(ARMS[FULL], tiny, 3), _data(16), tiny, 3, steps=2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def _data(count: int) -> tuple[Tensor, dict[str, Tensor]]:
    scenes = sample_scenes(count, generator=stream(0))
    return scenes.images, experiment.scene_targets(scenes)


def test_a_short_training_lowers_the_loss_of_every_task() -> None:
    quick = EXPERIMENT.scales["quick"]
    images, targets = _data(64)
    before = build(ARMS[FULL], quick, 0).eval()
    after = experiment.train(build(ARMS[FULL], quick, 0), (images, targets), replace(quick, batch=32), 0, steps=40)
    for task in TASKS:
        start, end = (float(task_loss(task, decode(model, images).predictions[task.name], targets[task.name])) for model in (before, after))
        assert end < start


def test_nyud_runs_from_folder_to_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import ViTConfig, ViTModel

    monkeypatch.setenv("MTLEARN_DATA", str(write_rooms(tmp_path)))
    with seeded(0):
        config = ViTConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4)
        ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    recipe = Nyud(vit=str(tmp_path / "vit"), layers=(0, 1), width=4, num_experts=2, hidden=4, size=(12, 16), steps=1, test=1)
    arms = experiment.nyud_arms(recipe, 0, torch.device("cpu"))
    assert list(arms) == [f"NYUD, {name}" for name in experiment.PHOTO_ARMS]
    for metrics in arms.values():
        assert set(metrics) == {"mIoU", "depth RMSE", "normal error", "boundary F1"} <= set(EXPERIMENT.units)
        assert 0 <= metrics["normal error"] <= 180 and metrics["depth RMSE"] > 0
    assert EXPERIMENT.scales["paper"].nyud == Nyud()
    whole = {"scene_arms": {name: {} for name in experiment.PHOTO_ARMS}, "photo_arms": {}}
    for name, found in whole.items():
        monkeypatch.setattr(experiment, name, lambda *_, found=found: dict(found))
    assert "NYUD, TaskExpert" in experiment.run(SceneSettings(seeds=1, nyud=recipe), 0, torch.device("cpu"))


# explorer and exercises


def test_the_shipped_model_knows_all_regimes() -> None:
    found = experiment.measure_model(load(CHECKPOINTS[0]))
    assert found["mIoU"] > 0.97 and found["depth RMSE"] < 0.1 and found["boundary F1"] > 0.97


def test_the_mark_decides_what_the_square_is_called_and_the_boundary_stays() -> None:
    shown = explorer()
    texts = {}
    for value in (-3.0, -1.5, 1.5, 3.0):
        shown.set(value=value)
        texts[value] = shown.text
        assert "mIoU of this image 1.00" in shown.text
    assert "regime 0: square 1" in texts[-3.0] and "regime 1: square 2" in texts[-1.5]
    assert "regime 2: square 1" in texts[1.5] and "regime 3: square 2" in texts[3.0]
    shown.set(value=-2.25)
    assert "nearest regime" in shown.text


def test_frozen_gates_and_a_cut_memory_give_wrong_names() -> None:
    shown = explorer()
    right = shown.text
    for label in ("frozen gates: wrong names", "the memory cut"):
        shown.preset(label)
        score = float(shown.text.split("mIoU of this image ")[1][:4])
        assert score < 0.6, label
    shown.preset("reset")
    assert shown.text == right


def test_the_things_in_the_picture_can_be_dragged_and_stay_inside() -> None:
    shown = explorer()
    first = shown.png
    shown.point("press", 8, 1)
    shown.point("drag", 30, 7)  # the mark keeps its rows, and the border holds it
    assert shown.png != first and "mIoU of this image 1.00" in shown.text
    moved = shown.png
    shown.point("press", 4, 6)
    shown.point("drag", 6, 10)
    shown.point("release", 6, 10)
    assert shown.png != moved
    before = shown.png
    for key, again in (("ArrowLeft", False), ("ArrowRight", True)):
        shown.point("key", 0, 0, key=key)
        assert (shown.png == before) == again
    shown.point("key", 0, 0, key="d")
    assert shown.png != before
    last = shown.png
    shown.point("press", 0, 0, axes=2)
    shown.point("key", 0, 0, key="x")
    assert shown.png == last
    shown.preset("reset")
    assert shown.png == first


def test_the_gates_shown_are_those_of_the_task() -> None:
    shown = explorer()
    assert "Gates of segmentation: layer 1" in shown.text
    shown.set(task="boundary")
    assert "Gates of boundary: layer 1" in shown.text
    shown.set(gates="average")
    assert "Gates of boundary, frozen" in shown.text


def test_the_exercises_compute_what_they_ask() -> None:
    from mtlearn.moe.task_expert.exercises import parity_accuracy, pooled_changes

    assert pooled_changes("mean") == {"one pixel": False, "all pixels": True, "where the pixel is": False}
    assert parity_accuracy("segmentation", 1) > 0.9
    for exercise in EXERCISES:
        assert exercise.check(exercise.solve()).right and not exercise.check(exercise.wrong).right
    for exercise, answers in zip(
        EXERCISES,
        (({"mean": set()}, []), ({"gates": 1.0}, 3), ({"segmentation": []}, {task.name: [] for task in TASKS})),
        strict=True,
    ):
        for answer in answers:
            assert not exercise.check(answer).right
