"""The command: what it prints for people and for programs, its exit status, and its one line on stderr when something is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import toy_experiment

from mtlearn import cli, papers, paths
from mtlearn.datasets import benchmarks
from mtlearn.lab import runner
from mtlearn.lab.result import Result
from mtlearn.lab.store import StoreError

DRIVER = """
import sys
sys.path.insert(0, {tests!r})
import pathlib, runpy, toy_experiment
toy_experiment.install(pathlib.Path({root!r}))
sys.argv[0] = "mtlearn"
runpy.run_module("mtlearn", run_name="__main__", alter_sys=False)
"""


class Answer(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def mtlearn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Call the command in this process."""

    def call(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["mtlearn", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        code = left.value.code
        assert code is None or isinstance(code, int)
        return Answer(code or 0, *capsys.readouterr())

    return call


def error(answer: Answer, status: int) -> str:
    """The one line on stderr of a call that went wrong."""
    assert answer.status == status, answer
    (line,) = answer.err.splitlines()
    assert line.startswith("error: ")
    return line


def started(root: Path, *words: object) -> subprocess.Popen[str]:
    """Start the command in a process group of its own, with the catalogue of ``root``."""
    code = DRIVER.format(tests=str(Path(__file__).parent), root=str(root))
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""},
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> Answer:
    out, err = process.communicate(timeout=300)
    return Answer(process.returncode, out, err)


# --- the catalogue


def test_the_catalogue_is_light():
    code = (
        "import sys, mtlearn; from mtlearn.cli import main; sys.argv = ['mtlearn', 'papers', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit as left: status = left.code\n"
        "print('loaded', status, [m for m in ('torch', 'numpy', 'matplotlib', 'scipy', 'pandas', 'ipywidgets') if m in sys.modules])"
    )
    for words in ([], ["--json"]):
        said = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        assert said.stdout.splitlines()[-1].replace("None", "0") == "loaded 0 []" and said.stderr == ""


def test_papers_for_people(mtlearn: Command):
    answer = mtlearn("papers")
    assert answer.status == 0 and answer.err == ""
    for row in papers.papers():
        assert re.search(rf"\b{row.slug}\b", answer.out), row.slug
    assert "M method, E experiment, X explorer, N notebook, T tests" in answer.out
    (line,) = [line for line in answer.out.splitlines() if " pointer_networks " in line]
    assert "Pointer Networks" in line and "2015" in line and "MEX" in line
    assert "tall_masks" not in mtlearn("papers", "--chapter", "pointing").out


def test_papers_for_programs(mtlearn: Command):
    rows = json.loads(mtlearn("papers", "--json").out)
    assert len(rows) == 68
    for row in rows:
        assert list(row) == ["slug", "title", "chapter", "year", "arxiv", "method", "experiment", "explorer", "notebook", "tests"]
        for part in ("method", "experiment", "explorer", "notebook", "tests"):
            assert row[part] is None or (paths.PACKAGE.parent / row[part]).is_file()
    assert rows[0]["slug"] == "pointer_networks" and rows[0]["method"] == "mtlearn/pointing/pointer_networks/method.py"
    assert [row["slug"] for row in json.loads(mtlearn("papers", "--chapter", "pointing", "--json").out)] == [row["slug"] for row in rows[:3]]


def test_show(mtlearn: Command, toy_root: Path):
    answer = mtlearn("show", "toy")
    assert answer.status == 0
    for words in (
        "A Toy & its line",
        "Ada Lovelace, Blaise Pascal. Journal of Toys 2020. https://arxiv.org/abs/2001.00001",
        "Fit a line <and [be] done>.",
    ):
        assert words in answer.out
    assert re.search(r"method +mtlearn/toys/toy/method\.py\n", answer.out) and re.search(r"notebook +-\n", answer.out)
    assert "arxiv" not in mtlearn("show", "toy_two").out and "verdict" not in answer.out
    record(mtlearn, toy_root)
    shown = mtlearn("show", "toy").out
    assert "Training [a line] <lowers> the loss by more than 0.1." in shown and "holds" in shown and "mtlearn run toy --scale quick" in shown


def record(mtlearn: Command, root: Path) -> Path:
    """Record the laptop result of the toy, as `mtlearn run toy --scale laptop --json` prints it."""
    path = root / "data" / "results" / "toy.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(mtlearn("run", "toy", "--json", "--jobs", 1).out)
    return path


# --- wrong use


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["show", "pointer_netwroks"], 2, "there is no paper 'pointer_netwroks': did you mean pointer_networks?; `mtlearn papers` lists all 68"),
        (["run", "tall_mask"], 2, "there is no paper 'tall_mask': did you mean tall_masks?; `mtlearn papers` lists all 68"),
        (["reproduce", "pointer_networks", "tall_mask"], 2, "there is no paper 'tall_mask': did you mean tall_masks?"),
        (["papers", "--chapter", "mergin"], 2, "there is no chapter 'mergin': did you mean merging?"),
        (["reproduce", "--chapter", "mergin"], 2, "there is no chapter 'mergin'"),
        (["new", "pointing", "nobody"], 2, "there is no paper 'nobody'"),
        (["run", "lama"], 1, "lama has no experiment yet (mtlearn/attention/lama/experiment.py)"),
        (["run"], 2, "Missing argument 'paper'"),
        (["run", "pointer_networks", "--seeds", "0"], 2, "Invalid value for '--seeds'"),
        (["run", "pointer_networks", "--jobs", "many"], 2, "Invalid value for '--jobs'"),
        (["run", "pointer_networks", "--sclae", "quick"], 2, "No such option: --sclae"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
    ],
)
def test_wrong_use_is_told_in_one_line(words: list[str], status: int, message: str, mtlearn: Command):
    line = error(mtlearn(*words), status)
    assert message in line, line


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["run", "toy", "--scale", "huge"], 2, "scale must be one of quick, laptop, paper, got 'huge'"),
        (["run", "toy", "--scale", "paper"], 2, "toy has no scale 'paper'; it has quick, laptop"),
        (["run", "toy", "--device", "gpu"], 2, "device 'gpu' cannot be used"),
        (
            ["run", "toy", "--scale", "quick", "--check"],
            2,
            "--check compares with the recorded laptop results, so it needs --scale laptop, got quick",
        ),
        (["run", "toy", "--check"], 2, "no recorded result for 'toy': `mtlearn run toy --scale laptop --json > "),
        (["run", "toy_unwritten"], 1, "toy_unwritten has no experiment yet"),
        (["reproduce", "toy", "--tour"], 2, "give paper names, --chapter or --tour, one of them"),
        (["reproduce", "--chapter", "toys", "--tour"], 2, "give paper names, --chapter or --tour, one of them"),
        (["reproduce", "--tour"], 2, "no paper of the catalogue has an experiment with a recorded result yet"),
        (["show", "toys"], 2, "there is no paper 'toys': did you mean toy"),
        (["checkpoints", "make", "toy-lin"], 2, "there is no checkpoint 'toy-lin': did you mean toy-line?"),
        (["checkpoints", "make", "zzz"], 2, "there is no checkpoint 'zzz'; the checkpoints are toy-line"),
        (["checkpoints", "list"], 1, "toy-line.json is missing; `mtlearn checkpoints make toy-line` makes it again"),
        (["lab", "now"], 2, "unexpected extra argument"),
    ],
)
def test_wrong_use_of_the_toys(words: list[str], status: int, message: str, mtlearn: Command, toy_root: Path):
    line = error(mtlearn(*words), status)
    assert message in line, line
    assert not (toy_root.parent / "results").exists()


@pytest.mark.parametrize("words", [[], ["data"], ["checkpoints"]])
def test_without_a_command_the_help_is_shown(words: list[str], mtlearn: Command):
    answer = mtlearn(*words)
    assert answer.status == 2 and "error" not in answer.err and "Usage:" in answer.out + answer.err
    assert mtlearn(*words, "--help").status == 0


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (ValueError("wrong\n  in two lines"), 2, "error: wrong in two lines"),
        (LookupError("not there"), 2, "error: not there"),
        (RuntimeError("broken"), 1, "error: broken"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device"),
        (ConnectionError("nobody"), 1, "error: nobody"),
        (StoreError("cannot write"), 1, "error: cannot write"),
        (ArithmeticError("the loss is nan"), 1, "error: ArithmeticError: the loss is nan; MTLEARN_TRACEBACK=1 shows where"),
        (KeyError("x"), 1, "error: KeyError: 'x'; MTLEARN_TRACEBACK=1 shows where"),
        (ModuleNotFoundError("No module named 'x'"), 1, "error: ModuleNotFoundError: No module named 'x'; MTLEARN_TRACEBACK=1 shows where"),
    ],
)
def test_every_error_is_one_line(raised: Exception, status: int, line: str, mtlearn: Command, monkeypatch: pytest.MonkeyPatch):
    def raises(_: object) -> None:
        raise raised

    monkeypatch.setattr(papers, "papers", raises)
    assert error(mtlearn("papers"), status) == line
    monkeypatch.setenv("MTLEARN_TRACEBACK", "1")
    answer = mtlearn("papers")
    assert answer.status == status and "Traceback" in answer.err and answer.err.splitlines()[-1] == line


# --- running


def test_run_for_programs(mtlearn: Command, toy_root: Path):
    answer = mtlearn("run", "toy", "--scale", "quick", "--seeds", 2, "--json")
    assert answer.status == 0 and answer.err == ""
    found = json.loads(answer.out)
    assert (found["paper"], found["scale"], found["seeds"]) == ("toy", "quick", 2) and found["seconds"] >= 0
    assert set(found["arms"]) == {"trained", "untrained"} and set(found["arms"]["trained"]) == {"loss", "luck"}
    for metrics in found["arms"].values():
        for spread in metrics.values():
            assert set(spread) == {"mean", "sd", "values"} and len(spread["values"]) == 2
            assert spread["mean"] == pytest.approx(sum(spread["values"]) / 2)
    for told, claim in zip(found["claims"], toy_experiment.CLAIMS, strict=True):
        assert {"better", "worse", "metric", "margin", "difference", "low", "high", "verdict"} <= set(told)
        assert (told["better"], told["worse"], told["metric"], told["margin"]) == (claim.better, claim.worse, claim.metric, claim.margin)
        assert told["verdict"] in ("holds", "fails", "undecided")
    assert Result.from_json(answer.out).settings["steps"] == 20
    again = mtlearn("run", "toy", "--scale", "quick", "--seeds", 2, "--json")
    assert again.out == answer.out and again.err == "2 of 2 seeds were in the store already; --fresh runs them again\n"


def test_run_for_people(mtlearn: Command, toy_root: Path, tmp_path: Path):
    store = tmp_path / "elsewhere"
    answer = mtlearn("run", "toy", "--scale", "quick", "--store", store)
    assert answer.status == 0 and answer.err == ""
    for words in (
        "Training [a line] <lowers> the loss by more than 0.1.",
        "Luck is above 9.",
        "trained vs untrained on luck",
        "holds",
        "fails",
        "margin",
    ):
        assert words in answer.out
    assert [path.name for path in store.iterdir()] == ["toy-quick.jsonl"] and not (tmp_path / "results").exists()
    answer = mtlearn("run", "toy", "--scale", "quick", "--store", store, "--fresh")
    assert answer.err == "note: toy-quick.jsonl is kept aside as toy-quick.old.jsonl: as asked\n"
    assert sorted(path.name for path in store.iterdir()) == ["toy-quick.jsonl", "toy-quick.old.jsonl"]


def test_a_bar_on_a_terminal(mtlearn: Command, toy_root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    answer = mtlearn("run", "toy", "--scale", "quick", "--json")
    assert "toy, seed 2" in answer.err and "3/3" in answer.err
    assert json.loads(answer.out)["seeds"] == 3


def test_the_verdicts_are_checked_against_the_recorded(mtlearn: Command, toy_root: Path):
    path = record(mtlearn, toy_root)
    assert mtlearn("run", "toy", "--check", "--jobs", 1).status == 0
    found = Result.from_json(path.read_text())
    assert found.claims[0].verdict == "holds"
    path.write_text(replace(found, claims=(replace(found.claims[0], verdict="undecided", difference=0.0), *found.claims[1:])).to_json())
    answer = mtlearn("run", "toy", "--check", "--jobs", 1)
    assert error(Answer(answer.status, "", "".join(answer.err.splitlines(keepends=True)[1:])), 1) == (
        "error: toy: Training [a line] <lowers> the loss by more than 0.1.: holds now, undecided as recorded"
    )
    assert "holds" in answer.out, "the verdicts are printed all the same"
    path.write_text(replace(found, claims=found.claims[:1]).to_json())
    answer = mtlearn("run", "toy", "--check", "--jobs", 1)
    assert (
        answer.status == 1
        and "toy: its claims are not the recorded ones; record them anew with `mtlearn run toy --scale laptop --json`" in answer.err
    )


def test_a_seed_that_breaks(mtlearn: Command, toy_root: Path, monkeypatch: pytest.MonkeyPatch):
    toy_experiment.lay_out(toy_root, breaks=(1,))
    answer = mtlearn("run", "toy", "--scale", "quick", "--json")
    assert error(answer, 1) == "error: toy, seed 1: RuntimeError: seed 1 is broken"
    assert json.loads(answer.out)["seeds"] == 2
    monkeypatch.setenv("MTLEARN_TRACEBACK", "1")
    answer = mtlearn("run", "toy", "--scale", "quick")
    assert answer.status == 1 and 'raise RuntimeError(f"seed {seed}' in answer.err and "Luck is above 9." in answer.out


def test_no_seed_that_ends(mtlearn: Command, toy_root: Path):
    toy_experiment.lay_out(toy_root, breaks=(0, 1, 2))
    answer = mtlearn("run", "toy", "--scale", "quick", "--json")
    assert answer.status == 1 and answer.out == "" and len(answer.err.splitlines()) == 3


def test_reproduce_and_its_report(mtlearn: Command, toy_root: Path, tmp_path: Path):
    answer = mtlearn("reproduce", "toy_two", "toy", "toy", "--scale", "quick", "--output", tmp_path / "page")
    assert answer.status == 0 and answer.out.count("Luck is above 9.") == 2
    assert f"report: {tmp_path / 'page' / 'index.html'}" in answer.out
    text = (tmp_path / "page" / "index.html").read_text()
    assert "2 of 3 papers have results here" in text and "A Second Toy" in text
    answer = mtlearn("reproduce", "--chapter", "toys", "--scale", "quick")
    assert answer.status == 0 and "6 of 6 seeds were in the store already" in answer.err and Path("report/index.html").is_file()


def test_reproduce_runs_every_paper_that_has_an_experiment(mtlearn: Command, toy_root: Path, monkeypatch: pytest.MonkeyPatch):
    ran = []

    def run(experiments: object, *_: object, **__: object) -> runner.Outcome:
        ran.extend(experiment.paper for experiment in experiments)
        return runner.Outcome((), (), ())

    monkeypatch.setattr(runner, "run", run)
    assert mtlearn("reproduce").status == 0 and ran == ["toy", "toy_two"]


def test_the_tour_shows_the_leading_claim_of_each_finished_chapter(mtlearn: Command, toy_root: Path):
    record(mtlearn, toy_root)
    answer = mtlearn("reproduce", "--tour")
    assert answer.status == 0
    assert "Training [a line] <lowers>" in answer.out and "Luck is above 9." not in answer.out and "toy_two" not in answer.out
    assert "next: `make lab` opens" in answer.out
    text = Path("report/index.html").read_text()
    assert "Laptop scale, as recorded" in text and "Quick scale, run here" in text


def test_report_of_what_is_stored(mtlearn: Command, toy_root: Path, tmp_path: Path):
    mtlearn("run", "toy", "--scale", "quick")
    mtlearn("run", "toy_two", "--scale", "quick")
    toy_experiment.lay_out(toy_root, rate=0.3)
    (toy_root / "mtlearn/toys/toy_two/experiment.py").write_text("import toy_experiment\nEXPERIMENT = toy_experiment.experiment('toy_two')\n")
    toy_experiment.install(toy_root, lambda *_: None)  # the modules are read again
    before = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    answer = mtlearn("report", "--output", tmp_path / "page")
    assert answer.status == 0 and answer.out == f"report: {tmp_path / 'page' / 'index.html'}\n"
    (line,) = answer.err.splitlines()
    assert line.startswith("note: left out: ") and "rate 0.1 there, 0.3 now" in line
    assert "1 of 3 papers have results here" in (tmp_path / "page" / "index.html").read_text()
    assert {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()} == before


@pytest.mark.parametrize(
    ("damage", "status", "message"),
    [
        (lambda text: "", 1, "its first line is not that of a results file; move it away, or start anew with --fresh"),
        (lambda text: text[40:], 1, "its first line is not that of a results file"),
        (
            lambda text: text.replace('"rate": 0.1', '"rate": 0.7'),
            1,
            "holds seeds of other settings (rate 0.7 there, 0.1 now); --fresh starts anew and keeps that file aside",
        ),
        (lambda text: text[:-20], 0, "note: "),
        (lambda text: text.replace('"code": "', '"code": "0'), 0, "note: toy-quick.jsonl is kept aside as toy-quick.stale.jsonl"),
    ],
)
def test_a_damaged_store(damage: Callable[[str], str], status: int, message: str, mtlearn: Command, toy_root: Path, tmp_path: Path):
    first = mtlearn("run", "toy", "--scale", "quick", "--json")
    path = tmp_path / "results" / "toy-quick.jsonl"
    path.write_text(damage(path.read_text()))
    broken = path.read_bytes()
    answer = mtlearn("run", "toy", "--scale", "quick", "--json")
    if status:
        assert message in error(answer, status)
        assert path.read_bytes() == broken
        answer = mtlearn("run", "toy", "--scale", "quick", "--json", "--fresh")
    assert answer.status == 0
    assert status or message in answer.err
    arms = [json.loads(found.out)["arms"] for found in (first, answer)]
    assert arms[0] == arms[1]
    assert any(other.read_bytes() == broken for other in path.parent.iterdir() if other != path), "nothing is lost"


def test_a_wrong_dask_address(mtlearn: Command, toy_root: Path):
    """With the time the command itself gives a scheduler."""
    pytest.importorskip("distributed")
    line = error(mtlearn("run", "toy", "--scale", "quick", "--dask", "tcp://127.0.0.1:1"), 1)
    assert "no Dask scheduler answers at 'tcp://127.0.0.1:1'" in line and "start one with `dask scheduler`" in line
    assert runner.DASK_TIMEOUT <= 5
    assert not (toy_root.parent / "results").exists()


def test_ctrl_c_is_told_in_one_line(mtlearn: Command, toy_root: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupt)
    answer = mtlearn("run", "toy", "--scale", "quick")
    assert answer == Answer(130, "", "interrupted: finished seeds are kept, the same command goes on from there\n")
    monkeypatch.setattr(papers, "paper", interrupt)  # before anything runs
    assert mtlearn("show", "toy").status == 130


@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups to signal")
@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_keeps_what_is_done_and_goes_on_from_there(jobs: int, mtlearn: Command, toy_root: Path, tmp_path: Path):
    gate, witness, store = tmp_path / "gate", tmp_path / "witness", tmp_path / "results"
    toy_experiment.lay_out(toy_root, gate=str(gate), witness=str(witness), free=2, steps=0)
    command = ("run", "toy", "--scale", "quick", "--jobs", jobs, "--store", store, "--json")
    path = store / "toy-quick.jsonl"
    process = started(toy_root, *command)
    # the third seed waits for the gate; the first two are written
    while process.poll() is None and not (path.exists() and path.read_text().count("\n") == 3 and witness.read_text().count("\n") == 3):
        time.sleep(0.05)
    assert process.poll() is None, ended(process)
    os.killpg(process.pid, signal.SIGINT)
    answer = ended(process)
    assert answer.status == 130 and answer.out == ""
    assert answer.err == "interrupted: finished seeds are kept, the same command goes on from there\n"
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()[1:]] in ([0, 1], [1, 0])
    assert [other.name for other in store.iterdir()] == [path.name]
    gate.touch()
    witness.write_text("")
    answer = mtlearn(*command)
    assert answer.status == 0 and json.loads(answer.out)["seeds"] == 3
    assert answer.err == "2 of 3 seeds were in the store already; --fresh runs them again\n"
    assert witness.read_text() == "2\n"


def test_a_disk_that_is_really_full(mtlearn: Command, toy_root: Path, tmp_path: Path):
    resource = pytest.importorskip("resource")
    whole = mtlearn("run", "toy", "--scale", "quick", "--store", tmp_path / "whole", "--json")
    rows = (tmp_path / "whole" / "toy-quick.jsonl").read_text().splitlines(keepends=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # a file may grow until the first line and two seeds fit, not three
    resource.setrlimit(resource.RLIMIT_FSIZE, (len("".join(rows[:3])) + len(rows[3]) // 2, hard))
    try:
        answer = mtlearn("run", "toy", "--scale", "quick", "--json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    path = tmp_path / "results" / "toy-quick.jsonl"
    assert error(answer, 1) == f"error: cannot write {path}: File too large; what it held before is kept" and answer.out == ""
    assert [json.loads(row)["seed"] for row in path.read_text().splitlines()[1:]] == [0, 1]
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    answer = mtlearn("run", "toy", "--scale", "quick", "--json")
    assert answer.err.startswith("2 of 3 seeds were in the store already") and json.loads(answer.out)["arms"] == json.loads(whole.out)["arms"]


# --- checkpoints, notebooks, new papers


def test_checkpoints(mtlearn: Command, toy_root: Path):
    found = json.loads(mtlearn("checkpoints", "make", "toy-line").out)
    assert found["name"] == "toy-line" and (toy_root / "data/checkpoints/toy-line.safetensors").stat().st_size == found["bytes"]
    answer = mtlearn("checkpoints", "list")
    assert answer.status == 0 and re.search(rf"toy-line +{found['bytes']:,} +{found['cpu_seconds']} +weights [\d.]+", answer.out)


def test_lab(mtlearn: Command, toy_root: Path, monkeypatch: pytest.MonkeyPatch):
    called = []
    monkeypatch.setattr(subprocess, "call", lambda command: called.append(command) or 7)
    monkeypatch.setattr(os, "geteuid", lambda: 1000, raising=False)
    assert mtlearn("lab").status == 7
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert mtlearn("lab").status == 7
    start = str(toy_root / "notebooks" / "00_start_here.ipynb")
    assert called == [[sys.executable, "-m", "jupyter", "lab", start], [sys.executable, "-m", "jupyter", "lab", start, "--allow-root"]]
    monkeypatch.setattr(paths, "root", lambda: None)
    assert "the notebooks are part of the source" in error(mtlearn("lab"), 1)


def test_new(mtlearn: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mtlearn").mkdir()
    (tmp_path / "mtlearn" / "papers.toml").write_bytes((paths.PACKAGE / "papers.toml").read_bytes())
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    answer = mtlearn("new", "merging", "tall_masks")
    written = [line.removeprefix("wrote ") for line in answer.out.splitlines()]
    assert answer.status == 0 and "mtlearn/merging/tall_masks/method.py" in written
    assert all((tmp_path / name).is_file() for name in written)
    assert "tall_masks is begun already" in error(mtlearn("new", "merging", "tall_masks"), 2)
    monkeypatch.setattr(paths, "root", lambda: None)
    assert "writes into a checkout of the repository" in error(mtlearn("new", "merging", "dse"), 2)


# --- benchmark files


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's own with the dataset ``greetings``: one file right, one missing that nobody gives."""
    import hashlib

    digest = hashlib.sha256(b"hello").hexdigest()
    rows = (
        benchmarks.BenchmarkFile("hello.txt", "https://a/hello.txt", 5, digest),
        benchmarks.BenchmarkFile("all.zip", "", 9, "0" * 64, "packed [by] hand"),
    )
    more = benchmarks.Benchmark("other", "Another.", "CC BY", (benchmarks.BenchmarkFile("x.txt", "https://a/x.txt", 1234567, digest),))
    monkeypatch.setattr(benchmarks, "_table", lambda: {"greetings": benchmarks.Benchmark("greetings", "Hello.", "CC0", rows), "other": more})
    monkeypatch.setenv("MTLEARN_DATA", str(tmp_path / "own"))
    monkeypatch.setenv("MTLEARN_CACHE", str(tmp_path / "cache"))
    for name, file in (("greetings", "hello.txt"), ("other", "x.txt")):
        (tmp_path / "own" / name).mkdir(parents=True)
        (tmp_path / "own" / name / file).write_bytes(b"hello")
    return tmp_path / "own"


def test_data_list(files: Path, mtlearn: Command):
    (files / "other" / "x.txt").unlink()
    answer = mtlearn("data", "list")
    assert answer.status == 0
    rows = [line.split(maxsplit=5) for line in answer.out.splitlines()]
    assert ["greetings", "hello.txt", "5", "CC0", "2cf24dba5fb0", str(files / "greetings" / "hello.txt")] in [
        [part.strip() for part in row] for row in rows
    ]
    assert "- packed [by] hand" in answer.out and "1,234,567" in answer.out and "- https://a/x.txt" in answer.out


def test_data_list_of_the_real_table(mtlearn: Command):
    answer = mtlearn("data", "list")
    for name in benchmarks.names():
        row = benchmarks.benchmark(name)
        assert name in answer.out and row.licence in answer.out
        assert all(file.name in answer.out and file.sha256[:12] in answer.out for file in row.files)


def test_data_verify(files: Path, mtlearn: Command):
    answer = mtlearn("data", "verify")
    assert answer == Answer(
        0, f"right   greetings/hello.txt in {files / 'greetings'}\nmissing greetings/all.zip\nright   other/x.txt in {files / 'other'}\n", ""
    )
    assert mtlearn("data", "verify", "other").out == f"right   other/x.txt in {files / 'other'}\n"
    wrong = files / "greetings" / "hello.txt"
    wrong.write_bytes(b"hullo")
    answer = mtlearn("data", "verify", "greetings")
    assert error(answer, 1) == f"error: {wrong} is not the published file; move it away and `mtlearn data fetch greetings` gets the right one"
    assert answer.out.splitlines()[0] == f"wrong   greetings/hello.txt in {files / 'greetings'}" and wrong.read_bytes() == b"hullo"
    assert "there is no benchmark 'greeting': did you mean greetings" in error(mtlearn("data", "verify", "greeting"), 2)


def test_data_fetch(files: Path, mtlearn: Command):
    assert mtlearn("data", "fetch", "other") == Answer(0, f"{files / 'other' / 'x.txt'}\n", "")
    answer = mtlearn("data", "fetch")
    assert answer.out.splitlines() == [str(files / "greetings" / "hello.txt"), str(files / "other" / "x.txt")], "what can be had is had"
    assert "greetings/all.zip is not on this machine and has no address of its own" in error(answer, 1)
    (files / "other" / "x.txt").write_bytes(b"hullo")
    line = error(mtlearn("data", "fetch", "other"), 1)
    assert "other/x.txt" in line and "is refused: expected 1234567 bytes" in line
    assert "there is no benchmark 'nothing'" in error(mtlearn("data", "fetch", "nothing"), 2)
