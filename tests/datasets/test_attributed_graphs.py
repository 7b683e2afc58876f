"""Small graphs with features: classes on a ring, wirings, the coloured atlas, random edges."""

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlearn.datasets.attributed_graphs import coloured_atlas, heterophilous_ring, random_graph, wired_graphs
from mtlearn.lab.seeds import stream


def undirected(edge_index: torch.Tensor, nodes: int) -> set[int]:
    """The edges as numbers, once both directions were seen."""
    keys = set((edge_index[0] * nodes + edge_index[1]).tolist())
    assert len(keys) == edge_index.shape[1]
    assert keys == set((edge_index[1] * nodes + edge_index[0]).tolist())
    return keys


@given(nodes=st.integers(60, 200), classes=st.integers(3, 8), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_edges_of_the_ring_join_neighbouring_classes_only(nodes: int, classes: int, seed: int) -> None:
    data = heterophilous_ring(nodes, classes=classes, degree=4, generator=stream(seed))
    step = (data.y[data.edge_index[0]] - data.y[data.edge_index[1]]) % classes
    assert set(step.tolist()) <= {1, classes - 1}
    assert len(undirected(data.edge_index, nodes)) == 2 * round(nodes * 2)
    assert int(data.y.bincount().max()) - int(data.y.bincount().min()) <= 1


def test_features_are_the_class_and_noise() -> None:
    clean = heterophilous_ring(noise=0.0)
    assert torch.equal(clean.x.argmax(1), clean.y) and set(clean.x.unique().tolist()) == {0.0, 1.0}
    noisy = heterophilous_ring(6000, noise=0.4, generator=stream(0))
    assert float((noisy.x - torch.eye(6)[noisy.y]).std()) == pytest.approx(0.4, rel=0.03)


def test_the_two_wirings_have_the_same_types_and_numbers_of_edges() -> None:
    graphs = wired_graphs(10, generator=stream(0))
    assert [int(graph.y) for graph in graphs] == [0, 1] * 5
    for graph in graphs:
        step = (graph.types[graph.edge_index[0]] - graph.types[graph.edge_index[1]]) % 6
        assert set(step.tolist()) == ({1, 5} if graph.y == 0 else {2, 4})
        assert len(undirected(graph.edge_index, 20)) == 80
        assert torch.equal(graph.types, graphs[0].types)


def test_the_atlas_holds_every_small_graph_in_one_two_or_three_colours() -> None:
    graphs = coloured_atlas(3, generator=stream(0))
    assert len(graphs) == 1252 and max(graph.num_nodes for graph in graphs) == 7
    used = [int((graph.x.sum(0) > 0).sum()) for graph in graphs]
    assert set(used) == {1, 2, 3} and max(used[0::3]) == 1 and max(used[1::3]) == 2
    assert all(bool((graph.x.sum(1) == 1).all()) for graph in graphs)
    shapes = [shape for shape in nx.graph_atlas_g() if len(shape)]
    for shape, graph in zip(shapes, graphs, strict=True):
        assert set(map(tuple, graph.edge_index.T.tolist())) == {(a, b) for edge in shape.edges for a, b in (edge, edge[::-1])}


def test_random_edges_are_as_many_as_asked_for() -> None:
    data = random_graph(50, 200, features=3, generator=stream(0))
    assert len(undirected(data.edge_index, 50)) == 400 and data.x.shape == (50, 3)
    assert random_graph(10, 0).edge_index.shape == (2, 0)


def test_the_same_seed_gives_the_same_graphs() -> None:
    for make in (
        heterophilous_ring,
        lambda generator: wired_graphs(2, generator=generator)[1],
        lambda generator: random_graph(30, 40, generator=generator),
    ):
        first, again, other = (make(generator=stream(seed)) for seed in (1, 1, 2))
        assert torch.equal(first.x, again.x) and torch.equal(first.edge_index, again.edge_index)
        assert not torch.equal(first.edge_index, other.edge_index)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: heterophilous_ring(classes=2), "classes must be at least 3"),
        (lambda: heterophilous_ring(4), "nodes at least as many"),
        (lambda: heterophilous_ring(noise=-1), "noise 0 or more"),
        (lambda: heterophilous_ring(12, degree=100), "asks for 600 edges; kinds 1 apart allow 1 to 24"),
        (lambda: wired_graphs(0), "count must be at least 1"),
        (lambda: wired_graphs(types=4), "types at least 5"),
        (lambda: coloured_atlas(0), "colours must be at least 1"),
        (lambda: random_graph(1, 0), "nodes must be at least 2"),
        (lambda: random_graph(10, 30), "at most a quarter of all pairs"),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
