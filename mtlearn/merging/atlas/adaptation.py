r"""Learning coefficients at test time, without labels: three objectives that the paper compares.

- *Contrastive* (SimCLR, Chen et al. 2020): two views of an image should have features nearer to each other than to those of all other images.
- *Entropy* (SAR, Niu et al. 2023): be sure, but learn from predictions that are reliable already (entropy below a share of :math:`\log C`), and look
  for a *flat* minimum: the gradient is taken at :math:`\lambda + \epsilon`, where :math:`\epsilon = \rho\, g / \|g\|` is the step that hurts most.
- *Pseudo-labels* (UFM, "unsupervised FixMatch"): the most confident zero-shot predictions of each class are trusted as if they were labels; for the
  others the prediction on a weak view is the label of a strong view, where its confidence exceeds a threshold.

What differs: SAR's recovery (start again when the moving entropy gets small) is left out. In the published code of UFM every image counts as trusted,
and the sharpening divides out again; the paper's text is what is written here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize


def contrastive_loss(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent: for each of 2n views, ``-log`` of the softmax over all other views' cosines / temperature at its partner, on average.

    Args:
        first: (n, d) features of one view of n images, n at least 2.
        second: (n, d) features of another view of the same images.
        temperature: above 0.
    """
    if first.shape != second.shape or first.dim() != 2 or len(first) < 2:
        raise ValueError(f"two views must be (n, d) of the same n > 1 images, got {tuple(first.shape)} and {tuple(second.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    views = normalize(torch.cat([first, second]), dim=1)  # (2n, d)
    likeness = (views @ views.T / temperature).masked_fill(torch.eye(len(views), dtype=torch.bool, device=views.device), -math.inf)
    partner = torch.arange(len(views), device=views.device).roll(len(first))
    return cross_entropy(likeness, partner)


def reliable_entropy(logits: Tensor, share: float = 0.4) -> Tensor:
    """Mean entropy of the predictions whose entropy is below ``share · log C``; 0, with gradient 0, where there is none.

    Args:
        logits: (n, C).
        share: in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    log_p = logits.log_softmax(-1)
    each = -(log_p.exp() * log_p).sum(-1)
    kept = (each < share * math.log(logits.shape[-1])).float()
    return (each * kept).sum() / kept.sum().clamp(min=1)


def sharpness_aware(module: nn.Module, loss_of: Callable[[Callable[..., Tensor]], Tensor], radius: float = 0.05) -> Tensor:
    """The loss at the worst nearby parameters: its gradient is that of sharpness-aware minimisation (Foret et al. 2021).

    Args:
        module: whose parameters learn; a composition has its coefficients alone.
        loss_of: gets a function that computes like ``module`` and returns a scalar loss; called at the parameters, then at those moved by
            ``radius · g / ‖g‖``.
        radius: how far; 0 gives the plain loss.
    """
    if radius < 0:
        raise ValueError(f"radius must be 0 or more, got {radius}")
    parameters = dict(module.named_parameters())
    here = loss_of(module)
    gradients = torch.autograd.grad(here, list(parameters.values()))
    length = nn.utils.get_total_norm(gradients).clamp(min=1e-12)
    moved = {name: value + radius * step / length for (name, value), step in zip(parameters.items(), gradients, strict=True)}
    return loss_of(lambda *inputs: functional_call(module, moved, inputs))


@dataclass(frozen=True)
class Trusted:
    """Images whose zero-shot prediction is taken for a label.

    Attributes:
        rows: (t,) numbers of the images.
        labels: (t,) their predicted classes.
    """

    rows: Tensor
    labels: Tensor


def trust(probabilities: Tensor, largest: int = 100) -> Trusted:
    """Of the images predicted as each class the ``k = min(⌊N / 10 C⌋, largest)`` most confident.

    Args:
        probabilities: (N, C) of the zero-shot model.
        largest: of k.

    Returns:
        At most k rows a class; none where N is below 10 C.
    """
    if probabilities.dim() != 2 or not len(probabilities):
        raise ValueError(f"probabilities must be (images, classes) of at least one image, got shape {tuple(probabilities.shape)}")
    count, classes = probabilities.shape
    k = min(count // (10 * classes), largest)
    mine = probabilities.argmax(1)[:, None] == torch.arange(classes, device=probabilities.device)
    best, rows = probabilities.masked_fill(~mine, -1.0).topk(k, 0)  # (k, C): -1 where fewer than k images are predicted as the class
    kept = best >= 0
    labels = torch.arange(classes, device=rows.device).expand(k, -1)
    return Trusted(rows[kept], labels[kept])


def ufm_rows(count: int, trusted: Trusted, batch: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which images make a batch: a quarter trusted ones, three quarters any.

    Args:
        count: number of images.
        trusted: of :func:`trust`; where there is none, all of the batch is drawn from all images.
        batch: its size.
        generator: of the draws, on the CPU.

    Returns:
        (batch,) numbers of images and (batch,) trusted labels, -1 where there is none.
    """
    quarter = batch // 4 if len(trusted.rows) else 0
    rows = torch.randint(count, (batch - quarter,), generator=generator)
    drawn = torch.randint(max(len(trusted.rows), 1), (quarter,), generator=generator)
    labels = torch.cat([torch.full((batch - quarter,), -1), trusted.labels.cpu()[drawn]]) if quarter else torch.full((batch,), -1)
    return torch.cat([rows, trusted.rows.cpu()[drawn]]) if quarter else rows, labels


def ufm_loss(weak: Tensor, strong: Tensor, labels: Tensor, threshold: float = 0.99) -> Tensor:
    """Cross-entropy of strong views against trusted labels or, above the threshold, against the prediction on the weak view.

    Args:
        weak: (n, C) logits of the weak views; no gradient flows into them.
        strong: (n, C) logits of the strong views.
        labels: (n,) trusted labels, -1 where there is none.
        threshold: of the confidence, in [0, 1).

    Returns:
        The mean over the images that count; 0, with gradient 0, where none does.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), got {threshold}")
    confidence, predicted = weak.detach().softmax(-1).max(-1)
    known = labels >= 0
    answer = torch.where(known, labels, predicted)
    counts = (known | (confidence > threshold)).float()
    return (counts * cross_entropy(strong, answer, reduction="none")).sum() / counts.sum().clamp(min=1)
