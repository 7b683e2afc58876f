"""Captions and moving digits."""

import torch

from mtlearn.datasets.digits import CANVAS, FRAMES, IMAGE_CAPTIONS, MOTIONS, NAMES, SIZE, Digits, clip_captions, digits, image_captions, moving_digits
from mtlearn.lab.seeds import stream


def test_the_whole_digit_is_in_every_frame_and_moves_as_told() -> None:
    ink = digits().take(torch.arange(400))
    full = Digits(torch.ones(400, SIZE, SIZE), ink.labels)  # a full square shows where the digit's frame is
    clips, frames = moving_digits(ink, generator=stream(0, "clips")), moving_digits(full, generator=stream(0, "clips"))
    assert clips.frames.shape == (400, FRAMES, CANVAS, CANVAS) and len(clips) == 400
    torch.testing.assert_close(clips.frames.sum((2, 3)), ink.images.sum((1, 2))[:, None].expand(-1, FRAMES))
    assert torch.equal(clips.motions, frames.motions) and set(clips.motions.tolist()) == set(range(5))
    assert frames.frames.sum((2, 3)).eq(SIZE * SIZE).all()
    rows, columns = frames.frames.amax(3).argmax(2), frames.frames.amax(2).argmax(2)  # (n, frames): of the upper left corner
    down, right = rows.diff(dim=1), columns.diff(dim=1)
    told = {"still": (0, 0), "left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    for motion, name in enumerate(MOTIONS):
        mine = clips.motions == motion
        assert down[mine].eq(told[name][0]).all() and right[mine].eq(told[name][1]).all()
    n = 3
    corner = clips.frames[n, 0, rows[n, 0] : rows[n, 0] + SIZE, columns[n, 0] : columns[n, 0] + SIZE]
    assert torch.equal(corner, ink.images[n])
    assert torch.equal(moving_digits(ink, generator=stream(0, "clips")).frames, clips.frames)


def test_captions_name_digit_and_motion() -> None:
    labels, motions = torch.arange(10).repeat(30), torch.arange(5).repeat(60)
    found = image_captions(labels, generator=stream(0, "captions"))
    assert all(NAMES[label] in text.split() for label, text in zip(labels.tolist(), found, strict=True))
    blank = {" ".join("{}" if word == NAMES[label] else word for word in text.split()) for label, text in zip(labels.tolist(), found, strict=True)}
    assert blank == {*IMAGE_CAPTIONS, "an {}", "this is an {}", "a picture of an {}"}
    assert not any("a eight" in text or "an seven" in text for text in found)
    told = clip_captions(labels, motions, generator=stream(0, "captions"))
    for label, motion, text in zip(labels.tolist(), motions.tolist(), told, strict=True):
        assert NAMES[label] in text.split()
        assert [way for way in MOTIONS[1:] if way in text.split()] == ([] if motion == 0 else [MOTIONS[motion]])
    assert len(set(told)) > 140
