r"""The two cross-encoders of the paper, each in two sizes, and how they become a scorer for the index.

[CLS]-CE reads query and item as one input and makes a score of one vector. [EMB]-CE puts special tokens *inside* the same joint input and multiplies
two of their states:

.. math::
    f(q, i) = \Big\langle \tfrac12 \big(h_{[Q]} + h_{[/Q]}\big),\; h_{[I]} \Big\rangle \qquad
    \text{[CLS] [Q] query [/Q] [SEP] [I] item [SEP]}

Both vectors depend on both texts, so it is a cross-encoder and no dual encoder; the paper expects a score matrix nearer to low rank.

On a transformer (ours, or a pretrained one by one argument): :class:`~mtlearn.layers.text_encoders.CrossEncoder` and
:class:`EmbeddingCrossEncoder`, both with :class:`JointScorer`. In a size that trains in seconds: :class:`TwoHeads`, both heads on the pooled
vectors of :class:`~mtlearn.layers.decomposable_attention.DecomposableAttention`, with :class:`PairScorer`.

**What differs from the paper.** There, [Q] and [/Q] stand around a mention inside its sentence and [I] between an entity's title and its
description; a query here has no such part, so the marks are at the ends of the query and at the beginning of the item.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mtlearn.layers.decomposable_attention import DecomposableAttention
from mtlearn.layers.pretrained import PretrainedBody, PretrainedTokeniser
from mtlearn.layers.text_encoders import Body, CrossEncoder
from mtlearn.layers.tokens import SPECIAL, PairTokeniser, Vocabulary, joined

MARKS = ("[Q]", "[/Q]", "[I]")
Head = Literal["cls", "emb"]


def mark(tokens: Tensor, types: Tensor, marks: Sequence[int], padding: int) -> tuple[Tensor, Tensor]:
    """Put the special tokens of [EMB]-CE into joint inputs.

    Args:
        tokens: (n, length) of a tokeniser's ``pairs``: [CLS] query [SEP] item [SEP].
        types: (n, length), 0 up to the first separator and 1 after it.
        marks: numbers of [Q], [/Q] and [I].
        padding: number of the padding token.

    Returns:
        Tokens and types (n, length + 3): [CLS] [Q] query [/Q] [SEP] [I] item [SEP].

    Raises:
        ValueError: a pair without a second part, as of tokenisers that know no types.
    """
    there = tokens != padding
    first, second = there & (types == 0), there & (types == 1)
    if not second.any(1).all():
        raise ValueError("every pair needs tokens of type 1 for its item; this tokeniser marks none")
    place = torch.arange(tokens.shape[1], device=tokens.device)
    end = first.sum(1, keepdim=True) - 1  # the separator after the query
    start, stop, item = (torch.full_like(end, number) for number in marks)
    query = tokens.where(first & (place > 0) & (place < end), padding)
    parts = (tokens[:, :1], start, query, stop, tokens.gather(1, end), item, tokens.where(second, padding))
    marked, part = joined(parts, padding)
    return marked, (part >= 5).long()


class EmbeddingCrossEncoder(nn.Module):
    """[EMB]-CE: the product of two contextual vectors of one joint input.

    Args:
        body: tokens and types to states; its vocabulary holds the marks (:func:`add_marks`).
        marks: numbers of [Q], [/Q] and [I].
    """

    def __init__(self, body: Body, marks: Sequence[int]) -> None:
        super().__init__()
        if len(set(marks)) != len(MARKS):
            raise ValueError(f"marks must be three different numbers, of {', '.join(MARKS)}, got {list(marks)}")
        self.body, self.marks = body, tuple(marks)

    def embed(self, tokens: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """Unmarked joint tokens and types (n, length) to the vectors of query and item, (n, width) each."""
        tokens, types = mark(tokens, types, self.marks, self.body.padding)
        states = self.body(tokens, types=types)
        start, stop, item = (states[tokens == number] for number in self.marks)  # each once in every row, so in the order of rows
        return (start + stop) / 2, item

    def forward(self, tokens: Tensor, types: Tensor) -> Tensor:
        """Unmarked joint tokens and types (n, length) to scores (n,)."""
        query, item = self.embed(tokens, types)
        return (query * item).sum(-1)


def add_marks(body: Body, tokeniser: PairTokeniser) -> tuple[int, int, int]:
    """Numbers of [Q], [/Q] and [I] for this body and tokeniser.

    A tokeniser of the library transformers learns the three tokens, and its model's table of embeddings grows. A :class:`Vocabulary` must have been
    made with them: ``Vocabulary.of(texts, size, special=(*SPECIAL, *MARKS))``.

    Raises:
        ValueError: a vocabulary without the marks.
        TypeError: another kind of tokeniser.
    """
    if isinstance(tokeniser, PretrainedTokeniser) and isinstance(body, PretrainedBody):
        tokeniser.tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
        body.model.resize_token_embeddings(len(tokeniser.tokenizer), mean_resizing=False)  # type: ignore[operator]
        start, stop, item = tokeniser.tokenizer.convert_tokens_to_ids(list(MARKS))
        return start, stop, item
    if not isinstance(tokeniser, Vocabulary):
        raise TypeError(f"marks are added to a Vocabulary, or to a pretrained body and tokeniser together, got {type(tokeniser).__name__}")
    if missing := [name for name in MARKS if name not in tokeniser.number]:
        raise ValueError(f"the vocabulary has no {missing[0]}: make it with special=(*SPECIAL, *MARKS), that is {(*SPECIAL, *MARKS)}")
    return tokeniser.number[MARKS[0]], tokeniser.number[MARKS[1]], tokeniser.number[MARKS[2]]


class TwoHeads(nn.Module):
    r"""A small cross-encoder with both heads on one trunk of word-by-word attention.

    With u, v the pooled vectors of query and item after they have met: "cls" is a perceptron on (u + v) / 2, "emb" is
    :math:`\langle W_q u, W_i v \rangle`.

    Args:
        trunk: gives u and v; its own head is the "cls" one.
    """

    def __init__(self, trunk: DecomposableAttention) -> None:
        super().__init__()
        self.trunk = trunk
        self.query = nn.Linear(trunk.features, trunk.features, bias=False)
        self.item = nn.Linear(trunk.features, trunk.features, bias=False)

    def forward(self, queries: Tensor, items: Tensor) -> Tensor:
        """Tokens (n, length) of n pairs to scores (n, 2): of the "cls" head and of the "emb" head."""
        u, v = self.trunk.pooled(queries, items)
        cls = self.trunk.head((u + v) / 2)[:, 0]
        return torch.stack([cls, (self.query(u) * self.item(v)).sum(-1)], 1)


class PairScorer:
    """A model of paired tokens as a scorer of all pairs: tokens (q, length) and (m, length) to (q, m).

    Args:
        model: tokens of n queries and of n items to scores (n,) or (n, outputs).
        output: which of several.
        batch: pairs at once.
    """

    def __init__(self, model: nn.Module, output: int = 0, batch: int = 4096) -> None:
        self.model, self.output, self.batch = model, output, batch

    def __call__(self, queries: Tensor, items: Tensor) -> Tensor:
        """Scores (queries, items) float32."""
        return self.all(queries, items)[..., self.output]

    @torch.no_grad()
    def all(self, queries: Tensor, items: Tensor) -> Tensor:
        """All outputs (queries, items, outputs)."""
        pairs = torch.cartesian_prod(torch.arange(len(queries)), torch.arange(len(items))).to(queries.device)
        found = [self.model(queries[q], items[i]).view(len(q), -1) for q, i in (part.unbind(1) for part in torch.split(pairs, self.batch))]
        return torch.cat(found).view(len(queries), len(items), -1)


class JointScorer:
    """A cross-encoder of joint inputs as a scorer of all pairs of texts.

    Args:
        model: :class:`~mtlearn.layers.text_encoders.CrossEncoder` or :class:`EmbeddingCrossEncoder`.
        tokeniser: makes joint inputs.
        most: tokens of a pair at most, the marks not counted; longer ones are cut.
        batch: pairs at once.
    """

    def __init__(self, model: CrossEncoder | EmbeddingCrossEncoder, tokeniser: PairTokeniser, *, most: int = 256, batch: int = 64) -> None:
        self.model, self.tokeniser, self.most, self.batch = model, tokeniser, most, batch

    @torch.no_grad()
    def __call__(self, queries: Sequence[str], items: Sequence[str]) -> Tensor:
        """Scores (queries, items)."""
        pairs = [(query, item) for query in queries for item in items]
        found = [self.pairs(*zip(*pairs[start : start + self.batch], strict=True)) for start in range(0, len(pairs), self.batch)]
        return torch.cat(found).view(len(queries), len(items))

    def pairs(self, queries: Sequence[str], items: Sequence[str]) -> Tensor:
        """Scores (n,) of n pairs, with gradients where they are wanted."""
        tokens, types = self.tokeniser.pairs(queries, items, self.most, truncate=True)
        device = next(self.model.parameters()).device
        scores: Tensor = self.model(tokens.to(device), types.to(device))
        return scores
