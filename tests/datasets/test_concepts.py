import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtlearn.datasets.concepts import Lexicon, concept_pairs, noisy_vectors
from mtlearn.lab.seeds import stream


@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 4))
def test_pairs_share_what_they_say(seed: int, words: int, synonyms: int) -> None:
    lexicon = Lexicon(2 * words + 1, synonyms)
    pairs = concept_pairs(20, lexicon, words=words, most_shared=words, generator=stream(seed))
    for first, second, shared in zip(lexicon.concept(pairs.first).tolist(), lexicon.concept(pairs.second).tolist(), pairs.shared, strict=True):
        assert len(set(first)) == len(set(second)) == words
        assert len(set(first) & set(second)) == shared
    assert pairs.first.min() >= 1 and pairs.first.max() < lexicon.size
    torch.testing.assert_close(pairs.likeness, pairs.shared / words)
    assert len(pairs[torch.tensor([1, 3])]) == 2


def test_every_count_of_shared_concepts_is_as_likely() -> None:
    shared = concept_pairs(7000, Lexicon(), generator=stream(0)).shared
    assert (shared.bincount(minlength=7) / 7000 - 1 / 7).abs().max() < 0.02


def test_synonyms_are_near() -> None:
    lexicon = Lexicon(40, 3)
    exact = noisy_vectors(lexicon, 16, 0.0, generator=stream(0))
    assert exact.shape == (lexicon.size, 16) and not exact[0].any()
    torch.testing.assert_close(exact[1], exact[3])
    assert not torch.allclose(exact[3], exact[4])
    noisy = noisy_vectors(lexicon, 16, 0.7, generator=stream(0))
    assert (noisy[1:] - exact[1:]).std().item() == pytest.approx(0.7, abs=0.05)


def test_bad_numbers() -> None:
    with pytest.raises(ValueError, match="concepts and synonyms must be at least 1, got 0 and 3"):
        Lexicon(0)
    with pytest.raises(ValueError, match=r"most_shared in 0\.\.words and concepts at least 2 \* words, got count=5, words=6, most_shared=7"):
        concept_pairs(5, Lexicon(), most_shared=7, generator=stream(0))
    with pytest.raises(ValueError, match="dim must be at least 1 and noise at least 0, got 4 and -1"):
        noisy_vectors(Lexicon(), 4, -1, generator=stream(0))
