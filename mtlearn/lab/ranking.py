"""Measures of a ranking by their usual definitions: those of trec_eval, by the library pytrec_eval.

    ranking_measures(scores, relevance, ("ndcg_cut_10", "recip_rank"))      # {"ndcg_cut_10": 0.71, "recip_rank": 0.66}

Rows are queries, columns documents.
"""

from collections.abc import Sequence

import numpy as np
import pytrec_eval
import torch
from torch import Tensor


def ranking_measures(scores: Tensor, relevance: Tensor, measures: Sequence[str] = ("ndcg_cut_10", "recip_rank", "map")) -> dict[str, float]:
    """Means over the queries that have a relevant document.

    Args:
        scores: (queries, documents), higher is better. trec_eval breaks ties by the document's number, higher first.
        relevance: (queries, documents) int, 0 for what is not relevant; grades count in nDCG.
        measures: names of trec_eval with their cut-off: ``ndcg_cut_10``, ``recall_10``, ``P_1``, ``map``, ``map_cut_10``, ``recip_rank``.

    Raises:
        ValueError: shapes that differ, scores that are not finite, an unknown measure, or no query with a relevant document.
    """
    by_query = ranking_by_query(scores, relevance, measures)
    return {measure: float(by_query[measure].mean()) for measure in measures}


def ranking_by_query(scores: Tensor, relevance: Tensor, measures: Sequence[str]) -> dict[str, Tensor]:
    """The measures of each query that has a relevant document, in their order: {measure: (queries,) float64}. Errors as above."""
    if scores.dim() != 2 or scores.shape != relevance.shape:
        raise ValueError(f"scores and relevance must both be (queries, documents), got {tuple(scores.shape)} and {tuple(relevance.shape)}")
    if not scores.isfinite().all():
        raise ValueError("scores must be finite")
    kept = (relevance > 0).any(1)
    if not kept.any():
        raise ValueError("no query has a relevant document")
    bases = {measure.rpartition("_")[0] if measure.rpartition("_")[2].isdigit() else measure for measure in measures}
    if unknown := sorted(bases - pytrec_eval.supported_measures):
        raise ValueError(f"{unknown[0]!r} is no measure of trec_eval; use e.g. ndcg_cut_10, recall_10, P_1, map, recip_rank")
    width = len(str(scores.shape[1]))
    names = [f"d{i:0{width}d}" for i in range(scores.shape[1])]  # equal lengths, so that ties fall in the order of numbers
    run, judged = {}, {}
    for i in torch.nonzero(kept)[:, 0].tolist():
        run[f"q{i}"] = dict(zip(names, scores[i].double().tolist(), strict=True))
        row = relevance[i]
        judged[f"q{i}"] = {names[j]: int(row[j]) for j in torch.nonzero(row > 0)[:, 0].tolist()}
    found = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(run)
    return {measure: torch.from_numpy(np.array([found[query][measure] for query in run])) for measure in measures}
