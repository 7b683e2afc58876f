"""Exercises with a check that answers at once and a solution that stays folded.

A paper's ``exercises.py`` holds ``EXERCISES``, a tuple of :class:`Exercise`; its notebook shows them by number::

    from mtlearn.pointing.pointer_networks.exercises import EXERCISES
    EXERCISES[0]                     # the question
    answer = None                    # the reader's code
    EXERCISES[0].check(answer)       # "Right: ..." or "Not yet: ..." with a hint
    EXERCISES[0].solution            # a folded box with the code and the reason
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from textwrap import dedent
from typing import Any


@dataclass(frozen=True)
class Reply:
    """The answer to an answer."""

    right: bool
    text: str

    def __repr__(self) -> str:
        return f"{'Right' if self.right else 'Not yet'}: {self.text}"


@dataclass(frozen=True)
class Folded:
    """A solution: folded in a notebook until it is opened."""

    code: str
    reason: str

    def _repr_html_(self) -> str:
        return f"<details><summary>Show a solution</summary><pre><code>{escape(self.code)}</code></pre><p>{escape(self.reason)}</p></details>"

    def __repr__(self) -> str:
        return "a folded solution; print(....solution.code) shows it"


@dataclass(frozen=True)
class Exercise:
    """A question with its check.

    Attributes:
        question: Markdown; says what type of answer is wanted.
        judge: the answer (never None) to None when it is right, else to a hint. It may raise: the error becomes the hint.
        solve: a function whose return value is a right answer; its source is what the reader is shown.
        wrong: a plausible wrong answer, which the tests hold against the check.
        reason: what a right answer shows, in a sentence or two.
    """

    question: str
    judge: Callable[[Any], str | None]
    solve: Callable[[], Any]
    wrong: Any
    reason: str

    def check(self, answer: Any) -> Reply:
        """Judge an answer: right with the reason, or not yet with a hint. It never raises."""
        if answer is None or answer is ...:
            return Reply(False, "there is no answer yet; set `answer` in the cell above and run it again.")
        try:
            hint = self.judge(answer)
        except Exception as error:
            return Reply(False, f"your answer raised {type(error).__name__}: {error}")
        return Reply(True, self.reason) if hint is None else Reply(False, hint)

    @property
    def solution(self) -> Folded:
        """The solution's code and reason, folded."""
        lines = dedent(inspect.getsource(self.solve)).splitlines()
        return Folded("\n".join(lines), self.reason)

    def _repr_markdown_(self) -> str:
        return self.question

    def __repr__(self) -> str:
        return self.question
