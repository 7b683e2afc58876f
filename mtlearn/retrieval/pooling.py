"""One vector of a text's states: that of its first token, of its last one, or their mean, wherever the padding stands.

    pool(states, mask, "last")        # (n, width): under a causal mask only the last token has seen everything

Position -1 of a padded batch is padding; the mask says where a text ends.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from mtlearn.layers.text_encoders import masked_mean

Pooling = Literal["cls", "mean", "last"]


def check_pooling(pooling: str) -> None:
    """Raise ValueError for what is no pooling."""
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}")


def pool(states: Tensor, mask: Tensor, pooling: Pooling = "last") -> Tensor:
    """One vector a text (n, width).

    Args:
        states: (n, length, width).
        mask: (n, length), true or 1 for what is no padding, which may stand left, right or on both sides.
        pooling: ``"cls"`` takes the first token of the mask, ``"last"`` its last one, ``"mean"`` the mean of all.

    Raises:
        ValueError: an unknown pooling, shapes that do not fit, or a row of the mask without a token.
    """
    check_pooling(pooling)
    if states.dim() != 3 or mask.shape != states.shape[:2]:
        raise ValueError(f"states must be (n, length, width) and mask (n, length), got {tuple(states.shape)} and {tuple(mask.shape)}")
    mask = mask.bool()
    empty = ~mask.any(1)
    if empty.any():
        raise ValueError(f"row {int(empty.nonzero()[0, 0])} of the mask has no token; every text needs at least one")
    if pooling == "mean":
        return masked_mean(states, mask)
    place = torch.arange(mask.shape[1], device=mask.device)
    column = (place * mask).argmax(1) if pooling == "last" else mask.int().argmax(1)
    return states[torch.arange(len(states), device=states.device), column]
