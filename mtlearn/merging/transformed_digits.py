"""Models to merge: one pretrained encoder, and an encoder fine-tuned from it for each transform of the same handwritten digits.

A *family* is what several papers of this chapter start from: a generalist (pretrained on upright digits and a few labelled images of each
transform), its frozen 10-way head, and one fine-tuned encoder a task. The tasks are fixed transforms of the same images (rotations, flips, a shift,
inverted ink, shuffled pixels), so all share the labels and the head, and no task is harder to read than another for want of data.

    family = make_family(FamilySettings(), seed=0)          trained in seconds, then kept in the user's cache
    family.vectors[3]                                        the task vector of "flip left-right"
    family.accuracy(apply(family.base, add(family.vectors), 0.3))      (8,): test accuracy of the merged encoder on each task
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from mtlearn.datasets import digits as digit_world
from mtlearn.datasets.digits import HALF_SHUFFLES, TRANSFORMS, Digits, digits, transformed
from mtlearn.datasets.mnist import mnist
from mtlearn.lab.fit import fit
from mtlearn.lab.result import versions
from mtlearn.lab.seeds import seeded, stream
from mtlearn.lab.store import StoreError, write_atomically
from mtlearn.merging.task_vectors import State, apply, task_vector
from mtlearn.paths import cache

Part = Literal["train", "validation", "test"]
CLASSES = 10


@dataclass(frozen=True)
class FamilySettings:
    """What a family is made of; everything that training depends on but the seed.

    Attributes:
        tasks: 2 to 20 transforms: the eight of ``digits.TRANSFORMS`` first, then the permutations of half of the pixels.
        source: ``digits`` (scikit-learn's, 8 x 8) or ``mnist`` (28 x 28, from the published files).
        encoder: ``mlp`` or ``conv``.
        width: hidden units of the MLP, or channels of the convolutional encoder.
        features: what the encoder returns.
        train, validation: images in each part; the others are for the test.
        labelled: images of each transform that pretraining sees with their labels; 0 gives a weak generalist of upright digits alone.
        pretrain_steps, pretrain_rate, tune_steps, tune_rate, batch: of Adam.
        sparsity: weight of an L1 penalty on ``θ - θ_0`` during fine-tuning, which makes the task vectors' supports sparse.
    """

    tasks: int = 8
    source: Literal["digits", "mnist"] = "digits"
    encoder: Literal["mlp", "conv"] = "mlp"
    width: int = 256
    features: int = 32
    train: int = 1000
    validation: int = 300
    labelled: int = 100
    pretrain_steps: int = 500
    pretrain_rate: float = 2e-3
    tune_steps: int = 200
    tune_rate: float = 3e-4
    batch: int = 64
    sparsity: float = 0.0

    def __post_init__(self) -> None:
        if not 2 <= self.tasks <= len(TRANSFORMS) + len(HALF_SHUFFLES):
            raise ValueError(f"tasks must be between 2 and {len(TRANSFORMS) + len(HALF_SHUFFLES)}, got {self.tasks}")
        if not 0 <= self.labelled <= self.train:
            raise ValueError(f"labelled must be between 0 and train={self.train} images, got {self.labelled}")


class MLPEncoder(nn.Sequential):
    """Pixels to features by two hidden layers with LayerNorm and GELU: 10 parameter blocks."""

    def __init__(self, pixels: int, width: int, features: int) -> None:
        hidden = [nn.Linear(pixels, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width), nn.GELU()]
        super().__init__(*hidden, nn.Linear(width, features))


class ConvEncoder(nn.Module):
    """Pixels (n, side * side) to features by three convolutions of stride 2 with GroupNorm and GELU, and a linear layer."""

    def __init__(self, side: int, width: int, features: int) -> None:
        super().__init__()
        self.side = side
        sizes = [1, width, 2 * width, 2 * width]
        steps: list[nn.Module] = []
        for before, after in pairwise(sizes):
            steps += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.GELU()]
        left = -(-side // 8)
        self.layers = nn.Sequential(*steps, nn.Flatten(), nn.Linear(sizes[-1] * left * left, features))

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, side * side) to (n, features)."""
        out: Tensor = self.layers(pixels.view(-1, 1, self.side, self.side))
        return out


@dataclass(frozen=True)
class Family:
    """A pretrained encoder with its frozen head, and one fine-tuned encoder a task.

    Attributes:
        settings, seed: what made it.
        names: of the T tasks.
        encoder: the module with the base weights.
        head: the frozen linear layer from features to 10 classes.
        tuned: T states of the fine-tuned encoders.
        vectors: T task vectors.
        images: part to (T, n, pixels), the same n images under each transform.
        labels: part to (n,).
    """

    settings: FamilySettings
    seed: int
    names: tuple[str, ...]
    encoder: nn.Module
    head: nn.Linear
    tuned: tuple[dict[str, Tensor], ...]
    vectors: tuple[dict[str, Tensor], ...]
    images: Mapping[Part, Tensor]
    labels: Mapping[Part, Tensor]

    @property
    def base(self) -> dict[str, Tensor]:
        """The base weights ``θ_0``."""
        return {name: value.detach() for name, value in self.encoder.state_dict().items()}

    def logits(self, weights: State, images: Tensor) -> Tensor:
        """(..., pixels) to (..., 10) with these encoder weights and the frozen head, in one pass."""
        features = functional_call(self.encoder, dict(weights), (images.flatten(0, -2),))
        out: Tensor = self.head(features)
        return out.view(*images.shape[:-1], CLASSES)

    def accuracy(self, weights: State, part: Part = "test") -> Tensor:
        """(T,): the share of right answers of one encoder on each task."""
        with torch.no_grad():
            return (self.logits(weights, self.images[part]).argmax(-1) == self.labels[part]).float().mean(1)

    def own_accuracy(self, weights: Sequence[State], part: Part = "test") -> Tensor:
        """(T,): the share of right answers of each task's own encoder on its task."""
        with torch.no_grad():
            rows = [self.logits(state, images).argmax(-1) == self.labels[part] for state, images in zip(weights, self.images[part], strict=True)]
        return torch.stack(rows).float().mean(1)

    def best_scale(self, vector: State, grid: Sequence[float]) -> float:
        """The scale of ``grid`` at which ``θ_0 + scale · τ`` has the highest mean validation accuracy; of equal ones the smallest."""
        if not grid:
            raise ValueError("the grid of scales is empty")
        means = torch.stack([self.accuracy(apply(self.base, vector, scale), "validation").mean() for scale in grid])
        return float(grid[int(means.argmax())])

    def sample(self, part: Part, batch: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``batch`` images of each task, drawn anew for each: (T, batch, pixels) and (T, batch) labels."""
        rows = torch.randint(len(self.labels[part]), (len(self.names), batch), generator=generator)
        return self.images[part][torch.arange(len(self.names))[:, None], rows], self.labels[part][rows]


@lru_cache(maxsize=4)
def make_family(settings: FamilySettings, seed: int) -> Family:
    """Pretrain and fine-tune, or read what an earlier call with the same settings, seed, code and versions left in the user's cache."""
    names = (*TRANSFORMS, *HALF_SHUFFLES)[: settings.tasks]
    everything = digits() if settings.source == "digits" else mnist()
    if not 0 < settings.train < settings.train + settings.validation < len(everything):
        raise ValueError(f"train + validation must leave some of {len(everything)} images for the test, got {settings.train} + {settings.validation}")
    order = torch.randperm(len(everything), generator=stream(seed, "family", "split"))
    cuts = {
        "train": (0, settings.train),
        "validation": (settings.train, settings.train + settings.validation),
        "test": (settings.train + settings.validation, None),
    }
    parts: dict[Part, Digits] = {part: everything.take(order[first:last]) for part, (first, last) in cuts.items()}  # type: ignore[misc]
    images: dict[Part, Tensor] = {part: torch.stack([transformed(found.images, name).flatten(1) for name in names]) for part, found in parts.items()}
    labels: dict[Part, Tensor] = {part: found.labels for part, found in parts.items()}
    side = everything.images.shape[1]
    with seeded(seed):
        encoder = (
            MLPEncoder(side * side, settings.width, settings.features)
            if settings.encoder == "mlp"
            else ConvEncoder(side, settings.width, settings.features)
        )
        head = nn.Linear(settings.features, CLASSES)
        kept = _kept(settings, seed)
        found = _load(kept)
        if found is None:
            found = _train(settings, seed, encoder, head, parts["train"].images.flatten(1), images["train"], labels["train"])
            _save(kept, found)
    encoder.load_state_dict({name: found[f"base.{name}"] for name in encoder.state_dict()})
    head.load_state_dict({name: found[f"head.{name}"] for name in head.state_dict()})
    encoder.eval().requires_grad_(False)
    head.eval().requires_grad_(False)
    tuned = tuple({name: found[f"{number}.{name}"] for name in encoder.state_dict()} for number in range(settings.tasks))
    base = dict(encoder.state_dict())
    vectors = tuple(task_vector(base, state) for state in tuned)
    return Family(settings, seed, names, encoder, head, tuned, vectors, images, labels)


def _train(
    settings: FamilySettings, seed: int, encoder: nn.Module, head: nn.Linear, upright: Tensor, images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Pretrain encoder and head, then fine-tune the encoder for each task: all weights by name."""
    shown = stream(seed, "family", "labelled")
    chosen = torch.stack([torch.randperm(len(labels), generator=shown)[: settings.labelled] for _ in images])  # (T, labelled)
    pool = torch.cat([upright, images[torch.arange(len(images))[:, None], chosen].flatten(0, 1)])
    answers = torch.cat([labels, labels[chosen].flatten()])
    draws = stream(seed, "family", "pretrain")

    def pretraining(step: int) -> Tensor:
        rows = torch.randint(len(pool), (settings.batch,), generator=draws)
        return cross_entropy(head(encoder(pool[rows])), answers[rows])

    both = nn.Sequential(encoder, head)
    fit(both, pretraining, steps=settings.pretrain_steps, optimizer=torch.optim.Adam(both.parameters(), lr=settings.pretrain_rate))
    base = {name: value.clone() for name, value in encoder.state_dict().items()}
    found = {**{f"base.{name}": value for name, value in base.items()}, **{f"head.{name}": v.clone() for name, v in head.state_dict().items()}}
    head.requires_grad_(False)
    for number, inputs in enumerate(images):
        encoder.load_state_dict(base)
        draws_of_task = stream(seed, "family", "tune", number)

        def tuning(step: int, inputs: Tensor = inputs, draws: torch.Generator = draws_of_task) -> Tensor:
            rows = torch.randint(len(labels), (settings.batch,), generator=draws)
            loss = cross_entropy(head(encoder(inputs[rows])), labels[rows])
            if settings.sparsity:
                moved = [(value - base[name]).abs().sum() for name, value in encoder.named_parameters()]
                loss = loss + settings.sparsity * torch.stack(moved).sum()
            return loss

        fit(encoder, tuning, steps=settings.tune_steps, optimizer=torch.optim.Adam(encoder.parameters(), lr=settings.tune_rate))
        found |= {f"{number}.{name}": value.clone() for name, value in encoder.state_dict().items()}
    return found


def _kept(settings: FamilySettings, seed: int) -> Path:
    """Where this family is kept: the name holds a digest of all that it depends on."""
    code = [Path(str(module)).read_text(encoding="utf-8") for module in (__file__, digit_world.__file__)]
    said = json.dumps([asdict(settings), seed, versions(), code], sort_keys=True)
    return cache() / "families" / f"{settings.source}-{settings.tasks}-{seed}-{hashlib.sha256(said.encode()).hexdigest()[:20]}.safetensors"


def _load(path: Path) -> dict[str, Tensor] | None:
    try:
        return load_tensors(path.read_bytes())
    except (OSError, SafetensorError):
        return None  # not there, or broken: trained again


def _save(path: Path, found: Mapping[str, Tensor]) -> None:
    with suppress(StoreError):  # a cache that cannot be written costs time, nothing else
        write_atomically(path, save_tensors({name: value.contiguous() for name, value in found.items()}))
