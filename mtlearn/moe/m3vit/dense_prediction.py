"""What stands around the transformer at the sizes of the paper: up-sampling heads, a module that fuses them in training, pretrained weights.

Heads and fusion follow the published code's description: four convolutions with bilinear steps between them; the fusion is optional, reads the heads'
features, gives extra predictions that are supervised too, and is dropped at inference.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.moe.m3vit.method import M3ViT


class UpsamplingHead(nn.Module):
    """Tokens of a grid to a map: four times convolution, BatchNorm, ReLU and a bilinear doubling, then a 1 x 1 convolution.

    Args:
        width: of the tokens.
        outputs: channels of the map.
        grid: rows and columns of the tokens; a class token in front is left out.
        channels: inside the head.
        steps: doublings; 4 undo patches of 16 pixels.
    """

    def __init__(self, width: int, outputs: int, grid: tuple[int, int], *, channels: int = 256, steps: int = 4) -> None:
        super().__init__()
        self.grid = grid
        sizes = [width, *[channels] * steps]
        self.steps = nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(sizes))
        self.last = nn.Conv2d(channels, outputs, 1)

    def levels(self, tokens: Tensor) -> list[Tensor]:
        """The features after each doubling, from coarse to fine."""
        rows, columns = self.grid
        if tokens.shape[1] not in (rows * columns, rows * columns + 1):
            raise ValueError(f"tokens of a grid of {rows} x {columns} (and a class token) are needed, got {tokens.shape[1]}")
        x = tokens[:, -rows * columns :].transpose(1, 2).unflatten(-1, self.grid)  # type: ignore[no-untyped-call]
        found = []
        for step in self.steps:
            x = F.interpolate(step(x), scale_factor=2, mode="bilinear")
            found.append(x)
        return found

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, length, width) to (batch, outputs, height, width)."""
        output: Tensor = self.last(self.levels(tokens)[-1])
        return output


class TaskFusion(nn.Module):
    """The training-only module: at a level of the decoder, all tasks' features side by side are mixed, and each task is predicted once more.

    Args:
        outputs: task name to channels of its map.
        channels: of each task's features.
    """

    def __init__(self, outputs: Mapping[str, int], channels: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(len(outputs) * channels, channels, 1), nn.ReLU())
        self.last = nn.ModuleDict({task: nn.Conv2d(channels, count, 1) for task, count in outputs.items()})

    def forward(self, features: Mapping[str, Tensor], size: Sequence[int]) -> dict[str, Tensor]:
        """Features (batch, channels, h, w) by task to extra predictions (batch, outputs, *size) by task."""
        if missing := [task for task in self.last if task not in features]:
            raise ValueError(f"features of task {missing[0]!r} are missing")
        mixed = self.mix(torch.cat([features[task] for task in self.last], 1))
        return {task: F.interpolate(last(mixed), size=tuple(size), mode="bilinear") for task, last in self.last.items()}


@torch.no_grad()
def load_vit(model: M3ViT, vit: nn.Module) -> list[str]:
    """Start from a pretrained vision transformer of the library transformers (``ViTModel`` or ``DeiTModel`` of the same width and depth).

    Attention, norms, embeddings and the perceptrons of the dense blocks are copied. Experts and gates are not in it and stay as they are.

    Returns:
        The names of the parameters that were not in it.
    """
    theirs: dict[str, Tensor] = dict(vit.named_parameters())
    found: dict[str, Tensor] = {
        "embed.weight": theirs["embeddings.patch_embeddings.projection.weight"].flatten(1),
        "embed.bias": theirs["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": theirs["layernorm.weight"],
        "norm.bias": theirs["layernorm.bias"],
    }
    first, position = theirs["embeddings.cls_token"][0, 0], theirs["embeddings.position_embeddings"][0]
    found["first_token"], found["position"] = first + position[0], position[-(position.shape[0] - 1) :]
    names = {"before_attention": "layernorm_before", "attention.out": "attention.output.dense", "before_feed": "layernorm_after"}
    names |= {"feed.0": "intermediate.dense", "feed.2": "output.dense"}
    for index in range(len(model.blocks)):
        block, layer = f"blocks.{index}.", f"encoder.layer.{index}."
        for kind in ("weight", "bias"):
            parts = [theirs[f"{layer}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            found[f"{block}attention.query_key_value.{kind}"] = torch.cat(parts)
            found |= {f"{block}{ours}.{kind}": theirs[f"{layer}{name}.{kind}"] for ours, name in names.items()}
    left = []
    for name, parameter in model.named_parameters():
        if name not in found:
            left.append(name)
        elif parameter.shape != found[name].shape:
            raise ValueError(
                f"{name} has the shape {tuple(parameter.shape)} here and {tuple(found[name].shape)} there: give the model the same sizes"
            )
        else:
            parameter.copy_(found[name])
    return left
