"""Does one pass over all candidates choose as well as a cross-encoder, where poly- and bi-encoder cannot?

The task is that of :mod:`mtlearn.pairs.uni_encoder.world`: which candidate agrees with the facts of the context. All arms are one encoder with the
same starting weights, trained on the same draws; they differ in the mask, in the positions, or in how the pool is laid out. Since poly- and
bi-encoder learn more slowly, they are trained a second time with four times the steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import AdamW

from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import History, fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.pairs.uni_encoder import selection
from mtlearn.pairs.uni_encoder.method import UniEncoder, each_alone, in_batch, pool_loss, training_loss
from mtlearn.pairs.uni_encoder.selection import SelectionSettings
from mtlearn.pairs.uni_encoder.world import FIRST, MASK, SIZE, draw, fact_body

Scorer = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class UniSettings(Settings):
    """Settings of a run.

    Attributes:
        width, heads, layers, hidden: of the encoder.
        pool: C candidates.
        steps, batch, rate, warmup: of AdamW, with a cosine after the warm-up.
        longer: the control's steps over ``steps``.
        easy: share of the wrong candidates in training with a random value.
        test: test contexts.
        shuffles: random orders of each pool, for the spread of a score.
        cranfield: response selection on published texts as well; None leaves it out.
    """

    width: int = 64
    heads: int = 2
    layers: int = 2
    hidden: int = 128
    pool: int = 8
    steps: int = 300
    batch: int = 16
    rate: float = 3e-3
    warmup: int = 50
    longer: int = 4
    easy: float = 0.5
    test: int = 1000
    shuffles: int = 20
    cranfield: SelectionSettings | None = None


@dataclass(frozen=True)
class Way:
    """One way to score a pool.

    Attributes:
        attention, positions, codes: of :class:`UniEncoder`.
        alone: every candidate in a sequence of its own.
        hidden: guess hidden words as well.
        in_batch: trained on the right replies of the batch in place of the drawn pool.
    """

    attention: str = "arrow"
    positions: str = "repeated"
    codes: int = 16
    alone: bool = False
    hidden: bool = False
    in_batch: bool = False


ARROW, CROSS, BI, POLY = Way(), Way("square", alone=True), Way("diagonal"), Way("light arrow", codes=4)
WAYS = {
    "arrow": ARROW,
    "strict": Way("strict"),
    "square": Way("square"),
    "arrow, running positions": Way(positions="running"),
    "arrow, hidden words": Way(hidden=True),
    "arrow, in-batch negatives": Way(in_batch=True),
    "cross": CROSS,
    "poly-4": POLY,
    "poly-16": Way("light arrow"),
    "bi": BI,
}
LONGER = {f"{name}, four times the steps": WAYS[name] for name in ("poly-4", "bi")}


def build(settings: UniSettings, way: Way, seed: int) -> UniEncoder:
    """An untrained model; the encoder's first weights follow from the seed alone."""
    with seeded(seed):
        body = fact_body(settings.width, settings.heads, settings.layers, settings.hidden, longest=16 + 4 * max(settings.pool, settings.batch))
        return UniEncoder(
            body,
            way.attention,  # type: ignore[arg-type]
            positions=way.positions,  # type: ignore[arg-type]
            codes=way.codes,
            words=SIZE if way.hidden else None,
        )


def scorer(model: UniEncoder, way: Way) -> Scorer:
    """How the way scores contexts (B, n) with candidates (B, C, m)."""
    return (lambda context, candidates: each_alone(model, context, candidates)) if way.alone else model


def train(
    settings: UniSettings, way: Way, seed: int, *, facts: int, parts: int = 1, steps: int | None = None, progress: str | None = None
) -> tuple[UniEncoder, History]:
    """Train on draws that are the same for every way."""
    model = build(settings, way, seed)
    scores = scorer(model, way)
    draws, hides = stream(seed, "uni_encoder", "train", facts, parts), stream(seed, "uni_encoder", "hide")

    def loss_at(step: int) -> Tensor:
        context, candidates, label = draw(settings.batch, facts, settings.pool, parts=parts, easy=settings.easy, generator=draws)
        if way.in_batch:
            candidates, label = in_batch(candidates[torch.arange(len(label)), label])
        if way.hidden:
            return training_loss(model, context, candidates, label, mask=MASK, words=(FIRST, SIZE), generator=hides)
        return pool_loss(scores(context, candidates), label)

    optimizer = AdamW(model.parameters(), lr=settings.rate, fused=True)
    steps = settings.steps if steps is None else steps
    history = fit(model, loss_at, steps=steps, optimizer=optimizer, schedule="cosine", warmup=settings.warmup, clip=1.0, progress=progress)
    return model.eval(), history


@torch.no_grad()
def recall(settings: UniSettings, scores: Scorer, seed: int, *, facts: int, parts: int = 1) -> float:
    """R_C@1 on test pools in which every wrong candidate is a hard one."""
    context, candidates, label = draw(settings.test, facts, settings.pool, parts=parts, generator=stream(seed, "uni_encoder", "test", facts, parts))
    return (scores(context, candidates).argmax(1) == label).float().mean().item()


@torch.no_grad()
def shuffle_spread(settings: UniSettings, scores: Scorer, seed: int, *, facts: int, parts: int = 1) -> float:
    """Standard deviation of a candidate's logit over random orders of its pool, over that of all logits."""
    draws = stream(seed, "uni_encoder", "shuffle")
    context, candidates, _ = draw(min(settings.test, 200), facts, settings.pool, parts=parts, generator=draws)
    found = []
    for _ in range(settings.shuffles):
        order = torch.rand(candidates.shape[:2], generator=draws).argsort(1)
        logits = scores(context, candidates.gather(1, order[..., None].expand_as(candidates)))
        found.append(torch.empty_like(logits).scatter_(1, order, logits))
    every = torch.stack(found)
    return (every.std(0).mean() / every[0].std()).item()


@torch.no_grad()
def replaced_change(settings: UniSettings, scores: Scorer, seed: int, *, facts: int, parts: int = 1) -> float:
    """Mean change of a candidate's logit when the last candidate is replaced, over the standard deviation of all logits."""
    draws = stream(seed, "uni_encoder", "replace")
    context, candidates, _ = draw(min(settings.test, 200), facts, settings.pool, parts=parts, generator=draws)
    other = candidates.clone()
    other[:, -1] = draw(len(context), facts, 1, parts=parts, generator=draws)[1][:, 0]  # facts of another context
    before, after = scores(context, candidates), scores(context, other)
    return ((after - before)[:, :-1].abs().mean() / before.std()).item()


def run(settings: UniSettings, seed: int, device: torch.device) -> Arms:
    """All arms of one seed; the small models stay on the processor, the published texts go to the device."""
    arms: Arms = {}
    for name, way in WAYS.items():
        model, _ = train(settings, way, seed, facts=6)
        scores = scorer(model, way)
        arms[name] = {"recall": recall(settings, scores, seed, facts=6)}
        if name in ("arrow", "strict", "square", "arrow, running positions"):
            arms[name]["shuffle"] = shuffle_spread(settings, scores, seed, facts=6)
            arms[name]["replaced"] = replaced_change(settings, scores, seed, facts=6)
    for name in ("arrow", "poly-4", "bi"):
        model, _ = train(settings, WAYS[name], seed, facts=2)
        arms[name]["recall_2"] = recall(settings, scorer(model, WAYS[name]), seed, facts=2)
    for name in ("arrow", "strict", "square", "cross"):
        model, _ = train(settings, WAYS[name], seed, facts=6, parts=2)
        scores = scorer(model, WAYS[name])
        arms[name]["recall_pair"] = recall(settings, scores, seed, facts=6, parts=2)
        arms[name]["replaced_pair"] = replaced_change(settings, scores, seed, facts=6, parts=2)
    for name, way in LONGER.items():
        model, _ = train(settings, way, seed, facts=6, steps=settings.longer * settings.steps)
        arms[name] = {"recall": recall(settings, scorer(model, way), seed, facts=6)}
    model, _ = train(settings, BI, seed, facts=2, steps=settings.longer * settings.steps)
    arms["bi, four times the steps"]["recall_2"] = recall(settings, scorer(model, BI), seed, facts=2)
    if settings.cranfield is not None:
        for name, metrics in selection.cranfield(settings.cranfield, seed, device).items():
            arms.setdefault(name, {}).update(metrics)
    return arms


SCALES = {
    "quick": UniSettings(seeds=1, width=16, hidden=16, layers=2, steps=8, batch=8, warmup=2, longer=2, test=40, shuffles=3),
    "laptop": UniSettings(seeds=3),
    "paper": UniSettings(seeds=5, width=128, heads=4, hidden=512, steps=2000, cranfield=SelectionSettings()),
}

CLAIMS = (
    Claim("arrow", "cross", "recall", -0.03, says="one pass chooses as well as a cross-encoder, within 0.03 (six facts)"),
    Claim("arrow", "poly-4", "recall", 0.1, says="better than a poly-encoder with 4 codes"),
    Claim("arrow", "poly-16", "recall", 0.1, says="better than a poly-encoder with 16 codes"),
    Claim("arrow", "bi", "recall", 0.1, says="better than a bi-encoder"),
    Claim("poly-4", "bi", "recall", 0.05, says="a poly-encoder is better than a bi-encoder"),
    Claim("arrow", "poly-4, four times the steps", "recall", 0.1, says="still better than a poly-encoder with four times its steps"),
    Claim("arrow", "bi, four times the steps", "recall", 0.1, says="still better than a bi-encoder with four times its steps"),
    Claim("bi, four times the steps", "arrow", "recall_2", -0.1, says="with two facts one vector is enough: the bi-encoder comes within 0.1"),
    Claim("arrow", "arrow, running positions", "recall", says="the same positions for all candidates choose better than running ones"),
    Claim("arrow", "arrow, running positions", "shuffle", higher_is_better=False, says="with the same positions a shuffle moves a score less"),
    Claim("strict", "arrow", "replaced", higher_is_better=False, says="the strict mask hears less of the other candidates than the arrow"),
    Claim("arrow", "square", "replaced", higher_is_better=False, says="the arrow hears less of them than the square"),
    Claim("arrow", "square", "recall", says="without the mask the candidates are confused (one fact a candidate)"),
    Claim("arrow", "square", "recall_pair", says="without the mask they are confused (two facts a candidate)"),
    Claim("arrow", "cross", "recall_pair", -0.03, says="as good as a cross-encoder, within 0.03 (two facts a candidate)"),
    Claim("arrow, hidden words", "arrow", "recall", says="guessing hidden words as well chooses better"),
)

UNITS = {
    "recall": "share of contexts with the true candidate first, of 8 (six facts)",
    "recall_2": "share of contexts with the true candidate first, of 8 (two facts)",
    "recall_pair": "share of contexts with the true candidate first, of 8 (two facts a candidate)",
    "shuffle": "spread of a logit over orders of the pool, in standard deviations of all logits",
    "replaced": "change of a logit when another candidate is replaced, in standard deviations of all logits",
    "replaced_pair": "the same, two facts a candidate",
    "cranfield_recall": "share of titles with the right abstract first of the pool",
    "cranfield_mrr": "mean reciprocal rank of the first relevant abstract for a question",
    "cranfield_map": "mean average precision of a question's pool",
    "cranfield_first": "share of questions with a relevant abstract first",
}

EXPERIMENT = Experiment(
    paper="uni_encoder",
    question="Does one pass over all candidates choose as well as a cross-encoder, where poly- and bi-encoder cannot?",
    scales=SCALES,
    claims=CLAIMS,
    run=run,
    units=UNITS,
)


# ------------------------------------------------------------------------------------------------------------------- models that ship


@dataclass(frozen=True)
class ShownSettings:
    """Settings of the models that the explorer shows."""

    seed: int = 0
    width: int = 32
    heads: int = 2
    layers: int = 2
    hidden: int = 64
    steps: int = 400
    facts: int = 6


SHOWN = {"arrow": ARROW, "strict": WAYS["strict"], "square": WAYS["square"], "cross": CROSS, "light arrow": POLY, "diagonal": BI}


def _small(settings: ShownSettings) -> UniSettings:
    return UniSettings(seeds=1, width=settings.width, heads=settings.heads, layers=settings.layers, hidden=settings.hidden, steps=settings.steps)


def build_shown(settings: ShownSettings) -> torch.nn.ModuleDict:
    """One untrained model a way, by its name."""
    return torch.nn.ModuleDict({name: build(_small(settings), way, settings.seed) for name, way in SHOWN.items()})


def train_shown(settings: ShownSettings, progress: str | None) -> torch.nn.ModuleDict:
    """All of them trained on the same draws."""
    return torch.nn.ModuleDict(
        {
            name: train(_small(settings), way, settings.seed, facts=settings.facts, progress=None if progress is None else f"{progress}, {name}")[0]
            for name, way in SHOWN.items()
        }
    )


def measure_shown(models: torch.nn.Module) -> dict[str, float]:
    """R8@1 of each."""
    settings = ShownSettings()
    return {
        name: round(recall(_small(settings), scorer(models[name], way), settings.seed, facts=settings.facts), 3)  # type: ignore[index]
        for name, way in SHOWN.items()
    }


FACTS = Checkpoint("uni_encoder-facts", ShownSettings(), build_shown, train_shown, measure_shown)
TEXTS = {name: selection.checkpoint(name) for name in selection.SHOWN}
CHECKPOINTS = (FACTS, *TEXTS.values())
