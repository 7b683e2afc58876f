"""What tests share: one thread, and a checkout whose papers are toys."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


@pytest.fixture
def toy_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout with the papers of tests/toy_experiment.py; the catalogue, the data that ship and the store are its own."""
    import toy_experiment

    root = toy_experiment.lay_out(tmp_path / "checkout")
    toy_experiment.install(root, monkeypatch.setattr)
    monkeypatch.setenv("MTLEARN_RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    yield root
    for name in [name for name in sys.modules if name.startswith("mtlearn.toys")]:
        del sys.modules[name]
