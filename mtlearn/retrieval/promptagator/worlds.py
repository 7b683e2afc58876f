"""Where Promptagator is tried: the docstrings of scipy with those of other libraries as the other domain, and Cranfield's abstracts.

A world has documents, a pool of labelled pairs from which the few examples are drawn, and test queries. No query of the pool is in the test, so that
every arm, whatever it was shown, is measured on the same queries.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from mtlearn.datasets.cranfield import read_cranfield
from mtlearn.datasets.docstring_search import DocstringPair, docstring_pairs
from mtlearn.datasets.documentation import Page
from mtlearn.lab.ranking import ranking_measures
from mtlearn.lab.seeds import stream
from mtlearn.layers.tokens import words
from mtlearn.retrieval.promptagator.method import USABLE, Example
from mtlearn.retrieval.promptagator.writers import BREAK, SECTIONS, Statistics, WordTable

Intent = Literal["summary", "parameter"]
PARAMETERS = 60  # words of the section Parameters that are read
OTHERS = ("numpy", "sklearn", "networkx")  # the other domain
DEEP = 100  # ranks that are looked at for nDCG@10


@dataclass(frozen=True)
class World:
    """A retrieval task.

    Attributes:
        documents: n texts, their sections between form feeds.
        pool: labelled pairs of the task: examples are drawn from them.
        queries: of the test.
        relevance: (q, n) int8.
        other: labelled pairs of another domain.
    """

    documents: tuple[str, ...]
    pool: tuple[Example, ...]
    queries: tuple[str, ...]
    relevance: Tensor
    other: tuple[Example, ...]

    def to(self, device: torch.device) -> "World":
        """With its relevance on another device; texts stay where they are."""
        return World(self.documents, self.pool, self.queries, self.relevance.to(device), self.other)


def _first_words(text: str, most: int) -> str:
    found = list(re.finditer(r"\S+", text))
    return text if len(found) <= most else text[: found[most].start()]


def sectioned(page: Page) -> str:
    """A page as a document of six sections: extended summary, Parameters (its first words), Returns, Notes, Examples, the rest."""
    named = ("Extended Summary", "Parameters", "Returns", "Notes", "Examples")
    left_out = {*named, "See Also", "References"}
    own = set(words(page.name.rpartition(".")[2]))
    parts = [page.section(name) for name in named] + ["\n".join(text for name, text in page.sections if name not in left_out)]
    parts[1] = _first_words(parts[1], PARAMETERS)
    # the function's own name would give the page away: it stands in every example
    return BREAK.join(re.sub(r"[A-Za-z][A-Za-z0-9]+", lambda m: "" if m[0].lower() in own else m[0], part) for part in parts)


def parameter_sentence(page: Page) -> str:
    """What the docstring says of the first parameter, its first sentence; empty where there is none. Another intent than the summary."""
    lines = page.section("Parameters").splitlines()
    said: list[str] = []
    for line in lines[1:]:
        if not line.startswith(" "):
            break
        said.append(line.strip())
    return " ".join(said).partition(". ")[0]


def asked(pair: DocstringPair, intent: Intent) -> str:
    """The query of a page under an intent."""
    return pair.query if intent == "summary" else parameter_sentence(pair.page)


@cache
def _examples(libraries: tuple[str, ...]) -> tuple[Example, ...]:
    found = [Example(pair.query, sectioned(pair.page)) for pair in docstring_pairs(libraries)]
    return tuple(example for example in found if len(words(example.document)) >= USABLE)


def docstring_world(seed: int, *, documents: int, pool: int) -> World:
    """Search in the docstrings of scipy by their summary lines.

    Args:
        seed: of which documents, and of which of their queries are the pool.
        documents: at most so many.
        pool: labelled pairs; the queries of all other documents are the test.

    Raises:
        ValueError: a pool that leaves no test query.
    """
    every = _examples(("scipy",))
    chosen = torch.randperm(len(every), generator=stream(seed, "promptagator", "documents"))[:documents].tolist()
    if not 0 < pool < len(chosen):
        raise ValueError(f"pool must be between 1 and {len(chosen) - 1}, so that a test query is left, got {pool}")
    pairs = [every[i] for i in chosen]
    relevance = torch.eye(len(pairs), dtype=torch.int8)[pool:]
    return World(tuple(p.document for p in pairs), tuple(pairs[:pool]), tuple(p.query for p in pairs[pool:]), relevance, _examples(OTHERS))


def cranfield_world(seed: int, *, pool: int) -> World:
    """Search in Cranfield's abstracts: the pool has the judged pairs of some questions, the test the other questions, both drawn by the seed."""
    collection = read_cranfield()
    there = [i for i, document in enumerate(collection.documents) if len(words(document.text)) >= USABLE]
    row = {i: number for number, i in enumerate(there)}
    texts = tuple(_sections_of(f"{collection.documents[i].title} {collection.documents[i].text}") for i in there)
    order = torch.randperm(len(collection.queries), generator=stream(seed, "promptagator", "questions")).tolist()
    answers = {q: [row[i] for i in collection.relevant[q] if i in row] for q in order}
    pairs: list[Example] = []
    used = 0
    while len(pairs) < pool and used < len(order) - 1:
        pairs += [Example(collection.queries[order[used]], texts[i]) for i in answers[order[used]]]
        used += 1
    test = [q for q in order[used:] if answers[q]]
    relevance = torch.zeros(len(test), len(texts), dtype=torch.int8)
    for number, q in enumerate(test):
        relevance[number, answers[q]] = 1
    return World(texts, tuple(pairs[:pool]), tuple(collection.queries[q] for q in test), relevance, _examples(("scipy", *OTHERS)))


def _sections_of(text: str) -> str:
    found = text.split()
    size = -(-len(found) // SECTIONS) or 1
    return BREAK.join(" ".join(found[i : i + size]) for i in range(0, len(found), size))


@dataclass(frozen=True)
class Read:
    """What writers need of the documents, read once.

    Attributes:
        statistics: in how many documents each word is.
        table: the words of the documents.
    """

    statistics: Statistics
    table: WordTable

    @classmethod
    def of(cls, documents: Sequence[str]) -> "Read":
        """Read the documents."""
        statistics = Statistics.of(documents)
        return cls(statistics, WordTable.of(documents, statistics))


def ndcg(scores: Tensor, relevance: Tensor) -> float:
    """nDCG@10 of scores (q, n); where each query has one relevant document, from its best hundred and that one, which is the same and sooner."""
    if scores.shape[1] > DEEP and bool((relevance.sum(1) == 1).all()):
        columns = scores.topk(DEEP, 1).indices
        right = relevance.argmax(1, keepdim=True)
        missing = (columns == right).sum(1) == 0
        columns[missing, -1] = right[missing, 0]  # beyond rank 10 in any case
        columns = columns.sort(1).values
        scores, relevance = scores.gather(1, columns), relevance.gather(1, columns)
    return ranking_measures(scores.cpu(), relevance.cpu().int(), ("ndcg_cut_10",))["ndcg_cut_10"]
