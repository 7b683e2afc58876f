"""Mixtures of perceptrons and of heads beside a loop over experts and dense layers of equal cost; one step for all tasks beside one each."""

import torch
from ratios import ratios
from torch import Tensor
from torch.nn import functional as F

from mtlearn.moe.mod_squad.method import LossWeights, heterogeneous_loss
from mtlearn.moe.mod_squad.mixtures import MoEAttention, MoEMLP
from mtlearn.moe.mod_squad.model import MLP, Attention, Batch, Head, ModularTransformer, Shape


def looped_mlp(layer: MoEMLP, x: Tensor) -> Tensor:
    """What one writes first: for each expert, pick its tokens."""
    tokens, weight = x.flatten(0, 1), layer.bank.stacked
    gate, chosen = (tokens @ layer.router("a").weight).softmax(-1).topk(layer.router("a").k)
    output = torch.zeros_like(tokens)
    for e in range(len(layer.bank)):
        token, slot = (chosen == e).nonzero(as_tuple=True)
        hidden = F.gelu(tokens[token] @ weight("first")[e] + weight("first_bias")[e])
        output = output.index_add(0, token, gate[token, slot, None] * (hidden @ weight("second")[e] + weight("second_bias")[e]))
    return output.view_as(x)


def looped_attention(layer: MoEAttention, x: Tensor) -> Tensor:
    """Every head for every token, then the gates: the plain way where a head's tokens lie in many images."""
    p = (x @ layer.router("a").weight).softmax(-1)
    best = p.topk(layer.router("a").k)
    gate = torch.zeros_like(p).scatter(-1, best.indices, best.values)
    key, value = layer.key(x), layer.value(x)
    output = torch.zeros_like(x)
    for e in range(len(layer.bank)):
        read = F.scaled_dot_product_attention(x @ layer.bank.stacked("query")[e], key, value)
        output = output + gate[..., e, None] * (read @ layer.bank.stacked("output")[e])
    return output


def mixtures(width: int, batch: int, length: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, length, width, requires_grad=True)
    grad, parts = torch.randn(batch, length, width), {"a": batch}
    mlp, dense = MoEMLP(width, 2 * width, num_experts=16, k=4, tasks=["a"], start=width**-0.5), MLP(width, 8 * width)
    torch.testing.assert_close(looped_mlp(mlp, x), mlp(x, parts)[0], atol=1e-4, rtol=1e-4)
    ways = {
        "a loop over experts": lambda: looped_mlp(mlp, x).backward(grad),
        "MoEMLP": lambda: mlp(x, parts)[0].backward(grad),
        "dense MLP of equal cost": lambda: dense(x).backward(grad),
    }
    ratios(f"MLP, width {width}, {batch * length} tokens, 4 of 16 experts, forward and backward", ways, target="at most 1")

    heads = MoEAttention(width, width // 6, num_experts=24, k=6, tasks=["a"], start=width**-0.5)
    plain = Attention(width, width // 6, 6, shared=True)
    torch.testing.assert_close(looped_attention(heads, x), heads(x, parts)[0], atol=1e-4, rtol=1e-4)
    ways = {
        "a loop over heads": lambda: looped_attention(heads, x).backward(grad),
        "MoEAttention": lambda: heads(x, parts)[0].backward(grad),
        "dense attention of equal cost": lambda: plain(x).backward(grad),
    }
    ratios(f"Attention, width {width}, {batch} x {length} tokens, 6 of 24 heads, forward and backward", ways, target="at most 1")


def steps() -> None:
    torch.manual_seed(0)
    heads = {"digits": Head("image", 10), "photos": Head("pixel", 4), "scenes": Head("cell")}
    labels = (torch.randint(10, (24,)), torch.randint(4, (24, 16, 16)), torch.rand(24, 3, 4, 4))
    batches: dict[str, Batch] = {task: (torch.rand(24, 3, 16, 16), label) for task, label in zip(heads, labels, strict=True)}
    sparse, dense = ModularTransformer(Shape(), heads), ModularTransformer(Shape(dense=True), heads)

    def one_by_one() -> None:
        for task, batch in batches.items():
            heterogeneous_loss(sparse, {task: batch}, LossWeights()).backward()

    ways = {
        "a pass a task, gradients accumulated": one_by_one,
        "one pass for all tasks": lambda: heterogeneous_loss(sparse, batches, LossWeights()).backward(),
        "with the mutual information": lambda: heterogeneous_loss(sparse, batches, LossWeights(information=0.15)).backward(),
        "the dense model": lambda: heterogeneous_loss(dense, batches, LossWeights()).backward(),
    }
    ratios("A heterogeneous step of the laptop's model, 3 x 24 images", ways, target="at most 1")


if __name__ == "__main__":
    torch.set_num_threads(1)
    mixtures(24, 72, 16)
    mixtures(192, 16, 64)
    steps()
