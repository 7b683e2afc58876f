"""The benchmark loader: found, downloaded from a server of our own, refused, missing; and the real files where they are."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from real_files import REAL

from mtlearn.datasets import benchmarks
from mtlearn.datasets.benchmarks import MissingFileError, RefusedFileError, benchmark, fetch, locate, names, read_benchmarks, verify

CONTENT = b"2 graphs\n" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILES = [(dataset, row.name) for dataset in names() for row in benchmark(dataset).files]


class Server(BaseHTTPRequestHandler):
    """Answers by path: /right, /other (other bytes), /short (ends before its length), /gone (404)."""

    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        if self.path == "/gone":
            self.send_error(404)
            return
        body = CONTENT[::-1] if self.path == "/other" else CONTENT
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:100] if self.path == "/short" else body)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """Its address; ``Server.asked`` holds the paths that were asked for."""
    Server.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def table(address: str) -> str:
    """A dataset ``toy`` of a file with that address and an archive without one."""
    return f"""
[[benchmark]]
name = "toy"
description = "Two graphs."
licence = "CC0"

[[benchmark.file]]
name = "toy.txt"
address = "{address}"
bytes = {len(CONTENT)}
sha256 = "{DIGEST}"

[[benchmark.file]]
name = "toy.tar.gz"
address = ""
bytes = {len(CONTENT)}
sha256 = "{DIGEST}"
made = "packed from the folder toy"
"""


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache's folder of ``toy``; no folder of the user's own."""
    monkeypatch.setenv("MTLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MTLEARN_DATA", raising=False)
    return tmp_path / "cache" / "datasets" / "toy"


@pytest.fixture
def own(kept: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of the user's own for ``toy``."""
    folder = tmp_path / "own" / "toy"
    folder.mkdir(parents=True)
    monkeypatch.setenv("MTLEARN_DATA", str(folder.parent))
    return folder


def use(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let the table be that of ``toy``, with an address of this machine, which a table must not have."""
    toy = read_benchmarks(table("https://a/b"))["toy"]
    toy = replace(toy, files=(replace(toy.files[0], address=address), toy.files[1]))
    monkeypatch.setattr(benchmarks, "_table", lambda: {"toy": toy})


def nowhere() -> str:
    """An address of this machine at which nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/right"


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_download_once(server: str, kept: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, f"{server}/right")
    assert locate("toy", "toy.txt") is None
    path = fetch("toy", "toy.txt")
    assert path == kept / "toy.txt" and path.read_bytes() == CONTENT
    assert fetch("toy", "toy.txt") == path == locate("toy", "toy.txt")
    assert Server.asked == ["/right"]
    assert listing(kept) == ["toy.txt"]


def test_a_bar_goes_to_stderr(server: str, kept: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    use(monkeypatch, f"{server}/right")
    fetch("toy", "toy.txt", progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "100%" in err


def test_a_download_with_a_wrong_hash_is_kept_aside(server: str, kept: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, f"{server}/other")
    got = hashlib.sha256(CONTENT[::-1]).hexdigest()
    with pytest.raises(RefusedFileError) as caught:
        fetch("toy", "toy.txt")
    aside = kept / f"toy.txt.refused-{got[:8]}"
    assert listing(kept) == [aside.name] and aside.read_bytes() == CONTENT[::-1]
    for words in (
        "toy/toy.txt",
        f"{server}/other",
        f"expected {len(CONTENT)} bytes with SHA-256 {DIGEST}",
        f"got {len(CONTENT)} bytes with {got}",
        str(aside),
    ):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_download_that_breaks_off_leaves_nothing(server: str, kept: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, f"{server}/short")
    with pytest.raises(MissingFileError, match=r"toy/toy.txt is not on this machine and http://127.*/short did not give it \(ChunkedEncodingError\)"):
        fetch("toy", "toy.txt")
    assert listing(kept) == []


@pytest.mark.parametrize(("path", "reason"), [("/gone", "404 Not Found"), (None, "ConnectionError")])
def test_a_file_that_cannot_be_had(path: str | None, reason: str, server: str, kept: Path, monkeypatch: pytest.MonkeyPatch):
    address = f"{server}{path}" if path else nowhere()
    use(monkeypatch, address)
    with pytest.raises(MissingFileError) as caught:
        fetch("toy", "toy.txt")
    assert str(caught.value) == (
        f"toy/toy.txt is not on this machine and {address} did not give it ({reason}): "
        f"put it in {kept}, or let MTLEARN_DATA name a folder of datasets"
    )
    assert listing(kept) == []
    (kept / "toy.txt").write_bytes(CONTENT)  # what the message says helps
    assert fetch("toy", "toy.txt") == kept / "toy.txt"


def test_an_archive_without_an_address(kept: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, nowhere())
    with pytest.raises(
        MissingFileError, match=r"toy/toy.tar.gz .* has no address of its own \(packed from the folder toy\): put it in .*toy, or let"
    ):
        fetch("toy", "toy.tar.gz")


def test_a_wrong_file_in_the_cache_is_kept_aside(server: str, kept: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, f"{server}/right")
    kept.mkdir(parents=True)
    (kept / "toy.txt").write_bytes(b"half")
    aside = f"toy.txt.refused-{hashlib.sha256(b'half').hexdigest()[:8]}"
    assert verify("toy")[0].state == "wrong" and listing(kept) == ["toy.txt"]
    with pytest.raises(RefusedFileError, match=rf"toy/toy.txt in .*toy is refused: expected .* got 4 bytes .*; kept aside as .*{aside}"):
        fetch("toy", "toy.txt")
    assert listing(kept) == [aside]
    assert fetch("toy", "toy.txt").read_bytes() == CONTENT


def test_the_users_own_folder_comes_first(own: Path, kept: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, nowhere())
    for name in ("toy.txt", "toy.tar.gz"):
        (own / name).write_bytes(CONTENT)
    assert fetch("toy") == (own / "toy.txt", own / "toy.tar.gz")
    assert not kept.exists()


def test_a_wrong_file_in_the_users_own_folder_stays_there(own: Path, kept: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, nowhere())
    (own / "toy.txt").write_bytes(b"half")
    with pytest.raises(RefusedFileError, match=rf"toy/toy.txt in {own} is refused: expected .* got 4 bytes with [0-9a-f]{{64}}$"):
        fetch("toy", "toy.txt")
    assert listing(own) == ["toy.txt"] and (own / "toy.txt").read_bytes() == b"half"
    assert not kept.exists()


def test_what_the_users_own_folder_lacks_comes_from_the_cache(server: str, own: Path, kept: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, f"{server}/right")
    assert fetch("toy", "toy.txt") == kept / "toy.txt"
    assert listing(own) == []
    with pytest.raises(MissingFileError, match=rf"put it in {own}$"):
        fetch("toy", "toy.tar.gz")


def test_verify(own: Path, kept: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, nowhere())
    (own / "toy.txt").write_bytes(CONTENT)
    found = verify()
    assert [(check.dataset, check.file, check.state, check.path) for check in found] == [
        ("toy", "toy.txt", "right", own / "toy.txt"),
        ("toy", "toy.tar.gz", "missing", None),
    ]


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match=r"^there is no benchmark 'planetiod': did you mean planetoid\?; the benchmarks are adult, "):
        fetch("planetiod")
    with pytest.raises(ValueError, match=r"^graphs has no file 'mutag': did you mean MUTAG\.txt\?; its files are IMDBBINARY\.txt, "):
        fetch("graphs", "mutag")
    with pytest.raises(ValueError, match="no benchmark 'toy'"):
        verify("toy")


def test_the_table():
    assert names() == ("adult", "cranfield", "fsdd", "graphs", "mnist10k", "planetoid", "sroie", "sts")
    assert len(FILES) == 30
    assert {row.name for dataset in names() for row in benchmark(dataset).files if not row.address} == {"recordings.tar.gz", "sroie-text.tar.gz"}
    addresses = [row.address for dataset in names() for row in benchmark(dataset).files if row.address]
    assert len(set(addresses)) == 28
    assert len({row.sha256 for dataset in names() for row in benchmark(dataset).files}) == 30


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('licence = "CC0"\n', "", "benchmarks.toml, toy: missing licence"),
        ('licence = "CC0"', 'licence = "CC0"\nstars = 1', "toy: unknown stars"),
        ('name = "toy"', 'name = "Toy!"', "benchmarks.toml, Toy!: a name must be lower case letters"),
        (f'sha256 = "{DIGEST}"', f'sha256 = "{DIGEST[:-1]}"', r"toy/toy.txt: bytes must be at least 1 and sha256 64 lower case"),
        (f'sha256 = "{DIGEST}"', f'sha256 = "{DIGEST.upper()}"', "sha256 64 lower case"),
        (f"bytes = {len(CONTENT)}", "bytes = 0", "toy/toy.txt: bytes must be at least 1"),
        (f"bytes = {len(CONTENT)}", 'bytes = "1"', "toy/toy.txt: bytes must be a int, got '1'"),
        ('name = "toy.txt"', 'name = "../toy.txt"', "name must be that of a file, without a folder"),
        ('name = "toy.tar.gz"', 'name = "toy.txt"', "benchmarks.toml, toy: a file is there twice"),
        ('address = "https://a/b"', 'address = "ftp://a/b"', "address must begin with https://, got 'ftp://a/b'"),
        ('address = "https://a/b"', 'address = ""', "toy/toy.txt: give the address of the file, or made"),
        ('made = "packed from the folder toy"', "", "toy/toy.tar.gz: give the address of the file, or made"),
        ("[[benchmark]]", "[[benhcmark]]", "unknown table benhcmark"),
        ('licence = "CC0"', 'licence = "CC0', "not valid TOML"),
    ],
)  # fmt: skip
def test_a_wrong_table_names_the_row(old: str, new: str, message: str):
    text = table("https://a/b")
    assert old in text
    with pytest.raises(ValueError, match=message):
        read_benchmarks(text.replace(old, new, 1))


def test_a_dataset_twice():
    with pytest.raises(ValueError, match="toy: that name is there twice"):
        read_benchmarks(table("https://a/b") * 2)


@pytest.mark.skipif(not REAL.is_dir(), reason="no benchmark files here: let MTLEARN_DATA name a folder <dataset>/<file>")
@pytest.mark.parametrize(("dataset", "file"), FILES)
def test_the_real_files(dataset: str, file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    monkeypatch.setenv("MTLEARN_CACHE", str(tmp_path))
    if not (REAL / dataset / file).is_file():
        pytest.skip(f"{REAL} has no {dataset}/{file}")
    path = fetch(dataset, file)
    assert path == REAL / dataset / file
    assert path.stat().st_size == benchmark(dataset).file(file).bytes
    assert list(tmp_path.iterdir()) == []
