"""From texts to token numbers: a vocabulary of words, and how two texts become one input.

    words = Vocabulary.of(texts, 5000)
    words(["Compute the QR factorization."], 32)                       # (1, 4), filled up with [PAD]
    tokens, types = words.pairs(["Compute the QR."], ["QR of a matrix."], 32)    # [CLS] compute the qr [SEP] qr of matrix [SEP]

A tokeniser of the library transformers has the same two calls: :func:`mtlearn.layers.pretrained.pretrained`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

PADDING = 0
UNSEEN = -100  # the label of a word that is not to be predicted, as in torch's cross-entropy
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORD = re.compile(r"[a-z][a-z0-9]+")


def words(text: str) -> list[str]:
    """Words of two and more letters or digits that begin with a letter, in lower case."""
    return _WORD.findall(text.lower())


class Tokeniser(Protocol):
    """What turns texts into token numbers."""

    @property
    def padding(self) -> int:
        """Number of the padding token."""
        ...

    def __call__(self, texts: Sequence[str], most: int, *, truncate: bool = False) -> Tensor:
        """(n, longest) int64, padded; a text of more than ``most`` tokens is an error unless it may be cut."""
        ...


class PairTokeniser(Tokeniser, Protocol):
    """What also turns two texts into one input."""

    def pairs(self, first: Sequence[str], second: Sequence[str], most: int, *, truncate: bool = False) -> tuple[Tensor, Tensor]:
        """Both texts as one input: tokens and types (n, longest) int64, type 0 up to the first separator and 1 after it."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """Number of each known word. Special tokens come first, padding is 0.

    Attributes:
        number: word or special token to number.
    """

    number: dict[str, int]
    padding: int = PADDING

    @classmethod
    def of(cls, texts: Iterable[str], size: int, *, special: Sequence[str] = SPECIAL) -> "Vocabulary":
        """The most frequent words, ties in the order of the alphabet.

        Args:
            texts: where words are counted.
            size: numbers in all, special tokens included.
            special: tokens that come first, "[PAD]" being number 0. Without "[UNK]", unknown words are left out.

        Raises:
            ValueError: "[PAD]" does not come first, or the size leaves no word.
        """
        if not special or special[0] != SPECIAL[0] or size <= len(special):
            raise ValueError(f"special must begin with {SPECIAL[0]!r} and size be above {len(special)}, got {tuple(special)} and {size}")
        counts = Counter(word for text in texts for word in words(text))
        kept = sorted(counts, key=lambda word: (-counts[word], word))[: size - len(special)]
        return cls({word: i for i, word in enumerate([*special, *kept])})

    def __len__(self) -> int:
        return len(self.number)

    def _numbers(self, texts: Sequence[str]) -> list[list[int]]:
        unknown = self.number.get("[UNK]")
        rows = []
        for i, text in enumerate(texts):
            found = [self.number.get(word, unknown) for word in words(text)]
            if not found and unknown is not None:
                raise ValueError(f"text {i} has no words: {text!r}; every text needs at least one")
            rows.append([number for number in found if number is not None])
        return rows

    def __call__(self, texts: Sequence[str], most: int, *, truncate: bool = False) -> Tensor:
        """(n, longest) int64, filled up with padding.

        Args:
            texts: n texts.
            most: words of a text at most.
            truncate: keep the first ``most`` words of a longer text.

        Raises:
            ValueError: a text without words (where there is an "[UNK]"), or a longer one that may not be cut.
        """
        rows = [cut(row, most, truncate, f"text {i}") for i, row in enumerate(self._numbers(texts))]
        return padded(rows, self.padding)

    def pairs(self, first: Sequence[str], second: Sequence[str], most: int, *, truncate: bool = False) -> tuple[Tensor, Tensor]:
        """``[CLS] first [SEP] second [SEP]``: tokens and types (n, longest) int64.

        Args:
            first: n texts.
            second: n texts.
            most: tokens of a pair at most, the three special ones included.
            truncate: cut the longer text of a pair, word by word, until both fit.

        Raises:
            ValueError: unequal numbers of texts, a text without words, a pair that is too long and may not be cut, or no special tokens.
        """
        if len(first) != len(second):
            raise ValueError(f"as many first as second texts are needed, got {len(first)} and {len(second)}")
        if "[CLS]" not in self.number or "[SEP]" not in self.number:
            raise ValueError("pairs need a vocabulary with the special tokens [CLS] and [SEP]")
        if most < 5:
            raise ValueError(f"most must be at least 5, a word of each text and three special tokens, got {most}")
        start, end = self.number["[CLS]"], self.number["[SEP]"]
        rows, types = [], []
        for i, (a, b) in enumerate(zip(self._numbers(first), self._numbers(second), strict=True)):
            over = len(a) + len(b) + 3 - most
            if over > 0:
                if not truncate:
                    raise ValueError(f"pair {i} has {most + over} tokens, {over} more than the limit of {most}; truncate=True cuts it")
                room = most - 3
                keep = min(len(a), max(room // 2, room - len(b)))
                a, b = a[:keep], b[: room - keep]
            rows.append([start, *a, end, *b, end])
            types.append([0] * (len(a) + 2) + [1] * (len(b) + 1))
        return padded(rows, self.padding), padded(types, 0)


def to_letters(vocabulary: Vocabulary, room: int) -> Tensor:
    """The words in the order of their numbers, a line each, as bytes (room,) uint8, filled up with 0: what a shipped model keeps its words in.

    Raises:
        ValueError: words that need more room.
    """
    text = "\n".join(vocabulary.number).encode()
    if len(text) > room:
        raise ValueError(f"the words need {len(text)} bytes, {len(text) - room} more than the {room} there is room for")
    return torch.tensor([*text, *[0] * (room - len(text))], dtype=torch.uint8)


def from_letters(letters: Tensor) -> Vocabulary:
    """The vocabulary of :func:`to_letters`."""
    return Vocabulary({word: number for number, word in enumerate(bytes(letters[letters > 0].tolist()).decode().split("\n"))})


def cut(row: list[int], most: int, truncate: bool, name: str) -> list[int]:
    """The row as it is, or its first ``most`` numbers where it may be cut; ValueError where it may not."""
    if len(row) > most and not truncate:
        raise ValueError(f"{name} has {len(row)} tokens, {len(row) - most} more than the limit of {most}; truncate=True cuts it")
    return row[:most]


def padded(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    """Rows of numbers as one tensor (n, longest) int64, filled up with ``padding``; at least one column."""
    length = max((len(row) for row in rows), default=0) or 1
    return torch.tensor([[*row, *[padding] * (length - len(row))] for row in rows], dtype=torch.int64).view(len(rows), length)


def check_range(name: str, numbers: Tensor, size: int) -> None:
    """Raises ValueError, with ``name``, where a number (any shape) is not one of 0 to ``size`` - 1."""
    if numbers.numel():
        low, high = (int(end) for end in numbers.aminmax())
        if low < 0 or high >= size:
            raise ValueError(f"{name} must be between 0 and {size - 1}, got {low} to {high}")


def replace_words(tokens: Tensor, chosen: Tensor, *, fate: Tensor, other: Tensor, mask: int) -> tuple[Tensor, Tensor]:
    """BERT's masked words (Devlin et al. 2019): of those chosen 80 % become ``mask``, 10 % another word, 10 % stay.

    Args:
        tokens: of any shape.
        chosen: bool of that shape, the words to be predicted.
        fate: of that shape, uniform on [0, 1): which of the three.
        other: of that shape, random words.
        mask: number of the token that hides.

    Returns:
        the tokens shown, and the labels: the word where one was chosen, :data:`UNSEEN` elsewhere.
    """
    shown = torch.where(fate < 0.8, mask, torch.where(fate < 0.9, other, tokens))
    return torch.where(chosen, shown, tokens), torch.where(chosen, tokens, UNSEEN)


def joined(parts: Sequence[Tensor], padding: int = PADDING) -> tuple[Tensor, Tensor]:
    """Texts one after the other as one input, padding only at its end.

    Args:
        parts: tokens (n, length_i) each, padded anywhere.
        padding: number of the padding token.

    Returns:
        tokens (n, longest), and the number of the part that each comes from (n, longest), -1 for padding.
    """
    tokens = torch.cat(tuple(parts), 1)
    part = torch.cat([torch.full_like(tokens_of, i) for i, tokens_of in enumerate(parts)], 1)
    there = tokens != padding
    order = (~there).to(torch.uint8).argsort(dim=1, stable=True)  # what is there comes first, in its order
    longest = max(int(there.sum(1).max()) if len(tokens) else 0, 1)
    order = order[:, :longest]
    return tokens.gather(1, order), torch.where(there, part, -1).gather(1, order)
