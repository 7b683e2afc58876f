"""Does a loss that lets positives alone make a dual encoder better at finding several labels, and what do its negatives cost?"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.datasets.cranfield import read_cranfield
from mtlearn.datasets.tfidf import TfIdf
from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.cost import count_parameters
from mtlearn.layers.tokens import PADDING, Vocabulary, from_letters, to_letters
from mtlearn.retrieval.xmc.method import (
    DualEncoder,
    LabelHead,
    ScoreLoss,
    binary_loss,
    decoupled_softmax,
    hard_negatives,
    label_pool,
    sample_positive,
    soft_top_k_loss,
    softmax_loss,
)
from mtlearn.retrieval.xmc.worlds import (
    LABEL_WORDS,
    LINK_WORDS,
    VOCABULARY,
    Texts,
    World,
    cited,
    easy_and_hard,
    link_texts,
    parameter_texts,
    random_pairs,
    text_world,
    world_vocabulary,
)

RARE = 3  # training queries of a label at most


@dataclass(frozen=True)
class Recipe:
    """Training of a dual encoder.

    Attributes:
        steps, batch, rate, decay: AdamW, a tenth of the steps of warm-up, then a straight line to 0.
        width, hidden: of the encoder.
        temperature: of the scores.
        shortlist, drawn: hard negatives that are kept of each query, and how many of them a step takes.
        refresh: steps between two rankings of all labels.
    """

    steps: int = 300
    batch: int = 128
    rate: float = 2e-3
    decay: float = 0.01
    width: int = 64
    hidden: int = 128
    temperature: float = 0.05
    shortlist: int = 100
    drawn: int = 10
    refresh: int = 100


@dataclass(frozen=True)
class XMCSettings(Settings):
    """Settings of a run.

    Attributes:
        recipe: of training.
        binary_rate, binary_bias: of the one-vs-all loss, which needs its own: learning rate, and what is added to all scores at the start.
        k, alpha: of the soft top-k loss.
        few: random labels of the arm with few negatives.
        queries: of each text world at most.
        links: whether the world of See Also is there.
        made: queries of the made world; 0 leaves it out.
        pairs: random pairs to be learned by heart; 0 leaves it out.
        heart_steps: of training on these.
        negatives: numbers of random negatives on these; 0 is all.
        published: Cranfield's questions and abstracts in the place of all worlds.
    """

    recipe: Recipe = field(default_factory=Recipe)
    binary_rate: float = 1e-2
    binary_bias: float = -23.0
    k: int = 5
    alpha: float = 2.0
    few: int = 64
    queries: int | None = None
    links: bool = True
    made: int = 2500
    pairs: int = 2000
    heart_steps: int = 400
    negatives: tuple[int, ...] = (8, 64, 0)
    published: bool = False


class BagEncoder(nn.Module):
    """The mean of word vectors and a residual perceptron on it.

    Args:
        size: of the vocabulary.
        width: of a vector.
        hidden: units of the perceptron.
    """

    def __init__(self, size: int, width: int, hidden: int) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(size, width, mode="mean", padding_idx=PADDING)
        nn.init.normal_(self.words.weight, std=0.1)
        with torch.no_grad():
            self.words.weight[PADDING].zero_()
        self.change = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, length) to vectors (n, width)."""
        mean = self.words(tokens)
        out: Tensor = mean + self.change(mean)
        return out


def run(settings: XMCSettings, seed: int, device: torch.device) -> Arms:
    """All arms of one seed."""
    if settings.published:
        world = text_world(cranfield_texts(), seed, label_words=64, most=settings.queries).to(device)
        return losses(world, settings, seed)
    texts = parameter_texts()
    world = text_world(texts, seed, label_words=LABEL_WORDS, most=settings.queries).to(device)
    arms = losses(world, settings, seed) | negatives(world, settings, seed) | {"TF-IDF": lexical(texts, world)}
    if settings.links:
        texts = link_texts()
        linked = text_world(texts, seed, label_words=LINK_WORDS, most=settings.queries).to(device)
        for arm, loss in (("softmax", softmax_loss), ("decoupled", decoupled_softmax)):
            arms[arm] |= _renamed(evaluate(train(linked, settings.recipe, seed, loss), linked), "links")
        arms["label head"] |= _renamed(evaluate(train(linked, settings.recipe, seed, decoupled_softmax, head=True), linked), "links")
        arms["TF-IDF"] |= _renamed(lexical(texts, linked), "links")
    if settings.made:
        made, easy = easy_and_hard(seed, queries=settings.made)
        made, easy = made.to(device), easy.to(device)
        for arm, loss in (("softmax", softmax_loss), ("decoupled", decoupled_softmax)):
            arms[arm] |= parts(train(made, settings.recipe, seed, loss), made, easy)
    if settings.pairs:
        for number in settings.negatives:
            arms[f"{number or 'all'} negatives"] = {"recall_1_heart": by_heart(settings, seed, number, device)}
    arms["label head"]["times_larger"] = arms["label head"]["parameters"] / arms["decoupled"]["parameters"]
    return arms


def losses(world: World, settings: XMCSettings, seed: int) -> Arms:
    """Every loss, with all labels in every step."""
    recipe, draws = settings.recipe, stream(seed, "xmc", "positives")

    def one_positive(scores: Tensor, targets: Tensor) -> Tensor:
        drawn, dropped = sample_positive(targets, generator=draws)
        return decoupled_softmax(scores, drawn, dropped=dropped)

    def top(k: int) -> ScoreLoss:
        return lambda scores, targets: soft_top_k_loss(scores, targets, k=k, alpha=settings.alpha, generator=draws)

    kinds: dict[str, ScoreLoss] = {
        "softmax": softmax_loss,
        "softmax, averaged": lambda scores, targets: softmax_loss(scores, targets, average=True),
        "decoupled": decoupled_softmax,
        "decoupled, summed": lambda scores, targets: decoupled_softmax(scores, targets, average=False),
        "decoupled, one positive": one_positive,
        f"SoftTop-{settings.k}": top(settings.k),
        "SoftTop-1": top(1),
    }
    arms = {}
    for arm, loss in kinds.items():
        signs: list[float] = []
        model = train(world, recipe, seed, loss, signs=signs)
        arms[arm] = {**evaluate(model, world), **size(model, len(world.labels)), "wrong_sign": signs[0], "labels_a_step": float(len(world.labels))}
    binary = train(world, replace(recipe, rate=settings.binary_rate), seed, binary_loss, bias=settings.binary_bias)
    head = train(world, recipe, seed, decoupled_softmax, head=True)
    for arm, found in (("binary", binary), ("label head", head)):
        arms[arm] = {**evaluate(found, world), **size(found, len(world.labels))}
    return arms


def negatives(world: World, settings: XMCSettings, seed: int) -> Arms:
    """The decoupled loss with few labels in a step: those of the batch, random ones beside, or hard ones beside."""
    arms = {}
    for arm, kind, number in (("in-batch", "none", 0), ("few random", "random", settings.few), ("hard negatives", "hard", settings.recipe.drawn)):
        used: list[int] = []
        model = train(world, settings.recipe, seed, decoupled_softmax, pool=kind, number=number, used=used)
        arms[arm] = {**evaluate(model, world), "labels_a_step": sum(used) / len(used)}
    return arms


# training


class Scorer(nn.Module):
    """A dual encoder or a head on it, with what is added to all scores.

    Args:
        model: of the scores.
        bias: its start; it is trained where it is not 0.
    """

    def __init__(self, model: DualEncoder | LabelHead, bias: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.bias = nn.Parameter(torch.tensor(bias), requires_grad=bias != 0)

    def scores(self, queries: Tensor, labels: Tensor) -> Tensor:
        """(B, L) of queries (B, length) and labels (L, length); a head knows its labels."""
        found: Tensor = self.model(queries) if isinstance(self.model, LabelHead) else self.model(queries, labels)
        return found + self.bias


def train(
    world: World,
    recipe: Recipe,
    seed: int,
    loss: ScoreLoss,
    *,
    head: bool = False,
    bias: float = 0.0,
    pool: str = "all",
    number: int = 0,
    signs: list[float] | None = None,
    used: list[int] | None = None,
    watch: Callable[[int, Scorer], None] | None = None,
) -> Scorer:
    """Train on the training queries; the same batches and starting weights for every loss.

    Args:
        world: queries, labels and which belong together.
        recipe: of training.
        seed: of weights and batches.
        loss: of scores and targets.
        head: a vector a label in the place of the label's text.
        bias: added to all scores at the start.
        pool: labels of a step: "all", or those of the batch and "none", "random" or "hard" ones beside.
        number: how many beside: of random ones in all, of hard ones for each query.
        signs: gets the share of positives, of queries with at least three, that the loss pushes down at two thirds of the steps.
        used: gets the number of labels of each step.
        watch: called after each step.
    """
    device = world.queries.device
    with seeded(seed):
        model = DualEncoder(BagEncoder(world.size, recipe.width, recipe.hidden), recipe.width, temperature=recipe.temperature)
        scorer = Scorer(LabelHead(model, len(world.labels)) if head else model, bias).to(device)
    batches, beside = stream(seed, "xmc", "batches"), stream(seed, "xmc", "beside")
    hard = torch.zeros(0, dtype=torch.int64)
    look = 2 * recipe.steps // 3

    def loss_at(step: int) -> Tensor:
        nonlocal hard
        draw = torch.randint(len(world.train), (recipe.batch,), generator=batches).to(device)
        rows = world.train[draw]
        targets, labels = world.targets[rows], world.labels
        if pool != "all":
            extra = None
            if pool == "random":
                extra = torch.randint(len(labels), (1, number), generator=beside).to(device)
            elif pool == "hard":
                if step % recipe.refresh == 0:
                    hard = shortlist(model, world, recipe)
                chosen = torch.rand(len(rows), hard.shape[1], generator=beside).to(device).argsort(1)[:, :number]
                extra = hard[draw].gather(1, chosen)
            among, targets = label_pool(targets, extra)
            labels = labels[among]
        if used is not None:
            used.append(len(labels))
        scores = scorer.scores(world.queries[rows], labels)
        value = loss(scores, targets)
        if signs is not None and step == look:
            signs.append(pushed_down(loss, scores.detach(), targets))
        return value

    optimizer = torch.optim.AdamW(scorer.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    fit(
        scorer,
        loss_at,
        steps=recipe.steps,
        optimizer=optimizer,
        schedule="linear",
        warmup=recipe.steps // 10,
        after_step=None if watch is None else lambda step, _: watch(step, scorer),
    )
    return scorer.eval()


@torch.no_grad()
def shortlist(model: DualEncoder, world: World, recipe: Recipe) -> Tensor:
    """Hard negatives (train, shortlist) of the training queries, by the model as it is."""
    return hard_negatives(model.embed(world.queries[world.train]), model.embed(world.labels), world.targets[world.train], k=recipe.shortlist)


def pushed_down(loss: ScoreLoss, scores: Tensor, targets: Tensor) -> float:
    """Share of the positives, of queries with at least three, whose score the loss would lower."""
    leaf = scores.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, targets), leaf)
    chosen = targets & (targets.sum(1, keepdim=True) >= 3)
    return float((gradient[chosen] > 0).double().mean())


# measuring


@torch.no_grad()
def evaluate(scorer: Scorer, world: World) -> dict[str, float]:
    """The measures of the field on the test queries."""
    return measures(scorer.scores(world.queries[world.test], world.labels), world)


def measures(scores: Tensor, world: World) -> dict[str, float]:
    """P@1, P@5, nDCG@5, recall@5, and of parts: P@1 of queries with four labels and more, recall@5 of links to rare labels and to new ones.

    recall@5 is divided by what is possible, min(5, |P|).
    """
    targets = world.targets[world.test]
    count = targets.sum(1)
    best = scores.topk(5, 1).indices
    hits = targets.gather(1, best).double()  # (n, 5)
    discount = 1 / torch.log2(torch.arange(2, 7, dtype=torch.float64, device=hits.device))
    ideal = discount.cumsum(0)[count.clamp(max=5) - 1]
    seen = world.targets[world.train].sum(0)  # training queries of each label
    found = {
        "p1": hits[:, 0].mean(),
        "p5": hits.mean(),
        "ndcg5": ((hits * discount).sum(1) / ideal).mean(),
        "recall5": (hits.sum(1) / count.clamp(max=5)).mean(),
        "p1_many": hits[count >= 4, 0].mean(),
    }
    placed = torch.zeros_like(targets).scatter(1, best, True)
    for name, labels in (("rare", (seen >= 1) & (seen <= RARE)), ("new", seen == 0)):
        links = targets & labels
        if links.any():
            found[f"recall5_{name}"] = placed[links].double().mean()
    return {name: float(value) for name, value in found.items()}


def lexical(texts: Texts, world: World) -> dict[str, float]:
    """TF-IDF between the whole texts."""
    return measures(TfIdf(texts.labels).scores([texts.queries[i] for i in world.test.tolist()]).to(world.targets.device), world)


def size(scorer: Scorer, labels: int) -> dict[str, float]:
    """Trained numbers, in thousands, and those of them that grow with the labels."""
    own = labels * scorer.model.model.width if isinstance(scorer.model, LabelHead) else 0
    return {"parameters": count_parameters(scorer, trainable=True) / 1e3, "parameters_of_labels": own / 1e3}


@torch.no_grad()
def parts(scorer: Scorer, world: World, easy: Tensor) -> dict[str, float]:
    """On the made world: P@1, and recall@|P| of the labels that a query names by their own word and of those that it does not."""
    scores, targets = scorer.scores(world.queries[world.test], world.labels), world.targets[world.test]
    count = targets.sum(1, keepdim=True)
    rank = scores.argsort(1, descending=True).argsort(1)
    found = targets & (rank < count)
    simple = easy[world.test] & targets
    return {
        "p1_made": float(targets.gather(1, scores.argmax(1, keepdim=True)).double().mean()),
        "recall_easy": float(found[simple].double().mean()),
        "recall_hard": float(found[targets & ~simple].double().mean()),
    }


def by_heart(settings: XMCSettings, seed: int, number: int, device: torch.device) -> float:
    """Share of random training pairs whose text is found first, after training with ``number`` random negatives; 0 is all."""
    world = random_pairs(seed, pairs=settings.pairs).to(device)
    recipe = replace(settings.recipe, steps=settings.heart_steps, width=32, hidden=64, decay=0.0)
    with seeded(seed):
        model = DualEncoder(BagEncoder(world.size, recipe.width, recipe.hidden), recipe.width, temperature=recipe.temperature).to(device)
    draws = stream(seed, "xmc", "heart")

    def loss_at(step: int) -> Tensor:
        rows = torch.randint(settings.pairs, (recipe.batch,), generator=draws).to(device)
        query, own = model.embed(world.queries[rows]), rows
        if number == 0:
            return F.cross_entropy(query @ model.embed(world.labels).T / recipe.temperature, own)
        others = torch.randint(1, settings.pairs, (recipe.batch, number), generator=draws).to(device)  # steps on from its own
        columns = torch.cat([rows[:, None], (rows[:, None] + others) % settings.pairs], 1)
        among, place = torch.unique(columns, return_inverse=True)
        scores = torch.einsum("bd,bnd->bn", query, model.embed(world.labels[among])[place]) / recipe.temperature
        return F.cross_entropy(scores, torch.zeros(len(rows), dtype=torch.int64, device=device))

    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    fit(model, loss_at, steps=recipe.steps, optimizer=optimizer, schedule="linear", warmup=recipe.steps // 10)
    with torch.no_grad():
        best = torch.cat([model(part, world.labels).argmax(1) for part in torch.split(world.queries, 512)])
    return float((best == torch.arange(settings.pairs, device=device)).double().mean())


def cranfield_texts() -> Texts:
    """Cranfield's questions as queries and its abstracts as labels."""
    collection = read_cranfield()
    judged = list(zip(collection.queries, collection.relevant, strict=True))
    return cited(judged, [f"{document.title} {document.text}" for document in collection.documents])


def _renamed(found: dict[str, float], name: str) -> dict[str, float]:
    return {f"{metric}_{name}": value for metric, value in found.items()}


_FEW = Recipe(steps=12, batch=64, width=16, hidden=16, refresh=6, shortlist=20, drawn=5)

SCALES = {
    "quick": XMCSettings(seeds=1, recipe=_FEW, queries=800, made=300, pairs=200, heart_steps=12),
    "laptop": XMCSettings(seeds=5),
    "paper": XMCSettings(seeds=5, recipe=Recipe(steps=2000, width=256, hidden=512), published=True),
}

CLAIMS = (
    Claim("decoupled", "softmax", "p1", 0.02, says="the decoupled softmax is better than InfoNCE's at the first place"),
    Claim("decoupled", "softmax, averaged", "p1", 0.02, says="and not because it divides by the number of positives"),
    Claim("decoupled", "softmax", "ndcg5", says="it is better over five places"),
    Claim("decoupled", "softmax", "recall5", says="it finds more of the right labels in five places"),
    Claim("softmax", None, "wrong_sign", 0.1, says="late in training InfoNCE pushes down a tenth of the positives and more"),
    Claim("decoupled", None, "wrong_sign", -0.001, False, says="the decoupled softmax pushes none down"),
    Claim("decoupled", "softmax", "p1_many", 0.02, says="the gain is there where a query has four right labels and more"),
    Claim("decoupled", "softmax", "p1_made", 0.02, says="so it is on made labels"),
    Claim("decoupled", "softmax", "recall_easy", 0.02, says="there the labels named by their own word gain: InfoNCE holds the sure ones down"),
    Claim("decoupled", "softmax", "recall_hard", says="the labels that must be learned gain, too"),
    Claim("SoftTop-5", "decoupled", "p5", says="the soft top 5 is better than the decoupled softmax at five places, for which it is made"),
    Claim("SoftTop-5", "SoftTop-1", "p5", 0.01, says="the soft top 5 is better than the soft top 1 at five places"),
    Claim("SoftTop-1", "SoftTop-5", "p1", 0.01, says="the soft top 1 is better than the soft top 5 at the first place"),
    Claim("decoupled", "binary", "p1", 0.02, says="the decoupled softmax is better than one-vs-all with settings of its own"),
    Claim("decoupled", "label head", "p1", -0.02, says="with frequent labels the dual encoder is within 0.02 of a vector a label"),
    Claim("decoupled", "label head", "recall5_rare", 0.02, says="on labels of at most three training queries it is better"),
    Claim("decoupled", "label head", "recall5_links", 0.1, says="on See Also, where most labels are rare, it is better by far"),
    Claim("decoupled", "label head", "recall5_new_links", 0.1, says="it finds labels that no training query has; a vector a label cannot"),
    Claim("label head", None, "times_larger", 20, says="the dual encoder has twenty times fewer parameters, as in the paper"),
    Claim("decoupled", "TF-IDF", "p1", 0.02, says="it is better than shared words"),
    Claim("decoupled", "TF-IDF", "recall5_rare", says="on rare labels, too"),
    Claim("decoupled", "softmax", "recall5_links", says="decoupled over InfoNCE on See Also"),
    Claim("decoupled, one positive", "decoupled", "recall5", -0.02, says="one drawn positive a step is within 0.02 of all of them"),
    Claim("decoupled", "in-batch", "p1", 0.02, says="all labels as negatives are better than those of the batch"),
    Claim("hard negatives", "few random", "p1", 0.02, says="hard negatives beside the batch are better than random ones"),
    Claim("hard negatives", "decoupled", "p1", -0.02, says="they are within 0.02 of all labels"),
    Claim("64 negatives", "8 negatives", "recall_1_heart", 0.1, says="64 negatives learn more random pairs by heart than 8"),
    Claim("all negatives", "64 negatives", "recall_1_heart", 0.1, says="all negatives learn more than 64"),
)

UNITS = {
    "p1": "precision at 1",
    "p5": "precision at 5",
    "ndcg5": "nDCG at 5",
    "recall5": "recall at 5, of what is possible",
    "p1_many": "precision at 1, queries with 4 labels and more",
    "recall5_rare": "share of links to rare labels found in 5",
    "recall5_new": "share of links to new labels found in 5",
    "wrong_sign": "share of positives pushed down",
    "parameters": "thousand parameters",
    "parameters_of_labels": "thousand parameters that grow with the labels",
    "times_larger": "parameters over those of the dual encoder",
    "labels_a_step": "labels encoded in a step",
    "p1_made": "precision at 1, made labels",
    "recall_easy": "recall at |P|, labels named by their own word",
    "recall_hard": "recall at |P|, labels named by a partner",
    "recall_1_heart": "share of random pairs learned by heart",
}
UNITS |= {f"{metric}_links": f"{UNITS[metric]}, See Also" for metric in ("p1", "p5", "ndcg5", "recall5", "p1_many", "recall5_rare", "recall5_new")}

EXPERIMENT = Experiment(
    paper="xmc",
    question="Does a loss that lets positives alone make a dual encoder better at finding several labels, and what do its negatives cost?",
    scales=SCALES,
    claims=CLAIMS,
    run=run,
    units=UNITS,
)


# what ships


@dataclass(frozen=True)
class ShownSettings:
    """What the shipped encoder depends on.

    Attributes:
        recipe: of training.
        seed: of everything.
    """

    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0


LETTERS = 60_000  # room for the words


class ShownEncoder(nn.Module):
    """The dual encoder and its words.

    Args:
        settings: sizes.
    """

    letters: Tensor

    def __init__(self, settings: ShownSettings) -> None:
        super().__init__()
        recipe = settings.recipe
        self.model = DualEncoder(BagEncoder(VOCABULARY, recipe.width, recipe.hidden), recipe.width, temperature=recipe.temperature)
        self.register_buffer("letters", torch.zeros(LETTERS, dtype=torch.uint8))

    def vocabulary(self) -> Vocabulary:
        """The words."""
        return from_letters(self.letters)


def _train(settings: ShownSettings, progress: str | None) -> nn.Module:
    texts = parameter_texts()
    scorer = train(text_world(texts, settings.seed, label_words=LABEL_WORDS), settings.recipe, settings.seed, decoupled_softmax)
    found = ShownEncoder(settings)
    found.model.load_state_dict(scorer.model.state_dict())
    found.letters.copy_(to_letters(world_vocabulary(texts, settings.seed), LETTERS))
    return found


def _measure(found: nn.Module) -> dict[str, float]:
    assert isinstance(found, ShownEncoder)
    world = text_world(parameter_texts(), SHOWN.settings.seed, label_words=LABEL_WORDS)
    return {name: round(value, 4) for name, value in evaluate(Scorer(found.model), world).items()}


SHOWN = Checkpoint("xmc-parameters", ShownSettings(), ShownEncoder, _train, _measure)
CHECKPOINTS = (SHOWN,)
