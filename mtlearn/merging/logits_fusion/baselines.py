r"""What the paper lacks: a rule that asks which expert suits the text.

An expert that gave the text so far a higher probability than the small model did is likely to be the right one. By Bayes' rule, with the small model
itself as one more candidate and all of them equally likely before the text,

.. math:: w_t \propto \prod_{j<k} \frac{Q_t(x_j)}{Q(x_j)}

over the last 64 tokens. The experts' changes are then added with these weights, or the direction that they make is scaled by the paper's own
rule. Mixing by how well a model predicts the prompt is what PackLLM does; this form of it is ours.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlearn.merging.logits_fusion.method import EVIDENCE, Rule, change, dynamic


def posterior(evidence: Tensor) -> Tensor:
    """Weights of the experts (..., T) from the evidence (T, ..., n); what is missing to 1 is the weight of the small model.

    Raises:
        ValueError: the evidence is not finite.
    """
    if not evidence.isfinite().all():
        raise ValueError("the evidence must be finite: log Q_t(x) - log Q(x) of tokens that the models allow")
    score = evidence.sum(-1).movedim(0, -1)  # (..., T)
    return F.pad(score, (1, 0)).softmax(-1)[..., 1:]


def recent(gained: Tensor, window: int = EVIDENCE) -> Tensor:
    """The posterior before each token of a text: gains (T, ..., L) of all its tokens to weights (..., L, T), from the last ``window`` ones.

    Raises:
        ValueError: the window is below 1.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    total = F.pad(gained.cumsum(-1), (1, 0))[..., :-1]  # (T, ..., L): of all tokens before each
    before = F.pad(total, (window, 0))[..., : total.shape[-1]]
    return posterior((total - before)[..., None])


def router(window: int = EVIDENCE) -> Rule:
    """The rule that adds the experts' changes with the posterior of each, for :func:`~mtlearn.merging.logits_fusion.method.decode`."""

    def rule(log_p: Tensor, log_q: Tensor, log_q_t: Tensor, evidence: Tensor) -> Tensor:
        return posterior(evidence[..., max(evidence.shape[-1] - window, 0) :]).to(log_p)

    return rule


def routed_strength(large: Tensor, small: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """Strengths (..., T): the posterior's direction, scaled by the paper's rule as if it were one expert.

    Args:
        large: (..., V) logits.
        small: (..., V) logits.
        experts: (T, ..., V) logits.
        weights: (..., T) posterior.
    """
    log_q, log_q_t = small.log_softmax(-1), experts.log_softmax(-1)
    mixed = torch.where(log_q > -torch.inf, log_q + torch.einsum("...t,t...v->...v", weights.to(log_q), change(log_q, log_q_t)), -torch.inf)
    return weights * dynamic(large, small, mixed[None]).alpha
