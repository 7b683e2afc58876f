"""Is what each task learned still in the sum of the task vectors, and does leaving out what few tasks keep make a better merge?

One encoder is fine-tuned for each of eight transforms of the same digits, and for each of twenty, densely and with an L1 penalty that makes the task
vectors sparse. Everything after fine-tuning is arithmetic on weights. Thresholds and scales are chosen on validation images.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.seeds import stream
from mtlearn.merging.tall_masks.method import (
    THRESHOLDS,
    best_thresholds,
    compress,
    consensus,
    localise,
    profile,
    tall_masks,
)
from mtlearn.merging.task_vectors import State, add, apply, average, flatten, magnitude_mask, random_mask, ties
from mtlearn.merging.transformed_digits import Family, FamilySettings, Part, make_family

EIGHT = FamilySettings()


@dataclass(frozen=True)
class TallMaskSettings(Settings):
    """Settings of a run.

    Attributes:
        eight, twenty: families of eight and of twenty tasks.
        sparse: the twenty tasks fine-tuned with an L1 penalty on ``θ - θ_0``.
        weak: eight tasks from a generalist of upright digits alone, fine-tuned at a higher rate: long task vectors.
        thresholds: the grid of λ.
        scales: the grid of α, the same for every merge.
        keep: share of each task vector that TIES keeps.
    """

    eight: FamilySettings = EIGHT
    twenty: FamilySettings = field(default_factory=lambda: FamilySettings(tasks=20))
    sparse: FamilySettings = field(default_factory=lambda: FamilySettings(tasks=20, sparsity=1e-4))
    weak: FamilySettings = field(default_factory=lambda: FamilySettings(labelled=0, tune_rate=1e-3))
    thresholds: tuple[float, ...] = THRESHOLDS
    scales: tuple[float, ...] = tuple(round(0.05 * step, 2) for step in range(1, 21))
    keep: float = 0.2


def run(settings: TallMaskSettings, seed: int, device: torch.device) -> Arms:
    """All arms on all four families."""
    arms: Arms = {}
    for suffix, family in (("", settings.eight), ("_20", settings.twenty), ("_20_sparse", settings.sparse), ("_weak", settings.weak)):
        found = study(make_family(family, seed), settings, sweep=not suffix)
        for arm, metrics in found.items():
            arms.setdefault(arm, {}).update({f"{metric}{suffix}": value for metric, value in metrics.items()})
    return arms


def study(family: Family, settings: TallMaskSettings, *, sweep: bool) -> Arms:
    """Every arm on one family; with ``sweep`` also consensus for all k, and TIES."""
    base, vectors = family.base, family.vectors
    tuned, zero = family.own_accuracy(family.tuned), family.accuracy(base)
    total = add(vectors)
    masks = chosen_masks(family, total, settings)
    densities = masks.float().mean(1).tolist()
    draws = stream(family.seed, "tall_masks", "random")
    largest = torch.stack([flatten(magnitude_mask(vector, density)) for vector, density in zip(vectors, densities, strict=True)])
    drawn = torch.stack([flatten(random_mask(vector, density, generator=draws)) for vector, density in zip(vectors, densities, strict=True)])
    merged = {
        "average": apply(base, average(vectors)),
        "task arithmetic": _scaled(family, total, settings),
        "consensus, k = 2": _scaled(family, consensus(total, masks, 2), settings),
    }
    own = {"TALL masks": masks, "magnitude masks": largest, "random masks": drawn}
    accuracies = {"zero-shot": zero, "fine-tuned": tuned}
    accuracies |= {arm: family.accuracy(weights) for arm, weights in merged.items()}
    accuracies |= {arm: family.own_accuracy(localised(family, total, found)) for arm, found in own.items()}
    ends: dict[str, float] = {}
    if sweep:
        summed = ties(vectors, settings.keep, "sum")
        ties_masks = chosen_masks(family, summed, settings)
        accuracies |= {
            "TIES": family.accuracy(_scaled(family, ties(vectors, settings.keep), settings)),
            "TIES, summed": family.accuracy(_scaled(family, summed, settings)),
            "TALL masks on TIES": family.own_accuracy(localised(family, summed, ties_masks)),
            "consensus on TIES, k = 2": family.accuracy(_scaled(family, consensus(summed, ties_masks, 2), settings)),
        }
        for k in (0, 1, *range(3, len(vectors) + 2)):
            accuracies[f"consensus, k = {k}"] = family.accuracy(_scaled(family, consensus(total, masks, k), settings))
        shares = (profile(masks) / masks.shape[1]).tolist()
        ends = {f"kept_by_{count}": share for count, share in enumerate(shares)} | {"few_tasks": sum(shares[:3])}
    arms = {arm: {"accuracy": found.mean().item(), "normalised": (found / tuned).mean().item()} for arm, found in accuracies.items()}
    gap = arms["fine-tuned"]["accuracy"] - arms["task arithmetic"]["accuracy"]
    arms["TALL masks"] |= {
        "gap_closed": (arms["TALL masks"]["accuracy"] - arms["task arithmetic"]["accuracy"]) / gap,
        "density": masks.float().mean().item(),
        "storage": storage(family, total, masks),
        **ends,
    }
    return arms


def chosen_masks(family: Family, merged: State, settings: TallMaskSettings) -> Tensor:
    """(T, P): each task's mask at the threshold that its validation images choose."""

    def score(threshold: float) -> Tensor:
        return family.own_accuracy(localised(family, merged, tall_masks(family.vectors, merged, threshold)), "validation")

    return tall_masks(family.vectors, merged, best_thresholds(score, settings.thresholds))


def localised(family: Family, merged: State, masks: Tensor) -> list[dict[str, Tensor]]:
    """The encoder that each mask gets back."""
    return [localise(family.base, merged, mask) for mask in masks]


def storage(family: Family, merged: State, masks: Tensor) -> float:
    """Bytes on disk of the compressed models over those of the fine-tuned encoders, as safetensors files, heads included."""
    with tempfile.TemporaryDirectory() as folder:
        written = compress(family.base, merged, masks, family.names).write(Path(folder) / "tasks.safetensors")
    return written / sum(len(save({name: value.contiguous() for name, value in state.items()})) for state in family.tuned)


def _scaled(family: Family, merged: State, settings: TallMaskSettings) -> dict[str, Tensor]:
    return apply(family.base, merged, family.best_scale(merged, settings.scales))


def validation_curve(family: Family, merged: State, thresholds: Sequence[float], part: Part = "validation") -> Tensor:
    """(thresholds, T): accuracy of each task with its mask."""
    return torch.stack([family.own_accuracy(localised(family, merged, tall_masks(family.vectors, merged, at)), part) for at in thresholds])


_QUICK = {"width": 32, "features": 16, "pretrain_steps": 120, "tune_steps": 60}
_MNIST = FamilySettings(
    source="mnist", encoder="conv", width=32, features=128, train=6000, validation=1000, labelled=300, pretrain_steps=3000, tune_steps=1000
)


def _with(settings: FamilySettings, **changes: object) -> FamilySettings:
    return FamilySettings(**{**settings.__dict__, **changes})


SCALES = {
    "quick": TallMaskSettings(
        seeds=1,
        eight=FamilySettings(**_QUICK),  # type: ignore[arg-type]
        twenty=FamilySettings(tasks=9, **_QUICK),  # type: ignore[arg-type]
        sparse=FamilySettings(tasks=9, sparsity=1e-4, **_QUICK),  # type: ignore[arg-type]
        weak=FamilySettings(labelled=0, tune_rate=1e-3, **_QUICK),  # type: ignore[arg-type]
        scales=(0.1, 0.2, 0.3, 0.5, 1.0),
    ),
    "laptop": TallMaskSettings(seeds=5),
    "paper": TallMaskSettings(
        seeds=5,
        eight=_MNIST,
        twenty=_with(_MNIST, tasks=20),
        sparse=_with(_MNIST, tasks=20, sparsity=1e-4),
        weak=_with(_MNIST, labelled=0, tune_rate=1e-3),
    ),
}

CLAIMS = (
    Claim("TALL masks", "task arithmetic", "accuracy", 0.05, says="masks on the sum of eight task vectors over the sum itself"),
    Claim("TALL masks", "magnitude masks", "accuracy", 0.05, says="over masks of each task's largest weights, at equal density"),
    Claim("TALL masks", "random masks", "accuracy", 0.05, says="over random masks of equal density"),
    Claim("TALL masks", None, "gap_closed", 0.5, says="more than half of what the sum lost comes back"),
    Claim("TALL masks", None, "normalised", 0.99, says="more than 99 % of the fine-tuned accuracy comes back, eight tasks"),
    Claim("TALL masks", None, "normalised_20", 0.99, says="more than 99 % of the fine-tuned accuracy comes back, twenty tasks"),
    Claim("TALL masks", "task arithmetic", "accuracy_20", 0.05, says="masks on the sum of twenty task vectors over the sum itself"),
    Claim("TALL masks", "task arithmetic", "accuracy_weak", 0.05, says="masks over the sum where task vectors are long"),
    Claim("TALL masks", None, "few_tasks", 0.5, says="most weights are kept by at most two of eight tasks"),
    Claim("consensus, k = 2", "task arithmetic", "accuracy", says="dropping catastrophic and selfish weights helps, eight tasks"),
    Claim("consensus, k = 2", "task arithmetic", "accuracy_20", says="dropping catastrophic and selfish weights helps, twenty tasks"),
    Claim("consensus, k = 2", "task arithmetic", "accuracy_20_sparse", says="the same, twenty tasks with sparse task vectors"),
    Claim("consensus on TIES, k = 2", "TIES", "accuracy", says="consensus helps TIES, eight tasks"),
    Claim("consensus on TIES, k = 2", "TIES, summed", "accuracy", says="and it is the consensus that helps, not summing instead of averaging"),
    Claim("TALL masks", None, "storage", -0.3, higher_is_better=False, says="eight tasks in at most 30 % of the bytes of their checkpoints"),
    Claim("TALL masks", None, "storage_20", -0.15, higher_is_better=False, says="twenty tasks in at most 15 % of the bytes"),
)

_KINDS = {"": "eight tasks", "_20": "twenty tasks", "_20_sparse": "twenty tasks, sparse vectors", "_weak": "eight tasks, weak generalist"}
UNITS = {
    **{f"accuracy{suffix}": f"share of right answers, {kind}" for suffix, kind in _KINDS.items()},
    **{f"normalised{suffix}": f"share of the fine-tuned accuracy, {kind}" for suffix, kind in _KINDS.items()},
    **{f"gap_closed{suffix}": f"share of the gap from task arithmetic to fine-tuned, {kind}" for suffix, kind in _KINDS.items()},
    **{f"density{suffix}": f"share of the weights that a mask keeps, {kind}" for suffix, kind in _KINDS.items()},
    **{f"storage{suffix}": f"bytes over those of the checkpoints, {kind}" for suffix, kind in _KINDS.items()},
    **{f"kept_by_{count}": f"share of the weights that {count} of eight tasks keep" for count in range(21)},
    "few_tasks": "share of the weights that at most two of eight tasks keep",
}

EXPERIMENT = Experiment(
    paper="tall_masks",
    question="Is what each task learned still in the sum of the task vectors, and does dropping what few tasks keep make a better merge?",
    scales=SCALES,
    claims=CLAIMS,
    run=run,
    units=UNITS,
)
