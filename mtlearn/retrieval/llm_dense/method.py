r"""One recipe for dense retrievers, whatever the backbone: what an empirical comparison of language models as encoders fixes.

Kun Luo, Minghao Qin, Zheng Liu, Shitao Xiao, Jun Zhao and Kang Liu: Large Language Models as Foundations for Next-Gen Dense Retrieval: A
Comprehensive Empirical Assessment, EMNLP 2024, arXiv:2408.12194. The authors publish no code of it.

**The idea.** Many things differ between two retrievers: the backbone, its size, how long it was pretrained, the loss, the data. Fix everything but
the backbone, fine-tune each by the same steps on the same batches, and measure six abilities: in-domain accuracy, data efficiency, zero-shot,
length generalisation, instruction following, multi-task training.

**The embedding** (section 3.1). A text T is a vector of the backbone's states, by its family:

.. math:: h = \mathrm{BERT}(T)_{[CLS]}, \qquad h = \mathrm{mean}_t\, \mathrm{T5}(T)_t, \qquad h = \mathrm{LLM}(T)_{[EOS]}

Under a causal mask only the last token has seen everything, so an end token is appended and its state taken: :func:`pool` with ``"cls"``, ``"mean"``
and ``"last"``. :class:`CausalBody` is a small decoder (pre-norm, rotary positions, Su et al. 2021, output tied to the input); the encoder beside it
is :class:`mtlearn.layers.text_encoders.TokenEncoder`; a decoder of the library transformers goes in the same place
(:func:`pretrained_retriever`).

**The loss** (equations 3 and 4; the denominator there prints :math:`q_j` for :math:`q_i`), with s the cosine over the temperature:

.. math:: s(q, p) = \tfrac1\tau \cos(h_q, h_p), \qquad
    \mathcal L = -\log \frac{e^{s(q_i, p_i^+)}}{e^{s(q_i, p_i^+)} + \sum_{p^- \in \mathcal N_i} e^{s(q_i, p^-)}}

where :math:`\mathcal N_i` are the other passages of the batch and h hard negatives of each query: :func:`retrieval_loss`.

**Pretraining**: :func:`next_token_loss` for decoders, :func:`masked_word_loss` for the encoder. **Instructions** stand before the query and a
separator (the paper does not name one; ours is a token of its own). **Multi-task** training takes each batch from one task: :func:`task_order`.
Large models are fine-tuned by LoRA: :func:`adapt`.

Differences from the paper: our backbones are two layers of at most 128 numbers, the temperature is 0.05 (0.02 there), all weights of ours are tuned
where the paper tunes adapters. The paper gives neither the rank of its adapters nor the number of epochs; what stands here is our choice.
"""

import re
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.contrastive import info_nce
from mtlearn.layers.lora import add_lora
from mtlearn.layers.pretrained import pretrained
from mtlearn.layers.text_encoders import Body, TokenEncoder
from mtlearn.layers.tokens import PADDING, UNSEEN, Tokeniser, check_range, cut, padded, replace_words
from mtlearn.retrieval.pooling import Pooling, check_pooling, pool

SPECIAL = ("[PAD]", "[EOS]", "[SEP]", "[CLS]", "[MASK]")
END, SEPARATOR, START, MASK = 1, 2, 3, 4
_PIECE = re.compile(r"[a-z]+|[0-9]")


# ------------------------------------------------------------------------------------------------------------------------------- texts


def pieces(text: str) -> list[str]:
    """Runs of letters, in lower case, and single digits."""
    return _PIECE.findall(text.lower())


class HashedWords:
    """A tokeniser without unknown words: the known ones have a number each, all others share buckets by a hash of their letters.

    Args:
        known: the words with a number of their own.
        buckets: how many numbers the others share.
        start: begin each text with [CLS], as an encoder wants it.
        strict: refuse a text without a word in place of warning and giving its end token alone.

    Every text ends with [EOS]. The numbers: [PAD], [EOS], [SEP], [CLS], [MASK], the known words, the buckets.
    """

    padding = PADDING

    def __init__(self, known: Sequence[str], buckets: int = 200, *, start: bool = False, strict: bool = False) -> None:
        if buckets < 1 or len(set(known)) < len(known):
            raise ValueError(f"buckets must be at least 1 and no word twice, got {buckets} and {len(known) - len(set(known))} doubles")
        self.known, self.buckets, self.start, self.strict = tuple(known), buckets, start, strict
        self._number = {word: i for i, word in enumerate(self.known, len(SPECIAL))}

    @classmethod
    def of(cls, texts: Iterable[str], size: int, buckets: int = 200) -> "HashedWords":
        """The most frequent words of texts, ties in the order of the alphabet; ``size`` numbers in all.

        Raises:
            ValueError: a size that leaves no word.
        """
        room = size - buckets - len(SPECIAL)
        if room < 1:
            raise ValueError(f"size must be above {buckets + len(SPECIAL)} ({len(SPECIAL)} special tokens and {buckets} buckets), got {size}")
        counts = Counter(piece for text in texts for piece in pieces(text))
        return cls(sorted(counts, key=lambda word: (-counts[word], word))[:room], buckets)

    def with_start(self, start: bool) -> "HashedWords":
        """The same words, with or without [CLS] before each text."""
        return HashedWords(self.known, self.buckets, start=start, strict=self.strict)

    def __len__(self) -> int:
        return len(SPECIAL) + len(self.known) + self.buckets

    def numbers(self, text: str) -> list[int]:
        """The numbers of a text's words, without special tokens."""
        first = len(SPECIAL) + len(self.known)
        return [self._number[p] if p in self._number else first + zlib.crc32(p.encode()) % self.buckets for p in pieces(text)]

    def __call__(self, texts: Sequence[str], most: int, *, truncate: bool = False, instructions: Sequence[str] | None = None) -> Tensor:
        """(n, longest) int64: ``instruction [SEP] words [EOS]``, padded on the right.

        Args:
            texts: n texts.
            most: tokens of a text at most, special ones included; those of an instruction and its separator come on top.
            truncate: cut a longer text.
            instructions: n of them, "" for none.

        Raises:
            ValueError: a text that is too long and may not be cut, one without words where ``strict``, or another number of instructions.
        """
        if instructions is not None and len(instructions) != len(texts):
            raise ValueError(f"as many instructions as texts are needed, got {len(instructions)} for {len(texts)} texts")
        room = most - 1 - self.start
        if room < 1:
            raise ValueError(f"most must be at least {2 + self.start}, room for one word, got {most}")
        rows = []
        for i, text in enumerate(texts):
            row = cut(self.numbers(text), room, truncate, f"text {i}")
            if not row:
                if self.strict:
                    raise ValueError(f"text {i} has no words: {text!r}; every text needs at least one")
                warnings.warn(f"text {i} has no words: {text!r}; its vector is that of the end token alone", UserWarning, stacklevel=2)
            before = [*self.numbers(instructions[i]), SEPARATOR] if instructions is not None and instructions[i] else []
            rows.append([*([START] if self.start else []), *before, *row, END])
        return padded(rows, self.padding)


class EndingTokeniser:
    """A tokeniser that appends the end token after each text's last word; tokenisers of decoders mostly do not.

    Args:
        tokeniser: pads on either side.
        end: number of the end token; it is not the padding.

    Raises:
        ValueError: ``end`` is the padding token, which no mask could tell from it.
    """

    def __init__(self, tokeniser: Tokeniser, end: int) -> None:
        if end == tokeniser.padding:
            raise ValueError(f"the end token must not be the padding token, both are {end}: give the tokeniser a padding token of its own")
        self.tokeniser, self.end, self.padding = tokeniser, end, tokeniser.padding

    def __call__(self, texts: Sequence[str], most: int, *, truncate: bool = False) -> Tensor:
        """(n, longest) int64, padded on the right; ``most`` counts the end token."""
        tokens = self.tokeniser(texts, most - 1, truncate=truncate)
        return padded([[*row[row != self.padding].tolist(), self.end] for row in tokens], self.padding)


def trim(tokens: Tensor, padding: int = PADDING) -> Tensor:
    """Tokens (n, length) without the columns at the right that are padding in every row."""
    used = (tokens != padding).any(0)
    return tokens[:, : int(used.nonzero()[-1, 0]) + 1] if used.any() else tokens[:, :1]


# --------------------------------------------------------------------------------------------------------------------------- backbones


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions: turn each pair (x_i, x_{i + d/2}) of (..., length, d) by the angle (..., length, d/2) of its place.

    The dot product of two turned vectors depends on the difference of their places only.
    """
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class CausalLayer(nn.Module):
    """Pre-norm layer of a decoder: causal attention with rotary positions, then a perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, angles: Tensor, mask: Tensor | None) -> Tensor:
        """(n, length, width) to the same shape; ``angles`` (..., length, d/2), ``mask`` bool (n, 1, length, length) or None for causal alone."""
        query, key, value = self.query_key_value(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (n, heads, length, d)
        mixed = F.scaled_dot_product_attention(rotate(query, angles), rotate(key, angles), value, attn_mask=mask, is_causal=mask is None)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return cast(Tensor, x + self.feed(self.norms[1](x)))


class CausalBody(nn.Module):
    """A small decoder as a body of :mod:`mtlearn.layers.text_encoders`: each state has seen its token and those before it.

    Args:
        size: of the vocabulary.
        width: of a state.
        heads: number of attention heads; ``width`` is an even multiple of it.
        layers: number of layers.
        padding: number of the padding token.

    Raises:
        ValueError: a size or number of layers below 1, or a width that is no even multiple of the heads.
    """

    def __init__(self, size: int, width: int, heads: int = 4, layers: int = 2, *, padding: int = PADDING) -> None:
        super().__init__()
        if min(size, layers, heads) < 1 or width < 1 or width % (2 * heads):
            raise ValueError(f"width must be a multiple of 2 heads, sizes at least 1, got size={size}, width={width}, heads={heads}, layers={layers}")
        self.width, self.heads, self.padding = width, heads, padding
        self.token = nn.Embedding(size, width)
        nn.init.normal_(self.token.weight, std=0.02)
        self.layers = nn.ModuleList([CausalLayer(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def states(
        self, tokens: Tensor, *, types: Tensor | None = None, positions: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The embedding and the state after each layer, (n, length, width), the last one normalised.

        Args:
            tokens: (n, length) int64, padded on either side.
            types: nothing here; decoders know no token types.
            positions: (n, length) int64; 0, 1 ... when omitted. Only their differences matter.
            mask: bool (n, length), which tokens may be looked at; those that are not padding when omitted.

        Raises:
            ValueError: a token that the table does not have, no token at all, or a mask of another shape.
        """
        if tokens.dim() != 2 or tokens.shape[1] == 0:
            raise ValueError(f"tokens must be (n, length) with a length of at least 1, got {tuple(tokens.shape)}")
        check_range("tokens", tokens, self.token.num_embeddings)
        length = tokens.shape[1]
        seen = tokens != self.padding if mask is None else mask
        if seen.shape != tokens.shape:
            raise ValueError(f"mask must be {tuple(tokens.shape)}, as the tokens, got {tuple(seen.shape)}")
        allowed = None
        if not bool(seen.all()) and bool((seen[:, 1:] & ~seen[:, :-1]).any()):  # a gap before a token; padding on the right is never looked at
            own = torch.eye(length, dtype=torch.bool, device=tokens.device)  # what may see nothing sees itself, so that no NaN arises
            allowed = (own.new_ones(length, length).tril() & seen[:, None] | own)[:, None]
        half = self.width // self.heads // 2
        speed = 10_000.0 ** (-torch.arange(half, device=tokens.device, dtype=self.token.weight.dtype) / half)
        if positions is None:
            angles = torch.arange(length, device=tokens.device)[:, None] * speed  # (length, d/2)
        else:
            angles = positions[:, None, :, None] * speed  # (n, 1, length, d/2)
        found = [self.token(tokens)]
        for layer in self.layers:
            found.append(layer(found[-1], angles, allowed))
        found[-1] = self.norm(found[-1])
        return tuple(found)

    def forward(self, tokens: Tensor, *, types: Tensor | None = None, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The last state (n, length, width)."""
        return self.states(tokens, types=types, positions=positions, mask=mask)[-1]


def next_token_loss(body: CausalBody, tokens: Tensor) -> Tensor:
    """Cross-entropy of each next token, padding left out; the output weights are the token table. Tokens (n, length)."""
    logits = body(tokens[:, :-1]) @ body.token.weight.T
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=body.padding)


def masked_word_loss(body: TokenEncoder, tokens: Tensor, *, generator: torch.Generator | None = None, share: float = 0.15) -> Tensor:
    """BERT's cross-entropy of hidden words, of which there is a ``share``; the output weights are the token table. Tokens (n, length).

    Raises:
        ValueError: a share outside of 0 to 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    draws = [torch.rand(tokens.shape, generator=generator).to(tokens.device) for _ in range(2)]
    other = torch.randint(len(SPECIAL), body.token.num_embeddings, tokens.shape, generator=generator).to(tokens.device)
    chosen = (draws[0] < share) & (tokens >= len(SPECIAL))
    if not chosen.any():
        chosen = tokens >= len(SPECIAL)
    shown, labels = replace_words(tokens, chosen, fate=draws[1], other=other, mask=MASK)
    logits = body(shown)[chosen] @ body.token.weight.T
    return F.cross_entropy(logits, labels[chosen], ignore_index=UNSEEN)


# --------------------------------------------------------------------------------------------------------------------------- retriever


class DenseRetriever(nn.Module):
    """A backbone and how its states become one vector; queries and documents share it.

    Args:
        body: tokens to states.
        pooling: ``"cls"``, ``"mean"`` or ``"last"``.
        end: number of the end token that must close each text where the last state is taken; None takes whatever comes last.

    Raises:
        ValueError: an unknown pooling.
    """

    def __init__(self, body: Body, pooling: Pooling = "last", *, end: int | None = END) -> None:
        super().__init__()
        check_pooling(pooling)
        self.body, self.pooling, self.end = body, pooling, end

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, length) to vectors (n, width) of length 1.

        Raises:
            ValueError: a text without a token, or one that does not end with the end token.
        """
        mask = tokens != self.body.padding
        vectors = pool(self.body(tokens), mask, self.pooling)
        if self.pooling == "last" and self.end is not None:
            last = pool(tokens[..., None], mask, "last")[:, 0]
            if not bool((last == self.end).all()):
                row = int((last != self.end).nonzero()[0])
                raise ValueError(f"text {row} ends with token {int(last[row])}, not with the end token {self.end}: append it to every text")
        return F.normalize(vectors, dim=-1)


def pretrained_retriever(name: str) -> tuple[DenseRetriever, EndingTokeniser]:
    """A decoder of the library transformers as a retriever: last-token pooling, its own end token appended.

    Args:
        name: a folder, or its public name.

    Raises:
        ImportError: the library is not installed.
        ValueError: the tokeniser has no padding or no end token.
    """
    body, tokeniser = pretrained(name)
    end = tokeniser.tokenizer.eos_token_id
    if end is None:
        raise ValueError(f"the tokeniser of {name} has no end token: the vector is taken from it; set one and save it again")
    return DenseRetriever(body, "last", end=int(end)), EndingTokeniser(tokeniser, int(end))


def adapt(body: nn.Module, *, rank: int = 32, alpha: float = 64.0, generator: torch.Generator | None = None) -> tuple[str, ...]:
    """Freeze a backbone and give each of its linear layers a low-rank adapter; names of those layers. Rank and alpha are our choice."""
    options: dict[str, Any] = {"alpha": alpha, "generator": generator}
    return add_lora(body, lambda name, layer: isinstance(layer, nn.Linear), rank=rank, **options)


# -------------------------------------------------------------------------------------------------------------------------------- loss


def retrieval_loss(
    queries: Tensor, positives: Tensor, negatives: Tensor | None = None, *, temperature: float = 0.05, same: Tensor | None = None
) -> Tensor:
    """InfoNCE of the batch, a scalar: each query shall find its own passage among those of all queries and all hard negatives.

    Args:
        queries: (B, d).
        positives: (B, d), row i is right for query i.
        negatives: (B, h, d) hard negatives, or (m, d) those that :func:`without_positives` kept.
        temperature: of the cosines, above 0.
        same: bool (B, B), passages that are right for more than their own query: then they are no negatives of it.

    Returns:
        the loss; exactly 0 for one query without negatives.

    Raises:
        ValueError: a temperature of 0 or less, or shapes that do not fit.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if len(queries) == 1 and queries.shape == positives.shape and (negatives is None or negatives.numel() == 0):
        return (queries * positives).sum() * 0.0
    return info_nce(queries, positives, scale=1 / temperature, negatives=negatives, same=same)


def hard_negatives(scores: Tensor, positive: Tensor, count: int, *, skip: int = 0) -> Tensor:
    """The best documents that are not the right one, (B, count), from the scores (B, n) of any retriever.

    Args:
        scores: of each query and document.
        positive: (B,) number of the right document.
        count: hard negatives of a query.
        skip: best wrong ones that are left out, since they are right too often.

    Raises:
        ValueError: more than there are, or below 1.
    """
    if count < 1 or skip < 0 or count + skip > scores.shape[1] - 1:
        raise ValueError(f"count must be between 1 and {scores.shape[1] - 1 - skip} (documents less the right one and skip), got {count}")
    masked = scores.scatter(1, positive[:, None], -torch.inf)
    return masked.topk(count + skip, 1).indices[:, skip:]


def without_positives(vectors: Tensor, passage: Tensor, positive: Tensor) -> tuple[Tensor, int]:
    """Hard negatives without those that are their query's own positive.

    Args:
        vectors: (B, h, d).
        passage: (B, h), which passage each of them is.
        positive: (B,), which passage is right for each query.

    Returns:
        those kept (m, d), and how many were dropped.

    Raises:
        ValueError: shapes that do not fit.
    """
    if vectors.dim() != 3 or passage.shape != vectors.shape[:2] or positive.shape != passage.shape[:1]:
        raise ValueError(
            f"vectors, passage and positive must be (B, h, d), (B, h) and (B,), got {tuple(vectors.shape)}, {tuple(passage.shape)} "
            f"and {tuple(positive.shape)}"
        )
    kept = passage != positive[:, None]
    return vectors[kept], int((~kept).sum())


# ------------------------------------------------------------------------------------------------------------------------------ batches


def batch_rows(count: int, batch: int, steps: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Rows (steps, batch) int64 of each step: the data are shuffled, gone through, shuffled again; no row twice in a batch.

    Raises:
        ValueError: a batch below 1 or above the number of rows.
    """
    if not 1 <= batch <= count:
        raise ValueError(f"batch must be between 1 and the {count} rows, got {batch}")
    each = count // batch
    epochs = -(-steps // each)
    rows = [torch.randperm(count, generator=generator)[: each * batch].view(each, batch) for _ in range(epochs)]
    return torch.cat([torch.zeros(0, batch, dtype=torch.int64), *rows])[:steps]


def task_order(tasks: int, each: int, *, generator: torch.Generator | None = None) -> Tensor:
    """The task of each step (tasks * each,): one task a batch, each task ``each`` times, in a random order.

    Raises:
        ValueError: no task, or a number of steps below 0.
    """
    if tasks < 1 or each < 0:
        raise ValueError(f"tasks must be at least 1 and each 0 or more, got {tasks} and {each}")
    order = torch.arange(tasks).repeat_interleave(each)
    return order[torch.randperm(len(order), generator=generator)]


# ----------------------------------------------------------------------------------------------------------------------------- measures


def ranking(scores: Tensor, relevance: Tensor, *, depth: int = 10) -> dict[str, Tensor]:
    """nDCG, MRR and recall at a depth, of each query that has a relevant document: (queries,) float64 each.

    Args:
        scores: (queries, documents), higher is better.
        relevance: bool of that shape.
        depth: ranks that count. The reciprocal rank is 0 where the first relevant document is further down.

    Raises:
        ValueError: shapes that differ, a depth below 1, or no query with a relevant document.
    """
    if scores.dim() != 2 or scores.shape != relevance.shape or depth < 1:
        raise ValueError(
            f"scores and relevance must both be (queries, documents), depth at least 1, got {tuple(scores.shape)}, "
            f"{tuple(relevance.shape)} and {depth}"
        )
    relevance = relevance.bool()
    there = relevance.any(1)
    if not there.any():
        raise ValueError("no query has a relevant document")
    scores, relevance = scores[there], relevance[there]
    count = relevance.sum(1)
    hits = relevance.gather(1, scores.topk(min(depth, scores.shape[1]), 1).indices).double()  # (queries, depth)
    discount = 1 / torch.arange(2, hits.shape[1] + 2, device=scores.device, dtype=torch.float64).log2()
    ideal = discount.cumsum(0)[count.clamp(max=len(discount)) - 1]
    place = torch.arange(1, hits.shape[1] + 1, device=scores.device, dtype=torch.float64)
    return {"ndcg": (hits * discount).sum(1) / ideal, "mrr": (hits / place).max(1).values, "recall": hits.sum(1) / count}
