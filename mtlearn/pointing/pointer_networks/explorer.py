"""Touch pointer networks: put points on a canvas and watch the hull or the tour being pointed at, step by step."""

from functools import cache

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mtlearn.datasets import planar
from mtlearn.explore import Explorer, PointerEvent, choice, slider
from mtlearn.explore.style import BLACK, BLUE, GREY, LIGHT, VERMILION
from mtlearn.lab.seeds import stream
from mtlearn.pointing.pointer_networks.baselines import FixedDictionary
from mtlearn.pointing.pointer_networks.experiment import DICTIONARY, HULL, TOUR, shipped
from mtlearn.pointing.pointer_networks.method import START, STOP, PointerNetwork

HULL_POINTED, HULL_NAMED, TOUR_POINTED = "hull: pointer network", "hull: fixed dictionary", "tour: pointer network"
SHIPPED = {HULL_POINTED: HULL, HULL_NAMED: DICTIONARY, TOUR_POINTED: TOUR}
FEWEST, MOST = 3, 30
LARGEST_OPTIMUM = 12  # beyond it the exact tour takes longer than a redraw may
REACH = 0.04  # how near the mouse must be to a point to take it, in units of the square


@cache
def _shipped(answerer: str) -> PointerNetwork:
    return shipped(SHIPPED[answerer])


@torch.no_grad()
def trace(network: PointerNetwork, points: torch.Tensor, *, tour: bool) -> tuple[list[int], torch.Tensor]:
    """Greedy answer to one instance (n, 2), *stop* included, and the distribution (steps, n + 1) from which each pointer was taken."""
    state, token = network.initial_state(points[None]), torch.tensor([START])
    answer: list[int] = []
    rows = []
    while len(answer) <= len(points) and (not answer or answer[-1] != STOP):
        log_probs, state = network.step(token, state, constraint="tour" if tour else "none")
        token = log_probs.argmax(-1)
        answer.append(int(token))
        rows.append(log_probs[0].exp())
    return answer, torch.stack(rows)


class Canvas:
    """The points a reader has put on the square, and how they are drawn."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.selected: int | None = None
        self.points = np.zeros((0, 2), dtype=np.float32)
        self._traced: tuple[object, tuple[list[int], torch.Tensor]] | None = None

    def trace(self, answerer: str) -> tuple[list[int], torch.Tensor]:
        """The answer to the points as they are, worked out again only when they or the network have changed."""
        key = (answerer, self.points.tobytes())
        if self._traced is None or self._traced[0] != key:
            self._traced = key, trace(_shipped(answerer), torch.from_numpy(self.points), tour=answerer == TOUR_POINTED)
        return self._traced[1]

    def resize(self, n: int) -> None:
        """Add points from the seed's own stream, or drop the last ones, until there are ``n``."""
        fresh = planar.sample_points(1, MOST, generator=stream(self.seed, "canvas"))[0].numpy() * 0.94 + 0.03
        self.points = np.concatenate([self.points, fresh[len(self.points) : n]])[:n]
        if self.selected is not None and self.selected >= n:
            self.selected = None

    def handle(self, event: PointerEvent) -> int:
        """Add, take, move or remove a point; returns how many there are now."""
        place = np.clip([event.x, event.y], 0.0, 1.0).astype(np.float32)
        if event.kind == "key":
            self._key(event.key)
        elif event.axes == 0 and event.kind == "press":
            distance = np.linalg.norm(self.points - place, axis=1)
            near = int(distance.argmin())
            if distance[near] <= REACH:
                self.selected = near
                if event.key == "Shift":
                    self._remove()
            elif len(self.points) < MOST and event.key != "Shift":
                self.points = np.concatenate([self.points, place[None]])
                self.selected = len(self.points) - 1
        elif event.axes == 0 and event.kind == "drag" and self.selected is not None:
            self.points[self.selected] = place
        return len(self.points)

    def _key(self, key: str) -> None:
        moves = {"ArrowLeft": (-0.02, 0), "ArrowRight": (0.02, 0), "ArrowUp": (0, 0.02), "ArrowDown": (0, -0.02)}
        if key == "n":
            self.selected = 0 if self.selected is None else (self.selected + 1) % len(self.points)
        elif key in moves:
            self.selected = self.selected or 0
            self.points[self.selected] = np.clip(self.points[self.selected] + np.array(moves[key], dtype=np.float32), 0, 1)
        elif key in ("Delete", "Backspace") and self.selected is not None:
            self._remove()

    def _remove(self) -> None:
        if len(self.points) > FEWEST and self.selected is not None:
            self.points = np.delete(self.points, self.selected, axis=0)
            self.selected = None

    def draw(self, figure: Figure, answerer: str, n: int, step: int) -> str:
        """The square with the answer so far on the left, every step's distribution over the points on the right."""
        if n != len(self.points):
            self.resize(n)
        square, table = figure.subplots(1, 2, width_ratios=[1, 1.15])
        square.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xticks=[0, 1], yticks=[0, 1], xlabel="x", ylabel="y")
        points = torch.from_numpy(self.points)
        tour = answerer == TOUR_POINTED
        try:
            planar.check_general_position(points[None])
        except ValueError as error:
            square.scatter(self.points[:, 0], self.points[:, 1], color=GREY, s=60)
            square.set_title(str(error).replace("; ", "\n").replace(": ", ":\n"), fontsize=10, color=VERMILION)
            table.set_axis_off()
            return str(error)
        network = _shipped(answerer)
        answer, rows = self.trace(answerer)
        step = min(step, len(answer))
        reach = network.dictionary if isinstance(network, FixedDictionary) else n
        words = self._verdict(points, answer, tour=tour)
        self._draw_square(square, points, answer[:step], rows[step - 1], reach=reach, tour=tour)
        square.set_title(words, fontsize=11)
        _draw_table(table, rows, answer, step, reach)
        return f"{answerer}, {n} points, step {step} of {len(answer)}: answer {' '.join(map(str, answer))}; {words}"

    def _verdict(self, points: torch.Tensor, answer: list[int], *, tour: bool) -> str:
        given = torch.tensor([answer])
        if tour:
            tours = given[:, : len(points)]
            length = planar.tour_length(points[None], tours).item()
            if len(points) > LARGEST_OPTIMUM:
                return f"tour of length {length:.2f}"
            best = planar.tour_length(points[None], planar.shortest_tour(points[None])).item()
            return f"length {length:.2f}, shortest {best:.2f}: {100 * (length / best - 1):.1f} % longer"
        truth = planar.convex_hull(points[None])
        if planar.same_answer(given, truth)[0]:
            return "the exact hull"
        if not planar.valid_polygons(points[None], given)[0]:
            return "not a polygon"
        return f"{100 * planar.area_ratio(points[None], given, truth).item():.1f} % of the true area"

    def _draw_square(self, axes: Axes, points: torch.Tensor, chosen: list[int], row: torch.Tensor, *, reach: int, tour: bool) -> None:
        place = self.points
        if not tour:
            corners = [index - 1 for index in planar.convex_hull(points[None])[0].tolist() if index > STOP]
            axes.fill(*place[corners].T, facecolor=LIGHT, alpha=0.5, edgecolor=GREY, linestyle=":", linewidth=1.2)
        path = [index - 1 for index in chosen if index > STOP]
        if chosen[-1] == STOP or len(path) == len(place):
            path = [*path, *path[:1]]
        axes.plot(*place[path].T, color=BLUE, linewidth=2, zorder=2)
        nameable = np.arange(1, len(place) + 1) <= reach
        glow = row[1:].numpy()
        axes.scatter(
            place[nameable, 0],
            place[nameable, 1],
            c=glow[nameable],
            s=90 + 350 * glow[nameable],
            vmin=0,
            vmax=1,
            edgecolor=BLACK,
            linewidth=0.8,
            zorder=3,
        )
        axes.scatter(place[~nameable, 0], place[~nameable, 1], color=BLACK, marker="X", s=110, zorder=3)
        rings = [(chosen[-1] - 1, VERMILION, "-", 620)] if chosen[-1] != STOP else []
        if self.selected is not None:
            rings.append((self.selected, BLUE, ":", 900))
        for index, colour, line, size in rings:
            x, y = place[index]
            axes.scatter(x, y, facecolor="none", edgecolor=colour, linestyle=line, linewidth=2, s=size, zorder=4)
        for index, (x, y) in enumerate(place, 1):
            lift = 7 + 10 * (float(glow[index - 1]) if index <= reach else 0.3)
            axes.annotate(str(index), (x, y), (0, lift), textcoords="offset points", ha="center", fontsize=9, zorder=5)


def _draw_table(axes: Axes, rows: torch.Tensor, answer: list[int], step: int, reach: int) -> None:
    steps, entries = rows.shape
    axes.imshow(rows.numpy(), vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    if reach < entries - 1:
        axes.add_patch(Rectangle((reach + 0.5, -0.5), entries - 1 - reach, steps, color=BLACK))
        axes.text((reach + entries - 0.5) / 2, (steps - 1) / 2, "no class\nfor these", color="white", ha="center", va="center", fontsize=10)
    axes.add_patch(Rectangle((-0.5, step - 1.5), entries, 1, fill=False, edgecolor=VERMILION, linewidth=2.2))
    every = 1 if entries <= 16 else 2 if entries <= 24 else 5
    ticks = [0, *range(every, entries, every)]
    axes.set_xticks(ticks, ["stop", *map(str, ticks[1:])], rotation=0)
    axes.set_yticks(range(steps), [f"{at + 1}" for at in range(steps)])
    if steps > 16:
        axes.set_yticks(range(0, steps, 5), [str(at + 1) for at in range(0, steps, 5)])
    axes.set(xlabel="points at: stop, or point number (dark: p = 0, yellow: p = 1)", ylabel="decoder step")
    axes.set_title(
        f"step {step}: " + ("stop" if answer[step - 1] == STOP else f"point {answer[step - 1]}") + f", p = {rows[step - 1, answer[step - 1]]:.2f}",
        fontsize=11,
    )


def explorer(seed: int = 0) -> Explorer:
    """The explorer: click to add a point, drag to move it, shift-click or Delete to remove it; arrow keys move the chosen one."""
    canvas = Canvas(seed)

    def on_pointer(event: PointerEvent) -> None:
        view.controls["n"].value = canvas.handle(event)

    def on_reset() -> None:
        canvas.points, canvas.selected = canvas.points[:0], None

    view = Explorer(
        canvas.draw,
        {
            "answerer": choice("answered by", tuple(SHIPPED)),
            "n": slider("points", 12, FEWEST, MOST),
            "step": slider("decoder step", 4, 1, MOST + 1),
        },
        title="Click to add a point, drag to move it, shift-click to remove it (keys: n chooses the next point, arrows move it, Delete removes it)",
        figsize=(9.6, 4.6),
        seed=seed,
        on_pointer=on_pointer,
        presets={
            "first pointer": {"answerer": HULL_POINTED, "step": 1},
            "whole hull": {"answerer": HULL_POINTED, "step": MOST + 1},
            "beyond training: 30 points": {"answerer": HULL_POINTED, "n": 30, "step": MOST + 1},
            "a dictionary of ten indices": {"answerer": HULL_NAMED, "n": 20, "step": MOST + 1},
            "a tour of ten": {"answerer": TOUR_POINTED, "n": 10, "step": MOST + 1},
        },
        on_reset=on_reset,
    )
    return view
