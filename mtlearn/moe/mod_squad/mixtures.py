"""Mixtures of perceptrons and of attention heads, with a router a task: the layers of Mod-Squad's transformer."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.experts import Routes, combine, dispatch, grouped_linear, top_k_routes

Parts = Mapping[str, int]  # task to how many images of a batch are its own, in the order of the batch
COMMON = "all tasks"  # the name of a router that all tasks share


class TaskRouter(nn.Module):
    """The router of one task in one layer: logits x W, and which expert each column of W stands for.

    Args:
        weight: W, (width, columns).
        experts: (columns,) int64, the expert of each column; -1 for one that was taken out and stays in the softmax's denominator only.
        k: experts a token.
    """

    experts: Tensor

    def __init__(self, weight: Tensor, experts: Tensor, k: int) -> None:
        super().__init__()
        present = int((experts >= 0).sum())
        if not 1 <= k <= present:
            raise ValueError(f"k must be between 1 and the {present} experts that the router can choose, got {k}")
        self.weight = nn.Parameter(weight.detach().clone())
        self.register_buffer("experts", experts.clone())
        self.k = k

    def forward(self, x: Tensor, num_experts: int) -> Routes:
        """Routes of tokens (tokens, width), whose gates are those of the softmax over all columns, not renormalised."""
        logits = x @ self.weight  # (tokens, columns)
        if torch.equal(self.experts, torch.arange(num_experts, device=x.device)):
            return top_k_routes(logits, self.k)
        present = self.experts >= 0
        routes = top_k_routes(logits.masked_fill(~present, torch.finfo(logits.dtype).min), self.k)
        columns = routes.expert
        # over all columns, those of experts that are gone included
        gate = logits.softmax(-1).gather(-1, columns.view(-1, self.k)).flatten()
        over_experts = logits.new_full((len(x), num_experts), -torch.inf).index_copy(1, self.experts[present], logits[:, present])
        return replace(routes, expert=self.experts[columns], gate=gate, num_experts=num_experts, logits=over_experts)


class ExpertBank(nn.Module):
    """Stacked weights of experts, in generations: those added later are parameters of their own, so that the older ones can be frozen.

    Args:
        shapes: name of a weight to its shape for one expert, the dimension that is summed over first.
        num_experts: of the first generation.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], num_experts: int) -> None:
        super().__init__()
        self.shapes = dict(shapes)
        self.generations = nn.ModuleList()
        if num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, got {num_experts}")
        self.add(self.fresh(num_experts))

    def __len__(self) -> int:
        return len(self.stacked(next(iter(self.shapes))))

    def fresh(self, count: int) -> dict[str, Tensor]:
        """Random weights of ``count`` experts: uniform in plus or minus 1 / sqrt(fan in), as :class:`torch.nn.Linear` has them; biases 0."""
        return {
            name: torch.zeros(count, *shape) if len(shape) == 1 else (2 * torch.rand(count, *shape) - 1) * shape[0] ** -0.5
            for name, shape in self.shapes.items()
        }

    def add(self, weights: Mapping[str, Tensor]) -> None:
        """Add a generation with these weights, (count, ...) each."""
        self.generations.append(nn.ParameterDict({name: nn.Parameter(weight.detach().clone()) for name, weight in weights.items()}))

    def stacked(self, name: str) -> Tensor:
        """One weight of all experts, (E, ...)."""
        parts = [generation[name] for generation in self.generations]  # type: ignore[index]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def rows(self, kept: Tensor) -> dict[str, Tensor]:
        """Copies of the weights of some experts."""
        return {name: self.stacked(name).detach()[kept].clone() for name in self.shapes}

    def subset(self, kept: Tensor) -> "ExpertBank":
        """A bank of its own with copies of the experts ``kept`` (int64), in their order."""
        found = ExpertBank(self.shapes, len(kept))
        found.generations = nn.ModuleList()
        found.add(self.rows(kept))
        return found


class Mixture(nn.Module):
    """What :class:`MoEMLP` and :class:`MoEAttention` share: a bank of experts, and a router a task.

    Args:
        bank: the experts.
        width: of a token.
        k: experts a token.
        tasks: their names; (COMMON,) for one router that all share.
        start: standard deviation of the routers' first weights.
    """

    def __init__(self, bank: ExpertBank, *, width: int, k: int, tasks: Sequence[str], start: float) -> None:
        super().__init__()
        self.bank = bank
        if not 1 <= k <= len(bank):
            raise ValueError(f"k must be between 1 and num_experts={len(bank)}, got {k}")
        everyone = torch.arange(len(bank))
        self.routers = nn.ModuleDict({task: TaskRouter(start * torch.randn(width, len(bank)), everyone, k) for task in tasks})

    def router(self, task: str) -> TaskRouter:
        """The router of a task."""
        found = self.routers[COMMON if COMMON in self.routers else task]
        assert isinstance(found, TaskRouter)
        return found

    def route(self, x: Tensor, parts: Parts) -> dict[str, Routes]:
        """Routes of the tokens of (batch, length, width), row by row: those of each task's images by its own router."""
        slices = torch.split(x, list(parts.values()))
        return {task: self.router(task)(part.flatten(0, 1), len(self.bank)) for task, part in zip(parts, slices, strict=True)}


def joined(routes: Mapping[str, Routes]) -> Routes:
    """The routes of several tasks as those of one batch, whose tokens lie task by task."""
    first, *others = routes.values()
    if not others:
        return first
    starts = [0, *itertools.accumulate(part.tokens for part in routes.values())]
    return Routes(
        token=torch.cat([part.token + start for part, start in zip(routes.values(), starts, strict=False)]),
        expert=torch.cat([part.expert for part in routes.values()]),
        gate=torch.cat([part.gate for part in routes.values()]),
        tokens=starts[-1],
        num_experts=first.num_experts,
        logits=None,
        asked=sum(part.asked for part in routes.values()),
    )


class MoEMLP(Mixture):
    """A mixture of perceptrons with one hidden layer and GELU.

    Args:
        width, hidden: of a token, of one expert; with hidden = (dense hidden) / k a token costs what it costs in the dense layer.
        num_experts, k: E experts, of which a token visits k.
        tasks, start: see :class:`Mixture`.
    """

    def __init__(self, width: int, hidden: int, *, num_experts: int, k: int, tasks: Sequence[str], start: float = 0.02) -> None:
        shapes = {"first": (width, hidden), "first_bias": (hidden,), "second": (hidden, width), "second_bias": (width,)}
        super().__init__(ExpertBank(shapes, num_experts), width=width, k=k, tasks=tasks, start=start)

    def forward(self, x: Tensor, parts: Parts) -> tuple[Tensor, dict[str, Routes]]:
        """(batch, length, width) to the same shape, and each task's routes."""
        by_task, weight = self.route(x, parts), self.bank.stacked
        routes = joined(by_task)
        order, counts = dispatch(routes)
        visitors = x.flatten(0, 1).index_select(0, routes.token[order])  # (pairs, width)
        hidden = F.gelu(grouped_linear(visitors, weight("first"), weight("first_bias"), counts))
        return combine(grouped_linear(hidden, weight("second"), weight("second_bias"), counts), routes, order).view_as(x), by_task


class MoEAttention(Mixture):
    """A mixture of attention heads: an expert is a query and an output projection; one key and one value projection serve all.

    Args:
        width, head_width: of a token, of a head.
        num_experts, k: E heads, of which a token uses k.
        tasks, start: see :class:`Mixture`.
    """

    def __init__(self, width: int, head_width: int, *, num_experts: int, k: int, tasks: Sequence[str], start: float = 0.02) -> None:
        shapes = {"query": (width, head_width), "output": (head_width, width)}
        super().__init__(ExpertBank(shapes, num_experts), width=width, k=k, tasks=tasks, start=start)
        self.key = nn.Linear(width, head_width, bias=False)
        self.value = nn.Linear(width, head_width, bias=False)

    def forward(self, x: Tensor, parts: Parts) -> tuple[Tensor, dict[str, Routes]]:
        """(batch, length, width) to the same shape, and each task's routes."""
        if len({self.router(task).k for task in parts}) > 1:
            raise ValueError(f"tasks with another number of heads a token cannot share a pass, got {', '.join(parts)}: send them one by one")
        by_task = self.route(x, parts)
        routes = joined(by_task)
        order, counts = dispatch(routes)
        back = order.argsort()
        visitors = x.flatten(0, 1).index_select(0, routes.token[order])
        query = grouped_linear(visitors, self.bank.stacked("query"), None, counts).index_select(0, back)
        # the pairs of a token lie side by side, so those of an image are (length * k) queries to its own keys
        query = query.view(len(x), -1, query.shape[1])
        read = F.scaled_dot_product_attention(query, self.key(x), self.value(x)).flatten(0, 1)  # (pairs, head width)
        said = grouped_linear(read.index_select(0, order), self.bank.stacked("output"), None, counts)
        return combine(said, routes, order).view_as(x), by_task
