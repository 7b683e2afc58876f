import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlearn.datasets import planar
from mtlearn.lab.result import judge
from mtlearn.lab.seeds import seeded, stream
from mtlearn.pointing.pointer_networks import experiment as ex
from mtlearn.pointing.pointer_networks import method
from mtlearn.pointing.pointer_networks.baselines import FixedDictionary
from mtlearn.pointing.pointer_networks.explorer import MOST, explorer, trace
from mtlearn.pointing.pointer_networks.method import PAD, START, STOP, AdditiveScores, PointerAttention, PointerNetwork, answer_loss, check_answers


@pytest.fixture
def network() -> PointerNetwork:
    torch.manual_seed(0)
    return PointerNetwork(hidden=24)


def hulls(batch: int = 3, n: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    points = planar.sample_points(batch, n, generator=stream(seed, "points"))
    return points, planar.convex_hull(points)


# --- the method -----------------------------------------------------------------------------------------------------------------------


def test_the_scores_are_additive_attention() -> None:
    torch.manual_seed(1)
    attention = PointerAttention(8)
    entries, states = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    scores = attention(entries, states)
    for b, i, j in itertools.product(range(2), range(3), range(5)):
        one = attention.v @ torch.tanh(attention.W1.weight @ entries[b, j] + attention.W2.weight @ states[b, i])
        torch.testing.assert_close(scores[b, i, j], one, atol=1e-6, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(3, 30), batch=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_every_step_is_a_distribution_over_stop_and_the_points(n: int, batch: int, seed: int) -> None:
    torch.manual_seed(0)
    network = PointerNetwork(hidden=24)
    points, answers = hulls(batch, n, seed)
    probabilities = network(points, answers).exp()
    assert probabilities.shape == (batch, answers.shape[1], n + 1)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(batch, answers.shape[1]), atol=1e-5, rtol=0)


def test_the_same_weights_take_any_number_of_points(network: PointerNetwork) -> None:
    for n in (3, 300):
        points = planar.sample_points(2, n, generator=stream(n))
        assert network(points, torch.tensor([[1, 2, 3, STOP]] * 2)).shape == (2, 4, n + 1)
    assert all(3 not in p.shape and 300 not in p.shape for p in network.parameters())


def test_padding_changes_nothing(network: PointerNetwork) -> None:
    points, answers = hulls(4, 9)
    lengths = torch.tensor([9, 5, 7, 3])
    answers = torch.tensor([[1, 2, 3, STOP]] * 4)
    first = network(points, answers, lengths)
    spoiled = points.clone()
    for row, length in enumerate(lengths):
        spoiled[row, length:] = float("nan")
        assert (first[row, :, length + 1 :] == -torch.inf).all()
        torch.testing.assert_close(
            first[row, :, : length + 1], network(points[row : row + 1, :length], answers[row : row + 1])[0], atol=1e-5, rtol=1e-5
        )
    assert torch.equal(first, network(spoiled, answers, lengths))


@pytest.mark.parametrize("constraint", ["none", "no_repeats", "tour"])
@pytest.mark.parametrize("blends", [None, True, False])
def test_one_call_equals_stepping(constraint, blends: bool | None) -> None:
    torch.manual_seed(2)
    network = PointerNetwork(hidden=16) if blends is None else FixedDictionary(9, attention=blends, hidden=16)
    points = planar.sample_points(5, 6, generator=stream(1))
    answers = planar.close(planar.shortest_tour(points))
    together = network(points, answers, constraint=constraint)
    state, token = network.initial_state(points), torch.full((5,), START)
    for at in range(answers.shape[1]):
        one, state = network.step(token, state, constraint=constraint)
        torch.testing.assert_close(one, together[:, at], atol=1e-5, rtol=1e-5)
        token = answers[:, at]


def test_without_the_decoders_part_every_step_points_alike(network: PointerNetwork) -> None:
    torch.nn.init.zeros_(network.attention.W2.weight)
    rows = network(*hulls())
    torch.testing.assert_close(rows, rows[:, :1].expand_as(rows), atol=1e-6, rtol=0)


def test_with_v_zero_the_loss_is_that_of_guessing(network: PointerNetwork) -> None:
    torch.nn.init.zeros_(network.attention.v)
    points, answers = hulls(8, 7)
    assert answer_loss(network(points, answers), answers).item() == pytest.approx(math.log(8), abs=1e-6)


class SetEncoder(PointerNetwork):
    """Reads the points as a set: e_j = W P_j, and the decoder starts from zero."""

    def encode(self, inputs, lengths=None):
        entries = (inputs - self.centre) @ self.encoder.weight_ih_l0[: self.stop.shape[0]].T
        start = torch.zeros(1, len(inputs), self.stop.shape[0])
        return torch.cat([self.stop.expand(len(inputs), 1, -1), entries], 1), (start, start)


def test_a_set_encoder_makes_pointing_follow_the_points_and_the_lstm_does_not() -> None:
    points, answers = hulls(4, 6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    renamed = torch.where(answers > STOP, order.argsort()[(answers - 1).clamp(min=0)] + 1, answers)
    entries = torch.cat([torch.tensor([0]), order + 1])
    for family, follows in ((SetEncoder, True), (PointerNetwork, False)):
        torch.manual_seed(3)
        network = family(hidden=24)
        before, after = network(points, answers), network(points[:, order], renamed)
        assert torch.allclose(before[:, :, entries], after, atol=1e-6) is follows


@pytest.mark.parametrize("block", [1, 120, 2**19])  # a block an instance, blocks of two and a rest, one block
@pytest.mark.parametrize("scale", [1.0, 60.0])  # 60: exp(-2k) exp(-2q) may be 0 times infinity in float32, and the logistic is taken instead
def test_gradients_of_the_scores_are_those_of_the_plain_formula(block: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "BLOCK", block)
    torch.manual_seed(4)
    tensors = [torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in ((3, 4, 3), (3, 5, 3), (3,))]
    with torch.no_grad():
        tensors[0][0, 0, 0], tensors[1][0, 0, 0] = scale, 0.5 - scale
    assert torch.autograd.gradcheck(AdditiveScores.apply, tensors)
    keys, queries, v = tensors
    plain = torch.tanh(keys[:, None] + queries[:, :, None]) @ v
    ours = AdditiveScores.apply(*tensors)
    torch.testing.assert_close(ours, plain)
    weights = torch.randn_like(plain)
    wanted = torch.autograd.grad((plain * weights).sum(), tensors)
    for _ in range(2):  # a second backward over the same graph finds the same
        torch.testing.assert_close(torch.autograd.grad((ours * weights).sum(), tensors, retain_graph=True), wanted)
    single = AdditiveScores.apply(*(tensor.detach().float() for tensor in tensors))
    torch.testing.assert_close(single, plain.detach().float(), atol=1e-5, rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(n=st.integers(1, 14), width=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_masked_tours_are_permutations(n: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    tours = PointerNetwork(hidden=8).decode(torch.rand(3, n, 2), width=width, constraint="tour")
    real = tours.scores > -torch.inf
    assert real[:, 0].all()
    assert (tours.tokens[real][:, :n].sort(1).values == torch.arange(1, n + 1)).all()
    assert (tours.lengths[real] == n + 1).all()


def test_no_repeats_means_none(network: PointerNetwork) -> None:
    answers = network.decode(torch.rand(30, 8, 2, generator=stream(2)), constraint="no_repeats").tokens[:, 0]
    for row in answers.tolist():
        named = [index for index in row if index > STOP]
        assert len(named) == len(set(named))


def test_a_wide_beam_finds_the_likeliest_tour(network: PointerNetwork) -> None:
    points = planar.sample_points(2, 4, generator=stream(7))
    every = torch.tensor([[*p, STOP] for p in itertools.permutations(range(1, 5))])
    for row in range(2):
        with torch.no_grad():
            rows = network(points[row].expand(len(every), -1, -1), every, constraint="tour")
        totals = rows.gather(2, every[:, :, None])[..., 0].sum(1)
        found = network.decode(points[row : row + 1], width=24, constraint="tour")
        torch.testing.assert_close(found.scores[0], totals.sort(descending=True).values, atol=1e-5, rtol=1e-5)
        assert found.tokens[0, 0].tolist() == every[totals.argmax()].tolist()


def test_the_dictionary_has_no_class_beyond_its_end() -> None:
    torch.manual_seed(5)
    for attention in (True, False):
        network = FixedDictionary(6, attention=attention, hidden=16)
        rows = network(*hulls(2, 9))
        assert (rows[..., 7:] == -torch.inf).all()
        torch.testing.assert_close(rows.exp().sum(-1), torch.ones(rows.shape[:2]), atol=1e-5, rtol=0)
        assert network.output.out_features == 7
        few = network(*hulls(2, 4))
        assert few.shape[-1] == 5
    assert not any(name.startswith("attention") for name, _ in network.named_parameters())


def test_attention_blends_by_its_own_softmax() -> None:
    torch.manual_seed(6)
    network = FixedDictionary(5, attention=True, hidden=4)
    entries, decoded = torch.randn(1, 4, 4), torch.randn(1, 2, 4)
    blend = network.attention(entries, decoded).softmax(-1) @ entries
    wanted = network.output(torch.cat([decoded, blend], -1))[..., :4].log_softmax(-1)
    torch.testing.assert_close(network.point(entries, decoded, torch.zeros(1, 2, 4, dtype=torch.bool)), wanted)


def test_arms_have_comparable_sizes() -> None:
    sizes = {model: sum(p.numel() for p in ex.build(model, "hull", 96, 20).parameters()) for model in ("pointer", "attention", "plain")}
    assert abs(sizes["pointer"] / sizes["attention"] - 1) < 0.05
    # without attention there is nothing to score with, and no more than that is missing
    assert sizes["attention"] - sizes["plain"] == 2 * 96**2 + 96 + 96 * 21


# --- bad input ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "lengths", "message"),
    [
        (torch.rand(2, 5, 3), None, r"\(batch, n >= 1, 2\), got \(2, 5, 3\)"),
        (torch.rand(2, 0, 2), None, "n >= 1"),
        (torch.full((2, 5, 2), float("nan")), None, "instance 0 holds NaN"),
        (torch.rand(2, 5, 2), torch.tensor([5, 6]), r"2 numbers in 1..5, got \[5, 6\]"),
        (torch.rand(2, 5, 2), torch.tensor([0, 5]), "in 1..5"),
        (torch.rand(2, 5, 2), torch.tensor([5]), "2 numbers"),
    ],
)
def test_bad_inputs_are_refused(network: PointerNetwork, inputs: Tensor, lengths: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network.encode(inputs, lengths)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, 2, 3, 4], "answer 1 does not end with the stop symbol 0"),
        ([1, 2, 6, 0], "answer 1 points outside 1..n"),
        ([1, -1, 3, 0], "answer 1 points outside 1..n"),
        ([1, 2, 1, 0], "answer 1 names a point twice"),
        ([1, 2, 0, 3], "answer 1 goes on after the stop symbol"),
    ],
)
def test_bad_answers_are_refused_by_row(row: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_answers(torch.tensor([[1, 2, 3, 0], row]), torch.tensor([5, 5]))


def test_good_answers_pass_and_triangles_may_repeat() -> None:
    answers = torch.tensor([[1, 2, 3, STOP, PAD], [1, 2, 3, 4, STOP]])
    assert check_answers(answers, torch.tensor([3, 4])) is answers
    check_answers(torch.tensor([[1, 2, 3, 1, 2, 4, STOP]]), torch.tensor([4]), repeats=True)


def test_when_nothing_may_be_pointed_at_decoding_says_so(network: PointerNetwork) -> None:
    from mtlearn.pointing.decoding import beam_search

    state = network.initial_state(torch.rand(1, 3, 2))
    with pytest.raises(RuntimeError, match="every token of instance 0 is impossible"):
        beam_search(
            lambda tokens, state: ((rows := network.step(tokens, state))[0].fill_(-torch.inf), rows[1]),
            state,
            width=2,
            start=START,
            end=STOP,
            max_steps=3,
        )


# --- the experiment -------------------------------------------------------------------------------------------------------------------


def test_quick_scale_shows_the_leading_claim() -> None:
    quick = ex.EXPERIMENT.scales["quick"]
    runs = []
    for seed in range(quick.seeds):
        with seeded(seed):
            runs.append(ex.run(quick, seed, torch.device("cpu")))
    for run in runs:
        # the mechanism, seed by seed: the pointer network has left the plateau, the dictionary has not
        assert run["pointer_network"]["exact_inside"] > run["seq2seq_attention"]["exact_inside"] + 0.2
        assert run["seq2seq_attention"]["exact_beyond"] == 0
    for claim in ex.EXPERIMENT.claims:
        assert judge(claim, runs).verdict in ("holds", "fails", "undecided")


def test_training_repeats_to_the_bit() -> None:
    def trained() -> Tensor:
        with seeded(3):
            network = ex.build("pointer", "tour", 8, 0)
            generator = stream(3)
            draws = ex.batches("tour", batch=4, generator=generator, pool=20, sizes=range(4, 6))
            ex.train(network, "tour", range(4, 6), draws, generator, steps=6, learning_rate=1e-2)
            return torch.cat([p.flatten() for p in network.parameters()])

    assert torch.equal(trained(), trained())


@pytest.mark.parametrize("task", ["hull", "delaunay", "sort", "tour"])
def test_batches_have_right_answers(task) -> None:
    inputs, answers = ex.batches(task, batch=5, generator=stream(1), pool=10, sizes=range(6, 7))(6)
    assert inputs.shape == (5, 6, 1 if task == "sort" else 2)
    if task == "sort":
        assert torch.equal(inputs[..., 0].gather(1, answers[:, :-1] - 1), inputs[..., 0].sort(1).values)
    elif task == "tour":
        assert torch.equal(answers, planar.shortest_tour(inputs))
    check_answers(answers if task != "tour" else planar.close(answers), torch.full((5,), 6), repeats=task == "delaunay")


def test_shipped_models_do_what_their_files_say() -> None:
    points = planar.sample_points(300, 10, generator=stream(11))
    hull, tour, dictionary, triangles = (ex.shipped(checkpoint) for checkpoint in ex.CHECKPOINTS)
    exact, area, valid = ex.measure_hulls(hull, points)
    assert exact > 0.75
    assert area > 0.97
    assert valid > 0.95
    assert ex.optimality(tour, points, width=8) > 0.97
    assert ex.optimality(tour, points, width=8) > ex.share_of_optimum(points, planar.nearest_neighbour_tour(points))
    five = planar.sample_points(200, 5, generator=stream(16))
    assert ex.measure_triangles(five, ex.triangulate(triangles, five))["triangles_found"] > 0.6
    assert ex.measure_triangles(five, planar.delaunay(five)) == {"triangles_found": 1.0, "triangulation_exact": 1.0}
    assert ex.measure_hulls(dictionary, planar.sample_points(100, 20, generator=stream(12)))[0] < 0.05


def test_christofides_is_within_its_bound() -> None:
    points = planar.sample_points(5, 7, generator=stream(13))
    assert 2 / 3 <= ex.share_of_optimum(points, ex.christofides_tours(points)) <= 1 + 1e-9


# --- the explorer ---------------------------------------------------------------------------------------------------------------------


def test_every_control_moves_the_picture() -> None:
    shown = explorer()
    seen = [shown.png]
    for change in ({"step": 2}, {"n": 14}, {"answerer": "hull: fixed dictionary"}, {"answerer": "tour: pointer network"}):
        shown.set(**change)
        assert shown.png != seen[-1]
        seen.append(shown.png)
    for preset in ("first pointer", "whole hull", "beyond training: 30 points", "a dictionary of ten indices", "a tour of ten"):
        shown.preset(preset)
        assert shown.png != seen[-1]
        seen.append(shown.png)
    shown.preset("reset")
    assert shown.png == seen[0]


def test_points_follow_the_mouse_and_the_keyboard() -> None:
    shown = explorer()
    shown.set(n=5, step=MOST)
    for kind, x, y in (("press", 0.02, 0.5), ("drag", 0.01, 0.52), ("release", 0.01, 0.52)):
        before = shown.text
        shown.point(kind, x, y)
    assert shown.values["n"] == 6
    assert "6 points" in before
    picture = shown.png
    shown.point("key", 0, 0, key="ArrowRight")
    assert shown.png != picture
    shown.point("press", 0.03, 0.52, key="Shift")  # on the new point: it goes
    assert shown.values["n"] == 5
    shown.point("key", 0, 0, key="n")
    shown.point("key", 0, 0, key="Delete")
    assert shown.values["n"] == 4
    for _ in range(3):
        shown.point("key", 0, 0, key="n")
        shown.point("key", 0, 0, key="Backspace")
    assert shown.values["n"] == 3  # fewer make no polygon
    for x in torch.linspace(0.02, 0.98, 40).tolist():
        shown.point("press", x, x * x)
    assert shown.values["n"] == MOST


def test_points_on_a_line_are_told_not_crashed_on() -> None:
    shown = explorer()
    shown.set(n=3)
    for index, x in enumerate((0.2, 0.5, 0.8)):
        shown.point("key", 0, 0, key="n")
        for axis in (0, 1):
            place = float(PLACES[index][axis])
            assert 0 <= place <= 1
        shown.point("press", *map(float, PLACES[index]))
        shown.point("drag", x, x)
    assert "lie on one line" in shown.text


PLACES = planar.sample_points(1, MOST, generator=stream(0, "canvas"))[0] * 0.94 + 0.03


def test_the_trace_is_the_greedy_answer(network: PointerNetwork) -> None:
    points = planar.sample_points(1, 8, generator=stream(15))
    answer, rows = trace(network, points[0], tour=True)
    assert answer == network.decode(points, constraint="tour").tokens[0, 0].tolist()
    assert rows.shape == (len(answer), 9)
    torch.testing.assert_close(rows.sum(1), torch.ones(len(answer)), atol=1e-5, rtol=0)
