"""SMITH: time and memory against length beside full attention, with exponents; a training step; level 2 beside torch's encoder."""

import statistics
import time

import numpy as np
import torch
from ratios import ratios
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mtlearn.layers.text_encoders import TokenEncoder
from mtlearn.pairs.smith.baselines import FlatEncoder
from mtlearn.pairs.smith.method import Smith, attention_entries

LENGTHS = (64, 128, 256, 512, 1024, 2048)
SIZE, WORDS, WIDTH = 32, 1000, 64


def kept_bytes(run: nn.Module, *inputs: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, every storage once, parameters left out."""
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in run.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run.embed(*inputs)  # type: ignore[operator]
        total = sum(kept.values())
        del result
    return total


def main() -> None:
    torch.manual_seed(0)
    smith = Smith(TokenEncoder(WORDS, WIDTH, 4, 2, 128, longest=SIZE), layers=2, hidden=128)
    flat = FlatEncoder(TokenEncoder(WORDS, WIDTH, 4, 4, 128, longest=2049), 2, 3)
    models = {"SMITH": smith.eval(), "flat": flat.eval()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    memory: dict[str, list[int]] = {name: [] for name in models}
    table = Table(title=f"One document, {SIZE} tokens a block, four layers in both, forward", title_justify="left")
    for heading in ("tokens", "SMITH, ms", "flat, ms", "flat / SMITH", "kept, flat / SMITH", "attention entries, flat / SMITH"):
        table.add_column(heading, justify="right")
    for length in LENGTHS:
        tokens = torch.randint(5, WORDS, (1, length // SIZE, SIZE))
        times: dict[str, list[float]] = {name: [] for name in models}
        with torch.no_grad():
            for turn in range(16):
                for name, model in models.items():
                    began = time.perf_counter()
                    model.embed(tokens)  # type: ignore[operator]
                    if turn:
                        times[name].append(time.perf_counter() - began)
        for name, model in models.items():
            seconds[name].append(statistics.median(times[name]))
            memory[name].append(kept_bytes(model, tokens))
        ours, full = attention_entries(length // SIZE, SIZE)
        table.add_row(
            str(length), f"{1e3 * seconds['SMITH'][-1]:.1f}", f"{1e3 * seconds['flat'][-1]:.1f}", f"{seconds['flat'][-1] / seconds['SMITH'][-1]:.1f}",
            f"{memory['flat'][-1] / memory['SMITH'][-1]:.1f}", f"{full / ours:.1f}",
        )  # fmt: skip
    Console(width=120).print(table)
    for name in models:
        slopes = []
        for values in (seconds[name], memory[name]):
            slopes += [np.polyfit(np.log(LENGTHS[first:]), np.log(values[first:]), 1)[0] for first in (0, 3)]
        print(
            f"{name}: time grows as length to the {slopes[0]:.2f} (from 512 tokens: {slopes[1]:.2f}), memory kept for backward to the "
            f"{slopes[2]:.2f} (from 512: {slopes[3]:.2f})"
        )

    documents = torch.randint(5, WORDS, (8, 16, SIZE))

    def step(model: nn.Module) -> None:
        model(documents[:4], documents[4:]).sum().backward()

    ratios("A step on 4 pairs of 512 tokens, forward and backward", {"flat": lambda: step(flat), "SMITH": lambda: step(smith)}, repeats=5)

    peer = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 128, 0.0, "gelu", batch_first=True), 2, enable_nested_tensor=False)
    e, real = smith.blocks(documents)
    e = e.detach()

    def loop() -> Tensor:
        return torch.stack([smith.blocks(documents[:, i : i + 1])[0][:, 0] for i in range(documents.shape[1])], 1)

    with torch.no_grad():
        ratios(
            "Level 2, 8 documents of 16 blocks, forward",
            {"torch.nn.TransformerEncoder": lambda: peer(e, src_key_padding_mask=~real), "ours, with head": lambda: smith.document(e, real)},
            target="at most 1",
        )
        ratios("Level 1, 8 documents of 16 blocks, forward", {"a loop over blocks": loop, "all at once": lambda: smith.blocks(documents)}, repeats=7)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
