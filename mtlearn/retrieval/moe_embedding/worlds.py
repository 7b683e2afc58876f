"""Two worlds of domains that disagree on what is similar: made items, and functions that are listed together in a third one's See Also.

A made item is a slot and ten shuffled words: three of attribute 1, three of attribute 2, four fillers::

    slot  a7' f12 b3'' a7 f3 b3 f30 a7'' b3' f9          attributes (7, 3)

Domain 0 calls two items similar where attribute 1 agrees, domain 1 where attribute 2 does, domain 2 where both agree modulo 4.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mtlearn.datasets.documentation import documentation
from mtlearn.lab.seeds import stream
from mtlearn.layers.tokens import words
from mtlearn.retrieval.moe_embedding.method import co_cited

MASK, SLOT = 1, 2
VALUES, SYNONYMS, FILLERS, DOMAINS = 20, 5, 40, 3
FIRST = 3
SIZE = FIRST + 2 * VALUES * SYNONYMS + FILLERS
LENGTH = 11
LIBRARIES = ("numpy", "scipy", "networkx", "sklearn")


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts of one domain each.

    Attributes:
        first, second: tokens (n, length).
        domain: (n,).
        positive: (n,) bool.
        keys: (n,) equal keys are similar.
    """

    first: Tensor
    second: Tensor
    domain: Tensor
    positive: Tensor
    keys: Tensor


def items(attributes: Tensor, draw: torch.Generator) -> Tensor:
    """Tokens (n, 11) of items with ``attributes`` (n, 2)."""
    n = len(attributes)
    synonyms = torch.randint(SYNONYMS, (n, 2, 3), generator=draw)
    named = FIRST + (torch.arange(2)[:, None] * VALUES + attributes[..., None]) * SYNONYMS + synonyms  # (n, 2, 3)
    filler = FIRST + 2 * VALUES * SYNONYMS + torch.randint(FILLERS, (n, 4), generator=draw)
    content = torch.cat([named.flatten(1), filler], 1)
    shuffled = content.gather(1, torch.rand(n, LENGTH - 1, generator=draw).argsort(1))
    return torch.cat([torch.full((n, 1), SLOT), shuffled], 1)


def attributes_of(n: int, draw: torch.Generator) -> Tensor:
    """Attributes (n, 2), even over all values."""
    return torch.randint(VALUES, (n, 2), generator=draw)


def key(attributes: Tensor, domain: int) -> Tensor:
    """What two items (n, 2) must share to be similar in a domain, (n,)."""
    if not 0 <= domain < DOMAINS:
        raise ValueError(f"domain must be between 0 and {DOMAINS - 1}, got {domain}")
    return attributes[:, domain] if domain < 2 else attributes[:, 0] % 4 * 4 + attributes[:, 1] % 4


def partners(attributes: Tensor, domain: int, draw: torch.Generator) -> Tensor:
    """Attributes (n, 2) of items that are similar in a domain and fresh otherwise."""
    other = attributes_of(len(attributes), draw)
    if domain == 2:
        return attributes % 4 + 4 * (other // 4)
    other[:, domain] = attributes[:, domain]
    return other


def positives(n: int, domain: int, draw: torch.Generator) -> Pairs:
    """``n`` similar pairs of a domain."""
    one = attributes_of(n, draw)
    two = partners(one, domain, draw)
    return Pairs(items(one, draw), items(two, draw), torch.full((n,), domain), torch.ones(n, dtype=torch.bool), key(one, domain))


def balanced(n: int, domain: int, draw: torch.Generator) -> Pairs:
    """``n`` pairs of a domain, half of them similar, the others drawn again until their keys differ."""
    one = attributes_of(n, draw)
    similar = torch.arange(n) < n // 2
    two = torch.where(similar[:, None], partners(one, domain, draw), attributes_of(n, draw))
    while (wrong := ~similar & (key(one, domain) == key(two, domain))).any():
        two = torch.where(wrong[:, None], attributes_of(n, draw), two)
    return Pairs(items(one, draw), items(two, draw), torch.full((n,), domain), similar, key(one, domain))


# functions


@dataclass(frozen=True)
class Functions:
    """Functions of four libraries and the pairs that are co-cited.

    Attributes:
        texts: what each says, without See Also.
        library: (n,) the domain.
        pairs: (m, 2) co-cited inside a library.
    """

    texts: tuple[str, ...]
    library: Tensor
    pairs: Tensor


@cache
def functions(most_words: int = 48) -> Functions:
    """The functions that stand in a co-cited pair."""
    pages = documentation(LIBRARIES).pages
    place = {page.name: i for i, page in enumerate(pages)}
    texts = [" ".join(words(page.summary + " " + page.body())[:most_words]) for page in pages]
    library = torch.tensor([LIBRARIES.index(page.library) for page in pages])
    references = [sorted({place[name] for name in page.links if name in place} - {i}) for i, page in enumerate(pages)]
    pairs = co_cited(references)
    kept = (library[pairs[:, 0]] == library[pairs[:, 1]]) & torch.tensor([bool(texts[i] and texts[j]) for i, j in pairs.tolist()])
    used, numbered = torch.unique(pairs[kept], return_inverse=True)
    return Functions(tuple(texts[i] for i in used.tolist()), library[used], numbered)


@dataclass(frozen=True)
class CitedSplit:
    """Co-cited pairs, split by function.

    Attributes:
        train: (m, 2) pairs whose two functions are for training.
        test: (2 t, 2) pairs whose two functions are held out: t co-cited ones, then as many of the same library that are not.
        positive: (2 t,) bool.
        domain: (2 t,) library of the test pairs.
    """

    train: Tensor
    test: Tensor
    positive: Tensor
    domain: Tensor


def cited_split(found: Functions, seed: int, *, held_out: float = 0.2) -> CitedSplit:
    """Hold a share of the functions out; a test pair shares no function with a training pair."""
    draw = stream(seed, "moe_embedding", "functions")
    number = len(found.texts)
    out = torch.rand(number, generator=draw) < held_out
    ends = out[found.pairs]
    known = {(int(i), int(j)) for i, j in found.pairs}
    test = found.pairs[ends.all(1)]
    negative: list[list[int]] = []
    for library in found.library[test[:, 0]].tolist():
        among = (out & (found.library == library)).nonzero()[:, 0]
        while True:
            i, j = sorted(among[torch.randint(len(among), (2,), generator=draw)].tolist())
            if i != j and (i, j) not in known:
                break
        negative.append([i, j])
    both = torch.cat([test, torch.tensor(negative, dtype=torch.int64).view(-1, 2)])
    return CitedSplit(found.pairs[~ends.any(1)], both, torch.arange(len(both)) < len(test), found.library[both[:, 0]])


def similar_table(found: Functions) -> Tensor:
    """Bool (n, n): which functions are the same or co-cited, and so no negatives of each other."""
    table = torch.eye(len(found.texts), dtype=torch.bool)
    table[found.pairs[:, 0], found.pairs[:, 1]] = table[found.pairs[:, 1], found.pairs[:, 0]] = True
    return table
