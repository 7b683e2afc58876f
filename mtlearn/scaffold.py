"""Lay out a paper that is not begun: its folder, its test, its notebook.

What is laid out imports and is clean for ruff and mypy. Its test fails, and names line by line what is still to be written.
"""

import textwrap
from pathlib import Path

import jinja2
import nbformat

from mtlearn import papers

WIDTH = 148  # two under the line length, for the quotes


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

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mtlearn", "templates"), autoescape=False, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )  # code, not HTML
    environment.filters["wrap"] = lambda text: textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    citation = f"{_authors(paper)}. {paper.venue} {paper.year}."
    words = {
        "paper": paper,
        "camel": "".join(word.capitalize() for word in slug.split("_")),
        "citation": citation,
        "heading": f"{paper.title}. {citation}{f' arXiv {paper.arxiv}.' if paper.arxiv else ''}",
    }
    texts = {path: environment.get_template(name).render(words) for path, name in files.items()}
    texts[notebook] = _notebook(texts[notebook])
    packages = (home.parent / "__init__.py", home / "__init__.py")
    texts |= {package: "" for package in packages if not (root / package).exists()}
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8", newline="\n")
    return sorted(texts)


def _authors(paper: papers.Paper) -> str:
    names = paper.authors
    return names[0] if len(names) == 1 else f"{names[0]} and {names[1]}" if len(names) == 2 else f"{names[0]} and others"


def _notebook(text: str) -> str:
    """Cells between ``# %%`` lines, as a notebook's JSON; ``[markdown]`` makes text, ``tags=a,b`` tags the cell."""
    cells = []
    for number, block in enumerate(f"\n{text}".split("\n# %%")[1:]):
        first, _, body = block.partition("\n")
        if "[markdown]" in first:
            cell = nbformat.v4.new_markdown_cell(body.strip())
        else:
            cell = nbformat.v4.new_code_cell(body.strip())
        if "tags=" in first:
            cell.metadata["tags"] = first.partition("tags=")[2].strip().split(",")
        cell["id"] = f"cell-{number:02d}"  # nbformat's own are random: the same command must write the same bytes
        cells.append(cell)
    kernel = {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.validate(notebook)
    return str(nbformat.writes(notebook)) + "\n"
