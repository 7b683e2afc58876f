"""The checked graph that the chapter shares: what it refuses; neighbour means, degrees, sums against dense matrices and PyTorch Geometric."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data
from torch_geometric.nn import SimpleConv, global_add_pool

from mtlearn.graphs.graph import Graph
from mtlearn.lab.seeds import stream


def some_graph(n: int = 12, density: float = 0.3, features: int = 3, seed: int = 0, *, directed: bool = False) -> tuple[Graph, torch.Tensor]:
    """A random graph and its matrix; node 0 is isolated."""
    draws = stream(seed, "graph", n)
    matrix = (torch.rand(n, n, generator=draws) < density).float()
    matrix = matrix.fill_diagonal_(0) if directed else matrix.triu(1) + matrix.triu(1).T
    matrix[0] = matrix[:, 0] = 0
    return Graph.from_adjacency(matrix, torch.randn(n, features, generator=draws), directed=directed), matrix


PAIR = torch.tensor([[0, 1], [1, 0]])
ONES = torch.ones(3, 2)


@given(n=st.integers(1, 15), density=st.floats(0, 1), seed=st.integers(0, 10**6), directed=st.booleans())
@settings(deadline=None, max_examples=30)
def test_the_neighbour_mean_is_the_row_normalised_matrix_with_self_loops(n: int, density: float, seed: int, directed: bool) -> None:
    graph, matrix = some_graph(n, density, seed=seed, directed=directed)
    incoming = matrix.T + torch.eye(n)
    torch.testing.assert_close(graph.neighbour_mean(graph.x), incoming @ graph.x / incoming.sum(1, keepdim=True), atol=1e-6, rtol=1e-5)
    assert torch.equal(graph.degree, matrix.sum(0))
    torch.testing.assert_close(graph.neighbour_mean(graph.x), SimpleConv("mean", combine_root="self_loop")(graph.x, graph.edge_index))


def test_an_isolated_node_keeps_its_own() -> None:
    graph, _ = some_graph()
    assert torch.equal(graph.neighbour_mean(graph.x)[0], graph.x[0]) and graph.degree[0] == 0


def test_the_neighbour_mean_has_the_gradient_of_its_formula() -> None:
    graph, _ = some_graph(6)
    t = torch.randn(6, 2, dtype=torch.float64, generator=stream(0, "t"), requires_grad=True)
    assert torch.autograd.gradcheck(graph.with_features(graph.x.double()).neighbour_mean, (t,))


def test_sparse_and_dense_matrices_and_edges_give_the_same_graph() -> None:
    graph, matrix = some_graph()
    sparse = Graph.from_adjacency(matrix.to_sparse(), graph.x)
    data = Graph.from_data(Data(x=graph.x, edge_index=graph.edge_index))
    for other in (sparse, data, Graph.of(graph.x, graph.edge_index), graph.to("cpu")):
        assert torch.equal(other.edge_index, graph.edge_index) and torch.equal(other.x, graph.x)
    assert torch.equal(graph.edge_keys, (graph.edge_index[0] * 12 + graph.edge_index[1]).sort().values)


def test_graphs_side_by_side_are_summed_each_for_itself() -> None:
    parts = [some_graph(n, seed=n)[0] for n in (4, 7, 5)]
    batch = Graph.from_data(Batch.from_data_list([Data(x=g.x, edge_index=g.edge_index) for g in parts]))
    assert (batch.graphs, batch.nodes, parts[0].graphs) == (3, 16, 1)
    torch.testing.assert_close(batch.pool(batch.x), torch.cat([g.pool(g.x) for g in parts]))
    torch.testing.assert_close(batch.pool(batch.x), global_add_pool(batch.x, batch.batch))
    assert torch.equal(batch.neighbour_mean(batch.x), torch.cat([g.neighbour_mean(g.x) for g in parts]))
    assert batch.to("cpu").graphs == 3


def test_another_order_of_the_nodes_is_the_permuted_matrix() -> None:
    graph, matrix = some_graph()
    order = torch.randperm(12, generator=stream(0, "order"))
    permuted = graph.permuted(order)
    expected = Graph.from_adjacency(matrix[order][:, order], graph.x[order])
    assert torch.equal(permuted.edge_keys, expected.edge_keys) and torch.equal(permuted.x, expected.x)


def test_self_loops_are_left_out_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="1 self-loops are left out"):
        graph = Graph.of(ONES, torch.tensor([[0, 1, 2], [1, 0, 2]]))
    assert torch.equal(graph.edge_index, PAIR)


def test_a_directed_graph_is_taken_on_request_and_neighbours_are_those_that_point_here() -> None:
    graph = Graph.of(ONES, torch.tensor([[0, 1], [2, 2]]), directed=True)
    assert graph.degree.tolist() == [0, 0, 2]


def test_a_graph_without_edges_is_one_of_isolated_nodes() -> None:
    graph = Graph.of(ONES, torch.zeros(2, 0, dtype=torch.int64))
    assert graph.degree.tolist() == [0, 0, 0] and torch.equal(graph.neighbour_mean(ONES), ONES)


NAN = torch.tensor([[0.0, 1.0], [torch.nan, 1.0], [torch.inf, 0.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Graph.of(torch.ones(3), PAIR), r"real matrix of shape \(nodes, features\), got shape \(3,\)"),
        (lambda: Graph.of(torch.ones(3, 2, dtype=torch.int64), PAIR), "torch.int64"),
        (lambda: Graph.of(torch.ones(0, 2), PAIR), r"the graph is empty: .* got shape \(0, 2\)"),
        (lambda: Graph.of(torch.ones(3, 0), PAIR), r"one node and one feature, got shape \(3, 0\)"),
        (lambda: Graph.of(NAN, PAIR), "2 of 3 nodes hold NaN or infinity, the first is node 1"),
        (lambda: Graph.of(ONES, PAIR[0]), r"int64 tensor of shape \(2, edges\), got shape \(2,\)"),
        (lambda: Graph.of(ONES, PAIR.float()), "torch.float32"),
        (lambda: Graph.of(ONES, PAIR + 2), "nodes 2 to 3, but x has 3 rows: nodes are numbered 0 to 2"),
        (lambda: Graph.of(ONES, PAIR - 1), "nodes -1 to 0"),
        (lambda: Graph.of(ONES, torch.cat([PAIR, PAIR], 1)), "the edge 0 -> 1 is listed twice; torch_geometric.utils.coalesce"),
        (lambda: Graph.of(ONES, torch.tensor([[0, 1, 1], [1, 0, 2]])), r"directed: 1 -> 2 is listed without 2 -> 1\. Give directed=True"),
        (lambda: Graph.of(ONES, PAIR, batch=torch.tensor([0, 0])), "batch must give each of the 3 nodes"),
        (lambda: Graph.of(ONES, PAIR, batch=torch.tensor([0, 1, 0])), "ascending"),
        (lambda: Graph.from_adjacency(torch.ones(3, 2), ONES), r"square matrix, got shape \(3, 2\)"),
        (lambda: Graph.from_adjacency(torch.zeros(2, 2), ONES), r"\(2, 2\) and the features \(3, 2\) must have as many rows"),
        (lambda: Graph.from_adjacency(torch.tensor([[0, 1.0], [0, 0]]), ONES[:2]), "the graph is directed: 0 -> 1"),
        (
            lambda: Graph.from_adjacency(torch.tensor([[0, -1.0], [-1, 0]]), ONES[:2]),
            "2 are not, the first at row 0, column 1: -1.0",
        ),
        (lambda: Graph.from_adjacency(torch.tensor([[0, torch.nan], [torch.nan, 0]]), ONES[:2]), "column 1: nan"),
        (lambda: Graph.from_data(Data(edge_index=PAIR)), r"a Data with x and edge_index is needed, .* torch.ones\(nodes, 1\)"),
        (lambda: Graph.of(ONES, PAIR).with_features(ONES[:2]), r"each of the 3 nodes, got shape \(2, 2\)"),
    ],
)
def test_bad_graphs_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
