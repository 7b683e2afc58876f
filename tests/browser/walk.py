"""Walk through notebooks in JupyterLab as a reader would: open, run all cells, move every control of every explorer.

The functions return what is wrong as sentences, so that a test can hold them against notebooks that are right and against ones that are not.
All waiting is for something to happen in the page or the server, up to a generous limit.
"""

import json
import math
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import nbformat
import pytest
from playwright.sync_api import ElementHandle, Locator, Page, Playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from mtlearn.papers import chapters, papers

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOW_TO_GET_ONE = (
    "no browser found: install Chromium (apt install chromium), Chrome or Edge, or run `python -m playwright install chromium`, "
    "or let MTLEARN_BROWSER name the program"
)
TOKEN = "mtlearn"
SECOND = 1.0  # a redraw may take no longer
STARTING, RUNNING, REDRAWING = 120.0, 240.0, 15.0  # seconds to wait at most

WATCH = Path(__file__).with_name("watch.js")


def find_browser(playwright: Playwright) -> str | None:
    """The program to drive: ``MTLEARN_BROWSER``, an installed Chromium, Chrome or Edge, playwright's own; None where there is none."""
    if chosen := os.environ.get("MTLEARN_BROWSER"):
        return shutil.which(chosen)
    if found := next((path for name in NAMES if (path := shutil.which(name))), None):
        return found
    own = playwright.chromium.executable_path
    return own if Path(own).is_file() else None


def no_browser() -> NoReturn:
    """Skip the test with a line that says how to get a browser; under continuous integration (``CI``) fail."""
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(HOW_TO_GET_ONE, pytrace=False)
    pytest.skip(HOW_TO_GET_ONE)


def select(folder: Path, *, one_per_chapter: bool) -> list[str]:
    """Notebooks of the folder, as paths in it; with ``one_per_chapter`` 00_start_here and each chapter's first paper."""
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    if not one_per_chapter:
        return found
    firsts = [[f"{chapter.folder}/{paper.slug}.ipynb" for paper in papers(chapter.slug)] for chapter in chapters()]
    return [name for name in ("00_start_here.ipynb", *(next((n for n in names if n in found), "") for names in firsts)) if name in found]


@dataclass
class Lab:
    """A running JupyterLab: its address, and the folder that it serves."""

    address: str
    folder: Path

    def open(self, page: Page, notebook: str) -> None:
        """Open a notebook of the folder and wait for its kernel."""
        page.goto(f"{self.address}/lab/tree/{quote(notebook)}?token={TOKEN}&reset", timeout=STARTING * 1000)
        page.wait_for_function("window.jupyterapp !== undefined", timeout=STARTING * 1000)
        page.wait_for_function("(path) => window.mtlearn.ready(path)", arg=notebook, timeout=STARTING * 1000)

    def stop_kernels(self) -> None:
        """End all kernels."""
        for kernel in self._ask("GET", "kernels"):
            self._ask("DELETE", f"kernels/{kernel['id']}")

    def _ask(self, method: str, path: str) -> Any:
        request = urllib.request.Request(f"{self.address}/api/{path}", method=method, headers={"Authorization": f"token {TOKEN}"})
        with urllib.request.urlopen(request, timeout=STARTING) as answer:
            return json.loads(answer.read() or "null")


def copy_without_outputs(notebooks: Path, folder: Path) -> None:
    """Copy a folder of notebooks, so that what is seen later was computed now, and nothing in the original changes."""
    shutil.copytree(notebooks, folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for path in folder.rglob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata.pop("widgets", None)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)


@contextmanager
def jupyterlab(notebooks: Path, scratch: Path) -> Iterator[Lab]:
    """Serve a copy of ``notebooks`` without stored outputs, on 127.0.0.1, with the running interpreter as the kernel and settings of its own."""
    folder = scratch / "notebooks"
    copy_without_outputs(notebooks, folder)
    kernel = scratch / "share" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}))
    settings = {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "notebook-extension/tracker": {"windowingMode": "none"},  # all cells on the page, not only those in view
    }
    for name, values in settings.items():
        path = scratch / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    own = {name: str(scratch / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    own |= {
        "JUPYTER_PATH": str(scratch / "share"),
        "JUPYTERLAB_SETTINGS_DIR": str(scratch / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(scratch / "spaces"),
    }

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser", "--ServerApp.ip=127.0.0.1"]
    server += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"]
    process = subprocess.Popen(
        server, env={**os.environ, **own}, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    said: list[str] = []
    ready: queue.Queue[bool] = queue.Queue()

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if " is running at:" in line:
                ready.put(True)
        ready.put(False)

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        try:
            running = ready.get(timeout=STARTING)
        except queue.Empty:
            running = False
        if not running:
            raise RuntimeError("JupyterLab did not start:\n" + "".join(said[-20:]))
        lab = Lab(f"http://127.0.0.1:{port}", folder)
        yield lab
    finally:
        process.terminate()
        try:
            process.wait(STARTING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        listener.join()
        if process.stderr is not None:
            process.stderr.close()


def run_all_cells(page: Page) -> list[str]:
    """Choose Run All Cells in the menu and wait until the kernel has run them; what went wrong."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    try:
        page.wait_for_function("window.mtlearn.finished()", timeout=RUNNING * 1000)
    except PlaywrightTimeout:
        return [f"after {RUNNING:.0f} s {page.evaluate('window.mtlearn.left()')} cells have not run"]
    return [f"a cell ends in {error}" for error in page.evaluate("window.mtlearn.errors()")]


def contention() -> float:
    """How many times longer than on an idle machine a computation takes now: 1 where nothing else runs."""
    began, spent = time.perf_counter(), time.process_time()
    while time.process_time() - spent < 0.2:
        pass
    return max(1.0, (time.perf_counter() - began) / (time.process_time() - spent))


@dataclass
class Explored:
    """An explorer on the page, and what was found wrong with it."""

    page: Page
    root: Locator
    name: str
    patience: float = REDRAWING
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0
    moves: int = 0

    def __post_init__(self) -> None:
        self.picture: ElementHandle = self.root.locator("img.mtlearn-picture").first.element_handle()
        self.picture.evaluate("window.mtlearn.watch")

    @property
    def presets(self) -> list[Locator]:
        """Its buttons, those of a group of toggle buttons aside."""
        return self.root.locator("button.widget-button:not(.widget-toggle-button)").all()

    def look(self) -> str:
        """A fingerprint of what is shown."""
        return str(self.picture.evaluate("window.mtlearn.print"))

    def act(self, action: Callable[[], None]) -> bool | None:
        """Do it and wait for the redraw. Whether the picture differs; None where nothing was redrawn."""
        before, drawn = self.look(), self.picture.evaluate("window.mtlearn.drawn")
        action()
        self.moves += 1
        try:
            self.page.wait_for_function("window.mtlearn.later", arg=[self.picture, drawn], timeout=self.patience * 1000)
        except PlaywrightTimeout:
            return None
        return self.look() != before

    def took(self) -> float:
        """Seconds from the last thing done to the picture that is shown; where that is too long, what it would be on a machine that is not busy."""
        seconds = float(self.picture.evaluate("(picture) => picture.took")) / 1000
        return seconds if seconds <= SECOND else seconds / contention()

    def try_control(self, what: str, moves: Sequence[Callable[[], None]], *, every: bool = False) -> None:
        """Hold a control to its duty: a move changes the picture, within a second.

        What a control does may hang on the others, so it is tried as the explorer starts and then as each preset leaves it.

        Args:
            what: its name in a fault.
            moves: what a reader can do with it.
            every: whether every move must change the picture, or one of them.
        """
        for state in (None, *self.presets):
            if state is not None:
                self.act(state.click)
            changed = []
            for move in moves:
                answer = self.act(move)
                if answer is None:
                    self.faults.append(f"{self.name}, {what}: the picture is not redrawn")
                    return
                self._time(what, move)
                changed.append(answer)
                if answer and not every:
                    return
            if every and all(changed):
                return
        self.faults.append(f"{self.name}, {what}: the picture does not change")

    def _time(self, what: str, move: Callable[[], None]) -> None:
        """A redraw may take a second. The best of five counts, because the machine may have paused it for something else."""
        seconds = self.took()
        for _ in range(4):
            if seconds > SECOND:
                self.reset()
                if self.act(move) is not None:
                    seconds = min(seconds, self.took())
        self.slowest = max(self.slowest, seconds)
        slow = f"{self.name}, {what}: a redraw takes more than {SECOND:.0f} s"
        if seconds > SECOND and slow not in self.faults:
            self.faults.append(slow)

    def reset(self) -> None:
        """Back to the first state."""
        self.act(self.root.locator("button.widget-button", has_text=re.compile("^reset$")).click)


def explorers(page: Page, patience: float = REDRAWING) -> list[Explored]:
    """The explorers on the page, once every one shows its picture."""
    page.wait_for_function("window.mtlearn.shown()", timeout=STARTING * 1000)
    roots = page.locator(".jp-Notebook .mtlearn-explorer").all()
    return [Explored(page, root, f"explorer {number}", patience) for number, root in enumerate(roots, 1)]


def move_everything(explored: Explored) -> None:
    """Move every control, press every button, touch the picture where it can be touched."""
    known = 0
    for handle in explored.root.locator(".widget-slider .noUi-handle").all():
        explored.reset()
        keys = ["ArrowRight", "ArrowLeft"]
        if handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax"):
            keys.reverse()
        explored.try_control(f"slider {_label(handle)}", [lambda handle=handle, key=key: handle.press(key) for key in keys])
    for group in explored.root.locator(".widget-toggle-buttons").all():
        explored.reset()
        buttons = group.locator("button").all()
        known += len(buttons)
        first = next((button for button in buttons if "mod-active" in (button.get_attribute("class") or "")), buttons[0])
        others = [button for button in buttons if "mod-active" not in (button.get_attribute("class") or "")]
        explored.try_control(f"buttons {_label(group)}", [button.click for button in (*others, first)], every=True)
    for box in explored.root.locator(".widget-checkbox input, .widget-toggle-button:not(.widget-toggle-buttons *)").all():
        explored.reset()
        known += 1
        explored.try_control(f"switch {_label(box)}", [box.click])
    for menu in explored.root.locator(".widget-dropdown select, .widget-select select").all():
        explored.reset()
        known += 1
        chosen, count = menu.evaluate("(menu) => [menu.selectedIndex, menu.options.length]")
        order = [*range(chosen + 1, count), *range(chosen)]
        explored.try_control(f"menu {_label(menu)}", [lambda menu=menu, index=index: _choose(menu, index) for index in order])
    for entry in explored.root.locator(".widget-text input, .widget-textarea textarea").all():
        explored.reset()
        known += 1
        tried = ("Backspace", "a", "1", "ArrowUp") if entry.input_value() else ("a", "1", "ArrowUp")  # an empty line has nothing to take away
        explored.try_control(f"entry {_label(entry)}", [lambda entry=entry, keys=keys: _type(entry, keys) for keys in tried])
    for play in explored.root.locator(".widget-play").all():
        explored.reset()
        buttons = play.locator("button").all()  # play or pause, stop, and repeat, which may be hidden
        known += len(buttons)
        explored.try_control("play", [buttons[0].click])
        buttons[0].click()  # pause: the next control is moved on a picture that stands still
    for button in explored.presets:
        known += 1
        name = (button.text_content() or "").strip()
        if not explored.act(button.click) and _disturb(explored):  # it may be the state already: leave that state, then come back
            explored.try_control(f"button {name}", [button.click])
    total = explored.root.locator("input, select, textarea, button").count()
    if total != known:
        explored.faults.append(f"{explored.name}: {total - known} of its controls are of a kind that this test does not know")
    if explored.root.locator("img.mtlearn-picture[tabindex]").count():
        _touch(explored)
    explored.reset()


def _label(control: Locator) -> str:
    return str(control.evaluate("window.mtlearn.label"))


def _choose(menu: Locator, index: int) -> None:
    menu.select_option(index=index)


def _type(entry: Locator, key: str) -> None:
    entry.press("End")
    entry.press(key)
    entry.press("Tab" if entry.evaluate("(entry) => entry.tagName") == "TEXTAREA" else "Enter")


def _disturb(explored: Explored) -> bool:
    """Change what can be changed, so that a preset has something to restore; whether the picture changed."""
    before = explored.look()
    for handle in explored.root.locator(".widget-slider .noUi-handle").all():
        at_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        explored.act(lambda handle=handle, at_end=at_end: handle.press("ArrowLeft" if at_end else "ArrowRight"))
    for group in explored.root.locator(".widget-toggle-buttons:has(button:not(.mod-active))").all():
        explored.act(group.locator("button:not(.mod-active)").first.click)
    for box in explored.root.locator(".widget-checkbox input").all():
        explored.act(box.click)
    return explored.look() != before


def _touch(explored: Explored) -> None:
    """Press, drag and release with the mouse, then the arrow keys; somewhere on the picture they must change it."""
    explored.reset()
    mouse = explored.page.mouse
    picture = explored.root.locator("img.mtlearn-picture").first
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    assert box is not None

    def at(across: float, down: float) -> tuple[float, float]:
        return box["x"] + across * box["width"], box["y"] + down * box["height"]

    before, changed = explored.look(), False
    quickest = dict.fromkeys(("press", "drag", "release"), math.inf)
    for across, down in ((0.5, 0.5), (0.25, 0.5), (0.3, 0.3), (0.7, 0.6), (0.15, 0.7), (0.85, 0.4)):
        mouse.move(*at(across, down))
        steps = {"press": mouse.down, "drag": lambda across=across, down=down: mouse.move(*at(across + 0.06, down - 0.08)), "release": mouse.up}
        for what, step in steps.items():
            if explored.act(step) is None:
                explored.faults.append(f"{explored.name}, mouse {what}: the picture is not redrawn")
                mouse.up()
                return
            quickest[what] = min(quickest[what], explored.took())
        changed = changed or explored.look() != before
        if changed and max(quickest.values()) <= SECOND:
            break
    explored.slowest = max(explored.slowest, *quickest.values())
    explored.faults += [f"{explored.name}, mouse {what}: a redraw takes more than {SECOND:.0f} s" for what, took in quickest.items() if took > SECOND]
    if not changed:
        explored.faults.append(f"{explored.name}, mouse: the picture does not change wherever it is pressed and dragged")
    explored.reset()
    keys = ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown")
    explored.try_control("arrow keys", [lambda key=key: picture.press(key) for key in keys])


def photograph(page: Page, explored: Sequence[Explored], folder: Path, stem: str) -> list[Path]:
    """Save the whole page and each explorer as it is now."""
    folder.mkdir(parents=True, exist_ok=True)
    usual = page.viewport_size
    assert usual is not None
    page.evaluate("window.jupyterapp.shell.collapseLeft()")
    height = page.evaluate("window.mtlearn.height()")
    page.set_viewport_size({"width": usual["width"], "height": min(int(height) + 160, 16_000)})
    page.evaluate("window.mtlearn.top()")
    paths = [folder / f"{stem}.png"]
    page.screenshot(path=paths[0])
    for shown in explored:
        paths.append(folder / f"{stem}-{shown.name.replace(' ', '-')}.png")
        shown.root.screenshot(path=paths[-1])
    page.set_viewport_size(usual)
    return paths


def walk(page: Page, lab: Lab, notebook: str, pictures: Path, *, patience: float = REDRAWING) -> tuple[list[str], list[Explored]]:
    """Open a notebook, run it, save pictures, move everything. What is wrong, and the explorers."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    try:
        lab.open(page, notebook)
        faults = run_all_cells(page)
        found = explorers(page, patience)
        photograph(page, found, pictures, notebook.removesuffix(".ipynb").replace("/", "-"))
        for explored in found:
            move_everything(explored)
            faults += explored.faults
    finally:
        lab.stop_kernels()  # the next notebook needs the memory
    if faults and problems:
        faults.append(f"the page itself said: {'; '.join(dict.fromkeys(problems))}")
    return faults, found
