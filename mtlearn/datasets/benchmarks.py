"""Published benchmark files, fetched once and recognised by their SHA-256.

    fetch("graphs", "MUTAG.txt")      # the path of one file
    fetch("graphs")                   # the paths of all

A file is looked for in the folder that ``MTLEARN_DATA`` names, as ``<folder>/<dataset>/<file>``, then in the user's cache, and is else
downloaded into the cache. A file whose SHA-256 is not the table's is never given out. In the cache it is kept aside under a name that
ends in ``.refused-`` and the first eight digits of its hash; a folder of the user's own is left as it is.
"""

import hashlib
import os
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, overload

from mtlearn import paths
from mtlearn.tables import check_name, check_row, listed, nearest

TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds without a byte


class MissingFileError(RuntimeError):
    """A benchmark file is not on this machine and could not be downloaded."""


class RefusedFileError(RuntimeError):
    """A benchmark file is not the published one."""


@dataclass(frozen=True)
class BenchmarkFile:
    """One published file.

    Attributes:
        name: its name in the dataset's folder.
        address: where it is published, or "" where there is no address of the single file.
        bytes, sha256: what it is recognised by.
        made: how it was made, where it is an archive without an address; else "".
    """

    name: str
    address: str
    bytes: int
    sha256: str
    made: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A dataset of published files."""

    name: str
    description: str
    licence: str
    files: tuple[BenchmarkFile, ...]

    def file(self, name: str) -> BenchmarkFile:
        """The row of one file. ValueError names the nearest or lists them."""
        for row in self.files:
            if row.name == name:
                return row
        known = [row.name for row in self.files]
        raise ValueError(f"{self.name} has no file {name!r}{nearest(name, known)}; its files are {', '.join(known)}")


@dataclass(frozen=True)
class Check:
    """What :func:`verify` found of one file: ``path`` is None where it is missing."""

    dataset: str
    file: str
    state: Literal["right", "wrong", "missing"]
    path: Path | None


def names() -> tuple[str, ...]:
    """The datasets of the table."""
    return tuple(_table())


def benchmark(name: str) -> Benchmark:
    """A dataset's row. ValueError names the nearest."""
    if name not in _table():
        raise ValueError(f"there is no benchmark {name!r}{nearest(name, names())}; the benchmarks are {', '.join(names())}")
    return _table()[name]


@overload
def fetch(dataset: str, file: str, *, progress: bool = False) -> Path: ...
@overload
def fetch(dataset: str, file: None = None, *, progress: bool = False) -> tuple[Path, ...]: ...
def fetch(dataset: str, file: str | None = None, *, progress: bool = False) -> Path | tuple[Path, ...]:
    """The path of a file, or of all files of a dataset in the table's order; what is not on this machine is downloaded.

    Args:
        dataset: a name of the table; ValueError suggests the nearest.
        file: one of its files, or None for all.
        progress: whether a download shows a bar on stderr.

    Raises:
        MissingFileError: not here and not downloadable; names the file, its address, the folder to put it in.
        RefusedFileError: here or downloaded, with another SHA-256 than the table's.
    """
    row = benchmark(dataset)
    if file is None:
        return tuple(fetch(dataset, entry.name, progress=progress) for entry in row.files)
    wanted = row.file(file)
    path = locate(dataset, file)
    if path is None:
        path = _cached(dataset) / file
        _download(dataset, wanted, path, progress)
    elif (digest := _sha256(path)) != wanted.sha256:
        raise _refusal(dataset, wanted, path, digest)
    return path


def locate(dataset: str, file: str) -> Path | None:
    """Where a file lies on this machine, right or wrong; None where it does not."""
    row = benchmark(dataset).file(file)
    return next((folder / row.name for folder in _folders(dataset) if (folder / row.name).is_file()), None)


def unpacked(name: str, contains: str = "") -> Path:
    """The folder of a dataset that one unpacks by oneself, because it is large or asks for an account: in ``MTLEARN_DATA``, then in the user's cache.

    Args:
        name: of the folder.
        contains: what must be in it.

    Raises:
        MissingFileError: it is in neither; says where it is looked for.
    """
    places = list(_folders(name))
    for place in places:
        if (place / contains).exists():
            return place
    inside = f", so that {places[0] / contains} exists" if contains else ""
    raise MissingFileError(f"{name} is not on this machine: unpack it as {places[0]}{inside}")


def verify(dataset: str | None = None) -> tuple[Check, ...]:
    """Hold the files of a dataset, or of all, that are on this machine against the table. It downloads nothing and moves nothing."""
    checks = []
    for name in names() if dataset is None else (dataset,):
        for row in benchmark(name).files:
            path = locate(name, row.name)
            state: Literal["right", "wrong", "missing"] = "missing"
            if path is not None:
                state = "right" if _sha256(path) == row.sha256 else "wrong"
            checks.append(Check(name, row.name, state, path))
    return tuple(checks)


def read_benchmarks(text: str) -> dict[str, Benchmark]:
    """Read and check a table in TOML. ValueError names the row, the field, and what is right."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"benchmarks.toml is not valid TOML: {error}") from error
    if unknown := set(tables) - {"benchmark"}:
        raise ValueError(f"benchmarks.toml: unknown table {listed(unknown)}; there is [[benchmark]]")
    found: dict[str, Benchmark] = {}
    for row in tables.get("benchmark", []):
        where = f"benchmarks.toml, {row.get('name', 'a benchmark without name')}"
        check_row(row, where, {"name": str, "description": str, "licence": str, "file": list})
        check_name(row["name"], where)
        if row["name"] in found:
            raise ValueError(f"{where}: that name is there twice")
        files = tuple(_read_file(entry, where) for entry in row["file"])
        if len({entry.name for entry in files}) < len(files):
            raise ValueError(f"{where}: a file is there twice")
        found[row["name"]] = Benchmark(row["name"], row["description"], row["licence"], files)
    return found


def _read_file(row: dict[str, object], benchmark: str) -> BenchmarkFile:
    where = f"{benchmark}/{row.get('name', 'a file without name')}"
    kinds = {"name": str, "address": str, "bytes": int, "sha256": str}
    check_row(row, where, {**kinds, "made": str} if "made" in row else kinds, may_be_empty=("address",))
    entry = BenchmarkFile(**row)  # type: ignore[arg-type]  # check_row has just held every type
    if Path(entry.name).name != entry.name or entry.name in (".", ".."):
        raise ValueError(f"{where}: name must be that of a file, without a folder")
    if bool(entry.address) == bool(entry.made):
        raise ValueError(f"{where}: give the address of the file, or made, how it was made, where it has none")
    if entry.address and not entry.address.startswith("https://"):
        raise ValueError(f"{where}: address must begin with https://, got {entry.address!r}")
    if entry.bytes < 1 or len(entry.sha256) != 64 or set(entry.sha256) - set("0123456789abcdef"):
        raise ValueError(f"{where}: bytes must be at least 1 and sha256 64 lower case hexadecimal digits, got {entry.bytes} and {entry.sha256!r}")
    return entry


@cache
def _table() -> dict[str, Benchmark]:
    return read_benchmarks((Path(__file__).parent / "benchmarks.toml").read_text(encoding="utf-8"))


def _cached(dataset: str) -> Path:
    return paths.cache() / "datasets" / dataset


def _folders(dataset: str) -> Iterable[Path]:
    """Where to look, first to last."""
    if own := os.environ.get("MTLEARN_DATA"):
        yield Path(own).expanduser() / dataset
    yield _cached(dataset)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refusal(dataset: str, row: BenchmarkFile, path: Path, digest: str, downloaded: Path | None = None) -> RefusedFileError:
    """Keep a wrong file of the cache aside, and say so. ``downloaded``: where its bytes are, if not yet at ``path``."""
    size = (downloaded or path).stat().st_size
    aside = ""
    if path.parent == _cached(dataset):
        kept = path.with_name(f"{path.name}.refused-{digest[:8]}")
        (downloaded or path).replace(kept)
        aside = f"; kept aside as {kept}"
    return RefusedFileError(
        f"{dataset}/{row.name}{f' from {row.address}' if downloaded else f' in {path.parent}'} is refused: expected {row.bytes} bytes with "
        f"SHA-256 {row.sha256}, got {size} bytes with {digest}{aside}"
    )


def _download(dataset: str, row: BenchmarkFile, path: Path, progress: bool) -> None:
    """Download into the cache: the file appears there whole and right, or not at all."""
    import pooch  # here, because a file that is there needs no downloader
    import requests

    where = f"put it in {next(iter(_folders(dataset)))}{'' if os.environ.get('MTLEARN_DATA') else ', or let MTLEARN_DATA name a folder of datasets'}"
    if not row.address:
        raise MissingFileError(f"{dataset}/{row.name} is not on this machine and has no address of its own ({row.made}): {where}")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        pooch.HTTPDownloader(progressbar=progress, timeout=TIMEOUT)(row.address, name, None)
        if (digest := _sha256(part)) != row.sha256:
            raise _refusal(dataset, row, path, digest, part)
        part.replace(path)
    except requests.exceptions.RequestException as error:
        answer = type(error).__name__
        if error.response is not None:
            answer = f"{error.response.status_code} {error.response.reason}"
            error.response.close()  # it was being streamed
        raise MissingFileError(f"{dataset}/{row.name} is not on this machine and {row.address} did not give it ({answer}): {where}") from error
    finally:
        part.unlink(missing_ok=True)
