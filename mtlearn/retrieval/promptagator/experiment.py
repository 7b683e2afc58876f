"""Do a few examples and a writer of queries make a better retriever than no example, the examples themselves, or the labels of another domain?

All arms of a seed search the same documents with the same test queries and begin with the same encoder. The writer is the extractive one: what eight
examples can teach without a language model.
"""

import statistics
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtlearn.datasets.bm25 import BM25
from mtlearn.datasets.docstring_search import docstring_pairs
from mtlearn.datasets.tfidf import TfIdf
from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import stream
from mtlearn.layers.search import ExactIndex
from mtlearn.layers.tokens import Vocabulary, from_letters, to_letters
from mtlearn.retrieval.promptagator.method import (
    MOST_EXAMPLES,
    BagEncoder,
    Bags,
    Example,
    LateInteraction,
    Synthetic,
    consistent,
    different_sources,
    pair_loss,
    rerank,
    rerank_loss,
    sample_negatives,
    source_rank,
    write,
)
from mtlearn.retrieval.promptagator.worlds import Read, World, cranfield_world, docstring_world, ndcg, sectioned
from mtlearn.retrieval.promptagator.writers import ExtractiveWriter, Statistics, few_shot_writer, zero_shot_writer

CORRUPTIONS = ("wrong document", "frequent words")


@dataclass(frozen=True)
class Recipe:
    """Training.

    Attributes:
        dim: of the encoder.
        steps, rate, batch, temperature: of the dual encoder, by Adam.
        negatives, retrieved: of the reranker: wrong documents a query, and from how many they are drawn; as many are reranked.
        rerank_steps, rerank_rate, rerank_batch: of the reranker.
    """

    dim: int = 256
    steps: int = 120
    rate: float = 3e-3
    batch: int = 128
    temperature: float = 0.05
    negatives: int = 15
    retrieved: int = 50
    rerank_steps: int = 300
    rerank_rate: float = 3e-3
    rerank_batch: int = 64


@dataclass(frozen=True)
class PromptagatorSettings(Settings):
    """Settings of a run.

    Attributes:
        recipe: of training.
        source: "docstrings" or "cranfield".
        documents: of the corpus at most.
        pool: labelled pairs, of which examples are drawn; all of them train the arm with real pairs.
        vocabulary: of the encoder.
        per_document: queries written.
        k: of the filter.
        draws: sets of examples, and as many training seeds for one set.
        corrupted: share of pairs that the arms with a bad writer corrupt.
        others: labelled pairs of another domain at most.
    """

    recipe: Recipe = Recipe()
    source: str = "docstrings"
    documents: int = 10_000
    pool: int = 600
    vocabulary: int = 5000
    per_document: int = 8
    k: int = 1
    draws: int = 4
    corrupted: float = 0.3
    others: int = 2000


@dataclass(frozen=True)
class Task:
    """A world made ready.

    Attributes:
        world: texts.
        read: words of its documents.
        vocabulary: of the encoder.
        documents, queries: packed.
        start: the encoder with which every arm begins.
        device: of the training.
    """

    world: World
    read: Read
    vocabulary: Vocabulary
    documents: Bags
    queries: Bags
    start: BagEncoder
    device: torch.device

    def pack(self, texts: Sequence[str]) -> Bags:
        """Texts as bags on the device."""
        return Bags.of(texts, self.vocabulary).to(self.device)


@dataclass(frozen=True)
class Pairs:
    """Training pairs, packed: query i belongs to document ``source[i]`` of ``documents``."""

    queries: Bags
    documents: Bags
    source: Tensor

    def take(self, kept: Tensor) -> "Pairs":
        """Those of a mask."""
        rows = kept.nonzero()[:, 0]
        return Pairs(self.queries.take(rows), self.documents, self.source[rows])


def encoder_for(vocabulary: Vocabulary, read: Statistics, dim: int, seed: int) -> BagEncoder:
    """The untrained encoder of a vocabulary: a random projection of TF-IDF."""
    return BagEncoder(read.idf(list(vocabulary.number)), dim, generator=stream(seed, "promptagator", "rows"))


def make_task(settings: PromptagatorSettings, seed: int, device: torch.device) -> Task:
    """Texts, words and the encoder of one seed."""
    if settings.source == "cranfield":
        world = cranfield_world(seed, pool=settings.pool)
    else:
        world = docstring_world(seed, documents=settings.documents, pool=settings.pool)
    read = Read.of(world.documents)
    vocabulary = Vocabulary.of(world.documents, settings.vocabulary)
    start = encoder_for(vocabulary, read.statistics, settings.recipe.dim, seed).to(device)
    documents, queries = Bags.of(world.documents, vocabulary).to(device), Bags.of(world.queries, vocabulary).to(device)
    return Task(world.to(device), read, vocabulary, documents, queries, start, device)


def labelled(examples: Sequence[Example], task: Task) -> Pairs:
    """Labelled pairs as training pairs; one document has one number."""
    number = {text: i for i, text in enumerate(dict.fromkeys(example.document for example in examples))}
    source = torch.tensor([number[example.document] for example in examples], device=task.device)
    return Pairs(task.pack([example.query for example in examples]), task.pack(list(number)), source)


def written(writer: ExtractiveWriter, task: Task, settings: PromptagatorSettings, seed: int, name: str) -> Synthetic:
    """What a writer writes for all documents, whose words are read already."""
    count = settings.per_document

    def reading(documents: Sequence[str], *, per_document: int, generator: torch.Generator | None = None) -> list[list[str]]:
        if len(documents) == len(task.world.documents):
            return writer.draw(task.read.table, len(documents), per_document=per_document, generator=generator)
        return writer(documents, per_document=per_document, generator=generator)

    return write(reading, task.world.documents, per_document=count, generator=stream(seed, "promptagator", "write", name))


def packed(found: Synthetic, task: Task) -> Pairs:
    """Written pairs as training pairs."""
    return Pairs(task.pack(found.queries), task.documents, found.source.to(task.device))


def train(start: BagEncoder, pairs: Pairs, recipe: Recipe, seed: int, *, steps: int | None = None, progress: str | None = None) -> BagEncoder:
    """A copy of the encoder, trained on pairs; no two of one document are in a batch."""
    encoder = deepcopy(start)
    draws = stream(seed, "promptagator", "batches")

    def loss_at(step: int) -> Tensor:
        rows = different_sources(pairs.source, recipe.batch, generator=draws)
        source = pairs.source[rows]
        return pair_loss(encoder(pairs.queries.take(rows)), encoder(pairs.documents.take(source)), temperature=recipe.temperature)

    optimizer = torch.optim.Adam(encoder.parameters(), lr=recipe.rate, fused=True)
    fit(encoder, loss_at, steps=recipe.steps if steps is None else steps, optimizer=optimizer, progress=progress)
    return encoder.eval()


@torch.no_grad()
def scores_of(encoder: BagEncoder, task: Task) -> Tensor:
    """Cosines (q, n) of test queries and documents."""
    queries: Tensor = encoder(task.queries)
    documents: Tensor = encoder(task.documents)
    return queries @ documents.T


def measured(encoder: BagEncoder, task: Task) -> float:
    """nDCG@10 on the test queries."""
    return ndcg(scores_of(encoder, task), task.world.relevance)


@torch.no_grad()
def ranks(encoder: BagEncoder, pairs: Pairs) -> Tensor:
    """How many documents are before the source of each written query."""
    return source_rank(encoder(pairs.queries), encoder(pairs.documents), pairs.source)


def corrupt(found: Synthetic, share: float, kind: str, frequent: Sequence[str], *, generator: torch.Generator) -> tuple[Synthetic, Tensor]:
    """A writer that makes mistakes: a share of its queries belongs to another document, or is the same frequent words.

    Returns:
        the pairs and which of them are corrupted, bool (m,).

    Raises:
        ValueError: a share outside [0, 1], or an unknown kind.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    if kind not in CORRUPTIONS:
        raise ValueError(f"kind must be one of {', '.join(CORRUPTIONS)}, got {kind!r}")
    count = len(found.queries)
    rows = torch.randperm(count, generator=generator)[: round(share * count)]
    queries = list(found.queries)
    other = torch.randint(count, (len(rows),), generator=generator)
    for _ in range(100):  # a query of the same document would be no mistake
        own = found.source[other] == found.source[rows]
        if not own.any():
            break
        other[own] = torch.randint(count, (int(own.sum()),), generator=generator)
    for row, from_row in zip(rows.tolist(), other.tolist(), strict=True):
        queries[row] = found.queries[from_row] if kind == "wrong document" else " ".join(frequent)
    mask = torch.zeros(count, dtype=torch.bool)
    mask[rows] = True
    return Synthetic(tuple(queries), found.source, found.skipped, found.empty), mask


def most_frequent(read: Statistics, count: int = 5) -> list[str]:
    """The words that are in most documents, ties in the order of the alphabet."""
    return sorted(read.containing, key=lambda word: (-read.containing[word], word))[:count]


def reranked(encoder: BagEncoder, pairs: Pairs, task: Task, recipe: Recipe, seed: int) -> float:
    """nDCG@10 of a reranker that is trained on the pairs and puts the retriever's best in order."""
    model = LateInteraction(encoder, task.documents, scale=1 / recipe.temperature)
    draws = stream(seed, "promptagator", "negatives")
    deep = min(recipe.retrieved, len(task.documents))
    with torch.no_grad():
        vectors = encoder(pairs.queries)
        index = ExactIndex(encoder(task.documents))
        best = index.search(vectors, deep)[1]

    def loss_at(step: int) -> Tensor:
        rows = different_sources(pairs.source, recipe.rerank_batch, generator=draws)
        source = pairs.source[rows]
        wrong = sample_negatives(best[rows], source, min(recipe.negatives, deep - 1), generator=draws)
        return rerank_loss(model(pairs.queries.padded(rows), vectors[rows], torch.cat([source[:, None], wrong], 1)))

    fit(model, loss_at, steps=recipe.rerank_steps, optimizer=torch.optim.Adam(model.parameters(), lr=recipe.rerank_rate), schedule="linear")
    with torch.no_grad():
        asked = encoder(task.queries)
        scores, found = index.search(asked, deep)
        every = torch.arange(len(task.queries), device=task.device)
        said = torch.cat([model(task.queries.padded(rows), asked[rows], found[rows]) for rows in torch.split(every, 128)])
    order = rerank(found, said)
    places = scores_of(encoder, task) - 10  # whatever was not reranked comes after
    places.scatter_(1, order, torch.arange(deep, 0, -1.0, device=task.device).expand_as(scores).to(places.dtype))
    return ndcg(places, task.world.relevance)


def run(settings: PromptagatorSettings, seed: int, device: torch.device) -> Arms:
    """All arms of one seed."""
    task = make_task(settings, seed, device)
    world, recipe = task.world, settings.recipe
    pool = len(world.pool)
    sets = [torch.randperm(pool, generator=stream(seed, "promptagator", "examples", i))[:MOST_EXAMPLES].tolist() for i in range(settings.draws)]
    examples = [[world.pool[i] for i in rows] for rows in sets]

    def trained(pairs: Pairs, number: int = 0) -> BagEncoder:
        return train(task.start, pairs, recipe, 1000 * seed + number)

    arms: Arms = {
        "BM25": {"ndcg": ndcg(BM25(world.documents).scores(world.queries), world.relevance)},
        "TF-IDF": {"ndcg": ndcg(TfIdf(world.documents).scores(world.queries), world.relevance)},
        "untrained": {"ndcg": measured(task.start, task)},
        "other domain's pairs": {"ndcg": measured(trained(labelled(world.other[: settings.others], task)), task)},
        "real pairs": {"ndcg": measured(trained(labelled(world.pool, task)), task)},
    }
    eight = [measured(trained(labelled(chosen, task)), task) for chosen in examples]
    arms["8 pairs"] = {"ndcg": statistics.fmean(eight), "pairs": float(len(examples[0]))}

    pairs: dict[str, Pairs] = {}
    found: dict[str, Synthetic] = {}
    encoders: dict[str, BagEncoder] = {}
    writers = {
        "zero-shot uniform": zero_shot_writer(task.read.statistics, "uniform"),
        "zero-shot idf": zero_shot_writer(task.read.statistics, "idf"),
        **{f"few-shot {i}": fitted(chosen, task.read.statistics) for i, chosen in enumerate(examples)},
        "writer from all labels": fitted(world.pool, task.read.statistics),
    }
    for name, writer in writers.items():
        found[name] = written(writer, task, settings, seed, name)
        pairs[name] = packed(found[name], task)
        encoders[name] = trained(pairs[name])
        arms[name] = {"ndcg": measured(encoders[name], task), "pairs": float(len(pairs[name].source))}
    by_examples = [arms.pop(f"few-shot {i}")["ndcg"] for i in range(settings.draws)]
    by_training = [by_examples[0], *(measured(trained(pairs["few-shot 0"], number), task) for number in range(1, settings.draws))]
    arms["few-shot"] = {"ndcg": statistics.fmean(by_examples), "pairs": float(len(pairs["few-shot 0"].source))}
    arms["few-shot, first set"] = {"ndcg": by_examples[0]}
    arms["examples drawn anew"] = {"sd": statistics.stdev(by_examples), "lowest": min(by_examples), "highest": max(by_examples)}
    arms["batches drawn anew"] = {"sd": statistics.stdev(by_training), "lowest": min(by_training), "highest": max(by_training)}

    few = pairs["few-shot 0"]
    kept = consistent(ranks(encoders["few-shot 0"], few), settings.k, batch=2)
    clean = few.take(kept)
    arms["few-shot, filtered"] = {"ndcg": measured(trained(clean), task), "pairs": float(len(clean.source)), "kept": float(kept.double().mean())}
    continued = train(encoders["few-shot 0"], clean, recipe, 1000 * seed)
    longer = train(encoders["few-shot 0"], few, recipe, 1000 * seed)  # as many steps without a filter
    arms["few-shot, filtered, trained on"] = {"ndcg": measured(continued, task)}
    arms["few-shot, trained on"] = {"ndcg": measured(longer, task)}
    arms |= corruption_arms(found["few-shot 0"], by_examples[0], task, settings, seed)
    for name, source in (("few-shot", "few-shot 0"), ("zero-shot uniform", "zero-shot uniform")):
        arms[f"{name} ++"] = {"ndcg": reranked(encoders[source], pairs[source], task, recipe, seed)}
    return arms


def fitted(examples: Sequence[Example], read: Statistics) -> ExtractiveWriter:
    """The writer of some examples, without its warnings: drawn at random, some share no word with their document, and the pool is more than eight."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return few_shot_writer(examples, read)


def corruption_arms(found: Synthetic, clean: float, task: Task, settings: PromptagatorSettings, seed: int) -> Arms:
    """A writer that makes mistakes, with and without the filter, and half of the way back to the clean one."""
    arms: Arms = {}
    frequent = most_frequent(task.read.statistics)
    for kind in CORRUPTIONS:
        bad, wrong = corrupt(found, settings.corrupted, kind, frequent, generator=stream(seed, "promptagator", "corrupt", kind))
        pairs = packed(bad, task)
        first = train(task.start, pairs, settings.recipe, 1000 * seed)
        kept = consistent(ranks(first, pairs), settings.k, batch=2).cpu()
        second = train(task.start, pairs.take(kept.to(task.device)), settings.recipe, 1000 * seed)
        before, after = measured(first, task), measured(second, task)
        arms[kind] = {"ndcg": before, "pairs": float(len(wrong))}
        arms[f"{kind}, filtered"] = {
            "ndcg": after,
            "pairs": float(kept.sum()),
            "removed": float((~kept)[wrong].double().mean()),
            "kept": float(kept[~wrong].double().mean()),
            "precision": float((~wrong)[kept].double().mean()),
        }
        arms[f"{kind}, half way back"] = {"ndcg": (before + clean) / 2}
    return arms


_FEW = Recipe(dim=64, steps=12, batch=64, rerank_steps=20, rerank_batch=32, retrieved=20, negatives=7)
SCALES: Mapping[str, PromptagatorSettings] = {
    "quick": PromptagatorSettings(seeds=1, recipe=_FEW, documents=300, pool=100, vocabulary=2000, per_document=4, draws=2, others=200),
    "laptop": PromptagatorSettings(seeds=5),
    "paper": PromptagatorSettings(
        seeds=5, recipe=Recipe(dim=768, steps=1000, retrieved=200, negatives=31, rerank_steps=5000), source="cranfield", pool=400, vocabulary=8000
    ),
}

CLAIMS = (
    Claim("few-shot", "zero-shot uniform", "ndcg", 0.02, says="a writer with eight examples over one that draws any word of the document"),
    Claim("few-shot", "zero-shot idf", "ndcg", 0.02, says="the same over one that draws rare words"),
    Claim("few-shot", "8 pairs", "ndcg", 0.02, says="what is written from eight examples trains better than the eight pairs themselves"),
    Claim("few-shot", "untrained", "ndcg", 0.02, says="training on written pairs over the untrained encoder"),
    Claim("zero-shot idf", "8 pairs", "ndcg", says="queries without any example train better than the eight pairs"),
    Claim("few-shot", "other domain's pairs", "ndcg", -0.01, says="eight examples are at most 0.01 below all labels of the other libraries"),
    Claim(
        "few-shot", "real pairs", "ndcg", -0.01, says="eight examples are at most 0.01 below 600 labels of the task (the paper: worth many labels)"
    ),
    Claim("few-shot", "BM25", "ndcg", 0.012, says="the retriever over the strongest ready-made one (the paper: 1.2 points)"),
    Claim(
        "few-shot, filtered", "few-shot, first set", "ndcg", 0.01, says="the filter improves a writer that makes no mistakes (the paper: 2.5 points)"
    ),
    Claim(
        "few-shot, filtered, trained on",
        "few-shot, trained on",
        "ndcg",
        says="the same where training goes on from the first encoder, as in the paper",
    ),
    Claim("wrong document, filtered", None, "removed", 0.9, says="the filter finds nine of ten queries that belong to another document"),
    Claim("frequent words, filtered", None, "removed", 0.9, says="the filter finds nine of ten queries of frequent words"),
    Claim("wrong document, filtered", "wrong document, half way back", "ndcg", says="filtered, most of the loss by wrong documents is won back"),
    Claim("frequent words, filtered", "frequent words, half way back", "ndcg", says="filtered, most of the loss by frequent words is won back"),
    Claim("few-shot ++", "few-shot, first set", "ndcg", 0.02, says="the reranker over its retriever (the paper: 5 points)"),
    Claim("few-shot ++", "zero-shot uniform ++", "ndcg", 0.02, says="reranker with eight examples over the one without (the paper: 2.9 points)"),
    Claim("few-shot ++", "BM25", "ndcg", 0.012, says="retriever and reranker over BM25"),
    Claim("examples drawn anew", "batches drawn anew", "sd", says="the choice of the eight examples moves the result more than the training seed"),
)

UNITS = {
    "ndcg": "nDCG@10 on test queries",
    "pairs": "pairs trained on",
    "kept": "share of good pairs kept",
    "removed": "share of corrupted pairs removed",
    "precision": "share of kept pairs that are good",
    "sd": "standard deviation of nDCG@10",
    "lowest": "lowest nDCG@10 of the draws",
    "highest": "highest nDCG@10 of the draws",
}

EXPERIMENT = Experiment(
    paper="promptagator",
    question="Do eight examples and a query writer make a better retriever than no example, the examples themselves, or another domain's labels?",
    scales=SCALES,
    claims=CLAIMS,
    run=run,
    units=UNITS,
)


# what ships: an encoder of all libraries' documents, and what the explorer's filter shows

LETTERS = 64_000  # bytes of the shipped encoder's words


@dataclass(frozen=True)
class ShippedSettings:
    """What the shipped encoder depends on.

    Attributes:
        recipe: of training.
        libraries: whose documents queries are written for.
        vocabulary: of the encoder.
        per_document: queries written.
        seed: of everything.
    """

    recipe: Recipe = Recipe(dim=128, steps=400)
    libraries: tuple[str, ...] = ("numpy", "scipy", "networkx", "sklearn", "torch")
    vocabulary: int = 5000
    per_document: int = 8
    seed: int = 0


class ShippedEncoder(nn.Module):
    """A dual encoder with its words, in half precision.

    Buffers: ``row`` (V, d) float16, ``log_weight`` (V,) float16, ``letters`` (64,000,) uint8, the vocabulary's words in order, a line each.
    """

    row: Tensor
    log_weight: Tensor
    letters: Tensor

    def __init__(self, settings: ShippedSettings) -> None:
        super().__init__()
        self.register_buffer("row", torch.zeros(settings.vocabulary, settings.recipe.dim, dtype=torch.float16))
        self.register_buffer("log_weight", torch.zeros(settings.vocabulary, dtype=torch.float16))
        self.register_buffer("letters", torch.zeros(LETTERS, dtype=torch.uint8))

    @torch.no_grad()
    def keep(self, encoder: BagEncoder, vocabulary: Vocabulary) -> None:
        """Take over a trained encoder; ValueError where its words have too many letters."""
        self.letters.copy_(to_letters(vocabulary, LETTERS))
        self.row.copy_(encoder.row)
        self.log_weight.copy_(encoder.log_weight)

    def vocabulary(self) -> Vocabulary:
        """The words."""
        return from_letters(self.letters)

    def encoder(self) -> BagEncoder:
        """The encoder in single precision."""
        found = BagEncoder(self.log_weight.float().exp(), self.row.shape[1])
        found.load_state_dict({"row": self.row.float(), "log_weight": self.log_weight.float()})
        return found.eval()


def train_shipped(settings: ShippedSettings, progress: str | None) -> ShippedEncoder:
    """Eight examples, queries for the documents of all libraries, the round trip, and the encoder trained on what is left."""
    pairs = docstring_pairs(settings.libraries)
    documents = tuple(sectioned(pair.page) for pair in pairs)
    rows = torch.randperm(len(pairs), generator=stream(settings.seed, "promptagator", "shipped"))[:MOST_EXAMPLES].tolist()
    examples = tuple(Example(pairs[i].query, documents[i]) for i in rows)
    world = World(documents, examples, (pairs[0].query,), torch.eye(1, len(documents), dtype=torch.int8), ())
    read = Read.of(documents)
    vocabulary = Vocabulary.of(documents, settings.vocabulary)
    start = encoder_for(vocabulary, read.statistics, settings.recipe.dim, settings.seed)
    task = Task(world, read, vocabulary, Bags.of(documents, vocabulary), Bags.of(world.queries, vocabulary), start, torch.device("cpu"))
    options = PromptagatorSettings(seeds=1, recipe=settings.recipe, per_document=settings.per_document)
    found = packed(written(fitted(examples, read.statistics), task, options, settings.seed, "shipped"), task)
    first = train(start, found, settings.recipe, settings.seed, progress=progress)
    model = ShippedEncoder(settings)
    model.keep(train(start, found.take(consistent(ranks(first, found))), settings.recipe, settings.seed, progress=progress), vocabulary)
    return model


def measure_shipped(model: nn.Module) -> dict[str, float]:
    """nDCG@10 of scipy's summaries among scipy's documents, but for the eight examples (whichever of them are of scipy), beside an untrained one."""
    assert isinstance(model, ShippedEncoder)
    pairs = docstring_pairs(SHIPPED.settings.libraries)
    drawn = torch.randperm(len(pairs), generator=stream(SHIPPED.settings.seed, "promptagator", "shipped"))[:MOST_EXAMPLES].tolist()
    rows = [i for i, pair in enumerate(pairs) if pair.library == "scipy"]
    asked = [place for place, i in enumerate(rows) if i not in drawn]
    documents = [sectioned(pairs[i].page) for i in rows]
    vocabulary = model.vocabulary()
    packs = Bags.of([pairs[rows[place]].query for place in asked], vocabulary), Bags.of(documents, vocabulary)
    relevance = torch.eye(len(rows), dtype=torch.int8)[asked]
    every = Statistics.of([sectioned(pair.page) for pair in pairs])
    found = {}
    for name, encoder in (
        ("trained", model.encoder()),
        ("untrained", encoder_for(vocabulary, every, SHIPPED.settings.recipe.dim, SHIPPED.settings.seed)),
    ):
        with torch.no_grad():
            found[name] = ndcg(encoder(packs[0]) @ encoder(packs[1]).T, relevance)
    return found


SHOWN_K = (1, 2, 3, 5, 10, 30, 100, 10_000)


@dataclass(frozen=True)
class FilterSettings:
    """What the explorer's filter depends on.

    Attributes:
        recipe: of training.
        shares: of queries that belong to another document.
        ks: of the filter.
        pool: labelled pairs that are kept out of the test.
        per_document: queries written.
        seed: of everything.
    """

    recipe: Recipe = Recipe()
    shares: tuple[float, ...] = (0.0, 0.3, 0.6, 0.9)
    ks: tuple[int, ...] = SHOWN_K
    pool: int = 600
    per_document: int = 8
    seed: int = 0


class FilterTable(nn.Module):
    """Pairs kept and nDCG@10 for each share of wrong queries and each K.

    Buffers: ``good`` and ``bad`` (shares, ks), pairs of the filter that are right and wrong; ``ndcg`` (shares, ks).
    """

    def __init__(self, settings: FilterSettings) -> None:
        super().__init__()
        for name in ("good", "bad", "ndcg"):
            self.register_buffer(name, torch.zeros(len(settings.shares), len(settings.ks)))


def train_filter(settings: FilterSettings, progress: str | None) -> FilterTable:
    """Train an encoder for each share, filter by it, and train one for each K."""
    table = FilterTable(settings)
    options = PromptagatorSettings(seeds=1, recipe=settings.recipe, pool=settings.pool, per_document=settings.per_document)
    task = make_task(options, settings.seed, torch.device("cpu"))
    examples = task.world.pool[:MOST_EXAMPLES]
    found = written(fitted(examples, task.read.statistics), task, options, settings.seed, "filter")
    for row, share in enumerate(settings.shares):
        draws = stream(settings.seed, "promptagator", "filter", row)
        mixed, wrong = corrupt(found, share, CORRUPTIONS[0], (), generator=draws)
        pairs = packed(mixed, task)
        rank = ranks(train(task.start, pairs, settings.recipe, settings.seed, progress=progress), pairs)
        for column, k in enumerate(settings.ks):
            kept = consistent(rank, k, batch=2)
            table.get_buffer("good")[row, column], table.get_buffer("bad")[row, column] = (kept & ~wrong).sum(), (kept & wrong).sum()
            trained = train(task.start, pairs.take(kept), settings.recipe, settings.seed, progress=progress)
            table.get_buffer("ndcg")[row, column] = measured(trained, task)
    return table


def measure_filter(model: nn.Module) -> dict[str, float]:
    """nDCG@10 with 30 % wrong queries: K = 1, and no filter."""
    found = model.get_buffer("ndcg")[1]
    return {"K = 1": float(found[0]), "no filter": float(found[-1])}


SHIPPED = Checkpoint("promptagator-encoder", ShippedSettings(), ShippedEncoder, train_shipped, measure_shipped)
FILTER = Checkpoint("promptagator-filter", FilterSettings(), FilterTable, train_filter, measure_filter)
CHECKPOINTS = (SHIPPED, FILTER)
