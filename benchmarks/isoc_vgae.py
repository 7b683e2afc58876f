"""VGAE beside PyTorch Geometric's, the neighbour mean beside a Python loop, and how an epoch of IsoC-VGAE grows with the edges."""

import itertools
import math
import subprocess
import sys
import time
from pathlib import Path

import torch
from ratios import ratios
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.data import Data

from mtlearn.datasets.attributed_graphs import random_graph
from mtlearn.datasets.benchmarks import MissingFileError
from mtlearn.datasets.graph_benchmarks import cora
from mtlearn.graphs.graph import Graph
from mtlearn.graphs.isoc_vgae.baselines import VGAE, full_reconstruction, standard_normal_kl
from mtlearn.graphs.isoc_vgae.method import Encoder, IsoCVGAE

SIZES = (10_000, 100_000, 1_000_000)  # undirected edges, on a tenth as many nodes


class TwoHeads(nn.Module):
    """The encoder of PyTorch Geometric's example, without biases, as ours."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.trunk = pyg.GCNConv(features, 32, bias=False)
        self.mean, self.log_deviation = pyg.GCNConv(32, 16, bias=False), pyg.GCNConv(32, 16, bias=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x, edge_index).relu()
        return self.mean(h, edge_index), self.log_deviation(h, edge_index)


def published_graph() -> tuple[str, Data]:
    try:
        return "Cora", cora()
    except MissingFileError:
        return "a random graph of Cora's size, for want of its files", random_graph(2708, 5278, features=1433)


def epochs() -> None:
    torch.manual_seed(0)
    name, data = published_graph()
    graph = Graph.from_data(data)
    theirs = pyg.VGAE(TwoHeads(graph.x.shape[1]))
    ours = {negatives: VGAE(Encoder([graph.x.shape[1], 32, 16]), negatives=negatives) for negatives in ("sampled", "all")}
    optimizers = {model: torch.optim.Adam(model.parameters(), lr=0.01) for model in (theirs, *ours.values())}
    label = torch.eye(graph.nodes)
    label[graph.edge_index[0], graph.edge_index[1]] = 1
    weight = (label.numel() - label.sum()) / label.sum()

    def step(model: nn.Module, loss: Tensor) -> None:
        optimizers[model].zero_grad()
        loss.backward()
        optimizers[model].step()

    def peer(dense: bool = False) -> None:
        z = theirs.encode(graph.x, graph.edge_index)
        if dense:
            scores = theirs.decoder.forward_all(z, sigmoid=False)
            reconstruction = 2 * nn.functional.binary_cross_entropy_with_logits(scores, label, pos_weight=weight)
        else:
            reconstruction = theirs.recon_loss(z, graph.edge_index)
        step(theirs, reconstruction + theirs.kl_loss() / graph.nodes)

    ways = {"PyG's VGAE": peer, "ours": lambda: step(ours["sampled"], ours["sampled"].loss(graph))}
    ratios(f"VGAE, an epoch on {name}, sampled negatives", ways, target="at most 1")
    ways = {"PyG's VGAE, dense labels": lambda: peer(dense=True), "ours": lambda: step(ours["all"], ours["all"].loss(graph))}
    ratios(f"VGAE, an epoch on {name}, all pairs", ways, repeats=7, target="at most 1")

    z, log_deviation = torch.randn(graph.nodes, 16, requires_grad=True), torch.randn(graph.nodes, 16)

    def bare() -> None:  # the product that no loss over all pairs can do without, and its gradients'
        (z @ z.T).backward(label)

    ways = {"the matrix products alone": bare, "our loss": lambda: (full_reconstruction(z, graph) + standard_normal_kl(z, log_deviation)).backward()}
    ratios("Loss over all pairs, forward and backward", ways, repeats=7)


def neighbour_means() -> None:
    graph = Graph.from_data(random_graph(2000, 8000, features=64))
    neighbours: list[list[int]] = [[] for _ in range(graph.nodes)]
    for source, target in graph.edge_index.T.tolist():
        neighbours[target].append(source)

    def looped() -> Tensor:
        return torch.stack([graph.x[[node, *around]].mean(0) for node, around in enumerate(neighbours)])

    torch.testing.assert_close(looped(), graph.neighbour_mean(graph.x))
    layer = pyg.SimpleConv("mean", combine_root="self_loop")
    ways = {
        "a loop over nodes": looped,
        "PyG's SimpleConv": lambda: layer(graph.x, graph.edge_index),
        "ours": lambda: graph.neighbour_mean(graph.x),
    }
    ratios("Mean over a node and its neighbours, 2,000 nodes, 8,000 edges", ways, repeats=7)


def resident(field: str) -> float:
    """The process's memory in MiB as Linux tells it: VmRSS now, VmHWM at its highest."""
    status = Path("/proc/self/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith(field))) / 1024


def epoch_at(edges: int) -> None:
    """One size in a process of its own: seconds of an epoch, and how far memory rises above what the graph and the model take."""
    graph = Graph.from_data(random_graph(edges // 10, edges, features=16, generator=torch.Generator().manual_seed(0)))
    model = IsoCVGAE(Encoder([16, 16, 16]))
    optimizer = torch.optim.Adam(model.parameters())
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins anew
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        optimizer.zero_grad()
        model.loss(graph).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    print(min(seconds), resident("VmHWM") - before)


def growth() -> None:
    rows = []
    for edges in SIZES:
        done = subprocess.run([sys.executable, __file__, str(edges)], capture_output=True, text=True, check=True)
        rows.append((edges, *map(float, done.stdout.split())))
    table = Table(title="IsoC-VGAE, an epoch (16-16-16, GCN), ten edges a node (memory by Linux's /proc)", title_justify="left")
    for heading in ("edges", "seconds", "peak memory above the graph's, MiB", "bytes an edge"):
        table.add_column(heading, justify="right")
    for edges, seconds, peak in rows:
        table.add_row(f"{edges:,}", f"{seconds:.3f}", f"{peak:.0f}", f"{peak * 2**20 / edges:.0f}")
    console = Console(width=110)
    console.print(table)
    for (few, *first), (many, *last) in itertools.pairwise(rows):
        slopes = [math.log(b / a) / math.log(many / few) for a, b in zip(first, last, strict=True)]
        console.print(f"slope in log-log from {few:,} to {many:,} edges (1 is linear): time {slopes[0]:.2f}, peak memory {slopes[1]:.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        epoch_at(int(sys.argv[1]))
    else:
        epochs()
        neighbour_means()
        growth()
