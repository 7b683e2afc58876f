"""Verdicts: the words on intervals computed by hand, and what a result holds."""

import dataclasses
import json
import math
import statistics
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from mtlearn import paths
from mtlearn.lab.experiment import Claim, Experiment, Settings
from mtlearn.lab.result import Result, Spread, check_arms, judge, recorded, student_interval, summarise, versions

# the 0.975 quantiles of Student's t with 1, 2 and 4 degrees of freedom, from any printed table
T1, T2, T4 = 12.7062, 4.3027, 2.7764


def runs(better: list[float], worse: list[float] | None = None) -> list[dict[str, dict[str, float]]]:
    return [{"a": {"m": b}, "b": {"m": w}} for b, w in zip(better, worse or [0.0] * len(better), strict=True)]


def claim(margin: float = 0.0, *, alone: bool = False, higher: bool = True) -> Claim:
    return Claim("a", None if alone else "b", "m", margin, higher, "a is better")


@pytest.mark.parametrize(
    ("better", "worse", "margin", "difference", "half", "word"),
    [
        # differences 1, 2, 3: mean 2, sd 1, half-width 4.3027 / sqrt(3) = 2.4842
        ([2, 4, 6], [1, 2, 3], 0.0, 2.0, 2.4842, "undecided"),
        ([2, 4, 6], [1, 2, 3], -0.4, 2.0, 2.4842, "undecided"),
        ([2, 4, 6], [1, 2, 3], -0.5, 2.0, 2.4842, "holds"),
        ([2, 4, 6], [1, 2, 3], 4.4, 2.0, 2.4842, "undecided"),
        ([2, 4, 6], [1, 2, 3], 4.5, 2.0, 2.4842, "fails"),
        # five pairs that differ by 0.1, 0.2, 0.3, 0.4, 0.5: mean 0.3, sd 0.15811, half-width 2.7764 * 0.15811 / sqrt(5) = 0.19632
        ([1.1, 1.2, 1.3, 1.4, 1.5], [1, 1, 1, 1, 1], 0.1, 0.3, 0.19632, "holds"),
        ([1.1, 1.2, 1.3, 1.4, 1.5], [1, 1, 1, 1, 1], 0.11, 0.3, 0.19632, "undecided"),
        # two pairs: 0 and 1, half-width 12.7062 * 0.70711 / sqrt(2) = 6.3531
        ([0, 1], [0, 0], 0.0, 0.5, 6.3531, "undecided"),
        ([0, 1], [0, 0], 7.0, 0.5, 6.3531, "fails"),
    ],
)
def test_words_on_intervals_by_hand(better, worse, margin, difference, half, word):
    verdict = judge(claim(margin), runs(better, worse))
    assert verdict.difference == pytest.approx(difference)
    assert (verdict.low, verdict.high) == (pytest.approx(difference - half, abs=1e-3), pytest.approx(difference + half, abs=1e-3))
    assert verdict.verdict == word
    assert (verdict.better, verdict.worse, verdict.metric, verdict.margin, verdict.says) == ("a", "b", "m", margin, "a is better")


def test_lower_is_better():
    # errors 1, 2, 3 beside 11, 12, 14: worse - better is 10, 10, 11
    verdict = judge(claim(9.0, higher=False), runs([1, 2, 3], [11, 12, 14]))
    half = T2 * statistics.stdev([10, 10, 11]) / math.sqrt(3)
    assert verdict.difference == pytest.approx(31 / 3) and verdict.low == pytest.approx(31 / 3 - half, abs=1e-3)
    assert verdict.verdict == "undecided"
    assert judge(claim(8.8, higher=False), runs([1, 2, 3], [11, 12, 14])).verdict == "holds"
    assert judge(claim(0.0, higher=True), runs([1, 2, 3], [11, 12, 14])).verdict == "fails"


def test_one_arm_alone_is_held_against_the_margin():
    values = [0.90, 0.92, 0.94]
    assert judge(claim(0.8, alone=True), runs(values)).verdict == "holds"
    assert judge(claim(0.9, alone=True), runs(values)).verdict == "undecided"
    assert judge(claim(1.0, alone=True), runs(values)).verdict == "fails"
    assert judge(claim(0.8, alone=True), runs(values)).difference == pytest.approx(0.92)
    # at most 1.0, where lower is better
    assert judge(claim(-1.0, alone=True, higher=False), runs(values)).verdict == "holds"
    assert judge(claim(-0.8, alone=True, higher=False), runs(values)).verdict == "fails"
    # the other arm need not be there
    assert judge(claim(0.8, alone=True), [{"a": {"m": 0.9}}] * 2).verdict == "holds"


def test_a_single_seed_decides_nothing():
    verdict = judge(claim(0.0), runs([100.0], [0.0]))
    assert (verdict.difference, verdict.low, verdict.high, verdict.verdict) == (100.0, None, None, "undecided")


@pytest.mark.parametrize(("margin", "word"), [(0.05, "holds"), (0.1, "undecided"), (0.2, "fails")])
def test_no_variance_is_a_point(margin: float, word: str):
    verdict = judge(claim(margin), runs([0.1, 0.1, 0.1]))
    assert (verdict.difference, verdict.low, verdict.high, verdict.verdict) == (0.1, 0.1, 0.1, word)


def test_pairing_takes_out_what_the_seeds_share():
    shared = [0.0, 10.0, -20.0, 35.0, 2.0]
    noise = [0.1, -0.1, 0.05, 0.0, -0.05]
    better = [s + 1 + n for s, n in zip(shared, noise, strict=True)]
    assert judge(claim(0.5), runs(better, shared)).verdict == "holds"


VALUES = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 3)), min_size=2, max_size=8)


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_the_interval_is_scipys(values: list[float]):
    assume(statistics.stdev(values) > 1e-3)
    mean, low, high = student_interval(values)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert mean == pytest.approx(statistics.fmean(values))
    assert (low, high) == (pytest.approx(theirs.low, rel=1e-6, abs=1e-6), pytest.approx(theirs.high, rel=1e-6, abs=1e-6))


@settings(max_examples=40, deadline=None)
@given(VALUES, st.floats(-1e6, 1e6))
def test_a_shift_of_all_differences_shifts_the_interval(values: list[float], shift: float):
    verdict, shifted = judge(claim(), runs(values)), judge(claim(), runs([v + shift for v in values]))
    assert shifted.difference == pytest.approx(verdict.difference + shift, abs=1e-6)
    assert shifted.low == pytest.approx(verdict.low + shift, abs=1e-5)
    assert shifted.high == pytest.approx(verdict.high + shift, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(VALUES, st.floats(-2e3, 2e3), st.floats(-2e3, 2e3))
def test_a_higher_margin_never_makes_a_claim_truer(values: list[float], one: float, two: float):
    order = {"fails": 0, "undecided": 1, "holds": 2}
    words = [order[judge(claim(margin), runs(values)).verdict] for margin in sorted((one, two))]
    assert words == sorted(words, reverse=True)


@settings(max_examples=40, deadline=None)
@given(VALUES, VALUES, st.floats(-10, 10))
def test_swapping_the_arms_swaps_the_words(better: list[float], worse: list[float], margin: float):
    size = min(len(better), len(worse))
    there, back = judge(claim(margin), runs(better[:size], worse[:size])), judge(claim(-margin, higher=False), runs(better[:size], worse[:size]))
    assert {"holds": "fails", "fails": "holds", "undecided": "undecided"}[there.verdict] == back.verdict


@settings(max_examples=40, deadline=None)
@given(st.floats(0.1, 1e6), st.integers(2, 6))
def test_values_that_differ_in_the_last_digit_give_no_warning(value: float, count: int):
    values = [value] * count + [math.nextafter(value, math.inf)]
    mean, low, high = student_interval(values)
    assert low <= mean <= high


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (Claim("c", "b", "m"), "the claim names an arm 'c'; the run measured a, b"),
        (Claim("a", "c", "m"), "the claim names an arm 'c'; the run measured a, b"),
        (Claim("a", "b", "n"), "the claim names a metric 'n'; arm 'a' has m"),
    ],
)
def test_a_claim_about_what_was_not_measured(of: Claim, message: str):
    with pytest.raises(ValueError, match=message):
        judge(of, runs([1.0, 2.0]))


def test_no_finished_seed():
    with pytest.raises(ValueError, match="a verdict needs at least one finished seed"):
        judge(claim(), [])


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (None, r"run must return \{arm: \{metric: value\}\}, got NoneType"),
        ({}, "run must return .* got dict"),
        ([("a", 1)], "run must return .* got list"),
        ({"a": {}}, "arm 'a' must be a mapping of metrics, got dict"),
        ({"a": 1.0}, "arm 'a' must be a mapping of metrics, got float"),
        ({"a": {"m": math.nan}}, "metric 'm' of arm 'a' must be a finite number, got nan"),
        ({"a": {"m": -math.inf}}, "metric 'm' of arm 'a' must be a finite number, got -inf"),
        ({"a": {"m": "1"}}, "metric 'm' of arm 'a' must be a finite number, got '1'"),
        ({"a": {"m": None}}, "metric 'm' of arm 'a' must be a finite number, got None"),
    ],
)
def test_what_run_must_return(arms, message: str):
    with pytest.raises(ValueError, match=message):
        check_arms(arms)


def test_numbers_of_any_kind_become_floats():
    import numpy as np
    import torch

    arms = check_arms({"a": {"int": 1, "numpy": np.float32(0.5), "torch": torch.tensor(0.25), "bool": True}})
    assert arms == {"a": {"int": 1.0, "numpy": 0.5, "torch": 0.25, "bool": 1.0}}
    assert {type(value) for value in arms["a"].values()} == {float}


def test_spread():
    assert Spread.of([1.0, 2.0, 3.0]) == Spread(2.0, 1.0, (1.0, 2.0, 3.0))
    assert Spread.of([5.0]) == Spread(5.0, 0.0, (5.0,))


EXPERIMENT = Experiment(
    paper="toy",
    question="Is it?",
    scales={"quick": Settings(2)},
    claims=(Claim("a", "b", "m", says="a is"), Claim("a", None, "m", 0.5)),
    run=lambda settings, seed, device: {},
    units={"m": "share"},
    pairs="test sets of one shipped model",
)


@pytest.fixture
def result() -> Result:
    measured = [({"a": {"m": 1.0, "n": 2.0}, "b": {"m": 0.25}}, 1.5), ({"a": {"m": 3.0, "n": 2.0}, "b": {"m": 0.5}}, 2.25)]
    return summarise(EXPERIMENT, "quick", Settings(2), measured)


def test_a_result_holds_everything(result: Result):
    assert (result.paper, result.scale, result.seeds, result.seconds, result.question) == ("toy", "quick", 2, 3.75, "Is it?")
    assert result.arms == {
        "a": {"m": Spread(2.0, math.sqrt(2), (1.0, 3.0)), "n": Spread(2.0, 0.0, (2.0, 2.0))},
        "b": {"m": Spread(0.375, math.sqrt(0.03125), (0.25, 0.5))},
    }
    assert [(c.worse, c.difference, c.margin, c.says) for c in result.claims] == [("b", 1.625, 0.0, "a is"), (None, 2.0, 0.5, "")]
    assert result.pairs == "test sets of one shipped model" and result.units == {"m": "share"} and result.versions == versions()
    assert result.command == "mtlearn run toy --scale quick --seeds 2 --fresh"


def test_json_is_the_documented_object_and_comes_back(result: Result):
    found = json.loads(result.to_json())
    assert {"paper", "scale", "seeds", "seconds", "arms", "claims"} <= set(found)
    assert set(found["arms"]["a"]["m"]) == {"mean", "sd", "values"}
    assert {"better", "worse", "metric", "margin", "difference", "low", "high", "verdict"} <= set(found["claims"][0])
    assert Result.from_json(result.to_json()) == result


def test_a_seed_that_lacks_a_metric_is_told():
    with pytest.raises(ValueError, match="metric 'm'; arm 'a' has n"):
        summarise(EXPERIMENT, "quick", Settings(2), [({"a": {"m": 1.0}, "b": {"m": 1.0}}, 1.0), ({"a": {"n": 1.0}, "b": {"m": 1.0}}, 1.0)])


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"arms": []}', '{"arms": {}, "claims": [{"better": "a"}]}', '{"arms": {}, "claims": [], "paper": "x", "more": 1}']
)
def test_what_is_no_result(text: str):
    with pytest.raises(ValueError, match="this is not a result of `mtlearn run --json`"):
        Result.from_json(text)


def test_recorded(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    path = tmp_path / "data" / "results" / "toy.json"
    with pytest.raises(LookupError, match=f"no recorded result for 'toy': `mtlearn run toy --scale laptop --json > {path}` makes one"):
        recorded("toy")
    path.parent.mkdir(parents=True)
    path.write_text(result.to_json())
    assert recorded("toy") == result
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{path}: this is not a result"):
        recorded("toy")


@dataclasses.dataclass(frozen=True)
class Nested(Settings):
    sizes: tuple[tuple[int, int], ...] = ((1, 2),)
    name: str = "x"


def test_settings_are_what_json_gives_back():
    values = Nested(3).as_dict()
    assert values == {"sizes": [[1, 2]], "name": "x"} == json.loads(json.dumps(values))
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        Nested(0)
