"""The encoder-focused networks that the paper compares its cost with: one ResNet-50 a task, all of which run whichever task is wanted.

Only the cost is of interest here, so the network is built on PyTorch's ``meta`` device, where shapes are followed and nothing is computed.
"""

import torch
from torch import Tensor, nn

from mtlearn.layers.cost import count_flops

STAGES = ((3, 64, 1, 1), (4, 128, 2, 1), (6, 256, 1, 2), (3, 512, 1, 4))  # blocks, width, stride, dilation: 1/8 of the image at the end


class Bottleneck(nn.Module):
    """Residual block of ResNet-50: 1 x 1, 3 x 3, 1 x 1 convolutions (He et al. 2016)."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inputs, width, 1),
            nn.Conv2d(width, width, 3, stride=stride, padding=dilation, dilation=dilation),
            nn.Conv2d(width, 4 * width, 1),
        )
        self.short = nn.Identity() if inputs == 4 * width and stride == 1 else nn.Conv2d(inputs, 4 * width, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) to (batch, 4 width, h / stride, w / stride)."""
        out: Tensor = torch.relu(self.path(x) + self.short(x))
        return out


def dilated_resnet50() -> nn.Sequential:
    """The convolutions of a ResNet-50 whose last two stages are dilated, as dense-prediction encoders use it."""
    blocks: list[nn.Module] = [nn.Conv2d(3, 64, 7, stride=2, padding=3), nn.MaxPool2d(3, stride=2, padding=1)]
    inputs = 64
    for count, width, stride, dilation in STAGES:
        for index in range(count):
            blocks.append(Bottleneck(inputs, width, stride if index == 0 else 1, dilation))
            inputs = 4 * width
    return nn.Sequential(*blocks)


def encoder_focused_flops(side: int, num_tasks: int) -> int:
    """FLOPs of an encoder-focused network (Cross-Stitch, NDDR-CNN) on a square image: as many dilated ResNet-50 as tasks, without what mixes them."""
    with torch.device("meta"):
        network, image = dilated_resnet50(), torch.zeros(1, 3, side, side)
    with torch.no_grad():
        return num_tasks * count_flops(lambda: network(image))
