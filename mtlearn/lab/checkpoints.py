"""Small trained models that ship: what made them, where they lie, and how to make them again.

A checkpoint is a safetensors file in ``data/checkpoints`` and a JSON file beside it with the settings that trained it, its SHA-256, what was
measured, the versions and the seconds it took. A paper's ``experiment.py`` lists its own in ``CHECKPOINTS``.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from mtlearn.lab.result import versions
from mtlearn.lab.seeds import seeded
from mtlearn.lab.store import write_atomically
from mtlearn.paths import data

LARGEST = 2_000_000  # bytes


class CheckpointError(RuntimeError):
    """A shipped model is missing, damaged or not of this code; the message says which file and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A shipped model.

    Attributes:
        name: ``<paper>-<variant>``, the name of its files.
        settings: frozen dataclass of plain values: everything that ``train`` depends on, the seed included.
        build: settings to an untrained model of the right shape.
        train: settings and the label of a progress bar (or None) to the trained model.
        measure: the model to figures that say how good it is, or None.
    """

    name: str
    settings: Any
    build: Callable[[Any], nn.Module]
    train: Callable[[Any, str | None], nn.Module]
    measure: Callable[[nn.Module], dict[str, float]] | None = None

    @property
    def paper(self) -> str:
        """Slug of the paper it belongs to."""
        return self.name.split("-")[0]

    @property
    def path(self) -> Path:
        """The safetensors file; the JSON file lies beside it."""
        return data() / "checkpoints" / f"{self.name}.safetensors"


def settings_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings as they are stored in JSON."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(checkpoint.settings)))
    return values


def make(checkpoint: Checkpoint, *, progress: str | None = None) -> dict[str, Any]:
    """Train the model again and write its two files; what lay there is replaced once both are ready. Returns the provenance."""
    began, spent = time.perf_counter(), time.process_time()
    with seeded(getattr(checkpoint.settings, "seed", 0)):
        model = checkpoint.train(checkpoint.settings, progress).cpu().eval()
        measured = checkpoint.measure(model) if checkpoint.measure else {}
    content = save_tensors({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, {"name": checkpoint.name})
    if len(content) > LARGEST:
        raise CheckpointError(f"{checkpoint.name} has {len(content)} bytes; at most {LARGEST} ship")
    provenance = {
        "name": checkpoint.name,
        "paper": checkpoint.paper,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "settings": settings_of(checkpoint),
        "measured": measured,
        "seconds": round(time.perf_counter() - began),
        "cpu_seconds": round(time.process_time() - spent),
        "versions": versions(),
        "command": f"mtlearn checkpoints make {checkpoint.name}",
    }
    write_atomically(checkpoint.path, content)
    write_atomically(checkpoint.path.with_suffix(".json"), (json.dumps(provenance, indent=2) + "\n").encode())
    return provenance


def provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    """What is written beside the model; CheckpointError where it is missing, unreadable or of other settings than the code's."""
    path = checkpoint.path.with_suffix(".json")
    again = f"`mtlearn checkpoints make {checkpoint.name}` makes it again"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        settings = dict(found["settings"])
        complete = {"sha256", "bytes", "measured", "cpu_seconds"} <= set(found)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; {again}") from None
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise CheckpointError(f"{path} cannot be read; {again}")
    wanted = settings_of(checkpoint)
    if settings != wanted:
        names = sorted(name for name in {*settings, *wanted} if settings.get(name) != wanted.get(name))
        changes = ", ".join(f"{name}: {settings.get(name)} there, {wanted.get(name)} in the code" for name in names)
        raise CheckpointError(f"{path} was made with other settings ({changes}); {again}")
    return found


def load(checkpoint: Checkpoint, *, device: str | torch.device = "cpu") -> nn.Module:
    """The trained model, in evaluation mode, once its bytes are those that were recorded.

    Raises:
        CheckpointError: a file is missing, damaged, of other settings or of another shape than the code's.
    """
    found = provenance(checkpoint)
    again = f"`mtlearn checkpoints make {checkpoint.name}` makes it again"
    try:
        content = checkpoint.path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint.path} is missing; {again}") from None
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != found["sha256"]:
        raise CheckpointError(f"{checkpoint.path} is damaged: SHA-256 {sha256[:12]}..., recorded {found['sha256'][:12]}...; restore it, or {again}")
    model = checkpoint.build(checkpoint.settings)
    try:
        model.load_state_dict(load_tensors(content))
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint.path} does not fit the code: {' '.join(str(error).split())}; {again}") from None
    return model.to(device).eval()
