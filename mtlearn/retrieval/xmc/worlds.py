"""Where many right answers are tried: parameter names, See Also links, made labels of two kinds, and random pairs to be learned by heart."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from mtlearn.datasets.documentation import Page, documentation
from mtlearn.datasets.functions import subtokens
from mtlearn.lab.seeds import stream
from mtlearn.layers.tokens import PADDING, Vocabulary, words

LIBRARIES = ("numpy", "scipy", "networkx", "sklearn")
VOCABULARY = 6000
QUERY_WORDS, LABEL_WORDS, LINK_WORDS = 48, 16, 24
TEST = 0.2  # of the queries
_NAMES = re.compile(r"^(\*{0,2}[A-Za-z_]\w*(?:\s*,\s*\*{0,2}[A-Za-z_]\w*)*)\s*(?::(.*))?$")


@dataclass(frozen=True)
class World:
    """Queries with several labels each.

    Attributes:
        queries: tokens (n, length).
        labels: tokens (L, length) of the labels' texts.
        targets: bool (n, L).
        train, test: numbers of queries.
        size: of the vocabulary.
        names: of the labels, for people.
    """

    queries: Tensor
    labels: Tensor
    targets: Tensor
    train: Tensor
    test: Tensor
    size: int
    names: tuple[str, ...] = ()

    def to(self, device: torch.device) -> "World":
        """On another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("queries", "labels", "targets", "train", "test")})


@dataclass(frozen=True)
class Texts:
    """Queries and labels as texts, and which belong together: pairs (m, 2) of query and label."""

    queries: tuple[str, ...]
    labels: tuple[str, ...]
    names: tuple[str, ...]
    pairs: Tensor


def parameter_names(page: Page) -> list[tuple[str, str]]:
    """The parameters that a page lists, in order: their names without stars, and the description that follows.

    ``a, b : array`` is two names. Lines that are indented belong to the description of the name above.
    """
    found: list[tuple[str, list[str]]] = []
    current: list[int] = []
    for heading in ("Parameters", "Other Parameters"):
        current = []
        for line in page.section(heading).splitlines():
            if line[:1].isspace() or not line.strip():
                for i in current:
                    found[i][1].append(line)
                continue
            match = _NAMES.match(line)
            current = []
            for name in re.split(r"\s*,\s*", match[1]) if match else ():
                current.append(len(found))
                found.append((name.lstrip("*"), []))
    return [(name, " ".join(" ".join(lines).split())) for name, lines in found]


@cache
def parameter_texts() -> Texts:
    """Which parameters does this function take? A label is a name that at least two functions have; its text is the name and a description."""
    pages, lists = [], []
    for page in documentation(LIBRARIES).pages:
        names = dict(parameter_names(page))
        if names and len(words(page.summary)) >= 1:
            pages.append(page)
            lists.append(names)
    counts: dict[str, int] = {}
    described: dict[str, str] = {}
    for names in lists:
        for name, text in names.items():
            counts[name] = counts.get(name, 0) + 1
            if words(text) and name not in described:
                described[name] = text
    kept = sorted(name for name, count in counts.items() if count >= 2 and (subtokens(name) or name in described))
    labels = {name: f"{' '.join(subtokens(name))} {described.get(name, '')}" for name in kept}
    kept = [name for name in kept if words(labels[name])]
    number = {name: i for i, name in enumerate(kept)}
    queries: list[str] = []
    pairs: list[tuple[int, int]] = []
    for page, names in zip(pages, lists, strict=True):
        mine = [number[name] for name in names if name in number]
        if mine:
            pairs += [(len(queries), label) for label in mine]
            before = page.section("Extended Summary")
            queries.append(f"{' '.join(subtokens(page.name.rpartition('.')[2]))} {page.summary} {before}")
    return Texts(tuple(queries), tuple(labels[name] for name in kept), tuple(kept), torch.tensor(pairs))


@cache
def link_texts() -> Texts:
    """Which functions stand in its See Also? The label's text is its docstring, so a label that no query names in training has words all the same."""
    corpus = documentation(LIBRARIES)
    linked = sorted({link for page in corpus.pages for link in page.links})
    number = {name: i for i, name in enumerate(linked)}
    labels = [_described(corpus.page(name)) for name in linked]
    pages = [page for page in corpus.pages if page.links]
    pairs = [(i, number[link]) for i, page in enumerate(pages) for link in page.links]
    return Texts(tuple(map(_described, pages)), tuple(labels), tuple(linked), torch.tensor(pairs))


def _described(page: Page) -> str:
    return f"{' '.join(subtokens(page.name.rpartition('.')[2]))} {page.summary} {page.body()}"


def text_world(texts: Texts, seed: int, *, label_words: int, most: int | None = None) -> World:
    """Texts as tokens, a fifth of the queries held out; words are counted in the training queries and the labels.

    Args:
        texts: queries, labels and pairs.
        seed: of the split.
        label_words: of a label that are read.
        most: queries at most; labels that none of them has stay.
    """
    test, train = _split(texts, seed, most)
    known = _vocabulary(texts, train)
    targets = torch.zeros(len(texts.queries), len(texts.labels), dtype=torch.bool)
    targets[texts.pairs[:, 0], texts.pairs[:, 1]] = True
    queries = known(texts.queries, QUERY_WORDS, truncate=True)
    return World(queries, known(texts.labels, label_words, truncate=True), targets, train, test, len(known), texts.names)


def _split(texts: Texts, seed: int, most: int | None = None) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(texts.queries), generator=stream(seed, "xmc", "split"))[:most]
    held = round(TEST * len(order))
    return order[:held].sort().values, order[held:].sort().values


def _vocabulary(texts: Texts, train: Tensor) -> Vocabulary:
    return Vocabulary.of([*(texts.queries[i] for i in train.tolist()), *texts.labels], VOCABULARY)


def world_vocabulary(texts: Texts, seed: int) -> Vocabulary:
    """The words of :func:`text_world`."""
    return _vocabulary(texts, _split(texts, seed)[1])


def easy_and_hard(seed: int, *, queries: int = 2500, labels: int = 400, most: int = 12, test: float = TEST) -> tuple[World, Tensor]:
    """Made labels: a query names each of its labels either by the label's own word (easy) or by a partner that no label has (hard, to be learned).

    A label's text is its own word and five common ones of 200; a query has four more common ones.

    Returns:
        the world, and which of its pairs are easy, bool (queries, labels).
    """
    draw = stream(seed, "xmc", "made")
    common, first_partner = 1 + labels, 1 + labels + 200  # words: 1.. own, then common, then partners; 0 is padding
    texts = torch.cat([1 + torch.arange(labels)[:, None], common + torch.randint(200, (labels, 5), generator=draw)], 1)
    counts = torch.randint(1, most + 1, (queries,), generator=draw)
    order = torch.rand(queries, labels, generator=draw).argsort(1)[:, :most]  # different labels for each
    easy = torch.rand(queries, most, generator=draw) < 0.5
    there = torch.arange(most) < counts[:, None]
    tokens = torch.where(there, torch.where(easy, 1 + order, first_partner + order), PADDING)
    tokens = torch.cat([tokens, common + torch.randint(200, (queries, 4), generator=draw)], 1)
    row = torch.arange(queries)[:, None].expand_as(order)
    targets = torch.zeros(queries, labels, dtype=torch.bool)
    targets[row[there], order[there]] = True
    simple = torch.zeros(queries, labels, dtype=torch.bool)
    simple[row[there & easy], order[there & easy]] = True
    held = round(test * queries)
    return World(tokens, texts, targets, torch.arange(held, queries), torch.arange(held), first_partner + labels), simple


def random_pairs(seed: int, *, pairs: int = 2000, vocabulary: int = 2000, length: int = 8) -> World:
    """Random queries, each with one random text: nothing to understand, only to be learned by heart. All are training queries and test queries."""
    draw = stream(seed, "xmc", "random")
    queries = torch.randint(1, vocabulary, (pairs, length), generator=draw)
    labels = torch.randint(1, vocabulary, (pairs, length), generator=draw)
    every = torch.arange(pairs)
    return World(queries, labels, torch.eye(pairs, dtype=torch.bool), every, every, vocabulary)


def cited(judged: Sequence[tuple[str, Sequence[int]]], documents: Sequence[str]) -> Texts:
    """Questions with the numbers of their relevant documents, as queries and labels; without documents that have no words."""
    kept = [i for i, text in enumerate(documents) if words(text)]
    place = {i: label for label, i in enumerate(kept)}
    asked = [(text, [place[i] for i in found if i in place]) for text, found in judged]
    asked = [(text, found) for text, found in asked if found]
    pairs = [(i, label) for i, (_, found) in enumerate(asked) for label in found]
    names = tuple(f"document {i + 1}" for i in kept)
    return Texts(tuple(text for text, _ in asked), tuple(documents[i] for i in kept), names, torch.tensor(pairs))
