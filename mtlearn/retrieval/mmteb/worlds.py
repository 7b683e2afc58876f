"""A small benchmark of all ten categories whose texts need no download: docstrings of five libraries, and names in twenty-one languages.

    tasks = benchmark(seed=0)                     # about sixty tasks; another seed draws other pages, pairs and examples
    collection, copies = near_copies(tasks, seed=0)    # thirty samples of one task and eight others: a collection with much too much of one thing
    task = scipy_retrieval(seed=0, queries=150, documents=1000)    # one task on a whole corpus, for pools of hard negatives
    judged = real_tasks()                         # Cranfield, SICK, STS and MSR, where their files are

Documents are sections of docstrings (:mod:`mtlearn.datasets.documentation`), English by nature; the multilingual tasks are on the names of
territories, languages and currencies (:mod:`mtlearn.datasets.locales`). No person has judged a pair: what counts as right comes from the pages
themselves, from their See Also links, from modules and from names, and each task says so.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from mtlearn.datasets import locales
from mtlearn.datasets.bm25 import BM25
from mtlearn.datasets.cranfield import read_cranfield
from mtlearn.datasets.docstring_search import DocstringPair, docstring_pairs
from mtlearn.datasets.documentation import LIBRARIES, Page
from mtlearn.datasets.sentence_pairs import read_pairs
from mtlearn.lab.seeds import stream
from mtlearn.layers.tokens import words
from mtlearn.retrieval.mmteb.tasks import (
    STS,
    BitextMining,
    Classification,
    Clustering,
    InstructionReranking,
    MultilabelClassification,
    PairClassification,
    Reranking,
    Retrieval,
    Summarization,
    Task,
)

CUT = 800  # letters of a section
LONG = 250  # words from which a page is long
TWINS = ("numpy", "torch")  # libraries that name many functions alike
FOREIGN = ("deu", "fra", "spa", "nld", "pol", "fin", "tur", "ind", "swa", "vie")
# what a parameter's description opens with, by kind
KINDS = {
    "array": r"array|ndarray|tensor|matrix",
    "integer": r"\bint\b",
    "real number": r"\bfloat\b|scalar|number",
    "truth value": r"\bbool",
    "string": r"\bstr\b|string|\{'",
    "function": r"callable|function",
    "graph": r"graph",
}

Draw = torch.Generator


@dataclass(frozen=True)
class Sizes:
    """How large the tasks are.

    Attributes:
        pages: of a retrieval or clustering task, at most.
        test: test texts of a classification, queries that are reranked, pairs of each kind.
        names: of a bitext task, at most.
    """

    pages: int = 160
    test: int = 80
    names: int = 100


def benchmark(seed: int = 0, sizes: Sizes | None = None) -> tuple[Task, ...]:
    """The tasks, by category."""
    sizes = sizes or Sizes()
    return (
        *_retrieval(seed, sizes),
        *_reranking(seed, sizes),
        *_instructions(seed, sizes),
        *_classification(seed, sizes),
        *_multilabel(seed, sizes),
        *_clustering(seed, sizes),
        *_pairs(seed, sizes),
        *_alike(seed, sizes),
        *_summaries(seed, sizes),
        *_bitext(seed, sizes),
    )


def groups_of(tasks: Sequence[Task]) -> list[set[tuple[str, str]]]:
    """What must stay represented when tasks are dropped: (category, language) for each language of a task."""
    return [{(task.category, language) for language in task.languages} for task in tasks]


# fields of pages


def _cut(text: str) -> str:
    return " ".join(text.split())[:CUT]


def _name(pair: DocstringPair) -> str:
    return pair.name


def _summary(pair: DocstringPair) -> str:
    return pair.query


def _body(pair: DocstringPair) -> str:
    return _cut(pair.document)


def _section(heading: str) -> Callable[[DocstringPair], str]:
    return lambda pair: _cut(pair.page.section(heading))


FIELDS: dict[str, Callable[[DocstringPair], str]] = {
    "name": _name,
    "summary": _summary,
    "body": _body,
    **{heading.lower(): _section(heading) for heading in ("Parameters", "Returns", "Notes", "Examples")},
}


def _drawn(library: str, count: int, draw: Draw, *fields: str) -> list[DocstringPair]:
    """Random pages of a library whose fields all have a word, and no two of which have one of them alike."""
    pairs = docstring_pairs((library,))
    found: list[DocstringPair] = []
    seen: set[tuple[str, str]] = set()
    for i in torch.randperm(len(pairs), generator=draw).tolist():
        texts = [(field, FIELDS[field](pairs[i])) for field in fields]
        if all(words(text) for _, text in texts) and not seen & set(texts):
            found.append(pairs[i])
            seen |= set(texts)
        if len(found) == count:
            break
    return found


# one category after the other


def _retrieval(seed: int, sizes: Sizes) -> list[Task]:
    plan = [(library, asked, answer) for library in ("numpy", "scipy", "networkx", "sklearn") for asked, answer in (
        ("summary", "parameters"), ("name", "summary"), ("notes", "parameters"), ("returns", "examples"),
    )] + [(library, "summary", "body") for library in LIBRARIES] + [("torch", "examples", "summary")]  # fmt: skip
    tasks: list[Task] = [
        find(
            f"{library}: {answer} by {asked}",
            _drawn(library, sizes.pages, stream(seed, "mmteb", library, asked, answer), asked, answer),
            asked,
            answer,
        )
        for library, asked, answer in plan
    ]
    draw = stream(seed, "mmteb", "long")
    long = [pair for library in LIBRARIES for pair in docstring_pairs((library,)) if len(words(pair.document)) >= LONG]
    chosen = [long[i] for i in torch.randperm(len(long), generator=draw)[: sizes.pages].tolist()]
    tasks.append(
        Retrieval(
            name="long pages by summary",
            about="Which of the long pages of all libraries has this summary? Whole pages, of 250 words and more.",
            queries=tuple(pair.query for pair in chosen),
            documents=tuple(" ".join(pair.document.split()) for pair in chosen),
            relevant=tuple((i,) for i in range(len(chosen))),
        )
    )
    return tasks


def find(name: str, pairs: Sequence[DocstringPair], asked: str, answer: str) -> Retrieval:
    """Retrieval between two fields of pages: page i answers query i."""
    return Retrieval(
        name=name,
        about=f"Which page's {answer} belong to this {asked}?",
        queries=tuple(FIELDS[asked](pair) for pair in pairs),
        documents=tuple(FIELDS[answer](pair) for pair in pairs),
        relevant=tuple((i,) for i in range(len(pairs))),
    )


def _reranking(seed: int, sizes: Sizes, count: int = 20) -> list[Task]:
    tasks: list[Task] = []
    for library in ("scipy", "networkx", "torch"):
        draw = stream(seed, "mmteb", library, "reranking")
        pairs = _drawn(library, 3 * sizes.pages, draw, "summary", "body")
        asked = list(range(min(sizes.test, len(pairs))))
        scores = BM25([_body(pair) for pair in pairs]).scores([pairs[i].query for i in asked])
        scores[asked, asked] = float("inf")  # the right one is always among them
        candidates = scores.topk(min(count, len(pairs)), 1).indices
        order = torch.rand(candidates.shape, generator=draw).argsort(1)
        tasks.append(
            Reranking(
                name=f"{library}: twenty of BM25",
                about="Which of twenty pages, found by BM25, has this summary?",
                queries=tuple(pairs[i].query for i in asked),
                documents=tuple(_body(pair) for pair in pairs),
                candidates=tuple(map(tuple, candidates.gather(1, order).tolist())),
                relevant=tuple((i,) for i in asked),
            )
        )
    return tasks


@cache
def _twins() -> tuple[tuple[DocstringPair, DocstringPair], ...]:
    """Pages of one function in both libraries, by its name."""
    first, second = (
        {pair.page.name.rpartition(".")[2]: pair for pair in docstring_pairs((library,), query=(2, 40), document=10)} for library in TWINS
    )
    return tuple((first[name], second[name]) for name in sorted(first.keys() & second.keys()))


def _instructions(seed: int, sizes: Sizes) -> list[Task]:
    twins = _twins()
    chosen = [twins[i] for i in torch.randperm(len(twins), generator=stream(seed, "mmteb", "instructions"))[: sizes.test].tolist()]
    documents = tuple(f"{side.page.name} {side.query} {_body(side)}" for pair in chosen for side in pair)
    told = "find the function of {}: {}"
    tasks: list[Task] = []
    for lost, kept in ((0, 1), (1, 0)):
        tasks.append(
            InstructionReranking(
                name=f"of {TWINS[lost]}, then of {TWINS[kept]}",
                about=f"Asked for a function of {TWINS[kept]} instead of {TWINS[lost]}: does the page of {TWINS[lost]} fall?",
                queries=tuple((told.format(TWINS[lost], pair[0].name), told.format(TWINS[kept], pair[0].name)) for pair in chosen),
                documents=documents,
                lost=tuple((2 * i + lost,) for i in range(len(chosen))),
            )
        )
    return tasks


def _labelled(name: str, about: str, rows: list[tuple[str, str]], most: int, test: int, draw: Draw, **also: object) -> Classification:
    """A classification among the ``most`` labels with the most texts, half of the texts of each for training."""
    common = _most_common([label for _, label in rows], most)
    rows = [rows[i] for i in torch.randperm(len(rows), generator=draw).tolist() if rows[i][1] in common]
    seen: Counter[str] = Counter()
    parts: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
    for row in rows:
        parts[seen[row[1]] % 2].append(row)
        seen[row[1]] += 1
    train, asked = parts[0], parts[1][:test]
    return Classification(
        name=name,
        about=about,
        train=tuple(text for text, _ in train),
        train_labels=tuple(label for _, label in train),
        test=tuple(text for text, _ in asked),
        test_labels=tuple(label for _, label in asked),
        **also,  # type: ignore[arg-type]
    )


def _most_common(labels: Sequence[str], most: int) -> list[str]:
    """The ``most`` most frequent labels, ties in the order of the alphabet."""
    count = Counter(labels)
    return sorted(count, key=lambda label: (-count[label], label))[:most]


def _classification(seed: int, sizes: Sizes) -> list[Task]:
    tasks: list[Task] = []
    for library in ("scipy", "sklearn", "torch"):
        for field in ("summary", "parameters"):
            pairs = _drawn(library, 600, stream(seed, "mmteb", library, field, "module"), field)
            rows = [(FIELDS[field](pair), pair.page.topic) for pair in pairs]
            draw = stream(seed, "mmteb", library, field, "halves")
            tasks.append(_labelled(f"{library}: module by {field}", f"Which of six modules has these {field}?", rows, 6, sizes.test, draw))
    every = [pair for library in LIBRARIES for pair in _drawn(library, sizes.pages, stream(seed, "mmteb", library, "library"), "summary")]
    draw = stream(seed, "mmteb", "library", "halves")
    tasks.append(
        _labelled("library by summary", "Which of five libraries is it from?", [(pair.query, pair.library) for pair in every], 5, sizes.test, draw)
    )
    kinds = [(pair.query, pair.page.kind) for pair in _drawn("sklearn", 400, stream(seed, "mmteb", "kind"), "summary")]
    tasks.append(
        _labelled("sklearn: class or function", "Is it a class or a function?", kinds, 2, sizes.test, stream(seed, "mmteb", "kind", "halves"))
    )
    for kind in ("currencies", "languages"):  # territories are called nearly alike in all of them
        draw = stream(seed, "mmteb", kind, "language")
        codes = locales.shared(("eng", *FOREIGN), kind)
        rows = [(locales.names(language, kind)[code], language) for language in ("eng", *FOREIGN) for code in codes]
        rows = [rows[i] for i in torch.randperm(len(rows), generator=draw)[: 22 * sizes.test].tolist() if words(rows[i][0])]
        also = {"languages": ("eng", *FOREIGN), "domain": f"names of {kind}", "licence": locales.LICENCE, "source": "Unicode CLDR, by Babel"}
        about = f"In which of eleven languages is this name of {kind}?"
        tasks.append(_labelled(f"language of {kind}", about, rows, 11, 2 * sizes.test, draw, shots=16, **also))
    return tasks


def kinds_of(page: Page) -> tuple[str, ...]:
    """Kinds of a page's parameters, of :data:`KINDS`, by the line that names each parameter."""
    lines = [line for line in page.section("Parameters").splitlines() if line and not line[:1].isspace()]
    described = [line.partition(":")[2] if " : " in line else line.partition("(")[2].partition(")")[0] for line in lines]
    return tuple(kind for kind, pattern in KINDS.items() if any(re.search(pattern, text, re.IGNORECASE) for text in described))


def _multilabel(seed: int, sizes: Sizes) -> list[Task]:
    tasks: list[Task] = []
    for library in ("scipy", "networkx", "sklearn"):
        pairs = [pair for pair in _drawn(library, 500, stream(seed, "mmteb", library, "kinds"), "summary", "parameters") if kinds_of(pair.page)]
        test, train = pairs[: sizes.test], pairs[sizes.test : 4 * sizes.test]
        tasks.append(
            MultilabelClassification(
                name=f"{library}: kinds of parameters",
                about="Which kinds of parameters (array, integer, string ...) does a function with this summary take?",
                train=tuple(pair.query for pair in train),
                train_labels=tuple(kinds_of(pair.page) for pair in train),
                test=tuple(pair.query for pair in test),
                test_labels=tuple(kinds_of(pair.page) for pair in test),
            )
        )
    return tasks


def _clustering(seed: int, sizes: Sizes) -> list[Task]:
    tasks: list[Task] = []
    for library, field in (("scipy", "summary"), ("scipy", "body"), ("sklearn", "summary"), ("networkx", "body")):
        pairs = _drawn(library, 2 * sizes.pages, stream(seed, "mmteb", library, field, "clusters"), field)
        common = _most_common([pair.page.topic for pair in pairs], 8)
        kept = [pair for pair in pairs if pair.page.topic in common]
        tasks.append(
            Clustering(
                name=f"{library}: modules of {field}",
                about=f"Pages of one module shall be together, by their {field}.",
                items=tuple(FIELDS[field](pair) for pair in kept),
                levels=(tuple(pair.page.topic for pair in kept),),
                draws=3,
            )
        )
    every = library_pages(seed, sizes.pages)
    tasks.append(
        Clustering(
            name="libraries and modules",
            about="Pages of one library, and below it of one module, shall be together, by their summary: two levels.",
            items=tuple(pair.query for pair in every),
            levels=(tuple(pair.library for pair in every), tuple(pair.page.topic for pair in every)),
            draws=3,
        )
    )
    draw = stream(seed, "mmteb", "names", "clusters")
    languages = ("eng", "fra", "pol", "fin", "tur", "swa", "vie")
    codes = locales.shared(languages, "languages")
    rows = [(locales.names(language, "languages")[code], language) for language in languages for code in codes]
    rows = [rows[i] for i in torch.randperm(len(rows), generator=draw)[: 3 * sizes.pages].tolist() if words(rows[i][0])]
    tasks.append(
        Clustering(
            name="languages of names",
            about="Names in one of seven languages shall be together.",
            items=tuple(text for text, _ in rows),
            levels=(tuple(label for _, label in rows),),
            draws=3,
            languages=languages,
            domain="names of languages",
            licence=locales.LICENCE,
            source="Unicode CLDR, by Babel",
        )
    )
    return tasks


def library_pages(seed: int, count: int) -> list[DocstringPair]:
    """Up to ``count`` pages of each library, whose summaries differ."""
    return [pair for library in LIBRARIES for pair in _drawn(library, count, stream(seed, "mmteb", library, "libraries"), "summary")]


@cache
def _linked(library: str) -> tuple[tuple[DocstringPair, DocstringPair], ...]:
    """Pages of one library one of which names the other under See Also."""
    known = {pair.page.name: pair for pair in docstring_pairs((library,))}
    found = {tuple(sorted((name, link))) for name, pair in known.items() for link in pair.page.links if link in known}
    return tuple((known[one], known[other]) for one, other in sorted(found))


def _pairs(seed: int, sizes: Sizes) -> list[Task]:
    tasks: list[Task] = []
    for library, field in (("numpy", "summary"), ("scipy", "summary"), ("networkx", "summary"), ("scipy", "body")):
        draw = stream(seed, "mmteb", library, field, "pairs")
        linked, every = _linked(library), docstring_pairs((library,))
        right = [linked[i] for i in torch.randperm(len(linked), generator=draw)[: sizes.test].tolist()]
        known = {frozenset((one.page.name, other.page.name)) for one, other in linked}
        wrong: list[tuple[DocstringPair, DocstringPair]] = []
        while len(wrong) < 3 * len(right):
            one, other = (every[i] for i in torch.randint(len(every), (2,), generator=draw).tolist())
            if one is not other and frozenset((one.page.name, other.page.name)) not in known:
                wrong.append((one, other))
        tasks.append(
            PairClassification(
                name=f"{library}: See Also by {field}",
                about="Does one page name the other under See Also? Three pairs in four do not.",
                first=tuple(FIELDS[field](one) for one, _ in right + wrong),
                second=tuple(FIELDS[field](other) for _, other in right + wrong),
                together=(True,) * len(right) + (False,) * len(wrong),
            )
        )
    return tasks


def _alike(seed: int, sizes: Sizes) -> list[Task]:
    tasks: list[Task] = []
    for field in ("summary", "body"):
        draw = stream(seed, "mmteb", field, "alike")
        twins = _twins()
        linked = [pair for library in LIBRARIES for pair in _linked(library)]
        every = [pair for library in LIBRARIES for pair in docstring_pairs((library,))]
        by_topic: dict[str, list[DocstringPair]] = {}
        for pair in every:
            by_topic.setdefault(pair.page.topic, []).append(pair)
        wide = [group for group in by_topic.values() if len(group) >= 5]

        def sample(rows: Sequence[tuple[DocstringPair, DocstringPair]], draw: Draw = draw) -> list[tuple[DocstringPair, DocstringPair]]:
            return [rows[i] for i in torch.randperm(len(rows), generator=draw)[: sizes.test].tolist()]

        near = [tuple(group[i] for i in torch.randperm(len(group), generator=draw)[:2].tolist()) for group in wide for _ in range(4)]
        far = [tuple(every[i] for i in torch.randperm(len(every), generator=draw)[:2].tolist()) for _ in range(2 * sizes.test)]
        far = [pair for pair in far if pair[0].library != pair[1].library][: sizes.test]
        rows = [(pair, 3.0) for pair in sample(twins)] + [(pair, 2.0) for pair in sample(linked)]
        rows += [(pair, 1.0) for pair in sample(near)] + [(pair, 0.0) for pair in far]
        tasks.append(
            STS(
                name=f"relation of two pages by {field}",
                about="3: one function in two libraries; 2: linked by See Also; 1: of one module; 0: of different libraries.",
                first=tuple(FIELDS[field](pair[0]) for pair, _ in rows),
                second=tuple(FIELDS[field](pair[1]) for pair, _ in rows),
                alike=tuple(value for _, value in rows),
            )
        )
    return tasks


def _summaries(seed: int, sizes: Sizes) -> list[Task]:
    tasks: list[Task] = []
    for library in ("scipy", "networkx"):
        draw = stream(seed, "mmteb", library, "summaries")
        linked = _linked(library)
        chosen = [linked[i] for i in torch.randperm(len(linked), generator=draw)[: sizes.test].tolist()]
        every = docstring_pairs((library,))
        good, others = [], []
        for pair, other in chosen:
            kept = pair.query.split()
            half = torch.rand(len(kept), generator=draw).argsort()[: (len(kept) + 1) // 2].sort().values.tolist()
            quarter = half[: (len(half) + 1) // 2]
            stranger = every[int(torch.randint(len(every), (1,), generator=draw))]
            good.append(_body(pair))
            row = (pair.query, " ".join(kept[i] for i in half), other.query, " ".join(kept[i] for i in quarter), stranger.query)
            others.append(tuple(text if words(text) else pair.name for text in row))
        tasks.append(
            Summarization(
                name=f"{library}: summaries of a page",
                about="Its own summary (4), half of its words (3), a linked page's (2), a quarter of its words (1), any page's (0), beside the page.",
                good=tuple(good),
                others=tuple(others),
                grades=((4.0, 3.0, 2.0, 1.0, 0.0),) * len(good),
            )
        )
    return tasks


def _bitext(seed: int, sizes: Sizes) -> list[Task]:
    tasks: list[Task] = []
    for language in FOREIGN:
        for kind in ("territories", "languages") if language in ("deu", "spa", "fin", "swa") else ("territories",):
            both = ("eng", language)
            codes = [code for code in locales.shared(both, kind) if all(words(locales.names(side, kind)[code]) for side in both)]
            chosen = [codes[i] for i in torch.randperm(len(codes), generator=stream(seed, "mmteb", language, kind))[: sizes.names].tolist()]
            first, second = (tuple(locales.names(side, kind)[code] for code in chosen) for side in both)
            tasks.append(
                BitextMining(
                    name=f"eng-{language}: {kind}",
                    about=f"The same name of {kind} in the other language.",
                    first=first,
                    second=second,
                    languages=both,
                    domain=f"names of {kind}",
                    licence=locales.LICENCE,
                    source="Unicode CLDR, by Babel",
                )
            )
    twins = _twins()
    chosen_twins = [twins[i] for i in torch.randperm(len(twins), generator=stream(seed, "mmteb", "twins"))[: sizes.names].tolist()]
    tasks.append(
        BitextMining(
            name=f"{TWINS[0]} to {TWINS[1]}: one function",
            about="The same function's page in the other library, without its name: two dialects of one language.",
            first=tuple(_body(one) for one, _ in chosen_twins),
            second=tuple(_body(other) for _, other in chosen_twins),
        )
    )
    return tasks


# published collections


def real_tasks() -> tuple[Task, ...]:
    """Four tasks that people have judged: Cranfield's questions, the likeness of sentences of SICK and STS, and the paraphrases of MSR (test parts).

    Raises:
        MissingFileError: a file is not here and cannot be downloaded; `mtlearn data fetch cranfield sts` gets them.
    """
    collection = read_cranfield()
    texts = [f"{document.title} {document.text}".strip() for document in collection.documents]
    number = {old: new for new, old in enumerate(i for i, text in enumerate(texts) if text)}
    relevant = [tuple(number[j] for j in row if j in number) for row in collection.relevant]
    asked = [i for i, row in enumerate(relevant) if row]
    found: list[Task] = [
        Retrieval(
            name="Cranfield",
            about="Which of 1,400 abstracts on aerodynamics answer this question?",
            queries=tuple(collection.queries[i] for i in asked),
            documents=tuple(texts[i] for i in number),
            relevant=tuple(relevant[i] for i in asked),
            domain="aerodynamics",
            licence="see `mtlearn data list`",
            source="Cranfield",
        )
    ]
    for source, name in (("sick", "SICK"), ("sts", "STS 2015"), ("msr", "MSR paraphrases")):
        pairs = read_pairs(source, "test")  # type: ignore[arg-type]
        first, second = tuple(pair.first for pair in pairs), tuple(pair.second for pair in pairs)
        also = {"name": name, "domain": "sentences", "licence": "see `mtlearn data list`", "source": name, "first": first, "second": second}
        if source == "msr":
            together = tuple(pair.score > 0.5 for pair in pairs)
            found.append(PairClassification(about="Do both sentences say the same?", together=together, **also))  # type: ignore[arg-type]
        else:
            found.append(STS(about="How alike do two sentences mean?", alike=tuple(pair.score for pair in pairs), **also))  # type: ignore[arg-type]
    return tuple(found)


# collections for single questions


def near_copies(tasks: Sequence[Task], seed: int, sizes: Sizes | None = None, *, copies: int = 30) -> tuple[tuple[Task, ...], int]:
    """A collection with ``copies`` samples of one task before the first of ``tasks`` of eight other categories; and the number of copies."""
    sizes = sizes or Sizes()
    same: list[Task] = [
        find(f"copy {i + 1}", _drawn("scipy", sizes.pages, stream(seed, "mmteb", "copy", i), "summary", "parameters"), "summary", "parameters")
        for i in range(copies)
    ]
    others: dict[str, Task] = {}
    for task in tasks:
        if task.category != "Retrieval" and len(others) < 8:
            others.setdefault(task.category, task)
    return (*same, *others.values()), copies


def scipy_retrieval(seed: int, queries: int, documents: int) -> Retrieval:
    """The parameters of a function of scipy by its summary, a few queries among many documents."""
    pairs = _drawn("scipy", documents, stream(seed, "mmteb", "pool"), "summary", "parameters")
    whole = find("scipy: parameters by summary, whole", pairs, "summary", "parameters")
    count = min(queries, len(pairs))
    return Retrieval(name=whole.name, about=whole.about, queries=whole.queries[:count], documents=whole.documents, relevant=whole.relevant[:count])
