"""Rows that took a while to read, kept in the user's cache: written whole or not at all, and recognised by their SHA-256."""

import gzip
import hashlib
import os
import tempfile
import zlib
from pathlib import Path


def save_rows(path: Path, rows: bytes) -> None:
    """Write rows whole or not at all, after a line with their SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(gzip.compress(hashlib.sha256(rows).hexdigest().encode() + b"\n" + rows, compresslevel=3, mtime=0))
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def load_rows(path: Path) -> bytes | None:
    """What :func:`save_rows` wrote; None where there is no file, an empty or a broken one."""
    try:
        digest, _, rows = gzip.decompress(path.read_bytes()).partition(b"\n")
    except (OSError, EOFError, zlib.error):
        return None
    return rows if rows and hashlib.sha256(rows).hexdigest().encode() == digest else None
