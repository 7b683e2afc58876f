"""The catalogue: the chapters and papers of ``papers.toml``, and which parts of each paper exist.

    for paper in papers("pointing"):
        print(paper.slug, paper.title, paper.notebook)
    experiment("pointer_networks").question

Loading it imports neither torch nor numpy nor matplotlib, so that the command answers at once.
"""

import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlearn import paths

if TYPE_CHECKING:
    from mtlearn.lab.experiment import Experiment

PARTS = ("method", "experiment", "explorer", "exercises", "notebook", "tests", "result")
YEARS = range(1950, 2101)
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ARXIV = re.compile(r"\d\d(0[1-9]|1[0-2])\.\d{4,5}")


class UnknownPaperError(ValueError):
    """No paper has that slug; the message names the nearest ones."""

    def __init__(self, slug: str, known: Collection[str]) -> None:
        super().__init__(f"there is no paper {slug!r}{_nearest(slug, known)}; `mtlearn papers` lists all {len(known)}")


class UnknownChapterError(ValueError):
    """No chapter has that name; the message lists them."""

    def __init__(self, name: str, known: Collection[str]) -> None:
        super().__init__(f"there is no chapter {name!r}{_nearest(name, known)}; the chapters are {', '.join(known)}")


@dataclass(frozen=True)
class Chapter:
    """A chapter: its number (from 1, in reading order), folder name, title, and what one learns in it."""

    number: int
    name: str
    title: str
    learn: str

    @property
    def folder(self) -> str:
        """Its folder in ``notebooks/``: "01_pointing"."""
        return f"{self.number:02d}_{self.name}"


@dataclass(frozen=True)
class Paper:
    """A row of the catalogue.

    Attributes:
        slug: the name of its folder, notebook, test and of the command's argument.
        title: as published; ``year`` and ``venue`` belong to this title ("arXiv" for a preprint).
        authors: full names in order; "others" stands for names that are not listed.
        arxiv: number such as "1506.03134", or "".
        code: address of the authors' own public code of this paper, or "".
        chapter: name of its chapter.
        idea: one sentence.

    The properties ``method``, ``experiment``, ``explorer``, ``exercises``, ``notebook``, ``tests`` and ``result`` are paths relative to
    the checkout, with forward slashes, or None where the part does not exist.
    """

    slug: str
    title: str
    authors: tuple[str, ...]
    year: int
    venue: str
    arxiv: str
    code: str
    chapter: str
    idea: str

    @property
    def package(self) -> str:
        """Import name: "mtlearn.pointing.pointer_networks"."""
        return f"mtlearn.{self.chapter}.{self.slug}"

    def parts(self, root: Path | None = None) -> dict[str, str | None]:
        """Every part's path relative to ``root`` (by default the checkout, or the folder the wheel is installed in), None where it is missing."""
        base = root or paths.root() or paths.PACKAGE.parent
        shipped = (base / "data" if root else paths.data()).relative_to(base).as_posix()
        home = self.package.replace(".", "/")
        where: dict[str, Iterable[str]] = {name: (f"{home}/{name}.py",) for name in PARTS[:4]}
        where["notebook"] = (f"notebooks/*_{self.chapter}/{self.slug}.ipynb",)
        where["tests"] = (f"tests/{self.chapter}/test_{self.slug}.py", f"tests/{self.chapter}/{self.slug}/test_*.py")
        where["result"] = (f"{shipped}/results/{self.slug}.json",)
        return {name: _first(base, where[name]) for name in PARTS}

    @property
    def method(self) -> str | None:
        """What the paper adds, as code."""
        return self.parts()["method"]

    @property
    def experiment(self) -> str | None:
        """What it claims, as a runnable comparison."""
        return self.parts()["experiment"]

    @property
    def explorer(self) -> str | None:
        """How to touch it."""
        return self.parts()["explorer"]

    @property
    def exercises(self) -> str | None:
        """Questions with a check."""
        return self.parts()["exercises"]

    @property
    def notebook(self) -> str | None:
        """Where it is taught."""
        return self.parts()["notebook"]

    @property
    def tests(self) -> str | None:
        """Its tests: a file, or the first one of its folder."""
        return self.parts()["tests"]

    @property
    def result(self) -> str | None:
        """The recorded laptop result."""
        return self.parts()["result"]


def papers(chapter: str | None = None) -> tuple[Paper, ...]:
    """All papers, or those of one chapter, in reading order. UnknownChapterError names the chapters."""
    if chapter is None:
        return _catalogue()[1]
    names = [known.name for known in chapters()]
    if chapter not in names:
        raise UnknownChapterError(chapter, names)
    return tuple(paper for paper in _catalogue()[1] if paper.chapter == chapter)


def chapters() -> tuple[Chapter, ...]:
    """The chapters in reading order."""
    return _catalogue()[0]


def paper(slug: str) -> Paper:
    """The paper of that slug. UnknownPaperError names the nearest slugs."""
    for candidate in papers():
        if candidate.slug == slug:
            return candidate
    raise UnknownPaperError(slug, [known.slug for known in papers()])


def experiment(slug: str) -> "Experiment":
    """The paper's ``EXPERIMENT``, imported. RuntimeError where the paper has none yet, UnknownPaperError where there is no such paper."""
    module = f"{paper(slug).package}.experiment"
    file = f"{module.replace('.', '/')}.py"
    try:
        found: Experiment | None = getattr(import_module(module), "EXPERIMENT", None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the experiment is there and imports something that is not
        raise RuntimeError(f"{slug} has no experiment yet ({file}); `mtlearn papers` shows which papers have one") from None
    if found is None:
        raise RuntimeError(f"{file} defines no EXPERIMENT")
    return found


def read_catalogue(text: str) -> tuple[tuple[Chapter, ...], tuple[Paper, ...]]:
    """Read and check a catalogue in TOML. ValueError names the row, the field, and what is right."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"papers.toml is not valid TOML: {error}") from error
    if unknown := set(tables) - {"chapter", "paper"}:
        raise ValueError(f"papers.toml: unknown table {_listed(unknown)}; there are [[chapter]] and [[paper]]")

    found_chapters: dict[str, Chapter] = {}
    for number, row in enumerate(tables.get("chapter", []), 1):
        where = _checked(row, "chapter", number, "name", {"name": str, "title": str, "learn": str})
        if row["name"] in found_chapters:
            raise ValueError(f"{where}: that name is there twice")
        found_chapters[row["name"]] = Chapter(number, **row)

    found_papers: dict[str, Paper] = {}
    kinds = {field.name: {"authors": list, "year": int}.get(field.name, str) for field in fields(Paper)}
    for number, row in enumerate(tables.get("paper", []), 1):
        where = _checked(row, "paper", number, "slug", kinds, may_be_empty=("arxiv", "code"))
        if row["slug"] in found_papers:
            raise ValueError(f"{where}: that slug is there twice")
        if row["chapter"] not in found_chapters:
            raise ValueError(f"{where}: unknown chapter {row['chapter']!r}; the chapters are {', '.join(found_chapters)}")
        if row["year"] not in YEARS:
            raise ValueError(f"{where}: year must be between {YEARS[0]} and {YEARS[-1]}, got {row['year']}")
        if row["arxiv"] and not _ARXIV.fullmatch(row["arxiv"]):
            raise ValueError(f'{where}: arxiv must be a number like "1506.03134" or "", got {row["arxiv"]!r}')
        if row["code"] and not row["code"].startswith("https://"):
            raise ValueError(f'{where}: code must be an https address or "", got {row["code"]!r}')
        if not all(isinstance(name, str) and name.strip() for name in row["authors"]):
            raise ValueError(f"{where}: authors must be names, got {row['authors']!r}")
        found_papers[row["slug"]] = Paper(**{**row, "authors": tuple(row["authors"])})

    if empty := set(found_chapters) - {entry.chapter for entry in found_papers.values()}:
        raise ValueError(f"papers.toml: no paper in chapter {_listed(empty)}")
    order = list(found_chapters)
    return tuple(found_chapters.values()), tuple(sorted(found_papers.values(), key=lambda entry: order.index(entry.chapter)))


def _checked(row: Mapping[str, Any], table: str, number: int, name: str, kinds: Mapping[str, type], may_be_empty: Collection[str] = ()) -> str:
    """Hold a row against its fields and their types; gives the words that name the row in an error."""
    where = f"papers.toml, {table} {number} ({row.get(name, f'without {name}')})"
    if missing := set(kinds) - set(row):
        raise ValueError(f"{where}: missing {_listed(missing)}")
    if unknown := set(row) - set(kinds):
        raise ValueError(f"{where}: unknown {_listed(unknown)}; the fields are {', '.join(kinds)}")
    for field, kind in kinds.items():
        if type(row[field]) is not kind:
            raise ValueError(f"{where}: {field} must be a {kind.__name__}, got {row[field]!r}")
        if kind is not int and not row[field] and field not in may_be_empty:
            raise ValueError(f"{where}: {field} is empty")
    if not _NAME.fullmatch(row[name]):
        raise ValueError(f"{where}: {name} must be lower case letters, digits and underscores, as a folder that Python can import, got {row[name]!r}")
    return where


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _nearest(name: str, known: Collection[str]) -> str:
    """The end of a message, ": did you mean a or b?", or nothing."""
    from difflib import get_close_matches  # here, because only a mistake needs it

    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    near = [candidate for candidate in known if plain and plain in candidate] or get_close_matches(plain, known, n=3)
    return f": did you mean {' or '.join(near[:3])}?" if near else ""


def _first(base: Path, patterns: Iterable[str]) -> str | None:
    for pattern in patterns:
        if "*" not in pattern:
            if (base / pattern).is_file():
                return pattern
        elif found := sorted(base.glob(pattern)):
            return found[0].relative_to(base).as_posix()
    return None


@cache
def _catalogue() -> tuple[tuple[Chapter, ...], tuple[Paper, ...]]:
    return read_catalogue((paths.PACKAGE / "papers.toml").read_text(encoding="utf-8"))
