"""Does a student that embeds sentences one by one gain from a cross-attentive teacher's scores, beyond the labels that both had?

A part of the training labels is wrong. The teacher sees through most of that, because it compares words with words; the question is how much of what
it sees can be put into a vector a sentence and a small head.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.datasets.concepts import concept_pairs
from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.cost import count_flops
from mtlearn.layers.decomposable_attention import MeanOfWords
from mtlearn.layers.text_encoders import JointEncoder, TokenEncoder
from mtlearn.pairs.dse.method import DSE, Head, Pooler, SentenceEmbedder, StoredLogits, Task, binary_target, dse_loss, rescaled
from mtlearn.pairs.dse.worlds import LEXICON, MOST_SHARED, WORDS, World, concept_world, names_world, pretrained_words, published_world
from mtlearn.pairs.labelled import Labelled

GROUPS = 4  # of concepts, for the transfer task


@dataclass(frozen=True)
class Recipe:
    """Training of teacher and student.

    Attributes:
        teacher_epochs, teacher_rate: AdamW; the epoch with the lowest loss on a tenth of the training pairs is kept.
        steps, rate: AdamW on the student; the step with the best development score is kept, looked at every ``look`` steps.
        batch: of both.
        hidden: units of the head.
    """

    teacher_epochs: int = 12
    teacher_rate: float = 2e-3
    steps: int = 400
    rate: float = 1e-3
    look: int = 50
    batch: int = 64
    hidden: int = 64


@dataclass(frozen=True)
class DSESettings(Settings):
    """Settings of a run.

    Attributes:
        recipe: of training.
        labelled, unlabelled, test: pairs of concepts.
        flips: share of wrong labels.
        dim, noise: of the concept words' vectors.
        folds: of the arm whose logits come from teachers that have not seen the pair.
        spread: standard deviation that a saturated teacher's logits are brought to.
        names_dim: of the word vectors of the world of function names; 0 leaves it out.
        published: MSR pairs in the place of all other worlds.
        encoder: of teacher and student on these.
        most: of these pairs at most.
    """

    recipe: Recipe = field(default_factory=Recipe)
    labelled: int = 1500
    unlabelled: int = 8000
    test: int = 2000
    flips: float = 0.15
    dim: int = 32
    noise: float = 0.7
    folds: int = 3
    spread: float = 2.0
    names_dim: int = 32
    published: bool = False
    encoder: str = ""
    most: int = 100_000


def run(settings: DSESettings, seed: int, device: torch.device) -> Arms:
    """All arms of one seed."""
    if settings.published:
        world = published_world(seed, encoder=settings.encoder, dim=settings.dim, most=settings.most).to(device)
        return core(world, settings.recipe, seed)
    recipe = settings.recipe
    world = concepts(settings, seed).to(device)
    arms, students = flipped(world, settings, seed)
    for arm, accuracy in clean(concepts(settings, seed, flips=0.0).to(device), settings, seed).items():
        arms.setdefault(arm, {})["accuracy_clean"] = accuracy
    kinds: tuple[Task, ...] = ("classes", "regression")
    for task in kinds:
        for arm, found in core(concepts(settings, seed, task=task).to(device), recipe, seed).items():
            arms[arm][f"{metric_of(task)}_{task}"] = found[metric_of(task)]
    if settings.names_dim:
        for arm, found in core(names_world(seed, dim=settings.names_dim).to(device), recipe, seed).items():
            arms[arm]["accuracy_names"] = found["accuracy"]
    shares = [arms["teacher only"][name] / arms["teacher"][name] for name in ("accuracy", "accuracy_classes", "spearman_regression")]
    arms["teacher only"]["degradation"] = 1 - sum(shares) / len(shares)
    for arm, vectors in {**{name: student.embed for name, student in students.items()}, "mean of words": word_means(settings, seed)}.items():
        arms[arm]["transfer"] = transfer(vectors, seed, device)
    return arms | {"deep teacher": saving()}


def concepts(settings: DSESettings, seed: int, *, task: Task = "binary", flips: float | None = None) -> World:
    """The world of concepts."""
    sizes = {"labelled": settings.labelled, "unlabelled": settings.unlabelled, "test": settings.test}
    return concept_world(seed, task, **sizes, flips=settings.flips if flips is None else flips, dim=settings.dim, noise=settings.noise)


# training


def train_teacher(world: World, recipe: Recipe, seed: int, rows: Tensor | None = None) -> nn.Module:
    """A cross-attentive model on the training pairs (``rows`` of them), a tenth of which choose the epoch."""
    pairs = world.train if rows is None else world.train[rows]
    with seeded(seed):
        model = world.teacher().to(pairs.first.device)
    held = max(2, len(pairs) // 10)
    learned, judge = pairs[held:], pairs[:held]
    epoch = max(1, len(learned) // recipe.batch)
    return _trained(
        model,
        lambda batch: task_loss(model(batch.first, batch.second), batch.labels, world.task),
        learned,
        lambda: -_held(model, judge, world.task),
        steps=recipe.teacher_epochs * epoch,
        look=epoch,
        batch=recipe.batch,
        rate=recipe.teacher_rate,
        draws=stream(seed, "dse", "teacher"),
    )


def task_loss(logits: Tensor, label: Tensor, task: Task) -> Tensor:
    """A teacher's own loss: cross-entropy on (n, classes), squared error on (n,)."""
    return F.mse_loss(logits, label) if task == "regression" else F.cross_entropy(logits, label)


def _held(model: nn.Module, pairs: Labelled, task: Task) -> float:
    return float(task_loss(predict(model, pairs), pairs.labels, task))


def targets(model: nn.Module, pairs: Labelled, task: Task) -> Tensor:
    """What the student shall give: one logit for two classes, else the teacher's logits."""
    logits = predict(model, pairs)
    return binary_target(logits) if task == "binary" else logits


def predict(model: nn.Module, pairs: Labelled) -> Tensor:
    """Logits of all pairs, without a gradient."""
    was = model.training
    model.eval()
    with torch.no_grad():
        rows = torch.arange(len(pairs)).split(1000)  # type: ignore[no-untyped-call]
        found = torch.cat([model(pairs.first[some], pairs.second[some]) for some in rows])
    model.train(was)
    return found


def train_student(
    world: World,
    recipe: Recipe,
    seed: int,
    alpha: float,
    logits: StoredLogits | None = None,
    *,
    pairs: Labelled | None = None,
    head: Head = "concat",
    pooler: Pooler = "mean",
    top: int | None = None,
) -> DSE:
    """A student on the training pairs (or on ``pairs``); all arms start from the same weights and see the same batches of a list of pairs."""
    learned = world.train if pairs is None else pairs
    teacher = None if logits is None else logits.of_pairs(learned.first, learned.second)
    with seeded(seed):
        embedder = SentenceEmbedder(world.body(), top=world.top if top is None else top, class_token=world.class_token, pooler=pooler)
        student = DSE(embedder, recipe.hidden, 3 if world.task == "classes" else 1, head).to(learned.first.device)
    numbered = Labelled(learned.first, learned.second, torch.arange(len(learned), device=learned.first.device))

    def loss(batch: Labelled) -> Tensor:
        rows = batch.labels
        own = None if teacher is None else teacher[rows]
        return dse_loss(student(batch.first, batch.second), learned.labels[rows], own, alpha=alpha, task=world.task)

    _trained(
        student,
        loss,
        numbered,
        lambda: score(predict(student, world.development), world.development.labels, world.task),
        steps=recipe.steps,
        look=recipe.look,
        batch=recipe.batch,
        rate=recipe.rate,
        draws=stream(seed, "dse", "student"),
    )
    return student


def _trained(
    model: nn.Module,
    loss: Callable[[Labelled], Tensor],
    pairs: Labelled,
    judge: Callable[[], float],
    *,
    steps: int,
    look: int,
    batch: int,
    rate: float,
    draws: torch.Generator,
) -> nn.Module:
    """Train, and put back the weights of the look at which ``judge`` was highest."""
    order = torch.cat([torch.randperm(len(pairs), generator=draws) for _ in range(steps * batch // len(pairs) + 1)])
    best: list[tuple[float, dict[str, Tensor]]] = []

    def after(step: int, value: float) -> None:
        if (step + 1) % look == 0 or step + 1 == steps:
            found = judge()
            if not best or found > best[0][0]:
                best[:] = [(found, deepcopy(model.state_dict()))]

    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    fit(model, lambda step: loss(pairs[order[step * batch : (step + 1) * batch]]), steps=steps, optimizer=optimizer, after_step=after)
    model.load_state_dict(best[0][1])
    return model.eval()


# measuring


def metric_of(task: Task) -> str:
    """Spearman correlation for values, accuracy for classes."""
    return "spearman" if task == "regression" else "accuracy"


def score(logits: Tensor, label: Tensor, task: Task) -> float:
    """The metric of a student's logits (n,) or (n, classes), or of a teacher's, with labels (n,)."""
    if task == "regression":
        return float(spearmanr(logits.cpu(), label.cpu()).statistic)
    guess = (logits > 0).long() if logits.dim() == 1 else logits.argmax(1)
    return float((guess == label).double().mean())


def core(world: World, recipe: Recipe, seed: int) -> Arms:
    """Teacher, labels only, teacher only, on one world."""
    teacher = train_teacher(world, recipe, seed)
    stored = StoredLogits.of(targets(teacher, world.train, world.task), world.train.first, world.train.second)
    models: dict[str, nn.Module] = {
        "teacher": teacher,
        "labels only": train_student(world, recipe, seed, 0.0),
        "teacher only": train_student(world, recipe, seed, 1.0, stored),
    }
    return {arm: {metric_of(world.task): score(predict(model, world.test), world.test.labels, world.task)} for arm, model in models.items()}


def flipped(world: World, settings: DSESettings, seed: int) -> tuple[Arms, dict[str, DSE]]:
    """Every arm on binary pairs with wrong labels, and the students whose embeddings are carried to another task."""
    recipe, train = settings.recipe, world.train
    teacher = train_teacher(world, recipe, seed)
    stored = StoredLogits.of(targets(teacher, train, "binary"), train.first, train.second)
    fair = StoredLogits.of(out_of_fold(world, recipe, seed, settings.folds), train.first, train.second)
    pairs, logits = with_more(world, teacher)
    right = Labelled(train.first, train.second, concepts(settings, seed, flips=0.0).train.labels.to(train.labels.device))
    students = {
        "labels only": train_student(world, recipe, seed, 0.0),
        "half and half": train_student(world, recipe, seed, 0.5, stored),
        "teacher only": train_student(world, recipe, seed, 1.0, stored),
        "teacher only, more pairs": train_student(world, recipe, seed, 1.0, logits, pairs=pairs),
        "teacher only, out of fold": train_student(world, recipe, seed, 1.0, fair),
        "right labels only": train_student(world, recipe, seed, 0.0, pairs=right),
        "labels only, dot": train_student(world, recipe, seed, 0.0, head="dot"),
        "teacher only, dot": train_student(world, recipe, seed, 1.0, stored, head="dot"),
        "teacher only, last layer": train_student(world, recipe, seed, 1.0, stored, top=1),
        "teacher only, maximum": train_student(world, recipe, seed, 1.0, stored, pooler="max"),
    }
    said = targets(teacher, world.test, "binary")
    arms: Arms = {"teacher": {"accuracy": score(said, world.test.labels, "binary")}}
    for arm, student in students.items():
        found = predict(student, world.test)
        arms[arm] = {"accuracy": score(found, world.test.labels, "binary"), "follows": float(spearmanr(found.cpu(), said.cpu()).statistic)}
    arms["mean of words"] = {"accuracy": cosine_accuracy(world, settings, seed)}
    kept = ("labels only", "teacher only", "teacher only, more pairs")
    return arms, {arm: students[arm] for arm in kept}


def with_more(world: World, teacher: nn.Module, spread: float | None = None) -> tuple[Labelled, StoredLogits]:
    """Training and unlabelled pairs with the teacher's logits, brought to a standard deviation of ``spread`` where that is given."""
    both = Labelled(*(torch.cat([getattr(world.train, name), getattr(world.unlabelled, name)]) for name in ("first", "second", "labels")))
    logits = targets(teacher, both, world.task)
    return both, StoredLogits.of(logits if spread is None else rescaled(logits, spread), both.first, both.second)


def out_of_fold(world: World, recipe: Recipe, seed: int, folds: int) -> Tensor:
    """Logits of the training pairs (n,), each from a teacher that has not seen it."""
    fold = torch.arange(len(world.train)) % folds
    logits = torch.zeros(len(world.train), device=world.train.first.device)
    for k in range(folds):
        here = (fold == k).nonzero()[:, 0]
        logits[here] = targets(train_teacher(world, recipe, seed, (fold != k).nonzero()[:, 0]), world.train[here], world.task)
    return logits


def clean(world: World, settings: DSESettings, seed: int) -> dict[str, float]:
    """Accuracy where no label is wrong: the teacher is very sure, with its logits as they are and rescaled."""
    recipe, train = settings.recipe, world.train
    teacher = train_teacher(world, recipe, seed)
    raw = targets(teacher, train, "binary")
    more, raw_more = with_more(world, teacher)
    _, scaled_more = with_more(world, teacher, settings.spread)
    students = {
        "labels only": train_student(world, recipe, seed, 0.0),
        "teacher only": train_student(world, recipe, seed, 1.0, StoredLogits.of(raw, train.first, train.second)),
        "teacher only, rescaled": train_student(world, recipe, seed, 1.0, StoredLogits.of(rescaled(raw, settings.spread), train.first, train.second)),
        "teacher only, more pairs": train_student(world, recipe, seed, 1.0, raw_more, pairs=more),
        "teacher only, more pairs, rescaled": train_student(world, recipe, seed, 1.0, scaled_more, pairs=more),
    }
    found = {"teacher": score(targets(teacher, world.test, "binary"), world.test.labels, "binary")}
    return found | {arm: score(predict(student, world.test), world.test.labels, "binary") for arm, student in students.items()}


def word_means(settings: DSESettings, seed: int) -> Callable[[Tensor], Tensor]:
    """The pretrained words alone: their mean is the sentence's vector."""
    encoder = MeanOfWords(pretrained_words(seed, dim=settings.dim, noise=settings.noise))
    return lambda tokens: encoder.to(tokens.device).embed(tokens).detach()


def cosine_accuracy(world: World, settings: DSESettings, seed: int) -> float:
    """Accuracy of the cosine of mean word vectors, above the threshold that is best on the development pairs."""
    embed = word_means(settings, seed)

    def cosine(pairs: Labelled) -> Tensor:
        return (embed(pairs.first) * embed(pairs.second)).sum(-1)

    judged = cosine(world.development)
    thresholds = judged.sort().values
    right = ((judged > thresholds[:, None]).long() == world.development.labels).double().mean(1)
    return float(((cosine(world.test) > thresholds[right.argmax()]).long() == world.test.labels).double().mean())


def transfer(embed: Callable[[Tensor], Tensor], seed: int, device: torch.device) -> float:
    """Accuracy of a logistic regression on vectors of single sentences: which of four groups do most of its concepts belong to?"""
    drawn = concept_pairs(2600, LEXICON, words=WORDS, most_shared=MOST_SHARED, generator=stream(seed, "dse", "transfer")).first
    counts = F.one_hot(LEXICON.concept(drawn) % GROUPS, GROUPS).sum(1)
    most = counts.max(1).values
    clear = (counts == most[:, None]).sum(1) == 1
    drawn, label = drawn[clear], counts.argmax(1)[clear]
    with torch.no_grad():
        vectors = embed(drawn.to(device)).cpu().double().numpy()
    model = LogisticRegression(max_iter=2000).fit(vectors[:300], label[:300])
    return float(model.score(vectors[300:], label[300:]))


def saving(candidates: int = 200) -> dict[str, float]:
    """Operations for one more pair of 16 tokens each: a joint transformer of four layers over a student of its size whose candidates are cached."""
    with seeded(0):
        joint = JointEncoder(TokenEncoder(100, 128, 4, 4, longest=64), outputs=2, pooling="mean").eval()
        student = DSE(SentenceEmbedder(TokenEncoder(100, 128, 4, 4, longest=64), top=4, class_token=False)).eval()
    query = torch.ones(1, 16, dtype=torch.int64)
    with torch.no_grad():
        vectors = torch.zeros(candidates, student.embedder.width)
        cache = student.head.cache(vectors)
        pair = count_flops(lambda: student.head.rank(vectors[:1], cache)) / candidates
        teacher = count_flops(lambda: joint(query, query))
    return {"saving": teacher / pair}


_FEW = Recipe(teacher_epochs=1, steps=12, look=6, batch=32)
SCALES: Mapping[str, DSESettings] = {
    "quick": DSESettings(seeds=1, recipe=_FEW, labelled=200, unlabelled=200, test=200, folds=2, names_dim=16),
    "laptop": DSESettings(seeds=5),
    "paper": DSESettings(
        seeds=5, recipe=Recipe(teacher_epochs=12, steps=3000, rate=1e-4, teacher_rate=1e-3, hidden=512), published=True, encoder="wordllama"
    ),
}

CLAIMS = (
    Claim("teacher only", "labels only", "accuracy", 0.02, says="the teacher's scores alone over the labels alone, 15 % of the labels wrong"),
    Claim("half and half", "labels only", "accuracy", 0.02, says="half of each (the code's default) over the labels alone"),
    Claim("teacher only", "half and half", "accuracy", says="the teacher alone over half of each"),
    Claim("teacher only, more pairs", "teacher only", "accuracy", 0.01, says="8,000 pairs without labels over the 1,500 with"),
    Claim(
        "teacher only", None, "degradation", -0.05, higher_is_better=False, says="at most 5 % below the teacher on average over three tasks (4.6 %)"
    ),
    Claim("teacher only", "mean of words", "accuracy", 0.02, says="over the cosine of mean word vectors, which no one trained"),
    Claim("teacher only", "right labels only", "accuracy", says="a teacher of noisy labels over labels without noise"),
    Claim("teacher only, out of fold", "teacher only", "accuracy", says="logits of teachers that have not seen the pair over those of one that has"),
    Claim("teacher only, dot", "labels only, dot", "accuracy", says="the same for the inner product as head"),
    Claim("teacher only", "teacher only, dot", "accuracy", says="the perceptron on [u, v, u * v, |u - v|] over the inner product"),
    Claim("teacher only", "teacher only, last layer", "accuracy", says="states of all layers side by side over the last alone"),
    Claim("teacher only", "labels only", "accuracy_clean", says="no label wrong: the teacher's raw logits over the labels"),
    Claim("teacher only, rescaled", "labels only", "accuracy_clean", 0.01, says="no label wrong: logits brought to a standard deviation of 2"),
    Claim("teacher only", "labels only", "accuracy_classes", 0.02, says="three classes"),
    Claim("teacher only", "labels only", "spearman_regression", 0.02, says="graded likeness"),
    Claim("teacher only", "labels only", "accuracy_names", 0.01, says="real text: does a summary belong to a function's name?"),
    Claim("teacher only", "labels only", "transfer", says="the embedding carried to another task, over that of labels alone"),
    Claim("teacher only", "mean of words", "transfer", says="the same, over mean word vectors"),
    Claim("deep teacher", None, "saving", 100.0, says="a cached pair costs a hundredth of a joint transformer's, in operations"),
)

UNITS = {
    "accuracy": "share of right answers on clean pairs, 15 % of the training labels wrong",
    "accuracy_clean": "share of right answers, no label wrong",
    "accuracy_classes": "share of right answers, three classes",
    "accuracy_names": "share of right answers, names and summaries",
    "spearman_regression": "Spearman correlation with the likeness",
    "follows": "Spearman correlation with the teacher's scores, test pairs",
    "degradation": "share of the teacher's score that is lost, mean over three tasks",
    "transfer": "share of right answers of a linear classifier on single sentences",
    "saving": "operations of the teacher over those of the student with a cache, one more pair",
}

EXPERIMENT = Experiment(
    paper="dse",
    question="Does a student that embeds sentences one by one gain from a cross-attentive teacher's scores, beyond the labels that both had?",
    scales=SCALES,
    claims=CLAIMS,
    run=run,
    units=UNITS,
)


# what the explorer shows


@dataclass(frozen=True)
class AlphaSettings:
    """What the explorer's scores depend on.

    Attributes:
        alphas: weights of the teacher.
        flips: shares of wrong labels.
        shown: test pairs, a part of those on which accuracies are taken.
        experiment: sizes and training.
        seed: of everything.
    """

    alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    flips: tuple[float, ...] = (0.0, 0.15, 0.3)
    shown: int = 250
    experiment: DSESettings = field(default_factory=lambda: DSESettings(seeds=1))
    seed: int = 0


class Alphas(nn.Module):
    """Scores of a teacher and of its students on clean test pairs, for each share of wrong labels and each weight.

    Buffers: ``teacher`` (flips, shown) and ``student`` (flips, alphas, shown) logits, ``label`` (shown,), and on all test pairs
    ``teacher_accuracy`` (flips,) and ``accuracy`` (flips, alphas).
    """

    teacher: Tensor
    student: Tensor
    label: Tensor
    teacher_accuracy: Tensor
    accuracy: Tensor

    def __init__(self, settings: AlphaSettings) -> None:
        super().__init__()
        flips, alphas, shown = len(settings.flips), len(settings.alphas), settings.shown
        shapes = {"teacher": (flips, shown), "student": (flips, alphas, shown), "label": (shown,)}
        for name, shape in (shapes | {"teacher_accuracy": (flips,), "accuracy": (flips, alphas)}).items():
            self.register_buffer(name, torch.zeros(shape))


def train_alphas(settings: AlphaSettings, progress: str | None) -> Alphas:
    """A teacher for each share of wrong labels, a student for each weight."""
    found, shown = Alphas(settings), settings.shown
    for i, flips in enumerate(settings.flips):
        world = concepts(settings.experiment, settings.seed, flips=flips)
        teacher = train_teacher(world, settings.experiment.recipe, settings.seed)
        stored = StoredLogits.of(targets(teacher, world.train, "binary"), world.train.first, world.train.second)
        said = targets(teacher, world.test, "binary")
        found.teacher[i], found.teacher_accuracy[i] = said[:shown], score(said, world.test.labels, "binary")
        found.label.copy_(world.test.labels[:shown])
        for j, alpha in enumerate(settings.alphas):
            logits = predict(train_student(world, settings.experiment.recipe, settings.seed, alpha, stored), world.test)
            found.student[i, j], found.accuracy[i, j] = logits[:shown], score(logits, world.test.labels, "binary")
    return found


def measure_alphas(model: nn.Module) -> dict[str, float]:
    """Accuracies at 15 % wrong labels."""
    accuracy = model.get_buffer("accuracy")[1]
    return {"teacher": float(model.get_buffer("teacher_accuracy")[1]), "labels only": float(accuracy[0]), "teacher only": float(accuracy[-1])}


CHECKPOINTS = (Checkpoint("dse-alphas", AlphaSettings(), Alphas, train_alphas, measure_alphas),)
