"""Stockformer: the split, the encoder, the graph, the loss, the portfolio; nothing looks ahead, and bad input is refused."""

import warnings
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from mtlearn.datasets.markets import World, daily_google, sample_market
from mtlearn.graphs.stockformer import backtest, experiment, explorer
from mtlearn.graphs.stockformer.backtest import (
    direction_accuracy,
    mae_ratio,
    mean_ic,
    rank_ic,
    ranks,
    regimes,
    running_gain,
    top_k_dropout,
)
from mtlearn.graphs.stockformer.embedding import (
    drop_constant,
    edge_weights,
    laplacian_embedding,
    random_walks,
    return_correlation,
    skip_gram,
    struc2vec_embedding,
    structural_weights,
    walk_embedding,
)
from mtlearn.graphs.stockformer.exercises import EXERCISES
from mtlearn.graphs.stockformer.experiment import ARMS, CHECKPOINTS, EXPERIMENT, FULL, Arm, Recipe
from mtlearn.graphs.stockformer.factors import FIELDS, neutralise, price_volume_factors
from mtlearn.graphs.stockformer.method import (
    Prediction,
    SpatialAttention,
    Stockformer,
    TemporalAttention,
    WaveletSplit,
    causal_attention,
    copy_rows,
    masked_mae,
    moving_average,
    multitask_loss,
    no_split,
    split_matrices,
)
from mtlearn.graphs.stockformer.panel import Panel, Windows, check_splits, lag_means
from mtlearn.lab.checkpoints import load
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream

TINY = Recipe(steps=6, check_every=3, width=8, gru_width=4)


def drawn(days: int = 120, world: World | None = None, seed: int = 0):
    return sample_market(days, world or World(stocks=4), generator=stream(seed, "market"))


def tiny_task(days: int = 120, train: int = 70, validation: int = 20, seed: int = 0):
    return experiment.synthetic_task(drawn(days, seed=seed), train, validation)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=stream(seed, "draw", *shape), dtype=dtype)


def inputs(batch: int = 2, days: int = 6, stocks: int = 5, factors: int = 3, horizon: int = 2, width: int = 8):
    """Everything that a model of these sizes reads."""
    low, high = draw(batch, days, stocks), draw(batch, days, stocks, seed=1)
    marks = torch.arange(days + horizon).expand(batch, -1)
    marks = torch.stack([marks % 5, marks % 21], -1)
    return low, high, (low > 0).float(), draw(batch, days, stocks, factors), marks, draw(stocks, width)


def small(**changes) -> Stockformer:
    with seeded(0):
        return Stockformer(5, 8, 2, days=6, **changes).eval()


# the wavelet split


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["haar", "sym2", "db4", "coif1", "bior2.2"]), st.integers(1, 40), st.integers(1, 4), st.integers(0, 99))
def test_the_split_is_that_of_the_library_and_its_parts_sum_to_the_window(wavelet: str, days: int, level: int, seed: int) -> None:
    x = draw(2, days, 3, seed=seed, dtype=torch.float64)
    low, high = WaveletSplit(wavelet, level, short=True)(x)
    torch.testing.assert_close(low + high, x, atol=1e-6, rtol=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Level value of", UserWarning)  # the library warns where a level reaches beyond the window
        found = pywt.wavedec(x.numpy(), wavelet, "zero", level, axis=1)
    kept = [found[0]] + [np.zeros_like(detail) for detail in found[1:]]
    torch.testing.assert_close(low, torch.from_numpy(pywt.waverec(kept, wavelet, "zero", axis=1)[:, :days]), atol=1e-9, rtol=0)
    kept = [np.zeros_like(found[0]), *found[1:]]
    torch.testing.assert_close(high, torch.from_numpy(pywt.waverec(kept, wavelet, "zero", axis=1)[:, :days]), atol=1e-9, rtol=0)


@pytest.mark.parametrize("mode", ["zero", "symmetric", "periodization"])
def test_other_borders_are_the_librarys_too(mode: str) -> None:
    x = draw(1, 20, 2, dtype=torch.float64)
    low, high = WaveletSplit("sym2", 2, mode)(x)
    found = pywt.wavedec(x.numpy(), "sym2", mode, 2, axis=1)
    wanted = pywt.waverec([found[0], np.zeros_like(found[1]), np.zeros_like(found[2])], "sym2", mode, axis=1)
    torch.testing.assert_close(low, torch.from_numpy(wanted), atol=1e-9, rtol=0)
    torch.testing.assert_close(low + high, x, atol=1e-9, rtol=0)


def test_a_constant_series_has_no_high_part_away_from_the_border() -> None:
    _, high = WaveletSplit()(torch.ones(1, 20, 1, dtype=torch.float64))
    high = high[0, :, 0].abs()
    assert float(high[3:-3].max()) < 1e-12
    assert float(high[:3].max()) == pytest.approx(0.30, abs=0.01)
    assert float(high[-3:].max()) == pytest.approx(0.08, abs=0.01)


def test_the_low_part_of_a_day_mixes_later_days_of_its_window() -> None:
    to_low, _ = split_matrices(20)
    assert float(to_low.triu(1).max()) == pytest.approx(0.375, abs=1e-3)


def test_the_low_part_of_two_target_days_is_a_lossy_mixture() -> None:
    to_low, _ = split_matrices(2, short=True)
    np.testing.assert_allclose(to_low.numpy(), [[0.28, 0.38], [0.38, 0.72]], atol=0.006)


def test_the_split_is_differentiable_and_linear() -> None:
    x = draw(1, 8, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(WaveletSplit("db4", 2), (x,))
    split, y = WaveletSplit(), draw(1, 8, 2, seed=5, dtype=torch.float64)
    torch.testing.assert_close(split(2 * x + y)[0], 2 * split(x)[0] + split(y)[0])


def test_the_stand_ins_of_the_wavelet() -> None:
    x = draw(2, 9, 3)
    assert all(torch.equal(part, x) for part in no_split(x))
    low, high = moving_average(x, 3)
    torch.testing.assert_close(low + high, x)
    torch.testing.assert_close(low[:, 4], x[:, 2:5].mean(1))
    torch.testing.assert_close(low[:, 1], x[:, :2].mean(1))


# the encoder


def test_temporal_attention_is_causal_softmax_attention_written_out() -> None:
    query, key, value = draw(3, 5, 6, 8), draw(3, 5, 6, 8, seed=1), draw(3, 5, 6, 8, seed=2)
    scores = query @ key.transpose(-1, -2) / 8**0.5
    later = torch.ones(6, 6, dtype=torch.bool).triu(1)
    wanted = scores.masked_fill(later, -(2**15) + 1).softmax(-1) @ value
    torch.testing.assert_close(causal_attention(query, key, value), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(F.scaled_dot_product_attention(query, key, value, is_causal=True), wanted, atol=1e-5, rtol=0)

    layer = TemporalAttention(8)
    states, time = draw(2, 6, 5, 8), draw(2, 6, 1, 8)
    x = states + time
    by_stock = [causal_attention(layer.query(x[:, :, n]), layer.key(x[:, :, n]), layer.value(x[:, :, n])) for n in range(5)]
    mixed = F.layer_norm(layer.out(torch.stack(by_stock, 2)) + x, (8,))
    wanted = F.layer_norm(layer.after.inner(mixed) + mixed, (8,))
    torch.testing.assert_close(layer(states, time), wanted, atol=1e-5, rtol=0)


def test_spatial_attention_written_out_stock_by_stock() -> None:
    layer, states, graph = SpatialAttention(8).requires_grad_(False), draw(2, 3, 5, 8), draw(5, 8)
    found = layer(states, graph)
    for b in range(2):
        for t in range(3):
            x = states[b, t] + graph
            attention = torch.stack([(layer.query(x[q]) @ layer.key(x).T / 8**0.5).softmax(0) for q in range(5)])
            mixed = attention @ layer.value(x)
            for n in range(5):
                source = max(range(5), key=lambda q: float(attention[q, n]))
                wanted = layer.after(F.layer_norm(layer.out(mixed[source]) + x[n], (8,)))
                torch.testing.assert_close(found[b, t, n], wanted, atol=1e-5, rtol=0)


def test_the_copy_step_is_the_identity_where_each_attends_to_itself_and_agrees_with_a_loop() -> None:
    mixed = draw(2, 3, 7, 4)
    assert torch.equal(copy_rows(torch.eye(7).expand(2, 3, 7, 7), mixed), mixed)
    attention = draw(2, 3, 7, 7).softmax(-1)
    found = copy_rows(attention, mixed)
    for b, t, n in np.ndindex(2, 3, 7):
        assert torch.equal(found[b, t, n], mixed[b, t, int(attention[b, t, :, n].argmax())])


def test_gradients_pass_the_copy_step_through_the_values_alone() -> None:
    mixed = draw(4, 3, dtype=torch.float64).requires_grad_()
    attention = draw(4, 4, dtype=torch.float64).softmax(-1).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: copy_rows(attention.detach(), m), (mixed,))
    copy_rows(attention, mixed).sum().backward()
    assert attention.grad is None
    assert mixed.grad is not None and float(mixed.grad.sum()) == pytest.approx(12.0)


def test_a_sample_of_queries_is_the_one_whose_scores_vary_most() -> None:
    layer, x = SpatialAttention(8, samples=0.4), draw(2, 3, 5, 8)
    whole = SpatialAttention(8)
    whole.load_state_dict(layer.state_dict())
    assert layer.attention(x).shape == (2, 3, 2, 5)
    scores = whole.query(x) @ whole.key(x).transpose(-1, -2)
    widest = scores.var(-1).topk(2).indices
    wanted = whole.attention(x).gather(-2, widest[..., None].expand(-1, -1, -1, 5))
    torch.testing.assert_close(layer.attention(x), wanted)
    assert layer(x, torch.zeros(5, 8)).shape == (2, 3, 5, 8)
    with seeded(0):
        sampled = Stockformer(5, 8, 1, days=6, samples=0.4).eval()
    assert sampled(*inputs()).returns.shape == (2, 2, 5)


def test_no_state_before_a_day_depends_on_it() -> None:
    model = small()
    low, high, up, factors, marks, graph = inputs()
    time = model.time(marks)[:, :6]
    others = torch.cat([up[..., None], factors], -1)
    with torch.no_grad():
        before = model.encode(low, high, others, time, graph)
        for day in range(1, 6):
            changed = [part.clone() for part in (low, high, others)]
            for part in changed:
                part[:, day] += 5.0
            for was, now in zip(before, model.encode(*changed, time, graph), strict=True):
                torch.testing.assert_close(was[:, :day], now[:, :day], atol=1e-6, rtol=0)
                assert float((was[:, day] - now[:, day]).abs().max()) > 1e-3


def test_the_low_branch_sees_the_low_part_alone_and_the_fused_one_sees_both() -> None:
    model = small()
    low, high, *others = inputs()
    with torch.no_grad():
        before, after = model(low, high, *others), model(low, high + draw(2, 6, 5, seed=9), *others)
    assert torch.equal(before.low_returns, after.low_returns) and torch.equal(before.low_direction, after.low_direction)
    assert not torch.allclose(before.returns, after.returns) and not torch.allclose(before.direction, after.direction)


def test_permuting_the_stocks_permutes_the_predictions() -> None:
    model, (low, high, up, factors, marks, graph) = small(), inputs()
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        found = model(low, high, up, factors, marks, graph)
        other = model(low[:, :, order], high[:, :, order], up[:, :, order], factors[:, :, order], marks, graph[order])
    for was, now in zip(found, other, strict=True):
        torch.testing.assert_close(was[:, :, order], now, atol=1e-5, rtol=0)


def test_the_published_sizes_have_the_published_number_of_parameters() -> None:
    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    assert count(Stockformer(362, unused_layers=True)) == 975_963
    assert count(Stockformer(363, unused_layers=True)) == 976_219
    unused = 4 * 129 + 2 * (128 * 128 + 128)  # four projections, a key and a value of the fusion
    assert count(Stockformer(362)) == 975_963 - unused
    assert count(Stockformer(370)) == count(Stockformer(362)) + 8 * 256


def test_leaving_the_unused_layers_out_changes_no_output_and_they_get_no_gradient() -> None:
    whole, lean = small(unused_layers=True), small()
    lean.load_state_dict({name: whole.state_dict()[name] for name in lean.state_dict()})
    found, other = whole(*inputs()), lean(*inputs())
    assert all(torch.equal(a, b) for a, b in zip(found, other, strict=True))
    sum(part.square().sum() for part in found).backward()
    without = {name for name, parameter in whole.named_parameters() if parameter.grad is None}
    assert without == set(whole.state_dict()) - set(lean.state_dict())
    assert all(parameter.grad is None for parameter in lean.parameters())


def test_without_a_high_branch_the_fused_heads_read_the_low_one() -> None:
    model = small(high=False)
    found = model(*inputs())
    assert torch.equal(found.returns, found.low_returns) and torch.equal(found.direction, found.low_direction)
    low, _, *others = inputs()
    assert torch.equal(model(low, draw(2, 6, 5, seed=8), *others).returns, found.returns)


def test_time_marks_count_modulo_their_periods_and_reach_the_prediction() -> None:
    model = small()
    low, high, up, factors, marks, graph = inputs()
    with torch.no_grad():
        assert torch.equal(model.time(marks), model.time(marks + torch.tensor([5, 50])))
        before, after = (model(low, high, up, factors, m, graph).returns for m in (marks, marks + 1))
    assert not torch.allclose(before, after)


def test_a_tied_start_lets_like_attend_to_like() -> None:
    with seeded(0):
        layer = SpatialAttention(8, tied_start=True)
    graph = torch.zeros(6, 8)
    graph[:3, 0], graph[3:, 0] = 6.0, -6.0
    attention = layer.attention(graph).detach()
    assert torch.equal(layer.query.weight, layer.key.weight)
    assert float(attention[:3, :3].sum(1).min()) > 0.9 and float(attention[3:, 3:].sum(1).min()) > 0.9


# the loss


def test_the_masked_error_is_the_plain_one_without_suspended_stocks_and_leaves_them_out_with() -> None:
    predicted, label = draw(3, 2, 5).requires_grad_(), draw(3, 2, 5, seed=1)
    torch.testing.assert_close(masked_mae(predicted, label), F.l1_loss(predicted, label))
    label[:, :, 2] = 0.0
    loss = masked_mae(predicted, label)
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(loss, F.l1_loss(predicted[:, :, kept], label[:, :, kept]))
    loss.backward()
    assert predicted.grad is not None and float(predicted.grad[:, :, 2].abs().max()) == 0.0
    assert float(masked_mae(predicted.detach(), torch.zeros_like(label))) == 0.0


def test_the_direction_loss_is_cross_entropy_of_the_flattened_logits() -> None:
    found = Prediction(draw(3, 2, 5), draw(3, 2, 5, 2), draw(3, 2, 5, seed=1), draw(3, 2, 5, 2, seed=1))
    target, low_target = draw(3, 2, 5, seed=2), draw(3, 2, 5, seed=3)
    up = (target > 0).long()
    loss = multitask_loss(found, target, low_target, up)
    torch.testing.assert_close(loss.direction, F.cross_entropy(found.direction.reshape(-1, 2), up.reshape(-1)))
    torch.testing.assert_close(loss.low_direction, F.cross_entropy(found.low_direction.reshape(-1, 2), up.reshape(-1)))
    torch.testing.assert_close(loss.returns, F.l1_loss(found.returns, target))
    torch.testing.assert_close(loss.low_returns, F.l1_loss(found.low_returns, low_target))


def test_doubling_the_loss_hardly_changes_the_steps_of_clipped_adam() -> None:
    task = tiny_task()
    windows = Windows(task.panel, days=6)
    batch = windows.batch(windows.ends(task.train)[:4])
    found = []
    for factor in (1.0, 2.0):
        model = small()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

        def loss_at(step: int, model=model, factor=factor) -> torch.Tensor:
            predicted = model(batch.low, batch.high, batch.up, batch.factors, batch.marks, torch.zeros(8))
            return factor * torch.stack(multitask_loss(predicted, batch.target, batch.low_target, batch.target_up)).sum()

        with seeded(0):
            fit(model, loss_at, steps=5, optimizer=optimizer, clip=0.05)
        found.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    moved = float((found[0] - nn.utils.parameters_to_vector(small().parameters()).detach()).abs().mean())
    assert moved > 1e-3
    assert float((found[0] - found[1]).abs().mean()) < 0.02 * moved


# the graph


def test_laplacian_eigenvectors_are_those_of_networkx() -> None:
    found = return_correlation(drawn(300).returns)
    weights = edge_weights(found)
    embedding = laplacian_embedding(found, 16, count=3, scale=2.0)
    assert embedding.shape == (8, 16) and bool((embedding[:, 3:] == 0).all())
    vectors = embedding[:, :3].double() / 2.0 / 8**0.5
    laplacian = torch.from_numpy(nx.normalized_laplacian_matrix(nx.from_numpy_array(weights.numpy())).toarray())
    size = torch.linalg.eigvalsh(laplacian)[:3]
    torch.testing.assert_close(laplacian @ vectors, vectors * size, atol=1e-5, rtol=0)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3, dtype=torch.float64), atol=1e-5, rtol=0)


def test_the_laplacian_and_the_walks_find_the_sectors_and_struc2vec_does_not() -> None:
    market = drawn(2000, World(stocks=12))
    found, sector = return_correlation(market.returns), market.world.sector

    def apart(embedding: torch.Tensor) -> float:
        """Distance between stocks of different sectors over that within a sector."""
        distance = torch.cdist(embedding, embedding)
        same = sector[:, None] == sector
        return float(distance[~same].mean() / distance[same].mean())

    assert apart(laplacian_embedding(found, 16, count=2)) > 5
    assert apart(walk_embedding(found, 16, generator=stream(0, "walks"))) > 1.5
    assert apart(struc2vec_embedding(found, 16, generator=stream(0, "walks"))) < 1.3


def test_structural_weights_know_roles_and_not_places() -> None:
    two_stars = torch.zeros(8, 8, dtype=torch.float64)
    for hub in (0, 4):
        two_stars[hub, hub + 1 : hub + 4] = two_stars[hub + 1 : hub + 4, hub] = 1.0
    weights = structural_weights(two_stars, rings=2)
    assert weights.shape == (2, 8, 8) and bool((weights.diagonal(dim1=1, dim2=2) == 0).all())
    torch.testing.assert_close(weights, weights.transpose(1, 2))
    for layer in weights:
        assert float(layer[0, 4]) == pytest.approx(1.0) and float(layer[1, 6]) == pytest.approx(1.0)  # the hubs; two leaves of different stars
        assert float(layer[0, 1]) < 0.5  # a hub and its own leaf
    assert float(weights[1, 0, 1]) < float(weights[0, 0, 1])


def test_on_a_directed_complete_graph_counting_neighbours_tells_the_order_of_the_file_alone() -> None:
    for seed in (0, 1):
        found = return_correlation(drawn(200, seed=seed).returns)
        edges = nx.DiGraph()
        edges.add_weighted_edges_from((i, j, float(found[i, j])) for i in range(8) for j in range(i + 1, 8))
        assert [len(edges[k]) for k in range(8)] == [7 - k for k in range(8)]


def test_walks_follow_the_edges_and_layers_mix() -> None:
    ring = torch.roll(torch.eye(6), 1, 1) + torch.roll(torch.eye(6), -1, 1)
    walks = random_walks(ring[None], walks=3, length=7, generator=stream(0, "walks"))
    assert walks.shape == (18, 7) and torch.equal(walks[:, 0], torch.arange(6).repeat(3))
    steps = (walks[:, 1:] - walks[:, :-1]) % 6
    assert set(steps.unique().tolist()) == {1, 5}
    across = torch.roll(torch.eye(6), 3, 1)
    walks = random_walks(torch.stack([ring, across]), walks=40, length=5, generator=stream(0, "walks"))
    assert set(((walks[:, 1:] - walks[:, :-1]) % 6).unique().tolist()) == {1, 3, 5}
    assert torch.equal(walks, random_walks(torch.stack([ring, across]), walks=40, length=5, generator=stream(0, "walks")))


def test_skip_gram_puts_together_what_meets() -> None:
    walks = torch.tensor([[0, 1, 0, 1], [2, 3, 2, 3], [0, 1, 1, 0], [3, 2, 3, 2]])
    vectors = skip_gram(walks, 4, 6)
    similarity = F.normalize(vectors) @ F.normalize(vectors).T
    assert float(similarity[0, 1]) > 0.2 and float(similarity[2, 3]) > 0.2 and float(similarity[:2, 2:].abs().max()) < 1e-5
    assert vectors.shape == (4, 6) and bool((vectors[:, 4:] == 0).all())
    assert float(vectors.square().mean(0).max().sqrt()) == pytest.approx(3.0, rel=1e-5)


def test_a_constant_stock_is_dropped_with_a_warning() -> None:
    returns = draw(30, 4)
    returns[:, 2] = 0.0
    with pytest.warns(UserWarning, match=r"stocks \[2\] are left out: their returns never change"):
        left, kept = drop_constant(returns)
    assert kept.tolist() == [0, 1, 3] and torch.equal(left, returns[:, kept])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert drop_constant(left)[1].tolist() == [0, 1, 2]
    assert return_correlation(left).shape == (3, 3)


def test_a_stock_without_positive_correlation_stands_at_the_origin() -> None:
    found = torch.eye(4)
    found[0, 1] = found[1, 0] = 0.5
    embedding = laplacian_embedding(found, 4, count=1)
    assert float(embedding[:2, 0].min()) > 1 and float(embedding[2:].abs().max()) < 1e-6


# nothing looks ahead


def test_the_test_days_change_neither_graph_nor_weights() -> None:
    task = tiny_task()
    noisy = task.panel.returns.clone()
    noisy[task.test.start :] = 3 * draw(len(task.test), 8, seed=7)
    panel = Panel(noisy, lag_means(noisy, experiment.LAG_MEANS), task.panel.marks)
    other = replace(task, panel=panel)
    first, second = (experiment.train(t, TINY, Arm(), 0) for t in (task, other))
    assert torch.equal(first.graph, second.graph)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    ahead = replace(TINY, look_ahead=True)
    graphs = [experiment.graph_embedding(t, ahead, "laplacian", 0) for t in (task, other)]
    assert not torch.allclose(*graphs)


def test_windows_hold_the_days_that_they_say() -> None:
    task = tiny_task()
    windows = Windows(task.panel, days=5, horizon=2, split=WaveletSplit("haar"))
    assert windows.ends(task.train)[0] == 4 and windows.ends(task.train)[-1] == 67
    assert windows.ends(task.test).tolist() == list(range(89, 118))
    batch = windows.batch(torch.tensor([4, 30]))
    returns = task.panel.returns
    torch.testing.assert_close(batch.low + batch.high, torch.stack([returns[0:5], returns[26:31]]))
    assert torch.equal(batch.target, torch.stack([returns[5:7], returns[31:33]]))
    assert torch.equal(batch.up[1], (returns[26:31] > 0).float()) and torch.equal(batch.target_up, (batch.target > 0).long())
    assert torch.equal(batch.factors[1], task.panel.factors[26:31])
    assert batch.marks[1, :, 1].tolist() == [day % 21 for day in range(26, 33)]
    to_low, _ = split_matrices(2, "haar")
    torch.testing.assert_close(batch.low_target[0], to_low.float() @ returns[5:7])
    wide = Windows(task.panel, days=5, split=moving_average)
    assert wide.target_split is moving_average
    for range_, name in ((task.train, "train"), (task.validation, "validation"), (task.test, "test")):
        ahead = windows.ends(range_)[:, None] + torch.arange(1, 3)
        assert int(ahead.min()) >= range_.start and int(ahead.max()) < range_.stop, name


def test_lag_means_look_back_alone() -> None:
    returns = draw(12, 3)
    means = lag_means(returns, (1, 4))
    assert means.shape == (12, 3, 2)
    torch.testing.assert_close(means[..., 0], returns, atol=1e-5, rtol=0)
    torch.testing.assert_close(means[7, :, 1], returns[4:8].mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(means[1, :, 1], returns[:2].mean(0), atol=1e-5, rtol=0)


# price-volume factors


def test_factors_are_prices_over_todays_and_volumes_over_todays() -> None:
    _, fields = daily_google()
    factors = price_volume_factors(fields, lags=60)
    assert factors.shape == (1047 - 59, 1, 5 * 60)
    day = 100  # row 41
    for at, name in enumerate(name for name in FIELDS if name in fields):
        unit = fields["volume" if name == "volume" else "close"][day, 0]
        for lag in (0, 10, 59):
            wanted = fields[name][day - lag, 0] / unit
            assert float(factors[41, 0, 60 * at + 59 - lag]) == pytest.approx(float(wanted))
    six = {**fields, "vwap": (fields["high"] + fields["low"] + fields["close"]) / 3}
    assert price_volume_factors(six).shape[2] == 360
    assert price_volume_factors({"close": fields["close"]}).shape[2] == 60


def test_neutralised_factors_are_residuals_of_least_squares_with_unit_spread() -> None:
    factors, size = draw(4, 9, 3, dtype=torch.float64), draw(4, 9, 1, dtype=torch.float64)
    sectors = F.one_hot(torch.arange(9) % 3).double().expand(4, -1, -1)
    exposures = torch.cat([size, sectors, sectors[..., :1]], -1)  # the last repeats another: it must not matter
    found = neutralise(factors, exposures)
    assert float((exposures.transpose(1, 2) @ found).abs().max()) < 1e-9
    torch.testing.assert_close(found.std(1), torch.ones(4, 3, dtype=torch.float64))
    for day in range(4):
        design = exposures[day, :, :4].numpy()
        residual = factors[day].numpy() - design @ np.linalg.lstsq(design, factors[day].numpy(), rcond=None)[0]
        np.testing.assert_allclose(found[day].numpy(), residual / residual.std(0, ddof=1), atol=1e-9)
    explained = neutralise(sectors[..., :1].clone(), exposures)
    assert float(explained.abs().max()) == 0.0


# what a forecast is worth


def test_rank_ic_is_spearmans_and_a_constant_prediction_has_none() -> None:
    scores, returns = draw(6, 9).round(decimals=1), draw(6, 9, seed=1).round(decimals=1)  # with ties
    scores[3] = 1.0
    found = rank_ic(scores, returns)
    for day in (0, 1, 2, 4, 5):
        assert float(found[day]) == pytest.approx(float(spearmanr(scores[day], returns[day]).statistic), abs=1e-6)
    assert bool(found[3].isnan())
    summary = mean_ic(found)
    assert summary.undefined == 1 and summary.mean == pytest.approx(float(found[~found.isnan()].mean()))
    assert summary.low < summary.mean < summary.high
    nothing = mean_ic(rank_ic(torch.zeros(4, 5), draw(4, 5)))
    assert nothing.undefined == 4 and np.isnan(nothing.mean)
    assert ranks(torch.tensor([3.0, 1.0, 3.0])).tolist() == [2.5, 1.0, 2.5]


def test_rank_ic_of_a_permuted_day_follows_the_permutation() -> None:
    scores, returns = draw(1, 20), draw(1, 20, seed=1)
    order = torch.randperm(20, generator=stream(0, "order"))
    assert float(rank_ic(scores[:, order], returns[:, order])) == pytest.approx(float(rank_ic(scores, returns)))
    assert float(rank_ic(returns[:, order].argsort().argsort().float(), returns[:, order])) == pytest.approx(1.0)
    shuffled = torch.stack([returns[0, torch.randperm(20, generator=stream(k, "order"))] for k in range(300)])
    assert mean_ic(rank_ic(shuffled, returns.expand(300, -1))).mean == pytest.approx(0.0, abs=0.04)


def test_predicting_zero_has_ratio_one_and_a_majority_class_its_share() -> None:
    returns = torch.tensor([[1.0, -2.0, 3.0], [-1.0, -1.0, 0.0]])
    assert mae_ratio(torch.zeros(2, 3), returns) == 1.0
    assert mae_ratio(returns, returns) == 0.0
    assert direction_accuracy(torch.zeros(2, 3, dtype=torch.bool), returns) == pytest.approx(4 / 6)
    assert running_gain(torch.zeros(2, 3), returns).tolist() == [0.0, 0.0]
    gain = running_gain(returns / 2, returns)
    assert float(gain[-1]) == pytest.approx(1 - mae_ratio(returns / 2, returns)) and float(gain[0]) == pytest.approx(0.5 * 2 / (8 / 6))


def by_hand(scores: torch.Tensor, returns: torch.Tensor, k: int, drop: int, buy: float, sell: float) -> tuple[list[float], list[set[int]]]:
    """Top-k with dropout as the library describes it, in plain Python."""
    held: dict[int, float] = {}
    drop = min(drop, scores.shape[1] - k)
    cash, wealth, holdings = 1.0, [], []
    for day in range(len(scores)):
        score = dict(enumerate(scores[day].tolist()))
        last = sorted(held, key=lambda i: -score[i])
        today = sorted((i for i in score if i not in held), key=lambda i: -score[i])[: drop + k - len(last)]
        together = sorted([*last, *today], key=lambda i: -score[i])
        sold = [i for i in last if drop and i in together[-drop:]]
        bought = today[: len(sold) + k - len(last)]
        for i in sold:
            cash += held.pop(i) * (1 - sell)
        for i in bought:
            held[i] = cash / len(bought) / (1 + buy)
        cash = 0.0 if bought else cash
        for i in held:
            held[i] *= 1 + float(returns[day, i])
        wealth.append(sum(held.values()) + cash)
        holdings.append(set(held))
    return wealth, holdings


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(1, 12), st.data())
def test_the_portfolio_agrees_with_one_kept_by_hand(stocks: int, days: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, stocks))
    drop = data.draw(st.integers(0, k))
    seed = data.draw(st.integers(0, 99))
    scores, returns = draw(days, stocks, seed=seed, dtype=torch.float64), 0.05 * draw(days, stocks, seed=seed + 1, dtype=torch.float64).clamp(-2, 2)
    found = top_k_dropout(scores, returns, k=k, drop=drop, buy=0.001, sell=0.002)
    wealth, holdings = by_hand(scores, returns, k, drop, 0.001, 0.002)
    np.testing.assert_allclose(found.wealth.numpy(), wealth, rtol=1e-12)
    assert [set(row.nonzero()[:, 0].tolist()) for row in found.held] == holdings
    assert bool((found.held.sum(1) == k).all())


def test_holding_everything_is_buying_once_and_keeping() -> None:
    returns = 0.02 * draw(50, 6, dtype=torch.float64)
    found = top_k_dropout(draw(50, 6), returns, k=6, drop=6, buy=0.01, sell=0.5)
    torch.testing.assert_close(found.wealth, (1 + returns).cumprod(0).mean(1) / 1.01)
    assert float(found.turnover.sum()) == 0.0
    assert found.drawdown > 0 and float(found.gross[0]) > float(found.net[0])


def test_a_foreseen_market_is_worth_more_traded_at_once_and_costs_eat_it() -> None:
    returns = 0.02 * draw(60, 10, dtype=torch.float64)
    free = top_k_dropout(returns, returns, k=2, drop=2, buy=0, sell=0)
    best = returns.sort(1, descending=True).values[:, :2].mean(1)
    assert float((free.gross - best).abs().max()) < 0.02  # positions drift: they are not made equal every day
    slow = top_k_dropout(returns, returns, k=2, drop=1, buy=0, sell=0)
    assert free.annual_return > slow.annual_return > top_k_dropout(returns, returns, k=10, drop=1).annual_return
    dear = top_k_dropout(returns, returns, k=2, drop=2, buy=0.02, sell=0.02)
    assert dear.annual_return < free.annual_return and dear.sharpe < free.sharpe
    torch.testing.assert_close(dear.gross, free.gross, atol=1e-2, rtol=0)
    assert bool((dear.turnover >= 0).all()) and float(dear.turnover.max()) <= 1 + 1e-9


def test_figures_of_a_portfolio_by_hand() -> None:
    net = torch.tensor([0.1, -0.5, 0.2], dtype=torch.float64)
    found = backtest.Backtest(net, net, torch.zeros(3), torch.ones(3, 1, dtype=torch.bool))
    assert float(found.wealth[-1]) == pytest.approx(1.1 * 0.5 * 1.2)
    assert found.drawdown == pytest.approx(0.5)
    assert found.annual_return == pytest.approx(0.66**84 - 1)
    assert found.sharpe == pytest.approx(float(net.mean() / net.std()) * 252**0.5)
    still = backtest.Backtest(net[:1], net[:1], net[:1], torch.ones(1, 1, dtype=torch.bool))
    assert np.isnan(still.sharpe)


def test_regimes_are_thirds_by_the_month_before_and_know_nothing_of_the_day() -> None:
    returns = draw(140, 3)
    found = regimes(returns, days=20)
    assert bool((found[:20] == -1).all())
    assert [int((found == at).sum()) for at in range(3)] == [40, 40, 40]
    past = torch.stack([returns[day - 20 : day].mean(1).sum() for day in range(20, 140)])
    assert float(past[found[20:] == 0].max()) <= float(past[found[20:] == 1].min()) + 1e-6
    assert float(past[found[20:] == 1].max()) <= float(past[found[20:] == 2].min()) + 1e-6


# bad input


def nan_returns() -> torch.Tensor:
    returns = draw(30, 3)
    returns[4, 1] = torch.nan
    return returns


def panel(days: int = 30, stocks: int = 3) -> Panel:
    return Panel(draw(days, stocks), draw(days, stocks, 2), torch.zeros(days, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: return_correlation(nan_returns()), "stock 1 has nan on day 4"),
        (lambda: Panel(nan_returns(), draw(30, 3, 2), torch.zeros(30, 2).long()), "stock 1 has nan on day 4; drop that stock or fill the gap"),
        (lambda: Panel(draw(30, 3) / 0, draw(30, 3, 2), torch.zeros(30, 2).long()), "returns must be finite"),
        (lambda: Panel(draw(30, 1), draw(30, 1, 2), torch.zeros(30, 2).long()), "at least 2 stocks"),
        (lambda: Panel(draw(30, 3), draw(29, 3, 2), torch.zeros(30, 2).long()), "factors must be of shape"),
        (lambda: Panel(draw(30, 3), draw(30, 3, 2) / 0, torch.zeros(30, 2).long()), "factors must be finite: factor 0 of stock 0 on day 0"),
        (lambda: Panel(draw(30, 3), draw(30, 3, 2), torch.zeros(30, 2)), "marks must be whole numbers"),
        (lambda: return_correlation(draw(1, 3)), "at least 2 days, got 1"),
        (lambda: return_correlation(torch.ones(5, 3)), "stock 0 never changes"),
        (lambda: Windows(panel(10), days=9, horizon=2), r"T1 \+ T2 = 11 days, the panel has 10"),
        (lambda: Windows(panel(), days=0), "days and horizon must be at least 1"),
        (lambda: Windows(panel(), days=5).ends(range(28, 29)), "hold no window of 5 input days and 2 target days"),
        (lambda: Windows(panel(), days=3).batch(torch.tensor([9])), "a window of 3 days is shorter than the filter of sym2: it needs at least 4"),
        (lambda: split_matrices(7, "db4"), "needs at least 8 days"),
        (lambda: split_matrices(8, "morlet"), "wavelet must be a discrete one"),
        (lambda: split_matrices(8, level=0), "level and days must be at least 1"),
        (lambda: split_matrices(8, mode="mirror"), "mode must be one of"),
        (lambda: check_splits({"train": range(10), "test": range(8, 20)}), "splits overlap in time: 'test' begins on day 8, 'train' ends on day 9"),
        (lambda: check_splits({"train": range(5, 5)}), "split 'train' must be a range of days"),
        (lambda: SpatialAttention(8, samples=0.0), r"samples must lie in \(0, 1\], got 0.0"),
        (lambda: Stockformer(5, samples=1.5), r"samples must lie in \(0, 1\], got 1.5"),
        (lambda: Stockformer(0), "features must be at least 1, got 0"),
        (lambda: Stockformer(5, periods=(5, 0)), "periods must be at least 1, got 0"),
        (lambda: edge_weights(draw(3, 2)), "square matrix"),
        (lambda: laplacian_embedding(torch.eye(3), 8, count=4), r"between 1 and min\(width, stocks\) = 3, got 4"),
        (lambda: random_walks(torch.zeros(1, 3, 3), walks=1, length=3, generator=stream(0)), "node 0 has no edge in layer 0"),
        (lambda: random_walks(torch.ones(1, 3, 3), walks=1, length=1, generator=stream(0)), "length at least 2"),
        (lambda: lag_means(draw(5, 2), (0,)), "lengths must be at least 1"),
        (lambda: price_volume_factors({"open": draw(60, 2)}), "must hold close"),
        (lambda: price_volume_factors({"close": torch.ones(59, 2)}), "need at least as many days, got 59"),
        (lambda: price_volume_factors({"close": torch.ones(60, 2), "high": torch.ones(60, 3)}), "high must be of the shape of close"),
        (lambda: price_volume_factors({"close": torch.ones(60, 2), "high": torch.zeros(60, 2)}), "stock 0 has 0.0 on day 0"),
        (lambda: neutralise(draw(2, 3, 4), draw(2, 4, 1)), "on the same days and stocks"),
        (lambda: neutralise(draw(2, 3, 4) / 0, draw(2, 3, 1)), "must be finite"),
        (lambda: rank_ic(draw(3, 4), draw(3, 5)), "one shape"),
        (lambda: rank_ic(draw(3, 4) / 0, draw(3, 4)), "finite"),
        (lambda: top_k_dropout(draw(3, 4), draw(3, 5), k=1, drop=1), "one shape"),
        (lambda: top_k_dropout(draw(3, 4) / 0, draw(3, 4), k=1, drop=1), "finite"),
        (lambda: top_k_dropout(draw(3, 4), torch.full((3, 4), -2.0), k=1, drop=1), "were they per cent"),
        (lambda: top_k_dropout(draw(3, 4), 0.01 * draw(3, 4), k=5, drop=1), r"k must lie in 1\.\.4"),
        (lambda: top_k_dropout(draw(3, 4), 0.01 * draw(3, 4), k=2, drop=3), r"drop in 0\.\.k"),
        (lambda: top_k_dropout(draw(3, 4), 0.01 * draw(3, 4), k=2, drop=1, sell=1.0), "costs are shares"),
        (lambda: regimes(draw(20, 3)), "need more than 22 days, got 20"),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# the experiment


def test_the_quick_experiment_runs_and_judges_every_claim() -> None:
    arms = run_quick(EXPERIMENT)
    assert set(ARMS) <= set(arms)
    assert arms["optimum"]["rank IC"] > max(arms[name]["rank IC"] for name in (FULL, "GRU", "ridge on own lags"))
    assert arms["zero"]["MAE ratio"] == arms["real: zero"]["real MAE ratio"] == 1.0


def test_real_prices_have_a_drift_and_lagged_returns_say_nothing() -> None:
    settings = replace(EXPERIMENT.scales["quick"], real=replace(TINY, days=8, steps=0))
    arms = experiment.real_arms(settings, experiment.real_task(), 0, torch.device("cpu"))
    assert 1.0 < arms["real: ridge, no constant"]["real MAE ratio"] < 1.01
    assert arms["real: ridge, no constant"]["real direction accuracy"] < 0.5 < 0.6 < arms["real: zero"]["real direction accuracy"]
    assert arms["real: constant"]["real MAE ratio"] < 0.98
    low, high = (arms["real: ridge on own lags"][f"real rank IC, {end} end"] for end in ("low", "high"))
    assert low < 0 < high


def test_every_arm_starts_from_the_same_weights_and_training_repeats() -> None:
    with seeded(3):
        whole = experiment.build(TINY, Arm(), 5, 0).state_dict()
        lean = experiment.build(TINY, Arm(high=False), 5, 0).state_dict()
    assert set(lean) < set(whole) and all(torch.equal(lean[name], whole[name]) for name in lean)
    assert not any("high" in name for name in lean)
    task = tiny_task()
    first, again = (experiment.train(task, TINY, Arm(graph="struc2vec"), 1) for _ in range(2))
    ends = first.windows.ends(task.test)
    assert all(torch.equal(a, b) for a, b in zip(first.predict(ends), again.predict(ends), strict=True))


def test_training_keeps_the_state_with_the_smallest_validation_loss() -> None:
    task, recipe = tiny_task(), replace(TINY, steps=12, check_every=1, learning_rate=0.3, patience=2)
    trained = experiment.train(task, recipe, Arm(), 0)
    last = experiment.train(task, replace(recipe, check_every=12), Arm(), 0)
    checks = trained.windows.ends(task.validation)
    kept, end = (experiment.validation_loss(t, checks) for t in (trained, last))
    assert kept < end
    direction = experiment.train(task, TINY, Arm(returns=0.0), 0)
    assert experiment.validation_loss(direction, checks) == pytest.approx(
        float(F.cross_entropy(direction.predict(checks).direction.flatten(0, -2), direction.windows.batch(checks).target_up.flatten()))
    )


def test_an_arm_without_the_return_task_ranks_by_the_probability_of_a_rise() -> None:
    task = tiny_task()
    found = {arm: experiment.train(task, TINY, arm, 0) for arm in (Arm(), Arm(returns=0.0), Arm(direction=0.0), Arm(gru=True))}
    ends = found[Arm()].windows.ends(task.test)
    both, direction, returns, gru = (experiment.forecast(trained, ends) for trained in found.values())
    assert both.returns is not None and torch.equal(both.score, both.returns) and both.score.shape == (29, 8)
    assert direction.returns is None and torch.equal(direction.up, direction.score > 0)
    assert returns.returns is not None and torch.equal(returns.up, returns.returns > 0)
    assert gru.score.shape == (29, 8)
    untouched = experiment.train(task, replace(TINY, steps=0), Arm(direction=0.0), 0).model
    head = [name for name in untouched.state_dict() if "direction" in name]
    assert head and all(torch.equal(untouched.state_dict()[name], found[Arm(direction=0.0)].model.state_dict()[name]) for name in head)


def test_ridge_finds_a_linear_market_and_leaves_the_test_days_alone() -> None:
    returns = draw(200, 3)
    for day in range(1, 200):
        returns[day] += 0.8 * returns[day - 1]
    task = experiment.Task(Panel(returns, draw(200, 3, 1), torch.zeros(200, 2).long()), range(100), range(100, 140), range(140, 200))
    days = task.judged(2)
    assert days == range(140, 199)
    found = experiment.ridge(task, experiment.lags(returns, 3), days)
    assert mae_ratio(found, returns[days]) < 0.75
    assert float((found - 0.8 * returns[139:198]).abs().mean()) < 0.2
    noisy = returns.clone()
    noisy[150:] = 0.0
    again = experiment.ridge(replace(task, panel=Panel(noisy, task.panel.factors, task.panel.marks)), experiment.lags(noisy, 3), days)
    assert torch.equal(again[:10], found[:10])
    torch.testing.assert_close(experiment.lags(returns, 3)[5, 1], returns[3:6, 1])
    assert experiment.lags(returns, 3)[0, 0].tolist() == [0.0, 0.0, float(returns[0, 0])]


def test_overlapping_splits_are_no_task() -> None:
    with pytest.raises(ValueError, match="splits overlap in time: 'validation' begins on day 30"):
        experiment.Task(panel(60), range(40), range(30, 50), range(50, 60))


def test_the_paper_scale_has_the_published_sizes_and_takes_steps_on_bars_and_on_real_prices() -> None:
    paper = EXPERIMENT.scales["paper"]
    assert len(paper.world.sector) == 255 and paper.train == 485
    short = replace(paper, days=59 + 60, train=26, validation=23)
    _, task, real = experiment.tasks(short, 0)
    assert task.panel.factors.shape == (60, 255, 360) and real.panel.factors.shape == (331, 7, 60)
    spread = task.panel.factors.std(1)
    todays = [59, 359]  # today's close and volume over themselves
    assert bool((spread[:, todays] == 0).all())
    torch.testing.assert_close(spread[:, [f for f in range(360) if f not in todays]], torch.ones(60, 358))
    few = replace(paper.recipe, steps=1, batch=1, check_every=5)
    model = experiment.build(few, Arm(), 362, 0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 942_423
    windows = Windows(task.panel)
    batch = windows.batch(windows.ends(task.train)[:1])
    prediction = experiment.predict(model, batch, experiment.graph_embedding(task, few, "laplacian", 0))
    loss = experiment.weighted_loss(prediction, batch, Arm())
    loss.backward()
    assert prediction.returns.shape == (1, 2, 255) and all(parameter.grad is not None for parameter in model.parameters())
    trained = experiment.train(real, replace(paper.real, steps=2, batch=2, check_every=2), Arm(), 0)
    found = experiment.forecast(trained, trained.windows.ends(real.test)[:5])
    assert found.score.shape == (5, 7) and bool(found.score.isfinite().all())


# the shipped models, the exercises, the explorer


def test_the_shipped_models_did_on_the_test_days_what_they_say() -> None:
    shipped = CHECKPOINTS[0].settings
    models = load(CHECKPOINTS[0])
    _, tasks = shipped.tasks()
    assert set(models) == {f"{task} {w} {level}" for task in tasks for w in experiment.WAVELETS for level in experiment.LEVELS}
    for name, (task, wavelet, level, recipe) in experiment._shipped_names(shipped).items():
        if name not in ("drawn sym2 1", "real db4 2"):
            continue
        tested = models[name]
        windows = Windows(tasks[task].panel, days=recipe.days, split=WaveletSplit(wavelet, level))
        trained = experiment.Trained(tested.model, windows, tested.graph, Arm())
        ends = windows.ends(tasks[task].test)[:100]
        returns = tasks[task].panel.returns[tasks[task].judged(2)][:100]
        found = experiment.forecast(trained, ends).score
        torch.testing.assert_close(tested.ic[:100], rank_ic(found, returns).float(), atol=0.05, rtol=0)
        torch.testing.assert_close(tested.gain[:100], (returns.abs() - (found - returns).abs()).mean(1), atol=1e-3, rtol=0)


def test_shipped_models_are_built_and_trained_by_their_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "WAVELETS", ("haar",))
    monkeypatch.setattr(experiment, "LEVELS", (2,))
    few = replace(TINY, days=6, steps=2)
    small_ones = experiment.Shipped(days=120, train=70, validation=20, recipe=few, real=few)
    trained = CHECKPOINTS[0].train(small_ones, None)
    CHECKPOINTS[0].build(small_ones).load_state_dict(trained.state_dict())
    assert set(CHECKPOINTS[0].measure(trained)) == {"drawn haar 2: rank IC", "real haar 2: rank IC"}


def test_exercises_hint_at_each_way_to_be_wrong() -> None:
    mirror, skill, split = EXERCISES
    assert "same shape" in mirror.check(lambda returns, day: returns[day]).text
    assert "only day 25 may change" in mirror.check(lambda returns, day: -returns).text
    assert "should have turned around" in mirror.check(lambda returns, day: returns).text

    def backwards(returns: torch.Tensor, day: int) -> torch.Tensor:
        turned = returns.clone()
        turned[day] = returns[day].sort().values[returns[day].neg().argsort().argsort()]
        return turned

    assert "have changed" in mirror.check(backwards).text
    assert "always says the same word" in skill.check(skill.wrong).text
    assert "the gain is -0.8 points, yours is +0.0." in skill.check(lambda called, up: 0.0).text
    assert "shape of the window" in split.check(lambda x: (x[:, :3], x)).text
    assert "sum to the window" in split.check(lambda x: (x, x)).text
    assert "never changes" in split.check(lambda x: (x / 2, x / 2)).text
    assert "calmer" in split.check(lambda x: (x, torch.zeros_like(x))).text
    to_low = split_matrices(20, "haar", 2)[0]
    assert "Look back alone" in split.check(lambda x: (to_low @ x, x - to_low @ x)).text


@pytest.fixture(scope="module")
def shown():
    return explorer.explorer()


def test_every_control_changes_the_picture(shown) -> None:
    moves = {"wavelet": "haar", "level": "2", "day": 90, "stock": 20, "whom": explorer.ONE, "at": 9, "size": -3.0}
    assert set(moves) == set(shown.controls)
    for name, value in moves.items():
        shown.preset("reset")
        before, text = shown.png, shown.text
        shown.set(**{name: value})
        assert shown.png != before and shown.text != text, name


def test_every_preset_shows_another_picture_and_says_what_it_shows(shown) -> None:
    pictures, texts = set(), set()
    labels = ("no shock", "the sector jumped today", "this stock alone", "the sector jumped last week", "blocks: haar", "deeper: level 3")
    for label in labels:
        shown.preset(label)
        pictures.add(shown.png)
        texts.add(shown.text)
    assert len(pictures) == len(texts) == len(labels)


def test_a_shock_is_dragged_into_the_window_and_moved_with_the_arrows(shown) -> None:
    shown.preset("no shock")
    assert "changes the low part by 0.0 and the high part by 0.0" in shown.text
    market, _ = explorer.world()
    plain = float(market.returns[explorer._end(61) - 4, 4])
    shown.point("press", -4.2, plain + 6.1)
    assert shown.values["at"] == explorer.DAYS - 4 and shown.values["size"] == 6.0
    shown.point("drag", -90.0, 99.0)
    assert shown.values["at"] == 1 and shown.values["size"] == explorer.LARGEST
    shown.point("drag", 5.0, -99.0)
    assert shown.values["at"] == explorer.DAYS and shown.values["size"] == -explorer.LARGEST
    shown.point("key", 0, 0, key="ArrowLeft")
    shown.point("key", 0, 0, key="ArrowUp")
    assert shown.values["at"] == explorer.DAYS - 1 and shown.values["size"] == 0.5 - explorer.LARGEST
    before = shown.values
    shown.point("press", 0.0, 1.0, axes=1)
    shown.point("key", 0, 0, key="a")
    assert shown.values == before


def test_the_parts_of_a_window_sum_to_it_and_the_best_prediction_takes_a_jump_back() -> None:
    found = explorer.look("sym2", 1, explorer._end(61), 4, explorer.DAYS - 1, 5.0, explorer.SECTOR)
    torch.testing.assert_close(found.low + found.high, found.returns)
    assert float(found.best[1] - found.best[0]) == pytest.approx(-0.6 * 5.0)
    assert float(found.returns[1, -1] - found.returns[0, -1]) == pytest.approx(5.0, abs=1e-5)
    early = explorer.look("sym2", 1, explorer._end(61), 4, 3, 5.0, explorer.SECTOR)
    assert float(early.best[1] - early.best[0]) == pytest.approx(0.0, abs=1e-9)  # a jump that was seen and taken back says nothing more
    assert float(early.returns[1, 4] - early.returns[0, 4]) == pytest.approx(-3.0, abs=1e-5)
    alone = explorer.look("sym2", 1, explorer._end(61), 4, explorer.DAYS - 1, 5.0, explorer.ONE)
    assert 0 < float(alone.best[1] - alone.best[0]) < 0.2  # one stock's move is mostly noise, and a little of it trend
    full = explorer.best_prediction(explorer.world()[0])[explorer._end(61) + 1, 4]
    assert float(found.best[0]) == pytest.approx(float(full), abs=1e-6)
