r"""ICM-LoRA (Shao and others, IJCAI 2025).

Yihua Shao, Minxi Yan, Yang Liu, Siyu Chen, Wenjie Chen, Xinwei Long, Ziyang Yan, Lei Li, Chenyu Zhang, Nicu Sebe, Hao Tang, Yan Wang, Hao Zhao,
Mengzhu Wang, Jingcai Guo: In-Context Meta LoRA Generation. https://arxiv.org/abs/2501.17635

**Idea.** Instead of storing one low-rank adapter (LoRA) a task, train one generator on the adapters of all tasks. It is a conditional variational
autoencoder: given a vector that describes a task it samples that task's adapter, which is merged into the frozen model, without any fine-tuning.

1. **Data.** Fine-tune an adapter for each task and keep the late checkpoints of its run (``vectors.Checkpoints``). A checkpoint's tensors are
   flattened and put one after the other, w of length P (``vectors.Layout``), and standardised tensor by tensor (``vectors.Statistics``),

   .. math:: \tilde w_{(l)} = (w_{(l)} - m_l) / s_l .

2. **Task vector.** Run the model on a few examples of the task, and average the last layer's hidden state at the last time step over them
   (:func:`in_context_task_vector`): c, of length d. What examples in the context tell about a task is all that the generator gets to know of it.

3. **CVAE.** An encoder gives :math:`\mu, \log\sigma^2` from w and c, a decoder gives :math:`\hat w` from z and c (:class:`ConvCVAE`), and both learn

   .. math:: L = \frac1{P'} \sum_p (\hat w_p - \tilde w_p)^2
      + \beta\, \mathrm{mean}_{batch} \Big[-\tfrac12 \sum_k (1 + \log\sigma_k^2 - \mu_k^2 - \sigma_k^2)\Big],
      \qquad z = \mu + \sigma \odot \epsilon .

   P' is P, padded with zeros so that the strided convolutions fit.

4. **Generate** (:func:`generate`): :math:`z \sim N(0, I)`, decode, cut to P, de-normalise, split, load, merge.

**What differs.** The mechanism and all sizes are from the authors' code; of the paper we had abstract and introduction. That code computes c with the
task's *own* adapter, which a new task does not have: here it is the base model's state. It de-normalises with the statistics of an existing
checkpoint of the task; here those are stored by name (``Statistics.own``), or one set serves all tasks (``Statistics.over``). Its script reads one
task vector a run; here a data set holds pairs of w and c. Its loss compares (batch, 1, P) with (batch, P), which by broadcasting sets every
reconstruction against every target (:func:`released_error`); ours refuses. Whitening the task vectors (:class:`Whitening`) and the small
:class:`MLPCVAE` are our choices for a few tasks of a small model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtlearn.merging.icm_lora.vectors import Statistics

CHANNELS = (8, 16, 32, 64, 128, 256, 256, 128, 64, 32, 16, 8)  # of the published encoder


# ---------------------------------------------------------------------------------------------------------------------- the task vector


def last_layer(model: nn.Module) -> nn.Module:
    """The last block of the deepest stack: the last member of the last ``ModuleList`` that is in no other, which in a decoder is its last layer."""
    stacks = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)}
    outer = [name for name in stacks if not any(name.startswith(f"{other}.") for other in stacks if other != name)]
    if not outer:
        raise ValueError(f"{type(model).__name__} has no stack of layers (nn.ModuleList); name the layer whose state is wanted")
    return stacks[outer[-1]][-1]


@torch.no_grad()
def in_context_task_vector(
    model: nn.Module, examples: Iterable[Any], *, layer: nn.Module | None = None, call: Callable[[Any], object] | None = None
) -> Tensor:
    """Mean hidden state of a layer at the last time step, over the examples of a task.

    Args:
        model: run as it is, in evaluation mode: the *base* model, for training and for new tasks alike.
        examples: what the model is called with, one by one: a tensor, or a mapping of arguments (a tokenizer's output). Each may be a batch.
        layer: its output is (batch, width), or (batch, time, width), alone or as the first of several; :func:`last_layer` when omitted.
        call: runs one example instead, ``lambda example: model.generate(**example)`` say. Then each forward pass counts, as published.

    Returns:
        (width,). The mean is over all rows of all passes, so it does not depend on the order of the examples. Where an example has an
        ``attention_mask`` (``decoder_attention_mask`` beside ``decoder_input_ids``) of the states' shape, its last time step is the last that the
        mask keeps.

    Raises:
        ValueError: no example, or a layer that does not run or does not put out hidden states.
    """
    states: list[Tensor] = []
    masks: list[Tensor | None] = [None]

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        hidden = output[0] if isinstance(output, (tuple, list)) else output
        if not isinstance(hidden, Tensor) or hidden.dim() not in (2, 3):
            got = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
            raise ValueError(f"the layer must put out states (batch, width) or (batch, time, width), got {got}")
        if hidden.dim() == 3:
            mask = masks[0]
            if mask is not None and mask.shape == hidden.shape[:2]:
                last = mask.shape[1] - 1 - mask.flip(1).long().argmax(1)
                hidden = hidden[torch.arange(len(hidden)), last]
            else:
                hidden = hidden[:, -1]
        states.append(hidden)  # (batch, width)

    handle = (last_layer(model) if layer is None else layer).register_forward_hook(keep)
    training = model.training
    model.eval()
    try:
        for example in examples:
            before = len(states)
            if isinstance(example, Mapping):
                masks[0] = example.get("decoder_attention_mask" if "decoder_input_ids" in example else "attention_mask")
            if call is not None:
                call(example)
            elif isinstance(example, Mapping):
                model(**example)
            else:
                model(example)
            if len(states) == before:
                raise ValueError("the layer did not run on an example: it must be a part of the model")
    finally:
        handle.remove()
        model.train(training)
    if not states:
        raise ValueError("a task vector needs at least one example, got none")
    return torch.cat(states).mean(0)


@dataclass(frozen=True)
class Whitening:
    """c to its coordinates on the first principal components of the seen tasks, each of variance 1.

    Attributes:
        mean: (d,) of the seen tasks.
        matrix: (d, components).
    """

    mean: Tensor
    matrix: Tensor

    @classmethod
    def fit(cls, vectors: Tensor, components: int) -> "Whitening":
        """Of the task vectors (T, d) of the seen tasks: afterwards these have mean 0 and covariance 1."""
        mean = vectors.mean(0)
        _, singular, axes = torch.linalg.svd(vectors - mean, full_matrices=False)
        usable = int((singular > 1e-5 * singular[0]).sum())
        if not 1 <= components <= usable:
            raise ValueError(
                f"components must be between 1 and {usable}, as many as {len(vectors)} task vectors of width {len(mean)} span, got {components}"
            )
        return cls(mean, axes[:components].T * (len(vectors) - 1) ** 0.5 / singular[:components])

    def __call__(self, vectors: Tensor) -> Tensor:
        """(..., d) to (..., components)."""
        return (vectors - self.mean) @ self.matrix


# ---------------------------------------------------------------------------------------------------------------------------- the CVAEs


class Posterior(NamedTuple):
    """Mean and log variance of z, each (batch, latent)."""

    mean: Tensor
    log_variance: Tensor


class Reconstruction(NamedTuple):
    """What the autoencoder puts out (batch, P'), and the posterior it came through."""

    vectors: Tensor
    posterior: Posterior


class CVAE(nn.Module, ABC):
    """What the two generators share: sizes, checks, and the step from posterior to z.

    Attributes:
        length: P' of the vectors.
        condition: numbers of c; 0 makes it a plain variational autoencoder.
        latent: numbers of z.
    """

    def __init__(self, length: int, condition: int, latent: int) -> None:
        super().__init__()
        if length < 1 or condition < 0 or latent < 1:
            raise ValueError(f"length and latent must be at least 1 and condition at least 0, got {length}, {latent} and {condition}")
        self.length, self.condition, self.latent = length, condition, latent

    @abstractmethod
    def posterior(self, w: Tensor, c: Tensor) -> Posterior:
        """The encoder, without checks."""

    @abstractmethod
    def decoded(self, z: Tensor, c: Tensor) -> Tensor:
        """The decoder, without checks."""

    def encode(self, w: Tensor, c: Tensor) -> Posterior:
        """Vectors (batch, P') and task vectors (batch, condition) to the posterior."""
        if w.dim() != 2 or w.shape[1] != self.length:
            raise ValueError(f"vectors must be (batch, {self.length}), padded, got {tuple(w.shape)}; pad(vectors, {self.length}) does it")
        self._check(c, len(w))
        if self.training and len(w) < 2 and any(isinstance(layer, nn.BatchNorm1d) for layer in self.modules()):
            raise ValueError("batch normalisation needs at least 2 vectors a batch in training, got 1")
        return self.posterior(w, c)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        """Latents z (batch, latent) and task vectors (batch, condition) to vectors (batch, P')."""
        if z.dim() != 2 or z.shape[1] != self.latent:
            raise ValueError(f"z must be (batch, {self.latent}), got {tuple(z.shape)}")
        self._check(c, len(z))
        return self.decoded(z, c)

    def forward(self, w: Tensor, c: Tensor, *, noise: float = 1.0, generator: torch.Generator | None = None) -> Reconstruction:
        """Encode, draw z = mu + noise * sigma * epsilon, decode; noise 0 makes it a plain autoencoder."""
        found = self.encode(w, c)
        z = found.mean
        if noise:
            z = z + noise * (0.5 * found.log_variance).exp() * torch.randn(z.shape, generator=generator).to(z)
        return Reconstruction(self.decode(z, c), found)

    def _check(self, c: Tensor, batch: int) -> None:
        if c.shape != (batch, self.condition):
            raise ValueError(f"the task vectors must be (batch, condition) = {(batch, self.condition)}, got {tuple(c.shape)}")


class ConvCVAE(CVAE):
    """The published generator: strided convolutions over the vector, of kernel 7, and c joined at the narrow place.

    Args:
        length: P'; a multiple of 2 ** len(channels).
        condition: numbers of c (768 of Florence-2).
        latent: numbers of z, and width of the layers around it.
        channels: of the encoder's blocks; the decoder mirrors them.
    """

    def __init__(self, length: int, condition: int, *, latent: int = 256, channels: Sequence[int] = CHANNELS) -> None:
        super().__init__(length, condition, latent)
        if not channels or length % 2 ** len(channels):
            nearest = -(-length // 2 ** len(channels)) * 2 ** len(channels)
            raise ValueError(
                f"length must be a multiple of {2 ** len(channels)} for {len(channels)} blocks that each halve it, got {length}; pad to {nearest}"
            )
        shapes = {"kernel_size": 7, "stride": 2, "padding": 3}
        down = [
            nn.Sequential(nn.Conv1d(a, b, **shapes), nn.BatchNorm1d(b), nn.LeakyReLU())  # type: ignore[arg-type]
            for a, b in pairwise((1, *channels))
        ]
        mirrored = tuple(reversed(channels))
        up = [
            nn.Sequential(nn.ConvTranspose1d(a, b, output_padding=1, **shapes), nn.BatchNorm1d(b), nn.ELU())  # type: ignore[arg-type]
            for a, b in (*pairwise(mirrored), (mirrored[-1], mirrored[-1]))
        ]
        narrow = length // 2 ** len(channels)
        self.start = (mirrored[0], narrow)
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(channels[-1] * narrow, latent))
        self.mean, self.log_variance = nn.Linear(latent + condition, latent), nn.Linear(latent + condition, latent)
        self.open = nn.Linear(latent + condition, prod(self.start))
        self.decoder = nn.Sequential(*up, nn.Conv1d(mirrored[-1], 1, 7, padding=3))

    def posterior(self, w: Tensor, c: Tensor) -> Posterior:
        """Blocks over (batch, 1, P'), then [features; c] to mean and log variance."""
        features = torch.cat([self.encoder(w[:, None]), c], 1)
        return Posterior(self.mean(features), self.log_variance(features))

    def decoded(self, z: Tensor, c: Tensor) -> Tensor:
        """[z; c] to (batch, channels, P' / 2^L), then blocks that double the length."""
        opened = self.open(torch.cat([z, c], 1)).view(len(z), *self.start)
        vectors: Tensor = self.decoder(opened)[:, 0]  # the one channel
        return vectors


class MLPCVAE(CVAE):
    """The small generator: one hidden layer on each side.

    Args:
        length: P'.
        condition: numbers of c.
        latent: numbers of z.
        hidden: units of the hidden layers.
    """

    def __init__(self, length: int, condition: int, *, latent: int = 16, hidden: int = 128) -> None:
        super().__init__(length, condition, latent)
        self.encoder = nn.Sequential(nn.Linear(length + condition, hidden), nn.ELU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent + condition, hidden), nn.ELU(), nn.Linear(hidden, length))

    def posterior(self, w: Tensor, c: Tensor) -> Posterior:
        """[w; c] to mean and log variance."""
        return Posterior(*self.encoder(torch.cat([w, c], 1)).chunk(2, 1))

    def decoded(self, z: Tensor, c: Tensor) -> Tensor:
        """[z; c] to the vector."""
        vectors: Tensor = self.decoder(torch.cat([z, c], 1))
        return vectors


# -------------------------------------------------------------------------------------------------------------------- loss, generation


def kl_nats(posterior: Posterior) -> Tensor:
    """Mean over the batch of the divergence of N(mu, sigma) from N(0, 1), summed over z: what z tells of w beyond c, in nats."""
    mean, log_variance = posterior
    return (-0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)).mean()


def cvae_loss(found: Reconstruction, targets: Tensor, kl_weight: float = 0.005) -> Tensor:
    """Mean squared error over all numbers, the padding included, plus the weighted divergence.

    Args:
        found: of ``model(targets, c)``.
        targets: (batch, P') normalised and padded.
        kl_weight: beta.

    Raises:
        ValueError: the shapes differ: broadcasting would compare every vector with every target.
    """
    if found.vectors.shape != targets.shape:
        raise ValueError(
            f"reconstructions {tuple(found.vectors.shape)} and targets {tuple(targets.shape)} must have one shape: broadcasting would compare "
            "every reconstruction with every target"
        )
    return (found.vectors - targets).square().mean() + kl_weight * kl_nats(found.posterior)


def released_error(vectors: Tensor, targets: Tensor) -> Tensor:
    """The squared error as released, of (batch, P) against (batch, 1, P): the mean over *all pairs* of a reconstruction and a target.

    Its optimum is the same vector for the whole batch, the mean of its targets. That is harmless where a batch holds one task.
    """
    return (vectors - targets[:, None]).square().mean()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def generate(
    model: CVAE, c: Tensor, statistics: Statistics, *, samples: int = 1, generator: torch.Generator | None = None, z: Tensor | None = None
) -> dict[str, Tensor]:
    """Adapters for task vectors.

    Args:
        model: trained.
        c: (condition,) of one task, or (T, condition).
        statistics: one set for all, to de-normalise with: ``stored.of(task)``, or global ones.
        samples: how many z are drawn for each task.
        generator: draws z from N(0, I).
        z: (samples, latent) for all tasks, or (T, samples, latent), to use instead.

    Returns:
        A state with tensors (samples, *shape), or (T, samples, *shape). ``load_lora`` takes one of them.
    """
    if statistics.mean.dim() != 1:
        raise ValueError("pick the statistics of one task with Statistics.of(name), or use one set for all (Statistics.over)")
    rows = c[None] if c.dim() == 1 else c  # (T, condition)
    drawn = torch.randn(len(rows), samples, model.latent, generator=generator) if z is None else z.expand(len(rows), -1, -1)
    with _evaluating(model):
        vectors = model.decode(drawn.flatten(0, 1).to(rows), rows.repeat_interleave(drawn.shape[1], 0))
    vectors = statistics.denormalise(vectors).view(len(rows), drawn.shape[1], -1)
    return statistics.layout.split(vectors[0] if c.dim() == 1 else vectors)


def storage(*, layout_size: int, generator_size: int, share: float = 1.0) -> float:
    """Number of tasks from which on a generator takes at most ``share`` of the room of all tasks' adapters: generator / (share * P)."""
    return generator_size / (share * layout_size)
