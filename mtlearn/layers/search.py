"""Exact search: the best documents of each query by dot product, by a matrix product here or by the library faiss for larger sets.

    index = ExactIndex(vectors)                       # or FaissIndex(vectors), with the extra mtlearn[index]
    scores, found = index.search(queries, k=10)       # (q, 10) each, best first; found holds row numbers, or ids where these were given

Vectors of length 1 give cosines.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class ExactIndex:
    """All dot products, block by block of queries, and the best of each row; ties go to the earlier document.

    Args:
        vectors: (n, d) of the documents.
        ids: n different numbers; the row numbers when omitted.
        block: queries whose scores are held at a time.

    Raises:
        ValueError: no documents, vectors that are not finite, ids that are not n different numbers, or a block below 1.
    """

    def __init__(self, vectors: Tensor, ids: Sequence[int] | Tensor | None = None, *, block: int = 256) -> None:
        self.vectors, self.ids = _checked(vectors, ids)
        if block < 1:
            raise ValueError(f"block must be at least 1, got {block}")
        self.block = block

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores (q, k) and ids (q, k) int64 of the best ``k``, best first.

        Args:
            queries: (q, d).
            k: between 1 and the number of documents.

        Raises:
            ValueError: ``k`` out of range, queries of another width, or not finite.
        """
        _check_search(queries, k, len(self), self.vectors.shape[1])
        scores, rows = [], []
        for part in torch.split(queries, self.block):
            found = part @ self.vectors.T  # (block, n)
            best, which = found.topk(k, sorted=True)
            tied = (best[:, 1:] == best[:, :-1]).any(1) | ((found >= best[:, -1:]).sum(1) > k)  # topk breaks ties as it likes
            if tied.any():
                which[tied] = found[tied].argsort(dim=1, descending=True, stable=True)[:, :k]
                best = found.gather(1, which)
            scores.append(best)
            rows.append(which)
        if not scores:
            return queries.new_zeros(0, k), torch.zeros(0, k, dtype=torch.int64)
        return torch.cat(scores), self.ids[torch.cat(rows)]


class FaissIndex:
    """The same search by the library faiss (Douze et al. 2024): a flat index, which is exact; ties fall as faiss likes.

    Args:
        vectors: (n, d) of the documents; they are held as float32.
        ids: n different numbers; the row numbers when omitted.

    Raises:
        ImportError: faiss is not installed.
        ValueError: as for :class:`ExactIndex`.
    """

    def __init__(self, vectors: Tensor, ids: Sequence[int] | Tensor | None = None) -> None:
        try:
            import faiss
        except ImportError:
            raise ImportError("this index needs the library faiss: pip install 'mtlearn[index]'; ExactIndex does without") from None
        vectors, self.ids = _checked(vectors, ids)
        self.index: Any = faiss.IndexFlatIP(vectors.shape[1])
        self.index.add(vectors.detach().cpu().float().contiguous().numpy())

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores (q, k) float32 and ids (q, k) int64 of the best ``k``, best first. Errors as for :class:`ExactIndex`."""
        _check_search(queries, k, len(self), int(self.index.d))
        scores, rows = self.index.search(queries.detach().cpu().float().contiguous().numpy(), k)
        return torch.from_numpy(scores), self.ids[torch.from_numpy(rows)]


def _checked(vectors: Tensor, ids: Sequence[int] | Tensor | None) -> tuple[Tensor, Tensor]:
    if vectors.dim() != 2 or len(vectors) == 0:
        raise ValueError(f"vectors must be (n, d) with at least one document, got {tuple(vectors.shape)}")
    _check_finite("vectors", vectors)
    numbers = torch.arange(len(vectors)) if ids is None else torch.as_tensor(ids, dtype=torch.int64)
    if numbers.shape != (len(vectors),):
        raise ValueError(f"ids must be {len(vectors)} numbers, one a document, got {tuple(numbers.shape)}")
    values, counts = torch.unique(numbers, return_counts=True)
    if len(values) < len(numbers):
        twice = values[counts > 1]
        raise ValueError(f"ids must differ; {int(twice[0])} is there {int(counts[counts > 1][0])} times ({len(twice)} ids more than once)")
    return vectors, numbers.to(vectors.device)


def _check_search(queries: Tensor, k: int, size: int, width: int) -> None:
    if not 1 <= k <= size:
        raise ValueError(f"k must be between 1 and the {size} documents, got {k}")
    if queries.dim() != 2 or queries.shape[1] != width:
        raise ValueError(f"queries must be (q, {width}), got {tuple(queries.shape)}")
    _check_finite("queries", queries)


def _check_finite(name: str, vectors: Tensor) -> None:
    bad = ~vectors.isfinite().all(1)
    if bad.any():
        raise ValueError(f"{name} must be finite; row {int(bad.nonzero()[0, 0])} is not ({int(bad.sum())} of {len(vectors)} rows)")
