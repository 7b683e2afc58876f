"""Does one encoder with an expert a domain do what several encoders do, and what do tokens, routers and routing have to do with it?"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.datasets.tfidf import TfIdf
from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.cost import count_parameters
from mtlearn.layers.text_encoders import TokenEncoder, pool
from mtlearn.layers.tokens import Vocabulary, from_letters, to_letters
from mtlearn.retrieval.moe_embedding.method import (
    MixtureEncoder,
    check_pairs,
    extend,
    f1_max,
    mark,
    ranking_loss,
    router_loss,
    with_domain_tokens,
)
from mtlearn.retrieval.moe_embedding.worlds import (
    DOMAINS,
    FIRST,
    LENGTH,
    LIBRARIES,
    MASK,
    SIZE,
    SLOT,
    CitedSplit,
    Functions,
    Pairs,
    attributes_of,
    balanced,
    cited_split,
    functions,
    items,
    positives,
    similar_table,
)

Assign = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True)
class MixtureSettings(Settings):
    """Settings of a run.

    Attributes:
        masked_steps: of the base model's pre-training.
        steps: of fine-tuning, all domains together.
        long_steps: of the arms with a larger budget; 0 leaves them out.
        batch, rate, scale, noise: of fine-tuning; ``noise`` of the domain tokens' start.
        width, hidden: of the encoder.
        pairs: test pairs of a domain.
        cited_steps, cited_batch, cited_width: of the functions' world; 0 steps leave it out.
        resamples: of the bootstrap over test pairs.
    """

    masked_steps: int = 200
    steps: int = 400
    long_steps: int = 1200
    batch: int = 64
    rate: float = 1e-3
    scale: float = 20.0
    noise: float = 0.5
    width: int = 48
    hidden: int = 96
    pairs: int = 1000
    cited_steps: int = 150
    cited_batch: int = 32
    cited_width: int = 64
    resamples: int = 200


class Embedder(nn.Module):
    """A plain or extended encoder with what it is told of the domain.

    Args:
        body: the encoder.
        names: (D,) tokens of the domains, or None for the common slot.
        routing: ``index`` (the domain's expert), ``router`` or ``random``; nothing for a plain encoder.
        seed: of random routing.
    """

    def __init__(self, body: TokenEncoder | MixtureEncoder, names: Tensor | None = None, routing: str = "index", seed: int = 0) -> None:
        super().__init__()
        self.body, self.names, self.routing = body, names, routing
        self.draws = stream(seed, "moe_embedding", "random routing")

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device

    def forward(self, tokens: Tensor, domain: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Vectors (n, width) of tokens (n, length), and the routers' logits."""
        if self.names is not None:
            tokens = mark(tokens, domain, self.names)
        if isinstance(self.body, TokenEncoder):
            return pool(self.body(tokens), tokens != self.body.padding), ()
        expert: Tensor | None = domain
        if self.routing == "router":
            expert = None
        elif self.routing == "random":
            expert = torch.randint(self.body.num_experts, (len(tokens),), generator=self.draws).to(tokens.device)
        found = self.body.encode(tokens, expert)
        return pool(found.states, tokens != self.body.padding), found.logits


def pretrain(body: TokenEncoder, batch_at: Callable[[], Tensor], steps: int, rate: float, draw: torch.Generator) -> None:
    """Masked language modelling: a fifth of the tokens is hidden and guessed."""
    head = nn.Linear(body.width, body.token.num_embeddings).to(body.token.weight.device)
    both = nn.ModuleList([body, head])

    def loss_at(step: int) -> Tensor:
        tokens = batch_at()
        hidden = (torch.rand(tokens.shape, generator=draw).to(tokens.device) < 0.2) & (tokens >= FIRST)
        return F.cross_entropy(head(body(tokens.masked_fill(hidden, MASK))[hidden]), tokens[hidden])

    fit(both, loss_at, steps=steps, optimizer=torch.optim.AdamW(both.parameters(), lr=rate, fused=True), schedule="linear", warmup=min(20, steps))


def base_model(settings: MixtureSettings, seed: int, device: torch.device) -> TokenEncoder:
    """The encoder of made items, pre-trained without any domain."""
    with seeded(seed):
        vectors = torch.randn(SIZE, settings.width)
        vectors[0] = 0
        body = TokenEncoder(SIZE, settings.width, 4, 2, settings.hidden, longest=LENGTH, norm_first=True, vectors=vectors).to(device)
        draw = stream(seed, "moe_embedding", "masked")
        pretrain(body, lambda: items(attributes_of(64, draw), draw).to(device), settings.masked_steps, settings.rate, draw)
    return body


def pair_loss(model: Embedder, tokens: Tensor, domain: Tensor, same: Tensor, scale: float) -> Tensor:
    """The loss of a batch: ranking of its pairs, and what a router is taught.

    Args:
        model: that is trained.
        tokens: (2B, length), the first texts and then the second ones.
        domain: (B,) of the pairs.
        same: bool (B, B), which are no negatives of each other.
        scale: of the cosines.
    """
    both = domain.repeat(2)
    vectors, logits = model(tokens, both)
    first, second = vectors.chunk(2)
    loss = ranking_loss(first, second, scale=scale, same=same)
    return loss + router_loss(logits, both) if model.routing == "router" else loss


def fine_tune(model: Embedder, loss_at: Callable[[int], Tensor], settings: MixtureSettings, seed: int, steps: int) -> Embedder:
    """Train by AdamW with a warm-up and a linear decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, fused=True)
    with seeded(seed):
        fit(model, loss_at, steps=steps, optimizer=optimizer, schedule="linear", warmup=min(20, steps))
    return model.eval()


def tune(model: Embedder, settings: MixtureSettings, seed: int, steps: int, *, domains: tuple[int, ...] = tuple(range(DOMAINS))) -> Embedder:
    """Fine-tune on similar pairs, each batch of one domain, the domains in turn; every arm sees the same batches."""
    draws = {d: stream(seed, "moe_embedding", "batches", d) for d in domains}

    def loss_at(step: int) -> Tensor:
        domain = domains[step % len(domains)]
        pairs = positives(settings.batch, domain, draws[domain])
        same = pairs.keys[:, None] == pairs.keys
        tokens = torch.cat([pairs.first, pairs.second])
        return pair_loss(model, tokens.to(model.device), pairs.domain.to(model.device), same.to(model.device), settings.scale)

    return fine_tune(model, loss_at, settings, seed, steps)


def test_pairs(settings: MixtureSettings, seed: int) -> list[Pairs]:
    """Balanced pairs of each domain, the same for every arm."""
    return [balanced(settings.pairs, d, stream(seed, "moe_embedding", "test", d)) for d in range(DOMAINS)]


@torch.no_grad()
def similarity(model: Embedder, pairs: Pairs) -> Tensor:
    """Cosines (n,)."""
    domain = pairs.domain.to(model.device)
    return F.cosine_similarity(*(model(tokens.to(model.device), domain)[0] for tokens in (pairs.first, pairs.second))).cpu()


def evaluate(models: list[Embedder], tests: list[Pairs]) -> dict[str, float]:
    """F1max and AUC of each domain and their means; one model for all domains or one each."""
    found: dict[str, float] = {}
    scores = [similarity(models[d % len(models)], tests[d]) for d in range(DOMAINS)]
    for d, (score, pairs) in enumerate(zip(scores, tests, strict=True)):
        found[f"f1_{d + 1}"] = f1_max(score, pairs.positive)
        found[f"auc_{d + 1}"] = float(roc_auc_score(pairs.positive.numpy(), score.numpy()))
    for name in ("f1", "auc"):
        found[name] = sum(found[f"{name}_{d + 1}"] for d in range(DOMAINS)) / DOMAINS
    return found


@torch.no_grad()
def routed(model: Embedder, tests: list[Pairs]) -> float:
    """Share of the texts that the last layer's router sends to their domain's expert."""
    right = [model(p.first.to(model.device), p.domain.to(model.device))[1][-1].argmax(-1).cpu() == p.domain for p in tests]
    return float(torch.cat(right).double().mean())


def build(base: TokenEncoder, arm: str, settings: MixtureSettings, seed: int, num_domains: int = DOMAINS) -> Embedder:
    """The untrained model of an arm, from the pre-trained one."""
    names = None
    if "token" in arm:
        base, names = with_domain_tokens(base, SLOT, num_domains, noise=settings.noise, generator=stream(seed, "moe_embedding", "tokens"))
    if not arm.startswith("MoE"):
        return Embedder(copy.deepcopy(base), names).to(base.token.weight.device)
    routing = "router" if "router" in arm else "random" if "random" in arm else "index"
    with seeded(seed):
        body = extend(base, num_domains, layers="middle" if "one layer" in arm else "all", router=routing == "router")
    return Embedder(body, names, routing, seed).to(base.token.weight.device)


ARMS = (
    "shared",
    "shared, token",
    "MoE, index",
    "MoE, router, token",
    "MoE, index, one layer",
    "MoE, random",
)


def run(settings: MixtureSettings, seed: int, device: torch.device) -> Arms:
    """All arms of one seed."""
    base, tests = base_model(settings, seed, device), test_pairs(settings, seed)
    arms: Arms = {"base": evaluate([build(base, "base", settings, seed)], tests)}
    for arm in ARMS:
        model = build(base, arm, settings, seed)
        tune(model, settings, seed, settings.steps)
        arms[arm] = {**evaluate([model], tests), "parameters": count_parameters(model.body) / 1e3}
        if model.routing == "router":
            arms[arm]["routed"] = routed(model, tests)
    each = [tune(build(base, "one", settings, seed), settings, seed, settings.steps // DOMAINS, domains=(d,)) for d in range(DOMAINS)]
    arms["specialists"] = {**evaluate(each, tests), "parameters": DOMAINS * count_parameters(each[0].body) / 1e3}
    found = [evaluate([specialist], tests) for specialist in each]
    away = [found[d][f"f1_{e + 1}"] for d in range(DOMAINS) for e in range(DOMAINS) if d != e]
    arms["specialists, away"] = {"f1": sum(away) / len(away)}
    arms["MoE, index, one layer"]["above_70_percent"] = (  # of the gain that experts in all layers bring
        arms["MoE, index, one layer"]["f1"] - 0.3 * arms["shared"]["f1"] - 0.7 * arms["MoE, index"]["f1"]
    )
    if settings.long_steps:
        for arm in ("shared, token", "MoE, index"):
            arms[arm]["f1_long"] = evaluate([tune(build(base, arm, settings, seed), settings, seed, settings.long_steps)], tests)["f1"]
    if settings.cited_steps:
        for arm, values in cited_arms(settings, seed, device).items():
            arms.setdefault(arm, {}).update(values)
    return arms


# co-cited functions


CITED = ("shared", "shared, token", "MoE, index", "MoE, router, token")


@dataclass(frozen=True)
class CitedWorld:
    """Functions as tokens, their split, and the encoder with which every arm begins.

    Attributes:
        found: functions and pairs.
        parts: of the pairs.
        vocabulary: of the texts.
        base: pre-trained on the texts without any pair.
        tokens: (n, length), the slot in front.
        library: (n,) the domain.
        similar: bool (n, n).
    """

    found: Functions
    parts: CitedSplit
    vocabulary: Vocabulary
    base: TokenEncoder
    tokens: Tensor
    library: Tensor
    similar: Tensor


WORDS, READ = 3000, 48  # of the vocabulary; words of a text


def cited_body(settings: MixtureSettings, size: int) -> TokenEncoder:
    """An untrained encoder of function texts."""
    return TokenEncoder(size, settings.cited_width, 4, 2, 2 * settings.cited_width, longest=READ + 1, norm_first=True)


def slotted(vocabulary: Vocabulary, texts: Sequence[str]) -> Tensor:
    """Tokens (n, length) of texts, the slot in front."""
    tokens = vocabulary(texts, READ, truncate=True)
    return torch.cat([torch.full((len(tokens), 1), SLOT), tokens], 1)


def cited_world(settings: MixtureSettings, seed: int, device: torch.device) -> CitedWorld:
    """The functions of one seed."""
    found = functions(READ)
    vocabulary = Vocabulary.of(found.texts, WORDS)
    tokens = slotted(vocabulary, found.texts).to(device)
    with seeded(seed):
        body = cited_body(settings, len(vocabulary)).to(device)
        draw = stream(seed, "moe_embedding", "masked functions")
        rows = lambda: tokens[torch.randint(len(tokens), (settings.cited_batch,), generator=draw).to(device)]
        pretrain(body, rows, settings.cited_steps, settings.rate, draw)
    return CitedWorld(found, cited_split(found, seed), vocabulary, body, tokens, found.library.to(device), similar_table(found))


def train_cited(world: CitedWorld, arm: str, settings: MixtureSettings, seed: int, steps: int, domains: tuple[int, ...]) -> Embedder:
    """Fine-tune on co-cited pairs, each batch of one library, the libraries in turn, both orders of a pair."""
    device = world.tokens.device
    model = build(world.base, arm, settings, seed, len(LIBRARIES))
    draws = {d: stream(seed, "moe_embedding", "cited batches", d) for d in domains}
    train, by = world.parts.train, world.found.library
    own = {d: train[by[train[:, 0]] == d] for d in domains}

    def loss_at(step: int) -> Tensor:
        d = domains[step % len(domains)]
        rows = own[d][torch.randint(len(own[d]), (settings.cited_batch,), generator=draws[d])]
        swap = torch.rand(len(rows), generator=draws[d]) < 0.5
        rows = torch.where(swap[:, None], rows.flip(1), rows)
        check_pairs(by[rows[:, 0]], by[rows[:, 1]])
        same = world.similar[rows[:, 0]][:, rows[:, 1]].to(device)
        rows = rows.to(device)
        return pair_loss(model, world.tokens[rows.T.flatten()], world.library[rows[:, 0]], same, settings.scale)

    return fine_tune(model, loss_at, settings, seed, steps)


def cited_arms(settings: MixtureSettings, seed: int, device: torch.device) -> Arms:
    """Shared, specialists, experts and TF-IDF on co-cited functions, each library a domain."""
    world = cited_world(settings, seed, device)
    found, parts, number = world.found, world.parts, len(LIBRARIES)

    @torch.no_grad()
    def scores(model: Embedder) -> Tensor:
        ends = parts.test.to(device)
        vectors = [model(world.tokens[ends[:, side]], world.library[ends[:, side]])[0] for side in (0, 1)]
        return F.cosine_similarity(*vectors).cpu()

    def measured(score: Tensor) -> dict[str, float]:
        by = [f1_max(score[parts.domain == d], parts.positive[parts.domain == d]) for d in range(number)]
        return {"f1_cited": sum(by) / number, **{f"f1_{name}": value for name, value in zip(LIBRARIES, by, strict=True)}}

    every = tuple(range(number))
    score = {arm: scores(train_cited(world, arm, settings, seed, settings.cited_steps, every)) for arm in CITED}
    score["base"] = scores(build(world.base, "base", settings, seed))
    each = [scores(train_cited(world, "one", settings, seed, settings.cited_steps // number, (d,))) for d in every]
    score["specialists"] = torch.stack(each).gather(0, parts.domain[None])[0]
    texts = [[found.texts[i] for i in parts.test[:, side].tolist()] for side in (0, 1)]
    score["TF-IDF"] = TfIdf(found.texts).pairs(texts[0], texts[1])
    arms = {arm: measured(value) for arm, value in score.items()}
    low, high = bootstrap(score["MoE, index"], score["shared"], parts.positive, settings.resamples, seed)
    arms["MoE, index"] |= {"cited_gain_low": low, "cited_gain_high": high, "cited_pairs": float(len(parts.test))}
    return arms


def bootstrap(one: Tensor, other: Tensor, positive: Tensor, resamples: int, seed: int) -> tuple[float, float]:
    """A 95 % interval of the difference of F1max over all test pairs, which are drawn again."""
    draw = stream(seed, "moe_embedding", "bootstrap")
    differences = []
    for _ in range(resamples):
        rows = torch.randint(len(one), (len(one),), generator=draw)
        differences.append(f1_max(one[rows], positive[rows]) - f1_max(other[rows], positive[rows]))
    low, high = torch.tensor(differences, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


EXPERIMENT = Experiment(
    paper="moe_embedding",
    question="Does one encoder with an expert a domain do what several encoders do?",
    scales={
        "quick": MixtureSettings(seeds=1, masked_steps=10, steps=12, long_steps=15, batch=16, pairs=100, cited_steps=4, cited_batch=8, resamples=20),
        "laptop": MixtureSettings(seeds=3),
        "paper": MixtureSettings(seeds=5, masked_steps=2000, steps=1200, long_steps=4800, cited_steps=4000, cited_batch=64, cited_width=256),
    },
    claims=(
        Claim("MoE, index", "shared", "f1", 0.08, says="Experts by domain are above one shared encoder where domains conflict, by 0.08."),
        Claim("MoE, index", "specialists", "f1", -0.03, says="Experts are level with specialists of the same budget in all (within 0.03)."),
        Claim("shared", "MoE, random", "f1", -0.02, says="Experts by random routing are not above the shared encoder."),
        Claim("MoE, router, token", "MoE, index", "f1", -0.03, says="A trained router is within 0.03 of the domain said."),
        Claim("MoE, index", "shared, token", "f1", 0.02, says="Experts are above a shared encoder that is told the domain by a token."),
        Claim("MoE, index", "shared, token", "f1_long", 0.02, says="With three times the steps they still are (expected to fail)."),
        Claim("MoE, index, one layer", None, "above_70_percent", 0.0, says="Experts in one layer keep 70 % of the gain."),
        Claim("base", "specialists, away", "f1", 0.0, says="A specialist is below the untouched model on other domains."),
        Claim("MoE, index", "shared", "f1_cited", 0.02, says="On co-cited functions experts are above the shared encoder (expected to fail)."),
        Claim("MoE, index", "specialists", "f1_cited", -0.03, says="On co-cited functions experts are level with specialists."),
        Claim("MoE, index", "TF-IDF", "f1_cited", 0.0, says="On co-cited functions experts are above TF-IDF (expected to fail)."),
    ),
    run=run,
    units={
        **dict.fromkeys(("f1", "f1_1", "f1_2", "f1_3", "f1_long", "f1_cited", *(f"f1_{library}" for library in LIBRARIES)), "F1max"),
        **dict.fromkeys(("auc", "auc_1", "auc_2", "auc_3"), "AUC"),
        **dict.fromkeys(("above_70_percent", "cited_gain_low", "cited_gain_high"), "difference of F1max"),
        "parameters": "thousands",
        "routed": "share of texts",
        "cited_pairs": "test pairs",
    },
)


# what ships


@dataclass(frozen=True)
class ShownSettings:
    """What the shipped models depend on.

    Attributes:
        settings: of training.
        seed: of everything.
    """

    settings: MixtureSettings = MixtureSettings(seeds=1)
    seed: int = 0


SHOWN_ARMS = ("shared", "shared, token", "MoE, index", "MoE, router, token")


def _untrained(shown: ShownSettings) -> TokenEncoder:
    settings = shown.settings
    return TokenEncoder(SIZE, settings.width, 4, 2, settings.hidden, longest=LENGTH, norm_first=True)


def build_items(shown: ShownSettings) -> nn.Module:
    """The models of made items, untrained."""
    return nn.ModuleDict({arm: build(_untrained(shown), arm, shown.settings, shown.seed) for arm in ("base", *SHOWN_ARMS)})


def train_items(shown: ShownSettings, progress: str | None) -> nn.Module:
    """The pre-trained encoder, and what fine-tuning makes of it."""
    base = base_model(shown.settings, shown.seed, torch.device("cpu"))
    models = {arm: build(base, arm, shown.settings, shown.seed) for arm in ("base", *SHOWN_ARMS)}
    for arm in SHOWN_ARMS:
        tune(models[arm], shown.settings, shown.seed, shown.settings.steps)
    return nn.ModuleDict(models)


def measure_items(models: nn.Module) -> dict[str, float]:
    """F1max of each, the mean of domains."""
    assert isinstance(models, nn.ModuleDict)
    tests = test_pairs(ITEMS.settings.settings, ITEMS.settings.seed)
    return {arm: round(evaluate([model], tests)["f1"], 4) for arm, model in models.items() if isinstance(model, Embedder)}


LETTERS = 40_000  # room for the words


class ShippedMixture(nn.Module):
    """The encoder of functions with an expert a library, and its words.

    Args:
        shown: sizes.
    """

    letters: Tensor

    def __init__(self, shown: ShownSettings) -> None:
        super().__init__()
        self.model = build(cited_body(shown.settings, WORDS), "MoE, index", shown.settings, shown.seed, len(LIBRARIES))
        self.register_buffer("letters", torch.zeros(LETTERS, dtype=torch.uint8))

    def vocabulary(self) -> Vocabulary:
        """The words."""
        return from_letters(self.letters)


def train_functions(shown: ShownSettings, progress: str | None) -> nn.Module:
    """Experts on the co-cited pairs of the training functions."""
    world = cited_world(shown.settings, shown.seed, torch.device("cpu"))
    found = ShippedMixture(shown)
    found.model = train_cited(world, "MoE, index", shown.settings, shown.seed, shown.settings.cited_steps, tuple(range(len(LIBRARIES))))
    found.letters.copy_(to_letters(world.vocabulary, LETTERS))
    return found


def measure_functions(found: nn.Module) -> dict[str, float]:
    """F1max on the held-out functions' pairs, all libraries together."""
    assert isinstance(found, ShippedMixture)
    texts, parts = functions(READ), cited_split(functions(READ), FUNCTIONS.settings.seed)
    tokens = slotted(found.vocabulary(), texts.texts)
    with torch.no_grad():
        ends = [found.model(tokens[parts.test[:, side]], texts.library[parts.test[:, side]])[0] for side in (0, 1)]
    return {"f1": round(f1_max(F.cosine_similarity(*ends), parts.positive), 4)}


ITEMS = Checkpoint("moe_embedding-items", ShownSettings(), build_items, train_items, measure_items)
FUNCTIONS = Checkpoint("moe_embedding-functions", ShownSettings(), ShippedMixture, train_functions, measure_functions)
CHECKPOINTS = (ITEMS, FUNCTIONS)
