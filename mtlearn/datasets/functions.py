"""Documented functions: what Python's standard library and the scientific packages call their functions, and what they say of them.

Real data that need no download. The sources of the installed packages are parsed (never imported), and every function, method and
class with a docstring gives one row::

    library   scipy
    file      linalg/_basic.py
    name      solve_banded
    summary   Solve the equation ``a @ x = b`` for ``x``, where ``a`` is the banded matrix defined by `ab`.

What was read depends on the versions that are installed, so one reading ships (:func:`documented_functions`), with the versions
it was read from; :func:`read_functions` reads anew.
"""

import ast
import gzip
import hashlib
import json
import platform
import re
import sys
import sysconfig
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from mtlearn.paths import data

STANDARD_LIBRARY = "python"
LIBRARIES = (STANDARD_LIBRARY, "numpy", "scipy", "networkx", "sklearn", "torch")
DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # where the package index has another name
LICENCES = {
    STANDARD_LIBRARY: "PSF-2.0",
    "numpy": "BSD-3-Clause",
    "scipy": "BSD-3-Clause",
    "networkx": "BSD-3-Clause",
    "sklearn": "BSD-3-Clause",
    "torch": "BSD-3-Clause",
}
SKIPPED = frozenset({"test", "tests", "testing", "idle_test", "site-packages", "dist-packages", "__pycache__", "idlelib", "lib2to3"})

Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Function:
    """One documented function, method or class.

    Attributes:
        library: one of :data:`LIBRARIES`.
        file: path inside the library, with forward slashes.
        name: qualified name inside the file ("Graph.add_edge").
        summary: first sentence of the docstring, white space made single.
    """

    library: str
    file: str
    name: str
    summary: str


@dataclass(frozen=True)
class Reading:
    """Documented functions with the versions they were read from.

    Attributes:
        functions: in the order library, file, line.
        versions: library to version.
        sha256: fingerprint of the rows.
    """

    functions: tuple[Function, ...]
    versions: Mapping[str, str]
    sha256: str


def shipped() -> Path:
    """The file with the reading that ships."""
    return data() / "worlds" / "functions.jsonl.gz"


@cache
def documented_functions() -> Reading:
    """The reading that ships with the suite: the same rows on every machine.

    Raises:
        RuntimeError: the file is missing, or its rows are not those of its fingerprint.
    """
    path = shipped()
    try:
        return load_reading(path)
    except FileNotFoundError:
        raise RuntimeError(f"{path} is missing: it is part of the source; save_reading(read_functions(), path) reads your own packages") from None


def read_functions(libraries: Sequence[str] = LIBRARIES) -> Reading:
    """Read the installed sources of ``libraries``; a minute for all of them.

    Raises:
        ValueError: a library is unknown or not installed.
    """
    functions: list[Function] = []
    versions = {}
    for library in libraries:
        folder = _folder(library)
        versions[library] = platform.python_version() if library == STANDARD_LIBRARY else version(DISTRIBUTIONS.get(library, library))
        functions.extend(read_folder(folder, library))
    return Reading(tuple(functions), versions, hashlib.sha256(_rows(functions)).hexdigest())


def read_folder(folder: Path, library: str) -> Iterator[Function]:
    """The documented functions of all Python files below ``folder``, tests left out, in the order of file names and lines."""
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).as_posix()):
        file = path.relative_to(folder)
        if SKIPPED.isdisjoint(file.parts[:-1]) and not file.name.startswith(("test_", "conftest")):
            yield from read_source(path.read_bytes(), library, file.as_posix())


def read_source(source: bytes, library: str, file: str) -> list[Function]:
    """The documented functions of one file; none where it is not valid Python (templates are not)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a package's invalid escapes are not ours to report
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return []
    found: list[Function] = []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = prefix + child.name
                if summary := first_sentence(ast.get_docstring(child) or ""):
                    found.append(Function(library, file, name, summary))
                visit(child, name + ".")
            else:
                visit(child, prefix)

    visit(tree, "")
    return found


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring: of its first paragraph, up to the first full stop before white space."""
    paragraph = " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())
    return re.split(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.) ", paragraph, maxsplit=1)[0]


def _folder(library: str) -> Path:
    if library not in LIBRARIES:
        raise ValueError(f"library must be one of {', '.join(LIBRARIES)}, got {library!r}")
    if library == STANDARD_LIBRARY:
        return Path(sysconfig.get_path("stdlib"))
    found = find_spec(library)  # finds without importing
    if found is None or found.origin is None:
        raise ValueError(f"{library} is not installed in {sys.prefix}")
    return Path(found.origin).parent


def _rows(functions: Sequence[Function]) -> bytes:
    return "".join(json.dumps(asdict(function), ensure_ascii=False, separators=(",", ":")) + "\n" for function in functions).encode()


def save_reading(reading: Reading, path: Path) -> None:
    """Write a reading as gzip of JSON lines: a header (versions, licences, fingerprint, count), then a row a function."""
    licences = {library: LICENCES[library] for library in reading.versions}
    header = {"versions": dict(reading.versions), "licences": licences, "sha256": reading.sha256, "count": len(reading.functions)}
    path.parent.mkdir(parents=True, exist_ok=True)
    # no time stamp: the same bytes for the same rows
    path.write_bytes(gzip.compress(json.dumps(header).encode() + b"\n" + _rows(reading.functions), mtime=0))


def load_reading(path: Path) -> Reading:
    """Read what :func:`save_reading` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the file is damaged.
    """
    try:
        first, _, rows = gzip.decompress(path.read_bytes()).partition(b"\n")
        header: dict[str, Any] = json.loads(first)
        versions, sha256 = header["versions"], header["sha256"]
        found = hashlib.sha256(rows).hexdigest()
        if found != sha256:
            raise ValueError(f"its rows have SHA-256 {found[:12]}..., recorded {sha256[:12]}...")
        functions = tuple(Function(**row) for row in json.loads(b"[" + b",".join(rows.splitlines()) + b"]"))
    except (gzip.BadGzipFile, EOFError, zlib.error, TypeError, KeyError, ValueError) as error:
        raise RuntimeError(f"{path} is no whole reading of functions: {error}; restore it") from error
    return Reading(functions, versions, sha256)


def part_of(function: Function) -> Part:
    """Its part of the data, by file (80, 10 and 10 % of the files): functions of one file describe one another, so they stay together."""
    number = zlib.crc32(f"{function.library}/{function.file}".encode()) % 10
    return "test" if number == 0 else "validation" if number == 1 else "train"


def subtokens(name: str) -> list[str]:
    """Lower-case pieces of an identifier, split at ``_``, ``.``, digits and changes of case: ``fitRBFKernel_2`` to fit rbf kernel 2."""
    return [piece.lower() for piece in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", name)]


def words(text: str) -> list[str]:
    """Lower-case words of a sentence: letters and digits, with an apostrophe inside."""
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower())
