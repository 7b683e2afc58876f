"""Whatever an encoder answers is checked, and the text that broke it is named."""

import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtlearn.layers.embedding import EncoderError, TextEncoder, embed
from mtlearn.layers.tokens import Vocabulary

TEXTS = [f"text number {'abcdefghij'[i]}{i}" for i in range(10)]


def lengths(texts: Sequence[str]) -> Tensor:
    return torch.tensor([[float(len(text)), 1.0] for text in texts])


def test_batches_are_put_together() -> None:
    calls: list[int] = []

    def encode(texts: Sequence[str]) -> np.ndarray:
        calls.append(len(texts))
        return lengths(texts).numpy()

    assert torch.equal(embed(encode, TEXTS, batch=4), lengths(TEXTS))
    assert calls == [4, 4, 2]
    assert embed(lambda texts: [[1, 2] for _ in texts], TEXTS).dtype == torch.float32


def test_a_tokeniser_and_a_function_of_tokens_are_an_encoder() -> None:
    vocabulary = Vocabulary.of(TEXTS, 20)
    table = nn.Embedding(20, 3)
    encode = TextEncoder(vocabulary, lambda tokens: table(tokens).mean(1), longest=2)
    found = embed(encode, TEXTS)
    assert found.shape == (10, 3) and not found.requires_grad
    assert torch.equal(found[0], found[1])  # only the first two words are read
    with pytest.raises(ValueError, match="longest must be at least 1"):
        TextEncoder(vocabulary, lambda tokens: tokens, longest=0)


def nan_at(bad: str) -> object:
    def encode(texts: Sequence[str]) -> Tensor:
        found = lengths(texts)
        found[[text == bad for text in texts]] = torch.nan
        return found

    return encode


def fail(texts: Sequence[str]) -> Tensor:
    raise RuntimeError("no key")


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (nan_at(TEXTS[5]), f"the vector of text 5 is not finite (1 of this batch): {TEXTS[5]!r}"),
        (lambda texts: lengths(texts)[1:], f"the encoder must give (4, d) for 4 texts, got (3, 2) (the first: {TEXTS[0]!r})"),
        (lambda texts: lengths(texts)[:, 0], "got (4,)"),
        (lambda texts: torch.ones(len(texts), 2 if TEXTS[0] in texts else 3), f"gave 2 numbers a text before and 3 for text 4: {TEXTS[4]!r}"),
        (fail, "the encoder failed on the texts 0 to 3 (the first: 'text number a0'): no key"),
    ],
)
def test_wrong_answers_name_the_text(encode: object, message: str) -> None:
    with pytest.raises(EncoderError, match=re.escape(message)):
        embed(encode, TEXTS, batch=4)  # type: ignore[arg-type]


def test_wrong_texts() -> None:
    with pytest.raises(ValueError, match="there is no text"):
        embed(lengths, [])
    with pytest.raises(ValueError, match="text 1 is empty"):
        embed(lengths, ["a b", "  "])
    with pytest.raises(ValueError, match="batch must be at least 1"):
        embed(lengths, TEXTS, batch=0)
    with pytest.raises(EncoderError, match=re.escape("...'")):
        embed(lambda texts: torch.full((len(texts), 1), torch.inf), ["word " * 50])
