"""Promptagator: the loss beside sentence-transformers', exact search beside faiss, and what packing texts once saves."""

import torch
from ratios import ratios
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from mtlearn.lab.seeds import stream
from mtlearn.layers.search import ExactIndex, FaissIndex
from mtlearn.layers.tokens import Vocabulary
from mtlearn.retrieval.promptagator.experiment import encoder_for
from mtlearn.retrieval.promptagator.method import Bags, consistent, pair_loss, source_rank
from mtlearn.retrieval.promptagator.worlds import Read, docstring_world
from mtlearn.retrieval.promptagator.writers import few_shot_writer


def main() -> None:
    torch.manual_seed(0)
    queries, documents = torch.randn(2, 128, 256)
    peer = MultipleNegativesRankingLoss(model=None, scale=20.0)  # type: ignore[arg-type]

    def ours() -> None:
        leaf = queries.clone().requires_grad_()
        pair_loss(leaf, documents, temperature=0.05).backward()  # type: ignore[no-untyped-call]

    def theirs() -> None:
        leaf = queries.clone().requires_grad_()
        peer.compute_loss_from_embeddings([leaf, documents], None).backward()

    ratios("The loss of 128 pairs of 256 numbers, forward and backward", {"sentence-transformers": theirs, "ours": ours}, repeats=51)

    world = docstring_world(0, documents=10_000, pool=600)
    read = Read.of(world.documents)
    vocabulary = Vocabulary.of(world.documents, 5000)
    encoder = encoder_for(vocabulary, read.statistics, 256, 0)
    bags = Bags.of(world.documents, vocabulary)
    with torch.no_grad():
        vectors, asked = encoder(bags), encoder(Bags.of(world.queries, vocabulary))
    asked = asked.repeat(8, 1)
    flat, exact = FaissIndex(vectors), ExactIndex(vectors)
    ratios(
        f"The best 50 of {len(vectors)} documents for {len(asked)} queries",
        {"faiss, flat": lambda: flat.search(asked, 50), "ours": lambda: exact.search(asked, 50), "matrix product alone": lambda: asked @ vectors.T},
    )
    source = torch.randint(len(vectors), (len(asked),))
    ratios(
        "The filter, K = 1",
        {
            "by faiss's best document": lambda: flat.search(asked, 1)[1][:, 0] == source,
            "ours": lambda: consistent(source_rank(asked, vectors, source)),
        },
    )
    rows = torch.randint(len(bags), (128,))
    texts = [world.documents[i] for i in rows.tolist()]
    ratios("A batch of 128 documents", {"packed anew": lambda: Bags.of(texts, vocabulary), "packed once, picked": lambda: bags.take(rows)})
    writer = few_shot_writer(world.pool[:8], read.statistics)
    draws = stream(0, "promptagator", "bench")
    some = world.documents[:200]
    part = Read(read.statistics, type(read.table).of(some, read.statistics))
    ratios(
        "Eight queries for each of 200 documents",
        {
            "documents read anew": lambda: writer(some, per_document=8, generator=draws),
            "read once": lambda: writer.draw(part.table, len(some), per_document=8, generator=draws),
        },
    )


if __name__ == "__main__":
    main()
