"""The five tasks as tensors: which library a docstring is of, which keys are pressed, which digit, clip or function a sentence means.

==========  =====================================================  ================================================================
task        data                                                   labels
==========  =====================================================  ================================================================
``text``    docstrings of five scientific packages (real)          the package; its names are blanked out
``sound``   telephone key tones (synthetic, a real standard),      the keys
            or spoken digits (real: ``spoken``)
``image``   scikit-learn's digits (real) and captions              the digit
``video``   the same digits, moving, and captions                  digit and motion
``code``    Python's standard library (real): docstring, code      the function
==========  =====================================================  ================================================================

Training and test never share an image, a docstring or a module of the library. Labels are for the first ``labels`` rows of a training part alone; the
rest serves pre-training.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mtlearn.datasets.digits import (
    CANVAS,
    FRAMES,
    SIZE,
    TRAIN,
    Clips,
    Digits,
    clip_captions,
    image_captions,
    moving_digits,
    patches,
    split_digits,
)
from mtlearn.datasets.documentation import LIBRARIES, documentation, split
from mtlearn.datasets.functions import words
from mtlearn.datasets.sounds import Sounds, key_tones, spoken_digits, spoken_sequences
from mtlearn.datasets.source_code import SourceFunction, standard_library
from mtlearn.lab.seeds import stream
from mtlearn.moe.skillnet.method import PAD, UNKNOWN, Inputs, Modality

RESERVED = ("<pad>", "<unknown>", "<hidden>")  # word numbers 0 to 2
BLANKED = frozenset(("numpy", "np", "scipy", "sp", "networkx", "nx", "sklearn", "scikit", "learn", "torch", "pytorch"))
PATCH = {"image": 2, "video": 4}  # pixels a side


@dataclass(frozen=True)
class Data:
    """Sizes of the five tasks.

    Attributes:
        text: words of a text, docstring or caption, the rest is cut off.
        code: tokens of a function's code.
        words: of the vocabulary.
        sound: frames of a sound.
        bins: of the spectrum.
        noise: of the key tones.
        spoken: spoken digits in the place of key tones.
        spoken_most: most digits of a spoken sequence.
        unlabelled: sounds and clips in a training part.
        tests: sizes of the test parts.
    """

    text: int = 20
    code: int = 32
    words: int = 2000
    sound: int = 25
    bins: int = 32
    noise: float = 1.0
    spoken: bool = False
    spoken_most: int = 3
    unlabelled: int = 1200
    tests: Mapping[str, int] | tuple[tuple[str, int], ...] = (("text", 600), ("sound", 300), ("image", 500), ("video", 500), ("code", 600))

    def modalities(self) -> dict[str, Modality]:
        """How each modality becomes tokens."""
        side, frame = SIZE // PATCH["image"], CANVAS // PATCH["video"]
        return {
            "text": Modality((self.text,)),
            "code": Modality((self.code,)),
            "image": Modality((side, side), features=PATCH["image"] ** 2),
            "video": Modality((FRAMES, frame, frame), features=PATCH["video"] ** 2),
            "sound": Modality((self.sound // self.stride,), features=self.bins, kernel=3 if not self.spoken else 5, stride=self.stride),
        }

    @property
    def stride(self) -> int:
        """Of the convolution over frames: spoken digits last longer."""
        return 2 if self.spoken else 1


@dataclass(frozen=True)
class Examples:
    """Examples of a task.

    Attributes:
        calls: the inputs of its calls, row by row.
        labels: (n,) classes or groups; for sounds (n, most) digits plus one, 0 behind the end.
        lengths: (n,) of the label sequences; None elsewhere.
    """

    calls: tuple[Inputs, ...]
    labels: Tensor
    lengths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> "Examples":
        """The examples of ``rows``."""
        return Examples(tuple(call.take(rows) for call in self.calls), self.labels[rows], None if self.lengths is None else self.lengths[rows])

    def to(self, device: torch.device) -> "Examples":
        """The same on a device."""
        calls = tuple(Inputs(call.values.to(device), call.valid.to(device)) for call in self.calls)
        return Examples(calls, self.labels.to(device), None if self.lengths is None else self.lengths.to(device))


@dataclass(frozen=True)
class Tasks:
    """Training and test examples by task, and the vocabulary of text and code."""

    train: Mapping[str, Examples]
    test: Mapping[str, Examples]
    vocabulary: tuple[str, ...]


def to_words(texts: Sequence[Sequence[str]], vocabulary: Sequence[str], length: int) -> Inputs:
    """The first ``length`` words of each text as numbers; those that the vocabulary lacks are 1, behind the end is 0."""
    number = {word: i for i, word in enumerate(vocabulary)}
    values = torch.full((len(texts), length), PAD)
    for row, text in enumerate(texts):
        found = [number.get(word, UNKNOWN) for word in text[:length]]
        values[row, : len(found)] = torch.tensor(found, dtype=torch.int64)
    return Inputs(values, values != PAD)


def vocabulary_of(texts: Iterable[Sequence[str]], always: Iterable[str], size: int) -> tuple[str, ...]:
    """Reserved words, those of ``always``, then the most frequent until there are ``size``; shorter where there are too few."""
    counts = Counter(word for text in texts for word in text)
    first = (*RESERVED, *sorted(set(always)))
    rest = sorted(counts, key=lambda word: (-counts[word], word))
    return tuple(dict.fromkeys((*first, *rest)))[:size]


@cache
def _documents() -> tuple[tuple[tuple[str, ...], int], ...]:
    """Words and library of every page with an extended summary."""
    found = []
    for page in documentation().pages:
        if extended := page.section("Extended Summary"):
            told = tuple("<unknown>" if word in BLANKED else word for word in words(f"{page.summary} {extended}"))
            found.append((told, LIBRARIES.index(page.library)))
    return tuple(found)


@cache
def functions() -> tuple[SourceFunction, ...]:
    """Documented functions of the standard library, one for each docstring."""
    return tuple({function.docstring: function for function in standard_library().functions}.values())


def caption_words() -> set[str]:
    """All words that captions are made of."""
    labels = torch.arange(10).repeat(200)
    draws = stream(0, "words of captions")
    motions = torch.randint(5, labels.shape, generator=draws)
    return {word for text in (*image_captions(labels, generator=draws), *clip_captions(labels, motions, generator=draws)) for word in words(text)}


def _part(name: str, seed: int) -> float:
    """A number in [0, 1) that a name and a seed decide."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big") / 2**56


def _shuffled(rows: Sequence[int], most: int | None, generator: torch.Generator) -> list[int]:
    order = torch.randperm(len(rows), generator=generator)[:most].tolist()
    return [rows[i] for i in order]


def image_inputs(images: Tensor) -> Inputs:
    """Images (n, 8, 8) as patches (n, 16, 4), centred."""
    cut = patches(images, PATCH["image"]) - 0.3  # about the mean ink
    return Inputs(cut, torch.ones(cut.shape[:2], dtype=torch.bool))


def clip_inputs(frames: Tensor) -> Inputs:
    """Clips (n, 4, 12, 12) as patches (n, 36, 16), frame by frame, centred."""
    cut = patches(frames, PATCH["video"]).flatten(1, 2) - 0.14
    return Inputs(cut, torch.ones(cut.shape[:2], dtype=torch.bool))


def _sound_examples(sounds: Sounds) -> Examples:
    return Examples((Inputs(sounds.frames, sounds.valid),), sounds.digits + 1, sounds.counts)


def _cycled(source: Digits, count: int, generator: torch.Generator) -> Digits:
    return source.take(torch.randint(len(source), (count,), generator=generator))


def make_tasks(data: Data, seed: int, vocabulary: Sequence[str] | None = None) -> Tasks:
    """Draw the five tasks of a seed.

    Args:
        data: sizes.
        seed: of the splits and of all draws.
        vocabulary: that of a trained model; made of the training texts when omitted.
    """
    tests = dict(data.tests)
    draws = {name: stream(seed, "tasks", name) for name in ("text", "sound", "image", "video", "code", "digits")}

    documents = _documents()
    parts = split(documentation().pages, seed=seed, validation=0.0, by="summary")
    pages = [i for i, page in enumerate(documentation().pages) if page.section("Extended Summary")]
    place = {page: row for row, page in enumerate(pages)}
    text_rows = {
        "train": _shuffled([place[i] for i in parts.train if i in place], None, draws["text"]),
        "test": _shuffled([place[i] for i in parts.test if i in place], tests["text"], draws["text"]),
    }
    known = functions()
    code_rows = {
        "train": _shuffled([i for i, f in enumerate(known) if _part(f.module, seed) < 0.7], None, draws["code"]),
        "test": _shuffled([i for i, f in enumerate(known) if _part(f.module, seed) >= 0.7], tests["code"], draws["code"]),
    }
    docstrings, code = [words(f.docstring)[: data.text] for f in known], [f.pieces()[: data.code] for f in known]
    seen = [*(documents[i][0][: data.text] for i in text_rows["train"]), *(row for i in code_rows["train"] for row in (docstrings[i], code[i]))]
    vocabulary = vocabulary_of(seen, caption_words(), data.words) if vocabulary is None else tuple(vocabulary)

    def texts(rows: Sequence[Sequence[str]]) -> Inputs:
        return to_words(rows, vocabulary, data.text)

    examples: dict[str, dict[str, Examples]] = {"train": {}, "test": {}}
    images = dict(zip(("train", "test"), split_digits(generator=draws["digits"], train=TRAIN), strict=True))
    spoken = dict(zip(("train", "test"), spoken_digits(), strict=True)) if data.spoken else {}
    for part, found in examples.items():
        rows = text_rows[part]
        found["text"] = Examples((texts([documents[i][0] for i in rows]),), torch.tensor([documents[i][1] for i in rows]))
        count = data.unlabelled if part == "train" else tests["sound"]
        if data.spoken:
            most = (1, data.spoken_most)
            sounds = spoken_sequences(spoken[part], count, generator=draws["sound"], digits=most, frames=data.sound, bins=data.bins)
        else:
            sounds = key_tones(count, generator=draws["sound"], frames=data.sound, noise=data.noise, bins=data.bins)
        found["sound"] = _sound_examples(sounds)
        source = images[part] if part == "train" else images[part].take(torch.arange(min(tests["image"], len(images[part]))))
        captions = texts([words(text) for text in image_captions(source.labels, generator=draws["image"])])
        found["image"] = Examples((captions, image_inputs(source.images)), source.labels)
        clips = moving_digits(_cycled(images[part], data.unlabelled if part == "train" else tests["video"], draws["video"]), generator=draws["video"])
        found["video"] = _clip_examples(clips, texts([words(t) for t in clip_captions(clips.labels, clips.motions, generator=draws["video"])]))
        rows = code_rows[part]
        calls = texts([docstrings[i] for i in rows]), to_words([code[i] for i in rows], vocabulary, data.code)
        found["code"] = Examples(calls, torch.tensor(rows))
    return Tasks(examples["train"], examples["test"], vocabulary)


def _clip_examples(clips: Clips, captions: Inputs) -> Examples:
    return Examples((captions, clip_inputs(clips.frames)), clips.labels * 5 + clips.motions)
