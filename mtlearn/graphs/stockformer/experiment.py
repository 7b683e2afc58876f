"""Does the graph of stocks help, does the wavelet, do two tasks? On a market with a known optimum, and, as a null check, on real prices.

Every arm of a seed sees the same windows in the same order and starts from the same weights. All are measured on the first of the two predicted days.
"""

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mtlearn.datasets.markets import Market, World, best_prediction, monthly_stocks, price_fields, sample_market
from mtlearn.graphs.stockformer.backtest import (
    Backtest,
    correlation,
    direction_accuracy,
    equal_weights,
    mae_ratio,
    mean_ic,
    rank_ic,
    regimes,
    top_k_dropout,
)
from mtlearn.graphs.stockformer.embedding import laplacian_embedding, return_correlation, struc2vec_embedding, walk_embedding
from mtlearn.graphs.stockformer.factors import neutralise, price_volume_factors
from mtlearn.graphs.stockformer.method import Prediction, Split, Stockformer, WaveletSplit, moving_average, multitask_loss, no_split
from mtlearn.graphs.stockformer.panel import Batch, Panel, Windows, check_splits, lag_means
from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream

Graph = Literal["laplacian", "struc2vec", "walks", "none"]


@dataclass(frozen=True)
class Recipe:
    """A model and how it is trained.

    Attributes:
        days, horizon, width, blocks: sizes of the model.
        steps, batch, learning_rate, clip: of Adam.
        check_every: steps between looks at the validation days; the best look is kept.
        patience: looks without gain after which the learning rate falls to a tenth (2e-6 at least); 0 keeps it.
        tied_start: whether the spatial attention starts with equal query and key weights.
        groups: eigenvectors of the graph embedding.
        graph_scale: of the graph embedding.
        look_ahead: build the graph from all days, test days included, as the published scripts do.
        gru_width: hidden units of the recurrent baseline.
    """

    days: int = 8
    horizon: int = 2
    width: int = 16
    blocks: int = 1
    steps: int = 600
    batch: int = 8
    learning_rate: float = 5e-3
    clip: float = 0.5
    check_every: int = 100
    patience: int = 0
    tied_start: bool = True
    groups: int = 2
    graph_scale: float = 3.0
    look_ahead: bool = False
    gru_width: int = 32


@dataclass(frozen=True)
class Arm:
    """What an arm changes.

    Attributes:
        graph: which embedding of the stocks.
        split: ``wavelet``, ``none`` (both branches get the whole window) or ``average`` (a moving average and the rest).
        high: whether there is a high branch.
        returns, direction: weights of the two tasks.
        gru: a recurrent network over each stock's own days in the place of the model.
    """

    graph: Graph = "laplacian"
    split: str = "wavelet"
    high: bool = True
    returns: float = 1.0
    direction: float = 1.0
    gru: bool = False


FULL = "full model"
ARMS: dict[str, Arm] = {
    FULL: Arm(),
    "no graph": Arm(graph="none"),
    "struc2vec graph": Arm(graph="struc2vec"),
    "no wavelet": Arm(split="none"),
    "moving average": Arm(split="average"),
    "low branch alone": Arm(high=False),
    "returns alone": Arm(direction=0.0),
    "direction alone": Arm(returns=0.0),
    "GRU": Arm(gru=True),
}
SPLITS: dict[str, Split] = {"wavelet": WaveletSplit(), "none": no_split, "average": moving_average}


@dataclass(frozen=True)
class Task:
    """A panel with its splits: target days of training, validation and test."""

    panel: Panel
    train: range
    validation: range
    test: range

    def __post_init__(self) -> None:
        check_splits({"train": self.train, "validation": self.validation, "test": self.test})

    def judged(self, horizon: int) -> range:
        """The days that are judged: the first target day of every test window."""
        return range(self.test.start, self.test.stop - horizon + 1)


class OwnLags(nn.Module):
    """The baseline that cannot pool: a GRU over each stock's own window, with the same inputs and the same two tasks."""

    def __init__(self, features: int, width: int, horizon: int) -> None:
        super().__init__()
        self.gru = nn.GRU(features, width, batch_first=True)
        self.returns = nn.Linear(width, horizon)
        self.direction = nn.Linear(width, 2 * horizon)

    def forward(self, returns: Tensor, up: Tensor, factors: Tensor) -> Prediction:
        """Returns and indicator (B, T1, N), factors (B, T1, N, F); its low branch is its only one."""
        inputs = torch.cat([returns[..., None], up[..., None], factors], -1).transpose(1, 2)  # (B, N, T1, features)
        state = self.gru(inputs.flatten(0, 1))[0][:, -1].unflatten(0, inputs.shape[:2])  # (B, N, width)
        predicted = self.returns(state).transpose(1, 2)
        direction = self.direction(state).unflatten(-1, (-1, 2)).transpose(1, 2)
        return Prediction(predicted, direction, predicted, direction)


def graph_embedding(task: Task, recipe: Recipe, graph: Graph, seed: int) -> Tensor:
    """G (N, width) from the training days, or from all days where the recipe looks ahead."""
    stocks = task.panel.returns.shape[1]
    if graph == "none":
        return torch.zeros(stocks, recipe.width)
    days = task.panel.returns if recipe.look_ahead else task.panel.returns[: task.train.stop]
    found = return_correlation(days.double())
    scale = recipe.graph_scale
    if graph == "laplacian":
        return laplacian_embedding(found, recipe.width, count=recipe.groups, scale=scale)
    embed = struc2vec_embedding if graph == "struc2vec" else walk_embedding
    return embed(found, recipe.width, generator=stream(seed, "walks"), scale=scale)


def build(recipe: Recipe, arm: Arm, features: int, seed: int) -> nn.Module:
    """The untrained model of a seed; arms with a part less have the same start in all others."""
    with seeded(seed):
        if arm.gru:
            return OwnLags(features, recipe.gru_width, recipe.horizon)
        sizes = {"days": recipe.days, "horizon": recipe.horizon, "tied_start": recipe.tied_start}
        model = Stockformer(features, recipe.width, recipe.blocks, **sizes)  # type: ignore[arg-type]
        if not arm.high:
            whole = model.state_dict()
            model = Stockformer(features, recipe.width, recipe.blocks, high=False, **sizes)  # type: ignore[arg-type]
            model.load_state_dict({name: whole[name] for name in model.state_dict()})
    return model


def predict(model: nn.Module, batch: Batch, graph: Tensor) -> Prediction:
    """What a model of either kind says of a batch."""
    found: Prediction
    if isinstance(model, OwnLags):
        found = model(batch.low, batch.up, batch.factors)
    else:
        found = model(batch.low, batch.high, batch.up, batch.factors, batch.marks, graph)
    return found


def weighted_loss(prediction: Prediction, batch: Batch, arm: Arm) -> Tensor:
    """The four terms, each pair weighted by its task; a baseline without a low branch has two."""
    terms = multitask_loss(prediction, batch.target, batch.low_target, batch.target_up)
    if arm.gru:
        return arm.returns * terms.returns + arm.direction * terms.direction
    return arm.returns * (terms.returns + terms.low_returns) + arm.direction * (terms.direction + terms.low_direction)


@dataclass(frozen=True)
class Trained:
    """A trained arm with what it needs to predict."""

    model: nn.Module
    windows: Windows
    graph: Tensor
    arm: Arm

    @torch.no_grad()
    def predict(self, ends: Tensor) -> Prediction:
        """Predictions of the windows whose last input days are ``ends``, as many at once as fit in some ten million numbers."""
        device, stocks = self.graph.device, len(self.graph)
        at_once = max(1, 4_000_000 // (self.windows.days * stocks * max(stocks, self.graph.shape[1])))
        parts = [predict(self.model, _to(self.windows.batch(some), device), self.graph) for some in torch.split(ends, at_once)]
        return Prediction(*(torch.cat(tensors).cpu() for tensors in zip(*parts, strict=True)))


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(tensor.to(device) for tensor in batch))


def train(
    task: Task,
    recipe: Recipe,
    arm: Arm,
    seed: int,
    device: torch.device | str = "cpu",
    *,
    split: Split | None = None,
    graph: Tensor | None = None,
    progress: str | None = None,
) -> Trained:
    """Train one arm; the state with the smallest validation loss of its own task (masked MAE, or cross entropy) is kept.

    Args:
        task: panel and splits.
        recipe: sizes and steps.
        arm: what it changes.
        seed: of the weights and of the order of the windows.
        device: where to compute.
        split: the split of the windows, in the place of the arm's.
        graph: an embedding (N, width), in the place of the arm's.
        progress: label of a progress bar.
    """
    device = torch.device(device)
    windows = Windows(task.panel, days=recipe.days, horizon=recipe.horizon, split=no_split if arm.gru else split or SPLITS[arm.split])
    ends, checks = windows.ends(task.train), windows.ends(task.validation)
    embedding = (graph_embedding(task, recipe, arm.graph, seed) if graph is None else graph).to(device)
    model = build(recipe, arm, task.panel.factors.shape[2] + 2, seed).to(device)
    order = stream(seed, "windows")
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)
    falling = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=recipe.patience, min_lr=2e-6)
    lowest, best = float("inf"), deepcopy(model.state_dict())

    def loss_at(step: int) -> Tensor:
        chosen = ends[torch.randint(len(ends), (recipe.batch,), generator=order)]
        batch = _to(windows.batch(chosen), device)
        return weighted_loss(predict(model, batch, embedding), batch, arm)

    def after_step(step: int, loss: float) -> None:
        nonlocal lowest, best
        if (step + 1) % recipe.check_every and step + 1 != recipe.steps:
            return
        model.eval()
        found = validation_loss(Trained(model, windows, embedding, arm), checks)
        model.train()
        if recipe.patience:
            falling.step(found)
        if found < lowest:
            lowest, best = found, deepcopy(model.state_dict())

    with seeded(seed):  # dropout draws from the global state
        fit(model, loss_at, steps=recipe.steps, optimizer=optimizer, clip=recipe.clip, after_step=after_step, progress=progress)
    model.load_state_dict(best)
    return Trained(model.eval(), windows, embedding, arm)


def validation_loss(trained: Trained, ends: Tensor) -> float:
    """Masked MAE of both predicted days, or cross entropy where an arm predicts the direction alone."""
    prediction = trained.predict(ends)
    batch = trained.windows.batch(ends)
    terms = multitask_loss(prediction, batch.target, batch.low_target, batch.target_up)
    return float(terms.returns if trained.arm.returns else terms.direction)


def synthetic_task(market: Market, train: int, validation: int) -> Task:
    """A drawn market as a task: factors are means over the last 5, 10 and 16 days, marks the places in a week of 5 and a month of 21 days."""
    returns = market.returns.float()
    panel = Panel(returns, lag_means(returns, LAG_MEANS), _day_marks(len(returns)))
    return Task(panel, range(train), range(train, train + validation), range(train + validation, len(returns)))


def _day_marks(days: int) -> Tensor:
    day = torch.arange(days)
    return torch.stack([day % 5, day % 21], 1)


LAG_MEANS = (5, 10, 16)
REAL_TEST = np.datetime64("2010-01-01")
REAL_VALIDATION = 48  # months


def real_task(factors: Tensor | None = None) -> Task:
    """The monthly closes as a task: months before 2010 to learn from, the last 48 of them for validation, and all since then as test.

    Args:
        factors: (months, 7, F) of the last months, in the place of the lag means; earlier months are left out.
    """
    prices = monthly_stocks()
    returns = prices.log_returns.float()
    factors = lag_means(returns, LAG_MEANS) if factors is None else factors.float()
    left_out = len(returns) - len(factors)
    month = torch.from_numpy(prices.dates[1:].astype("datetime64[M]").astype("int64")) % 12
    panel = Panel(returns[left_out:], factors, torch.stack([month // 3, month], 1)[left_out:])
    first = int((prices.dates[1:] < REAL_TEST).sum()) - left_out
    return Task(panel, range(first - REAL_VALIDATION), range(first - REAL_VALIDATION, first), range(first, len(factors)))


def lags(returns: Tensor, count: int) -> Tensor:
    """The last ``count`` returns up to each day, 0 before the first: (days, N) to (days, N, count)."""
    return torch.cat([torch.zeros(count - 1, returns.shape[1]).to(returns), returns]).unfold(0, count, 1)


def ridge(task: Task, features: Tensor, days: range, *, constant: bool = True) -> Tensor:
    """Next-day returns of ``days`` by ridge regression on the features of the day before, one set of weights for all stocks: (days, N).

    The penalty is the one with the smallest error on the validation days.

    Args:
        task: panel and splits.
        features: (days, N, K).
        days: to predict.
        constant: whether there is a constant, which learns how much stocks rise on the average.
    """
    padded = torch.cat([features, torch.full_like(features[..., :1], float(constant))], -1).double()
    returns = task.panel.returns.double()
    before, target = padded[task.train.start : task.train.stop - 1].flatten(0, 1), returns[task.train.start + 1 : task.train.stop].flatten()
    gram, moment = before.T @ before, before.T @ target
    found = []
    for penalty in (1e-3, 1e-2, 1e-1, 1.0, 10.0):
        weights = torch.linalg.solve(gram + penalty * len(target) * torch.eye(len(gram), dtype=torch.float64), moment)
        check = (padded[task.validation.start - 1 : task.validation.stop - 1] @ weights - returns[task.validation]).abs().mean()
        found.append((float(check), weights))
    best = min(found, key=lambda pair: pair[0])[1]
    predicted: Tensor = padded[days.start - 1 : days.stop - 1] @ best
    return predicted.float()


@dataclass(frozen=True)
class Forecast:
    """What an arm says of the judged days, each (days, N): returns (None where it predicts none), whether up, and the score that ranks the stocks."""

    returns: Tensor | None
    up: Tensor
    score: Tensor


def forecast(trained: Trained, ends: Tensor) -> Forecast:
    """The first predicted day of the fused branch; an arm without the return task ranks by the probability of a rise."""
    prediction = trained.predict(ends)
    returns, direction = prediction.returns[:, 0], prediction.direction[:, 0]
    rise = direction[..., 1] - direction[..., 0]
    up = rise > 0 if trained.arm.direction else returns > 0
    return Forecast(returns, up, returns) if trained.arm.returns else Forecast(None, up, rise)


def point_forecast(returns: Tensor) -> Forecast:
    """A forecast of returns alone; up is where it is above 0."""
    return Forecast(returns, returns > 0, returns)


@dataclass(frozen=True)
class Strategy:
    """The back-test: stocks held, how many may be exchanged a day, and costs as shares of the amount."""

    k: int = 6
    drop: int = 1
    buy: float = 0.0005
    sell: float = 0.0015


def quality(found: Forecast, returns: Tensor) -> dict[str, float]:
    """Rank IC, MAE over that of zero (where returns are predicted), share of right directions."""
    metrics = {"rank IC": mean_ic(rank_ic(found.score, returns)).mean, "direction accuracy": direction_accuracy(found.up, returns)}
    if found.returns is not None:
        metrics["MAE ratio"] = mae_ratio(found.returns, returns)
    return metrics


REGIMES = ("falling", "flat", "rising")


def portfolio(score: Tensor, returns: Tensor, strategy: Strategy) -> dict[str, float]:
    """The back-test in figures: year's return after costs, the same ratio to risk, largest loss, turnover, and what is gained on holding all stocks.

    Args:
        score: (days, N), known before the day.
        returns: (days, N), per cent.
        strategy: what is traded, and what it costs.
    """
    found = top_k_dropout(score, returns / 100, k=strategy.k, drop=strategy.drop, buy=strategy.buy, sell=strategy.sell)
    return {**_wealth(found.net), "turnover": float(found.turnover.mean()), **_gains(found.net - equal_weights(returns / 100), returns)}


def _wealth(net: Tensor) -> dict[str, float]:
    held = Backtest(net, net, torch.zeros_like(net), torch.zeros(len(net), 1, dtype=torch.bool))
    return {"net return": 100 * held.annual_return, "Sharpe ratio": held.sharpe, "drawdown": 100 * held.drawdown}


def _gains(excess: Tensor, returns: Tensor) -> dict[str, float]:
    """Mean gain of a day on the equal-weighted market, basis points: over all days and over those after a falling, flat and rising month."""
    regime = regimes(returns)
    return {
        "gain": 1e4 * float(excess.mean()),
        **{f"gain, {name}": 1e4 * float(excess[regime == at].mean()) for at, name in enumerate(REGIMES)},
    }


@dataclass(frozen=True)
class StockSettings(Settings):
    """Settings of a scale.

    Attributes:
        world: of the synthetic market.
        days, train, validation: of the market; the rest are test days.
        recipe: model and training.
        real: the same for the real prices.
        arms: names of the arms that are trained.
        strategy: of the back-test.
        factors: ``means`` of the last returns, or ``prices``: 60 lags of six kinds of prices and volume, neutralised (real prices: closes alone).
    """

    world: World = field(default_factory=World)
    days: int = 2900
    train: int = 1600
    validation: int = 300
    recipe: Recipe = Recipe()
    real: Recipe = Recipe(steps=300)
    arms: tuple[str, ...] = tuple(ARMS)
    strategy: Strategy = Strategy()
    factors: str = "means"


def price_task(market: Market, train: int, validation: int, generator: torch.Generator) -> Task:
    """A drawn market with daily bars around it and the 360 price-volume factors, neutralised against log market value and sector.

    The first 59 days, which have too few days before them, are left out; ``train`` and ``validation`` count the days that remain.
    """
    fields = price_fields(market.returns, generator=generator)
    raw = price_volume_factors(fields)
    left_out = len(market.returns) - len(raw)
    shares = torch.randn(market.returns.shape[1], generator=generator, dtype=torch.float64)
    sectors = nn.functional.one_hot(market.world.sector).double().expand(len(raw), -1, -1)
    exposures = torch.cat([(fields["close"].log() + shares)[left_out:, :, None], sectors], -1)
    panel = Panel(market.returns[left_out:].float(), neutralise(raw, exposures).float(), _day_marks(len(raw)))
    return Task(panel, range(train), range(train, train + validation), range(train + validation, len(raw)))


def tasks(settings: StockSettings, seed: int) -> tuple[Market, Task, Task]:
    """The drawn market, its task, and the task of the real prices."""
    market = sample_market(settings.days, settings.world, generator=stream(seed, "market"))
    if settings.factors == "means":
        return market, synthetic_task(market, settings.train, settings.validation), real_task()
    closes = price_volume_factors({"close": monthly_stocks().close})
    return market, price_task(market, settings.train, settings.validation, stream(seed, "bars")), real_task(closes)


def run(settings: StockSettings, seed: int, device: torch.device) -> Arms:
    """One seed: a drawn market with every arm and its optimum, then the real prices."""
    market, task, real = tasks(settings, seed)
    arms = synthetic_arms(settings, market, task, seed, device)
    arms.update(real_arms(settings, real, seed, device))
    return arms


def synthetic_arms(settings: StockSettings, market: Market, task: Task, seed: int, device: torch.device) -> Arms:
    """Every arm on the drawn market."""
    days = task.judged(settings.recipe.horizon)
    left_out = len(market.returns) - len(task.panel.returns)
    returns, shocked = task.panel.returns[days], market.shocked[left_out:][days]
    sector_means = task.panel.returns.view(-1, settings.world.sectors, settings.world.stocks).mean(2)[:, market.world.sector]
    forecasts = {
        "optimum": point_forecast(best_prediction(market)[left_out:][days].float()),
        "ridge on sector means": point_forecast(ridge(task, lags(sector_means, 20), days)),
        "ridge on own lags": point_forecast(ridge(task, lags(task.panel.returns, 20), days)),
    }
    for name in settings.arms:
        trained = train(task, settings.recipe, ARMS[name], seed, device)
        forecasts[name] = forecast(trained, trained.windows.ends(task.test))
    arms: Arms = {}
    for name, found in forecasts.items():
        arms[name] = {**quality(found, returns), **portfolio(found.score, returns, settings.strategy)}
        if found.returns is not None:
            arms[name]["shock correlation"] = float(correlation(found.returns[shocked], returns[shocked]))
    followed = replace(settings.strategy, drop=settings.strategy.k)
    arms["full model, no dropout"] = portfolio(forecasts[FULL].score, returns, followed)
    market_return = equal_weights(returns / 100)
    arms["all stocks"] = {**_wealth(market_return), **_gains(torch.zeros_like(market_return), returns)}
    arms["zero"] = {"MAE ratio": 1.0, "direction accuracy": _base_rate(task, returns)}
    return arms


def _base_rate(task: Task, returns: Tensor) -> float:
    """Share of right directions of the one that is more frequent in training."""
    up = (task.panel.returns[task.train] > 0).double().mean() > 0.5
    return direction_accuracy(up.expand(returns.shape), returns)


def real_arms(settings: StockSettings, task: Task, seed: int, device: torch.device) -> Arms:
    """The null check: model, GRU and ridge on real monthly prices, beside zero, the best constant of the training months, the frequent direction."""
    days = task.judged(settings.real.horizon)
    returns = task.panel.returns[days]
    own = lags(task.panel.returns, 6)
    forecasts = {
        "real: ridge on own lags": point_forecast(ridge(task, own, days)),
        "real: ridge, no constant": point_forecast(ridge(task, own, days, constant=False)),
    }
    for name in (FULL, "GRU"):
        trained = train(task, settings.real, ARMS[name], seed, device)
        forecasts[f"real: {name}"] = forecast(trained, trained.windows.ends(task.test))
    arms: Arms = {}
    for name, found in forecasts.items():
        arms[name] = {f"real {metric}": value for metric, value in quality(found, returns).items()}
        interval = mean_ic(rank_ic(found.score, returns))
        arms[name] |= {"real rank IC, low end": interval.low, "real rank IC, high end": interval.high}
    drift = task.panel.returns[task.train].median()  # no constant has a smaller absolute error in training
    arms["real: constant"] = {"real MAE ratio": mae_ratio(drift, returns)}
    arms["real: zero"] = {"real MAE ratio": 1.0, "real direction accuracy": _base_rate(task, returns)}
    return arms


QUICK = Recipe(steps=4, check_every=4, gru_width=8)
PAPER = Recipe(
    days=20, horizon=2, width=128, blocks=2, steps=4000, batch=12, learning_rate=1e-3, check_every=40, patience=20, groups=15, tied_start=False,
    gru_width=64,
)  # fmt: skip

EXPERIMENT = Experiment(
    paper="stockformer",
    question="Do a graph of stocks, a wavelet split and two tasks help to predict next-day returns, and does anything help on real prices?",
    scales={
        "quick": StockSettings(seeds=2, world=World(stocks=4), days=300, train=180, validation=40, recipe=QUICK, real=QUICK, strategy=Strategy(k=2)),
        "laptop": StockSettings(seeds=5),
        "paper": StockSettings(
            seeds=5,
            world=World(sectors=15, stocks=17),
            days=59 + 485 + 81 + 81,
            train=485,
            validation=81,
            recipe=PAPER,
            real=replace(PAPER, groups=2),
            strategy=Strategy(k=50, drop=5),
            factors="prices",
        ),
    },
    claims=(
        Claim(FULL, "no graph", "rank IC", says="With the graph of stocks the model ranks tomorrow's returns better than without."),
        Claim(FULL, "no graph", "MAE ratio", higher_is_better=False, says="With the graph of stocks the absolute error is smaller."),
        Claim(FULL, "GRU", "rank IC", says="The model ranks better than a GRU on each stock's own days, which cannot pool."),
        Claim(FULL, "ridge on own lags", "rank IC", says="The model ranks better than ridge regression on each stock's own 20 days."),
        Claim(
            FULL,
            "ridge on sector means",
            "rank IC",
            says="The model ranks better than ridge regression on the means of the sectors, which it must find.",
        ),
        Claim(FULL, "struc2vec graph", "rank IC", says="Laplacian eigenvectors (who is near whom) serve better than struc2vec (who has which role)."),
        Claim(FULL, "no wavelet", "rank IC", says="Splitting the window by a wavelet ranks better than giving both branches the whole window."),
        Claim(FULL, "moving average", "rank IC", says="The wavelet split ranks better than a moving average and the rest."),
        Claim(FULL, "low branch alone", "rank IC", says="Two branches rank better than the low one alone."),
        Claim(FULL, "GRU", "shock correlation", says="On days after a jump the predictions follow the returns more closely than a GRU's."),
        Claim(
            FULL,
            "low branch alone",
            "shock correlation",
            says="The high branch catches shocks: on days after a jump, two branches do better than one.",
        ),
        Claim(FULL, "returns alone", "rank IC", says="Training the direction beside the return ranks better than the return alone."),
        Claim(FULL, "direction alone", "rank IC", says="Two tasks rank better than the direction alone, ranked by the probability of a rise."),
        Claim(FULL, None, "gain", says="After costs, the top-k portfolio with dropout earns more than holding all stocks."),
        Claim(FULL, None, "gain, falling", says="It does so, too, on the days after a falling month."),
        Claim(
            FULL,
            "full model, no dropout",
            "net return",
            says="After costs, exchanging few stocks a day leaves more than following the ranking at once.",
        ),
        Claim(
            "real: full model",
            "real: zero",
            "real MAE ratio",
            higher_is_better=False,
            says="On real monthly prices the model's absolute error is below that of predicting zero.",
        ),
        Claim(
            "real: full model",
            "real: constant",
            "real MAE ratio",
            higher_is_better=False,
            says="On real monthly prices it is below that of one constant, how much stocks rose before.",
        ),
        Claim(
            "real: full model",
            None,
            "real rank IC, low end",
            says="On real monthly prices the 95 % interval of the rank IC over the months lies above zero (the seeds share the prices).",
        ),
        Claim(
            "real: full model",
            "real: zero",
            "real direction accuracy",
            says="On real monthly prices the model calls the direction better than the more frequent one does.",
        ),
    ),
    run=run,
    units={
        "rank IC": "mean over the days of the rank correlation over the stocks",
        "MAE ratio": "absolute error over that of predicting zero",
        "direction accuracy": "share of right directions",
        "shock correlation": "correlation of prediction and return on the day after a jump",
        "net return": "per cent a year, after costs",
        "Sharpe ratio": "of a year, after costs",
        "drawdown": "largest loss from a peak, per cent",
        "turnover": "share of the portfolio sold a day",
        "gain": "basis points a day over holding all stocks, after costs",
        **{f"gain, {name}": f"basis points a day over holding all stocks, after a {name} month" for name in REGIMES},
        "real rank IC": "mean over the months of the rank correlation over 7 series",
        "real rank IC, low end": "of its 95 % interval over the months",
        "real rank IC, high end": "of its 95 % interval over the months",
        "real MAE ratio": "absolute error over that of predicting zero",
        "real direction accuracy": "share of right directions",
    },
)


WAVELETS, LEVELS = ("haar", "sym2", "db4"), (1, 2, 3)


@dataclass(frozen=True)
class Shipped:
    """Settings of the models that an explorer needs: one for each wavelet and level, on a drawn market and on the real prices.

    Attributes:
        seed: of all draws.
        days, train, validation: of the market.
        recipe, real: as in the experiment, with a window long enough for three levels.
    """

    seed: int = 1000
    days: int = 2300
    train: int = 1600
    validation: int = 300
    recipe: Recipe = Recipe(days=16)
    real: Recipe = Recipe(days=16, steps=300)

    def tasks(self) -> tuple[Market, dict[str, Task]]:
        """The drawn market, and the tasks by name."""
        market = sample_market(self.days, generator=stream(self.seed, "market"))
        return market, {"drawn": synthetic_task(market, self.train, self.validation), "real": real_task()}


class Tested(nn.Module):
    """A trained model with its graph embedding and what it did on the test days.

    Attributes:
        graph: (N, width).
        gain: of each judged day, absolute error of zero less that of the prediction, mean over the stocks: (days,).
        ic: rank IC of each judged day (days,).
    """

    graph: Tensor
    gain: Tensor
    ic: Tensor

    def __init__(self, recipe: Recipe, stocks: int, days: int) -> None:
        super().__init__()
        self.model = build(recipe, Arm(), 2 + len(LAG_MEANS), 0)
        for name, shape in (("graph", (stocks, recipe.width)), ("gain", (days,)), ("ic", (days,))):
            self.register_buffer(name, torch.zeros(shape))


def _shipped_names(shipped: Shipped) -> dict[str, tuple[str, str, int, Recipe]]:
    """``drawn sym2 1`` and so on, to the task, the wavelet, the level and the recipe."""
    recipes = {"drawn": shipped.recipe, "real": shipped.real}
    return {f"{task} {w} {level}": (task, w, level, recipe) for task, recipe in recipes.items() for w in WAVELETS for level in LEVELS}


def build_shipped(shipped: Shipped) -> nn.ModuleDict:
    """The models by name, untrained."""
    sizes = {"drawn": (len(World().sector), shipped.days - shipped.train - shipped.validation)}
    real = real_task()
    sizes["real"] = (real.panel.returns.shape[1], len(real.test))
    return nn.ModuleDict(
        {name: Tested(recipe, sizes[task][0], sizes[task][1] - recipe.horizon + 1) for name, (task, _, _, recipe) in _shipped_names(shipped).items()}
    )


def train_shipped(shipped: Shipped, progress: str | None = None) -> nn.ModuleDict:
    """The models, trained and tested."""
    known = shipped.tasks()[1]
    models = build_shipped(shipped)
    for name, (task, wavelet, level, recipe) in _shipped_names(shipped).items():
        split = WaveletSplit(wavelet, level)
        trained = train(known[task], recipe, Arm(), shipped.seed, split=split, progress=progress and f"{progress}: {name}")
        returns = known[task].panel.returns[known[task].judged(recipe.horizon)]
        predicted = forecast(trained, trained.windows.ends(known[task].test)).score
        tested = models[name]
        assert isinstance(tested, Tested)
        tested.model = trained.model
        tested.graph.copy_(trained.graph)
        tested.gain.copy_((returns.abs() - (predicted - returns).abs()).mean(1))
        tested.ic.copy_(rank_ic(predicted, returns))
    return models


def measure_shipped(models: nn.Module) -> dict[str, float]:
    """Mean rank IC over the test days of each model."""
    assert isinstance(models, nn.ModuleDict)
    return {f"{name}: rank IC": round(mean_ic(tested.ic).mean, 4) for name, tested in models.items() if isinstance(tested, Tested)}


CHECKPOINTS = (Checkpoint("stockformer-wavelets", Shipped(), build_shipped, train_shipped, measure_shipped),)
