r"""Trans-Encoder (Liu and others, ICLR 2022).

Fangyu Liu, Yunlong Jiao, Jordan Massiah, Emine Yilmaz, Serhii Havrylov: Trans-Encoder: Unsupervised sentence-pair modelling through self- and
mutual-distillations. https://arxiv.org/abs/2109.13059

**Idea.** A cross-encoder reads two sentences together and is the better judge of a pair, but it must be trained on labelled pairs. A bi-encoder reads
each alone and can be had without labels. Let each make the labels of the other, in turns: the bi-encoder's cosines train a cross-encoder,
which finds what words meeting words can add, and its scores train the next bi-encoder. No gold label is used.

**Data.** Pairs of sentences :math:`(a_i, b_i)`, nothing else. :math:`E_0` is a bi-encoder made without labels.

**Cycle** :math:`t`, in four steps (:func:`distil`):

1. label with the bi-encoder, the raw cosine: :math:`y_i = \cos(E_{t-1}(a_i), E_{t-1}(b_i))`
2. train a cross-encoder with logit :math:`z` on both orders of each pair with soft binary cross-entropy

   .. math:: L_{bi \to cross} = -[y \log \sigma(z) + (1 - y) \log(1 - \sigma(z))]

3. label with the cross-encoder, one order: :math:`\tilde y_i = \sigma(z(a_i, b_i))`
4. train a bi-encoder with the mean squared error of its cosine

   .. math:: L_{cross \to bi} = (\cos(E(a), E(b)) - \tilde y)^2

The two losses differ on purpose: the cross-entropy has its minimum at :math:`\sigma(z) = y` too, but in the logit it lets the cross-encoder go beyond
its teacher; the squared error holds the bi-encoder to the scores.

**Self- and mutual distillation.** With one model that is all. With several of different families, run side by side, all take in steps 1 and 3
the mean of the models' labels (``mutual``).

**Start of a cycle.** ``init="fresh"``, the official scripts: each cross-encoder starts from the plain pretrained model and each bi-encoder from
:math:`E_0`; only labels travel. ``init="carry"``, the form that the paper draws: the weights that both share travel too.

**What differs from the paper.** Cosines are clamped to [0, 1] for the cross-entropy, which has no minimum at a negative target (the official code
passes them on). Choosing the best step and the best cycle on labelled development pairs, as the official code does, is left to the caller
(:func:`best`), because it is the one place where labels come in. How the models are trained (optimiser, steps) is passed in.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Init = Literal["fresh", "carry"]
Train = Callable[[nn.Module, Tensor, Tensor, Tensor], None]  # model, first and second (n, length), labels (n,): trains the model in place
NARROW = 0.02  # standard deviation of labels below which a teacher says nothing
CHUNK = 1024  # pairs labelled at once


@dataclass(frozen=True)
class Family:
    """One pretrained model.

    Attributes:
        bi: makes its unsupervised bi-encoder: tokens (n, length) of two sentences each to cosines (n,).
        cross: makes a cross-encoder from the plain pretrained model: the same to logits (n,).
    """

    bi: Callable[[], nn.Module]
    cross: Callable[[], nn.Module]


@dataclass(frozen=True)
class HalfCycle:
    """What one half of a cycle made.

    Attributes:
        cycle: from 1; 0 for the start.
        kind: of the models.
        labels: (families, n), what each model was trained on; all rows are equal where distillation is mutual. None for the start.
        models: one a family.
    """

    cycle: int
    kind: Literal["bi", "cross"]
    labels: Tensor | None
    models: tuple[nn.Module, ...]


def bi_labels(model: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """Step 1: cosines (n,) in [-1, 1] of tokens (n, length).

    Raises:
        ValueError: a cosine is NaN (a sentence whose vector is zero).
    """
    return _labels(model, first, second).clamp(-1, 1)


def cross_labels(model: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """Step 3: sigmoids (n,) of the logits of tokens (n, length), in the given order of the two sentences. Errors as :func:`bi_labels`."""
    return _labels(model, first, second).sigmoid()


def _labels(model: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    check_pairs(first, second)
    training = model.training
    model.eval()
    with torch.no_grad():
        chunks = zip(torch.split(first, CHUNK), torch.split(second, CHUNK), strict=True)
        found = torch.cat([model(a, b) for a, b in chunks])
    model.train(training)
    if not found.isfinite().all():
        raise ValueError(f"the score of pair {int((~found.isfinite()).nonzero()[0])} is not finite: a sentence without a vector?")
    return found


def check_pairs(first: Tensor, second: Tensor) -> None:
    """Raises ValueError for fewer than two pairs, unequal numbers, or a sentence without tokens (padding is 0)."""
    if len(first) != len(second):
        raise ValueError(f"as many first as second sentences are needed, got {len(first)} and {len(second)}")
    if len(first) < 2:
        raise ValueError(f"at least two pairs are needed, got {len(first)}")
    for name, side in (("first", first), ("second", second)):
        if not (there := (side != 0).any(1)).all():
            raise ValueError(f"the {name} sentence of pair {int((~there).nonzero()[0])} is empty")


def bi_to_cross_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Step 2: soft binary cross-entropy, the mean over logits (n,) with labels (n,) in [0, 1].

    Raises:
        ValueError: labels outside [0, 1], or NaN.
    """
    _check_labels(labels, 0)
    return F.binary_cross_entropy_with_logits(logits, labels)


def cross_to_bi_loss(cosines: Tensor, labels: Tensor) -> Tensor:
    """Step 4: mean squared error of cosines (n,) and labels (n,) in [-1, 1].

    Raises:
        ValueError: labels outside [-1, 1], or NaN.
    """
    _check_labels(labels, -1)
    return F.mse_loss(cosines, labels)


def _check_labels(labels: Tensor, low: int) -> None:
    if not ((labels >= low) & (labels <= 1)).all():  # NaN compares false
        raise ValueError(f"labels must be in [{low}, 1], got {float(labels.min()):.3g} to {float(labels.max()):.3g}")


def both_orders(first: Tensor, second: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each pair in both orders with its label: n pairs to 2 n."""
    length = max(first.shape[1], second.shape[1])
    first, second = F.pad(first, (0, length - first.shape[1])), F.pad(second, (0, length - second.shape[1]))
    return torch.cat([first, second]), torch.cat([second, first]), labels.repeat(2)


def copy_shared(source: nn.Module, target: nn.Module) -> int:
    """Copy every parameter that both have by name and shape (the body, the word table) into ``target``; returns how many numbers."""
    theirs, copied = dict(source.named_parameters()), 0
    with torch.no_grad():
        for name, own in target.named_parameters():
            if name in theirs and theirs[name].shape == own.shape:
                own.copy_(theirs[name])
                copied += own.numel()
    return copied


def distil(
    first: Tensor,
    second: Tensor,
    families: Sequence[Family],
    *,
    train_cross: Train,
    train_bi: Train,
    cycles: int = 3,
    mutual: bool = False,
    init: Init = "fresh",
    symmetric: bool = True,
) -> Iterator[HalfCycle]:
    """Run the cycles on unlabelled pairs and give back each half as it ends, the start first: what is done is not lost when a later half stops.

    Args:
        first: (n, length) int64 tokens, 0 is padding.
        second: (n, length) int64.
        families: one for self-distillation, several for mutual; several without ``mutual`` are as many self-distillations side by side.
        train_cross: trains a cross-encoder on pairs and labels in [0, 1], with :func:`bi_to_cross_loss`.
        train_bi: trains a bi-encoder on pairs and labels in [0, 1], with :func:`cross_to_bi_loss`.
        cycles: number of cycles.
        mutual: every model is trained on the mean of all models' labels.
        init: ``fresh`` models each cycle, or ``carry`` the shared weights on.
        symmetric: the cross-encoder sees both orders; False for a task in which the order means something (question and answer).

    Raises:
        ValueError: too few pairs or families, unequal numbers, empty sentences, cycles below 1, an unknown ``init``.

    Warns:
        RuntimeWarning: the start's labels hardly vary, so that there is nothing to learn from them.
    """
    check_pairs(first, second)
    if cycles < 1:
        raise ValueError(f"cycles must be at least 1, got {cycles}")
    if len(families) < (2 if mutual else 1):
        raise ValueError(f"mutual distillation needs at least two families, self-distillation one, got {len(families)}")
    if init not in ("fresh", "carry"):
        raise ValueError(f"init must be 'fresh' or 'carry', got {init!r}")
    return _distil(first, second, families, train_cross, train_bi, cycles, mutual, init, symmetric)


def _distil(
    first: Tensor,
    second: Tensor,
    families: Sequence[Family],
    train_cross: Train,
    train_bi: Train,
    cycles: int,
    mutual: bool,
    init: Init,
    symmetric: bool,
) -> Iterator[HalfCycle]:
    bis = tuple(family.bi() for family in families)
    yield HalfCycle(0, "bi", None, bis)
    for cycle in range(1, cycles + 1):
        labels = _shared(torch.stack([bi_labels(model, first, second) for model in bis]), mutual)
        spread = float(labels.std(1).min())
        if cycle == 1 and spread < NARROW:
            message = f"the start's labels have a standard deviation of {spread:.3g}: with a constant teacher there is nothing to learn"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        labels = labels.clamp(0, 1)
        crosses = []
        for family, bi, own in zip(families, bis, labels, strict=True):
            cross = family.cross()
            if init == "carry":
                copy_shared(bi, cross)
            train_cross(cross, *(both_orders(first, second, own) if symmetric else (first, second, own)))
            crosses.append(cross)
        yield HalfCycle(cycle, "cross", labels, tuple(crosses))
        labels = _shared(torch.stack([cross_labels(model, first, second) for model in crosses]), mutual)
        following = []
        for family, cross, own in zip(families, crosses, labels, strict=True):
            bi = family.bi()
            if init == "carry":
                copy_shared(cross, bi)
            train_bi(bi, first, second, own)
            following.append(bi)
        bis = tuple(following)
        yield HalfCycle(cycle, "bi", labels, bis)


def _shared(labels: Tensor, mutual: bool) -> Tensor:
    """(families, n): each family's own labels, or the mean of all for each."""
    return labels.mean(0).expand_as(labels) if mutual else labels


def best(halves: Sequence[HalfCycle], kind: Literal["bi", "cross"], score: Callable[[nn.Module], float], family: int = 0) -> HalfCycle:
    """The half-cycle whose model has the highest score on *labelled* development pairs, the first of equals; the start is not among them.

    Raises:
        ValueError: no half-cycle of this kind.
    """
    found = [half for half in halves if half.kind == kind and half.cycle > 0]
    if not found:
        raise ValueError(f"there is no half-cycle with a {kind}-encoder")
    return max(found, key=lambda half: score(half.models[family]))
