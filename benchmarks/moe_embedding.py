"""Experts for domains: a text costs what it cost before the extension; the ranking loss beside sentence-transformers'."""

import torch
from ratios import ratios
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from mtlearn.layers.cost import count_parameters
from mtlearn.layers.text_encoders import TokenEncoder
from mtlearn.retrieval.moe_embedding.method import extend, ranking_loss


def main() -> None:
    torch.manual_seed(0)
    body = TokenEncoder(5000, 128, 4, 4, longest=64)
    mixture, router = extend(body, 4), extend(body, 4, router=True)
    tokens, domain = torch.randint(3, 5000, (64, 48)), torch.arange(64) % 4
    one = torch.zeros(64, dtype=torch.int64)
    print(f"parameters, thousands: plain {count_parameters(body) / 1e3:.0f}, four experts {count_parameters(mixture) / 1e3:.0f}")
    with torch.no_grad():
        ratios(
            "64 texts of 48 words, four layers of width 128, no gradient",
            {
                "the plain encoder": lambda: body(tokens),
                "experts, one domain": lambda: mixture(tokens, one),
                "experts, four domains": lambda: mixture(tokens, domain),
                "experts, a router chooses": lambda: router(tokens),
            },
        )
    ratios(
        "A step, forward and backward",
        {
            "the plain encoder": lambda: body(tokens).sum().backward(),
            "experts, one domain": lambda: mixture(tokens, one).sum().backward(),
            "experts, four domains": lambda: mixture(tokens, domain).sum().backward(),
        },
    )
    first, second = torch.randn(2, 64, 128, requires_grad=True)
    same = torch.eye(64, dtype=torch.bool)
    peer = MultipleNegativesRankingLoss(model=None)  # type: ignore[arg-type]
    ratios(
        "The loss of 64 pairs of 128 numbers, forward and backward",
        {
            "sentence-transformers": lambda: peer.compute_loss_from_embeddings([first, second], None).backward(retain_graph=True),
            "ours, which rows are the same is said": lambda: ranking_loss(first, second, same=same).backward(retain_graph=True),
            "ours, looking for duplicates": lambda: ranking_loss(first, second).backward(retain_graph=True),
        },
        repeats=51,
    )


if __name__ == "__main__":
    main()
