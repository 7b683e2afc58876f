"""CUR retrieval: an index beside training and distilling a dual encoder, its parts beside numpy and scikit-learn, a search beside scoring all."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from ratios import ratios
from sklearn.kernel_approximation import Nystroem
from torch import Tensor

from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.decomposable_attention import DecomposableAttention, MeanOfWords
from mtlearn.pairs.cur_retrieval.anchors import choose_anchors
from mtlearn.pairs.cur_retrieval.baselines import distil, train_dual
from mtlearn.pairs.cur_retrieval.cross_encoders import PairScorer, TwoHeads
from mtlearn.pairs.cur_retrieval.method import CURIndex, embeddings, pseudo_inverse

ITEMS, QUERIES, ANCHORS, LENGTH, SIZE, WIDTH = 1000, 100, 50, 16, 4000, 32


def main() -> None:
    draws = stream(0, "benchmark")

    def tokens(count: int) -> Tensor:
        return torch.randint(1, SIZE, (count, LENGTH), generator=draws)

    items, asked, train = tokens(ITEMS), tokens(QUERIES), tokens(3000)
    vectors = torch.randn(SIZE, WIDTH, generator=draws)
    score = PairScorer(TwoHeads(DecomposableAttention(vectors, start=1.0)), batch=1024)
    rows = torch.randn(QUERIES, 30, generator=draws) @ torch.randn(30, ITEMS, generator=draws)
    rows += 0.3 * torch.randn(QUERIES, ITEMS, generator=draws)

    # after the same k_q m scores: what each way still has to do
    dual = MeanOfWords(vectors)

    def build() -> Tensor:
        return embeddings(rows, choose_anchors(rows, ANCHORS, generator=draws))

    def trained() -> object:
        return train_dual(copy.deepcopy(dual), train, train.flip(1), steps=600, batch=64, rate=5e-3, generator=draws)

    def distilled() -> object:
        return distil(copy.deepcopy(dual), asked, items, rows, steps=300, batch=32, rate=5e-3, sharpness=2.0, generator=draws)

    ways: dict[str, Callable[[], object]] = {
        "training a dual encoder, 600 steps": trained,
        "distilling one, 300 steps": distilled,
        "CUR: anchors, E": build,
    }
    ratios("Indexing after the same scores", ways, repeats=3, target="below 1")

    matrix = rows[:, :ANCHORS].double()
    array = matrix.numpy()
    ratios(
        f"Pseudo-inverse of {QUERIES} x {ANCHORS}, float64",
        {
            "numpy.linalg.pinv": lambda: np.linalg.pinv(array),
            "torch.linalg.pinv": lambda: torch.linalg.pinv(matrix),
            "ours": lambda: pseudo_inverse(matrix),
        },
        target="at most 1",
    )

    points = torch.randn(ITEMS, 8, generator=draws, dtype=torch.float64)
    plain = points.numpy()
    peer = Nystroem(gamma=0.1, n_components=ANCHORS, random_state=0).fit(plain)
    known = torch.from_numpy(peer.component_indices_.copy())

    def kernel(queries: Tensor, others: Tensor) -> Tensor:
        return (-0.1 * torch.cdist(queries, others).square()).exp()

    def nystroem() -> object:
        return Nystroem(gamma=0.1, n_components=ANCHORS, random_state=0).fit_transform(plain)

    def ours() -> object:
        return embeddings(kernel(points[known], points), known)

    ratios("Factors of a Gaussian kernel of 1,000 points, 50 anchors", {"sklearn Nystroem": nystroem, "ours": ours}, target="at most 1")

    index = CURIndex.build(score, asked, items, anchors=ANCHORS, generator=draws)
    query = tokens(1)[0]
    ratios(
        f"One query of a small cross-encoder over {ITEMS} items",
        {"score everything": lambda: score(query[None], items), "CUR, 100 calls": lambda: index.search(query, 10, 100)},
        target="near 0.1, the share of the calls",
    )


if __name__ == "__main__":
    with seeded(0):
        main()
