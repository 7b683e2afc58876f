"""Computation reordering: the same sums in another order, so that small on-chip memory holds any number of experts.

An accelerator computes with weights that lie in its small on-chip memory; all experts lie outside. *Token by token*, each token calls for its own K
experts, and an expert is loaded again and again. *Expert by expert*, all tokens are gated first and queued at the experts they chose; then each
queue is worked off at once, while the weights of the next expert are loaded into a second buffer::

    token 0 wants experts 2, 5        token by token     2 5 | 1 5 | 2 3                5 loads with room for two (5 is still there)
    token 1 wants experts 1, 5        expert by expert   1: 1   2: 0 2   3: 2   5: 0 1  4 loads, whatever the room
    token 2 wants experts 2, 3

Each expert is loaded once at the most, and a switch of task changes only which gate fills the queues. Reconstructed from the paper and the captions
of its circuit figures; the simulation counts loads and time steps, it is no model of a particular chip.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlearn.layers.cost import count_parameters
from mtlearn.layers.experts import Experts, Routes
from mtlearn.moe.m3vit.method import M3ViT, MoELayer

Order = Literal["token", "expert"]


@dataclass(frozen=True)
class Schedule:
    """Visits in the order in which they are computed.

    Attributes:
        token, expert, gate: (visits,).
        buffers: experts that the on-chip memory holds at once.
        prefetch: whether the next expert is loaded while the present one computes.
    """

    token: Tensor
    expert: Tensor
    gate: Tensor
    buffers: int
    prefetch: bool


def schedule(routes: Routes, order: Order, *, buffers: int = 2) -> Schedule:
    """Token by token, or expert by expert; inside a token its experts, and inside an expert its tokens, by number.

    Both orders meet the experts of one token in the same sequence, so that even rounding is the same.

    Args:
        routes: of any rule.
        order: ``token`` or ``expert``.
        buffers: at least 1; expert by expert needs 2 to load and compute at the same time.
    """
    if order not in ("token", "expert"):
        raise ValueError(f"order must be 'token' or 'expert', got {order!r}")
    if buffers < 1:
        raise ValueError(f"buffers must be at least 1, got {buffers}")
    key = routes.token * routes.num_experts + routes.expert if order == "token" else routes.expert * routes.tokens + routes.token
    at = key.argsort()
    return Schedule(routes.token[at], routes.expert[at], routes.gate[at], buffers, order == "expert" and buffers > 1)


@dataclass(frozen=True)
class Trace:
    """What a schedule makes the memory do, visit by visit.

    Attributes:
        load: (visits,) bool, whether the visit's expert had to be fetched.
        resident: (visits, buffers) int64, the experts that lie on the chip during the visit, -1 for an empty buffer, the latest used last.
        finish: (visits,) the time at which the visit is done.
        waited: time in which nothing was computed.
    """

    load: Tensor
    resident: Tensor
    finish: Tensor
    waited: float

    @property
    def loads(self) -> int:
        """How often weights were fetched."""
        return int(self.load.sum())


def simulate(plan: Schedule, *, load_time: float = 8.0, visit_time: float = 1.0) -> Trace:
    """Play a schedule with least-recently-used buffers.

    Args:
        plan: the schedule.
        load_time: of one expert's weights, in the time of a visit by default.
        visit_time: of one token at one expert.

    With prefetch an expert's load starts as soon as the one before it has begun to compute; else a missing expert is loaded while nothing computes.
    """
    if load_time < 0 or visit_time <= 0:
        raise ValueError(f"load_time must be at least 0 and visit_time positive, got {load_time} and {visit_time}")
    held: list[int] = []
    loads: list[bool] = []
    residents: list[list[int]] = []
    finished: list[float] = []
    now = ready = started = 0.0  # time now, when the latest fetched weights are there, when the latest fetched expert began to compute
    waited = 0.0
    for expert in plan.expert.tolist():
        fetch = expert not in held
        if fetch:
            held = [*held, expert][-plan.buffers :]
            ready = max(started, ready) + load_time if plan.prefetch and finished else now + load_time
            start = max(now, ready)
            started = start
        else:
            held = [*(e for e in held if e != expert), expert]
            start = now
        waited += start - now
        now = start + visit_time
        loads.append(fetch)
        residents.append([-1] * (plan.buffers - len(held)) + held)
        finished.append(now)
    resident = torch.tensor(residents, dtype=torch.int64).view(-1, plan.buffers)
    return Trace(torch.tensor(loads, dtype=torch.bool), resident, torch.tensor(finished), waited)


def execute(plan: Schedule, experts: Experts, x: Tensor) -> Tensor:
    """Compute the visits one by one in the order of the schedule, as the accelerator would: tokens (tokens, width) to the same shape."""
    output = torch.zeros_like(x)
    for token, expert, gate in zip(plan.token.tolist(), plan.expert.tolist(), plan.gate, strict=True):
        hidden = F.gelu(x[token] @ experts.first[expert] + experts.first_bias[expert])
        output[token] += gate * (hidden @ experts.second[expert] + experts.second_bias[expert])
    return output


def switch_cost(model: M3ViT, task: str) -> int:
    """Numbers to fetch when the turn of ``task`` comes: its gate matrices and its head. Everything else is every task's, and stays.

    Experts come and go within every task anyway, each at most once a layer, so a switch adds nothing to that.
    """
    gates = [block.feed.gate for block in model.blocks if isinstance(block.feed, MoELayer)]
    own = sum(gate.router.weight[0].numel() for gate in gates if gate.gating == "multi")
    if model.task_embedding is not None:
        own += model.task_embedding.vectors()[0].numel()
    return own + count_parameters(model.heads[model.tasks[model.index(task)]])
