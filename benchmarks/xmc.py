"""XMC: the decoupled softmax over 100,000 labels in blocks beside the whole matrix, in time and memory; the soft top k; gradient caching."""

import multiprocessing
import re
import warnings
from pathlib import Path

import torch
from ratios import ratios
from torch import Tensor
from torch.nn import functional as F

from mtlearn.layers.contrastive import cached_gradients
from mtlearn.retrieval.xmc.experiment import BagEncoder
from mtlearn.retrieval.xmc.method import DualEncoder, blocked_decoupled_softmax, decoupled_softmax, soft_top_k, softmax_loss

QUERIES, LABELS, WIDTH, POSITIVES = 128, 100_000, 64, 4


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Queries, labels and pairs."""
    torch.manual_seed(0)
    queries, labels = (F.normalize(torch.randn(n, WIDTH), dim=-1).requires_grad_() for n in (QUERIES, LABELS))
    pairs = torch.stack([torch.arange(QUERIES).repeat_interleave(POSITIVES), torch.randperm(LABELS)[: QUERIES * POSITIVES]], 1)
    return queries, labels, pairs


def matrix(queries: Tensor, labels: Tensor, pairs: Tensor) -> Tensor:
    """The whole matrix of scores."""
    return decoupled_softmax(20 * queries @ labels.T, pairs)


def rows(queries: Tensor, labels: Tensor, pairs: Tensor) -> Tensor:
    """A row of scores for each positive, its sister positives hidden: the formula as it is written, (m, L)."""
    scores = (20 * queries @ labels.T)[pairs[:, 0]]
    hidden = torch.zeros(QUERIES, LABELS, dtype=torch.bool).index_put((pairs[:, 0], pairs[:, 1]), torch.tensor(True))[pairs[:, 0]]
    hidden[torch.arange(len(pairs)), pairs[:, 1]] = False
    return F.cross_entropy(scores.masked_fill(hidden, -torch.inf), pairs[:, 1])


def blocks(queries: Tensor, labels: Tensor, pairs: Tensor) -> Tensor:
    """Blocks of labels."""
    return blocked_decoupled_softmax(queries, labels, pairs)


WAYS = {"a row a positive": rows, "the whole matrix": matrix, "blocks of 8,192": blocks}


def memory(name: str, found: object) -> None:
    """Megabytes that one forward and backward adds to what the process held before at most."""
    queries, labels, pairs = inputs()
    F.normalize(labels[:100], dim=-1).sum().backward()  # what the first backward pass loads
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the highest amount so far
    before = highest()
    WAYS[name](queries, labels, pairs).backward()
    found.put((highest() - before) / 1024)  # type: ignore[attr-defined]


def highest() -> int:
    """The most memory that this process has held, kB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def main() -> None:
    warnings.simplefilter("error")
    queries, labels, pairs = inputs()
    values = [way(queries, labels, pairs).item() for way in WAYS.values()]
    print(f"values of the three ways differ by at most {max(values) - min(values):.1e}")
    timed = {name: (lambda way=way: way(queries, labels, pairs).backward()) for name, way in WAYS.items()}
    ratios(f"Decoupled softmax, {QUERIES} queries x {LABELS:,} labels, forward and backward", timed, repeats=5)
    context = multiprocessing.get_context("spawn")
    for name in WAYS if Path("/proc/self/clear_refs").exists() else ():
        answer = context.Queue()
        process = context.Process(target=memory, args=(name, answer))
        process.start()
        print(f"peak memory, {name}: {answer.get():,.0f} MB more")
        process.join()

    scores = torch.randn(128, 1200, requires_grad=True)
    targets = torch.rand(128, 1200).argsort(1) < 4
    one = targets.int().argmax(1)
    ratios(
        "Losses of scores 128 x 1,200, forward and backward",
        {
            "PyTorch's cross-entropy, one positive": lambda: F.cross_entropy(scores, one).backward(),
            "softmax, four positives": lambda: softmax_loss(scores, targets).backward(),
            "decoupled softmax": lambda: decoupled_softmax(scores, targets).backward(),
            "soft top 5, 32 bisections": lambda: soft_top_k(scores, 5).sum().backward(),
        },
    )

    torch.manual_seed(0)
    model = DualEncoder(BagEncoder(6000, 64, 128), 64)
    asked, texts = torch.randint(1, 6000, (128, 48)), torch.randint(1, 6000, (8192, 16))
    wanted = torch.stack([torch.arange(128), torch.randperm(8192)[:128]], 1)

    def loss(q: Tensor, y: Tensor) -> Tensor:
        return blocked_decoupled_softmax(q, y, wanted)

    ratios(
        "Gradient caching, 8,192 labels of 16 words",
        {
            "one graph": lambda: loss(model.embed(asked), model.embed(texts)).backward(),
            "chunks of 2,048": lambda: cached_gradients([(model.embed, asked), (model.embed, texts)], loss, chunk=2048),
            "chunks of 256": lambda: cached_gradients([(model.embed, asked), (model.embed, texts)], loss, chunk=256),
        },
        repeats=5,
    )


if __name__ == "__main__":
    main()
