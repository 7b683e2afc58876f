r"""Mod-Squad at scale: train one mixture-of-experts vision transformer on data sets that each label one task, and take it apart afterwards.

Zitian Chen, Mingyu Ding, Yikang Shen, Wei Zhan, Masayoshi Tomizuka, Erik Learned-Miller, Chuang Gan, "An Efficient General-Purpose Modular Vision
Model via Multi-Task Heterogeneous Training", 2023, arXiv:2306.17165.

**Idea.** Images with labels of many tasks are rare; sets with one kind of label are many. So every image passes the shared backbone, but only the
routers and the head *of its own task*. In the backbone the networks are mixtures of experts, and one loss ties tasks to experts: it makes the
mutual information between "which task" and "which expert" large. Then each task uses a few experts, all experts are in use, and a task's experts
can be lifted out as a small model, trained on for a new task, or joined by new ones, while the others do not notice.

**Mixtures.** A router of task t, one matrix (``mixtures.TaskRouter``), sends a token x to the k best of E experts; gates are *not* renormalised:

.. math:: p = \mathrm{softmax}(x W_t), \qquad y = \sum_{e \in \mathrm{top}_k(p)} p_e\, \mathrm{Expert}_e(x)

An expert is a perceptron with one hidden layer (``mixtures.MoEMLP``), or an attention *head* with a query projection and an output projection of
its own; all heads share one key and one value projection (``mixtures.MoEAttention``).

**Mutual information** (:func:`information_loss`), a layer: from the full softmax, so that experts that were not chosen get gradient too,

.. math::
    P(t, e) = P(t)\, \mathrm{mean}_{x \in t}\, p_e(x), \qquad
    L_{MI} = -\sum_{t,e} P(t,e) \log \frac{P(t,e)}{P(t) P(e)} = -\big(H(E) - H(E \mid T)\big)

H(E) large: all experts are used. H(E | T) small: each task uses few. P(t) is the share of the tasks that one sets, not that of their tokens.

**Heterogeneous training** (:func:`heterogeneous_loss`): a step takes samples of every task, each from its own set; losses are weighted and summed
with the terms above, and the gradients of all tasks make one step.

**Four ways to use the modules.** *Extraction* (:func:`extract`): keep the experts that a task uses; the softmax keeps its denominator (the same
outputs where every chosen expert is kept), or forgets the dropped columns as the published code does (all gates of a token grow by one factor).
*Cheaper fine-tuning* and *continual learning* (:func:`add_task`): freeze everything and add a router and a head for the new task, with new experts
that old routers never see, fewer old experts, a smaller k. *Combination*: these are independent arguments of one call.

**What differs from the paper.** No code of this paper is public. Routers, mutual information, head-experts, extraction by usage and uncertainty
weighting follow the code of its predecessor (Mod-Squad, CVPR 2023, arXiv:2212.08066), whose 1e-4 inside the logarithms is an option (``epsilon``);
the abstract and what is recalled of the text give the rest: P(t) fixed to the share, and the start of new routers. Routers start with small noise:
with exactly zero all tasks agree, the gradient of the mutual information is exactly 0, and ``topk`` sends every token to the same k experts.
Retraining least-used experts works on copies, so that other tasks keep theirs. The published freezing sets a flag on modules, which does nothing;
here it is set on parameters. Plain ViT blocks stand for the hierarchical backbones, one linear head a task for the detection and segmentation
necks.
"""

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mtlearn.layers.experts import Routes, cv_squared, importance, joint_distribution, load, mutual_information, switch_loss, z_loss
from mtlearn.moe.mod_squad.mixtures import COMMON, Mixture, TaskRouter
from mtlearn.moe.mod_squad.model import Batch, Head, ModularTransformer, task_loss

# heterogeneous training


def sampling_share(sizes: Mapping[str, int], power: float = 0.5) -> dict[str, float]:
    """P(t) proportional to (size of the task's set)^power: 1 draws by size, 0 all tasks alike."""
    if not sizes or min(sizes.values()) < 1:
        raise ValueError(f"every task needs at least one sample, got {dict(sizes)}")
    weights = {task: size**power for task, size in sizes.items()}
    return {task: weight / sum(weights.values()) for task, weight in weights.items()}


def layer_joints(routes: Mapping[str, Sequence[Routes]], share: Mapping[str, float] | None = None, *, chosen: bool = False) -> list[Tensor]:
    """P(t, e), (tasks, E), of each layer.

    Args:
        routes: task to the routes of its samples, a layer each.
        share: P(t) of the tasks that there are, scaled to sum to 1; all alike when omitted. It does not follow from the tokens: a task with
            most of the tokens would otherwise be P(E) alone.
        chosen: of the experts that were visited, a token's k visits alike, instead of the full softmax.
    """
    tasks = list(routes)
    if not tasks:
        raise ValueError("mutual information needs the routes of at least one task")
    weights = torch.tensor([1.0 if share is None else share[task] for task in tasks])
    joints = []
    for layer in zip(*routes.values(), strict=True):
        if chosen:
            visits = torch.stack([load(part) / len(part.expert) for part in layer])
            joints.append(visits * (weights / weights.sum()).to(visits)[:, None])
            continue
        owner = torch.repeat_interleave(torch.arange(len(tasks)), torch.tensor([part.tokens for part in layer])).to(layer[0].token.device)
        probabilities = torch.cat([part.probabilities for part in layer])
        joints.append(joint_distribution(probabilities, owner, len(tasks), share=weights.to(probabilities)))
    return joints


def information_loss(joint: Tensor, *, epsilon: float = 0.0) -> Tensor:
    """L_MI = -I(T; E) of one layer's P(t, e) (tasks, E): from -min(log tasks, log E) to 0.

    Args:
        joint: non-negative, sums to 1.
        epsilon: 1e-4 for the predecessor's estimate, which adds it to both marginals and inside the logarithm: every value lies about 0.001 higher.
    """
    if epsilon == 0:
        return -mutual_information(joint)
    task, expert = joint.sum(1, keepdim=True) + epsilon, joint.sum(0, keepdim=True) + epsilon
    return -(joint * (joint / task / expert + epsilon).log()).sum()


class UncertaintyWeights(nn.Module):
    """Learned weights of the tasks' losses: sum over t of 0.5 / s_t^2 L_t + log(1 + s_t^2), s_t = 1 at the start."""

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.deviation = nn.ParameterDict({task: nn.Parameter(torch.ones(())) for task in tasks})

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the losses of the tasks that there are."""
        squares = {task: self.deviation[task].square() for task in losses}
        return torch.stack([0.5 / squares[task] * loss + torch.log1p(squares[task]) for task, loss in losses.items()]).sum()


@dataclass(frozen=True)
class LossWeights:
    """Weights of what is added to the tasks' losses, a layer each.

    Attributes:
        information: w, of the negative mutual information.
        cv: squared coefficient of variation of the experts' importance, over all tasks together (a common router's balance).
        switch, z: Switch and z-losses; 0 in the published models.
        epsilon: see :func:`information_loss`.
    """

    information: float = 0.0
    cv: float = 0.0
    switch: float = 0.0
    z: float = 0.0
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        if not all(weight >= 0 for weight in (self.information, self.cv, self.switch, self.z, self.epsilon)):
            raise ValueError(f"weights must be 0 or more, got {self}")


def routing_loss(routes: Mapping[str, Sequence[Routes]], weights: LossWeights, share: Mapping[str, float] | None = None) -> Tensor:
    """What the routes of all tasks add to the loss, summed over layers; 0 where there are none."""
    total = torch.zeros(())
    if weights.information:
        total = total + weights.information * sum(
            (information_loss(joint, epsilon=weights.epsilon) for joint in layer_joints(routes, share)), torch.zeros(())
        )
    for layer in zip(*routes.values(), strict=True):
        if weights.cv:
            total = total + weights.cv * cv_squared(torch.stack([importance(part) for part in layer]).sum(0))
        for part in layer:
            if weights.switch:
                total = total + weights.switch * switch_loss(part)
            if weights.z and part.logits is not None:
                total = total + weights.z * z_loss(part.logits)
    return total


def heterogeneous_loss(
    model: ModularTransformer,
    batches: Mapping[str, Batch],
    weights: LossWeights,
    *,
    share: Mapping[str, float] | None = None,
    uncertainty: UncertaintyWeights | None = None,
) -> Tensor:
    """The loss of one step: every task's batch through its own routers and head, one sum, so that one step takes all gradients.

    Args:
        model: of any shape.
        batches: task to images and labels, from its own set, with its own batch size; a task with an empty batch is left out.
        weights: of the losses on the routes.
        share: P(t), see :func:`layer_joints`.
        uncertainty: learned weights of the tasks; each counts 1 when omitted.
    """
    images = {task: batch[0] for task, batch in batches.items() if len(batch[0])}
    if not images:
        raise ValueError("every batch is empty: at least one task needs samples")
    outputs = model.forward_all(images)
    losses = {task: task_loss(model.tasks[task], output.prediction, batches[task][1]) for task, output in outputs.items()}
    total = torch.stack(list(losses.values())).sum() if uncertainty is None else uncertainty(losses)
    return total + routing_loss({task: output.routes for task, output in outputs.items()}, weights, share)


# usage


@torch.no_grad()
def usage_of(model: ModularTransformer, task: str, images: Tensor) -> list[Tensor]:
    """The share of a task's tokens that visit each expert, (E,) a layer; it sums to k. Take it from training inputs."""
    return [load(part) / part.tokens for part in model(images, task).routes]


class RunningUsage:
    """An exponential average of :func:`usage_of` over training batches, as the predecessor keeps it.

    Args:
        decay: weight of the past.
    """

    def __init__(self, decay: float = 0.95) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay, self.usage = decay, list[Tensor]()

    def update(self, routes: Sequence[Routes]) -> None:
        """Take in the routes of a batch of the task."""
        now = [load(part) / part.tokens for part in routes]
        self.usage = [self.decay * old + (1 - self.decay) * new for old, new in zip(self.usage, now, strict=True)] if self.usage else now


def most_used(usage: Sequence[Tensor], share: float) -> list[Tensor]:
    """The most used experts of each layer, ``share`` of them rounded down and at least 1: int64 numbers in ascending order."""
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    return [layer.topk(max(1, int(share * len(layer) + 1e-9))).indices.sort().values for layer in usage]


def above_threshold(usage: Sequence[Tensor], ks: Sequence[int], *, threshold: float = 3.0) -> list[Tensor]:
    """The experts that get more than ``threshold`` / k percent of a task's tokens, a layer each.

    Where fewer than k pass, the k most used are kept, with a warning.

    Args:
        usage: of :func:`usage_of` or :class:`RunningUsage`.
        ks: experts a token in each layer.
        threshold: 3 is the predecessor's.
    """
    kept = []
    for number, (layer, k) in enumerate(zip(usage, ks, strict=True)):
        found = (100 * layer > threshold / k).nonzero()[:, 0]
        if len(found) < k:
            warnings.warn(
                f"layer {number}: {len(found)} experts get more than {threshold / k:g} % of the tokens; the k={k} most used are kept", stacklevel=2
            )
            found = layer.topk(k).indices.sort().values
        kept.append(found)
    return kept


# four ways to use the modules


def extract(
    model: ModularTransformer, task: str, kept: Sequence[Tensor], *, denominator: Literal["original", "kept"] = "original", k: int | None = None
) -> ModularTransformer:
    """A task's sub-network as a model of its own: its router columns, its experts, its head, copies of all.

    Args:
        model: is not changed.
        task: whose.
        kept: the experts to keep, int64 numbers, a layer each.
        denominator: ``original``: gates stay those of the softmax over all columns, so outputs are the same where every chosen expert is kept;
            ``kept``: the columns of dropped experts go too, as in the predecessor, and all gates of a token grow by one factor.
        k: experts a token, where fewer are wanted; never more than are kept.

    Raises:
        ValueError: an unknown task or denominator, or kept experts that do not fit the layers.
    """
    if task not in model.tasks:
        raise ValueError(f"task must be one of {', '.join(model.tasks)}, got {task!r}")
    if denominator not in ("original", "kept"):
        raise ValueError(f"denominator must be 'original' or 'kept', got {denominator!r}")
    lifted = copy.deepcopy(model)
    lifted.tasks = {task: model.tasks[task]}
    for modules in (lifted.heads, lifted.task_vectors):
        for other in [name for name in modules if name != task]:
            del modules[other]
    mixtures = lifted.mixtures
    if len(kept) != len(mixtures):
        raise ValueError(f"kept must have one list of experts for each of the {len(mixtures)} mixtures, got {len(kept)}")
    for mixture, experts in zip(mixtures, kept, strict=True):
        router, total = mixture.router(task), len(mixture.bank)
        if len(experts) == 0 or int(experts.min()) < 0 or int(experts.max()) >= total:
            raise ValueError(f"kept experts must be at least one number between 0 and {total - 1}, got {experts.tolist()}")
        where = torch.full((total + 1,), -1)  # the last row is for columns that had lost their expert before: -1 stays -1
        where[experts] = torch.arange(len(experts))
        columns = where.to(router.experts.device)[router.experts]
        present = columns >= 0 if denominator == "kept" else torch.ones_like(columns, dtype=torch.bool)
        if not (columns >= 0).any():
            raise ValueError(f"the router of {task} can choose none of the experts {experts.tolist()}")
        fewer = min(k or router.k, router.k, int((columns >= 0).sum()))
        name = COMMON if model.common else task
        mixture.routers = nn.ModuleDict({name: TaskRouter(router.weight[:, present], columns[present], fewer)})
        mixture.bank = mixture.bank.subset(experts)
    return lifted.to(model.position.device)


Trained = Literal["head", "router", "experts", "all"]


def add_task(
    model: ModularTransformer,
    task: str,
    head: Head,
    *,
    like: str | Sequence[str] | None = None,
    new_experts: int = 0,
    retrain: int = 0,
    usage: Sequence[Tensor] | None = None,
    kept: Sequence[Tensor] | None = None,
    k: int | None = None,
    train: Trained = "experts",
) -> list[nn.Parameter]:
    """Add a task to a trained model, in place, and leave trainable only what the task is to learn. What old tasks compute does not change by a bit.

    The arguments are independent, so they combine: cheaper fine-tuning is ``train``, ``kept`` and ``k``; continual learning is ``new_experts``.

    Args:
        model: with a router a task.
        task: a new name.
        head: what it predicts.
        like: old tasks whose routers the new ones start as (the mean of several); None starts them at zero.
        new_experts: fresh experts for each mixture, which only this task's routers know.
        retrain: so many of the experts that the task's start uses least are copied for this task alone, to be trained; needs ``usage``.
        usage: of ``like``, see :func:`usage_of`.
        kept: old experts that the task may choose, a layer each; all when omitted.
        k: experts a token; as in ``like`` or the model's when omitted.
        train: ``head`` alone; ``router`` and head; ``experts``: routers, head and the new or retrained experts; ``all``: everything, old tasks will
            forget.

    Returns:
        The parameters that are to be trained.

    Raises:
        ValueError: a known task, an unknown one in ``like``, a k that is too large, one router for all tasks.
    """
    if task in model.tasks:
        raise ValueError(f"the task {task!r} is already known; tasks are {', '.join(model.tasks)}")
    if model.common or not model.mixtures:
        raise ValueError("a task can be added where every task has its own routers: build the model with common=False and dense=False")
    sources = [] if like is None else [like] if isinstance(like, str) else list(like)
    if unknown := [source for source in sources if source not in model.tasks]:
        raise ValueError(f"like must name tasks of {', '.join(model.tasks)}, got {unknown[0]!r}")
    if train not in ("head", "router", "experts", "all"):
        raise ValueError(f"train must be 'head', 'router', 'experts' or 'all', got {train!r}")
    if new_experts < 0 or retrain < 0 or (retrain and usage is None):
        raise ValueError(f"new_experts and retrain must be 0 or more, and retrain needs usage, got {new_experts}, {retrain}")
    freeze(model)
    device = model.position.device
    model.heads[task] = nn.Linear(model.shape.width, head.outputs(model.shape.patch)).to(device)
    model.tasks[task] = head
    if model.shape.task_embedding:
        model.task_vectors[task] = nn.Parameter(torch.zeros_like(model.position[: model.shape.depth].expand(model.shape.depth, -1)))
    trained: list[nn.Parameter] = [*model.heads[task].parameters()]
    for number, mixture in enumerate(model.mixtures):
        old = _choices(mixture, None if kept is None else kept[number])
        weight = torch.stack([_columns(mixture.router(source), old) for source in sources]).mean(0) if sources else None
        weight = model.position.new_zeros(model.shape.width, len(old)) if weight is None else weight
        added: list[Tensor] = []
        if retrain and usage is not None:
            least = usage[number][old].topk(min(retrain, len(old)), largest=False).indices
            added.append(len(mixture.bank) + torch.arange(len(least), device=device))
            mixture.bank.add(mixture.bank.rows(old[least]))
            old = old.index_copy(0, least, added[-1])
        if new_experts:
            fresh = len(mixture.bank) + torch.arange(new_experts, device=device)
            mixture.bank.add({name: value.to(device) for name, value in mixture.bank.fresh(new_experts).items()})
            weight = torch.cat([weight, weight.mean(1, keepdim=True).expand(-1, new_experts)], 1)  # as likely as an average expert
            old = torch.cat([old, fresh])
        wanted = k or (mixture.router(sources[0]).k if sources else next(iter(mixture.routers.values())).k)
        router = TaskRouter(weight, old, min(int(wanted), len(old)) if k is None else k)  # type: ignore[arg-type]
        mixture.routers[task] = router
        if train in ("router", "experts"):
            trained.append(router.weight)
        if train == "experts":
            generations = list(mixture.bank.generations)[len(mixture.bank.generations) - bool(retrain) - bool(new_experts) :]
            trained += [parameter for generation in generations for parameter in generation.parameters()]
    if model.shape.task_embedding and train != "head":
        trained.append(model.task_vectors[task])
    if train == "all":
        trained = list(model.parameters())
    freeze(model)
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained


def freeze(model: nn.Module) -> None:
    """Let no parameter of a model be trained. The flag belongs on parameters: on a module it does nothing."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def _choices(mixture: Mixture, kept: Tensor | None) -> Tensor:
    everyone = torch.arange(len(mixture.bank), device=mixture.bank.stacked(next(iter(mixture.bank.shapes))).device)
    if kept is None:
        return everyone
    if len(kept) == 0 or int(kept.min()) < 0 or int(kept.max()) >= len(everyone):
        raise ValueError(f"kept experts must be at least one number between 0 and {len(everyone) - 1}, got {kept.tolist()}")
    return everyone[kept]


def _columns(router: TaskRouter, experts: Tensor) -> Tensor:
    """A router's columns for some experts; the mean column for those it does not know: (width, experts)."""
    weight = router.weight.detach()
    known = router.experts[:, None] == experts  # (columns, experts)
    return torch.where(known.any(0), weight @ known.to(weight.dtype), weight.mean(1, keepdim=True))


def log_bound(tasks: int, num_experts: int, k: int | None = None) -> float:
    """The most that I(T; E) can be: log min(tasks, E); of the chosen experts, k different ones a token, also log(E / k)."""
    return math.log(min(tasks, num_experts) if k is None else min(tasks, num_experts / k))
