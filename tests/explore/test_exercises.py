"""Exercises: a check that answers at once and never raises, and a solution that stays folded."""

from collections.abc import Callable

import pytest

from mtlearn.explore import Exercise
from mtlearn.explore.first_exercise import EXERCISES as FIRST


def judge(answer: Callable[[int], int]) -> str | None:
    return None if [answer(n) for n in (0, 1, 5)] == [0, 1, 25] else "try <3>: its square is 9."


def solve() -> Callable[[int], int]:
    # each number < 10 times itself
    return lambda n: n * n


EXERCISE = Exercise("**1.** Write *f* with f(n) = n².", judge, solve, lambda n: 2 * n, "a square & nothing else.")


@pytest.mark.parametrize("answer", [None, ...])
def test_no_answer_yet(answer: object):
    reply = EXERCISE.check(answer)
    assert not reply.right and repr(reply) == "Not yet: there is no answer yet; set `answer` in the cell above and run it again."


def test_right_and_wrong():
    assert EXERCISE.check(EXERCISE.solve()).right
    assert repr(EXERCISE.check(lambda n: n**2)) == "Right: a square & nothing else."
    assert repr(EXERCISE.check(EXERCISE.wrong)) == "Not yet: try <3>: its square is 9."


@pytest.mark.parametrize(
    ("answer", "error"), [(5, "TypeError: 'int' object is not callable"), (lambda n: n / 0, "ZeroDivisionError: division by zero")]
)
def test_an_answer_that_raises_is_a_hint(answer: object, error: str):
    assert repr(EXERCISE.check(answer)) == f"Not yet: your answer raised {error}"


def test_a_falsy_answer_is_an_answer():
    zero = Exercise("What is 1 - 1?", lambda answer: None if answer == 0 else "count again.", lambda: 0, 1, "nothing is left.")
    assert zero.check(0).right and zero.check(0.0).right and not zero.check("").right


def test_an_array_is_an_answer():
    import torch

    ones = Exercise(
        "Ones?", lambda answer: None if bool((answer == 1).all()) else "look again.", lambda: torch.ones(2), torch.zeros(2), "all are one."
    )
    assert ones.check(torch.ones(2)).right and not ones.check(torch.zeros(2)).right


def test_the_solution_is_folded_and_escaped():
    folded = EXERCISE.solution
    assert folded.code == "def solve() -> Callable[[int], int]:\n    # each number < 10 times itself\n    return lambda n: n * n"
    html = folded._repr_html_()
    assert html.startswith("<details><summary>") and html.endswith("</details>") and " open" not in html
    assert "number &lt; 10" in html and "a square &amp; nothing else." in html
    assert folded.code not in repr(folded)


def test_a_solution_inside_something_is_dedented():
    def inner() -> int:
        return 1

    assert Exercise("?", lambda _: None, inner, 2, "").solution.code == "def inner() -> int:\n    return 1"


def test_the_question_is_markdown():
    assert EXERCISE._repr_markdown_() == repr(EXERCISE) == EXERCISE.question


@pytest.mark.parametrize("exercise", FIRST)
def test_the_first_exercise(exercise: Exercise):
    assert exercise.check(exercise.solve()).right
    assert not exercise.check(exercise.wrong).right and not exercise.check(None).right
    assert exercise.check(" Undecided ").right
    for answer, hint in (("fails", "whole interval"), ("holds", "whole interval"), ("perhaps", "one of the words"), (0.03, "one of the words")):
        reply = exercise.check(answer)
        assert not reply.right and hint in reply.text
