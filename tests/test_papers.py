"""The catalogue: every row whole, every mistake in it named, every part found where the layout puts it."""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from mtlearn import papers as catalogue
from mtlearn import paths
from mtlearn.papers import PARTS, Paper, UnknownChapterError, UnknownPaperError, chapters, experiment, paper, papers, read_catalogue

CHAPTER = '[[chapter]]\nslug = "pointing"\ntitle = "Pointing"\nlearn = "How to point."\n'
ROW = """[[paper]]
slug = "pointer_networks"
title = "Pointer Networks"
authors = ["Oriol Vinyals"]
year = 2015
venue = "NIPS"
arxiv = "1506.03134"
code = ""
chapter = "pointing"
idea = "Point."
"""
SIZES = {
    "pointing": 3, "attention": 4, "graphs": 3, "moe": 4, "multitask": 7, "merging": 6, "peft": 7,
    "continual": 2, "pairs": 5, "retrieval": 9, "code": 3, "vision": 10, "sequences": 5,
}  # fmt: skip


def test_all_papers_and_chapters_are_there_from_the_start():
    assert len(papers()) == 68
    assert Counter(row.chapter for row in papers()) == SIZES
    assert [chapter.slug for chapter in chapters()] == list(SIZES)
    assert [chapter.number for chapter in chapters()] == list(range(1, 14))
    assert chapters()[0].folder == "01_pointing"
    assert [row.slug for row in papers("pointing")] == ["pointer_networks", "diverse_beam_search", "task_hinting"]


def test_rows_are_unique_and_in_chapter_order():
    for field in ("slug", "title", "idea"):
        assert len({getattr(row, field) for row in papers()}) == 68, field
    numbers = [row.arxiv for row in papers() if row.arxiv]
    assert len(numbers) == len(set(numbers))
    order = [chapter.slug for chapter in chapters()]
    assert [row.chapter for row in papers()] == sorted((row.chapter for row in papers()), key=order.index)


@pytest.mark.parametrize("row", papers(), ids=lambda row: row.slug)
def test_row_reads_well(row: Paper):
    assert row.idea.endswith(".") and "\n" not in row.idea and 40 <= len(row.idea) <= 180
    assert row.idea.count(". ") == 0, "one sentence"
    assert not re.search(r"\$|\\|  ", row.title + row.idea), "plain text"
    assert 2015 <= row.year <= 2025
    if row.arxiv and row.venue == "arXiv":  # a preprint's number tells its year and month
        assert row.year == 2000 + int(row.arxiv[:2])
    if row.code:
        assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+(/tree/\w+/[\w/]+)?", row.code)
    assert len(set(row.authors)) == len(row.authors)


def test_rows_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        paper("lama").year = 1999  # type: ignore[misc]


def test_catalogue_is_light():
    code = "import json, sys; from mtlearn.papers import papers; [row.parts() for row in papers()]; print(json.dumps(list(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert "mtlearn.papers" in loaded and {"torch", "numpy", "matplotlib", "pandas", "ipywidgets"}.isdisjoint(loaded)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("pointer_netwroks", "pointer_networks"),
        ("pointer", "pointer_networks"),
        ("Tall-Masks", "tall_masks"),
        ("beam", "diverse_beam_search"),
        ("lamma", "lama"),
    ],
)
def test_unknown_paper_names_the_nearest(wrong: str, right: str):
    with pytest.raises(UnknownPaperError, match=rf"^there is no paper '{wrong}': did you mean .*{right}.*; `mtlearn papers` lists all 68$") as caught:
        paper(wrong)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=right):
        experiment(wrong)


@pytest.mark.parametrize("wrong", ["", "zzzz"])
def test_unknown_paper_without_a_near_name(wrong: str):
    with pytest.raises(UnknownPaperError, match=rf"^there is no paper '{wrong}'; `mtlearn papers` lists all 68$"):
        paper(wrong)


def test_unknown_chapter_names_them_all():
    with pytest.raises(UnknownChapterError, match=r"no chapter 'visoin': did you mean vision.*; the chapters are pointing, attention"):
        papers("visoin")


def test_parts_of_a_finished_tree(tmp_path: Path):
    row = paper("pointer_networks")
    assert row.parts(tmp_path) == dict.fromkeys(PARTS)
    where = {
        "method": "mtlearn/pointing/pointer_networks/method.py",
        "experiment": "mtlearn/pointing/pointer_networks/experiment.py",
        "explorer": "mtlearn/pointing/pointer_networks/explorer.py",
        "exercises": "mtlearn/pointing/pointer_networks/exercises.py",
        "notebook": "notebooks/01_pointing/pointer_networks.ipynb",
        "tests": "tests/pointing/test_pointer_networks.py",
        "result": "data/results/pointer_networks.json",
    }
    for file in where.values():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert row.parts(tmp_path) == where
    assert paper("task_hinting").parts(tmp_path) == dict.fromkeys(PARTS)


def test_tests_of_a_paper_may_be_a_folder(tmp_path: Path):
    folder = tmp_path / "tests/pointing/pointer_networks"
    folder.mkdir(parents=True)
    assert paper("pointer_networks").parts(tmp_path)["tests"] is None
    for name in ("test_b.py", "test_a.py", "conftest.py"):
        (folder / name).touch()
    assert paper("pointer_networks").parts(tmp_path)["tests"] == "tests/pointing/pointer_networks/test_a.py"


def test_properties_are_the_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    result = tmp_path / "data/results/lama.json"
    result.parent.mkdir(parents=True)
    result.touch()
    row = paper("lama")
    assert row.result == "data/results/lama.json"
    assert [getattr(row, name) for name in PARTS] == list(row.parts().values()) == [None] * 6 + [row.result]


def test_parts_of_a_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(paths, "root", lambda: None)
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "mtlearn")
    for file in ("mtlearn/_data/results/lama.json", "mtlearn/attention/lama/method.py"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    row = paper("lama")
    assert row.result == "mtlearn/_data/results/lama.json"
    assert row.method == "mtlearn/attention/lama/method.py"
    assert row.notebook is None and row.tests is None


def test_experiments_that_exist_are_their_papers():
    found = [row.slug for row in papers() if row.experiment]
    assert found, "not one experiment"
    assert [experiment(slug).paper for slug in found] == found


def _fake(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Make a package ``fake_<chapter>`` whose experiment module has this code, and let every paper live there."""
    (folder / "fake").mkdir()
    (folder / "fake" / "experiment.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(Paper, "package", "fake")
    monkeypatch.delitem(sys.modules, "fake.experiment", raising=False)
    monkeypatch.delitem(sys.modules, "fake", raising=False)


def test_experiment_that_is_not_there_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(Paper, "package", "mtlearn.pointing.no_such_paper")
    with pytest.raises(RuntimeError, match=r"^lama has no experiment yet \(mtlearn/pointing/no_such_paper/experiment\.py\); `mtlearn papers`"):
        experiment("lama")


def test_experiment_module_without_an_experiment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    _fake(monkeypatch, tmp_path, "")
    with pytest.raises(RuntimeError, match=r"fake/experiment\.py defines no EXPERIMENT"):
        experiment("lama")


def test_experiment_whose_own_import_fails_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    _fake(monkeypatch, tmp_path, "import package_that_is_not_installed")
    with pytest.raises(ModuleNotFoundError, match="package_that_is_not_installed"):
        experiment("lama")


def test_a_right_catalogue_is_read():
    (chapter,), (row,) = read_catalogue(CHAPTER + ROW)
    assert (chapter.number, chapter.slug) == (1, "pointing")
    assert row.authors == ("Oriol Vinyals",) and row.year == 2015 and row.package == "mtlearn.pointing.pointer_networks"


def test_papers_follow_their_chapters():
    second = CHAPTER.replace("pointing", "graphs")
    later = ROW.replace("pointer_networks", "lama").replace('chapter = "pointing"', 'chapter = "graphs"')
    assert [row.slug for row in read_catalogue(CHAPTER + second + later + ROW)[1]] == ["pointer_networks", "lama"]


@pytest.mark.parametrize("field", [field.name for field in fields(Paper)])
def test_a_missing_field_is_named(field: str):
    text = "\n".join(line for line in ROW.splitlines() if not line.startswith(f"{field} ="))
    row = "without slug" if field == "slug" else "pointer_networks"
    with pytest.raises(ValueError, match=rf"^papers.toml, paper 1 \({row}\): missing {field}$"):
        read_catalogue(CHAPTER + text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CHAPTER + ROW + "stars = 5\n", r"paper 1 \(pointer_networks\): unknown stars; the fields are slug, title"),
        (CHAPTER + ROW.replace("2015", "1015"), r"paper 1 \(pointer_networks\): year must be between 1950 and 2100, got 1015"),
        (CHAPTER + ROW.replace("2015", '"2015"'), "year must be a int, got '2015'"),
        (CHAPTER + ROW.replace("2015", "true"), "year must be a int, got True"),
        (
            CHAPTER + ROW.replace("1506.03134", "1513.03134"),
            r'\(pointer_networks\): arxiv must be a number like "1506.03134" or "", got \'1513.03134\'',
        ),
        (CHAPTER + ROW.replace("1506.03134", "arXiv:1506.03134"), "arxiv must be a number"),
        (CHAPTER + ROW.replace('code = ""', 'code = "github.com/x/y"'), r"\(pointer_networks\): code must be an https address"),
        (CHAPTER + ROW.replace('title = "Pointer Networks"', 'title = ""'), "title is empty"),
        (CHAPTER + ROW.replace('["Oriol Vinyals"]', "[]"), "authors is empty"),
        (CHAPTER + ROW.replace('["Oriol Vinyals"]', '["Oriol Vinyals", 3]'), r"authors must be names, got \['Oriol Vinyals', 3\]"),
        (CHAPTER + ROW.replace('["Oriol Vinyals"]', '"Oriol Vinyals"'), "authors must be a list, got 'Oriol Vinyals'"),
        (CHAPTER + ROW.replace("pointer_networks", "Pointer-Networks"), r"\(Pointer-Networks\): a name must be lower case letters"),
        (CHAPTER + ROW + ROW, r"paper 2 \(pointer_networks\): that slug is there twice"),
        (CHAPTER + ROW.replace('"pointing"', '"poniting"'), r"\(pointer_networks\): unknown chapter 'poniting'; the chapters are pointing"),
        (CHAPTER + CHAPTER + ROW, r"chapter 2 \(pointing\): that slug is there twice"),
        (CHAPTER.replace("learn", "teach") + ROW, r"chapter 1 \(pointing\): missing learn"),
        (CHAPTER + CHAPTER.replace('"pointing"', '"graphs"') + ROW, "no paper in chapter graphs"),
        (CHAPTER + ROW + "[[book]]\n", "unknown table book"),
        (CHAPTER + ROW + "year = 2016\n", "papers.toml is not valid TOML"),
    ],
)
def test_a_wrong_catalogue_names_the_row(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_catalogue(text)


def test_the_file_is_the_one_that_is_read():
    assert read_catalogue((Path(catalogue.__file__).parent / "papers.toml").read_text(encoding="utf-8")) == (chapters(), papers())
