"""Encoders as functions of texts: what a benchmark, a search or a comparison asks of any of them, and the checks of what comes back.

    encode = TextEncoder(vocabulary, BiEncoder(body).embed, longest=32)     # a tokeniser and a function of tokens
    vectors = embed(encode, ["Compute the QR factorization.", "Sort an array."])    # (2, d), checked

Any function from a list of texts to (n, d) numbers will do: the ``encode`` of sentence-transformers, a lambda around an API.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlearn.layers.tokens import Tokeniser

Encode = Callable[[Sequence[str]], Any]


class EncoderError(ValueError):
    """An encoder gave something that is no vector a text; the message names the text."""


class TextEncoder:
    """Texts to vectors by a tokeniser and a function of tokens, without a gradient.

    Args:
        tokeniser: texts to tokens.
        vectors: tokens (n, length) to (n, d).
        longest: tokens of a text that are read; the rest is cut.
    """

    def __init__(self, tokeniser: Tokeniser, vectors: Callable[[Tensor], Tensor], longest: int) -> None:
        if longest < 1:
            raise ValueError(f"longest must be at least 1, got {longest}")
        self.tokeniser, self.vectors, self.longest = tokeniser, vectors, longest

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(n, d)."""
        with torch.no_grad():
            return self.vectors(self.tokeniser(texts, self.longest, truncate=True))


def embed(encode: Encode, texts: Sequence[str], *, batch: int = 256) -> Tensor:
    """Vectors (n, d) float of n texts, ``batch`` at a time, checked.

    Args:
        encode: a list of texts to (n, d) numbers: a tensor, an array or lists.
        texts: at least one, none of them empty.
        batch: texts of one call.

    Raises:
        ValueError: no text, or an empty one.
        EncoderError: the encoder's answer has not a row a text, is no matrix, changes its width, or has a number that is NaN or infinite; or the
            encoder itself failed, with the first text of the batch.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    texts = list(texts)
    if not texts:
        raise ValueError("there is no text to encode")
    if empty := [i for i, text in enumerate(texts) if not text.strip()]:
        raise ValueError(f"text {empty[0]} is empty; every text needs at least one word")
    found: list[Tensor] = []
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        try:
            answer = encode(part)
        except Exception as error:
            raise EncoderError(
                f"the encoder failed on the texts {start} to {start + len(part) - 1} (the first: {_short(part[0])}): {error}"
            ) from error
        vectors = torch.as_tensor(answer).detach().cpu()
        vectors = vectors if vectors.is_floating_point() else vectors.float()
        if vectors.dim() != 2 or len(vectors) != len(part) or vectors.shape[1] == 0:
            raise EncoderError(
                f"the encoder must give ({len(part)}, d) for {len(part)} texts, got {tuple(vectors.shape)} (the first: {_short(part[0])})"
            )
        if found and vectors.shape[1] != found[0].shape[1]:
            raise EncoderError(
                f"the encoder gave {found[0].shape[1]} numbers a text before and {vectors.shape[1]} for text {start}: {_short(part[0])}"
            )
        bad = ~vectors.isfinite().all(1)
        if bad.any():
            i = int(bad.nonzero()[0, 0])
            raise EncoderError(f"the vector of text {start + i} is not finite ({int(bad.sum())} of this batch): {_short(part[i])}")
        found.append(vectors)
    return torch.cat(found)


def _short(text: str, most: int = 80) -> str:
    return repr(text if len(text) <= most else text[: most - 3] + "...")
