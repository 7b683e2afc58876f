"""Touch DSE: slide from labels to the teacher's scores and watch the student follow; then let both rank candidates."""

import time
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from mtlearn.explore.explorer import Explorer, menu, slider
from mtlearn.explore.style import BLACK, BLUE, GREY, LIGHT, ORANGE, SKY, VERMILION
from mtlearn.lab.checkpoints import load
from mtlearn.lab.seeds import seeded
from mtlearn.pairs.dse.experiment import CHECKPOINTS, Alphas, AlphaSettings
from mtlearn.pairs.dse.method import DSE, SentenceEmbedder
from mtlearn.pairs.dse.worlds import LEXICON, WORDS, WordBody, pretrained_words, word_teacher

SETTINGS: AlphaSettings = CHECKPOINTS[0].settings
COUNTS = (10, 100, 1_000, 10_000)
TIMED = 500  # candidates on which the race is timed


@cache
def alphas() -> Alphas:
    """The shipped scores."""
    model = load(CHECKPOINTS[0])
    assert isinstance(model, Alphas)
    return model


@cache
def costs() -> dict[str, float]:
    """Seconds on this machine: of the teacher a pair, of embedding a sentence, and of the cached head a pair; the best of five."""
    with seeded(0):
        vectors = pretrained_words(0, dim=32, noise=0.7)
        teacher = word_teacher(vectors, "binary").eval()
        student = DSE(SentenceEmbedder(WordBody(vectors), top=2, class_token=False), hidden=64).eval()
        tokens = torch.randint(1, LEXICON.size, (TIMED, WORDS))
        with torch.no_grad():
            index = student.index(tokens)
            query = student.embed(tokens[:1])
            return {
                "teacher": _best(lambda: teacher(tokens[:1].expand(TIMED, -1), tokens)) / TIMED,
                "embed": _best(lambda: student.embed(tokens)) / TIMED,
                "query": _best(lambda: student.embed(tokens[:1])),
                "head": _best(lambda: student.head.rank(query, index)) / TIMED,
            }


def _best(run: Callable[[], object]) -> float:
    found = []
    for _ in range(5):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return min(found)


def explorer() -> Explorer:
    """Left: each dot a pair, what the teacher says against what the student says. Right: who ranks the candidates first."""
    model = alphas()

    def draw(figure: Figure, alpha: float, flips: int, candidates: int) -> str:
        figure.set_layout_engine("none")
        j = min(range(len(SETTINGS.alphas)), key=lambda k: abs(SETTINGS.alphas[k] - alpha))
        i = min(range(len(SETTINGS.flips)), key=lambda k: abs(100 * SETTINGS.flips[k] - flips))
        follows = _draw_scores(figure.add_axes((0.08, 0.14, 0.42, 0.76)), model, i, j)
        _draw_accuracy(figure.add_axes((0.60, 0.66, 0.37, 0.24)), model, i, j)
        seconds = _draw_race(figure.add_axes((0.60, 0.14, 0.37, 0.31)), candidates)
        right, teacher = 100 * float(model.accuracy[i, j]), 100 * float(model.teacher_accuracy[i])
        return (
            f"α = {SETTINGS.alphas[j]:g}, {100 * SETTINGS.flips[i]:g} % of the labels wrong: the student has {right:.0f} % right, the teacher "
            f"{teacher:.0f} %, whom it follows with a rank correlation of {follows:.2f}; for {candidates:,} candidates the teacher needs "
            f"{1e3 * seconds[0]:.3g} ms, the student {1e3 * seconds[1]:.3g} ms"
        )

    controls = {
        "alpha": slider("weight of the teacher α", 1.0, 0.0, 1.0, 0.25),
        "flips": menu("wrong labels", [(f"{100 * share:g} %", round(100 * share)) for share in SETTINGS.flips], 15),
        "candidates": menu("candidates", [(f"{count:,}", count) for count in COUNTS], 1_000),
    }
    return Explorer(
        draw,
        controls,
        title="Whom does the student believe, the labels or the teacher? And who ranks faster?",
        figsize=(10.0, 4.9),
        seed=SETTINGS.seed,
        presets={
            "labels alone": {"alpha": 0.0, "flips": 15},
            "the teacher alone": {"alpha": 1.0, "flips": 15},
            "no wrong label: a teacher that is too sure": {"alpha": 1.0, "flips": 0},
            "a third of the labels wrong": {"alpha": 1.0, "flips": 30},
            "few candidates": {"candidates": 10},
            "many candidates": {"candidates": 10_000},
        },
    )


def _draw_scores(axes: Axes, model: Alphas, i: int, j: int) -> float:
    said, answer, label = model.teacher[i].numpy(), model.student[i, j].numpy(), model.label.numpy() > 0.5
    high = float(np.abs(said).max()) * 1.05
    axes.axhline(0, color=LIGHT, linewidth=1, zorder=0)
    axes.axvline(0, color=LIGHT, linewidth=1, zorder=0)
    axes.plot([-high, high], [-high, high], color=GREY, linewidth=1, linestyle="--", zorder=0)
    for chosen, colour, marker, name in ((label, BLUE, "o", "alike"), (~label, VERMILION, "^", "not alike")):
        axes.scatter(said[chosen], answer[chosen], s=22, color=colour, marker=marker, alpha=0.6, linewidths=0, label=f"gold: {name}")
    axes.set_xlim(-high, high)
    low = max(float(np.abs(answer).max()) * 1.05, 0.6 * high)
    axes.set_ylim(-low, low)
    axes.set_xlabel("teacher's logit: above 0 it says “alike”")
    axes.set_ylabel("student's logit")
    follows = float(spearmanr(said, answer).statistic)
    axes.set_title(f"rank correlation with the teacher {follows:.2f}", loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, 1.0), handletextpad=0.2)
    return follows


def _draw_accuracy(axes: Axes, model: Alphas, i: int, j: int) -> None:
    accuracy = 100 * model.accuracy[i].numpy()
    axes.plot(SETTINGS.alphas, accuracy, "o-", color=ORANGE)
    axes.plot(SETTINGS.alphas[j], accuracy[j], "o", markersize=13, markerfacecolor="none", markeredgecolor=BLACK, markeredgewidth=2)
    teacher = 100 * float(model.teacher_accuracy[i])
    axes.axhline(teacher, color=GREY, linewidth=1, linestyle=":")
    axes.text(0.0, teacher, "teacher", ha="left", va="bottom", color=GREY, fontsize=10)
    axes.set_xlim(-0.05, 1.05)
    axes.set_ylim(60, 101)
    axes.set_xticks(SETTINGS.alphas)
    axes.set_xlabel("weight of the teacher α")
    axes.set_ylabel("right, per cent")
    axes.set_title("clean test pairs", loc="left")


def _draw_race(axes: Axes, candidates: int) -> tuple[float, float]:
    """Bars of the time for one query; returns the teacher's and the student's seconds."""
    cost = costs()
    teacher, student = cost["teacher"] * candidates, cost["query"] + cost["head"] * candidates
    rows = (
        ("teacher: every pair", teacher, VERMILION),
        ("student: query and heads", student, BLUE),
        ("once, before: candidates", cost["embed"] * candidates, SKY),
    )
    for row, (name, seconds, colour) in enumerate(rows):
        axes.barh(row, 1e3 * seconds, left=1e-3, height=0.45, color=colour)
        axes.text(1.4e-3, row - 0.42, name, ha="left", va="center", fontsize=10)
        axes.text(1e3 * seconds * 1.25, row, f"{1e3 * seconds:.3g} ms", ha="left", va="center", fontsize=10)
    axes.set_xscale("log")
    axes.set_xlim(1e-3, 1e5)
    axes.set_ylim(2.5, -0.8)
    axes.set_yticks([])
    axes.set_xlabel("milliseconds for one query, on this machine")
    axes.set_title(
        f"{candidates:,} candidates: {teacher / student:.0f} times faster" if teacher > student else f"{candidates:,} candidates", loc="left"
    )
    return teacher, student
