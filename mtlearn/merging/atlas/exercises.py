"""Exercises on aTLAS."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.lab.seeds import stream
from mtlearn.merging.atlas.method import information, select_blockwise
from mtlearn.merging.task_vectors import State


def _draw(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=stream(0, "exercise", name))


# 1: the projection matrix of intrinsic dimension ------------------------------------------------------------------------------------


def _vectors(count: int = 3) -> list[dict[str, Tensor]]:
    return [{"w": _draw(2, 3, name=f"w {i}"), "b": _draw(2, name=f"b {i}")} for i in range(count)]


def _judge_projection(answer: Callable[[Sequence[State]], Tensor]) -> str | None:
    vectors = _vectors()
    projection = answer([dict(vector) for vector in vectors])
    if not isinstance(projection, Tensor) or projection.shape != (8, 6):
        got = tuple(projection.shape) if isinstance(projection, Tensor) else type(projection).__name__
        return f"P must be (weights, vectors · blocks) = (8, 6) for these three vectors of two blocks, got {got}."
    by_block = _draw(3, 2, name="coefficients")
    right = torch.cat([torch.stack([by_block[i, j] * vectors[i][name] for i in range(3)]).sum(0).flatten() for j, name in enumerate(vectors[0])])
    if not torch.allclose(projection @ by_block.flatten(), right, atol=1e-5):
        return (
            "P @ coefficients.flatten() is not Σ_i Λ_i τ_i. Column i · m + j holds block j of vector i, at the rows of that block; "
            "everything else in that column is 0."
        )
    return None


def _solve_projection() -> Any:
    def projection(vectors: Sequence[State]) -> Tensor:
        # a column for each coefficient: one block of one vector, and zeros where the other blocks are
        columns = []
        for vector in vectors:
            for name in vector:
                column = [value.flatten() if other == name else 0 * value.flatten() for other, value in vector.items()]
                columns.append(torch.cat(column))
        return torch.stack(columns, 1)

    return projection


def _wrong_projection(vectors: Sequence[State]) -> Tensor:
    return torch.stack([torch.cat([value.flatten() for value in vector.values()]) for vector in vectors], 1)


# 2: scores from one backward pass ----------------------------------------------------------------------------------------------------


def _judge_blocks(answer: Callable[[State, Sequence[State]], Tensor]) -> str | None:
    for trial in range(3):
        vectors = [{"w": _draw(4, 3, name=f"{trial} w {i}"), "b": _draw(4, name=f"{trial} b {i}")} for i in range(5)]
        gradient = {"w": _draw(4, 3, name=f"{trial} gw"), "b": _draw(4, name=f"{trial} gb")}
        right = select_blockwise(information(gradient, vectors), 1)[0]
        given = answer(dict(gradient), vectors)
        if not isinstance(given, Tensor) or given.shape != (2,):
            return "one number of a vector for each of the two blocks is wanted: a tensor of shape (2,)."
        if given.tolist() != right.tolist():
            signed = information(gradient, vectors).argmax(0)
            if given.tolist() == signed.tolist():
                return "a large negative gradient promises as much as a large positive one: the coefficient may become negative. Mind the sign."
            return f"for trial {trial} the best vectors by |⟨gradient, block⟩| are {right.tolist()}, yours are {given.tolist()}."
    return None


def _solve_blocks() -> Any:
    def blocks(gradient: State, vectors: Sequence[State]) -> Tensor:
        # dL/dλ_i^(j) is the inner product of the gradient with block j of vector i: no further backward pass is needed
        scores = torch.stack([torch.stack([(gradient[name] * value).sum() for name, value in vector.items()]) for vector in vectors])
        return scores.abs().argmax(0)

    return blocks


def _wrong_blocks(gradient: State, vectors: Sequence[State]) -> Tensor:
    return torch.stack([torch.stack([(gradient[name] * value).sum() for name, value in vector.items()]) for vector in vectors]).argmax(0)


# 3: which needs more data -------------------------------------------------------------------------------------------------------------

SHARES = (0.1, 0.35, 1.0)


def _judge_crossing(answer: tuple[float, str]) -> str | None:
    from mtlearn.lab.result import recorded
    from mtlearn.merging.atlas.experiment import ATLAS, WEIGHTS, at

    arms = recorded("atlas").arms
    ours = [arms[at(ATLAS, share)]["accuracy"] for share in SHARES]
    all_weights = [arms[at(WEIGHTS, share)]["accuracy"] for share in SHARES]
    share, steadier = answer
    first = next((share for share, a, w in zip(SHARES, ours, all_weights, strict=True) if w.mean > a.mean), None)
    if share not in SHARES or share != first:
        return f"compare the means at {', '.join(f'{100 * s:.0f} %' for s in SHARES)}: at which share are all weights ahead for the first time?"
    right = "aTLAS" if ours[0].sd < all_weights[0].sd else "all weights"
    if steadier != right:
        return (
            "the second part is the name of the way whose accuracy differs less between seeds (sd) at 10 % of the images: 'aTLAS' or 'all weights'."
        )
    return None


def _solve_crossing() -> Any:
    from mtlearn.lab.result import recorded
    from mtlearn.merging.atlas.experiment import ATLAS, WEIGHTS, at

    def crossing() -> tuple[float, str]:
        arms = recorded("atlas").arms
        ahead = [share for share in SHARES if arms[at(WEIGHTS, share)]["accuracy"].mean > arms[at(ATLAS, share)]["accuracy"].mean]
        spread = {arm: arms[at(arm, 0.1)]["accuracy"].sd for arm in (ATLAS, WEIGHTS)}
        return ahead[0], min(spread, key=lambda arm: spread[arm])

    return crossing()


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            "**1. What is trained is a small vector.** Show that aTLAS is training in a space of low intrinsic dimension, "
            "$\\theta = \\theta_0 + P\\hat\\theta$: write a function of `vectors` (a list of n task vectors, each a mapping from the name "
            "of a block to a "
            "tensor) that returns the matrix $P$ (weights, n · blocks) for which `P @ coefficients.flatten()` is $\\sum_i \\Lambda_i \\tau_i$, with "
            "coefficients (n, blocks). Set `answer` to it."
        ),
        judge=_judge_projection,
        solve=_solve_projection,
        wrong=_wrong_projection,
        reason=(
            "P is block-diagonal after a reordering: each block of the model has its own n columns. With one column a vector instead (the isotropic "
            "model), the space has n dimensions instead of n · m. Random columns are the control: in the recorded run even eight times as "
            "many reach less."
        ),
    ),
    Exercise(
        question=(
            "**2. One backward pass.** Write a function of `(gradient, vectors)`: the gradient of the loss at $\\theta_0$ as a mapping from block to "
            "tensor, and a list of task vectors. Return for each block the number of the vector that a budget of $b = 1$ keeps, blockwise: a tensor "
            "(blocks,). Set `answer` to it."
        ),
        judge=_judge_blocks,
        solve=_solve_blocks,
        wrong=_wrong_blocks,
        reason=(
            "the derivative with respect to a coefficient is an inner product with the gradient of the weights, so n · m scores cost one "
            "backward pass "
            "and no memory for n vectors at once. Choosing whole vectors adds up blocks first, and so keeps blocks that promise nothing."
        ),
    ),
    Exercise(
        question=(
            "**3. The crossing.** The recorded result holds task addition learned from 10, 35 and 100 % of the 300 images: arms `at(ATLAS, "
            "share)` and "
            "`at(WEIGHTS, share)` of `recorded('atlas').arms`, metric `accuracy`, with `mean` and `sd`. Set `answer` to a pair: the smallest share "
            "(0.1, 0.35 or 1.0) at which training all weights is ahead, and which of 'aTLAS' and 'all weights' differs less between seeds at 10 %."
        ),
        judge=_judge_crossing,
        solve=_solve_crossing,
        wrong=(0.1, "all weights"),
        reason=(
            "80 numbers cannot follow the accidents of 30 images, so they spread less and hold out longer where data are scarce (ahead in the mean, "
            "though five seeds do not decide it); with enough data to say what 91,680 weights should be, they are too few."
        ),
    ),
)
