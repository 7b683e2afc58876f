"""AutoTransfer: networks side by side, features, projection, priors, searches, the shipped bank, and all parts."""

import dataclasses
import json
import os
from pathlib import Path

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GraphConv, SAGEConv, global_mean_pool

from mtlearn.datasets.graph_tasks import TASKS, graph_task, plain_statistics, published_task, with_split
from mtlearn.graphs.autotransfer import bank as bank_module
from mtlearn.graphs.autotransfer import experiment, explorer, transfer
from mtlearn.graphs.autotransfer.bank import (
    Bank,
    BankError,
    Making,
    Row,
    checked_task,
    load_bank,
    make_bank,
    make_row,
    scores_from_records,
    shipped_bank,
    shipped_path,
    train_architecture,
    train_designs,
)
from mtlearn.graphs.autotransfer.exercises import EXERCISES
from mtlearn.graphs.autotransfer.experiment import EXPERIMENT, TransferSettings
from mtlearn.graphs.autotransfer.gnn import AGGREGATIONS, SKIPS, Architecture, GraphTask, head_input, initial_weights, logits, normalised, shapes
from mtlearn.graphs.autotransfer.method import (
    PAPER_ANCHORS,
    SPACE,
    DesignSpace,
    Features,
    Projection,
    concentration,
    design_distribution,
    design_prior,
    draw_triples,
    fisher,
    fit_head,
    kendall,
    message_fisher,
    normalised_features,
    task_feature,
    triple_loss,
)
from mtlearn.graphs.autotransfer.search import TPE, Evolution, Random, mutations, regret, search, tpe_options, trials_until
from mtlearn.graphs.autotransfer.transfer import (
    AS_PUBLISHED,
    FLAWS,
    PUBLISHED_CODE,
    Recipe,
    leave_one_out,
    leave_one_out_priors,
    others,
    prior_of,
    projected,
    similarities,
    transferred_prior,
)
from mtlearn.lab.result import check_arms, judge
from mtlearn.lab.seeds import stream

SMALL = DesignSpace((("layers", (0, 1)), ("aggregation", ("add", "max")), ("skip", ("none", "sum")), ("learning rate", (0.1, 0.01))))
TINY = Making(
    epochs=3, width=4, training_seeds=(0,), embedding_seeds=(0,), features=Features((Architecture(1, "add", "sum", 4),), 2, steps=3, draws=1)
)


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [stream(seed, "test", k) for k in range(count)]


def small_task(nodes: int = 24, **changes: object) -> Data:
    """A ring with chords, two classes that differ in their inputs."""
    ring = torch.stack([torch.arange(nodes), (torch.arange(nodes) + 1) % nodes])
    chords = torch.stack([torch.arange(0, nodes // 2, 3), torch.arange(0, nodes // 2, 3) + nodes // 2])
    one_way = torch.cat([ring, chords], 1)
    y = torch.arange(nodes) * 2 // nodes
    x = torch.randn(nodes, 3, generator=stream(0, "x")) + y[:, None]
    data = with_split(Data(x=x, edge_index=torch.cat([one_way, one_way.flip(0)], 1), y=y))
    for name, value in changes.items():
        setattr(data, name, value)
    return data


# networks side by side


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("skip", SKIPS)
def test_networks_side_by_side_are_the_layers_of_torch_geometric_one_by_one(aggregation: str, skip: str) -> None:
    for data in (small_task(), graph_task("gens")):
        task = GraphTask.of(data)
        architecture = Architecture(2, aggregation, skip, 5)
        weights = initial_weights(architecture, data.x.shape[1], task.classes, generators(3))
        together = logits(weights, architecture, task)
        for model in range(3):
            own = {name: weight[model] for name, weight in weights.items()}
            h = data.x @ own["pre"] + own["pre bias"]
            h = (h if task.constant else F.batch_norm(h, None, None, training=True)).relu()
            streams = [h]
            for layer in range(2):
                convolution = GraphConv(5, 5, aggr=aggregation, bias=False) if aggregation != "mean" else SAGEConv(5, 5, bias=False)
                neighbours, self_ = (convolution.lin_rel, convolution.lin_root) if aggregation != "mean" else (convolution.lin_l, convolution.lin_r)
                neighbours.weight.data, self_.weight.data = own[f"message {layer} neighbours"].T, own[f"message {layer} self"].T
                step = F.batch_norm(convolution(h, data.edge_index), None, None, training=True).relu()
                h = h + step if skip == "sum" else step
                streams.append(h)
            read = torch.cat(streams, 1) if skip == "concat" else h
            read = global_mean_pool(read, data.batch) if isinstance(data, Batch) else read
            wanted = read @ own["post"] + own["post bias"]
            torch.testing.assert_close(together[model], wanted, rtol=1e-3, atol=1e-3)


def test_an_isolated_node_hears_nothing_and_a_constant_unit_becomes_zero() -> None:
    data = small_task()
    data.edge_index = data.edge_index[:, (data.edge_index != 5).all(0)]
    task = GraphTask.of(data)
    for aggregation in AGGREGATIONS:
        architecture = Architecture(1, aggregation, "none", 4)
        weights = initial_weights(architecture, 3, 2, generators(2))
        assert logits(weights, architecture, task).isfinite().all()
    constant = torch.full((1, 30, 2), 0.1)
    constant[..., 1] = torch.arange(30.0)
    found = normalised(constant)
    assert (found[..., 0] == 0).all() and found[..., 1].std(correction=0) == pytest.approx(1, abs=1e-3)
    constant.requires_grad_()
    normalised(constant).square().sum().backward()
    assert constant.grad is not None and constant.grad.isfinite().all() and (constant.grad[..., 0] == 0).all()


def test_message_weights_of_a_generator_do_not_depend_on_the_task() -> None:
    architecture = Architecture(2, "add", "concat", 6)
    few, many = (initial_weights(architecture, inputs, classes, generators(2)) for inputs, classes in ((1, 2), (50, 7)))
    assert torch.equal(few["message 1 self"], many["message 1 self"])
    assert {name: tuple(weight.shape[1:]) for name, weight in many.items()} == shapes(architecture, 50, 7)
    assert many["post"].shape == (2, 18, 7) and float(many["pre"].abs().max()) <= 50**-0.5


def test_training_many_networks_at_once_is_training_each_alone() -> None:
    task = GraphTask.of(small_task())
    architecture = Architecture(1, "mean", "sum", 4)
    together = train_architecture(task, architecture, (0.1, 0.01), epochs=4, seeds=(0, 1))
    alone = [[train_architecture(task, architecture, (rate,), epochs=4, seeds=(seed,)) for seed in (0, 1)] for rate in (0.1, 0.01)]
    for part in (0, 1):
        wanted = torch.tensor([[float(alone[rate][seed][part]) for seed in (0, 1)] for rate in (0, 1)]).mean(1)
        torch.testing.assert_close(together[part].float(), wanted)


def test_without_layers_a_design_is_trained_once_for_all_aggregations_and_skips() -> None:
    task = GraphTask.of(small_task())
    validation, test = train_designs(task, SMALL, TINY, only=lambda architecture: architecture.layers == 0)
    assert validation.shape == test.shape == (16,)
    assert torch.equal(validation[:8].view(4, 2), validation[:2].expand(4, 2)) and validation[8:].isnan().all()
    with pytest.raises(ValueError, match="in this order, got layers, skip"):
        train_designs(task, DesignSpace((("layers", (0,)), ("skip", ("none",)))))


# step 1


@given(st.floats(1e-20, 1e20), st.integers(2, 60))
@settings(deadline=None, max_examples=30)
def test_concentration_ignores_scale_and_counts_the_weights_that_matter(scale: float, n: int) -> None:
    information = torch.rand(3, n, generator=stream(n, "fisher"), dtype=torch.float64) + 0.01
    torch.testing.assert_close(concentration(scale * information), concentration(information))
    assert bool((concentration(information) > 1).all())
    assert concentration(torch.full((n,), scale)) == pytest.approx(1)
    hot = torch.zeros(n)
    assert concentration(hot) == n
    hot[n // 2] = scale
    assert concentration(hot) == pytest.approx(n)
    hot[(n // 2 + 1) % n] = scale
    assert concentration(hot) == pytest.approx(n / 2)


def test_one_batch_of_gaussian_gradients_has_concentration_three() -> None:
    gradients = torch.randn(5, 100_000, generator=stream(0, "gaussian"))
    assert concentration(gradients.square()).tolist() == pytest.approx([3.0] * 5, abs=0.1)


def head_problem() -> tuple[torch.Tensor, torch.Tensor]:
    draws = stream(0, "head")
    inputs = torch.randn(2, 80, 4, generator=draws)
    return inputs, (inputs[0, :, 0] + 0.8 * torch.randn(80, generator=draws) > 0).long()


def test_the_head_reaches_ridge_regression() -> None:
    inputs, y = head_problem()
    recipe = Features(steps=1000, learning_rate=2e-2, decay=1e-2, patience=1000)
    target = F.one_hot(y, 2).float()
    weight, bias = fit_head(inputs, target, torch.zeros(2, 4, 2), torch.zeros(2, 2), recipe, loss=F.mse_loss)
    padded = F.pad(inputs, (0, 1), value=1.0).double()
    # the mean over items and classes of the squared error, plus decay / 2 of the squared weights
    gram = padded.transpose(1, 2) @ padded / 80 + recipe.decay * torch.eye(5, dtype=torch.float64)
    wanted = torch.linalg.solve(gram, padded.transpose(1, 2) @ target.double() / 80)
    torch.testing.assert_close(torch.cat([weight, bias[:, None]], 1).double(), wanted, rtol=1e-3, atol=1e-3)


def test_the_head_reaches_logistic_regression() -> None:
    inputs, y = head_problem()
    recipe = Features(steps=500, patience=500)
    weight, bias = fit_head(inputs, y, torch.zeros(2, 4, 2), torch.zeros(2, 2), recipe)
    for model in range(2):
        reference = LogisticRegression(C=2 / (80 * recipe.decay), tol=1e-8, max_iter=1000)  # two classes: w and -w share the decay
        reference.fit(inputs[model].numpy(), y.numpy())
        wanted = F.cross_entropy(torch.from_numpy(reference.predict_log_proba(inputs[model].numpy())), y)
        found = F.cross_entropy((inputs[model] @ weight[model] + bias[model]).double(), y)
        assert float(found) == pytest.approx(float(wanted), rel=1e-3)


def test_the_fit_of_the_head_ends_when_nothing_is_gained() -> None:
    inputs, y = head_problem()
    start = torch.zeros(2, 4, 2), torch.zeros(2, 2)
    patient = fit_head(inputs, y, *start, Features(steps=300, tolerance=0.0, patience=3000))
    eager = fit_head(inputs, y, *start, Features(steps=300, tolerance=0.5, patience=3))
    three = fit_head(inputs, y, *start, Features(steps=4, tolerance=0.0))
    assert float(eager[0].norm()) < float(patient[0].norm())
    torch.testing.assert_close(eager, three)  # the first step lowers the loss from infinity, three more do not halve it
    assert (start[0] == 0).all()


def test_monte_carlo_fisher_of_a_linear_softmax_has_the_expectation_in_closed_form() -> None:
    draws = stream(0, "softmax")
    x, weight = torch.randn(6, 4, generator=draws), torch.randn(4, 3, generator=draws)
    many = weight.expand(5000, -1, -1).clone().requires_grad_()
    found = fisher(x @ many, [many], batch=1, draws=1, generator=stream(1, "labels")).mean(0).view(4, 3)
    p = (x @ weight).softmax(1)
    wanted = torch.einsum("xc,xf->fc", p * (1 - p), x.square())
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0)
    averaged = fisher(x @ many[:50], [many], batch=1, draws=100, generator=stream(2, "labels"))[:50].mean(0).view(4, 3)
    torch.testing.assert_close(averaged, wanted, rtol=0.05, atol=0)


def test_one_batch_of_all_items_squares_the_gradient_of_the_mean() -> None:
    x, weight = torch.randn(1, 6, 4, generator=stream(0, "x")), torch.randn(1, 4, 3, generator=stream(1, "x")).requires_grad_()
    labels = torch.multinomial((x @ weight).detach().softmax(-1)[0], 1, generator=stream(2, "labels"))[:, 0]
    (gradient,) = torch.autograd.grad(F.cross_entropy((x @ weight)[0], labels), weight)
    found = fisher(x @ weight, [weight], generator=stream(2, "labels"))
    torch.testing.assert_close(found, gradient.flatten(1).square())


def test_the_feature_reads_message_weights_alone_and_repeats() -> None:
    task = GraphTask.of(small_task())
    recipe = Features(initialisations=3, steps=5, draws=2)
    first, again, other = (task_feature(task, recipe, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (6,) and first.dtype == torch.float64 and bool((first >= 1).all())
    anchor = recipe.anchors[0]
    weights = initial_weights(anchor, 3, 2, generators(2))
    assert message_fisher(weights, anchor, task, recipe, stream(0, "labels")).shape == (2, 2 * 2 * 16 * 16)


def test_where_all_inputs_are_equal_mean_and_max_give_no_gradient_and_the_feature_is_its_largest() -> None:
    feature = task_feature(GraphTask.of(graph_task("roles")), Features(initialisations=4, steps=5), seed=0)
    assert feature[[1, 2]].tolist() == [1024, 1024] and feature[[4, 5]].tolist() == [2048, 2048]
    assert bool((feature[[0, 3]] < 1000).all())


def test_features_are_standardised_over_the_bank_and_made_as_long_as_one() -> None:
    bank = torch.rand(7, 6, generator=stream(0, "bank"), dtype=torch.float64) * 50 + 1
    ours = normalised_features(bank, bank)
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(7, dtype=torch.float64))
    logs = bank.log()
    torch.testing.assert_close(ours, F.normalize((logs - logs.mean(0)) / logs.std(0), dim=1))
    torch.testing.assert_close(normalised_features(bank, bank, log=False), bank / bank.norm(dim=1, keepdim=True))
    torch.testing.assert_close(normalised_features(3 * bank, 3 * bank), ours)  # the scale of a feature says nothing
    assert len(PAPER_ANCHORS) == 12 and {anchor.width for anchor in PAPER_ANCHORS} == {256}


# step 2


def test_kendall_is_that_of_scipy_and_of_scores_not_of_sorted_lists() -> None:
    scores = torch.randint(6, (5, 40), generator=stream(0, "scores")).double()
    found = kendall(scores)
    wanted = [[stats.kendalltau(a, b).statistic for b in scores.numpy()] for a in scores.numpy()]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))
    # what the published program does: correlate the two lists of design numbers, each sorted by score
    random = torch.rand(200, 2, 4, generator=stream(1, "scores"))
    differ = 0
    for pair in random:
        lists = [one.argsort(descending=True).numpy() for one in pair]
        differ += abs(stats.kendalltau(*lists).statistic - float(kendall(pair)[0, 1])) > 1e-6
    assert differ > 60


def test_equal_scores_have_no_tau() -> None:
    scores = torch.rand(3, 5, generator=stream(0, "scores"))
    scores[1] = 0.5
    with pytest.raises(ValueError, match="same score on b: Kendall's tau is undefined"):
        kendall(scores, ("a", "b", "c"))
    with pytest.raises(ValueError, match="task 1"):
        kendall(scores)


def test_triples_are_distinct_ordered_and_uniform() -> None:
    tau = kendall(torch.rand(5, 150, generator=stream(0, "tau")))
    triples = draw_triples(tau[None], 4000, generator=stream(1, "triples"))[0]
    a, i, j = triples.unbind(1)
    assert bool((tau[a, i] > tau[a, j]).all()) and not ((a == i) | (a == j) | (i == j)).any()
    count = (25 * a + 5 * i + j).bincount()
    assert (count > 0).sum() == 5 * 6  # of 4 others, 6 pairs in one order each
    assert stats.chisquare(count[count > 0]).pvalue > 0.001
    repeated = draw_triples(tau[None], 4000, repeats=True, generator=stream(1, "triples"))[0]
    assert bool((repeated[:, 0] == repeated[:, 1]).any())


def test_triples_need_three_tasks_that_differ() -> None:
    with pytest.raises(ValueError, match="at least 3, got 2"):
        draw_triples(torch.eye(2)[None], 5)
    with pytest.raises(ValueError, match="the same for all pairs"):
        draw_triples(torch.ones(1, 4, 4), 5)


def test_the_loss_is_the_margin_ranking_loss() -> None:
    points = F.normalize(torch.randn(2, 6, 8, generator=stream(0, "points")), dim=-1).requires_grad_()
    triples = torch.randint(6, (2, 50, 3), generator=stream(1, "triples"))
    loss = triple_loss(points, triples)
    wanted = torch.zeros(())
    for copy in range(2):
        a, i, j = (points[copy][triples[copy, :, part]] for part in range(3))
        ones = torch.ones(50)
        wanted = wanted + torch.nn.MarginRankingLoss(margin=0.1)((a * i).sum(1), (a * j).sum(1), ones)
    torch.testing.assert_close(loss, wanted)
    gradients = [torch.autograd.grad(one, points, retain_graph=True)[0] for one in (loss, wanted)]
    torch.testing.assert_close(*gradients)


def test_projections_side_by_side_are_projections_alone() -> None:
    projection = Projection(6, copies=3, generator=stream(0, "projection"))
    points = torch.randn(3, 5, 6, generator=stream(1, "points"))
    found = projection(points)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3, 5))
    linear, second = torch.nn.Linear(6, 16), torch.nn.Linear(16, 16)
    linear.weight.data, linear.bias.data = projection.first[0, :-1].T, projection.first[0, -1]
    second.weight.data, second.bias.data = projection.second[0, :-1].T, projection.second[0, -1]
    torch.testing.assert_close(found[1], F.normalize(second(linear(points[1]).relu()), dim=-1))


def test_a_projection_brings_the_tasks_into_the_order_of_tau() -> None:
    bank = shipped_bank()
    tau = kendall(bank.validation)
    features = normalised_features(bank.features(0), bank.features(0)).float()
    embedding = transfer.embedded(bank.features(0)[None], bank.features(0)[:1], tau[None], Recipe(steps=200))[0, :-1]
    pairs = torch.triu_indices(14, 14, 1)
    before, after = (stats.spearmanr((x @ x.T)[pairs[0], pairs[1]], tau[pairs[0], pairs[1]]).statistic for x in (features, embedding))
    assert after > before + 0.2 and after > 0.7


# step 3


def test_the_distribution_counts_the_best_and_shares_ties() -> None:
    scores = torch.zeros(2, 16)
    scores[0, [3, 5]] = torch.tensor([2.0, 1.0])  # designs (0, add, sum, 0.01) and (0, max, none, 0.01); the other 14 tie
    found = design_distribution(scores, SMALL, best=2)
    assert SMALL.by_dimension(found[0]) == {
        "layers": {0: 1.0, 1: 0.0},
        "aggregation": {"add": 0.5, "max": 0.5},
        "skip": {"none": 0.5, "sum": 0.5},
        "learning rate": {0.1: 0.0, 0.01: 1.0},
    }
    torch.testing.assert_close(found[1], SMALL.uniform)
    three = SMALL.by_dimension(design_distribution(scores, SMALL, best=3)[0])
    assert three["layers"][0] == pytest.approx((2 + 6 / 14) / 3)


@given(st.integers(0, 1000), st.integers(1, 5))
@settings(deadline=None, max_examples=30)
def test_a_prior_is_a_probability_and_the_order_of_the_tasks_says_nothing(seed: int, k: int) -> None:
    draws = stream(seed, "prior")
    distributions = design_distribution(torch.rand(5, 108, generator=draws), SPACE)
    similarity = torch.rand(5, generator=draws, dtype=torch.float64) * 2 - 1
    prior = design_prior(distributions, similarity, SPACE, k=k)
    assert SPACE.check_prior(prior) is prior and bool((prior >= 0.1 / 4 - 1e-12).all())
    assert float(SPACE.joint(prior).sum()) == pytest.approx(1)
    order = torch.randperm(5, generator=draws)
    torch.testing.assert_close(design_prior(distributions[order], similarity[order], SPACE, k=k), prior)


def test_one_neighbour_gives_its_frequencies_and_equal_distances_the_plain_mean() -> None:
    distributions = design_distribution(torch.rand(4, 108, generator=stream(0, "scores")), SPACE)
    similarity = torch.tensor([0.1, 0.9, 0.3, -0.2], dtype=torch.float64)
    torch.testing.assert_close(design_prior(distributions, similarity, SPACE, k=1, smoothing=0.0), distributions[1])
    equal = torch.full((4,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(design_prior(distributions, equal, SPACE, k=4, smoothing=0.0), distributions.mean(0))
    two = design_prior(distributions, similarity, SPACE, k=2, smoothing=0.0)
    torch.testing.assert_close(two, (distributions[1] / 0.1 + distributions[2] / 0.7) / (1 / 0.1 + 1 / 0.7))
    same = torch.tensor([1.0, 1.0, 0.99, 0.0], dtype=torch.float64)  # tasks that coincide: the floor keeps 1/d finite
    torch.testing.assert_close(design_prior(distributions, same, SPACE, smoothing=0.0), distributions[:3].mean(0))


def test_what_is_no_prior_or_no_distribution_is_refused() -> None:
    scores = torch.rand(4, 108, generator=stream(0, "scores"))
    with pytest.raises(ValueError, match="k must be between 1 and the 4 tasks of the bank, got 5"):
        design_prior(design_distribution(scores, SPACE), torch.rand(4), SPACE, k=5)
    with pytest.raises(ValueError, match="best must be between 1 and 108 designs, got 200"):
        design_distribution(scores, SPACE, best=200)
    with pytest.raises(ValueError, match="this space has 16 designs, the scores are of 108"):
        design_distribution(scores, SMALL)
    scores[2, 7] = torch.nan
    with pytest.raises(ValueError, match="the score of design 7 is NaN"):
        design_distribution(scores, SPACE)
    with pytest.raises(ValueError, match=r"has shape \(13,\), got \(4,\)"):
        SPACE.check_prior(torch.rand(4))
    bad = SPACE.uniform
    bad[5] += 0.5
    with pytest.raises(ValueError, match="the prior of 'aggregation' must be 0 or more and sum to 1"):
        SPACE.check_prior(bad)


def test_the_space_numbers_its_designs_and_refuses_what_is_outside() -> None:
    assert len(SPACE.designs) == 108
    assert [SPACE.number(design) for design in SPACE.designs] == list(range(108))
    with pytest.raises(ValueError, match="aggregation must be one of add, mean, max, got 'median'"):
        SPACE.number({**SPACE.designs[0], "aggregation": "median"})
    with pytest.raises(ValueError, match="lacks the dimension 'skip'"):
        SPACE.number({"layers": 0, "aggregation": "add", "learning rate": 0.1})
    with pytest.raises(ValueError, match="'layers' needs options that differ"):
        DesignSpace((("layers", (1, 1)),))
    with pytest.raises(ValueError, match="layers must be 0 or more"):
        Architecture(-1, "add", "sum")
    with pytest.raises(ValueError, match="aggregation must be one of add, mean, max, got 'sum'"):
        Architecture(1, "sum", "sum")
    with pytest.raises(ValueError, match="skip must be one of none, sum, concat, got 'add'"):
        Architecture(1, "add", "add")


# searches


def some_scores(seed: int = 0) -> torch.Tensor:
    return shipped_bank().validation[seed]


def some_prior() -> torch.Tensor:
    return torch.cat([F.normalize(torch.rand(size, generator=stream(size, "prior"), dtype=torch.float64), p=1, dim=0) for size in SPACE.sizes])


@pytest.mark.parametrize("algorithm", [Random(), TPE(), Evolution()])
def test_every_search_tries_each_design_once_and_repeats(algorithm: object) -> None:
    found = [search(some_scores(), SPACE, algorithm, prior=some_prior(), budget=108, replays=3, generator=stream(0, "search")) for _ in range(2)]
    assert torch.equal(*found)
    assert bool((found[0].sort(1).values == torch.arange(108)).all())
    assert bool((regret(some_scores(), found[0])[:, -1] == 0).all())


@pytest.mark.parametrize("algorithm", [Random(), TPE(), Evolution()])
def test_a_uniform_prior_is_the_plain_search_draw_by_draw(algorithm: object) -> None:
    plain, uniform = (
        search(some_scores(), SPACE, algorithm, prior=prior, budget=40, replays=5, generator=stream(0, "search")) for prior in (None, SPACE.uniform)
    )
    assert torch.equal(plain, uniform)


def test_plain_random_search_is_a_random_order_and_plain_tpe_counts_from_one() -> None:
    """Both written out for one replay, with the same generator."""
    scores = some_scores()
    draws = stream(0, "search")
    wanted: list[int] = []
    for trial in range(30):
        weight = [1.0] * 108
        if trial >= TPE().startup:
            ranked = sorted(wanted, key=lambda design: -float(scores[design]))  # sorted() is stable
            good = -(-trial // 10)
            weight = []
            chances = []
            for name, options in SPACE.dimensions:
                counts = [[1 + sum(SPACE.designs[d][name] == option for d in part) for option in options] for part in (ranked[:good], ranked[good:])]
                low, high = ([count / sum(row) for count in row] for row in counts)
                ratio = [a / b for a, b in zip(low, high, strict=True)]
                chance = {}
                for option, mine, density in zip(options, ratio, low, strict=True):
                    upto = sum(d for d, r in zip(low, ratio, strict=True) if r <= mine * (1 + 1e-9))
                    below = sum(d for d, r in zip(low, ratio, strict=True) if r < mine * (1 - 1e-9))
                    chance[option] = (upto**24 - below**24) * density / (upto - below)
                chances.append((name, chance))
            for design in SPACE.designs:
                product = 1.0
                for name, chance in chances:
                    product *= chance[design[name]]
                weight.append(product)
        noise = -torch.rand(1, 108, generator=draws, dtype=torch.float64).log()[0]
        left = torch.tensor([0.0 if design in wanted else max(w, 1e-30) for design, w in enumerate(weight)], dtype=torch.float64)
        wanted.append(int((left / noise).argmax()))
    assert search(scores, SPACE, TPE(), budget=30, generator=stream(0, "search"))[0].tolist() == wanted
    plain = search(scores, SPACE, Random(), budget=5, replays=4000, generator=stream(1, "search"))
    assert stats.chisquare(plain[:, 4].bincount(minlength=108)).pvalue > 0.001


def test_random_search_draws_first_what_the_prior_says() -> None:
    first = search(some_scores(), SPACE, Random(), prior=some_prior(), budget=1, replays=20_000, generator=stream(0, "search"))[:, 0]
    assert stats.chisquare(first.bincount(minlength=108), 20_000 * SPACE.joint(some_prior())).pvalue > 0.001


def test_options_that_the_prior_excludes_come_last_and_break_nothing() -> None:
    prior = torch.cat([F.one_hot(torch.tensor(0), size).double() for size in SPACE.sizes])
    for algorithm in (Random(), TPE(), Evolution()):
        order = search(some_scores(), SPACE, algorithm, prior=prior, budget=20, replays=4, generator=stream(0, "search"))
        assert bool((order[:, 0] == 0).all()) and all(len(set(row)) == 20 for row in order.tolist())


def test_tpe_is_that_of_optuna_in_distribution() -> None:
    """After the same 20 trials both choose each option about as often; optuna smooths its kernels a little otherwise."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    scores = some_scores(8)
    order = search(scores, SPACE, Random(), budget=20, generator=stream(3, "history"))
    space = {name: optuna.distributions.CategoricalDistribution(options) for name, options in SPACE.dimensions}
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=5, multivariate=False, constant_liar=False)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for design in order[0].tolist():
        study.add_trial(optuna.trial.create_trial(params=SPACE.designs[design], distributions=space, value=float(scores[design])))
    asked = [study.ask(space).params for _ in range(400)]
    ours = SPACE.by_dimension(tpe_options(SPACE, scores, order, SPACE.uniform, TPE())[0])
    for name, options in SPACE.dimensions:
        theirs = {option: sum(params[name] == option for params in asked) / len(asked) for option in options}
        distance = sum(abs(theirs[option] - ours[name][option]) for option in options) / 2
        assert distance < 0.15, (name, theirs, ours[name])


def test_mutations_change_one_dimension_by_the_prior() -> None:
    prior = some_prior()
    found = mutations(SPACE, prior)
    torch.testing.assert_close(found.sum(1), torch.ones(108, dtype=torch.float64))
    parent, child = SPACE.number({**SPACE.designs[0], "layers": 0}), SPACE.number({**SPACE.designs[0], "layers": 2})
    layers = SPACE.by_dimension(prior)["layers"]
    assert float(found[parent, child]) == pytest.approx(layers[2] / (1 - layers[0]) / 4)
    changed = (SPACE.options[:, None] != SPACE.options).sum(-1)
    assert bool((found[changed != 1] == 0).all())


def test_regret_falls_and_is_counted_in_points() -> None:
    scores = torch.tensor([0.5, 0.75, 0.8, 0.1], dtype=torch.float64)
    order = torch.tensor([[3, 0, 1, 2], [2, 1, 0, 3]])
    torch.testing.assert_close(regret(scores, order), torch.tensor([[70.0, 30.0, 5.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64))
    assert trials_until(regret(scores, order)[:, :3], 5.0).tolist() == [3, 1]
    assert trials_until(regret(scores, order)[:, :3], 1.0).tolist() == [4, 1]


def test_a_search_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="budget must be between 1 and the 108 designs of the space, got 109"):
        search(some_scores(), SPACE, Random(), budget=109)
    with pytest.raises(ValueError, match="scores must be 108 finite numbers"):
        search(torch.full((108,), torch.nan), SPACE, Random())


# transfer


def test_the_similarities_of_a_task_do_not_see_its_scores() -> None:
    bank = shipped_bank()
    tau = kendall(bank.validation)
    changed = tau.clone()
    changed[4], changed[:, 4] = torch.rand(14, generator=stream(0, "tau"), dtype=torch.float64), torch.rand(14, generator=stream(1, "tau"))
    recipe = Recipe(steps=30)
    one, two = (leave_one_out(bank.features(0), matrix, recipe) for matrix in (tau, changed))
    assert torch.equal(one[4], two[4]) and not torch.equal(one[5], two[5])
    assert others(torch.arange(4)).tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_leaving_one_out_is_a_bank_without_it() -> None:
    bank = shipped_bank()
    recipe = Recipe(steps=40)
    tau = kendall(bank.validation)
    similarity = leave_one_out(bank.features(0), tau, recipe)
    priors = leave_one_out_priors(bank.validation, similarity, SPACE, recipe)
    alone = prior_of(bank.without("n_digits"), bank.features(0)[3], recipe)
    # fourteen projections draw other triples than one alone: without projection both agree to the last digit
    plain = dataclasses.replace(recipe, project=False)
    exact = leave_one_out_priors(bank.validation, leave_one_out(bank.features(0), tau, plain), SPACE, plain)
    torch.testing.assert_close(prior_of(bank.without("n_digits"), bank.features(0)[3], plain).prior, exact[3])
    assert priors.shape == (14, 13) and alone.prior.shape == (13,) and "n_digits" not in alone.tasks


def test_the_slips_of_the_published_program_change_what_it_learns() -> None:
    bank = shipped_bank()
    tau = kendall(bank.validation)
    base = dataclasses.replace(AS_PUBLISHED, steps=30, learning_rate=1e-2)
    clean = leave_one_out(bank.features(0), tau, base)
    for flaw in FLAWS:
        flawed = leave_one_out(bank.features(0), tau, dataclasses.replace(base, flaws=(flaw,)))
        assert not torch.equal(clean, flawed), flaw
    shifted = dataclasses.replace(base, flaws=("shifted index",))
    last = similarities(bank.features(0)[None, :-1], bank.features(0)[-1:], tau[None, :-1, :-1], base)
    assert last.shape == (1, 13)  # the last task held out shifts nothing
    alone = projected(torch.rand(1, 5, 6, generator=stream(0, "p")), tau[None, :4, :4], base)
    assert alone.shape == (1, 5, 16)
    assert PUBLISHED_CODE.best_by == "test" and PUBLISHED_CODE.smoothing == 0 and shifted.steps == 30


def test_gradients_that_are_never_cleared_add_up() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    transfer._never_clear(parameter)
    for step in range(1, 4):
        parameter.grad = None
        (parameter * torch.tensor([1.0, 2.0])).sum().backward()
        assert parameter.grad is not None and parameter.grad.tolist() == [step, 2 * step]


def test_transfer_prints_neighbours_and_the_prior() -> None:
    bank = shipped_bank()
    found = transferred_prior(bank.without("r_wine"), graph_task("r_wine"))
    lines = str(found).splitlines()
    assert lines[0].startswith("nearest tasks   r_") and [line.split("  ")[0].strip() for line in lines[1:]] == [name for name, _ in SPACE.dimensions]
    assert len(found.tasks) == 13 and bool((found.similarity.diff() <= 0).all())
    assert found.best_designs()[0]["layers"] == 0  # a useless graph: no message passing
    assert SPACE.joint(found.prior)[SPACE.number(found.best_designs()[0])] == SPACE.joint(found.prior).max()


def test_a_task_of_the_bank_is_no_new_task() -> None:
    bank = shipped_bank()
    with pytest.raises(ValueError, match=r"holds this task already, as 'n_iris'.*bank.without\('n_iris'\), or allow_self=True"):
        transferred_prior(bank, graph_task("n_iris"))
    assert transferred_prior(bank, graph_task("n_iris"), Recipe(steps=20), allow_self=True).tasks
    few = bank.without(*bank.tasks[2:])
    with pytest.raises(ValueError, match="at least 3 tasks to compare a new one with, this one has 2"):
        transferred_prior(few, small_task())
    with pytest.raises(ValueError, match="k must be between 1 and the 14 tasks of the bank, got 15"):
        transferred_prior(bank, small_task(), Recipe(k=15))
    with pytest.raises(ValueError, match="at least 3 tasks to compare a new one with, got 2"):
        similarities(torch.ones(1, 2, 6), torch.ones(1, 6), torch.eye(2)[None], Recipe())


# a user's graph


def test_a_bank_is_extended_by_a_graph_in_one_call() -> None:
    bank = make_bank(TINY, tasks=("n_iris", "r_iris", "sbm_hom"), space=SMALL)
    bigger = bank.extended("mine", small_task())
    assert bigger.tasks == (*bank.tasks, "mine") and bank.tasks == ("n_iris", "r_iris", "sbm_hom")
    row = bigger.rows["mine"]
    assert row.validation.shape == (16,) and row.features.shape == (1, 1) and row.training_seconds > 0 and row.feature_seconds > 0
    torch.testing.assert_close(row.statistics, plain_statistics(small_task()))
    again = make_row(small_task(), SMALL, TINY)
    assert torch.equal(row.validation, again.validation) and torch.equal(row.features, again.features)
    with pytest.raises(ValueError, match="has a task 'mine' already"):
        bigger.extended("mine", small_task())


def test_graphs_that_are_unusual_are_taken() -> None:
    isolated = small_task(30)
    isolated.edge_index = isolated.edge_index[:, (isolated.edge_index < 20).all(0)]
    no_edges = small_task(edge_index=torch.zeros(2, 0, dtype=torch.int64))
    doubles = small_task(x=small_task().x.double())
    unsplit = Data(x=small_task().x, edge_index=small_task().edge_index, y=small_task().y)
    small_graphs = Batch.from_data_list([Data(x=d.x, edge_index=d.edge_index, y=torch.tensor([k % 2])) for k, d in enumerate([small_task(8)] * 10)])
    for data in (isolated, no_edges, doubles, unsplit, small_graphs):
        row = make_row(data, SMALL, TINY)
        assert row.validation.isfinite().all() and row.features.isfinite().all() and bool((row.features >= 1).all())
    looped = small_task()
    looped.edge_index = torch.cat([looped.edge_index, torch.tensor([[3, 4], [3, 4]])], 1)
    with pytest.warns(UserWarning, match="2 self-loops are left out"):
        task = checked_task(looped)
    assert torch.equal(task.graph.edge_index, GraphTask.of(small_task()).graph.edge_index)


def test_a_directed_graph_is_asked_about_and_then_keeps_its_directions() -> None:
    one_way = small_task()
    one_way.edge_index = one_way.edge_index[:, : one_way.edge_index.shape[1] // 2]
    with pytest.raises(ValueError, match="the graph is directed"):
        make_row(one_way, SMALL, TINY)
    row = make_row(one_way, SMALL, TINY, directed=True)
    assert row.validation.isfinite().all()
    back = one_way.clone()
    back.edge_index = one_way.edge_index.flip(0)
    architecture = Architecture(1, "add", "none", 4)
    weights = initial_weights(architecture, 3, 2, generators(1))
    outputs = [head_input(weights, architecture, GraphTask.of(data, directed=True)) for data in (one_way, back)]
    assert not torch.allclose(*outputs)


BAD = {
    "empty": ({"x": torch.zeros(0, 3), "edge_index": torch.zeros(2, 0, dtype=torch.int64)}, "the graph is empty"),
    "NaN": ({"x": torch.cat([torch.full((1, 3), torch.nan), torch.ones(23, 3)])}, "1 of 24 nodes hold NaN or infinity, the first is node 0"),
    "no inputs": ({"x": None}, "a Data with x and edge_index is needed"),
    "edges out of range": ({"edge_index": torch.tensor([[0, 99], [99, 0]])}, "names nodes 0 to 99, but x has 24 rows"),
    "one class": ({"y": torch.zeros(24, dtype=torch.int64)}, "the training split has one class alone, 0"),
    "real labels": ({"y": torch.rand(24)}, r"y must hold one class from 0 for each node, int64 of shape \(24,\), got torch.float32"),
    "labels of another length": ({"y": torch.zeros(20, dtype=torch.int64)}, r"of shape \(24,\), got torch.int64 of shape \(20,\)"),
    "no labels": ({"y": None}, "got NoneType"),
    "empty validation": ({"val_mask": torch.zeros(24, dtype=torch.bool)}, "val_mask is empty: the validation split needs at least one node"),
    "a missing mask": ({"test_mask": None}, r"test_mask must be a bool for each node, of shape \(24,\); mtlearn.datasets.graph_tasks.with_split"),
    "overlap": ({"val_mask": torch.ones(24, dtype=torch.bool)}, r"the three masks overlap: node \d+ is in two of them"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_graph_that_is_no_task_is_refused(name: str) -> None:
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make_row(small_task(**changes), SMALL, TINY)


# the bank


def test_the_shipped_bank_is_whole() -> None:
    bank = shipped_bank()
    assert bank is shipped_bank() and bank.tasks == TASKS
    assert bank.validation.shape == bank.test.shape == (14, 108) and bank.validation.numel() == 1512
    assert bool(((bank.validation >= 0) & (bank.validation <= 1)).all())
    assert len(bank.making.embedding_seeds) >= 5 and all(bank.features(seed).shape == (14, 6) for seed in bank.making.embedding_seeds)
    assert shipped_path().stat().st_size < 100_000
    assert {"sha256", "versions", "cpu_seconds", "command", "making", "space"} <= set(bank.provenance)
    scores = bank.validation.view(14, 4, 27)
    assert bool((scores[:, 0].view(14, 9, 3) == scores[:, 0].view(14, 9, 3)[:, :1]).all())  # no layers: nothing to aggregate
    rewired = torch.tensor([name.startswith("r_") for name in bank.tasks])
    depth = scores[:, 2:].amax((1, 2)) - scores[:, 0].amax(1)
    assert float(depth[rewired].mean()) < 0.01 < 0.1 < float(depth[~rewired].mean())  # a useless graph needs no layer


def test_a_row_of_the_shipped_bank_is_made_again() -> None:
    """All designs of one task, trained as the shipped ones were. Another processor rounds otherwise, so single scores may differ a little."""
    bank = shipped_bank()
    shipped = bank.rows["n_iris"]
    row = make_row(graph_task("n_iris"), making=dataclasses.replace(bank.making, embedding_seeds=(0,)))
    assert float((row.validation - shipped.validation).abs().mean()) < 0.02
    assert float((row.test - shipped.test).abs().mean()) < 0.03
    assert float(kendall(torch.stack([row.validation, shipped.validation]))[0, 1]) > 0.85
    torch.testing.assert_close(row.features[0], shipped.features[0], rtol=0.1, atol=0)
    torch.testing.assert_close(row.statistics, shipped.statistics, rtol=1e-5, atol=1e-5)


def test_a_bank_is_written_and_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "worlds" / "bank.json"
    making = dataclasses.replace(TINY, epochs=2)
    tasks = ("n_iris", "sbm_het")
    bank_module.main(path, making, tasks)
    assert "sbm_het" in capsys.readouterr().out
    bank = load_bank(path, making=making)
    fresh = make_bank(making, tasks=tasks)
    assert bank.tasks == tasks and bank.provenance["command"] == "python -m mtlearn.graphs.autotransfer.bank"
    torch.testing.assert_close(bank.validation, fresh.validation, rtol=0, atol=1e-6)
    torch.testing.assert_close(bank.features(0), fresh.features(0), rtol=1e-6, atol=1e-6)
    with pytest.raises(BankError, match="made with other making than the code's; `python -m"):
        load_bank(path)
    with pytest.raises(BankError, match="made with other space"):
        load_bank(path, making=making, space=DesignSpace((*SPACE.dimensions[:3], ("learning rate", (0.3, 0.2, 0.1)))))


def test_a_damaged_or_missing_bank_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shipped_path().read_text()
    path = tmp_path / "bank.json"
    with pytest.raises(BankError, match="is missing; `python -m"):
        load_bank(path)
    for damage, message in (
        (text[:-20], "cannot be read"),
        ("[]", "cannot be read"),
        (json.dumps({"provenance": {}, "rows": []}), "cannot be read"),
        (text.replace('"validation": [0.', '"validation": [0.1', 1), "is damaged: its rows have SHA-256"),
    ):
        path.write_text(damage)
        with pytest.raises(BankError, match=message):
            load_bank(path)


def test_rows_that_are_not_whole_are_refused() -> None:
    bank = shipped_bank()
    row = bank.rows["n_iris"]

    def with_row(**changes: object) -> Bank:
        return Bank({"n_iris": dataclasses.replace(row, **changes)})

    scores = row.validation.clone()
    scores[5] = torch.nan
    with pytest.raises(ValueError, match=r"task 'n_iris': the validation score of design .*'learning rate': 0.001.* is nan"):
        with_row(validation=scores)
    with pytest.raises(ValueError, match=r"task 'n_iris': test needs one score for each of the 108 designs, got shape \(100,\)"):
        with_row(test=row.test[:100])
    with pytest.raises(ValueError, match=r"task 'n_iris': features must be positive, of shape \(embedding seeds, 6\)"):
        with_row(features=-row.features)
    with pytest.raises(ValueError, match="not of 99"):
        bank.features(99)
    with pytest.raises(ValueError, match="the bank has no task 'iris'"):
        bank.without("iris")
    assert isinstance(row, Row)


def test_scores_are_collected_from_records_of_any_order() -> None:
    records = [("a", design, float(place)) for place, design in enumerate(SMALL.designs)]
    found = scores_from_records(SMALL, records[::-1])
    assert found["a"].tolist() == list(range(16))
    with pytest.raises(ValueError, match=r"task 'a' lacks 1 of 16 designs, the first is {'layers': 0, 'aggregation': 'add'"):
        scores_from_records(SMALL, records[1:])
    with pytest.raises(ValueError, match="task 'a': layers must be one of 0, 1, got 7"):
        scores_from_records(SMALL, [("a", {**SMALL.designs[0], "layers": 7}, 0.5)])
    with pytest.raises(ValueError, match=r"task 'a': the score of design .* is nan"):
        scores_from_records(SMALL, [("a", SMALL.designs[0], float("nan"))])
    with pytest.raises(ValueError, match=r"has the design .* twice"):
        scores_from_records(SMALL, records[:1] * 2)


# the experiment


def quick() -> TransferSettings:
    settings = EXPERIMENT.scales["quick"]
    assert isinstance(settings, TransferSettings)
    return settings


def test_the_quick_experiment_measures_every_claim_and_repeats() -> None:
    runs = [EXPERIMENT.run(quick(), seed, torch.device("cpu")) for seed in (0, 1, 0)]
    assert runs[0] == runs[2] and runs[0] != runs[1]
    for arms in runs:
        check_arms(arms)
        assert {metric for metrics in arms.values() for metric in metrics} <= set(EXPERIMENT.units)
    for claim in EXPERIMENT.claims:
        assert judge(claim, runs[:2]).verdict in ("holds", "fails", "undecided")
    arms = runs[0]
    assert arms["uniform"]["speed-up"] == pytest.approx(1) and arms["bank average"]["tasks better than the bank average"] == 0
    assert arms["oracle"]["regret after 3"] < arms["uniform"]["regret after 3"]
    assert set(arms) >= {"as published", "published code", "raw cosine", "log cosine", "plain statistics, projected", "log, projected, no siblings"}


def test_features_are_computed_and_time_is_measured_where_the_settings_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = shipped_bank()
    tasks = ("n_iris", "r_iris", "r_wine", "n_wine", "sbm_hom")
    tiny = dataclasses.replace(quick(), tasks=tasks, steps=5, published_steps=5, replays=5)
    graphs = {name: graph_task(name).edge_index for name in tasks}
    asked = []

    def known_feature(task: GraphTask, recipe: Features, *, seed: int) -> torch.Tensor:
        assert recipe == bank.making.features and seed == 3
        asked.append(next(name for name, edge_index in graphs.items() if edge_index.equal(task.graph.edge_index)))
        return bank.rows[asked[-1]].features[3]

    monkeypatch.setattr(experiment, "task_feature", known_feature)
    read, computed = (EXPERIMENT.run(dataclasses.replace(tiny, computed=one), 3, torch.device("cpu")) for one in (False, True))
    assert read == computed and sorted(asked) == sorted(tasks)
    monkeypatch.setattr(experiment, "train_designs", lambda task, space, making: torch.rand(2_000_000).sort())
    timed = EXPERIMENT.run(dataclasses.replace(tiny, timed=True), 3, torch.device("cpu"))
    assert 0 < timed["log, projected"]["embedding time"] != read["log, projected"]["embedding time"]


def test_speed_up_reads_between_two_trials() -> None:
    curve = torch.tensor([10.0, 6.0, 4.0])
    assert experiment.trials_to_reach(curve, 5.0) == pytest.approx(2.5)
    assert experiment.trials_to_reach(curve, 11.0) == 1 and experiment.trials_to_reach(curve, 1.0) == 3


REAL = Path(os.environ.get("MTLEARN_DATA") or Path(__file__).resolve().parents[3] / "shared" / "datasets")


@pytest.mark.skipif(not (REAL / "planetoid").is_dir(), reason="no benchmark files here: let MTLEARN_DATA name a folder <dataset>/<file>")
def test_a_few_steps_at_paper_scale_on_the_real_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    settings = EXPERIMENT.scales["paper"]
    assert isinstance(settings, TransferSettings) and set(settings.tasks) > {"cora", "mutag", "proteins", "imdb-binary"}
    features = dataclasses.replace(settings.making.features, anchors=settings.making.features.anchors[:2], initialisations=1, steps=2)
    features = dataclasses.replace(features, anchors=tuple(dataclasses.replace(anchor, width=8) for anchor in features.anchors))
    short = dataclasses.replace(
        settings,
        tasks=("cora", "mutag", "n_iris", "r_iris"),
        making=dataclasses.replace(settings.making, epochs=1, width=8, training_seeds=(0,), features=features),
        layers=(2, 4),
        steps=2,
        published_steps=2,
        replays=3,
        budget=54,
    )
    arms = EXPERIMENT.run(short, 0, torch.device("cpu"))
    check_arms(arms)
    assert arms["uniform"]["regret after 1"] > 0
    assert published_task("cora").x.shape == (2708, 1433)


# the explorer


@pytest.fixture(scope="module")
def shown() -> explorer.Explorer:
    return explorer.explorer()


def regrets(text: str) -> dict[str, float]:
    """Points of regret at the budget, from the describing text."""
    parts = text.split("trials: ")[1].split(";")[0].split(", ")
    return {part.rsplit(" ", 1)[0]: float(part.rsplit(" ", 1)[1]) for part in parts}


def test_presets_show_what_they_say(shown: explorer.Explorer) -> None:
    texts = {}
    for label in shown.presets:
        shown.preset(label)
        texts[label] = shown.text
    assert texts["reset"] == texts["the same graph rewired"] and len(set(texts.values())) == len(texts) - 1
    useful, rewired = texts["a useful graph"], texts["the same graph rewired"]
    assert useful.startswith("n_digits: nearest") and "layers 0" not in useful
    assert rewired.startswith("r_digits: nearest r_") and "likes layers 0" in rewired
    assert regrets(rewired)["transferred"] + 3 < min(regrets(rewired)["uniform"], regrets(rewired)["whole bank"])
    assert regrets(texts["too few networks"])["transferred"] > regrets(texts["too few networks"])["whole bank"]
    assert regrets(texts["wrong neighbours"])["transferred"] > regrets(texts["wrong neighbours"])["whole bank"]
    assert "the prior is off" in texts["... without the prior"] and "TPE search" in texts["TPE"]


def test_a_dragged_task_takes_the_prior_of_its_new_neighbours(shown: explorer.Explorer) -> None:
    shown.preset("reset")
    before = shown.text
    place = explorer.maps("160")["r_digits"].places[0]  # of n_iris, a task whose graph helps
    shown.point("drag", float(place[0]), float(place[1]), axes=0)
    assert "dragged to" in shown.text and "layers 0" not in shown.text
    assert regrets(shown.text)["transferred"] > regrets(before)["transferred"] + 3
    shown.point("release", 0, 0, axes=0)
    shown.point("key", 0, 0, key="Escape")
    assert shown.text == before
    shown.point("press", float(place[0]), float(place[1]), axes=0)
    shown.preset("reset")
    assert shown.text == before


def test_a_click_on_the_race_shows_another_replay_and_reads_the_regret_there(shown: explorer.Explorer) -> None:
    shown.preset("reset")
    picture = shown.png
    shown.point("press", 10.2, 5.0, axes=2)
    assert shown.values["budget"] == 10 and "replay 1 shown" in shown.text and shown.png != picture
    shown.point("press", 500.0, 5.0, axes=2)
    assert shown.values["budget"] == explorer.BUDGET
    shown.point("key", 0, 0, key="ArrowLeft")
    shown.point("key", 0, 0, key="Enter")
    assert shown.values["budget"] == explorer.BUDGET - 1 and "replay 3 shown" in shown.text
    shown.point("key", 0, 0, key="ArrowRight")
    assert shown.values["budget"] == explorer.BUDGET
    shown.point("press", 0.5, 0.5, axes=1)
    assert "replay 3 shown" in shown.text


def test_only_tables_have_a_rewired_sibling(shown: explorer.Explorer) -> None:
    shown.preset("reset")
    shown.set(task="gens")
    assert shown.text.startswith("gens (the bank holds no rewired sibling of it)")
    shown.set(rewire=False)
    assert shown.text.startswith("gens: nearest")


def test_maps_are_turned_alike_and_a_place_leads_back_to_an_embedding() -> None:
    maps = explorer.maps("160")
    centre = torch.stack([here.places[-1] for name, here in maps.items() if name != "tri"])  # where the others see tri
    assert float(centre.std(0).max()) < 0.5
    here = maps["n_iris"]
    found = here.embedding((float(here.place[0]), float(here.place[1])))
    assert float(found @ here.new) > 0.8 and float(found.norm()) == pytest.approx(1)


# the exercises


def test_exercises_hint_at_what_is_wrong() -> None:
    hold_out, ratio, useless = EXERCISES
    for exercise in EXERCISES:
        assert exercise.check(exercise.solve()).right
    assert "got list" in hold_out.check(lambda tau, held_out: [1]).text
    assert "holding out task 0 of 4" in hold_out.check(hold_out.wrong).text
    assert "got (3, 50)" in ratio.check(lambda information: information).text
    assert "should be clearly larger for the few" in ratio.check(lambda information: information.mean(1) ** 2 / information.square().mean(1)).text
    assert "the order of the weights" in ratio.check(lambda information: information[:, 0] / information.mean(1)).text
    assert "Which ratio" in ratio.check(ratio.wrong).text
    task = graph_task("n_wine")
    assert "the same nodes, labels and split" in useless.check(lambda data: graph_task("n_iris")).text
    assert "keep the number of edges" in useless.check(lambda data: task.clone().update({"edge_index": torch.zeros(2, 0, dtype=torch.int64)})).text
    assert "91% of your edges join equal labels" in useless.check(useless.wrong).text
