"""A tiny experiment, and a checkout whose only papers it is. Module level, so that workers can take it.

Two arms fit a line: ``trained`` for ``steps`` steps, ``untrained`` for none. Chance comes from PyTorch, NumPy and the seed's own streams
(not from Python's ``random``, which the threads of a Dask cluster in this process disturb).
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtlearn import papers, paths
from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import stream

CATALOGUE = """
[[chapter]]
slug = "toys"
title = "Toys"
learn = "How the laboratory works."
""" + "".join(
    f"""
[[paper]]
slug = "{slug}"
title = "{title}"
authors = ["Ada Lovelace", "Blaise Pascal"]
year = 2020
venue = "Journal of Toys"
arxiv = "{arxiv}"
code = ""
chapter = "toys"
idea = "Fit a line <and [be] done>."
"""
    for slug, title, arxiv in (("toy", "A Toy & its line", "2001.00001"), ("toy_two", "A Second Toy", ""), ("toy_unwritten", "A Third Toy", ""))
)


@dataclass(frozen=True)
class Toy(Settings):
    """Settings of the toy.

    Attributes:
        steps, rate: of the training.
        nested: tuples in tuples, as real settings have.
        breaks: seeds that raise.
        witness: file that gets a line for each seed that is run, or "".
        gate: file that seeds from ``free`` on wait for, or "".
    """

    steps: int = 20
    rate: float = 0.1
    nested: tuple[tuple[int, ...], ...] = ((1, 2), (3,))
    breaks: tuple[int, ...] = ()
    witness: str = ""
    gate: str = ""
    free: int = 2


def run(settings: Toy, seed: int, device: torch.device) -> Arms:
    if settings.witness:
        with Path(settings.witness).open("a") as stream_:
            stream_.write(f"{seed}\n")
    if settings.gate and seed >= settings.free:
        while not Path(settings.gate).exists():
            time.sleep(0.02)
    if seed in settings.breaks:
        raise RuntimeError(f"seed {seed}\nis broken")
    draws = stream(seed, "train")
    target = 2 + torch.randn(3, generator=draws) / 10
    arms = {}
    for arm, steps in (("trained", settings.steps), ("untrained", 0)):
        torch.manual_seed(seed)
        model = nn.Linear(3, 1)

        def loss_at(step: int, model: nn.Module = model) -> Tensor:
            inputs = torch.randn(16, 3, generator=draws)
            return (model(inputs).squeeze(-1) - inputs @ target).square().mean()

        if steps:
            fit(model, loss_at, steps=steps, optimizer=torch.optim.SGD(model.parameters(), lr=settings.rate), schedule="cosine", warmup=steps // 5)
        with torch.no_grad():
            arms[arm] = {"loss": float(loss_at(0)), "luck": 2 * np.random.random() + torch.rand(()).item()}  # noqa: NPY002
    return arms


CLAIMS = (
    Claim("trained", "untrained", "loss", margin=0.1, higher_is_better=False, says="Training [a line] <lowers> the loss by more than 0.1."),
    Claim("trained", None, "luck", margin=9.0, says="Luck is above 9."),
    Claim("trained", "untrained", "luck", margin=0.0),
)


def experiment(paper: str = "toy", *, seeds: int = 3, **settings: Any) -> Experiment:
    return Experiment(
        paper=paper,
        question="Does a line learn?",
        scales={"quick": Toy(seeds, **settings), "laptop": Toy(seeds + 1, **settings)},
        claims=CLAIMS,
        run=run,
        units={"loss": "squared error"},
    )


@dataclass(frozen=True)
class Recipe:
    """Settings of a shipped model."""

    width: int = 3
    steps: int = 5
    seed: int = 0


def build(recipe: Recipe) -> nn.Module:
    return nn.Sequential(nn.Linear(2, recipe.width), nn.BatchNorm1d(recipe.width), nn.Dropout(), nn.Linear(recipe.width, 1))


def train(recipe: Recipe, progress: str | None) -> nn.Module:
    model = build(recipe)
    draws = stream(recipe.seed, "train")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    fit(model, lambda step: model(torch.randn(8, 2, generator=draws)).square().mean(), steps=recipe.steps, optimizer=optimizer, progress=progress)
    return model


def measure(model: nn.Module) -> dict[str, float]:
    return {"weights": sum(p.detach().square().sum().item() for p in model.parameters())}


LINE = Checkpoint("toy-line", Recipe(), build, train, measure)


def install(root: Path, put: Callable[[object, str, Any], None] = setattr) -> None:
    """Let the catalogue be that of the checkout at ``root``; ``put`` is setattr, or monkeypatch.setattr where it must be undone."""
    import mtlearn

    read = papers.read_catalogue(CATALOGUE)
    put(papers, "_catalogue", lambda: read)
    put(paths, "root", lambda: root)
    put(mtlearn, "__path__", [*mtlearn.__path__, str(root / "mtlearn")])
    for name in [name for name in sys.modules if name.startswith("mtlearn.toys")]:
        del sys.modules[name]


def lay_out(root: Path, **settings: Any) -> Path:
    """Write a checkout with the papers ``toy`` and ``toy_two`` (experiments of these settings) and ``toy_unwritten``."""
    for slug in ("toy", "toy_two"):
        folder = root / "mtlearn" / "toys" / slug
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints = "\nCHECKPOINTS = (toy_experiment.LINE,)" if slug == "toy" else ""
        (folder / "experiment.py").write_text(
            f"import toy_experiment\nEXPERIMENT = toy_experiment.experiment({slug!r}, **{settings!r}){checkpoints}\n"
        )
    (root / "mtlearn" / "toys" / "toy" / "method.py").write_text("")
    return root
