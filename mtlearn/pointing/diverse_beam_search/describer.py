r"""A small sequence-to-sequence model that guesses a function's documentation from its name: what the experiment decodes.

A bidirectional GRU reads the pieces of the name, a GRU writes the sentence and attends to what was read (Luong et al. 2015, dot
attention). One embedding table E serves the input, the output's input and the output layer; with o the decoder's state, c the attended
states and :math:`\bar e` the attended *embeddings* of the name's pieces

.. math::
    z = W [o; c] + \alpha \bar e, \qquad \mathrm{logits} = z E^\top + b

so a piece that is looked at is likely to be written: a soft copy. Without it the model does not learn to use the names and babbles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mtlearn.pointing.decoding import State

END, START, UNKNOWN = 0, 1, 2
SPECIAL = ("<end>", "<start>", "<unk>")


@dataclass(frozen=True)
class Vocabulary:
    """Words by number: the special ones, then those a sentence may hold, then those that only names hold.

    Attributes:
        words: all of them.
        output: how many of them, from the first on, can be written.
    """

    words: tuple[str, ...]
    output: int

    @cached_property
    def number(self) -> dict[str, int]:
        """The number of each word."""
        return {word: number for number, word in enumerate(self.words)}

    def encode(self, words: Sequence[str], *, written: bool = False) -> list[int]:
        """Numbers of words, ``UNKNOWN`` for others; ``written`` knows only those that can be written."""
        numbers = [self.number.get(word, UNKNOWN) for word in words]
        return [number if number < self.output else UNKNOWN for number in numbers] if written else numbers

    def decode(self, tokens: Sequence[int]) -> str:
        """The words up to the end token."""
        tokens = list(tokens)
        return " ".join(self.words[token] for token in (tokens[: tokens.index(END)] if END in tokens else tokens))


class Describer(nn.Module):
    """Names to sentences.

    Args:
        vocabulary: rows of the table.
        output: how many of them can be written.
        embedding: width of the table.
        hidden: units of the decoder; the encoder has half of them in each direction.
        dropout: on embeddings and before the output layer.
    """

    def __init__(self, vocabulary: int, output: int, *, embedding: int = 64, hidden: int = 128, dropout: float = 0.2) -> None:
        super().__init__()
        self.output = output
        self.table = nn.Embedding(vocabulary, embedding)
        nn.init.normal_(self.table.weight, std=embedding**-0.5)
        self.encoder = nn.GRU(embedding, hidden // 2, batch_first=True, bidirectional=True)
        self.decoder = nn.GRU(embedding, hidden, batch_first=True)
        self.W = nn.Linear(2 * hidden, embedding, bias=False)
        self.alpha = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(output))
        self.dropout = nn.Dropout(dropout)

    def read(self, names: Tensor, lengths: Tensor) -> State:
        """The state from which names (batch, pieces) of ``lengths`` (batch,) are described, one row each."""
        embedded = self.table(names)
        packed = pack_padded_sequence(self.dropout(embedded), lengths.cpu(), batch_first=True, enforce_sorted=False)
        output, _ = self.encoder(packed)
        memory, _ = pad_packed_sequence(output, batch_first=True, total_length=names.shape[1])  # zeros beyond the length
        blank = torch.arange(names.shape[1], device=names.device) >= lengths[:, None]
        return {"hidden": memory.sum(1) / lengths[:, None], "memory": memory, "embedded": embedded, "blank": blank}

    def write(self, decoded: Tensor, state: State) -> Tensor:
        """Decoder states (batch, steps, hidden) to log-probabilities (batch, steps, output); ``START`` and ``UNKNOWN`` are impossible."""
        scores = decoded @ state["memory"].transpose(1, 2)  # (batch, steps, pieces)
        attention = scores.masked_fill(state["blank"][:, None], -torch.inf).softmax(-1)
        c, copied = attention @ state["memory"], attention @ state["embedded"]
        z = self.W(self.dropout(torch.cat([decoded, c], -1))) + self.alpha * copied
        logits = F.linear(z, self.table.weight[: self.output], self.bias)
        impossible = torch.zeros(self.output, dtype=torch.bool, device=logits.device)
        impossible[[START, UNKNOWN]] = True
        return logits.masked_fill(impossible, -torch.inf).log_softmax(-1)

    def forward(self, names: Tensor, lengths: Tensor, sentences: Tensor) -> Tensor:
        """Log-probabilities (batch, steps, output) of each word of ``sentences`` (batch, steps), given those before it."""
        state = self.read(names, lengths)
        before = F.pad(sentences[:, :-1], (1, 0), value=START)
        decoded, _ = self.decoder(self.dropout(self.table(before)), state["hidden"][None])
        return self.write(decoded, state)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One word further, as :mod:`mtlearn.pointing.decoding` wants it."""
        decoded, hidden = self.decoder(self.table(tokens)[:, None], state["hidden"][None])
        return self.write(decoded, state)[:, 0], {**state, "hidden": hidden[0]}


def sentence_loss(log_probs: Tensor, sentences: Tensor, lengths: Tensor) -> Tensor:
    """Mean negative log-likelihood a word, ``UNKNOWN`` words left out.

    Args:
        log_probs: (batch, steps, output).
        sentences: (batch, steps), ended with ``END``.
        lengths: (batch,) number of tokens, the end token included.
    """
    inside = torch.arange(sentences.shape[1], device=sentences.device) < lengths[:, None]
    counted = inside & (sentences != UNKNOWN)
    return F.nll_loss(log_probs[counted], sentences[counted])
