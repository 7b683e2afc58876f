"""Points in the unit square with exact labels: convex hulls, Delaunay triangulations and shortest tours.

Index conventions, shared with :mod:`mtlearn.pointing`: points are numbered from 1, 0 is the stop symbol and -1 pads a
batch of answers of different lengths::

    points   (0.1, 0.1) (0.5, 0.4) (0.9, 0.1) (0.5, 0.9)
    hull      1 3 4 0          counter-clockwise from the lowest index, then stop
    delaunay  1 2 4  1 2 3  2 3 4 0    ascending triples, ordered by their incentres, then stop
    tour      1 3 2 4          starts at point 1; its second city has a lower index than its last

Each instance has exactly one right answer that way, which is what makes it learnable (Vinyals et al. 2015, section 3).
"""

from functools import lru_cache

import numpy as np
import torch
from scipy.spatial import Delaunay, QhullError
from torch import Tensor

STOP, PAD = 0, -1
LARGEST_TOUR = 16
LARGEST_TRIPLES = 8  # up to here trying all triples of a batch at once is faster than Qhull instance by instance


def sample_points(batch: int, n: int, *, generator: torch.Generator | None = None) -> Tensor:
    """``batch`` instances of ``n`` points, uniform in the unit square: float32, shape (batch, n, 2)."""
    if batch < 1 or n < 1:
        raise ValueError(f"batch and n must be at least 1, got batch={batch}, n={n}")
    return torch.rand(batch, n, 2, generator=generator)


def check_points(points: Tensor, *, fewest: int = 1) -> Tensor:
    """Return ``points`` when it is a finite float (batch, n, 2) tensor with n >= ``fewest``; else raise ValueError."""
    if points.dim() != 3 or points.shape[-1] != 2:
        raise ValueError(f"points must have shape (batch, n, 2), got {tuple(points.shape)}")
    if points.shape[1] < fewest:
        raise ValueError(f"at least {fewest} points are needed, got n={points.shape[1]}")
    finite = points.isfinite().flatten(1).all(1)
    if not finite.all():
        raise ValueError(f"coordinates must be finite; instance {int((~finite).nonzero()[0])} holds NaN or infinity")
    return points


def check_general_position(points: Tensor) -> Tensor:
    """Return ``points`` (batch, n >= 3, 2) when no instance repeats a point or lies on one line; else raise ValueError."""
    check_points(points, fewest=3)
    exact = points.double()
    n = points.shape[1]
    twin = (exact[:, :, None] == exact[:, None]).all(-1) & ~torch.eye(n, dtype=torch.bool, device=points.device)
    if twin.any():
        row, i, j = twin.nonzero()[0].tolist()
        raise ValueError(f"points must be distinct; in instance {row} points {i + 1} and {j + 1} coincide")
    centred = exact - exact.mean(1, keepdim=True)
    spread = torch.linalg.svdvals(centred)  # (batch, 2)
    flat = spread[:, 1] <= 1e-9 * spread[:, 0]
    if flat.any():
        raise ValueError(f"all points of instance {int(flat.nonzero()[0])} lie on one line: it has no hull polygon")
    return points


def convex_hull(points: Tensor) -> Tensor:
    """Hull vertices, counter-clockwise from the lowest index on the hull.

    Args:
        points: (batch, n, 2), n >= 3, distinct and not all on one line.

    Returns:
        (batch, m + 1) int64: the vertices 1..n, then ``STOP``, then ``PAD``; m is the largest hull of the batch.
    """
    exact = check_general_position(points).double()
    batch, n, _ = exact.shape
    edge = exact[:, None, :, :] - exact[:, :, None, :]  # (batch, i, j, 2): from i to j
    # i -> j is a hull edge when every point k lies to its left: (P_j - P_i) x (P_k - P_i) >= 0
    cross = edge[:, :, :, None, 0] * edge[:, :, None, :, 1] - edge[:, :, :, None, 1] * edge[:, :, None, :, 0]
    left = (cross >= 0).all(-1) & ~torch.eye(n, dtype=torch.bool, device=points.device)  # (batch, i, j)
    # of several points on one hull edge the farthest is the vertex
    reach = torch.where(left, edge.pow(2).sum(-1), -1.0)
    successor = reach.argmax(-1)  # (batch, n)
    on_hull = left.any(-1)
    # a point in the middle of an edge passes the test too, but no edge ends in it
    is_vertex = (torch.nn.functional.one_hot(successor, n).bool() & on_hull[:, :, None]).any(1)
    start = is_vertex.int().argmax(1)
    path: list[Tensor] = []
    current, open_ = start, torch.ones(batch, dtype=torch.bool, device=points.device)
    while open_.any() and len(path) <= n:
        path.append(torch.where(open_, current + 1, PAD))
        current = successor.gather(1, current[:, None])[:, 0]
        open_ = open_ & (current != start)
    if open_.any():
        raise ValueError(f"instance {int(open_.nonzero()[0])} is numerically degenerate: its hull does not close")
    answer = torch.stack([*path, torch.full_like(start, PAD)], 1)
    length = (answer != PAD).sum(1, keepdim=True)
    return answer.scatter(1, length, STOP)


def delaunay(points: Tensor) -> Tensor:
    """Delaunay triangles as flat index triples in canonical order.

    Each triple ascends; triangles are sorted lexicographically by the coordinates of their incentres.

    Returns:
        (batch, 3 t + 1) int64: triples of 1..n, then ``STOP``, then ``PAD``; t is the largest triangulation of the batch.
    """
    exact = check_general_position(points).double()
    triangles, real = _small_triangulations(exact) if points.shape[1] <= LARGEST_TRIPLES else _large_triangulations(exact)
    batch, count, _ = triangles.shape
    corner = exact.gather(1, triangles.flatten(1)[..., None].expand(-1, -1, 2)).view(batch, count, 3, 2)
    opposite = torch.linalg.vector_norm(corner.roll(-1, 2) - corner.roll(1, 2), dim=-1)  # side facing each corner
    incentre = (opposite[..., None] * corner).sum(2) / opposite.sum(2, keepdim=True)
    incentre = incentre.masked_fill(~real[..., None], torch.inf)  # padding goes last
    order = incentre[..., 1].argsort(dim=1, stable=True)
    order = order.gather(1, incentre[..., 0].gather(1, order).argsort(dim=1, stable=True))
    flat = triangles.gather(1, order[..., None].expand(-1, -1, 3)).flatten(1) + 1
    length = 3 * real.sum(1, keepdim=True)
    position = torch.arange(int(length.max()) + 1, device=points.device)
    return close(flat)[:, : len(position)].masked_fill(position >= length, PAD).scatter(1, length, STOP)


@lru_cache
def _triples(n: int) -> Tensor:
    return torch.combinations(torch.arange(n), 3)


def _small_triangulations(exact: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending triples (batch, t, 3) from 0 and which are real, (batch, t): those whose circumcircle holds no other point."""
    triples = _triples(exact.shape[1]).to(exact.device)
    a, b, c = exact[:, triples].unbind(2)  # each (batch, triples, 2)
    # d lies inside the circle through a, b, c (counter-clockwise) when this determinant is positive
    rows = [corner[:, :, None] - exact[:, None] for corner in (a, b, c)]  # (batch, triples, n, 2)
    lifted = torch.stack([torch.cat([row, row.pow(2).sum(-1, keepdim=True)], -1) for row in rows], -2)
    turn = ((b - a)[..., 0] * (c - a)[..., 1] - (b - a)[..., 1] * (c - a)[..., 0])[..., None]
    own = (triples[:, :, None] == torch.arange(exact.shape[1], device=exact.device)).any(1)
    empty = ((torch.linalg.det(lifted) * turn.sign() <= 0) | own).all(-1) & (turn[..., 0] != 0)  # (batch, triples)
    order = empty.int().argsort(dim=1, descending=True, stable=True)[:, : int(empty.sum(1).max())]
    return triples[order], empty.gather(1, order)


def _large_triangulations(exact: Tensor) -> tuple[Tensor, Tensor]:
    """The same by Qhull, one instance after another."""
    rows = []
    for row, instance in enumerate(exact.cpu().numpy()):
        try:
            rows.append(torch.from_numpy(np.sort(Delaunay(instance).simplices, 1)).long())
        except QhullError as error:  # pragma: no cover - check_general_position refuses what Qhull refuses
            raise ValueError(f"instance {row} has no Delaunay triangulation: {str(error).splitlines()[0]}") from error
    triangles = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    real = torch.arange(triangles.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    return triangles.to(exact.device), real.to(exact.device)


@lru_cache(maxsize=LARGEST_TOUR)
def _subset_tables(cities: int) -> list[tuple[Tensor, Tensor]]:
    """For each subset size s >= 2 of ``cities`` cities: the masks of that size, and the masks without each member."""
    masks = torch.arange(1 << cities)
    member = (masks[:, None] >> torch.arange(cities)) & 1  # (masks, cities)
    size = member.sum(1)
    bit = 1 << torch.arange(cities)
    return [(chosen := masks[size == s], torch.where(member[chosen] == 1, chosen[:, None] ^ bit, 0)) for s in range(2, cities + 1)]


def shortest_tour(points: Tensor, *, chunk: int = 64) -> Tensor:
    """Optimal tours by the dynamic programme of Held and Karp (1962), batched over instances and over subsets of a size.

    Time and memory grow as 2^n n^2, so n is at most ``LARGEST_TOUR``; ``chunk`` instances are solved at a time.

    Returns:
        (batch, n) int64 permutations of 1..n that start at 1, with the second city's index below the last one's.
    """
    check_points(points, fewest=3)
    batch, n, _ = points.shape
    if n > LARGEST_TOUR:
        raise ValueError(f"exact tours are computed for at most {LARGEST_TOUR} points, got n={n}")
    if batch > chunk:
        return torch.cat([shortest_tour(part, chunk=chunk) for part in torch.split(points, chunk)])
    distance = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    others = n - 1  # city 1 is home; bit k of a mask stands for city k + 2
    leg = distance[:, 1:, 1:]
    full = 1 << others
    # cost[b, mask, k]: shortest path from home through all of mask, ending in k
    cost = torch.full((batch, full, others), torch.inf, dtype=torch.float64, device=points.device)
    before = torch.zeros((batch, full, others), dtype=torch.int64, device=points.device)
    single = torch.arange(others)
    cost[:, 1 << single, single] = distance[:, 0, 1:]
    for masks, without in _subset_tables(others):
        # (batch, masks, k, j): end in k, having been in j before
        through = cost[:, without] + leg.transpose(1, 2)[:, None]
        best, where = through.min(-1)
        outside = ((masks[:, None] >> single) & 1) == 0
        cost[:, masks] = best.masked_fill(outside.to(points.device), torch.inf)
        before[:, masks] = where
    mask = torch.full((batch,), full - 1, device=points.device)
    city = (cost[:, -1] + distance[:, 1:, 0]).argmin(-1)
    backwards, row = [city], torch.arange(batch, device=points.device)
    for _ in range(others - 1):
        previous = before[row, mask, city]
        mask, city = mask ^ (1 << city), previous
        backwards.append(city)
    return canonical_tour(torch.stack([torch.full_like(city, -1), *reversed(backwards)], 1) + 2)


def tour_length(points: Tensor, tours: Tensor) -> Tensor:
    """Length of each closed tour (batch,): ``tours`` (batch, n) holds indices 1..n."""
    stops = points.double().gather(1, (tours - 1)[..., None].expand(-1, -1, 2))
    legs: Tensor = torch.linalg.vector_norm(stops - stops.roll(-1, 1), dim=-1)
    return legs.sum(1)


def nearest_neighbour_tour(points: Tensor) -> Tensor:
    """The greedy tour from point 1 that always visits the nearest city left: (batch, n) indices 1..n."""
    check_points(points, fewest=1)
    distance = torch.cdist(points.double(), points.double())
    batch, n, _ = points.shape
    city = torch.zeros(batch, dtype=torch.int64, device=points.device)
    left = torch.ones(batch, n, dtype=torch.bool, device=points.device)
    tour = [city]
    for _ in range(n - 1):
        left = left.scatter(1, city[:, None], False)
        row = distance.gather(1, city[:, None, None].expand(-1, 1, n))[:, 0]
        city = row.masked_fill(~left, torch.inf).argmin(1)
        tour.append(city)
    return torch.stack(tour, 1) + 1


def answer_lengths(answers: Tensor) -> Tensor:
    """Number of indices before the first ``STOP`` or ``PAD``: (batch,)."""
    ended = answers <= STOP
    return torch.where(ended.any(1), ended.int().argmax(1), answers.shape[1])


def polygon_area(points: Tensor, polygons: Tensor) -> Tensor:
    """Signed area (batch,), positive counter-clockwise, of polygons given as indices 1..n, ``STOP``, ``PAD``."""
    corner, length = _corners(points, polygons)
    following = corner.roll(-1, 1)
    cross = corner[..., 0] * following[..., 1] - corner[..., 1] * following[..., 0]
    inside = torch.arange(polygons.shape[1], device=points.device) < length[:, None]
    return 0.5 * (cross * inside).sum(1)


def valid_polygons(points: Tensor, polygons: Tensor) -> Tensor:
    """Which answers (batch,) are polygons: closed by ``STOP``, 3 corners or more, no corner twice, no edges that cross."""
    corner, length = _corners(points, polygons)
    width = polygons.shape[1]
    position = torch.arange(width, device=points.device)
    inside = position < length[:, None]
    stopped = (polygons == STOP).any(1)
    same = (polygons[:, :, None] == polygons[:, None]) & inside[:, :, None] & inside[:, None]
    repeats = (same & (position[:, None] < position)).flatten(1).any(1)
    following = corner.roll(-1, 1)

    def side(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        ab, ac = b - a, c - a
        return (ab[..., 0] * ac[..., 1] - ab[..., 1] * ac[..., 0]).sign()

    p, q = corner[:, :, None], following[:, :, None]  # edge i
    r, s = corner[:, None], following[:, None]  # edge j
    crossing = (side(p, q, r) * side(p, q, s) < 0) & (side(r, s, p) * side(r, s, q) < 0)
    crosses = (crossing & inside[:, :, None] & inside[:, None]).flatten(1).any(1)
    return stopped & (length >= 3) & ~repeats & ~crosses


def _corners(points: Tensor, polygons: Tensor) -> tuple[Tensor, Tensor]:
    """Corner coordinates (batch, m, 2), the tail filled with the first corner so that edges there have no length."""
    length = answer_lengths(polygons)
    position = torch.arange(polygons.shape[1], device=points.device)
    index = torch.where(position < length[:, None], polygons, polygons[:, :1]).clamp(min=1) - 1
    return points.double().gather(1, index[..., None].expand(-1, -1, 2)), length


def same_polygon(left: Tensor, right: Tensor) -> Tensor:
    """Which pairs of answers (batch, m), (batch, m') name the same polygon up to its starting corner: (batch,) bool."""
    width = max(left.shape[1], right.shape[1])
    left, right = _start_lowest(left, width), _start_lowest(right, width)
    return (left == right).all(1) & (answer_lengths(left) > 0)


def _start_lowest(polygons: Tensor, width: int) -> Tensor:
    length = answer_lengths(polygons)
    position = torch.arange(polygons.shape[1], device=polygons.device)
    inside = position < length[:, None]
    first = polygons.masked_fill(~inside, torch.iinfo(torch.int64).max).argmin(1)
    rotated = polygons.gather(1, (first[:, None] + position) % length.clamp(min=1)[:, None]).masked_fill(~inside, PAD)
    return torch.nn.functional.pad(rotated, (0, width - polygons.shape[1]), value=PAD)


def area_ratio(points: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """Area of each predicted polygon over the true one's (batch,); 0 where the prediction is no valid polygon."""
    ratio = polygon_area(points, predicted).abs() / polygon_area(points, true).abs()
    return torch.where(valid_polygons(points, predicted), ratio, 0.0)


def triangle_coverage(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Share of true triangles found, and whether the whole set is right, for flat triples (batch, m), (batch, m')."""
    share, exact = [], []
    for answer, target in zip(predicted.tolist(), true.tolist(), strict=True):
        found, wanted = _triangles(answer), _triangles(target)
        share.append(len(found & wanted) / len(wanted))
        exact.append(found == wanted)
    return torch.tensor(share, dtype=torch.float64), torch.tensor(exact)


def _triangles(flat: list[int]) -> set[tuple[int, ...]]:
    flat = flat[: next((at for at, index in enumerate(flat) if index <= STOP), len(flat))]
    return {tuple(sorted(flat[at : at + 3])) for at in range(0, len(flat) - 2, 3)}


def disguise_tours(points: Tensor, tours: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Fresh-looking instances from solved ones: the points renumbered, and the square turned or mirrored, at random.

    Neither changes which tour is shortest, so one exact label serves for many instances of other inputs and other answers.

    Args:
        points: (batch, n, 2) in the unit square.
        tours: (batch, n) their canonical tours.
        generator: source of the draws.

    Returns:
        Points (batch, n, 2) and their canonical tours (batch, n).
    """
    batch, n, _ = points.shape
    order = torch.rand(batch, n, generator=generator).argsort(1)  # new position to old
    flip = torch.rand(batch, 3, generator=generator) < 0.5
    renumbered = points.gather(1, order[..., None].expand(-1, -1, 2))
    renumbered = torch.where(flip[:, :1, None], renumbered.flip(-1), renumbered)
    renumbered = torch.where(flip[:, None, 1:], 1 - renumbered, renumbered)
    renamed = order.argsort(1).gather(1, tours - 1) + 1  # old index to new
    return renumbered, canonical_tour(renamed)


def canonical_tour(tours: Tensor) -> Tensor:
    """The same closed tours (batch, n), started at point 1 and turned so that the second index is below the last."""
    n = tours.shape[1]
    start = (tours == 1).int().argmax(1, keepdim=True)
    position = torch.arange(n, device=tours.device)
    forth = tours.gather(1, (start + position) % n)
    back = tours.gather(1, (start - position) % n)
    return torch.where(forth[:, 1:2] < forth[:, -1:], forth, back)


def close(answers: Tensor) -> Tensor:
    """Append ``STOP`` to answers (batch, m) that name all they need."""
    return torch.nn.functional.pad(answers, (0, 1), value=STOP)


def same_answer(left: Tensor, right: Tensor) -> Tensor:
    """Which answers (batch, m), (batch, m') are the same indices in the same order up to ``STOP``, and both stop: (batch,) bool."""
    width = max(left.shape[1], right.shape[1])
    lengths = answer_lengths(left), answer_lengths(right)
    position = torch.arange(width, device=left.device)
    padded = [
        torch.nn.functional.pad(answers, (0, width - answers.shape[1]), value=PAD).masked_fill(position >= length[:, None], PAD)
        for answers, length in zip((left, right), lengths, strict=True)
    ]
    return (padded[0] == padded[1]).all(1) & (left == STOP).any(1) & (right == STOP).any(1)
