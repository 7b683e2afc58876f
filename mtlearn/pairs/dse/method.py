r"""Distilled Sentence Embedding (Barkan and others, AAAI 2020).

Oren Barkan, Noam Razin, Itzik Malkiel, Ori Katz, Avi Caciularu, Noam Koenigstein: Scalable Attentive Sentence-Pair Modeling via Distilled Sentence
Embedding. https://arxiv.org/abs/1908.05161

**Idea.** A model that reads two sentences together (the *teacher*) scores :math:`Q` queries against :math:`M` candidates in :math:`Q M` passes.
Train a *student* that embeds each sentence alone to give the teacher's scores: :math:`Q + M` passes, and what is left for a pair is a small head.

**Embedding** :math:`\psi`, shared by both sentences. The states of the last layers side by side, averaged over the tokens
(:func:`pool_top`)::

    states of the top 4 layers   (batch, length, 4 H)   without the [CLS] position   ->   mean over tokens   (batch, 4 H)

**Pair head.** With :math:`u = \psi(a)` and :math:`v = \psi(b)`,

.. math:: \phi(u, v) = [u,\ v,\ u \odot v,\ |u - v|], \qquad s = W_2\, \mathrm{relu}(W_1 \phi(u, v) + b_1) + b_2

It is not symmetric, because of :math:`[u, v]`. The inner product is the other head (``dot``).

**Loss.** With the teacher's stored logits :math:`t` and a weight :math:`\alpha`,

.. math:: L = (1 - \alpha)\, L_{task}(s, y) + \alpha\, \frac1B \sum_b \|s_b - t_b\|_2^2

:math:`L_{task}` is cross-entropy, or the squared error where the label is a number. For two classes there is one logit, the teacher's of class
1 less that of class 0 (:func:`binary_target`). The distance is taken on raw logits, so a teacher that is very sure outweighs all others:
:func:`rescaled` brings them to a moderate spread.

**Ranking with a cache.** The first layer of the head splits,
:math:`W_1 \phi = W_u u + W_v v + W_p (u \odot v) + W_d |u - v|`: the first two are computed once for each sentence, and for one query
:math:`W_p (u \odot v) = (W_p\, \mathrm{diag}\, u)\, v` is one matrix product over all candidates. Only :math:`|u - v|` is formed for each pair.

**What differs from the paper.** The official code sets :math:`\alpha = 0` where the logits are missing; here that is an error, as are logits of
another list of pairs (:class:`StoredLogits` keeps a hash of it). Maximum pooling leaves its input as it is. Which :math:`\alpha` the paper's tables
used could not be verified; the code's default is 0.5, the abstract describes :math:`\alpha = 1`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.text_encoders import Body

Pooler = Literal["mean", "root", "max", "layers"]
Head = Literal["concat", "dot"]
Task = Literal["binary", "classes", "regression"]
CHUNK = 1 << 22  # numbers of |u - v| that ranking holds at once


def pool_top(states: Sequence[Tensor], mask: Tensor, *, top: int = 4, class_token: bool = True, pooler: Pooler = "mean") -> Tensor:
    """One vector of each sentence from the states of its last layers.

    Args:
        states: of all layers, (n, length, H) each.
        mask: (n, length) bool, False for padding.
        top: how many of the last layers.
        class_token: the first token is [CLS] and left out; the final [SEP] stays in.
        pooler: ``mean`` and ``max`` over tokens of the layers side by side, (n, top * H); ``root`` divides the sum by the root of the
            number of tokens; ``layers`` averages over tokens and layers, (n, H).

    Raises:
        ValueError: more layers than there are, an unknown pooler, or a sentence with nothing left.
    """
    if not 1 <= top <= len(states):
        raise ValueError(f"top must be between 1 and the {len(states)} layers, got {top}")
    if pooler not in get_args(Pooler):
        raise ValueError(f"pooler must be one of {', '.join(get_args(Pooler))}, got {pooler!r}")
    first = 1 if class_token else 0
    there = mask[:, first:, None]  # (n, length, 1)
    count = there.sum(1)
    if not (count > 0).all():
        raise ValueError(f"sentence {int((count == 0).nonzero()[0, 0])} has no tokens{' beside [CLS]' if class_token else ''}")
    chosen = list(states[-top:])
    if pooler == "layers":
        joined = torch.stack(chosen).mean(0)[:, first:]
    else:
        joined = torch.cat(chosen, -1)[:, first:]  # (n, length, top * H)
    if pooler == "max":
        return joined.masked_fill(~there, -torch.inf).amax(1)
    total = (joined * there).sum(1)
    return total / (count.sqrt() if pooler == "root" else count)


class SentenceEmbedder(nn.Module):
    """The embedding ψ: a body and its pooler.

    Args:
        body: tokens (n, length) to the states of all layers.
        width: of the pooled vector, ``top`` times the body's width (once for the pooler ``layers``); worked out when omitted.
        top: how many of the last layers.
        class_token: sentences begin with [CLS].
        pooler: see :func:`pool_top`.
        reduce: numbers of the vector after a last linear map; none when omitted.
    """

    def __init__(self, body: Body, *, top: int = 4, class_token: bool = True, pooler: Pooler = "mean", reduce: int | None = None) -> None:
        super().__init__()
        if pooler not in get_args(Pooler):
            raise ValueError(f"pooler must be one of {', '.join(get_args(Pooler))}, got {pooler!r}")
        self.body, self.top, self.class_token, self.pooler = body, top, class_token, pooler
        pooled = body.width * (1 if pooler == "layers" else top)
        self.reduce: nn.Module = nn.Identity() if reduce is None else nn.Linear(pooled, reduce)
        self.width = pooled if reduce is None else reduce

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, length) to vectors (n, width)."""
        vectors = pool_top(self.body.states(tokens), tokens != self.body.padding, top=self.top, class_token=self.class_token, pooler=self.pooler)
        found: Tensor = self.reduce(vectors)
        return found


def pair_features(u: Tensor, v: Tensor) -> Tensor:
    """φ(u, v) = [u, v, u * v, |u - v|], (n, 4 d) of vectors (n, d)."""
    return torch.cat([u, v, u * v, (u - v).abs()], -1)


class PairHead(nn.Module):
    """Scores two vectors.

    Args:
        width: of a vector.
        hidden: units of the perceptron.
        outputs: logits of a pair; 1 for two classes and for regression.
        kind: ``concat`` is a perceptron on φ(u, v), ``dot`` the inner product, which has no weights and one output.

    Raises:
        ValueError: an unknown kind, a size below 1, or ``dot`` with several outputs.
    """

    def __init__(self, width: int, hidden: int = 512, outputs: int = 1, kind: Head = "concat") -> None:
        super().__init__()
        if kind not in get_args(Head):
            raise ValueError(f"kind must be one of {', '.join(get_args(Head))}, got {kind!r}")
        if min(width, hidden, outputs) < 1 or (kind == "dot" and outputs > 1):
            raise ValueError(f"width, hidden and outputs must be at least 1, and outputs 1 for dot, got {width}, {hidden} and {outputs}")
        self.kind, self.width, self.outputs = kind, width, outputs
        if kind == "concat":
            self.first, self.second = nn.Linear(4 * width, hidden), nn.Linear(hidden, outputs)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """Vectors (n, width) to logits (n,), or (n, outputs) where there are several."""
        if self.kind == "dot":
            return (u * v).sum(-1)
        logits: Tensor = self.second(self.first(pair_features(u, v)).relu())
        return logits[..., 0] if self.outputs == 1 else logits

    def cache(self, candidates: Tensor) -> "Cache":
        """What can be computed of vectors (M, width) before a query comes: W_v v + b, and the weights in the layout that a query needs."""
        if self.kind == "dot":
            return Cache(candidates, candidates.new_zeros(len(candidates), 0))
        _, part_v, _, _ = self._parts()
        return Cache(candidates, F.linear(candidates, part_v, self.first.bias))

    def _parts(self) -> tuple[Tensor, ...]:
        """W_u, W_v, W_p, W_d, (hidden, width) each."""
        return torch.split(self.first.weight, self.width, 1)

    def rank(self, queries: Tensor, cache: "Cache") -> Tensor:
        """Logits (Q, M), or (Q, M, outputs), of every query vector (Q, width) with every cached candidate; equal to :meth:`forward` on all pairs."""
        if self.kind == "dot":
            return queries @ cache.vectors.T
        part_u, _, part_p, part_d = self._parts()
        v, own = cache.vectors, cache.projected
        rows = max(1, CHUNK // max(v.numel(), own.numel(), 1))
        found = []
        for u in torch.split(queries, rows):  # (q, width)
            hidden = own + F.linear(u, part_u)[:, None]  # (q, M, hidden)
            hidden = hidden + v @ (part_p * u[:, None]).mT  # W_p (u * v) = (W_p diag u) v
            hidden = hidden + (v - u[:, None]).abs() @ part_d.T
            found.append(self.second(hidden.relu()))
        logits = torch.cat(found)
        return logits[..., 0] if self.outputs == 1 else logits


@dataclass(frozen=True)
class Cache:
    """The candidates' side of the head.

    Attributes:
        vectors: (M, width), ψ of each candidate.
        projected: (M, hidden), W_v v + b; (M, 0) for the head ``dot``.
    """

    vectors: Tensor
    projected: Tensor


class DSE(nn.Module):
    """The student: an embedding of single sentences and a head for pairs.

    Args:
        embedder: ψ.
        hidden: units of the head.
        outputs: logits of a pair.
        head: ``concat`` or ``dot``.
    """

    def __init__(self, embedder: SentenceEmbedder, hidden: int = 512, outputs: int = 1, head: Head = "concat") -> None:
        super().__init__()
        self.embedder, self.head = embedder, PairHead(embedder.width, hidden, outputs, head)

    def embed(self, tokens: Tensor) -> Tensor:
        """ψ: tokens (n, length) to vectors (n, width)."""
        vectors: Tensor = self.embedder(tokens)
        return vectors

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Tokens (n, length) of two sentences each to logits (n,), or (n, outputs)."""
        if len(first) != len(second):
            raise ValueError(f"as many first as second sentences are needed, got {len(first)} and {len(second)}")
        logits: Tensor = self.head(self.embed(first), self.embed(second))
        return logits

    def index(self, tokens: Tensor) -> Cache:
        """Embed the candidates (M, length) once."""
        return self.head.cache(self.embed(tokens))

    def rank(self, queries: Tensor, index: Cache) -> Tensor:
        """Logits (Q, M) of queries, tokens (Q, length), with the candidates of an index."""
        return self.head.rank(self.embed(queries), index)


def binary_target(logits: Tensor) -> Tensor:
    """The teacher's logits (n, 2) as one (n,): that of class 1 less that of class 0, whose sigmoid is the probability of class 1."""
    if logits.dim() != 2 or logits.shape[1] != 2:
        raise ValueError(f"the teacher of a binary task must have logits (n, 2), got {tuple(logits.shape)}")
    return logits[:, 1] - logits[:, 0]


def rescaled(logits: Tensor, spread: float = 2.0) -> Tensor:
    """Logits of a saturated teacher scaled to a standard deviation of ``spread``; the ranking, and which class leads, stay.

    Raises:
        ValueError: ``spread`` is not positive, or all logits are equal.
    """
    deviation = float(logits.std())
    if not spread > 0 or not deviation > 0:
        raise ValueError(f"spread and the logits' standard deviation must be positive, got {spread} and {deviation}")
    return logits * (spread / deviation)


def dse_loss(scores: Tensor, labels: Tensor, teacher: Tensor | None, *, alpha: float = 0.5, task: Task = "binary") -> Tensor:
    """L = (1 - α) L_task + α L_dist.

    Args:
        scores: the student's (n,) for ``binary`` and ``regression``, (n, classes) for ``classes``.
        labels: (n,): 0 or 1, class numbers, or values.
        teacher: the teacher's, of the shape of ``scores``; needed where α is above 0.
        alpha: 0 is labels alone, 1 the teacher alone.
        task: what L_task is: binary cross-entropy, cross-entropy, or squared error.

    Raises:
        ValueError: α outside [0, 1], an unknown task, α above 0 without logits, logits of another shape or not finite.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if task not in get_args(Task):
        raise ValueError(f"task must be one of {', '.join(get_args(Task))}, got {task!r}")
    if alpha > 0 and teacher is None:
        raise ValueError(f"alpha = {alpha:g} needs the teacher's logits; without them alpha must be 0")
    loss = scores.new_zeros(())
    if alpha < 1:
        if task == "binary":
            own = F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype))
        elif task == "classes":
            own = F.cross_entropy(scores, labels)
        else:
            own = F.mse_loss(scores, labels.to(scores.dtype))
        loss = loss + (1 - alpha) * own
    if alpha > 0 and teacher is not None:
        if teacher.shape != scores.shape:
            raise ValueError(f"the teacher's logits must have the shape of the student's, {tuple(scores.shape)}, got {tuple(teacher.shape)}")
        if not teacher.isfinite().all():
            raise ValueError("the teacher's logits must be finite")
        loss = loss + alpha * (scores - teacher).square().flatten(1).sum(1).mean() if scores.dim() > 1 else loss + alpha * F.mse_loss(scores, teacher)
    return loss


@dataclass(frozen=True)
class StoredLogits:
    """A teacher's logits, with a hash of the pairs that they belong to.

    Attributes:
        logits: (n, ...) float.
        pairs: SHA-256 of the pairs, in their order.
    """

    logits: Tensor
    pairs: str

    @classmethod
    def of(cls, logits: Tensor, first: Tensor, second: Tensor) -> "StoredLogits":
        """Logits (n, ...) of the pairs of tokens (n, length).

        Raises:
            ValueError: not as many logits as pairs, or a logit is not finite.
        """
        if not len(logits) == len(first) == len(second):
            raise ValueError(f"as many logits as pairs are needed, got {len(logits)} logits, {len(first)} first and {len(second)} second sentences")
        if not logits.isfinite().all():
            raise ValueError(f"the logits of pair {int((~logits.isfinite()).nonzero()[0, 0])} are not finite")
        return cls(logits.detach(), hash_of(first, second))

    def of_pairs(self, first: Tensor, second: Tensor) -> Tensor:
        """The logits, where these are the pairs that they were made of; ValueError else."""
        if len(first) != len(self.logits) or hash_of(first, second) != self.pairs:
            raise ValueError(f"the {len(self.logits)} stored logits are not of these {len(first)} pairs, or not in this order")
        return self.logits

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_file({"logits": self.logits.contiguous()}, path, {"pairs": self.pairs})

    @classmethod
    def load(cls, path: Path) -> "StoredLogits":
        """Read what :meth:`save` wrote."""
        with safe_open(path, "pt") as file:
            return cls(file.get_tensor("logits"), file.metadata()["pairs"])


def hash_of(first: Tensor, second: Tensor) -> str:
    """SHA-256 of the pairs of tokens (n, length), in their order; padding (0) at the end of a row does not count."""
    digest = hashlib.sha256()
    for side in (first, second):
        for row in side.cpu().tolist():
            while row and row[-1] == 0:
                row.pop()
            digest.update(repr(row).encode())
    return digest.hexdigest()
