import networkx as nx
import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.utils import contains_isolated_nodes, degree, is_undirected

from mtlearn.datasets import graph_tasks
from mtlearn.datasets.graph_tasks import PUBLISHED, REWIRED, TASKS, graph_task, plain_statistics, published_task, rewired, with_split


def as_networkx(data):
    graph = nx.Graph(data.edge_index.t().tolist())
    graph.add_nodes_from(range(data.num_nodes))
    return graph


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_whole_and_the_same_again(name):
    data = graph_task(name)
    again = graph_task(name)
    other = graph_task(name, seed=1)
    assert all(torch.equal(data[key], again[key]) for key in ("x", "edge_index", "y", "train_mask", "val_mask", "test_mask"))
    assert not (torch.equal(data.train_mask, other.train_mask) and torch.equal(data.y, other.y))
    assert data.x.dtype == torch.float32 and data.x.isfinite().all() and is_undirected(data.edge_index, num_nodes=data.num_nodes)
    assert not (data.edge_index[0] == data.edge_index[1]).any()
    items = data.num_graphs if isinstance(data, Batch) else data.num_nodes
    assert data.y.shape == (items,) and data.y.dtype == torch.int64 and data.y.unique().tolist() == list(range(int(data.y.max()) + 1))
    masks = torch.stack([data.train_mask, data.val_mask, data.test_mask])
    assert (masks.sum(0) == 1).all()
    assert masks.sum(1) / items == pytest.approx([0.4, 0.4, 0.2], abs=0.03)
    assert data.y[data.train_mask].unique().tolist() == data.y.unique().tolist()


@pytest.mark.parametrize("name", REWIRED)
def test_a_rewired_task_has_all_but_the_edges_of_its_sibling(name):
    data, sibling = graph_task(name), graph_task(name.replace("r_", "n_"))
    assert all(torch.equal(data[key], sibling[key]) for key in ("x", "y", "train_mask", "val_mask", "test_mask"))
    degrees = [degree(one.edge_index[0], one.num_nodes) for one in (data, sibling)]
    assert torch.equal(*degrees) and data.edge_index.shape == sibling.edge_index.shape
    assert plain_statistics(data)[2] < plain_statistics(sibling)[2] - 0.3  # equal labels are no longer joined


def test_rewiring_goes_by_shares_and_refuses_what_cannot_be_swapped():
    data = graph_task("n_iris")
    assert torch.equal(rewired(data, share=0.0).edge_index, data.edge_index)
    homophily = [float(plain_statistics(rewired(data, share=share))[2]) for share in (0.0, 0.02, 1.0)]
    assert homophily[0] > homophily[1] > homophily[2]
    with pytest.raises(ValueError, match="share must be between 0 and 1, got 2"):
        rewired(data, share=2)
    with pytest.raises(ValueError, match="only a node-level task"):
        rewired(graph_task("bip"))
    looped = data.clone()
    looped.edge_index = torch.cat([data.edge_index, torch.tensor([[3], [3]])], 1)
    with pytest.raises(ValueError, match="self-loops"):
        rewired(looped)


def test_blocks_keep_to_themselves_or_avoid_themselves():
    same = {name: float(plain_statistics(graph_task(name))[2]) for name in ("sbm_hom", "sbm_het")}
    assert same["sbm_hom"] > 0.6 and same["sbm_het"] < 0.15


def test_roles_are_places_in_the_pattern():
    data = graph_task("roles")
    assert (data.x == 1).all() and data.y.bincount().tolist() == [36, 24, 48, 48, 24]
    degrees = degree(data.edge_index[0]).long()
    assert degrees[data.y == 0].unique().tolist() == [2] and degrees[data.y == 1].unique().tolist() == [3]
    assert degrees[data.y == 4].unique().tolist() == [2]
    count = nx.triangles(as_networkx(data))
    triangles = torch.tensor([count[node] for node in range(data.num_nodes)])
    assert (triangles[:60] == 0).all() and (triangles[(data.y == 4)] == 1).all()


def test_labels_of_graphs_are_what_they_say():
    for data in (graph_task("bip").to_data_list(), graph_task("bip", seed=3).to_data_list()):
        assert [nx.is_bipartite(as_networkx(one)) for one in data] == [bool(one.y) for one in data]
    triangles = torch.tensor([sum(nx.triangles(as_networkx(one)).values()) // 3 for one in graph_task("tri").to_data_list()])
    labels = graph_task("tri").y.bool()
    assert triangles[labels].min() > triangles[~labels].max() and triangles.double().median() == triangles[~labels].max()
    assert all(one.num_nodes == 16 for one in graph_task("gens").to_data_list())
    assert contains_isolated_nodes(graph_task("gens").edge_index, 768)  # random graphs have them, and they are kept


def test_plain_statistics_of_a_small_graph():
    data = Data(x=torch.ones(4, 3), edge_index=torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), y=torch.tensor([0, 0, 1, 1]))
    wanted = [torch.tensor(4.0).log(), torch.tensor(2.0).log(), 0.5, 2, torch.tensor(3.0).log(), 0]
    torch.testing.assert_close(plain_statistics(data), torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    data.edge_index = torch.zeros(2, 0, dtype=torch.int64)
    assert plain_statistics(data)[1:3].tolist() == [0, 0]


def test_a_split_keeps_what_was_there_and_refuses_what_it_cannot_split():
    data = Data(x=torch.ones(6, 1), edge_index=torch.zeros(2, 0, dtype=torch.int64), y=torch.tensor([0, 0, 0, 0, 0, 1]))
    split = with_split(data)  # one of a class alone cannot be in every part
    assert [int(split[name].sum()) for name in ("train_mask", "val_mask", "test_mask")] == [2, 2, 2]
    assert "train_mask" not in data
    with pytest.raises(ValueError, match=r"at least 5 nodes or graphs, got y of shape \(3,\)"):
        with_split(Data(y=torch.zeros(3, dtype=torch.int64)))
    with pytest.raises(ValueError, match=r"whole numbers from 0, int64, got torch.float32 from 0.0"):
        with_split(Data(y=torch.zeros(8)))


def test_unknown_names_are_suggested():
    with pytest.raises(ValueError, match="did you mean n_iris or r_iris"):
        graph_task("iris")
    with pytest.raises(ValueError, match="did you mean cora"):
        published_task("corra")


def test_published_graphs_become_tasks(monkeypatch):
    """On stand-ins of the same form; the real files are read where there are any (test_autotransfer)."""
    graphs = [Data(x=torch.ones(3, 2), edge_index=torch.tensor([[0, 1], [1, 0]]), y=torch.tensor([k % 2])) for k in range(40)]
    monkeypatch.setattr(graph_tasks, "graph_set", lambda name: graphs if name == "IMDB-BINARY" else None)
    public = Data(x=torch.ones(30, 2), edge_index=torch.tensor([[0, 1], [1, 0]]), y=torch.arange(30) % 3)
    public.train_mask = torch.zeros(30, dtype=torch.bool)
    monkeypatch.setattr(graph_tasks, "cora", lambda: public)
    assert PUBLISHED == ("cora", "mutag", "proteins", "imdb-binary")
    found = published_task("imdb-binary")
    assert found.y.shape == (40,) and int(found.train_mask.sum()) == 16
    assert int(published_task("cora").train_mask.sum()) == 12
