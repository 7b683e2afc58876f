"""What CUR is measured against: rerankers of a cheaper model's candidates, and other uses of the same scores.

All have the same budget of exact scores. One dual encoder is trained, another distilled from the scorer with the very scores that make the index.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlearn.lab.fit import History, fit
from mtlearn.layers.decomposable_attention import MeanOfWords
from mtlearn.pairs.cur_retrieval.method import Found, Scorer, exact_scores

SCALE = 10.0  # of a cosine before a softmax


@dataclass(frozen=True)
class Reranker:
    """Retrieve with a cheap model, score its candidates with the expensive one: the usual way.

    It is searched like a :class:`~mtlearn.pairs.cur_retrieval.method.CURIndex`.

    Attributes:
        score: queries and items to the exact scores (queries, items).
        items: m items.
        retriever: one query to the cheap scores (m,).
    """

    score: Scorer
    items: Any
    retriever: Callable[[Any], Tensor]

    def search(self, query: Any, k: int, budget: int) -> Found:
        """The k best by exact score of the ``budget`` best by cheap score. ValueError where k or the budget is out of range."""
        cheap = self.retriever(query)
        spend = min(budget, len(cheap))
        if not 1 <= k <= spend:
            raise ValueError(f"k must be between 1 and {spend}, the items that a budget of {budget} can return, got {k}")
        candidates = cheap.topk(spend).indices
        scores = exact_scores(self.score, query, self.items, candidates)
        best = scores.topk(k)
        return Found(candidates[best.indices], best.values, spend)


def train_dual(dual: MeanOfWords, queries: Tensor, items: Tensor, *, steps: int, batch: int, rate: float, generator: torch.Generator) -> History:
    """Train a dual encoder on pairs: each query must find its item among those of the batch.

    Args:
        dual: trained in place.
        queries: (n, length) tokens.
        items: (n, length) tokens, row by row the right ones.
        steps: updates.
        batch: pairs in an update.
        rate: of Adam.
        generator: for the draws.
    """

    def loss_at(step: int) -> Tensor:
        chosen = torch.randperm(len(queries), generator=generator)[:batch]
        logits = SCALE * dual.embed(queries[chosen]) @ dual.embed(items[chosen]).T
        return F.cross_entropy(logits, torch.arange(len(chosen)))

    return fit(dual, loss_at, steps=steps, optimizer=torch.optim.Adam(dual.parameters(), rate), schedule="cosine")


def distil(
    dual: MeanOfWords,
    queries: Tensor,
    items: Tensor,
    scores: Tensor,
    *,
    steps: int,
    batch: int,
    rate: float,
    sharpness: float,
    generator: torch.Generator,
) -> History:
    """Fit a dual encoder to a scorer: the softmax of its cosines over all items to that of the standardised scores.

    Args:
        dual: trained in place.
        queries: (k_q, length) tokens of the anchor queries.
        items: (m, length) tokens.
        scores: R (k_q, m), the very scores that the CUR index is made of.
        steps: updates.
        batch: queries in an update.
        rate: of Adam.
        sharpness: factor of the standardised scores.
        generator: for the draws.
    """
    scores = scores.float()
    target = (sharpness * (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)).softmax(1)

    def loss_at(step: int) -> Tensor:
        chosen = torch.randperm(len(queries), generator=generator)[:batch]
        return F.cross_entropy(SCALE * dual.embed(queries[chosen]) @ dual.embed(items).T, target[chosen])

    return fit(dual, loss_at, steps=steps, optimizer=torch.optim.Adam(dual.parameters(), rate), schedule="cosine")


def truncated_svd(scores: Tensor, rank: int) -> Tensor:
    """The nearest matrix of a rank to (n, m) scores that are all known: the limit of every approximation of that rank."""
    u, s, v = torch.linalg.svd(scores.double(), full_matrices=False)
    nearest: Tensor = u[:, :rank] * s[:rank] @ v[:rank]
    return nearest


def item_item_products(columns: Tensor, item_scores: Tensor) -> Tensor:
    """Items as their scores with fixed anchor items, queries likewise, and the product of both: (n, k_i) and (k_i, m) to (n, m).

    No anchor query is needed, but a scorer that can read an item as a query, and nothing says that such products resemble its scores.
    """
    return columns.double() @ item_scores.double()


def projected(queries: Tensor, items: Tensor, dim: int) -> Tensor:
    """Minus the distance (n, m) in the first principal components of the items."""
    centre = items.mean(0)
    directions = torch.linalg.svd(items - centre, full_matrices=False)[2][:dim]
    return -torch.cdist((queries - centre) @ directions.T, (items - centre) @ directions.T)
