"""What adapting by modules is compared with: adapters in the blocks, and fine-tuning that is held to its old outputs.

Adapters: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP". Learning without forgetting: Li and Hoiem 2017.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.experts import Routes
from mtlearn.moe.mod_squad.mixtures import Parts
from mtlearn.moe.mod_squad.model import Block, Head, ModularTransformer


class AdaptedBlock(nn.Module):
    """A block, and after it a bottleneck with a residual that one task alone passes; it starts as the identity.

    Args:
        block: is kept as it is.
        task: who passes the bottleneck.
        width, hidden: of a token, of the bottleneck.
    """

    def __init__(self, block: nn.Module, task: str, width: int, hidden: int) -> None:
        super().__init__()
        self.block, self.task = block, task
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, parts: Parts, routes: Mapping[str, list[Routes]]) -> Tensor:
        """As :class:`mtlearn.moe.mod_squad.method.Block`."""
        x = self.block(x, parts, routes)
        if self.task not in parts:
            return x
        slices = zip(parts, torch.split(x, list(parts.values())), strict=True)
        return torch.cat([part + self.up(F.gelu(self.down(part))) if task == self.task else part for task, part in slices])


def add_adapters(model: ModularTransformer, task: str, hidden: int) -> list[nn.Parameter]:
    """Put an adapter for ``task`` after every block, in place; returns its parameters, which alone (of the blocks) are trainable."""
    if hidden < 1:
        raise ValueError(f"hidden must be at least 1, got {hidden}")
    found: list[nn.Parameter] = []
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        adapted = AdaptedBlock(block, task, model.shape.width, hidden).to(model.position.device)
        model.blocks[number] = adapted
        found += [*adapted.down.parameters(), *adapted.up.parameters()]
    return found


def held_loss(model: ModularTransformer, before: Mapping[str, Tensor], images: Tensor, *, temperature: float = 2.0) -> Tensor:
    """Learning without forgetting: how far old tasks' outputs on the *new* images have moved, a number a task, summed.

    Args:
        model: being trained.
        before: old task to its prediction on these images before training.
        images: of the new task.
        temperature: of the softmax whose cross-entropy is held (divergence from before); presence is compared as a probability, offsets as numbers.
    """
    moved = []
    outputs = model.forward_all(dict.fromkeys(before, images))
    for task, target in before.items():
        head: Head = model.tasks[task]
        prediction = outputs[task].prediction
        if head.kind == "cell":
            presence = F.binary_cross_entropy_with_logits(prediction[:, 0] / temperature, torch.sigmoid(target[:, 0] / temperature))
            moved.append(presence + F.mse_loss(prediction[:, 1:], target[:, 1:]))
        else:
            moved.append(F.cross_entropy(prediction / temperature, (target / temperature).softmax(1)))
    return torch.stack(moved).sum()
