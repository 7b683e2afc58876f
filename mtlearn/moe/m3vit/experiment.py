"""Does a gate that knows the task beat a shared encoder at equal active FLOPs, and where does the gain come from?

Eight tasks that want *different functions of the same tokens* share a stream too narrow to hold them all: each task is a random network over
patches of real digits. Every arm of a seed sees the same inputs and starts from the same weights where it has them. The cost at the published sizes
is counted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.datasets import nyud
from mtlearn.datasets.digits import Digits, digit_patches, patches, split_digits
from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.cost import count_parameters
from mtlearn.layers.experts import usage_by_group
from mtlearn.moe.m3vit.baselines import encoder_focused_flops
from mtlearn.moe.m3vit.dense_prediction import TaskFusion, UpsamplingHead
from mtlearn.moe.m3vit.method import Gating, M3ViT, MeanHead, MoELayer, balance_loss, multitask_loss, patch_tokens, path_flops
from mtlearn.moe.m3vit.reordering import schedule, simulate

PATCH, COUNT = 4, 4  # pixels a side of a patch, patches an input
TOKEN = PATCH * PATCH


@dataclass(frozen=True)
class Teachers:
    """Random tasks over a set of patches: y_t = sum_p a_t . tanh(W_t (x_p - mu)), scaled to mean 0 and variance 1.

    Attributes:
        inner: W (T, hidden, 16), normal with standard deviation 2.
        outer: a (T, hidden), standard normal.
        centre: mu (16,), the mean patch.
        mean, std: (T,) by which the sums are scaled.
    """

    inner: Tensor
    outer: Tensor
    centre: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def draw(cls, source: Digits, count: int, *, hidden: int = 12, generator: torch.Generator) -> "Teachers":
        """``count`` tasks whose scale is that of inputs drawn from ``source``."""
        inner = 2 * torch.randn(count, hidden, TOKEN, generator=generator)
        outer = torch.randn(count, hidden, generator=generator)
        raw = cls(inner, outer, patches(source.images, PATCH).mean((0, 1)), torch.zeros(count), torch.ones(count))
        values = raw(digit_patches(source, 4000, count=COUNT, size=PATCH, generator=generator))
        return cls(inner, outer, raw.centre, values.mean(1), values.std(1))

    def __call__(self, x: Tensor) -> Tensor:
        """Patches (batch, length, 16) to the tasks' answers (T, batch)."""
        hidden = torch.einsum("blp,thp->tblh", x - self.centre, self.inner).tanh()
        total = torch.einsum("tblh,th->tb", hidden, self.outer)
        return (total - self.mean[:, None]) / self.std[:, None]


@dataclass(frozen=True)
class Recipe:
    """Sizes and training of one model.

    Attributes:
        num_tasks, width, depth, attention_heads: of the model.
        num_experts, k, hidden: of its MoE layers.
        balance_weight: lambda, of each task's pass.
        steps, batch, learning_rate, warmup: of Adam with a cosine schedule.
    """

    num_tasks: int = 8
    width: int = 8
    depth: int = 2
    attention_heads: int = 2
    num_experts: int = 8
    k: int = 2
    hidden: int = 8
    balance_weight: float = 0.01
    steps: int = 800
    batch: int = 64
    learning_rate: float = 4e-3
    warmup: int = 20


@dataclass(frozen=True)
class M3ViTSettings(Settings):
    """Settings of a run.

    Attributes:
        recipe: of the small models.
        test: test inputs.
        single: tasks for which a model of its own is trained.
        image: side of the image at which the published sizes are counted, in pixels.
        rooms: pictures of NYUD-v2 to train on instead; 0 for the drawn tasks.
        room_size: height and width of these pictures.
        epochs: over the pictures.
    """

    recipe: Recipe = field(default_factory=Recipe)
    test: int = 2000
    single: int = 8
    image: int = 512
    rooms: int = 0
    room_size: tuple[int, int] = (480, 640)
    epochs: int = 100


@dataclass(frozen=True)
class Arm:
    """What an arm changes.

    Attributes:
        gating: of the MoE layers; None for a dense model.
        task_token: add a vector of the task to every token.
        balanced: whether lambda counts.
        wider: factor on the perceptrons of a dense model.
    """

    gating: Gating | None = None
    task_token: bool = False
    balanced: bool = True
    wider: int = 1


DENSE, VECTOR, SHARED, MULTI, CONDITIONED = "dense", "dense + task vector", "MoE, one gate", "MoE, multi-gate", "MoE, task-conditioned gate"
UNBALANCED, WIDE, SINGLE = "MoE, multi-gate, no balance", "dense, four times the units", "one dense model a task"
ARMS: dict[str, Arm] = {
    DENSE: Arm(),
    VECTOR: Arm(task_token=True),
    SHARED: Arm("shared"),
    MULTI: Arm("multi"),
    CONDITIONED: Arm("conditioned"),
    UNBALANCED: Arm("multi", balanced=False),
    WIDE: Arm(wider=4),
}
PUBLISHED, STITCH = "M3ViT-small, one of five tasks", "Cross-Stitch, five ResNet-50"
NAIVE, QUEUED = "token by token", "expert by expert"


def build(recipe: Recipe, arm: Arm, tasks: tuple[str, ...], seed: int) -> M3ViT:
    """An untrained model; what two arms have in common starts from the same weights."""

    def made(arm: Arm) -> M3ViT:
        return M3ViT(
            {task: MeanHead(recipe.width, 1) for task in tasks},
            token_width=TOKEN, width=recipe.width, depth=recipe.depth, attention_heads=recipe.attention_heads,
            num_experts=0 if arm.gating is None else recipe.num_experts, k=recipe.k, hidden=recipe.hidden * arm.wider,
            gating=arm.gating or "shared", task_width=recipe.width if arm.gating == "conditioned" else 0,
            task_token=arm.task_token, final_norm=False,
        )  # fmt: skip

    with seeded(seed):
        common = made(Arm()).state_dict()
    with seeded(seed + 1_000_000):
        model = made(arm)
    own = model.state_dict()
    if arm.gating is not None:  # all mixtures have the same experts
        with seeded(seed + 2_000_000):
            common |= {name: value for name, value in made(Arm("shared")).state_dict().items() if ".experts." in name}
    model.load_state_dict({name: common[name] if name in common and common[name].shape == value.shape else value for name, value in own.items()})
    return model


def train(model: M3ViT, teachers: Teachers, source: Digits, recipe: Recipe, *, balance_weight: float, seed: int, progress: str | None = None) -> None:
    """Adam on the sum of all tasks' squared errors; the tasks of the model are teachers by number."""
    draws = stream(seed, "train")
    wanted = [int(task) for task in model.tasks]

    def loss_at(step: int) -> Tensor:
        inputs = digit_patches(source, recipe.batch, count=COUNT, size=PATCH, generator=draws)
        answers = teachers(inputs)
        outputs, visits = model(inputs)
        errors = {task: F.mse_loss(outputs[task][:, 0], answers[number]) for task, number in zip(model.tasks, wanted, strict=True)}
        return multitask_loss(errors, dict.fromkeys(model.tasks, 1.0), balance_loss(visits, len(model.tasks)), balance_weight)

    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    fit(model, loss_at, steps=recipe.steps, optimizer=optimizer, schedule="cosine", warmup=min(recipe.warmup, recipe.steps), progress=progress)
    model.eval()


@torch.no_grad()
def scores(model: M3ViT, inputs: Tensor, answers: Tensor, *, prune: float = 0.0) -> Tensor:
    """(tasks of the model,) coefficient of determination on test inputs (n, 4, 16) with the answers of all teachers (T, n)."""
    outputs = model(inputs, prune=prune).outputs
    right = answers[[int(task) for task in model.tasks]]
    said = torch.stack([outputs[task][:, 0] for task in model.tasks])
    return 1 - (said - right).square().mean(1) / right.var(1, unbiased=False)


def gradient_cosines(model: M3ViT, inputs: Tensor, answers: Tensor) -> tuple[float, float]:
    """How the tasks' gradients lie to each other in the last block's perceptron or experts: mean absolute cosine, share of negative cosines."""
    feed = model.blocks[-1].feed
    shared = list((feed.experts if isinstance(feed, MoELayer) else feed).parameters())  # type: ignore[union-attr]
    outputs = model(inputs).outputs
    rows = []
    for task in model.tasks:
        error = F.mse_loss(outputs[task][:, 0], answers[int(task)])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(error, shared, retain_graph=True)]))
    unit = F.normalize(torch.stack(rows), dim=1)
    cosines = (unit @ unit.T)[torch.triu_indices(len(unit), len(unit), 1).unbind()]
    return float(cosines.abs().mean()), float((cosines < 0).float().mean())


@torch.no_grad()
def usage_of_tasks(model: M3ViT, inputs: Tensor) -> Tensor:
    """(T, E) share of each task's visits that go to each expert of the last MoE layer; equal rows where the task has no say."""
    count = len(model.tasks)
    visited = model(inputs).visits[-1]
    rows = usage_by_group(visited.routes, visited.task, count)
    return rows if model.knows_task else rows[:1].expand(count, -1)


def usage_cosine(usage: Tensor) -> float:
    """Mean cosine between the usage vectors of two tasks: 1 where all tasks use the same experts equally often."""
    unit = F.normalize(usage, dim=1)
    return float((unit @ unit.T)[torch.triu_indices(len(unit), len(unit), 1).unbind()].mean())


def delta_m(values: Mapping[str, float], alone: Mapping[str, float]) -> float:
    """Mean relative gain over one model a task, in per cent, over the tasks of ``alone``; higher values are better."""
    return 100 * sum((values[task] - alone[task]) / abs(alone[task]) for task in alone) / len(alone)


def published_sizes(image: int) -> M3ViT:
    """The transformer of M3ViT-small with five tasks: 16 experts, 4 a token, patches of 16 pixels."""
    heads = {f"task {t}": nn.Identity() for t in range(5)}
    return M3ViT(heads, token_width=3 * 16 * 16, positions=(image // 16) ** 2, class_token=True)


def costs(image: int) -> Arms:
    """Counted FLOPs of one task at the published sizes, on a square image."""
    with torch.device("meta"):
        model = published_sizes(image)
    ours, theirs = path_flops(model, (image // 16) ** 2), encoder_focused_flops(image, len(model.tasks))
    return {
        PUBLISHED: {"GFLOPs": ours / 1e9, "FLOPs saved": 1 - ours / theirs},
        STITCH: {"GFLOPs": theirs / 1e9, "FLOPs saved": 0.0},
    }


@torch.no_grad()
def loads(model: M3ViT, inputs: Tensor) -> Arms:
    """Weight loads of one task's tokens in the last MoE layer, per token, and the share of the time in which nothing is computed."""
    _, visits = model.encode(inputs, torch.tensor([0]))
    found = {}
    for name, plan in ((NAIVE, schedule(visits[-1].routes, "token")), (QUEUED, schedule(visits[-1].routes, "expert"))):
        trace = simulate(plan)
        found[name] = {"weight loads": trace.loads / visits[-1].routes.tokens, "time waited": trace.waited / float(trace.finish[-1])}
    return found


def run(settings: M3ViTSettings, seed: int, device: torch.device) -> Arms:
    """Train and measure every arm of one seed."""
    if settings.rooms:
        return run_rooms(settings, seed, device)
    recipe = settings.recipe
    train_digits, test_digits = split_digits(generator=stream(seed, "split"))
    teachers = Teachers.draw(train_digits, recipe.num_tasks, generator=stream(seed, "teachers"))
    inputs = digit_patches(test_digits, settings.test, count=COUNT, size=PATCH, generator=stream(seed, "test"))
    answers = teachers(inputs)
    tasks = tuple(str(t) for t in range(recipe.num_tasks))
    found: Arms = {}
    values: dict[str, dict[str, float]] = {}

    def fitted(arm: Arm, tasks: tuple[str, ...]) -> M3ViT:
        model = build(recipe, arm, tasks, seed)
        train(model, teachers, train_digits, recipe, balance_weight=recipe.balance_weight if arm.balanced else 0.0, seed=seed)
        return model

    for name, arm in ARMS.items():
        model = fitted(arm, tasks)
        each = scores(model, inputs, answers)
        values[name] = dict(zip(tasks, each.tolist(), strict=True))
        cosine, negative = gradient_cosines(model, inputs[:512], answers[:, :512])
        found[name] = {
            "R2": float(each.mean()),
            "gradient cosine": cosine,
            "negative cosines": negative,
            "FLOPs": path_flops(model, COUNT),
            "parameters": count_parameters(model),
        }
        if arm.gating is not None:
            found[name]["usage cosine"] = usage_cosine(usage_of_tasks(model, inputs))
        if name == MULTI:
            found |= loads(model, inputs[:256])
    alone = {task: float(scores(fitted(Arm(), (task,)), inputs, answers)[0]) for task in tasks[: settings.single]}
    single = build(recipe, Arm(), tasks[:1], seed)
    found[SINGLE] = {
        "R2": sum(alone.values()) / len(alone),
        "FLOPs": path_flops(single, COUNT),
        "parameters": count_parameters(single) * recipe.num_tasks,
    }
    for name in ARMS:
        found[name]["delta_m"] = delta_m(values[name], alone)
    return found | costs(settings.image)


ROOM_TASKS = {"segmentation": nyud.CLASSES, "depth": 1}


class RoomModel(nn.Module):
    """M3ViT with up-sampling heads and, in training, the fusion of the tasks' features."""

    def __init__(self, arm: Arm, size: tuple[int, int], tasks: tuple[str, ...]) -> None:
        super().__init__()
        grid = (size[0] // 16, size[1] // 16)
        heads = {task: UpsamplingHead(384, ROOM_TASKS[task], grid, channels=64) for task in tasks}
        self.body = M3ViT(
            heads, token_width=3 * 16 * 16, positions=grid[0] * grid[1], class_token=True,
            num_experts=0 if arm.gating is None else 16, gating=arm.gating or "shared", task_width=64 if arm.gating == "conditioned" else 0,
        )  # fmt: skip
        self.fusion = TaskFusion({task: ROOM_TASKS[task] for task in tasks}, 64)

    def losses(self, images: Tensor, loss_of: Callable[[str, Tensor], Tensor]) -> Tensor:
        """The tasks' losses, those of the fused predictions, and the balance."""
        tasks = self.body.tasks
        passes = torch.arange(len(tasks) if self.body.knows_task else 1, device=images.device)
        features, visits = self.body.encode(patch_tokens(images, 16), passes)
        features = features.expand(len(tasks), -1, -1, -1)
        levels: dict[str, list[Tensor]] = {}
        losses: dict[str, Tensor] = {}
        for number, task in enumerate(tasks):
            head = self.body.heads[task]
            assert isinstance(head, UpsamplingHead)
            levels[task] = head.levels(features[number])
            losses[task] = loss_of(task, head.last(levels[task][-1]))
        extra = self.fusion({task: found[1] for task, found in levels.items()}, images.shape[-2:])
        losses |= {f"{task}, fused": loss_of(task, output) for task, output in extra.items()}
        return multitask_loss(losses, dict.fromkeys(losses, 1.0), balance_loss(visits, len(tasks)))


def room_loss(rooms: nyud.Rooms, rows: Tensor) -> Callable[[str, Tensor], Tensor]:
    """Cross-entropy of the segmentation, absolute error of the depth in metres where it was measured."""

    def loss(task: str, output: Tensor) -> Tensor:
        if task == "segmentation":
            return F.cross_entropy(output, rooms.segmentation[rows].to(output.device), ignore_index=nyud.IGNORED)
        depth = rooms.depth[rows].to(output.device)
        known = (depth > 0).float()
        return ((output[:, 0] - depth).abs() * known).sum() / known.sum().clamp(min=1)

    return loss


def run_rooms(settings: M3ViTSettings, seed: int, device: torch.device) -> Arms:
    """The arms on NYUD-v2 at the published sizes: SGD, batches of 8, a cosine in the place of the polynomial schedule; no pretrained weights."""
    train_rooms, test_rooms = (nyud.read_rooms(part, count=settings.rooms, size=settings.room_size) for part in ("train", "val"))
    found: Arms = {}
    for name, arm in ARMS.items():
        with seeded(seed):
            model = RoomModel(arm, settings.room_size, tuple(ROOM_TASKS)).to(device)
        draws = stream(seed, "rooms")
        batch = min(8, len(train_rooms.images))

        def loss_at(step: int, model: RoomModel = model, draws: torch.Generator = draws, batch: int = batch) -> Tensor:
            rows = torch.randint(len(train_rooms.images), (batch,), generator=draws)
            return model.losses(train_rooms.images[rows].to(device), room_loss(train_rooms, rows))

        steps = max(1, settings.epochs * len(train_rooms.images) // batch)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9, weight_decay=1e-4)
        fit(model, loss_at, steps=steps, optimizer=optimizer, schedule="cosine", warmup=steps // 20)
        found[name] = measure_rooms(model.eval(), test_rooms, device)
    return found | costs(settings.image)


@torch.no_grad()
def measure_rooms(model: RoomModel, rooms: nyud.Rooms, device: torch.device) -> dict[str, float]:
    """Mean intersection over union of the classes that occur, per cent, and root mean squared error of the depth, metres."""
    table = torch.zeros(nyud.CLASSES, nyud.CLASSES)
    squares = known = 0.0
    for row in range(len(rooms.images)):
        tokens = patch_tokens(rooms.images[row : row + 1].to(device), 16)
        said = model.body.single(tokens, "segmentation")[0].argmax(0).cpu()
        right = rooms.segmentation[row]
        there = right != nyud.IGNORED
        table += torch.bincount(right[there] * nyud.CLASSES + said[there], minlength=nyud.CLASSES**2).view_as(table)
        depth, measured = model.body.single(tokens, "depth")[0, 0].cpu(), rooms.depth[row]
        squares += float(((depth - measured).square() * (measured > 0)).sum())
        known += float((measured > 0).sum())
    union = table.sum(0) + table.sum(1) - table.diagonal()
    occurs = table.sum(1) > 0
    iou = table.diagonal()[occurs] / union[occurs]
    return {"mIoU": 100 * float(iou.mean()), "depth RMSE": (squares / max(known, 1.0)) ** 0.5}


EXPERIMENT = Experiment(
    paper="m3vit",
    question="Does a gate that knows the task beat a shared encoder at equal active FLOPs, and what of the gain is the gate's?",
    scales={
        "quick": M3ViTSettings(seeds=2, recipe=Recipe(num_tasks=3, steps=30, batch=32), test=300, single=2, image=64),
        "laptop": M3ViTSettings(seeds=5),
        "paper": M3ViTSettings(seeds=3, rooms=795),
    },
    claims=(
        Claim(MULTI, DENSE, "R2", 0.02, says="A gate a task beats the shared dense model at equal active FLOPs."),
        Claim(MULTI, SHARED, "R2", says="It beats the mixture whose gate does not know the task."),
        Claim(MULTI, VECTOR, "R2", says="It beats the dense model that gets a learned task vector and as many passes."),
        Claim(CONDITIONED, SHARED, "R2", says="One gate over token and task vector beats the gate that does not know the task."),
        Claim(MULTI, WIDE, "R2", says="It beats a dense model with four times the units in every perceptron."),
        Claim(MULTI, None, "delta_m", says="It beats one dense model a task (which together have eight times the parameters)."),
        Claim(MULTI, DENSE, "gradient cosine", 0.03, higher_is_better=False, says="The tasks' gradients interfere less in its experts."),
        Claim(MULTI, DENSE, "negative cosines", 0.05, higher_is_better=False, says="Fewer pairs of tasks pull in opposite directions."),
        Claim(MULTI, SHARED, "usage cosine", 0.05, higher_is_better=False, says="The tasks use different experts."),
        Claim(UNBALANCED, MULTI, "usage cosine", 0.05, higher_is_better=False, says="Without the balance loss they part further."),
        Claim(MULTI, UNBALANCED, "R2", -0.02, says="The balance loss costs less than 0.02."),
        Claim(
            PUBLISHED, None, "FLOPs saved", 0.88, says="At the published sizes one task costs 88 % fewer FLOPs than encoders that all have to run."
        ),
        Claim(QUEUED, NAIVE, "weight loads", 1.0, higher_is_better=False, says="Expert by expert saves more than one weight load a token."),
        Claim(QUEUED, NAIVE, "time waited", 0.5, higher_is_better=False, says="It saves more than half of the time in waiting for weights."),
    ),
    run=run,
    units={
        "R2": "mean R² over the tasks",
        "gradient cosine": "mean absolute cosine of two tasks' gradients",
        "negative cosines": "share of pairs of tasks",
        "usage cosine": "cosine of two tasks' expert usage",
        "FLOPs": "floating-point operations an input and task",
        "parameters": "numbers",
        "delta_m": "mean gain over one model a task, per cent",
        "GFLOPs": "10⁹ floating-point operations an image and task",
        "FLOPs saved": "share of the FLOPs",
        "weight loads": "loads of an expert a token",
        "time waited": "share of the time",
        "mIoU": "intersection over union, per cent",
        "depth RMSE": "metres",
    },
)


@dataclass(frozen=True)
class Shipped:
    """Settings of the explorer's models: one for each kind of gate.

    Attributes:
        seed: of all draws.
        recipe: as in the experiment.
    """

    seed: int = 1000
    recipe: Recipe = field(default_factory=Recipe)

    def data(self) -> tuple[Digits, Digits, Teachers]:
        """Images for training and test, and the tasks."""
        train_digits, test_digits = split_digits(generator=stream(self.seed, "split"))
        return train_digits, test_digits, Teachers.draw(train_digits, self.recipe.num_tasks, generator=stream(self.seed, "teachers"))


SHIPPED_ARMS: dict[str, Arm] = {"multi": ARMS[MULTI], "conditioned": ARMS[CONDITIONED], "shared": ARMS[SHARED], "multi, no balance": ARMS[UNBALANCED]}


def build_shipped(shipped: Shipped) -> nn.ModuleDict:
    """The models by kind of gate, untrained."""
    tasks = tuple(str(t) for t in range(shipped.recipe.num_tasks))
    return nn.ModuleDict({name: build(shipped.recipe, arm, tasks, shipped.seed) for name, arm in SHIPPED_ARMS.items()})


def train_shipped(shipped: Shipped, progress: str | None = None) -> nn.ModuleDict:
    """The models, trained as the arms of the experiment."""
    train_digits, _, teachers = shipped.data()
    models = build_shipped(shipped)
    for name, arm in SHIPPED_ARMS.items():
        model = models[name]
        assert isinstance(model, M3ViT)
        weight = shipped.recipe.balance_weight if arm.balanced else 0.0
        label = None if progress is None else f"{progress}: {name}"
        train(model, teachers, train_digits, shipped.recipe, balance_weight=weight, seed=shipped.seed, progress=label)
    return models


def measure_shipped(models: nn.Module) -> dict[str, float]:
    """Mean R2 of each model on 2,000 test inputs."""
    assert isinstance(models, nn.ModuleDict)
    _, test_digits, teachers = SHIPPED.data()
    inputs = digit_patches(test_digits, 2000, count=COUNT, size=PATCH, generator=stream(SHIPPED.seed, "test"))
    answers = teachers(inputs)
    return {f"{name}: R2": round(float(scores(model, inputs, answers).mean()), 4) for name, model in models.items() if isinstance(model, M3ViT)}


SHIPPED = Shipped()
CHECKPOINTS = (Checkpoint("m3vit-gates", SHIPPED, build_shipped, train_shipped, measure_shipped),)
