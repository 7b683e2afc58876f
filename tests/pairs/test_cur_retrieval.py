"""CUR retrieval: the factorisation, the index over any scorer, both cross-encoders, the experiment and the explorer."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from real_files import REAL
from sklearn.kernel_approximation import Nystroem
from sklearn.metrics.pairwise import rbf_kernel
from tiny_bert import tiny_bert
from torch import Tensor

from mtlearn.lab.seeds import stream
from mtlearn.layers.decomposable_attention import DecomposableAttention, MeanOfWords
from mtlearn.layers.pretrained import pretrained
from mtlearn.layers.text_encoders import CrossEncoder, TokenEncoder
from mtlearn.layers.tokens import SPECIAL, Vocabulary
from mtlearn.pairs.cur_retrieval import experiment as study_of
from mtlearn.pairs.cur_retrieval import explorer as touch
from mtlearn.pairs.cur_retrieval.anchors import choose_anchors, leverage_scores
from mtlearn.pairs.cur_retrieval.baselines import Reranker, distil, item_item_products, projected, train_dual, truncated_svd
from mtlearn.pairs.cur_retrieval.cross_encoders import MARKS, EmbeddingCrossEncoder, JointScorer, PairScorer, TwoHeads, add_marks, mark
from mtlearn.pairs.cur_retrieval.experiment import EXPERIMENT, CURSettings, directions, score_world, searched
from mtlearn.pairs.cur_retrieval.method import (
    CUTOFF,
    CallCounter,
    CURIndex,
    approximate,
    cur,
    embeddings,
    exact_scores,
    oracle_middle,
    pseudo_inverse,
    recall,
    refit,
    retrieve,
)
from mtlearn.pairs.cur_retrieval.training import candidates, hard_negatives, train_heads, train_joint
from mtlearn.pairs.cur_retrieval.worlds import cranfield_world, digit_scores, documentation_world, made_scores, tfidf

PUBLIC = json.loads((Path(__file__).parent / "public" / "cur_retrieval.json").read_text())


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(queries: int = 40, items: int = 90, rank: int = 5, seed: int = 0) -> Tensor:
    return draw(queries, rank, seed=seed) @ draw(rank, items, seed=seed + 1)


def estimate(scores: Tensor, queries: Tensor, anchors: Tensor, cutoff: float = 0.0) -> Tensor:
    """All scores from those of some rows and columns."""
    left, right = cur(scores[:, anchors], scores[queries], queries, anchors, cutoff=cutoff)
    return left @ right


def table_scorer(table: Tensor) -> Callable[[Any, Any], Tensor]:
    return lambda queries, items: table[queries][:, items]


# -------------------------------------------------------------------------------------------------------------------- the factorisation


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), rank=st.integers(1, 6), queries=st.integers(6, 20), anchors=st.integers(6, 20))
def test_a_matrix_of_low_rank_is_reproduced(seed: int, rank: int, queries: int, anchors: int) -> None:
    scores = low_rank(rank=rank, seed=seed)
    found = estimate(scores, torch.arange(queries), torch.arange(anchors), cutoff=1e-10)
    torch.testing.assert_close(found, scores, atol=1e-6 * float(scores.abs().max()), rtol=0)


def test_low_rank_to_eight_digits_at_any_cutoff() -> None:
    scores = low_rank()
    for cutoff in (1e-12, 1e-6, 1e-2):
        torch.testing.assert_close(estimate(scores, torch.arange(12), torch.arange(20, 35), cutoff), scores, atol=1e-8, rtol=0)


def test_rows_of_anchor_queries_and_columns_of_anchor_items() -> None:
    scores = draw(30, 50)
    few, many = torch.arange(8), torch.arange(20)
    by_rows = estimate(scores, few, many)  # more items than queries: A has full row rank
    torch.testing.assert_close(by_rows[few], scores[few])
    assert (by_rows[:, many] - scores[:, many]).abs().max() > 1
    by_columns = estimate(scores, many, few)  # full column rank
    torch.testing.assert_close(by_columns[:, few], scores[:, few])
    assert (by_columns[many] - scores[many]).abs().max() > 1


def test_all_items_as_anchors_are_exact_on_the_span_of_the_rows() -> None:
    rows = draw(6, 30)
    weights = draw(3, 6, seed=5)
    columns = weights @ rows
    torch.testing.assert_close(approximate(columns, embeddings(rows, torch.arange(30), 0.0)), columns)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), factor=st.sampled_from([-3.0, 0.01, 7.0]), cutoff=st.sampled_from([0.0, 1e-2]))
def test_scale_and_order(seed: int, factor: float, cutoff: float) -> None:
    scores = draw(20, 40, seed=seed)
    queries, anchors = torch.arange(12), torch.arange(5)
    found = estimate(scores, queries, anchors, cutoff)
    torch.testing.assert_close(estimate(factor * scores, queries, anchors, cutoff), factor * found, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(estimate(scores, queries.flip(0), anchors[[3, 0, 4, 1, 2]], cutoff), found, atol=1e-9, rtol=1e-9)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(estimate(scores[:, order], queries, order.argsort()[anchors], cutoff), found[:, order], atol=1e-9, rtol=1e-9)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), queries=st.integers(2, 12), anchors=st.integers(2, 12))
def test_the_oracle_is_the_best_middle_and_the_svd_the_limit(seed: int, queries: int, anchors: int) -> None:
    scores = draw(20, 40, seed=seed)
    columns, rows = scores[:, :anchors], scores[:queries]
    ours = (scores - estimate(scores, torch.arange(queries), torch.arange(anchors))).norm()
    oracle = (scores - columns @ oracle_middle(columns, scores, rows) @ rows).norm()
    rank = min(queries, anchors)
    tail = torch.linalg.svdvals(scores)[rank:].norm()
    assert tail <= oracle * (1 + 1e-9)
    assert oracle <= ours * (1 + 1e-9)
    torch.testing.assert_close((scores - truncated_svd(scores, rank)).norm(), tail)
    left, right = cur(columns, rows, torch.arange(queries), torch.arange(anchors), middle=oracle_middle(columns, scores, rows))
    torch.testing.assert_close((scores - left @ right).norm(), oracle)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (6, 6)])
def test_the_inverse_is_that_of_three_libraries(shape: tuple[int, int]) -> None:
    matrix = draw(*shape)
    for cutoff in (1e-15, 0.3):
        ours = pseudo_inverse(matrix, cutoff)
        torch.testing.assert_close(ours, torch.from_numpy(np.linalg.pinv(matrix.numpy(), rcond=cutoff)), atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(ours, torch.linalg.pinv(matrix, rtol=cutoff), atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(ours, torch.from_numpy(scipy.linalg.pinv(matrix.numpy(), rtol=cutoff)), atol=1e-12, rtol=1e-10)
    stacked = torch.stack([matrix, 2 * matrix, torch.zeros_like(matrix)])
    torch.testing.assert_close(pseudo_inverse(stacked, 0.1), torch.stack([pseudo_inverse(one, 0.1) for one in stacked]))
    assert not pseudo_inverse(torch.zeros(shape)).any()


def test_on_a_kernel_cur_is_the_nystroem_approximation() -> None:
    points = draw(60, 4).numpy()
    peer = Nystroem(gamma=0.3, n_components=15, random_state=0).fit(points)
    anchors = torch.from_numpy(peer.component_indices_.copy())
    features = peer.transform(points)
    kernel = torch.from_numpy(rbf_kernel(points, gamma=0.3))
    ours = estimate(kernel, anchors, anchors, cutoff=1e-15)
    np.testing.assert_allclose(ours.numpy(), features @ features.T, atol=1e-6)


@pytest.mark.parametrize("name", PUBLIC["cases"])
def test_numbers_of_the_public_class(name: str) -> None:
    case = PUBLIC["cases"][name]
    scores, new = (torch.tensor(PUBLIC[key], dtype=torch.float64) for key in ("scores", "new"))
    queries, anchors = torch.tensor(PUBLIC["queries"]), torch.tensor(PUBLIC["anchors"])
    columns, rows = scores[:, anchors], scores[queries]
    middle = oracle_middle(columns, scores, rows) if "oracle" in name else None
    orientation: Any = "rows" if name.startswith("rows") else "columns"
    left, right = cur(columns, rows, queries, anchors, cutoff=1e-15, middle=middle, orientation=orientation)
    for ours, theirs in ((left, case["rows"]), (right, case["columns"]), (left @ right, case["all"])):
        torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64), atol=1e-9, rtol=1e-9)
    if "new" in case:
        found = approximate(new, right)
        torch.testing.assert_close(found, torch.tensor(case["new"], dtype=torch.float64), atol=1e-9, rtol=1e-9)
        assert found.topk(4).indices.tolist() == case["top"]


def test_ill_conditioned_anchors_are_survived() -> None:
    scores = low_rank(queries=60, rank=8) + 1e-4 * draw(60, 90, seed=9)
    scores[:, 1] = scores[:, 0] + 1e-14 * draw(60, seed=7)  # two items that the scorer cannot tell apart
    queries, anchors = torch.arange(30), torch.arange(30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vectors = embeddings(scores[queries], anchors)
    assert (approximate(scores[30:, anchors], vectors) - scores[30:]).abs().max() < 0.01
    with pytest.warns(UserWarning, match="30 anchor items are nearly as many as 30 anchor queries and no singular value is cut off"):
        bad = embeddings(scores[queries], anchors, 0.0)
    assert (approximate(scores[30:, anchors], bad) - scores[30:]).abs().max() > 0.05
    with pytest.warns(UserWarning, match="the condition number of the anchors' scores is"):
        embeddings(scores[queries], torch.arange(10), 1e-16)
    tiny = embeddings(1e-200 * scores[queries], anchors)
    torch.testing.assert_close(tiny, vectors, atol=1e-6, rtol=1e-6)  # the vectors have no unit: A^+ R


# ---------------------------------------------------------------------------------------------------------------------------- retrieval


def index_of(table: Tensor, queries: int = 30, anchors: Any = 10, **options: Any) -> tuple[CURIndex, CallCounter]:
    score = CallCounter(table_scorer(table))
    generator = torch.Generator().manual_seed(3)
    items = torch.arange(table.shape[1])
    return CURIndex.build(score, torch.arange(queries), items, anchors=anchors, generator=generator, **options), score


@pytest.mark.parametrize(("rounds", "join"), [(1, True), (4, True), (1, False)])
def test_calls_are_the_budget_and_scores_are_exact(rounds: int, join: bool) -> None:
    table = low_rank(50, 80, 8) + 0.1 * draw(50, 80, seed=4)
    index, score = index_of(table)
    assert score.calls == index.calls == 30 * 80
    for budget in (11, 25, 79, 80, 200):
        score.calls = 0
        found = index.search(torch.tensor(40), 1, budget, rounds=rounds, join=join)
        assert score.calls == found.calls == (min(budget, 80) if join else 10 + min(budget - 10, 80))
        torch.testing.assert_close(found.scores, table[40, found.items])
        assert len(set(found.items.tolist())) == len(found.items)
    found = index.search(torch.tensor(40), 7, 90, rounds=rounds, join=join)
    assert found.items.tolist() == table[40].topk(7).indices.tolist()  # everything was scored


def test_without_join_the_anchors_must_be_retrieved_again() -> None:
    table = low_rank(50, 80, 4)
    index, score = index_of(table)
    exact = table[40].topk(5).indices
    assert index.search(torch.tensor(40), 5, 15, join=False).items.tolist() == exact.tolist()
    assert index.search(torch.tensor(40), 5, 15).items.tolist() == exact.tolist()
    assert score.calls == 30 * 80 + 30
    one, _ = index_of(draw(50, 80), anchors=[0, 1, 2])
    assert set(one.search(torch.tensor(40), 3, 3).items.tolist()) == {0, 1, 2}  # a budget of the anchors alone


@pytest.mark.parametrize("rounds", [1, 3])
def test_many_queries_at_once_find_what_single_searches_find(rounds: int) -> None:
    table = low_rank(50, 80, 8) + 0.3 * draw(50, 80, seed=4)
    index, _ = index_of(table)
    tests = table[30:]
    items, scores = retrieve(lambda n: tests.gather(1, n), index.rows, index.vectors, index.anchors, 30, queries=20, rounds=rounds)
    torch.testing.assert_close(scores, tests.gather(1, items))
    for row in range(20):
        found = index.search(torch.tensor(30 + row), 5, 30, rounds=rounds)
        assert found.items.tolist() == items[row, scores[row].topk(5).indices].tolist()
    assert recall(items, tests, 5).mean() == pytest.approx(
        np.mean([len(set(items[i].tolist()) & set(tests[i].topk(5).indices.tolist())) / 5 for i in range(20)])
    )


def test_a_refit_with_the_same_anchors_is_the_first_fit() -> None:
    table = low_rank(50, 80, 8) + 0.3 * draw(50, 80, seed=4)
    anchors = torch.arange(12)
    found = refit(table[:30], anchors.expand(20, -1), table[30:, anchors])
    torch.testing.assert_close(found, approximate(table[30:, anchors], embeddings(table[:30], anchors)), atol=1e-8, rtol=1e-8)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_recall_never_falls_with_the_budget(seed: int) -> None:
    table = draw(40, 60, seed=seed)
    rows, tests = table[:25], table[25:]
    anchors = torch.arange(8)
    vectors = embeddings(rows, anchors)
    values = []
    for budget in (8, 9, 20, 40, 60, 70):
        items, _ = retrieve(lambda n: tests.gather(1, n), rows, vectors, anchors, budget, queries=15)
        values.append(recall(items, tests, 10))
    assert all((later >= earlier).all() for earlier, later in pairwise(values))
    assert (values[-1] == 1).all()


def test_any_callable_and_any_kind_of_items() -> None:
    texts = ["a", "bb", "abc", "abca", "zzcab", "bb", "zz", "ab"]

    def shared(queries: list[str], items: list[str]) -> list[list[float]]:
        return [[len(set(q) & set(i)) - 0.1 * len(i) for i in items] for q in queries]

    index = CURIndex.build(shared, ["ab", "c", "z"], texts, anchors=[0, 6])
    assert [texts[i] for i in index.search("abc", 2, 8).items.tolist()] == ["abc", "abca"]
    points = draw(50, 3)
    near = lambda q, i: -torch.cdist(q, i)
    by_tensor = CURIndex.build(near, points[:12], points[12:], anchors=[1, 5, 9, 11])
    by_array = CURIndex.build(lambda q, i: -np.linalg.norm(q[:, None] - i, axis=-1), points[:12].numpy(), points[12:].numpy(), anchors=[1, 5, 9, 11])
    torch.testing.assert_close(by_tensor.vectors, by_array.vectors, atol=1e-6, rtol=1e-6)
    assert by_tensor.search(points[3], 4, 30).items.tolist() == by_array.search(points[3].numpy(), 4, 30).items.tolist()
    torch.testing.assert_close(by_tensor.approximate(points[3]), by_tensor.rows[3, by_tensor.anchors] @ by_tensor.vectors)


def test_new_items_need_no_new_index() -> None:
    table = low_rank(50, 80, 6)
    score = table_scorer(table)
    part = CURIndex.build(score, torch.arange(30), torch.arange(60), anchors=list(range(10)))
    grown = part.add(torch.arange(60, 80))
    whole = CURIndex.build(score, torch.arange(30), torch.arange(80), anchors=list(range(10)))
    torch.testing.assert_close(grown.vectors, whole.vectors, atol=1e-8, rtol=1e-8)
    assert grown.search(torch.tensor(44), 5, 20).items.tolist() == whole.search(torch.tensor(44), 5, 20).items.tolist()
    words = CURIndex.build(lambda q, i: [[float(len(a) * len(b)) for b in i] for a in q], ["a", "bb"], ["x", "yy"], anchors=[0]).add(["zzz"])
    assert words.search("q", 1, 3).items.tolist() == [2]
    array = CURIndex.build(lambda q, i: q @ i.T, np.eye(3), np.eye(3), anchors=[0, 1, 2]).add(2 * np.eye(3))
    assert array.items.shape == (6, 3)
    assert array.search(np.array([0.0, 1.0, 0.0]), 1, 6).items.tolist() == [4]


@pytest.mark.parametrize("how", ["uniform", "k-means", "leverage"])
def test_ways_to_choose_anchors(how: Any) -> None:
    rows = draw(20, 60)
    one, again = (choose_anchors(rows, 15, how, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert one.tolist() == again.tolist() == sorted(set(one.tolist()))
    assert len(one) == 15
    same = torch.ones(4, 10, dtype=torch.float64)
    assert len(choose_anchors(same, 6, how, generator=torch.Generator().manual_seed(1))) == 6  # one group, one direction, six anchors
    assert choose_anchors(rows, 60, how).tolist() == list(range(60))


def test_leverage_is_high_for_what_the_others_do_not_explain() -> None:
    rows = low_rank(20, 60, 1)
    rows[:, 7] = draw(20, seed=8)
    found = leverage_scores(rows, 20)
    assert found.argmax() == 7
    assert found[7] == pytest.approx(1, abs=1e-2)
    assert found.sum() == pytest.approx(2)
    groups = torch.eye(3, dtype=torch.float64).repeat_interleave(10, 1)
    chosen = choose_anchors(groups, 3, "k-means", generator=torch.Generator().manual_seed(0))
    assert (chosen // 10).tolist() == [0, 1, 2]


# ------------------------------------------------------------------------------------------------------------------------------- errors


def test_wrong_values_are_refused() -> None:
    rows = draw(5, 12)
    holes = rows.clone()
    holes[2, 3] = torch.nan
    for anchors, message in (
        ([], "anchors must be at least one item number"),
        ([0.5], "anchors must be at least one item number"),
        ([1, 1], "anchors must differ, got 2 numbers of 1 items"),
        ([12], "anchors must be item numbers from 0 to 11, got 1 from 12 to 12"),
        (list(range(13)), "anchors must be item numbers from 0 to 11, got 13"),
    ):
        with pytest.raises(ValueError, match=message):
            embeddings(rows, torch.tensor(anchors))
    with pytest.raises(ValueError, match="the scores of the anchor queries hold 1 of 60 values that are NaN or infinite"):
        embeddings(holes, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="hold 1 of 60 values"):
        pseudo_inverse(holes)
    with pytest.raises(ValueError, match="matrix with at least one row"):
        embeddings(torch.zeros(0, 4), torch.tensor([0]))
    for cutoff in (-1e-3, 1.0, float("nan")):
        with pytest.raises(ValueError, match="cutoff must be at least 0 and below 1"):
            pseudo_inverse(rows, cutoff)
    vectors = embeddings(rows, torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"columns must be \(n, k_i\) and vectors \(k_i, m\), got \(2, 3\) and \(2, 12\)"):
        approximate(torch.zeros(2, 3), vectors)
    with pytest.raises(ValueError, match="the scores with the anchor items hold 1 of 2"):
        approximate(torch.tensor([[torch.inf, 0.0]]), vectors)
    scores = draw(8, 12)
    asked, known = torch.arange(5), torch.arange(3)
    with pytest.raises(ValueError, match="5 anchor queries and 3 anchor items do not fit columns"):
        cur(scores[:, :4], scores[:5], asked, known)
    with pytest.raises(ValueError, match="rows and columns hold different scores where they meet"):
        cur(scores[:, 1:4], scores[:5], asked, known)
    with pytest.raises(ValueError, match="anchors must be query numbers from 0 to 7"):
        cur(scores[:, :3], scores[:5], asked + 5, known)
    with pytest.raises(ValueError, match="orientation must be"):
        cur(scores[:, :3], scores[:5], asked, known, orientation="both")  # type: ignore[arg-type]
    for k in (0, 13):
        with pytest.raises(ValueError, match="k must be between 1 and m=12"):
            recall(torch.zeros(8, 1, dtype=torch.long), scores, k)


def test_the_index_refuses_what_it_cannot_use() -> None:
    table = draw(40, 20)
    score = table_scorer(table)
    some, items = torch.arange(30), torch.arange(20)
    for anchors, message in ((0, "must be between 1 and m=20"), (21, "must be between 1 and m=20"), ([3, 3], "anchors must differ")):
        with pytest.raises(ValueError, match=message):
            CURIndex.build(score, some, items, anchors=anchors)
    with pytest.raises(ValueError, match="how must be one of uniform, k-means, leverage, got 'best'"):
        CURIndex.build(score, some, items, anchors=4, choose="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one anchor query and one item are needed, got 0 and 20"):
        CURIndex.build(score, some[:0], items, anchors=4)
    with pytest.raises(ValueError, match="batch must be at least 1"):
        CURIndex.build(score, some, items, anchors=4, batch=0)
    with pytest.raises(ValueError, match=r"score must give \(16, 20\) for 16 queries and 20 items, got \(20, 16\)"):
        CURIndex.build(lambda q, i: score(q, i).T, some, items, anchors=4)
    with pytest.raises(ValueError, match="the scorer's answer hold 320 of 320 values"):
        CURIndex.build(lambda q, i: score(q, i) / 0, some, items, anchors=4)
    index = CURIndex.build(score, some, items, anchors=4)
    query = torch.tensor(33)
    for budget in (0, 3):
        with pytest.raises(ValueError, match="budget must be at least 4, as 4 calls go to the anchor items"):
            index.search(query, 1, budget)
    for k, budget, most in ((0, 10, 10), (11, 10, 10), (21, 50, 20)):
        with pytest.raises(ValueError, match=f"k must be between 1 and {most}, the items that a budget of {budget} can return, got {k}"):
            index.search(query, k, budget)
    with pytest.raises(ValueError, match="k must be between 1 and 6"):
        index.search(query, 7, 10, join=False)
    with pytest.raises(ValueError, match="rounds must be at least 1, and 1 without join"):
        index.search(query, 1, 10, rounds=0)
    with pytest.raises(ValueError, match="rounds must be at least 1, and 1 without join"):
        index.search(query, 1, 10, rounds=2, join=False)
    spoilt = replace(index, score=lambda q, i: score(q, i) * torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite"):
        spoilt.search(query, 1, 10)
    with pytest.raises(ValueError, match="NaN or infinite"):
        spoilt.add(items)
    assert exact_scores(score, query, items, items[:0]).shape == (0,)


# ------------------------------------------------------------------------------------------------------------------ the cross-encoders

TEXTS = ["the matrix of a signal", "transform of the matrix", "long signal", "graph of the inverse"]


def test_marks_stand_where_they_belong() -> None:
    words = Vocabulary.of(TEXTS, 40, special=(*SPECIAL, *MARKS))
    names = {number: name for name, number in words.number.items()}
    tokens, types = words.pairs(["long signal", "matrix"], ["transform", "the long matrix"], 20)
    marks = [words.number[name] for name in MARKS]
    marked, kinds = mark(tokens, types, marks, 0)
    assert " ".join(names[i] for i in marked[0].tolist()) == "[CLS] [Q] long signal [/Q] [SEP] [I] transform [SEP] [PAD]"
    assert " ".join(names[i] for i in marked[1].tolist()) == "[CLS] [Q] matrix [/Q] [SEP] [I] the long matrix [SEP]"
    assert kinds.tolist()[1] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="every pair needs tokens of type 1"):
        mark(tokens, torch.zeros_like(types), marks, 0)
    with pytest.raises(ValueError, match="three different numbers"):
        EmbeddingCrossEncoder(TokenEncoder(40, 8, 2, 1), [1, 1, 2])
    with pytest.raises(ValueError, match=r"the vocabulary has no \[Q\]"):
        add_marks(TokenEncoder(40, 8, 2, 1), Vocabulary.of(TEXTS, 40))
    with pytest.raises(TypeError, match="or to a pretrained body and tokeniser together"):
        add_marks(TokenEncoder(40, 8, 2, 1), object())  # type: ignore[arg-type]


@pytest.mark.parametrize("public", [False, True])
def test_the_embedding_cross_encoder_on_a_transformer(public: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    body: Any
    words: Any
    if public:
        pytest.importorskip("transformers")
        body, words = pretrained(tiny_bert(tmp_path, layers=2))
    else:
        words = Vocabulary.of(TEXTS, 40, special=(*SPECIAL, *MARKS))
        body = TokenEncoder(len(words), 8, 2, 2)
    marks = add_marks(body, words)
    model = EmbeddingCrossEncoder(body, marks).eval()
    tokens, types = words.pairs(TEXTS[:2], TEXTS[1:3], 30)
    query, item = model.embed(tokens, types)
    marked, kinds = mark(tokens, types, marks, body.padding)
    states = body(marked, types=kinds)
    for row in range(2):
        places = [marked[row].tolist().index(number) for number in marks]
        torch.testing.assert_close(query[row], (states[row, places[0]] + states[row, places[1]]) / 2)
        torch.testing.assert_close(item[row], states[row, places[2]])
    torch.testing.assert_close(model(tokens, types), (query * item).sum(1))
    alone = words.pairs(TEXTS[1:2], TEXTS[2:3], 30)
    torch.testing.assert_close(model(*alone)[0], model(tokens, types)[1], atol=1e-5, rtol=1e-4)  # padding changes nothing
    other = model.embed(*words.pairs(TEXTS[:1], TEXTS[3:4], 30))[0][0]
    assert (other - query[0]).abs().max() > 1e-4  # the query's vector depends on the item: a cross-encoder
    scorer = JointScorer(model, words, most=12, batch=3)
    found = scorer(TEXTS[:2], TEXTS)
    assert found.shape == (2, 4)
    torch.testing.assert_close(found[1, 2], scorer.pairs(TEXTS[1:2], TEXTS[2:3])[0], atol=1e-5, rtol=1e-4)
    index = CURIndex.build(scorer, TEXTS[:2], TEXTS, anchors=[0, 3], cutoff=1e-3)
    assert index.search(TEXTS[2], 1, 4).items[0] == scorer(TEXTS[2:3], TEXTS)[0].argmax()
    generator = torch.Generator().manual_seed(0)
    for trained in (model, CrossEncoder(body)):
        pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
        history = train_joint(
            JointScorer(trained, words, most=20), pairs, hard_negatives(pairs), steps=3, batch=2, rate=1e-3, hard=2, easy=1, generator=generator
        )
        assert len(history.losses) == 3
    assert body.token.weight.grad is not None if isinstance(body, TokenEncoder) else True


def test_both_heads_see_both_texts() -> None:
    vectors = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = TwoHeads(DecomposableAttention(vectors, hidden=8, features=5, start=1.0))
    queries, items = torch.tensor([[1, 2, 0], [3, 4, 5]]), torch.tensor([[6, 7], [8, 0], [9, 10]])
    found = PairScorer(model, batch=2).all(queries, items)
    assert found.shape == (2, 3, 2)
    u, v = model.trunk.pooled(queries[1:], items[2:])
    torch.testing.assert_close(found[1, 2, 1], ((u @ model.query.weight.T) * (v @ model.item.weight.T)).sum())
    torch.testing.assert_close(found[1, 2, 0], model.trunk.head((u + v) / 2)[0, 0])
    torch.testing.assert_close(PairScorer(model, 1, batch=100)(queries, items), found[..., 1])
    other, _ = model.trunk.pooled(queries[1:], items[:1])
    assert (other - u).abs().max() > 1e-3


def test_training_draws_the_right_item_first() -> None:
    pairs = [(f"alpha beta word{i}", f"alpha beta thing{i % 3}") for i in range(8)]
    negatives = hard_negatives(pairs)
    assert negatives.shape == (8, 7)
    for row in range(8):
        nearest = negatives[row, 0].item()
        assert nearest % 3 != row % 3  # an item with the same text is right as well, and no negative as long as there are others
    shown = candidates(torch.tensor([2, 5]), negatives, 3, 2, torch.Generator().manual_seed(0))
    assert shown.shape == (2, 6)
    assert shown[:, 0].tolist() == [2, 5]


def test_small_models_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 40, (60, 6), generator=generator)
    vectors = torch.randn(40, 8, generator=generator)
    dual = MeanOfWords(vectors)
    losses = train_dual(dual, tokens, tokens.flip(1), steps=10, batch=20, rate=1e-2, generator=generator).losses
    assert losses[-1] < losses[0]
    scores = torch.randn(60, 60, generator=generator)
    losses = distil(dual, tokens, tokens, scores, steps=40, batch=60, rate=2e-2, sharpness=2.0, generator=generator).losses
    assert losses[-1] < losses[0]
    torch.manual_seed(0)
    model = TwoHeads(DecomposableAttention(vectors, hidden=8, features=5))
    losses = train_heads(
        model, tokens, tokens.flip(1), torch.arange(60).repeat(60, 1)[:, :30], steps=40, batch=16, rate=1e-2, generator=generator
    ).losses
    assert sum(losses[-5:]) < sum(losses[:5])


# ----------------------------------------------------------------------------------------------------------------- worlds and baselines


def test_rerankers_spend_the_same() -> None:
    table = draw(4, 30)
    score = CallCounter(table_scorer(table))
    cheap = table + draw(4, 30, seed=3)
    rerank = Reranker(score, torch.arange(30), lambda query: cheap[query])
    found = rerank.search(torch.tensor(2), 3, 12)
    assert found.calls == score.calls == 12
    pool = cheap[2].topk(12).indices
    assert found.items.tolist() == pool[table[2, pool].topk(3).indices].tolist()
    torch.testing.assert_close(found.scores, table[2, found.items])
    assert rerank.search(torch.tensor(2), 3, 99).items.tolist() == table[2].topk(3).indices.tolist()
    for k in (0, 13):
        with pytest.raises(ValueError, match="k must be between 1 and 12"):
            rerank.search(torch.tensor(2), k, 12)


def test_other_approximations() -> None:
    scores = draw(9, 20)
    assert torch.linalg.matrix_rank(truncated_svd(scores, 3)) == 3
    kernel = scores.T @ scores
    torch.testing.assert_close(item_item_products(scores[:, :4], kernel[:4]), scores[:, :4] @ kernel[:4])
    points = draw(20, 3)
    torch.testing.assert_close(projected(points[:5], points, 3), -torch.cdist(points[:5], points))


def test_worlds() -> None:
    world = documentation_world(3, items=60, anchors=20, tests=10, most=50)
    assert (len(world.items), len(world.anchors), len(world.tests), len(world.train)) == (60, 20, 10, 50)
    assert world.relevant[0] == (20,)
    assert all(len(text.split()) == 16 for text in (*world.items, *world.tests, *world.anchors))
    assert not {item for _, item in world.train} & set(world.items)
    assert documentation_world(3, items=60, anchors=20, tests=10, most=50) == world
    unseen = documentation_world(3, items=60, anchors=20, tests=10, most=50, unseen=True)
    assert all(text.startswith(("scipy", "networkx")) for text in unseen.items)
    assert not any(item.startswith(("scipy", "networkx")) for _, item in unseen.train)
    with pytest.raises(ValueError, match="anchors \\+ tests must be at most items"):
        documentation_world(3, items=60, anchors=60, tests=10)
    assert tfidf(["one two"], ["one two", "three"])[0].tolist() == pytest.approx([1, 0])
    for kind in ("gaussian", "distance"):
        scores, asked, items = digit_scores(0, kind)
        assert scores.anchors.shape == scores.tests.shape == (100, 1597)
        assert scores.tests[3].argmax() == (asked[3] - items).norm(dim=1).argmin()
    with pytest.raises(ValueError, match="kind must be"):
        digit_scores(0, "cosine")
    plain, spiked = made_scores(1), made_scores(1, spike=6.0)
    assert torch.linalg.matrix_rank(torch.cat([plain.anchors, plain.tests])) == 10
    assert ((spiked.tests - plain.tests).abs() > 1).sum(1).tolist() == [1] * 100
    assert directions(low_rank(rank=3)) <= 3


@pytest.mark.skipif(not (REAL / "cranfield").is_dir(), reason="the published files are not here")
@pytest.mark.skipif(find_spec("wordllama") is None, reason="needs the package wordllama")
def test_cranfield_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    whole = cranfield_world(0)
    assert (len(whole.items), len(whole.anchors), len(whole.tests)) == (1398, 125, 100)
    assert set(whole.anchors).isdisjoint(whole.tests)
    world = cranfield_world(0, tests=215, items=80)
    world = replace(world, tests=world.tests[:3], relevant=world.relevant[:3])
    assert len(world.items) == 80 and len(world.anchors) == 10
    few = CURSettings(seeds=1, encoder="words", dual_steps=2, cross_steps=2, distil_steps=2, budgets=(20, 40), depths=(1, 10), draws=1)
    scored = score_world(world, few, 0, torch.device("cpu"), length=12, between=10)
    assert scored.tests.shape == (2, 3, 80)
    arms = study_of.study(scored, few, 0, whole=True)
    assert 0 <= arms["CUR, half"]["found_ndcg_10"] <= 1
    assert arms["TF-IDF"]["calls"] == arms["CUR, half"]["calls"] == 40


def test_a_pretrained_cross_encoder_by_one_argument(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    world = documentation_world(3, items=24, anchors=8, tests=4, most=20)
    few = CURSettings(seeds=1, encoder=tiny_bert(tmp_path), dual_steps=2, cross_steps=2, distil_steps=2, budgets=(12,), depths=(1, 10), draws=1)
    scored = score_world(world, few, 0, torch.device("cpu"), length=12)
    assert scored.anchors.shape == (2, 8, 24)
    assert scored.anchors.std() > 0
    assert study_of.study(scored, few, 0, whole=False)["CUR, half"]["recall_10_12"] > 0


# ----------------------------------------------------------------------------------------------------------- experiment and explorer


def test_the_quick_experiment() -> None:
    arms = run_quick(EXPERIMENT)
    assert arms["CUR, half"]["calls"] == arms["CUR, adaptive anchors"]["calls"] == arms["TF-IDF"]["calls"] == 100
    assert arms["CUR, half"]["index_calls"] == 60 * 300
    for suffix in ("", "_unseen"):
        for k in (1, 10, 50):
            values = [arms["CUR, half"][f"recall_{k}_{budget}{suffix}"] for budget in (50, 100, 200)]
            assert 0 < values[0] <= values[2] <= 1
    assert arms["CUR"]["exact_10_recall_1"] == 1
    assert arms["CUR"]["spike_20_recall_1"] < 0.4
    assert arms["CUR"]["gaussian_anchors_100"] > arms["CUR, no cut-off"]["gaussian_anchors_100"]


def test_what_the_experiment_searches_is_what_the_index_finds() -> None:
    scores = made_scores(0, noise=0.3)
    generator = torch.Generator().manual_seed(4)
    found = searched(scores.anchors, scores.tests, 60, 20, generator)
    table = torch.cat([scores.anchors, scores.tests])
    score = table_scorer(table)
    index = CURIndex.build(score, torch.arange(100), torch.arange(1000), anchors=20, generator=torch.Generator().manual_seed(4))
    for row in (0, 50):
        assert set(found[row].tolist()) == set(index.search(torch.tensor(100 + row), 60, 60).items.tolist())


def test_the_explorer_is_moved_by_mouse_and_keyboard() -> None:
    shown = touch.explorer()
    assert "[CLS] head, 50 uniform anchors" in shown.text
    shown.point("drag", 98.0, 0.5, axes=touch.CURVE)
    assert shown.values["count"] == 100
    shown.point("press", 30.0, 5.0, axes=1)
    assert shown.values["query"] == int(touch.source(touch.SOURCES[0]).rows[5]) + 1
    shown.point("press", 30.0, touch.SHOWN_ROWS + 7.0, axes=0)
    assert shown.values["query"] == int(touch.source(touch.SOURCES[0]).rows[7]) + 1
    asked = shown.values["query"]
    for key, name, value in (
        ("ArrowLeft", "count", 90),
        ("ArrowRight", "count", 100),
        ("ArrowDown", "query", asked + 1),
        ("ArrowUp", "query", asked),
    ):
        shown.point("key", 0, 0, key=key)
        assert shown.values[name] == value
    shown.preset("exactly rank 10")
    assert "CUR 1.00" in shown.text
    shown.preset("a spike a query, k = 1")
    assert "best missed" in shown.text
    shown.set(count=150, budget=100)
    assert "CUR too few calls" in shown.text


def test_recall_curves_of_the_explorer_are_those_of_searches() -> None:
    found = touch.source(touch.SOURCES[0])
    generator = stream(0, "cur_retrieval", "explorer anchors")
    items = searched(found.anchors, found.tests, 90, 40, generator)
    curve = touch.recall_by_calls(touch.places(touch.SOURCES[0], "uniform", 40, CUTOFF), 10)
    assert curve[90] == pytest.approx(recall(items, found.tests, 10).mean().item())
    cheap = found.cheap["TF-IDF"]
    curve = touch.recall_by_calls(touch.rival_places(touch.SOURCES[0], "TF-IDF"), 10)
    assert curve[200] == pytest.approx(recall(cheap.topk(200).indices, found.tests, 10).mean().item(), abs=0.02)  # ties among no common words
