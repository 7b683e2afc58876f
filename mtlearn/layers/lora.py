r"""Low-rank adapters (Hu and others 2021): a frozen layer learns a change of low rank, for one task or for many at once.

.. math:: y = W x + b + s\, B A\, x, \qquad s = \alpha / r \text{, or } \alpha / \sqrt r \text{ (rank-stabilised, Kalajdzievski 2023)}

A (rank, in) starts random and B (out, rank) at zero, so an adapter starts as the layer that it wraps::

    adapted = add_lora(model, ["query", "value"], rank=4)     # wraps these layers, freezes all else
    ...                                                       # train
    state = lora_state(model)                                 # {"query.lora_A": ..., "query.lora_B": ...}
    merge_lora(model)                                         # one product a layer, as fast as the plain model
    unmerge_lora(model)                                       # the base weights were never touched

With ``adapters=T`` a layer holds T adapters side by side and takes inputs (T, ..., in): T tasks are trained by batched products in one call.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Chosen = Collection[str] | Callable[[str, nn.Module], bool]


class LoRALayer(nn.Module):
    """What adapters of linear layers and of convolutions share: the factors, their scale, merging.

    Args:
        base: the layer; it is frozen and its weights are never changed.
        rank: r.
        alpha: the scale is alpha / rank.
        rank_stabilised: the scale is alpha / sqrt(rank) instead.
        dropout: share of the adapter's inputs that are dropped in training.
        std: standard deviation of a normal A; when omitted A is uniform within 1 / sqrt(inputs), as a linear layer's weights.
        adapters: T, or None for one adapter.
        shared_start: whether all T adapters start from the same A, which makes their weights comparable.
        generator: draws A.
    """

    lora_A: nn.Parameter  # noqa: N815  # as in the library peft
    lora_B: nn.Parameter  # noqa: N815
    base: nn.Linear | nn.Conv2d

    def __init__(
        self,
        base: nn.Linear | nn.Conv2d,
        rank: int,
        *,
        alpha: float = 8.0,
        rank_stabilised: bool = False,
        dropout: float = 0.0,
        std: float | None = None,
        adapters: int | None = None,
        shared_start: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be between 0 and 1 (excluded), got {dropout}")
        if adapters is not None and adapters < 1:
            raise ValueError(f"adapters must be at least 1, or None for one without a leading dimension, got {adapters}")
        self.base, self.rank, self.adapters = base.requires_grad_(False), rank, adapters
        self.scale = alpha / (rank**0.5 if rank_stabilised else rank)
        self.dropout = nn.Dropout(dropout)
        weight = base.weight
        inner = weight[0].numel() if weight.dim() > 2 else weight.shape[1]
        lead = () if adapters is None else (adapters,)
        draws = (1, rank, inner) if shared_start else (adapters or 1, rank, inner)
        bound = inner**-0.5
        first = torch.randn(draws, generator=generator) * std if std is not None else (2 * torch.rand(draws, generator=generator) - 1) * bound
        self.lora_A = nn.Parameter(first.expand(adapters or 1, -1, -1).reshape(*lead, rank, inner).to(weight).clone())  # (*lead, rank, inputs)
        self.lora_B = nn.Parameter(weight.new_zeros(*lead, weight.shape[0], rank))  # (*lead, outputs, rank)
        self.merged: Tensor | None = None

    def delta(self) -> Tensor:
        """The product s B A, what the adapter adds to the weights: (*lead, *the weights' shape)."""
        change = self.scale * (self.lora_B @ self.lora_A)
        return change.reshape(*change.shape[:-2], *self.base.weight.shape)

    @property
    def weight(self) -> Tensor:
        """W + s B A: modules that read a layer's weights, as PyTorch's attention does, get the adapted ones."""
        return self.base.weight + self.delta() if self.merged is None else self.merged

    @property
    def bias(self) -> Tensor | None:
        """The base layer's."""
        return self.base.bias

    def merge(self) -> None:
        """Compute with W + s B A from now on; W is kept beside it, so that :meth:`unmerge` is exact."""
        self.merged = (self.base.weight + self.delta()).detach()

    def unmerge(self) -> None:
        """Compute with W and the factors again."""
        self.merged = None

    def _may_learn(self) -> None:
        if self.training and torch.is_grad_enabled() and self.lora_A.requires_grad:
            raise ValueError("this adapter is merged, and merged weights do not learn: call unmerge_lora before training, or eval() for inference")

    def extra_repr(self) -> str:
        """Rank, scale and adapters, for printing."""
        return f"rank={self.rank}, scale={self.scale:g}" + (f", adapters={self.adapters}" if self.adapters else "")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LoRALayer":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.merged = None if self.merged is None else fn(self.merged)  # follows the module to another device or precision
        return self


class LoRALinear(LoRALayer):
    """A linear layer with an adapter, or with T adapters.

    ``forward`` maps (..., in) to (..., out); with T adapters (T, ..., in) to (T, ..., out), each row through its own adapter.
    """

    def __init__(self, base: nn.Linear, rank: int, **options: object) -> None:
        if not isinstance(base, nn.Linear):
            raise ValueError(f"LoRALinear wraps nn.Linear, got {type(base).__name__}")
        super().__init__(base, rank, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """W x + b + s B (A dropout(x))."""
        if self.adapters is None:
            if self.merged is not None:
                self._may_learn()
                return F.linear(x, self.merged, self.bias)
            change = F.linear(F.linear(self.dropout(x), self.lora_A), self.lora_B)
            adapted: Tensor = self.base(x) + self.scale * change
            return adapted
        if x.dim() < 2 or len(x) != self.adapters:
            wanted = f"({self.adapters}, ..., {self.base.weight.shape[1]})"
            raise ValueError(f"with {self.adapters} adapters the input must be {wanted}, got {tuple(x.shape)}")
        rows = x.reshape(self.adapters, -1, x.shape[-1])  # (T, n, in)
        if self.merged is not None:
            self._may_learn()
            out = rows @ self.merged.mT
            out = out if self.bias is None else out + self.bias
        else:
            out = self.base(rows) + self.scale * (self.dropout(rows) @ self.lora_A.mT @ self.lora_B.mT)
        return out.reshape(*x.shape[:-1], -1)


class LoRAConv2d(LoRALayer):
    """A convolution with an adapter: A is a convolution of the same kernel to ``rank`` channels, B a 1 x 1 convolution from them.

    ``forward`` maps (batch, channels, height, width) as the base layer does.
    """

    def __init__(self, base: nn.Conv2d, rank: int, **options: object) -> None:
        if not isinstance(base, nn.Conv2d):
            raise ValueError(f"LoRAConv2d wraps nn.Conv2d, got {type(base).__name__}")
        if base.groups != 1 or base.padding_mode != "zeros":
            raise ValueError(f"LoRAConv2d needs groups=1 and padding_mode='zeros', got groups={base.groups}, padding_mode={base.padding_mode!r}")
        if options.get("adapters") is not None:
            raise ValueError("many adapters side by side are for linear layers; a convolution takes one (adapters=None)")
        super().__init__(base, rank, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """The base layer's output plus s times the 1 x 1 convolution B of the convolution A."""
        base = self.base
        assert isinstance(base, nn.Conv2d)
        shape: Any = (base.stride, base.padding, base.dilation)  # padding may be a word, which the types of conv2d leave out
        if self.merged is not None:
            self._may_learn()
            return F.conv2d(x, self.merged, base.bias, *shape)
        inner = F.conv2d(self.dropout(x), self.lora_A.view(self.rank, *base.weight.shape[1:]), None, *shape)  # (batch, rank, height', width')
        adapted: Tensor = base(x) + self.scale * F.conv2d(inner, self.lora_B[..., None, None])
        return adapted


def lora_layers(module: nn.Module) -> Iterator[tuple[str, LoRALayer]]:
    """The adapted layers of ``module`` with their names."""
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, LoRALayer))


def add_lora(module: nn.Module, chosen: Chosen, *, rank: int, freeze: bool = True, **options: object) -> tuple[str, ...]:
    """Wrap layers of ``module`` in place.

    Args:
        module: contains linear layers or convolutions; it is not one itself.
        chosen: names, whole ("encoder.0.query") or their last parts ("query"); or a predicate of (name, layer), asked for every linear layer and
            convolution.
        rank: of every adapter.
        freeze: whether all other parameters stop learning.
        options: of :class:`LoRALayer`.

    Returns:
        The names of the wrapped layers.

    Raises:
        ValueError: a name fits no layer, or nothing is chosen; what was chosen is neither linear layer nor convolution, or has an adapter already.
    """
    layers = dict(module.named_modules(remove_duplicate=False))
    taken = {name for name, layer in layers.items() if isinstance(layer, LoRALayer)}
    inside = {name for name in layers if any(name.startswith(f"{outer}.") for outer in taken)}
    if callable(chosen):
        names = [name for name, layer in layers.items() if isinstance(layer, (nn.Linear, nn.Conv2d)) and name not in inside and chosen(name, layer)]
        if not names:
            raise ValueError("the predicate chose none of the linear layers and convolutions of the module")
    else:
        wanted = (chosen,) if isinstance(chosen, str) else tuple(chosen)
        fits = {word: [name for name in layers if name not in inside and (name == word or name.endswith(f".{word}"))] for word in wanted}
        if missing := [word for word, found in fits.items() if not found]:
            raise ValueError(f"no layer is called {', '.join(map(repr, missing))}; there are {', '.join(name for name in layers if name)}")
        names = list(dict.fromkeys(name for found in fits.values() for name in found))
        if not names:
            raise ValueError("no layer is chosen: name at least one")
    if "" in names:
        raise ValueError("the module itself cannot be replaced by its adapter: wrap it with LoRALinear or LoRAConv2d, or put it into a container")
    for name in names:
        if isinstance(layers[name], LoRALayer):
            raise ValueError(f"{name} has an adapter already")
        if not isinstance(layers[name], (nn.Linear, nn.Conv2d)):
            raise ValueError(f"{name} is a {type(layers[name]).__name__}; adapters are for nn.Linear and nn.Conv2d")
    if freeze:
        module.requires_grad_(False)
    made: dict[nn.Module, LoRALayer] = {}  # a layer that is used under two names keeps one adapter
    for name in names:
        layer, (parent, _, own) = layers[name], name.rpartition(".")
        if layer not in made:
            made[layer] = LoRALinear(layer, rank, **options) if isinstance(layer, nn.Linear) else LoRAConv2d(layer, rank, **options)
        setattr(layers[parent], own, made[layer])
    return tuple(names)


def lora_state(module: nn.Module, adapter: int | None = None) -> dict[str, Tensor]:
    """Copies of the factors by name, ``<layer>.lora_A`` and ``<layer>.lora_B``.

    Args:
        module: with adapters.
        adapter: which, where layers hold several; all, with their leading dimension, when omitted.

    Raises:
        ValueError: the module has no adapters.
    """
    found: dict[str, Tensor] = {}
    for name, layer in lora_layers(module):
        for factor in ("lora_A", "lora_B"):
            value = getattr(layer, factor).detach()
            found[f"{name}.{factor}".lstrip(".")] = (value if adapter is None else value[adapter]).clone()
    if not found:
        raise ValueError("the module has no adapters; add_lora makes them")
    return found


def load_lora(module: nn.Module, state: Mapping[str, Tensor], adapter: int | None = None) -> None:
    """Copy factors into the adapters of ``module``; where it is merged it is unmerged first.

    Args:
        module: with adapters.
        state: of :func:`lora_state`, or generated.
        adapter: which, where layers hold several.

    Raises:
        ValueError: names are missing or too many, a shape is another one, or a value is not finite. Then nothing was copied.
    """
    places: dict[str, Tensor] = {}
    for name, layer in lora_layers(module):
        for factor in ("lora_A", "lora_B"):
            value = getattr(layer, factor).data
            places[f"{name}.{factor}".lstrip(".")] = value if adapter is None else value[adapter]
    if set(places) != set(state):
        missing, many = sorted(set(places) - set(state)), sorted(set(state) - set(places))
        raise ValueError(f"the state does not fit the adapters: missing {', '.join(missing) or 'none'}; not there {', '.join(many) or 'none'}")
    for name, place in places.items():
        if state[name].shape != place.shape:
            raise ValueError(f"{name} has the shape {tuple(state[name].shape)}; the module's adapter has {tuple(place.shape)}")
        if not state[name].isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")
    unmerge_lora(module)
    for name, place in places.items():
        place.copy_(state[name])


def merge_lora(module: nn.Module) -> None:
    """Merge every adapter of ``module``; its output stays the same up to rounding."""
    for _, layer in lora_layers(module):
        layer.merge()


def unmerge_lora(module: nn.Module) -> None:
    """Undo :func:`merge_lora`, bit for bit."""
    for _, layer in lora_layers(module):
        layer.unmerge()


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of the plain model with the adapters worked in: it loads into a model that has no adapters."""
    layers = {f"{name}." if name else "": layer for name, layer in module.named_modules(remove_duplicate=False) if isinstance(layer, LoRALayer)}
    found: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        home = next((prefix for prefix in layers if name.startswith(prefix)), None)
        if home is None:
            found[name] = value.clone()
        elif name.startswith(f"{home}base."):
            own = name.removeprefix(f"{home}base.")
            found[home + own] = (layers[home].weight if own == "weight" else value).detach().clone()
    return found
