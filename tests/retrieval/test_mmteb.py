"""Selection against explicit regressions and the public function, Borda, pools, samples; the ten categories; worlds, board, command, explorers."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from real_files import REAL
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import v_measure_score
from torch import Tensor

from mtlearn import cli
from mtlearn.datasets import locales
from mtlearn.lab.checkpoints import provenance
from mtlearn.lab.ranking import ranking_by_query, ranking_measures
from mtlearn.lab.store import StoreError
from mtlearn.layers.embedding import EncoderError
from mtlearn.retrieval.mmteb import experiment as mmteb
from mtlearn.retrieval.mmteb.exercises import EXERCISES
from mtlearn.retrieval.mmteb.explorer import explorer, podium
from mtlearn.retrieval.mmteb.leaderboard import PROBES, Board, fingerprint, summary
from mtlearn.retrieval.mmteb.method import (
    bootstrap_v_measure,
    borda,
    check_scores,
    complete,
    hard_pool,
    mean_scores,
    places,
    predict_left_out,
    predictability,
    random_pool,
    random_subsets,
    select_tasks,
    spearman,
    within,
)
from mtlearn.retrieval.mmteb.models import KINDS, SUITE, classical, load_encoder, suite
from mtlearn.retrieval.mmteb.published import ENGLISH, read_published
from mtlearn.retrieval.mmteb.tasks import (
    CATEGORIES,
    STS,
    BitextMining,
    Cached,
    Classification,
    Clustering,
    InstructionReranking,
    MultilabelClassification,
    PairClassification,
    Reranking,
    Retrieval,
    Summarization,
    evaluate,
    p_mrr,
)
from mtlearn.retrieval.mmteb.worlds import FOREIGN, Sizes, benchmark, groups_of, kinds_of, near_copies, real_tasks, scipy_retrieval

SMALL = Sizes(pages=16, test=12, names=12)


def drawn(models: int, tasks: int, seed: int = 0, *, level: float = 0.5) -> Tensor:
    """Scores with something in common."""
    draws = torch.Generator().manual_seed(seed)
    common = torch.rand(models, 1, generator=draws, dtype=torch.float64)
    return level * common + (1 - level) * torch.rand(models, tasks, generator=draws, dtype=torch.float64)


def letters(texts: list[str]) -> Tensor:
    """An encoder: how often each letter is there."""
    return torch.tensor([[1.0 + text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])


# predictions


@pytest.mark.parametrize(("models", "tasks"), [(23, 70), (12, 4), (12, 11), (12, 12), (12, 13), (12, 14), (5, 9), (30, 10)])
def test_left_out_predictions_are_those_of_scikit_learn(models: int, tasks: int) -> None:
    scores = drawn(models, tasks, models + tasks)
    found = predict_left_out(scores)
    for task in range(tasks):
        others = np.delete(scores.numpy(), task, 1)
        for model in range(0, models, 3):
            rest = np.delete(np.arange(models), model)
            fit = LinearRegression().fit(others[rest], scores[rest, task].numpy())
            assert float(found[model, task]) == pytest.approx(fit.predict(others[[model]])[0], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("models", "tasks"), [(9, 5), (8, 12)])
def test_ridge_is_that_of_scikit_learn(models: int, tasks: int) -> None:
    scores = drawn(models, tasks)
    found = predict_left_out(scores, ridge=0.3)
    for task in range(tasks):
        others = np.delete(scores.numpy(), task, 1)
        penalty = 0.3 * ((others - others.mean(0)) ** 2).sum() / models
        for model in range(models):
            rest = np.delete(np.arange(models), model)
            fit = Ridge(alpha=penalty).fit(others[rest], scores[rest, task].numpy())
            assert float(found[model, task]) == pytest.approx(fit.predict(others[[model]])[0], rel=1e-8)


def test_predictability_is_that_of_the_public_function() -> None:
    cases = json.loads((Path(__file__).parent / "public" / "mmteb.json").read_text())["cases"]
    assert [np.array(case["scores"]).shape for case in cases] == [(9, 4), (6, 10)]
    for case in cases:
        found, wanted = predictability(torch.tensor(case["scores"], dtype=torch.float64)), torch.tensor(case["spearman, pearson, error"]).double()
        torch.testing.assert_close(torch.stack([found.spearman, found.pearson, found.error], 1), wanted, rtol=1e-6, atol=1e-6)


def test_the_error_is_standardised_by_what_was_observed() -> None:
    scores = drawn(12, 5)
    predicted, found = predict_left_out(scores).numpy(), predictability(scores)
    for task in range(5):
        seen = scores[:, task].numpy()
        error = (((predicted[:, task] - seen.mean()) / seen.std() - (seen - seen.mean()) / seen.std()) ** 2).mean()
        assert float(found.error[task]) == pytest.approx(error)
        assert float(found.spearman[task]) == pytest.approx(spearmanr(predicted[:, task], seen)[0])
        assert float(found.pearson[task]) == pytest.approx(pearsonr(predicted[:, task], seen)[0])
    # 1 - R^2 holds of a fit that has seen everything, not of one that has left a model out
    others = np.delete(scores.numpy(), 0, 1)
    assert float(found.error[0]) > 1 - LinearRegression().fit(others, scores[:, 0].numpy()).score(others, scores[:, 0].numpy())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.sampled_from([(14, 6), (7, 12)]))
def test_the_order_of_models_and_tasks_does_not_matter(seed: int, shape: tuple[int, int]) -> None:
    scores, draws = drawn(*shape, seed), torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(shape[0], generator=draws), torch.randperm(shape[1], generator=draws)
    found, moved = predictability(scores), predictability(scores[rows][:, columns])
    torch.testing.assert_close(moved.error, found.error[columns], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(moved.spearman, found.spearman[columns])


# selection


@pytest.mark.parametrize(("models", "tasks"), [(20, 6), (8, 15)])
def test_one_of_two_equal_columns_goes_first(models: int, tasks: int) -> None:
    scores = drawn(models, tasks, level=0.1)
    twice = torch.cat([scores, scores[:, [2]]], 1)
    found = select_tasks(twice, threshold=0.95)
    if models > tasks:  # then the copy alone fits; with fewer models the shortest weights may spread over all tasks
        assert found.removed[0].task in (2, tasks)
        assert found.removed[0].spearman == pytest.approx(1) and found.removed[0].error < 1e-12
        assert not {2, tasks} <= {removal.task for removal in found.removed}
    else:
        assert not {2, tasks} <= {removal.task for removal in select_tasks(twice, threshold=0.95, ridge=1e-9).removed}


def test_noise_is_never_removed_and_thresholds_have_ends() -> None:
    scores = torch.cat([drawn(40, 8, level=0.9), drawn(40, 1, 5, level=0.0)], 1)
    assert 8 in select_tasks(scores, threshold=0.95).kept
    assert select_tasks(scores, threshold=1.01).removed == ()
    groups = [{"a"}, {"a"}, {"b"}, {"b"}, {"b"}, {"c"}, {"c"}, {"c"}, {"d"}]
    kept = select_tasks(scores, groups, threshold=-1.0, most_error=float("inf")).kept
    assert sorted(next(iter(groups[i])) for i in kept) == ["a", "b", "c", "d"]


def test_groups_and_known_good_tasks_stay() -> None:
    scores = drawn(40, 6, level=0.95)
    every = select_tasks(scores, threshold=0.5, most_error=1.0)
    assert len(every.removed) == 4
    first = every.removed[0].task
    assert first in select_tasks(scores, threshold=0.5, most_error=1.0, keep=[first]).kept
    languages = [{("STS", "eng")}] * 5 + [{("STS", "eng"), ("STS", "fin")}]
    assert 5 in select_tasks(scores, languages, threshold=-1.0, most_error=float("inf")).kept
    assert every.at(0) == (0, 1, 2, 3, 4, 5) and every.at(4) == every.kept and len(every.at(1)) == 5
    with pytest.raises(ValueError, match="count must be between 0 and 4"):
        every.at(5)


def test_as_many_tasks_as_models_break_the_regression_and_a_penalty_mends_it() -> None:
    scores = drawn(15, 15, level=0.95)
    plain, mended = predictability(scores), predictability(scores, ridge=0.01)
    assert float(plain.error.median()) > 5 * float(mended.error.median())
    assert float(mended.spearman.median()) > 0.8
    assert float(predictability(drawn(15, 40, level=0.95)).error.median()) < 0.2  # far beyond the peak it is well again


def test_a_constant_task_is_kept_with_a_warning() -> None:
    scores = drawn(20, 4, level=0.95)
    scores[:, 1] = 0.5
    with pytest.warns(UserWarning, match=re.escape("tasks [1] have one score for all models")):
        assert 1 in select_tasks(scores, threshold=0.0, most_error=5.0).kept


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: select_tasks(s[:2]), "at least 3 models and 2 tasks, got (2, 5)"),
        (lambda s: select_tasks(s[:, :1]), "at least 3 models and 2 tasks, got (9, 1)"),
        (lambda s: select_tasks(s.index_fill(1, torch.tensor(2), torch.nan)), "1 tasks have missing or infinite scores: 2; drop them first"),
        (lambda s: check_scores(s, models=["a"] * 9), "models must have different names; 'a' is there more than once"),
        (lambda s: check_scores(s, tasks=["a"]), "scores are (9, 5), but 0 models and 1 tasks are named"),
        (lambda s: check_scores(s / 0, tasks=list("vwxyz")), "5 tasks have missing or infinite scores: v, w, x, y, z"),
        (lambda s: select_tasks(s, [{"a"}] * 4), "5 tasks need as many groups, got 4"),
        (lambda s: select_tasks(s, [{"a"}, set(), {"a"}, {"a"}, {"a"}]), "task 1 has no type"),
        (lambda s: select_tasks(s, keep=[5]), "keep must be columns 0 to 4, got 5"),
        (lambda s: predict_left_out(s, ridge=-1.0), "ridge must be 0 or more, got -1.0"),
        (lambda s: random_subsets(s, 6, s.mean(1)), "size must be between 1 and the 5 tasks"),
        (lambda s: borda(s[:1]), "at least 2 models and a task, got (1, 5)"),
        (lambda s: mean_scores(s, ["a"]), "5 tasks need as many types, got 1"),
    ],
)
def test_what_a_matrix_of_scores_must_be(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call(drawn(9, 5))


def test_columns_with_gaps_can_be_left_out() -> None:
    scores = drawn(6, 4)
    scores[2, 1] = torch.nan
    assert complete(scores).tolist() == [0, 2, 3]
    assert len(select_tasks(scores[:, complete(scores)], threshold=2).kept) == 3


# one order


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(1, 6), st.integers(0, 999))
def test_borda(models: int, tasks: int, seed: int) -> None:
    scores = torch.randint(0, 4, (models, tasks), generator=torch.Generator().manual_seed(seed)).double()  # many ties
    points = borda(scores)
    assert float(points.sum()) == pytest.approx(tasks * models * (models - 1) / 2)
    wanted = (rankdata(scores.numpy(), axis=0) - 1).sum(1)
    torch.testing.assert_close(points, torch.from_numpy(wanted))
    torch.testing.assert_close(borda(scores**3 + 2 * scores), points)  # any increasing change of a task's scale
    torch.testing.assert_close(places(points), torch.from_numpy(rankdata(-points.numpy(), method="min")))


def test_a_missing_score_gives_no_points() -> None:
    scores = torch.tensor([[0.9, torch.nan], [0.5, 0.2], [0.1, 0.8]])
    assert borda(scores).tolist() == [2.0, 2.0, 2.0]
    assert borda(torch.tensor([[0.9, 0.1], [0.5, 0.2]])).tolist() == [1.0, 1.0]


def test_a_mean_over_types_counts_copies_once() -> None:
    scores, kinds = drawn(5, 3), ["a", "b", "b"]
    more = torch.cat([scores, scores[:, [0]].expand(-1, 50)], 1)
    _, before = mean_scores(scores, kinds)
    mean, after = mean_scores(more, kinds + ["a"] * 50)
    torch.testing.assert_close(after, before)
    assert float(spearman(mean, scores[:, 0])) == pytest.approx(1)  # the mean follows the copied task
    torch.testing.assert_close(after, (scores[:, 0] + scores[:, 1:].mean(1)) / 2)


def test_random_subsets_of_everything_are_everything() -> None:
    scores = drawn(7, 5)
    draws = torch.Generator().manual_seed(0)
    torch.testing.assert_close(random_subsets(scores, 5, scores.mean(1), draws=9, generator=draws), torch.ones(9, dtype=torch.float64))
    one = random_subsets(scores, 1, scores.mean(1), draws=200, generator=draws)
    wanted = {round(spearmanr(scores[:, i], scores.mean(1))[0], 9) for i in range(5)}
    assert {round(value, 9) for value in one.tolist()} == wanted


# pools and samples


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.booleans(), st.integers(0, 99))
def test_pools_of_hard_negatives(depth: int, union: bool, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    rankings = [torch.rand(4, 9, generator=draws) for _ in range(3)]
    relevance = torch.zeros(4, 9, dtype=torch.int64).scatter(1, torch.randint(9, (4, 1), generator=draws), 1)
    pool = hard_pool(rankings, relevance, depth, union=union)
    assert (pool | (relevance == 0)).all()  # every relevant document is there
    assert depth < 9 or pool.all()
    assert pool.sum(1).min() >= min(depth, 9)
    if union:
        assert (pool == pool[0]).all()
    whole, part = (ranking_by_query(one, relevance, ("ndcg_cut_10",))["ndcg_cut_10"] for one in (rankings[0], within(rankings[0], pool)))
    assert (part >= whole - 1e-12).all()
    if depth >= 9:
        torch.testing.assert_close(part, whole)
    # a retriever that chose the pool has its own best documents there
    best = rankings[1].topk(min(depth, 9), 1).indices
    assert torch.equal(within(rankings[1], pool).topk(min(depth, 9), 1).indices, best)


def test_random_pools_have_the_size_asked_for() -> None:
    relevance = torch.eye(5, 40, dtype=torch.int64)
    sizes = torch.tensor([1, 3, 10, 40, 0])
    pool = random_pool(relevance, sizes, generator=torch.Generator().manual_seed(0))
    assert pool.sum(1).tolist() == [1, 3, 10, 40, 1] and pool[relevance > 0].all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hard_pool([torch.rand(2, 3)], torch.ones(2, 3), 0), "a depth of at least 1 are needed, got 1 and 0"),
        (lambda: hard_pool([], torch.ones(2, 3)), "at least one ranking"),
        (lambda: hard_pool([torch.rand(2, 4)], torch.ones(2, 3)), "got (2, 4) and (2, 3)"),
        (lambda: hard_pool([torch.rand(2, 3)], torch.tensor([[1, 0, 0], [0, 0, 0]])), "query 1 has none (1 of 2)"),
        (lambda: bootstrap_v_measure(torch.rand(4, 2), "aabb", fraction=0.0), "fraction must be above 0 and at most 1"),
        (lambda: bootstrap_v_measure(torch.rand(4, 2), "aabb", fraction=1.5), "got 1.5"),
        (lambda: bootstrap_v_measure(torch.rand(3, 2), "aabb"), "as many vectors as labels are needed, got 3 and 4"),
        (lambda: bootstrap_v_measure(torch.rand(4, 2), "aaaa", fraction=1.0), "have one label only"),
    ],
)
def test_what_pools_and_samples_refuse(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_clustering_of_samples() -> None:
    draws = torch.Generator().manual_seed(0)
    labels = [i % 3 for i in range(90)]
    vectors = torch.eye(3)[labels] + 0.01 * torch.randn(90, 3, generator=draws)
    assert bootstrap_v_measure(vectors, labels, fraction=1.0, draws=0).tolist() == pytest.approx([1.0])
    noisy = torch.eye(3)[labels] + 0.6 * torch.randn(90, 3, generator=draws)
    found = bootstrap_v_measure(noisy, labels, fraction=1.0, draws=6)
    assert found.shape == (6,) and 0.05 < float(found.min()) < float(found.max()) < 0.95
    renamed = bootstrap_v_measure(noisy, ["xyz"[label] for label in labels], fraction=1.0, draws=6)
    torch.testing.assert_close(found, renamed)
    # only what is drawn is embedded, each item once, and a V-measure is scikit-learn's
    asked: list[int] = []
    bootstrap_v_measure(torch.zeros(0, 1), labels, fraction=0.2, draws=4, embed=lambda rows: asked.extend(rows) or vectors[rows])
    assert len(asked) == len(set(asked)) == 18
    from sklearn.cluster import MiniBatchKMeans

    one = MiniBatchKMeans(n_clusters=3, n_init=1, batch_size=512, random_state=0).fit_predict(noisy.double().numpy())
    assert float(bootstrap_v_measure(noisy, labels, fraction=1.0, draws=0)[0]) == pytest.approx(v_measure_score(labels, one))


# tasks


def tasks_by_hand() -> dict[str, object]:
    told = {"name": "t", "about": "what is it?"}
    return {
        "BitextMining": BitextMining(**told, first=("cat", "dog"), second=("catt", "dogg")),
        "Classification": Classification(
            **told, train=("aaa", "aab", "zzz", "zzy"), train_labels=("a", "a", "z", "z"), test=("aba", "zyz"), test_labels=("a", "z")
        ),
        "MultilabelClassification": MultilabelClassification(
            **told,
            train=("aaa", "aab", "aac", "zzz", "zzy", "zzx"),
            train_labels=(("a",),) * 3 + (("z",),) * 3,
            test=("aba", "zyz"),
            test_labels=(("a",), ("z",)),
            neighbours=3,
        ),
        "Clustering": Clustering(**told, items=("aaa", "aab", "zzz", "zzy"), levels=(("a", "a", "z", "z"),), draws=0),
        "PairClassification": PairClassification(**told, first=("aaa", "aaa"), second=("aab", "zzz"), together=(True, False)),
        "STS": STS(**told, first=("aaa",) * 3, second=("aaa", "aaz", "zzz"), alike=(2.0, 1.0, 0.0)),
        "Retrieval": Retrieval(**told, queries=("aaa", "zzz"), documents=("aaab", "zzzb"), relevant=((0,), (1,))),
        "Reranking": Reranking(**told, queries=("aaa", "zzz"), documents=("aaab", "zzzb", "mmm"), candidates=((0, 2), (2, 1)), relevant=((0,), (1,))),
        "InstructionReranking": InstructionReranking(**told, queries=(("aaa q", "zzz q"),), documents=("aaa", "zzz"), lost=((0,),)),
        "Summarization": Summarization(**told, good=("abc", "xyz"), others=(("abc", "abz", "zzz"), ("xyz", "xya", "aaa")), grades=((2, 1, 0),) * 2),
    }


@pytest.mark.parametrize("category", list(CATEGORIES))
def test_a_perfect_answer_has_the_full_score(category: str) -> None:
    task = tasks_by_hand()[category]
    assert CATEGORIES[category] is type(task) and task.category == category and task.measure
    assert task.score(letters) == pytest.approx(0.5 if category == "InstructionReranking" else 1.0)
    read: list[str] = []
    task.score(lambda texts: read.extend(texts) or letters(texts))
    assert set(read) == set(task.texts())  # what it says it reads is what it reads


def test_scores_are_those_of_their_definitions() -> None:
    draws = torch.Generator().manual_seed(0)
    texts = tuple(f"text {i}" for i in range(12))
    table = dict(zip(texts, torch.randn(12, 4, generator=draws), strict=True))
    encode = lambda rows: torch.stack([table[row] for row in rows])
    unit = torch.nn.functional.normalize(encode(texts), dim=1)
    retrieval = Retrieval(name="r", about="?", queries=texts[:4], documents=texts[4:], relevant=((0,), (3, 4), (7,), (1,)))
    scores = unit[:4] @ unit[4:].T
    torch.testing.assert_close(retrieval.ranking(encode), scores)
    assert retrieval.score(encode) == pytest.approx(ranking_measures(scores, retrieval.relevance(), ("ndcg_cut_10",))["ndcg_cut_10"])
    bitext = BitextMining(name="b", about="?", first=texts[:6], second=texts[6:])
    from sklearn.metrics import average_precision_score, f1_score

    wanted = f1_score(range(6), (unit[:6] @ unit[6:].T).argmax(1), average="weighted", zero_division=0.0)
    assert bitext.score(encode) == pytest.approx(wanted)
    together = (True, False, True, False, False, True)
    pairs = PairClassification(name="p", about="?", first=texts[:6], second=texts[6:], together=together)
    cosines = (unit[:6] * unit[6:]).sum(1)
    assert pairs.score(encode) == pytest.approx(average_precision_score(together, cosines))
    alike = (0.1, 0.5, 0.2, 0.9, 0.4, 0.4)
    sts = STS(name="s", about="?", first=texts[:6], second=texts[6:], alike=alike)
    assert sts.score(encode) == pytest.approx(spearmanr(cosines, alike)[0])
    flat = STS(name="s", about="?", first=texts[:2], second=texts[:2], alike=(0.0, 1.0))
    assert flat.score(lambda rows: torch.ones(len(rows), 2)) == 0  # no correlation is defined


def test_p_mrr_is_that_of_followir() -> None:
    def public(before: float, after: float) -> float:  # the formula as it is printed, with reciprocal ranks
        og, new = 1 / before, 1 / after
        return og / new - 1 if before > after else 1 - new / og

    for before, after in ((1, 4), (4, 1), (3, 3), (1, 1), (2, 100)):
        found = float(p_mrr(torch.tensor(float(before)), torch.tensor(float(after))))
        assert found == pytest.approx(public(before, after))
    assert float(p_mrr(torch.tensor(1.0), torch.tensor(4.0))) == 0.75 and float(p_mrr(torch.tensor(4.0), torch.tensor(1.0))) == -0.75


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BitextMining(name=" ", about="?", first=("a", "b"), second=("a", "b")), "a task needs a name"),
        (lambda: BitextMining(name="t", about="", first=("a", "b"), second=("a", "b")), "task 't': `about` is empty"),
        (lambda: BitextMining(name="t", about="?", domain=" ", first=("a", "b"), second=("a", "b")), "`domain` is empty"),
        (lambda: BitextMining(name="t", about="?", languages=("en",), first=("a", "b"), second=("a", "b")), "codes of three letters"),
        (lambda: BitextMining(name="t", about="?", languages=(), first=("a", "b"), second=("a", "b")), "codes of three letters"),
        (lambda: BitextMining(name="t", about="?", first=("a",), second=("a", "b")), "task 't': as many texts in both languages"),
        (lambda: Retrieval(name="t", about="?", queries=("a",), documents=("b",), relevant=((),)), "query 0 needs a relevant document among 0 to 0"),
        (lambda: Retrieval(name="t", about="?", queries=("a",), documents=("b",), relevant=((1,),)), "got (1,)"),
        (lambda: Clustering(name="t", about="?", items=("a", "b"), levels=(("x", "x"),)), "at least two different ones"),
        (lambda: Clustering(name="t", about="?", items=("a", "b"), levels=(("x", "y"),), fraction=0.0), "fraction must be above 0"),
        (lambda: PairClassification(name="t", about="?", first=("a",), second=("b",), together=(True,)), "pairs of both kinds are needed"),
        (lambda: STS(name="t", about="?", first=("a",), second=("b",), alike=(1.0,)), "at least two degrees"),
        (
            lambda: Classification(name="t", about="?", train=("a", "b"), train_labels=("x", "y"), test=("c",), test_labels=("z",)),
            "all test labels among those of training",
        ),
        (lambda: Classification(name="t", about="?", train=("a",), train_labels=(), test=("c",), test_labels=("z",)), "every text needs a label"),
        (
            lambda: Classification(name="t", about="?", train=("a", "b"), train_labels=("x", "y"), test=("c",), test_labels=("x",), shots=0),
            "shots, draws and test texts must be at least 1",
        ),
        (
            lambda: MultilabelClassification(name="t", about="?", train=("a",), train_labels=(("x", "y"),), test=("b",), test_labels=((),)),
            "at least two labels and 5 training texts are needed, got 2 and 1",
        ),
        (
            lambda: MultilabelClassification(name="t", about="?", train=("a",), train_labels=(), test=("b",), test_labels=((),)),
            "every text needs its labels",
        ),
        (
            lambda: Reranking(name="t", about="?", queries=("a",), documents=("b", "c"), candidates=((0, 0),), relevant=((0,),)),
            "query 0 needs at least two different candidates",
        ),
        (
            lambda: Reranking(name="t", about="?", queries=("a",), documents=("b", "c"), candidates=(), relevant=((0,),)),
            "every query needs its candidates",
        ),
        (lambda: InstructionReranking(name="t", about="?", queries=(("a", "b"),), documents=("c",), lost=((2,),)), "a document among 0 to 0"),
        (lambda: InstructionReranking(name="t", about="?", queries=(("a", "b"),), documents=("c",), lost=()), "every query needs the documents"),
        (lambda: Summarization(name="t", about="?", good=("a",), others=(("b", "c"),), grades=((1.0,),)), "text 0 needs a grade for each summary"),
        (lambda: Summarization(name="t", about="?", good=("a",), others=(), grades=()), "every text needs its summaries"),
        (lambda: evaluate(letters, []), "there is no task"),
        (lambda: evaluate(letters, [tasks_by_hand()["STS"]] * 2), "tasks must have different names; 't' is there more than once"),
    ],
)
def test_what_a_task_refuses(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_texts_are_embedded_once_and_known_scores_are_kept() -> None:
    asked: list[str] = []
    cached = Cached(lambda texts: asked.extend(texts) or letters(texts))
    assert torch.equal(cached(["a", "b", "a"]), letters(["a", "b", "a"]))
    assert torch.equal(cached(["b", "c"]), letters(["b", "c"]))
    assert asked == ["a", "b", "c"] and len(cached) == 3
    hand = tasks_by_hand()
    one, two = hand["STS"], Retrieval(name="other", about="?", queries=("aaa",), documents=("aab", "zzz"), relevant=((0,),))
    seen: list[tuple[str, float]] = []
    found = evaluate(letters, [one, two], done={"t": 0.25}, on_score=lambda *row: seen.append(row))
    assert found == {"t": 0.25, "other": 1.0} and seen == [("other", 1.0)]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda texts: torch.zeros(len(texts), 0), "task 't': the encoder must give (1, d) for 1 texts, got (1, 0)"),
        (lambda texts: torch.rand(len(texts) + 1, 4), "got (2, 4)"),
        (lambda texts: torch.where(torch.tensor([["aaz" in t] for t in texts]), torch.nan, torch.rand(len(texts), 4)), "'aaz'"),
        (lambda texts: [][0], "task 't': the encoder failed on the texts 0 to 0 (the first: 'aaa')"),
    ],
)
def test_an_encoder_that_fails_is_told_with_task_and_text(answer, message: str) -> None:
    with pytest.raises(EncoderError, match=re.escape(message)):
        evaluate(answer, [tasks_by_hand()["STS"]])


# worlds


def test_names_in_many_languages() -> None:
    assert locales.names("deu")["FR"] == "Frankreich" and locales.names("fin", "languages")["de"] == "saksa"
    assert not any(code.isdigit() for code in locales.names("eng"))
    codes = locales.shared(("eng", "deu", "swa"))
    assert len(codes) > 200
    for language in ("eng", "deu", "swa"):
        assert len({locales.names(language)[code] for code in codes}) == len(codes)
    assert len(locales.LATIN) == 21 and locales.LATIN[-1] == "eus" and "rus" not in locales.LATIN
    for call, message in (
        (lambda: locales.names("dei"), "there is no language 'dei'"),
        (lambda: locales.names("deu", "rivers"), "kind must be one of territories, languages, currencies"),
        (lambda: locales.shared(()), "at least one language is needed"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.fixture(scope="module")
def tasks() -> tuple:
    return benchmark(3, SMALL)


def test_the_benchmark_has_every_category_and_repeats(tasks: tuple) -> None:
    assert {task.category for task in tasks} == set(CATEGORIES)
    assert len({task.name for task in tasks}) == len(tasks) == 70
    again, other = benchmark(3, SMALL), benchmark(4, SMALL)
    assert [task.texts() for task in again] == [task.texts() for task in tasks]
    assert sum(one.texts() == two.texts() for one, two in zip(tasks, other, strict=True)) == 0
    assert {code for task in tasks for code in task.languages} == {"eng", *FOREIGN}
    groups = groups_of(tasks)
    assert ("BitextMining", "fin") in set.union(*groups) and all(
        ("Retrieval", "eng") in g for g, t in zip(groups, tasks, strict=True) if t.category == "Retrieval"
    )
    for task in tasks:
        assert all(text.strip() for text in task.texts())


def test_right_answers_are_those_of_the_pages(tasks: tuple) -> None:
    from mtlearn.datasets.documentation import documentation

    by_name = {task.name: task for task in tasks}
    corpus = documentation()
    summaries = {page.summary: page for page in corpus.pages}
    found = by_name["scipy: parameters by summary"]
    page = summaries[found.queries[2]]
    assert found.documents[2] == " ".join(page.section("Parameters").split())[:800] and found.relevant[2] == (2,)
    rerank = by_name["networkx: twenty of BM25"]
    assert all(set(right) <= set(row) for row, right in zip(rerank.candidates, rerank.relevant, strict=True))
    pairs = by_name["numpy: See Also by summary"]
    for first, second, together in zip(pairs.first, pairs.second, pairs.together, strict=True):
        one, two = summaries[first], summaries[second]
        assert (two.name in one.links or one.name in two.links) >= together
    halves = by_name["scipy: module by summary"]
    assert not set(halves.train) & set(halves.test)
    kinds = by_name["scipy: kinds of parameters"]
    assert kinds.test_labels[0] == kinds_of(summaries[kinds.test[0]])
    assert kinds_of(corpus.page("scipy.linalg.svd")) == ("array", "truth value", "string")
    asked, told = by_name["of numpy, then of torch"].queries[0]
    assert "numpy" in asked and "torch" in told and "numpy" in by_name["of numpy, then of torch"].documents[0]


@pytest.mark.skipif(not (REAL / "cranfield").is_dir() or not (REAL / "sts").is_dir(), reason="the published files are not here")
def test_published_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    found = {task.name: task for task in real_tasks()}
    assert {name: task.category for name, task in found.items()} == {
        "Cranfield": "Retrieval", "SICK": "STS", "STS 2015": "STS", "MSR paraphrases": "PairClassification",
    }  # fmt: skip
    assert len(found["Cranfield"].documents) == 1398 and len(found["Cranfield"].queries) == 225
    assert len(found["MSR paraphrases"].first) > 1500 and 0.6 < sum(found["MSR paraphrases"].together) / len(found["MSR paraphrases"].together) < 0.7
    words = classical(found["Cranfield"].documents, kinds=("words, tf-idf",))
    scores = evaluate(words["words, tf-idf"], list(found.values()))
    assert scores["Cranfield"] > 0.3 and scores["SICK"] > 0.3 and scores["MSR paraphrases"] > 0.6
    assert scores["Cranfield"] > evaluate(words["words, tf-idf, SVD 8"], [found["Cranfield"]])["Cranfield"]


def test_collections_for_single_questions() -> None:
    collection, copies = near_copies(benchmark(0, SMALL), 0, SMALL, copies=5)
    assert copies == 5 and len(collection) == 13 and all(task.category == "Retrieval" for task in collection[:5])
    assert len({task.queries for task in collection[:5]}) == 5 and "Retrieval" not in {task.category for task in collection[5:]}
    pool = scipy_retrieval(0, 10, 50)
    assert len(pool.queries) == 10 and len(pool.documents) == 50 and pool.relevant[3] == (3,)


# models and boards


def test_classical_embedders() -> None:
    texts = [f"word{i} word{i + 1} common sort array" for i in range(160)]
    found = classical(texts)
    assert len(found) == 18 and {name.partition(", SVD")[0].partition(", projected")[0] for name in found} == set(KINDS)
    whole = found["words, tf-idf"](texts[:3])
    assert whole.shape[1] == 164 and found["letters, tf-idf, SVD 8"](texts[:3]).shape == (3, 8)
    large, small = found["words, tf-idf, SVD 32"](texts[:5]), found["words, tf-idf, SVD 8"](texts[:5])
    torch.testing.assert_close(large[:, :8], small)
    assert found["words, counts, projected 16"](texts[:2]).shape == (2, 16)
    assert float(found["words, tf-idf"](["nothing known"]).abs().sum()) == 0
    assert set(classical(texts, kinds=("words, counts",))) == {name for name in found if name.startswith("words, counts")}


def test_every_encoder_of_the_suite_is_on_the_list() -> None:
    root = Path(cli.__file__).parent
    shipped = {path.parent.name for path in root.glob("*/*/encoder.py")}
    assert set(SUITE) == shipped == set(suite())
    for encode in suite().values():
        vectors = torch.as_tensor(encode(list(PROBES)))
        assert vectors.dim() == 2 and len(vectors) == 3 and vectors.isfinite().all()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("json", "an encoder is named as module:function, such as my_module:encode, got 'json'"),
        (":x", "got ':x'"),
        ("no_such_module_here:encode", "there is no module 'no_such_module_here', neither installed nor in"),
        ("json:nothing", "json has no 'nothing'"),
        ("math:pi", "math:pi is float, not a function from a list of texts"),
        ("broken_encoder:encode", "broken_encoder cannot be imported: No module named 'missing_thing'"),
    ],
)
def test_what_is_no_encoder(where: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_encoder.py").write_text("import missing_thing\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ValueError, match=re.escape(message)):
        load_encoder(where)


def test_a_board_keeps_what_is_scored(tmp_path: Path) -> None:
    hand = tasks_by_hand()
    one, two = hand["STS"], Retrieval(name="other", about="?", queries=("aaa",), documents=("aab", "zzz"), relevant=((0,),))
    board, calls = Board(tmp_path), []

    def fails_later(texts: list[str]) -> Tensor:
        calls.append(list(texts))
        if any("aab" in text for text in texts):
            raise RuntimeError("out of memory")
        return letters(texts)

    with pytest.raises(EncoderError, match=r"task 'other': .* out of memory"):
        board.run("mine", fails_later, [one, two])
    assert set(json.loads(board.path("mine").read_text())["scores"]) == {"t"}
    calls.clear()
    found = board.run("mine", lambda texts: calls.append(list(texts)) or letters(texts), [one, two])
    assert found == {"t": pytest.approx(1), "other": 1.0} and not any("aaz" in row for row in calls)  # the first task was not read again
    changed = board.run("mine", lambda texts: -letters(texts) + 3 * torch.eye(26)[0], [one])  # another encoder of the same name
    assert changed["t"] != pytest.approx(1.0) or set(json.loads(board.path("mine").read_text())["scores"]) == {"t"}
    assert board.run("mine", letters, [one], fresh=True)["t"] == pytest.approx(1)
    other = STS(name="t", about="?", first=("aaa",) * 3, second=("zzz", "aaz", "aaa"), alike=(2.0, 1.0, 0.0))
    assert board.run("mine", letters, [other])["t"] == pytest.approx(-1)  # a task of the same name with other texts
    board.path("mine").write_text("[]")
    with pytest.raises(StoreError, match="holds no scores of this benchmark"):
        board.run("mine", letters, [one])
    assert board.path("a/b") != board.path("a_b") and board.path("a/b").parent == tmp_path
    assert fingerprint(letters) != fingerprint(lambda texts: letters(texts)[:, :5])


def test_a_summary_orders_by_the_mean() -> None:
    tasks = [tasks_by_hand()["STS"], Retrieval(name="other", about="?", queries=("a",), documents=("b",), relevant=((0,),))]
    rows = summary({"x": {"t": 0.2, "other": 0.4}, "y": {"t": 0.6, "other": 0.2}}, tasks)
    assert [row["encoder"] for row in rows] == ["y", "x"] and rows[0]["mean"] == pytest.approx(0.4)
    assert rows[0]["borda"] == rows[1]["borda"] == 0.5 and rows[1]["categories"] == {"STS": pytest.approx(0.2), "Retrieval": pytest.approx(0.4)}
    assert summary({"x": {"t": 0.2, "other": 0.4}}, tasks)[0]["type mean"] == pytest.approx(0.3)


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["mtlearn", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code is None or isinstance(left.value.code, int)
    return left.value.code or 0, *capsys.readouterr()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = [
        "import numpy as np",
        "def encode(texts):",
        "    return np.array([[1.0 + text.lower().count(letter) for letter in 'abcdefghijklmnopqrstuvwxyz'] for text in texts])",
        "def wrong(texts):",
        "    return np.full((len(texts), 3), np.nan)",
    ]
    (tmp_path / "my_module.py").write_text("\n".join(encoder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    store = tmp_path / "scores"
    code, out, _ = command(monkeypatch, capsys, "mmteb", "my_module:encode", "--category", "BitextMining", "--alone", "--store", store)
    assert code == 0 and "eng-fin: territories" in out and "my_module:encode" in out
    code, out, _ = command(monkeypatch, capsys, "mmteb", "my_module:encode", "--category", "STS", "--store", store, "--json")
    found = json.loads(out)
    assert code == 0 and found["encoder"] == "my_module:encode" and len(found["scores"]) == 2
    assert {row["encoder"] for row in found["board"]} >= {"my_module:encode", "letters, tf-idf", *SUITE}
    code, out, _ = command(monkeypatch, capsys, "mmteb", "my_module:encode", "--category", "STS", "--store", store)
    assert code == 0 and "best of the others" in out and "Borda" in out
    code, _, err = command(monkeypatch, capsys, "mmteb", "my_module:wrong", "--category", "STS", "--alone", "--store", store)
    assert code == 2 and "is not finite" in err and err.count("\n") == 1
    code, _, err = command(monkeypatch, capsys, "mmteb", "my_module:encode", "--category", "Retrival")
    assert code == 2 and "there is no category 'Retrival'" in err and "Retrieval" in err
    code, _, err = command(monkeypatch, capsys, "mmteb", "my_modul:encode")
    assert code == 2 and "there is no module 'my_modul'" in err


# published scores


def test_published_scores_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name + ("Classification" if kind == "Classification" else ""): kind for kind, row in ENGLISH.items() for name in row.split()}
    assert len(names) == 56
    draws = torch.Generator().manual_seed(0)
    for model in range(16):
        for task in list(names)[: 55 if model == 9 else 56]:
            path = tmp_path / "mteb_results" / "results" / f"maker__model-{model:02d}" / "abc" / f"{task}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            score = round(model / 20 + 0.1 * float(torch.rand(1, generator=draws)), 4)
            split = "dev" if task == "MSMARCO" else "test"
            rows = [
                {"hf_subset": "de", "languages": ["deu-Latn"], "main_score": 0.0},
                {"hf_subset": "en", "languages": ["eng-Latn"], "main_score": score},
            ]
            path.write_text(json.dumps({"scores": {split: rows}}))
    monkeypatch.setenv("MTLEARN_DATA", str(tmp_path))
    found = read_published()
    assert found.scores.shape == (15, 56) and "maker__model-09" not in found.models and found.kinds[0] == "Classification"
    assert float(found.scores.min()) > 0
    arms = mmteb.of_published(found, 8, 20, 0)
    assert arms["published, selection"]["spearman"] > 0.9 and 0 < arms["published, selection"]["kept"] <= 1
    monkeypatch.setenv("MTLEARN_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"clone https://github.com/embeddings-benchmark/results"):
        read_published()
    with pytest.raises(ValueError, match=r"0 models in .* have all 1 tasks"):
        read_published(tmp_path / "mteb_results", {"STS": "NoSuchTask"})
    (tmp_path / "mteb_results" / "results" / "maker__model-00" / "abc" / "SummEval.json").write_text("nothing")
    with pytest.raises(ValueError, match="is no result of mteb"):
        read_published(tmp_path / "mteb_results")


# experiment and explorers


def test_experiment() -> None:
    arms = run_quick(mmteb.EXPERIMENT)
    for name in ("words, tf-idf", "letters, tf-idf, SVD 8"):
        assert set(CATEGORIES) <= set(arms[name])
    assert len([arm for arm in arms if arm.startswith(tuple(KINDS))]) == 12
    assert arms["random negatives, 5"]["documents"] == pytest.approx(arms["hard negatives, 5"]["documents"])
    assert arms["selection, 0.8"]["kept"] <= arms["selection, 0.95"]["kept"]
    assert arms["cheap tasks"]["texts"] < 1


def test_cheap_tasks_keep_what_is_asked() -> None:
    pool = scipy_retrieval(0, 30, 60)
    cheap = mmteb.cheapened(pool, [letters], 5, 2, 0.25)
    assert isinstance(cheap, Retrieval) and cheap.queries == pool.queries[:5] and len(cheap.documents) <= 5 * 5
    for query, row in enumerate(cheap.relevant):
        assert [cheap.documents[j] for j in row] == [pool.documents[j] for j in pool.relevant[query]]
    groups = tuple("ab"[i % 2] for i in range(100))
    sample = mmteb.cheapened(Clustering(name="c", about="?", items=tuple(f"t {i}" for i in range(100)), levels=(groups,)), [], 5, 2, 0.25)
    assert isinstance(sample, Clustering) and len(sample.items) == 25
    assert mmteb.cheapened(tasks_by_hand()["STS"], [], 5, 2, 0.25) == tasks_by_hand()["STS"]


def test_shipped_scores_are_those_of_today() -> None:
    made = provenance(mmteb.SHOWN)["measured"]
    assert made["models"] == 18 + len(SUITE) and made["tasks"] == 70


def test_tasks_are_dropped_by_rule_and_by_hand() -> None:
    shown = explorer()
    assert shown.text.startswith("40 of 70 tasks are left")
    shown.preset("all tasks")
    assert shown.text.startswith("70 of 70 tasks are left; Spearman 1.000")
    shown.set(dropped=10)
    ten = shown.text
    assert ten.startswith("60 of 70 tasks are left") and "dropped last" in ten
    for label in shown.presets:
        shown.preset(label)
    shown.preset("all tasks")
    shown.point("press", 3.0, 5.0)
    assert "69 of 70" in shown.text and "clicked: 1" in shown.text
    shown.point("press", 3.0, 5.0)
    assert "70 of 70" in shown.text
    shown.point("key", 0.0, 0.0, key="ArrowRight")
    assert "69 of 70" in shown.text
    shown.point("key", 0.0, 0.0, key="ArrowLeft")
    shown.point("key", 0.0, 0.0, key="Escape")
    assert "70 of 70" in shown.text
    shown.point("press", 3.0, 6.0)
    shown.preset("reset")
    assert "40 of 70" in shown.text and "clicked: 0" in shown.text


def test_copies_change_the_podium_but_for_the_mean_over_categories() -> None:
    shown = podium()
    assert "; 0 models have another place" in shown.text
    shown.set(copies=60)
    assert "; 0 models" not in shown.text
    shown.set(way="mean over categories")
    assert "; 0 models" not in shown.text  # within its category the copied task weighs more
    shown.set(copied="scipy: parameters by summary", way="Borda")
    assert shown.text.startswith("Borda")


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.question[:24])
def test_exercises(exercise) -> None:
    assert not exercise.check(None).right
    assert not exercise.check(exercise.wrong).right
    reply = exercise.check(exercise.solve())
    assert reply.right, reply
