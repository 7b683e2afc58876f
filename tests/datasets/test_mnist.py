"""MNIST's published files, and the IDX format they are in."""

import numpy as np
import pytest
import torch
from real_files import REAL

from mtlearn.datasets.mnist import mnist, read_idx


@pytest.mark.skipif(not (REAL / "mnist10k").is_dir(), reason="the published files are not here")
def test_the_published_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    mnist.cache_clear()
    found = mnist()
    assert found.images.shape == (10_000, 28, 28)
    assert found.images.min().item() == 0
    assert found.images.max().item() == 1
    assert torch.bincount(found.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # as its authors count them


def test_the_idx_format() -> None:
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    content = b"\0\0\x08\x02" + (2).to_bytes(4, "big") + (3).to_bytes(4, "big") + values.tobytes()
    assert (read_idx(content) == values).all()
    with pytest.raises(ValueError, match="first three bytes must be 0, 0, 8"):
        read_idx(b"\1" + content[1:])
    with pytest.raises(ValueError, match=r"shape \(2, 3\) needs 6 values, it has 5"):
        read_idx(content[:-1])
