"""Touch the transfer: where a task lies among the bank's, what its neighbours make of the prior, and how fast a search gets there."""

from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from mtlearn.explore.explorer import Explorer, PointerEvent, choice, menu, slider, switch
from mtlearn.explore.style import BLACK, BLUE, GREY, ORANGE, VERMILION
from mtlearn.graphs.autotransfer.bank import shipped_bank
from mtlearn.graphs.autotransfer.method import SPACE, design_distribution, kendall
from mtlearn.graphs.autotransfer.search import ALGORITHMS, regret, search
from mtlearn.graphs.autotransfer.transfer import Recipe, Transfer, from_similarity, leave_one_out_embeddings, others
from mtlearn.lab.seeds import stream

SEED = 1
BUDGET = 30
REPLAYS = 50
MOST_NEIGHBOURS = 6
FLOOR = 0.01  # of a distance, as in the recipe
CONSTANT = ("roles", "gens", "bip", "tri")
NETWORKS = ("16", "160")  # random networks behind each number of a feature: one embedding seed, or the mean of the ten that ship


@dataclass(frozen=True)
class Map:
    """The tasks as one held-out task sees them.

    Attributes:
        tasks: of the bank.
        points: (tasks, 16) embeddings of the bank's tasks.
        new: (16,) of the held-out task.
        mean, plane: (16,) and (16, 2), from a place on the map back to an embedding.
        places: (tasks, 2) on the map.
        place: (2,) of the held-out task.
    """

    tasks: tuple[str, ...]
    points: Tensor
    new: Tensor
    mean: Tensor
    plane: Tensor
    places: Tensor
    place: Tensor

    def embedding(self, place: tuple[float, float]) -> Tensor:
        """The embedding of a place on the map, made as long as 1."""
        return functional.normalize(self.mean + self.plane @ torch.tensor(place), dim=0)


@cache
def maps(networks: str) -> dict[str, Map]:
    """The map of every held-out task: its own projection's embeddings in their two main directions, turned so that the maps lie alike."""
    bank = shipped_bank()
    seeds = bank.making.embedding_seeds if networks == NETWORKS[1] else (SEED,)
    features = torch.stack([bank.features(seed) for seed in seeds]).mean(0)
    embeddings = leave_one_out_embeddings(features, kendall(bank.validation, bank.tasks), Recipe(), seed=SEED)
    reference: Tensor | None = None
    found = {}
    for held, points in enumerate(embeddings):
        mean = points.mean(0)
        plane = torch.linalg.svd(points - mean, full_matrices=False).Vh[:2].T  # (16, 2)
        flat = (points - mean) @ plane
        by_task = torch.cat([flat[:held], flat[-1:], flat[held:-1]])  # in the order of the bank
        if reference is None:
            reference = by_task
        u, _, vh = torch.linalg.svd(by_task.T @ reference)  # the turn that brings this map nearest to the first one (Procrustes)
        turn = u @ vh
        names = tuple(name for place, name in enumerate(bank.tasks) if place != held)
        flat, plane = flat @ turn, plane @ turn
        found[bank.tasks[held]] = Map(names, points[:-1], points[-1], mean, plane, flat[:-1], flat[-1])
    return found


@cache
def average_prior(task: str) -> Tensor:
    """What the best designs of all other tasks say, without looking at similarity."""
    bank = shipped_bank()
    recipe = Recipe()
    rest = others(design_distribution(bank.validation, SPACE, best=recipe.best))[bank.tasks.index(task)]
    return (1 - recipe.smoothing) * rest.mean(0) + recipe.smoothing * SPACE.uniform


def transferred(task: str, networks: str, k: int, place: tuple[float, float] | None) -> Transfer:
    """The prior of a held-out task at its own embedding, or as if it lay at another place of the map."""
    here = maps(networks)[task]
    embedding = here.new if place is None else here.embedding(place)
    return from_similarity(shipped_bank().without(task), (here.points @ embedding).double(), Recipe(k=k, floor=FLOOR))


@lru_cache(maxsize=512)
def replays(task: str, algorithm: str, prior: tuple[float, ...] | None) -> Tensor:
    """Regret in points after each trial of ``REPLAYS`` searches on a task: (replays, budget)."""
    bank = shipped_bank()
    scores = bank.validation[bank.tasks.index(task)]
    chosen = None if prior is None else torch.tensor(prior, dtype=torch.float64)
    generator = stream(SEED, "explorer", task, algorithm)
    return regret(scores, search(scores, SPACE, ALGORITHMS[algorithm], prior=chosen, budget=BUDGET, replays=REPLAYS, generator=generator))


def explorer(*, task: str = "n_digits", rewire: bool = True) -> Explorer:
    """Pick a task that the bank has not seen, rewire its graph, drag it over the map, and race the searches.

    Args:
        task: the first one shown.
        rewire: whether its graph is rewired at first.
    """
    for networks in NETWORKS:  # a second now, so that no control waits for it
        maps(networks)
    dragged: dict[str, tuple[float, float]] = {}
    replay = {"number": 0}

    def held_out(task: str, rewire: bool) -> str:
        sibling = task.replace("n_", "r_")
        return sibling if rewire and sibling in shipped_bank().tasks else task

    def draw(figure: Figure, task: str, rewire: bool, networks: str, k: int, prior: bool, search: str, budget: int) -> str:
        name = held_out(task, rewire)
        found = transferred(name, networks, k, dragged.get(name))
        used = found.prior if prior else SPACE.uniform
        figure.set_layout_engine("none")  # fixed places: laying out forty words costs more than drawing them
        _draw_map(figure.add_axes((0.01, 0.03, 0.39, 0.89)), maps(networks)[name], name, found, dragged.get(name), task)
        _draw_prior(figure.add_axes((0.455, 0.645, 0.54, 0.27)), name, used, prior)
        says = _draw_race(figure.add_axes((0.455, 0.095, 0.445, 0.40)), name, search, found, prior, budget, replay["number"] % REPLAYS)
        without = " (the bank holds no rewired sibling of it)" if rewire and name == task else ""
        where = f" dragged to {dragged[name][0]:.2f}, {dragged[name][1]:.2f}" if name in dragged else ""
        likely = {dimension: max(options, key=lambda option: options[option]) for dimension, options in SPACE.by_dimension(used).items()}
        return (
            f"{name}{without}{where}: nearest {', '.join(found.tasks[:k])}; the prior is {'on' if prior else 'off'} and likes "
            f"{', '.join(f'{dimension} {option}' for dimension, option in likely.items())}; {says}"
        )

    names = [name for name in shipped_bank().tasks if not name.startswith("r_")]
    controls = {
        "task": menu("new task", names, task),
        "rewire": switch("rewire its graph", rewire),
        "networks": choice("random networks an anchor", NETWORKS, NETWORKS[1]),
        "k": slider("neighbours K", 3, 1, MOST_NEIGHBOURS),
        "prior": switch("prior on", True),
        "search": choice("search", list(ALGORITHMS)),
        "budget": slider("budget (trials)", 3, 1, BUDGET),
    }

    def on_pointer(event: PointerEvent) -> None:
        name = held_out(made.values["task"], made.values["rewire"])
        if event.kind == "key":
            step = {"ArrowRight": 1, "ArrowLeft": -1}.get(event.key, 0)
            controls["budget"].value += step
            if event.key == "Enter":
                replay["number"] += 1
            if event.key in ("Delete", "Backspace", "Escape"):
                dragged.pop(name, None)
        elif event.kind in ("press", "drag") and event.axes == 0:
            dragged[name] = (event.x, event.y)
        elif event.kind == "press" and event.axes == 2:
            replay["number"] += 1
            controls["budget"].value = min(max(round(event.x), 1), BUDGET)

    def on_reset() -> None:
        dragged.clear()
        replay["number"] = 0

    def state(task: str, rewire: bool = False, **changes: object) -> dict[str, object]:
        start = {"networks": NETWORKS[1], "k": 3, "prior": True, "search": "random", "budget": 3}
        return {"task": task, "rewire": rewire, **start, **changes}

    made = Explorer(
        draw,
        controls,
        title="Which tasks does a new one resemble, and what does that save?",
        figsize=(10.0, 6.0),
        seed=SEED,
        on_pointer=on_pointer,
        on_reset=on_reset,
        presets={
            "a useful graph": state("n_digits"),
            "the same graph rewired": state("n_digits", True),
            "... without the prior": state("n_digits", True, prior=False),
            "too few networks": state("n_digits", True, networks=NETWORKS[0]),
            "wrong neighbours": state("n_cancer", True),
            "TPE": state("roles", search="TPE", budget=10),
        },
    )
    return made


def _colour(task: str) -> str:
    return VERMILION if task.startswith("r_") else "#007A5A" if task in CONSTANT else BLUE


def _draw_map(axes: Axes, here: Map, name: str, found: Transfer, dragged: tuple[float, float] | None, task: str) -> None:
    """The bank's tasks as dots, the new one as a ring, lines to its neighbours as wide as they weigh."""
    place = dragged or (float(here.place[0]), float(here.place[1]))
    weight = 1 / (1 - found.similarity[: found.k]).clamp(min=FLOOR)
    share = (weight / weight.sum()).tolist()
    at = dict(zip(here.tasks, here.places.tolist(), strict=True))
    lines = [[place, at[other]] for other in found.tasks[: found.k]]
    axes.add_collection(LineCollection(lines, linewidths=[1 + 7 * part for part in share], colors=ORANGE, alpha=0.55, zorder=1))
    x, y = here.places.T.tolist()
    axes.scatter(x, y, s=46, c=[_colour(other) for other in here.tasks], zorder=2)
    if dragged is None and name != task:
        axes.annotate("", place, at[task], arrowprops={"arrowstyle": "->", "color": GREY, "linestyle": ":"}, zorder=1)
    axes.plot([place[0]], [place[1]], "o", markersize=17, markerfacecolor="none", markeredgecolor=BLACK, markeredgewidth=2.2, zorder=3)
    everything = torch.cat([here.places, here.place[None]])
    low, high = everything.min(0).values, everything.max(0).values
    middle, span = ((low + high) / 2).tolist(), (high - low).clamp(min=0.5).tolist()
    axes.set_xlim(middle[0] - 0.85 * span[0], middle[0] + 0.85 * span[0])  # room for the names
    axes.set_ylim(middle[1] - 0.8 * span[1], middle[1] + 0.68 * span[1])
    for other, (right, up), align in _labels([*at.items(), (name, place)], middle[0], (0.045 * span[0], 0.068 * span[1])):
        new = other == name
        ink = BLACK if new else _colour(other)
        axes.text(right, up, other, ha=align, va="center", fontsize=10 if new else 9, fontweight="bold" if new else "normal", color=ink)
    axes.set_axis_off()
    axes.text(0, 1.02, "map of tasks, the new one ringed (drag it)", transform=axes.transAxes, fontsize=11)
    for row, (note, colour) in enumerate((("one constant input", "#007A5A"), ("rewired: the graph is noise", VERMILION), ("the graph helps", BLUE))):
        axes.text(0.0, 0.045 * row, note, transform=axes.transAxes, fontsize=9, color=colour)


def _labels(points: list[tuple[str, tuple[float, float]]], middle: float, step: tuple[float, float]) -> list[tuple[str, tuple[float, float], str]]:
    """Places for the names: beside the dots, outwards, pushed apart where they would lie on one another."""
    placed: list[tuple[str, tuple[float, float], str]] = []
    for align, side in (("left", 1), ("right", -1)):
        chosen = sorted((p for p in points if (p[1][0] >= middle) == (side > 0)), key=lambda p: p[1][1])
        heights = [y for _, (_, y) in chosen]
        for _ in range(30):  # neighbours that are too near move apart, half the way each
            for one in range(len(heights) - 1):
                near = step[1] - (heights[one + 1] - heights[one])
                if near > 0:
                    heights[one], heights[one + 1] = heights[one] - near / 2, heights[one + 1] + near / 2
        # the new task, last of the points, has a ring around it
        out = [step[0] * side * (1.7 if name == points[-1][0] else 1.0) for name, _ in chosen]
        placed += [(name, (x + away, height), align) for (name, (x, _)), away, height in zip(chosen, out, heights, strict=True)]
    return placed


def _draw_prior(axes: Axes, name: str, prior: Tensor, on: bool) -> None:
    """Bars of the prior, dimension by dimension, with a tick where the task's own best designs are."""
    bank = shipped_bank()
    truth = design_distribution(bank.validation, SPACE)[bank.tasks.index(name)].tolist()
    x, place = [], 0.0
    for dimension, options in SPACE.dimensions:
        axes.text(place + (len(options) - 1) / 2, 1.04, dimension, ha="center", va="bottom", fontsize=10, color=GREY)
        for option in options:
            x.append(place)
            axes.text(place, -0.05, str(option), ha="center", va="top", fontsize=8)
            place += 1
        place += 0.8
    axes.vlines(x, 0, prior.tolist(), color=BLUE if on else GREY, linewidth=22, capstyle="butt", alpha=0.8)
    axes.hlines(truth, [at - 0.46 for at in x], [at + 0.46 for at in x], color=BLACK, linewidth=2.2)
    axes.set_xticks([])
    axes.set_xlim(-0.6, x[-1] + 0.6)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 1])
    axes.set_ylabel("probability", fontsize=10, labelpad=-4)
    what = "the prior from its neighbours" if on else "no prior: every option alike"
    axes.set_title(f"{what} (black: its own 16 best)", loc="left", fontsize=11, pad=20)


def _draw_race(axes: Axes, name: str, algorithm: str, found: Transfer, on: bool, budget: int, number: int) -> str:
    """Mean regret of the plain search, of the whole bank's prior and of the transferred one, and one replay; the three at the budget in words."""
    trials = list(range(1, BUDGET + 1))
    ways = (
        ("uniform", None, GREY),
        ("whole bank", tuple(average_prior(name).tolist()), ORANGE),
        ("transferred", tuple(found.prior.tolist()), BLUE),
    )
    ends, values, highest = [], {}, 1.0
    for label, prior, colour in ways:
        all_of = replays(name, algorithm, prior)
        curve = all_of.mean(0).tolist()
        axes.plot(trials, curve, color=colour, linewidth=2.4)
        ends.append((curve[-1], label, colour))
        highest = max(highest, 1.06 * curve[0])
        values[label] = curve[budget - 1]
        axes.plot([budget], [values[label]], "o", color=colour, markersize=6)
        if label == ("transferred" if on else "uniform"):
            axes.step(trials, all_of[number].tolist(), where="post", color=colour, linewidth=1.0, linestyle="--")
    last = -1.0
    for height, label, colour in sorted(ends):
        last = max(height, last + 0.085 * highest)
        ink = "#9C6B00" if colour == ORANGE else colour
        axes.annotate(label, (BUDGET, last), (5, 0), textcoords="offset points", va="center", fontsize=9, color=ink, annotation_clip=False)
    axes.axvline(budget, color=BLACK, linewidth=1.0, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlim(1, BUDGET)
    axes.set_ylim(-0.02 * highest, highest)
    axes.set_xticks([1, 3, 10, 30], ["1", "3", "10", "30"])
    axes.minorticks_off()
    axes.set_xlabel("trials (click: another replay, dashed)", fontsize=10)
    axes.set_ylabel("regret (points)", fontsize=10)
    axes.set_title(
        f"after {budget}: uniform {values['uniform']:.1f}, bank {values['whole bank']:.1f}, transferred {values['transferred']:.1f}",
        loc="left",
        fontsize=11,
    )
    listed = ", ".join(f"{label} {value:.1f}" for label, value in values.items())
    return f"{algorithm} search, points of regret after {budget} trials: {listed}; replay {number} shown"
