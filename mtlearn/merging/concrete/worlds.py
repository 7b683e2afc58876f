"""What is merged: models of several tasks that share an encoder, with inputs of each task, seen by every arm in the same way.

Two domains. *Vision*: the chapter's eight transforms of handwritten digits. *Language*: the pages of five libraries' documentation, where a task
is to tell the ten largest topics of one library apart by the text of a page (as a vector); each task has a frozen head of its own, as CLIP's have.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from mtlearn.datasets.documentation import LIBRARIES, Page, documentation, labels, text_features
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.merging.task_vectors import State, apply, task_vector
from mtlearn.merging.transformed_digits import Family, MLPEncoder

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class World:
    """A pretrained encoder, T fine-tuned ones as task vectors, T frozen heads, and the inputs of each task.

    Attributes:
        names: of the T tasks.
        encoder: with the base weights.
        heads: weight (T, C, F) and bias (T, C).
        vectors: T task vectors.
        inputs: part to T tensors (n_t, d).
        labels: part to T tensors (n_t,).
    """

    names: tuple[str, ...]
    encoder: nn.Module
    heads: tuple[Tensor, Tensor]
    vectors: tuple[dict[str, Tensor], ...]
    inputs: Mapping[Part, tuple[Tensor, ...]]
    labels: Mapping[Part, tuple[Tensor, ...]]

    @property
    def base(self) -> dict[str, Tensor]:
        """The base weights ``θ_0``."""
        return {name: value.detach() for name, value in self.encoder.state_dict().items()}

    @property
    def classes(self) -> int:
        """C, of every head."""
        return self.heads[1].shape[1]

    def read(self, features: Tensor) -> Tensor:
        """Features (T, B, F) to logits (T, B, C), each task by its head."""
        return torch.einsum("tbf,tcf->tbc", features, self.heads[0]) + self.heads[1][:, None]

    def predict(self, model: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Inputs (T, B, d) through one model, in one pass, to logits (T, B, C)."""
        return self.read(model(inputs.flatten(0, 1)).view(*inputs.shape[:2], -1))

    def sample(self, part: Part, batch: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``batch`` inputs of each task, drawn with replacement: (T, batch, d) and their labels (T, batch)."""
        rows = [torch.randint(len(found), (batch,), generator=generator).to(found.device) for found in self.labels[part]]
        pairs = zip(self.inputs[part], self.labels[part], rows, strict=True)
        inputs, answers = zip(*((x[chosen], y[chosen]) for x, y, chosen in pairs), strict=True)
        return torch.stack(inputs), torch.stack(answers)

    @torch.no_grad()
    def logits(self, states: State | Sequence[State], part: Part = "test") -> tuple[Tensor, ...]:
        """T tensors (n_t, C): of one encoder for all tasks, or of each task's own."""
        inputs = self.inputs[part]
        if isinstance(states, Mapping):
            features = torch.split(functional_call(self.encoder, dict(states), (torch.cat(inputs),)), [len(x) for x in inputs])
        else:
            features = tuple(functional_call(self.encoder, dict(state), (x,)) for state, x in zip(states, inputs, strict=True))
        return tuple(rows @ weight.T + bias for rows, weight, bias in zip(features, *self.heads, strict=True))

    def accuracy(self, states: State | Sequence[State], part: Part = "test") -> Tensor:
        """(T,): the share of right answers on each task."""
        pairs = zip(self.logits(states, part), self.labels[part], strict=True)
        return torch.stack([(rows.argmax(-1) == answers).float().mean() for rows, answers in pairs])

    def shares(self, state: State, part: Part = "test") -> Tensor:
        """(C,): how often each class is predicted, over all tasks."""
        said = torch.cat([rows.argmax(-1) for rows in self.logits(state, part)])
        return torch.bincount(said, minlength=self.classes) / len(said)

    def best_scale(self, vector: State, grid: Sequence[float]) -> float:
        """The scale of ``grid`` with the highest mean validation accuracy; of equal ones the smallest."""
        means = torch.stack([self.accuracy(apply(self.base, vector, scale), "validation").mean() for scale in grid])
        return float(grid[int(means.argmax())])

    def only(self, tasks: Sequence[int]) -> "World":
        """The same world with some of the tasks."""
        rows = torch.as_tensor(tasks, device=self.heads[0].device)
        chosen = {"names": tuple(self.names[t] for t in tasks), "vectors": tuple(self.vectors[t] for t in tasks)}
        parts = {"inputs": {p: tuple(x[t] for t in tasks) for p, x in self.inputs.items()}}
        answers = {"labels": {p: tuple(y[t] for t in tasks) for p, y in self.labels.items()}}
        return replace(self, heads=(self.heads[0][rows], self.heads[1][rows]), **chosen, **parts, **answers)  # type: ignore[arg-type]

    def to(self, device: torch.device) -> "World":
        """Everything on another device; the encoder is moved in place."""
        return World(
            self.names,
            self.encoder.to(device),
            (self.heads[0].to(device), self.heads[1].to(device)),
            tuple({name: value.to(device) for name, value in vector.items()} for vector in self.vectors),
            {part: tuple(x.to(device) for x in found) for part, found in self.inputs.items()},
            {part: tuple(y.to(device) for y in found) for part, found in self.labels.items()},
        )


def world_of_digits(family: Family) -> World:
    """The chapter's family as a world: one head for all tasks, the same images under each transform."""
    count = len(family.names)
    weight, bias = family.head.weight.detach(), family.head.bias.detach()
    return World(
        family.names,
        family.encoder,
        (weight.expand(count, -1, -1), bias.expand(count, -1)),
        family.vectors,
        {part: tuple(images.unbind(0)) for part, images in family.images.items()},
        {part: (answers,) * count for part, answers in family.labels.items()},
    )


@dataclass(frozen=True)
class PagesSettings:
    """The language domain.

    Attributes:
        libraries: the tasks.
        topics: classes of each library, its largest.
        most: pages of one topic, so that none outweighs the others.
        dim: numbers that stand for the text of a page.
        width, features: of the encoder, which is built as that of the digits; narrow, because in a wide one the libraries do not disturb one another.
        labelled: pages of each topic that pretraining sees.
        pretrain_steps, pretrain_rate, tune_steps, tune_rate, batch: of Adam.
    """

    libraries: tuple[str, ...] = LIBRARIES
    topics: int = 10
    most: int = 60
    dim: int = 128
    width: int = 32
    features: int = 32
    labelled: int = 4
    pretrain_steps: int = 300
    pretrain_rate: float = 2e-3
    tune_steps: int = 400
    tune_rate: float = 1e-3
    batch: int = 64


def world_of_pages(settings: PagesSettings, seed: int) -> World:
    """Pages of each library: half to train, a fifth for validation, the rest for the test, by topic.

    The vectors of the texts come from all pages, the test's too, without a label. A page's own name and its See Also section are not in its text.
    """
    libraries = settings.libraries
    pages = documentation(libraries).pages
    kept: list[Page] = []
    answers: list[int] = []
    draws = stream(seed, "pages", "split")
    parts: dict[Part, list[list[int]]] = {part: [[] for _ in libraries] for part in PARTS}
    for task, library in enumerate(libraries):
        own = [page for page in pages if page.library == library]
        found, _ = labels(own, "topic", most=settings.topics)
        for topic in range(settings.topics):
            of_topic = (found == topic).nonzero()[:, 0]
            rows = of_topic[torch.randperm(len(of_topic), generator=draws)[: settings.most]].tolist()
            ends = len(rows) // 2, len(rows) // 2 + len(rows) // 5
            for place, row in enumerate(rows):
                part: Part = "train" if place < ends[0] else "validation" if place < ends[1] else "test"
                parts[part][task].append(len(kept))
                kept.append(own[row])
                answers.append(topic)
    texts = [f"{page.summary} {page.body()}".replace(page.name.rsplit(".", 1)[-1], " ") for page in kept]
    x, y = text_features(texts, settings.dim), torch.tensor(answers)
    inputs: dict[Part, tuple[Tensor, ...]] = {part: tuple(x[rows] for rows in found) for part, found in parts.items()}
    classes: dict[Part, tuple[Tensor, ...]] = {part: tuple(y[rows] for rows in found) for part, found in parts.items()}
    with seeded(seed):
        encoder = MLPEncoder(settings.dim, settings.width, settings.features)
        heads = nn.ModuleList(nn.Linear(settings.features, settings.topics) for _ in libraries)
    seen = [_first_of_each(answers, settings.labelled) for answers in classes["train"]]

    def loss_of(task: int, rows: Tensor) -> Tensor:
        return cross_entropy(heads[task](encoder(inputs["train"][task][rows])), classes["train"][task][rows])

    draws = stream(seed, "pages", "pretrain")

    def pretraining(step: int) -> Tensor:
        share = settings.batch // len(libraries)
        return torch.stack([loss_of(t, rows[torch.randint(len(rows), (share,), generator=draws)]) for t, rows in enumerate(seen)]).mean()

    both = nn.ModuleList([encoder, heads])
    fit(both, pretraining, steps=settings.pretrain_steps, optimizer=torch.optim.Adam(both.parameters(), lr=settings.pretrain_rate))
    base = {name: value.clone() for name, value in encoder.state_dict().items()}
    heads.requires_grad_(False)
    vectors = []
    for task in range(len(libraries)):
        encoder.load_state_dict(base)
        own_draws = stream(seed, "pages", "tune", task)

        def tuning(step: int, task: int = task, draws: torch.Generator = own_draws) -> Tensor:
            return loss_of(task, torch.randint(len(classes["train"][task]), (settings.batch,), generator=draws))

        fit(encoder, tuning, steps=settings.tune_steps, optimizer=torch.optim.Adam(encoder.parameters(), lr=settings.tune_rate))
        vectors.append(task_vector(base, {name: value.clone() for name, value in encoder.state_dict().items()}))
    encoder.load_state_dict(base)
    encoder.eval().requires_grad_(False)
    weight, bias = (torch.stack([getattr(head, kind).detach() for head in heads]) for kind in ("weight", "bias"))
    return World(libraries, encoder, (weight, bias), tuple(vectors), inputs, classes)


def _first_of_each(answers: Tensor, count: int) -> Tensor:
    """Rows of the first ``count`` of each class."""
    return torch.cat([(answers == label).nonzero()[:count, 0] for label in answers.unique().tolist()])  # type: ignore[no-untyped-call]
