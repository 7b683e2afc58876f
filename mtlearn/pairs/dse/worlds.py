"""What DSE is tried on: sentences of concepts with wrong labels among the right ones, names of functions with their summaries, published pairs."""

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from mtlearn.datasets.concepts import ConceptPairs, Lexicon, concept_pairs, noisy_vectors
from mtlearn.datasets.documentation import Page, documentation, labels, split
from mtlearn.datasets.sentence_pairs import ScoredPair, read_pairs
from mtlearn.datasets.tfidf import TfIdf
from mtlearn.lab.seeds import stream
from mtlearn.layers.attention import Transformer
from mtlearn.layers.decomposable_attention import DecomposableAttention, word_embedding
from mtlearn.layers.pretrained import pretrained
from mtlearn.layers.text_encoders import Body, JointEncoder
from mtlearn.layers.tokens import PADDING, Tokeniser, Vocabulary, words
from mtlearn.pairs.dse.method import Task
from mtlearn.pairs.labelled import Labelled
from mtlearn.pairs.start_words import TABLE, docstring_vectors, sentence_vectors

LEXICON = Lexicon(40, 3)
MOST_SHARED, WORDS = 5, 8
LONGEST = 32  # tokens
OUTPUTS: dict[Task, int] = {"binary": 2, "classes": 3, "regression": 1}  # of a teacher


class WordBody(nn.Module):
    """A small body without positions: word vectors and a transformer over them.

    Args:
        vectors: (size, width) to start from; row 0 is padding.
        heads: of attention.
        hidden: units of the perceptron.
    """

    def __init__(self, vectors: Tensor, heads: int = 4, hidden: int = 64) -> None:
        super().__init__()
        self.width, self.padding = vectors.shape[1], PADDING
        self.word = word_embedding(vectors)
        self.transformer = Transformer(self.width, heads, 1, hidden)

    def states(
        self, tokens: Tensor, *, types: Tensor | None = None, positions: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Word vectors and the layer's output, (n, length, width) each; types and positions mean nothing here."""
        return self.transformer.states(self.word(tokens), tokens != PADDING if mask is None else mask)

    def forward(self, tokens: Tensor, *, types: Tensor | None = None, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The last of the states."""
        return self.states(tokens, mask=mask)[-1]


@dataclass(frozen=True)
class World:
    """Pairs of one task and the models that learn it.

    Attributes:
        train, development, test: labelled pairs; the first two may hold wrong labels, the last holds none.
        unlabelled: more pairs, whose labels are used for nothing.
        task: of the labels.
        teacher: makes a cross-attentive model: tokens of two sentences each to logits (n, 2), (n, 3) or (n,).
        body: makes the body of a student.
        top: of how many layers a student takes the states.
        class_token: sentences begin with [CLS].
    """

    train: Labelled
    development: Labelled
    test: Labelled
    unlabelled: Labelled
    task: Task
    teacher: Callable[[], nn.Module]
    body: Callable[[], Body]
    top: int = 2
    class_token: bool = False

    def to(self, device: torch.device) -> "World":
        """On another device."""
        moved = {name: getattr(self, name).to(device) for name in ("train", "development", "test", "unlabelled")}
        return replace(self, **moved)


def pretrained_words(seed: int, *, dim: int, noise: float) -> Tensor:
    """The concept world's word vectors (size, dim) with noise, each of length 3."""
    vectors = noisy_vectors(LEXICON, dim, noise, generator=stream(seed, "dse", "vectors"))
    return 3 * nn.functional.normalize(vectors, dim=1)


def concept_world(seed: int, task: Task, *, labelled: int, unlabelled: int, test: int, flips: float, dim: int, noise: float) -> World:
    """Eight words a sentence; k of up to five shared concepts decide.

    Binary: k of at least 3. Classes: k of 0 or 1, 2 or 3, 4 or 5. Regression: k / 5. A share ``flips`` of the labels of the training and the
    development part is wrong: the other class, one of the other classes, or a value drawn at random.
    """
    vectors = pretrained_words(seed, dim=dim, noise=noise)

    def drawn(count: int, name: str) -> ConceptPairs:
        return concept_pairs(count, LEXICON, words=WORDS, most_shared=MOST_SHARED, generator=stream(seed, "dse", name))

    def part(count: int, name: str, wrong: float) -> Labelled:
        pairs = drawn(count, name)
        label = label_of(pairs.shared, task)
        draws = stream(seed, "dse", name, "flips")
        flip = torch.rand(count, generator=draws) < wrong
        other = label_of(torch.randint(MOST_SHARED + 1, (count,), generator=draws), task)
        if task != "regression":  # another class for certain
            other = (label + torch.randint(1, OUTPUTS[task], (count,), generator=draws)) % OUTPUTS[task]
        return Labelled(pairs.first, pairs.second, torch.where(flip, other, label))

    parts = part(labelled, "train", flips), part(400, "development", flips), part(test, "test", 0.0), part(unlabelled, "unlabelled", 0.0)
    return World(*parts, task, lambda: word_teacher(vectors, task), lambda: WordBody(vectors))


def label_of(shared: Tensor, task: Task) -> Tensor:
    """Labels (n,) of the numbers of shared concepts."""
    if task == "binary":
        return (shared >= 3).long()
    return shared // 2 if task == "classes" else shared / MOST_SHARED


def word_teacher(vectors: Tensor, task: Task) -> nn.Module:
    """Every word against the other sentence's."""
    return DecomposableAttention(vectors, hidden=64, features=32, attended=False, outputs=OUTPUTS[task])


@dataclass(frozen=True)
class Entry:
    """A function: its page, the words of its name, its summary."""

    page: Page
    name: str
    summary: str


@cache
def entries() -> tuple[Entry, ...]:
    """The functions and classes of the documentation whose name has two words and whose summary has four, each summary once."""
    found: dict[str, Entry] = {}
    for page in documentation().pages:
        last = page.name.rpartition(".")[2]
        name = " ".join(words(re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", last)))
        own = re.compile(rf"\b{re.escape(last)}\b", re.IGNORECASE)
        summary = " ".join(words(own.sub(" ", page.summary))[:LONGEST])
        if len(name.split()) >= 2 and len(summary.split()) >= 4:
            found.setdefault(summary, Entry(page, name, summary))
    return tuple(found.values())


@cache
def neighbours() -> Tensor:
    """For each entry the one whose summary is nearest by TF-IDF among those of its library, (n,)."""
    kept = entries()
    summaries = [entry.summary for entry in kept]
    near = TfIdf(summaries).scores(summaries).float()
    library, _ = labels([entry.page for entry in kept], "library")
    near[library[:, None] != library] = -1
    near.fill_diagonal_(-1)
    return near.argmax(1)


def names_world(seed: int, *, dim: int, vocabulary: int = 3000) -> World:
    """Does a summary belong to a name? The other half are summaries of the nearest function of the library; parts are split by function."""
    kept = entries()
    known = Vocabulary.of((f"{entry.name} {entry.summary}" for entry in kept), vocabulary)
    names, summaries = known([entry.name for entry in kept], 8, truncate=True), known([entry.summary for entry in kept], LONGEST, truncate=True)
    vectors = 3 * nn.functional.normalize(docstring_vectors(known, dim), dim=1)
    parts = split([entry.page for entry in kept], seed=seed, train=0.7, validation=0.1)
    near = neighbours()

    def part(rows: Sequence[int]) -> Labelled:
        here = torch.tensor(rows)
        own = torch.cat([torch.ones(len(here)), torch.zeros(len(here))]).long()
        order = torch.randperm(len(own), generator=stream(seed, "dse", "names", len(rows)))
        second = torch.cat([summaries[here], summaries[near[here]]])
        return Labelled(names[here].repeat(2, 1)[order], second[order], own[order])

    train, development, test = part(parts.train), part(parts.validation), part(parts.test)
    more = torch.randint(len(kept), (2, len(train)), generator=stream(seed, "dse", "names", "unlabelled"))
    allowed = torch.tensor(parts.train)
    name, summary = allowed[more[0] % len(allowed)], allowed[more[1] % len(allowed)]
    unlabelled = Labelled(names[name], summaries[summary], torch.zeros(len(name), dtype=torch.int64))
    return World(train, development, test, unlabelled, "binary", lambda: word_teacher(vectors, "binary"), lambda: WordBody(vectors))


def published_world(seed: int, *, encoder: str, dim: int, most: int) -> World:
    """Paraphrase or not, on the MSR pairs; the training pairs of SICK and STS are the unlabelled ones.

    Args:
        seed: of the choice of pairs.
        encoder: folder or public name of a pretrained encoder for teacher and student, "wordllama" for its word table, or "" for word vectors that
            are made of the sentences.
        dim: of these.
        most: pairs of a part at most.
    """
    scored = {part: read_pairs("msr", part) for part in ("train", "validation", "test")}
    more = [pair for source in ("sick", "sts") for pair in read_pairs(source, "train")]
    deep = encoder not in ("", TABLE)
    tokeniser: Tokeniser
    if deep:
        body, tokeniser = pretrained(encoder)

        def teacher() -> nn.Module:
            return JointEncoder(deepcopy(body), outputs=2, class_token=True)

        def student() -> Body:
            return deepcopy(body)
    else:
        sentences = [text for pair in [*scored["train"], *more] for text in (pair.first, pair.second)]
        vectors, tokeniser = sentence_vectors(encoder, sentences, size=6000, dim=dim, longest=LONGEST)
        vectors = 3 * nn.functional.normalize(vectors, dim=1)

        def teacher() -> nn.Module:
            return word_teacher(vectors, "binary")

        def student() -> Body:
            return WordBody(vectors)

    def part(pairs: Sequence[ScoredPair], name: str) -> Labelled:
        rows = torch.randperm(len(pairs), generator=stream(seed, "dse", "msr", name))[:most].tolist()
        chosen = [pairs[i] for i in rows]
        sides = ([pair.first for pair in chosen], [pair.second for pair in chosen])
        label = torch.tensor([round(pair.score) for pair in chosen])
        return Labelled(tokeniser(sides[0], LONGEST, truncate=True), tokeniser(sides[1], LONGEST, truncate=True), label)

    named = {name: part(pairs, name) for name, pairs in scored.items()}
    layers = len(student().states(named["test"].first[:1]))
    top = min(4, layers - 1) if deep else 2
    parts = named["train"], named["validation"], named["test"], part(more, "unlabelled")
    return World(*parts, "binary", teacher, student, top, deep)
