r"""Mixtures of experts: who goes where (routes), what is computed there (experts), and what keeps the load even (balance).

A mixture of experts replaces one network by E small ones, and sends each token to few of them:

.. math:: y = \sum_{e \in S(x)} g_e(x)\, \mathrm{Expert}_e(x), \qquad S(x) \subset \{1..E\}.

Three steps, three kinds of functions:

1. A **router** gives logits (tokens, E); one of the routing rules makes **routes** of them: pairs (token, expert) with a gate. Rules:
   :func:`top_k_routes` (softmax before or after the top-k), :func:`expert_choice_routes`, :func:`forced_routes`; :func:`limit_capacity` drops what an
   expert has no room for.
2. The pairs are sorted by expert, so that each expert's tokens lie side by side, and every expert is one product of matrices
   (:func:`grouped_linear`). The cost follows the pairs, not the number of experts.
3. Losses over the routes keep experts in use: importance and load (Shazeer et al. 2017), Switch (Fedus et al. 2021), the router's z-loss (Zoph et al.
   2022), mutual information between task and expert (Chen et al. 2023).

The four lines that say the same without the sorting, and which the tests hold against it::

    for e in range(num_experts):
        token, slot = (chosen == e).nonzero(as_tuple=True)
        output[token] += gate[token, slot, None] * expert[e](x[token])
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# ---------------------------------------------------------------------------------------------------------------------------------- routes


@dataclass(frozen=True)
class Routes:
    """Which expert gets which token, as pairs: one row a visit of a token to an expert.

    Attributes:
        token: (pairs,) int64, the visiting token.
        expert: (pairs,) int64, the expert visited.
        gate: (pairs,) the weight of what the expert says.
        tokens: number of tokens, visited or not.
        num_experts: E.
        logits: (tokens, E) of the router, noise included; None for forced routes.
        asked: pairs before a capacity dropped some; equal to the number of pairs where none was.

    The pairs of :func:`top_k_routes` are token by token, best expert first: ``routes.expert.view(tokens, k)``.
    """

    token: Tensor
    expert: Tensor
    gate: Tensor
    tokens: int
    num_experts: int
    logits: Tensor | None
    asked: int

    @property
    def probabilities(self) -> Tensor:
        """(tokens, E), the softmax over all experts. ValueError for forced routes."""
        if self.logits is None:
            raise ValueError("forced routes have no logits, and so no probabilities")
        return self.logits.softmax(-1)

    @property
    def dropped(self) -> float:
        """Share of the pairs that a capacity dropped."""
        return 1 - len(self.token) / self.asked

    def where(self, kept: Tensor) -> "Routes":
        """The pairs of a mask or an index alone; nothing else changes."""
        return replace(self, token=self.token[kept], expert=self.expert[kept], gate=self.gate[kept])


def top_k_routes(
    logits: Tensor, k: int, *, softmax: Literal["before", "after"] = "before", renormalise: bool = False, allowed: Tensor | None = None
) -> Routes:
    """Every token visits the ``k`` experts with the highest logits.

    Args:
        logits: (tokens, E).
        k: experts a token, 1 to E.
        softmax: ``before``: gates are those of the softmax over all E, so they sum to less than 1 (Riquelme et al. 2021); ``after``: the softmax
            is taken over the k chosen (Shazeer et al. 2017).
        renormalise: divide the gates of each token by their sum. With ``before`` that equals ``after`` without it.
        allowed: (tokens, E) or (E,) bool, the experts among which a token may choose; all when omitted. The softmax is over these alone.

    Raises:
        ValueError: k out of range, no token, logits that are not finite, a token with fewer than k experts allowed.
    """
    tokens, num_experts = _check_logits(logits)
    if not 1 <= k <= num_experts:
        raise ValueError(f"k must be between 1 and num_experts={num_experts}, got {k}")
    if softmax not in ("before", "after"):
        raise ValueError(f"softmax must be 'before' or 'after', got {softmax!r}")
    if allowed is not None:
        logits = logits.masked_fill(~_check_allowed(allowed, k, tokens, num_experts), -torch.inf)
    best, expert = logits.topk(k)  # (tokens, k)
    gate = best.softmax(-1) if softmax == "after" else logits.softmax(-1).gather(-1, expert)
    if renormalise and softmax == "before":
        gate = gate / gate.sum(-1, keepdim=True)
    token = torch.arange(tokens, device=logits.device).repeat_interleave(k)
    return Routes(token, expert.flatten(), gate.flatten(), tokens, num_experts, logits, tokens * k)


def expert_choice_routes(logits: Tensor, capacity: int) -> Routes:
    """Every expert takes the ``capacity`` tokens whose probability for it is highest (Zhou et al. 2022): even load by construction.

    A token may be taken by all experts or by none. Which tokens are taken depends on the others in the batch.

    Args:
        logits: (tokens, E).
        capacity: tokens an expert, 1 to the number of tokens.
    """
    tokens, num_experts = _check_logits(logits)
    if not 1 <= capacity <= tokens:
        raise ValueError(f"capacity must be between 1 and tokens={tokens}, got {capacity}")
    gate, token = logits.softmax(-1).T.topk(capacity)  # (E, capacity)
    expert = torch.arange(num_experts, device=logits.device).repeat_interleave(capacity)
    return Routes(token.flatten(), expert, gate.flatten(), tokens, num_experts, logits, num_experts * capacity)


def forced_routes(expert: Tensor, num_experts: int, *, gate: Tensor | None = None) -> Routes:
    """Routes that a table decides, by task or domain, and no router.

    Args:
        expert: (tokens,) or (tokens, m) int64, the experts of each token: ``table[task]`` where ``table`` is (tasks, m).
        num_experts: E.
        gate: weights of the same shape; 1 / m each when omitted, so that the experts are averaged.

    Raises:
        ValueError: an expert outside 0..E-1, a token that has an expert twice, no token, a gate of another shape.
    """
    expert = expert[:, None] if expert.dim() == 1 else expert
    if expert.dim() != 2 or expert.numel() == 0:
        raise ValueError(f"expert must be (tokens >= 1, experts a token >= 1), got {tuple(expert.shape)}")
    if int(expert.min()) < 0 or int(expert.max()) >= num_experts:
        raise ValueError(f"experts must be between 0 and {num_experts - 1}, got {int(expert.min())} to {int(expert.max())}")
    twice = (expert.sort(-1).values.diff(dim=-1) == 0).any(-1)
    if twice.any():
        row = int(twice.nonzero()[0])
        raise ValueError(f"token {row} has an expert twice: {expert[row].tolist()}")
    tokens, m = expert.shape
    gate = torch.full(expert.shape, 1 / m, device=expert.device) if gate is None else gate.reshape(tokens, -1)
    if gate.shape != expert.shape:
        raise ValueError(f"gate must have the shape of expert {tuple(expert.shape)}, got {tuple(gate.shape)}")
    token = torch.arange(tokens, device=expert.device).repeat_interleave(m)
    return Routes(token, expert.flatten(), gate.flatten(), tokens, num_experts, None, tokens * m)


def limit_capacity(routes: Routes, capacity: int, *, first: Literal["position", "gate"] = "position") -> Routes:
    """Keep at most ``capacity`` pairs of each expert and drop the others: a token that loses all its pairs gets 0, so it passes by the residual.

    Args:
        routes: of any rule.
        capacity: at least 1; :func:`capacity_of` makes it from a factor.
        first: who is served first: the earlier pair (Switch), or the one with the larger gate (batch prioritised routing, Riquelme et al. 2021).
    """
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1, got {capacity}")
    if first not in ("position", "gate"):
        raise ValueError(f"first must be 'position' or 'gate', got {first!r}")
    queue = (
        torch.arange(len(routes.expert), device=routes.expert.device) if first == "position" else routes.gate.argsort(descending=True, stable=True)
    )
    queue = queue[routes.expert[queue].argsort(stable=True)]  # by expert, the first to be served in front
    counts = torch.bincount(routes.expert, minlength=routes.num_experts)
    start = (counts.cumsum(0) - counts)[routes.expert[queue]]
    served = torch.arange(len(queue), device=queue.device) - start < capacity
    return routes.where(queue[served].sort().values)


def capacity_of(tokens: int, k: int, num_experts: int, factor: float) -> int:
    """Places an expert has when all have the same and all together have ``factor`` times as many as there are pairs."""
    if not factor > 0:
        raise ValueError(f"factor must be positive, got {factor}")
    return max(1, math.ceil(factor * tokens * k / num_experts))


def _check_logits(logits: Tensor) -> tuple[int, int]:
    if logits.dim() != 2 or 0 in logits.shape:
        raise ValueError(f"logits must be (tokens >= 1, experts >= 1), got {tuple(logits.shape)}")
    finite = logits.isfinite().all(-1)
    if not finite.all():
        raise ValueError(f"routing is undefined: the router's logits of token {int((~finite).nonzero()[0])} hold NaN or infinity")
    return logits.shape[0], logits.shape[1]


def _check_allowed(allowed: Tensor, k: int, tokens: int, num_experts: int) -> Tensor:
    allowed = allowed.expand(tokens, num_experts)
    few = allowed.sum(-1) < k
    if few.any():
        row = int(few.nonzero()[0])
        raise ValueError(f"token {row} may choose among {int(allowed[row].sum())} experts, and k={k} are wanted: allow at least k")
    return allowed


# --------------------------------------------------------------------------------------------------------------------------------- routers


class Router(nn.Module):
    """Logits of E experts, linear in the token: one matrix for all tasks, or one a task ("multi-gate").

    Args:
        width: of a token.
        num_experts: E.
        num_tasks: matrices; with more than one, ``task`` must be given.
        start: standard deviation of the first weights; 1 / sqrt(width) when omitted. With exactly 0 all experts tie, and the first k get all tokens.
        noise: standard deviation of what :meth:`perturb` adds in training; ``"learned"``: softplus(x W_noise) + 0.01 (Shazeer et al. 2017).
    """

    def __init__(
        self, width: int, num_experts: int, *, num_tasks: int = 1, start: float | None = None, noise: float | Literal["learned"] = 0.0
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("num_experts", num_experts), ("num_tasks", num_tasks)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if noise != "learned" and noise < 0:
            raise ValueError(f"noise must be 'learned' or at least 0, got {noise}")
        self.num_tasks, self.noise = num_tasks, noise
        self.weight = nn.Parameter(torch.randn(num_tasks, width, num_experts) * (width**-0.5 if start is None else start))
        self.noise_weight = nn.Parameter(torch.zeros(num_tasks, width, num_experts)) if noise == "learned" else None

    def forward(self, x: Tensor, task: Tensor | int | None = None) -> Tensor:
        """Logits without noise.

        Args:
            x: (tokens, width).
            task: of all tokens, or (tokens,) of each; needed where there are several tasks.

        Returns:
            (tokens, E).
        """
        return self._linear(x, self.weight, task)

    def std(self, x: Tensor, task: Tensor | int | None = None) -> Tensor:
        """Standard deviation of the noise, (tokens, E) where it is learned, else a scalar."""
        if self.noise_weight is not None:
            return F.softplus(self._linear(x, self.noise_weight, task)) + 0.01
        assert self.noise != "learned"
        return x.new_tensor(self.noise)

    def perturb(self, logits: Tensor, std: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits with normal noise of ``std`` in training; as they are in evaluation."""
        if not self.training or (self.noise_weight is None and self.noise == 0):
            return logits
        return logits + std * torch.randn(logits.shape, generator=generator, device=logits.device, dtype=logits.dtype)

    def _linear(self, x: Tensor, weight: Tensor, task: Tensor | int | None) -> Tensor:
        if x.dim() != 2 or x.shape[1] != weight.shape[1]:
            raise ValueError(f"tokens must be (tokens, width={weight.shape[1]}), got {tuple(x.shape)}")
        if self.num_tasks == 1:
            return x @ weight[0]
        if task is None:
            raise ValueError(f"this router has {self.num_tasks} tasks: say which, 0 to {self.num_tasks - 1}")
        if isinstance(task, int):
            if not 0 <= task < self.num_tasks:
                raise ValueError(f"task must be between 0 and {self.num_tasks - 1}, got {task}")
            return x @ weight[task]
        if task.shape != x.shape[:1] or int(task.min()) < 0 or int(task.max()) >= self.num_tasks:
            raise ValueError(f"task must be {len(x)} numbers between 0 and {self.num_tasks - 1}, got shape {tuple(task.shape)}")
        order, counts = sort_by_group(task, self.num_tasks)
        return grouped_linear(x.index_select(0, order), weight, None, counts).index_select(0, order.argsort())


# --------------------------------------------------------------------------------------------------------------------------------- experts


class _GroupedLinear(torch.autograd.Function):
    """One product of matrices a group that has rows, each written where its result belongs.

    Indexing ``weight[e]`` inside autograd would make each group's backward allocate the gradient of the *whole* stack; here it is allocated once.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, counts: list[int]) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.counts, ctx.biased = counts, bias is not None
        output = inputs.new_empty(len(inputs), weight.shape[2])
        biases = (None,) * len(counts) if bias is None else bias.unbind()
        for x, w, b, y in zip(torch.split(inputs, counts), weight.unbind(), biases, torch.split(output, counts), strict=True):
            if not len(x):
                continue
            if b is None:
                torch.mm(x, w, out=y)
            else:
                torch.addmm(b, x, w, out=y)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        inputs, weight = ctx.saved_tensors
        grad = grad.contiguous()
        wanted = ctx.needs_input_grad
        parts = torch.split(grad, ctx.counts)
        grad_inputs = torch.empty_like(inputs) if wanted[0] else None
        grad_weight = torch.empty_like(weight) if wanted[1] else None
        grad_bias = weight.new_empty(len(weight), weight.shape[2]) if ctx.biased and wanted[2] else None
        if grad_inputs is not None:
            for g, w, out in zip(parts, weight.unbind(), torch.split(grad_inputs, ctx.counts), strict=True):
                if len(g):
                    torch.mm(g, w.T, out=out)
        if grad_weight is not None:
            for g, x, out in zip(parts, torch.split(inputs, ctx.counts), grad_weight.unbind(), strict=True):
                if len(g):
                    torch.mm(x.T, g, out=out)
                else:
                    out.zero_()
        if grad_bias is not None:
            for g, out in zip(parts, grad_bias.unbind(), strict=True):
                torch.sum(g, 0, out=out)  # 0 where there are no rows
        return grad_inputs, grad_weight, grad_bias, None


def grouped_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, counts: Tensor) -> Tensor:
    """A linear layer of its own for each group of rows.

    Args:
        inputs: (rows, in), sorted by group.
        weight: (groups, in, out).
        bias: (groups, out) or None.
        counts: (groups,) int64, rows of each group, 0 included.

    Returns:
        (rows, out); row r of group g is ``inputs[r] @ weight[g] + bias[g]``, in the dtype of autocast where that is on.
    """
    sizes = counts.tolist()
    if inputs.dim() != 2 or weight.dim() != 3 or inputs.shape[1] != weight.shape[1] or len(sizes) != len(weight) or sum(sizes) != len(inputs):
        raise ValueError(
            f"inputs (rows, in), weight (groups, in, out) and counts that sum to the rows are needed, got {tuple(inputs.shape)}, "
            f"{tuple(weight.shape)} and {len(sizes)} counts with the sum {sum(sizes)}"
        )
    device = inputs.device.type
    if torch.is_autocast_enabled(device):  # as for PyTorch's own products, which a function of one's own is not among
        dtype = torch.get_autocast_dtype(device)
        inputs, weight, bias = inputs.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    output: Tensor = _GroupedLinear.apply(inputs, weight, bias, sizes)  # type: ignore[no-untyped-call]
    return output


def sort_by_group(group: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """The order (rows,) that brings rows of one group side by side, in their old order inside it, and the rows a group has (num_groups,)."""
    return group.argsort(stable=True), torch.bincount(group, minlength=num_groups)


def dispatch(routes: Routes) -> tuple[Tensor, Tensor]:
    """The order (pairs,) of the pairs by expert, and the pairs that each expert has (E,)."""
    return sort_by_group(routes.expert, routes.num_experts)


def combine(values: Tensor, routes: Routes, order: Tensor) -> Tensor:
    """Gate-weighted sum of what the experts said.

    Args:
        values: (pairs, width), in the order of :func:`dispatch`.
        routes: with P pairs.
        order: of :func:`dispatch`.

    Returns:
        (tokens, width); 0 for a token that visited nobody.
    """
    weighted = values * routes.gate.index_select(0, order)[:, None].to(values.dtype)
    return values.new_zeros(routes.tokens, values.shape[1]).index_add(0, routes.token[order], weighted)


class Experts(nn.Module):
    """E two-layer perceptrons with GELU, in stacked weights.

    Args:
        num_experts: E.
        width: of a token.
        hidden: units of one expert.
    """

    def __init__(self, num_experts: int, width: int, hidden: int) -> None:
        super().__init__()
        for name, value in (("num_experts", num_experts), ("width", width), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.first = nn.Parameter(_uniform(num_experts, width, hidden, fan_in=width))
        self.first_bias = nn.Parameter(_uniform(num_experts, hidden, fan_in=width))
        self.second = nn.Parameter(_uniform(num_experts, hidden, width, fan_in=hidden))
        self.second_bias = nn.Parameter(_uniform(num_experts, width, fan_in=hidden))

    def __len__(self) -> int:
        return len(self.first)

    def forward(self, x: Tensor, routes: Routes) -> Tensor:
        """(tokens, width) to the same shape: each token's visits, weighted by their gates and summed. Experts without a visitor are not read."""
        num_experts, width, _ = self.first.shape
        if x.shape != (routes.tokens, width) or routes.num_experts != num_experts:
            raise ValueError(
                f"routes of {routes.tokens} tokens over {routes.num_experts} experts do not fit {num_experts} experts of width {width} "
                f"and tokens of shape {tuple(x.shape)}"
            )
        order, counts = dispatch(routes)
        hidden = F.gelu(grouped_linear(x.index_select(0, routes.token[order]), self.first, self.first_bias, counts))
        return combine(grouped_linear(hidden, self.second, self.second_bias, counts), routes, order)

    def expert(self, index: int) -> nn.Sequential:
        """One expert as plain layers, with copies of its weights."""
        _, width, hidden = self.first.shape
        found = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)).to(self.first.device, self.first.dtype)
        values = (self.first[index].T, self.first_bias[index], self.second[index].T, self.second_bias[index])
        with torch.no_grad():
            for parameter, value in zip(found.parameters(), values, strict=True):
                parameter.copy_(value)
        return found

    def subset(self, kept: Tensor) -> "Experts":
        """The experts of an index or mask ``kept``, in its order, as a module of its own with copies of their weights."""
        rows = kept.nonzero()[:, 0] if kept.dtype == torch.bool else kept
        if not len(rows):
            raise ValueError(f"at least one of the {len(self)} experts must be kept")
        found = Experts(len(rows), self.first.shape[1], self.first.shape[2]).to(self.first.device, self.first.dtype)
        found.load_state_dict({name: value[rows] for name, value in self.state_dict().items()})
        return found

    def flops(self, pairs: int) -> int:
        """Floating-point operations of a forward pass over ``pairs`` visits, as ``torch.utils.flop_counter`` counts them."""
        _, width, hidden = self.first.shape
        return 2 * pairs * 2 * width * hidden


def _uniform(*shape: int, fan_in: int) -> Tensor:
    """What :class:`torch.nn.Linear` starts with: uniform in plus or minus 1 / sqrt(fan in)."""
    return torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5)


class MixtureOfExperts(nn.Module):
    """Router, routes and experts in one layer, for use in the place of a feed-forward layer.

    ::

        layer = MixtureOfExperts(256, 512, num_experts=64, k=2)
        change, routes = layer(stream)
        stream = stream + change
        loss = loss + 0.01 * switch_loss(routes)

    Args:
        width, hidden: of a token, of one expert.
        num_experts, k: E experts, of which a token visits k.
        num_tasks: routers; see :class:`Router`.
        shared: experts that every token visits beside its k, with weight 1 (DeepSeekMoE, Dai et al. 2024).
        softmax, renormalise: see :func:`top_k_routes`.
        capacity_factor: places over pairs, see :func:`capacity_of`; None drops nothing.
        choice: ``token`` (tokens choose experts) or ``expert`` (experts choose tokens, as many as top-k would give each on average, times the
            capacity factor).
        start, noise: see :class:`Router`.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        num_experts: int,
        k: int,
        num_tasks: int = 1,
        shared: int = 0,
        softmax: Literal["before", "after"] = "before",
        renormalise: bool = False,
        capacity_factor: float | None = None,
        choice: Literal["token", "expert"] = "token",
        start: float | None = None,
        noise: float | Literal["learned"] = 0.0,
    ) -> None:
        super().__init__()
        if not 1 <= k <= num_experts:
            raise ValueError(f"k must be between 1 and num_experts={num_experts}, got {k}")
        if shared < 0:
            raise ValueError(f"shared must be at least 0, got {shared}")
        if choice not in ("token", "expert"):
            raise ValueError(f"choice must be 'token' or 'expert', got {choice!r}")
        self.k, self.softmax, self.renormalise, self.choice, self.capacity_factor = k, softmax, renormalise, choice, capacity_factor
        self.router = Router(width, num_experts, num_tasks=num_tasks, start=start, noise=noise)
        self.experts = Experts(num_experts, width, hidden)
        self.shared = nn.Sequential(nn.Linear(width, shared * hidden), nn.GELU(), nn.Linear(shared * hidden, width)) if shared else None

    def forward(
        self,
        x: Tensor,
        task: Tensor | int | None = None,
        *,
        routes: Routes | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Routes]:
        """What the experts say, and the routes taken, of which the balance losses are made.

        Args:
            x: (..., width).
            task: of all tokens, or of each (...); needed where there are several routers.
            routes: use these (over all tokens that are not masked) and ask no router.
            mask: (...) bool, the tokens that count; padding visits nobody and gets 0.
            generator: of the router's noise.

        Returns:
            (..., width) and routes, whose tokens are those of the mask, in order.
        """
        flat = x.flatten(0, -2)
        at = torch.arange(len(flat), device=x.device) if mask is None else mask.flatten().nonzero()[:, 0]
        tokens = flat if mask is None else flat.index_select(0, at)
        if routes is None:
            which = task.expand(x.shape[:-1]).flatten()[at] if isinstance(task, Tensor) else task
            routes = self.route(tokens, which, generator=generator)
        change = self.experts(tokens, routes)
        if self.shared is not None:
            change = change + self.shared(tokens)
        if mask is not None:
            change = change.new_zeros(flat.shape).index_copy(0, at, change)
        return change.view_as(x), routes

    def route(self, x: Tensor, task: Tensor | int | None = None, *, generator: torch.Generator | None = None) -> Routes:
        """The routes of tokens (tokens, width)."""
        logits = self.router.perturb(self.router(x, task), self.router.std(x, task), generator)
        factor = 1.0 if self.capacity_factor is None else self.capacity_factor
        places = capacity_of(len(x), self.k, len(self.experts), factor)
        if self.choice == "expert":
            return expert_choice_routes(logits, min(places, len(x)))
        routes = top_k_routes(logits, self.k, softmax=self.softmax, renormalise=self.renormalise)
        return routes if self.capacity_factor is None else limit_capacity(routes, places)


# --------------------------------------------------------------------------------------------------------------------------------- balance


def cv_squared(values: Tensor) -> Tensor:
    """Squared coefficient of variation of the last dimension, (..., E) to (...): var / mean^2 with the unbiased variance.

    0 for one value and for equal values, E for a one-hot vector of length E.
    """
    if values.shape[-1] == 1:
        return values.new_zeros(values.shape[:-1])
    return values.var(-1) / (values.mean(-1) ** 2 + 1e-10)


def importance(routes: Routes) -> Tensor:
    """(E,) sum of the gates that each expert gets; differentiable."""
    return routes.gate.new_zeros(routes.num_experts).index_add(0, routes.expert, routes.gate)


def importance_by_group(routes: Routes, group: Tensor, num_groups: int) -> Tensor:
    """(groups, E) :func:`importance` of the tokens of each group; ``group`` (tokens,) int64 is the group of each token."""
    cell = group[routes.token] * routes.num_experts + routes.expert
    return routes.gate.new_zeros(num_groups * routes.num_experts).index_add(0, cell, routes.gate).view(num_groups, -1)


def load_by_group(routes: Routes, group: Tensor, num_groups: int) -> Tensor:
    """(groups, E) int64 :func:`load` of the tokens of each group; ``group`` (tokens,) int64 is the group of each token."""
    cell = group[routes.token] * routes.num_experts + routes.expert
    return torch.bincount(cell, minlength=num_groups * routes.num_experts).view(num_groups, -1)


def load(routes: Routes) -> Tensor:
    """(E,) int64, how many pairs each expert has."""
    return torch.bincount(routes.expert, minlength=routes.num_experts)


def usage(routes: Routes) -> Tensor:
    """(E,) share of the pairs that each expert has; sums to 1."""
    return load(routes) / max(len(routes.expert), 1)


def usage_by_group(routes: Routes, group: Tensor, num_groups: int) -> Tensor:
    """(groups, E) :func:`usage` of the tokens of each group (task, domain); a row of zeros where a group has no pair.

    Args:
        routes: of any rule.
        group: (tokens,) int64, 0..num_groups-1.
        num_groups: rows of the result.
    """
    counts = load_by_group(routes, group, num_groups)
    return counts / counts.sum(-1, keepdim=True).clamp(min=1)


def stay_probability(clean: Tensor, noisy: Tensor, std: Tensor, k: int) -> Tensor:
    """(tokens, E) probability that an expert is among a token's k if its noise were drawn anew (Shazeer et al. 2017, equations 8 and 9).

    An expert stays in when its logit under fresh noise exceeds the k-th best of the *others'* noisy logits. All of these are logits, never
    softmax values.

    Args:
        clean: logits (tokens, E) without noise.
        noisy: logits (tokens, E) with the noise that was drawn.
        std: of the noise, broadcastable to (tokens, E), positive.
        k: experts a token, below E.
    """
    _, num_experts = _check_logits(noisy)
    if not 1 <= k < num_experts:
        raise ValueError(f"k must be between 1 and num_experts-1={num_experts - 1} for a load under noise, got {k}")
    if not (std > 0).all():
        raise ValueError("the load under noise needs a positive standard deviation; without noise use load(routes)")
    best = noisy.topk(k + 1).values  # (tokens, k + 1)
    inside = noisy >= best[:, k - 1 : k]
    threshold = torch.where(inside, best[:, k : k + 1], best[:, k - 1 : k])  # k-th best of the others
    probability: Tensor = torch.special.ndtr((clean - threshold) / std)
    return probability


def noisy_load(clean: Tensor, noisy: Tensor, std: Tensor, k: int) -> Tensor:
    """(E,) expected number of tokens of each expert under fresh noise: :func:`stay_probability` summed over the tokens; differentiable."""
    return stay_probability(clean, noisy, std, k).sum(0)


def switch_loss(routes: Routes) -> Tensor:
    """E sum_e f_e P_e with f an expert's share of the pairs and P its mean probability (Fedus et al. 2021): 1 when even, E when all go to one."""
    return routes.num_experts * (usage(routes) * routes.probabilities.mean(0)).sum()


def z_loss(logits: Tensor) -> Tensor:
    """Mean squared log-sum-exp of the logits (Zoph et al. 2022): keeps a router's logits small."""
    return logits.logsumexp(-1).square().mean()


def joint_distribution(probabilities: Tensor, task: Tensor, num_tasks: int, *, share: Tensor | None = None) -> Tensor:
    """P(task, expert) (tasks, E) over a batch, from the full softmax, so that experts that were not chosen get gradient too.

    Args:
        probabilities: (tokens, E).
        task: (tokens,) int64.
        num_tasks: rows of the result.
        share: (tasks,) P(task); the tasks' shares of the tokens when omitted. Tasks without a token get 0, the others are scaled to sum to 1.
    """
    if len(probabilities) == 0 or task.shape != probabilities.shape[:1]:
        raise ValueError(f"tokens and their tasks are needed, got {tuple(probabilities.shape)} and {tuple(task.shape)}")
    if int(task.min()) < 0 or int(task.max()) >= num_tasks:
        raise ValueError(f"tasks must be between 0 and {num_tasks - 1}, got {int(task.min())} to {int(task.max())}")
    sums = probabilities.new_zeros(num_tasks, probabilities.shape[1]).index_add(0, task, probabilities)
    counts = torch.bincount(task, minlength=num_tasks)
    weight = counts.to(sums.dtype) if share is None else share.to(sums.dtype) * (counts > 0)
    if not weight.sum() > 0:
        raise ValueError(f"the shares of the tasks that have tokens sum to {float(weight.sum())}; they must be positive")
    return weight[:, None] / weight.sum() * sums / counts.clamp(min=1)[:, None]


def mutual_information(joint: Tensor) -> Tensor:
    """I(task; expert) in nats of a joint distribution (tasks, E): H(E) - H(E | T), from 0 (independent) to min(log tasks, log E)."""
    rows, columns = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)
    information: Tensor = torch.special.entr(rows).sum() + torch.special.entr(columns).sum() - torch.special.entr(joint).sum()
    return information
