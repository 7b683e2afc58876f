"""The explorer: the same items under each domain and each model, and who is sent to which expert."""

from functools import cache, lru_cache
from typing import cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from mtlearn.explore.explorer import Explorer, choice, slider
from mtlearn.explore.style import BLACK, BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, SEQUENTIAL, SKY, VERMILION
from mtlearn.lab.checkpoints import load, provenance
from mtlearn.lab.seeds import stream
from mtlearn.retrieval.moe_embedding.experiment import ITEMS, SHOWN_ARMS, Embedder
from mtlearn.retrieval.moe_embedding.worlds import DOMAINS, attributes_of, items, key

DOMAIN_NAMES = ("1: first attribute", "2: second attribute", "3: both modulo 4")
ROUTINGS = ("enforced", "router", "random")
COUNT = 240  # items
SHOWN_VALUES = 6  # values of an attribute that have a colour of their own
PALETTE = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)


@cache
def models() -> nn.ModuleDict:
    """The shipped models."""
    return cast(nn.ModuleDict, load(ITEMS))


@lru_cache(maxsize=8)
def shown_items(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Attributes (240, 2) and tokens (240, 11); few values, so that groups are seen."""
    draw = stream(seed, "moe_embedding", "explorer")
    attributes = attributes_of(COUNT, draw) % SHOWN_VALUES
    return attributes, items(attributes, draw)


@lru_cache(maxsize=128)
@torch.no_grad()
def picture(arm: str, domain: int, seed: int) -> tuple[np.ndarray, float]:
    """Places (240, 2) by the first two principal components, and the share of nearest neighbours that the domain calls similar."""
    attributes, tokens = shown_items(seed)
    vectors = cast(Embedder, models()[arm])(tokens, torch.full((COUNT,), domain))[0]
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    near = (vectors @ vectors.T).fill_diagonal_(-2).argmax(1)
    keys = key(attributes, domain)
    centred = vectors - vectors.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    return (centred @ directions[:2].T).numpy(), float((keys == keys[near]).double().mean())


@lru_cache(maxsize=16)
@torch.no_grad()
def routes(routing: str, seed: int) -> np.ndarray:
    """Share (D, E) of each domain's texts that each expert reads, in the last layer."""
    table = torch.zeros(DOMAINS, DOMAINS)
    _, tokens = shown_items(seed)
    for domain in range(DOMAINS):
        if routing == "enforced":
            expert = torch.full((COUNT,), domain)
        elif routing == "random":
            expert = torch.randint(DOMAINS, (COUNT,), generator=stream(seed, "moe_embedding", "random", domain))
        else:
            expert = cast(Embedder, models()["MoE, router, token"])(tokens, torch.full((COUNT,), domain))[1][-1].argmax(1)
        table[domain] = torch.bincount(expert, minlength=DOMAINS) / COUNT
    return table.numpy()


def explorer() -> Explorer:
    """Items as one model sees them in one domain, coloured by an attribute; below the routes and what each model was worth."""
    measured = provenance(ITEMS)["measured"]

    def draw(figure: Figure, arm: str, domain: str, colour: str, routing: str, seed: int) -> str:
        figure.set_layout_engine("none")
        number = DOMAIN_NAMES.index(domain)
        which = 0 if colour == "first attribute" else 1
        attributes, _ = shown_items(seed)
        places, share = picture(arm, number, seed)
        left = figure.add_axes((0.03, 0.08, 0.50, 0.80))
        left.scatter(places[:, 0], places[:, 1], c=[PALETTE[int(value)] for value in attributes[:, which]], s=26, linewidths=0)
        left.set_xticks([])
        left.set_yticks([])
        left.set_title(f"{arm}, told domain {domain}", loc="left")
        left.set_xlabel(f"two principal components; colours: six values of the {colour}")
        table = routes(routing, seed)
        right = figure.add_axes((0.64, 0.52, 0.20, 0.34))
        right.imshow(table, cmap=SEQUENTIAL, vmin=0, vmax=1)
        for row in range(DOMAINS):
            for column in range(DOMAINS):
                value = table[row, column]
                right.text(column, row, f"{100 * value:.0f} %", ha="center", va="center", color=BLACK if value > 0.6 else "white", fontsize=10)
        right.set_xticks(range(DOMAINS), [f"expert {i + 1}" for i in range(DOMAINS)], fontsize=9.5)
        right.set_yticks(range(DOMAINS), [f"domain {i + 1}" for i in range(DOMAINS)], fontsize=9.5)
        right.set_title(f"routing: {routing}", loc="left")
        bars = figure.add_axes((0.74, 0.10, 0.22, 0.28))
        names = ("base", *SHOWN_ARMS)
        values = [measured[name] for name in names]
        bars.barh(range(len(names)), values, color=[BLUE if name == arm else LIGHT for name in names], height=0.7)
        bars.axvline(2 / 3, color=GREY, linestyle=":")
        for row, value in enumerate(values):
            bars.text(value + 0.005, row, f"{value:.2f}", va="center", fontsize=9.5)
        bars.set_xlim(0.6, 1.05)
        bars.set_ylim(len(names) - 0.5, -0.6)
        bars.set_yticks(range(len(names)), names, fontsize=9.5)
        bars.tick_params(axis="y", length=0)
        bars.set_title("F1max, mean of domains", loc="left", fontsize=11)
        bars.set_xlabel("dotted: chance", fontsize=10)
        return (
            f"{arm}, domain {domain}: {100 * share:.0f} % of nearest neighbours share what the domain calls similar; routing {routing}: "
            f"{100 * np.diag(table).mean():.0f} % at their domain's expert"
        )

    controls = {
        "arm": choice("model", ["base", *SHOWN_ARMS], "MoE, index"),
        "domain": choice("domain told", list(DOMAIN_NAMES)),
        "colour": choice("colour by", ["first attribute", "second attribute"]),
        "routing": choice("routes of", list(ROUTINGS)),
        "seed": slider("other items", 0, 0, 5),
    }
    start = {name: control.value for name, control in controls.items()}
    return Explorer(
        draw,
        controls,
        title="The same items, told another domain: do they regroup?",
        figsize=(10.0, 5.4),
        seed=ITEMS.settings.seed,
        presets={
            "the same items in domain 2": {**start, "domain": DOMAIN_NAMES[1]},
            "... by their second attribute": {**start, "domain": DOMAIN_NAMES[1], "colour": "second attribute"},
            "one shared encoder, told nothing": {**start, "arm": "shared"},
            "before any pair": {**start, "arm": "base"},
            "random routing": {**start, "routing": "random"},
        },
    )
