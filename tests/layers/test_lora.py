import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.lora import LoRAConv2d, LoRALayer, LoRALinear, add_lora, load_lora, lora_state, merge_lora, merged_state, unmerge_lora


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=stream(0, name))


def perceptron() -> nn.Sequential:
    with seeded(0):
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3, bias=False))


def trained(module: nn.Module) -> nn.Module:
    """As if the adapters had learned something."""
    state = lora_state(module)
    load_lora(module, {name: draw(*value.shape, name=name) for name, value in state.items()})
    return module


# ------------------------------------------------------------------------------------------------------------------------ against peft
# outputs of peft 0.17.1 (LoraConfig(r=2, lora_alpha=8, lora_dropout=0.05, use_rslora=...), eval mode) for weights filled by `filled`


def filled(shape: tuple[int, ...], start: float) -> Tensor:
    return 0.5 * (0.7 * torch.arange(torch.Size(shape).numel(), dtype=torch.float32) + start).sin().reshape(shape)


PEFT_LINEAR = {
    True: [0.953527, -2.527512, -0.23334, -0.789687, 0.876266, -0.295496],
    False: [0.884475, -1.886763, -0.190722, -0.553856, 0.396388, -0.40949],
}
PEFT_CONV = {
    True: [10.670632, 4.729767, 7.38699, 9.648008, 3.573914, 3.904055, 4.475905, 5.20106],
    False: [5.659009, 2.161183, 3.472854, 4.640372, 0.726926, 1.404074, 1.535164, 1.827467],
}


@pytest.mark.parametrize("stabilised", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_numbers_are_those_of_peft(kind: str, stabilised: bool) -> None:
    if kind == "linear":
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        x, wanted = filled((2, 4), 0.3), torch.tensor(PEFT_LINEAR[stabilised]).view(2, 3)
    else:
        model = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 2))
        x, wanted = filled((1, 2, 6, 6), 0.3), torch.tensor(PEFT_CONV[stabilised]).view(1, 2, 2, 2)
    with torch.no_grad():
        for start, value in enumerate(model.parameters()):
            value.copy_(filled(tuple(value.shape), start))
    assert add_lora(model, ["0", "2"], rank=2, alpha=8, rank_stabilised=stabilised, dropout=0.05) == ("0", "2")
    load_lora(model, {name: filled(tuple(value.shape), 10 + k) for k, (name, value) in enumerate(lora_state(model).items())})
    model.eval()
    torch.testing.assert_close(model(x), wanted, atol=1e-5, rtol=1e-5)
    merge_lora(model)
    torch.testing.assert_close(model(x), wanted, atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------------------- the layer


@settings(deadline=None, max_examples=25)
@given(rank=st.integers(1, 9), alpha=st.floats(0.1, 32), stabilised=st.booleans(), lead=st.lists(st.integers(1, 3), max_size=3))
def test_the_published_formula_merged_and_unmerged(rank: int, alpha: float, stabilised: bool, lead: list[int]) -> None:
    with seeded(1):
        layer = trained(LoRALinear(nn.Linear(7, 4), rank, alpha=alpha, rank_stabilised=stabilised))
    assert isinstance(layer, LoRALinear)
    state = lora_state(layer)
    weight = layer.base.weight + alpha / (rank**0.5 if stabilised else rank) * state["lora_B"] @ state["lora_A"]
    x, before = draw(*lead, 7), layer.base.weight.detach().clone()
    right = F.linear(x, weight, layer.base.bias)
    torch.testing.assert_close(layer(x), right, atol=1e-4, rtol=1e-5)
    layer.eval().merge()
    torch.testing.assert_close(layer(x), right, atol=1e-4, rtol=1e-5)
    layer.unmerge()
    assert torch.equal(layer.base.weight, before)
    assert torch.equal(layer.weight, before + layer.delta())


def test_merged_logits_are_the_unmerged_ones_and_unmerging_gives_the_bits_back() -> None:
    model = perceptron()
    add_lora(model, ["0", "2", "4"], rank=3, alpha=8, rank_stabilised=True)
    for name, value in lora_state(model).items():
        load_lora(model, {**lora_state(model), name: 0.2 * draw(*value.shape, name=name)})
    x = draw(50, 6)
    before, weights = model.eval()(x), {name: value.clone() for name, value in model.state_dict().items()}
    merge_lora(model)
    torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())  # what is saved does not depend on merging
    plain = perceptron()
    plain.load_state_dict(merged_state(model))
    assert torch.equal(plain(x), model(x))
    unmerge_lora(model)
    assert torch.equal(model(x), before)


def test_an_adapter_starts_as_the_base_layer() -> None:
    model, x = perceptron(), draw(9, 6)
    before = model(x)
    add_lora(model, lambda name, layer: True, rank=2)
    assert torch.equal(model(x), before)
    assert [layer for layer in model if isinstance(layer, LoRALayer)]
    merge_lora(model.eval())
    assert torch.equal(model(x), before)


def test_the_first_a() -> None:
    base = nn.Linear(64, 5)
    normal = LoRALinear(base, 400, std=0.125, generator=stream(0, "A"))
    assert float(normal.lora_A.detach().std()) == pytest.approx(0.125, rel=0.02)
    assert torch.equal(normal.lora_A, LoRALinear(base, 400, std=0.125, generator=stream(0, "A")).lora_A)
    uniform = LoRALinear(base, 400)
    assert 0.99 < float(uniform.lora_A.detach().abs().max()) * 8 <= 1
    many = LoRALinear(base, 4, adapters=3, std=1.0)
    assert torch.equal(many.lora_A[0], many.lora_A[2])
    apart = LoRALinear(base, 4, adapters=3, std=1.0, shared_start=False)
    assert not torch.equal(apart.lora_A[0], apart.lora_A[2])
    assert "rank=4, scale=2, adapters=3" in repr(many)


def test_only_the_factors_learn_and_their_gradients_are_right() -> None:
    model = perceptron()
    add_lora(model, ["0", "4"], rank=2)
    assert {name for name, value in model.named_parameters() if value.requires_grad} == {f"{n}.lora_{f}" for n in (0, 4) for f in "AB"}
    layer = trained(LoRALinear(nn.Linear(4, 3), 2)).double()
    assert isinstance(layer, LoRALinear)
    x = draw(5, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, a, b: torch.func.functional_call(layer, {"lora_A": a, "lora_B": b}, (x,)), (x, layer.lora_A, layer.lora_B)
    )
    free = perceptron()
    add_lora(free, ["2"], rank=2, freeze=False)
    assert free[0].weight.requires_grad
    assert not free[2].base.weight.requires_grad  # the adapted layer itself is always frozen
    assert set(merged_state(free)) == set(perceptron().state_dict())  # those without an adapter are there as they are


def test_dropout_only_on_the_adapter_and_only_in_training() -> None:
    layer = trained(LoRALinear(nn.Linear(6, 4), 2, dropout=0.5))
    x = draw(8, 6)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_many_adapters_are_each_alone() -> None:
    model = perceptron()
    add_lora(model, ["0", "2", "4"], rank=2, adapters=3, shared_start=False)
    trained(model)
    x = draw(3, 7, 6)
    together = model(x)
    assert together.shape == (3, 7, 3)
    gradients = torch.autograd.grad(together.square().sum(), [p for p in model.parameters() if p.requires_grad])
    for t in range(3):
        alone = perceptron()
        add_lora(alone, ["0", "2", "4"], rank=2)
        load_lora(alone, lora_state(model, t))
        torch.testing.assert_close(alone(x[t]), together[t], atol=1e-5, rtol=1e-5)
        own = torch.autograd.grad(alone(x[t]).square().sum(), [p for p in alone.parameters() if p.requires_grad])
        for mine, all_ in zip(own, gradients, strict=True):
            torch.testing.assert_close(all_[t], mine, atol=1e-3, rtol=1e-4)
    merge_lora(model.eval())
    torch.testing.assert_close(model(x), together, atol=1e-4, rtol=1e-4)
    load_lora(model, lora_state(model, 0), 2)
    assert torch.equal(model(x[:1].expand(3, -1, -1))[0], model(x[:1].expand(3, -1, -1))[2])
    deep = trained(LoRALinear(nn.Linear(6, 4), 2, adapters=2))
    x = draw(2, 3, 5, 6)
    torch.testing.assert_close(deep(x)[1, 2], deep(x[:, 2])[1])
    with pytest.raises(ValueError, match=r"with 2 adapters the input must be \(2, ..., 6\), got \(3, 6\)"):
        deep(draw(3, 6))


def test_a_convolution_with_stride_and_dilation() -> None:
    base = nn.Conv2d(3, 4, 3, stride=2, padding=2, dilation=2)
    layer = trained(LoRAConv2d(base, 2))
    x = draw(2, 3, 9, 9)
    right = F.conv2d(x, base.weight + layer.delta(), base.bias, 2, 2, 2)  # type: ignore[operator]
    torch.testing.assert_close(layer(x), right, atol=1e-4, rtol=1e-4)


def test_attention_that_reads_the_weights_gets_the_adapted_ones() -> None:
    with seeded(0):
        attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = draw(2, 5, 8)
    before = attention(x, x, x)[0]
    add_lora(attention, ["out_proj"], rank=2)
    torch.testing.assert_close(attention(x, x, x)[0], before)
    trained(attention)
    after = attention(x, x, x)[0]
    assert not torch.allclose(after, before, atol=0.1)
    merge_lora(attention)
    torch.testing.assert_close(attention(x, x, x)[0], after, atol=1e-5, rtol=1e-5)


def test_a_merged_module_follows_to_another_precision() -> None:
    layer = trained(LoRALinear(nn.Linear(6, 4), 2)).eval()
    merge_lora(layer)
    x = draw(3, 6)
    torch.testing.assert_close(layer.double()(x.double()).float(), layer.float()(x), atol=1e-5, rtol=1e-5)
    assert set(merged_state(layer)) == {"weight", "bias"}


# -------------------------------------------------------------------------------------------------------------------- choosing, loading


def test_layers_are_chosen_by_name_by_last_part_and_by_predicate() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.value, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()

    model = nn.ModuleDict({"one": Block(), "two": Block()})
    assert add_lora(model, "query", rank=1) == ("one.query", "two.query")
    assert add_lora(model, ["two.value"], rank=1) == ("two.value",)
    assert add_lora(model, lambda name, layer: name.startswith("one") and isinstance(layer, nn.Linear), rank=1) == ("one.value",)
    assert sorted(lora_state(model)) == sorted(f"{b}.{n}.lora_{f}" for b in ("one", "two") for n in ("query", "value") for f in "AB")
    tied = nn.ModuleList([nn.Linear(4, 4)] * 2)
    assert add_lora(tied, ["0", "1"], rank=1) == ("0", "1")
    assert tied[0] is tied[1]


def test_bad_choices_are_refused() -> None:
    model = perceptron()
    with pytest.raises(ValueError, match="no layer is called '7'; there are 0, 1, 2, 3, 4"):
        add_lora(model, ["0", "7"], rank=2)
    assert not any(isinstance(layer, LoRALayer) for layer in model)
    with pytest.raises(ValueError, match="name at least one"):
        add_lora(model, [], rank=2)
    with pytest.raises(ValueError, match=r"1 is a ReLU; adapters are for nn\.Linear and nn\.Conv2d"):
        add_lora(model, ["1"], rank=2)
    with pytest.raises(ValueError, match="chose none"):
        add_lora(model, lambda name, layer: False, rank=2)
    add_lora(model, ["0"], rank=2)
    with pytest.raises(ValueError, match="0 has an adapter already"):
        add_lora(model, ["0"], rank=2)
    with pytest.raises(ValueError, match="the module itself cannot be replaced"):
        add_lora(nn.Linear(2, 2), lambda name, layer: True, rank=1)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        LoRALinear(nn.Linear(2, 2), 0)
    with pytest.raises(ValueError, match="dropout must be between 0 and 1"):
        LoRALinear(nn.Linear(2, 2), 1, dropout=1.0)
    with pytest.raises(ValueError, match="adapters must be at least 1"):
        LoRALinear(nn.Linear(2, 2), 1, adapters=0)
    with pytest.raises(ValueError, match=r"LoRALinear wraps nn\.Linear, got ReLU"):
        LoRALinear(nn.ReLU(), 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"LoRAConv2d wraps nn\.Conv2d, got ReLU"):
        LoRAConv2d(nn.ReLU(), 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="groups=2"):
        LoRAConv2d(nn.Conv2d(2, 2, 1, groups=2), 1)
    with pytest.raises(ValueError, match="a convolution takes one"):
        LoRAConv2d(nn.Conv2d(2, 2, 1), 1, adapters=2)


def test_bad_states_are_refused_and_nothing_is_copied() -> None:
    model = perceptron()
    with pytest.raises(ValueError, match="the module has no adapters"):
        lora_state(model)
    add_lora(model, ["0", "2"], rank=2)
    before = lora_state(model)
    for state, words in (
        ({**before, "2.lora_B": torch.zeros(5, 3)}, r"2.lora_B has the shape \(5, 3\); the module's adapter has \(5, 2\)"),
        ({**before, "2.lora_B": torch.full((5, 2), torch.nan)}, "2.lora_B holds values that are not finite"),
        ({name: before[name] for name in list(before)[1:]} | {"z": torch.zeros(1)}, "missing 0.lora_A; not there z"),
    ):
        with pytest.raises(ValueError, match=words):
            load_lora(model, {name: value + 1 for name, value in state.items()})
        assert all(torch.equal(value, before[name]) for name, value in lora_state(model).items())


def test_a_merged_adapter_refuses_to_train_and_loading_unmerges() -> None:
    for layer, x in (
        (LoRALinear(nn.Linear(6, 4), 2), draw(3, 6)),
        (LoRALinear(nn.Linear(6, 4), 2, adapters=2), draw(2, 3, 6)),
        (LoRAConv2d(nn.Conv2d(2, 3, 3), 2), draw(1, 2, 5, 5)),
    ):
        merge_lora(layer.train())
        with pytest.raises(ValueError, match="merged weights do not learn: call unmerge_lora"):
            layer(x)
        with torch.no_grad():
            merged = layer(x)
        trained(layer)
        assert layer.merged is None
        assert not torch.allclose(layer(x), merged)
