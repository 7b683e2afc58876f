"""What diverse beam search is compared with: two other searches for diverse lists, sampling, and itself one hypothesis at a time.

All take a step and a state as :mod:`mtlearn.pointing.decoding` describes them, decode a batch at once (but for :func:`loop_search`)
and return lists sorted by plain log-probability.
"""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlearn.pointing.decoding import Hypotheses, State, Step, best, check_log_probs, keep_best, select
from mtlearn.pointing.diverse_beam_search.method import check_search

Cost = Callable[[int, Tensor, State], Tensor]


def sibling_rank_search(step: Step, state: State, *, width: int, strength: float, start: int, end: int, max_steps: int) -> Hypotheses:
    """Beam search that takes ``strength * k`` from the k-th best child of each parent (Li and Jurafsky 2016, arXiv:1601.00372, section 4).

    The rank costs a candidate only at the step at which it is chosen, so that no parent fills the beam with its own children.
    """
    check_search(width, 1, strength, max_steps, "hamming")

    def cost(at: int, log_probs: Tensor, state: State) -> Tensor:
        order = log_probs.sort(dim=1, descending=True, stable=True).indices
        ranks = torch.arange(1, log_probs.shape[1] + 1, device=log_probs.device).expand_as(order)
        return strength * torch.empty_like(log_probs).scatter_(1, order, ranks.to(log_probs))

    return _search(step, state, cost, width=width, start=start, end=end, max_steps=max_steps, carry=False)


def anti_lm_search(
    step: Step, state: State, *, language_model: Step, language_state: State, width: int, strength: float, start: int, end: int, max_steps: int,
    first: int | None = None,
) -> Hypotheses:  # fmt: skip
    """Beam search for log P(y | x) - strength * log U(y): what any input would yield is worth less (Li et al. 2015, arXiv:1510.03055, 4.5.1).

    Args:
        step: the model P.
        state: its state, one row an instance.
        language_model: U, a step that does not see the input.
        language_state: its state, one row an instance.
        width: beams per instance.
        strength: lambda, 0 or more.
        start: the token that both models' first step sees.
        end: the token that ends a sequence.
        max_steps: longest sequence, the end token included.
        first: number of tokens on which U is counted; all when omitted. U cannot veto grammar once the first words are set.
    """
    check_search(width, 1, strength, max_steps, "hamming")

    def both(tokens: Tensor, joint: State) -> tuple[Tensor, State]:
        log_probs, conditional = step(tokens, {name[2:]: tensor for name, tensor in joint.items() if name.startswith("p.")})
        prior, unconditional = language_model(tokens, {name[2:]: tensor for name, tensor in joint.items() if name.startswith("u.")})
        check_log_probs(prior, where="the language model")
        return log_probs, {**_named("p.", conditional), **_named("u.", unconditional), "prior": prior}

    def cost(at: int, log_probs: Tensor, state: State) -> Tensor:
        # a word that U holds for impossible would be worth infinitely much
        counted = first is None or at < first
        return -strength * (-state["prior"]).clamp(max=50.0) if counted else torch.zeros_like(log_probs)

    joint = {**_named("p.", state), **_named("u.", language_state)}
    return _search(both, joint, cost, width=width, start=start, end=end, max_steps=max_steps, carry=True)


def _named(prefix: str, state: State) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@torch.no_grad()
def _search(step: Step, state: State, cost: Cost, *, width: int, start: int, end: int, max_steps: int, carry: bool) -> Hypotheses:
    """Beam search by log-probability less ``cost(at, log_probs, state)`` (rows, vocabulary); ``carry`` keeps paid costs in the running score."""
    batch, device = next(iter(state.values())).shape[0], next(iter(state.values())).device
    state = select(state, torch.arange(batch, device=device).repeat_interleave(width))
    last = torch.full((batch * width,), start, dtype=torch.int64, device=device)
    tokens = torch.full((batch, width, 0), end, dtype=torch.int64, device=device)
    scores = torch.full((batch, width), -torch.inf, device=device)
    scores[:, 0] = 0.0
    paid = torch.zeros_like(scores)
    done: State = {
        "tokens": torch.full((batch, width, max_steps), end, dtype=torch.int64, device=device),
        "scores": torch.full((batch, width), -torch.inf, device=device),
        "keys": torch.full((batch, width), -torch.inf, device=device),
        "lengths": torch.zeros((batch, width), dtype=torch.int64, device=device),
    }
    for at in range(max_steps):
        log_probs, state = step(last, state)
        check_log_probs(log_probs, where=f"step {at + 1}")
        shape = (batch, width, log_probs.shape[1])
        dear = paid[:, :, None] + cost(at, log_probs, state).view(shape)
        plain = scores[:, :, None] + log_probs.view(shape)
        _, chosen = best((plain - dear).flatten(1), width)
        parent, token = chosen // shape[2], chosen % shape[2]
        scores = plain.flatten(1).gather(1, chosen)
        paid = dear.flatten(1).gather(1, chosen) if carry else torch.zeros_like(scores)
        tokens = torch.cat([tokens.gather(1, parent[:, :, None].expand(-1, -1, at)), token[:, :, None]], 2)
        ended = (token == end) | (at + 1 == max_steps)
        new = {
            "tokens": F.pad(tokens, (0, max_steps - at - 1), value=end),
            "scores": scores.masked_fill(~ended, -torch.inf),
            "keys": (scores - paid).masked_fill(~ended, -torch.inf),
            "lengths": torch.full_like(parent, at + 1),
        }
        done = keep_best(done, new, by="keys")
        scores = scores.masked_fill(ended, -torch.inf)
        if (scores == -torch.inf).all():
            break
        rows = (torch.arange(batch, device=device)[:, None] * width + parent).flatten()
        state, last = select(state, rows), token.flatten()
    return _by_likelihood(done["tokens"], done["scores"], done["lengths"], end)


@torch.no_grad()
def sample_lists(
    step: Step,
    state: State,
    *,
    draws: int,
    start: int,
    end: int,
    max_steps: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Hypotheses:
    """Draw ``draws`` sequences an instance, each word from softmax(log P / temperature); all draws of all instances at once.

    Args:
        step: the model.
        state: its state, one row an instance.
        draws: sequences per instance; the same one may come twice.
        start: the token that the first step sees.
        end: the token that ends a sequence.
        max_steps: longest sequence, the end token included.
        generator: source of the draws.
        temperature: below 1 favours likely words.
        top_p: nucleus sampling (Holtzman et al. 2020): only the likeliest words that together have this probability; 1 for all.

    Returns:
        Lists sorted by the model's own log-probability, without temperature.
    """
    if draws < 1 or max_steps < 1 or not temperature > 0 or not 0 < top_p <= 1:
        raise ValueError(
            "draws and max_steps must be at least 1, temperature positive and top_p in (0, 1], "
            f"got draws={draws}, max_steps={max_steps}, temperature={temperature}, top_p={top_p}"
        )
    batch, device = next(iter(state.values())).shape[0], next(iter(state.values())).device
    state = select(state, torch.arange(batch, device=device).repeat_interleave(draws))
    last = torch.full((batch * draws,), start, dtype=torch.int64, device=device)
    score = torch.zeros(batch * draws, device=device)
    length = torch.zeros_like(last)
    running = torch.ones_like(last, dtype=torch.bool)
    tokens = torch.full((batch * draws, max_steps), end, dtype=torch.int64, device=device)
    for at in range(max_steps):
        log_probs, state = step(last, state)
        check_log_probs(log_probs, where=f"step {at + 1}")
        probs = (log_probs / temperature).softmax(-1)
        if top_p < 1:
            ordered, order = probs.sort(dim=1, descending=True, stable=True)
            outside = ordered.cumsum(1) - ordered >= top_p  # the words before it already have the mass
            probs = probs.masked_fill(torch.zeros_like(outside).scatter_(1, order, outside), 0.0)
        last = torch.where(running, torch.multinomial(probs, 1, generator=generator)[:, 0], end)
        score = score + torch.where(running, log_probs.gather(1, last[:, None])[:, 0], 0.0)
        length += running
        tokens[:, at] = last
        running = running & (last != end)
        if not running.any():
            break
    return _by_likelihood(tokens.view(batch, draws, -1), score.view(batch, draws), length.view(batch, draws), end)


def _by_likelihood(tokens: Tensor, scores: Tensor, lengths: Tensor, end: int) -> Hypotheses:
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    dead = scores == -torch.inf
    lengths = lengths.gather(1, order).masked_fill(dead, 0)
    tokens = tokens.gather(1, order[..., None].expand_as(tokens)).masked_fill(dead[..., None], end)
    return Hypotheses(tokens[..., : max(int(lengths.max()), 1)], scores, lengths)


@torch.no_grad()
def loop_search(
    step: Step, state: State, *, width: int, groups: int, strength: float, start: int, end: int, max_steps: int
) -> list[list[list[tuple[tuple[int, ...], float, float]]]]:
    """Diverse beam search with the Hamming penalty, one hypothesis at a time: slow, short, and what the batched one must equal.

    Returns:
        [instance][group] -> (tokens, log-probability, augmented log-probability) of its members, best augmented first.
    """
    check_search(width, groups, strength, max_steps, "hamming")
    beams, found = width // groups, []
    for instance in range(next(iter(state.values())).shape[0]):
        first = select(state, torch.tensor([instance]))
        alive: list[list[tuple[tuple[int, ...], float, float, State]]] = [[((), 0.0, 0.0, first)] for _ in range(groups)]
        done: list[list[tuple[tuple[int, ...], float, float]]] = [[] for _ in range(groups)]
        for at in range(max_steps):
            used: Counter[int] = Counter()
            for g in range(groups):
                candidates = []
                for tokens, score, augmented, here in alive[g]:
                    log_probs, after = step(torch.tensor([tokens[-1] if tokens else start]), here)
                    for token, theta in enumerate(log_probs[0].tolist()):
                        if theta > -torch.inf:
                            candidates.append(((*tokens, token), score + theta, augmented + theta - strength * used[token], after))
                chosen = sorted(candidates, key=lambda candidate: -candidate[2])[:beams]
                used.update(tokens[-1] for tokens, *_ in chosen)
                done[g] += [(tokens, score, augmented) for tokens, score, augmented, _ in chosen if tokens[-1] == end or at + 1 == max_steps]
                alive[g] = [candidate for candidate in chosen if candidate[0][-1] != end]
        found.append([sorted(group, key=lambda member: -member[2])[:beams] for group in done])
    return found
