r"""The contrastive loss of text encoders, and its exact gradient for a batch that does not fit in memory.

    loss = info_nce(encode(queries), encode(documents), scale=20)                       # other documents of the batch are the negatives
    loss = cached_gradients([(encode, queries), (encode, documents)], info_nce, chunk=16)    # the same gradients, 16 rows at a time

InfoNCE (van den Oord et al. 2018), also called multiple negatives ranking (Henderson et al. 2017): each query shall find its own document among all
of the batch,

.. math:: \ell = -\frac1B \sum_i \log \frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}}, \qquad s_{ij} = \mathrm{scale} \cdot \cos(q_i, d_j),

with scale = 1 / temperature. Gradient caching is GradCache (Gao et al., RepL4NLP 2021).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce(
    queries: Tensor,
    documents: Tensor,
    *,
    scale: float = 20.0,
    negatives: Tensor | None = None,
    same: Tensor | None = None,
    symmetric: bool = False,
    normalize: bool = True,
) -> Tensor:
    """Cross-entropy of finding each query's own document, a scalar.

    Args:
        queries: (B, d).
        documents: (B, d), row i belongs to query i.
        scale: of the cosines, the inverse of the temperature; above 0.
        negatives: (B, h, d) or (m, d) further documents, which are right for no query.
        same: bool (B, B), pairs that are no negatives of each other although they stand in one batch; the diagonal means nothing.
        symmetric: also ask each document for its query, and take the mean of both losses; without ``negatives``.
        normalize: compare by cosine; otherwise by dot product.

    Raises:
        ValueError: shapes that do not fit, ``scale`` of 0 or less, or a batch of one without negatives, whose loss is 0 whatever the vectors are.
    """
    if queries.dim() != 2 or queries.shape != documents.shape or len(queries) == 0:
        raise ValueError(f"queries and documents must both be (B, d) with B of at least 1, got {tuple(queries.shape)} and {tuple(documents.shape)}")
    if not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}")
    batch, width = queries.shape
    if negatives is not None and (
        negatives.dim() not in (2, 3) or negatives.shape[-1] != width or (negatives.dim() == 3 and len(negatives) != batch)
    ):
        raise ValueError(f"negatives must be (m, {width}) or ({batch}, h, {width}), got {tuple(negatives.shape)}")
    if batch == 1 and (negatives is None or negatives.numel() == 0):
        raise ValueError("a batch of one has no negatives: the loss is 0 and teaches nothing; take at least two rows, or give negatives")
    if same is not None and (same.shape != (batch, batch) or same.dtype != torch.bool):
        raise ValueError(f"same must be bool ({batch}, {batch}), got {same.dtype} {tuple(same.shape)}")
    if symmetric and negatives is not None:
        raise ValueError("symmetric asks each document for its query; negatives have none: give one of them")
    every = documents if negatives is None else torch.cat([documents, negatives.reshape(-1, width)])
    if normalize:
        queries, every = F.normalize(queries, dim=-1), F.normalize(every, dim=-1)
    scores = scale * queries @ every.T  # (B, B + negatives)
    if same is not None:
        hidden = same & ~torch.eye(batch, dtype=torch.bool, device=same.device)
        scores = torch.cat([scores[:, :batch].masked_fill(hidden, -torch.inf), scores[:, batch:]], 1)
    target = torch.arange(batch, device=scores.device)
    loss = F.cross_entropy(scores, target)
    return (loss + F.cross_entropy(scores.T, target)) / 2 if symmetric else loss


def cached_gradients(
    sides: Sequence[tuple[Callable[[Tensor], Tensor], Tensor]], loss: Callable[..., Tensor], *, chunk: int, trace: list[int] | None = None
) -> Tensor:
    """Add the gradients of ``loss(*vectors)`` to the parameters, holding the graph of one chunk of rows at a time.

    Every row is encoded twice: first without a graph, to have all vectors and from the loss the gradient of each; then chunk by chunk with a graph,
    under the same random numbers, to send these gradients on into the encoder. The result is the gradient of the whole batch for any loss.

    Args:
        sides: an encoder and its rows each: (n, ...) to (n, ...). Sides may share an encoder.
        loss: the vectors of all sides, in order, to a scalar.
        chunk: rows with a graph at a time.
        trace: gets the rows of each chunk that held a graph, for those who count.

    Returns:
        the loss, detached. The gradients are added to what the parameters hold, as ``backward`` does.

    Raises:
        ValueError: ``chunk`` below 1, no side, a side without rows, or a loss that is not a scalar.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if not sides or any(len(rows) == 0 for _, rows in sides):
        raise ValueError("every side needs at least one row")
    vectors, states = [], []
    for encode, rows in sides:
        found = []
        with torch.no_grad():
            for part in torch.split(rows, chunk):
                states.append(_random_state(part.device))
                found.append(encode(part))
        vectors.append(torch.cat(found).requires_grad_())
    value = loss(*vectors)
    if value.dim() != 0:
        raise ValueError(f"loss must give a scalar, got shape {tuple(value.shape)}")
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(value, vectors, allow_unused=True)
    after = _random_state(sides[0][1].device)
    again = iter(states)
    for (encode, rows), gradient in zip(sides, gradients, strict=True):
        if gradient is None:  # the loss does not look at this side
            for _ in torch.split(rows, chunk):
                next(again)
            continue
        for part, wanted in zip(torch.split(rows, chunk), torch.split(gradient, chunk), strict=True):
            _set_random_state(next(again), part.device)
            encode(part).backward(wanted)  # type: ignore[no-untyped-call]
            if trace is not None:
                trace.append(len(part))
    _set_random_state(after, sides[0][1].device)
    return value.detach()


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
