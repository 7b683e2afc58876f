"""The report: one HTML page that carries everything in itself, and the plots that it shares with the notebooks."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import jinja2
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mtlearn import papers
from mtlearn.explore.style import BLACK, BLUE, CYCLE, GREEN, GREY, LIGHT, VERMILION, suite_style
from mtlearn.lab.result import Result, Verdict, recorded, student_interval
from mtlearn.lab.store import write_atomically

__all__ = ["plot_arms", "plot_claim", "recorded", "write_report"]

VERDICT_COLOUR = {"holds": GREEN, "fails": VERMILION, "undecided": GREY}


def plot_arms(axes: Axes, result: Result, metric: str, *, arms: Sequence[str] | None = None, mark: Sequence[str] = ()) -> None:
    """Every arm's seeds as dots on one row, its mean as a tick with the 95 % interval.

    Args:
        axes: where to draw.
        result: a run, or ``recorded(paper)``.
        metric: what to draw; arms without it are left out.
        arms: which arms, top to bottom; all when omitted.
        mark: arms to draw in colour; all when empty.
    """
    names = [arm for arm in (arms or result.arms) if metric in result.arms[arm]]
    if not names:
        raise ValueError(f"no arm has the metric {metric!r}; there are {', '.join(sorted({m for a in result.arms.values() for m in a}))}")
    for row, arm in enumerate(names):
        values = result.arms[arm][metric].values
        colour = CYCLE[row % len(CYCLE)] if not mark else CYCLE[list(mark).index(arm) % len(CYCLE)] if arm in mark else GREY
        mean, low, high = student_interval(values)
        if low is not None and high is not None:
            axes.plot([low, high], [row, row], color=colour, linewidth=5, alpha=0.3, solid_capstyle="butt")
        spread = [row + 0.22 * math.sin(2.4 * k) for k in range(len(values))] if len(values) > 1 else [row]
        axes.plot(values, spread, "o", color=colour, markersize=5, alpha=0.75, markeredgewidth=0)
        axes.plot([mean, mean], [row - 0.34, row + 0.34], color=colour, linewidth=2.5)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    unit = result.units.get(metric)
    label = metric.replace("_", " ")
    axes.set_xlabel(label + (f"{chr(10) if len(label) + len(unit) > 30 else ' '}({unit})" if unit else ""))
    axes.grid(axis="x", color=LIGHT, linewidth=0.8)
    axes.set_axisbelow(True)


def plot_claim(axes: Axes, verdict: Verdict, *, unit: str = "") -> None:
    """The mean paired difference of a claim with its 95 % interval, the margin it must clear, and the verdict's word."""
    colour = VERDICT_COLOUR[verdict.verdict]
    axes.axvline(verdict.margin, color=BLACK, linewidth=1.2, linestyle="--")
    if verdict.low is not None and verdict.high is not None:
        axes.plot([verdict.low, verdict.high], [0, 0], color=colour, linewidth=6, alpha=0.45, solid_capstyle="butt")
    axes.plot([verdict.difference], [0], "o", color=colour, markersize=8)
    axes.set_ylim(-1, 1.4)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    values = [v for v in (verdict.low, verdict.high, verdict.difference, verdict.margin) if v is not None]
    room = 0.15 * (max(values) - min(values) or abs(verdict.margin) or 1.0)
    axes.set_xlim(min(values) - room, max(values) + room)
    axes.set_title(verdict.verdict, color=colour, fontweight="bold")
    axes.annotate(f"must exceed {verdict.margin:g}", (verdict.margin, 0.75), (4, 0), textcoords="offset points", fontsize=9, ha="left")
    axes.set_xlabel(f"difference ({unit})" if 0 < len(unit) <= 16 else "difference")  # a long unit stands under the arms


def claim_figure(result: Result, verdict: Verdict) -> str:
    """One claim as an SVG data address: the arms on the left, the paired difference on the right."""
    with suite_style():
        count = sum(verdict.metric in metrics for metrics in result.arms.values())
        figure = Figure(figsize=(9.0, 1.5 + 0.34 * count), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[2, 1])
        plot_arms(left, result, verdict.metric, mark=[arm for arm in (verdict.better, verdict.worse) if arm])
        plot_claim(right, verdict, unit=result.units.get(verdict.metric, ""))
        buffer = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def comparison(verdict: Verdict) -> str:
    """What is compared, "a vs b on metric"."""
    other = "" if verdict.worse is None else f" vs {verdict.worse}"
    return f"{verdict.better}{other} on {verdict.metric}"


def interval(verdict: Verdict) -> str:
    """Difference and interval at three digits."""
    if verdict.low is None or verdict.high is None:
        return f"{verdict.difference + 0.0:.3g} (one pair: no interval)"
    return f"{verdict.difference + 0.0:.3g} [{verdict.low + 0.0:.3g}, {verdict.high + 0.0:.3g}]"  # + 0.0: no minus before a zero


def write_report(path: Path, runs: Mapping[str, Sequence[Result]]) -> Path:
    """Write the page.

    Args:
        path: the HTML file; its folder is made.
        runs: paper to its results, the recorded laptop result and what was run here.
    """
    rows = []
    for chapter in papers.chapters():
        for paper in papers.papers(chapter.slug):
            shipped = recorded(paper.slug) if paper.result else None
            sections = [
                {
                    "result": result,
                    "origin": "as recorded" if result == shipped else "run here",
                    "claims": [
                        {"verdict": v, "figure": claim_figure(result, v), "interval": interval(v), "comparison": comparison(v)} for v in result.claims
                    ],
                }
                for result in runs.get(paper.slug, ())
            ]
            rows.append({"paper": paper, "chapter": chapter, "sections": sections})
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mtlearn", "templates"), autoescape=True, undefined=jinja2.StrictUndefined)
    done = [row for row in rows if row["sections"]]
    page = environment.get_template("report.html.jinja").render(
        done=done, total=len(rows), made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), colours=VERDICT_COLOUR, accent=BLUE
    )
    write_atomically(path, page.encode())
    return path
