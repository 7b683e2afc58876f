"""What TaskExpert is compared with: one decoded feature for all tasks, the same recipe for every image."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.moe.task_expert.method import Decoded, Heads, Task, pool


class SharedDecoder(nn.Module):
    """A static decoder: the last feature through one 3x3 convolution that all tasks share, then the heads.

    Args:
        tasks: what is predicted.
        channels: C of the backbone's features.
        width: of the shared feature, and of the heads.
        context: whether the pooled feature of the whole image is added at every position, through a linear map. The decoder then *knows* the whole
            image, and still decodes every image with the same weights: what it lacks is the gates.
        scale, up: of the heads.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        channels: int,
        *,
        width: int = 16,
        context: bool = False,
        scale: int = 2,
        up: Literal["bilinear", "shuffle"] = "shuffle",
    ) -> None:
        super().__init__()
        self.shared = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.context = nn.Linear(3 * channels, width) if context else None
        self.heads = Heads(tasks, width, scale=scale, up=up)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What is predicted."""
        return self.heads.tasks

    def forward(self, features: Sequence[Tensor], *, generator: torch.Generator | None = None) -> Decoded:
        """Decode the last of a backbone's features; there are no gates."""
        x = self.shared(features[-1])
        if self.context is not None:
            x = x + self.context(pool(features[-1]))[:, :, None, None]
        x = F.relu(self.norm(x))[:, None].expand(-1, len(self.tasks), -1, -1, -1)  # (B, T, width, H, W), one feature for all
        return Decoded(self.heads(x), (), x)
