import numpy as np
import pytest
import torch

from mtlearn.datasets.documentation import documentation
from mtlearn.datasets.word_vectors import word_vectors
from mtlearn.layers.tokens import SPECIAL, Vocabulary


def test_it_is_the_factorised_information_of_a_small_text() -> None:
    tokens = torch.tensor([[1, 2, 3, 1, 2, 0], [4, 3, 4, 3, 2, 1]])
    count = np.zeros((5, 5))
    for row in tokens.tolist():
        for i, a in enumerate(row):
            for j, b in enumerate(row):
                if 0 < abs(i - j) <= 2 and a and b:
                    count[a, b] += 1
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.nan_to_num(np.maximum(np.log(count * count.sum() / np.outer(count.sum(0), count.sum(1))), 0))
    values, directions = np.linalg.eigh(information)
    kept = np.argsort(-np.abs(values))[:2]
    expected = (directions[:, kept] * np.abs(values[kept])) @ directions[:, kept].T  # u s u' whatever the signs of u
    vectors = word_vectors(tokens, 5, 2, window=2)
    found = (vectors @ vectors.T).double().numpy()
    np.testing.assert_allclose(found / np.linalg.norm(found), expected / np.linalg.norm(expected), atol=1e-5)
    assert vectors[1:].square().mean().item() == pytest.approx(1, abs=1e-5)


def test_words_of_the_documentation_lie_near_their_kind() -> None:
    texts = [page.body() or page.summary for page in documentation(("numpy",)).pages]
    known = Vocabulary.of(texts, 2000)
    vectors = word_vectors(known(texts, 200, truncate=True), len(known), 32, special=len(SPECIAL))
    again = word_vectors(known(texts, 200, truncate=True), len(known), 32, special=len(SPECIAL))
    torch.testing.assert_close(vectors, again)
    assert not vectors[: len(SPECIAL)].any()

    def cosine(a: str, b: str) -> float:
        return float(torch.cosine_similarity(vectors[known.number[a]], vectors[known.number[b]], dim=0))

    assert cosine("matrix", "matrices") > cosine("matrix", "file") + 0.2
    assert cosine("polynomial", "chebyshev") > cosine("polynomial", "file") + 0.2


def test_bad_input() -> None:
    tokens = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match=r"dim must be in 1\.\.size - 1"):
        word_vectors(tokens, 3, 3)
    with pytest.raises(ValueError, match="tokens must be between 0 and 1, got 1 to 2"):
        word_vectors(tokens, 2, 1)
    with pytest.raises(ValueError, match="no two words stand together"):
        word_vectors(torch.tensor([[1, 0, 0], [2, 0, 0]]), 4, 1)
    with pytest.raises(ValueError, match="no two words stand together"):
        word_vectors(torch.tensor([[1], [2]]), 4, 1)
