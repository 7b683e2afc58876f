from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull, Delaunay

from mtlearn.datasets import planar
from mtlearn.lab.seeds import stream

SQUARE = torch.tensor([[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9], [0.5, 0.4]]])


def trimmed(answers: torch.Tensor) -> list[list[int]]:
    return [[index for index in row if index > planar.STOP] for row in answers.tolist()]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 40))
def test_hulls_are_those_of_qhull(seed: int, n: int) -> None:
    points = planar.sample_points(4, n, generator=stream(seed))
    for instance, hull in zip(points, trimmed(planar.convex_hull(points)), strict=True):
        vertices = (ConvexHull(instance.double().numpy()).vertices + 1).tolist()
        start = vertices.index(min(vertices))
        assert hull == vertices[start:] + vertices[:start]


def test_hull_area_is_qhulls_volume() -> None:
    points = planar.sample_points(50, 12, generator=stream(0))
    area = planar.polygon_area(points, planar.convex_hull(points))
    torch.testing.assert_close(area, torch.tensor([ConvexHull(p.double().numpy()).volume for p in points], dtype=torch.float64), atol=1e-9, rtol=0)


def test_the_docstrings_example() -> None:
    points = torch.tensor([[[0.1, 0.1], [0.5, 0.4], [0.9, 0.1], [0.5, 0.9]]])
    assert planar.convex_hull(points).tolist() == [[1, 3, 4, 0]]
    assert planar.delaunay(points).tolist() == [[1, 2, 4, 1, 2, 3, 2, 3, 4, 0]]
    assert planar.shortest_tour(points).tolist() == [[1, 3, 2, 4]]


def test_points_on_an_edge_are_no_corners() -> None:
    points = torch.tensor([[[0.5, 0.0], [0.0, 0.0], [1.0, 0.0], [0.25, 0.0], [0.5, 1.0]]])
    assert planar.convex_hull(points).tolist() == [[2, 3, 5, 0]]


def test_answers_of_different_lengths_are_padded_after_stop() -> None:
    points = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.2, 0.2]], [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]])
    assert planar.convex_hull(points).tolist() == [[1, 2, 3, 0, -1], [1, 2, 3, 4, 0]]


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7, 8])
def test_held_karp_finds_what_trying_all_tours_finds(n: int) -> None:
    points = planar.sample_points(6, n, generator=stream(n))
    every = torch.tensor([(1, *rest) for rest in permutations(range(2, n + 1))])
    best = torch.stack([planar.tour_length(instance.expand(len(every), -1, -1), every).min() for instance in points])
    tours = planar.shortest_tour(points, chunk=4)
    torch.testing.assert_close(planar.tour_length(points, tours), best)
    assert (tours.sort(1).values == torch.arange(1, n + 1)).all()
    assert (tours[:, 0] == 1).all()
    assert (tours[:, 1] < tours[:, -1]).all()


def test_disguised_tours_are_still_shortest() -> None:
    points = planar.sample_points(40, 7, generator=stream(3))
    again, tours = planar.disguise_tours(points, planar.shortest_tour(points), generator=stream(4))
    assert not torch.equal(points, again)
    assert torch.equal(tours, planar.shortest_tour(again))
    torch.testing.assert_close(planar.tour_length(again, tours), planar.tour_length(points, planar.shortest_tour(points)))


def test_nearest_neighbour_visits_all_and_is_never_shorter_than_the_optimum() -> None:
    points = planar.sample_points(60, 8, generator=stream(5))
    greedy = planar.nearest_neighbour_tour(points)
    assert (greedy.sort(1).values == torch.arange(1, 9)).all()
    ratio = planar.tour_length(points, greedy) / planar.tour_length(points, planar.shortest_tour(points))
    assert (ratio >= 1 - 1e-9).all()
    assert ratio.max() > 1.05


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 10))
def test_trying_all_triples_finds_qhulls_triangles(seed: int, n: int) -> None:
    points = planar.sample_points(3, n, generator=stream(seed))
    for flat, instance in zip(trimmed(planar.delaunay(points)), points.double().numpy(), strict=True):
        assert {tuple(t) for t in np.array(flat).reshape(-1, 3).tolist()} == {tuple(sorted(t)) for t in (Delaunay(instance).simplices + 1).tolist()}


@pytest.mark.parametrize("n", [9, 14])
def test_triangulations_are_delaunay_and_in_canonical_order(n: int) -> None:
    points = planar.sample_points(10, n, generator=stream(6))
    for instance, flat in zip(points.double(), trimmed(planar.delaunay(points)), strict=True):
        triples = np.array(flat).reshape(-1, 3)
        assert (np.diff(triples, axis=1) > 0).all()
        incentres = []
        for a, b, c in instance[torch.from_numpy(triples - 1)]:
            sides = torch.stack([(b - c).norm(), (a - c).norm(), (a - b).norm()])
            incentres.append(((sides[:, None] * torch.stack([a, b, c])).sum(0) / sides.sum()).tolist())
            # the empty circle: no other point inside the circumcircle
            m = torch.stack([b - a, c - a]) * 2
            centre = torch.linalg.solve(m, ((torch.stack([b, c]) ** 2).sum(1) - (a**2).sum()))
            assert ((instance - centre).norm(dim=1) >= (a - centre).norm() - 1e-9).all()
        assert incentres == sorted(incentres)
        assert len(triples) == 2 * len(instance) - 2 - len(trimmed(planar.convex_hull(instance[None]))[0])


def test_an_exact_answer_covers_everything_and_wrong_ones_count_nothing() -> None:
    truth = planar.convex_hull(SQUARE)
    assert planar.area_ratio(SQUARE, truth, truth).item() == pytest.approx(1, abs=1e-9)

    def ratio(*answer: int) -> float:
        return planar.area_ratio(SQUARE, torch.tensor([answer]), truth).item()

    assert ratio(3, 4, 1, 2, 0) == pytest.approx(1)  # another start
    assert ratio(1, 2, 3, 0) == pytest.approx(0.5)
    assert ratio(1, 2, 3, 4) == 0  # no stop
    assert ratio(1, 3, 2, 4, 0) == 0  # crosses itself
    assert ratio(1, 2, 0, -1) == 0  # two corners
    assert ratio(1, 2, 3, 1, 0) == 0  # a corner twice
    assert ratio(0, -1, -1, -1) == 0  # stops at once


def test_comparing_answers() -> None:
    truth = planar.convex_hull(SQUARE)
    turned, wrong, open_ = torch.tensor([[2, 3, 4, 1, 0]]), torch.tensor([[1, 3, 2, 4, 0]]), torch.tensor([[1, 2, 3, 4]])
    assert planar.same_polygon(turned, truth).item()
    assert not planar.same_answer(turned, truth).item()
    assert planar.same_answer(torch.tensor([[1, 2, 3, 4, 0, 0, 0]]), truth).item()  # a search pads with stop
    assert not planar.same_polygon(wrong, truth).item()
    assert not planar.same_answer(open_, truth).item()
    assert not planar.same_polygon(torch.tensor([[0, -1]]), torch.tensor([[0, -1]])).item()


def test_triangle_coverage_counts_sets() -> None:
    truth = planar.delaunay(SQUARE)
    triples = torch.tensor(trimmed(truth)).view(-1, 3)
    shuffled = planar.close(triples.flip(0).flip(1).reshape(1, -1))
    share, exact = planar.triangle_coverage(shuffled, truth)
    assert (share.item(), exact.item()) == (1.0, True)
    half = planar.close(triples[: len(triples) // 2].reshape(1, -1))
    share, exact = planar.triangle_coverage(half, truth)
    assert (share.item(), exact.item()) == (0.5, False)


@pytest.mark.parametrize("label", [planar.convex_hull, planar.delaunay])
@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.rand(2, 2, 2), "at least 3"),
        (torch.rand(2, 5, 3), r"shape \(batch, n, 2\)"),
        (torch.rand(5, 2), r"shape \(batch, n, 2\)"),
        (torch.tensor([[[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]]), "instance 0 lie on one line"),
        (torch.tensor([[[0.0, 0.0], [0.5, 0.5], [0.0, 0.0], [1.0, 0.0]]]), "points 1 and 3 coincide"),
        (torch.tensor([[[0.0, 0.0], [0.5, float("nan")], [1.0, 0.0]]]), "instance 0 holds NaN"),
        (torch.tensor([[[0.0, 0.0], [0.5, float("inf")], [1.0, 0.0]]]), "instance 0 holds NaN"),
    ],
)
def test_bad_points_are_refused(label, points: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label(points)


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="at least 1, got batch=0"):
        planar.sample_points(0, 3)
    with pytest.raises(ValueError, match="at most 16 points, got n=17"):
        planar.shortest_tour(torch.rand(1, 17, 2))
    with pytest.raises(ValueError, match="at least 3"):
        planar.shortest_tour(torch.rand(1, 2, 2))
