"""Tasks for text embeddings: the ten categories of MMTEB, each a class with checked metadata and one main score between -1 and 1.

    task = Retrieval("scipy", "find a function's parameters", queries=..., documents=..., relevant=..., languages=("eng",), domain="documentation")
    task.score(encode)                                  # nDCG@10
    evaluate(encode, tasks, done=known, on_score=save)  # many; those in ``done`` are not run again

Any function of texts is an encoder (:mod:`mtlearn.layers.embedding`). :class:`Cached` embeds each text once for all tasks.

====================  ==========================================================================================  =====================
category              what is asked                                                                               main score
====================  ==========================================================================================  =====================
BitextMining          the same thing in another language, among all                                               F1 (weighted)
Classification        a label from few examples each, by logistic regression                                      accuracy
MultilabelClass.      several labels, by the five nearest                                                         F1 (macro)
Clustering            labels found without labels, by k-means                                                     V-measure
PairClassification    whether two texts belong together                                                           average precision
STS                   how alike two texts are                                                                     Spearman correlation
Retrieval             the relevant documents among all                                                            nDCG@10
Reranking             the relevant documents among the few that another retriever found                           MAP
InstructionReranking  the same query with another instruction: what is no longer relevant must fall               p-MRR
Summarization         which of several summaries of a text is better                                              Spearman correlation
====================  ==========================================================================================  =====================

The scores are those of the library mteb but for multi-label tasks, where its main score is the share of wholly right label sets.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn import functional as F

from mtlearn.lab.ranking import ranking_measures
from mtlearn.layers.embedding import Encode, EncoderError, embed
from mtlearn.retrieval.mmteb.method import bootstrap_v_measure, spearman

_LANGUAGE = re.compile(r"[a-z]{3}")


class Cached:
    """An encoder that embeds each different text once.

    Args:
        encode: any encoder.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._known: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """Texts embedded so far."""
        return len(self._known)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(n, d) float32; errors as for :func:`~mtlearn.layers.embedding.embed`."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, embed(self._encode, new).float(), strict=True))
        return torch.stack([self._known[text] for text in texts])


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What all tasks have.

    Attributes:
        name: different for each task of a benchmark.
        about: one sentence: what is asked.
        languages: codes of ISO 639-3 ("eng").
        domain: of the texts ("documentation").
        licence: of the texts.
        source: where the texts are from.

    Raises:
        ValueError: an empty name or sentence, no language or one that is no such code, no domain, licence or source.
    """

    category: ClassVar[str] = ""
    measure: ClassVar[str] = ""

    name: str
    about: str
    languages: tuple[str, ...] = ("eng",)
    domain: str = "documentation"
    licence: str = "BSD-3-Clause"
    source: str = "docstrings of the installed packages"

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("a task needs a name")
        for what in ("about", "domain", "licence", "source"):
            if not getattr(self, what).strip():
                raise ValueError(f"task {self.name!r}: `{what}` is empty; every task says what it is and where it is from")
        if not self.languages or any(not _LANGUAGE.fullmatch(code) for code in self.languages):
            raise ValueError(f"task {self.name!r}: languages must be codes of three letters such as 'eng', got {self.languages!r}")
        self._check()

    @abstractmethod
    def _check(self) -> None:
        """Raise ValueError where the task's own data do not fit together."""

    @abstractmethod
    def texts(self) -> tuple[str, ...]:
        """Every text that an encoder must read, each once."""

    @abstractmethod
    def score(self, encode: Encode) -> float:
        """The main score. EncoderError where the encoder does not give a vector a text."""

    def _wrong(self, why: str) -> ValueError:
        return ValueError(f"task {self.name!r}: {why}")


@dataclass(frozen=True, kw_only=True)
class BitextMining(Task):
    """Row i of ``first`` and row i of ``second`` say the same; each of the first has to be found among all of the second."""

    category: ClassVar[str] = "BitextMining"
    measure: ClassVar[str] = "F1"
    first: tuple[str, ...]
    second: tuple[str, ...]

    def _check(self) -> None:
        if len(self.first) != len(self.second) or len(self.first) < 2:
            raise self._wrong(f"as many texts in both languages are needed, at least 2, got {len(self.first)} and {len(self.second)}")

    def texts(self) -> tuple[str, ...]:
        """Both sides."""
        return tuple(dict.fromkeys((*self.first, *self.second)))

    def score(self, encode: Encode) -> float:
        """Weighted F1 of the nearest by cosine."""
        found = (_unit(encode, self.first) @ _unit(encode, self.second).T).argmax(1)
        return float(f1_score(np.arange(len(found)), found.numpy(), average="weighted", zero_division=0.0))


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """One label of each text, learned from ``shots`` examples a label, ``draws`` times."""

    category: ClassVar[str] = "Classification"
    measure: ClassVar[str] = "accuracy"
    train: tuple[str, ...]
    train_labels: tuple[str, ...]
    test: tuple[str, ...]
    test_labels: tuple[str, ...]
    shots: int = 8
    draws: int = 3

    def _check(self) -> None:
        if len(self.train) != len(self.train_labels) or len(self.test) != len(self.test_labels):
            raise self._wrong("every text needs a label")
        if len(set(self.train_labels)) < 2 or not set(self.test_labels) <= set(self.train_labels):
            raise self._wrong(f"at least two labels are needed, and all test labels among those of training, got {sorted(set(self.train_labels))}")
        if self.shots < 1 or self.draws < 1 or not self.test:
            raise self._wrong(f"shots, draws and test texts must be at least 1, got {self.shots}, {self.draws} and {len(self.test)}")

    def texts(self) -> tuple[str, ...]:
        """Training and test texts."""
        return tuple(dict.fromkeys((*self.train, *self.test)))

    def score(self, encode: Encode) -> float:
        """Mean accuracy of logistic regression on vectors of length 1."""
        train, test = _unit(encode, self.train).numpy(), _unit(encode, self.test).numpy()
        labels, truth, right = np.array(self.train_labels), np.array(self.test_labels), []
        for draw in range(self.draws):
            order = np.random.default_rng(draw).permutation(len(labels))
            chosen = np.concatenate([order[labels[order] == label][: self.shots] for label in np.unique(labels)])
            model = LogisticRegression(C=10.0, max_iter=300).fit(train[chosen], labels[chosen])
            right.append(float((model.predict(test) == truth).mean()))
        return sum(right) / len(right)


@dataclass(frozen=True, kw_only=True)
class MultilabelClassification(Task):
    """Several labels of each text, by the five nearest training texts."""

    category: ClassVar[str] = "MultilabelClassification"
    measure: ClassVar[str] = "F1, mean over labels"
    train: tuple[str, ...]
    train_labels: tuple[tuple[str, ...], ...]
    test: tuple[str, ...]
    test_labels: tuple[tuple[str, ...], ...]
    neighbours: int = 5

    def _check(self) -> None:
        if len(self.train) != len(self.train_labels) or len(self.test) != len(self.test_labels) or not self.test:
            raise self._wrong("every text needs its labels (they may be none), and there must be test texts")
        if len(self.labels) < 2 or len(self.train) < self.neighbours:
            raise self._wrong(f"at least two labels and {self.neighbours} training texts are needed, got {len(self.labels)} and {len(self.train)}")

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels of training, in the order of the alphabet."""
        return tuple(sorted({label for row in self.train_labels for label in row}))

    def texts(self) -> tuple[str, ...]:
        """Training and test texts."""
        return tuple(dict.fromkeys((*self.train, *self.test)))

    def score(self, encode: Encode) -> float:
        """Macro F1."""

        def table(rows: tuple[tuple[str, ...], ...]) -> np.ndarray:
            return np.array([[label in row for label in self.labels] for row in rows], dtype=int)

        nearest = KNeighborsClassifier(self.neighbours).fit(_unit(encode, self.train).numpy(), table(self.train_labels))
        found = nearest.predict(_unit(encode, self.test).numpy())
        return float(f1_score(table(self.test_labels), found, average="macro", zero_division=0.0))


@dataclass(frozen=True, kw_only=True)
class Clustering(Task):
    """Labels to be found as clusters; with levels of labels the mean over levels.

    Attributes:
        items: texts.
        levels: a tuple of labels a level.
        fraction, draws: see :func:`~mtlearn.retrieval.mmteb.method.bootstrap_v_measure`.
    """

    category: ClassVar[str] = "Clustering"
    measure: ClassVar[str] = "V-measure"
    items: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    fraction: float = 1.0
    draws: int = 10

    def _check(self) -> None:
        if not self.levels or any(len(level) != len(self.items) or len(set(level)) < 2 for level in self.levels):
            raise self._wrong("every level must give each text a label, and at least two different ones")
        if not 0 < self.fraction <= 1:
            raise self._wrong(f"fraction must be above 0 and at most 1, got {self.fraction}")

    def texts(self) -> tuple[str, ...]:
        """All items, of which only a fraction need be read."""
        return tuple(dict.fromkeys(self.items))

    def score(self, encode: Encode) -> float:
        """Mean V-measure over draws and levels; only the sampled items are embedded."""

        def chosen(rows: list[int]) -> Tensor:
            return _unit(encode, [self.items[i] for i in rows])

        empty = torch.zeros(0, 1)
        found = [bootstrap_v_measure(empty, level, fraction=self.fraction, draws=self.draws, embed=chosen) for level in self.levels]
        return float(torch.stack(found).mean())


@dataclass(frozen=True, kw_only=True)
class PairClassification(Task):
    """Whether two texts belong together, by a threshold on their cosine: average precision over all thresholds."""

    category: ClassVar[str] = "PairClassification"
    measure: ClassVar[str] = "average precision"
    first: tuple[str, ...]
    second: tuple[str, ...]
    together: tuple[bool, ...]

    def _check(self) -> None:
        if not len(self.first) == len(self.second) == len(self.together) or len(set(self.together)) < 2:
            raise self._wrong("pairs of both kinds are needed, each with its answer")

    def texts(self) -> tuple[str, ...]:
        """Both sides."""
        return tuple(dict.fromkeys((*self.first, *self.second)))

    def score(self, encode: Encode) -> float:
        """Average precision of the cosines."""
        return float(average_precision_score(np.array(self.together), _cosines(encode, self.first, self.second).numpy()))


@dataclass(frozen=True, kw_only=True)
class STS(Task):
    """How alike two texts are, as a number."""

    category: ClassVar[str] = "STS"
    measure: ClassVar[str] = "Spearman correlation"
    first: tuple[str, ...]
    second: tuple[str, ...]
    alike: tuple[float, ...]

    def _check(self) -> None:
        if not len(self.first) == len(self.second) == len(self.alike) or len(set(self.alike)) < 2:
            raise self._wrong("pairs of at least two degrees are needed, each with its number")

    def texts(self) -> tuple[str, ...]:
        """Both sides."""
        return tuple(dict.fromkeys((*self.first, *self.second)))

    def score(self, encode: Encode) -> float:
        """Spearman correlation of cosines and numbers; 0 where all cosines are equal."""
        return _correlation(_cosines(encode, self.first, self.second), torch.tensor(self.alike, dtype=torch.float64))


@dataclass(frozen=True, kw_only=True)
class Retrieval(Task):
    """The relevant documents of each query among all.

    Attributes:
        queries, documents: texts.
        relevant: of each query the numbers of its documents.
        pool: documents of each query that are ranked, (queries, documents) bool; all when omitted.
    """

    category: ClassVar[str] = "Retrieval"
    measure: ClassVar[str] = "nDCG@10"
    queries: tuple[str, ...]
    documents: tuple[str, ...]
    relevant: tuple[tuple[int, ...], ...]
    pool: Tensor | None = field(default=None, repr=False, compare=False)

    def _check(self) -> None:
        if len(self.queries) != len(self.relevant) or not self.queries or not self.documents:
            raise self._wrong(f"every query needs its documents, got {len(self.queries)} queries and {len(self.relevant)} answers")
        for i, row in enumerate(self.relevant):
            if not row or not all(0 <= j < len(self.documents) for j in row):
                raise self._wrong(f"query {i} needs a relevant document among 0 to {len(self.documents) - 1}, got {row}")

    def relevance(self) -> Tensor:
        """(queries, documents) int64."""
        found = torch.zeros(len(self.queries), len(self.documents), dtype=torch.int64)
        for i, row in enumerate(self.relevant):
            found[i, list(row)] = 1
        return found

    def texts(self) -> tuple[str, ...]:
        """Queries and documents."""
        return tuple(dict.fromkeys((*self.queries, *self.documents)))

    def ranking(self, encode: Encode) -> Tensor:
        """Cosines (queries, documents)."""
        return _unit(encode, self.queries) @ _unit(encode, self.documents).T

    def score(self, encode: Encode) -> float:
        """nDCG@10."""
        found = self.ranking(encode)
        if self.pool is not None:
            found = found.masked_fill(~self.pool, -2.0)  # below every cosine
        return ranking_measures(found, self.relevance(), ("ndcg_cut_10",))["ndcg_cut_10"]


@dataclass(frozen=True, kw_only=True)
class Reranking(Task):
    """The relevant ones among each query's few candidates, row i of (queries, candidates) numbers of documents."""

    category: ClassVar[str] = "Reranking"
    measure: ClassVar[str] = "MAP"
    queries: tuple[str, ...]
    documents: tuple[str, ...]
    candidates: tuple[tuple[int, ...], ...]
    relevant: tuple[tuple[int, ...], ...]

    def _check(self) -> None:
        if not len(self.queries) == len(self.candidates) == len(self.relevant) or not self.queries:
            raise self._wrong("every query needs its candidates and its relevant documents")
        for i, (row, right) in enumerate(zip(self.candidates, self.relevant, strict=True)):
            if len(set(row)) < 2 or len(set(row)) < len(row) or not set(right) & set(row) or not all(0 <= j < len(self.documents) for j in row):
                raise self._wrong(
                    f"query {i} needs at least two different candidates of the {len(self.documents)} documents, a relevant one among them"
                )

    def texts(self) -> tuple[str, ...]:
        """Queries and candidates."""
        asked = sorted({j for row in self.candidates for j in row})
        return tuple(dict.fromkeys((*self.queries, *(self.documents[j] for j in asked))))

    def score(self, encode: Encode) -> float:
        """Mean average precision."""
        used = sorted({j for row in self.candidates for j in row})
        place = {j: i for i, j in enumerate(used)}
        found = _unit(encode, self.queries) @ _unit(encode, [self.documents[j] for j in used]).T
        values = []
        for i, (row, right) in enumerate(zip(self.candidates, self.relevant, strict=True)):
            scores = found[i, [place[j] for j in row]]
            answer = torch.tensor([[int(j in right) for j in row]])
            values.append(ranking_measures(scores[None], answer, ("map",))["map"])
        return sum(values) / len(values)


@dataclass(frozen=True, kw_only=True)
class InstructionReranking(Task):
    """A query with two instructions: documents that are relevant under the first and no longer under the second must fall (FollowIR).

    Attributes:
        queries: before (first, second) instruction, a text each.
        documents: texts.
        lost: of each query the documents that the second instruction makes irrelevant.
    """

    category: ClassVar[str] = "InstructionReranking"
    measure: ClassVar[str] = "p-MRR"
    queries: tuple[tuple[str, str], ...]
    documents: tuple[str, ...]
    lost: tuple[tuple[int, ...], ...]

    def _check(self) -> None:
        if len(self.queries) != len(self.lost) or not self.queries:
            raise self._wrong("every query needs the documents that its second instruction makes irrelevant")
        for i, row in enumerate(self.lost):
            if not row or not all(0 <= j < len(self.documents) for j in row):
                raise self._wrong(f"query {i} needs a document among 0 to {len(self.documents) - 1} that is no longer relevant, got {row}")

    def texts(self) -> tuple[str, ...]:
        """Queries with both instructions, and documents."""
        return tuple(dict.fromkeys((*(text for pair in self.queries for text in pair), *self.documents)))

    def score(self, encode: Encode) -> float:
        """Mean p-MRR over queries: 0 where the instruction is not followed at all, above 0 where documents fall, below where they rise."""
        documents = _unit(encode, self.documents)
        places = [
            1 + (-(_unit(encode, [pair[side] for pair in self.queries]) @ documents.T)).argsort(dim=1, stable=True).argsort(dim=1).double()
            for side in (0, 1)
        ]
        values = []
        for i, row in enumerate(self.lost):
            before, after = places[0][i, list(row)], places[1][i, list(row)]
            values.append(float(p_mrr(before, after).mean()))
        return sum(values) / len(values)


def p_mrr(before: Tensor, after: Tensor) -> Tensor:
    """Change of a document's place, from -1 (it rises to the top) over 0 to 1 (it falls away): FollowIR (Weller et al. 2024), equation 1."""
    return torch.where(before > after, after / before - 1, 1 - before / after)


@dataclass(frozen=True, kw_only=True)
class Summarization(Task):
    """Which of several summaries is better, held against a good one: the mean over texts of the correlation of cosines and grades.

    Attributes:
        good: a summary of each text.
        others: several summaries of each.
        grades: of each, higher is better.
    """

    category: ClassVar[str] = "Summarization"
    measure: ClassVar[str] = "Spearman correlation"
    good: tuple[str, ...]
    others: tuple[tuple[str, ...], ...]
    grades: tuple[tuple[float, ...], ...]

    def _check(self) -> None:
        if not len(self.good) == len(self.others) == len(self.grades) or not self.good:
            raise self._wrong("every text needs its summaries and their grades")
        for i, (row, grade) in enumerate(zip(self.others, self.grades, strict=True)):
            if len(row) != len(grade) or len(set(grade)) < 2:
                raise self._wrong(f"text {i} needs a grade for each summary, of at least two degrees, got {grade}")

    def texts(self) -> tuple[str, ...]:
        """All summaries."""
        return tuple(dict.fromkeys((*self.good, *(text for row in self.others for text in row))))

    def score(self, encode: Encode) -> float:
        """Mean Spearman correlation; 0 for a text whose cosines are all equal."""
        flat = [text for row in self.others for text in row]
        asked = [text for text, row in zip(self.good, self.others, strict=True) for _ in row]
        found = torch.split(_cosines(encode, asked, flat), [len(row) for row in self.others])
        values = [_correlation(one, torch.tensor(grade, dtype=torch.float64)) for one, grade in zip(found, self.grades, strict=True)]
        return sum(values) / len(values)


CATEGORIES: Mapping[str, type[Task]] = {
    kind.category: kind
    for kind in (
        BitextMining, Classification, MultilabelClassification, Clustering, PairClassification, STS, Retrieval, Reranking, InstructionReranking,
        Summarization,
    )
}  # fmt: skip


def texts_of(tasks: Sequence[Task]) -> tuple[str, ...]:
    """Every text of some tasks, each once."""
    return tuple(dict.fromkeys(text for task in tasks for text in task.texts()))


def check_names(tasks: Sequence[Task]) -> None:
    """Raise ValueError where there is no task, or two have one name."""
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"tasks must have different names; {twice[0]!r} is there more than once")
    if not names:
        raise ValueError("there is no task")


def evaluate(
    encode: Encode,
    tasks: Sequence[Task],
    *,
    done: Mapping[str, float] | None = None,
    on_score: Callable[[str, float], Any] | None = None,
) -> dict[str, float]:
    """The main score of each task, in the order of the tasks.

    Args:
        encode: a list of texts to (n, d) numbers; one that is :class:`Cached` keeps what it reads for the next call.
        tasks: of different names.
        done: scores that are known already; those tasks are not run.
        on_score: called with name and score when a task is done, so that nothing is lost where a later one fails.

    Raises:
        ValueError: no tasks, or two of one name.
        EncoderError: the encoder gave something that is no vector a text; the message names the task and the text.
    """
    check_names(tasks)
    known, cached = dict(done or {}), encode if isinstance(encode, Cached) else Cached(encode)
    found: dict[str, float] = {}
    for task in tasks:
        if task.name not in known:
            try:
                known[task.name] = task.score(cached)
            except EncoderError as error:
                raise EncoderError(f"task {task.name!r}: {error}") from error
            if on_score is not None:
                on_score(task.name, known[task.name])
        found[task.name] = known[task.name]
    return found


def _unit(encode: Encode, texts: Sequence[str]) -> Tensor:
    return F.normalize(torch.as_tensor(encode(texts)).float(), dim=-1)


def _cosines(encode: Encode, first: Sequence[str], second: Sequence[str]) -> Tensor:
    return (_unit(encode, first) * _unit(encode, second)).sum(1).double()


def _correlation(one: Tensor, other: Tensor) -> float:
    return float(spearman(one, other).nan_to_num(0.0))
