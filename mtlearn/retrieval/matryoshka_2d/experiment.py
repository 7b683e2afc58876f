"""Does drawing one layer and one size a step make every layer and every prefix of a vector of use, and what does the full vector pay?

All arms of a seed see the same batches and the same draws and begin with the same weights; they differ in their loss alone.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import stream
from mtlearn.layers.contrastive import info_nce
from mtlearn.layers.cost import count_flops
from mtlearn.layers.pretrained import pretrained
from mtlearn.layers.text_encoders import TokenEncoder
from mtlearn.layers.tokens import Tokeniser, Vocabulary, from_letters, to_letters
from mtlearn.retrieval.matryoshka_2d.method import ElasticEncoder, cosent_loss, ladder, sliced, two_d_loss
from mtlearn.retrieval.matryoshka_2d.worlds import BODY_WORDS, QUERY_WORDS, World, docstring_texts, graded_texts, tokenised

SIZES = (4, 8, 16, 32, 64)  # reported
Columns = Sequence[Tensor]
StepLoss = Callable[[Columns, Callable[..., Tensor], int, int], Tensor]  # exits, base loss, drawn layer and size to a scalar


@dataclass(frozen=True)
class Recipe:
    """Training.

    Attributes:
        layers, width, heads, hidden: of the encoder.
        steps, rate, batch, warmup: of AdamW with a linear decay, the gradient's norm cut at 1.
        smallest: size of the ladder.
        temperature: of the alignment.
        scale: of the cosines.
    """

    layers: int = 4
    width: int = 64
    heads: int = 4
    hidden: int = 128
    steps: int = 300
    rate: float = 3e-3
    batch: int = 64
    warmup: int = 50
    smallest: int = 4
    temperature: float = 0.3
    scale: float = 20.0

    @property
    def sizes(self) -> tuple[int, ...]:
        """The ladder, from which sizes are drawn."""
        return ladder(self.width, self.smallest)


@dataclass(frozen=True)
class MatryoshkaSettings(Settings):
    """Settings of a run.

    Attributes:
        recipe: of training.
        vocabulary: of the encoder.
        held_out: functions to search.
        most: pairs at most; all when None.
        published: graded sentence pairs in the place of docstrings.
        encoder: name or folder of a pretrained encoder in the place of an untrained small one.
        pooling_first: take the [CLS] token, as the paper does with BERT.
        cells: layer and size, as :func:`shown_cells` names them, of the encoders that are trained for one cell alone.
    """

    recipe: Recipe = Recipe()
    vocabulary: int = 5000
    held_out: int = 400
    most: int | None = None
    published: bool = False
    encoder: str | None = None
    pooling_first: bool = False
    cells: tuple[tuple[int, int], ...] = ((1, 64), (1, 16))


def make_world(settings: MatryoshkaSettings, seed: int, tokeniser: Tokeniser | None = None) -> World:
    """Texts of one seed as tokens."""
    if settings.published:
        return tokenised(graded_texts(), tokeniser, vocabulary=settings.vocabulary, longest=(48, 48))
    texts = docstring_texts(seed, held_out=settings.held_out, most=settings.most)
    return tokenised(texts, tokeniser, vocabulary=settings.vocabulary)


def untrained(recipe: Recipe, vocabulary: int, seed: int, longest: int = max(QUERY_WORDS, BODY_WORDS)) -> ElasticEncoder:
    """The encoder with which every arm begins: word vectors of standard deviation 0.5, positions 0.1."""
    draws = stream(seed, "matryoshka_2d", "start")
    vectors = 0.5 * torch.randn(vocabulary, recipe.width, generator=draws)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=draws)))
        body = TokenEncoder(
            vocabulary, recipe.width, recipe.heads, recipe.layers, recipe.hidden, longest=longest, types=1, norm_first=True, vectors=vectors
        )
    with torch.no_grad():
        body.position.weight.copy_(0.1 * torch.randn(longest, recipe.width, generator=draws))
        body.segment.weight.zero_()
    return ElasticEncoder(body)


def make_start(settings: MatryoshkaSettings, seed: int) -> tuple[ElasticEncoder, World]:
    """The encoder and the world of one seed."""
    if settings.encoder is not None:
        body, tokeniser = pretrained(settings.encoder)
        return ElasticEncoder(body, "first" if settings.pooling_first else "mean"), make_world(settings, seed, tokeniser)
    world = make_world(settings, seed)
    assert isinstance(world.tokeniser, Vocabulary)
    longest = max(tokens.shape[1] for tokens in (*world.train, *world.test))
    return untrained(settings.recipe, len(world.tokeniser), seed, longest), world


def plain(columns: Columns, loss: Callable[..., Tensor], layer: int, size: int) -> Tensor:
    """The last layer at full size, nothing else."""
    return loss(*(exits[-1] for exits in columns))


def mrl(columns: Columns, loss: Callable[..., Tensor], layer: int, size: int) -> Tensor:
    """Matryoshka: the last layer at full size and at the drawn one."""
    return two_d_loss(columns, loss, None, size)


def two_d(recipe: Recipe, **options: object) -> StepLoss:
    """2DMSE, the second release at the recipe's temperature."""
    return lambda columns, loss, layer, size: two_d_loss(columns, loss, layer, size, temperature=recipe.temperature, **options)  # type: ignore[arg-type]


def all_layers(recipe: Recipe) -> StepLoss:
    """2DMSE with every shallow layer in each step, their terms and alignments averaged."""

    def loss_of(columns: Columns, loss: Callable[..., Tensor], layer: int, size: int) -> Tensor:
        layers = len(columns[0]) - 1
        # each call has the last layer's terms once, so that their mean has them once, too
        return torch.stack([two_d_loss(columns, loss, n, size, temperature=recipe.temperature) for n in range(1, layers)]).mean()

    return loss_of


def at_cell(layer: int, size: int) -> StepLoss:
    """One layer at one size alone."""
    return lambda columns, loss, _, __: loss(*(exits[layer][:, :size] for exits in columns))


def train(start: ElasticEncoder, world: World, recipe: Recipe, seed: int, loss_of: StepLoss, *, progress: str | None = None) -> ElasticEncoder:
    """A copy of the encoder, trained; batches and draws depend on the seed alone."""
    encoder = deepcopy(start)
    batches, choices = stream(seed, "matryoshka_2d", "batches"), stream(seed, "matryoshka_2d", "choices")
    first, second = world.train
    scores = world.texts.train_scores
    sizes, layers = recipe.sizes, start.layers

    def loss_at(step: int) -> Tensor:
        rows = torch.randperm(len(first), generator=batches)[: recipe.batch]
        layer = int(torch.randint(1, max(recipe.layers, 2), (), generator=choices))
        size = sizes[int(torch.randint(len(sizes), (), generator=choices))]
        columns = [encoder.exits(column[rows.to(column.device)]) for column in (first, second)]
        if scores is None:
            return loss_of(columns, lambda a, b: info_nce(a, b, scale=recipe.scale), min(layer, layers), size)
        given = scores[rows].to(first.device)
        return loss_of(columns, lambda a, b: cosent_loss(a, b, given, scale=recipe.scale), min(layer, layers), size)

    optimizer = torch.optim.AdamW(encoder.parameters(), lr=recipe.rate, fused=True)
    warmup = min(recipe.warmup, recipe.steps)
    fit(encoder, loss_at, steps=recipe.steps, optimizer=optimizer, schedule="linear", warmup=warmup, clip=1.0, progress=progress)
    return encoder.eval()


@torch.no_grad()
def exits_of(encoder: ElasticEncoder, world: World, *, block: int = 256) -> tuple[Tensor, Tensor]:
    """Exits (N + 1, n, D) of both columns of the test, on the processor's memory."""
    found = [torch.cat([encoder.exits(part).cpu() for part in torch.split(column, block)], 1) for column in world.test]
    return found[0], found[1]


def ranks(queries: Tensor, documents: Tensor) -> Tensor:
    """Rank (n,) of each query's own document, from 1; a document with an equal score stands before it."""
    scores = queries @ documents.T
    return (scores >= scores.diagonal()[:, None]).sum(1)


def grid(exits: tuple[Tensor, Tensor], sizes: Sequence[int], scores: Tensor | None = None) -> Tensor:
    """Quality (N + 1, sizes) of each cell: MRR of the own document among all, or Spearman's correlation of cosine and score.

    A correlation is 0 where all cosines are equal.
    """
    found = torch.zeros(len(exits[0]), len(sizes), dtype=torch.float64)
    for n, (first, second) in enumerate(zip(*exits, strict=True)):
        for j, size in enumerate(sizes):
            a, b = sliced(first, size), sliced(second, size)
            if scores is None:
                found[n, j] = (1 / ranks(a, b).double()).mean()
            else:
                cosine = (a * b).sum(1).double()
                flat = float(cosine.max() - cosine.min()) < 1e-6  # the embedding of [CLS] is the same in every text
                found[n, j] = 0.0 if flat else float(spearmanr(cosine.numpy(), scores.numpy()).statistic)
    return found


def shown_cells(layers: int, width: int) -> tuple[list[int], list[int]]:
    """Layers and sizes that are reported: no layer, a quarter of them and so on to all; a sixteenth of the width and so on to all of it.

    With 4 layers of width 64, that of the laptop, these are layers 0 to 4 and sizes 4 to 64, by which the figures are named at every scale.
    """
    return [round(k * layers / 4) for k in range(5)], [max(1, width * size // SIZES[-1]) for size in SIZES]


def metrics(table: Tensor) -> dict[str, float]:
    """Figures (5, 5) by name: ``mrr_1_16`` for layer 1 and size 16, and ``mrr_mean`` over all cells but those of layer 0."""
    cells = {f"mrr_{n}_{size}": float(table[n, j]) for n in range(len(table)) for j, size in enumerate(SIZES)}
    return cells | {"mrr_mean": float(table[1:].mean())}


def losses(recipe: Recipe) -> dict[str, StepLoss]:
    """The arms that share the whole encoder."""
    return {
        "plain": plain,
        "MRL": mrl,
        "2DMSE": two_d(recipe),
        "2DMSE, no alignment": two_d(recipe, kl_weight=0.0),
        "2DMSE, all layers": all_layers(recipe),
    }


def run(settings: MatryoshkaSettings, seed: int, device: torch.device) -> Arms:
    """All arms of one seed."""
    start, world = make_start(settings, seed)
    recipe = replace(settings.recipe, layers=start.layers, width=start.width)
    start, world = start.to(device), world.to(device)
    layers, sizes = shown_cells(start.layers, start.width)

    def measured(encoder: ElasticEncoder) -> Tensor:
        return grid(exits_of(encoder, world), sizes, world.texts.test_scores)

    arms: Arms = {"untrained": metrics(measured(start)[layers])}
    for name, loss_of in losses(recipe).items():
        arms[name] = metrics(measured(train(start, world, recipe, seed, loss_of))[layers])
    arms["one encoder a cell"] = {}
    for n, size in settings.cells:
        layer, j = layers[n], SIZES.index(size)
        alone = train(start.truncated(layer), world, recipe, seed, at_cell(layer, sizes[j]))
        arms["one encoder a cell"][f"mrr_{n}_{size}"] = float(measured(alone)[layer, j])
    arms["half the layers"] = {"operations": operations(start, world, start.layers // 2) / operations(start, world, start.layers)}
    return arms


def operations(encoder: ElasticEncoder, world: World, layers: int) -> int:
    """Floating-point operations of one test text's second column in the first layers."""
    short = encoder.truncated(layers)
    with torch.no_grad():
        return count_flops(lambda: short(world.test[1][:1]))


_FEW = Recipe(steps=12, batch=32, warmup=4, hidden=32)

SCALES: Mapping[str, MatryoshkaSettings] = {
    "quick": MatryoshkaSettings(seeds=1, recipe=_FEW, vocabulary=1000, held_out=100, most=700),
    "laptop": MatryoshkaSettings(seeds=5),
    "paper": MatryoshkaSettings(
        seeds=5,
        recipe=Recipe(steps=2000, rate=5e-5, batch=64, warmup=200, smallest=8, temperature=1.0),
        published=True,
        encoder="bert-base-uncased",
        pooling_first=True,
    ),
}

CLAIMS = (
    Claim("2DMSE", "MRL", "mrr_1_64", 0.03, says="after one layer of four, all 64 numbers: 2DMSE is better than Matryoshka alone"),
    Claim("2DMSE", "plain", "mrr_1_64", 0.03, says="and better than plain training"),
    Claim("2DMSE", "MRL", "mrr_2_64", 0.03, says="after two layers it is better than Matryoshka alone"),
    Claim("2DMSE", "MRL", "mrr_1_16", 0.05, says="in the cheap corner, one layer and 16 numbers, it is better than Matryoshka alone"),
    Claim("2DMSE", "plain", "mrr_1_16", 0.05, says="and better than plain training"),
    Claim("MRL", "plain", "mrr_4_8", 0.05, says="eight numbers of the last layer: Matryoshka is better than plain training"),
    Claim("2DMSE", "plain", "mrr_4_8", 0.05, says="so is 2DMSE"),
    Claim("2DMSE", "plain", "mrr_4_64", -0.05, says="all layers, all numbers: 2DMSE is within 0.05 of plain training"),
    Claim("2DMSE", "plain", "mrr_4_64", -0.02, says="there it is level with plain training, within 0.02"),
    Claim("2DMSE", "MRL", "mrr_4_64", -0.02, says="there it is level with Matryoshka alone, within 0.02"),
    Claim("2DMSE", "MRL", "mrr_mean", 0.02, says="over all cells it is better than Matryoshka alone"),
    Claim("2DMSE", "2DMSE, no alignment", "mrr_1_64", says="the alignment helps the first layer"),
    Claim("2DMSE", "2DMSE, all layers", "mrr_mean", -0.02, says="one drawn layer a step is within 0.02 of all layers in each step"),
    Claim("2DMSE", "one encoder a cell", "mrr_1_64", -0.05, says="it is within 0.05 of an encoder trained for one layer alone"),
    Claim("2DMSE", "one encoder a cell", "mrr_1_16", -0.05, says="and of one trained for one layer and 16 numbers alone"),
    Claim("half the layers", None, "operations", -0.55, False, says="half the layers take about half the operations"),
)

UNITS = {
    **{f"mrr_{n}_{size}": f"MRR, layer {n}, size {size}" for n in range(5) for size in SIZES},
    "mrr_mean": "MRR, mean over layers 1 to 4 and all sizes",
    "operations": "operations, of those of all layers",
}

EXPERIMENT = Experiment(
    paper="matryoshka_2d",
    question="Does drawing one layer and one size a step make every layer and every prefix of the vector of use?",
    scales=SCALES,
    claims=CLAIMS,
    run=run,
    units=UNITS,
)


# what ships


@dataclass(frozen=True)
class ShownSettings:
    """What the shipped models depend on.

    Attributes:
        recipe: of training.
        vocabulary: of the encoder.
        held_out: functions that are not trained on, and are searched.
        seed: of everything.
    """

    recipe: Recipe = Recipe()
    vocabulary: int = 5000
    held_out: int = 400
    seed: int = 0


def shown_world(settings: ShownSettings) -> World:
    """Texts of the shipped models."""
    return make_world(MatryoshkaSettings(seeds=1, vocabulary=settings.vocabulary, held_out=settings.held_out), settings.seed)


LETTERS = 60_000  # room for the words' letters


class ShippedEncoder(nn.Module):
    """The 2DMSE encoder in half precision, and its words, one a line."""

    letters: Tensor

    def __init__(self, settings: ShownSettings) -> None:
        super().__init__()
        self.elastic = untrained(settings.recipe, settings.vocabulary, settings.seed).half()
        self.register_buffer("letters", torch.zeros(LETTERS, dtype=torch.uint8))

    def keep(self, encoder: ElasticEncoder, vocabulary: Vocabulary) -> None:
        """Take a trained encoder and its words."""
        self.letters.copy_(to_letters(vocabulary, LETTERS))
        self.elastic = deepcopy(encoder).half()

    def vocabulary(self) -> Vocabulary:
        """The words."""
        return from_letters(self.letters)

    def encoder(self) -> ElasticEncoder:
        """The encoder in single precision."""
        return deepcopy(self.elastic).float().eval()


def _start(settings: ShownSettings, world: World) -> ElasticEncoder:
    assert isinstance(world.tokeniser, Vocabulary)
    return untrained(settings.recipe, len(world.tokeniser), settings.seed)


def train_shipped(settings: ShownSettings, progress: str | None) -> ShippedEncoder:
    """2DMSE on the training pairs of the seed."""
    world = shown_world(settings)
    assert isinstance(world.tokeniser, Vocabulary)
    model = ShippedEncoder(settings)
    model.keep(train(_start(settings, world), world, settings.recipe, settings.seed, two_d(settings.recipe), progress=progress), world.tokeniser)
    return model


def measure_shipped(model: nn.Module) -> dict[str, float]:
    """MRR among the held-out functions, at the four corners."""
    assert isinstance(model, ShippedEncoder)
    texts = docstring_texts(SHIPPED.settings.seed, held_out=SHIPPED.settings.held_out)
    table = grid(exits_of(model.encoder(), tokenised(texts, model.vocabulary())), SIZES)
    return {f"layer {n}, size {SIZES[j]}": round(float(table[n, j]), 4) for n in (1, 4) for j in (2, 4)}


SHOWN = ("plain", "MRL", "2DMSE")


class ShownExits(nn.Module):
    """Exits (models, N + 1, 2, n, D) of the held-out queries and documents, in half precision, for plain training and Matryoshka."""

    exits: Tensor

    def __init__(self, settings: ShownSettings) -> None:
        super().__init__()
        shape = (len(SHOWN) - 1, settings.recipe.layers + 1, 2, settings.held_out, settings.recipe.width)
        self.register_buffer("exits", torch.zeros(shape, dtype=torch.float16))


def train_exits(settings: ShownSettings, progress: str | None) -> ShownExits:
    """Train the two rivals of the shipped encoder, and keep what they say of the held-out texts."""
    world = shown_world(settings)
    found = ShownExits(settings)
    for i, name in enumerate(SHOWN[:-1]):
        encoder = train(_start(settings, world), world, settings.recipe, settings.seed, losses(settings.recipe)[name], progress=progress)
        found.exits[i] = torch.stack(exits_of(encoder, world), 1).half()
    return found


def measure_exits(model: nn.Module) -> dict[str, float]:
    """MRR of both at layer 1 and 4, size 64."""
    exits = model.get_buffer("exits").float()
    tables = [grid((rows[:, 0], rows[:, 1]), SIZES) for rows in exits]
    return {f"{name}, layer {n}": round(float(table[n, -1]), 4) for name, table in zip(SHOWN, tables, strict=False) for n in (1, 4)}


SHIPPED = Checkpoint("matryoshka_2d-encoder", ShownSettings(), ShippedEncoder, train_shipped, measure_shipped)
RIVALS = Checkpoint("matryoshka_2d-rivals", ShownSettings(), ShownExits, train_exits, measure_exits)
CHECKPOINTS = (SHIPPED, RIVALS)
