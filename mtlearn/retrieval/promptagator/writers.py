r"""Query writers that need no language model: an extractive one that learns a task's query form from eight examples, and two that know no example.

**The honest eight-shot learner.** Each word of a document has a few features (:data:`FEATURES`): the section where it occurs first, how far from the
start, how rare and how frequent it is. In the eight example documents it is known which words the query took. A logistic regression on these few
hundred words is the whole of what is learned:

.. math:: \min_{w, b} \tfrac12 \lVert w \rVert^2 + C \sum_t \log(1 + e^{-y_t (w^\top x_t + b)}), \qquad y_t = \pm 1.

**Sampling.** A query takes the length of a random example and draws that many words without replacement, with chances in proportion to
:math:`e^{s_t / T}`: the largest of :math:`s_t / T + g_t` with Gumbel noise :math:`g_t` (Kool et al., ICML 2019).

It keeps the role of the language model (to learn from eight pairs what a query of the task looks like), not its language: it can write no word that
the document does not have.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from mtlearn.layers.tokens import words
from mtlearn.retrieval.promptagator.method import Example, check_examples

SECTIONS = 6
FEATURES = (*(f"section {i + 1}" for i in range(SECTIONS)), "log position", "log idf", "idf", "log frequency", "length", "common")
COMMON = 0.3  # share of the documents above which a word is common
LENGTHS = tuple(range(4, 13))  # words of a query, for writers that have seen none
BREAK = "\f"  # between the sections of a document


def split_sections(text: str) -> list[str]:
    """The sections of a document: its parts between form feeds; where there are none, six stretches of equally many words.

    Raises:
        ValueError: more than six sections.
    """
    if BREAK in text:
        parts = text.split(BREAK)
        if len(parts) > SECTIONS:
            raise ValueError(f"a document has at most {SECTIONS} sections, got {len(parts)}")
        return parts
    found = words(text)
    size = -(-len(found) // SECTIONS) or 1
    return [" ".join(found[i : i + size]) for i in range(0, len(found), size)]


@dataclass(frozen=True)
class Statistics:
    """In how many documents of a corpus each word is.

    Attributes:
        documents: number of documents.
        containing: word to the number of documents that have it.
    """

    documents: int
    containing: Counter[str]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Statistics":
        """Count; ValueError without a text."""
        if not texts:
            raise ValueError("a corpus needs at least one document, got none")
        return cls(len(texts), Counter(word for text in texts for word in set(words(text))))

    def idf(self, found: Sequence[str]) -> Tensor:
        r"""Inverse document frequency (n,) of n words, :math:`1 + \ln((1 + N) / (1 + n_t))`, at least 1."""
        counts = torch.tensor([self.containing[word] for word in found], dtype=torch.float64)
        return 1 + ((1 + self.documents) / (1 + counts)).log()


@dataclass(frozen=True)
class WordTable:
    """The different words of some documents, in the order of documents.

    Attributes:
        words: T words, each once a document.
        document: (T,) int64, the document of each.
        features: (T, 12) float64, see :data:`FEATURES`.
    """

    words: tuple[str, ...]
    document: Tensor
    features: Tensor

    @classmethod
    def of(cls, texts: Sequence[str], statistics: Statistics) -> "WordTable":
        """Read the documents."""
        every: list[str] = []
        rows: list[tuple[int, int, int, int]] = []  # document, section, position, frequency
        for number, text in enumerate(texts):
            place: dict[str, tuple[int, int]] = {}
            counts: Counter[str] = Counter()
            at = 0
            for section, part in enumerate(split_sections(text)):
                for word in words(part):
                    place.setdefault(word, (section, at))
                    counts[word] += 1
                    at += 1
            every += place
            rows += [(number, section, position, counts[word]) for word, (section, position) in place.items()]
        table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)
        idf = statistics.idf(every)
        share = torch.tensor([statistics.containing[word] for word in every], dtype=torch.float64) / statistics.documents
        numbers = [(1 + table[:, 2]).log(), idf.log(), idf, table[:, 3].double().log(), torch.tensor([len(w) for w in every]), share > COMMON]
        features = torch.cat([F.one_hot(table[:, 1], SECTIONS).double(), torch.stack([column.double() for column in numbers], 1)], 1)
        return cls(tuple(every), table[:, 0], features)


def logistic_regression(features: Tensor, labels: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """Weights (f,) and intercept () of the minimum above, by scikit-learn; the intercept is not penalised.

    Args:
        features: (n, f) float64.
        labels: (n,) bool, with both values.
        c: weight of the data against the penalty.

    Raises:
        ValueError: labels that are all alike, or ``c`` of 0 or less.
    """
    if not c > 0:
        raise ValueError(f"c must be above 0, got {c}")
    if not 0 < int(labels.sum()) < len(labels):
        raise ValueError(f"labels must have both values, got {int(labels.sum())} true of {len(labels)}")
    found = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-10).fit(features.numpy(), labels.numpy())
    return torch.from_numpy(found.coef_[0]), torch.tensor(float(found.intercept_[0]), dtype=torch.float64)


def gumbel_top(scores: Tensor, count: int, *, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw without replacement with chances in proportion to :math:`e^{s / T}`.

    Args:
        scores: (..., n); -inf is never drawn before all others.
        count: how many, from 1 to n.
        temperature: T; 0 is the documented limit: the highest scores, ties by index. Infinity is the other: every score alike.
        generator: of the noise.

    Returns:
        indices (..., count), in the order in which they are drawn.

    Raises:
        ValueError: temperature below 0 or NaN, or count out of range.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must be above 0 (0 takes the highest scores, infinity draws uniformly), got {temperature}")
    if not 1 <= count <= scores.shape[-1]:
        raise ValueError(f"count must be between 1 and {scores.shape[-1]}, got {count}")
    if temperature == 0:
        return scores.argsort(dim=-1, descending=True, stable=True)[..., :count]
    noise = -(-torch.rand(scores.shape, generator=generator, dtype=torch.float64).clamp(1e-300, 1 - 1e-16).log()).log()
    there = scores.isfinite()
    return (torch.where(there, scores, 0.0) / temperature + noise).masked_fill(~there, -torch.inf).topk(count, -1).indices


Score = Callable[[Tensor], Tensor]  # features (T, 12) to scores (T,)


class ExtractiveWriter:
    """A query writer that draws words of the document by a score.

    Args:
        statistics: of the corpus.
        score: features (T, 12) of words to scores (T,).
        lengths: of queries, in words, one of which is drawn for each query.
        temperature: of the draws.
    """

    def __init__(self, statistics: Statistics, score: Score, lengths: Sequence[int], *, temperature: float = 0.7) -> None:
        if not temperature >= 0:
            raise ValueError(f"temperature must be above 0 (0 takes the highest scores, infinity draws uniformly), got {temperature}")
        if not lengths or min(lengths) < 1:
            raise ValueError(f"lengths must be at least one number, each 1 or more, got {tuple(lengths)}")
        self.statistics, self.score, self.lengths, self.temperature = statistics, score, tuple(lengths), temperature

    def __call__(self, documents: Sequence[str], *, per_document: int, generator: torch.Generator | None = None) -> list[list[str]]:
        """Queries of each document."""
        return self.draw(WordTable.of(documents, self.statistics), len(documents), per_document=per_document, generator=generator)

    def draw(self, table: WordTable, documents: int, *, per_document: int, generator: torch.Generator | None = None) -> list[list[str]]:
        """As the call, from words that are already read."""
        sizes = torch.bincount(table.document, minlength=documents)
        starts = (sizes.cumsum(0) - sizes).tolist()
        lengths = torch.tensor(self.lengths)[torch.randint(len(self.lengths), (documents, per_document), generator=generator)].tolist()
        scores = self.score(table.features)
        every: list[list[str]] = []
        for rows in torch.split(torch.arange(documents), 128):  # the padded scores of one block at a time
            first, last = int(rows[0]), int(rows[-1]) + 1
            within = torch.arange(starts[first], starts[last] if last < documents else len(scores))
            padded = torch.full((len(rows), max(int(sizes[rows].max()), 1)), -torch.inf, dtype=torch.float64)
            padded[table.document[within] - first, within - torch.tensor(starts)[table.document[within]]] = scores[within]
            most = min(max(self.lengths), padded.shape[1])
            drawn = gumbel_top(
                padded[:, None].expand(-1, per_document, -1), most, temperature=self.temperature, generator=generator
            ).tolist()  # (block, per_document, most)
            for row, queries in zip(rows.tolist(), drawn, strict=True):
                size, start = int(sizes[row]), starts[row]
                every.append(
                    [" ".join(table.words[start + i] for i in query[: min(n, size)]) for query, n in zip(queries, lengths[row], strict=True)]
                )
        return every


@dataclass(frozen=True)
class WordScore:
    """What the examples taught: a linear score of standardised features.

    Attributes:
        weights: (12,), of standardised features.
        intercept: ().
        mean, scale: (12,), of the examples' words.
    """

    weights: Tensor
    intercept: Tensor
    mean: Tensor
    scale: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Scores (T,), the log odds of being taken."""
        return (features - self.mean) / self.scale @ self.weights + self.intercept


def few_shot_writer(examples: Sequence[Example], statistics: Statistics, *, c: float = 0.3, temperature: float = 0.7) -> ExtractiveWriter:
    """The extractive writer fitted on examples; its ``score`` is a :class:`WordScore`.

    Raises:
        ValueError: no example, or none whose query shares a word with its document.

    Warns:
        UserWarning: more than eight examples, or one whose query shares no word with its document.
    """
    check_examples(examples)
    table = WordTable.of([example.document for example in examples], statistics)
    asked = [set(words(example.query)) for example in examples]
    taken = torch.tensor([word in asked[row] for word, row in zip(table.words, table.document.tolist(), strict=True)], dtype=torch.bool)
    shared = torch.bincount(table.document[taken], minlength=len(examples)) > 0
    if not shared.any():
        raise ValueError("no example's query shares a word with its document: an extractive writer cannot learn from them")
    if not shared.all():
        row = int((~shared).nonzero()[0])
        warnings.warn(f"the query of example {row} shares no word with its document: nothing is learned from it", UserWarning, stacklevel=2)
    mean, spread = table.features.mean(0), table.features.std(0, correction=0)
    spread = torch.where(spread > 1e-12, spread, 1.0)
    score = WordScore(*logistic_regression((table.features - mean) / spread, taken, c), mean, spread)
    return ExtractiveWriter(statistics, score, [max(len(found), 1) for found in asked], temperature=temperature)


def zero_shot_writer(statistics: Statistics, kind: Literal["uniform", "idf"] = "uniform", *, temperature: float = 0.7) -> ExtractiveWriter:
    """The same sampler without examples: all words alike, or rare ones first; ValueError for another kind."""
    if kind not in ("uniform", "idf"):
        raise ValueError(f"kind must be 'uniform' or 'idf', got {kind!r}")
    column = FEATURES.index("idf")
    score: Score = (lambda features: features[:, column]) if kind == "idf" else (lambda features: torch.zeros_like(features[:, 0]))
    return ExtractiveWriter(statistics, score, LENGTHS, temperature=temperature)
