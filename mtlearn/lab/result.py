"""What a run found: every arm's values, and a verdict on every claim."""

import json
import math
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from scipy import stats

from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.paths import data

Word = Literal["holds", "fails", "undecided"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Verdict:
    """A claim and what the runs say of it.

    ``difference`` is the mean over the pairs, in the direction in which larger supports the claim, with its 95 % Student interval from
    ``low`` to ``high``; both are None where one pair alone gives no interval.
    """

    better: str
    worse: str | None
    metric: str
    margin: float
    difference: float
    low: float | None
    high: float | None
    verdict: Word
    says: str = ""


@dataclass(frozen=True)
class Spread:
    """The values of one metric of one arm, in the order of the seeds, with mean and sample standard deviation."""

    mean: float
    sd: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise ``values`` (one a seed)."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, tuple(values))


@dataclass(frozen=True)
class Result:
    """One experiment at one scale, over all its seeds: what ``mtlearn run --json`` prints and ``data/results`` holds."""

    paper: str
    scale: str
    seeds: int
    seconds: float
    arms: Mapping[str, Mapping[str, Spread]]
    claims: tuple[Verdict, ...]
    question: str = ""
    pairs: str = "seeds"
    units: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """The command that repeats it."""
        return f"mtlearn run {self.paper} --scale {self.scale} --seeds {self.seeds} --fresh"

    def to_json(self) -> str:
        """One JSON object, indented, with the keys in a fixed order."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """Read what :meth:`to_json` wrote; ValueError where it is something else."""
        try:
            fields = json.loads(text)
            fields["arms"] = {
                arm: {metric: Spread(s["mean"], s["sd"], tuple(s["values"])) for metric, s in metrics.items()}
                for arm, metrics in fields["arms"].items()
            }
            fields["claims"] = tuple(Verdict(**claim) for claim in fields["claims"])
            return cls(**fields)
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"this is not a result of `mtlearn run --json`: {type(error).__name__}: {error}") from error


def judge(claim: Claim, runs: Sequence[Arms]) -> Verdict:
    """Judge one claim by the paired differences of ``runs`` (one a seed).

    Raises:
        ValueError: no runs, or an arm or metric of the claim is not among what was measured.
    """
    if not runs:
        raise ValueError("a verdict needs at least one finished seed")
    differences = [_value(run, claim.better, claim.metric) - (0.0 if claim.worse is None else _value(run, claim.worse, claim.metric)) for run in runs]
    if not claim.higher_is_better:
        differences = [-difference for difference in differences]
    mean, low, high = student_interval(differences)
    word: Word = "undecided"
    if low is not None and high is not None:
        word = "holds" if low > claim.margin else "fails" if high < claim.margin else "undecided"
    return Verdict(claim.better, claim.worse, claim.metric, claim.margin, mean, low, high, word, claim.says)


def student_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean and 95 % Student confidence interval; no interval for a single value, a point where all values are equal."""
    mean = values[0] if min(values) == max(values) else statistics.fmean(values)
    if len(values) < 2:
        return mean, None, None
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _value(run: Arms, arm: str, metric: str) -> float:
    if arm not in run:
        raise ValueError(f"the claim names an arm {arm!r}; the run measured {', '.join(run)}")
    if metric not in run[arm]:
        raise ValueError(f"the claim names a metric {metric!r}; arm {arm!r} has {', '.join(run[arm])}")
    return run[arm][metric]


def check_arms(arms: Any) -> Arms:
    """Return what an experiment's ``run`` returned when it is {arm: {metric: finite number}}; else raise ValueError."""
    if not isinstance(arms, Mapping) or not arms:
        raise ValueError(f"run must return {{arm: {{metric: value}}}}, got {type(arms).__name__}")
    for arm, metrics in arms.items():
        if not isinstance(metrics, Mapping) or not metrics:
            raise ValueError(f"arm {arm!r} must be a mapping of metrics, got {type(metrics).__name__}")
        for metric, value in metrics.items():
            if not hasattr(value, "__float__") or not math.isfinite(value):
                raise ValueError(f"metric {metric!r} of arm {arm!r} must be a finite number, got {value!r}")
    return {arm: {metric: float(value) for metric, value in metrics.items()} for arm, metrics in arms.items()}


def summarise(experiment: Experiment, scale: str, settings: Settings, runs: Iterable[tuple[Arms, float]]) -> Result:
    """Put the finished seeds of a run, (arms, seconds) in the order of the seeds, together and judge every claim."""
    measured = list(runs)
    arms = [arm for arm, _ in measured]
    names = {arm: list(metrics) for arm, metrics in arms[0].items()}
    return Result(
        paper=experiment.paper,
        scale=scale,
        seeds=len(arms),
        seconds=round(sum(seconds for _, seconds in measured), 2),
        arms={arm: {metric: Spread.of([_value(run, arm, metric) for run in arms]) for metric in metrics} for arm, metrics in names.items()},
        claims=tuple(judge(claim, arms) for claim in experiment.claims),
        question=experiment.question,
        pairs=experiment.pairs,
        units=dict(experiment.units),
        settings=settings.as_dict(),
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("mtlearn", "torch", "numpy", "scipy")}}


def results_folder() -> Path:
    """Where the recorded laptop results ship."""
    return data() / "results"


def recorded(paper: str) -> Result:
    """The laptop result that ships with the suite; LookupError where the paper has none yet."""
    path = results_folder() / f"{paper}.json"
    if not path.exists():
        raise LookupError(f"no recorded result for {paper!r}: `mtlearn run {paper} --scale laptop --json > {path}` makes one")
    try:
        return Result.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
