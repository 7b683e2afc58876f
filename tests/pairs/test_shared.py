import pytest
import torch

from mtlearn.datasets.documentation import documentation
from mtlearn.datasets.word_vectors import word_vectors
from mtlearn.layers.tokens import SPECIAL, Vocabulary
from mtlearn.pairs import start_words
from mtlearn.pairs.labelled import Labelled
from mtlearn.pairs.start_words import docstring_vectors, sentence_vectors


def test_rows_of_labelled_pairs_stay_together() -> None:
    pairs = Labelled(torch.arange(12).view(4, 3), torch.arange(12).view(4, 3) + 20, torch.tensor([0, 1, 0, 1]))
    chosen = pairs[torch.tensor([3, 1])]
    assert len(pairs) == 4 and len(chosen) == 2
    assert chosen.first.tolist() == [[9, 10, 11], [3, 4, 5]] and chosen.second.tolist() == [[29, 30, 31], [23, 24, 25]]
    assert chosen.labels.tolist() == [1, 1]
    assert pairs[:1].to(torch.device("meta")).labels.is_meta


def test_vectors_of_sentences_are_made_or_taken_from_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = [page.summary for page in documentation(("numpy",)).pages]
    vectors, tokeniser = sentence_vectors("", sentences, size=300, dim=8, longest=16, window=2)
    known = Vocabulary.of(sentences, 300)
    tokens = known(sentences, 16, truncate=True)
    torch.testing.assert_close(vectors, word_vectors(tokens, 300, 8, window=2, special=len(SPECIAL)))
    assert torch.equal(tokeniser(sentences, 16, truncate=True), tokens)
    table = torch.ones(4, 2), known
    monkeypatch.setattr(start_words, "word_table", lambda: table)
    assert sentence_vectors("wordllama", sentences, size=300, dim=8, longest=16) == table


def test_vectors_of_a_vocabulary_are_made_of_the_docstrings() -> None:
    known = Vocabulary.of([page.summary for page in documentation(("numpy",)).pages], 300)
    vectors = docstring_vectors(known, 16)
    assert vectors.shape == (300, 16) and not vectors[: len(SPECIAL)].any()
    cosine = torch.cosine_similarity(vectors[known.number["sine"]], vectors[[known.number["cosine"], known.number["file"]]])
    assert cosine[0] > cosine[1]
