"""Decoding that the chapter shares: a model seen as a step function, greedy search and beam search over it.

A *step* takes the tokens chosen last and a state, and returns log-probabilities for the next token and the new state::

    step(tokens (rows,) int64, state) -> log_probs (rows, vocabulary), state

The state is a plain mapping of tensors whose first dimension is ``rows``, so that a search can copy, reorder and drop rows
without knowing the model (:func:`select`). A pointer network is such a step, and so are a language model and a table of
probabilities. Impossible tokens have log-probability -inf.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

State = Mapping[str, Tensor]
Step = Callable[[Tensor, State], tuple[Tensor, State]]


@dataclass(frozen=True)
class Hypotheses:
    """The decoded lists of a batch, best first.

    Attributes:
        tokens: (batch, width, steps) int64; each sequence ends with the end token, the rest is padded with it.
        scores: (batch, width) sums of log-probabilities; -inf where a list has fewer members than ``width``.
        lengths: (batch, width) number of tokens, the end token included.
    """

    tokens: Tensor
    scores: Tensor
    lengths: Tensor


def select(state: State, rows: Tensor) -> State:
    """The state of the given rows, in their order."""
    return {name: tensor.index_select(0, rows) for name, tensor in state.items()}


def best(candidates: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of each row (rows, n), best first, and their indices; of equal ones the lower index comes first."""
    values, index = candidates.topk(min(count + 1, candidates.shape[1]), dim=1)
    tie = ((values[:, 1:] == values[:, :-1]) & (values[:, 1:] > -torch.inf)).any(1)
    if tie.any():  # among equals topk is free to take and to order as it likes
        whole = candidates[tie].sort(dim=1, descending=True, stable=True)
        values[tie], index[tie] = whole.values[:, : values.shape[1]], whole.indices[:, : values.shape[1]]
    return values[:, :count], index[:, :count]


def keep_best(done: State, new: State, *, by: str = "scores") -> State:
    """The best by the scores named ``by`` of two lists of tensors (rows, members, ...), as many members as ``done`` has."""
    pool = {name: torch.cat([tensor, new[name]], 1) for name, tensor in done.items()}
    _, chosen = best(pool[by], done[by].shape[1])
    rows = torch.arange(len(chosen), device=chosen.device)[:, None]
    return {name: tensor[rows, chosen] for name, tensor in pool.items()}


def check_log_probs(log_probs: Tensor, *, where: str) -> None:
    """Raise ValueError unless every row is a log-softmax or all -inf."""
    total = log_probs.exp().sum(-1)
    dead = (log_probs == -torch.inf).all(-1)
    wrong = ~(((total - 1).abs() <= 1e-3) | dead)  # NaN compares false, so it is wrong too
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{where}: row {row} has probabilities that sum to {float(total[row]):.4g}, not 1: give log-softmax, not logits")


def greedy(step: Step, state: State, *, start: int, end: int, max_steps: int) -> Hypotheses:
    """Take the likeliest token at every step: a list of width 1."""
    return beam_search(step, state, width=1, start=start, end=end, max_steps=max_steps)


def beam_search(step: Step, state: State, *, width: int, start: int, end: int, max_steps: int) -> Hypotheses:
    """Keep the ``width`` likeliest prefixes at every step; finished ones are set aside and the best ``width`` returned.

    All hypotheses of all instances go through ``step`` as one batch, and the beams are chosen by one top-k a step. A prefix that
    takes the end token leaves the beam; after ``max_steps`` the unfinished ones join the finished ones.

    Args:
        step: the model, as this module describes it.
        state: its state, one row an instance.
        width: beams per instance.
        start: the token that the first step sees.
        end: the token that ends a sequence.
        max_steps: longest sequence, the end token included.

    Raises:
        ValueError: ``width`` or ``max_steps`` below 1, ``end`` outside the vocabulary, or log-probabilities that are not normalised.
        RuntimeError: all tokens of every beam of an instance are impossible before any sequence is finished.
    """
    if width < 1 or max_steps < 1:
        raise ValueError(f"width and max_steps must be at least 1, got width={width}, max_steps={max_steps}")
    batch = next(iter(state.values())).shape[0]
    device = next(iter(state.values())).device
    state = select(state, torch.arange(batch, device=device).repeat_interleave(width))
    tokens = torch.full((batch, width, 0), end, dtype=torch.int64, device=device)
    last = torch.full((batch * width,), start, dtype=torch.int64, device=device)
    # all beams start equal, so only the first may spread
    scores = torch.full((batch, width), -torch.inf, device=device)
    scores[:, 0] = 0.0
    done: State = {
        "tokens": torch.full((batch, width, max_steps), end, dtype=torch.int64, device=device),
        "scores": torch.full((batch, width), -torch.inf, device=device),
        "lengths": torch.zeros((batch, width), dtype=torch.int64, device=device),
    }
    for at in range(max_steps):
        log_probs, state = step(last, state)
        vocabulary = log_probs.shape[-1]
        if not 0 <= end < vocabulary:
            raise ValueError(f"end must be a token of the vocabulary 0..{vocabulary - 1}, got {end}")
        check_log_probs(log_probs, where=f"step {at + 1}")
        candidates = (scores[:, :, None] + log_probs.view(batch, width, vocabulary)).flatten(1)  # (batch, width * vocabulary)
        scores, chosen = best(candidates, width)
        stuck = (scores == -torch.inf).all(1) & (done["scores"] == -torch.inf).all(1)
        if stuck.any():
            raise RuntimeError(f"step {at + 1}: every token of instance {int(stuck.nonzero()[0])} is impossible and no sequence is finished")
        parent, token = chosen // vocabulary, chosen % vocabulary
        tokens = torch.cat([tokens.gather(1, parent[:, :, None].expand(-1, -1, at)), token[:, :, None]], 2)
        ended = (token == end) | (at + 1 == max_steps)
        new = {
            "tokens": torch.nn.functional.pad(tokens, (0, max_steps - at - 1), value=end),
            "scores": scores.masked_fill(~ended, -torch.inf),
            "lengths": torch.full_like(parent, at + 1),
        }
        done = keep_best(done, new)
        scores = scores.masked_fill(ended, -torch.inf)
        # a longer prefix only loses probability, so a beam below the worst of a full list can never enter it
        if (scores.max(1).values <= done["scores"].min(1).values).all():
            break
        rows = (torch.arange(batch, device=device)[:, None] * width + parent).flatten()
        state, last = select(state, rows), token.flatten()
    dead = done["scores"] == -torch.inf
    lengths = done["lengths"].masked_fill(dead, 0)
    tokens = done["tokens"].masked_fill(dead[:, :, None], end)[:, :, : max(int(lengths.max()), 1)]
    return Hypotheses(tokens, done["scores"], lengths)
