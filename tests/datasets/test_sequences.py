"""Sequences: rows against Python's own sorting and arithmetic, masks, side tasks against the main task, bad input."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtlearn.datasets.sequences import (
    HINTS,
    TASKS,
    Examples,
    Vocabulary,
    carries,
    carry_examples,
    extrapolation_lengths,
    hint_examples,
    increment_examples,
    sample_lists,
    sample_numbers,
    sort_examples,
)
from mtlearn.lab.seeds import stream

VOCABULARY = Vocabulary(10)
LIST = torch.tensor([[3, 1, 3, 2]])
some_lists = st.lists(st.integers(0, 9), min_size=1, max_size=12)


def answer(examples: Examples, row: int = 0) -> list[int]:
    return examples.tokens[row][examples.mask[row]].tolist()


@given(some_lists)
def test_the_main_answer_is_the_sorted_list_then_the_end_and_the_mask_lies_on_it(numbers: list[int]) -> None:
    examples = sort_examples(torch.tensor([numbers]), VOCABULARY)
    n = len(numbers)
    assert examples.tokens.tolist() == [[VOCABULARY.task("sort"), *numbers, VOCABULARY.sep, *sorted(numbers), VOCABULARY.end]]
    assert examples.mask.tolist() == [[False] * (n + 2) + [True] * (n + 1)]


@given(some_lists, st.integers(0, 11))
def test_successor_and_predecessor_are_the_neighbours_in_the_main_answer(numbers: list[int], at: int) -> None:
    lists, element = torch.tensor([numbers]), numbers[at % len(numbers)]
    written = answer(sort_examples(lists, VOCABULARY))
    asked = torch.tensor([element])
    last, first = max(k for k, v in enumerate(written) if v == element), written.index(element)
    successor = hint_examples("successor", lists, VOCABULARY, element=asked)
    assert answer(successor) == [written[last + 1]]  # the end token for the largest
    predecessor = hint_examples("predecessor", lists, VOCABULARY, element=asked)
    assert answer(predecessor) == [written[first - 1] if first else VOCABULARY.end]
    for examples in (successor, predecessor):
        assert examples.tokens[0, len(numbers) + 2] == element
        assert examples.mask.sum() == 1


@given(some_lists.filter(lambda numbers: len(numbers) < 10), st.integers(0, 11))
def test_count_parity_and_fill_are_right(numbers: list[int], at: int) -> None:
    lists, element = torch.tensor([numbers]), numbers[at % len(numbers)]
    asked = torch.tensor([element])
    assert answer(hint_examples("count", lists, VOCABULARY, element=asked)) == [numbers.count(element)]
    assert answer(hint_examples("parity", lists, VOCABULARY, element=asked)) == [numbers.count(element) % 2]
    fill = hint_examples("fill", lists, VOCABULARY, element=asked)
    gapped = fill.tokens[0, len(numbers) + 2 : -2].tolist()
    assert answer(fill) == [element]
    assert gapped.count(VOCABULARY.gap) == 1
    assert [element if token == VOCABULARY.gap else token for token in gapped] == sorted(numbers)


def test_rows_read_as_the_documentation_says() -> None:
    two = torch.tensor([2])
    assert VOCABULARY.text(sort_examples(LIST, VOCABULARY).tokens[0]) == "sort 3 1 3 2 / 1 2 3 3 ."
    assert VOCABULARY.text(hint_examples("successor", LIST, VOCABULARY, element=two).tokens[0]) == "succ 3 1 3 2 / 2 3"
    assert VOCABULARY.text(hint_examples("fill", LIST, VOCABULARY, element=two).tokens[0]) == "fill 3 1 3 2 / 1 _ 3 3 . 2"
    number = torch.tensor([[1, 9, 9]])
    assert VOCABULARY.text(increment_examples(number, VOCABULARY).tokens[0]) == "incr 1 9 9 / 2 0 0 ."
    assert VOCABULARY.text(carry_examples(number, VOCABULARY).tokens[0]) == "carr 1 9 9 / 1 1 1 ."


def test_an_element_that_is_not_given_comes_from_its_list_and_from_its_own_generator() -> None:
    lists = sample_lists(200, 5, 10, generator=stream(0, "lists"))
    first = hint_examples("successor", lists, VOCABULARY, generator=stream(0, "hint"))
    again = hint_examples("successor", lists, VOCABULARY, generator=stream(0, "hint"))
    assert torch.equal(first.tokens, again.tokens)
    assert (lists == first.tokens[:, 7:8]).any(1).all()
    assert len({tuple(row) for row in (lists == first.tokens[:, 7:8]).tolist()}) > 5  # all positions are asked


@given(st.lists(st.integers(0, 9), min_size=1, max_size=10))
def test_incrementing_and_carries_agree_with_arithmetic(digits: list[int]) -> None:
    numbers = torch.tensor([digits])
    value = int("".join(map(str, digits)))
    expected = str(value + 1).rjust(len(digits), "0")
    examples = increment_examples(numbers, VOCABULARY)
    assert answer(examples) == [*map(int, expected), VOCABULARY.end]
    carry = carries(numbers)[0].tolist()
    changed = [old != int(new) for old, new in zip(digits, expected[-len(digits) :], strict=True)]
    assert carry == [int(change) for change in changed]  # exactly the digits that a one reaches change
    assert answer(carry_examples(numbers, VOCABULARY)) == [*carry, VOCABULARY.end]


def test_numbers_that_grow_and_numbers_that_do_not_share_a_batch() -> None:
    examples = increment_examples(torch.tensor([[9, 9], [1, 9]]), VOCABULARY)
    assert [VOCABULARY.text(row) for row in examples.tokens] == ["incr 9 9 / 1 0 0 .", "incr 1 9 / 2 0 ."]
    assert examples.tokens[1, -1] == VOCABULARY.pad
    assert examples.mask.sum(1).tolist() == [4, 3]


def test_sampled_numbers_have_every_number_of_trailing_nines_about_equally_often() -> None:
    numbers = sample_numbers(4000, 3, generator=stream(0, "numbers"))
    nines = (numbers.flip(1) == 9).long().cumprod(1).sum(1)
    counts = nines.bincount(minlength=4)
    assert numbers.min() == 0 and numbers.max() == 9
    assert (counts - 1000).abs().max() < 150  # five standard deviations


def test_sampled_lists_are_in_range_and_distinct_on_request() -> None:
    lists = sample_lists(100, 6, 6, distinct=True, generator=stream(0, "lists"))
    assert torch.equal(lists.sort(1).values, torch.arange(6).expand(100, 6))
    repeated = sample_lists(100, 6, 6, generator=stream(0, "lists"))
    assert repeated.min() == 0 and repeated.max() == 5
    assert any(len(set(row)) < 6 for row in repeated.tolist())


def test_every_token_is_different_and_below_the_size() -> None:
    marks = [VOCABULARY.sep, VOCABULARY.end, VOCABULARY.gap, VOCABULARY.pad, *map(VOCABULARY.task, TASKS)]
    assert sorted(marks) == list(range(10, VOCABULARY.size))


def test_examples_move_between_devices() -> None:
    moved = sort_examples(LIST, VOCABULARY).to("meta")
    assert moved.tokens.device.type == "meta" and moved.mask.device.type == "meta"


def test_lengths_inside_the_training_range_are_warned_of() -> None:
    assert extrapolation_lengths([2, 8], [16, 10]) == (10, 16)
    with pytest.warns(UserWarning, match=r"lengths \[8\] are inside the training range \(up to 8\)"):
        assert extrapolation_lengths([2, 8], [8, 10]) == (8, 10)
    with pytest.raises(ValueError, match="lengths must be at least 1"):
        extrapolation_lengths([2, 8], [0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_lists(1, 0, 10), "n must be at least 1"),
        (lambda: sample_lists(0, 3, 10), "batch=0"),
        (lambda: sample_lists(1, 11, 10, distinct=True), "n=11 distinct numbers need at least 11 values, got values=10"),
        (lambda: sort_examples(torch.tensor([[3, 10]]), VOCABULARY), "whole numbers from 0 to 9, got 3 to 10"),
        (lambda: sort_examples(torch.tensor([[-1, 2]]), VOCABULARY), "got -1 to 2"),
        (lambda: sort_examples(torch.tensor([[0.5, 2.0]]), VOCABULARY), "whole numbers"),
        (lambda: sort_examples(torch.tensor([1, 2]), VOCABULARY), r"shape \(batch, n >= 1\), got \(2,\)"),
        (lambda: sort_examples(torch.zeros(1, 0, dtype=torch.int64), VOCABULARY), r"got \(1, 0\)"),
        (lambda: hint_examples("successor", LIST, VOCABULARY, element=torch.tensor([5])), r"element 5 asked about is not in list 0: \[3, 1, 3, 2\]"),
        (lambda: hint_examples("median", LIST, VOCABULARY), f"unknown hint 'median'; there are {', '.join(HINTS)}"),
        (lambda: hint_examples("count", torch.ones(1, 4, dtype=torch.int64), Vocabulary(4)), "a count of 4 cannot be written with the values 0..3"),
        (lambda: Vocabulary(1), "at least 2 values, got 1"),
        (lambda: VOCABULARY.task("median"), "unknown task 'median'"),
        (lambda: sample_numbers(3, 0), "digits=0"),
        (lambda: increment_examples(torch.tensor([[1, 2]]), Vocabulary(8)), "decimal digits need at least 10 values, got 8"),
        (lambda: carry_examples(torch.tensor([[1, 2]]), Vocabulary(8)), "decimal digits need at least 10 values, got 8"),
        (lambda: carries(torch.tensor([[1, 12]])), "from 0 to 9, got 1 to 12"),
    ],
)
def test_bad_input_is_refused_with_what_and_which_values_are_right(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
