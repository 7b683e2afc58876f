"""Task vectors: what fine-tuning changed, as a plain mapping of tensors that can be added, scaled, compared and masked.

A *state* is any ``Mapping[str, Tensor]``: the ``state_dict()`` of a module, a safetensors file read into memory, the parameters of a linear model.
A *task vector* is the difference of two states of one architecture, ``τ_t = θ_t - θ_0``, entry by entry (Ilharco et al. 2023, "Editing models
with task arithmetic")::

    vectors = [task_vector(base, tuned) for tuned in (digits, letters)]
    merged = apply(base, add(vectors), 0.3)              task arithmetic
    forgot = apply(base, negate(vectors[0]))             unlearn the first task

Only floating-point entries are moved: counters and other integer buffers are the base's. Half-precision weights are subtracted and summed in float32
and rounded once, when they are applied. Weights that are tied in every state (two names of one tensor) stay tied.

Merging rules take task vectors and return one, before any scale: :func:`add` (task arithmetic), :func:`average`, :func:`ties`, :func:`dare`, and a
vector times a :func:`magnitude_mask` or :func:`random_mask`. :mod:`mtlearn.merging.merge` applies the same rules to whole checkpoints, in memory or
from file to file; :mod:`~mtlearn.merging.composition` learns the coefficients; :mod:`~mtlearn.merging.averaging` weighs by what data say.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

State = Mapping[str, Tensor]
Combine = Literal["mean", "sum", "max"]


# ---------------------------------------------------------------------------------------------------------------- states and vectors


def task_vector(base: State, tuned: State) -> dict[str, Tensor]:
    """``τ = θ_t - θ_0`` of every floating-point entry.

    Args:
        base: the state that was fine-tuned.
        tuned: the state after fine-tuning, of the same names, shapes and dtypes.

    Returns:
        Name to difference, in the order of ``base``; float32 where the weights have less precision.

    Raises:
        ValueError: names, shapes or dtypes differ, an entry is not finite, or none is floating-point; the message names the entry.
    """
    check_states(base, [tuned])
    names = floating(base)
    if not names:
        raise ValueError("the base has no floating-point entry, so there is nothing to subtract")
    first = tied(base, tuned)
    vector: dict[str, Tensor] = {}
    for name in names:
        wide = working_dtype(base[name].dtype)
        vector[name] = vector[first[name]] if first[name] != name else tuned[name].detach().to(wide) - base[name].detach().to(wide)
        check_finite(vector[name], f"the difference of {name!r}")
    return vector


def apply(base: State, vector: State, scale: float = 1.0) -> dict[str, Tensor]:
    """``θ_0 + scale · τ``: a new state; entries that the vector does not have are the base's own tensors.

    Args:
        base: the state to move; its dtypes are kept.
        vector: a task vector, perhaps of some entries only (a LoRA has the adapted matrices alone).
        scale: the coefficient.

    Raises:
        ValueError: the vector has an entry that the base lacks, or one of another shape.
    """
    for name, change in vector.items():
        if name not in base:
            raise ValueError(f"the task vector has an entry {name!r} that the base lacks")
        if change.shape != base[name].shape:
            raise ValueError(f"{name!r} has shape {tuple(change.shape)} in the task vector, {tuple(base[name].shape)} in the base")
    first = tied(base, vector)
    moved: dict[str, Tensor] = {}
    for name, weight in base.items():
        if name not in vector:
            moved[name] = weight
        elif first.get(name, name) != name:
            moved[name] = moved[first[name]]
        else:
            moved[name] = torch.add(weight.to(vector[name].dtype), vector[name], alpha=scale).to(weight.dtype)
    return moved


def add(vectors: Sequence[State]) -> dict[str, Tensor]:
    """``Σ_t τ_t``, the multi-task vector of task arithmetic.

    Raises:
        ValueError: there is no vector, or names or shapes differ.
    """
    check_vectors(vectors)
    total = {name: value.clone() for name, value in vectors[0].items()}
    for vector in vectors[1:]:
        for name, value in vector.items():
            total[name] += value
    return total


def scaled(vector: State, factor: float) -> dict[str, Tensor]:
    """``factor · τ``."""
    return {name: factor * value for name, value in vector.items()}


def negate(vector: State) -> dict[str, Tensor]:
    """``-τ``: applied, it takes the task away from the model."""
    return scaled(vector, -1.0)


def masked(vector: State, mask: State) -> dict[str, Tensor]:
    """``m ⊙ τ``.

    Raises:
        ValueError: names or shapes differ.
    """
    check_vectors([vector, mask])
    return {name: value * mask[name] for name, value in vector.items()}


def dot(first: State, second: State) -> float:
    """``⟨τ_1, τ_2⟩`` over all entries, summed in double precision."""
    check_vectors([first, second])
    return sum(torch.dot(value.flatten().double(), second[name].flatten().double()).item() for name, value in first.items())


def norm(vector: State) -> float:
    """Euclidean length ``‖τ‖``."""
    return math.sqrt(dot(vector, vector))


def cosine(first: State, second: State) -> float:
    """Cosine of the angle between two task vectors, -1 to 1: near 0 where the tasks moved different weights.

    Raises:
        ValueError: names or shapes differ, or a vector is zero and has no direction.
    """
    lengths = norm(first), norm(second)
    if not all(lengths):
        raise ValueError("a task vector of length 0 has no direction: this model was not fine-tuned")
    return max(-1.0, min(1.0, dot(first, second) / math.prod(lengths)))


def gram(vectors: Sequence[State]) -> Tensor:
    """(n, n) float64: all inner products ``⟨τ_i, τ_j⟩``, from one pass over the entries."""
    check_vectors(vectors)
    total = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for name in vectors[0]:
        rows = torch.stack([vector[name].flatten() for vector in vectors]).double().cpu()
        total += rows @ rows.T
    return total


def flatten(vector: State) -> Tensor:
    """(P,): all entries behind one another, in the vector's order."""
    if not vector:
        raise ValueError("a task vector without entries cannot be flattened")
    return torch.cat([value.flatten() for value in vector.values()])


def unflatten(flat: Tensor, like: State) -> dict[str, Tensor]:
    """The inverse of :func:`flatten`: ``flat`` (P,) cut and shaped like the entries of ``like``.

    Raises:
        ValueError: P is not the number of values in ``like``.
    """
    sizes = [value.numel() for value in like.values()]
    if flat.dim() != 1 or len(flat) != sum(sizes):
        raise ValueError(f"the flat vector has shape {tuple(flat.shape)}, these entries need ({sum(sizes)},)")
    parts = torch.split(flat, sizes)
    return {name: part.view(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}


def stack(vectors: Sequence[State]) -> dict[str, Tensor]:
    """Name to (n, ...): the same entry of all n task vectors behind one another."""
    check_vectors(vectors)
    return {name: torch.stack([vector[name] for vector in vectors]) for name in vectors[0]}


# ---------------------------------------------------------------------------------------------------------------------- merging rules


def average(vectors: Sequence[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """``Σ w_t τ_t / Σ w_t``: applied at scale 1, the average of the fine-tuned weights ("model soup").

    Args:
        vectors: n task vectors.
        weights: n numbers whose sum is not 0; all equal when omitted.
    """
    shares = [1.0] * len(vectors) if weights is None else list(weights)
    if len(shares) != len(vectors) or not vectors:
        raise ValueError(f"average needs a weight for each task vector, got {len(shares)} weights and {len(vectors)} vectors")
    total = sum(shares)
    if not math.isfinite(total) or total == 0:
        raise ValueError(f"the weights must be finite and their sum not 0, got {shares}")
    return add([scaled(vector, share / total) for vector, share in zip(vectors, shares, strict=True)])


def ties(vectors: Sequence[State], keep: float = 0.2, combine: Combine = "mean") -> dict[str, Tensor]:
    """TIES (Yadav et al. 2023): trim each vector to its largest entries, elect a sign for each weight, merge the entries that agree with it.

    Args:
        vectors: n task vectors.
        keep: share of each vector's entries, over the whole model, that survive trimming: in (0, 1].
        combine: what becomes of the entries that agree: their ``mean`` over the tasks that have one (the paper), their ``sum`` (TALL-masks), or
            the largest in magnitude (``max``).
    """
    check_vectors(vectors)
    check_share("keep", keep)
    rows = torch.stack([flatten(vector) for vector in vectors])  # (n, P)
    trimmed = trim_(rows, torch.stack([magnitude_threshold(row, keep) for row in rows]))
    return unflatten(elect_and_combine_(trimmed, majority_sign(trimmed), combine), vectors[0])


def magnitude_threshold(flat: Tensor, keep: float) -> Tensor:
    """The magnitude from which an entry of ``flat`` (P,) survives a trim to the share ``keep``: a scalar.

    It is the (P - ⌊keep · P⌋)-th smallest magnitude, and entries equal to it survive, as in the public code of TIES: one entry more than
    ``⌊keep · P⌋``, more where magnitudes are equal.
    """
    rank = len(flat) - int(keep * len(flat))
    return flat.new_zeros(()) if rank == 0 else flat.abs().kthvalue(rank).values


def trim_(rows: Tensor, thresholds: Tensor) -> Tensor:
    """Set what lies below its row's threshold (n,) to 0, in the task vectors (n, p) themselves."""
    below = torch.nextafter(thresholds.to(rows), rows.new_tensor(-1.0)).tolist()  # hardshrink drops what is equal to its threshold, too
    for row, limit in zip(rows, below, strict=True):
        torch.hardshrink(row, limit, out=row)
    return rows


def majority_sign(trimmed: Tensor) -> Tensor:
    """The sign of the most weights, over all of (n, P): what a weight gets whose entries cancel to exactly 0."""
    return torch.sign(trimmed.sum(0)).sum().sign()


def elect_and_combine_(trimmed: Tensor, majority: Tensor, combine: Combine) -> Tensor:
    """Elect ``sign(Σ_t τ_t)`` for each weight and merge the entries of (n, p) that have it: (p,). The entries are used up."""
    elected = trimmed.sum(0).sign_()
    elected[elected == 0] = majority.to(elected)
    agreeing = trimmed.mul_(elected).clamp_(min=0)  # the sizes of the entries that have the elected sign, 0 elsewhere
    if combine == "sum":
        return agreeing.sum(0).mul_(elected)
    if combine == "max":
        return agreeing.amax(0).mul_(elected)
    if combine == "mean":
        return agreeing.sum(0).mul_(elected).div_(agreeing.sign_().sum(0).clamp_(min=1))
    raise ValueError(f"combine must be 'mean', 'sum' or 'max', got {combine!r}")


def dare(vector: State, drop: float, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """DARE (Yu et al. 2024): drop each entry with probability ``drop`` and multiply what is left by ``1 / (1 - drop)``, so that its mean stays.

    Args:
        vector: a task vector.
        drop: in [0, 1).
        generator: of the draws, on the CPU.
    """
    if not 0 <= drop < 1:
        raise ValueError(f"drop must be in [0, 1), got {drop}")
    return {name: value / (1 - drop) * (_uniform(value, generator) >= drop) for name, value in vector.items()}


def magnitude_mask(vector: State, density: float) -> dict[str, Tensor]:
    """1 for the share ``density`` of the entries with the largest magnitude, over the whole vector: name to bool."""
    check_share("density", density, zero=True)
    flat = flatten(vector).abs()
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept[flat.topk(round(density * len(flat))).indices] = True
    return unflatten(kept, vector)


def random_mask(vector: State, density: float, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """1 for a random share ``density`` of the entries, exactly as many as :func:`magnitude_mask` keeps: name to bool."""
    check_share("density", density, zero=True)
    flat = flatten(vector)
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[torch.randperm(len(flat), generator=generator)[: round(density * len(flat))]] = True
    return unflatten(kept.to(flat.device), vector)


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(like.shape, generator=generator).to(like.device)


# ------------------------------------------------------------------------------------------------------------------------------ checks


def floating(state: State) -> list[str]:
    """The names of the entries that a merge moves."""
    return [name for name, value in state.items() if value.is_floating_point()]


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision in which weights of ``dtype`` are subtracted and summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tied(*states: State) -> dict[str, str]:
    """Each name to the first name of the same memory *in every state*: to itself where nothing is tied."""
    seen: dict[tuple[object, ...], str] = {}
    first: dict[str, str] = {}
    for name in states[0]:
        if all(name in state for state in states):
            where = tuple((state[name].untyped_storage().data_ptr(), state[name].storage_offset(), state[name].stride()) for state in states)
            key = (*where, states[0][name].shape)
            first[name] = seen.setdefault(key, name) if states[0][name].numel() and states[0][name].device.type != "meta" else name
    return first


def check_states(base: State, tuned: Sequence[State], labels: Sequence[str] | None = None) -> None:
    """Fine-tuned states fit the base.

    Raises:
        ValueError: there is none, or names, shapes or dtypes differ; the message names the entry and the state.
    """
    if not tuned:
        raise ValueError("there is no fine-tuned model to merge; at least one is needed")
    for number, state in enumerate(tuned):
        label = labels[number] if labels else f"fine-tuned model {number}"
        _same_names(base, state, "the base", label)
        for name, weight in base.items():
            if state[name].shape != weight.shape:
                raise ValueError(f"{name!r} has shape {tuple(state[name].shape)} in {label}, {tuple(weight.shape)} in the base")
            if state[name].dtype != weight.dtype:
                raise ValueError(f"{name!r} is {state[name].dtype} in {label}, {weight.dtype} in the base; convert one of them first")


def check_vectors(vectors: Sequence[State]) -> None:
    """Task vectors fit one another: ValueError where there is none, or names or shapes differ."""
    if not vectors:
        raise ValueError("there is no task vector; at least one is needed")
    for number, vector in enumerate(vectors[1:], 1):
        _same_names(vectors[0], vector, "vector 0", f"vector {number}")
        for name, value in vectors[0].items():
            if vector[name].shape != value.shape:
                raise ValueError(f"{name!r} has shape {tuple(vector[name].shape)} in vector {number}, {tuple(value.shape)} in vector 0")


def check_finite(value: Tensor, what: str) -> None:
    """ValueError where an entry is NaN or infinite."""
    if not value.isfinite().all():
        bad = int((~value.isfinite()).sum())
        raise ValueError(f"{what} holds {bad} of {value.numel()} values that are NaN or infinite")


def check_share(name: str, share: float, *, zero: bool = False) -> None:
    """ValueError unless ``share`` is in (0, 1], or in [0, 1] with ``zero``."""
    if not (share >= 0 if zero else share > 0) or not share <= 1:
        raise ValueError(f"{name} must be in {'[' if zero else '('}0, 1], got {share}")


def _same_names(first: Iterable[str], second: Iterable[str], one: str, other: str) -> None:
    names, others = dict.fromkeys(first), dict.fromkeys(second)
    for name in names:
        if name not in others:
            raise ValueError(f"{name!r} is in {one} but not in {other}")
    for name in others:
        if name not in names:
            raise ValueError(f"{name!r} is in {other} but not in {one}")
