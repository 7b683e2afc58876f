"""Adapters as vectors: the data that the generator of ICM-LoRA learns from.

A checkpoint is a state, tensors by name (``lora_state`` gives it). :class:`Layout` puts them one after the other and back, :class:`Statistics`
standardises each tensor and goes back, :class:`Checkpoints` is the data set: vectors and the task of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Layout:
    """Where each tensor of an adapter lies in the flat vector.

    Attributes:
        names: of the tensors, in the vector's order.
        shapes: of the tensors.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, state: Mapping[str, Tensor], lead: int = 0) -> "Layout":
        """The layout of a state whose tensors have ``lead`` leading dimensions (tasks, checkpoints) in common."""
        return cls(tuple(state), tuple(tuple(value.shape[lead:]) for value in state.values()))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Numbers of each tensor."""
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """P, all numbers."""
        return sum(self.lengths)

    def padded(self, multiple: int) -> int:
        """P', the least multiple of ``multiple`` that holds P."""
        if multiple < 1:
            raise ValueError(f"multiple must be at least 1, got {multiple}")
        return -(-self.size // multiple) * multiple

    def flatten(self, state: Mapping[str, Tensor]) -> Tensor:
        """A state with tensors (*lead, *shape) to vectors (*lead, P).

        Raises:
            ValueError: other tensors or shapes than this layout's; both are named.
        """
        if tuple(state) != self.names:
            raise ValueError(f"the adapter has the tensors {', '.join(state)}; the data set's have {', '.join(self.names)}")
        rows = []
        lead: tuple[int, ...] | None = None
        for (name, value), shape in zip(state.items(), self.shapes, strict=True):
            front = tuple(value.shape[: value.dim() - len(shape)])
            if value.dim() < len(shape) or tuple(value.shape[len(front) :]) != shape or (lead is not None and front != lead):
                wanted = (*(lead or ()), *shape)
                raise ValueError(f"{name} has the shape {tuple(value.shape)}; {wanted} is wanted: one data set holds adapters of one rank and kind")
            lead = front
            rows.append(value.reshape(*front, -1))
        return torch.cat(rows, -1)

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Vectors (*lead, P), or longer by padding, back to a state with tensors (*lead, *shape)."""
        if vector.shape[-1] < self.size:
            raise ValueError(f"a vector of at least P={self.size} numbers is wanted, got {vector.shape[-1]}")
        parts = torch.split(vector[..., : self.size], list(self.lengths), -1)
        return {name: part.reshape(*part.shape[:-1], *shape) for name, shape, part in zip(self.names, self.shapes, parts, strict=True)}

    def spread(self, values: Tensor) -> Tensor:
        """One value a tensor, (*lead, tensors), to one a number, (*lead, P)."""
        return values.repeat_interleave(torch.tensor(self.lengths, device=values.device), -1)


def pad(vectors: Tensor, length: int) -> Tensor:
    """Append zeros to (..., P) until (..., length)."""
    if length < vectors.shape[-1]:
        raise ValueError(f"vectors of {vectors.shape[-1]} numbers cannot be padded to {length}")
    return F.pad(vectors, (0, length - vectors.shape[-1]))


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each tensor, the way there and back.

    Attributes:
        layout: of the vectors.
        mean, std: (tensors,), one set for all vectors, or (n, tensors), one for each.
        names: of the n sets: a checkpoint's or task's name; empty for one set.
    """

    layout: Layout
    mean: Tensor
    std: Tensor
    names: tuple[str, ...] = ()

    @classmethod
    def own(cls, layout: Layout, vectors: Tensor, names: Sequence[str]) -> "Statistics":
        """Each of the vectors (n, P) by its own statistics, as published. They have to be stored with it, under its name."""
        if len(set(names)) != len(vectors):
            raise ValueError(f"{len(vectors)} different names are wanted, one a vector, got {len(set(names))}")
        parts = torch.split(_finite(vectors), list(layout.lengths), -1)
        mean = torch.stack([part.mean(-1) for part in parts], -1)
        return cls(layout, mean, _spread(torch.stack([part.std(-1, correction=0) for part in parts], -1), mean), tuple(names))

    @classmethod
    def over(cls, layout: Layout, vectors: Tensor) -> "Statistics":
        """One set for all vectors (n, P): a task that was never seen can be de-normalised, too."""
        parts = torch.split(_finite(vectors), list(layout.lengths), -1)
        mean = torch.stack([part.mean() for part in parts])
        return cls(layout, mean, _spread(torch.stack([part.std(correction=0) for part in parts]), mean))

    def of(self, name: str) -> "Statistics":
        """The set of one name, as one for all vectors.

        Raises:
            ValueError: there is none of that name.
        """
        if self.mean.dim() == 1:
            return self
        if name not in self.names:
            raise ValueError(f"there are no stored statistics of the task {name!r}, only of {', '.join(self.names)}; Statistics.over needs no task")
        row = self.names.index(name)
        return Statistics(self.layout, self.mean[row], self.std[row])

    def normalise(self, vectors: Tensor) -> Tensor:
        """(..., P) to mean 0 and standard deviation 1 a tensor; a constant tensor to 0."""
        return (vectors - self.layout.spread(self.mean)) / self.layout.spread(self.std)

    def denormalise(self, vectors: Tensor) -> Tensor:
        """The way back, of (..., P) or of longer vectors, which are cut."""
        return vectors[..., : self.layout.size] * self.layout.spread(self.std) + self.layout.spread(self.mean)


def _spread(std: Tensor, mean: Tensor) -> Tensor:
    """A constant tensor (B = 0 before the first step) has no spread beyond rounding: divide it by 1."""
    return torch.where(std > 1e-6 * mean.abs(), std, torch.ones_like(std))


def _finite(vectors: Tensor) -> Tensor:
    if not vectors.isfinite().all():
        bad = (~vectors.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"the adapters' weights must be finite; number {bad[-1]} of vector {bad[0]} is not")
    return vectors


@dataclass(frozen=True)
class Checkpoints:
    """The data set of the generator: late checkpoints of the runs of all tasks.

    Attributes:
        layout: of the vectors.
        vectors: (n, P).
        task: (n,) int64, the task of each.
    """

    layout: Layout
    vectors: Tensor
    task: Tensor

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def collect(cls, states: Sequence[Mapping[str, Tensor]], task: Sequence[int]) -> "Checkpoints":
        """Of adapters, one by one, each with the number of its task.

        Raises:
            ValueError: no adapter, adapters of different rank or modules, weights that are not finite.
        """
        if not states or len(states) != len(task):
            raise ValueError(f"at least one adapter is wanted and a task for each, got {len(states)} adapters and {len(task)} tasks")
        layout = Layout.of(states[0])
        return cls(layout, _finite(torch.stack([layout.flatten(state) for state in states])), torch.tensor(task))

    @classmethod
    def of_runs(cls, states: Sequence[Mapping[str, Tensor]], *, last: int) -> "Checkpoints":
        """Of runs of T tasks side by side: a state with tensors (T, *shape) a step, of which the ``last`` are kept."""
        if not 1 <= last <= len(states):
            raise ValueError(f"last must be between 1 and the {len(states)} checkpoints of the run, got {last}")
        layout = Layout.of(states[-1], lead=1)
        vectors = _finite(torch.stack([layout.flatten(state) for state in states[-last:]], 1).flatten(0, 1))  # (T * last, P), a task's together
        return cls(layout, vectors, torch.arange(len(vectors) // last).repeat_interleave(last))

    def only(self, tasks: Tensor) -> "Checkpoints":
        """Those of some tasks."""
        mine = torch.isin(self.task, tasks)
        return Checkpoints(self.layout, self.vectors[mine], self.task[mine])

    def means(self) -> Tensor:
        """(T, P) mean of each task's checkpoints, T one more than the largest task; tasks without any are refused."""
        count = torch.bincount(self.task)
        if (count == 0).any():
            raise ValueError(f"task {int((count == 0).nonzero()[0])} has no checkpoint")
        return self.vectors.new_zeros(len(count), self.vectors.shape[1]).index_add(0, self.task, self.vectors) / count[:, None]
