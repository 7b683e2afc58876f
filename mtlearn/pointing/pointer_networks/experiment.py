from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mtlearn.datasets import planar
from mtlearn.lab.fit import History, fit
from mtlearn.lab.seeds import stream
from mtlearn.pointing.pointer_networks.method import PointerNetwork, answer_loss

@dataclass(frozen=True)
class Recipe:
    """How a shipped pointer network is trained."""

    task: Literal["hull", "tour"]
    smallest: int
    largest: int
    hidden: int
    steps: int
    batch: int = 128
    learning_rate: float = 3e-3
    seed: int = 0
    pool: int = 50_000  # labelled tours per size, drawn from again and again under symmetries


def tour_batches(recipe: Recipe):
    draws = stream(recipe.seed, "points")
    pool = {}
    for n in range(recipe.smallest, recipe.largest + 1):
        points = planar.sample_points(recipe.pool, n, generator=draws)
        pool[n] = (points, planar.shortest_tour(points))

    def batch(n: int) -> tuple[Tensor, Tensor]:
        points, tours = pool[n]
        rows = torch.randint(recipe.pool, (recipe.batch,), generator=draws)
        return planar.disguise_tours(points[rows], tours[rows], generator=draws)

    return batch


def train(recipe: Recipe, progress: str | None = None, after_step=None) -> tuple[PointerNetwork, History]:
    draws = stream(recipe.seed, "train")
    torch.manual_seed(recipe.seed)
    model = PointerNetwork(hidden=recipe.hidden)
    tours = tour_batches(recipe) if recipe.task == "tour" else None

    def loss_at(step: int) -> Tensor:
        n = int(torch.randint(recipe.smallest, recipe.largest + 1, (), generator=draws))
        if tours is None:
            points = planar.sample_points(recipe.batch, n, generator=draws)
            return answer_loss(model(points, hulls := planar.convex_hull(points)), hulls)
        points, answers = tours(n)
        return answer_loss(model(points, answers, constraint="tour"), answers)

    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    history = fit(model, loss_at, steps=recipe.steps, optimizer=optimizer, schedule="one_cycle", warmup=recipe.steps // 10, clip=2.0, progress=progress, after_step=after_step)
    return model, history
