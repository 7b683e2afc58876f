"""Concrete: a mask sample beside torch.distributions, a step of mask training with one summed vector beside one masked vector a task."""

from collections.abc import Callable

import torch
from ratios import ratios
from torch import Tensor, nn
from torch.distributions import RelaxedBernoulli
from torch.func import functional_call

from mtlearn.merging.concrete.method import ConcreteMask, ConcreteMerging, summed_entropy

TASKS = 8


def encoder() -> nn.Module:
    """The encoder of the experiment: 91,680 weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 256), nn.LayerNorm(256), nn.GELU(), nn.Linear(256, 256), nn.LayerNorm(256), nn.GELU(), nn.Linear(256, 32)
    )  # fmt: skip


def main() -> None:
    model = encoder()
    base = {name: value.detach() for name, value in model.named_parameters()}
    draws = torch.Generator().manual_seed(1)
    vectors = [{name: 0.02 * torch.randn(value.shape, generator=draws) for name, value in base.items()} for _ in range(TASKS)]
    head = torch.randn(32, 10, generator=draws)
    images = torch.rand(TASKS, 32, 64, generator=draws)
    mask = ConcreteMask(vectors[0])
    by_name = {name: nn.Parameter(torch.zeros_like(value)) for name, value in base.items()}
    half = torch.tensor(0.5)

    def tensor_by_tensor() -> dict[str, Tensor]:
        return {name: RelaxedBernoulli(half, logits=x).rsample() for name, x in by_name.items()}

    ways = {"torch.distributions, tensor by tensor, as in fusion-bench": tensor_by_tensor, "ours": mask}
    ratios("One soft sample of the mask", ways, target="at most 1")

    def published() -> None:
        """The step as in fusion-bench: every task's vector masked, one forward pass a task."""
        sample = tensor_by_tensor()
        sample = {name: m / m.mean() for name, m in sample.items()}
        weights = dict(base)
        for vector in vectors:
            for name, change in vector.items():
                weights[name] = weights[name] + 0.3 * sample[name] * change
        total = sum((summed_entropy((functional_call(model, weights, (x,)) @ head)[None]) for x in images), start=torch.zeros(()))
        total.backward()  # type: ignore[no-untyped-call]

    def loss(merged: object) -> Tensor:
        return summed_entropy((merged(images.flatten(0, 1)) @ head).view(TASKS, 32, 10))  # type: ignore[operator]

    steps: dict[str, Callable[[], object]] = {"as in fusion-bench": published}
    for algorithm in ("arithmetic", "task", "block"):
        merging = ConcreteMerging(model, vectors, algorithm=algorithm)  # type: ignore[arg-type]
        steps[f"ours, {algorithm}" + ("" if algorithm == "arithmetic" else " (with its inner step: two passes)")] = (
            lambda merging=merging: merging.objective(loss).backward()  # type: ignore[misc]
        )
    ratios(f"A step on the mask, {TASKS} tasks of 32 inputs, forward and backward", steps)


if __name__ == "__main__":
    main()
