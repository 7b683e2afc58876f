r"""SkillNet: one Transformer whose parts are named skills; a table says which of them a task switches on.

Yong Dai, Duyu Tang, Liangxin Liu, Minghuan Tan, Cong Zhou, Jingquan Wang, Zhangyin Feng, Fan Zhang, Xueyu Hu, Shuming Shi, "One Model, Multiple
Modalities: A Sparsely Activated Approach for Text, Sound, Image, Video and Code", 2022, arXiv:2205.06126. There is no public code.

**Idea.** A mixture of experts is sparse because a learned router picks experts for each token. Here people do it: each layer holds one module
for each *skill* (text, image, sound, video, code, and a general one), and a table lists for every call of the encoder the set S of skills that it
needs. The others are not computed, get no gradient, and need not even be loaded.

**A layer** (pre-norm), with the active skills S:

.. math::
    Q = \tfrac1{|S|} \sum_{k \in S} (x W^Q_k + b^Q_k), \quad K, V \text{ alike}, \quad x \leftarrow x + W_o\, softmax(QK^\top/\sqrt{d_h})\,V \\
    x \leftarrow x + \tfrac1{|S|} \sum_{k \in S} FFN_k(x), \quad FFN_k(x) = W_{2,k}\, GELU(W_{1,k} x + b_{1,k}) + b_{2,k}

Norms, output projection and word embeddings are shared. **Merging.** The mean of projections is the projection by the mean matrix. The mean of
FFNs is not the FFN of the mean weights, but exactly *one* FFN of the width :math:`\sum_k d_k`: stack the :math:`W_{1,k}`, lay the
:math:`W_{2,k}/|S|` side by side. So an active path *is* a dense Transformer (:meth:`SkillLayer.merged`), and that is the fair dense baseline.

**Tasks.** Classification of a pooled state; speech by CTC on the frames; retrieval by two calls of the same network with two sets of skills and
the symmetric InfoNCE, :math:`\tfrac12 [CE(S/\tau) + CE(S^\top/\tau)]`. Each step draws a task, with probability :math:`\propto n_t^\alpha`.
Self-supervised pre-training hides tokens, patches or frames and restores them, with exactly the skills that the modality will use later
(:meth:`SkillNet.masked_loss`).

**What is ours.** We know the paper in part only, and rebuilt its sizes, details of its table and its losses from what we know of it and of its
siblings SkillNet-NLU (2203.03312) and SkillNet-NLG (2204.12184): the general skill; plain means; skills in FFN *and* query, key, value
(``skill_in``); no skill for matching alone; :math:`\alpha = 1/2`; the mean over the tokens instead of a class token (``pool="class"`` has one); no
queue of further negatives and no contrast of text and code in pre-training; hidden patches and frames are restored as they are, not as discrete
units.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["classify", "ctc", "retrieve"]
SkillIn = Literal["ffn", "qkv", "both"]
Pool = Literal["mean", "class"]
GENERAL, SHARED, MERGED = "general", "shared", "merged"  # the skill of every call; the one module where a part has no skills; a merged path


class Inputs(NamedTuple):
    """A batch of sequences: values (B, L) word numbers or (B, L, features), valid (B, L) bool, which is False at padding."""

    values: Tensor
    valid: Tensor

    def take(self, rows: Tensor) -> "Inputs":
        """The sequences of ``rows``."""
        return Inputs(self.values[rows], self.valid[rows])

    def trimmed(self) -> "Inputs":
        """Without the places at the end where every sequence has padding, which would only cost time."""
        longest = int(self.valid.any(0).nonzero().max()) + 1 if bool(self.valid.any()) else self.valid.shape[1]
        return Inputs(self.values[:, :longest], self.valid[:, :longest])


@dataclass(frozen=True)
class Call:
    """One call of the encoder: what comes in, and the skills that are switched on for it."""

    modality: str
    skills: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A row of the activation table.

    Attributes:
        kind: ``classify``, ``ctc`` or ``retrieve``.
        calls: one call; for retrieval two, the query's and the item's.
        classes: outputs of the head; for ``ctc`` with the blank, which is 0; none for retrieval.
    """

    kind: Kind
    calls: tuple[Call, ...]
    classes: int = 0


@dataclass(frozen=True)
class Modality:
    """How an input becomes tokens.

    Attributes:
        places: sizes of the axes of the positions: (24,) for words or frames, (rows, columns) for patches, (times, rows, columns) for clips.
        features: numbers of a patch or frame; 0 for words, which share one vocabulary.
        kernel, stride: of the convolution over frames that embeds sound; 1 and 1 is a linear map of each frame or patch.
    """

    places: tuple[int, ...]
    features: int = 0
    kernel: int = 1
    stride: int = 1


_TEXT = Call("text", ("text", GENERAL))
TABLE: Mapping[str, Task] = {  # who needs what: the heart of the method
    "text": Task("classify", (_TEXT,), classes=5),
    "sound": Task("ctc", (Call("sound", ("sound", GENERAL)),), classes=11),
    "image": Task("retrieve", (_TEXT, Call("image", ("image", GENERAL)))),
    "video": Task("retrieve", (_TEXT, Call("video", ("video", "image", GENERAL)))),  # frames are images
    "code": Task("retrieve", (_TEXT, Call("code", ("code", "text", GENERAL)))),
}
SKILLS = (GENERAL, "text", "image", "sound", "video", "code")


def without(table: Mapping[str, Task], skill: str) -> dict[str, Task]:
    """The table with ``skill`` switched off everywhere. ValueError where a call would be left without any."""
    calls = {name: tuple(replace(c, skills=tuple(s for s in c.skills if s != skill)) for c in task.calls) for name, task in table.items()}
    for name, changed in calls.items():
        if any(not call.skills for call in changed):
            raise ValueError(f"task {name!r} has a call with {skill!r} alone: give it another skill before {skill!r} is switched off")
    return {name: replace(task, calls=calls[name]) for name, task in table.items()}


def with_all(table: Mapping[str, Task], skills: Sequence[str]) -> dict[str, Task]:
    """The table with the same ``skills`` in every call: all of them, or a single one (which is a dense Transformer)."""
    return {name: replace(task, calls=tuple(replace(call, skills=tuple(skills)) for call in task.calls)) for name, task in table.items()}


def _weights(maps: nn.ModuleDict, active: Sequence[str]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of the active skills' linear maps."""
    chosen = [maps[skill] for skill in active]
    return [cast(nn.Linear, one).weight for one in chosen], [cast(nn.Linear, one).bias for one in chosen]


class SkillLinear(nn.Module):
    """The mean of the active skills' linear maps, computed as one product with the mean matrix."""

    def __init__(self, skills: Sequence[str], inner: int, outer: int) -> None:
        super().__init__()
        self.of = nn.ModuleDict({skill: nn.Linear(inner, outer) for skill in skills})

    def mean(self, active: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Mean weight (outer, inner) and mean bias (outer) of the active skills."""
        weights, biases = _weights(self.of, active)
        if len(active) == 1:
            return weights[0], biases[0]  # stacking would only cost time
        return torch.stack(weights).mean(0), torch.stack(biases).mean(0)

    def forward(self, x: Tensor, active: Sequence[str]) -> Tensor:
        """(..., inner) to (..., outer)."""
        return F.linear(x, *self.mean(active))


class SkillFFN(nn.Module):
    """The plain mean of the active skills' feed-forward networks, without a gate."""

    def __init__(self, skills: Sequence[str], width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({skill: nn.Linear(width, hidden) for skill in skills})
        self.outer = nn.ModuleDict({skill: nn.Linear(hidden, width) for skill in skills})

    def stacked(self, active: Sequence[str]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W1 (|S|, hidden, width), b1 (|S|, hidden), W2 (|S|, width, hidden), b2 (|S|, width) of the active skills."""
        (w1, b1), (w2, b2) = ([torch.stack(found) for found in _weights(maps, active)] for maps in (self.inner, self.outer))
        return w1, b1, w2, b2

    def concatenated(self, active: Sequence[str]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same as the weights of one wide FFN: W1 (|S| hidden, width), b1, W2 (width, |S| hidden) / |S|, mean b2."""
        w1, b1, w2, b2 = self.stacked(active)
        return w1.flatten(0, 1), b1.flatten(), w2.transpose(0, 1).flatten(1) / len(active), b2.mean(0)

    def forward(self, x: Tensor, active: Sequence[str]) -> Tensor:
        """(..., width) to the same shape."""
        w1, b1, w2, b2 = self.stacked(active)
        rows = x.flatten(0, -2).expand(len(active), -1, -1)  # (|S|, N, width)
        hidden = F.gelu(torch.baddbmm(b1[:, None], rows, w1.transpose(1, 2)))  # (|S|, N, hidden)
        return torch.baddbmm(b2[:, None], hidden, w2.transpose(1, 2)).mean(0).view(x.shape)


class SkillLayer(nn.Module):
    """One pre-norm Transformer layer with a module for each skill.

    Args:
        skills: their names.
        width: d.
        heads: attention heads; they divide the width.
        hidden: width of one skill's FFN.
        skill_in: where skills live; a part without skills has one module for all.
    """

    def __init__(self, skills: Sequence[str], width: int, heads: int, hidden: int, skill_in: SkillIn = "both") -> None:
        super().__init__()
        self.heads, self.skill_in = heads, skill_in
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = SkillLinear((SHARED,) if skill_in == "ffn" else skills, width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ffn = SkillFFN((SHARED,) if skill_in == "qkv" else skills, width, hidden)

    def in_attention(self, active: Sequence[str]) -> Sequence[str]:
        """The modules of query, key and value that are active."""
        return (SHARED,) if self.skill_in == "ffn" else active

    def in_ffn(self, active: Sequence[str]) -> Sequence[str]:
        """The feed-forward modules that are active."""
        return (SHARED,) if self.skill_in == "qkv" else active

    def forward(self, x: Tensor, mask: Tensor | None, active: Sequence[str]) -> Tensor:
        """States (B, L, d) to the same shape.

        Args:
            x: states.
            mask: (B, 1, 1, L) bool, True at tokens that may be attended to; None where all may.
            active: S.
        """
        projected = self.qkv(self.attention_norm(x), self.in_attention(active))
        split = projected.view(*x.shape[:2], 3, self.heads, -1)  # (B, L, 3, heads, d / heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (B, heads, L, d / heads)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        result: Tensor = x + self.ffn(self.ffn_norm(x), self.in_ffn(active))
        return result

    @torch.no_grad()
    def merged(self, active: Sequence[str]) -> "SkillLayer":
        """The dense layer that this one is when ``active`` are on: one skill, mean Q, K, V, and an FFN |S| times as wide."""
        w1, b1, w2, b2 = self.ffn.concatenated(self.in_ffn(active))
        dense = SkillLayer((MERGED,), len(self.out.weight), self.heads, len(b1))
        dense.to(w1)
        for name in ("attention_norm", "ffn_norm", "out"):
            getattr(dense, name).load_state_dict(getattr(self, name).state_dict())
        targets = (dense.qkv.of[MERGED], dense.ffn.inner[MERGED], dense.ffn.outer[MERGED])
        for target, (weight, bias) in zip(targets, (self.qkv.mean(self.in_attention(active)), (w1, b1), (w2, b2)), strict=True):
            target.load_state_dict({"weight": weight, "bias": bias})
        return dense


class Embedder(nn.Module):
    """Tokens of one modality: words by the shared table, patches and frames by a linear map or a convolution, plus a position for each axis."""

    def __init__(self, modality: Modality, width: int, scale: float) -> None:
        super().__init__()
        self.modality, features = modality, modality.features
        self.length = int(torch.tensor(modality.places).prod())
        self.places = nn.ParameterList([scale * torch.randn(size, width) for size in modality.places])
        if features:
            self.project = nn.Conv1d(features, width, modality.kernel, modality.stride, padding=(modality.kernel - 1) // 2)
            self.hidden = nn.Parameter(torch.zeros(features))  # what stands in the place of a hidden patch or frame
            self.restore = nn.Linear(width, modality.stride * features)

    def positions(self, length: int) -> Tensor:
        """(length, d): the sum of one vector of each axis, row by row."""
        grid = torch.zeros(1, 1, device=self.places[0].device)
        for axis in self.places:  # one to three axes
            grid = (grid[:, None] + axis).flatten(0, 1)  # (places so far, d)
        return grid[:length]

    def forward(self, inputs: Inputs, words: nn.Embedding | None) -> Inputs:
        """Tokens (B, L / stride, d) and which of them are valid."""
        values, valid = inputs
        if self.modality.features == 0:
            assert words is not None
            tokens = words(values)
        else:
            clean = values.masked_fill(~valid[..., None], 0.0)  # a convolution would else see the padding
            tokens = self.project(clean.transpose(1, 2)).transpose(1, 2)
            valid = valid.view(len(valid), -1, self.modality.stride).any(-1)
        return Inputs(tokens + self.positions(tokens.shape[1]), valid)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a SkillNet.

    Attributes:
        width: d.
        heads: of attention.
        layers: their number.
        hidden: width of one skill's FFN.
        words: of the vocabulary that text and code share; 0 is padding, 1 an unknown word, 2 a hidden one.
        skill_in: where skills live.
        pool: ``mean`` over the valid tokens, or a ``class`` token.
        temperature: tau of retrieval at the start.
        learned_temperature: whether it is learned.
        scale: standard deviation of embeddings at the start.
    """

    width: int = 48
    heads: int = 4
    layers: int = 2
    hidden: int = 96
    words: int = 2000
    skill_in: SkillIn = "both"
    pool: Pool = "mean"
    temperature: float = 0.07
    learned_temperature: bool = False
    scale: float = 0.3

    def __post_init__(self) -> None:
        if self.skill_in not in get_args(SkillIn) or self.pool not in get_args(Pool):
            raise ValueError(f"skill_in must be one of ffn, qkv, both and pool one of mean, class, got {self.skill_in!r} and {self.pool!r}")
        if min(self.width, self.heads, self.layers, self.hidden) < 1 or self.width % self.heads:
            raise ValueError(f"sizes must be at least 1 and heads divide width, got {self}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")


PAD, UNKNOWN, HIDDEN = 0, 1, 2  # word numbers


class SkillNet(nn.Module):
    """The network, its activation table and its heads.

    Args:
        table: tasks and, for each of their calls, modality and active skills.
        modalities: how each modality becomes tokens.
        skills: all skills, in the order of the parameters.
        sizes: of everything else.

    Raises:
        ValueError: a call names an unknown skill or modality, no skill, or one twice; a task has the wrong number of calls.
    """

    def __init__(
        self, table: Mapping[str, Task], modalities: Mapping[str, Modality], skills: Sequence[str] = SKILLS, sizes: Sizes | None = None
    ) -> None:
        super().__init__()
        sizes = sizes or Sizes()
        self.table, self.skills, self.sizes = dict(table), tuple(skills), sizes
        if not table or len(set(skills)) < len(skills):
            raise ValueError(f"a table with at least one task and different skills are needed, got {list(table)} and {list(skills)}")
        for name, task in table.items():
            _check_task(name, task, modalities)
            for call in task.calls:
                self.check_skills(call.skills)
        used = [name for name in modalities if any(call.modality == name for task in table.values() for call in task.calls)]
        worded = any(modalities[name].features == 0 for name in used)
        self.words = nn.Embedding(sizes.words, sizes.width) if worded else None
        if self.words is not None:
            nn.init.normal_(self.words.weight, std=sizes.scale)
        self.embedders = nn.ModuleDict({name: Embedder(modalities[name], sizes.width, sizes.scale) for name in used})
        self.class_token = nn.Parameter(sizes.scale * torch.randn(sizes.width)) if sizes.pool == "class" else None
        self.layers = nn.ModuleList(SkillLayer(skills, sizes.width, sizes.heads, sizes.hidden, sizes.skill_in) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)
        self.heads = nn.ModuleDict({name: nn.Linear(sizes.width, task.classes) for name, task in table.items() if task.classes})
        log = torch.tensor(sizes.temperature).log()
        if sizes.learned_temperature:
            self.log_temperature = nn.Parameter(log)
        else:
            self.register_buffer("log_temperature", log, persistent=False)

    # -- the table

    def check_skills(self, skills: Sequence[str]) -> None:
        """ValueError where a set of active skills is empty, or has an unknown skill or one twice."""
        if not skills:
            raise ValueError(f"at least one skill must be active; there are {', '.join(self.skills)}")
        if unknown := [skill for skill in skills if skill not in self.skills]:
            raise ValueError(f"there is no skill {unknown[0]!r}; there are {', '.join(self.skills)}")
        if len(set(skills)) < len(skills):
            raise ValueError(f"each skill can be switched on once, got {', '.join(skills)}")

    def row(self, task: str) -> Task:
        """The task's row of the table. ValueError lists the tasks."""
        if task not in self.table:
            raise ValueError(f"task {task!r} has no row in the activation table; there are {', '.join(self.table)}")
        return self.table[task]

    # -- forward

    def encode(self, modality: str, inputs: Inputs, skills: Sequence[str]) -> Inputs:
        """States (B, L, d) and which are valid, with ``skills`` switched on; a class token, where there is one, stands first.

        Raises:
            ValueError: unknown modality or skills, a sequence longer than the positions, or one without a valid token.
        """
        self.check_skills(skills)
        self._check_inputs(modality, inputs)
        return _encode(self, self.embedders[modality], inputs, skills)

    def embed(self, task: str, side: int, inputs: Inputs, skills: Sequence[str] | None = None) -> Tensor:
        """One vector a sequence (B, d): of call number ``side`` of a task, with its row's skills or others."""
        call = self.row(task).calls[side]
        words = inputs.values.dim() == 2  # patches and frames are never cut off: a convolution counts in steps
        states, valid = self.encode(call.modality, inputs.trimmed() if words else inputs, call.skills if skills is None else skills)
        return _pool(self, states, valid)

    def logits(self, task: str, inputs: Inputs, skills: Sequence[str] | None = None) -> Tensor:
        """Class scores: (B, classes) of a classification task, (B, frames, classes) of speech."""
        row = self.row(task)
        if row.kind == "retrieve":
            raise ValueError(f"task {task!r} is a retrieval task: compare embed(task, 0, queries) with embed(task, 1, items)")
        if row.kind == "classify":
            found: Tensor = self.heads[task](self.embed(task, 0, inputs, skills))
            return found
        states, _ = self.encode(row.calls[0].modality, inputs, row.calls[0].skills if skills is None else skills)
        frames: Tensor = self.heads[task](states[:, 0 if self.class_token is None else 1 :])
        return frames

    def frames(self, task: str, inputs: Inputs) -> Tensor:
        """(B,) number of valid output frames of a speech task."""
        embedder = self.embedders[self.row(task).calls[0].modality]
        assert isinstance(embedder, Embedder)
        return inputs.valid.view(len(inputs.valid), -1, embedder.modality.stride).any(-1).sum(1)

    # -- losses

    def loss(self, task: str, calls: Sequence[Inputs], labels: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The task's own loss of a batch.

        Args:
            task: a row of the table.
            calls: the inputs of its calls.
            labels: classes (B,); for ``ctc`` sequences (B, longest) of numbers from 1; for ``retrieve`` groups (B,): another item of the same group
                is no negative.
            lengths: (B,) of the sequences, for ``ctc``.
        """
        row = self.row(task)
        if row.kind == "classify":
            return F.cross_entropy(self.logits(task, calls[0]), labels)
        if row.kind == "ctc":
            assert lengths is not None
            return ctc_loss(self.logits(task, calls[0]), labels, frames=self.frames(task, calls[0]), lengths=lengths)
        query, item = (self.embed(task, side, inputs) for side, inputs in enumerate(calls))
        return info_nce(query, item, groups=labels, temperature=self.log_temperature.exp())

    def masked_loss(self, task: str, side: int, inputs: Inputs, hidden: Tensor) -> Tensor:
        """Self-supervised loss of one call: restore what is hidden, with the call's own skills.

        Words are hidden by one word and restored by the shared table (cross-entropy); patches and frames by one vector, restored as they are (mean
        square).

        Args:
            task: a row of the table.
            side: number of the call.
            inputs: a batch.
            hidden: (B, L) bool; at padding it is of no account.
        """
        call = self.row(task).calls[side]
        embedder = self.embedders[call.modality]
        assert isinstance(embedder, Embedder)
        hidden = hidden & inputs.valid
        if not bool(hidden.any()):
            raise ValueError("hidden must mark at least one valid token")
        if embedder.modality.features == 0:
            assert self.words is not None
            states, _ = self.encode(call.modality, Inputs(inputs.values.masked_fill(hidden, HIDDEN), inputs.valid), call.skills)
            return F.cross_entropy(self._tokens(states)[hidden] @ self.words.weight.T, inputs.values[hidden])
        values = torch.where(hidden[..., None], embedder.hidden, inputs.values)
        states, _ = self.encode(call.modality, Inputs(values, inputs.valid), call.skills)
        restored = embedder.restore(self._tokens(states)).view(inputs.values.shape)  # (B, L, features)
        return F.mse_loss(restored[hidden], inputs.values[hidden])

    def _tokens(self, states: Tensor) -> Tensor:
        return states if self.class_token is None else states[:, 1:]

    # -- what is active

    def activated(self, task: str) -> list[str]:
        """Names of the parameters that a task's loss uses: shared ones, the active skills' modules, its embedders and its head."""
        row = self.row(task)
        active = {skill for call in row.calls for skill in call.skills} | {SHARED}
        modalities = {call.modality for call in row.calls}
        names = []
        for name, _ in self.named_parameters():
            parts = name.split(".")
            if parts[0] == "layers":
                keep = parts[2] not in ("qkv", "ffn") or parts[4] in active
            elif parts[0] == "embedders":
                keep = parts[1] in modalities and parts[2] not in ("hidden", "restore")  # those two serve pre-training
            elif parts[0] == "heads":
                keep = parts[1] == task
            elif parts[0] == "words":
                keep = any(cast(Embedder, self.embedders[m]).modality.features == 0 for m in modalities)
            else:
                keep = parts[0] in ("norm", "class_token") or row.kind == "retrieve"  # the last: a learned temperature
            names += [name] if keep else []
        return names

    def activated_size(self, task: str) -> int:
        """Activated parameters of a task: shared + |S| modules a layer (the union over its calls) + its embedders and head."""
        sizes = dict(self.named_parameters())
        return sum(sizes[name].numel() for name in self.activated(task))

    def path(self, task: str) -> "SkillNet":
        """The active path of a task as a network of its own: inactive skills, other embedders and other heads are deleted."""
        row = self.row(task)
        active = {skill for call in row.calls for skill in call.skills}
        modalities = {name: e.modality for name, e in self.embedders.items() if isinstance(e, Embedder)}
        part = SkillNet({task: row}, modalities, [skill for skill in self.skills if skill in active], self.sizes).to(self.norm.weight)
        whole = self.state_dict()
        part.load_state_dict({name: whole[name] for name in part.state_dict()})
        return part.train(self.training)

    def merged(self, task: str, side: int = 0) -> "Tower":
        """One call of a task as a dense Transformer: skills merged, nothing to switch."""
        return Tower(self, self.row(task).calls[side])

    @torch.no_grad()
    def add_skill(self, name: str, like: str = GENERAL) -> None:
        """Add a skill, a copy of ``like``: {like, name} then computes what {like} does. No row of the table has it yet.

        Raises:
            ValueError: ``like`` is unknown or ``name`` is taken.
        """
        self.check_skills((like,))
        if name in self.skills:
            raise ValueError(f"there is a skill {name!r} already; there are {', '.join(self.skills)}")
        for layer in self.layers:
            assert isinstance(layer, SkillLayer)
            for modules in (layer.qkv.of, layer.ffn.inner, layer.ffn.outer):
                if like in modules:  # a part without skills has only the shared module
                    modules[name] = deepcopy(modules[like])
        self.skills = (*self.skills, name)

    @torch.no_grad()
    def add_task(self, name: str, task: Task, modality: Modality | None = None) -> None:
        """Add a row to the table, with a head and, where its last call has a new modality, an embedder.

        Raises:
            ValueError: the name is taken, or the row does not fit.
        """
        if name in self.table:
            raise ValueError(f"task {name!r} has a row already")
        known = {key: e.modality for key, e in self.embedders.items() if isinstance(e, Embedder)}
        new = {task.calls[-1].modality: modality} if modality is not None and task.calls else {}
        _check_task(name, task, {**new, **known})
        for call in task.calls:
            self.check_skills(call.skills)
        for key, value in new.items():
            if key not in known:
                self.embedders[key] = Embedder(value, self.sizes.width, self.sizes.scale).to(self.norm.weight)
        if task.classes:
            self.heads[name] = nn.Linear(self.sizes.width, task.classes).to(self.norm.weight)
        self.table[name] = task

    def _check_inputs(self, modality: str, inputs: Inputs) -> None:
        if modality not in self.embedders:
            raise ValueError(f"there is no modality {modality!r}; there are {', '.join(self.embedders)}")
        embedder = self.embedders[modality]
        assert isinstance(embedder, Embedder)
        stride, longest = embedder.modality.stride, embedder.modality.stride * embedder.length
        length = inputs.values.shape[1]
        if length > longest or length % stride:
            raise ValueError(f"{modality} takes at most {longest} tokens, in steps of {stride}, got {length}")
        if not bool(inputs.valid.any(1).all()):
            row = int((~inputs.valid.any(1)).nonzero()[0])
            raise ValueError(f"sequence {row} of the batch has no valid token: leave it out")


def _encode(net: "SkillNet | Tower", embedder: nn.Module, inputs: Inputs, skills: Sequence[str]) -> Inputs:
    x, valid = embedder(inputs, net.words)
    if net.class_token is not None:
        x = torch.cat([net.class_token.expand(len(x), 1, -1), x], 1)
        valid = F.pad(valid, (1, 0), value=True)
    mask = None if bool(valid.all()) else valid[:, None, None, :]
    for layer in net.layers:
        x = layer(x, mask, skills)
    return Inputs(net.norm(x), valid)


def _pool(net: "SkillNet | Tower", states: Tensor, valid: Tensor) -> Tensor:
    if net.class_token is not None:
        return states[:, 0]
    weight = valid[..., None].to(states)
    return (states * weight).sum(1) / weight.sum(1)


def _check_task(name: str, task: Task, modalities: Mapping[str, Modality]) -> None:
    if task.kind not in get_args(Kind):
        raise ValueError(f"task {name!r}: kind must be one of {', '.join(get_args(Kind))}, got {task.kind!r}")
    calls, heads = (2, 0) if task.kind == "retrieve" else (1, 1)
    if len(task.calls) != calls or (task.classes > 0) != bool(heads):
        wanted = "two calls and no classes" if calls == 2 else "one call and at least one class"
        raise ValueError(f"task {name!r} is of kind {task.kind!r} and needs {wanted}, got {len(task.calls)} and {task.classes}")
    for call in task.calls:
        if call.modality not in modalities:
            raise ValueError(f"task {name!r} reads {call.modality!r}; there are {', '.join(modalities)}")


class Tower(nn.Module):
    """A merged active path: embedder, dense layers, norm and pooling of one call."""

    def __init__(self, net: SkillNet, call: Call) -> None:
        super().__init__()
        self.embedder = deepcopy(net.embedders[call.modality])
        self.words = deepcopy(net.words)
        self.class_token = deepcopy(net.class_token)
        self.layers = nn.ModuleList(cast(SkillLayer, layer).merged(call.skills) for layer in net.layers)
        self.norm = deepcopy(net.norm)

    def forward(self, inputs: Inputs) -> Tensor:
        """One vector a sequence (B, d)."""
        return _pool(self, *_encode(self, self.embedder, inputs, (MERGED,)))


def ctc_loss(logits: Tensor, labels: Tensor, *, frames: Tensor, lengths: Tensor) -> Tensor:
    """Connectionist temporal classification: minus the log probability of all ways to stretch the labels over the frames, mean over labels and batch.

    Args:
        logits: (B, frames, classes); class 0 is the blank.
        labels: (B, longest) from 1.
        frames: (B,) how many frames count.
        lengths: (B,) how many labels count.

    Raises:
        ValueError: a sequence has too few frames for its labels (equal neighbours need a blank between them).
    """
    place = torch.arange(labels.shape[1] - 1, device=labels.device)
    repeats = ((labels[:, 1:] == labels[:, :-1]) & (place + 1 < lengths[:, None])).sum(1)
    if bool((short := frames < lengths + repeats).any()):
        row = int(short.nonzero()[0])
        raise ValueError(
            f"sequence {row} has {int(frames[row])} frames for {int(lengths[row])} labels with {int(repeats[row])} repeats: "
            f"CTC needs at least {int(lengths[row] + repeats[row])} frames"
        )
    return F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), labels, frames, lengths)


def greedy_decode(logits: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """The best path of CTC: the best class of each frame, repeats joined, blanks left out.

    Args:
        logits: (B, frames, classes).
        frames: (B,) how many frames count.

    Returns:
        labels (B, frames), 0 behind the end, and their number (B,).
    """
    best = logits.argmax(-1)
    best = best.masked_fill(torch.arange(best.shape[1], device=best.device) >= frames[:, None], 0)
    keep = (best != 0) & (best != F.pad(best, (1, 0))[:, :-1])
    order = (~keep).to(torch.uint8).argsort(dim=1, stable=True)  # those that are kept come first, in their order
    return (best * keep).gather(1, order), keep.sum(1)


def info_nce(query: Tensor, item: Tensor, *, groups: Tensor | None = None, temperature: float | Tensor = 0.07) -> Tensor:
    """Symmetric contrastive loss of pairs: each query must find its item among the batch, and each item its query.

    Args:
        query: (B, d).
        item: (B, d), row i belongs to query i.
        groups: (B,); another pair of the same group is a right answer too, so it is left out of the negatives.
        temperature: tau.

    Raises:
        ValueError: a batch of one pair, whose loss is 0 whatever the vectors.
    """
    if len(query) < 2:
        raise ValueError(f"retrieval needs a batch of at least 2 pairs to have negatives, got {len(query)}")
    similarity = F.normalize(query, dim=-1) @ F.normalize(item, dim=-1).T / temperature  # (B, B)
    if groups is not None:
        same = (groups[:, None] == groups) & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
        similarity = similarity.masked_fill(same, float("-inf"))
    right = torch.arange(len(query), device=query.device)
    return (F.cross_entropy(similarity, right) + F.cross_entropy(similarity.T, right)) / 2


def task_probabilities(sizes: Mapping[str, int], alpha: float = 0.5) -> dict[str, float]:
    """How often each task is drawn: proportional to its number of examples to the power alpha (0: equally often, 1: by size)."""
    if not sizes or min(sizes.values()) < 1 or not 0 <= alpha <= 1:
        raise ValueError(f"every task needs an example and alpha must lie in [0, 1], got {dict(sizes)} and alpha={alpha}")
    weights = {name: float(n**alpha) for name, n in sizes.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def task_schedule(sizes: Mapping[str, int], steps: int, *, alpha: float = 0.5, generator: torch.Generator | None = None) -> list[str]:
    """The task of each step: each comes as often as its probability says, to within one step, in random order."""
    shares = torch.tensor(list(task_probabilities(sizes, alpha).values()), dtype=torch.float64) * steps
    counts = shares.floor().long()
    counts[(counts - shares).argsort(stable=True)[: steps - int(counts.sum())]] += 1  # the largest remainders get the steps that are left
    names = [name for name, count in zip(sizes, counts.tolist(), strict=True) for _ in range(count)]
    return [names[i] for i in torch.randperm(steps, generator=generator).tolist()]
