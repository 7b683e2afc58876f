import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtlearn.layers.tokens import SPECIAL, UNSEEN, Vocabulary, check_range, from_letters, joined, replace_words, to_letters, words

TEXTS = ["The QR factorization, the matrix", "a matrix 3x3 of the"]


def test_words_and_vocabulary() -> None:
    assert words("Returns x1 of np.fft2 (a, b)") == ["returns", "x1", "of", "np", "fft2"]
    known = Vocabulary.of(TEXTS, 8)
    assert known.number == {**{token: i for i, token in enumerate(SPECIAL)}, "the": 5, "matrix": 6, "factorization": 7}
    assert len(known) == 8
    assert known(["matrix the", "unknown"], 3).tolist() == [[6, 5], [1, 0]]
    assert known(["the the the matrix"], 3, truncate=True).tolist() == [[5, 5, 5]]
    plain = Vocabulary.of(TEXTS, 4, special=SPECIAL[:1])
    assert plain(["matrix the", "unknown"], 3).tolist() == [[2, 1], [0, 0]]


def test_pairs() -> None:
    known = Vocabulary.of(TEXTS, 8)
    tokens, types = known.pairs(["matrix the", "the"], ["factorization", "matrix"], 6)
    assert tokens.tolist() == [[2, 6, 5, 3, 7, 3], [2, 5, 3, 6, 3, 0]]
    assert types.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]
    cut, kinds = known.pairs(["the the the the matrix"], ["matrix matrix"], 7, truncate=True)
    assert cut.tolist() == [[2, 5, 5, 3, 6, 6, 3]] and kinds.tolist() == [[0, 0, 0, 0, 1, 1, 1]]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(5, 30))
def test_a_pair_keeps_a_word_of_each_and_fills_its_room(a: int, b: int, most: int) -> None:
    known = Vocabulary.of(["the matrix"], 7)
    tokens, types = known.pairs(["the " * a], ["matrix " * b], most, truncate=True)
    first, second = int((tokens == known.number["the"]).sum()), int((tokens == known.number["matrix"]).sum())
    assert min(first, second) >= 1 and first <= a and second <= b
    assert tokens.shape == types.shape == (1, min(a + b + 3, most))


def test_bad_texts_are_named() -> None:
    known = Vocabulary.of(TEXTS, 8)
    with pytest.raises(ValueError, match=r"text 1 has no words: '  '; every text needs at least one"):
        known(["the", "  "], 4)
    with pytest.raises(ValueError, match="text 0 has 5 tokens, 2 more than the limit of 3; truncate=True cuts it"):
        known(["the the the the the"], 3)
    with pytest.raises(ValueError, match="pair 0 has 8 tokens, 1 more than the limit of 7; truncate=True cuts it"):
        known.pairs(["the the the"], ["the the"], 7)
    with pytest.raises(ValueError, match="as many first as second texts are needed, got 1 and 2"):
        known.pairs(["the"], ["the", "the"], 7)
    with pytest.raises(ValueError, match="most must be at least 5"):
        known.pairs(["the"], ["the"], 4)
    with pytest.raises(ValueError, match=r"pairs need a vocabulary with the special tokens \[CLS\] and \[SEP\]"):
        Vocabulary.of(TEXTS, 4, special=SPECIAL[:1]).pairs(["the"], ["the"], 7)
    with pytest.raises(ValueError, match=r"special must begin with '\[PAD\]' and size be above 5"):
        Vocabulary.of(TEXTS, 5)


def test_joined_texts_have_their_padding_at_the_end() -> None:
    first, second = torch.tensor([[4, 5, 0], [6, 0, 0]]), torch.tensor([[7, 0], [8, 9]])
    tokens, part = joined([first, second])
    assert tokens.tolist() == [[4, 5, 7], [6, 8, 9]]
    assert part.tolist() == [[0, 0, 1], [0, 1, 1]]
    tokens, part = joined([first[:1], torch.zeros(1, 2, dtype=torch.int64)])
    assert tokens.tolist() == [[4, 5]] and part.tolist() == [[0, 0]]
    tokens, part = joined([torch.zeros(1, 2, dtype=torch.int64)])
    assert tokens.tolist() == [[0]] and part.tolist() == [[-1]]


def test_of_the_words_chosen_most_are_hidden() -> None:
    tokens, other = torch.tensor([5, 6, 7, 8]), torch.tensor([9, 9, 9, 9])
    chosen = torch.tensor([True, True, True, False])
    shown, wanted = replace_words(tokens, chosen, fate=torch.tensor([0.79, 0.8, 0.9, 0.0]), other=other, mask=4)
    assert shown.tolist() == [4, 9, 7, 8] and wanted.tolist() == [5, 6, 7, UNSEEN]


def test_numbers_out_of_range_are_named() -> None:
    check_range("tokens", torch.tensor([0, 4]), 5)
    check_range("tokens", torch.zeros(0, dtype=torch.int64), 5)
    for bad in ([-1, 2], [0, 5]):
        with pytest.raises(ValueError, match=f"places must be between 0 and 4, got {bad[0]} to {bad[1]}"):
            check_range("places", torch.tensor([bad]), 5)


def test_words_are_kept_as_bytes() -> None:
    known = Vocabulary.of(["one two two three über"], 20)
    letters = to_letters(known, 100)
    assert letters.shape == (100,) and letters.dtype == torch.uint8
    assert from_letters(letters) == known
    with pytest.raises(ValueError, match="more than the 10 there is room for"):
        to_letters(known, 10)
