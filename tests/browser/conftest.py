"""A browser and a JupyterLab for the whole session."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from walk import ARGUMENTS, WATCH, Lab, find_browser, jupyterlab, no_browser, select

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--one-per-chapter", action="store_true", help="only 00_start_here and the first paper notebook of each chapter")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "notebook" in metafunc.fixturenames:
        metafunc.parametrize("notebook", select(NOTEBOOKS, one_per_chapter=metafunc.config.getoption("--one-per-chapter", default=False)))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium. Where there is none the test is skipped, but under CI it fails."""
    with sync_playwright() as playwright:
        program = find_browser(playwright)
        if program is None:
            no_browser()
        running = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield running
        running.close()


@pytest.fixture(scope="session")
def lab(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab on a copy of the notebooks; it needs the browser, so that without one nothing is started."""
    with jupyterlab(NOTEBOOKS, tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of its own for each test."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        opened = context.new_page()
        opened.add_init_script(path=WATCH)
        yield opened


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where screenshots go: ``MTLEARN_SCREENSHOTS``, or build/screenshots."""
    return Path(os.environ.get("MTLEARN_SCREENSHOTS") or ROOT / "build" / "screenshots")
