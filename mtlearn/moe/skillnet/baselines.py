"""What SkillNet is compared with: dense and separate Transformers, which are its own code with another table, and a learned router."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.experts import MixtureOfExperts, Routes, switch_loss, usage_by_group
from mtlearn.moe.skillnet.method import GENERAL, SKILLS, TABLE, Modality, Sizes, SkillLayer, SkillNet, Task, with_all, without

DENSE = "dense"


def skillnet(modalities: Mapping[str, Modality], sizes: Sizes, table: Mapping[str, Task] = TABLE) -> SkillNet:
    """The model itself."""
    return SkillNet(table, modalities, SKILLS, sizes)


def dense(modalities: Mapping[str, Modality], sizes: Sizes, *, skills: int = 2, tasks: Sequence[str] = tuple(TABLE)) -> SkillNet:
    """One dense Transformer for ``tasks``, with an FFN as wide as ``skills`` skills: 2 is the activated size, 6 the total."""
    table = {name: TABLE[name] for name in tasks}
    return SkillNet(with_all(table, (DENSE,)), modalities, (DENSE,), replace(sizes, hidden=skills * sizes.hidden))


def without_general(modalities: Mapping[str, Modality], sizes: Sizes) -> SkillNet:
    """SkillNet without the general skill; each other skill is twice as wide, so that a call with one of them is as large as before."""
    skills = [skill for skill in SKILLS if skill != GENERAL]
    return SkillNet(without(TABLE, GENERAL), modalities, skills, replace(sizes, hidden=2 * sizes.hidden))


class RoutedLayer(nn.Module):
    """A pre-norm Transformer layer whose FFN is a mixture of experts with a learned router; attention is shared.

    Attributes:
        routes: those of the last call; the balance loss is made of them.
    """

    routes: Routes

    def __init__(self, width: int, heads: int, hidden: int, experts: int, k: int) -> None:
        super().__init__()
        attention = SkillLayer((DENSE,), width, heads, 1)
        self.heads, self.qkv, self.out = heads, attention.qkv, attention.out
        self.attention_norm, self.ffn_norm = attention.attention_norm, attention.ffn_norm
        self.ffn = MixtureOfExperts(width, hidden, num_experts=experts, k=k, renormalise=True)

    def forward(self, x: Tensor, mask: Tensor | None, active: Sequence[str]) -> Tensor:
        """As :meth:`SkillLayer.forward`; which experts are active is the router's affair."""
        split = self.qkv(self.attention_norm(x), (DENSE,)).view(*x.shape[:2], 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        change, self.routes = self.ffn(self.ffn_norm(x), mask=None if mask is None else mask[:, 0, 0])
        result: Tensor = x + change
        return result


class RoutedNet(SkillNet):
    """A Transformer for all tasks with as many experts as SkillNet has skills, of which a learned router picks two for each token.

    Args:
        modalities, sizes: as SkillNet's.
        balance: weight of the Switch loss, which keeps all experts in use.
    """

    def __init__(self, modalities: Mapping[str, Modality], sizes: Sizes, *, balance: float = 0.01) -> None:
        super().__init__(with_all(TABLE, (DENSE,)), modalities, (DENSE,), replace(sizes, hidden=1))
        self.balance = balance
        self.layers = nn.ModuleList(RoutedLayer(sizes.width, sizes.heads, sizes.hidden, len(SKILLS), 2) for _ in range(sizes.layers))

    def loss(self, task: str, calls: Sequence, labels: Tensor, lengths: Tensor | None = None) -> Tensor:  # type: ignore[type-arg]
        """The task's loss plus the balance loss of the last call."""
        own = super().loss(task, calls, labels, lengths)
        return own + self.balance * torch.stack([switch_loss(layer.routes) for layer in self.layers]).sum()  # type: ignore[arg-type]

    @torch.no_grad()
    def usage(self, inputs: Mapping[str, tuple[str, int, object]]) -> Tensor:
        """Share of each expert in the tokens of each modality: (layers, modalities, experts).

        Args:
            inputs: modality to task, number of the call and a batch.
        """
        shares = []
        for task, side, batch in inputs.values():
            self.embed(task, side, batch)  # type: ignore[arg-type]
            routes = [layer.routes for layer in self.layers]
            shares.append(torch.stack([usage_by_group(r, torch.zeros(r.tokens, dtype=torch.int64), 1)[0] for r in routes]))  # type: ignore[union-attr,arg-type]
        return torch.stack(shares, 1)
