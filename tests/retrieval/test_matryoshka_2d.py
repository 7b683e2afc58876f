"""The losses against sentence-transformers, PyTorch and explicit sums; exits and cut encoders; bad input; experiment, explorer, exercises."""

import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quick_experiment import run_quick
from real_files import REAL
from tiny_bert import tiny_bert
from torch import Tensor
from torch.nn import functional as F

from mtlearn.lab.checkpoints import load, provenance
from mtlearn.lab.seeds import seeded
from mtlearn.layers.contrastive import info_nce
from mtlearn.layers.cost import count_flops
from mtlearn.layers.embedding import embed
from mtlearn.layers.pretrained import pretrained
from mtlearn.layers.text_encoders import TokenEncoder
from mtlearn.retrieval.matryoshka_2d import experiment
from mtlearn.retrieval.matryoshka_2d.encoder import encode, shipped
from mtlearn.retrieval.matryoshka_2d.exercises import EXERCISES
from mtlearn.retrieval.matryoshka_2d.experiment import CHECKPOINTS, EXPERIMENT, SIZES, MatryoshkaSettings, Recipe
from mtlearn.retrieval.matryoshka_2d.explorer import FRONT, HEAT, explorer, front, tables
from mtlearn.retrieval.matryoshka_2d.method import (
    Draw,
    ElasticEncoder,
    alignment,
    cosent_loss,
    draw,
    espresso_loss,
    ladder,
    matryoshka_loss,
    nested_loss,
    principal,
    sliced,
    two_d_loss,
)
from mtlearn.retrieval.matryoshka_2d.worlds import docstring_texts

N, B, D = 4, 6, 16


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def columns(layers: int = N) -> list[Tensor]:
    return [drawn(layers + 1, B, D, seed=seed) for seed in (1, 2)]


def at(exits: list[Tensor], layer: int, size: int = D) -> Tensor:
    return info_nce(*(x[layer][:, :size] for x in exits))


# ------------------------------------------------------------------------------------------------------------- the authors' form


@pytest.mark.parametrize(("release", "weight", "power"), [("first", 1.0, 2), ("second", 1 / 3, 1)])
def test_the_authors_form_is_its_five_terms(release: Any, weight: float, power: int) -> None:
    exits = columns()
    student, teacher = (torch.cat([x[n] for x in exits]) for n in (3, N))
    kl = F.kl_div(F.log_softmax(student / 0.3, -1), F.softmax(teacher / 0.3, -1), reduction="batchmean")
    wanted = at(exits, N) + weight * at(exits, 3) + 0.3**power * kl + at(exits, N, 8) + weight * at(exits, 3, 8)
    torch.testing.assert_close(two_d_loss(exits, info_nce, 3, 8, release=release, temperature=0.3), wanted)
    without = two_d_loss(exits, info_nce, 3, 8, release=release, temperature=0.3, kl_weight=0.0)
    torch.testing.assert_close(wanted - without, 0.3**power * kl)


def test_without_a_shallow_layer_it_is_matryoshka_and_without_both_twice_the_loss() -> None:
    for layers in (1, 4):
        exits = columns(layers)
        torch.testing.assert_close(two_d_loss(exits, info_nce, None, 8), at(exits, layers) + at(exits, layers, 8))
        torch.testing.assert_close(two_d_loss(exits, info_nce, None, None), 2 * at(exits, layers))
        torch.testing.assert_close(two_d_loss(exits, info_nce, None, D), 2 * at(exits, layers))


def test_a_fixed_teacher_takes_the_place_of_the_last_layer() -> None:
    exits, teacher = columns(), drawn(2 * B, D, seed=5)
    found = two_d_loss(exits, info_nce, 2, 4, teacher=teacher) - two_d_loss(exits, info_nce, 2, 4, kl_weight=0.0)
    torch.testing.assert_close(found, alignment(torch.cat([x[2] for x in exits]), teacher))


def test_the_ladder_is_geometric_and_below_the_width() -> None:
    assert ladder(768) == (8, 16, 32, 64, 128, 256, 512)
    assert ladder(64, 4) == (4, 8, 16, 32) and ladder(8) == () and ladder(9) == (8,)


@given(st.integers(1, 12), st.integers(0, 10**6))
def test_a_slice_is_normalised_and_its_cosine_is_that_of_the_slice(size: int, seed: int) -> None:
    x, y = drawn(5, 12, seed=seed), drawn(5, 12, seed=seed + 1)
    assert torch.equal(sliced(x, size), F.normalize(x[:, :size], dim=-1))
    cosine = F.cosine_similarity(x[:, :size], y[:, :size])
    torch.testing.assert_close((sliced(x, size) * sliced(y, size)).sum(-1), cosine)


@given(st.floats(0.05, 5.0), st.integers(0, 10**6))
def test_the_alignment_is_a_divergence(temperature: float, seed: int) -> None:
    student, teacher = drawn(4, 7, seed=seed), drawn(4, 7, seed=seed + 1)
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    torch.testing.assert_close(alignment(student, teacher, temperature), (p * (p / q).log()).sum(-1).mean(), atol=1e-9, rtol=1e-6)
    assert alignment(student, teacher, temperature) >= -1e-12
    assert abs(alignment(teacher, teacher, temperature)) < 1e-7


# ------------------------------------------------------------------------------------------------------------- exits and cutting


def body(**options: Any) -> TokenEncoder:
    with seeded(0):
        return TokenEncoder(50, 16, 2, N, 16, longest=12, **options)


TOKENS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0], [9, 9, 10, 0]])


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_cut_encoder_gives_the_exit_bit_for_bit_and_runs_less(norm_first: bool, pooling: Any) -> None:
    encoder = ElasticEncoder(body(norm_first=norm_first), pooling).eval()
    with torch.no_grad():
        exits = encoder.exits(TOKENS)
        assert exits.shape == (N + 1, 3, 16)
        flops = []
        for n in range(1, N + 1):
            short = encoder.truncated(n)
            assert torch.equal(short.exits(TOKENS)[-1], exits[n]) and short.layers == n
            assert torch.equal(short(TOKENS, 8), sliced(exits[n], 8))
            flops.append(count_flops(lambda short=short: short(TOKENS)))  # type: ignore[misc]
    assert encoder.layers == N
    assert flops == [n * flops[0] for n in range(1, N + 1)]  # nothing but layers costs products
    assert {id(p) for p in encoder.truncated(2).parameters()} < {id(p) for p in encoder.parameters()}


def test_a_pretrained_bert_is_cut_the_same_way(tmp_path: Path) -> None:
    own, tokeniser = pretrained(tiny_bert(tmp_path, layers=3, width=8))
    encoder, tokens = ElasticEncoder(own).eval(), tokeniser(["the matrix", "sort of long graph"], 12)
    with torch.no_grad():
        exits = encoder.exits(tokens)
        hidden = own.model(input_ids=tokens, attention_mask=(tokens != 0).long(), output_hidden_states=True).hidden_states
        there = (tokens != 0)[..., None]
        for n in range(1, 4):
            assert torch.equal(encoder.truncated(n).exits(tokens)[-1], exits[n])
            torch.testing.assert_close(exits[n], (hidden[n] * there).sum(1) / there.sum(1))


def test_every_exit_of_a_layer_that_normalises_first_is_normalised() -> None:
    encoder = ElasticEncoder(body(norm_first=True), "first").eval()
    exits = encoder.exits(TOKENS)
    torch.testing.assert_close(exits.mean(-1), torch.zeros(N + 1, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(exits.var(-1, correction=0), torch.ones(N + 1, 3), atol=1e-2, rtol=0)


def test_padding_and_neighbours_change_nothing() -> None:
    encoder = ElasticEncoder(body(norm_first=True)).eval()
    torch.testing.assert_close(encoder.exits(TOKENS)[:, 1:2], encoder.exits(TOKENS[1:2, :2]))


def test_shallow_terms_leave_the_layers_above_alone() -> None:
    encoder = ElasticEncoder(body(norm_first=True))
    exits = [encoder.exits(TOKENS), encoder.exits(TOKENS.flip(0))]
    (info_nce(*(x[2] for x in exits)) + info_nce(*(x[2][:, :4] for x in exits))).backward()
    for n, layer in enumerate(encoder.body.transformer.layers, 1):  # type: ignore[attr-defined]
        pulled = [p.grad is not None and bool(p.grad.any()) for p in layer.parameters()]
        assert any(pulled) == (n <= 2)


def test_sliced_terms_leave_the_other_numbers_alone() -> None:
    exits = [x.requires_grad_() for x in columns()]
    (at(exits, N, 4) + at(exits, 2, 4)).backward()
    for x in exits:
        assert x.grad is not None and not x.grad[..., 4:].any() and x.grad[N][:, :4].any()


@pytest.mark.parametrize("detach", [True, False])
def test_the_alignment_pulls_the_last_layer_unless_detached(detach: bool) -> None:
    exits = [x.requires_grad_() for x in columns()]
    kl = two_d_loss(exits, info_nce, 2, 8, detach=detach) - two_d_loss(exits, info_nce, 2, 8, kl_weight=0.0)
    kl.backward()
    for x in exits:
        assert x.grad is not None and x.grad[2].abs().max() > 1e-6
        assert (x.grad[N].abs().max() < 1e-12) == detach


# ------------------------------------------------------------------------------------------------------------- sentence-transformers


def peer(folder: Path) -> tuple[Any, Callable[[], list[dict[str, Tensor]]], list[Tensor]]:
    """A 4-layer BERT of width 16 as the library's model, its features of two columns, and our exits of them."""
    from sentence_transformers import SentenceTransformer, __version__
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    if not __version__.startswith("5.7"):  # the library changed its layers, weights and teacher before, and may again
        pytest.skip(f"the draws and weights are those of sentence-transformers 5.7, this is {__version__}")
    name = tiny_bert(folder, layers=4, width=16, heads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SentenceTransformer(modules=[Transformer(name), Pooling(16, "mean")], device="cpu").eval()
    texts = [["the matrix", "sort a graph", "inverse of qr"], ["long signal", "graph sort", "the inverse transform"]]
    own, tokeniser = pretrained(name)
    encoder = ElasticEncoder(own).eval()

    def features() -> list[dict[str, Tensor]]:
        found = []
        for column in texts:
            tokens = tokeniser(column, 20)
            found.append({"input_ids": tokens, "attention_mask": (tokens != 0).long(), "token_type_ids": torch.zeros_like(tokens)})
        return found

    return model, features, [encoder.exits(part["input_ids"]) for part in features()]


def pick(values: list[int], number: int) -> tuple[int, ...]:
    """What the library draws: a sample, in the values' order for sizes."""
    return tuple(random.sample(values, number)) if number < len(values) else tuple(values)


@pytest.mark.parametrize(("weighting", "per_step"), [("uniform", (1, 1)), ("linear", (2, 2)), ("log", (-1, 1)), ("uniform", (1, -1))])
def test_the_two_dimensional_loss_is_the_librarys(tmp_path: Path, weighting: Any, per_step: tuple[int, int]) -> None:
    from sentence_transformers.sentence_transformer.losses import Matryoshka2dLoss, MultipleNegativesRankingLoss

    model, features, exits = peer(tmp_path)
    sizes = [16, 8, 4, 2]
    theirs = Matryoshka2dLoss(
        model,
        MultipleNegativesRankingLoss(model),
        sizes,
        n_layers_per_step=per_step[0],
        n_dims_per_step=per_step[1],
        layer_weighting=weighting,
        prior_layers_weight=0.7,
        last_layer_weight=1.3,
        kl_div_weight=0.9,
    )
    for seed in range(3):
        random.seed(seed)
        wanted = theirs(features(), torch.zeros(3))
        random.seed(seed)  # the same draws: sizes of the last layer, the layers, the sizes of each

        def some() -> tuple[int, ...]:
            return pick(sizes, per_step[1]) if per_step[1] > 0 else tuple(sizes)

        last = some()
        layers = pick([0, 1, 2, 3], per_step[0]) if per_step[0] > 0 else (0, 1, 2, 3)
        one = Draw(last, layers, tuple(some() for _ in layers))
        ours = nested_loss(exits, info_nce, one, weighting=weighting, prior_weight=0.7, last_weight=1.3, kl_weight=0.9)
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)


def test_layers_alone_and_sizes_alone_are_the_librarys(tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.losses import AdaptiveLayerLoss, MatryoshkaLoss, MultipleNegativesRankingLoss

    model, features, exits = peer(tmp_path)
    base = MultipleNegativesRankingLoss(model)
    ours = matryoshka_loss([x[-1] for x in exits], info_nce, [16, 8, 3], [1.0, 0.5, 0.25])
    torch.testing.assert_close(ours, MatryoshkaLoss(model, base, [16, 8, 3], [1.0, 0.5, 0.25])(features(), torch.zeros(3)), atol=1e-6, rtol=1e-6)
    for temperature in (0.3, 0):
        theirs = AdaptiveLayerLoss(model, base, n_layers_per_step=-1, kl_temperature=temperature)(features(), torch.zeros(3))
        mine = nested_loss(exits, info_nce, Draw(None, (0, 1, 2, 3), (None,) * 4), kl_weight=float(temperature > 0))
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_all_sizes_are_the_sum_over_sizes_and_one_size_is_the_other_form() -> None:
    exits = columns()
    last = [x[-1] for x in exits]
    torch.testing.assert_close(matryoshka_loss(last, info_nce, [16, 8, 4]), sum(at(exits, N, size) for size in (16, 8, 4)))
    # with the full size and one more for both layers, the library's earlier form is that of the authors' second release
    both = Draw((D, 8), (3,), ((D, 8),))
    ours = nested_loss(exits, info_nce, both, weighting="inverse", detach=False, temperature=0.3)
    torch.testing.assert_close(ours, two_d_loss(exits, info_nce, 3, 8, temperature=0.3))


def test_draws_are_without_replacement_and_leave_out_what_they_should() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = [draw(4, (4, 8, 16), first=1, generator=generator) for _ in range(200)]
    assert {one.layers[0] for one in seen} == {1, 2, 3} and {one.last for one in seen} == {(4,), (8,), (16,)}
    assert any(one.last != one.sizes[0] for one in seen)  # the sizes of both layers are drawn apart
    every = draw(4, (4, 8, 16), per_step=(-1, -1), generator=generator)
    assert every == Draw((16, 8, 4), (3, 2, 1, 0), ((16, 8, 4),) * 4)
    assert {one.layers[0] for one in (draw(4, (4,), generator=generator) for _ in range(100))} == {0, 1, 2, 3}


@pytest.mark.parametrize("similarity", ["cosine", "angle"])
def test_the_loss_of_graded_pairs_is_the_librarys(similarity: Any) -> None:
    from sentence_transformers.sentence_transformer.losses import AnglELoss, CoSENTLoss

    class Two:
        """Gives the vectors it is asked for."""

        def __call__(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            return features

    first, second, scores = drawn(7, 8, seed=3).float(), drawn(7, 8, seed=4).float(), torch.tensor([0.1, 0.9, 0.4, 0.4, 1.0, 0.0, 0.7])
    theirs = (CoSENTLoss if similarity == "cosine" else AnglELoss)(Two())
    wanted = theirs([{"sentence_embedding": first}, {"sentence_embedding": second}], scores)
    torch.testing.assert_close(cosent_loss(first, second, scores, similarity=similarity), wanted)


# ------------------------------------------------------------------------------------------------------------- the successor


def test_espresso_is_its_sum_and_layer_n_less_one_is_left_out() -> None:
    exits = [x.requires_grad_() for x in columns()]

    def compress(n: int) -> Tensor:
        rows = torch.cat([x[n] for x in exits])
        with torch.no_grad():
            u, s, _ = torch.linalg.svd((rows.T @ rows / D**0.5).softmax(-1))
            target = rows @ u[:, :4] @ torch.diag(s[:4])
            target *= (principal(rows, 4) * target).sum(0).sign()  # singular vectors are known but for their sign
        kl = F.kl_div(rows[:, :4].log_softmax(-1), target.softmax(-1), reduction="batchmean")
        return ((rows[:, :4] - target) ** 2).mean() + kl

    weights = [1 / (1 + torch.tensor(1.0 + n).log().item()) for n in range(N - 1)]
    shallow = sum(w * (at(exits, n, 4) + compress(n)) for n, w in enumerate(weights)) / (N - 1)
    value = espresso_loss(exits, info_nce, 4)
    torch.testing.assert_close(value, at(exits, N) + at(exits, N, 4) + compress(N) + shallow)
    value.backward()
    assert exits[0].grad is not None and not exits[0].grad[N - 1].any() and exits[0].grad[0].any()
    plain = at(exits, N) + at(exits, N, 4) + sum(w * at(exits, n, 4) for n, w in enumerate(weights)) / (N - 1)
    torch.testing.assert_close(espresso_loss(exits, info_nce, 4, compress_weight=0.0), plain)


def test_the_principal_directions_are_definite() -> None:
    rows = drawn(9, 6)
    found = principal(rows, 6)
    torch.testing.assert_close(found[:, :2], principal(rows, 2))
    assert not principal(rows.clone().requires_grad_(), 2).requires_grad
    affinity = (rows.T @ rows / 6**0.5).softmax(-1)
    torch.testing.assert_close(found @ found.T, rows @ (affinity @ affinity.T) @ rows.T)  # U S^2 U' = A A'


# ------------------------------------------------------------------------------------------------------------- bad input


def one_layer(n: int) -> Draw:
    return Draw((4,), (n,), ((4,),))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sliced(drawn(2, 8), 0), r"between 1 and the width 8, got 0"),
        (lambda: sliced(drawn(2, 8), 9), r"between 1 and the width 8, got 9"),
        (lambda: matryoshka_loss([drawn(2, 8)] * 2, info_nce, []), "at least one size between 1 and 8"),
        (lambda: matryoshka_loss([drawn(2, 8)] * 2, info_nce, [8, 4], [1.0]), "as many as the 2 sizes, got 1"),
        (lambda: two_d_loss(columns(), info_nce, 4, 8), "between 1 and 3, below the last of 4, got 4"),
        (lambda: two_d_loss(columns(), info_nce, 0, 8), "between 1 and 3"),
        (lambda: two_d_loss(columns(), info_nce, 1, 17), "between 1 and the width 16, got 17"),
        (lambda: two_d_loss(columns(), info_nce, 1, 8, temperature=0.0), "above 0, got 0.0; .* kl_weight=0"),
        (lambda: two_d_loss(columns(), info_nce, 1, 8, release="third"), "'first' or 'second', got 'third'"),  # type: ignore[arg-type]
        (lambda: two_d_loss([drawn(4, 8)], info_nce, 1, 8), r"\(layers \+ 1, batch, width\), got"),
        (lambda: two_d_loss([drawn(5, 2, 8), drawn(5, 2, 9)], info_nce, 1, 8), "must share layers and width"),
        (lambda: two_d_loss([x[:, :1] for x in columns()], info_nce, 1, 8), "a batch of one has no negatives"),
        (lambda: alignment(drawn(2, 3), drawn(2, 4)), "one shape"),
        (lambda: alignment(drawn(2, 3), drawn(2, 3), -1.0), "above 0, got -1.0"),
        (lambda: nested_loss(columns(), info_nce, one_layer(4)), "between 0 and 3, below the last of 4, got 4"),
        (lambda: nested_loss(columns(), info_nce, one_layer(1), weighting="square"), "uniform, log, linear, inverse"),  # type: ignore[arg-type]
        (lambda: nested_loss(columns(), info_nce, one_layer(1), temperature=0.0), "kl_weight=0"),
        (lambda: nested_loss(columns(), info_nce, one_layer(1), size_weights={8: 1.0}), "4 is missing"),
        (lambda: Draw((4,), (1, 2), ((4,),)), "each of the 2 layers, got 1"),
        (lambda: draw(4, (), generator=torch.Generator()), "at least one size"),
        (lambda: draw(4, (8,), per_step=(0, 1), generator=torch.Generator()), "per_step -1 or at least 1"),
        (lambda: ladder(0), "at least 1, got 0"),
        (lambda: espresso_loss(columns(1), info_nce, 4), "at least 2 layers"),
        (lambda: espresso_loss(columns(), info_nce, 20), "between 1 and the width 16, got 20"),
        (lambda: cosent_loss(drawn(3, 4), drawn(3, 4), drawn(2)), r"scores \(B,\)"),
        (lambda: cosent_loss(drawn(1, 4), drawn(1, 4), drawn(1)), "two pairs"),
        (lambda: cosent_loss(drawn(3, 5), drawn(3, 5), drawn(3), similarity="angle"), "even size, got 5"),
        (lambda: cosent_loss(drawn(3, 4), drawn(3, 4), drawn(3), similarity="dot"), "'cosine' or 'angle', got 'dot'"),  # type: ignore[arg-type]
        (lambda: ElasticEncoder(body()).truncated(0), "between 1 and 4, got 0"),
        (lambda: ElasticEncoder(body()).truncated(5), "between 1 and 4, got 5"),
        (lambda: ElasticEncoder(body()).exits(torch.tensor([[3, 4], [0, 0]])), "row 1 has no token but padding"),
        (lambda: ElasticEncoder(body())(TOKENS, 17), "between 1 and the width 16, got 17"),
        (lambda: docstring_texts(0, held_out=10**6), "held_out must be between 1 and"),
    ],
)
def test_bad_input(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_body_without_layers_is_refused() -> None:
    class Flat:
        width, padding, model = 4, 0, object()

    with pytest.raises(ValueError, match="Flat has no list of layers"):
        ElasticEncoder(Flat())  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- experiment


def test_quick() -> None:
    arms = run_quick(EXPERIMENT)
    assert arms["half the layers"]["operations"] == pytest.approx(0.5)
    assert set(arms["2DMSE"]) == {f"mrr_{n}_{size}" for n in range(5) for size in SIZES} | {"mrr_mean"}
    assert all(0 < value <= 1 for metrics in arms.values() for value in metrics.values())


def test_ranks_and_grid_are_by_hand() -> None:
    queries = torch.eye(3)
    documents = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 1]])
    assert experiment.ranks(queries, documents).tolist() == [2, 3, 1]  # an equal score counts against
    exits = drawn(2, 5, 8), drawn(2, 5, 8, seed=1)
    perfect = experiment.grid((exits[0], exits[0]), (8, 2))
    torch.testing.assert_close(perfect, torch.ones(2, 2, dtype=torch.float64))
    graded = experiment.grid(exits, (8,), torch.nn.functional.cosine_similarity(exits[0][1], exits[1][1]))
    assert graded[1, 0] == pytest.approx(1.0)


def test_all_arms_see_the_same_batches_and_begin_alike() -> None:
    settings = EXPERIMENT.scales["quick"]
    assert isinstance(settings, MatryoshkaSettings)
    start, world = experiment.make_start(settings, 0)
    seen: dict[str, list[tuple[int, int]]] = {}
    recipe = replace(settings.recipe, steps=4, warmup=1)
    for name in ("plain", "2DMSE"):
        own: list[tuple[int, int]] = []

        def spy(columns: Any, loss: Any, layer: int, size: int, own: list[tuple[int, int]] = own) -> Tensor:
            own.append((layer, size))
            return experiment.plain(columns, loss, layer, size)

        experiment.train(start, world, recipe, 0, spy)
        seen[name] = own
    assert seen["plain"] == seen["2DMSE"] and len(seen["plain"]) == 4
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), experiment.make_start(settings, 0)[0].parameters(), strict=True))


def test_one_layer_in_each_step_and_all_layers_agree_where_there_is_one() -> None:
    exits = columns(2)
    recipe = Recipe()
    torch.testing.assert_close(experiment.all_layers(recipe)(exits, info_nce, 1, 8), experiment.two_d(recipe)(exits, info_nce, 1, 8))


@pytest.mark.skipif(not (REAL / "sts").exists(), reason="needs the published files")
def test_paper_scale_for_a_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    paper = EXPERIMENT.scales["paper"]
    assert isinstance(paper, MatryoshkaSettings)
    name = tiny_bert(tmp_path, layers=3, width=16, heads=2)
    texts = experiment.graded_texts

    def few() -> Any:
        found = texts()
        assert len(found.train[0]) > 7_000 and found.train_scores is not None and found.test_scores is not None
        rows = slice(0, 60)
        return replace(
            found,
            train=(found.train[0][rows], found.train[1][rows]),
            test=(found.test[0][rows], found.test[1][rows]),
            train_scores=found.train_scores[rows],
            test_scores=found.test_scores[rows],
        )

    monkeypatch.setattr(experiment, "graded_texts", few)
    settings = replace(paper, recipe=replace(paper.recipe, steps=2, batch=16, warmup=1), encoder=name)
    with seeded(0):
        arms = experiment.run(settings, 0, torch.device("cpu"))
    assert set(arms["plain"]) == set(arms["2DMSE"]) and all(-1 <= value <= 1 for value in arms["2DMSE"].values())
    assert arms["2DMSE"]["mrr_0_64"] == 0.0  # the embedding of [CLS] says nothing
    assert {claim.metric for claim in EXPERIMENT.claims if claim.worse == "one encoder a cell"} == set(arms["one encoder a cell"])
    assert experiment.shown_cells(12, 768) == ([0, 3, 6, 9, 12], [48, 96, 192, 384, 768])
    assert experiment.shown_cells(4, 64) == ([0, 1, 2, 3, 4], list(SIZES))


# ------------------------------------------------------------------------------------------------------------- what ships


def test_the_shipped_encoder_is_that_of_its_record_and_can_be_cut() -> None:
    for checkpoint in CHECKPOINTS:
        assert checkpoint.measure is not None
        for name, value in checkpoint.measure(load(checkpoint)).items():
            assert value == pytest.approx(provenance(checkpoint)["measured"][name], abs=2e-3)
    texts = ["Solve a linear system of equations.", "Find a shortest path in a graph."]
    vectors = embed(encode, texts)
    assert vectors.shape == (2, 64)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    encoder, vocabulary = shipped()
    tokens = vocabulary(texts, 24)
    with torch.no_grad():
        torch.testing.assert_close(encode(texts, layer=2, size=8), sliced(encoder.exits(tokens)[2], 8))
    with pytest.raises(ValueError, match="between 1 and 4, got 5"):
        encode(texts, layer=5)


def test_the_explorer_runs_the_query_at_every_price() -> None:
    found = explorer()
    first, text = found.png, found.text
    found.set(layer=4, step=4)
    assert found.png != first and found.text != text and "4 of 4 layers, 64 numbers" in found.text and "128 bytes" in found.text
    texts = set()
    for label in found.presets:
        found.preset(label)
        texts.add(found.text)
    assert len(texts) >= len(found.presets) - 1  # "reset" is one of them
    found.point("press", 0.2, 3.9, axes=HEAT)
    assert (found.values["layer"], found.values["step"]) == (4, 0)
    found.point("key", 0, 0, key="ArrowDown")
    found.point("key", 0, 0, key="ArrowRight")
    found.point("key", 0, 0, key="n")
    assert (found.values["layer"], found.values["step"], found.values["query"]) == (3, 1, 32)
    found.point("press", 2.0, 0.3, axes=FRONT)
    assert found.values["model"] in tables() and "MRR" in found.text
    found.point("press", 0.0, 0.0, axes=-1)


def test_the_front_holds_what_nothing_beats() -> None:
    import numpy as np

    assert front(np.array([1.0, 2, 2, 3, 4]), np.array([0.1, 0.3, 0.4, 0.2, 0.5])) == [0, 2, 4]


@pytest.mark.parametrize("exercise", EXERCISES)
def test_exercises(exercise: Any) -> None:
    assert not exercise.check(None).right
    assert not exercise.check(exercise.wrong).right
    reply = exercise.check(exercise.solve())
    assert reply.right, reply
