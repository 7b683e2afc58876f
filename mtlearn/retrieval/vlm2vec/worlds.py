"""Pictures of two handwritten digits, and ten tasks on them that are all rankings: a small MMEB.

A picture is 8 x 16 pixels: two digits, each plain, inverted or framed, drawn anew for every example. Seven tasks are trained, three are tests::

    left, right       [IMAGE] what digit is on the left                  ->  represent the word three                        vqa
    large             [IMAGE] which digit is larger                      ->  represent the word seven                        classification
    i2t               [IMAGE] describe the image                         ->  represent the text plain three framed seven     retrieval
    t2i               find the image of plain three framed seven         ->  [IMAGE] represent the image                     retrieval
    cir               [IMAGE] invert the left                            ->  [IMAGE] represent the image                     retrieval
    ground            [IMAGE] crop the framed digit                      ->  [IMAGE] represent the crop                      grounding
    small, swap, cropLR   which digit is smaller; swap the digits; crop the left digit ("left" and "crop" are known, not together)

Every target shows *other drawings* of the same digits, so that contents decide and not equal pixels. An answer's *key* is its contents: equal keys
are the same answer.

The images come in three parts. 700 are for the generative pretraining and the same for every seed, as everybody starts from one pretrained model; of
the other 1,097 each seed draws its own 497 for tests, class by class, and trains on all 1,300 that remain.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from mtlearn.datasets.digits import NAMES, SIZE, Digits, digits
from mtlearn.layers.tokens import SPECIAL
from mtlearn.retrieval.vlm2vec.method import SLOT, Inputs, Item, Meta, RankingTask, Row, joined

STYLES = ("plain", "inverted", "framed")
SIDES = ("left", "right")
PRETRAINING, TESTS = 700, 497  # images
IMAGE_SHAPE = (1, SIZE, 2 * SIZE)
_OTHER = "what digit is on the left right which larger smaller describe image find of invert crop swap digits represent word text"
VOCABULARY: dict[str, int] = {word: i for i, word in enumerate((SPECIAL[0], SLOT, *NAMES, *STYLES, *_OTHER.split()))}
OFFERED = 100  # candidates of a query at most
_TEXT, _IMAGE, _CROP = 10, 1000, 2000  # where the keys of each kind of answer begin; those of words are the digits


def numbers(text: str) -> Tensor:
    """The words of a text, parted by blanks, as int64 (length,)."""
    return torch.tensor([VOCABULARY[word] for word in text.split()])


# ----------------------------------------------------------------------------------------------------------------------- the digits


class Drawings:
    """Images of digits, sorted by class, to draw one of a class at random.

    Args:
        source: images and labels, every class among them.
    """

    def __init__(self, source: Digits) -> None:
        self.count = torch.bincount(source.labels, minlength=10)
        if (self.count == 0).any():
            raise ValueError(f"every digit needs an image; {int((self.count == 0).nonzero()[0, 0])} has none")
        self.first = self.count.cumsum(0) - self.count
        self.images = source.images[source.labels.argsort(stable=True)]

    def __call__(self, labels: Tensor, styles: Tensor, *, generator: torch.Generator) -> Tensor:
        """A drawing (n, 8, 8) of each digit (n,) in its style (n,)."""
        pick = (torch.rand(labels.shape, generator=generator) * self.count[labels]).long()
        return styled(self.images[self.first[labels] + pick], styles)

    def pictures(self, contents: Tensor, *, generator: torch.Generator) -> Tensor:
        """Contents (n, 4), left digit, right digit and their styles, as pictures (n, 1, 8, 16)."""
        halves = self(contents[:, :2], contents[:, 2:], generator=generator)  # (n, 2, 8, 8)
        return halves.transpose(1, 2).flatten(2)[:, None]

    def crops(self, labels: Tensor, styles: Tensor, *, generator: torch.Generator) -> Tensor:
        """One digit each, beside an empty half: (n, 1, 8, 16)."""
        half = self(labels, styles, generator=generator)
        return torch.cat([half, torch.zeros_like(half)], 2)[:, None]


def styled(images: Tensor, styles: Tensor) -> Tensor:
    """Images (..., 8, 8) as they are, inverted, or with a frame of full ink, by styles (...)."""
    style = styles[..., None, None]
    border = torch.ones(SIZE, SIZE, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    return torch.where(style == 1, 1 - images, images).masked_fill((style == 2) & border, 1.0)


@cache
def _parts() -> tuple[Tensor, Tensor]:
    """Rows of the 700 images of the pretraining, and the others."""
    rows = torch.arange(len(digits()))
    kept, rest = train_test_split(rows.numpy(), train_size=PRETRAINING, stratify=digits().labels.numpy(), random_state=2410)
    return torch.from_numpy(kept), torch.from_numpy(rest)


def pretraining_drawings() -> tuple[Drawings, Drawings]:
    """For the generative pretraining: the 700, and the 1,097 others to measure it on."""
    kept, rest = _parts()
    return Drawings(digits().take(kept)), Drawings(digits().take(rest))


def split(seed: int) -> tuple[Drawings, Drawings]:
    """1,300 images for training and 497 for tests, none of which was in the pretraining; another split for every seed."""
    kept, rest = _parts()
    more, test = train_test_split(rest.numpy(), test_size=TESTS, stratify=digits().labels[rest].numpy(), random_state=seed)
    return Drawings(digits().take(torch.cat([kept, torch.from_numpy(more)]))), Drawings(digits().take(torch.from_numpy(test)))


# ------------------------------------------------------------------------------------------------------------------------ the tasks


@dataclass(frozen=True)
class Batch:
    """Queries with their answers.

    Attributes:
        queries: n rows.
        targets: n rows, the right answers.
        keys: (n,) int64, contents of the answers.
    """

    queries: Inputs
    targets: Inputs
    keys: Tensor

    def to(self, device: torch.device) -> "Batch":
        """On another device."""
        return Batch(self.queries.to(device), self.targets.to(device), self.keys.to(device))


@dataclass(frozen=True)
class Kind:
    """A task.

    Attributes:
        meta: its meta-task.
        trained: whether it is trained on.
        instruction: words behind the image; "side" stands for left or right. For t2i the description follows.
        key: contents (n, 4) and sides (n,) to keys (n,).
    """

    meta: Meta
    trained: bool
    instruction: str
    key: Callable[[Tensor, Tensor], Tensor]


def content_code(contents: Tensor) -> Tensor:
    """(n, 4) to one number each, below 900."""
    left, right, first, second = contents.unbind(1)
    return ((left * 10 + right) * 3 + first) * 3 + second


def content_of(code: Tensor) -> Tensor:
    """The contents (n, 4) of :func:`content_code`."""
    return torch.stack([code // 90, code // 9 % 10, code // 3 % 3, code % 3], 1)


def _half(contents: Tensor, side: Tensor) -> Tensor:
    return _CROP + 3 * contents.gather(1, side[:, None])[:, 0] + contents.gather(1, 2 + side[:, None])[:, 0]


def _inverted(contents: Tensor, side: Tensor) -> Tensor:
    return _IMAGE + content_code(contents.scatter(1, 2 + side[:, None], 1))


KINDS: Mapping[str, Kind] = {
    "left": Kind("vqa", True, "what digit is on the left", lambda c, _: c[:, 0]),
    "right": Kind("vqa", True, "what digit is on the right", lambda c, _: c[:, 1]),
    "large": Kind("classification", True, "which digit is larger", lambda c, _: c[:, :2].amax(1)),
    "i2t": Kind("retrieval", True, "describe the image", lambda c, _: _TEXT + content_code(c)),
    "t2i": Kind("retrieval", True, "find the image of", lambda c, _: _IMAGE + content_code(c)),
    "cir": Kind("retrieval", True, "invert the side", _inverted),
    "ground": Kind("grounding", True, "crop the framed digit", _half),
    "small": Kind("classification", False, "which digit is smaller", lambda c, _: c[:, :2].amin(1)),
    "swap": Kind("retrieval", False, "swap the digits", lambda c, _: _IMAGE + content_code(c[:, [1, 0, 3, 2]])),
    "cropLR": Kind("grounding", False, "crop the side digit", _half),
}
TRAINED = tuple(name for name, kind in KINDS.items() if kind.trained)


def draw_contents(name: str, n: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Contents (n, 4) that suit a task, and the side (n,) that it is about."""
    values = torch.randint(10, (n, 2), generator=generator)
    if name in ("large", "small"):  # different digits
        values[:, 1] = (values[:, 0] + 1 + torch.randint(9, (n,), generator=generator)) % 10
    styles = torch.randint(3, (n, 2), generator=generator)
    side = torch.randint(2, (n,), generator=generator)
    if name == "cir":  # the named half is plain or framed
        styles = styles.scatter(1, side[:, None], 2 * torch.randint(2, (n, 1), generator=generator))
    if name == "ground":  # one half is framed, the other is not
        styles = torch.randint(2, (n, 2), generator=generator).scatter(1, side[:, None], 2)
    return torch.cat([values, styles], 1), side


def described(contents: Tensor) -> Tensor:
    """Contents (n, 4) as words (n, 4): style, digit, style, digit."""
    digit, style = VOCABULARY[NAMES[0]], VOCABULARY[STYLES[0]]
    left, right, first, second = contents.unbind(1)
    return torch.stack([style + first, digit + left, style + second, digit + right], 1)


def ask(name: str, contents: Tensor, side: Tensor, images: Tensor | None) -> Inputs:
    """The queries of a task: the image (where the task has one), the instruction, and the description for t2i."""
    parts = [word.replace("side", SIDES[0]) for word in KINDS[name].instruction.split()]
    tokens = numbers(" ".join(parts)).repeat(len(contents), 1)
    if "side" in KINDS[name].instruction.split():
        tokens[:, KINDS[name].instruction.split().index("side")] += side  # "right" follows "left" in the vocabulary
    if name == "t2i":
        return Inputs(torch.cat([tokens, described(contents)], 1))
    return Inputs(torch.cat([torch.full((len(contents), 1), VOCABULARY[SLOT]), tokens], 1), images)


def answers(keys: Tensor, drawings: Drawings, *, generator: torch.Generator) -> Inputs:
    """The targets of keys (n,), all of one kind: words, texts, pictures or crops, with their short instruction."""
    kind = int(keys[0])
    if kind < _TEXT:
        return Inputs(torch.cat([numbers("represent the word").repeat(len(keys), 1), VOCABULARY[NAMES[0]] + keys[:, None]], 1))
    if kind < _IMAGE:
        return Inputs(torch.cat([numbers("represent the text").repeat(len(keys), 1), described(content_of(keys - _TEXT))], 1))
    if kind < _CROP:
        images = drawings.pictures(content_of(keys - _IMAGE), generator=generator)
        return Inputs(numbers(f"{SLOT} represent the image").repeat(len(keys), 1), images)
    images = drawings.crops((keys - _CROP) // 3, (keys - _CROP) % 3, generator=generator)
    return Inputs(numbers(f"{SLOT} represent the crop").repeat(len(keys), 1), images)


def named(key: int) -> str:
    """An answer in words for people."""
    if key < _TEXT:
        return f"word: {NAMES[key]}"
    if key >= _CROP:
        return f"crop: {STYLES[(key - _CROP) % 3]} {(key - _CROP) // 3}"
    left, right, first, second = content_of(torch.tensor([key - (_TEXT if key < _IMAGE else _IMAGE)]))[0].tolist()
    return f"{'text' if key < _IMAGE else 'image'}: {STYLES[first]} {left}, {STYLES[second]} {right}"


def draw(name: str, n: int, drawings: Drawings, *, generator: torch.Generator) -> Batch:
    """Examples of a task, n of them."""
    contents, side = draw_contents(name, n, generator=generator)
    images = None if name == "t2i" else drawings.pictures(contents, generator=generator)
    keys = KINDS[name].key(contents, side)
    return Batch(ask(name, contents, side, images), answers(keys, drawings, generator=generator), keys)


def mixed(names: Sequence[str], sub: int, drawings: Drawings, *, generator: torch.Generator) -> Batch:
    """Sub-batches of the tasks ``names``, ``sub`` rows each, as one batch."""
    parts = [draw(name, sub, drawings, generator=generator) for name in names]
    return Batch(joined([part.queries for part in parts]), joined([part.targets for part in parts]), torch.cat([part.keys for part in parts]))


def ranking_task(name: str, n: int, drawings: Drawings, *, generator: torch.Generator) -> RankingTask:
    """A task's test.

    Candidates are all words of a class, all crops, or the different answers of all rows, of which each query gets the right one and at most 99
    others at random.

    Args:
        name: of the task.
        n: queries.
        drawings: of the test digits.
        generator: of everything.
    """
    batch, kind = draw(name, n, drawings, generator=generator), KINDS[name]
    if kind.meta == "grounding":
        pool = torch.arange(_CROP, _CROP + 30)
    elif kind.meta in ("classification", "vqa"):
        pool = torch.arange(1 if name == "large" else 0, 9 if name == "small" else 10)
    else:
        pool = torch.unique(batch.keys)
    right = torch.searchsorted(pool, batch.keys.contiguous())
    offered = None
    if len(pool) > OFFERED:
        order = torch.rand(n, len(pool), generator=generator).scatter(1, right[:, None], 2.0)
        offered = torch.zeros(n, len(pool), dtype=torch.bool).scatter(1, order.topk(OFFERED, 1).indices, True)
    return RankingTask(name, kind.meta, kind.trained, batch.queries, answers(pool, drawings, generator=generator), right, offered)


def on_device(task: RankingTask, device: torch.device) -> RankingTask:
    """The task on another device."""
    offered = None if task.offered is None else task.offered.to(device)
    return RankingTask(task.name, task.meta, task.trained, task.queries.to(device), task.candidates.to(device), task.right.to(device), offered)


def chance(task: RankingTask) -> float:
    """Precision@1 of a guess."""
    count = len(task.candidates) if task.offered is None else int(task.offered.sum(1)[0])
    return 1 / count


def without_instruction(name: str, queries: Inputs) -> Inputs:
    """Queries of a task as their content alone: the image, or for t2i the description."""
    return Inputs(queries.tokens[:, -4:] if name == "t2i" else queries.tokens[:, :1], queries.images)


# --------------------------------------------------------------------------------------------------------- the generative pretraining

ASKED = ("i2t", "left", "right", "large")


def writing(n: int, drawings: Drawings, *, generator: torch.Generator) -> tuple[Inputs, Tensor]:
    """Image, question and answer in one sequence, a quarter each of description, left, right and larger: inputs, and which words are the answer."""
    parts, masks = [], []
    for number, name in enumerate(ASKED):
        rows = n // len(ASKED) + (number < n % len(ASKED))
        if rows == 0:
            continue
        contents, side = draw_contents(name, rows, generator=generator)
        question = ask(name, contents, side, drawings.pictures(contents, generator=generator))
        text = described(contents) if name == "i2t" else VOCABULARY[NAMES[0]] + KINDS[name].key(contents, side)[:, None]
        parts.append(Inputs(torch.cat([question.tokens, text], 1), question.images))
        masks.append(torch.arange(parts[-1].tokens.shape[1]).expand(rows, -1) >= question.tokens.shape[1])
    length = max(mask.shape[1] for mask in masks)
    return joined(parts), torch.cat([torch.nn.functional.pad(mask, (0, length - mask.shape[1])) for mask in masks])


# --------------------------------------------------------------------------------------------------------------- rows of the benchmark


def mmeb_rows(records: Sequence[Mapping[str, Any]], open_image: Callable[[str], Any], *, slot: str = "<|image_1|>") -> list[Row]:
    """Records of the published evaluation files as rows.

    Fields are ``qry_text``, ``qry_img_path`` and the lists ``tgt_text`` and ``tgt_img_path``, the right one first. These names are from memory. The
    instruction is part of ``qry_text`` there.

    Args:
        records: a mapping each.
        open_image: path to numbers (channels, height, width) of the encoder's size.
        slot: what marks the place of an image in their texts.

    Raises:
        ValueError: a field is missing, or the lists of a record have different lengths.
    """
    rows = []
    for i, record in enumerate(records):
        if missing := [field for field in ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path") if field not in record]:
            raise ValueError(f"record {i} has no {', '.join(missing)}")
        texts, paths = record["tgt_text"], record["tgt_img_path"]
        if len(texts) != len(paths):
            raise ValueError(f"record {i} has {len(texts)} texts and {len(paths)} images of candidates; give one of each, empty where there is none")
        pairs = [(record["qry_text"], record["qry_img_path"]), *zip(texts, paths, strict=True)]
        items = [Item(text.replace(slot, SLOT), open_image(path) if path else None) for text, path in pairs]
        rows.append(Row(items[0], items[1:]))
    return rows
