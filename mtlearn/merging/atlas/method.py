r"""Knowledge Composition using Task Vectors with Learned Anisotropic Scaling (aTLAS).

Frederic Z. Zhang, Paul Albert, Cristian Rodriguez-Opazo, Anton van den Hengel, Ehsan Abbasnejad. NeurIPS 2024. arXiv 2407.02880.

Idea. A task vector :math:`\tau_i = \theta_i - \theta_0` is usually scaled by one number. But a model is made of *parameter blocks* (every weight
matrix, every bias, every gain is one), and they do not all matter alike. So each block j of each vector i gets a coefficient of its own, and all
coefficients are learned by gradient descent on a little data, from zero, which is exactly the pre-trained model:

.. math:: \theta^{(j)} = \theta_0^{(j)} + \sum_{i=1}^n \lambda_i^{(j)} \tau_i^{(j)}
          = \theta_0^{(j)} + [\tau_1^{(j)}, \dots, \tau_n^{(j)}]\,[\lambda_1^{(j)}, \dots, \lambda_n^{(j)}]^\top .

On the right one sees what it is: training in a space of low *intrinsic dimension*, :math:`\theta = \theta_0 + P\hat\theta`, in which the columns of P
are task vectors instead of random directions. :class:`~mtlearn.merging.composition.Composition` holds this equation (``per="block"``); with
``per="task"`` it is the isotropic variant. Here is what the paper adds to it:

- :class:`PartitionedComposition`, aTLAS x K: a block's entries are split at random into K parts, each with its own coefficient;
- :class:`LinearisedComposition`: the same in the tangent space,
  :math:`g(x; \theta) = f(x; \theta_0) + (\theta - \theta_0)^\top \nabla_\theta f(x; \theta_0)`;
- :func:`information`, :math:`\partial L / \partial \lambda_i^{(j)} = \langle \nabla_{\theta^{(j)}} L, \tau_i^{(j)} \rangle`: what a block promises,
  for all blocks of all vectors from one backward pass; then :func:`select_blockwise` and its alternatives;
- :func:`negation_loss`, :math:`-L_{target} + L_{control}`: forget one task and keep another;
- :func:`few_shot_pool`: which vectors may be used when a task with few labels is learned, not its own;
- :func:`coefficient_penalty`, :math:`\tfrac12\, \mathrm{mean}_j \|\lambda^{(j)}\|_p`, the norm over the vectors;
- :func:`lora_vector`: a LoRA as a sparse task vector, :math:`\tau^{(j)} = B_j A_j` in the adapted matrices alone;
- :func:`random_bases`, the control: Gaussian directions in place of task vectors;
- :func:`disentanglement_error`,
  :math:`\xi(\tau_1, \tau_2) = \Pr_{x \in D_1}[\hat y(x; \theta_0 + \Lambda_1 \tau_1) \ne \hat y(x; \theta_0 + \Lambda_1 \tau_1 + \Lambda_2 \tau_2)]`.

Learning without labels (contrastive, sharpness-aware entropy, pseudo-labels) is in :mod:`.adaptation`; the few-shot companions Tip-Adapter and LP++
are in :mod:`.few_shot`; a real vision encoder comes in by :mod:`.clip`.

What differs. In the published code of aTLAS x K every block that is no matrix is dropped and blocks of one shape share their random parts; here all
blocks are kept, each with parts of its own, as the paper says. Scores of blocks are computed from the gradient with respect to the weights, so that
one vector at a time needs to be in memory. Refusing a leaked vector by its *content* is ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from mtlearn.merging.composition import Composition
from mtlearn.merging.task_vectors import State, check_share, check_vectors, cosine, floating, norm

# --------------------------------------------------------------------------------------------------------------------------- compositions


class PartitionedComposition(Composition):
    """aTLAS x K: ``θ^(j) = θ_0^(j) + Σ_i Σ_k λ_ik^(j) (M_k^(j) ⊙ τ_i^(j))`` with random disjoint masks ``M_1..M_K`` for each block.

    Args:
        model: the architecture with the base weights; it is not changed.
        vectors: n task vectors.
        partitions: K, from 1 (one coefficient a block) to the size of the smallest block.
        generator: draws the part of each entry, on the CPU.
        initial: what the coefficients start from.

    Attributes:
        coefficients: (n, m, K).

    Raises:
        ValueError: K is out of range, or what :class:`Composition` refuses.
    """

    def __init__(
        self, model: nn.Module, vectors: Sequence[State], partitions: int, *, generator: torch.Generator | None = None, initial: float = 0.0
    ) -> None:
        super().__init__(model, vectors, per="block", initial=initial)
        smallest = min(self._vectors, key=lambda name: self._vectors[name].shape[1])
        size = self._vectors[smallest].shape[1]
        if not 1 <= partitions <= size:
            raise ValueError(f"partitions must be between 1 and {size}, the size of the smallest block ({smallest!r}), got {partitions}")
        self.partitions = partitions
        device = self.coefficients.device
        self.coefficients = nn.Parameter(self.coefficients.detach()[..., None].repeat(1, 1, partitions))
        # a part number for each entry: the K masks, without their zeros
        self._parts = {name: torch.randint(partitions, (rows.shape[1],), generator=generator).to(device) for name, rows in self._vectors.items()}

    def masks(self, block: str) -> Tensor:
        """(K, *the block's shape) of 0 and 1: at each entry they sum to 1."""
        number = torch.arange(self.partitions, device=self._parts[block].device)
        return (self._parts[block] == number[:, None]).float().view(-1, *self._base[block].shape)

    def by_block(self) -> Tensor:
        """(n, m): the mean coefficient of each block."""
        return self.coefficients.mean(-1)

    def displacement(self) -> dict[str, Tensor]:
        """``Σ_i Σ_k λ_ik M_k ⊙ τ_i`` by name."""
        return {
            name: (self.coefficients[:, j].index_select(1, self._parts[name]) * rows).sum(0).view_as(self._base[name])  # (n, size) to (size,)
            for j, (name, rows) in enumerate(self.vectors().items())
        }


def linearised(model: nn.Module, displacement: State, *inputs: Any) -> tuple[Tensor, Tensor]:
    """``f(x; θ_0)`` and ``(θ - θ_0)ᵀ ∇_θ f(x; θ_0)`` by one Jacobian-vector product.

    Args:
        model: at θ_0.
        displacement: ``θ - θ_0`` of some entries of the model; the others stay.
        inputs: of the model.
    """
    state = {name: value.detach() for name, value in (*model.named_parameters(), *model.named_buffers())}
    moved = {name: state[name] for name in displacement}
    result: Any = jvp(lambda weights: functional_call(model, {**state, **weights}, inputs), (moved,), (dict(displacement),))
    out, change = result
    return out, change


class LinearisedComposition(Composition):
    """aTLAS in the tangent space of the base: an affine function of its coefficients. Its vectors are those of :class:`LinearisedModel`."""

    def forward(self, *inputs: Any) -> Tensor:
        """``f(x; θ_0) + (Σ_i Λ_i τ_i)ᵀ ∇_θ f(x; θ_0)``."""
        out, change = linearised(self._model[0], self.displacement(), *inputs)
        return out + change


class LinearisedModel(nn.Module):
    """``g(x; θ) = f(x; θ_0) + (θ - θ_0)ᵀ ∇_θ f(x; θ_0)`` as a model to fine-tune; its parameters are ``θ - θ_0``, from zero."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = [model]  # in a list: θ_0 does not learn
        self._names = tuple(name for name, _ in model.named_parameters())
        self.moved = nn.ParameterList(torch.zeros_like(value) for _, value in model.named_parameters())

    def vector(self) -> dict[str, Tensor]:
        """Copies of ``θ - θ_0`` by name: the task vector of the linearised model."""
        return {name: value.detach().clone() for name, value in zip(self._names, self.moved, strict=True)}

    def forward(self, *inputs: Any) -> Tensor:
        """``g(x; θ)``."""
        out, change = linearised(self._model[0], dict(zip(self._names, self.moved, strict=True)), *inputs)
        return out + change


# ---------------------------------------------------------------------------------------------------------------- which blocks to keep


def information(gradient: State, vectors: Sequence[State]) -> Tensor:
    """``∂L/∂λ_i^(j) = ⟨∇_{θ^(j)} L, τ_i^(j)⟩`` at λ = 0, for every block of every vector, from the gradient of one backward pass of the base.

    Args:
        gradient: name to ``∇_{θ^(j)} L`` at θ_0.
        vectors: n task vectors; their blocks are the columns of the result.

    Returns:
        (n, m).

    Raises:
        ValueError: the vectors differ, or a block has no gradient or one of another shape.
    """
    check_vectors(vectors)
    for name, value in vectors[0].items():
        if name not in gradient or gradient[name].shape != value.shape:
            found = f"one of shape {tuple(gradient[name].shape)}" if name in gradient else "none"
            raise ValueError(f"the block {name!r} of shape {tuple(value.shape)} needs a gradient of the same shape, got {found}")
    rows = [torch.stack([torch.vdot(gradient[name].flatten(), value.flatten()) for name, value in vector.items()]) for vector in vectors]
    return torch.stack(rows)


def select_blockwise(scores: Tensor, budget: int) -> Tensor:
    """For each block the ``budget`` vectors with the largest ``|∂L/∂λ|``, best first; blocks of different vectors are mixed.

    Args:
        scores: (n, m) of :func:`information`.
        budget: b, 1 to n.

    Returns:
        (b, m) numbers of vectors.
    """
    _check_budget(scores, budget)
    return scores.abs().topk(budget, 0).indices


def select_vectors(scores: Tensor, budget: int) -> Tensor:
    """The ``budget`` whole vectors with the largest L1 norm of their scores: (b, m) numbers of vectors, a row each."""
    _check_budget(scores, budget)
    best = scores.abs().sum(1).topk(budget).indices
    return best[:, None].expand(-1, scores.shape[1])


def select_randomly(scores: Tensor, budget: int, *, generator: torch.Generator | None = None) -> Tensor:
    """For each block ``budget`` different vectors, drawn evenly: (b, m)."""
    _check_budget(scores, budget)
    return torch.rand(scores.shape, generator=generator).to(scores.device).topk(budget, 0).indices


def select_by_features(target: Tensor, sources: Tensor, budget: int, *, blocks: int) -> Tensor:
    """The ``budget`` whole vectors whose tasks have the nearest mean image feature, by cosine: (b, m).

    Args:
        target: (d,) mean feature of the target's images, by the base model.
        sources: (n, d) mean features of the images of the vectors' tasks.
        budget: b, 1 to n.
        blocks: m.
    """
    _check_budget(sources, budget)
    likeness = torch.cosine_similarity(sources, target[None], dim=1)
    return likeness.topk(budget).indices[:, None].expand(-1, blocks)


def mix(vectors: Sequence[State], chosen: Tensor) -> list[dict[str, Tensor]]:
    """``b`` vectors put together from blocks: block j of vector r is block j of ``vectors[chosen[r, j]]``.

    Args:
        vectors: n task vectors with m blocks.
        chosen: (b, m) numbers of vectors.

    Raises:
        ValueError: ``chosen`` does not fit the vectors.
    """
    check_vectors(vectors)
    names = list(vectors[0])
    if chosen.dim() != 2 or chosen.shape[1] != len(names):
        raise ValueError(f"chosen must be (budget, {len(names)}), a vector for each block, got {tuple(chosen.shape)}")
    if chosen.min() < 0 or chosen.max() >= len(vectors):
        raise ValueError(f"chosen names vectors {chosen.min().item()} to {chosen.max().item()}; there are 0 to {len(vectors) - 1}")
    return [{name: vectors[number][name] for name, number in zip(names, row, strict=True)} for row in chosen.tolist()]


def _check_budget(rows: Tensor, budget: int) -> None:
    if not 1 <= budget <= len(rows):
        raise ValueError(f"budget must be between 1 and the number of task vectors, {len(rows)}, got {budget}")


# -------------------------------------------------------------------------------------------------------------------------- objectives


def coefficient_penalty(coefficients: Tensor, p: int = 1) -> Tensor:
    """``0.5 · mean_j ‖λ^(j)‖_p``, the norm over the vectors.

    Args:
        coefficients: (n, m) or (n, m, K).
        p: 1 or 2.
    """
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, got {p}")
    if coefficients.dim() < 2:
        raise ValueError(f"the penalty is for coefficients (vectors, blocks), got shape {tuple(coefficients.shape)}")
    norms: Tensor = torch.linalg.vector_norm(coefficients, ord=p, dim=0)
    return 0.5 * norms.mean()


def negation_loss(target: Tensor, control: Tensor | None) -> Tensor:
    """``-L_target + L_control``: up on the task to forget, down on the one to keep.

    Raises:
        ValueError: there is no control loss. Without it the descent would simply break the model.
    """
    if control is None:
        raise ValueError("negation needs a control set: without one the loss is lowest for a model that knows nothing at all")
    return control - target


def kept_step(target: Sequence[float], control: Sequence[float], zero_shot: float, *, threshold: float = 0.95) -> int | None:
    """When to stop forgetting: of the steps whose control accuracy is at least ``threshold · zero_shot``, the one with the lowest target accuracy.

    Args:
        target: validation accuracy on the task to forget after each step.
        control: on the task to keep.
        zero_shot: control accuracy of the base.
        threshold: in (0, 1].

    Returns:
        The number of the step, the first of equal ones; None where none keeps enough.
    """
    check_share("threshold", threshold)
    if len(target) != len(control):
        raise ValueError(f"target and control must have one accuracy a step each, got {len(target)} and {len(control)}")
    allowed = [step for step, value in enumerate(control) if value >= threshold * zero_shot]
    return min(allowed, key=lambda step: target[step], default=None)


# ------------------------------------------------------------------------------------------------------- where the vectors come from


def few_shot_pool(pool: Mapping[str, State], target: str, own: State | None = None) -> dict[str, State]:
    """The pool for a target task, checked: a vector that was trained on the target would carry its labels into a test of learning without them.

    Args:
        pool: name of a task to its vector.
        target: name of the task to be learned.
        own: the target's own vector, where it is known: then the pool is searched for it under other names too.

    Returns:
        A copy of the pool.

    Raises:
        ValueError: the pool is empty, or the target's own vector (or a multiple of it) is in it.
    """
    if not pool:
        raise ValueError("the pool has no task vector; at least one is needed")
    leaked = [name for name in pool if name == target]
    if own is not None and norm(own) > 0:
        leaked += [name for name, vector in pool.items() if name != target and norm(vector) > 0 and abs(cosine(vector, own)) > 1 - 1e-6]
    if leaked:
        raise ValueError(
            f"the pool holds {leaked[0]!r}, a vector trained on the target {target!r} itself: leave it out, it leaks the target's labels"
        )
    return dict(pool)


def lora_vector(factors: State, scale: float = 1.0, *, base: State | None = None) -> dict[str, Tensor]:
    """A LoRA as a sparse task vector: ``<layer>.weight`` to ``scale · B A`` for every adapted layer, and no other block.

    Args:
        factors: ``<layer>.lora_A`` (rank, in) and ``<layer>.lora_B`` (out, rank), as ``layers.lora.lora_state`` gives them.
        scale: α/r of the adapter.
        base: the adapted model's state, where convolutions are among the layers: their products get the shape that the weight has there.

    Raises:
        ValueError: a factor has no partner, or the two do not fit.
    """
    layers = list(dict.fromkeys(name.rpartition(".lora_")[0] for name in factors if name.endswith((".lora_A", ".lora_B"))))
    if not layers:
        raise ValueError("there is no factor named <layer>.lora_A or <layer>.lora_B")
    vector = {}
    for layer in layers:
        for part in ("lora_A", "lora_B"):
            if f"{layer}.{part}" not in factors:
                raise ValueError(f"the factor '{layer}.{part}' is missing")
        down, up = factors[f"{layer}.lora_A"], factors[f"{layer}.lora_B"]
        if down.dim() != 2 or up.dim() != 2 or up.shape[1] != down.shape[0]:
            raise ValueError(f"the factors of {layer!r} must be (out, rank) and (rank, in), got {tuple(up.shape)} and {tuple(down.shape)}")
        change = scale * up @ down
        vector[f"{layer}.weight"] = change if base is None else change.reshape(base[f"{layer}.weight"].shape)
    return vector


def random_bases(base: State, count: int, *, matching: State | None = None, generator: torch.Generator | None = None) -> list[dict[str, Tensor]]:
    """Directions that know nothing, in place of task vectors: each block is Gaussian with the mean and standard deviation of ``θ_0^(j)``.

    Args:
        base: ``θ_0``.
        count: how many.
        matching: a task vector; each block is then rescaled to the length of its block.
        generator: of the draws, on the CPU.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    found = []
    for _ in range(count):
        vector = {}
        for name in floating(base):
            value = base[name]
            drawn = value.mean() + value.std(unbiased=False) * torch.randn(value.shape, generator=generator, dtype=value.dtype).to(value.device)
            if matching is not None:
                drawn = drawn * (matching[name].norm() / drawn.norm().clamp(min=torch.finfo(drawn.dtype).tiny))
            vector[name] = drawn
        found.append(vector)
    return found


def disentanglement_error(alone: Tensor, both: Tensor) -> Tensor:
    """``ξ``: the share of inputs of task 1 whose prediction changes when the second vector is added.

    Args:
        alone: (n, C) logits at ``θ_0 + Λ_1 τ_1`` for inputs of task 1.
        both: (n, C) logits at ``θ_0 + Λ_1 τ_1 + Λ_2 τ_2`` for the same inputs.

    Returns:
        A scalar in [0, 1].
    """
    if alone.shape != both.shape or not len(alone):
        raise ValueError(f"both must be logits (n, C) of the same n > 0 inputs, got {tuple(alone.shape)} and {tuple(both.shape)}")
    return (alone.argmax(-1) != both.argmax(-1)).float().mean()
