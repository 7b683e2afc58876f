"""Every notebook, as a reader meets it: opened in JupyterLab, run, and every control of its explorers moved."""

from pathlib import Path

from playwright.sync_api import Page
from walk import Lab, walk


def test_notebook(notebook: str, page: Page, lab: Lab, pictures: Path):
    faults, _ = walk(page, lab, notebook, pictures)
    assert not faults, "\n".join(faults)
