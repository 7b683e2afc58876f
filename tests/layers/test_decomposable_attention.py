import math

import pytest
import torch
from torch.nn import functional as F

from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.decomposable_attention import DecomposableAttention, MeanOfWords

VECTORS = torch.randn(12, 6, generator=stream(0))
FIRST, SECOND = torch.tensor([[3, 4, 5], [6, 0, 0]]), torch.tensor([[7, 3, 0, 0], [2, 8, 9, 10]])


def model(**options: object) -> DecomposableAttention:
    with seeded(0):
        return DecomposableAttention(VECTORS, hidden=8, features=5, **options)  # type: ignore[arg-type]


def test_it_attends_compares_and_aggregates() -> None:
    scorer = model()
    x, z = VECTORS[[3, 4, 5]], VECTORS[[7, 3]]
    similarity = (1.5 * x) @ (1.5 * z).T / math.sqrt(6)
    y, w = similarity.softmax(1) @ z, similarity.T.softmax(1) @ x
    u = scorer.compare(torch.cat([x, y, x * y], 1)).mean(0)
    v = scorer.compare(torch.cat([z, w, z * w], 1)).mean(0)
    torch.testing.assert_close(scorer.pooled(FIRST, SECOND)[0][0], u, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(scorer(FIRST, SECOND)[0], scorer.head((u + v) / 2)[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("attended", [True, False])
def test_padding_and_order(attended: bool) -> None:
    scorer = model(attended=attended)
    scores = scorer(FIRST, SECOND)
    torch.testing.assert_close(scorer(F.pad(FIRST, (0, 2)), F.pad(SECOND, (1, 0))), scores, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(scorer(FIRST[1:, :1], SECOND[1:]), scores[1:], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(scorer(SECOND, FIRST), scores, atol=1e-6, rtol=1e-5)
    segmented = model(attended=attended, segments=True)
    assert not torch.allclose(segmented(SECOND, FIRST), segmented(FIRST, SECOND))
    assert model(attended=attended, outputs=3)(FIRST, SECOND).shape == (2, 3)


def test_the_vectors_are_copied_and_padding_stays_zero() -> None:
    before = VECTORS.clone()
    scorer = model()
    scorer(FIRST, SECOND).sum().backward()
    torch.optim.SGD(scorer.parameters(), lr=1.0).step()
    assert torch.equal(VECTORS, before) and not torch.equal(scorer.word.weight, before)
    assert not scorer.word.weight[0].any()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"vectors must be \(size, d\), got \(12,\)"):
        DecomposableAttention(VECTORS[:, 0])
    with pytest.raises(ValueError, match="hidden, features and outputs must be at least 1, got 0, 32 and 1"):
        DecomposableAttention(VECTORS, hidden=0)
    with pytest.raises(ValueError, match="as many first as second texts are needed, got 1 and 2"):
        model()(FIRST[:1], SECOND)
    with pytest.raises(ValueError, match="every text needs at least one token that is not padding"):
        model()(torch.zeros_like(FIRST), SECOND)


def test_mean_of_words() -> None:
    encoder = MeanOfWords(VECTORS)
    torch.testing.assert_close(encoder.embed(FIRST)[0], F.normalize(VECTORS[[3, 4, 5]].mean(0), dim=0))
    torch.testing.assert_close(encoder(FIRST, FIRST), torch.ones(2))
