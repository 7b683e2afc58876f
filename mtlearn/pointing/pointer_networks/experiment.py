"""Does pointing beat a fixed dictionary, inside the sizes seen in training and beyond them?

Every batch is fresh: planar points with exact labels cost less than the training step. All arms of a seed see the same batches and take
the same number of steps. Two shipped models, trained longer, carry the claims that a minute cannot show.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import networkx as nx
import torch
from torch import Tensor, nn

from mtlearn.datasets import planar
from mtlearn.lab.checkpoints import Checkpoint, load
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import stream
from mtlearn.pointing.pointer_networks.baselines import FixedDictionary
from mtlearn.pointing.pointer_networks.method import Constraint, PointerNetwork, answer_loss

Model = Literal["pointer", "attention", "plain"]
Task = Literal["hull", "delaunay", "sort", "tour"]
Batches = Callable[[int], tuple[Tensor, Tensor]]  # number of points to inputs (batch, n, dim) and answers (batch, m)


def batches(task: Task, *, batch: int, generator: torch.Generator, pool: int = 50_000, sizes: range | None = None) -> Batches:
    """Fresh labelled batches of a task.

    Hulls, triangulations and sort orders are labelled as they are drawn. Shortest tours are dearer: ``pool`` instances of each of ``sizes``
    are solved once and drawn again and again, renumbered, turned and mirrored, which changes both input and answer.
    """
    if task == "tour":
        solved = {n: (points := planar.sample_points(pool, n, generator=generator), planar.shortest_tour(points)) for n in sizes or ()}

        def tours(n: int) -> tuple[Tensor, Tensor]:
            points, answers = solved[n]
            rows = torch.randint(pool, (batch,), generator=generator)
            return planar.disguise_tours(points[rows], answers[rows], generator=generator)

        return tours

    def fresh(n: int) -> tuple[Tensor, Tensor]:
        if task == "sort":
            numbers = torch.rand(batch, n, 1, generator=generator)
            return numbers, planar.close(numbers[..., 0].argsort(1) + 1)
        points = planar.sample_points(batch, n, generator=generator)
        return points, planar.convex_hull(points) if task == "hull" else planar.delaunay(points)

    return fresh


def build(model: Model, task: Task, hidden: int, dictionary: int) -> PointerNetwork:
    """An untrained model of the family."""
    dim = 1 if task == "sort" else 2
    if model == "pointer":
        return PointerNetwork(dim, hidden)
    return FixedDictionary(dictionary, attention=model == "attention", input_dim=dim, hidden=hidden)


def train(
    network: PointerNetwork,
    task: Task,
    sizes: range,
    draws: Batches,
    generator: torch.Generator,
    *,
    steps: int,
    learning_rate: float,
    progress: str | None = None,
) -> None:
    """Teacher-forced maximum likelihood: one size a batch, uniform in ``sizes``; Adam, one cycle, gradient norm at most 2 (the paper's)."""
    constraint: Constraint = "tour" if task == "tour" else "none"

    def loss_at(step: int) -> Tensor:
        n = sizes[int(torch.randint(len(sizes), (), generator=generator))]
        inputs, answers = draws(n)
        return answer_loss(network(inputs, answers, constraint=constraint), answers)

    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    fit(network, loss_at, steps=steps, optimizer=optimizer, schedule="one_cycle", warmup=steps // 10, clip=2.0, progress=progress)
    network.eval()


@dataclass(frozen=True)
class Recipe:
    """How a shipped model is trained."""

    model: Model
    task: Task
    smallest: int
    largest: int
    hidden: int
    steps: int
    batch: int = 128
    learning_rate: float = 3e-3
    dictionary: int = 0
    pool: int = 50_000
    seed: int = 0

    @property
    def sizes(self) -> range:
        """Numbers of points in training."""
        return range(self.smallest, self.largest + 1)


def _build(recipe: Recipe) -> nn.Module:
    return build(recipe.model, recipe.task, recipe.hidden, recipe.dictionary)


def _train(recipe: Recipe, progress: str | None) -> nn.Module:
    torch.manual_seed(recipe.seed)
    network = build(recipe.model, recipe.task, recipe.hidden, recipe.dictionary)
    generator = stream(recipe.seed, "points" if recipe.task == "tour" else "train")
    draws = batches(recipe.task, batch=recipe.batch, generator=generator, pool=recipe.pool, sizes=recipe.sizes)
    order = stream(recipe.seed, "train") if recipe.task == "tour" else generator
    train(network, recipe.task, recipe.sizes, draws, order, steps=recipe.steps, learning_rate=recipe.learning_rate, progress=progress)
    return network


def _measure_hull(network: nn.Module) -> dict[str, float]:
    assert isinstance(network, PointerNetwork)
    found: dict[str, float] = {}
    for n in (5, 8, 10, 15, 20, 25, 30, 50):
        exact, area, _ = measure_hulls(network, planar.sample_points(1000, n, generator=stream(1, "measure", n)))
        found |= {f"exact_{n}": exact, f"area_{n}": area}
    return found


def _measure_tour(network: nn.Module) -> dict[str, float]:
    assert isinstance(network, PointerNetwork)
    found: dict[str, float] = {}
    for n in (5, 8, 10, 12):
        points = planar.sample_points(500, n, generator=stream(1, "measure", n))
        found |= {f"greedy_{n}": optimality(network, points, width=1), f"beam_{n}": optimality(network, points, width=8)}
    return found


def _measure_triangles(network: nn.Module) -> dict[str, float]:
    assert isinstance(network, PointerNetwork)
    points = planar.sample_points(1000, 5, generator=stream(1, "measure", 5))
    return measure_triangles(points, triangulate(network, points))


HULL = Checkpoint("pointer_networks-hull", Recipe("pointer", "hull", 5, 20, hidden=128, steps=36_000), _build, _train, _measure_hull)
TOUR = Checkpoint("pointer_networks-tour", Recipe("pointer", "tour", 5, 10, hidden=128, steps=12_000), _build, _train, _measure_tour)
DICTIONARY = Checkpoint(
    "pointer_networks-dictionary", Recipe("attention", "hull", 5, 10, hidden=128, steps=12_000, dictionary=10), _build, _train, _measure_hull
)
TRIANGLES = Checkpoint(
    "pointer_networks-triangles", Recipe("pointer", "delaunay", 5, 5, hidden=128, steps=10_000), _build, _train, _measure_triangles
)
CHECKPOINTS = (HULL, TOUR, DICTIONARY, TRIANGLES)


def shipped(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> PointerNetwork:
    """A shipped model, as what it is."""
    network = load(checkpoint, device=device)
    assert isinstance(network, PointerNetwork)
    return network


def triangulate(network: PointerNetwork, points: Tensor) -> Tensor:
    """Greedy triangulations of ``points`` (batch, n, 2): at most 2 n - 5 triangles and stop."""
    return network.decode(points, max_steps=3 * (2 * points.shape[1] - 5) + 1).tokens[:, 0]


def measure_triangles(points: Tensor, answers: Tensor) -> dict[str, float]:
    """Share of the true triangles found, and share of instances whose set of triangles is right."""
    coverage, exact = planar.triangle_coverage(answers, planar.delaunay(points))
    return {"triangles_found": coverage.mean().item(), "triangulation_exact": exact.double().mean().item()}


def measure_hulls(network: PointerNetwork, points: Tensor, *, no_repeats: bool = False) -> tuple[float, float, float]:
    """Greedy answers to ``points`` (batch, n, 2): share that is the exact canonical answer, mean area ratio, share of valid polygons."""
    answers = network.decode(points, constraint="no_repeats" if no_repeats else "none").tokens[:, 0]
    truth = planar.convex_hull(points)
    exact = planar.same_answer(answers, truth)
    return (
        exact.double().mean().item(),
        planar.area_ratio(points, answers, truth).mean().item(),
        planar.valid_polygons(points, answers).double().mean().item(),
    )


def optimality(network: PointerNetwork, points: Tensor, *, width: int) -> float:
    """Total length of the shortest tours over that of the network's likeliest tours: 1 when all are optimal."""
    tours = network.decode(points, width=width, constraint="tour").tokens[:, 0, : points.shape[1]]
    return share_of_optimum(points, tours)


def share_of_optimum(points: Tensor, tours: Tensor) -> float:
    """Total length of the shortest tours over that of ``tours`` (batch, n)."""
    return (planar.tour_length(points, planar.shortest_tour(points)).sum() / planar.tour_length(points, tours).sum()).item()


def christofides_tours(points: Tensor) -> Tensor:
    """Tours by Christofides' algorithm (networkx), at most 1.5 times the optimum: (batch, n)."""
    tours = []
    for instance in points.double():
        distance = torch.cdist(instance, instance)
        graph = nx.from_numpy_array(distance.numpy())
        tours.append(torch.tensor(nx.approximation.christofides(graph)[:-1]) + 1)
    return planar.canonical_tour(torch.stack(tours))


@dataclass(frozen=True)
class PointerSettings(Settings):
    """Sizes of the comparison.

    Attributes:
        smallest, largest: sizes in training.
        far: a size beyond training that the dictionary still has.
        dictionary: largest index of the fixed-dictionary arms.
        beyond: a size beyond the dictionary.
        steps: updates of each arm trained on mixed sizes.
        single_steps: updates of each arm trained on ``smallest`` points alone.
        task_steps: updates of the pointer network on sorting.
        hidden, batch, learning_rate: of all arms.
        tests: fresh instances per size.
    """

    smallest: int
    largest: int
    far: int
    dictionary: int
    beyond: int
    steps: int
    single_steps: int
    task_steps: int
    hidden: int
    batch: int
    learning_rate: float
    tests: int


ARMS: dict[str, Model] = {"pointer_network": "pointer", "seq2seq_attention": "attention", "seq2seq": "plain"}
SORTING = "pointer_network_sorting"
SHIPPED_SIZES = (5, 10, 20, 30)


def run(settings: PointerSettings, seed: int, device: torch.device) -> Arms:
    """Train the three arms on mixed sizes and on one size, the pointer network on sorting, and measure the shipped models."""

    def trained(model: Model, task: Task, sizes: range, steps: int, dictionary: int = 0) -> PointerNetwork:
        torch.manual_seed(seed)
        network = build(model, task, settings.hidden, dictionary).to(device)
        generator = stream(seed, task, sizes.start, sizes.stop)  # the same batches for every arm
        on_device = batches(task, batch=settings.batch, generator=generator)

        def draws(n: int) -> tuple[Tensor, Tensor]:
            inputs, answers = on_device(n)
            return inputs.to(device), answers.to(device)

        train(network, task, sizes, draws, generator, steps=steps, learning_rate=settings.learning_rate)
        return network

    def tests(n: int, dim: int = 2) -> Tensor:
        return torch.rand(settings.tests, n, dim, generator=stream(seed, "test", n, dim)).to(device)

    arms: Arms = {}
    mixed = range(settings.smallest, settings.largest + 1)
    for name, model in ARMS.items():
        network = trained(model, "hull", mixed, settings.steps, settings.dictionary)
        inside, far = (measure_hulls(network, tests(n)) for n in (settings.largest, settings.far))
        alone = trained(model, "hull", range(settings.smallest, settings.smallest + 1), settings.single_steps, settings.smallest)
        arms[name] = {
            "exact_inside": inside[0],
            "area_inside": inside[1],
            "valid_inside": inside[2],
            "exact_far": far[0],
            "area_far": far[1],
            "exact_beyond": measure_hulls(network, tests(settings.beyond))[0],
            "exact_falls_more_than_area": (inside[0] - far[0]) - (inside[1] - far[1]),
            "exact_one_size": measure_hulls(alone, tests(settings.smallest))[0],
            "parameters": float(sum(p.numel() for p in network.parameters())),
        }
        if model == "pointer":
            masked = measure_hulls(network, tests(settings.far), no_repeats=True)
            arms["pointer_network_no_repeats"] = {"exact_far": masked[0], "area_far": masked[1]}

    sorter = trained("pointer", "sort", mixed, settings.task_steps)
    for n in (settings.smallest, settings.largest):
        numbers = tests(n, 1)
        answers = sorter.decode(numbers).tokens[:, 0]
        exact = planar.same_answer(answers, planar.close(numbers[..., 0].argsort(1) + 1)).double().mean().item()
        arms.setdefault(SORTING, {})["sorted_smallest" if n == settings.smallest else "sorted_largest"] = exact

    hull, tour, triangles = (shipped(checkpoint, device) for checkpoint in (HULL, TOUR, TRIANGLES))
    hulls = {n: measure_hulls(hull, tests(n)) for n in SHIPPED_SIZES}
    arms["shipped_hull"] = {**{f"exact_{n}": exact for n, (exact, _, _) in hulls.items()}, "area_30": hulls[30][1]}
    points = tests(5)
    arms["shipped_triangles"] = measure_triangles(points, triangulate(triangles, points))
    arms["triangles_of_another_instance"] = measure_triangles(points, planar.delaunay(points).roll(1, 0))
    cities = tests(10)
    arms["shipped_tour"] = {"optimum_share_10": optimality(tour, cities, width=8)}
    arms["nearest_neighbour"] = {"optimum_share_10": share_of_optimum(cities, planar.nearest_neighbour_tour(cities))}
    arms["christofides"] = {"optimum_share_10": share_of_optimum(cities, christofides_tours(cities.cpu()).to(device))}
    return arms


POINTER, ATTENTION, PLAIN = ARMS
EXPERIMENT = Experiment(
    paper="pointer_networks",
    question="At equal steps, does pointing at the input beat naming it from a fixed dictionary, inside the training sizes and beyond them?",
    scales={
        "quick": PointerSettings(
            seeds=2,
            smallest=5,
            largest=6,
            far=12,
            dictionary=12,
            beyond=16,
            steps=260,
            single_steps=40,
            task_steps=40,
            hidden=64,
            batch=64,
            learning_rate=6e-3,
            tests=100,
        ),
        "laptop": PointerSettings(
            seeds=5,
            smallest=5,
            largest=12,
            far=20,
            dictionary=20,
            beyond=30,
            steps=700,
            single_steps=1500,
            task_steps=500,
            hidden=96,
            batch=128,
            learning_rate=3e-3,
            tests=400,
        ),
        "paper": PointerSettings(
            seeds=3,
            smallest=5,
            largest=50,
            far=100,
            dictionary=100,
            beyond=200,
            steps=8_000,
            single_steps=8_000,
            task_steps=8_000,
            hidden=512,
            batch=128,
            learning_rate=1e-3,
            tests=1000,
        ),
    },
    claims=(
        Claim(
            POINTER,
            ATTENTION,
            "exact_inside",
            0.2,
            says="At its largest training size the pointer network names more hulls exactly than attention does",
        ),
        Claim(POINTER, PLAIN, "exact_inside", 0.2, says="... and more than sequence to sequence without attention"),
        Claim(POINTER, ATTENTION, "area_far", 0.5, says="Beyond the training sizes its polygons cover more of the true area than attention's"),
        Claim(POINTER, None, "area_far", 0.85, says="Beyond the training sizes its polygons cover at least 85 % of the true area"),
        Claim(POINTER, ATTENTION, "exact_beyond", says="Beyond the dictionary's last index it still names some hulls exactly"),
        Claim(POINTER, ATTENTION, "exact_one_size", 0.05, says="On five points alone, where a dictionary suffices, it is ahead of attention"),
        Claim(ATTENTION, PLAIN, "exact_one_size", 0.2, says="... and attention is ahead of sequence to sequence without it"),
        Claim(POINTER, None, "exact_falls_more_than_area", says="From the largest training size to the far one, exactness falls more than area"),
        Claim("shipped_hull", None, "exact_30", 0.35, says="The shipped model, trained on 5 to 20 points, names 35 % of the hulls of 30 exactly"),
        Claim(
            "shipped_tour", None, "optimum_share_10", 0.97, says="The shipped tour model is within 3 % of the shortest tours of 10 cities (beam 8)"
        ),
        Claim("shipped_tour", "nearest_neighbour", "optimum_share_10", says="... and its tours are shorter than nearest-neighbour tours"),
        Claim(
            "shipped_triangles",
            None,
            "triangles_found",
            0.8,
            says="The shipped triangulation model finds 80 % of the Delaunay triangles of five points",
        ),
        Claim(
            "shipped_triangles", "triangles_of_another_instance", "triangles_found", 0.3, says="... far more than another instance's answer contains"
        ),
        Claim(SORTING, None, "sorted_smallest", 0.9, says="500 steps on 5 to 12 numbers are enough to sort five of them in 90 % of the cases"),
    ),
    run=run,
    units={
        "exact_inside": "share of hulls, largest training size",
        "area_inside": "share of the true area, largest training size",
        "valid_inside": "share of valid polygons, largest training size",
        "exact_far": "share of hulls, beyond the training sizes",
        "area_far": "share of the true area, beyond the training sizes",
        "exact_beyond": "share of hulls, beyond the dictionary",
        "exact_falls_more_than_area": "difference of shares",
        "exact_one_size": "share of hulls of five points",
        "parameters": "numbers",
        "sorted_smallest": "share of lists, smallest size",
        "sorted_largest": "share of lists, largest size",
        "triangles_found": "share of the true triangles",
        "triangulation_exact": "share of instances",
        "optimum_share_10": "shortest length / length, 10 cities",
        **{f"exact_{n}": f"share of hulls of {n} points" for n in SHIPPED_SIZES},
        "area_30": "share of the true area, 30 points",
    },
    pairs="seeds; test sets for the shipped models",
)
