"""Letters and words of matplotlib's fonts, and the canvases made of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlearn.datasets.glyphs import ALPHABET, FONTS, centred_letters, draw_text, letter_scenes, letters
from mtlearn.lab.seeds import stream


@pytest.mark.parametrize("font", FONTS)
def test_a_line_of_text_keeps_heights_and_baseline(font: str) -> None:
    tall, low, below = (draw_text(word, height=24, font=font) for word in ("H", "x", "g"))
    rows = [(image.amax(1) > 0.3).nonzero()[:, 0] for image in (tall, low, below)]
    assert rows[0][0] < rows[1][0], "a capital is taller than an x"
    assert abs(int(rows[0][-1]) - int(rows[1][-1])) <= 1, "on one baseline"
    assert rows[2][-1] > rows[1][-1], "a g hangs below it"
    assert all(image.shape[0] == 24 and image.min() >= 0 and image.max() <= 1.0 for image in (tall, low, below))


def test_words_are_as_wide_as_their_letters_and_ink_touches_both_sides() -> None:
    one, two = draw_text("m", height=16), draw_text("mm", height=16)
    assert 1.6 * one.shape[1] < two.shape[1] < 2.4 * one.shape[1]
    assert draw_text("i", height=16).shape[1] < one.shape[1]
    for word in ("gnu", "Learn"):
        drawn = draw_text(word, height=16)
        assert drawn[:, 0].max() > 0
        assert drawn[:, -1].max() > 0
    again = draw_text("gnu", height=16)
    again.zero_()
    assert draw_text("gnu", height=16).max() > 0, "what is handed out is a copy"


def test_letters_fill_their_square_and_differ() -> None:
    shapes = letters("ABH", size=8)
    assert shapes.shape == (len(FONTS), 3, 8, 8)
    ink = shapes > 0
    assert (ink.any(-1).sum(-1).maximum(ink.any(-2).sum(-1)) == 8).all(), "the longer side fills the square"
    flat = shapes.flatten(0, 1).flatten(1)
    assert len(flat.unique(dim=0)) == len(flat)


@given(seed=st.integers(0, 10**6), most=st.integers(1, 4))
@settings(deadline=None, max_examples=20)
def test_scenes_say_where_their_letters_are(seed: int, most: int) -> None:
    scenes = letter_scenes(30, most=most, noise=0.0, generator=stream(seed, "scenes"))
    numbers = scenes.present.sum((1, 2))
    assert ((numbers >= 1) & (numbers <= most)).all()
    assert torch.equal(scenes.present > 0, scenes.label >= 0)
    assert (scenes.offset[scenes.present == 0] == 0).all()
    assert ((scenes.offset >= 0) & (scenes.offset < 1)).all()
    row = (torch.arange(4)[None, :, None] + scenes.offset[..., 0]) * 4
    column = (torch.arange(4)[None, None, :] + scenes.offset[..., 1]) * 4
    alone = (numbers == 1).nonzero()[:, 0]
    for scene in alone[:5].tolist():
        at = scenes.present[scene].nonzero()[0]
        top, left = int(row[scene][tuple(at)]) - 4, int(column[scene][tuple(at)]) - 4
        shape = scenes.images[scene, top : top + 8, left : left + 8]
        assert shape.sum() == pytest.approx(float(scenes.images[scene].sum())), "all ink lies in the letter's square"
        which = ALPHABET.index(ALPHABET[int(scenes.label[scene][tuple(at)])])
        assert any(torch.equal(shape, font[which]) for font in letters())


def test_scenes_repeat_and_noise_stays_in_range() -> None:
    first, again = (letter_scenes(20, generator=stream(1, "scenes")) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert first.images.min() >= 0 and first.images.max() <= 1


def test_centred_letters_stay_near_the_middle() -> None:
    images, labels = centred_letters(200, noise=0.0, jitter=2, generator=stream(0, "letters"))
    assert set(labels.tolist()) == set(range(10))
    assert (images[:, :2] == 0).all() and (images[:, -2:] == 0).all() and (images[:, :, :2] == 0).all()
    assert (images[:, 2] > 0).any() and (images[:, 13] > 0).any(), "some are shifted as far as they may"
    still, _ = centred_letters(20, noise=0.0, jitter=0, generator=stream(0, "letters"))
    assert (still[:, :4] == 0).all() and (still[:, 12:] == 0).all()


def test_what_cannot_be_drawn_is_refused() -> None:
    draws = stream(0)
    with pytest.raises(ValueError, match=r"font must be one of DejaVu Sans, .*, got 'Comic'"):
        draw_text("a", height=12, font="Comic")
    with pytest.raises(ValueError, match="height must be at least 4 pixels, got 3"):
        draw_text("a", height=3)
    with pytest.raises(ValueError, match="the text ' ' leaves no ink"):
        draw_text(" ", height=12)
    with pytest.raises(ValueError, match="Computer Modern has no glyph for 'Ж'"):
        draw_text("Ж", height=12, font="Computer Modern")
    with pytest.raises(ValueError, match="a letter is one character of at least 3 pixels, got 'A', 2"):
        letters("A", size=2)
    with pytest.raises(ValueError, match="letters of 20 pixels and 4 x 4 cells do not fit a canvas of 16 x 16"):
        letter_scenes(1, letter=20, generator=draws)
    with pytest.raises(ValueError, match="most must be between 1 and 9, the cells that a letter's centre can lie in, got 10"):
        letter_scenes(1, most=10, generator=draws)
    with pytest.raises(ValueError, match="a letter of 8 pixels shifted by up to 5 leaves a canvas of 16 x 16"):
        centred_letters(1, jitter=5, generator=draws)
