"""Cora and the graph sets: the parser on files by hand, and the published files where they are."""

import os
import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
from real_files import REAL

from mtlearn.datasets import graph_benchmarks
from mtlearn.datasets.benchmarks import RefusedFileError, benchmark
from mtlearn.datasets.graph_benchmarks import GRAPH_SETS, cora, graph_set, read_graphs

TWO = """2
3 5
7 2 2 1
4 1 0
7 1 0
1 2
4 0
"""  # a path whose middle is node 0, then a lone node


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the published files, and a cache of the test's own."""
    for name in ("planetoid", "graphs"):
        if not (REAL / name).is_dir():
            pytest.skip(f"no benchmark files here: let MTLEARN_DATA name a folder with {name}/<file>")
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    monkeypatch.setenv("MTLEARN_CACHE", str(tmp_path / "cache"))
    return REAL


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "toy.txt"
    path.write_text(text)
    return path


def test_a_file_by_hand(tmp_path: Path):
    path, lone = read_graphs(written(tmp_path, TWO))
    assert path.validate() and lone.validate()
    assert path.x.tolist() == [[0, 1], [1, 0], [0, 1]] and lone.x.tolist() == [[1, 0]]  # tags 4 and 7
    assert path.edge_index.tolist() == [[0, 0, 1, 2], [1, 2, 0, 0]] and path.is_undirected()
    assert lone.edge_index.shape == (2, 0) and lone.edge_index.dtype == torch.long
    assert (path.y.tolist(), lone.y.tolist()) == ([1], [0])  # labels 5 and 2
    assert path.x.dtype == torch.float32 and path.y.dtype == torch.long


def test_spaces_and_empty_lines_at_the_end_are_of_no_account(tmp_path: Path):
    spaced = TWO.replace(" ", "  ").replace("\n", " \r\n") + "\n\n"
    for one, other in zip(read_graphs(written(tmp_path, TWO)), read_graphs(written(tmp_path, spaced)), strict=True):
        assert torch.equal(one.x, other.x) and torch.equal(one.edge_index, other.edge_index) and torch.equal(one.y, other.y)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("2\n3 5", "two\n3 5", 1, "expected the number of graphs, got 'two'"),
        ("2\n3 5", "2 3\n3 5", 1, "expected the number of graphs, at least 1, got '2 3'"),
        ("2\n3 5", "0\n3 5", 1, "at least 1, got '0'"),
        ("3 5", "3", 2, "expected \"nodes label\", got '3'"),
        ("3 5", "3 5 1", 2, "expected \"nodes label\" with at least one node, got '3 5 1'"),
        ("3 5", "0 5", 2, "with at least one node, got '0 5'"),
        ("3 5", "3 a", 2, "expected \"nodes label\", got '3 a'"),
        ("7 2 2 1", "7.5 2 2 1", 3, "expected \"tag degree neighbour ...\", got '7.5 2 2 1'"),
        ("7 2 2 1", "7", 3, "expected \"tag degree neighbour ...\", got '7'"),
        ("7 2 2 1", "", 3, "expected \"tag degree neighbour ...\", got ''"),
        ("7 2 2 1", "7 3 2 1", 3, "node 0 has degree 3, and 2 different neighbours of 2 follow"),
        ("7 2 2 1", "7 2 1 1", 3, "node 0 has degree 2, and 1 different neighbours of 2 follow"),
        ("7 2 2 1", "7 -1", 3, "node 0 has degree -1, and 0 different neighbours of 0 follow"),
        ("7 2 2 1", "7 2 3 1", 3, r"the neighbours of node 0 must be other nodes between 0 and 2, got \[3, 1\]"),
        ("7 2 2 1", "7 2 0 1", 3, "must be other nodes"),
        ("7 2 2 1", "7 2 2 -1", 3, "must be other nodes"),
        ("4 1 0", "4 0", 3, "node 0 has the neighbour 1, which does not have it"),
        ("7 1 0\n1 2", "7 2 0 1\n1 2", 5, "node 2 has the neighbour 1, which does not have it"),
        ("1 2\n4 0\n", "1 2\n", 7, 'the file ends where "tag degree neighbour ..." should be'),
        ("1 2\n4 0\n", "", 6, 'the file ends where "nodes label" should be'),
        ("4 0\n", "4 0\n\n1 2\n4 0\n", 9, "more than the 2 graphs of the first line"),
        (TWO, "", 1, "the file ends where the number of graphs should be"),
        ("4 1 0", "\N{LATIN SMALL LETTER E WITH ACUTE} 1 0", 4, 'expected "tag degree'),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, old: str, new: str, line: int, message: str):
    assert TWO.count(old) == 1
    path = written(tmp_path, TWO.replace(old, new))
    with pytest.raises(ValueError, match=rf"toy\.txt, line {line}: .*{message}"):
        read_graphs(path)


def test_an_unknown_set_names_the_known():
    with pytest.raises(ValueError, match="name must be one of MUTAG, PROTEINS, IMDB-BINARY, got 'mutag'"):
        graph_set("mutag")


def test_the_table_has_every_file():
    assert set(GRAPH_SETS.values()) == {file.name for file in benchmark("graphs").files}
    assert {file.name for file in benchmark("planetoid").files} == {
        f"ind.cora.{part}" for part in ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
    }


# Facts of the published sets: graphs, classes, nodes, edges, kinds of nodes
FACTS = {
    "MUTAG": (188, {0: 63, 1: 125}, 3371, 3721, 7),
    "PROTEINS": (1113, {0: 663, 1: 450}, 43471, 81044, 3),
    "IMDB-BINARY": (1000, {0: 500, 1: 500}, 19773, 96531, 1),
}


@pytest.mark.parametrize("name", GRAPH_SETS)
def test_the_published_sets(real: Path, name: str):
    graphs = graph_set(name)
    count, classes, nodes, edges, tags = FACTS[name]
    assert len(graphs) == count and Counter(int(graph.y) for graph in graphs) == classes
    assert sum(graph.num_nodes for graph in graphs) == nodes and sum(graph.num_edges for graph in graphs) == 2 * edges
    assert all(graph.x.shape == (graph.num_nodes, tags) and bool((graph.x.sum(1) == 1).all()) for graph in graphs)
    first = graphs[0]
    assert first.validate() and first.is_undirected() and first.is_coalesced() and not first.has_self_loops()


def test_the_published_cora(real: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    data = cora()
    assert data.validate() and data.is_undirected() and data.clone().coalesce().num_edges == data.num_edges
    assert data.x.shape == (2708, 1433) and data.edge_index.shape == (2, 10556) and set(data.x.unique().tolist()) == {0, 1}
    assert data.y.bincount().tolist() == [351, 217, 418, 818, 426, 298, 180]
    assert [int(mask.sum()) for mask in (data.train_mask, data.val_mask, data.test_mask)] == [140, 500, 1000]
    assert not (tmp_path / "cache").exists() and capfd.readouterr() == ("", "")  # no download, nothing said, nothing kept
    again = cora()
    assert torch.equal(again.x, data.x) and torch.equal(again.edge_index, data.edge_index)


class Spoilt:
    """Its pickle makes a folder when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_is_not_the_published_one_is_never_read(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "own" / "planetoid"
    folder.mkdir(parents=True)
    for file in benchmark("planetoid").files:
        (folder / file.name).write_bytes((real / "planetoid" / file.name).read_bytes())
    (folder / "ind.cora.graph").write_bytes(pickle.dumps(Spoilt(tmp_path / "ran")))
    monkeypatch.setenv("MTLEARN_DATA", str(folder.parent))
    with pytest.raises(RefusedFileError, match=r"planetoid/ind\.cora\.graph .* is refused"):
        cora()
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr(graph_benchmarks, "fetch", lambda dataset: tuple(folder / file.name for file in benchmark(dataset).files))
    with pytest.raises((TypeError, AttributeError)):  # without the check it would have run
        cora()
    assert (tmp_path / "ran").exists()
