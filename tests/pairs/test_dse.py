from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quick_experiment import run_quick
from real_files import REAL
from tiny_bert import tiny_bert
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.pretrained import pretrained
from mtlearn.layers.text_encoders import TokenEncoder
from mtlearn.pairs.dse import experiment, worlds
from mtlearn.pairs.dse.experiment import EXPERIMENT, DSESettings, Recipe, concepts, score
from mtlearn.pairs.dse.method import (
    DSE,
    PairHead,
    SentenceEmbedder,
    StoredLogits,
    binary_target,
    dse_loss,
    hash_of,
    pair_features,
    pool_top,
    rescaled,
)
from mtlearn.pairs.dse.worlds import LEXICON, WordBody
from mtlearn.pairs.labelled import Labelled

SENTENCES = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0], [2, 8, 9, 4]])
OTHERS = torch.tensor([[2, 9, 3, 0], [2, 5, 5, 3], [2, 6, 3, 0]])


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=stream(0, "dse", name))


def student(**options: object) -> DSE:
    with seeded(0):
        body = TokenEncoder(12, 8, 2, 3, 16, longest=8)
        return DSE(SentenceEmbedder(body, top=2), hidden=10, **options)  # type: ignore[arg-type]


# the loss


def test_labels_alone_are_the_usual_losses() -> None:
    scores, labels = draw(6), (draw(6, name="y") > 0).long()
    torch.testing.assert_close(dse_loss(scores, labels, None, alpha=0.0), F.binary_cross_entropy_with_logits(scores, labels.float()))
    classes, chosen = draw(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(dse_loss(classes, chosen, None, alpha=0.0, task="classes"), F.cross_entropy(classes, chosen))
    torch.testing.assert_close(dse_loss(scores, draw(6, name="v"), None, alpha=0.0, task="regression"), F.mse_loss(scores, draw(6, name="v")))


@given(st.floats(0, 1), st.integers(1, 4))
def test_the_distance_is_summed_over_classes_and_averaged_over_pairs(alpha: float, classes: int) -> None:
    scores, teacher, labels = draw(5, classes), draw(5, classes, name="t"), torch.zeros(5, dtype=torch.int64)
    found = dse_loss(scores, labels, teacher, alpha=alpha, task="classes")
    torch.testing.assert_close(found, (1 - alpha) * F.cross_entropy(scores, labels) + alpha * classes * F.mse_loss(scores, teacher))
    alone = dse_loss(scores[:, 0], labels, teacher[:, 0], alpha=1.0)
    torch.testing.assert_close(alone, F.mse_loss(scores[:, 0], teacher[:, 0]))


def test_a_student_that_says_what_its_teacher_says_is_left_alone() -> None:
    scores = draw(5, 3).requires_grad_()
    loss = dse_loss(scores, torch.zeros(5, dtype=torch.int64), scores.detach(), alpha=1.0, task="classes")
    loss.backward()
    assert loss.item() == 0 and not scores.grad.any()


def test_the_binary_target_is_the_log_odds_of_class_1() -> None:
    logits = draw(7, 2)
    torch.testing.assert_close(binary_target(logits).sigmoid(), logits.softmax(1)[:, 1])


def test_rescaling_keeps_the_order_and_the_sign() -> None:
    logits = 12 * draw(50)
    found = rescaled(logits, 2.0)
    assert found.std().item() == pytest.approx(2, rel=1e-5)
    assert torch.equal(found.argsort(), logits.argsort()) and torch.equal(found > 0, logits > 0)


# pooling


def test_pooling_by_hand() -> None:
    states = [draw(3, 4, 2, name=f"layer {i}") for i in range(3)]
    mask = torch.tensor([[True, True, True, False], [True, True, False, False], [True] * 4])
    joined = torch.cat(states[1:], -1)
    torch.testing.assert_close(pool_top(states, mask, top=2)[0], joined[0, 1:3].mean(0))
    torch.testing.assert_close(pool_top(states, mask, top=2)[1], joined[1, 1])  # one token beside [CLS]: its own vector
    torch.testing.assert_close(pool_top(states, mask, top=2, pooler="root")[0], joined[0, 1:3].sum(0) / 2**0.5)
    torch.testing.assert_close(pool_top(states, mask, top=2, pooler="max")[0], joined[0, 1:3].amax(0))
    torch.testing.assert_close(pool_top(states, mask, top=2, pooler="layers")[0], (states[1] + states[2])[0, 1:3].mean(0) / 2)
    torch.testing.assert_close(pool_top(states, mask, top=1, class_token=False)[0], states[2][0, :3].mean(0))


@pytest.mark.parametrize("pooler", ["mean", "root", "max", "layers"])
def test_padding_and_the_batch_change_nothing(pooler: str) -> None:
    with seeded(0):
        embedder = SentenceEmbedder(TokenEncoder(12, 8, 2, 3, 16, longest=8), top=2, pooler=pooler, reduce=5)  # type: ignore[arg-type]
    vectors = embedder(SENTENCES)
    assert vectors.shape == (3, 5)
    torch.testing.assert_close(embedder(F.pad(SENTENCES, (0, 3))), vectors, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(embedder(SENTENCES[1:2, :3]), vectors[1:2], atol=1e-6, rtol=1e-5)


# the head


def test_pair_features() -> None:
    u, v = draw(4, 3), draw(4, 3, name="v")
    torch.testing.assert_close(pair_features(u, u), torch.cat([u, u, u * u, torch.zeros(4, 3)], 1))
    torch.testing.assert_close(pair_features(u, v)[:, 6:], pair_features(v, u)[:, 6:])


def test_the_head_is_asymmetric_until_its_two_sides_are_equal() -> None:
    head = student().head
    u, v = draw(4, head.width), draw(4, head.width, name="v")
    assert not torch.allclose(head(u, v), head(v, u))
    with torch.no_grad():
        head.first.weight[:, head.width : 2 * head.width] = head.first.weight[:, : head.width]
    torch.testing.assert_close(head(u, v), head(v, u), atol=1e-6, rtol=1e-5)
    dot = PairHead(3, kind="dot")
    torch.testing.assert_close(dot(u[:, :3], v[:, :3]), dot(v[:, :3], u[:, :3]))


@pytest.mark.parametrize(("kind", "outputs"), [("concat", 1), ("concat", 3), ("dot", 1)])
@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_ranking_with_a_cache_is_the_head_on_all_pairs(kind: str, outputs: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtlearn.pairs.dse.method.CHUNK", chunk)
    with seeded(1):
        head = PairHead(6, 9, outputs, kind)  # type: ignore[arg-type]
    queries, candidates = draw(4, 6), draw(5, 6, name="candidates")
    found = head.rank(queries, head.cache(candidates))
    every = head(queries.repeat_interleave(5, 0), candidates.repeat(4, 1)).view(4, 5, *([outputs] if outputs > 1 else []))
    torch.testing.assert_close(found, every, atol=1e-5, rtol=1e-5)


def test_the_student_ranks_as_it_scores() -> None:
    model = student()
    scores = model.rank(SENTENCES, model.index(OTHERS))
    for i in range(3):
        torch.testing.assert_close(scores[:, i], model(SENTENCES, OTHERS[i : i + 1].expand(3, -1)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(SENTENCES[:1], OTHERS[:1]), scores[0, :1], atol=1e-5, rtol=1e-5)


def test_a_pretrained_encoder_is_a_student_and_gets_gradients(tmp_path: Path) -> None:
    body, tokeniser = pretrained(tiny_bert(tmp_path, layers=3))
    body.eval()
    model = DSE(SentenceEmbedder(body, top=2), hidden=4, outputs=3)
    first, second = tokeniser(["a matrix", "the long signal"], 12), tokeniser(["sort", "a graph"], 12)
    states = body.model(input_ids=first, attention_mask=(first != 0).long(), output_hidden_states=True).hidden_states
    torch.testing.assert_close(model.embed(first)[0], torch.cat(states[-2:], -1)[0, 1:4].mean(0), atol=1e-5, rtol=1e-4)
    dse_loss(model(first, second), torch.tensor([0, 2]), torch.zeros(2, 3), alpha=0.5, task="classes").backward()
    assert all(p.grad is not None for name, p in body.model.named_parameters() if "pooler" not in name)


# stored logits


def test_stored_logits_know_their_pairs(tmp_path: Path) -> None:
    logits = draw(3)
    StoredLogits.of(logits, SENTENCES, OTHERS).save(tmp_path / "logits.safetensors")
    stored = StoredLogits.load(tmp_path / "logits.safetensors")
    torch.testing.assert_close(stored.of_pairs(SENTENCES, OTHERS), logits)
    torch.testing.assert_close(stored.of_pairs(F.pad(SENTENCES, (0, 2)), OTHERS), logits)  # more padding, the same pairs
    for first, second in ((SENTENCES.flip(0), OTHERS.flip(0)), (OTHERS, SENTENCES), (SENTENCES[:2], OTHERS[:2])):
        with pytest.raises(ValueError, match="the 3 stored logits are not of these"):
            stored.of_pairs(first, second)
    assert hash_of(SENTENCES, OTHERS) != hash_of(OTHERS, SENTENCES)
    with pytest.raises(ValueError, match="as many logits as pairs are needed, got 2 logits, 3 first and 3 second"):
        StoredLogits.of(logits[:2], SENTENCES, OTHERS)
    logits[1] = torch.nan
    with pytest.raises(ValueError, match="the logits of pair 1 are not finite"):
        StoredLogits.of(logits, SENTENCES, OTHERS)


# bad input


def test_bad_input_is_told() -> None:
    scores, labels = draw(3), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 1.5"):
        dse_loss(scores, labels, scores, alpha=1.5)
    with pytest.raises(ValueError, match=r"alpha = 0.5 needs the teacher's logits"):
        dse_loss(scores, labels, None)
    with pytest.raises(ValueError, match="task must be one of binary, classes, regression, got 'nli'"):
        dse_loss(scores, labels, None, alpha=0.0, task="nli")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must have the shape of the student's, \(3,\), got \(3, 2\)"):
        dse_loss(scores, labels, draw(3, 2))
    with pytest.raises(ValueError, match="the teacher's logits must be finite"):
        dse_loss(scores, labels, scores / 0)
    with pytest.raises(ValueError, match=r"the teacher of a binary task must have logits \(n, 2\), got \(3, 3\)"):
        binary_target(draw(3, 3))
    with pytest.raises(ValueError, match="spread and the logits' standard deviation must be positive"):
        rescaled(torch.ones(4))
    states, mask = [draw(2, 3, 4)] * 2, torch.tensor([[True, True, False], [True, False, False]])
    with pytest.raises(ValueError, match=r"sentence 1 has no tokens beside \[CLS\]"):
        pool_top(states, mask, top=1)
    with pytest.raises(ValueError, match=r"sentence 1 has no tokens$"):
        pool_top(states, mask & torch.tensor([[True], [False]]), top=1, class_token=False)
    with pytest.raises(ValueError, match="top must be between 1 and the 2 layers, got 3"):
        pool_top(states, mask, top=3)
    with pytest.raises(ValueError, match="pooler must be one of mean, root, max, layers, got 'sum'"):
        pool_top(states, mask, top=1, pooler="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pooler must be one of"):
        SentenceEmbedder(TokenEncoder(12, 8), pooler="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind must be one of concat, dot, got 'bilinear'"):
        PairHead(3, kind="bilinear")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="outputs 1 for dot, got 3, 512 and 2"):
        PairHead(3, outputs=2, kind="dot")
    with pytest.raises(ValueError, match="as many first as second sentences are needed, got 3 and 2"):
        student()(SENTENCES, OTHERS[:2])


# the experiment


def test_labels_are_flipped_in_training_alone_and_to_another_class() -> None:
    for task in ("binary", "classes"):
        settings = DSESettings(seeds=1, labelled=600, unlabelled=5, test=300)
        noisy, right = concepts(settings, 0, task=task), concepts(settings, 0, task=task, flips=0.0)  # type: ignore[arg-type]
        assert torch.equal(noisy.train.first, right.train.first)
        assert 0.1 < (noisy.train.labels != right.train.labels).double().mean() < 0.2
        assert torch.equal(noisy.test.labels, right.test.labels)
    shared = (LEXICON.concept(right.test.first)[:, :, None] == LEXICON.concept(right.test.second)[:, None]).any(2).sum(1)
    assert torch.equal(right.test.labels, shared // 2)
    graded = concepts(DSESettings(seeds=1, labelled=600, unlabelled=5, test=300), 0, task="regression")
    assert graded.test.labels.unique().tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_the_word_body_reads_no_order() -> None:
    with seeded(0):
        body = WordBody(draw(20, 8), heads=2)
    tokens = torch.tensor([[3, 4, 5, 0]])
    states = body.states(tokens)
    assert len(states) == 2
    torch.testing.assert_close(body(tokens[:, [2, 0, 1, 3]])[:, :3], states[-1][:, [2, 0, 1]], atol=1e-6, rtol=1e-5)


def test_names_and_summaries_are_split_by_function() -> None:
    world = worlds.names_world(0, dim=8)
    assert world.train.labels.double().mean() == world.test.labels.double().mean() == 0.5
    here, there = (
        {(*a, *b) for a, b, label in zip(part.first.tolist(), part.second.tolist(), part.labels, strict=True) if label}
        for part in (world.train, world.test)
    )
    assert len(here & there) <= 0.01 * len(there)  # functions of several classes that are worded alike but for unknown words


def test_scores() -> None:
    labels = torch.tensor([1, 0, 1, 1])
    assert score(torch.tensor([2.0, -1, -1, 3]), labels, "binary") == 0.75
    assert score(torch.tensor([[0.0, 2], [1, 0], [1, 0], [0, 1]]), labels, "binary") == 0.75
    assert score(torch.tensor([1.0, 0, 2, 3]), torch.tensor([0.2, 0.1, 0.3, 0.9]), "regression") == pytest.approx(1)


def test_quick_experiment() -> None:
    arms = run_quick(EXPERIMENT)
    assert arms["deep teacher"]["saving"] > 1
    assert {"accuracy", "accuracy_clean", "accuracy_classes", "spearman_regression", "accuracy_names"} == set(arms["teacher"])


@pytest.mark.skipif(not (REAL / "sts").exists(), reason="needs the published files")
@pytest.mark.parametrize("encoder", ["", "bert", "wordllama"])
def test_paper_scale_for_a_few_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoder: str) -> None:
    if encoder == "wordllama":
        pytest.importorskip("wordllama")
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    paper = EXPERIMENT.scales["paper"]
    recipe = Recipe(teacher_epochs=1, steps=2, look=1, batch=16, hidden=8)
    name = tiny_bert(tmp_path, layers=2) if encoder == "bert" else encoder
    settings = replace(paper, seeds=1, recipe=recipe, encoder=name, dim=16, most=60)
    with seeded(0):
        arms = experiment.run(settings, 0, torch.device("cpu"))
    assert set(arms) == {"teacher", "labels only", "teacher only"}
    assert all(0 <= metrics["accuracy"] <= 1 for metrics in arms.values())


def test_dropout_of_a_pretrained_model_is_off_when_it_is_judged(tmp_path: Path) -> None:
    body, tokeniser = pretrained(tiny_bert(tmp_path))
    model = nn.Module.train(DSE(SentenceEmbedder(body, top=1), hidden=4))
    pairs = Labelled(tokeniser(["a matrix"] * 3, 8), tokeniser(["a graph"] * 3, 8), torch.zeros(3))
    found = experiment.predict(model, pairs)
    assert model.training and torch.equal(found[0], found[1])


def test_explorer() -> None:
    from mtlearn.pairs.dse.explorer import explorer

    shown = explorer()
    first = shown.png
    assert "α = 1" in shown.text and "candidates" in shown.text
    for preset in shown.presets:
        shown.preset(preset)
    shown.set(alpha=0.0, flips=0, candidates=10_000)
    assert shown.png != first and "α = 0" in shown.text and "10,000 candidates" in shown.text
