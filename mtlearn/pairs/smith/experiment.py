"""Does reading a long document in blocks find what a short reader misses, see order, and gain from masked sentence blocks?

Evidence and order are tested in the world of :mod:`mtlearn.pairs.smith.world`, where a bag of words is the strong baseline for the first and blind
for the second. Pre-training is tested on few labelled pairs of the second. Real text: halves of Python's reference topics and of long docstrings; at
paper scale halves of Cranfield's abstracts and the abstracts that answer one question, joined.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from mtlearn.datasets.word_vectors import word_vectors
from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.pretrained import pretrained
from mtlearn.layers.text_encoders import Body, TokenEncoder
from mtlearn.layers.tokens import SPECIAL, Tokeniser, Vocabulary
from mtlearn.pairs.labelled import Labelled
from mtlearn.pairs.smith.baselines import FlatEncoder, HierarchicalRNN, WordMean, tfidf_cosines
from mtlearn.pairs.smith.blocks import Marks, marks_of, text_blocks
from mtlearn.pairs.smith.documents import LIBRARIES, TextPairs, abstracts, fold, halved_pairs, library_documents, question_documents
from mtlearn.pairs.smith.method import SMITH, Pretraining, Smith, matching_loss, word_table
from mtlearn.pairs.smith.world import START, Kind, Place, TopicWorld

PLACES: tuple[Place, ...] = ("early", "uniform", "late")
KINDS: tuple[Kind, ...] = ("positive", "swapped", "unrelated")


@dataclass(frozen=True)
class Text:
    """Settings of the part on real text.

    Attributes:
        source: ``libraries`` (reference topics and docstrings) or ``cranfield``.
        libraries: whose docstrings are read beside the reference topics.
        least: words of a document at least, of ``libraries``.
        documents: that are used at most, spread over all.
        vocabulary: words.
        size, read: tokens of a block and blocks that SMITH reads; a quarter of them for the short reader.
        width, heads, hidden, block_layers, document_layers: of the encoder.
        batch, steps, rate: of training on pairs.
        pretrain_steps: of masked words and masked blocks before.
        body: name or folder of a pretrained encoder that takes the place of ours at level 1; "" for ours.
    """

    source: Literal["libraries", "cranfield"] = "libraries"
    libraries: tuple[str, ...] = LIBRARIES
    least: int = 400
    documents: int = 300
    vocabulary: int = 2000
    size: int = 32
    read: int = 12
    width: int = 48
    heads: int = 4
    hidden: int = 96
    block_layers: int = 1
    document_layers: int = 1
    batch: int = 8
    steps: int = 100
    rate: float = 2e-3
    pretrain_steps: int = 0
    body: str = ""


@dataclass(frozen=True)
class SmithSettings(Settings):
    """Settings of a run.

    Attributes:
        world: where topics are hidden.
        width, heads, hidden: of both levels, one layer each.
        noise: of the word vectors that stand in for pre-training.
        batch: pairs of a step.
        steps, warmup, rate: of every trained arm on pairs drawn anew; the bag of words has ``bag_rate``.
        tests: pairs of each test.
        pretrain_steps: on unlabelled documents, ``2 * batch`` a step.
        masked: blocks masked in a document.
        temperature: of the block loss.
        few: numbers of labelled pairs.
        tune_steps: of fine-tuning on them.
        text: the part on real text.
    """

    world: TopicWorld = field(default_factory=TopicWorld)
    width: int = 48
    heads: int = 4
    hidden: int = 96
    noise: float = 0.7
    batch: int = 16
    steps: int = 400
    warmup: int = 30
    rate: float = 2e-3
    bag_rate: float = 1e-2
    tests: int = 600
    pretrain_steps: int = 400
    masked: int = 4
    temperature: float = 0.4
    few: tuple[int, ...] = (60, 200, 1000)
    tune_steps: int = 150
    text: Text = field(default_factory=Text)


# ------------------------------------------------------------------------------------------------------------------------------- building


def block_encoder(vectors: Tensor, heads: int, hidden: int, *, layers: int = 1, longest: int = 8) -> TokenEncoder:
    """A small level 1 on word vectors (size, width), without the norm after the embedding, whose class token starts at zero.

    With the norm, or a class token of full size, post-norm layers pass on a constant and hardly a word: in hundreds of steps nothing is learned.
    """
    body = TokenEncoder(vectors.shape[0], vectors.shape[1], heads, layers, hidden, longest=longest, vectors=vectors, norm_embedding=False)
    with torch.no_grad():
        body.token.weight[START].zero_()
        body.position.weight[0].zero_()
        body.segment.weight.zero_()
    return body


def small(settings: SmithSettings, vectors: Tensor, **options: object) -> Smith:
    """SMITH of one layer at each level, z = 6 cos + a bias that starts at -3."""
    body = block_encoder(vectors, settings.heads, settings.hidden, longest=settings.world.size)
    given: dict[str, object] = {
        "heads": settings.heads, "layers": 1, "hidden": settings.hidden, "places": settings.world.blocks, "bias": -3.0, **options
    }  # fmt: skip
    return Smith(body, **given)  # type: ignore[arg-type]


def reader(settings: SmithSettings, vectors: Tensor, **options: object) -> Smith:
    """SMITH for the task "evidence": its result is a document token's, because the first block is mostly background."""
    return small(settings, vectors, output="token", gain=settings.width**0.5, position_std=0.3, **options)


def train(model: nn.Module, draw: Callable[[int], Labelled], settings: SmithSettings, *, steps: int, rate: float, bar: str | None = None) -> None:
    """Minimise the matching loss on the pairs of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, fused=True)

    def loss_at(step: int) -> Tensor:
        pairs = draw(step)
        return matching_loss(model(pairs.first, pairs.second), pairs.labels)

    warmup = min(settings.warmup, steps)
    fit(model, loss_at, steps=steps, optimizer=optimizer, schedule="cosine", warmup=warmup, clip=1.0, progress=bar)
    model.eval()


@torch.no_grad()
def scores(model: nn.Module, pairs: Labelled, *, batch: int = 100) -> Tensor:
    """Scores z (n,) of pairs."""
    rows = torch.arange(len(pairs.labels)).chunk(max(-(-len(pairs.labels) // batch), 1))
    return torch.cat([model(pairs.first[part], pairs.second[part]) for part in rows])


def accuracy(z: Tensor, labels: Tensor) -> float:
    """Share of pairs on the right side of 0."""
    return ((z > 0) == (labels > 0)).float().mean().item()


# ------------------------------------------------------------------------------------------------------------------------------ three tasks


def evidence_arms(settings: SmithSettings, seed: int) -> Arms:
    """Task 1: where may the evidence stand? Every arm sees the same pairs; the short readers see the first quarter of the blocks."""
    world = settings.world
    vectors = world.vectors(settings.width, settings.noise, generator=stream(seed, "vectors"))
    tests = {place: world.evidence(settings.tests, place, generator=stream(seed, "evidence", "test", place)) for place in PLACES}

    def measured(model: nn.Module, place: Place, rate: float) -> dict[str, float]:
        draws = stream(seed, "evidence", "train")
        train(model, lambda _: world.evidence(settings.batch, place, generator=draws), settings, steps=settings.steps, rate=rate)
        return {f"accuracy_{where}": accuracy(scores(model, pairs), pairs.labels) for where, pairs in tests.items()}

    def made(build: Callable[[], nn.Module]) -> nn.Module:
        with seeded(seed):
            return build()

    quarter = world.blocks // 4
    return {
        "SMITH": measured(made(lambda: reader(settings, vectors)), "uniform", settings.rate),
        "first quarter": measured(made(lambda: reader(settings, vectors, read=quarter)), "uniform", settings.rate),
        "first quarter, early training": measured(made(lambda: reader(settings, vectors, read=quarter)), "early", settings.rate),
        "bag of words": measured(made(lambda: WordMean(vectors)), "uniform", settings.bag_rate),
    }


def order_tests(settings: SmithSettings, seed: int) -> dict[str, Labelled]:
    """Test pairs of each kind."""
    draws = {kind: stream(seed, "order", "test", kind) for kind in KINDS}
    return {kind: settings.world.order(torch.full((settings.tests // 2,), number), generator=draws[kind]) for number, kind in enumerate(KINDS)}


def order_scores(model: nn.Module, tests: dict[str, Labelled]) -> dict[str, float]:
    """Accuracy of each kind, and "order": the mean of positives and swapped, 0.5 for whatever ignores order."""
    found = {kind: accuracy(scores(model, pairs), pairs.labels) for kind, pairs in tests.items()}
    return {**found, "order": (found["positive"] + found["swapped"]) / 2}


def order_arms(settings: SmithSettings, seed: int) -> Arms:
    """Task 2: the same two topics in another order are no match."""
    world = settings.world
    vectors = world.vectors(settings.width, settings.noise, generator=stream(seed, "vectors"))
    tests = order_tests(settings, seed)
    end = world.marks.end

    def full() -> nn.Module:
        body = block_encoder(vectors, settings.heads, settings.hidden, layers=2, longest=1 + world.blocks * (world.size - 1))
        return FlatEncoder(body, START, end)

    builds: dict[str, tuple[Callable[[], nn.Module], float]] = {
        "SMITH": (lambda: small(settings, vectors), settings.rate),
        "no block positions": (lambda: small(settings, vectors, positions=False), settings.rate),
        "flat transformer": (full, settings.rate),
        "hierarchical attention": (lambda: HierarchicalRNN(vectors, START, end), settings.rate),
        "multi-depth RNN": (lambda: HierarchicalRNN(vectors, START, end, depths=(2, 3)), settings.rate),
        "bag of words": (lambda: WordMean(vectors), settings.bag_rate),
    }
    arms: Arms = {}
    for arm, (build, rate) in builds.items():
        with seeded(seed):
            model = build()
        draws = stream(seed, "order", "train")

        def draw(_: int, draws: torch.Generator = draws) -> Labelled:
            return world.order_batch(settings.batch, generator=draws)

        train(model, draw, settings, steps=settings.steps, rate=rate)
        arms[arm] = order_scores(model, tests)
    return arms


def pretrain(
    model: Smith, marks: Marks, documents: Callable[[int], Tensor], settings: SmithSettings, *, k: int, steps: int, seed: int, bar: str | None = None
) -> Pretraining:
    """Masked words, and with k > 0 masked blocks, on the documents of each step."""
    with seeded(seed):
        pretraining = Pretraining(model, marks, k=k, temperature=settings.temperature, only_real=True)
    draws = stream(seed, "masks")
    optimizer = torch.optim.AdamW(pretraining.parameters(), lr=settings.rate, weight_decay=0.01, fused=True)

    def loss_at(step: int) -> Tensor:
        words, blocks = pretraining(documents(step), generator=draws)
        loss: Tensor = words + blocks
        return loss

    warmup = min(settings.warmup, steps)
    fit(pretraining, loss_at, steps=steps, optimizer=optimizer, schedule="cosine", warmup=warmup, clip=1.0, progress=bar)
    pretraining.eval()
    return pretraining


@torch.no_grad()
def masked_block_scores(pretraining: Pretraining, documents: Tensor, *, k: int, generator: torch.Generator) -> dict[str, float]:
    """How often the most likely candidate is of the right document, and is the right block; documents in batches of 16."""
    document, block = [], []
    for part in documents.view(-1, 16, *documents.shape[1:]):
        logits, _, weights = pretraining.guesses(part, k=k, generator=generator)
        guess, kept = logits.argmax(1), weights.flatten() > 0
        place = torch.arange(len(guess))
        document.append((torch.div(guess, k, rounding_mode="floor") == torch.div(place, k, rounding_mode="floor"))[kept])
        block.append((guess == place)[kept])
    return {"right_document": torch.cat(document).float().mean().item(), "right_block": torch.cat(block).float().mean().item()}


def pretraining_arms(settings: SmithSettings, seed: int) -> Arms:
    """Task 3: few labelled pairs of task 2 after no pre-training (NP), masked words (WP), masked words and masked blocks (WP+SP)."""
    world, tests = settings.world, order_tests(settings, seed)
    vectors = world.vectors(settings.width, settings.noise, generator=stream(seed, "vectors"))
    held = world.two_topics(settings.tests // 2 // 16 * 16, generator=stream(seed, "held"))
    arms: Arms = {}
    for arm, k in (("SMITH-NP", None), ("SMITH-WP", 0), ("SMITH-WP+SP", settings.masked)):
        with seeded(seed):
            model = small(settings, vectors)
        arms[arm] = {}
        if k is not None:
            draws = stream(seed, "unlabelled")

            def documents(_: int, draws: torch.Generator = draws) -> Tensor:
                return world.two_topics(2 * settings.batch, generator=draws)

            done = pretrain(model, world.marks, documents, settings, k=k, steps=settings.pretrain_steps, seed=seed)
            if k:
                arms[arm] |= masked_block_scores(done, held, k=k, generator=stream(seed, "guesses"))
        start = {name: value.clone() for name, value in model.state_dict().items()}
        for count in settings.few:
            model.load_state_dict(start)
            labelled = world.order_batch(count, generator=stream(seed, "labelled"))
            draws = stream(seed, "few", count)

            def draw(_: int, labelled: Labelled = labelled, draws: torch.Generator = draws) -> Labelled:
                rows = torch.randint(len(labelled.labels), (settings.batch,), generator=draws)
                return labelled[rows]

            train(model, draw, settings, steps=settings.tune_steps, rate=settings.rate)
            found = order_scores(model, tests)
            arms[arm] |= {f"order_{count}": found["order"], f"balanced_{count}": (found["positive"] + found["unrelated"]) / 2}
    return arms


# -------------------------------------------------------------------------------------------------------------------------------- real text


def text_documents(text: Text, seed: int) -> tuple[list[TextPairs], list[TextPairs]]:
    """Training and test pairs of a fold: the seed's of five. At paper scale, each has two sets: halves of abstracts, and questions.

    Abstracts that answer a test question, and documents of test folds, are in no training pair.
    """
    if text.source == "libraries":
        every = library_documents(text.least, text.libraries)
        kept = every[:: -(-len(every) // text.documents)]
        known, held = fold(kept, seed % 5)
        return [halved_pairs(known)], [halved_pairs(held)]
    questions, halves = question_documents(), abstracts()
    known_questions, held_questions = fold(questions, seed % 5)
    tested = " ".join(f"{question.first} {question.second}" for question in held_questions)
    free = [half for half in halves if half.first.split(". ")[0] not in tested]
    known, held = fold(free[:: -(-len(free) // text.documents)], seed % 5)
    return [halved_pairs(known), halved_pairs(known_questions)], [halved_pairs(held), halved_pairs(held_questions)]


def text_encoder(text: Text, texts: Sequence[str]) -> tuple[Body, Tokeniser]:
    """Level 1 and its tokeniser: ours with word vectors of these texts, or the pretrained one that is named."""
    if text.body:
        return pretrained(text.body)
    vocabulary = Vocabulary.of(texts, text.vocabulary)
    vectors = word_vectors(vocabulary(list(texts), 100_000), len(vocabulary), text.width, special=len(SPECIAL))
    return block_encoder(vectors, text.heads, text.hidden, layers=text.block_layers, longest=text.size), vocabulary


def text_arms(settings: SmithSettings, seed: int, device: torch.device) -> Arms:
    """Real text: SMITH and the short reader beside the full-length bag of words and TF-IDF. Thresholds come from the training pairs."""
    text = settings.text
    train_sets, test_sets = text_documents(text, seed)
    names = ("text", "questions")[: len(test_sets)]
    known = [half for pairs in train_sets for half in (*pairs.first[: int(pairs.labels.sum())], *pairs.second[: int(pairs.labels.sum())])]
    with seeded(seed):
        body, tokeniser = text_encoder(text, known)
        heads = text.heads if body.width % text.heads == 0 else 1
        build = {"heads": heads, "layers": text.document_layers, "hidden": text.hidden, "places": max(text.read, 2), "output": "mean", "bias": -3.0}
        smith = Smith(body, read=text.read, **build).to(device)  # type: ignore[arg-type]

    def blocks(pairs: TextPairs, most: int) -> Labelled:
        both = (text_blocks(texts, tokeniser, size=text.size, most=most, truncate=True, split=True) for texts in (pairs.first, pairs.second))
        first, second = both
        return Labelled(first, second, pairs.labels).to(device)

    cut = [blocks(pairs, text.read) for pairs in train_sets]
    tests = [blocks(pairs, text.read) for pairs in test_sets]
    if text.pretrain_steps:
        steps, draws = text.pretrain_steps, stream(seed, "text", "unlabelled")

        def documents(step: int) -> Tensor:
            part = cut[step % len(cut)].first
            return part[torch.randint(len(part), (2 * text.batch,), generator=draws).to(device)]

        pretrain(smith, marks_of(tokeniser), documents, settings, k=2, steps=steps, seed=seed)
    arms: Arms = {}
    models: dict[str, tuple[nn.Module, int, float]] = {"SMITH": (smith, text.read, text.rate)}
    if not text.body:
        table = word_table(body).detach().cpu()
        with seeded(seed):
            short, _ = text_encoder(text, known)
            models["first quarter"] = (Smith(short, read=max(text.read // 4, 1), **build).to(device), text.read // 4, text.rate)  # type: ignore[arg-type]
            models["bag of words"] = (WordMean(table).to(device), 0, settings.bag_rate)
    for arm, (model, most, rate) in models.items():
        shown = cut if most else [blocks(pairs, 10_000) for pairs in train_sets]  # the bag of words reads everything
        judged = tests if most else [blocks(pairs, 10_000) for pairs in test_sets]
        batch = text.batch
        draws = stream(seed, "text", "train")

        def draw(step: int, shown: list[Labelled] = shown, draws: torch.Generator = draws, batch: int = batch) -> Labelled:
            pairs = shown[step % len(shown)]
            rows = torch.randint(len(pairs.labels), (batch,), generator=draws).to(pairs.labels.device)
            return pairs[rows]

        train(model, draw, settings, steps=text.steps, rate=rate)
        threshold = best_threshold(
            torch.cat([scores(model, pairs, batch=16) for pairs in shown]).cpu(), torch.cat([pairs.labels for pairs in train_sets])
        )
        found = [scores(model, pairs, batch=16).cpu() - threshold for pairs in judged]
        arms[arm] = _named(names, [quality(z, pairs.labels) for z, pairs in zip(found, test_sets, strict=True)])
    cosines = torch.cat([tfidf_cosines(known, pairs.first, pairs.second) for pairs in train_sets])
    threshold = best_threshold(cosines, torch.cat([pairs.labels for pairs in train_sets]))
    judged_by_tfidf = [quality(tfidf_cosines(known, pairs.first, pairs.second) - threshold, pairs.labels) for pairs in test_sets]
    return arms | {"TF-IDF": _named(names, judged_by_tfidf)}


def _named(names: Sequence[str], measures: Sequence[dict[str, float]]) -> dict[str, float]:
    return {f"{measure}_{name}": value for name, found in zip(names, measures, strict=True) for measure, value in found.items()}


def best_threshold(z: Tensor, labels: Tensor) -> float:
    """The threshold of highest accuracy on these pairs, half way between two scores."""
    order = z.sort().values
    between = torch.cat([order[:1] - 1, (order[1:] + order[:-1]) / 2])
    right = ((z > between[:, None]) == (labels > 0)).float().mean(1)
    return between[right.argmax()].item()


def quality(z: Tensor, labels: Tensor) -> dict[str, float]:
    """The paper's measures: accuracy, precision, recall, F1."""
    said, true = z > 0, labels > 0
    hit = (said & true).sum().item()
    precision, recall = hit / max(said.sum().item(), 1), hit / max(true.sum().item(), 1)
    return {
        "accuracy": accuracy(z, labels),
        "precision": precision,
        "recall": recall,
        "F1": 2 * precision * recall / max(precision + recall, 1e-12),
    }


def run(settings: SmithSettings, seed: int, device: torch.device) -> Arms:
    """All arms of the three tasks and of real text."""
    arms: Arms = {}
    parts = [evidence_arms(settings, seed), order_arms(settings, seed), pretraining_arms(settings, seed), text_arms(settings, seed, device)]
    for part in parts:
        for arm, metrics in part.items():
            arms.setdefault(arm, {}).update(metrics)
    return arms


_QUICK = SmithSettings(
    seeds=1,
    batch=8,
    world=TopicWorld(topics=4, words=4, background=20, blocks=8, held=2),
    steps=15,
    warmup=5,
    tests=64,
    pretrain_steps=4,
    few=(200, 1000),
    tune_steps=3,
    text=Text(libraries=("numpy",), documents=30, vocabulary=300, size=16, read=4, steps=4),
)
SCALES = {
    "quick": _QUICK,
    "laptop": SmithSettings(seeds=3, steps=350, pretrain_steps=300, tune_steps=100, text=Text(documents=200, read=8, steps=60)),
    "paper": SmithSettings(
        seeds=5,
        text=Text(
            source="cranfield",
            documents=1400,
            vocabulary=8000,
            read=SMITH.blocks,
            width=SMITH.width,
            hidden=SMITH.hidden,
            block_layers=SMITH.block_layers,
            document_layers=SMITH.document_layers,
            batch=32,
            steps=10_000,
            rate=1e-4,
            pretrain_steps=20_000,
        ),
    ),
}

CLAIMS = (
    Claim(
        "SMITH", "first quarter", "accuracy_late", 0.2, says="evidence behind the first quarter: reading all blocks beats reading the first quarter"
    ),
    Claim("SMITH", "first quarter", "accuracy_early", -0.02, says="evidence in the first quarter: reading more costs nothing, at equal steps"),
    Claim(
        "SMITH",
        "first quarter, early training",
        "accuracy_early",
        -0.05,
        says="... and little beside a short reader that was trained on early evidence",
    ),
    Claim("SMITH", "bag of words", "accuracy_uniform", 0.0, says="SMITH finds evidence better than a bag of words over the full length"),
    Claim("SMITH", "bag of words", "order", 0.3, says="SMITH sees the order of topics, a bag of words does not"),
    Claim("SMITH", "no block positions", "order", 0.15, says="block positions are what tells it the order"),
    Claim("SMITH", "hierarchical attention", "order", 0.0, says="it beats hierarchical attention"),
    Claim("SMITH", "multi-depth RNN", "order", 0.0, says="it beats the multi-depth recurrent network"),
    Claim("SMITH", "flat transformer", "order", 0.0, says="it beats full attention over all words, at equal steps"),
    Claim("SMITH-WP", "SMITH-NP", "order_200", 0.0, says="200 labelled pairs: masked words before help"),
    Claim("SMITH-WP+SP", "SMITH-WP", "order_200", 0.0, says="200 labelled pairs: masked sentence blocks on top help"),
    Claim("SMITH-WP+SP", "SMITH-WP", "order_1000", 0.0, says="the same with 1,000 labelled pairs"),
    Claim("SMITH", "first quarter", "accuracy_text", 0.0, says="real text: reading more blocks helps"),
    Claim("SMITH", "TF-IDF", "accuracy_text", 0.0, says="real text: SMITH beats TF-IDF over the full length"),
)


def _units() -> dict[str, str]:
    share = {f"accuracy_{place}": f"accuracy, evidence {place}" for place in PLACES}
    share |= {"positive": "accuracy, matches", "swapped": "accuracy, swapped topics", "unrelated": "accuracy, other topics"}
    share["order"] = "accuracy, matches and swapped"
    for count in {count for settings in SCALES.values() for count in settings.few}:
        share |= {f"order_{count}": f"accuracy, matches and swapped, {count} labelled pairs"}
        share |= {f"balanced_{count}": f"accuracy, matches and other topics, {count} labelled pairs"}
    share |= {"right_document": "masked blocks: right document", "right_block": "masked blocks: right block"}
    for name in ("text", "questions"):
        share |= {f"{measure}_{name}": f"{measure}, {name}" for measure in ("accuracy", "precision", "recall", "F1")}
    return share


EXPERIMENT = Experiment(
    paper="smith",
    question="Does a hierarchical encoder of long documents find what a short reader misses, see order, and gain from masked sentence blocks?",
    scales=SCALES,
    claims=CLAIMS,
    run=run,
    units=_units(),
)


# ------------------------------------------------------------------------------------------------------------------------- shipped models


SHOWN_MASKED = 4  # blocks masked in a document while the shown model is pre-trained


@dataclass(frozen=True)
class Shipped:
    """Settings of the models that the explorer shows: a world of 24 blocks.

    Attributes:
        seed: of everything.
        settings: sizes and steps.
        pretrain_steps: of the model with masked blocks.
    """

    seed: int = 0
    settings: SmithSettings = field(default_factory=lambda: SmithSettings(seeds=1, world=TopicWorld(blocks=24, held=4), steps=400))
    pretrain_steps: int = 600


def build_shipped(shipped: Shipped) -> nn.ModuleDict:
    """SMITH and the short reader for evidence, the bag of words, and a pre-trained SMITH."""
    settings, seed = shipped.settings, shipped.seed
    vectors = settings.world.vectors(settings.width, settings.noise, generator=stream(seed, "vectors"))
    with seeded(seed):
        smith = small(settings, vectors)
        return nn.ModuleDict(
            {
                "smith": reader(settings, vectors),
                "short": reader(settings, vectors, read=settings.world.blocks // 4),
                "bag": WordMean(vectors),
                "pretraining": Pretraining(smith, settings.world.marks, k=SHOWN_MASKED, temperature=settings.temperature, only_real=True),
            }
        )


def train_shipped(shipped: Shipped, progress: str | None) -> nn.Module:
    """Train all four."""
    settings, seed, models = shipped.settings, shipped.seed, build_shipped(shipped)
    world = settings.world

    def pairs(_: int) -> Labelled:
        return world.evidence(settings.batch, "uniform", generator=draws)

    def documents(_: int) -> Tensor:
        return world.two_topics(settings.batch, generator=draws)

    for name, rate in (("smith", settings.rate), ("short", settings.rate), ("bag", settings.bag_rate)):
        draws = stream(seed, "evidence", "train")
        train(models[name], pairs, settings, steps=settings.steps, rate=rate, bar=progress)
    draws = stream(seed, "unlabelled")
    smith = models["pretraining"].smith
    assert isinstance(smith, Smith)
    steps = shipped.pretrain_steps
    models["pretraining"] = pretrain(smith, world.marks, documents, settings, k=SHOWN_MASKED, steps=steps, seed=seed, bar=progress)
    return models


def measure_shipped(models: nn.Module) -> dict[str, float]:
    """Accuracies on evidence, and of masked blocks."""
    assert isinstance(models, nn.ModuleDict)
    settings = Shipped().settings
    found: dict[str, float] = {}
    for place in PLACES:
        pairs = settings.world.evidence(300, place, generator=stream(0, "evidence", "measure", place))
        found |= {f"{name}_{place}": round(accuracy(scores(models[name], pairs), pairs.labels), 3) for name in ("smith", "short", "bag")}
    pretraining = models["pretraining"]
    assert isinstance(pretraining, Pretraining)
    documents = settings.world.two_topics(160, generator=stream(0, "measure"))
    return found | {name: round(value, 3) for name, value in masked_block_scores(pretraining, documents, k=2, generator=stream(0, "guesses")).items()}


CHECKPOINTS = (Checkpoint("smith-readers", Shipped(), build_shipped, train_shipped, measure_shipped),)
