r"""Texts as characters: the long articles of Python's own reference, the docstrings of a library, the source of modules, as one string each.

Real text that needs no download. One line of the reference topics and what a character model sees of it::

    Sequence Types - "list", "tuple", "range"        tokens  52 70 82 86 70 79 68 70  1 53 90 81 70 84 ...

Every text is written in the same 96 characters (:data:`ALPHABET`): the newline, which is token 0, and printable ASCII. Tabs become four spaces,
curly quotes, dashes and the ellipsis their plain forms; what is left over is dropped (:func:`plain`).

What can be had of it::

    articles = reference_topics()                    # 79 articles of Python's reference, each with its name, title and sections
    text = reference_text()                          # all of them as one text
    text = library_text("numpy")                     # the pages of the documentation world
    text = source_text(("json", "argparse"))         # modules of the standard library
    train, validation, test = text.split(validation=0.1, test=0.15)    # by position: the last part is for the test
    contexts, following = windows(test.tokens, 16, torch.tensor([40, 41]))   # what stands before two places, and the characters there

**Why it repeats.** Topics come in the order of their names, pages in that of the documentation corpus, modules as they are listed. The texts are
those of the installed versions: record :attr:`Text.fingerprint` with a result.
"""

from __future__ import annotations

import hashlib
import itertools
import platform
import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mtlearn.datasets.documentation import documentation
from mtlearn.tables import nearest

if TYPE_CHECKING:  # the texts alone need no PyTorch
    from torch import Tensor

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
NUMBER_OF_TOKENS = len(ALPHABET)
_PLAIN = str.maketrans(
    {"\t": "    ", "\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u2013": "-", "\u2014": "-", "\u2026": "...", "\u00a0": " "}
)
_LEFT_OVER = re.compile(r"[^\n -~]")
_UNDERLINES = "*=-"  # of a title, a section, a part of a section


def plain(text: str) -> str:
    """A text in the characters of :data:`ALPHABET`, with spaces at the ends of lines taken away."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").translate(_PLAIN)
    return re.sub(r" +(?=\n|$)", "", _LEFT_OVER.sub("", lines))


def encode(text: str) -> Tensor:
    """Characters to token numbers (length,) int64.

    Raises:
        ValueError: a character that is not in the alphabet; :func:`plain` takes care of these.
    """
    import torch

    if found := next((letter for letter in text if letter not in _NUMBER), None):
        raise ValueError(f"{found!r} at place {text.index(found)} is not among the {NUMBER_OF_TOKENS} characters; call plain(text) first")
    return torch.tensor([_NUMBER[letter] for letter in text], dtype=torch.int64)


def decode(tokens: Tensor | Sequence[int]) -> str:
    """Token numbers to characters.

    Raises:
        ValueError: a number below 0 or beyond the alphabet.
    """
    numbers = [int(token) for token in tokens]
    if bad := [token for token in numbers if not 0 <= token < NUMBER_OF_TOKENS]:
        raise ValueError(f"tokens must be between 0 and {NUMBER_OF_TOKENS - 1}, got {bad[0]}")
    return "".join(ALPHABET[token] for token in numbers)


_NUMBER = {letter: number for number, letter in enumerate(ALPHABET)}


@dataclass(frozen=True)
class Text:
    """One long text in the characters of :data:`ALPHABET`.

    Attributes:
        name: what it is.
        characters: the text.
        version: of what it was read from, "Python 3.11.7" or "numpy 2.4.1".
    """

    name: str
    characters: str
    version: str = ""

    def __len__(self) -> int:
        return len(self.characters)

    @cached_property
    def tokens(self) -> Tensor:
        """(length,) int64."""
        return encode(self.characters)

    @property
    def fingerprint(self) -> dict[str, object]:
        """What to record beside a result."""
        return {"version": self.version, "sha256": hashlib.sha256(self.characters.encode()).hexdigest(), "characters": len(self)}

    def first(self, characters: int) -> Text:
        """The beginning of the text; all of it where it is shorter. ValueError below 1."""
        if characters < 1:
            raise ValueError(f"characters must be at least 1, got {characters}")
        return Text(self.name, self.characters[:characters], self.version)

    def split(self, *, validation: float = 0.0, test: float = 0.15) -> tuple[Text, Text, Text]:
        """Train, validation and test part, in this order along the text, so that no window lies in two.

        Raises:
            ValueError: a share is negative, or nothing is left for training.
        """
        if validation < 0 or test < 0 or validation + test >= 1:
            raise ValueError(f"validation and test must be at least 0 and together below 1, got {validation} and {test}")
        ends = (0, round((1 - validation - test) * len(self)), round((1 - test) * len(self)), len(self))
        train, middle, last = (Text(self.name, self.characters[low:high], self.version) for low, high in itertools.pairwise(ends))
        return train, middle, last


def windows(tokens: Tensor, context: int, places: Tensor) -> tuple[Tensor, Tensor]:
    """The ``context`` tokens before each place, and the token at the place; before the text stand newlines.

    Args:
        tokens: (length,) int64.
        context: tokens to show, at least 1.
        places: int64 of any shape, each in [0, length).

    Returns:
        contexts (*places, context), following (*places).

    Raises:
        ValueError: ``context`` is below 1, or a place lies outside the text.
    """
    import torch

    if context < 1:
        raise ValueError(f"context must be at least 1, got {context}")
    if places.numel() and not (int(places.min()) >= 0 and int(places.max()) < len(tokens)):
        raise ValueError(f"places must be between 0 and {len(tokens) - 1}, got {int(places.min())} to {int(places.max())}")
    padded = torch.cat([tokens.new_zeros(context), tokens])  # place p of the text is place p + context here
    return padded[places[..., None] + torch.arange(context, device=tokens.device)], tokens[places]


# Python's reference topics


@dataclass(frozen=True)
class Section:
    """A part of an article: its heading (of the article itself: the title), how deep it lies (0 for the article's opening), its paragraphs."""

    heading: str
    depth: int
    text: str


@dataclass(frozen=True)
class Topic:
    """One article of Python's reference, which ``help("typesseq")`` shows.

    Attributes:
        name: "typesseq".
        text: the article, its headings underlined with ``*``, ``=`` and ``-`` from the outer to the inner.
    """

    name: str
    text: str

    @property
    def title(self) -> str:
        """Its first line that is not empty."""
        return self.text.lstrip("\n").partition("\n")[0]

    @property
    def sections(self) -> tuple[Section, ...]:
        """The article cut at its headings; the first begins at the title."""
        lines = self.text.split("\n")
        found: list[tuple[int, str, int]] = []  # line of the heading, heading, depth
        for i in range(len(lines) - 1):
            rule = lines[i + 1]
            if lines[i].strip() and len(rule) > 2 and rule[0] in _UNDERLINES and set(rule) == {rule[0]} and not lines[i].startswith(" "):
                found.append((i, lines[i], _UNDERLINES.index(rule[0])))
        ends = [start for start, _, _ in found[1:]] + [len(lines)]
        return tuple(Section(heading, depth, "\n".join(lines[i + 2 : end]).strip("\n")) for (i, heading, depth), end in zip(found, ends, strict=True))

    @property
    def paragraphs(self) -> tuple[str, ...]:
        """Its paragraphs of prose, each in one line: no headings, no code or tables (which are indented), no lists."""
        blocks = (block for section in self.sections for block in section.text.split("\n\n"))
        return tuple(" ".join(block.split()) for block in blocks if re.match(r"[A-Z\"]", block) and not re.search(r"^[+|]", block, re.MULTILINE))


@cache
def reference_topics() -> tuple[Topic, ...]:
    """The long articles of Python's own reference, in the order of their names (``pydoc_data.topics``).

    Two names of one article are one topic, under the first name.
    """
    from pydoc_data.topics import topics

    found: dict[str, str] = {}
    for name in sorted(topics):
        found.setdefault(plain(topics[name]).strip("\n"), name)
    return tuple(Topic(name, text) for text, name in found.items())


@cache
def reference_text() -> Text:
    """All reference topics as one text, an empty line between two."""
    return Text("reference topics", "\n\n".join(topic.text for topic in reference_topics()) + "\n", f"Python {platform.python_version()}")


# Docstrings and source


@cache
def library_text(library: str) -> Text:
    """The docstrings of a library's public functions and classes as one text, read from :func:`mtlearn.datasets.documentation.documentation`.

    A page is its name and signature, its summary, and its sections under underlined headings.

    Raises:
        ValueError: a library that the documentation world does not read.
    """
    corpus = documentation((library,))
    pages = []
    for page in corpus.pages:
        parts = [page.signature or page.name, page.summary]
        parts += [text if heading == "Extended Summary" else f"{heading}\n{'-' * len(heading)}\n{text}" for heading, text in page.sections]
        pages.append("\n\n".join(part for part in parts if part))
    return Text(f"{library} docstrings", plain("\n\n\n".join(pages) + "\n"), f"{library} {dict(corpus.versions)[library]}")


def source_text(modules: Sequence[str]) -> Text:
    """The source of modules and packages of the standard library as one text; files are read, never imported.

    Args:
        modules: names of top-level modules, "argparse" or "json"; of a package all its own files, in the order of their names.

    Raises:
        ValueError: no module, one text in place of names, or a name that the standard library has not.
    """
    if isinstance(modules, str) or not modules:
        raise ValueError(f"modules must be a tuple of names, got {modules!r}")
    folder = Path(sysconfig.get_paths()["stdlib"])
    files: list[Path] = []
    for module in modules:
        package, file = folder / module, folder / f"{module}.py"
        if not module.isidentifier() or not (package.is_dir() or file.is_file()):
            raise ValueError(f"the standard library has no module {module!r}{nearest(module, [path.stem for path in folder.glob('*.py')])}")
        files += sorted(package.glob("*.py")) if package.is_dir() else [file]
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in files)
    return Text(f"source of {', '.join(modules)}", plain(text), f"Python {platform.python_version()}")
