import itertools
import math
from collections import Counter
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mtlearn.lab.experiment import SCALES
from mtlearn.lab.result import check_arms, judge
from mtlearn.pointing.decoding import beam_search
from mtlearn.pointing.diverse_beam_search import experiment, explorer
from mtlearn.pointing.diverse_beam_search.baselines import anti_lm_search, loop_search, sample_lists, sibling_rank_search
from mtlearn.pointing.diverse_beam_search.describer import END, START, UNKNOWN, Describer, Vocabulary, sentence_loss
from mtlearn.pointing.diverse_beam_search.exercises import EXERCISES
from mtlearn.pointing.diverse_beam_search.method import cumulative, distinct_n, diverse_beam_search, embedding, hamming, ngram, oracle_at
from mtlearn.pointing.diverse_beam_search.trees import random_trees, tree_state, tree_step

WORDS, STEPS = 3, 4
LIMITS = {"start": -1, "end": WORDS, "max_steps": STEPS}
seeds = st.integers(0, 10_000)
shapes = st.sampled_from([(1, 1), (3, 3), (4, 2), (6, 2), (6, 3), (4, 1)])  # width, groups
strengths = st.sampled_from([0.0, 0.3, 0.5, 2.0, 20.0])


def trees_of(seed, count=6, words=WORDS, steps=STEPS, ends=True, alpha=1.0):
    return random_trees(count, words=words, steps=steps, ends=ends, alpha=alpha, generator=torch.Generator().manual_seed(seed))


def search(trees, width, groups, strength, **options):
    return diverse_beam_search(partial(tree_step, trees), tree_state(trees), width=width, groups=groups, strength=strength, **LIMITS, **options)


def members(found, instance, group):
    """[(tokens, score, augmented)] of one group."""
    parts = (found.tokens, found.lengths, found.scores, found.augmented)
    rows = zip(*(part[instance, group].tolist() for part in parts), strict=True)
    return [(tuple(tokens[:length]), score, augmented) for tokens, length, score, augmented in rows if score > -math.inf]


def same(got, wanted, tolerance=1e-9):
    assert [member[0] for member in got] == [member[0] for member in wanted]
    for one, other in zip(got, wanted, strict=True):
        assert one[1:] == pytest.approx(other[1:], abs=tolerance)


def vectors_of(seed=0):
    return torch.randn(WORDS + 1, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# What a candidate costs by the words of the paper: one function of two sequences of the same length for each penalty.
def hamming_by_hand(candidate, other):
    return float(candidate[-1] == other[-1])


def cumulative_by_hand(candidate, other):
    return math.exp(-sum(a != b for a, b in zip(candidate, other, strict=True)))


def ngram_by_hand(candidate, other):
    pairs = list(itertools.pairwise((-1, *other)))
    return float(pairs.count((-1, *candidate)[-2:]))


def embedding_by_hand(candidate, other):
    return float(F.cosine_similarity(vectors_of()[candidate[-1]], vectors_of()[other[-1]], dim=0))


PENALTIES = {
    "hamming": (hamming, hamming_by_hand),
    "cumulative": (cumulative, cumulative_by_hand),
    "ngram": (ngram, ngram_by_hand),
    "embedding": (partial(embedding, vectors=vectors_of()), embedding_by_hand),
}


def exhaustive(tree, width, groups, strength, cost):
    """The objective itself: at each step each group takes, of all sets of B' candidates, the one with the largest augmented sum."""
    beams = width // groups
    alive, done = [[((), 0.0, 0.0)]] * groups, [[] for _ in range(groups)]
    for at in range(STEPS):
        earlier = []
        for g in range(groups):
            candidates = []
            for tokens, score, augmented in alive[g]:
                prefix = 0
                for token in tokens:
                    prefix = WORDS * prefix + 1 + token
                for token, theta in enumerate(tree[prefix].tolist()):
                    grown = (*tokens, token)
                    penalty = strength * sum(cost(grown, other) for other in earlier)
                    candidates.append((grown, score + theta, augmented + theta - penalty))
            sets = itertools.combinations(candidates, min(beams, len(candidates)))
            chosen = max(sets, key=lambda members: sum(member[2] for member in members))
            earlier += [tokens for tokens, *_ in chosen]
            done[g] += [member for member in chosen if member[0][-1] == WORDS or at + 1 == STEPS]
            alive[g] = [member for member in chosen if member[0][-1] != WORDS]
    return [sorted(group, key=lambda member: -member[2])[:beams] for group in done]


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize(("width", "groups"), [(3, 3), (4, 2), (6, 2), (2, 1)])
def test_every_group_maximises_the_objective_over_all_sets_of_candidates(name, width, groups):
    penalty, by_hand = PENALTIES[name]
    trees = trees_of(7)
    for strength in (0.5, 3.0):
        found = search(trees, width, groups, strength, diversity=penalty)
        for instance, tree in enumerate(trees):
            for group, wanted in enumerate(exhaustive(tree, width, groups, strength, by_hand)):
                same(members(found, instance, group), wanted, 1e-6)


@given(seed=seeds, shape=shapes, strength=strengths)
@settings(max_examples=25, deadline=None)
def test_the_batched_search_equals_one_hypothesis_at_a_time(seed, shape, strength):
    trees = trees_of(seed, count=3)
    width, groups = shape
    found = search(trees, width, groups, strength)
    wanted = loop_search(partial(tree_step, trees), tree_state(trees), width=width, groups=groups, strength=strength, **LIMITS)
    for instance, group in itertools.product(range(3), range(groups)):
        same(members(found, instance, group), wanted[instance][group])


@given(seed=seeds, width=st.integers(1, 4), strength=strengths)
@settings(max_examples=20, deadline=None)
def test_one_group_is_beam_search(seed, width, strength):
    trees = trees_of(seed)
    plain = beam_search(partial(tree_step, trees), tree_state(trees), width=width, **LIMITS)
    found = search(trees, width, 1, strength).ranked()
    assert found.tokens.equal(plain.tokens) and found.lengths.equal(plain.lengths)
    assert torch.allclose(found.scores, plain.scores, atol=1e-6)


@given(seed=seeds, groups=st.integers(1, 4), beams=st.integers(1, 3), strength=strengths)
@settings(max_examples=20, deadline=None)
def test_the_first_group_and_all_groups_without_a_penalty_are_beam_search(seed, groups, beams, strength):
    trees = trees_of(seed)
    plain = beam_search(partial(tree_step, trees), tree_state(trees), width=beams, **LIMITS)
    free, paying = search(trees, groups * beams, groups, 0.0), search(trees, groups * beams, groups, strength)
    for group in range(groups):
        assert torch.allclose(free.scores[:, group], plain.scores, atol=1e-6)
        steps = plain.tokens.shape[2]
        assert free.tokens[:, group, :, :steps].equal(plain.tokens)
    assert torch.allclose(paying.scores[:, 0], plain.scores, atol=1e-6)
    assert paying.tokens[:, 0, :, : plain.tokens.shape[2]].equal(plain.tokens)


@pytest.mark.parametrize("name", PENALTIES)
def test_more_groups_leave_the_earlier_ones_alone(name):
    trees, penalty = trees_of(2, count=20), PENALTIES[name][0]
    wide = search(trees, 8, 4, 0.7, diversity=penalty)
    for groups in (1, 2, 3):
        fewer = search(trees, 2 * groups, groups, 0.7, diversity=penalty)
        assert torch.equal(fewer.scores, wide.scores[:, :groups]) and torch.equal(fewer.augmented, wide.augmented[:, :groups])
        steps = fewer.tokens.shape[-1]
        assert fewer.tokens.equal(wide.tokens[:, :groups, :, :steps])


def test_a_large_strength_gives_the_likeliest_first_words_in_order():
    trees = trees_of(4, count=50, words=5, steps=2, ends=False)
    found = diverse_beam_search(partial(tree_step, trees), tree_state(trees), width=5, groups=5, strength=1e4, start=-1, end=5, max_steps=2)
    assert found.tokens[:, :, 0, 0].equal(trees[:, 0, :5].argsort(1, descending=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_score_identity_on_three_thousand_trees(dtype):
    exact = trees_of(11, count=3000, words=4, steps=5, ends=False)
    trees, tolerance = exact.to(dtype), 1e-9 if dtype == torch.float64 else 1e-4
    limits, strength, choices = {"start": -1, "end": 4, "max_steps": 5}, 0.5, []
    found = diverse_beam_search(
        partial(tree_step, trees), tree_state(trees), width=4, groups=2, strength=strength, watch=choices.append, **limits
    )  # fmt: skip
    assert found.scores.dtype == dtype
    # the raw score again by teacher forcing, in float64
    prefix, total = torch.zeros(3000, 2, 2, dtype=torch.int64), torch.zeros(3000, 2, 2, dtype=torch.float64)
    for at in range(5):
        total += exact[torch.arange(3000)[:, None, None], prefix, found.tokens[..., at]]
        prefix = 4 * prefix + 1 + found.tokens[..., at]
    assert torch.allclose(found.scores.double(), total, atol=tolerance)
    # collisions counted along the paths that the choices tell of
    collisions = torch.zeros(2, 3000, 2)
    for at in range(5):
        first, second = choices[2 * at], choices[2 * at + 1]
        assert (first.step, first.group, second.step, second.group) == (at, 0, at, 1)
        met = (second.tokens[:, :, None] == first.tokens[:, None]).sum(-1)
        collisions = torch.stack([collisions[0].gather(1, first.parents), collisions[1].gather(1, second.parents) + met])
        for g, choice in enumerate((first, second)):
            assert torch.allclose(choice.scores, choice.augmented + strength * collisions[g], atol=tolerance)
    assert collisions[0].sum() == 0 < collisions[1].sum()
    assert torch.allclose(found.scores[:, 1], found.augmented[:, 1] + strength * collisions[1], atol=tolerance)


def test_the_list_is_never_below_the_groups_width_and_often_below_its_own():
    for alpha in (1.0, 0.3):
        trees = trees_of(12, count=1500, words=4, steps=5, ends=False, alpha=alpha)
        limits = {"start": -1, "end": 4, "max_steps": 5}
        beams = {width: beam_search(partial(tree_step, trees), tree_state(trees), width=width, **limits).scores[:, 0] for width in (1, 2, 4)}
        for groups in (2, 4):
            found = diverse_beam_search(partial(tree_step, trees), tree_state(trees), width=4, groups=groups, strength=0.5, **limits)
            top = found.ranked().scores[:, 0]
            assert (top >= beams[4 // groups] - 1e-12).all()
            assert (top < beams[4] - 1e-9).sum() > (top > beams[4] + 1e-9).sum()
    four = [len({tuple(member) for member in one}) for one in found.ranked().tokens.tolist()]
    assert min(four) < 4  # groups may coincide


def test_permuting_the_words_permutes_the_lists():
    trees = trees_of(13, count=30, steps=3, ends=False)
    limits = {"start": -1, "end": WORDS, "max_steps": 3}
    order = torch.tensor([2, 0, 1])  # new word to old
    renamed = torch.empty_like(trees)
    for length in range(3):
        for new in itertools.product(range(3), repeat=length):
            old = [int(order[word]) for word in new]
            at, to = 0, 0
            for a, b in zip(old, new, strict=True):
                at, to = 3 * at + 1 + a, 3 * to + 1 + b
            renamed[:, to] = torch.cat([trees[:, at, :3][:, order], trees[:, at, 3:]], 1)
    for name in ("hamming", "cumulative", "ngram"):
        plain = diverse_beam_search(partial(tree_step, trees), tree_state(trees), width=4, groups=2, strength=0.5, diversity=name, **limits)
        other = diverse_beam_search(partial(tree_step, renamed), tree_state(renamed), width=4, groups=2, strength=0.5, diversity=name, **limits)
        assert plain.tokens.equal(order[other.tokens]) and torch.allclose(plain.scores, other.scores)


def test_ties_go_to_the_lower_word():
    flat = torch.full((1, 5), 0.2).log()
    limits = {"start": 0, "end": 4, "max_steps": 1}
    found = diverse_beam_search(lambda t, state: (flat.expand(len(t), -1), state), {"row": torch.zeros(1)}, width=4, groups=2, strength=1.0, **limits)
    assert found.tokens[0, :, :, 0].tolist() == [[0, 1], [2, 3]]


def test_a_dead_beam_costs_nobody_anything():
    # group 1 ends at once; group 2, driven off the end token, goes on with word 0
    rows = torch.tensor([[0.3, 0.1, 0.6], [0.9, 0.05, 0.05]], dtype=torch.float64).log()

    def step(tokens, state):
        return rows[(state["at"] > 0).long()], {"at": state["at"] + 1}

    choices = []
    found = diverse_beam_search(
        step, {"at": torch.zeros(1, dtype=torch.int64)}, width=2, groups=2, strength=2.0, start=0, end=2, max_steps=4, watch=choices.append
    )  # fmt: skip
    assert members(found, 0, 0) == [((2,), pytest.approx(math.log(0.6)), pytest.approx(math.log(0.6)))]
    assert members(found, 0, 1)[0][0] == (0, 0, 0, 0)
    assert [float(choice.penalty.sum()) for choice in choices if choice.group == 1] == [2.0, 0.0, 0.0, 0.0]
    raw, augmented = members(found, 0, 1)[0][1:]
    assert raw == augmented


def test_penalties_by_hand():
    own = torch.tensor([[[0, 1], [2, 2]]])  # one instance, two beams, two steps so far
    earlier = torch.tensor([[[[0, 1, 2], [0, 2, 2]]]])  # one group of two beams, three steps
    alive = torch.tensor([[[True, True]]])
    assert hamming(own, earlier, alive, 4)[0].tolist() == [[0, 0, 2, 0]]
    assert hamming(own, earlier, torch.tensor([[[True, False]]]), 4)[0].tolist() == [[0, 0, 1, 0]]
    e = math.exp
    # beam (0, 1) differs from (0, 1, .) nowhere, from (0, 2, .) once; beam (2, 2) twice and once
    wanted = [[e(-1) + e(-2), e(-1) + e(-2), 1 + e(-1), e(-1) + e(-2)], [e(-3) + e(-2), e(-3) + e(-2), e(-2) + e(-1), e(-3) + e(-2)]]
    assert torch.allclose(cumulative(own, earlier, alive, 4)[0], torch.tensor(wanted))
    # pairs in the earlier beams: -0 01 12 and -0 02 22; own beams end with 1 and 2
    assert ngram(own, earlier, alive, 4)[0].tolist() == [[0, 0, 1, 0], [0, 0, 1, 0]]
    assert ngram(own, earlier, alive, 4, n=3)[0].tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]
    assert ngram(own, earlier, alive, 4, n=1)[0].tolist() == [[2, 1, 3, 0], [2, 1, 3, 0]]
    assert ngram(own[:, :, :0], earlier[..., :1], alive, 4)[0].tolist() == [[2, 0, 0, 0], [2, 0, 0, 0]]
    assert torch.allclose(embedding(own, earlier, alive, 4, vectors=torch.eye(4))[0], torch.tensor([[0.0, 0, 2, 0]]))
    corner = torch.tensor([[1.0, 0], [0, 1], [2, 2], [-1, 0]])
    assert torch.allclose(embedding(own, earlier, alive, 4, vectors=corner)[0], torch.tensor([[2**0.5, 2**0.5, 2, -(2**0.5)]]))


def test_orthogonal_embeddings_are_the_hamming_penalty_and_a_cold_cumulative_one_forbids_copies_only():
    trees = trees_of(21, count=30)
    plain = search(trees, 6, 3, 0.5)
    same_as = search(trees, 6, 3, 0.5, diversity=partial(embedding, vectors=torch.eye(WORDS + 1, dtype=torch.float64)))
    assert plain.tokens.equal(same_as.tokens) and torch.allclose(plain.augmented, same_as.augmented)
    cold = search(trees, 3, 3, 1e3, diversity=partial(cumulative, temperature=0.02))
    assert all(len({member[0] for group in range(3) for member in members(cold, instance, group)}) == 3 for instance in range(30))


def hugging_face():
    settings_ = transformers.GPT2Config(
        vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None, initializer_range=0.3
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(settings_).eval()


def gpt_step(model):
    """A language model that reads the whole prefix at each step, with an end token that never comes."""

    def step(tokens, state):
        ids = state["ids"] if (tokens < 0).all() else torch.cat([state["ids"], tokens[:, None]], 1)
        log_probs = model(ids).logits[:, -1].log_softmax(-1)
        return F.pad(log_probs, (0, 1), value=-torch.inf), {"ids": ids}

    return step


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("width", "groups", "strength"), [(4, 2, 0.5), (4, 4, 0.5), (6, 3, 2.0), (6, 2, 0.2)])
def test_it_agrees_with_the_group_beam_search_of_transformers(width, groups, strength):
    model, prompts = hugging_face(), torch.tensor([[3, 7], [40, 1], [9, 9]])
    theirs = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=6, do_sample=False, pad_token_id=0,
        num_beams=width, num_beam_groups=groups, diversity_penalty=strength, length_penalty=0.0, early_stopping=False,
        num_return_sequences=width, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    ours = diverse_beam_search(
        gpt_step(model), {"ids": prompts}, width=width, groups=groups, strength=strength, start=-1, end=50, max_steps=6
    )  # fmt: skip
    for instance in range(3):
        rows = slice(instance * width, (instance + 1) * width)
        wanted = sorted(zip(theirs.sequences_scores[rows].tolist(), theirs.sequences[rows, 2:].tolist(), strict=True), reverse=True)
        got = sorted(zip(ours.augmented[instance].flatten().tolist(), ours.tokens[instance].flatten(0, 1).tolist(), strict=True), reverse=True)
        assert [tokens for _, tokens in got] == [tokens for _, tokens in wanted]
        assert [score for score, _ in got] == pytest.approx([score for score, _ in wanted], abs=1e-4)


def test_what_cannot_be_searched_is_refused():
    trees = trees_of(0)
    for width, groups in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match=f"width={width}, groups={groups}"):
            search(trees, width, groups, 0.5)
    with pytest.raises(ValueError, match="divide width, got width=5, groups=2"):
        search(trees, 5, 2, 0.5)
    for strength in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"strength must be finite and 0 or more, got {strength}"):
            search(trees, 2, 2, strength)
    with pytest.raises(ValueError, match=r"5 beams cannot start with distinct words of a vocabulary of 4"):
        search(trees, 10, 2, 0.5)
    with pytest.raises(ValueError, match=r"one of hamming, cumulative, ngram, or a function such as partial\(embedding.*got 'bag'"):
        search(trees, 2, 2, 0.5, diversity="bag")
    with pytest.raises(ValueError, match=r"one row for each of the 4 words, got shape \(3, 2\)"):
        search(trees, 2, 2, 0.5, diversity=partial(embedding, vectors=torch.zeros(3, 2)))
    step, state = partial(tree_step, trees), tree_state(trees)
    with pytest.raises(ValueError, match="max_steps=0"):
        diverse_beam_search(step, state, width=2, groups=1, strength=0.5, start=-1, end=3, max_steps=0)
    with pytest.raises(ValueError, match=r"end must be a token of the vocabulary 0\.\.3, got 9"):
        diverse_beam_search(step, state, width=2, groups=1, strength=0.5, start=-1, end=9, max_steps=2)
    for wrong in (torch.zeros(4), torch.tensor([torch.nan, 0, 0, 0])):
        with pytest.raises(ValueError, match=r"step 1: row 0 .* give log-softmax, not logits"):
            diverse_beam_search(lambda t, s, w=wrong: (w.expand(len(t), 4), s), state, width=2, groups=2, strength=0.5, start=-1, end=3, max_steps=2)
    with pytest.raises(RuntimeError, match="step 1: every token of instance 0 is impossible"):
        diverse_beam_search(
            lambda t, s: (torch.full((len(t), 4), -torch.inf), s), state, width=2, groups=2, strength=0.5, start=-1, end=3, max_steps=2
        )


def test_a_dead_row_is_never_selected():
    # word 1 leads nowhere: its row is all -inf
    rows = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.3, 0.2], [0.0, 0.0, 0.0]], dtype=torch.float64).log()

    def step(tokens, state):
        return rows[torch.where(tokens < 0, 0, 1 + (tokens == 1).long())], state

    found = diverse_beam_search(step, {"row": torch.zeros(1)}, width=4, groups=2, strength=0.5, start=-1, end=2, max_steps=3)
    for group in range(2):
        assert members(found, 0, group) and all(1 not in tokens[:-1] for tokens, *_ in members(found, 0, group))
    alone = diverse_beam_search(step, {"row": torch.zeros(1)}, width=2, groups=2, strength=9.0, start=-1, end=2, max_steps=3)
    assert members(alone, 0, 1) == [] and alone.lengths[0, 1].tolist() == [0] and alone.tokens[0, 1].tolist() == [[2, 2, 2]]


def test_distinct_n_and_oracle():
    for length, n in itertools.product((1, 3, 6), (1, 2, 4)):
        same_lists = torch.arange(6).expand(2, 5, 6)
        lengths = torch.full((2, 5), length)
        assert distinct_n(same_lists, lengths, n).tolist() == pytest.approx([max(length - n + 1, 0) / (5 * length)] * 2)
    words_ = torch.tensor([[[1, 2, 1, 2], [1, 2, 3, 9]]])
    assert float(distinct_n(words_, torch.tensor([[4, 3]]), 2)) == pytest.approx(3 / 7)  # 12 21 23
    assert float(distinct_n(words_, torch.tensor([[4, 3]]), 5)) == 0 and float(distinct_n(words_, torch.zeros(1, 2).long(), 1)) == 0
    with pytest.raises(ValueError, match="got 0"):
        distinct_n(words_, torch.tensor([[4, 3]]), 0)
    quality = torch.rand(20, 7, generator=torch.Generator().manual_seed(0))
    curve = torch.stack([oracle_at(quality, k) for k in range(1, 8)])
    assert (curve.diff(dim=0) >= 0).all() and curve[0].equal(quality[:, 0]) and curve[-1].equal(quality.amax(1))
    for k in (0, 8):
        with pytest.raises(ValueError, match=rf"1\.\.7, got {k}"):
            oracle_at(quality, k)


def test_the_sibling_rank_spreads_over_parents():
    trees = trees_of(30, count=40, steps=3, ends=False)
    step, limits = partial(tree_step, trees), {"start": -1, "end": WORDS, "max_steps": 3}
    plain = beam_search(step, tree_state(trees), width=3, **limits)
    free = sibling_rank_search(step, tree_state(trees), width=3, strength=0.0, **limits)
    assert free.tokens.equal(plain.tokens) and torch.allclose(free.scores, plain.scores)
    strict = sibling_rank_search(step, tree_state(trees), width=3, strength=100.0, **limits)
    assert strict.tokens[..., 0].sort(1).values.equal(torch.arange(3).expand(40, 3))  # each parent keeps its best child
    for instance, tree in enumerate(trees):
        beam = [((), 0, 0.0)]
        for _ in range(3):
            grown = []
            for tokens, prefix, score in beam:
                children = sorted(range(WORDS), key=lambda c, prefix=prefix: -float(tree[prefix, c]))
                for rank, c in enumerate(children, 1):
                    theta = score + float(tree[prefix, c])
                    grown.append((theta - 0.4 * rank, (*tokens, c), WORDS * prefix + 1 + c, theta))
            beam = [(tokens, prefix, score) for _, tokens, prefix, score in sorted(grown, key=lambda one: -one[0])[:3]]
        mild = sibling_rank_search(step, tree_state(trees), width=3, strength=0.4, **limits)
        assert sorted(map(tuple, mild.tokens[instance].tolist())) == sorted(tokens for tokens, _, _ in beam)
        assert mild.scores[instance].tolist() == pytest.approx(sorted((score for _, _, score in beam), reverse=True))


def test_the_anti_language_model_discounts_what_any_input_yields():
    trees = trees_of(31, count=10, ends=True)
    step = partial(tree_step, trees)
    prior = torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64).log()
    options = {"language_model": lambda tokens, state: (prior.expand(len(tokens), -1), state), "language_state": {"row": torch.zeros(10)}, **LIMITS}
    plain = beam_search(step, tree_state(trees), width=3, **LIMITS)
    free = anti_lm_search(step, tree_state(trees), width=3, strength=0.0, **options)
    assert free.tokens.equal(plain.tokens) and torch.allclose(free.scores, plain.scores)
    every = anti_lm_search(step, tree_state(trees), width=200, strength=0.3, **options)
    few = anti_lm_search(step, tree_state(trees), width=1, strength=0.0, first=2, **options)
    assert few.tokens[:, 0].equal(beam_search(step, tree_state(trees), width=1, **LIMITS).tokens[:, 0])
    assert every.scores[:, 0].allclose(beam_search(step, tree_state(trees), width=200, **LIMITS).scores[:, 0])
    narrow = anti_lm_search(step, tree_state(trees), width=1, strength=50.0, **options)
    assert (narrow.tokens[:, 0] != 0).all()  # what U finds likely is never said
    first = anti_lm_search(step, tree_state(trees), width=1, strength=0.8, first=1, **options)
    assert first.tokens[:, 0, 0].equal((trees[:, 0] - 0.8 * prior).argmax(1))
    with pytest.raises(ValueError, match="the language model: row 0"):
        anti_lm_search(step, tree_state(trees), width=1, strength=1.0, **{**options, "language_model": lambda t, s: (torch.zeros(len(t), 4), s)})


def test_samples_follow_the_model():
    trees = trees_of(32, count=2, steps=1, ends=False)
    step, limits = partial(tree_step, trees), {"start": -1, "end": WORDS, "max_steps": 1}
    for temperature in (1.0, 0.5):
        found = sample_lists(step, tree_state(trees), draws=4000, temperature=temperature, generator=torch.Generator().manual_seed(0), **limits)
        wanted = (trees[:, 0] / temperature).softmax(-1)
        for instance in range(2):
            shares = found.tokens[instance, :, 0].bincount(minlength=4) / 4000
            assert (shares - wanted[instance]).abs().max() < 0.03
            assert found.scores[instance].allclose(trees[instance, 0, found.tokens[instance, :, 0]])
    nucleus = sample_lists(step, tree_state(trees), draws=500, top_p=1e-6, generator=torch.Generator().manual_seed(0), **limits)
    assert nucleus.tokens[..., 0].equal(trees[:, 0].argmax(1)[:, None].expand(-1, 500))
    deep = trees_of(33, count=5)
    cold = sample_lists(partial(tree_step, deep), tree_state(deep), draws=2, temperature=1e-3, generator=torch.Generator().manual_seed(0), **LIMITS)
    plain = beam_search(partial(tree_step, deep), tree_state(deep), width=1, **LIMITS)
    assert (
        cold.tokens[:, 0].equal(plain.tokens[:, 0])
        and cold.scores[:, 0].allclose(plain.scores[:, 0])
        and cold.lengths[:, 0].equal(plain.lengths[:, 0])
    )
    assert (cold.scores.diff(dim=1) <= 0).all()
    for wrong in ({"draws": 0}, {"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
            sample_lists(step, tree_state(trees), generator=torch.Generator(), **{"draws": 2, **wrong}, **limits)


@cache
def tiny():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Describer(40, 30, embedding=8, hidden=12, dropout=0.0).eval()


def test_the_describer_steps_as_it_learns():
    model = tiny()
    names, lengths = torch.tensor([[5, 35, 39, 0], [7, 8, 9, 31]]), torch.tensor([3, 4])
    sentences = torch.tensor([[3, 20, 29, 0], [4, 5, 0, 0]])
    with torch.no_grad():
        taught, state, token = model(names, lengths, sentences), model.read(names, lengths), torch.full((2,), START)
        assert torch.allclose(taught[..., [START, UNKNOWN]], torch.tensor(-torch.inf)) and torch.allclose(taught.exp().sum(-1), torch.ones(2, 4))
        for at in range(4):
            log_probs, state = model.step(token, state)
            assert torch.allclose(log_probs, taught[:, at], atol=1e-5)
            token = sentences[:, at]
        # what lies beyond a name's length is never read
        other = torch.tensor([[5, 35, 39, 17], [7, 8, 9, 31]])
        assert torch.allclose(model(other, lengths, sentences), taught, atol=1e-6)


def test_the_describer_copies_what_it_attends_to():
    model = tiny()
    with torch.no_grad():
        plain = model(torch.tensor([[9]]), torch.tensor([1]), torch.tensor([[0]]))
        before, model.alpha.data = model.alpha.data.clone(), torch.tensor(50.0)
        copying = model(torch.tensor([[9]]), torch.tensor([1]), torch.tensor([[0]]))
        model.alpha.data = before
    assert int(copying[0, 0].argmax()) == 9 and copying[0, 0, 9] > plain[0, 0, 9]


def test_unknown_words_and_padding_are_not_learned():
    log_probs = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    sentences, lengths = torch.tensor([[4, UNKNOWN, 0], [5, 0, 0]]), torch.tensor([3, 2])
    wanted = -(log_probs[0, 0, 4] + log_probs[0, 2, 0] + log_probs[1, 0, 5] + log_probs[1, 1, 0]) / 4
    assert torch.allclose(sentence_loss(log_probs, sentences, lengths), wanted)


def test_the_vocabulary_knows_what_can_be_written():
    vocabulary = Vocabulary(("<end>", "<start>", "<unk>", "return", "the", "rbf"), 5)
    assert vocabulary.encode(["return", "rbf", "zebra"]) == [3, 5, UNKNOWN]
    assert vocabulary.encode(["return", "rbf", "zebra"], written=True) == [3, UNKNOWN, UNKNOWN]
    assert vocabulary.decode([3, 4, END, 5]) == "return the" and vocabulary.decode([3]) == "return"


def bleu_by_hand(words, reference):
    if not words:
        return 0.0
    hits = (Counter(words) & Counter(reference)).total() / len(words)
    pairs, true_pairs = (Counter(itertools.pairwise(sentence)) for sentence in (words, reference))
    double = ((pairs & true_pairs).total() + 1) / (pairs.total() + 1)
    return 100 * math.sqrt(hits * double) * math.exp(min(0.0, 1 - len(reference) / len(words)))


@given(st.lists(st.integers(3, 6), max_size=6), st.lists(st.integers(3, 6), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_bleu_by_hand(words, reference):
    def filled(row):
        return torch.tensor([[*row, *[END] * (7 - len(row))]])

    points = experiment.bleu(filled(words)[None], torch.tensor([[len(words)]]), filled(reference), torch.tensor([len(reference)]))
    assert float(points) == pytest.approx(bleu_by_hand(words, reference), abs=1e-3)
    assert bleu_by_hand(reference, reference) == pytest.approx(100)


def test_the_corpus_is_split_by_file_and_its_words_come_from_training():
    found = experiment.corpus()
    parts = (found.train, found.validation, found.test)
    files = [{(function.library, function.file) for function in part.functions} for part in parts]
    assert not files[0] & files[1] and not files[0] & files[2] and not files[1] & files[2]
    assert len(found.train) > 15_000 and len(found.validation) > 2_000 and len(found.test) > 2_000
    assert len(found.vocabulary.words) == 3800 and found.vocabulary.output == 1503
    written = {int(token) for token in found.train.sentences.unique()}
    assert written == {END, UNKNOWN, *range(3, 1503)}  # every word that can be written is in a training sentence
    for part in parts:
        assert int(part.lengths.min()) >= 3 and int(part.lengths.max()) <= 12 and int((part.sentences == UNKNOWN).sum(1).max()) <= 2
        assert (part.sentences.gather(1, part.lengths[:, None]) == END).all()
    assert experiment.pieces("linalg/_basic.py", "solve_banded") == ["basic", "/", "solve", "banded"]
    assert experiment.pieces("logging/__init__.py", "Logger.debug") == ["logging", "/", "logger", "debug"]
    assert len(experiment.pieces("a.py", "_".join("abcdefghijklmnopqrst"))) == 16
    assert experiment.module("__init__.py") == "__init__"


def test_the_prior_is_a_distribution_that_prefers_seen_pairs():
    found = experiment.corpus()
    prior = experiment.successors(found.train, found.vocabulary.output)
    assert torch.allclose(prior.exp().sum(1), torch.ones(len(prior)), atol=1e-3)
    assert (prior[:, [START, UNKNOWN]] == -torch.inf).all() and (prior[:, 3:] > -torch.inf).all()
    of, the = found.vocabulary.encode(["of", "the"])
    assert prior[of, the] > prior[the, of] and int(prior[of].argmax()) == the


def test_list_metrics_of_a_list_made_by_hand():
    found = experiment.corpus().test
    example = found.rows(torch.tensor([0]))
    right, length = example.sentences[0], int(example.lengths[0])
    wrong = torch.full_like(right, 3)
    lists = torch.stack([wrong, right])[None]
    scores, lengths = torch.tensor([[-1.0, -2.0]]), torch.tensor([[len(wrong), length + 1]])
    metrics = experiment.list_metrics(experiment.Hypotheses(lists, scores, lengths), example)
    reference = right[:length].tolist()
    if UNKNOWN not in reference:
        assert metrics["oracle_2"] == pytest.approx(100, abs=1e-3)
    assert metrics["oracle_1"] == pytest.approx(bleu_by_hand(wrong.tolist(), reference), abs=1e-3)
    assert metrics["log_probability"] == -1 and metrics["different"] == 2 and metrics["words"] == pytest.approx((13 + length) / 2)


def test_a_short_training_lowers_the_loss_and_repeats_to_the_bit():
    recipe = replace(experiment.DESCRIBER.settings, steps=12, hidden=16, embedding=16, batch=16)
    few = experiment.corpus().validation.rows(torch.arange(100))
    model, again = experiment.train(recipe), experiment.train(recipe)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    untrained = experiment.build(recipe).eval()
    assert experiment.validation_loss(model, few) < experiment.validation_loss(untrained, few) - 0.1
    assert not model.training


def test_the_shipped_describer_is_the_recorded_one():
    model = experiment.describer()
    assert not model.training and sum(p.numel() for p in model.parameters()) == 385_504
    measured = experiment.DESCRIBER.measure(model)
    assert measured["validation nats a word"] == pytest.approx(3.886, abs=0.01)


@cache
def quick():
    return experiment.run(experiment.EXPERIMENT.scales["quick"], 0, torch.device("cpu"))


def test_the_quick_experiment_measures_what_the_claims_name():
    arms = check_arms(quick())
    assert set(SCALES) == set(experiment.EXPERIMENT.scales)
    assert {metric for metrics in arms.values() for metric in metrics} <= set(experiment.EXPERIMENT.units)
    for claim in experiment.EXPERIMENT.claims:
        assert judge(claim, [arms, arms]).says
    assert arms["diverse"]["distinct_2"] > arms["beam_search"]["distinct_2"]
    assert arms["diverse"]["model_calls"] <= arms["beam_search"]["model_calls"] + 0.5
    for metrics in arms.values():
        if "oracle_10" in metrics:
            assert metrics["oracle_1"] <= metrics["oracle_5"] <= metrics["oracle_10"]
    assert all(
        metrics["never_below_group_width" + kind] == 1.0 for arm, metrics in arms.items() if arm.startswith("trees_div") for kind in ("", "_peaked")
    )


def test_a_run_trains_its_own_model_and_repeats_to_the_bit():
    small = experiment.DecodingSettings(
        seeds=1, width=4, test_names=4, validation_names=3, strengths=(0.2, 2.0), rank_strengths=(0.5,), temperatures=(1.0,), prior_strengths=(0.1,),
        training_steps=2, hidden=16, penalties=True, trees=5,
    )  # fmt: skip
    first, again = (experiment.run(small, 3, torch.device("cpu")) for _ in range(2))
    assert first == again
    assert {"diverse_cumulative", "diverse_ngram", "diverse_embedding"} <= set(first)
    assert first["diverse"]["strength"] in (0.2, 2.0)
    assert experiment.run(small, 4, torch.device("cpu")) != first


@pytest.mark.parametrize("number", range(len(EXERCISES)))
def test_exercises_know_right_from_wrong(number):
    exercise = EXERCISES[number]
    assert exercise.check(exercise.solve()).right
    for answer in (None, exercise.wrong):
        reply = exercise.check(answer)
        assert not reply.right and len(reply.text) > 20


def test_exercises_say_what_is_missing():
    below, groups, logits = EXERCISES
    assert "one as well" in below.check(lambda trees: below.solve()(trees)[:3]).text
    assert "not below" in below.check(lambda trees: range(len(trees))).text
    assert "shape" in groups.check(lambda own, earlier, alive, vocabulary: torch.zeros(4, 5)).text
    assert "shape" in logits.check(lambda values, counts, strength: torch.zeros(())).text
    assert "Compare log_softmax" in logits.check(lambda values, counts, strength: torch.zeros(6)).text


@pytest.fixture(scope="module")
def tree():
    return explorer.explorer()


def test_every_control_of_the_tree_changes_the_picture(tree):
    tree.preset("reset")
    for change in ({"name": "graph/find_shortest_path"}, {"groups": 2}, {"strength": 2.0}, {"penalty": "ngram"}, {"penalty": "embedding"}):
        tree.preset("reset")
        before = tree.png
        tree.set(**change)
        assert tree.png != before, change
    tree.preset("reset")
    assert "6 beams in 6 groups, strength 0.8, hamming" in tree.text and "penalised: convert" in tree.text


def test_the_tree_shows_what_the_search_found(tree):
    tree.preset("reset")
    tree.preset("groups without a penalty")
    assert "1 different sentences" in tree.text
    tree.preset("plain beam search")
    name, length, unknown = explorer.numbers(explorer.FIRST_NAME)
    with torch.no_grad():
        plain = beam_search(experiment.describer().step, experiment.describer().read(name, length), width=6, **explorer.LIMITS)
    assert unknown == [] and all(experiment.corpus().vocabulary.decode(tokens) in tree.text for tokens in plain.tokens[0].tolist())
    for label in ("too strong", "word pairs cost", "reset"):
        before = tree.png
        tree.preset(label)
        assert tree.png != before


def test_mouse_and_keys_choose_what_is_looked_at(tree):
    tree.preset("reset")
    tree.point("press", 2.1, 3.5)
    assert "Group 4 at word 3 chose" in tree.text
    for key, wanted in (
        ("ArrowRight", "Group 4 at word 4"),
        ("ArrowLeft", "Group 4 at word 3"),
        ("ArrowUp", "Group 3 at word 3"),
        ("ArrowDown", "Group 4"),
    ):
        tree.point("key", 0, 0, key=key)
        assert wanted in tree.text
    tree.set(groups=2)
    assert "Group 2 at word 3" in tree.text  # there is no group 4 now
    tree.point("key", 0, 0, key="ArrowUp")
    assert "Group 1 at word 3" in tree.text
    tree.point("press", 99, -3)
    assert "Group 1 at word" in tree.text
    tree.preset("reset")
    assert "Group 2 at word 1" in tree.text


def test_odd_names_are_described_too(tree):
    for name in ("", "/", "xqzzy/wvxk_qqq", "just_a_name"):
        tree.set(name=name)
        assert "different sentences" in tree.text
    assert explorer.numbers("xqzzy/wvxk_qqq")[2] == ["xqzzy", "wvxk", "qqq"]
    tree.preset("reset")


def test_the_curve_and_its_cursor():
    made = explorer.strength_explorer(names=6)
    assert "strength 0.8" in made.text
    other = made.controls["name"].options[1]
    for change in ({"strength": 3.0}, {"name": other}):
        before = made.png
        made.set(**change)
        assert made.png != before
    made.point("press", 1.52, 20.0)
    assert made.values["strength"] == 1.5 and "strength 1.5" in made.text
    made.point("drag", 9.0, 0.3, axes=1)
    assert made.values["strength"] == 5.0
    made.point("key", 0, 0, key="ArrowLeft")
    assert made.values["strength"] == pytest.approx(4.9)
    made.point("press", 0.5, 0.5, axes=2)  # the sentences are not for dragging
    assert made.values["strength"] == pytest.approx(4.9)
    made.preset("no penalty")
    assert made.values["strength"] == 0.0
    assert explorer.curves(6)[0.0]["distinct_3"] < explorer.curves(6)[5.0]["distinct_3"]
