"""What SkillNet claims: as good as five models, better than a dense one of its activated size, by specialised skills; and pre-training helps."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.experts import mutual_information
from mtlearn.moe.skillnet.baselines import RoutedNet, dense, skillnet, without_general
from mtlearn.moe.skillnet.method import SKILLS, TABLE, Inputs, Sizes, SkillNet, greedy_decode, task_schedule
from mtlearn.moe.skillnet.tasks import Data, Examples, Tasks, make_tasks

TASKS = tuple(TABLE)
AMONG = {"video": 100, "code": 100}  # items that a query chooses from; all of the test part elsewhere


@dataclass(frozen=True)
class Training:
    """How every arm is trained.

    Attributes:
        labels: labelled examples of each task.
        steps: of each task.
        batch: examples a step.
        learning_rate, decay: of AdamW.
        alpha: a task of n examples is drawn with probability proportional to n to this power.
    """

    labels: int = 300
    steps: int = 150
    batch: int = 32
    learning_rate: float = 2e-3
    decay: float = 0.01
    alpha: float = 0.5


def optimise(model: SkillNet, loss_at: Callable[[int], Tensor], steps: int, training: Training, progress: str | None = None) -> None:
    """AdamW at a constant rate for half of the steps, which then falls to 0 along a line.

    Parameters without a gradient (inactive skills) are left as they are, momentum and decay included.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=training.decay, fused=True)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / max(steps, 1))))
    fit(model, loss_at, steps=steps, optimizer=optimizer, clip=1.0, progress=progress, after_step=lambda step, loss: falling.step())
    model.eval()


def train(
    model: SkillNet, tasks: Tasks, training: Training, seed: int, *, device: torch.device | None = None, progress: str | None = None
) -> SkillNet:
    """Train a model on the tasks of its table with labels; the batches of a task are the same for every model of a seed."""
    device = device or torch.device("cpu")
    model.to(device)
    labelled = {name: tasks.train[name].take(torch.arange(min(training.labels, len(tasks.train[name])))).to(device) for name in model.table}
    sizes = {name: len(examples) for name, examples in labelled.items()}
    steps = training.steps * len(sizes)
    order = task_schedule(sizes, steps, alpha=training.alpha, generator=stream(seed, "order"))
    draws = {name: stream(seed, "batches", name) for name in sizes}

    def loss_at(step: int) -> Tensor:
        name = order[step]
        rows = torch.randint(sizes[name], (training.batch,), generator=draws[name]).to(device)
        batch = labelled[name].take(rows)
        return model.loss(name, batch.calls, batch.labels, batch.lengths)

    optimise(model, loss_at, steps, training, progress)
    return model


def pretrain(
    model: SkillNet, tasks: Tasks, training: Training, seed: int, *, steps: int, share: float = 0.3, device: torch.device | None = None
) -> SkillNet:
    """Restore hidden words, patches and frames of each modality, from all training examples and no label, ``steps`` for each.

    Each task gives the inputs of its last call, and only that call's skills are switched on and trained.
    """
    device = device or torch.device("cpu")
    model.to(device)
    pools = {name: tasks.train[name].to(device) for name in model.table}
    total = steps * len(pools)
    order = task_schedule(dict.fromkeys(pools, 1), total, generator=stream(seed, "order of pre-training"))
    draws = {name: stream(seed, "pre-training", name) for name in pools}

    def loss_at(step: int) -> Tensor:
        name = order[step]
        rows = torch.randint(len(pools[name]), (training.batch,), generator=draws[name])
        side = len(model.table[name].calls) - 1
        inputs = pools[name].calls[side].take(rows.to(device))
        chance = torch.rand(inputs.valid.shape, generator=draws[name]).to(device)
        first = chance.masked_fill(~inputs.valid, 2.0).argmin(1, keepdim=True)  # at least one token of each sequence is hidden
        hidden = (chance < share).scatter(1, first, True)
        return model.masked_loss(name, side, inputs, hidden)

    optimise(model, loss_at, total, training)
    return model


# ------------------------------------------------------------------------------------------------------------------------------------ scores


Switches = Mapping[tuple[str, int], Sequence[str]]  # (task, number of the call) to other skills than the table's


@torch.no_grad()
def vectors(model: SkillNet, task: str, side: int, inputs: Inputs, skills: Sequence[str] | None = None) -> Tensor:
    """Unit vectors (n, d) of one call."""
    parts = [model.embed(task, side, inputs.take(rows), skills) for rows in torch.split(torch.arange(len(inputs.valid)), 256)]
    return F.normalize(torch.cat(parts), dim=-1)


@torch.no_grad()
def score(model: SkillNet, task: str, examples: Examples, switches: Switches | None = None) -> float:
    """A task's score from 0 to 1: accuracy (text), 1 - token error (sound), right at rank 1 (image, video), mean reciprocal rank (code)."""
    skills = [(switches or {}).get((task, side)) for side in range(len(examples.calls))]
    if task == "text":
        logits = model.logits(task, examples.calls[0], skills[0])
        return float((logits.argmax(-1) == examples.labels).double().mean())
    if task == "sound":
        assert examples.lengths is not None
        found, number = greedy_decode(model.logits(task, examples.calls[0], skills[0]), model.frames(task, examples.calls[0]))
        errors = edit_distance(found, number, examples.labels, examples.lengths)
        return max(0.0, 1 - float(errors.sum()) / float(examples.lengths.sum()))
    query, item = (vectors(model, task, side, call, skills[side]) for side, call in enumerate(examples.calls))
    return retrieval_score(task, query, item, examples.labels)


def retrieval_score(task: str, query: Tensor, item: Tensor, groups: Tensor) -> float:
    """Of queries (n, d) and items (n, d): the share of queries whose best item is of their group; for code the mean reciprocal rank."""
    among = min(AMONG.get(task, len(query)), len(query))
    blocks = len(query) // among
    query, item, groups = (x[: blocks * among].view(blocks, among, *x.shape[1:]) for x in (query, item, groups))
    similarity = query @ item.transpose(1, 2)  # (blocks, among, among)
    if task == "code":
        right = similarity.diagonal(dim1=1, dim2=2)[..., None]
        return float((1 / (1 + (similarity > right).sum(-1))).double().mean())
    best = groups.gather(1, similarity.argmax(-1))
    return float((best == groups).double().mean())


def edit_distance(found: Tensor, found_lengths: Tensor, wanted: Tensor, wanted_lengths: Tensor) -> Tensor:
    """Levenshtein distance of each pair of sequences: (n, most found), (n,), (n, most wanted), (n,) to (n,).

    Row by row of the usual table, all pairs at once; insertions along a row are a running minimum.
    """
    count, longest = wanted.shape
    place = torch.arange(longest + 1)
    row = place.expand(count, -1)  # distance of nothing to each beginning of what is wanted
    rows = [row]
    for i in range(found.shape[1]):
        differ = (found[:, i, None] != wanted).long()
        best = torch.minimum(row[:, 1:] + 1, row[:, :-1] + differ)
        best = torch.cat([row[:, :1] + 1, best], 1)
        row = (best - place).cummin(1).values + place
        rows.append(row)
    table = torch.stack(rows, 1)  # (n, found + 1, wanted + 1)
    return table[torch.arange(count), found_lengths, wanted_lengths]


def scores(model: SkillNet, tasks: Tasks, switches: Switches | None = None) -> dict[str, float]:
    """The score of each of the model's tasks."""
    return {name: score(model, name, tasks.test[name], switches) for name in model.table}


def _with_mean(found: dict[str, float]) -> dict[str, float]:
    return {**found, "mean": sum(found.values()) / len(found)}


def calls_of(table: Mapping[str, object] = TABLE) -> tuple[tuple[str, int], ...]:
    """Every call of the encoder that a task makes."""
    return tuple((name, side) for name in table for side in range(len(TABLE[name].calls)))


def toggled(task: str, side: int, skill: str) -> tuple[str, ...]:
    """The skills of a call with one switched over; the table's own order. Empty where the last one is switched off."""
    active = set(TABLE[task].calls[side].skills) ^ {skill}
    return tuple(s for s in SKILLS if s in active)


def lesions(model: SkillNet, tasks: Tasks) -> Tensor:
    """(calls, skills) change of the task's score when one skill of one call is switched over."""
    plain = scores(model, tasks)
    changes = torch.zeros(len(calls_of()), len(SKILLS))
    for row, (task, side) in enumerate(calls_of()):
        for column, skill in enumerate(SKILLS):
            changes[row, column] = score(model, task, tasks.test[task], {(task, side): toggled(task, side, skill)}) - plain[task]
    return changes


# -------------------------------------------------------------------------------------------------------------------------------- experiment

FULL, SEPARATE, DENSE, TOTAL = "SkillNet", "five separate models", "dense, activated size", "dense, total size"
NO_GENERAL, ROUTER, ALL_ON, LESIONS = "no general skill", "learned router", "all skills on", "lesions"
LONGER = "separate, three times the steps"
FEW = {  # arms of the pre-training study
    (False, False): "few labels: SkillNet",
    (False, True): "few labels: SkillNet, pre-trained",
    (True, False): "few labels: separate",
    (True, True): "few labels: separate, pre-trained",
}
MANY = {False: "all labels: SkillNet, those tasks", True: "all labels: SkillNet, those tasks, pre-trained"}


@dataclass(frozen=True)
class SkillSettings(Settings):
    """Settings.

    Attributes:
        data: sizes of the tasks.
        sizes: of the model.
        training: of every arm.
        few: labels of each task in the pre-training study.
        masked: masked steps of each modality.
        studied: tasks of the pre-training study.
        longer: tasks that the separate models are also trained on for three times the steps.
        total: whether the dense model of SkillNet's total size is trained, too.
    """

    data: Data = field(default_factory=Data)
    sizes: Sizes = field(default_factory=Sizes)
    training: Training = Training()
    few: int = 60
    masked: int = 500
    studied: tuple[str, ...] = ("text", "sound")
    longer: tuple[str, ...] = ("image", "video")
    total: bool = False


def begin(make: Callable[[], SkillNet], seed: int, like: SkillNet | None = None) -> SkillNet:
    """An untrained model whose weights depend on the seed alone, not on what was made before it.

    Args:
        make: makes the model.
        seed: of the weights.
        like: gives its weights wherever both have the same tensor: embeddings, norms, output projections, heads.
    """
    with seeded(seed):
        model = make()
    source = {} if like is None else like.state_dict()
    own = model.state_dict()
    model.load_state_dict({name: source[name] if name in source and source[name].shape == value.shape else value for name, value in own.items()})
    return model


def restricted(model: SkillNet, tasks: Sequence[str]) -> SkillNet:
    """The same network with the rows of ``tasks`` alone; its weights are not shared with the original."""
    found = deepcopy(model)
    found.table = {name: model.table[name] for name in tasks}
    return found


def run(settings: SkillSettings, seed: int, device: torch.device) -> Arms:
    """One seed: every arm on the same tasks."""
    tasks, modalities, sizes = make_tasks(settings.data, seed), settings.data.modalities(), settings.sizes
    training = settings.training
    untrained = begin(lambda: skillnet(modalities, sizes), seed)

    def trained(make: Callable[[], SkillNet], how: Training = training) -> SkillNet:
        return train(begin(make, seed, untrained), tasks, how, seed, device=device).cpu()

    def single(name: str) -> Callable[[], SkillNet]:
        return lambda: dense(modalities, sizes, tasks=(name,))

    full = trained(lambda: skillnet(modalities, sizes))
    arms: Arms = {FULL: _measured(full, tasks)}
    arms[ALL_ON] = _with_mean(scores(full, tasks, dict.fromkeys(calls_of(), SKILLS)))
    arms[LESIONS] = _lesion_metrics(lesions(full, tasks))
    arms[DENSE] = _measured(trained(lambda: dense(modalities, sizes)), tasks)
    if settings.total:
        arms[TOTAL] = _measured(trained(lambda: dense(modalities, sizes, skills=len(SKILLS))), tasks)
    arms[NO_GENERAL] = _measured(trained(lambda: without_general(modalities, sizes)), tasks)
    routed = trained(lambda: RoutedNet(modalities, sizes))
    assert isinstance(routed, RoutedNet)
    arms[ROUTER] = {**_with_mean(scores(routed, tasks)), "modality information": modality_information(routed, tasks)}

    separate, parameters = {}, 0
    for name in TASKS:
        model = trained(single(name))
        separate[name], parameters = score(model, name, tasks.test[name]), parameters + _size(model)
    arms[SEPARATE] = {**_with_mean(separate), "parameters": parameters / 1e3}
    patient = replace(training, steps=3 * training.steps)
    arms[LONGER] = {n: score(trained(single(n), patient), n, tasks.test[n]) for n in settings.longer}
    arms.update(_pre_training_arms(settings, tasks, untrained, seed, device))
    return arms


def _size(model: SkillNet) -> int:
    return sum(p.numel() for p in model.parameters())


def _measured(model: SkillNet, tasks: Tasks) -> dict[str, float]:
    activated = sum(model.activated_size(name) for name in model.table) / len(model.table)
    return {**_with_mean(scores(model, tasks)), "parameters": _size(model) / 1e3, "activated parameters": activated / 1e3}


OWN = {"text": "text", "sound": "sound", "image": "image", "video": "video", "code": "code"}  # a task's own skill


def _lesion_metrics(changes: Tensor) -> dict[str, float]:
    """Losses of the last call of each task: own skill off, general off, worst foreign skill on; and the smallest gap of the first to the last."""
    found: dict[str, float] = {}
    gaps = []
    for name in TASKS:
        side = len(TABLE[name].calls) - 1
        lost = dict(zip(SKILLS, (-changes[calls_of().index((name, side))]).tolist(), strict=True))
        foreign = max(lost[skill] for skill in SKILLS if skill not in TABLE[name].calls[side].skills)
        found |= {f"own skill off: {name}": lost[OWN[name]], f"general off: {name}": lost["general"], f"foreign skill on: {name}": foreign}
        gaps.append(lost[OWN[name]] - foreign)
    return {**found, "smallest gap": min(gaps)}


def modality_information(model: RoutedNet, tasks: Tasks) -> float:
    """Mutual information of modality and expert over the layers, as a share of the most that there can be: 1 where experts tell the modality."""
    batches: dict[str, tuple[str, int, Inputs]] = {}
    for name, side in calls_of():
        inputs = tasks.test[name].calls[side]
        batches.setdefault(TABLE[name].calls[side].modality, (name, side, inputs.take(torch.arange(min(100, len(inputs.valid))))))
    usage = model.usage(batches)  # (layers, modalities, experts)
    count = usage.shape[1]
    shares = [float(mutual_information(layer / count)) for layer in usage]
    return sum(shares) / len(shares) / float(torch.tensor(float(count)).log())


def _pre_training_arms(settings: SkillSettings, tasks: Tasks, untrained: SkillNet, seed: int, device: torch.device) -> Arms:
    """With few labels: SkillNet and separate models, from scratch and after masked pre-training of the same steps; and with all labels."""
    few = replace(settings.training, labels=settings.few)
    modalities, studied = settings.data.modalities(), settings.studied
    fresh = restricted(untrained, studied)
    before = pretrain(deepcopy(fresh), tasks, few, seed, steps=settings.masked, device=device)
    arms: Arms = {}
    for ready, model in ((False, fresh), (True, before)):
        for name, how in ((FEW[False, ready], few), (MANY[ready], settings.training)):
            arms[name] = _with_mean(scores(train(deepcopy(model), tasks, how, seed, device=device).cpu(), tasks))
    alone: dict[bool, dict[str, float]] = {False: {}, True: {}}
    for task in studied:
        single = begin(partial(dense, modalities, settings.sizes, tasks=(task,)), seed, untrained)
        prepared = pretrain(deepcopy(single), tasks, few, seed, steps=settings.masked, device=device)
        for ready, model in ((False, single), (True, prepared)):
            alone[ready][task] = score(train(model, tasks, few, seed, device=device).cpu(), task, tasks.test[task])
    return {**arms, **{FEW[True, ready]: _with_mean(found) for ready, found in alone.items()}}


TINY = SkillSettings(
    seeds=2,
    data=Data(text=8, code=10, words=200, unlabelled=64, tests=(("text", 40), ("sound", 20), ("image", 40), ("video", 40), ("code", 40))),
    sizes=Sizes(width=8, heads=2, layers=1, hidden=8, words=200),
    training=Training(labels=64, steps=2, batch=8),
    few=16,
    masked=2,
)

EXPERIMENT = Experiment(
    paper="skillnet",
    question="Is one network with named skills, switched on by a table, as good as five models, and are its skills specialised?",
    scales={
        "quick": TINY,
        "laptop": SkillSettings(seeds=5, training=Training(steps=120)),
        "paper": SkillSettings(
            seeds=3,
            data=Data(text=64, code=128, words=10_000, sound=160, spoken=True, unlabelled=4000),
            sizes=Sizes(width=768, heads=12, layers=12, hidden=1536, words=10_000, scale=0.02),
            training=Training(labels=1000, steps=4000, batch=64, learning_rate=1e-4),
            few=200,
            masked=10_000,
            studied=TASKS,
            longer=TASKS,
            total=True,
        ),
    },
    claims=(
        Claim(FULL, SEPARATE, "mean", -0.03, says="One SkillNet is comparable to five separate models: over the five tasks at most 0.03 below."),
        Claim(FULL, SEPARATE, "code", -0.03, says="It is so on code, too, the task with the least to share."),
        Claim(FULL, LONGER, "image", says="On image it is above a separate model that is trained for three times the steps."),
        Claim(FULL, LONGER, "video", says="On video it is above a separate model that is trained for three times the steps."),
        Claim(FULL, DENSE, "mean", 0.02, says="It is better than a dense model of the activated size by more than 0.02."),
        Claim(FULL, ALL_ON, "mean", 0.1, says="Switching on only the skills of the table matters: all skills on costs more than 0.1."),
        Claim(FULL, NO_GENERAL, "mean", says="The general skill helps: without it, and the others twice as wide, the score is lower."),
        Claim(FULL, ROUTER, "mean", says="The table by hand is better than a learned router over as many experts of the same size."),
        Claim(LESIONS, None, "own skill off: sound", 0.2, says="Skills are specialised: without the sound skill, sound loses more than 0.2."),
        Claim(LESIONS, None, "own skill off: image", 0.2, says="Without the image skill, image loses more than 0.2."),
        Claim(
            LESIONS, None, "smallest gap", says="The lesion table is diagonal: in every task the own skill off costs more than any foreign one on."
        ),
        Claim(FEW[False, True], FEW[False, False], "text", says="With few labels, sparse pre-training helps SkillNet on text."),
        Claim(FEW[False, True], FEW[False, False], "sound", says="With few labels, sparse pre-training helps SkillNet on sound."),
        Claim(FEW[False, True], FEW[True, True], "mean", -0.03, says="It is on par with pre-training a model for each modality: at most 0.03 below."),
        Claim(MANY[True], MANY[False], "mean", says="With all labels, pre-training still helps."),
    ),
    run=run,
    units={
        "text": "accuracy, five libraries",
        "sound": "1 - errors a key",
        "image": "right at rank 1 of 500",
        "video": "right at rank 1 of 100",
        "code": "mean reciprocal rank among 100",
        "mean": "over the tasks",
        "parameters": "thousands, all models of the arm",
        "activated parameters": "thousands, mean over the tasks",
        "modality information": "share of the modality that the expert tells",
        **{f"{what}: {name}": "score lost" for what in ("own skill off", "general off", "foreign skill on") for name in TASKS},
        "smallest gap": "score lost, own skill off less foreign skill on",
    },
)


# -------------------------------------------------------------------------------------------------------------------------- the shipped model


@dataclass(frozen=True)
class Shipped:
    """Settings of the model that the explorer switches.

    Attributes:
        seed: of the tasks, the weights and the batches.
        data, sizes, training: as in the experiment, with more labels and steps.
        shown: test examples of a task: enough to see what a switch does, few enough to be quick.
    """

    seed: int = 1000
    shown: int = 100
    data: Data = field(default_factory=Data)
    sizes: Sizes = field(default_factory=Sizes)
    training: Training = Training(labels=1200, steps=300)


BYTES = 24_000  # room for the words of the vocabulary


class Skilled(nn.Module):
    """A trained SkillNet with its vocabulary and its lesion table.

    Attributes:
        net: the network.
        letters: (BYTES,) the words of the vocabulary in UTF-8, a line each, then zeros.
        lesions: (calls, skills) change of the task's score on the examples shown when one skill is switched over.
        scores: (tasks,) on the whole test part, with the table as it is.
    """

    letters: Tensor
    lesions: Tensor
    scores: Tensor

    def __init__(self, net: SkillNet) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("letters", torch.zeros(BYTES, dtype=torch.uint8))
        self.register_buffer("lesions", torch.zeros(len(calls_of()), len(SKILLS)))
        self.register_buffer("scores", torch.zeros(len(TASKS)))

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The words by number."""
        return tuple(bytes(self.letters.tolist()).rstrip(b"\0").decode().split("\n"))


def build_shipped(shipped: Shipped) -> Skilled:
    """Untrained."""
    return Skilled(skillnet(shipped.data.modalities(), shipped.sizes))


def train_shipped(shipped: Shipped, progress: str | None = None) -> Skilled:
    """Trained and switched over, skill by skill."""
    model, tasks = build_shipped(shipped), make_tasks(shipped.data, shipped.seed)
    train(model.net, tasks, shipped.training, shipped.seed, progress=progress)
    letters = torch.tensor(list("\n".join(tasks.vocabulary).encode()), dtype=torch.uint8)
    model.letters[: len(letters)] = letters
    model.scores.copy_(torch.tensor(list(scores(model.net, tasks).values())))
    few = {name: part.take(torch.arange(min(shipped.shown, len(part)))) for name, part in tasks.test.items()}
    model.lesions.copy_(lesions(model.net, replace(tasks, test=few)))
    return model


def measure_shipped(model: nn.Module) -> dict[str, float]:
    """Scores with the table."""
    assert isinstance(model, Skilled)
    return {name: round(float(value), 4) for name, value in zip(TASKS, model.scores, strict=True)}


CHECKPOINTS = (Checkpoint("skillnet-switchboard", Shipped(), build_shipped, train_shipped, measure_shipped),)
