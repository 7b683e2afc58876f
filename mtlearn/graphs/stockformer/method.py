r"""Stockformer: predict tomorrow's returns of many stocks from slow and fast parts of the past, with the stocks as nodes of a graph.

Bohan Ma, Yushan Xue, Yuan Lu, Jing Chen, "Stockformer: A Price-Volume Factor Stock Selection Model Based on Wavelet Transform and Multi-Task
Self-Attention Networks", 2024, arXiv:2401.06139. Its architecture is that of STWave for traffic, with two heads.

**Idea.** A return is a slow trend plus sudden shocks, and stocks move together. A wavelet splits each window of returns into a low- and a
high-frequency part; each has an encoder of its own over time and across stocks; the low part then asks the high one what to add. Two heads
predict the return and the direction together.

**Shapes.** B windows, T = T1 input days, T2 output days, N stocks, D channels.

**Wavelet split** (:func:`split_matrices`). :math:`(a, d_1, \dots, d_J) = DWT(x)`, :math:`x^l = IDWT(a, 0, \dots)`,
:math:`x^h = IDWT(0, d_1, \dots)`, so :math:`x^l + x^h = x`. Both are linear in the window, so PyWavelets is asked once for the two T x T matrices,
and a product with them is the split: differentiable, and the same numbers.

**Dual-frequency encoder** (:class:`DualEncoder`, L blocks), from :math:`X_{l/h} = MLP_{l/h}[x^{l/h}; 1[r > 0]; factors]`:

.. math::
    X_l' = FF(LN(W_o\, softmax(QK^\top/\sqrt d + causal)\, V + x)), \quad x = X_l + te  \qquad (time, low) \\
    X_h' = ReLU(W * X_h) \text{ over days } t-1, t \qquad (time, high) \\
    A = softmax(QK^\top/\sqrt d),\; V' = AV,\; q(n) = \arg\max_q A_{qn},\; S(X) = MLP(LN(W_o V'_{q(n)} + x')),\; x' = X + G \qquad (stocks) \\
    X_{l/h} \leftarrow S(X_{l/h}') + X_{l/h}'

The *copy* step gives stock n the mixture of the query that attends to n most. G is a fixed embedding of each stock's place in the graph of return
correlations (``embedding.py``). A linear map takes T1 days to T2. **Fusion**: queries from the low branch, keys and values (with ReLU) from the
high one, over the T2 days, causal. **Heads**, shared by the fused and by the low branch: return and direction.

**Loss** (:func:`multitask_loss`). :math:`MAE^*(y, \hat y) + MAE^*(y^l, \hat y_l) + CE(c, \hat c) + CE(c, \hat c_l)`; :math:`MAE^*` leaves out
entries whose label is exactly 0 (a suspended stock).

**What differs.** The published file adds the time embedding in place, so its low head reads the low branch plus that embedding: here that is
written out. It builds layers that never get a gradient (``unused_layers`` builds them too, to count them). Where ``samples`` < 1 the queries that are
computed are those whose scores vary most over the stocks; the paper's own setting is 1. ``tied_start`` lets like attend to like from the first step;
it is ours.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pywt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Split = Callable[[Tensor], tuple[Tensor, Tensor]]  # windows (batch, days, stocks) to their low and high parts


@lru_cache(maxsize=128)
def split_matrices(days: int, wavelet: str = "sym2", level: int = 1, mode: str = "zero", *, short: bool = False) -> tuple[Tensor, Tensor]:
    """The matrices (days, days) that take a window to its low and to its high part; they sum to the identity.

    Column t is what the library makes of a window that is 1 on day t: its transform, one side set to zero, transformed back.

    Args:
        days: length of the window.
        wavelet: a discrete wavelet of PyWavelets, ``haar``, ``sym2``, ``db4`` ...
        level: how often the low part is split again, 1 or more.
        mode: how the window is continued at its borders; ``zero`` is the published choice.
        short: allow windows shorter than the wavelet's filter, where the low part is no trend but a mixture of days.

    Raises:
        ValueError: an unknown wavelet or mode, a level below 1, or a window shorter than the filter.
    """
    if wavelet not in pywt.wavelist(kind="discrete"):
        raise ValueError(f"wavelet must be a discrete one of PyWavelets, such as 'haar', 'sym2' or 'db4', got {wavelet!r}")
    if mode not in pywt.Modes.modes:
        raise ValueError(f"mode must be one of {', '.join(pywt.Modes.modes)}, got {mode!r}")
    if level < 1 or days < 1:
        raise ValueError(f"level and days must be at least 1, got level={level}, days={days}")
    needed = pywt.Wavelet(wavelet).dec_len
    if days < needed and not short:
        raise ValueError(f"a window of {days} days is shorter than the filter of {wavelet}: it needs at least {needed} days")
    details, low, lengths = [], np.eye(days), []
    for _ in range(level):  # level by level, as wavedec does, which warns where a level reaches beyond the window
        lengths.append(low.shape[0])
        low, detail = pywt.dwt(low, wavelet, mode, axis=0)
        details.append(detail)
    parts = []
    for keep_low in (True, False):
        back = low if keep_low else np.zeros_like(low)
        for detail, length in zip(reversed(details), reversed(lengths), strict=True):
            back = pywt.idwt(back, np.zeros_like(detail) if keep_low else detail, wavelet, mode, axis=0)[:length]
        parts.append(torch.from_numpy(np.ascontiguousarray(back)))
    return parts[0], parts[1]


class WaveletSplit:
    """The wavelet split of windows as a product with two matrices: differentiable, on any device.

    Args: see :func:`split_matrices`. Calling it takes (batch, days, stocks), float, to low and high of the same shape.
    """

    def __init__(self, wavelet: str = "sym2", level: int = 1, mode: str = "zero", *, short: bool = False) -> None:
        self.wavelet, self.level, self.mode, self.short = wavelet, level, mode, short

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Low and high part of each window; they sum to it."""
        to_low, _ = split_matrices(x.shape[-2], self.wavelet, self.level, self.mode, short=self.short)
        low = to_low.to(x) @ x
        return low, x - low  # what is left is IDWT(0, d): the two matrices sum to the identity


def no_split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Both branches get the whole window: what is left of the model without the wavelet."""
    return x, x


def moving_average(x: Tensor, width: int = 3) -> tuple[Tensor, Tensor]:
    """A split without wavelets: the mean of the last ``width`` days of the window, as far as there are, and the rest."""
    lags = torch.arange(x.shape[-2], device=x.device)
    back = lags[:, None] - lags
    weight = ((back >= 0) & (back < width)).to(x)
    low = (weight / weight.sum(1, keepdim=True)) @ x
    return low, x - low


def feed_forward(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for inner, outer in pairwise(widths):
        layers += [nn.Linear(inner, outer), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def normalise(x: Tensor) -> Tensor:
    """Layer norm over the channels, without parameters."""
    return F.layer_norm(x, x.shape[-1:])


class Residual(nn.Module):
    """LN(x + FF(x)), two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = feed_forward(width, width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same shape."""
        return normalise(self.inner(x) + x)


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(QK'/sqrt(d)) V over the last but one axis, a day seeing itself and the days before: (..., days, d) to the same shape."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


class TemporalAttention(nn.Module):
    """Self-attention of each stock over its days, causal: FF(LN(W_o attention(x) + x)) of x = X + te."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.after = Residual(width)

    def forward(self, states: Tensor, time: Tensor) -> Tensor:
        """States (B, T, N, D) and time embedding (B, T, 1, D) to (B, T, N, D)."""
        x = (states + time).transpose(1, 2)  # (B, N, T, D)
        mixed = causal_attention(self.query(x), self.key(x), self.value(x))
        result: Tensor = self.after(normalise(self.out(mixed) + x))
        return result.transpose(1, 2)


class CausalConvolution(nn.Module):
    """ReLU of a convolution over days t - dilation and t, with dropout: W_0 x[t - dilation] + W_1 x[t] + b; before the window there are zeros."""

    def __init__(self, width: int, *, dilation: int = 1, dropout: float = 0.2) -> None:
        super().__init__()
        self.taps = nn.Linear(2 * width, width)
        self.dilation, self.dropout = dilation, nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        """(B, T, N, D) to the same shape."""
        before = F.pad(states, (0, 0, 0, 0, self.dilation, 0))[:, : states.shape[1]]
        result: Tensor = self.dropout(F.relu(self.taps(torch.cat([before, states], -1))))
        return result


def copy_rows(attention: Tensor, mixed: Tensor) -> Tensor:
    """The copy step: stock n takes the mixture of the query q(n) = argmax_q A[q, n] that attends to n most.

    Args:
        attention: A (..., queries, N).
        mixed: V' = AV (..., queries, D).

    Returns:
        (..., N, D); no gradient flows through q(n).
    """
    source = attention.detach().max(-2).indices  # (..., N); several times as fast as argmax over that axis
    return mixed.gather(-2, source[..., None].expand(*source.shape, mixed.shape[-1]))


class SpatialAttention(nn.Module):
    """Attention across stocks at every day, with the graph embedding added and the copy step: MLP(LN(W_o V'[q(n)] + x')), x' = X + G.

    Args:
        width: D.
        samples: share of the queries that is computed; the other stocks only copy. At 1 all are, as published.
        tied_start: start with equal query and key weights, so that stocks with like embeddings attend to one another.
        unused_layers: hold the published file's projection too, which no output depends on.
    """

    def __init__(self, width: int, *, samples: float = 1.0, tied_start: bool = False, unused_layers: bool = False) -> None:
        super().__init__()
        if not 0 < samples <= 1:
            raise ValueError(f"samples must lie in (0, 1], got {samples}")
        self.samples = samples
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.after = feed_forward(width, width, width)
        self.projection = nn.Linear(width, 1) if unused_layers else None
        if tied_start:
            self.key.load_state_dict(self.query.state_dict())

    def attention(self, x: Tensor) -> Tensor:
        """A (B, T, queries, N) of x' = X + G."""
        query, key = self.query(x), self.key(x)
        if self.samples < 1:
            query = self._widest(query, key)
        scores: Tensor = query @ key.transpose(-1, -2) / x.shape[-1] ** 0.5
        return scores.softmax(-1)

    def _widest(self, query: Tensor, key: Tensor) -> Tensor:
        """The queries whose scores vary most over the stocks, found without computing the scores: the variance is q' Cov(K) q."""
        count = max(1, round(self.samples * query.shape[-2]))
        centred = key - key.mean(-2, keepdim=True)
        variance = (query @ (centred.transpose(-1, -2) @ centred) * query).sum(-1)  # (B, T, N)
        chosen = variance.topk(count).indices
        return query.gather(-2, chosen[..., None].expand(*chosen.shape, query.shape[-1]))

    def forward(self, states: Tensor, graph: Tensor) -> Tensor:
        """States (B, T, N, D) and graph embedding (N, D) to (B, T, N, D)."""
        x = states + graph
        attention = self.attention(x)
        copied = copy_rows(attention, attention @ self.value(x))
        result: Tensor = self.after(normalise(self.out(copied) + x))
        return result


class DualEncoder(nn.Module):
    """One block: low over time by attention, high by convolution, each then across stocks, with the time output added at the end."""

    def __init__(self, width: int, *, dropout: float, samples: float, tied_start: bool, high: bool, unused_layers: bool) -> None:
        super().__init__()
        self.low_time = TemporalAttention(width)
        self.low_stocks = SpatialAttention(width, samples=samples, tied_start=tied_start, unused_layers=unused_layers)
        self.high_time = CausalConvolution(width, dropout=dropout) if high else None
        self.high_stocks = SpatialAttention(width, samples=samples, tied_start=tied_start, unused_layers=unused_layers) if high else None

    def forward(self, low: Tensor, high: Tensor, time: Tensor, graph: Tensor) -> tuple[Tensor, Tensor]:
        """Both branches (B, T, N, D) to both; without a high branch its states come back as they are."""
        low = self.low_time(low, time)
        low = self.low_stocks(low, graph) + low
        if self.high_time is not None and self.high_stocks is not None:
            high = self.high_time(high)
            high = self.high_stocks(high, graph) + high
        return low, high


class AdaptiveFusion(nn.Module):
    """The low branch asks the high one: FF(LN(W_o attention(Q_l, relu K_h, relu V_h) + X_l)) over the T2 days, causal."""

    def __init__(self, width: int, *, unused_layers: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.after = Residual(width)
        self.low_key, self.low_value = (nn.Linear(width, width) if unused_layers else None for _ in range(2))

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Both (B, T2, N, D), time embedding included, to the fused branch of that shape."""
        low, high = low.transpose(1, 2), high.transpose(1, 2)
        mixed = causal_attention(self.query(low), F.relu(self.key(high)), F.relu(self.value(high)))
        result: Tensor = self.after(normalise(self.out(mixed) + low))
        return result.transpose(1, 2)


class Prediction(NamedTuple):
    """What the heads say, of the fused and of the low branch: returns (B, T2, N), logits of down and up (B, T2, N, 2)."""

    returns: Tensor
    direction: Tensor
    low_returns: Tensor
    low_direction: Tensor


class Stockformer(nn.Module):
    """The model; its defaults are the published sizes.

    Args:
        features: input channels of each stock and day: a part of the return, the indicator of a rise, and the factors.
        width: D.
        blocks: L.
        days: T1, input days.
        horizon: T2, output days.
        periods: how many values each of the two time marks has.
        dropout: of the high branch's convolution.
        samples: see :class:`SpatialAttention`.
        high: whether there is a high branch; without it the heads read the low one alone.
        tied_start: see :class:`SpatialAttention`.
        unused_layers: hold the layers, too, that the published file builds and never uses.

    Raises:
        ValueError: a size below 1, or ``samples`` outside (0, 1].
    """

    def __init__(
        self,
        features: int,
        width: int = 128,
        blocks: int = 2,
        *,
        days: int = 20,
        horizon: int = 2,
        periods: tuple[int, int] = (5, 50),
        dropout: float = 0.2,
        samples: float = 1.0,
        high: bool = True,
        tied_start: bool = False,
        unused_layers: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"features": features, "width": width, "blocks": blocks, "days": days, "horizon": horizon, "periods": min(periods)}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.days, self.horizon, self.periods, self.high = days, horizon, periods, high
        self.low_input = feed_forward(features, width, width)
        self.time_input = feed_forward(sum(periods), width, width)
        self.encoders = nn.ModuleList(
            DualEncoder(width, dropout=dropout, samples=samples, tied_start=tied_start, high=high, unused_layers=unused_layers) for _ in range(blocks)
        )
        self.low_horizon = nn.Linear(days, horizon)
        self.high_input = feed_forward(features, width, width) if high else None
        self.high_horizon = nn.Linear(days, horizon) if high else None
        self.fusion = AdaptiveFusion(width, unused_layers=unused_layers) if high else None
        self.direction_head = feed_forward(width, width, 2)
        self.return_head = feed_forward(width, width, 1)

    def time(self, marks: Tensor) -> Tensor:
        """The embedding of the two marks of each day, (B, days, 2) whole numbers, each taken modulo its period: (B, days, 1, D)."""
        hot = [F.one_hot(marks[..., at] % period, period) for at, period in enumerate(self.periods)]
        embedded: Tensor = self.time_input(torch.cat(hot, -1).to(self.low_horizon.weight))
        return embedded[:, :, None]

    def encode(self, low: Tensor, high: Tensor, factors: Tensor, time: Tensor, graph: Tensor) -> tuple[Tensor, Tensor]:
        """Both branches after all blocks (B, T1, N, D), from parts (B, T1, N), all other inputs (B, T1, N, features - 1), time (B, T1, 1, D)."""
        low_states = self.low_input(torch.cat([low[..., None], factors], -1))
        high_states = self.high_input(torch.cat([high[..., None], factors], -1)) if self.high_input is not None else low_states
        for encoder in self.encoders:
            low_states, high_states = encoder(low_states, high_states, time, graph)
        return low_states, high_states

    def forward(self, low: Tensor, high: Tensor, up: Tensor, factors: Tensor, marks: Tensor, graph: Tensor) -> Prediction:
        """Predict T2 days.

        Args:
            low: x^l (B, T1, N).
            high: x^h (B, T1, N).
            up: 1 where the return is above 0, else 0 (B, T1, N).
            factors: (B, T1, N, features - 2).
            marks: (B, T1 + T2, 2) int64, known in advance for the days to predict.
            graph: G (N, D), or what broadcasts to it.
        """
        time = self.time(marks)
        low_states, high_states = self.encode(low, high, torch.cat([up[..., None], factors], -1), time[:, : self.days], graph)
        ahead = time[:, self.days :]
        low_ahead = _to_horizon(self.low_horizon, low_states) + ahead
        fused = low_ahead
        if self.fusion is not None and self.high_horizon is not None:
            fused = self.fusion(low_ahead, _to_horizon(self.high_horizon, high_states) + ahead)
        return Prediction(
            self.return_head(fused)[..., 0], self.direction_head(fused), self.return_head(low_ahead)[..., 0], self.direction_head(low_ahead)
        )


def _to_horizon(layer: nn.Linear, states: Tensor) -> Tensor:
    """A linear map over days, the same for all stocks and channels: (B, T1, N, D) to (B, T2, N, D)."""
    ahead: Tensor = layer(states.movedim(1, -1)).movedim(-1, 1)
    return ahead


def masked_mae(predicted: Tensor, label: Tensor) -> Tensor:
    """Mean absolute error over the entries whose label is not exactly 0; 0 where there are none."""
    kept = (label != 0).to(predicted)
    return ((predicted - label).abs() * kept).sum() / kept.sum().clamp(min=1)


class Loss(NamedTuple):
    """The four terms, scalars."""

    returns: Tensor
    low_returns: Tensor
    direction: Tensor
    low_direction: Tensor


def multitask_loss(prediction: Prediction, target: Tensor, low_target: Tensor, up: Tensor) -> Loss:
    """MAE* of return and low part, cross entropy of the direction of both branches.

    Args:
        prediction: of the model.
        target: y (B, T2, N).
        low_target: y^l (B, T2, N).
        up: c (B, T2, N), 1 where the return is above 0, else 0.
    """
    label = up.long().flatten()
    return Loss(
        masked_mae(prediction.returns, target),
        masked_mae(prediction.low_returns, low_target),
        F.cross_entropy(prediction.direction.flatten(0, -2), label),
        F.cross_entropy(prediction.low_direction.flatten(0, -2), label),
    )
