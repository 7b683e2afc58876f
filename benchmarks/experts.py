"""The routing layer beside a dense perceptron of the same active FLOPs, other ways to compute the same mixture, and a public layer.

Forward and backward of 4,096 tokens of width 256 with k = 2 and 512 hidden units an expert; the dense perceptron has 1,024. Then the peak of
the memory that each way allocates.
"""

import gc
from collections.abc import Callable

import torch
from ratios import ratios
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from mtlearn.layers.experts import Experts, MixtureOfExperts, Routes, combine, dispatch, top_k_routes

TOKENS, WIDTH, HIDDEN, K = 4096, 256, 512, 2


def by_grouped_mm(experts: Experts, x: Tensor, routes: Routes) -> Tensor:
    """PyTorch's grouped product in the place of ours; it has no bias."""
    order, counts = dispatch(routes)
    ends, expert = counts.cumsum(0).int(), routes.expert[order]
    hidden = F.gelu(F.grouped_mm(x[routes.token[order]], experts.first, offs=ends) + experts.first_bias[expert])
    return combine(F.grouped_mm(hidden, experts.second, offs=ends) + experts.second_bias[expert], routes, order)


def by_padded_bmm(experts: Experts, x: Tensor, routes: Routes) -> Tensor:
    """Every expert's queue padded to the longest, one batched product."""
    order, counts = dispatch(routes)
    expert = routes.expert[order]
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[expert]
    padded = x.new_zeros(len(experts), int(counts.max()), WIDTH).index_put((expert, place), x[routes.token[order]])
    hidden = F.gelu(torch.baddbmm(experts.first_bias[:, None], padded, experts.first))
    said = torch.baddbmm(experts.second_bias[:, None], hidden, experts.second)
    return combine(said[expert, place], routes, order)


def by_loop(experts: Experts, x: Tensor, routes: Routes, *, unbound: bool) -> Tensor:
    """One expert after the other; ``unbound`` takes the stacks apart once, else each is indexed, whose backward allocates the whole stack."""
    names = ("first", "first_bias", "second", "second_bias")
    stacks = [getattr(experts, name) for name in names]
    parts = [stack.unbind() for stack in stacks] if unbound else stacks
    output = torch.zeros_like(x)
    for e in range(len(experts)):
        rows = (routes.expert == e).nonzero()[:, 0]
        if len(rows):
            first, first_bias, second, second_bias = (part[e] for part in parts)
            said = F.gelu(x[routes.token[rows]] @ first + first_bias) @ second + second_bias
            output = output.index_add(0, routes.token[rows], said * routes.gate[rows, None])
    return output


def dense(width: int = WIDTH, hidden: int = K * HIDDEN) -> nn.Module:
    """A perceptron with as many active FLOPs as k experts."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def public(num_experts: int) -> nn.Module:
    """Mixtral's layer; its experts have three matrices, so two thirds of the hidden units make the same FLOPs."""
    config = MixtralConfig(hidden_size=WIDTH, intermediate_size=2 * HIDDEN // 3, num_local_experts=num_experts, num_experts_per_tok=K)
    return MixtralSparseMoeBlock(config)


def ways(num_experts: int) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    x = torch.randn(TOKENS, WIDTH, requires_grad=True)
    layer, peer, plain = MixtureOfExperts(WIDTH, HIDDEN, num_experts=num_experts, k=K), public(num_experts), dense()
    experts = layer.experts

    def step(run: Callable[[], Tensor], *modules: nn.Module) -> Callable[[], object]:
        def once() -> None:
            run().sum().backward()
            x.grad = None
            for module in modules:
                module.zero_grad()

        return once

    def routed(compute: Callable[[Experts, Tensor, Routes], Tensor]) -> Callable[[], object]:
        return step(lambda: compute(experts, x, top_k_routes(layer.router(x), K)), layer)

    with torch.no_grad():  # all ways say the same
        routes = layer.route(x)
        for other in (by_grouped_mm, by_padded_bmm, lambda e, x, r: by_loop(e, x, r, unbound=True)):
            torch.testing.assert_close(other(experts, x, routes), experts(x, routes), atol=1e-4, rtol=1e-3)
    found: dict[str, Callable[[], object]] = {
        "dense perceptron, same active FLOPs": step(lambda: plain(x), plain),
        "ours": step(lambda: layer(x)[0], layer),
        "torch's grouped_mm": routed(by_grouped_mm),
        "padded bmm": routed(by_padded_bmm),
        "loop over experts, stacks unbound": routed(lambda e, x, r: by_loop(e, x, r, unbound=True)),
        "Mixtral's layer (transformers)": step(lambda: peer(x[None])[0], peer),
    }
    if num_experts <= 16:  # at 64 it takes a minute a step
        found["loop over experts, stacks indexed"] = routed(lambda e, x, r: by_loop(e, x, r, unbound=False))
    return found


def peak(run: Callable[[], object]) -> float:
    """Most MiB that ``run`` holds at once beyond what was there before, from the allocator's own record."""
    run()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    held = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 2**20


def main() -> None:
    for num_experts in (4, 8, 16, 32, 64, 128):
        found = ways(num_experts)
        target = {64: "at most 1.6", 128: "at most 2.3"}.get(num_experts, "")
        ratios(f"{num_experts} experts, k = {K}, forward and backward", found, repeats=7, target=target)
        print("peak memory, MiB:", {name: round(peak(run)) for name, run in found.items()}, "\n")


if __name__ == "__main__":
    main()
