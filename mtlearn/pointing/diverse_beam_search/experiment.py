"""Does diverse beam search give better lists than beam search, at the same number of model calls?

The task is real and ambiguous: guess the first sentence of a function's documentation from its file and name, for functions of the
standard library, numpy, scipy, networkx, scikit-learn and torch (:mod:`mtlearn.datasets.functions`). Names of 10 % of the files are for the
test, those of another 10 % choose every method's strength. A second part decodes random table trees, whose best sequence is known.

The list is judged as in the paper: oracle@k is the best quality among its k likeliest members, distinct-n the share of different
n-grams. The quality is sentence BLEU-2 in points (the paper has SPICE and BLEU-4).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TypedDict

import torch
from torch import Tensor

from mtlearn.datasets.functions import Function, Part, documented_functions, part_of, subtokens, words
from mtlearn.lab.checkpoints import Checkpoint, load
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import stream
from mtlearn.pointing.decoding import Hypotheses, State, Step, beam_search
from mtlearn.pointing.diverse_beam_search.baselines import anti_lm_search, sample_lists, sibling_rank_search
from mtlearn.pointing.diverse_beam_search.describer import END, SPECIAL, START, UNKNOWN, Describer, Vocabulary, sentence_loss
from mtlearn.pointing.diverse_beam_search.method import Penalty, distinct_n, diverse_beam_search, embedding, oracle_at
from mtlearn.pointing.diverse_beam_search.trees import all_scores, random_trees, tree_state, tree_step

LONGEST_NAME, SHORTEST, LONGEST = 16, 3, 12  # pieces of a name; words of a sentence
MAX_STEPS = LONGEST + 1  # with the end token
MOST_UNKNOWN = 2  # sentences with more words outside the vocabulary are left out


@dataclass(frozen=True)
class Examples:
    """Names with their sentences, as numbers.

    Attributes:
        functions: where each comes from.
        names: (examples, pieces) padded with ``END``.
        name_lengths: (examples,).
        sentences: (examples, MAX_STEPS) ended and padded with ``END``, ``UNKNOWN`` for rare words.
        lengths: (examples,) number of words, the end token not counted.
    """

    functions: tuple[Function, ...]
    names: Tensor
    name_lengths: Tensor
    sentences: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.functions)

    def rows(self, index: Tensor) -> "Examples":
        """The examples of the given numbers."""
        functions = tuple(self.functions[i] for i in index.tolist())
        return Examples(functions, self.names[index], self.name_lengths[index], self.sentences[index], self.lengths[index])


@dataclass(frozen=True)
class Corpus:
    """The vocabulary, made of the training files alone, and the three parts."""

    vocabulary: Vocabulary
    train: Examples
    validation: Examples
    test: Examples


def module(file: str) -> str:
    """The name of a file's module; a package's ``__init__`` goes by its folder."""
    parts = file.removesuffix(".py").split("/")
    return parts[-2] if parts[-1] == "__init__" and len(parts) > 1 else parts[-1]


def pieces(file: str, name: str) -> list[str]:
    """What the model reads: the last two pieces of the file's name, a slash, the pieces of the function's name; the last 16 of these."""
    return [*subtokens(module(file))[-2:], "/", *subtokens(name)][-LONGEST_NAME:]


@cache
def corpus(output: int = 1500, table: int = 3800) -> Corpus:
    """Read the world and number its words: the ``output`` commonest of the sentences, then those of the names, up to ``table`` rows."""
    found: dict[Part, list[tuple[Function, list[str], list[str]]]] = {"train": [], "validation": [], "test": []}
    for function in documented_functions().functions:
        sentence = words(function.summary)
        if SHORTEST <= len(sentence) <= LONGEST:
            found[part_of(function)].append((function, pieces(function.file, function.name), sentence))
    written = Counter(word for _, _, sentence in found["train"] for word in sentence)
    read = Counter(piece for _, name, _ in found["train"] for piece in name)
    known = [word for word, _ in sorted(written.items(), key=lambda item: (-item[1], item[0]))[:output]]
    both = set(known)
    others = [word for word, _ in sorted(read.items(), key=lambda item: (-item[1], item[0])) if word not in both]
    vocabulary = Vocabulary((*SPECIAL, *known, *others)[:table], len(SPECIAL) + len(known))

    def numbered(part: Part) -> Examples:
        rows = [(function, name, vocabulary.encode(sentence, written=True)) for function, name, sentence in found[part]]
        rows = [row for row in rows if row[2].count(UNKNOWN) <= MOST_UNKNOWN]
        names, name_lengths = padded([vocabulary.encode(name) for _, name, _ in rows], LONGEST_NAME)
        sentences, lengths = padded([sentence for _, _, sentence in rows], MAX_STEPS)
        return Examples(tuple(function for function, _, _ in rows), names, name_lengths, sentences, lengths)

    return Corpus(vocabulary, numbered("train"), numbered("validation"), numbered("test"))


def padded(rows: Sequence[Sequence[int]], width: int) -> tuple[Tensor, Tensor]:
    """Numbers (rows, width) filled up with ``END``, and the length of each row."""
    return torch.tensor([[*row, *[END] * (width - len(row))] for row in rows]), torch.tensor([len(row) for row in rows])


@dataclass(frozen=True)
class Recipe:
    """How a describer is trained."""

    output: int = 1500
    table: int = 3800
    embedding: int = 64
    hidden: int = 128
    dropout: float = 0.2
    steps: int = 800
    batch: int = 64
    learning_rate: float = 6e-3
    weight_decay: float = 0.01
    seed: int = 0


def build(recipe: Recipe) -> Describer:
    """An untrained describer."""
    vocabulary = corpus(recipe.output, recipe.table).vocabulary
    return Describer(len(vocabulary.words), vocabulary.output, embedding=recipe.embedding, hidden=recipe.hidden, dropout=recipe.dropout)


def train(recipe: Recipe, progress: str | None = None, device: torch.device | str = "cpu") -> Describer:
    """A trained describer, in evaluation mode."""
    examples = corpus(recipe.output, recipe.table).train
    draws = stream(recipe.seed, "batches")
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = build(recipe).to(device)

        def loss_at(step: int) -> Tensor:
            batch = examples.rows(torch.randint(len(examples), (recipe.batch,), generator=draws))
            lengths = batch.lengths + 1  # the end token is to be learned as well
            sentences = batch.sentences[:, : int(lengths.max())].to(device)
            return sentence_loss(model(batch.names.to(device), batch.name_lengths.to(device), sentences), sentences, lengths.to(device))

        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        warmup = round(0.3 * recipe.steps)
        fit(model, loss_at, steps=recipe.steps, optimizer=optimizer, schedule="one_cycle", warmup=warmup, clip=1.0, progress=progress)
    return model.eval()


@torch.no_grad()
def validation_loss(model: Describer, examples: Examples) -> float:
    """Mean negative log-likelihood a word over ``examples``, in nats."""
    lengths = examples.lengths + 1
    return float(sentence_loss(model(examples.names, examples.name_lengths, examples.sentences), examples.sentences, lengths))


def _measure(model: torch.nn.Module) -> dict[str, float]:
    assert isinstance(model, Describer)
    found = corpus(DESCRIBER.settings.output, DESCRIBER.settings.table)
    return {"validation nats a word": round(validation_loss(model, found.validation), 4)}


DESCRIBER = Checkpoint(name="diverse_beam_search-describer", settings=Recipe(), build=build, train=train, measure=_measure)
CHECKPOINTS = (DESCRIBER,)


def describer() -> Describer:
    """The describer that ships."""
    model = load(DESCRIBER)
    assert isinstance(model, Describer)
    return model


def bleu(tokens: Tensor, lengths: Tensor, references: Tensor, reference_lengths: Tensor) -> Tensor:
    """Sentence BLEU-2 in points: unigram precision, bigram precision with one added to both counts, brevity penalty.

    Args:
        tokens: (batch, width, steps) decoded lists.
        lengths: (batch, width) their words, the end token not counted.
        references: (batch, steps') the true sentences.
        reference_lengths: (batch,) their words.

    Returns:
        (batch, width) points from 0 to 100; 0 for an empty sequence.
    """
    unigrams = _matches(tokens, lengths, references, reference_lengths)
    big = int(max(tokens.max(), references.max())) + 1
    pairs = tokens[..., :-1] * big + tokens[..., 1:], references[..., :-1] * big + references[..., 1:]
    bigrams = _matches(pairs[0], lengths - 1, pairs[1], reference_lengths - 1)
    precision = (unigrams / lengths.clamp(min=1)) * (bigrams + 1) / (lengths - 1).clamp(min=0).add(1)
    brevity = (1 - reference_lengths[:, None] / lengths.clamp(min=1)).clamp(max=0).exp()
    return 100 * brevity * precision.sqrt()


def _matches(tokens: Tensor, lengths: Tensor, references: Tensor, reference_lengths: Tensor) -> Tensor:
    """How many tokens of each sequence stand in the reference, each at most as often as there: (batch, width)."""
    inside = torch.arange(tokens.shape[-1]) < lengths[..., None]
    reference_inside = torch.arange(references.shape[-1]) < reference_lengths[:, None]
    same = tokens[..., None] == tokens[..., None, :]
    earlier = torch.ones(tokens.shape[-1], tokens.shape[-1]).tril(-1).bool()
    repeats = (same & earlier).sum(-1)  # how often the token came before
    there = ((tokens[..., None] == references[:, None, None]) & reference_inside[:, None, None]).sum(-1)
    return (inside & (repeats < there)).sum(-1)


def list_metrics(found: Hypotheses, examples: Examples) -> dict[str, float]:
    """Mean quality and diversity of the lists of ``examples``, over the lists."""
    ended = found.tokens.gather(2, (found.lengths - 1).clamp(min=0)[..., None])[..., 0] == END
    lengths = found.lengths - (ended & (found.lengths > 0)).long()
    quality = bleu(found.tokens, lengths, examples.sentences, examples.lengths)
    width = quality.shape[1]
    differ = torch.tensor([len({tuple(member) for member in one}) for one in found.tokens.tolist()])
    return {
        **{f"oracle_{k}": float(oracle_at(quality, k).mean()) for k in sorted({1, 5, 10, width}) if k <= width},
        **{f"distinct_{n}": float(distinct_n(found.tokens, lengths, n).mean()) for n in (1, 2, 3, 4)},
        "log_probability": float(found.scores[:, 0].mean()),
        "different": float(differ.float().mean()),
        "words": float(lengths.float().mean()),
    }


def successors(examples: Examples, output: int) -> Tensor:
    """Probabilities log U(next | last) counted on sentences, for the anti-language-model baseline: (output, output), unseen pairs by frequency."""
    sentences = examples.sentences.clone()
    inside = torch.arange(MAX_STEPS) <= examples.lengths[:, None]
    before = torch.nn.functional.pad(sentences[:, :-1], (1, 0), value=START)
    pairs = (before * output + sentences)[inside & (sentences != UNKNOWN) & (before != UNKNOWN)]
    counts = pairs.bincount(minlength=output * output).view(output, output).double()
    share = counts.sum(0) + 1
    share[[START, UNKNOWN]] = 0
    joint = counts + 10 * share / share.sum()  # ten words' worth of the plain frequencies, in every context
    return (joint / joint.sum(1, keepdim=True)).log().float()


@dataclass(frozen=True)
class DecodingSettings(Settings):
    """How the searches are compared.

    Attributes:
        width: B, the length of every list.
        test_names: number of test names; 0 for all.
        validation_names: number of validation names that choose the strengths; 0 for all.
        strengths: lambda of the diverse searches, tried on the validation names.
        rank_strengths: gamma of the sibling rank.
        temperatures: of sampling.
        prior_strengths: lambda of the anti-language-model search.
        training_steps: of the describer, one for each seed; 0 takes the one that ships.
        hidden: units of the describer.
        penalties: whether the other three diversity functions are run as well.
        trees: number of table trees of each kind.
    """

    width: int = 10
    test_names: int = 300
    validation_names: int = 100
    strengths: tuple[float, ...] = (0.2, 0.5, 0.8, 2.0)
    rank_strengths: tuple[float, ...] = (0.2, 0.5, 1.0)
    temperatures: tuple[float, ...] = (0.5, 0.7, 1.0)
    prior_strengths: tuple[float, ...] = (0.1, 0.2, 0.4)
    training_steps: int = 800
    hidden: int = 128
    penalties: bool = True
    trees: int = 500


class Counted:
    """A step that counts how often the model is called."""

    def __init__(self, step: Step) -> None:
        self.step, self.calls = step, 0

    def __call__(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Call the step, and count."""
        self.calls += 1
        return self.step(tokens, state)


class Limits(TypedDict):
    """What all searches of a task share."""

    start: int
    end: int
    max_steps: int


Search = Callable[[Step, State, float], Hypotheses]


def run(settings: DecodingSettings, seed: int, device: torch.device) -> Arms:
    """Train (or load) one describer, choose every strength on validation names, decode the same test names with every arm; then the trees."""
    if settings.training_steps:
        recipe = replace(DESCRIBER.settings, steps=settings.training_steps, hidden=settings.hidden, seed=seed)
        model = train(recipe, device=device)
    else:
        model = describer().to(device)
    return {**decode_names(model, settings, seed), **decode_trees(settings, seed)}


def draw(examples: Examples, count: int, seed: int, name: str) -> Examples:
    """``count`` examples drawn without replacement, all for 0."""
    order = torch.randperm(len(examples), generator=stream(seed, name))
    return examples.rows(order[:count] if count else order)


@torch.no_grad()
def decode_names(model: Describer, settings: DecodingSettings, seed: int) -> Arms:
    """Every search on the same names with the same model."""
    found = corpus(DESCRIBER.settings.output, DESCRIBER.settings.table)
    validation = draw(found.validation, settings.validation_names, seed, "validation names")
    test = draw(found.test, settings.test_names, seed, "test names")
    width, device, limits = settings.width, model.bias.device, Limits(start=START, end=END, max_steps=MAX_STEPS)
    prior = successors(found.train, model.output).to(device)

    def diverse(groups: int, diversity: str | Penalty = "hamming") -> Search:
        return lambda step, state, strength: diverse_beam_search(
            step, state, width=width, groups=groups, strength=strength, diversity=diversity, **limits
        ).ranked()

    def anti_lm(step: Step, state: State, strength: float) -> Hypotheses:
        def bigrams(tokens: Tensor, own: State) -> tuple[Tensor, State]:
            return prior[tokens], own

        row = {"row": torch.zeros(len(state["hidden"]), device=device)}
        return anti_lm_search(step, state, language_model=bigrams, language_state=row, width=width, strength=strength, **limits)

    searches: dict[str, tuple[tuple[float, ...], Search]] = {
        "beam_search": ((0.0,), lambda step, state, _: beam_search(step, state, width=width, **limits)),
        "diverse": (settings.strengths, diverse(width)),
        "diverse_pairs": (settings.strengths, diverse(width // 2)),
        "diverse_two_groups": (settings.strengths, diverse(2)),
        "sibling_rank": (
            settings.rank_strengths,
            lambda step, state, strength: sibling_rank_search(step, state, width=width, strength=strength, **limits),
        ),
        "sampling": (
            settings.temperatures,
            lambda step, state, temperature: sample_lists(
                step, state, draws=width, temperature=temperature, generator=stream(seed, "draws", str(temperature), device=device), **limits
            ),
        ),
        "anti_lm": (settings.prior_strengths, anti_lm),
    }
    if settings.penalties:
        vectors = model.table.weight[: model.output]
        for name, diversity in (("cumulative", "cumulative"), ("ngram", "ngram"), ("embedding", partial(embedding, vectors=vectors))):
            searches[f"diverse_{name}"] = (settings.strengths, diverse(width, diversity))
    arms: Arms = {}
    for arm, (strengths, search) in searches.items():
        tried = {strength: _searched(model, search, strength, validation)[f"oracle_{width}"] for strength in strengths} if len(strengths) > 1 else {}
        strength = max(strengths, key=lambda strength: tried.get(strength, 0.0))
        arms[arm] = {**_searched(model, search, strength, test), "strength": strength}
    beam = arms["beam_search"]
    for metrics in arms.values():
        for n in (2, 4):
            metrics[f"times_distinct_{n}"] = metrics[f"distinct_{n}"] / beam[f"distinct_{n}"]
    return arms


def _searched(model: Describer, search: Search, strength: float, examples: Examples) -> dict[str, float]:
    step = Counted(model.step)
    device = model.bias.device
    found = search(step, model.read(examples.names.to(device), examples.name_lengths.to(device)), strength)
    found = Hypotheses(found.tokens.cpu(), found.scores.cpu(), found.lengths.cpu())
    return {**list_metrics(found, examples), "model_calls": float(step.calls)}


WORDS, DEPTH = 4, 5  # of the table trees: 1,024 sequences
ALPHAS = {"": 1.0, "_peaked": 0.3}  # Dirichlet parameters


def decode_trees(settings: DecodingSettings, seed: int) -> Arms:
    """Searches on random table trees, whose best sequence is found by looking at all of them."""
    arms: Arms = {}
    for kind, alpha in ALPHAS.items():
        trees = random_trees(settings.trees, words=WORDS, steps=DEPTH, alpha=alpha, generator=stream(seed, "trees", kind))
        step, limits = partial(tree_step, trees), Limits(start=-1, end=WORDS, max_steps=DEPTH)
        best = all_scores(trees, DEPTH).amax(1)
        beams = {width: beam_search(step, tree_state(trees), width=width, **limits) for width in (1, 2, 4)}
        lists = {("greedy" if width == 1 else f"beam_{width}"): (beam, width) for width, beam in beams.items()}
        for groups, strength in ((4, 0.5), (2, 0.5), (4, 2.0)):
            diverse = diverse_beam_search(step, tree_state(trees), width=4, groups=groups, strength=strength, **limits)
            lists[f"diverse_4_in_{groups}_strength_{strength:g}"] = diverse.ranked(), 4 // groups
        for name, (found, group_width) in lists.items():
            top, tie = found.scores[:, 0], 1e-9
            metrics = {
                "regret": best - top,
                "beats_beam_4": (top > beams[4].scores[:, 0] + tie).double(),
                "loses_to_beam_4": (top < beams[4].scores[:, 0] - tie).double(),
                "never_below_group_width": (top >= beams[group_width].scores[:, 0] - tie).double(),
                "different": torch.tensor([float(len({tuple(member) for member in one})) for one in found.tokens.tolist()]),
            }
            arms.setdefault("trees_" + name, {}).update({metric + kind: float(value.mean()) for metric, value in metrics.items()})
    return arms


FOUR_GROUPS = "trees_diverse_4_in_4_strength_0.5"
CLAIMS = (
    Claim("diverse", "beam_search", "oracle_10", 1.0, says="The best of ten is better by over a point of BLEU when the ten beams avoid one another."),
    Claim("diverse", None, "times_distinct_2", 1.5, says="A diverse list has more than 1.5 times as many distinct word pairs as beam search's."),
    Claim("diverse", None, "times_distinct_4", 1.5, says="A diverse list has more than 1.5 times as many distinct runs of four words."),
    Claim("diverse", "sibling_rank", "oracle_10", says="The best of ten beats that of the sibling-rank search, an earlier one for diverse lists."),
    Claim("diverse", "sampling", "oracle_10", says="The best of ten beats that of ten samples at the temperature that suits them best."),
    Claim("sampling", "diverse", "distinct_2", says="Sampling's lists are more varied still, so variety alone does not buy quality."),
    Claim("diverse", "beam_search", "oracle_1", -0.5, says="The first of the list loses less than half a point of BLEU."),
    Claim("diverse", "beam_search", "model_calls", -0.5, higher_is_better=False, says="It calls the model no more often than beam search."),
    Claim("diverse_pairs", "beam_search", "oracle_10", 1.0, says="Groups of two beams gain more than a point as well."),
    Claim("diverse_two_groups", "beam_search", "oracle_10", 1.0, says="Two groups gain more than a point as well."),
    Claim("diverse", "beam_search", "log_probability", says="It finds a likelier best sequence than beam search (the paper's better top-1)."),
    Claim(FOUR_GROUPS, None, "never_below_group_width", 0.999, says="On random trees it is never below beam search of its group's width."),
    Claim(
        FOUR_GROUPS,
        "trees_beam_4",
        "regret",
        higher_is_better=False,
        says="On random trees it comes closer to the best sequence than beam search of the same width (better top-1 again).",
    ),
)
TREE_UNITS = {"regret": "nats", "beats_beam_4": "share", "loses_to_beam_4": "share", "never_below_group_width": "share", "different": "members"}
UNITS = {
    **{f"oracle_{k}": "points of BLEU-2" for k in (1, 5, 10, 20)},
    **{f"distinct_{n}": "n-grams a word" for n in (1, 2, 3, 4)},
    **{f"times_distinct_{n}": "times beam search" for n in (2, 4)},
    "log_probability": "nats",
    "words": "words a member",
    "model_calls": "calls a batch",
    "strength": "nats, or temperature",
    **{metric + kind: unit for kind in ALPHAS for metric, unit in TREE_UNITS.items()},
}

EXPERIMENT = Experiment(
    paper="diverse_beam_search",
    question="Does a search whose groups of beams avoid one another give better and more varied lists than beam search of the same width?",
    scales={
        "quick": DecodingSettings(
            seeds=2, test_names=24, validation_names=12, strengths=(0.5, 0.8), rank_strengths=(1.0,), temperatures=(0.5,), prior_strengths=(0.1,),
            training_steps=0, penalties=False, trees=50,
        ),
        "laptop": DecodingSettings(seeds=5),
        "paper": DecodingSettings(seeds=5, width=20, test_names=0, validation_names=0, training_steps=6000, hidden=512),
    },
    claims=CLAIMS,
    run=run,
    units=UNITS,
)  # fmt: skip
