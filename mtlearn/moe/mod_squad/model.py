"""A vision transformer with mixtures of experts and a head a task, and the tasks' own losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.experts import Routes
from mtlearn.moe.mod_squad.mixtures import COMMON, Mixture, MoEAttention, MoEMLP, Parts

Batch = tuple[Tensor, Tensor]  # images, labels


class MLP(nn.Sequential):
    """The dense perceptron of a block."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Attention(nn.Module):
    """Dense attention; with ``shared`` one key and one value projection serve all heads (multi-query attention).

    Args:
        width, head_width: of a token, of a head.
        heads: how many.
        shared: what :class:`MoEAttention` is when all its heads are used with gate 1.
    """

    def __init__(self, width: int, head_width: int, heads: int, *, shared: bool = False) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        inner, kept = heads * head_width, head_width if shared else heads * head_width
        self.query, self.output = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)
        self.key, self.value = nn.Linear(width, kept, bias=False), nn.Linear(width, kept, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) to the same shape."""
        query, key, value = (
            layer(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2).expand(-1, self.heads, -1, -1)
            for layer in (self.query, self.key, self.value)
        )  # (batch, heads, length, head width)
        changed: Tensor = self.output(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return changed


@dataclass(frozen=True)
class Head:
    """What is predicted for a task.

    Attributes:
        kind: ``image``: one class of an image, from the mean over its tokens; ``pixel``: a class of every pixel; ``cell``: for every patch whether an
            object's centre lies in it, and where in it.
        classes: of ``image`` and ``pixel``.
    """

    kind: Literal["image", "pixel", "cell"]
    classes: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("image", "pixel", "cell") or self.classes < 1:
            raise ValueError(f"kind must be 'image', 'pixel' or 'cell' and classes at least 1, got {self.kind!r}, {self.classes}")

    def outputs(self, patch: int) -> int:
        """Numbers that the head's linear layer gives for a token or an image."""
        return {"image": self.classes, "pixel": self.classes * patch**2, "cell": 3}[self.kind]


@dataclass(frozen=True)
class Shape:
    """Sizes of a modular transformer; the defaults are the laptop's.

    Attributes:
        channels, size, patch: of an image, pixels a side, pixels a side of a patch.
        width, depth: of a token; blocks. Even blocks have an attention of experts and a dense MLP, odd ones dense attention and an MLP of experts.
        heads, top_heads, head_width: head-experts, how many a token uses, their width.
        experts, top_experts, hidden: MLP experts, how many a token visits, their hidden units.
        dense: no mixtures: layers of the same cost for a token in their place.
        task_embedding: add a vector of the task to all tokens before every block, as the predecessor does.
    """

    channels: int = 3
    size: int = 16
    patch: int = 4
    width: int = 24
    depth: int = 4
    heads: int = 6
    top_heads: int = 3
    head_width: int = 8
    experts: int = 8
    top_experts: int = 2
    hidden: int = 24
    dense: bool = False
    task_embedding: bool = False

    def __post_init__(self) -> None:
        if self.size % self.patch:
            raise ValueError(f"patch must divide size={self.size}, got {self.patch}")
        if not 1 <= self.top_heads <= self.heads or not 1 <= self.top_experts <= self.experts:
            raise ValueError(
                f"k must be between 1 and the number of experts: top_heads={self.top_heads} of {self.heads}, "
                f"top_experts={self.top_experts} of {self.experts}"
            )


class Block(nn.Module):
    """Pre-norm attention and MLP, one of them a mixture (or neither, where the shape is dense)."""

    def __init__(self, shape: Shape, number: int, routers: Sequence[str], start: float) -> None:
        super().__init__()
        width, even = shape.width, number % 2 == 0
        options = {"tasks": routers, "start": start}
        self.attention: nn.Module
        self.mlp: nn.Module
        if even and not shape.dense:
            self.attention = MoEAttention(width, shape.head_width, num_experts=shape.heads, k=shape.top_heads, **options)  # type: ignore[arg-type]
        else:
            self.attention = Attention(width, shape.head_width, shape.top_heads, shared=even)
        if even or shape.dense:
            self.mlp = MLP(width, shape.top_experts * shape.hidden)
        else:
            self.mlp = MoEMLP(width, shape.hidden, num_experts=shape.experts, k=shape.top_experts, **options)  # type: ignore[arg-type]
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, parts: Parts, routes: Mapping[str, list[Routes]]) -> Tensor:
        """(batch, length, width) to the same shape; what was routed is appended to each task's ``routes``."""
        for norm, layer in ((self.before_attention, self.attention), (self.before_mlp, self.mlp)):
            if isinstance(layer, Mixture):
                change, taken = layer(norm(x), parts)
                for task in parts:
                    routes[task].append(taken[task])
            else:
                change = layer(norm(x))
            x = x + change
        return x


class Output(NamedTuple):
    """What the model says of the images of one task: the prediction, and the routes of its mixtures, bottom up."""

    prediction: Tensor
    routes: list[Routes]


class ModularTransformer(nn.Module):
    """A vision transformer with mixtures of experts, a router a task and layer, and a head a task.

    Args:
        shape: its sizes.
        heads: task to what is predicted.
        common: one router for all tasks in each layer, as in V-MoE.
        start: standard deviation of the routers' first weights.
    """

    def __init__(self, shape: Shape, heads: Mapping[str, Head], *, common: bool = False, start: float = 0.02) -> None:
        super().__init__()
        if not heads:
            raise ValueError("heads must name at least one task")
        self.shape, self.tasks, self.common = shape, dict(heads), common
        side = shape.size // shape.patch
        self.embed = nn.Conv2d(shape.channels, shape.width, shape.patch, stride=shape.patch)
        self.position = nn.Parameter(0.02 * torch.randn(side**2, shape.width))
        # heads and dense layers first: they start alike whatever the mixtures draw
        self.heads = nn.ModuleDict({task: nn.Linear(shape.width, head.outputs(shape.patch)) for task, head in heads.items()})
        embedded = list(heads) if shape.task_embedding else []
        self.task_vectors = nn.ParameterDict({task: nn.Parameter(0.02 * torch.randn(shape.depth, shape.width)) for task in embedded})
        routers = [COMMON] if common else list(heads)
        self.blocks = nn.ModuleList(Block(shape, number, routers, start) for number in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width)

    @property
    def mixtures(self) -> list[Mixture]:
        """The layers that are mixtures, bottom up."""
        return [module for module in self.modules() if isinstance(module, Mixture)]

    def forward(self, images: Tensor, task: str) -> Output:
        """Images of one task, (batch, channels, height, width), to its prediction and the routes.

        The prediction is (batch, classes), (batch, classes, height, width) or (batch, 3, rows, columns): the logit of an object's presence,
        then where in its cell.
        """
        return self.forward_all({task: images})[task]

    def forward_all(self, images: Mapping[str, Tensor]) -> dict[str, Output]:
        """Task to images, to its prediction and routes: one pass, in which each image meets its own routers and head alone."""
        shape = self.shape
        for task, part in images.items():
            if task not in self.tasks:
                raise ValueError(f"task must be one of {', '.join(self.tasks)}, got {task!r}")
            if part.dim() != 4 or part.shape[1:] != (shape.channels, shape.size, shape.size):
                raise ValueError(f"images must be (batch, {shape.channels}, {shape.size}, {shape.size}), those of {task} are {tuple(part.shape)}")
        parts = {task: len(part) for task, part in images.items()}
        x = self.embed(torch.cat(list(images.values()))).flatten(2).transpose(1, 2) + self.position  # (batch, length, width)
        routes: dict[str, list[Routes]] = {task: [] for task in parts}
        vectors = None
        if shape.task_embedding:
            rows = torch.repeat_interleave(torch.arange(len(parts), device=x.device), torch.tensor(list(parts.values()), device=x.device))
            vectors = torch.stack([self.task_vectors[task] for task in parts])[rows]  # (batch, depth, width)
        for number, block in enumerate(self.blocks):
            if vectors is not None:
                x = x + vectors[:, number, None]
            x = block(x, parts, routes)
        said = self.norm(x).split(list(parts.values()))
        return {task: Output(self._predict(part, task), routes[task]) for task, part in zip(parts, said, strict=True)}

    def _predict(self, x: Tensor, task: str) -> Tensor:
        head, side = self.tasks[task], self.shape.size // self.shape.patch
        if head.kind == "image":
            predicted: Tensor = self.heads[task](x.mean(1))
            return predicted
        cells: Tensor = self.heads[task](x).transpose(1, 2).unflatten(2, (side, side))  # (batch, outputs, rows, columns)
        return F.pixel_shuffle(cells, self.shape.patch) if head.kind == "pixel" else cells


def task_loss(head: Head, prediction: Tensor, labels: Tensor, *, present_weight: float = 3.0) -> Tensor:
    """The loss of a task.

    Args:
        head: what is predicted.
        prediction: of :class:`ModularTransformer`.
        labels: ``image``: (batch,) int64; ``pixel``: (batch, height, width) int64; ``cell``: (batch, 3, rows, columns): presence, then offset.
        present_weight: of ``cell``: weight of a cell with an object in the cross-entropy of presence.

    Raises:
        ValueError: labels of a shape that does not fit the head's.
    """
    wanted = {"image": prediction.shape[:1], "pixel": prediction.shape[:1] + prediction.shape[2:], "cell": prediction.shape}[head.kind]
    if labels.shape != wanted:
        raise ValueError(f"a head of kind {head.kind!r} gives {tuple(prediction.shape)} and needs labels {tuple(wanted)}, got {tuple(labels.shape)}")
    if head.kind != "cell":
        return F.cross_entropy(prediction, labels)
    present = labels[:, 0]
    found = F.binary_cross_entropy_with_logits(prediction[:, 0], present, pos_weight=prediction.new_tensor(present_weight))
    squares = (prediction[:, 1:] - labels[:, 1:]).square().mean(1)  # (batch, rows, columns)
    return found + (squares * present).sum() / present.sum().clamp(min=1)


def split_by_task(images: Tensor, labels: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Batch]:
    """A mixed batch as one batch a task.

    Args:
        images: (batch, channels, height, width).
        labels: task to the rows (n,) of its images, and their labels (n, ...).

    Raises:
        ValueError: an image without a task, or with labels of two.
    """
    owner = [""] * len(images)
    for task, (rows, values) in labels.items():
        if len(rows) != len(values):
            raise ValueError(f"{task} has {len(rows)} rows and {len(values)} labels; it must have as many of each")
        for row in rows.tolist():
            if not 0 <= row < len(owner):
                raise ValueError(f"{task} names row {row}; the batch has rows 0 to {len(owner) - 1}")
            if owner[row]:
                raise ValueError(f"sample {row} has labels of two tasks, {owner[row]} and {task}: in heterogeneous training each has one")
            owner[row] = task
    if "" in owner:
        raise ValueError(f"sample {owner.index('')} has no task: give it rows in the labels of one")
    return {task: (images[rows], values) for task, (rows, values) in labels.items() if len(rows)}


@dataclass(frozen=True)
class Size:
    """Parameters of a model that its tasks share, of routers, of heads, of experts; and all."""

    experts: int
    routers: int
    heads: int
    total: int


def size_of(model: ModularTransformer) -> Size:
    """Count a model's parameters."""

    def count(*modules: nn.Module) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    return Size(count(*(m.bank for m in model.mixtures)), count(*(m.routers for m in model.mixtures)), count(model.heads), count(model))
