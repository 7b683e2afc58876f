"""Key tones, the spectrogram, and spoken digits: against the standard and, where the file is, against the published set."""

import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from real_files import REAL
from scipy.io import wavfile

from mtlearn.datasets import sounds
from mtlearn.datasets.sounds import (
    FRAME,
    RATE,
    Recording,
    key_tones,
    key_waves,
    log_spectrogram,
    read_recordings,
    spoken_digits,
    spoken_sequences,
)
from mtlearn.lab.seeds import stream


def test_the_spectrogram_is_that_of_numpy() -> None:
    wave = torch.randn(3, 640, generator=stream(0, "wave"))
    found = log_spectrogram(wave, frame=64, hop=64, bins=32)
    assert found.shape == (3, 10, 32)
    expected = np.log(np.abs(np.fft.rfft(wave.numpy().reshape(3, 10, 64)))[..., 1:] * 2 / 64 + 1e-3)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert log_spectrogram(wave, frame=64, hop=32, bins=8).shape == (3, 19, 8)
    sine = torch.sin(2 * torch.pi * 10 / 64 * torch.arange(640))  # the tenth frequency, amplitude 1
    assert log_spectrogram(sine, frame=64, hop=64, bins=32).argmax(-1).eq(9).all()
    assert log_spectrogram(sine, frame=64, hop=64, bins=32).max().exp().item() == pytest.approx(1.001, abs=1e-3)


@pytest.mark.parametrize(("key", "low", "high"), [(1, 697, 1209), (3, 697, 1477), (5, 770, 1336), (9, 852, 1477), (0, 941, 1336), (7, 852, 1209)])
def test_keys_have_the_tones_of_the_standard(key: int, low: int, high: int) -> None:
    wave = key_waves([key], [60], generator=stream(0, "wave"))
    spectrum = torch.fft.rfft(wave).abs()
    frequencies = torch.fft.rfftfreq(len(wave), 1 / RATE)
    best = frequencies[spectrum.topk(8).indices]
    assert (best - low).abs().min() < 2 and (best - high).abs().min() < 2
    assert len(key_waves([], [], generator=stream(0, "wave"))) == 0
    assert len(key_waves([key, key], [2, 3], generator=stream(0, "wave"))) == 5 * FRAME


def test_key_tones_hold_what_they_say_and_repeat() -> None:
    found = key_tones(200, generator=stream(0, "keys"), noise=0.0)
    again = key_tones(200, generator=stream(0, "keys"), noise=0.0)
    assert torch.equal(found.frames, again.frames) and torch.equal(found.digits, again.digits)
    assert found.frames.shape == (200, 25, 32) and len(found) == 200 and bool(found.valid.all())
    assert set(found.counts.tolist()) == {3, 4, 5}
    assert torch.equal((found.digits >= 0).sum(1), found.counts)
    torch.testing.assert_close(found.frames.mean((1, 2)), torch.zeros(200), atol=1e-5, rtol=0)
    silent = found.frames.amax(-1) < 0
    runs = ((~silent).int().diff(dim=1, prepend=torch.zeros(200, 1, dtype=torch.int32)) == 1).sum(1)
    assert torch.equal(runs, found.counts)  # as many stretches of sound as keys


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: key_tones(0, generator=g), "count and keys must be at least 1"),
        (lambda g: key_tones(1, generator=g, frames=24), "frames at least 5 a key"),
        (lambda g: key_tones(1, generator=g, keys=(4, 3)), "count and keys must be at least 1"),
        (lambda g: key_waves([10], [2], generator=g), "keys must be 0 to 9"),
        (lambda g: key_waves([1], [0], generator=g), "a length of at least 1 frame"),
        (lambda g: log_spectrogram(torch.zeros(10), frame=64, hop=64, bins=32), "a wave of 10 samples is shorter than a frame of 64"),
        (lambda g: log_spectrogram(torch.zeros(100), frame=64, hop=64, bins=5), "bins divide frame / 2"),
        (lambda g: spoken_sequences([], 1, generator=g), "got 0 recordings"),
    ],
)
def test_bad_settings_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(stream(0, "bad"))


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def wav(samples: np.ndarray, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    wavfile.write(buffer, rate, samples)
    return buffer.getvalue()


def test_recordings_are_read_from_an_archive_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    samples = np.arange(-400, 400, dtype=np.int16)
    content = archive({"recordings/7_ann_12.wav": wav(samples), "recordings/0_ann_3.wav": wav(samples[:600]), "recordings/readme.txt": b"no"})
    first, second = read_recordings(content)
    assert (first.digit, first.speaker, first.index, len(first.wave)) == (0, "ann", 3, 600)
    assert (second.digit, second.index) == (7, 12)
    torch.testing.assert_close(second.wave, torch.arange(-400, 400) / 2**15)
    path = tmp_path / "recordings.tar.gz"
    path.write_bytes(content)
    monkeypatch.setattr(sounds, "fetch", lambda *names: path)
    train, test = spoken_digits()
    assert [r.index for r in train] == [12] and [r.index for r in test] == [3]
    with pytest.raises(ValueError, match=r"7_ann_1\.wav: expected mono 16-bit sound at 8000 Hz, got 4000 Hz"):
        read_recordings(archive({"7_ann_1.wav": wav(samples, 4000)}))
    with pytest.raises(ValueError, match="the archive has no file"):
        read_recordings(archive({"note.txt": b"no"}))


def test_sequences_are_of_one_speaker_and_fit() -> None:
    noise = stream(0, "speech")
    recordings = [Recording(digit, who, 0, torch.randn(1000 + 2000 * (who == "bo"), generator=noise)) for digit in range(10) for who in ("al", "bo")]
    found = spoken_sequences(recordings, 30, generator=stream(1, "speech"), digits=(1, 3), frames=60)
    assert found.frames.shape == (30, 60, 32) and int(found.lengths.max()) <= 60
    assert torch.equal((found.digits >= 0).sum(1), found.counts)
    lengths = {1 + (count * size - 256) // 128 for size in (1000, 3000) for count in (1, 2, 3)}
    assert set(found.lengths.tolist()) <= lengths  # sums of recordings of one length: of one speaker
    assert not found.frames[~found.valid].any()
    first = found.frames[0, : found.lengths[0]]
    assert float(first.mean()) == pytest.approx(0, abs=1e-5) and float(first.std()) == pytest.approx(1, abs=0.01)
    with pytest.raises(ValueError, match="too few of the drawn sequences fit in 5 frames"):
        spoken_sequences(recordings, 2, generator=stream(1, "speech"), frames=5)


def test_the_published_recordings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not (REAL / "fsdd").is_dir():
        pytest.skip("no benchmark files here: let MTLEARN_DATA name a folder with fsdd/recordings.tar.gz")
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    monkeypatch.setenv("MTLEARN_CACHE", str(tmp_path / "cache"))
    train, test = spoken_digits()
    assert (len(train), len(test)) == (2700, 300)
    assert set(Counter((r.speaker, r.digit) for r in test).values()) == {5}
    assert len({r.speaker for r in train}) == 6 and all(float(r.wave.abs().max()) <= 1 for r in train)
    found = spoken_sequences(test, 20, generator=stream(0, "speech"))
    assert found.frames.isfinite().all() and int(found.counts.max()) <= 3
