"""VLM2Vec: gradient caching beside the whole batch, in time and in bytes held; the loss and joint reading beside their peers."""

from collections import Counter
from collections.abc import Callable
from typing import ClassVar

import torch
from ratios import ratios
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor
from torch.nn import functional as F

from mtlearn.lab.seeds import stream
from mtlearn.retrieval.vlm2vec.experiment import BackboneSettings, build_backbone
from mtlearn.retrieval.vlm2vec.method import Fusion, cached_step, contrastive_loss
from mtlearn.retrieval.vlm2vec.worlds import TRAINED, mixed, split


class Held:
    """A tensor that a graph keeps, counted as long as it is kept."""

    count: ClassVar[Counter[int]] = Counter()
    now = peak = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.place = tensor, tensor.untyped_storage().data_ptr()
        self.bytes = tensor.untyped_storage().nbytes()
        Held.count[self.place] += 1
        if Held.count[self.place] == 1:
            Held.now += self.bytes
            Held.peak = max(Held.peak, Held.now)

    def __del__(self) -> None:
        Held.count[self.place] -= 1
        if Held.count[self.place] == 0:
            Held.now -= self.bytes


def peak(way: Callable[[], object]) -> int:
    """Most bytes that graphs hold at a time."""
    Held.count.clear()
    Held.now = Held.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        way()
    return Held.peak


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build_backbone(BackboneSettings())
    batch = mixed(TRAINED[:6], 32, split(0)[0], generator=stream(0, "benchmark"))

    def whole() -> None:
        model.zero_grad()
        contrastive_loss(model(batch.queries), model(batch.targets), keys=batch.keys).backward()

    def cached(chunk: int) -> Callable[[], object]:
        def step() -> None:
            model.zero_grad()
            cached_step(model, batch.queries, batch.targets, chunk=chunk, keys=batch.keys)

        return step

    ways = {"the whole batch": whole, **{f"gradient cache, chunks of {chunk}": cached(chunk) for chunk in (96, 48, 16)}}
    ratios("A step of 192 queries and targets", ways, repeats=7)
    held = {name: peak(way) for name, way in ways.items()}
    for name, size in held.items():
        print(f"{name:32} {size / 2**20:7.1f} MiB held by graphs at a time, ratio {size / held['the whole batch']:.2f}")

    queries, targets = (F.normalize(torch.randn(1024, 64), dim=1).requires_grad_() for _ in range(2))
    theirs = MultipleNegativesRankingLoss(model=None, scale=50.0)
    ratios(
        "The loss of 1,024 pairs, forward and backward",
        {
            "sentence-transformers": lambda: theirs.compute_loss_from_embeddings([queries, targets], labels=None).backward(),
            "ours": lambda: contrastive_loss(queries, targets).backward(),
            "the matrix product and cross-entropy": lambda: F.cross_entropy(50 * queries @ targets.T, torch.arange(1024)).backward(),
        },
        repeats=15,
        target="never slower",
    )
    difference = theirs.compute_loss_from_embeddings([queries, targets], labels=None) - contrastive_loss(queries, targets)
    print(f"difference of the two losses: {difference.item():.1e}")

    fusion = Fusion(model)
    with torch.no_grad():
        ratios(
            "192 queries, forward",
            {"image and text apart, and their sum": lambda: fusion(batch.queries), "one sequence": lambda: model(batch.queries)},
        )


if __name__ == "__main__":
    main()
