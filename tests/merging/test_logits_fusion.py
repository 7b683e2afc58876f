"""Dynamic logits fusion: what is exactly true of the fused distribution and of the search, and everything around it."""

import copy
import itertools
from dataclasses import replace

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessorList

from mtlearn.datasets.texts import decode as spell
from mtlearn.lab.checkpoints import load as load_shipped
from mtlearn.lab.checkpoints import provenance
from mtlearn.lab.result import recorded
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.cost import count_parameters
from mtlearn.merging.logits_fusion import experiment, method
from mtlearn.merging.logits_fusion.baselines import posterior, recent, routed_strength, router
from mtlearn.merging.logits_fusion.experiment import EXPERIMENT, gap_closed
from mtlearn.merging.logits_fusion.explorer import DYNAMIC, FIXED, ITSELF, ROUTED, THREE, explorer, passage
from mtlearn.merging.logits_fusion.generation import CachedLogits, fusion_processor
from mtlearn.merging.logits_fusion.method import GRID, change, cube, decode, dynamic, fixed, fuse, kl, moves, objective, searched, targets
from mtlearn.merging.logits_fusion.models import CharacterModel, Reader, last

CPU = torch.device("cpu")
INF = float("inf")


def draw(*shape: int, name: str = "x", dtype: torch.dtype = torch.float64) -> Tensor:
    return 2 * torch.randn(shape, generator=stream(0, name), dtype=dtype)


def three(count: int = 1, batch: tuple[int, ...] = (5,), vocabulary: int = 12, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of large, small and ``count`` experts that moved away from small."""
    small = draw(*batch, vocabulary, name="small", dtype=dtype)
    return draw(*batch, vocabulary, name="large", dtype=dtype), small, small + 0.7 * draw(count, *batch, vocabulary, name="experts", dtype=dtype)


seeds = st.integers(0, 10**6)


def drawn(seed: int, count: int = 3, batch: int = 4, vocabulary: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    large, small, moved = torch.randn(2 + count, batch, vocabulary, generator=stream(seed, "logits"), dtype=torch.float64).split((1, 1, count))
    return 2 * large[0], 2 * small[0], 2 * small[0] + moved


# ---------------------------------------------------------------------------------------------------------------- the fused distribution


@given(seeds)
@settings(deadline=None)
def test_strength_0_gives_the_large_model_and_no_change_gives_it_at_any_strength(seed: int) -> None:
    large, small, experts = drawn(seed)
    p = large.log_softmax(-1)
    assert torch.allclose(fuse(large, small, experts, 0.0), p)
    assert torch.allclose(fuse(large, small, small[None], 1.7), p)
    assert torch.allclose(fuse(large, small, experts, torch.zeros(4, 3)), p)


@given(seeds)
@settings(deadline=None)
def test_where_small_and_large_are_one_model_strength_1_gives_the_expert(seed: int) -> None:
    _, small, experts = drawn(seed, count=1)
    assert torch.allclose(fuse(small, small, experts, 1.0), experts[0].log_softmax(-1))
    choice = dynamic(small, small, experts)
    assert torch.equal(choice.alpha, torch.ones(4, 1, dtype=torch.float64))
    assert torch.allclose(choice.objective, torch.zeros(4, dtype=torch.float64), atol=1e-20)
    assert (choice.expert == 0).all()


def test_the_same_in_single_precision() -> None:
    _, small, experts = three(dtype=torch.float32)
    assert torch.equal(dynamic(small, small, experts).alpha, torch.ones(5, 1))
    assert (dynamic(*three(dtype=torch.float32)[:2], small[None] + 3).alpha == 0).all()
    half = [logits.bfloat16() for logits in three(3)]
    assert dynamic(*half).objective.dtype == torch.float32


@given(seeds)
@settings(deadline=None)
def test_an_expert_that_did_not_move_is_not_chosen(seed: int) -> None:
    large, small, _ = drawn(seed)
    for search in (dynamic, cube):
        choice = search(large, small, small[None] + 4.0)
        assert (choice.alpha == 0).all() and (choice.expert == -1).all()


@given(seeds, st.floats(-30, 30))
@settings(deadline=None)
def test_a_constant_added_to_any_models_logits_changes_nothing(seed: int, shift: float) -> None:
    large, small, experts = drawn(seed)
    first, second = dynamic(large, small, experts), dynamic(large + shift, small - 2 * shift, experts + shift * torch.arange(3)[:, None, None])
    assert torch.equal(first.alpha, second.alpha)
    assert torch.allclose(fuse(large, small, experts, 0.8), fuse(large + shift, small - shift, experts + 3 * shift, 0.8))
    normalised = [logits.log_softmax(-1) for logits in (large, small, experts)]
    assert torch.allclose(fuse(large, small, experts, 0.8), fuse(*normalised, 0.8))  # log-probabilities do as well as logits


def test_strength_1_is_proxy_tuning() -> None:
    large, small, experts = three()
    assert torch.allclose(fuse(large, small, experts, 1.0), (large + experts[0] - small).log_softmax(-1))
    assert torch.allclose(fuse(large, small, experts, 1.0).exp().sum(-1), torch.ones(5, dtype=torch.float64))


def test_large_logits_do_not_underflow() -> None:
    large, small, experts = (50 * logits for logits in three(2, dtype=torch.float32))
    choice = dynamic(large, small, experts)
    assert choice.objective.isfinite().all() and fuse(large, small, experts, choice.alpha).exp().sum(-1).allclose(torch.ones(5))


# ------------------------------------------------------------------------------------------------------------------------- divergences


def test_kl_is_that_of_torch_and_scipy() -> None:
    log_p, log_q = draw(12, name="p").log_softmax(-1), draw(12, name="q").log_softmax(-1)
    assert kl(log_p, log_q).item() == pytest.approx(F.kl_div(log_q, log_p, log_target=True, reduction="sum").item())
    assert kl(log_p, log_q).item() == pytest.approx(scipy.stats.entropy(log_p.exp().numpy(), log_q.exp().numpy()))


@given(seeds)
@settings(deadline=None)
def test_moves_are_the_divergences_of_the_fused_distribution(seed: int) -> None:
    large, small, experts = drawn(seed, count=1)
    log_p = large.log_softmax(-1)
    delta = change(small.log_softmax(-1), experts.log_softmax(-1))
    forward, backward = moves(log_p, delta, torch.tensor(GRID, dtype=torch.float64)[:, None])
    for number, alpha in enumerate(GRID):
        fused = fuse(large, small, experts, alpha)
        assert torch.allclose(forward[:, number], kl(fused, log_p), atol=1e-12)
        assert torch.allclose(backward[:, number], kl(log_p, fused), atol=1e-12)


@given(seeds)
@settings(deadline=None)
def test_the_divergence_from_the_large_model_is_convex_and_the_other_grows(seed: int) -> None:
    large, small, experts = drawn(seed, count=1)
    log_p, delta = large.log_softmax(-1), change(small.log_softmax(-1), experts.log_softmax(-1))
    grid = torch.linspace(-2, 2, 81, dtype=torch.float64)
    forward, backward = moves(log_p, delta, grid[:, None])
    assert (backward.diff().diff() > -1e-12).all()  # second differences
    assert backward[:, 40].abs().max() < 1e-12 and (backward >= -1e-12).all()
    assert (forward[:, 40:].diff() > 0).all()
    step = 1e-5
    for alpha in (0.3, 1.0, 1.8):  # its slope is alpha Var(delta) under the fused distribution
        up, down = moves(log_p, delta, torch.tensor([[alpha + step], [alpha - step]], dtype=torch.float64))[0].T
        p = fuse(large, small, experts, alpha).exp()
        variance = (p * delta[0] ** 2).sum(-1) - (p * delta[0]).sum(-1) ** 2
        assert torch.allclose((up - down) / (2 * step), alpha * variance, rtol=1e-5, atol=1e-8)


def test_small_changes_give_the_ratio_of_two_standard_deviations() -> None:
    large, small, _ = three(batch=(200,))
    delta = 1e-3 * draw(200, 12, name="delta")

    def variance(logits: Tensor) -> Tensor:
        p = logits.softmax(-1)
        return (p * delta**2).sum(-1) - (p * delta).sum(-1) ** 2

    forward, backward = moves(large.log_softmax(-1), delta[None], torch.tensor([[1.5]], dtype=torch.float64))
    for moved in (forward, backward):
        assert torch.allclose(moved[:, 0], 0.5 * 1.5**2 * variance(large), rtol=2e-2)
    wanted = (variance(small) / variance(large)).sqrt()
    inside = wanted < 3.9
    found = dynamic(large, small, (small + delta)[None], grid=[0.01 * step for step in range(401)]).alpha[:, 0]
    assert inside.sum() > 150
    assert (found - wanted)[inside].abs().max() < 0.03


def test_the_objective_is_what_the_equation_says() -> None:
    large, small, experts = three(3)
    log_p, log_q, log_q_t = (logits.log_softmax(-1) for logits in (large, small, experts))
    alpha = torch.tensor([0.3, 0.9, 0.4], dtype=torch.float64)
    fused = fuse(large, small, experts, alpha)
    by_hand = sum((kl(fused, log_p) - kl(q_t, log_q)) ** 2 + (kl(log_p, fused) - kl(log_q, q_t)) ** 2 for q_t in log_q_t)
    found = objective(moves(log_p, change(log_q, log_q_t), alpha[None]), targets(log_q, log_q_t))[:, 0]
    assert torch.allclose(found, by_hand) and (found >= 0).all()


# ------------------------------------------------------------------------------------------------------------------------------ searches


def loop(large: Tensor, small: Tensor, experts: Tensor, points: list[tuple[float, ...]]) -> tuple[list[float], float]:
    """The plain search at one position, from the published equation."""
    log_p, log_q = large.log_softmax(-1), small.log_softmax(-1)
    values = []
    for point in points:
        fused = (large + sum(a * (expert - small) for a, expert in zip(point, experts, strict=True))).log_softmax(-1)
        values.append(
            sum(
                float((kl(fused, log_p) - kl(expert.log_softmax(-1), log_q)) ** 2 + (kl(log_p, fused) - kl(log_q, expert.log_softmax(-1))) ** 2)
                for expert in experts
            )
        )
    return list(points[values.index(min(values))]), min(values)


def test_the_search_over_a_batch_is_the_loop_over_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small, experts = three(3, batch=(2, 7))
    axes = [tuple(alpha if t == active else 0.0 for t in range(3)) for alpha in GRID for active in range(3)]
    points = list(itertools.product((0.0, 0.5, 1.0, 1.5), repeat=3))
    for largest in (1, 1 << 18):  # one position at a time, or all of them
        monkeypatch.setattr(method, "LARGEST", largest)
        for choice, candidates in ((dynamic(large, small, experts), axes), (cube(large, small, experts, grid=(0, 0.5, 1, 1.5)), points)):
            for i, j in itertools.product(range(2), range(7)):
                alpha, value = loop(large[i, j], small[i, j], experts[:, i, j], candidates)
                assert choice.alpha[i, j].tolist() == pytest.approx(alpha)
                assert choice.objective[i, j].item() == pytest.approx(value, abs=1e-12)
                active = [t for t in range(3) if alpha[t]]
                assert choice.expert[i, j] == (active[0] if len(active) == 1 else -1)


@given(seeds, st.permutations(range(3)))
@settings(deadline=None)
def test_permuting_the_experts_permutes_the_choice(seed: int, order: list[int]) -> None:
    large, small, experts = drawn(seed)
    for search in (dynamic, cube):
        first, second = search(large, small, experts), search(large, small, experts[order])
        assert torch.equal(first.alpha[:, order], second.alpha)
        place = torch.tensor([order.index(t) for t in range(3)] + [-1])
        assert torch.equal(place[first.expert], second.expert)


@given(seeds)
@settings(deadline=None)
def test_one_active_expert_is_never_better_than_the_cube(seed: int) -> None:
    large, small, experts = drawn(seed)
    assert (dynamic(large, small, experts, grid=method.COARSE).objective >= cube(large, small, experts).objective - 1e-14).all()
    alone = dynamic(large, small, experts[:1], grid=method.COARSE), cube(large, small, experts[:1])
    assert torch.equal(alone[0].alpha, alone[1].alpha)


def test_ties_go_to_the_smallest_strength() -> None:
    large, small, experts = three(1)
    twice = experts.expand(2, -1, -1)  # two experts of one kind: the lower number
    assert (dynamic(large, small, twice).expert == 0).all()
    assert (dynamic(large, small, twice, grid=[2.0, 1.0, 2.0, 0.5]).alpha[:, 1] == 0).all()
    uniform = torch.zeros(3, 12)  # a uniform large and small model, an expert that permutes nothing
    assert (dynamic(uniform, uniform, uniform[None], grid=[1.0, 0.4, 2.0]).alpha == 0.4).all()


def test_one_position_without_a_batch() -> None:
    large, small, experts = three(2, batch=())
    for search in (dynamic, cube):
        assert search(large, small, experts).alpha.shape == (2,)
    assert fuse(large, small, experts, torch.tensor([0.5, 1.0])).shape == (12,)


def test_forbidden_tokens_stay_forbidden_and_count_nothing() -> None:
    large, small, experts = three(2)
    masked = [logits.clone() for logits in (large, small, experts)]
    for logits in masked:
        logits[..., [3, 7]] = -INF
    kept = [index for index in range(12) if index not in (3, 7)]
    full, cut = dynamic(*masked), dynamic(large[:, kept], small[:, kept], experts[..., kept])
    assert torch.equal(full.alpha, cut.alpha) and torch.allclose(full.objective, cut.objective)
    fused = fuse(*masked, full.alpha)
    assert (fused[:, [3, 7]] == -INF).all() and torch.allclose(fused[:, kept], fuse(large[:, kept], small[:, kept], experts[..., kept], cut.alpha))
    assert torch.equal(cube(*masked).alpha, cube(large[:, kept], small[:, kept], experts[..., kept]).alpha)
    weights = torch.tensor([0.5, 0.2], dtype=torch.float64)
    assert routed_strength(*masked, weights).isfinite().all()


def test_the_fused_distribution_has_the_right_gradient() -> None:
    large, small, experts = (logits.requires_grad_() for logits in three(2, batch=(2,), vocabulary=4))
    alpha = torch.tensor([0.4, 1.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fuse, (large, small, experts, alpha))


# ----------------------------------------------------------------------------------------------------------------------------- bad input


def models() -> tuple[CharacterModel, CharacterModel, list[CharacterModel]]:
    with seeded(0):
        return CharacterModel((20, 20)).eval(), CharacterModel((6,)).eval(), [CharacterModel((6,)).eval() for _ in range(2)]


def written(**changes: object) -> method.Decoded:
    large, small, experts = (last(one) if not isinstance(one, list) else [last(expert) for expert in one] for one in models())
    given = {"large": large, "small": small, "experts": experts, "prefix": torch.arange(10).view(2, 5), "steps": 4, "temperature": 0, **changes}
    return decode(**given)  # type: ignore[arg-type]


def poisoned(place: int, value: float, *, everywhere: bool = False) -> list[Tensor]:
    parts = [logits.clone() for logits in three(2)]
    for number, logits in enumerate(parts):
        if everywhere or number == place:
            logits[..., 0, :] = value
    return parts


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: dynamic(torch.zeros(2, 5), torch.zeros(2, 4), torch.zeros(1, 2, 4)), "one vocabulary, got sizes large 5, small 4, experts 4"),
        (lambda: dynamic(torch.zeros(2, 5), torch.zeros(2, 5), torch.zeros(0, 2, 5)), "at least one expert is needed"),
        (lambda: dynamic(torch.zeros(2, 5), torch.zeros(2, 5), torch.zeros(2, 5)), r"experts \(T, ..., V\), got \(2, 5\), \(2, 5\), \(2, 5\)"),
        (lambda: dynamic(torch.zeros(5), torch.zeros(()), torch.zeros(1, 5)), "one vocabulary"),
        (lambda: fuse(*poisoned(0, float("nan")), 1.0), "the logits of large hold NaN or plus infinity"),
        (lambda: fuse(*poisoned(1, INF), 1.0), "the logits of small hold NaN or plus infinity"),
        (lambda: dynamic(*poisoned(2, float("nan"))), "the logits of experts hold NaN or plus infinity"),
        (lambda: dynamic(*poisoned(2, -INF)), "must be forbidden for all, else the divergence is infinite: experts differs from large"),
        (lambda: dynamic(*poisoned(1, -INF)), "small differs from large"),
        (lambda: dynamic(*poisoned(0, -INF, everywhere=True)), "at least one token must be allowed at every position"),
        (lambda: dynamic(*three(2), grid=[]), "grid must have at least one strength"),
        (lambda: cube(*three(2), grid=()), "grid must have at least one strength"),
        (lambda: cube(*three(2), grid=[0.0, INF]), "grid must be finite"),
        (lambda: written(temperature=-0.1), "temperature must be at least 0 .*got -0.1"),
        (lambda: written(temperature=float("nan")), "temperature must be at least 0"),
        (lambda: written(steps=0), "steps must be at least 1, got 0"),
        (lambda: written(prefix=torch.arange(5)), r"prefix must be \(batch, length\), got \(5,\)"),
        (lambda: written(experts=[]), "at least one expert is needed"),
        (lambda: written(experts=[lambda prefix: torch.zeros(2, 7)]), "all models must have one vocabulary"),
        (lambda: posterior(torch.tensor([[float("nan")]])), "the evidence must be finite"),
        (lambda: recent(torch.zeros(2, 5), 0), "window must be at least 1, got 0"),
        (lambda: experiment.with_lora(CharacterModel((4,)), 0, 0), "rank must be at least 1, got 0"),
        (lambda: fusion_processor(lambda prefix: prefix, []), "at least one expert is needed"),
        (lambda: fusion_processor(lambda prefix: prefix, [lambda prefix: prefix], examples=-1), "at least 0, got -1"),
        (lambda: experiment.draw_stretches(torch.arange(50), 2, 100, stream(0)), "a stretch needs 180 tokens, the text has 50"),
    ],
)
def test_bad_input_is_named(call, says) -> None:
    with pytest.raises(ValueError, match=says):
        call()


# ------------------------------------------------------------------------------------------------------------------------------ decoding


def test_greedy_decoding_is_the_loop_by_hand() -> None:
    large, small, experts = models()
    prefix = torch.arange(10).view(2, 5)
    done = written()
    for step in range(4):
        logits = [model(prefix)[:, -1] for model in (large, small, *experts)]
        choice = dynamic(logits[0], logits[1], torch.stack(logits[2:]))
        fused = fuse(logits[0], logits[1], torch.stack(logits[2:]), choice.alpha)
        assert torch.equal(done.alpha[:, step], choice.alpha)
        assert torch.equal(done.tokens[:, step], fused.argmax(-1))
        assert torch.allclose(done.log_prob[:, step], fused.amax(-1))
        prefix = torch.cat([prefix, fused.argmax(-1)[:, None]], 1)


def test_sampling_repeats_from_its_generator_and_cools_to_greedy() -> None:
    first, second = (written(temperature=1.0, steps=12, generator=stream(0, "sample")).tokens for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, written(temperature=1.0, steps=12, generator=stream(1, "sample")).tokens)
    assert torch.equal(written(temperature=1e-4, steps=12, generator=stream(0)).tokens, written(steps=12).tokens)
    prefix = torch.zeros(4000, 1, dtype=torch.int64)
    tokens = written(temperature=1.0, steps=1, prefix=prefix, generator=stream(0), rule=fixed(0.7)).tokens
    large, small, experts = models()
    fused = fuse(large(prefix[:1])[:, -1], small(prefix[:1])[:, -1], torch.stack([expert(prefix[:1])[:, -1] for expert in experts]), 0.7)
    counted = torch.bincount(tokens[:, 0], minlength=96) / 4000
    assert (counted - fused[0].exp()).abs().max() < 4 * (0.25 / 4000) ** 0.5


def test_rules_of_decoding() -> None:
    assert (written(rule=fixed(0.25)).alpha == 0.25).all()
    large = models()[0]
    prefix = torch.arange(10).view(2, 5)
    alone = written(rule=fixed(0.0)).tokens
    for step in range(4):
        token = large(torch.cat([prefix, alone[:, :step]], 1))[:, -1].argmax(-1)
        assert torch.equal(alone[:, step], token)
    assert torch.equal(written(rule=searched()).tokens, written().tokens)


def test_examples_reach_the_large_model_alone() -> None:
    seen: dict[str, list[tuple[int, ...]]] = {"large": [], "small": [], "expert": []}

    def spy(name: str, model: CharacterModel):
        def call(prefix: Tensor) -> Tensor:
            seen[name].append(tuple(prefix.shape))
            return last(model)(prefix)

        return call

    large, small, experts = models()
    examples = torch.full((7,), 40)
    written(large=spy("large", large), small=spy("small", small), experts=[spy("expert", experts[0])], examples=examples, steps=2)
    assert seen == {"large": [(2, 12), (2, 13)], "small": [(2, 5), (2, 6)], "expert": [(2, 5), (2, 6)]}


# -------------------------------------------------------------------------------------------------------------------------------- router


@given(seeds)
@settings(deadline=None)
def test_the_posterior_is_bayes_rule(seed: int) -> None:
    evidence = torch.randn(3, 2, 5, generator=stream(seed), dtype=torch.float64)
    weights = posterior(evidence)
    product = evidence.sum(-1).exp()  # (T, B): prod Q_t / Q
    assert torch.allclose(weights, (product / (1 + product.sum(0))).T)
    assert torch.allclose(posterior(evidence[[2, 0, 1]]), weights[:, [2, 0, 1]])
    assert torch.allclose(posterior(torch.zeros(3, 2, 0)), torch.full((2, 3), 0.25))


def test_recent_is_the_posterior_of_a_sliding_window() -> None:
    gained = draw(3, 2, 20, name="gains")
    for window in (1, 4, 50):
        found = recent(gained, window)
        for place in range(20):
            assert torch.allclose(found[:, place], posterior(gained[..., max(place - window, 0) : place]))


def test_the_router_of_decoding_finds_the_expert_that_writes() -> None:
    small, experts = models()[1], [copy.deepcopy(models()[1]) for _ in range(2)]
    experts[1].head.bias.data[30] += 3  # the second expert likes one character
    experts[0].head.bias.data[31] += 3
    prefix = torch.zeros(1, 3, dtype=torch.int64)

    def large(prefix: Tensor) -> Tensor:  # a large model that writes it
        return F.one_hot(torch.full((len(prefix),), 30), 96) * 9.0

    done = decode(large, last(small), [last(expert) for expert in experts], prefix, steps=30, rule=router(), temperature=0)
    assert (done.tokens == 30).all()
    assert torch.allclose(done.alpha[0, 0], torch.full((2,), 1 / 3))
    assert done.alpha[0, -1, 1] > 0.99
    assert (
        done.alpha[0, -1, 1]
        > decode(large, last(small), [last(expert) for expert in experts], prefix, steps=30, rule=router(1), temperature=0).alpha[0, -1, 1]
    )


def test_the_routed_strength_scales_the_mixtures_direction() -> None:
    large, small, experts = three(2)
    certain = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(5, 2)
    assert torch.allclose(routed_strength(large, small, experts, certain)[:, 1:], dynamic(large, small, experts[1:]).alpha)
    assert (routed_strength(large, small, experts, torch.zeros(5, 2)) == 0).all()


# -------------------------------------------------------------------------------------------------------------------------- small models


def test_the_models_have_the_sizes_of_the_sheet() -> None:
    assert count_parameters(experiment.build_base(experiment.SMALL_BASE)) == 18_576
    assert count_parameters(experiment.build_base(experiment.LARGE_BASE)) == 285_024


def test_a_character_model_sees_its_context_and_nothing_else() -> None:
    model = models()[0]
    prefix = torch.randint(96, (2, 30), generator=stream(0))
    along = model(prefix)
    assert along.shape == (2, 30, 96)
    assert torch.allclose(along[:, -1], last(model)(prefix[:, -16:]), atol=1e-6)
    assert torch.allclose(along[:, 3], last(model)(prefix[:, :4]), atol=1e-6)
    changed = prefix.clone()
    changed[:, 10] = 5
    differs = (model(changed) != along).any(-1).any(0)
    assert differs.nonzero().flatten().tolist() == list(range(10, 26))


def test_a_reader_mixes_what_it_read_with_what_it_knows() -> None:
    with seeded(0):
        reader = Reader(models()[0]).eval()
    prefix = torch.randint(96, (1, 40), generator=stream(0))
    out = reader(prefix)
    assert torch.allclose(out.exp().sum(-1), torch.ones(1, 40), atol=1e-4)
    assert torch.allclose(out[:, 0], models()[0](prefix)[:, 0].log_softmax(-1), atol=1e-4)  # nothing read yet: the perceptron
    changed = prefix.clone()
    changed[0, 20] = (prefix[0, 20] + 1) % 96
    assert torch.equal(reader(changed)[:, :20], out[:, :20])  # causal
    with torch.no_grad():
        reader.query.weight.mul_(30)
        reader.sentinel.bias.fill_(0.5)
    h, own = reader.body.hidden(reader.body.contexts(prefix))[0], reader.body(prefix)[0].softmax(-1)
    for i in (1, 7, 39):  # the equation, place by place
        scores = [(reader.query(h[i]) @ reader.key(h[j])).item() / 8 for j in range(i)]
        weight = torch.tensor([*scores, reader.sentinel(h[i]).item()]).softmax(-1)
        mixed = weight[-1] * own[i]
        for j in range(i):
            mixed[prefix[0, j + 1]] += weight[j]
        assert torch.allclose(reader(prefix)[0, i].exp(), mixed, atol=1e-5)
    assert torch.equal(last(reader)(prefix), reader(prefix)[:, -1])


def test_lora_starts_at_the_model_and_trains_its_own_numbers() -> None:
    model = models()[0]
    prefix = torch.randint(96, (1, 9), generator=stream(0))
    before = model(prefix)
    adapted = experiment.with_lora(model, 3, 0)
    assert torch.allclose(adapted(prefix), before)
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert trained == sum(3 * (layer.in_features + layer.out_features) for layer in (*model.layers, model.head))
    draws = stream(0, "lora")
    tuned = experiment.tune(adapted, [torch.randint(96, (200,), generator=stream(1))], experiment.Tuning(3, 1e-2, batch=8), draws)
    assert not torch.allclose(tuned(prefix), before)
    assert torch.equal(tuned.embed.weight, model.embed.weight)


# ------------------------------------------------------------------------------------------------------------------- library transformers


def gpt2(seed: int, width: int = 16, vocabulary: int = 31) -> GPT2LMHeadModel:
    sizes = GPT2Config(vocab_size=vocabulary, n_positions=64, n_embd=width, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    with seeded(seed):
        model = GPT2LMHeadModel(sizes).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4)  # else all logits are near 0
        return model


def plain(model: GPT2LMHeadModel):
    return torch.no_grad()(lambda prefix: model(input_ids=prefix).logits[:, -1])


def test_the_processor_makes_generate_fuse() -> None:
    large, small, experts = gpt2(0, 32), gpt2(1), [gpt2(2), gpt2(3)]
    prompt = torch.randint(1, 31, (3, 6), generator=stream(0))
    processor = fusion_processor(CachedLogits(small), [CachedLogits(expert) for expert in experts])
    options = {"do_sample": False, "max_new_tokens": 8, "attention_mask": torch.ones_like(prompt), "eos_token_id": None}
    done = large.generate(prompt, logits_processor=LogitsProcessorList([processor]), **options)
    ours = decode(plain(large), plain(small), [plain(expert) for expert in experts], prompt, steps=8, temperature=0)
    assert torch.equal(done[:, 6:], ours.tokens)
    assert torch.equal(torch.stack(processor.alpha, 1), ours.alpha)
    assert not torch.equal(done, large.generate(prompt, **options))
    assert torch.equal(large.generate(prompt, logits_processor=[processor], **options), done)  # a second text starts afresh
    assert len(processor.alpha) == 8


def test_the_processor_keeps_examples_and_evidence() -> None:
    large, small, experts = gpt2(0, 32), gpt2(1), [gpt2(2), gpt2(3)]
    prompt, examples = torch.randint(1, 31, (2, 5), generator=stream(0)), torch.randint(1, 31, (2, 4), generator=stream(1))
    processor = fusion_processor(plain(small), [plain(expert) for expert in experts], rule=router(), examples=4)
    both = torch.cat([examples, prompt], 1)
    done = large.generate(
        both, attention_mask=torch.ones_like(both), logits_processor=[processor], do_sample=False, max_new_tokens=9, eos_token_id=None
    )
    ours = decode(plain(large), plain(small), [plain(expert) for expert in experts], prompt, steps=9, temperature=0, rule=router(), examples=examples)
    assert torch.equal(done[:, 9:], ours.tokens)
    assert torch.allclose(torch.stack(processor.alpha, 1), ours.alpha, atol=1e-4)
    with pytest.raises(ValueError, match="the prompt must go on after the examples=4 tokens for the large model, it has 4"):
        processor(examples, torch.zeros(2, 31))


def test_cached_logits_are_those_of_reading_everything() -> None:
    model = gpt2(0)
    cached = CachedLogits(model)
    text = torch.randint(1, 31, (2, 9), generator=stream(0))
    for end in (4, 5, 6, 8, 9):  # a step, a step, a jump, a step
        assert torch.allclose(cached(text[:, :end]), plain(model)(text[:, :end]), atol=1e-4)
    assert torch.allclose(cached(text[[1, 0]]), plain(model)(text[[1, 0]]), atol=1e-4)  # another order
    padded = CachedLogits(model, padding=0)
    short = torch.cat([torch.zeros(2, 3, dtype=torch.int64), text[:, :4]], 1)
    assert torch.allclose(padded(short), plain(model)(text[:, :4]), atol=1e-4)
    longer = torch.cat([short, text[:, 4:5]], 1)
    assert torch.allclose(padded(longer), plain(model)(text[:, :5]), atol=1e-4)


def test_without_transformers_the_processor_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install \"mtlearn\[hf\]\""):
        fusion_processor(lambda prefix: prefix, [lambda prefix: prefix])


# ------------------------------------------------------------------------------------------------------------------------- the experiment


def test_quick_experiment() -> None:
    arms = run_quick(EXPERIMENT)
    assert arms[experiment.EXPERT]["bits"] < arms[experiment.SMALL]["bits"]
    assert arms[experiment.DYNAMIC]["bits"] < arms[experiment.LARGE]["bits"]
    assert arms[experiment.ROUTER]["right expert"] > arms[experiment.ONE]["right expert"]
    domains = [arms[experiment.DYNAMIC][f"bits {name}"] for name in experiment.DOMAINS]
    assert arms[experiment.DYNAMIC]["bits"] == pytest.approx(sum(domains) / 3)
    assert f"bits {experiment.UNSEEN}" in arms[experiment.ONE] and f"bits {experiment.UNSEEN}" not in arms[experiment.DYNAMIC]
    short = replace(experiment.QUICK, seeds=1, in_context=False, stretches=2, stretch=10, expert=experiment.Tuning(2, 1e-3), characters=20_000)
    short = replace(short, tuned=experiment.Tuning(1, 1e-3), lora=experiment.Tuning(1, 1e-3))
    with seeded(0):
        first = experiment.run(short, 0, CPU)
    with seeded(0):
        assert experiment.run(short, 0, CPU) == first


def test_each_seed_can_pretrain_its_own() -> None:
    tiny = experiment.Base((4,), 2, 1e-3, batch=4, characters=5000)
    family = experiment.family_of(replace(experiment.QUICK, pretrain=True, in_context=False, small_base=tiny, large_base=tiny), 0, CPU)
    assert count_parameters(family.small) == count_parameters(family.large) == 1536 + 4 * 256 + 4 + 4 * 96 + 96


def test_merging_takes_the_scale_that_validation_likes() -> None:
    small = models()[1]
    away = copy.deepcopy(small)
    text = torch.randint(5, (120,), generator=stream(0))
    expert = experiment.tune(small, [text], experiment.Tuning(60, 1e-2, batch=32), stream(0))
    pieces = text[:100].expand(2, -1)
    merged = experiment.merge_experts(small, [expert], [pieces], 20)
    assert torch.allclose(merged.head.bias, expert.head.bias, atol=1e-6)  # one expert of which all is wanted
    for parameter in away.parameters():
        parameter.data += 1.0  # a task vector that only harms
    harmed = experiment.merge_experts(small, [away], [pieces], 20)
    assert torch.allclose(harmed.head.bias, small.head.bias + 0.2, atol=1e-6)


def test_gap_closed_by_the_papers_own_figures() -> None:
    ratio, share = gap_closed(29.93, 46.09, 47.79)
    assert (round(100 * ratio, 1), round(100 * share)) == (96.4, 90)
    ratio, share = gap_closed(37.93, 39.42, 45.68)
    assert (round(100 * ratio, 1), round(100 * share)) == (86.3, 19)
    assert gap_closed(0.5, 0.6, 0.5) == (1.2, 0.0)
    assert gap_closed(0.0, 0.0, 0.0) == (0.0, 0.0)


def test_the_recorded_result_adds_up() -> None:
    arms = recorded("logits_fusion").arms
    for seed in range(5):
        base, fused, tuned = (arms[name]["accuracy"].values[seed] for name in (experiment.LARGE, experiment.DYNAMIC, experiment.TUNED))
        found = arms[experiment.DYNAMIC]["gap closed, ratio"].values[seed], arms[experiment.DYNAMIC]["gap closed, share"].values[seed]
        assert found == pytest.approx(gap_closed(base, fused, tuned))


def test_shipped_models_are_measured_as_they_say() -> None:
    for checkpoint in experiment.CHECKPOINTS:
        assert checkpoint.measure is not None
        for name, value in checkpoint.measure(load_shipped(checkpoint)).items():
            assert value == pytest.approx(provenance(checkpoint)["measured"][name], abs=2e-3)


def test_shipped_models_can_be_trained_again() -> None:
    with seeded(0):
        base = experiment.SMALL_CHECKPOINT.train(replace(experiment.SMALL_BASE, steps=2), None)
        reader = experiment.READER_CHECKPOINT.train(experiment.ReaderRecipe(steps=1, batch=1, length=20), None)
        experts = experiment.EXPERTS_CHECKPOINT.train(experiment.ExpertsRecipe(tuning=experiment.Tuning(1, 1e-3), characters=9000), None)
    assert isinstance(base, CharacterModel) and isinstance(reader, Reader)
    assert list(experts) == list(experiment.DOMAINS)


def test_paper_scale_runs_on_models_of_the_library(tmp_path) -> None:
    from tokenizers import Regex, Tokenizer, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    from mtlearn.datasets.texts import ALPHABET

    by_character = Tokenizer(kinds.WordLevel({letter: number for number, letter in enumerate(ALPHABET)}, unk_token="~"))
    by_character.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    folders = [str(tmp_path / name) for name in ("large", "small", "other")]
    for folder, width in zip(folders, (32, 16, 16), strict=True):
        sizes = GPT2Config(vocab_size=96, n_positions=900, n_embd=width, n_layer=1, n_head=2)
        with seeded(0):
            GPT2LMHeadModel(sizes).save_pretrained(folder)
        if folder == folders[2]:
            by_character.add_tokens(["more"])
        PreTrainedTokenizerFast(tokenizer_object=by_character).save_pretrained(folder)
    tuning = experiment.Tuning(2, 1e-3, batch=2, length=16)
    # GPT-2 has convolutions of its own in place of linear layers, and one linear layer, its head, for LoRA
    few = replace(
        EXPERIMENT.scales["paper"],  # type: ignore[type-var]
        large=folders[0], small=folders[1], expert=tuning, tuned=tuning, lora=tuning, rank=2, stretches=2, stretch=8, pieces=2, piece=10,
        characters=8000,
    )  # fmt: skip
    with seeded(0):
        arms = experiment.run(few, 0, CPU)
    for name in (experiment.DYNAMIC, experiment.ONE, experiment.SHOWN_FUSED, experiment.LORA, experiment.MERGED_FUSED):
        assert 0 < arms[name]["bits"] < 10
    family = experiment.causal_family(folders[0], folders[1], CPU)
    assert spell(family.tokenize('a "b"\n')) == 'a "b"\n'
    with pytest.raises(ValueError, match="fusing needs one vocabulary, token by token"):
        experiment.causal_family(folders[0], folders[2], CPU)


# --------------------------------------------------------------------------------------------------------------------------- the explorer


def bits(text: str) -> tuple[float, float, float]:
    """Of large, expert and fused, as the explorer says them."""
    numbers = text.split("this text:")[1].split(". ")[0].replace(",", "").split()
    values = [float(word.rstrip(".")) for word in numbers if word[0].isdigit() and "." in word]
    return values[0], values[1], values[2]


def test_the_explorer_says_what_the_method_finds() -> None:
    shown = explorer()
    large, expert, fused = bits(shown.text)
    assert fused < large and fused < expert
    reading = passage("numpy", 2, "", "large model")
    found = dynamic(reading.log_p[254], reading.log_q[254], reading.log_q_t[:1, 254])
    assert f"the strength is {found.alpha.item():.2f}" in shown.text
    assert "fused '_', in the text '_'" in shown.text
    shown.set(rule=FIXED, alpha=0.0)
    assert bits(shown.text)[2] == pytest.approx(bits(shown.text)[0])
    shown.set(alpha=2.0)
    assert bits(shown.text)[2] > large
    shown.preset("small = large")
    assert shown.values["large"] == ITSELF and "the strength is 1.00" in shown.text
    assert bits(shown.text)[2] == pytest.approx(expert)
    shown.preset("three experts: who speaks?")
    assert shown.values["rule"] == THREE
    shares = [int(word.split()[-2]) for word in shown.text.split("strongest expert: ")[1].split(". ")[0].split(", ")]
    assert max(shares) < 60
    shown.preset("a router that reads")
    assert shown.values["rule"] == ROUTED and "numpy 100 %" in shown.text
    shown.preset("reset")
    assert shown.values["rule"] == DYNAMIC and bits(shown.text) == (large, expert, fused)


def test_touching_the_strip_and_typing() -> None:
    shown = explorer()
    before, picture = shown.text, shown.png
    shown.point("press", 10.5, 0.5)
    assert shown.text != before and shown.png != picture
    touched = shown.text
    shown.point("key", 0, 0, key="ArrowRight")
    shown.point("key", 0, 0, key="ArrowDown")
    assert shown.text != touched
    shown.point("key", 0, 0, key="ArrowUp")
    shown.point("key", 0, 0, key="ArrowLeft")
    assert shown.text == touched
    shown.point("press", 10.5, 0.5, axes=1)
    shown.point("key", 0, 0, key="x")
    assert shown.text == touched
    for key, letter in (("Home", 0), ("End", -1)):
        shown.point("key", 0, 0, key=key)
        assert f"in the text '{passage('numpy', 2, '', 'large model').text[letter]}'" in shown.text.replace("␣", " ")
    shown.set(own="out : ndarra\u0177y")
    assert "in the text 'y'" in shown.text  # the cursor stays within a short text, what is not ASCII is dropped
    shown.point("press", 4.5, 3.5)
    assert "in the text 'y'" in shown.text
    shown.preset("reset")
    assert (shown.text, shown.png) == (before, picture)
