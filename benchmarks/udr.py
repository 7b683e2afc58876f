"""UDR: the list-wise loss beside a loop over pairs and beside a cross-entropy, mining beside faiss, and what a question costs at search time."""

import torch
from ratios import ratios
from torch import Tensor
from torch.nn import functional as F

from mtlearn.datasets.bm25 import BM25
from mtlearn.layers.search import FaissIndex
from mtlearn.retrieval.udr.experiment import build, feedback
from mtlearn.retrieval.udr.method import mine, rank_loss, ranks
from mtlearn.retrieval.udr.worlds import make_world, train_copier


def pair_by_pair(similarities: Tensor, scores: Tensor) -> Tensor:
    """The formula as a loop over pairs of the list."""
    gain, total = 1 / ranks(scores), similarities.new_zeros(())
    for i in range(similarities.shape[1]):
        for j in range(similarities.shape[1]):
            weight = (gain[:, i] - gain[:, j]).clamp(min=0)
            total = total + (weight * F.softplus(similarities[:, j] - similarities[:, i])).mean()
    return total


def main() -> None:
    torch.manual_seed(0)
    similarities, scores = torch.randn(48, 8, requires_grad=True), torch.rand(48, 8)
    ratios(
        "The loss of 48 lists of eight, forward and backward",
        {
            "a loop over pairs": lambda: pair_by_pair(similarities, scores).backward(),
            "ours": lambda: rank_loss(similarities, scores).backward(),
            "a cross-entropy of the best": lambda: F.cross_entropy(similarities, scores.argmax(1)).backward(),
        },
        repeats=51,
    )
    vectors = F.normalize(torch.randn(1500, 96), dim=1)
    flat = FaissIndex(vectors)
    ratios(
        "The 50 nearest of 1,500 rows for each of them",
        {"faiss, flat, itself left in": lambda: flat.search(vectors, 51), "ours": lambda: mine(vectors, vectors, 50)},
    )
    world, source = make_world("sentences", 0, sizes=(1500, 1000, 600, 200), test=200)
    model = train_copier("sentences", source, 0, steps=20)
    rows, task, asked = world.train[0], world.tasks[0], world.test[0].inputs
    texts = [" ".join(f"w{word}" for word in row) for row in rows.inputs.tolist()]
    questions = [" ".join(f"w{word}" for word in row) for row in asked.tolist()]
    index, retriever = BM25(texts), build("sentences", 16)
    score = feedback(model, rows, task, 0)
    every = torch.arange(len(rows))
    with torch.no_grad():
        kept = retriever.embed_demonstrations(rows.inputs, rows.answers, task.instruction)

        def by_vectors() -> Tensor:
            return (retriever.embed_queries(asked, task.instruction) @ kept.T).topk(4, 1).indices

        ratios(
            "Four demonstrations of 1,500 for 200 questions",
            {
                "BM25": lambda: index.scores(questions).topk(4, 1).indices,
                "the retriever, vectors kept": by_vectors,
                "every demonstration shown to the model": lambda: [score(torch.full_like(every, i), every).topk(4).indices for i in range(200)],
            },
            repeats=5,
        )


if __name__ == "__main__":
    main()
