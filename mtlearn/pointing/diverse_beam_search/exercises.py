"""Exercises on diverse beam search: what the first group guarantees, what is counted, and where the penalty belongs."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.pointing.decoding import beam_search
from mtlearn.pointing.diverse_beam_search.method import diverse_beam_search, hamming
from mtlearn.pointing.diverse_beam_search.trees import random_trees, tree_state, tree_step

WORDS, STEPS = 4, 5


def top_scores(trees: Tensor, width: int, groups: int = 1, strength: float = 0.0) -> Tensor:
    """Best log-probability (trees,) that diverse beam search finds on each tree; with one group it is beam search."""
    options = {"start": -1, "end": WORDS, "max_steps": STEPS}
    if groups == 1:
        return beam_search(partial(tree_step, trees), tree_state(trees), width=width, **options).scores[:, 0]
    found = diverse_beam_search(
        partial(tree_step, trees), tree_state(trees), width=width, groups=groups, strength=strength, start=-1, end=WORDS, max_steps=STEPS
    )
    return found.ranked().scores[:, 0]


def _trees(seed: int) -> Tensor:
    return random_trees(150, words=WORDS, steps=STEPS, generator=torch.Generator().manual_seed(seed))


def _judge_below(answer: Callable[[Tensor], Tensor]) -> str | None:
    for seed in (1, 2):
        trees = _trees(seed)
        diverse, plain = top_scores(trees, 4, 4, 0.5), top_scores(trees, 4)
        wanted = (diverse < plain - 1e-9).nonzero().flatten().tolist()
        got = sorted(int(number) for number in answer(trees))
        if not got:
            return f"you found none of the {len(wanted)} there are; compare with beam search of width 4, not of the group's width 1."
        if wrong := [number for number in got if number not in wanted]:
            number = wrong[0]
            return f"on tree {number} the diverse list's best is {diverse[number]:.3f} and that of beam search {plain[number]:.3f}: it is not below."
        if got != wanted:
            return f"tree {next(number for number in wanted if number not in got)} is one as well; you found {len(got)} of {len(wanted)}."
    return None


def _solve_below() -> Callable[[Tensor], Tensor]:
    def answer(trees: Tensor) -> Tensor:
        diverse = top_scores(trees, width=4, groups=4, strength=0.5)
        plain = top_scores(trees, width=4)
        return (diverse < plain - 1e-9).nonzero().flatten()

    return answer


def _wrong_below(trees: Tensor) -> Tensor:
    return (top_scores(trees, 4, 4, 0.5) < top_scores(trees, 1) - 1e-9).nonzero().flatten()


def _judge_groups(answer: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> str | None:
    draws = torch.Generator().manual_seed(0)
    for groups, beams in ((1, 1), (3, 1), (2, 3), (3, 2)):
        earlier = torch.randint(5, (4, groups, beams, 3), generator=draws)
        alive = torch.rand(4, groups, beams, generator=draws) < 0.8
        own = earlier.new_zeros(4, beams, 2)
        got = torch.as_tensor(answer(own, earlier, alive, 5)).float()
        if got.shape[0] != 4 or got.shape[-1] != 5 or got.dim() != 3:
            return f"the penalty must have shape (batch, 1 or beams, vocabulary), here (4, 1, 5); yours has {tuple(got.shape)}."
        for instance in range(4):
            used = [{int(earlier[instance, h, b, -1]) for b in range(beams) if alive[instance, h, b]} for h in range(groups)]
            for word in range(5):
                wanted = sum(word in one for one in used)
                if got[instance, 0, word] != wanted:
                    said = [sorted(one) for one in used]
                    count = f"word {word} was used by {wanted} of them; you count {got[instance, 0, word]:g}"
                    return f"the groups' living beams chose the words {said}: {count}."
    return None


def _solve_groups() -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    def answer(own: Tensor, earlier: Tensor, alive: Tensor, vocabulary: int) -> Tensor:
        words = torch.nn.functional.one_hot(earlier[..., -1], vocabulary).bool()  # (batch, groups, beams, vocabulary)
        used = (words & alive[..., None]).any(2)  # by some living beam of the group
        return used.sum(1)[:, None].float()

    return answer


def _judge_logits(answer: Callable[[Tensor, Tensor, float], Tensor]) -> str | None:
    draws = torch.Generator().manual_seed(1)
    for strength in (0.5, 2.0):
        logits, counts = 2 * torch.randn(6, generator=draws), torch.tensor([0.0, 0, 1, 3, 0, 2])
        wanted = logits.log_softmax(-1) - (logits - strength * counts).log_softmax(-1)
        got = torch.as_tensor(answer(logits, counts, strength)).float()
        if got.shape != wanted.shape:
            return f"one number a word is wanted, shape (6,); yours has {tuple(got.shape)}."
        if torch.allclose(got, strength * counts, atol=1e-4):
            return "that is what a word loses when its log-probability is penalised; here its logit is, and the softmax comes after."
        if not torch.allclose(got, wanted, atol=1e-4):
            word = int((got - wanted).abs().argmax())
            return f"word {word} loses {wanted[word]:.3f} nats at strength {strength}; you say {got[word]:.3f}. Compare log_softmax before and after."
    return None


def _solve_logits() -> Callable[[Tensor, Tensor, float], Tensor]:
    def answer(logits: Tensor, counts: Tensor, strength: float) -> Tensor:
        before = logits.log_softmax(-1)
        after = (logits - strength * counts).log_softmax(-1)
        return before - after

    return answer


def _wrong_logits(logits: Tensor, counts: Tensor, strength: float) -> Tensor:
    return strength * counts


EXERCISES = (
    Exercise(
        question=(
            "**Is the list ever worse than beam search?** Group 1 pays no penalty, so the best of the list is never below beam search of the "
            "*group's* width. Find the trees on which it is below beam search of the *whole* width: write `answer(trees)` that returns their "
            "numbers, for four groups of one beam at strength 0.5. `top_scores(trees, width, groups, strength)` gives the best log-probability "
            "found on each tree; with one group it is beam search."
        ),
        judge=_judge_below,
        solve=_solve_below,
        wrong=_wrong_below,
        reason=(
            "Group 1 is beam search of width 1 and nothing is taken from it, so the list cannot fall below that; but the other three beams are "
            "driven elsewhere instead of helping, and on more than a tenth of random trees beam search of width 4 finds a likelier sequence."
        ),
    ),
    Exercise(
        question=(
            "**Count groups instead of beams.** `hamming` charges a word once for every earlier *beam* that chose it. Write a penalty "
            "`answer(own, earlier, alive, vocabulary)` that charges it once for every earlier *group* in which some living beam chose it. "
            "`earlier` is (batch, groups, beams, steps), its last step is the present one; `alive` is (batch, groups, beams); return "
            "(batch, 1, vocabulary)."
        ),
        judge=_judge_groups,
        solve=_solve_groups,
        wrong=hamming,
        reason=(
            "With one beam a group the two counts are equal; with more, yours is milder, and a search with it no longer agrees with the "
            "published code, which counts beams. It fits `diverse_beam_search(..., diversity=answer)` as it is."
        ),
    ),
    Exercise(
        question=(
            "**Penalise logits?** Suppose the penalty is taken from the logits, before the softmax. Write `answer(logits, counts, strength)`: how "
            "much each word's log-probability falls (nats), for `logits` (vocabulary,) and `counts` of earlier beams (vocabulary,)."
        ),
        judge=_judge_logits,
        solve=_solve_logits,
        wrong=_wrong_logits,
        reason=(
            "The softmax hands what the punished words lose to all words, so a word pays strength times count plus log sum p exp(-strength count), "
            "which is negative: less than was asked, least where one likely word has all the mass. Words without a count even gain, and "
            "raw score = augmented score + strength x collisions no longer holds."
        ),
    ),
)
