"""What the tables that ship (TOML) share: rows held against their fields, and near names for a mistaken one."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def check_row(row: Mapping[str, Any], where: str, kinds: Mapping[str, type], *, may_be_empty: Collection[str] = ()) -> None:
    """Hold a row against its fields and their types. ValueError begins with ``where`` and names the field."""
    if missing := set(kinds) - set(row):
        raise ValueError(f"{where}: missing {listed(missing)}")
    if unknown := set(row) - set(kinds):
        raise ValueError(f"{where}: unknown {listed(unknown)}; the fields are {', '.join(kinds)}")
    for field, kind in kinds.items():
        if type(row[field]) is not kind:
            raise ValueError(f"{where}: {field} must be a {kind.__name__}, got {row[field]!r}")
        if kind is not int and not row[field] and field not in may_be_empty:
            raise ValueError(f"{where}: {field} is empty")


def check_name(name: str, where: str) -> None:
    """Names are folders and, for papers, packages: lower case letters, digits and underscores."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{where}: a name must be lower case letters, digits and underscores, starting with a letter, got {name!r}")


def listed(names: Iterable[str]) -> str:
    """Names in one order, with commas."""
    return ", ".join(sorted(names))


def nearest(name: str, known: Collection[str]) -> str:
    """The end of a message, ": did you mean a or b?", or nothing."""
    from difflib import get_close_matches  # here, because only a mistake needs it

    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    near = [candidate for candidate in known if plain and plain in candidate.lower()] or get_close_matches(plain, known, n=3)
    return f": did you mean {' or '.join(near[:3])}?" if near else ""
