"""Seeds: every random draw of an experiment comes from one number, and a run repeats to the bit on one machine."""

import random
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def stream(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for each purpose: ``stream(seed, "train")`` and ``stream(seed, "test")`` are independent.

    Drawing more from one stream never changes another, so an arm that needs extra draws leaves the others' data alone.
    """
    words = [seed, *(zlib.crc32(str(name).encode()) for name in names)]
    value = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(value & (2**63 - 1))


_GLOBAL_STATE = threading.RLock()  # the threads of a process share one generator: a second one waits for its turn


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and PyTorch and compute on one thread; what was set before is restored at the end.

    One thread, because sums are split over threads and their last digits would follow the number of cores. Where several threads of a process
    (those of a Dask worker) come here, one runs at a time. Dask's own threads draw from Python's ``random`` meanwhile: an experiment draws from
    :func:`stream`, PyTorch or NumPy.
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    with _GLOBAL_STATE, torch.random.fork_rng():
        python, array, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()  # noqa: NPY002  # seeds what others draw from
        torch.set_num_threads(1)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)  # noqa: NPY002
            torch.set_num_threads(threads)
