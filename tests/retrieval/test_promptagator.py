import math
import warnings
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from real_files import REAL
from torch import Tensor
from torch.nn import functional as F

from mtlearn.datasets.bm25 import BM25
from mtlearn.datasets.tfidf import TfIdf
from mtlearn.lab.checkpoints import load
from mtlearn.lab.ranking import ranking_measures
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.embedding import embed
from mtlearn.layers.search import ExactIndex
from mtlearn.layers.tokens import Vocabulary, words
from mtlearn.retrieval.promptagator import experiment, worlds, writers
from mtlearn.retrieval.promptagator import explorer as touch
from mtlearn.retrieval.promptagator.encoder import encode
from mtlearn.retrieval.promptagator.exercises import EXERCISES
from mtlearn.retrieval.promptagator.experiment import EXPERIMENT, FILTER, PromptagatorSettings, Recipe, corrupt
from mtlearn.retrieval.promptagator.method import (
    BagEncoder,
    Bags,
    Example,
    LateInteraction,
    PromptWriter,
    Synthetic,
    build_prompt,
    consistent,
    different_sources,
    pair_loss,
    rerank,
    rerank_loss,
    sample_negatives,
    source_rank,
    write,
)
from mtlearn.retrieval.promptagator.writers import (
    FEATURES,
    ExtractiveWriter,
    Statistics,
    WordScore,
    WordTable,
    few_shot_writer,
    gumbel_top,
    logistic_regression,
    split_sections,
    zero_shot_writer,
)

TEXTS = (
    "matrix inverse of a square array\fparameters array float\freturns inverse",
    "fourier transform of a signal\fparameters signal length\freturns frequencies",
    "sort an array in place\fparameters array axis\freturns sorted copy",
    "shortest path in a graph\fparameters graph source weight\freturns path length",
    "minimum of a function\fparameters function bounds method\freturns minimum",
    "random numbers of a distribution\fparameters seed size\freturns samples",
)
ASKED = (
    "compute the inverse of a matrix",
    "transform a signal",
    "sort an array",
    "shortest path between nodes",
    "find the minimum",
    "draw random numbers",
)
EXAMPLES = [Example(query, text) for query, text in zip(ASKED, TEXTS, strict=True)]
STATISTICS = Statistics.of(TEXTS)
VOCABULARY = Vocabulary.of(TEXTS, 60)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=stream(seed, "draw"))


def encoder(dim: int = 32, seed: int = 0) -> BagEncoder:
    return BagEncoder(STATISTICS.idf(list(VOCABULARY.number)), dim, generator=stream(seed, "rows"))


# ------------------------------------------------------------------------------------------------------------------------------ prompts


def test_the_prompt_is_instruction_examples_and_the_document() -> None:
    found = build_prompt("d3", EXAMPLES[:2], instruction="Find the claim.", prefixes=("Evidence", "Claim"))
    assert found == f"Find the claim.\nEvidence: {' '.join(TEXTS[0].split())}\nClaim: {ASKED[0]}\n" + (
        f"Evidence: {' '.join(TEXTS[1].split())}\nClaim: {ASKED[1]}\nEvidence: d3\nClaim:"
    )
    assert build_prompt("some text") == "some text Read the passage and generate a query."


@settings(deadline=None, max_examples=60)
@given(longest=st.integers(12, 150), shortest=st.integers(1, 20))
def test_a_prompt_never_exceeds_its_length_and_keeps_as_much_as_fits(longest: int, shortest: int) -> None:
    found = build_prompt("a document of six plain words", EXAMPLES, longest=longest, shortest=shortest)
    assert len(found.split()) <= longest
    assert found.endswith("Query:")
    more = build_prompt("a document of six plain words", EXAMPLES, longest=longest + 5, shortest=shortest)
    assert more.count("Query:") >= found.count("Query:")
    kept = found.count("Query:") - 1
    assert all(example.query in found for example in EXAMPLES[:kept])
    if kept:
        assert "a document of six plain words" in found  # examples are cut first


def test_shorter_examples_come_before_fewer_ones() -> None:
    whole = build_prompt("x y", EXAMPLES[:2])
    cut = build_prompt("x y", EXAMPLES[:2], longest=len(whole.split()) - 4, shortest=2)
    assert cut.count("Query:") == 3 and len(cut.split()) < len(whole.split())
    fewer = build_prompt("x y", EXAMPLES[:2], longest=len(whole.split()) - 4, shortest=50)
    assert fewer.count("Query:") == 2
    letters = build_prompt("x y", EXAMPLES[:2], longest=100, length=len)
    assert len(letters) <= 100


def test_any_text_to_text_function_is_a_writer() -> None:
    sent: list[str] = []

    def model(prompts: Sequence[str]) -> list[str]:
        sent.extend(prompts)
        return [f" about {prompt.rsplit('Document: ', 1)[1].split()[0]} \nDocument: and so on" for prompt in prompts]

    found = write(PromptWriter(model, EXAMPLES, instruction="Write what people ask."), [*TEXTS, "too short"], per_document=3)
    assert len(sent) == 18 and all(prompt.startswith("Write what people ask.") for prompt in sent)
    assert found.queries[:4] == ("about matrix", "about matrix", "about matrix", "about fourier")
    assert found.source.tolist() == [i for i in range(6) for _ in range(3)] and found.skipped == 1 and found.empty == 0
    zero = write(PromptWriter(lambda prompts: ["?" if "sort" in p else p for p in prompts]), TEXTS, per_document=1)
    assert zero.empty == 1 and all(query.endswith("Read the passage and generate a query.") for query in zero.queries)
    with pytest.raises(ValueError, match="12 were sent, 1 came back"):
        write(PromptWriter(lambda prompts: ["one"]), TEXTS, per_document=2)


def test_a_pretrained_text_to_text_model_writes(tmp_path: object) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    with seeded(0):
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=len(VOCABULARY), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
        )
    names = list(VOCABULARY.number)

    def generate(prompts: Sequence[str]) -> list[str]:
        tokens = VOCABULARY(list(prompts), 200, truncate=True)
        answers = model.generate(tokens, attention_mask=(tokens != 0).long(), max_new_tokens=5, do_sample=True, temperature=0.7)
        return [" ".join(names[i] for i in row if names[i].isalpha()) or "nothing" for row in answers.tolist()]

    with seeded(1):
        found = write(PromptWriter(generate, EXAMPLES[:4], longest=120), TEXTS, per_document=2)
    assert len(found.queries) + found.empty == 12


# ------------------------------------------------------------------------------------------------------------------------------ writers


def test_logistic_regression_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    table = WordTable.of(TEXTS, STATISTICS)
    features = table.features[:, 6:] * torch.tensor([1.0, 2, 1, 1, 0.3, 1])
    labels = torch.tensor([word in set(words(ASKED[i])) for word, i in zip(table.words, table.document.tolist(), strict=True)])
    for c in (0.3, 30.0):
        weights, intercept = logistic_regression(features, labels, c)
        theirs = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(features.numpy(), labels.numpy())
        np.testing.assert_allclose(weights.numpy(), theirs.coef_[0], atol=1e-4)
        assert float(intercept) == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_the_features_of_words() -> None:
    table = WordTable.of(["alpha beta beta\fgamma alpha", "beta delta"], Statistics.of(["alpha beta", "beta gamma", "beta", "delta beta"]))
    assert table.words == ("alpha", "beta", "gamma", "beta", "delta")
    assert table.document.tolist() == [0, 0, 0, 1, 1]
    row = dict(zip(FEATURES, table.features[2].tolist(), strict=True))
    idf = 1 + math.log(5 / 2)
    assert row["section 2"] == 1 and row["section 1"] == 0 and row["log position"] == pytest.approx(math.log(4))
    assert row["idf"] == pytest.approx(idf) and row["log idf"] == pytest.approx(math.log(idf))
    assert table.features[1, FEATURES.index("log frequency")] == pytest.approx(math.log(2))
    assert table.features[:, FEATURES.index("common")].tolist() == [0, 1, 0, 1, 0]
    assert split_sections("a b c d e f g aa bb cc dd ee ff gg") == ["aa bb", "cc dd", "ee ff", "gg"]


def test_few_examples_teach_where_a_query_comes_from() -> None:
    first = few_shot_writer([Example(" ".join(words(text.split("\f")[0])[:3]), text) for text in TEXTS], STATISTICS)
    last = few_shot_writer([Example(text.split("\f")[2], text) for text in TEXTS], STATISTICS)
    assert isinstance(first.score, WordScore) and isinstance(last.score, WordScore)
    assert first.score.weights[0] > 0 > first.score.weights[2]
    assert last.score.weights[2] > 0 > last.score.weights[0]
    for writer, section in ((first, 0), (last, 2)):
        cold = ExtractiveWriter(STATISTICS, writer.score, [2], temperature=0)
        hits = [word in words(text.split("\f")[section]) for text in TEXTS for word in cold([text], per_document=1)[0][0].split()]
        assert sum(hits) > 0.9 * len(hits)


def test_writers_write_words_of_the_document_once_each_and_repeat() -> None:
    for writer in (few_shot_writer(EXAMPLES, STATISTICS), zero_shot_writer(STATISTICS), zero_shot_writer(STATISTICS, "idf")):
        one, two = (writer(TEXTS, per_document=5, generator=stream(3, "w")) for _ in range(2))
        assert one == two
        for text, queries in zip(TEXTS, one, strict=True):
            assert len(queries) == 5
            for query in queries:
                assert len(set(query.split())) == len(query.split()) and set(query.split()) <= set(words(text))
    lengths = {len(set(words(query))) for query in ASKED}
    found = few_shot_writer(EXAMPLES, STATISTICS)(TEXTS, per_document=20, generator=stream(3, "w"))
    assert {len(query.split()) for queries in found for query in queries} <= lengths


def test_cold_sampling_takes_the_best_and_hot_sampling_is_uniform() -> None:
    from scipy.stats import chisquare

    scores = torch.tensor([0.3, 2.0, -1.0, 1.9, 0.0])
    assert gumbel_top(scores, 3, temperature=0).tolist() == [1, 3, 0]
    near = gumbel_top(scores.expand(500, -1), 3, temperature=1e-4, generator=stream(0, "g"))
    assert (near == torch.tensor([1, 3, 0])).all()
    hot = gumbel_top(scores.expand(6000, -1), 1, temperature=1e6, generator=stream(1, "g"))[:, 0]
    assert chisquare(np.bincount(hot.numpy(), minlength=5)).pvalue > 1e-3
    limit = gumbel_top(scores.expand(6000, -1), 1, temperature=math.inf, generator=stream(2, "g"))[:, 0]
    assert chisquare(np.bincount(limit.numpy(), minlength=5)).pvalue > 1e-3
    warm = gumbel_top(scores.expand(20_000, -1), 1, temperature=0.7, generator=stream(3, "g"))[:, 0]
    assert chisquare(np.bincount(warm.numpy(), minlength=5), 20_000 * (scores / 0.7).double().softmax(0).numpy()).pvalue > 1e-3
    padded = torch.tensor([[1.0, -math.inf, 0.0]])
    assert 1 not in gumbel_top(padded.expand(200, -1), 2, temperature=0.7, generator=stream(0, "g"))


# ------------------------------------------------------------------------------------------------------------------------------- filter


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), documents=st.integers(1, 9), integers=st.booleans())
def test_the_filter_is_monotone_and_keeps_all_in_the_end(seed: int, documents: int, integers: bool) -> None:
    queries, table = draw(20, 3, seed=seed), draw(documents, 3, seed=seed + 1)
    if integers:  # many ties
        queries, table = queries.round(), table.round()
    source = torch.randint(documents, (20,), generator=stream(seed, "s"))
    rank = source_rank(queries, table, source, block=7)
    kept = [consistent(rank, k, batch=0) for k in range(1, documents + 1)]
    assert all((more | ~less).all() for less, more in pairwise(kept))
    assert kept[-1].all()
    scores = queries @ table.T
    best = scores.max(1).values
    assert torch.equal(kept[0], scores.gather(1, source[:, None])[:, 0] == best)
    again = source_rank(queries[kept[0]], table, source[kept[0]])
    assert consistent(again, 1, batch=0).all()  # filtering twice with the same retriever


def test_kept_by_one_are_those_whose_first_document_is_the_source() -> None:
    queries, table = draw(300, 16), draw(40, 16, seed=1)
    source = torch.randint(40, (300,), generator=stream(0, "s"))
    found = ExactIndex(table).search(queries, 1)[1][:, 0]
    assert torch.equal(consistent(source_rank(queries, table, source)), found == source)


# ------------------------------------------------------------------------------------------------------------------------- dual encoder


def test_the_loss_is_cross_entropy_and_that_of_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    queries, documents = draw(9, 12), draw(9, 12, seed=1)
    ours = pair_loss(queries, documents, temperature=0.05)
    cosine = F.normalize(queries, dim=1) @ F.normalize(documents, dim=1).T
    torch.testing.assert_close(ours, F.cross_entropy(cosine / 0.05, torch.arange(9)), atol=1e-6, rtol=1e-6)
    theirs = MultipleNegativesRankingLoss(model=None, scale=20.0).compute_loss_from_embeddings([queries, documents], labels=None)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    source = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 0])
    masked = cosine / 0.05
    masked[0, 8] = masked[8, 0] = -math.inf
    torch.testing.assert_close(pair_loss(queries, documents, temperature=0.05, source=source), F.cross_entropy(masked, torch.arange(9)))


def test_the_encoder_begins_as_a_projection_of_tf_idf() -> None:
    texts = [" ".join(np.random.default_rng(i).choice([f"w{j:03d}" for j in range(200)], 40)) for i in range(60)]
    statistics = Statistics.of(texts)
    vocabulary = Vocabulary.of(texts, 500)
    exact = TfIdf(texts).scores(texts)
    off = ~torch.eye(60, dtype=torch.bool)
    errors = []
    for dim in (256, 1024, 4096):
        model = BagEncoder(statistics.idf(list(vocabulary.number)), dim, generator=stream(0, "rows"))
        with torch.no_grad():
            vectors = model(Bags.of(texts, vocabulary)).double()
        errors.append(float((vectors @ vectors.T - exact)[off].abs().mean()))
        assert errors[-1] * dim**0.5 == pytest.approx(0.8, abs=0.2)  # mean of |N(0, about 1)|
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.3) and errors[1] / errors[2] == pytest.approx(2, abs=0.3)


def test_packed_bags_are_picked_as_if_packed_anew() -> None:
    bags = Bags.of(TEXTS, VOCABULARY)
    rows = torch.tensor([3, 0, 3])
    part, anew = bags.take(rows), Bags.of([TEXTS[i] for i in rows.tolist()], VOCABULARY)
    for one, two in zip((part.words, part.weights, part.offsets), (anew.words, anew.weights, anew.offsets), strict=True):
        assert torch.equal(one, two)
    padded = bags.padded(rows)
    for row, number in enumerate(rows.tolist()):
        assert set(padded[row].tolist()) - {0} == {VOCABULARY.number[word] for word in words(TEXTS[number])}
    empty = Bags.of(["zzz qqq"], VOCABULARY)
    assert empty.words.tolist() == [VOCABULARY.number["[UNK]"]]
    assert torch.isfinite(encoder()(empty)).all()


def test_a_batch_has_no_document_twice() -> None:
    source = torch.tensor([0, 0, 0, 1, 2, 2, 5, 5, 5, 5])
    seen = set()
    for seed in range(60):
        rows = different_sources(source, 3, generator=stream(seed, "b"))
        assert len(rows) == 3 == len(set(source[rows].tolist()))
        seen |= set(rows.tolist())
    assert seen == set(range(10))
    assert len(different_sources(source, 50)) == 4


def test_gradients_reach_rows_and_weights() -> None:
    model, bags = encoder(), Bags.of(TEXTS, VOCABULARY)
    pair_loss(model(Bags.of(ASKED, VOCABULARY)), model(bags), temperature=0.05).backward()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0
    numbers = Bags(torch.tensor([5, 6, 7]), torch.tensor([1.0, 1.7, 1.0]), torch.tensor([0, 2, 3]))
    small = BagEncoder(torch.rand(8, generator=stream(0, "i")) + 1, 4, generator=stream(1, "r")).double()
    assert torch.autograd.gradcheck(
        lambda row, weight: torch.func.functional_call(small, {"row": row, "log_weight": weight}, numbers), tuple(small.parameters())
    )


# ----------------------------------------------------------------------------------------------------------------------------- reranker


def test_a_constant_reranker_changes_nothing_and_none_leaves_the_candidates() -> None:
    best = torch.tensor([[4, 2, 7], [1, 0, 3]])
    assert torch.equal(rerank(best, torch.zeros(2, 3)), best)
    found = rerank(best, draw(2, 3))
    assert torch.equal(found.sort(1).values, best.sort(1).values)
    with pytest.raises(ValueError, match="one score for each document"):
        rerank(best, torch.zeros(2, 2))


def test_the_reranker_begins_with_the_retrievers_order_and_finds_nearest_words() -> None:
    model, bags = encoder(), Bags.of(TEXTS, VOCABULARY)
    judge = LateInteraction(model, bags)
    queries = Bags.of(ASKED, VOCABULARY)
    every = torch.arange(len(TEXTS)).expand(len(ASKED), -1)
    with torch.no_grad():
        vectors = model(queries)
        scores = judge(queries.padded(torch.arange(6)), vectors, every)
        torch.testing.assert_close(scores, 20 * vectors @ model(bags).T)
    rows = F.normalize(model.row.detach(), dim=-1)
    number = VOCABULARY.number["path"]
    inside = bags.take(torch.tensor([1])).words
    assert float(judge.cosine[1, number]) == pytest.approx(float((rows[inside] @ rows[number]).max()), abs=1e-6)
    assert float(judge.cosine[3, number]) == pytest.approx(1, abs=1e-6)
    assert not any(parameter is model.row for parameter in judge.parameters())
    rerank_loss(judge(queries.padded(torch.arange(6)), vectors, every)).backward()
    assert judge.judge[2].weight.grad.abs().sum() > 0  # type: ignore[union-attr,operator]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_padding_does_not_speak_and_negatives_are_never_the_source(seed: int) -> None:
    model, bags = encoder(), Bags.of(TEXTS, VOCABULARY)
    judge = LateInteraction(model, bags)
    with torch.no_grad():
        judge.judge[2].weight.copy_(draw(1, 32, seed=seed))
        query = Bags.of(ASKED[:1], VOCABULARY)
        padded, vector, every = query.padded(torch.tensor([0])), model(query), torch.arange(6)[None]
        torch.testing.assert_close(judge(padded, vector, every), judge(F.pad(padded, (0, 4)), vector, every))
    best = torch.stack([torch.randperm(12, generator=stream(seed, "p", i))[:6] for i in range(8)])
    source = torch.randint(12, (8,), generator=stream(seed, "s"))
    wrong = sample_negatives(best, source, 5, generator=stream(seed, "n"))
    assert not (wrong == source[:, None]).any()
    assert all(len(set(row)) == 5 and set(row) <= set(own) for row, own in zip(wrong.tolist(), best.tolist(), strict=True))


# ----------------------------------------------------------------------------------------------------------------------------- measures


def test_ndcg_of_one_right_document() -> None:
    scores = draw(40, 300).double()
    relevance = F.one_hot(torch.randint(300, (40,), generator=stream(0, "r")), 300)
    scores[:10] += 2.5 * relevance[:10]
    rank = (scores > (scores * relevance).sum(1, keepdim=True)).sum(1) + 1
    gain = torch.where(rank <= 10, 1 / torch.log2(1 + rank.double()), 0.0)
    assert worlds.ndcg(scores, relevance) == pytest.approx(float(gain.mean()))
    assert worlds.ndcg(scores, relevance) == pytest.approx(ranking_measures(scores, relevance, ("ndcg_cut_10",))["ndcg_cut_10"])
    relevance[:, :3] = 1
    assert worlds.ndcg(scores, relevance) == pytest.approx(ranking_measures(scores, relevance, ("ndcg_cut_10",))["ndcg_cut_10"])


def test_bm25_by_its_formula() -> None:
    texts = ["qr of matrix matrix", "inverse of square matrix", "graph path"]
    found = BM25(texts).scores(["matrix path"])[0]
    average = np.mean([len(words(text)) for text in texts])
    for i, text in enumerate(texts):
        own, right = words(text), 0.0
        for word in ("matrix", "path"):
            containing = sum(word in words(other) for other in texts)
            idf = math.log(1 + (3 - containing + 0.5) / (containing + 0.5))
            tf = own.count(word)
            right += idf * tf / (tf + 1.5 * (0.25 + 0.75 * len(own) / average))
        assert float(found[i]) == pytest.approx(right, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------------- bad input


def test_bad_input_is_told() -> None:
    with pytest.raises(ValueError, match="few-shot writing needs at least one example; use a zero-shot writer"):
        few_shot_writer([], STATISTICS)
    with pytest.warns(UserWarning, match="9 examples are given; few-shot means at most 8"):
        few_shot_writer([*EXAMPLES, *EXAMPLES[:3]], STATISTICS)
    with pytest.warns(UserWarning, match="12 examples are given"):
        PromptWriter(list, [*EXAMPLES, *EXAMPLES])
    strange = Example("quite other things", TEXTS[0])
    with pytest.warns(UserWarning, match="the query of example 6 shares no word with its document"):
        few_shot_writer([*EXAMPLES, strange], STATISTICS)
    with pytest.raises(ValueError, match="no example's query shares a word with its document"):
        few_shot_writer([strange] * 8, STATISTICS)
    with pytest.raises(ValueError, match="K must be at least 1, got 0"):
        consistent(torch.zeros(4), 0)
    with pytest.raises(RuntimeError, match="the filter with K=1 keeps 1 of 4 pairs, fewer than one batch of 2"):
        consistent(torch.tensor([0, 1, 2, 3]), 1, batch=2)
    for make in (lambda t: gumbel_top(torch.zeros(3), 1, temperature=t), lambda t: ExtractiveWriter(STATISTICS, torch.sum, [3], temperature=t)):
        for temperature in (-0.1, math.nan):
            with pytest.raises(ValueError, match="temperature must be above 0"):
                make(temperature)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            pair_loss(draw(3, 2), draw(3, 2), temperature=temperature)
    with pytest.raises(ValueError, match="count must be between 1 and 3, got 4"):
        gumbel_top(torch.zeros(3), 4, temperature=1)
    with pytest.raises(ValueError, match="lengths must be at least one number"):
        ExtractiveWriter(STATISTICS, torch.sum, [])
    with pytest.raises(ValueError, match="kind must be 'uniform' or 'idf', got 'tf'"):
        zero_shot_writer(STATISTICS, "tf")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most 6 sections, got 7"):
        split_sections("a\fb\fc\fd\fe\ff\fg")
    with pytest.raises(ValueError, match="a corpus needs at least one document"):
        Statistics.of([])
    with pytest.raises(ValueError, match="labels must have both values, got 3 true of 3"):
        logistic_regression(torch.zeros(3, 2).double(), torch.ones(3, dtype=torch.bool), 1.0)
    with pytest.raises(ValueError, match="c must be above 0, got 0"):
        logistic_regression(torch.zeros(2, 2).double(), torch.tensor([True, False]), 0.0)
    with pytest.raises(ValueError, match="no room for a word of the document"):
        build_prompt("word", EXAMPLES, longest=2)
    with pytest.raises(ValueError, match="shortest must be at least 1, got 0"):
        build_prompt("word", EXAMPLES, shortest=0)
    with pytest.raises(ValueError, match="per_document must be at least 1, got 0"):
        write(zero_shot_writer(STATISTICS), TEXTS, per_document=0)
    with pytest.raises(ValueError, match="the writer must answer for 6 documents, got 0 answers"):
        write(lambda documents, **rest: [], TEXTS)
    with pytest.raises(ValueError, match="count must be between 1 and 2"):
        sample_negatives(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0]), 3)


def test_documents_without_words_are_skipped_and_counted() -> None:
    found = write(zero_shot_writer(STATISTICS), [TEXTS[0], "", "12 %%", TEXTS[1]], per_document=2, generator=stream(0, "w"))
    assert found.skipped == 2 and found.source.tolist() == [0, 0, 3, 3]
    assert write(zero_shot_writer(STATISTICS), ["", " "]).queries == ()
    assert zero_shot_writer(STATISTICS)(["", TEXTS[0]], per_document=1)[0] == [""]
    assert len(source_rank(draw(0, 3), draw(2, 3), torch.zeros(0, dtype=torch.int64))) == 0


# ----------------------------------------------------------------------------------------------------------------------- the experiment


def test_corrupted_pairs_are_wrong_and_only_those() -> None:
    found = Synthetic(tuple(f"q{i}" for i in range(40)), torch.arange(40) // 4)
    for kind in experiment.CORRUPTIONS:
        bad, mask = corrupt(found, 0.3, kind, ["the", "of"], generator=stream(0, "c"))
        assert int(mask.sum()) == 12
        assert all((bad.queries[i] == found.queries[i]) != bool(mask[i]) for i in range(40))
        if kind == "wrong document":
            assert all(int(bad.queries[i][1:]) // 4 != int(found.source[i]) for i in range(40) if mask[i])
        else:
            assert all(bad.queries[i] == "the of" for i in range(40) if mask[i])
    with pytest.raises(ValueError, match="share must be between 0 and 1, got"):
        corrupt(found, 1.5, "wrong document", [], generator=stream(0, "c"))
    with pytest.raises(ValueError, match="kind must be one of wrong document, frequent words, got 'noise'"):
        corrupt(found, 0.5, "noise", [], generator=stream(0, "c"))
    assert found.take(torch.tensor([3, 5])).queries == ("q3", "q5")


def test_the_world_hides_the_summary_and_the_name_and_the_test_has_no_pool() -> None:
    world = worlds.docstring_world(0, documents=200, pool=50)
    assert len(world.documents) == 200 and len(world.queries) == 150 and len(world.pool) == 50
    assert not {example.query for example in world.pool} & set(world.queries)
    assert all(text.count("\f") == 5 for text in world.documents)
    page = next(pair.page for pair in worlds.docstring_pairs(("scipy",)) if pair.page.name == "scipy.linalg.qr")
    found = worlds.sectioned(page)
    assert page.summary not in found and "qr" not in words(found)
    assert worlds.parameter_sentence(page).startswith("Matrix to be decomposed")
    with pytest.raises(ValueError, match="pool must be between 1 and 199"):
        worlds.docstring_world(0, documents=200, pool=200)


def test_quick_experiment() -> None:
    arms = run_quick(EXPERIMENT)
    assert arms["frequent words, filtered"]["removed"] > 0.8
    assert arms["few-shot"]["pairs"] == arms["zero-shot idf"]["pairs"] == 1200
    assert arms["few-shot, filtered"]["pairs"] < 1200
    assert arms["8 pairs"]["pairs"] == 8
    assert {"BM25", "TF-IDF", "real pairs", "writer from all labels", "few-shot, trained on"} <= set(arms)
    for arm in ("examples drawn anew", "batches drawn anew"):
        assert arms[arm]["lowest"] < arms[arm]["highest"]


@pytest.mark.skipif(not (REAL / "cranfield").exists(), reason="needs the published files")
def test_paper_scale_for_a_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    assert EXPERIMENT.scales["paper"].as_dict()["source"] == "cranfield"
    few = Recipe(dim=64, steps=2, batch=32, negatives=3, retrieved=10, rerank_steps=2, rerank_batch=8)
    options = PromptagatorSettings(seeds=1, recipe=few, source="cranfield", pool=60, vocabulary=1500, per_document=1, draws=2, others=50)
    with seeded(0):
        arms = experiment.run(options, 0, torch.device("cpu"))
    assert arms["BM25"]["ndcg"] > 0.3  # the collection is read right
    assert arms["few-shot"]["pairs"] > 1300


def test_the_shipped_encoder() -> None:
    vectors = embed(encode, ["Compute the QR factorization of a matrix.", "qr decomposition", "shortest path in a graph", "zzzz"])
    assert vectors.shape == (4, 128)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    shipped = load(experiment.SHIPPED)
    assert isinstance(shipped, experiment.ShippedEncoder)
    assert list(shipped.vocabulary().number)[:2] == ["[PAD]", "[UNK]"] and len(shipped.vocabulary()) == 5000
    with pytest.raises(ValueError, match="more than the 64000 there is room for"):
        shipped.keep(shipped.encoder(), Vocabulary({f"{'x' * 40}{i}": i for i in range(5000)}))


def test_shipped_models_are_trained_as_said(monkeypatch: pytest.MonkeyPatch) -> None:
    few = Recipe(dim=16, steps=2, batch=16)
    every = worlds.docstring_pairs
    monkeypatch.setattr(experiment, "docstring_pairs", lambda libraries: every(("numpy",))[:120])
    made = experiment.train_shipped(experiment.ShippedSettings(few, ("numpy",), 400, 2), None)
    assert made.row.shape == (400, 16) and made.row.dtype == torch.float16 and made.row.abs().sum() > 0
    small = experiment.FilterSettings(few, (0.0, 0.9), (1, 10_000), pool=1100, per_document=1)
    table = experiment.train_filter(small, None)
    assert table.get_buffer("bad")[0].sum() == 0 < table.get_buffer("bad")[1, 0]
    found = load(FILTER)
    total = found.get_buffer("good")[:, -1] + found.get_buffer("bad")[:, -1]
    assert (total == total[0]).all()
    assert experiment.measure_filter(found)["K = 1"] == pytest.approx(float(found.get_buffer("ndcg")[1, 0]))


# --------------------------------------------------------------------------------------------------------------- explorer and exercises


def test_the_explorer_is_moved_by_mouse_and_keyboard() -> None:
    shown = touch.explorer()
    assert "8 examples, intent summary" in shown.text
    shown.point("press", 0.5, 2.5, axes=touch.EXAMPLES)
    assert shown.values["examples"] == "0 1 8 3 4 5 6 7"
    shown.point("key", 0, 0, key="1")
    assert shown.values["examples"] == "2 1 8 3 4 5 6 7"
    shown.point("press", 0.5, 40, axes=touch.EXAMPLES)
    assert shown.values["examples"] == "2 1 8 3 4 5 6 7"
    for key, name, value in (("ArrowRight", "document", 1), ("ArrowLeft", "document", 0), ("ArrowUp", "k", 1), ("ArrowDown", "k", 0)):
        shown.point("key", 0, 0, key=key)
        assert shown.values[name] == value
    shown.point("drag", 4.2, 1.0, axes=touch.FILTERED)
    assert shown.values["k"] == 4
    before = shown.png
    shown.set(examples="20 21, 22")
    assert "3 examples" in shown.text and shown.png != before
    shown.preset("another intent")
    assert "largest weight is that of Parameters" in shown.text
    shown.preset("no filter")
    assert "K = all and 60 %" in shown.text
    for text in ("a b", "", "1 1", "77"):
        with pytest.raises(ValueError, match="examples must be"):
            touch.chosen_from(text)


def test_exercises() -> None:
    for exercise in EXERCISES:
        assert exercise.check(exercise.solve()).right
        for answer in (None, exercise.wrong):
            assert not exercise.check(answer).right
    assert not EXERCISES[0].check(lambda scores, source, k: [True]).right


def test_writers_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert experiment.fitted([*EXAMPLES, *EXAMPLES], STATISTICS).lengths
    assert writers.SECTIONS == 6
