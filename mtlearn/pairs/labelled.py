"""Pairs of texts with a label: what models are trained on and judged by."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Labelled:
    """Pairs of texts.

    Attributes:
        first, second: tokens (n, length) int64, or (n, blocks, length) of documents in blocks.
        labels: (n,): a class number, a match or not, or a value.
    """

    first: Tensor
    second: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | slice) -> "Labelled":
        return Labelled(self.first[rows], self.second[rows], self.labels[rows])

    def to(self, device: torch.device) -> "Labelled":
        """On another device."""
        return Labelled(self.first.to(device), self.second.to(device), self.labels.to(device))
