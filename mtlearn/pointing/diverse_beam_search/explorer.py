"""Touch diverse beam search: watch the beams of one name grow, and see what the strength buys over many names."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from mtlearn.explore.explorer import Explorer, PointerEvent, choice, entry, menu, slider
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, SKY, VERMILION
from mtlearn.pointing.decoding import Hypotheses, beam_search
from mtlearn.pointing.diverse_beam_search.describer import END, START, UNKNOWN, Describer
from mtlearn.pointing.diverse_beam_search.experiment import (
    DESCRIBER,
    LONGEST_NAME,
    MAX_STEPS,
    Examples,
    Limits,
    bleu,
    corpus,
    describer,
    draw,
    list_metrics,
    module,
    padded,
    pieces,
)
from mtlearn.pointing.diverse_beam_search.method import Choice, DiverseHypotheses, Penalty, diverse_beam_search, embedding

WIDTH = 6  # beams of the tree
COLOURS = (BLUE, GREEN, PURPLE, SKY, BLACK, ORANGE)  # of the groups; vermilion is for what a penalty takes
BARS = 8
LIMITS = Limits(start=START, end=END, max_steps=MAX_STEPS)
FIRST_NAME = "tensor/to_sparse_matrix"
SECOND_NAME = "_polyint/barycentric_interpolate"  # of the validation names
STRENGTHS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.8, 1.2, 2.0, 3.0, 5.0)


@dataclass(frozen=True)
class Candidate:
    """A word that a group weighed: its beam's running score and the word's log-probability, and what the penalty took."""

    word: str
    score: float
    penalty: float
    chosen: bool


def numbers(name: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """A name "file/function" as the model reads it, and its pieces that the model does not know."""
    file, _, function = name.rpartition("/")
    found = pieces(file.strip() or "module", function.strip()) or ["/"]
    vocabulary = corpus().vocabulary
    encoded = vocabulary.encode(found)
    names, lengths = padded([encoded], LONGEST_NAME)
    return names, lengths, [piece for piece, number in zip(found, encoded, strict=True) if number == UNKNOWN]


def penalty_named(name: str, model: Describer) -> str | Penalty:
    """The penalty of a menu entry."""
    return partial(embedding, vectors=model.table.weight[: model.output].detach()) if name == "embedding" else name


def explorer() -> Explorer:
    """The beam tree: six beams in G groups describe a function; click on a word, or use the arrow keys, to see what the group weighed there.

    The bars below are the candidates of that group at that step, by running score; vermilion is what the penalty bites off, and a
    filled bar was chosen.
    """
    model, vocabulary = describer(), corpus().vocabulary
    first = {"step": 0, "group": 1}
    seen = dict(first)

    @lru_cache(maxsize=64)  # looking at another word decodes nothing
    def decode(name: str, groups: int, strength: float, penalty: str) -> tuple[DiverseHypotheses, list[Choice]]:
        choices: list[Choice] = []
        names, lengths, _ = numbers(name)
        with torch.no_grad():
            state = model.read(names, lengths)
        found = diverse_beam_search(
            model.step, state, width=WIDTH, groups=groups, strength=strength, diversity=penalty_named(penalty, model), watch=choices.append, **LIMITS
        )  # fmt: skip
        return found, choices

    def paint(figure: Figure, name: str, groups: int, strength: float, penalty: str) -> str:
        found, choices = decode(name, groups, strength, penalty)
        steps = [choices[at : at + groups] for at in range(0, len(choices), groups)]
        group = min(seen["group"], groups - 1)  # what was looked at is kept for when there are more groups again
        at = min(seen["step"], max(at for at, step in enumerate(steps) if bool((step[group].augmented > -torch.inf).any())))
        figure.set_layout_engine("none")  # the three parts have fixed places
        tree = figure.add_axes((0.085, 0.45, 0.905, 0.5))
        _draw_tree(tree, steps, at, group, vocabulary.words)
        picked = steps[at][group]
        running = None if at == 0 else steps[at - 1][group]
        weighed = candidates(picked, running, vocabulary.words)
        bars = figure.add_axes((0.115, 0.075, 0.36, 0.28))
        _draw_bars(bars, weighed, COLOURS[group])
        bars.set_title(f"what group {group + 1} weighed for word {at + 1}", fontsize=11, loc="left")
        sentences = _draw_list(figure, found, vocabulary.decode)
        unknown = numbers(name)[2]
        if unknown:
            figure.text(0.99, 0.965, "the model does not know: " + ", ".join(unknown), ha="right", fontsize=9, color=GREY)
        paid = [candidate.word for candidate in weighed if candidate.penalty > 0]
        return (
            f"{name}: {WIDTH} beams in {groups} groups, strength {strength:g}, {penalty} penalty, {len(set(sentences))} different sentences: "
            + "; ".join(sentences)
            + f". Group {group + 1} at word {at + 1} chose {', '.join(c.word for c in weighed if c.chosen) or 'nothing'}"
            + (f"; penalised: {', '.join(paid)}." if paid else "; nothing was penalised.")
        )

    def on_pointer(event: PointerEvent) -> None:
        groups = made.values["groups"]
        if event.kind in ("press", "drag") and event.axes == 0:
            seen["step"] = min(max(round(event.x), 0), MAX_STEPS - 1)
            seen["group"] = min(max(int(event.y // (WIDTH // groups)), 0), groups - 1)
        elif event.kind == "key":
            across = {"ArrowRight": 1, "ArrowLeft": -1}.get(event.key, 0)
            down = {"ArrowDown": 1, "ArrowUp": -1}.get(event.key, 0)
            seen["step"] = min(max(seen["step"] + across, 0), MAX_STEPS - 1)
            seen["group"] = max(min(seen["group"], groups - 1) + down, 0)

    controls = {
        "name": entry("file/function", FIRST_NAME),
        "groups": choice("groups G", [1, 2, 3, 6], 6),
        "strength": slider("strength λ", 0.8, 0.0, 4.0, 0.1),
        "penalty": menu("penalty", ["hamming", "cumulative", "ngram", "embedding"]),
    }
    presets = {
        "plain beam search": {"name": FIRST_NAME, "groups": 1, "strength": 0.0, "penalty": "hamming"},
        "groups without a penalty": {"name": FIRST_NAME, "groups": 6, "strength": 0.0, "penalty": "hamming"},
        "too strong": {"name": FIRST_NAME, "groups": 6, "strength": 4.0, "penalty": "hamming"},
        "word pairs cost": {"name": FIRST_NAME, "groups": 6, "strength": 0.8, "penalty": "ngram"},
    }
    made = Explorer(
        paint, controls, title="Diverse beam search: six beams describe a function", figsize=(10.0, 6.6), on_pointer=on_pointer, presets=presets,
        on_reset=lambda: seen.update(first),
    )  # fmt: skip
    return made


def candidates(picked: Choice, running: Choice | None, words: tuple[str, ...]) -> list[Candidate]:
    """The group's best candidates before the penalty and those it chose, best first."""
    before = picked.augmented.new_full(picked.augmented.shape, -torch.inf) if running is None else running.augmented.clone()
    if running is None:
        before[:, 0] = 0.0
    else:
        before[running.tokens == END] = -torch.inf
    plain = (before[..., None] + picked.log_probs)[0]  # (beams, vocabulary)
    taken = picked.penalty[0].expand_as(plain)
    alive = picked.augmented[0] > -torch.inf
    chosen = {(int(parent), int(token)) for parent, token, live in zip(picked.parents[0], picked.tokens[0], alive, strict=True) if live}
    best = [divmod(int(at), plain.shape[1]) for at in plain.flatten().topk(BARS).indices]
    shown = [*[pair for pair in best if pair not in chosen][: max(BARS - len(chosen), 0)], *chosen]
    found = []
    for parent, token in shown:
        if plain[parent, token] > -torch.inf:
            after = "" if running is None or len(before[0]) == 1 else f"{words[int(running.tokens[0, parent])]} → "
            word = "(end)" if token == END else words[token]
            found.append(Candidate(after + word, float(plain[parent, token]), float(taken[parent, token]), (parent, token) in chosen))
    return sorted(found, key=lambda candidate: -candidate.score)


def _draw_tree(axes: Axes, steps: list[list[Choice]], step: int, group: int, words: tuple[str, ...]) -> None:
    groups, beams = len(steps[0]), WIDTH // len(steps[0])
    lines: dict[tuple[str, bool], list[list[tuple[float, float]]]] = {}
    longest = max(at for at, row in enumerate(steps) if any(bool((here.augmented > -torch.inf).any()) for here in row))
    column = 9.05 * 72 / (max(longest, 7) + 1.1)  # points
    for g in range(groups):
        colour = COLOURS[g]
        kept: dict[tuple[int, int], bool] = {}  # (step, slot) -> lies on the way to a sentence
        for at in reversed(range(len(steps))):
            here = steps[at][g]
            for slot in range(beams):
                if here.augmented[0, slot] > -torch.inf:
                    ended = int(here.tokens[0, slot]) == END or at + 1 == MAX_STEPS
                    kept[at, slot] = kept.get((at, slot), False) or ended
                    if kept[at, slot] and at > 0:
                        kept[at - 1, int(here.parents[0, slot])] = True
        for (at, slot), leads in kept.items():
            here = steps[at][g]
            y, parent, token = g * beams + slot + 0.5, int(here.parents[0, slot]), int(here.tokens[0, slot])
            from_y = g * beams + (parent + 0.5 if at else beams / 2)
            lines.setdefault((colour, leads), []).append([(at - 0.6 if at else -0.55, from_y), (at - 0.4, y)])
            word = "■" if token == END else words[token]
            size = min(8.5, 0.78 * column / (0.6 * len(word)))
            axes.text(at, y, word, ha="center", va="center", fontsize=size, color=colour, alpha=1.0 if leads else 0.45)
        axes.text(-0.62, g * beams + beams / 2, f"group {g + 1}", ha="right", va="center", color=colour, fontsize=10)
    for (colour, leads), segments in lines.items():
        axes.add_collection(LineCollection(segments, colors=colour, linewidths=1.8 if leads else 0.8, alpha=1.0 if leads else 0.35))
    axes.add_patch(
        Rectangle((step - 0.48, group * beams + 0.06), 0.96, beams - 0.12, fill=False, edgecolor=BLACK, linewidth=1.2)
    )  # fmt: skip
    for at in range(longest + 1):
        axes.text(at, WIDTH + 0.3, str(at + 1), ha="center", va="center", fontsize=9, color=GREY)
    axes.text(-0.62, WIDTH + 0.3, "word", ha="right", va="center", fontsize=9, color=GREY)
    axes.axis("off")
    axes.set(xlim=(-0.6, max(longest, 7) + 0.5), ylim=(WIDTH + 0.5, 0))
    axes.set_title("the beams word by word (■ ends a sentence; pale: given up later)", fontsize=11, loc="left")


def _draw_bars(axes: Axes, weighed: list[Candidate], colour: str) -> None:
    left = [candidate.score - candidate.penalty for candidate in weighed]
    top = max([candidate.score for candidate in weighed] or [0.0])
    floor = min(left or [0.0]) - 0.15 * (top - min(left or [0.0]) + 1)
    rows = range(len(weighed))
    fill = [colour if candidate.chosen else "white" for candidate in weighed]
    axes.barh(rows, [end - floor for end in left], left=floor, height=0.72, color=fill, edgecolor=colour, linewidth=1)
    bitten = [row for row in rows if weighed[row].penalty]
    if bitten:
        begin, width = [min(left[row], weighed[row].score) for row in bitten], [abs(weighed[row].penalty) for row in bitten]
        axes.barh(bitten, width, left=begin, height=0.72, color=VERMILION, edgecolor="white", hatch="////", linewidth=0)
    axes.set_yticks(list(rows), [candidate.word for candidate in weighed], fontsize=9)
    axes.set(ylim=(max(len(weighed), 1) - 0.4, -0.6), xlim=(floor, top + 0.02 * (top - floor)))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("running log-probability, penalties taken off (nats)", fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9)


def _draw_list(figure: Figure, found: DiverseHypotheses, decode: Callable[[list[int]], str]) -> list[str]:
    """The list, likeliest first, each sentence in its group's colour; returns the sentences."""
    beams = found.scores.shape[2]
    sentences: list[str] = []
    for row, member in enumerate(found.scores[0].flatten().argsort(descending=True).tolist()):
        group, beam = divmod(member, beams)
        score = float(found.scores[0, group, beam])
        if score > -torch.inf:
            sentence, y = decode(found.tokens[0, group, beam].tolist()) or "(nothing)", 0.35 - 0.052 * row
            again = sentence in sentences
            sentences.append(sentence)
            size = 10 if len(sentence) <= 54 else 8.5 if len(sentence) <= 66 else 7.2
            shown = sentence + ("  (again)" if again else "")
            figure.text(0.567, y, shown, fontsize=size, color=COLOURS[group], va="center", alpha=0.55 if again else 1)
            figure.text(0.555, y, f"{score:.1f}", fontsize=10, color=GREY, va="center", ha="right")
    figure.text(0.52, 0.402, f"the list: {len(set(sentences))} different sentences, by log-probability (nats)", fontsize=11, va="center")
    return sentences


@cache
def curves(names: int = 60, seed: int = 0) -> dict[float, dict[str, float]]:
    """oracle@10 and distinct-3 of ten groups of one beam at each strength, over ``names`` validation names, with the shipped model."""
    model = describer()
    examples = draw(corpus(DESCRIBER.settings.output, DESCRIBER.settings.table).validation, names, seed, "curve")
    found = {}
    for strength in STRENGTHS:
        with torch.no_grad():
            state = model.read(examples.names, examples.name_lengths)
        lists = diverse_beam_search(model.step, state, width=10, groups=10, strength=strength, **LIMITS).ranked()
        found[strength] = list_metrics(lists, examples)
    with torch.no_grad():
        plain = beam_search(model.step, model.read(examples.names, examples.name_lengths), width=10, **LIMITS)
    found[-1.0] = list_metrics(plain, examples)  # beam search of the same width
    return found


def strength_explorer(names: int = 60) -> Explorer:
    """What the strength buys: quality and variety of lists of ten against lambda, and the ten sentences of one name at the cursor."""
    model, vocabulary, seed = describer(), corpus().vocabulary, 0
    curve = curves(names, seed)
    examples = draw(corpus().validation, names, seed, "curve")
    labels = [f"{module(function.file)}/{function.name}" for function in examples.functions]
    shown = dict.fromkeys(label for label in labels if len(label) <= 46)

    def paint(figure: Figure, strength: float, name: str) -> str:
        figure.set_layout_engine("none")
        quality = figure.add_axes((0.075, 0.56, 0.33, 0.36))
        variety = figure.add_axes((0.075, 0.12, 0.33, 0.34))
        nearest = min(STRENGTHS, key=lambda one: abs(one - strength))
        for axes, metric, colour, label in (
            (quality, "oracle_10", BLUE, "best of ten (BLEU-2 points)"),
            (variety, "distinct_3", GREEN, "distinct-3"),
        ):
            values = [curve[one][metric] for one in STRENGTHS]
            axes.plot(STRENGTHS, values, "o-", color=colour, markersize=4)
            axes.axhline(curve[-1.0][metric], color=GREY, linewidth=1.2, linestyle="--")
            axes.annotate("beam search", (5.0, curve[-1.0][metric]), (0, 3), textcoords="offset points", ha="right", fontsize=9, color=GREY)
            axes.axvline(strength, color=VERMILION, linewidth=1.5)
            axes.set_title(label, fontsize=11, loc="left", color=colour)
            axes.set_xlim(-0.1, 5.1)
            axes.grid(axis="y", color=LIGHT, linewidth=0.8)
        quality.set_xticklabels([])
        variety.set_xlabel(f"strength λ (nats); {len(examples)} validation names, G = B = 10", fontsize=9)
        example = examples.rows(torch.tensor([labels.index(name)]))
        lists, points = ten_sentences(model, example, strength)
        text = figure.add_axes((0.43, 0.05, 0.56, 0.9))
        text.axis("off")
        text.set(xlim=(0, 1), ylim=(12, 0))
        text.text(0, 0.3, name, fontsize=11, fontweight="bold", va="center")
        text.text(0, 1.1, f"says: {example.functions[0].summary[:86]}", fontsize=9.5, color=GREY, va="center")
        top = int(points.argmax())
        sentences = [vocabulary.decode(tokens) for tokens in lists.tokens[0].tolist()]
        text.text(0.05, 1.95, "BLEU", fontsize=9, color=GREY, ha="right", va="center")
        for row, sentence in enumerate(sentences):
            colour = BLUE if row == top else BLACK
            text.text(0.05, row + 2.8, f"{points[row]:.0f}", fontsize=10, color=colour, ha="right", va="center")
            text.text(0.07, row + 2.8, sentence, fontsize=10 if len(sentence) < 66 else 8.5, color=colour, va="center")
        return (
            f"strength {strength:g}: at {nearest:g} the best of ten has {curve[nearest]['oracle_10']:.1f} points and distinct-3 is "
            f"{curve[nearest]['distinct_3']:.2f}. {name}: {'; '.join(sentences)}. The best has {points[top]:.0f} points."
        )

    def on_pointer(event: PointerEvent) -> None:
        control = made.controls["strength"]
        if event.kind in ("press", "drag") and event.axes in (0, 1):
            control.value = min(max(round(event.x, 1), 0.0), 5.0)
        elif event.kind == "key" and event.key in ("ArrowLeft", "ArrowRight"):
            control.value = min(max(round(control.value + (0.1 if event.key == "ArrowRight" else -0.1), 1), 0.0), 5.0)

    controls = {
        "strength": slider("strength λ", 0.8, 0.0, 5.0, 0.1),
        "name": menu("name", list(shown), SECOND_NAME if SECOND_NAME in shown else None),
    }
    presets = {"no penalty": {"strength": 0.0}, "the paper's range": {"strength": 0.5}, "too strong": {"strength": 5.0}}
    title = "What the strength buys: drag the vermilion line"
    made = Explorer(paint, controls, title=title, figsize=(10.0, 4.6), seed=seed, on_pointer=on_pointer, presets=presets)
    return made


def ten_sentences(model: Describer, example: Examples, strength: float) -> tuple[Hypotheses, torch.Tensor]:
    """The list of ten for one name and the points of each member: (10,)."""
    with torch.no_grad():
        state = model.read(example.names, example.name_lengths)
    lists = diverse_beam_search(model.step, state, width=10, groups=10, strength=strength, **LIMITS).ranked()
    lengths = (lists.tokens != END).long().cumprod(2).sum(2)  # words before the end token
    return lists, bleu(lists.tokens, lengths, example.sentences, example.lengths)[0]
