"""Does undoing every layer make better embeddings than decoding edges? What they hold, and what they are good for at three levels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Batch, Data
from torch_geometric.nn import APPNP, MLP, WLConv
from torch_geometric.transforms import NormalizeFeatures, RandomLinkSplit

from mtlearn.datasets.attributed_graphs import coloured_atlas, heterophilous_ring, wired_graphs
from mtlearn.datasets.documentation import LIBRARIES, documentation, link_graph, text_features
from mtlearn.datasets.graph_benchmarks import cora, graph_set
from mtlearn.graphs.graph import Graph
from mtlearn.graphs.isoc_vgae.baselines import VGAE, Negatives, sample_non_edges
from mtlearn.graphs.isoc_vgae.method import Encoder, InverseGNN, IsoCVGAE, Layer, LossWeights, embed, published, published_optimizer
from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream

Probes = dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """How an encoder is built and trained without labels.

    Attributes:
        layer: ``gcn`` or ``gin``.
        widths: of the layers, d_1, ..., d_L.
        steps, learning_rate: of Adam, the same for every arm.
        negatives: of GAE and VGAE, ``all`` or ``sampled``.
    """

    layer: Layer = "gcn"
    widths: tuple[int, ...] = (16, 16)
    steps: int = 150
    learning_rate: float = 5e-3
    negatives: Negatives = "all"


@dataclass(frozen=True)
class Arm:
    """What is trained around the encoder of an arm.

    Attributes:
        method: ``none``, ``gae``, ``vgae``, ``isoc``.
        weights, log_degree, relu_degree: of IsoC-VGAE.
        relu: whether there is a ReLU between the layers of the encoder.
        as_published: 30 steps of the authors' optimizer instead of the recipe's.
    """

    method: str = "isoc"
    weights: LossWeights = field(default_factory=LossWeights)
    log_degree: bool = True
    relu_degree: bool = False
    relu: bool = True
    as_published: bool = False


UNTRAINED, ISOC, RAW_DEGREE, SHORT = "untrained", "IsoC-VGAE", "IsoC, raw degree", "IsoC, 30 steps of 5e-6"
ARMS: Mapping[str, Arm] = {
    UNTRAINED: Arm("none"),
    "GAE": Arm("gae"),
    "VGAE": Arm("vgae"),
    ISOC: Arm(),
    RAW_DEGREE: Arm(log_degree=False),
    "IsoC, ReLU on degree": Arm(relu_degree=True),
    "IsoC, no degree loss": Arm(weights=LossWeights(degree=0)),
    "IsoC, no neighbour loss": Arm(weights=LossWeights(neighbour=0)),
    SHORT: Arm(as_published=True),
    "untrained, no ReLU": Arm("none", relu=False),
    "IsoC, no ReLU": Arm(relu=False),
}
FEW_ARMS = {name: ARMS[name] for name in (UNTRAINED, "GAE", "VGAE", ISOC, RAW_DEGREE)}
PUBLISHED_STEPS = 30


# training


def build(recipe: Recipe, features: int, seed: int, *, relu: bool = True) -> Encoder:
    """The untrained encoder of a seed; every arm starts from its weights."""
    with seeded(seed):
        return Encoder([features, *recipe.widths], layer=recipe.layer, relu=relu)


def train(graph: Graph, recipe: Recipe, arm: Arm, seed: int, *, progress: str | None = None) -> Encoder:
    """The encoder of an arm, trained without labels; only what is trained around it, and its noise, differ between arms."""
    encoder = build(recipe, graph.x.shape[1], seed, relu=arm.relu).to(graph.x.device)
    if arm.method == "none":
        return encoder.eval()
    noise = stream(seed, "noise", device=graph.x.device)
    with seeded(seed):  # what is added to the encoder has weights of its own
        model: IsoCVGAE | VGAE
        if arm.method == "isoc":
            decoder = InverseGNN(encoder.widths, relu_degree=arm.relu_degree)
            model = IsoCVGAE(encoder, decoder, weights=arm.weights, log_degree=arm.log_degree)
        else:
            model = VGAE(encoder, variational=arm.method == "vgae", negatives=recipe.negatives)
    model.to(graph.x.device)
    steps, optimizer = recipe.steps, torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)
    if arm.as_published and isinstance(model, IsoCVGAE):
        steps, optimizer = min(PUBLISHED_STEPS, recipe.steps), published_optimizer(model)
    fit(model, lambda step: model.loss(graph, generator=noise), steps=steps, optimizer=optimizer, progress=progress)
    return encoder.eval()


def train_published(graph: Graph, width: int, seed: int, *, steps: int = PUBLISHED_STEPS, moves: bool = True) -> Encoder:
    """The encoder of the authors' code after 30 steps of their optimizer.

    Args:
        graph: what it is trained on.
        width: of its two layers.
        seed: of its weights.
        steps: 30, as published.
        moves: False to let its BatchNorm see the same passes while every weight stays where it was: the fair untrained encoder beside it.
    """
    with seeded(seed):
        model = published(graph.x.shape[1], width=width).to(graph.x.device)
    optimizer = published_optimizer(model) if moves else torch.optim.SGD(model.parameters(), lr=0.0)
    fit(model, lambda step: model.loss(graph), steps=steps, optimizer=optimizer)
    return model.encoder.eval()


def largest_move(before: nn.Module, after: nn.Module) -> float:
    """The farthest that any weight has moved."""
    return max(float((a - b).abs().max().detach()) for a, b in zip(before.parameters(), after.parameters(), strict=True))


# what is measured


def readable(train_rows: Tensor, features: Tensor, targets: Mapping[str, Tensor]) -> Probes:
    """R^2 of ridge regression from standardised ``features`` (n, d) to each target, (n,) or (n, k) with all its columns together.

    Fitted on the rows where ``train_rows`` (n,) is true, measured on the others.
    """
    columns = [target.cpu().double().reshape(len(target), -1) for target in targets.values()]
    x, y = _standardised(features, train_rows), torch.cat(columns, 1)
    fitted, rest = train_rows.cpu(), ~train_rows.cpu()
    model = Ridge(1.0).fit(x[fitted.numpy()], y[fitted].numpy())  # columns do not meet in ridge regression: one solution serves all targets
    missed = (y[rest] - torch.from_numpy(model.predict(x[rest.numpy()]))).square().sum(0)
    spread = (y[rest] - y[rest].mean(0)).square().sum(0)
    widths = [column.shape[1] for column in columns]
    parts = zip(targets, torch.split(missed, widths), torch.split(spread, widths), strict=True)
    return {name: float(1 - lost.sum() / total.sum()) for name, lost, total in parts}


def classified(train_rows: Tensor, test_rows: Tensor, features: Tensor, labels: Tensor, *, strength: float = 0.1) -> float:
    """Balanced accuracy of logistic regression (C = ``strength``) on standardised ``features`` (n, d)."""
    x, y = _standardised(features, train_rows), labels.cpu().numpy()
    chosen, tested = train_rows.cpu().numpy(), test_rows.cpu().numpy()
    model = LogisticRegression(C=strength, max_iter=2000).fit(x[chosen], y[chosen])
    return float(balanced_accuracy_score(y[tested], model.predict(x[tested])))


def classified_deep(train_rows: Tensor, test_rows: Tensor, features: Tensor, labels: Tensor, seed: int, *, steps: int) -> float:
    """Balanced accuracy of a perceptron with 4 hidden layers of 64 (dropout 0.2, Adam 3e-3), as strong a probe as the authors'."""
    x = torch.from_numpy(_standardised(features, train_rows)).float()
    y, rows = labels.cpu(), train_rows.cpu()
    with seeded(seed):
        probe = MLP([x.shape[1], 64, 64, 64, 64, int(y[rows].max()) + 1], norm=None, dropout=0.2)
        optimizer = torch.optim.Adam(probe.parameters(), lr=3e-3, fused=True)
        fit(probe, lambda step: F.cross_entropy(probe(x[rows]), y[rows]), steps=steps, optimizer=optimizer)
    with torch.no_grad():
        predicted = probe.eval()(x).argmax(-1)
    return float(balanced_accuracy_score(y[test_rows.cpu()].numpy(), predicted[test_rows.cpu()].numpy()))


def _standardised(features: Tensor, rows: Tensor) -> np.ndarray:
    """Columns with mean 0 and variance 1 on ``rows``, so that no penalty depends on the scale of an embedding."""
    x = features.detach().cpu().double()
    chosen = x[rows.cpu()]
    return np.asarray((x - chosen.mean(0)) / chosen.std(0).clamp(min=1e-9))


def some_labels(labels: Tensor, most: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which nodes train a probe (of each class at most ``most`` and at most half) and which test it; nodes of label -1 do neither."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero()[:, 0]
        chosen[members[torch.randperm(len(members), generator=draws)[: min(most, len(members) // 2)]]] = True
    return chosen, (labels >= 0) & ~chosen


@dataclass(frozen=True)
class NodeWorld:
    """One graph with held-out links and labelled nodes, and what is asked of an embedding of its nodes.

    Attributes:
        graph: with the training edges.
        held_out: (2, m) node pairs, and whether each is an edge, (m,).
        pairs: (2, k) training edges and as many non-edges for the link probe, and which they are, (k,).
        labels: (n,), -1 where a node has none.
        probe_rows, train_rows, test_rows: (n,) of the regressions; of the node task.
    """

    graph: Graph
    held_out: tuple[Tensor, Tensor]
    pairs: tuple[Tensor, Tensor]
    labels: Tensor
    probe_rows: Tensor
    train_rows: Tensor
    test_rows: Tensor
    targets: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, data: Data, seed: int, device: torch.device, *, held_out: float = 0.1, labels_per_class: int = 20) -> "NodeWorld":
        """Split a graph's edges and nodes by a seed."""
        draws = stream(seed, "split")
        with seeded(int(torch.randint(2**31, (), generator=draws))):  # the transform draws from the global generators
            split = RandomLinkSplit(num_val=0.0, num_test=held_out, is_undirected=True, add_negative_train_samples=False)
            training, _, test = split(Data(x=data.x, edge_index=data.edge_index))
        whole, graph = Graph.of(data.x, data.edge_index), Graph.from_data(training)
        edges = graph.edge_index[:, graph.edge_index[0] < graph.edge_index[1]]
        others = sample_non_edges(whole, edges.shape[1], generator=draws)
        train_rows, test_rows = some_labels(data.y, labels_per_class, draws)
        mean = graph.neighbour_mean(graph.x)
        targets = {
            "own R2": graph.x,
            "neighbour mean R2": mean,
            "two-hop mean R2": graph.neighbour_mean(mean),
            "log degree R2": graph.degree.log1p(),
        }
        return cls(
            graph.to(device),
            (test.edge_label_index, test.edge_label),
            (torch.cat([edges, others], 1), torch.cat([torch.ones(edges.shape[1]), torch.zeros(others.shape[1])])),
            data.y,
            torch.rand(graph.nodes, generator=draws) < 0.5,
            train_rows,
            test_rows,
            targets,
        )

    def measure(self, h: Tensor, seed: int, probe_steps: int) -> Probes:
        """What can be read off an embedding (n, d), how well it tells classes, and how well links."""
        h = h.detach().cpu()
        found = readable(self.probe_rows, h, self.targets)
        found["node accuracy"] = classified(self.train_rows, self.test_rows, h, self.labels)
        found["node accuracy, deep probe"] = classified_deep(self.train_rows, self.test_rows, h, self.labels, seed, steps=probe_steps)
        return found | self.links(h)

    def links(self, h: Tensor) -> Probes:
        """Area under the ROC curve and average precision on held-out links: by inner product, and by a probe on the Hadamard product."""
        (pairs, linked), (known, is_edge) = self.held_out, self.pairs
        score = (h[pairs[0]] * h[pairs[1]]).sum(-1).numpy()
        rows = torch.arange(known.shape[1] + pairs.shape[1]) < known.shape[1]
        both = torch.cat([known, pairs], 1)
        x = _standardised(h[both[0]] * h[both[1]], rows)
        probe = LogisticRegression(C=0.1, max_iter=2000).fit(x[rows.numpy()], is_edge.numpy())
        return {
            "link AUC": float(roc_auc_score(linked, score)),
            "link AP": float(average_precision_score(linked, score)),
            "link AUC, probe": float(roc_auc_score(linked, probe.decision_function(x[~rows.numpy()]))),
        }


def propagated(graph: Graph, hops: int = 2) -> Tensor:
    """Features smoothed by the symmetric normalised adjacency, nothing learned: what SGC classifies (n, F)."""
    smoothed: Tensor = APPNP(hops, 0.0)(graph.x, graph.edge_index)
    return smoothed


def node_arms(data: Data, settings: "IsoCSettings", seed: int, device: torch.device) -> Arms:
    """One graph, node and link level: what all arms hold and what they are good for."""
    world, recipe = NodeWorld.of(data, seed, device), settings.nodes
    graph = world.graph
    embeddings = {"raw features": graph.x, "SGC, two hops": propagated(graph), "degree": graph.degree.log1p()[:, None]}
    for name, arm in ARMS.items():
        embeddings[name] = embed(train(graph, recipe, arm, seed), graph)
    for name, moves in (("published code", True), ("published code, untrained", False)):
        encoder = train_published(graph, settings.published_width, seed, steps=min(PUBLISHED_STEPS, recipe.steps), moves=moves)
        embeddings[name] = embed(encoder, graph)
    arms = {name: world.measure(h, seed, settings.probe_steps) for name, h in embeddings.items()}
    arms[SHORT]["largest change"] = max(abs(arms[SHORT][metric] - arms[UNTRAINED][metric]) for metric in LINEAR)
    return arms


LINEAR = ("own R2", "neighbour mean R2", "two-hop mean R2", "log degree R2", "node accuracy", "link AUC", "link AP", "link AUC, probe")


def ring_arms(data: Data, recipe: Recipe, seed: int, device: torch.device) -> Arms:
    """Heterophilous classes: accuracy of a linear probe fitted on a third of the nodes."""
    graph = Graph.from_data(data).to(device)
    rows = torch.rand(graph.nodes, generator=stream(seed, "ring probe")) < 1 / 3
    once = graph.neighbour_mean(graph.x)
    embeddings = {
        "raw features": graph.x,
        "SGC, two hops": propagated(graph),
        "x, mean, mean of means": torch.cat([graph.x, once, graph.neighbour_mean(once)], 1),
        **{name: embed(train(graph, recipe, arm, seed), graph) for name, arm in FEW_ARMS.items()},
    }
    return {name: {"ring accuracy": classified(rows, ~rows, h, data.y, strength=1.0)} for name, h in embeddings.items()}


def graph_arms(sets: Mapping[str, Sequence[Data]], recipe: Recipe, seed: int, device: torch.device) -> Arms:
    """Whole graphs: accuracy of a linear probe on pooled embeddings, fitted on half of the graphs of each class; mean over the sets."""
    arms: Arms = {}
    for name, graphs in sets.items():
        y = torch.cat([data.y for data in graphs])
        graph = Graph.from_data(Batch.from_data_list(list(graphs))).to(device)
        rows, _ = some_labels(y, len(y), stream(seed, name, "half"))
        pooled = {
            "degree": graph.pool(F.one_hot(graph.degree.long().clamp(max=30)).to(graph.x.dtype)),
            "1-WL colours": wl_histogram(graph, rounds=len(recipe.widths), colours=_types(graphs)),
            **{arm: graph.pool(embed(train(graph, recipe, FEW_ARMS[arm], seed), graph)) for arm in FEW_ARMS},
        }
        for arm, h in pooled.items():
            arms.setdefault(arm, {})[f"{name} accuracy"] = classified(rows, ~rows, h, y)
        arms.setdefault("supervised GIN", {})[f"{name} accuracy"] = supervised(graph, rows, y, recipe, seed)
    for metrics in arms.values():
        metrics["graph accuracy"] = sum(metrics.values()) / len(metrics)
    return arms


def _types(graphs: Sequence[Data]) -> Tensor:
    """Discrete types of the nodes of all graphs, where the 1-WL kernel begins: those that a world tells, else what the features say."""
    if all("types" in data for data in graphs):
        return torch.cat([data.types for data in graphs])
    types: Tensor = torch.unique(torch.cat([data.x for data in graphs]), dim=0, return_inverse=True)[1]
    return types


def wl_histogram(graph: Graph, *, rounds: int, colours: Tensor) -> Tensor:
    """How often each graph has each colour of 0 to ``rounds`` rounds of refinement: (graphs, colours), as frequencies of the 1-WL kernel."""
    batch = graph.batch if graph.batch is not None else torch.zeros(graph.nodes, dtype=torch.int64)
    edges, columns = graph.edge_index.cpu(), []
    for turn in range(rounds + 1):
        if turn:
            colours = WLConv()(colours, edges)
        counts = torch.zeros(graph.graphs, int(colours.max()) + 1)
        columns.append(counts.index_put((batch.cpu(), colours), torch.ones(()), accumulate=True))
    return torch.cat(columns, 1).sqrt()  # of counts: a rare colour should not drown in a frequent one


def supervised(graph: Graph, rows: Tensor, y: Tensor, recipe: Recipe, seed: int) -> float:
    """The same encoder trained with labels, end to end: balanced accuracy on the graphs that ``rows`` leaves out."""
    encoder = build(recipe, graph.x.shape[1], seed).to(graph.x.device)
    with seeded(seed):
        head = nn.Linear(recipe.widths[-1], int(y.max()) + 1).to(graph.x.device)
    both = nn.ModuleList([encoder, head])
    chosen, target = rows.to(graph.x.device), y.to(graph.x.device)

    def logits() -> Tensor:
        pooled: Tensor = head(graph.pool(encoder(graph)[-1]) / 10)  # sums over a graph are large for a fresh head
        return pooled

    optimizer = torch.optim.Adam(both.parameters(), lr=recipe.learning_rate, fused=True)
    fit(both, lambda step: F.cross_entropy(logits()[chosen], target[chosen]), steps=recipe.steps, optimizer=optimizer)
    with torch.no_grad():
        predicted = logits()[~chosen].argmax(-1).cpu()
    return float(balanced_accuracy_score(y[~rows].numpy(), predicted.numpy()))


# the VGAE paper's own experiment


def vgae_links(
    data: Data,
    seed: int,
    *,
    negatives: Negatives = "all",
    row_normalised: bool = False,
    steps: int = 200,
    device: torch.device | str = "cpu",
) -> Probes:
    """Link prediction as in the VGAE paper: 85 % of the edges to train, 10 % to test, GCN 32 to 16, Adam 0.01, 200 epochs.

    Args:
        data: x and edge_index; Cora gives the paper's numbers, AUC 0.914 and AP 0.926.
        seed: of split, weights and noise.
        negatives: the weighted loss over all pairs, or as many sampled non-edges as there are edges.
        row_normalised: divide every row of x by its sum before, as many tutorials do.
        steps: 200, as published.
        device: where to train.

    Returns:
        ``link AUC`` and ``link AP`` on the test edges and as many non-edges.
    """
    data = Data(x=data.x, edge_index=data.edge_index)
    if row_normalised:
        data = NormalizeFeatures()(data)
    with seeded(seed):
        training, _, test = RandomLinkSplit(0.05, 0.1, is_undirected=True, add_negative_train_samples=False)(data)
        graph = Graph.from_data(training).to(device)
        model = VGAE(Encoder([graph.x.shape[1], 32, 16]), negatives=negatives).to(device)
    noise = stream(seed, "noise", device=device)
    fit(model, lambda step: model.loss(graph, generator=noise), steps=steps, optimizer=torch.optim.Adam(model.parameters(), lr=0.01))
    z = embed(model.encoder, graph).cpu()
    score = (z[test.edge_label_index[0]] * z[test.edge_label_index[1]]).sum(-1).numpy()
    return {"link AUC": float(roc_auc_score(test.edge_label, score)), "link AP": float(average_precision_score(test.edge_label, score))}


VGAE_RECIPES: Mapping[str, Mapping[str, object]] = {
    "VGAE as published": {},
    "VGAE as published, sampled negatives": {"negatives": "sampled"},
    "VGAE as published, row-normalised": {"row_normalised": True},
}


# the experiment


@dataclass(frozen=True)
class IsoCSettings(Settings):
    """Settings of a scale.

    Attributes:
        graph: of the node and link level: ``documentation`` or ``cora``.
        libraries: whose documentation is read.
        nodes: recipe of the node and link level.
        published_width: of the authors' encoder.
        ring: recipe on the heterophilous ring.
        ring_nodes: size of the ring.
        graphs: recipe of the graph level.
        sets: of the graph level: ``wirings``, or names of the benchmark sets.
        wirings: how many graphs are wired.
        probe_steps: of the deep probe.
    """

    graph: str = "documentation"
    libraries: tuple[str, ...] = ("numpy", "scipy", "networkx", "sklearn")
    nodes: Recipe = Recipe()
    published_width: int = 64
    ring: Recipe = Recipe(widths=(8, 8), steps=400, learning_rate=3e-3)
    ring_nodes: int = 600
    graphs: Recipe = Recipe(layer="gin")
    sets: tuple[str, ...] = ("wirings",)
    wirings: int = 200
    probe_steps: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.graph not in ("documentation", "cora") or not set(self.libraries) <= set(LIBRARIES):
            raise ValueError(f"graph must be 'documentation' or 'cora', libraries of {LIBRARIES}, got {self.graph!r}, {self.libraries}")


def documentation_graph(libraries: Sequence[str]) -> Data:
    """The See Also graph of some libraries: x, 64 numbers from the words of each page's summary; y, its topic, the ten largest, else -1."""
    found = link_graph(documentation(libraries), smallest=5)
    return found.data(text_features([page.summary for page in found.pages], 64), label="topic", most=10)


def run(settings: IsoCSettings, seed: int, device: torch.device) -> Arms:
    """One seed: every arm trained from the same weights on the same graphs, at three levels."""
    data = cora() if settings.graph == "cora" else documentation_graph(settings.libraries)
    arms = node_arms(data, settings, seed, device)
    ring = heterophilous_ring(settings.ring_nodes, generator=stream(seed, "ring"))
    wired = {"wirings": lambda: wired_graphs(settings.wirings, generator=stream(seed, "wirings"))}
    sets = {name: wired[name]() if name in wired else graph_set(name) for name in settings.sets}
    for more in (ring_arms(ring, settings.ring, seed, device), graph_arms(sets, settings.graphs, seed, device)):
        for name, metrics in more.items():
            arms.setdefault(name, {}).update(metrics)
    if settings.graph == "cora":
        for name, options in VGAE_RECIPES.items():
            arms[name] = vgae_links(data, seed, device=device, **options)  # type: ignore[arg-type]  # the table's names are the function's
    return arms


WIDE = (512, 512)
EXPERIMENT = Experiment(
    paper="isoc_vgae",
    question="Does a decoder that undoes every layer of a graph encoder make better embeddings than one that decodes edges?",
    scales={
        "quick": IsoCSettings(
            seeds=2,
            libraries=("networkx",),
            nodes=Recipe(steps=4, learning_rate=1e-2),
            published_width=16,
            ring=Recipe(widths=(8, 8), steps=8, learning_rate=1e-2),
            ring_nodes=120,
            graphs=Recipe(layer="gin", widths=(8, 8), steps=4),
            wirings=20,
            probe_steps=3,
        ),
        "laptop": IsoCSettings(seeds=5),
        "paper": IsoCSettings(
            seeds=5,
            graph="cora",
            nodes=Recipe(widths=WIDE, steps=300, learning_rate=1e-3),
            published_width=512,
            graphs=Recipe(layer="gin", widths=WIDE, steps=300, learning_rate=1e-3, negatives="sampled"),
            sets=("MUTAG", "PROTEINS", "IMDB-BINARY"),
        ),
    },
    claims=(
        Claim(ISOC, "VGAE", "neighbour mean R2", 0.03, says="The mean of a node's and its neighbours' features can be read off IsoC-VGAE better."),
        Claim(ISOC, "VGAE", "own R2", 0.03, says="A node's own features can be read off IsoC-VGAE better than off VGAE."),
        Claim(ISOC, "VGAE", "two-hop mean R2", 0.03, says="What lies within two hops can be read off IsoC-VGAE better than off VGAE."),
        Claim(ISOC, UNTRAINED, "own R2", 0.05, says="Training IsoC-VGAE makes a node's own features easier to read."),
        Claim(ISOC, UNTRAINED, "neighbour mean R2", 0.05, says="Training IsoC-VGAE makes the neighbourhood's mean easier to read."),
        Claim(ISOC, UNTRAINED, "two-hop mean R2", 0.05, says="Training IsoC-VGAE makes what lies within two hops easier to read."),
        Claim(ISOC, "VGAE", "log degree R2", 0.1, says="The number of neighbours can be read off IsoC-VGAE better, by 0.1 of R2 or more."),
        Claim(ISOC, "VGAE", "ring accuracy", 0.1, says="Where linked nodes differ, IsoC-VGAE tells classes better than VGAE, by 10 points or more."),
        Claim(ISOC, UNTRAINED, "ring accuracy", says="Where linked nodes differ, IsoC-VGAE tells classes better than the untrained encoder."),
        Claim("VGAE", ISOC, "link AUC", 0.15, says="The price: inner products of VGAE predict links better, by 15 points of AUC or more."),
        Claim(ISOC, "VGAE", "node accuracy", says="Where linked nodes are alike, IsoC-VGAE tells classes better than VGAE."),
        Claim(ISOC, UNTRAINED, "graph accuracy", says="Whole graphs: IsoC-VGAE's pooled embeddings tell them better than the untrained encoder's."),
        Claim(
            SHORT,
            None,
            "largest change",
            -0.005,
            higher_is_better=False,
            says="30 steps of 5e-6 leave every score of the untrained encoder where it was, within half a point.",
        ),
    ),
    run=run,
    units={
        **dict.fromkeys(("own R2", "neighbour mean R2", "two-hop mean R2", "log degree R2"), "share of the variance"),
        "node accuracy": "balanced accuracy, linear probe",
        "node accuracy, deep probe": "balanced accuracy, 4 hidden layers",
        "link AUC": "area under ROC, inner product",
        "link AP": "average precision, inner product",
        "link AUC, probe": "area under ROC, linear probe",
        "largest change": "largest difference from the untrained encoder, over all linear scores",
        "ring accuracy": "balanced accuracy, linear probe",
        **{f"{name} accuracy": "balanced accuracy, linear probe" for name in ("graph", "wirings", "MUTAG", "PROTEINS", "IMDB-BINARY")},
    },
)  # fmt: skip


# the models that the explorer opens


NEIGHBOUR_WEIGHTS: Mapping[str, float] = {"published": 0.1, "heavier": 4.0}  # lambda_n of the shipped models


@dataclass(frozen=True)
class Unfolders:
    """Settings of the shipped models: one for each number of layers and weight of the neighbour loss, trained on all small graphs, coloured.

    Attributes:
        seed: of weights, colours and noise.
        depths: how many layers each has.
        width, hidden: of every layer; hidden layers of the decoder's perceptrons.
        epsilon: of GIN. With the published 0 a node's own colour is lost among its neighbours'; with 3.5 it stays visible beside six of them.
        colours: how many.
        colourings: of the atlas to draw batches from.
        batch: graphs in a step.
        steps, learning_rate: of Adam under a one-cycle schedule.
    """

    seed: int = 0
    depths: tuple[int, ...] = (1, 2, 3)
    width: int = 8
    hidden: int = 2
    epsilon: float = 3.5
    colours: int = 3
    colourings: int = 4
    batch: int = 313
    steps: int = 800
    learning_rate: float = 5e-3


def unfolder(depth: int, neighbour: str) -> str:
    """The name of a shipped model."""
    return f"{depth} layer{'s' * (depth > 1)}, {neighbour}"


def build_unfolders(settings: Unfolders) -> nn.ModuleDict:
    """The untrained models by :func:`unfolder`; those of one depth start from the same weights."""
    models = {}
    for depth in settings.depths:
        widths = [settings.colours] + [settings.width] * depth
        for name, weight in NEIGHBOUR_WEIGHTS.items():
            with seeded(settings.seed):
                encoder = Encoder(widths, layer="gin", epsilon=settings.epsilon)
                decoder = InverseGNN(widths, hidden=settings.hidden)
            models[unfolder(depth, name)] = IsoCVGAE(encoder, decoder, weights=LossWeights(neighbour=weight))
    return nn.ModuleDict(models)


def train_unfolders(settings: Unfolders, progress: str | None = None) -> nn.ModuleDict:
    """The trained models; all see the same batches."""
    models, draws = build_unfolders(settings), stream(settings.seed, "colours")
    shelf = [graph for _ in range(settings.colourings) for graph in coloured_atlas(settings.colours, generator=draws)]
    for name, model in models.items():
        assert isinstance(model, IsoCVGAE)
        order, noise = stream(settings.seed, "batches"), stream(settings.seed, "noise")

        def loss_at(step: int, model: IsoCVGAE = model, order: torch.Generator = order, noise: torch.Generator = noise) -> Tensor:
            chosen = torch.randint(len(shelf), (settings.batch,), generator=order).tolist()
            return model.loss(Graph.from_data(Batch.from_data_list([shelf[k] for k in chosen])), generator=noise)

        optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
        label = progress and f"{progress}: {name}"
        fit(model, loss_at, steps=settings.steps, optimizer=optimizer, schedule="one_cycle", warmup=settings.steps // 10, progress=label)
    return models


def measure_unfolders(models: nn.Module) -> dict[str, float]:
    """How well each level is decoded on a fresh colouring, as R^2, and the standard deviation of what is decoded.

    The names are ``2 layers, published, level 1: own``, ``... neighbour mean``, ``... degree``, ``... scale``.
    """
    assert isinstance(models, nn.ModuleDict)
    graph = Graph.from_data(Batch.from_data_list(coloured_atlas(Unfolders().colours, generator=stream(1, "fresh colours"))))
    found = {}
    for name, model in models.items():
        assert isinstance(model, IsoCVGAE)
        hidden, levels = model.decode(graph)
        for number, level in enumerate(levels, 1):
            where = f"{name}, level {number}"
            found[f"{where}: own"] = round(_explained(hidden[number - 1], level.mean), 4)
            found[f"{where}: neighbour mean"] = round(_explained(graph.neighbour_mean(hidden[number - 1]), level.mean), 4)
            found[f"{where}: degree"] = round(_explained(graph.degree.log1p(), level.degree), 4)
            found[f"{where}: scale"] = round(float(hidden[number - 1].std()), 4)
    return found


def _explained(target: Tensor, predicted: Tensor) -> float:
    return float(1 - (target - predicted).square().sum() / (target - target.mean(0)).square().sum())


CHECKPOINTS = (Checkpoint("isoc_vgae-unfolders", Unfolders(), build_unfolders, train_unfolders, measure_unfolders),)
