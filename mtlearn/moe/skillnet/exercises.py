"""Exercises on SkillNet."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlearn.datasets.digits import digits
from mtlearn.explore.exercises import Exercise
from mtlearn.lab.checkpoints import load
from mtlearn.lab.fit import fit
from mtlearn.lab.seeds import seeded, stream
from mtlearn.moe.skillnet.experiment import CHECKPOINTS, Skilled
from mtlearn.moe.skillnet.method import SKILLS, Call, SkillNet, Task
from mtlearn.moe.skillnet.tasks import Data, image_inputs

Changes = Mapping[str, Mapping[str, float]]
ROWS = {"sound": ("sound", "general"), "image": ("image", "general"), "clip": ("video", "image", "general"), "code": ("code", "text", "general")}


def _drawn_changes(seed: int) -> Changes:
    values = torch.randn(len(ROWS), len(SKILLS), generator=stream(seed, "exercise", "lesions")) * 0.1
    return {call: dict(zip(SKILLS, row.tolist(), strict=True)) for call, row in zip(ROWS, values, strict=True)}


def _judge_reading(answer: Callable[[Changes, Mapping[str, Sequence[str]]], Mapping[str, str | None]]) -> str | None:
    for seed in range(6):
        changes = _drawn_changes(seed)
        if seed == 0:  # nothing foreign helps sound
            changes = {**changes, "sound": {skill: -abs(change) for skill, change in changes["sound"].items()}}
        given = answer(changes, ROWS)
        for call, row in ROWS.items():
            foreign = {skill: change for skill, change in changes[call].items() if skill not in row}
            best = max(foreign, key=lambda skill: foreign[skill])
            right = best if foreign[best] > 0 else None
            if given[call] != right:
                told = ", ".join(f"{skill} {change:+.2f}" for skill, change in changes[call].items())
                return f"{call} has {', '.join(row)} in its row, and the changes are {told}: expected {right!r}, got {given[call]!r}."
    return None


def _solve_reading() -> Any:
    def helpers(changes: Changes, rows: Mapping[str, Sequence[str]]) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for call, row in rows.items():
            # pressing a skill of the row switches it off, pressing any other switches it on: only the latter is foreign help
            foreign = {skill: change for skill, change in changes[call].items() if skill not in row}
            best = max(foreign, key=lambda skill: foreign[skill])
            found[call] = best if foreign[best] > 0 else None
        return found

    return helpers


def _wrong_reading(changes: Changes, rows: Mapping[str, Sequence[str]]) -> dict[str, str | None]:
    return {call: max(changes[call], key=lambda skill: changes[call][skill]) for call in rows}


def _judge_information(answer: Callable[[Tensor], float]) -> str | None:
    even, own = torch.full((5, 6), 1 / 6, dtype=torch.float64), torch.eye(6, dtype=torch.float64)[:5]
    halves = torch.zeros(4, 6, dtype=torch.float64)
    halves[:2, 0] = halves[2:, 3] = 1.0
    drawn = torch.rand(5, 6, generator=stream(0, "exercise", "usage"), dtype=torch.float64)
    drawn /= drawn.sum(1, keepdim=True)
    cases = (
        (even, 0.0, "every modality spreads its tokens evenly, so the expert tells nothing"),
        (own, 1.0, "every modality has an expert of its own, so the expert tells all"),
        (halves, 0.5, "two of four modalities share an expert, so it tells half (one of two bits)"),
        (drawn, _solve_information()(drawn), "shares drawn by chance"),
    )
    for usage, right, why in cases:
        given = float(answer(usage.clone()))
        if not abs(given - right) < 1e-6:
            return f"{why}: expected {right:.3f}, got {given:.3f}. Take 0 log 0 as 0, and divide by the log of the number of modalities."
    return None


def _solve_information() -> Any:
    def information(usage: Tensor) -> float:
        joint = usage / len(usage)  # P(modality, expert), all modalities equally often
        entropies = [torch.special.entr(p).sum() for p in (joint.sum(1), joint.sum(0), joint)]  # sums of -p log p, which is 0 at 0
        return float((entropies[0] + entropies[1] - entropies[2]) / torch.tensor(float(len(usage))).log())

    return information


def _wrong_information(usage: Tensor) -> float:
    return float(usage.max(1).values.mean())


MOST, ENOUGH, STEPS = 2000, 0.7, 300


def depth_net() -> SkillNet:
    """The shipped SkillNet with a sixth modality: a skill ``depth`` copied from the general one, a task with a head, an embedder."""
    found = load(CHECKPOINTS[0])
    assert isinstance(found, Skilled)
    net = deepcopy(found.net)
    with seeded(0):
        net.add_skill("depth")
        net.add_task("depth", Task("classify", (Call("depth", ("depth", "general")),), classes=10), Data().modalities()["image"])
    return net


def learn_depth(net: SkillNet, names: Sequence[str]) -> float:
    """Train the parameters ``names`` on 600 inverted digits, bright where there is no ink; the accuracy on 600 others."""
    order = torch.randperm(len(digits()), generator=stream(0, "exercise", "depth"))
    inputs, labels = image_inputs(1 - digits().images[order]), digits().labels[order]
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in names)
    draws = stream(0, "exercise", "batches")

    def loss_at(step: int) -> Tensor:
        rows = torch.randint(600, (32,), generator=draws)
        return F.cross_entropy(net.logits("depth", inputs.take(rows)), labels[rows])

    chosen = [p for p in net.parameters() if p.requires_grad]
    fit(net, loss_at, steps=STEPS, optimizer=torch.optim.Adam(chosen, lr=1e-2), schedule="cosine", warmup=10, clip=1.0)
    with torch.no_grad():
        found = net.logits("depth", inputs.take(torch.arange(600, 1200))).argmax(-1)
    return float((found == labels[600:1200]).double().mean())


def _judge_depth(answer: Callable[[SkillNet], Sequence[str]]) -> str | None:
    net = depth_net()
    names = list(answer(net))
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    if not names or (unknown := [name for name in names if name not in sizes]):
        return f"return names of net.named_parameters(), got {unknown if names else 'none'}."
    old = [name for name in names if "depth" not in name.split(".")]
    if old:
        return f"{old[0]} belongs to the old network: training it changes what the other five tasks say."
    count = sum(sizes[name] for name in names)
    if count > MOST:
        return f"these are {count:,} parameters, and fewer than {MOST:,} reach {ENOUGH:.0%}: are the new skill's own modules needed?"
    reached = learn_depth(net, names)
    if reached < ENOUGH:
        return f"these {count:,} parameters reach {reached:.0%}, not {ENOUGH:.0%}: what does the network need to read the new pictures?"
    return None


def _solve_depth() -> Any:
    def smallest(net: SkillNet) -> list[str]:
        # how a patch becomes a token, and how the answer is read; the copied skill may stay what the general one is
        own = ("embedders.depth.", "heads.depth.")
        return [name for name, _ in net.named_parameters() if name.startswith(own) and "hidden" not in name and "restore" not in name]

    return smallest


def _wrong_depth(net: SkillNet) -> list[str]:
    return [name for name, _ in net.named_parameters() if "depth" in name.split(".")]


EXERCISES = (
    Exercise(
        question="""**1. Read a lesion table.** A lesion table says how much a task's score changes when one skill of a call is switched over: off
where the call's row of the activation table has it, on where it has not. Write `helpers(changes, rows)`: `changes[call][skill]` is the change,
`rows[call]` the skills of the row. Return for each call the *foreign* skill that helps most when it is switched on, or `None` where none helps. Set
`answer` to the function.""",
        judge=_judge_reading,
        solve=_solve_reading,
        wrong=_wrong_reading,
        reason="Only switching on is foreign help: a gain from switching off a skill of the row says that the row lists one too many.",
    ),
    Exercise(
        question="""**2. Does a learned router rediscover the modalities?** `usage` is a table (modalities, experts) of shares: which part of a
modality's tokens visits which expert; rows sum to 1. Write `information(usage)`: the mutual information of modality and expert, with all modalities
equally frequent, divided by the logarithm of the number of modalities: 0 when the expert tells nothing about the modality, 1 when it tells all. Set
`answer` to the function.""",
        judge=_judge_information,
        solve=_solve_information,
        wrong=_wrong_information,
        reason="A hand-made table of private skills scores 1. The recorded router is far from it: it balances its experts over tokens of every kind.",
    ),
    Exercise(
        question="""**3. A sixth modality, with everything old frozen.** `exercises.depth_net()` is the shipped network with inverted digits as a
new modality: a skill `depth`, copied from the general one, an embedder and a head. Write `smallest(net)`: the names (of `net.named_parameters()`)
that must be trained to read the digits right in 70 % of the cases, without touching an old parameter. Fewer than 2,000 numbers will do.
`exercises.learn_depth(net, names)` tells what a set reaches. Set `answer` to the function.""",
        judge=_judge_depth,
        solve=_solve_depth,
        wrong=_wrong_depth,
        reason="An embedder and a head reach about 80 %: the frozen skills read strokes already. Training the new skill, too, adds some ten points "
        "for over 30,000 numbers. So a skill has a price, and it can be saved.",
    ),
)
