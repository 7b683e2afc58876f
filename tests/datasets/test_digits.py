import pytest
import torch
from sklearn.datasets import load_digits

from mtlearn.datasets.digits import digit_patches, digits, patches, split_digits
from mtlearn.lab.seeds import stream


def test_digits_are_those_of_scikit_learn() -> None:
    found = digits()
    assert found.images.shape == (len(found), 8, 8) == (1797, 8, 8)
    assert (found.images * 16).double().numpy().tolist() == load_digits().images.tolist()
    assert found.labels.tolist() == load_digits().target.tolist()


def test_no_image_is_in_both_parts() -> None:
    train, test = split_digits(generator=stream(3, "split"))
    assert (len(train), len(test)) == (1200, 597)
    both = torch.cat([train.images, test.images]).flatten(1)
    assert sorted(both.tolist()) == sorted(digits().images.flatten(1).tolist())
    again, _ = split_digits(generator=stream(3, "split"))
    assert torch.equal(again.images, train.images)
    with pytest.raises(ValueError, match="train must be between 1 and 1796 images, got 1797"):
        split_digits(generator=stream(0), train=1797)


def test_patches_tile_the_image_row_by_row() -> None:
    image = torch.arange(48.0).view(6, 8)
    tiles = patches(image, 2)
    assert tiles.shape == (12, 4)
    assert tiles[0].tolist() == [0, 1, 8, 9]
    assert tiles[1].tolist() == [2, 3, 10, 11]
    assert tiles[4].tolist() == [16, 17, 24, 25]
    assert torch.equal(patches(image.expand(3, 5, -1, -1), 2)[2, 4], tiles)
    with pytest.raises(ValueError, match="patches of 4 x 4 do not tile an image of 6 x 8"):
        patches(image, 4)


def test_drawn_patches_are_patches_of_the_source() -> None:
    train, _ = split_digits(generator=stream(0, "split"))
    found = digit_patches(train, 50, count=4, generator=stream(0, "draw"))
    assert found.shape == (50, 4, 16)
    known = {tuple(row) for row in patches(train.images, 4).flatten(0, 1).tolist()}
    assert all(tuple(row) in known for row in found.flatten(0, 1).tolist())
