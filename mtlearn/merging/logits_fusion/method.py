r"""Dynamic logits fusion (Fan and others, NeurIPS 2024).

Chenghao Fan, Zhenyi Lu, Wei Wei, Jie Tian, Xiaoye Qu, Dangyang Chen, Yu Cheng: On Giant's Shoulders: Effortless Weak to Strong by Dynamic Logits
Fusion. https://arxiv.org/abs/2406.15480

**Idea.** Tuning a large language model is costly, tuning a small one of the same vocabulary is cheap. What tuning did to the small model's logits is
added to the large model's: no training, and the large model may be a black box that returns logits. How strongly, and which of several tuned small
models, is decided anew at every token, from the distributions alone.

**Fused distribution.** ``large`` are the large model's logits for the next token, ``small`` those of the small model, ``experts`` those of T tuned
small ones; P, Q and Q_t are their softmaxes.

.. math:: \Delta_t = \log Q_t - \log Q, \qquad \tilde P_\alpha = \mathrm{softmax}\big[\log P + \sum_t \alpha_t \Delta_t\big]

Logits in place of log-probabilities give the same, because shifts cancel. One expert and :math:`\alpha = 1` is proxy tuning.
:math:`\Delta_t` reads as a reward, and :math:`\tilde P` as the best policy for it that stays near P.

**Strength.** The large model shall move as far as the small one did, in both directions of the KL divergence. With several experts the aim is
the centre of what they did:

.. math::
    \alpha^* = \arg\min_\alpha \sum_t \big[D(\tilde P_\alpha \| P) - D(Q_t \| Q)\big]^2 + \big[D(P \| \tilde P_\alpha) - D(Q \| Q_t)\big]^2

**Search.** :math:`\alpha` runs over 0, 0.1 ... 2. With several experts only *one is active* a token: each axis is searched, the best pair (expert,
strength) is kept, which costs T searches in place of one over a grid to the power of T; :func:`cube` gives the latter to compare.

**Both divergences from one number.** With :math:`\Delta = \sum_t \alpha_t \Delta_t` and
:math:`\log Z = \log \sum_v P_v e^{\Delta_v}`, which is all that must be worked out at a point of the grid,

.. math:: D(P \| \tilde P) = \log Z - E_P[\Delta], \qquad D(\tilde P \| P) = E_{\tilde P}[\Delta] - \log Z

**In-context learning** needs nothing new: the examples stand in front of the large model's prefix alone (``examples`` of :func:`decode`).
**Task arithmetic** makes one expert of several: merge their weights with :mod:`mtlearn.merging.task_vectors`, and fuse with the result.

**What differs from the paper.** No code was published, so the search is a reconstruction from its equations and pseudo-code. The paper calls the
problem convex; in general it is not, and nothing here relies on it. A tie goes to the smallest strength, and where that is 0 the choice is "no
expert" (-1). The objective has *no term that says which expert suits the text*: see the experiment.

Two vocabularies of one size with different tokens cannot be told apart here; fusing them gives nonsense without a warning.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

GRID = tuple(round(0.1 * step, 1) for step in range(21))
COARSE = tuple(0.25 * step for step in range(9))  # for the cube
LARGEST = 1 << 18  # numbers that a search holds at once
EVIDENCE = 64  # tokens back that a rule may look at

Model = Callable[[Tensor], Tensor]  # prefix (B, L) int64 to the logits (B, V) of the next token
# Log-probabilities of large (..., V), small (..., V), experts (T, ..., V), and the evidence (T, ..., n): what each expert gained over the small
# model on each of the last n tokens of the prefix, log Q_t(x) - log Q(x). Returns strengths (..., T).
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Choice:
    """What a search found, for each position.

    Attributes:
        alpha: (..., T) strengths; all but one are 0 where one expert is active.
        expert: (...) int64, the active expert; -1 where no expert is, and where several are.
        objective: (...) the value reached, 0 at best.
    """

    alpha: Tensor
    expert: Tensor
    objective: Tensor


def log_probabilities(large: Tensor, small: Tensor, experts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Check the logits of one step and normalise them.

    Args:
        large: (..., V) logits of the large model.
        small: (..., V) logits of the small model.
        experts: (T, ..., V) logits of the tuned small models.

    Returns:
        The three as log-probabilities. Tokens that all models forbid (logit minus infinity) stay at minus infinity.

    Raises:
        ValueError: no expert, shapes that do not fit, other vocabularies, NaN or plus infinity, masks that differ, or nothing allowed.
    """
    if experts.dim() < 1 or len(experts) == 0:
        raise ValueError("at least one expert is needed: experts must be (T, ..., V) with T of at least 1")
    named = {"large": large, "small": small, "experts": experts}
    sizes = {name: logits.shape[-1] for name, logits in named.items() if logits.dim()}
    if len(sizes) < 3 or len(set(sizes.values())) > 1:
        raise ValueError(f"all models must have one vocabulary, got sizes {', '.join(f'{name} {size}' for name, size in sizes.items())}")
    if not large.shape == small.shape == experts.shape[1:]:
        raise ValueError(
            f"large and small must be (..., V) and experts (T, ..., V), got {tuple(large.shape)}, {tuple(small.shape)}, {tuple(experts.shape)}"
        )
    for name, logits in named.items():
        if not (logits < torch.inf).all():  # NaN compares false
            raise ValueError(f"the logits of {name} hold NaN or plus infinity; they must be finite, or minus infinity for a forbidden token")
    allowed = large > -torch.inf
    for name, logits in named.items():
        if not ((logits > -torch.inf) == allowed).all():
            raise ValueError(f"a token that one model forbids must be forbidden for all, else the divergence is infinite: {name} differs from large")
    if not allowed.any(-1).all():
        raise ValueError("at least one token must be allowed at every position, got a row of minus infinity")
    return F.log_softmax(large, -1), F.log_softmax(small, -1), F.log_softmax(experts, -1)


def change(small: Tensor, experts: Tensor) -> Tensor:
    """Delta_t = log Q_t - log Q (T, ..., V), 0 for forbidden tokens."""
    return torch.where(small > -torch.inf, experts - small, 0.0)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """D(p || q) over the last axis, of log-probabilities; a token with p = 0 counts nothing."""
    return torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0).sum(-1)


def fuse(large: Tensor, small: Tensor, experts: Tensor, alpha: Tensor | float) -> Tensor:
    """The fused log-probabilities log P~ (..., V) for logits and strengths.

    Args:
        large: (..., V) logits.
        small: (..., V) logits.
        experts: (T, ..., V) logits.
        alpha: (..., T) or (T,), or one number for all experts.

    Raises:
        ValueError: see :func:`log_probabilities`.
    """
    return _fuse(*log_probabilities(large, small, experts), alpha)


def _fuse(log_p: Tensor, log_q: Tensor, log_q_t: Tensor, alpha: Tensor | float) -> Tensor:
    delta = change(log_q, log_q_t)
    if not isinstance(alpha, Tensor):
        alpha = delta.new_full((len(delta),), alpha)
    return F.log_softmax(log_p + torch.einsum("...t,t...v->...v", alpha.to(delta).expand(*log_p.shape[:-1], len(delta)), delta), -1)


def targets(log_q: Tensor, log_q_t: Tensor) -> tuple[Tensor, Tensor]:
    """How far each expert moved from the small model: D(Q_t || Q) and D(Q || Q_t), both (T, ...)."""
    return kl(log_q_t, log_q), kl(log_q.expand_as(log_q_t), log_q_t)


def moves(log_p: Tensor, delta: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """How far the large model moves at each of some strengths: D(P~ || P) and D(P || P~), both (..., N).

    Args:
        log_p: (..., V) log-probabilities.
        delta: (T, ..., V) changes.
        points: (N, T) strengths.
    """
    changes = delta.movedim(0, -2)  # (..., T, V)
    tilted = (points @ changes).add_(log_p[..., None, :])  # (..., N, V)
    top = tilted.amax(-1, keepdim=True)
    weight = (tilted - top).exp_()
    z = weight.sum(-1)  # (..., N)
    log_z = top[..., 0] + z.log()
    after = (points * (weight @ changes.mT)).sum(-1) / z  # E of sum_t alpha_t delta_t under P~
    before = (points * (log_p.exp()[..., None, :] @ changes.mT)).sum(-1)  # E of it under P
    return after - log_z, log_z - before


def objective(moved: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> Tensor:
    """Sum over the experts of both squared misses, (..., N), of moves (..., N) and targets (T, ...)."""
    misses = [(move - target[..., None]).square().sum(0) for move, target in zip(moved, wanted, strict=True)]
    return misses[0] + misses[1]


def dynamic(large: Tensor, small: Tensor, experts: Tensor, *, grid: Sequence[float] = GRID) -> Choice:
    """The published rule: each expert's axis is searched, and the best pair of expert and strength is kept.

    Args:
        large: (..., V) logits.
        small: (..., V) logits.
        experts: (T, ..., V) logits.
        grid: strengths to try, at least one.

    Raises:
        ValueError: see :func:`log_probabilities`; an empty grid, or one that is not finite.
    """
    log_p, log_q, log_q_t = log_probabilities(large, small, experts)
    return _search(_axes(_grid(grid, log_p), len(log_q_t)), log_p, log_q, log_q_t)


def cube(large: Tensor, small: Tensor, experts: Tensor, *, grid: Sequence[float] = COARSE) -> Choice:
    """The full search: every combination of strengths, which is a grid to the power of the number of experts.

    Args:
        large: (..., V) logits.
        small: (..., V) logits.
        experts: (T, ..., V) logits.
        grid: strengths to try, at least one.

    Raises:
        ValueError: see :func:`log_probabilities`; an empty grid, or one that is not finite.
    """
    log_p, log_q, log_q_t = log_probabilities(large, small, experts)
    steps, count = _grid(grid, log_p), len(log_q_t)
    points = torch.cartesian_prod(*[steps] * count).reshape(-1, count)
    return _search(points[points.abs().sum(1).argsort(stable=True)], log_p, log_q, log_q_t)  # a tie goes to the smallest total strength


def _axes(grid: Tensor, count: int) -> Tensor:
    """The points (G T, T) with one expert active, small strengths first."""
    return (grid[:, None, None] * torch.eye(count).to(grid)).flatten(0, 1)


def _search(points: Tensor, log_p: Tensor, log_q: Tensor, log_q_t: Tensor) -> Choice:
    """The best of the points (N, T) at each position, the first of them where several are best."""
    count, vocabulary = log_q_t.shape[0], log_p.shape[-1]
    p, q, q_t = (one.to(points).reshape(*lead, -1, vocabulary) for one, lead in ((log_p, ()), (log_q, ()), (log_q_t, (count,))))
    delta, (away, back) = change(q, q_t), targets(q, q_t)
    best = torch.empty(len(p)).to(points)
    place = torch.empty(len(p), dtype=torch.int64, device=p.device)
    at_once = max(LARGEST // (len(points) * vocabulary), 1)
    for low in range(0, len(p), at_once):  # so many positions that what is worked out for them stays in the cache
        part = slice(low, low + at_once)
        value = objective(moves(p[part], delta[:, part], points), (away[:, part], back[:, part]))  # (n, N)
        best[part], place[part] = _first_minimum(value)
    alpha = points[place].view(*log_p.shape[:-1], count)
    active = alpha != 0
    expert = torch.where(active.sum(-1) == 1, active.to(torch.int8).argmax(-1), -1)
    return Choice(alpha, expert, best.view(log_p.shape[:-1]))


def _first_minimum(value: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum over the last axis, and the first place that reaches it but for rounding."""
    best = value.amin(-1)
    near = value <= best[..., None] + 1e-4 * torch.finfo(value.dtype).eps  # 3e-6 between two divergences, in single precision
    return best, near.to(torch.int8).argmax(-1)


def _grid(grid: Sequence[float], like: Tensor) -> Tensor:
    """The strengths, the weakest first, in single precision at least: sums over a vocabulary need it."""
    if len(grid) == 0:
        raise ValueError("grid must have at least one strength, got none")
    found = torch.tensor(sorted(grid, key=abs), dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    if not found.isfinite().all():
        raise ValueError(f"grid must be finite, got {list(grid)}")
    return found


# Decoding


def fixed(strength: float) -> Rule:
    """The rule of one strength for all experts and tokens; 1 with one expert is proxy tuning."""
    return lambda log_p, log_q, log_q_t, evidence: log_p.new_full((*log_p.shape[:-1], len(log_q_t)), strength)


def searched(grid: Sequence[float] = GRID) -> Rule:
    """The published rule, for :func:`decode`."""
    return lambda log_p, log_q, log_q_t, evidence: _search(_axes(_grid(grid, log_p), len(log_q_t)), log_p, log_q, log_q_t).alpha


@dataclass(frozen=True)
class Decoded:
    """What :func:`decode` wrote.

    Attributes:
        tokens: (B, steps) int64.
        alpha: (B, steps, T) the strengths of each token.
        log_prob: (B, steps) of each token under the fused distribution, before the temperature.
    """

    tokens: Tensor
    alpha: Tensor
    log_prob: Tensor


@torch.no_grad()
def decode(
    large: Model,
    small: Model,
    experts: Sequence[Model],
    prefix: Tensor,
    *,
    steps: int,
    rule: Rule | None = None,
    temperature: float = 0.05,
    examples: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Decoded:
    """Write ``steps`` tokens after each prefix, all models reading what was written so far.

    Args:
        large: any callable from prefixes (B, L) to logits (B, V) of the next token.
        small: the same.
        experts: the same, T of them.
        prefix: (B, L) int64.
        steps: tokens to write, at least 1.
        rule: gives the strengths; the published search when omitted.
        temperature: of the sampling; 0 takes the most probable token.
        examples: (B, M) or (M,) tokens that the large model alone reads in front of the prefix: in-context learning.
        generator: draws the tokens; PyTorch's own when omitted.

    Raises:
        ValueError: see :func:`log_probabilities`; a negative temperature, fewer than one step, or a prefix that is no (B, L).
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0 (0 takes the most probable token), got {temperature}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if prefix.dim() != 2:
        raise ValueError(f"prefix must be (batch, length), got {tuple(prefix.shape)}")
    if len(experts) == 0:
        raise ValueError("at least one expert is needed, got none")
    rule = searched() if rule is None else rule
    before = prefix.new_zeros(len(prefix), 0) if examples is None else examples.expand(len(prefix), -1)
    evidence = torch.zeros(len(experts), len(prefix), 0, device=prefix.device)
    length = prefix.shape[1]
    alphas, chosen = [], []
    for _ in range(steps):
        logits = large(torch.cat([before, prefix], 1)), small(prefix), [expert(prefix) for expert in experts]
        if any(one.shape != logits[1].shape for one in logits[2]):
            raise ValueError(f"all models must have one vocabulary, got small {tuple(logits[1].shape)}, {[tuple(one.shape) for one in logits[2]]}")
        log_p, log_q, log_q_t = log_probabilities(logits[0], logits[1], torch.stack(logits[2]))
        alpha = rule(log_p, log_q, log_q_t, evidence)
        fused = _fuse(log_p, log_q, log_q_t, alpha)
        if temperature:
            token = torch.multinomial((fused / temperature).softmax(-1), 1, generator=generator)  # (B, 1)
        else:
            token = fused.argmax(-1, keepdim=True)
        gained = change(log_q, log_q_t).gather(-1, token.expand(len(experts), -1, -1))  # (T, B, 1)
        evidence = torch.cat([evidence, gained], -1)[..., -EVIDENCE:]
        prefix = torch.cat([prefix, token], 1)
        alphas.append(alpha)
        chosen.append(fused.gather(-1, token))
    return Decoded(prefix[:, length:], torch.stack(alphas, 1), torch.cat(chosen, 1))
