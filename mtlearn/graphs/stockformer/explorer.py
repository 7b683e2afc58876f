"""Touch Stockformer: drag a shock into a window of returns, see which part takes it, what each branch says of tomorrow, and what that is worth."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from mtlearn.datasets.markets import Market, best_prediction
from mtlearn.explore.explorer import Explorer, PointerEvent, choice, slider
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, VERMILION
from mtlearn.graphs.stockformer.backtest import mae_ratio
from mtlearn.graphs.stockformer.experiment import CHECKPOINTS, LEVELS, WAVELETS, Shipped, Task, Tested
from mtlearn.graphs.stockformer.method import WaveletSplit
from mtlearn.graphs.stockformer.panel import Windows, lag_means
from mtlearn.lab.checkpoints import load

SHIPPED = Shipped()
DAYS = SHIPPED.recipe.days
LARGEST = 10.0  # of a shock, per cent
MEMORY = 80  # days before a window that the optimum looks at: what came before has faded from the trend
ONE, SECTOR = "this stock", "its sector"


@cache
def models() -> nn.ModuleDict:
    """The shipped models by name."""
    found = load(CHECKPOINTS[0])
    assert isinstance(found, nn.ModuleDict)
    return found


@cache
def world() -> tuple[Market, Task]:
    """The drawn market on which they were trained, and its task."""
    market, tasks = SHIPPED.tasks()
    return market, tasks["drawn"]


@dataclass(frozen=True)
class Window:
    """A window with and without the shock.

    Attributes:
        returns: (2, DAYS) of the stock, per cent, before and after.
        low, high: its parts (2, DAYS), before and after.
        low_head: (2,) what the low branch alone says of tomorrow.
        fused: (4,) what both say: before, after, with the shock in the low part alone, in the high part alone.
        best: (2,) the best prediction, before and after.
    """

    returns: Tensor
    low: Tensor
    high: Tensor
    low_head: Tensor
    fused: Tensor
    best: Tensor


@torch.no_grad()
def look(wavelet: str, level: int, end: int, stock: int, at: int, size: float, whom: str) -> Window:
    """Run a shipped model over the window whose last day is ``end``, with a shock of ``size`` per cent on its day ``at`` (0 is the first).

    A shock of the whole sector is a jump of this market: part of it is taken back the next day, where the window has one.
    """
    market, task = world()
    tested = models()[f"drawn {wavelet} {level}"]
    assert isinstance(tested, Tested)
    days = slice(end - DAYS + 1 - MEMORY, end + 2)  # with tomorrow, which is predicted
    returns, jumps = market.returns[days].clone(), market.jumps[days].clone()
    sector = int(market.world.sector[stock])
    day = MEMORY + at
    if whom == SECTOR:
        members = market.world.sector == sector
        returns[day, members] += size
        jumps[day, sector] += size
        if at + 1 < DAYS:
            returns[day + 1, members] -= market.world.reversion * size
    else:
        returns[day, stock] += size
    after = Market(market.world, returns, market.trend[days], jumps)
    best = torch.stack([best_prediction(m)[-1, stock] for m in (_days(market, days), after)])

    windows = Windows(task.panel, days=DAYS, horizon=SHIPPED.recipe.horizon)
    batch = windows.batch(torch.tensor([end]))
    both = torch.stack([market.returns[days], returns]).float()  # (2, MEMORY + DAYS + 1, N)
    inputs = both[:, MEMORY:-1]
    low, high = WaveletSplit(wavelet, level)(inputs)
    factors = torch.stack([lag_means(part, (5, 10, 16)) for part in both])[:, MEMORY:-1]
    up = (inputs > 0).float()
    order = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 1])  # which low and which high part: before, after, low alone, high alone
    other = torch.tensor([0, 1, 0, 0])  # indicator and factors hold no part: they change with the whole shock alone
    found = tested.model(low[order[0]], high[order[1]], up[other], factors[other], batch.marks.expand(4, -1, -1), tested.graph)
    return Window(inputs[:, :, stock], low[:, :, stock], high[:, :, stock], found.low_returns[:2, 0, stock], found.returns[:, 0, stock], best)


def _days(market: Market, days: slice) -> Market:
    return Market(market.world, market.returns[days], market.trend[days], market.jumps[days])


def _end(day: int) -> int:
    """The last day of the window that stands before test day ``day`` (1 is the first)."""
    return world()[1].test.start + day - 2


def explorer(*, day: int = 61, stock: int = 5) -> Explorer:
    """The window of a stock, the shock in it, and what the model says; press or drag in the window to put the shock there."""
    tests = len(world()[1].test) - 1

    def draw(figure: Figure, wavelet: str, level: str, day: int, stock: int, whom: str, at: int, size: float) -> str:
        found = look(wavelet, int(level), _end(day), stock - 1, at - 1, size, whom)
        figure.set_layout_engine("none")
        _draw_window(figure.add_axes((0.06, 0.585, 0.50, 0.36)), found, at - 1, size)
        _draw_branches(figure.add_axes((0.79, 0.585, 0.19, 0.36)), found)
        gains = _draw_gain(figure.add_axes((0.06, 0.09, 0.40, 0.36)), f"{wavelet} {level}")
        ics = _draw_ic(figure.add_axes((0.575, 0.09, 0.40, 0.36)), f"{wavelet} {level}")
        moved = (found.low[1] - found.low[0]).abs().sum(), (found.high[1] - found.high[0]).abs().sum()
        return (
            f"{wavelet}, level {level}, stock {stock}, test day {day}: a shock of {size:+.1f} % to {whom} on day {at} of {DAYS} changes the low part "
            f"by {float(moved[0]):.1f} and the high part by {float(moved[1]):.1f} in sum; the low branch moves from {found.low_head[0]:+.2f} to "
            f"{found.low_head[1]:+.2f} %, both from {found.fused[0]:+.2f} to {found.fused[1]:+.2f} %, the best from {found.best[0]:+.2f} to "
            f"{found.best[1]:+.2f} %; {gains}; {ics}"
        )

    controls = {
        "wavelet": choice("wavelet", WAVELETS, "sym2"),
        "level": choice("level", [str(level) for level in LEVELS]),
        "day": slider("test day", day, 1, tests),
        "stock": slider("stock", stock, 1, len(world()[0].world.sector)),
        "whom": choice("shock to", [SECTOR, ONE]),
        "at": slider("on day", DAYS, 1, DAYS),
        "size": slider("shock, per cent", 5.0, -LARGEST, LARGEST, 0.5),
    }

    def on_pointer(event: PointerEvent) -> None:
        if event.kind == "key" and event.key in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"):
            step = {"ArrowLeft": -1, "ArrowRight": 1}.get(event.key, 0)
            controls["at"].value = min(max(controls["at"].value + step, 1), DAYS)
            controls["size"].value += {"ArrowUp": 0.5, "ArrowDown": -0.5}.get(event.key, 0.0)
        elif event.kind in ("press", "drag") and event.axes == 0:
            at = min(max(round(event.x) + DAYS, 1), DAYS)
            values = shown.values
            plain = float(world()[0].returns[_end(values["day"]) - DAYS + at, values["stock"] - 1])
            controls["at"].value = at
            controls["size"].value = min(max(round(2 * (event.y - plain)) / 2, -LARGEST), LARGEST)

    start = {"wavelet": "sym2", "level": "1", "day": day, "stock": stock, "whom": SECTOR, "at": DAYS, "size": 5.0}
    shown = Explorer(
        draw,
        controls,
        title="Drag a shock into the window: which part takes it, and what do the branches say of tomorrow?",
        figsize=(10.0, 6.4),
        seed=SHIPPED.seed,
        on_pointer=on_pointer,
        presets={
            "no shock": {**start, "size": 0.0},
            "the sector jumped today": start,
            "this stock alone": {**start, "whom": ONE},
            "the sector jumped last week": {**start, "at": DAYS - 5},
            "blocks: haar": {**start, "wavelet": "haar", "level": "2", "at": DAYS - 5},
            "deeper: level 3": {**start, "level": "3", "at": DAYS - 5},
        },
    )
    return shown


def _draw_window(axes: Axes, found: Window, at: int, size: float) -> None:
    x = np.arange(1 - DAYS, 1)
    axes.vlines(x, 0, found.returns[1].numpy(), color=LIGHT, linewidth=9)
    if size:
        axes.vlines(x[at], float(found.returns[0, at]), float(found.returns[1, at]), color=VERMILION, linewidth=9, alpha=0.6)
        for part, colour in ((found.low, BLUE), (found.high, ORANGE)):
            axes.plot(x, part[0].numpy(), color=colour, linewidth=1.2, linestyle=":")
    for part, colour in ((found.low, BLUE), (found.high, ORANGE)):
        axes.plot(x, part[1].numpy(), color=colour)
    axes.axhline(0, color=GREY, linewidth=0.8)
    top = max(4.0, 1.15 * float(found.returns.abs().max()))
    axes.set_xlim(0.3 - DAYS, 0.7)
    axes.set_ylim(-top, top)
    axes.set_xticks([-15, -10, -5, 0])
    axes.set_yticks([-4, 0, 4])
    axes.set_xlabel("day (0: today)")
    axes.set_ylabel("return, per cent")
    for place, text, colour in (
        (0.0, "low part", BLUE),
        (0.145, "+ high part", "#9C6B00"),
        (0.345, "= return (grey)" + ("; shock (red); dotted: without it" if size else ""), GREY),
    ):
        axes.text(place, 1.04, text, color=colour, transform=axes.transAxes)


def _draw_branches(axes: Axes, found: Window) -> None:
    """What is said of tomorrow, hollow without the shock, filled with it; by how much it moves stands beside the names."""
    fused, low, best = found.fused.tolist(), found.low_head.tolist(), found.best.tolist()
    rows = [
        ("both branches", fused[0], fused[1], BLACK),
        ("shock in low only", fused[0], fused[2], BLUE),
        ("shock in high only", fused[0], fused[3], ORANGE),
        ("low branch alone", low[0], low[1], BLUE),
        ("best possible", best[0], best[1], GREEN),
    ]
    reach = max(0.25, 1.25 * max(abs(value) for _, *pair, _ in rows[:-1] for value in pair))
    for row, (_, before, after, colour) in enumerate(rows):
        ends = [min(max(value, -reach), reach) for value in (before, after)]
        axes.plot(ends, [row, row], color=colour, linewidth=2.5)
        axes.plot(ends[:1], [row], "o", markerfacecolor="white", markeredgecolor=colour, markersize=7, clip_on=False)
        beyond = "<" if after < -reach else ">" if after > reach else "o"
        axes.plot(ends[1:], [row], beyond, color=colour, markersize=8, clip_on=False)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [f"{name}  {after - before:+.2f}".replace("-", "−") for name, before, after, _ in rows])
    axes.tick_params(axis="y", length=0)
    edge = float(f"{0.8 * reach:.1g}")
    axes.set_xticks([-edge, 0, edge])
    axes.set_xlabel("said of tomorrow, per cent")
    axes.set_title("moved by", x=-0.03, ha="right", fontsize=11)


TASKS = (("drawn", "drawn market", BLUE), ("real", "real prices", PURPLE))


def _draw_gain(axes: Axes, name: str) -> str:
    """Running gain in absolute error on predicting zero, as a share of the latter: above 0 is better than nothing."""
    words = []
    axes.axhline(0, color=BLACK, linewidth=1.0)
    for row, (task, label, colour) in enumerate(TASKS):
        gain, _, scale = _tested(f"{task} {name}")
        share = 100 * np.cumsum(gain) / np.arange(1, len(gain) + 1) / scale
        first = len(gain) // 8  # the first days swing widely
        axes.plot(np.linspace(0, 100, len(gain))[first:], share[first:], color=colour)
        words.append(f"{label} {share[-1]:+.1f} %" + (f" (one constant: {_constant_gain():+.1f} %)" if task == "real" else ""))
        axes.text(4, 8.4 - 1.5 * row, words[-1], color=colour, fontsize=10)
    axes.set_xlim(0, 100)
    axes.set_ylim(-5, 10)
    axes.set_xticks([0, 50, 100])
    axes.set_yticks([-5, 0, 5, 10])
    axes.set_xlabel("share of the test time, per cent")
    axes.set_ylabel("gain, per cent")
    axes.set_title("absolute error below that of predicting zero, so far", loc="left", fontsize=11)
    return "error below that of predicting zero: " + ", ".join(words)


def _draw_ic(axes: Axes, name: str) -> str:
    """Cumulative rank IC with the 95 % interval of a sum of as many independent days."""
    words: list[str] = []
    axes.axhline(0, color=BLACK, linewidth=1.0)
    for row, (task, label, colour) in enumerate(TASKS):
        _, ic, _ = _tested(f"{task} {name}")
        total, half = np.cumsum(ic), 1.96 * ic.std(ddof=1) * np.sqrt(np.arange(1, len(ic) + 1))
        x = np.linspace(0, 100, len(ic))
        axes.fill_between(x[::4], (total - half)[::4], (total + half)[::4], color=colour, alpha=0.2, linewidth=0)
        axes.plot(x, total, color=colour)
        words.append(f"{label}: mean {ic.mean():+.3f} ± {1.96 * ic.std(ddof=1) / np.sqrt(len(ic)):.3f}")
        axes.text(4, 53 - 7 * row, words[-1], color=colour, fontsize=10)
    axes.set_xlim(0, 100)
    axes.set_ylim(-15, 60)
    axes.set_xticks([0, 50, 100])
    axes.set_yticks([0, 25, 50])
    axes.set_xlabel("share of the test time, per cent")
    axes.set_ylabel("sum of the rank ICs")
    axes.set_title("does it rank the stocks? cumulative rank IC, 95 %", loc="left", fontsize=11)
    return "rank IC: " + ", ".join(words)


@cache
def _tested(name: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Daily gain and daily rank IC of a shipped model, and the mean absolute return of its test days."""
    tested = models()[name]
    assert isinstance(tested, Tested)
    return tested.gain.numpy(), tested.ic.numpy(), _mean_size(name.split()[0])


@cache
def _constant_gain() -> float:
    """The same gain of one constant on the real prices, the median of the training months: how much of it is drift."""
    found = SHIPPED.tasks()[1]["real"]
    returns = found.panel.returns[found.judged(SHIPPED.real.horizon)]
    return 100 * (1 - mae_ratio(found.panel.returns[found.train].median(), returns))


@cache
def _mean_size(task: str) -> float:
    found = SHIPPED.tasks()[1][task]
    return float(found.panel.returns[found.judged(SHIPPED.recipe.horizon)].abs().mean())
