import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quick_experiment import run_quick
from real_files import REAL
from scipy.stats import spearmanr
from tiny_bert import tiny_bert
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.datasets.concepts import Lexicon, concept_pairs, noisy_vectors
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.decomposable_attention import DecomposableAttention, MeanOfWords
from mtlearn.layers.pretrained import pretrained
from mtlearn.layers.text_encoders import BiEncoder, JointEncoder, TokenEncoder
from mtlearn.pairs.labelled import Labelled
from mtlearn.pairs.trans_encoder import experiment, worlds
from mtlearn.pairs.trans_encoder.experiment import EXPERIMENT, Recipe, TransEncoderSettings, scores, trainer
from mtlearn.pairs.trans_encoder.method import (
    Family,
    HalfCycle,
    best,
    bi_labels,
    bi_to_cross_loss,
    both_orders,
    copy_shared,
    cross_labels,
    cross_to_bi_loss,
    distil,
)
from mtlearn.pairs.trans_encoder.worlds import body_family, word_family

LEXICON = Lexicon(12, 2)
PAIRS = concept_pairs(40, LEXICON, words=4, most_shared=4, generator=stream(0))
FIRST, SECOND = PAIRS.first, PAIRS.second
RECIPE = Recipe(bi_steps=5, cross_steps=5, bi_batch=16, cross_batch=16)
TRAIN_CROSS, TRAIN_BI = trainer("cross", bi_to_cross_loss, RECIPE, 0), trainer("bi", cross_to_bi_loss, RECIPE, 0)


def family(number: int = 0) -> Family:
    vectors = noisy_vectors(LEXICON, 8, 0.5, generator=stream(number))
    return word_family(vectors, number, hidden=8, features=4)


def run(families: list[Family], **options: object) -> list[HalfCycle]:
    settings = {"train_cross": TRAIN_CROSS, "train_bi": TRAIN_BI, "cycles": 2} | options
    return list(distil(FIRST, SECOND, families, **settings))  # type: ignore[arg-type]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# invariants


def test_a_bi_encoder_trained_on_its_own_labels_stays() -> None:
    own = family().bi()
    before, labels = weights(own), bi_labels(own, FIRST, SECOND)
    loss = cross_to_bi_loss(own(FIRST, SECOND), labels)
    loss.backward()
    assert loss.item() < 1e-12
    assert max(p.grad.abs().max().item() for p in own.parameters() if p.grad is not None) < 1e-6
    optimizer = torch.optim.SGD(own.parameters(), lr=1.0)
    optimizer.step()
    torch.testing.assert_close(weights(own), before, atol=1e-6, rtol=0)


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(0, 1)), min_size=1, max_size=6))
def test_the_cross_entropy_is_pytorchs_and_lowest_at_the_label(rows: list[tuple[float, float]]) -> None:
    logits, labels = torch.tensor(rows, dtype=torch.float64).T
    loss = bi_to_cross_loss(logits, labels)
    by_hand = -(labels * F.logsigmoid(logits) + (1 - labels) * F.logsigmoid(-logits)).mean()
    torch.testing.assert_close(loss, by_hand)
    lowest = bi_to_cross_loss(labels.logit(1e-9), labels)
    entropy = -(torch.special.xlogy(labels, labels) + torch.special.xlogy(1 - labels, 1 - labels)).mean()
    torch.testing.assert_close(lowest, entropy, atol=1e-6, rtol=1e-6)  # not 0
    assert loss >= lowest - 1e-6


def test_the_squared_error_is_that_of_a_cosine() -> None:
    encoder, labels = family().bi(), torch.rand(40, generator=stream(1))
    u, v = encoder.embed(FIRST), encoder.embed(SECOND)
    torch.testing.assert_close(cross_to_bi_loss(encoder(FIRST, SECOND), labels), F.mse_loss(F.cosine_similarity(u, v), labels))


def test_mutual_distillation_of_twins_is_self_distillation() -> None:
    alone, twins = run([family()]), run([family(), family()], mutual=True)
    for one, two in zip(alone, twins, strict=True):
        assert (one.cycle, one.kind) == (two.cycle, two.kind)
        if one.labels is not None and two.labels is not None:
            assert torch.equal(one.labels[0], two.labels[0]) and torch.equal(two.labels[0], two.labels[1])
        assert torch.equal(weights(one.models[0]), weights(two.models[1]))


def test_mutual_labels_are_means_and_others_are_each_familys_own() -> None:
    pair = [family(0), family(1)]
    own = torch.stack([bi_labels(one.bi(), FIRST, SECOND) for one in pair])
    mutual, apart = run(pair, mutual=True), run(pair)
    torch.testing.assert_close(mutual[1].labels, own.mean(0).clamp(0, 1).expand(2, -1))
    torch.testing.assert_close(apart[1].labels, own.clamp(0, 1))
    later = torch.stack([cross_labels(model, FIRST, SECOND) for model in mutual[1].models]).mean(0)
    torch.testing.assert_close(mutual[2].labels, later.expand(2, -1))
    assert torch.equal(weights(apart[3].models[0]), weights(run(pair[:1])[3].models[0]))


def test_the_order_of_the_halves() -> None:
    halves = run([family()])
    assert [(half.cycle, half.kind) for half in halves] == [(0, "bi"), (1, "cross"), (1, "bi"), (2, "cross"), (2, "bi")]
    assert halves[0].labels is None and torch.equal(weights(halves[0].models[0]), weights(family().bi()))


def test_without_training_every_bi_encoder_is_the_start() -> None:
    idle = trainer("bi", cross_to_bi_loss, RECIPE, 0, steps=0)
    for half in run([family()], train_bi=idle):
        if half.kind == "bi":
            assert torch.equal(weights(half.models[0]), weights(family().bi()))


def test_weights_travel_only_where_they_are_carried() -> None:
    starts: dict[str, list[Tensor]] = {}
    for init in ("fresh", "carry"):
        seen: list[Tensor] = []
        run([family()], init=init, train_bi=lambda model, *rest, seen=seen: (seen.append(weights(model)), TRAIN_BI(model, *rest)))
        starts[init] = seen
    assert torch.equal(starts["fresh"][0], starts["fresh"][1])
    assert not torch.equal(starts["carry"][0], starts["carry"][1])
    one, other = family(0).cross(), family(1).bi()
    assert copy_shared(one, other) == other.word.weight.numel()
    assert torch.equal(one.word.weight, other.word.weight)


def test_labels_know_no_order_and_both_orders_are_seen() -> None:
    encoder = family().bi()
    torch.testing.assert_close(bi_labels(encoder, FIRST, SECOND), bi_labels(encoder, SECOND, FIRST))
    cross = family().cross()
    with torch.no_grad():
        assert not torch.allclose(cross(FIRST, SECOND), cross(SECOND, FIRST))
    a, b, labels = both_orders(FIRST[:, :3], SECOND, torch.arange(40.0))
    assert torch.equal(a[:40, :3], FIRST[:, :3]) and torch.equal(b[40:, :3], FIRST[:, :3]) and not a[:40, 3:].any()
    assert torch.equal(a[40:], SECOND) and torch.equal(labels[:40], labels[40:])
    counts: list[int] = []
    for symmetric in (True, False):
        run([family()], symmetric=symmetric, cycles=1, train_cross=lambda model, a, b, y: counts.append(len(y)))
    assert counts == [80, 40]


@given(st.integers(0, 50))
def test_rank_correlation_is_blind_to_increasing_maps(seed: int) -> None:
    logits, gold = torch.randn(30, generator=stream(seed, "z")).double(), torch.rand(30, generator=stream(seed, "y"))
    assert spearmanr(logits, gold).statistic == pytest.approx(spearmanr(logits.sigmoid(), gold).statistic)


def test_the_best_cycle_is_the_first_of_equals_and_never_the_start() -> None:
    halves = run([family()])
    score = {id(half.models[0]): value for half, value in zip(halves, (9.0, 1.0, 3.0, 2.0, 3.0), strict=True)}
    assert best(halves, "bi", lambda model: score[id(model)]).cycle == 1
    assert best(halves, "cross", lambda model: score[id(model)]).cycle == 2
    with pytest.raises(ValueError, match="no half-cycle with a cross-encoder"):
        best(halves[:1], "cross", lambda model: 0.0)


def test_what_is_done_stays_when_a_later_half_stops() -> None:
    def stop(model: nn.Module, *rest: Tensor) -> None:
        raise RuntimeError("out of memory")

    halves = distil(FIRST, SECOND, [family()], train_cross=TRAIN_CROSS, train_bi=stop)
    assert [next(halves).kind, next(halves).kind] == ["bi", "cross"]
    with pytest.raises(RuntimeError, match="out of memory"):
        next(halves)


# bad input


def test_bad_input_is_told() -> None:
    def start(first: Tensor = FIRST, second: Tensor = SECOND, families: list[Family] | None = None, **options: object) -> None:
        distil(first, second, [family()] if families is None else families, train_cross=TRAIN_CROSS, train_bi=TRAIN_BI, **options)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="at least two pairs are needed, got 1"):
        start(FIRST[:1], SECOND[:1])
    with pytest.raises(ValueError, match="as many first as second sentences are needed, got 40 and 39"):
        start(second=SECOND[1:])
    empty = SECOND.clone()
    empty[3] = 0
    with pytest.raises(ValueError, match="the second sentence of pair 3 is empty"):
        start(second=empty)
    with pytest.raises(ValueError, match="cycles must be at least 1, got 0"):
        start(cycles=0)
    with pytest.raises(ValueError, match="mutual distillation needs at least two families, self-distillation one, got 1"):
        start(mutual=True)
    with pytest.raises(ValueError, match="self-distillation one, got 0"):
        start(families=[])
    with pytest.raises(ValueError, match="init must be 'fresh' or 'carry', got 'warm'"):
        start(init="warm")
    with pytest.raises(ValueError, match=r"labels must be in \[0, 1\], got -0.1 to 0.5"):
        bi_to_cross_loss(torch.zeros(2), torch.tensor([-0.1, 0.5]))
    with pytest.raises(ValueError, match=r"labels must be in \[-1, 1\], got nan to nan"):
        cross_to_bi_loss(torch.zeros(2), torch.tensor([torch.nan, 0.5]))


def test_a_sentence_without_a_vector_and_a_constant_teacher_are_told() -> None:
    class Broken(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return torch.where(torch.arange(len(first)) == 7, torch.nan, 0.5)

    with pytest.raises(ValueError, match="the score of pair 7 is not finite"):
        bi_labels(Broken(), FIRST, SECOND)

    class Constant(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return torch.full((len(first),), 0.9)

    flat = Family(Constant, family().cross)
    halves = distil(FIRST, SECOND, [flat], train_cross=TRAIN_CROSS, train_bi=lambda *rest: None)
    next(halves)
    with pytest.warns(RuntimeWarning, match="the start's labels have a standard deviation of 0: with a constant teacher"):
        next(halves)


# other encoders


def test_transformers_of_ours_and_of_the_library(tmp_path: Path) -> None:
    with seeded(0):
        start = TokenEncoder(LEXICON.size, 8, 2, 1, longest=8)

    def bi() -> nn.Module:
        return BiEncoder(TokenEncoder(LEXICON.size, 8, 2, 1, longest=8, vectors=start.token.weight.detach()))

    def cross() -> nn.Module:
        with seeded(1):
            return JointEncoder(TokenEncoder(LEXICON.size, 8, 2, 1, longest=8, vectors=start.token.weight.detach()), pooling="mean")

    with seeded(0):
        assert len(run([Family(bi, cross)], cycles=1, init="carry")) == 3
    body, tokeniser = pretrained(tiny_bert(tmp_path))
    texts = ["a matrix", "the long signal", "sort a graph", "the inverse transform"]
    first, second = tokeniser(texts, 12), tokeniser(texts[1:] + texts[:1], 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a random model's cosines hardly vary
        halves = list(distil(first, second, [body_family(body, 0)], train_cross=TRAIN_CROSS, train_bi=TRAIN_BI, cycles=1, init="carry"))
    assert [half.kind for half in halves] == ["bi", "cross", "bi"]
    assert all(torch.isfinite(weights(half.models[0])).all() for half in halves)


# the experiment


def test_quick_experiment() -> None:
    arms = run_quick(EXPERIMENT)
    assert arms["self cross 1"]["spearman"] > arms["start"]["spearman"]
    assert arms["bi to bi"]["spearman"] == pytest.approx(arms["start"]["spearman"], abs=1e-3)
    assert {"self bi 3", "mutual cross 3", "swapped bi 3", "carried cross 3", "two mutual bis"} <= set(arms)


def test_scores_of_several_models_count_alike() -> None:
    one, two = family(0).bi(), family(1).bi()
    pairs = Labelled(FIRST, SECOND, PAIRS.likeness)
    both = scores([one, two], pairs)
    torch.testing.assert_close(both, (scores([one], pairs) + scores([two], pairs)) / 2)
    assert spearmanr(scores([one], pairs), bi_labels(one, FIRST, SECOND)).statistic == pytest.approx(1)


def test_see_also_pairs_are_links_of_a_module_and_mates_that_are_not_linked() -> None:
    found = worlds.linked()
    links = {tuple(sorted(pair)) for pair in found.links.tolist()}
    assert len(links) == len(found.links) > 2000
    assert not links & {tuple(sorted(pair)) for pair in found.others.tolist()}
    with pytest.raises(ValueError, match="links, 50150 are asked for"):
        worlds.see_also_world(0, pairs=100_000, fresh=0, dim=8, scale=1.0, hidden=4, features=4)


@pytest.mark.skipif(not (REAL / "sts").exists(), reason="needs the published files")
@pytest.mark.parametrize("encoder", ["", "bert", "wordllama"])
def test_paper_scale_for_a_few_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoder: str) -> None:
    if encoder == "wordllama":
        pytest.importorskip("wordllama")
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    paper = EXPERIMENT.scales["paper"]
    assert paper.published == ("sick", "sts")
    name = tiny_bert(tmp_path) if encoder == "bert" else encoder
    settings = TransEncoderSettings(
        seeds=1, recipe=Recipe(bi_steps=2, cross_steps=2, cycles=1), pairs=200, fresh=200, dim=16, published=("sick",), encoders=(name, name)
    )
    with seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        arms = experiment.run(settings, 0, torch.device("cpu"))
    assert set(arms["start"]) == {"spearman", "spearman_seen", "auc", "gap"}
    if encoder == "wordllama":
        assert arms["start"]["spearman"] > 0.5  # a real encoder knows something before any training


def test_encoders_of_two_families_must_read_the_same_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(worlds, "read_pairs", lambda source, part: [worlds.ScoredPair("a small dog runs over the grass", "the dog", 0.7)] * 3)
    names = ("", tiny_bert(tmp_path))
    with pytest.raises(ValueError, match="both families must share one tokeniser"):
        worlds.published_world(0, pairs=3, fresh=3, dim=4, scale=1, hidden=4, features=4, encoders=names, sources=("sick",))


def test_the_word_models() -> None:
    made = family()
    assert isinstance(made.bi(), MeanOfWords) and isinstance(made.cross(), DecomposableAttention)
    assert torch.equal(weights(made.cross()), weights(made.cross()))
