"""Training the small and the transformer cross-encoders on pairs, with hard negatives that TF-IDF finds."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlearn.lab.fit import History, fit
from mtlearn.pairs.cur_retrieval.cross_encoders import JointScorer, TwoHeads
from mtlearn.pairs.cur_retrieval.worlds import tfidf

NEAREST = 30


def hard_negatives(pairs: Sequence[tuple[str, str]]) -> Tensor:
    """(n, 30): for each pair's query the numbers of the items nearest by TF-IDF that are not its own; fewer where there are fewer pairs."""
    queries, items = zip(*pairs, strict=True)
    scores = tfidf(queries, items)
    number = {item: i for i, item in enumerate(items)}
    same = torch.tensor([number[item] for item in items])
    scores[same[:, None] == same] = -1  # an item may be the right one of several pairs
    return scores.topk(min(NEAREST, len(pairs) - 1)).indices


def candidates(chosen: Tensor, negatives: Tensor, hard: int, easy: int, generator: torch.Generator) -> Tensor:
    """(n, 1 + hard + easy) numbers of items for pairs ``chosen`` (n,): the right one first, then nearest ones, then any."""
    near = torch.randint(negatives.shape[1], (len(chosen), hard), generator=generator)
    return torch.cat([chosen[:, None], negatives[chosen].gather(1, near), torch.randint(len(negatives), (len(chosen), easy), generator=generator)], 1)


def train_heads(
    model: TwoHeads, queries: Tensor, items: Tensor, negatives: Tensor, *, steps: int, batch: int, rate: float, generator: torch.Generator
) -> History:
    """Train both heads at once: cross-entropy of the right item against 8 near and 7 random ones, summed over the heads.

    Args:
        model: trained in place.
        queries: (n, length) tokens.
        items: (n, length) tokens, row by row the right ones.
        negatives: (n, nearest) of :func:`hard_negatives`.
        steps: updates.
        batch: queries in an update.
        rate: of AdamW.
        generator: for the draws.
    """

    def loss_at(step: int) -> Tensor:
        chosen = torch.randperm(len(queries), generator=generator)[:batch]
        shown = candidates(chosen, negatives, 8, 7, generator)
        scores = model(queries[chosen].repeat_interleave(shown.shape[1], 0), items[shown.flatten()]).view(len(chosen), -1, 2)
        return F.cross_entropy(scores[..., 0], torch.zeros(len(chosen), dtype=torch.long)) + F.cross_entropy(
            scores[..., 1], torch.zeros(len(chosen), dtype=torch.long)
        )

    return fit(model, loss_at, steps=steps, optimizer=torch.optim.AdamW(model.parameters(), rate), schedule="cosine")


def train_joint(
    scorer: JointScorer,
    pairs: Sequence[tuple[str, str]],
    negatives: Tensor,
    *,
    steps: int,
    batch: int,
    rate: float,
    hard: int = 8,
    easy: int = 7,
    generator: torch.Generator,
) -> History:
    """Train a cross-encoder of joint inputs the same way.

    Args:
        scorer: its model is trained in place.
        pairs: n texts of query and item.
        negatives: (n, nearest) of :func:`hard_negatives`.
        steps: updates.
        batch: queries in an update.
        rate: of AdamW.
        hard: near wrong items for a query; the paper has 63, mined by a dual encoder.
        easy: random ones.
        generator: for the draws.
    """

    def loss_at(step: int) -> Tensor:
        chosen = torch.randperm(len(pairs), generator=generator)[:batch]
        shown = candidates(chosen, negatives, hard, easy, generator)
        asked = [pairs[i][0] for i in chosen.tolist() for _ in range(shown.shape[1])]
        scores = scorer.pairs(asked, [pairs[j][1] for j in shown.flatten().tolist()]).view(len(chosen), -1)
        return F.cross_entropy(scores, torch.zeros(len(chosen), dtype=torch.long, device=scores.device))

    return fit(
        scorer.model, loss_at, steps=steps, optimizer=torch.optim.AdamW(scorer.model.parameters(), rate), schedule="cosine", warmup=steps // 10
    )
