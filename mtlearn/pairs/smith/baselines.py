"""What SMITH is compared with: a flat transformer, hierarchical recurrent networks, a mean of word vectors, TF-IDF.

All but TF-IDF are Siamese: a document becomes a vector of length 1, ``z = 6 cos + bias``. Documents are blocks (B, n, s), as for SMITH.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mtlearn.datasets.tfidf import TfIdf
from mtlearn.layers.decomposable_attention import MeanOfWords, word_embedding
from mtlearn.layers.text_encoders import TokenEncoder
from mtlearn.layers.tokens import PADDING, joined
from mtlearn.pairs.smith.method import Head


class Siamese(nn.Module, ABC):
    """A score from ``embed``.

    Args:
        scale: of the cosine.
        bias: start of a learned number added to it.
    """

    def __init__(self, scale: float = 6.0, bias: float = -3.0) -> None:
        super().__init__()
        self.scale, self.bias = scale, nn.Parameter(torch.tensor(bias))

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Documents (B, n, s) to vectors (B, features) of length 1."""

    def score(self, first: Tensor, second: Tensor) -> Tensor:
        """Scores z (B,) of vectors."""
        return self.scale * (first * second).sum(-1) + self.bias

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Scores z (B,) of two documents each; above 0 is a match."""
        if first.shape == second.shape:
            one, two = self.embed(torch.cat([first, second])).chunk(2)
            return self.score(one, two)
        return self.score(self.embed(first), self.embed(second))


def flat(tokens: Tensor, start: int, end: int) -> Tensor:
    """Blocks (B, n, s) as one sequence (B, 1 + words): [CLS] and all words, padding at the end."""
    words = torch.where((tokens == start) | (tokens == end), PADDING, tokens)
    found, _ = joined([words.flatten(1)])
    return F.pad(found, (1, 0), value=start)


class FlatEncoder(Siamese):
    """Full attention over all words of the document, the vector of [CLS]: BERT where the length is affordable.

    Args:
        body: with as many positions as a document has words, and one more.
        start, end: numbers of [CLS] and [SEP].
    """

    def __init__(self, body: TokenEncoder, start: int, end: int) -> None:
        super().__init__()
        self.body, self.start, self.end = body, start, end
        self.head = Head(body.width)

    def embed(self, tokens: Tensor) -> Tensor:
        """Documents (B, n, s) to (B, width)."""
        vectors: Tensor = self.head(self.body(flat(tokens, self.start, self.end))[:, 0])
        return vectors


class WordMean(Siamese):
    """Mean of trained word vectors over the full length: a bag of words.

    Args:
        vectors: (size, d) to start from; row 0 is padding.
    """

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.mean = MeanOfWords(vectors)

    def embed(self, tokens: Tensor) -> Tensor:
        """Documents (B, n, s) to (B, d)."""
        vectors: Tensor = self.mean.embed(tokens.flatten(1))
        return vectors


class AttentiveGRU(nn.Module):
    """A bidirectional GRU over a sequence and attention over its states: a sequence of vectors becomes one vector.

    Args:
        width: of the input and the result; even.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)
        self.attend, self.context = nn.Linear(width, width), nn.Parameter(torch.randn(width) * width**-0.5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(R, length, width) and a mask (R, length) that is true at the beginning of each row, at least once, to (R, width)."""
        if mask.all():
            states, _ = self.gru(x)
        else:
            packed = pack_padded_sequence(x, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
            states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=x.shape[1])
        weights = (self.attend(states).tanh() @ self.context).masked_fill(~mask, -torch.inf).softmax(1)
        vectors: Tensor = (weights[..., None] * states).sum(1)
        return vectors


class HierarchicalRNN(Siamese):
    """Hierarchical attention network (Yang et al., NAACL 2016), or with several depths SMASH (Jiang et al., WWW 2019).

    Depth 1 reads all words as one sequence, depth 2 words to blocks to document, depth 3 words to blocks to groups of ``group`` blocks to document.
    With several depths the vectors are concatenated; word vectors are shared.

    Args:
        vectors: (size, width) word vectors to start from.
        start, end: numbers of [CLS] and [SEP], which are left out.
        depths: of 1, 2 and 3; ``(2,)`` is HAN, ``(1, 2, 3)`` SMASH.
        group: blocks of a group at depth 3.

    Raises:
        ValueError: depths that are none of these.
    """

    def __init__(self, vectors: Tensor, start: int, end: int, *, depths: Sequence[int] = (2,), group: int = 4) -> None:
        super().__init__()
        if not depths or not set(depths) <= {1, 2, 3} or group < 1:
            raise ValueError(f"depths must be some of 1, 2 and 3 and group at least 1, got {tuple(depths)} and {group}")
        width = vectors.shape[1]
        self.start, self.end, self.group = start, end, group
        self.word = word_embedding(vectors)
        self.levels = nn.ModuleDict({str(depth): nn.ModuleList([AttentiveGRU(width) for _ in range(depth)]) for depth in depths})
        self.head = nn.Linear(len(depths) * width, width)

    def embed(self, tokens: Tensor) -> Tensor:
        """Documents (B, n, s) to (B, width)."""
        spread = -tokens.shape[1] % self.group
        tokens = F.pad(tokens, (0, 0, 0, spread), value=PADDING)
        batch, n, size = tokens.shape
        found = []
        for depth, levels in self.levels.items():
            length = n * size if depth == "1" else size
            words = flat(tokens.reshape(-1, 1, length), self.start, self.end)[:, 1:]
            x, mask = self.word(words), words != PADDING
            assert isinstance(levels, nn.ModuleList)
            for level, layer in enumerate(levels):
                there = mask.any(1)
                vectors = x.new_zeros(len(x), x.shape[2])
                vectors[there] = layer(x[there], mask[there])
                rest = len(vectors) // batch
                length = self.group if depth == "3" and level == 0 else rest
                x, mask = vectors.view(-1, length, vectors.shape[1]), there.view(-1, length)
            found.append(x.view(batch, -1))
        return F.normalize(self.head(torch.cat(found, -1)), dim=-1)


def tfidf_cosines(known: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
    """Cosine (n,) of the TF-IDF vectors (sublinear counts, English stop words left out) of two texts each; frequencies from ``known`` texts."""
    return TfIdf(known, stop_words=True).pairs(first, second).float()
