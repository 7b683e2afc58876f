r"""Diverse beam search: a list of decoded sequences whose members differ, at the price of plain beam search.

Ashwin K. Vijayakumar, Michael Cogswell, Ramprasath R. Selvaraju, Qing Sun, Stefan Lee, David Crandall, Dhruv Batra, 2016,
arXiv:1610.02424 (AAAI 2018).

**Idea.** Beam search of width B returns B near copies of one sequence. Diverse beam search cuts the B beams into G groups. At every
time step the groups choose one after another, and a word costs a later group something when an earlier group has just chosen
it. Only the decoder changes: the same model, the same number of model calls.

**Equations** (section 4, algorithm 1). With :math:`\theta(y_t) = \log \Pr(y_t \mid y_{<t}, x)`, :math:`\Theta` its sum over the
steps, :math:`B' = B / G` and strength :math:`\lambda`, group g keeps at step t

.. math::
    Y^g_{[t]} = \arg\max_{y^g_1 \dots y^g_{B'}\ \mathrm{distinct}} \sum_{b \le B'} \Theta(y^g_{b,[t]})
        + \lambda \, \Delta\Big(\bigcup_{h<g} Y^h_{[t]}\Big)[y^g_{b,t}]

"Doubly greedy": over time and over groups. :math:`-\Delta` is the penalty, one number a candidate:

=============  =====================================================================================================================
Hamming        how many beams of the earlier groups chose the word c at this step
cumulative     the sum over those beams of exp(-(steps at which that beam and the candidate differ) / temperature)
n-gram         how often the n-gram that c would complete stands in the earlier groups' beams, at any step
embedding      the sum over those beams of the cosine between the vector of c and that of the word they chose
=============  =====================================================================================================================

A candidate's running score holds the penalties of its path (``augmented``): it decides. The plain sum of log-probabilities
(``scores``) is carried beside it. Group 1 pays nothing, so it is exactly beam search of width B'.

**What differs from the paper.** The groups are a loop inside the loop over time; the authors' code lets group g run g steps behind,
which gives the same lists. Only the Hamming penalty is spelled out in the paper's body; the other three follow its words (section
4), and their formulas are ours where these leave a choice: each beam counts by itself, and a beam counts at step t when it was still
growing or ended at t. fairseq counts twice as many words as the paper (each group's spare candidates too), so its strength is not this one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlearn.pointing.decoding import Hypotheses, State, Step, best, check_log_probs, keep_best, select

Penalty = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""``penalty(own, earlier, alive, vocabulary)``: what each next word costs the beams of a group.

own: (batch, beams, t) the group's prefixes; earlier: (batch, groups, beams, t + 1) those of the groups before it, which have made
this step; alive: (batch, groups, beams) which of these count; returns (batch, 1 or beams, vocabulary).
"""


def hamming(own: Tensor, earlier: Tensor, alive: Tensor, vocabulary: int) -> Tensor:
    """How many earlier beams chose each word at this step: (batch, 1, vocabulary)."""
    counts = own.new_zeros((len(own), vocabulary), dtype=torch.get_default_dtype())
    return counts.scatter_add_(1, earlier[..., -1].flatten(1), alive.flatten(1).to(counts))[:, None]


def cumulative(own: Tensor, earlier: Tensor, alive: Tensor, vocabulary: int, *, temperature: float = 1.0) -> Tensor:
    """Sum over earlier beams of exp(-differing steps / temperature): (batch, beams, vocabulary).

    Two beams that have parted long ago may use the same word again.
    """
    before, now = earlier[..., :-1].flatten(1, 2), earlier[..., -1].flatten(1)  # (batch, others, t), (batch, others)
    differing = (own[:, :, None] != before[:, None]).sum(-1)  # (batch, beams, others)
    weight = torch.exp(-differing / temperature) * alive.flatten(1)[:, None]
    parting = math.exp(-1 / temperature)  # what the weight falls to when the new word differs as well
    other_word = (parting * weight).sum(-1, keepdim=True).expand(-1, -1, vocabulary)
    same_word = (1 - parting) * weight
    return other_word.scatter_add(2, now[:, None].expand_as(same_word), same_word)


def ngram(own: Tensor, earlier: Tensor, alive: Tensor, vocabulary: int, *, n: int = 2) -> Tensor:
    """How often the n-gram that each word would complete stands in the earlier beams: (batch, beams, vocabulary).

    Sequences start with n - 1 blanks, so that first words count as well.
    """
    blank = -1
    own = F.pad(own, (n - 1, 0), value=blank)
    grams = F.pad(earlier.flatten(1, 2), (n - 1, 0), value=blank).unfold(2, n, 1)  # (batch, others, t + 1, n)
    same = (own[:, :, None, None, own.shape[2] - (n - 1) :] == grams[:, None, :, :, :-1]).all(-1)  # (batch, beams, others, t + 1)
    counts = (same & alive.flatten(1)[:, None, :, None]).flatten(2).to(torch.get_default_dtype())
    ends = grams[..., -1].flatten(1)[:, None].expand_as(counts)
    return counts.new_zeros(*own.shape[:2], vocabulary).scatter_add_(2, ends, counts)


def embedding(own: Tensor, earlier: Tensor, alive: Tensor, vocabulary: int, *, vectors: Tensor) -> Tensor:
    """Sum over earlier beams of the cosine between each word's row of ``vectors`` and that of the beam's new word: (batch, 1, vocabulary)."""
    if vectors.dim() != 2 or len(vectors) != vocabulary:
        raise ValueError(f"vectors must have one row for each of the {vocabulary} words, got shape {tuple(vectors.shape)}")
    unit = F.normalize(vectors, dim=1)
    chosen = unit[earlier[..., -1].flatten(1)] * alive.flatten(1)[..., None]  # (batch, others, d)
    return (chosen.sum(1) @ unit.T)[:, None]


PENALTIES: dict[str, Penalty] = {"hamming": hamming, "cumulative": cumulative, "ngram": ngram}
NEVER_NEGATIVE = tuple(PENALTIES.values())


@dataclass(frozen=True)
class DiverseHypotheses:
    """The decoded lists of a batch by groups; in a group the best augmented score comes first.

    Attributes:
        tokens: (batch, groups, beams, steps) int64; each sequence ends with the end token, the rest is padded with it.
        scores: (batch, groups, beams) sums of log-probabilities; -inf where a group has fewer members than beams.
        augmented: (batch, groups, beams) the same less the penalties on the path.
        lengths: (batch, groups, beams) number of tokens, the end token included.
    """

    tokens: Tensor
    scores: Tensor
    augmented: Tensor
    lengths: Tensor

    def ranked(self) -> Hypotheses:
        """All groups as one list a batch, likeliest first; equal sequences of different groups stay."""
        scores, order = self.scores.flatten(1).sort(dim=1, descending=True, stable=True)
        tokens = self.tokens.flatten(1, 2)
        return Hypotheses(tokens.gather(1, order[..., None].expand_as(tokens)), scores, self.lengths.flatten(1).gather(1, order))


@dataclass(frozen=True)
class Choice:
    """What one group did at one step, for those who watch the search.

    Attributes:
        step, group: from 0.
        log_probs: (batch, beams, vocabulary) of the group's beams before the choice.
        penalty: (batch, 1 or beams, vocabulary), strength included.
        parents, tokens: (batch, beams) the beam that each new one grew from, and its new token.
        scores, augmented: (batch, beams) running sums after the choice; -inf where a beam is dead.
    """

    step: int
    group: int
    log_probs: Tensor
    penalty: Tensor
    parents: Tensor
    tokens: Tensor
    scores: Tensor
    augmented: Tensor


@torch.no_grad()
def diverse_beam_search(
    step: Step,
    state: State,
    *,
    width: int,
    groups: int,
    strength: float,
    start: int,
    end: int,
    max_steps: int,
    diversity: str | Penalty = "hamming",
    watch: Callable[[Choice], None] | None = None,
) -> DiverseHypotheses:
    """Decode ``width`` sequences an instance in ``groups`` that avoid one another (algorithm 1).

    All beams of all groups of all instances go through ``step`` as one batch; within a time step a loop over the groups chooses.
    A sequence that takes the end token leaves its beam, and its place goes to another one of its group.

    Args:
        step: the model, see :mod:`mtlearn.pointing.decoding`.
        state: its state, one row an instance.
        width: B, all beams of an instance.
        groups: G, a divisor of ``width``; 1 is plain beam search, ``width`` the paper's setting.
        strength: lambda, 0 or more, in nats; the paper finds 0.2 to 0.8 good.
        start: the token that the first step sees.
        end: the token that ends a sequence.
        max_steps: longest sequence, the end token included.
        diversity: a name of :data:`PENALTIES`, or a function like them: ``partial(ngram, n=3)``, ``partial(embedding, vectors=table)``.
        watch: called with every group's choice.

    Raises:
        ValueError: a number is out of range, the diversity is unknown, log-probabilities are not normalised, or ``width / groups`` is
            more than the vocabulary, so that a group cannot start with distinct words.
        RuntimeError: all tokens of every beam of an instance are impossible before any sequence is finished.
    """
    penalty_of = check_search(width, groups, strength, max_steps, diversity)
    batch, device = next(iter(state.values())).shape[0], next(iter(state.values())).device
    beams = width // groups
    state = select(state, torch.arange(batch, device=device).repeat_interleave(width))
    last = torch.full((batch * width,), start, dtype=torch.int64, device=device)
    tokens = torch.full((batch, groups, beams, 0), end, dtype=torch.int64, device=device)
    scores = torch.full((batch, groups, beams), -torch.inf, device=device)
    scores[..., 0] = 0.0  # all beams start equal, so only the first of a group may spread
    augmented = scores
    lists = batch * groups
    done: State = {
        "tokens": torch.full((lists, beams, max_steps), end, dtype=torch.int64, device=device),
        "scores": torch.full((lists, beams), -torch.inf, device=device),
        "augmented": torch.full((lists, beams), -torch.inf, device=device),
        "lengths": torch.zeros((lists, beams), dtype=torch.int64, device=device),
    }
    only_loses = strength == 0 or getattr(penalty_of, "func", penalty_of) in NEVER_NEGATIVE
    first_rows = beams * torch.arange(lists, device=device).view(batch, groups, 1)
    for at in range(max_steps):
        log_probs, state = step(last, state)
        vocabulary = log_probs.shape[-1]
        if not 0 <= end < vocabulary:
            raise ValueError(f"end must be a token of the vocabulary 0..{vocabulary - 1}, got {end}")
        if beams > vocabulary:
            raise ValueError(f"width / groups = {beams} beams cannot start with distinct words of a vocabulary of {vocabulary}; take more groups")
        check_log_probs(log_probs, where=f"step {at + 1}")
        log_probs = log_probs.view(batch, groups, beams, vocabulary)
        grown = tokens.new_empty(batch, groups, beams, at + 1)
        parents = torch.empty_like(grown[..., 0])
        new_scores, new_augmented = log_probs.new_empty(batch, groups, beams), log_probs.new_empty(batch, groups, beams)
        for g in range(groups):
            theta = log_probs[:, g]  # (batch, beams, vocabulary)
            penalty = theta.new_zeros(batch, 1, vocabulary)
            if g > 0 and strength > 0:
                alive = new_augmented[:, :g] > -torch.inf  # a dead slot chooses nothing
                penalty = strength * penalty_of(tokens[:, g], grown[:, :g], alive, vocabulary).to(theta)
            # Theta + lambda Delta of every continuation of the group's beams
            candidates = augmented[:, g, :, None] + (theta - penalty if g > 0 else theta)
            new_augmented[:, g], chosen = best(candidates.flatten(1), beams)
            parents[:, g], token = chosen // vocabulary, chosen % vocabulary
            new_scores[:, g] = scores[:, g].gather(1, parents[:, g]) + theta.flatten(1).gather(1, chosen)
            grown[:, g, :, :at] = tokens[:, g].gather(1, parents[:, g, :, None].expand(-1, -1, at))
            grown[:, g, :, at] = token
            if watch is not None:
                watch(Choice(at, g, theta, penalty, parents[:, g], token, new_scores[:, g], new_augmented[:, g]))
        tokens, scores, augmented = grown, new_scores, new_augmented
        ended = (tokens[..., -1] == end) | (at + 1 == max_steps)
        new = {
            "tokens": F.pad(tokens, (0, max_steps - at - 1), value=end),
            "scores": scores.masked_fill(~ended, -torch.inf),
            "augmented": augmented.masked_fill(~ended, -torch.inf),
            "lengths": torch.full_like(parents, at + 1),
        }
        done = keep_best(done, {name: tensor.flatten(0, 1) for name, tensor in new.items()}, by="augmented")
        stuck = ((augmented == -torch.inf) & (done["scores"] == -torch.inf).view_as(augmented)).flatten(1).all(1)
        if stuck.any():
            raise RuntimeError(f"step {at + 1}: every token of instance {int(stuck.nonzero()[0])} is impossible and no sequence is finished")
        scores, augmented = (tensor.masked_fill(ended, -torch.inf) for tensor in (scores, augmented))
        # where no penalty is negative a longer prefix only loses, so a beam below the worst of its full list can never enter it
        hopeless = augmented.flatten(0, 1).amax(1) <= (done["augmented"].amin(1) if only_loses else -torch.inf)
        if hopeless.all():
            break
        state, last = select(state, (first_rows + parents).flatten()), tokens[..., -1].flatten()
    dead = done["augmented"] == -torch.inf
    lengths = done["lengths"].masked_fill(dead, 0)
    found = done["tokens"].masked_fill(dead[..., None], end)[..., : max(int(lengths.max()), 1)]
    parts = found, done["scores"].masked_fill(dead, -torch.inf), done["augmented"], lengths
    return DiverseHypotheses(*(part.view(batch, groups, *part.shape[1:]) for part in parts))


def check_search(width: int, groups: int, strength: float, max_steps: int, diversity: str | Penalty) -> Penalty:
    """The penalty that ``diversity`` names, once all settings are in range; else ValueError."""
    if width < 1 or groups < 1 or max_steps < 1:
        raise ValueError(f"width, groups and max_steps must be at least 1, got width={width}, groups={groups}, max_steps={max_steps}")
    if width % groups:
        raise ValueError(f"groups must divide width, got width={width}, groups={groups}")
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength must be finite and 0 or more, got {strength}")
    if not isinstance(diversity, str):
        return diversity
    if diversity not in PENALTIES:
        known = ", ".join(PENALTIES)
        raise ValueError(f"diversity must be one of {known}, or a function such as partial(embedding, vectors=table); got {diversity!r}")
    return PENALTIES[diversity]


def distinct_n(tokens: Tensor, lengths: Tensor, n: int) -> Tensor:
    """Distinct n-grams of each list over the number of its words (section 5): (batch,), 0 for a list without words.

    Args:
        tokens: (batch, width, steps).
        lengths: (batch, width) number of words to count, without the end token.
        n: words in an n-gram, at least 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    batch, steps = len(tokens), tokens.shape[2]
    words = lengths.sum(1)
    if steps < n:
        return torch.zeros_like(words, dtype=torch.get_default_dtype())
    grams = tokens.unfold(2, n, 1)  # (batch, width, steps - n + 1, n)
    inside = torch.arange(steps - n + 1, device=tokens.device) + n <= lengths[..., None]
    row = torch.arange(batch, device=tokens.device)[:, None, None].expand_as(inside)
    different: Tensor = torch.unique(torch.cat([row[inside][:, None], grams[inside]], 1), dim=0)
    return torch.bincount(different[:, 0], minlength=batch) / words.clamp(min=1)


def oracle_at(quality: Tensor, k: int) -> Tensor:
    """Best quality among the first ``k`` of each list (batch, width), which is sorted by log-probability: (batch,)."""
    if not 1 <= k <= quality.shape[1]:
        raise ValueError(f"k must be in 1..{quality.shape[1]}, got {k}")
    return quality[:, :k].amax(1)
