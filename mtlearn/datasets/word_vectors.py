"""Word vectors from the texts themselves: what words stand together, as a matrix, and its leading directions.

    vectors = word_vectors(vocabulary(texts, 500), len(vocabulary), 64)        # (size, 64)

A stand-in for a pretrained model's embeddings, made in seconds without a label: the positive pointwise mutual information of words within a window,
factorised by a truncated singular value decomposition (Levy and Goldberg, NeurIPS 2014).
"""

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.linalg import svds
from torch import Tensor

from mtlearn.layers.tokens import check_range


def word_vectors(tokens: Tensor, size: int, dim: int, *, window: int = 5, special: int = 1, power: float = 0.5) -> Tensor:
    """Vectors (size, dim) whose mean square over all words seen is 1; 0 for special tokens and words that stand alone.

    Args:
        tokens: texts (n, length) int64, padded with 0.
        size: of the vocabulary.
        dim: below ``size``.
        window: how far apart two words may stand to count together.
        special: numbers below this one (padding and other special tokens) are passed over, but take up their place.
        power: of the singular values in the vectors; 0.5 shares them evenly between words and contexts.

    Raises:
        ValueError: ``dim`` or ``window`` out of range, tokens beyond ``size``, or texts in which no two words stand together.
    """
    if not 1 <= dim < size or window < 1 or special < 1:
        raise ValueError(f"dim must be in 1..size - 1, window and special at least 1, got dim={dim}, size={size}, window={window}, special={special}")
    check_range("tokens", tokens, size)
    rows, columns = [], []
    for step in range(1, min(window, tokens.shape[1] - 1) + 1):
        left, right = tokens[:, :-step], tokens[:, step:]
        both = (left >= special) & (right >= special)
        rows.append(left[both].numpy())
        columns.append(right[both].numpy())
    row, column = (np.concatenate(found) if found else np.zeros(0, dtype=np.int64) for found in (rows, columns))
    if not len(row):
        raise ValueError("no two words stand together in these texts")
    count = coo_array((np.ones(2 * len(row)), (np.concatenate([row, column]), np.concatenate([column, row]))), shape=(size, size)).tocsr().tocoo()
    marginal = count.sum(1)
    information = np.log(count.data * count.sum() / (marginal[count.coords[0]] * marginal[count.coords[1]]))
    kept = information > 0
    matrix = coo_array((information[kept], (count.coords[0][kept], count.coords[1][kept])), shape=(size, size)).tocsr()
    u, s, _ = svds(matrix, k=dim, v0=np.full(size, size**-0.5))  # a fixed start: the same vectors every time
    order = np.argsort(-s)
    u, s = u[:, order], s[order]
    u *= np.where(u[np.abs(u).argmax(0), np.arange(dim)] < 0, -1.0, 1.0)  # the sign of a direction is free: its largest entry is positive
    vectors = torch.from_numpy(np.ascontiguousarray(u * s**power)).float()
    vectors[:special] = 0
    seen = vectors.square().sum(1) > 0
    return vectors / vectors[seen].square().mean().sqrt().clamp(min=1e-12)
