import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from real_files import REAL
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F
from transformers import BartConfig, BartForConditionalGeneration, BartModel, LlamaConfig, LlamaForCausalLM

from mtlearn.lab.checkpoints import load, provenance
from mtlearn.lab.result import recorded
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.cost import count_parameters
from mtlearn.layers.lora import add_lora, load_lora, merge_lora
from mtlearn.merging.icm_lora import experiment
from mtlearn.merging.icm_lora.baselines import Ridge, angular_neighbours, harmonics, mean_of_products, nearest
from mtlearn.merging.icm_lora.experiment import CHECKPOINTS, EXPERIMENT, ShippedTasks
from mtlearn.merging.icm_lora.explorer import explorer
from mtlearn.merging.icm_lora.method import (
    CVAE,
    MLPCVAE,
    ConvCVAE,
    Posterior,
    Reconstruction,
    Whitening,
    cvae_loss,
    generate,
    in_context_task_vector,
    kl_nats,
    last_layer,
    released_error,
    storage,
)
from mtlearn.merging.icm_lora.vectors import Checkpoints, Layout, Statistics, pad

CPU = torch.device("cpu")


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=stream(0, name))


def adapter(rank: int = 2, name: str = "adapter") -> dict[str, Tensor]:
    """A LoRA of two layers after its first step: A is random, the second B still zero."""
    shapes = {"0.lora_A": (rank, 6), "0.lora_B": (8, rank), "2.lora_A": (rank, 8), "2.lora_B": (3, rank)}
    return {key: draw(*shape, name=name + key) if key != "2.lora_B" else torch.zeros(shape) for key, shape in shapes.items()}


def perceptron() -> nn.Sequential:
    with seeded(0):
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    add_lora(model, ["0", "2"], rank=2)
    return model.eval()


# ------------------------------------------------------------------------------------------------------------------- adapters as vectors


@settings(deadline=None, max_examples=40)
@given(
    shapes=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=5),
    lead=st.lists(st.integers(1, 3), max_size=2),
    multiple=st.integers(1, 40),
)
def test_flatten_and_split_restore_names_order_and_shapes(shapes: list[list[int]], lead: list[int], multiple: int) -> None:
    state = {f"layer {k}": draw(*lead, *shape, name=str(k)) for k, shape in enumerate(shapes)}
    layout = Layout.of(state, lead=len(lead))
    vector = layout.flatten(state)
    assert vector.shape == (*lead, layout.size)
    length = layout.padded(multiple)
    assert length % multiple == 0
    assert layout.size <= length < layout.size + multiple
    back = layout.split(pad(vector, length))  # the padding changes nothing after the cut
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(1e-2, 1e2), shift=st.floats(-10, 10), count=st.integers(2, 5))
def test_normalising_and_back_is_the_identity(scale: float, shift: float, count: int) -> None:
    layout = Layout.of(adapter())
    vectors = torch.stack([layout.flatten(adapter(name=str(k))) for k in range(count)]) * scale + shift
    constant = layout.split(vectors)["2.lora_B"]
    assert constant.min() == constant.max()  # B = 0 before the first step
    names = [f"task {k}" for k in range(count)]
    own, over = Statistics.own(layout, vectors, names), Statistics.over(layout, vectors)
    for statistics in (own, over):
        normalised = statistics.normalise(vectors)
        assert normalised.isfinite().all()
        torch.testing.assert_close(statistics.denormalise(normalised), vectors, atol=1e-5 * max(1, scale + abs(shift)), rtol=1e-5)
        torch.testing.assert_close(statistics.denormalise(pad(normalised, 100)), statistics.denormalise(normalised))
    for name, part in layout.split(own.normalise(vectors)).items():
        flat = part.flatten(1)
        torch.testing.assert_close(flat.mean(1), torch.zeros(count), atol=1e-3, rtol=0)
        torch.testing.assert_close(flat.std(1, correction=0), torch.full((count,), float(name != "2.lora_B")), atol=1e-3, rtol=0)
    for row, name in enumerate(names):
        torch.testing.assert_close(own.of(name).normalise(vectors[row]), own.normalise(vectors)[row])
    assert over.of("any task") is over


def test_checkpoints_of_runs_side_by_side_are_those_of_each_run() -> None:
    steps = [{name: torch.stack([v + s, v - s, 2 * v]) for name, v in adapter().items()} for s in range(5)]
    found = Checkpoints.of_runs(steps, last=2)
    assert len(found) == 6
    assert found.task.tolist() == [0, 0, 1, 1, 2, 2]
    one_by_one = Checkpoints.collect([{n: v[t] for n, v in steps[s].items()} for t in range(3) for s in (3, 4)], found.task.tolist())
    assert torch.equal(found.vectors, one_by_one.vectors)
    assert found.layout == one_by_one.layout
    torch.testing.assert_close(found.means()[1], found.vectors[2:4].mean(0))
    only = found.only(torch.tensor([0, 2]))
    assert only.task.tolist() == [0, 0, 2, 2]
    with pytest.raises(ValueError, match="task 1 has no checkpoint"):
        only.means()


def test_gauge_freedom_the_weights_are_no_metric_of_the_function() -> None:
    model, x = perceptron(), draw(20, 6)
    state = adapter() | {"2.lora_B": draw(3, 2, name="B")}
    load_lora(model, state)
    before, layout = model(x), Layout.of(state)
    turn = torch.tensor([[3.0, 1.0], [0.5, -2.0]])
    other = {name: value @ turn if name.endswith("B") else turn.inverse() @ value for name, value in state.items()}
    load_lora(model, other)
    torch.testing.assert_close(model(x), before, atol=1e-4, rtol=1e-4)  # the same function
    assert F.mse_loss(layout.flatten(other), layout.flatten(state)) > 0.5 * layout.flatten(state).square().mean()  # far away in weights


# ---------------------------------------------------------------------------------------------------------------------- the task vector


def llama() -> LlamaForCausalLM:
    with seeded(0):
        config = LlamaConfig(hidden_size=16, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2, vocab_size=30)
        return LlamaForCausalLM(config).eval()


def test_one_example_gives_the_last_layers_state_at_the_last_token() -> None:
    model, ids = llama(), torch.tensor([[3, 7, 1, 9]])
    assert last_layer(model) is model.model.layers[-1]
    vector = in_context_task_vector(model, [{"input_ids": ids}])
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states[-1]  # after the final norm
        torch.testing.assert_close(model.model.norm(vector), states[0, -1], atol=1e-5, rtol=1e-5)
    assert torch.equal(vector, in_context_task_vector(model, [ids]))


@settings(deadline=None, max_examples=10)
@given(order=st.permutations(range(5)))
def test_the_order_of_the_examples_does_not_matter(order: list[int]) -> None:
    model = llama()
    ids = torch.randint(30, (5, 6), generator=stream(0, "ids"))
    right = in_context_task_vector(model, [ids])  # in one batch
    torch.testing.assert_close(in_context_task_vector(model, [ids[k : k + 1] for k in order]), right, atol=1e-5, rtol=1e-5)


def test_padding_on_the_right_is_left_out_and_every_generating_pass_counts() -> None:
    model = llama().train()
    short, long = torch.tensor([[3, 7]]), torch.tensor([[5, 2, 8, 1]])
    apart = in_context_task_vector(model, [short, long])
    ids = torch.tensor([[3, 7, 0, 0], [5, 2, 8, 1]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    torch.testing.assert_close(in_context_task_vector(model, [{"input_ids": ids, "attention_mask": mask}]), apart, atol=1e-5, rtol=1e-5)
    assert model.training  # as it was

    def written(example: Tensor) -> Tensor:
        made: Tensor = model.generate(example, max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)
        return made

    text = written(short)  # three more tokens, by three passes whose last states are those of tokens 2, 3 and 4
    passes = [in_context_task_vector(model, [text[:, :k]]) for k in (2, 3, 4)]
    torch.testing.assert_close(in_context_task_vector(model, [short], call=written), torch.stack(passes).mean(0), atol=1e-4, rtol=1e-4)


def test_an_encoder_with_decoder_gives_the_decoders_state() -> None:
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    with seeded(0):
        config = BartConfig(**sizes, encoder_ffn_dim=8, decoder_ffn_dim=8, vocab_size=20, max_position_embeddings=16)
        model = BartModel(config).eval()
        whole = BartForConditionalGeneration(config)
    assert last_layer(model) is model.decoder.layers[-1]
    assert last_layer(whole) is whole.model.decoder.layers[-1]
    example = {"input_ids": torch.tensor([[4, 5, 6]]), "attention_mask": torch.tensor([[1, 1, 0]]), "decoder_input_ids": torch.tensor([[2, 7, 8]])}
    with torch.no_grad():
        states = model(**example).last_hidden_state
    torch.testing.assert_close(in_context_task_vector(model, [example]), states[0, -1])


def test_any_layer_of_any_module() -> None:
    model, x = perceptron(), draw(7, 6)
    torch.testing.assert_close(in_context_task_vector(model, [x[:3], x[3:]], layer=model[1]), model[:2](x).mean(0).detach())
    with pytest.raises(ValueError, match=r"Sequential has no stack of layers \(nn.ModuleList\)"):
        in_context_task_vector(model, [x])
    with pytest.raises(ValueError, match="at least one example, got none"):
        in_context_task_vector(model, [], layer=model[1])
    with pytest.raises(ValueError, match="the layer did not run on an example"):
        in_context_task_vector(model, [x], layer=nn.ReLU())
    with pytest.raises(ValueError, match=r"states \(batch, width\) or \(batch, time, width\), got \(2, 3, 4, 5\)"):
        in_context_task_vector(nn.Identity(), [draw(2, 3, 4, 5)], layer=(one := nn.Identity()), call=one)


@settings(deadline=None, max_examples=20)
@given(tasks=st.integers(4, 12), width=st.integers(3, 9))
def test_whitened_seen_task_vectors_have_identity_covariance(tasks: int, width: int) -> None:
    vectors = draw(tasks, width, name=f"{tasks} {width}") @ draw(width, width, name="mix") + 5
    components = min(tasks - 1, width)
    white = Whitening.fit(vectors, components)(vectors)
    torch.testing.assert_close(torch.cov(white.T).view(components, components), torch.eye(components), atol=1e-2, rtol=0)
    torch.testing.assert_close(white.mean(0), torch.zeros(components), atol=1e-2, rtol=0)
    with pytest.raises(ValueError, match=f"components must be between 1 and {components}, .* got {components + 1}"):
        Whitening.fit(vectors, components + 1)


# ---------------------------------------------------------------------------------------------------------------------------- the CVAEs


def test_the_published_size() -> None:
    layout = Layout(("all",), ((1_929_928,),))
    length = layout.padded(4096)
    assert length == 1_933_312
    with torch.device("meta"):
        model = ConvCVAE(length, 768)
    assert count_parameters(model) == 7_508_369
    assert model.start == (8, length // 4096)
    assert sum(isinstance(layer, nn.Conv1d) for layer in model.encoder.modules()) == 12
    assert sum(isinstance(layer, nn.ConvTranspose1d) for layer in model.decoder.modules()) == 12
    small = MLPCVAE(1344, 12)
    assert count_parameters(small) == 354_912
    assert count_parameters(small.decoder) == 177_088  # type: ignore[arg-type]


@settings(deadline=None, max_examples=20)
@given(size=st.integers(1, 300), blocks=st.integers(1, 5), condition=st.integers(0, 3), batch=st.integers(1, 3))
def test_lengths_for_any_size(size: int, blocks: int, condition: int, batch: int) -> None:
    layout = Layout(("w",), ((size,),))
    length = layout.padded(2**blocks)
    with seeded(0):
        model = ConvCVAE(length, condition, latent=4, channels=range(2, 2 + blocks)).eval()
    w, c = pad(draw(batch, size), length), draw(batch, condition, name="c")
    narrow = model.encoder[:blocks](w[:, None])
    assert narrow.shape == (batch, 1 + blocks, length // 2**blocks)
    found = model(w, c, generator=stream(0, "noise"))
    assert found.vectors.shape == (batch, length)
    assert found.posterior.mean.shape == found.posterior.log_variance.shape == (batch, 4)


def cvaes() -> list[CVAE]:
    with seeded(0):
        return [ConvCVAE(32, 3, latent=4, channels=(3, 2)), MLPCVAE(32, 3, latent=4, hidden=9)]


@pytest.mark.parametrize("kind", [0, 1])
def test_decoding_is_deterministic_and_without_noise_it_is_an_autoencoder(kind: int) -> None:
    model = cvaes()[kind].eval()
    w, c = draw(5, 32), draw(5, 3, name="c")
    z = draw(5, 4, name="z")
    assert torch.equal(model.decode(z, c), model.decode(z, c))
    posterior = model.encode(w, c)
    found = model(w, c, noise=0)
    assert torch.equal(found.vectors, model.decode(posterior.mean, c))
    torch.testing.assert_close(cvae_loss(found, w, 0.0), F.mse_loss(found.vectors, w))
    noisy = model(w, c, generator=stream(0, "noise"))
    epsilon = torch.randn(5, 4, generator=stream(0, "noise"))
    assert torch.equal(noisy.vectors, model.decode(posterior.mean + (0.5 * posterior.log_variance).exp() * epsilon, c))
    assert not torch.equal(model.decode(z, c), model.decode(z, c + 1))  # c matters
    assert not torch.equal(model.encode(w, c).mean, model.encode(w, c + 1).mean)


@pytest.mark.parametrize("kind", [0, 1])
def test_every_weight_gets_a_gradient(kind: int) -> None:
    model = cvaes()[kind].train()
    w, c = draw(5, 32), draw(5, 3, name="c")
    cvae_loss(model(w, c, generator=stream(0, "noise")), w, 0.1).backward()
    for name, value in model.named_parameters():
        assert value.grad is not None
        assert value.grad.isfinite().all()
        assert value.grad.abs().sum() > 0, name


@settings(deadline=None, max_examples=30)
@given(batch=st.integers(1, 4), latent=st.integers(1, 6), scale=st.floats(0, 3))
def test_the_divergence_is_pytorchs(batch: int, latent: int, scale: float) -> None:
    mean, log_variance = scale * draw(batch, latent, name="m"), scale * draw(batch, latent, name="v")
    right = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(kl_nats(Posterior(mean, log_variance)), right, atol=1e-4, rtol=1e-4)


def test_the_divergence_is_zero_only_at_the_prior() -> None:
    zero = torch.zeros(3, 2)
    assert kl_nats(Posterior(zero, zero)) == 0
    for mean, log_variance in ((zero + 0.1, zero), (zero, zero + 0.1), (zero, zero - 0.1)):
        assert kl_nats(Posterior(mean, log_variance)) > 1e-3


def test_the_loss_counts_the_padding_and_refuses_to_broadcast() -> None:
    posterior = Posterior(draw(2, 3, name="m"), draw(2, 3, name="v"))
    found = Reconstruction(torch.ones(2, 8), posterior)
    targets = pad(torch.ones(2, 6), 8)
    torch.testing.assert_close(cvae_loss(found, targets, 0.005), 2 / 8 + 0.005 * kl_nats(posterior))
    with pytest.raises(ValueError, match=r"reconstructions \(2, 8\) and targets \(2, 1, 8\) must have one shape"):
        cvae_loss(found, targets[:, None])


def test_the_released_error_compares_all_pairs() -> None:
    vectors, targets = draw(4, 7), draw(4, 7, name="targets")
    with pytest.warns(UserWarning, match="different to the input size"):
        released = F.mse_loss(vectors, targets[:, None])
    torch.testing.assert_close(released_error(vectors, targets), released)
    pairs = torch.stack([(vectors[i] - targets[j]).square().mean() for i in range(4) for j in range(4)])
    torch.testing.assert_close(released, pairs.mean())
    torch.testing.assert_close(released_error(vectors[:1], targets[:1]), F.mse_loss(vectors[:1], targets[:1]))  # a batch of one: no harm
    soup = targets.mean(0).expand(4, -1).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(released_error(soup, targets), soup)
    torch.testing.assert_close(gradient, torch.zeros(4, 7), atol=1e-7, rtol=0)  # its optimum is the mean of the batch for everyone
    (own,) = torch.autograd.grad(released_error(copy := targets.clone().requires_grad_(), targets), copy)
    assert own.abs().max() > 0.1  # and not the right answer


def test_generated_adapters_load_and_merge() -> None:
    layout = Layout.of(adapter())
    vectors = torch.stack([layout.flatten(adapter(name=str(k))) for k in range(4)])
    statistics = Statistics.over(layout, vectors)
    with seeded(0):
        model = MLPCVAE(layout.padded(64), 3, latent=4, hidden=9).train()
    c = draw(5, 3, name="c")
    many = generate(model, c, statistics, samples=2, generator=stream(0, "z"))
    assert model.training
    assert {name: tuple(value.shape) for name, value in many.items()} == {name: (5, 2, *value.shape) for name, value in adapter().items()}
    assert not torch.equal(many["0.lora_A"][0, 0], many["0.lora_A"][0, 1])
    z = draw(2, 4, name="z")
    one = generate(model, c[3], statistics, z=z)
    all_ = generate(model, c, statistics, z=z)
    for name in layout.names:
        torch.testing.assert_close(one[name], all_[name][3])
    by_hand = statistics.denormalise(model.eval().decode(z, c[3].expand(2, -1)))
    torch.testing.assert_close(layout.flatten(one), by_hand)
    target, x = perceptron(), draw(9, 6)
    load_lora(target, {name: value[0] for name, value in one.items()})
    before = target(x)
    merge_lora(target)
    torch.testing.assert_close(target(x), before, atol=1e-5, rtol=1e-5)
    own = Statistics.own(layout, vectors, ["a", "b", "c", "d"])
    generate(model, c[0], own.of("b"))
    with pytest.raises(ValueError, match="no stored statistics of the task 'dog', only of a, b, c, d"):
        own.of("dog")
    with pytest.raises(ValueError, match=r"pick the statistics of one task with Statistics.of\(name\)"):
        generate(model, c[0], own)


def test_a_generator_learns_tasks_apart_unless_the_loss_broadcasts() -> None:
    targets, c = torch.sign(draw(4, 16)), 2 * torch.eye(4)
    errors = {}
    for released in (False, True):
        with seeded(0):
            model = MLPCVAE(16, 4, latent=2, hidden=16)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(300):
            found = model(targets, c, generator=stream(0, "noise", step))
            error = released_error(found.vectors, targets) if released else F.mse_loss(found.vectors, targets)
            optimizer.zero_grad()
            (error + 0.05 * kl_nats(found.posterior)).backward()
            optimizer.step()
        errors[released] = F.mse_loss(model.eval().decode(torch.zeros(4, 2), c), targets).item()
    assert errors[False] < 0.05
    soup = F.mse_loss(targets.mean(0).expand(4, -1), targets).item()
    assert errors[True] == pytest.approx(soup, abs=0.05)


def test_storage_is_counted_in_tasks() -> None:
    assert storage(layout_size=1320, generator_size=354_912) == pytest.approx(268.87, abs=0.01)
    assert storage(layout_size=1_929_928, generator_size=283_000_000 // 4) == pytest.approx(36.7, abs=0.1)
    assert storage(layout_size=1_929_928, generator_size=283_000_000 // 4, share=0.01) == pytest.approx(3666, abs=1)


# ------------------------------------------------------------------------------------------------------------------------------ bad input


def test_bad_adapters_are_refused() -> None:
    layout = Layout.of(adapter())
    with pytest.raises(ValueError, match=r"0.lora_A has the shape \(3, 6\); \(2, 6\) is wanted: one data set holds adapters of one rank"):
        Checkpoints.collect([adapter(), adapter(rank=3)], [0, 1])
    with pytest.raises(
        ValueError, match=r"the adapter has the tensors 0.lora_A, 0.lora_B; the data set's have 0.lora_A, 0.lora_B, 2.lora_A, 2.lora_B"
    ):
        Checkpoints.collect([adapter(), {name: value for name, value in adapter().items() if name[0] == "0"}], [0, 1])
    with pytest.raises(ValueError, match=r"0.lora_B has the shape \(2, 8, 2\); \(3, 8, 2\) is wanted"):
        layout.flatten({name: value.expand(2 if name == "0.lora_B" else 3, -1, -1) for name, value in adapter().items()})
    with pytest.raises(ValueError, match="at least one adapter is wanted and a task for each, got 0 adapters"):
        Checkpoints.collect([], [])
    broken = adapter()
    broken["0.lora_A"][1, 1] = torch.nan
    with pytest.raises(ValueError, match="weights must be finite; number 7 of vector 1 is not"):
        Checkpoints.collect([adapter(), broken], [0, 1])
    with pytest.raises(ValueError, match="weights must be finite"):
        Statistics.over(layout, layout.flatten(broken)[None])
    with pytest.raises(ValueError, match="last must be between 1 and the 1 checkpoints of the run, got 2"):
        Checkpoints.of_runs([{name: value[None] for name, value in adapter().items()}], last=2)
    with pytest.raises(ValueError, match="2 different names are wanted, one a vector, got 1"):
        Statistics.own(layout, torch.zeros(2, layout.size), ["a", "a"])
    with pytest.raises(ValueError, match="a vector of at least P=50 numbers is wanted, got 49"):
        layout.split(torch.zeros(49))
    with pytest.raises(ValueError, match="vectors of 50 numbers cannot be padded to 49"):
        pad(torch.zeros(50), 49)
    with pytest.raises(ValueError, match="multiple must be at least 1, got 0"):
        layout.padded(0)


def test_bad_sizes_are_refused() -> None:
    conv, mlp = (model.train() for model in cvaes())
    with pytest.raises(ValueError, match=r"task vectors must be \(batch, condition\) = \(5, 3\), got \(5, 4\)"):
        mlp(draw(5, 32), draw(5, 4))
    with pytest.raises(ValueError, match=r"task vectors must be \(batch, condition\) = \(5, 3\), got \(3,\)"):
        mlp.decode(draw(5, 4), draw(3))
    with pytest.raises(ValueError, match=r"vectors must be \(batch, 32\), padded, got \(5, 30\); pad\(vectors, 32\) does it"):
        conv(draw(5, 30), draw(5, 3))
    with pytest.raises(ValueError, match=r"z must be \(batch, 4\), got \(5, 5\)"):
        conv.decode(draw(5, 5), draw(5, 3))
    with pytest.raises(ValueError, match="batch normalisation needs at least 2 vectors a batch in training, got 1"):
        conv(draw(1, 32), draw(1, 3))
    conv.eval()(draw(1, 32), draw(1, 3))
    mlp(draw(1, 32), draw(1, 3))
    with pytest.raises(ValueError, match="length must be a multiple of 4096 for 12 blocks that each halve it, got 1929928; pad to 1933312"):
        ConvCVAE(1_929_928, 768)
    with pytest.raises(ValueError, match="length and latent must be at least 1 and condition at least 0, got 8, 0 and 2"):
        MLPCVAE(8, 2, latent=0)
    with pytest.raises(TypeError, match="abstract"):
        CVAE(8, 2, 3)  # type: ignore[abstract]


# ------------------------------------------------------------------------------------------------------------------------------ baselines


def test_neighbours() -> None:
    seen = torch.tensor([0.0, 30.0, 90.0, 350.0])
    assert seen[angular_neighbours(seen, torch.tensor([60.0, 355.0, 30.0]))].tolist() == [[30, 90], [350, 0], [0, 90]]
    vectors = draw(4, 3)
    assert nearest(vectors, vectors).tolist() == [0, 1, 2, 3]
    other = nearest(vectors, vectors, but=torch.eye(4, dtype=torch.bool))
    distance = torch.cdist(vectors, vectors) + 100 * torch.eye(4)
    assert other.tolist() == distance.argmin(1).tolist()
    torch.testing.assert_close(harmonics(torch.tensor([90.0]), 2), torch.tensor([[0.0, -1.0, 1.0, 0.0]]), atol=1e-6, rtol=0)


def test_ridge_is_scikit_learns_and_knows_what_it_says_of_a_row_left_out() -> None:
    from sklearn.linear_model import Ridge as Reference

    x, y, new = draw(9, 4), draw(9, 5, name="y"), draw(3, 4, name="new")
    ours = Ridge(x, y, 0.7)
    torch.testing.assert_close(ours(new), torch.tensor(Reference(alpha=0.7).fit(x, y).predict(new)).float(), atol=1e-4, rtol=1e-4)
    plain = Ridge(x, y, 1e-9)  # the formula is exact without a penalty, and centring is done once for all rows
    left_out = torch.stack([torch.tensor(Reference(alpha=1e-9).fit(x[k], y[k]).predict(x[[i]]))[0] for i in range(9) for k in [torch.arange(9) != i]])
    torch.testing.assert_close(plain.left_out, left_out.float(), atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="at least 3 rows of features and as many targets are wanted, got 9 and 8"):
        Ridge(x, y[:8], 1.0)
    with pytest.raises(ValueError, match="penalty must be positive, got 0"):
        Ridge(x, y, 0.0)


def test_the_mean_of_products_is_exact() -> None:
    down, up = draw(4, 3, 2, 7), draw(4, 3, 5, 2, name="up")
    a, b = mean_of_products(down, up)
    assert (a.shape, b.shape) == ((4, 6, 7), (4, 5, 6))
    torch.testing.assert_close(b @ a, (up @ down).mean(1), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(up.mean(1) @ down.mean(1), (up @ down).mean(1), atol=0.1)


# --------------------------------------------------------------------------------------------------------------------------- experiment


def test_quick() -> None:
    arms = run_quick(EXPERIMENT)
    assert arms[experiment.LOOKUP]["seen error"] == 0
    assert arms[experiment.VAE]["KL"] > 0
    assert run_quick(EXPERIMENT) == arms  # to the bit
    angles = EXPERIMENT.scales["quick"].coarse
    assert arms[experiment.SAVED]["numbers"] == len(angles.seen) * 1320


def test_a_task_trained_beside_others_is_the_task_trained_alone() -> None:
    recipe = experiment.Recipe(base_steps=5, lora_steps=6, last=2)
    world = experiment.prepare(recipe, experiment.Angles(90, (90,), 2), 0)
    images = replace(world.images, train=world.images.train[2:3], test=world.images.test[2:3])
    alone = experiment.train_adapters(world.base, recipe, images, 0)
    torch.testing.assert_close(alone.vectors, world.checkpoints.vectors[4:6], atol=1e-4, rtol=1e-3)
    assert world.angles.unseen.tolist() == [1]
    assert set(world.known.task.tolist()) == {0, 2, 3}
    right = experiment.accuracy(world.base, recipe, world.checkpoints.layout, torch.zeros(4, 1320), world.images.test, world.images.test_labels)
    plain = (world.base(world.images.test[0]).argmax(1) == world.images.test_labels).float().mean()
    torch.testing.assert_close(right[0], plain)  # B = 0: the base model


def test_derangements() -> None:
    for count in (2, 3, 24):
        order = experiment.deranged(count, 5)
        assert sorted(order.tolist()) == list(range(count))
        assert not (order == torch.arange(count)).any()


def test_the_recorded_result_says_what_the_notebook_says() -> None:
    verdicts = {(claim.better, claim.worse, claim.metric): claim.verdict for claim in recorded("icm_lora").claims}
    arms = recorded("icm_lora").arms
    assert verdicts[(experiment.CVAE_ARM, experiment.ORIGINAL, "seen accuracy")] == "holds"
    assert verdicts[(experiment.CVAE_ARM, experiment.NEAREST, "held-out accuracy")] == "fails"
    assert verdicts[(experiment.GENERATOR, experiment.SAVED, "numbers")] == "fails"
    assert arms[experiment.PUBLISHED]["numbers"].mean == 7_508_369


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda checkpoint: checkpoint.name)
def test_shipped_generators_make_good_adapters(checkpoint: experiment.Checkpoint) -> None:
    tasks = load(checkpoint)
    assert isinstance(tasks, ShippedTasks)
    measured = experiment.measure_shipped(tasks)
    assert measured == pytest.approx(provenance(checkpoint)["measured"], abs=0.01)
    assert measured["generated, seen"] > measured["original, seen"] - 0.06
    again = experiment.turned_images(tasks.shipped.recipe, tasks.shipped.angles.degrees[:2], tasks.shipped.seed).train
    rows = experiment.examples_of(tasks.shipped.recipe, again.shape[1], tasks.shipped.seed)
    torch.testing.assert_close(experiment.task_vectors(tasks.base, again[:, rows]), tasks.raw[:2], atol=1e-4, rtol=1e-4)


def test_training_what_ships() -> None:
    small = experiment.Shipped(angles=experiment.Angles(60, (60,), 3), recipe=experiment.Recipe(base_steps=3, lora_steps=3, last=2, steps=3))
    made = experiment.train_shipped(small)
    assert set(experiment.measure_shipped(made)) == {"original, seen", "original, held out", "generated, seen", "generated, held out"}


@pytest.mark.skipif(not (REAL / "mnist10k").is_dir(), reason="needs the files of mnist10k")
def test_a_few_steps_at_paper_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLEARN_DATA", os.fspath(REAL))
    paper = EXPERIMENT.scales["paper"]
    angles = experiment.Angles(90, (90,), 2)
    short = replace(paper.recipe, train=60, base_steps=2, lora_steps=3, last=2, steps=2, batch=8, generator_batch=4)
    with seeded(0):
        everything = experiment.mnist()
        monkeypatch.setattr(experiment, "mnist", lambda: everything.take(torch.arange(90)))
        world = experiment.prepare(short, angles, 0)
        arms = experiment.compare(short, world, 0, CPU, every=False)
        arms |= experiment.storages(short, world)
    assert world.images.train.shape == (4, 60, 784)
    assert world.checkpoints.layout.size == 8 * (784 + 512 + 512 + 512 + 512 + 10)
    assert isinstance(experiment.build_generator(short, world.checkpoints.layout.size, 2, 0), ConvCVAE)
    assert arms[experiment.CVAE_ARM]["KL"] > 0
    assert arms[experiment.DECODER]["numbers"] < arms[experiment.GENERATOR]["numbers"]


# ----------------------------------------------------------------------------------------------------------------------------- explorer


def test_the_dial_is_turned_by_hand_and_by_keyboard() -> None:
    shown = explorer()
    shown.point("press", -1.0, 0.0, axes=0)
    assert shown.controls["angle"].value == 90
    shown.point("drag", 1.0, 0.0, axes=0)
    assert shown.controls["angle"].value == 270
    shown.point("drag", 0.0, 0.0, axes=0)  # the centre is no direction
    assert shown.controls["angle"].value == 270
    shown.point("press", 33.4, 0.5, axes=1)
    assert shown.controls["angle"].value == 33
    shown.point("press", 400.0, 0.5, axes=1)
    assert shown.controls["angle"].value == 359
    for key, angle in (("ArrowRight", 0), ("ArrowUp", 15), ("ArrowLeft", 14), ("ArrowDown", 359), ("a", 359)):
        shown.point("key", 0, 0, key=key)
        assert shown.controls["angle"].value == angle
    shown.point("drag", 1.1, -9.0, axes=3)
    assert (shown.controls["z1"].value, shown.controls["z2"].value) == (1.0, -3.0)
    before = shown.png
    shown.point("release", 0, 0, axes=2)
    shown.point("press", 0, 0, axes=2)
    assert shown.png == before


def read_here(text: str) -> int:
    return int(text.split("reads ")[1].split(" %")[0])


def test_what_the_explorer_says() -> None:
    shown = explorer()
    found = {}
    for label in shown.presets:
        shown.preset(label)
        found[label] = read_here(shown.text)
    assert found["a seen angle"] > 80
    assert "(seen in training)" not in shown.text
    hole = found["a hole: 45 degrees was held out"]
    assert hole < found["the nearest LoRA falls less deep"]
    assert hole + 20 < found["denser tasks fill the holes"]
    assert abs(found["z says nothing"] - found["a seen angle"]) <= 3
    for way in ("ridge", "average"):
        shown.set(way=way, angle=30)
        assert read_here(shown.text) < found["a seen angle"]


def test_the_explorer_merges_as_the_layer_does() -> None:
    from mtlearn.merging.icm_lora import explorer as module

    spacing = next(iter(module.SPACINGS))
    tasks = module.tasks_of(spacing)
    vectors = tasks.adapters[[3, 7]]
    images = torch.stack([module.test_at(spacing, 45.0), module.test_at(spacing, 105.0)])
    right = [(module.answers(spacing, vectors[k], images[k]) == module.split(spacing)[1].labels).float().mean() for k in range(2)]
    torch.testing.assert_close(module.judged(spacing, vectors, images), torch.stack(right))
    at = module.described_grid(spacing)[module.GRID == 45.0][0]
    torch.testing.assert_close(at, tasks.raw[3], atol=1e-4, rtol=1e-4)  # the dial describes a task as training did
