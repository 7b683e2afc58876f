"""Adapters: merged, unmerged and plain; 24 tasks by batched products beside one after the other; making an adapter beside training it."""

from importlib.util import find_spec

import torch
from ratios import ratios
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.lora import add_lora, lora_state, merge_lora
from mtlearn.merging.icm_lora.method import CHANNELS, MLPCVAE, ConvCVAE, generate
from mtlearn.merging.icm_lora.vectors import Layout, Statistics

NAMES = ("0", "2", "4")


def perceptron(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def adapted(width: int, **options: object) -> nn.Sequential:
    model = perceptron(width)
    add_lora(model, NAMES, rank=4, rank_stabilised=True, **options)
    return model


def forward() -> None:
    x = torch.randn(256, 512)
    plain, unmerged, merged = perceptron(512), adapted(512).eval(), adapted(512).eval()
    merge_lora(merged)
    ways = {"plain model": lambda: plain(x), "merged": lambda: merged(x), "unmerged": lambda: unmerged(x)}
    if find_spec("peft"):  # a peer that is not among the dependencies
        from peft import LoraConfig, get_peft_model

        theirs = get_peft_model(perceptron(512), LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=list(NAMES))).eval()
        ways["unmerged, peft"] = lambda: theirs(x)
    with torch.no_grad():
        ratios("Forward, 256 rows of width 512, rank 4", ways, target="merged as fast as plain")


def training() -> None:
    tasks, x, y = 24, torch.randn(24, 64, 64), torch.randint(10, (24, 64))
    together, alone = adapted(64, adapters=tasks), [adapted(64) for _ in range(tasks)]

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> None:
        F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
        model.zero_grad()

    def one_by_one() -> None:
        for t in range(tasks):
            loss(alone[t], x[t], y[t])

    ratios("Gradients of 24 tasks, 64 images each", {"one after the other": one_by_one, "batched products": lambda: loss(together, x, y)}, repeats=7)


def making() -> None:
    model = adapted(64)
    layout = Layout.of(lora_state(model))
    statistics = Statistics.over(layout, torch.randn(9, layout.size))
    small, conv = MLPCVAE(1344, 12).eval(), ConvCVAE(4096, 12, channels=CHANNELS).eval()
    x, y, c = torch.randn(200, 64, 64), torch.randint(10, (200, 64)), torch.randn(12)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    def train() -> None:
        for inputs, labels in zip(x, y, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()

    ratios(
        "One adapter of 1,320 numbers",
        {
            "200 training steps": train,
            "small generator": lambda: generate(small, c, statistics),
            "convolutional generator": lambda: generate(conv, c, statistics),
        },
        repeats=5,
    )


if __name__ == "__main__":
    forward()
    training()
    making()
