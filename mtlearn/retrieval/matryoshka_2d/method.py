r"""2D Matryoshka sentence embeddings (Li and others, 2024).

Xianming Li, Zongxi Li, Jing Li, Haoran Xie, Qing Li: 2D Matryoshka Sentence Embeddings. https://arxiv.org/abs/2402.14776

**Idea.** A Matryoshka embedding can be cut: its first :math:`d` numbers are an embedding of their own. But a text still goes through every layer.
Train so that the vector can be cut *and* the encoder can stop early: after any layer :math:`n`, any first :math:`d` numbers are of use.

**Exits.** :math:`X_n` (B, D) is the pooled output of layer :math:`n` of :math:`N`, by the same pooling and the same weights for all; there is no
extra head. Layer 0 is the embedding. :math:`X_n^d = X_n[:, :d]`. One forward pass gives all (:class:`ElasticEncoder`).

**Loss** (:func:`two_d_loss`). :math:`\ell` is any loss of sentence embeddings that compares by cosine (:math:`\ell` is InfoNCE in our experiment,
:func:`cosent_loss` on graded pairs). Each step draws *one* layer :math:`n` of 1 to N - 1 and *one* size :math:`d`:

.. math:: L = \ell(X_N) + w_n\,\ell(X_n) + L_{align} + \ell(X_N^d) + w_n\,\ell(X_n^d)

.. math:: L_{align} = T^p\, \mathrm{KL}\big(\mathrm{softmax}(X_N / T)\,\|\,\mathrm{softmax}(X_n / T)\big)

The divergence is taken over the *numbers of a vector*, as if they were logits (:func:`alignment`); its gradient also reaches the last layer. The
first release of the authors' code has :math:`w_n = 1, p = 2`, the second :math:`w_n = 1/n, p = 1`.

**The other form** (:func:`nested_loss`), that of sentence-transformers: one size for the last layer, another for the drawn one, and no term at full
size unless it is drawn. The library changed it: see :data:`WEIGHTS` and ``detach``.

**Successor** (:func:`espresso_loss`), ESE, ICLR 2025: all layers in each step, one size, and in place of the alignment each vector's first numbers
learn what the principal directions of the whole say.

**Use.** ``encoder.truncated(n)`` drops the layers above n for good; ``sliced(vectors, d)`` cuts and brings back to length 1.

**What differs from the paper.** The base loss is a choice. ``temperature`` is 1 by default as in the authors' code; vectors of length 1 need a
smaller one (sentence-transformers: 0.3), else the softmax is nearly uniform. A fixed external teacher is passed as vectors.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.text_encoders import Body, Pooling, pool

Loss = Callable[..., Tensor]  # one (B, d) for each column of texts to a scalar
Release = Literal["first", "second"]
Weighting = Literal["uniform", "log", "linear", "inverse"]

WEIGHTS: dict[str, Callable[[int], float]] = {
    "uniform": lambda n: 1.0,  # sentence-transformers 5.7: the default; AnglE, first release
    "log": lambda n: 1 / (1 + math.log(1 + n)),  # ESE
    "linear": lambda n: 1 / (1 + n),  # sentence-transformers 5.7, option
    "inverse": lambda n: 1 / n if n else 1.0,  # AnglE, second release; sentence-transformers before, which left the embedding out
}
"""Weight of layer n, 0 being the embedding."""


def ladder(width: int, smallest: int = 8) -> tuple[int, ...]:
    """Sizes ``smallest``, twice that, and so on, below ``width``: 8 to 512 for 768. Empty where none fits.

    Raises:
        ValueError: a number below 1.
    """
    if min(width, smallest) < 1:
        raise ValueError(f"width and smallest must be at least 1, got {width} and {smallest}")
    return tuple(smallest * 2**i for i in range(max(0, math.ceil(math.log2(width / smallest)))))


def check_sizes(sizes: Sequence[int], width: int) -> None:
    """Raises ValueError unless ``sizes`` are one or more numbers of 1 to ``width``."""
    if not sizes:
        raise ValueError(f"sizes must name at least one size between 1 and {width}, got none")
    for size in sizes:
        if not 1 <= size <= width:
            raise ValueError(f"size must be between 1 and the width {width}, got {size}")


def sliced(vectors: Tensor, size: int) -> Tensor:
    """The first ``size`` numbers of (..., D), brought to length 1: (..., size).

    Raises:
        ValueError: a size outside 1 to D.
    """
    check_sizes((size,), vectors.shape[-1])
    return F.normalize(vectors[..., :size], dim=-1)


def alignment(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""KL(softmax(teacher / T) || softmax(student / T)) over the D numbers of each row, the mean over rows; not negative, 0 where both are equal.

    Args:
        student: :math:`X_n` (m, D).
        teacher: :math:`X_N` (m, D).
        temperature: T.

    Raises:
        ValueError: shapes that differ, or a temperature of 0 or less.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student and teacher must have one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; to leave the alignment out, give it the weight 0")
    return F.kl_div(F.log_softmax(student / temperature, -1), F.softmax(teacher / temperature, -1), reduction="batchmean")


def _check_columns(columns: Sequence[Tensor]) -> tuple[int, int]:
    """Number of layers N and width D of columns (N + 1, B, D)."""
    if not columns or any(exits.dim() != 3 or exits.shape[0] < 2 for exits in columns):
        raise ValueError(f"columns must each be (layers + 1, batch, width), got {[tuple(exits.shape) for exits in columns]}")
    if len({(exits.shape[0], exits.shape[2]) for exits in columns}) > 1:
        raise ValueError(f"columns must share layers and width, got {[tuple(exits.shape) for exits in columns]}")
    return columns[0].shape[0] - 1, columns[0].shape[2]


def two_d_loss(
    columns: Sequence[Tensor],
    loss: Loss,
    layer: int | None,
    size: int | None,
    *,
    release: Release = "second",
    temperature: float = 1.0,
    kl_weight: float = 1.0,
    detach: bool = False,
    teacher: Tensor | None = None,
) -> Tensor:
    r"""The loss of one step in the authors' form, a scalar.

    Args:
        columns: exits (N + 1, B, D) of each column of texts (queries, documents): :meth:`ElasticEncoder.exits`.
        loss: :math:`\ell`, of one (B, d) for each column.
        layer: the drawn n of 1 to N - 1; None for no shallow terms (N = 1, or plain Matryoshka).
        size: the drawn d; None for the full size.
        release: of the authors' code: weight 1 and :math:`T^2`, or :math:`1/n` and :math:`T`.
        temperature: T of the alignment.
        kl_weight: of the alignment; 0 leaves it out.
        detach: keep the alignment's gradient from the last layer.
        teacher: (columns times B, D), a fixed teacher's vectors in the place of :math:`X_N`.

    Raises:
        ValueError: a layer outside 1 to N - 1, a size outside 1 to D, a temperature of 0 or less, an unknown release, columns of unequal shapes.
    """
    layers, width = _check_columns(columns)
    if release not in get_args(Release):
        raise ValueError(f"release must be 'first' or 'second', got {release!r}")
    if layer is not None and not 1 <= layer <= layers - 1:
        raise ValueError(f"the drawn layer must be between 1 and {layers - 1}, below the last of {layers}, got {layer}; None draws none")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; to leave the alignment out, give kl_weight=0")
    size = width if size is None else size
    check_sizes((size,), width)

    last = [exits[-1] for exits in columns]
    value = loss(*last) + loss(*(x[:, :size] for x in last))  # l(X_N) + l(X_N^d)
    if layer is None:
        return value
    shallow = [exits[layer] for exits in columns]
    weight = WEIGHTS["uniform" if release == "first" else "inverse"](layer)
    value = value + weight * (loss(*shallow) + loss(*(x[:, :size] for x in shallow)))  # w_n (l(X_n) + l(X_n^d))
    if kl_weight:
        above = torch.cat(last) if teacher is None else teacher
        factor = temperature ** (2 if release == "first" else 1)
        value = value + kl_weight * factor * alignment(torch.cat(shallow), above.detach() if detach else above, temperature)
    return value


@dataclass(frozen=True)
class Draw:
    """What one step of :func:`nested_loss` looks at.

    Attributes:
        last: sizes of the last layer; None for all of the vector as it is.
        layers: shallow layers, 0 being the embedding.
        sizes: sizes of each of these layers; None as above.
    """

    last: tuple[int, ...] | None
    layers: tuple[int, ...] = ()
    sizes: tuple[tuple[int, ...] | None, ...] = ()

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.layers):
            raise ValueError(f"sizes must be given for each of the {len(self.layers)} layers, got {len(self.sizes)}")


def draw(layers: int, sizes: Sequence[int], *, per_step: tuple[int, int] = (1, 1), first: int = 0, generator: torch.Generator) -> Draw:
    """Layers and, for each layer and the last one on its own, sizes, without replacement.

    Args:
        layers: N.
        sizes: to draw from.
        per_step: layers and sizes drawn, -1 for all.
        first: the lowest layer: 0, or 1 to leave the embedding out.
        generator: of the draws.

    Raises:
        ValueError: no size, a number of draws below 1 but for -1, or ``first`` not 0 or 1.
    """
    check_sizes(sizes, max(sizes, default=1))
    if first not in (0, 1) or layers < 1 or any(number < 1 and number != -1 for number in per_step):
        raise ValueError(f"first must be 0 or 1, layers at least 1, per_step -1 or at least 1, got {first}, {layers}, {per_step}")

    def some(values: Sequence[int], number: int) -> tuple[int, ...]:
        kept = torch.randperm(len(values), generator=generator)[: None if number == -1 else number].tolist()
        return tuple(sorted((values[i] for i in kept), reverse=True))

    last = some(sizes, per_step[1])
    chosen = some(range(first, layers), per_step[0])
    return Draw(last, chosen, tuple(some(sizes, per_step[1]) for _ in chosen))


def matryoshka_loss(columns: Sequence[Tensor], loss: Loss, sizes: Sequence[int], weights: Sequence[float] | None = None) -> Tensor:
    r"""Kusupati and others 2022: :math:`\sum_d c_d\,\ell(X^d)`, each slice brought to length 1.

    Args:
        columns: (B, D) each.
        loss: of one (B, d) for each column.
        sizes: d.
        weights: :math:`c_d`, all 1 when omitted.

    Raises:
        ValueError: no size, a size outside 1 to D, or as many weights as there are no sizes.
    """
    check_sizes(sizes, columns[0].shape[-1])
    if weights is not None and len(weights) != len(sizes):
        raise ValueError(f"weights must be as many as the {len(sizes)} sizes, got {len(weights)}")
    terms = [loss(*(sliced(x, size) for x in columns)) for size in sizes]
    return torch.stack([weight * term for weight, term in zip(weights or [1.0] * len(sizes), terms, strict=True)]).sum()


def nested_loss(
    columns: Sequence[Tensor],
    loss: Loss,
    drawn: Draw,
    *,
    size_weights: dict[int, float] | None = None,
    weighting: Weighting | Callable[[int], float] = "uniform",
    last_weight: float = 1.0,
    prior_weight: float = 1.0,
    kl_weight: float = 1.0,
    temperature: float = 0.3,
    detach: bool = True,
) -> Tensor:
    """The loss of one step in the form of sentence-transformers: ``Matryoshka2dLoss``; ``AdaptiveLayerLoss`` where sizes are None.

    With the defaults it is that of version 5.7. Earlier versions: ``weighting="inverse"``, ``detach=False``, and layer 0 was not drawn.

    Args:
        columns: exits (N + 1, B, D) of each column of texts.
        loss: of one (B, d) for each column.
        drawn: layers and sizes.
        size_weights: of each size, 1 when omitted.
        weighting: of a shallow layer, a name of :data:`WEIGHTS` or a function; then divided by the number of layers drawn.
        last_weight: of the last layer.
        prior_weight: of the shallow layers together.
        kl_weight: of the alignment, 0 for none (the library's ``kl_temperature=0``). It is not divided by the number of layers.
        temperature: T of the alignment, which is taken of the whole vectors, not normalised.
        detach: keep the alignment's gradient from the last layer.

    Raises:
        ValueError: a layer outside 0 to N - 1, a size outside 1 to D, an empty list of sizes, an unknown weighting, a temperature of 0 or less, a
            size without a weight.
    """
    layers, _ = _check_columns(columns)
    if wrong := [n for n in drawn.layers if not 0 <= n < layers]:
        raise ValueError(f"drawn layers must be between 0 and {layers - 1}, below the last of {layers}, got {wrong[0]}")
    if not callable(weighting) and weighting not in WEIGHTS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTS)} or a function, got {weighting!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; to leave the alignment out, give kl_weight=0")
    weight_of = weighting if callable(weighting) else WEIGHTS[weighting]

    def at(layer: int, sizes: tuple[int, ...] | None) -> Tensor:
        rows = [exits[layer] for exits in columns]
        if sizes is None:
            return loss(*rows)
        if size_weights is not None and (missing := [size for size in sizes if size not in size_weights]):
            raise ValueError(f"size_weights must hold every size drawn, {missing[0]} is missing")
        return matryoshka_loss(rows, loss, sizes, None if size_weights is None else [size_weights[size] for size in sizes])

    value = last_weight * at(layers, drawn.last)
    teacher = torch.cat([exits[-1] for exits in columns])
    for layer, sizes in zip(drawn.layers, drawn.sizes, strict=True):
        value = value + prior_weight * weight_of(layer) / len(drawn.layers) * at(layer, sizes)
        if kl_weight:
            student = torch.cat([exits[layer] for exits in columns])
            value = value + kl_weight * temperature * alignment(student, teacher.detach() if detach else teacher, temperature)
    return value


def principal(vectors: Tensor, size: int) -> Tensor:
    r"""ESE's target (m, size): :math:`X U \mathrm{diag}(S)` of vectors X (m, D), without a gradient.

    U and S are the first ``size`` left singular vectors and values of softmax(:math:`X^\top X / \sqrt D`).
    Signs are made definite: the largest number of each singular vector is positive.

    Raises:
        ValueError: a size outside 1 to D.
    """
    check_sizes((size,), vectors.shape[-1])
    with torch.no_grad():
        u, s, _ = torch.linalg.svd(F.softmax(vectors.T @ vectors / math.sqrt(vectors.shape[1]), -1))
        u = u * torch.gather(u, 0, u.abs().argmax(0, keepdim=True)).sign()
        found: Tensor = vectors @ (u[:, :size] * s[:size])
        return found


def espresso_loss(columns: Sequence[Tensor], loss: Loss, size: int, *, temperature: float = 1.0, compress_weight: float = 1.0) -> Tensor:
    r"""ESE, a scalar: all layers, one size, and a term that compresses.

    With :math:`c(X) = \mathrm{MSE}(X^d, P) + T\,\mathrm{KL}(P \| X^d)` and :math:`P` of :func:`principal`,

    .. math:: \ell(X_N) + \ell(X_N^d) + c(X_N) + \frac1{N-1}\sum_{n=0}^{N-2} \frac{\ell(X_n^d) + c(X_n)}{1 + \ln(1 + n)}.

    That is the authors' code, whose layer 0 is the embedding and which leaves out layer N - 1. ``compress_weight=0`` leaves c out.

    Raises:
        ValueError: a size outside 1 to D, a temperature of 0 or less, or fewer than two layers.
    """
    layers, width = _check_columns(columns)
    check_sizes((size,), width)
    if layers < 2:
        raise ValueError(f"at least 2 layers are needed, got {layers}")

    def narrow(n: int) -> Tensor:
        value = loss(*(exits[n][:, :size] for exits in columns))
        if not compress_weight:
            return value
        rows = torch.cat([exits[n] for exits in columns])
        target = principal(rows, size)
        return value + compress_weight * (F.mse_loss(rows[:, :size], target) + temperature * alignment(rows[:, :size], target, temperature))

    value = loss(*(exits[-1] for exits in columns)) + narrow(layers)
    shallow = torch.stack([WEIGHTS["log"](n) * narrow(n) for n in range(layers - 1)])
    return value + shallow.sum() / (layers - 1)


def cosent_loss(first: Tensor, second: Tensor, scores: Tensor, *, scale: float = 20.0, similarity: Literal["cosine", "angle"] = "cosine") -> Tensor:
    r"""Loss of graded pairs: :math:`\log(1 + \sum_{y_i > y_j} e^{\,\mathrm{scale}\,(s_j - s_i)})`, a scalar.

    ``angle`` takes both vectors as complex numbers and compares by the angle of their quotient: the loss that gave AnglE its name.

    Args:
        first: (B, d); d even for ``angle``.
        second: (B, d).
        scores: (B,), how alike the pairs are.
        scale: of the similarities.
        similarity: cosine or angle.

    Raises:
        ValueError: shapes that do not fit, an unknown similarity, or fewer than two pairs.
    """
    if first.shape != second.shape or first.dim() != 2 or scores.shape != first.shape[:1]:
        raise ValueError(f"first and second must be (B, d) and scores (B,), got {tuple(first.shape)}, {tuple(second.shape)}, {tuple(scores.shape)}")
    if len(scores) < 2:
        raise ValueError(f"at least two pairs are needed, got {len(scores)}")
    if similarity == "cosine":
        s = F.cosine_similarity(first, second)
    elif similarity == "angle":
        if first.shape[1] % 2:
            raise ValueError(f"the angle needs an even size, got {first.shape[1]}")
        (a, b), (c, d) = first.chunk(2, 1), second.chunk(2, 1)
        # the quotient (a + ib) / (c + id), both brought to length 1; the sum of its real and imaginary parts
        s = ((a * c + b * d + b * c - a * d).sum(1) / (first.norm(dim=1) * second.norm(dim=1))).abs()
    else:
        raise ValueError(f"similarity must be 'cosine' or 'angle', got {similarity!r}")
    s = scale * s
    difference: Tensor = (s[None, :] - s[:, None])[scores[:, None] > scores[None, :]]
    return torch.logsumexp(torch.cat([difference.new_zeros(1), difference]), 0)


class ElasticEncoder(nn.Module):
    """An encoder that can stop after any layer, and whose vectors can be cut.

    Args:
        body: tokens to states: :class:`~mtlearn.layers.text_encoders.TokenEncoder` or :class:`~mtlearn.layers.pretrained.PretrainedBody`.
        pooling: ``mean`` of the states, or the ``first`` ([CLS]).
    """

    def __init__(self, body: Body, pooling: Pooling = "mean") -> None:
        super().__init__()
        self.body, self.pooling = body, pooling
        _layers(body)

    @property
    def layers(self) -> int:
        """Number of layers N."""
        return len(_layers(self.body))

    @property
    def width(self) -> int:
        """Numbers of a vector, D."""
        return self.body.width

    def exits(self, tokens: Tensor) -> Tensor:
        """Tokens (n, length) to the pooled output of the embedding and of each layer, (N + 1, n, D), not normalised.

        Where layers normalise first, the last normalisation of the body follows every exit: without it their scales would differ.

        Raises:
            ValueError: a row of padding alone, which has nothing to pool.
        """
        there = tokens != self.body.padding
        if not (full := there.any(1)).all():
            raise ValueError(f"row {int((~full).nonzero()[0])} has no token but padding; every text needs at least one")
        states = self.body.states(tokens)
        norm = _norm(self.body)
        states = (*(norm(state) for state in states[:-1]), states[-1])  # the body has normalised its last
        return torch.stack([pool(state, there, self.pooling) for state in states])

    def truncated(self, layer: int) -> "ElasticEncoder":
        """An encoder of the first ``layer`` layers, which shares its weights with this one; its last exit is this one's exit ``layer``.

        Raises:
            ValueError: a layer outside 1 to N.
        """
        if not 1 <= layer <= self.layers:
            raise ValueError(f"layer must be between 1 and {self.layers}, got {layer}")
        shared = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        found = copy.deepcopy(self, shared)
        del _layers(found.body)[layer:]
        return found

    def forward(self, tokens: Tensor, size: int | None = None) -> Tensor:
        """Vectors (n, d) of length 1 of the last layer, cut to ``size``.

        Raises:
            ValueError: a size outside 1 to D, a row of padding alone.
        """
        return sliced(self.exits(tokens)[-1], self.width if size is None else size)


def _layers(body: Any) -> nn.ModuleList:
    """The body's stack of layers."""
    if hasattr(body, "transformer"):
        found = body.transformer.layers
    else:
        model = body.model
        found = getattr(getattr(model, "encoder", model), "layer", None)
    if not isinstance(found, nn.ModuleList):
        raise ValueError(f"{type(body).__name__} has no list of layers that could be cut: a TokenEncoder or a BERT of transformers is wanted")
    return found


def _norm(body: Any) -> nn.Module:
    """The normalisation that follows the body's last layer, the identity in a BERT."""
    return body.transformer.norm if hasattr(body, "transformer") else nn.Identity()
