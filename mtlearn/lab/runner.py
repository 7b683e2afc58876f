"""Run experiments: a map over (paper, seed), on this machine's cores or on a Dask cluster, resumed where it was cut off."""

import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from tqdm import tqdm

from mtlearn.lab.experiment import SCALES, Experiment, Settings
from mtlearn.lab.result import Result, check_arms, summarise
from mtlearn.lab.seeds import seeded
from mtlearn.lab.store import Finished, Store, StoreError, default_folder

DASK_TIMEOUT = 3.0  # seconds to reach a scheduler: a wrong address is told within ten, imports included


@dataclass(frozen=True)
class Task:
    """One seed of one experiment; it travels to a worker."""

    number: int
    run: Callable[[Any, int, torch.device], Any]
    settings: Settings
    seed: int
    device: str


@dataclass(frozen=True)
class Failure:
    """A seed that broke: its error in one line, and the traceback."""

    paper: str
    seed: int
    error: str
    traceback: str


@dataclass(frozen=True)
class Outcome:
    """What became of a plan: results of the experiments with at least one finished seed, and the seeds that broke."""

    results: tuple[Result, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]


def perform(task: Task) -> Finished | tuple[str, str]:
    """Run one seed where this is called: finished, or (error, traceback)."""
    began = time.perf_counter()
    try:
        with seeded(task.seed):
            arms = check_arms(task.run(task.settings, task.seed, torch.device(task.device)))
    except Exception as error:
        return _line(error), traceback.format_exc()
    return Finished(task.seed, round(time.perf_counter() - began, 3), arms)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def check_device(device: str) -> str:
    """Return ``device`` when PyTorch can compute on it here; else raise ValueError with the devices there are."""
    try:
        torch.zeros(1, device=device).item()  # "meta" makes tensors and cannot compute
    except (RuntimeError, AssertionError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *(["mps"] if torch.backends.mps.is_available() else [])]
        raise ValueError(f"device {device!r} cannot be used ({str(error).splitlines()[0]}); there are {', '.join(there)}") from None
    return device


def run(
    experiments: Sequence[Experiment],
    scale: str,
    *,
    seeds: int | None = None,
    device: str = "cpu",
    jobs: int | None = None,
    dask: str | None = None,
    folder: Path | None = None,
    fresh: bool = False,
    on_plan: Callable[[int, int], None] | None = None,
    on_seed: Callable[[str, int], None] | None = None,
) -> Outcome:
    """Run every seed that the store does not hold yet, write each when it ends, and judge the claims.

    Args:
        experiments: what to run.
        scale: ``quick``, ``laptop`` or ``paper``.
        seeds: how many, 0 to seeds - 1; the scale's own number when omitted.
        device: where PyTorch computes.
        jobs: processes on this machine; a core each when omitted, except at quick scale, where starting them costs more than it saves.
        dask: address of a Dask scheduler to run on instead.
        folder: the store; see :func:`mtlearn.lab.store.default_folder`.
        fresh: run all seeds again; what is stored is kept aside.
        on_plan: called once with the numbers of seeds to run and of seeds found in the store.
        on_seed: called with paper and seed when a seed has ended.

    Raises:
        ValueError: unknown scale, seeds or jobs below 1, device that is not there (with ``dask``, a worker without it breaks its seed).
        ConnectionError: no scheduler at ``dask``.
        StoreError: the store holds other settings, or cannot be written; the seeds written so far stay.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if (seeds is not None and seeds < 1) or (jobs is not None and jobs < 1):
        raise ValueError(f"seeds and jobs must be at least 1, got seeds={seeds}, jobs={jobs}")
    if lacking := [e for e in experiments if scale not in e.scales]:
        raise ValueError(f"{lacking[0].paper} has no scale {scale!r}; it has {', '.join(lacking[0].scales)}")
    if dask is None:
        check_device(device)
    chosen = [replace(e.scales[scale], seeds=seeds) if seeds else e.scales[scale] for e in experiments]
    folder = folder or default_folder()
    stores = [Store(folder, e, scale, s, device, fresh=fresh) for e, s in zip(experiments, chosen, strict=True)]
    tasks = [
        Task(number, experiment.run, settings, seed, device)
        for number, (experiment, settings, store) in enumerate(zip(experiments, chosen, stores, strict=True))
        for seed in range(settings.seeds)
        if seed not in store.finished
    ]
    if on_plan is not None:
        on_plan(len(tasks), sum(settings.seeds for settings in chosen) - len(tasks))
    failures = []
    # closed at once when a result cannot be written: workers in the middle of a seed would hold the interpreter
    with closing(_map(tasks, jobs or (1 if scale == "quick" else os.cpu_count() or 1), dask)) as endings:
        for task, ended in endings:
            paper = experiments[task.number].paper
            if isinstance(ended, Finished):
                stores[task.number].add(ended)
            else:
                failures.append(Failure(paper, task.seed, *ended))
            if on_seed is not None:
                on_seed(paper, task.seed)
    results = []
    for experiment, settings, store in zip(experiments, chosen, stores, strict=True):
        done = [store.finished[seed] for seed in range(settings.seeds) if seed in store.finished]
        if done:
            results.append(summarise(experiment, scale, settings, [(f.arms, f.seconds) for f in done]))
    return Outcome(tuple(results), tuple(failures), tuple(note for store in stores for note in store.notes))


Ended = tuple[Task, Finished | tuple[str, str]]


def _map(tasks: Sequence[Task], jobs: int, dask: str | None) -> Generator[Ended]:
    if dask is not None and tasks:
        yield from _on_dask(tasks, dask)
    elif jobs == 1 or len(tasks) < 2:
        yield from ((task, perform(task)) for task in tasks)
    else:
        yield from _on_cores(tasks, min(jobs, len(tasks)))


def _perform_with(task: Task) -> Ended:
    tqdm.set_lock(threading.RLock())  # its own is a semaphore between processes, which a worker that is killed would leave behind
    return task, perform(task)


def _on_cores(tasks: Sequence[Task], jobs: int) -> Generator[Ended]:
    with Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, inner_max_num_threads=1, backend="loky") as parallel:
        with _without_ctrl_c():
            ended = parallel(delayed(_perform_with)(task) for task in tasks)
        try:
            for one in ended:  # noqa: UP028
                yield one  # `yield from` would close it first, with a warning of joblib
        except BaseException:
            # a worker in the middle of a seed would hold the interpreter until it ends
            get_reusable_executor().shutdown(wait=False, kill_workers=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that what is under way is lost: so it is
                ended.close()
            raise


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C: a terminal sends it to all of them, each would tell of it, and this one ends them anyway."""
    if threading.current_thread() is not threading.main_thread():  # only that one may
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _on_dask(tasks: Sequence[Task], address: str) -> Generator[Ended]:
    try:
        from distributed import Client, as_completed
        from distributed.comm.addressing import get_address_host_port
    except ImportError:
        raise ValueError("running on a cluster needs Dask: pip install 'mtlearn[dask]'") from None
    try:
        get_address_host_port(address)  # a mistyped address is told at once, and no half-open client is left
        client = Client(address, timeout=DASK_TIMEOUT)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TimeoutError) as error:
        why = " ".join(str(error).split())
        raise ConnectionError(
            f"no Dask scheduler answers at {address!r} ({why}); start one with `dask scheduler` and give its tcp:// address"
        ) from None
    with client:
        futures = dict(zip(client.map(perform, tasks, pure=False, retries=0), tasks, strict=True))
        for future, ended in as_completed(futures, with_results=True, raise_errors=False):  # type: ignore[no-untyped-call]
            if future.status != "finished":  # the worker died, or lacks a package: this seed is broken, the others go on
                lost = ended[1] if isinstance(ended, tuple) else ended
                ended = _line(lost), "".join(traceback.format_exception(lost))
            yield futures[future], ended


def stored(experiments: Sequence[Experiment], *, folder: Path | None = None) -> Outcome:
    """The results of today's code and settings that the store holds, complete or not; notes say what is left out.

    Nothing is run and no file is touched.
    """
    results, notes = [], []
    for experiment in experiments:
        for scale, settings in experiment.scales.items():
            try:
                store = Store(folder or default_folder(), experiment, scale, settings, None)
            except StoreError as error:
                notes.append(f"left out: {error}")
                continue
            notes += store.notes
            if store.finished:
                done = [store.finished[seed] for seed in sorted(store.finished)]
                results.append(summarise(experiment, scale, settings, [(f.arms, f.seconds) for f in done]))
    return Outcome(tuple(results), (), tuple(notes))
