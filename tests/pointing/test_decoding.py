import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlearn.pointing.decoding import beam_search, best, check_log_probs, greedy, keep_best, select
from mtlearn.pointing.diverse_beam_search.trees import all_scores, random_trees, tree_state, tree_step

seeds = st.integers(0, 10_000)


def trees_of(seed, count=4, words=3, steps=4, ends=True):
    return random_trees(count, words=words, steps=steps, ends=ends, generator=torch.Generator().manual_seed(seed))


def everything(tree: Tensor, steps: int) -> list[tuple[tuple[int, ...], float]]:
    """All sequences of one tree by plain recursion, likeliest first: those that end and those cut at ``steps``."""
    words = tree.shape[1] - 1

    def grow(tokens, prefix, score):
        if (tokens and tokens[-1] == words) or len(tokens) == steps:
            return [(tokens, score)]
        row = tree[prefix].tolist()
        return [member for c in range(words + 1) if row[c] > -math.inf for member in grow((*tokens, c), words * prefix + 1 + c, score + row[c])]

    return sorted(grow((), 0, 0.0), key=lambda member: -member[1])


def members(found, instance=0):
    lists = zip(found.tokens[instance].tolist(), found.lengths[instance].tolist(), found.scores[instance].tolist(), strict=True)
    return [(tuple(tokens[:length]), score) for tokens, length, score in lists if score > -math.inf]


@given(seed=seeds, steps=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_a_beam_as_wide_as_the_tree_is_an_exhaustive_search(seed, steps):
    trees = trees_of(seed, steps=steps)
    found = beam_search(partial(tree_step, trees), tree_state(trees), width=3**steps * 2, start=-1, end=3, max_steps=steps)
    for instance, tree in enumerate(trees):
        wanted = everything(tree, steps)
        got = members(found, instance)
        assert [tokens for tokens, _ in got] == [tokens for tokens, _ in wanted]
        assert [score for _, score in got] == pytest.approx([score for _, score in wanted], abs=1e-12)
        assert (found.lengths[instance, len(got) :] == 0).all() and (found.tokens[instance, len(got) :] == 3).all()


@given(seed=seeds, width=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_the_beam_keeps_the_likeliest_prefixes(seed, width):
    trees = trees_of(seed)
    found = beam_search(partial(tree_step, trees), tree_state(trees), width=width, start=-1, end=3, max_steps=4)
    for instance, tree in enumerate(trees):
        beam, done = [((), 0, 0.0)], []
        for at in range(4):
            grown = [((*tokens, c), 3 * prefix + 1 + c, score + float(tree[prefix, c])) for tokens, prefix, score in beam for c in range(4)]
            grown = sorted(grown, key=lambda member: -member[2])[:width]
            done += [(tokens, score) for tokens, _, score in grown if tokens[-1] == 3 or at == 3]
            beam = [member for member in grown if member[0][-1] != 3]
        wanted = sorted(done, key=lambda member: -member[1])[:width]
        got = members(found, instance)
        assert [tokens for tokens, _ in got] == [tokens for tokens, _ in wanted]
        assert [score for _, score in got] == pytest.approx([score for _, score in wanted], abs=1e-12)


def test_greedy_takes_the_likeliest_token():
    trees = trees_of(0, count=20)
    found = greedy(partial(tree_step, trees), tree_state(trees), start=-1, end=3, max_steps=4)
    assert found.tokens.shape[:2] == (20, 1)
    for instance, tree in enumerate(trees):
        prefix, tokens = 0, []
        while len(tokens) < 4 and (not tokens or tokens[-1] != 3):
            tokens.append(int(tree[prefix].argmax()))
            prefix = 3 * prefix + 1 + tokens[-1]
        assert members(found, instance)[0][0] == tuple(tokens)


def test_a_batch_is_decoded_as_its_instances_are():
    trees = trees_of(3, count=9)
    together = beam_search(partial(tree_step, trees), tree_state(trees), width=4, start=-1, end=3, max_steps=4)
    for instance in range(9):
        one = trees[instance : instance + 1]
        alone = beam_search(partial(tree_step, one), tree_state(one), width=4, start=-1, end=3, max_steps=4)
        assert members(together, instance) == members(alone)


def test_all_scores_are_those_of_the_recursion():
    trees = trees_of(5, count=2, steps=3, ends=False)
    for instance, tree in enumerate(trees):
        by_hand = dict(everything(tree, 3))
        wanted = [by_hand[(a, b, c)] for a in range(3) for b in range(3) for c in range(3)]
        assert all_scores(trees, 3)[instance].tolist() == pytest.approx(wanted)
    assert all_scores(trees, 3).exp().sum(1).tolist() == pytest.approx([1, 1])


def test_of_equal_candidates_the_lower_index_comes_first():
    values, index = best(torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 2.0], [0.0] * 6]), 3)
    assert values.tolist() == [[3, 3, 2], [0, 0, 0]]
    assert index.tolist() == [[1, 3, 2], [0, 1, 2]]
    assert best(torch.tensor([[1.0, 2.0]]), 2)[1].tolist() == [[1, 0]]
    flat = torch.zeros(1, 4).log_softmax(-1)
    found = beam_search(lambda tokens, state: (flat.expand(len(tokens), -1), state), {"row": torch.zeros(1)}, width=3, start=0, end=3, max_steps=2)
    assert found.tokens[0].tolist() == [[0, 0], [0, 1], [0, 2]]


@given(rows=st.lists(st.lists(st.integers(-2, 2), min_size=7, max_size=7), min_size=1, max_size=4), count=st.integers(1, 7))
def test_best_is_a_stable_sort_cut_short(rows, count):
    candidates = torch.tensor(rows, dtype=torch.float32)
    values, index = best(candidates, count)
    wanted = candidates.sort(dim=1, descending=True, stable=True)
    assert values.equal(wanted.values[:, :count]) and index.equal(wanted.indices[:, :count])


def test_keep_best_merges_two_lists():
    done = {"scores": torch.tensor([[3.0, 1.0]]), "tokens": torch.tensor([[[1, 1], [2, 2]]])}
    new = {"scores": torch.tensor([[2.0, -torch.inf]]), "tokens": torch.tensor([[[3, 3], [4, 4]]])}
    kept = keep_best(done, new)
    assert kept["scores"].tolist() == [[3, 2]] and kept["tokens"].tolist() == [[[1, 1], [3, 3]]]


def test_select_reorders_every_tensor():
    state = {"a": torch.arange(3), "b": torch.arange(6).view(3, 2)}
    assert {name: tensor.tolist() for name, tensor in select(state, torch.tensor([2, 0])).items()} == {"a": [2, 0], "b": [[4, 5], [0, 1]]}


def test_impossible_tokens_leave_shorter_lists():
    only = torch.tensor([[0.0, -torch.inf]])
    found = beam_search(lambda tokens, state: (only.expand(len(tokens), -1), state), {"row": torch.zeros(1)}, width=3, start=0, end=1, max_steps=2)
    assert members(found) == [((0, 0), 0.0)]
    assert found.lengths.tolist() == [[2, 0, 0]]


def test_what_cannot_be_decoded_is_refused():
    trees = trees_of(0)
    step, state = partial(tree_step, trees), tree_state(trees)
    with pytest.raises(ValueError, match="width=0, max_steps=4"):
        beam_search(step, state, width=0, start=-1, end=3, max_steps=4)
    with pytest.raises(ValueError, match="width=1, max_steps=0"):
        greedy(step, state, start=-1, end=3, max_steps=0)
    with pytest.raises(ValueError, match=r"vocabulary 0\.\.3, got 4"):
        greedy(step, state, start=-1, end=4, max_steps=4)
    with pytest.raises(ValueError, match="give log-softmax, not logits"):
        greedy(lambda tokens, state: (torch.zeros(len(tokens), 4), state), state, start=-1, end=3, max_steps=4)
    with pytest.raises(ValueError, match="row 1 has probabilities that sum to nan"):
        check_log_probs(torch.tensor([[0.0, -torch.inf], [torch.nan, 0.0]]), where="here")
    check_log_probs(torch.full((2, 3), -torch.inf), where="here")
    with pytest.raises(RuntimeError, match="every token of instance 0 is impossible"):
        greedy(lambda tokens, state: (torch.full((len(tokens), 4), -torch.inf), state), state, start=-1, end=3, max_steps=4)


def test_random_trees_are_distributions():
    flat = trees_of(1, count=50, ends=True).exp()
    assert torch.allclose(flat.sum(-1), torch.ones(50, 40, dtype=torch.float64))
    closed = trees_of(1, count=50, ends=False)
    assert (closed[..., -1] == -torch.inf).all() and (closed[..., :-1] > -torch.inf).all()
    peaked = random_trees(200, words=3, steps=1, alpha=0.1, generator=torch.Generator().manual_seed(0)).exp().amax(-1).mean()
    assert peaked > 0.85 > random_trees(200, words=3, steps=1, alpha=1.0, generator=torch.Generator().manual_seed(0)).exp().amax(-1).mean()
    with pytest.raises(ValueError, match="alpha=0"):
        random_trees(1, words=1, steps=1, alpha=0, generator=torch.Generator())
