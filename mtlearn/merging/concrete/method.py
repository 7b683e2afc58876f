"""Concrete (Tang et al., arXiv 2312.06173, 2023): learn one soft mask, shared by all tasks, of the weights in which task vectors may be merged.

**Idea.** Rules such as trimming or electing signs judge each weight by itself, though tasks disturb one another through many weights together. So let
gradient descent judge: every weight gets a logit ``x``, the mask is a sample of a relaxed coin with that logit, and ``x`` is trained on what the
*merged* model does with unlabelled inputs of all tasks. The mask is common to the tasks: it marks a subspace in which their changes live together.

**The mask.** ``u`` uniform in (0, 1) for each weight, temperature ``T``:

    m = σ((logit(u) + x) / T)                 concrete, or relaxed Bernoulli: P(m > 1/2) = σ(x) at every T, and a coin in {0, 1} as T → 0
    τ'_i = τ_i ⊙ m / mean(m)                  for each parameter tensor, the same m for all tasks; the gradient passes through the mean

A constant mask changes nothing, and dropping weights does not shorten the update on average (as the ``1 / (1 - p)`` of DARE).

**Two levels.** Outer: the logits. Inner: the merging algorithm with coefficients ``w`` of its own. ``L_i`` is the entropy of the predictions on a
batch of task i, so that no label is used:

    min_x  Σ_i L_i(θ_0 + Σ_t w*_t(x) τ'_t(x))         w*(x) = one step of Adam on w from its start, with the mask held

``w*`` is treated as a constant in the gradient of ``x`` (first order). *Concrete Task Arithmetic* has nothing to learn inside: ``w = λ`` stays, and
since ``Σ_t m ⊙ τ_t = m ⊙ Σ_t τ_t`` only the summed vector is needed. *Concrete AdaMerging* has a coefficient a task, or one a task and parameter
tensor; after the mask is learned it is fixed, and ``w`` is trained alone from its start (phase two).

**What is reconstruction.** This follows the two public implementations, not the text of the paper: temperature 1/2, ``x`` starting at 0, ``w`` at
0.3, the inner Adam keeps its moments while ``w`` is reset at every step. Where they differ we follow the later one, fusion_bench: the same mask
inside and outside. That one merges before it resets ``w``, so that its inner gradient is taken at the coefficients of the step before; here the reset
comes first, as in the equation. Our inner rate is smaller than their 1, which moves a coefficient by about 1 in its one step. A mask that drops a
whole tensor has mean 0 there, which they divide by; we take the limit of constant masks, 1, and leave such a tensor unmasked.

    merging = ConcreteMerging(encoder, vectors, algorithm="arithmetic", scale=0.3)
    fit(merging.mask, lambda step: merging.objective(loss, generator=draws), steps=250, optimizer=Adam([merging.mask.logits], lr=0.03))
    encoder.load_state_dict(merging.merged("mean").state())
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mtlearn.merging.composition import Composition, Per, entropy
from mtlearn.merging.task_vectors import State, add, check_finite, check_vectors, flatten, unflatten

Algorithm = Literal["arithmetic", "task", "block"]
Kind = Literal["continuous", "discrete", "mean"]
Loss = Callable[[Callable[..., Tensor]], Tensor]


# ------------------------------------------------------------------------------------------------------------------------------ the mask


def concrete(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """``m = σ((logit(u) + x) / T)``, a sample of the relaxed Bernoulli distribution, differentiable in ``x``.

    Args:
        logits: x, of any shape.
        uniform: u in [0, 1), of the same shape.
        temperature: T, positive.

    Returns:
        Of the same shape, strictly between 0 and 1.

    Raises:
        ValueError: the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; at 0 the mask is a coin without a gradient: kind='discrete'")
    limits = torch.finfo(logits.dtype)
    soft = torch.sigmoid((torch.logit(uniform.clamp(limits.eps, 1 - limits.eps)) + logits) / temperature)
    return soft.clamp(limits.tiny, 1 - limits.eps)  # rounding must not close the open interval


def rescale(mask: Tensor) -> Tensor:
    """``m / mean(m)``, whose mean is 1; ones where everything is dropped, as for every other constant mask. The gradient passes through the mean."""
    mean = mask.mean()
    return torch.where(mean > 0, mask / mean.clamp(min=torch.finfo(mask.dtype).tiny), torch.ones_like(mask))


def masked_vectors(vectors: Sequence[State], mask: State) -> list[dict[str, Tensor]]:
    """``τ'_i = τ_i ⊙ m / mean(m)`` for each parameter tensor, with one mask for all.

    Args:
        vectors: n task vectors; integer entries are left out.
        mask: name to mask before rescaling, none negative.

    Raises:
        ValueError: names or shapes differ, or a mask is negative or not finite.
    """
    moving = [_floating(vector) for vector in vectors]
    check_vectors(moving)
    check_mask(mask, moving[0])
    factors = {name: rescale(mask[name]) for name in moving[0]}
    return [{name: value * factors[name] for name, value in vector.items()} for vector in moving]


class ConcreteMask(nn.Module):
    """One logit for each weight.

    Args:
        like: a task vector, for the names and shapes.
        temperature: T of the relaxation.
        initial: x at the start; 0 keeps each weight with probability one half.

    Attributes:
        logits: (P,), all weights behind one another, the only parameter.

    Raises:
        ValueError: the temperature is not positive, or ``like`` has no floating-point entry.
    """

    logits: nn.Parameter

    def __init__(self, like: State, *, temperature: float = 0.5, initial: float = 0.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        moving = _floating(like)
        if not moving:
            raise ValueError("a mask needs a task vector with at least one floating-point entry")
        self.temperature = temperature
        self._like = {name: torch.empty(value.shape, device="meta") for name, value in moving.items()}
        device = next(iter(moving.values())).device
        self.logits = nn.Parameter(torch.full((sum(value.numel() for value in moving.values()),), float(initial), device=device))

    def probabilities(self) -> dict[str, Tensor]:
        """Name to σ(x): how likely each weight is kept."""
        return unflatten(torch.sigmoid(self.logits), self._like)

    def forward(self, kind: Kind = "continuous", *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """A mask, not yet rescaled.

        Args:
            kind: ``continuous``, a relaxed sample with a gradient; ``discrete``, a sample in {0, 1}; ``mean``, σ(x) without noise.
            generator: of the uniform numbers, on the CPU. The discrete sample is the continuous one of the same numbers, rounded.
        """
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be 'continuous', 'discrete' or 'mean', got {kind!r}")
        if kind == "mean":
            return self.probabilities()
        uniform = torch.rand(self.logits.shape, generator=generator).to(self.logits.device)
        soft = concrete(self.logits, uniform, self.temperature)
        return unflatten(soft if kind == "continuous" else (soft > 0.5).to(soft.dtype), self._like)

    def load(self, logits: State) -> None:
        """Take logits from a mapping of names, a saved mask say.

        Raises:
            ValueError: names or shapes differ from the model's, or a logit is not finite; the message names the entry.
        """
        _check_names(logits, self._like)
        for name in self._like:
            check_finite(logits[name], f"the saved logits of {name!r}")
        with torch.no_grad():
            self.logits.copy_(flatten({name: logits[name] for name in self._like}))


# --------------------------------------------------------------------------------------------------------------------------- the merging


class MaskedComposition(Composition):
    """``θ_0 + m/mean(m) ⊙ Σ_i Λ_i τ_i``: a composition that wears one mask for all its task vectors.

    The mask stands outside of the sum, where it costs one product a weight and not n.

    Args:
        model, vectors, per, initial: as in :class:`~mtlearn.merging.composition.Composition`.

    Attributes:
        factors: name to the rescaled mask; None for no mask.
    """

    def __init__(self, model: nn.Module, vectors: Sequence[State], *, per: Per = "task", initial: float = 0.3) -> None:
        super().__init__(model, vectors, per=per, initial=initial)
        self.initial = float(initial)
        self.factors: dict[str, Tensor] | None = None

    def wear(self, mask: State) -> None:
        """Put on a mask, which is rescaled here. ValueError where it does not fit."""
        check_mask(mask, {name: self._base[name] for name in self.blocks})
        self.factors = {name: rescale(mask[name]) for name in self.blocks}

    def weights(self) -> dict[str, Tensor]:
        """The composed entries, differentiable in the coefficients and in the mask."""
        if self.factors is None:
            return super().weights()
        by_block, vectors = self.by_block(), self.vectors()
        summed = {name: (by_block[:, j] @ vectors[name]).view_as(self._base[name]) for j, name in enumerate(self.blocks)}
        return {name: self._base[name] + self.factors[name] * total for name, total in summed.items()}


class ConcreteMerging(nn.Module):
    """The two levels together: a shared mask, and a merging algorithm that is run anew under each sample of it.

    Args:
        model: the architecture with the base weights; not changed.
        vectors: n task vectors.
        algorithm: ``arithmetic`` (λ stays), ``task`` (a coefficient a task) or ``block`` (one a task and parameter tensor).
        scale: λ, or what the coefficients start from.
        temperature, initial: of the mask.
        inner_rate: of the one step of Adam on the coefficients.
        clamp: keep the coefficients of the inner step in [0, 1].

    Attributes:
        mask: the :class:`ConcreteMask`; its logits are what the outer optimiser moves.
        merging: the :class:`MaskedComposition` whose coefficients the inner step moves.

    Raises:
        ValueError: the algorithm is unknown, a rate is not positive, or the vectors do not fit the model or one another.
    """

    def __init__(
        self, model: nn.Module, vectors: Sequence[State], *, algorithm: Algorithm = "arithmetic", scale: float = 0.3, temperature: float = 0.5,
        initial: float = 0.0, inner_rate: float = 0.1, clamp: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if algorithm not in get_args(Algorithm):
            raise ValueError(f"algorithm must be 'arithmetic', 'task' or 'block', got {algorithm!r}")
        if not inner_rate > 0:
            raise ValueError(f"inner_rate must be positive, got {inner_rate}")
        moving = [_floating(vector) for vector in vectors]
        self.algorithm, self.clamp = algorithm, clamp
        # a shared mask commutes with the sum, so fixed equal coefficients need the summed vector alone
        self.merging = MaskedComposition(
            model, [add(moving)] if algorithm == "arithmetic" else moving, per="block" if algorithm == "block" else "task", initial=scale
        )
        self.merging.coefficients.requires_grad_(algorithm != "arithmetic")
        self.mask = ConcreteMask(moving[0], temperature=temperature, initial=initial)
        self._inner = torch.optim.Adam([self.merging.coefficients], lr=inner_rate)

    def objective(self, loss: Loss, *, generator: torch.Generator | None = None) -> Tensor:
        """The outer loss under a fresh sample of the mask, after the inner step; its gradient reaches the logits alone.

        Args:
            loss: a callable model to a scalar; it draws its batches, and is called once for the inner step (if there is one) and once for the outer.
            generator: of the mask.
        """
        sample = self.mask("continuous", generator=generator)
        factors = {name: rescale(value) for name, value in sample.items()}
        if self.algorithm != "arithmetic":
            self.merging.factors = {name: value.detach() for name, value in factors.items()}
            self.inner_step(loss)
        self.merging.factors = factors
        held = self.merging.coefficients.requires_grad
        self.merging.coefficients.requires_grad_(False)  # w* is a constant of the outer gradient
        try:
            return loss(self.merging)
        finally:
            self.merging.coefficients.requires_grad_(held)

    def inner_step(self, loss: Loss) -> None:
        """Reset the coefficients and move them by one step of Adam under the mask that is worn."""
        coefficients = self.merging.coefficients
        with torch.no_grad():
            coefficients.fill_(self.merging.initial)
        (coefficients.grad,) = torch.autograd.grad(loss(self.merging), coefficients)
        self._inner.step()
        if self.clamp:
            with torch.no_grad():
                coefficients.clamp_(0, 1)

    @torch.no_grad()
    def merged(self, kind: Kind = "mean", *, generator: torch.Generator | None = None) -> MaskedComposition:
        """The composition under a final mask that no longer changes, its coefficients at their start: the result, or the start of phase two.

        Args:
            kind: of the mask, see :meth:`ConcreteMask.forward`.
            generator: of its uniform numbers.
        """
        self.merging.coefficients.fill_(self.merging.initial)
        self.merging.factors = {name: rescale(value).detach() for name, value in self.mask(kind, generator=generator).items()}
        return self.merging


def summed_entropy(logits: Sequence[Tensor] | Tensor) -> Tensor:
    """``Σ_i L_i``: the mean entropy of each task's predictions, summed over the tasks.

    Args:
        logits: of each task (B, C); B and C may differ. A tensor (T, B, C) is T tasks.

    Raises:
        ValueError: there is no task, a task has no input, or a head has one class.
    """
    if not len(logits):
        raise ValueError("the entropy needs the predictions of at least one task")
    for number, rows in enumerate(logits):
        if not rows.numel():
            raise ValueError(f"task {number} has no unlabelled input: the mask would not learn what harms it")
    return torch.stack([entropy(rows) for rows in logits]).sum()


# ---------------------------------------------------------------------------------------------------------------------------- controls


def magnitude_masks(vector: State, density: State) -> dict[str, Tensor]:
    """1 for the largest entries of each tensor: the share of them that ``density`` (a scalar a name) says, at least one."""
    masks = {}
    for name, value in vector.items():
        kept = torch.zeros(value.numel(), dtype=value.dtype, device=value.device)
        kept[value.flatten().abs().topk(max(1, round(float(density[name]) * value.numel()))).indices] = 1
        masks[name] = kept.view_as(value)
    return masks


def shuffled(mask: State, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """The same values at random places of the same tensor."""
    return {name: m.flatten()[torch.randperm(m.numel(), generator=generator).to(m.device)].view_as(m) for name, m in mask.items()}


def random_masks(density: State, like: State, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Coins in {0, 1} that keep each entry of ``like`` with the probability of its tensor: with the rescaling, DARE on all tasks with one mask."""
    return {name: (torch.rand(value.shape, generator=generator).to(value.device) < density[name]).to(value.dtype) for name, value in like.items()}


# ------------------------------------------------------------------------------------------------------------------------------- checks


def check_mask(mask: State, like: State) -> None:
    """ValueError unless the mask has the names and shapes of ``like`` and is finite and nowhere negative."""
    _check_names(mask, like)
    for name in like:
        check_finite(mask[name], f"the mask of {name!r}")
        if (mask[name] < 0).any():
            raise ValueError(f"the mask of {name!r} is negative somewhere; its values must be between 0 and 1")


def _check_names(mask: State, like: State) -> None:
    for name, value in like.items():
        if name not in mask:
            raise ValueError(f"the mask has no entry {name!r}, which the model has")
        if mask[name].shape != value.shape:
            raise ValueError(f"{name!r} has shape {tuple(mask[name].shape)} in the mask, {tuple(value.shape)} in the model")
    for name in mask:
        if name not in like:
            raise ValueError(f"the mask has an entry {name!r} that the model lacks")


def _floating(vector: State) -> dict[str, Tensor]:
    """Counters and other integer entries are not masked."""
    return {name: value for name, value in vector.items() if value.is_floating_point()}
