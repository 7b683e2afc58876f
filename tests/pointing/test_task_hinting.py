"""Task hinting: the transformer against PyTorch's attention, sets and order, the hand-set network, hints, probing, and all parts."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from torch.nn import functional as F

from mtlearn.datasets.sequences import Vocabulary, sample_lists, sort_examples
from mtlearn.lab.checkpoints import load
from mtlearn.lab.experiment import Claim
from mtlearn.lab.result import judge
from mtlearn.lab.seeds import seeded, stream
from mtlearn.pointing.task_hinting import experiment, explorer
from mtlearn.pointing.task_hinting.exercises import EXERCISES
from mtlearn.pointing.task_hinting.experiment import CHECKPOINTS, EXPERIMENT, Arm, HintingSettings, Recipe, build, hand_set, train
from mtlearn.pointing.task_hinting.method import (
    SMALLEST_TAU,
    LearnedLength,
    LogLength,
    Weighted,
    answer_accuracy,
    attention_by_value,
    copy_temperature,
    hand_set_sorter,
    linear_probe,
    min_temperature,
    multitask_loss,
    probe_accuracy,
    token_loss,
)
from mtlearn.pointing.transformer import Attention, CausalTransformer, tempered_attention

TINY = Recipe(values=6, longest=4, steps=4, batch=8, width=16, warmup=1)


def random_model(depth: int = 2, **options: object) -> CausalTransformer:
    """Weights of ordinary size, so that attention is far from uniform."""
    with seeded(3):
        model = CausalTransformer(14, 32, depth, 2, **options)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def some_tokens(batch: int = 3, length: int = 9) -> torch.Tensor:
    return torch.randint(14, (batch, length), generator=stream(0, "tokens"))


# attention and its temperature


def test_tau_of_one_is_ordinary_attention() -> None:
    query, key, value = torch.randn(3, 2, 4, 7, 8, generator=stream(0, "attention")).double()
    mixed, weights = tempered_attention(query, key, value, torch.ones(7))
    torch.testing.assert_close(mixed, F.scaled_dot_product_attention(query, key, value, is_causal=True))
    assert torch.equal(weights.triu(1), torch.zeros_like(weights))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 7, dtype=torch.float64))


def test_the_fused_forward_equals_the_written_out_one_with_any_scale() -> None:
    for scale in (None, lambda: LogLength(5), lambda: LearnedLength(8, 3)):
        model = random_model(scale=scale)
        with torch.no_grad():
            torch.testing.assert_close(model(some_tokens()), model.trace(some_tokens()).logits)


@given(st.floats(0.05, 20))
@settings(deadline=None, max_examples=20)
def test_one_tau_for_all_rows_is_the_same_as_scaled_queries(tau: float) -> None:
    query, key, value = torch.randn(3, 5, 4, generator=stream(1, "attention")).double()
    mixed, _ = tempered_attention(query, key, value, torch.tensor(tau))
    torch.testing.assert_close(mixed, F.scaled_dot_product_attention(query * tau, key, value, is_causal=True))


def test_attention_becomes_one_hot_on_the_largest_logit_as_tau_grows() -> None:
    query, key, value = torch.randn(3, 6, 4, generator=stream(2, "attention")).double()
    _, weights = tempered_attention(query, key, value, torch.tensor(1e6))
    future = torch.ones(6, 6, dtype=torch.bool).triu(1)
    largest = (query @ key.T).masked_fill(future, -torch.inf).argmax(-1)
    torch.testing.assert_close(weights, F.one_hot(largest, 6).double())


def test_gradients_pass_through_tempered_attention_and_its_tau() -> None:
    query, key, value = (torch.randn(2, 4, 3, dtype=torch.float64, generator=stream(k, "grad"), requires_grad=True) for k in range(3))
    tau = torch.rand(4, dtype=torch.float64, generator=stream(3, "grad")).add(0.5).requires_grad_()
    assert torch.autograd.gradcheck(tempered_attention, (query, key, value, tau))


def test_log_scaling_is_one_at_the_reference_and_leaves_that_row_and_row_one_of_one_layer_unchanged() -> None:
    tau = LogLength(6)(9)
    assert tau[5] == 1 and tau[0] == pytest.approx(SMALLEST_TAU) and bool((tau.diff() > 0).all())
    plain, scaled = random_model(depth=1), random_model(depth=1, scale=lambda: LogLength(6))
    with torch.no_grad():
        difference = (plain(some_tokens()) - scaled(some_tokens())).abs().amax((0, 2))
    assert difference[0] < 1e-5 and difference[5] < 1e-5
    assert bool((difference[[2, 3, 7, 8]] > 1e-3).all())


def test_log_scaling_with_a_floor_of_one_changes_nothing_up_to_the_reference() -> None:
    tau = LogLength(6, smallest=1.0)(12)
    assert torch.equal(tau[:6], torch.ones(6)) and tau[11] == pytest.approx(math.log(12) / math.log(6))
    model = random_model()
    copy = experiment.sharpened_at_test(model, replace(TINY, longest=2))  # its longest row has 6 keys
    with torch.no_grad():
        difference = (model(some_tokens()) - copy(some_tokens())).abs().amax((0, 2))
    assert bool((difference[:6] < 1e-6).all()) and bool((difference[6:] > 1e-4).all())
    assert all(block.attention.scale is None for block in model.blocks)  # the original is left alone


def test_learned_scale_starts_at_one_and_follows_a_line_in_log_length_beyond_the_trained_rows() -> None:
    scale = LearnedLength(16, 4)
    torch.testing.assert_close(scale(40), torch.ones(40))
    buckets = scale.bucket
    assert buckets[0] == 0 and bool((buckets.diff() >= 0).all()) and int(buckets.max()) + 1 == len(scale.log_tau)
    a, b = 0.4, 0.7
    rows = torch.arange(1, 17).double().log()
    centre = torch.stack([rows[buckets == k].mean() for k in range(len(scale.log_tau))])
    with torch.no_grad():
        scale.log_tau.copy_((a + b * centre).log())
    beyond = scale(64)[16:]
    torch.testing.assert_close(beyond, (a + b * torch.arange(17, 65).log()), rtol=1e-4, atol=1e-4)
    beyond.sum().backward()
    assert bool((scale.log_tau.grad != 0).any())


def test_learned_temperatures_move_in_training() -> None:
    model = train(replace(TINY, steps=8), Arm(scale="learned"), 0)
    assert all(bool((block.attention.scale.log_tau != 0).any()) for block in model.blocks)


# sets and order


def test_without_positions_one_layer_sees_the_prefix_as_a_set_and_two_layers_do_not() -> None:
    tokens = some_tokens(4, 8)
    order = torch.randperm(6, generator=stream(0, "order"))
    shuffled = torch.cat([tokens[:, order], tokens[:, 6:]], 1)
    with torch.no_grad():
        one, two = random_model(depth=1), random_model(depth=2)
        torch.testing.assert_close(one(tokens)[:, 6:], one(shuffled)[:, 6:], rtol=0, atol=1e-5)
        assert (two(tokens)[:, 6:] - two(shuffled)[:, 6:]).abs().max() > 0.05


def test_a_token_never_sees_what_comes_after_it() -> None:
    tokens, model = some_tokens(), random_model()
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 14
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[:, :5], model(changed)[:, :5])


# the hand-set network


@pytest.mark.parametrize("n", [1, 2, 10, 100])
def test_the_hand_set_network_sorts_every_list_of_distinct_integers(n: int) -> None:
    values = max(n, 12)
    lists = sample_lists(20, n, values, distinct=True, generator=stream(n, "hand-set"))
    examples = sort_examples(lists, Vocabulary(values))
    exact, tokens = answer_accuracy(hand_set(values), examples.tokens, examples.mask)
    assert bool(exact.all()) and bool((tokens == 1).all())


def test_the_hand_set_network_sorts_hundreds_of_integers_with_gaps_between_them() -> None:
    lists = sample_lists(1, 300, 400, distinct=True, generator=stream(0, "hundreds"))
    examples = sort_examples(lists, Vocabulary(400))
    assert bool(answer_accuracy(hand_set(400), examples.tokens, examples.mask)[0].all())


def test_the_hand_set_network_writes_a_sorted_list_by_itself_but_each_value_once() -> None:
    vocabulary = Vocabulary(12)
    model = hand_set(12)
    prompt = sort_examples(torch.tensor([[7, 0, 11, 4]]), vocabulary).tokens[:, :6]
    assert model.write(prompt, 10, end=vocabulary.end).tolist() == [[0, 4, 7, 11, vocabulary.end]]
    repeated = sort_examples(torch.tensor([[7, 4, 7, 4]]), vocabulary).tokens[:, :6]
    assert model.write(repeated, 10, end=vocabulary.end).tolist() == [[4, 7, vocabulary.end]]


@pytest.mark.parametrize("n", [10, 100])
@pytest.mark.parametrize("epsilon", [0.2, 0.01])
def test_linear_logits_need_the_same_temperature_at_every_length(n: int, epsilon: float) -> None:
    """Layer 1 puts at least 1 - epsilon on the successor with beta = log(1/epsilon), whatever n."""
    vocabulary, beta = Vocabulary(n), min_temperature(epsilon)
    model = hand_set_sorter(
        n, tokens=vocabulary.size, start=vocabulary.task("sort"), sep=vocabulary.sep, end=vocabulary.end, beta=beta
    )  # fmt: skip
    lists = sample_lists(1, n, n, distinct=True, generator=stream(n, "mass"))  # no gaps between values: the worst case
    trace = model.trace(sort_examples(lists, vocabulary).tokens)
    rows = trace.attention[0][0, 0, n + 1 : 2 * n + 1]
    mass = attention_by_value(rows, lists[0], n).diagonal()
    assert float(mass.min()) >= 1 - epsilon - 1e-5
    assert float(mass[0]) == pytest.approx(1 - epsilon, abs=0.01 + math.exp(-beta * n))  # and not much more


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_the_two_temperatures_are_what_a_softmax_needs(n: int) -> None:
    for epsilon in (0.3, 0.01):
        falling = -min_temperature(epsilon) * torch.arange(n).double()
        assert float(falling.softmax(0)[0]) >= 1 - epsilon - 1e-12  # equal in the limit of long lists: rounding decides the last digit
        for gap in (0.5, 2.0):
            gamma = copy_temperature(n, epsilon, gap)
            level = torch.full((n,), -gamma * gap, dtype=torch.float64).index_fill(0, torch.tensor(0), 0.0)
            assert float(level.softmax(0)[0]) == pytest.approx(1 - epsilon)


def test_the_copy_melts_with_length_at_a_fixed_temperature_and_not_with_log_scaling() -> None:
    def copied(n: int, scaled: bool) -> float:
        vocabulary = Vocabulary(n)
        model = hand_set_sorter(
            n, tokens=vocabulary.size, start=vocabulary.task("sort"), sep=vocabulary.sep, end=vocabulary.end, gamma=4.0,
            scale=LogLength(10) if scaled else None,
        )  # fmt: skip
        lists = sample_lists(1, n, n, distinct=True, generator=stream(n, "mass"))
        trace = model.trace(sort_examples(lists, vocabulary).tokens)
        return float(attention_by_value(trace.attention[1][0, 0, n + 1], lists[0], n)[0])

    assert copied(200, False) < 0.5 * copied(10, False)
    assert copied(200, True) > copied(10, True)


# learning


def test_the_loss_is_the_mean_over_answer_tokens_and_the_shares_weigh_the_tasks() -> None:
    model = random_model()
    tokens = some_tokens()
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, 5:7] = True
    mask[0, 7] = True
    with torch.no_grad():
        log_probs = model(tokens).log_softmax(-1)
        by_hand = [-float(log_probs[row, at - 1, tokens[row, at]]) for row, at in mask.nonzero().tolist()]
        loss = token_loss(model(tokens), tokens, mask)
        assert float(loss) == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
        other = mask.roll(-2, 1)
        mixed = multitask_loss(model, [Weighted(tokens, mask, 0.75), Weighted(tokens, other, 0.25)])
        assert float(mixed) == pytest.approx(0.75 * float(loss) + 0.25 * float(token_loss(model(tokens), tokens, other)), rel=1e-5)


@pytest.mark.parametrize("hint", ["successor", "count"])
def test_a_hint_of_share_zero_gives_the_main_only_run_to_the_bit(hint: str) -> None:
    alone = train(TINY, Arm(), 5)
    weightless = train(TINY, Arm(beside=hint, share=0.0), 5)
    weighted = train(TINY, Arm(beside=hint, share=0.5), 5)
    same = [torch.equal(a, b) for a, b in zip(alone.parameters(), weightless.parameters(), strict=True)]
    assert all(same)
    assert not all(torch.equal(a, b) for a, b in zip(alone.parameters(), weighted.parameters(), strict=True))


def test_every_scale_starts_from_the_same_weights() -> None:
    plain, log, learned = (build(TINY, 1, scale).state_dict() for scale in ("none", "log", "learned"))
    assert all(torch.equal(plain[name], log[name]) and torch.equal(plain[name], learned[name]) for name in plain)


def test_a_short_training_learns_to_sort_short_lists() -> None:
    recipe = Recipe(values=6, distinct=True, longest=3, steps=100, batch=16, width=32, learning_rate=1e-2, warmup=5)
    with seeded(0):
        before = experiment.accuracies(build(recipe, 0), recipe, [1.0], 100)
        after = experiment.accuracies(train(recipe, Arm(), 0), recipe, [1.0], 100)
    assert before["exact at 1x"] < 0.1 and after["exact at 1x"] > 0.9
    assert after["tokens at 1x"] > before["tokens at 1x"]


def test_exact_is_at_most_the_smallest_token_accuracy_and_greedy_writing_agrees() -> None:
    model = load(CHECKPOINTS[0])["main only"]
    vocabulary = Vocabulary(10)
    lists = sample_lists(60, 10, 10, generator=stream(4, "greedy"))
    examples = sort_examples(lists, vocabulary)
    exact, tokens = answer_accuracy(model, examples.tokens, examples.mask)
    assert 0 < float(exact.double().mean()) < 1, "the case must have both kinds"
    assert float(exact.double().mean()) <= float(tokens.mean(0).min()) + 1e-6
    written = model.write(examples.tokens[:, :12], 11)
    assert torch.equal((written == examples.tokens[:, 12:]).all(1), exact)


def test_accuracy_counts_answers_of_different_lengths() -> None:
    tokens = torch.tensor([[0, 1, 2, 3], [0, 1, 9, 9]])
    mask = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0]]).bool()
    exact, right = answer_accuracy(lambda t: F.one_hot(t + 1, 12).float(), tokens, mask)
    assert exact.tolist() == [True, True]
    assert right[0].tolist() == [1, 1, 1] and right[1, 0] == 1 and bool(right[1, 1:].isnan().all())
    exact, right = answer_accuracy(lambda t: F.one_hot(t * 0 + 1, 12).float(), tokens, mask)
    assert exact.tolist() == [False, True] and right[0].tolist() == [1, 0, 0]


def test_greedy_writing_stops_at_the_end_and_pads_with_it() -> None:
    model = hand_set(12)
    vocabulary = Vocabulary(12)
    prompts = sort_examples(torch.tensor([[3, 1], [11, 2]]), vocabulary).tokens[:, :4]
    assert model.write(prompts, 3).shape == (2, 3)
    assert model.write(prompts, 9, end=vocabulary.end).tolist() == [[1, 3, vocabulary.end], [2, 11, vocabulary.end]]
    mixed = torch.cat([prompts[:1], prompts[:1]])
    mixed[1, 2] = mixed[1, 1]  # a list with one number twice: it ends earlier
    assert model.write(mixed, 9, end=vocabulary.end, sharpness=2.0).tolist() == [[1, 3, vocabulary.end], [3, vocabulary.end, vocabulary.end]]


# looking inside


def test_attention_by_value_gathers_equal_values_and_leaves_marks_out() -> None:
    weights = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15])
    by_value = attention_by_value(weights, torch.tensor([2, 0, 2]), 4)
    torch.testing.assert_close(by_value, torch.tensor([0.3, 0.0, 0.45, 0.0]))


def test_a_probe_reads_what_is_there_and_not_what_is_not() -> None:
    draws = stream(0, "probe")
    features, labels = torch.randn(400, 6, generator=draws), torch.randint(3, (400,), generator=draws)
    features[:, :3] += 4 * F.one_hot(labels, 3)
    probe = linear_probe(features[:200], labels[:200])
    assert probe_accuracy(probe, features[200:], labels[200:]) > 0.95
    blind = linear_probe(features[:200, 3:], labels[:200])
    assert probe_accuracy(blind, features[200:, 3:], labels[200:]) < 0.5


def test_the_successor_can_be_read_off_layer_one_of_the_shipped_model_and_not_off_the_embedding() -> None:
    found = experiment.probe_streams(load(CHECKPOINTS[0])["distinct, main only"], experiment.Sorters().distinct, 8, 200)
    assert len(found) == 3
    assert found[0]["identity"] > 0.95
    assert found[1]["successor"] > found[0]["successor"] + 0.1


def test_the_hand_set_network_holds_identity_and_successor_after_layer_one() -> None:
    found = experiment.probe_streams(hand_set(12), Recipe(values=12, distinct=True), 6, 200)
    assert found[1] == {"identity": 1.0, "successor": 1.0}
    assert found[0]["identity"] == 1.0 and found[0]["successor"] < 0.7


# bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LogLength(1), "n_0 must be at least 2, as log n_0 divides; got 1"),
        (lambda: LogLength(4, smallest=0.0), "smallest tau must be positive, got 0.0"),
        (lambda: LearnedLength(8, 1), "buckets at least 2, got longest=8, buckets=1"),
        (lambda: LearnedLength(5, 3), "longest must be at least"),
        (lambda: multitask_loss(random_model(), [Weighted(some_tokens(), some_tokens() > 3, 0.4)]), r"sum to 1, got \[0.4\]"),
        (lambda: multitask_loss(random_model(), []), "sum to 1"),
        (lambda: min_temperature(0.0), "epsilon must lie between 0 and 1"),
        (lambda: experiment.probe_streams(hand_set(5), TINY, 1), "at least 2 numbers"),
        (lambda: copy_temperature(1, 0.1), "n must be at least 2"),
        (lambda: copy_temperature(5, 0.1, gap=0.0), "gap positive"),
        (lambda: hand_set_sorter(5, tokens=9, start=5, sep=6, end=7, beta=0.0), "beta and gamma must be positive"),
        (lambda: hand_set_sorter(5, tokens=9, start=4, sep=6, end=7), r"three tokens in 5\.\.8, got \(4, 6, 7\)"),
        (lambda: Attention(5, 2), "multiple of heads"),
        (lambda: CausalTransformer(0), "tokens and depth must be at least 1"),
        (lambda: random_model()(torch.tensor([[14]])), r"tokens must lie in 0\.\.13, got 14 to 14"),
        (lambda: random_model()(torch.tensor([1])), r"shape \(batch, length\), got \(1,\)"),
        (lambda: explorer.read_list("3 x", "main only"), "whole numbers, separated by blanks"),
        (lambda: explorer.read_list("", "main only"), "1 to 40 numbers, not 0"),
        (lambda: explorer.read_list("3 12", "main only"), "the numbers 0 to 9"),
        (lambda: explorer.read_list("3 3", "hand-set"), "without repeated numbers"),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# the experiment, the shipped models, the exercises, the explorer


def test_the_quick_experiment_runs_and_judges_every_claim() -> None:
    arms = run_quick(EXPERIMENT)
    assert arms["hand-set"]["hand-set exact at 1x"] == 1.0
    hand_set_claim = next(claim for claim in EXPERIMENT.claims if claim.better == "hand-set")
    assert judge(hand_set_claim, [arms, arms]).verdict == "holds"


def test_a_run_repeats_to_the_bit() -> None:
    first = experiment.accuracies(train(TINY, Arm(beside="successor"), 2), TINY, [1.0, 2.0], 50)
    again = experiment.accuracies(train(TINY, Arm(beside="successor"), 2), TINY, [1.0, 2.0], 50)
    assert first == again


def test_a_test_length_inside_the_training_range_is_warned_of() -> None:
    tiny = HintingSettings(
        1, repeated=replace(TINY, steps=1), distinct=replace(TINY, steps=1, values=8, distinct=True),
        increment=replace(TINY, values=10, steps=1), stretches=(1.0, 0.5), distinct_stretches=(1.0, 2.0), rows=4, hand_set_length=10,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="inside the training range"):
        EXPERIMENT.run(tiny, 0, torch.device("cpu"))


def test_claims_are_about_arms_and_metrics_that_every_scale_has() -> None:
    for scale in EXPERIMENT.scales.values():
        names = {f"exact at {s:g}x" for s in scale.stretches} | {f"distinct exact at {s:g}x" for s in scale.distinct_stretches}
        names |= {f"increment exact at {s:g}x" for s in scale.stretches} | {"hand-set exact at 1x", "exact lost"}
        assert {claim.metric for claim in EXPERIMENT.claims} <= names
    assert isinstance(EXPERIMENT.claims[0], Claim)


def test_the_shipped_models_sort_what_their_provenance_says() -> None:
    models = load(CHECKPOINTS[0])
    assert list(models) == list(experiment.SHIPPED)
    tried = experiment.accuracies(models["distinct, main only"], experiment.Sorters().distinct, [1.0], 50)
    assert tried["exact at 1x"] > 0.9


def test_shipped_models_are_built_and_trained_by_their_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    small = experiment.Sorters(repeated=replace(TINY, values=10), distinct=replace(TINY, values=50, distinct=True))
    trained = CHECKPOINTS[0].train(small, None)
    CHECKPOINTS[0].build(small).load_state_dict(trained.state_dict())
    monkeypatch.setattr(experiment, "SHARPNESS", (1.0,))
    measured = CHECKPOINTS[0].measure(trained.eval())
    assert set(measured) >= {"main only, tau 1: exact at 1x", "distinct, + successor, tau 1: tokens at 4x"}
    assert all(0 <= value <= 1 for value in measured.values())


def test_exercises_hint_at_each_way_to_be_wrong() -> None:
    temperatures, hint, budget = EXERCISES
    linear, gap = temperatures.solve()
    assert "less would do. Sum" in temperatures.check((lambda n, e: 3 * linear(n, e), gap)).text
    assert "less would do: solve" in temperatures.check((linear, lambda n, e: 3 * gap(n, e))).text
    assert "one answer for each digit" in hint.check(lambda digits: [1]).text
    assert "keys" in budget.check({"equal": 3}).text
    assert "equal sequences" in budget.check({"equal steps": 44800, "equal sequences": 3}).text
    assert "equal steps" in budget.check({"equal steps": 3, "equal sequences": 89600}).text


@pytest.fixture(scope="module")
def shown():
    return explorer.explorer()


def test_every_control_changes_the_picture(shown) -> None:
    shown.preset("reset")
    moves = {"share": 0.25, "n": 12, "tau": 2.0, "written": 0.2, "layer": "2", "measure": "tokens", "numbers": "5 3 9", "model": "hand-set"}
    assert set(moves) == set(shown.controls)
    for name, value in moves.items():
        before = shown.png
        shown.set(**{name: value})
        assert shown.png != before, name


def test_every_preset_shows_another_picture_and_says_what_it_shows(shown) -> None:
    pictures, texts = set(), set()
    for label in (
        "as long as in training",
        "four times as long",
        "... and sharpened",
        "... too sharp",
        "trained with hints",
        "... with few hints",
        "repeated values",
        "set by hand",
    ):
        shown.preset(label)
        pictures.add(shown.png)
        texts.add(shown.text)
    assert len(pictures) == len(texts) == 8
    assert "0 of 41 tokens wrong" in shown.text


def test_sharpening_mends_long_lists_of_the_shipped_model(shown) -> None:
    def accuracy(label: str) -> float:
        shown.preset(label)
        return float(shown.text.split(" at n = 32")[0].split()[-1])

    assert accuracy("... and sharpened") > accuracy("four times as long") + 0.1


def test_numbers_are_clicked_in_and_out_and_the_arrows_move_through_the_answer(shown) -> None:
    shown.preset("reset")
    shown.set(numbers="5 3 9")
    shown.point("press", 20.2, 0.5, axes=1)
    assert shown.values["numbers"] == "5 3 9 20"
    shown.point("press", 3.0, 0.5, axes=1)
    assert shown.values["numbers"] == "5 9 20"
    shown.point("press", 80.0, 0.5, axes=1)
    assert shown.values["numbers"] == "5 9 20"
    shown.set(written=0.0)
    shown.point("key", 0, 0, key="ArrowRight")
    assert shown.values["written"] == pytest.approx(1 / 3)
    shown.point("key", 0, 0, key="ArrowLeft")
    shown.point("key", 0, 0, key="ArrowLeft")
    assert shown.values["written"] == 0.0
    shown.set(model="main only", numbers="5 5 1")
    shown.point("press", 5.0, 0.5, axes=1)
    assert shown.values["numbers"] == "5 5 1 5"
    shown.point("press", 5.0, 0.5, axes=1, key="Shift")
    assert shown.values["numbers"] == "5 1 5"


def test_a_list_that_cannot_be_sorted_is_refused_in_the_picture_and_the_last_one_stays(shown) -> None:
    shown.preset("reset")
    shown.set(numbers="5 3 9")
    shown.set(numbers="5 3 x")
    assert shown.text.startswith("type whole numbers") and "3 numbers" in shown.text
    shown.set(numbers="5 45 9")
    shown.set(model="main only")  # 45 is no value there: a drawn list of the same length takes its place
    assert shown.text.startswith("this model knows the numbers 0 to 9") and "3 numbers" in shown.text


def test_the_explorer_draws_without_a_recorded_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(paper: str) -> None:
        raise LookupError(paper)

    explorer._recorded_curve.cache_clear()
    monkeypatch.setattr(explorer, "recorded", missing)
    assert "this model" in explorer.explorer(n=8).text
    explorer._recorded_curve.cache_clear()
