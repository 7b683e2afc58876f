"""Trans-Encoder: what the halves of a cycle cost, a bi-encoder with cached vectors beside a cross-encoder, and the losses beside PyTorch's own."""

import torch
from ratios import ratios
from torch.nn import functional as F

from mtlearn.layers.text_encoders import BiEncoder, JointEncoder, TokenEncoder
from mtlearn.pairs.trans_encoder.method import bi_labels, bi_to_cross_loss, cross_labels, cross_to_bi_loss


def main() -> None:
    torch.manual_seed(0)
    bi = BiEncoder(TokenEncoder(5000, 64, 4, 2))
    cross = JointEncoder(TokenEncoder(5000, 64, 4, 2), pooling="mean")
    first, second = torch.randint(5, 5000, (2, 512, 16))
    with torch.no_grad():
        kept = bi.embed(second)

    def cached() -> None:
        with torch.no_grad():
            (bi.embed(first[:1]) @ kept.T).sum()

    def joint() -> None:
        with torch.no_grad():
            cross(first[:1].expand(512, -1), second)

    ratios("One query against 512 sentences of 16 words, two layers", {"bi-encoder, vectors cached": cached, "cross-encoder": joint})
    ratios(
        "Labels of 512 pairs",
        {"bi-encoder (step 1)": lambda: bi_labels(bi, first, second), "cross-encoder (step 3)": lambda: cross_labels(cross, first, second)},
    )

    def train_bi() -> None:
        cross_to_bi_loss(bi(first[:64], second[:64]), torch.full((64,), 0.5)).backward()

    def train_cross() -> None:
        bi_to_cross_loss(cross(first[:64], second[:64]), torch.full((64,), 0.5)).backward()

    ratios("A training step on 64 pairs, forward and backward", {"bi-encoder (step 4)": train_bi, "cross-encoder (step 2)": train_cross})
    logits, labels = torch.randn(100_000), torch.rand(100_000)
    ratios(
        "The losses on 100,000 pairs",
        {
            "PyTorch's binary cross-entropy": lambda: F.binary_cross_entropy_with_logits(logits, labels),
            "ours, labels checked": lambda: bi_to_cross_loss(logits, labels),
        },
        repeats=51,
    )


if __name__ == "__main__":
    main()
