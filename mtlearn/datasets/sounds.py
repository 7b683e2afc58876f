"""Sounds: telephone key tones that need no download, and recordings of spoken digits.

Both give a sequence of spectrogram frames and a shorter sequence of digits without saying where in time they are, as in speech recognition::

    keys   7 0 7            wave  ~~~~  ~~~  ~~~~     frames  25 x 32

**Key tones** (:func:`key_tones`). Dual-tone multi-frequency signalling, the standard of telephones (ITU-T Q.23): each key is the sum of two
sines, one of its row and one of its column. The waves are synthetic, white noise included; the code is real.

**Spoken digits** (:func:`spoken_digits`). The Free Spoken Digit Dataset, 3,000 recordings of 6 speakers at 8 kHz, from the benchmark ``fsdd``.
Recordings 0 to 4 of each speaker and digit are the test part, as its authors advise; the speakers are in both. :func:`spoken_sequences` strings
digits of one speaker together.

Both go through one front end, :func:`log_spectrogram`.
"""

import io
import math
import re
import tarfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtlearn.datasets.benchmarks import fetch

ROWS, COLUMNS = (697.0, 770.0, 852.0, 941.0), (1209.0, 1336.0, 1477.0)  # hertz
PLACES = ((3, 1), *((row, column) for row in range(3) for column in range(3)))  # of the keys 0 to 9: 0 stands below 8
RATE, FRAME = 4000, 64  # samples a second and a frame of the key tones
SPOKEN_RATE = 8000
TEST_INDICES = 5  # recordings 0 to 4 of each speaker and digit are for the test


@dataclass(frozen=True)
class Sounds:
    """Sequences of frames with the digits that are heard.

    Attributes:
        frames: (n, longest, bins) float32, 0 behind the end of each.
        lengths: (n,) frames that count.
        digits: (n, most) int64 from 0 to 9, -1 behind the end of each.
        counts: (n,) digits of each.
    """

    frames: Tensor
    lengths: Tensor
    digits: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def valid(self) -> Tensor:
        """(n, longest) bool: which frames count."""
        return torch.arange(self.frames.shape[1]) < self.lengths[:, None]


def log_spectrogram(waves: Tensor, *, frame: int, hop: int, bins: int) -> Tensor:
    """Log magnitudes of short-time Fourier transforms, without the constant part.

    Args:
        waves: (..., samples).
        frame: samples of a frame, with a Hann window where frames overlap.
        hop: samples from one frame to the next.
        bins: bands, each the mean of ``frame / 2 / bins`` neighbouring frequencies.

    Returns:
        (..., frames, bins); there are 1 + (samples - frame) // hop frames.

    Raises:
        ValueError: a wave is shorter than a frame, or ``bins`` does not divide half a frame.
    """
    if frame < 2 or hop < 1 or bins < 1 or (frame // 2) % bins:
        raise ValueError(f"frame and hop must be positive and bins divide frame / 2, got frame={frame}, hop={hop}, bins={bins}")
    if waves.shape[-1] < frame:
        raise ValueError(f"a wave of {waves.shape[-1]} samples is shorter than a frame of {frame}")
    window = torch.hann_window(frame) if hop < frame else torch.ones(frame)
    cut = waves.unfold(-1, frame, hop) * window.to(waves)  # (..., frames, frame)
    magnitude = torch.fft.rfft(cut)[..., 1:].abs() * (2 / float(window.sum()))
    bands: Tensor = magnitude.view(*magnitude.shape[:-1], bins, -1).mean(-1)
    return (bands + 1e-3).log()


def key_waves(keys: Sequence[int], lengths: Sequence[int], *, generator: torch.Generator) -> Tensor:
    """The clean wave of some keys, held for ``lengths`` frames each, with random phases: (sum of lengths * FRAME,).

    Raises:
        ValueError: a key is not 0 to 9, or a length is below 1.
    """
    if any(key not in range(10) for key in keys) or min(lengths, default=1) < 1 or len(keys) != len(lengths):
        raise ValueError(f"keys must be 0 to 9, each with a length of at least 1 frame, got {list(keys)} and {list(lengths)}")
    parts = []
    for key, length in zip(keys, lengths, strict=True):
        time = torch.arange(length * FRAME) / RATE
        pitch = torch.tensor([ROWS[PLACES[key][0]], COLUMNS[PLACES[key][1]]])
        phase = 2 * math.pi * torch.rand(2, generator=generator)
        parts.append(torch.sin(2 * math.pi * pitch[:, None] * time + phase[:, None]).sum(0))
    return torch.cat(parts) if parts else torch.zeros(0)


def key_tones(
    count: int, *, generator: torch.Generator, keys: tuple[int, int] = (3, 5), frames: int = 25, noise: float = 1.0, bins: int = 32
) -> Sounds:
    """Telephone numbers as sound: a key lasts 2 or 3 frames, a gap 1 or 2, all in white noise; silence with noise fills the rest.

    Args:
        count: n.
        generator: of all draws.
        keys: fewest and most keys.
        frames: of every sequence; enough for the longest, which is 5 frames a key.
        noise: standard deviation of the noise; a tone is two sines of amplitude 1.
        bins: bands of the spectrum, a divisor of 32.

    Raises:
        ValueError: a setting is out of range.
    """
    fewest, most = keys
    if count < 1 or not 1 <= fewest <= most or frames < 5 * most or noise < 0:
        raise ValueError(f"count and keys must be at least 1, frames at least 5 a key, noise 0 or more, got {count}, {keys}, {frames}, {noise}")
    number = torch.randint(fewest, most + 1, (count,), generator=generator)
    place = torch.arange(most)
    pressed = torch.randint(10, (count, most), generator=generator)
    held = torch.randint(2, 4, (count, most), generator=generator)
    gap = torch.randint(1, 3, (count, most), generator=generator)
    start = gap.cumsum(1) + held.cumsum(1) - held  # the frame in which each key begins
    # which key, if any, sounds in each frame: (n, frames, most)
    time = torch.arange(frames)[:, None]
    sounds = (time >= start[:, None]) & (time < (start + held)[:, None]) & (place < number[:, None, None])
    pitch = torch.tensor([[ROWS[row], COLUMNS[column]] for row, column in PLACES])[pressed]  # (n, most, 2)
    phase = 2 * math.pi * torch.rand(count, most, 2, generator=generator)
    seconds = torch.arange(frames * FRAME) / RATE
    sines = torch.sin(2 * math.pi * pitch[..., None] * seconds + phase[..., None]).sum(2)  # (n, most, samples)
    waves = (sines * sounds.transpose(1, 2).repeat_interleave(FRAME, -1)).sum(1)
    waves = waves + noise * torch.randn(waves.shape, generator=generator)
    spectrum = log_spectrogram(waves, frame=FRAME, hop=FRAME, bins=bins)
    digits = torch.where(place < number[:, None], pressed, -1)
    return Sounds(_standard(spectrum, torch.ones(count, frames, dtype=torch.bool)), torch.full((count,), frames), digits, number)


def _standard(frames: Tensor, valid: Tensor) -> Tensor:
    """Each sequence with mean 0 and standard deviation 1 over its frames that count, and 0 elsewhere."""
    weight = valid[..., None].to(frames)
    total = weight.sum((1, 2), keepdim=True) * frames.shape[-1]
    mean = (frames * weight).sum((1, 2), keepdim=True) / total
    centred = (frames - mean) * weight
    scaled: Tensor = centred / (centred.square().sum((1, 2), keepdim=True) / total).sqrt().clamp(min=1e-6)
    return scaled


@dataclass(frozen=True)
class Recording:
    """One spoken digit: the wave from -1 to 1 at 8 kHz, who said it, and the how-manieth time."""

    digit: int
    speaker: str
    index: int
    wave: Tensor


def read_recordings(archive: bytes) -> list[Recording]:
    """The recordings of a tar of ``<digit>_<speaker>_<index>.wav``, in the order of their names; nothing is written to disk.

    Raises:
        ValueError: it has no such file, or one is not mono sound at 8 kHz.
    """
    from scipy.io import wavfile

    found = []
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            name = re.fullmatch(r"(?:.*/)?(\d)_([a-z]+)_(\d+)\.wav", member.name)
            stream = tar.extractfile(member) if name and member.isfile() else None
            if name is None or stream is None:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", wavfile.WavFileWarning)  # some files carry a chunk of comments
                rate, samples = wavfile.read(io.BytesIO(stream.read()))
            if rate != SPOKEN_RATE or samples.ndim != 1 or samples.dtype != np.int16:
                raise ValueError(
                    f"{member.name}: expected mono 16-bit sound at {SPOKEN_RATE} Hz, got {rate} Hz, {samples.dtype}, shape {samples.shape}"
                )
            found.append(Recording(int(name[1]), name[2], int(name[3]), torch.from_numpy(samples.astype(np.float32) / 2**15)))
    if not found:
        raise ValueError("the archive has no file <digit>_<speaker>_<index>.wav")
    return found


def spoken_digits() -> tuple[list[Recording], list[Recording]]:
    """The recordings for training and for the test, from the benchmark ``fsdd``."""
    recordings = read_recordings(fetch("fsdd", "recordings.tar.gz").read_bytes())
    return [r for r in recordings if r.index >= TEST_INDICES], [r for r in recordings if r.index < TEST_INDICES]


def spoken_sequences(
    recordings: Sequence[Recording],
    count: int,
    *,
    generator: torch.Generator,
    digits: tuple[int, int] = (1, 3),
    frames: int = 160,
    frame: int = 256,
    hop: int = 128,
    bins: int = 32,
) -> Sounds:
    """Draw digits of one speaker each time and say them one after the other.

    Args:
        recordings: to draw from.
        count: n.
        generator: of all draws.
        digits: fewest and most digits of a sequence; (1, 1) is the classification of single digits.
        frames: longest sequence; what does not fit is drawn again.
        frame: samples of a frame.
        hop: samples from one frame to the next.
        bins: bands of the spectrum.

    Raises:
        ValueError: no recordings, a setting out of range, or recordings that never fit.
    """
    fewest, most = digits
    if not recordings or count < 1 or not 1 <= fewest <= most:
        raise ValueError(f"recordings, and count and digits of at least 1 are needed, got {len(recordings)} recordings, {count} and {digits}")
    speakers = sorted({r.speaker for r in recordings})
    of = {speaker: [r for r in recordings if r.speaker == speaker] for speaker in speakers}
    spectra: list[Tensor] = []
    labels: list[list[int]] = []
    for _ in range(100 * count):
        if len(spectra) == count:
            break
        mine = of[speakers[int(torch.randint(len(speakers), (), generator=generator))]]
        number = int(torch.randint(fewest, most + 1, (), generator=generator))
        chosen = [mine[i] for i in torch.randint(len(mine), (number,), generator=generator).tolist()]
        wave = torch.cat([r.wave for r in chosen])
        if frame <= len(wave) and 1 + (len(wave) - frame) // hop <= frames:
            spectra.append(log_spectrogram(wave, frame=frame, hop=hop, bins=bins))
            labels.append([r.digit for r in chosen])
    if len(spectra) < count:
        raise ValueError(f"too few of the drawn sequences fit in {frames} frames: allow more frames or fewer digits than {most}")
    lengths = torch.tensor([len(s) for s in spectra])
    padded = torch.nn.utils.rnn.pad_sequence([*spectra, torch.zeros(frames, bins)], batch_first=True)[:-1]
    told = torch.full((count, most), -1)
    for row, some in enumerate(labels):
        told[row, : len(some)] = torch.tensor(some)
    return Sounds(_standard(padded, torch.arange(frames) < lengths[:, None]), lengths, told, torch.tensor([len(some) for some in labels]))
