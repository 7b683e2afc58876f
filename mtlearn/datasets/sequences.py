"""Lists to sort and numbers to increment, as token sequences for a causal model, each with its simpler side tasks.

An example is one row: a task token, the input, ``SEP``, what is already written, and the answer. The mask is 1 on the answer, so a model is asked
only for tokens that the rows before them determine. With the list 3 1 3 2, and ``/`` for ``SEP``, ``.`` for the end, ``_`` for a gap::

    task          row                          mask 1 on
    sort          sort 3 1 3 2 / 1 2 3 3 .     1 2 3 3 .
    successor     succ 3 1 3 2 / 2 3           3     the element after the last copy of 2 in sorted order, or the end
    predecessor   pred 3 1 3 2 / 2 1           1     the element before the first copy of 2, or the end
    count         coun 3 1 3 2 / 3 2           2     how often 3 occurs, written as a value
    parity        pari 3 1 3 2 / 3 0           0     whether that count is odd
    fill          fill 3 1 3 2 / 1 _ 3 3 . 2   2     the element of the sorted list that the gap hides

    increment     incr 1 9 9 / 2 0 0 .         2 0 0 .    the decimal number plus one, leading digit first
    carry         carr 1 9 9 / 1 1 1 .         1 1 1 .    at each digit: does a one arrive from the right?

Sorting and its side tasks follow Awasthi and Gupta (2023, arXiv:2310.00726), who name successor, count, fill and parity; the layout of the rows is
ours. A side task has the same input as the main task and is a piece of its work: the answer of ``successor`` is the token that follows the
asked element in ``sort``, and ``carry`` says which digits of ``increment`` change.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Hint = Literal["successor", "predecessor", "count", "parity", "fill"]
HINTS: tuple[Hint, ...] = get_args(Hint)
TASKS = ("sort", *HINTS, "increment", "carry")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens: the values 0..values-1 first, then the marks, then one token a task.

    Attributes:
        values: how many different numbers there are, at least 2.
    """

    values: int

    def __post_init__(self) -> None:
        if self.values < 2:
            raise ValueError(f"a vocabulary needs at least 2 values, got {self.values}")

    @property
    def sep(self) -> int:
        """Between the input and what is written."""
        return self.values

    @property
    def end(self) -> int:
        """After the answer; above all values, so that it sorts last."""
        return self.values + 1

    @property
    def gap(self) -> int:
        """What ``fill`` puts in the place of the hidden element."""
        return self.values + 2

    @property
    def pad(self) -> int:
        """Behind rows that are shorter than others of their batch."""
        return self.values + 3

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return self.values + 4 + len(TASKS)

    def task(self, name: str) -> int:
        """The token that stands first in a row of the task."""
        if name not in TASKS:
            raise ValueError(f"unknown task {name!r}; there are {', '.join(TASKS)}")
        return self.values + 4 + TASKS.index(name)

    def text(self, tokens: Tensor) -> str:
        """One row of tokens as words: ``sort 3 1 3 2 / 1 2 3 3 .``, padding left out."""
        marks = {self.sep: "/", self.end: ".", self.gap: "_"}
        names = {self.task(name): name[:4] for name in TASKS}
        return " ".join(marks.get(token) or names.get(token) or str(token) for token in tokens.tolist() if token != self.pad)


@dataclass(frozen=True)
class Examples:
    """A batch of rows.

    Attributes:
        tokens: (batch, length) int64.
        mask: (batch, length) bool, true on the tokens that are the answer.
    """

    tokens: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> "Examples":
        """The same rows on another device."""
        return Examples(self.tokens.to(device), self.mask.to(device))


def sample_lists(batch: int, n: int, values: int, *, distinct: bool = False, generator: torch.Generator | None = None) -> Tensor:
    """``batch`` lists of ``n`` numbers from 0..values-1: int64 (batch, n); ``distinct`` draws without repetition.

    Raises:
        ValueError: ``batch`` or ``n`` below 1, or more distinct numbers asked than there are.
    """
    if batch < 1 or n < 1:
        raise ValueError(f"batch and n must be at least 1, got batch={batch}, n={n}")
    if not distinct:
        return torch.randint(values, (batch, n), generator=generator)
    if n > values:
        raise ValueError(f"lists of n={n} distinct numbers need at least {n} values, got values={values}")
    return torch.rand(batch, values, generator=generator).argsort(1)[:, :n]


def sort_examples(lists: Tensor, vocabulary: Vocabulary) -> Examples:
    """The main task: ``sort x_1 .. x_n / y_1 .. y_n .`` with the mask on the n + 1 tokens after ``/``.

    Args:
        lists: (batch, n) int64, values of the vocabulary.
        vocabulary: the tokens.
    """
    check_values(lists, vocabulary)
    return _rows("sort", lists, None, _ended(lists.sort(1).values, vocabulary), vocabulary)


def hint_examples(
    hint: str, lists: Tensor, vocabulary: Vocabulary, *, element: Tensor | None = None, generator: torch.Generator | None = None
) -> Examples:
    """A side task of sorting on the same lists: one question a list, a one-token answer.

    Args:
        hint: one of ``HINTS``.
        lists: (batch, n) int64.
        vocabulary: the tokens.
        element: (batch,) the element asked about, which must be in its list; drawn from the list's positions when omitted.
        generator: source of that draw.

    Raises:
        ValueError: unknown hint, values outside the vocabulary, an element that its list lacks, a count that is no value.
    """
    if hint not in HINTS:
        raise ValueError(f"unknown hint {hint!r}; there are {', '.join(HINTS)}")
    check_values(lists, vocabulary)
    batch, n = lists.shape
    if element is None:
        element = lists.gather(1, torch.randint(n, (batch, 1), generator=generator).to(lists.device))[:, 0]
    asked = element[:, None]
    missing = (lists != asked).all(1)
    if missing.any():
        row = int(missing.nonzero()[0])
        raise ValueError(f"the element {int(element[row])} asked about is not in list {row}: {lists[row].tolist()}")
    count = (lists == asked).sum(1)
    question = asked
    if hint == "successor":
        answer = torch.where(lists > asked, lists, vocabulary.end).min(1).values  # the end lies above all values
    elif hint == "predecessor":
        below = torch.where(lists < asked, lists, -1).max(1).values
        answer = torch.where(below < 0, vocabulary.end, below)
    elif hint == "count":
        if int(count.max()) >= vocabulary.values:
            raise ValueError(f"a count of {int(count.max())} cannot be written with the values 0..{vocabulary.values - 1}")
        answer = count
    elif hint == "parity":
        answer = count % 2
    else:
        ordered = lists.sort(1).values
        first = (ordered == asked).int().argmax(1, keepdim=True)
        question = _ended(ordered.scatter(1, first, vocabulary.gap), vocabulary)
        answer = element
    return _rows(hint, lists, question, answer[:, None], vocabulary)


def sample_numbers(batch: int, digits: int, *, generator: torch.Generator | None = None) -> Tensor:
    """``batch`` numbers of ``digits`` decimal digits, leading digit first: int64 (batch, digits).

    Of uniform numbers nine in ten would end without a carry, so the number of trailing nines is drawn first, uniformly from 0..digits. The
    leading digit may be 0.
    """
    if batch < 1 or digits < 1:
        raise ValueError(f"batch and digits must be at least 1, got batch={batch}, digits={digits}")
    numbers = torch.randint(10, (batch, digits), generator=generator)
    nines = torch.randint(digits + 1, (batch, 1), generator=generator)
    stop = torch.randint(9, (batch, 1), generator=generator)  # the digit before the nines is none
    from_right = torch.arange(digits - 1, -1, -1)
    numbers = torch.where(from_right < nines, 9, numbers)
    return torch.where(from_right == nines, stop, numbers)


def carries(numbers: Tensor) -> Tensor:
    """Where a one arrives from the right when 1 is added: (batch, digits) int64 of 0 and 1; always at the last digit."""
    nine = (check_digits(numbers) == 9).long()
    all_right = nine.flip(1).cumprod(1)  # of the digits from the right up to here, are all nines?
    return F.pad(all_right[:, :-1], (1, 0), value=1).flip(1)


def increment_examples(numbers: Tensor, vocabulary: Vocabulary) -> Examples:
    """``incr 1 9 9 / 2 0 0 .``: the number plus one; 9 9 becomes 1 0 0, so rows may be padded.

    Args:
        numbers: (batch, digits) int64 of 0..9.
        vocabulary: one with at least 10 values.
    """
    _check_decimal(vocabulary)
    summed = (numbers + carries(numbers)) % 10
    grown = (numbers == 9).all(1, keepdim=True)
    plain = _ended(F.pad(summed, (0, 1), value=vocabulary.end), vocabulary)
    plain[:, -1] = vocabulary.pad
    longer = _ended(F.pad(summed, (1, 0), value=1), vocabulary)
    return _rows("increment", numbers, None, torch.where(grown, longer, plain), vocabulary)


def carry_examples(numbers: Tensor, vocabulary: Vocabulary) -> Examples:
    """``carr 1 9 9 / 1 1 1 .``: the side task of incrementing, whether each digit receives a one."""
    _check_decimal(vocabulary)
    return _rows("carry", numbers, None, _ended(carries(numbers), vocabulary), vocabulary)


def extrapolation_lengths(trained: Sequence[int], tested: Iterable[int]) -> tuple[int, ...]:
    """The tested lengths, in order, for a test of extrapolation; warns of each that is not beyond the trained ones.

    Raises:
        ValueError: a length below 1.
    """
    lengths = tuple(sorted(set(tested)))
    if min((*trained, *lengths)) < 1:
        raise ValueError(f"lengths must be at least 1, got trained {list(trained)}, tested {list(lengths)}")
    inside = [length for length in lengths if length <= max(trained)]
    if inside:
        warnings.warn(f"lengths {inside} are inside the training range (up to {max(trained)}): they test no extrapolation", stacklevel=2)
    return lengths


def check_values(lists: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Return ``lists`` when it is (batch, n >= 1) of values of the vocabulary; else raise ValueError."""
    if lists.dim() != 2 or lists.shape[1] < 1:
        raise ValueError(f"lists must have shape (batch, n >= 1), got {tuple(lists.shape)}")
    if lists.is_floating_point() or int(lists.min()) < 0 or int(lists.max()) >= vocabulary.values:
        raise ValueError(f"lists must hold whole numbers from 0 to {vocabulary.values - 1}, got {lists.min().item()} to {lists.max().item()}")
    return lists


def check_digits(numbers: Tensor) -> Tensor:
    """Return ``numbers`` when it is (batch, digits >= 1) of 0..9; else raise ValueError."""
    return check_values(numbers, Vocabulary(10))


def _check_decimal(vocabulary: Vocabulary) -> None:
    if vocabulary.values < 10:
        raise ValueError(f"decimal digits need at least 10 values, got {vocabulary.values}")


def _ended(tokens: Tensor, vocabulary: Vocabulary) -> Tensor:
    return F.pad(tokens, (0, 1), value=vocabulary.end)


def _rows(task: str, given: Tensor, question: Tensor | None, answer: Tensor, vocabulary: Vocabulary) -> Examples:
    batch = len(given)
    start, sep = given.new_full((batch, 1), vocabulary.task(task)), given.new_full((batch, 1), vocabulary.sep)
    before = [start, given, sep] if question is None else [start, given, sep, question]
    tokens = torch.cat([*before, answer], 1)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, -answer.shape[1] :] = answer != vocabulary.pad
    return Examples(tokens, mask)
