"""Two tasks that want opposite things of the same texts, and the batches and scores of any such pair of tasks.

The texts are the pages of 26 public modules of numpy, scipy, networkx, scikit-learn and PyTorch. Each page gives a *summary* (its first paragraph)
and a *body* (the rest, without the page's own name, the first words of it)::

    R, retrieval   query   "Compute the qr factorization of a matrix."      its own body is the positive;
                           half of a batch comes from one module, so bodies of module mates are negatives
    T, topic       query   a body                                            another body of the same module is the positive;
                           the other module mates in the batch are left out

R tells module mates apart, T draws them together.
"""

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from mtlearn.datasets.documentation import Page, documentation, split
from mtlearn.lab.seeds import stream
from mtlearn.layers.tokens import PADDING, words
from mtlearn.merging.self_positioning.encoders import Tokenise, pretrained
from mtlearn.merging.self_positioning.encoders import vocabulary as known

MODULES = (
    *("numpy", "numpy.linalg", "numpy.fft", "numpy.random"),
    *(f"scipy.{name}" for name in ("stats", "signal", "optimize", "linalg", "sparse", "special", "ndimage", "spatial", "interpolate")),
    "networkx",
    *(f"sklearn.{name}" for name in ("metrics", "linear_model", "ensemble", "datasets", "preprocessing", "cluster", "model_selection")),
    "sklearn.decomposition",
    *("torch", "torch.nn", "torch.nn.functional", "torch.linalg"),
)  # fmt: skip
FEWEST_SUMMARY, FEWEST_BODY, MOST_BODY = 3, 8, 80  # words

Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Batch:
    """Pairs for one step of InfoNCE.

    Attributes:
        query, positive: tokens (batch, length).
        left_out: (batch, batch) bool, pairs that are no negatives; None where all others are.
    """

    query: Tensor
    positive: Tensor
    left_out: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """On another device."""
        return Batch(self.query.to(device), self.positive.to(device), None if self.left_out is None else self.left_out.to(device))


@dataclass(frozen=True)
class Task:
    """One training set and how its model is judged.

    Attributes:
        name: for people.
        pairs: number of pairs by part; a part without any is not there.
        draw: part, size and generator to a batch.
        score: encoder (tokens to vectors) and part to the task's metric, higher is better.
    """

    name: str
    pairs: dict[Part, int]
    draw: Callable[[Part, int, torch.Generator], Batch]
    score: Callable[[Callable[[Tensor], Tensor], Part], float]


@dataclass(frozen=True)
class World:
    """Two tasks, and what models are made of.

    Attributes:
        tasks: R and T.
        encoder: makes a new encoder.
        first: batch size and generator to a batch on which the base is trained; None where the encoder comes pretrained.
        retrieval_of: number of training pairs to R with so many.
    """

    tasks: tuple[Task, Task]
    encoder: Callable[[], nn.Module]
    first: Callable[[int, torch.Generator], Batch] | None
    retrieval_of: Callable[[int], Task]


@dataclass(frozen=True)
class Texts:
    """The pages as tokens.

    Attributes:
        summary, body: (n, length) int64.
        module: (n,) int64, number of the module.
        parts: indices of the pages of each part.
        names: of the pages.
        modules: names of the modules.
        size: of the vocabulary.
    """

    summary: Tensor
    body: Tensor
    module: Tensor
    parts: dict[Part, Tensor]
    names: tuple[str, ...]
    modules: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class Entry:
    """A page that is kept, with its summary and body as words."""

    page: Page
    summary: str
    body: str


@cache
def entries() -> tuple[Entry, ...]:
    """The pages of :data:`MODULES` with enough words, each summary and each body once."""
    found: list[Entry] = []
    seen: set[str] = set()
    for page in documentation().pages:
        if page.module not in MODULES:
            continue
        own = re.compile(rf"\b{re.escape(page.name.rpartition('.')[2])}\b", re.IGNORECASE)
        summary, body = words(page.summary), words(own.sub(" ", page.body()))[:MOST_BODY]
        entry = Entry(page, " ".join(summary), " ".join(body))
        if len(summary) >= FEWEST_SUMMARY and len(body) >= FEWEST_BODY and entry.summary not in seen and entry.body not in seen:
            seen |= {entry.summary, entry.body}
            found.append(entry)
    return tuple(found)


def texts(seed: int, *, vocabulary: int = 5000, tokenise: Tokenise | None = None) -> Texts:
    """The pages as tokens, in parts of 70, 10 and 20 per cent; the vocabulary is that of the training part.

    Args:
        seed: another seed, another split.
        vocabulary: numbers of the vocabulary, padding included.
        tokenise: of a pretrained encoder, in the place of the vocabulary.
    """
    kept = entries()
    parted = split([entry.page for entry in kept], seed=seed)
    parts: dict[Part, Tensor] = {name: torch.tensor(getattr(parted, name)) for name in ("train", "validation", "test")}
    if tokenise is None:
        tokenise = known((kept[i].summary + " " + kept[i].body for i in parted.train), vocabulary)
    names = tuple(sorted({entry.page.module for entry in kept}))
    number = {name: i for i, name in enumerate(names)}
    return Texts(
        tokenise([entry.summary for entry in kept], MOST_BODY),
        tokenise([entry.body for entry in kept], MOST_BODY),
        torch.tensor([number[entry.page.module] for entry in kept]),
        parts,
        tuple(entry.page.name for entry in kept),
        names,
        vocabulary,
    )


def documentation_world(
    seed: int, *, pairs: tuple[int, int], build: Callable[[int], nn.Module], encoder: str = "", vocabulary: int = 5000, most: int = 500
) -> World:
    """R and T on the pages.

    Args:
        seed: of the split and of the pairs.
        pairs: training pairs of R and of T.
        build: size of the vocabulary to a small encoder.
        encoder: folder or name of a pretrained encoder to start from instead.
        vocabulary: of the small encoder, padding included.
        most: test pages at most.
    """
    model, tokenise = pretrained(encoder) if encoder else (None, None)
    world = texts(seed, vocabulary=vocabulary, tokenise=tokenise)
    return World(
        (retrieval(world, seed, pairs=pairs[0], most=most), topic(world, seed, pairs=pairs[1], most=most)),
        (lambda: build(vocabulary)) if model is None else (lambda: deepcopy(model)),
        (lambda batch, generator: halves(world, batch, generator)) if model is None else None,
        lambda number: retrieval(world, seed, pairs=number, most=most),
    )


def halves(world: Texts, batch: int, generator: torch.Generator) -> Batch:
    """First half of a training body against its second half: what the base model is trained on."""
    return halved(world.body[_draw(world.parts["train"], batch, generator)])


def halved(body: Tensor) -> Batch:
    """First half of each row (batch, length) against its second half."""
    length = (body != PADDING).sum(1, keepdim=True)
    at = torch.arange(body.shape[1])
    return Batch(torch.where(at < length // 2, body, PADDING), torch.where(at < length // 2, PADDING, body))


def retrieval(world: Texts, seed: int, *, pairs: int, most: int = 500) -> Task:
    """R: summary to its own body, half of each batch from one module. ``pairs`` training pairs; MRR@10 among ``most`` bodies."""
    index = dict(world.parts)
    index["train"] = _some(index["train"], pairs, stream(seed, "R pairs"))
    index["test"] = _some(index["test"], most, stream(seed, "test"))

    def draw(part: Part, batch: int, generator: torch.Generator) -> Batch:
        rows = index[part]
        module = world.module[rows[_draw(torch.arange(len(rows)), 1, generator)]]  # of a random page, so large modules come more often
        mates = rows[world.module[rows] == module]
        mates = _draw(mates, min(batch // 2, len(mates)), generator)
        others = rows[~torch.isin(rows, mates)]
        rows = torch.cat([mates, _draw(others, min(batch - len(mates), len(others)), generator)])
        return Batch(world.summary[rows], world.body[rows])

    def score(encode: Callable[[Tensor], Tensor], part: Part) -> float:
        rows = index[part]
        return reciprocal_rank(encode(world.summary[rows]), encode(world.body[rows]))

    return Task("R", {part: len(rows) for part, rows in index.items()}, draw, score)


def topic(world: Texts, seed: int, *, pairs: int, most: int = 500) -> Task:
    """T: body to another body of its module, modules drawn in proportion to the root of their size; mean average precision of "same module"."""
    index = dict(world.parts)
    index["test"] = _some(index["test"], most, stream(seed, "test"))
    made = {part: _same_module(world, index[part], pairs if part == "train" else len(index[part]), stream(seed, "T pairs", part)) for part in index}

    def draw(part: Part, batch: int, generator: torch.Generator) -> Batch:
        rows = made[part][_draw(torch.arange(len(made[part])), batch, generator)]  # (batch, 2)
        module = world.module[rows[:, 0]]
        return Batch(world.body[rows[:, 0]], world.body[rows[:, 1]], module[:, None] == module)

    def score(encode: Callable[[Tensor], Tensor], part: Part) -> float:
        rows = index[part]
        return average_precision(encode(world.body[rows]), world.module[rows])

    return Task("T", {part: len(rows) for part, rows in made.items()}, draw, score)


def _same_module(world: Texts, rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, 2) pages of one module each, modules in proportion to the root of their size."""
    module = world.module[rows]
    sizes = module.bincount(minlength=len(world.modules))
    weight = torch.where(sizes >= 2, sizes.double().sqrt(), 0.0)
    chosen = torch.multinomial(weight, count, replacement=True, generator=generator)
    order = torch.argsort(module, stable=True)  # pages of one module side by side
    start = sizes.cumsum(0) - sizes
    first = torch.rand(count, generator=generator, dtype=torch.float64)
    step = torch.rand(count, generator=generator, dtype=torch.float64)
    size = sizes[chosen]
    one = (first * size).long()
    other = (one + 1 + (step * (size - 1)).long()) % size  # never the same page
    return rows[order[torch.stack([start[chosen] + one, start[chosen] + other], 1)]]


def reciprocal_rank(query: Tensor, document: Tensor, *, most: int = 10) -> float:
    """MRR@10: mean of 1 / rank of document i for query i, 0 where it is beyond the first ten. Both (n, width), of length 1."""
    similarity = query @ document.T
    rank = 1 + (similarity > similarity.diagonal()[:, None]).sum(1)
    return float(torch.where(rank <= most, 1 / rank, 0.0).mean())


def average_precision(vector: Tensor, label: Tensor) -> float:
    """Mean average precision of "same label" when each row (n, width) ranks all others; rows without a mate do not count."""
    similarity = vector @ vector.T
    count = len(label)
    others = ~torch.eye(count, dtype=torch.bool, device=vector.device)
    order = similarity[others].view(count, count - 1).argsort(dim=1, descending=True, stable=True)
    label = label.to(vector.device)
    right = (label[:, None] == label)[others].view(count, count - 1).gather(1, order).double()
    precision = right.cumsum(1) / torch.arange(1, count, device=vector.device)
    found = right.sum(1)
    return float(((precision * right).sum(1) / found)[found > 0].mean())


def _draw(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` different rows; with repeats where there are not so many."""
    if count <= len(rows):
        return rows[torch.randperm(len(rows), generator=generator)[:count]]
    return rows[torch.randint(len(rows), (count,), generator=generator)]


def _some(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most ``count`` rows, drawn once."""
    return rows[torch.randperm(len(rows), generator=generator)[:count].sort().values]
