"""Exercises on Concrete."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mtlearn.explore.exercises import Exercise
from mtlearn.lab.result import recorded
from mtlearn.lab.seeds import stream
from mtlearn.merging.concrete.experiment import ARITHMETIC, CONCRETE, LABELLED_MASK
from mtlearn.merging.concrete.method import masked_vectors
from mtlearn.merging.task_vectors import add, apply


def _variance(x: float, temperature: float) -> float:
    """Of dm/dx over u, by the midpoint rule on the logistic variable logit(u), which has no corner."""
    z = torch.linspace(-40, 40, 800_001, dtype=torch.float64)
    density = torch.sigmoid(z) * torch.sigmoid(-z)
    m = torch.sigmoid((z + x) / temperature)
    slope = m * (1 - m) / temperature
    step = float(z[1] - z[0])
    mean = float((slope * density).sum()) * step
    return float((slope.square() * density).sum()) * step - float(mean * mean)


def _judge_variance(answer: Callable[[float, float], float]) -> str | None:
    for x, temperature in ((0.0, 0.02), (1.5, 0.02), (-1.0, 0.01), (0.5, 0.005)):
        right, given = _variance(x, temperature), float(answer(x, temperature))
        if abs(given / right - 1) > 0.03:
            return (
                f"at x={x:g} and T={temperature:g} the variance is {right:.3f}, yours {given:.3f}. Substitute v = (logit(u) + x)/T: the slope "
                "squared is (s(1-s))²/T² with s = σ(v), du is the logistic density times T dv, and the integral of (s(1-s))² over v is 1/6."
            )
    return None


def _solve_variance() -> Any:
    def variance(x: float, temperature: float) -> float:
        # the density of logit(u) at -x is p(1-p); E[slope²] = p(1-p)/(6T), E[slope] = p(1-p)
        p = 1 / (1 + math.exp(-x))
        spread = p * (1 - p)
        return spread / (6 * temperature) - spread**2

    return variance


def _wrong_variance(x: float, temperature: float) -> float:
    return 1 / (16 * temperature**2)


def _judge_labels(answer: tuple[float, float]) -> str | None:
    arms = recorded("concrete").arms
    first = arms[CONCRETE]["accuracy"].mean - arms[ARITHMETIC]["accuracy"].mean
    second = arms[LABELLED_MASK]["accuracy, adapted inputs"].mean - arms[LABELLED_MASK]["accuracy"].mean
    gain, gap = (float(value) for value in answer)
    share = first / (arms[LABELLED_MASK]["accuracy"].mean - arms[ARITHMETIC]["accuracy"].mean)
    if abs(gain - share) > 0.02:
        return f"the first number is {share:.2f} to two digits, yours {gain:.2f}: both gains are over task arithmetic, by 'accuracy'."
    if abs(gap - second) > 0.005:
        return f"the second number should be {second:.3f}, yours {gap:.3f}: right on the 300 labelled inputs minus right on the test."
    return None


def _solve_labels() -> Any:
    def answer() -> tuple[float, float]:
        from mtlearn.lab.result import recorded

        arms = recorded("concrete").arms
        plain = arms["task arithmetic"]["accuracy"].mean
        unlabelled, labelled = arms["Concrete Task Arithmetic"]["accuracy"].mean, arms["mask, by labels"]["accuracy"].mean
        return (unlabelled - plain) / (labelled - plain), arms["mask, by labels"]["accuracy, adapted inputs"].mean - labelled

    return answer()


def _judge_merge(answer: Callable[[Mapping[str, Tensor], list[dict[str, Tensor]], Mapping[str, Tensor], float], Mapping[str, Tensor]]) -> str | None:
    shapes = {"weight": (4, 6), "bias": (4,)}
    base, *vectors = ({name: torch.randn(s, generator=stream(n, "exercise", name)) for name, s in shapes.items()} for n in range(4))
    mask = {name: torch.rand(s, generator=stream(9, "exercise", name)) for name, s in shapes.items()}
    mask["bias"] = mask["bias"] * 0.1  # a tensor that is mostly dropped
    right = apply(base, masked_vectors([add(vectors)], mask)[0], 0.3)
    found = answer(dict(base), [dict(vector) for vector in vectors], dict(mask), 0.3)
    for name, value in right.items():
        if name not in found or found[name].shape != value.shape:
            return f"the merged state needs an entry {name!r} of shape {tuple(value.shape)}."
        if not torch.allclose(found[name], value, atol=1e-5):
            everything = sum(float(m.sum()) for m in mask.values()) / sum(m.numel() for m in mask.values())
            moved = base[name] + 0.3 * add(vectors)[name] * mask[name] / everything
            if torch.allclose(found[name], moved, atol=1e-4):
                return f"the entry {name!r} is divided by the mean of the whole mask; each tensor is divided by the mean of its own."
            return f"the entry {name!r} is not θ_0 + λ Σ_t τ_t ⊙ m/mean(m), the sum over all {len(vectors)} vectors."
    return None


def _solve_merge() -> Any:
    def merge(base: Any, vectors: Any, mask: Any, scale: float) -> Any:
        # one mask for all, so it can be applied after the sum; seen or unseen makes no difference
        merged = {}
        for name, weight in base.items():
            summed = sum(vector[name] for vector in vectors)
            merged[name] = weight + scale * summed * mask[name] / mask[name].mean()
        return merged

    return merge


def _wrong_merge(base: Any, vectors: Any, mask: Any, scale: float) -> Any:
    mean = sum(float(m.sum()) for m in mask.values()) / sum(m.numel() for m in mask.values())
    return {name: weight + scale * sum(vector[name] for vector in vectors) * mask[name] / mean for name, weight in base.items()}


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        question=(
            r"**1. Why not a colder coin?** $P(m > \frac12) = \sigma(x)$ at every temperature (prove it: $m > \frac12$ exactly where "
            r"$\mathrm{logit}(u) > -x$). So why not $T = 0.01$? Because of the gradient $\partial m/\partial x = m(1-m)/T$. Write a function of "
            r"`(x, temperature)` that returns its *variance* over $u$, right to 3 % for small $T$. Set `answer` to it."
        ),
        judge=_judge_variance,
        solve=_solve_variance,
        wrong=_wrong_variance,
        reason=(
            "with p = σ(x) it is p(1-p)/(6T) - (p(1-p))². The mean, p(1-p), does not depend on T, so halving the temperature doubles the "
            "gradient's noise: most samples say nothing and a few say much."
        ),
    ),
    Exercise(
        question=(
            "**2. With labels.** The arm `mask, by labels` trains the same mask by cross-entropy on the labels of the 300 validation inputs. From "
            '`recorded("concrete").arms[arm][metric].mean` compute two numbers: which share of *its* gain over `task arithmetic` (metric `accuracy`) '
            "the unlabelled `Concrete Task Arithmetic` has; and how far the labelled mask's `accuracy` on the test lies below its "
            "`accuracy, adapted inputs`. Set `answer` to the pair."
        ),
        judge=_judge_labels,
        solve=_solve_labels,
        wrong=(0.0, 0.0),
        reason=(
            "entropy has nearly half of what labels would give. And one logit a weight, 91,680 of them for 300 images, learns what it was shown much "
            "better than the test: it overfits, which 80 coefficients hardly can."
        ),
    ),
    Exercise(
        question=(
            "**3. Tasks that the mask has not seen.** A mask was learned on six of eight tasks. Write a function of "
            "`(base, vectors, mask, scale)`, which are a state, all eight task vectors, a state of values in (0, 1), and a number. It returns the "
            "merged state of Concrete Task Arithmetic. Set `answer` to it. Then look up whether it helped the two unseen tasks in the result above."
        ),
        judge=_judge_merge,
        solve=_solve_merge,
        wrong=_wrong_merge,
        reason=(
            "the mask is applied to the sum, tensor by tensor. Here it did not help the unseen tasks, though their own models wear it without harm: "
            "it drops weights whose changes disturb the six, and nothing in its training spoke for the other two."
        ),
    ),
)
