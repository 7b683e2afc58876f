"""Lay out a paper that is not begun: its folder, its test, its notebook.

What is laid out imports and is clean for ruff and mypy. Its test fails, and names line by line what is still to be written.
"""

import json
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import nbformat

from mtlearn import papers

WIDTH = 150


def scaffold(chapter: str, slug: str, root: Path) -> list[Path]:
    """Write the parts of a paper of the catalogue into a checkout.

    Args:
        chapter: the paper's chapter.
        slug: the paper.
        root: the checkout.

    Returns:
        What was written, relative to ``root``.

    Raises:
        ValueError: unknown paper or chapter (with the nearest names), a chapter that is not the paper's, a folder that is not a checkout,
            or a part that is there already. Then nothing was written.
    """
    paper = papers.paper(slug)
    wanted = papers.chapter(chapter)
    if paper.chapter != wanted.slug:
        raise ValueError(f"{slug} belongs to the chapter {paper.chapter}, not to {chapter}: `mtlearn new {paper.chapter} {slug}`")
    if not (root / "mtlearn" / "papers.toml").is_file():
        raise ValueError(f"{root} is not a checkout of mtlearn: it has no mtlearn/papers.toml")

    home = Path("mtlearn", chapter, slug)
    notebook = Path("notebooks", wanted.folder, f"{slug}.ipynb")
    files = {home / f"{part}.py": f"{part}.py.jinja" for part in ("method", "experiment", "explorer", "exercises")}
    files[Path("tests", chapter, f"test_{slug}.py")] = "test.py.jinja"
    files[notebook] = "notebook.jinja"
    if there := [path.as_posix() for path in files if (root / path).exists()]:
        raise ValueError(f"{slug} is begun already, and nothing is overwritten: {', '.join(there)}")

    where = f"arXiv {paper.arxiv}, {paper.year}" if paper.venue == "arXiv" else f"{paper.venue} {paper.year}"
    citation = f"{_authors(paper)}, {where}"
    links = {"Paper": paper.arxiv and f"https://arxiv.org/abs/{paper.arxiv}", "Code of the authors": paper.code}
    words = {
        "paper": paper,
        "camel": "".join(word.capitalize() for word in slug.split("_")),
        "citation": citation,
        "links": "".join(f" [{name}]({address})" for name, address in links.items() if address),
        "heading": f"{slug.replace('_', ' ').capitalize()} ({citation}).",
    }
    texts = {path: _templates().get_template(name).render(words) for path, name in files.items()}
    texts[notebook] = _notebook(texts[notebook])
    packages = (home.parent / "__init__.py", home / "__init__.py")
    texts |= {package: "" for package in packages if not (root / package).exists()}
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8", newline="\n")
    return sorted(texts)


@cache
def _templates() -> jinja2.Environment:
    """Templates of code, so nothing is escaped."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("mtlearn", "templates"), autoescape=False, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    found.filters["wrap"] = lambda text: textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return found


def _authors(paper: papers.Paper) -> str:
    names = paper.authors
    return names[0] if len(names) == 1 else f"{names[0]} and {names[1]}" if len(names) == 2 else f"{names[0]} and others"


def _notebook(text: str) -> str:
    """Cells between ``# %%`` lines, as a notebook's JSON; ``[markdown]`` makes text, ``tags=a,b`` tags the cell."""
    cells = []
    for number, block in enumerate(f"\n{text}".split("\n# %%")[1:]):
        first, _, body = block.partition("\n")
        tags = first.partition("tags=")[2].split(",") if "tags=" in first else []
        cell: dict[str, Any] = {"cell_type": "code", "execution_count": None, "outputs": []}
        if "[markdown]" in first:
            cell = {"cell_type": "markdown"}
        cell |= {"id": f"cell-{number:02d}", "metadata": {"tags": tags} if tags else {}, "source": body.strip().splitlines(keepends=True)}
        cells.append(cell)
    kernel = {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    nbformat.validate(notebook)
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
