"""Ranks, losses, sampling and mining of UDR against explicit loops; feedback of language models; worlds, experiment, explorers."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_experiment import run_quick
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.lab.checkpoints import provenance
from mtlearn.lab.seeds import stream
from mtlearn.retrieval.udr import experiment as udr
from mtlearn.retrieval.udr.exercises import EXERCISES
from mtlearn.retrieval.udr.explorer import explorer, pairs
from mtlearn.retrieval.udr.method import (
    Candidates,
    Instructions,
    LanguageModelScorer,
    class_score,
    draw_lists,
    epr_loss,
    generation_score,
    in_batch_loss,
    mine,
    prompt,
    rank_loss,
    ranks,
    task_probabilities,
    udr_loss,
)
from mtlearn.retrieval.udr.worlds import ASKED, PLACES, Copier, Source, answer_of, make_world, surface, tasks_of, train_copier


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_code_s_losses_are_those_of_the_public_code() -> None:
    cases = json.loads((Path(__file__).parent / "public" / "udr.json").read_text())["cases"]
    assert len(cases) == 2
    for case in cases:
        queries, candidates = (torch.tensor(case[name], dtype=torch.float64) for name in ("queries", "candidates"))
        similarities = torch.einsum("bd,bld->bl", queries, candidates)
        scores = -torch.arange(similarities.shape[1], dtype=torch.float64).expand_as(similarities)  # the list is in the model's order there
        assert rank_loss(similarities, scores, weight="predicted").item() == pytest.approx(case["ranking"], rel=1e-6)
        best = torch.zeros(len(queries), dtype=torch.int64)
        assert in_batch_loss(queries, candidates, best).item() == pytest.approx(case["in-batch"], rel=1e-9)


# feedback


def test_class_scores_sum_to_one_over_the_answers() -> None:
    probabilities = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    each = torch.stack([class_score(probabilities, torch.full((5,), y)) for y in range(3)], 1)
    torch.testing.assert_close(each.sum(1), torch.ones(5))
    torch.testing.assert_close(each, probabilities / probabilities.sum(1, keepdim=True))


def test_generation_scores_are_products_over_the_answer() -> None:
    log = torch.tensor([[-1.0, -2.0, -9.0], [-0.5, -9.0, -9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    torch.testing.assert_close(generation_score(log, mask), torch.tensor([-3.0, -0.5]).exp())
    assert generation_score(torch.tensor([[-1.0, torch.nan]]), torch.tensor([[True, False]])).isfinite().all()


class Letters(nn.Module):
    """A language model of letters: the next one is likely the one that followed the same letter before."""

    def __init__(self) -> None:
        super().__init__()
        self.sharp = nn.Parameter(torch.tensor(3.0))

    def forward(self, input_ids: Tensor) -> object:
        logits = torch.zeros(*input_ids.shape, 128)
        for i in range(1, input_ids.shape[1]):
            for j in range(i):
                if input_ids[0, j] == input_ids[0, i]:
                    logits[0, i, input_ids[0, j + 1]] += self.sharp
        return type("Output", (), {"logits": logits})()


def letters(text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
    return {"input_ids": [ord(letter) for letter in text]}


def test_a_language_model_s_feedback_prefers_the_fitting_demonstration() -> None:
    scorer = LanguageModelScorer(Letters(), letters)
    assert prompt("x", [("a", "1"), ("b", "2")], "3") == "a\t1\nb\t2\nx\t3"
    good, bad = scorer.score("q", "A", ("p", "A")), scorer.score("q", "A", ("p", "B"))
    assert good > bad > 0
    answers = ("A", "B")
    both = [scorer.score("q", answer, ("p", "A"), answers) for answer in answers]
    assert sum(both) == pytest.approx(1) and both[0] > 0.9
    by_hand = Letters()(input_ids=torch.tensor([letters(prompt("q", [("p", "A")]))["input_ids"]])).logits[0, -1].log_softmax(0)[ord("A")]
    assert scorer.log_probability("q", "A", [("p", "A")]) == pytest.approx(by_hand.item())
    with pytest.raises(ValueError, match="the answer 'C' is none of the task's: A, B"):
        scorer.score("q", "C", ("p", "A"), answers)
    with pytest.raises(ValueError, match="the answer '' has no token"):
        scorer.log_probability("q", "")


def test_a_model_of_transformers_can_give_the_feedback() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=128, n_positions=64, n_embd=16, n_layer=1, n_head=2))
    scorer = LanguageModelScorer(model, letters)
    found = [scorer.score("abc", answer, ("ab", "x"), ("x", "yz")) for answer in ("x", "yz")]
    assert sum(found) == pytest.approx(1)
    whole = model(input_ids=torch.tensor([letters("ab\tx\nabc\tyz")["input_ids"]])).logits[0].log_softmax(-1)
    wanted = (whole[-3, ord("y")] + whole[-2, ord("z")]).item()
    assert scorer.log_probability("abc", "yz", [("ab", "x")]) == pytest.approx(wanted, abs=1e-4)


def test_bad_feedback() -> None:
    with pytest.raises(ValueError, match="answers must be one of the 3 classes, 0 to 2, got 0 to 3"):
        class_score(torch.ones(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="probabilities must be at least 0"):
        class_score(torch.zeros(1, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match="probabilities must be finite; 1 of 2 are not"):
        class_score(torch.tensor([[1.0, torch.nan]]), torch.tensor([0]))
    with pytest.raises(ValueError, match="every answer needs at least one token"):
        generation_score(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool))


# ranks and losses


@given(st.lists(st.integers(0, 4), min_size=2, max_size=8))
@settings(deadline=None, max_examples=40)
def test_ranks_are_scipy_s_with_shared_means(values: list[int]) -> None:
    scores = torch.tensor([values], dtype=torch.float64)
    assert ranks(scores)[0].tolist() == rankdata([-value for value in values]).tolist()


def test_a_list_of_two_is_half_a_softplus() -> None:
    similarities = torch.tensor([[0.3, 1.1]], dtype=torch.float64)
    torch.testing.assert_close(rank_loss(similarities, torch.tensor([[2.0, 1.0]])), 0.5 * F.softplus(torch.tensor(0.8, dtype=torch.float64)))
    assert rank_loss(similarities, torch.tensor([[1.0, 1.0]])) == 0  # equal scores ask for nothing


@pytest.mark.parametrize("weight", ["lm", "predicted"])
def test_the_rank_loss_is_the_sum_over_pairs(weight: str) -> None:
    similarities, scores = drawn(3, 5), drawn(3, 5, seed=1)
    each = []
    for sims, values in zip(similarities, scores, strict=True):
        rank = (values[None] > values[:, None]).sum(1) + 1
        place = (sims[None] > sims[:, None]).sum(1) + 1
        found = []
        for i in range(5):
            for j in range(5):
                if rank[i] < rank[j]:
                    w = 1 / rank[i] - 1 / rank[j] if weight == "lm" else abs(1 / place[i] - 1 / place[j])
                    found.append(w * torch.log1p(torch.exp(sims[j] - sims[i])))
        each.append(torch.stack(found).sum() if weight == "lm" else torch.stack(found))
    wanted = torch.stack(each).mean() if weight == "lm" else torch.cat(each).mean()
    torch.testing.assert_close(rank_loss(similarities, scores, weight=weight), wanted)


@given(st.integers(0, 1000), st.integers(2, 8))
@settings(deadline=None, max_examples=25)
def test_what_the_rank_loss_does_not_feel(seed: int, size: int) -> None:
    similarities, scores = drawn(2, size, seed=seed).requires_grad_(), drawn(2, size, seed=seed + 1)
    loss = rank_loss(similarities, scores)
    torch.testing.assert_close(rank_loss(similarities + 7, scores), loss)
    torch.testing.assert_close(rank_loss(similarities, (3 * scores).exp()), loss)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(rank_loss(similarities[:, order], scores[:, order]), loss)
    (gradient,) = torch.autograd.grad(loss, similarities)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)


def test_gradients_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda s: rank_loss(s, drawn(2, 4, seed=1)), (drawn(2, 4).requires_grad_(),))


def test_lambda_zero_is_dpr() -> None:
    queries, candidates, scores = drawn(4, 3), drawn(4, 5, 3, seed=1), drawn(4, 5, seed=2)
    order = scores.argsort(1, descending=True)
    sorted_candidates = candidates.gather(1, order[:, :, None].expand(-1, -1, 3))
    wanted = F.cross_entropy(queries @ sorted_candidates.flatten(0, 1).T, torch.arange(4) * 5)
    torch.testing.assert_close(udr_loss(queries, candidates, scores, balance=0.0), wanted)
    torch.testing.assert_close(in_batch_loss(queries, candidates, scores.argmax(1)), wanted)
    similarities = torch.einsum("bd,bld->bl", queries, candidates)
    torch.testing.assert_close(udr_loss(queries, candidates, scores), 0.8 * rank_loss(similarities, scores) + 0.2 * wanted)
    torch.testing.assert_close(udr_loss(queries, candidates, scores, balance=1.0), rank_loss(similarities, scores))


def test_epr_is_a_cross_entropy_over_positives_and_negatives() -> None:
    q, good, bad = drawn(4, 3), drawn(4, 3, seed=1), drawn(4, 3, seed=2)
    scores = torch.stack([q @ good.T, q @ bad.T], 2).flatten(1)
    torch.testing.assert_close(epr_loss(q, good, bad), F.cross_entropy(scores, 2 * torch.arange(4)))


def test_what_losses_refuse() -> None:
    for arguments, message in (
        (({"similarities": drawn(2, 3), "scores": drawn(2, 4)}), "similarities and scores must both be (B, l), got (2, 3) and (2, 4)"),
        (({"similarities": drawn(2, 1), "scores": drawn(2, 1)}), "a list needs at least two candidates to be ranked, got 1"),
        (({"similarities": drawn(2, 2), "scores": drawn(2, 2) / 0}), "scores must be finite; 4 of 4 are not"),
        (({"similarities": drawn(2, 2), "scores": drawn(2, 2), "weight": "code"}), "weight must be 'lm' or 'predicted', got 'code'"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            rank_loss(**arguments)
    with pytest.raises(ValueError, match=r"balance must be between 0 and 1, got 1\.5"):
        udr_loss(drawn(2, 3), drawn(2, 2, 3), drawn(2, 2), balance=1.5)


# sampling and mining


def test_tasks_are_drawn_by_the_root_of_their_share() -> None:
    sizes = torch.tensor([1500, 200])
    assert task_probabilities(sizes).tolist() == pytest.approx([0.7325, 0.2675], abs=1e-4)
    assert task_probabilities(sizes, 0).tolist() == [0.5, 0.5]
    assert task_probabilities(sizes, 1).tolist() == pytest.approx([1500 / 1700, 200 / 1700])
    with pytest.raises(ValueError, match="alpha must be 0"):
        task_probabilities(sizes, -1)
    with pytest.raises(ValueError, match="every task needs at least one row"):
        task_probabilities(torch.tensor([3, 0]))


def test_lists_are_drawn_without_replacement() -> None:
    order = torch.arange(20).expand(3000, -1)
    plain = draw_lists(order, 8, generator=stream(0, "plain"))
    assert (plain.diff(dim=1) > 0).all()
    assert torch.bincount(plain.flatten()).double().div(3000).tolist() == pytest.approx([0.4] * 20, abs=0.04)
    ends = draw_lists(order, 8, top=5, bottom=5, generator=stream(0, "ends"))
    assert ((ends < 5).sum(1) >= 1).all() and ((ends >= 15).sum(1) == 1).all() and (ends.diff(dim=1) > 0).all()
    for arguments, message in (
        ({"length": 21}, "length must be between 2 and the 20 candidates, got 21"),
        ({"length": 1}, "got 1"),
        ({"length": 8, "top": 5}, "top and bottom must both be 0"),
        ({"length": 8, "top": 12, "bottom": 9}, "top and bottom must both be 0"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_lists(order, **arguments)


def test_mining_finds_the_nearest_but_never_itself() -> None:
    queries, demonstrations = drawn(12, 4), drawn(12, 4, seed=1)
    scores = (queries @ demonstrations.T).fill_diagonal_(-torch.inf)
    for k in (1, 5, 11):
        assert torch.equal(mine(queries, demonstrations, k), scores.topk(k, 1).indices)
    for k in (0, 12):
        with pytest.raises(ValueError, match=f"k must be between 1 and 11, the other rows, got {k}"):
            mine(queries, demonstrations, k)
    with pytest.raises(ValueError, match="vectors of the same rows"):
        mine(queries, demonstrations[1:], 1)


def test_candidates_are_scored_once_and_kept() -> None:
    truth, asked = drawn(6, 6), []

    def score(questions: Tensor, candidates: Tensor) -> Tensor:
        asked.extend(zip(questions.tolist(), candidates.tolist(), strict=True))
        return truth[questions, candidates]

    kept = Candidates(6)
    first = (torch.arange(6)[:, None] + torch.tensor([0, 1, 2])) % 6  # a row's own number among them
    assert kept.add(first, score) == 12
    assert kept.add((torch.arange(6)[:, None] + torch.tensor([2, 3])) % 6, score) == 6
    assert kept.calls == len(asked) == len(set(asked)) == 18 and all(i != j for i, j in asked)
    order, scores = kept.best()
    assert order.shape == (6, 3)
    for row in range(6):
        known = [(row + step) % 6 for step in (1, 2, 3)]
        assert sorted(order[row].tolist()) == sorted(known)
        torch.testing.assert_close(scores[row].double(), truth[row, order[row]], rtol=1e-6, atol=1e-6)
        assert (scores[row].diff() <= 0).all()
    only, _ = kept.best(first)
    assert only.shape == (6, 2)


def test_what_candidates_refuse() -> None:
    with pytest.raises(ValueError, match="at least three rows"):
        Candidates(2)
    kept = Candidates(4)
    with pytest.raises(ValueError, match=re.escape("proposed must be (4, k) numbers of rows between 0 and 3")):
        kept.add(torch.full((4, 1), 4), lambda q, c: q.double())
    with pytest.raises(ValueError, match="scores must be finite"):
        kept.add(torch.ones(4, 2, dtype=torch.int64), lambda q, c: torch.full((len(q),), torch.nan))
    with pytest.raises(ValueError, match="fewer than two scored candidates"):
        kept.best()


# instructions


def test_instructions_are_means_of_known_words() -> None:
    told = Instructions(("first", "second", "parity"), 4)
    both = told(("first", "parity"))
    torch.testing.assert_close(both, (told(("first",)) + told(("parity",))) / 2)
    with pytest.raises(ValueError, match="'third' is not known; an instruction has words of: first, second, parity"):
        told(("third", "parity"))
    with pytest.raises(ValueError, match="an empty instruction is not known"):
        told(())


def test_a_demonstration_s_answer_moves_its_vector() -> None:
    retriever = udr.build("digits", 16)
    inputs = torch.rand(3, 4, 64, generator=stream(0, "rows"))
    one, two = (retriever.embed_demonstrations(inputs, torch.full((3,), y), ("first", "parity")) for y in (0, 1))
    assert not torch.allclose(one, two)
    queries = retriever.embed_queries(inputs, ("first", "parity"))
    torch.testing.assert_close(queries.norm(dim=1), torch.full((3,), 10.0))
    assert all(torch.equal(a, b) for a, b in zip(retriever.query.parameters(), retriever.demonstration.parameters(), strict=True))


# worlds


@pytest.mark.parametrize("kind", ["digits", "sentences"])
def test_tasks_ask_for_one_place(kind: str) -> None:
    world, source = make_world(kind, 0, sizes=(30, 20, 10, 5), test=7)
    assert len(world.tasks) == 12 and [len(rows) for rows in world.train] == [n for n in (30, 20, 10, 5) for _ in ASKED]
    assert all(len(rows) == 7 for rows in world.test)
    values = torch.tensor([[3, 6, 7, 0]])
    assert [int(answer_of(values, task)) for task in world.tasks] == [1, 0, 3, 0, 0, 6, 1, 1, 7, 0, 0, 0]
    inputs, values = source.draw(50, generator=stream(1, "draw"))
    assert inputs.shape[:1] == (50,) and values.shape == (50, 4)
    again, _ = make_world(kind, 0, sizes=(30, 20, 10, 5), test=7)
    assert torch.equal(again.train[3].inputs, world.train[3].inputs)


def test_sentences_hold_a_word_of_each_value() -> None:
    inputs, values = Source("sentences").draw(200, generator=stream(0, "s"))
    for slot in range(4):
        mine_of = (inputs >= slot * 24) & (inputs < (slot + 1) * 24)
        assert (mine_of.sum(1) == 1).all()
        assert torch.equal((inputs[mine_of] - slot * 24) // 3, values[:, slot])
    assert ((inputs >= 96).sum(1) == 8).all()


def test_likeness_of_the_whole() -> None:
    world, _ = make_world("sentences", 0, sizes=(12, 12, 12, 12), test=5)
    found = surface("sentences", world.train[0].inputs, world.train[0].inputs)
    assert torch.equal(found.argmax(1), torch.arange(12))
    digits, _ = make_world("digits", 0, sizes=(12, 12, 12, 12), test=5)
    assert torch.equal(surface("digits", digits.train[0].inputs, digits.train[0].inputs).argmax(1), torch.arange(12))


def test_the_model_answers_from_demonstrations_alone() -> None:
    model = Copier("digits", 12)
    match, said = torch.tensor([[0.9, 0.1, -0.2]]), torch.tensor([[2, 0, 2]])
    found = model.answers(match, said, 3)
    share = torch.cat([model.sharp * match, model.none.expand(1, 1)], 1).softmax(1)[0]
    torch.testing.assert_close(found[0], torch.stack([share[1], torch.zeros(()), share[0] + share[2]]) + share[3] / 3)
    torch.testing.assert_close(found.sum(1), torch.ones(1))
    renamed = model.answers(match, torch.tensor([[1, 2, 1]]), 3)
    torch.testing.assert_close(renamed[0, torch.tensor([2, 0, 1])], found[0, torch.tensor([0, 1, 2])])


def test_the_model_learns_to_copy() -> None:
    world, source = make_world("sentences", 0, sizes=(200, 200, 200, 200), test=50)
    short, longer = (train_copier("sentences", source, 0, steps=steps) for steps in (2, 300))
    one, two = (udr.accuracy(world, model, udr.own_choice(world, model), 4)["accuracy"] for model in (short, longer))
    assert two > one + 0.1
    assert not any(p.requires_grad for p in longer.parameters())


# experiment


def test_feedback_is_the_model_s_probability() -> None:
    world, source = make_world("digits", 0, sizes=(10, 10, 10, 10), test=4)
    model = train_copier("digits", source, 0, steps=2)
    for number in (0, 2):  # classes, and a value that is copied
        rows, task = world.train[number], world.tasks[number]
        found = udr.feedback(model, rows, task, number)(torch.tensor([1, 1]), torch.tensor([4, 5]))
        for place, candidate in enumerate((4, 5)):
            match = (model.vectors(rows.inputs[1], number) * model.vectors(rows.inputs[candidate], number)).sum()
            answers = model.answers(match[None, None], rows.answers[candidate][None, None], task.classes)[0]
            assert float(found[place]) == pytest.approx(float(answers[rows.answers[1]]), abs=1e-6)


def test_the_quick_experiment() -> None:
    arms = run_quick(udr.EXPERIMENT)
    assert arms["UDR"]["scored"] > arms["one iteration"]["scored"] > 0
    assert arms["model's own choice"]["accuracy"] >= arms["random"]["accuracy"] - 0.1
    assert {f"{arm}, {count} shown" for arm in ("UDR", "surface", "random") for count in udr.COUNTS} <= set(arms)


def test_iterations_grow_the_candidates() -> None:
    world, source = make_world("digits", 0, sizes=(40, 40, 40, 40), test=4)
    model = train_copier("digits", source, 0, steps=2)
    seen: list[int] = []
    recipe = udr.Recipe(steps=6, batch=8, candidates=5, listed=4)
    udr.train_retriever(
        world, model, recipe=recipe, seed=0, watch=lambda iteration, retriever, kept: seen.append(sum(candidates.calls for candidates in kept))
    )
    assert seen[0] == 12 * 40 * 5 and seen == sorted(seen) and seen[2] > seen[0]


# explorers and exercises


def test_the_shipped_models() -> None:
    measured = provenance(udr.SHOWN)["measured"]
    assert measured["UDR"] > measured["no instruction"] > 0.7


def test_the_question_stays_and_the_demonstrations_change() -> None:
    shown = explorer()
    first = shown.text
    assert "second digit, parity, demonstrations by UDR" in first
    shown.set(place="fourth")
    assert "fourth digit" in shown.text and shown.text != first
    for label in shown.presets:
        shown.preset(label)
        assert "the model says" in shown.text
    shown.set(way="pixels", shown=8, asked="copy")
    assert "of 8 have the right answer" in shown.text


def test_a_score_is_dragged() -> None:
    shown = pairs()
    assert shown.text.startswith("ranks 1, 2, 3, 4, 5, 6, 7, 8; the heaviest pair is 1 before 8")
    shown.point("press", 7.0, 1.0)
    assert shown.text.startswith("ranks 2, 3, 4, 5, 6, 7, 8, 1")
    shown.point("key", 0, 0, key="ArrowLeft")
    shown.point("key", 0, 0, key="ArrowUp")
    for label in shown.presets:
        shown.preset(label)
    assert shown.text.startswith("ranks 1, 2")
    shown.set(weight="predicted places (code)")
    assert "pulled up" in shown.text


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.question[:24])
def test_exercises(exercise) -> None:
    assert not exercise.check(None).right
    assert not exercise.check(exercise.wrong).right
    reply = exercise.check(exercise.solve())
    assert reply.right, reply


def test_places_and_properties() -> None:
    assert len(tasks_of("digits")) == len(PLACES) * len(ASKED)
