"""Attention with a length scale beside PyTorch's fused attention, and one step on two tasks beside two steps on one each."""

import torch
from ratios import ratios
from torch import Tensor
from torch.nn import functional as F

from mtlearn.datasets.sequences import hint_examples, sample_lists, sort_examples
from mtlearn.pointing.task_hinting.experiment import Recipe, build
from mtlearn.pointing.task_hinting.method import LogLength, Weighted, multitask_loss
from mtlearn.pointing.transformer import Attention, tempered_attention

BATCH, WIDTH, HEADS, LENGTH = 64, 64, 2, 42


def attention() -> None:
    torch.manual_seed(0)
    plain, scaled = Attention(WIDTH, HEADS), Attention(WIDTH, HEADS, scale=LogLength(18))
    stream = torch.randn(BATCH, LENGTH, WIDTH, requires_grad=True)

    def bare() -> None:
        query, key, value = plain.split(stream)
        plain.join(F.scaled_dot_product_attention(query, key, value, is_causal=True)).sum().backward()

    def written_out() -> None:
        scaled.join(tempered_attention(*scaled.split(stream), scaled.tau(LENGTH))[0]).sum().backward()

    ways = {"fused attention, no scale": bare, "ours, log n": lambda: scaled(stream).sum().backward(), "written out, log n": written_out}
    ratios(f"Attention, forward and backward, {BATCH} rows of {LENGTH} tokens", ways, target="at most 1.5")


def two_tasks() -> None:
    recipe = Recipe()
    model = build(recipe, 0)
    lists = sample_lists(recipe.batch, recipe.longest, recipe.values, generator=torch.Generator().manual_seed(0))
    main, hint = sort_examples(lists, recipe.vocabulary), hint_examples("successor", lists, recipe.vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step(*batches: Weighted) -> None:
        loss: Tensor = multitask_loss(model, batches)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def two_steps() -> None:
        step(Weighted(main.tokens, main.mask, 1.0))
        step(Weighted(hint.tokens, hint.mask, 1.0))

    both = (Weighted(main.tokens, main.mask, 0.5), Weighted(hint.tokens, hint.mask, 0.5))
    ratios(f"A main and a hint batch of {recipe.batch} rows", {"two steps": two_steps, "ours, one step": lambda: step(*both)}, target="at most 1")


if __name__ == "__main__":
    torch.set_num_threads(1)
    attention()
    two_tasks()
