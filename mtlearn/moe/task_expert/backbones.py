"""What TaskExpert decodes: backbones whose output is the list of the feature maps of their layers, all of one size."""

from typing import Any

import torch
from torch import Tensor, nn

from mtlearn.moe.task_expert.method import as_map


class ConvBackbone(nn.Module):
    """Patches of 2 x 2 pixels, then residual 3x3 convolutions: a position sees ``blocks`` patches far, and no further.

    Args:
        channels: C of every feature.
        blocks: how many features there are.
        inputs: channels of the picture.
        patch: pixels a side.
    """

    def __init__(self, channels: int = 24, blocks: int = 3, *, inputs: int = 1, patch: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(inputs, channels, patch, stride=patch)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()) for _ in range(blocks)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, inputs, height, width) to ``blocks`` features (B, C, height / patch, width / patch)."""
        x, features = self.patch(images), []
        for block in self.blocks:
            x = x + block(x)
            features.append(x)
        return features


class TransformerBackbone(nn.Module):
    """A small vision transformer: the same patches, but every position sees all others at every layer.

    Args:
        channels: C of every feature.
        blocks: how many features there are.
        inputs: channels of the picture.
        patch: pixels a side.
        size: of the picture, pixels a side.
        heads: of attention.
    """

    def __init__(self, channels: int = 24, blocks: int = 3, *, inputs: int = 1, patch: int = 2, size: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.grid = (size // patch, size // patch)
        self.patch = nn.Conv2d(inputs, channels, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], channels))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(channels, heads, 2 * channels, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(blocks)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, inputs, size, size) to ``blocks`` features (B, C, size / patch, size / patch)."""
        x, features = self.patch(images).flatten(-2).mT + self.position, []
        for block in self.blocks:
            x = block(x)
            features.append(as_map(x, self.grid))
        return features


class PretrainedBackbone(nn.Module):
    """A vision transformer of the library transformers (``ViTModel``): the hidden states of all its layers as maps.

    Args:
        vit: the model; ``config.patch_size`` is read, and a class token comes first.
    """

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit = vit
        self.channels, self.patch = int(vit.config.hidden_size), int(vit.config.patch_size)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, height, width) to one feature (B, C, height / patch, width / patch) a layer; positions are interpolated to the picture's size."""
        grid = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        states = self.vit(pixel_values=images, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
        return [as_map(state, grid, skip=1) for state in states[1:]]
