"""Does a prior from similar tasks shorten an architecture search? Every search of 108 designs on 14 tasks, replayed by look-up.

Each task in turn is new: the bank, the projection and the priors are made of the other thirteen. What a seed draws anew are the random networks that
embed the tasks, the projections and the replays; the bank of scores is the shipped one, so the intervals tell how far the embedding can be relied
on, and not how the fourteen tasks were chosen. For that the number of tasks on which an arm wins is counted.
"""

import time
from dataclasses import dataclass, field, replace

import torch
from scipy import stats
from torch import Tensor

from mtlearn.datasets.graph_tasks import PUBLISHED, TASKS, graph_task
from mtlearn.graphs.autotransfer.bank import Bank, Making, make_bank, shipped_bank, train_designs
from mtlearn.graphs.autotransfer.gnn import GraphTask
from mtlearn.graphs.autotransfer.method import PAPER_ANCHORS, SPACE, DesignSpace, Features, design_distribution, design_prior, kendall, task_feature
from mtlearn.graphs.autotransfer.search import ALGORITHMS, regret, search, trials_until
from mtlearn.graphs.autotransfer.transfer import AS_PUBLISHED, PUBLISHED_CODE, Recipe, leave_one_out, leave_one_out_priors, others, similarities
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.seeds import stream

CHECKPOINTS = ()
LEAD, UNIFORM, AVERAGE, STATISTICS, ORACLE = "log, projected", "uniform", "bank average", "plain statistics", "oracle"
AFTER = (1, 2, 3, 6, 10, 16, 30, 60)  # trials at which the regret is read
WITHOUT, MANY = ", no siblings", "log, projected, all networks"


@dataclass(frozen=True)
class TransferSettings(Settings):
    """Settings of a scale.

    Attributes:
        tasks: of the bank, names of ``TASKS`` or ``PUBLISHED``.
        made: whether each seed trains a bank of its own; else the shipped one is used.
        computed: whether features are computed in the run, or read from the shipped bank.
        timed: whether each seed trains all designs on one task beside embedding it, to time both; else the bank's own record is read.
        making: how a bank is made; of the shipped one, how its features are.
        layers: options of the space's first dimension.
        steps: of a projection's training, by our recipe.
        published_steps: of the published recipe.
        replays, budget: searches of each kind, and trials of each.
    """

    tasks: tuple[str, ...] = TASKS
    made: bool = False
    computed: bool = True
    timed: bool = True
    making: Making = field(default_factory=Making)
    layers: tuple[int, ...] = (0, 1, 2, 4)
    steps: int = 400
    published_steps: int = 1001
    replays: int = 400
    budget: int = 60


def run(settings: TransferSettings, seed: int, device: torch.device) -> Arms:
    """One seed: embed every task, make its prior in every way from the others, replay the searches."""
    bank = _bank(settings, seed, device)
    if settings.made or not settings.computed:
        features = bank.features(seed)
    else:
        tasks = [GraphTask.of(graph_task(name, settings.making.task_seed)).to(device) for name in bank.tasks]
        features = torch.stack([task_feature(task, settings.making.features, seed=seed) for task in tasks])
    tau = kendall(bank.validation, bank.tasks)
    rewired = [place for place, name in enumerate(bank.tasks) if name.startswith("r_")]
    similarity, priors = _priors(bank, features, tau, settings, seed)

    curves = {name: _replayed(bank, prior, settings, seed) for name, prior in priors.items()}
    arms: Arms = {name: curve.metrics(curves[UNIFORM], curves[AVERAGE], rewired) for name, curve in curves.items()}
    for name, near in similarity.items():
        arms[name]["rank correlation"] = _rank_correlation(near, tau)
    for name in (UNIFORM, AVERAGE, LEAD, ORACLE):
        for algorithm in ("TPE", "evolution"):
            found = _replayed(bank, priors[name], settings, seed, algorithm).regrets.mean(0)
            arms[name].update({f"{algorithm} regret after {trials}": float(found[trials - 1]) for trials in (10, 30)})
    for name, prior in _without_siblings(bank, features, tau, rewired, settings, seed).items():
        alone = _replayed(bank, prior, settings, seed, only=rewired)
        arms[name] = {"rewired regret after 3": float(alone.regrets[:, 2].mean())}
    arms[LEAD]["embedding time"] = _embedding_time(bank, settings, seed, device)
    return arms


def _bank(settings: TransferSettings, seed: int, device: torch.device) -> Bank:
    if not settings.made:
        bank = shipped_bank()
        return bank.without(*(name for name in bank.tasks if name not in settings.tasks))
    space = DesignSpace((("layers", settings.layers), *SPACE.dimensions[1:]))
    seeds = tuple(len(settings.making.training_seeds) * seed + k for k in range(len(settings.making.training_seeds)))
    making = replace(settings.making, training_seeds=seeds, embedding_seeds=(seed,))
    return make_bank(making, tasks=settings.tasks, space=space, device=device)


def _priors(bank: Bank, features: Tensor, tau: Tensor, settings: TransferSettings, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Similarities (tasks, tasks - 1) of the arms that have them, and every arm's prior of every task (tasks, options).

    The arm of all networks takes the mean of the bank's features over its embedding seeds, so only its projection and its replays are drawn anew.
    """
    ours = Recipe(steps=settings.steps)
    published = replace(AS_PUBLISHED, steps=settings.published_steps)
    code = replace(PUBLISHED_CODE, steps=settings.published_steps)
    statistics = bank.statistics.exp()  # whose logarithms are standardised
    arms: dict[str, tuple[Tensor, Recipe]] = {
        LEAD: (features, ours),
        MANY: (torch.stack([bank.features(one) for one in bank.making.embedding_seeds]).mean(0), ours),
        "log cosine": (features, replace(ours, project=False)),
        "raw cosine": (features, replace(ours, log=False, project=False)),
        "raw, projected": (features, replace(ours, log=False)),
        "as published": (features, published),
        "published code": (features, code),
        STATISTICS: (statistics, replace(ours, project=False)),
        "plain statistics, projected": (statistics, ours),
    }
    similarity = {name: leave_one_out(of, tau, recipe, seed=seed) for name, (of, recipe) in arms.items()}
    count = len(bank.tasks)
    uniform = bank.space.uniform
    average = others(design_distribution(bank.validation, bank.space, best=ours.best)).mean(1)
    truth = tau.gather(1, others(torch.arange(count)))
    priors = {
        UNIFORM: uniform.expand(count, -1),
        AVERAGE: (1 - ours.smoothing) * average + ours.smoothing * uniform,
        **{
            name: leave_one_out_priors(bank.test if recipe.best_by == "test" else bank.validation, similarity[name], bank.space, recipe)
            for name, (_, recipe) in arms.items()
        },
        ORACLE: leave_one_out_priors(bank.validation, truth, bank.space, ours),
    }
    return similarity, priors


@dataclass(frozen=True)
class Replayed:
    """Means over the replays, for each task.

    Attributes:
        regrets: (tasks, budget) points after every trial.
        trials: (tasks,) to within a point.
        test: (tasks,) test accuracy, in points, of the best design of three trials.
    """

    regrets: Tensor
    trials: Tensor
    test: Tensor

    def metrics(self, uniform: "Replayed", average: "Replayed", rewired: list[int]) -> dict[str, float]:
        """What an arm is judged by."""
        curve = self.regrets.mean(0)
        return {
            **{f"regret after {trials}": float(curve[trials - 1]) for trials in AFTER if trials <= len(curve)},
            "trials to within 1 point": float(self.trials.mean()),
            "speed-up": trials_to_reach(uniform.regrets.mean(0), float(curve[2])) / 3,
            "tasks better than the bank average": float((self.regrets[:, 2] < average.regrets[:, 2]).sum()),
            "rewired regret after 3": float(self.regrets[rewired, 2].mean()),
            "test accuracy after 3": float(self.test.mean()),
        }


def trials_to_reach(curve: Tensor, level: float) -> float:
    """How many trials a falling curve (budget,) needs to come down to ``level``, a fraction of a trial by a straight line.

    Where it never does it is the budget, so that a ratio to it is a lower bound.
    """
    reached = (curve <= level).nonzero()
    if not len(reached):
        return float(len(curve))
    place = int(reached[0])
    if place == 0:
        return 1.0
    above, below = float(curve[place - 1]), float(curve[place])
    return place + (above - level) / (above - below)


def _replayed(
    bank: Bank, priors: Tensor, settings: TransferSettings, seed: int, algorithm: str = "random", *, only: list[int] | None = None
) -> Replayed:
    """Replay searches on every task, or those of the places ``only``, each with its prior; the draws of a task are the same for every arm."""
    budget = settings.budget if algorithm == "random" else 30
    places = range(len(bank.tasks)) if only is None else only
    regrets, trials, test = [], [], []
    for place, prior in zip(places, priors, strict=True):
        scores = bank.validation[place]
        generator = stream(seed, algorithm, bank.tasks[place])
        order = search(scores, bank.space, ALGORITHMS[algorithm], prior=prior, budget=budget, replays=settings.replays, generator=generator)
        regrets.append(regret(scores, order).mean(0))
        trials.append(trials_until(regret(scores, order), 1.0).mean())
        chosen = order[:, :3].gather(1, scores[order[:, :3]].argmax(1, keepdim=True))
        test.append(100 * bank.test[place][chosen].mean())
    return Replayed(torch.stack(regrets), torch.stack(trials), torch.stack(test))


def _rank_correlation(similarity: Tensor, tau: Tensor) -> float:
    """Spearman's correlation of a task's similarity to the others with its true tau to them, the mean over the tasks."""
    truth = tau.gather(1, others(torch.arange(len(tau))))
    return float(sum(stats.spearmanr(near, true).statistic for near, true in zip(similarity, truth, strict=True)) / len(tau))


def _without_siblings(bank: Bank, features: Tensor, tau: Tensor, rewired: list[int], settings: TransferSettings, seed: int) -> dict[str, Tensor]:
    """Priors (rewired tasks, options) of each rewired task from a bank that holds no other rewired task."""
    rest = [place for place in range(len(bank.tasks)) if place not in rewired]
    recipe = Recipe(steps=settings.steps)
    count = len(rewired)
    near = similarities(features[rest].expand(count, -1, -1), features[rewired], tau[rest][:, rest].expand(count, -1, -1), recipe, seed=seed)
    distributions = design_distribution(bank.validation[rest], bank.space, best=recipe.best)
    average = (1 - recipe.smoothing) * distributions.mean(0) + recipe.smoothing * bank.space.uniform
    return {
        LEAD + WITHOUT: torch.stack([design_prior(distributions, one, bank.space, k=recipe.k) for one in near]),
        AVERAGE + WITHOUT: average.expand(count, -1),
    }


def _embedding_time(bank: Bank, settings: TransferSettings, seed: int, device: torch.device) -> float:
    """Processor time of embedding one task over that of training all designs on it; each seed takes another task."""
    name = bank.tasks[seed % len(bank.tasks)]
    if settings.made or not settings.timed:
        row = bank.rows[name]
        return row.feature_seconds / row.training_seconds
    task = GraphTask.of(graph_task(name, settings.making.task_seed)).to(device)
    began = time.process_time()
    task_feature(task, settings.making.features, seed=seed)
    embedded = time.process_time()
    train_designs(task, bank.space, bank.making)
    return (embedded - began) / (time.process_time() - embedded)


def lower(better: str, worse: str, metric: str, margin: float, says: str) -> Claim:
    """A claim on a metric where lower is better."""
    return Claim(better, worse, metric, margin, False, says)


CLAIMS = (
    lower(LEAD, UNIFORM, "regret after 3", 5.0, "After 3 trials from the transferred prior a random search is 5 points nearer to the best design."),
    lower(LEAD, AVERAGE, "regret after 3", 1.0, "The transferred prior is a point nearer than that of the whole bank: it helps to know which tasks."),
    lower(LEAD, "log cosine", "regret after 3", 0.0, "The projection finds better neighbours than the cosine of the features does."),
    lower(MANY, LEAD, "regret after 3", 0.0, "With ten times as many random networks the embedding finds still better neighbours."),
    lower(LEAD, STATISTICS, "regret after 3", 0.0, "The embedding finds better neighbours than six plain numbers of a task do."),
    Claim(LEAD, STATISTICS, "rank correlation", 0.2, says="Projected similarity follows true transfer better than plain numbers do, by 0.2."),
    Claim(LEAD, None, "tasks better than the bank average", 10.5, says="Transfer beats the whole bank's prior on 11 of 14 tasks (a sign test)."),
    lower("log cosine", AVERAGE, "regret after 3", 1.0, "The embedding alone, without a projection, beats the whole bank's prior by a point."),
    lower("raw cosine", AVERAGE, "regret after 3", 0.0, "The raw feature, without logarithm and projection, beats the whole bank's prior."),
    lower("as published", AVERAGE, "regret after 3", 0.0, "The published recipe (raw features, 1,001 steps of 1e-4) beats the whole bank's prior."),
    lower("published code", AVERAGE, "regret after 3", 0.0, "The published program, slips included, beats the whole bank's prior."),
    lower(LEAD, AVERAGE, "regret after 30", 0.0, "After 30 trials the transferred prior is still better than that of the whole bank."),
    lower(LEAD, UNIFORM, "TPE regret after 10", 0.0, "TPE is nearer to the best design after 10 trials where it has the transferred prior."),
    lower(LEAD, UNIFORM, "evolution regret after 10", 0.0, "Evolution is nearer after 10 trials where it has the transferred prior."),
    Claim(
        LEAD, UNIFORM, "test accuracy after 3", 5.0, says="The design chosen in 3 trials is 5 points better on test data with the transferred prior."
    ),
    Claim(LEAD, None, "speed-up", 10.0, says="A plain search needs ten times as many trials for what transfer reaches in 3 (an order of magnitude)."),
    lower(LEAD, AVERAGE, "rewired regret after 3", 1.0, "On tasks whose graph is useless, transfer is a point nearer than the whole bank's prior."),
    lower(
        LEAD,
        LEAD + WITHOUT,
        "rewired regret after 3",
        1.0,
        "That rests on siblings: from a bank without another useless graph it is a point farther.",
    ),
    lower(
        LEAD + WITHOUT,
        AVERAGE + WITHOUT,
        "rewired regret after 3",
        0.0,
        "From a bank without another useless graph, transfer still beats the whole bank's prior there.",
    ),
    lower(
        LEAD + WITHOUT,
        UNIFORM,
        "rewired regret after 3",
        0.0,
        "From a bank without another useless graph, transfer is at least better than a plain search there.",
    ),
    Claim(LEAD, None, "embedding time", -0.1, False, "Embedding a task costs less than a tenth of training all designs on it."),
)

EXPERIMENT = Experiment(
    paper="autotransfer",
    question="Does a prior from similar tasks of a bank shorten an architecture search on a new task?",
    scales={
        "quick": TransferSettings(
            seeds=2,
            tasks=("n_iris", "n_wine", "r_iris", "r_wine", "sbm_hom", "roles", "gens", "bip"),
            computed=False,
            timed=False,
            steps=60,
            published_steps=60,
            replays=30,
        ),
        "laptop": TransferSettings(seeds=10),
        "paper": TransferSettings(
            seeds=5,
            tasks=(*TASKS, *PUBLISHED),
            made=True,
            making=Making(epochs=400, width=256, features=Features(anchors=PAPER_ANCHORS, initialisations=5, steps=100, draws=1)),
            layers=(2, 4, 6, 8),
            replays=400,
            budget=100,
        ),
    },
    claims=CLAIMS,
    run=run,
    units={
        **{f"regret after {trials}": "points of validation accuracy below the best design" for trials in AFTER},
        **{
            f"{name} regret after {trials}": "points of validation accuracy below the best design"
            for name in ("TPE", "evolution")
            for trials in (10, 30)
        },
        "rewired regret after 3": "points below the best design, mean of the four rewired tasks",
        "trials to within 1 point": "trials",
        "speed-up": "trials of a plain search for what this reaches in 3, over 3",
        "tasks better than the bank average": "tasks of 14",
        "rank correlation": "Spearman's correlation with Kendall's tau",
        "test accuracy after 3": "points of test accuracy",
        "embedding time": "share of the time of training all designs, measured anew",
    },
    pairs="embeddings (one shipped bank)",
)
