"""The runner: the same numbers wherever a seed is run, nothing run twice, and what is done stays when something breaks."""

import dataclasses
import errno
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import toy_experiment
from toy_experiment import Toy

from mtlearn.lab import runner
from mtlearn.lab.experiment import Arms, Experiment
from mtlearn.lab.runner import Failure, Outcome, check_device, run, stored
from mtlearn.lab.store import StoreError


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Dask scheduler with two workers of two threads each."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=False, protocol="tcp://", dashboard_address=None, silence_logs=50, host="127.0.0.1"
    ) as running:
        yield running.scheduler_address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    path = tmp_path / "witness"
    path.write_text("")
    return path


def seeds_run(witness: Path) -> list[int]:
    """Which seeds were run since it was asked last, sorted."""
    found = sorted(map(int, witness.read_text().split()))
    witness.write_text("")
    return found


def values(outcome: Outcome) -> list[dict]:
    """Every number of every arm."""
    return [
        {(arm, metric): spread.values for arm, metrics in result.arms.items() for metric, spread in metrics.items()} for result in outcome.results
    ]


def quick(folder: Path, *experiments: Experiment, **how) -> Outcome:
    return run(experiments, "quick", folder=folder, **how)


@pytest.mark.parametrize("where", ["again", "two processes", "cluster"])
def test_a_run_repeats_to_the_bit(where: str, tmp_path: Path, request: pytest.FixtureRequest):
    how = {"again": {}, "two processes": {"jobs": 2}, "cluster": {}}[where]
    if where == "cluster":
        how = {"dask": request.getfixturevalue("cluster")}
    experiments = toy_experiment.experiment(seeds=4), toy_experiment.experiment("toy_two", seeds=2, steps=7)
    first = quick(tmp_path / "one", *experiments, jobs=1)
    second = quick(tmp_path / "two", *experiments, **how)
    assert values(first) == values(second) and not first.failures and not second.failures
    assert [(r.paper, r.seeds) for r in second.results] == [("toy", 4), ("toy_two", 2)]
    assert [r.claims for r in first.results] == [r.claims for r in second.results]
    luck = first.results[0].arms["trained"]["luck"].values
    assert len(set(luck)) == 4, "the seeds differ"


def test_a_thread_may_run_processes(tmp_path: Path):
    """Only a main thread may touch the handling of Ctrl-C."""
    outcomes: list[Outcome] = []
    toy = toy_experiment.experiment(seeds=2)
    thread = threading.Thread(target=lambda: outcomes.append(quick(tmp_path / "one", toy, jobs=2)))
    thread.start()
    thread.join()
    assert values(outcomes[0]) == values(quick(tmp_path / "two", toy, jobs=1))


def test_torch_computes_on_one_thread_in_every_worker(folder: Path, cluster: str):
    found = []
    for how in ({"jobs": 1}, {"jobs": 2}, {"dask": cluster}):
        outcome = run([dataclasses.replace(toy_experiment.experiment(), run=count_threads)], "quick", folder=folder, fresh=True, **how)
        found.append(outcome.results[0].arms["trained"]["threads"].values)
    assert found == [(1.0, 1.0, 1.0)] * 3


def count_threads(settings: Toy, seed: int, device: torch.device) -> Arms:
    arm = {"threads": float(torch.get_num_threads()), "loss": 0.0, "luck": 0.0}
    return {"trained": arm, "untrained": arm}


def test_a_run_that_was_cut_off_runs_the_rest(folder: Path, witness: Path):
    toy = toy_experiment.experiment(seeds=5, witness=str(witness))
    ended = []

    def cut_off(paper: str, seed: int) -> None:
        ended.append(seed)
        if len(ended) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(folder, toy, on_seed=cut_off)
    assert seeds_run(witness) == [0, 1]
    planned = []
    outcome = quick(folder, toy, on_plan=lambda todo, there: planned.append((todo, there)))
    assert planned == [(3, 2)]
    assert seeds_run(witness) == [2, 3, 4]
    fresh = quick(folder.parent / "other", toy)
    assert values(outcome) == values(fresh) and outcome.results[0].claims == fresh.results[0].claims
    assert outcome.results[0].seeds == 5


def test_what_is_stored_is_not_run_again(folder: Path, witness: Path):
    toy = toy_experiment.experiment(seeds=2, witness=str(witness))
    quick(folder, toy)
    assert seeds_run(witness) == [0, 1]
    assert quick(folder, toy).results[0].seeds == 2 and seeds_run(witness) == []
    assert quick(folder, toy, seeds=4).results[0].seeds == 4 and seeds_run(witness) == [2, 3]
    assert quick(folder, toy, seeds=1).results[0].seeds == 1 and seeds_run(witness) == []
    assert quick(folder, toy, seeds=2, dask="tcp://127.0.0.1:1").results[0].seeds == 2, "nothing to run needs no cluster"
    outcome = quick(folder, toy, fresh=True)
    assert seeds_run(witness) == [0, 1] and outcome.notes == ("toy-quick.jsonl is kept aside as toy-quick.old.jsonl: as asked",)


def test_a_broken_line_is_run_again(folder: Path, witness: Path):
    toy = toy_experiment.experiment(seeds=3, witness=str(witness))
    first = quick(folder, toy)
    path = folder / "toy-quick.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    assert seeds_run(witness) == [0, 1, 2]
    outcome = quick(folder, toy)
    assert seeds_run(witness) == [2] and "line 4 cannot be read and will be run again" in outcome.notes[0]
    assert values(outcome) == values(first)


def test_other_settings_are_refused_before_anything_runs(folder: Path, witness: Path):
    quick(folder, toy_experiment.experiment(witness=str(witness)))
    seeds_run(witness)
    with pytest.raises(StoreError, match=r"rate 0\.1 there, 0\.2 now"):
        quick(folder, toy_experiment.experiment("toy_two", witness=str(witness)), toy_experiment.experiment(witness=str(witness), rate=0.2))
    assert seeds_run(witness) == []


@pytest.mark.parametrize("where", ["one process", "two processes", "cluster"])
def test_a_seed_that_raises_leaves_the_others(where: str, folder: Path, witness: Path, request: pytest.FixtureRequest):
    how = {"one process": {"jobs": 1}, "two processes": {"jobs": 2}}.get(where) or {"dask": request.getfixturevalue("cluster")}
    toy = toy_experiment.experiment(seeds=4, breaks=(1, 2), witness=str(witness))
    ended = []
    outcome = quick(folder, toy, on_seed=lambda paper, seed: ended.append((paper, seed)), **how)
    assert sorted(ended) == [("toy", seed) for seed in range(4)]
    assert sorted((f.paper, f.seed, f.error) for f in outcome.failures) == [("toy", s, f"RuntimeError: seed {s} is broken") for s in (1, 2)]
    assert all("Traceback" in f.traceback and "toy_experiment.py" in f.traceback for f in outcome.failures)
    assert outcome.results[0].seeds == 2
    seeds_run(witness)
    again = quick(folder, toy)
    assert seeds_run(witness) == [1, 2] and values(again) == values(outcome)


def test_no_seed_that_ends_gives_no_result(folder: Path):
    outcome = quick(folder, toy_experiment.experiment(seeds=1, breaks=(0,)), toy_experiment.experiment("toy_two", seeds=1))
    assert [r.paper for r in outcome.results] == ["toy_two"]
    assert [(f.paper, f.seed) for f in outcome.failures] == [("toy", 0)]


def test_what_run_returned_is_checked(folder: Path):
    toy = dataclasses.replace(toy_experiment.experiment(seeds=1), run=lambda settings, seed, device: {"trained": {"loss": float("nan")}})
    (failure,) = quick(folder, toy).failures
    assert failure == Failure("toy", 0, "ValueError: metric 'loss' of arm 'trained' must be a finite number, got nan", failure.traceback)


class Stop(BaseException):
    """What no seed may catch."""


def stop(settings: Toy, seed: int, device: torch.device) -> Arms:
    if seed == 1:
        raise Stop("the worker stops")
    return toy_experiment.run(settings, seed, device)


def test_what_a_cluster_cannot_hand_back_breaks_one_seed(folder: Path, cluster: str):
    outcome = quick(folder, dataclasses.replace(toy_experiment.experiment(seeds=3), run=stop), dask=cluster)
    assert [(f.seed, f.error) for f in outcome.failures] == [(1, "Stop: the worker stops")] and "Stop" in outcome.failures[0].traceback
    assert outcome.results[0].seeds == 2


@pytest.mark.parametrize(
    ("address", "why"), [("tcp://127.0.0.1:1", "Timed out"), ("nonsense", "missing port number"), ("", "missing port"), ("ftp://a:1", "unknown")]
)
def test_no_scheduler_there(address: str, why: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("distributed")
    assert runner.DASK_TIMEOUT < 10
    monkeypatch.setattr(runner, "DASK_TIMEOUT", 0.3)
    with pytest.raises(
        ConnectionError,
        match=rf"^no Dask scheduler answers at '{address}' \(.*{why}.*\); start one with `dask scheduler` and give its tcp:// address$",
    ) as caught:
        quick(folder, toy_experiment.experiment(), dask=address)
    assert "\n" not in str(caught.value) and not folder.exists()


def test_without_dask(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"running on a cluster needs Dask: pip install 'mtlearn\[dask\]'"):
        quick(folder, toy_experiment.experiment(), dask="tcp://127.0.0.1:1")


@pytest.mark.parametrize(
    ("scale", "how", "message"),
    [
        ("huge", {}, "scale must be one of quick, laptop, paper, got 'huge'"),
        ("paper", {}, "toy has no scale 'paper'; it has quick, laptop"),
        ("quick", {"seeds": 0}, "seeds and jobs must be at least 1, got seeds=0, jobs=None"),
        ("quick", {"jobs": 0}, "seeds and jobs must be at least 1, got seeds=None, jobs=0"),
        ("quick", {"device": "gpu"}, r"device 'gpu' cannot be used \(.*\); there are cpu"),
        ("quick", {"device": "meta"}, r"device 'meta' cannot be used \(.*\); there are cpu"),
        ("quick", {"device": "cuda:99"}, r"device 'cuda:99' cannot be used \(.*\); there are cpu"),
    ],
)
def test_wrong_use(scale: str, how: dict, message: str, folder: Path):
    with pytest.raises(ValueError, match=message):
        run([toy_experiment.experiment()], scale, folder=folder, **how)
    assert not folder.exists()


def test_device():
    assert check_device("cpu") == "cpu"


def test_the_device_reaches_the_run(folder: Path, cluster: str):
    """A cluster has devices that this machine lacks, so there the worker judges."""
    outcome = quick(folder, dataclasses.replace(toy_experiment.experiment(seeds=1), run=on_device), dask=cluster, device="cuda:99")
    assert outcome.failures[0].error == "RuntimeError: computed on cuda:99"
    assert quick(folder, dataclasses.replace(toy_experiment.experiment(seeds=1), run=on_device)).failures[0].error == "RuntimeError: computed on cpu"


def on_device(settings: Toy, seed: int, device: torch.device) -> Arms:
    raise RuntimeError(f"computed on {device}")


def test_stored_reads_all_scales_and_touches_nothing(folder: Path):
    toy, second = toy_experiment.experiment(), toy_experiment.experiment("toy_two")
    assert stored([toy], folder=folder) == Outcome((), (), ()) and not folder.exists()
    here = run([toy], "quick", folder=folder, seeds=5).results + run([second], "laptop", folder=folder, jobs=1).results
    assert stored([toy, second], folder=folder) == Outcome(here, (), ())
    assert stored([toy, toy_experiment.experiment("toy_two", rate=0.3)], folder=folder).results == here[:1]
    (note,) = stored([toy_experiment.experiment("toy_two", rate=0.3)], folder=folder).notes
    assert note.startswith("left out: ") and "rate 0.1 there, 0.3 now" in note
    assert sorted(path.name for path in folder.iterdir()) == ["toy-quick.jsonl", "toy_two-laptop.jsonl"]


@pytest.mark.parametrize("jobs", [1, 2])  # the last test, because its workers are killed
def test_a_full_disk_keeps_what_was_there(jobs: int, folder: Path, witness: Path, monkeypatch: pytest.MonkeyPatch):
    toy = toy_experiment.experiment(seeds=4, witness=str(witness))
    sync, calls = os.fsync, []

    def full(number: int) -> None:
        calls.append(number)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left on device; what it held before is kept"):
            quick(folder, toy, jobs=jobs)
    assert [path.name for path in folder.iterdir()] == ["toy-quick.jsonl"]
    assert len((folder / "toy-quick.jsonl").read_text().splitlines()) == 3
    seeds_run(witness)
    assert quick(folder, toy).results[0].seeds == 4
    assert len(seeds_run(witness)) == 2
