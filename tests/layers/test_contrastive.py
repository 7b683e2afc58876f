"""InfoNCE is a cross-entropy over cosines, and gradient caching gives the whole batch's gradient from chunks."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.contrastive import cached_gradients, info_nce


def vectors(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_it_is_the_cross_entropy_of_cosines() -> None:
    a, b = vectors(6, 4), vectors(6, 4, seed=1)
    cosines = F.cosine_similarity(a[:, None], b[None], dim=-1)
    target = torch.arange(6)
    torch.testing.assert_close(info_nce(a, b, scale=20), F.cross_entropy(20 * cosines, target))
    both = (F.cross_entropy(5 * cosines, target) + F.cross_entropy(5 * cosines.T, target)) / 2
    torch.testing.assert_close(info_nce(a, b, scale=5, symmetric=True), both)
    torch.testing.assert_close(info_nce(a, b, scale=1, normalize=False), F.cross_entropy(a @ b.T, target))


def test_negatives_stand_behind_the_documents() -> None:
    a, b, n = vectors(4, 3), vectors(4, 3, seed=1), vectors(4, 2, 3, seed=2)
    scores = 10 * F.normalize(a, dim=-1) @ F.normalize(torch.cat([b, n.reshape(8, 3)]), dim=-1).T
    torch.testing.assert_close(info_nce(a, b, scale=10, negatives=n), F.cross_entropy(scores, torch.arange(4)))
    torch.testing.assert_close(info_nce(a, b, scale=10, negatives=n.reshape(8, 3)), info_nce(a, b, scale=10, negatives=n))


@pytest.mark.parametrize("columns", [2, 3])
def test_sentence_transformers_gives_the_same_value(columns: int) -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    parts = [vectors(5, 8, seed=i, dtype=torch.float32) for i in range(columns)]
    theirs = MultipleNegativesRankingLoss(model=None, scale=50.0).compute_loss_from_embeddings(parts, labels=None)
    ours = info_nce(parts[0], parts[1], scale=50, negatives=parts[2] if columns == 3 else None)
    torch.testing.assert_close(ours, theirs)


def test_pairs_that_are_the_same_are_no_negatives() -> None:
    a, b = vectors(4, 3), vectors(4, 3, seed=1)
    key = torch.tensor([0, 1, 0, 2])
    same = key[:, None] == key
    scores = 20 * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
    each = [F.cross_entropy(scores[i][~same[i] | (torch.arange(4) == i)][None], ((~same[i])[:i].sum())[None]) for i in range(4)]
    torch.testing.assert_close(info_nce(a, b, same=same), torch.stack(each).mean())


@given(st.integers(2, 6), st.floats(0.1, 10), st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_lengths_mean_nothing_and_a_pair_is_exact_at_its_bound(batch: int, factor: float, seed: int) -> None:
    a, b = vectors(batch, 5, seed=seed), vectors(batch, 5, seed=seed + 1)
    torch.testing.assert_close(info_nce(factor * a, b), info_nce(a, factor * b))
    twin = a.clone()
    twin[1] = twin[0]  # two rows with one document: neither can be told from the other
    assert info_nce(twin, twin, scale=1000) >= 2 / batch * math.log(2) - 1e-9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"documents": vectors(3, 4)}, "must both be (B, d)"),
        ({"scale": 0.0}, "scale must be above 0, got 0.0"),
        ({"queries": vectors(1, 4), "documents": vectors(1, 4)}, "a batch of one has no negatives"),
        ({"negatives": vectors(2, 3)}, "negatives must be (m, 4) or (2, h, 4), got (2, 3)"),
        ({"same": torch.ones(2, 3, dtype=torch.bool)}, "same must be bool (2, 2)"),
        ({"same": torch.ones(2, 2)}, "same must be bool (2, 2), got torch.float32"),
        ({"negatives": vectors(2, 4), "symmetric": True}, "give one of them"),
    ],
)
def test_what_it_refuses(change: dict[str, object], message: str) -> None:
    arguments = {"queries": vectors(2, 4), "documents": vectors(2, 4, seed=1), **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        info_nce(**arguments)


class Encoder(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first, self.last, self.dropout = nn.Linear(6, 16), nn.Linear(16, 4), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.dropout(torch.tanh(self.first(x))))
        return out


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("chunk", [1, 3, 7, 10, 100])
def test_gradients_in_chunks_are_those_of_the_whole_batch(chunk: int) -> None:
    torch.manual_seed(0)
    model = Encoder(0.0).double()
    queries, documents = vectors(10, 6), vectors(12, 6, seed=1)

    def loss(q: Tensor, d: Tensor) -> Tensor:
        return info_nce(q, d[:10], negatives=d[10:])

    whole = loss(model(queries), model(documents))
    whole.backward()
    wanted = gradients(model)
    model.zero_grad()
    trace: list[int] = []
    value = cached_gradients([(model, queries), (model, documents)], loss, chunk=chunk, trace=trace)
    torch.testing.assert_close(value, whole.detach())
    assert not value.requires_grad
    torch.testing.assert_close(gradients(model), wanted, rtol=0, atol=1e-10)
    assert sum(trace) == 22 and max(trace) <= chunk


def test_dropout_is_drawn_again_as_it_was() -> None:
    torch.manual_seed(0)
    model = Encoder(0.5).double()
    a, b = vectors(8, 6), vectors(8, 6, seed=1)
    torch.manual_seed(3)
    parts = [torch.cat([model(part) for part in rows.split(4)]) for rows in (a, b)]  # the same draws, with one graph
    info_nce(*parts).backward()
    wanted = gradients(model)
    after = torch.rand(1)
    model.zero_grad()
    torch.manual_seed(3)
    cached_gradients([(model, a), (model, b)], info_nce, chunk=4)
    torch.testing.assert_close(gradients(model), wanted, rtol=0, atol=1e-10)
    assert torch.equal(torch.rand(1), after)  # and what is drawn later is what would have been drawn


def test_gradients_add_up_and_a_side_the_loss_ignores_costs_nothing() -> None:
    model, other = Encoder(0.0).double(), Encoder(0.0).double()
    a, b = vectors(4, 6), vectors(4, 6, seed=1)

    def loss(q: Tensor, d: Tensor) -> Tensor:
        return q.square().sum()

    cached_gradients([(model, a), (other, b)], loss, chunk=2)
    once = gradients(model)
    assert gradients(other) == []
    cached_gradients([(model, a), (other, b)], loss, chunk=3)
    torch.testing.assert_close(gradients(model), [2 * g for g in once])


def test_what_gradient_caching_refuses() -> None:
    model = Encoder(0.0).double()
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        cached_gradients([(model, vectors(2, 6))], lambda q: q.sum(), chunk=0)
    with pytest.raises(ValueError, match="every side needs at least one row"):
        cached_gradients([(model, vectors(0, 6))], lambda q: q.sum(), chunk=1)
    with pytest.raises(ValueError, match="every side needs at least one row"):
        cached_gradients([], lambda: torch.zeros(()), chunk=1)
    with pytest.raises(ValueError, match="loss must give a scalar"):
        cached_gradients([(model, vectors(2, 6))], lambda q: q, chunk=1)
