r"""TaskExpert: for every image, each task mixes expert features anew, and carries a memory from layer to layer.

Hanrong Ye, Dan Xu, "TaskExpert: Dynamically Assembling Multi-Task Representations with Memorial Mixture-of-Experts", ICCV 2023, arXiv:2307.15324.

**Idea.** Several dense tasks (segmentation, depth, ...) usually decode one shared feature, with weights that are the same for every image: a *static*
decoder. TaskExpert splits the feature of a backbone's layer into N task-generic expert features, and a gate for each task looks at the whole image
and says how to mix them. What a task has made so far is its memory: an (N + 1)-th expert for this task alone, read at the next layer, written
after.

**One layer**, the memorial mixture of experts (:class:`MMoE`), with the feature :math:`F^l` and the memory :math:`M^{l-1}_t` of each task t:

.. math::
    E^l_i &= \mathrm{Exp}^l_i(F^l), \quad i = 1..N & \text{(shared by all tasks)} \\
    R^l_t &= \mathrm{Read}^l_t(M^{l-1}_t) & \text{(task t alone)} \\
    g^l_t &= \mathrm{softmax}\big(\mathrm{MLP}^l_t[\mathrm{pool}(F^l);\, \mathrm{pool}(M^{l-1}_t)]\big) \in \mathbb R^{N+1} & \text{(per image)} \\
    D^l_t &= \sum_{i=1}^N g^l_{t,i} E^l_i + g^l_{t,N+1} R^l_t & \text{(dynamic assembly)} \\
    M^l_t &= M^{l-1}_t + \mathrm{Write}^l_t(D^l_t)

:math:`M^0_t` is a learned vector, the same at every position. After the last layer a head for each task reads :math:`M^L_t` (:class:`Heads`). The
loss is :math:`\sum_t w_t L_t` (:func:`multitask_loss`). The static counterpart has learned logits instead of the MLP (:class:`StaticGate`).

**What is ours.** We have read the abstract and the figure of the method; there is no public code of this model. Where the paper is silent we fixed
one choice. Expert: 1x1 convolution, depthwise 3x3, BatchNorm, GELU. Read: 3x3 convolution. Write: 1x1 convolution (``write="identity"`` has none).
pool: mean, maximum and minimum over positions, side by side. :class:`PositionGate` is the gate of a published relative, MLoRE (CVPR 2024): it also
learns a weight for every position, so it can tell *where* something is, which pooling throws away.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["classes", "edge", "value"]
GateKind = Literal["context", "position", "static"]
Pool = Literal["mean", "max", "min"]
POOLS: tuple[Pool, ...] = get_args(Pool)
IGNORED = 255  # a class label that counts for nothing


@dataclass(frozen=True)
class Task:
    """A dense task.

    Attributes:
        name: of its prediction and its target.
        kind: ``classes`` (cross-entropy), ``edge`` (weighted binary cross-entropy on one logit), ``value`` (L1).
        channels: of its prediction.
        weight: w_t of the loss.
        positive: of ``edge``, the weight of an edge pixel; that of any other is 1 - positive.
    """

    name: str
    kind: Kind
    channels: int
    weight: float = 1.0
    positive: float = 0.95


PASCAL_TASKS = (
    Task("semseg", "classes", 21, 1),
    Task("parts", "classes", 7, 2),
    Task("saliency", "classes", 2, 5),
    Task("boundary", "edge", 1, 50),
    Task("normals", "value", 3, 10),
)
NYUD_TASKS = (
    Task("segmentation", "classes", 40, 1),
    Task("depth", "value", 1, 1),
    Task("normals", "value", 3, 10),
    Task("boundary", "edge", 1, 50),
)


# one layer


class Experts(nn.Module):
    """The N expert networks of one layer, side by side as the channels of one network: (B, C, H, W) to (B, N, R, H, W)."""

    def __init__(self, channels: int, num_experts: int, width: int) -> None:
        super().__init__()
        if num_experts < 1 or width < 1:
            raise ValueError(f"there must be at least one expert and its width at least 1, got num_experts={num_experts}, width={width}")
        self.num_experts, everyone = num_experts, num_experts * width
        self.project = nn.Conv2d(channels, everyone, 1)  # every expert its own sub-space
        self.context = nn.Conv2d(everyone, everyone, 3, padding=1, groups=everyone, bias=False)  # depthwise: what is around
        self.norm = nn.BatchNorm2d(everyone)

    def forward(self, feature: Tensor) -> Tensor:
        """What every expert makes of the feature."""
        return torch.unflatten(F.gelu(self.norm(self.context(self.project(feature)))), 1, (self.num_experts, -1))


class TaskLinear(nn.Module):
    """A linear layer for each of T tasks: (B, T, in) to (B, T, out)."""

    def __init__(self, tasks: int, wide: int, narrow: int) -> None:
        super().__init__()
        self.weight = nn.Parameter((2 * torch.rand(tasks, wide, narrow) - 1) / wide**0.5)
        self.bias = nn.Parameter(torch.zeros(tasks, narrow))

    def forward(self, x: Tensor) -> Tensor:
        """Each task's own map."""
        return torch.einsum("bti,tio->bto", x, self.weight) + self.bias


def pool(x: Tensor, pools: Sequence[Pool] = POOLS) -> Tensor:
    """Mean, maximum and minimum over positions, side by side: (..., C, H, W) to (..., pools * C)."""
    flat = x.flatten(-2)
    taken = {"mean": lambda: flat.mean(-1), "max": lambda: flat.amax(-1), "min": lambda: flat.amin(-1)}
    return torch.cat([taken[name]() for name in pools], -1)


class ContextGate(nn.Module):
    """The dynamic gate: a multilayer perceptron for each task on the pooled feature and, where ``memory_width`` is not 0, its pooled memory."""

    def __init__(self, tasks: int, channels: int, choices: int, *, memory_width: int, hidden: int, pools: Sequence[Pool] = POOLS) -> None:
        super().__init__()
        if not pools or set(pools) - set(POOLS):
            raise ValueError(f"pools must be some of {', '.join(POOLS)}, got {tuple(pools)}")
        self.tasks, self.pools, self.memory_width = tasks, tuple(pools), memory_width
        self.first = TaskLinear(tasks, len(pools) * (channels + memory_width), hidden)
        self.last = TaskLinear(tasks, hidden, choices)

    def forward(self, feature: Tensor, memory: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        """Logits (B, T, choices) from the feature (B, C, H, W) and the memory (B, T, R, H, W)."""
        seen = pool(feature, self.pools)[:, None].expand(-1, self.tasks, -1)  # (B, T, pools * C)
        if self.memory_width:
            assert memory is not None
            seen = torch.cat([seen, pool(memory, self.pools)], -1)
        logits: Tensor = self.last(F.gelu(self.first(seen)))
        return logits


class PositionGate(nn.Module):
    """MLoRE's gate: LayerNorm of a 1x1 projection, its mean over positions beside a *learned* weighted sum over positions, one linear map, noise.

    The weights over positions tell a cue on the left from one on the right. In training the logits get Gaussian noise of a learned deviation.
    """

    def __init__(self, tasks: int, channels: int, choices: int, *, memory_width: int, width: int, positions: int) -> None:
        super().__init__()
        self.tasks, self.memory_width, self.positions = tasks, memory_width, positions
        self.project = TaskLinear(tasks, channels + memory_width, width)
        self.norm = nn.LayerNorm(width)
        self.over_positions = TaskLinear(tasks, positions, 1)
        self.to_logits, self.to_noise = TaskLinear(tasks, 2 * width, choices), TaskLinear(tasks, 2 * width, choices)

    def forward(self, feature: Tensor, memory: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        """Logits (B, T, choices); ``generator`` is the source of the noise."""
        found = feature.flatten(-2).mT[:, None].expand(-1, self.tasks, -1, -1)  # (B, T, HW, C)
        if found.shape[2] != self.positions:
            raise ValueError(f"this gate has weights for {self.positions} positions, the feature has {found.shape[2]}")
        if self.memory_width:
            assert memory is not None
            found = torch.cat([found, memory.flatten(-2).mT], -1)
        x = self.norm(torch.einsum("btpi,tio->btpo", found, self.project.weight) + self.project.bias[:, None])
        where = torch.einsum("btpo,tp->bto", x, self.over_positions.weight[..., 0]) + self.over_positions.bias
        seen = torch.cat([x.mean(2), where], -1)  # (B, T, 2 * width)
        logits: Tensor = self.to_logits(seen)
        if self.training:
            noise = torch.randn(logits.shape, generator=generator, device=logits.device, dtype=logits.dtype)
            logits = logits + noise * F.softplus(self.to_noise(seen))
        return logits


class StaticGate(nn.Module):
    """The static counterpart: learned logits for each task that see nothing of the image."""

    def __init__(self, tasks: int, choices: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(tasks, choices))

    def forward(self, feature: Tensor, memory: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        """The same logits for every image: (B, T, choices)."""
        return self.logits.expand(len(feature), -1, -1)


class Assembled(NamedTuple):
    """What one layer gives: the memory after it, the gates (B, T, choices) and what was assembled, both (B, T, R, H, W)."""

    memory: Tensor
    gates: Tensor
    decoded: Tensor


def assemble(gates: Tensor, experts: Tensor, read: Tensor | None = None) -> Tensor:
    """Dynamic assembly D_t = sum_i g_{t,i} E_i + g_{t,N+1} R_t.

    Args:
        gates: (B, T, N), or (B, T, N + 1) with ``read``.
        experts: (B, N, ...), shared by the tasks.
        read: (B, T, ...), each task's own.

    Returns:
        (B, T, ...).
    """
    mixed = torch.einsum("btn,bnx->btx", gates[..., : experts.shape[1]], experts.flatten(2))
    mixed = torch.unflatten(mixed, -1, experts.shape[2:])
    return mixed if read is None else mixed + gates[..., -1].reshape(*gates.shape[:2], *[1] * (read.dim() - 2)) * read


class MMoE(nn.Module):
    """One layer: the experts, and for each of T tasks a read of its memory, a gate and a write.

    Args:
        channels: C of the backbone's feature.
        tasks: T.
        num_experts, width: N and R.
        memory: whether there is one; without it there are N choices, and the layer *adds* what it assembled, so that every layer has equal weight.
        sees_memory: whether the gate looks at the memory.
        gate: ``context``, ``position`` or ``static``.
        hidden: width of the gate's hidden layer.
        pools: of the gate ``context``.
        positions: H * W, of the gate ``position``.
        write: ``conv`` or ``identity``.
    """

    def __init__(
        self,
        channels: int,
        tasks: int,
        *,
        num_experts: int = 4,
        width: int = 16,
        memory: bool = True,
        sees_memory: bool = True,
        gate: GateKind = "context",
        hidden: int = 16,
        pools: Sequence[Pool] = POOLS,
        positions: int = 0,
        write: Literal["conv", "identity"] = "conv",
    ) -> None:
        super().__init__()
        if gate not in get_args(GateKind) or write not in ("conv", "identity"):
            raise ValueError(f"gate must be one of {', '.join(get_args(GateKind))} and write 'conv' or 'identity', got {gate!r} and {write!r}")
        self.tasks = tasks
        self.experts = Experts(channels, num_experts, width)
        # the tasks side by side as groups of one convolution: none reads another's memory
        self.read = nn.Conv2d(tasks * width, tasks * width, 3, padding=1, groups=tasks) if memory else None
        self.write = nn.Conv2d(tasks * width, tasks * width, 1, groups=tasks) if memory and write == "conv" else nn.Identity()
        choices, memory_width = num_experts + memory, width if memory and sees_memory else 0
        if gate == "static":
            self.gate: nn.Module = StaticGate(tasks, choices)
        elif gate == "position":
            self.gate = PositionGate(tasks, channels, choices, memory_width=memory_width, width=width, positions=positions)
        else:
            self.gate = ContextGate(tasks, channels, choices, memory_width=memory_width, hidden=hidden, pools=pools)

    def forward(self, feature: Tensor, memory: Tensor, *, gates: Tensor | None = None, generator: torch.Generator | None = None) -> Assembled:
        """Assemble each task's feature and write it.

        Args:
            feature: (B, C, H, W).
            memory: (B, T, R, H, W), of this batch.
            gates: (B, T, choices) to use instead of the gate's own, or (T, choices) for all images.
            generator: of the noise of a ``position`` gate in training.

        Raises:
            ValueError: the memory is of another batch or size; the given gates are no gates.
        """
        if memory.shape[:2] != (len(feature), self.tasks) or memory.shape[-2:] != feature.shape[-2:]:
            batch, _, height, wide = feature.shape
            raise ValueError(f"the memory must be of this batch: ({batch}, {self.tasks}, R, {height}, {wide}), got {tuple(memory.shape)}")
        experts = self.experts(feature)
        read = None if self.read is None else torch.unflatten(self.read(memory.flatten(1, 2)), 1, memory.shape[1:3])
        choices = experts.shape[1] + (read is not None)
        if gates is None:
            gates = self.gate(feature, memory, generator).softmax(-1)
        else:
            gates = _check_gates(gates, self.tasks, choices).expand(len(feature), -1, -1)
        decoded = assemble(gates, experts, read)
        written = torch.unflatten(self.write(decoded.flatten(1, 2)), 1, decoded.shape[1:3])
        return Assembled(memory + written, gates, decoded)


def _check_gates(gates: Tensor, tasks: int, choices: int) -> Tensor:
    if gates.shape[-2:] != (tasks, choices):
        raise ValueError(f"gates must have shape (B, {tasks}, {choices}) or ({tasks}, {choices}), got {tuple(gates.shape)}")
    if not gates.isfinite().all():
        where = (~gates.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"gates must be finite; the one at {where} is {gates[tuple(where)].item()}")
    return gates


# all layers


class Heads(nn.Module):
    """A prediction head for each task: 3x3 convolution, BatchNorm, ReLU, 1x1 convolution, and up to the picture's size.

    Args:
        tasks: what is predicted.
        width: R of the features.
        scale: the picture's size over the features'.
        up: ``bilinear``, or ``shuffle``: the 1x1 convolution gives scale^2 values a position, which become its pixels.
    """

    def __init__(self, tasks: Sequence[Task], width: int, *, scale: int = 2, up: Literal["bilinear", "shuffle"] = "shuffle") -> None:
        super().__init__()
        if len({task.name for task in tasks}) < len(tasks) or not tasks:
            raise ValueError(f"tasks must have different names and there must be one, got {[task.name for task in tasks]}")
        self.tasks, self.scale, self.up = tuple(tasks), scale, up
        count, more = len(tasks), scale**2 if up == "shuffle" else 1
        self.local = nn.Conv2d(count * width, count * width, 3, padding=1, groups=count, bias=False)
        self.norm = nn.BatchNorm2d(count * width)
        self.last = nn.ModuleList(nn.Conv2d(width, task.channels * more, 1) for task in tasks)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """(B, T, R, H, W) to each task's prediction (B, channels, scale H, scale W)."""
        x = torch.unflatten(F.relu(self.norm(self.local(features.flatten(1, 2)))), 1, features.shape[1:3])
        found = {task.name: last(own) for task, last, own in zip(self.tasks, self.last, x.unbind(1), strict=True)}
        if self.up == "shuffle":
            return {name: F.pixel_shuffle(y, self.scale) for name, y in found.items()}
        return {name: F.interpolate(y, scale_factor=self.scale, mode="bilinear", align_corners=False) for name, y in found.items()}


class Decoded(NamedTuple):
    """What a decoder gives.

    Attributes:
        predictions: of each task by name, (B, channels, height, width).
        gates: of each layer, (B, T, choices); empty where a decoder has none.
        memory: (B, T, R, H, W) after the last layer, what the heads read.
    """

    predictions: dict[str, Tensor]
    gates: tuple[Tensor, ...]
    memory: Tensor


class TaskExpert(nn.Module):
    """The decoder: an :class:`MMoE` at each chosen layer of a backbone, a memory for each task through all of them, and the heads.

    Args:
        tasks: what is predicted.
        channels: C of the features, or one for each chosen layer.
        layers: positions in the backbone's list of features, increasing.
        num_experts, width: N and R.
        memory: with False every task's feature is the plain sum over the layers.
        scale, up: of the :class:`Heads`.
        layer: further options of :class:`MMoE`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        channels: int | Sequence[int],
        *,
        layers: Sequence[int] = (0, 1, 2),
        num_experts: int = 4,
        width: int = 16,
        memory: bool = True,
        scale: int = 2,
        up: Literal["bilinear", "shuffle"] = "shuffle",
        **layer: Any,
    ) -> None:
        super().__init__()
        if not layers or layers[0] < 0 or any(b <= a for a, b in itertools.pairwise(layers)):
            raise ValueError(f"layers must be positions from 0 in increasing order, got {tuple(layers)}")
        wide = (channels,) * len(layers) if isinstance(channels, int) else tuple(channels)
        if len(wide) != len(layers):
            raise ValueError(f"channels must be one number or one for each of the {len(layers)} layers, got {wide}")
        self.layers, self.channels = tuple(layers), wide
        options = {"num_experts": num_experts, "width": width, "memory": memory, **layer}
        self.heads = Heads(tasks, width, scale=scale, up=up)
        self.start = nn.Parameter(0.02 * torch.randn(len(tasks), width)) if memory else None  # M^0
        self.width = width
        self.mixtures = nn.ModuleList(MMoE(c, len(tasks), **options) for c in wide)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What is predicted, in the order of the gates' second axis."""
        return self.heads.tasks

    def index(self, task: str) -> int:
        """The number of a task. ValueError lists them."""
        names = [one.name for one in self.tasks]
        if task not in names:
            raise ValueError(f"there is no task {task!r}; the tasks are {', '.join(names)}")
        return names.index(task)

    def forward(
        self,
        features: Sequence[Tensor],
        *,
        gates: Sequence[Tensor | None] | None = None,
        cut_memory: bool = False,
        generator: torch.Generator | None = None,
    ) -> Decoded:
        """Decode all tasks from a backbone's features.

        Args:
            features: of every layer of the backbone, (B, C, H, W) each; those of ``layers`` are read.
            gates: for each chosen layer, gates instead of its own (see :class:`MMoE`), or None.
            cut_memory: every layer finds M^0 instead of what was written before: what the last layer alone can do.
            generator: of the noise of ``position`` gates in training.
        """
        chosen = self._chosen(features)
        batch, _, height, width = chosen[0].shape
        if self.start is None:
            start = chosen[0].new_zeros(batch, len(self.tasks), self.width, height, width)
        else:
            start = self.start[None, :, :, None, None].expand(batch, -1, -1, height, width)  # made here: no memory outlives its batch
        given = [None] * len(chosen) if gates is None else list(gates)
        if len(given) != len(chosen):
            raise ValueError(f"gates must be given for each of the {len(chosen)} layers (None for its own), got {len(given)}")
        memory, used = start, []
        for module, feature, own in zip(self.mixtures, chosen, given, strict=True):
            memory, weights, _ = module(feature, start if cut_memory else memory, gates=own, generator=generator)
            used.append(weights)
        return Decoded(self.heads(memory), tuple(used), memory)

    def _chosen(self, features: Sequence[Tensor]) -> list[Tensor]:
        if len(features) <= self.layers[-1]:
            raise ValueError(f"layer {self.layers[-1]} is to be read, the backbone gave {len(features)} features, numbered from 0")
        chosen = [features[layer] for layer in self.layers]
        first = chosen[0].shape
        for layer, feature, channels in zip(self.layers, chosen, self.channels, strict=True):
            if feature.dim() != 4 or feature.shape[1] != channels:
                raise ValueError(f"the feature of layer {layer} must have shape (B, {channels}, H, W), got {tuple(feature.shape)}")
            if feature.shape[0] != first[0] or feature.shape[-2:] != first[-2:]:
                sizes = f"layer {self.layers[0]} has {tuple(first)}, layer {layer} has {tuple(feature.shape)}"
                raise ValueError(f"a memory needs features of one batch and size: {sizes}; resize them")
        return chosen


class DenseModel(nn.Module):
    """A backbone and a decoder: pictures to predictions. Any backbone whose output is a list of feature maps will do."""

    def __init__(self, backbone: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.backbone, self.decoder = backbone, decoder

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What is predicted."""
        tasks: tuple[Task, ...] = self.decoder.tasks  # type: ignore[assignment]  # every decoder here has them
        return tasks

    def forward(self, images: Tensor, **options: Any) -> Decoded:
        """(B, channels, height, width) to :class:`Decoded`; ``options`` are the decoder's."""
        decoded: Decoded = self.decoder(self.backbone(images), **options)
        return decoded


def as_map(tokens: Tensor, grid: tuple[int, int], *, skip: int = 0) -> Tensor:
    """Tokens of a vision transformer as a feature map: (B, skip + H * W, C) to (B, C, H, W); the first ``skip`` are class tokens."""
    if tokens.shape[1] != skip + grid[0] * grid[1]:
        raise ValueError(f"{skip} + {grid[0]} x {grid[1]} tokens are needed, got {tokens.shape[1]}")
    return torch.unflatten(tokens[:, skip:].mT, -1, grid)


# loss and what the gates do


def task_loss(task: Task, prediction: Tensor, target: Tensor) -> Tensor:
    """The loss of one task, a mean over pixels.

    Args:
        task: says which.
        prediction: (B, channels, H, W).
        target: ``classes`` (B, H, W) int64 with 255 where nothing is known; ``edge`` (B, H, W) of 0 to 1; ``value`` (B, H, W) for one channel,
            (B, channels, H, W) for more, NaN where nothing is known.
    """
    if task.kind == "classes":
        return F.cross_entropy(prediction, target, ignore_index=IGNORED)
    wanted = target[:, None] if target.dim() == 3 else target
    if task.kind == "edge":
        weight = torch.where(wanted > 0.5, task.positive, 1 - task.positive)
        return F.binary_cross_entropy_with_logits(prediction, wanted, weight)
    known = ~wanted.isnan()
    return (prediction - wanted).abs()[known].mean()


def multitask_loss(tasks: Sequence[Task], predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """sum_t w_t L_t.

    Raises:
        ValueError: a target of no task, or a task without target.
    """
    names = [task.name for task in tasks]
    if set(targets) != set(names):
        unknown, missing = sorted(set(targets) - set(names)), sorted(set(names) - set(targets))
        raise ValueError(f"targets must be those of the tasks {', '.join(names)}; unknown: {unknown or 'none'}, missing: {missing or 'none'}")
    return torch.stack([task.weight * task_loss(task, predictions[task.name], targets[task.name]) for task in tasks]).sum()


class GateStatistics(NamedTuple):
    """What the gates of a set of images do, for each layer and task.

    Attributes:
        mean: (L, T, choices) over images.
        deviation: (L, T, choices), the standard deviation over images; about 0 where a gate does not look at the image.
        entropy: (L, T) of the mean gate, in nats; log(choices) where all are used alike.
        dynamic: (L, T) the mean over choices of the variance over images.
    """

    mean: Tensor
    deviation: Tensor
    entropy: Tensor
    dynamic: Tensor


def gate_statistics(gates: Sequence[Tensor]) -> GateStatistics:
    """Summarise the gates of each layer, (B, T, choices)."""
    stacked = torch.stack(list(gates))  # (L, B, T, choices)
    mean, variance = stacked.mean(1), stacked.var(1, correction=0)
    return GateStatistics(mean, variance.sqrt(), -torch.special.xlogy(mean, mean).sum(-1), variance.mean(-1))
