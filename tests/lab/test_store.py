"""The store: what it keeps, what it refuses, and what it does with a file that is not whole."""

import dataclasses
import errno
import json
import os
import threading
from pathlib import Path

import pytest
import toy_experiment
from toy_experiment import Toy

from mtlearn import paths
from mtlearn.lab import store as module
from mtlearn.lab.experiment import Experiment
from mtlearn.lab.store import Finished, Store, StoreError, default_folder, fingerprint, write_atomically

TOY = toy_experiment.experiment()
ARMS = {"trained": {"loss": 0.1 + 0.2}, "untrained": {"loss": 1e-300}}


def opened(folder: Path, settings: Toy | None = None, device: str | None = "cpu", *, experiment: Experiment = TOY, fresh: bool = False) -> Store:
    return Store(folder, experiment, "quick", settings or Toy(3), device, fresh=fresh)


def seed(number: int) -> Finished:
    return Finished(number, 0.5, ARMS)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """The file of a store with the seeds 0, 1 and 2."""
    store = opened(tmp_path)
    for number in range(3):
        store.add(seed(number))
    return store.path


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_line_a_seed_that_comes_back_to_the_bit(filled: Path):
    first, *lines = [json.loads(line) for line in filled.read_text().splitlines()]
    assert set(first) == {"format", "paper", "scale", "settings", "device", "code", "versions"}
    assert first["settings"]["nested"] == [[1, 2], [3]] and "seeds" not in first["settings"]
    assert [line["seed"] for line in lines] == [0, 1, 2]
    again = opened(filled.parent)
    assert dict(again.finished) == {number: seed(number) for number in range(3)} and again.notes == []


def test_the_number_of_seeds_is_no_setting(filled: Path):
    again = opened(filled.parent, Toy(7))
    again.add(seed(5))
    assert list(opened(filled.parent).finished) == [0, 1, 2, 5]


def test_nothing_is_written_before_a_seed_has_ended(tmp_path: Path):
    store = opened(tmp_path / "not" / "there")
    assert dict(store.finished) == {} and listing(tmp_path) == []
    store.add(seed(0))
    assert listing(store.path.parent) == ["toy-quick.jsonl"]


def test_what_finished_gives_cannot_change_the_store(filled: Path):
    store = opened(filled.parent)
    store.finished.clear()
    assert len(store.finished) == 3


@pytest.mark.parametrize(
    ("settings", "device", "change"),
    [
        (Toy(3, steps=21), "cpu", "steps 20 there, 21 now"),
        (Toy(3, rate=0.5, steps=1), "cpu", "rate 0.1 there, 0.5 now, steps 20 there, 1 now"),
        (Toy(3, nested=((1, 2), (4,))), "cpu", r"nested \[\[1, 2\], \[3\]\] there, \[\[1, 2\], \[4\]\] now"),
        (Toy(3), "cuda", "device cpu there, cuda now"),
    ],
)
def test_settings_are_never_mixed(filled: Path, settings: Toy, device: str, change: str):
    before = filled.read_bytes()
    with pytest.raises(StoreError, match=rf"^{filled} holds seeds of other settings \({change}\); --fresh starts anew and keeps that file aside$"):
        opened(filled.parent, settings, device)
    assert filled.read_bytes() == before and listing(filled.parent) == [filled.name]


def test_a_setting_that_is_new_is_named(filled: Path):
    @dataclasses.dataclass(frozen=True)
    class More(Toy):
        extra: float | None = None

    with pytest.raises(StoreError, match=r"\(extra absent there, None now\)"):
        opened(filled.parent, More(3))


def test_fresh_keeps_every_old_file(filled: Path):
    old = filled.read_bytes()
    for aside in ("toy-quick.old.jsonl", "toy-quick.old-2.jsonl", "toy-quick.old-3.jsonl"):
        store = opened(filled.parent, Toy(3, steps=1), fresh=True)
        assert dict(store.finished) == {} and store.notes == [f"toy-quick.jsonl is kept aside as {aside}: as asked"]
        assert (filled.parent / aside).read_bytes() == old and not filled.exists()
        store.add(seed(9))
        old = filled.read_bytes()
    assert opened(filled.parent, fresh=True).path.name == "toy-quick.jsonl"


def test_fresh_where_nothing_is(tmp_path: Path):
    assert opened(tmp_path, fresh=True).notes == []


@pytest.mark.parametrize(
    "first",
    [
        "",
        "\n",
        "not json",
        "[]",
        "5",
        '{"format": "other"}',
        '{"format": "mtlearn-results-1"}',
        '{"format": "mtlearn-results-1", "settings": 5, "device": 1}',
        '{"format": "mtlea',
    ],
)
def test_a_first_line_that_is_none(filled: Path, first: str):
    lines = filled.read_text().splitlines(keepends=True)
    filled.write_text(first if first in ("", "\n") or first.endswith("mtlea") else "".join([f"{first}\n", *lines[1:]]))
    before = filled.read_bytes()
    with pytest.raises(
        StoreError, match=rf"^{filled}: its first line is not that of a results file; move it away, or start anew with --fresh \(it is kept aside\)$"
    ):
        opened(filled.parent)
    assert filled.read_bytes() == before
    store = opened(filled.parent, fresh=True)  # what the message says helps
    store.add(seed(0))
    assert (filled.parent / "toy-quick.old.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "line",
    [
        "", "{", "[]", "\x00\x00\xff", '{"seed": 1}',
        '{"seed": "one", "seconds": 1, "arms": {"a": {"m": 1}}}', '{"seed": 1, "seconds": 1, "arms": {"a": {"m": NaN}}}',
    ],
)  # fmt: skip
def test_a_broken_line_is_run_again(filled: Path, line: str):
    lines = filled.read_text().splitlines()
    filled.write_text("\n".join([*lines[:2], line, lines[3]]) + "\n")
    before = filled.read_bytes()
    store = opened(filled.parent)
    assert list(store.finished) == [0, 2]
    assert store.notes == [f"{filled}: line 3 cannot be read and will be run again; a copy is kept as toy-quick.broken.jsonl"]
    assert (filled.parent / "toy-quick.broken.jsonl").read_bytes() == before
    store.add(seed(1))
    again = opened(filled.parent)
    assert sorted(again.finished) == [0, 1, 2] and again.notes == []


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_half_written_tail_is_run_again(filled: Path, cut: int):
    filled.write_bytes(filled.read_bytes()[:-cut])
    store = opened(filled.parent)
    # without its newline the last line is still whole
    assert list(store.finished) == ([0, 1, 2] if cut == 1 else [0, 1])
    assert store.notes == ([] if cut == 1 else [f"{filled}: line 4 cannot be read and will be run again; a copy is kept as toy-quick.broken.jsonl"])


def test_bytes_that_are_no_text(filled: Path):
    filled.write_bytes(filled.read_bytes() + b"\xff\xfe\x00")
    store = opened(filled.parent)
    assert list(store.finished) == [0, 1, 2] and "line 5 cannot be read" in store.notes[0]


@pytest.mark.parametrize("what", ["fingerprint", "versions"])
def test_seeds_of_other_code_are_set_aside(filled: Path, what: str, monkeypatch: pytest.MonkeyPatch):
    before = filled.read_bytes()
    monkeypatch.setattr(module, what, (lambda _: "other") if what == "fingerprint" else (lambda: {"python": "2.7"}))
    store = opened(filled.parent)
    assert dict(store.finished) == {}
    assert store.notes == ["toy-quick.jsonl is kept aside as toy-quick.stale.jsonl: its seeds were run by other code or versions"]
    assert (filled.parent / "toy-quick.stale.jsonl").read_bytes() == before and not filled.exists()


def test_looking_touches_nothing(filled: Path, monkeypatch: pytest.MonkeyPatch):
    assert list(opened(filled.parent, device=None).finished) == [0, 1, 2]
    lines = filled.read_text().splitlines()
    filled.write_text("\n".join([lines[0].replace('"device": "cpu"', '"device": "cuda:1"'), *lines[1:], "{"]))
    store = opened(filled.parent, device=None)
    assert list(store.finished) == [0, 1, 2] and store.notes == [f"{filled}: line 5 cannot be read"]
    monkeypatch.setattr(module, "fingerprint", lambda _: "other")
    store = opened(filled.parent, device=None)
    assert dict(store.finished) == {} and store.notes == [f"{filled} is left out: its seeds were run by other code or versions"]
    assert listing(filled.parent) == [filled.name]


def test_a_result_that_is_none_is_refused(filled: Path):
    before = filled.read_bytes()
    store = opened(filled.parent)
    with pytest.raises(ValueError, match="metric 'm' of arm 'a'"):
        store.add(Finished(3, 1.0, {"a": {"m": float("nan")}}))
    assert filled.read_bytes() == before and 3 not in store.finished


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_keeps_what_was_there(filled: Path, where: str, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before, store = filled.read_bytes(), opened(filled.parent)
    with monkeypatch.context() as patch:
        patch.setattr(os if where == "fsync" else Path, where, full)
        with pytest.raises(StoreError, match=rf"^cannot write {filled}: No space left on device; what it held before is kept$"):
            store.add(seed(3))
    assert filled.read_bytes() == before and listing(filled.parent) == [filled.name]
    assert list(store.finished) == [0, 1, 2]
    store.add(seed(3))  # there is room again
    assert list(opened(filled.parent).finished) == [0, 1, 2, 3]


def test_a_disk_that_is_really_full(filled: Path):
    resource = pytest.importorskip("resource")
    before, store = filled.read_bytes(), opened(filled.parent)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), hard))  # one line more does not fit
    try:
        with pytest.raises(StoreError, match=rf"^cannot write {filled}: File too large; what it held before is kept$"):
            store.add(seed(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert filled.read_bytes() == before and listing(filled.parent) == [filled.name]


def test_ctrl_c_while_writing_leaves_the_old_file_alone(filled: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before, store = filled.read_bytes(), opened(filled.parent)
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.add(seed(3))
    assert filled.read_bytes() == before and listing(filled.parent) == [filled.name]


def test_a_folder_that_cannot_be(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"^cannot write .*toy-quick.jsonl: (Not a directory|File exists|.*path.*); what it held before is kept$"):
        opened(tmp_path / "file").add(seed(0))


def test_a_reader_never_sees_half_a_file(tmp_path: Path):
    path, seen, done = tmp_path / "file", set(), threading.Event()
    write_atomically(path, b"0" * 10_000)

    def read() -> None:
        while not done.is_set():
            content = path.read_bytes()
            seen.add((len(content), len(set(content))))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        write_atomically(path, str(number % 10).encode() * 10_000)
    done.set()
    reader.join()
    assert seen == {(10_000, 1)}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_modes_are_kept(tmp_path: Path):
    path = tmp_path / "file"
    write_atomically(path, b"1")
    assert path.stat().st_mode & 0o777 == 0o644
    path.chmod(0o664)
    write_atomically(path, b"2")
    assert path.stat().st_mode & 0o777 == 0o664 and path.read_bytes() == b"2"


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MTLEARN_RESULTS", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("MTLEARN_RESULTS")
    monkeypatch.setattr(module, "root", lambda: tmp_path)
    assert default_folder() == tmp_path / "results"
    monkeypatch.setattr(module, "root", lambda: None)
    assert default_folder() == Path("results")


def test_the_fingerprint_follows_what_a_result_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A copy of the package's layout, in which one file after the other is changed."""
    files = {
        "lab/fit.py": True, "lab/seeds.py": True, "datasets/planar.py": True, "layers/attention.py": True, "chapter/shared.py": True,
        "chapter/paper/method.py": True, "chapter/paper/experiment.py": True, "chapter/paper/baselines.py": True,
        "chapter/paper/explorer.py": False, "chapter/paper/exercises.py": False,
        "chapter/other/method.py": False, "lab/report.py": False, "cli.py": False,
    }  # fmt: skip
    package = tmp_path / "mtlearn"
    for name in files:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("")
    monkeypatch.setattr(module, "__file__", str(package / "lab" / "store.py"))
    monkeypatch.setattr(paths, "root", lambda: tmp_path)

    def run() -> None: ...

    run.__module__ = "mtlearn.chapter.paper.experiment"
    paper = dataclasses.replace(TOY, run=run)
    before = fingerprint(paper)
    assert before == fingerprint(paper) and len(before) == 16
    for name, matters in files.items():
        (package / name).write_text("changed")
        assert (fingerprint(paper) != before) is matters, name
        (package / name).write_text("")
    (tmp_path / "data" / "checkpoints").mkdir(parents=True)
    for name, matters in (("other-line.safetensors", False), ("toy-line.safetensors", True)):
        (tmp_path / "data" / "checkpoints" / name).write_bytes(b"weights")
        assert (fingerprint(paper) != before) is matters, name
