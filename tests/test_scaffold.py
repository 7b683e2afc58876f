"""``mtlearn new``: what it lays out imports, is clean, and fails its test until it is written; and it overwrites nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from mtlearn import papers, paths
from mtlearn.scaffold import scaffold


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which no paper is begun: the package without its chapters."""
    chapters = [chapter.slug for chapter in papers.chapters()]
    shutil.copytree(paths.PACKAGE, tmp_path / "mtlearn", ignore=shutil.ignore_patterns("__pycache__", *chapters))
    return tmp_path


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_lays_out_every_part(checkout: Path):
    before = files(checkout)
    written = scaffold("merging", "tall_masks", checkout)
    assert {path.as_posix() for path in written} == files(checkout) - before
    assert papers.paper("tall_masks").parts(checkout) == {
        "method": "mtlearn/merging/tall_masks/method.py",
        "experiment": "mtlearn/merging/tall_masks/experiment.py",
        "explorer": "mtlearn/merging/tall_masks/explorer.py",
        "exercises": "mtlearn/merging/tall_masks/exercises.py",
        "notebook": "notebooks/06_merging/tall_masks.ipynb",
        "tests": "tests/merging/test_tall_masks.py",
        "result": None,
    }
    assert (checkout / "mtlearn/merging/__init__.py").read_text() == ""


def test_the_same_command_writes_the_same_bytes(checkout: Path):
    written = scaffold("pairs", "dse", checkout)
    first = [(checkout / path).read_bytes() for path in written]
    for path in written:
        (checkout / path).unlink()
    assert scaffold("pairs", "dse", checkout) == written
    assert [(checkout / path).read_bytes() for path in written] == first


def test_refuses_to_overwrite(checkout: Path):
    begun = checkout / "tests/merging/test_tall_masks.py"
    begun.parent.mkdir(parents=True)
    begun.write_text("mine\n")
    before = files(checkout)
    with pytest.raises(ValueError, match=r"^tall_masks is begun already, and nothing is overwritten: tests/merging/test_tall_masks\.py$"):
        scaffold("merging", "tall_masks", checkout)
    assert files(checkout) == before and begun.read_text() == "mine\n"


def test_keeps_the_chapters_own_package(checkout: Path):
    package = checkout / "mtlearn/merging/__init__.py"
    package.parent.mkdir()
    package.write_text('"""Mine."""\n')
    assert Path("mtlearn/merging/__init__.py") not in scaffold("merging", "tall_masks", checkout)
    assert package.read_text() == '"""Mine."""\n'


@pytest.mark.parametrize(
    ("chapter", "slug", "message"),
    [
        ("merging", "tall_mask", "no paper 'tall_mask': did you mean tall_masks"),
        ("mergin", "tall_masks", "no chapter 'mergin': did you mean merging"),
        ("pointing", "tall_masks", "tall_masks belongs to the chapter merging, not to pointing: `mtlearn new merging tall_masks`"),
    ],
)
def test_refuses_wrong_names(chapter: str, slug: str, message: str, checkout: Path):
    before = files(checkout)
    with pytest.raises(ValueError, match=message):
        scaffold(chapter, slug, checkout)
    assert files(checkout) == before


def test_refuses_another_folder(tmp_path: Path):
    with pytest.raises(ValueError, match=r"is not a checkout of mtlearn: it has no mtlearn/papers\.toml"):
        scaffold("merging", "tall_masks", tmp_path)


def test_every_paper_can_be_laid_out_clean(checkout: Path):
    written = [checkout / path for row in papers.papers() for path in scaffold(row.chapter, row.slug, checkout)]
    assert len(written) == 68 * 7 + 13  # seven files a paper, a package a chapter
    root = paths.root()
    assert root is not None
    shutil.copy(root / "pyproject.toml", checkout)
    code = [str(path.relative_to(checkout)) for path in written if path.suffix == ".py"]
    for command in (["check"], ["format", "--check"]):
        found = subprocess.run([sys.executable, "-m", "ruff", *command, "--quiet", "--no-cache", *code], cwd=checkout, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout + found.stderr
    for path in written:
        if path.suffix == ".ipynb":
            notebook = nbformat.read(path, as_version=4)
            nbformat.validate(notebook)
            assert notebook.metadata.kernelspec.name == "python3"
            assert notebook.cells[0].source.startswith("# ")
            assert [cell.metadata.get("tags") for cell in notebook.cells if "explorer()" in cell.source] == [["nbval-ignore-output"]]


def test_what_is_laid_out_imports_and_fails_clearly(checkout: Path):
    scaffold("pairs", "dse", checkout)
    copy = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".", "tests/pairs/test_dse.py"]
    said = subprocess.run(tests, env=copy, capture_output=True, text=True, cwd=checkout)
    assert said.returncode == 1 and "9 failed" in said.stdout and "passed" not in said.stdout, said.stdout
    for words in (
        "method.py of dse is not written yet: line",
        "experiment.py of dse is not written yet: line",
        "explorer.py of dse is not written yet: line",
        "exercises.py of dse is not written yet: line",
        "dse is not written yet: hold what is exactly true of the method here",
        "dse is not written yet: every input it must refuse",
        "exercises.py of dse is not written yet: it has no exercise",
        "NotImplementedError: dse is not written yet",
    ):
        assert words in said.stdout, said.stdout
