import math
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from real_files import REAL
from torch import Tensor
from torch.nn import functional as F

from mtlearn.lab.checkpoints import load, provenance
from mtlearn.lab.ranking import ranking_by_query
from mtlearn.lab.result import Result, Spread
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.embedding import embed
from mtlearn.layers.lora import lora_layers, merge_lora, merged_state
from mtlearn.layers.text_encoders import TokenEncoder
from mtlearn.layers.tokens import words
from mtlearn.retrieval.llm_dense import experiment, worlds
from mtlearn.retrieval.llm_dense import explorer as touch
from mtlearn.retrieval.llm_dense.encoder import encode
from mtlearn.retrieval.llm_dense.exercises import EXERCISES
from mtlearn.retrieval.llm_dense.experiment import EXPERIMENT
from mtlearn.retrieval.llm_dense.method import (
    END,
    MASK,
    SEPARATOR,
    START,
    CausalBody,
    DenseRetriever,
    EndingTokeniser,
    HashedWords,
    adapt,
    batch_rows,
    hard_negatives,
    masked_word_loss,
    next_token_loss,
    pieces,
    pool,
    pretrained_retriever,
    ranking,
    retrieval_loss,
    rotate,
    task_order,
    trim,
    without_positives,
)

KNOWN = ("matrix", "inverse", "of", "the", "sort", "array")
TOKENS = HashedWords(KNOWN, 7)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=stream(seed, "draw"), dtype=dtype)


def decoder(width: int = 16, seed: int = 0) -> CausalBody:
    with seeded(seed):
        body = CausalBody(40, width).double()
        for p in body.parameters():
            p.data += 0.1 * torch.randn_like(p)
        return body


def encoder(longest: int = 12) -> TokenEncoder:
    with seeded(0):
        body = TokenEncoder(40, 16, longest=longest, types=1, norm_first=True).double()
        for p in body.parameters():
            p.data += 0.1 * torch.randn_like(p)
        return body


def row(*numbers: int) -> Tensor:
    return torch.tensor([numbers])


# -------------------------------------------------------------------------------------------------------------------------------- texts


def test_every_text_ends_with_the_end_token_and_unknown_words_share_buckets() -> None:
    assert pieces("The LU12 of x_i") == ["the", "lu", "1", "2", "of", "x", "i"]
    assert len(TOKENS) == 5 + 6 + 7
    tokens = TOKENS(["sort the array", "zebra"], 8)
    assert tokens[0].tolist() == [9, 8, 10, END]
    assert tokens[1, 1:].tolist() == [END, 0, 0] and 11 <= int(tokens[1, 0]) < 18
    assert TOKENS.numbers("zebra") == TOKENS.numbers("Zebra") == [int(tokens[1, 0])]
    assert TOKENS(["sort the array of"], 3, truncate=True).tolist() == [[9, 8, END]]
    assert TOKENS.with_start(True)(["sort the array"], 4, truncate=True).tolist() == [[START, 9, 8, END]]
    found = HashedWords.of(["b b a", "a b c"], 5 + 2 + 1, 1)
    assert found.known == ("b", "a") and len(found) == 8


def test_instructions_stand_before_the_query_and_a_separator() -> None:
    assert TOKENS(["sort", "sort"], 4, instructions=["the inverse", ""]).tolist() == [[8, 6, SEPARATOR, 9, END], [9, END, 0, 0, 0]]
    assert TOKENS.with_start(True)(["sort"], 4, instructions=["the"]).tolist() == [[START, 8, SEPARATOR, 9, END]]
    # those of an instruction come on top of what a text may have
    assert TOKENS(["sort the array"], 3, truncate=True, instructions=["the"]).tolist() == [[8, SEPARATOR, 9, 8, END]]


def test_trim_leaves_out_columns_of_padding_alone() -> None:
    assert trim(torch.tensor([[4, 0, 0], [5, 6, 0]])).tolist() == [[4, 0], [5, 6]]
    assert trim(torch.zeros(2, 3, dtype=torch.int64)).shape == (2, 1)


# --------------------------------------------------------------------------------------------------------------------------- backbones


@settings(deadline=None, max_examples=25)
@given(left=st.integers(0, 4), right=st.integers(0, 4), seed=st.integers(0, 50))
def test_padding_on_either_side_changes_no_vector(left: int, right: int, seed: int) -> None:
    body, text = decoder(), torch.randint(5, 40, (1, 5), generator=stream(seed, "text"))
    text[0, -1] = END
    wide = F.pad(text, (left, right))
    for pooling in ("cls", "mean", "last"):
        model = DenseRetriever(body, pooling)  # type: ignore[arg-type]
        torch.testing.assert_close(model(wide), model(text), atol=1e-6, rtol=0)
    assert body(wide).isfinite().all()  # the padding too, which may see nothing but itself


def test_absolute_positions_need_explicit_places_under_left_padding() -> None:
    body, text = encoder(), row(START, 7, 8, 9, END)
    model = DenseRetriever(body, "cls")
    torch.testing.assert_close(model(F.pad(text, (0, 3))), model(text))
    padded = F.pad(text, (3, 0))
    assert (body(padded)[0, 3] - body(text)[0, 0]).abs().max() > 1e-3
    places = ((padded != 0).cumsum(1) - 1).clamp(min=0)
    torch.testing.assert_close(body(padded, positions=places)[0, 3:], body(text)[0])


@pytest.mark.parametrize("place", range(5))
def test_a_causal_state_has_not_seen_what_follows_but_an_encoders_has(place: int) -> None:
    text = row(5, 6, 7, 8, 9)
    other = text.clone()
    other[0, place] = 11
    for one, two in zip(decoder().states(text), decoder().states(other), strict=True):
        torch.testing.assert_close(one[:, :place], two[:, :place], atol=0, rtol=0)
        assert not torch.equal(one[:, place], two[:, place])
    if place:
        assert (encoder()(text) - encoder()(other))[:, :place].abs().min() > 0


def test_rotary_positions_depend_on_differences_alone_and_keep_lengths() -> None:
    query, key = draw(8, seed=1, dtype=torch.float64), draw(8, seed=2, dtype=torch.float64)
    speed = 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)

    def score(a: float, b: float) -> float:
        return float(rotate(query, a * speed) @ rotate(key, b * speed))

    assert score(3, 1) == pytest.approx(score(10, 8)) != pytest.approx(score(1, 3))
    assert float(rotate(query, 5 * speed).norm()) == pytest.approx(float(query.norm()))
    body, text = decoder(), row(5, 6, 7)
    torch.testing.assert_close(body(text, positions=torch.arange(3)[None] + 40), body(text))
    assert (body(text, positions=torch.tensor([[0, 2, 4]])) - body(text)).abs().max() > 1e-3


def test_next_token_loss_by_hand_and_it_can_be_learned() -> None:
    body, tokens = decoder(), torch.tensor([[5, 6, 7, 0], [8, 9, 10, 11]])
    logits = body(tokens) @ body.token.weight.T
    each = [F.cross_entropy(logits[i, t], tokens[i, t + 1]) for i in range(2) for t in range(3) if tokens[i, t + 1]]
    torch.testing.assert_close(next_token_loss(body, tokens), torch.stack(each).mean())
    optimizer = torch.optim.Adam(body.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = next_token_loss(body, tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < 0.5  # two texts whose next words follow from what came before; the first is a draw of two


def test_masked_words_alone_are_predicted() -> None:
    body, tokens = encoder(), torch.randint(5, 40, (4, 12), generator=stream(0, "t"))
    loss = masked_word_loss(body, tokens, generator=stream(1, "m"), share=1.0)
    draws = [torch.rand(tokens.shape, generator=(g := stream(1, "m"))), torch.rand(tokens.shape, generator=g)]
    other = torch.randint(5, 40, tokens.shape, generator=g)
    shown = torch.where(draws[1] < 0.8, MASK, torch.where(draws[1] < 0.9, other, tokens))
    torch.testing.assert_close(loss, F.cross_entropy((body(shown) @ body.token.weight.T).flatten(0, 1), tokens.flatten()))
    special = row(START, 7, END)
    assert masked_word_loss(body, special, generator=stream(0, "m"), share=1e-6).isfinite()  # one word at least is hidden


# --------------------------------------------------------------------------------------------------------------------------- embedding


def test_pooling_by_hand() -> None:
    states = torch.arange(8.0).view(2, 4, 1)
    mask = torch.tensor([[True, True, False, False], [False, True, True, True]])
    assert pool(states, mask, "cls").flatten().tolist() == [0, 5]
    assert pool(states, mask, "mean").flatten().tolist() == [0.5, 6]
    assert pool(states, mask, "last").flatten().tolist() == [1, 7]
    assert pool(states, mask.int(), "last").flatten().tolist() == [1, 7]
    right = torch.tensor([[True, True, True, False]]).expand(2, -1)
    assert torch.equal(pool(states, right, "last"), states[torch.arange(2), right.sum(1) - 1])  # the index by the mask's sum


def test_vectors_have_length_one_and_do_not_depend_on_the_batch() -> None:
    model = DenseRetriever(decoder())
    tokens = torch.tensor([[5, 6, END, 0], [7, 8, 9, END]])
    found = model(tokens)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(found[:1], model(tokens[:1, :3]))


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_decoder_of_transformers_goes_in_by_its_name(tmp_path: Path, side: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", "<unk>", "sort", "the", "array", "matrix"]
    plain = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    options = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=plain, padding_side=side, **options).save_pretrained(tmp_path)
    config = LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32, pad_token_id=0
    )
    with seeded(0):
        LlamaModel(config).save_pretrained(tmp_path)
    model, tokeniser = pretrained_retriever(str(tmp_path))
    tokens = tokeniser(["sort the array", "matrix"], 6)
    assert tokens.tolist() == [[4, 5, 6, 2], [7, 2, 0, 0]]
    with torch.no_grad():
        vectors = model(tokens)
        torch.testing.assert_close(vectors[1:], model(tokens[1:, :2]))
    assert vectors.shape == (2, 16)
    with pytest.raises(ValueError, match="text 0 ends with token 7, not with the end token 2"):
        model(row(7))
    loss = retrieval_loss(model(tokens), model(tokens.flip(0)))
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in model.parameters())
    assert len(adapt(model.body, rank=2, generator=stream(0, "a"))) == 14  # type: ignore[arg-type]
    PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no end token"):
        pretrained_retriever(str(tmp_path))


# -------------------------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("hard", [1, 3])
def test_hard_negatives_are_columns_of_one_cross_entropy(hard: int) -> None:
    queries, positives, negatives = draw(5, 8), draw(5, 8, seed=1), draw(5, hard, 8, seed=2)
    columns = F.normalize(torch.cat([positives[:, None], negatives], 1), dim=-1).flatten(0, 1)  # (B (1 + h), d), a query's own in turn
    scores = F.normalize(queries, dim=-1) @ columns.T / 0.02
    right = F.cross_entropy(scores, torch.arange(5) * (1 + hard))
    torch.testing.assert_close(retrieval_loss(queries, positives, negatives, temperature=0.02), right, atol=1e-6, rtol=1e-6)


def test_sentence_transformers_gives_the_same_loss_and_the_order_of_columns_is_nothing() -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    parts = [draw(6, 8, seed=i) for i in range(4)]
    peer = MultipleNegativesRankingLoss(model=None, scale=50.0)  # type: ignore[arg-type]
    theirs = peer.compute_loss_from_embeddings(parts, None)
    ours = retrieval_loss(parts[0], parts[1], torch.stack(parts[2:], 1), temperature=0.02)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(retrieval_loss(parts[0], parts[1], torch.stack([parts[3], parts[2]], 1), temperature=0.02), ours)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 50), st.floats(0.01, 50), st.floats(-3, 3))
def test_lengths_and_constants_leave_the_loss_as_it_is(seed: int, factor: float, constant: float) -> None:
    queries, positives, negatives = (draw(*shape, seed=seed + i, dtype=torch.float64) for i, shape in enumerate(((4, 6), (4, 6), (4, 2, 6))))
    loss = retrieval_loss(queries, positives, negatives)
    torch.testing.assert_close(retrieval_loss(factor * queries, positives, factor * negatives), loss)
    scores = draw(4, 12, seed=seed, dtype=torch.float64)
    moved = scores + constant * torch.arange(4, dtype=torch.float64)[:, None]
    torch.testing.assert_close(F.cross_entropy(moved, torch.arange(4) * 3), F.cross_entropy(scores, torch.arange(4) * 3))


def test_one_query_without_negatives_loses_nothing_and_learns_nothing() -> None:
    query = draw(1, 4).requires_grad_()
    loss = retrieval_loss(query, draw(1, 4, seed=1))
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, query)
    assert gradient.abs().sum() == 0
    assert retrieval_loss(query, draw(1, 4, seed=1), draw(1, 1, 4, seed=2)).item() > 0


def test_a_passage_twice_in_a_batch_costs_at_least_the_log_of_two() -> None:
    passages = torch.eye(4)[[0, 0, 1, 2]]
    same = passages @ passages.T > 0.5
    doubled = retrieval_loss(passages, passages, temperature=0.01)
    assert doubled.item() == pytest.approx(2 * math.log(2) / 4, abs=1e-5)  # two of four rows, at their bound
    assert retrieval_loss(passages, passages, temperature=0.01, same=same).item() == pytest.approx(0, abs=1e-6)
    assert retrieval_loss(draw(4, 4), passages).item() > 2 * math.log(2) / 4


def test_hard_negatives_equal_to_the_positive_are_dropped_and_counted() -> None:
    vectors, passage, positive = draw(3, 2, 4), torch.tensor([[7, 1], [5, 5], [2, 9]]), torch.tensor([7, 5, 3])
    kept, dropped = without_positives(vectors, passage, positive)
    assert dropped == 3 and torch.equal(kept, vectors.flatten(0, 1)[[1, 4, 5]])
    queries, positives = draw(3, 4, seed=3), draw(3, 4, seed=4)
    columns = F.normalize(torch.cat([positives, kept]), dim=-1)
    torch.testing.assert_close(
        retrieval_loss(queries, positives, kept), F.cross_entropy(20 * F.normalize(queries, dim=-1) @ columns.T, torch.arange(3))
    )
    torch.testing.assert_close(retrieval_loss(queries, positives, kept[:0]), retrieval_loss(queries, positives))
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.1, 0.2, 0.9, 0.8]])
    assert hard_negatives(scores, torch.tensor([0, 1]), 2).tolist() == [[1, 2], [2, 3]]
    assert hard_negatives(scores, torch.tensor([0, 1]), 1, skip=1).tolist() == [[2], [3]]


# ------------------------------------------------------------------------------------------------------------------------------- LoRA


def test_adapters_begin_as_the_backbone_and_merge_into_it() -> None:
    body, plain, tokens = decoder(), decoder(), torch.tensor([[5, 6, 7, END], [8, END, 0, 0]])
    names = adapt(body, rank=3, alpha=6, generator=stream(0, "a"))
    assert len(names) == 8  # four layers of weights in each of two
    model = DenseRetriever(body)
    torch.testing.assert_close(model(tokens), DenseRetriever(plain)(tokens), atol=0, rtol=0)
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(3):
        optimizer.zero_grad()
        retrieval_loss(model(tokens), model(tokens.flip(0))).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    moved = model(tokens)
    assert (moved - DenseRetriever(plain)(tokens)).abs().max() > 1e-3
    for _, layer in lora_layers(body):
        rank = int(torch.linalg.matrix_rank(layer.delta(), atol=1e-9))
        assert rank <= 3
    plain.load_state_dict(merged_state(body))
    merge_lora(model.eval())
    torch.testing.assert_close(model(tokens), moved, atol=1e-5, rtol=0)
    torch.testing.assert_close(DenseRetriever(plain)(tokens), moved, atol=1e-5, rtol=0)


# ----------------------------------------------------------------------------------------------------------------------------- batches


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 30), part=st.floats(0, 1), steps=st.integers(0, 20))
def test_batches_go_through_the_data_before_any_row_comes_again(count: int, part: float, steps: int) -> None:
    batch = max(1, round(part * count))
    rows = batch_rows(count, batch, steps, generator=stream(0, "b"))
    assert rows.shape == (steps, batch)
    each = count // batch
    for first in range(0, steps, each):
        seen = rows[first : first + each].flatten()
        assert len(seen.unique()) == len(seen)


def test_each_task_has_its_steps() -> None:
    order = task_order(3, 5, generator=stream(0, "o"))
    assert order.bincount().tolist() == [5, 5, 5]
    assert order.tolist() != sorted(order.tolist())


# ---------------------------------------------------------------------------------------------------------------------------- measures


def test_measures_are_those_of_trec_eval() -> None:
    scores = draw(30, 40, dtype=torch.float64)
    relevance = draw(30, 40, seed=1) > 1.2
    relevance[:, 0] = True
    found = ranking(scores, relevance)
    theirs = ranking_by_query(scores, relevance.int(), ("ndcg_cut_10", "recall_10", "recip_rank"))
    torch.testing.assert_close(found["ndcg"], theirs["ndcg_cut_10"])
    torch.testing.assert_close(found["recall"], theirs["recall_10"])
    torch.testing.assert_close(found["mrr"], theirs["recip_rank"].where(theirs["recip_rank"] >= 0.1, 0.0))


def test_a_relevant_document_below_rank_ten_counts_nothing() -> None:
    scores = torch.arange(12.0).flip(0)[None]
    for rank, value in ((10, 0.1), (11, 0.0), (1, 1.0)):
        relevance = torch.zeros(1, 12, dtype=torch.bool)
        relevance[0, rank - 1] = True
        assert float(ranking(scores, relevance)["mrr"]) == pytest.approx(value)
    assert float(ranking(scores[:, :3], torch.tensor([[False, True, False]]))["ndcg"]) == pytest.approx(1 / math.log2(3))


# --------------------------------------------------------------------------------------------------------------------------- bad input


def test_bad_input_is_told() -> None:
    with pytest.warns(UserWarning, match="text 1 has no words: '!!'; its vector is that of the end token alone"):
        assert TOKENS(["sort", "!!"], 5).tolist() == [[9, END], [END, 0]]
    with pytest.raises(ValueError, match="text 0 has no words: ''"):
        HashedWords(KNOWN, strict=True)([""], 5)
    with pytest.raises(ValueError, match="text 0 has 3 tokens, 1 more than the limit of 2"):
        TOKENS(["sort the array"], 3)
    with pytest.raises(ValueError, match="most must be at least 2, room for one word, got 1"):
        TOKENS(["sort"], 1)
    with pytest.raises(ValueError, match="as many instructions as texts are needed, got 2 for 1"):
        TOKENS(["sort"], 4, instructions=["a", "b"])
    with pytest.raises(ValueError, match="buckets must be at least 1 and no word twice, got 1 and 1 doubles"):
        HashedWords(["a", "a"], 1)
    with pytest.raises(ValueError, match="size must be above 205"):
        HashedWords.of(["a"], 205)
    with pytest.raises(ValueError, match="text 1 ends with token 6, not with the end token 1: append it"):
        DenseRetriever(decoder())(torch.tensor([[5, END, 0], [5, 6, 0]]))
    assert DenseRetriever(decoder(), end=None)(row(5, 6)).shape == (1, 16)
    for temperature in (0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            retrieval_loss(draw(2, 3), draw(2, 3), temperature=temperature)
    with pytest.raises(ValueError, match="the input has 13 tokens, 1 more than the 12 positions"):
        DenseRetriever(encoder(), "cls")(torch.full((1, 13), 7))
    assert DenseRetriever(decoder(), "mean")(torch.full((1, 300), 7)).isfinite().all()  # rotary positions have no such limit
    for make in (lambda: DenseRetriever(decoder(), "max"), lambda: pool(draw(1, 2, 3), torch.ones(1, 2), "max")):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="pooling must be one of cls, mean, last, got 'max'"):
            make()
    with pytest.raises(ValueError, match="row 1 of the mask has no token"):
        pool(draw(2, 3, 4), torch.tensor([[1, 0, 0], [0, 0, 0]]), "last")
    with pytest.raises(ValueError, match="row 0 of the mask has no token"):
        DenseRetriever(decoder())(row(0, 0))
    with pytest.raises(ValueError, match=r"mask \(n, length\), got"):
        pool(draw(2, 3, 4), torch.ones(2, 4), "mean")
    with pytest.raises(ValueError, match="the end token must not be the padding token, both are 0"):
        EndingTokeniser(TOKENS, 0)
    with pytest.raises(ValueError, match="width must be a multiple of 2 heads"):
        CausalBody(10, 12, heads=4)
    with pytest.raises(ValueError, match="tokens must be between 0 and 39"):
        decoder()(row(40))
    with pytest.raises(ValueError, match=r"tokens must be \(n, length\)"):
        decoder()(torch.zeros(2, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"mask must be \(1, 2\), as the tokens"):
        decoder()(row(5, 6), mask=torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="share must be above 0"):
        masked_word_loss(encoder(), row(5), share=0)
    for count in (0, 4):
        with pytest.raises(ValueError, match="count must be between 1 and 3"):
            hard_negatives(draw(2, 4), torch.zeros(2, dtype=torch.int64), count)
    with pytest.raises(ValueError, match="vectors, passage and positive must be"):
        without_positives(draw(2, 2, 3), torch.zeros(2, 1), torch.zeros(2))
    for batch in (0, 4):
        with pytest.raises(ValueError, match="batch must be between 1 and the 3 rows"):
            batch_rows(3, batch, 1)
    with pytest.raises(ValueError, match="tasks must be at least 1"):
        task_order(0, 1)
    with pytest.raises(ValueError, match="scores and relevance must both be"):
        ranking(draw(2, 3), torch.ones(2, 2))
    with pytest.raises(ValueError, match="no query has a relevant document"):
        ranking(draw(2, 3), torch.zeros(2, 3))


# -------------------------------------------------------------------------------------------------------------------------- the worlds


def test_no_test_query_was_read_in_pretraining_or_training() -> None:
    split = worlds.pages()
    tests = [pair for part in (split.test, *split.unseen.values()) for pair in part]
    assert [len(split.test), *(len(part) for part in split.unseen.values())] == [400] * 4
    assert not {pair.page.name for pair in tests} & {pair.page.name for pair in split.train}
    hidden = {tuple(words(pair.query)) for pair in tests}
    begins = [tuple(words(text.split("\n")[0])) for text in worlds.pretraining_texts()]
    assert not hidden & set(begins)
    bodies = "\n".join(worlds.pretraining_texts())
    assert all(pair.document[:60] in bodies for pair in tests[:20])  # what is searched was read
    assert {pair.library for pair in split.train} == {"numpy", "scipy"}


def test_the_four_tasks() -> None:
    split = worlds.pages()
    found = {task.name: task for task in worlds.tasks(split.train[:300], split.test[:100])}
    assert list(found) == ["summary to body", "name to summary", "see also", "parameters to summary"]
    for task in found.values():
        assert task.relevance.shape == (len(task.queries), len(task.documents)) and task.relevance.any(1).all()
        assert len(task.train) == len(task.key)
    also = found["see also"]
    assert also.excluded is not None and also.excluded.sum(1).eq(1).all() and not (also.excluded & also.relevance).any()
    trained = {query for query, _ in also.train} | {document for _, document in also.train}
    assert not trained & set(also.queries)
    names = found["name to summary"]
    assert names.relevance.float().trace() == len(names.queries)
    with pytest.raises(ValueError, match="library must be one of networkx, sklearn, torch or cranfield, got 'numpy'"):
        worlds.unseen_task("numpy", 3)


def test_instructions_seen_and_unseen_share_no_wording() -> None:
    every = [text for kind in worlds.KINDS for wording in ("seen", "unseen") for text in worlds.INSTRUCTIONS[kind][wording]]  # type: ignore[index]
    assert len(set(every)) == len(every)
    for one, other in permutations(worlds.KINDS, 2):
        assert not set(worlds.INSTRUCTIONS[one]["seen"]) & set(worlds.INSTRUCTIONS[other]["unseen"])
    drawn = worlds.instructed(["notes"] * 200, "seen", stream(0, "i"))
    assert set(drawn) == set(worlds.INSTRUCTIONS["notes"]["seen"])
    both = worlds.with_both(worlds.pages().test)
    assert all(worlds.kind_text(both[0], kind) for kind in worlds.KINDS) and len(both) > 200


# ----------------------------------------------------------------------------------------------------------------------- the experiment


def test_quick_experiment() -> None:
    arms = run_quick(EXPERIMENT)
    assert {f"{size} {amount}" for size in experiment.SIZES for amount in experiment.AMOUNTS} <= set(arms)
    assert [arms[f"{size} long"]["parameters"] for size in experiment.SIZES] == [76_672, 202_496, 601_600]
    assert [arms[f"M {amount}"]["pretraining"] for amount in experiment.AMOUNTS] == [0, 40 * 32 * 64, 400 * 32 * 64]
    assert arms["S none"]["cost"] < arms["M none"]["cost"] / 3 < arms["L none"]["cost"] / 9
    assert "length change" in arms["M long"] and "length change" not in arms["M encoder"]  # absolute positions have a limit
    assert arms["M long, no instructions"]["followed"] == 0.5  # one query for both kinds: one of the two is right
    assert arms["M long, LoRA"]["learned"] < arms["M long"]["parameters"] / 5
    assert {"TF-IDF", "BM25", "M encoder, all tasks", "M long, hard negatives"} <= set(arms)


def test_the_table_is_tidy() -> None:
    arms = {
        "M long": {"ndcg": Spread.of([0.4, 0.5]), "parameters": Spread.of([9.0, 9.0]), "pretraining": Spread.of([7.0, 7.0])},
        "M long, all tasks": {"see also": Spread.of([0.1, 0.2])},
        "TF-IDF": {"ndcg": Spread.of([0.8, 0.8])},
    }
    rows = experiment.tidy(Result("llm_dense", "laptop", 2, 1.0, arms, ()))
    assert len(rows) == 6
    assert rows[1] == experiment.Row("M long", "", 9, 7, "in-domain", "ndcg", 1, 0.5)
    assert rows[2] == experiment.Row("M long", "all tasks", 9, 7, "multi-task", "see also", 0, 0.1)
    assert rows[4].backbone == "TF-IDF" and rows[4].parameters is None
    known = {metric for metrics in experiment.ABILITIES.values() for metric in metrics} | {"parameters", "learned", "pretraining", "cost"}
    assert set(experiment.UNITS) <= known


def test_pretraining_is_one_run_whose_early_state_is_the_short_one() -> None:
    body = experiment.make_body(32, 1600, 0)
    assert isinstance(body, CausalBody)
    with seeded(0):
        losses = experiment.pretrain(body, replace(experiment.EARLY, steps=5, warmup=2))
    again = experiment.make_body(32, 1600, 0)
    with seeded(0):
        longer = experiment.pretrain(again, replace(experiment.EARLY, steps=9, warmup=2))
    assert longer[:5] == losses and len(longer) == 9
    assert losses[0] == pytest.approx(math.log(1600), abs=0.05)  # at the start every word is as likely
    assert longer[-1] < losses[0] - 0.05
    with seeded(0):
        masked = experiment.pretrain(experiment.make_body(32, 1600, 0, causal=False), replace(experiment.MASKED, steps=3))
    assert masked[0] == pytest.approx(math.log(1600), abs=0.1)


def test_the_shipped_backbones_are_better_the_longer_they_were_trained() -> None:
    models = {name: load(checkpoint) for name, checkpoint in (("long", experiment.BACKBONES), ("short", experiment.SHORT))}
    words, stream_of = experiment.word_stream(1600, 200)
    tokens = stream_of[: 64 * 40].view(40, 64)
    for size in experiment.SIZES:
        losses = {}
        for name, model in models.items():
            assert isinstance(model, experiment.Backbones)
            assert model.words().known == words.known  # the corpus is that of the shipped words
            body = model.body(size)
            assert isinstance(body, CausalBody) and body.token.weight.dtype == torch.float32
            with torch.no_grad():
                losses[name] = next_token_loss(body, tokens).item()
        assert losses["long"] < losses["short"] - 1 < math.log(1600)
    masked = load(experiment.ENCODERS)
    assert isinstance(masked, experiment.Backbones) and isinstance(masked.body("M"), TokenEncoder)
    with pytest.raises(ValueError, match="more than the 16000 there is room for"):
        masked.keep_words(
            HashedWords([f"{'x' * 30}{letter}{other}" for letter in "abcdefghijklmnopqrstuvwxyz" for other in "abcdefghijklmnopqrstuvwxyz"])
        )


def test_every_backbone_begins_where_it_should() -> None:
    found = experiment.shelf(EXPERIMENT.scales["quick"])  # type: ignore[arg-type]
    tokens = found.words(["sort the array"], 9)
    assert torch.equal(found.retriever("M long", 0)(tokens), found.retriever("M long", 5)(tokens))
    assert not torch.equal(found.retriever("M none", 0)(tokens), found.retriever("M none", 5)(tokens))
    assert found.retriever("M encoder", 0).pooling == "cls" and found.retriever("L short", 0).body.width == 128
    assert [found.pretraining(name) for name in ("S none", "S short", "M encoder")] == [0, 81_920, 819_200]


def test_hidden_documents_are_never_found() -> None:
    found = experiment.shelf(EXPERIMENT.scales["quick"])  # type: ignore[arg-type]
    packs = experiment.make_tasks(replace(EXPERIMENT.scales["quick"], train=250), found.words, torch.device("cpu"))  # type: ignore[arg-type]
    packed = packs["see also"]
    only_own = replace(packed, relevance=packed.excluded)
    assert experiment.measures_of(found.retriever("M long", 0), only_own)["ndcg"] == 0  # its own summary, which is the query, would be the first
    assert experiment.measures_of(found.retriever("M long", 0), replace(only_own, excluded=None))["ndcg"] == pytest.approx(1)


def test_batches_of_instructions_have_both_kinds_of_a_page() -> None:
    rows = experiment.both_kinds(10, 6, 4, generator=stream(0, "b"))
    assert rows.shape == (4, 6)
    for batch in rows.tolist():
        assert sorted(batch) == sorted(i ^ 1 for i in batch) and len(set(batch)) == 6


def test_vectors_do_not_depend_on_the_order_of_length() -> None:
    model = DenseRetriever(decoder())
    tokens = torch.tensor([[5, END, 0, 0], [5, 6, 7, END], [8, 9, END, 0]])
    torch.testing.assert_close(experiment.vectors_of(model, tokens, batch=2), model(tokens).detach())


@pytest.mark.skipif(not (REAL / "cranfield").exists(), reason="needs the published files")
def test_paper_scale_for_a_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    paper = EXPERIMENT.scales["paper"]
    assert isinstance(paper, experiment.LLMDenseSettings) and "cranfield" in paper.unseen and not paper.shipped
    widths = (("S", 8), ("M", 16), ("L", 24))
    small = replace(
        paper,
        recipe=replace(paper.recipe, steps=2, early=1, batch=4, warmup=1, document=64),
        pretraining=replace(paper.pretraining, widths=widths, steps=10, length=64, size=1600, warmup=2, batch=4),
        unseen=("cranfield",),
        lengths=(80,),
        train=200,
        test=30,
        instruction_steps=2,
        task_steps=1,
        negatives=2,
    )
    with seeded(0):
        arms = experiment.run(small, 0, torch.device("cpu"))
    assert arms["BM25"]["cranfield"] > 0.3  # the collection is read right
    assert arms["M short"]["pretraining"] == 1 * 4 * 64


# ------------------------------------------------------------------------------------------------- what ships, explorers, exercises


def test_the_shipped_encoder() -> None:
    vectors = embed(encode, ["Compute the QR factorization of a matrix.", "QR decomposition of a matrix", "shortest path in a graph"])
    assert vectors.shape == (3, 64)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert encode([]).shape == (0, 64)
    told = encode(["sort an array"], instruction="find the notes")
    assert (told - encode(["sort an array"])).abs().max() > 1e-3
    with pytest.warns(UserWarning, match="text 0 has no words"):
        assert encode(["!!"]).isfinite().all()
    measured = provenance(experiment.SHIPPED)["measured"]
    assert measured["in-domain"] > 0.4 and measured["followed, seen"] > 0.75


def test_shipped_models_are_trained_as_said(monkeypatch: pytest.MonkeyPatch) -> None:
    few = experiment.Recipe(steps=2, early=1, batch=8, warmup=1)
    options = experiment.LLMDenseSettings(
        seeds=1, recipe=few, train=250, test=40, unseen=("networkx",), lengths=(70,), instruction_steps=2, task_steps=2
    )
    made = experiment.train_encoder(experiment.EncoderSettings(options=options, each=1), None)
    start = load(experiment.BACKBONES)
    assert isinstance(start, experiment.Backbones)
    assert (made.body("M").token.weight - start.body("M").token.weight).abs().max() > 1e-4
    small = experiment.train_backbones(replace(experiment.EARLY, widths=(("S", 8),), steps=2), None)
    assert list(experiment.measure_backbones(small)) == ["loss of S"]
    monkeypatch.setattr(experiment, "SIZES", ("S", "M"))
    table = experiment.train_grid(experiment.GridSettings(options, steps=(0, 2), rates=(1e-3,)), None)
    score = table.get_buffer("score")
    assert score[:4, :2].isfinite().all() and score[4:, 1, 2].isfinite().all() and score[4:, 0].isnan().all() and score[:, 2].isnan().all()
    assert (score[1, :2, :, -1] == 1).all()
    assert table.get_buffer("cost")[0, 0].tolist()[0] == 0 < table.get_buffer("cost")[0, 1].tolist()[0]


def test_the_grid_that_ships() -> None:
    table = load(experiment.GRID)
    score = table.get_buffer("score")
    assert score[:4].isfinite().all() and score[4:].isnan().sum() == 2 * 8 * score.shape[-1]
    assert score[0, 0, 0, -1] == pytest.approx(provenance(experiment.GRID)["measured"]["S none"], abs=1e-3)
    assert experiment.measure_grid(table)["L long"] == pytest.approx(float(score[0, 2, 2, -1]), abs=1e-3)
    cost = table.get_buffer("cost")
    assert (cost[:, 1:] - cost[:, :-1] > 0).all() and (cost[1:] >= cost[:-1]).all()


def test_the_explorer_is_moved_by_mouse_and_keyboard() -> None:
    shown = touch.explorer()
    assert shown.text.startswith("in-domain after 100 steps: M long")
    shown.point("press", 0.1, 2.2, axes=touch.CELLS)
    assert "L none" in shown.text.split(";")[0]
    shown.point("key", 0, 0, key="ArrowLeft")
    assert "after 50 steps" in shown.text
    shown.point("key", 0, 0, key="ArrowDown")
    assert shown.values["ability"] == "data efficiency"
    shown.point("key", 0, 0, key="ArrowUp")
    shown.point("press", 0.2, 0.3, axes=touch.CURVES)
    assert "after 0 steps" in shown.text
    shown.preset("instructions")
    assert "L none not measured" in shown.text
    shown.preset("reset")
    assert "M long" in shown.text
    shown.preset("what does it cost?")
    before = shown.values["step"]
    shown.point("press", 0.2, 0.3, axes=touch.CURVES)
    assert shown.values["step"] == before


def test_one_query_under_two_instructions() -> None:
    shown = touch.instructions()
    assert "the first five under" in shown.text
    for name, control in shown.controls.items():
        before = shown.png
        value = control.options[-1] if hasattr(control, "options") else control.value + 1
        shown.set(**{name: value})
        assert shown.png != before, name
    for label in shown.presets:
        shown.preset(label)
    rows = touch.found_for(3, "none")
    assert len(rows) == touch.TOP and [row[0] for row in rows] == sorted((row[0] for row in rows), reverse=True)


def test_exercises() -> None:
    for exercise in EXERCISES:
        assert exercise.check(exercise.solve()).right
        for answer in (None, exercise.wrong):
            assert not exercise.check(answer).right
    assert not EXERCISES[0].check(lambda n: torch.ones(n + 1)).right
    assert not EXERCISES[2].check((1.0, 2.0)).right
