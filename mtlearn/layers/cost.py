"""What a model costs: floating-point operations and parameters, counted."""

from collections.abc import Callable

from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions inside ``run()``, a product and a sum counted as two."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Numbers in the parameters of a model, a shared one once; only what requires a gradient when ``trainable``."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)
