"""Does a small tuned model make a large one a specialist, token by token and without training it?

**The world.** Character language models on real text. General corpus: Python's reference topics. Three domains new to it: docstrings of numpy,
docstrings of networkx, source of standard-library modules; of each 200,000 characters, by position 75 % for training, 10 % to choose with, 15 % for
the test. A fourth, the docstrings of torch, is tuned on by nobody. Every seed pretrains its small (18,576 parameters) and its large model (285,024)
anew, tunes an expert of the small one for each domain, and reads 3,000 test characters a domain, in stretches of 100, each with the true text before
it. The large model is never trained in the fused arms.

**One expert**, the right one given: fused at fixed strengths 0.5, 1 (proxy tuning), 1.5, at the strength that is best on the validation part, and by
the paper's rule. Beside them the expert alone and the upper bounds: the large model tuned on the domain, in full and by LoRA.

**Three experts**, nobody says which is right: the paper's rule (one active expert a token), a search over the whole cube, the mean and the sum of all
changes, and a router that the paper lacks (:mod:`~mtlearn.merging.logits_fusion.baselines`). Beside them one model tuned on all domains, small and
large. *Task arithmetic*: the experts' weights are merged into one small model (its scale chosen on the validation part), alone and fused.

**In context.** The large model is a :class:`~mtlearn.merging.logits_fusion.models.Reader`, which can copy from what it has read; it ships, because
its training is dear, so all seeds share it. Five pieces of 256 characters of the domain's training text stand in front of its prefix. The small
models see 16 characters, so the examples cannot reach them.

**Gap closed**, in both ways of counting: the *ratio* of the fused model's accuracy to the tuned large model's, which the abstract reports, and the
*share* of the way from the untuned to the tuned large model.

At paper scale ``large`` and ``small`` name causal language models of the library transformers that share a tokenizer; the same arms are measured.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.datasets.texts import NUMBER_OF_TOKENS, Text, encode, library_text, reference_text, source_text, windows
from mtlearn.lab.checkpoints import Checkpoint
from mtlearn.lab.checkpoints import load as load_shipped
from mtlearn.lab.experiment import Arms, Claim, Experiment, Settings
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import stream
from mtlearn.layers.lora import add_lora
from mtlearn.merging import task_vectors
from mtlearn.merging.logits_fusion.baselines import recent, routed_strength
from mtlearn.merging.logits_fusion.method import EVIDENCE, GRID, change, cube, dynamic, fuse
from mtlearn.merging.logits_fusion.models import CharacterModel, Reader

DOMAINS = ("numpy", "networkx", "code")
MODULES = ("json", "argparse", "textwrap", "random", "statistics", "ast")
UNSEEN, GENERAL = "torch", "general"
SCALES_OF_MERGING = (0.2, 0.4, 0.6, 0.8, 1.0)

LARGE, SMALL, EXPERT = "large", "small", "expert"
HALF, PROXY, MORE, CHOSEN, DYNAMIC = "fused, 0.5", "fused, 1 (proxy tuning)", "fused, 1.5", "fused, best on validation", "fused, dynamic"
TUNED, LORA = "large, tuned", "large, LoRA"
ONE, CUBE, MEAN, SUM = "three experts, one active", "three experts, cube", "three experts, mean", "three experts, sum"
ROUTER, ROUTED = "three experts, router", "three experts, router and dynamic"
ALL_SMALL, ALL_LARGE = "small, tuned on all", "large, tuned on all"
MERGED, MERGED_FUSED = "task arithmetic", "task arithmetic, fused"
READER, READER_FUSED = "reader", "reader, fused"
SHOWN, SHOWN_FUSED = "reader with examples", "reader with examples, fused"


@dataclass(frozen=True)
class Base:
    """How a base model of characters is made.

    Attributes:
        hidden: units of its layers.
        steps, batch, learning_rate: of the pretraining, with a one-cycle schedule.
        characters: of the general corpus.
        context: characters that it sees.
        seed: of the shipped one.
    """

    hidden: tuple[int, ...]
    steps: int
    learning_rate: float
    batch: int = 256
    characters: int = 400_000
    context: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Tuning:
    """How a model is tuned on a domain.

    Attributes:
        steps, batch, learning_rate: with a one-cycle schedule.
        length: tokens of a sequence; the models of characters learn from single places in its stead.
    """

    steps: int
    learning_rate: float
    batch: int = 256
    length: int = 256


SMALL_BASE, LARGE_BASE = Base((48,), 1200, 3e-3), Base((384, 384), 1500, 2e-3)


@dataclass(frozen=True)
class FusionSettings(Settings):
    """Settings of a run.

    Attributes:
        small_base, large_base: the models of characters.
        pretrain: whether each seed pretrains its own; else all take those that ship.
        expert, tuned, lora: tuning of the small model, and of the large one as upper bounds.
        rank: of LoRA.
        characters: of a domain.
        stretches, stretch: test text of a domain: so many pieces of so many tokens.
        pieces, piece: examples in context: so many pieces of so many tokens.
        in_context: measure the arms with the reader (at paper scale with the large model itself).
        large, small: names or folders of causal language models of the library transformers, in place of the models of characters.
        at_once: sequences in one forward pass.
    """

    small_base: Base = SMALL_BASE
    large_base: Base = LARGE_BASE
    pretrain: bool = True
    expert: Tuning = Tuning(500, 2e-3)
    tuned: Tuning = Tuning(400, 1e-3)
    lora: Tuning = Tuning(200, 5e-3)
    rank: int = 16
    characters: int = 200_000
    stretches: int = 30
    stretch: int = 100
    pieces: int = 5
    piece: int = 256
    in_context: bool = True
    large: str = ""
    small: str = ""
    at_once: int = 10


# ------------------------------------------------------------------------------------------------------------------------------- the text


@dataclass(frozen=True)
class Domain:
    """The tokens of a domain's parts, and how many characters a token of the test has on average."""

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    characters_a_token: float


@cache
def domain_text(name: str, characters: int) -> Text:
    """The text of a domain, by its name in :data:`DOMAINS`, or :data:`UNSEEN`."""
    return (source_text(MODULES) if name == "code" else library_text(name)).first(characters)


def read_domain(name: str, characters: int, tokenize: Callable[[str], Tensor], device: torch.device) -> Domain:
    """A domain, cut by position and put into tokens."""
    parts = domain_text(name, characters).split(validation=0.1, test=0.15)
    train, validation, test = (tokenize(part.characters).to(device) for part in parts)
    return Domain(name, train, validation, test, len(parts[2]) / len(test))


def draw_stretches(tokens: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    """(count, before + length) pieces of a text, where what comes before gives the models their context and the router its evidence."""
    whole = BEFORE + length
    if len(tokens) < whole:
        raise ValueError(f"a stretch needs {whole} tokens, the text has {len(tokens)}")
    start = torch.randint(len(tokens) - whole + 1, (count,), generator=generator).to(tokens.device)
    return tokens[start[:, None] + torch.arange(whole, device=tokens.device)]


BEFORE = EVIDENCE + 16


# ------------------------------------------------------------------------------------------------------------------------------ the models


@dataclass(frozen=True)
class Family:
    """Models of one vocabulary.

    Attributes:
        large, small: (B, L) tokens to logits (B, L, V).
        reader: the large model that learns in context.
        tokenize: text to tokens (length,) int64.
    """

    large: nn.Module
    small: nn.Module
    reader: nn.Module
    tokenize: Callable[[str], Tensor]


class Causal(nn.Module):
    """A causal language model of the library transformers, by its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, prefix: Tensor) -> Tensor:
        """(B, L) to (B, L, V)."""
        logits: Tensor = self.model(input_ids=prefix).logits
        return logits


def causal_family(large: str, small: str, device: torch.device) -> Family:
    """A large and a small causal language model of the library transformers, from its cache or from folders.

    Raises:
        ValueError: their vocabularies differ.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # an extra: pip install "mtlearn[hf]"

    models = [Causal(AutoModelForCausalLM.from_pretrained(name)).to(device).eval() for name in (large, small)]
    tokenizers = [AutoTokenizer.from_pretrained(name) for name in (large, small)]  # type: ignore[no-untyped-call]
    if tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
        raise ValueError(f"fusing needs one vocabulary, token by token; {large} and {small} differ")

    def tokenize(text: str) -> Tensor:
        return torch.tensor(tokenizers[1](text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)

    return Family(models[0], models[1], models[0], tokenize)


def build_base(base: Base) -> CharacterModel:
    """The untrained model."""
    return CharacterModel(base.hidden, context=base.context, vocabulary=NUMBER_OF_TOKENS)


def pretrain(base: Base, seed: int, *, device: torch.device | None = None, progress: str | None = None) -> CharacterModel:
    """A base model, trained on the general corpus; its first weights come from PyTorch's own generator."""
    model = build_base(base).to(device)
    text = reference_text().first(base.characters).tokens.to(device)
    draws = stream(seed, "pretrain")

    def loss_at(step: int) -> Tensor:
        return language_loss(model, text, base.batch, 1, draws)

    optimizer = torch.optim.Adam(model.parameters(), lr=base.learning_rate)
    fit(model, loss_at, steps=base.steps, optimizer=optimizer, schedule="one_cycle", warmup=base.steps // 4, progress=progress)
    return model.eval()


def language_loss(model: nn.Module, tokens: Tensor, batch: int, length: int, draws: torch.Generator) -> Tensor:
    """Cross-entropy of the next token: of a model of characters at single places, of others along whole sequences."""
    if isinstance(model, CharacterModel):
        places = torch.randint(model.context, len(tokens), (batch,), generator=draws).to(tokens.device)
        contexts, following = windows(tokens, model.context, places)
        return F.cross_entropy(model.read(contexts), following)
    starts = torch.randint(len(tokens) - length, (batch,), generator=draws).to(tokens.device)
    pieces = tokens[starts[:, None] + torch.arange(length + 1, device=tokens.device)]
    return F.cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())


def tune(model: nn.Module, texts: Sequence[Tensor], tuning: Tuning, draws: torch.Generator, *, progress: str | None = None) -> nn.Module:
    """A tuned copy of a model; of several texts one after the other gives a batch. LoRA trains what it left unfrozen."""
    tuned = deepcopy(model)

    def loss_at(step: int) -> Tensor:
        return language_loss(tuned, texts[step % len(texts)], tuning.batch, tuning.length, draws)

    optimizer = torch.optim.Adam([parameter for parameter in tuned.parameters() if parameter.requires_grad], lr=tuning.learning_rate)
    steps = tuning.steps * len(texts)
    fit(tuned, loss_at, steps=steps, optimizer=optimizer, schedule="one_cycle", warmup=steps // 10, progress=progress)
    return tuned.eval()


@torch.no_grad()
def logits_along(model: nn.Module, pieces: Tensor, last: int, *, at_once: int = 32, examples: Tensor | None = None) -> Tensor:
    """Logits (B, last, V) for each of the ``last`` tokens of the pieces (B, L), each given the true text before it, after ``examples`` (M,)."""
    before = pieces.new_zeros(0) if examples is None else examples
    read = torch.cat([before.expand(len(pieces), -1), pieces[:, :-1]], 1)
    return torch.cat([model(part)[:, -last:] for part in torch.split(read, at_once)])


# ---------------------------------------------------------------------------------------------------------------------------- the figures


@dataclass(frozen=True)
class Stretch:
    """The test pieces of one text and what the models that do not depend on the domain say of them.

    Attributes:
        pieces: (B, L).
        following: (B, n) the tokens to guess.
        small: (B, EVIDENCE + n, V), the evidence included.
        experts: (T, B, EVIDENCE + n, V).
        weights: (B, n, T) of the router.
        scale: bits of a token to bits of a character, with nats to bits in it.
    """

    pieces: Tensor
    following: Tensor
    small: Tensor
    experts: Tensor
    weights: Tensor
    scale: float

    @property
    def here(self) -> tuple[Tensor, Tensor]:
        """Logits of small and experts at the tokens to guess."""
        n = self.following.shape[1]
        return self.small[:, -n:], self.experts[:, :, -n:]

    def judge(self, logits: Tensor) -> dict[str, float]:
        """Bits a character and accuracy of logits (B, n, V)."""
        log_p = logits.float().log_softmax(-1)
        nll = -log_p.gather(-1, self.following[..., None]).mean()
        return {"bits": self.scale * nll.item(), "accuracy": (log_p.argmax(-1) == self.following).float().mean().item()}


def look(pieces: Tensor, small: nn.Module, experts: Sequence[nn.Module], last: int, *, characters_a_token: float, at_once: int) -> Stretch:
    """Let the small models read the pieces."""
    known = last + EVIDENCE
    of_small = logits_along(small, pieces, known, at_once=at_once)
    of_experts = torch.stack([logits_along(expert, pieces, known, at_once=at_once) for expert in experts])
    log_q, log_q_t = of_small.float().log_softmax(-1), of_experts.float().log_softmax(-1)
    tokens = pieces[:, -known:, None]
    gained = change(log_q, log_q_t).gather(-1, tokens.expand(len(experts), -1, -1, -1))[..., 0]  # (T, B, known)
    weights = recent(gained)[:, -last:]
    return Stretch(pieces, pieces[:, -last:], of_small, of_experts, weights, 1 / (math.log(2) * characters_a_token))


def single_expert(large: Tensor, stretch: Stretch, expert: int, strength: float) -> dict[str, dict[str, float]]:
    """The arms with the right expert given; ``strength`` is the one that was best on the validation part."""
    small, experts = stretch.here
    mine = experts[expert : expert + 1]
    choice = dynamic(large, small, mine)
    arms = {name: stretch.judge(fuse(large, small, mine, alpha)) for name, alpha in ((HALF, 0.5), (PROXY, 1.0), (MORE, 1.5), (CHOSEN, strength))}
    arms[CHOSEN]["alpha"] = strength
    arms[DYNAMIC] = {**stretch.judge(fuse(large, small, mine, choice.alpha)), "alpha": choice.alpha.mean().item()}
    arms[EXPERT] = stretch.judge(mine[0])
    return arms


def several_experts(large: Tensor, stretch: Stretch, merged: Tensor, right: int | None) -> dict[str, dict[str, float]]:
    """The arms where nobody says which expert is right; ``merged`` are the logits of the model that task arithmetic made."""
    small, experts = stretch.here
    one, all_of_them = dynamic(large, small, experts), cube(large, small, experts)
    count = len(experts)
    strengths = {
        ONE: one.alpha,
        CUBE: all_of_them.alpha,
        MEAN: torch.full((count,), 1 / count),
        SUM: torch.ones(count),
        ROUTER: stretch.weights,
        ROUTED: routed_strength(large, small, experts, stretch.weights),
    }
    arms = {name: stretch.judge(fuse(large, small, experts, alpha)) for name, alpha in strengths.items()}
    arms[MERGED] = stretch.judge(merged)
    arms[MERGED_FUSED] = stretch.judge(fuse(large, small, merged[None], dynamic(large, small, merged[None]).alpha))
    if right is not None:
        arms[ONE]["right expert"] = (one.expert == right).float().mean().item()
        for name in (CUBE, ROUTER):
            arms[name]["right expert"] = ((strengths[name].argmax(-1) == right) & (strengths[name].amax(-1) > 0)).float().mean().item()
    return arms


def best_strength(large: Tensor, stretch: Stretch, expert: int) -> float:
    """The strength of the grid with the fewest bits."""
    small, experts = stretch.here
    return min(GRID, key=lambda alpha: stretch.judge(fuse(large, small, experts[expert : expert + 1], alpha))["bits"])


def merge_experts(small: nn.Module, experts: Sequence[nn.Module], validation: Sequence[Tensor], last: int) -> nn.Module:
    """One small model by task arithmetic, at the scale with the lowest loss on the validation pieces (B, L) of all domains."""
    base = small.state_dict()
    total = task_vectors.add([task_vectors.task_vector(base, expert.state_dict()) for expert in experts])
    merged = deepcopy(small)

    def loss(scale: float) -> float:
        merged.load_state_dict(task_vectors.apply(base, total, scale))
        return sum(F.cross_entropy(logits_along(merged, part, last).flatten(0, 1), part[:, -last:].flatten()).item() for part in validation)

    merged.load_state_dict(task_vectors.apply(base, total, min(SCALES_OF_MERGING, key=loss)))
    return merged


def pooled(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Arms:
    """{text: {arm: figures}} to arms: a figure's mean over the domains under its own name, those of each text under "figure text"."""
    arms: Arms = {}
    for text, judged in found.items():
        for arm, figures in judged.items():
            arms.setdefault(arm, {}).update({f"{figure} {text}": value for figure, value in figures.items()})
    for metrics in arms.values():
        for figure in ("bits", "accuracy", "alpha", "right expert"):
            values = [metrics[f"{figure} {text}"] for text in DOMAINS if f"{figure} {text}" in metrics]
            if values:
                metrics[figure] = sum(values) / len(values)
    return arms


def gap_closed(base: float, fused: float, tuned: float) -> tuple[float, float]:
    """Accuracies to the two figures, both 1 at the tuned model: the ratio fused / tuned, and the share (fused - base) / (tuned - base).

    Where there is no gap, or no right answer, nothing is closed: 0.
    """
    return fused / tuned if tuned else 0.0, (fused - base) / (tuned - base) if tuned != base else 0.0


# ----------------------------------------------------------------------------------------------------------------------------- the run


def family_of(settings: FusionSettings, seed: int, device: torch.device) -> Family:
    """The models that a run starts from."""
    if settings.large:
        return causal_family(settings.large, settings.small, device)
    reader = load_shipped(READER_CHECKPOINT, device=device) if settings.in_context else nn.Identity()
    if settings.pretrain:
        small, large = (pretrain(base, seed, device=device) for base in (settings.small_base, settings.large_base))
        return Family(large, small, reader, encode)
    return Family(load_shipped(LARGE_CHECKPOINT, device=device), load_shipped(SMALL_CHECKPOINT, device=device), reader, encode)


def with_lora(model: nn.Module, rank: int, seed: int) -> nn.Module:
    """A copy in which every linear layer has an adapter to train, at scale 1, and nothing else learns."""
    adapted = deepcopy(model)
    add_lora(adapted, lambda name, layer: isinstance(layer, nn.Linear), rank=rank, alpha=rank, generator=stream(seed, "lora"))
    return adapted


def run(settings: FusionSettings, seed: int, device: torch.device) -> Arms:
    """One seed, every arm."""
    family = family_of(settings, seed, device)
    n, at_once = settings.stretch, settings.at_once
    domains = [read_domain(name, settings.characters, family.tokenize, device) for name in DOMAINS]
    experts = [tune(family.small, [domain.train], settings.expert, stream(seed, "expert", domain.name)) for domain in domains]

    def pieces(tokens: Tensor, purpose: str, name: str) -> Tensor:
        return draw_stretches(tokens, settings.stretches, n, stream(seed, purpose, name))

    validation = [pieces(domain.validation, "validation", domain.name) for domain in domains]
    merged = merge_experts(family.small, experts, validation, n)
    found: dict[str, dict[str, dict[str, float]]] = {}
    texts: dict[str, tuple[Tensor, float]] = {domain.name: (domain.test, domain.characters_a_token) for domain in domains}
    unseen = read_domain(UNSEEN, settings.characters, family.tokenize, device)
    held_out = reference_text().characters[settings.large_base.characters :]
    general = family.tokenize(held_out).to(device)
    texts |= {UNSEEN: (unseen.test, unseen.characters_a_token), GENERAL: (general, len(held_out) / len(general))}
    everything = [domain.train for domain in domains]
    all_small = tune(family.small, everything, settings.expert, stream(seed, "all"))
    all_large = tune(family.large, everything, settings.tuned, stream(seed, "all"))
    for number, (name, (test, characters_a_token)) in enumerate(texts.items()):
        known = name in DOMAINS
        stretch = look(pieces(test, "test", name), family.small, experts, n, characters_a_token=characters_a_token, at_once=at_once)
        large = logits_along(family.large, stretch.pieces, n, at_once=at_once)
        arms = {LARGE: stretch.judge(large), SMALL: stretch.judge(stretch.here[0])}
        if known:
            domain = domains[number]
            chosen = look(validation[number], family.small, experts, n, characters_a_token=characters_a_token, at_once=at_once)
            strength = best_strength(logits_along(family.large, chosen.pieces, n, at_once=at_once), chosen, number)
            arms |= single_expert(large, stretch, number, strength)
            for arm, start, tuning in (
                (TUNED, family.large, settings.tuned),
                (LORA, with_lora(family.large, settings.rank, seed), settings.lora),
            ):
                tuned = tune(start, [domain.train], tuning, stream(seed, "tuned", name))
                arms[arm] = stretch.judge(logits_along(tuned, stretch.pieces, n, at_once=at_once))
            if settings.in_context:
                arms |= in_context(family.reader, stretch, number, domain.train, settings, stream(seed, "examples", name))
        arms |= several_experts(large, stretch, logits_along(merged, stretch.pieces, n, at_once=at_once), number if known else None)
        for arm, model in ((ALL_SMALL, all_small), (ALL_LARGE, all_large)):
            arms[arm] = stretch.judge(logits_along(model, stretch.pieces, n, at_once=at_once))
        found[name] = arms
    result = pooled(found)
    for tuned_arm, fused_arms in ((TUNED, (HALF, PROXY, MORE, CHOSEN, DYNAMIC)), (ALL_LARGE, (ONE, CUBE, MEAN, SUM, ROUTER, ROUTED, MERGED_FUSED))):
        for arm in fused_arms:
            ratio, share = gap_closed(result[LARGE]["accuracy"], result[arm]["accuracy"], result[tuned_arm]["accuracy"])
            result[arm] |= {"gap closed, ratio": ratio, "gap closed, share": share}
    return result


def in_context(
    reader: nn.Module, stretch: Stretch, expert: int, train: Tensor, settings: FusionSettings, draws: torch.Generator
) -> dict[str, dict[str, float]]:
    """The arms whose large model learns in context: without and with examples, alone and fused with the right expert."""
    small, experts = stretch.here
    mine = experts[expert : expert + 1]
    starts = torch.randint(len(train) - settings.piece, (settings.pieces,), generator=draws).to(train.device)
    examples = train[starts[:, None] + torch.arange(settings.piece, device=train.device)].flatten()
    arms = {}
    for alone, fused, shown in ((READER, READER_FUSED, None), (SHOWN, SHOWN_FUSED, examples)):
        logits = logits_along(reader, stretch.pieces, stretch.following.shape[1], at_once=settings.at_once, examples=shown)
        arms[alone] = stretch.judge(logits)
        arms[fused] = stretch.judge(fuse(logits, small, mine, dynamic(logits, small, mine).alpha))
    return arms


QUICK = FusionSettings(
    seeds=2,
    pretrain=False,
    expert=Tuning(60, 2e-3),
    tuned=Tuning(15, 1e-3),
    lora=Tuning(5, 5e-3),
    stretches=4,
    stretch=50,
    piece=64,
    characters=100_000,
)

EXPERIMENT = Experiment(
    paper="logits_fusion",
    question="Does adding what tuning did to a small model, with a strength chosen at every token, specialise a large model that is never trained?",
    scales={
        "quick": QUICK,
        "laptop": FusionSettings(seeds=5),
        "paper": FusionSettings(
            seeds=1,
            expert=Tuning(1500, 2e-5, batch=16, length=512),
            tuned=Tuning(1500, 2e-5, batch=16, length=512),
            lora=Tuning(1500, 1e-4, batch=16, length=512),
            rank=64,
            large="Qwen/Qwen2.5-7B",
            small="Qwen/Qwen2.5-0.5B",
            at_once=4,
        ),
    },
    claims=(
        Claim(DYNAMIC, LARGE, "accuracy", 0.02, says="The fused model beats the large one by more than two points, which was not trained."),
        Claim(DYNAMIC, EXPERT, "accuracy", 0.0, says="It beats the small expert."),
        Claim(DYNAMIC, EXPERT, "bits", 0.0, higher_is_better=False, says="It beats the small expert in bits, too."),
        Claim(DYNAMIC, HALF, "bits", 0.05, higher_is_better=False, says="The dynamic strength beats the fixed strength 0.5 by 0.05 bits."),
        Claim(DYNAMIC, MORE, "bits", 0.05, higher_is_better=False, says="It beats the fixed strength 1.5 by 0.05 bits."),
        Claim(DYNAMIC, PROXY, "bits", 0.0, higher_is_better=False, says="It beats the fixed strength 1, proxy tuning."),
        Claim(DYNAMIC, CHOSEN, "bits", 0.0, higher_is_better=False, says="It beats the fixed strength that is best on validation text."),
        Claim(DYNAMIC, None, "gap closed, ratio", 0.964, says="Its accuracy is 96.4 % of the tuned large model's, as in the abstract."),
        Claim(DYNAMIC, None, "gap closed, share", 0.5, says="It goes more than half of the way from the large model to the tuned one."),
        Claim(ONE, LARGE, "bits", 0.0, higher_is_better=False, says="With three experts and nobody to say which, it beats the large model."),
        Claim(ONE, None, "right expert", 0.5, says="The rule picks the right one of three experts more often than not."),
        Claim(ONE, MEAN, "bits", 0.0, higher_is_better=False, says="It beats the plain mean of all changes."),
        Claim(ONE, ALL_SMALL, "accuracy", 0.0, says="It beats a small model that was tuned on all domains."),
        Claim(ONE, None, "gap closed, ratio", 0.863, says="Its accuracy is 86.3 % of that of a large model tuned on all, as in the abstract."),
        Claim(ONE, ALL_LARGE, f"bits {UNSEEN}", 0.0, higher_is_better=False, says="On an unseen domain it beats the large model tuned on all."),
        Claim(
            ONE, ALL_LARGE, f"bits {GENERAL}", 0.0, higher_is_better=False, says="On general text it forgets less than the large model tuned on all."
        ),
        Claim(ROUTER, ALL_LARGE, f"bits {GENERAL}", 0.0, higher_is_better=False, says="On general text the router forgets less than that."),
        Claim(CUBE, ONE, "bits", 0.05, higher_is_better=False, says="A search over the whole cube repairs the choice."),
        Claim(ROUTER, None, "right expert", 0.8, says="A router over the last 64 characters finds the right expert four times in five."),
        Claim(ROUTER, ONE, "bits", 0.1, higher_is_better=False, says="Its fusion beats the published rule by 0.1 bits."),
        Claim(ROUTER, PROXY, "bits", -0.05, higher_is_better=False, says="It is within 0.05 bits of the expert that an oracle names."),
        Claim(SHOWN, READER, "bits", 0.0, higher_is_better=False, says="Examples in context help the large model that can read them."),
        Claim(SHOWN_FUSED, SHOWN, "bits", 0.05, higher_is_better=False, says="Fusion helps on top of examples in context."),
        Claim(SHOWN_FUSED, READER_FUSED, "bits", 0.0, higher_is_better=False, says="Examples in context help on top of fusion."),
        Claim(MERGED_FUSED, MERGED, "accuracy", 0.0, says="Fusing the merged expert beats task arithmetic alone."),
    ),
    run=run,
    units={
        **{f"bits{text}": "bits per character" for text in ("", *(f" {name}" for name in (*DOMAINS, UNSEEN, GENERAL)))},
        **{f"accuracy{text}": "share of the next tokens" for text in ("", *(f" {name}" for name in (*DOMAINS, UNSEEN, GENERAL)))},
        **{f"alpha{text}": "mean strength" for text in ("", *(f" {name}" for name in DOMAINS))},
        **{f"right expert{text}": "share of the tokens" for text in ("", *(f" {name}" for name in DOMAINS))},
        "gap closed, ratio": "accuracy over that of the tuned large model",
        "gap closed, share": "share of the way to the tuned large model",
    },
)


# ------------------------------------------------------------------------------------------------------------------------- what ships


@dataclass(frozen=True)
class ReaderRecipe:
    """How the shipped reader is made from the shipped large model.

    Attributes:
        base: the large model.
        steps, batch, length, learning_rate: of its training on the general corpus, in sequences.
    """

    base: Base = LARGE_BASE
    steps: int = 800
    batch: int = 8
    length: int = 512
    learning_rate: float = 1e-3
    width: int = 64
    seed: int = 0


@dataclass(frozen=True)
class ExpertsRecipe:
    """How the shipped experts are made from the shipped small model."""

    base: Base = SMALL_BASE
    tuning: Tuning = Tuning(500, 2e-3)
    characters: int = 200_000
    seed: int = 0


def _bits(model: nn.Module, tokens: Tensor) -> float:
    pieces = draw_stretches(tokens, 40, 100, stream(0, "measure"))
    return F.cross_entropy(logits_along(model, pieces, 100).flatten(0, 1), pieces[:, -100:].flatten()).item() / math.log(2)


def _measure_base(model: nn.Module) -> dict[str, float]:
    held_out = encode(reference_text().characters[LARGE_BASE.characters :])
    domains = {name: encode(domain_text(name, 200_000).split(validation=0.1, test=0.15)[2].characters) for name in DOMAINS}
    return {f"bits {name}": round(_bits(model, tokens), 4) for name, tokens in {GENERAL: held_out, **domains}.items()}


def _train_reader(recipe: ReaderRecipe, progress: str | None) -> nn.Module:
    reader = build_reader(recipe)
    reader.body.load_state_dict(load_shipped(LARGE_CHECKPOINT).state_dict())
    text = reference_text().first(recipe.base.characters).tokens
    return tune(
        reader,
        [text],
        Tuning(recipe.steps, recipe.learning_rate, batch=recipe.batch, length=recipe.length),
        stream(recipe.seed, "reader"),
        progress=progress,
    )


def build_reader(recipe: ReaderRecipe) -> Reader:
    """The untrained reader."""
    return Reader(build_base(recipe.base), width=recipe.width)


def build_experts(recipe: ExpertsRecipe) -> nn.ModuleDict:
    """Untrained experts, by domain."""
    return nn.ModuleDict({name: build_base(recipe.base) for name in DOMAINS})


def train_experts(recipe: ExpertsRecipe, progress: str | None) -> nn.ModuleDict:
    """The shipped small model, tuned on each domain."""
    small = load_shipped(SMALL_CHECKPOINT)
    tuned = {}
    for name in DOMAINS:
        train = encode(domain_text(name, recipe.characters).split(validation=0.1, test=0.15)[0].characters)
        tuned[name] = tune(small, [train], recipe.tuning, stream(recipe.seed, "expert", name), progress=progress and f"{progress}, {name}")
    return nn.ModuleDict(tuned)


def _measure_experts(experts: nn.Module) -> dict[str, float]:
    assert isinstance(experts, nn.ModuleDict)
    tests = {name: encode(domain_text(name, 200_000).split(validation=0.1, test=0.15)[2].characters) for name in DOMAINS}
    return {f"bits {name}": round(_bits(experts[name], tokens), 4) for name, tokens in tests.items()}


def _train_base(base: Base, progress: str | None) -> nn.Module:
    return pretrain(base, base.seed, progress=progress)


SMALL_CHECKPOINT = Checkpoint("logits_fusion-small", SMALL_BASE, build_base, _train_base, _measure_base)
LARGE_CHECKPOINT = Checkpoint("logits_fusion-large", LARGE_BASE, build_base, _train_base, _measure_base)
READER_CHECKPOINT = Checkpoint("logits_fusion-reader", ReaderRecipe(), build_reader, _train_reader, _measure_base)  # starts from the large one
EXPERTS_CHECKPOINT = Checkpoint("logits_fusion-experts", ExpertsRecipe(), build_experts, train_experts, _measure_experts)  # start from the small one
CHECKPOINTS = (SMALL_CHECKPOINT, LARGE_CHECKPOINT, READER_CHECKPOINT, EXPERTS_CHECKPOINT)
