"""Sentence pairs with a judgement of how alike they mean: SICK 2014, SemEval STS 2012-2015, and the MSR paraphrase pairs.

    read_pairs("sts", "train")[0]    ScoredPair("the activity of learning or being trained", "the gradual process of acquiring knowledge.", 0.8)

The files are the benchmark ``sts`` (:mod:`mtlearn.datasets.benchmarks`). Scores are brought to 0 (nothing in common) to 1 (the same meaning).
Lines of the STS test file whose score is empty (that year judged a part of its pairs) are left out.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from mtlearn.datasets.benchmarks import fetch

Source = Literal["sick", "sts", "msr"]
Part = Literal["train", "validation", "test"]

# file by part, number of fields, columns of the two sentences and of the score, the scale's ends, lines of heading
_FILES: dict[str, tuple[tuple[str, str, str], int, tuple[int, int, int], tuple[float, float], int]] = {
    "sick": (("SICK_train.txt", "SICK_trial.txt", "SICK_test_annotated.txt"), 5, (1, 2, 3), (1.0, 5.0), 1),
    "sts": (("semeval-all-2015.train.tsv", "semeval-all-2015.val.tsv", "semeval-all-2015.test.tsv"), 3, (1, 2, 0), (0.0, 5.0), 0),
    "msr": (("msr-para-train.tsv", "msr-para-val.tsv", "msr-para-test.tsv"), 5, (3, 4, 0), (0.0, 1.0), 1),
}


@dataclass(frozen=True)
class ScoredPair:
    """Two sentences and how alike they mean, from 0 to 1."""

    first: str
    second: str
    score: float


def read_pairs(source: Source, part: Part) -> tuple[ScoredPair, ...]:
    """The pairs of one source and part, in the file's order.

    Args:
        source: ``sick`` (relatedness, image captions), ``sts`` (similarity, news, captions, glosses) or ``msr`` (paraphrase or not, news).
        part: of the published split.

    Raises:
        ValueError: an unknown source or part, or a line that is no such pair.
        MissingFileError: the file is not here and cannot be downloaded.
    """
    if source not in get_args(Source) or part not in get_args(Part):
        known = ", ".join(get_args(Source)), ", ".join(get_args(Part))
        raise ValueError(f"source must be one of {known[0]} and part one of {known[1]}, got {source!r} and {part!r}")
    files, fields, (first, second, score), (low, high), heading = _FILES[source]
    path = fetch("sts", files[get_args(Part).index(part)])
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if number <= heading or not line.strip():
            continue
        values = [value.strip() for value in line.split("\t")]
        if len(values) != fields:
            raise ValueError(f"{path.name}, line {number}: {fields} fields are wanted, got {len(values)}")
        if not values[score]:
            continue
        try:
            judged = float(values[score])
        except ValueError:
            raise ValueError(f"{path.name}, line {number}: the score must be a number, got {values[score]!r}") from None
        if not low <= judged <= high:
            raise ValueError(f"{path.name}, line {number}: the score must be between {low:g} and {high:g}, got {judged:g}")
        found.append(ScoredPair(values[first], values[second], (judged - low) / (high - low)))
    return tuple(found)
