r"""Few-shot companions of aTLAS that work on the image features: Tip-Adapter and LP++.

*Tip-Adapter* (Zhang et al. 2022) keeps the few labelled features :math:`F` as a cache and adds what the cache says to the head's logits,
:math:`z(f) + \alpha \exp(-\beta (1 - f F^\top)) Y`; the keys F may learn. It can be trained together with the coefficients of aTLAS, which then move
f. *LP++* (Huang et al. 2024) is a linear probe that blends the head's weights in, :math:`\ell_c = f^\top (w_c + \alpha_c t_c)`, with a multiplier for
each class, and takes its step sizes from a bound on the curvature instead of a search. Here both have a linear head with bias in the place of CLIP's
text features. The bounds of LP++ are our own (1/2 instead of 1/4 as the largest curvature of the softmax, and half the step, because both parts move
at once): with them the loss never rises.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot


class TipAdapter(nn.Module):
    """Logits of a head plus what a cache of labelled features says.

    Args:
        head: features (n, d) to logits (n, C); frozen.
        features: (s, d) of the labelled images.
        labels: (s,).
        classes: C.
        alpha, beta: weight of the cache and its sharpness.
    """

    def __init__(self, head: nn.Module, features: Tensor, labels: Tensor, classes: int, *, alpha: float = 1.0, beta: float = 5.5) -> None:
        super().__init__()
        if len(features) != len(labels) or not len(labels):
            raise ValueError(f"the cache needs a label for each of at least one feature, got {len(features)} features and {len(labels)} labels")
        self._head = [head]
        self.alpha, self.beta = alpha, beta
        self.keys = nn.Parameter(normalize(features.detach(), dim=1))
        self.values: Tensor
        self.register_buffer("values", one_hot(labels, classes).to(features.dtype))

    def forward(self, features: Tensor) -> Tensor:
        """(n, d) to (n, C)."""
        affinity = normalize(features, dim=1) @ self.keys.T  # (n, s): cosines, while the keys are those of the cache
        head: Tensor = self._head[0](features)
        return head + self.alpha * (-self.beta * (1 - affinity)).exp() @ self.values


class LPPlusPlus(nn.Module):
    """``f · (w_c + α_c t_c) + b_c`` on scaled features; learns w, from the class means, and α.

    Args:
        weight: (C, d) rows t_c of the frozen head.
        bias: (C,) of the head.
        features: (s, d) of the labelled images; every class has one at least.
        labels: (s,).
    """

    def __init__(self, weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor) -> None:
        super().__init__()
        if len(features) != len(labels):
            raise ValueError(f"each feature needs a label, got {len(features)} features and {len(labels)} labels")
        members = one_hot(labels, len(weight)).to(features.dtype)  # (s, C)
        if not bool((members.sum(0) > 0).all()):
            raise ValueError(f"class {int((members.sum(0) == 0).nonzero()[0])} has no labelled image; LP++ starts from the mean of each class")
        self.scale = features.norm(dim=1).mean().item()  # of the head's own features, so that α = 1 is the head
        means = normalize(members.T @ features / members.sum(0)[:, None], dim=1)
        self.text: Tensor
        self.bias: Tensor
        self.register_buffer("text", weight.detach().clone())
        self.register_buffer("bias", bias.detach().clone())
        self.w = nn.Parameter(means)
        self.alpha = nn.Parameter(torch.ones(len(weight), dtype=weight.dtype, device=weight.device))
        inputs = normalize(features, dim=1)
        # logits are linear in w and α, and the softmax's Hessian is at most 1/2: L_w = λ_max(F^T F) / 2n, L_α = max_c mean (scale f · t_c)^2 / 2
        self.rates = (
            1 / torch.linalg.matrix_norm(inputs.T @ inputs / len(inputs), 2).item(),
            1 / (self.scale * inputs @ self.text.T).square().mean(0).max().item(),
        )

    def groups(self) -> list[dict[str, object]]:
        """Parameter groups for plain gradient descent, each at 1/(2L): with both blocks moving at once the loss then never rises."""
        return [{"params": [self.w], "lr": self.rates[0]}, {"params": [self.alpha], "lr": self.rates[1]}]

    def forward(self, features: Tensor) -> Tensor:
        """(n, d) to (n, C)."""
        inputs = normalize(features, dim=1)
        text: Tensor = self.scale * inputs @ self.text.T
        return inputs @ self.w.T + self.alpha * text + self.bias
