"""A pretrained text encoder in the place of a small one of ours: same calls, one argument. Needs ``mtlearn[hf]``, or ``mtlearn[words]``."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mtlearn.layers.tokens import cut, padded


class PretrainedBody(nn.Module):
    """A model of the library transformers as a body of :mod:`mtlearn.layers.text_encoders`.

    Args:
        model: takes ``input_ids`` and ``attention_mask`` (BERT and its family).
        padding: number of its padding token.
    """

    def __init__(self, model: nn.Module, padding: int) -> None:
        super().__init__()
        self.model, self.padding = model, padding
        config: Any = model.config
        self.width = int(config.hidden_size)
        self.longest = int(getattr(config, "max_position_embeddings", 0)) or None  # None where a model has no table of positions
        self._types = int(getattr(config, "type_vocab_size", 0) or 0)

    def states(
        self, tokens: Tensor, *, types: Tensor | None = None, positions: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The embedding and the state after each layer, (n, length, width).

        Args:
            tokens: (n, length) int64.
            types: (n, length) int64; a model without token types does without.
            positions: (n, length) int64, for models with a table of positions.
            mask: bool, (n, length) or (n, length, length): which token may look at which. Tokens that are not padding when omitted.

        Raises:
            ValueError: more tokens than the model has positions.
        """
        if self.longest is not None and positions is None and tokens.shape[1] > self.longest:
            over = tokens.shape[1] - self.longest
            raise ValueError(f"the input has {tokens.shape[1]} tokens, {over} more than the {self.longest} positions of the model")
        seen = tokens != self.padding if mask is None else mask
        if seen.dim() == 3:
            seen = seen | (~seen.any(-1, keepdim=True) & torch.eye(seen.shape[-1], dtype=torch.bool, device=seen.device))
        extra: dict[str, Tensor] = {}
        if types is not None and self._types > 1:
            extra["token_type_ids"] = types
        if positions is not None:
            extra["position_ids"] = positions
        out: Any = self.model(input_ids=tokens, attention_mask=seen.long(), output_hidden_states=True, **extra)
        return cast(tuple[Tensor, ...], out.hidden_states)

    def forward(self, tokens: Tensor, *, types: Tensor | None = None, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The last state (n, length, width)."""
        return self.states(tokens, types=types, positions=positions, mask=mask)[-1]


class PretrainedTokeniser:
    """A tokeniser of the library transformers with the calls of :class:`mtlearn.layers.tokens.Vocabulary`.

    Args:
        tokenizer: of the library.
        name: of the model, for messages.

    Raises:
        ValueError: it has no padding token.
    """

    def __init__(self, tokenizer: Any, name: str = "the model") -> None:
        if tokenizer.pad_token_id is None:
            raise ValueError(f"the tokeniser of {name} has no padding token: set one and save it again")
        self.tokenizer, self.padding = tokenizer, int(tokenizer.pad_token_id)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __call__(self, texts: Sequence[str], most: int, *, truncate: bool = False) -> Tensor:
        """(n, longest) int64 with the model's own special tokens.

        Raises:
            ValueError: an empty text, or one of more than ``most`` tokens that may not be cut.
        """
        return self._encode([list(texts)], most, truncate, "text")[0]

    def pairs(self, first: Sequence[str], second: Sequence[str], most: int, *, truncate: bool = False) -> tuple[Tensor, Tensor]:
        """Both texts as one input: tokens and types (n, longest) int64.

        Raises:
            ValueError: unequal numbers of texts, an empty text, or a pair of more than ``most`` tokens that may not be cut.
        """
        if len(first) != len(second):
            raise ValueError(f"as many first as second texts are needed, got {len(first)} and {len(second)}")
        return self._encode([list(first), list(second)], most, truncate, "pair")

    def _encode(self, texts: list[list[str]], most: int, truncate: bool, kind: str) -> tuple[Tensor, Tensor]:
        for side in texts:
            if empty := [i for i, text in enumerate(side) if not text.strip()]:
                raise ValueError(f"{kind} {empty[0]} is empty; every text needs at least one word")
        if not truncate:
            lengths = [len(row) for row in self.tokenizer(*texts)["input_ids"]]
            if over := [i for i, length in enumerate(lengths) if length > most]:
                i = over[0]
                raise ValueError(f"{kind} {i} has {lengths[i]} tokens, {lengths[i] - most} more than the limit of {most}; truncate=True cuts it")
        found = self.tokenizer(*texts, padding=True, truncation=True, max_length=most, return_token_type_ids=True, return_tensors="pt")
        return found["input_ids"], found["token_type_ids"]


def pretrained(name: str) -> tuple[PretrainedBody, PretrainedTokeniser]:
    """A body and its tokeniser: from a folder, or by its public name.

    Raises:
        ImportError: the library is not installed.
        ValueError: the tokeniser has no padding token.
    """
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise ImportError("a pretrained encoder needs the library transformers: pip install 'mtlearn[hf]'") from None
    tokeniser = PretrainedTokeniser(AutoTokenizer.from_pretrained(name), name)  # type: ignore[no-untyped-call]
    return PretrainedBody(AutoModel.from_pretrained(name), tokeniser.padding), tokeniser


class SubwordTokeniser:
    """A tokeniser file of the library tokenizers with the calls of :class:`mtlearn.layers.tokens.Vocabulary`; number 0 is padding.

    Args:
        tokenizer: of the library; its numbers are moved up by one to make room for padding.
    """

    padding = 0

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size()) + 1

    def __call__(self, texts: Sequence[str], most: int, *, truncate: bool = False) -> Tensor:
        """(n, longest) int64, without special tokens.

        Raises:
            ValueError: an empty text, or one of more than ``most`` tokens that may not be cut.
        """
        if empty := [i for i, text in enumerate(texts) if not text.strip()]:
            raise ValueError(f"text {empty[0]} is empty; every text needs at least one word")
        rows = [[number + 1 for number in found.ids] for found in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        return padded([cut(row, most, truncate, f"text {i}") for i, row in enumerate(rows)], self.padding)


def word_table() -> tuple[Tensor, SubwordTokeniser]:
    """Word vectors of a real sentence encoder that comes as a package (wordllama: 32,000 subwords, 256 numbers each), and its tokeniser.

    Their mean is the sentence's vector. They go where word vectors go: ``MeanOfWords(vectors)``, ``DecomposableAttention(vectors)``.
    Nothing is downloaded; the files lie in the package. Needs the extra ``mtlearn[words]``.

    Returns:
        vectors (32001, 256), row 0 padding; the tokeniser.

    Raises:
        ImportError: the package or the library tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ImportError("the word table needs the library tokenizers: pip install 'mtlearn[words]'") from None
    found = find_spec("wordllama")
    if found is None or found.origin is None:
        raise ImportError("the word table needs the package wordllama: pip install 'mtlearn[words]'")
    folder = Path(found.origin).parent
    (table,) = load_file(folder / "weights" / "l2_supercat_256.safetensors").values()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return torch.cat([torch.zeros(1, table.shape[1]), table.float()]), SubwordTokeniser(tokenizer)
