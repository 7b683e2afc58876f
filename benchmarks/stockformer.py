"""Spatial attention and a training step beside a loop over stocks, the split beside PyWavelets, temporal attention beside PyTorch's kernel."""

import numpy as np
import pywt
import torch
from ratios import ratios
from torch import Tensor
from torch.nn import functional as F

from mtlearn.graphs.stockformer.method import (
    SpatialAttention,
    Stockformer,
    TemporalAttention,
    WaveletSplit,
    multitask_loss,
    normalise,
)

BATCH, DAYS, WIDTH = 8, 8, 16  # the laptop's sizes
STOCKS = 24


class Looped(SpatialAttention):
    """The same layer, one stock after the other: its query, then which query each stock copies."""

    def forward(self, states: Tensor, graph: Tensor) -> Tensor:
        x = states + graph
        key, value = self.key(x), self.value(x)
        rows, mixed = [], []
        for n in range(x.shape[-2]):
            weights = (key @ self.query(x[..., n, :])[..., None] / x.shape[-1] ** 0.5)[..., 0].softmax(-1)  # (B, T, N)
            rows.append(weights)
            mixed.append((weights[..., None] * value).sum(-2))
        attention, choices = torch.stack(rows, -2).detach(), torch.stack(mixed, -2)
        copied = []
        for n in range(x.shape[-2]):
            source = attention[..., n].argmax(-1)[..., None, None].expand(*x.shape[:-2], 1, x.shape[-1])
            copied.append(choices.gather(-2, source)[..., 0, :])
        return self.after(normalise(self.out(torch.stack(copied, -2)) + x))


def spatial() -> None:
    torch.manual_seed(0)
    ours, looped = SpatialAttention(WIDTH), Looped(WIDTH)
    looped.load_state_dict(ours.state_dict())
    states, graph = torch.randn(BATCH, DAYS, STOCKS, WIDTH, requires_grad=True), torch.randn(STOCKS, WIDTH)
    torch.testing.assert_close(ours(states, graph), looped(states, graph), atol=1e-4, rtol=0)
    ways = {
        "a loop over the stocks": lambda: looped(states, graph).sum().backward(),
        "ours": lambda: ours(states, graph).sum().backward(),
    }
    ratios(f"Spatial attention with the copy step, {BATCH} x {DAYS} days x {STOCKS} stocks, forward and backward", ways, target="at most 1")


def step() -> None:
    torch.manual_seed(0)
    ours = Stockformer(5, WIDTH, 1, days=DAYS)
    looped = Stockformer(5, WIDTH, 1, days=DAYS)
    for encoder in looped.encoders:
        encoder.low_stocks, encoder.high_stocks = Looped(WIDTH), Looped(WIDTH)
    looped.load_state_dict(ours.state_dict())
    x, factors = torch.randn(BATCH, DAYS, STOCKS), torch.randn(BATCH, DAYS, STOCKS, 3)
    marks, graph = torch.zeros(BATCH, DAYS + 2, 2, dtype=torch.int64), torch.randn(STOCKS, WIDTH)
    target = torch.randn(BATCH, 2, STOCKS)
    split = WaveletSplit()

    def train(model: Stockformer, optimizer: torch.optim.Optimizer) -> None:
        low, high = split(x)
        prediction = model(low, high, (x > 0).float(), factors, marks, graph)
        loss = torch.stack(multitask_loss(prediction, target, target, (target > 0).long())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    optimizers = {model: torch.optim.Adam(model.parameters(), fused=True) for model in (ours, looped)}
    ways = {
        "spatial attention in a loop over the stocks": lambda: train(looped, optimizers[looped]),
        "ours": lambda: train(ours, optimizers[ours]),
    }
    ratios("A training step of those sizes", ways, target="at most 1")


def split() -> None:
    for days, stocks in ((20, 255), (256, 255)):
        torch.manual_seed(0)
        x = torch.randn(12, days, stocks)
        array = x.numpy()

        def library(array: np.ndarray = array, days: int = days) -> tuple[np.ndarray, np.ndarray]:
            low, high = pywt.dwt(array, "sym2", "zero", axis=1)
            return pywt.idwt(low, None, "sym2", "zero", axis=1)[:, :days], pywt.idwt(None, high, "sym2", "zero", axis=1)[:, :days]

        ours = WaveletSplit()
        torch.testing.assert_close(ours(x)[0], torch.from_numpy(library()[0]), atol=1e-4, rtol=0)
        wanted = x.clone().requires_grad_()
        ways = {
            "PyWavelets": library,
            "ours": lambda x=x, ours=ours: ours(x),
            "ours, with its gradient": lambda x=wanted, ours=ours: ours(x)[0].sum().backward(),
            **_pytorch_wavelets(x),
        }
        ratios(f"Wavelet split of 12 windows x {days} days x {stocks} stocks", ways, target="ours at most 1")


def _pytorch_wavelets(x: Tensor) -> dict[str, object]:
    """The package that the published code uses, where it is installed."""
    try:
        from pytorch_wavelets import DWT1DForward, DWT1DInverse
    except ImportError:
        return {}
    forward, inverse = DWT1DForward(wave="sym2", J=1), DWT1DInverse(wave="sym2")

    def theirs() -> tuple[Tensor, Tensor]:
        rows = x.transpose(1, 2).reshape(-1, 1, x.shape[1])
        low, (high,) = forward(rows)
        return inverse((low, [torch.zeros_like(high)])), inverse((torch.zeros_like(low), [high]))

    return {"pytorch_wavelets": theirs}


def temporal() -> None:
    torch.manual_seed(0)
    layer = TemporalAttention(WIDTH)
    states, time = torch.randn(BATCH, DAYS, STOCKS, WIDTH, requires_grad=True), torch.randn(BATCH, DAYS, 1, WIDTH)
    later = torch.ones(DAYS, DAYS, dtype=torch.bool).triu(1)

    def bare(attend: object) -> None:
        x = (states + time).transpose(1, 2)
        mixed = attend(layer.query(x), layer.key(x), layer.value(x))
        layer.after(normalise(layer.out(mixed) + x)).sum().backward()

    def written_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = (query @ key.transpose(-1, -2) / WIDTH**0.5).masked_fill(later, -(2**15) + 1)
        return scores.softmax(-1) @ value

    ways = {
        "scaled_dot_product_attention": lambda: bare(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
        "ours": lambda: layer(states, time).sum().backward(),
        "written out": lambda: bare(written_out),
    }
    ratios("Temporal attention, forward and backward", ways, target="ours at most 1.05")


if __name__ == "__main__":
    torch.set_num_threads(1)
    spatial()
    step()
    split()
    temporal()
