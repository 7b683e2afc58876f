"""Do a bi- and a cross-encoder that label pairs for each other both get better, without a gold label?

Every measure is taken twice: on the pairs that were distilled on (transductive, as in the paper) and on fresh ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import stream
from mtlearn.pairs.labelled import Labelled
from mtlearn.pairs.trans_encoder.method import (
    Family,
    HalfCycle,
    Init,
    Train,
    best,
    bi_labels,
    bi_to_cross_loss,
    cross_labels,
    cross_to_bi_loss,
    distil,
)
from mtlearn.pairs.trans_encoder.worlds import World, concept_world, published_world, see_also_world

Loss = Callable[[Tensor, Tensor], Tensor]
KINDS: tuple[Literal["cross", "bi"], ...] = ("cross", "bi")


@dataclass(frozen=True)
class Recipe:
    """Training of the two kinds of model.

    Attributes:
        bi_steps, bi_rate, bi_batch: Adam.
        cross_steps, cross_rate, cross_batch: AdamW.
        cycles: of every distillation.
    """

    bi_steps: int = 240
    bi_rate: float = 9e-3
    bi_batch: int = 128
    cross_steps: int = 560
    cross_rate: float = 2e-3
    cross_batch: int = 64
    cycles: int = 3


@dataclass(frozen=True)
class TransEncoderSettings(Settings):
    """Settings of a run.

    Attributes:
        recipe: of training.
        pairs, fresh: unlabelled pairs and test pairs of concepts.
        many: pairs of the arm that has more of them, at the same number of steps.
        early: steps of the bi-encoder of the arm that stops early.
        noise, dim: of the concept words' vectors.
        scale: length of word vectors, the same for both kinds of model.
        hidden, features: of the cross-encoder.
        links, fresh_links: pairs of the See Also world; 0 leaves it out.
        link_dim: of its word vectors.
        link_steps: of its cross-encoders.
        published: sources of published pairs in the place of concepts; none for concepts.
        encoders: of the two families on published pairs.
    """

    recipe: Recipe = field(default_factory=Recipe)
    pairs: int = 3000
    fresh: int = 1000
    many: int = 9000
    early: int = 36
    noise: float = 0.7
    dim: int = 24
    scale: float = 3.0
    hidden: int = 64
    features: int = 24
    links: int = 2000
    fresh_links: int = 600
    link_dim: int = 32
    link_steps: int = 300
    published: tuple[str, ...] = ()
    encoders: tuple[str, str] = ("", "")


def run(settings: TransEncoderSettings, seed: int, device: torch.device) -> Arms:
    """All arms of one seed."""
    if settings.published:
        world = _published(settings, seed).to(device)
        return study(world, settings.recipe, seed, distilled(world, settings.recipe, seed))
    make = concepts(settings, seed)
    world = make(settings.pairs).to(device)
    alone = distilled(world, settings.recipe, seed)
    arms = study(world, settings.recipe, seed, alone)
    arms |= studies_beside(world, make(settings.many).to(device), settings, seed, alone)
    if settings.links:
        recipe = replace(settings.recipe, cross_steps=settings.link_steps)
        world = see_also(settings, seed).to(device)
        for arm, metrics in study(world, recipe, seed, distilled(world, recipe, seed)).items():
            arms[arm] |= {f"{metric}_links": value for metric, value in metrics.items()}
    return arms


def _models(settings: TransEncoderSettings) -> dict[str, Any]:
    """Sizes of the models of every world."""
    return {"scale": settings.scale, "hidden": settings.hidden, "features": settings.features}


def concepts(settings: TransEncoderSettings, seed: int) -> Callable[[int], World]:
    """Number of unlabelled pairs to the world of concepts."""
    words = {"noise": settings.noise, "dim": settings.dim, **_models(settings)}
    return lambda pairs: concept_world(seed, pairs=pairs, fresh=settings.fresh, **words)


def see_also(settings: TransEncoderSettings, seed: int) -> World:
    """The world of See Also links."""
    return see_also_world(seed, pairs=settings.links, fresh=settings.fresh_links, dim=settings.link_dim, **_models(settings))


def _published(settings: TransEncoderSettings, seed: int) -> World:
    given = {"encoders": settings.encoders, "sources": settings.published, "dim": settings.dim, **_models(settings)}
    return published_world(seed, pairs=settings.pairs, fresh=settings.fresh, **given)


def trainer(kind: str, loss: Loss, recipe: Recipe, seed: int, *, steps: int | None = None) -> Train:
    """Training of one kind of model ("bi" or "cross"); the same batches in every cycle and for every family."""
    bi = kind == "bi"
    steps = (recipe.bi_steps if bi else recipe.cross_steps) if steps is None else steps
    batch = recipe.bi_batch if bi else recipe.cross_batch

    def train(model: nn.Module, first: Tensor, second: Tensor, labels: Tensor) -> None:
        draws = stream(seed, "trans_encoder", "batches", kind)
        model.to(first.device)
        optimizer: torch.optim.Optimizer
        if bi:
            optimizer = torch.optim.Adam(model.parameters(), lr=recipe.bi_rate)
        else:
            optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.cross_rate, weight_decay=0.01)
        order = torch.cat([torch.randperm(len(labels), generator=draws) for _ in range(steps * batch // len(labels) + 1)])

        def loss_at(step: int) -> Tensor:
            rows = order[step * batch : (step + 1) * batch]
            return loss(model(first[rows], second[rows]), labels[rows])

        fit(model, loss_at, steps=steps, optimizer=optimizer, schedule="constant" if bi else "cosine", warmup=0 if bi else steps // 10, clip=5.0)
        model.eval()

    return train


def distilled(
    world: World,
    recipe: Recipe,
    seed: int,
    *,
    mutual: bool = False,
    init: Init = "fresh",
    cycles: int | None = None,
    cross_loss: Loss = bi_to_cross_loss,
    bi_loss: Loss = cross_to_bi_loss,
) -> list[HalfCycle]:
    """Every half-cycle of one distillation."""
    families: Sequence[Family] = world.families if mutual else world.families[:1]
    return list(
        distil(
            world.train.first,
            world.train.second,
            families,
            train_cross=trainer("cross", cross_loss, recipe, seed),
            train_bi=trainer("bi", bi_loss, recipe, seed),
            cycles=recipe.cycles if cycles is None else cycles,
            mutual=mutual,
            init=init,
        )
    )


def scores(models: Sequence[nn.Module], pairs: Labelled) -> Tensor:
    """Mean (n,) of the models' scores, each brought to mean 0 and standard deviation 1 so that all count alike."""
    label = bi_labels if hasattr(models[0], "embed") else cross_labels
    found = torch.stack([label(model, pairs.first, pairs.second) for model in models]).double()
    return ((found - found.mean(1, keepdim=True)) / found.std(1, keepdim=True).clamp(min=1e-12)).mean(0)


def agreement(score: Tensor, gold: Tensor, measure: str) -> float:
    """Spearman correlation with the gold, or the area under the curve of gold of at least a half."""
    if measure == "spearman":
        return float(spearmanr(score.cpu(), gold.cpu()).statistic)
    return float(roc_auc_score((gold >= 0.5).cpu(), score.cpu()))


def measured(models: Sequence[nn.Module], world: World) -> dict[str, float]:
    """The world's measure on fresh and on seen pairs, and the binary one on fresh pairs."""
    fresh, seen = scores(models, world.test), scores(models, world.train)
    found = {
        world.measure: agreement(fresh, world.test.labels, world.measure),
        f"{world.measure}_seen": agreement(seen, world.train.labels, world.measure),
    }
    if world.measure == "spearman":
        found["auc"] = agreement(fresh, world.test.labels, "auc")
    found["gap"] = found[f"{world.measure}_seen"] - found[world.measure]
    return found


def study(world: World, recipe: Recipe, seed: int, alone: Sequence[HalfCycle]) -> Arms:
    """Starts, self-distillation (``alone``) and mutual distillation, every cycle."""

    def on_development(model: nn.Module) -> float:
        return agreement(scores([model], world.development), world.development.labels, world.measure)

    both = distilled(world, recipe, seed, mutual=True)
    arms = {"start": measured(both[0].models[:1], world), "two starts": measured(both[0].models, world)}
    for name, halves in (("self", alone), ("mutual", both)):
        for half in halves[1:]:
            arms[f"{name} {half.kind} {half.cycle}"] = measured(half.models[:1], world)
        for kind in KINDS:
            arms[f"{name} {kind}, chosen"] = dict(arms[f"{name} {kind} {best(halves, kind, on_development).cycle}"])
    for half in both[-2:]:
        arms[f"two mutual {half.kind}s"] = measured(half.models, world)
    start, first, last = (arms[arm][world.measure] for arm in ("start", "self cross 1", f"self cross {recipe.cycles}"))
    return arms | {"first cycle": {"gain": first - start}, "later cycles": {"gain": last - first}}


def studies_beside(world: World, many: World, settings: TransEncoderSettings, seed: int, alone: Sequence[HalfCycle]) -> Arms:
    """What the method is without: other losses, weights that travel, an early stop, more pairs, no cross-encoder; and one with gold labels."""
    recipe = settings.recipe
    last = recipe.cycles
    swapped = distilled(world, recipe, seed, cross_loss=lambda z, y: F.mse_loss(z.sigmoid(), y), bi_loss=rescaled_cross_entropy)
    carried = distilled(world, recipe, seed, init="carry")
    more = distilled(many, recipe, seed, cycles=1)
    arms: Arms = {}
    for name, halves in (("swapped", swapped), ("carried", carried)):
        arms |= {f"{name} {half.kind} {last}": measured(half.models, world) for half in halves[-2:]}
    early, labels = world.families[0].bi(), alone[2].labels
    assert labels is not None
    trainer("bi", cross_to_bi_loss, recipe, seed, steps=settings.early)(early, world.train.first, world.train.second, labels[0])
    arms["early bi 1"] = measured([early], world)
    arms |= {f"many {half.kind} 1": measured(half.models, many) for half in more[1:]}
    own = world.families[0].bi()
    trainer("bi", cross_to_bi_loss, recipe, seed)(own, world.train.first, world.train.second, bi_labels(own, world.train.first, world.train.second))
    arms["bi to bi"] = measured([own], world)
    gold = world.families[0].cross()
    trainer("cross", bi_to_cross_loss, recipe, seed)(gold, world.train.first, world.train.second, world.train.labels)
    arms["cross from gold"] = measured([gold], world)
    return arms


def rescaled_cross_entropy(cosines: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the cosine brought to (0, 1), for the arm in which the two losses change places."""
    return F.binary_cross_entropy(((cosines + 1) / 2).clamp(1e-6, 1 - 1e-6), labels)


_FEW = Recipe(bi_steps=20, bi_batch=64, cross_steps=60, cross_batch=32)  # all cycles, for the claims name them
SCALES: Mapping[str, TransEncoderSettings] = {
    "quick": TransEncoderSettings(
        seeds=1, recipe=_FEW, pairs=600, fresh=300, many=900, early=10, links=200, fresh_links=200, link_dim=16, link_steps=10
    ),
    "laptop": TransEncoderSettings(seeds=5),
    "paper": TransEncoderSettings(
        seeds=5,
        recipe=Recipe(bi_steps=1500, bi_rate=1e-2, cross_steps=2500, cross_rate=1e-3),
        pairs=20_000,
        fresh=10_000,
        published=("sick", "sts"),
        encoders=("wordllama", "wordllama"),
        hidden=128,
        features=64,
        links=0,
    ),
}

CLAIMS = (
    Claim(
        "self cross 1", "start", "spearman", 0.02, says="the first cross-encoder is better than the bi-encoder that labelled for it, on fresh pairs"
    ),
    Claim("self bi 3", "start", "spearman_seen", 0.02, says="the bi-encoder gets better on the pairs that it was distilled on, the paper's setting"),
    Claim("self bi 3", "start", "spearman", 0.02, says="the bi-encoder gets better on fresh pairs"),
    Claim("mutual cross 3", "self cross 3", "spearman", 0.01, says="mutual distillation over self-distillation, cross-encoder"),
    Claim("mutual bi 3", "self bi 3", "spearman_seen", 0.01, says="mutual over self, bi-encoder on the distilled pairs"),
    Claim(
        "mutual cross 3", "two starts", "spearman", 0.02, says="one mutual cross-encoder over the average of the two starts: more than an ensemble"
    ),
    Claim("first cycle", "later cycles", "gain", says="the first cycle gains more than the later ones together"),
    Claim("self cross 3", "self cross 1", "spearman", says="later cycles add something"),
    Claim(
        "self cross 3",
        "swapped cross 3",
        "spearman",
        says="cross-entropy for the cross-encoder and squared error for the bi-encoder, not the reverse",
    ),
    Claim("self bi 3", "swapped bi 3", "spearman_seen", says="the same, bi-encoder on the distilled pairs"),
    Claim("self cross 3", "carried cross 3", "spearman", says="fresh models each cycle over weights that travel"),
    Claim("self bi 3", "carried bi 3", "spearman_seen", says="the same, bi-encoder on the distilled pairs"),
    Claim("self cross 3", "start", "auc", 0.02, says="binary pairs (half the concepts shared or more): cross-encoder over the start"),
    Claim(
        "many bi 1",
        "self bi 1",
        "gap",
        0.01,
        higher_is_better=False,
        says="three times the pairs at equal steps narrow the gap from distilled to fresh pairs",
    ),
    Claim("self cross 3", "start", "auc_links", 0.01, says="See Also links of real docstrings, fresh: cross-encoder over the start"),
    Claim("self bi 3", "start", "auc_seen_links", 0.01, says="the same links, distilled on: bi-encoder over the start"),
    Claim("mutual cross 3", "two starts", "auc_links", 0.01, says="the same links, fresh: mutual cross-encoder over the average of the starts"),
)

UNITS = {
    "spearman": "Spearman correlation with the gold score, fresh pairs",
    "spearman_seen": "Spearman correlation with the gold score, distilled pairs",
    "auc": "area under the ROC curve, fresh pairs",
    "auc_links": "area under the ROC curve, fresh See Also links",
    "auc_seen_links": "area under the ROC curve, distilled See Also links",
    "gap": "Spearman correlation, distilled less fresh pairs",
    "gap_links": "area under the ROC curve, distilled less fresh See Also links",
    "gain": "Spearman correlation",
    "gain_links": "area under the ROC curve",
}

EXPERIMENT = Experiment(
    paper="trans_encoder",
    question="Do a bi- and a cross-encoder that label pairs for each other both get better, without a gold label?",
    scales=SCALES,
    claims=CLAIMS,
    run=run,
    units=UNITS,
)


# what the explorer shows

SHOWN = 250  # pairs
MODES = ("self", "mutual")


@dataclass(frozen=True)
class LaneSettings:
    """What the explorer's scores depend on.

    Attributes:
        noises: of the pretrained word vectors.
        pairs: unlabelled pairs.
        fresh: pairs on which the correlations are taken; the first of them are shown.
        recipe: of training.
        seed: of everything.
    """

    noises: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7, 0.9, 1.2)
    pairs: int = 2000
    fresh: int = 800
    recipe: Recipe = field(default_factory=lambda: Recipe(bi_steps=160, cross_steps=320))
    seed: int = 0


class Lanes(nn.Module):
    """Scores of every model of self- and mutual distillation on fresh pairs, for each noise.

    Buffers: ``score`` (noises, modes, half-cycles, pairs shown), the ``spearman`` of each on all fresh pairs (noises, modes, half-cycles), and
    ``ensemble`` (noises,), that of the average of the two starts.
    """

    score: Tensor
    spearman: Tensor
    ensemble: Tensor

    def __init__(self, settings: LaneSettings) -> None:
        super().__init__()
        halves = 2 * settings.recipe.cycles + 1
        self.register_buffer("score", torch.zeros(len(settings.noises), len(MODES), halves, min(SHOWN, settings.fresh)))
        self.register_buffer("spearman", torch.zeros(len(settings.noises), len(MODES), halves))
        self.register_buffer("ensemble", torch.zeros(len(settings.noises)))


def lane_world(settings: LaneSettings, noise: float) -> World:
    """The explorer's pairs and models; the pairs are the same for every noise."""
    return concept_world(settings.seed, pairs=settings.pairs, fresh=settings.fresh, noise=noise, dim=24, scale=3.0, hidden=64, features=24)


def train_lanes(settings: LaneSettings, progress: str | None) -> Lanes:
    """Distil for every noise, alone and in pairs."""
    found = Lanes(settings)
    for i, noise in enumerate(settings.noises):
        world = lane_world(settings, noise)
        gold = world.test.labels
        for j, mode in enumerate(MODES):
            halves = distilled(world, settings.recipe, settings.seed, mutual=mode == "mutual")
            for k, half in enumerate(halves):
                label = bi_labels if half.kind == "bi" else cross_labels
                score = label(half.models[0], world.test.first, world.test.second)
                found.score[i, j, k] = score[: found.score.shape[-1]]
                found.spearman[i, j, k] = agreement(score, gold, "spearman")
            if mode == "mutual":
                found.ensemble[i] = agreement(scores(halves[0].models, world.test), gold, "spearman")
    return found


def measure_lanes(model: nn.Module) -> dict[str, float]:
    """Spearman correlation of the start and of the last models at noise 0.7."""
    spearman = model.get_buffer("spearman")[3]
    return {"start": float(spearman[0, 0]), "self cross 3": float(spearman[0, -2]), "mutual cross 3": float(spearman[1, -2])}


CHECKPOINTS = (Checkpoint("trans_encoder-lanes", LaneSettings(), Lanes, train_lanes, measure_lanes),)
