"""Where things lie: the checkout, the data that ship, the notebooks, the cache of downloads."""

import os
from functools import cache as once
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


@once
def root() -> Path | None:
    """The checkout this package runs from (clone, editable install or source archive), or None when it was installed as a wheel."""
    project = PACKAGE.parent / "pyproject.toml"
    if project.is_file() and 'name = "mtlearn"' in project.read_text(encoding="utf-8"):
        return PACKAGE.parent
    return None


def data() -> Path:
    """The files that ship, checkpoints and recorded results: ``data/`` of the checkout, or the copy inside the wheel."""
    checkout = root()
    return PACKAGE / "_data" if checkout is None else checkout / "data"


def notebooks() -> Path:
    """``notebooks/`` of the checkout. RuntimeError where there is no checkout: a wheel has none."""
    checkout = root()
    if checkout is None:
        raise RuntimeError(
            f"the notebooks are part of the source, and mtlearn is installed without it in {PACKAGE}: clone the repository and use that"
        )
    return checkout / "notebooks"


def cache() -> Path:
    """Where downloads are kept: ``MTLEARN_CACHE``, else the user's cache folder of the system. It need not exist yet."""
    if chosen := os.environ.get("MTLEARN_CACHE"):
        return Path(chosen).expanduser().absolute()
    import platformdirs  # here, because the catalogue needs this module and not that one

    return platformdirs.user_cache_path("mtlearn", appauthor=False)
