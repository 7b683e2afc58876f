"""Merging rules that Self Positioning is compared with, as the paper uses them: each gives one task vector.

TIES, Fisher averaging and RegMean themselves are the chapter's (:mod:`mtlearn.merging.task_vectors`, :mod:`mtlearn.merging.averaging`). Free linear
coefficients, learned on the same probe, are its :class:`mtlearn.merging.composition.Composition` with one number a task.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mtlearn.merging.task_vectors import State, norm, scaled, ties


def rescaled_ties(vectors: Sequence[State], keep: float, length: float) -> dict[str, Tensor]:
    """TIES, brought to ``length`` times the mean norm of the task vectors: trimming alone would make it short."""
    merged = ties(vectors, keep)
    mean = sum(norm(vector) for vector in vectors) / len(vectors)
    return scaled(merged, length * mean / norm(merged))


def squared_gradients(model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> dict[str, Tensor]:
    """Empirical Fisher information of each parameter: the mean over small batches of the squared gradient of their loss.

    InfoNCE ties the pairs of a batch to one another, so a batch, not a pair, is the unit; small batches are nearer to the definition.
    """
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for loss in losses:
        for name, gradient in zip(parameters, torch.autograd.grad(loss(), list(parameters.values()), materialize_grads=True), strict=True):
            total[name] += gradient.square()
    return {name: value / len(losses) for name, value in total.items()}
