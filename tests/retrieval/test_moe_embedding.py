"""Extending an encoder by experts changes nothing at first; enforced routing is separate models; losses, co-citation, F1max, worlds, experiment."""

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from sklearn.metrics import precision_recall_curve
from torch import Tensor
from torch.nn import functional as F

from mtlearn.lab.checkpoints import provenance
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.cost import count_parameters
from mtlearn.layers.embedding import embed
from mtlearn.layers.text_encoders import TokenEncoder, pool
from mtlearn.retrieval.moe_embedding import experiment as moe
from mtlearn.retrieval.moe_embedding.encoder import encode
from mtlearn.retrieval.moe_embedding.exercises import EXERCISES
from mtlearn.retrieval.moe_embedding.explorer import explorer
from mtlearn.retrieval.moe_embedding.method import (
    GatedExperts,
    Head,
    balance_loss,
    check_pairs,
    clip_loss,
    co_cited,
    extend,
    f1_max,
    information_loss,
    mark,
    ranking_loss,
    router_loss,
    with_domain_tokens,
)
from mtlearn.retrieval.moe_embedding.worlds import (
    DOMAINS,
    FIRST,
    LIBRARIES,
    SIZE,
    SLOT,
    SYNONYMS,
    VALUES,
    attributes_of,
    balanced,
    cited_split,
    functions,
    items,
    key,
    partners,
    positives,
    similar_table,
)


def base(norm_first: bool = True, layers: int = 2) -> TokenEncoder:
    with seeded(0):
        body = TokenEncoder(30, 16, 4, layers, 24, longest=12, norm_first=norm_first, vectors=torch.randn(30, 16)).eval()
        for p in body.parameters():
            if p.dim() == 1:
                torch.nn.init.normal_(p, std=0.3)  # biases and norms that are not 0 and 1
    return body


def texts(rows: int = 6, length: int = 9) -> Tensor:
    tokens = torch.randint(3, 30, (rows, length), generator=stream(0, "texts"))
    tokens[1, 5:] = 0
    return tokens


# extension


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("options", [{}, {"gated": True}, {"layers": "middle"}, {"layers": [0]}, {"router": True}, {"router": True, "k": 2}])
def test_right_after_extension_the_function_is_the_old_one(norm_first: bool, options: dict[str, object]) -> None:
    body, tokens = base(norm_first), texts()
    mixture = extend(body, 3, **options)
    there = tokens != 0
    for assignment in (torch.tensor([0, 1, 2, 0, 1, 2]), None) if options.get("router") else (torch.tensor([2, 2, 1, 0, 1, 2]),):
        torch.testing.assert_close(mixture(tokens, assignment)[there], body(tokens)[there], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(body(tokens), base(norm_first)(tokens))  # the given one stays as it is


def test_tokens_may_choose_their_own_expert() -> None:
    mixture = extend(base(), 3, router=True, level="token", k=2)
    torch.testing.assert_close(mixture(texts()), base()(texts()), rtol=1e-4, atol=1e-4)


def test_a_gated_expert_is_the_formula() -> None:
    experts = GatedExperts(2, 4, 6)
    with torch.no_grad():
        for p in experts.parameters():
            p.copy_(torch.randn(p.shape, generator=stream(0, "gated")))
    x = torch.randn(5, 4, generator=stream(0, "x"))
    from mtlearn.layers.experts import forced_routes

    found = experts(x, forced_routes(torch.tensor([0, 1, 1, 0, 1]), 2))
    for row, e in enumerate((0, 1, 1, 0, 1)):
        hidden = F.gelu(x[row] @ experts.first[e] + experts.first_bias[e]) * (x[row] @ experts.gate[e] + experts.gate_bias[e])
        torch.testing.assert_close(found[row], hidden @ experts.second[e] + experts.second_bias[e])


def drifted(mixture: object, std: float = 0.3) -> None:
    """Experts that differ."""
    with torch.no_grad():
        for name, p in mixture.named_parameters():  # type: ignore[attr-defined]
            if name.startswith("experts"):
                p.add_(std * torch.randn(p.shape, generator=stream(0, name)))


@pytest.mark.parametrize("norm_first", [True, False])
def test_enforced_routing_is_each_domain_s_own_model(norm_first: bool) -> None:
    mixture, tokens, domain = extend(base(norm_first), 3), texts(), torch.tensor([2, 0, 1, 1, 0, 2])
    drifted(mixture)
    together = mixture(tokens, domain)
    for d in range(3):
        alone = base(norm_first)
        for number, layer in enumerate(alone.transformer.layers):
            layer.feed = mixture.experts[str(number)].expert(d)
        rows = domain == d
        there = tokens[rows] != 0
        torch.testing.assert_close(together[rows][there], alone(tokens[rows])[there], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mixture(tokens, (domain + 1) % 3), together)


def test_equal_experts_in_a_sum_are_one_and_one_expert_is_the_model() -> None:
    tokens = texts()
    soft, hard = extend(base(), 3, router=True, k=3), extend(base(), 3, router=True)
    torch.testing.assert_close(soft(tokens), hard(tokens), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(extend(base(), 1)(tokens, torch.zeros(6, dtype=torch.int64)), base()(tokens), rtol=1e-5, atol=1e-5)


def test_an_expert_without_its_domain_gets_no_gradient_and_attention_does() -> None:
    mixture = extend(base(), 3)
    mixture.embed(texts(), torch.tensor([0, 1, 0, 1, 0, 1])).square().sum().backward()
    for experts in mixture.experts.values():
        for p in experts.parameters():
            assert p.grad[2].abs().max() == 0 < p.grad[0].abs().max()
    assert all(layer.attention.query_key_value.weight.grad.abs().max() > 0 for layer in mixture.body.transformer.layers)


def test_the_contrastive_loss_tells_a_hard_router_nothing() -> None:
    mixture, tokens, domain = extend(base(), 3, router=True), texts(), torch.tensor([0, 1, 2, 0, 1, 2])
    drifted(mixture)
    found = mixture.encode(tokens)
    vectors = pool(found.states, tokens != 0)
    ranking_loss(vectors[:3], vectors[3:]).backward()
    assert all(p.grad is None for p in mixture.routers.parameters())
    loss = router_loss(mixture.encode(tokens).logits, domain)
    loss.backward()
    assert all(router.weight.grad.abs().max() > 0 for router in mixture.routers.values())
    logits = mixture.encode(tokens).logits
    torch.testing.assert_close(loss, sum(F.cross_entropy(part, domain) for part in logits) / 2)
    chosen = [routes.expert.view(6, 9)[:, 0] for routes in mixture.encode(tokens).routes]
    assert all(torch.equal(expert, part.argmax(1)) for expert, part in zip(chosen, logits, strict=True))


def test_parameters_grow_and_active_ones_do_not() -> None:
    body = base()
    feed = count_parameters(body.transformer.layers[0].feed)
    for layers, number in (("all", 2), ("middle", 1)):
        assert count_parameters(extend(body, 5, layers=layers)) == count_parameters(body) + 4 * number * feed
    assert sum(p.numel() for p in extend(body, 5).experts["0"].expert(3).parameters()) == feed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: extend(extend(base(), 2), 2), "this encoder has 2 experts already"),
        (lambda: extend(base(), 0), "num_experts must be at least 1, got 0"),
        (lambda: extend(base(), 2, k=3), "k must be between 1 and num_experts=2, got 3"),
        (lambda: extend(base(), 2, level="word"), "level must be 'sentence' or 'token', got 'word'"),
        (lambda: extend(base(), 2, layers="last"), "layers must be 'all', 'middle' or numbers, got 'last'"),
        (lambda: extend(base(), 2, layers=[0, 2]), "layers must be different numbers between 0 and 1"),
        (lambda: extend(base(), 2, layers=[]), "at least one, got []"),
        (lambda: extend(base(), 2)(texts()), "say the expert of each text"),
        (lambda: extend(base(), 2)(texts(), torch.tensor([0, 1, 2, 0, 0, 0])), "assignment must be between 0 and 1, got 2 for text 2"),
        (lambda: extend(base(), 2)(texts(), torch.zeros(3, dtype=torch.int64)), "assignment must be (6,), one for each text, got (3,)"),
        (lambda: extend(base(), 2)(torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)), "text 0 is empty"),
        (lambda: with_domain_tokens(base(), 0, 2), "common must be a token between 0 and 29 that is not the padding 0, got 0"),
        (lambda: with_domain_tokens(base(), 2, 0), "num_domains must be at least 1"),
        (lambda: mark(texts(), torch.full((6,), 3), torch.arange(30, 33)), "domain must be between 0 and 2, got 3 for text 0"),
        (lambda: check_pairs(torch.tensor([0, 1]), torch.tensor([0, 2])), "pair 1 has texts of the domains 1 and 2: both must be of one domain"),
        (lambda: router_loss((), torch.tensor([0])), "no logits: the encoder has no router"),
        (lambda: ranking_loss(torch.ones(1, 2), torch.ones(1, 2)), "a batch of one has no negatives"),
        (lambda: clip_loss(torch.ones(1, 2), torch.ones(1, 2), 1.0), "two batches of the same shape"),
        (lambda: clip_loss(torch.ones(2, 2), torch.ones(2, 2), 0.0), "temperature must be above 0, got 0.0"),
        (lambda: f1_max(torch.ones(2), torch.zeros(2, dtype=torch.bool)), "with one positive at least"),
        (lambda: co_cited([[1], [2]]), "references must be numbers between 0 and 1, got 1 to 2"),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()  # type: ignore[operator]


# domain tokens, losses


def test_domain_tokens_start_from_the_common_one() -> None:
    body, names = with_domain_tokens(base(), 2, 3)
    assert names.tolist() == [30, 31, 32]
    assert torch.equal(body.token.weight[30:], base().token.weight[2].expand(3, -1))
    tokens = texts()
    tokens[:, 0] = 2
    marked = mark(tokens, torch.tensor([0, 1, 2, 0, 1, 2]), names)
    assert marked[:, 0].tolist() == [30, 31, 32, 30, 31, 32] and torch.equal(marked[:, 1:], tokens[:, 1:])
    torch.testing.assert_close(body(marked), base()(tokens))
    noisy, _ = with_domain_tokens(base(), 2, 3, noise=0.5, generator=stream(0, "noise"))
    assert not torch.allclose(noisy.token.weight[30], noisy.token.weight[31])


def test_the_ranking_loss_is_the_library_s() -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    a, b = torch.randn(2, 8, 5, generator=stream(0, "vectors"))
    theirs = MultipleNegativesRankingLoss(model=None).compute_loss_from_embeddings([a, b], labels=None)
    torch.testing.assert_close(ranking_loss(a, b), theirs)
    cosines = F.cosine_similarity(a[:, None], b[None], dim=-1)
    torch.testing.assert_close(ranking_loss(a, b), F.cross_entropy(20 * cosines, torch.arange(8)))
    with pytest.warns(UserWarning, match="holds a positive twice"):
        ranking_loss(a, b[[0, 0, 1, 2, 3, 4, 5, 6]])


def test_the_clip_loss_sees_near_duplicates() -> None:
    a, b = F.normalize(torch.randn(2, 6, 5, generator=stream(1, "vectors")), dim=-1)
    target = torch.arange(6)
    logits = a @ b.T / 0.05
    torch.testing.assert_close(clip_loss(a, b, 0.05), (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2)
    longer_a, longer_b = a.clone(), b.clone()
    longer_a[1], longer_b[1] = 3 * a[0], 3 * b[0]  # the same, only longer: it becomes the target of row 0
    moved = torch.tensor([1, 1, 2, 3, 4, 5])
    logits = longer_a @ longer_b.T / 0.05
    torch.testing.assert_close(clip_loss(longer_a, longer_b, 0.05), (F.cross_entropy(logits, moved) + F.cross_entropy(logits.T, moved)) / 2)


def test_information_is_largest_when_each_domain_has_its_expert() -> None:
    domain = torch.tensor([0, 1, 2, 0, 1, 2])
    sure = 50 * F.one_hot(domain, 3).float()
    torch.testing.assert_close(information_loss((sure,), domain, 3), -torch.tensor(3.0).log(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(information_loss((torch.zeros(6, 3),), domain, 3), torch.tensor(0.0), rtol=0, atol=1e-6)
    one = torch.zeros(6, dtype=torch.int64)  # a batch of one domain has none, whatever the router does
    torch.testing.assert_close(information_loss((torch.randn(6, 3, generator=stream(0, "l")),), one, 3), torch.tensor(0.0), rtol=0, atol=1e-6)
    assert float(balance_loss((sure,))) == pytest.approx(1.0, abs=1e-4)


def test_the_head_has_the_paper_s_parts() -> None:
    head = Head(6, 4)
    x = torch.randn(3, 6, generator=stream(0, "head"))
    torch.testing.assert_close(head(x), head[3](torch.tanh(head[1](F.layer_norm(x, (6,), head[0].weight, head[0].bias)))))


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=20).filter(lambda rows: any(hit for _, hit in rows)))
@settings(deadline=None, max_examples=60)
def test_f1_max_is_that_of_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    scores, positive = torch.tensor([float(s) for s, _ in rows]), torch.tensor([hit for _, hit in rows])
    precision, recall, _ = precision_recall_curve(positive.numpy(), scores.numpy())
    with torch.no_grad():
        wanted = max(2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True) if p + r > 0)
    assert f1_max(scores, positive) == pytest.approx(wanted)


def test_balanced_pairs_have_two_thirds_for_nothing() -> None:
    positive = torch.arange(100) < 50
    assert f1_max(-positive.float(), positive) == pytest.approx(2 / 3)
    assert f1_max(torch.zeros(100), positive) == pytest.approx(2 / 3)


def test_co_citation() -> None:
    assert co_cited([[1, 2, 3], [0], [], [2, 1]]).tolist() == [[1, 2], [1, 3], [2, 3]]
    with pytest.warns(UserWarning, match="1 texts cite themselves"):
        assert co_cited([[0, 1, 2], [], []]).tolist() == [[1, 2]]
    assert co_cited([[], []]).shape == (0, 2)


# worlds


def test_items_hold_their_attributes() -> None:
    draw = stream(0, "items")
    attributes = attributes_of(50, draw)
    tokens = items(attributes, draw)
    assert tokens.shape == (50, 11) and (tokens[:, 0] == SLOT).all() and int(tokens.max()) < SIZE
    for which in range(2):
        low = FIRST + which * VALUES * SYNONYMS
        inside = (tokens >= low) & (tokens < low + VALUES * SYNONYMS)
        assert (inside.sum(1) == 3).all()
        assert torch.equal((tokens[inside] - low) // SYNONYMS, attributes[:, which].repeat_interleave(3))


@pytest.mark.parametrize("domain", range(DOMAINS))
def test_pairs_follow_the_key(domain: int) -> None:
    draw = stream(0, "pairs", domain)
    one = attributes_of(200, draw)
    assert torch.equal(key(one, domain), key(partners(one, domain, draw), domain))
    pairs = balanced(200, domain, draw)
    assert pairs.positive.sum() == 100 and (pairs.domain == domain).all()
    assert positives(10, domain, draw).positive.all()
    with pytest.raises(ValueError, match="domain must be between 0 and 2, got 3"):
        key(one, 3)


def test_functions_are_split_by_function() -> None:
    found = functions()
    parts = cited_split(found, 0)
    assert len(found.pairs) > 1500 and set(found.library.tolist()) == set(range(len(LIBRARIES)))
    assert (found.library[found.pairs[:, 0]] == found.library[found.pairs[:, 1]]).all()
    assert not set(parts.train.flatten().tolist()) & set(parts.test.flatten().tolist())
    assert parts.positive.sum() * 2 == len(parts.test)
    table = similar_table(found)
    assert table[parts.test[parts.positive][:, 0], parts.test[parts.positive][:, 1]].all()
    assert not table[parts.test[~parts.positive][:, 0], parts.test[~parts.positive][:, 1]].any()
    assert torch.equal(table, table.T) and table.diagonal().all()


# experiment


def test_the_quick_experiment() -> None:
    arms = run_quick(moe.EXPERIMENT)
    assert arms["MoE, index"]["parameters"] > arms["shared"]["parameters"]
    assert arms["specialists"]["parameters"] == pytest.approx(3 * arms["shared"]["parameters"])
    assert arms["MoE, index"]["cited_gain_low"] <= arms["MoE, index"]["cited_gain_high"]
    assert 2 / 3 - 1e-9 <= arms["base"]["f1"] <= 1


def test_arms_see_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    few = moe.EXPERIMENT.scales["quick"]
    start = moe.base_model(few, 0, torch.device("cpu"))
    seen: list[list[Tensor]] = []
    loss = moe.pair_loss
    monkeypatch.setattr(moe, "pair_loss", lambda model, tokens, *rest: seen[-1].append(tokens) or loss(model, tokens, *rest))
    for arm in ("shared", "MoE, index", "MoE, random"):
        seen.append([])
        moe.tune(moe.build(start, arm, few, 0), few, 0, 3)
    assert len(seen[0]) == 3
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_training_repeats() -> None:
    few = copy.copy(moe.EXPERIMENT.scales["quick"])
    start = moe.base_model(few, 0, torch.device("cpu"))
    one, two = (moe.tune(moe.build(start, "shared", few, 0), few, 0, 3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_the_shipped_models() -> None:
    measured = provenance(moe.ITEMS)["measured"]
    assert measured["MoE, index"] > measured["shared"] > 2 / 3
    vectors = embed(encode, ["Compute the QR factorization of a matrix.", "Draw random samples."])
    assert vectors.shape == (2, 64)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    assert not torch.allclose(encode(["solve a linear system"]), encode(["solve a linear system"], library="networkx"))
    with pytest.raises(ValueError, match="library must be one of numpy, scipy, networkx, sklearn, got 'torch'"):
        encode(["a matrix"], library="torch")


# explorer and exercises


def test_the_same_items_regroup() -> None:
    shown = explorer()
    assert "MoE, index" in shown.text
    seen = {shown.text}
    for label in shown.presets:
        shown.preset(label)
        seen.add(shown.text)
        assert "nearest neighbours share" in shown.text
    assert len(seen) >= len(shown.presets) - 1
    shown.set(arm="shared", domain="2: second attribute")
    assert "shared" in shown.text


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.question[:24])
def test_exercises(exercise) -> None:
    assert not exercise.check(None).right
    assert not exercise.check(exercise.wrong).right
    reply = exercise.check(exercise.solve())
    assert reply.right, reply
