"""Does one encoder that reads image, text and instruction together rank better than the sum of an image's and a text's vectors?

All arms of a seed see the same batches of the same seven tasks, and start from the same pretrained model where they start from one.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn

from mtlearn.lab.checkpoints import Checkpoint, load
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.retrieval.vlm2vec.method import (
    Fusion,
    Inputs,
    RankingTask,
    VisionLanguageModel,
    adapt,
    contrastive_loss,
    evaluate,
    joined,
    means,
    next_token_loss,
    sub_batches,
    written,
)
from mtlearn.retrieval.vlm2vec.worlds import (
    IMAGE_SHAPE,
    KINDS,
    TRAINED,
    VOCABULARY,
    Batch,
    Drawings,
    chance,
    mixed,
    on_device,
    pretraining_drawings,
    ranking_task,
    split,
    without_instruction,
    writing,
)

PATCH = 4  # pixels a side


@dataclass(frozen=True)
class BackboneSettings:
    """Generative pretraining.

    Attributes:
        steps, batch, rate: of Adam; the rate falls linearly to 0.
        width, layers: of the model.
        seed: of weights and draws.
    """

    steps: int = 400
    batch: int = 64
    rate: float = 3e-3
    width: int = 64
    layers: int = 2
    seed: int = 0


@dataclass(frozen=True)
class VLM2VecSettings(Settings):
    """Settings of a run.

    Attributes:
        steps, rate, warmup, clip: of contrastive training by Adam, with a rate that falls linearly to 0.
        batch, sub: rows of a batch, and of each sub-batch of one task.
        temperature: of the loss.
        rank: of low-rank adapters, which alone are trained then; 0 trains all weights.
        queries: of each task's test.
        shipped: start from the shipped backbone; otherwise one is pretrained for each seed, by ``backbone``.
        backbone: the pretraining, and the shape of the model.
    """

    steps: int = 700
    rate: float = 2e-3
    warmup: int = 20
    clip: float = 1.0
    batch: int = 96
    sub: int = 32
    temperature: float = 0.05
    rank: int = 0
    queries: int = 200
    shipped: bool = True
    backbone: BackboneSettings = field(default_factory=BackboneSettings)


def build_backbone(settings: BackboneSettings) -> VisionLanguageModel:
    """An untrained model."""
    return VisionLanguageModel(len(VOCABULARY), IMAGE_SHAPE, PATCH, width=settings.width, layers=settings.layers)


def train_backbone(settings: BackboneSettings, progress: str | None = None, *, device: torch.device | str = "cpu") -> VisionLanguageModel:
    """Pretrain a model to write answers about the 700 images of the pretraining."""
    with seeded(settings.seed):
        model = build_backbone(settings).to(device)
    drawings, _ = pretraining_drawings()
    draws = stream(settings.seed, "vlm2vec", "pretraining")

    def loss_at(step: int) -> Tensor:
        inputs, answer = writing(settings.batch, drawings, generator=draws)
        return next_token_loss(model, inputs.to(torch.device(device)), answer.to(device))

    optimizer = torch.optim.Adam(model.parameters(), lr=settings.rate)
    fit(model, loss_at, steps=settings.steps, optimizer=optimizer, schedule="linear", clip=1.0, progress=progress)
    return model.eval()


@torch.no_grad()
def measure_backbone(model: nn.Module) -> dict[str, float]:
    """On 800 rows of digits that the pretraining never saw: loss, and the share of words that are right (each after the right ones before it)."""
    _, others = pretraining_drawings()
    inputs, answer = writing(800, others, generator=stream(0, "vlm2vec", "held out"))
    scores, wanted = written(cast(VisionLanguageModel, model), inputs, answer)
    loss = torch.nn.functional.cross_entropy(scores, wanted).item()
    return {"loss": round(loss, 4), "right words": round((scores.argmax(1) == wanted).double().mean().item(), 4)}


BACKBONE = Checkpoint("vlm2vec-backbone", BackboneSettings(), build_backbone, train_backbone, measure_backbone)

# ------------------------------------------------------------------------------------------------------------------ contrastive training

Told = Literal["instruction", "content"]


def train(
    model: VisionLanguageModel,
    drawings: Drawings,
    settings: VLM2VecSettings,
    seed: int,
    *,
    fusion: bool = False,
    told: Told = "instruction",
    names: Sequence[str] = TRAINED,
    progress: str | None = None,
) -> nn.Module:
    """Train a copy of a model as an encoder.

    Args:
        model: where to start; it is left as it is, and says on which device.
        drawings: of digits for training.
        settings: of training.
        seed: of the draws; the same for every arm.
        fusion: image and text apart, and their sum.
        told: whether queries have their instruction, or are content alone.
        names: tasks to train on.
        progress: label of a progress bar.
    """
    device = model.word.weight.device
    model = deepcopy(model).requires_grad_(True)
    if settings.rank:
        with seeded(seed):
            adapt(model, settings.rank)
    encoder: nn.Module = Fusion(model) if fusion else model
    draws = stream(seed, "vlm2vec", "training")

    def loss_at(step: int) -> Tensor:
        batch = draw_batch(drawings, settings, names=names, told=told, generator=draws).to(device)
        return contrastive_loss(encoder(batch.queries), encoder(batch.targets), temperature=settings.temperature, keys=batch.keys)

    optimizer = torch.optim.Adam([p for p in encoder.parameters() if p.requires_grad], lr=settings.rate)
    warmup = min(settings.warmup, settings.steps)
    fit(encoder, loss_at, steps=settings.steps, optimizer=optimizer, schedule="linear", warmup=warmup, clip=settings.clip, progress=progress)
    return encoder.eval()


def draw_batch(
    drawings: Drawings, settings: VLM2VecSettings, *, names: Sequence[str] = TRAINED, told: Told = "instruction", generator: torch.Generator
) -> Batch:
    """One batch of sub-batches of one task each."""
    chosen = [names[int(number)] for number in sub_batches(len(names), settings.batch, settings.sub, generator=generator)]
    if told == "instruction":
        return mixed(chosen, settings.sub, drawings, generator=generator)
    parts = [mixed([name], settings.sub, drawings, generator=generator) for name in chosen]
    bare = [Batch(without_instruction(name, part.queries), part.targets, part.keys) for name, part in zip(chosen, parts, strict=True)]
    queries, targets = joined([part.queries for part in bare]), joined([part.targets for part in bare])
    return Batch(queries, targets, torch.cat([part.keys for part in bare]))


def ranking_tasks(drawings: Drawings, settings: VLM2VecSettings, seed: int, device: torch.device) -> list[RankingTask]:
    """All ten tasks."""
    draws = stream(seed, "vlm2vec", "tests")
    return [on_device(ranking_task(name, settings.queries, drawings, generator=draws), device) for name in KINDS]


def metrics_of(precision: Mapping[str, float], tasks: Sequence[RankingTask]) -> dict[str, float]:
    """Precision@1 of the tasks, and the means."""
    found = {**precision, **{name.replace(" ", "_"): value for name, value in means(precision, tasks).items()}}
    found["place"] = (precision["left"] + precision["right"]) / 2
    found["told"] = (precision["left"] + precision["right"] + precision["ground"]) / 3
    return found


def run(settings: VLM2VecSettings, seed: int, device: torch.device) -> Arms:
    """All arms of one seed."""
    drawings, others = split(seed)
    tasks = ranking_tasks(others, settings, seed, device)
    if settings.shipped:
        backbone = cast(VisionLanguageModel, load(BACKBONE, device=device))
    else:
        backbone = train_backbone(BackboneSettings(**{**vars(settings.backbone), "seed": seed}), device=device)
    with seeded(seed):
        scratch = build_backbone(settings.backbone).to(device)
    bare = [RankingTask(t.name, t.meta, t.trained, without_instruction(t.name, t.queries), t.candidates, t.right, t.offered) for t in tasks]
    arms: Arms = {"chance": metrics_of({task.name: chance(task) for task in tasks}, tasks)}

    def measured(encoder: Callable[[Inputs], Tensor], on: Sequence[RankingTask] = tasks) -> dict[str, float]:
        return metrics_of(evaluate(encoder, on), on)

    arms["VLM2Vec"] = measured(train(backbone, drawings, settings, seed))
    arms["fusion"] = measured(train(backbone, drawings, settings, seed, fusion=True))
    arms["no instruction"] = measured(train(backbone, drawings, settings, seed, told="content"), bare)
    arms["from scratch"] = measured(train(scratch, drawings, settings, seed))
    arms["no contrastive training"] = measured(backbone)
    return arms


SCALES: Mapping[str, VLM2VecSettings] = {
    "quick": VLM2VecSettings(seeds=1, steps=6, warmup=2, batch=24, sub=8, queries=40),
    "laptop": VLM2VecSettings(seeds=3),
    "paper": VLM2VecSettings(
        seeds=3,
        steps=4000,
        rate=5e-4,
        warmup=200,
        batch=1008,
        sub=144,
        temperature=0.02,
        queries=1000,
        shipped=False,
        backbone=BackboneSettings(steps=8000, batch=512, rate=5e-4, width=256, layers=6),
    ),
}


def _over_fusion(metric: str, margin: float, says: str) -> Claim:
    return Claim("VLM2Vec", "fusion", metric, margin, says=says)


CLAIMS = (
    _over_fusion("place", 0.2, "image and question read together over the sum of their vectors: which digit is left, which right"),
    _over_fusion("ground", 0.1, "over the sum: cropping the framed digit"),
    _over_fusion("IND", 0.05, "over the sum: mean of the seven trained tasks"),
    _over_fusion("cir", 0.05, "over the sum: the image with one half inverted"),
    _over_fusion("large", 0.05, "over the sum: the larger digit, which the image alone can tell"),
    _over_fusion("i2t", 0.05, "over the sum: the description of an image"),
    _over_fusion("t2i", 0.05, "over the sum: the image of a description"),
    Claim("VLM2Vec", "no instruction", "told", 0.2, says="told the task over told nothing: left, right and cropping"),
    Claim("VLM2Vec", "from scratch", "IND", 0.1, says="from a generatively pretrained model over random weights, at equal contrastive steps"),
    Claim("VLM2Vec", "no contrastive training", "IND", 0.3, says="trained by contrast over the pretrained model as it is"),
    _over_fusion("OOD", 0.0, "over the sum: mean of three tasks that were never trained"),
)

UNITS = {
    **dict.fromkeys(KINDS, "precision at 1"),
    "IND": "precision at 1, mean of seven trained tasks",
    "OOD": "precision at 1, mean of three unseen tasks",
    **{f"{side}_{meta}": f"precision at 1, {side} {meta}" for side in ("IND", "OOD") for meta in ("classification", "vqa", "retrieval", "grounding")},
    "place": "precision at 1, mean of left and right",
    "told": "precision at 1, mean of left, right, ground",
}

EXPERIMENT = Experiment(
    paper="vlm2vec",
    question="Does an encoder that reads image, text and instruction together rank better than the sum of an image's and a text's vectors?",
    scales=SCALES,
    claims=CLAIMS,
    run=run,
    units=UNITS,
    pairs="seeds: splits of the digits and training runs, all from one shipped backbone",
)

# ------------------------------------------------------------------------------------------------------------- what the explorer shows


@dataclass(frozen=True)
class EncoderSettings:
    """What the shipped encoders depend on.

    Attributes:
        settings: of training.
        seed: of everything.
    """

    settings: VLM2VecSettings = field(default_factory=lambda: VLM2VecSettings(seeds=1))
    seed: int = 0


def build_encoders(shown: EncoderSettings) -> nn.Module:
    """The encoder, and the one whose vectors are added."""
    return nn.ModuleDict({"VLM2Vec": build_backbone(shown.settings.backbone), "fusion": Fusion(build_backbone(shown.settings.backbone))})


def train_encoders(shown: EncoderSettings, progress: str | None) -> nn.Module:
    """Train both from the shipped backbone."""
    backbone, (drawings, _) = cast(VisionLanguageModel, load(BACKBONE)), split(shown.seed)
    options = {"settings": shown.settings, "seed": shown.seed, "progress": progress}
    return nn.ModuleDict({name: train(backbone, drawings, fusion=name == "fusion", **options) for name in ("VLM2Vec", "fusion")})  # type: ignore[arg-type]


def measure_encoders(models: nn.Module) -> dict[str, float]:
    """Means of both on test digits."""
    assert isinstance(models, nn.ModuleDict)
    shown = ENCODERS.settings
    tasks = ranking_tasks(split(shown.seed)[1], shown.settings, shown.seed, torch.device("cpu"))
    return {f"{name} {mean}": round(value, 4) for name in models for mean, value in means(evaluate(models[name], tasks), tasks).items()}


ENCODERS = Checkpoint("vlm2vec-encoder", EncoderSettings(), build_encoders, train_encoders, measure_encoders)
CHECKPOINTS = (BACKBONE, ENCODERS)
