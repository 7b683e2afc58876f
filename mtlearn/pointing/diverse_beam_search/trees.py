r"""Table trees: models small enough to look at whole. Every prefix has its own row of probabilities.

The prefixes are numbered as in a heap: 0 is the empty one, and prefix i followed by word c is prefix ``words * i + 1 + c``::

    words = 2    0
               /   \
              1     2
             / \   / \
            3   4 5   6
"""

import torch
from torch import Tensor

from mtlearn.pointing.decoding import State


def random_trees(count: int, *, words: int, steps: int, alpha: float = 1.0, ends: bool = False, generator: torch.Generator) -> Tensor:
    """``count`` trees with every conditional drawn from Dirichlet(alpha): log-probabilities (count, prefixes, words + 1), float64.

    Args:
        count: number of trees.
        words: size of the vocabulary, the end token not counted: that is token number ``words``.
        steps: depth.
        alpha: small values give conditionals with one likely word, large ones flat conditionals.
        ends: whether the end token has a probability as any word has; without it every sequence has ``steps`` words.
        generator: source of the draws.
    """
    if count < 1 or words < 1 or steps < 1 or not alpha > 0:
        raise ValueError(f"count, words, steps and alpha must be positive, got count={count}, words={words}, steps={steps}, alpha={alpha}")
    prefixes = sum(words**depth for depth in range(steps))
    width = words + 1 if ends else words
    gamma = torch._standard_gamma(torch.full((count, prefixes, width), alpha, dtype=torch.float64), generator=generator)
    log_probs = gamma.clamp(min=1e-300).log().log_softmax(-1)
    return log_probs if ends else torch.nn.functional.pad(log_probs, (0, 1), value=-torch.inf)


def tree_state(trees: Tensor) -> State:
    """The state from which :func:`tree_step` decodes each tree of ``trees`` (count, prefixes, words + 1)."""
    return {"tree": torch.arange(len(trees)), "prefix": torch.full((len(trees),), -1)}


def tree_step(trees: Tensor, tokens: Tensor, state: State) -> tuple[Tensor, State]:
    """A step of the chapter's decoders; with ``partial(tree_step, trees)`` it is one. The token before the first is -1."""
    words = trees.shape[2] - 1
    prefix = torch.where(state["prefix"] < 0, 0, words * state["prefix"] + 1 + tokens)
    # below the deepest prefix nothing is asked for; a finished sequence has no continuation either
    return trees[state["tree"], prefix.clamp(max=trees.shape[1] - 1)], {"tree": state["tree"], "prefix": prefix}


def all_scores(trees: Tensor, steps: int) -> Tensor:
    """Log-probability of every sequence of ``steps`` words: (count, words ** steps), the first word varies slowest."""
    count, _, width = trees.shape
    words = width - 1
    scores, first = trees.new_zeros(count, 1), 0
    for depth in range(steps):
        level = trees[:, first : first + words**depth, :words]  # (count, words ** depth, words)
        scores = (scores[..., None] + level).flatten(1)
        first += words**depth
    return scores
