"""Two explorers: which tasks the others predict, and what is left of the ranking without them; three ways to make one order of many scores."""

from functools import cache
from typing import cast

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mtlearn.explore.canvas import Words
from mtlearn.explore.explorer import Explorer, PointerEvent, choice, menu, slider
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, VERMILION
from mtlearn.lab.checkpoints import load
from mtlearn.retrieval.mmteb.experiment import SHOWN, ShownScores
from mtlearn.retrieval.mmteb.method import Selection, borda, mean_scores, places, random_subsets, select_tasks, spearman

RULES = {"stay one of each category": "kind", "stay one of each category and language": "language", "nothing must stay": "none"}


@cache
def shown() -> tuple[Tensor, tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Scores (m, n) of one seed, and the names of models, tasks and categories."""
    found = cast(ShownScores, load(SHOWN))
    return found.get_buffer("scores").double(), found.names("models"), found.names("tasks"), found.names("kinds")


@cache
def correlations() -> np.ndarray:
    """Spearman correlation of each two tasks over the models, (n, n)."""
    scores = shown()[0]
    return np.array([[float(value) for value in spearman(scores, scores[:, [i]].expand_as(scores))] for i in range(scores.shape[1])])


@cache
def path(rule: str) -> Selection:
    """Every removal down to a Spearman correlation of 0.5, whatever its error."""
    scores, _, names, kinds = shown()
    groups: list[set[str]] | None = [{kind} for kind in kinds]
    if rule == "language":
        groups = [{f"{kind} {name.partition(':')[0] if kind == 'BitextMining' else ''}"} for kind, name in zip(kinds, names, strict=True)]
    elif rule == "none":
        groups = None
    return select_tasks(scores, groups, threshold=0.5, most_error=1.0)


@cache
def band(size: int) -> tuple[float, float]:
    """Spearman correlation with the full order of random subsets of ``size`` tasks: 5 % and 95 % of them lie below."""
    scores = shown()[0]
    found = random_subsets(scores, size, scores.mean(1), draws=300, generator=torch.Generator().manual_seed(size))
    return float(found.quantile(0.05)), float(found.quantile(0.95))


def explorer() -> Explorer:
    """Drop the tasks that the others predict, or click those that you would drop: does the order of models stay?"""
    scores, _, names, kinds = shown()
    count, full = len(names), shown()[0].mean(1)
    clicked: set[int] = set()  # tasks whose state a click has turned round
    order = list(range(count))

    def draw(figure: Figure, dropped: int, rule: str) -> str:
        figure.set_layout_engine("none")
        found = path(RULES[rule])
        gone = {removal.task for removal in found.removed[:dropped]} ^ clicked
        kept = [i for i in order if i not in gone] or [order[0]]
        grid = figure.add_axes((0.14, 0.04, 0.47, 0.84))
        table = correlations().copy()
        lost = [i for i in order if i not in kept]
        table[lost, :] = np.nan
        table[:, lost] = np.nan
        image = grid.imshow(table, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        grid.set_facecolor(LIGHT)
        for start, _, _ in _spans(kinds)[1:]:
            grid.axhline(start - 0.5, color="white", linewidth=1)
            grid.axvline(start - 0.5, color="white", linewidth=1)
        grid.set_xticks([])
        grid.set_yticks([start + (end - start) / 2 - 0.5 for start, end, _ in _spans(kinds)], [_short(kind) for _, _, kind in _spans(kinds)])
        grid.tick_params(length=0, labelsize=9)
        grid.set_title("correlation of tasks over models (click a row: drop or take back)", loc="left", fontsize=11.5)
        bar = figure.colorbar(image, cax=figure.add_axes((0.62, 0.04, 0.012, 0.3)))
        bar.set_label("Spearman", fontsize=10)
        right = figure.add_axes((0.735, 0.52, 0.245, 0.36))
        reduced = scores[:, kept].mean(1)
        value = float(spearman(reduced, full))
        low, high = band(len(kept))
        colour = GREEN if value >= low else VERMILION
        right.plot([0.1, 0.75], [0.1, 0.75], color=LIGHT, linewidth=1.5, zorder=0)
        right.scatter(full.numpy(), reduced.numpy(), color=colour, s=26)
        right.set_xlim(0.12, 0.72)
        right.set_ylim(0.12, 0.78)
        right.set_xlabel(f"mean of all {count} tasks")
        right.set_ylabel(f"mean of {len(kept)} tasks")
        right.set_title("each dot a model", loc="left", fontsize=11.5)
        below = figure.add_axes((0.735, 0.23, 0.245, 0.11))
        below.add_patch(Rectangle((low, 0.2), high - low, 0.6, color=GREY, alpha=0.45, linewidth=0))
        below.plot([value, value], [0, 1], color=colour, linewidth=3)
        below.set_xlim(0.78, 1.005)
        below.set_ylim(0, 1)
        below.set_yticks([])
        below.set_xlabel("Spearman with all tasks")
        below.set_title("grey: nine in ten random choices", loc="left", fontsize=10.5)
        last = found.removed[dropped - 1] if dropped else None
        says = f"dropped last, predicted with {last.spearman:.3f}:\n{names[last.task]}" if last else "nothing is dropped by the rule"
        figure.text(0.70, 0.03, says, fontsize=10)
        return (
            f"{len(kept)} of {count} tasks are left; Spearman {value:.3f}, nine in ten random choices of as many: {low:.3f} to {high:.3f}; "
            f"{'dropped last: ' + names[last.task] if last else 'none dropped by the rule'}; clicked: {len(clicked)}"
        )

    def on_pointer(event: PointerEvent) -> None:
        if event.kind == "press" and event.axes == 0:
            clicked.symmetric_difference_update({int(np.clip(round(event.y), 0, count - 1))})
        elif step := {"ArrowLeft": -1, "ArrowRight": 1}.get(event.key, 0) if event.kind == "key" else 0:
            shown_explorer.set(dropped=shown_explorer.controls["dropped"].value + step)

    most = min(len(path(rule).removed) for rule in RULES.values())
    shown_explorer = Explorer(
        draw,
        {"dropped": slider("tasks dropped, best predicted first", 3 * most // 4, 0, most), "rule": menu("there must", list(RULES))},
        title="Which tasks can go?",
        figsize=(10.0, 5.2),
        seed=SHOWN.settings.seed,
        on_pointer=on_pointer,
        on_reset=clicked.clear,
        presets={
            "all tasks": {"dropped": 0, "rule": "stay one of each category"},
            "as many as can go": {"dropped": most, "rule": "stay one of each category"},
            "languages must stay": {"dropped": most, "rule": "stay one of each category and language"},
            "nothing must stay": {"dropped": most, "rule": "nothing must stay"},
        },
    )
    return shown_explorer


def _spans(kinds: tuple[str, ...]) -> list[tuple[int, int, str]]:
    """First and one past the last task of each category, in order."""
    found: list[tuple[int, int, str]] = []
    for kind in dict.fromkeys(kinds):
        where = [i for i, other in enumerate(kinds) if other == kind]
        found.append((where[0], where[-1] + 1, kind))
    return found


def _short(kind: str) -> str:
    """A category's name that fits beside a narrow band."""
    shorter = {
        "MultilabelClassification": "Multilabel class.", "InstructionReranking": "Instruction rer.", "PairClassification": "Pair class.",
        "Summarization": "Summaries", "BitextMining": "Bitext mining",
    }  # fmt: skip
    return shorter.get(kind, kind)


# ------------------------------------------------------------------------------------------------------------------------- one order of many

WAYS = ("mean over tasks", "mean over categories", "Borda")
SHOWN_MODELS = 10


def podium() -> Explorer:
    """Three ways to one order, and what copies of one task do to each of them."""
    scores, models, names, kinds = shown()
    plain = {way: places(_values(way, scores, kinds)) for way in WAYS}

    def draw(figure: Figure, way: str, copied: str, copies: int) -> str:
        figure.set_layout_engine("none")
        column = names.index(copied)
        table = torch.cat([scores, scores[:, [column]].expand(-1, copies)], 1)
        of_kind = (*kinds, *(kinds[column],) * copies)
        values = _values(way, table, of_kind)
        place, before = places(values), plain[way]
        best = torch.argsort(values, descending=True, stable=True)[:SHOWN_MODELS].tolist()
        axes = figure.add_axes((0.27, 0.13, 0.70, 0.77))
        moved = [int(before[i] - place[i]) for i in best]
        colours = [GREEN if step > 0 else VERMILION if step < 0 else BLUE for step in moved]
        axes.barh(range(len(best)), values[best].numpy(), color=colours)
        axes.set_yticks(range(len(best)), [models[i] for i in best])
        axes.invert_yaxis()
        axes.set_xlim(0, len(models) if way == "Borda" else 0.8)
        axes.set_xlabel("models beaten a task" if way == "Borda" else f"score, {way}")
        words = [
            f"{float(values[i]):{'.1f' if way == 'Borda' else '.3f'}}" + (f"   {step:+d}" if step else "")
            for i, step in zip(best, moved, strict=True)
        ]
        shift = 0.06 * axes.get_xlim()[1]
        axes.add_artist(Words([(float(values[i]) + shift, row) for row, i in enumerate(best)], words, [BLACK] * len(best), size=10))
        axes.set_title(f"{way}: {copies} copies of “{copied}”; number: places won or lost", loc="left", fontsize=11)
        changed = int((before != place).sum())
        podium_of = ", ".join(models[i] for i in best[:3])
        return f"{way}: the first three are {podium_of}; {changed} models have another place than without copies"

    return Explorer(
        draw,
        {
            "way": choice("one order by", WAYS),
            "copied": menu("copied task", list(names), names[kinds.index("InstructionReranking")]),
            "copies": slider("copies", 0, 0, 60),
        },
        title="Who wins, and who wins when one task is there sixty times?",
        figsize=(10.0, 4.6),
        seed=SHOWN.settings.seed,
        presets={
            "sixty copies, mean": {"copies": 60, "way": WAYS[0]},
            "sixty copies, categories": {"copies": 60, "way": WAYS[1]},
            "sixty copies, Borda": {"copies": 60, "way": WAYS[2]},
        },
    )


def _values(way: str, table: Tensor, kinds: tuple[str, ...]) -> Tensor:
    if way == "Borda":
        return borda(table) / table.shape[1]
    return mean_scores(table, kinds)[WAYS.index(way)]
