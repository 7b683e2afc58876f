"""What an experiment is: a question, arms that answer it on the same data, and claims that compare them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

Scale = Literal["quick", "laptop", "paper"]
SCALES: tuple[Scale, ...] = ("quick", "laptop", "paper")
Arms = dict[str, dict[str, float]]  # {arm: {metric: value}}


@dataclass(frozen=True)
class Settings:
    """Base of every experiment's settings: plain numbers and strings, so that they can be stored and compared.

    Attributes:
        seeds: how many seeds the scale has.
    """

    seeds: int

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON types, without the number of seeds: runs of the same settings can be pooled."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples, at any depth, as the lists that are read back
        del values["seeds"]
        return values


@dataclass(frozen=True)
class Claim:
    """``better`` is above ``worse`` on ``metric`` by more than ``margin`` (below, when lower is better).

    ``worse`` is None where the claim is about one arm alone: then ``better`` is compared with 0, and the margin is the threshold.

    Attributes:
        better, worse: names of arms.
        metric: a metric that both arms have.
        margin: smallest difference that counts, in the metric's unit.
        higher_is_better: whether the difference is better - worse or worse - better; where ``worse`` is None and lower is better, "at most
            0.1" is the margin -0.1.
        says: the claim as a sentence for people.
    """

    better: str
    worse: str | None
    metric: str
    margin: float = 0.0
    higher_is_better: bool = True
    says: str = ""


@dataclass(frozen=True)
class Experiment:
    """A paper's claim as something to run.

    Attributes:
        paper: slug of the catalogue.
        question: one sentence, for people.
        scales: settings of ``quick`` (seconds), ``laptop`` (the claim) and ``paper`` (GPU, real data).
        claims: the leading claim first.
        run: settings, seed and device to ``{arm: {metric: value}}``; one call trains and measures every arm of one seed, on the same
            data and from the same starting weights, so the arms are paired.
        units: metric to its unit, as written on an axis.
        pairs: what is drawn anew for each pair of a claim ("seeds", or "test sets of one shipped model").
    """

    paper: str
    question: str
    scales: Mapping[str, Settings]
    claims: tuple[Claim, ...]
    run: Callable[[Any, int, torch.device], Arms]
    units: Mapping[str, str]
    pairs: str = "seeds"
