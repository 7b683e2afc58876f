import math

import pytest
import torch

from mtlearn.lab.ranking import ranking_by_query, ranking_measures

SCORES = torch.tensor([[0.9, 0.1, 0.5], [0.1, 0.2, 0.3], [0.0, 0.0, 0.0]])
RELEVANCE = torch.tensor([[0, 0, 2], [1, 0, 1], [0, 0, 0]])


def test_measures_by_hand() -> None:
    found = ranking_measures(SCORES, RELEVANCE, ("ndcg_cut_10", "recall_1", "recall_2", "P_1", "map", "recip_rank", "map_cut_1"))
    second = 1 / math.log2(3)
    whole = (1 + 1 / math.log2(4)) / (1 + second)
    assert found["ndcg_cut_10"] == pytest.approx((second + whole) / 2)  # one grade of 2 in second place; two of 1 in places 1 and 3
    assert (found["recall_1"], found["recall_2"], found["P_1"]) == pytest.approx((0.25, 0.75, 0.5))
    assert found["recip_rank"] == pytest.approx((0.5 + 1) / 2)
    assert found["map"] == pytest.approx((0.5 + (1 + 2 / 3) / 2) / 2)
    assert found["map_cut_1"] == pytest.approx((0 + 0.5) / 2)


def test_queries_without_a_relevant_document_do_not_count() -> None:
    assert ranking_by_query(SCORES, RELEVANCE, ("recip_rank",))["recip_rank"].tolist() == [0.5, 1.0]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"must both be \(queries, documents\), got \(3, 3\) and \(2, 3\)"):
        ranking_measures(SCORES, RELEVANCE[:2])
    with pytest.raises(ValueError, match="scores must be finite"):
        ranking_measures(SCORES.log(), RELEVANCE)
    with pytest.raises(ValueError, match="no query has a relevant document"):
        ranking_measures(SCORES, torch.zeros_like(RELEVANCE))
    with pytest.raises(ValueError, match="'mrr' is no measure of trec_eval"):
        ranking_measures(SCORES, RELEVANCE, ("mrr",))
