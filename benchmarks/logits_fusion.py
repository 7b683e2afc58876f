"""Dynamic logits fusion: a decoding step beside one forward pass of the large model, and the vectorised search beside a loop over positions."""

import torch
from ratios import ratios
from torch import Tensor
from torch.nn import functional as F

from mtlearn.merging.logits_fusion.method import COARSE, GRID, cube, dynamic, fuse
from mtlearn.merging.logits_fusion.models import CharacterModel, last


def one_by_one(large: Tensor, small: Tensor, experts: Tensor) -> Tensor:
    """The rule as the paper writes it: every position, expert and strength in turn, each divergence from its definition."""
    found = []
    for position in range(len(large)):
        log_p, log_q = F.log_softmax(large[position], -1), F.log_softmax(small[position], -1)
        log_q_t = F.log_softmax(experts[:, position], -1)
        away = F.kl_div(log_q.expand_as(log_q_t), log_q_t, log_target=True, reduction="none").sum(-1)
        back = F.kl_div(log_q_t, log_q.expand_as(log_q_t), log_target=True, reduction="none").sum(-1)
        best = (float("inf"), 0, 0.0)
        for expert in range(len(experts)):
            for alpha in GRID:
                fused = F.log_softmax(large[position] + alpha * (experts[expert, position] - small[position]), -1)
                forward = F.kl_div(log_p, fused, log_target=True, reduction="sum")
                backward = F.kl_div(fused, log_p, log_target=True, reduction="sum")
                value = float(((forward - away) ** 2 + (backward - back) ** 2).sum())
                best = min(best, (value, expert, alpha))
        found.append(best[2])
    return torch.tensor(found)


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    large, wide, small, expert = (CharacterModel(hidden).eval() for hidden in ((384, 384), (2048, 2048), (48,), (48,)))
    for batch in (1, 64):
        prefix = torch.randint(96, (batch, 100))
        for name, giant in (("285 thousand parameters", large), ("5 million", wide)):
            models = [last(model) for model in (giant, small, expert)]

            def logits(models: list = models, prefix: Tensor = prefix) -> tuple[Tensor, Tensor, Tensor]:
                return models[0](prefix), models[1](prefix), models[2](prefix)[None]

            def dynamically(logits: object = logits) -> Tensor:
                said = logits()  # type: ignore[operator]
                return fuse(*said, dynamic(*said).alpha)

            ratios(
                f"One token for a batch of {batch}, large model of {name}",
                {
                    "large forward alone": lambda models=models, prefix=prefix: models[0](prefix),
                    "proxy tuning": lambda logits=logits: fuse(*logits(), 1.0),
                    "dynamic, one expert": dynamically,
                },
                repeats=31,
                target="paper, 13B from 7B: 1, 2.6, 2.8",
            )
    positions, vocabulary = 200, 96
    p, q = torch.randn(2, positions, vocabulary)
    experts = q + 0.7 * torch.randn(3, positions, vocabulary)
    assert torch.allclose(dynamic(p, q, experts).alpha.sum(-1), one_by_one(p, q, experts), atol=1e-6)
    ratios(
        f"Search of {positions} positions, 3 experts, 21 strengths, {vocabulary} tokens",
        {
            "vectorised": lambda: dynamic(p, q, experts),
            f"the cube, {len(COARSE)}^3 points": lambda: cube(p, q, experts),
            "loop over positions, experts and strengths": lambda: one_by_one(p, q, experts),
        },
        repeats=3,
    )
    p, q = torch.randn(2, 8, 32_000)
    experts = q + 0.7 * torch.randn(1, 8, 32_000)
    ratios(
        "Search of 8 positions, 1 expert, a vocabulary of 32,000",
        {
            "the exponentials alone, all positions at once": lambda: (p[:, None] + torch.tensor(GRID)[:, None] * q[:, None]).exp(),
            "dynamic": lambda: dynamic(p, q, experts),
            "loop": lambda: one_by_one(p, q, experts),
        },
        repeats=5,
    )


if __name__ == "__main__":
    main()
