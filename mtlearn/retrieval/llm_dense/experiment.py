"""Which part of a backbone helps which ability of a dense retriever: its size, its pretraining, or that it is a causal language model?

One recipe, nine decoders (three sizes by three amounts of pretraining) and an encoder: the same pairs in the same order, the same steps and rate.
Fine-tuning is drawn anew for each seed, the weights of what was not pretrained too; the pretrained backbones ship and are the same for all seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from mtlearn.datasets.bm25 import BM25
from mtlearn.datasets.docstring_search import docstring_pairs
from mtlearn.datasets.tfidf import TfIdf
from mtlearn.lab.checkpoints import Checkpoint, load
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.result import Result
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.cost import count_flops, count_parameters
from mtlearn.layers.text_encoders import TokenEncoder
from mtlearn.layers.tokens import PADDING
from mtlearn.retrieval.llm_dense.method import (
    START,
    CausalBody,
    DenseRetriever,
    HashedWords,
    adapt,
    batch_rows,
    hard_negatives,
    masked_word_loss,
    next_token_loss,
    pieces,
    ranking,
    retrieval_loss,
    task_order,
    trim,
    without_positives,
)
from mtlearn.retrieval.llm_dense.worlds import (
    KINDS,
    TASKS,
    TEST,
    UNSEEN,
    Kind,
    SearchTask,
    Wording,
    instructed,
    kind_text,
    pages,
    pretraining_texts,
    search_task,
    tasks,
    unseen_task,
    with_both,
)

SIZES = ("S", "M", "L")
AMOUNTS = ("none", "short", "long")
ENCODER = "M encoder"


@dataclass(frozen=True)
class Recipe:
    """Fine-tuning, the same for every backbone.

    Attributes:
        steps, early: in all, and where data efficiency is measured.
        batch, rate, warmup, clip: of Adam; the rate falls on a line to 0.
        temperature: of the loss.
        query, document: tokens read of each.
    """

    steps: int = 100
    early: int = 20
    batch: int = 32
    rate: float = 2e-3
    warmup: int = 5
    clip: float = 1.0
    temperature: float = 0.05
    query: int = 24
    document: int = 64


@dataclass(frozen=True)
class PretrainSettings:
    """Pretraining of decoders by the next word, or of an encoder by hidden words.

    Attributes:
        widths: name and width of each.
        causal: decoders; otherwise encoders with as many positions as ``length``.
        steps, batch, length, rate, warmup: of Adam (betas 0.9 and 0.98), constant after the warm-up.
        size, buckets: of the vocabulary.
        seed: of everything. Runs that differ in their steps alone go the same way, once both are longer than the warm-up.
    """

    widths: tuple[tuple[str, int], ...] = (("S", 32), ("M", 64), ("L", 128))
    causal: bool = True
    steps: int = 400
    batch: int = 32
    length: int = 64
    rate: float = 2e-3
    warmup: int = 30
    size: int = 1600
    buckets: int = 200
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Tokens read."""
        return self.steps * self.batch * self.length


@dataclass(frozen=True)
class LLMDenseSettings(Settings):
    """Settings of a run.

    Attributes:
        recipe: of fine-tuning.
        shipped: take the shipped backbones; otherwise ``pretraining`` is done in the run.
        pretraining: the long one, of decoders; the short one has a tenth of its steps, the encoder the middle width.
        train: pages to train on at most.
        test: pages of each test set.
        unseen: libraries of the zero-shot test.
        lengths: tokens of a document in the test of length.
        instruction_steps: of training with instructions.
        task_steps: of each task in multi-task training.
        negatives: hard ones of a query in the arm that has them.
        rank: of the adapters.
    """

    recipe: Recipe = Recipe()
    shipped: bool = True
    pretraining: PretrainSettings = PretrainSettings()
    train: int = 10_000
    test: int = TEST
    unseen: tuple[str, ...] = UNSEEN
    lengths: tuple[int, ...] = (128, 256)
    instruction_steps: int = 80
    task_steps: int = 40
    negatives: int = 1
    rank: int = 16


# --------------------------------------------------------------------------------------------------------------------------- backbones


def make_body(width: int, size: int, seed: int, *, causal: bool = True, longest: int = 64) -> CausalBody | TokenEncoder:
    """An untrained backbone of two layers and four heads, drawn by the seed."""
    with seeded(seed):
        if causal:
            return CausalBody(size, width)
        return TokenEncoder(size, width, longest=longest, types=1, norm_first=True)


@cache
def word_stream(size: int, buckets: int) -> tuple[HashedWords, Tensor]:
    """The vocabulary of the pretraining texts, and these as one row of numbers (n,), an end token after each."""
    texts = pretraining_texts()
    words = HashedWords.of(texts, size, buckets)
    return words, torch.tensor([number for text in texts for number in [*words.numbers(text), 1]])


def pretrain(body: CausalBody | TokenEncoder, settings: PretrainSettings, *, progress: str | None = None) -> list[float]:
    """Train a backbone in place on windows of the pretraining texts; the loss of each step."""
    row = word_stream(settings.size, settings.buckets)[1]
    draws = stream(settings.seed, "llm_dense", "pretraining")
    device = body.token.weight.device

    def loss_at(step: int) -> Tensor:
        begins = torch.randint(len(row) - settings.length, (settings.batch, 1), generator=draws)
        tokens = row[begins + torch.arange(settings.length)].to(device)
        if isinstance(body, CausalBody):
            return next_token_loss(body, tokens)
        return masked_word_loss(body, torch.cat([torch.full_like(tokens[:, :1], START), tokens[:, 1:]], 1), generator=draws)

    optimizer = torch.optim.Adam(body.parameters(), lr=settings.rate, betas=(0.9, 0.98), fused=True)
    warmup = min(settings.warmup, settings.steps)
    history = fit(body, loss_at, steps=settings.steps, optimizer=optimizer, warmup=warmup, clip=1.0, progress=progress)
    return list(history.losses)


LETTERS = 16_000  # bytes of the shipped words


class Backbones(nn.Module):
    """Pretrained backbones of some widths in half precision, with their words.

    Buffers: ``letters`` (16,000,) uint8, a word a line; ``losses`` (widths,), the mean pretraining loss of the last ten steps.
    """

    letters: Tensor
    losses: Tensor

    def __init__(self, settings: PretrainSettings) -> None:
        super().__init__()
        self.buckets = settings.buckets
        bodies = {
            name: make_body(width, settings.size, settings.seed, causal=settings.causal, longest=settings.length) for name, width in settings.widths
        }
        self.bodies = nn.ModuleDict(bodies).half()
        self.register_buffer("letters", torch.zeros(LETTERS, dtype=torch.uint8))
        self.register_buffer("losses", torch.zeros(len(settings.widths)))

    def keep_words(self, words: HashedWords) -> None:
        """Take over a vocabulary."""
        found = "\n".join(words.known).encode()
        if len(found) > LETTERS:
            raise ValueError(f"the words need {len(found)} bytes, {len(found) - LETTERS} more than the {LETTERS} there is room for")
        self.letters[: len(found)] = torch.tensor(list(found), dtype=torch.uint8)

    def words(self) -> HashedWords:
        """The vocabulary."""
        return HashedWords(bytes(self.letters[self.letters > 0].tolist()).decode().split("\n"), self.buckets)

    def body(self, name: str) -> CausalBody | TokenEncoder:
        """A copy of a backbone in single precision."""
        return cast(CausalBody | TokenEncoder, deepcopy(self.bodies[name]).float())


def train_backbones(settings: PretrainSettings, progress: str | None) -> Backbones:
    """Pretrain a backbone of each width."""
    model = Backbones(settings)
    model.keep_words(word_stream(settings.size, settings.buckets)[0])
    for row, (name, width) in enumerate(settings.widths):
        body = make_body(width, settings.size, settings.seed, causal=settings.causal, longest=settings.length)
        losses = pretrain(body, settings, progress=progress)
        model.losses[row] = sum(losses[-10:]) / len(losses[-10:])
        model.bodies[name].load_state_dict(body.state_dict())
    return model


def measure_backbones(model: nn.Module) -> dict[str, float]:
    """The loss of the last ten steps of each."""
    assert isinstance(model, Backbones)
    return {f"loss of {name}": round(float(loss), 3) for name, loss in zip(model.bodies, model.losses, strict=True)}


LONG = PretrainSettings()
EARLY = PretrainSettings(steps=40)
MASKED = PretrainSettings(widths=(("M", 64),), causal=False)
BACKBONES = Checkpoint("llm_dense-backbones", LONG, Backbones, train_backbones, measure_backbones)
SHORT = Checkpoint("llm_dense-short", EARLY, Backbones, train_backbones, measure_backbones)
ENCODERS = Checkpoint("llm_dense-masked", MASKED, Backbones, train_backbones, measure_backbones)


@dataclass(frozen=True)
class Shelf:
    """Backbones by their names, "M long" or "M encoder", and their words."""

    words: HashedWords
    models: Mapping[str, Backbones]
    settings: PretrainSettings

    def retriever(self, name: str, seed: int) -> DenseRetriever:
        """A copy of a backbone with the pooling of its family; what was not pretrained is drawn by the seed."""
        size, _, amount = name.partition(" ")
        if amount == "encoder":
            return DenseRetriever(self.models["encoder"].body(size), "cls")
        if amount == "none":
            return DenseRetriever(make_body(dict(self.settings.widths)[size], self.settings.size, 1000 + seed), "last")
        return DenseRetriever(self.models[amount].body(size), "last")

    def pretraining(self, name: str) -> int:
        """Tokens read in pretraining."""
        amount = name.partition(" ")[2]
        return 0 if amount == "none" else self.settings.tokens // (10 if amount == "short" else 1)


def shelf(settings: LLMDenseSettings) -> Shelf:
    """The shipped backbones, or new ones."""
    if settings.shipped:
        models = {"long": load(BACKBONES), "short": load(SHORT), "encoder": load(ENCODERS)}
    else:
        long = settings.pretraining
        values = {name: getattr(long, name) for name in ("batch", "length", "rate", "warmup", "size", "buckets", "seed")}
        short = PretrainSettings(widths=long.widths, steps=long.steps // 10, **values)
        masked = PretrainSettings(widths=long.widths[1:2], steps=long.steps, causal=False, **values)
        models = {name: train_backbones(made, None) for name, made in (("long", long), ("short", short), ("encoder", masked))}
    found = {name: cast(Backbones, model) for name, model in models.items()}
    return Shelf(found["long"].words(), found, settings.pretraining)


# ------------------------------------------------------------------------------------------------------------------------- fine-tuning


@dataclass(frozen=True)
class Packed:
    """A task as tokens.

    Attributes:
        train_queries, train_documents: (n, length) each.
        key: (n,) of the training documents.
        queries, documents: of the test.
        relevance, excluded: bool (queries, documents).
    """

    train_queries: Tensor
    train_documents: Tensor
    key: Tensor
    queries: Tensor
    documents: Tensor
    relevance: Tensor
    excluded: Tensor | None


def pack(task: SearchTask, words: HashedWords, recipe: Recipe, device: torch.device, *, document: int | None = None) -> Packed:
    """Tokens of a task; documents are cut at ``document`` tokens, else as in training."""
    longest = recipe.document if document is None else document
    asked = longest if task.long_query else recipe.query

    def tokens(texts: Sequence[str], most: int) -> Tensor:
        return words(texts, most, truncate=True).to(device)

    return Packed(
        tokens([query for query, _ in task.train], asked),
        tokens([text for _, text in task.train], longest),
        torch.tensor(task.key, dtype=torch.int64, device=device),
        tokens(task.queries, asked),
        tokens(task.documents, longest),
        task.relevance.to(device),
        None if task.excluded is None else task.excluded.to(device),
    )


def pair_loss(model: DenseRetriever, packed: Packed, rows: Tensor, recipe: Recipe, negatives: Tensor | None = None) -> Tensor:
    """The loss of some training pairs; ``negatives`` (n, h) are the rows of each pair's hard negatives."""
    rows = rows.to(packed.key.device)
    key = packed.key[rows]
    queries, documents = model(trim(packed.train_queries[rows])), model(trim(packed.train_documents[rows]))
    hard = None
    if negatives is not None:
        chosen = negatives[rows]
        vectors = model(trim(packed.train_documents[chosen.flatten()])).view(*chosen.shape, -1)
        hard, _ = without_positives(vectors, packed.key[chosen], key)
    return retrieval_loss(queries, documents, hard, temperature=recipe.temperature, same=key[:, None] == key)


def finetune(
    model: DenseRetriever,
    loss_at: Callable[[int], Tensor],
    recipe: Recipe,
    *,
    steps: int,
    after: Mapping[int, Callable[[], None]] | None = None,
    progress: str | None = None,
) -> DenseRetriever:
    """Train a retriever in place; ``after`` is called when so many steps are done (0: before the first)."""
    calls = dict(after or {})
    if 0 in calls:
        calls[0]()

    def after_step(step: int, loss: float) -> None:
        if step + 1 in calls:
            calls[step + 1]()

    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=recipe.rate, fused=True)
    warmup = min(recipe.warmup, steps)
    fit(
        model, loss_at, steps=steps, optimizer=optimizer, schedule="linear", warmup=warmup, clip=recipe.clip, after_step=after_step, progress=progress
    )
    return model.eval()


@torch.no_grad()
def vectors_of(model: DenseRetriever, tokens: Tensor, *, batch: int = 50) -> Tensor:
    """Vectors (n, width) of all texts, those of about one length together."""
    order = (tokens != PADDING).sum(1).argsort(descending=True)
    found = torch.cat([model(trim(tokens[rows])) for rows in torch.split(order, batch)])
    return torch.empty_like(found).index_copy_(0, order, found)


def measures_of(model: DenseRetriever, packed: Packed) -> dict[str, float]:
    """Means of nDCG, MRR and recall at ten on the test."""
    scores = vectors_of(model, packed.queries) @ vectors_of(model, packed.documents).T
    if packed.excluded is not None:
        scores = scores.masked_fill(packed.excluded, -2.0)
    return {name: float(values.mean()) for name, values in ranking(scores, packed.relevance).items()}


# --------------------------------------------------------------------------------------------------------------------- the six abilities


@dataclass(frozen=True)
class Bench:
    """All tests of a run, packed for one family of backbones."""

    words: HashedWords
    main: Packed
    longer: Mapping[int, Packed]
    unseen: Mapping[str, Packed]
    recipe: Recipe


def make_bench(settings: LLMDenseSettings, words: HashedWords, device: torch.device) -> Bench:
    """Pack the tests."""
    split = pages()
    task = search_task(split.train[: settings.train], split.test[: settings.test])
    bare = search_task((), split.test[: settings.test])
    recipe = settings.recipe
    return Bench(
        words,
        pack(task, words, recipe, device),
        {length: pack(bare, words, recipe, device, document=length) for length in settings.lengths if not words.start},
        {library: pack(unseen_task(library, settings.test), words, recipe, device) for library in settings.unseen},
        recipe,
    )


def abilities(model: DenseRetriever, bench: Bench, seed: int, *, after: Mapping[int, Callable[[], None]] | None = None) -> dict[str, float]:
    """Fine-tune on the pairs and measure abilities one to four; the model is trained in place."""
    recipe, found = bench.recipe, dict[str, float]()
    rows = batch_rows(len(bench.main.key), recipe.batch, recipe.steps, generator=stream(seed, "llm_dense", "batches"))

    def early() -> None:
        found["early"] = measures_of(model, bench.main)["ndcg"]

    def loss_at(step: int) -> Tensor:
        return pair_loss(model, bench.main, rows[step], recipe)

    finetune(model, loss_at, recipe, steps=recipe.steps, after={recipe.early: early} if after is None else after)
    found |= measures_of(model, bench.main)
    found |= {library: measures_of(model, packed)["ndcg"] for library, packed in bench.unseen.items()}
    if bench.unseen:
        found["zero-shot"] = sum(found[library] for library in bench.unseen) / len(bench.unseen)
    found |= {f"length {length}": measures_of(model, packed)["ndcg"] for length, packed in bench.longer.items()}
    if bench.longer:
        found["length change"] = found[f"length {max(bench.longer)}"] - found["ndcg"]
    return found


def cost_of(model: DenseRetriever, bench: Bench) -> float:
    """Floating-point operations of fine-tuning, in 10^9: one step counted, times the steps."""
    rows = torch.arange(bench.recipe.batch) % len(bench.main.key)
    probe = deepcopy(model)
    step = count_flops(lambda: pair_loss(probe, bench.main, rows, bench.recipe).backward())  # type: ignore[no-untyped-call]
    return step * bench.recipe.steps / 1e9


@dataclass(frozen=True)
class Instructed:
    """Queries that ask for one of two kinds of document of a page, with and without words that say which.

    Attributes:
        train: with the seen wording, and without instructions.
        kinds: bool (documents,), which are notes.
        tests: the test queries with instructions of each wording, and without.
        documents: tokens of both kinds of each page, in turn.
    """

    train: Mapping[str, Packed]
    kinds: Tensor
    tests: Mapping[str, Tensor]
    documents: Tensor


def make_instructed(settings: LLMDenseSettings, words: HashedWords, seed: int, device: torch.device) -> Instructed:
    """Pack the pages that have both kinds; each asks twice. The wording of each query is drawn by the seed."""
    recipe = settings.recipe
    own, other = with_both(pages().train[: settings.train]), with_both(pages().test[: settings.test])

    def told(pairs: Sequence[object], wording: Wording) -> tuple[str, ...]:
        kinds: list[Kind] = [*KINDS] * len(pairs)
        return instructed(kinds, wording, stream(seed, "llm_dense", "instructions", wording, len(pairs)))

    def asked(texts: list[str], instructions: Sequence[str] | None) -> Tensor:
        return words(texts, recipe.query, truncate=True, instructions=instructions).to(device)

    queries, tested = [pair.query for pair in own for _ in KINDS], [pair.query for pair in other for _ in KINDS]
    documents = [kind_text(pair, kind) for pair in own for kind in KINDS]
    table = words(documents, recipe.document, truncate=True).to(device)
    found = words([kind_text(pair, kind) for pair in other for kind in KINDS], recipe.document, truncate=True).to(device)
    key = torch.arange(len(table), device=device)
    right = torch.eye(len(found), dtype=torch.bool, device=device)
    tests = {
        "none": asked(tested, None),
        "seen": asked(tested, told(other, "seen")),
        "unseen": asked(tested, told(other, "unseen")),
    }
    train = {
        name: Packed(asked(queries, told(own, "seen") if name == "seen" else None), table, key, tests[name], found, right, None)
        for name in ("seen", "none")
    }
    kinds = torch.arange(len(found), device=device) % 2 == 1
    return Instructed(train, kinds, tests, found)


def followed(model: DenseRetriever, world: Instructed, wording: str) -> dict[str, float]:
    """How well the asked kind is found: nDCG among both kinds and among its own kind, and how often the page's right kind is before the other."""
    scores = vectors_of(model, world.tests[wording]) @ vectors_of(model, world.documents).T
    right = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    other = world.kinds[:, None] != world.kinds
    place = torch.arange(len(scores), device=scores.device)
    return {
        "mixed": float(ranking(scores, right)["ndcg"].mean()),
        "one kind": float(ranking(scores.masked_fill(other, -2.0), right)["ndcg"].mean()),
        "followed": float((scores[place, place] > scores[place, place ^ 1]).double().mean()),
    }


def instruction_arms(name: str, found: Shelf, settings: LLMDenseSettings, seed: int, device: torch.device) -> Arms:
    """Ability five: the same pairs and steps, with and without instructions before the queries."""
    words = found.words.with_start(name == ENCODER)
    world, arms = make_instructed(settings, words, seed, device), Arms()
    for told, arm in (("none", f"{name}, no instructions"), ("seen", f"{name}, instructions")):
        model = found.retriever(name, seed).to(device)
        train_instructed(model, world, told, settings, seed)
        arms[arm] = followed(model, world, told)
        if told == "seen":
            unseen = followed(model, world, "unseen")
            arms[arm] |= {"unseen": unseen["mixed"], "followed, unseen": unseen["followed"]}
            arms[arm]["unseen change"] = unseen["mixed"] - arms[arm]["mixed"]
            for metric in ("mixed", "one kind"):
                arms[arm][f"gain, {metric}"] = arms[arm][metric] - arms[f"{name}, no instructions"][metric]
    return arms


def train_instructed(
    model: DenseRetriever,
    world: Instructed,
    told: str,
    settings: LLMDenseSettings,
    seed: int,
    *,
    after: Mapping[int, Callable[[], None]] | None = None,
    progress: str | None = None,
) -> None:
    """Fine-tune in place with the seen instructions, or with none."""
    packed, recipe, steps = world.train[told], settings.recipe, settings.instruction_steps
    rows = both_kinds(len(packed.key) // 2, recipe.batch, steps, generator=stream(seed, "llm_dense", "instructed batches"))
    finetune(model, lambda step: pair_loss(model, packed, rows[step], recipe), recipe, steps=steps, after=after, progress=progress)


def both_kinds(count: int, batch: int, steps: int, *, generator: torch.Generator) -> Tensor:
    """Rows (steps, batch) with both kinds of each page in a batch: the kind that is not asked for is the hard negative."""
    drawn = 2 * batch_rows(count, batch // 2, steps, generator=generator)
    return torch.stack([drawn, drawn + 1], 2).flatten(1)


def task_arms(name: str, found: Shelf, settings: LLMDenseSettings, seed: int, device: torch.device) -> Arms:
    """Ability six: one model for all tasks, each batch from one of them, against one model a task with as many steps of each."""
    words, recipe, each = found.words.with_start(name == ENCODER), settings.recipe, settings.task_steps
    packs = make_tasks(settings, words, device)
    single = dict[str, float]()
    for number, (task, packed) in enumerate(packs.items()):
        model = found.retriever(name, seed).to(device)
        loss_at = task_loss(model, [packed], torch.zeros(each, dtype=torch.int64), recipe, seed, first=number)
        single[task] = measures_of(finetune(model, loss_at, recipe, steps=each), packed)["ndcg"]
    model = found.retriever(name, seed).to(device)
    order = task_order(len(packs), each, generator=stream(seed, "llm_dense", "task order"))
    finetune(model, task_loss(model, list(packs.values()), order, recipe, seed), recipe, steps=len(order))
    joint = {task: measures_of(model, packed)["ndcg"] for task, packed in packs.items()}
    for values in (single, joint):
        values["tasks"] = sum(values.values()) / len(packs)
    joint["task change"] = joint["tasks"] - single["tasks"]
    return {f"{name}, one model a task": single, f"{name}, all tasks": joint}


def make_tasks(settings: LLMDenseSettings, words: HashedWords, device: torch.device) -> dict[str, Packed]:
    """The four tasks, packed."""
    made = tasks(pages().train[: settings.train], pages().test[: settings.test])
    return {task.name: pack(task, words, settings.recipe, device) for task in made}


def task_loss(model: DenseRetriever, packs: Sequence[Packed], order: Tensor, recipe: Recipe, seed: int, *, first: int = 0) -> Callable[[int], Tensor]:
    """The loss of each step, of the task that ``order`` names; a task sees the same batches in the same order, alone and with others."""
    count = [int((order == number).sum()) for number in range(len(packs))]
    rows = [
        batch_rows(len(packed.key), recipe.batch, count[i], generator=stream(seed, "llm_dense", "task batches", first + i))
        for i, packed in enumerate(packs)
    ]
    place = [int((order[:step] == order[step]).sum()) for step in range(len(order))]

    def loss_at(step: int) -> Tensor:
        task = int(order[step])
        return pair_loss(model, packs[task], rows[task][place[step]], recipe)

    return loss_at


def variant_arms(bench: Bench, found: Shelf, settings: LLMDenseSettings, seed: int, device: torch.device) -> Arms:
    """The same backbone and batches with hard negatives, and with adapters in place of all weights."""
    recipe, packed, arms = settings.recipe, bench.main, Arms()
    rows = batch_rows(len(packed.key), recipe.batch, recipe.steps, generator=stream(seed, "llm_dense", "batches"))
    train = pages().train[: settings.train]
    scores = TfIdf([pair.document for pair in train]).scores([pair.query for pair in train])
    negatives = hard_negatives(scores, torch.arange(len(train)), settings.negatives).to(device)
    model = found.retriever("M long", seed).to(device)
    finetune(model, lambda step: pair_loss(model, packed, rows[step], recipe, negatives), recipe, steps=recipe.steps)
    arms["M long, hard negatives"] = measures_of(model, packed)
    adapted = found.retriever("M long", seed)
    adapt(adapted.body, rank=settings.rank, alpha=2.0 * settings.rank, generator=stream(seed, "llm_dense", "adapters"))  # type: ignore[arg-type]
    adapted = adapted.to(device)
    finetune(adapted, lambda step: pair_loss(adapted, packed, rows[step], recipe), recipe, steps=recipe.steps)
    arms["M long, LoRA"] = measures_of(adapted, packed) | {"learned": float(count_parameters(adapted, trainable=True))}
    return arms


@cache
def lexical(test: int, unseen: tuple[str, ...], document: int) -> Arms:
    """TF-IDF and BM25 on whole documents and on as many words as the retrievers read; no seed enters."""
    split, arms = pages(), Arms()
    makers: dict[str, Callable[[Sequence[str]], TfIdf | BM25]] = {"TF-IDF": TfIdf, "BM25": BM25}
    sets = {"ndcg": search_task((), split.test[:test])} | {library: unseen_task(library, test) for library in unseen}

    def score(task: SearchTask, make: Callable[[Sequence[str]], TfIdf | BM25], most: int | None) -> dict[str, float]:
        texts = task.documents if most is None else [" ".join(pieces(text)[:most]) for text in task.documents]
        return {name: float(values.mean()) for name, values in ranking(make(texts).scores(task.queries), task.relevance).items()}

    for name, make in makers.items():
        whole = {metric: score(task, make, None) for metric, task in sets.items()}
        arms[name] = dict(whole["ndcg"]) | {library: whole[library]["ndcg"] for library in unseen}
        arms[name]["zero-shot"] = sum(arms[name][library] for library in unseen) / len(unseen)
        arms[f"{name}, first words"] = score(sets["ndcg"], make, document)
    return arms


def run(settings: LLMDenseSettings, seed: int, device: torch.device) -> Arms:
    """All backbones of one seed."""
    found, arms = shelf(settings), Arms()
    for family in (False, True):
        bench = make_bench(settings, found.words.with_start(family), device)
        for name in (ENCODER,) if family else [f"{size} {amount}" for size in SIZES for amount in AMOUNTS]:
            model = found.retriever(name, seed).to(device)
            cost = cost_of(model, bench)
            arms[name] = abilities(model, bench, seed)
            arms[name] |= {"parameters": float(count_parameters(model)), "pretraining": float(found.pretraining(name)), "cost": cost}
        if not family:
            arms |= variant_arms(bench, found, settings, seed, device)
    for name in ("M long", ENCODER):
        arms |= instruction_arms(name, found, settings, seed, device)
        arms |= task_arms(name, found, settings, seed, device)
    return arms | lexical(settings.test, settings.unseen, settings.recipe.document)


_FEW = Recipe(steps=4, early=2, batch=8, warmup=1)
SCALES: Mapping[str, LLMDenseSettings] = {
    "quick": LLMDenseSettings(seeds=1, recipe=_FEW, train=250, test=60, unseen=("networkx",), lengths=(96,), instruction_steps=4, task_steps=2),
    "laptop": LLMDenseSettings(seeds=5),
    "paper": LLMDenseSettings(
        seeds=3,
        recipe=Recipe(steps=4000, early=100, batch=128, rate=3e-4, warmup=200, document=256),
        shipped=False,
        pretraining=PretrainSettings(widths=(("S", 128), ("M", 256), ("L", 512)), steps=20_000, length=256, size=8000, rate=1e-3, warmup=500),
        unseen=(*UNSEEN, "cranfield"),
        lengths=(512, 1024),
        instruction_steps=1000,
        task_steps=1000,
        negatives=7,
    ),
}


def _grid_claims(metric: str, margin: float, what: str, amounts: Sequence[str]) -> tuple[Claim, ...]:
    """Long over no pretraining at each size, and each size over the smaller one at some amounts."""
    pretrained = tuple(
        Claim(f"{size} long", f"{size} none", metric, margin, says=f"{what}: 400 steps of pretraining over none, size {size}") for size in SIZES
    )
    larger = tuple(
        Claim(f"{big} {amount}", f"{small} {amount}", metric, margin, says=f"{what}: size {big} over {small}, pretraining: {amount}")
        for amount in amounts
        for small, big in (("S", "M"), ("M", "L"))
    )
    return pretrained + larger


CLAIMS = (
    *_grid_claims("ndcg", 0.03, "in-domain", ("none", "long")),
    *_grid_claims("early", 0.03, "after 20 steps", ()),
    *_grid_claims("zero-shot", 0.02, "zero-shot", ("none", "long")),
    Claim("L long", "S long", "length change", says="the larger backbone keeps more at four times the length it was trained at"),
    Claim("M long", None, "length change", -0.03, says="rotary positions: at most 0.03 is lost at four times the length of training"),
    Claim("M none", "M short", "ndcg", 0.02, says="40 steps of pretraining are worse than none"),
    Claim("M long", ENCODER, "ndcg", 0.03, says="in-domain: a causal language model over an encoder by hidden words, same width and tokens"),
    Claim("M long", ENCODER, "zero-shot", 0.02, says="zero-shot: the same"),
    Claim("M long, instructions", None, "gain, mixed", 0.02, says="instructions that name the kind of document raise nDCG among both kinds"),
    Claim(
        "M long, instructions",
        None,
        "gain, one kind",
        0.0,
        says="they raise it where only documents of that kind are searched (the paper: 1.4 to 3.2)",
    ),
    Claim("M long, instructions", None, "followed", 0.75, says="told the kind, three of four queries have that document of a page before the other"),
    Claim("M long, instructions", None, "unseen change", -0.03, says="instructions in a wording that was not trained lose at most 0.03"),
    Claim(
        "M long, instructions", f"{ENCODER}, instructions", "gain, mixed", 0.02, says="the language model gains more by instructions than the encoder"
    ),
    Claim("M long, all tasks", None, "task change", -0.03, says="one model for four tasks loses at most 0.03 against one model a task"),
    Claim("M long, all tasks", f"{ENCODER}, all tasks", "task change", says="and it loses less than the encoder does"),
    Claim("TF-IDF", "L long", "ndcg", 0.03, says="words as they are over the best backbone here"),
)

UNITS = {
    "ndcg": "nDCG@10, in-domain",
    "mrr": "MRR@10, in-domain",
    "recall": "recall at 10, in-domain",
    "early": "nDCG@10, in-domain, after the early steps",
    "zero-shot": "nDCG@10, mean of the unseen libraries",
    **{name: f"nDCG@10 on {name}" for name in (*UNSEEN, "cranfield")},
    **{f"length {length}": f"nDCG@10, documents of {length} tokens" for length in sorted({n for s in SCALES.values() for n in s.lengths})},
    "length change": "nDCG@10, longest documents less those of training",
    "parameters": "parameters",
    "learned": "parameters that learn",
    "pretraining": "tokens of pretraining",
    "cost": "billion operations of fine-tuning",
    "mixed": "nDCG@10 among documents of both kinds",
    "one kind": "nDCG@10 among documents of the kind asked for",
    "followed": "share of queries with the right kind before the other",
    "unseen": "nDCG@10 among both kinds, unseen wording",
    "followed, unseen": "share with the right kind first, unseen wording",
    "unseen change": "nDCG@10, unseen less seen wording",
    "gain, mixed": "nDCG@10 among both kinds, with less without instructions",
    "gain, one kind": "nDCG@10 among one kind, with less without instructions",
    **{task: f"nDCG@10, {task}" for task in TASKS},
    "tasks": "nDCG@10, mean of four tasks",
    "task change": "nDCG@10, one model for all less one a task",
}

EXPERIMENT = Experiment(
    paper="llm_dense",
    question="Size or pretraining of the backbone: which one helps which ability of a dense retriever?",
    scales=SCALES,
    claims=CLAIMS,
    run=run,
    units=UNITS,
    pairs="fine-tuning seeds of shipped backbones",
)


# ---------------------------------------------------------------------------------------------------------------------- one tidy table

ABILITIES: Mapping[str, tuple[str, ...]] = {
    "in-domain": ("ndcg", "mrr", "recall"),
    "data efficiency": ("early",),
    "zero-shot": ("zero-shot", *UNSEEN, "cranfield"),
    "length": ("length 96", "length 128", "length 256", "length 512", "length 1024", "length change"),
    "instructions": ("mixed", "one kind", "followed", "unseen", "followed, unseen", "unseen change", "gain, mixed", "gain, one kind"),
    "multi-task": (*TASKS, "tasks", "task change"),
}


@dataclass(frozen=True)
class Row:
    """One figure of the study.

    Attributes:
        backbone, variant: "M long" and how it was trained where that differs from the recipe.
        parameters, pretraining: of the backbone, numbers and tokens; None for what has none.
        ability, metric, seed, value: what was measured.
    """

    backbone: str
    variant: str
    parameters: int | None
    pretraining: int | None
    ability: str
    metric: str
    seed: int
    value: float


def tidy(result: Result) -> tuple[Row, ...]:
    """A result as one table, a row for each backbone, metric and seed."""
    found = []
    for arm, metrics in result.arms.items():
        backbone, _, variant = arm.partition(", ")
        facts = result.arms[backbone]
        about = [int(facts[name].values[0]) if name in facts else None for name in ("parameters", "pretraining")]
        for metric, spread in metrics.items():
            ability = "in-domain" if metric in ABILITIES["in-domain"] else next((a for a, names in ABILITIES.items() if metric in names), "")
            if ability:
                found += [Row(backbone, variant, about[0], about[1], ability, metric, seed, value) for seed, value in enumerate(spread.values)]
    return tuple(found)


# -------------------------------------------------------------------------------------------- what ships: an encoder, and the explorer's grid


@dataclass(frozen=True)
class EncoderSettings:
    """What the shipped encoder depends on.

    Attributes:
        pretraining: of its backbone, the shipped M long.
        options: of fine-tuning; each batch is from one of two tasks, pages by their summary and kinds of documents by instruction.
        each: steps of each task.
        seed: of everything.
    """

    pretraining: PretrainSettings = PretrainSettings(widths=(("M", 64),))
    options: LLMDenseSettings = LLMDenseSettings(seeds=1)
    each: int = 300
    seed: int = 0


def train_encoder(settings: EncoderSettings, progress: str | None) -> Backbones:
    """Fine-tune M long on pages that no test has, of all five libraries, half of the batches with instructions."""
    found, options = shelf(settings.options), settings.options
    split, recipe, device = pages(), options.recipe, torch.device("cpu")
    tested = {pair.page.name for part in (split.test, *split.unseen.values()) for pair in part}
    train = tuple(pair for pair in docstring_pairs() if pair.page.name not in tested)[: options.train]
    plain = pack(search_task(train, split.test[: options.test]), found.words, recipe, device)
    told = make_instructed(options, found.words, settings.seed, device).train["seen"]
    model = found.retriever("M long", settings.seed)
    draws = stream(settings.seed, "llm_dense", "encoder")
    order = task_order(2, settings.each, generator=draws)
    rows = [
        batch_rows(len(plain.key), recipe.batch, len(order), generator=draws),
        both_kinds(len(told.key) // 2, recipe.batch, len(order), generator=draws),
    ]

    def loss_at(step: int) -> Tensor:
        task = int(order[step])
        return pair_loss(model, (plain, told)[task], rows[task][step], recipe)

    finetune(model, loss_at, recipe, steps=len(order), progress=progress)
    shipped = Backbones(settings.pretraining)
    shipped.keep_words(found.words)
    shipped.bodies["M"].load_state_dict(cast(CausalBody, model.body).state_dict())
    return shipped


def measure_encoder(model: nn.Module) -> dict[str, float]:
    """nDCG@10 on the four test sets, and how often an instruction is followed."""
    assert isinstance(model, Backbones)
    options, device, words = LLMDenseSettings(seeds=1), torch.device("cpu"), model.words()
    retriever, bench = DenseRetriever(model.body("M")).eval(), make_bench(options, words, device)
    found = {"in-domain": measures_of(retriever, bench.main)["ndcg"]}
    found |= {library: measures_of(retriever, packed)["ndcg"] for library, packed in bench.unseen.items()}
    world = make_instructed(options, words, 0, device)
    return found | {f"followed, {wording}": followed(retriever, world, wording)["followed"] for wording in ("seen", "unseen")}


SHOWN = tuple(ABILITIES)


@dataclass(frozen=True)
class GridSettings:
    """What the explorer's figures depend on.

    Attributes:
        options: of the runs.
        steps: after which the six abilities are measured.
        rates: of the sweep, beside the recipe's.
        seed: of everything; none of the recorded ones.
    """

    options: LLMDenseSettings = LLMDenseSettings(seeds=1, instruction_steps=100, task_steps=100)
    steps: tuple[int, ...] = (0, 10, 20, 50, 100)
    rates: tuple[float, ...] = (1e-3, 3e-3)
    seed: int = 100


class GridTable(nn.Module):
    """Figures by ability, size, amount of pretraining and step; NaN where nothing was measured.

    Buffers: ``score`` (6, 3, 3, steps); ``cost`` (3, 3, steps), billion operations of fine-tuning and pretraining; ``sweep`` (rates, 3, 2), nDCG@10
    in-domain of each size without and with the long pretraining.
    """

    def __init__(self, settings: GridSettings) -> None:
        super().__init__()
        steps = len(settings.steps)
        self.register_buffer("score", torch.full((len(SHOWN), 3, 3, steps), torch.nan))
        self.register_buffer("cost", torch.zeros(3, 3, steps))
        self.register_buffer("sweep", torch.zeros(len(settings.rates), 3, 2))


def train_grid(settings: GridSettings, progress: str | None) -> GridTable:
    """Fine-tune every cell and look at it again and again; then instructions, tasks and other rates."""
    table, options, seed, device = GridTable(settings), settings.options, settings.seed, torch.device("cpu")
    found, recipe = shelf(options), options.recipe
    bench = make_bench(options, found.words, device)
    score, cost = table.get_buffer("score"), table.get_buffer("cost")
    longest = max(bench.longer)
    for i, size in enumerate(SIZES):
        for j, amount in enumerate(AMOUNTS):
            name = f"{size} {amount}"
            model = found.retriever(name, seed)
            step_cost = cost_of(model, bench) / recipe.steps
            before = _pretraining_cost(model, found.settings) * found.pretraining(name) / 1e9

            def look(place: int, i: int = i, j: int = j, model: DenseRetriever = model) -> None:
                score[0, i, j, place] = measures_of(model, bench.main)["ndcg"]
                score[2, i, j, place] = sum(measures_of(model, packed)["ndcg"] for packed in bench.unseen.values()) / len(bench.unseen)
                score[3, i, j, place] = measures_of(model, bench.longer[longest])["ndcg"]

            abilities(model, replace(bench, unseen={}, longer={}), seed, after=_looks(settings, look))
            score[1, i, j] = score[0, i, j] / score[0, i, j, -1]
            cost[i, j] = torch.tensor([step_cost * step + before for step in settings.steps])
    cell = (SIZES.index("M"), AMOUNTS.index("long"))
    _look_at_instructions(settings, found, score[4, cell[0], cell[1]])
    _look_at_tasks(settings, found, score[5, cell[0], cell[1]])
    for row, rate in enumerate(settings.rates):
        other = replace(bench, recipe=replace(recipe, rate=rate), unseen={}, longer={})
        for i, size in enumerate(SIZES):
            for column, amount in enumerate(("none", "long")):
                table.get_buffer("sweep")[row, i, column] = abilities(found.retriever(f"{size} {amount}", seed), other, seed, after={})["ndcg"]
    return table


def _looks(settings: GridSettings, look: Callable[[int], None]) -> dict[int, Callable[[], None]]:
    """``look`` with the place of each step that is shown."""
    return {step: (lambda place=place: look(place)) for place, step in enumerate(settings.steps)}  # type: ignore[misc]


def _pretraining_cost(model: DenseRetriever, settings: PretrainSettings) -> float:
    """Operations of pretraining for a token."""
    body = cast(CausalBody, deepcopy(model.body))
    tokens = torch.ones(2, settings.length, dtype=torch.int64)
    return count_flops(lambda: next_token_loss(body, tokens).backward()) / tokens.numel()  # type: ignore[no-untyped-call]


def _look_at_instructions(settings: GridSettings, found: Shelf, row: Tensor) -> None:
    """NDCG among both kinds, with less without instructions, at each step; written into ``row``."""
    options, seed = settings.options, settings.seed
    world = make_instructed(options, found.words, seed, torch.device("cpu"))
    values: dict[str, list[float]] = {"none": [], "seen": []}
    for told, seen in values.items():
        model = found.retriever("M long", seed)

        def look(place: int, told: str = told, seen: list[float] = seen, model: DenseRetriever = model) -> None:
            seen.append(followed(model, world, told)["mixed"])

        train_instructed(model, world, told, options, seed, after=_looks(settings, look))
    row.copy_(torch.tensor(values["seen"]) - torch.tensor(values["none"]))


def _look_at_tasks(settings: GridSettings, found: Shelf, row: Tensor) -> None:
    """NDCG of one model for four tasks, less that of one a task, at as many steps of each; written into ``row``."""
    options, seed, recipe = settings.options, settings.seed, settings.options.recipe
    each, packs = options.task_steps, list(make_tasks(options, found.words, torch.device("cpu")).values())
    alone = torch.zeros(len(packs), len(settings.steps))
    together = torch.zeros_like(alone)
    for number, packed in enumerate(packs):
        model = found.retriever("M long", seed)

        def look(place: int, number: int = number, packed: Packed = packed, model: DenseRetriever = model) -> None:
            alone[number, place] = measures_of(model, packed)["ndcg"]

        loss_at = task_loss(model, [packed], torch.zeros(each, dtype=torch.int64), recipe, seed, first=number)
        finetune(model, loss_at, recipe, steps=each, after=_looks(settings, look))
    joint = found.retriever("M long", seed)

    def look_at_all(place: int) -> None:
        together[:, place] = torch.tensor([measures_of(joint, packed)["ndcg"] for packed in packs])

    order = task_order(len(packs), each, generator=stream(seed, "llm_dense", "task order"))
    after = {step * len(packs): call for step, call in _looks(settings, look_at_all).items()}
    finetune(joint, task_loss(joint, packs, order, recipe, seed), recipe, steps=len(order), after=after)
    row.copy_((together - alone).mean(0))


def measure_grid(model: nn.Module) -> dict[str, float]:
    """nDCG@10 in-domain at the end, of the corners."""
    score = model.get_buffer("score")[0, :, :, -1]
    return {f"{SIZES[i]} {AMOUNTS[j]}": round(float(score[i, j]), 4) for i in (0, 2) for j in (0, 2)}


SHIPPED = Checkpoint("llm_dense-encoder", EncoderSettings(), lambda s: Backbones(s.pretraining), train_encoder, measure_encoder)
GRID = Checkpoint("llm_dense-grid", GridSettings(), GridTable, train_grid, measure_grid)
CHECKPOINTS = (BACKBONES, SHORT, ENCODERS, SHIPPED, GRID)
