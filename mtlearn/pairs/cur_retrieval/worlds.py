"""Where retrieval is tried: docstrings, Cranfield's abstracts, digits under a kernel, and score matrices that are made.

A *text world* has items, queries that are searched for among them, and other pairs of query and item that a scorer is trained on::

    world = documentation_world(0)
    world.items[0]         "numpy asarray convert the input to an array parameters array like input data ..."       name and first words, 16 in all
    world.tests[0]         words 21 to 36 of the docstring of the item world.relevant[0]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits
from torch import Tensor

from mtlearn.datasets.cranfield import read_cranfield
from mtlearn.datasets.documentation import Page, documentation
from mtlearn.datasets.tfidf import TfIdf
from mtlearn.lab.seeds import stream
from mtlearn.layers.tokens import words

LENGTH, SKIP, LEAST = 16, 20, 60  # words of a text, words between the beginning and a query, words of a docstring that is used
UNSEEN = ("scipy", "networkx")


@dataclass(frozen=True)
class TextWorld:
    """Texts to retrieve from.

    Attributes:
        items: m texts.
        anchors: k_q queries that the index may use.
        tests: n queries.
        relevant: of each test query the numbers of its right items.
        train: pairs of query and item that train the scorer.
    """

    items: tuple[str, ...]
    anchors: tuple[str, ...]
    tests: tuple[str, ...]
    relevant: tuple[tuple[int, ...], ...]
    train: tuple[tuple[str, str], ...]


def documentation_world(
    seed: int, *, items: int = 1000, anchors: int = 100, tests: int = 100, most: int | None = None, unseen: bool = False
) -> TextWorld:
    """Functions and classes of numpy, scipy, networkx, scikit-learn and torch, found by a later part of their docstrings.

    Args:
        seed: which are items, which of these ask, and which train the scorer.
        items: m.
        anchors: queries for the index; like the test queries each belongs to an item.
        tests: queries to search for.
        most: pairs that train the scorer at most.
        unseen: items and queries from two libraries, training from the other three.

    Raises:
        ValueError: more queries than items, or more items than pages.
    """
    pages = _long_pages()
    order = torch.randperm(len(pages), generator=stream(seed, "cur_retrieval", "pages")).tolist()
    pool = [i for i in order if not unseen or pages[i][0].library in UNSEEN]
    if anchors + tests > items or items > len(pool):
        raise ValueError(f"anchors + tests must be at most items and items at most {len(pool)}, got {anchors}, {tests} and {items}")
    chosen = pool[:items]
    taken = set(chosen)
    others = [i for i in order if i not in taken and not (unseen and pages[i][0].library in UNSEEN)][:most]
    texts = tuple(_item(*pages[i]) for i in chosen)
    queries = [_query(pages[i][1]) for i in chosen]
    return TextWorld(
        texts,
        tuple(queries[:anchors]),
        tuple(queries[anchors : anchors + tests]),
        tuple((i,) for i in range(anchors, anchors + tests)),
        tuple((_query(pages[i][1]), _item(*pages[i])) for i in others),
    )


@cache
def _long_pages() -> tuple[tuple[Page, list[str]], ...]:
    """The pages of at least 60 words, with these."""
    return tuple((page, found) for page in documentation().pages if len(found := words(f"{page.summary} {page.body()}")) >= LEAST)


def _item(page: Page, found: Sequence[str]) -> str:
    return " ".join([*words(page.name.replace(".", " ").replace("_", " ")), *found][:LENGTH])


def _query(found: Sequence[str]) -> str:
    return " ".join(found[SKIP : SKIP + LENGTH])


def cranfield_world(seed: int, *, tests: int = 100, items: int | None = None) -> TextWorld:
    """Cranfield's abstracts and questions. The questions that are not tests are anchors, and with their answers they train the scorer.

    To these training pairs come title and text of every abstract, which no judgement is needed for.

    Args:
        seed: which questions are tests.
        tests: how many.
        items: keep that many abstracts, the answers first; all 1,398 that have a text when omitted.

    Raises:
        MissingFileError: the files are not here and cannot be downloaded.
    """
    collection = read_cranfield()
    whole = [i for i, document in enumerate(collection.documents) if document.text]
    answers = {i for row in collection.relevant for i in row}
    kept = sorted(sorted(whole, key=lambda i: i not in answers)[:items])
    number = {i: place for place, i in enumerate(kept)}
    texts = tuple(f"{collection.documents[i].title} {collection.documents[i].text}" for i in kept)
    order = torch.randperm(len(collection.queries), generator=stream(seed, "cur_retrieval", "questions")).tolist()
    asked, rest = order[:tests], order[tests:]
    right = [tuple(number[i] for i in row if i in number) for row in collection.relevant]
    judged = [(collection.queries[q], texts[i]) for q in rest for i in right[q]]
    titles = [(collection.documents[i].title, collection.documents[i].text) for i in kept if collection.documents[i].title]
    return TextWorld(
        texts,
        tuple(collection.queries[q] for q in rest),
        tuple(collection.queries[q] for q in asked),
        tuple(right[q] for q in asked),
        (*judged, *titles),
    )


def tfidf(queries: Sequence[str], items: Sequence[str]) -> Tensor:
    """Cosine (queries, items) of TF-IDF vectors, whose document frequencies are those of the items; float32."""
    return TfIdf(items).scores(queries).float()


@dataclass(frozen=True)
class Scores:
    """Exact scores without a model to train.

    Attributes:
        anchors: (k_q, m) of the anchor queries.
        tests: (n, m) of the test queries.
    """

    anchors: Tensor
    tests: Tensor


def digit_scores(seed: int, kind: str, *, anchors: int = 100, tests: int = 100) -> tuple[Scores, Tensor, Tensor]:
    """scikit-learn's digits under a similarity that is used as a black box.

    Args:
        seed: which images ask.
        kind: "gaussian", exp(-|x - y|² / 8) of pixels between 0 and 1, or "distance", -|x - y|.
        anchors: images that are anchor queries.
        tests: images that are test queries; the others are the items.

    Returns:
        The scores, and the pixels of the test queries (n, 64) and of the items (m, 64).
    """
    pixels = load_digits().data / 16
    order = torch.randperm(len(pixels), generator=stream(seed, "cur_retrieval", "digits")).numpy()
    asked, items = pixels[order[: anchors + tests]], pixels[order[anchors + tests :]]
    distance = torch.from_numpy(cdist(asked, items))
    if kind == "gaussian":
        scores = (-distance.square() / 8).exp()
    elif kind == "distance":
        scores = -distance
    else:
        raise ValueError(f"kind must be 'gaussian' or 'distance', got {kind!r}")
    return Scores(scores[:anchors], scores[anchors:]), torch.from_numpy(asked[anchors:]), torch.from_numpy(items)


def made_scores(seed: int, *, rank: int = 10, noise: float = 0.0, spike: float = 0.0, queries: int = 200, items: int = 1000) -> Scores:
    """A score matrix of a known rank: half of the queries are anchors.

    Args:
        seed: of the draws; with the same seed, noise and spike are added to the same matrix.
        rank: r; entries have unit variance.
        noise: standard deviation of what is added to every entry.
        spike: what is added to one entry of each row, another item for every query.
        queries: both kinds together, at most ``items``.
        items: m.
    """
    low = torch.randn(queries, rank, generator=stream(seed, "cur_retrieval", "left"), dtype=torch.float64) @ torch.randn(
        rank, items, generator=stream(seed, "cur_retrieval", "right"), dtype=torch.float64
    )
    scores = low / rank**0.5 + noise * torch.randn(queries, items, generator=stream(seed, "cur_retrieval", "noise"), dtype=torch.float64)
    own = torch.randperm(items, generator=stream(seed, "cur_retrieval", "spikes"))[:queries]
    scores[torch.arange(queries), own] += spike
    return Scores(scores[: queries // 2], scores[queries // 2 :])
