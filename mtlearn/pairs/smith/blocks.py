"""From long texts to sentence blocks, and blocks with masked words (SMITH, part "Input Representation").

    documents = text_blocks(texts, vocabulary, size=32, most=64)       # (B, n, 32) int64: [CLS] whole sentences [SEP] [SEP] padding
    masked, wanted = mask_words(documents, marks_of(vocabulary), generator=draws)

Any tokeniser with the calls of :class:`mtlearn.layers.tokens.Vocabulary` will do, a pretrained one too.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor

from mtlearn.layers.tokens import Tokeniser, padded, replace_words, words

EDGES = 3  # [CLS] at the beginning of a block, [SEP] [SEP] at its end
_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n")
_LONG = 10**9  # tokens of a sentence, before blocks are filled


@dataclass(frozen=True)
class Marks:
    """Numbers of a tokeniser's special tokens.

    Attributes:
        padding, start, end, mask: "[PAD]", "[CLS]", "[SEP]", "[MASK]".
        special: every number that never stands for a word.
        size: of the vocabulary.
    """

    padding: int
    start: int
    end: int
    mask: int
    special: tuple[int, ...]
    size: int


def marks_of(tokeniser: Tokeniser) -> Marks:
    """The special tokens of one of our vocabularies or of a pretrained tokeniser.

    Raises:
        ValueError: it has no [CLS], [SEP] or [MASK].
    """
    size = len(cast(Any, tokeniser))
    number: dict[str, int] | None = getattr(tokeniser, "number", None)
    if number is not None:
        found = [number.get(name) for name in ("[CLS]", "[SEP]", "[MASK]")]
        special = tuple(i for name, i in number.items() if name.startswith("["))
    else:
        inner: Any = getattr(tokeniser, "tokenizer", None)
        found = [getattr(inner, f"{name}_token_id", None) for name in ("cls", "sep", "mask")]
        special = tuple(getattr(inner, "all_special_ids", ()))
    start, end, mask = found
    if start is None or end is None or mask is None:
        raise ValueError("sentence blocks need a tokeniser with the special tokens [CLS], [SEP] and [MASK]")
    return Marks(tokeniser.padding, start, end, mask, tuple(sorted({*special, tokeniser.padding})), size)


def sentences(text: str) -> list[str]:
    """A text cut after full stops, question and exclamation marks, and at empty lines. A piece without a letter goes to the one before it."""
    found: list[str] = []
    for piece in _END.split(text):
        clean = " ".join(piece.split())
        if clean and found and not any(letter.isalpha() for letter in clean):
            found[-1] += f" {clean}"
        elif clean:
            found.append(clean)
    return found


def fill(lengths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Greedy filling: each block takes as many whole sentences, in order, as fit.

    Args:
        lengths: tokens of each sentence, at least 1.
        room: tokens of a block. A longer sentence has a block of its own.

    Returns:
        For each block the first sentence and the one after the last.

    Raises:
        ValueError: a length or the room is below 1.
    """
    if room < 1 or min(lengths, default=1) < 1:
        raise ValueError(f"room and lengths must be at least 1, got room={room}, lengths={list(lengths)}")
    ends = list(accumulate(lengths))
    found: list[tuple[int, int]] = []
    first, used = 0, 0
    while first < len(lengths):
        last = max(bisect_right(ends, used + room), first + 1)
        found.append((first, last))
        first, used = last, ends[last - 1]
    return found


def text_blocks(texts: Sequence[str], tokeniser: Tokeniser, *, size: int = 32, most: int = 64, truncate: bool = False, split: bool = False) -> Tensor:
    """Documents as sentence blocks (B, n, size) int64, filled up with padding and padding blocks; n is that of the longest document.

    Args:
        texts: B documents.
        tokeniser: with [CLS] and [SEP].
        size: tokens of a block s, the three special ones included.
        most: blocks of a document at most.
        truncate: cut a sentence that is longer than a block, and drop the blocks beyond ``most``, as the public code does.
        split: spread a sentence that is longer than a block over several, so that nothing of it is lost.

    Raises:
        ValueError: a document without a word, a size of at most 3, ``most`` below 1; where it may not be cut, a sentence that is longer than a
            block or a document of too many blocks, and by how much.
    """
    if size <= EDGES:
        raise ValueError(f"size must be above {EDGES}, the special tokens of a block, got {size}")
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}: no block would be left")
    marks, room = marks_of(tokeniser), size - EDGES
    documents = []
    for i, text in enumerate(texts):
        pieces = sentences(text)
        if not any(letter.isalpha() for letter in text):
            raise ValueError(f"document {i} is empty: {text[:40]!r}; every document needs at least one word")
        rows = _rows(pieces, tokeniser, marks)
        if not rows:
            raise ValueError(f"document {i} has no word that the tokeniser takes: {text[:40]!r}")
        longest = max(map(len, rows))
        if split:
            rows = [row[at : at + room] for row in rows for at in range(0, len(row), room)]
        elif longest > room and not truncate:
            raise ValueError(
                f"document {i} has a sentence of {longest} tokens, {longest - room} more than the {room} that a block of {size} holds; "
                "split=True spreads it over blocks, truncate=True cuts it"
            )
        blocks = [
            [marks.start, *[token for row in rows[first:last] for token in row][:room], marks.end, marks.end]
            for first, last in fill([len(row) for row in rows], room)
        ]
        if len(blocks) > most and not truncate:
            raise ValueError(f"document {i} has {len(blocks)} blocks, {len(blocks) - most} more than the limit of {most}; truncate=True drops them")
        documents.append(blocks[:most])
    n = max(map(len, documents), default=1)
    flat = [row for blocks in documents for row in [*blocks, *[[]] * (n - len(blocks))]]
    found = padded([*flat, [marks.padding] * size], marks.padding)[:-1]  # the last row only makes every block ``size`` wide
    return found.view(len(documents), n, size)


def _rows(pieces: Sequence[str], tokeniser: Tokeniser, marks: Marks) -> list[list[int]]:
    """The tokens of each sentence without the special ones; sentences that have none are left out."""
    number: dict[str, int] | None = getattr(tokeniser, "number", None)
    if number is not None:  # a vocabulary refuses a sentence in which it finds no word ("x = 3."), a document has many others
        pieces = [piece for piece in pieces if words(piece)]
    if not pieces:
        return []
    outside = {marks.padding, marks.start, marks.end}
    rows = ([token for token in row if token not in outside] for row in tokeniser(pieces, _LONG).tolist())
    return [row for row in rows if row]


def mask_words(tokens: Tensor, marks: Marks, *, share: float = 0.15, most: int = 5, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """BERT's masked words, drawn in each block for itself: of those drawn 80 % become [MASK], 10 % any word, 10 % stay.

    Args:
        tokens: (..., s) blocks.
        marks: special tokens, which are never drawn.
        share: of a block's tokens (special ones counted, as BERT does) that are drawn, at least one where there is a word.
        most: words drawn in a block at most.
        generator: of every draw, on the CPU.

    Returns:
        the masked blocks and the words wanted (..., s), -100 where none is.

    Raises:
        ValueError: a share outside 0 to 1, or ``most`` below 1.
    """
    if not 0 < share <= 1 or most < 1:
        raise ValueError(f"share must be in (0, 1] and most at least 1, got {share} and {most}")
    ordinary_word = ~torch.isin(tokens, torch.tensor(marks.special, device=tokens.device))
    there = (tokens != marks.padding).sum(-1, keepdim=True)
    count = (share * there).round().clamp(1, most)
    score, fate = (torch.rand(tokens.shape, generator=generator).to(tokens.device) for _ in range(2))
    rank = score.masked_fill(~ordinary_word, 2.0).argsort(-1).argsort(-1)
    drawn = ordinary_word & (rank < count)
    ordinary = torch.tensor([i for i in range(marks.size) if i not in set(marks.special)])
    other = ordinary[torch.randint(len(ordinary), tokens.shape, generator=generator)].to(tokens.device)
    return replace_words(tokens, drawn, fate=fate, other=other, mask=marks.mask)
