"""Documented source code: the functions of the running Python's standard library, with their code, tokens and docstrings.

Real data that need no download. The files are parsed, never imported. One function::

    module      textwrap
    name        shorten
    source      def shorten(text, width, **kwargs): ... the lines as they are, the docstring included
    code        the same without the docstring
    docstring   Collapse and truncate the given text to fit in the given width. ...
    tokens      def shorten ( text , width , ** kwargs ) : w = TextWrapper ( width = width , ...
    identifiers True for shorten, text, width, kwargs, w, TextWrapper ... and False for def, (, = ...

Top-level modules and first-level packages are read; tests, and the parts that a build may lack, are not. Functions without a docstring of at least
``words`` words are left out and counted; so are those that stand on one line with their docstring.

What is read is what this Python has: another version has other functions. Record :attr:`SourceCorpus.fingerprint` with a result.
"""

import ast
import contextlib
import hashlib
import io
import json
import keyword
import platform
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mtlearn import paths
from mtlearn.datasets.functions import SKIPPED, subtokens
from mtlearn.datasets.kept_rows import load_rows, save_rows

# Beside tests: what needs a display or a tool that a build may lack, and what is generated for one machine
LEFT_OUT = SKIPPED | {"turtledemo", "tkinter", "ensurepip", "pydoc_data", "distutils", "lib-dynload", "dbm", "curses"}
_NO_TOKEN = frozenset({tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER})
NEWLINE, INDENT, DEDENT = "<newline>", "<indent>", "<dedent>"  # the layout tokens of Python by name
_LAYOUT = {tokenize.NEWLINE: NEWLINE, tokenize.INDENT: INDENT, tokenize.DEDENT: DEDENT}


@dataclass(frozen=True)
class SourceFunction:
    """One documented function or method.

    Attributes:
        module: the file below the library's folder, without ``.py``, with dots: "json.decoder".
        name: qualified name in the file, "JSONDecoder.decode".
        source: its lines as they are in the file, from ``def`` on, with the indentation of the whole taken away.
        code: the source without the docstring.
        docstring: its text, indentation taken away.
        tokens: the tokens of ``code`` as Python's tokenizer gives them, without comments; those of the layout are ``<newline>``, ``<indent>`` and
            ``<dedent>``.
        identifiers: for each token, whether it is a name that a programmer chose (a name that is no keyword).
    """

    module: str
    name: str
    source: str
    code: str
    docstring: str
    tokens: tuple[str, ...]
    identifiers: tuple[bool, ...]

    @property
    def body(self) -> tuple[str, ...]:
        """Tokens behind ``def`` and the function's name: what may be shown where the name is to be guessed."""
        at = self.tokens.index("def")
        return (*self.tokens[:at], *self.tokens[at + 2 :])

    def pieces(self, *, layout: bool = False) -> list[str]:
        """The body in lower-case pieces: names split at underscores and changes of case, strings and numbers as one word each.

        Args:
            layout: whether layout tokens are kept.
        """
        found: list[str] = []
        for token in self.body:
            if token in (NEWLINE, INDENT, DEDENT):
                found += [token] if layout else []
            elif token[:1].isalpha() or token[:1] == "_":
                found += [token] if token[-1:] in "'\"" else subtokens(token) or ["_"]
            else:
                found.append("<number>" if token[:1].isdigit() else token)
        return ["<string>" if piece[-1:] in "'\"" else piece for piece in found]


@dataclass(frozen=True)
class SourceCorpus:
    """Functions and where they come from.

    Attributes:
        functions: in the order of modules and lines.
        python: version of the interpreter whose library it is.
        sha256: of the rows.
        skipped: functions that were left out for want of a docstring.
    """

    functions: tuple[SourceFunction, ...]
    python: str
    sha256: str
    skipped: int

    @property
    def fingerprint(self) -> dict[str, object]:
        """What to record beside a result."""
        return {"python": self.python, "sha256": self.sha256, "functions": len(self.functions), "skipped": self.skipped}


@cache
def standard_library(words: int = 4) -> SourceCorpus:
    """The documented functions of the running Python's standard library; the first reading takes some seconds, later ones come from the user's cache.

    Args:
        words: words that a docstring must have.

    Raises:
        ValueError: ``words`` is below 1.
    """
    parser = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]  # another parser, another file
    path = paths.cache() / "source_code" / f"{sys.implementation.name}-{platform.python_version()}-{words}-{parser}.jsonl.gz"
    if (kept := load_rows(path)) is not None:
        first, _, rows = kept.partition(b"\n")
        parsed: list[list[Any]] = json.loads(b"[" + b",".join(rows.splitlines()) + b"]")
        functions = [
            SourceFunction(module, name, source, code, docstring, tuple(tokens), tuple(map(bool, chosen)))
            for module, name, source, code, docstring, tokens, chosen in parsed
        ]
        return SourceCorpus(tuple(functions), platform.python_version(), hashlib.sha256(rows).hexdigest(), int(first))
    corpus = read_sources(Path(sysconfig.get_path("stdlib")), words=words)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time and nothing else
        save_rows(path, f"{corpus.skipped}\n".encode() + _rows(corpus.functions))
    return corpus


def _rows(functions: Sequence[SourceFunction]) -> bytes:
    """A line of JSON for each."""
    lists = ([f.module, f.name, f.source, f.code, f.docstring, f.tokens, [int(i) for i in f.identifiers]] for f in functions)
    return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in lists).encode("ascii")


def read_sources(folder: Path, *, words: int = 4) -> SourceCorpus:
    """The documented functions of the Python files in ``folder`` and in its first-level folders, tests left out.

    Raises:
        ValueError: ``words`` is below 1, or there is no Python file.
    """
    if words < 1:
        raise ValueError(f"words must be at least 1, got {words}")
    files = [p for p in (*folder.glob("*.py"), *folder.glob("*/*.py")) if LEFT_OUT.isdisjoint(p.relative_to(folder).parts[:-1])]
    if not files:
        raise ValueError(f"there is no Python file in {folder}")
    functions: list[SourceFunction] = []
    skipped = 0
    for path in sorted(files, key=lambda path: path.relative_to(folder).as_posix()):
        if path.name.startswith(("test_", "_sysconfigdata")):
            continue
        found = read_file(path.read_bytes(), ".".join(path.relative_to(folder).with_suffix("").parts))
        kept = [function for function in found if len(function.docstring.split()) >= words]
        skipped += len(found) - len(kept)
        functions += kept
    return SourceCorpus(tuple(functions), platform.python_version(), hashlib.sha256(_rows(functions)).hexdigest(), skipped)


def read_file(content: bytes, module: str) -> list[SourceFunction]:
    """The functions and methods of one file, those without a docstring too; none where it is not valid Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file's invalid escapes are not ours to report
        try:
            text = io.TextIOWrapper(io.BytesIO(content), tokenize.detect_encoding(io.BytesIO(content).readline)[0]).read()
            tree = ast.parse(text)
            tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        except (SyntaxError, ValueError):
            return []
    lines = text.splitlines(keepends=True)
    starts = _line_starts(tokens)
    return [_function(node, name, module, lines, tokens, starts) for node, name in _definitions(tree)]


def _definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Functions and methods, in the order of the file; those inside functions are left out."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child, prefix + child.name
        else:
            yield from _definitions(child, f"{prefix}{child.name}." if isinstance(child, ast.ClassDef) else prefix)


def _line_starts(tokens: Sequence[tokenize.TokenInfo]) -> dict[int, int]:
    """The first token of each line."""
    starts: dict[int, int] = {}
    for i, token in enumerate(tokens):
        if token.type not in (tokenize.DEDENT, tokenize.INDENT):  # these stand before the first word of a line
            starts.setdefault(token.start[0], i)
    return starts


def _function(
    node: ast.FunctionDef | ast.AsyncFunctionDef,
    name: str,
    module: str,
    lines: Sequence[str],
    tokens: Sequence[tokenize.TokenInfo],
    starts: dict[int, int],
) -> SourceFunction:
    assert node.end_lineno is not None
    first, last = node.lineno, node.end_lineno
    docstring, hidden = ast.get_docstring(node) or "", range(0)
    if docstring:
        told = node.body[0]
        assert told.end_lineno is not None
        alone = lines[told.lineno - 1][: told.col_offset].isspace() and (len(node.body) == 1 or node.body[1].lineno > told.end_lineno)
        docstring = docstring if alone else ""  # else its lines hold code, too
        hidden = range(told.lineno, told.end_lineno + 1) if alone else hidden
    own = [(number, lines[number - 1]) for number in range(first, last + 1)]
    own = [(number, line[node.col_offset :] if line[: node.col_offset].isspace() else line) for number, line in own]

    kept: list[tokenize.TokenInfo] = []
    i, depth = starts[first], 0
    while tokens[i].start[0] <= last or (depth > 0 and tokens[i].type in (tokenize.DEDENT, tokenize.NL, tokenize.COMMENT)):
        depth += {tokenize.INDENT: 1, tokenize.DEDENT: -1}.get(tokens[i].type, 0)
        shown = tokens[i].start[0] not in hidden or tokens[i].type == tokenize.INDENT  # the docstring's line opens the body
        kept += [tokens[i]] if shown and tokens[i].type not in _NO_TOKEN else []
        i += 1
    return SourceFunction(
        module,
        name,
        "".join(line for _, line in own),
        "".join(line for number, line in own if number not in hidden),
        docstring,
        tuple(_LAYOUT.get(token.type, token.string) for token in kept),
        tuple(token.type == tokenize.NAME and not keyword.iskeyword(token.string) for token in kept),
    )
