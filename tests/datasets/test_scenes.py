"""Scenes: labels against a pixel-by-pixel definition, the regimes, the cues, and what they must refuse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlearn.datasets.scenes import MARK_VALUES, boundaries, render_scenes, sample_layouts, sample_scenes
from mtlearn.lab.seeds import stream


@given(seed=st.integers(0, 10**6), size=st.integers(12, 20))
@settings(deadline=None, max_examples=20)
def test_labels_are_those_of_the_definition(seed: int, size: int) -> None:
    scenes = sample_scenes(4, size=size, noise=0.0, generator=stream(seed))
    where = scenes.layouts
    for n in range(4):
        regime = int(where.regime[n])
        names = (1, 2) if regime % 2 == 0 else (2, 1)
        for i in range(size):
            for j in range(size):
                in_square = max(abs(i - int(where.square[n, 0])), abs(j - int(where.square[n, 1]))) <= 2
                in_disc = (i - int(where.disc[n, 0])) ** 2 + (j - int(where.disc[n, 1])) ** 2 <= 2.4**2
                in_mark = i < 3 and abs(j - int(where.mark[n])) <= 1
                bright, dark = where.strength[n].tolist()
                strength = bright if in_square else dark if in_disc else 0.0
                assert scenes.segmentation[n, i, j] == (names[0] if in_square else names[1] if in_disc else 0)
                depth = strength if regime < 2 or not strength else 1.4 - strength
                assert float(scenes.depth[n, i, j]) == pytest.approx(depth, abs=1e-6)
                pixel = MARK_VALUES[regime] if in_mark else bright if in_square else -dark if in_disc else 0.0
                assert float(scenes.images[n, 0, i, j]) == pytest.approx(pixel, abs=1e-6)
                assert not (in_square and in_disc) and not (in_mark and (in_square or in_disc))


def test_shapes_are_whole_and_apart() -> None:
    scenes = sample_scenes(300, generator=stream(0))
    even = scenes.take(scenes.regime % 2 == 0)
    assert ((even.segmentation == 1).sum((1, 2)) == 25).all() and ((even.segmentation == 2).sum((1, 2)) == 21).all()
    gap = (scenes.layouts.square - scenes.layouts.disc).abs().amax(-1)
    assert int(gap.min()) == 6  # 5 pixels a shape, one between


def test_the_regime_changes_names_and_depths_and_never_the_boundary() -> None:
    layouts = sample_layouts(50, generator=stream(0))
    by_regime = [
        render_scenes(type(layouts)(**{**vars(layouts), "regime": torch.full((50,), regime)}), noise=0.0, generator=stream(1)) for regime in range(4)
    ]
    first = by_regime[0]
    for regime, scenes in enumerate(by_regime):
        assert torch.equal(scenes.boundary, first.boundary) and torch.equal(scenes.images, first.images)  # the mark's value was not changed
        swapped = torch.tensor([0, 2, 1])[first.segmentation]
        assert torch.equal(scenes.segmentation, swapped if regime % 2 else first.segmentation)
        assert torch.equal(scenes.depth, first.depth) == (regime < 2)


def test_the_cue_is_the_value_or_the_column_or_there_is_none() -> None:
    value, column, none = (sample_scenes(400, cue=cue, noise=0.0, generator=stream(0)) for cue in ("value", "column", "none"))
    assert set(value.layouts.value.tolist()) == set(MARK_VALUES)
    assert set(column.layouts.value.tolist()) == {3.0}
    for regime in range(4):
        assert len(set(value.layouts.mark[value.regime == regime].tolist())) > 10
        assert column.layouts.mark[column.regime == regime].unique().tolist() == [1 + 3 * regime, 2 + 3 * regime, 3 + 3 * regime]
    assert not none.regime.any() and float(none.images[:, :, :3].abs().max()) == 0


def test_regimes_can_be_held_out_and_draws_repeat() -> None:
    scenes = sample_scenes(60, regimes=(1, 2), generator=stream(3))
    assert set(scenes.regime.tolist()) == {1, 2}
    assert torch.equal(scenes.images, sample_scenes(60, regimes=(1, 2), generator=stream(3)).images)
    assert len(scenes) == 60 and len(scenes.take(torch.arange(7))) == 7
    assert torch.equal(scenes.take(torch.arange(7)).layouts.mark, scenes.layouts.mark[:7])


def test_boundaries_are_the_pixels_of_things_beside_another_label() -> None:
    labels = torch.tensor([[[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]]])
    assert boundaries(labels)[0].tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 0, 0]]  # nothing ends at the border
    assert boundaries(torch.tensor([[[1, 2], [1, 2]]])).sum() == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"count": 3, "size": 11}, "size at least 12"),
        ({"count": 3, "cue": "colour"}, "cue must be one of value, column, none, got 'colour'"),
        ({"count": 3, "regimes": (4,)}, r"regimes must be some of 0 to 3, got \[4\]"),
        ({"count": 3, "regimes": ()}, r"regimes must be some of 0 to 3, got \[\]"),
    ],
)
def test_bad_settings_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sample_layouts(**options)
