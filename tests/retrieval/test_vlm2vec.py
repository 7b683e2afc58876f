"""VLM2Vec: embeddings of mixed inputs, the loss and its gradient cache, adapters, rankings as in MMEB; worlds, experiment, explorer, exercises."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from torch import Tensor
from torch.nn import functional as F

from mtlearn.lab.checkpoints import load, provenance
from mtlearn.lab.seeds import stream
from mtlearn.layers.contrastive import cached_gradients
from mtlearn.layers.lora import lora_layers
from mtlearn.retrieval.vlm2vec import experiment as vlm
from mtlearn.retrieval.vlm2vec import method, worlds
from mtlearn.retrieval.vlm2vec.exercises import EXERCISES
from mtlearn.retrieval.vlm2vec.explorer import explorer
from mtlearn.retrieval.vlm2vec.method import (
    IMAGE,
    Fusion,
    Inputs,
    Item,
    PretrainedEmbedder,
    RankingTask,
    Row,
    VisionLanguageModel,
    adapt,
    cached_step,
    collate,
    contrastive_loss,
    evaluate,
    gather,
    joined,
    means,
    next_token_loss,
    pool,
    precision_at_1,
    sub_batches,
    tasks_from_rows,
    written,
)


def model(seed: int = 0, *, dropout: float = 0.0, double: bool = True, **options: object) -> VisionLanguageModel:
    torch.manual_seed(seed)
    found = VisionLanguageModel(len(worlds.VOCABULARY), worlds.IMAGE_SHAPE, 4, width=16, layers=2, dropout=dropout, **options)  # type: ignore[arg-type]
    return found.double() if double else found


def doubled(inputs: Inputs) -> Inputs:
    return Inputs(inputs.tokens, None if inputs.images is None else inputs.images.double())


def batch_of(names: tuple[str, ...] = ("left", "t2i", "ground"), sub: int = 4, seed: int = 0) -> worlds.Batch:
    found = worlds.mixed(names, sub, worlds.split(0)[0], generator=stream(seed, "batch"))
    return replace(found, queries=doubled(found.queries), targets=doubled(found.targets))


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def gradients(of: torch.nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in of.parameters() if p.grad is not None]


# what is read


def test_images_stand_where_their_tokens_are() -> None:
    encoder = model()
    tokens = torch.tensor([[5, IMAGE, 7, 0], [0, 8, 9, 0], [IMAGE, IMAGE, 0, 0]])
    ids, mask, column = encoder.arrange(tokens)
    size, patches = encoder.word.num_embeddings, encoder.patches
    assert patches == 8 and ids.shape == (3, 16)
    assert ids[0, :10].tolist() == [5, *range(size, size + 8), 7]
    assert ids[1, :2].tolist() == [8, 9]
    assert ids[2].tolist() == list(range(size + 8, size + 24))
    assert mask.sum(1).tolist() == [10, 2, 16]
    assert column[0, :10].tolist() == [0, *[1] * 8, 2]


def test_patches_are_cut_row_by_row() -> None:
    from mtlearn.datasets.digits import patches

    images = torch.rand(3, 1, 8, 16)
    torch.testing.assert_close(F.unfold(images, 4, stride=4).transpose(1, 2), patches(images[:, 0], 4))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([IMAGE, 3, 4, 5, 9]), min_size=1, max_size=3), min_size=1, max_size=5), st.integers(0, 3), st.integers(0, 99)
)
def test_padding_anywhere_changes_nothing(rows: list[list[int]], extra: int, seed: int) -> None:
    encoder, width = model(), max(map(len, rows)) + extra
    count = sum(row.count(IMAGE) for row in rows)
    images = torch.rand(count, 1, 8, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) if count else None
    right = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    left = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    with torch.no_grad():
        found = encoder(Inputs(right, images))
        torch.testing.assert_close(encoder(Inputs(left, images)), found, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(rows), dtype=torch.float64))
        seen = 0
        for row, vector in zip(rows, found, strict=True):  # nor does what else is in the batch
            own = row.count(IMAGE)
            alone = Inputs(torch.tensor([row]), None if own == 0 else images[seen : seen + own])  # type: ignore[index]
            seen += own
            torch.testing.assert_close(encoder(alone)[0], vector, rtol=1e-9, atol=1e-9)


def test_rows_are_taken_with_their_images() -> None:
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 8, 16)
    inputs = Inputs(torch.tensor([[IMAGE, IMAGE, 3], [4, 0, 0], [IMAGE, 5, 0], [IMAGE, 6, IMAGE]]), images)
    found = inputs.take(torch.tensor([3, 1, 0, 3]))
    assert found.images is not None and found.images[:, 0, 0, 0].tolist() == [3, 4, 0, 1, 3, 4]
    assert torch.equal(found.tokens, inputs.tokens[[3, 1, 0, 3]])
    both = joined([inputs, Inputs(torch.tensor([[7, 7, 7, 7]]))])
    assert both.tokens.shape == (5, 4) and both.images is not None and len(both.images) == 5


def test_pooling_finds_the_last_token() -> None:
    states = torch.randn(3, 5, 2)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 1, 0, 0]], dtype=torch.bool)
    assert torch.equal(pool(states, mask), torch.stack([states[0, 2], states[1, 4], states[2, 2]]))
    torch.testing.assert_close(pool(states, mask, "mean")[2], states[2, 1:3].mean(0))
    # one row of full length among shorter ones, where a guess from the last column would switch sides
    assert torch.equal(pool(states, torch.tensor([[1] * 5, [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool))[1], states[1, 1])


def test_pooling_by_the_mean_is_an_option() -> None:
    inputs = batch_of().queries
    last, mean = model(), model(pooling="mean")
    states, _, mask, _ = last.read(inputs)
    torch.testing.assert_close(mean(inputs), F.normalize(pool(states, mask, "mean"), dim=-1))


def test_what_comes_before_the_image_cannot_see_it() -> None:
    encoder = model()
    one, two = (torch.rand(1, 1, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    tokens = torch.tensor([[5, 6, IMAGE, 7]])
    (first, *_), (second, *_) = encoder.read(Inputs(tokens, one)), encoder.read(Inputs(tokens, two))
    assert torch.equal(first[:, :2], second[:, :2])
    assert (first[:, -1] - second[:, -1]).abs().max() > 1e-3
    third, *_ = encoder.read(Inputs(torch.tensor([[8, 6, IMAGE, 7]]), one))
    assert (first[:, -1] - third[:, -1]).abs().max() > 1e-3  # the last token sees both


# the baseline


def test_one_transformer_is_no_function_of_the_sum_and_fusion_is() -> None:
    encoder = model()
    fusion = Fusion(encoder)
    image = torch.rand(1, 1, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before, after = Inputs(torch.tensor([[IMAGE, 5, 6]]), image), Inputs(torch.tensor([[5, 6, IMAGE]]), image)  # the same parts, so the same sum
    torch.testing.assert_close(fusion(before), fusion(after), rtol=1e-12, atol=1e-12)
    assert (encoder(before) - encoder(after)).abs().max() > 1e-3
    total = encoder(Inputs(torch.tensor([[IMAGE]]), image)) + encoder(Inputs(torch.tensor([[5, 6]])))
    torch.testing.assert_close(fusion(before), F.normalize(total, dim=-1))


def test_fusion_of_one_part_is_that_part() -> None:
    encoder, batch = model(), batch_of(("left", "t2i"), 3)
    fusion = Fusion(encoder)
    found = fusion(batch.queries)
    torch.testing.assert_close(found[3:], encoder(batch.queries.take(torch.arange(3, 6))))
    bare = worlds.without_instruction("left", batch.queries.take(torch.arange(3)))
    torch.testing.assert_close(fusion(bare), encoder(bare))


# the loss


def test_the_loss_is_a_cross_entropy_and_that_of_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    queries, targets = unit(6, 8), unit(6, 8, seed=1)
    found = contrastive_loss(queries, targets, temperature=0.02)
    torch.testing.assert_close(found, F.cross_entropy(queries @ targets.T / 0.02, torch.arange(6)))
    theirs = MultipleNegativesRankingLoss(model=None, scale=50.0)  # type: ignore[arg-type]
    torch.testing.assert_close(found, theirs.compute_loss_from_embeddings([queries, targets], labels=None))
    torch.testing.assert_close(targets @ queries.T, (queries @ targets.T).T)  # roles swapped: the scores are transposed


def test_hard_negatives_are_further_columns() -> None:
    queries, targets = unit(4, 8), unit(12, 8, seed=1)
    wanted = F.cross_entropy(queries @ targets.T / 0.1, torch.arange(4) * 3)  # the right one of row i is 3 i, not 0
    torch.testing.assert_close(contrastive_loss(queries, targets, temperature=0.1), wanted)


def test_the_same_answer_is_no_negative() -> None:
    queries, targets, keys = unit(4, 8), unit(4, 8, seed=1), torch.tensor([7, 2, 7, 3])
    scores = queries @ targets.T / 0.1
    scores[0, 2] = scores[2, 0] = -torch.inf
    torch.testing.assert_close(contrastive_loss(queries, targets, temperature=0.1, keys=keys), F.cross_entropy(scores, torch.arange(4)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": -1.0}, "temperature must be above 0, got -1.0"),
        ({"targets": unit(6, 8)}, "targets must be (n * k, d) for queries (n, d), got (6, 8) for (4, 8)"),
        ({"targets": unit(2, 8)}, "got (2, 8) for (4, 8)"),
        ({"targets": unit(0, 8)}, "got (0, 8)"),
        ({"keys": torch.arange(3)}, "keys must be (4,), one a query, got (3,)"),
    ],
)
def test_what_the_loss_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        contrastive_loss(**{"queries": unit(4, 8), "targets": unit(4, 8, seed=1), **arguments})


# gradient caching


@pytest.mark.parametrize("chunk", [1, 3, 5, 12, 50])
def test_gradients_of_chunks_are_those_of_the_batch(chunk: int) -> None:
    encoder, batch = model(), batch_of()
    whole = contrastive_loss(encoder(batch.queries), encoder(batch.targets), temperature=0.05, keys=batch.keys)
    whole.backward()
    wanted = gradients(encoder)
    encoder.zero_grad()
    trace: list[int] = []
    found = cached_step(encoder, batch.queries, batch.targets, chunk=chunk, temperature=0.05, keys=batch.keys, trace=trace)
    torch.testing.assert_close(found, whole.detach())
    torch.testing.assert_close(gradients(encoder), wanted, rtol=1e-6, atol=1e-6)
    assert max(wanted, key=lambda g: g.abs().max()).abs().max() > 0.01
    assert max(trace) == min(chunk, 12) and sum(trace) == 24


def test_gradients_of_chunks_with_hard_negatives() -> None:
    encoder, batch, other = model(), batch_of(), batch_of(seed=1)
    order = torch.arange(24).view(2, 12).T.flatten()  # target, hard negative, target ...
    targets = joined([batch.targets, other.targets]).take(order)
    contrastive_loss(encoder(batch.queries), encoder(targets), temperature=0.05).backward()
    wanted = gradients(encoder)
    encoder.zero_grad()
    cached_step(encoder, batch.queries, targets, chunk=7, temperature=0.05)
    torch.testing.assert_close(gradients(encoder), wanted, rtol=1e-6, atol=1e-6)


def test_dropout_is_the_same_in_both_passes() -> None:
    encoder, batch = model(dropout=0.3).train(), batch_of()
    rows = torch.arange(len(batch.keys))
    torch.manual_seed(5)
    found = cached_step(encoder, batch.queries, batch.targets, chunk=5, temperature=0.05)
    after = torch.get_rng_state()
    cached = gradients(encoder)
    encoder.zero_grad()
    torch.manual_seed(5)  # the same chunks with their graphs kept
    queries = torch.cat([encoder(batch.queries.take(part)) for part in rows.split(5)])
    targets = torch.cat([encoder(batch.targets.take(part)) for part in rows.split(5)])
    whole = contrastive_loss(queries, targets, temperature=0.05)
    whole.backward()
    torch.testing.assert_close(found, whole.detach())
    torch.testing.assert_close(cached, gradients(encoder), rtol=1e-9, atol=1e-9)
    assert torch.equal(after, torch.get_rng_state())
    encoder.zero_grad()
    torch.manual_seed(6)
    cached_step(encoder, batch.queries, batch.targets, chunk=5, temperature=0.05)
    assert any((one - two).abs().max() > 1e-3 for one, two in zip(cached, gradients(encoder), strict=True))  # dropout does something


def test_the_cache_serves_the_loss_of_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    encoder, batch = model(), batch_of()
    theirs = MultipleNegativesRankingLoss(model=None, scale=50.0)  # type: ignore[arg-type]
    rows = torch.arange(len(batch.keys))
    sides = [(lambda part, side=side: encoder(side.take(part)), rows) for side in (batch.queries, batch.targets)]
    cached_gradients(sides, lambda q, t: theirs.compute_loss_from_embeddings([q, t], labels=None), chunk=5)
    wanted = gradients(encoder)
    encoder.zero_grad()
    cached_step(encoder, batch.queries, batch.targets, chunk=5, temperature=0.02)
    torch.testing.assert_close(gradients(encoder), wanted, rtol=1e-6, atol=1e-6)


# several processes


def test_one_process_gathers_nothing(tmp_path) -> None:
    vectors = unit(3, 4)
    assert gather(vectors) is vectors
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert gather(vectors) is vectors and method.world_size() == 1
        found = contrastive_loss(unit(4, 4), unit(4, 4, seed=1))
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(found, contrastive_loss(unit(4, 4), unit(4, 4, seed=1)))


def test_two_processes_have_the_gradient_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, targets, keys = unit(6, 4).requires_grad_(), unit(12, 4, seed=1).requires_grad_(), torch.tensor([0, 1, 2, 3, 0, 5])
    whole = contrastive_loss(queries, targets, temperature=0.1, keys=keys)
    wanted = torch.autograd.grad(whole, (queries, targets))
    total = [torch.zeros_like(queries), torch.zeros_like(targets)]
    everything = {(3, 4): queries.detach().view(2, 3, 4), (3, 2, 4): targets.detach().view(2, 3, 2, 4), (3,): keys.view(2, 3)}

    def all_gather(blocks: list[Tensor], own: Tensor) -> None:
        for block, rows in zip(blocks, everything[tuple(own.shape)], strict=True):
            block.copy_(rows)

    monkeypatch.setattr(method, "world_size", lambda: 2)
    monkeypatch.setattr(method.dist, "all_gather", all_gather)
    for rank in (0, 1):
        monkeypatch.setattr(method.dist, "get_rank", lambda rank=rank: rank)
        own = slice(3 * rank, 3 * rank + 3)
        loss = contrastive_loss(queries[own], targets[6 * rank : 6 * rank + 6], temperature=0.1, keys=keys[own])
        torch.testing.assert_close(loss / 2, whole)
        for place, gradient in zip(total, torch.autograd.grad(loss, (queries, targets)), strict=True):
            place += gradient / 2  # gradients are averaged over processes
    torch.testing.assert_close(total, list(wanted))


# sub-batches


def test_sub_batches_are_of_different_tasks() -> None:
    draws = stream(0, "sub")
    for _ in range(20):
        found = sub_batches(7, 96, 32, generator=draws)
        assert found.shape == (3,) and len(set(found.tolist())) == 3
    assert sorted(sub_batches(2, 8, 2, generator=draws).tolist()) == [0, 0, 1, 1]
    counts = torch.bincount(torch.cat([sub_batches(5, 4, 2, generator=draws) for _ in range(2000)]), minlength=5)
    assert (counts.double() / 800 - 1).abs().max() < 0.15
    for batch, sub in ((96, 36), (4, 8), (0, 0)):
        with pytest.raises(ValueError, match=f"batch must be a multiple of sub, with at least one task, got batch={batch}, sub={sub}"):
            sub_batches(7, batch, sub, generator=draws)
    batch = vlm.draw_batch(worlds.split(0)[0], vlm.VLM2VecSettings(seeds=1, batch=12, sub=4), names=("left", "cir"), generator=draws)
    assert len(batch.keys) == 12
    bare = vlm.draw_batch(worlds.split(0)[0], vlm.VLM2VecSettings(seeds=1, batch=8, sub=4), names=("left", "t2i"), told="content", generator=draws)
    assert sorted((bare.queries.tokens > 0).sum(1).tolist()) == [1] * 4 + [4] * 4


# generative pretraining


def test_next_token_loss_by_hand() -> None:
    lm, (inputs, answer) = model(), worlds.writing(8, worlds.split(0)[0], generator=stream(0, "w"))
    inputs = doubled(inputs)
    states, _, mask, _ = lm.read(inputs)
    total: list[Tensor] = []
    for row in range(8):
        length, count = int(mask[row].sum()), int(answer[row].sum())
        words = inputs.tokens[row][answer[row]]
        before = states[row, length - count - 1 : length - 1]  # what stands before each word of the answer
        total += [F.cross_entropy(before[k : k + 1] @ lm.word.weight.T / 4, words[k : k + 1]) for k in range(count)]
    torch.testing.assert_close(next_token_loss(lm, inputs, answer), torch.stack(total).mean())
    scores, wanted = written(lm, inputs, answer)
    assert scores.shape == (14, len(worlds.VOCABULARY)) and torch.equal(wanted, inputs.tokens[answer])


@pytest.mark.parametrize("place", [None, (0, 0), (0, 3), "shape", "float"])
def test_what_the_next_token_loss_refuses(place: object) -> None:
    lm, inputs = model(double=False), Inputs(torch.tensor([[IMAGE, 4, 5, 0], [4, 5, 6, 7]]), torch.rand(1, 1, 8, 16))
    answer = torch.zeros(2, 4, dtype=torch.bool)
    if isinstance(place, tuple):
        answer[place] = True
    answer = answer[:, :2] if place == "shape" else answer.float() if place == "float" else answer
    with pytest.raises(ValueError, match="answer must"):
        next_token_loss(lm, inputs, answer)
    first = torch.zeros(2, 4, dtype=torch.bool)
    first[1, 0] = True
    with pytest.raises(ValueError, match="the first token of a row has nothing before it"):
        next_token_loss(lm, inputs, first)


def test_pretraining_learns_to_write() -> None:
    short = vlm.measure_backbone(vlm.train_backbone(vlm.BackboneSettings(steps=2)))
    longer = vlm.measure_backbone(vlm.train_backbone(vlm.BackboneSettings(steps=60)))
    assert longer["loss"] < short["loss"] - 0.5
    made = provenance(vlm.BACKBONE)["measured"]
    assert made["loss"] < longer["loss"] and made["right words"] > 0.8


# adapters


def test_adapters_start_as_the_model_and_alone_learn() -> None:
    plain, batch = model(), batch_of()
    before = plain(batch.queries).detach()
    names = adapt(plain, 4, std=0.02)
    assert len(names) == 2 * 4
    torch.testing.assert_close(plain(batch.queries), before, rtol=1e-12, atol=1e-12)
    contrastive_loss(plain(batch.queries), plain(batch.targets), temperature=0.05, keys=batch.keys).backward()
    learning = {name for name, p in plain.named_parameters() if p.grad is not None}
    assert learning == {name for name, _ in plain.named_parameters() if name.endswith(("lora_A", "lora_B"))}
    assert all(layer.lora_B.grad.abs().max() > 0 for _, layer in lora_layers(plain))
    with pytest.raises(ValueError, match="rank must be at least 1"):
        adapt(model(), 0)


def test_contrastive_tuning_of_adapters_alone() -> None:
    backbone = load(vlm.BACKBONE)
    assert isinstance(backbone, VisionLanguageModel)
    tuned = vlm.train(backbone, worlds.split(0)[0], vlm.VLM2VecSettings(seeds=1, steps=4, warmup=0, batch=24, sub=8, rank=4), 0)
    state, own = backbone.state_dict(), dict(tuned.named_parameters())
    frozen = [name for name, p in own.items() if not p.requires_grad]
    assert all(torch.equal(own[name], state[name.replace(".base.", ".")]) for name in frozen)
    assert all(layer.lora_B.abs().max() > 0 for _, layer in lora_layers(tuned))


# rankings


def test_precision_at_one_is_accuracy_and_ties_are_wrong() -> None:
    from sklearn.metrics import top_k_accuracy_score

    scores, right = torch.rand(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(50) % 7
    found = precision_at_1(scores, right)
    assert found == (scores.argmax(1) == right).double().mean()
    assert found == pytest.approx(top_k_accuracy_score(right.numpy(), scores.numpy(), k=1, labels=range(7)))
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    assert precision_at_1(scores[:, order], order.argsort()[right]) == found
    assert precision_at_1(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64)) == 0
    offered = torch.tensor([[True, False, True]])
    assert precision_at_1(torch.tensor([[0.5, 0.9, 0.1]]), torch.tensor([0]), offered) == 1
    with pytest.raises(ValueError, match="finite scores"):
        precision_at_1(torch.full((1, 2), torch.nan), torch.tensor([0]))


def task(name: str, meta: method.Meta = "vqa", trained: bool = True) -> RankingTask:
    words = Inputs(torch.arange(2, 5)[:, None])
    return RankingTask(name, meta, trained, words, words, torch.arange(3))


def test_means_are_over_tasks_and_keep_trained_and_unseen_apart() -> None:
    tasks = [task("a"), task("b"), task("c", trained=False), task("d", "grounding")]
    found = means({"a": 0.2, "b": 0.4, "c": 1.0, "d": 0.9}, tasks)
    assert found == pytest.approx({"IND": 0.5, "OOD": 1.0, "IND vqa": 0.3, "OOD vqa": 1.0, "IND grounding": 0.9})
    encoder = model()
    assert evaluate(encoder, [task("a")]) == {"a": 1.0}  # equal inputs are nearest to themselves
    assert evaluate(encoder, [task("a")], target=lambda inputs: -encoder(inputs))["a"] == 0.0
    with pytest.raises(ValueError, match="two tasks have the same name"):
        evaluate(encoder, [task("a"), task("a")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meta": "reranking"}, "meta must be one of classification, vqa, retrieval, grounding, got 'reranking'"),
        ({"right": torch.arange(2)}, "right must be (3,), one a query, got (2,)"),
        ({"right": torch.tensor([0, 1, 3])}, "task a: right must be between 0 and 2, got 0 to 3"),
        ({"offered": torch.ones(2, 3, dtype=torch.bool)}, "offered must be bool (3, 3)"),
        ({"offered": torch.zeros(3, 3, dtype=torch.bool)}, "the right candidate must be among those offered"),
    ],
)
def test_what_a_task_refuses(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(task("a"), **change)


def test_a_user_s_rows_go_through_the_same_evaluation() -> None:
    drawings, draws = worlds.split(0)[1], stream(0, "rows")
    pictures = drawings.pictures(torch.tensor([[3, 7, 0, 1], [1, 2, 2, 0], [5, 5, 0, 0]]), generator=draws)
    words = [
        Item("three", instruction="represent the word"),
        Item("Three ", instruction="represent the word"),
        Item("one", instruction="represent the word"),
    ]
    rows = [
        Row(Item("what digit is on the left", pictures[0]), words),
        Row(Item("find the image of plain five"), [Item(image=picture.numpy()[0]) for picture in pictures], right=2),
        Row(Item("which digit is larger", pictures[1], "[IMAGE] describe the image"), words[1:], right=1),
    ]
    found = tasks_from_rows("mine", "vqa", rows, worlds.VOCABULARY)
    assert len(found.candidates) == 5 and found.right.tolist() == [0, 4, 1] and not found.trained  # "three" twice is one candidate
    assert found.offered is not None and found.offered.sum(1).tolist() == [2, 3, 2]
    assert found.queries.tokens[2, 0] == IMAGE and (found.queries.tokens == IMAGE).sum(1).tolist() == [1, 0, 1]
    encoder = model(double=False)
    by_hand = 0.0
    for row in rows:
        scores = encoder(collate(row.candidates, worlds.VOCABULARY)) @ encoder(collate([row.query], worlds.VOCABULARY))[0]
        same = [c.text.strip().lower() == row.candidates[row.right].text.strip().lower() and bool(c.text) for c in row.candidates]
        same[row.right] = True
        by_hand += float(scores[row.right] > max(s for s, equal in zip(scores.tolist(), same, strict=True) if not equal)) / 3
    assert evaluate(encoder, [found])["mine"] == pytest.approx(by_hand)


def test_records_of_the_benchmark() -> None:
    pictures = {"a.png": torch.rand(1, 8, 16), "b.png": torch.rand(1, 8, 16)}
    record = {"qry_text": "<|image_1|> what digit is on the left", "qry_img_path": "a.png", "tgt_text": ["three", "one"], "tgt_img_path": ["", ""]}
    crops = {"qry_text": "find the image", "qry_img_path": "", "tgt_text": ["<|image_1|> represent the crop"] * 2, "tgt_img_path": ["b.png", "a.png"]}
    found = tasks_from_rows("q", "grounding", worlds.mmeb_rows([record, crops], pictures.__getitem__), worlds.VOCABULARY)
    assert len(found.queries) == 2 and len(found.candidates) == 4 and found.right.tolist() == [0, 2]
    assert 0 <= evaluate(model(double=False), [found])["q"] <= 1
    with pytest.raises(ValueError, match="record 0 has no tgt_img_path"):
        worlds.mmeb_rows([{k: v for k, v in record.items() if k != "tgt_img_path"}], pictures.__getitem__)
    with pytest.raises(ValueError, match="record 0 has 2 texts and 1 images"):
        worlds.mmeb_rows([{**record, "tgt_img_path": [""]}], pictures.__getitem__)


# bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Inputs(torch.tensor([[3, 4], [0, 0]])), "row 1 is empty: every row needs a word or an image"),
        (lambda: Inputs(torch.tensor([[IMAGE, 4]])), "the tokens have 1 places for images ([IMAGE]), but there are 0 images"),
        (lambda: Inputs(torch.tensor([[3, 4]]), torch.rand(1, 1, 8, 16)), "the tokens have 0 places for images ([IMAGE]), but there are 1 images"),
        (lambda: Inputs(torch.tensor([[IMAGE]]), torch.rand(8, 16)), "images must be (m, channels, height, width), got (8, 16)"),
        (lambda: Inputs(torch.rand(2, 2)), "tokens must be int64 (n, length)"),
        (lambda: model()(Inputs(torch.tensor([[IMAGE]]), torch.rand(1, 3, 8, 16))), "images must be (m, 1, 8, 16), got (1, 3, 8, 16)"),
        (lambda: model()(Inputs(torch.tensor([[IMAGE]]), torch.rand(1, 1, 16, 8))), "images must be (m, 1, 8, 16), got (1, 1, 16, 8)"),
        (lambda: model()(Inputs(torch.tensor([[99]]))), "tokens must be between 0 and 35, got 99 to 99"),
        (lambda: model(longest=4)(Inputs(torch.tensor([[3] * 5]))), "the input has 5 tokens, 1 more than the 4 positions"),
        (lambda: model(pooling="first"), "pooling must be one of cls, mean, last, got 'first'"),
        (lambda: pool(torch.rand(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), "eos"), "pooling must be one of cls, mean, last, got 'eos'"),  # type: ignore[arg-type]
        (lambda: pool(torch.rand(2, 2, 3), torch.tensor([[True, True], [False, False]])), "row 1 of the mask has no token"),
        (lambda: pool(torch.rand(2, 2, 3), torch.ones(2, 3, dtype=torch.bool)), "states must be (n, length, width) and mask (n, length)"),
        (lambda: VisionLanguageModel(9, (1, 8, 16), 3), "patches of 3 x 3 do not tile an image of 8 x 16"),
        (lambda: VisionLanguageModel(2, (1, 8, 16), 4), "at least three words"),
        (lambda: collate([Item()], worlds.VOCABULARY), "item 0 is empty: it needs an image or a word"),
        (lambda: collate([Item("[IMAGE] describe the image")], worlds.VOCABULARY), "item 0 has 1 places for an image, but no image"),
        (lambda: collate([Item("[IMAGE] [IMAGE]", torch.rand(8, 16))], worlds.VOCABULARY), "item 0 has 2 places for an image, but one image"),
        (lambda: collate([Item("a giraffe")], worlds.VOCABULARY), "item 0: the word 'giraffe' is not in the vocabulary"),
        (lambda: collate([Item(image=torch.rand(8, 16)), Item(image=torch.rand(8, 8))], worlds.VOCABULARY), "images must have one size"),
        (lambda: tasks_from_rows("x", "vqa", [], worlds.VOCABULARY), "task x has no rows"),
        (lambda: tasks_from_rows("x", "vqa", [Row(Item("one"), [Item("one")])], worlds.VOCABULARY), "row 0 needs two candidates"),
        (lambda: tasks_from_rows("x", "vqa", [Row(Item("one"), [Item("one")] * 2, 2)], worlds.VOCABULARY), "right among them, got 2 and 2"),
    ],
)
def test_what_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


# models of the library transformers


def test_a_pretrained_language_model_embeds() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    embed = PretrainedEmbedder(GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2)).eval())
    right, left = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]]), torch.tensor([[0, 5, 6, 7], [0, 0, 8, 9]])
    with torch.no_grad():
        one, two = embed(right, (right > 0).long()), embed(left, (left > 0).long())
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(2))


def test_a_pretrained_vision_language_model_embeds() -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    text = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4)
    library = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=49)).eval()
    embed = PretrainedEmbedder(library)
    tokens = torch.tensor([[49, 49, 49, 49, 5, 6], [0, 49, 49, 49, 49, 7]])
    with torch.no_grad():
        one, two = (embed(tokens, (tokens > 0).long(), pixel_values=torch.rand(2, 3, 8, 8)) for _ in range(2))
    assert one.shape == (2, 16) and (one - two).abs().max() > 1e-4  # the image counts
    torch.testing.assert_close(one.norm(dim=1), torch.ones(2))


# worlds


def test_splits_keep_pretraining_training_and_tests_apart() -> None:
    def rows(drawings: worlds.Drawings) -> set[bytes]:
        return {image.numpy().tobytes() for image in drawings.images}

    kept, others = map(rows, worlds.pretraining_drawings())
    splits = [tuple(map(rows, worlds.split(seed))) for seed in (0, 1)]
    assert len(worlds.pretraining_drawings()[0].images) == 700
    for train, test in splits:
        assert kept <= train and not kept & test and not train & test and test <= others
    assert splits[0][1] != splits[1][1]
    assert [len(part.images) for part in worlds.split(3)] == [1300, 497]
    share = [part.count.double() / part.count.sum() for part in worlds.split(3)]
    assert (share[0] - share[1]).abs().max() < 0.01


@pytest.mark.parametrize("name", list(worlds.KINDS))
def test_answers_follow_from_contents(name: str) -> None:
    contents, side = worlds.draw_contents(name, 200, generator=stream(0, name))
    keys = worlds.KINDS[name].key(contents, side).tolist()
    for (left, right, first, second), at, key in zip(contents.tolist(), side.tolist(), keys, strict=True):
        styles = [first, second]
        if name == "cir":
            assert styles[at] != 1
            styles[at] = 1
        if name == "ground":
            assert styles[at] == 2 != styles[1 - at]
        style = [worlds.STYLES[s] for s in styles]
        half = f"crop: {style[at]} {(left, right)[at]}"
        both = f"{style[0]} {left}, {style[1]} {right}"
        wanted = {
            "left": f"word: {worlds.NAMES[left]}", "right": f"word: {worlds.NAMES[right]}", "large": f"word: {worlds.NAMES[max(left, right)]}",
            "small": f"word: {worlds.NAMES[min(left, right)]}", "i2t": f"text: {both}", "t2i": f"image: {both}", "cir": f"image: {both}",
            "swap": f"image: {style[1]} {right}, {style[0]} {left}", "ground": half, "cropLR": half,
        }  # fmt: skip
        assert worlds.named(key) == wanted[name]
    if name in ("large", "small"):
        assert (contents[:, 0] != contents[:, 1]).all()


@pytest.mark.parametrize("name", list(worlds.KINDS))
def test_candidates_hold_the_right_answer_among_random_others(name: str) -> None:
    found = worlds.ranking_task(name, 200, worlds.split(0)[1], generator=stream(0, "test", name))
    count = torch.full((200,), len(found.candidates)) if found.offered is None else found.offered.sum(1)
    assert (count == count[0]).all() and 9 <= count[0] <= 100
    tokens = [tuple(row) for row in found.candidates.tokens.tolist()]
    if found.candidates.images is None:
        assert len(set(tokens)) == len(tokens)  # no candidate twice
    if found.offered is not None:
        assert found.offered.gather(1, found.right[:, None]).all()
        often = found.offered.double().mean(0)  # every one is offered, not the smallest numbers alone
        assert often.min() > 0.35 and (found.offered[0] != found.offered[1]).any()


def test_styles() -> None:
    image = torch.rand(8, 8)
    plain, inverted, framed = worlds.styled(image.expand(3, 8, 8), torch.arange(3))
    assert torch.equal(plain, image) and torch.equal(inverted, 1 - image)
    assert torch.equal(framed[1:-1, 1:-1], image[1:-1, 1:-1]) and (framed[0] == 1).all() and (framed[:, -1] == 1).all()
    with pytest.raises(ValueError, match="every digit needs an image; 0 has none"):
        worlds.Drawings(worlds.Digits(torch.rand(2, 8, 8), torch.tensor([1, 2])))


# experiment, explorer, exercises


def test_the_quick_experiment() -> None:
    arms = run_quick(vlm.EXPERIMENT)
    assert set(arms) == {"chance", "VLM2Vec", "fusion", "no instruction", "from scratch", "no contrastive training"}
    assert arms["chance"]["left"] == pytest.approx(0.1) and arms["chance"]["ground"] == pytest.approx(1 / 30)
    found = arms["VLM2Vec"]
    assert found["IND"] == pytest.approx(sum(found[name] for name in worlds.TRAINED) / 7)
    assert found["IND_vqa"] == found["place"] == pytest.approx((found["left"] + found["right"]) / 2)


def test_a_backbone_of_a_seed_s_own() -> None:
    tiny = vlm.BackboneSettings(steps=2, batch=8, width=16, layers=1)
    settings = replace(vlm.SCALES["quick"], steps=2, queries=10, shipped=False, backbone=tiny)
    arms = vlm.run(settings, 1, torch.device("cpu"))
    assert set(arms["VLM2Vec"]) == set(arms["chance"])


def test_the_shipped_encoders() -> None:
    measured = provenance(vlm.ENCODERS)["measured"]
    assert measured["VLM2Vec IND vqa"] > measured["fusion IND vqa"] + 0.2
    encoders = load(vlm.ENCODERS)
    names = [worlds.ranking_task(name, 100, worlds.split(0)[1], generator=stream(9, name)) for name in ("left", "right")]
    found = {name: evaluate(encoder, names) for name, encoder in encoders.named_children()}
    assert min(found["VLM2Vec"].values()) > 0.8 and sum(found["fusion"].values()) / 2 < 0.7


def test_the_instruction_moves_the_answer_from_words_to_crops_to_images() -> None:
    shown = explorer()
    assert "word: three" in shown.text
    kinds = set()
    for label in shown.presets:
        shown.preset(label)
        kinds.add(shown.text.split("VLM2Vec first: ")[1].split(":")[0])
    assert {"word", "text", "crop", "image"} <= kinds
    shown.set(instruction="crop the framed digit", first="plain", second="plain")
    assert "has no answer here" in shown.text
    before = shown.text
    shown.set(left=9, right=1, drawing=3)
    assert shown.text != before


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.question[:24])
def test_exercises(exercise) -> None:
    assert not exercise.check(None).right
    assert not exercise.check(exercise.wrong).right
    reply = exercise.check(exercise.solve())
    assert reply.right, reply
