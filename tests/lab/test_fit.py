"""The training loop: what it minimises, clips, schedules and reports, and how it says where a NaN came from."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtlearn.lab.fit import History, NonFiniteError, fit


def line() -> nn.Linear:
    model = nn.Linear(2, 1, bias=False)
    nn.init.ones_(model.weight)
    return model


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr)


def rates(steps: int, *, lr: float = 1.0, **how) -> list[float]:
    """The learning rate of each update."""
    model = line()
    optimizer = sgd(model, lr)
    used = []
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: used.append(opt.param_groups[0]["lr"]))
    fit(model, lambda step: model.weight.sum() * 0, steps=steps, optimizer=optimizer, **how)
    return used


def test_gradient_descent_by_hand():
    model = line()
    seen = []
    # the loss is (w . x)^2 / 2 with x = (1, 0): each step multiplies the first weight by 1 - 0.1
    history = fit(
        model, lambda step: model(torch.tensor([1.0, 0.0])).square().sum() / 2, steps=3, optimizer=sgd(model), after_step=lambda *at: seen.append(at)
    )
    assert torch.allclose(model.weight, torch.tensor([[0.9**3, 1.0]]))
    assert history.losses == pytest.approx([0.5, 0.5 * 0.9**2, 0.5 * 0.9**4])
    assert seen == list(enumerate(history.losses))
    assert history.seconds > 0 and model.training


def test_steps_are_counted_from_zero_and_no_step_changes_nothing():
    model, asked = line(), []

    def loss_at(step: int) -> Tensor:
        asked.append(step)
        return model.weight.sum()

    assert fit(model, loss_at, steps=0, optimizer=sgd(model), schedule="cosine").losses == ()
    assert asked == [] and torch.equal(model.weight, torch.ones(1, 2))
    fit(model, loss_at, steps=4, optimizer=sgd(model))
    assert asked == [0, 1, 2, 3]


def test_a_gradient_of_one_step_does_not_reach_the_next():
    model = line()
    fit(model, lambda step: model.weight[0, step % 2], steps=2, optimizer=sgd(model, 1.0))
    assert torch.equal(model.weight, torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, [1.0] * 6),
        ({"schedule": "constant", "warmup": 3}, [1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0]),
        ({"schedule": "linear", "warmup": 2}, [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ({"schedule": "cosine"}, [0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]),
        ({"schedule": "cosine", "warmup": 2}, [0.5, 1.0, 1.0, *(0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(1, 4))]),
        ({"schedule": "cosine", "warmup": 6}, [k / 6 for k in range(1, 7)]),
    ],
)
def test_learning_rates(how: dict, expected: list[float]):
    assert rates(6, **how) == pytest.approx(expected)
    assert rates(6, lr=0.25, **how) == pytest.approx([0.25 * rate for rate in expected])


def test_one_cycle_rises_to_the_peak_and_falls_to_nearly_nothing():
    used = rates(100, lr=0.4, schedule="one_cycle", warmup=30)
    assert used[0] == pytest.approx(0.4 / 25)  # the defaults of Smith and Topin's schedule in PyTorch: begin at a 25th ...
    assert max(used) == used[29] == pytest.approx(0.4)
    assert used[:30] == sorted(used[:30]) and used[29:] == sorted(used[29:], reverse=True)
    # ... and end, one step after the last, at a 10000th of that
    assert used[-1] < 0.4 / 1000


def test_one_cycle_gives_each_group_its_own_peak():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.5}, {"params": [model.bias], "lr": 0.1}], lr=1.0)
    used = []
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: used.append([group["lr"] for group in opt.param_groups]))
    fit(model, lambda step: model(torch.ones(1)).sum(), steps=10, optimizer=optimizer, schedule="one_cycle", warmup=4)
    assert used[3] == pytest.approx([0.5, 0.1])


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["constant", "cosine", "one_cycle"]), st.integers(2, 12), st.data())
def test_warm_up_ends_at_the_peak(schedule: str, steps: int, data: st.DataObject):
    warmup = data.draw(st.integers(0, steps))
    used = rates(steps, lr=0.3, schedule=schedule, warmup=warmup)
    assert len(used) == steps
    assert max(used) == used[max(warmup, 2 if schedule == "one_cycle" else 1) - 1] == pytest.approx(0.3)
    assert min(used) > 0


@pytest.mark.parametrize("warmup", [0, 1])
def test_one_step_is_a_schedule(warmup: int):
    assert rates(1, schedule="cosine", warmup=warmup) == rates(1, warmup=warmup) == [1.0]
    assert rates(1, schedule="one_cycle", warmup=warmup) == pytest.approx([1 / 25])


@pytest.mark.parametrize(("clip", "norm"), [(None, 5.0), (10.0, 5.0), (0.5, 0.5)])
def test_clipping_bounds_the_norm_over_all_parameters(clip: float | None, norm: float):
    model = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)})
    before = [p.detach().clone() for p in model.parameters()]
    fit(model, lambda step: 3 * model["a"].weight.sum() + 4 * model["b"].weight.sum(), steps=1, optimizer=sgd(model, 1.0), clip=clip)
    moved = torch.cat([(old - new).flatten() for old, new in zip(before, model.parameters(), strict=True)])
    assert moved.norm().item() == pytest.approx(norm, rel=1e-5)
    assert torch.allclose(moved / moved.norm(), torch.tensor([0.6, 0.8]))


def test_a_progress_bar_only_when_it_is_named(capfd: pytest.CaptureFixture[str]):
    model = line()
    fit(model, lambda step: model.weight.sum(), steps=2, optimizer=sgd(model))
    assert capfd.readouterr() == ("", "")
    fit(model, lambda step: model.weight.sum(), steps=2, optimizer=sgd(model), progress="a line")
    out, err = capfd.readouterr()
    assert out == "" and "a line" in err


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"steps": -1}, "steps must be 0 or more and warmup in 0..steps, got steps=-1, warmup=0"),
        ({"steps": 3, "warmup": 4}, "got steps=3, warmup=4"),
        ({"steps": 3, "warmup": -1}, "got steps=3, warmup=-1"),
        ({"steps": 3, "clip": 0.0}, r"clip must be positive, got 0\.0"),
        ({"steps": 3, "clip": math.nan}, "clip must be positive, got nan"),
        ({"steps": 0, "schedule": "step"}, "schedule must be one of constant, linear, cosine, one_cycle, got 'step'"),
    ],
)
def test_wrong_settings(how: dict, message: str):
    model = line()
    with pytest.raises(ValueError, match=message):
        fit(model, lambda step: model.weight.sum(), optimizer=sgd(model), **how)
    assert torch.equal(model.weight, torch.ones(1, 2))


@pytest.mark.parametrize(
    ("loss", "got"),
    [(lambda w: w.flatten(), r"shape \(2,\) at step 0"), (lambda w: w.sum().item(), "float at step 0"), (lambda w: None, "NoneType at step 0")],
)
def test_a_loss_that_is_no_scalar(loss: Callable, got: str):
    model = line()
    with pytest.raises(ValueError, match=f"loss_at must return a scalar tensor, got {got}"):
        fit(model, lambda step: loss(model.weight), steps=1, optimizer=sgd(model))


class Two(nn.Module):
    """Two layers, of which one can be made to give what is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 1)

    def forward(self, inputs: Tensor) -> tuple[Tensor, str]:
        return self.second(self.first(inputs)), "not a tensor"


class Log(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.log()


def breaks(model: nn.Module, loss_at: Callable[[int], Tensor], steps: int = 5, **how) -> str:
    """The error's message, once it is clear that the parameters are those before the step."""
    saved: list[dict[str, Tensor]] = [{name: value.clone() for name, value in model.state_dict().items()}]
    with pytest.raises(NonFiniteError) as caught:
        fit(
            model,
            loss_at,
            steps=steps,
            optimizer=sgd(model, 1e-3),
            after_step=lambda *_: saved.append({name: value.clone() for name, value in model.state_dict().items()}),
            **how,
        )
    assert all(torch.equal(value, saved[-1][name]) or not value.isfinite().all() for name, value in model.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_parameter_that_is_not_finite_is_named(bad: float):
    model = Two()

    def loss_at(step: int) -> Tensor:
        if step == 2:
            with torch.no_grad():
                model.second.weight[0, 1] = bad
        return model(torch.ones(4, 2))[0].square().mean()

    assert breaks(model, loss_at) == f"step 2: the loss is {bad}; the parameter second.weight is not finite"


def test_the_first_module_whose_output_is_not_finite_is_named():
    model = nn.Sequential(nn.Linear(2, 2), Log(), nn.Linear(2, 1))
    inputs = torch.ones(4, 2)
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[0].bias.zero_()

    def loss_at(step: int) -> Tensor:
        return model(-inputs if step == 3 else inputs).mean()

    assert breaks(model, loss_at) == "step 3: the loss is nan; the output of 1 (Log) is the first that is not finite"


def test_a_module_that_returns_a_tuple_is_seen():
    model = Two()
    message = breaks(model, lambda step: model(torch.full((4, 2), math.inf if step else 1.0))[0].mean())
    assert message.endswith("the output of first (Linear) is the first that is not finite") and message.startswith("step 1: the loss is ")


def test_the_model_itself_is_named_as_such():
    class Lonely(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(-1.0))

        def forward(self) -> tuple[Tensor]:
            return (self.weight.log(),)

    model = Lonely()
    assert breaks(model, lambda step: model()[0]) == "step 0: the loss is nan; the output of the model (Lonely) is the first that is not finite"


def test_the_loss_function_is_named_where_all_modules_are_finite():
    model = Two()
    message = breaks(model, lambda step: model(torch.ones(1, 2))[0].square().sum() + (math.nan if step == 1 else 0.0))
    assert message == "step 1: the loss is nan; all parameters and the outputs of all modules are finite, so the loss function made it"


def test_a_batch_that_does_not_come_again_is_named():
    model, draws = Two(), iter([1.0, math.nan, 1.0])
    message = breaks(model, lambda step: model(torch.ones(1, 2))[0].sum() * 0 + next(draws))
    assert message == "step 1: the loss is nan; the step repeated on a new batch gives 1, so the batch made it"


def test_a_repeat_that_breaks_does_not_hide_the_error():
    model, draws = Two(), iter([math.nan])

    def loss_at(step: int) -> Tensor:
        return model(torch.ones(1, 2))[0].sum() * next(draws)

    assert breaks(model, loss_at).startswith("step 0: the loss is nan; all parameters")
    assert not model._forward_hooks and not model.first._forward_hooks, "the hooks are gone"


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_named(clip: float | None, bad: float):
    model = Two()
    model.second.weight.register_hook(lambda gradient: torch.full_like(gradient, bad))
    message = breaks(model, lambda step: model(torch.ones(1, 2))[0].sum() * 0 + 2.5, clip=clip)
    assert message == "step 0: the gradient of second.weight is not finite (the loss is 2.5)"


def test_gradients_whose_norm_overflows():
    model = Two()
    message = breaks(model, lambda step: model(torch.ones(1, 2))[0].sum() * 0 + 1 + (model.first.weight * 1e30).sum() * 0 + big(model), clip=1.0)
    assert message.startswith("step 0: the norm of all gradients is not finite")


def big(model: Two) -> Tensor:
    """Zero with a gradient of 1e30 everywhere: finite, but its square is not."""
    weight = model.first.weight
    return ((weight - weight.detach()) * 1e30).sum()


def test_history_is_plain():
    assert History((1.0,), 2.0) == History((1.0,), 2.0)
