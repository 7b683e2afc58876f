"""SMITH: sentence blocks, both levels, four representations, pre-training, baselines, and what it must refuse."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.datasets.texts import reference_topics
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.pretrained import PretrainedBody, PretrainedTokeniser
from mtlearn.layers.text_encoders import TokenEncoder
from mtlearn.layers.tokens import UNSEEN, Vocabulary
from mtlearn.pairs.smith import documents as texts_of
from mtlearn.pairs.smith import explorer as touch
from mtlearn.pairs.smith.baselines import FlatEncoder, HierarchicalRNN, Siamese, WordMean, flat, tfidf_cosines
from mtlearn.pairs.smith.blocks import Marks, fill, marks_of, mask_words, sentences, text_blocks
from mtlearn.pairs.smith.experiment import EXPERIMENT, SCALES, Text, best_threshold, quality, text_arms
from mtlearn.pairs.smith.method import (
    SMITH,
    SMITH_SHORT,
    Combine,
    Pretraining,
    Smith,
    attention_entries,
    block_loss,
    draw_blocks,
    matching_loss,
    word_table,
)
from mtlearn.pairs.smith.world import TopicWorld
from tests.quick_experiment import run_quick
from tests.real_files import REAL

MODES: tuple[Combine, ...] = ("normal", "sum-concat", "mean-concat", "attention")
SIZE, N, S, WIDTH = 40, 5, 6, 16
MARKS = Marks(0, 2, 3, 4, (0, 1, 2, 3, 4), SIZE)


def model(seed: int = 0, **options: object) -> Smith:
    with seeded(seed):
        body = TokenEncoder(SIZE, WIDTH, 4, 2, 32, longest=16, vectors=torch.randn(SIZE, WIDTH))
        given: dict[str, object] = {"heads": 4, "layers": 2, "hidden": 32, "places": 12, **options}
        return Smith(body, **given).eval()  # type: ignore[arg-type]


def documents(count: int = 3, blocks: int = N, seed: int = 0) -> Tensor:
    tokens = torch.randint(5, SIZE, (count, blocks, S), generator=stream(seed, "documents"))
    tokens[..., 0] = 2
    return tokens


# --------------------------------------------------------------------------------------------------------------------------------- blocks


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30), room=st.integers(1, 12))
def test_filling_is_greedy_and_loses_nothing(lengths: list[int], room: int) -> None:
    blocks = fill(lengths, room)
    assert [i for first, last in blocks for i in range(first, last)] == list(range(len(lengths)))
    for first, last in blocks:
        assert sum(lengths[first:last]) <= room or last == first + 1
    for (first, last), (_, following) in itertools.pairwise(blocks):
        assert sum(lengths[first : last + 1]) > room  # not even the next sentence would fit
        assert sum(lengths[first:following]) > room  # nor would the neighbour as a whole


def test_blocks_give_the_document_back() -> None:
    text = "One two three. Four five six seven? Eight nine! Ten eleven twelve.\n\nA heading\n\nThirteen fourteen fifteen sixteen seventeen."
    words = Vocabulary.of([text], 40)
    blocks = text_blocks([text, "Five nine."], words, size=9, most=8)
    assert blocks.shape == (2, 4, 9)
    room = blocks[blocks > 4]
    assert torch.equal(room, torch.cat([words([text], 99)[0], words(["Five nine."], 9)[0]]))
    assert blocks[0, 0].tolist() == [2, *words(["one two three"], 9)[0].tolist(), 3, 3, 0, 0, 0]  # the next sentence has four words
    assert blocks[0, 1].tolist()[5:] == blocks[0, 1].new_tensor([*words(["eight nine"], 9)[0].tolist(), 3, 3]).tolist()
    assert (blocks[1, 1:] == 0).all()
    assert sentences("It is so. 3.1 4.1. And x = 3.  Done") == ["It is so. 3.1 4.1.", "And x = 3.", "Done"]


def test_long_texts_are_cut_only_where_asked() -> None:
    words = Vocabulary.of(["a1 aa bb cc dd ee ff gg hh"], 40)
    long = "aa bb cc dd ee ff gg hh."
    with pytest.raises(ValueError, match="document 1 has a sentence of 8 tokens, 5 more than the 3 that a block of 6 holds"):
        text_blocks(["aa bb.", long], words, size=6)
    assert text_blocks([long], words, size=6, truncate=True).shape == (1, 1, 6)
    spread = text_blocks([long], words, size=6, split=True)
    assert torch.equal(spread[spread > 4], words([long], 9)[0])
    with pytest.raises(ValueError, match="document 0 has 3 blocks, 1 more than the limit of 2; truncate=True drops them"):
        text_blocks([long], words, size=6, most=2, split=True)
    assert text_blocks([long], words, size=6, most=2, split=True, truncate=True).shape == (1, 2, 6)
    for text in ("", "  ", "3.14 = ?"):
        with pytest.raises(ValueError, match="document 1 is empty"):
            text_blocks(["aa", text], words)
    with pytest.raises(ValueError, match="document 0 has no word that the tokeniser takes"):
        text_blocks(["x = y"], words)
    with pytest.raises(ValueError, match="size must be above 3"):
        text_blocks([long], words, size=3)
    with pytest.raises(ValueError, match="most must be at least 1, got 0: no block would be left"):
        text_blocks([long], words, most=0)
    with pytest.raises(ValueError, match="room and lengths must be at least 1"):
        fill([3, 0], 4)
    with pytest.raises(ValueError, match=r"special tokens \[CLS\], \[SEP\] and \[MASK\]"):
        marks_of(Vocabulary.of(["aa bb"], 8, special=("[PAD]",)))


def test_masked_words_follow_bert() -> None:
    tokens = torch.cat([documents(200, 4), torch.zeros(200, 1, S, dtype=torch.int64)], 1)
    masked, wanted = mask_words(tokens, MARKS, share=0.5, most=2, generator=stream(0, "mask"))
    drawn = wanted != UNSEEN
    assert (drawn[:, :4].sum(-1) == 2).all()
    assert not drawn[:, 4].any()
    assert not drawn[..., 0].any()
    assert torch.equal(masked[~drawn], tokens[~drawn])
    assert torch.equal(wanted[drawn], tokens[drawn])
    assert (masked[drawn] == 4).float().mean().item() == pytest.approx(0.8, abs=0.05)
    assert (masked[drawn] == tokens[drawn]).float().mean().item() == pytest.approx(0.1 + 0.1 / 35, abs=0.04)
    few = mask_words(tokens, MARKS, share=0.01, generator=stream(0, "mask"))[1]
    assert ((few != UNSEEN).sum(-1)[:, :4] == 1).all()
    with pytest.raises(ValueError, match="share must be in"):
        mask_words(tokens, MARKS, share=0, generator=stream(0, "mask"))


# ------------------------------------------------------------------------------------------------------------------------------- encoder


@pytest.mark.parametrize("combine", MODES)
@torch.no_grad()
def test_padding_changes_nothing_and_swapping_neither(combine: Combine) -> None:
    smith = model(combine=combine)
    tokens, other = documents(), documents(seed=1)
    wide = F.pad(tokens, (0, 3, 0, 2))
    torch.testing.assert_close(smith.embed(wide), smith.embed(tokens), atol=1e-6, rtol=0)
    assert torch.equal(smith(tokens, other), smith(other, tokens))
    itself = smith(tokens, tokens)
    if combine == "normal":
        torch.testing.assert_close(itself, torch.full((3,), 6.0))
    else:
        assert (itself > 6).all()
    mixed = torch.cat([wide[:1], F.pad(documents(1, 7, seed=2), (0, 3))])
    torch.testing.assert_close(smith.embed(mixed)[:1], smith.embed(tokens[:1]), atol=1e-6, rtol=0)
    assert torch.isfinite(smith(tokens, F.pad(other, (0, 0, 0, 1)))).all()


@torch.no_grad()
def test_the_four_representations() -> None:
    tokens = torch.cat([documents(), torch.zeros(3, 2, S, dtype=torch.int64)], 1)
    found = {combine: model(combine=combine) for combine in MODES}
    normal = found["normal"]
    e, _ = normal.blocks(tokens)
    d = normal.embed(tokens)
    torch.testing.assert_close(found["sum-concat"].embed(tokens), torch.cat([e[:, :N].sum(1), d], 1))
    torch.testing.assert_close(found["mean-concat"].embed(tokens), torch.cat([e[:, :N].mean(1), d], 1))
    attention = found["attention"]
    attention.load_state_dict({**attention.state_dict(), **normal.state_dict()})
    weights = (torch.tanh(e[:, :N] @ attention.attend.weight.T + attention.attend.bias) @ attention.context).softmax(1)
    torch.testing.assert_close(attention.embed(tokens), torch.cat([torch.einsum("bn,bnd->bd", weights, e[:, :N]), d], 1))


@torch.no_grad()
def test_a_block_is_encoded_alone() -> None:
    smith, tokens = model(), documents()
    e, real = smith.blocks(tokens)
    assert real.all()
    changed = tokens.clone()
    changed[1, 2, 3] = 5 + (changed[1, 2, 3] - 4) % (SIZE - 5)
    again = smith.blocks(changed)[0]
    assert not torch.equal(e[1, 2], again[1, 2])
    e[1, 2] = again[1, 2] = 0
    assert torch.equal(e, again)
    one_by_one = torch.stack([smith.blocks(tokens[:, i : i + 1])[0][:, 0] for i in range(N)], 1)
    torch.testing.assert_close(one_by_one, smith.blocks(tokens)[0], atol=1e-6, rtol=0)


@torch.no_grad()
def test_which_orders_of_blocks_can_be_told_apart() -> None:
    tokens = documents()
    order, kept = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([0, 3, 4, 1, 2])
    mean, first, with_positions = model(positions=False, output="mean"), model(positions=False), model(position_std=1.0)
    torch.testing.assert_close(mean.embed(tokens[:, order]), mean.embed(tokens), atol=1e-6, rtol=0)
    torch.testing.assert_close(first.embed(tokens[:, kept]), first.embed(tokens), atol=1e-6, rtol=0)
    assert (first.embed(tokens[:, order]) - first.embed(tokens)).abs().max() > 1e-4
    assert (with_positions.embed(tokens[:, kept]) - with_positions.embed(tokens)).abs().max() > 1e-4


def test_blocks_beyond_the_limit_get_no_gradient() -> None:
    smith = model(read=3)
    e, real = smith.blocks(documents())
    e = e.detach().requires_grad_()
    smith.document(e[:, : smith.read], real[:, : smith.read]).square().mul(torch.arange(WIDTH)).sum().backward()  # type: ignore[no-untyped-call]
    assert e.grad is not None
    assert (e.grad[:, :3].abs().sum((0, 2)) > 0).all()
    assert not e.grad[:, 3:].any()
    with torch.no_grad():
        assert torch.equal(smith.embed(documents()), smith.embed(documents()[:, :3]))
        single = smith.embed(documents()[:, :1])
        e, _ = smith.blocks(documents()[:, :1])
        alone = smith.document_head(smith.transformer(smith.norm(e + smith.position[:1])))[:, 0]  # type: ignore[index]
        torch.testing.assert_close(single, alone)


@torch.no_grad()
def test_level_two_equals_torchs_encoder() -> None:
    smith = model()
    reference = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 32, 0.0, "gelu", batch_first=True), 2, enable_nested_tensor=False).eval()
    for layer, ours in zip(reference.layers, smith.transformer.layers, strict=True):
        layer.self_attn.in_proj_weight.copy_(ours.attention.query_key_value.weight)  # type: ignore[union-attr]
        layer.self_attn.in_proj_bias.copy_(ours.attention.query_key_value.bias)  # type: ignore[union-attr]
        layer.self_attn.out_proj.load_state_dict(ours.attention.out.state_dict())  # type: ignore[union-attr]
        layer.linear1.load_state_dict(ours.feed[0].state_dict())  # type: ignore[union-attr, index]
        layer.linear2.load_state_dict(ours.feed[2].state_dict())  # type: ignore[union-attr, index]
        layer.norm1.load_state_dict(ours.norms[0].state_dict())  # type: ignore[union-attr, index]
        layer.norm2.load_state_dict(ours.norms[1].state_dict())  # type: ignore[union-attr, index]
    tokens = documents()
    tokens[0, 3:] = 0
    e, real = smith.blocks(tokens)
    assert smith.position is not None
    wanted = reference(smith.norm(e + smith.position[:N]), src_key_padding_mask=~real)
    torch.testing.assert_close(smith.contextual(e, real)[real], wanted[real], atol=1e-5, rtol=0)


@torch.no_grad()
def test_relu_makes_everything_a_match() -> None:
    smith = model(relu=True)
    z = smith(documents(20), documents(20, seed=1))
    assert (z >= 0).all()
    assert (F.binary_cross_entropy_with_logits(z, torch.zeros(20), reduction="none") >= math.log(2) - 1e-6).all()
    shifted = model(relu=True, bias=-3.0)
    torch.testing.assert_close(shifted(documents(20), documents(20, seed=1)), z - 3)


def test_the_matching_loss_is_the_public_formula() -> None:
    smith, labels = model(), torch.tensor([1.0, 0.0, 1.0])
    one, two = smith.embed(documents()), smith.embed(documents(seed=1))
    z = smith(documents(), documents(seed=1))
    cosine = F.cosine_similarity(one, two)
    torch.testing.assert_close(matching_loss(z, labels), F.binary_cross_entropy_with_logits(6 * cosine, labels))
    weighted = matching_loss(z, labels, positive_weight=4)
    per_pair = F.binary_cross_entropy_with_logits(6 * cosine, labels, reduction="none")
    torch.testing.assert_close(weighted, (per_pair * torch.tensor([4.0, 1.0, 4.0])).mean())
    for bad in (torch.tensor([1.0, 2.0, 0.0]), torch.ones(2), torch.tensor([0.5, 0, 1])):
        with pytest.raises(ValueError, match="labels must be 0 or 1"):
            matching_loss(z, bad)
    with pytest.raises(ValueError, match="positive_weight must be positive"):
        matching_loss(z, labels, positive_weight=0)


def test_numbers_of_the_public_code() -> None:
    public = json.loads((Path(__file__).parent / "public" / "smith.json").read_text())
    case = public["matching"]
    z = 6 * (torch.tensor(case["first"]) * torch.tensor(case["second"])).sum(1)
    np.testing.assert_allclose(z, case["logits"], rtol=1e-5)
    loss = matching_loss(z, torch.tensor(case["labels"]), positive_weight=case["weight"])
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-5)
    case = public["blocks"]
    h, e, weights = (torch.tensor(case[name]) for name in ("h", "e", "weights"))
    np.testing.assert_allclose(block_loss(h, e, weights), case["loss"], rtol=1e-5)


# ----------------------------------------------------------------------------------------------------------------------------- pre-training


def test_the_block_loss_is_a_cross_entropy_over_the_masked_blocks_of_the_batch() -> None:
    draws = stream(0, "loss")
    h, e = torch.randn(4, 2, 48, generator=draws), F.normalize(torch.randn(4, 2, 48, generator=draws), dim=-1)
    wanted = F.cross_entropy(h.flatten(0, 1) @ e.flatten(0, 1).T, torch.arange(8))
    torch.testing.assert_close(block_loss(h, e, torch.ones(4, 2)), wanted * 8 / (8 + 1e-5))
    weights = torch.tensor([[1.0, 0], [1, 1], [0, 0], [1, 1]])
    kept = weights.flatten() > 0
    some = F.cross_entropy((h.flatten(0, 1) @ e.flatten(0, 1).T)[kept], torch.arange(8)[kept])
    torch.testing.assert_close(block_loss(h, e, weights), some * 5 / (5 + 1e-5))
    assert block_loss(h, e, torch.zeros(4, 2)) == 0
    two = block_loss(torch.zeros(1, 2, 48), e[:1], torch.ones(1, 2))
    assert two.item() == pytest.approx(math.log(2), abs=1e-4)  # one document with k = 2 has two candidates
    h.requires_grad_()
    e.requires_grad_()
    block_loss(h, e, weights).backward()  # type: ignore[no-untyped-call]
    assert h.grad is not None
    assert e.grad is not None
    assert e.grad.abs().sum() > 0
    assert not h.grad.flatten(0, 1)[~kept].any()


def test_drawn_blocks_are_different_and_padding_weighs_nothing() -> None:
    real = torch.arange(8) < torch.tensor([[8], [3], [1]])
    places, weights = draw_blocks(real.repeat(200, 1), 3, generator=stream(0, "draw"))
    assert (places[:, 1:] > places[:, :-1]).all()
    assert torch.equal(weights, real.repeat(200, 1).gather(1, places).float())
    assert weights.view(200, 3, 3)[:, 1].mean().item() == pytest.approx(3 / 8, abs=0.08)
    assert draw_blocks(real, 3, generator=stream(0, "draw"), only_real=True)[1].sum(1).tolist() == [3, 3, 1]
    for k in (0, 1, 9):
        with pytest.raises(ValueError, match=f"between 2 and the 8 blocks, got {k}"):
            draw_blocks(real, k, generator=stream(0, "draw"))


@pytest.mark.parametrize("output", ["first", "token", "mean"])
def test_a_masked_place_does_not_see_its_own_block(output: str) -> None:
    with seeded(1):
        pretraining = Pretraining(model(output=output), MARKS)
    smith = pretraining.smith
    e, real = smith.blocks(documents())
    places = torch.tensor([[0, 3], [1, 2], [2, 4]])
    h = pretraining.masked(e, real, places)
    assert h.shape == (3, 2, WIDTH)
    other = e.clone()
    other.scatter_(1, places[..., None].expand(-1, -1, WIDTH), 1.0)
    assert torch.equal(pretraining.masked(other, real, places), h)
    other[0, 1] = 0
    assert not torch.equal(pretraining.masked(other, real, places)[0], h[0])


def test_pretraining_losses_and_modes() -> None:
    with seeded(1):
        pretraining = Pretraining(model(), MARKS)
    with torch.no_grad():
        word_table(pretraining.smith.body).mul_(0.02)  # so that a guess is as good as any
    tokens = documents(4)
    tokens[0, 3:] = 0
    words, _ = pretraining(tokens, generator=stream(0, "losses"))
    assert words.item() == pytest.approx(math.log(SIZE), abs=0.6)
    pretraining.sum_blocks = True
    summed, _ = pretraining(tokens, generator=stream(0, "losses"))
    assert summed.item() == pytest.approx(words.item() * 18 / 4, rel=1e-5)  # 18 blocks, 4 documents
    pretraining.sum_blocks = False
    found = pretraining.losses(tokens, documents(4, seed=1), torch.ones(4), generator=stream(0, "losses"))
    assert found.total.item() == pytest.approx((found.words + found.blocks + found.matching).item())
    assert found.matching > 0
    assert pretraining.losses(tokens, tokens, generator=stream(0, "losses")).matching == 0
    found.total.backward()  # type: ignore[no-untyped-call]
    missing = [name for name, p in pretraining.named_parameters() if p.grad is None]
    assert not missing
    only_words = Pretraining(model(), MARKS, k=0)
    assert only_words(tokens, generator=stream(0, "losses"))[1] == 0
    logits, places, weights = pretraining.guesses(tokens, k=3, generator=stream(0, "guesses"))
    assert logits.shape == (12, 12)
    assert places.shape == weights.shape == (4, 3)
    for k in (-1, 1):
        with pytest.raises(ValueError, match="at least 2, or 0 for no block loss"):
            Pretraining(model(), MARKS, k=k)
    with pytest.raises(ValueError, match="word embedding of a Linear"):
        word_table(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_word_loss_is_the_mean_of_the_blocks_means() -> None:
    with seeded(1):
        pretraining = Pretraining(model(), MARKS, k=0, share=0.5)
    tokens, smith = documents(2), pretraining.smith
    masked, wanted = mask_words(tokens, MARKS, share=0.5, generator=stream(3, "words"))
    states, real = smith.states(masked)
    logits = pretraining.word(states) @ word_table(smith.body).T + pretraining.word_bias
    per_block = [F.cross_entropy(row, want, ignore_index=UNSEEN) for row, want in zip(logits, wanted[real], strict=True)]
    got, _ = pretraining(tokens, generator=stream(3, "words"))
    torch.testing.assert_close(got, torch.stack(per_block).mean(), rtol=1e-4, atol=0)


# --------------------------------------------------------------------------------------------------------------- a library's model, sizes


def test_a_transformer_of_the_library_encodes_the_blocks(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three", "four", ".", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokeniser = PretrainedTokeniser(transformers.BertTokenizer(str(tmp_path / "vocab.txt")))
    blocks = text_blocks(["One two. Three fours.", "Two."], tokeniser, size=8, most=4)
    assert blocks[0].tolist() == [[2, 5, 6, 9, 3, 3, 0, 0], [2, 7, 8, 10, 9, 3, 3, 0]]
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=16
    )
    with seeded(0):
        smith = SMITH_SHORT.smith(PretrainedBody(transformers.BertModel(config).eval(), 0), layers=1, hidden=16, heads=2).eval()
        pretraining = Pretraining(smith, marks_of(tokeniser), only_real=True)
    assert smith.read == 8
    torch.testing.assert_close(smith(blocks, blocks), torch.full((2,), 6.0))
    found = pretraining.losses(blocks, blocks, torch.ones(2), generator=stream(0, "hf"))
    found.total.backward()  # type: ignore[no-untyped-call]
    assert found.total.isfinite()
    assert word_table(smith.body).grad is not None


def test_published_sizes_and_costs() -> None:
    with seeded(0):
        smith = SMITH.smith(SMITH.block_encoder(100))
    assert (smith.places, smith.read, smith.width, len(smith.transformer.layers)) == (64, 48, 256, 3)
    assert attention_entries(48, 32) == (51_456, 2_359_296)
    assert min(range(1, 2049), key=lambda s: 2048 * s + (2048 / s) ** 2) == 16
    with torch.no_grad():
        assert smith(torch.full((1, 64, 32), 7), torch.full((1, 2, 32), 7)).isfinite().all()
    assert SMITH_SHORT.read * SMITH_SHORT.block == 256


# -------------------------------------------------------------------------------------------------------------------------------- errors


def test_wrong_models_and_documents_are_refused() -> None:
    smith = model()
    for bad in (torch.zeros(2, 0, 6, dtype=torch.int64), torch.zeros(2, 6, dtype=torch.int64)):
        with pytest.raises(ValueError, match="with at least one block"):
            smith.embed(bad)
    empty = documents()
    empty[1] = 0
    with pytest.raises(ValueError, match="document 1 has no block with a token"):
        smith.embed(empty)
    with pytest.raises(ValueError, match="13 blocks, 1 more than the 12 positions"):
        smith.embed(documents(1, 13))
    with pytest.raises(ValueError, match="combine must be one of normal, sum-concat, mean-concat, attention, got 'max'"):
        model(combine="max")
    with pytest.raises(ValueError, match="output must be one of"):
        model(output="last")
    for read in (0, 13):
        with pytest.raises(ValueError, match=r"read in 1\.\.places=12"):
            model(read=read)


# ------------------------------------------------------------------------------------------------------------------ baselines and data


@torch.no_grad()
def test_baselines_do_not_see_padding() -> None:
    tokens = documents()
    tokens[..., -1] = 3
    with seeded(0):
        vectors = torch.randn(SIZE, WIDTH)
        others: list[Siamese] = [
            FlatEncoder(TokenEncoder(SIZE, WIDTH, longest=64), 2, 3),
            HierarchicalRNN(vectors, 2, 3),
            HierarchicalRNN(vectors, 2, 3, depths=(1, 2, 3), group=2),
            WordMean(vectors),
        ]
    padded = F.pad(tokens, (0, 2, 0, 3))
    for other in others:
        torch.testing.assert_close(other.embed(padded), other.embed(tokens), atol=1e-5, rtol=0)
        assert other(tokens, documents(seed=1)).shape == (3,)
        assert other(padded, documents(seed=1)).shape == (3,)
    shuffled = tokens[:, torch.tensor([4, 2, 0, 1, 3])]
    torch.testing.assert_close(others[3].embed(shuffled), others[3].embed(tokens))
    assert flat(padded, 2, 3).shape == (3, 1 + N * (S - 2))
    with pytest.raises(ValueError, match="depths must be some of 1, 2 and 3"):
        HierarchicalRNN(vectors, 2, 3, depths=(4,))
    with pytest.raises(TypeError, match="abstract"):
        Siamese()  # type: ignore[abstract]


def test_the_world_hides_what_it_says() -> None:
    world = TopicWorld()
    pairs = world.evidence(40, "late", generator=stream(0, "world"))
    topic = world.topic_of(pairs.first)
    assert not (topic[:, :4] >= 0).any()
    assert ((topic >= 0).sum((1, 2)) == 16).all()
    one, two = (world.topic_of(tokens).amax((1, 2)) for tokens in (pairs.first, pairs.second))
    assert torch.equal((one == two).float(), pairs.labels)
    assert (world.topic_of(world.evidence(9, "early", generator=stream(0, "world")).first)[:, 4:] < 0).all()
    order = world.order(torch.tensor([0, 1, 2]).repeat(30), generator=stream(0, "order"))
    halves = [world.topic_of(tokens).view(90, 2, -1).amax(2) for tokens in (order.first, order.second)]
    kinds = [halves[0], halves[0].flip(1)]
    for kind, wanted in enumerate(kinds):
        assert torch.equal(halves[1][kind::3], wanted[kind::3])
    assert not (halves[1][2::3, :, None] == halves[0][2::3, None]).any()
    assert order.labels.tolist() == [1, 0, 0] * 30
    vectors = world.vectors(48, 0.7, generator=stream(0, "vectors"))
    assert not vectors[:5].any()
    assert vectors[5:].std().item() == pytest.approx(1, abs=0.05)
    with pytest.raises(ValueError, match="place must be one of early, uniform, late"):
        world.hide(torch.zeros(2, dtype=torch.int64), "middle", generator=stream(0, "world"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="blocks a multiple of 4"):
        TopicWorld(blocks=10)


def test_real_documents_in_halves() -> None:
    found = tuple(
        texts_of.Halves(topic.name, "python" if i % 2 else "other", *texts_of.halve(topic.text.split("\n\n")))
        for i, topic in enumerate(reference_topics()[:9])
    )
    pairs = texts_of.halved_pairs(found)
    assert len(pairs.first) == len(pairs.second) == len(pairs.labels) == 18
    other = texts_of.nearest_of_source(found).tolist()
    assert all(i != j and found[i].source == found[j].source for i, j in enumerate(other))
    known, held = texts_of.fold(found, 1)
    assert {d.name for d in known} & {d.name for d in held} == set()
    assert held[0] == found[1]
    cosine = tfidf_cosines(pairs.first, pairs.first, pairs.first)
    torch.testing.assert_close(cosine[:9], torch.ones(9))
    with pytest.raises(ValueError, match="at least two documents"):
        texts_of.halved_pairs(found[:1])
    with pytest.raises(ValueError, match="least must be at least 2"):
        texts_of.library_documents(1)


def test_measures_of_the_paper() -> None:
    z, labels = torch.tensor([1.0, 1, -1, -1]), torch.tensor([1.0, 0, 1, 0])
    assert quality(z, labels) == {"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "F1": 0.5}
    assert best_threshold(torch.tensor([0.1, 0.9, 0.4, 0.6]), torch.tensor([0.0, 1, 0, 1])) == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------------------------- experiment and explorer


def test_the_quick_experiment() -> None:
    arms = run_quick(EXPERIMENT)
    assert all(0 <= value <= 1 for metrics in arms.values() for value in metrics.values())
    assert arms["SMITH"]["order"] == pytest.approx((arms["SMITH"]["positive"] + arms["SMITH"]["swapped"]) / 2)
    assert arms["bag of words"]["accuracy_text"] >= 0.3


@pytest.mark.skipif(not (REAL / "cranfield").is_dir(), reason="the published files are not here")
def test_paper_scale_runs_on_the_published_abstracts(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    assert len(texts_of.abstracts()) > 1300
    lengths = [len(question.first.split()) for question in texts_of.question_documents()]
    assert len(lengths) > 150
    assert max(lengths) > 1000
    text = Text(source="cranfield", documents=60, vocabulary=500, width=16, hidden=16, read=4, size=16, batch=4, steps=3, pretrain_steps=2)
    found = text_arms(replace(SCALES["paper"], text=text, warmup=1), 0, torch.device("cpu"))
    assert {"accuracy_text", "F1_questions"} <= set(found["SMITH"])
    assert found["TF-IDF"]["accuracy_questions"] > 0.5


def test_the_explorer_is_moved_by_mouse_and_keyboard() -> None:
    shown = touch.explorer()
    assert "SMITH" in shown.text
    shown.point("press", 3.5, 0.5, axes=touch.STRIP)
    assert shown.values["block"] == 4
    for key, name, value in (("ArrowRight", "block", 5), ("ArrowLeft", "block", 4), ("ArrowUp", "read", 24), ("ArrowDown", "read", 23)):
        if name == "read" and key == "ArrowUp":
            shown.set(read=23)
        shown.point("key", 0, 0, key=key)
        assert shown.values[name] == value
    shown.set(view="masked block")
    assert "nearest" in shown.text
    for label in shown.presets:
        shown.preset(label)
        assert shown.text
