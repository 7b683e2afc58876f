"""What holds the house together: pins, floors, lazy imports, notebooks and the catalogue."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mtlearn import papers
from mtlearn.explore import suite_style
from mtlearn.explore.canvas import Layout
from mtlearn.lab.result import recorded

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WRITTEN = [paper for paper in papers.papers() if paper.method]
CARD = ("jupyterlab", "torch", "ipywidgets", "networkx", "torch-geometric", "matplotlib", "nbval")


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~\[ ;]", requirement.strip())[0].lower().replace("_", "-")


def pins(lines: list[str]) -> dict[str, str]:
    rows = [line.split("#")[0].strip() for line in lines]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", row) for row in rows if row), "every line is name==version"
    return {name_of(row): row.split("==")[1] for row in rows if row}


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text().splitlines())


def test_conda_and_pip_have_one_list_of_pins() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    by_pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert by_pip[0] == "--constraint constraints.txt"
    listed = pins([line for line in by_pip if "==" in line])
    assert listed.items() <= CONSTRAINTS.items()
    extras = (r for extra in ("dask", "hf", "words", "index", "test") for r in PROJECT["optional-dependencies"][extra])
    wanted = {name_of(r) for r in (*PROJECT["dependencies"], *extras)}
    assert set(listed) == wanted - {"mtlearn"}
    assert set(CARD) <= set(listed)


def test_every_requirement_is_pinned_within_its_bounds() -> None:
    for requirement in (*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)):
        name = name_of(requirement)
        if name == "mtlearn":
            continue
        low = re.search(r">=([0-9.]+)", requirement)
        assert low
        assert [int(x) for x in re.findall(r"\d+", CONSTRAINTS[name])] >= [int(x) for x in low[1].split(".")]
    assert CONSTRAINTS["torch"] == "2.13.0"


def test_importing_the_package_and_the_catalogue_stays_light() -> None:
    heavy = ("torch", "numpy", "matplotlib", "scipy")
    code = f"import sys, mtlearn, mtlearn.papers, mtlearn.cli; mtlearn.papers.papers(); print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_no_file_names_this_machine_or_a_registry() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in tracked:
        path = ROOT / name
        if (
            path.suffix in (".py", ".md", ".toml", ".yml", ".txt", ".json", ".jinja", ".ipynb", "")
            and path.name != Path(__file__).name
            and path.is_file()
        ):
            text = path.read_text(errors="ignore")
            assert not re.search(r"pypi\.org|pythonhosted|/work/|download\.pytorch", text), name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_executed_and_compared(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code), "run `make notebooks`"
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    assert not any(output.get("name") == "stderr" for cell in code for output in cell["outputs"]), "a warning is stored"
    tags = [set(cell["metadata"].get("tags", ())) for cell in code]
    assert set().union(*tags) <= {"nbval-ignore-output"}
    assert sum(bool(cell["outputs"]) and not tag for cell, tag in zip(code, tags, strict=True)) >= 4
    first = "".join(cells[0]["source"])
    assert first.startswith("# ")
    assert re.search(r"Time: \d+", first + "".join(cells[1]["source"])), "say how long it takes"


@pytest.mark.parametrize("paper", WRITTEN, ids=lambda paper: paper.slug)
def test_a_written_paper_is_whole(paper: papers.Paper) -> None:
    for part in ("method", "experiment", "explorer", "notebook", "tests", "result"):
        assert getattr(paper, part), f"{paper.slug} has no {part}"
    experiment = papers.experiment(paper.slug)
    assert experiment.paper == paper.slug
    assert set(experiment.scales) == {"quick", "laptop", "paper"}
    result = recorded(paper.slug)
    assert result.scale == "laptop"
    assert result.seeds == experiment.scales["laptop"].seeds >= 3
    assert result.settings == json.loads(json.dumps(experiment.scales["laptop"].as_dict()))
    claims = [(c.better, c.worse, c.metric, c.margin, c.says) for c in experiment.claims]
    assert [(v.better, v.worse, v.metric, v.margin, v.says) for v in result.claims] == claims
    assert all(metric in experiment.units for metrics in result.arms.values() for metric in metrics), "every metric has a unit"


@pytest.mark.parametrize("paper", WRITTEN, ids=lambda paper: paper.slug)
def test_a_notebook_uses_its_papers_parts(paper: papers.Paper) -> None:
    text = (ROOT / str(paper.notebook)).read_text()
    exercises = import_module(f"mtlearn.{paper.chapter}.{paper.slug}.exercises").EXERCISES
    assert paper.title.split(":")[0] in text
    assert "explorer" in text
    assert "recorded(" in text
    for number in range(len(exercises)):
        assert f"EXERCISES[{number}].check(answer)" in text
        assert f"EXERCISES[{number}].solution" in text


@pytest.mark.parametrize("module", ["mtlearn.explore.first_exercise", *(f"mtlearn.{paper.chapter}.{paper.slug}.exercises" for paper in WRITTEN)])
def test_every_exercise_knows_right_from_wrong(module: str) -> None:
    for exercise in import_module(module).EXERCISES:
        assert exercise.check(exercise.solve()).right
        for answer in (None, ..., exercise.wrong, object()):
            reply = exercise.check(answer)
            assert not reply.right
            assert len(reply.text) > 30
        assert "def" in exercise.solution.code


@pytest.mark.parametrize("paper", WRITTEN, ids=lambda paper: paper.slug)
def test_every_control_of_an_explorer_changes_its_picture(paper: papers.Paper) -> None:
    shown = import_module(f"mtlearn.{paper.chapter}.{paper.slug}.explorer").explorer()
    assert shown.text
    for name, control in shown.controls.items():
        shown.preset("reset")
        before, seen = control.value, shown.png
        if hasattr(control, "options"):
            values = [option[1] if isinstance(option, tuple) else option for option in control.options]  # a label may stand before a value
            others = [value for value in values if value != before]
        elif hasattr(control, "step"):
            others = [
                control.value + control.step if control.value + control.step <= control.max else control.value - control.step,
                control.min,
                control.max,
            ]
        elif isinstance(before, bool):
            others = [not before]
        else:
            continue  # a text: the paper's own test types into it
        pictures = []
        for value in others:
            if value != before:
                shown.set(**{name: value})
                pictures.append(shown.png)
        assert any(picture != seen for picture in pictures), f"{name} changes nothing"
    for label in shown.presets:
        shown.preset(label)
        _fits(shown.figure)


def _fits(figure: Figure) -> None:
    """The places that were remembered are those that a layout of this very picture gives, as well as an eye can tell."""
    if isinstance(figure.get_layout_engine(), Layout):
        remembered = [axes.get_position().bounds for axes in figure.axes]
        with suite_style():
            ConstrainedLayoutEngine().execute(figure)
        np.testing.assert_allclose(remembered, [axes.get_position().bounds for axes in figure.axes], atol=0.02)


def test_shipped_models_are_small_and_match_their_files() -> None:
    from mtlearn.cli import _checkpoints
    from mtlearn.lab.checkpoints import LARGEST, load, provenance

    found = _checkpoints()
    assert {checkpoint.path.name for checkpoint in found} == {path.name for path in (ROOT / "data/checkpoints").glob("*.safetensors")}
    for checkpoint in found:
        load(checkpoint)
        assert checkpoint.path.stat().st_size == provenance(checkpoint)["bytes"] <= LARGEST
