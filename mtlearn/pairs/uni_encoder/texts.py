"""From texts to what the Uni-Encoder reads: ``[CLS] words [SEP]`` for the context and for every candidate, and how long dialogues are cut."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlearn.layers.tokens import Tokeniser, Vocabulary, joined


def wrapped(tokeniser: Tokeniser, texts: Sequence[str], most: int, *, truncate: bool = False) -> Tensor:
    """Texts as ``[CLS] words [SEP]``, (n, longest) int64, padded.

    Args:
        tokeniser: a :class:`~mtlearn.layers.tokens.Vocabulary` with special tokens, or one of a pretrained model, which puts its own around a text.
        texts: n texts; a word that is not known becomes [UNK].
        most: tokens of a text at most, the special ones included.
        truncate: cut a longer text.

    Raises:
        ValueError: a text without words, one that is too long and may not be cut, or a vocabulary without the special tokens.
    """
    if not isinstance(tokeniser, Vocabulary):
        return tokeniser(texts, most, truncate=truncate)
    if missing := [name for name in ("[UNK]", "[CLS]", "[SEP]") if name not in tokeniser.number]:
        raise ValueError(f"the vocabulary has no {missing[0]}: make it with the special tokens")
    if most < 3:
        raise ValueError(f"most must be at least 3, a word and two special tokens, got {most}")
    inner = tokeniser(texts, most - 2, truncate=truncate)
    start, end = (torch.full((len(inner), 1), tokeniser.number[name]) for name in ("[CLS]", "[SEP]"))
    return joined((start, inner, end), tokeniser.padding)[0]


def pools(
    tokeniser: Tokeniser, contexts: Sequence[str], candidates: Sequence[Sequence[str]], *, context: int, candidate: int, truncate: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts and their pools, of any sizes, as tokens.

    Args:
        tokeniser: as in :func:`wrapped`.
        contexts: B texts.
        candidates: B pools of texts.
        context: tokens of a context at most.
        candidate: tokens of a candidate at most.
        truncate: cut longer texts.

    Returns:
        contexts (B, n), candidates (B, C, m), and which candidates are there, (B, C) bool.

    Raises:
        ValueError: not one pool a context, an empty pool, or as in :func:`wrapped`.
    """
    if len(contexts) != len(candidates):
        raise ValueError(f"one pool a context is needed, got {len(candidates)} for {len(contexts)}")
    sizes = [len(pool) for pool in candidates]
    if not sizes or not min(sizes):
        raise ValueError(f"pool {sizes.index(0)} is empty; at least one candidate is needed" if sizes else "there is no context")
    flat = wrapped(tokeniser, [text for pool in candidates for text in pool], candidate, truncate=truncate)
    present = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    replies = torch.full((*present.shape, flat.shape[1]), tokeniser.padding)
    replies[present] = flat
    return wrapped(tokeniser, contexts, context, truncate=truncate), replies, present


def recent(utterances: Sequence[Sequence[int]], most: int, *, persona: Sequence[int] = ()) -> list[int]:
    """The persona and as many whole utterances as fit, the newest ones: the paper's way to cut a dialogue.

    Args:
        utterances: token numbers, the oldest first.
        most: tokens in all.
        persona: always kept.

    Raises:
        ValueError: there is no utterance, or not even the newest fits.
    """
    if not utterances:
        raise ValueError("a dialogue needs at least one utterance")
    room = most - len(persona)
    if len(utterances[-1]) > room:
        raise ValueError(f"the newest utterance has {len(utterances[-1])} tokens, {len(utterances[-1]) - room} more than are left of {most}")
    kept: list[int] = []
    for utterance in reversed(utterances):
        if len(kept) + len(utterance) > room:
            break
        kept = [*utterance, *kept]
    return [*persona, *kept]


def read_dialogues(text: str, pool: int = 10) -> list[tuple[list[str], list[str], list[int]]]:
    """Dialogues in the published form of Ubuntu V1 and Douban: a line ``label, utterance, ..., utterance, candidate`` with tabs between.

    Args:
        text: of the file.
        pool: candidates of a context, which stand in as many lines.

    Returns:
        of each dialogue its utterances, its candidates, and their labels (1 for each that is right).

    Raises:
        ValueError: a line of another form, lines that are no whole pools, or a pool of several contexts.
    """
    lines = [line.split("\t") for line in text.splitlines() if line.strip()]
    if pool < 1 or len(lines) % pool:
        raise ValueError(f"{len(lines)} lines are no whole pools of {pool}")
    found = []
    for start in range(0, len(lines), pool):
        rows = lines[start : start + pool]
        for number, row in enumerate(rows, start + 1):
            if len(row) < 3 or row[0] not in ("0", "1"):
                raise ValueError(f"line {number} must be a label 0 or 1, utterances and a candidate, with tabs between")
            if row[1:-1] != rows[0][1:-1]:
                raise ValueError(f"line {number} has another context than line {start + 1}, the first of its pool")
        found.append((rows[0][1:-1], [row[-1] for row in rows], [int(row[0]) for row in rows]))
    return found
