"""One encoder on the benchmark, beside others: what the command ``mtlearn mmteb module:function`` prints.

    tasks = benchmark()
    board = Board(folder)                                   # scores are written there, task by task
    mine = board.run("my_module:encode", encode, tasks)     # {task: score}; what was scored before is not run again

An encoder is known by its name and by what it answers to three texts: when that changes, its old scores are set aside. A task is known by its texts.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mtlearn.lab.store import StoreError, default_folder, write_atomically
from mtlearn.layers.embedding import Encode, embed
from mtlearn.retrieval.mmteb.method import borda, mean_scores, type_means
from mtlearn.retrieval.mmteb.models import classical, suite
from mtlearn.retrieval.mmteb.tasks import Task, evaluate, texts_of

FORMAT = "mtlearn-mmteb-1"
PROBES = ("Compute the singular value decomposition of a matrix.", "Sort an array along an axis.", "Vereinigtes Königreich")
BESIDE = ("words, tf-idf, SVD 128", "letters, tf-idf, SVD 128", "letters, tf-idf")  # classical embedders that stand in the table


class Board:
    """Scores of encoders in a folder, a JSON file each.

    Args:
        folder: where they lie; ``mmteb`` in the folder of results when omitted.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder() / "mmteb"

    def path(self, name: str) -> Path:
        """The file of an encoder: its name in letters that every file system has, and a few digits that tell alike names apart."""
        plain = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
        return self.folder / f"{plain[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.json"

    def run(
        self, name: str, encode: Encode, tasks: Sequence[Task], *, fresh: bool = False, on_score: Callable[[str, float], Any] | None = None
    ) -> dict[str, float]:
        """The scores of all tasks; each is written when it is there, so that a failure or Ctrl-C loses none.

        Args:
            name: of the encoder.
            encode: a list of texts to (n, d) numbers.
            tasks: of different names.
            fresh: score everything anew.
            on_score: called with name and score of each task that was run.

        Raises:
            EncoderError: the encoder gave something that is no vector a text; what was scored before is kept.
            StoreError: the folder cannot be written, or holds a file that is not of this kind.
        """
        probe = fingerprint(encode)
        known = {} if fresh else self._read(name, probe)
        marks = {task.name: task_mark(task) for task in tasks}
        done = {task: score for task, (mark, score) in known.items() if marks.get(task) == mark}

        def keep(task: str, score: float) -> None:
            known[task] = (marks[task], score)
            content = {"format": FORMAT, "name": name, "probe": probe, "scores": {key: list(value) for key, value in known.items()}}
            write_atomically(self.path(name), (json.dumps(content, indent=1) + "\n").encode())
            if on_score is not None:
                on_score(task, score)

        return evaluate(encode, tasks, done=done, on_score=keep)

    def _read(self, name: str, probe: str) -> dict[str, tuple[str, float]]:
        path = self.path(name)
        if not path.is_file():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(content["format"])
            scores = {task: (str(mark), float(score)) for task, (mark, score) in content["scores"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{path} holds no scores of this benchmark ({error}); move it away, or use --fresh") from None
        return scores if content.get("probe") == probe else {}


def fingerprint(encode: Encode) -> str:
    """What an encoder answers to three texts, to four digits, as a short hash. EncoderError where it answers with no vector a text."""
    vectors = embed(encode, PROBES).double()
    scale = vectors.abs().max().clamp(min=1e-30)
    return hashlib.sha256(repr([[f"{value:.4f}" for value in row] for row in (vectors / scale).tolist()]).encode()).hexdigest()[:16]


def task_mark(task: Task) -> str:
    """A short hash of a task's texts and what is asked of them."""
    return hashlib.sha256("\x1f".join((task.category, task.about, *task.texts())).encode()).hexdigest()[:16]


def peers(tasks: Sequence[Task], *, seed: int = 0) -> dict[str, Encode]:
    """The encoders that stand beside: three classical ones, fitted on the texts of the tasks, and the suite's."""
    fitted = classical(texts_of(tasks), seed=seed)
    return {**{name: fitted[name] for name in BESIDE}, **suite()}


def summary(scores: Mapping[str, Mapping[str, float]], tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """A row an encoder, best mean first: its name, mean over tasks, mean over categories, models beaten a task, and the mean of each category.

    Args:
        scores: encoder to its scores by task.
        tasks: those that all of them have.
    """
    table = torch.tensor([[found[task.name] for task in tasks] for found in scores.values()], dtype=torch.float64)
    kinds = [task.category for task in tasks]
    mean, by_type = mean_scores(table, kinds)
    points = borda(table) / len(tasks) if len(table) > 1 else torch.zeros(1)
    by_kind = type_means(table, kinds)
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(scores):
        of_kind = {kind: float(values[i]) for kind, values in by_kind.items()}
        rows.append({"encoder": name, "mean": float(mean[i]), "type mean": float(by_type[i]), "borda": float(points[i]), "categories": of_kind})
    return sorted(rows, key=lambda row: -row["mean"])
