"""Exercises on 2D Matryoshka embeddings."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlearn.explore.exercises import Exercise
from mtlearn.lab.seeds import stream
from mtlearn.retrieval.matryoshka_2d.method import alignment, sliced


def _draw(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=stream(0, "matryoshka_2d", "exercise", name))


def _judge_share(answer: Callable[[int, int], float]) -> str | None:
    for layers, layer in ((4, 1), (4, 3), (12, 1), (12, 6), (12, 12), (6, 6)):
        right = 1.0 if layer == layers else 1 / ((layers - 1) * layer)
        given = float(answer(layers, layer))
        if abs(given - right) > 1e-6:
            return (
                f"of {layers} layers, layer {layer} has the weight {right:.4f} in a step on average, you say {given:.4f}. How often is it drawn, "
                "and what is its weight when it is? The last layer is in every step."
            )
    return None


def _solve_share() -> Any:
    def share(layers: int, layer: int) -> float:
        if layer == layers:
            return 1.0
        return (1 / (layers - 1)) * (1 / layer)  # drawn once in N - 1 steps, and then weighs 1 / n

    return share


def _wrong_share(layers: int, layer: int) -> float:
    return 1 / layer


def _judge_detached(answer: Callable[[Tensor, Tensor, float], Tensor]) -> str | None:
    student, teacher = _draw(5, 8, name="student").requires_grad_(), _draw(5, 8, name="teacher").requires_grad_()
    for temperature in (0.3, 1.0):
        given, right = answer(student, teacher, temperature), temperature * alignment(student, teacher, temperature)
        if not isinstance(given, Tensor) or given.dim() != 0:
            return "a scalar tensor is wanted."
        if abs(float(given.detach()) - float(right.detach())) > 1e-5:
            return f"at T = {temperature:g} the value must stay T KL = {float(right.detach()):.4f}, yours is {float(given.detach()):.4f}."
        pull = torch.autograd.grad(given, [student, teacher], allow_unused=True)
        if pull[1] is not None and float(pull[1].norm()) > 1e-8:
            return f"a gradient of norm {float(pull[1].norm()):.3f} still reaches the last layer; detach() stops it."
        wanted = torch.autograd.grad(right, student)[0]
        if pull[0] is None or not torch.allclose(pull[0], wanted, atol=1e-5):
            return "the shallow layer must keep its gradient; detach the teacher alone."
    return None


def _solve_detached() -> Any:
    def detached(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return temperature * alignment(student, teacher.detach(), temperature)

    return detached


def _wrong_detached(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return temperature * alignment(student, teacher, temperature)


def two_stages(cheap: Tensor, full: Tensor, k: int) -> float:
    """Share of queries whose own document (the diagonal) is first when the ``k`` best of ``cheap`` (q, n) are put in order by ``full`` (q, n)."""
    best = cheap.topk(k, 1).indices
    first = best.gather(1, full.gather(1, best).argmax(1, keepdim=True))[:, 0]
    return float((first == torch.arange(len(full))).double().mean())


def _judge_shortlist(answer: Callable[[Tensor, Tensor, int], float]) -> str | None:
    documents = F.normalize(_draw(120, 32, name="documents"), dim=-1)
    queries = documents + 0.25 * _draw(120, 32, name="queries")
    full, cheap = sliced(queries, 32) @ documents.T, sliced(queries, 4) @ sliced(documents, 4).T
    for k in (1, 5, 20, 120):
        right, given = two_stages(cheap, full, k), float(answer(cheap, full, k))
        if abs(right - given) > 1e-6:
            return f"with a shortlist of {k} of 120 the right document is first for {right:.3f} of the queries, you say {given:.3f}."
    return None


def _solve_shortlist() -> Any:
    def recall_at_1(cheap: Tensor, full: Tensor, k: int) -> float:
        shortlist = cheap.topk(k, 1).indices  # (q, k), found with the cheap vectors
        place = full.gather(1, shortlist).argmax(1)  # put in order with the full ones
        first = shortlist[torch.arange(len(full)), place]
        return float((first == torch.arange(len(full))).double().mean())

    return recall_at_1


def _wrong_shortlist(cheap: Tensor, full: Tensor, k: int) -> float:
    own = torch.arange(len(cheap))
    return float((cheap.topk(k, 1).indices == own[:, None]).any(1).double().mean())


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            "**1. Who is trained how much?** A step draws one of the layers 1 to N - 1 and gives it the weight 1/n; the last layer is in every step "
            "with the weight 1. What weight has layer n in a step *on average*? Write a function of `(layers, layer)`. Set `answer` to it. Then say "
            "what the first release, with the weight 1, changes for BERT's layers 1 and 11."
        ),
        judge=_judge_share,
        solve=_solve_share,
        wrong=_wrong_share,
        reason=(
            "1 / ((N - 1) n): in BERT layer 1 has a weight of 0.09 and layer 11 of 0.008, a hundredth of the last one's. With the weight 1 both have "
            "0.09: 1/n is for the first layers, which are farthest from the loss."
        ),
    ),
    Exercise(
        question=(
            "**2. Who moves?** The alignment is to pull layer n to the last layer, but its gradient also pulls the last layer to layer n. Write a "
            "function of `(student, teacher, temperature)` with the same value, T times the divergence, that leaves the teacher alone. "
            "`alignment(student, teacher, temperature)` is in the method. Set `answer` to it."
        ),
        judge=_judge_detached,
        solve=_solve_detached,
        wrong=_wrong_detached,
        reason=(
            "the value does not change, only who follows whom. The authors' code lets the gradient through; sentence-transformers did until it "
            "changed its mind. In `two_d_loss` it is `detach=True`."
        ),
    ),
    Exercise(
        question=(
            "**3. Cheap first, then good.** Search with cheap vectors, put the `k` best in order with full ones. Query i's right document is "
            "document i. Write a function of the scores `(cheap, full, k)`, both (q, n), that returns the share of queries whose right document is "
            "first at the end. Set `answer` to it. Then try it on the shipped encoder: how large must k be to lose less than 1 % of recall at 1?"
        ),
        judge=_judge_shortlist,
        solve=_solve_shortlist,
        wrong=_wrong_shortlist,
        reason=(
            "the second stage cannot bring back what the first one lost, so k bounds the result; and with k of all documents it is the full search. "
            "One elastic encoder serves both stages: the cheap vector is the beginning of the work for the good one."
        ),
    ),
)
