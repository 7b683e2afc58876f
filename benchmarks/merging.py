"""Merging eight checkpoints of 100 million parameters: ours beside the time to read those bytes once, and beside public tools.

The two tools are compared where they are installed, in an environment of their own: ``pip install fusion-bench mergekit lazy-loader``. The merge
itself needs PyTorch and safetensors alone: ``PYTHONPATH=. python benchmarks/merging.py``.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from ratios import ratios
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtlearn.merging.merge import Method, merge, merge_files

TASKS = 8


def checkpoint(seed: int, parameters: int) -> dict[str, Tensor]:
    """The shapes of a transformer of width 768, repeated until there are about so many parameters."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"attention": (2304, 768), "out": (768, 768), "up": (3072, 768), "down": (768, 3072), "norm": (768,), "bias": (3072,)}
    size = sum(torch.Size(shape).numel() for shape in shapes.values())
    return {f"{n}.{name}": torch.randn(shape, generator=g) * 0.02 for n in range(max(1, parameters // size)) for name, shape in shapes.items()}


def read_once(states: list[dict[str, Tensor]]) -> float:
    """Every byte goes through the processor once."""
    return sum(value.sum().item() for state in states for value in state.values())


def fusion_bench_ways(base: dict[str, Tensor], tuned: list[dict[str, Tensor]]) -> dict[str, Callable[[], object]]:
    """The functions that its task arithmetic and its TIES are made of."""
    try:
        from fusion_bench.method.ties_merging.ties_merging_utils import state_dict_to_vector, ties_merging, vector_to_state_dict  # type: ignore
        from fusion_bench.utils.state_dict_arithmetic import state_dict_add, state_dict_mul, state_dict_sub  # type: ignore
    except ImportError:
        return {}

    def task_arithmetic() -> object:
        total = None
        for state in tuned:
            vector = state_dict_sub(state, base)
            total = vector if total is None else state_dict_add(total, vector)
        return state_dict_add(base, state_dict_mul(total, 0.3))

    def ties() -> object:
        flat = state_dict_to_vector(base)
        rows = torch.stack([state_dict_to_vector(state) - flat for state in tuned])
        return vector_to_state_dict(flat + ties_merging(rows, reset_thresh=0.2, merge_func="mean"), base)

    return {"task_arithmetic": task_arithmetic, "ties": ties}


def mergekit_ways(base: dict[str, Tensor], tuned: list[dict[str, Tensor]]) -> dict[str, Callable[[], object]]:
    """Its functions for one group of tensors, called for each entry. Its TIES trims each entry alone, ours the whole model."""
    try:
        from mergekit.merge_methods.generalized_task_arithmetic import get_mask  # type: ignore
        from mergekit.sparsify import SparsificationMethod, sparsify  # type: ignore
    except ImportError:
        return {}

    def merged(trimmed: bool) -> dict[str, Tensor]:
        out = {}
        for name, weight in base.items():
            deltas = weight.new_empty((len(tuned), *weight.shape))
            for number, state in enumerate(tuned):
                delta = state[name] - weight
                deltas[number] = sparsify(delta, density=0.2, method=SparsificationMethod.magnitude, rescale_norm=None) if trimmed else delta
            if trimmed:
                mask = get_mask(deltas, method="sum", mask_dtype=weight.dtype)
                divisor = mask.sum(0)
                divisor[divisor == 0] = 1
                out[name] = weight + (deltas * mask).sum(0) / divisor
            else:
                out[name] = weight + 0.3 * deltas.sum(0)
        return out

    return {"task_arithmetic": lambda: merged(trimmed=False), "ties": lambda: merged(trimmed=True)}


def in_memory(parameters: int, repeats: int, method: Method, target: str = "") -> None:
    """States that are in memory already."""
    base, *tuned = states = [checkpoint(seed, parameters) for seed in range(TASKS + 1)]
    size = sum(value.numel() for value in base.values())
    ways: dict[str, Callable[[], object]] = {
        "read the bytes once": lambda: read_once(states),
        "mtlearn": lambda: merge(base, tuned, method),
    }
    peers = {"fusion-bench": fusion_bench_ways(base, tuned), "mergekit": mergekit_ways(base, tuned)}
    ways |= {name: found[method] for name, found in peers.items() if found}
    ratios(f"{method}, {TASKS} tasks of {size / 1e6:.0f} M parameters in memory", ways, repeats=repeats, target=target)


def from_files(parameters: int, repeats: int) -> None:
    """From file to file, the files in the system's cache."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_checkpoints(folder, parameters)
        out = Path(folder) / "out.safetensors"
        ways: dict[str, Callable[[], object]] = {"read the files once": lambda: [read_once([load_file(path)]) for path in paths]}
        methods: tuple[Method, ...] = ("task_arithmetic", "ties", "dare")
        for method in methods:
            ways[f"mtlearn {method}"] = lambda method=method: merge_files(paths[0], paths[1:], out, method)  # type: ignore[misc]
        ratios("from file to file, the files in the system's cache", ways, repeats=repeats)


def write_checkpoints(folder: str, parameters: int) -> list[Path]:
    """The base and the eight fine-tuned checkpoints."""
    paths = [Path(folder) / f"{number}.safetensors" for number in range(TASKS + 1)]
    for number, path in enumerate(paths):
        save_file(checkpoint(number, parameters), path)
    return paths


WATCHED = """
import sys, threading, time
sys.path.insert(0, "benchmarks")
from merging import *
from merging import fusion_bench_ways, mergekit_ways
way, method, folder = sys.argv[1:]
paths = [Path(folder) / f"{number}.safetensors" for number in range(TASKS + 1)]
find = {"fusion-bench": fusion_bench_ways, "mergekit": mergekit_ways}.get(way)
if find and not find({}, []):
    sys.exit("not installed")
def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) / 1024
start, top = anonymous(), [0.0]
def watch():
    while True:
        top[0] = max(top[0], anonymous())
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
if find:
    base, *tuned = [load_file(path) for path in paths]
    save_file(dict(find(base, tuned)[method]()), Path(folder) / "out.safetensors")
else:
    merge_files(paths[0], paths[1:], Path(folder) / "out.safetensors", method)
print(f"{top[0] - start:.0f}")
"""


def peaks(parameters: int) -> None:
    """Largest memory that is no mapped file, beyond the imports, of each way in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        one = write_checkpoints(folder, parameters)[0].stat().st_size / 2**20
        print(f"\nlargest memory beyond the imports, MiB; one checkpoint has {one:.0f}")
        for method in ("task_arithmetic", "ties"):
            for way in ("mtlearn", "fusion-bench", "mergekit"):
                done = subprocess.run([sys.executable, "-c", WATCHED, way, method, folder], capture_output=True, text=True, check=False)
                print(f"  {method:<16} {way:<13} {done.stdout.split()[-1] if done.returncode == 0 else done.stderr.splitlines()[-1]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--parameters", type=int, default=100_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    in_memory(given.parameters, given.repeats, "task_arithmetic", "target 1.5")
    in_memory(given.parameters // 4, given.repeats, "ties")  # fusion-bench's takes more than 24 GB for the whole
    from_files(given.parameters, given.repeats)
    if sys.platform == "linux":
        peaks(given.parameters // 4)
