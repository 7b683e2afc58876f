"""The task-model bank: every design trained on every task, shipped as a table, made again by one command, extended by one call.

    bank = shipped_bank()                       # 14 tasks x 108 designs
    bank = bank.extended("mine", data)          # train all designs on a graph of yours (half a minute)

    python -m mtlearn.graphs.autotransfer.bank  # make the table again

A score is the best validation accuracy over the epochs, the mean of the training seeds; beside it lies the test accuracy at that epoch.
Because every design was trained on every task, any search can be replayed by look-up.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data

from mtlearn.datasets.graph_tasks import PUBLISHED, TASKS, graph_task, plain_statistics, published_task, with_split
from mtlearn.graphs.autotransfer.gnn import Architecture, GraphTask, initial_weights, logits, shapes
from mtlearn.graphs.autotransfer.method import SPACE, DesignSpace, Features, task_feature
from mtlearn.lab.fit import fit
from mtlearn.lab.result import versions
from mtlearn.lab.seeds import seeded, stream
from mtlearn.lab.store import write_atomically
from mtlearn.paths import data as data_folder

DIGITS = 6  # of a stored number


@dataclass(frozen=True)
class Making:
    """How a bank is made.

    Attributes:
        epochs: full-batch steps of Adam for each design.
        width: units of every network.
        training_seeds: of each design's weights; scores are their mean.
        embedding_seeds: a feature of every task is computed for each.
        features: how.
        task_seed: of the tasks.
    """

    epochs: int = 50
    width: int = 16
    training_seeds: tuple[int, ...] = (0, 1)
    embedding_seeds: tuple[int, ...] = tuple(range(10))
    features: Features = field(default_factory=Features)
    task_seed: int = 0


@dataclass(frozen=True)
class Row:
    """What the bank holds of one task.

    Attributes:
        validation, test: (designs,) accuracy; the test accuracy is for looking back, no search sees it.
        features: (embedding seeds, anchors) v_T.
        statistics: (6,) plain statistics.
        training_seconds: processor time of training all designs.
        feature_seconds: of one embedding.
    """

    validation: Tensor
    test: Tensor
    features: Tensor
    statistics: Tensor
    training_seconds: float
    feature_seconds: float


class _Networks(nn.Module):
    """The networks of one architecture, for every learning rate and seed: a vector of all weights for each, grouped by learning rate."""

    def __init__(self, architecture: Architecture, task: GraphTask, rates: int, seeds: Sequence[int]) -> None:
        super().__init__()
        inputs, classes = task.graph.x.shape[1], task.classes
        self.shapes = shapes(architecture, inputs, classes)
        drawn = initial_weights(architecture, inputs, classes, [stream(seed, "weights") for seed in seeds])
        flat = torch.cat([weight.flatten(1) for weight in drawn.values()], 1).to(task.y.device)  # (seeds, weights)
        self.by_rate = nn.ParameterList([nn.Parameter(flat.clone()) for _ in range(rates)])

    def weights(self) -> dict[str, Tensor]:
        """Named weights, (rates * seeds, ...)."""
        flat = torch.cat(list(self.by_rate))
        sizes = [torch.Size(shape).numel() for shape in self.shapes.values()]
        parts = torch.split(flat, sizes, 1)
        return {name: part.view(-1, *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


def train_architecture(
    task: GraphTask, architecture: Architecture, rates: Sequence[float], *, epochs: int, seeds: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Train one architecture with every learning rate and every seed at once, each with its own Adam.

    Returns:
        Best validation accuracy over the epochs, and the test accuracy at that epoch (the first one): (rates,) float64, means over the seeds.
    """
    networks = _Networks(architecture, task, len(rates), seeds)
    target = task.y[task.train].repeat(len(rates) * len(seeds))
    best, test = torch.full((2, len(rates) * len(seeds)), -1.0, dtype=torch.float64, device=task.y.device)

    def look(output: Tensor) -> None:
        right = (output.detach().argmax(-1) == task.y).double()
        score = right[:, task.validation].mean(1)
        there = right[:, task.test].mean(1) if task.test.any() else score
        test.copy_(torch.where(score > best, there, test))
        best.copy_(torch.maximum(score, best))

    def loss_at(step: int) -> Tensor:
        output = logits(networks.weights(), architecture, task)  # (rates * seeds, items, classes)
        if step:  # the output after ``step`` epochs
            look(output)
        each = F.cross_entropy(output[:, task.train].flatten(0, 1), target, reduction="none").view(len(output), -1).mean(1)
        return each.sum()  # the gradient of each network is its own

    groups = [{"params": [parameter], "lr": rate} for parameter, rate in zip(networks.by_rate, rates, strict=True)]
    fit(networks, loss_at, steps=epochs, optimizer=torch.optim.Adam(groups))
    with torch.no_grad():
        look(logits(networks.weights(), architecture, task))
    return best.view(len(rates), -1).mean(1).cpu(), test.view(len(rates), -1).mean(1).cpu()


def train_designs(
    task: GraphTask, space: DesignSpace = SPACE, making: Making = Making(), *, only: Callable[[Architecture], bool] | None = None
) -> tuple[Tensor, Tensor]:
    """Train every design of the space on a task: validation and test accuracy (designs,), float64.

    Args:
        task: what to train on.
        space: with the dimensions layers, aggregation, skip and, last, learning rate.
        making: epochs, width and seeds.
        only: architectures to train; the others' scores are NaN.
    """
    names = [name for name, _ in space.dimensions]
    if names != ["layers", "aggregation", "skip", "learning rate"]:
        raise ValueError(f"designs have the dimensions layers, aggregation, skip, learning rate in this order, got {', '.join(names)}")
    rates = space.dimensions[-1][1]
    known: dict[Architecture, tuple[Tensor, Tensor]] = {}
    found = []
    for (layers, aggregation, skip), _ in groupby(space.designs, lambda design: (design["layers"], design["aggregation"], design["skip"])):
        # without message passing there is nothing to aggregate or to skip: one network for all
        architecture = Architecture(layers, aggregation, skip, making.width) if layers else Architecture(0, "add", "none", making.width)
        if architecture not in known:
            wanted = only is None or only(architecture)
            missing = torch.full((len(rates),), torch.nan, dtype=torch.float64)
            known[architecture] = (
                train_architecture(task, architecture, rates, epochs=making.epochs, seeds=making.training_seeds) if wanted else (missing, missing)
            )
        found.append(known[architecture])
    validation, test = zip(*found, strict=True)
    return torch.cat(validation), torch.cat(test)


def make_row(data: Data, space: DesignSpace = SPACE, making: Making = Making(), *, device: str | torch.device = "cpu", directed: bool = False) -> Row:
    """Train all designs on a task and compute its features, timed; the seeds and one thread make it repeat to the bit.

    Args:
        data: see :meth:`GraphTask.of`; without masks it is split 40/40/20.
        space: the designs.
        making: epochs, width, seeds, and how features are computed.
        device: where.
        directed: whether edges have a direction.
    """
    task = checked_task(data, directed=directed).to(device)
    with seeded(0):
        began = time.process_time()
        validation, test = train_designs(task, space, making)
        trained = time.process_time()
        features = torch.stack([task_feature(task, making.features, seed=seed) for seed in making.embedding_seeds])
        embedded = time.process_time()
    return Row(validation, test, features, plain_statistics(data), trained - began, (embedded - trained) / len(making.embedding_seeds))


def checked_task(data: Data, *, directed: bool = False) -> GraphTask:
    """A ``Data`` or ``Batch`` as a task; a split is made where it has none."""
    if isinstance(getattr(data, "y", None), Tensor) and not any(data.get(name) is not None for name in ("train_mask", "val_mask", "test_mask")):
        data = with_split(data)
    return GraphTask.of(data, directed=directed)


@dataclass(frozen=True)
class Bank:
    """Tasks, and how every design did on each.

    Attributes:
        rows: task to what is known of it.
        space: the designs.
        making: how the rows were made; features of a new task must be computed the same way.
    """

    rows: Mapping[str, Row]
    space: DesignSpace = SPACE
    making: Making = Making()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count, anchors = len(self.space.designs), len(self.making.features.anchors)
        for name, row in self.rows.items():
            for what, scores in (("validation", row.validation), ("test", row.test)):
                if scores.shape != (count,):
                    raise ValueError(f"task {name!r}: {what} needs one score for each of the {count} designs, got shape {tuple(scores.shape)}")
                if not scores.isfinite().all():
                    place = int((~scores.isfinite()).nonzero()[0])
                    raise ValueError(f"task {name!r}: the {what} score of design {self.space.designs[place]} is {float(scores[place])}")
            if row.features.dim() != 2 or row.features.shape[1] != anchors or not (row.features.isfinite() & (row.features > 0)).all():
                raise ValueError(f"task {name!r}: features must be positive, of shape (embedding seeds, {anchors}), got {row.features}")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.rows)

    @property
    def validation(self) -> Tensor:
        """(tasks, designs) validation accuracy: what a search looks up."""
        return torch.stack([row.validation for row in self.rows.values()])

    @property
    def test(self) -> Tensor:
        """(tasks, designs) test accuracy."""
        return torch.stack([row.test for row in self.rows.values()])

    @property
    def statistics(self) -> Tensor:
        """(tasks, 6) plain statistics."""
        return torch.stack([row.statistics for row in self.rows.values()])

    def features(self, seed: int = 0) -> Tensor:
        """v_T of every task, (tasks, anchors), of one embedding seed. ValueError lists the seeds that the bank has."""
        if seed not in self.making.embedding_seeds:
            raise ValueError(f"the bank has features of the embedding seeds {self.making.embedding_seeds}, not of {seed}")
        place = self.making.embedding_seeds.index(seed)
        return torch.stack([row.features[place] for row in self.rows.values()])

    def without(self, *names: str) -> "Bank":
        """The bank without some tasks. ValueError where one is not there."""
        if unknown := [name for name in names if name not in self.rows]:
            raise ValueError(f"the bank has no task {unknown[0]!r}; it has {', '.join(self.tasks)}")
        return replace(self, rows={name: row for name, row in self.rows.items() if name not in names})

    def extended(self, name: str, data: Data, *, directed: bool = False, device: str | torch.device = "cpu") -> "Bank":
        """The bank with one more task: all designs are trained on it and its features computed, as for the others.

        Args:
            name: of the new task; ValueError where the bank has it.
            data: a ``Data`` with labels of nodes, or a ``Batch`` with labels of graphs; see :meth:`GraphTask.of` for what is refused.
            directed: whether its edges have a direction.
            device: where to train.
        """
        if name in self.rows:
            raise ValueError(f"the bank has a task {name!r} already; take another name, or bank.without({name!r}) first")
        return replace(self, rows={**self.rows, name: make_row(data, self.space, self.making, device=device, directed=directed)})


def scores_from_records(space: DesignSpace, records: Sequence[tuple[str, Mapping[str, Any], float]]) -> dict[str, Tensor]:
    """Scores of tasks from records (task, design, score) in any order: task to (designs,).

    Raises:
        ValueError: a task that lacks a design, a design twice or outside the space, a score that is not finite.
    """
    found: dict[str, Tensor] = {}
    for task, design, score in records:
        try:
            place = space.number(design)
        except ValueError as error:
            raise ValueError(f"task {task!r}: {error}") from None
        row = found.setdefault(task, torch.full((len(space.designs),), torch.nan, dtype=torch.float64))
        if not abs(float(score)) < float("inf"):
            raise ValueError(f"task {task!r}: the score of design {dict(design)} is {score}")
        if not row[place].isnan():
            raise ValueError(f"task {task!r} has the design {dict(design)} twice")
        row[place] = score
    for task, row in found.items():
        if row.isnan().any():
            missing = row.isnan().nonzero()[:, 0]
            raise ValueError(f"task {task!r} lacks {len(missing)} of {len(row)} designs, the first is {space.designs[int(missing[0])]}")
    return found


# the table that ships


class BankError(RuntimeError):
    """The shipped table is missing, damaged, or was made otherwise than the code says; the message says which file and what to do."""


AGAIN = "`python -m mtlearn.graphs.autotransfer.bank` makes it again"


def shipped_path() -> Path:
    """The table that ships."""
    return data_folder() / "worlds" / "graph_bank.json"


@cache
def shipped_bank() -> Bank:
    """The bank that ships: 14 tasks, 108 designs, features of ten embedding seeds.

    Raises:
        BankError: the file is missing, damaged, or of other settings than the code's.
    """
    return load_bank(shipped_path())


def make_bank(
    making: Making = Making(),
    *,
    tasks: Sequence[str] = TASKS,
    space: DesignSpace = SPACE,
    device: str | torch.device = "cpu",
    report: Callable[[str], None] | None = None,
) -> Bank:
    """Make a bank of tasks of :mod:`mtlearn.datasets.graph_tasks`; the fourteen that ship take six minutes of one core.

    Args:
        making: how.
        tasks: names of ``TASKS`` or ``PUBLISHED``.
        space: the designs.
        device: where to train.
        report: called with a line when a task is done.
    """
    rows = {}
    for name in tasks:
        data = published_task(name, making.task_seed) if name in PUBLISHED else graph_task(name, making.task_seed)
        rows[name] = make_row(data, space, making, device=device)
        if report:
            report(f"{name}: {rows[name].training_seconds:.1f} s for {len(space.designs)} designs, {rows[name].feature_seconds:.2f} s an embedding")
    return Bank(rows, space, making)


def save_bank(bank: Bank, path: Path) -> dict[str, Any]:
    """Write a bank as JSON, a line a task, with where it came from. Returns the provenance."""
    lines = [json.dumps({"task": name, **_row_as_json(row)}) for name, row in bank.rows.items()]
    provenance = {
        **_settings(bank.space, bank.making),
        "sha256": _fingerprint(lines),
        "versions": {**versions(), **{name: version(name) for name in ("torch-geometric", "networkx", "scikit-learn")}},
        "cpu_seconds": round(sum(row.training_seconds + row.feature_seconds * len(row.features) for row in bank.rows.values())),
        "command": "python -m mtlearn.graphs.autotransfer.bank",
    }
    text = '{"provenance":\n' + json.dumps(provenance) + ',\n"rows": [\n' + ",\n".join(lines) + "\n]}\n"
    write_atomically(path, text.encode())
    return provenance


def load_bank(path: Path, *, space: DesignSpace = SPACE, making: Making = Making()) -> Bank:
    """Read what :func:`save_bank` wrote.

    Raises:
        BankError: the file is missing, damaged, or of another space or making.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        provenance: dict[str, Any] = found["provenance"]
        fingerprint = _fingerprint([json.dumps(row) for row in found["rows"]])
        rows = {row.pop("task"): Row(**{name: _as_tensor(value) for name, value in row.items()}) for row in found["rows"]}
        recorded = provenance["sha256"]
    except FileNotFoundError:
        raise BankError(f"{path} is missing; {AGAIN}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BankError(f"{path} cannot be read ({type(error).__name__}: {error}); restore it, or {AGAIN}") from None
    if fingerprint != recorded:
        raise BankError(f"{path} is damaged: its rows have SHA-256 {fingerprint[:12]}..., recorded {recorded[:12]}...; restore it, or {AGAIN}")
    wanted = _settings(space, making)
    if changed := [name for name in wanted if provenance.get(name) != wanted[name]]:
        raise BankError(f"{path} was made with other {' and '.join(changed)} than the code's; {AGAIN}")
    return Bank(rows, space, making, provenance)


def _settings(space: DesignSpace, making: Making) -> dict[str, Any]:
    """What a table must have in common with the code."""
    settings: dict[str, Any] = json.loads(json.dumps({"space": space.dimensions, "making": asdict(making)}))
    return settings


def _row_as_json(row: Row) -> dict[str, Any]:
    def rounded(value: Any) -> Any:
        return [rounded(entry) for entry in value] if isinstance(value, list) else round(value, DIGITS)

    return {name: rounded(value.tolist() if isinstance(value, Tensor) else value) for name, value in vars(row).items()}


def _as_tensor(value: Any) -> Any:
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else float(value)


def _fingerprint(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def main(path: Path | None = None, making: Making = Making(), tasks: Sequence[str] = TASKS) -> None:
    """Make the shipped table again, or another one."""
    provenance = save_bank(make_bank(making, tasks=tasks, report=print), path or shipped_path())
    print(f"{path or shipped_path()}: {provenance['cpu_seconds']} s of processor time, SHA-256 {provenance['sha256'][:12]}...")


if __name__ == "__main__":
    main()
