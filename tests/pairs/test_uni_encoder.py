"""Uni-Encoder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from real_files import REAL
from torch import Tensor
from torch.nn import functional as F

from mtlearn.lab.seeds import seeded
from mtlearn.layers.attention import SelfAttention
from mtlearn.layers.pretrained import PretrainedBody
from mtlearn.layers.text_encoders import BiEncoder, PolyEncoder, TokenEncoder, masked_mean
from mtlearn.layers.tokens import Vocabulary
from mtlearn.pairs.uni_encoder import explorer as touch
from mtlearn.pairs.uni_encoder import world
from mtlearn.pairs.uni_encoder.experiment import EXPERIMENT, WAYS, UniSettings, build
from mtlearn.pairs.uni_encoder.method import (
    ATTENTIONS,
    CONTEXT,
    NOTHING,
    UNSEEN,
    Attention,
    Positions,
    UniEncoder,
    attention_mask,
    cost,
    each_alone,
    hide,
    in_batch,
    lay_out,
    pool_loss,
    reach,
    training_loss,
)
from mtlearn.pairs.uni_encoder.selection import Index, SelectionSettings, TextSettings, _start, cranfield, mixed, same_pages, text_recall, train_text
from mtlearn.pairs.uni_encoder.texts import pools, read_dialogues, recent, wrapped

PUBLIC = json.loads((Path(__file__).parent / "public" / "uni_encoder.json").read_text())
HEADED: tuple[Attention, ...] = ("arrow", "strict", "square")


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(4, 40, shape, generator=torch.Generator().manual_seed(seed))


def padded(rows: Tensor, lengths: list[int]) -> Tensor:
    return rows * (torch.arange(rows.shape[-1]) < torch.tensor(lengths)[:, None]).long()


CONTEXTS = padded(tokens(2, 7), [7, 4])
POOLS = padded(tokens(8, 5, seed=1), [5, 3, 1, 4, 2, 5, 5, 3]).view(2, 4, 5)


def model_of(attention: Attention = "arrow", *, layers: int = 2, seed: int = 0, positions: Positions = "repeated", **more: int) -> UniEncoder:
    """Random, with embeddings large enough that every path through the attention can be seen in a score."""
    torch.manual_seed(seed)
    body = TokenEncoder(40, 16, 2, layers, 24, longest=40)
    for table in (body.token, body.position, body.segment):
        torch.nn.init.normal_(table.weight)
    body.token.weight.data[0] = 0
    return UniEncoder(body, attention, positions=positions, **more).eval()


# ----------------------------------------------------------------------------------------------------------------------- one sequence


def test_all_candidates_stand_where_the_reply_stands() -> None:
    laid = lay_out(torch.tensor([[11, 12, 13, 0], [14, 15, 0, 0]]), torch.tensor([[[5, 6, 0], [7, 8, 9]], [[5, 0, 0], [6, 7, 0]]]))
    assert laid.tokens.tolist() == [[11, 12, 13, 5, 6, 7, 8, 9], [14, 15, 5, 6, 7, 0, 0, 0]]
    assert laid.positions.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5], [0, 1, 2, 2, 3, 0, 0, 0]]
    assert laid.segments.tolist() == [[-1, -1, -1, 0, 0, 1, 1, 1], [-1, -1, 0, 1, 1, -2, -2, -2]]
    assert laid.types.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0, 0, 0]]
    running = lay_out(torch.tensor([[11, 12, 13]]), torch.tensor([[[5, 6, 0], [7, 8, 9]]]), positions="running")
    assert running.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    alone = lay_out(torch.tensor([[11, 12, 13]]), torch.tensor([[[5, 6, 0], [7, 8, 9]]]), positions="alone")
    assert alone.positions.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert not alone.types.any()


def test_padding_may_stand_anywhere() -> None:
    tidy = lay_out(torch.tensor([[11, 12, 0]]), torch.tensor([[[5, 6, 0], [7, 0, 0]]]))
    untidy = lay_out(torch.tensor([[0, 11, 12]]), torch.tensor([[[5, 0, 6], [0, 0, 7]]]))
    for name in ("tokens", "positions", "types", "segments"):
        assert torch.equal(getattr(tidy, name), getattr(untidy, name))


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 6), lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_the_mask_has_as_many_ones_as_the_formula_says(n: int, lengths: list[int]) -> None:
    pool = padded(tokens(len(lengths), 5), lengths)[None]
    segments = lay_out(tokens(1, n), pool).segments
    total, own = sum(lengths), sum(m * m for m in lengths)
    assert attention_mask(segments, "arrow").sum() == n * n + 2 * n * total + own == cost(n, lengths).pairs
    assert attention_mask(segments, "strict").sum() == n * n + n * total + own == cost(n, lengths, "strict").pairs
    assert attention_mask(segments, "diagonal").sum() == n * n + own == cost(n, lengths, "diagonal").pairs
    assert attention_mask(segments, "square").sum() == (n + total) ** 2 == cost(n, lengths, "square").pairs
    assert cost(n, lengths, "cross").pairs == sum((n + m) ** 2 for m in lengths)
    assert torch.equal(attention_mask(segments, "light arrow"), attention_mask(segments, "diagonal"))


def test_padding_is_neither_looked_at_nor_looks() -> None:
    segments = torch.tensor([[CONTEXT, 0, 1, NOTHING]])
    for attention in ATTENTIONS:
        mask = attention_mask(segments, attention)
        assert not mask[:, 3].any()
        assert not mask[:, :, 3].any()


def test_a_candidate_hears_of_another_through_the_context_in_two_layers() -> None:
    segments = torch.tensor([CONTEXT, CONTEXT, 0, 0, 1])
    arrow, strict, square = (attention_mask(segments, attention) for attention in HEADED)
    assert not reach(arrow, 1)[2, 4]
    assert reach(arrow, 2)[2, 4]
    assert reach(square, 1)[2, 4]
    assert torch.equal(reach(strict, 7), strict)
    diagonal = attention_mask(segments, "diagonal")
    assert torch.equal(reach(diagonal, 7), diagonal)


# ------------------------------------------------------------------------------------------------------------- equal to the authors' code


@pytest.mark.parametrize("case", PUBLIC["cases"], ids=lambda case: f"{case['attention']}, {case['pool']} candidates")
def test_masks_positions_and_scores_are_those_of_the_published_code(case: dict[str, object]) -> None:
    transformers = pytest.importorskip("transformers")
    body = transformers.BertModel(transformers.BertConfig(**PUBLIC["config"])).eval()
    attention: Attention = "diagonal" if case["attention"] == "diag" else case["attention"]  # type: ignore[assignment]
    model = UniEncoder(PretrainedBody(body, 0), "arrow", longest=32)
    for module in (body, model.head):
        assert module is not None
        state = {
            name: (0.3 * torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.7 + len(name))).view(value.shape).to(value.dtype)
            for name, value in module.state_dict().items()
            if value.is_floating_point()
        }
        module.load_state_dict(state, strict=False)
    model.attention = attention
    longest = max(len(reply) for replies in PUBLIC["replies"] for reply in replies)
    context = torch.tensor([row + [0] * (6 - len(row)) for row in PUBLIC["contexts"]])
    pool = int(case["pool"])  # type: ignore[call-overload]
    replies = torch.tensor([[reply + [0] * (longest - len(reply)) for reply in replies[:pool]] for replies in PUBLIC["replies"]])
    laid = model.lay_out(context, replies)
    assert laid.positions.tolist() == case["positions"]
    mask = torch.tensor(case["mask"]).bool()
    if mask.dim() == 2:  # the square is given as which tokens are there
        mask = mask[:, None] & mask[:, :, None]
    assert torch.equal(attention_mask(laid.segments, attention), mask)
    with torch.no_grad():
        logits = model(context, replies)
    torch.testing.assert_close(logits, torch.tensor(case["logits"]), atol=1e-5, rtol=1e-5)


def test_masked_attention_is_that_of_the_library() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(16, 2)
    mask = attention_mask(lay_out(CONTEXTS[:1], POOLS[:1]).segments)
    x = torch.randn(1, mask.shape[-1], 16)
    query, key, value = layer.query_key_value(x).view(1, -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
    wanted = layer.out(F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None]).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, mask), wanted)


# ---------------------------------------------------------------------------------------------------------- equal to the other paradigms


def cross_encoder(model: UniEncoder, context: Tensor, candidate: Tensor) -> Tensor:
    """Written out: one ordinary sequence, ordinary positions, no mask."""
    context, candidate = context[context != 0], candidate[candidate != 0]
    both = torch.cat([context, candidate])[None]
    types = torch.cat([torch.zeros_like(context), torch.ones_like(candidate)])[None]
    assert model.head is not None
    scored: Tensor = model.head(model.body(both, types=types)[0, len(context) :].mean(0))
    return scored[0]


@pytest.mark.parametrize("attention", ["arrow", "square"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_one_candidate_makes_it_a_cross_encoder(attention: Attention, layers: int) -> None:
    model = model_of(attention, layers=layers)
    wanted = torch.stack(
        [torch.stack([cross_encoder(model, context, reply) for reply in pool]) for context, pool in zip(CONTEXTS, POOLS, strict=True)]
    )
    torch.testing.assert_close(each_alone(model, CONTEXTS, POOLS), wanted, atol=1e-5, rtol=1e-5)
    together = model(CONTEXTS, POOLS)
    if layers == 1 and attention == "arrow":
        torch.testing.assert_close(together, wanted, atol=1e-5, rtol=1e-5)
    else:  # the pool is heard
        assert (together - wanted).abs().max() > 1e-3


def test_the_strict_mask_is_a_cross_encoder_whose_context_is_blind() -> None:
    model = model_of("strict", layers=3)
    together = model(CONTEXTS, POOLS)
    torch.testing.assert_close(together, each_alone(model, CONTEXTS, POOLS), atol=1e-5, rtol=1e-5)
    for row, pool in enumerate(POOLS):
        for number, reply in enumerate(pool):
            both = torch.cat([CONTEXTS[row][CONTEXTS[row] != 0], reply[reply != 0]])[None]
            n = int((CONTEXTS[row] != 0).sum())
            seen = torch.ones(1, both.shape[1], both.shape[1], dtype=torch.bool)
            seen[:, :n, n:] = False
            states = model.body(both, types=(torch.arange(both.shape[1]) >= n).long()[None], mask=seen)
            assert model.head is not None
            torch.testing.assert_close(together[row, number], model.head(states[0, n:].mean(0))[0], atol=1e-5, rtol=1e-5)
    assert (together[0, 0] - cross_encoder(model, CONTEXTS[0], POOLS[0, 0])).abs() > 1e-3
    shallow = model_of("strict", layers=1)
    torch.testing.assert_close(shallow(CONTEXTS, POOLS)[0, 0], cross_encoder(shallow, CONTEXTS[0], POOLS[0, 0]), atol=1e-5, rtol=1e-5)


def test_the_diagonal_mask_is_a_bi_encoder() -> None:
    model = model_of("diagonal", positions="alone")
    bi = BiEncoder(model.body)
    laid = model.lay_out(CONTEXTS, POOLS)
    states = model.states(laid)
    for number in range(4):
        found = masked_mean(states, laid.segments == number)
        torch.testing.assert_close(F.normalize(found, dim=-1), bi.embed(POOLS[:, number]), atol=1e-5, rtol=1e-5)
        of_context = masked_mean(states, laid.segments == CONTEXT)
        torch.testing.assert_close(F.normalize(of_context, dim=-1), bi.embed(CONTEXTS), atol=1e-5, rtol=1e-5)
        scaled = model(CONTEXTS, POOLS)[:, number] * 4 / (found.norm(dim=1) * of_context.norm(dim=1))  # 4, the root of the width
        torch.testing.assert_close(scaled, bi(CONTEXTS, POOLS[:, number]), atol=1e-5, rtol=1e-5)


def test_the_light_arrow_is_a_poly_encoder() -> None:
    model = model_of("light arrow", positions="alone", codes=3)
    poly = PolyEncoder(model.body, 3)
    assert model.codes is not None
    poly.codes = model.codes
    torch.testing.assert_close(model(CONTEXTS, POOLS), poly(CONTEXTS, POOLS), atol=1e-5, rtol=1e-5)


def test_diagonal_vectors_depend_on_their_own_text_alone() -> None:
    model = model_of("diagonal")
    laid = model.lay_out(CONTEXTS, POOLS)
    other = replace(laid, tokens=laid.tokens.where(laid.segments != CONTEXT, 5))
    before, after = model.states(laid), model.states(other)
    inside = laid.segments >= 0
    torch.testing.assert_close(before[inside], after[inside], atol=1e-6, rtol=1e-6)
    other = replace(laid, tokens=laid.tokens.where(laid.segments < 0, 5))
    torch.testing.assert_close(before[laid.segments == CONTEXT], model.states(other)[laid.segments == CONTEXT], atol=1e-6, rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------------------ the pool


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_order_of_the_pool_does_not_matter(attention: Attention) -> None:
    order = torch.tensor([2, 0, 3, 1])
    model = model_of(attention)
    torch.testing.assert_close(model(CONTEXTS, POOLS[:, order]), model(CONTEXTS, POOLS)[:, order], atol=1e-5, rtol=1e-5)


def test_with_running_positions_the_order_matters() -> None:
    order = torch.tensor([2, 0, 3, 1])
    model = model_of(positions="running")
    assert (model(CONTEXTS, POOLS[:, order]) - model(CONTEXTS, POOLS)[:, order]).abs().max() > 1e-2


@pytest.mark.parametrize(("attention", "layers", "heard"), [("arrow", 1, False), ("arrow", 2, True), ("strict", 3, False), ("square", 1, True)])
def test_another_candidate_is_heard_only_through_the_context(attention: Attention, layers: int, heard: bool) -> None:
    model = model_of(attention, layers=layers)
    other = POOLS.clone()
    other[:, 2, 0] = 39
    change = (model(CONTEXTS, other) - model(CONTEXTS, POOLS))[:, [0, 1, 3]].abs().max()
    assert change > 1e-3 if heard else change < 1e-5


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_equal_candidates_get_equal_scores(attention: Attention) -> None:
    twins = POOLS[:, [0, 1, 0, 3]]
    found = model_of(attention)(CONTEXTS, twins)
    torch.testing.assert_close(found[:, 0], found[:, 2], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_padding_changes_nothing(attention: Attention) -> None:
    model = model_of(attention)
    wanted = model(CONTEXTS, POOLS)
    more = model(F.pad(CONTEXTS, (0, 3)), F.pad(POOLS, (0, 2)))
    torch.testing.assert_close(more, wanted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(model(CONTEXTS[1:], POOLS[1:]), wanted[1:], atol=1e-6, rtol=1e-5)
    assert model(CONTEXTS[:1], POOLS[:1]).shape == (1, 4)


def test_pools_of_several_sizes_stand_in_one_batch() -> None:
    model = model_of()
    present = torch.tensor([[True, True, False, True], [True, False, False, False]])
    found = model(CONTEXTS, POOLS, present)
    assert torch.equal(found.isfinite(), present)
    torch.testing.assert_close(found[:1, [0, 1, 3]], model(CONTEXTS[:1], POOLS[:1, [0, 1, 3]]), atol=1e-5, rtol=1e-5)
    alone = each_alone(model, CONTEXTS, POOLS, present)
    torch.testing.assert_close(found[1, 0], alone[1, 0], atol=1e-5, rtol=1e-5)
    assert torch.equal(alone.isfinite(), present)
    pool_loss(found, torch.tensor([3, 0])).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# ----------------------------------------------------------------------------------------------------------------------- training


def test_the_loss_is_that_of_the_library_and_has_gradients_everywhere() -> None:
    model = model_of("light arrow", codes=3)
    logits, label = model(CONTEXTS, POOLS), torch.tensor([1, 3])
    torch.testing.assert_close(pool_loss(logits, label), F.cross_entropy(logits, label))
    pool_loss(logits, label).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in model.parameters())


def test_the_right_replies_of_the_batch_are_everyones_pool() -> None:
    replies = POOLS[:, 1]
    candidates, label = in_batch(replies)
    assert candidates.shape == (2, 2, 5)
    assert label.tolist() == [0, 1]
    assert torch.equal(candidates[0], replies)
    assert torch.equal(candidates[1], replies)
    with pytest.raises(ValueError, match=r"at least one, got \(0, 3\)"):
        in_batch(torch.zeros(0, 3, dtype=torch.long))


def test_hidden_words_are_a_seventh_and_mostly_masks() -> None:
    seen = tokens(200, 100)
    seen[:, :10] = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 1])
    shown, wanted = hide(seen, mask=3, words=(4, 40), generator=torch.Generator().manual_seed(0))
    chosen = wanted != UNSEEN
    assert not chosen[:, :10].any()
    assert torch.equal(wanted[chosen], seen[chosen])
    assert torch.equal(shown[~chosen], seen[~chosen])
    assert chosen[:, 10:].float().mean() == pytest.approx(0.15, abs=0.01)
    assert (shown[chosen] == 3).float().mean() == pytest.approx(0.8, abs=0.03)
    assert (shown[chosen] == seen[chosen]).float().mean() == pytest.approx(0.1 + 0.1 / 36, abs=0.02)
    assert shown.min() >= 0
    with pytest.raises(ValueError, match=r"share must be in 0\.\.1"):
        hide(seen, mask=3, words=(4, 40), share=1.5)


def test_training_adds_both_losses_on_the_hidden_sequence() -> None:
    model = model_of(words=40)
    label = torch.tensor([1, 3])

    def draws() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    found = training_loss(model, CONTEXTS, POOLS, label, mask=3, words=(4, 40), generator=draws())
    laid = model.lay_out(CONTEXTS, POOLS)
    shown, wanted = hide(laid.tokens, mask=3, words=(4, 40), generator=draws())
    states = model.states(replace(laid, tokens=shown))
    assert model.words is not None
    both = F.cross_entropy(model.score(states, laid), label) + F.cross_entropy(model.words(states).flatten(0, 1), wanted.flatten())
    torch.testing.assert_close(found, both)
    none = training_loss(model, CONTEXTS, POOLS, label, mask=3, words=(4, 40), share=0)
    torch.testing.assert_close(none, pool_loss(model(CONTEXTS, POOLS), label))
    with pytest.raises(ValueError, match="no head to guess words"):
        training_loss(model_of(), CONTEXTS, POOLS, label, mask=3, words=(4, 40))


# ------------------------------------------------------------------------------------------------------------------- a pretrained body


def test_a_bert_of_the_library_is_the_body() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, max_position_embeddings=12
    )
    bert = transformers.BertModel(config).eval()
    model = UniEncoder(PretrainedBody(bert, 0), longest=12).eval()
    alone = each_alone(model, CONTEXTS, POOLS)
    for row, pool in enumerate(POOLS):
        for number, reply in enumerate(pool):
            context, candidate = CONTEXTS[row][CONTEXTS[row] != 0], reply[reply != 0]
            both = torch.cat([context, candidate])[None]
            types = (torch.arange(both.shape[1]) >= len(context)).long()[None]
            states = bert(input_ids=both, token_type_ids=types).last_hidden_state
            assert model.head is not None
            torch.testing.assert_close(alone[row, number], model.head(states[0, len(context) :].mean(0))[0], atol=1e-5, rtol=1e-5)
    found = model(CONTEXTS, POOLS)
    assert found.isfinite().all()
    pool_loss(found, torch.tensor([0, 1])).backward()  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match="candidate 0 need 13 positions, 1 more than the 12"):
        model(CONTEXTS, F.pad(POOLS, (0, 1), value=7))


# ------------------------------------------------------------------------------------------------------------------------------ texts


VOCABULARY = Vocabulary.of(["the matrix of a linear system", "solve the system", "a graph"], 30)


def test_texts_become_pools() -> None:
    context, replies, present = pools(
        VOCABULARY, ["solve linear system", "matrix"], [["a graph", "the matrix of unheard words"], ["system"]], context=8, candidate=8
    )
    assert present.tolist() == [[True, True], [True, False]]
    start, end, unknown = (VOCABULARY.number[name] for name in ("[CLS]", "[SEP]", "[UNK]"))
    assert context[1].tolist() == [start, VOCABULARY.number["matrix"], end, 0, 0]
    assert (context[:, 0] == start).all()
    assert (replies[0, 1] == unknown).sum() == 2
    assert not replies[1, 1].any()
    found = model_of()(context, replies, present)
    assert torch.equal(found.isfinite(), present)


def test_texts_that_do_not_fit_are_refused_or_cut() -> None:
    with pytest.raises(ValueError, match=r"text 0 has 3 tokens, 1 more than the limit of 2; truncate=True"):
        wrapped(VOCABULARY, ["solve the system"], 4)
    assert wrapped(VOCABULARY, ["solve the system"], 4, truncate=True).tolist() == [
        [VOCABULARY.number[word] for word in ("[CLS]", "solve", "the", "[SEP]")]
    ]
    with pytest.raises(ValueError, match="text 1 has no words"):
        wrapped(VOCABULARY, ["solve", " ..."], 9)
    with pytest.raises(ValueError, match="most must be at least 3"):
        wrapped(VOCABULARY, ["solve"], 2)
    with pytest.raises(ValueError, match=r"has no \[UNK\]"):
        wrapped(Vocabulary.of(["solve"], 9, special=("[PAD]",)), ["solve"], 9)
    with pytest.raises(ValueError, match="one pool a context is needed, got 1 for 2"):
        pools(VOCABULARY, ["solve", "system"], [["a graph"]], context=9, candidate=9)
    with pytest.raises(ValueError, match="pool 1 is empty"):
        pools(VOCABULARY, ["solve", "system"], [["a graph"], []], context=9, candidate=9)
    with pytest.raises(ValueError, match="there is no context"):
        pools(VOCABULARY, [], [], context=9, candidate=9)


def test_a_tokeniser_of_the_library_puts_its_own_tokens_around_a_text(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from mtlearn.layers.pretrained import PretrainedTokeniser

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "solve", "system", "graph"]))
    tokeniser = PretrainedTokeniser(transformers.BertTokenizer(str(tmp_path / "vocab.txt")))
    context, replies, _ = pools(tokeniser, ["solve system"], [["graph", "no system"]], context=8, candidate=8)
    assert context.tolist() == [[2, 5, 6, 3]]
    assert replies.tolist() == [[[2, 7, 3, 0], [2, 1, 6, 3]]]


def test_a_long_dialogue_keeps_its_newest_utterances_whole() -> None:
    said = [[1, 2, 3], [4, 5], [6]]
    assert recent(said, 9) == [1, 2, 3, 4, 5, 6]
    assert recent(said, 5) == [4, 5, 6]
    assert recent(said, 4, persona=[9]) == [9, 4, 5, 6]
    assert recent(said, 2, persona=[9]) == [9, 6]
    with pytest.raises(ValueError, match="the newest utterance has 1 tokens, 1 more"):
        recent(said, 1, persona=[9])
    with pytest.raises(ValueError, match="at least one utterance"):
        recent([], 5)


def test_dialogues_are_read_in_their_published_form() -> None:
    lines = "1\thello\twhat is up\tnot much\n0\thello\twhat is up\tblue\n1\tbye\tsee you\n0\tbye\tno\n"
    first, second = read_dialogues(lines, 2)
    assert first == (["hello", "what is up"], ["not much", "blue"], [1, 0])
    assert second == (["bye"], ["see you", "no"], [1, 0])
    with pytest.raises(ValueError, match="4 lines are no whole pools of 3"):
        read_dialogues(lines, 3)
    with pytest.raises(ValueError, match="line 3 has another context than line 1"):
        read_dialogues(lines, 4)
    with pytest.raises(ValueError, match="line 1 must be a label"):
        read_dialogues("hello\tworld\n", 1)


# ------------------------------------------------------------------------------------------------------------------------------ errors


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match="the pool is empty"):
        lay_out(CONTEXTS, POOLS[:, :0])
    with pytest.raises(ValueError, match="candidate 2 of row 1 has no token"):
        lay_out(CONTEXTS, POOLS * (torch.arange(8).view(2, 4, 1) != 6))
    with pytest.raises(ValueError, match="context 1 has no token"):
        lay_out(CONTEXTS * torch.tensor([[1], [0]]), POOLS)
    with pytest.raises(ValueError, match="pool 1 is empty"):
        lay_out(CONTEXTS, POOLS, present=torch.tensor([[True] * 4, [False] * 4]))
    with pytest.raises(ValueError, match=r"present must be bool \(2, 4\)"):
        lay_out(CONTEXTS, POOLS, present=torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"context must be \(B, n\)"):
        lay_out(CONTEXTS[:1], POOLS)
    with pytest.raises(ValueError, match="positions must be one of repeated, running, alone, got 'each'"):
        lay_out(CONTEXTS, POOLS, positions="each")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positions must be one of"):
        UniEncoder(TokenEncoder(9), positions="each")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="attention must be one of arrow, strict, diagonal, light arrow, square, got 'bow'"):
        UniEncoder(TokenEncoder(9), "bow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="codes must be at least 1, got 0"):
        UniEncoder(TokenEncoder(9), codes=0)
    short = UniEncoder(TokenEncoder(40, 16, 2, longest=9))
    with pytest.raises(ValueError, match="row 0: its context and candidate 0 need 12 positions, 3 more than the 9 of the body"):
        short(CONTEXTS, POOLS)
    with pytest.raises(ValueError, match="row 0: its context need 11 positions, 2 more than the 9"):
        UniEncoder(TokenEncoder(40, 16, 2, longest=9), positions="alone")(tokens(1, 11), POOLS[:1])
    logits = torch.zeros(2, 4)
    for label in ([4, 0], [-1, 0], [0]):
        with pytest.raises(ValueError, match=r"label must be \(2,\) between 0 and 3"):
            pool_loss(logits, torch.tensor(label))
    with pytest.raises(ValueError, match="right candidate is not finite"):
        pool_loss(logits.index_fill(1, torch.tensor([3]), -torch.inf), torch.tensor([3, 0]))
    with pytest.raises(ValueError, match="layers must be at least 1"):
        reach(torch.ones(2, 2, dtype=torch.bool), 0)
    with pytest.raises(ValueError, match="there must be a candidate"):
        cost(3, [])
    with pytest.raises(ValueError, match=r"attention must be one of .*square, cross, got 'bow'"):
        cost(3, [1], "bow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tokens must be between 0 and 39"):
        model_of()(CONTEXTS + 100 * (CONTEXTS > 0), POOLS)


# ------------------------------------------------------------------------------------------------------------------------- the world


@pytest.mark.parametrize("parts", [1, 2])
def test_one_candidate_agrees_with_the_facts(parts: int) -> None:
    context, candidates, label = world.draw(300, 6, 8, parts=parts, generator=torch.Generator().manual_seed(0))
    words = candidates[:, :, 1:-1]
    true = (words[..., None] == context[:, None, None]).any(-1)
    assert torch.equal(true.all(2).float().argmax(1), label)
    assert (true.all(2).sum(1) == 1).all()
    assert true.float().sum(2)[~true.all(2)].eq(parts - 1).all()
    keys, values = (context - world.FIRST) // world.VALUES, (context - world.FIRST) % world.VALUES
    used = (words - world.FIRST) // world.VALUES, (words - world.FIRST) % world.VALUES
    assert (used[0][..., None] == keys[:, None, None]).any(-1).all()
    assert (used[1][..., None] == values[:, None, None]).any(-1).all()
    easy = world.draw(300, 6, 8, parts=parts, easy=1.0, generator=torch.Generator().manual_seed(0))[1]
    assert not torch.equal(easy, candidates)
    with pytest.raises(ValueError, match=r"facts must be in 2\.\.16"):
        world.draw(1, 17, 8, generator=torch.Generator())


def test_a_fact_is_the_sum_of_its_key_and_its_value() -> None:
    with seeded(0):
        table = world.FactEmbedding(8)
    found = table(torch.tensor([0, world.END, world.FIRST + 3 * world.VALUES + 5]))
    assert not found[0].any()
    assert torch.equal(found[1], table.special.weight[world.END])
    assert torch.equal(found[2], table.key.weight[3] + table.value.weight[5])


def test_names_of_attentions_are_the_type() -> None:
    assert get_args(Attention) == ATTENTIONS


# ------------------------------------------------------------------------------------------------------------------------ real texts


SMALL = TextSettings(vocabulary=300, width=16, heads=2, hidden=16, near=6, pool=4, steps=2, batch=3, warmup=1, libraries=("networkx",))


def test_pools_hold_the_right_reply_and_the_nearest_others() -> None:
    index = Index(["solve a linear system", "solve an equation", "draw a graph", "linear regression"])
    found = index.nearest(["linear system"], 3, right=torch.tensor([2]))
    assert found.tolist() == [[2, 0, 3]]
    assert index.nearest(["linear system"], 2).tolist() == [[0, 3]]
    pool, label = mixed(found.expand(20, 3), generator=torch.Generator().manual_seed(0))
    assert (pool.gather(1, label[:, None]) == 2).all()
    assert len(set(label.tolist())) > 1
    with pytest.raises(ValueError, match="count must be between 1 and 4, got 5"):
        index.nearest(["linear"], 5)


@pytest.mark.parametrize("attention", ["arrow", "cross", "diagonal"])
def test_models_of_the_documentation_are_trained_and_measured(attention: str) -> None:
    settings = replace(SMALL, attention=attention)
    pages = same_pages(settings)
    assert not {pages.replies[i].partition(": ")[2] for i in pages.train} & {pages.replies[i].partition(": ")[2] for i in pages.test}
    with seeded(0):
        model = train_text(settings)
    assert all(0 <= value <= 1 for value in text_recall(model, settings, "validation", 4))


@pytest.mark.skipif(not (REAL / "cranfield").is_dir(), reason="the published files are not here")
def test_paper_scale_runs_on_the_published_abstracts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    small = SelectionSettings(
        vocabulary=500, width=16, layers=1, context=16, candidate=24, pool=4, steps=2, batch=3, warmup=1, test=12, questions=20,
        ways=("arrow", "arrow, hidden words", "cross", "poly-16", "bi"),
    )  # fmt: skip
    arms = cranfield(small, 0, torch.device("cpu"))
    assert set(arms) == {"TF-IDF", *small.ways}
    assert arms["TF-IDF"]["cranfield_first"] > 0.2
    assert all(0 <= value <= 1 for metrics in arms.values() for value in metrics.values())
    assert {metric for metrics in arms.values() for metric in metrics} <= set(EXPERIMENT.units)


def test_a_pretrained_encoder_reads_the_abstracts_by_one_argument(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "wing", "flow", "heat"]
    (tmp_path / "vocab.txt").write_text("\n".join(names))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=32
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    body, tokeniser, mask, range_of_words = _start(SelectionSettings(encoder=str(tmp_path)), [])
    assert (mask, range_of_words) == (4, (5, 8))
    assert body.width == 16
    model = UniEncoder(body, words=len(tokeniser)).eval()  # type: ignore[arg-type]
    context, replies, _ = pools(tokeniser, ["flow heat", "wing"], [["wing", "flow"], ["heat", "wing flow"]], context=8, candidate=8)
    assert training_loss(model, context, replies, torch.tensor([0, 1]), mask=mask, words=range_of_words).isfinite()


# ---------------------------------------------------------------------------------------------------------- experiment and explorers


def test_the_quick_experiment() -> None:
    arms = run_quick(EXPERIMENT)
    assert set(WAYS) <= set(arms)
    assert arms["arrow"]["shuffle"] < 1e-4
    assert arms["strict"]["replaced"] < 1e-5
    assert arms["arrow, running positions"]["shuffle"] > arms["arrow"]["shuffle"]
    assert arms["square"]["replaced"] > arms["strict"]["replaced"]


def test_all_ways_start_from_the_same_encoder() -> None:
    quick = EXPERIMENT.scales["quick"]
    assert isinstance(quick, UniSettings)
    first, *others = (build(quick, way, 3).body.state_dict() for way in WAYS.values())  # type: ignore[attr-defined]
    for other in others:
        assert all(torch.equal(other[name], value) for name, value in first.items())


def test_the_masks_are_moved_by_mouse_and_keyboard() -> None:
    shown = touch.explorer()
    assert "candidate 4 hears of 4 others in two layers, through the context" in shown.text
    shown.point("press", 2.0, 7.0, axes=touch.MASK)
    assert shown.values["selected"] == 1
    shown.point("press", 10.0, 2.0, axes=touch.MASK)
    assert shown.values["selected"] == 2
    for key, value in (("ArrowRight", 3), ("ArrowDown", 4), ("ArrowLeft", 3), ("ArrowUp", 2)):
        shown.point("key", 0, 0, key=key)
        assert shown.values["selected"] == value
    shown.preset("the leak closed")
    assert "hears of no other" in shown.text
    assert "moved by at most 0;" in shown.text
    shown.preset("shuffle: nothing moves")
    assert "moved by at most 0;" in shown.text
    shown.preset("running positions, shuffled")
    assert "moved by at most 0;" not in shown.text
    shown.preset("one candidate: a cross-encoder")
    assert "1 candidates: 81 ones" in shown.text
    shown.set(count=8, attention="cross", selected=8)
    assert "hears of no other" in shown.text
    shown.set(attention="light arrow", change="a copy of candidate 1")
    assert "meets the context once, after the layers" in shown.text


def test_a_typed_description_is_ranked_by_three_models() -> None:
    shown = touch.search()
    assert "chosen by bi" in shown.text
    for words, reply in (
        ("", "there is no word"),
        ("  ... ", "there is no word"),
        ("zyxw qqqq", "the pool is arbitrary"),
        ("shortest path " * 30, "tokens are read"),
        ("zyxw of a graph", "unknown to the models: zyxw"),
    ):
        shown.set(query=words)
        assert reply in shown.text
    shown.set(query=touch.EXAMPLES[2], count=2)
    assert "of 2 functions" in shown.text
    found = touch.ranked(touch.EXAMPLES[2], 10)
    assert found is not None
    for share in found.shares.values():
        assert share.sum() == pytest.approx(1, abs=1e-5)
    assert set(touch.text_figures()) == {"uni", "cross", "bi"}
