"""Embedding a task beside training all designs on it; networks, projections and searches side by side, beside one by one; TPE beside optuna's."""

import warnings

import optuna
import torch
from ratios import ratios
from rich.console import Console
from rich.table import Table

from mtlearn.datasets.graph_tasks import graph_task
from mtlearn.graphs.autotransfer.bank import shipped_bank, train_architecture, train_designs
from mtlearn.graphs.autotransfer.gnn import Architecture, GraphTask
from mtlearn.graphs.autotransfer.method import SPACE, Features, kendall, task_feature
from mtlearn.graphs.autotransfer.search import TPE, regret, search
from mtlearn.graphs.autotransfer.transfer import Recipe, leave_one_out, prior_of
from mtlearn.lab.seeds import stream

TRIALS, SEARCHES = 30, 60


def embedding() -> None:
    task = GraphTask.of(graph_task("n_iris"))
    ways = {"train all 108 designs": lambda: train_designs(task), "embed": lambda: task_feature(task, Features())}
    ratios("A task of 150 nodes", ways, repeats=1, target="at most 0.1")


def side_by_side() -> None:
    task = GraphTask.of(graph_task("n_iris"))
    architecture, rates, seeds = Architecture(2, "mean", "sum"), (0.1, 0.01, 0.001), (0, 1)

    def alone() -> None:
        for rate in rates:
            for seed in seeds:
                train_architecture(task, architecture, (rate,), epochs=20, seeds=(seed,))

    together = {"one by one": alone, "ours, side by side": lambda: train_architecture(task, architecture, rates, epochs=20, seeds=seeds)}
    ratios("Six networks of one architecture, 20 epochs", together, repeats=5, target="at most 1")


def projections() -> None:
    bank, recipe = shipped_bank(), Recipe(steps=50)
    features, tau = bank.features(0), kendall(bank.validation)

    def alone() -> None:
        for place, name in enumerate(bank.tasks):
            prior_of(bank.without(name), features[place], recipe)

    ways = {"one by one": alone, "ours, side by side": lambda: leave_one_out(features, tau, recipe)}
    ratios("Fourteen projections, 50 steps", ways, repeats=3, target="at most 1")


def optuna_search(scores: torch.Tensor, seed: int) -> list[int]:
    """The designs that optuna's TPE tries, in order; it may try one again."""
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=TPE().startup, multivariate=False, constant_liar=False)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    tried = []

    def objective(trial: optuna.Trial) -> float:
        tried.append(SPACE.number({name: trial.suggest_categorical(name, options) for name, options in SPACE.dimensions}))
        return float(scores[tried[-1]])

    study.optimize(objective, n_trials=TRIALS)
    return tried


def tpe() -> None:
    bank = shipped_bank()
    scores = bank.validation[8]
    ways = {
        "optuna, one search": lambda: optuna_search(scores, 0),
        "ours, one search": lambda: search(scores, SPACE, TPE(), budget=TRIALS),
        f"ours, {SEARCHES} searches": lambda: search(scores, SPACE, TPE(), budget=TRIALS, replays=SEARCHES),
    }
    ratios(f"TPE, {TRIALS} trials of 108 designs, looked up", ways, repeats=5, target="at most 1")
    table = Table(title=f"Mean regret in points of {SEARCHES} searches, plain TPE", title_justify="left")
    for heading in ("task", "program", "after 5", "after 10", "after 30"):
        table.add_column(heading, justify="left" if heading in ("task", "program") else "right")
    for name in ("n_digits", "r_wine", "sbm_hom", "roles"):
        scores = bank.validation[bank.tasks.index(name)]
        orders = {
            "optuna": torch.tensor([optuna_search(scores, seed) for seed in range(SEARCHES)]),
            "ours": search(scores, SPACE, TPE(), budget=TRIALS, replays=SEARCHES, generator=stream(0, "benchmark")),
        }
        for program, order in orders.items():
            curve = regret(scores, order).mean(0)
            table.add_row(name, program, *(f"{float(curve[trial - 1]):.1f}" for trial in (5, 10, 30)))
    Console(width=110).print(table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # optuna's, of experimental parts
    embedding()
    side_by_side()
    projections()
    tpe()
