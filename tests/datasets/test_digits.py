import pytest
import torch
from sklearn.datasets import load_digits

from mtlearn.datasets.digits import HALF_SHUFFLES, TRANSFORMS, digit_patches, digits, patches, rotated, split_digits, transformed
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


def test_rotated_images_turn_counter_clockwise_about_the_centre() -> None:
    images = digits().images[:5]
    assert torch.equal(rotated(images, 0), images)
    for quarters in (1, 2, 3):
        torch.testing.assert_close(rotated(images, 90 * quarters), torch.rot90(images, quarters, (-2, -1)), atol=1e-5, rtol=0)
    torch.testing.assert_close(rotated(images, 375), rotated(images, 15))
    alone = torch.stack([rotated(image, 15) for image in images])
    assert torch.equal(rotated(images, 15), alone)
    disc = (torch.arange(8)[:, None] - 3.5).square() + (torch.arange(8) - 3.5).square()
    round_picture = (-disc / 12).exp()  # looks the same from every side, up to interpolation and what comes in at the corners
    torch.testing.assert_close(rotated(round_picture, 45)[2:-2, 2:-2], round_picture[2:-2, 2:-2], atol=0.05, rtol=0)
    assert rotated(torch.zeros(2, 28, 28), 30).shape == (2, 28, 28)


# ------------------------------------------------------------------------------------------------------------------------ transforms


def test_every_transform_is_what_its_name_says() -> None:
    images = digits().images[:5]
    made = {name: transformed(images, name) for name in (*TRANSFORMS, *HALF_SHUFFLES)}
    assert torch.equal(made["rotate 90"].rot90(3, (1, 2)), images)
    assert torch.equal(made["rotate 270"].rot90(1, (1, 2)), images)
    assert torch.equal(1 - made["invert"], images)
    assert torch.equal(made["flip left-right"].flip(2), images)
    assert torch.equal(made["flip top-bottom"].flip(1), images)
    assert torch.equal(made["shift"].roll((-3, -3), (1, 2)), images)
    torch.testing.assert_close(made["difference"].cumsum(2), images)
    for name in ("shuffle", *HALF_SHUFFLES):
        assert torch.equal(made[name].flatten(1).sort(1).values, images.flatten(1).sort(1).values)
    ramp = torch.arange(64.0).view(1, 8, 8)
    moved = [(transformed(ramp, name) != ramp).sum().item() for name in HALF_SHUFFLES]
    assert max(moved) <= 32
    assert min(moved) >= 28
    assert len({tuple(transformed(ramp, name).flatten().tolist()) for name in made}) == 20


def test_transforms_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="there is no transform 'twist'; there are rotate 90"):
        transformed(digits().images[:1], "twist")
    with pytest.raises(ValueError, match=r"\(n, side, side\), got \(1, 8, 7\)"):
        transformed(digits().images[:1, :, :7], "shift")
