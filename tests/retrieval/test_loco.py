"""M2-BERT's layers against explicit sums and matrices, losses against public ones, readers, the benchmark; worlds, experiment, explorers."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from sklearn.metrics import ndcg_score
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.lab.checkpoints import load, provenance
from mtlearn.lab.ranking import ranking_measures
from mtlearn.lab.seeds import stream
from mtlearn.layers.contrastive import cached_gradients, info_nce
from mtlearn.retrieval.loco import experiment as loco
from mtlearn.retrieval.loco.exercises import EXERCISES
from mtlearn.retrieval.loco.explorer import explorer, pull
from mtlearn.retrieval.loco.method import (
    READERS,
    BlockDiagonal,
    GatedMLP,
    ImplicitFilter,
    LongConv,
    M2Config,
    M2Encoder,
    M2Mixer,
    MaskedWords,
    Monarch,
    ShortConv,
    accumulate,
    block_mnrl,
    concatenated,
    extend,
    hide,
    loco_score,
    long_convolution,
    mixture_batch,
    mnrl,
    ndcg,
    opl,
    opl_rows,
    prototype_loss,
    qualifies,
    read,
    readings,
    similarity,
    time_features,
    unit,
)
from mtlearn.retrieval.loco.worlds import SETS, Scattered, docstring_task, docstring_texts, moved, word_scores

TINY = M2Config(vocabulary=30, longest=16, width=8, layers=2, hidden=16, blocks=2, filter_width=8, pooling="mean")


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tokens_of(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 30, (rows, length), generator=torch.Generator().manual_seed(seed))


# the long convolution


def by_sums(v: Tensor, k: Tensor, reverse: Tensor, b: Tensor, first_lag: int = 1) -> Tensor:
    """The two sums as they are written, token by token."""
    y = b * v
    for i in range(v.shape[1]):
        for j in range(v.shape[1]):
            if j <= i:
                y[:, i] = y[:, i] + k[:, i - j] * v[:, j]
            if j >= i + first_lag:
                y[:, i] = y[:, i] + reverse[:, j - i - first_lag] * v[:, j]
    return y


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("length", [1, 2, 7, 16])
@pytest.mark.parametrize("first_lag", [0, 1])
def test_the_transform_is_the_sum(dtype: torch.dtype, tolerance: float, length: int, first_lag: int) -> None:
    v, k, reverse, b = drawn(2, length, 3), drawn(3, length, seed=1), drawn(3, length, seed=2), drawn(3, seed=3)
    found = long_convolution(*(part.to(dtype) for part in (v, k, reverse, b)), first_lag=first_lag)
    torch.testing.assert_close(found.double(), by_sums(v, k, reverse, b, first_lag), atol=tolerance * math.sqrt(length), rtol=tolerance)


def test_without_zero_padding_the_end_reaches_the_start() -> None:
    v, k, reverse, b = drawn(1, 8, 2), drawn(2, 8, seed=1), drawn(2, 8, seed=2), drawn(2, seed=3)
    spectrum = torch.fft.rfft(k) + torch.fft.rfft(reverse).conj()
    wrapped = torch.fft.irfft(torch.fft.rfft(v, dim=1) * spectrum.T, n=8, dim=1) + b * v
    wanted = by_sums(v, k, reverse, b, 0)
    assert float((wrapped - wanted).abs().max()) > 0.1
    torch.testing.assert_close(long_convolution(v, k, reverse, b, first_lag=0), wanted)
    with pytest.raises(ValueError, match="first_lag must be 1"):
        long_convolution(v, k, reverse, b, first_lag=2)


def test_the_mixer_is_that_of_the_public_code() -> None:
    stored = json.loads((Path(__file__).parent / "public" / "loco.json").read_text())
    assert len(stored["cases"]) == 2
    for case in stored["cases"]:
        weights = {name: torch.tensor(value) for name, value in case["weights"].items()}
        mixer = M2Mixer(4, 12, residual=case["residual"], emb_dim=5, filter_width=6)
        with torch.no_grad():
            mixer.into.weight.copy_(weights["in_linear.weight"])
            mixer.into.bias.copy_(weights["in_linear.bias"])
            mixer.out.weight.copy_(weights["out_linear.weight"])
            mixer.out.bias.copy_(weights["out_linear.bias"])
            mixer.short.weight.copy_(weights["short_filter.weight"][:, 0].T)
            mixer.short.bias.copy_(weights["short_filter.bias"])
            for ours, name in ((mixer.long, "filter_fn"), (mixer.residual, "filter_fn2")):
                if ours is None:
                    continue
                ours.b.copy_(weights[f"{name}.bias"])
                for side, public in ((ours.left, "implicit_filter"), (ours.right, "implicit_filter_rev")):
                    for place in (0, 2, 4):
                        side.mlp[place].weight.copy_(weights[f"{name}.{public}.{place}.weight"])
                        side.mlp[place].bias.copy_(weights[f"{name}.{public}.{place}.bias"])
                        side.mlp[place + 1].w.copy_(weights[f"{name}.{public}.{place + 1}.freq"][0])
                    side.mlp[6].weight.copy_(weights[f"{name}.{public}.6.weight"])
        torch.testing.assert_close(mixer(torch.tensor(case["u"])), torch.tensor(case["y"]), atol=2e-6, rtol=1e-5)
        other = M2Mixer(4, 12, residual=case["residual"], emb_dim=5, filter_width=6, first_lag=0)
        other.load_state_dict(mixer.state_dict())
        assert float((other(torch.tensor(case["u"])) - torch.tensor(case["y"])).detach().abs().max()) > 1e-3  # lag 0 in both is another function


def test_gradients_of_the_long_convolution() -> None:
    parts = [part.requires_grad_() for part in (drawn(1, 5, 2), drawn(2, 5, seed=1), drawn(2, 5, seed=2), drawn(2, seed=3))]
    assert torch.autograd.gradcheck(long_convolution, parts)


def test_the_short_convolution_is_torch_s() -> None:
    ours, theirs = ShortConv(6), nn.Conv1d(6, 6, 3, padding=2, groups=6)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.T[:, None])
        theirs.bias.copy_(ours.bias)
    x = drawn(2, 9, 6, dtype=torch.float32)
    torch.testing.assert_close(ours(x), theirs(x.transpose(1, 2))[..., :9].transpose(1, 2))


# implicit filters


def test_time_features_and_decay() -> None:
    z = time_features(5, 9, 5)
    torch.testing.assert_close(z[:, 0], torch.arange(5, dtype=torch.float64) / 8)
    steps = torch.arange(5, dtype=torch.float64)
    torch.testing.assert_close(z[:, 2], torch.cos(2 * math.pi * steps / 9))  # the second band has frequency 1
    torch.testing.assert_close(z[:, 4], -torch.sin(2 * math.pi * steps / 9))
    found = ImplicitFilter(4, 9)
    assert found.decay.tolist() == pytest.approx([math.log(0.01) / 1.5, *found.decay[1:3].tolist(), math.log(0.01) / 0.3])
    with torch.no_grad():
        nn.init.zeros_(found.mlp[-1].weight)
    assert found(9).shape == (4, 9) and not found(9).any()
    for dim in (1, 2, 4):
        with pytest.raises(ValueError, match=f"emb_dim must be odd and at least 3 .*, got {dim}"):
            ImplicitFilter(4, 9, emb_dim=dim)


def test_a_filter_has_as_many_parameters_at_any_length() -> None:
    sizes = {sum(p.numel() for p in ImplicitFilter(4, longest).parameters()) for longest in (8, 4096)}
    assert len(sizes) == 1
    short, all_of_it = ImplicitFilter(4, 64), 64
    torch.testing.assert_close(short(16), short(all_of_it)[:, :16])  # a shorter input sees the first part of the same filter


# the mixer


def zero(conv: LongConv, *, left: bool, right: bool, b: float | None = None) -> None:
    with torch.no_grad():
        for side, wanted in ((conv.left, left), (conv.right, right)):
            if wanted:
                nn.init.zeros_(side.mlp[-1].weight)
        if b is not None:
            conv.b.fill_(b)


def test_without_reverse_filters_the_mixer_is_causal() -> None:
    mixer = M2Mixer(8, 16)
    for conv in (mixer.long, mixer.residual):
        assert conv is not None
        zero(conv, left=False, right=True)
    u = drawn(2, 16, 8, dtype=torch.float32)
    changed = u.clone()
    changed[:, 9:] += 1
    torch.testing.assert_close(mixer(u)[:, :9], mixer(changed)[:, :9], atol=1e-6, rtol=0)
    assert float((mixer(u)[:, 9:] - mixer(changed)[:, 9:]).detach().abs().max()) > 1e-3
    both_ways = M2Mixer(8, 16)
    assert float((both_ways(u)[:, :9] - both_ways(changed)[:, :9]).detach().abs().max()) > 1e-3


def test_without_filters_the_mixer_is_a_gate() -> None:
    mixer = M2Mixer(8, 16, residual=False)
    zero(mixer.long, left=True, right=True, b=1.0)
    u = drawn(2, 16, 8, dtype=torch.float32)
    x1, x2, v = mixer.short(mixer.into(u)).chunk(3, -1)
    torch.testing.assert_close(mixer(u), mixer.out(v * x1 * x2))


def test_the_residual_convolution_reads_the_raw_input() -> None:
    mixer = M2Mixer(8, 16)
    u = drawn(2, 16, 8, dtype=torch.float32)
    with torch.no_grad():
        mixer.into.weight.zero_()
        mixer.into.bias.zero_()
        mixer.short.bias.zero_()
    assert mixer.residual is not None
    torch.testing.assert_close(mixer(u), mixer.out(mixer.residual(u)))


def test_a_longer_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="the sequence has 17 tokens and the model reads at most 16; cut it with readings"):
        M2Mixer(8, 16)(torch.zeros(1, 17, 8))
    with pytest.raises(ValueError, match="the sequence has 20 tokens and the model reads at most 16"):
        M2Encoder(TINY)(tokens_of(1, 20))


# the dimension mixer


def test_block_diagonal_matrices() -> None:
    one, linear = BlockDiagonal(6, 9, 1), nn.Linear(6, 9, bias=False)
    with torch.no_grad():
        linear.weight.copy_(one.weight[0])
    x = drawn(2, 5, 6, dtype=torch.float32)
    torch.testing.assert_close(one(x), linear(x))
    three = BlockDiagonal(6, 9, 3)
    wanted = torch.zeros(9, 6)
    for block in range(3):
        for row in range(3):
            for column in range(2):
                wanted[3 * block + row, 2 * block + column] = three.weight[block, row, column]
    torch.testing.assert_close(three.dense(), wanted)
    torch.testing.assert_close(three(x), x @ wanted.T)
    for inputs, outputs, blocks, message in ((6, 9, 2, "outputs=9 and blocks=2"), (7, 9, 3, "inputs=7 and blocks=3"), (6, 9, 0, "blocks=0")):
        with pytest.raises(ValueError, match=f"must be divisible by the number of blocks, got .*{message}"):
            BlockDiagonal(inputs, outputs, blocks)


@pytest.mark.parametrize(("inputs", "outputs", "blocks"), [(9, 9, 3), (16, 8, 4), (12, 6, 3), (8, 24, 2)])
def test_a_monarch_matrix_is_blocks_permutation_blocks(inputs: int, outputs: int, blocks: int) -> None:
    monarch = Monarch(inputs, outputs, blocks)
    permutation = torch.zeros(inputs, inputs)  # its own matrix: value (block b, place s) goes to place s * blocks + b
    size = inputs // blocks
    for b in range(blocks):
        for s in range(size):
            permutation[s * blocks + b, b * size + s] = 1
    first, second = torch.zeros(inputs, inputs), torch.zeros(outputs, inputs)
    for b in range(blocks):
        first[b * size : (b + 1) * size, b * size : (b + 1) * size] = monarch.first.weight[b]
        rows = outputs // blocks
        second[b * rows : (b + 1) * rows, b * size : (b + 1) * size] = monarch.second.weight[b]
    wanted = second @ permutation @ first
    torch.testing.assert_close(monarch.dense(), wanted)
    x = drawn(5, inputs, dtype=torch.float32)
    torch.testing.assert_close(monarch(x), x @ wanted.T)
    assert (wanted != 0).all()  # every output sees every input, which a block-diagonal matrix does not give
    assert not (monarch.first.dense() != 0).all()


def test_a_monarch_matrix_of_d_to_the_three_halves() -> None:
    for width in (16, 64, 256):
        blocks = math.isqrt(width)
        assert sum(p.numel() for p in Monarch(width, width, blocks).parameters()) == 2 * width**1.5
    with pytest.raises(ValueError, match=r"blocks must be at most the root of the inputs, 2, .*got 4"):
        Monarch(8, 8, 4)


@pytest.mark.parametrize("monarch", [False, True])
def test_the_gated_mlp(monarch: bool) -> None:
    mlp = GatedMLP(16, 32, 4, monarch=monarch)
    x = drawn(3, 16, dtype=torch.float32)
    wanted = (F.gelu(x @ mlp.gate.dense().T) * (x @ mlp.value.dense().T)) @ mlp.down.dense().T
    torch.testing.assert_close(mlp(x), wanted, atol=1e-6, rtol=1e-5)


# the encoder


@pytest.mark.parametrize("pooling", ["mean", "first", "pooler"])
@pytest.mark.parametrize("skip", [True, False])
def test_a_vector_does_not_depend_on_padding(pooling: str, skip: bool) -> None:
    torch.manual_seed(0)
    encoder = M2Encoder(replace(TINY, pooling=pooling, skip=skip))
    tokens = tokens_of(3, 7)
    vectors = encoder(tokens)
    torch.testing.assert_close(vectors, encoder(F.pad(tokens, (0, 5))), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert vectors.shape == (3, 8)


def test_poolings_and_positions() -> None:
    torch.manual_seed(0)
    tokens = tokens_of(2, 6)
    with pytest.raises(ValueError, match="pooling must be one of first, pooler, mean, got 'max'"):
        M2Encoder(replace(TINY, pooling="max"))  # type: ignore[arg-type]
    first = M2Encoder(replace(TINY, pooling="first"))
    torch.testing.assert_close(first(tokens), F.normalize(first.states(tokens)[:, 0]))
    pooler = M2Encoder(replace(TINY, pooling="pooler"))
    assert pooler.dense is not None
    torch.testing.assert_close(pooler(tokens), F.normalize(torch.tanh(pooler.dense(pooler.states(tokens)[:, 0]))))
    mean = M2Encoder(TINY)
    torch.testing.assert_close(mean(tokens), F.normalize(mean.states(tokens).mean(1)))
    before = mean(tokens)
    with torch.no_grad():
        mean.position.weight[3, 0] += 1
    assert not torch.allclose(before, mean(tokens), atol=1e-3)
    assert M2Config().width == 768 and M2Config().layers == 12 and M2Config().pooling == "pooler"


def test_the_released_layer_adds_nothing_to_the_mixer() -> None:
    torch.manual_seed(0)
    layer = M2Encoder(replace(TINY, skip=False)).layers[0]
    x = drawn(1, 5, 8, dtype=torch.float32)
    mixed = layer.mixer(x)
    torch.testing.assert_close(layer(x), layer.norm2(mixed + layer.mlp(mixed)))


def test_extension_repeats_positions() -> None:
    torch.manual_seed(0)
    encoder, tokens = M2Encoder(TINY), tokens_of(2, 16)
    kept, stretched = extend(encoder, 64, stretch=False), extend(encoder, 64)
    for longer in (kept, stretched):
        table = longer.position.weight
        assert table.shape == (64, 8) and all(torch.equal(table[16 * i : 16 * (i + 1)], encoder.position.weight) for i in range(4))
        assert longer(tokens_of(1, 64)).shape == (1, 8)
        with pytest.raises(ValueError, match="65 tokens and the model reads at most 64"):
            longer(tokens_of(1, 65))
    assert torch.equal(kept(tokens), encoder(tokens))  # time keeps its step: nothing else has changed
    assert not torch.allclose(stretched(tokens), encoder(tokens), atol=1e-6)
    for part in stretched.modules():
        if isinstance(part, ImplicitFilter):
            part.longest = 16
    assert torch.equal(stretched(tokens), encoder(tokens))  # the grid of time was the only difference
    assert encoder.longest == 16 and len(encoder.position.weight) == 16
    for longest in (24, 8):
        with pytest.raises(ValueError, match=f"longest must be a multiple of the encoder's 16, .*got {longest}"):
            extend(encoder, longest)


def test_vectors_of_length_zero_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("an embedding has length 0, so no cosine: 1 of 2 vectors")):
        unit(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


# pretraining


def test_hidden_words() -> None:
    tokens = F.pad(tokens_of(60, 40), (0, 10))
    shown, labels = hide(tokens, 0.3, mask=29, words=(3, 29), generator=stream(0, "hide"))
    asked = labels != -100
    assert not asked[:, 40:].any() and abs(float(asked[:, :40].double().mean()) - 0.3) < 0.03
    assert torch.equal(labels[asked], tokens[asked]) and torch.equal(shown[~asked], tokens[~asked])
    assert 0.7 < float((shown[asked] == 29).double().mean()) < 0.9
    one = hide(tokens_of(1, 1), 1e-6, mask=29, words=(3, 29), generator=stream(0, "hide"))[1]
    assert (one != -100).all()
    for rate in (0.0, 1.2):
        with pytest.raises(ValueError, match=f"rate must be above 0 and at most 1, got {rate}"):
            hide(tokens, rate, mask=29, words=(3, 29), generator=stream(0, "hide"))


def test_masked_words_are_asked_at_their_places() -> None:
    torch.manual_seed(0)
    model = MaskedWords(M2Encoder(TINY))
    labels = torch.full((2, 8), -100)
    labels[0, 3], labels[1, 5] = 7, 9
    tokens = tokens_of(2, 8)
    logits, wanted = model(tokens, labels)
    states = model.encoder.states(tokens)
    torch.testing.assert_close(logits[1], model.head(states[1, 5]) @ model.encoder.word.weight.T + model.bias)
    assert logits.shape == (2, 30) and wanted.tolist() == [7, 9]


def test_examples_are_concatenated() -> None:
    assert concatenated([[5, 6, 7], [8], [9, 10]], 4, separator=2).tolist() == [[5, 6, 7, 2], [8, 2, 9, 10]]
    with pytest.raises(ValueError, match="the texts have 2 tokens with separators, too few for one row of 4"):
        concatenated([[5]], 4, separator=2)


def test_the_mixture() -> None:
    short, long = torch.ones(10, 4, dtype=torch.int64), torch.full((10, 16), 2)
    draws = stream(0, "mixture")
    shapes = [tuple(mixture_batch(short, long, tokens=64, generator=draws).shape) for _ in range(2000)]
    assert set(shapes) == {(16, 4), (4, 16)}  # equal tokens
    assert shapes.count((16, 4)) / 2000 == pytest.approx(0.3, abs=0.03)
    for share, shape in ((1.0, (16, 4)), (0.0, (4, 16))):
        assert {tuple(mixture_batch(short, long, share=share, tokens=64, generator=draws).shape) for _ in range(50)} == {shape}
    with pytest.raises(ValueError, match=r"share must be between 0 and 1, got 1\.5"):
        mixture_batch(short, long, share=1.5, tokens=64, generator=draws)
    with pytest.raises(ValueError, match="tokens must be at least those of a row, 16, got 8"):
        mixture_batch(short, long, share=0.0, tokens=8, generator=draws)


# losses


class Given(nn.Module):
    """Stands where sentence-transformers has its model: the vectors are the features."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


def test_opl_is_the_squared_error_of_a_cosine() -> None:
    a, b = drawn(8, 5, dtype=torch.float32), drawn(8, 5, seed=1, dtype=torch.float32)
    y = (torch.arange(8) % 3 == 0).float()
    found = opl(a, b, y)
    torch.testing.assert_close(found, F.mse_loss(F.cosine_similarity(a, b), y), atol=1e-6, rtol=0)
    public = CosineSimilarityLoss(Given())([{"sentence_embedding": a}, {"sentence_embedding": b}], y)
    torch.testing.assert_close(found, public, atol=1e-6, rtol=0)
    half = F.cosine_similarity(a, b).bfloat16()
    torch.testing.assert_close(found, (half - y.bfloat16()).square().mean().float(), atol=1e-2, rtol=1e-2)


@given(st.integers(0, 1000), st.sampled_from([1, 2, 8]))
@settings(deadline=None, max_examples=20)
def test_opl_row_by_row_is_opl_of_the_batch(seed: int, block: int) -> None:
    weight = drawn(5, 4, seed=seed).requires_grad_()
    a, b, y = drawn(32, 5, seed=seed + 1), drawn(32, 5, seed=seed + 2), (torch.arange(32) % 2).double()
    whole = opl(a @ weight, b @ weight, y)
    (wanted,) = torch.autograd.grad(whole, weight)
    total = accumulate(lambda rows: opl(a[rows] @ weight, b[rows] @ weight, y[rows]), 32, block)
    assert total == pytest.approx(whole.item(), abs=1e-9)
    torch.testing.assert_close(weight.grad, wanted, atol=1e-9, rtol=1e-9)


def test_accumulation_weighs_the_last_block_by_its_rows() -> None:
    weight = drawn(3).requires_grad_()
    x = drawn(5, 3, seed=1)
    accumulate(lambda rows: (x[rows] @ weight).square().mean(), 5, 2)
    torch.testing.assert_close(weight.grad, torch.autograd.grad((x @ weight).square().mean(), weight)[0])
    with pytest.raises(ValueError, match="rows and block must be at least 1, got 0 and 1"):
        accumulate(lambda rows: weight.sum(), 0)


def test_mnrl_of_one_row_teaches_nothing() -> None:
    weight = drawn(5, 4).requires_grad_()
    q, d = drawn(6, 5, seed=1), drawn(6, 5, seed=2)
    total = accumulate(lambda rows: block_mnrl(q[rows] @ weight, d[rows] @ weight, 1), 6)
    assert total == 0.0 and weight.grad is not None and not weight.grad.any()
    assert block_mnrl(q, d, 1).item() == 0.0
    with pytest.raises(ValueError, match="a batch of one has no negatives"):  # the shared loss says so instead
        info_nce(q[:1], d[:1])


def test_mnrl_is_a_cross_entropy_and_blocks_are_means() -> None:
    q, d = drawn(6, 5), drawn(6, 5, seed=1)
    scores = F.normalize(q) @ F.normalize(d).T
    torch.testing.assert_close(mnrl(scores[None]), F.cross_entropy(20 * scores, torch.arange(6)))
    torch.testing.assert_close(block_mnrl(q, d, 6), F.cross_entropy(20 * scores, torch.arange(6)))
    each = torch.stack([info_nce(q[i : i + 2], d[i : i + 2]) for i in (0, 2, 4)])
    torch.testing.assert_close(block_mnrl(q, d, 2), each.mean())
    assert float(block_mnrl(q, d, 2)) != pytest.approx(float(block_mnrl(q, d, 6)), abs=1e-3)  # the batch matters to MNRL
    for block in (0, 4):
        with pytest.raises(ValueError, match=f"block must divide the batch of 6, got {block}"):
            block_mnrl(q, d, block)


def test_cached_mnrl_has_the_same_gradient() -> None:
    torch.manual_seed(0)
    encoder = M2Encoder(TINY)
    q, d = tokens_of(6, 4), tokens_of(6, 12, seed=1)
    block_mnrl(encoder(q), encoder(d), 6).backward()
    wanted = [None if p.grad is None else p.grad.clone() for p in encoder.parameters()]
    encoder.zero_grad()
    cached_gradients([(encoder, q), (encoder, d)], info_nce, chunk=1)
    for p, gradient in zip(encoder.parameters(), wanted, strict=True):
        assert (p.grad is None) == (gradient is None)
        if gradient is not None:
            torch.testing.assert_close(p.grad, gradient, atol=1e-5, rtol=1e-4)


def test_prototypes() -> None:
    q, d, tq, td = (drawn(4, 5, seed=i) for i in range(4))
    wanted = (1 - F.cosine_similarity(q, tq)) + (1 - F.cosine_similarity(d, td))
    torch.testing.assert_close(prototype_loss(q, d, tq, td), wanted.mean())
    assert float(prototype_loss(q, d, 3 * q, 2 * d)) == pytest.approx(0, abs=1e-12)


def test_rows_for_opl() -> None:
    query, document, label = opl_rows(torch.tensor([0, 2, 1]), 3, 32, generator=stream(0, "rows"))
    assert len(query) == 99 and query.tolist() == [i for i in range(3) for _ in range(33)]
    assert int(label.sum()) == 3 and torch.equal(document[label == 1], torch.tensor([0, 2, 1]))
    assert (document[label == 0] != torch.tensor([0, 2, 1]).repeat_interleave(32)).all()
    assert document.unique().tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="a corpus needs at least 2 documents, so that there is a wrong one, got 1"):
        opl_rows(torch.tensor([0]), 1, 4, generator=stream(0, "rows"))
    with pytest.raises(ValueError, match="negatives must be at least 1, got 0"):
        opl_rows(torch.tensor([0]), 3, 0, generator=stream(0, "rows"))
    with pytest.raises(ValueError, match="every query needs a relevant document between 0 and 2"):
        opl_rows(torch.tensor([3]), 3, 2, generator=stream(0, "rows"))


def test_what_opl_refuses() -> None:
    a = drawn(2, 3)
    for arguments, message in (
        ((a, a[:1], torch.ones(2)), "queries and documents must both be (B, d) and labels (B,), got (2, 3), (1, 3), (2,)"),
        ((a, a, torch.ones(3)), "got (2, 3), (2, 3), (3,)"),
        ((a, a, torch.tensor([1.0, -1.0])), "labels must be 0 or 1, got [-1.0]"),
        ((a, torch.zeros(2, 3), torch.ones(2)), "an embedding has length 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            opl(*arguments)


# readers and the benchmark


def test_readings() -> None:
    tokens = torch.arange(1, 11)[None]
    assert torch.equal(readings(tokens, "whole", 4), tokens[:, None])
    assert readings(tokens, "truncated", 4).tolist() == [[[1, 2, 3, 4]]]
    for reader in ("chunk-mean", "chunk-max"):
        assert readings(tokens, reader, 4).tolist() == [[[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]]]
    with pytest.raises(ValueError, match="reader must be one of whole, truncated, chunk-mean, chunk-max, got 'half'"):
        readings(tokens, "half", 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        readings(tokens, "truncated", 0)


def test_what_readers_make_of_documents() -> None:
    torch.manual_seed(0)
    encoder = M2Encoder(TINY)
    tokens = tokens_of(3, 12)
    tokens[2, 4:] = 0  # a short document: its empty chunks count for nothing
    chunks = [[encoder(row[start : start + 4][None])[0] for start in (0, 4, 8) if row[start]] for row in tokens]
    mean = read(encoder, tokens, "chunk-mean", 4)
    queries = F.normalize(drawn(5, 8, dtype=torch.float32))
    best = similarity(queries, read(encoder, tokens, "chunk-max", 4))
    for i, parts in enumerate(chunks):
        torch.testing.assert_close(mean[i, 0], F.normalize(torch.stack(parts).mean(0), dim=0), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(best[:, i], (queries @ torch.stack(parts).T).amax(1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(read(encoder, tokens, "truncated", 4)[:, 0], encoder(tokens[:, :4]))
    torch.testing.assert_close(similarity(queries, read(encoder, tokens, "whole", 4)), queries @ encoder(tokens).T)


@given(st.integers(0, 1000), st.integers(2, 25))
@settings(deadline=None, max_examples=25)
def test_ndcg_is_that_of_the_libraries(seed: int, documents: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(3, documents, generator=generator)
    relevance = (torch.rand(3, documents, generator=generator) < 0.3).long()
    relevance[:, 0] = 1
    found = ndcg(scores, relevance)
    assert found.tolist() == pytest.approx([ndcg_score(relevance[i : i + 1], scores[i : i + 1], k=10) for i in range(3)])
    assert float(found.mean()) == pytest.approx(ranking_measures(scores, relevance, ("ndcg_cut_10",))["ndcg_cut_10"])


def test_what_the_benchmark_refuses() -> None:
    for scores, relevance, message in (
        (torch.rand(2, 1), torch.ones(2, 1), "a corpus needs at least 2 documents, got 1"),
        (torch.rand(2, 3), torch.tensor([[1, 0, 0], [0, 0, 0]]), "query 1 has no relevant document"),
        (torch.rand(2, 3), torch.ones(3, 2), "got (2, 3) and (3, 2)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            ndcg(scores, relevance)
    with pytest.raises(ValueError, match="there is no task to average over"):
        loco_score({})
    with pytest.raises(ValueError, match="the rule needs the readers whole, truncated and a chunked one, got whole, truncated"):
        qualifies({"whole": 1.0, "truncated": 0.0}, 0.1)


def test_a_task_qualifies_only_if_every_shorter_reader_fails() -> None:
    assert qualifies({"whole": 0.9, "truncated": 0.5, "chunk-mean": 0.7, "chunk-max": 0.6}, 0.1)
    assert not qualifies({"whole": 0.9, "truncated": 0.85, "chunk-max": 0.6}, 0.1)  # a truncated reader suffices
    assert not qualifies({"whole": 0.9, "truncated": 0.5, "chunk-mean": 0.7, "chunk-max": 0.95}, 0.1)  # so does a chunked one
    assert loco_score({"a": 0.5, "b": 1.0}) == 0.75


# worlds


def test_scattered_documents() -> None:
    world = Scattered(keys=5, noise=7, length=20)
    assert world.classes.shape == (20, 2) and world.vocabulary == 13
    tokens, places = world.documents(world.classes, generator=stream(0, "d"))
    assert torch.equal(tokens.gather(1, places), world.classes) and (places[:, 0] < places[:, 1]).all()
    assert ((tokens >= 1) & (tokens <= 5)).sum(1).tolist() == [2] * 20 and int(tokens.max()) <= 12
    both = world.both_orders(4, generator=stream(0, "b"))
    assert torch.equal(both[::2], both[1::2].flip(1)) and len({tuple(row) for row in both.tolist()}) == 8
    assert len({tuple(row) for row in world.different(12, generator=stream(0, "c")).tolist()}) == 12


def test_evidence_moves_and_nothing_else() -> None:
    document, noise = torch.tensor([9, 3, 9, 9, 4, 9]), torch.full((6,), 8)
    found = moved(document, torch.tensor([3, 4]), torch.tensor([[1, 4], [0, 5]]), noise=noise)
    assert found.tolist() == [[9, 3, 9, 9, 4, 9], [3, 8, 9, 9, 8, 4]]


def test_word_scores_of_chunks_by_hand() -> None:
    documents = ["alpha beta gamma delta", "alpha epsilon"]
    queries = ["delta", "alpha"]
    assert word_scores(queries, documents, "truncated", 2)[0].tolist() == [0, 0]
    best, mean = word_scores(queries, documents, "chunk-max", 2), word_scores(queries, documents, "chunk-mean", 2)
    assert best[0, 0] > 0.5 and best[0, 1] == 0
    assert float(mean[0, 0]) == pytest.approx(float(best[0, 0]) / math.sqrt(2))  # two chunks that share no word
    assert torch.allclose(mean[:, 1], best[:, 1])
    assert word_scores(queries, documents, "BM25")[0, 0] > 0
    with pytest.raises(ValueError, match="reader must be BM25 or one of"):
        word_scores(queries, documents, "half")


def test_docstrings() -> None:
    queries, documents = docstring_task("sklearn", 50, generator=stream(0, "t"))
    assert len(queries) == len(documents) == 50 and set(SETS) == {"numpy", "networkx", "sklearn", "torch"}
    texts = docstring_texts(300, held=40, generator=stream(0, "texts"))
    assert len(texts.vocabulary) == 300 and len(texts.held_short) == len(texts.held_long) == 40
    assert all(row[: len(short)] == short for short, row in zip(texts.held_short, texts.held_long, strict=True))


# experiment


def test_the_quick_experiment() -> None:
    arms = run_quick(loco.EXPERIMENT)
    assert arms["MNRL, 1 in memory"]["ndcg_tuned"] == arms["weak start"]["ndcg_tuned"]  # a gradient of 0 moves nothing
    assert arms["MNRL, row by row"]["length"] == 0.0 < arms["MNRL, the batch"]["length"]
    assert arms["OPL, row by row"]["difference"] < 1e-5 < arms["OPL, row by row"]["length"]
    assert set(READERS) <= set(arms) and set(loco.MIXTURES) <= set(arms)


def test_chunk_mean_and_a_bag_of_words_have_the_same_ceiling() -> None:
    world = Scattered()
    documents, _ = world.documents(world.classes, generator=stream(0, "bag"))
    bag = F.one_hot(documents, world.vocabulary).sum(1)[:, : world.keys + 1].double()
    queries = F.one_hot(world.classes, world.vocabulary).sum(1)[:, : world.keys + 1].double()
    scores = queries @ bag.T + 1e-3 * torch.rand(380, 380, generator=stream(0, "ties"), dtype=torch.float64)
    found = float(ndcg(scores, torch.eye(380)).mean())
    assert loco.by_bag(0)["ndcg"] == pytest.approx((1 + 1 / math.log2(3)) / 2, abs=1e-9)  # the same by BM25, ties in the order of classes
    assert found == pytest.approx((1 + 1 / math.log2(3)) / 2, abs=0.02)  # first or second, as chance has it


# explorers and exercises


def test_the_shipped_readers() -> None:
    measured = provenance(loco.SHOWN)["measured"]
    assert measured["whole"] > measured["chunk-mean 16"] > measured["truncated 16"]
    assert loco.measure_shown(load(loco.SHOWN)) == pytest.approx(measured, abs=0.006)  # two of 380 queries
    few = replace(loco.SHOWN.settings, settings=replace(loco.SHOWN.settings.settings, steps=1))
    assert set(dict(loco.train_shown(few, None).named_children())) == set(measured)


def test_evidence_moves_deeper() -> None:
    shown = explorer()
    first = shown.text
    assert re.search(r"second key at word \d+", first) and "truncated" in first
    shown.set(depth=6, gap=2)
    assert shown.text != first
    shown.set(window=64)
    for label in shown.presets:
        shown.preset(label)
        assert "rank" in shown.text
    shown.preset("reset")
    shown.point("press", 20, 0, axes=0)
    assert "second key at word 21" in shown.text
    shown.point("key", 20, 0, axes=0, key="ArrowRight")
    assert "second key at word 22" in shown.text


def test_the_pull_of_losses() -> None:
    shown = pull()
    shown.set(batch=1)
    assert "MNRL 0.000" in shown.text
    before = re.search(r"OPL (\S+)", shown.text)
    shown.set(batch=32)
    after = re.search(r"OPL (\S+)", shown.text)
    assert before and after and before[1] == after[1]
    for label in shown.presets:
        shown.preset(label)
        assert "channel" in shown.text


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.question[:24])
def test_exercises(exercise) -> None:
    assert not exercise.check(None).right
    assert not exercise.check(exercise.wrong).right
    reply = exercise.check(exercise.solve())
    assert reply.right, reply
