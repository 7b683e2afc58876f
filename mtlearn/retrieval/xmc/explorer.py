"""Three explorers: what three losses do to eight scores; the soft top k and its water level; recall against the memory that negatives take."""

from functools import cache, lru_cache
from itertools import combinations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mtlearn.explore.explorer import Explorer, PointerEvent, choice, slider
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, SKY, VERMILION
from mtlearn.lab.result import recorded
from mtlearn.retrieval.xmc.method import decoupled_softmax, soft_top_k, soft_top_k_loss, softmax_loss

# ------------------------------------------------------------------------------------------------------------------------ the arrows

POSITIVES, LABELS = 3, 8
OTHERS = (0.0, -0.4, -0.9, -1.3, -1.8)  # the negatives, from their level
LOW, HIGH, STEP = -4.0, 6.0, 0.2
MARK = 1e-3  # a gradient that is worth an arrow


@lru_cache(maxsize=512)
def pushes(scores: tuple[float, ...], k: int, alpha: float) -> dict[str, tuple[float, ...]]:
    """What a step of descent does to each score under each loss: minus the gradient."""
    targets = torch.zeros(1, LABELS, dtype=torch.bool)
    targets[0, :POSITIVES] = True
    found = {}
    for name, loss in (
        ("softmax", softmax_loss),
        ("decoupled", decoupled_softmax),
        ("soft top k", lambda s, t: _mean_over_draws(s, t, k, alpha)),
    ):
        leaf = torch.tensor([scores], dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(leaf, targets), leaf)
        found[name] = tuple((-gradient[0]).tolist())
    return found


def _mean_over_draws(scores: Tensor, targets: Tensor, k: int, alpha: float) -> Tensor:
    """The soft top k loss; with fewer places than positives the mean over the draws of k, so that nothing jumps from one redraw to the next."""
    kept = (range(POSITIVES),) if k >= POSITIVES else combinations(range(POSITIVES), k)
    columns = [[*some, *range(POSITIVES, LABELS)] for some in kept]
    return torch.stack([soft_top_k_loss(scores[:, some], targets[:, some], k=k, alpha=alpha) for some in columns]).mean()


def explorer() -> Explorer:
    """Eight scores, three of them right, and the arrows of three losses. Drag a bar, or use the arrow keys."""
    chosen = [1]

    def draw(figure: Figure, s1: float, s2: float, s3: float, level: float, k: int, alpha: float) -> str:
        figure.set_layout_engine("none")
        scores = np.array([s1, s2, s3, *(level + other for other in OTHERS)])
        found = pushes(tuple(scores.tolist()), k, alpha)
        p = np.exp(scores - scores.max())
        p /= p.sum()
        texts = []
        titles = {"softmax": "softmax (InfoNCE)", "decoupled": "decoupled softmax", "soft top k": f"soft top {k}, α = {alpha:g}"}
        for place, (name, push) in enumerate(found.items()):
            axes = figure.add_axes((0.065 + 0.32 * place, 0.25, 0.27, 0.60))
            down = _draw_pushes(axes, scores, np.array(push), chosen[0])
            axes.set_title(titles[name], loc="left", fontsize=12.5)
            if place == 0:
                axes.set_ylabel("score")
            words = f"{'no positive' if not down else 'positive ' + ', '.join(str(i + 1) for i in down)}"
            figure.text(0.065 + 0.32 * place, 0.115, f"pushes down {words}", fontsize=11.5, color=VERMILION if down else GREEN)
            texts.append(f"{name} pushes down {words}")
        share = ", ".join(f"{value:.2f}" for value in p[:POSITIVES])
        figure.text(0.065, 0.045, f"softmax probability of the positives: {share}; above 1 / |P| = {1 / POSITIVES:.2f} it is too sure", fontsize=11)
        figure.text(0.065, 0.945, "bars: scores (blue: right answers).  Arrows: where a step of training moves them", fontsize=11)
        return "; ".join(texts)

    controls = {
        "s1": slider("score of positive 1", 4.0, LOW, HIGH, STEP),
        "s2": slider("score of positive 2", 1.0, LOW, HIGH, STEP),
        "s3": slider("score of positive 3", 0.0, LOW, HIGH, STEP),
        "level": slider("score of the best negative", 1.0, LOW + 2, HIGH, STEP),
        "k": slider("k of the soft top k", 5, 1, 7),
        "alpha": slider("α, its sharpness", 2.0, 0.5, 8.0, 0.5),
    }
    names = ("s1", "s2", "s3", *("level",) * len(OTHERS))

    def move(label: int, score: float) -> None:
        shift = 0.0 if label < POSITIVES else OTHERS[label - POSITIVES]
        controls[names[label]].value = round((score - shift) / STEP) * STEP

    def on_pointer(event: PointerEvent) -> None:
        if event.kind == "key":
            chosen[0] = int(np.clip(chosen[0] + {"ArrowLeft": -1, "ArrowRight": 1}.get(event.key, 0), 0, POSITIVES))
            step = {"ArrowUp": STEP, "ArrowDown": -STEP}.get(event.key, 0.0)
            if step:
                move(chosen[0], controls[names[chosen[0]]].value + step)
        elif event.kind in ("press", "drag") and 0 <= event.axes < 3:
            if event.kind == "press":
                chosen[0] = int(np.clip(round(event.x), 0, LABELS - 1))
            move(chosen[0], event.y)

    start = {name: control.value for name, control in controls.items()}
    return Explorer(
        draw,
        controls,
        title="Three right answers among eight labels: drag one up. Which loss pushes it down again?",
        figsize=(10.0, 4.6),
        on_pointer=on_pointer,
        on_reset=lambda: chosen.__setitem__(0, 1),
        presets={
            "one is sure, two are not": {**start, "s1": 5.0, "s2": 0.0, "s3": -1.0},
            "all three are equal": {**start, "s1": 2.0, "s2": 2.0, "s3": 2.0},
            "all are in the top 3": {**start, "s1": 6.0, "s2": 5.0, "s3": 4.0, "level": 0.0, "k": 3},
            "a negative wins": {**start, "s1": 1.0, "s2": 0.0, "s3": -1.0, "level": 4.0},
        },
    )


def _draw_pushes(axes: Axes, scores: np.ndarray, push: np.ndarray, chosen: int) -> list[int]:
    """Bars from the lowest score, arrows by the square root of the push, so that small ones are seen. Returns the positives pushed down."""
    rows = np.arange(LABELS)
    floor = LOW - 2
    colours = [BLUE if i < POSITIVES else LIGHT for i in rows]
    axes.bar(rows, scores - floor, bottom=floor, color=colours, width=0.72)
    if chosen <= POSITIVES:
        axes.plot([chosen], [floor + 0.35], marker="^", color=BLACK, markersize=7)
    strong = np.abs(push) > MARK
    along = np.sign(push) * np.sqrt(np.abs(push)) * 2.2
    down = [i for i in range(POSITIVES) if push[i] < -MARK]
    tints = np.array([VERMILION if i in down else GREEN if i < POSITIVES else GREY for i in rows])
    if strong.any():
        at = rows[strong]
        axes.quiver(
            at, scores[strong], np.zeros(len(at)), along[strong], color=tints[strong].tolist(), angles="xy", scale_units="xy", scale=1,
            width=0.018, headwidth=3.2, headlength=3.5, headaxislength=3.2, zorder=3,
        )  # fmt: skip
    axes.set_ylim(floor, HIGH + 2.6)
    axes.set_xlim(-0.6, LABELS - 0.4)
    axes.set_xticks(rows, [f"{i + 1}" for i in rows])
    axes.set_yticks([-4, -2, 0, 2, 4, 6])
    axes.set_xlabel("label (1 to 3 are right)")
    return down


# -------------------------------------------------------------------------------------------------------------------- the water level

SETS = {
    "spread": (4.1, 3.3, 2.8, 2.1, 1.7, 0.9, 0.4, -0.2, -0.8, -1.3, -1.9, -2.6),
    "a gap after five": (4.0, 3.8, 3.5, 3.3, 3.0, -0.5, -0.8, -1.0, -1.3, -1.6, -1.8, -2.1),
    "a tie at the edge": (4.0, 3.2, 2.6, 1.2, 1.2, 1.2, 1.2, 0.0, -0.7, -1.2, -1.8, -2.4),
    "all equal": (1.0,) * 12,
}


def level() -> Explorer:
    """The soft top k of twelve scores: the water level -t, and how sharp the shore is."""

    def draw(figure: Figure, scores: str, k: int, alpha: float) -> str:
        figure.set_layout_engine("none")
        values = torch.tensor([SETS[scores]], dtype=torch.float64)
        z = soft_top_k(values, k, alpha=alpha, steps=60)[0].numpy()
        s = values[0].numpy()
        water = float(s[0] - np.log(z[0] / (1 - z[0])) / alpha) if z[0] < 1 - 1e-12 else float(s[k - 1] + s[k]) / 2  # z = 1/2 here
        left, right = figure.add_axes((0.075, 0.14, 0.40, 0.72)), figure.add_axes((0.565, 0.14, 0.41, 0.72))
        at = np.linspace(-5.0, 6.0, 200)
        left.plot(at, 1 / (1 + np.exp(np.clip(-alpha * (at - water), -60, 60))), color=SKY)
        left.scatter(s, z, color=[BLUE if i < k else ORANGE for i in range(len(s))], zorder=3, s=36)
        left.axvline(water, color=GREY, linestyle=":")
        left.text(water + 0.12, 0.04, f"water level −t = {water:.2f}", color=GREY, fontsize=10.5)
        left.set_xlim(-5, 6)
        left.set_ylim(-0.04, 1.06)
        left.set_xlabel("score s")
        left.set_ylabel("share z of the top k")
        left.set_title("z = σ(α (s + t)), one t for all", loc="left")
        right.bar(range(1, 13), z, color=[BLUE if i < k else ORANGE for i in range(12)])
        v = z * (1 - z)
        pull = np.sqrt(v / max(v.sum(), 1e-300))
        right.plot(range(1, 13), pull, color=BLACK, marker=".", linewidth=1)
        right.text(12.5, 1.02, "black: how much a label moves the level (root)", ha="right", fontsize=10, color=BLACK)
        right.set_ylim(0, 1.1)
        right.set_xticks(range(1, 13))
        right.set_xlabel("label, best first")
        right.set_title(f"blue: the hard top {k}.  The shares sum to {z.sum():.2f}", loc="left")
        outside = float(z[k:].sum())
        words = f"the shares sum to {z.sum():.2f}, of which {outside:.2f} lie outside the hard top {k}"
        return f"k = {k}, α = {alpha:g}, {scores}: {words}; level {water:.2f}"

    controls = {
        "scores": choice("scores", list(SETS), "spread"),
        "k": slider("k", 5, 1, 11),
        "alpha": slider("α, sharpness (1 / temperature)", 2.0, 0.2, 12.0, 0.2),
    }
    start = {name: control.value for name, control in controls.items()}
    return Explorer(
        draw,
        controls,
        title="The soft top k: raise or lower one water level until the shares sum to k.",
        figsize=(10.0, 4.2),
        presets={
            "soft: everyone has a share": {**start, "alpha": 0.4},
            "sharp, and a gap: the hard top 5": {**start, "scores": "a gap after five", "alpha": 12.0},
            "a tie at the edge is shared": {**start, "scores": "a tie at the edge", "alpha": 12.0},
            "all equal: k / L each": {**start, "scores": "all equal"},
        },
    )


# ------------------------------------------------------------------------------------------------------------------------ the frontier

ARMS = {"in-batch": "in-batch", "few random": "64 random beside", "hard negatives": "hard ones beside", "decoupled": "all labels"}
COLOURS = {"in-batch": GREY, "few random": ORANGE, "hard negatives": PURPLE, "decoupled": BLUE}
METRICS = {"precision at 1": "p1", "recall at 5": "recall5", "recall at 5, rare labels": "recall5_rare"}
ENCODERS = {"bag of words (here)": (0, 64, 0), "DistilBERT": (6, 768, 12), "BERT-base": (12, 768, 12)}
UNITS = ((3, "1 kB"), (6, "1 MB"), (9, "1 GB"), (12, "1 TB"), (15, "1 PB"))  # powers of ten


def bytes_a_label(layers: int, width: int, heads: int, tokens: int) -> float:
    """What the graph of one text of a transformer holds in half precision: tokens * width * (34 + 5 heads tokens / width) a layer.

    The count is that of Korthikanti et al. (2022), without recomputation; a bag of words holds its mean and two layers of the perceptron.
    """
    if layers == 0:
        return 4.0 * (tokens + 4 * width)
    return layers * tokens * width * (34 + 5 * heads * tokens / width)


@cache
def measured() -> dict[str, dict[str, float]]:
    """Recorded means of the arms."""
    return {arm: {metric: value.mean for metric, value in metrics.items()} for arm, metrics in recorded("xmc").arms.items()}


def amount(size: float) -> str:
    """Bytes as people read them."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1e3:,.1f} kB"


def frontier() -> Explorer:
    """What more labels in a step buy, measured here, and what they cost at the size of one's own problem, reckoned."""

    def draw(figure: Figure, metric: str, encoder: str, labels: float, batch: int, tokens: int, chunk: int) -> str:
        figure.set_layout_engine("none")
        left, right = figure.add_axes((0.085, 0.15, 0.35, 0.68)), figure.add_axes((0.625, 0.15, 0.335, 0.68))
        found, name = measured(), METRICS[metric]
        points = [(found[arm]["labels_a_step"], found[arm][name]) for arm in ARMS]
        order = np.argsort([x for x, _ in points])
        left.plot([points[i][0] for i in order], [points[i][1] for i in order], color=LIGHT, zorder=1)
        for (arm, words), (x, y) in zip(ARMS.items(), points, strict=True):
            left.scatter([x], [y], color=COLOURS[arm], s=60, zorder=2)
            last = x > 1000
            shift, side = ((-4, -18), "right") if last else ((0, 12), "center") if arm == "hard negatives" else ((9, -4), "left")
            left.annotate(words, (x, y), textcoords="offset points", xytext=shift, ha=side, color=COLOURS[arm], fontsize=10.5)
        middle, reach = np.mean([y for _, y in points]), max(np.ptp([y for _, y in points]), 0.02)
        left.set_ylim(middle - 0.9 * reach, middle + 0.9 * reach)
        left.set_xlim(100, max(x for x, _ in points) * 1.12)
        left.set_xlabel("labels encoded in a step")
        left.set_ylabel(metric)
        left.set_title("measured here, five seeds", loc="left")
        number = round(10**labels)
        own = bytes_a_label(*ENCODERS[encoder], tokens)
        width = ENCODERS[encoder][1]
        rows = {
            "graph of all labels": number * own,
            f"graph of {chunk} labels\n(gradient caching)": min(chunk, number) * own + 2 * 4.0 * number * width,
            f"scores {batch} × L": 3 * 4.0 * batch * number,
            "scores in blocks\nof 8,192": 2 * 4.0 * batch * min(8192, number),
        }
        sizes = list(rows.values())
        logs = np.log10(sizes)
        low = float(logs.min()) - 0.7
        right.barh(range(4), logs - low, left=low, color=[VERMILION, GREEN, VERMILION, GREEN], height=0.6)
        for place, value in enumerate(sizes):
            right.text(logs[place] + 0.1, place, amount(value), va="center", fontsize=10.5)
        right.set_xlim(low, float(logs.max()) + 2)
        right.set_xticks([t for t in (3, 6, 9, 12, 15) if low <= t <= logs.max() + 2], [w for t, w in UNITS if low <= t <= logs.max() + 2])
        right.set_yticks(range(4), list(rows), fontsize=10.5)
        right.set_ylim(3.6, -0.6)
        right.tick_params(axis="y", length=0)
        right.set_xlabel("memory (reckoned)")
        right.set_title(f"L = {number:,} labels, {encoder}", loc="left")
        best = max(ARMS, key=lambda arm: found[arm][name])
        return (
            f"{metric}: " + ", ".join(f"{words} {found[arm][name]:.3f}" for arm, words in ARMS.items()) + f"; best: {ARMS[best]}. "
            f"{number:,} labels: graph of all {amount(sizes[0])}, in chunks {amount(sizes[1])}; "
            f"scores {amount(sizes[2])}, in blocks {amount(sizes[3])}"
        )

    controls = {
        "metric": choice("measure", list(METRICS), "precision at 1"),
        "encoder": choice("encoder", list(ENCODERS), "DistilBERT"),
        "labels": slider("labels, power of ten", 5.0, 3.0, 7.0, 0.25),
        "batch": slider("queries in a batch", 512, 32, 2048, 32),
        "tokens": slider("tokens of a label", 32, 8, 128, 8),
        "chunk": slider("labels with a graph at a time", 512, 32, 4096, 32),
    }
    start = {name: control.value for name, control in controls.items()}
    return Explorer(
        draw,
        controls,
        title="All labels as negatives: what it buys (left) and what it costs (right).",
        figsize=(10.0, 4.4),
        presets={
            "EURLex-4K": {**start, "labels": 3.5, "batch": 512},
            "AmazonTitles-1.3M": {**start, "labels": 6.0, "batch": 2048},
            "rare labels: fewer negatives do": {**start, "metric": "recall at 5, rare labels"},
        },
    )
