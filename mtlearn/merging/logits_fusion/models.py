"""Language models small enough for a laptop: characters in, logits of the next character out.

All of them map a prefix (B, L) int64 to logits (B, L, V), at each place those of the token that follows, as the causal language models of the library
transformers do; :func:`last` makes of any of them the callable that :func:`mtlearn.merging.logits_fusion.method.decode` takes.

:class:`CharacterModel` sees 16 characters, so examples further back cannot help it. :class:`Reader` is the same perceptron with one more way to
answer: it looks back for the places whose surroundings resemble the present one and copies the character that followed there (a pointer with a
sentinel; Merity and others 2017). It is the in-context learner of the experiment.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY = 96


class CharacterModel(nn.Module):
    """A perceptron over the embeddings of the last characters.

    Args:
        hidden: units of each hidden layer.
        context: characters that it sees; newlines (token 0) stand before the text.
        embedding: numbers of a character.
        vocabulary: V.
    """

    def __init__(self, hidden: tuple[int, ...], *, context: int = 16, embedding: int = 16, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.context = context
        self.embed = nn.Embedding(vocabulary, embedding)
        widths = (context * embedding, *hidden)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in zip(widths, hidden, strict=False))
        self.head = nn.Linear(widths[-1], vocabulary)

    def hidden(self, contexts: Tensor) -> Tensor:
        """Contexts (..., context) to the last hidden layer (..., width)."""
        x: Tensor = self.embed(contexts).flatten(-2)
        for layer in self.layers:
            x = F.gelu(layer(x))
        return x

    def read(self, contexts: Tensor) -> Tensor:
        """Contexts (..., context) to logits (..., V)."""
        logits: Tensor = self.head(self.hidden(contexts))
        return logits

    def contexts(self, prefix: Tensor) -> Tensor:
        """The last ``context`` characters at each place: (B, L) to (B, L, context)."""
        return F.pad(prefix, (self.context - 1, 0)).unfold(1, self.context, 1)

    def forward(self, prefix: Tensor) -> Tensor:
        """(B, L) to (B, L, V)."""
        return self.read(self.contexts(prefix))


class Reader(nn.Module):
    """A character model with a pointer into what it has read.

    Place i compares itself with every earlier place j by the last hidden layer; the weight on j speaks for the character that followed j, the
    weight on the sentinel for the perceptron's own distribution.

    Args:
        body: the perceptron.
        width: numbers of a query and a key.
    """

    def __init__(self, body: CharacterModel, *, width: int = 64) -> None:
        super().__init__()
        self.body = body
        units = body.head.in_features
        self.query, self.key = nn.Linear(units, width, bias=False), nn.Linear(units, width, bias=False)
        self.sentinel = nn.Linear(units, 1)
        nn.init.constant_(self.sentinel.bias, 4.0)  # at first it trusts the perceptron

    def forward(self, prefix: Tensor) -> Tensor:
        """(B, L) to log-probabilities (B, L, V)."""
        h = self.body.hidden(self.body.contexts(prefix))  # (B, L, units)
        scores = self.query(h) @ self.key(h).transpose(1, 2) * self.query.out_features**-0.5  # (B, L, L)
        length = prefix.shape[1]
        scores = scores[:, :, :-1].masked_fill(torch.ones(length, length - 1, dtype=torch.bool, device=h.device).triu(), -torch.inf)  # j < i only
        weight = torch.cat([scores, self.sentinel(h)], -1).softmax(-1)  # (B, L, L): earlier places, then the sentinel
        vocabulary = self.body.head.out_features
        copied = weight[..., :-1] @ F.one_hot(prefix[:, 1:], vocabulary).to(h.dtype)  # what followed place j is character j + 1
        mixed: Tensor = weight[..., -1:] * self.body.head(h).softmax(-1) + copied
        return mixed.clamp_min(1e-9).log()


def last(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The logits (B, V) after a prefix (B, L), of a model that gives them at every place.

    A :class:`CharacterModel` reads no more than it can see.
    """
    if isinstance(model, CharacterModel):
        return lambda prefix: model.read(model.contexts(prefix[:, -model.context :])[:, -1])
    return lambda prefix: model(prefix)[:, -1]
