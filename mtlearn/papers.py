"""The catalogue: the chapters and papers of ``papers.toml``, and which parts of each paper exist.

    for paper in papers("pointing"):
        print(paper.slug, paper.title, paper.notebook)
    experiment("pointer_networks").question

Loading it imports neither torch nor numpy nor matplotlib, so that the command answers at once.
"""

import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from mtlearn import paths
from mtlearn.tables import check_name, check_row, listed, nearest

if TYPE_CHECKING:
    from mtlearn.lab.experiment import Experiment

PARTS = ("method", "experiment", "explorer", "exercises", "notebook", "tests", "result")
YEARS = range(1950, 2101)
_ARXIV = re.compile(r"\d\d(0[1-9]|1[0-2])\.\d{4,5}")


class UnknownPaperError(ValueError):
    """No paper has that slug; the message names the nearest ones."""

    def __init__(self, slug: str, known: Collection[str]) -> None:
        super().__init__(f"there is no paper {slug!r}{nearest(slug, known)}; `mtlearn papers` lists all {len(known)}")


class UnknownChapterError(ValueError):
    """No chapter has that name; the message lists them."""

    def __init__(self, name: str, known: Collection[str]) -> None:
        super().__init__(f"there is no chapter {name!r}{nearest(name, known)}; the chapters are {', '.join(known)}")


@dataclass(frozen=True)
class Chapter:
    """A chapter: its number (from 1, in reading order), the name of its folders and packages, its title, and what one learns in it."""

    number: int
    slug: str
    title: str
    learn: str

    @property
    def folder(self) -> str:
        """Its folder in ``notebooks/``: "01_pointing"."""
        return f"{self.number:02d}_{self.slug}"


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

    def part(self, name: str, root: Path | None = None) -> str | None:
        """One part's path relative to ``root`` (by default the checkout, or the folder that the wheel is in), None where it is missing."""
        base = root or paths.root() or paths.PACKAGE.parent
        if name == "tests":  # a file, or a folder of them
            file = f"tests/{self.chapter}/test_{self.slug}.py"
            if not (base / file).is_file():
                file = next((path.relative_to(base).as_posix() for path in sorted(base.glob(f"tests/{self.chapter}/{self.slug}/test_*.py"))), "")
        elif name == "notebook":
            file = f"notebooks/{chapter(self.chapter).folder}/{self.slug}.ipynb"
        elif name == "result":
            shipped = base / "data" if root else paths.data()
            file = (shipped / "results" / f"{self.slug}.json").relative_to(base).as_posix()
        else:
            file = f"{self.package.replace('.', '/')}/{name}.py"
        return file if file and (base / file).is_file() else None

    def parts(self, root: Path | None = None) -> dict[str, str | None]:
        """Every part by name: see :meth:`part`."""
        return {name: self.part(name, root) for name in PARTS}

    @property
    def method(self) -> str | None:
        """What the paper adds, as code."""
        return self.part("method")

    @property
    def experiment(self) -> str | None:
        """What it claims, as a runnable comparison."""
        return self.part("experiment")

    @property
    def explorer(self) -> str | None:
        """How to touch it."""
        return self.part("explorer")

    @property
    def exercises(self) -> str | None:
        """Questions with a check."""
        return self.part("exercises")

    @property
    def notebook(self) -> str | None:
        """Where it is taught."""
        return self.part("notebook")

    @property
    def tests(self) -> str | None:
        """Its tests: a file, or the first one of its folder."""
        return self.part("tests")

    @property
    def result(self) -> str | None:
        """The recorded laptop result."""
        return self.part("result")


def papers(chapter: str | None = None) -> tuple[Paper, ...]:
    """All papers, or those of one chapter, in reading order. UnknownChapterError names the chapters."""
    everything = _catalogue()[1]
    if chapter is None:
        return everything
    known = [row.slug for row in chapters()]
    if chapter not in known:
        raise UnknownChapterError(chapter, known)
    return tuple(row for row in everything if row.chapter == chapter)


def chapters() -> tuple[Chapter, ...]:
    """The chapters in reading order."""
    return _catalogue()[0]


def chapter(slug: str) -> Chapter:
    """The chapter of that name. UnknownChapterError names them all."""
    for candidate in chapters():
        if candidate.slug == slug:
            return candidate
    raise UnknownChapterError(slug, [known.slug for known in chapters()])


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
        raise ValueError(f"papers.toml: unknown table {listed(unknown)}; there are [[chapter]] and [[paper]]")

    found_chapters: dict[str, Chapter] = {}
    for number, row in enumerate(tables.get("chapter", []), 1):
        where = f"papers.toml, chapter {number} ({row.get('slug', 'without slug')})"
        check_row(row, where, {"slug": str, "title": str, "learn": str})
        check_name(row["slug"], where)
        if row["slug"] in found_chapters:
            raise ValueError(f"{where}: that slug is there twice")
        found_chapters[row["slug"]] = Chapter(number, **row)

    found_papers: dict[str, Paper] = {}
    kinds = {field.name: {"authors": list, "year": int}.get(field.name, str) for field in fields(Paper)}
    for number, row in enumerate(tables.get("paper", []), 1):
        where = f"papers.toml, paper {number} ({row.get('slug', 'without slug')})"
        check_row(row, where, kinds, may_be_empty=("arxiv", "code"))
        check_name(row["slug"], where)
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
        raise ValueError(f"papers.toml: no paper in chapter {listed(empty)}")
    order = list(found_chapters)
    return tuple(found_chapters.values()), tuple(sorted(found_papers.values(), key=lambda entry: order.index(entry.chapter)))


@cache
def _catalogue() -> tuple[tuple[Chapter, ...], tuple[Paper, ...]]:
    return read_catalogue((paths.PACKAGE / "papers.toml").read_text(encoding="utf-8"))
