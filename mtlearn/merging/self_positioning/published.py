"""The two tasks on published files: R retrieves abstracts of Cranfield, T is semantic similarity on SICK, STS and MSR.

R: the title of an abstract (in the probe and in the test a question) to an abstract that answers it; MRR@10. T: a sentence to a sentence of nearly
the same meaning, with a score of at least 0.75 of 1; Spearman correlation of cosine and score on scored pairs.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from mtlearn.datasets.cranfield import Cranfield, read_cranfield
from mtlearn.datasets.sentence_pairs import ScoredPair, read_pairs
from mtlearn.lab.seeds import stream
from mtlearn.merging.self_positioning.encoders import Tokenise, pretrained
from mtlearn.merging.self_positioning.encoders import vocabulary as known
from mtlearn.merging.self_positioning.tasks import Batch, Part, Task, World, halved

LONGEST = 128  # tokens
ALIKE = 0.75  # score from which two sentences are a training pair
SOURCES = ("sick", "sts", "msr")


def published_world(
    seed: int, *, pairs: tuple[int, int], build: Callable[[int], nn.Module], encoder: str = "", vocabulary: int = 5000, most: int = 500
) -> World:
    """R and T on the files.

    Args:
        seed: of the choice of pairs and questions.
        pairs: training pairs of R and of T at most.
        build: size of the vocabulary to a small encoder.
        encoder: folder or name of a pretrained encoder to start from instead.
        vocabulary: of the small encoder, padding included.
        most: scored sentence pairs at most.
    """
    collection = read_cranfield()
    scored: dict[Part, list[ScoredPair]] = {
        part: [pair for source in SOURCES for pair in read_pairs(source, part)]  # type: ignore[arg-type]
        for part in ("train", "validation", "test")
    }
    model, tokenise = pretrained(encoder) if encoder else (None, _vocabulary(collection, scored["train"], vocabulary))
    tokens = Tokens.of(collection, tokenise)
    body = tokens.text
    return World(
        (cranfield_task(collection, tokens, seed, pairs=pairs[0]), similarity_task(scored, seed, tokenise, pairs=pairs[1], most=most)),
        (lambda: build(vocabulary)) if model is None else (lambda: deepcopy(model)),
        (lambda batch, generator: halved(body[torch.randperm(len(body), generator=generator)[:batch]])) if model is None else None,
        lambda number: cranfield_task(collection, tokens, seed, pairs=number),
    )


def _vocabulary(collection: Cranfield, scored: Sequence[ScoredPair], size: int) -> Tokenise:
    sentences = [sentence for pair in scored for sentence in (pair.first, pair.second)]
    return known([*sentences, *(document.text for document in collection.documents)], size)


@dataclass(frozen=True)
class Tokens:
    """Titles and texts of the documents, and the questions: (n, length) each."""

    title: Tensor
    text: Tensor
    question: Tensor

    @classmethod
    def of(cls, collection: Cranfield, tokenise: Tokenise) -> "Tokens":
        """Tokenise the collection."""
        titles = [document.title or "-" for document in collection.documents]  # a document without title or text is no training pair
        bodies = [document.text or "-" for document in collection.documents]
        return cls(tokenise(titles, LONGEST), tokenise(bodies, LONGEST), tokenise(collection.queries, LONGEST))


def cranfield_task(collection: Cranfield, tokens: Tokens, seed: int, *, pairs: int) -> Task:
    """R: titles to their abstracts for training; a quarter of the questions is the probe, the others are the test. MRR@10 among all abstracts."""
    documents = collection.documents
    title, text, question = tokens.title, tokens.text, tokens.question
    there = torch.tensor([i for i, document in enumerate(documents) if document.title and document.text])
    kept = there[torch.randperm(len(there), generator=stream(seed, "titles"))[:pairs]]
    order = torch.randperm(len(collection.queries), generator=stream(seed, "questions"))
    asked: dict[Part, Tensor] = {"validation": order[: len(order) // 4], "test": order[len(order) // 4 :]}
    answers = torch.zeros(len(collection.queries), len(documents), dtype=torch.bool)
    for number, relevant in enumerate(collection.relevant):
        answers[number, list(relevant)] = True

    def draw(part: Part, batch: int, generator: torch.Generator) -> Batch:
        if part == "train":
            rows = kept[_places(len(kept), batch, generator)]
            return Batch(title[rows], text[rows])
        chosen = asked[part][_places(len(asked[part]), batch, generator)]
        right = torch.multinomial(answers[chosen].double(), 1, generator=generator)[:, 0]  # one of the abstracts that answer it
        return Batch(question[chosen], text[right], answers[chosen][:, right])

    def score(encode: Callable[[Tensor], Tensor], part: Part) -> float:
        rows = asked[part]
        similarity = encode(question[rows]) @ encode(text).T
        best = similarity.masked_fill(~answers[rows], -torch.inf).amax(1)
        rank = 1 + (similarity > best[:, None]).sum(1)
        return float(torch.where(rank <= 10, 1 / rank, 0.0).mean())

    numbers: dict[Part, int] = {"train": len(kept)}
    return Task("R", numbers | {part: len(rows) for part, rows in asked.items()}, draw, score)


def similarity_task(scored: dict[Part, list[ScoredPair]], seed: int, tokenise: Tokenise, *, pairs: int, most: int) -> Task:
    """T: sentences of nearly the same meaning; Spearman correlation of cosine and score on at most ``most`` pairs."""
    alike = {part: [pair for pair in rows if pair.score >= ALIKE] for part, rows in scored.items()}
    alike["train"] = [alike["train"][i] for i in torch.randperm(len(alike["train"]), generator=stream(seed, "alike"))[:pairs].tolist()]
    tokens = {part: (tokenise([p.first for p in rows], LONGEST), tokenise([p.second for p in rows], LONGEST)) for part, rows in alike.items()}
    judged = {}
    for part, rows in scored.items():
        kept = [rows[i] for i in torch.randperm(len(rows), generator=stream(seed, part))[:most].tolist()]
        judged[part] = tokenise([p.first for p in kept], LONGEST), tokenise([p.second for p in kept], LONGEST), [p.score for p in kept]

    def draw(part: Part, batch: int, generator: torch.Generator) -> Batch:
        first, second = tokens[part]
        rows = _places(len(first), batch, generator)
        first, second = first[rows], second[rows]
        same = (first[:, None] == first).all(-1) | (second[:, None] == second).all(-1)  # a sentence stands in several pairs
        return Batch(first, second, same)

    def score(encode: Callable[[Tensor], Tensor], part: Part) -> float:
        first, second, scores = judged[part]
        return float(spearmanr((encode(first) * encode(second)).sum(1).numpy(), scores).statistic)

    return Task("T", {part: len(rows) for part, rows in alike.items()}, draw, score)


def _places(count: int, wanted: int, generator: torch.Generator) -> Tensor:
    """``wanted`` different numbers below ``count``, fewer where there are not so many."""
    return torch.randperm(count, generator=generator)[:wanted]
