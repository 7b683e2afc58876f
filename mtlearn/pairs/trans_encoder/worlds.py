"""What Trans-Encoder is tried on: sentences of concepts, the See Also links of the documentation, and published sentence pairs.

Every world has pairs to distil on, whose gold scores are used for nothing but measuring, a few labelled development pairs for the choice of a
cycle, and fresh pairs; and two families of pretrained models.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from mtlearn.datasets.concepts import Lexicon, concept_pairs, noisy_vectors
from mtlearn.datasets.documentation import documentation, labels, link_graph
from mtlearn.datasets.sentence_pairs import ScoredPair, read_pairs
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.decomposable_attention import DecomposableAttention, MeanOfWords
from mtlearn.layers.pretrained import PretrainedBody, pretrained
from mtlearn.layers.text_encoders import BiEncoder, JointEncoder
from mtlearn.layers.tokens import Tokeniser, Vocabulary, words
from mtlearn.pairs.labelled import Labelled
from mtlearn.pairs.start_words import TABLE, docstring_vectors, sentence_vectors
from mtlearn.pairs.trans_encoder.method import Family

Measure = Literal["spearman", "auc"]
LONGEST = 32  # tokens of a published sentence
SUMMARY = 16  # words of a summary


@dataclass(frozen=True)
class World:
    """Pairs and models.

    Attributes:
        train: pairs to distil on.
        development: labelled pairs on which a cycle may be chosen.
        test: fresh pairs.
        families: two pretrained models.
        measure: Spearman correlation with graded gold, or the area under the curve of a binary one.
    """

    train: Labelled
    development: Labelled
    test: Labelled
    families: tuple[Family, Family]
    measure: Measure

    def to(self, device: torch.device) -> "World":
        """On another device."""
        return World(self.train.to(device), self.development.to(device), self.test.to(device), self.families, self.measure)


def word_family(vectors: Tensor, seed: int, *, hidden: int, features: int) -> Family:
    """Mean of words as bi-encoder, decomposable attention on the same words as cross-encoder."""

    def cross() -> nn.Module:
        with seeded(seed):
            return DecomposableAttention(vectors, hidden=hidden, features=features, attended=False, segments=True)

    return Family(lambda: MeanOfWords(vectors), cross)


def body_family(body: PretrainedBody, seed: int) -> Family:
    """A bi- and a cross-encoder on copies of one pretrained body."""

    def cross() -> nn.Module:
        with seeded(seed):
            return JointEncoder(deepcopy(body), class_token=True)

    return Family(lambda: BiEncoder(deepcopy(body)), cross)


def concept_world(seed: int, *, pairs: int, fresh: int, noise: float, dim: int, scale: float, hidden: int, features: int) -> World:
    """Sentences of six concepts; gold is the share of concepts that both have; two draws of noisy word vectors are two pretrained models."""
    lexicon = Lexicon()

    def drawn(count: int, name: str) -> Labelled:
        found = concept_pairs(count, lexicon, generator=stream(seed, "trans_encoder", name))
        return Labelled(found.first, found.second, found.likeness)

    def family(number: int) -> Family:
        vectors = scale * noisy_vectors(lexicon, dim, noise, generator=stream(seed, "trans_encoder", "vectors", number))
        return word_family(vectors, 1000 * seed + number, hidden=hidden, features=features)

    parts = drawn(pairs, "train"), drawn(300, "development"), drawn(fresh, "test")
    return World(*parts, (family(0), family(1)), "spearman")


@dataclass(frozen=True)
class Linked:
    """Summaries, their See Also links, and for each link another page of the first one's module that is not linked: indices of pages (n, 2)."""

    texts: tuple[str, ...]
    links: Tensor
    others: Tensor


@cache
def linked() -> Linked:
    """The links between pages of one module whose summaries have at least three words, of all libraries."""
    graph = link_graph(documentation(), smallest=2)
    texts = [page.summary for page in graph.pages]
    enough = torch.tensor([len(words(text)) >= 3 for text in texts])
    module, _ = labels(graph.pages, "module")
    mates = (module[:, None] == module) & enough
    mates[graph.edges[:, 0], graph.edges[:, 1]] = mates[graph.edges[:, 1], graph.edges[:, 0]] = False
    mates.fill_diagonal_(False)
    first, second = graph.edges.T
    links = graph.edges[enough[first] & enough[second] & (module[first] == module[second]) & mates[first].any(1)]
    others = torch.multinomial(mates[links[:, 0]].float(), 1, generator=stream(0, "trans_encoder", "mates"))
    return Linked(tuple(texts), links, torch.cat([links[:, :1], others], 1))


def see_also_world(seed: int, *, pairs: int, fresh: int, dim: int, scale: float, hidden: int, features: int, vocabulary: int = 3000) -> World:
    """Summary lines of the documentation: is one page in the other's See Also? The others are pages of the same module that are not linked.

    Word vectors are made of the docstrings, one family from narrow windows, the other from wide ones.
    """
    found = linked()
    known = Vocabulary.of(found.texts, vocabulary)
    tokens = known(found.texts, SUMMARY, truncate=True)
    order = torch.randperm(len(found.links), generator=stream(seed, "trans_encoder", "links"))
    half = [pairs // 2, 150, fresh // 2]
    if sum(half) > len(order):
        raise ValueError(f"there are {len(order)} links, {sum(half)} are asked for")

    def part(rows: Tensor) -> Labelled:
        index = torch.cat([found.links[rows], found.others[rows]])
        gold = torch.cat([torch.ones(len(rows)), torch.zeros(len(rows))])
        mixed = torch.randperm(len(gold), generator=stream(seed, "trans_encoder", "mixed"))
        return Labelled(tokens[index[mixed, 0]], tokens[index[mixed, 1]], gold[mixed])

    train, development, test = (part(rows) for rows in torch.split(order[: sum(half)], half))

    def family(number: int, window: int) -> Family:
        vectors = scale * docstring_vectors(known, dim, window=window)
        return word_family(vectors, 1000 * seed + number, hidden=hidden, features=features)

    return World(train, development, test, (family(0, 2), family(1, 8)), "auc")


def published_world(
    seed: int, *, pairs: int, fresh: int, dim: int, scale: float, hidden: int, features: int, encoders: Sequence[str], sources: Sequence[str]
) -> World:
    """SICK, STS and MSR with their judgements, distilled on the training part (its sentences, not its scores), measured on the test part.

    Args:
        seed: of the choice of pairs.
        pairs: of the training part at most.
        fresh: of the test part at most.
        dim: of word vectors that are made here.
        scale: of all word vectors.
        hidden: of the small cross-encoder.
        features: of the small cross-encoder.
        encoders: of the two families: a folder or public name of a pretrained model, "wordllama" for its word table, or "" for word vectors that are
            made of the sentences.
        sources: some of sick, sts, msr.
    """
    scored = {part: [pair for source in sources for pair in read_pairs(source, part)] for part in ("train", "validation", "test")}  # type: ignore[arg-type]
    sentences = [text for pair in scored["train"] for text in (pair.first, pair.second)]
    made = [_published_family(name, number, seed, sentences, dim, scale, hidden, features) for number, name in enumerate(encoders)]
    (one, tokeniser), (other, second) = made
    if not _same_numbers(tokeniser, second):
        raise ValueError("both families must share one tokeniser, for they read the same tokens")

    def part(name: str, most: int) -> Labelled:
        chosen: list[ScoredPair] = scored[name]
        rows = torch.randperm(len(chosen), generator=stream(seed, "trans_encoder", name))[:most].tolist()
        first, judged = [chosen[i].first for i in rows], torch.tensor([chosen[i].score for i in rows])
        return Labelled(tokeniser(first, LONGEST, truncate=True), tokeniser([chosen[i].second for i in rows], LONGEST, truncate=True), judged)

    return World(part("train", pairs), part("validation", 500), part("test", fresh), (one, other), "spearman")


def _published_family(
    name: str, number: int, seed: int, sentences: Sequence[str], dim: int, scale: float, hidden: int, features: int
) -> tuple[Family, Tokeniser]:
    draws = 1000 * seed + number
    if name not in ("", TABLE):
        body, theirs = pretrained(name)
        return body_family(body, draws), theirs
    vectors, tokeniser = sentence_vectors(name, sentences, size=5000, dim=dim, longest=LONGEST, window=(2, 8)[number])
    if name == TABLE:
        vectors = vectors / vectors[1:].square().mean().sqrt()
    return word_family(scale * vectors, draws, hidden=hidden, features=features), tokeniser


def _same_numbers(one: Tokeniser, other: Tokeniser) -> bool:
    texts = ["a man is playing a guitar", "two dogs run over the grass"]
    return torch.equal(one(texts, LONGEST), other(texts, LONGEST))
