"""Published scores: the results repository of the library mteb, as a matrix of models and tasks.

    published = read_published()                  # English tasks of the first MTEB that have a score of every model
    published.scores.shape                        # (152, 56) in August 2026

The repository (https://github.com/embeddings-benchmark/results, 100,000 files) has a file ``results/<model>/<revision>/<Task>.json`` for each run.
Its clone, or that of its folder ``results``, belongs into ``mteb_results`` of the folder that ``MTLEARN_DATA`` names.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtlearn import paths

# MTEB(eng, v1): the 56 English tasks by category
ENGLISH: Mapping[str, str] = {
    "Classification": "AmazonCounterfactual AmazonPolarity AmazonReviews Banking77 Emotion Imdb MassiveIntent MassiveScenario MTOPDomain MTOPIntent "
    "ToxicConversations TweetSentimentExtraction",
    "Clustering": "ArxivClusteringP2P ArxivClusteringS2S BiorxivClusteringP2P BiorxivClusteringS2S MedrxivClusteringP2P MedrxivClusteringS2S "
    "RedditClustering RedditClusteringP2P StackExchangeClustering StackExchangeClusteringP2P TwentyNewsgroupsClustering",
    "PairClassification": "SprintDuplicateQuestions TwitterSemEval2015 TwitterURLCorpus",
    "Reranking": "AskUbuntuDupQuestions MindSmallReranking SciDocsRR StackOverflowDupQuestions",
    "Retrieval": "ArguAna ClimateFEVER CQADupstackRetrieval DBPedia FEVER FiQA2018 HotpotQA MSMARCO NFCorpus NQ QuoraRetrieval SCIDOCS SciFact "
    "Touche2020 TRECCOVID",
    "STS": "BIOSSES SICK-R STS12 STS13 STS14 STS15 STS16 STS17 STS22 STSBenchmark",
    "Summarization": "SummEval",
}
_SUBSETS = ("default", "en", "en-en")  # of tasks in several languages, the English one


@dataclass(frozen=True)
class Published:
    """Models and tasks with all scores.

    Attributes:
        models: m names.
        tasks: n names.
        kinds: n categories.
        scores: (m, n) float64, from -1 to 1.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    kinds: tuple[str, ...]
    scores: Tensor


def read_published(folder: Path | None = None, tasks: Mapping[str, str] = ENGLISH) -> Published:
    """The models that have every task, in the order of names.

    Args:
        folder: a clone of the repository; ``mteb_results`` in MTLEARN_DATA, or in the cache, when omitted.
        tasks: category to names of tasks; "Classification" is added to those of that category.

    Raises:
        FileNotFoundError: the folder is not there; the message says where to get it.
        ValueError: a file that is no result, or fewer than 3 models with every task.
    """
    folder = folder or Path(os.environ.get("MTLEARN_DATA") or paths.cache()) / "mteb_results"
    results = folder / "results" if (folder / "results").is_dir() else folder
    if not results.is_dir():
        address = "https://github.com/embeddings-benchmark/results"
        raise FileNotFoundError(
            f"the published scores are not in {folder}: clone {address} and put it there, or name the folder above by MTLEARN_DATA"
        )
    kinds = {name + ("Classification" if kind == "Classification" else ""): kind for kind, row in tasks.items() for name in row.split()}
    found: dict[str, dict[str, float]] = {}
    for path in sorted(results.glob("*/*/*.json")):
        model, task = path.parent.parent.name, path.stem
        if task in kinds and task not in found.setdefault(model, {}) and (score := _main_score(path)) is not None:
            found[model][task] = score
    models = [model for model in sorted(found) if len(found[model]) == len(kinds)]
    if len(models) < 3:
        raise ValueError(f"{len(models)} models in {results} have all {len(kinds)} tasks; at least 3 are needed")
    scores = torch.tensor([[found[model][task] for task in kinds] for model in models], dtype=torch.float64)
    return Published(tuple(models), tuple(kinds), tuple(kinds.values()), scores)


def _main_score(path: Path) -> float | None:
    """The English main score of a file, of the test split (of MS MARCO the development split); None where it has none."""
    try:
        splits = json.loads(path.read_text(encoding="utf-8")).get("scores", {})
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no result of mteb: {error}") from None
    rows: list[dict[str, Any]] = splits.get("test") or splits.get("dev") or next(iter(splits.values()), [])
    english = [row for row in rows if row.get("hf_subset", "default") in _SUBSETS] or [
        row for row in rows if any(code.startswith("eng") for code in row.get("languages", ()))
    ]
    values = [row["main_score"] for row in english if isinstance(row.get("main_score"), int | float)]
    return sum(values) / len(values) if values else None
