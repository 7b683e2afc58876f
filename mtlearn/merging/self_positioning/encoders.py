"""Text encoders: tokens (n, length) to vectors (n, width). A small one of our own, and a user's pretrained one of the library transformers."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PADDING = 0
_WORD = re.compile(r"[a-z][a-z0-9]+")

Tokenise = Callable[[Sequence[str], int], Tensor]


def words(text: str) -> list[str]:
    """Words of two and more letters or digits that begin with a letter, in lower case."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class Vocabulary:
    """Number of each known word, from 1; 0 is padding, and unknown words are left out.

    Attributes:
        number: word to number.
    """

    number: dict[str, int]

    @classmethod
    def of(cls, texts: Iterable[str], size: int) -> "Vocabulary":
        """The ``size`` - 1 most frequent words, ties in the order of the alphabet."""
        counts = Counter(word for text in texts for word in words(text))
        kept = sorted(counts, key=lambda word: (-counts[word], word))[: size - 1]
        return cls({word: i for i, word in enumerate(kept, 1)})

    def __call__(self, texts: Sequence[str], most: int) -> Tensor:
        """(n, longest) int64, at most ``most`` words a text, filled up with 0."""
        rows = [[self.number[word] for word in words(text) if word in self.number][:most] for text in texts]
        length = max((len(row) for row in rows), default=0) or 1
        return torch.tensor([row + [PADDING] * (length - len(row)) for row in rows], dtype=torch.int64).view(len(texts), length)


class WordEncoder(nn.Module):
    """Mean of word vectors, then a perceptron with a residual connection; the result has length 1.

    Args:
        size: of the vocabulary, padding included.
        width: of word vectors and of the result.
        hidden: of the perceptron.
    """

    def __init__(self, size: int = 5000, width: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(size, width, mode="mean", padding_idx=PADDING)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        with torch.no_grad():
            self.embedding.weight[PADDING].zero_()

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, length) to (n, width)."""
        mean = self.embedding(tokens)
        return F.normalize(mean + self.feed(mean), dim=-1)


class PretrainedEncoder(nn.Module):
    """A model of the library transformers: mean of its last hidden states over the tokens that are there; the result has length 1.

    Args:
        model: takes ``input_ids`` and ``attention_mask`` (BERT and its family).
        padding: number of its padding token.
    """

    def __init__(self, model: nn.Module, padding: int) -> None:
        super().__init__()
        self.model, self.padding = model, padding

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, length) to (n, width)."""
        there = tokens != self.padding
        states = self.model(input_ids=tokens, attention_mask=there.long()).last_hidden_state  # (n, length, width)
        weight = there[..., None].to(states.dtype)
        return F.normalize((states * weight).sum(1) / weight.sum(1).clamp(min=1), dim=-1)


def pretrained(name: str) -> tuple[PretrainedEncoder, Tokenise]:
    """An encoder of the library transformers and its tokeniser: from a folder, or by its public name. Needs the extra ``mtlearn[hf]``.

    Raises:
        ImportError: the library is not installed.
        ValueError: the tokeniser has no padding token.
    """
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise ImportError("a pretrained encoder needs the library transformers: pip install 'mtlearn[hf]'") from None
    tokenizer: Any = AutoTokenizer.from_pretrained(name)  # type: ignore[no-untyped-call]
    if tokenizer.pad_token_id is None:
        raise ValueError(f"the tokeniser of {name} has no padding token: set one and save it again")

    def tokenise(texts: Sequence[str], most: int) -> Tensor:
        found: Tensor = tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt")["input_ids"]
        return found

    return PretrainedEncoder(AutoModel.from_pretrained(name), int(tokenizer.pad_token_id)), tokenise
