"""The browser test itself: it must pass a notebook that is right, and name what is wrong in one that is not."""

from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Browser, Page
from walk import HOW_TO_GET_ONE, SECOND, Lab, copy_without_outputs, find_browser, jupyterlab, no_browser, select, walk

RIGHT = """
import ipywidgets
import traitlets

from mtlearn.explore.explorer import Explorer, choice, entry, menu, slider, switch

point = [0.5, 0.5]

def draw(figure, n, share, kind, ink, grid, words):
    axes = figure.subplots()
    axes.plot([0, n], [share, 1], {"solid": "-", "dashed": "--", "dotted": ":"}[kind], color=ink)
    axes.plot(*point, "o")
    axes.set(xlim=(0, 12), ylim=(0, 1), title=words)
    axes.grid(grid)
    return words

def touched(event):
    if event.kind == "key":
        point[0] += {"ArrowLeft": -1, "ArrowRight": 1}.get(event.key, 0)
    else:
        point[:] = [event.x, event.y]

controls = {
    "n": slider("points", 10, 1, 10), "share": slider("share", 0.5, 0.0, 1.0), "kind": choice("line", ["solid", "dashed", "dotted"]),
    "ink": menu("colour", ["red", "green", "blue"]), "grid": switch("grid"), "words": entry("title", "a line"),
}
presets = {"flat": {"share": 1.0}, "as it starts": {"n": 10, "share": 0.5}}
play = ipywidgets.Play(value=10, min=1, max=10, interval=200, show_repeat=False)
traitlets.link((play, "value"), (controls["n"], "value"))
again = lambda: point.__setitem__(slice(None), [0.5, 0.5])
Explorer(draw, controls, presets=presets, seed=0, on_pointer=touched, on_reset=again, extra=(play,))
"""
DEAD = """
def still(figure, width, n):
    figure.subplots().plot([0, n])

Explorer(still, {"width": slider("width", 1, 0, 3), "n": slider("height", 1, 1, 3)})
"""
SLOW = """
import time

drawn = []

def laborious(figure, n):
    began = time.process_time()
    while drawn and time.process_time() - began < 1.5:
        pass
    drawn.append(n)
    figure.subplots().plot([0, n])

Explorer(laborious, {"n": slider("steps", 1, 0, 3)})
"""
BROKEN = """
def fails_later(figure, n):
    figure.subplots().plot([0, 1 / n])

Explorer(fails_later, {"n": slider("divisor", 1, 0, 1)})
"""


def notebook(*cells: str) -> nbformat.NotebookNode:
    kernel = {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}}
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells], metadata=kernel)


@pytest.fixture(scope="module")
def toy_lab(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("toys")
    nbformat.write(notebook("1 + 1", RIGHT), folder / "right.ipynb")
    (folder / "01_toys").mkdir()
    nbformat.write(notebook(RIGHT, DEAD, SLOW, BROKEN, "1 / 0", "'never run'"), folder / "01_toys" / "wrong.ipynb")
    with jupyterlab(folder, tmp_path_factory.mktemp("lab")) as running:
        yield running


def test_a_right_notebook_passes(page: Page, toy_lab: Lab, tmp_path: Path):
    faults, (explored,) = walk(page, toy_lab, "right.ipynb", tmp_path)
    assert faults == []
    assert explored.moves >= 15 and 0 < explored.slowest <= SECOND
    assert {path.name for path in tmp_path.iterdir()} == {"right.png", "right-explorer-1.png"}
    assert all(path.stat().st_size > 5_000 for path in tmp_path.iterdir())


def test_a_wrong_notebook_fails(page: Page, toy_lab: Lab, tmp_path: Path):
    faults, found = walk(page, toy_lab, "01_toys/wrong.ipynb", tmp_path, patience=20.0)
    assert len(found) == 4
    assert faults == [
        "a cell ends in ZeroDivisionError: division by zero",
        "explorer 2, slider width: the picture does not change",
        "explorer 3, slider steps: a redraw takes more than 1 s",
        "explorer 4, slider divisor: the picture is not redrawn",
    ]
    assert (tmp_path / "01_toys-wrong-explorer-4.png").is_file()


def test_the_copy_that_is_run_has_no_outputs(tmp_path: Path):
    source, scratch = tmp_path / "source", tmp_path / "scratch"
    source.mkdir()
    stored = notebook("1")
    stored.cells[0].outputs = [nbformat.v4.new_output("stream", text="stored")]
    stored.cells[0].execution_count = 3
    nbformat.write(stored, source / "a.ipynb")
    before = (source / "a.ipynb").read_bytes()
    copy_without_outputs(source, scratch)
    (cell,) = nbformat.read(scratch / "a.ipynb", as_version=4).cells
    assert cell.outputs == [] and cell.execution_count is None
    assert (source / "a.ipynb").read_bytes() == before


def test_which_notebooks(tmp_path: Path):
    names = [
        "00_start_here.ipynb",
        "01_pointing/.ipynb_checkpoints/pointer_networks.ipynb",
        "01_pointing/00_overview.ipynb",
        "01_pointing/diverse_beam_search.ipynb",
        "01_pointing/pointer_networks.ipynb",
        "02_attention/zoology.ipynb",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert select(tmp_path, one_per_chapter=False) == [names[0], *names[2:]]
    assert select(tmp_path, one_per_chapter=True) == ["00_start_here.ipynb", "01_pointing/pointer_networks.ipynb", "02_attention/zoology.ipynb"]
    assert select(tmp_path / "nowhere", one_per_chapter=True) == []


class Nothing:
    """A playwright that has no browser of its own."""

    class chromium:  # noqa: N801
        executable_path = "/nowhere/chrome"


def test_which_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    program = tmp_path / "chrome"
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.delenv("MTLEARN_BROWSER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_browser(Nothing()) == str(program)
    monkeypatch.setenv("PATH", "")
    assert find_browser(Nothing()) is None
    monkeypatch.setattr(Nothing.chromium, "executable_path", str(program))
    assert find_browser(Nothing()) == str(program)
    monkeypatch.setenv("MTLEARN_BROWSER", str(tmp_path / "gone"))
    assert find_browser(Nothing()) is None


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("false", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_without_a_browser(ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no browser found: install Chromium"):
        no_browser()
    assert "MTLEARN_BROWSER" in HOW_TO_GET_ONE
