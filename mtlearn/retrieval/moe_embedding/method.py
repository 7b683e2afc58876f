r"""Experts for fields: a pretrained text encoder whose perceptrons become one expert a domain, by enforced routing.

Hallee, Kapur, Patel, Gleghorn and Khomtchouk, *Contrastive Learning and Mixture of Experts Enables Precise Vector Embeddings*, arXiv 2401.15713
(version 1), 2024.

A general encoder calls all papers of a narrow field similar. Fine-tuned on one field it is good there and spoils the others. Here one network holds a
specialist for each field:

1. **Pairs by co-citation** (:func:`co_cited`): two texts are similar where a third one cites both.
2. **Extension** (:func:`extend`): in all layers, or in one, the perceptron is replaced by E copies of itself; attention and norms stay shared. Right
   after it the function is the old one, whatever the routes are. An expert may be enlarged to a gated unit (:class:`GatedExperts`),

   .. math:: \mathrm{expert}(x) = W_{down}\,[\mathrm{GELU}(W_{up} x) \odot (W_g x + b_g)], \qquad W_g = 0,\ b_g = 1 \text{ at the start.}

3. **Enforced routing by sentence**: all tokens of a text go to one expert, that of its domain. The domain is said (``assignment``), or a router is
   trained to say it: logits linear in each token, their mean over the text, and the largest one wins. The winner is not multiplied by a gate, so
   the contrastive loss gives the router nothing; the cross-entropy against the domain does (:func:`router_loss`).
4. **Domain tokens** (:func:`with_domain_tokens`, :func:`mark`): the first token of a text names its domain.
5. **Multiple negatives ranking** (:func:`ranking_loss`), or its variant with two directions and targets that see near duplicates
   (:func:`clip_loss`).

:func:`f1_max` measures. What differs from the paper: the experts stand where the old perceptron stood, before or after the norm as it did (the public
code of version 1 wraps it anew, which changes the function of a BERT); domain tokens may start with noise; equal keys of a batch can be masked.
"""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlearn.layers.attention import TransformerLayer
from mtlearn.layers.contrastive import info_nce
from mtlearn.layers.experts import (
    Experts,
    Router,
    Routes,
    combine,
    dispatch,
    forced_routes,
    grouped_linear,
    joint_distribution,
    mutual_information,
    switch_loss,
    top_k_routes,
)
from mtlearn.layers.text_encoders import Pooling, TokenEncoder, masked_mean, pool

Which = Literal["all", "middle"]
Level = Literal["sentence", "token"]

# ---------------------------------------------------------------------------------------------------------------------------------- experts


class GatedExperts(Experts):
    """Experts whose hidden units are multiplied by a gate that is linear in the token and starts at 1.

    Args:
        num_experts: E.
        width: of a token.
        hidden: units of one expert.
    """

    def __init__(self, num_experts: int, width: int, hidden: int) -> None:
        super().__init__(num_experts, width, hidden)
        self.gate = nn.Parameter(torch.zeros(num_experts, width, hidden))  # W_g
        self.gate_bias = nn.Parameter(torch.ones(num_experts, hidden))  # b_g

    def forward(self, x: Tensor, routes: Routes) -> Tensor:
        """(tokens, width) to the same shape."""
        order, counts = dispatch(routes)
        visits = x.index_select(0, routes.token[order])
        hidden = F.gelu(grouped_linear(visits, self.first, self.first_bias, counts))
        hidden = hidden * grouped_linear(visits, self.gate, self.gate_bias, counts)
        return combine(grouped_linear(hidden, self.second, self.second_bias, counts), routes, order)


def copies(feed: nn.Sequential, num_experts: int, *, gated: bool = False) -> Experts:
    """E experts that are each the perceptron ``feed`` (Linear, GELU, Linear) of a transformer layer."""
    first, second = cast(nn.Linear, feed[0]), cast(nn.Linear, feed[2])
    experts = (GatedExperts if gated else Experts)(num_experts, first.in_features, first.out_features).to(first.weight.device, first.weight.dtype)
    with torch.no_grad():
        experts.first.copy_(first.weight.T)
        experts.first_bias.copy_(first.bias)
        experts.second.copy_(second.weight.T)
        experts.second_bias.copy_(second.bias)
    return experts


@dataclass(frozen=True)
class Encoded:
    """What an extended encoder gives.

    Attributes:
        states: (n, length, width), the last ones.
        logits: (n, E) of each extended layer that has a router, means over the text's tokens.
        routes: of each extended layer, over n * length tokens.
    """

    states: Tensor
    logits: tuple[Tensor, ...]
    routes: tuple[Routes, ...]


class MixtureEncoder(nn.Module):
    """An encoder whose perceptrons are experts; :func:`extend` makes it of a pretrained one. It is a body for a bi-encoder where it has a router.

    Args:
        body: a copy of the pretrained encoder; the perceptrons of ``layers`` are taken out of it.
        num_experts: E.
        layers: the numbers of the layers that get experts.
        router: whether the layers have a router.
        gated: see :class:`GatedExperts`.
        k: experts of a text where the router chooses; with 1 the choice is hard, with more a sum weighted by the softmax over the k.
        level: whether the router chooses for a text or for each token.
    """

    def __init__(
        self,
        body: TokenEncoder,
        num_experts: int,
        layers: Sequence[int],
        *,
        router: bool = False,
        gated: bool = False,
        k: int = 1,
        level: Level = "sentence",
    ) -> None:
        super().__init__()
        self.num_experts, self.k, self.level = num_experts, k, level
        self.width, self.padding = body.width, body.padding
        self.body = body
        self.experts, self.routers = nn.ModuleDict(), nn.ModuleDict()
        device = body.token.weight.device
        for number in layers:
            layer = cast(TransformerLayer, body.transformer.layers[number])
            self.experts[str(number)] = copies(layer.feed, num_experts, gated=gated)
            layer.feed = nn.Sequential()  # its weights live on in the experts
            if router:
                self.routers[str(number)] = Router(body.width, num_experts).to(device)

    def encode(self, tokens: Tensor, assignment: Tensor | None = None) -> Encoded:
        """Tokens (n, length) to states, by the experts of ``assignment`` or by those that the router chooses.

        Args:
            tokens: int64.
            assignment: (n,) int64, the expert of each text.

        Raises:
            ValueError: an expert outside 0..E-1, not one expert a text, a text of padding alone, neither an assignment nor a router.
        """
        seen = tokens != self.padding
        if not seen.any(-1).all():
            raise ValueError(f"text {int((~seen.any(-1)).nonzero()[0])} is empty: every text needs at least one token")
        if assignment is not None:
            check_domains("assignment", assignment, len(tokens), self.num_experts)
        elif not self.routers:
            raise ValueError(f"say the expert of each text (assignment, 0 to {self.num_experts - 1}): this encoder has no router")
        x = self.body.embed(tokens)
        logits: list[Tensor] = []
        routes: list[Routes] = []
        for number, layer in enumerate(self.body.transformer.layers):
            assert isinstance(layer, TransformerLayer)
            if str(number) not in self.experts:
                x = layer(x, seen)
                continue
            first, second = layer.norms
            x = x + layer.attention(first(x), seen) if layer.norm_first else first(x + layer.attention(x, seen))
            inputs = second(x) if layer.norm_first else x  # where the old perceptron stood
            found = self._route(inputs, seen, assignment, number, logits)
            change = self.experts[str(number)](inputs.flatten(0, 1), found).view_as(x)
            x = x + change if layer.norm_first else second(x + change)
            routes.append(found)
        return Encoded(self.body.transformer.norm(x), tuple(logits), tuple(routes))

    def _route(self, inputs: Tensor, seen: Tensor, assignment: Tensor | None, number: int, logits: list[Tensor]) -> Routes:
        """Routes of all tokens of one layer; its sentence logits are added to ``logits`` where there is a router."""
        length = inputs.shape[1]
        if self.routers:
            by_token = self.routers[str(number)](inputs.flatten(0, 1))  # (n * length, E)
            mean = masked_mean(by_token.unflatten(0, inputs.shape[:2]), seen)  # (n, E)
            logits.append(mean)
            if assignment is None and self.level == "token":
                return top_k_routes(by_token, self.k, renormalise=True)
            if assignment is None and self.k > 1:
                chosen = top_k_routes(mean, self.k, renormalise=True)
                expert, gate = chosen.expert.view(-1, self.k), chosen.gate.view(-1, self.k)
                return forced_routes(expert.repeat_interleave(length, 0), self.num_experts, gate=gate.repeat_interleave(length, 0))
            if assignment is None:
                assignment = mean.argmax(-1)
        assert assignment is not None
        return forced_routes(assignment.repeat_interleave(length), self.num_experts)

    def forward(self, tokens: Tensor, assignment: Tensor | None = None) -> Tensor:
        """The last states (n, length, width)."""
        return self.encode(tokens, assignment).states

    def embed(self, tokens: Tensor, assignment: Tensor | None = None, *, pooling: Pooling = "mean") -> Tensor:
        """Vectors (n, width), not normalised."""
        return pool(self(tokens, assignment), tokens != self.padding, pooling)


def extend(
    body: TokenEncoder | MixtureEncoder,
    num_experts: int,
    *,
    layers: Which | Sequence[int] = "all",
    router: bool = False,
    gated: bool = False,
    k: int = 1,
    level: Level = "sentence",
) -> MixtureEncoder:
    """A pretrained encoder with E copies of its perceptrons in the place of each; the encoder that is given stays as it is.

    Args:
        body: the pretrained encoder.
        num_experts: E.
        layers: all, the middle one (number N / 2), or numbers.
        router: see :class:`MixtureEncoder`, as for the next three.
        gated: whether experts are gated units.
        k: experts of a text where the router chooses.
        level: what the router chooses for.

    Raises:
        ValueError: an encoder that has experts already, a number out of range, an unknown word.
    """
    if isinstance(body, MixtureEncoder):
        raise ValueError(f"this encoder has {body.num_experts} experts already: extend a plain TokenEncoder, once")
    if num_experts < 1:
        raise ValueError(f"num_experts must be at least 1, got {num_experts}")
    if not 1 <= k <= num_experts:
        raise ValueError(f"k must be between 1 and num_experts={num_experts}, got {k}")
    if level not in get_args(Level):
        raise ValueError(f"level must be 'sentence' or 'token', got {level!r}")
    total = len(body.transformer.layers)
    if isinstance(layers, str):
        if layers not in get_args(Which):
            raise ValueError(f"layers must be 'all', 'middle' or numbers, got {layers!r}")
        layers = range(total) if layers == "all" else [total // 2]
    if not layers or len(set(layers)) < len(layers) or min(layers) < 0 or max(layers) >= total:
        raise ValueError(f"layers must be different numbers between 0 and {total - 1}, at least one, got {list(layers)}")
    return MixtureEncoder(copy.deepcopy(body), num_experts, layers, router=router, gated=gated, k=k, level=level)


class Head(nn.Sequential):
    """LayerNorm, Linear, tanh, Linear: what the paper puts on the pooled vector.

    Args:
        width: of the pooled vector.
        out: of the result; ``width`` when omitted.
    """

    def __init__(self, width: int, out: int | None = None) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width if out is None else out))


# --------------------------------------------------------------------------------------------------------------------------- domain tokens


def with_domain_tokens(
    body: TokenEncoder, common: int, num_domains: int, *, noise: float = 0.0, generator: torch.Generator | None = None
) -> tuple[TokenEncoder, Tensor]:
    """A copy of the encoder that knows one more token a domain, each starting as the token ``common`` (the [CLS]).

    Args:
        body: the pretrained encoder.
        common: the token that the domains' tokens start from.
        num_domains: D.
        noise: standard deviation of what is added to the starts; the paper has 0, and small models need more.
        generator: of the noise.

    Returns:
        the encoder and the numbers (D,) of the new tokens.

    Raises:
        ValueError: a ``common`` that is padding or unknown, fewer than one domain, negative noise.
    """
    size, width = body.token.weight.shape
    if not 0 <= common < size or common == body.padding:
        raise ValueError(f"common must be a token between 0 and {size - 1} that is not the padding {body.padding}, got {common}")
    if num_domains < 1 or noise < 0:
        raise ValueError(f"num_domains must be at least 1 and noise at least 0, got {num_domains} and {noise}")
    body = copy.deepcopy(body)
    old = body.token.weight.detach()
    drawn = noise * torch.randn(num_domains, width, generator=generator).to(old)
    body.token = nn.Embedding(size + num_domains, width, padding_idx=body.padding, _weight=torch.cat([old, old[common] + drawn]))
    return body, torch.arange(size, size + num_domains, device=old.device)


def mark(tokens: Tensor, domain: Tensor, names: Tensor) -> Tensor:
    """Tokens (n, length) with the first one replaced by that of the text's domain (n,); ``names`` (D,) holds the domains' tokens."""
    check_domains("domain", domain, len(tokens), len(names))
    return torch.cat([names[domain][:, None], tokens[:, 1:]], 1)


def check_domains(name: str, domain: Tensor, rows: int, number: int) -> None:
    """Raise ValueError unless ``domain`` holds ``rows`` numbers between 0 and ``number`` - 1."""
    if domain.shape != (rows,):
        raise ValueError(f"{name} must be ({rows},), one for each text, got {tuple(domain.shape)}")
    wrong = (domain < 0) | (domain >= number)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{name} must be between 0 and {number - 1}, got {int(domain[row])} for text {row}")


def check_pairs(first: Tensor, second: Tensor) -> None:
    """Raise ValueError where the texts of a pair are of different domains (n,): they would meet different experts and tokens."""
    wrong = first != second
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"pair {row} has texts of the domains {int(first[row])} and {int(second[row])}: both must be of one domain")


# ---------------------------------------------------------------------------------------------------------------------------------- losses


def ranking_loss(first: Tensor, second: Tensor, *, scale: float = 20.0, same: Tensor | None = None) -> Tensor:
    """Multiple negatives ranking of B pairs (B, d), cosine times ``scale``; pairs that are ``same`` (B, B) are no negatives of each other.

    Warns where rows of ``second`` are the same vector and nothing is said to be the same: each is then a false negative of the other.
    """
    if same is None and len(torch.unique(second.detach(), dim=0)) < len(second):
        warnings.warn("the batch holds a positive twice, each a false negative of the other: say which are the same", stacklevel=2)
    return info_nce(first, second, scale=scale, same=same)


def clip_loss(first: Tensor, second: Tensor, temperature: Tensor | float) -> Tensor:
    r"""Cross-entropy in both directions of dot products over T, with targets that see near duplicates.

    The target of row i is :math:`\arg\max_j \mathrm{softmax}_j(\frac12 (aa^\top + bb^\top)\,T)`, which is i unless a longer vector lies close.
    """
    if first.dim() != 2 or first.shape != second.shape or len(first) < 2:
        raise ValueError(f"two batches of the same shape (B >= 2, d) are needed, got {tuple(first.shape)} and {tuple(second.shape)}")
    if not float(temperature) > 0:
        raise ValueError(f"temperature must be above 0, got {float(temperature)}")
    logits = first @ second.T / temperature  # (B, B)
    target = ((first @ first.T + second @ second.T) / 2 * temperature).argmax(-1)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def router_loss(logits: Sequence[Tensor], domain: Tensor) -> Tensor:
    """Cross-entropy of each layer's sentence logits (n, E) against the domain (n,), mean over layers: the loss of the specified expert."""
    if not logits:
        raise ValueError("no logits: the encoder has no router, extend it with router=True")
    for found in logits:
        check_domains("domain", domain, len(found), found.shape[1])
    loss: Tensor = torch.stack([F.cross_entropy(found, domain) for found in logits]).mean()
    return loss


def information_loss(logits: Sequence[Tensor], domain: Tensor, num_domains: int) -> Tensor:
    """Minus the mutual information of domain and expert, mean over layers: from 0 down to minus the log of what is fewer."""
    return -torch.stack([mutual_information(joint_distribution(found.softmax(-1), domain, num_domains)) for found in logits]).mean()


def balance_loss(logits: Sequence[Tensor]) -> Tensor:
    """E sum_e p_e f_e of the texts' choices, mean over layers: 1 when experts are used evenly."""
    return torch.stack([switch_loss(top_k_routes(found, 1)) for found in logits]).mean()


# ------------------------------------------------------------------------------------------------------------------------- pairs, measure


def co_cited(references: Sequence[Sequence[int]]) -> Tensor:
    """Pairs (m, 2) int64, i < j, of texts that stand together in the references of a third one; each pair once, sorted.

    Args:
        references: of each text, the numbers of the texts it cites. A text that cites itself is warned of, and the citation dropped.

    Raises:
        ValueError: a number outside the collection.
    """
    number = len(references)
    source = torch.tensor([i for i, found in enumerate(references) for _ in found], dtype=torch.int64)
    cited = torch.tensor([j for found in references for j in found], dtype=torch.int64)
    if len(cited) and (int(cited.min()) < 0 or int(cited.max()) >= number):
        raise ValueError(f"references must be numbers between 0 and {number - 1}, got {int(cited.min())} to {int(cited.max())}")
    if (source == cited).any():
        warnings.warn(f"{int((source == cited).sum())} texts cite themselves; these citations are dropped", stacklevel=2)
        source, cited = source[source != cited], cited[source != cited]
    count = torch.bincount(source, minlength=number)
    start = count.cumsum(0) - count
    partners = count[source]  # of each citation, the citations of the same text: they stand side by side
    left = torch.arange(len(source)).repeat_interleave(partners)
    offset = torch.arange(len(left)) - (partners.cumsum(0) - partners).repeat_interleave(partners)
    both = torch.stack([cited[left], cited[start[source[left]] + offset]], 1)
    pairs: Tensor = torch.unique(both[both[:, 0] < both[:, 1]], dim=0)
    return pairs


def f1_max(scores: Tensor, positive: Tensor) -> float:
    """The best F1 over all thresholds; on balanced pairs it is at least 2/3, which calling everything positive gives.

    Args:
        scores: (n,).
        positive: (n,) bool.
    """
    if scores.dim() != 1 or scores.shape != positive.shape or not positive.any():
        raise ValueError(f"scores and positive must be (n,), with one positive at least, got {tuple(scores.shape)} and {tuple(positive.shape)}")
    ordered, order = scores.double().sort(descending=True)
    hits = positive[order].double().cumsum(0)
    called = torch.arange(1, len(scores) + 1, dtype=torch.float64, device=scores.device)
    last = torch.cat([ordered[1:] != ordered[:-1], ordered.new_ones(1, dtype=torch.bool)])  # a threshold takes all equal scores or none
    f1 = 2 * hits / (called + hits[-1])
    return float(f1[last].max())
