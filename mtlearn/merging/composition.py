"""A model whose weights are the base's plus task vectors with learned coefficients, and the entropy that teaches them without labels.

``θ = θ_0 + Σ_i Λ_i τ_i``, where ``Λ_i`` is one number for the whole of task vector i (``per="task"``), or one for each parameter block, that is for
each entry of the state (``per="block"``). Trained on the entropy of the predictions for unlabelled inputs this is *AdaMerging*, task-wise or
layer-wise (Yang et al. 2024); trained on a loss of any kind, by block and from 0, it is aTLAS::

    merged = Composition(encoder, vectors, per="block", initial=0.3)
    fit(merged, lambda step: entropy(head(merged(images))), steps=300, optimizer=Adam([merged.coefficients], lr=1e-2))
    encoder.load_state_dict(merged.state())         one model again, at the base's size and cost
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtlearn.merging.task_vectors import State, check_finite, stack

Per = Literal["task", "block"]


class Composition(nn.Module):
    """A frozen model moved along n task vectors by learned coefficients.

    Args:
        model: the architecture with the base weights ``θ_0``; it is not changed and not trained.
        vectors: n task vectors of the same entries; a vector may leave out entries of the model, which then stay at the base.
        per: one coefficient for each task vector, or for each task vector and block.
        initial: what the coefficients start from.

    Attributes:
        coefficients: (n,) or (n, m), the only parameter; m blocks in the order of :attr:`blocks`.
        blocks: the names of the m entries that move.

    Raises:
        ValueError: vectors differ in names or shapes, do not fit the model, or hold a value that is not finite.
    """

    coefficients: nn.Parameter

    def __init__(self, model: nn.Module, vectors: Sequence[State], *, per: Per = "block", initial: float = 0.0) -> None:
        super().__init__()
        if per not in ("task", "block"):
            raise ValueError(f"per must be 'task' or 'block', got {per!r}")
        base = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        stacked = stack([{name: value for name, value in vector.items() if value.is_floating_point()} for vector in vectors])
        for name, rows in stacked.items():
            if name not in base:
                raise ValueError(f"the task vectors have an entry {name!r} that the model lacks; it has {', '.join(base)}")
            if rows.shape[1:] != base[name].shape:
                raise ValueError(f"{name!r} has shape {tuple(rows.shape[1:])} in the task vectors, {tuple(base[name].shape)} in the model")
            check_finite(rows, f"{name!r} of the task vectors")
        self.blocks = tuple(stacked)
        self.per: Per = per
        self._model = [model]  # in a list: its weights are no parameters of this module
        self._learned = {name for name, _ in model.named_parameters()}
        self._base = {name: value.detach() for name, value in base.items()}
        self._vectors = {name: rows.detach().flatten(1).to(base[name].device) for name, rows in stacked.items()}  # (n, size of the block)
        shape = (len(vectors),) if per == "task" else (len(vectors), len(self.blocks))
        device = next(iter(self._base.values())).device
        self.coefficients = nn.Parameter(torch.full(shape, float(initial), device=device))

    def by_block(self) -> Tensor:
        """(n, m): the coefficients, repeated over the blocks where there is one a task."""
        return self.coefficients if self.per == "block" else self.coefficients[:, None].expand(-1, len(self.blocks))

    def vectors(self) -> dict[str, Tensor]:
        """Name to (n, size): the task vectors as they are scaled and summed; a subclass may mask them."""
        return self._vectors

    def displacement(self) -> dict[str, Tensor]:
        """``Σ_i Λ_i τ_i`` by name: how far the base is moved, differentiable in the coefficients."""
        by_block = self.by_block()
        return {name: (by_block[:, j] @ rows).view_as(self._base[name]) for j, (name, rows) in enumerate(self.vectors().items())}

    def weights(self) -> dict[str, Tensor]:
        """The composed entries ``θ_0 + Σ_i Λ_i τ_i``, differentiable in the coefficients."""
        return {name: self._base[name] + change for name, change in self.displacement().items()}

    def state(self) -> dict[str, Tensor]:
        """All entries of the model as it now is, detached: what ``load_state_dict`` takes."""
        return {**{name: value.clone() for name, value in self._model[0].state_dict().items()}, **{k: v.detach() for k, v in self.weights().items()}}

    def forward(self, *inputs: Any) -> Any:
        """The output of the model with the composed weights."""
        # running statistics of a batch norm move with their coefficients, but nothing can be differentiated by them
        weights = {name: value if name in self._learned else value.detach() for name, value in self.weights().items()}
        return functional_call(self._model[0], {**self._base, **weights}, inputs)


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the predictions, ``-Σ_c p_c log p_c`` in nats: from 0 (sure) to log C (uniform).

    Args:
        logits: (..., C) with at least two classes.

    Raises:
        ValueError: there is one class, whose entropy is 0 whatever the model does, or no input.
    """
    if logits.dim() < 1 or logits.shape[-1] < 2:
        raise ValueError(f"entropy needs logits (..., C) of at least two classes, got shape {tuple(logits.shape)}: with one class it is always 0")
    if not logits.numel():
        raise ValueError(f"entropy needs at least one input, got logits of shape {tuple(logits.shape)}")
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).mean()
