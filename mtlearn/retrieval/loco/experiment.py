"""Does a reader of whole documents find what truncated and chunked readers miss, and which loss and which pretraining make it?

Four parts in one seed: real docstrings compared by words (A), documents with scattered evidence and trained encoders (B), losses when little fits in
memory (C), masked words on short and long docstrings (E); and what length costs (D).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.tokens import padded
from mtlearn.retrieval.loco.method import (
    READERS,
    M2Config,
    M2Encoder,
    M2Mixer,
    MaskedWords,
    Reader,
    accumulate,
    block_mnrl,
    concatenated,
    extend,
    hide,
    loco_score,
    mixture_batch,
    mnrl,
    ndcg,
    opl,
    prototype_loss,
    qualifies,
    read,
    similarity,
)
from mtlearn.retrieval.loco.worlds import MASK, SEPARATOR, SETS, SPECIAL, Scattered, docstring_task, docstring_texts, word_scores

RULE = 0.03  # by how much shorter readers must stay behind for a task to qualify
ROWS = 32  # of an optimiser step in part C
MIXTURES = {"short only": 1.0, "long only": 0.0, "mixed": 0.3}


@dataclass(frozen=True)
class LoCoSettings(Settings):
    """Settings of a run.

    Attributes:
        pairs: docstring pairs of each set (A).
        steps, rate: of each reader's training (B).
        weak, good: steps on short documents that make a weak and a good start (C).
        tuned, tuned_rate: steps with each loss, and their rate (C).
        tests: test corpora of 380 documents each (C).
        masked: steps on masked words for each mixture (E).
        shorter, extended: steps of a shorter model, and after it was made longer (E).
        masked_rate: of both (E).
        long: tokens of a long row (E); short rows have a quarter.
        words: size of the vocabulary (E).
        held: functions set aside (E).
        lengths: of the slopes (D).
        timings: of each length (D).
    """

    pairs: int = 400
    steps: int = 500
    rate: float = 1e-2
    weak: int = 45
    good: int = 130
    tuned: int = 150
    tuned_rate: float = 2e-3
    tests: int = 2
    masked: int = 300
    shorter: int = 150
    masked_rate: float = 5e-3
    extended: int = 100
    long: int = 128
    words: int = 1500
    held: int = 400
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    timings: int = 5


def run(settings: LoCoSettings, seed: int, device: torch.device) -> Arms:
    """All arms of one seed."""
    arms: Arms = {}
    for part in (by_words, scattered, losses, masked_words, cost):
        for arm, metrics in part(settings, seed, device).items():
            arms.setdefault(arm, {}).update(metrics)
    whole = {name: arms["words, whole"][f"ndcg_{name}"] for name in SETS}
    arms["LoCo rule"] = {
        **{f"qualifies_{name}": _qualifies(arms, "words, {}", f"ndcg_{name}") for name in SETS},
        "qualifies_scattered": _qualifies(arms, "{}", "ndcg"),
    }
    arms["words, whole"]["loco"] = loco_score(whole)
    for arm in ("words, truncated", "words, chunk-mean", "words, chunk-max", "BM25"):
        arms[arm]["loco"] = loco_score({name: arms[arm][f"ndcg_{name}"] for name in SETS})
    return arms


def _qualifies(arms: Arms, name: str, metric: str) -> float:
    return float(qualifies({reader: arms[name.format(reader)][metric] for reader in READERS}, RULE))


# A: docstrings, compared by words


def by_words(settings: LoCoSettings, seed: int, device: torch.device) -> Arms:
    """nDCG@10 on each set of docstrings by readers of words; nothing is trained."""
    arms: Arms = {}
    for name in SETS:
        queries, documents = docstring_task(name, settings.pairs, generator=stream(seed, "loco", "docstrings", name))
        for reader in (*READERS, "BM25"):
            scores = word_scores(queries, documents, reader)
            arm = reader if reader == "BM25" else f"words, {reader}"
            arms.setdefault(arm, {})[f"ndcg_{name}"] = float(ndcg(scores, torch.eye(len(queries))).mean())
    return arms


# B: scattered evidence

WORLD = Scattered()


def build_reader(longest: int = WORLD.length) -> M2Encoder:
    """An untrained encoder of one layer."""
    return M2Encoder(M2Config(vocabulary=WORLD.vocabulary, longest=longest, width=32, layers=1, hidden=64, blocks=1, filter_width=32, pooling="mean"))


def train_reader(reader: Reader, window: int, settings: LoCoSettings, seed: int, device: torch.device) -> M2Encoder:
    """500 steps of MNRL over 16 pairs in both orders; every reader sees the same documents and starts alike."""
    with seeded(seed):
        model = build_reader().to(device)
    draws = stream(seed, "loco", "scattered")

    def loss_at(step: int) -> Tensor:
        pairs = WORLD.both_orders(16, generator=draws)
        documents = WORLD.documents(pairs, generator=draws)[0].to(device)
        return mnrl(similarity(model(pairs.to(device)), read(model, documents, reader, window))[None])

    _train(model, loss_at, settings.steps, settings.rate)
    return model.eval()


def _train(model: nn.Module, loss_at: Callable[[int], Tensor], steps: int, rate: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    fit(model, loss_at, steps=steps, optimizer=optimizer, schedule="linear", warmup=min(20, steps // 2), clip=1.0)


@torch.no_grad()
def measure(model: M2Encoder, reader: Reader, window: int, seed: int, *, draw: int = 0) -> dict[str, float]:
    """Recall at 1, nDCG@10, and recall at 1 by the quarter in which the later key stands, over one new document of each class."""
    device = model.word.weight.device
    classes = WORLD.classes.to(device)
    documents, places = WORLD.documents(WORLD.classes, generator=stream(seed, "loco", "test", draw))
    scores = similarity(model(classes), read(model, documents.to(device), reader, window)).cpu()
    right = (scores.argmax(1) == torch.arange(len(classes))).double()
    found = {"recall": float(right.mean()), "ndcg": float(ndcg(scores, torch.eye(len(classes))).mean())}
    quarter = places[:, 1] * 4 // WORLD.length
    for i in range(4):
        found[f"recall_{i + 1}"] = float(right[quarter == i].mean())
    return found


def scattered(settings: LoCoSettings, seed: int, device: torch.device) -> Arms:
    """Four readers with a window of a quarter of the document."""
    window = WORLD.length // 4
    arms: Arms = {reader: measure(train_reader(reader, window, settings, seed, device), reader, window, seed) for reader in READERS}
    return {**arms, "BM25": by_bag(seed)}


def by_bag(seed: int) -> dict[str, float]:
    """BM25 on the same test: it knows both keys and not their order."""
    documents, _ = WORLD.documents(WORLD.classes, generator=stream(seed, "loco", "test", 0))
    texts, queries = ([" ".join(f"w{word}" for word in row) for row in rows.tolist()] for rows in (documents, WORLD.classes))
    scores = word_scores(queries, texts, "BM25")
    right = scores.argmax(1) == torch.arange(len(queries))
    return {"recall": float(right.double().mean()), "ndcg": float(ndcg(scores, torch.eye(len(queries))).mean())}


# C: losses

Loss = Callable[[M2Encoder, Tensor, Tensor, torch.Generator], Tensor]  # model, pairs (ROWS, 2), documents (ROWS, L), draws


def warm_start(steps: int, settings: LoCoSettings, seed: int, device: torch.device) -> M2Encoder:
    """An encoder that learned on documents of 16 words, made longer: its positions repeated four times."""
    short = WORLD.length // 4
    with seeded(seed):
        model = build_reader(short).to(device)
    draws = stream(seed, "loco", "warm")

    def loss_at(step: int) -> Tensor:
        pairs = WORLD.different(ROWS, generator=draws)
        documents, _ = WORLD.documents(pairs, generator=draws, length=short)
        return block_mnrl(model(pairs.to(device)), model(documents.to(device)), ROWS)

    _train(model, loss_at, steps, settings.rate)
    return extend(model, WORLD.length, stretch=False)


def mnrl_of(block: int) -> Loss:
    """MNRL when ``block`` pairs fit in memory at a time."""
    return lambda model, pairs, documents, draws: block_mnrl(model(pairs), model(documents), block)


def opl_of(negatives: int) -> Loss:
    """OPL on ROWS rows: the first pairs, each once as it is and ``negatives`` times with another document of the batch."""

    def loss(model: M2Encoder, pairs: Tensor, documents: Tensor, draws: torch.Generator) -> Tensor:
        positives = -(-ROWS // (1 + negatives))
        query = torch.arange(positives).repeat_interleave(1 + negatives)[:ROWS]
        label = (torch.arange(ROWS) % (1 + negatives) == 0).float()
        other = (query + torch.randint(1, ROWS, (ROWS,), generator=draws)) % ROWS
        document = torch.where(label == 1, query, other)
        return opl(model(pairs[query]), model(documents[document]), label.to(pairs.device))

    return loss


def prototypes_of(teacher: M2Encoder) -> Loss:
    """PL: the teacher reads the first quarter of each document."""

    def loss(model: M2Encoder, pairs: Tensor, documents: Tensor, draws: torch.Generator) -> Tensor:
        with torch.no_grad():
            targets = teacher(pairs), teacher(documents[:, : WORLD.length // 4])
        return prototype_loss(model(pairs), model(documents), *targets)

    return loss


def losses(settings: LoCoSettings, seed: int, device: torch.device) -> Arms:
    """Each loss from the same start, with the same texts and as many calls of the encoder."""
    start = warm_start(settings.weak, settings, seed, device)
    good = warm_start(settings.good, settings, seed, device)
    ways: dict[str, tuple[M2Encoder, Loss | None]] = {
        "weak start": (start, None),
        "MNRL, 32 in memory": (start, mnrl_of(32)),
        "MNRL, 2 in memory": (start, mnrl_of(2)),
        "MNRL, 1 in memory": (start, mnrl_of(1)),
        "OPL, 8 negatives": (start, opl_of(8)),
        "OPL, 1 negative": (start, opl_of(1)),
        "PL": (start, prototypes_of(start)),
        "good start": (good, None),
        "MNRL, 2 in memory, good start": (good, mnrl_of(2)),
        "OPL, 1 negative, good start": (good, opl_of(1)),
    }
    arms: Arms = {}
    for arm, (begin, loss) in ways.items():
        model = deepcopy(begin)
        if loss is not None:
            steps = min(settings.tuned, 5) if loss is ways["MNRL, 1 in memory"][1] else settings.tuned  # a gradient of 0 changes nothing
            tune(model, loss, steps, settings.tuned_rate, seed)
        found = [measure(model.eval(), "whole", WORLD.length, seed, draw=1 + i) for i in range(settings.tests)]
        arms[arm] = {f"{metric}_tuned": sum(row[metric] for row in found) / len(found) for metric in ("ndcg", "recall")}
    for arm, metrics in one_by_one(start, seed, device).items():
        arms.setdefault(arm, {}).update(metrics)
    return arms


def tune(model: M2Encoder, loss: Loss, steps: int, rate: float, seed: int) -> None:
    """Train with a loss on random pairs and documents of full length."""
    device = model.word.weight.device
    draws, others = stream(seed, "loco", "tuned"), stream(seed, "loco", "negatives")

    def loss_at(step: int) -> Tensor:
        pairs = WORLD.different(ROWS, generator=draws)
        documents, _ = WORLD.documents(pairs, generator=draws)
        return loss(model, pairs.to(device), documents.to(device), others)

    _train(model, loss_at, steps, rate)


def one_by_one(model: M2Encoder, seed: int, device: torch.device) -> Arms:
    """Gradients when one row fits in memory: of MNRL its length, of OPL the largest difference from the gradient of the whole batch."""
    draws = stream(seed, "loco", "rows")
    pairs = WORLD.different(ROWS, generator=draws)
    documents = WORLD.documents(pairs, generator=draws)[0].to(device)
    pairs, label = pairs.to(device), (torch.arange(ROWS, device=device) % 2).float()
    documents = torch.where(label[:, None] == 1, documents, documents.roll(1, 0))

    def gradient(loss_of: Callable[[M2Encoder, slice], Tensor], block: int) -> Tensor:
        copy = deepcopy(model)
        accumulate(lambda rows: loss_of(copy, rows), ROWS, block)
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in copy.parameters()])

    def opl_of_rows(encoder: M2Encoder, rows: slice) -> Tensor:
        return opl(encoder(pairs[rows]), encoder(documents[rows]), label[rows])

    def mnrl_of_rows(encoder: M2Encoder, rows: slice) -> Tensor:
        return block_mnrl(encoder(pairs[rows]), encoder(documents[rows]), rows.stop - rows.start)

    single, batch = gradient(opl_of_rows, 1), gradient(opl_of_rows, ROWS)
    return {
        "OPL, row by row": {"difference": float((single - batch).abs().max()), "length": float(single.norm())},
        "MNRL, row by row": {"length": float(gradient(mnrl_of_rows, 1).norm())},
        "MNRL, the batch": {"length": float(gradient(mnrl_of_rows, ROWS).norm())},
    }


# D: cost


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Best of some calls, in seconds of the processor."""
    best = float("inf")
    for _ in range(repeats):
        began = time.process_time()
        call()
        best = min(best, time.process_time() - began)
    return best


class Attention(nn.Module):
    """What stands in the mixer's place elsewhere, by torch's own kernel, which never holds the whole table: (n, length, width) to the same shape."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, u: Tensor) -> Tensor:
        """Self-attention of a sequence."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.into(u).chunk(3, -1))
        mixed: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed


@torch.no_grad()
def cost(settings: LoCoSettings, seed: int, device: torch.device) -> Arms:
    """Exponent of the length in the time of one sequence mixer and of one attention, both 64 wide; on the processor, whatever the device is."""
    width = 64
    with seeded(seed):
        mixer = M2Mixer(width, max(settings.lengths)).eval()
        attention = Attention(width).eval()
        x = torch.randn(1, max(settings.lengths), width)

    arms: Arms = {}
    ways: dict[str, Callable[[Tensor], Tensor]] = {"mixer": mixer, "attention": attention}
    for arm, way in ways.items():
        way(x[:, : min(settings.lengths)])
        spent = [seconds(lambda way=way, length=length: way(x[:, :length]), settings.timings) for length in settings.lengths]  # type: ignore[misc]
        arms[arm] = {"slope": float(np.polyfit(np.log(settings.lengths), np.log(spent), 1)[0]), "milliseconds": 1e3 * spent[-1]}
    return arms


# E: masked words


def masked_words(settings: LoCoSettings, seed: int, device: torch.device) -> Arms:
    """Pretraining on short, long and mixed examples, and a longer model from a shorter one; accuracy on functions that were set aside."""
    texts = docstring_texts(settings.words, held=settings.held, generator=stream(seed, "loco", "texts"))
    long, short = settings.long, settings.long // 4
    train = _rows(texts.short, texts.long, short, long, device)
    held = _rows(texts.held_short, texts.held_long, short, long, device)
    words = (len(SPECIAL), len(texts.vocabulary))
    tokens = 8 * long

    def build(longest: int) -> MaskedWords:
        with seeded(seed):
            config = M2Config(words[1], longest, width=64, layers=1, hidden=128, blocks=4, filter_width=32, std=0.1, pooling="mean")
            return MaskedWords(M2Encoder(config)).to(device)

    def trained(model: MaskedWords, share: float, steps: int) -> MaskedWords:
        draws = stream(seed, "loco", "masked")

        def loss_at(step: int) -> Tensor:
            batch = mixture_batch(train[0], train[1], share=share, tokens=tokens, generator=draws)
            return F.cross_entropy(*model(*hide(batch, 0.30, mask=MASK, words=words, generator=draws)))

        _train(model, loss_at, steps, settings.masked_rate)
        return model

    @torch.no_grad()
    def measured(model: MaskedWords) -> dict[str, float]:
        model.eval()
        found = {}
        for name, rows in zip(("short", "long"), held, strict=True):
            draws = stream(seed, "loco", "held", name)
            right, asked = 0, 0
            for part in torch.split(rows, 64):
                logits, labels = model(*hide(part, 0.15, mask=MASK, words=words, generator=draws))
                right, asked = right + int((logits.argmax(1) == labels).sum()), asked + len(labels)
            found[f"masked_{name}"] = right / asked
        return found

    arms = {arm: measured(trained(build(long), share, settings.masked)) for arm, share in MIXTURES.items()}
    shorter = trained(build(short), 1.0, settings.shorter)
    for arm in ("positions repeated", "new positions", "cold"):
        model = build(long)
        if arm != "cold":
            fresh = model.encoder.position.weight.detach()[short:].clone()
            model = deepcopy(shorter)
            model.encoder = extend(shorter.encoder, long, stretch=False)
            if arm == "new positions":
                with torch.no_grad():
                    model.encoder.position.weight[short:] = fresh
        arms[arm] = measured(trained(model, 0.0, settings.extended))
    return arms


def _rows(short: Sequence[Sequence[int]], long: Sequence[Sequence[int]], shorter: int, longer: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Natural short examples (n, shorter), padded, and texts concatenated to full rows (m, longer)."""
    rows = padded([row[:shorter] for row in short], 0)
    return F.pad(rows, (0, shorter - rows.shape[1])).to(device), concatenated(long, longer, separator=SEPARATOR).to(device)


_QUICK = LoCoSettings(
    seeds=1,
    pairs=40,
    steps=6,
    weak=4,
    good=4,
    tuned=3,
    tests=1,
    masked=3,
    shorter=2,
    extended=2,
    long=64,
    words=300,
    held=40,
    lengths=(128, 512),
    timings=1,
)
_PAPER = LoCoSettings(
    seeds=3,
    pairs=10_000,
    steps=20_000,
    rate=3e-3,
    weak=600,
    good=2000,
    tuned=5000,
    masked=20_000,
    shorter=6000,
    extended=6000,
    long=2048,
    words=8000,
    lengths=(512, 1024, 2048, 4096, 8192, 16_384, 32_768),
)
SCALES: Mapping[str, LoCoSettings] = {"quick": _QUICK, "laptop": LoCoSettings(seeds=3), "paper": _PAPER}

CLAIMS = (
    Claim("whole", "truncated", "ndcg", 0.3, says="scattered evidence: who reads all over who reads the first quarter"),
    *(
        Claim("words, whole", "words, truncated", f"ndcg_{name}", 0.03, says=f"docstrings of {' and '.join(SETS[name])}: all over the first 64 words")
        for name in SETS
    ),
    Claim("whole", "chunk-mean", "recall", 0.2, says="scattered evidence: all at once over the mean of four chunks"),
    Claim("whole", "chunk-max", "recall", 0.3, says="scattered evidence: all at once over the best of four chunks"),
    Claim("whole", "BM25", "ndcg", 0.05, says="scattered evidence: all at once over BM25, which knows no order (the paper, real texts: 15 points)"),
    Claim("attention", "mixer", "slope", 0.4, says="attention's time grows with a higher power of the length than the mixer's"),
    Claim("MNRL, row by row", None, "length", -1e-12, higher_is_better=False, says="MNRL with one row in memory has no gradient at all"),
    Claim("OPL, row by row", None, "difference", -1e-4, higher_is_better=False, says="OPL row by row has the gradient of the batch"),
    Claim("MNRL, 32 in memory", "MNRL, 2 in memory", "ndcg_tuned", 0.1, says="MNRL needs its batch: 32 rows over 2, from a weak start"),
    Claim(
        "OPL, 8 negatives",
        "MNRL, 2 in memory",
        "ndcg_tuned",
        says="OPL with eight negatives over MNRL with two rows in memory (the paper: 24 points)",
    ),
    Claim("OPL, 1 negative", "MNRL, 2 in memory", "ndcg_tuned", says="OPL with one negative over MNRL with two rows in memory"),
    Claim("OPL, 1 negative, good start", "MNRL, 2 in memory, good start", "ndcg_tuned", says="the same from a good start"),
    Claim("OPL, 8 negatives", "PL", "ndcg_tuned", says="OPL over the prototypes of a short-context teacher (the paper: 31 points)"),
    Claim("mixed", "short only", "masked_long", 0.01, says="short and long examples over short ones alone, on long texts"),
    Claim("mixed", "long only", "masked_short", 0.01, says="short and long examples over long ones alone, on short texts"),
    Claim("positions repeated", "cold", "masked_long", 0.02, says="a longer model from a shorter one over a cold start, at equal further steps"),
)

UNITS = {
    "ndcg": "nDCG@10, scattered evidence",
    "recall": "share of right first answers, scattered evidence",
    **{f"recall_{i}": f"share of right first answers, later key in quarter {i}" for i in range(1, 5)},
    **{f"ndcg_{name}": f"nDCG@10, docstrings of {' and '.join(SETS[name])}" for name in SETS},
    "loco": "mean nDCG@10 of four sets of docstrings",
    **{f"qualifies_{name}": "1 where every shorter reader fails" for name in (*SETS, "scattered")},
    "ndcg_tuned": "nDCG@10 after tuning",
    "recall_tuned": "share of right first answers after tuning",
    "length": "norm of the gradient",
    "difference": "largest difference of gradients",
    "slope": "exponent of the length in the time",
    "milliseconds": "ms of the processor at the longest input",
    "masked_short": "share of hidden words named, short texts",
    "masked_long": "share of hidden words named, long texts",
}

EXPERIMENT = Experiment(
    paper="loco",
    question="Does a reader of whole documents find what truncated and chunked readers miss, and which loss and pretraining make it?",
    scales=SCALES,
    claims=CLAIMS,
    run=run,
    units=UNITS,
)


# what the explorers show

WINDOWS = (16, 32)


@dataclass(frozen=True)
class ShownSettings:
    """What the shipped readers depend on.

    Attributes:
        settings: of their training.
        seed: of everything.
    """

    settings: LoCoSettings = field(default_factory=lambda: LoCoSettings(seeds=1))
    seed: int = 0


def shown_readers() -> dict[str, tuple[Reader, int]]:
    """The readers that ship: one of whole documents, three of each window."""
    return {"whole": ("whole", WORLD.length), **{f"{reader} {window}": (reader, window) for window in WINDOWS for reader in READERS[1:]}}


def build_shown(shown: ShownSettings) -> nn.Module:
    """Untrained readers by name."""
    return nn.ModuleDict({name: build_reader() for name in shown_readers()})


def train_shown(shown: ShownSettings, progress: str | None) -> nn.Module:
    """Train them as in the experiment."""
    cpu = torch.device("cpu")
    return nn.ModuleDict({name: train_reader(*way, shown.settings, shown.seed, cpu) for name, way in shown_readers().items()})


def measure_shown(models: nn.Module) -> dict[str, float]:
    """Share of right first answers."""
    assert isinstance(models, nn.ModuleDict)
    found = {}
    for name, way in shown_readers().items():
        model = models[name]
        assert isinstance(model, M2Encoder)
        found[name] = round(measure(model, *way, SHOWN.settings.seed)["recall"], 4)
    return found


SHOWN = Checkpoint("loco-readers", ShownSettings(), build_shown, train_shown, measure_shown)
CHECKPOINTS = (SHOWN,)
