"""Exercises on wrapping around, on what a target of 0 asks for, and on evidence that is local."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.retrieval.loco.method import ndcg, unit
from mtlearn.retrieval.loco.worlds import word_scores


def _judge_wrap(answer: Callable[[Tensor], Tensor]) -> str | None:
    generator = torch.Generator().manual_seed(0)
    for length in (3, 8):
        k, v = (torch.randn(length, generator=generator, dtype=torch.float64) for _ in range(2))
        full = torch.fft.irfft(torch.fft.rfft(k, n=2 * length) * torch.fft.rfft(v, n=2 * length), n=2 * length)
        wrapped = torch.fft.irfft(torch.fft.rfft(k) * torch.fft.rfft(v), n=length)
        found = answer(full.clone())
        if not isinstance(found, Tensor) or found.shape != (length,):
            return f"a convolution of {2 * length} values shall become one of {length}."
        if not torch.allclose(found, wrapped):
            return "the values after the first L do not vanish: at which places does the shorter transform put them?"
    return None


def _solve_wrap() -> Any:
    def wrapped(full: Tensor) -> Tensor:
        # what stands beyond the end comes back at the start: the last words reach the first ones
        return full.view(2, -1).sum(0)

    return wrapped


def _cut(full: Tensor) -> Tensor:
    return full[: len(full) // 2]


def _judge_vectors(answer: Tensor) -> str | None:
    if not isinstance(answer, Tensor) or answer.dim() != 2 or len(answer) != 3:
        return "a tensor of three rows is wanted, one vector a row."
    vectors = unit(answer.double())
    cosine = (vectors @ vectors.T)[torch.triu(torch.ones(3, 3, dtype=torch.bool), 1)]
    loss = float((cosine + 1).square().mean())
    if loss > 0.2501:
        return f"with the target -1 the mean loss of the three pairs is {loss:.3f}; it can be lower."
    return None


def _solve_vectors() -> Any:
    # |a + b + c|^2 = 3 + 2 (sum of the cosines) is at least 0: they cannot all be below -1/2, so the loss is at least (1/2)^2
    angles = torch.tensor([0.0, 2.0, 4.0]) * torch.pi / 3
    return torch.stack([angles.cos(), angles.sin()], 1)


def _judge_corpus(answer: Any) -> str | None:
    if not isinstance(answer, tuple) or len(answer) != 2:
        return "a pair (queries, documents) of two lists of texts is wanted."
    queries, documents = answer
    if len(queries) != len(documents) or len(documents) < 2:
        return "as many queries as documents are wanted, at least two; document i is right for query i."
    found = {reader: float(ndcg(word_scores(queries, documents, reader, 8), torch.eye(len(queries))).mean()) for reader in ("whole", "chunk-max")}
    if found["chunk-max"] < found["whole"] + 0.1:
        return (
            f"nDCG of the best chunk of eight words is {found['chunk-max']:.3f}, of the whole {found['whole']:.3f}: let one passage hold the answer."
        )
    return None


def _solve_corpus() -> Any:
    # the right document ends with both words among much else; the other one is short and names one of them
    queries = ["alpha beta", "gamma"]
    documents = [" ".join(f"filler{i}" for i in range(64)) + " alpha beta", "alpha gamma"]
    return queries, documents


EXERCISES = (
    Exercise(
        question=(
            "**1. Wrap around.** A causal filter over L words gives 2L values when the transform is padded with zeros. Write `wrapped(full)` that "
            "makes of them the L values that a transform *without* padding gives. Set `answer` to your function."
        ),
        judge=_judge_wrap,
        solve=_solve_wrap,
        wrong=_cut,
        reason="a circular convolution adds the second half to the first: the end of a document would leak into its beginning.",
    ),
    Exercise(
        question=(
            "**2. Orthogonal, not opposite.** Three texts, every pair of them a wrong one. If the target were -1, the loss would be the mean of "
            "(cos + 1)^2 over the three pairs. Set `answer` to three vectors (3, d) that make it as small as it can be."
        ),
        judge=_judge_vectors,
        solve=_solve_vectors,
        wrong=torch.eye(3),
        reason=(
            "1/4, at 120 degrees: at most d + 1 vectors can be mutually negative, and the more there are the closer to 0 their cosines must be. "
            "The target 0 can be met by d vectors exactly, and random ones nearly meet it."
        ),
    ),
    Exercise(
        question=(
            "**3. Where chunks win.** Build a corpus in which the best chunk of eight words (TF-IDF) ranks better than the whole document. Set "
            "`answer` to `(queries, documents)`, two lists of texts, document i right for query i. What kind of evidence is it?"
        ),
        judge=_judge_corpus,
        solve=_solve_corpus,
        wrong=(["alpha", "beta"], ["alpha one two", "beta three four"]),
        reason="local evidence: one passage holds the answer and the rest only dilutes it. Such a task does not test long context.",
    ),
)
