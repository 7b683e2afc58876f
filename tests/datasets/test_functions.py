import dataclasses
import gzip
import json
import shutil
import sys

import pytest

from mtlearn.datasets import functions
from mtlearn.datasets.functions import Function

SOURCE = '''
"""Module."""
def outer(x):
    """Do one thing.  And another."""
    def inner():
        """Inside the
        outer one

        More text."""
class Shape:
    """A shape, e.g. a circle. More."""
    async def area(self):
        """Its area"""
    def bare(self): ...
if True:
    def guarded():
        "Guarded."
'''


def test_one_file_gives_its_documented_functions_in_order():
    assert functions.read_source(SOURCE.encode(), "numpy", "a/b.py") == [
        Function("numpy", "a/b.py", "outer", "Do one thing."),
        Function("numpy", "a/b.py", "outer.inner", "Inside the outer one"),
        Function("numpy", "a/b.py", "Shape", "A shape, e.g. a circle."),
        Function("numpy", "a/b.py", "Shape.area", "Its area"),
        Function("numpy", "a/b.py", "guarded", "Guarded."),
    ]
    assert functions.read_source(b"def {{ name }}(): pass", "numpy", "template.py") == []
    assert functions.read_source(b"def f():\n    'Odd \\d escape.'", "numpy", "odd.py")[0].name == "f"


def test_a_folder_is_read_without_its_tests(tmp_path):
    for file in ("b.py", "a/c.py", "tests/d.py", "a/test_e.py", "a/conftest.py", "notes.txt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(SOURCE)
    found = list(functions.read_folder(tmp_path, "scipy"))
    assert list(dict.fromkeys(function.file for function in found)) == ["a/c.py", "b.py"]
    assert len(found) == 10


def test_the_installed_packages_are_read_without_importing_them(tmp_path, monkeypatch):
    package = tmp_path / "networkx"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\ndef f():\n    'Doc.'\n")
    monkeypatch.syspath_prepend(tmp_path)

    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "networkx"}
    try:
        found = functions.read_functions(["networkx"])
    finally:
        sys.modules.update(hidden)
    assert [function.name for function in found.functions] == ["f"] and set(found.versions) == {"networkx"}
    with pytest.raises(ValueError, match="one of python, numpy, scipy, networkx, sklearn, torch, got 'pandas'"):
        functions.read_functions(["pandas"])
    monkeypatch.setattr(functions, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="scipy is not installed"):
        functions.read_functions(["scipy"])


def test_the_standard_library_lies_where_python_says(monkeypatch, tmp_path):
    (tmp_path / "mod.py").write_text(SOURCE)
    monkeypatch.setattr(functions.sysconfig, "get_path", lambda name: str(tmp_path))
    assert len(functions.read_functions([functions.STANDARD_LIBRARY]).functions) == 5


def test_a_reading_is_stored_and_read_again_to_the_byte(tmp_path):
    rows = tuple(functions.read_source(SOURCE.encode(), "numpy", "shape.py"))
    digest = functions.hashlib.sha256(functions._rows(rows)).hexdigest()
    reading = functions.Reading(rows, {"numpy": "2.0"}, digest)
    path = tmp_path / "worlds" / "rows.gz"
    functions.save_reading(reading, path)
    once = path.read_bytes()
    assert functions.load_reading(path) == reading
    functions.save_reading(reading, path)
    assert path.read_bytes() == once
    header = json.loads(gzip.decompress(once).split(b"\n")[0])
    assert header["count"] == 5 and header["licences"] == {"numpy": "BSD-3-Clause"}


DAMAGES = {
    "cut": lambda data: data[:-20],
    "not gzip": lambda data: b"text",
    "changed": lambda data: gzip.compress(gzip.decompress(data).replace(b"Compute", b"Confute")),
    "empty": lambda data: gzip.compress(b""),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_reading_is_refused(tmp_path, damage):
    path = shutil.copy(functions.shipped(), tmp_path / "rows.gz")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RuntimeError, match=r"rows\.gz is no whole reading of functions"):
        functions.load_reading(path)


def test_a_missing_reading_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(functions, "shipped", lambda: tmp_path / "gone.gz")
    with pytest.raises(RuntimeError, match=r"gone\.gz is missing"):
        functions.documented_functions.__wrapped__()


def test_the_shipped_reading_is_large_and_clean():
    reading = functions.documented_functions()
    assert reading is functions.documented_functions()
    assert len(reading.functions) > 25_000 and set(reading.versions) == set(functions.LIBRARIES) == set(functions.LICENCES)
    assert {function.library for function in reading.functions} == set(functions.LIBRARIES)
    assert all(function.summary and function.summary == " ".join(function.summary.split()) for function in reading.functions)
    known = {(function.file, function.name): function for function in reading.functions}
    assert known["textwrap.py", "dedent"].library == "python"
    assert known["algorithms/shortest_paths/generic.py", "shortest_path"].summary == "Compute shortest paths in the graph."
    assert not any("tests/" in function.file for function in reading.functions)


def test_the_parts_split_by_file():
    parts = {}
    for function in functions.documented_functions().functions:
        parts.setdefault((function.library, function.file), set()).add(functions.part_of(function))
    assert all(len(part) == 1 for part in parts.values())
    counts = {name: sum(part == {name} for part in parts.values()) / len(parts) for name in ("train", "validation", "test")}
    assert counts == pytest.approx({"train": 0.8, "validation": 0.1, "test": 0.1}, abs=0.03)
    one = functions.documented_functions().functions[0]
    assert functions.part_of(one) == functions.part_of(dataclasses.replace(one, name="other", summary="x"))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("solve_banded", "solve banded"),
        ("Graph.add_edge", "graph add edge"),
        ("fitRBFKernel_2", "fit rbf kernel 2"),
        ("__init__", "init"),
        ("HTTPServer", "http server"),
        ("is_HDN", "is hdn"),
        ("conv2d", "conv 2 d"),
        ("_", ""),
    ],
)
def test_identifiers_fall_into_pieces(name, wanted):
    assert functions.subtokens(name) == wanted.split()


def test_sentences_fall_into_words():
    assert functions.words("Return the *N*-th item; don't use `x_1`.") == ["return", "the", "n", "th", "item", "don't", "use", "x", "1"]
    assert functions.first_sentence("One. Two.") == "One." and functions.first_sentence("") == ""
    assert functions.first_sentence("Version 1.2 of it, i.e. this one! More") == "Version 1.2 of it, i.e. this one!"
