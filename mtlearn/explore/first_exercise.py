"""The exercise of the notebook ``00_start_here``: reading a verdict."""

from typing import Any

from mtlearn.explore.exercises import Exercise


def _judge(answer: Any) -> str | None:
    if not isinstance(answer, str):
        return "the answer is one of the words 'holds', 'fails', 'undecided'."
    word = answer.strip().lower()
    if word not in ("holds", "fails", "undecided"):
        return "the answer is one of the words 'holds', 'fails', 'undecided'."
    if word == "holds":
        return "the mean is above the margin, but is the whole interval?"
    if word == "fails":
        return "it fails only when the whole interval lies below the margin."
    return None


def _solve() -> Any:
    # the interval [0.01, 0.05] contains the margin 0.02
    return "undecided"


EXERCISES = (
    Exercise(
        question=(
            "**1. Read a verdict.** A claim says: better by more than 0.02. The mean difference over five seeds is 0.03, "
            "its 95 % interval [0.01, 0.05]. Set `answer` to the verdict: 'holds', 'fails' or 'undecided'."
        ),
        judge=_judge,
        solve=_solve,
        wrong="holds",
        reason="the interval contains the margin, so these seeds do not decide it; more seeds would narrow the interval.",
    ),
)
