r"""CUR retrieval (ANNCUR): the items that a cross-encoder scores highest, found with few of its scores and no other model.

N. Yadav, N. Monath, R. Angell, M. Zaheer, A. McCallum, "Efficient Nearest Neighbor Search for Cross-Encoder Models using Matrix Factorization",
EMNLP 2022, https://arxiv.org/abs/2210.12579.

A cross-encoder reads a query and an item together and gives one number. There is no vector of an item, so there is no index, and scoring every item
takes a forward pass each. Usually a cheaper model chooses candidates, and what it misses is lost. Here the index is made of the cross-encoder's own
scores: how some *anchor queries* score all items is the item's vector, how a new query scores some *anchor items* is the query's vector, and a small
matrix between the two makes their product an estimate of the score.

**Index.** ``R`` (k_q, m) are the scores of k_q anchor queries with all m items, ``A`` (k_q, k_i) its columns at k_i anchor items::

    U = A^+                               pseudo_inverse       (k_i, k_q), without singular values below cutoff * largest
    E = U R                               embeddings           (k_i, m): column i is the vector of item i

**Search.** ``c`` (k_i,) are the scores of the query with the anchor items::

    ŝ = c E                               approximate          all m scores for k_i calls: an inner-product search
    score the k_r best of ŝ exactly, return the best k of what was scored           CURIndex.search
    calls = k_i + k_r = budget; the index took k_q m

``C A^+ R`` is the CUR decomposition of the score matrix S, with C its columns at the anchor items. If S has rank r and so has A, it is S itself.
Read as ``C (U R)`` it serves new queries ("rows", the paper's use), as ``(C U) R`` new items ("columns", :meth:`CURIndex.add`). With the whole of S
the best middle matrix is ``C^+ S R^+`` (:func:`oracle_middle`).

**Adaptive anchors**, an option that goes beyond the paper (its follow-up ADACUR has the idea): spend k_r in ``rounds``. After each, everything that
was scored joins the anchors of this query, and ŝ is fitted again, by then with the items near the top among the anchors.

**What differs from the paper and its code.** Anchor items, whose exact scores are known, take part in the final ranking and are not scored twice
(``join=False`` gives the published count). Everything is computed in float64, and singular values below one hundredth of the largest are cut off: the
published pseudo-inverse, at 1e-15, fails where k_i is near k_q, as a square random matrix is nearly singular. Scores that are not finite are refused.
The published class wants sorted anchors and compares with ``torch.eq`` in an assertion, which raises for every matrix; here any order will do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from warnings import warn

import numpy as np
import torch
from torch import Tensor

from mtlearn.pairs.cur_retrieval.anchors import Choice, choose_anchors

CUTOFF = 1e-2
PUBLISHED_CUTOFF = 1e-15  # numpy's, which the public code uses
LARGEST_CONDITION = 1e8

Scorer = Callable[[Any, Any], Any]  # some queries and some items to their scores (queries, items), any array


# -------------------------------------------------------------------------------------------------------------------------- factorisation


def pseudo_inverse(matrix: Tensor, cutoff: float = CUTOFF) -> Tensor:
    """``A^+``, the Moore-Penrose inverse, without the singular values at or below ``cutoff`` times the largest.

    Args:
        matrix: (..., k_q, k_i); computed in float64.
        cutoff: 0 or more, below 1.

    Returns:
        (..., k_i, k_q) float64.
    """
    return _inverse(matrix, cutoff)[0]


def _inverse(matrix: Tensor, cutoff: float) -> tuple[Tensor, float]:
    """The inverse, and the condition number of what was kept: the largest over the batch."""
    if not 0 <= cutoff < 1:
        raise ValueError(f"cutoff must be at least 0 and below 1, got {cutoff}")
    check_finite(matrix, "the scores of the anchors")
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)  # A = u diag(s) v
    kept = s > cutoff * s[..., :1]
    least = torch.where(kept, s, torch.inf).amin(-1)
    condition = float((s[..., 0] / least).max()) if s.numel() else 0.0
    return (v.mT * torch.where(kept, s, 1.0).reciprocal().mul(kept)[..., None, :]) @ u.mT, condition


def embeddings(rows: Tensor, anchors: Tensor, cutoff: float = CUTOFF) -> Tensor:
    """``E = A^+ R``: the vector of every item.

    Args:
        rows: R (k_q, m), scores of the anchor queries with all items.
        anchors: (k_i,) numbers of the anchor items, in any order.
        cutoff: see :func:`pseudo_inverse`.

    Returns:
        (k_i, m) float64.

    Raises:
        ValueError: no anchor queries or items, anchors that repeat or are none of the items, scores that are not finite.

    Warns:
        UserWarning: A is nearly square and nothing is cut off, or its condition number, after the cut, is above 1e8.
    """
    anchors = _checked_anchors(anchors, rows)
    check_finite(rows, "the scores of the anchor queries")
    rows = rows.double()
    intersection = rows[:, anchors]  # A (k_q, k_i)
    inverse, condition = _inverse(intersection, cutoff)
    queries, count = intersection.shape
    if cutoff < 1 / LARGEST_CONDITION and 0.8 < count / queries < 1.25:
        warn(f"{count} anchor items are nearly as many as {queries} anchor queries and no singular value is cut off: estimates explode", stacklevel=2)
    elif condition > LARGEST_CONDITION:
        warn(f"the condition number of the anchors' scores is {condition:.1e}: estimates may be noise, a cutoff of {CUTOFF:g} helps", stacklevel=2)
    return inverse @ rows


def approximate(columns: Tensor, vectors: Tensor) -> Tensor:
    """``Ŝ = C E``: estimates of all scores (n, m) from those with the anchor items C (n, k_i) and the items' vectors E (k_i, m)."""
    if columns.dim() != 2 or vectors.dim() != 2 or columns.shape[1] != len(vectors):
        raise ValueError(f"columns must be (n, k_i) and vectors (k_i, m), got {tuple(columns.shape)} and {tuple(vectors.shape)}")
    check_finite(columns, "the scores with the anchor items")
    return columns.to(vectors) @ vectors


def cur(
    columns: Tensor,
    rows: Tensor,
    queries: Tensor,
    anchors: Tensor,
    *,
    cutoff: float = CUTOFF,
    middle: Tensor | None = None,
    orientation: Literal["rows", "columns"] = "rows",
) -> tuple[Tensor, Tensor]:
    """The CUR decomposition of a score matrix (n, m): two factors whose product is ``C U R``.

    Args:
        columns: C (n, k_i), the scores of all queries with the anchor items.
        rows: R (k_q, m), the scores of the anchor queries with all items.
        queries: (k_q,) numbers of the anchor queries among n.
        anchors: (k_i,) numbers of the anchor items among m.
        cutoff: see :func:`pseudo_inverse`.
        middle: another U (k_i, k_q) in place of ``A^+``, such as :func:`oracle_middle`.
        orientation: "rows" gives C and U R, to which a new query adds a row of C; "columns" gives C U and R, to which a new item adds a column.

    Raises:
        ValueError: shapes that do not fit, anchors that repeat, or rows and columns that differ where they meet.
    """
    anchors, queries = _checked_anchors(anchors, rows), _checked_anchors(queries, columns.T, "query")
    if columns.shape[1] != len(anchors) or len(rows) != len(queries):
        shapes = f"columns {tuple(columns.shape)} and rows {tuple(rows.shape)}"
        raise ValueError(f"{len(queries)} anchor queries and {len(anchors)} anchor items do not fit {shapes}")
    columns, rows = columns.double(), rows.double()
    if not torch.allclose(columns[queries], rows[:, anchors], rtol=1e-5, atol=1e-8):
        raise ValueError("rows and columns hold different scores where they meet: they are of other anchors, or of another scorer")
    if middle is None:
        middle = pseudo_inverse(rows[:, anchors], cutoff)
    if orientation == "rows":
        return columns, middle @ rows
    if orientation == "columns":
        return columns @ middle, rows
    raise ValueError(f"orientation must be 'rows' or 'columns', got {orientation!r}")


def oracle_middle(columns: Tensor, scores: Tensor, rows: Tensor) -> Tensor:
    """``C^+ S R^+`` (k_i, k_q): with it no other middle matrix has a smaller ``|S - C U R|``. It needs the whole of S (n, m)."""
    return pseudo_inverse(columns, 1e-13) @ scores.double() @ pseudo_inverse(rows, 1e-13)


# ----------------------------------------------------------------------------------------------------------------------------- retrieval


def refit(rows: Tensor, items: Tensor, scores: Tensor, cutoff: float = CUTOFF) -> Tensor:
    """Estimates of all scores where every query has anchors of its own.

    Args:
        rows: R (k_q, m).
        items: (n, j) numbers of the items that each query was scored with.
        scores: (n, j) these scores.
        cutoff: see :func:`pseudo_inverse`.

    Returns:
        (n, m): ``c A^+ R`` with the A of each query.
    """
    weights = scores[:, None].to(rows) @ pseudo_inverse(rows.T[items].mT, cutoff)  # (n, 1, k_q): the query as a sum of anchor queries
    return weights[:, 0] @ rows


def retrieve(
    reveal: Callable[[Tensor], Tensor],
    rows: Tensor,
    vectors: Tensor,
    anchors: Tensor,
    budget: int,
    *,
    queries: int = 1,
    rounds: int = 1,
    join: bool = True,
    cutoff: float = CUTOFF,
) -> tuple[Tensor, Tensor]:
    """Spend ``budget`` exact scores on each of n queries at once.

    Args:
        reveal: numbers of items (n, j) to the exact scores (n, j) of each query with its own items.
        rows: R (k_q, m).
        vectors: E (k_i, m) of :func:`embeddings`.
        anchors: (k_i,).
        budget: calls for a query, k_i at least.
        queries: n.
        rounds: in how many parts k_r is spent; after each part ŝ is fitted again. 1 is the paper's method.
        join: anchors take part in the ranking and are not scored again.
        cutoff: for the fits after the first.

    Returns:
        Numbers and exact scores (n, budget) of what was scored; only the k_r retrieved ones without ``join``.
    """
    items = anchors.expand(queries, -1)
    scores = reveal(items).to(vectors)
    estimate = approximate(scores, vectors)  # ŝ (n, m)
    if not join:
        best = estimate.topk(min(budget - len(anchors), vectors.shape[1])).indices
        return best, reveal(best).to(vectors)
    left = min(budget, vectors.shape[1]) - len(anchors)
    for part in range(rounds):
        size = left * (part + 1) // rounds - left * part // rounds
        if part:
            estimate = refit(rows, items, scores, cutoff)
        best = estimate.scatter(1, items, -torch.inf).topk(size).indices
        items, scores = torch.cat([items, best], 1), torch.cat([scores, reveal(best).to(scores)], 1)
    return items, scores


def recall(found: Tensor, exact: Tensor, k: int) -> Tensor:
    """Share of each query's k highest exact scores that is among the items found.

    Args:
        found: (n, j) numbers of items; those that were scored hold the k best of all if anything does, so j may be more than k.
        exact: (n, m) all scores.
        k: from 1 to m.

    Returns:
        (n,) float64.
    """
    if not 1 <= k <= exact.shape[1]:
        raise ValueError(f"k must be between 1 and m={exact.shape[1]}, got {k}")
    there = torch.zeros_like(exact, dtype=torch.bool).scatter(1, found, True)
    return there.gather(1, exact.topk(k).indices).double().mean(1)


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        items: (k,) numbers of the items, best first.
        scores: (k,) their exact scores.
        calls: how many scores the search took.
    """

    items: Tensor
    scores: Tensor
    calls: int


class CallCounter:
    """A scorer that counts the pairs it scores: ``counted = CallCounter(score)``, then ``counted.calls``."""

    def __init__(self, score: Scorer) -> None:
        self.score, self.calls = score, 0

    def __call__(self, queries: Any, items: Any) -> Any:
        """Scores (queries, items)."""
        self.calls += len(queries) * len(items)
        return self.score(queries, items)


@dataclass(frozen=True)
class CURIndex:
    """An index over the scores of any function of a query and an item.

    ::

        index = CURIndex.build(score, train_queries, items, anchors=50, generator=generator)
        index.search("my query", k=10, budget=100)

    ``score(queries, items)`` gives the scores (queries, items) of some queries with some items, higher is better: a cross-encoder, a kernel, minus a
    distance. Queries and items are whatever it takes: a list of texts, the rows of a tensor or an array.

    Attributes:
        score: the scorer.
        items: m items.
        queries: k_q anchor queries.
        rows: R (k_q, m) float64.
        anchors: (k_i,) numbers of the anchor items.
        vectors: E (k_i, m) float64; column i is the vector of item i.
        cutoff: see :func:`pseudo_inverse`.
    """

    score: Scorer
    items: Any
    queries: Any
    rows: Tensor
    anchors: Tensor
    vectors: Tensor
    cutoff: float = CUTOFF

    @classmethod
    def build(
        cls,
        score: Scorer,
        queries: Any,
        items: Any,
        *,
        anchors: int | Sequence[int] | Tensor,
        choose: Choice = "uniform",
        cutoff: float = CUTOFF,
        batch: int = 16,
        generator: torch.Generator | None = None,
    ) -> "CURIndex":
        """Score all anchor queries with all items, k_q m calls, and make the items' vectors.

        Args:
            score: see the class.
            queries: k_q anchor queries.
            items: m items.
            anchors: number of anchor items, or the items' numbers.
            choose: how they are chosen, see :func:`~mtlearn.pairs.cur_retrieval.anchors.choose_anchors`.
            cutoff: see :func:`pseudo_inverse`.
            batch: anchor queries that the scorer gets at once.
            generator: for the choice of anchors.

        Raises:
            ValueError: no queries or items, anchors out of range or repeated, scores of another shape or not finite.
        """
        if len(queries) < 1 or len(items) < 1:
            raise ValueError(f"at least one anchor query and one item are needed, got {len(queries)} and {len(items)}")
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        parts = [_scored(score, queries[start : start + batch], items) for start in range(0, len(queries), batch)]
        rows = torch.cat(parts)
        numbers = choose_anchors(rows, anchors, choose, generator=generator) if isinstance(anchors, int) else _checked_anchors(anchors, rows)
        return cls(score, items, queries, rows, numbers, embeddings(rows, numbers, cutoff), cutoff)

    @property
    def calls(self) -> int:
        """Scores that the index took: k_q m."""
        return self.rows.numel()

    def approximate(self, query: Any) -> Tensor:
        """Estimates (m,) of the scores of one query with all items, for k_i calls."""
        return approximate(self._reveal(query)(self.anchors[None]), self.vectors)[0]

    def search(self, query: Any, k: int, budget: int, *, rounds: int = 1, join: bool = True) -> Found:
        """The k items with the highest exact scores among those that ``budget`` calls can look at.

        Args:
            query: one query.
            k: how many, at most m and at most what is scored.
            budget: scores to spend, k_i of them on the anchor items. More than m are not used.
            rounds: 1 is the paper's method; with more the rest is spent in parts, and what was scored joins the anchors after each.
            join: anchors may be found too; without it, as in the published evaluation, only the budget - k_i retrieved items, of which some may be
                anchors that are scored a second time.

        Raises:
            ValueError: k, budget or rounds out of range, or a score that is not finite.
        """
        count, total = len(self.anchors), self.rows.shape[1]
        if budget < count + (not join):
            raise ValueError(f"budget must be at least {count + (not join)}, as {count} calls go to the anchor items, got {budget}")
        scored = min(budget, total) if join else min(budget - count, total)
        if not 1 <= k <= scored:
            raise ValueError(f"k must be between 1 and {scored}, the items that a budget of {budget} can return, got {k}")
        if rounds < 1 or (rounds > 1 and not join):
            raise ValueError(f"rounds must be at least 1, and 1 without join, got {rounds} with join={join}")
        ways: dict[str, Any] = {"rounds": rounds, "join": join, "cutoff": self.cutoff}
        items, scores = retrieve(self._reveal(query), self.rows, self.vectors, self.anchors, budget, **ways)
        best = scores[0].topk(k)
        return Found(items[0, best.indices], best.values, scored if join else scored + count)

    def add(self, items: Any) -> "CURIndex":
        """The index with further items, k_q calls each: vectors ``U r`` of their scores with the anchor queries. Anchors stay as they are.

        Raises:
            ValueError: scores of another shape or not finite.
        """
        new = _scored(self.score, self.queries, items)
        vectors = pseudo_inverse(self.rows[:, self.anchors], self.cutoff) @ new
        return replace(
            self, items=_concatenated(self.items, items), rows=torch.cat([self.rows, new], 1), vectors=torch.cat([self.vectors, vectors], 1)
        )

    def _reveal(self, query: Any) -> Callable[[Tensor], Tensor]:
        return lambda numbers: exact_scores(self.score, query, self.items, numbers[0])[None]


def exact_scores(score: Scorer, query: Any, items: Any, numbers: Tensor) -> Tensor:
    """Scores (j,) float64 of one query with the items of these numbers (j,); no call where there are none. ValueError where one is not finite."""
    if not len(numbers):
        return torch.zeros(0, dtype=torch.float64, device=numbers.device)
    one = query[None] if isinstance(query, Tensor | np.ndarray) else [query]
    return _scored(score, one, _take(items, numbers))[0]


def _scored(score: Scorer, queries: Any, items: Any) -> Tensor:
    """The scorer's answer (queries, items) in float64, once its shape and values are right."""
    given = score(queries, items)
    scores = (given.detach() if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))).double()
    if scores.shape != (len(queries), len(items)):
        raise ValueError(
            f"score must give ({len(queries)}, {len(items)}) for {len(queries)} queries and {len(items)} items, got {tuple(scores.shape)}"
        )
    check_finite(scores, "the scorer's answer")
    return scores


def check_finite(scores: Tensor, name: str) -> None:
    """ValueError where a score is NaN or infinite: the pseudo-inverse would spread it over everything."""
    if not scores.isfinite().all():
        raise ValueError(f"{name} hold {int((~scores.isfinite()).sum())} of {scores.numel()} values that are NaN or infinite")


def _checked_anchors(anchors: Sequence[int] | Tensor, matrix: Tensor, kind: str = "item") -> Tensor:
    """Numbers of columns of ``matrix``, each once."""
    numbers = torch.as_tensor(anchors, device=matrix.device)
    if matrix.dim() != 2 or len(matrix) < 1:
        raise ValueError(f"scores must be a matrix with at least one row, got shape {tuple(matrix.shape)}")
    if numbers.dim() != 1 or len(numbers) < 1 or numbers.is_floating_point():
        raise ValueError(f"anchors must be at least one {kind} number in a row, got shape {tuple(numbers.shape)} {numbers.dtype}")
    total = matrix.shape[1]
    if len(numbers) > total or int(numbers.min()) < 0 or int(numbers.max()) >= total:
        raise ValueError(
            f"anchors must be {kind} numbers from 0 to {total - 1}, got {len(numbers)} from {int(numbers.min())} to {int(numbers.max())}"
        )
    if (different := len(set(numbers.tolist()))) < len(numbers):
        raise ValueError(f"anchors must differ, got {len(numbers)} numbers of {different} {kind}s")
    return numbers


def _take(items: Any, numbers: Tensor) -> Any:
    if isinstance(items, Tensor):
        return items[numbers.to(items.device)]
    return items[numbers.cpu().numpy()] if isinstance(items, np.ndarray) else [items[number] for number in numbers.tolist()]


def _concatenated(items: Any, more: Any) -> Any:
    if isinstance(items, Tensor):
        return torch.cat([items, more])
    return np.concatenate([items, more]) if isinstance(items, np.ndarray) else [*items, *more]
