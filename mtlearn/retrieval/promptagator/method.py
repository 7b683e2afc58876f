r"""Promptagator (Dai, Zhao, Ma, Luan and others, ICLR 2023).

Zhuyun Dai, Vincent Y. Zhao, Ji Ma, Yi Luan, Jianmo Ni, Jing Lu, Anton Bakalov, Kelvin Guu, Keith B. Hall, Ming-Wei Chang: Promptagator: Few-shot
Dense Retrieval From 8 Examples. https://arxiv.org/abs/2209.11755

**Idea.** Retrieval tasks differ in what a query is: a question, a claim to be proved, a title, an argument to be countered. A task gives its
documents, one line of instruction and two to eight pairs of query and document. A language model that has read these few pairs writes queries for the
documents; a filter drops those that do not find their document again; the retriever and the reranker of the task are trained on what is left.

**1. Writing** (:func:`build_prompt`, :class:`PromptWriter`, :func:`write`). The prompt of a document :math:`d` is

    instruction  prefix_d: d_1  prefix_q: q_1  ...  prefix_d: d_k  prefix_q: q_k  prefix_d: d  prefix_q:

with :math:`k \le 8` and eight queries a document. Anything that follows :class:`Writer` will do in its place.

**2. Round trip** (:func:`source_rank`, :func:`consistent`). A dual encoder :math:`E_0` is trained on all pairs. A pair :math:`(q, d)` is kept if
fewer than K documents score strictly higher than :math:`d` for :math:`q` under :math:`E_0`, K = 1.

**3. Dual encoder** (:class:`BagEncoder`, :func:`pair_loss`). One encoder for both sides, trained with the other documents of the batch as negatives,

.. math:: L = -\frac1B \sum_i \log \frac{e^{\cos(q_i, d_i) / \tau}}{\sum_j e^{\cos(q_i, d_j) / \tau}}.

**4. Reranker** (:class:`LateInteraction`, :func:`sample_negatives`, :func:`rerank_loss`, :func:`rerank`), "Promptagator++": softmax over one positive
and negatives that are sampled from the retriever's best; at search time it puts these best in a new order.

**What differs from the paper.** Its language model has 137 billion parameters, its encoders are T5-base. Here any function from texts to texts writes
(:mod:`mtlearn.retrieval.promptagator.writers` has one without a language model); the encoder is a bag of words that begins as a random projection of
TF-IDF, which has the part of unsupervised pretraining; the reranker lets each word of the query look for its best word in the document. Prompt
wording and learning rates are not in public code and are ours.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.contrastive import info_nce
from mtlearn.layers.tokens import PADDING, Vocabulary, words

MOST_EXAMPLES = 8
USABLE = 5  # fewest words of a document for which queries are written


@dataclass(frozen=True)
class Example:
    """One of the few pairs that a task gives."""

    query: str
    document: str


# 1. writing


def check_examples(examples: Sequence[Example]) -> None:
    """ValueError without an example; a warning for more than eight."""
    if not examples:
        raise ValueError("few-shot writing needs at least one example; use a zero-shot writer where there is none")
    if len(examples) > MOST_EXAMPLES:
        warnings.warn(f"{len(examples)} examples are given; few-shot means at most {MOST_EXAMPLES}", UserWarning, stacklevel=3)


def count_words(text: str) -> int:
    """Length of a text in words between blanks, where the language model's own tokens are not known."""
    return len(text.split())


def build_prompt(
    document: str,
    examples: Sequence[Example] = (),
    *,
    instruction: str = "",
    prefixes: tuple[str, str] = ("Document", "Query"),
    longest: int | None = None,
    length: Callable[[str], int] = count_words,
    shortest: int = 16,
) -> str:
    """The prompt of one document, ending where the language model shall write the query.

    A prompt that is too long is cut in this order: the examples' documents, all to one number of words, down to ``shortest``; the last example,
    and so on; the document itself.

    Args:
        document: what a query is wanted for.
        examples: of the task; none makes the zero-shot prompt, which is the same for every task.
        instruction: what the task is, one line.
        prefixes: what document and query are called: ("Argument", "Counter argument").
        longest: of the prompt, as ``length`` counts; None for no limit.
        length: of a text, in the language model's tokens.
        shortest: fewest words to which an example's document is cut before an example is dropped.

    Raises:
        ValueError: a limit that leaves no room for a word of the document, or ``shortest`` below 1.
    """
    if shortest < 1:
        raise ValueError(f"shortest must be at least 1, got {shortest}")

    def render(kept: int, most: int, target: str) -> str:
        if not examples:
            return f"{instruction} {target} Read the passage and generate a query.".strip()
        shown = [(" ".join(example.document.split()[:most]), example.query) for example in examples[:kept]]
        lines = [f"{prefixes[0]}: {text}\n{prefixes[1]}: {query}" for text, query in shown]
        return "\n".join([*([instruction] if instruction else []), *lines, f"{prefixes[0]}: {target}\n{prefixes[1]}:"])

    def fits(text: str) -> bool:
        return longest is None or length(text) <= longest

    for kept in range(len(examples), 0, -1):
        most = max(len(example.document.split()) for example in examples[:kept])
        if fits(whole := render(kept, most, document)):
            return whole
        if fits(render(kept, shortest, document)):
            return render(kept, _largest(shortest, most, lambda n, kept=kept: fits(render(kept, n, document))), document)  # type: ignore[misc]
    if fits(alone := render(0, 0, document)):
        return alone
    target = document.split()
    if not target or not fits(render(0, 0, target[0])):
        raise ValueError(f"a prompt of at most {longest} has no room for a word of the document; the frame alone is {length(render(0, 0, ''))}")
    return render(0, 0, " ".join(target[: _largest(1, len(target), lambda n: fits(render(0, 0, " ".join(target[:n]))))]))


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number from ``low`` (which fits) to ``high`` that fits, by halving."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


class Writer(Protocol):
    """What writes queries: a language model behind a prompt, a rule, a person."""

    def __call__(self, documents: Sequence[str], *, per_document: int, generator: torch.Generator | None = None) -> Sequence[Sequence[str]]:
        """``per_document`` queries for each of the documents."""
        ...


class PromptWriter:
    """Any text-to-text function as a writer.

    Args:
        generate: n prompts to n continuations; it samples by itself (temperature 0.7 in the paper), each prompt is sent once a query.
        examples: of the task; none for the zero-shot prompt.
        instruction, prefixes, longest, length: as for :func:`build_prompt`.

    Raises:
        ValueError: the function gives another number of texts than it got.

    Warns:
        UserWarning: more than eight examples.
    """

    def __init__(
        self,
        generate: Callable[[Sequence[str]], Sequence[str]],
        examples: Sequence[Example] = (),
        *,
        instruction: str = "",
        prefixes: tuple[str, str] = ("Document", "Query"),
        longest: int | None = None,
        length: Callable[[str], int] = count_words,
    ) -> None:
        if examples:
            check_examples(examples)
        self.generate, self.examples = generate, tuple(examples)
        self.instruction, self.prefixes, self.longest, self.length = instruction, prefixes, longest, length

    def __call__(self, documents: Sequence[str], *, per_document: int, generator: torch.Generator | None = None) -> list[list[str]]:
        """Queries of each document: the first line of each continuation, for a model may go on with a document of its own."""
        frame = {"instruction": self.instruction, "prefixes": self.prefixes}
        prompts = [build_prompt(text, self.examples, **frame, longest=self.longest, length=self.length) for text in documents]  # type: ignore[arg-type]
        answers = list(self.generate([prompt for prompt in prompts for _ in range(per_document)]))
        if len(answers) != len(prompts) * per_document:
            raise ValueError(f"the function must give one text a prompt: {len(prompts) * per_document} were sent, {len(answers)} came back")
        lines = [answer.strip().partition("\n")[0].strip() for answer in answers]
        return [lines[i : i + per_document] for i in range(0, len(lines), per_document)]


@dataclass(frozen=True)
class Synthetic:
    """Written pairs.

    Attributes:
        queries: m texts.
        source: (m,) int64, the document that each was written for.
        skipped: documents with too few words, for which nothing was written.
        empty: answers without a word, which were dropped.
    """

    queries: tuple[str, ...]
    source: Tensor
    skipped: int = 0
    empty: int = 0

    def take(self, kept: Tensor) -> "Synthetic":
        """Those of a mask (m,) or of indices."""
        rows = kept.nonzero()[:, 0] if kept.dtype == torch.bool else kept
        return Synthetic(tuple(self.queries[i] for i in rows.tolist()), self.source[rows], self.skipped, self.empty)


def write(
    writer: Writer, documents: Sequence[str], *, per_document: int = 8, usable: int = USABLE, generator: torch.Generator | None = None
) -> Synthetic:
    """Queries for all documents that have ``usable`` words.

    Raises:
        ValueError: ``per_document`` below 1, or a writer that answers for another number of documents than it got.
    """
    if per_document < 1:
        raise ValueError(f"per_document must be at least 1, got {per_document}")
    enough = [i for i, text in enumerate(documents) if len(words(text)) >= usable]
    found = writer([documents[i] for i in enough], per_document=per_document, generator=generator) if enough else []
    if len(found) != len(enough):
        raise ValueError(f"the writer must answer for {len(enough)} documents, got {len(found)} answers")
    pairs = [(query, i) for i, queries in zip(enough, found, strict=True) for query in queries]
    kept = [(query, i) for query, i in pairs if words(query)]
    source = torch.tensor([i for _, i in kept], dtype=torch.int64)
    return Synthetic(tuple(query for query, _ in kept), source, len(documents) - len(enough), len(pairs) - len(kept))


# 2. the round trip


def source_rank(queries: Tensor, documents: Tensor, source: Tensor, *, block: int = 128) -> Tensor:
    """How many documents score strictly higher than the source, for each query.

    Args:
        queries: (m, d) vectors.
        documents: (n, d).
        source: (m,) int64, the row of each query's own document.
        block: queries whose scores are held at a time.

    Returns:
        (m,) int64, 0 for a query that finds its source first (or level with others).
    """
    found = []
    for part, own in zip(torch.split(queries, block), torch.split(source, block), strict=True):
        scores = part @ documents.T  # (block, n)
        found.append((scores > scores.gather(1, own[:, None])).sum(1))
    return torch.cat(found) if found else source.new_zeros(0)


def consistent(rank: Tensor, k: int = 1, *, batch: int = 1) -> Tensor:
    """The filter: which pairs (m,) have their source among the best ``k``, ties in its favour.

    Raises:
        ValueError: ``k`` below 1.
        RuntimeError: fewer than ``batch`` pairs are left.
    """
    if k < 1:
        raise ValueError(f"K must be at least 1, got {k}")
    kept = rank < k
    if int(kept.sum()) < batch:
        raise RuntimeError(f"the filter with K={k} keeps {int(kept.sum())} of {len(rank)} pairs, fewer than one batch of {batch}")
    return kept


# 3. the dual encoder


@dataclass(frozen=True)
class Bags:
    r"""Texts as bags of words, packed one after the other: packed once, picked often.

    Attributes:
        words: (T,) int64 numbers, the different words of each text.
        weights: (T,) :math:`1 + \ln tf`.
        offsets: (n + 1,) where each text begins, and the end.
    """

    words: Tensor
    weights: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, texts: Sequence[str], vocabulary: Vocabulary) -> "Bags":
        """Pack texts; a text without a known word is the word [UNK] where the vocabulary has it, and empty otherwise."""
        unknown = vocabulary.number.get("[UNK]", PADDING)
        numbers: list[int] = []
        counts: list[int] = []
        offsets = [0]
        for text in texts:
            found: dict[int, int] = {}
            for word in words(text):
                if (number := vocabulary.number.get(word)) is not None:
                    found[number] = found.get(number, 0) + 1
            if not found and unknown:
                found = {unknown: 1}
            numbers += found
            counts += found.values()
            offsets.append(len(numbers))
        return cls(torch.tensor(numbers, dtype=torch.int64), 1 + torch.tensor(counts, dtype=torch.float32).log(), torch.tensor(offsets))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: Tensor) -> "Bags":
        """Some of the texts, in this order."""
        sizes = self.offsets[rows + 1] - self.offsets[rows]
        ends = sizes.cumsum(0)
        inside = torch.arange(int(sizes.sum()), device=rows.device) - (ends - sizes).repeat_interleave(sizes)
        index = self.offsets[rows].repeat_interleave(sizes) + inside
        return Bags(self.words[index], self.weights[index], F.pad(ends, (1, 0)))

    def to(self, device: torch.device) -> "Bags":
        """On another device."""
        return Bags(self.words.to(device), self.weights.to(device), self.offsets.to(device))

    def padded(self, rows: Tensor) -> Tensor:
        """Word numbers (rows, longest), padding 0."""
        part = self.take(rows)
        sizes = part.offsets.diff()
        index = torch.arange(len(rows), device=rows.device).repeat_interleave(sizes)
        found = torch.full((len(rows), max(int(sizes.max()), 1)), PADDING, device=rows.device)
        found[index, torch.arange(len(index), device=rows.device) - part.offsets[index]] = part.words
        return found


class BagEncoder(nn.Module):
    r"""One vector a text: :math:`v = \sum_t (1 + \ln tf_t) e^{w_t} r_t`, of length 1.

    With :math:`w_t = \ln idf_t` and rows :math:`r_t \sim N(0, 1/d)` it begins as a random projection of TF-IDF: the cosine of two texts has that of
    TF-IDF as its mean, with an error that shrinks as :math:`1/\sqrt d`.

    Args:
        idf: (V,) of each word of the vocabulary, above 0.
        dim: d.
        generator: of the rows.
    """

    def __init__(self, idf: Tensor, dim: int = 256, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.randn(len(idf), dim, generator=generator) / dim**0.5)
        self.log_weight = nn.Parameter(idf.float().log())

    def forward(self, bags: Bags) -> Tensor:
        """Vectors (n, d)."""
        weights = bags.weights.to(self.row.dtype) * self.log_weight[bags.words].exp()
        return F.normalize(F.embedding_bag(bags.words, self.row, bags.offsets[:-1], mode="sum", per_sample_weights=weights), dim=-1)


def pair_loss(queries: Tensor, documents: Tensor, *, temperature: float, source: Tensor | None = None) -> Tensor:
    """The loss of a batch of pairs, a scalar.

    Args:
        queries: (B, d).
        documents: (B, d).
        temperature: of the cosines.
        source: (B,) numbers of the documents; the same document twice in a batch is no negative of itself.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    same = None if source is None else source[:, None] == source
    return info_nce(queries, documents, scale=1 / temperature, same=same)


def different_sources(source: Tensor, batch: int, *, generator: torch.Generator | None = None) -> Tensor:
    """A batch of pairs, no two of one document: indices, at most ``batch`` (fewer where there are not so many documents)."""
    order = torch.randperm(len(source), generator=generator).to(source.device)
    drawn = source[order]
    by_source = drawn.argsort(stable=True)
    first = torch.ones_like(drawn, dtype=torch.bool)
    first[by_source[1:]] = drawn[by_source[1:]] != drawn[by_source[:-1]]
    return order[first][:batch]


# 4. the reranker


class LateInteraction(nn.Module):
    """A score of query and document: each word of the query looks for its nearest word of the document, a small network judges what it found.

    The score is ``scale`` times the retriever's cosine plus the sum over the query's words of a two-layer network of five numbers: cosine to the
    nearest word, whether that is the word itself, log (1 + its frequency), the word's log weight, log length of the document. The network begins
    with output 0, so that the reranker begins with the retriever's order. The retriever stays as it is.

    Args:
        encoder: the retriever.
        documents: n documents, packed.
        hidden: of the network.
        scale: where the weight of the retriever's cosine begins.
    """

    cosine: Tensor
    frequency: Tensor
    vectors: Tensor
    log_weight: Tensor
    log_length: Tensor

    def __init__(self, encoder: BagEncoder, documents: Bags, *, hidden: int = 32, scale: float = 20.0) -> None:
        super().__init__()
        with torch.no_grad():
            rows = F.normalize(encoder.row, dim=-1)
            nearest = F.embedding_bag(documents.words, rows @ rows.T, documents.offsets[:-1], mode="max")  # (n, V)
            frequency = torch.zeros_like(nearest)
            sizes = documents.offsets.diff()
            frequency[torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes), documents.words] = documents.weights.to(frequency.dtype)
            buffers = {"cosine": nearest, "frequency": frequency, "vectors": encoder(documents), "log_weight": encoder.log_weight.detach().clone()}
            for name, buffer in (buffers | {"log_length": (1 + sizes).to(nearest.dtype).log()}).items():
                self.register_buffer(name, buffer)
        self.scale = nn.Parameter(torch.tensor(scale))
        self.judge = nn.Sequential(nn.Linear(5, hidden), nn.GELU(), nn.Linear(hidden, 1))
        nn.init.zeros_(self.judge[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.judge[2].bias)  # type: ignore[arg-type]

    def forward(self, query_words: Tensor, query_vectors: Tensor, candidates: Tensor) -> Tensor:
        """Scores (b, c).

        Args:
            query_words: (b, length) int64, padding 0.
            query_vectors: (b, d) of the retriever.
            candidates: (b, c) int64, rows of documents.
        """
        rows, columns = candidates[:, :, None], query_words[:, None]  # (b, c, 1), (b, 1, length)
        found = self.frequency[rows, columns]
        cosine = self.cosine[rows, columns]
        features = torch.stack(
            [
                cosine,
                (found > 0).to(cosine.dtype),
                found,
                self.log_weight[columns].expand_as(cosine),
                self.log_length[rows].expand_as(cosine) / 5,
            ],
            -1,
        )  # (b, c, length, 5)
        said = (self.judge(features)[..., 0] * (columns != PADDING)).sum(-1)
        score: Tensor = self.scale * torch.einsum("bd,bcd->bc", query_vectors, self.vectors[candidates]) + said
        return score


def sample_negatives(best: Tensor, source: Tensor, count: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Wrong documents among the retriever's best.

    Args:
        best: (m, k) int64, the best documents of each query.
        source: (m,) its own document, which is not drawn.
        count: how many, fewer than k.
        generator: of the draws.

    Returns:
        (m, count) int64, different in each row.
    """
    if not 1 <= count < best.shape[1]:
        raise ValueError(f"count must be between 1 and {best.shape[1] - 1}, one less than the documents retrieved, got {count}")
    chance = (best != source[:, None]).double()
    return best.gather(1, torch.multinomial(chance.cpu(), count, generator=generator).to(best.device))


def rerank_loss(scores: Tensor) -> Tensor:
    """Softmax cross-entropy of scores (b, 1 + h) whose first column is the right document."""
    return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64, device=scores.device))


def rerank(best: Tensor, scores: Tensor) -> Tensor:
    """The retriever's best (q, k) in the order of the reranker's scores (q, k), level ones as the retriever had them: (q, k)."""
    if best.shape != scores.shape:
        raise ValueError(f"there must be one score for each document, got {tuple(best.shape)} and {tuple(scores.shape)}")
    return best.gather(1, scores.argsort(dim=1, descending=True, stable=True))
