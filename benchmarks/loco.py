"""LoCo: the sequence mixer beside attention up to 32,768 tokens, its convolution beside a direct sum, block-diagonal beside dense matrices."""

import numpy as np
import torch
from ratios import ratios
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mtlearn.retrieval.loco.experiment import Attention, seconds
from mtlearn.retrieval.loco.method import GatedMLP, M2Mixer, Monarch, long_convolution

LENGTHS = (512, 2048, 8192, 32_768)
WIDTH = 64


def scaling() -> None:
    """Time by length, and the exponent."""
    mixer, attention = M2Mixer(WIDTH, max(LENGTHS)).eval(), Attention(WIDTH).eval()
    x = torch.randn(1, max(LENGTHS), WIDTH)
    spent: dict[str, list[float]] = {"mixer": [], "attention": []}
    table = Table(title="One layer's mixing of tokens, 64 wide, ms of the processor, one thread", title_justify="left")
    for heading in ("tokens", "mixer", "attention", "attention / mixer"):
        table.add_column(heading, justify="right")
    for length in LENGTHS:
        for name, layer in (("mixer", mixer), ("attention", attention)):
            spent[name].append(1e3 * seconds(lambda layer=layer, length=length: layer(x[:, :length]), 5 if length < 32_768 else 2))
        a, b = (spent[name][-1] for name in spent)
        table.add_row(f"{length:,}", f"{a:.1f}", f"{b:.1f}", f"{b / a:.2f}")
    slopes = {name: float(np.polyfit(np.log(LENGTHS), np.log(values), 1)[0]) for name, values in spent.items()}
    console = Console(width=110)
    console.print(table)
    console.print(f"exponent of the length: mixer {slopes['mixer']:.2f}, attention {slopes['attention']:.2f}")


def direct(v: Tensor, k: Tensor, reverse: Tensor, b: Tensor) -> Tensor:
    """The sum by a Toeplitz matrix for each channel."""
    length = v.shape[1]
    lag = torch.arange(length)[:, None] - torch.arange(length)
    matrix = torch.where(lag >= 0, k[:, lag.clamp(min=0)], 0) + torch.where(lag < 0, reverse[:, (-lag - 1).clamp(min=0)], 0)
    return torch.einsum("cij,bjc->bic", matrix, v) + b * v


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    scaling()
    v, k, reverse, b = torch.randn(4, 512, 32), torch.randn(32, 512), torch.randn(32, 512), torch.randn(32)
    ratios(
        "A long convolution: four texts of 512 tokens, 32 channels",
        {"a matrix for each channel": lambda: direct(v, k, reverse, b), "ours, by the transform": lambda: long_convolution(v, k, reverse, b)},
    )
    wide = torch.randn(2048, 768)
    dense, blocks, monarch = GatedMLP(768, 3072, 1).eval(), GatedMLP(768, 3072, 4).eval(), GatedMLP(768, 3072, 16, monarch=True).eval()
    ratios(
        "A gated MLP of 768 and 3,072 units on 2,048 tokens",
        {"dense": lambda: dense(wide), "four blocks": lambda: blocks(wide), "Monarch, 16 blocks": lambda: monarch(wide)},
        repeats=5,
    )
    square = Monarch(1024, 1024, 32).eval()
    full, rows = square.dense(), torch.randn(2048, 1024)
    ratios(
        "A Monarch matrix of 1,024 on 2,048 rows",
        {"its dense matrix": lambda: rows @ full.T, "two block-diagonal products": lambda: square(rows)},
    )


if __name__ == "__main__":
    main()
