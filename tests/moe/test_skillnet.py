"""SkillNet: layers against PyTorch, merging, sparsity of the gradient, losses against public ones, the tasks, the experiment, the explorer."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from real_files import REAL
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.lab.checkpoints import load
from mtlearn.lab.seeds import seeded, stream
from mtlearn.moe.skillnet import experiment
from mtlearn.moe.skillnet.baselines import RoutedNet, dense, skillnet, without_general
from mtlearn.moe.skillnet.exercises import EXERCISES
from mtlearn.moe.skillnet.experiment import (
    CHECKPOINTS,
    EXPERIMENT,
    TASKS,
    TINY,
    calls_of,
    edit_distance,
    retrieval_score,
    score,
    toggled,
    train,
)
from mtlearn.moe.skillnet.explorer import CALLS, activated, explorer, skilled
from mtlearn.moe.skillnet.method import (
    GENERAL,
    HIDDEN,
    SHARED,
    SKILLS,
    TABLE,
    Call,
    Inputs,
    Modality,
    Sizes,
    SkillFFN,
    SkillLayer,
    SkillLinear,
    SkillNet,
    Task,
    ctc_loss,
    greedy_decode,
    info_nce,
    task_probabilities,
    task_schedule,
    with_all,
    without,
)
from mtlearn.moe.skillnet.tasks import BLANKED, Data, make_tasks, to_words, vocabulary_of

WIDTH, HEADS, HIDE = 8, 2, 12
SMALL = Sizes(width=WIDTH, heads=HEADS, layers=2, hidden=HIDE, words=20)
SHAPES = {
    "text": Modality((6,)),
    "code": Modality((7,)),
    "image": Modality((2, 2), features=3),
    "video": Modality((2, 2, 2), features=3),
    "sound": Modality((8,), features=4, kernel=3),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=stream(seed, "draw"))


def small(sizes: Sizes = SMALL, seed: int = 0, **options: object) -> SkillNet:
    with seeded(seed):
        return SkillNet(options.pop("table", TABLE), SHAPES, options.pop("skills", SKILLS), sizes)  # type: ignore[arg-type]


def words(batch: int = 4, length: int = 6, seed: int = 0) -> Inputs:
    values = torch.randint(3, 20, (batch, length), generator=stream(seed, "words"))
    valid = torch.arange(length) < torch.randint(2, length + 1, (batch, 1), generator=stream(seed, "lengths"))
    return Inputs(values * valid, valid)


def numbers(modality: str, batch: int = 4, seed: int = 0) -> Inputs:
    shape = SHAPES[modality]
    length = math.prod(shape.places) * shape.stride
    return Inputs(draw(batch, length, shape.features, seed=seed), torch.ones(batch, length, dtype=torch.bool))


def inputs_of(modality: str, batch: int = 4, seed: int = 0) -> Inputs:
    return numbers(modality, batch, seed) if SHAPES[modality].features else words(batch, SHAPES[modality].places[0], seed)


def batch_of(task: str, seed: int = 0) -> tuple[list[Inputs], Tensor, Tensor | None]:
    calls = [inputs_of(call.modality, seed=seed + side) for side, call in enumerate(TABLE[task].calls)]
    if task == "sound":
        return calls, torch.tensor([[1, 2, 0], [3, 3, 4], [5, 0, 0], [2, 1, 2]]), torch.tensor([2, 3, 1, 3])
    return calls, torch.arange(4) % 3, None


# ---------------------------------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("skill", SKILLS)
def test_one_skill_is_a_layer_of_pytorch(skill: str) -> None:
    layer = SkillLayer(SKILLS, WIDTH, HEADS, HIDE)
    peer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDE, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    with torch.no_grad():
        peer.self_attn.in_proj_weight.copy_(layer.qkv.of[skill].weight)
        peer.self_attn.in_proj_bias.copy_(layer.qkv.of[skill].bias)
    for theirs, ours in (
        (peer.self_attn.out_proj, layer.out),
        (peer.linear1, layer.ffn.inner[skill]),
        (peer.linear2, layer.ffn.outer[skill]),
        (peer.norm1, layer.attention_norm),
        (peer.norm2, layer.ffn_norm),
    ):
        theirs.load_state_dict(ours.state_dict())
    x, valid = draw(3, 5, WIDTH), torch.tensor([5, 3, 1])[:, None] > torch.arange(5)
    found = layer(x, valid[:, None, None], (skill,))
    torch.testing.assert_close(found[valid], peer(x, src_key_padding_mask=~valid)[valid], atol=1e-6, rtol=0)
    torch.testing.assert_close(layer(x, None, (skill,)), peer(x), atol=1e-6, rtol=0)


def test_one_skill_in_all_is_a_dense_transformer() -> None:
    net = small(table=with_all(TABLE, ("only",)), skills=("only",))
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(WIDTH, HEADS, HIDE, dropout=0.0, activation="gelu", batch_first=True, norm_first=True),
        2,
        norm=nn.LayerNorm(WIDTH),
        enable_nested_tensor=False,
    )
    with torch.no_grad():
        for theirs, ours in zip(encoder.layers, net.layers, strict=True):
            theirs.self_attn.in_proj_weight.copy_(ours.qkv.of["only"].weight)
            theirs.self_attn.in_proj_bias.copy_(ours.qkv.of["only"].bias)
            for a, b in (
                (theirs.self_attn.out_proj, ours.out),
                (theirs.linear1, ours.ffn.inner["only"]),
                (theirs.linear2, ours.ffn.outer["only"]),
                (theirs.norm1, ours.attention_norm),
                (theirs.norm2, ours.ffn_norm),
            ):
                a.load_state_dict(b.state_dict())
    inputs = words()
    tokens = net.words(inputs.values) + net.embedders["text"].positions(6)
    states = net.encode("text", inputs, ("only",)).values
    torch.testing.assert_close(states[inputs.valid], encoder(tokens, src_key_padding_mask=~inputs.valid)[inputs.valid], atol=1e-6, rtol=0)


active_sets = st.sets(st.sampled_from(SKILLS), min_size=1).map(sorted)


@settings(deadline=None, max_examples=30)
@given(active=active_sets, seed=st.integers(0, 100))
def test_the_mean_of_projections_is_the_projection_by_the_mean(active: list[str], seed: int) -> None:
    with seeded(seed):
        layer = SkillLinear(SKILLS, 5, 7)
    x = draw(2, 3, 5, seed=seed)
    each = torch.stack([layer.of[skill](x) for skill in active]).mean(0)
    torch.testing.assert_close(layer(x, active), each, atol=1e-6, rtol=0)
    torch.testing.assert_close(F.linear(x, *layer.mean(active)), each, atol=1e-6, rtol=0)


@settings(deadline=None, max_examples=30)
@given(active=active_sets, seed=st.integers(0, 100))
def test_the_mean_of_ffns_is_one_wide_ffn(active: list[str], seed: int) -> None:
    with seeded(seed):
        ffn = SkillFFN(SKILLS, 5, 9)
    x = draw(4, 3, 5, seed=seed)
    each = torch.stack([ffn.outer[skill](F.gelu(ffn.inner[skill](x))) for skill in active]).mean(0)
    torch.testing.assert_close(ffn(x, active), each, atol=1e-6, rtol=0)
    w1, b1, w2, b2 = ffn.concatenated(active)
    assert w1.shape == (9 * len(active), 5) and w2.shape == (5, 9 * len(active))
    torch.testing.assert_close(F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2), each, atol=2e-7, rtol=1e-6)


@settings(deadline=None, max_examples=20)
@given(active=active_sets, seed=st.integers(0, 50), skill_in=st.sampled_from(["ffn", "qkv", "both"]))
def test_a_merged_layer_is_the_active_path(active: list[str], seed: int, skill_in: str) -> None:
    with seeded(seed):
        layer = SkillLayer(SKILLS, WIDTH, HEADS, HIDE, skill_in)
    merged = layer.merged(active)
    x, mask = draw(3, 5, WIDTH, seed=seed), (torch.tensor([5, 2, 4])[:, None] > torch.arange(5))[:, None, None]
    torch.testing.assert_close(merged(x, mask, ("merged",)), layer(x, mask, active), atol=1e-6, rtol=1e-6)
    assert len(merged.ffn.inner["merged"].weight) == HIDE * (1 if skill_in == "qkv" else len(active))


def test_the_mean_of_ffns_is_not_the_ffn_of_the_mean_unless_a_layer_is_shared() -> None:
    ffn, x, pair = SkillFFN(("a", "b"), 5, 9), draw(6, 5), ("a", "b")

    def of_the_mean(curve: object) -> Tensor:
        w1, b1, w2, b2 = (w.mean(0) for w in ffn.stacked(pair))
        return F.linear(curve(F.linear(x, w1, b1)), w2, b2)

    def mean(curve: object) -> Tensor:
        return torch.stack([ffn.outer[s](curve(ffn.inner[s](x))) for s in pair]).mean(0)

    for curve in (F.gelu, lambda h: h):  # not even without a curve: (A + B)(C + D) / 4 is not (AC + BD) / 2
        assert float((mean(curve) - of_the_mean(curve)).abs().max().detach()) > 0.05
    ffn.inner["b"].load_state_dict(ffn.inner["a"].state_dict())
    for curve in (F.gelu, lambda h: h):
        torch.testing.assert_close(mean(curve), of_the_mean(curve), atol=1e-6, rtol=0)
    ffn = SkillFFN(("a", "b"), 5, 9)
    ffn.outer["b"].load_state_dict(ffn.outer["a"].state_dict())
    torch.testing.assert_close(mean(lambda h: h), of_the_mean(lambda h: h), atol=1e-6, rtol=0)  # linear: the other layer may be the shared one


def test_merged_attention_is_that_of_pytorch() -> None:
    layer, active, x = SkillLayer(SKILLS, WIDTH, HEADS, HIDE), ("video", "image", GENERAL), draw(2, 5, WIDTH)
    peer = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    weight, bias = layer.qkv.mean(active)
    with torch.no_grad():
        peer.in_proj_weight.copy_(weight)
        peer.in_proj_bias.copy_(bias)
    peer.out_proj.load_state_dict(layer.out.state_dict())
    normed = layer.attention_norm(x)
    merged = layer.merged(active)
    with torch.no_grad():  # an FFN of zeros leaves attention alone
        for value in (*layer.ffn.outer.parameters(), *merged.ffn.outer.parameters()):
            value.zero_()
    expected = x + peer(normed, normed, normed, need_weights=False)[0]
    torch.testing.assert_close(merged(x, None, ("merged",)), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(layer(x, None, active), expected, atol=1e-6, rtol=0)


def test_skills_in_ffn_alone_and_one_active_are_multiway_blocks() -> None:
    """VLMo and BEiT-3: attention is shared, each modality has an FFN of its own."""
    layer, x = SkillLayer(("vision", "language"), WIDTH, HEADS, HIDE, "ffn"), draw(2, 5, WIDTH)
    normed = layer.attention_norm(x)
    qkv = layer.qkv.of[SHARED](normed).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    after = x + layer.out(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))
    for way in ("vision", "language"):
        expected = after + layer.ffn.outer[way](F.gelu(layer.ffn.inner[way](layer.ffn_norm(after))))
        torch.testing.assert_close(layer(x, None, (way,)), expected, atol=1e-6, rtol=0)
    only_attention = SkillLayer(("vision", "language"), WIDTH, HEADS, HIDE, "qkv")
    assert list(only_attention.ffn.inner) == [SHARED] and set(only_attention.qkv.of) == {"vision", "language"}


@pytest.mark.parametrize("skill_in", ["ffn", "qkv", "both"])
def test_equal_skills_make_the_choice_irrelevant_and_order_never_matters(skill_in: str) -> None:
    net = small(replace(SMALL, skill_in=skill_in))
    inputs = numbers("video")
    a, b = (net.encode("video", inputs, s).values for s in (("video", "image", GENERAL), (GENERAL, "video", "image")))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert float((a - net.encode("video", inputs, ("sound",)).values).abs().max().detach()) > 1e-3
    for layer in net.layers:
        for modules in (layer.qkv.of, layer.ffn.inner, layer.ffn.outer):
            first = next(iter(modules.values())).state_dict()
            for module in modules.values():
                module.load_state_dict(first)
    for active in ((GENERAL,), ("sound", "code"), SKILLS):
        torch.testing.assert_close(net.encode("video", inputs, active).values, net.encode("video", inputs, ("text",)).values, atol=1e-5, rtol=0)


# -------------------------------------------------------------------------------------------------------------------------------- sparsity


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("sizes", [SMALL, replace(SMALL, skill_in="ffn", pool="class", learned_temperature=True)])
def test_a_step_touches_exactly_the_activated_parameters(task: str, sizes: Sizes) -> None:
    net = small(sizes)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    for name in TASKS:  # every parameter has momentum
        calls, labels, lengths = batch_of(name, seed=1)
        optimizer.zero_grad()
        net.loss(name, calls, labels, lengths).backward()
        optimizer.step()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    moments = {name: {k: v.clone() for k, v in optimizer.state[p].items()} for name, p in net.named_parameters() if p in optimizer.state}
    calls, labels, lengths = batch_of(task)
    optimizer.zero_grad()
    net.loss(task, calls, labels, lengths).backward()
    touched = [name for name, p in net.named_parameters() if p.grad is not None]
    assert touched == net.activated(task)
    assert net.activated_size(task) == sum(p.numel() for p in net.parameters() if p.grad is not None)
    optimizer.step()
    parameters = dict(net.named_parameters())
    for name in set(parameters) - set(touched):
        assert torch.equal(parameters[name], before[name]), name
        for key, value in moments.get(name, {}).items():
            assert torch.equal(optimizer.state[parameters[name]][key], value), name
    moved = {name for name in touched if not torch.equal(parameters[name], before[name])}
    assert moved == set(touched)


def test_a_sound_step_moves_sound_and_general_and_what_is_shared() -> None:
    active = small().activated("sound")
    assert {name.split(".")[4] for name in active if ".qkv." in name or ".ffn." in name} == {"sound", GENERAL}
    others = {name.split(".")[0] + "." + name.split(".")[1] for name in active if not name.startswith("layers")}
    assert others == {"embedders.sound", "heads.sound", "norm.weight", "norm.bias"}


def test_the_activated_size_is_the_formula() -> None:
    net = small()
    skill = 3 * WIDTH * (WIDTH + 1) + HIDE * (WIDTH + 1) + WIDTH * (HIDE + 1)
    shared = 2 * (WIDTH * (WIDTH + 1) + 4 * WIDTH) + 2 * WIDTH
    sound = (8 * WIDTH) + (4 * 3 + 1) * WIDTH + 11 * (WIDTH + 1)
    assert net.activated_size("sound") == shared + 2 * 2 * skill + sound
    video = 20 * WIDTH + 6 * WIDTH + 6 * WIDTH + (3 + 1) * WIDTH  # words, places of text, places of clips, patches
    assert net.activated_size("video") == shared + 2 * 4 * skill + video


@pytest.mark.parametrize("task", TASKS)
def test_an_extracted_path_says_the_same(task: str) -> None:
    net = small(replace(SMALL, pool="class", learned_temperature=True)).eval()
    part = net.path(task)
    assert set(part.skills) == {skill for call in TABLE[task].calls for skill in call.skills} and not part.training
    calls, labels, lengths = batch_of(task)
    assert torch.equal(part.loss(task, calls, labels, lengths), net.loss(task, calls, labels, lengths))
    unused = {"hidden", "restore"} | (set() if TABLE[task].kind == "retrieve" else {"log_temperature"})  # of pre-training, of retrieval
    assert sum(p.numel() for n, p in part.named_parameters() if not unused & set(n.split("."))) == net.activated_size(task)
    again = SkillNet({task: TABLE[task]}, SHAPES, part.skills, net.sizes)
    again.load_state_dict(part.state_dict())
    assert torch.equal(again.loss(task, calls, labels, lengths), net.loss(task, calls, labels, lengths))


@pytest.mark.parametrize(("task", "side"), [call for call in calls_of() if call[0] != "sound"])
@pytest.mark.parametrize("pool", ["mean", "class"])
def test_a_merged_tower_gives_the_same_vectors(task: str, side: int, pool: str) -> None:
    net = small(replace(SMALL, pool=pool))
    inputs = inputs_of(TABLE[task].calls[side].modality)
    torch.testing.assert_close(net.merged(task, side)(inputs), net.embed(task, side, inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("skill_in", ["ffn", "qkv", "both"])
def test_a_copied_skill_beside_its_original_changes_nothing(skill_in: str) -> None:
    net = small(replace(SMALL, skill_in=skill_in))
    net.add_skill("depth")
    inputs = numbers("image")
    assert net.skills == (*SKILLS, "depth")
    assert torch.equal(net.encode("image", inputs, (GENERAL,)).values, net.encode("image", inputs, (GENERAL, "depth")).values)
    pair, three = (net.encode("image", inputs, s).values for s in (("image", GENERAL), ("image", GENERAL, "depth")))
    assert float((pair - three).abs().max().detach()) > 1e-3
    with torch.no_grad():  # a copy, not the same tensor
        for name, value in net.named_parameters():
            if ".general." in name:
                value.add_(1.0)
    assert not torch.equal(net.encode("image", inputs, (GENERAL,)).values, net.encode("image", inputs, ("depth",)).values)


def test_a_task_is_added_to_the_table() -> None:
    net = small()
    net.add_skill("depth")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.add_task("depth", Task("classify", (Call("depth", ("depth", GENERAL)),), classes=3), Modality((2, 2), features=2))
    inputs = Inputs(draw(3, 4, 2), torch.ones(3, 4, dtype=torch.bool))
    assert net.logits("depth", inputs).shape == (3, 3)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(ValueError, match="task 'depth' has a row already"):
        net.add_task("depth", TABLE["text"])
    with pytest.raises(ValueError, match="task 'new' reads 'smell'"):
        net.add_task("new", Task("classify", (Call("smell", (GENERAL,)),), classes=2))


# ---------------------------------------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_padding_never_changes_what_is_said(pool: str) -> None:
    net = small(replace(SMALL, pool=pool))
    inputs = words()
    other = Inputs(torch.where(inputs.valid, inputs.values, 7), inputs.valid)
    assert torch.equal(net.logits("text", inputs), net.logits("text", other))
    for row in range(4):
        length = int(inputs.valid[row].sum())
        alone = Inputs(inputs.values[row : row + 1, :length], inputs.valid[row : row + 1, :length])
        torch.testing.assert_close(net.logits("text", alone), net.logits("text", inputs)[row : row + 1], atol=1e-5, rtol=0)
    sound = numbers("sound")
    valid = torch.arange(8) < torch.tensor([[8], [5], [6], [3]])
    quiet, loud = Inputs(sound.values, valid), Inputs(torch.where(valid[..., None], sound.values, 1e4), valid)
    assert torch.equal(net.logits("sound", quiet)[valid], net.logits("sound", loud)[valid])
    assert torch.equal(net.frames("sound", quiet), torch.tensor([8, 5, 6, 3]))


def test_strides_join_frames() -> None:
    shapes = {**SHAPES, "sound": Modality((4,), features=4, kernel=5, stride=2)}
    net = SkillNet({"sound": TABLE["sound"]}, shapes, SKILLS, SMALL)
    inputs = Inputs(draw(2, 8, 4), torch.arange(8) < torch.tensor([[8], [5]]))
    assert net.logits("sound", inputs).shape == (2, 4, 11) and net.frames("sound", inputs).tolist() == [4, 3]
    assert float(net.masked_loss("sound", 0, inputs, torch.arange(8) % 2 == 0).detach()) > 0
    with pytest.raises(ValueError, match="sound takes at most 8 tokens, in steps of 2, got 7"):
        net.logits("sound", Inputs(draw(2, 7, 4), torch.ones(2, 7, dtype=torch.bool)))


def test_positions_are_the_sum_of_their_axes() -> None:
    embedder = small().embedders["video"]
    found = embedder.positions(8).view(2, 2, 2, WIDTH)
    time, row, column = embedder.places
    torch.testing.assert_close(found, time[:, None, None] + row[None, :, None] + column[None, None])


# ---------------------------------------------------------------------------------------------------------------------------------- losses


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_ctc_is_that_of_pytorch_and_sums_all_paths(seed: int) -> None:
    logits = draw(2, 4, 3, seed=seed)
    labels, lengths, frames = torch.tensor([[1, 2], [2, 0]]), torch.tensor([2, 1]), torch.tensor([4, 3])
    found = ctc_loss(logits, labels, frames=frames, lengths=lengths)
    expected = F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), labels, frames, lengths)
    torch.testing.assert_close(found, expected)
    by_hand = []
    for row in range(2):  # all 3 ** frames paths
        paths = torch.cartesian_prod(*[torch.arange(3)] * int(frames[row]))
        total = 0.0
        for path in paths:
            joined = [int(c) for i, c in enumerate(path) if c != 0 and (i == 0 or c != path[i - 1])]
            if joined == labels[row, : lengths[row]].tolist():
                total += float(logits[row].softmax(-1)[torch.arange(len(path)), path].prod())
        by_hand.append(-math.log(total) / int(lengths[row]))
    torch.testing.assert_close(found, torch.tensor(sum(by_hand) / 2), atol=1e-4, rtol=0)


def test_greedy_decoding_joins_and_drops() -> None:
    path = torch.tensor([[1, 1, 0, 1, 2, 2], [0, 3, 0, 3, 3, 1]])
    found, number = greedy_decode(F.one_hot(path, 4).float(), torch.tensor([6, 4]))
    assert [row[:n].tolist() for row, n in zip(found, number.tolist(), strict=True)] == [[1, 1, 2], [3, 3]]
    assert not found[0, 3:].any() and not found[1, 2:].any()


def test_info_nce_is_that_of_clip_and_log_b_for_equal_similarities() -> None:
    query, item = draw(6, 5), draw(6, 5, seed=1)

    def clip(image: Tensor, text: Tensor, scale: float) -> Tensor:  # the published formula, as the public implementations have it
        logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        return (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2

    torch.testing.assert_close(info_nce(query, item, temperature=0.07), clip(query, item, 1 / 0.07))
    from transformers.models.clip.modeling_clip import clip_loss

    logits = F.normalize(item, dim=-1) @ F.normalize(query, dim=-1).T / 0.07
    torch.testing.assert_close(info_nce(query, item, temperature=0.07), clip_loss(logits))
    same = torch.ones(6, 5)
    assert float(info_nce(same, same)) == pytest.approx(math.log(6), abs=1e-6)
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    assert float(info_nce(same, same, groups=groups)) == pytest.approx(math.log(5), abs=1e-6)  # the twin is no negative
    assert float(info_nce(query, item, groups=torch.zeros(6))) == 0.0


def test_masked_losses_restore_what_is_hidden() -> None:
    net = small()
    inputs = words(length=6)
    hidden = inputs.valid & (torch.arange(6) == 1)
    states = net.encode("text", Inputs(inputs.values.masked_fill(hidden, HIDDEN), inputs.valid), ("text", GENERAL)).values
    expected = F.cross_entropy(states[hidden] @ net.words.weight.T, inputs.values[hidden])
    torch.testing.assert_close(net.masked_loss("text", 0, inputs, hidden), expected)
    image = numbers("image")
    cover = torch.arange(4).expand(4, -1) == 2
    changed = Inputs(torch.where(cover[..., None], image.values + 5.0, image.values), image.valid)
    embedder = net.embedders["image"]
    states = net.encode("image", Inputs(torch.where(cover[..., None], embedder.hidden, image.values), image.valid), ("image", GENERAL)).values
    torch.testing.assert_close(net.masked_loss("image", 1, changed, cover), F.mse_loss(embedder.restore(states[cover]), image.values[cover] + 5.0))
    net.masked_loss("image", 1, image, cover).backward()
    grown = {name.split(".")[4] for name, p in net.named_parameters() if p.grad is not None and (".qkv." in name or ".ffn." in name)}
    assert grown == {"image", GENERAL}
    with pytest.raises(ValueError, match="hidden must mark at least one valid token"):
        net.masked_loss("text", 0, inputs, torch.zeros_like(inputs.valid))


def test_tasks_are_drawn_by_a_power_of_their_sizes() -> None:
    sizes = {"a": 100, "b": 400, "c": 900}
    assert task_probabilities(sizes) == pytest.approx({"a": 1 / 6, "b": 2 / 6, "c": 3 / 6})
    assert task_probabilities(sizes, 0) == pytest.approx(dict.fromkeys(sizes, 1 / 3))
    assert task_probabilities(sizes, 1)["c"] == pytest.approx(9 / 14)
    order = task_schedule(sizes, 60, generator=stream(0, "order"))
    assert [order.count(name) for name in sizes] == [10, 20, 30]
    assert len(task_schedule(sizes, 7)) == 7 and task_schedule(sizes, 0) == []
    first = [task_schedule(sizes, 6, generator=stream(s, "order"))[0] for s in range(300)]
    assert abs(first.count("c") / 300 - 0.5) < 0.1
    for bad in ({"a": 0}, {}):
        with pytest.raises(ValueError, match="every task needs an example"):
            task_probabilities(bad)
    with pytest.raises(ValueError, match="alpha must lie in"):
        task_probabilities(sizes, 2)


def test_the_gradient_of_a_layer_is_right() -> None:
    layer = SkillLayer(("a", "b"), 4, 2, 3).double()
    x = draw(1, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x, None, ("a", "b")), (x,))


# ------------------------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: n.encode("text", words(), ("smell",)), "there is no skill 'smell'; there are general, text"),
        (lambda n: n.encode("text", words(), ()), "at least one skill must be active"),
        (lambda n: n.encode("text", words(), ("text", "text")), "each skill can be switched on once, got text, text"),
        (lambda n: n.encode("smell", words(), ("text",)), "there is no modality 'smell'; there are text"),
        (lambda n: n.logits("smell", words()), "task 'smell' has no row in the activation table; there are text, sound"),
        (lambda n: n.logits("image", words()), "task 'image' is a retrieval task"),
        (lambda n: n.encode("text", words(length=7), ("text",)), "text takes at most 6 tokens"),
        (
            lambda n: n.encode("text", Inputs(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[True] * 3, [False] * 3])), ("text",)),
            "sequence 1 of the batch has no valid token",
        ),
        (lambda n: n.loss("image", [words(1), numbers("image", 1)], torch.zeros(1)), "a batch of at least 2 pairs to have negatives, got 1"),
        (
            lambda n: ctc_loss(torch.zeros(1, 3, 4), torch.tensor([[1, 1, 2]]), frames=torch.tensor([3]), lengths=torch.tensor([3])),
            "sequence 0 has 3 frames for 3 labels with 1 repeats: CTC needs at least 4 frames",
        ),
        (lambda n: n.add_skill("text"), "there is a skill 'text' already"),
        (lambda n: n.add_skill("depth", like="smell"), "there is no skill 'smell'"),
        (lambda n: small(table={}), "a table with at least one task"),
        (lambda n: small(skills=("text", "text")), "different skills are needed"),
        (lambda n: small(table={"x": Task("classify", (Call("text", ()),), 2)}), "at least one skill must be active"),
        (lambda n: small(table={"x": Task("classify", (Call("text", ("smell",)),), 2)}), "there is no skill 'smell'"),
        (lambda n: small(table={"x": Task("classify", (Call("smell", ("text",)),), 2)}), "task 'x' reads 'smell'; there are text"),
        (lambda n: small(table={"x": Task("retrieve", (Call("text", ("text",)),))}), "needs two calls and no classes, got 1 and 0"),
        (lambda n: small(table={"x": Task("ctc", (Call("sound", ("sound",)),))}), "needs one call and at least one class, got 1 and 0"),
        (lambda n: small(table={"x": Task("guess", (Call("text", ("text",)),), 2)}), "kind must be one of classify, ctc, retrieve, got 'guess'"),
        (lambda n: Sizes(heads=5), "heads divide width"),
        (lambda n: Sizes(temperature=0.0), "temperature must be positive"),
        (lambda n: Sizes(skill_in="norm"), "skill_in must be one of ffn, qkv, both"),
        (lambda n: without({"x": Task("classify", (Call("text", ("text",)),), 2)}, "text"), "task 'x' has a call with 'text' alone"),
    ],
)
def test_bad_input_is_refused_with_what_is_right(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(small())


# ------------------------------------------------------------------------------------------------------------------------ tasks, experiment


def test_the_tables_of_the_arms() -> None:
    shapes = Data().modalities()
    full, one = skillnet(shapes, Sizes()), dense(shapes, Sizes())
    assert full.merged("sound").layers[0].ffn.inner["merged"].weight.shape == one.layers[0].ffn.inner["dense"].weight.shape  # the active path
    lean = without_general(shapes, Sizes())
    assert GENERAL not in lean.skills and all(GENERAL not in call.skills for task in lean.table.values() for call in task.calls)
    single = dense(shapes, Sizes(), tasks=("sound",))
    assert list(single.table) == ["sound"] and single.words is None
    ffn = full.activated_size("sound") - one.activated_size("sound")
    attention = 2 * 3 * 48 * 49  # the second skill's query, key and value in two layers; merged they cost nothing
    assert ffn == attention + 2 * 48  # and one more output bias a layer


def test_the_learned_router_picks_two_and_balances() -> None:
    net = RoutedNet(SHAPES, SMALL)
    calls, labels, _ = batch_of("image")
    own = net.loss("image", calls, labels)
    net.balance = 0.0
    plain = net.loss("image", calls, labels)
    assert 0.019 < float((own - plain).detach()) < 0.1  # two layers of at least 1, times 0.01
    inputs = {"text": ("text", 0, words()), "image": ("image", 1, numbers("image"))}
    usage = net.usage(inputs)
    assert usage.shape == (2, 2, 6)
    torch.testing.assert_close(usage.sum(-1), torch.ones(2, 2))
    before = net.logits("text", words())
    padded = words()
    torch.testing.assert_close(before, net.logits("text", Inputs(torch.where(padded.valid, padded.values, 5), padded.valid)))


def test_the_tasks_share_nothing_between_training_and_test() -> None:
    data = replace(Data(), unlabelled=50, tests=(("text", 60), ("sound", 20), ("image", 50), ("video", 50), ("code", 60)))
    tasks, again = make_tasks(data, 3), make_tasks(data, 3)
    assert tasks.vocabulary == again.vocabulary and len(tasks.vocabulary) == 2000 and len(set(tasks.vocabulary)) == 2000
    known = [word for word in tasks.vocabulary if word in BLANKED]  # the code may say "sp", a docstring of the five packages nothing
    numbers_of = {tasks.vocabulary.index(word) for word in known}
    assert not numbers_of & set(tasks.train["text"].calls[0].values.unique().tolist())
    for name in TASKS:
        train_part, test_part = tasks.train[name], tasks.test[name]
        assert all(torch.equal(a.values, b.values) for a, b in zip(test_part.calls, again.test[name].calls, strict=True))
        assert len(train_part) >= 50 and len(train_part.calls) == len(TABLE[name].calls)
        assert all(bool(call.valid.any(1).all()) for call in (*train_part.calls, *test_part.calls))
        shape = data.modalities()[TABLE[name].calls[-1].modality]
        assert test_part.calls[-1].values.shape[1] == math.prod(shape.places) * shape.stride
    assert not set(tasks.train["code"].labels.tolist()) & set(tasks.test["code"].labels.tolist())
    train_images = {tuple(row.flatten().tolist()) for row in tasks.train["image"].calls[1].values}
    test_images = {tuple(row.flatten().tolist()) for row in tasks.test["image"].calls[1].values}
    assert len(train_images & test_images) <= 1  # scikit-learn's set has few twins
    other = make_tasks(data, 4)
    assert not torch.equal(other.test["image"].labels, tasks.test["image"].labels)
    assert tasks.test["sound"].lengths.tolist() == (tasks.test["sound"].labels > 0).sum(1).tolist()


def test_words_become_numbers() -> None:
    vocabulary = vocabulary_of([["b", "a", "b"], ["c"]], {"z"}, 6)
    assert vocabulary == ("<pad>", "<unknown>", "<hidden>", "z", "b", "a")
    found = to_words([["a", "q", "b", "z"], ["c"]], vocabulary, 3)
    assert found.values.tolist() == [[5, 1, 4], [1, 0, 0]] and found.valid.tolist() == [[True] * 3, [True, False, False]]


@settings(deadline=None, max_examples=40)
@given(a=st.lists(st.integers(1, 3), max_size=5), b=st.lists(st.integers(1, 3), max_size=5))
def test_the_edit_distance_is_levenshteins(a: list[int], b: list[int]) -> None:
    def slow(x: Sequence[int], y: Sequence[int]) -> int:
        if not x or not y:
            return len(x) + len(y)
        return min(slow(x[1:], y) + 1, slow(x, y[1:]) + 1, slow(x[1:], y[1:]) + (x[0] != y[0]))

    pad = lambda row: torch.tensor([row + [0] * (6 - len(row)), [1, 2, 3, 0, 0, 0]])
    found = edit_distance(pad(a), torch.tensor([len(a), 3]), pad(b), torch.tensor([len(b), 3]))
    assert found.tolist() == [slow(a, b), 0]


def test_retrieval_scores_by_hand() -> None:
    query = torch.eye(4)
    item = torch.eye(4)[[0, 1, 3, 2]]
    assert retrieval_score("image", query, item, torch.tensor([0, 1, 2, 3])) == 0.5
    assert retrieval_score("image", query, item, torch.tensor([0, 1, 2, 2])) == 1.0
    item = torch.tensor([[1.0, 0, 0, 0], [0.9, 0.5, 0, 0], [0, 0, 1.0, 0], [0, 0.9, 0, 0.1]])
    assert retrieval_score("code", query, item, torch.arange(4)) == pytest.approx((1 + 1 / 2 + 1 + 1) / 4)


def test_toggling_a_skill() -> None:
    assert toggled("video", 1, "image") == (GENERAL, "video") and toggled("sound", 0, "code") == (GENERAL, "sound", "code")
    assert len(calls_of()) == 8


def test_training_repeats_and_arms_share_what_they_can() -> None:
    tasks, shapes = make_tasks(TINY.data, 0), TINY.data.modalities()
    like = experiment.begin(lambda: skillnet(shapes, TINY.sizes), 0)
    torch.manual_seed(5)  # what was drawn before is of no account
    other, twin = (experiment.begin(lambda: dense(shapes, TINY.sizes), 0, like) for _ in range(2))
    assert all(torch.equal(other.state_dict()[name], value) for name, value in twin.state_dict().items())
    shared = [name for name, value in other.state_dict().items() if name in like.state_dict() and value.shape == like.state_dict()[name].shape]
    assert all(torch.equal(other.state_dict()[name], like.state_dict()[name]) for name in shared) and "words.weight" in shared
    states = []
    for _ in range(2):
        with seeded(0):
            model = experiment.pretrain(experiment.restricted(like, ("text", "sound")), tasks, TINY.training, 0, steps=2)
            states.append(train(model, tasks, TINY.training, 0).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], like.state_dict()[name]) for name in states[0])
    assert all(torch.equal(value, like.state_dict()[name]) for name, value in states[0].items() if ".video." in name or ".image." in name)


def test_the_quick_experiment_judges_every_claim() -> None:
    arms = run_quick(EXPERIMENT)
    assert set(experiment.FEW.values()) | set(experiment.MANY.values()) < set(arms)
    for arm in (experiment.FULL, experiment.DENSE, experiment.SEPARATE, experiment.NO_GENERAL, experiment.ROUTER, experiment.ALL_ON):
        assert arms[arm]["mean"] == pytest.approx(np.mean([arms[arm][task] for task in TASKS]))
        assert all(0 <= arms[arm][task] <= 1 for task in TASKS)
    assert 0 <= arms[experiment.ROUTER]["modality information"] <= 1
    assert arms[experiment.FULL]["parameters"] < arms[experiment.SEPARATE]["parameters"]


def test_the_paper_scale_reads_its_real_sounds(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    if not (REAL / "fsdd").is_dir():
        pytest.skip("no benchmark files here: let MTLEARN_DATA name a folder with fsdd/recordings.tar.gz")
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    paper = EXPERIMENT.scales["paper"]
    data = replace(paper.data, unlabelled=12, tests=tuple((name, 8) for name in TASKS))
    tasks = make_tasks(data, 0)
    assert tasks.train["sound"].calls[0].values.shape == (12, 160, 32)
    with seeded(0):
        model = skillnet(data.modalities(), replace(paper.sizes, width=16, heads=2, layers=1, hidden=16))
    before = score(model, "sound", tasks.test["sound"])
    train(model, tasks, replace(paper.training, steps=1, batch=4, labels=8), 0)
    assert 0 <= before <= 1 and all(value.isfinite().all() for value in model.state_dict().values())


# -------------------------------------------------------------------------------------------------------------------- the model that ships


def test_the_shipped_model_is_what_its_record_says() -> None:
    found = load(CHECKPOINTS[0])
    assert isinstance(found, experiment.Skilled) and len(found.vocabulary) == 2000 and {"seven", "left", "handwritten"} < set(found.vocabulary)
    assert experiment.measure_shipped(found)["image"] > 0.9
    rows = [calls_of().index(call) for call in (("sound", 0), ("image", 1))]
    assert float(found.lesions[rows[0], SKILLS.index("sound")]) < -0.5 and found.lesions.shape == (8, 6)
    tiny = replace(experiment.Shipped(), data=TINY.data, sizes=TINY.sizes, training=TINY.training)
    trained = experiment.train_shipped(tiny)
    assert trained.vocabulary[:3] == ("<pad>", "<unknown>", "<hidden>") and trained.scores.shape == (5,)
    assert make_tasks(tiny.data, tiny.seed, trained.vocabulary).vocabulary == trained.vocabulary


@pytest.fixture(scope="module")
def shown() -> object:
    return explorer()


def test_the_switchboard_is_touched(shown: object) -> None:
    shown.preset("reset")
    assert "image: digit with general, image: 71,472 activated parameters" in shown.text
    shown.point("press", 2, 3)  # row of the digit, column of the image skill
    assert "image: digit with general: 38,640" in shown.text and not shown.values["image"]
    seen = shown.png
    shown.point("press", 3, 1)  # another call: its row of the table, then the cell pressed is switched over
    assert "sound: key tones with general:" in shown.text and shown.png != seen
    shown.point("press", 3, 1)
    assert "sound: key tones with general, sound:" in shown.text
    shown.point("press", 40, 40)
    shown.point("release", 3, 1)
    shown.point("key", 0, 0, key="ArrowDown")
    assert shown.values["call"] == "image: caption"
    shown.point("key", 0, 0, key="ArrowUp")
    shown.point("key", 0, 0, key="1")
    assert "sound: key tones with sound:" in shown.text
    shown.point("key", 0, 0, key="4")
    assert "with no skill: no parameter; at least one skill must be on" in shown.text


def test_the_retrieval_box_finds_what_is_typed(shown: object) -> None:
    shown.preset("reset")
    assert "finds 7, 7, 7" in shown.text
    shown.set(query="a picture of a three")
    assert "finds 3" in shown.text
    plain = shown.png
    shown.set(query="a picture of a xylophonist three")
    assert shown.png != plain
    shown.set(query="xylophonist")
    assert "no word of the sentence is known" in shown.text
    shown.preset("find a clip")
    assert "left" in shown.text.split("finds ")[1]
    shown.preset("find a function")
    assert "." in shown.text.split("finds ")[1]
    for preset in shown.presets:
        shown.preset(preset)
        assert shown.text


def test_the_explorers_counts_are_the_networks() -> None:
    net = skilled().net
    for name, (task, side) in CALLS.items():
        call = TABLE[task].calls[side]
        alone = SkillNet({"x": Task("retrieve", (call, call))}, Data().modalities(), SKILLS, net.sizes)
        assert activated(name, call.skills) == alone.activated_size("x")


def test_the_exercises_know_common_mistakes() -> None:
    reading, information, depth = EXERCISES
    assert "expected" in reading.check(lambda changes, rows: dict.fromkeys(rows)).text
    assert "0 log 0" in information.check(lambda usage: float("nan")).text
    assert "belongs to the old network" in depth.check(lambda net: ["norm.weight"]).text
    assert "fewer than 2,000" in depth.check(lambda net: [n for n, _ in net.named_parameters() if "depth" in n.split(".")]).text
    assert "got none" in depth.check(lambda net: []).text and "got ['x']" in depth.check(lambda net: ["x"]).text
    assert "what does the network need" in depth.check(lambda net: ["heads.depth.bias"]).text
