"""Published graphs as torch_geometric reads them: the citations of Cora, and three sets of small graphs.

    cora()                    one graph: 2,708 papers, 1,433 binary word features, 7 classes, the public train, validation and test masks
    graph_set("MUTAG")        188 molecules, 7 kinds of atoms, is it a mutagen?
    graph_set("PROTEINS")     1,113 proteins, 3 kinds of structural elements, is it an enzyme?
    graph_set("IMDB-BINARY")  1,000 actors' circles without node labels, which of two genres?

The files come from :func:`mtlearn.datasets.benchmarks.fetch`, which gives out none that is not the published one.
"""

import contextlib
import io
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mtlearn.datasets.benchmarks import fetch

if TYPE_CHECKING:
    from torch_geometric.data import Data

GRAPH_SETS = {"MUTAG": "MUTAG.txt", "PROTEINS": "PROTEINS.txt", "IMDB-BINARY": "IMDBBINARY.txt"}


def cora() -> "Data":
    """Cora as ``torch_geometric.datasets.Planetoid`` gives it, with its public split.

    Returns:
        ``x`` (2708, 1433) zeros and ones, ``edge_index`` (2, 10556) both directions of every citation, ``y`` (2708,) classes 0 to 6,
        ``train_mask`` (140 papers), ``val_mask`` (500), ``test_mask`` (1000).

    Raises:
        MissingFileError: a file is not on this machine and cannot be downloaded.
        RefusedFileError: a file is not the published one.
    """
    files = fetch("planetoid")
    # The files are pickles, and so is what Planetoid keeps of them: it reads ours, whose hash is right, in a folder that nobody else writes in.
    with tempfile.TemporaryDirectory(prefix="mtlearn-cora-") as root, _quiet():
        raw = Path(root) / "Cora" / "raw"
        raw.mkdir(parents=True)
        for file in files:
            shutil.copyfile(file, raw / file.name)
        from torch_geometric.datasets import Planetoid  # here, because its import takes seconds

        return Planetoid(root, "Cora")[0]


def graph_set(name: str) -> "list[Data]":
    """A set of graphs with a class each, in the order of the file.

    Args:
        name: one of :data:`GRAPH_SETS`.

    Returns:
        One ``Data`` a graph: ``x`` (n, tags) one-hot node tags in the order of their numbers, ``edge_index`` (2, 2m) both directions, sorted,
        ``y`` (1,) the class in the order of the file's numbers. Where nodes have no tags (IMDB-BINARY) x is a column of ones:
        ``torch_geometric.transforms.OneHotDegree`` adds what is usual there.

    Raises:
        ValueError: there is no such set.
        MissingFileError: the file is not on this machine and cannot be downloaded.
        RefusedFileError: the file is not the published one.
    """
    if name not in GRAPH_SETS:
        raise ValueError(f"name must be one of {', '.join(GRAPH_SETS)}, got {name!r}")
    return read_graphs(fetch("graphs", GRAPH_SETS[name]))


def read_graphs(path: Path) -> "list[Data]":
    """Read a file of graphs: their number; then for each a line "nodes label" and for each node a line "tag degree neighbour ...".

    Neighbours are numbered from 0 in their graph, and each of two neighbours names the other.

    Returns:
        As :func:`graph_set`.

    Raises:
        ValueError: the file is not of that form; says in which line and why.
    """
    with _quiet():
        from torch_geometric.data import Data  # here, because its import takes seconds
    parsed = list(_parse(path))
    tag_of = {tag: i for i, tag in enumerate(sorted({tag for _, tags, _ in parsed for tag in tags}))}
    class_of = {label: i for i, label in enumerate(sorted({label for label, _, _ in parsed}))}
    graphs = []
    for label, tags, edges in parsed:
        x = torch.nn.functional.one_hot(torch.tensor([tag_of[tag] for tag in tags]), len(tag_of)).float()
        edge_index = torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T.contiguous()
        graphs.append(Data(x=x, edge_index=edge_index, y=torch.tensor([class_of[label]])))
    return graphs


def _parse(path: Path) -> Iterator[tuple[int, list[int], list[tuple[int, int]]]]:
    """The label, the nodes' tags and the sorted pairs (node, neighbour) of every graph."""
    lines = path.read_bytes().decode("ascii", "replace").splitlines()
    at = 0  # the number of the last line that was read

    def wrong(what: str, line: int | None = None) -> ValueError:
        return ValueError(f"{path}, line {line or at}: {what}")

    def numbers(expected: str, least: int) -> list[int]:
        nonlocal at
        at += 1
        if at > len(lines):
            raise wrong(f"the file ends where {expected} should be")
        try:
            found = [int(word) for word in lines[at - 1].split()]
        except ValueError:
            found = []
        if len(found) < least:
            raise wrong(f"expected {expected}, got {lines[at - 1][:60]!r}")
        return found

    count = numbers("the number of graphs", 1)
    if len(count) > 1 or count[0] < 1:
        raise wrong(f"expected the number of graphs, at least 1, got {lines[0][:60]!r}")
    for _ in range(count[0]):
        head = numbers('"nodes label"', 2)
        if len(head) > 2 or head[0] < 1:
            raise wrong(f'expected "nodes label" with at least one node, got {lines[at - 1][:60]!r}')
        n, label = head
        first = at + 1  # the line of node 0
        tags, edges = [], []
        for node in range(n):
            tag, degree, *neighbours = numbers('"tag degree neighbour ..."', 2)
            if len(neighbours) != degree or len(set(neighbours)) != degree:
                raise wrong(f"node {node} has degree {degree}, and {len(set(neighbours))} different neighbours of {len(neighbours)} follow")
            if any(not 0 <= other < n or other == node for other in neighbours):
                raise wrong(f"the neighbours of node {node} must be other nodes between 0 and {n - 1}, got {neighbours}")
            tags.append(tag)
            edges += [(node, other) for other in sorted(neighbours)]
        known = set(edges)
        for node, other in edges:
            if (other, node) not in known:
                raise wrong(f"node {node} has the neighbour {other}, which does not have it", first + node)
        yield label, tags, edges
    for line, text in enumerate(lines[at:], at + 1):
        if text.strip():
            raise wrong(f"more than the {count[0]} graphs of the first line", line)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What torch_geometric's import and reading say on stderr or warn of (deprecations of their own) is not ours to report."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
