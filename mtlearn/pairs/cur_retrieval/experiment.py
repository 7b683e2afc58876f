"""Does an index of a cross-encoder's own scores find its best items better than a cheaper model's candidates do, at the same number of its calls?

Three parts. Real text: a small cross-encoder with a [CLS] and an [EMB] head is trained on docstrings; its scores are searched through by CUR and by
rerankers, once among functions like those it was trained on and once in libraries that it never saw. Digits under a similarity that is treated as a
black box. Made score matrices of known rank, with noise and with spikes, which show where CUR breaks. At paper scale, Cranfield as well.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.ranking import ranking_measures
from mtlearn.lab.seeds import stream
from mtlearn.layers.decomposable_attention import DecomposableAttention, MeanOfWords
from mtlearn.layers.pretrained import pretrained, word_table
from mtlearn.layers.text_encoders import CrossEncoder
from mtlearn.layers.tokens import Tokeniser, Vocabulary
from mtlearn.pairs.cur_retrieval.anchors import Choice, choose_anchors
from mtlearn.pairs.cur_retrieval.baselines import Reranker, distil, item_item_products, projected, train_dual, truncated_svd
from mtlearn.pairs.cur_retrieval.cross_encoders import EmbeddingCrossEncoder, JointScorer, PairScorer, TwoHeads, add_marks
from mtlearn.pairs.cur_retrieval.method import (
    CUTOFF,
    PUBLISHED_CUTOFF,
    CallCounter,
    CURIndex,
    approximate,
    embeddings,
    oracle_middle,
    recall,
    retrieve,
)
from mtlearn.pairs.cur_retrieval.training import hard_negatives, train_heads, train_joint
from mtlearn.pairs.cur_retrieval.worlds import (
    TextWorld,
    cranfield_world,
    digit_scores,
    documentation_world,
    made_scores,
    tfidf,
)

HEADS = ("[CLS]", "[EMB]")
RANK = 10  # of the made matrices
NOISE = 1e-12  # a cut-off for them that removes rounding errors alone: 1e-15 would keep some, of a matrix whose rank is below its size
CASES: Mapping[str, tuple[float, float]] = {"exact": (0.0, 0.0), "noise": (0.3, 0.0), "spike": (0.0, 6.0), "noisy_spike": (0.1, 6.0)}


@dataclass(frozen=True)
class CURSettings(Settings):
    """Settings of a run.

    Attributes:
        items, anchors, tests: sizes of a text world: m, k_q, queries.
        train: pairs that train the scorer at most.
        encoder: what the cross-encoder starts from. "" has word vectors of its own, "words" those of a real sentence encoder
            (:func:`~mtlearn.layers.pretrained.word_table`), anything else is a folder or a name for :func:`~mtlearn.layers.pretrained.pretrained`.
        size, width: of the own vocabulary and word vectors.
        length: tokens of a text at most.
        dual_steps, cross_steps, distil_steps: updates.
        budgets, depths: calls for a query; k.
        draws: of the anchors, averaged.
        adaptive_draws, rounds: the same for the adaptive anchors, and in how many parts the rest is spent.
        between: items that are scored as queries, for the item-item arms: k_i of them at most.
        digit_anchors, made_anchors: k_i of the sweeps.
        cranfield: Cranfield too, with ``cranfield_items`` abstracts (all when 0), texts of ``cranfield_length`` tokens.
        cranfield_tests: questions to search with.
    """

    items: int = 1000
    anchors: int = 100
    tests: int = 100
    train: int = 100_000
    encoder: str = ""
    size: int = 4000
    width: int = 32
    length: int = 16
    dual_steps: int = 600
    dual_rate: float = 5e-3
    cross_steps: int = 200
    cross_rate: float = 2e-3
    distil_steps: int = 300
    distil_rate: float = 5e-3
    sharpness: float = 2.0
    budgets: tuple[int, ...] = (20, 50, 100, 200)
    depths: tuple[int, ...] = (1, 10, 50)
    draws: int = 5
    adaptive_draws: int = 1
    between: int = 50
    rounds: int = 4
    digit_anchors: tuple[int, ...] = (10, 25, 50, 75, 100, 150)
    made_anchors: tuple[int, ...] = (5, 10, 20, 50)
    cranfield: bool = False
    cranfield_items: int = 0
    cranfield_length: int = 96
    cranfield_tests: int = 100


# ------------------------------------------------------------------------------------------------------------------------ text, trained


@dataclass(frozen=True)
class Scored:
    """A text world with everything that was computed of it.

    Attributes:
        world: the texts.
        anchors: (heads, k_q, m) exact scores of the anchor queries; the heads are "[CLS]" and "[EMB]".
        tests: (heads, n, m) exact scores of the test queries.
        between: (j, m) "[CLS]" scores of the first anchors of a random order of items, read as queries, with all items; empty where not wanted.
        order: (m,) that order.
        cheap: name of a retriever to its scores (n, m).
        seconds: name of a retriever to the CPU seconds of its training.
    """

    world: TextWorld
    anchors: Tensor
    tests: Tensor
    between: Tensor
    order: Tensor
    cheap: dict[str, Tensor]
    seconds: dict[str, float]


def score_world(world: TextWorld, settings: CURSettings, seed: int, device: torch.device, *, length: int, between: int = 0) -> Scored:
    """Train dual encoder and cross-encoder, score everything exactly, distil.

    Args:
        world: the texts.
        settings: of the run.
        seed: of the draws.
        device: where the models live; the scores come back to the CPU.
        length: tokens of a text at most.
        between: how many items are scored as queries.
    """
    queries, items = zip(*world.train, strict=True)
    words, vectors = _start(world, settings, seed)
    read: Callable[[Sequence[str]], Tensor] = lambda texts: words(texts, length, truncate=True).to(device)
    train_queries, train_items = read(queries), read(items)
    dual = MeanOfWords(vectors).to(device)
    began = time.process_time()
    ways: dict[str, Any] = {"batch": 64, "rate": settings.dual_rate, "generator": stream(seed, "cur_retrieval", "dual")}
    train_dual(dual, train_queries, train_items, steps=settings.dual_steps, **ways)
    seconds = {"dual encoder": time.process_time() - began}
    negatives = hard_negatives(world.train)
    order = torch.randperm(len(world.items), generator=stream(seed, "cur_retrieval", "item anchors"))
    asked = [*world.anchors, *world.tests, *(world.items[i] for i in order[:between].tolist())]
    texts = (read(world.anchors), read(world.tests), read(world.items))
    if settings.encoder in ("", "words"):
        model = TwoHeads(DecomposableAttention(scaled(dual.word.weight.detach()), start=1.0)).to(device)
        ways = {"batch": 16, "rate": settings.cross_rate, "generator": stream(seed, "cur_retrieval", "cross")}
        train_heads(model, train_queries, train_items, negatives, steps=settings.cross_steps, **ways)
        scores = PairScorer(model, batch=1024).all(read(asked), texts[2]).permute(2, 0, 1).cpu()
    else:
        scores = torch.stack([_joint(head, world, negatives, settings, seed, device, length)(asked, world.items).cpu() for head in HEADS])
    exact = torch.split(scores, [len(world.anchors), len(world.tests), between], 1)
    student = copy.deepcopy(dual)
    began = time.process_time()
    ways = {"batch": 32, "rate": settings.distil_rate, "sharpness": settings.sharpness, "generator": stream(seed, "cur_retrieval", "distil")}
    distil(student, texts[0], texts[2], exact[0][0].to(device), steps=settings.distil_steps, **ways)
    seconds["distilled dual encoder"] = time.process_time() - began
    cheap = {"TF-IDF": tfidf(world.tests, world.items)}
    with torch.no_grad():
        cheap |= {
            name: (found.embed(texts[1]) @ found.embed(texts[2]).T).cpu()
            for name, found in {"dual encoder": dual, "distilled dual encoder": student}.items()
        }
    cheap["random"] = torch.rand(len(world.tests), len(world.items), generator=stream(seed, "cur_retrieval", "candidates"))
    return Scored(world, exact[0].double(), exact[1].double(), exact[2][0].double(), order, cheap, seconds)


def scaled(table: Tensor) -> Tensor:
    """Word vectors (size, d) with rows of length √d, that of padding zero: then equal words attend to one another from the start."""
    rows = nn.functional.normalize(table, dim=1) * table.shape[1] ** 0.5
    return torch.cat([torch.zeros_like(rows[:1]), rows[1:]])


def _start(world: TextWorld, settings: CURSettings, seed: int) -> tuple[Tokeniser, Tensor]:
    """Tokeniser and word vectors that the dual encoder starts from."""
    if settings.encoder == "words":
        vectors, subwords = word_table()
        return subwords, vectors
    found = Vocabulary.of((text for pair in world.train for text in pair), settings.size, special=("[PAD]", "[UNK]"))
    return found, torch.randn(len(found), settings.width, generator=stream(seed, "cur_retrieval", "words"))


def _joint(head: str, world: TextWorld, negatives: Tensor, settings: CURSettings, seed: int, device: torch.device, length: int) -> JointScorer:
    """A pretrained transformer, fine-tuned with one of the heads."""
    body, tokeniser = pretrained(settings.encoder)
    model = CrossEncoder(body) if head == "[CLS]" else EmbeddingCrossEncoder(body, add_marks(body, tokeniser))
    scorer = JointScorer(model.to(device), tokeniser, most=2 * length + 3)
    generator = stream(seed, "cur_retrieval", "cross")
    train_joint(scorer, world.train, negatives, steps=settings.cross_steps, batch=4, rate=settings.cross_rate, generator=generator)
    model.eval()
    return scorer


# -------------------------------------------------------------------------------------------------------------------------- measurements


def searched(
    anchors: Tensor,
    tests: Tensor,
    budget: int,
    count: int,
    generator: torch.Generator,
    *,
    choose: Choice = "uniform",
    cutoff: float = CUTOFF,
    rounds: int = 1,
) -> Tensor:
    """(n, budget) numbers of the items that CUR scores for each test query, with one choice of ``count`` anchor items.

    Args:
        anchors: R (k_q, m).
        tests: exact scores (n, m), of which ``budget`` a query are looked at.
        budget: k_i + k_r.
        count: k_i.
        generator: for the anchors.
        choose: how they are chosen.
        cutoff: of the singular values.
        rounds: more than 1 for adaptive anchors.
    """
    items = choose_anchors(anchors, count, choose, generator=generator)
    vectors = _embeddings(anchors, items, cutoff)
    ways: dict[str, Any] = {"queries": len(tests), "rounds": rounds, "cutoff": cutoff}
    return retrieve(lambda numbers: tests.gather(1, numbers), anchors, vectors, items, budget, **ways)[0]


def _embeddings(anchors: Tensor, items: Tensor, cutoff: float) -> Tensor:
    """The items' vectors, without the warning that a missing cut-off deserves: here it is what is studied."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if cutoff < CUTOFF else "error")
        return embeddings(anchors, items, cutoff)


def recalls(found: Sequence[Tensor], tests: Tensor, depths: Sequence[int]) -> dict[int, float]:
    """Mean recall at each k over queries and draws; k beyond the budget is left out."""
    return {k: sum(recall(items, tests, k).mean().item() for items in found) / len(found) for k in depths if k <= found[0].shape[1]}


def study(scored: Scored, settings: CURSettings, seed: int, *, whole: bool) -> Arms:
    """All arms on one text world: recall of the scorer's own best items; with ``whole`` also the limits, other anchors and item-item scores."""
    arms: Arms = {}
    rows, tests = scored.anchors[0], scored.tests[0]

    def draws(name: str, count: int | None = None) -> list[torch.Generator]:
        return [stream(seed, "cur_retrieval", name, draw) for draw in range(count or settings.draws)]

    def note(arm: str, budget: int, found: Sequence[Tensor], exact: Tensor) -> None:
        arms.setdefault(arm, {}).update({f"recall_{k}_{budget}": value for k, value in recalls(found, exact, settings.depths).items()})

    for budget in settings.budgets:
        half, quarter = budget // 2, budget // 4
        note("CUR, half", budget, [searched(rows, tests, budget, half, draw) for draw in draws("uniform")], tests)
        note("CUR, quarter", budget, [searched(rows, tests, budget, quarter, draw) for draw in draws("uniform")], tests)
        found = [searched(rows, tests, budget, half, draw, cutoff=PUBLISHED_CUTOFF) for draw in draws("uniform")]
        note("CUR, half, no cut-off", budget, found, tests)
        found = [searched(rows, tests, budget, quarter, draw, rounds=settings.rounds) for draw in draws("uniform", settings.adaptive_draws)]
        note("CUR, adaptive anchors", budget, found, tests)
        found = [searched(scored.anchors[1], scored.tests[1], budget, half, draw) for draw in draws("uniform")]
        note("CUR, half, [EMB]", budget, found, scored.tests[1])
        for name, cheap in scored.cheap.items():
            note(name, budget, [cheap.topk(budget).indices], tests)
        for name in ("dual encoder", "TF-IDF"):
            note(f"{name}, [EMB]", budget, [scored.cheap[name].topk(budget).indices], scored.tests[1])
        if whole:
            for how, arm in (("k-means", "CUR, k-means anchors"), ("leverage", "CUR, leverage anchors")):
                note(arm, budget, [searched(rows, tests, budget, half, draw, choose=how) for draw in draws(how)], tests)  # type: ignore[arg-type]
            note("oracle U", budget, [_oracle(rows, tests, half, budget, draw) for draw in draws("uniform")], tests)
            note("truncated SVD", budget, [truncated_svd(tests, half).topk(budget - half).indices], tests)
            if half <= len(scored.between):
                note("item-item CUR", budget, [_between(scored, half, budget, inverse=True)], tests)
                note("item-item products", budget, [_between(scored, half, budget, inverse=False)], tests)
    for head, exact in zip(HEADS, scored.tests, strict=True):
        arms[f"{head} cross-encoder"] = _judged(exact, scored.world.relevant) | {"directions_99": directions(exact)}
    for name in ("TF-IDF", "dual encoder", "distilled dual encoder"):
        arms[name] |= _judged(scored.cheap[name], scored.world.relevant)
    if whole:
        for name, value in scored.seconds.items():
            arms[name]["index_seconds"] = value
        began = time.process_time()
        largest = max(settings.budgets) // 2
        embeddings(rows, choose_anchors(rows, largest, generator=stream(seed, "cur_retrieval", "uniform", 0)))
        arms["CUR, half"]["index_seconds"] = time.process_time() - began
        for arm, counts in _counted(scored, max(b for b in settings.budgets if b <= 100), seed).items():
            arms[arm] |= counts
    return arms


def _oracle(rows: Tensor, tests: Tensor, count: int, budget: int, generator: torch.Generator) -> Tensor:
    """CUR with the middle matrix that the whole score matrix of the test queries gives."""
    items = choose_anchors(rows, count, generator=generator)
    columns = tests[:, items]
    vectors = oracle_middle(columns, tests, rows) @ rows
    return retrieve(lambda numbers: tests.gather(1, numbers), rows, vectors, items, budget, queries=len(tests))[0]


def _between(scored: Scored, count: int, budget: int, *, inverse: bool) -> Tensor:
    """Anchor items in the place of the anchor queries: as rows of a CUR index, or in plain products."""
    tests, items, rows = scored.tests[0], scored.order[:count], scored.between[:count]
    vectors = _embeddings(rows, items, CUTOFF) if inverse else None
    estimate = approximate(tests[:, items], vectors) if vectors is not None else item_item_products(tests[:, items], rows)
    best = estimate.index_fill(1, items, -torch.inf).topk(budget - count).indices
    return torch.cat([items.expand(len(tests), -1), best], 1)


def directions(scores: Tensor) -> float:
    """How many singular directions hold 99 % of the energy of a score matrix."""
    energy = torch.linalg.svdvals(scores).square().cumsum(0)
    return float((energy < 0.99 * energy[-1]).sum() + 1)


def _judged(scores: Tensor, relevant: Sequence[tuple[int, ...]]) -> dict[str, float]:
    """How well a scorer ranks what is right, by the usual measures."""
    grades = torch.zeros(scores.shape, dtype=torch.long)
    for query, row in enumerate(relevant):
        grades[query, list(row)] = 1
    found = ranking_measures(scores, grades, ("P_1", "recall_10", "ndcg_cut_10"))
    return {"right_first": found["P_1"], "right_in_10": found["recall_10"], "ndcg_10": found["ndcg_cut_10"]}


def _counted(scored: Scored, budget: int, seed: int) -> dict[str, dict[str, float]]:
    """Calls that real searches take, counted at the scorer, and the ranking quality of what they return."""
    table = torch.cat([scored.anchors[0], scored.tests[0]])
    score = CallCounter(lambda queries, items: table[queries][:, items])
    kinds = len(scored.anchors[0])
    numbers = torch.arange(table.shape[1])
    index = CURIndex.build(score, torch.arange(kinds), numbers, anchors=budget // 2, generator=stream(seed, "cur_retrieval", "uniform", 0))
    built = score.calls
    tests = torch.arange(kinds, len(table))
    arms: dict[str, dict[str, float]] = {}
    ways: dict[str, Callable[[Any], Any]] = {
        "CUR, half": lambda query: index.search(query, 10, budget),
        "CUR, adaptive anchors": lambda query: index.search(query, 10, budget, rounds=4),
    }
    for name in ("TF-IDF", "dual encoder", "distilled dual encoder"):
        rerank = Reranker(score, numbers, lambda query, name=name: scored.cheap[name][int(query) - kinds])  # type: ignore[misc]
        ways[name] = lambda query, rerank=rerank: rerank.search(query, 10, budget)  # type: ignore[misc]
    for name, search in ways.items():
        score.calls = 0
        returned = torch.full(scored.tests[0].shape, -1e9, dtype=torch.float64)
        for row, query in enumerate(tests):
            found = search(query)
            returned[row, found.items] = found.scores
        arms[name] = {"calls": score.calls / len(tests)} | {f"found_{key}": value for key, value in _judged(returned, scored.world.relevant).items()}
    arms["CUR, half"]["index_calls"] = float(built)
    arms["distilled dual encoder"]["index_calls"] = float(built)
    return arms


# ------------------------------------------------------------------------------------------------------------------------- black boxes


def digits(settings: CURSettings, seed: int) -> Arms:
    """Part B: digits under a Gaussian kernel and under minus their distance, with no training at all."""
    arms: Arms = {name: {} for name in ("CUR, half", "PCA, 2-D", "PCA, 5-D", "random", "CUR", "CUR, no cut-off")}
    for kind in ("gaussian", "distance"):
        scores, asked, items = digit_scores(seed, kind)
        rows, tests = scores.anchors, scores.tests
        for budget in (50, 200):
            draws = [stream(seed, "cur_retrieval", kind, draw) for draw in range(settings.draws)]
            arms["CUR, half"][f"{kind}_{budget}"] = recalls([searched(rows, tests, budget, budget // 2, draw) for draw in draws], tests, (10,))[10]
            chance = torch.rand(tests.shape, generator=stream(seed, "cur_retrieval", kind, "random"))
            for name, cheap in {"PCA, 2-D": projected(asked, items, 2), "PCA, 5-D": projected(asked, items, 5), "random": chance}.items():
                arms[name][f"{kind}_{budget}"] = recalls([cheap.topk(budget).indices], tests, (10,))[10]
        for count in settings.digit_anchors:
            for arm, cutoff in (("CUR", CUTOFF), ("CUR, no cut-off", PUBLISHED_CUTOFF)):
                draws = [stream(seed, "cur_retrieval", kind, draw) for draw in range(settings.draws)]
                found = [searched(rows, tests, 200, count, draw, cutoff=cutoff) for draw in draws]
                arms[arm][f"{kind}_anchors_{count}"] = recalls(found, tests, (10,))[10]
    return arms


def made(settings: CURSettings, seed: int) -> Arms:
    """Part C: score matrices of rank 10, with noise and with spikes, at a budget of 100."""
    arms: Arms = {"CUR": {}, "CUR, no cut-off": {}}
    for case, (noise, spike) in CASES.items():
        scores = made_scores(seed, rank=RANK, noise=noise, spike=spike)
        for count in settings.made_anchors:
            for arm, cutoff in (("CUR", CUTOFF), ("CUR, no cut-off", NOISE)):
                draws = [stream(seed, "cur_retrieval", "made", draw) for draw in range(settings.draws)]
                found = [searched(scores.anchors, scores.tests, 100, count, draw, cutoff=cutoff) for draw in draws]
                arms[arm] |= {f"{case}_{count}_recall_{k}": value for k, value in recalls(found, scores.tests, (1, 10, 50)).items()}
    return arms


def run(settings: CURSettings, seed: int, device: torch.device) -> Arms:
    """All arms of all parts."""
    arms: Arms = {}

    def add(found: Arms, suffix: str = "") -> None:
        for arm, metrics in found.items():
            arms.setdefault(arm, {}).update({f"{metric}{suffix}": value for metric, value in metrics.items()})

    sizes: dict[str, Any] = {"items": settings.items, "anchors": settings.anchors, "tests": settings.tests, "most": settings.train}
    seen = documentation_world(seed, **sizes)
    between = settings.between
    add(study(score_world(seen, settings, seed, device, length=settings.length, between=between), settings, seed, whole=True))
    foreign = documentation_world(seed, unseen=True, **sizes)
    add(study(score_world(foreign, settings, seed, device, length=settings.length), settings, seed, whole=False), "_unseen")
    add(digits(settings, seed))
    add(made(settings, seed))
    if settings.cranfield:
        world = cranfield_world(seed, tests=settings.cranfield_tests, items=settings.cranfield_items or None)
        add(
            study(score_world(world, settings, seed, device, length=settings.cranfield_length, between=between), settings, seed, whole=True),
            "_cranfield",
        )
    return arms


# ------------------------------------------------------------------------------------------------------------------------- the explorer's


@dataclass(frozen=True)
class TableSettings:
    """Settings of the scores that the explorer shows.

    Attributes:
        seed: of the world, another one than those of the experiment.
        items, anchors, tests: sizes.
    """

    seed: int = 100
    items: int = 600
    anchors: int = 100
    tests: int = 60


TEXT = 96  # bytes of a text that is kept


class ScoreTable(nn.Module):
    """Scores of a trained cross-encoder and of its rivals, with the texts, as one file.

    Args:
        settings: sizes.

    Attributes:
        anchors: (heads, k_q, m).
        tests: (heads, n, m).
        cheap: (3, n, m) of TF-IDF, the dual encoder and the distilled one.
        items: (m, 96) uint8, the texts in ASCII, cut or filled up with blanks; ``asked`` (n, 96) the test queries.
    """

    anchors: Tensor
    tests: Tensor
    cheap: Tensor
    items: Tensor
    asked: Tensor

    def __init__(self, settings: TableSettings) -> None:
        super().__init__()
        m, n = settings.items, settings.tests
        self.register_buffer("anchors", torch.zeros(2, settings.anchors, m))
        self.register_buffer("tests", torch.zeros(2, n, m))
        self.register_buffer("cheap", torch.zeros(3, n, m))
        self.register_buffer("items", torch.zeros(m, TEXT, dtype=torch.uint8))
        self.register_buffer("asked", torch.zeros(n, TEXT, dtype=torch.uint8))

    def text(self, kind: str, number: int) -> str:
        """A text of "items" or "asked"."""
        return bytes(getattr(self, kind)[number].tolist()).decode("ascii").strip()


def _fill(settings: TableSettings, progress: str | None) -> ScoreTable:
    world = documentation_world(settings.seed, items=settings.items, anchors=settings.anchors, tests=settings.tests)
    scored = score_world(world, SCALES["laptop"], settings.seed, torch.device("cpu"), length=SCALES["laptop"].length)
    table = ScoreTable(settings)
    table.anchors.copy_(scored.anchors)
    table.tests.copy_(scored.tests)
    table.cheap.copy_(torch.stack([scored.cheap[name] for name in ("TF-IDF", "dual encoder", "distilled dual encoder")]))
    for kind, texts in (("items", world.items), ("asked", world.tests)):
        getattr(table, kind).copy_(torch.tensor([list(text.encode("ascii", "replace")[:TEXT].ljust(TEXT)) for text in texts]))
    return table


def _measure(table: nn.Module) -> dict[str, float]:
    assert isinstance(table, ScoreTable)
    found = searched(table.anchors[0].double(), table.tests[0].double(), 100, 50, stream(0, "cur_retrieval", "measure"))
    return {"recall_10_100": round(recall(found, table.tests[0], 10).mean().item(), 3)}


SCALES = {
    "quick": CURSettings(seeds=1, items=300, anchors=60, tests=30, train=600, size=1500, dual_steps=60, cross_steps=20, distil_steps=30, draws=1),
    "laptop": CURSettings(seeds=5),
    "paper": CURSettings(seeds=5, items=2000, encoder="words", cross_steps=1000, cross_rate=1e-3, cranfield=True),
}
CHECKPOINTS = (Checkpoint("cur_retrieval-scores", TableSettings(), ScoreTable, _fill, _measure),)

CLAIMS = (
    Claim("CUR, half", "TF-IDF", "recall_50_100", 0.1, says="k = 50, 100 calls: CUR over reranking TF-IDF's candidates by 0.1"),
    Claim("CUR, half", "TF-IDF", "recall_10_100", 0.1, says="k = 10, 100 calls: CUR over reranking TF-IDF's candidates by 0.1"),
    Claim("CUR, half", "TF-IDF", "recall_50_200", 0.1, says="k = 50, 200 calls: CUR over reranking TF-IDF's candidates by 0.1"),
    Claim("CUR, half", "TF-IDF", "recall_10_200", 0.1, says="k = 10, 200 calls: CUR over reranking TF-IDF's candidates by 0.1"),
    Claim("CUR, half", "TF-IDF", "recall_50_100_unseen", 0.1, says="the same for k = 50, 100 calls, in libraries that the scorer never saw"),
    Claim("CUR, half", "dual encoder", "recall_50_50", says="k = 50, 50 calls: CUR over reranking a dual encoder's candidates"),
    Claim("CUR, half", "dual encoder", "recall_50_100", says="k = 50, 100 calls: CUR over reranking a dual encoder's candidates"),
    Claim("CUR, quarter", "dual encoder", "recall_50_200", says="k = 50, 200 calls: CUR with 50 anchors over reranking a dual encoder's candidates"),
    Claim("CUR, quarter", "dual encoder", "recall_50_200_unseen", says="the same in libraries that neither model saw"),
    Claim(
        "CUR, quarter", "distilled dual encoder", "recall_50_200", says="k = 50, 200 calls: CUR over a dual encoder distilled from the same scores"
    ),
    Claim("TF-IDF", "CUR, half", "recall_1_20", says="k = 1, 20 calls: reranking TF-IDF's candidates over CUR"),
    Claim("dual encoder", "CUR, half", "recall_1_20", says="k = 1, 20 calls: reranking a dual encoder's candidates over CUR"),
    Claim("CUR, half", "CUR, half, no cut-off", "recall_10_200", 0.1, says="as many anchor items as queries: the cut-off is worth more than 0.1"),
    Claim("CUR", "CUR, no cut-off", "gaussian_anchors_100", 0.1, says="the same for digits under a Gaussian kernel"),
    Claim("CUR", None, "exact_10_recall_1", 0.99, says="a matrix of rank 10 and ten anchors: the best item is found"),
    Claim("CUR", None, "exact_10_recall_50", 0.99, says="a matrix of rank 10 and ten anchors: the best fifty are found"),
    Claim("CUR", None, "exact_20_recall_50", 0.99, says="a matrix of rank 10 and twenty anchors: the best fifty are found"),
    Claim("CUR, no cut-off", None, "exact_10_recall_50", 0.99, says="the same with ten anchors, where nothing but rounding errors is cut off"),
    Claim("CUR", None, "spike_20_recall_1", -0.3, higher_is_better=False, says="a spike on one item a query: the best item is found in at most 30 %"),
    Claim("CUR", None, "spike_20_recall_50", 0.9, says="a spike on one item a query: the best fifty are still found"),
    Claim("CUR, half, [EMB]", "CUR, half", "recall_10_100", says="the scores of the [EMB] head are approximated better than those of the [CLS] head"),
    Claim(
        "[EMB] cross-encoder",
        "[CLS] cross-encoder",
        "right_in_10",
        -0.05,
        says="the [EMB] head ranks the right item as well as the [CLS] head, within 0.05",
    ),
    Claim(
        "CUR, half",
        "distilled dual encoder",
        "index_seconds",
        higher_is_better=False,
        says="an index of the scores costs less than distilling with them",
    ),
    Claim("CUR, half", "dual encoder", "index_seconds", higher_is_better=False, says="and less than training a dual encoder"),
    Claim("CUR, adaptive anchors", "CUR, half", "recall_1_100", says="k = 1, 100 calls: adaptive anchors over random ones"),
    Claim("CUR, k-means anchors", "CUR, half", "recall_1_100", says="k = 1, 100 calls: k-means anchors over random ones"),
    Claim("CUR, leverage anchors", "CUR, half", "recall_1_100", says="k = 1, 100 calls: leverage-score anchors over random ones"),
    Claim(
        "CUR, adaptive anchors",
        "dual encoder",
        "recall_50_100",
        says="k = 50, 100 calls: adaptive anchors over reranking a dual encoder's candidates",
    ),
    Claim("CUR, half", "PCA, 2-D", "gaussian_50", says="digits, k = 10, 50 calls: CUR over candidates of two principal components"),
    Claim("CUR, half", "PCA, 5-D", "gaussian_50", says="digits, k = 10, 50 calls: CUR over candidates of five principal components"),
)

_WORLDS = {"": "", "_unseen": ", unseen libraries", "_cranfield": ", Cranfield"}
_ALL = (*SCALES["laptop"].budgets, *SCALES["quick"].budgets, *SCALES["paper"].budgets)
UNITS = {
    **{
        f"recall_{k}_{budget}{suffix}": f"share of the scorer's best {k} found with {budget} calls{where}"
        for k in (1, 10, 50)
        for budget in sorted(set(_ALL))
        for suffix, where in _WORLDS.items()
    },
    **{
        f"{prefix}{measure}{suffix}": f"{name}{said}{where}"
        for prefix, said in (("", ""), ("found_", ", of the ten items returned"))
        for measure, name in {
            "right_first": "share with the right item first",
            "right_in_10": "recall of right items in the first ten",
            "ndcg_10": "nDCG@10",
        }.items()
        for suffix, where in _WORLDS.items()
    },
    **{f"directions_99{suffix}": f"directions with 99 % of the scores' energy{where}" for suffix, where in _WORLDS.items()},
    **{f"index_seconds{suffix}": f"CPU seconds after the same scores{where}" for suffix, where in _WORLDS.items()},
    **{f"calls{suffix}": f"scores a query{where}" for suffix, where in _WORLDS.items()},
    **{f"index_calls{suffix}": f"scores for the index{where}" for suffix, where in _WORLDS.items()},
    **{
        f"{kind}_{budget}": f"share of the best 10 digits found with {budget} calls, {kind}"
        for kind in ("gaussian", "distance")
        for budget in (50, 200)
    },
    **{
        f"{kind}_anchors_{count}": f"share of the best 10 digits found with 200 calls, {count} anchors, {kind}"
        for kind in ("gaussian", "distance")
        for count in SCALES["laptop"].digit_anchors
    },
    **{
        f"{case}_{count}_recall_{k}": f"share of the best {k} found with 100 calls, {count} anchors, {case.replace('_', ' ')}"
        for case in CASES
        for count in SCALES["laptop"].made_anchors
        for k in (1, 10, 50)
    },
}

EXPERIMENT = Experiment(
    paper="cur_retrieval",
    question="Does an index of a cross-encoder's own scores find its best items better than a cheaper model's candidates do, for as many calls?",
    scales=SCALES,
    claims=CLAIMS,
    run=run,
    units=UNITS,
)
