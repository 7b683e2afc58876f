"""Does the reply agree with the facts? A task in which words must meet words, and a single vector of the context may be too small.

A *fact* is a key with a value ("the dog: red"), one word whose vector is the sum of a key's and a value's. A context holds several facts; of the
candidates one is true, and the others put a key of the context with the value of another of its facts, so that the words alone say nothing::

    context      dog:red  cup:blue  hat:green  ...
    candidates   [bos] cup:blue [eos]      true
                 [bos] dog:blue [eos]      false: a key and a value of the context, but of two facts
                 [bos] hat:red [eos]       false

With two facts a candidate is true only where both are; the wrong ones put a true and a false fact together, in either order.
"""

import torch
from torch import Tensor, nn

from mtlearn.layers.text_encoders import TokenEncoder

KEYS = VALUES = 16
START, END, MASK = 1, 2, 3  # 0 is padding
FIRST = 4  # the first fact
SIZE = FIRST + KEYS * VALUES


class FactEmbedding(nn.Module):
    """A vector for each token: of a special token its own, of a fact the sum of its key's and its value's.

    Args:
        width: of a vector.
        std: of the first values.
    """

    num_embeddings = SIZE

    def __init__(self, width: int, std: float = 1.0) -> None:
        super().__init__()
        self.special = nn.Embedding(FIRST, width, padding_idx=0)
        self.key, self.value = nn.Embedding(KEYS, width), nn.Embedding(VALUES, width)
        for table in (self.special, self.key, self.value):
            nn.init.normal_(table.weight, std=std)
        with torch.no_grad():
            self.special.weight[0].zero_()

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) int64 to (..., width)."""
        fact = (tokens - FIRST).clamp(min=0)
        summed: Tensor = self.key(fact // VALUES) + self.value(fact % VALUES)
        special: Tensor = self.special(tokens.clamp(max=FIRST - 1))
        return torch.where((tokens >= FIRST)[..., None], summed, special)


def fact_body(width: int, heads: int, layers: int, hidden: int, longest: int) -> TokenEncoder:
    """A small pre-norm encoder whose queries and keys share a projection and whose words are facts."""
    body = TokenEncoder(SIZE, width, heads, layers, hidden, longest=longest, norm_first=True, tied=True)
    body.token = FactEmbedding(width)  # type: ignore[assignment]
    return body


def draw(count: int, facts: int, pool: int, *, parts: int = 1, easy: float = 0.0, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts with their candidates.

    Args:
        count: B contexts.
        facts: M facts of a context, keys and values all different.
        pool: C candidates, one of them true.
        parts: facts of a candidate, 1 or 2.
        easy: share of the wrong candidates whose wrong fact has a value drawn from all, which may be true by accident.
        generator: for the draws.

    Returns:
        contexts (B, M), candidates (B, C, parts + 2) with [bos] and [eos], and the number of the true one (B,).

    Raises:
        ValueError: fewer than two facts or more than there are keys, an empty pool, or parts that are neither 1 nor 2.
    """
    if not 2 <= facts <= min(KEYS, VALUES) or pool < 1 or parts not in (1, 2):
        raise ValueError(f"facts must be in 2..{min(KEYS, VALUES)}, pool at least 1 and parts 1 or 2, got {facts}, {pool} and {parts}")

    def several(high: int, *shape: int) -> Tensor:
        return torch.rand(*shape, high, generator=generator).argsort(-1)

    def one(high: int) -> Tensor:
        return torch.randint(high, (count, pool), generator=generator)

    keys, values = several(KEYS, count)[:, :facts], several(VALUES, count)[:, :facts]
    context = FIRST + keys * VALUES + values
    of_key = one(facts)
    of_value = (of_key + 1 + one(facts - 1)) % facts  # of another fact
    false = keys.gather(1, of_key) * VALUES + values.gather(1, of_value)
    random = keys.gather(1, of_key) * VALUES + one(VALUES)
    is_easy = torch.rand(count, pool, generator=generator) < easy
    false = FIRST + torch.where(is_easy, random, false)
    label = torch.randint(pool, (count,), generator=generator)
    right = torch.arange(pool) == label[:, None]
    true = context.gather(1, one(facts))
    if parts == 1:
        words = torch.where(right, true, false)[..., None]
    else:
        other = context.gather(1, (of_key + 1 + one(facts - 1)) % facts)  # a true fact of another key than the false one
        second = torch.where(right, context.gather(1, one(facts)), false)
        both = torch.stack([torch.where(right, true, other), second], -1)
        words = torch.where((torch.rand(count, pool, 1, generator=generator) < 0.5), both, both.flip(-1))
    edges = torch.full((count, pool, 1), START), torch.full((count, pool, 1), END)
    return context, torch.cat([edges[0], words, edges[1]], -1), label
