"""M3ViT: one task's sparse path beside the dense model and beside all experts, all tasks' passes as one call beside one after the other."""

from copy import deepcopy

import torch
from ratios import ratios
from torch import nn

from mtlearn.moe.m3vit.method import M3ViT, MoELayer, balance_loss, pathway

TASKS = tuple(f"task {t}" for t in range(5))
SIZES = {"token_width": 768, "width": 192, "depth": 4, "attention_heads": 3, "hidden": 192, "k": 4}


def made(**changes: object) -> M3ViT:
    torch.manual_seed(0)
    return M3ViT({task: nn.Identity() for task in TASKS}, **{**SIZES, **changes})  # type: ignore[arg-type]


def main() -> None:
    tokens = torch.randn(4, 196, 768)
    sparse, dense = made(num_experts=16), made(num_experts=0)
    everything = deepcopy(sparse)
    for block in everything.blocks:
        if isinstance(block.feed, MoELayer):
            block.feed.k = 16
    alone = pathway(sparse, TASKS[0], tokens)
    with torch.no_grad():
        ratios(
            "One task of five, 4 images of 196 tokens, forward; the dense model has the same active FLOPs",
            {
                "dense": lambda: dense.single(tokens, TASKS[0]),
                "sparse path, 16 experts, 4 a token": lambda: sparse.single(tokens, TASKS[0]),
                "its own model (pathway)": lambda: alone.single(tokens, TASKS[0]),
                "all 16 experts for every token": lambda: everything.single(tokens, TASKS[0]),
                "all five tasks": lambda: sparse(tokens),
            },
            repeats=7,
        )

    def loss(together: bool) -> None:
        if together:
            features, visits = sparse.encode(tokens, torch.arange(5))
            total = features.square().mean() + 0.01 * balance_loss(visits, 5)
        else:
            total = torch.zeros(())
            for t in range(5):
                features, visits = sparse.encode(tokens, torch.tensor([t]))
                total = total + features.square().mean() / 5 + 0.01 * balance_loss(visits, 5)
        total.backward()
        sparse.zero_grad()

    ratios(
        "Training step of five tasks, forward and backward",
        {"one pass after the other, as published": lambda: loss(False), "all passes as one call": lambda: loss(True)},
        repeats=5,
    )


if __name__ == "__main__":
    main()
