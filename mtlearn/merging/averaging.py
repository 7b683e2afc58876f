"""Averages that ask data how much each weight matters: Fisher averaging and RegMean. Both need a few inputs of each task, no training.

*Fisher averaging* (Matena and Raffel 2022): ``τ = Σ_t F_t ⊙ τ_t / Σ_t F_t``, where the diagonal Fisher information
``F_t = E_x E_{y~p(y|x)} (∂ log p(y|x) / ∂θ)²`` says how sharply the predictions of model t depend on a weight.

*RegMean* (Jin et al. 2023): each linear layer is chosen such that its outputs are nearest to those of all models on their own inputs ``X_t``,
``W^T = (Σ_t G_t)^-1 Σ_t G_t W_t^T`` with ``G_t = X_t^T X_t``, whose entries off the diagonal are first multiplied by ``shrink``; what belongs to no
linear layer is averaged. It is written here for task vectors, which is the same, since the base is in every ``W_t``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from mtlearn.merging.task_vectors import State, average, check_finite, check_vectors


def diagonal_fisher(model: nn.Module, inputs: Tensor, *, logits: Callable[[Any], Tensor] | None = None, chunk: int = 16) -> dict[str, Tensor]:
    """``E_x Σ_y p(y|x) (∂ log p(y|x) / ∂θ)²``, exact in the labels: no label is needed and none is drawn.

    Args:
        model: in evaluation mode (a batch norm or dropout in training mode ties the examples to one another).
        inputs: (n, ...), of the task.
        logits: from the model's output (of one input, with a batch dimension of 1) to logits (1, C), where a head follows; the identity when omitted.
        chunk: inputs at a time; memory holds chunk * C gradients.

    Returns:
        The name of each parameter to its information, of the parameter's shape.

    Raises:
        ValueError: there is no input, or the model is in training mode.
    """
    if not len(inputs):
        raise ValueError("the Fisher information needs at least one input")
    if model.training:
        raise ValueError("the Fisher information is taken in evaluation mode: call model.eval() first")
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def log_p(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        out = functional_call(model, weights, (x[None],))
        values = (logits(out) if logits else out)[0].log_softmax(-1)
        return values, values

    gradients = vmap(jacrev(log_p, has_aux=True), in_dims=(None, 0))
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for part in torch.split(inputs, chunk):
        rows, values = gradients(parameters, part)  # name to (chunk, C, ...), and (chunk, C)
        for name, row in rows.items():
            total[name] += torch.einsum("nc,nc...->...", values.exp(), row.square())
    return {name: value / len(inputs) for name, value in total.items()}


def fisher_average(vectors: Sequence[State], fishers: Sequence[State], *, epsilon: float = 1e-10) -> dict[str, Tensor]:
    """``Σ_t F_t ⊙ τ_t / Σ_t F_t``; where no task has more than ``epsilon``, the plain average.

    Args:
        vectors: n task vectors.
        fishers: n mappings with the information of each entry, none negative; an entry without one is averaged.
        epsilon: added to every ``F_t``.

    Raises:
        ValueError: the numbers of vectors and fishers differ, or an information has another shape, is negative or not finite.
    """
    check_vectors(vectors)
    if len(fishers) != len(vectors):
        raise ValueError(f"fisher_average needs the information of each task, got {len(fishers)} for {len(vectors)} task vectors")
    merged = average(vectors)
    for name in merged:
        if all(name in fisher for fisher in fishers):
            for number, fisher in enumerate(fishers):
                _check_shape(f"the information of {name!r} of task {number}", fisher[name], tuple(merged[name].shape))
                if (fisher[name] < 0).any():
                    raise ValueError(f"the information of {name!r} of task {number} is negative somewhere; it is a mean of squares")
            weights = torch.stack([fisher[name] for fisher in fishers]) + epsilon
            merged[name] = (weights * torch.stack([vector[name] for vector in vectors])).sum(0) / weights.sum(0)
    return merged


def input_grams(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """``X^T X`` of what enters each ``nn.Linear`` of the model: the name of its weight to (in, in).

    Args:
        model: it is run once on ``inputs`` without gradients.
        inputs: (n, ...), of the task.
    """
    grams: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):

            def look(_: nn.Module, args: tuple[Tensor, ...], key: str = f"{name}.weight" if name else "weight") -> None:
                rows = args[0].detach().flatten(0, -2)  # (n, in)
                grams[key] = grams.get(key, 0) + rows.T @ rows

            handles.append(module.register_forward_pre_hook(look))
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return grams


def regmean(vectors: Sequence[State], grams: Sequence[Mapping[str, Tensor]], *, shrink: float = 0.9) -> dict[str, Tensor]:
    """The task vector of RegMean: least squares on the outputs of each linear layer, an average elsewhere.

    Args:
        vectors: n task vectors.
        grams: of each task, :func:`input_grams` of *its* model on its inputs.
        shrink: what entries off the diagonal are multiplied by, in [0, 1]: 1 is plain least squares.

    Raises:
        ValueError: the numbers of vectors and grams differ, ``shrink`` is out of range, or a gram does not fit its layer.
    """
    check_vectors(vectors)
    if len(grams) != len(vectors):
        raise ValueError(f"regmean needs the grams of each task, got {len(grams)} for {len(vectors)} task vectors")
    if not 0 <= shrink <= 1:
        raise ValueError(f"shrink must be in [0, 1], got {shrink}")
    merged = average(vectors)
    for name, mean in merged.items():
        if all(name in gram for gram in grams):
            for number, gram in enumerate(grams):
                _check_shape(f"the gram of {name!r} of task {number}", gram[name], (mean.shape[-1], mean.shape[-1]))
            g = torch.stack([gram[name] for gram in grams]).double()  # (n, in, in)
            g = shrink * g + (1 - shrink) * torch.diag_embed(g.diagonal(dim1=1, dim2=2))
            targets = torch.stack([vector[name] for vector in vectors]).double().mT  # (n, in, out)
            solved = torch.linalg.pinv(g.sum(0), hermitian=True) @ (g @ targets).sum(0)  # inputs that never vary: the shortest solution
            unseen = g.sum(0).diagonal() == 0  # no input moved these columns, so any value fits: the average does
            merged[name] = torch.where(unseen, mean, solved.mT.to(mean.dtype))
    return merged


def _check_shape(what: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{what} has shape {tuple(value.shape)}, the task vector needs {shape}")
    check_finite(value, what)
