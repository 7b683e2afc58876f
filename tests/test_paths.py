"""Where things lie, in a checkout and in a wheel."""

from pathlib import Path

import platformdirs
import pytest

from mtlearn import paths


@pytest.fixture(autouse=True)
def _forget():
    paths.root.cache_clear()
    yield
    paths.root.cache_clear()


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The package as a wheel puts it: no project above it."""
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "mtlearn")
    return tmp_path / "mtlearn"


def test_in_this_checkout():
    checkout = Path(__file__).resolve().parents[1]
    assert paths.root() == checkout
    assert paths.data() == checkout / "data"
    assert paths.notebooks() == checkout / "notebooks"


def test_in_a_wheel(wheel: Path):
    assert paths.root() is None
    assert paths.data() == wheel / "_data"
    with pytest.raises(RuntimeError, match="clone the repository"):
        paths.notebooks()


def test_another_project_above_the_package_is_not_the_checkout(wheel: Path):
    (wheel.parent / "pyproject.toml").write_text('[project]\nname = "somebody-elses"\n')
    assert paths.root() is None


def test_a_checkout_elsewhere(wheel: Path):
    (wheel.parent / "pyproject.toml").write_text('[project]\nname = "mtlearn"\n')
    assert paths.root() == wheel.parent


def test_cache_is_the_users(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MTLEARN_CACHE", raising=False)
    assert paths.cache() == Path(platformdirs.user_cache_dir("mtlearn", appauthor=False))


def test_cache_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MTLEARN_CACHE", str(tmp_path / "not there yet"))
    assert paths.cache() == tmp_path / "not there yet"
    monkeypatch.setenv("MTLEARN_CACHE", "~/kept")
    assert paths.cache() == Path.home() / "kept"
