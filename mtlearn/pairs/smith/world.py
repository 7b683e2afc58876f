"""Documents in which it is known where the evidence stands: topics hidden among background words, in blocks.

A document has 16 blocks, a block is [CLS] and 7 words. Two tasks::

    evidence      4 blocks hold 4 words of the document's topic, all else is background     match: the same topic
    order         the first half speaks of topic A, the second of B                         match: the same two in the same order

The same vocabulary holds 16 topics of 8 words and 200 background words, after the special tokens of
:data:`mtlearn.layers.tokens.SPECIAL`.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlearn.layers.tokens import SPECIAL
from mtlearn.pairs.labelled import Labelled
from mtlearn.pairs.smith.blocks import Marks

Place = Literal["early", "uniform", "late"]
Kind = Literal["positive", "swapped", "unrelated"]
START = SPECIAL.index("[CLS]")


@dataclass(frozen=True)
class TopicWorld:
    """Sizes of the world.

    Attributes:
        topics: number of topics.
        words: of a topic.
        background: other words.
        blocks: of a document; a multiple of 4.
        size: tokens of a block, [CLS] included.
        held: blocks with evidence.
        dense: topic words of a block with evidence.
    """

    topics: int = 16
    words: int = 8
    background: int = 200
    blocks: int = 16
    size: int = 8
    held: int = 4
    dense: int = 4

    def __post_init__(self) -> None:
        if self.topics < 4 or self.blocks % 4 or not 1 <= self.held <= self.blocks // 4 or not 1 <= self.dense < self.size:
            raise ValueError(
                f"topics must be at least 4, blocks a multiple of 4, held in 1..blocks / 4 and dense in 1..size - 1, got topics={self.topics}, "
                f"blocks={self.blocks}, held={self.held}, dense={self.dense}, size={self.size}"
            )

    @property
    def vocabulary(self) -> int:
        """Token numbers."""
        return len(SPECIAL) + self.topics * self.words + self.background

    @property
    def marks(self) -> Marks:
        """Special tokens."""
        return Marks(0, START, SPECIAL.index("[SEP]"), SPECIAL.index("[MASK]"), tuple(range(len(SPECIAL))), self.vocabulary)

    def topic_of(self, tokens: Tensor) -> Tensor:
        """The topic of each token, -1 for background and special ones."""
        topic = torch.div(tokens - len(SPECIAL), self.words, rounding_mode="floor")
        return torch.where((topic >= 0) & (topic < self.topics), topic, -1)

    def vectors(self, width: int, noise: float, *, generator: torch.Generator) -> Tensor:
        """Word vectors (vocabulary, width) of a stand-in for pre-training: topic + noise, standard deviation 1; special tokens 0."""
        topic = torch.randn(self.topics, 1, width, generator=generator)
        own = torch.randn(self.topics, self.words, width, generator=generator)
        other = torch.randn(self.background, width, generator=generator)
        return torch.cat([torch.zeros(len(SPECIAL), width), ((topic + noise * own) / (1 + noise**2) ** 0.5).flatten(0, 1), other])

    def write(self, topic: Tensor, count: Tensor, *, generator: torch.Generator) -> Tensor:
        """Documents (n, blocks, size): ``count`` words of ``topic`` (both (n, blocks)) at drawn places of each block, background elsewhere."""
        shape = (*topic.shape, self.size - 1)
        rank = torch.rand(shape, generator=generator).argsort(-1).argsort(-1)
        word = torch.randint(self.words, shape, generator=generator) + self.words * topic[..., None]
        other = torch.randint(self.background, shape, generator=generator) + self.topics * self.words
        return F.pad(torch.where(rank < count[..., None], word, other) + len(SPECIAL), (1, 0), value=START)

    def hide(self, topic: Tensor, place: Place, *, generator: torch.Generator) -> Tensor:
        """Documents of the topics (n,) with evidence in the first quarter of the blocks, anywhere, or in the last three quarters.

        Raises:
            ValueError: an unknown place.
        """
        if place not in get_args(Place):
            raise ValueError(f"place must be one of {', '.join(get_args(Place))}, got {place!r}")
        quarter = self.blocks // 4
        score = torch.rand(len(topic), self.blocks, generator=generator)
        if place == "early":
            score[:, quarter:] += 1
        elif place == "late":
            score[:, :quarter] += 1
        chosen = score.argsort(1).argsort(1) < self.held
        return self.write(topic[:, None].expand(-1, self.blocks), self.dense * chosen, generator=generator)

    def evidence(self, count: int, place: Place, *, generator: torch.Generator) -> Labelled:
        """Pairs of the task "evidence", half of them matches."""
        first = torch.randint(self.topics, (count,), generator=generator)
        other = (first + torch.randint(1, self.topics, (count,), generator=generator)) % self.topics
        labels = torch.arange(count) % 2 == 0
        both = [self.hide(topic, place, generator=generator) for topic in (first, torch.where(labels, first, other))]
        return Labelled(both[0], both[1], labels.float())

    def spoken(self, a: Tensor, b: Tensor, *, generator: torch.Generator) -> Tensor:
        """Documents that speak of topic a (n,), then of b: two topic words in a block with probability 0.75."""
        half = self.blocks // 2
        topic = torch.stack([a, b], 1).repeat_interleave(half, 1)
        return self.write(topic, 2 * (torch.rand(topic.shape, generator=generator) < 0.75), generator=generator)

    def two_topics(self, count: int, *, generator: torch.Generator) -> Tensor:
        """Unlabelled documents of the task "order"."""
        drawn = torch.rand(count, self.topics, generator=generator).argsort(1)
        return self.spoken(drawn[:, 0], drawn[:, 1], generator=generator)

    def order(self, kinds: Tensor, *, generator: torch.Generator) -> Labelled:
        """Pairs of the task "order": kind 0 is a match, 1 has the topics swapped, 2 has two other topics."""
        a, b, c, d = torch.rand(len(kinds), self.topics, generator=generator).argsort(1)[:, :4].T
        first = self.spoken(a, b, generator=generator)
        row = torch.arange(len(kinds))
        c, d = torch.stack([a, b, c])[kinds, row], torch.stack([b, a, d])[kinds, row]
        second = self.spoken(c, d, generator=generator)
        return Labelled(first, second, (kinds == 0).float())

    def order_batch(self, count: int, *, generator: torch.Generator) -> Labelled:
        """Pairs to train on: half matches, a quarter swapped, a quarter unrelated."""
        return self.order(torch.tensor([0, 1, 0, 2]).repeat(-(-count // 4))[:count], generator=generator)
