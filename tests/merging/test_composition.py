"""Learned coefficients on task vectors (AdaMerging), and the averages that ask data."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mtlearn.lab.fit import fit
from mtlearn.merging.averaging import diagonal_fisher, fisher_average, input_grams, regmean
from mtlearn.merging.composition import Composition, entropy
from mtlearn.merging.task_vectors import State, add, apply, average, scaled, task_vector

PUBLIC = json.loads((Path(__file__).parent / "public" / "fusion_bench.json").read_text())


def network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 4)).eval()


BASE = network(0)
STATE = {name: value.clone() for name, value in BASE.state_dict().items()}
TUNED = [network(n) for n in (1, 2, 3)]
VECTORS = [task_vector(STATE, model.state_dict()) for model in TUNED]
INPUTS = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))


def logits_of(weights: State) -> Tensor:
    out: Tensor = torch.func.functional_call(BASE, dict(weights), (INPUTS,))
    return out


@pytest.mark.parametrize("per", ["task", "block"])
def test_coefficients_reach_the_base_each_model_and_task_arithmetic(per: str) -> None:
    merged = Composition(BASE, VECTORS, per=per)  # type: ignore[arg-type]
    assert merged.coefficients.shape == ((3,) if per == "task" else (3, 6))
    assert sum(p.numel() for p in merged.parameters()) == merged.coefficients.numel()
    assert torch.equal(merged(INPUTS), BASE(INPUTS))
    with torch.no_grad():
        merged.coefficients[1] = 1
        torch.testing.assert_close(merged(INPUTS), TUNED[1](INPUTS), rtol=0, atol=1e-5)
        merged.coefficients.fill_(0.3)
    torch.testing.assert_close(merged(INPUTS), logits_of(apply(STATE, add(VECTORS), 0.3)), rtol=0, atol=1e-5)
    stored = network(5)
    stored.load_state_dict(merged.state())
    torch.testing.assert_close(stored(INPUTS), merged(INPUTS).detach())


def test_the_gradient_of_a_coefficient_is_the_loss_along_its_block() -> None:
    labels = torch.arange(20) % 4
    merged = Composition(BASE, VECTORS)
    cross_entropy(merged(INPUTS), labels).backward()  # type: ignore[no-untyped-call]
    moved = network(0)
    cross_entropy(moved(INPUTS), labels).backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in moved.named_parameters()}
    assert merged.coefficients.grad is not None
    for i, vector in enumerate(VECTORS):
        for j, name in enumerate(merged.blocks):
            assert merged.coefficients.grad[i, j].item() == pytest.approx((gradients[name] * vector[name]).sum().item(), abs=1e-5)  # type: ignore[operator]


def test_adamerging_lowers_the_entropy_and_trains_nothing_else() -> None:
    merged = Composition(BASE, VECTORS, per="block", initial=0.3)
    before = entropy(merged(INPUTS)).item()
    fit(merged, lambda _: entropy(merged(INPUTS)), steps=60, optimizer=torch.optim.Adam([merged.coefficients], lr=0.02))
    assert entropy(merged(INPUTS)).item() < before
    for name, value in BASE.state_dict().items():
        assert torch.equal(value, STATE[name])


def test_entropy_has_the_numbers_of_public_code_and_its_bounds() -> None:
    assert entropy(torch.tensor(PUBLIC["logits"])).item() == pytest.approx(PUBLIC["entropy"], abs=1e-6)
    assert entropy(torch.zeros(3, 7)).item() == pytest.approx(math.log(7))
    assert entropy(torch.tensor([[0.0, 200.0]])).item() == pytest.approx(0, abs=1e-6)
    for wrong, words in ((torch.zeros(3, 1), "at least two classes"), (torch.zeros(0, 3), "at least one input")):
        with pytest.raises(ValueError, match=words):
            entropy(wrong)


def test_compositions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="'task' or 'block'"):
        Composition(BASE, VECTORS, per="layer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is no task vector"):
        Composition(BASE, [])
    with pytest.raises(ValueError, match="an entry 'other' that the model lacks"):
        Composition(BASE, [{"other": torch.ones(2)}])
    with pytest.raises(ValueError, match=r"'0.bias' has shape \(2,\) in the task vectors, \(8,\)"):
        Composition(BASE, [{"0.bias": torch.ones(2)}])
    with pytest.raises(ValueError, match=r"'0.bias' of the task vectors holds 8 of 8"):
        Composition(BASE, [{"0.bias": torch.full((8,), math.nan)}])
    mixed = Composition(BASE, [{"0.bias": torch.ones(8), "count": torch.tensor(3)}])
    assert mixed.blocks == ("0.bias",)


def test_the_fisher_information_of_a_linear_model_is_its_closed_form() -> None:
    layer = nn.Linear(6, 4).eval()
    found = diagonal_fisher(layer, INPUTS, chunk=7)
    p = layer(INPUTS).softmax(-1).detach()
    variance = p * (1 - p)  # of the residual of each logit
    torch.testing.assert_close(found["bias"], variance.mean(0))
    torch.testing.assert_close(found["weight"], torch.einsum("nc,nd->cd", variance, INPUTS.square()) / len(INPUTS))
    torch.testing.assert_close(diagonal_fisher(layer, INPUTS, logits=lambda out: out)["bias"], found["bias"])


def test_fisher_averaging_weighs_by_information() -> None:
    fishers = [{name: torch.full_like(value, float(weight)) for name, value in VECTORS[0].items()} for weight in (1, 3, 0)]
    merged = fisher_average(VECTORS, fishers)
    for name, value in average(VECTORS, [1, 3, 0]).items():
        torch.testing.assert_close(merged[name], value)
    nothing = [{name: torch.zeros_like(value) for name, value in VECTORS[0].items()}] * 3
    torch.testing.assert_close(fisher_average(VECTORS, nothing)["0.weight"], average(VECTORS)["0.weight"])
    torch.testing.assert_close(fisher_average(VECTORS, [{}] * 3)["0.weight"], average(VECTORS)["0.weight"])


def test_regmean_is_least_squares_on_the_outputs_of_a_layer() -> None:
    base = nn.Linear(6, 4, bias=False)
    tuned = [nn.Linear(6, 4, bias=False) for _ in range(2)]
    inputs = [torch.randn(30, 6, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    vectors = [task_vector(base.state_dict(), model.state_dict()) for model in tuned]
    grams = [input_grams(model, x) for model, x in zip(tuned, inputs, strict=True)]
    merged = apply(base.state_dict(), regmean(vectors, grams, shrink=1.0))["weight"]
    wanted = torch.cat([model(x) for model, x in zip(tuned, inputs, strict=True)]).detach()
    torch.testing.assert_close(merged, torch.linalg.lstsq(torch.cat(inputs), wanted).solution.T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(regmean([vectors[0]], [grams[0]])["weight"], vectors[0]["weight"], rtol=1e-4, atol=1e-5)
    flat = [{"weight": torch.eye(6)}] * 2
    torch.testing.assert_close(regmean(vectors, flat)["weight"], average(vectors)["weight"])
    dead = [{"weight": torch.diag(torch.tensor([1.0, 1, 1, 1, 1, 0]))}] * 2
    torch.testing.assert_close(regmean(vectors, dead)["weight"][:, 5], average(vectors)["weight"][:, 5])


def test_grams_are_taken_where_linear_layers_are() -> None:
    grams = input_grams(BASE, INPUTS)
    assert list(grams) == ["0.weight", "3.weight"]
    torch.testing.assert_close(grams["0.weight"], INPUTS.T @ INPUTS)
    assert list(input_grams(nn.Linear(6, 2), INPUTS)) == ["weight"]


def test_averages_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="at least one input"):
        diagonal_fisher(BASE, INPUTS[:0])
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        diagonal_fisher(nn.Linear(6, 2).train(), INPUTS)
    with pytest.raises(ValueError, match="got 1 for 3 task vectors"):
        fisher_average(VECTORS, [{}])
    with pytest.raises(ValueError, match="negative somewhere"):
        fisher_average(VECTORS, [scaled(vector, 0) | {"0.bias": -torch.ones(8)} for vector in VECTORS])
    with pytest.raises(ValueError, match=r"the information of '0.bias' of task 0 has shape"):
        fisher_average(VECTORS, [{"0.bias": torch.ones(2)}] * 3)
    with pytest.raises(ValueError, match="got 0 for 3 task vectors"):
        regmean(VECTORS, [])
    with pytest.raises(ValueError, match=r"shrink must be in \[0, 1\]"):
        regmean(VECTORS, [{}] * 3, shrink=2)
    with pytest.raises(ValueError, match=r"the gram of '0.weight' of task 0 has shape"):
        regmean(VECTORS, [{"0.weight": torch.ones(2, 2)}] * 3)
    with pytest.raises(ValueError, match="NaN"):
        regmean(VECTORS, [{"0.weight": torch.full((6, 6), math.nan)}] * 3)
