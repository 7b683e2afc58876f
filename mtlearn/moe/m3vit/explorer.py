"""Touch M3ViT: paint on the digits, pick a task, and see which experts each token visits, what that costs, and how an accelerator gets through it."""

from copy import deepcopy
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from mtlearn.datasets.digits import SIZE, digit_patches, patches
from mtlearn.explore.canvas import Words
from mtlearn.explore.explorer import Explorer, PointerEvent, choice, slider
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, SKY, VERMILION, YELLOW
from mtlearn.lab.checkpoints import load
from mtlearn.lab.seeds import stream
from mtlearn.layers.cost import count_parameters
from mtlearn.layers.experts import Routes, load_by_group, usage_by_group
from mtlearn.moe.m3vit.experiment import ARMS, CHECKPOINTS, COUNT, DENSE, PATCH, SHIPPED, SHIPPED_ARMS, build, scores
from mtlearn.moe.m3vit.method import M3ViT, MoELayer, path_flops, pathway
from mtlearn.moe.m3vit.reordering import Order, Trace, schedule, simulate

EXPERT_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, BLACK)
SIDE = 2 * SIZE  # pixels of the picture: two digits by two
TASKS = SHIPPED.recipe.num_tasks
EXPERTS = SHIPPED.recipe.num_experts
JUDGED = 300  # test inputs on which scores and loads are measured
LOAD_TIME = 4.0  # of an expert's weights, in visits


@cache
def models() -> nn.ModuleDict:
    """The shipped models by kind of gate."""
    found = load(CHECKPOINTS[0])
    assert isinstance(found, nn.ModuleDict)
    return found


@cache
def test_inputs() -> tuple[Tensor, Tensor]:
    """Test inputs (n, 4, 16) and the answers (T, n)."""
    _, test, teachers = SHIPPED.data()
    inputs = digit_patches(test, JUDGED, count=COUNT, size=PATCH, generator=stream(SHIPPED.seed, "explorer"))
    return inputs, teachers(inputs)


@lru_cache(maxsize=64)
def changed(kind: str, k: int, temperature: float, noise: float) -> M3ViT:
    """A shipped model with another k in its MoE layer; its logits are divided by the temperature and get one fixed draw of noise."""
    model = models()[kind]
    assert isinstance(model, M3ViT)
    model = deepcopy(model)
    for block in model.blocks:
        if isinstance(block.feed, MoELayer):
            block.feed.k = k
            with torch.no_grad():
                block.feed.gate.router.weight.div_(temperature)  # logits are linear in it
            block.feed.gate.register_forward_hook(
                lambda _, inputs, logits: logits + noise * torch.randn(logits.shape, generator=stream(SHIPPED.seed, "noise"))
            )
    return model


@dataclass(frozen=True)
class Judged:
    """What a changed model does on the test inputs.

    Attributes:
        usage: (T, E) share of each task's visits.
        scores: (T,) R2.
        visits: (T,) mean number of visits an input.
    """

    usage: Tensor
    scores: Tensor
    visits: Tensor


@lru_cache(maxsize=64)
@torch.no_grad()
def judged(kind: str, k: int, temperature: float, noise: float, prune: float) -> Judged:
    """Run all tasks over the test inputs."""
    model, (inputs, answers) = changed(kind, k, temperature, noise), test_inputs()
    visited = model.encode(inputs, torch.arange(TASKS), prune=prune).visits[-1]
    visits = load_by_group(visited.routes, visited.task, TASKS).sum(1) / len(inputs)
    return Judged(usage_by_group(visited.routes, visited.task, TASKS), scores(model, inputs, answers, prune=prune), visits)


@lru_cache(maxsize=512)
def path_size(kind: str, k: int, temperature: float, noise: float, prune: float, task: int) -> int:
    """Parameters of what one task needs on the test inputs."""
    return count_parameters(pathway(changed(kind, k, temperature, noise), str(task), test_inputs()[0], prune=prune))


@cache
def dense_cost() -> tuple[int, int]:
    """FLOPs an input, and parameters, of the dense model of one task."""
    model = build(SHIPPED.recipe, ARMS[DENSE], ("0",), SHIPPED.seed)
    return path_flops(model, COUNT), count_parameters(model)


def digit_tokens(picture: Tensor) -> Tensor:
    """The picture (16, 16) as four inputs, one a digit: (4, 4, 16)."""
    return patches(patches(picture, SIZE).view(4, SIZE, SIZE), PATCH)


def pictures(number: int) -> Tensor:
    """Four test digits as one picture (16, 16)."""
    _, test, _ = SHIPPED.data()
    four = test.images[4 * number : 4 * number + 4]
    return torch.cat([torch.cat([four[0], four[1]], 1), torch.cat([four[2], four[3]], 1)], 0)


def explorer(*, digits: int = 12) -> Explorer:
    """Four digits as 16 tokens: their experts, the loads, the schedule, the cost.

    Drag on the digits to paint, with shift to rub out; by keyboard the arrows move the brush, the space bar paints and Delete rubs out.
    """
    inked: dict[int, Tensor] = {}  # the digits' number to the picture as it was painted
    brush: list[tuple[int, int]] = []  # row and column, once it was used

    def picture(number: int) -> Tensor:
        if number not in inked:
            inked.clear()
            inked[number] = pictures(number - 1)
        return inked[number]

    def draw(figure: Figure, kind: str, task: int, k: int, temperature: float, noise: float, prune: float, digits: int, done: int) -> str:
        figure.set_layout_engine("none")
        ink = picture(digits)
        model = changed(kind, k, temperature, noise)
        with torch.no_grad():
            visited = model.encode(digit_tokens(ink), torch.tensor([task - 1]), prune=prune).visits[-1]
        found = judged(kind, k, temperature, noise, prune)
        _draw_tokens(figure.add_axes((0.03, 0.42, 0.325, 0.52)), ink, _experts_of_tokens(visited.routes), brush)
        _draw_loads(figure.add_axes((0.45, 0.52, 0.53, 0.42)), found, task - 1)
        loads = _draw_schedules(figure.add_axes((0.125, 0.09, 0.47, 0.20)), visited.routes, done)
        flops, parameters = dense_cost()
        costs = _draw_costs(
            figure.add_axes((0.82, 0.09, 0.15, 0.24)),
            _flops(model, float(found.visits[task - 1])) / flops,
            path_size(kind, k, temperature, noise, prune, task - 1) / parameters,
            float(found.scores[task - 1]),
        )
        unused = (found.usage[task - 1] == 0).nonzero()[:, 0].tolist()
        chosen = " ".join(",".join(str(e + 1) for e in row) or "none" for row in _experts_of_tokens(visited.routes))
        return (
            f"{kind} gate, task {task}, k = {k}: the experts of the 16 tokens are {chosen}; over the test inputs "
            f"{'every expert is used' if not unused else 'experts ' + ', '.join(str(e + 1) for e in unused) + ' are never used'}; {loads}; {costs}"
        )

    controls = {
        "kind": choice("gate", list(SHIPPED_ARMS)),
        "task": slider("task", 1, 1, TASKS),
        "k": slider("experts a token, k", SHIPPED.recipe.k, 1, EXPERTS),
        "temperature": slider("temperature", 1.0, 0.25, 4.0, 0.25),
        "noise": slider("noise on the logits", 0.0, 0.0, 3.0, 0.25),
        "prune": slider("skip gates below", 0.0, 0.0, 0.6, 0.05),
        "digits": slider("digits", digits, 1, 140),
        "done": slider("visits done, per cent", 100, 0, 100, 5),
    }

    def on_pointer(event: PointerEvent) -> None:
        step = {"ArrowLeft": (0, -1), "ArrowRight": (0, 1), "ArrowUp": (-1, 0), "ArrowDown": (1, 0)}
        paint = event.key not in ("Shift", "Delete", "Backspace")
        if event.kind == "key":
            row, column = brush[0] if brush else (SIDE // 2, SIDE // 2)
            if event.key in step:
                across = step[event.key]
                brush[:] = [(min(max(row + across[0], 0), SIDE - 1), min(max(column + across[1], 0), SIDE - 1))]
                return
            if event.key not in (" ", "Enter", "Delete", "Backspace"):
                return
        elif event.axes == 0 and event.kind in ("press", "drag"):
            row, column = int(event.y), int(event.x)
        else:
            return
        if 0 <= row < SIDE and 0 <= column < SIDE:
            brush[:] = [(row, column)]
            picture(controls["digits"].value)[row, column] = float(paint)

    def forget() -> None:
        inked.clear()
        brush.clear()

    start = {"kind": "multi", "task": 1, "k": SHIPPED.recipe.k, "temperature": 1.0, "noise": 0.0, "prune": 0.0, "digits": digits, "done": 100}
    return Explorer(
        draw,
        controls,
        title="Which experts does a token visit? Paint on the digits, change the task, and play the schedule.",
        figsize=(10.0, 6.2),
        seed=SHIPPED.seed,
        on_pointer=on_pointer,
        on_reset=forget,
        presets={
            "another task, other experts": {**start, "task": 4},
            "a gate that does not know the task": {**start, "kind": "shared", "task": 4},
            "no balance: tasks part": {**start, "kind": "multi, no balance", "task": 4},
            "hot: no choice left": {**start, "temperature": 4.0, "k": EXPERTS},
            "noise": {**start, "noise": 3.0},
            "prune: unused experts go": {**start, "kind": "multi, no balance", "task": 4, "prune": 0.4},
            "half way": {**start, "done": 50},
        },
    )


def _flops(model: M3ViT, visits: float) -> float:
    """FLOPs an input when its tokens make so many visits."""
    layer = model.blocks[-1].feed
    assert isinstance(layer, MoELayer)
    return path_flops(model, COUNT) - layer.experts.flops(COUNT * layer.k) + layer.experts.flops(1) * visits


def _experts_of_tokens(routes: Routes) -> list[list[int]]:
    """The experts that each token visits, best first."""
    found: list[list[int]] = [[] for _ in range(routes.tokens)]
    for token, expert in zip(routes.token.tolist(), routes.expert.tolist(), strict=True):
        found[token].append(expert)
    return found


def _draw_tokens(axes: Axes, ink: Tensor, chosen: list[list[int]], brush: list[tuple[int, int]]) -> None:
    """The picture, each token framed in the colour of its first expert, with the numbers of its experts."""
    axes.imshow(ink.numpy(), cmap="Greys", vmin=0, vmax=2.6, extent=(0, SIDE, SIDE, 0), interpolation="nearest")
    places, words = [], []
    for token, experts in enumerate(chosen):  # token = 4 digit + patch
        digit, patch = divmod(token, 4)
        top = SIZE * (digit // 2) + PATCH * (patch // 2)
        left = SIZE * (digit % 2) + PATCH * (patch % 2)
        colour = EXPERT_COLOURS[experts[0]] if experts else LIGHT
        axes.add_patch(Rectangle((left + 0.14, top + 0.14), PATCH - 0.28, PATCH - 0.28, fill=False, edgecolor=colour, linewidth=4))
        places.append((left + PATCH / 2, top + PATCH - 0.75))
        words.append(" ".join(str(e + 1) for e in experts[:3]) + (" …" if len(experts) > 3 else ""))
    for row, column in brush:
        axes.plot(column + 0.5, row + 0.5, "s", markersize=13, markerfacecolor="none", markeredgecolor=VERMILION, markeredgewidth=2)
    axes.add_artist(Words(places, words, [BLACK] * len(words), size=10))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlim(0, SIDE)
    axes.set_ylim(SIDE, 0)
    axes.set_title("16 tokens, framed by their first expert", loc="left", fontsize=11)
    axes.set_xlabel("numbers: the experts visited, best first")


def _draw_loads(axes: Axes, found: Judged, task: int) -> None:
    """Share of the task's visits of each expert as bars, of the other tasks as dots."""
    share = 100 * found.usage[task].numpy()
    x = np.arange(1, EXPERTS + 1)
    for number in range(EXPERTS):
        colour = EXPERT_COLOURS[number] if share[number] else LIGHT
        axes.bar(number + 1, share[number], width=0.72, color=colour)
        if not share[number]:
            axes.text(number + 1, 1.5, "unused", ha="center", rotation=90, color=GREY, fontsize=9)
    others = [t for t in range(TASKS) if t != task]
    axes.plot(np.repeat(x, len(others)), 100 * found.usage[others].T.flatten().numpy(), "o", color=GREY, markersize=3.5, alpha=0.7)
    even = 100 / EXPERTS
    axes.axhline(even, color=GREY, linewidth=1, linestyle=":")
    axes.text(EXPERTS + 0.5, even + 0.6, "even", color=GREY, fontsize=9)
    axes.set_xlim(0.4, EXPERTS + 1.1)
    axes.set_ylim(0, max(40.0, 5 * np.ceil(float(100 * found.usage.max()) / 5) + 3))
    axes.set_xticks(x)
    axes.set_xlabel("expert")
    axes.set_ylabel("share of the visits, per cent")
    axes.set_title(f"load of each expert: task {task + 1} (bars), the other tasks (dots)", loc="left", fontsize=11)


def _draw_schedules(axes: Axes, routes: Routes, done: int) -> str:
    """Visits as coloured strokes on a time axis, waiting for weights in grey, for both orders."""
    traces: dict[str, tuple[Trace, Tensor]] = {}
    orders: tuple[tuple[str, Order], ...] = (("token\nby token", "token"), ("expert\nby expert", "expert"))
    for name, order in orders:
        plan = schedule(routes, order)
        traces[name] = simulate(plan, load_time=LOAD_TIME), plan.expert
    end = max((float(trace.finish[-1]) for trace, _ in traces.values() if len(trace.finish)), default=1.0)
    words = []
    for row, (name, (trace, expert)) in enumerate(traces.items()):
        visits = round(done / 100 * len(expert))
        if visits:
            finish = trace.finish[:visits].numpy()
            strokes = np.stack([np.stack([finish - 1, finish], 1), np.full((visits, 2), float(row))], -1)
            until = float(finish[-1])
            axes.add_collection(LineCollection([[(0.0, row), (until, row)]], colors=[LIGHT], linewidths=15, capstyle="butt"))
            axes.add_collection(
                LineCollection(list(strokes), colors=[EXPERT_COLOURS[e] for e in expert[:visits].tolist()], linewidths=15, capstyle="butt")
            )
            resident = " and ".join(str(e + 1) for e in trace.resident[visits - 1].tolist() if e >= 0)
            loads = int(trace.load[:visits].sum())
            text = f"{loads} load{'' if loads == 1 else 's'}, on chip: {resident}"
        else:
            text = "0 loads, nothing on chip"
        axes.text(0, row - 0.33, text, fontsize=10, va="bottom")
        words.append(f"{' '.join(name.split())}: {text}")
    axes.set_xlim(0, max(end, 1.0))
    axes.set_ylim(1.45, -0.85)
    axes.set_yticks([0, 1], list(traces))
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"time, in visits (a load takes {LOAD_TIME:.0f}; grey: waiting)")
    axes.set_title("the same visits in two orders, with room for two experts", loc="left", fontsize=11, y=1.04)
    return "; ".join(words)


def _draw_costs(axes: Axes, flops: float, parameters: float, score: float) -> str:
    """FLOPs and parameters of the path over those of the dense model, and the task's score."""
    rows = (
        ("FLOPs over dense", flops, f"{flops:.2f}"),
        ("parameters over dense", parameters, f"{parameters:.2f}"),
        ("R² of the task", max(score, 0.0), f"{score:.2f}".replace("-", "−")),
    )
    for row, (_, value, text) in enumerate(rows):
        axes.barh(row, value, height=0.55, color=BLUE if row < 2 else GREEN)
        axes.text(value + 0.06, row, text, va="center", fontsize=10)
    axes.axvline(1, color=GREY, linewidth=1, linestyle=":")
    axes.set_xlim(0, max(2.4, 1.35 * max(value for _, value, _ in rows)))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set_xticks([0, 1, 2])
    axes.tick_params(axis="y", length=0)
    axes.set_title("one task alone", loc="left", fontsize=11)
    return ", ".join(f"{name} {text}" for name, _, text in rows)
