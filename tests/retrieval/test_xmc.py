"""The losses of many positives against explicit loops and gradients; the soft top k; all labels in little memory; worlds, experiment, explorers."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from real_files import REAL
from sklearn.metrics import ndcg_score
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.datasets.documentation import Page
from mtlearn.lab.checkpoints import provenance
from mtlearn.layers.contrastive import cached_gradients
from mtlearn.layers.embedding import embed
from mtlearn.retrieval.xmc import experiment as xmc
from mtlearn.retrieval.xmc.encoder import encode
from mtlearn.retrieval.xmc.exercises import EXERCISES
from mtlearn.retrieval.xmc.explorer import explorer as arrows
from mtlearn.retrieval.xmc.explorer import frontier, level
from mtlearn.retrieval.xmc.method import (
    DualEncoder,
    LabelHead,
    binary_loss,
    blocked_decoupled_softmax,
    decoupled_softmax,
    hard_negatives,
    label_pool,
    log_soft_top_k,
    sample_positive,
    soft_top_k,
    soft_top_k_loss,
    softmax_loss,
)
from mtlearn.retrieval.xmc.worlds import World, easy_and_hard, link_texts, parameter_names, parameter_texts, random_pairs, text_world


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_losses_and_gradients_are_those_of_the_public_code() -> None:
    stored = json.loads((Path(__file__).parent / "public" / "xmc.json").read_text())
    pairs = torch.tensor(stored["pairs"])
    ways = {
        "softmax": softmax_loss,
        "decoupled-softmax": decoupled_softmax,
        "bce": binary_loss,
        "topk": lambda scores, targets: soft_top_k_loss(scores, targets, k=3, alpha=2.0, steps=80),
    }
    assert set(stored["losses"]) == set(ways)
    for name, way in ways.items():
        scores = torch.tensor(stored["scores"], dtype=torch.float64, requires_grad=True)
        loss = way(scores, pairs)
        loss.backward()
        wanted = stored["losses"][name]
        assert loss.item() == pytest.approx(wanted["loss"], rel=1e-9), name
        torch.testing.assert_close(scores.grad, torch.tensor(wanted["gradient"], dtype=torch.float64), rtol=1e-8, atol=1e-10)


def some_targets(rows: int, labels: int, seed: int = 0, most: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(rows, labels, generator=generator).argsort(1).argsort(1)
    return order < torch.randint(1, most + 1, (rows, 1), generator=generator)


# ---------------------------------------------------------------------------------------------------------------------------- losses


def test_one_positive_makes_all_of_them_the_cross_entropy() -> None:
    scores, label = drawn(6, 9), torch.arange(6)
    targets = F.one_hot(label, 9).bool()
    wanted = F.cross_entropy(scores, label)
    for loss in (softmax_loss, decoupled_softmax):
        torch.testing.assert_close(loss(scores, targets), wanted)


@given(st.integers(1, 5), st.integers(5, 12), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_decoupled_is_a_cross_entropy_of_each_positive_with_the_negatives(rows: int, labels: int, seed: int) -> None:
    scores, targets = 5 * drawn(rows, labels, seed=seed), some_targets(rows, labels, seed)
    each, pushes = [], []
    for row in range(rows):
        negatives = scores[row, ~targets[row]]
        own = [F.cross_entropy(torch.cat([s[None], negatives])[None], torch.tensor([0])) for s in scores[row, targets[row]]]
        each.append(torch.stack(own).mean())
        pushes.append(torch.stack(own).sum())
    torch.testing.assert_close(decoupled_softmax(scores, targets), torch.stack(each).mean())
    torch.testing.assert_close(decoupled_softmax(scores, targets, average=False), torch.stack(pushes).mean())
    torch.testing.assert_close(decoupled_softmax(scores, targets.nonzero().flip(0)), torch.stack(each).mean())  # pairs in any order


def test_gradients_are_those_of_the_paper() -> None:
    scores, targets = drawn(4, 10).requires_grad_(), some_targets(4, 10)
    count, p = targets.sum(1, keepdim=True), scores.softmax(1)
    (gradient,) = torch.autograd.grad(4 * softmax_loss(scores, targets), scores)
    torch.testing.assert_close(gradient[targets], (count * p - 1)[targets])
    (gradient,) = torch.autograd.grad(4 * decoupled_softmax(scores, targets), scores)
    negatives = scores.exp().masked_fill(targets, 0).sum(1, keepdim=True)
    alone = scores.exp() / (scores.exp() + negatives)
    torch.testing.assert_close(gradient[targets], (-(1 - alone) / count)[targets])
    assert (gradient[targets] <= 0).all() and (gradient[~targets] >= 0).all()


def test_a_sure_positive_is_pushed_down_by_the_softmax_alone() -> None:
    scores = torch.tensor([[4.0, 0, 0, 0, 0]], requires_grad=True)
    targets = torch.tensor([[True, True, False, False, False]])
    assert scores.softmax(1)[0, 0] > 1 / 2
    assert torch.autograd.grad(softmax_loss(scores, targets), scores)[0][0, 0] > 0
    assert torch.autograd.grad(decoupled_softmax(scores, targets), scores)[0][0, 0] < 0


def test_positives_do_not_feel_each_other_when_decoupled() -> None:
    targets = torch.tensor([[True, True, True, False, False, False]])
    scores = drawn(1, 6)
    cross = torch.autograd.functional.hessian(lambda s: decoupled_softmax(s, targets), scores)[0, :3, 0, :3]
    assert torch.equal(cross - cross.diag().diag(), torch.zeros(3, 3, dtype=cross.dtype))
    mixed = torch.autograd.functional.hessian(lambda s: softmax_loss(s, targets), scores)[0, :3, 0, :3]
    assert (mixed - mixed.diag().diag()).abs().min() + mixed[0, 1].abs() > 1e-3


def test_the_mean_over_drawn_positives_is_the_full_loss() -> None:
    scores, targets = drawn(1, 8), torch.tensor([[True, False, True, False, False, True, False, False]])
    each = []
    for label in targets[0].nonzero()[:, 0]:
        one = torch.zeros_like(targets)
        one[0, label] = True
        each.append(decoupled_softmax(scores, one, dropped=targets & ~one))
    torch.testing.assert_close(torch.stack(each).mean(), decoupled_softmax(scores, targets))


def test_positives_are_drawn_in_proportion_to_their_relevance() -> None:
    targets = torch.tensor([[True, True, False, True]]).expand(4000, -1)
    relevance = torch.tensor([[3.0, 1.0, 9.0, 1.0]]).expand(4000, -1)
    generator = torch.Generator().manual_seed(0)
    one, rest = sample_positive(targets, relevance=relevance, generator=generator)
    assert torch.equal(one | rest, targets) and not (one & rest).any() and (one.sum(1) == 1).all()
    assert one.double().mean(0).tolist() == pytest.approx([0.6, 0.2, 0, 0.2], abs=0.03)  # four standard errors
    two, _ = sample_positive(targets, count=2, generator=generator)
    assert (two.sum(1) == 2).all() and two.double().mean(0).tolist() == pytest.approx([2 / 3, 2 / 3, 0, 2 / 3], abs=0.03)
    assert torch.equal(sample_positive(targets, count=9)[0], targets)


def test_binary_is_pytorch_s() -> None:
    scores, targets = 3 * drawn(5, 7), some_targets(5, 7)
    torch.testing.assert_close(binary_loss(scores, targets), F.binary_cross_entropy_with_logits(scores, targets.double()))


def test_a_query_that_has_every_label_warns_and_has_no_gradient() -> None:
    scores = drawn(2, 3).requires_grad_()
    targets = torch.tensor([[True, True, True], [True, False, False]])
    with pytest.warns(UserWarning, match="1 of 2 queries have no negative label: their loss is 0"):
        loss = decoupled_softmax(scores, targets)
    loss.backward()
    assert torch.equal(scores.grad[0], torch.zeros(3, dtype=torch.float64)) and scores.grad.isfinite().all()
    torch.testing.assert_close(loss, F.cross_entropy(scores[1:], torch.tensor([0])) / 2)


BAD_TARGETS = [
    (torch.ones(2, 3, dtype=torch.bool), ValueError, "targets must have the shape of the scores, (2, 4), got (2, 3)"),
    (torch.ones(2, 4), TypeError, "targets must be bool (2, 4) or whole numbers (m, 2), pairs of row and label, got torch.float32"),
    (torch.tensor([[0, 1], [1, 4]]), ValueError, "targets must name labels between 0 and 3, got 4"),
    (torch.tensor([[0, 1], [2, 0]]), ValueError, "targets must name rows between 0 and 1, got 2"),
    (torch.tensor([[0, 1], [1, 2], [0, 1]]), ValueError, "row 0 has label 1 twice"),
    (torch.tensor([[0, 1]]), ValueError, "query 1 has none (1 of 2)"),
    (torch.tensor([0, 1]), ValueError, "targets as whole numbers must be (m, 2)"),
]


@pytest.mark.parametrize(("targets", "error", "message"), BAD_TARGETS)
def test_bad_targets(targets: Tensor, error: type[Exception], message: str) -> None:
    for loss in (softmax_loss, decoupled_softmax, binary_loss, lambda s, t: soft_top_k_loss(s, t, k=2)):
        with pytest.raises(error, match=re.escape(message)):
            loss(drawn(2, 4), targets)
    with pytest.raises(error, match=re.escape(message)):
        blocked_decoupled_softmax(drawn(2, 5), drawn(4, 5), targets)


def test_bad_scores() -> None:
    targets = torch.eye(2, 4).bool()
    with pytest.raises(ValueError, match="scores must not be NaN; query 1 has one"):
        decoupled_softmax(torch.stack([torch.zeros(4), torch.full((4,), torch.nan)]), targets)
    with pytest.raises(ValueError, match="at least one query and label"):
        softmax_loss(torch.zeros(0, 4), targets)
    with pytest.raises(ValueError, match="positive and dropped at once"):
        decoupled_softmax(torch.zeros(2, 4), targets, dropped=targets)
    with pytest.raises(ValueError, match=re.escape("dropped must be bool (2, 4), got torch.bool (2, 3)")):
        decoupled_softmax(torch.zeros(2, 4), targets, dropped=targets[:, :3])
    for k, alpha, message in ((0, 2.0, "k must be between 1 and L - 1 = 3, got 0"), (4, 2.0, "got 4"), (1, 0.0, "alpha must be above 0")):
        with pytest.raises(ValueError, match=re.escape(message)):
            soft_top_k(torch.zeros(2, 4), k, alpha=alpha)
    with pytest.raises(ValueError, match="with 1 that are not"):
        soft_top_k(torch.tensor([[0.0, torch.inf, 1.0]]), 1)
    with pytest.raises(TypeError, match=re.escape("targets must be bool (B, L), got torch.float32")):
        sample_positive(torch.ones(2, 3))
    with pytest.raises(ValueError, match="count must be at least 1"):
        sample_positive(targets, count=0)
    with pytest.raises(ValueError, match="relevance must be above 0"):
        sample_positive(targets, relevance=torch.zeros(2, 4))


# ---------------------------------------------------------------------------------------------------------------------- the soft top k


@given(st.integers(2, 40), st.floats(0.3, 30), st.integers(0, 1000), st.data())
@settings(deadline=None, max_examples=40)
def test_shares_sum_to_k_keep_the_order_and_do_not_feel_a_shift(labels: int, alpha: float, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, labels - 1))
    scores = 3 * drawn(3, labels, seed=seed)
    z = soft_top_k(scores, k, alpha=alpha, steps=60)
    torch.testing.assert_close(z.sum(1), torch.full((3,), float(k), dtype=torch.float64), atol=1e-6, rtol=0)
    order = scores.argsort(1)
    assert (z.gather(1, order).diff(dim=1) >= 0).all() and (z >= 0).all() and (z <= 1).all()
    torch.testing.assert_close(soft_top_k(scores + 7, k, alpha=alpha, steps=60), z, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("labels", "k"), [(6, 2), (300_000, 5)])
def test_equal_scores_share_equally_however_many(labels: int, k: int) -> None:
    z = soft_top_k(torch.full((1, labels), 0.7, dtype=torch.float64), k)
    torch.testing.assert_close(z, torch.full_like(z, k / labels), rtol=1e-6, atol=0)  # the narrower bracket gives a sum of 13.6 here


def test_it_tends_to_the_indicator_where_there_is_a_gap() -> None:
    scores = torch.tensor([[5.0, 4.0, 3.0, 0.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(soft_top_k(scores, 3, alpha=40.0), torch.tensor([[1.0, 1, 1, 0, 0]], dtype=torch.float64), atol=1e-8, rtol=0)
    gaps = [float(soft_top_k(torch.tensor([[gap, 0.0, 0.0]], dtype=torch.float64), 1)[0, 0]) for gap in (0.0, 1.0, 5.0, 20.0)]
    assert gaps[0] == pytest.approx(1 / 3) and gaps == sorted(gaps) and gaps[-1] > 1 - 1e-6


def test_its_gradient_is_that_of_the_implicit_function() -> None:
    scores = drawn(2, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: log_soft_top_k(s, 2, alpha=1.5, steps=80), (scores,))
    assert torch.autograd.gradcheck(lambda s: soft_top_k(s, 3, alpha=3.0, steps=80), (scores,))
    (gradient,) = torch.autograd.grad(soft_top_k_loss(scores, some_targets(2, 6), k=3), scores)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)


def test_more_positives_than_places_are_drawn() -> None:
    scores = drawn(1, 6)
    targets = torch.tensor([[True, True, True, True, False, False]])
    generator = torch.Generator().manual_seed(0)
    found = {round(float(soft_top_k_loss(scores, targets, k=3, generator=generator)), 6) for _ in range(60)}
    wanted = set()
    for left in range(4):
        kept = [i for i in range(6) if i != left]
        wanted.add(round(float(soft_top_k_loss(scores[:, kept], targets[:, kept], k=3)), 6))
    assert found == wanted
    torch.testing.assert_close(soft_top_k_loss(scores, targets, k=4), -log_soft_top_k(scores, 4)[targets].mean())


# -------------------------------------------------------------------------------------------------------- all labels in little memory


@pytest.mark.parametrize("block", [1, 4, 7, 100])
@pytest.mark.parametrize("average", [True, False])
def test_blocks_give_the_same_loss_and_gradient(block: int, average: bool) -> None:
    queries, labels, targets = drawn(5, 3).requires_grad_(), drawn(13, 3, seed=1).requires_grad_(), some_targets(5, 13)
    whole = decoupled_softmax(7 * queries @ labels.T, targets, average=average)
    wanted = torch.autograd.grad(whole, (queries, labels))
    for given_targets in (targets, targets.nonzero()):
        loss = blocked_decoupled_softmax(queries, labels, given_targets, scale=7, average=average, block=block)
        torch.testing.assert_close(loss, whole)
        torch.testing.assert_close(torch.autograd.grad(loss, (queries, labels)), wanted)
    if block == 4:
        small = some_targets(5, 13, most=2).nonzero()
        assert torch.autograd.gradcheck(lambda q, y: blocked_decoupled_softmax(q, y, small, scale=2, block=block), (queries, labels))


def test_blocks_of_which_a_query_has_every_label() -> None:
    queries, labels = drawn(2, 3).requires_grad_(), drawn(4, 3, seed=1)
    targets = torch.tensor([[True] * 4, [True, False, False, False]])
    with pytest.warns(UserWarning, match="1 of 2 queries"):
        loss = blocked_decoupled_softmax(queries, labels, targets, block=2)
    loss.backward()
    assert torch.equal(queries.grad[0], torch.zeros(3, dtype=torch.float64)) and queries.grad.isfinite().all()


def test_what_blocks_refuse() -> None:
    targets = torch.eye(2, 4).bool()
    for change, message in (
        ({"labels": drawn(4, 2)}, "queries and labels must be (B, d) and (L, d), got (2, 3) and (4, 2)"),
        ({"scale": 0.0}, "scale must be above 0 and block at least 1, got 0.0 and 8192"),
        ({"block": 0}, "got 20.0 and 0"),
        ({"queries": torch.full((2, 3), torch.inf)}, "must be finite"),
    ):
        arguments = {"queries": drawn(2, 3), "labels": drawn(4, 3), "targets": targets, **change}
        with pytest.raises(ValueError, match=re.escape(message)):
            blocked_decoupled_softmax(**arguments)


def test_the_gradient_of_all_labels_from_chunks_of_them() -> None:
    torch.manual_seed(0)
    encoder = xmc.BagEncoder(30, 8, 16).double()
    model = DualEncoder(encoder, 8)
    generator = torch.Generator().manual_seed(0)
    queries, labels = torch.randint(1, 30, (6, 5), generator=generator), torch.randint(1, 30, (20, 4), generator=generator)
    targets = some_targets(6, 20)
    decoupled_softmax(model(queries, labels), targets).backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    trace: list[int] = []
    cached_gradients(
        [(model.embed, queries), (model.embed, labels)], lambda q, y: blocked_decoupled_softmax(q, y, targets, block=6), chunk=3, trace=trace
    )
    torch.testing.assert_close([p.grad for p in model.parameters()], wanted)
    assert max(trace) == 3 and sum(trace) == 26


def test_hard_negatives_are_the_nearest_that_are_not_positive() -> None:
    queries, labels, targets = drawn(7, 4), drawn(15, 4, seed=1), some_targets(7, 15)
    found = hard_negatives(queries, labels, targets, k=5)
    wanted = (queries @ labels.T).masked_fill(targets, -torch.inf).topk(5, 1).indices
    assert torch.equal(found, wanted)
    most = 15 - int(targets.sum(1).max())
    assert hard_negatives(queries, labels, targets, k=most).shape == (7, most)
    with pytest.raises(ValueError, match=f"k must be between 1 and {most}, the labels that are negatives of every query, got {most + 1}"):
        hard_negatives(queries, labels, targets, k=most + 1)


def test_a_pool_holds_every_positive_once() -> None:
    targets = torch.tensor([[False, True, False, True, False], [False, True, False, False, False]])
    pool, among = label_pool(targets, torch.tensor([[4, 3], [4, 4]]))
    assert pool.tolist() == [1, 3, 4] and among.tolist() == [[True, True, False], [True, False, False]]
    assert label_pool(targets)[0].tolist() == [1, 3]


# ---------------------------------------------------------------------------------------------------------------------------- models


def test_scores_are_cosines_over_the_temperature() -> None:
    encoder = nn.Linear(4, 6).double()
    model = DualEncoder(encoder, 6, temperature=0.1)
    a, b = drawn(3, 4), drawn(5, 4, seed=1)
    torch.testing.assert_close(model(a, b), 10 * F.cosine_similarity(encoder(a)[:, None], encoder(b)[None], dim=-1))
    raw = DualEncoder(encoder, 6, bottleneck=2, temperature=1.0, normalize=False).double()
    torch.testing.assert_close(raw(a, b), raw.bottleneck(encoder(a)) @ raw.bottleneck(encoder(b)).T)
    assert raw.width == 2
    head = LabelHead(model, 7).double()
    assert head(a).shape == (3, 7) and head.weight.numel() == 42
    torch.testing.assert_close(head(a), 10 * F.cosine_similarity(encoder(a)[:, None], head.weight[None], dim=-1))


def test_what_models_refuse() -> None:
    for arguments, message in (({"temperature": 0}, "temperature must be above 0, got 0"), ({"bottleneck": 0}, "bottleneck must be at least 1")):
        with pytest.raises(ValueError, match=message):
            DualEncoder(nn.Identity(), 3, **arguments)
    with pytest.raises(ValueError, match="labels must be at least 1, got 0"):
        LabelHead(DualEncoder(nn.Identity(), 3), 0)


# ---------------------------------------------------------------------------------------------------------------------------- worlds


def test_parameter_names_are_read() -> None:
    text = "a, b : array\n    Two arrays.\n\n    More of them.\n*args\n    The rest.\nNot a name, but a sentence.\nshape : int\n    Its size.\n"
    page = Page("m.f", "m", "m", "m", "function", "", "Do it.", (("Parameters", text), ("Notes", "axis : no")))
    assert parameter_names(page) == [
        ("a", "Two arrays. More of them."),
        ("b", "Two arrays. More of them."),
        ("args", "The rest."),
        ("shape", "Its size."),
    ]


def test_the_world_of_parameters() -> None:
    texts = parameter_texts()
    count = torch.bincount(texts.pairs[:, 1], minlength=len(texts.labels))
    assert len(texts.queries) > 3000 and len(texts.labels) > 1000 and count.min() >= 1
    assert 3 < len(texts.pairs) / len(texts.queries) < 5 and {"x", "axis", "out"} <= set(texts.names)
    world = text_world(texts, 0, label_words=16)
    assert world.queries.shape[1] == 48 and world.labels.shape[1] == 16 and world.targets.any(1).all()
    assert not set(world.train.tolist()) & set(world.test.tolist()) and len(world.test) == round(0.2 * len(texts.queries))
    assert world.size <= 6000 and int(world.queries.max()) < world.size
    assert torch.equal(text_world(texts, 0, label_words=16).test, world.test) and not torch.equal(
        text_world(texts, 1, label_words=16).test, world.test
    )


def test_the_world_of_links() -> None:
    texts = link_texts()
    names = dict(enumerate(texts.names))
    assert len(texts.queries) > 1500 and len({tuple(pair) for pair in texts.pairs.tolist()}) == len(texts.pairs)
    rows = texts.pairs[:, 0].unique()
    assert torch.equal(rows, torch.arange(len(texts.queries))) and len(names) == len(texts.labels)


def test_made_labels_are_named_by_their_word_or_their_partner() -> None:
    world, easy = easy_and_hard(0, queries=100, labels=40, most=6)
    own = world.labels[:, 0]
    assert own.tolist() == list(range(1, 41))
    for row in range(100):
        there = set(world.queries[row].tolist())
        for label in world.targets[row].nonzero()[:, 0].tolist():
            assert (1 + label in there) == bool(easy[row, label])
            assert (41 + 200 + label in there) == (not easy[row, label])
    assert not (easy & ~world.targets).any() and 0.3 < easy.sum() / world.targets.sum() < 0.7
    assert not torch.isin(world.labels, torch.arange(241, 300)).any()  # no label has a partner word


def test_random_pairs() -> None:
    world = random_pairs(3, pairs=20, vocabulary=50)
    assert torch.equal(world.targets, torch.eye(20).bool()) and world.queries.shape == world.labels.shape == (20, 8)


# ------------------------------------------------------------------------------------------------------------------------ experiment


def small_world() -> World:
    generator = torch.Generator().manual_seed(0)
    targets = some_targets(30, 12, most=5)
    return World(
        torch.randint(1, 40, (30, 6), generator=generator), torch.randint(1, 40, (12, 3), generator=generator), targets,
        torch.arange(10, 30), torch.arange(10), 40,
    )  # fmt: skip


def test_measures_are_the_usual_ones() -> None:
    world, scores = small_world(), drawn(10, 12)
    found, targets = xmc.measures(scores, world), world.targets[:10]
    assert found["ndcg5"] == pytest.approx(ndcg_score(targets.numpy().astype(int), scores.numpy(), k=5))
    best = scores.argsort(1, descending=True)[:, :5]
    recall = [targets[i, best[i]].sum() / min(5, int(targets[i].sum())) for i in range(10)]
    assert found["recall5"] == pytest.approx(float(np.mean(recall)))
    assert found["p1"] == pytest.approx(float(targets[torch.arange(10), best[:, 0]].double().mean()))
    assert found["p5"] == pytest.approx(float(targets.gather(1, best).double().mean()))


def test_the_share_pushed_down() -> None:
    scores = torch.tensor([[6.0, 0, 0, -9, -9], [9.0, 0, -9, -9, -9]])
    targets = torch.tensor([[True, True, True, False, False], [True, True, False, False, False]])  # the second row has only two
    assert xmc.pushed_down(softmax_loss, scores, targets) == pytest.approx(1 / 3)
    assert xmc.pushed_down(decoupled_softmax, scores, targets) == 0


def test_every_loss_starts_from_the_same_weights_and_batches() -> None:
    world, recipe = small_world(), xmc.Recipe(steps=1, batch=4, width=8, hidden=8, rate=0.0, decay=0.0)
    one, two = (xmc.train(world, recipe, 3, loss).state_dict() for loss in (softmax_loss, decoupled_softmax))
    assert all(torch.equal(one[name], two[name]) for name in one)
    used: list[int] = []
    xmc.train(
        world,
        xmc.Recipe(steps=2, batch=4, width=8, hidden=8, shortlist=4, drawn=2, refresh=1),
        3,
        decoupled_softmax,
        pool="hard",
        number=2,
        used=used,
    )
    assert len(used) == 2 and max(used) <= 12


def test_the_quick_experiment() -> None:
    arms = run_quick(xmc.EXPERIMENT)
    assert arms["decoupled"]["wrong_sign"] == 0
    assert arms["in-batch"]["labels_a_step"] < arms["few random"]["labels_a_step"] < arms["decoupled"]["labels_a_step"]
    assert arms["label head"]["parameters_of_labels"] > 0 == arms["decoupled"]["parameters_of_labels"]
    assert arms["label head"]["recall5_new_links"] <= arms["decoupled"]["recall5_new_links"] + 0.05


@pytest.mark.skipif(not (REAL / "cranfield").is_dir(), reason="needs the published files")
def test_the_published_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    quick = xmc.XMCSettings(seeds=1, recipe=xmc.SCALES["quick"].recipe, published=True)
    arms = xmc.run(quick, 0, torch.device("cpu"))
    assert 0 < arms["decoupled"]["recall5"] <= 1


def test_the_shipped_encoder() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vectors = embed(encode, ["Compute the inverse of a matrix.", "axis along which the sum is taken"])
    assert vectors.shape == (2, 64)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    assert provenance(xmc.SHOWN)["measured"]["p1"] > 0.5


# ------------------------------------------------------------------------------------------------------- explorers and exercises


def test_the_arrows_of_the_losses() -> None:
    explorer = arrows()
    assert "softmax pushes down" in explorer.text
    first = explorer.png
    explorer.set(s1=-2.0)
    assert explorer.png != first and "softmax pushes down no positive" in explorer.text
    for label in explorer.presets:
        explorer.preset(label)
        assert "decoupled pushes down no positive" in explorer.text


def test_a_score_is_dragged_and_moved_by_keys() -> None:
    explorer = arrows()
    before = explorer.values["s2"]
    explorer.point("press", 1.0, 3.2)
    assert explorer.values["s2"] == pytest.approx(3.2) != before
    explorer.point("key", 0, 0, key="ArrowUp")
    assert explorer.values["s2"] == pytest.approx(3.4)
    explorer.point("key", 0, 0, key="ArrowRight")
    explorer.point("key", 0, 0, key="ArrowDown")
    assert explorer.values["s3"] == pytest.approx(xmc_start(3) - 0.2)
    explorer.point("press", 0.5, 0.5, axes=-1)


def xmc_start(number: int) -> float:
    return float(arrows().values[f"s{number}"])


def test_the_water_level() -> None:
    explorer = level()
    texts = set()
    for label in explorer.presets:
        explorer.preset(label)
        assert "sum to" in explorer.text
        texts.add(explorer.text)
    assert len(texts) == len(explorer.presets)
    explorer.set(k=3, alpha=8.0)
    assert "the shares sum to 3.00" in explorer.text


def test_the_frontier() -> None:
    explorer = frontier()
    for label in explorer.presets:
        explorer.preset(label)
    explorer.set(labels=6.0)
    assert "1,000,000 labels" in explorer.text and "GB" in explorer.text


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.question[:24])
def test_exercises(exercise) -> None:
    assert not exercise.check(None).right
    assert not exercise.check(exercise.wrong).right
    reply = exercise.check(exercise.solve())
    assert reply.right, reply
