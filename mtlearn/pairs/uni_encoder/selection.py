"""Response selection on real texts: which function does a description mean (documentation), which abstract belongs to a title (Cranfield).

A pool holds the right text and those that TF-IDF finds nearest to the context, so that common words alone do not give it away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from mtlearn.datasets.cranfield import read_cranfield
from mtlearn.datasets.documentation import LIBRARIES, documentation, split
from mtlearn.datasets.tfidf import TfIdf
from mtlearn.datasets.word_vectors import word_vectors
from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms
from mtlearn.lab.fit import fit
from mtlearn.lab.ranking import ranking_measures
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.pretrained import PretrainedTokeniser, pretrained
from mtlearn.layers.text_encoders import Body, TokenEncoder
from mtlearn.layers.tokens import SPECIAL, Tokeniser, Vocabulary, words
from mtlearn.pairs.uni_encoder.method import UniEncoder, each_alone, hide, in_batch, pool_loss, training_loss
from mtlearn.pairs.uni_encoder.texts import wrapped


class Index(TfIdf):
    """TF-IDF over texts, English stop words left out: what it finds nearest to others.

    Args:
        texts: n texts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__(texts, stop_words=True)

    def nearest(self, queries: Sequence[str], count: int, *, right: Tensor | None = None) -> Tensor:
        """Numbers (q, count) of the nearest texts; where ``right`` (q,) is given it comes first and is not found again.

        Raises:
            ValueError: more texts are wanted than there are.
        """
        found = self.scores(queries)
        if not 1 <= count <= found.shape[1]:
            raise ValueError(f"count must be between 1 and {found.shape[1]}, got {count}")
        if right is not None:
            found[torch.arange(len(found)), right] = torch.inf
        return found.sort(dim=1, descending=True, stable=True).indices[:, :count]


def mixed(pools: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pools (q, C) whose first candidate is right in a random order, and where the right one is now, (q,)."""
    order = torch.rand(pools.shape, generator=generator).argsort(1)
    return pools.gather(1, order), order.argmin(1)  # 0, the right one's number, is the smallest


# --------------------------------------------------------------------------------------------------------------------- documentation


@dataclass(frozen=True)
class TextSettings:
    """Settings of a model of the documentation.

    Attributes:
        attention: of :class:`~mtlearn.pairs.uni_encoder.method.UniEncoder`; "cross" is the square with every candidate alone.
        seed: of the weights and draws.
        vocabulary: words, special ones included.
        width, heads, layers, hidden: of the encoder.
        context, candidate: tokens at most.
        pool, near: candidates in training, drawn from the ``near`` nearest of the training pages.
        steps, batch, rate, warmup: of AdamW with a cosine.
        hidden_share: of the words that are hidden in training, in contexts and candidates alike, against learning them by heart.
        libraries: whose pages.
    """

    attention: str = "arrow"
    seed: int = 0
    vocabulary: int = 5000
    width: int = 64
    heads: int = 4
    layers: int = 2
    hidden: int = 128
    context: int = 32
    candidate: int = 14
    pool: int = 8
    near: int = 30
    steps: int = 800
    batch: int = 12
    rate: float = 1e-3
    warmup: int = 100
    hidden_share: float = 0.15
    libraries: tuple[str, ...] = LIBRARIES


@dataclass(frozen=True)
class Functions:
    """Pages of the documentation as contexts and replies.

    Attributes:
        names: of n functions.
        replies: a function's name in words and its summary.
        contexts: what the page says after the summary.
        train, validation, test: numbers of pages; pages with one summary are in one part.
        settings: how they were read.
    """

    names: tuple[str, ...]
    replies: tuple[str, ...]
    contexts: tuple[str, ...]
    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    settings: TextSettings

    @cached_property
    def index(self) -> Index:
        """TF-IDF over the replies."""
        return Index(self.replies)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words of the training pages."""
        return Vocabulary.of([text for i in self.train for text in (self.replies[i], self.contexts[i])], self.settings.vocabulary)

    @cached_property
    def vectors(self) -> Tensor:
        """Word vectors (vocabulary, width) from the training pages."""
        texts = [f"{self.replies[i]} {self.contexts[i]}" for i in self.train]
        return word_vectors(self.vocabulary(texts, 200, truncate=True), len(self.vocabulary), self.settings.width, special=len(SPECIAL))

    def context_tokens(self, numbers: Sequence[int]) -> Tensor:
        """(len(numbers), n)."""
        return wrapped(self.vocabulary, [self.contexts[i] for i in numbers], self.settings.context, truncate=True)

    @cached_property
    def reply_tokens(self) -> Tensor:
        """(n, m): every reply."""
        return wrapped(self.vocabulary, self.replies, self.settings.candidate, truncate=True)


@cache
def functions(settings: TextSettings) -> Functions:
    """The pages whose description has eight words and more."""
    found = [
        page
        for page in documentation(settings.libraries).pages
        if len(words(page.section("Extended Summary"))) >= 8 and len(words(page.summary)) >= 2
    ]
    parts = split(found, seed=settings.seed, by="summary")
    return Functions(
        tuple(page.name for page in found),
        tuple(f"{page.name.rpartition('.')[2].replace('_', ' ')}: {page.summary}" for page in found),
        tuple(page.section("Extended Summary") for page in found),
        parts.train,
        parts.validation,
        parts.test,
        settings,
    )


def same_pages(settings: TextSettings) -> Functions:
    """The pages do not depend on the attention, so all models share one reading of them."""
    return functions(TextSettings(**{**settings.__dict__, "attention": "arrow"}))


def build_text(settings: TextSettings) -> UniEncoder:
    """An untrained model; the encoder's first weights are the same for every attention."""
    with seeded(settings.seed):
        longest = settings.context + settings.candidate
        body = TokenEncoder(
            settings.vocabulary, settings.width, settings.heads, settings.layers, settings.hidden, longest=longest, norm_first=True, tied=True
        )
        return UniEncoder(body, "square" if settings.attention == "cross" else settings.attention)  # type: ignore[arg-type]


def text_scores(model: UniEncoder, attention: str, context: Tensor, candidates: Tensor) -> Tensor:
    """Logits (B, C); "cross" reads every candidate alone."""
    return each_alone(model, context, candidates) if attention == "cross" else model(context, candidates)


def train_text(settings: TextSettings, progress: str | None = None) -> UniEncoder:
    """Train on the training pages: the right reply among the nearest of the others."""
    pages, model = same_pages(settings), build_text(settings)
    with torch.no_grad():
        model.body.token.weight[: len(pages.vocabulary)] = pages.vectors  # type: ignore[attr-defined]
    train = list(pages.train)
    context = pages.context_tokens(train)
    replies = pages.reply_tokens[train]
    near = Index([pages.replies[i] for i in train]).nearest([pages.contexts[i] for i in train], settings.near, right=torch.arange(len(train)))
    draws = stream(settings.seed, "uni_encoder", "documentation")

    def loss_at(step: int) -> Tensor:
        rows = torch.randint(len(train), (settings.batch,), generator=draws)
        others = 1 + torch.rand(settings.batch, settings.near - 1, generator=draws).argsort(1)[:, : settings.pool - 1]
        pool, label = mixed(torch.cat([near[rows, :1], near[rows].gather(1, others)], 1), generator=draws)
        asked, offered = (_hidden(tokens, pages.vocabulary, settings.hidden_share, draws) for tokens in (context[rows], replies[pool]))
        return pool_loss(text_scores(model, settings.attention, asked, offered), label)

    fit(
        model,
        loss_at,
        steps=settings.steps,
        optimizer=AdamW(model.parameters(), lr=settings.rate, fused=True),
        schedule="cosine",
        warmup=settings.warmup,
        clip=1.0,
        progress=progress,
    )
    return model.eval()


def _hidden(tokens: Tensor, vocabulary: Vocabulary, share: float, draws: torch.Generator) -> Tensor:
    return hide(tokens, mask=vocabulary.number["[MASK]"], words=(len(SPECIAL), len(vocabulary)), share=share, generator=draws)[0]


@torch.no_grad()
def text_recall(model: UniEncoder, settings: TextSettings, part: str = "test", count: int = 10) -> tuple[float, float]:
    """R_C@1 of the model and of TF-IDF on pools of the right reply and the nearest others, of all pages."""
    pages = same_pages(settings)
    numbers = list(getattr(pages, part))
    right = torch.tensor(numbers)
    contexts = [pages.contexts[i] for i in numbers]
    pool, label = mixed(pages.index.nearest(contexts, count, right=right), generator=stream(settings.seed, "uni_encoder", "pools", part))
    context = pages.context_tokens(numbers)
    logits = torch.cat(
        [
            text_scores(model, settings.attention, context[rows], pages.reply_tokens[pool[rows]])
            for rows in torch.split(torch.arange(len(numbers)), 64)
        ]
    )
    by_words = pages.index.scores(contexts).gather(1, pool)
    return (logits.argmax(1) == label).float().mean().item(), (by_words.argmax(1) == label).float().mean().item()


SHOWN = {"uni": "arrow", "cross": "cross", "bi": "diagonal"}


def checkpoint(name: str) -> Checkpoint:
    """The shipped model of the documentation: "uni", "cross" or "bi"."""
    settings = TextSettings(attention=SHOWN[name])

    def measure(model: Any) -> dict[str, float]:
        recall, by_words = text_recall(model, settings)
        return {
            "R10@1": round(recall, 3),
            "R10@1 of TF-IDF": round(by_words, 3),
            "R10@1, validation": round(text_recall(model, settings, "validation")[0], 3),
        }

    return Checkpoint(f"uni_encoder-{name}", settings, build_text, train_text, measure)


# ------------------------------------------------------------------------------------------------------------------------- Cranfield


@dataclass(frozen=True)
class SelectionSettings:
    """Response selection on Cranfield: titles with their abstracts for training, titles and questions for the test.

    Attributes:
        encoder: folder or public name of a pretrained encoder; a small one of ours when empty.
        vocabulary, width, layers: of the small encoder.
        context, candidate: tokens at most.
        pool: candidates of a context.
        steps, batch, rate, warmup: of AdamW; the negatives are those of the batch.
        test: titles for the test.
        questions: questions for the test at most.
        ways: attentions to be trained; "cross" is the square with every candidate alone.
    """

    encoder: str = ""
    vocabulary: int = 6000
    width: int = 128
    layers: int = 4
    context: int = 48
    candidate: int = 160
    pool: int = 10
    steps: int = 2000
    batch: int = 14
    rate: float = 5e-4
    warmup: int = 200
    test: int = 300
    questions: int = 225
    ways: tuple[str, ...] = ("arrow", "arrow, hidden words", "strict", "square", "cross", "poly-16", "bi")


_ATTENTION = {"arrow, hidden words": "arrow", "cross": "square", "poly-16": "light arrow", "bi": "diagonal"}


def _start(settings: SelectionSettings, texts: Sequence[str]) -> tuple[Body, Tokeniser, int, tuple[int, int]]:
    """Body, tokeniser, the token that hides, and the range of words."""
    if settings.encoder:
        known, tokeniser = pretrained(settings.encoder)
        return known, tokeniser, *_hiding(tokeniser)
    vocabulary = Vocabulary.of(texts, settings.vocabulary)
    size = len(vocabulary)
    vectors = word_vectors(vocabulary(texts, 400, truncate=True), size, settings.width, special=len(SPECIAL))
    body = TokenEncoder(
        size, settings.width, 4, settings.layers, longest=settings.context + settings.candidate, norm_first=True, tied=True, vectors=vectors
    )
    return body, vocabulary, vocabulary.number["[MASK]"], (len(SPECIAL), size)


def _hiding(tokeniser: PretrainedTokeniser) -> tuple[int, tuple[int, int]]:
    mask = tokeniser.tokenizer.mask_token_id
    return mask, (mask + 1, len(tokeniser))  # in BERT's vocabulary the words come after [MASK]


def cranfield(settings: SelectionSettings, seed: int, device: torch.device) -> Arms:
    """Every way on the published abstracts: share of test titles with the right abstract first, and MRR, MAP and P@1 of the questions."""
    collection = read_cranfield()
    documents = [document for document in collection.documents if words(document.title) and words(document.text)]
    number = {document: i for i, document in enumerate(documents)}
    titles, texts = [document.title for document in documents], [document.text for document in documents]
    order = torch.randperm(len(documents), generator=stream(seed, "uni_encoder", "cranfield")).tolist()
    train, test = order[settings.test :], order[: settings.test]
    index = Index(texts)
    pool, label = mixed(
        index.nearest([titles[i] for i in test], settings.pool, right=torch.tensor(test)), generator=stream(seed, "uni_encoder", "cranfield", "pools")
    )
    questions = list(collection.queries[: settings.questions])
    asked = index.nearest(questions, settings.pool)
    wanted = torch.zeros(len(questions), len(documents), dtype=torch.long)
    for row, relevant in enumerate(collection.relevant[: settings.questions]):
        wanted[row, [number[document] for i in relevant if (document := collection.documents[i]) in number]] = 1
    relevance = wanted.gather(1, asked)

    def measured(title_scores: Tensor, question_scores: Tensor) -> dict[str, float]:
        by_question = ranking_measures(question_scores, relevance, ("recip_rank", "map", "P_1"))
        return {
            "cranfield_recall": (title_scores.argmax(1) == label).float().mean().item(),
            "cranfield_mrr": by_question["recip_rank"],
            "cranfield_map": by_question["map"],
            "cranfield_first": by_question["P_1"],
        }

    arms: Arms = {"TF-IDF": measured(index.scores([titles[i] for i in test]).gather(1, pool), index.scores(questions).gather(1, asked))}
    for way in settings.ways:
        with seeded(seed):
            body, tokeniser, mask, range_of_words = _start(settings, [f"{titles[i]} {texts[i]}" for i in train])
            model = UniEncoder(
                body,
                _ATTENTION.get(way, way),  # type: ignore[arg-type]
                words=len(tokeniser) if way == "arrow, hidden words" else None,  # type: ignore[arg-type]
            ).to(device)
        replies = wrapped(tokeniser, texts, settings.candidate, truncate=True)
        contexts = wrapped(tokeniser, titles, settings.context, truncate=True)
        asking = wrapped(tokeniser, questions, settings.context, truncate=True)
        _fit_cranfield(model, way, settings, seed, device, contexts[train], replies[train], hidden=(mask, range_of_words))
        with torch.no_grad():
            found = [
                torch.cat(
                    [
                        text_scores(model, way, context[rows].to(device), replies[numbers[rows]].to(device)).cpu()
                        for rows in torch.split(torch.arange(len(context)), 8)
                    ]
                )
                for context, numbers in ((contexts[test], pool), (asking, asked))
            ]
        arms[way] = measured(*found)
    return arms


def _fit_cranfield(
    model: UniEncoder,
    way: str,
    settings: SelectionSettings,
    seed: int,
    device: torch.device,
    contexts: Tensor,
    replies: Tensor,
    *,
    hidden: tuple[int, tuple[int, int]],
) -> None:
    """Train one way on contexts and their replies, row by row the right ones; the negatives are those of the batch."""
    draws, hides = stream(seed, "uni_encoder", "cranfield", "train"), stream(seed, "uni_encoder", "cranfield", "hide")

    def loss_at(step: int) -> Tensor:
        rows = torch.randperm(len(contexts), generator=draws)[: settings.batch]
        candidates, right = (part.to(device) for part in in_batch(replies[rows]))
        if way == "arrow, hidden words":
            return training_loss(model, contexts[rows].to(device), candidates, right, mask=hidden[0], words=hidden[1], generator=hides)
        return pool_loss(text_scores(model, way, contexts[rows].to(device), candidates), right)

    fit(
        model,
        loss_at,
        steps=settings.steps,
        optimizer=AdamW(model.parameters(), lr=settings.rate, betas=(0.9, 0.98)),
        schedule="cosine",
        warmup=min(settings.warmup, settings.steps),
        clip=1.0,
    )
    model.eval()
