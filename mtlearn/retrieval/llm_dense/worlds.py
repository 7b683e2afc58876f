"""Where the recipe is tried: docstrings of numpy and scipy to train on and to be searched, three other libraries that no fine-tuning has seen.

The query is a page's summary, the document the rest of it. The four test sets are the same for every seed, because the backbones were pretrained
without their summaries (their bodies were read, as web text was by the models of the paper).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from mtlearn.datasets.cranfield import read_cranfield
from mtlearn.datasets.docstring_search import DocstringPair, docstring_pairs
from mtlearn.datasets.documentation import documentation
from mtlearn.lab.seeds import stream
from mtlearn.layers.tokens import words

IN_DOMAIN = ("numpy", "scipy")
UNSEEN = ("networkx", "sklearn", "torch")
TEST = 400  # pages of a test set
TASKS = ("summary to body", "name to summary", "see also", "parameters to summary")
ENOUGH = 12  # words that a section needs to be a document of its own

Kind = Literal["parameters", "notes"]
KINDS: tuple[Kind, ...] = ("parameters", "notes")
Wording = Literal["seen", "unseen"]
# six wordings for training, as in Figure 5 of the paper; the unseen ones are longer, as there
INSTRUCTIONS: Mapping[Kind, Mapping[Wording, tuple[str, ...]]] = {
    "parameters": {
        "seen": (
            "find the parameters",
            "which arguments does it take",
            "list the inputs of this function",
            "retrieve its parameters and their types",
            "what can be passed to it",
            "show the arguments",
        ),
        "unseen": (
            "given this short summary retrieve the list of parameters that belongs to it",
            "i would like to read which arguments the function takes and what type each of them has",
            "look up all inputs that a caller can pass to the function described here",
        ),
    },
    "notes": {
        "seen": (
            "find the notes",
            "how does it work",
            "explain this function",
            "retrieve its description and notes",
            "what does it compute",
            "show the details",
        ),
        "unseen": (
            "given this short summary retrieve the notes that explain how the method works",
            "i would like to read a longer description of what is computed and how",
            "look up the details and the explanation of the function described here",
        ),
    },
}


@dataclass(frozen=True)
class Pages:
    """Which pages are for what.

    Attributes:
        train: of numpy and scipy.
        test: of numpy and scipy.
        unseen: test pages of each other library.
    """

    train: tuple[DocstringPair, ...]
    test: tuple[DocstringPair, ...]
    unseen: Mapping[str, tuple[DocstringPair, ...]]


@cache
def pages() -> Pages:
    """The split, the same for every seed."""
    every = docstring_pairs()

    def drawn(libraries: Sequence[str]) -> list[DocstringPair]:
        found = [pair for pair in every if pair.library in libraries]
        order = torch.randperm(len(found), generator=stream(0, "llm_dense", "split", *libraries)).tolist()
        return [found[i] for i in order]

    own = drawn(IN_DOMAIN)
    return Pages(tuple(own[TEST:]), tuple(own[:TEST]), {library: tuple(drawn((library,))[:TEST]) for library in UNSEEN})


@cache
def pretraining_texts() -> tuple[str, ...]:
    """Summary and body of every page of the five libraries; without the summary where it is a test query's."""
    split = pages()
    hidden = {tuple(words(pair.query)) for pair in (*split.test, *(pair for part in split.unseen.values() for pair in part))}
    found = []
    for page in documentation().pages:
        summary = "" if tuple(words(page.summary)) in hidden else page.summary
        text = f"{summary}\n{page.body()}".strip()
        if text:
            found.append(text)
    return tuple(found)


@dataclass(frozen=True)
class SearchTask:
    """Training pairs and a test of one kind of search.

    Attributes:
        name: of the task.
        train: queries and their documents.
        key: of each training document; equal keys are one document.
        queries, documents: of the test.
        relevance: bool (queries, documents).
        excluded: bool of that shape, documents that are no answer to a query: its own page.
        long_query: queries are as long as documents.
    """

    name: str
    train: tuple[tuple[str, str], ...]
    key: tuple[int, ...]
    queries: tuple[str, ...]
    documents: tuple[str, ...]
    relevance: Tensor
    excluded: Tensor | None = None
    long_query: bool = False


def _task(name: str, train: Sequence[tuple[str, str, str]], test: Sequence[tuple[str, str, str]], *, long_query: bool = False) -> SearchTask:
    """A task of (query, document, key): all test documents of one key are right for a query of that key."""
    number = {key: i for i, key in enumerate(dict.fromkeys(key for _, _, key in train))}
    keys = [key for _, _, key in test]
    relevance = torch.tensor([[one == other for other in keys] for one in keys])
    return SearchTask(
        name,
        tuple((query, document) for query, document, _ in train),
        tuple(number[key] for _, _, key in train),
        tuple(query for query, _, _ in test),
        tuple(document for _, document, _ in test),
        relevance,
        long_query=long_query,
    )


def search_task(train: Sequence[DocstringPair], test: Sequence[DocstringPair], name: str = TASKS[0]) -> SearchTask:
    """Find a page by its summary."""
    return _task(name, [(p.query, p.document, p.page.name) for p in train], [(p.query, p.document, p.page.name) for p in test])


def cranfield_task() -> SearchTask:
    """Questions on aerodynamics and the abstracts that answer them, without training pairs."""
    collection = read_cranfield()
    texts = tuple(f"{document.title} {document.text}".strip() for document in collection.documents)
    there = [i for i, text in enumerate(texts) if words(text)]
    row = {i: place for place, i in enumerate(there)}
    relevance = torch.zeros(len(collection.queries), len(there), dtype=torch.bool)
    for query, found in enumerate(collection.relevant):
        relevance[query, [row[i] for i in found if i in row]] = True
    return SearchTask("cranfield", (), (), collection.queries, tuple(texts[i] for i in there), relevance)


def unseen_task(library: str, test: int) -> SearchTask:
    """The test of a library that fine-tuning has not seen, or "cranfield"."""
    if library == "cranfield":
        return cranfield_task()
    if library not in UNSEEN:
        raise ValueError(f"library must be one of {', '.join(UNSEEN)} or cranfield, got {library!r}")
    return search_task((), pages().unseen[library][:test], library)


# ---------------------------------------------------------------------------------------------------------------------- four tasks


def tasks(train: Sequence[DocstringPair], test: Sequence[DocstringPair]) -> tuple[SearchTask, ...]:
    """Four tasks on the same pages: summary to body, name to summary, See Also, parameters to summary."""

    def named(pairs: Sequence[DocstringPair]) -> list[tuple[str, str, str]]:
        return [(pair.name, pair.query, pair.name) for pair in pairs if pair.name.strip()]

    def described(pairs: Sequence[DocstringPair]) -> list[tuple[str, str, str]]:
        found = [(pair.page.section("Parameters"), pair.query, pair.page.name) for pair in pairs]
        return [row for row in found if len(words(row[0])) >= ENOUGH]

    return (
        search_task(train, test),
        _task(TASKS[1], named(train), named(test)),
        see_also(train, test),
        _task(TASKS[3], described(train), described(test), long_query=True),
    )


def see_also(train: Sequence[DocstringPair], test: Sequence[DocstringPair]) -> SearchTask:
    """Summary of a page to the summaries of the pages that it names under See Also; training has no test page on either side."""
    known = {pair.page.name: pair for pair in train}
    links = [(pair.query, known[name].query, name) for pair in train for name in pair.page.links if name in known]
    number = {name: i for i, name in enumerate(known)}
    every = known | {pair.page.name: pair for pair in test}
    asked = [pair for pair in test if any(name in every for name in pair.page.links)]
    places = list(dict.fromkeys([pair.page.name for pair in test] + [name for pair in asked for name in pair.page.links if name in every]))
    column = {name: i for i, name in enumerate(places)}
    relevance = torch.zeros(len(asked), len(places), dtype=torch.bool)
    own = torch.zeros_like(relevance)
    for row, pair in enumerate(asked):
        relevance[row, [column[name] for name in pair.page.links if name in every]] = True
        own[row, column[pair.page.name]] = True
    return SearchTask(
        TASKS[2],
        tuple((query, document) for query, document, _ in links),
        tuple(number[name] for _, _, name in links),
        tuple(pair.query for pair in asked),
        tuple(every[name].query for name in places),
        relevance,
        own,
    )


# ------------------------------------------------------------------------------------------------------------------------ instructions


def kind_text(pair: DocstringPair, kind: Kind) -> str:
    """The document of a kind: the section Parameters, or extended summary and notes."""
    page = pair.page
    return page.section("Parameters") if kind == "parameters" else f"{page.section('Extended Summary')}\n{page.section('Notes')}".strip()


def with_both(pairs: Sequence[DocstringPair]) -> tuple[DocstringPair, ...]:
    """The pages that have enough words of both kinds."""
    return tuple(pair for pair in pairs if all(len(words(kind_text(pair, kind))) >= ENOUGH for kind in KINDS))


def instructed(kinds: Sequence[Kind], wording: Wording, generator: torch.Generator) -> tuple[str, ...]:
    """An instruction for each kind, drawn."""
    drawn = torch.rand(len(kinds), generator=generator).tolist()
    return tuple(INSTRUCTIONS[kind][wording][int(u * len(INSTRUCTIONS[kind][wording]))] for kind, u in zip(kinds, drawn, strict=True))
