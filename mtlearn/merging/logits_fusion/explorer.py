"""Touch dynamic fusion: a passage shaded by the strength at every character, what four models would write there, and why that strength was chosen."""

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from mtlearn.datasets.texts import ALPHABET, encode, plain
from mtlearn.explore import Explorer, PointerEvent, choice, slider
from mtlearn.explore.canvas import Words
from mtlearn.explore.explorer import entry
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, SKY, VERMILION
from mtlearn.lab.checkpoints import load as load_shipped
from mtlearn.merging.logits_fusion.baselines import recent
from mtlearn.merging.logits_fusion.experiment import DOMAINS, EXPERTS_CHECKPOINT, LARGE_CHECKPOINT, SMALL_CHECKPOINT, domain_text
from mtlearn.merging.logits_fusion.method import EVIDENCE, GRID, change, dynamic, fuse, kl, moves, objective, targets

ROWS, COLUMNS = 4, 72
SHOWN = ROWS * COLUMNS
FIXED, DYNAMIC, THREE, ROUTED = "fixed strength", "dynamic", "three experts, dynamic", "three experts, router"
RULES = (FIXED, DYNAMIC, THREE, ROUTED)
TRUE, ITSELF = "large model", "the small model itself"
EXPERT_COLOURS = dict(zip(DOMAINS, (BLUE, ORANGE, GREEN), strict=True))
PASSAGES = 20
CANDIDATES = 6  # characters with bars
START = 254  # a character of the second passage that neither the large model nor the expert expects as much as both together
MEASURED = 900  # characters for the curves of each domain


@cache
def _models() -> tuple[nn.Module, nn.Module, list[nn.Module]]:
    """The shipped large model, small model and experts."""
    experts = load_shipped(EXPERTS_CHECKPOINT)
    assert isinstance(experts, nn.ModuleDict)
    return load_shipped(LARGE_CHECKPOINT), load_shipped(SMALL_CHECKPOINT), [experts[name] for name in DOMAINS]


@dataclass(frozen=True)
class Reading:
    """What the models say at each of n characters.

    Attributes:
        text: the characters.
        log_p, log_q, log_q_t: (n, V), (n, V), (T, n, V).
        weights: (n, T) of the router.
    """

    text: str
    log_p: Tensor
    log_q: Tensor
    log_q_t: Tensor
    weights: Tensor

    @property
    def tokens(self) -> Tensor:
        """(n,) of the text."""
        return encode(self.text)

    def bits(self, log_p: Tensor) -> float:
        """Bits a character of log-probabilities (n, V)."""
        return -log_p.gather(1, self.tokens[:, None]).mean().item() / float(np.log(2))


@torch.no_grad()
def read(text: str, *, before: str = "", itself: bool = False) -> Reading:
    """Let the models read a text; with ``itself`` the small model takes the large one's place."""
    large, small, experts = _models()
    tokens = encode("\n" + before + text)[None]
    log_p, log_q, *log_q_t = (model(tokens[:, :-1])[0].log_softmax(-1) for model in (small if itself else large, small, *experts))
    stacked = torch.stack(log_q_t)
    gained = change(log_q, stacked).gather(-1, tokens[0, 1:, None].expand(len(experts), -1, -1))[..., 0]
    n = len(text)
    return Reading(text, log_p[-n:], log_q[-n:], stacked[:, -n:], recent(gained)[-n:])


@lru_cache(32)
def passage(domain: str, number: int, own: str, large: str) -> Reading:
    """The passage of a domain's test text, or the reader's own text."""
    if own:
        return read(own, itself=large == ITSELF)
    test = domain_text(domain, 200_000).split(validation=0.1, test=0.15)[2].characters
    start = EVIDENCE + 1200 * (number - 1)
    return read(test[start : start + SHOWN], before=test[start - EVIDENCE : start], itself=large == ITSELF)


@lru_cache(64)
def strengths(reading: Reading, domain: str, rule: str) -> Tensor:
    """(n, T) that a rule other than the fixed one gives."""
    if rule == ROUTED:
        return reading.weights
    if rule == THREE:
        return dynamic(reading.log_p, reading.log_q, reading.log_q_t).alpha
    alpha = torch.zeros(len(reading.text), len(DOMAINS))
    mine = DOMAINS.index(domain)
    alpha[:, mine] = dynamic(reading.log_p, reading.log_q, reading.log_q_t[mine : mine + 1]).alpha[:, 0]
    return alpha


@lru_cache(8)
def curves(large: str) -> dict[str, tuple[list[float], float]]:
    """Of each domain the bits a character at each fixed strength, and at the dynamic one, with the right expert."""
    found = {}
    for number, name in enumerate(DOMAINS):
        test = domain_text(name, 200_000).split(validation=0.1, test=0.15)[2].characters
        middle = len(test) // 2
        reading = read(test[middle : middle + MEASURED], before=test[middle - EVIDENCE : middle], itself=large == ITSELF)
        mine = reading.log_q_t[number : number + 1]
        alpha = dynamic(reading.log_p, reading.log_q, mine).alpha
        at = [reading.bits(fuse(reading.log_p, reading.log_q, mine, strength)) for strength in GRID]
        found[name] = at, reading.bits(fuse(reading.log_p, reading.log_q, mine, alpha))
    return found


def explorer() -> Explorer:
    """The explorer of the notebook."""
    cursor = [START]

    def draw(figure: Figure, domain: str, rule: str, alpha: float, number: int, large: str, own: str) -> str:
        figure.set_layout_engine("none")
        own = plain(own)[:SHOWN]
        reading = passage(domain, number, own, large)
        mine = DOMAINS.index(domain)
        if rule == FIXED:
            chosen = torch.zeros(len(reading.text), len(DOMAINS))
            chosen[:, mine] = alpha
        else:
            chosen = strengths(reading, domain, rule)
        fused = fuse(reading.log_p, reading.log_q, reading.log_q_t, chosen)
        at = min(cursor[0], len(reading.text) - 1)
        words = _draw_strip(figure.add_axes((0.03, 0.655, 0.94, 0.265)), reading, chosen, at, coloured=rule in (THREE, ROUTED))
        figure.text(0.03, 0.955, _scores(reading, fused, mine, rule), fontsize=11)
        expert = int(chosen[at].argmax()) if rule in (THREE, ROUTED) and chosen[at].any() else mine
        bars = _draw_bars(figure.add_axes((0.05, 0.115, 0.36, 0.475)), reading, fused, at, expert)
        why = _draw_divergences(
            figure.add_axes((0.49, 0.335, 0.21, 0.195)), figure.add_axes((0.49, 0.1, 0.21, 0.17)), reading, at, expert, chosen[at], rule
        )
        _draw_curves(figure.add_axes((0.785, 0.1, 0.195, 0.43)), large, alpha, domain)
        return f"{_scores(reading, fused, mine, rule)}. {words}. {bars}. {why}"

    controls = {
        "domain": choice("text from", DOMAINS, "numpy"),
        "rule": choice("strength", RULES, DYNAMIC),
        "alpha": slider("fixed strength", 1.0, 0.0, 2.0, 0.1),
        "number": slider("passage", 2, 1, PASSAGES),
        "large": choice("in the large model's place", (TRUE, ITSELF)),
        "own": entry("or a text of your own", ""),
    }

    def on_pointer(event: PointerEvent) -> None:
        step = {"ArrowLeft": -1, "ArrowRight": 1, "ArrowUp": -COLUMNS, "ArrowDown": COLUMNS, "Home": -SHOWN, "End": SHOWN}
        own = plain(controls["own"].value)[:SHOWN]
        length = len(own) or SHOWN
        if event.kind == "key" and event.key in step:
            cursor[0] = min(max(min(cursor[0], length - 1) + step[event.key], 0), length - 1)
        elif event.kind in ("press", "drag") and event.axes == 0:
            place = int(np.clip(event.y, 0, ROWS - 1)) * COLUMNS + int(np.clip(event.x, 0, COLUMNS - 1))
            cursor[0] = min(max(place, 0), length - 1)

    start = {"domain": "numpy", "rule": DYNAMIC, "alpha": 1.0, "number": 2, "large": TRUE, "own": ""}

    def forget() -> None:
        cursor[0] = START

    return Explorer(
        draw,
        controls,
        title="How strongly does the small expert speak here? Click a character (or use the arrow keys).",
        figsize=(10.0, 6.6),
        seed=EXPERTS_CHECKPOINT.settings.seed,
        on_pointer=on_pointer,
        on_reset=forget,
        presets={
            "too weak": {**start, "rule": FIXED, "alpha": 0.3},
            "too strong": {**start, "rule": FIXED, "alpha": 2.0},
            "three experts: who speaks?": {**start, "rule": THREE},
            "a router that reads": {**start, "rule": ROUTED},
            "small = large": {**start, "large": ITSELF},
            "code": {**start, "domain": "code", "number": 4},
        },
    )


def _scores(reading: Reading, fused: Tensor, mine: int, rule: str) -> str:
    parts = {"large": reading.log_p, f"{DOMAINS[mine]} expert": reading.log_q_t[mine], f"fused ({rule})": fused}
    return "bits per character of this text:  " + ",  ".join(f"{name} {reading.bits(log_p):.2f}" for name, log_p in parts.items())


def _show(letter: str) -> str:
    return {"\n": "↵", " ": "␣"}.get(letter, letter)


def _draw_strip(axes: Axes, reading: Reading, chosen: Tensor, at: int, *, coloured: bool) -> str:
    """The passage, each character on a shade for its strength and, with three experts, over a bar in the colour of the strongest."""
    n = len(reading.text)
    total = np.full(SHOWN, np.nan)
    total[:n] = chosen.sum(1).numpy()
    axes.imshow(total.reshape(ROWS, COLUMNS), cmap="cividis", vmin=0, vmax=2, extent=(0, COLUMNS, ROWS, 0), aspect="auto", interpolation="nearest")
    places = [(place % COLUMNS + 0.5, place // COLUMNS + 0.5) for place in range(n)]
    ink = ["white" if value < 1.1 else BLACK for value in total[:n]]
    axes.add_artist(Words(places, [_show(letter) if letter != " " else "" for letter in reading.text], ink, size=11))
    said = f"at {_show(reading.text[at])!r} the strength is {total[at]:.2f}"
    if coloured:
        strongest = torch.where(chosen.amax(1) > 0.05, chosen.argmax(1), -1)
        for number, name in enumerate(DOMAINS):
            where = (strongest == number).nonzero()[:, 0].numpy()
            axes.bar(where % COLUMNS + 0.5, np.full(len(where), -0.13), bottom=where // COLUMNS + 1.0, width=1.0, color=EXPERT_COLOURS[name])
        share = [(strongest == number).float().mean().item() for number in range(len(DOMAINS))]
        said += "; strongest expert: " + ", ".join(f"{name} {100 * part:.0f} %" for name, part in zip(DOMAINS, share, strict=True))
        x = 0.0
        for number, name in enumerate(DOMAINS):
            axes.text(
                x, ROWS + 0.12, f"{name} strongest: {100 * share[number]:.0f} %", color=EXPERT_COLOURS[name], va="top", fontsize=10, weight="bold"
            )
            x += 19
    axes.add_patch(Rectangle((at % COLUMNS, at // COLUMNS), 1, 1, fill=False, edgecolor=VERMILION, linewidth=2.5, clip_on=False))
    axes.text(COLUMNS, ROWS + 0.12, "shade: strength, 0 dark to 2 bright", color=GREY, va="top", ha="right", fontsize=10)
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(ROWS, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    return said


def _draw_bars(axes: Axes, reading: Reading, fused: Tensor, at: int, expert: int) -> str:
    """The likeliest next characters under four models, side by side."""
    columns = {
        "small": (reading.log_q[at], SKY),
        f"expert\n({DOMAINS[expert]})": (reading.log_q_t[expert, at], PURPLE),
        "large": (reading.log_p[at], GREY),
        "fused": (fused[at], VERMILION),
    }
    p = torch.stack([log_p.exp() for log_p, _ in columns.values()])  # (4, V)
    likely = (3 * p[3] + p.amax(0)).topk(CANDIDATES).indices
    shown = likely[p[3, likely].argsort(descending=True, stable=True)].tolist()
    right = int(reading.tokens[at])
    lefts = 1.25 * np.arange(len(columns))
    height = np.array([[p[number, token].item() for token in shown] for number in range(len(columns))])  # (4, CANDIDATES)
    strokes = [[(left, row), (left + value, row)] for left, values in zip(lefts, height, strict=True) for row, value in enumerate(values)]
    colours = [colour for _, colour in columns.values()]
    axes.add_collection(LineCollection(strokes, colors=[colour for colour in colours for _ in shown], linewidths=19, capstyle="butt"))
    axes.add_collection(LineCollection([[(left, -0.5), (left, CANDIDATES - 0.5)] for left in lefts], colors=[LIGHT], linewidths=1))
    for left, name, colour in zip(lefts, columns, colours, strict=True):
        axes.text(left, -0.65, name, fontsize=11, va="bottom", color=BLUE if colour == SKY else colour, weight="bold")
    seen = [(left, row, value) for left, values in zip(lefts, height, strict=True) for row, value in enumerate(values) if value >= 0.005]
    places = [(left + (value + 0.13 if value < 0.8 else 0.15), row) for left, row, value in seen]
    axes.add_artist(
        Words(places, [f"{100 * value:.0f}" for _, _, value in seen], [BLACK if value < 0.8 else "white" for _, _, value in seen], size=9)
    )
    axes.set_yticks(range(CANDIDATES), [_show(ALPHABET[token]) for token in shown], fontsize=12, family="monospace")
    for label, token in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_color(VERMILION if token == right else BLACK)
        label.set_fontweight("bold" if token == right else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 4.95)
    axes.set_ylim(CANDIDATES - 0.4, -1.9)
    axes.set_xticks([])
    axes.set_xlabel("probability of the next character, per cent\n(red: the character in the text)", fontsize=10)
    axes.spines[["left", "bottom"]].set_visible(False)
    best = [_show(ALPHABET[int(row.argmax())]) for row in p]
    return f"likeliest next: small {best[0]!r}, expert {best[1]!r}, large {best[2]!r}, fused {best[3]!r}, in the text {_show(reading.text[at])!r}"


def _draw_divergences(upper: Axes, lower: Axes, reading: Reading, at: int, expert: int, chosen: Tensor, rule: str) -> str:
    """Both divergences over the strength with the expert's as horizontal lines, and the objective below."""
    grid = torch.linspace(0, 2, 81)
    log_p, log_q, log_q_t = reading.log_p[at], reading.log_q[at], reading.log_q_t[:, at]
    delta = change(log_q, log_q_t)
    away, back = targets(log_q, log_q_t)
    forward, backward = moves(log_p, delta[expert, None], grid[:, None])
    strength = chosen[expert].item()
    top = 1.25 * max(away[expert].item(), back[expert].item(), 1e-3)
    for curve, target, colour, name in ((forward, away, VERMILION, "D(fused‖large)"), (backward, back, BLUE, "D(large‖fused)")):
        upper.plot(grid.numpy(), curve.numpy(), color=colour)
        upper.axhline(target[expert].item(), color=colour, linestyle=":", linewidth=1.5)
        upper.text(0.0, 1.17 if colour == VERMILION else 1.03, name, color=colour, transform=upper.transAxes, fontsize=10)
    upper.text(0.0, 1.31, "moves (dotted: the expert's)", color=BLACK, transform=upper.transAxes, fontsize=10)
    upper.axvline(strength, color=BLACK, linewidth=1, linestyle="--")
    upper.set_xlim(0, 2)
    upper.set_ylim(0, max(top, 1.3 * forward[int(40 * min(strength, 2))].item()))
    upper.set_xticks([])
    upper.locator_params(axis="y", nbins=3)
    upper.set_ylabel("nats")
    several = rule in (THREE, ROUTED)
    drawn = range(len(DOMAINS)) if several else [expert]
    wanted = (away, back) if several else (away[expert : expert + 1], back[expert : expert + 1])
    lowest = 1e9
    for number in drawn:
        value = objective(moves(log_p, delta[number, None], grid[:, None]), wanted)
        lowest = min(lowest, value.min().item())
        lower.plot(grid.numpy(), value.clamp_min(1e-6).log10().numpy(), color=EXPERT_COLOURS[DOMAINS[number]] if several else BLACK)
    lower.axvline(strength, color=BLACK, linewidth=1, linestyle="--")
    lower.set_xlim(0, 2)
    lower.set_ylim(-4, 2)
    lower.set_yticks([-4, -2, 0, 2])
    lower.set_xticks([0, 1, 2])
    lower.set_xlabel("strength α")
    lower.set_ylabel("log₁₀ objective")
    moved = kl(fuse(log_p, log_q, log_q_t, chosen), log_p).item()
    return f"the expert moved by {away[expert].item():.2f} nats, the large model moves by {moved:.2f}; lowest objective {lowest:.2g}"


def _draw_curves(axes: Axes, large: str, alpha: float, domain: str) -> None:
    """Bits a character at every fixed strength, for each domain, and the dynamic rule beside them."""
    low = -10.0
    for name, (bits, rule) in sorted(curves(large).items(), key=lambda item: item[1][1]):
        colour = EXPERT_COLOURS[name]
        axes.plot(GRID, bits, color=colour, linewidth=2.6 if name == domain else 1.3)
        best = int(np.argmin(bits))
        axes.plot([GRID[best]], [bits[best]], "o", color=colour, markersize=6)
        axes.plot([2.25], [rule], "D", color=colour, markersize=8)
        low = max(rule, low + 0.28)
        axes.text(2.45, low, name, color=colour, fontsize=10, weight="bold", va="center")
    axes.axvline(alpha, color=GREY, linewidth=1, linestyle="--")
    axes.set_xlim(0, 3.75)
    axes.set_ylim(2.4, 6.6)
    axes.set_xticks([0, 1, 2])
    axes.set_yticks([3, 4, 5, 6])
    axes.set_xlabel("fixed strength    ◆ dynamic", loc="left")
    axes.set_title("bits per character,\nright expert (dot: best)", loc="left", fontsize=10)
