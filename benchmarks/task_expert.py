"""TaskExpert's decoder, forward and backward, beside a static decoder of its size and beside a loop over experts and tasks."""

import torch
from ratios import ratios
from torch import Tensor
from torch.nn import functional as F

from mtlearn.layers.cost import count_flops, count_parameters
from mtlearn.moe.task_expert.baselines import SharedDecoder
from mtlearn.moe.task_expert.method import NYUD_TASKS, MMoE, Task, TaskExpert, assemble, pool

SCENE_TASKS = (Task("segmentation", "classes", 3), Task("depth", "value", 1), Task("boundary", "edge", 1))


def looped_layer(layer: MMoE, feature: Tensor, memory: Tensor) -> Tensor:
    """One layer the way one would first write it: expert after expert, task after task. The memory that it writes."""
    experts, width = layer.experts, memory.shape[2]
    made = []
    for i in range(experts.num_experts):
        own = slice(i * width, (i + 1) * width)
        x = F.conv2d(feature, experts.project.weight[own], experts.project.bias[own])
        x = F.conv2d(x, experts.context.weight[own], padding=1, groups=width)
        made.append(F.gelu(F.batch_norm(x, None, None, experts.norm.weight[own], experts.norm.bias[own], training=True)))
    written = []
    for t in range(layer.tasks):
        own = slice(t * width, (t + 1) * width)
        read = F.conv2d(memory[:, t], layer.read.weight[own], layer.read.bias[own], padding=1)
        seen = torch.cat([pool(feature), pool(memory[:, t])], -1)
        gate = layer.gate
        hidden = F.gelu(seen @ gate.first.weight[t] + gate.first.bias[t])
        shares = (hidden @ gate.last.weight[t] + gate.last.bias[t]).softmax(-1)
        decoded = shares[:, -1, None, None, None] * read
        for i, expert in enumerate(made):
            decoded = decoded + shares[:, i, None, None, None] * expert
        written.append(memory[:, t] + F.conv2d(decoded, layer.write.weight[own], layer.write.bias[own]))
    return torch.stack(written, 1)


def looped(decoder: TaskExpert, features: list[Tensor]) -> dict[str, Tensor]:
    batch, _, height, wide = features[0].shape
    memory = decoder.start[None, :, :, None, None].expand(batch, -1, -1, height, wide)
    for layer, feature in zip(decoder.mixtures, features, strict=True):
        memory = looped_layer(layer, feature, memory)
    return decoder.heads(memory)


def total(predictions: dict[str, Tensor]) -> Tensor:
    return torch.stack([prediction.square().mean() for prediction in predictions.values()]).sum()


def step(title: str, tasks: tuple[Task, ...], *, channels: int, width: int, batch: int, size: tuple[int, int], num_experts: int) -> None:
    torch.manual_seed(0)
    ours = TaskExpert(tasks, channels, width=width, num_experts=num_experts)
    wanted, wide = count_parameters(ours), width
    while count_parameters(SharedDecoder(tasks, channels, width=wide + 1)) <= wanted:
        wide += 1
    static = SharedDecoder(tasks, channels, width=wide)
    gates = TaskExpert(tasks, channels, width=width, num_experts=num_experts, gate="static")
    features = [torch.randn(batch, channels, *size) for _ in range(3)]
    torch.testing.assert_close(total(looped(ours, features)), total(ours(features).predictions), rtol=1e-4, atol=1e-5)
    ways = {
        "experts and tasks in loops": lambda: total(looped(ours, features)).backward(),
        "ours": lambda: total(ours(features).predictions).backward(),
        "ours, static gates": lambda: total(gates(features).predictions).backward(),
        "a static decoder of its size": lambda: total(static(features).predictions).backward(),
    }
    ratios(f"{title}, forward and backward", ways, repeats=9, target="ours at most 1")
    both = {name: count_flops(lambda way=way: way(features)) for name, way in (("ours", ours), ("static", static))}
    print(f"{count_parameters(ours):,} parameters against {count_parameters(static):,}; forward flops {both['ours'] / both['static']:.2f} times\n")


def assembly() -> None:
    """The dynamic mixture beside the bytes that it must move: reading every expert and every read once, writing every feature once."""
    torch.manual_seed(0)
    batch, tasks, num_experts, shape = 16, 3, 4, (16, 8, 8)
    gates = torch.rand(batch, tasks, num_experts + 1).softmax(-1)
    experts, read = torch.randn(batch, num_experts, *shape), torch.randn(batch, tasks, *shape)

    def by_task() -> Tensor:
        mixed = []
        for t in range(tasks):
            own = gates[:, t, -1, None, None, None] * read[:, t]
            for i in range(num_experts):
                own = own + gates[:, t, i, None, None, None] * experts[:, i]
            mixed.append(own)
        return torch.stack(mixed, 1)

    torch.testing.assert_close(by_task(), assemble(gates, experts, read))
    ways = {
        "experts and tasks in loops": by_task,
        "ours": lambda: assemble(gates, experts, read),
        "copying what goes in": lambda: (experts.clone(), read.clone()),
    }
    ratios("Dynamic assembly alone", ways, repeats=50, target="ours at most 1")


if __name__ == "__main__":
    torch.set_num_threads(1)
    assembly()
    step("Scenes, 16 pictures of 8 x 8 positions, 4 experts", SCENE_TASKS, channels=24, width=16, batch=16, size=(8, 8), num_experts=4)
    step("Rooms, 2 pictures of 28 x 36 positions, 5 experts", NYUD_TASKS, channels=256, width=64, batch=2, size=(28, 36), num_experts=5)
