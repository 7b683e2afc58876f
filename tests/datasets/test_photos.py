"""Crops of two photos: disjoint halves, pixels where they say they are, and labels of the nearest colour."""

import pytest
import torch
from sklearn.datasets import load_sample_image

from mtlearn.datasets.photos import PHOTOS, colour_centres, colour_map, photo_crops, photo_half, photo_segments
from mtlearn.lab.seeds import stream


@pytest.mark.parametrize("name", PHOTOS)
def test_halves_are_disjoint_and_make_the_photo(name: str) -> None:
    both = torch.cat([photo_half(name, "train"), photo_half(name, "test")], 2)
    assert torch.equal((both * 255).round().to(torch.uint8).permute(1, 2, 0), torch.tensor(load_sample_image(name)))


def test_crops_are_pixels_of_their_half() -> None:
    crops = photo_crops("test", 40, size=5, step=3, generator=stream(0, "crops"))
    assert crops.shape == (40, 3, 5, 5)
    seen = set()
    for crop in crops:
        found = []
        for name in PHOTOS:
            half = photo_half(name, "test")
            corners = (half[:, :-12, :-12] == crop[:, :1, :1]).all(0).nonzero().tolist()  # where its first pixel lies
            found += [name for top, left in corners if torch.equal(half[:, top : top + 13 : 3, left : left + 13 : 3], crop)]
        assert found, "every crop lies in a test half"
        seen.update(found)
    assert seen == set(PHOTOS)
    assert torch.equal(crops, photo_crops("test", 40, size=5, step=3, generator=stream(0, "crops")))


def test_segments_label_each_pixel_by_the_nearest_centre_of_training() -> None:
    images, labels = photo_segments("train", 50, size=16, step=4, generator=stream(1, "segments"))
    assert torch.equal(images, photo_crops("train", 50, size=16, step=4, generator=stream(1, "segments")))
    assert labels.shape == (50, 16, 16)
    assert set(labels.unique().tolist()) == {0, 1, 2, 3}
    centres = colour_centres(4, 4.0)
    assert (centres.sum(1).diff() > 0).all(), "dark to light"
    for label, centre in enumerate(centres):
        mean = images.permute(0, 2, 3, 1)[labels == label].mean(0)
        assert torch.cdist(mean[None], centres).argmin() == label, f"pixels of a label have its colour on average: {centre}"
    unblurred = torch.cdist(photo_half("china.jpg", "train").flatten(1).T, colour_centres(3, 0.0)).argmin(1)
    assert torch.equal(colour_map("china.jpg", "train", 3, 0.0).flatten(), unblurred)


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"photo must be one of .* and part 'train' or 'test', got 'china.jpg', 'left'"):
        photo_half("china.jpg", "left")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a crop of 100 pixels at every 4 covers 397 pixels; half a photo has 427 x 320"):
        photo_crops("train", 1, size=100, step=4, generator=stream(0))
    with pytest.raises(ValueError, match="colours must be at least 1 and blur at least 0, got 0, 1"):
        photo_segments("train", 1, size=8, colours=0, generator=stream(0))
