"""Does a small benchmark, cut down by hard negatives, samples and correlations between tasks, rank models as the full one does?

The models are eighteen classical embedders and the suite's own encoders; all of them read every task of a seed. A claim about a way to cut is paired
with random cuts of the same size on the same scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mtlearn.datasets.bm25 import BM25
from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.ranking import ranking_by_query
from mtlearn.lab.seeds import stream
from mtlearn.layers.embedding import Encode
from mtlearn.retrieval.mmteb.method import (
    bootstrap_v_measure,
    borda,
    hard_pool,
    mean_scores,
    places,
    random_pool,
    random_subsets,
    select_tasks,
    spearman,
    type_means,
    within,
)
from mtlearn.retrieval.mmteb.models import KINDS, classical, suite
from mtlearn.retrieval.mmteb.published import Published, read_published
from mtlearn.retrieval.mmteb.tasks import CATEGORIES, Cached, Clustering, Retrieval, Task, evaluate, texts_of
from mtlearn.retrieval.mmteb.worlds import Sizes, benchmark, groups_of, library_pages, near_copies, real_tasks, scipy_retrieval

THRESHOLDS = (0.95, 0.9, 0.8)
POOLING = ("letters, tf-idf, SVD 128", "letters, tf-idf")  # a small and a large embedder, whose best are the hard negatives beside BM25's
DEPTHS = (5, 20, 100)
FRACTIONS = (0.04, 0.1, 0.25)
RIDGE = 0.01  # of the regression that does not break down


@dataclass(frozen=True)
class MMTEBSettings(Settings):
    """Settings of a run.

    Attributes:
        sizes: of the tasks.
        copies: samples of one task in the redundant collection.
        queries, documents: of the retrieval whose corpus is cut.
        clustered: pages a library in the clustering that is sampled.
        cheap: queries and depth of the pools of the cheap benchmark, and the share of a clustering that it embeds.
        draws: random subsets.
        kinds: statistics of the classical embedders, six models each.
        suite: whether the suite's own encoders take part.
        published: models drawn from the published scores; 0 for none, and then also without the published collections.
    """

    sizes: Sizes = field(default_factory=Sizes)
    copies: int = 30
    queries: int = 150
    documents: int = 1000
    clustered: int = 300
    cheap: tuple[int, int, float] = (16, 1, 0.25)
    draws: int = 300
    kinds: tuple[str, ...] = tuple(KINDS)
    suite: bool = True
    published: int = 0


def run(settings: MMTEBSettings, seed: int, device: torch.device) -> Arms:
    """All arms of one seed. Encoders and scores live on the CPU whatever ``device`` is."""
    tasks = benchmark(seed, settings.sizes) + (real_tasks() if settings.published else ())
    groups = groups_of(tasks)
    models = all_models(tasks, settings, seed)
    measured = measure(models, tasks, settings, seed)
    names = list(models)
    arms = table(measured.scores, tasks, names)
    _add(arms, whole(measured.scores, [task.category for task in tasks], groups, settings.draws, seed))
    _add(arms, redundant(measured, settings, seed))
    _add(arms, pools(measured, names, seed))
    _add(arms, clusters(measured))
    full = measured.scores.mean(1)
    cheap = measured.cheap.mean(1)
    arms["cheap tasks"] = {"spearman": float(spearman(cheap, full)), "texts": measured.texts}
    kept = list(select_tasks(measured.cheap, groups, threshold=0.8).kept)
    arms["cheap tasks, selection"] = {"spearman": float(spearman(measured.cheap[:, kept].mean(1), full)), "kept": len(kept) / len(tasks)}
    if settings.published:
        _add(arms, of_published(read_published(), settings.published, settings.draws, seed))
    return arms


def _add(arms: Arms, more: Arms) -> None:
    for arm, metrics in more.items():
        arms.setdefault(arm, {}).update(metrics)


def all_models(tasks: Sequence[Task], settings: MMTEBSettings, seed: int) -> dict[str, Encode]:
    """The classical embedders, fitted on the texts of the tasks, and the suite's."""
    fitted = classical(texts_of(tasks), seed=seed, kinds=settings.kinds)
    return {**fitted, **(suite() if settings.suite else {})}


# scores


@dataclass(frozen=True)
class Measured:
    """What each of m models scores.

    Attributes:
        scores: (m, n) on the benchmark; ``cheap`` (m, n) on its cheap tasks.
        texts: share of the benchmark's texts that the cheap tasks need.
        copies: (m, k) on the collection with copies; ``copied`` the number of copies and ``kinds`` the categories of its tasks.
        rankings: of each model on the retrieval whose corpus is cut, (queries, documents); ``words`` those of BM25, ``relevance`` the answers.
        clusters: share of the items to V-measures (m,).
    """

    scores: Tensor
    cheap: Tensor
    texts: float
    copies: Tensor
    copied: int
    kinds: tuple[str, ...]
    rankings: list[Tensor]
    words: Tensor
    relevance: Tensor
    clusters: dict[float, Tensor]


def measure(models: Mapping[str, Encode], tasks: Sequence[Task], settings: MMTEBSettings, seed: int) -> Measured:
    """Let each model read everything once."""
    collection, copied = near_copies(tasks, seed, settings.sizes, copies=settings.copies)
    pool = scipy_retrieval(seed, settings.queries, settings.documents)
    pages = library_pages(seed + 1, settings.clustered)
    summaries, labels = [pair.query for pair in pages], [pair.library for pair in pages]
    queries, depth, fraction = settings.cheap
    poolers = {name: Cached(models[name]) for name in POOLING}
    cheap = [cheapened(task, list(poolers.values()), queries, depth, fraction) for task in tasks]
    rows: dict[str, list[list[float]]] = {"scores": [], "cheap": [], "copies": []}
    rankings: list[Tensor] = []
    clustered: dict[float, list[float]] = {share: [] for share in (1.0, *FRACTIONS)}
    for name, encode in models.items():
        cached = poolers.pop(name, None) or Cached(encode)
        found = evaluate(cached, tasks)
        rows["scores"].append(list(found.values()))
        same = {task.name: found[task.name] for task, small in zip(tasks, cheap, strict=True) if task is small}
        rows["cheap"].append(list(evaluate(cached, cheap, done=same).values()))
        rows["copies"].append(list(evaluate(cached, collection).values()))
        rankings.append(pool.ranking(cached))
        vectors = torch.nn.functional.normalize(cached(summaries), dim=1)
        for share, values in clustered.items():
            draws = 10 if share < 1 else 4  # the whole once would follow one start of k-means
            values.append(float(bootstrap_v_measure(vectors, labels, fraction=share, draws=draws, seed=seed).mean()))
    return Measured(
        scores=torch.tensor(rows["scores"], dtype=torch.float64),
        cheap=torch.tensor(rows["cheap"], dtype=torch.float64),
        texts=len(texts_of(cheap)) / len(texts_of(tasks)),
        copies=torch.tensor(rows["copies"], dtype=torch.float64),
        copied=copied,
        kinds=tuple(task.category for task in collection),
        rankings=rankings,
        words=BM25(pool.documents).scores(pool.queries),
        relevance=pool.relevance(),
        clusters={share: torch.tensor(found, dtype=torch.float64) for share, found in clustered.items()},
    )


def cheapened(task: Task, poolers: Sequence[Encode], queries: int, depth: int, fraction: float) -> Task:
    """The task with fewer queries on one corpus of hard negatives, or with a sample to cluster; tasks of other categories stay."""
    if isinstance(task, Clustering):
        rows = (
            torch.randperm(len(task.items), generator=stream(0, "cheap", task.name))[: max(20, int(fraction * len(task.items)))]
            .sort()
            .values.tolist()
        )
        levels = tuple(tuple(level[i] for i in rows) for level in task.levels)
        return replace(task, items=tuple(task.items[i] for i in rows), levels=levels)
    if isinstance(task, Retrieval):
        few = replace(task, queries=task.queries[:queries], relevant=task.relevant[:queries])
        kept = (
            hard_pool([BM25(few.documents).scores(few.queries), *(few.ranking(encode) for encode in poolers)], few.relevance(), depth, union=True)[0]
            .nonzero()[:, 0]
            .tolist()
        )
        number = {old: new for new, old in enumerate(kept)}
        relevant = tuple(tuple(number[j] for j in row) for row in few.relevant)
        return replace(few, documents=tuple(few.documents[j] for j in kept), relevant=relevant)
    return task


# what is asked of them


def table(scores: Tensor, tasks: Sequence[Task], names: Sequence[str]) -> Arms:
    """Each model's mean of every category, of the English and of the multilingual tasks, over tasks and over categories, and its Borda points."""
    kinds = [task.category for task in tasks]
    mean, by_type = mean_scores(scores, kinds)
    points, by_kind = borda(scores) / scores.shape[1], type_means(scores, kinds)
    english = [i for i, task in enumerate(tasks) if task.languages == ("eng",)]
    other = [i for i in range(len(tasks)) if i not in english]
    arms: Arms = {}
    for i, name in enumerate(names):
        arms[name] = {
            **{kind: float(by_kind[kind][i]) for kind in CATEGORIES},
            "mean": float(mean[i]),
            "type mean": float(by_type[i]),
            "borda": float(points[i]),
            "english": float(scores[i, english].mean()),
            "multilingual": float(scores[i, other].mean()),
        }
    return arms


def whole(scores: Tensor, kinds: Sequence[str], groups: Sequence[set[tuple[str, str]]], draws: int, seed: int) -> Arms:
    """Selection at three thresholds beside random subsets of the same size; and Borda's order beside that of the mean."""
    full, by_type = mean_scores(scores, kinds)
    points = borda(scores)
    same = int(places(points).argmin()) == int(full.argmax())
    arms: Arms = {"Borda": {"spearman": float(spearman(points, full)), "same winner": float(same)}}
    path = select_tasks(scores, groups, threshold=min(THRESHOLDS))
    for threshold in THRESHOLDS:
        gone = next((i for i, removal in enumerate(path.removed) if removal.spearman < threshold), len(path.removed))
        kept = list(path.at(gone))
        found = scores[:, kept].mean(1)
        types_only = mean_scores(scores[:, kept], [kinds[i] for i in kept])[1]
        arms[f"selection, {threshold:g}"] = {
            "spearman": float(spearman(found, full)),
            "spearman of types": float(spearman(found, by_type)),
            "types to types": float(spearman(types_only, by_type)),
            "kept": len(kept) / scores.shape[1],
        }
        draw = stream(seed, "mmteb", "subsets", str(threshold))
        arms[f"random subsets, {threshold:g}"] = {
            "spearman": float(random_subsets(scores, len(kept), full, draws=draws, generator=draw).mean()),
            "spearman of types": float(random_subsets(scores, len(kept), by_type, draws=draws, generator=draw).mean()),
        }
    for name, among, ridge in (("languages may go", [{kind} for kind in kinds], 0.0), ("by ridge", groups, RIDGE)):
        kept = list(select_tasks(scores, among, threshold=min(THRESHOLDS), ridge=ridge).kept)
        arms[f"selection, {name}"] = {"spearman": float(spearman(scores[:, kept].mean(1), full)), "kept": len(kept) / scores.shape[1]}
    return arms


def redundant(measured: Measured, settings: MMTEBSettings, seed: int) -> Arms:
    """The collection with many copies of one task, held against the mean over categories of all of it."""
    scores, copied = measured.copies, measured.copied
    balanced = mean_scores(scores, measured.kinds)[1]
    arms: Arms = {"copies, all tasks": {"spearman of types": float(spearman(scores.mean(1), balanced))}}
    for name, ridge in (("selection", 0.0), ("selection by ridge", RIDGE)):
        found = select_tasks(scores, [{kind} for kind in measured.kinds], threshold=min(THRESHOLDS), ridge=ridge)
        kept = list(found.kept)
        arms[f"copies, {name}"] = {
            "dropped": sum(removal.task < copied for removal in found.removed) / copied,
            "dropped others": sum(removal.task >= copied for removal in found.removed) / (scores.shape[1] - copied),
            "spearman of types": float(spearman(scores[:, kept].mean(1), balanced)),
        }
        draw = stream(seed, "mmteb", "copies", name)
        arms[f"copies, random instead of {name}"] = {
            "spearman of types": float(random_subsets(scores, len(kept), balanced, draws=settings.draws, generator=draw).mean())
        }
    return arms


def pools(measured: Measured, names: Sequence[str], seed: int) -> Arms:
    """nDCG@10 on pools of hard negatives and on as many random documents, beside the whole corpus."""
    relevance = measured.relevance

    def ndcg(pool: Tensor | None) -> Tensor:
        ranked = [ranking if pool is None else within(ranking, pool) for ranking in measured.rankings]
        return torch.stack([ranking_by_query(ranking, relevance, ("ndcg_cut_10",))["ndcg_cut_10"].mean() for ranking in ranked])

    full = ndcg(None)
    retrievers = [measured.words, *(measured.rankings[names.index(name)] for name in POOLING)]
    others = [i for i, name in enumerate(names) if name not in POOLING]
    arms: Arms = {}
    for depth in DEPTHS:
        hard = hard_pool(retrievers, relevance, depth)
        chance = random_pool(relevance, hard.sum(1), generator=stream(seed, "mmteb", "random pool", depth))
        for way, pool in (("hard", hard), ("random", chance)):
            found = ndcg(pool)
            arms[f"{way} negatives, {depth}"] = {
                "spearman": float(spearman(found, full)),
                "spearman of others": float(spearman(found[others], full[others])),
                "above": float((found - full).mean()),
                "documents": float(pool.double().mean()),
            }
    return arms


def clusters(measured: Measured) -> Arms:
    """V-measure of samples beside that of all items."""
    full = measured.clusters[1.0]
    return {f"{100 * share:g} % of items": {"spearman": float(spearman(measured.clusters[share], full))} for share in FRACTIONS}


def of_published(published: Published, models: int, draws: int, seed: int) -> Arms:
    """The same selection on published scores: of ``models`` models, drawn anew, as the paper's authors had 13; its order judged on all others."""
    chosen = torch.randperm(len(published.models), generator=stream(seed, "mmteb", "published"))[:models]
    unseen = torch.tensor([i for i in range(len(published.models)) if i not in chosen.tolist()])
    arms: Arms = {}
    found = select_tasks(published.scores[chosen], [{kind} for kind in published.kinds], threshold=0.95)
    kept, rest = list(found.kept), published.scores[unseen]
    full = rest.mean(1)
    draw = stream(seed, "mmteb", "published subsets")
    arms["published, selection"] = {"spearman": float(spearman(rest[:, kept].mean(1), full)), "kept": len(kept) / published.scores.shape[1]}
    arms["published, random subsets"] = {"spearman": float(random_subsets(rest, len(kept), full, draws=draws, generator=draw).mean())}
    return arms


SCALES: Mapping[str, MMTEBSettings] = {
    "quick": MMTEBSettings(
        seeds=1,
        sizes=Sizes(pages=24, test=20, names=24),
        copies=6,
        queries=20,
        documents=60,
        clustered=60,
        cheap=(8, 2, 0.5),
        draws=50,
        kinds=("words, tf-idf", "letters, tf-idf"),
        suite=False,
    ),
    "laptop": MMTEBSettings(seeds=3),
    "paper": MMTEBSettings(seeds=5, sizes=Sizes(pages=400, test=200, names=200), queries=300, documents=1200, clustered=600, published=13),
}

CLAIMS = (
    Claim("selection, 0.8", None, "spearman", 0.9, says="tasks dropped that the others predict (0.8): Spearman of the models' order at least 0.9"),
    Claim("selection, 0.95", None, "spearman", 0.97, says="the same with the threshold of MTEB(eng): at least 0.97"),
    Claim(
        "selection, 0.95", "random subsets, 0.95", "spearman", says="its order nearer to the full one than that of random subsets of the same size"
    ),
    Claim("selection, 0.8", "random subsets, 0.8", "spearman", says="the same at 0.8"),
    Claim(
        "selection, 0.8", None, "types to types", 0.95, says="means over categories, of the selected (0.8) and of all tasks: Spearman at least 0.95"
    ),
    Claim("copies, selection", None, "dropped", 0.7, says="of thirty near-copies of one task at least 70 % are dropped"),
    Claim("copies, selection by ridge", None, "dropped", 0.7, says="the same with a penalty on the regression's weights (ours)"),
    Claim(
        "copies, selection by ridge",
        "copies, random instead of selection by ridge",
        "spearman of types",
        says="among copies, with the penalty: nearer to the balanced order than random tasks, as many",
    ),
    Claim("copies, selection by ridge", "copies, all tasks", "spearman of types", says="among copies, with the penalty: nearer to it than all tasks"),
    Claim(
        "hard negatives, 20",
        "random negatives, 20",
        "spearman",
        says="order nearer to the whole corpus on hard negatives than on as many random (20 each)",
    ),
    Claim("hard negatives, 100", None, "spearman", 0.98, says="the order on hard negatives (100 of each of three): Spearman at least 0.98"),
    Claim("random negatives, 20", "hard negatives, 20", "above", 0.1, says="random negatives raise the scores more than hard ones (20 each)"),
    Claim(
        "4 % of items",
        None,
        "spearman",
        0.9,
        says="ten clusterings of 4 % of the items order the models as all items do, at least 0.9 (the paper: 0.96)",
    ),
    Claim("25 % of items", None, "spearman", 0.9, says="the same with 25 %"),
    Claim("cheap tasks", None, "spearman", 0.95, says="hard negatives and samples together: Spearman of the whole benchmark at least 0.95"),
    Claim("cheap tasks, selection", None, "spearman", 0.9, says="and selection on top: at least 0.9"),
    Claim("Borda", None, "spearman", 0.9, says="Borda's order and that of the mean agree, at least 0.9"),
    Claim("letters, tf-idf, SVD 128", "words, tf-idf, SVD 128", "multilingual", 0.1, says="letters over words on names in other languages"),
    Claim("words, tf-idf, SVD 128", "letters, tf-idf, SVD 128", "english", says="words over letters on English tasks"),
)

_SPEARMAN = "Spearman correlation with the whole"
UNITS = {
    "spearman": _SPEARMAN,
    "spearman of types": "Spearman correlation with the mean over categories",
    "types to types": "Spearman correlation of means over categories",
    "spearman of others": f"{_SPEARMAN}, models that did not choose the pool",
    "same winner": "share of seeds with the same best model",
    "kept": "share of tasks that stay",
    "dropped": "share of copies that go",
    "dropped others": "share of other tasks that go",
    "above": "nDCG@10 above that of the whole corpus",
    "documents": "share of the corpus",
    "texts": "share of texts that are read",
    "mean": "mean score over tasks",
    "type mean": "mean score over categories",
    "borda": "models beaten a task",
    "english": "mean score, English tasks",
    "multilingual": "mean score, tasks in several languages",
    **{name: f"{kind.measure}, mean over tasks" for name, kind in CATEGORIES.items()},
}

EXPERIMENT = Experiment(
    paper="mmteb",
    question="Does a benchmark that is cut by hard negatives, samples and correlations between tasks rank models as the full one does?",
    scales=SCALES,
    claims=CLAIMS,
    run=run,
    units=UNITS,
    pairs="samples of pages, pairs and names",
)


# what the explorers show: the scores of one seed


ROOM = 48  # letters of a name


@dataclass(frozen=True)
class ShownSettings:
    """What the shipped scores depend on.

    Attributes:
        settings: of the tasks.
        seed: of everything.
        models, tasks: how many there are.
    """

    settings: MMTEBSettings = field(default_factory=lambda: MMTEBSettings(seeds=1))
    seed: int = 0
    models: int = 23
    tasks: int = 70


class ShownScores(nn.Module):
    """Scores (m, n) and the names of models, tasks and categories, as letters."""

    def __init__(self, models: int, tasks: int) -> None:
        super().__init__()
        self.register_buffer("scores", torch.zeros(models, tasks))
        for name, count in (("models", models), ("tasks", tasks), ("kinds", tasks)):
            self.register_buffer(name, torch.zeros(count, ROOM, dtype=torch.uint8))

    def fill(self, name: str, words: Sequence[str]) -> None:
        """Write names. ValueError where one is too long."""
        if long := [word for word in words if len(word.encode()) > ROOM]:
            raise ValueError(f"a name has at most {ROOM} letters, got {long[0]!r}")
        letters = [list(word.encode().ljust(ROOM, b"\0")) for word in words]
        getattr(self, name).copy_(torch.tensor(letters, dtype=torch.uint8))

    def names(self, name: str) -> tuple[str, ...]:
        """Of ``models``, ``tasks`` or ``kinds``."""
        return tuple(bytes(row).rstrip(b"\0").decode() for row in getattr(self, name).tolist())


def build_shown(shown: ShownSettings) -> nn.Module:
    """An empty table."""
    return ShownScores(shown.models, shown.tasks)


def score_shown(shown: ShownSettings, progress: str | None) -> nn.Module:
    """Let every model do every task."""
    tasks = benchmark(shown.seed, shown.settings.sizes)
    models = all_models(tasks, shown.settings, shown.seed)
    found = ShownScores(len(models), len(tasks))
    found.fill("models", tuple(models))
    found.fill("tasks", [task.name for task in tasks])
    found.fill("kinds", [task.category for task in tasks])
    found.scores.copy_(torch.tensor([list(evaluate(encode, tasks).values()) for encode in models.values()]))  # type: ignore[operator]
    return found


def measure_shown(found: nn.Module) -> dict[str, float]:
    """The best mean and how many tasks are predictable from the others."""
    assert isinstance(found, ShownScores)
    scores = found.get_buffer("scores").double()
    return {"best mean": round(float(scores.mean(1).max()), 4), "models": float(len(scores)), "tasks": float(scores.shape[1])}


SHOWN = Checkpoint("mmteb-scores", ShownSettings(), build_shown, score_shown, measure_shown)
CHECKPOINTS = (SHOWN,)
