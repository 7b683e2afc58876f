"""Where demonstrations are retrieved: rows of four digits, and sentences of words, each with several tasks that look at one part of the input.

What a task looks at is a small part; what two inputs share otherwise is beside the point, and misleads a likeness of the whole::

    digits      [3][8][1][4]        digit two, parity: even         digit four, rest modulo three: 1
    sentences   brisk olive tin ... colour, parity of its value     (three words for each value, fillers that mean nothing)

In-context learning itself is played by :class:`Copier`, a model that can answer *only* from demonstrations: it looks which of them agree with the
question in what the task is about, and gives their answers. It is trained on episodes whose answers are renamed at random, then frozen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.datasets.bm25 import BM25
from mtlearn.datasets.digits import Digits, split_digits
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.retrieval.udr.method import Task

Kind = Literal["digits", "sentences"]

PLACES = ("first", "second", "third", "fourth")
ASKED = {"parity": 2, "modulo three": 3, "copy": 10}  # classes; "copy" asks for the value itself, a generation task
VALUES = {"digits": 10, "sentences": 8}
SYNONYMS, FILLERS, FILLER_WORDS = 3, 8, 60  # of a value, in a sentence, in the vocabulary
BRIGHT = (0.5, 2.0)


@dataclass(frozen=True)
class Rows:
    """Inputs of one task with their answers.

    Attributes:
        inputs: (n, 4, 64) pixels of digits, or (n, 12) int64 words.
        answers: (n,) int64.
    """

    inputs: Tensor
    answers: Tensor

    def __len__(self) -> int:
        return len(self.answers)

    def to(self, device: torch.device) -> "Rows":
        """On another device."""
        return Rows(self.inputs.to(device), self.answers.to(device))


@dataclass(frozen=True)
class World:
    """Tasks with their rows.

    Attributes:
        kind: "digits" or "sentences".
        tasks: what is asked.
        train: rows of each, which are its demonstrations too.
        test: rows of each.
    """

    kind: Kind
    tasks: tuple[Task, ...]
    train: tuple[Rows, ...]
    test: tuple[Rows, ...]

    @property
    def answers(self) -> int:
        """Most answers of a task."""
        return max(task.classes for task in self.tasks)

    def to(self, device: torch.device) -> "World":
        """On another device."""
        return replace(self, train=tuple(rows.to(device) for rows in self.train), test=tuple(rows.to(device) for rows in self.test))

    def take(self, numbers: Sequence[int]) -> "World":
        """Some of the tasks."""
        parts = ([getattr(self, name)[i] for i in numbers] for name in ("tasks", "train", "test"))
        tasks, train, test = (tuple(part) for part in parts)
        return World(self.kind, cast(tuple[Task, ...], tasks), cast(tuple[Rows, ...], train), cast(tuple[Rows, ...], test))


def tasks_of(kind: Kind) -> tuple[Task, ...]:
    """Every place with every question."""
    return tuple(Task((place, asked), VALUES[kind] if asked == "copy" else classes) for place in PLACES for asked, classes in ASKED.items())


def known_words() -> tuple[str, ...]:
    """The words of instructions."""
    return (*PLACES, *ASKED)


def answer_of(values: Tensor, task: Task) -> Tensor:
    """The right answers (n,) of the values (n, 4) under a task."""
    asked = values[..., PLACES.index(task.instruction[0])]
    return asked if task.instruction[1] == "copy" else asked % ASKED[task.instruction[1]]


class Source:
    """Draws inputs and the values that are in them.

    Args:
        kind: of the inputs.
        images: of digits.
    """

    def __init__(self, kind: Kind, images: Digits | None = None) -> None:
        self.kind, self.images = kind, images

    def draw(self, count: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs (count, ...) and values (count, 4)."""
        if self.kind == "digits":
            assert self.images is not None
            chosen = torch.randint(len(self.images), (count, 4), generator=generator)
            bright = torch.rand(count, 4, 1, generator=generator) * (BRIGHT[1] - BRIGHT[0]) + BRIGHT[0]
            return self.images.images[chosen].flatten(2) * bright, self.images.labels[chosen]
        values = torch.randint(VALUES["sentences"], (count, 4), generator=generator)
        synonym = torch.randint(SYNONYMS, (count, 4), generator=generator)
        words = (torch.arange(4) * VALUES["sentences"] + values) * SYNONYMS + synonym
        fillers = 4 * VALUES["sentences"] * SYNONYMS + torch.randint(FILLER_WORDS, (count, FILLERS), generator=generator)
        sentence = torch.cat([words, fillers], 1)
        return sentence.gather(1, torch.rand(sentence.shape, generator=generator).argsort(1)), values


VOCABULARY = 4 * VALUES["sentences"] * SYNONYMS + FILLER_WORDS


def make_world(kind: Kind, seed: int, *, sizes: Sequence[int], test: int) -> tuple[World, Source]:
    """A world, and where a language model's own training inputs come from: other draws, for digits other images.

    Args:
        kind: of the inputs.
        seed: of everything.
        sizes: training rows of the first place's tasks, of the second's ... (four numbers).
        test: test rows of each task.
    """
    pool: Digits | None = None
    held: Digits | None = None
    if kind == "digits":
        pool, held = split_digits(generator=stream(seed, "udr", "images"))
    train_source, test_source = Source(kind, pool), Source(kind, held)
    train: list[Rows] = []
    tests: list[Rows] = []
    for number, task in enumerate(tasks_of(kind)):
        for source, count, found, name in (
            (train_source, sizes[PLACES.index(task.instruction[0])], train, "train"),
            (test_source, test, tests, "test"),
        ):
            inputs, values = source.draw(count, generator=stream(seed, "udr", kind, name, number))
            found.append(Rows(inputs, answer_of(values, task)))
    return World(kind, tasks_of(kind), tuple(train), tuple(tests)), train_source


# ------------------------------------------------------------------------------------------------------------------------- encoders


class DigitEncoder(nn.Module):
    """Rows of digits as vectors: a network for each digit, the places weighted by what the instruction asks for.

    Args:
        told: width of an instruction's vector.
        hidden: units of the network.
        width: of a digit's vector; the whole has four times that.
    """

    def __init__(self, told: int, hidden: int = 64, width: int = 24) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.gate = nn.Linear(told, 4)
        self.width = 4 * width

    def forward(self, inputs: Tensor, told: Tensor) -> Tensor:
        """(..., 4, 64) and (width of an instruction,), or one each (..., that), to (..., 4 * width) of length 1."""
        seen = F.normalize(self.read(inputs), dim=-1)
        weight = self.gate(told).softmax(-1)
        out: Tensor = (weight.sqrt()[..., None] * seen).flatten(-2)
        return out


class SentenceEncoder(nn.Module):
    """Words as vectors, weighted by how much the instruction asks for each.

    Args:
        told: width of an instruction's vector.
        width: of a word's vector and of the sentence's.
    """

    def __init__(self, told: int, width: int = 32) -> None:
        super().__init__()
        self.word, self.key = nn.Embedding(VOCABULARY, width), nn.Embedding(VOCABULARY, width)
        self.ask = nn.Linear(told, width)
        nn.init.normal_(self.key.weight, std=0.3)
        self.width = width

    def forward(self, inputs: Tensor, told: Tensor) -> Tensor:
        """(..., length) and (width of an instruction,), or one each (..., that), to (..., width) of length 1."""
        weight = torch.einsum("...ld,...d->...l", self.key(inputs), self.ask(told)).softmax(-1)
        return F.normalize(torch.einsum("...l,...ld->...d", weight, self.word(inputs)), dim=-1)


def encoder_of(kind: Kind, told: int) -> DigitEncoder | SentenceEncoder:
    """An encoder of the kind's inputs."""
    return DigitEncoder(told) if kind == "digits" else SentenceEncoder(told)


# ----------------------------------------------------------------------------------------------------------------- the language model


class Copier(nn.Module):
    r"""The language model's part: :math:`p(y \mid Z, x) = \sum_i a_i [y_i = y] + a_0 / C`, attention over demonstrations and one place for none.

    Args:
        kind: of the inputs.
        tasks: that it can be told.
        told: width of a task's vector.
    """

    def __init__(self, kind: Kind, tasks: int, told: int = 16) -> None:
        super().__init__()
        self.task = nn.Embedding(tasks, told)
        self.read = encoder_of(kind, told)
        self.sharp, self.none = nn.Parameter(torch.tensor(8.0)), nn.Parameter(torch.tensor(4.0))

    def vectors(self, inputs: Tensor, task: int | Tensor) -> Tensor:
        """(..., width): two inputs agree, for a task, by the product of their vectors."""
        number = torch.as_tensor(task, device=self.task.weight.device)
        told = self.task(number)
        out: Tensor = self.read(inputs, told)
        return out

    def answers(self, match: Tensor, said: Tensor, classes: int) -> Tensor:
        """Probabilities (..., C) from how well demonstrations match (..., k) and what they say (..., k)."""
        level = self.none.expand(*match.shape[:-1], 1)
        attention = torch.cat([self.sharp * match, level], -1).softmax(-1)
        copied = torch.zeros(*match.shape[:-1], classes, device=match.device).scatter_add(-1, said, attention[..., :-1])
        return copied + attention[..., -1:] / classes


def train_copier(kind: Kind, source: Source, seed: int, *, steps: int, batch: int = 64, shown: int = 8, rate: float = 3e-3) -> Copier:
    """Train on episodes of ``shown`` demonstrations whose answers are renamed at random, so that nothing but the demonstrations can tell."""
    tasks = tasks_of(kind)
    with seeded(seed):
        model = Copier(kind, len(tasks))
    draws = stream(seed, "udr", kind, "episodes")
    most = max(task.classes for task in tasks)
    classes = torch.tensor([task.classes for task in tasks])
    place = torch.tensor([PLACES.index(task.instruction[0]) for task in tasks])

    def loss_at(step: int) -> Tensor:
        inputs, values = source.draw(batch * (shown + 1), generator=draws)
        number = torch.randint(len(tasks), (batch,), generator=draws)
        inputs, values = (part.view(batch, shown + 1, *part.shape[1:]) for part in (inputs, values))
        asked = values.gather(2, place[number][:, None, None].expand(-1, shown + 1, 1))[..., 0]
        count = classes[number]
        answer = asked % count[:, None]  # a value is below the number of classes where it is copied
        names = (torch.rand(batch, most, generator=draws) + (torch.arange(most) >= count[:, None]) * 2).argsort(1)  # a renaming of the first C
        answer = names.gather(1, answer)
        vectors = model.vectors(inputs, number[:, None].expand(-1, shown + 1))
        match = torch.einsum("bd,bkd->bk", vectors[:, 0], vectors[:, 1:])
        attention = torch.cat([model.sharp * match, model.none.expand(batch, 1)], 1).softmax(1)
        right = (attention[:, :-1] * (answer[:, 1:] == answer[:, :1])).sum(1) + attention[:, -1] / count
        return -right.clamp(min=1e-6).log().mean()

    fit(model, loss_at, steps=steps, optimizer=torch.optim.Adam(model.parameters(), lr=rate))
    return model.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------------------------------------ likeness of the whole


def surface(kind: Kind, queries: Tensor, demonstrations: Tensor) -> Tensor:
    """Likeness (q, n) of whole inputs: minus the distance of pixels, or BM25 of words."""
    if kind == "digits":
        return -torch.cdist(queries.flatten(1), demonstrations.flatten(1))
    index = BM25([_letters(row) for row in demonstrations.tolist()])
    return index.scores([_letters(row) for row in queries.tolist()]).float().to(queries.device)


def _letters(words: Sequence[int]) -> str:
    return " ".join(f"w{word}" for word in words)
