"""The standard library's functions: what is read of a file by hand, and of the running Python."""

import ast
import json
import keyword
from pathlib import Path

import pytest

from mtlearn.datasets import source_code
from mtlearn.datasets.source_code import read_file, read_sources, standard_library

SHOUT = '''
import os

class Crier:
    """Not a function."""

    def shout(self, words_ToSay, times=2):
        """Say the words loudly, more than once."""
        # a comment
        for _ in range(times):
            print("hey", words_ToSay)
        return 3.5

    def whisper(self): "On one line: left out."

async def wait(x):
    """A docstring which is the whole body."""


def bare(x):
    return x
'''


def test_a_file_by_hand() -> None:
    shout, whisper, wait, bare = read_file(SHOUT.encode(), "crier")
    assert (shout.module, shout.name, shout.docstring) == ("crier", "Crier.shout", "Say the words loudly, more than once.")
    assert shout.source.startswith('def shout(self, words_ToSay, times=2):\n    """Say') and "Say the" not in shout.code
    ast.parse(shout.code)
    head = ["def", "shout", "(", "self", ",", "words_ToSay", ",", "times", "=", "2", ")", ":", "<newline>", "<indent>", "for", "_", "in", "range"]
    assert list(shout.tokens[:18]) == head
    assert [t for t, i in zip(shout.tokens, shout.identifiers, strict=True) if i] == [
        *("shout", "self", "words_ToSay", "times", "_", "range", "times", "print", "words_ToSay")
    ]
    assert shout.tokens[-4:] == ("return", "3.5", "<newline>", "<dedent>")
    assert shout.tokens.count("<indent>") == shout.tokens.count("<dedent>") == 2
    assert shout.body[0] == "(" and "shout" not in shout.body
    pieces = shout.pieces()
    assert pieces[:9] == ["(", "self", ",", "words", "to", "say", ",", "times", "="] and "<string>" in pieces and "<number>" in pieces
    assert "<newline>" not in pieces and "<newline>" in shout.pieces(layout=True)
    assert whisper.docstring == "" and wait.docstring == "A docstring which is the whole body." and bare.docstring == ""
    assert wait.tokens[:3] == ("async", "def", "wait")
    assert wait.body[:2] == ("async", "(")


def test_what_cannot_be_parsed_is_passed_over() -> None:
    assert read_file(b"def f(:\n", "broken") == [] and read_file(b"\x00", "broken") == [] and read_file(b"# coding: nonsense\n", "broken") == []


def test_folders_are_read_and_functions_without_words_counted(tmp_path: Path) -> None:
    for name in ("a.py", "package/b.py", "package/deep/c.py", "test/d.py", "test_e.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SHOUT)
    corpus = read_sources(tmp_path)
    assert [f.module for f in corpus.functions] == ["a", "a", "package.b", "package.b"] and corpus.skipped == 4
    assert corpus.fingerprint["functions"] == 4 and corpus.fingerprint["skipped"] == 4
    assert len(read_sources(tmp_path, words=8).functions) == 0
    with pytest.raises(ValueError, match="words must be at least 1, got 0"):
        read_sources(tmp_path, words=0)
    with pytest.raises(ValueError, match="there is no Python file in"):
        read_sources(tmp_path / "nothing")


def test_the_cache_gives_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "library"
    library.mkdir()
    (library / "a.py").write_text(SHOUT)
    monkeypatch.setenv("MTLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(source_code.sysconfig, "get_path", lambda name: str(library))
    first = standard_library.__wrapped__()
    kept = list((tmp_path / "cache" / "source_code").iterdir())
    assert len(kept) == 1 and standard_library.__wrapped__() == first
    kept[0].write_bytes(b"broken")
    assert standard_library.__wrapped__() == first
    (library / "a.py").unlink()
    assert standard_library.__wrapped__() == first  # from the cache alone
    json.dumps(first.fingerprint)


def test_the_running_library() -> None:
    corpus = standard_library()
    assert len(corpus.functions) > 3000 and len(corpus.fingerprint["sha256"]) == 64
    known = {(f.module, f.name): f for f in corpus.functions}
    shorten = known["textwrap", "shorten"]
    assert shorten.docstring.startswith("Collapse and truncate") and "Collapse" not in shorten.code and "TextWrapper" in shorten.tokens
    assert all(len(f.docstring.split()) >= 4 and len(f.tokens) == len(f.identifiers) for f in corpus.functions)
    assert all(f.tokens.count("<indent>") == f.tokens.count("<dedent>") for f in corpus.functions)
    for f in corpus.functions[::40]:
        names = {t for t, i in zip(f.tokens, f.identifiers, strict=True) if i}
        assert not any(keyword.iskeyword(name) for name in names)
        tree = ast.parse(f.source)
        told = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        assert told <= names
