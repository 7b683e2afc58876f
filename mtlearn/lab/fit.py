"""The one training loop: every experiment trains with :func:`fit`."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from tqdm.auto import tqdm

Schedule = Literal["constant", "linear", "cosine", "one_cycle"]


class NonFiniteError(ArithmeticError):
    """A loss or gradient became NaN or infinite; the message names the step and the tensor."""


@dataclass(frozen=True)
class History:
    """What a training run left behind: the loss of every step, the seconds it took."""

    losses: tuple[float, ...]
    seconds: float


def fit(
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    *,
    steps: int,
    optimizer: Optimizer,
    schedule: Schedule = "constant",
    warmup: int = 0,
    clip: float | None = None,
    progress: str | None = None,
    after_step: Callable[[int, float], None] | None = None,
) -> History:
    """Train ``model`` in place by minimising ``loss_at(step)`` for ``steps`` steps.

    ``loss_at`` draws its batch and returns a scalar, which keeps data, model and loss in one readable place::

        def loss_at(step: int) -> Tensor:
            points = sample_points(128, 10, generator=draws)
            hulls = convex_hull(points)
            return answer_loss(model(points, hulls), hulls)

        fit(model, loss_at, steps=700, optimizer=torch.optim.Adam(model.parameters(), lr=3e-3), schedule="one_cycle", warmup=70, clip=2.0)

    Args:
        model: its parameters are clipped and named in errors; it is left in training mode.
        loss_at: step number from 0 to a scalar loss.
        steps: number of updates, 0 or more.
        optimizer: its learning rates are the peak of the schedule.
        schedule: ``constant``, ``linear`` or ``cosine`` (linear warm-up, then a straight line or half a cosine to 0), or ``one_cycle`` (Smith and
            Topin 2018).
        warmup: steps until the peak, which ``one_cycle`` reaches at the second step at the earliest.
        clip: largest gradient norm, over all parameters together.
        progress: label of a progress bar; none is shown when omitted.
        after_step: called with the step and its loss after each update.

    Raises:
        NonFiniteError: the loss, a gradient or the norm of all gradients is not finite. The parameters are those before the step.
        ValueError: a setting is out of range, or ``loss_at`` returns no scalar.
    """
    if steps < 0 or not 0 <= warmup <= max(steps, 1):
        raise ValueError(f"steps must be 0 or more and warmup in 0..steps, got steps={steps}, warmup={warmup}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive, got {clip}")
    if schedule not in get_args(Schedule):
        raise ValueError(f"schedule must be one of {', '.join(get_args(Schedule))}, got {schedule!r}")
    scheduler = _scheduler(optimizer, schedule, steps, warmup)
    model.train()
    losses: list[float] = []
    began = time.perf_counter()
    for step in tqdm(range(steps), desc=progress, disable=progress is None, leave=False):
        loss = _scalar(loss_at(step), step)
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteError(f"step {step}: the loss is {value}; {_first_non_finite(model, loss_at, step)}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        norm = nn.utils.get_total_norm(gradients.values())
        if not norm.isfinite():  # looked at before clipping, which would spread it over every gradient
            bad = next(
                (f"the gradient of {name}" for name, gradient in gradients.items() if not gradient.isfinite().all()), "the norm of all gradients"
            )
            raise NonFiniteError(f"step {step}: {bad} is not finite (the loss is {value:.4g})")
        if clip is not None:
            nn.utils.clip_grads_with_norm_(model.parameters(), clip, norm)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(value)
        if after_step is not None:
            after_step(step, value)
    return History(tuple(losses), time.perf_counter() - began)


def _scalar(loss: Any, step: int) -> Tensor:
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss_at must return a scalar tensor, got {got} at step {step}")
    return loss


def _scheduler(optimizer: Optimizer, schedule: Schedule, steps: int, warmup: int) -> LRScheduler | None:
    if steps == 0:
        return None
    if schedule == "constant" and warmup == 0:
        return None
    if schedule == "one_cycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, max_lr=peaks, total_steps=steps + 1, pct_start=min(max(warmup, 2) / (steps + 1), 1))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if schedule == "constant":
            return 1.0
        done = (step - warmup) / max(steps - warmup, 1)
        return 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)


def _first_non_finite(model: nn.Module, loss_at: Callable[[int], Tensor], step: int) -> str:
    """Where NaN or infinity came from: a parameter, or the first module whose output has it when the step is repeated."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"the parameter {name} is not finite"
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            parts = output if isinstance(output, (tuple, list)) else (output,)
            if not all(part.isfinite().all() for part in parts if isinstance(part, Tensor) and part.is_floating_point()):
                found.append(f"the output of {name or 'the model'} ({type(module).__name__}) is the first that is not finite")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    again = math.nan
    try:
        with torch.no_grad():
            again = loss_at(step).item()
    except Exception:  # the repeat only looks for the place; the error that matters is raised by the caller
        pass
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    if math.isfinite(again):
        return f"the step repeated on a new batch gives {again:.4g}, so the batch made it"
    return "all parameters and the outputs of all modules are finite, so the loss function made it"
