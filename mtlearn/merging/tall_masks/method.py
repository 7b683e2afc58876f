r"""TALL-masks and Consensus Merging.

K. Wang, N. Dimitriadis, G. Ortiz-Jimenez, F. Fleuret, P. Frossard, "Localizing Task Information for Improved Model Merging and Compression",
ICML 2024, https://arxiv.org/abs/2405.07813.

A sum of task vectors loses much of what each fine-tuned model could do. The paper shows that the information is still in the sum, on mostly
different weights for different tasks: a binary mask a task over the *merged* vector gets it back. Counting how many tasks keep a weight then
tells which weights hurt a merge.

**Localise.** ``θ_0`` are the pretrained weights, ``τ_t = θ_t - θ_0`` the task vectors, ``τ_MTL`` what a merging rule makes of them *before* any
scale: their sum (task arithmetic), or TIES with the agreeing entries summed. The mask that brings ``θ_0 + m_t ⊙ τ_MTL`` nearest to ``θ_t`` in the
L1 norm keeps a weight where the merged value is nearer to ``θ_t`` than the pretrained one is. With a threshold a task::

    m_t = 1{ |τ_t| > λ_t |τ_MTL - τ_t| }                                     tall_masks       (λ = 1: the exact minimiser)
    θ̂_t = θ_0 + m_t ⊙ τ_MTL                                                  localise
    λ_t ∈ {0.2, 0.3, 0.4, 0.5, 0.6} by the task's validation accuracy        best_thresholds

**Compress.** Keep ``θ_0``, ``τ_MTL`` and one bit a weight and task: 64 + T bits a weight instead of 32 T        Compressed

**Count.** ``c_p = Σ_t m_t[p]``                                               agreement
``c_p = 0`` is a *catastrophic* weight (no task wants it, the sum has it), ``c_p = 1`` a *selfish* one, ``c_p = T`` a *universal* one.

**Merge.** One model without task identity, from the weights on which at least k tasks agree::

    τ_cons = 1{ c_p >= k } ⊙ τ_MTL        k = 2 drops catastrophic and selfish weights; k = 0 is the plain rule, k = T + 1 the pretrained model

What differs from the public code: masks are over floating-point entries alone (integer buffers would be compared as well), a threshold is chosen on
validation data that must be there, and the merged vector that a mask was made for is part of what is stored with it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from warnings import warn

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mtlearn.merging.task_vectors import State, apply, check_finite, check_vectors, flatten, floating, unflatten

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6)  # the paper's grid of λ


# ----------------------------------------------------------------------------------------------------------------------------- localise


def keeps(rows: Tensor, merged: Tensor, threshold: float | Tensor = 1.0) -> Tensor:
    """``|τ_t| > λ_t |τ_MTL - τ_t|``: a task keeps a weight where its own change is larger than λ times what the merge adds to it.

    Args:
        rows: (n, p) task vectors.
        merged: (p,) the merged vector, unscaled.
        threshold: λ, one number or (n,).

    Returns:
        (n, p) bool. A weight that neither the task nor the merge moved is not kept, since 0 > 0 is false.
    """
    limits = torch.as_tensor(threshold, dtype=rows.dtype, device=rows.device).reshape(-1, 1)
    return rows.abs() > limits * (merged - rows).abs()


def tall_masks(vectors: Sequence[State], merged: State, threshold: float | Sequence[float] = 1.0) -> Tensor:
    """The mask of every task.

    Args:
        vectors: n task vectors.
        merged: the merged vector that the masks will be applied to, unscaled.
        threshold: λ > 0, for all tasks or one a task.

    Returns:
        (n, P) bool over all entries, in the order of :func:`~mtlearn.merging.task_vectors.flatten`.

    Raises:
        ValueError: vectors do not fit one another, hold NaN or infinity, or a threshold is not positive.
    """
    check_vectors([merged, *vectors])
    if not vectors:
        raise ValueError("there is no task vector; at least one is needed")
    limits = [threshold] * len(vectors) if isinstance(threshold, (int, float)) else list(threshold)
    if len(limits) != len(vectors):
        raise ValueError(f"there must be one threshold for all tasks or one a task, got {len(limits)} for {len(vectors)} tasks")
    if not all(0 < limit < float("inf") for limit in limits):
        raise ValueError(f"thresholds must be positive and finite, got {limits}")
    rows, total = torch.stack([flatten(vector) for vector in vectors]), flatten(merged)
    check_finite(rows, "the task vectors")
    check_finite(total, "the merged vector")
    return keeps(rows, total, torch.tensor(limits))


def localise(base: State, merged: State, mask: Tensor) -> dict[str, Tensor]:
    """``θ_0 + m_t ⊙ τ_MTL``: what the mask gets back of task t's model.

    Args:
        base: the pretrained state.
        merged: the merged vector, unscaled, that the mask was made for.
        mask: (P,) bool.
    """
    flat = flatten(merged)
    if mask.shape != flat.shape:
        raise ValueError(f"the mask has shape {tuple(mask.shape)}, this merged vector needs ({len(flat)},): it was made for another one")
    return apply(base, unflatten(flat * mask, merged))


def best_thresholds(score: Callable[[float], Tensor], grid: Sequence[float] = THRESHOLDS) -> list[float]:
    """The threshold of each task at which its validation accuracy is highest; of equal ones the smallest, which keeps the most.

    Args:
        score: from one threshold for all tasks to (n,), the validation accuracy of each task with its mask.
        grid: the thresholds to try.

    Raises:
        ValueError: the grid is empty, or a score is not finite (there is no validation data): then the threshold must be given.
    """
    if not grid:
        raise ValueError("the grid of thresholds is empty")
    tried = sorted(grid)
    table = torch.stack([torch.as_tensor(score(threshold)) for threshold in tried])  # (thresholds, n)
    if not table.isfinite().all():
        raise ValueError("a validation score is not finite; without validation data no threshold can be chosen, so give one, such as 0.4")
    return [tried[row] for row in table.argmax(0).tolist()]


# ---------------------------------------------------------------------------------------------------------------------- count and merge


def agreement(masks: Tensor) -> Tensor:
    """``c_p``: how many tasks keep each weight, (n, P) bool to (P,) int64 from 0 (catastrophic) over 1 (selfish) to n (universal)."""
    if masks.dim() != 2 or masks.dtype != torch.bool:
        raise ValueError(f"masks must be (tasks, weights) bool, got {tuple(masks.shape)} {masks.dtype}")
    return masks.sum(0)


def profile(masks: Tensor) -> Tensor:
    """The mask agreement profile: (n + 1,) how many weights are kept by 0, 1, ..., n tasks."""
    return torch.bincount(agreement(masks), minlength=len(masks) + 1)


def consensus_mask(masks: Tensor, agree: int = 2) -> Tensor:
    """``1{c_p >= k}``: (P,) bool.

    Args:
        masks: (n, P) bool.
        agree: k from 0 (all weights) to n + 1 (none). With one task, 2 leaves nothing, and a warning says so.
    """
    counts, tasks = agreement(masks), len(masks)
    if isinstance(agree, bool) or not isinstance(agree, int) or not 0 <= agree <= tasks + 1:
        raise ValueError(f"agree must be a whole number from 0 to {tasks + 1}, one more than the tasks, got {agree!r}")
    if tasks < 2 <= agree:
        warn(f"a consensus of {agree} among {tasks} task keeps no weight: the merged model is the pretrained one", stacklevel=2)
    return counts >= agree


def consensus(merged: State, masks: Tensor, agree: int = 2) -> dict[str, Tensor]:
    """``τ_cons = 1{c_p >= k} ⊙ τ_MTL``, to be applied with a scale that validation chooses.

    Args:
        merged: the merged vector, unscaled, that the masks were made for.
        masks: (n, P) bool of :func:`tall_masks`.
        agree: k.
    """
    flat = flatten(merged)
    kept = consensus_mask(masks, agree)
    if kept.shape != flat.shape:
        raise ValueError(f"the masks are over {len(kept)} weights, the merged vector has {len(flat)}: they were made for another one")
    return unflatten(flat * kept, merged)


def consensus_rule(agree: int = 2, threshold: float = 0.4) -> Callable[[Tensor], Tensor]:
    """Consensus merging on task arithmetic as a rule for :func:`mtlearn.merging.merge.merge`, piece by piece: (n, p) task vectors to (p,)."""
    if isinstance(agree, bool) or not isinstance(agree, int) or agree < 0:
        raise ValueError(f"agree must be a whole number of tasks, 0 or more, got {agree!r}")
    if not 0 < threshold < float("inf"):
        raise ValueError(f"threshold must be positive and finite, got {threshold}")

    def rule(rows: Tensor) -> Tensor:
        total = rows.sum(0)
        return total * consensus_mask(keeps(rows, total, threshold), agree)

    return rule


# ----------------------------------------------------------------------------------------------------------------------------- compress


@dataclass(frozen=True)
class Compressed:
    """n fine-tuned models as one base, one merged vector and a bit a weight and task.

    Attributes:
        base: the pretrained state ``θ_0``.
        merged: the merged vector ``τ_MTL``, unscaled.
        packed: task to (⌈P / 8⌉,) uint8: its mask, eight weights a byte, the first in the highest bit.
    """

    base: Mapping[str, Tensor]
    merged: Mapping[str, Tensor]
    packed: Mapping[str, Tensor]

    def model(self, task: str) -> dict[str, Tensor]:
        """``θ_0 + m_t ⊙ τ_MTL`` of a task."""
        if task not in self.packed:
            raise ValueError(f"there is no task {task!r}; there are {', '.join(self.packed)}")
        return localise(self.base, self.merged, unpack(self.packed[task], sum(value.numel() for value in self.merged.values())))

    def write(self, path: str | Path) -> int:
        """Write one safetensors file; returns its bytes."""
        found = {f"base/{name}": value for name, value in self.base.items()} | {f"merged/{name}": value for name, value in self.merged.items()}
        content = save({name: value.contiguous() for name, value in (found | {f"mask/{task}": bits for task, bits in self.packed.items()}).items()})
        return Path(path).write_bytes(content)

    @classmethod
    def read(cls, path: str | Path) -> "Compressed":
        """What :meth:`write` wrote.

        Raises:
            ValueError: the file is damaged or of another kind.
        """
        try:
            found = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no whole safetensors file ({error})") from None
        parts: dict[str, dict[str, Tensor]] = {"base": {}, "merged": {}, "mask": {}}
        for name, value in found.items():
            part, _, rest = name.partition("/")
            if part not in parts:
                raise ValueError(f"{path} holds {name!r}, which is no part of compressed task models")
            parts[part][rest] = value
        order = [name for name in parts["base"] if name in parts["merged"]]
        return cls(parts["base"], {name: parts["merged"][name] for name in sorted(order)}, parts["mask"])


def compress(base: State, merged: State, masks: Tensor, tasks: Sequence[str]) -> Compressed:
    """Pack the masks of n tasks.

    Args:
        base: the pretrained state.
        merged: the merged vector, unscaled, that the masks were made for, of the base's floating-point entries.
        masks: (n, P) bool.
        tasks: n different names.
    """
    if len(set(tasks)) != len(masks):
        raise ValueError(f"there must be a different name for each of {len(masks)} masks, got {list(tasks)}")
    if set(merged) != set(floating(base)):
        raise ValueError("the merged vector must have all floating-point entries of the base")
    size = sum(value.numel() for value in merged.values())
    if masks.shape[1] != size:
        raise ValueError(f"the masks are over {masks.shape[1]} weights, the merged vector has {size}: they were made for another one")
    order = sorted(merged)  # a safetensors file does not keep the order of its entries, and a mask is nothing without it
    rows = [flatten({name: unflatten(mask, merged)[name] for name in order}) for mask in masks]
    return Compressed(dict(base), {name: merged[name] for name in order}, {task: pack(row) for task, row in zip(tasks, rows, strict=True)})


def pack(mask: Tensor) -> Tensor:
    """(P,) bool to (⌈P / 8⌉,) uint8."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


def unpack(packed: Tensor, size: int) -> Tensor:
    """(⌈P / 8⌉,) uint8 to (P,) bool.

    Raises:
        ValueError: the bytes are not as many as ``size`` weights need.
    """
    if packed.dtype != torch.uint8 or packed.shape != (-(-size // 8),):
        raise ValueError(f"a packed mask of {size} weights has ({-(-size // 8)},) bytes, got {tuple(packed.shape)} {packed.dtype}")
    return torch.from_numpy(np.unpackbits(packed.cpu().numpy(), count=size).astype(bool))


def bits_per_weight(tasks: int, *, compressed: bool = True) -> float:
    """Bits that ``tasks`` models need a weight in float32: 64 + T compressed, 32 T as checkpoints."""
    if tasks < 1:
        raise ValueError(f"tasks must be at least 1, got {tasks}")
    return 64.0 + tasks if compressed else 32.0 * tasks
