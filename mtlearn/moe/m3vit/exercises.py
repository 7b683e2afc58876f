"""Exercises on M3ViT."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.lab.seeds import stream
from mtlearn.layers.experts import top_k_routes
from mtlearn.moe.m3vit.reordering import schedule, simulate


def _draw(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=stream(0, "exercise", name))


def _judge_growth(answer: Callable[[Tensor, int], Tensor]) -> str | None:
    for scale, k in ((0.0, 4), (1.0, 4), (3.0, 2), (1.0, 8)):
        logits = scale * _draw(5, 8, name="logits")
        kept = top_k_routes(logits, k).gate.view(5, k).sum(1)
        given = answer(logits.clone(), k)
        if not isinstance(given, Tensor) or given.shape != kept.shape:
            return "one factor for each token is wanted: a tensor of shape (tokens,)."
        if not torch.allclose(given, 1 / kept, rtol=1e-4):
            if scale and torch.allclose(given, torch.full_like(kept, 8 / k)):
                return f"{8 / k:.0f} = E/K is right for a zero router alone: with other logits the K best hold more than K/E of the mass."
            return f"for k={k} the first token's factor is {float(1 / kept[0]):.3f}, yours {float(given[0]):.3f}. What do the gates sum to?"
    return None


def _solve_growth() -> Any:
    def growth(logits: Tensor, k: int) -> Tensor:
        # after the top-k the gates sum to 1, before it to the kept mass; their proportions are the same
        return 1 / logits.softmax(-1).topk(k).values.sum(-1)

    return growth


def _wrong_growth(logits: Tensor, k: int) -> Tensor:
    return torch.full((len(logits),), logits.shape[1] / k)


def _judge_bias(answer: Callable[[Tensor, Tensor, int], Tensor]) -> str | None:
    width, task_width, experts, tasks = 6, 3, 5, 4
    weight, vectors = _draw(width + task_width, experts, name="weight"), _draw(tasks, task_width, name="vectors")
    right = vectors @ weight[width:]
    given = answer(weight.clone(), vectors.clone(), width)
    if not isinstance(given, Tensor) or given.shape != right.shape:
        return f"the result must be (tasks, experts) = {tuple(right.shape)}."
    x = _draw(7, width, name="tokens")
    for task in range(tasks):
        logits = torch.cat([x, vectors[task].expand(7, -1)], 1) @ weight
        if not torch.allclose(x @ weight[:width] + given[task], logits, atol=1e-4):
            return f"x W_1 plus your row {task} is not the gate's logits for task {task}. Which rows of W meet the task vector?"
    return None


def _solve_bias() -> Any:
    def bias(weight: Tensor, vectors: Tensor, width: int) -> Tensor:
        # [x; c] W = x W[:width] + c W[width:]: the second term knows nothing of the token
        return vectors @ weight[width:]

    return bias


def _wrong_bias(weight: Tensor, vectors: Tensor, width: int) -> Tensor:
    return vectors @ weight[: vectors.shape[1]]


def _judge_order(answer: Callable[[Tensor], Tensor]) -> str | None:
    for tokens, experts in ((12, 3), (40, 6), (5, 5)):
        chosen = torch.randint(experts, (tokens,), generator=stream(0, "exercise", "order", tokens))
        order = answer(chosen.clone())
        if not isinstance(order, Tensor) or sorted(order.tolist()) != list(range(tokens)):
            return f"every token must be worked on once: return the numbers 0 to {tokens - 1} in some order."
        routes = top_k_routes(torch.eye(experts)[chosen[order]], 1)
        loads, fewest = simulate(schedule(routes, "token", buffers=1)).loads, len(set(chosen.tolist()))
        if loads > fewest:
            return f"in your order {loads} loads are needed for {tokens} tokens and {fewest} experts in use; {fewest} are enough."
    return None


def _solve_order() -> Any:
    def order(chosen: Tensor) -> Tensor:
        # tokens that want the same expert side by side
        return chosen.argsort(stable=True)

    return order


def _wrong_order(chosen: Tensor) -> Tensor:
    return torch.bincount(chosen)[chosen].argsort()


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            "**1. Before or after?** Take the softmax *after* choosing the top K instead of before, and leave everything else as it is. By what "
            "factor does what the experts say grow? Write a function of `(logits, k)`, logits of shape (tokens, experts), that returns one factor "
            "a token. Set `answer` to it."
        ),
        judge=_judge_growth,
        solve=_solve_growth,
        wrong=_wrong_growth,
        reason=(
            "one over the mass that the K best hold: E/K for a router at zero, close to 1 for a peaked one. So the rule and the router's first "
            "weights decide together how strongly the mixture speaks at the start of training."
        ),
    ),
    Exercise(
        question=(
            "**2. What can a task vector do?** The task-conditioned gate computes $[x; c_t] W$. Write a function of `(weight, vectors, width)`, W of "
            "shape (width + task width, experts) and task vectors (tasks, task width), that returns a tensor (tasks, experts): what each task adds "
            "to the logits of *every* token. Set `answer` to it."
        ),
        judge=_judge_bias,
        solve=_solve_bias,
        wrong=_wrong_bias,
        reason=(
            "the task's part is a constant for all tokens. It can make a task prefer experts; it cannot make it sort tokens in another way, which "
            "a matrix a task can."
        ),
    ),
    Exercise(
        question=(
            "**3. Reorder.** Each token wants one expert, and the chip holds one expert at a time. Write a function of `chosen`, the expert of each "
            "token (int64), that returns the order of the tokens in which token-by-token computing needs as few loads as possible. Set `answer` "
            "to it."
        ),
        judge=_judge_order,
        solve=_solve_order,
        wrong=_wrong_order,
        reason=(
            "sorting by expert: as many loads as experts in use. With K experts a token no order of tokens achieves that; one has to leave the order "
            "of tokens and go expert by expert, which is the paper's step."
        ),
    ),
)
