"""Language models as retrievers: the loss beside sentence-transformers', encoding by size beside its operations, padded and sorted batches."""

import torch
from ratios import ratios
from rich.console import Console
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from mtlearn.layers.cost import count_flops
from mtlearn.layers.tokens import PADDING
from mtlearn.retrieval.llm_dense.experiment import SIZES, LLMDenseSettings, shelf, vectors_of
from mtlearn.retrieval.llm_dense.method import retrieval_loss, trim
from mtlearn.retrieval.llm_dense.worlds import pages


def main() -> None:
    torch.manual_seed(0)
    queries, positives = torch.randn(2, 128, 256)
    negatives = torch.randn(128, 7, 256)
    peer = MultipleNegativesRankingLoss(model=None, scale=50.0)  # type: ignore[arg-type]
    columns = [positives, *torch.unbind(negatives, 1)]

    def ours() -> None:
        leaf = queries.clone().requires_grad_()
        retrieval_loss(leaf, positives, negatives, temperature=0.02).backward()  # type: ignore[no-untyped-call]

    def theirs() -> None:
        leaf = queries.clone().requires_grad_()
        peer.compute_loss_from_embeddings([leaf, *columns], None).backward()

    ratios("The loss, 128 queries with 7 hard negatives each", {"sentence-transformers": theirs, "ours": ours}, repeats=31)

    settings = LLMDenseSettings(seeds=1)
    found = shelf(settings)
    texts = [pair.document for pair in pages().test[:200]]
    tokens = found.words(texts, 64, truncate=True)
    models = {size: found.retriever(f"{size} long", 0).eval() for size in SIZES}
    speed = ratios("Encoding 200 documents", {size: lambda m=m: vectors_of(m, tokens) for size, m in models.items()}, repeats=9)  # type: ignore[misc]
    with torch.no_grad():
        flops = {size: count_flops(lambda m=m: m(tokens)) for size, m in models.items()}  # type: ignore[misc]
    shown = ", ".join(f"{size}: operations {flops[size] / flops['S']:.1f}, time {speed[size]:.1f}" for size in SIZES)
    Console(width=110).print(f"Ratios to S; where time grows less, small matrices leave the processor idle. {shown}\n")

    long = found.words(texts, 256, truncate=True)
    mixed = long[torch.randperm(len(long))]
    model = models["M"]

    def in_order() -> None:
        with torch.no_grad():
            for part in torch.split(mixed, 50):
                model(trim(part))

    share = float((long == PADDING).double().mean())
    ratios(
        f"Up to 256 tokens, {share:.0%} padding, size M",
        {
            "all padded to the longest": lambda: model(mixed).detach(),
            "batches of 50 as they come": in_order,
            "batches of one length (ours)": lambda: vectors_of(model, mixed),
        },
        repeats=9,
    )


if __name__ == "__main__":
    main()
