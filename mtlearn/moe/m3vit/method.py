r"""M3ViT (Liang and others, NeurIPS 2022).

Hanxue Liang, Zhiwen Fan, Rishov Sarkar, Ziyu Jiang, Tianlong Chen, Kai Zou, Yu Cheng, Cong Hao, Zhangyang Wang: M³ViT: Mixture-of-Experts Vision
Transformer for Efficient Multi-task Learning with Model-Accelerator Co-design. https://arxiv.org/abs/2210.14793

**Idea.** In a shared encoder the gradients of different tasks collide, and even one task alone has to run all of it. Here every second block of a
vision transformer has a mixture of experts in the place of its perceptron, and the *task* has a say in the routing. Each task then trains and runs
a thin path of its own through shared experts.

**Block** (pre-norm), with an MoE in blocks 1, 3, 5, ... and a plain perceptron in the others:

.. math:: x \leftarrow x + \mathrm{MSA}(\mathrm{LN}(x)), \qquad x \leftarrow x + \mathrm{MoE}(\mathrm{LN}(x), t)

**Gate.** :math:`p = \mathrm{softmax}(\ell)` over all E experts, then the K largest, *not* renormalised:

.. math:: y = \sum_{e \in \mathrm{TopK}(p)} p_e\, \mathrm{Expert}_e(x)

The logits depend on the task in one of two ways:

- *multi-gate*: a matrix a task, :math:`\ell = x W_t`;
- *task-conditioned*: one matrix over the token and a task vector, :math:`\ell = [x; c_t] W = x W_1 + c_t W_2`, where :math:`c_t` is made from the
  one-hot task by a small perceptron that all layers share. The second term is the same for all tokens: it prefers experts, it does not compare
  tokens.

In training, normal noise of standard deviation :math:`\sigma / E` may be added to the logits.

**Loss.** One pass a task; :math:`L = \sum_t w_t L_t + \lambda \sum_{gates} [\mathrm{CV}^2(\mathrm{importance}) + \mathrm{CV}^2(\mathrm{load})]`, with
importance and load counted within each task's pass.

**Inference.** One task runs alone: its gate picks K of E experts a token, and experts that none of its tokens picks are never touched
(:func:`pathway`). The hardware half, computing expert by expert instead of token by token, is in :mod:`mtlearn.moe.m3vit.reordering`.

**What differs from the published code** (read in full; the paper's tables from memory). The load under noise compares logits with logits; the
published one compares them with softmax values. The window of experts a task may use starts where it should; the published start is summed up in a
loop and runs past the last expert. Both bounds for the gate's first weights are offered: 1/sqrt(E), as published by an accident of the parameter's
layout, and 1/sqrt(d). All tasks' passes are one batched call.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mtlearn.layers.attention import SelfAttention
from mtlearn.layers.experts import Experts, Router, Routes, cv_squared, importance_by_group, load_by_group, stay_probability, top_k_routes

Gating = Literal["shared", "multi", "conditioned"]


@dataclass(frozen=True)
class Visits:
    """What one gate did in one call, for losses and pictures.

    Attributes:
        routes: over all tokens of all passes.
        task: (tokens,) int64, the task of each token's pass.
        clean: (tokens, E) logits without noise.
        std: of the noise, a number; 0 without.
        k: experts a token.
    """

    routes: Routes
    task: Tensor
    clean: Tensor
    std: float
    k: int


class Encoded(NamedTuple):
    """Tokens after the last block (passes, batch, tokens, width), and the visits of each MoE layer in order."""

    features: Tensor
    visits: tuple[Visits, ...]


class Predicted(NamedTuple):
    """Output of every task by name, and the visits of each MoE layer in order."""

    outputs: dict[str, Tensor]
    visits: tuple[Visits, ...]


class TaskGate(nn.Module):
    """Router logits that may depend on the task.

    Args:
        width: d of a token.
        num_experts: E.
        num_tasks: T.
        gating: ``shared`` (the task has no say), ``multi`` or ``conditioned``.
        task_width: numbers of the task vector, for ``conditioned`` alone.
        bound: first weights are uniform in plus or minus this; 1 / sqrt(E) when omitted, as in the published code.
    """

    def __init__(self, width: int, num_experts: int, num_tasks: int, *, gating: Gating, task_width: int = 0, bound: float | None = None) -> None:
        super().__init__()
        if gating not in ("shared", "multi", "conditioned"):
            raise ValueError(f"gating must be 'shared', 'multi' or 'conditioned', got {gating!r}")
        if gating == "conditioned" and task_width < 1:
            raise ValueError(f"a conditioned gate needs task_width of at least 1, got {task_width}")
        if gating != "conditioned" and task_width:
            raise ValueError(f"task_width={task_width} belongs to gating='conditioned'; {gating!r} cannot be combined with it")
        self.gating = gating
        self.router = Router(width + task_width, num_experts, num_tasks=num_tasks if gating == "multi" else 1)
        reach = num_experts**-0.5 if bound is None else bound
        nn.init.uniform_(self.router.weight, -reach, reach)

    def forward(self, x: Tensor, task: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Tokens (n, width), their tasks (n,) and, for ``conditioned``, task vectors (T, task_width) to logits (n, E)."""
        if self.gating == "conditioned":
            assert vectors is not None
            x = torch.cat([x, vectors[task]], -1)
        logits: Tensor = self.router(x, task if self.gating == "multi" else None)
        return logits

    def keep(self, task: int) -> None:
        """Forget the matrices of all other tasks; what is left is a gate that needs no task."""
        if self.gating == "multi":
            self.gating, self.router.num_tasks = "shared", 1
            self.router.weight = nn.Parameter(self.router.weight[task : task + 1].detach().clone())


class TaskEmbedding(nn.Sequential):
    """The perceptron that makes a task vector of a one-hot task: T -> d_t -> d_t (linear, GELU, linear, LayerNorm)."""

    def __init__(self, num_tasks: int, task_width: int) -> None:
        super().__init__(nn.Linear(num_tasks, task_width), nn.GELU(), nn.Linear(task_width, task_width), nn.LayerNorm(task_width))
        self.num_tasks = num_tasks

    def vectors(self) -> Tensor:
        """(T, task_width), one row a task."""
        rows: Tensor = self(torch.eye(self.num_tasks).to(next(self.parameters()).device))
        return rows


class MoELayer(nn.Module):
    """y = sum over the K best experts of p_e Expert_e(x), with p from a :class:`TaskGate`.

    Args:
        gate: gives the logits.
        experts: the experts.
        k: experts a token.
        renormalise: divide the K gates by their sum.
        noise: sigma; the logits get normal noise of sigma / E in training.
        windows: (T, E) bool, the experts each task may use; all when omitted.
    """

    name_of: Tensor
    windows: Tensor | None

    def __init__(
        self, gate: TaskGate, experts: Experts, k: int, *, renormalise: bool = False, noise: float = 0.0, windows: Tensor | None = None
    ) -> None:
        super().__init__()
        if not 1 <= k <= len(experts):
            raise ValueError(f"k must be between 1 and num_experts={len(experts)}, got {k}")
        if noise < 0:
            raise ValueError(f"noise must be at least 0, got {noise}")
        self.gate, self.experts, self.k, self.renormalise, self.std = gate, experts, k, renormalise, noise / len(experts)
        self.register_buffer("name_of", torch.arange(len(experts)))  # where each expert is now; -1 when it was taken out
        self.register_buffer("windows", windows)

    def forward(self, x: Tensor, task: Tensor, vectors: Tensor | None = None, *, prune: float = 0.0) -> tuple[Tensor, Visits]:
        """Tokens (n, width) with their tasks (n,) to what their experts say (n, width), and the visits; gates below ``prune`` are skipped."""
        clean = self.gate(x, task, vectors)
        noisy = clean + self.std * torch.randn_like(clean) if self.training and self.std else clean
        allowed = None if self.windows is None else self.windows[task]
        routes = top_k_routes(noisy, self.k, renormalise=self.renormalise, allowed=allowed)
        if prune:
            routes = routes.where(routes.gate >= prune)
        present = replace(routes, expert=self.name_of[routes.expert], num_experts=len(self.experts))
        change = self.experts(x, present.where(present.expert >= 0))
        return change, Visits(routes, task, clean, self.std if self.training else 0.0, self.k)

    def keep(self, used: Tensor) -> None:
        """Take out all experts but those of the mask ``used`` (E,); the gate, and so the softmax, still knows all E.

        Where none is used one stays, unvisited.
        """
        present = self.name_of >= 0
        kept = used & present
        if not kept.any():
            kept = present & (present.cumsum(0) == 1)
        self.experts = self.experts.subset(self.name_of[kept])
        self.name_of = torch.where(kept, kept.cumsum(0) - 1, -1)


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a perceptron or a mixture of experts."""

    def __init__(self, width: int, heads: int, feed: nn.Module) -> None:
        super().__init__()
        self.before_attention, self.attention = nn.LayerNorm(width), SelfAttention(width, heads)
        self.before_feed, self.feed = nn.LayerNorm(width), feed

    def forward(self, x: Tensor, task: Tensor, vectors: Tensor | None, *, prune: float = 0.0) -> tuple[Tensor, Visits | None]:
        """(passes, batch, tokens, width) to the same shape; ``task`` (passes,)."""
        x = x + self.attention(self.before_attention(x))
        inner = self.before_feed(x)
        if not isinstance(self.feed, MoELayer):
            return x + self.feed(inner), None
        of_token = task[:, None, None].expand(x.shape[:-1]).flatten()
        change, visits = self.feed(inner.flatten(0, -2), of_token, vectors, prune=prune)
        return x + change.view_as(x), visits


class MeanHead(nn.Linear):
    """A linear read-out of the mean token: (batch, tokens, width) to (batch, outputs)."""

    def forward(self, x: Tensor) -> Tensor:
        """Read the mean over the tokens."""
        return super().forward(x.mean(-2))


class M3ViT(nn.Module):
    """A vision transformer whose MoE layers know the task.

    Args:
        heads_of: task name to the module that reads the tokens (batch, tokens, width) for it; the order numbers the tasks.
        token_width: numbers of an input token (a flattened patch).
        width, depth, attention_heads: of the transformer.
        num_experts: E; 0 for a dense model.
        k: experts a token.
        hidden: units of an expert; the perceptrons of the other blocks have ``k * hidden``, so that all blocks cost the same.
        gating, task_width, bound, renormalise, noise: see :class:`TaskGate` and :class:`MoELayer`.
        window: experts that each task may use, see :func:`expert_windows`; all when omitted.
        positions: tokens with a learned position each; 0 for a set of tokens.
        class_token: whether a learned token stands before the others.
        final_norm: whether a LayerNorm follows the last block.
        task_token: add a learned vector of the task to every token (the baseline that the paper lacks).
    """

    def __init__(
        self,
        heads_of: Mapping[str, nn.Module],
        *,
        token_width: int,
        width: int = 384,
        depth: int = 12,
        attention_heads: int = 6,
        num_experts: int = 16,
        k: int = 4,
        hidden: int = 384,
        gating: Gating = "multi",
        task_width: int = 0,
        bound: float | None = None,
        renormalise: bool = False,
        noise: float = 0.0,
        window: int | None = None,
        positions: int = 0,
        class_token: bool = False,
        final_norm: bool = True,
        task_token: bool = False,
    ) -> None:
        super().__init__()
        if not heads_of:
            raise ValueError("at least one task with a head is needed")
        if k < 1:
            raise ValueError(f"k must be between 1 and num_experts={num_experts}, got {k}")
        self.tasks = tuple(heads_of)
        num_tasks = len(self.tasks)
        self.embed = nn.Linear(token_width, width)
        self.position = nn.Parameter(0.02 * torch.randn(positions, width)) if positions else None
        self.first_token = nn.Parameter(0.02 * torch.randn(width)) if class_token else None
        self.task_token = nn.Parameter(0.1 * torch.randn(num_tasks, width)) if task_token else None
        self.task_embedding = TaskEmbedding(num_tasks, task_width) if gating == "conditioned" and num_experts and task_width > 0 else None
        windows = None if window is None else expert_windows(num_tasks, num_experts, window)

        def feed(index: int) -> nn.Module:
            if num_experts and index % 2:
                gate = TaskGate(width, num_experts, num_tasks, gating=gating, task_width=task_width, bound=bound)
                return MoELayer(gate, Experts(num_experts, width, hidden), k, renormalise=renormalise, noise=noise, windows=windows)
            return nn.Sequential(nn.Linear(width, k * hidden), nn.GELU(), nn.Linear(k * hidden, width))

        self.blocks = nn.ModuleList(Block(width, attention_heads, feed(index)) for index in range(depth))
        self.norm = nn.LayerNorm(width) if final_norm else nn.Identity()
        self.heads = nn.ModuleDict(heads_of)
        self.knows_task = task_token or (bool(num_experts) and (gating != "shared" or window is not None))

    def index(self, task: str) -> int:
        """Number of a task. ValueError lists the known ones."""
        if task not in self.tasks:
            raise ValueError(f"there is no task {task!r}; the tasks are {', '.join(self.tasks)}")
        return self.tasks.index(task)

    def encode(self, tokens: Tensor, task: Tensor, *, prune: float = 0.0) -> Encoded:
        """Run one pass for each number in ``task`` (passes,) over the tokens (batch, length, token_width), all passes at once.

        Raises:
            ValueError: tokens of another shape, ``prune`` outside [0, 1).
        """
        if tokens.dim() != 3 or tokens.shape[-1] != self.embed.in_features:
            raise ValueError(f"tokens must be (batch, length, {self.embed.in_features}), got {tuple(tokens.shape)}")
        if not 0 <= prune < 1:
            raise ValueError(f"prune must be at least 0 and below 1, got {prune}")
        x = self.embed(tokens)
        if self.position is not None:
            if len(self.position) != x.shape[1]:
                raise ValueError(f"this model has positions for {len(self.position)} tokens, got {x.shape[1]}")
            x = x + self.position
        if self.first_token is not None:
            x = torch.cat([self.first_token.expand(len(x), 1, -1), x], 1)
        x = x.expand(len(task), *x.shape)  # (passes, batch, length, width)
        if self.task_token is not None:
            x = x + self.task_token[task][:, None, None]
        vectors = None if self.task_embedding is None else self.task_embedding.vectors()
        visits = []
        for block in self.blocks:
            x, visited = block(x, task, vectors, prune=prune)
            if visited is not None:
                visits.append(visited)
        return Encoded(self.norm(x), tuple(visits))

    def forward(self, tokens: Tensor, *, prune: float = 0.0) -> Predicted:
        """All tasks: one pass each where the path depends on the task, else one pass for all. Tokens (batch, length, token_width)."""
        passes = torch.arange(len(self.tasks) if self.knows_task else 1, device=tokens.device)
        features, visits = self.encode(tokens, passes, prune=prune)
        features = features.expand(len(self.tasks), -1, -1, -1)
        return Predicted({task: self.heads[task](features[t]) for t, task in enumerate(self.tasks)}, visits)

    def single(self, tokens: Tensor, task: str, *, prune: float = 0.0) -> Tensor:
        """One task alone, by its own sparse path; gates below ``prune`` are skipped."""
        features, _ = self.encode(tokens, torch.tensor([self.index(task)], device=tokens.device), prune=prune)
        output: Tensor = self.heads[task](features[0])
        return output


def balance_loss(visits: Sequence[Visits], num_tasks: int) -> Tensor:
    """CV^2 of importance plus CV^2 of load, of each task's tokens alone, summed over tasks and gates.

    Without noise the load is a count and has no gradient.
    """
    total = torch.zeros(())
    for visited in visits:
        total = total.to(visited.clean.device) + cv_squared(importance_by_group(visited.routes, visited.task, num_tasks)).sum()
        if visited.std and visited.k < visited.clean.shape[1]:
            assert visited.routes.logits is not None
            stay = stay_probability(visited.clean, visited.routes.logits, visited.clean.new_tensor(visited.std), visited.k)
            load = stay.new_zeros(num_tasks, stay.shape[1]).index_add(0, visited.task, stay)
        else:
            load = load_by_group(visited.routes, visited.task, num_tasks).float()
        total = total + cv_squared(load).sum()
    return total


def multitask_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float], balance: Tensor, balance_weight: float = 0.01) -> Tensor:
    """sum_t w_t L_t + lambda times the balance. ValueError for a negative lambda or a task without a weight."""
    if balance_weight < 0:
        raise ValueError(f"balance_weight must be at least 0, got {balance_weight}")
    if missing := [task for task in losses if task not in weights]:
        raise ValueError(f"task {missing[0]!r} has no weight; there are weights for {', '.join(weights)}")
    return torch.stack([weights[task] * loss for task, loss in losses.items()]).sum() + balance_weight * balance


def expert_windows(num_tasks: int, num_experts: int, window: int) -> Tensor:
    """(T, E) bool: each task may use ``window`` neighbouring experts, from floor(t (E - window) / (T - 1)) on, so that all windows fit."""
    if not 1 <= window <= num_experts:
        raise ValueError(f"window must be between 1 and num_experts={num_experts}, got {window}")
    start = torch.arange(num_tasks) * (num_experts - window) // max(num_tasks - 1, 1)
    expert = torch.arange(num_experts)
    return (expert >= start[:, None]) & (expert < start[:, None] + window)


@torch.no_grad()
def pathway(model: M3ViT, task: str, tokens: Tensor, *, prune: float = 0.0) -> M3ViT:
    """A model of one task alone: its head, its gate, and the experts that it picks anywhere in ``tokens`` (batch, length, token_width).

    On these tokens it gives the same bits as ``model.single(tokens, task, prune=prune)``. On others a token may want an expert that was taken out;
    that visit is skipped. Choose ``tokens`` from the training data, and enough of them.
    """
    number = model.index(task)
    training = model.training
    _, visits = model.eval().encode(tokens, torch.tensor([number], device=tokens.device), prune=prune)
    model.train(training)
    found = deepcopy(model)
    found.heads = nn.ModuleDict({task: found.heads[task]})
    layers = [block.feed for block in found.blocks if isinstance(block.feed, MoELayer)]
    for layer, visited in zip(layers, visits, strict=True):
        layer.gate.keep(number)
        layer.keep(load_by_group(visited.routes, torch.zeros_like(visited.task), 1)[0] > 0)
    return found.eval()


def patch_tokens(images: Tensor, size: int) -> Tensor:
    """Cut images (batch, channels, height, width) into patches, row by row: (batch, patches, channels * size * size).

    Raises:
        ValueError: ``size`` does not divide the images.
    """
    height, width = images.shape[-2:]
    if size < 1 or height % size or width % size:
        raise ValueError(f"images of {height} x {width} cannot be cut into patches of {size} x {size}: the size must divide both")
    return nn.functional.unfold(images, size, stride=size).transpose(1, 2)


def path_flops(model: M3ViT, length: int) -> int:
    """Floating-point operations of one task's path through the transformer for one input of ``length`` tokens, heads left out.

    Products of matrices alone, as ``torch.utils.flop_counter`` counts them: embedding, attention, perceptrons or K experts, gates.
    """
    inputs, width = model.embed.in_features, model.embed.out_features
    total = 2 * length * inputs * width
    length += model.first_token is not None
    for block in model.blocks:
        total += 2 * length * 4 * width**2 + 2 * 2 * length**2 * width  # projections; scores and mixture
        feed: nn.Module = block.feed  # type: ignore[assignment]
        if isinstance(feed, MoELayer):
            total += feed.experts.flops(length * feed.k) + 2 * length * feed.gate.router.weight[0].numel()
        else:
            total += _linear_flops(feed, length)
    if model.task_embedding is not None:
        total += _linear_flops(model.task_embedding, model.task_embedding.num_tasks)
    return total


def _linear_flops(module: nn.Module, rows: int) -> int:
    return sum(2 * rows * layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
