"""Merge checkpoints of one architecture, in memory or from file to file, whatever their size.

    merged = merge(base, [digits, letters], method="ties", scale=0.8)                       states or modules
    merge_files("base.safetensors", ["a.safetensors", "b.safetensors"], "merged.safetensors", method="ties")

Both walk over the weights in pieces that fit into a processor's cache: a piece of each task vector is subtracted, merged and written before the next
is read. Every byte is read once (TIES and magnitude pruning: twice, and a sample, for the exact threshold over the whole model), and memory holds
one piece of each checkpoint. The files are mapped, not loaded. Sums are in float32 (float64 for float64 weights), whatever the precision of the
files, and rounded once. Integer entries and those of zero size are the base's.

| method | merged task vector, before ``scale`` | default scale |
| --- | --- | --- |
| ``average`` | mean of the vectors, or ``weights`` | 1 |
| ``task_arithmetic`` | their sum (Ilharco et al. 2023) | 0.3 |
| ``ties`` | trimmed to ``keep``, sign elected, mean of what agrees (Yadav et al. 2023) | 1 |
| ``dare`` | sum of the vectors, each with the share ``drop`` of its entries dropped at random and the rest rescaled (Yu et al. 2024) | 0.3 |
| ``magnitude`` | sum of the vectors, each trimmed to ``keep`` | 0.3 |
| ``random`` | sum of the vectors, each with a random share ``keep`` of its entries, not rescaled | 0.3 |
| a rule of your own | what the rule returns | 0.3 |

A rule is a function of (n, p), a piece of each task vector, to (p,), that treats every weight alike::

    merge(base, tuned, consensus_rule(agree=2), scale=0.4)          Consensus Merging, of mtlearn.merging.tall_masks.method

A negative ``scale`` negates: with one checkpoint and task arithmetic, the model unlearns its task.
"""

import json
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mtlearn.merging.task_vectors import (
    State,
    check_share,
    check_states,
    elect_and_combine_,
    tied,
    trim_,
    working_dtype,
)

Method = Literal["average", "task_arithmetic", "ties", "dare", "magnitude", "random"]
METHODS: tuple[Method, ...] = get_args(Method)
Rule = Callable[[Tensor], Tensor]
SCALE = 0.3  # of the methods that sum; of "average" and "ties", which average, it is 1
PIECE = 1 << 17  # values of each checkpoint that are worked on at a time: with eight checkpoints four megabytes


@dataclass(frozen=True)
class Recipe:
    """How to merge.

    Attributes:
        method: one of :data:`METHODS`, or a rule.
        scale: what the merged task vector is multiplied by; the method's own default when None.
        weights: of ``average``, one a checkpoint; equal when None.
        keep: of ``ties``, ``magnitude`` and ``random``: share of the entries that survive, in (0, 1].
        drop: of ``dare``, in [0, 1).
        seed: of ``dare`` and ``random``.
    """

    method: Method | Rule = "task_arithmetic"
    scale: float | None = None
    weights: tuple[float, ...] | None = None
    keep: float = 0.2
    drop: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if not callable(self.method) and self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, or a rule, got {self.method!r}")
        check_share("keep", self.keep)
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop must be in [0, 1), got {self.drop}")
        if self.scale is not None and not math.isfinite(self.scale):
            raise ValueError(f"scale must be finite, got {self.scale}")
        if self.weights is not None and (not all(map(math.isfinite, self.weights)) or not sum(self.weights)):
            raise ValueError(f"weights must be finite and their sum not 0, got {list(self.weights)}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")

    def check(self, count: int) -> None:
        """ValueError where the recipe does not fit ``count`` fine-tuned checkpoints."""
        if not count:
            raise ValueError("there is no fine-tuned checkpoint to merge; at least one is needed")
        if self.weights is not None:
            if self.method != "average":
                raise ValueError(f"weights belong to method 'average', not to {self.method!r}")
            if len(self.weights) != count:
                raise ValueError(f"weights must hold one number a checkpoint, got {len(self.weights)} for {count}")


def merge(
    base: State | nn.Module, tuned: Sequence[State | nn.Module], method: Method | Rule = "task_arithmetic", **options: Any
) -> dict[str, Tensor]:
    """The merged state of fine-tuned models of one architecture.

    Args:
        base: the model that all were fine-tuned from: a module or its state.
        tuned: one or more fine-tuned models.
        method: see the module's table.
        options: the other fields of :class:`Recipe`.

    Returns:
        A new state in the base's names, shapes, dtypes and order. Weights that are tied in every state stay tied.

    Raises:
        ValueError: states do not fit one another, a weight is not finite, or an option is out of range.
    """
    recipe = Recipe(method, **options)
    states = [dict(model.state_dict()) if isinstance(model, nn.Module) else dict(model) for model in (base, *tuned)]
    recipe.check(len(tuned))
    check_states(states[0], states[1:])
    sources = [_Memory(state, "the base" if number == 0 else f"fine-tuned model {number - 1}") for number, state in enumerate(states)]
    first = tied(*states)
    moved = [name for name in _moved(states[0]) if first[name] == name]
    out: dict[str, Tensor] = {}
    for name, weight in states[0].items():
        out[name] = torch.empty_like(weight, memory_format=torch.contiguous_format) if name in moved else weight.detach().clone()

    def write(name: str, start: int, piece: Tensor) -> None:
        out[name].view(-1)[start : start + len(piece)] = piece

    _merge(sources, moved, recipe, write)
    return {name: out[first[name]] for name in out}


def merge_files(
    base: str | Path,
    tuned: Sequence[str | Path],
    out: str | Path,
    method: Method | Rule = "task_arithmetic",
    *,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Path:
    """Merge safetensors files into a new one, piece by piece.

    Args:
        base: a ``.safetensors`` file, or the ``.safetensors.index.json`` of a checkpoint in several files.
        tuned: one or more of the same kind.
        out: the file to write, none of the inputs. It appears, or replaces an older one, when it is whole.
        method: see the module's table.
        progress: called with values done and values in all.
        options: the other fields of :class:`Recipe`.

    Returns:
        The path of ``out``.

    Raises:
        ValueError: a file is no whole safetensors file, checkpoints do not fit one another, a weight is not finite, or an option is out of range.
        OSError: a file is not there, or there is no room for the new one. What ``out`` held before is still there.
    """
    recipe = Recipe(method, **options)
    recipe.check(len(tuned))
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"{out} is a folder; give the name of a file, such as {out / 'merged.safetensors'}")
    for path in (base, *tuned):
        if out.exists() and Path(path).exists() and out.samefile(path):
            raise ValueError(f"{out} is one of the checkpoints to merge; write to another file")
    with ExitStack() as opened:
        sources = [_File(Path(path), opened) for path in (base, *tuned)]
        states = [source.like for source in sources]
        check_states(states[0], states[1:], [source.label for source in sources[1:]])
        header, places, size = _layout(sources[0])
        moved = _moved(states[0])
        done, total = 0, sum(states[0][name].numel() for name in moved)
        with _Replacing(out, size) as stream:
            stream.write(header)
            for name, like in states[0].items():
                if name not in moved:
                    stream.seek(places[name])
                    stream.write(_bytes(sources[0].read(name, 0, like.numel())))

            def write(name: str, start: int, piece: Tensor) -> None:
                nonlocal done
                stream.seek(places[name] + start * piece.element_size())
                stream.write(_bytes(piece))
                done += len(piece)
                if progress is not None:
                    progress(min(done, total), total)

            _merge(sources, moved, recipe, write)
    return out


# ------------------------------------------------------------------------------------------------------------------------- the walk


class _Source(Protocol):
    label: str
    like: Mapping[str, Tensor]

    def read(self, name: str, start: int, stop: int) -> Tensor: ...


def _moved(base: Mapping[str, Tensor]) -> list[str]:
    """The entries that a merge moves: floating-point and not empty."""
    return [name for name, value in base.items() if value.is_floating_point() and value.numel()]


def _pieces(sources: Sequence[_Source], names: Sequence[str]) -> Iterator[tuple[str, int, Tensor, Tensor]]:
    """Name, start, base (p,) and task vectors (n, p) in the working precision, for every piece; NaN and infinity are refused."""
    count = len(sources) - 1
    for name in names:
        like = sources[0].like[name]
        wide = working_dtype(like.dtype)
        rows = torch.empty(count, min(PIECE, like.numel()), dtype=wide, device=like.device if like.device.type != "meta" else "cpu")
        for start in range(0, like.numel(), PIECE):
            stop = min(start + PIECE, like.numel())
            values = [source.read(name, start, stop) for source in sources]
            origin = values[0].to(wide)
            piece = rows[:, : stop - start]
            for row, value in zip(piece, values[1:], strict=True):
                torch.sub(value.to(wide), origin, out=row)
            if not math.isfinite(piece.sum().item()):  # one pass in the cache; which value it was is looked for only then
                _refuse(sources, name, values)
            yield name, start, origin, piece


def _refuse(sources: Sequence[_Source], name: str, values: Sequence[Tensor]) -> None:
    for source, value in zip(sources, values, strict=True):
        if bad := int((~value.to(torch.float64).isfinite()).sum()):
            raise ValueError(f"{name!r} holds values that are NaN or infinite in {source.label} ({bad} among the {len(value)} first looked at)")


def _merge(sources: Sequence[_Source], names: Sequence[str], recipe: Recipe, write: Callable[[str, int, Tensor], None]) -> None:
    """Walk over all pieces and hand each merged one to ``write``."""
    count = len(sources) - 1
    scale = (1.0 if recipe.method in ("average", "ties") else SCALE) if recipe.scale is None else recipe.scale
    thresholds = _thresholds(sources, names, recipe.keep) if recipe.method in ("ties", "magnitude") else None
    shares = torch.tensor(recipe.weights or [1.0] * count, dtype=torch.float64)
    shares /= shares.sum()
    majority = torch.ones(())
    signs, cancelled = 0, False
    draws = _Draws(recipe.seed, count)
    merged = torch.empty(0)

    def walk() -> None:
        nonlocal signs, cancelled, merged
        for name, start, origin, piece in _pieces(sources, names):
            if merged.shape != origin.shape or merged.dtype != origin.dtype or merged.device != origin.device:
                merged = torch.empty_like(origin)  # kept from piece to piece: fresh memory costs more than the sum
            if recipe.method == "average":
                vector = torch.mv(piece.T, shares.to(piece), out=merged)
            elif recipe.method == "task_arithmetic":
                vector = torch.sum(piece, 0, out=merged)
            elif recipe.method in ("ties", "magnitude"):
                assert thresholds is not None
                trimmed = trim_(piece, thresholds)
                vector = torch.sum(trimmed, 0, out=merged)
                if recipe.method == "ties":
                    signs += int(vector.sign().sum())
                    cancelled = cancelled or bool(((vector == 0) & trimmed.any(0)).any())
                    vector = elect_and_combine_(trimmed, majority, "mean")
            elif recipe.method == "dare":
                vector = (piece / (1 - recipe.drop) * (draws.uniform(name, start, piece) >= recipe.drop)).sum(0)
            elif recipe.method == "random":
                vector = (piece * (draws.uniform(name, start, piece) < recipe.keep)).sum(0)
            else:
                assert callable(recipe.method)
                vector = recipe.method(piece)
                if vector.shape != origin.shape:
                    raise ValueError(f"the rule must return {tuple(origin.shape)} for {tuple(piece.shape)}, got {tuple(vector.shape)}")
            write(name, start, torch.add(origin, vector, alpha=scale, out=merged).to(sources[0].like[name].dtype))

    walk()
    if recipe.method == "ties" and cancelled and signs <= 0:
        # weights whose entries cancel to exactly 0 take the sign of most weights, which is known only now; where it is positive it was right
        majority = torch.tensor(float(signs and -1))
        walk()


@dataclass
class _Draws:
    """Uniform numbers that depend on seed, task and entry alone, not on what else a checkpoint holds."""

    seed: int
    count: int
    streams: list[torch.Generator] = field(default_factory=list)

    def uniform(self, name: str, start: int, piece: Tensor) -> Tensor:
        if start == 0:
            seeds = [zlib.crc32(f"{self.seed}/{task}/{name}".encode()) for task in range(self.count)]
            self.streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.stack([torch.rand(piece.shape[1], generator=stream) for stream in self.streams]).to(piece.device)


def _thresholds(sources: Sequence[_Source], names: Sequence[str], keep: float) -> Tensor:
    """(n,): the exact magnitude threshold of each task vector over the whole model, as ``task_vectors.magnitude_threshold`` has it.

    A sorted copy of all magnitudes would need as much memory as a checkpoint. A sample of them gives an interval that holds the wanted one almost
    surely; one pass counts what lies below and keeps what lies inside. Where the sample misled, the interval is widened and the pass repeated.
    """
    count = len(sources) - 1
    size = sum(sources[0].like[name].numel() for name in names)
    rank = size - int(keep * size)  # the rank-th smallest, from 1
    if rank == 0:
        return torch.zeros(count)
    stride = max(1, min(size // 100_000, 1000))  # the larger the model, the narrower the interval: what lies inside is kept in memory
    sample = []
    for name in names:
        values = [source.read(name, 0, sources[0].like[name].numel())[::stride].to(working_dtype(sources[0].like[name].dtype)) for source in sources]
        sample.append((torch.stack(values[1:]) - values[0]).abs())
    drawn = torch.cat(sample, 1).sort(1).values  # (n, s)
    margin = 0 if stride == 1 else 5 * math.sqrt(drawn.shape[1]) / 2 + 1
    while True:
        place = rank / size * drawn.shape[1]
        low = drawn[:, max(0, math.floor(place - margin) - 1)] if place - margin > 1 else torch.full((count,), -1.0)
        high = drawn[:, math.ceil(place + margin)] if place + margin < drawn.shape[1] - 1 else torch.full((count,), math.inf)
        below = torch.zeros(count, dtype=torch.int64)
        inside: list[list[Tensor]] = [[] for _ in range(count)]
        for _, _, _, piece in _pieces(sources, names):
            for task, sizes in enumerate(piece.abs_()):  # one number a row is compared several times faster than a column of them
                below[task] += torch.count_nonzero(sizes <= low[task].item())
                inside[task].append(sizes[(sizes > low[task].item()) & (sizes <= high[task].item())])
        held = [torch.cat(parts) for parts in inside]
        if all(n < rank <= n + len(values) for n, values in zip(below.tolist(), held, strict=True)):
            return torch.stack([values.kthvalue(rank - n).values for n, values in zip(below.tolist(), held, strict=True)])
        margin = 10 * margin + 10


# ----------------------------------------------------------------------------------------------------------------- states and files


class _Memory:
    """A state whose entries are read as flat pieces."""

    def __init__(self, state: State, label: str) -> None:
        self.label = label
        self.like: Mapping[str, Tensor] = state
        self._flat = {name: value.detach().reshape(-1) for name, value in state.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self._flat[name][start:stop]


class _File:
    """A safetensors checkpoint, of one file or of several with an index, mapped into memory and read as flat pieces."""

    def __init__(self, path: Path, opened: ExitStack) -> None:
        self.label = str(path)
        self.metadata: dict[str, str] = {}
        self._files: dict[str, Any] = {}
        self._entry: tuple[str, Tensor] | None = None
        parts = _parts(path)
        for part, wanted in parts.items():
            if not part.is_file():
                raise FileNotFoundError(f"there is no file {part}{f', which {path} names' if part != path else ''}")
            try:
                file = opened.enter_context(safe_open(part, framework="pt"))
            except SafetensorError as error:
                raise ValueError(f"{part} is no whole safetensors file ({error}); it may be cut off or damaged: get it again") from None
            self.metadata |= file.metadata() or {}
            for name in wanted or file.offset_keys():
                self._files[name] = file
        like: dict[str, Tensor] = {}
        for name, file in self._files.items():
            try:
                piece = file.get_slice(name)
            except SafetensorError:
                raise ValueError(f"{path} promises an entry {name!r} that its file lacks") from None
            like[name] = torch.empty(piece.get_shape(), dtype=_DTYPES[piece.get_dtype()], device="meta")
        self.like: Mapping[str, Tensor] = like

    def read(self, name: str, start: int, stop: int) -> Tensor:
        if self._entry is None or self._entry[0] != name:
            self._entry = (name, self._files[name].get_tensor(name).view(-1))  # maps the bytes; they are read when they are used
        return self._entry[1][start:stop]


_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool},
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def _parts(path: Path) -> dict[Path, list[str] | None]:
    """The files of a checkpoint, each with the entries to take from it (None: all)."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}" + ("; it is a folder: name a file in it" if path.is_dir() else ""))
    if path.suffix != ".json":
        return {path: None}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        parts: dict[Path, list[str] | None] = {}
        for name, file in table.items():
            names = parts.setdefault(path.parent / str(file), [])
            assert names is not None
            names.append(name)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is no index of a safetensors checkpoint: it needs a 'weight_map' from entries to files") from None
    return parts


def _layout(source: _File) -> tuple[bytes, dict[str, int], int]:
    """The head of a safetensors file with these entries, where each entry begins, and the file's size.

    The format: eight bytes with the length of the head, the head in JSON, padded with spaces to a multiple of eight, then all values.
    """
    table: dict[str, Any] = {"__metadata__": source.metadata} if source.metadata else {}
    begins, end = {}, 0
    for name, like in sorted(source.like.items(), key=lambda item: -item[1].element_size()):  # widest first, so that every entry is aligned
        begins[name], end = end, end + like.numel() * like.element_size()
        table[name] = {"dtype": _NAMES[like.dtype], "shape": list(like.shape), "data_offsets": [begins[name], end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + begin for name, begin in begins.items()}, len(head) + end


def _bytes(piece: Tensor) -> memoryview:
    flat: Any = piece.contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(flat) if piece.numel() else memoryview(b"")


class _Replacing:
    """A file that takes the place of ``path`` when it is whole; until then, and after an error, the old one is there."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size, self.temporary = path, size, ""

    def __enter__(self) -> BinaryIO:
        folder = self.path.absolute().parent
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder} to write {self.path.name} into")
        if shutil.disk_usage(folder).free < self.size:
            raise OSError(f"{folder} has {shutil.disk_usage(folder).free:,} bytes free, the merged file needs {self.size:,}; nothing was written")
        try:
            handle, self.temporary = tempfile.mkstemp(dir=folder, prefix=f".{self.path.name}.")
        except OSError as error:
            raise OSError(f"cannot write into {folder}: {error.strerror}") from error
        self._stream = os.fdopen(handle, "wb", buffering=1 << 20)
        return self._stream

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        failed: OSError | None = error if isinstance(error, OSError) else None
        try:
            if error is None:
                self._stream.flush()
                os.fsync(self._stream.fileno())  # on the disk before it takes the old one's place
            self._stream.close()
            if error is None:
                mode = self.path.stat().st_mode if self.path.exists() else 0o644
                Path(self.temporary).chmod(mode)
                Path(self.temporary).replace(self.path)
        except OSError as late:
            failed = failed or late
        with suppress(OSError):
            Path(self.temporary).unlink(missing_ok=True)
        if failed is not None:
            raise OSError(f"cannot write {self.path}: {failed.strerror or failed}; what it held before is kept") from failed
