"""The store of results: one file a paper and scale, one JSON line a finished seed, every write atomic.

The first line says what the seeds have in common (settings, device, versions, a fingerprint of the code). Seeds of other settings are
never added to it. A file whose code, shipped models or versions are not today's is set aside, since its numbers are not this code's.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from mtlearn.lab.experiment import Arms, Experiment, Settings
from mtlearn.lab.result import check_arms, versions
from mtlearn.paths import data, root

FORMAT = "mtlearn-results-1"


class StoreError(RuntimeError):
    """The store cannot take or give a result; the message says which file and what to do."""


@dataclass(frozen=True)
class Finished:
    """One finished seed."""

    seed: int
    seconds: float
    arms: Arms


def default_folder() -> Path:
    """``MTLEARN_RESULTS``, else ``results`` in the checkout, else in the current folder."""
    return Path(os.environ.get("MTLEARN_RESULTS") or (root() or Path()) / "results")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or leave the old one: to a temporary file beside it, to the disk, then renamed over it.

    Raises:
        StoreError: the disk is full or the folder cannot be written; what was there before is still there.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
            temporary = stream.name
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(path.stat().st_mode if path.exists() else 0o644)  # temporary files are private, results are not
        Path(temporary).replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}; what it held before is kept") from error
    finally:
        if temporary:  # Ctrl-C leaves nothing behind either
            Path(temporary).unlink(missing_ok=True)


class Store:
    """The finished seeds of one experiment at one scale with one group of settings.

    Args:
        folder: where the file lies; it is made when the first seed is written.
        experiment, scale, settings, device: what the seeds have in common. With the device None the store is only looked at: seeds of any
            device are read, and no file is touched.
        fresh: set what is there aside and start anew.

    Raises:
        StoreError: the file holds other settings, or its first line cannot be read.
    """

    def __init__(self, folder: Path, experiment: Experiment, scale: str, settings: Settings, device: str | None, *, fresh: bool = False) -> None:
        self.path = folder / f"{experiment.paper}-{scale}.jsonl"
        self.notes: list[str] = []
        self._finished: dict[int, Finished] = {}
        self._header: dict[str, Any] = {
            "format": FORMAT,
            "paper": experiment.paper,
            "scale": scale,
            "settings": settings.as_dict(),
            "device": device,
            "code": fingerprint(experiment),
            "versions": versions(),
        }
        if self.path.exists():
            if fresh:
                self._set_aside("old", "as asked")
            else:
                self._read()

    @property
    def finished(self) -> Mapping[int, Finished]:
        """Seed to what it found."""
        return dict(self._finished)

    def add(self, finished: Finished) -> None:
        """Write one more seed; StoreError (and the file as it was) where the disk refuses."""
        check_arms(finished.arms)
        lines = [self._header, *({"seed": f.seed, "seconds": f.seconds, "arms": f.arms} for f in (*self._finished.values(), finished))]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        self._finished[finished.seed] = finished

    def _read(self) -> None:
        look = self._header["device"] is None
        first, *lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        try:
            header = json.loads(first)
            if header["format"] != FORMAT:
                raise KeyError("format")
            theirs: dict[str, Any] = {**header["settings"], "device": header["device"]}
        except (json.JSONDecodeError, KeyError, TypeError):
            raise StoreError(
                f"{self.path}: its first line is not that of a results file; move it away, or start anew with --fresh (it is kept aside)"
            ) from None
        ours: dict[str, Any] = {**self._header["settings"], "device": theirs["device"] if look else self._header["device"]}
        if theirs != ours:
            names = sorted(name for name in {*theirs, *ours} if theirs.get(name, "absent") != ours.get(name, "absent"))
            changes = ", ".join(f"{name} {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} now" for name in names)
            raise StoreError(f"{self.path} holds seeds of other settings ({changes}); --fresh starts anew and keeps that file aside")
        if (header.get("code"), header.get("versions")) != (self._header["code"], self._header["versions"]):
            if look:
                self.notes.append(f"{self.path} is left out: its seeds were run by other code or versions")
            else:
                self._set_aside("stale", "its seeds were run by other code or versions")
            return
        broken = []
        for number, line in enumerate(lines, 2):
            try:
                entry = json.loads(line)
                finished = Finished(int(entry["seed"]), float(entry["seconds"]), check_arms(entry["arms"]))
            except (json.JSONDecodeError, KeyError, TypeError, ValueError):
                broken.append(number)
                continue
            self._finished[finished.seed] = finished
        if broken:
            note = f"{self.path}: line {', '.join(map(str, broken))} cannot be read"
            if not look:
                copy = self._aside("broken")
                write_atomically(copy, self.path.read_bytes())
                note += f" and will be run again; a copy is kept as {copy.name}"
            self.notes.append(note)

    def _set_aside(self, suffix: str, why: str) -> None:
        aside = self._aside(suffix)
        self.path.replace(aside)
        self.notes.append(f"{self.path.name} is kept aside as {aside.name}: {why}")

    def _aside(self, suffix: str) -> Path:
        """A free name beside the file: <paper>-<scale>.old.jsonl, then .old-2.jsonl."""
        names = (self.path.with_suffix(f".{suffix}{'' if number == 1 else f'-{number}'}.jsonl") for number in count(1))
        return next(path for path in names if not path.exists())


def fingerprint(experiment: Experiment) -> str:
    """Short hash of what a result depends on: the paper's folder, its chapter's shared modules, the layers, data, training, shipped models."""
    package = Path(__file__).parent.parent
    module = experiment.run.__module__
    files = [package / "lab" / "fit.py", package / "lab" / "seeds.py", *(package / "datasets").glob("*.py"), *(package / "layers").glob("*.py")]
    if module.startswith("mtlearn."):
        folder = package.joinpath(*module.split(".")[1:-1])
        files += [path for path in (*folder.glob("*.py"), *folder.parent.glob("*.py")) if path.name not in ("explorer.py", "exercises.py")]
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    for path in sorted((data() / "checkpoints").glob(f"{experiment.paper}-*.safetensors")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
