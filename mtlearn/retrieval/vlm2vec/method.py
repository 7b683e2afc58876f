r"""VLM2Vec: a generative vision-language model becomes one encoder for any mix of images, text and a task instruction.

Jiang, Meng, Yang, Yavuz, Zhou, Chen, "VLM2Vec: Training Vision-Language Models for Massive Multimodal Embedding Tasks", ICLR 2025,
arXiv:2410.05160; public code TIGER-AI-Lab/VLM2Vec.

A model of CLIP's kind embeds an image or a text; adding both vectors (:class:`Fusion`) cannot say "this image, seen under this question". Here one
causal transformer reads instruction, image and text as one sequence, and the state of the *last* token, at unit length, is the embedding::

    [IMAGE] what digit is on the left      ->  patches, words  ->  causal transformer  ->  last state  ->  h_q, unit length
    represent the word three               ->           words  ->  the same            ->  last state  ->  h_t

Queries and targets share all weights; there is no further head. Training (section 3) lets each query find its target in the batch:

.. math:: \mathcal L = -\frac1B \sum_i \log \frac{\exp(\cos(h_{q_i}, h_{t_i}) / \tau)}{\sum_j \exp(\cos(h_{q_i}, h_{t_j}) / \tau)}

(:func:`contrastive_loss`; hard negatives are further columns, pairs with the same answer are no negatives). A batch that does not fit goes through
gradient caching (:func:`cached_step`), over processes through :func:`gather`, and is made of sub-batches of one task each (:func:`sub_batches`).
The benchmark MMEB makes every task a ranking: :func:`tasks_from_rows`, :func:`evaluate`, :func:`means`.

What differs. The transformer is small and pretrained here (:func:`next_token_loss`), where the paper starts from Phi-3.5-V;
:class:`PretrainedEmbedder` takes a model of the library transformers. Padding is never guessed from the mask's last column, as the public code does:
the last token is found by its place. With several targets a query the labels are multiples of that number; the integer division of the public code's
``forward`` makes them all 0. DoRA, which the public code's second version uses, is not here: plain low-rank adapters are (:func:`adapt`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.attention import Transformer
from mtlearn.layers.contrastive import cached_gradients, info_nce
from mtlearn.layers.lora import add_lora
from mtlearn.layers.tokens import PADDING, check_range, padded, words
from mtlearn.retrieval.pooling import Pooling, check_pooling, pool

IMAGE = 1  # the token in whose place the patches of an image stand
SLOT = "[IMAGE]"

# ------------------------------------------------------------------------------------------------------------------- what is read


@dataclass(frozen=True)
class Inputs:
    """A batch of n sequences of words and images, in any mix.

    Attributes:
        tokens: (n, length) int64; :data:`IMAGE` where an image stands, 0 is padding, which may stand anywhere.
        images: (m, channels, height, width), in the order of their places, row by row; None where there is none.

    Raises:
        ValueError: another shape, a row without a word or an image, or not as many images as places for them.
    """

    tokens: Tensor
    images: Tensor | None = None

    def __post_init__(self) -> None:
        if self.tokens.dim() != 2 or self.tokens.dtype != torch.int64:
            raise ValueError(f"tokens must be int64 (n, length), got {self.tokens.dtype} {tuple(self.tokens.shape)}")
        empty = ~(self.tokens != PADDING).any(1)
        if empty.any():
            raise ValueError(f"row {int(empty.nonzero()[0, 0])} is empty: every row needs a word or an image")
        if self.images is not None and self.images.dim() != 4:
            raise ValueError(f"images must be (m, channels, height, width), got {tuple(self.images.shape)}")
        places, count = int((self.tokens == IMAGE).sum()), 0 if self.images is None else len(self.images)
        if places != count:
            raise ValueError(f"the tokens have {places} places for images ({SLOT}), but there are {count} images: give one for each place")

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Tensor) -> "Inputs":
        """The rows (k,) in this order, with their images."""
        tokens = self.tokens[rows]
        if self.images is None:
            return Inputs(tokens)
        count = (self.tokens == IMAGE).sum(1)
        first, chosen = count.cumsum(0) - count, count[rows]  # number of a row's first image
        start = (first[rows] - chosen.cumsum(0) + chosen).repeat_interleave(chosen)
        return Inputs(tokens, self.images[start + torch.arange(len(start), device=start.device)])

    def to(self, device: torch.device) -> "Inputs":
        """On another device."""
        return Inputs(self.tokens.to(device), None if self.images is None else self.images.to(device))


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Batches one after the other, padded on the right to one length."""
    length = max(part.tokens.shape[1] for part in parts)
    images = [part.images for part in parts if part.images is not None]
    return Inputs(torch.cat([F.pad(part.tokens, (0, length - part.tokens.shape[1])) for part in parts]), torch.cat(images) if images else None)


# ----------------------------------------------------------------------------------------------------------------------- the model


class VisionLanguageModel(nn.Module):
    """A causal transformer over words and the patches of images: it writes text, and it embeds.

    Args:
        words: size of the vocabulary, with padding (0) and the image token (1).
        image: channels, height and width of an image.
        patch: pixels a side of a patch; it divides height and width.
        width: of a state.
        heads: number of attention heads; it divides ``width``.
        layers: number of layers.
        longest: positions.
        dropout: share of the embeddings' numbers that are dropped in training.
        pooling: of :func:`pool`.

    Raises:
        ValueError: patches that do not tile the image, fewer than three words, or unknown pooling.
    """

    def __init__(
        self,
        words: int,
        image: tuple[int, int, int],
        patch: int,
        *,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        longest: int = 32,
        dropout: float = 0.0,
        pooling: Pooling = "last",
    ) -> None:
        super().__init__()
        channels, height, across = image
        if patch < 1 or height % patch or across % patch:
            raise ValueError(f"patches of {patch} x {patch} do not tile an image of {height} x {across}")
        if words < 3 or longest < 1:
            raise ValueError(f"at least three words (padding, image, one more) and one position are needed, got {words} and {longest}")
        check_pooling(pooling)
        self.image, self.patch, self.pooling, self.longest = image, patch, pooling, longest
        self.patches = (height // patch) * (across // patch)
        self.word = nn.Embedding(words, width)
        self.position = nn.Embedding(longest, width)
        for table in (self.word, self.position):
            nn.init.normal_(table.weight, std=0.3)
        self.project = nn.Linear(channels * patch * patch, width)
        self.dropout = nn.Dropout(dropout)
        self.transformer = Transformer(width, heads, layers, norm_first=True)

    def arrange(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where everything stands once padding is gone and each image token has become its patches.

        Args:
            tokens: (n, length).

        Returns:
            ids: (n, t) int64, numbers of words; the k-th patch of the whole batch has the number words + k; 0 behind the end.
            mask: bool (n, t), true up to each row's end.
            column: (n, t), which of the columns of ``tokens`` each place comes from.
        """
        n, length = tokens.shape
        size = torch.where(tokens == IMAGE, self.patches, (tokens != PADDING).long())  # (n, length): places that each token takes
        total = size.sum(1)
        longest = int(total.max())
        if longest > self.longest:
            raise ValueError(f"the input has {longest} tokens, {longest - self.longest} more than the {self.longest} positions")
        mask = torch.arange(longest, device=tokens.device) < total[:, None]
        flat = size.flatten()
        source = torch.arange(n * length, device=tokens.device).repeat_interleave(flat)  # (all tokens,)
        ids = tokens.flatten()[source]
        is_patch = ids == IMAGE
        ids = torch.where(is_patch, self.word.num_embeddings + is_patch.cumsum(0) - 1, ids)
        blank = tokens.new_zeros(n, longest)
        return blank.masked_scatter(mask, ids), mask, blank.masked_scatter(mask, source % length)

    def read(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States (n, t, width) after the last layer, with ids, mask and column of :meth:`arrange`.

        Raises:
            ValueError: an unknown word, images of another size, or more tokens than positions.
        """
        check_range("tokens", inputs.tokens, self.word.num_embeddings)
        ids, mask, column = self.arrange(inputs.tokens)
        table = self.word.weight
        if inputs.images is not None:
            if tuple(inputs.images.shape[1:]) != self.image:
                raise ValueError(f"images must be (m, {', '.join(map(str, self.image))}), got {tuple(inputs.images.shape)}")
            tiles = F.unfold(inputs.images, self.patch, stride=self.patch).transpose(1, 2).flatten(0, 1)  # (m * patches, channels * patch^2)
            table = torch.cat([table, self.project(tiles)])
        x = self.dropout(F.embedding(ids, table) + self.position.weight[: ids.shape[1]])
        # every token looks at itself and what stands before it; padding is behind the end, so nothing that counts ever sees it
        causal = torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
        return self.transformer(x, causal), ids, mask, column

    def forward(self, inputs: Inputs) -> Tensor:
        """Embeddings (n, width) at unit length."""
        states, _, mask, _ = self.read(inputs)
        return F.normalize(pool(states, mask, self.pooling), dim=-1)

    def logits(self, states: Tensor) -> Tensor:
        """Scores (..., words) of the next word; the table of words is used again."""
        scores: Tensor = states @ self.word.weight.T / states.shape[-1] ** 0.5
        return scores


def written(model: VisionLanguageModel, inputs: Inputs, answer: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (k, words) of each word of the answers, given all that stands before it, and these words (k,).

    Args:
        model: that writes.
        inputs: image, question and answer in one sequence.
        answer: bool, as ``inputs.tokens``: which words are to be written; no image, and never the first of a row.

    Raises:
        ValueError: a mask of another shape, or one that chooses nothing, padding, an image or the first token of a row.
    """
    if answer.shape != inputs.tokens.shape or answer.dtype != torch.bool:
        raise ValueError(f"answer must be bool {tuple(inputs.tokens.shape)}, got {answer.dtype} {tuple(answer.shape)}")
    if not answer.any() or (answer & (inputs.tokens <= IMAGE)).any():
        raise ValueError("answer must choose words to be written: at least one, and neither padding nor an image")
    states, ids, mask, column = model.read(inputs)
    chosen = answer.gather(1, column) & mask  # (n, t)
    if chosen[:, 0].any():
        raise ValueError("the first token of a row has nothing before it to be written from")
    return model.logits(states[:, :-1][chosen[:, 1:]]), ids[chosen]


def next_token_loss(model: VisionLanguageModel, inputs: Inputs, answer: Tensor) -> Tensor:
    """Mean cross-entropy of the words of the answers: the generative pretraining. Arguments and errors as for :func:`written`."""
    return F.cross_entropy(*written(model, inputs, answer))


def adapt(model: VisionLanguageModel, rank: int = 8, *, alpha: float = 64.0, dropout: float = 0.0, std: float | None = None) -> tuple[str, ...]:
    """Freeze the model and give its attention and perceptrons low-rank adapters, which alone learn then. Returns the names of the layers.

    Args:
        model: changed in place; it computes what it did before until it is trained.
        rank: of an adapter; 8 in the paper.
        alpha: adapters are scaled by alpha / rank; 64 in the public code.
        dropout: of the adapters' inputs; 0.1 in the public code.
        std: of a normal start of A (the public code's second version); uniform when omitted.
    """
    return add_lora(model, ("query_key_value", "out", "feed.0", "feed.2"), rank=rank, alpha=alpha, dropout=dropout, std=std)


class Fusion(nn.Module):
    """The baseline: image alone and text alone through an encoder, the sum of both vectors at unit length (score fusion, as of CLIP).

    Args:
        encoder: inputs to unit vectors.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs: Inputs) -> Tensor:
        """(n, width) at unit length; a row with one of both has that one's vector."""
        has_image = (inputs.tokens == IMAGE).any(1)
        has_text = (inputs.tokens > IMAGE).any(1)
        total: Tensor | int = 0
        if has_text.any():
            rows, back = torch.unique(inputs.tokens[has_text].masked_fill(inputs.tokens[has_text] == IMAGE, PADDING), dim=0, return_inverse=True)
            total = total + spread(self.encoder(Inputs(rows))[back], has_text)  # equal texts are read once
        if has_image.any():
            only = inputs.take(has_image.nonzero()[:, 0])
            total = total + spread(self.encoder(Inputs(only.tokens.masked_fill(only.tokens != IMAGE, PADDING), only.images)), has_image)
        return F.normalize(cast(Tensor, total), dim=-1)


def spread(vectors: Tensor, rows: Tensor) -> Tensor:
    """Vectors (k, d) at the k true places of ``rows`` (n,), zeros elsewhere: (n, d)."""
    return vectors.new_zeros(len(rows), vectors.shape[1]).masked_scatter(rows[:, None], vectors)


class PretrainedEmbedder(nn.Module):
    """A causal language model or vision-language model of the library transformers as the encoder: its last state at the last token, unit length.

    Args:
        model: takes ``input_ids`` and ``attention_mask``, and ``pixel_values`` where it reads images; gives ``hidden_states``.
        pooling: of :func:`pool`.
    """

    def __init__(self, model: nn.Module, pooling: Pooling = "last") -> None:
        super().__init__()
        self.model, self.pooling = model, pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **images: Tensor) -> Tensor:
        """(n, width) at unit length.

        Args:
            input_ids: (n, length) int64, padded left or right.
            attention_mask: (n, length), 1 for what is no padding.
            images: what the library's processor gives for images, ``pixel_values`` for most models.
        """
        mask = attention_mask.bool()
        place = (mask.cumsum(1) - 1).clamp(min=0)  # so that left padding moves nothing
        out: Any = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=place, output_hidden_states=True, **images)
        return F.normalize(pool(out.hidden_states[-1], mask, self.pooling), dim=-1)


# -------------------------------------------------------------------------------------------------------------------------- training


def contrastive_loss(queries: Tensor, targets: Tensor, *, temperature: float = 0.02, keys: Tensor | None = None) -> Tensor:
    """The loss at the top of this file, a scalar; gathered over processes where there are several.

    Args:
        queries: (n, d).
        targets: (n * k, d): k of each query, one block after the other, the right one first and hard negatives behind it.
        temperature: tau; the cosines are *divided* by it.
        keys: (n,) numbers of the answers: queries with the same answer are no negatives of each other.

    Raises:
        ValueError: targets that are no multiple of the queries, a temperature of 0 or less, or keys of another shape.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if queries.dim() != 2 or len(queries) == 0 or targets.dim() != 2 or len(targets) == 0 or len(targets) % len(queries):
        raise ValueError(f"targets must be (n * k, d) for queries (n, d), got {tuple(targets.shape)} for {tuple(queries.shape)}")
    if keys is not None and keys.shape != (len(queries),):
        raise ValueError(f"keys must be ({len(queries)},), one a query, got {tuple(keys.shape)}")
    each = gather(targets.reshape(len(queries), -1, targets.shape[1]))  # (n, k, d)
    queries, keys = gather(queries), None if keys is None else gather(keys)
    same = None if keys is None else keys[:, None] == keys
    negatives = each[:, 1:] if each.shape[1] > 1 else None
    return info_nce(queries, each[:, 0], scale=1 / temperature, negatives=negatives, same=same) * world_size()


def world_size() -> int:
    """Number of processes that train together; 1 where none were started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(vectors: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; only this process's own block carries a gradient.

    Each process then holds 1 / world of the gradient, so the loss is multiplied by the number of processes, whose gradients are averaged.

    Args:
        vectors: (n, ...), the same shape in every process.
    """
    if world_size() == 1:
        return vectors
    blocks = [torch.empty_like(vectors) for _ in range(world_size())]
    dist.all_gather(blocks, vectors.detach().contiguous())
    blocks[dist.get_rank()] = vectors
    return torch.cat(blocks)


def cached_step(
    encode: Callable[[Inputs], Tensor],
    queries: Inputs,
    targets: Inputs,
    *,
    chunk: int,
    temperature: float = 0.02,
    keys: Tensor | None = None,
    trace: list[int] | None = None,
) -> Tensor:
    """Add the gradients of :func:`contrastive_loss` with the graph of ``chunk`` rows at a time (GradCache). Returns the loss, detached.

    Args:
        encode: inputs to vectors.
        queries: n rows.
        targets: n * k rows.
        chunk: rows that hold a graph; it need not divide the batch.
        temperature: of :func:`contrastive_loss`.
        keys: of :func:`contrastive_loss`.
        trace: gets the rows of each chunk that held a graph.
    """
    sides = [(lambda rows, part=part: encode(part.take(rows)), torch.arange(len(part), device=part.tokens.device)) for part in (queries, targets)]
    return cached_gradients(sides, lambda q, t: contrastive_loss(q, t, temperature=temperature, keys=keys), chunk=chunk, trace=trace)


def sub_batches(tasks: int, batch: int, sub: int, *, generator: torch.Generator) -> Tensor:
    """Which task each sub-batch of a batch is of: (batch / sub,), different ones as long as there are (interleaved sub-batches).

    All rows of a sub-batch come from one task, so most near negatives are of the same kind as the answer, and hard.

    Args:
        tasks: number of tasks.
        batch: rows.
        sub: rows of a sub-batch; it divides ``batch``.
        generator: of the draw.
    """
    if tasks < 1 or sub < 1 or batch < sub or batch % sub:
        raise ValueError(f"batch must be a multiple of sub, with at least one task, got batch={batch}, sub={sub}, tasks={tasks}")
    rounds = -(-(batch // sub) // tasks)
    return torch.cat([torch.randperm(tasks, generator=generator) for _ in range(rounds)])[: batch // sub]


# ---------------------------------------------------------------------------------------------------------------- ranking, as in MMEB

Meta = Literal["classification", "vqa", "retrieval", "grounding"]


@dataclass(frozen=True)
class RankingTask:
    """A task as a ranking.

    Attributes:
        name: of the task.
        meta: one of the four meta-tasks.
        trained: whether it was trained on (IND); otherwise it is only for tests (OOD).
        queries: n rows.
        candidates: m different ones; each is embedded once.
        right: (n,) int64, which candidate is right.
        offered: bool (n, m), the candidates of each query, the right one among them; all when omitted.
    """

    name: str
    meta: Meta
    trained: bool
    queries: Inputs
    candidates: Inputs
    right: Tensor
    offered: Tensor | None = None

    def __post_init__(self) -> None:
        if self.meta not in get_args(Meta):
            raise ValueError(f"task {self.name}: meta must be one of {', '.join(get_args(Meta))}, got {self.meta!r}")
        n, m = len(self.queries), len(self.candidates)
        if self.right.shape != (n,):
            raise ValueError(f"task {self.name}: right must be ({n},), one a query, got {tuple(self.right.shape)}")
        check_range(f"task {self.name}: right", self.right, m)
        if self.offered is not None:
            if self.offered.shape != (n, m) or self.offered.dtype != torch.bool:
                raise ValueError(f"task {self.name}: offered must be bool ({n}, {m}), got {self.offered.dtype} {tuple(self.offered.shape)}")
            if not self.offered.gather(1, self.right[:, None]).all():
                raise ValueError(f"task {self.name}: the right candidate must be among those offered")


def precision_at_1(scores: Tensor, right: Tensor, offered: Tensor | None = None) -> Tensor:
    """Share of queries whose right candidate is above every other; a tie counts as wrong. A scalar.

    Args:
        scores: (n, m).
        right: (n,) int64.
        offered: bool (n, m); all when omitted.
    """
    if scores.dim() != 2 or len(scores) == 0 or right.shape != scores.shape[:1] or not scores.isfinite().all():
        raise ValueError(f"finite scores (n, m) and right (n,) with n of at least 1 are needed, got {tuple(scores.shape)} and {tuple(right.shape)}")
    own = scores.gather(1, right[:, None])
    others = torch.ones_like(scores, dtype=torch.bool) if offered is None else offered.clone()
    others.scatter_(1, right[:, None], False)
    return (~((scores >= own) & others).any(1)).double().mean()


@torch.no_grad()
def evaluate(
    encode: Callable[[Inputs], Tensor], tasks: Sequence[RankingTask], *, target: Callable[[Inputs], Tensor] | None = None
) -> dict[str, float]:
    """Precision@1 of each task.

    Args:
        encode: queries to unit vectors.
        tasks: with different names.
        target: candidates to unit vectors; ``encode`` when omitted.
    """
    if len({task.name for task in tasks}) < len(tasks):
        raise ValueError("two tasks have the same name")
    found = {}
    for task in tasks:
        scores = encode(task.queries) @ (target or encode)(task.candidates).T  # (n, m)
        found[task.name] = precision_at_1(scores, task.right, task.offered).item()
    return found


def means(precision: Mapping[str, float], tasks: Sequence[RankingTask]) -> dict[str, float]:
    """Means over tasks, not rows: "IND", "OOD", and each meta-task within each of both ("IND vqa"), where there is one.

    Args:
        precision: of :func:`evaluate`.
        tasks: the same.
    """
    groups: dict[str, list[float]] = {}
    for task in tasks:
        side = "IND" if task.trained else "OOD"
        for name in (side, f"{side} {task.meta}"):
            groups.setdefault(name, []).append(precision[task.name])
    return {name: sum(values) / len(values) for name, values in groups.items()}


@dataclass(frozen=True)
class Item:
    """A query or a candidate of a user's own rows.

    Attributes:
        text: may be empty; "[IMAGE]" in it, or in the instruction, is where the image stands, else it stands in front.
        image: (channels, height, width) or (height, width) numbers, or None.
        instruction: what the task is, in front of the text.
    """

    text: str = ""
    image: Any = None
    instruction: str = ""


@dataclass(frozen=True)
class Row:
    """A query with its candidates.

    Attributes:
        query: what is asked.
        candidates: at least two.
        right: which of them is right; the first, as in the files of MMEB.
    """

    query: Item
    candidates: Sequence[Item]
    right: int = 0


def collate(items: Sequence[Item], vocabulary: Mapping[str, int]) -> Inputs:
    """Items as a batch, padded on the right.

    Args:
        items: at least one.
        vocabulary: word to number; 0 and 1 are padding and the image.

    Raises:
        ValueError: an item with neither image nor text, a place without an image or the reverse, an unknown word, images of different sizes.
    """
    rows, images = [], []
    for i, item in enumerate(items):
        text = f"{item.instruction} {item.text}".strip()
        if item.image is not None and SLOT not in text:
            text = f"{SLOT} {text}"
        if (count := text.count(SLOT)) != (item.image is not None):
            raise ValueError(f"item {i} has {count} places for an image, but {'one image' if item.image is not None else 'no image'}: {text!r}")
        row: list[int] = []
        for piece in re.split(f"({re.escape(SLOT)})", text):
            found = [SLOT] if piece == SLOT else words(piece)
            if unknown := [word for word in found if word != SLOT and word not in vocabulary]:
                raise ValueError(f"item {i}: the word {unknown[0]!r} is not in the vocabulary: {text!r}")
            row += [IMAGE if word == SLOT else vocabulary[word] for word in found]
        if not row:
            raise ValueError(f"item {i} is empty: it needs an image or a word")
        rows.append(row)
        if item.image is not None:
            image = torch.as_tensor(item.image, dtype=torch.float32)
            images.append(image[None] if image.dim() == 2 else image)
    if len({tuple(image.shape) for image in images}) > 1:
        raise ValueError(f"images must have one size, got {sorted({tuple(image.shape) for image in images})}")
    return Inputs(padded(rows, PADDING), torch.stack(images) if images else None)


def tasks_from_rows(name: str, meta: Meta, rows: Sequence[Row], vocabulary: Mapping[str, int], *, trained: bool = False) -> RankingTask:
    """A user's rows as a task; candidates that are equal, pixel by pixel and word by word, become one.

    Args:
        name: of :class:`RankingTask`.
        meta: of :class:`RankingTask`.
        rows: at least one.
        vocabulary: of :func:`collate`.
        trained: of :class:`RankingTask`.

    Raises:
        ValueError: no rows, a row with fewer than two candidates, or ``right`` out of range, and what :func:`collate` refuses.
    """
    if not rows:
        raise ValueError(f"task {name} has no rows")
    number: dict[tuple[str, bytes], int] = {}
    kept: list[Item] = []
    places = []
    for i, row in enumerate(rows):
        if len(row.candidates) < 2 or not 0 <= row.right < len(row.candidates):
            raise ValueError(f"row {i} needs two candidates and right among them, got {len(row.candidates)} and {row.right}")
        own = []
        for item in row.candidates:
            pixels = b"" if item.image is None else torch.as_tensor(item.image, dtype=torch.float32).numpy().tobytes()
            key = (" ".join(f"{item.instruction} {item.text}".lower().split()), pixels)
            if key not in number:
                number[key] = len(kept)
                kept.append(item)
            own.append(number[key])
        places.append(own)
    offered = torch.zeros(len(rows), len(kept), dtype=torch.bool)
    for i, own in enumerate(places):
        offered[i, own] = True
    right = torch.tensor([own[row.right] for own, row in zip(places, rows, strict=True)])
    return RankingTask(name, meta, trained, collate([row.query for row in rows], vocabulary), collate(kept, vocabulary), right, offered)
