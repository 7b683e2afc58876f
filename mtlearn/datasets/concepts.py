r"""Sentences of concepts: pairs whose likeness is known exactly and can only be judged word against word.

Each concept has a few synonyms. A pair of sentences shares some concepts, each sentence says them with words of its own, in an order of its own::

    first     boat  river  small  lamp      shared concepts   {boat, small}        words 1 + concept * synonyms + synonym
    second    tiny  ship   forest king      likeness          2 / 4                0 is padding

Word vectors of a "pretrained model" are a random vector a concept plus noise a word (:func:`noisy_vectors`): synonyms are near, not equal, and
what the noise adds is what pre-training got wrong. Two draws are two models of different families.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lexicon:
    """Concepts with their synonyms.

    Attributes:
        concepts: number of concepts.
        synonyms: words of each.
    """

    concepts: int = 60
    synonyms: int = 3

    def __post_init__(self) -> None:
        if self.concepts < 1 or self.synonyms < 1:
            raise ValueError(f"concepts and synonyms must be at least 1, got {self.concepts} and {self.synonyms}")

    @property
    def size(self) -> int:
        """Token numbers, padding included."""
        return 1 + self.concepts * self.synonyms

    def words(self, concepts: Tensor, *, generator: torch.Generator) -> Tensor:
        """A synonym drawn for each concept number; the shape stays."""
        synonym = torch.randint(self.synonyms, concepts.shape, generator=generator)
        return 1 + concepts * self.synonyms + synonym

    def concept(self, words: Tensor) -> Tensor:
        """Concept numbers of words; -1 for padding."""
        return torch.div(words - 1, self.synonyms, rounding_mode="floor")


@dataclass(frozen=True)
class ConceptPairs:
    """Pairs of sentences.

    Attributes:
        first, second: tokens (n, words) int64.
        shared: (n,) int64, concepts that both sentences have.
    """

    first: Tensor
    second: Tensor
    shared: Tensor

    def __len__(self) -> int:
        return len(self.shared)

    def __getitem__(self, rows: Tensor | slice) -> "ConceptPairs":
        return ConceptPairs(self.first[rows], self.second[rows], self.shared[rows])

    @property
    def likeness(self) -> Tensor:
        """Share of the concepts that are shared, (n,) from 0 to 1."""
        return self.shared / self.first.shape[1]


def concept_pairs(count: int, lexicon: Lexicon, *, words: int = 6, most_shared: int = 6, generator: torch.Generator) -> ConceptPairs:
    """Pairs of sentences of ``words`` different concepts each, which share k of them, k uniform from 0 to ``most_shared``.

    Args:
        count: number of pairs.
        lexicon: concepts and synonyms; at least ``2 * words`` concepts.
        words: of a sentence.
        most_shared: shared concepts at most.
        generator: of every draw.

    Raises:
        ValueError: a number is out of range.
    """
    if count < 0 or words < 1 or not 0 <= most_shared <= words or lexicon.concepts < 2 * words:
        raise ValueError(
            f"count must be at least 0, most_shared in 0..words and concepts at least 2 * words, got count={count}, words={words}, "
            f"most_shared={most_shared}, concepts={lexicon.concepts}"
        )
    shared = torch.randint(most_shared + 1, (count,), generator=generator)
    drawn = torch.rand(count, lexicon.concepts, generator=generator).argsort(1)[:, : 2 * words]  # different concepts
    first, fresh = drawn[:, :words], drawn[:, words:]
    second = torch.where(torch.arange(words) < shared[:, None], first, fresh)

    def said(concepts: Tensor) -> Tensor:
        order = torch.rand(count, words, generator=generator).argsort(1)
        return lexicon.words(concepts.gather(1, order), generator=generator)

    return ConceptPairs(said(first), said(second), shared)


def noisy_vectors(lexicon: Lexicon, dim: int, noise: float, *, generator: torch.Generator) -> Tensor:
    """Word vectors (size, dim): a standard normal vector a concept plus ``noise`` times one a word; row 0 (padding) is 0.

    Raises:
        ValueError: ``dim`` below 1 or negative noise.
    """
    if dim < 1 or noise < 0:
        raise ValueError(f"dim must be at least 1 and noise at least 0, got {dim} and {noise}")
    concept = torch.randn(lexicon.concepts, 1, dim, generator=generator)
    word = torch.randn(lexicon.concepts, lexicon.synonyms, dim, generator=generator)
    return torch.cat([torch.zeros(1, dim), (concept + noise * word).flatten(0, 1)])
