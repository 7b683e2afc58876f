"""MNIST's 10,000 test digits, 28 x 28, from the published files: ``mtlearn data fetch mnist10k``, or a folder that ``MTLEARN_DATA`` names."""

import gzip
from functools import cache

import numpy as np
import torch

from mtlearn.datasets.benchmarks import fetch
from mtlearn.datasets.digits import Digits


@cache
def mnist() -> Digits:
    """All 10,000 images, (10000, 28, 28) ink from 0 to 1, with their labels, in the published order.

    Raises:
        MissingFileError: a file is not here and cannot be fetched.
        ValueError: a file is not what the IDX format says.
    """
    images = read_idx(gzip.decompress(fetch("mnist10k", "t10k-images-idx3-ubyte.gz").read_bytes()))
    labels = read_idx(gzip.decompress(fetch("mnist10k", "t10k-labels-idx1-ubyte.gz").read_bytes()))
    return Digits(torch.from_numpy(images.astype(np.float32)) / 255, torch.from_numpy(labels.astype(np.int64)))


def read_idx(content: bytes) -> np.ndarray:
    """An array of unsigned bytes in the IDX format: two zero bytes, the type (8), the number of axes, the length of each, the values.

    Raises:
        ValueError: the header or the number of values is wrong.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError("this is no IDX file of unsigned bytes: its first three bytes must be 0, 0, 8")
    shape = tuple(int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(content[3]))
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape))
    if len(values) != np.prod(shape):
        raise ValueError(f"this IDX file of shape {shape} needs {np.prod(shape)} values, it has {len(values)}")
    return values.reshape(shape)
