"""Diverse beam search beside one hypothesis at a time, beside beam search, and beside ``generate`` of transformers on the same tiny model."""

import torch
import transformers
from ratios import ratios
from torch import Tensor
from torch.nn import functional as F

from mtlearn.pointing.decoding import State, beam_search
from mtlearn.pointing.diverse_beam_search.baselines import loop_search
from mtlearn.pointing.diverse_beam_search.experiment import END, MAX_STEPS, START, corpus, describer
from mtlearn.pointing.diverse_beam_search.method import diverse_beam_search

WIDTH, NEW_WORDS, FEW = 6, 12, 4


def gpt2() -> transformers.GPT2LMHeadModel:
    """A GPT-2 of two layers with random weights, made from a configuration."""
    torch.manual_seed(0)
    shape = {"vocab_size": 200, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, bos_token_id=None, eos_token_id=None)).eval()


def cached_step(model: transformers.GPT2LMHeadModel):  # type: ignore[no-untyped-def]
    """The model as a step of ours: keys and values of both layers are the state, one row a hypothesis, as ``generate`` keeps them too."""

    def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
        layers = model.config.n_layer
        ids = state["prompt"] if "key0" not in state else tokens[:, None]
        cache = transformers.DynamicCache()
        if "key0" in state:
            for layer in range(layers):
                cache.update(state[f"key{layer}"], state[f"value{layer}"], layer)
        output = model(ids, past_key_values=cache, use_cache=True)
        log_probs = F.pad(output.logits[:, -1].log_softmax(-1), (0, 1), value=-torch.inf)  # an end token that never comes
        kept = {
            f"{part}{layer}": tensor
            for layer in range(layers)
            for part, tensor in zip(("key", "value"), output.past_key_values[layer][:2], strict=True)
        }
        return log_probs, kept

    return step


def beside_generate(prompts: int) -> None:
    model, ids = gpt2(), torch.arange(2 * prompts).view(prompts, 2)
    options = {
        "attention_mask": torch.ones_like(ids), "max_new_tokens": NEW_WORDS, "do_sample": False, "pad_token_id": 0, "num_beams": WIDTH,
        "length_penalty": 0.0, "early_stopping": False, "num_return_sequences": WIDTH,
    }  # fmt: skip
    step, end = cached_step(model), model.config.vocab_size
    limits = {"width": WIDTH, "start": -1, "end": end, "max_steps": NEW_WORDS}

    def ours() -> Tensor:
        return diverse_beam_search(step, {"prompt": ids}, groups=3, strength=0.5, **limits).tokens

    @torch.no_grad()
    def theirs() -> Tensor:
        return model.generate(ids, num_beam_groups=3, diversity_penalty=0.5, **options)[:, 2:]

    @torch.no_grad()
    def their_beam() -> Tensor:
        return model.generate(ids, **options)

    @torch.no_grad()
    def our_beam() -> Tensor:
        return beam_search(step, {"prompt": ids}, **limits).tokens

    for instance in range(prompts):  # the same sequences, or the comparison says nothing
        rows = slice(instance * WIDTH, (instance + 1) * WIDTH)
        assert sorted(ours()[instance].flatten(0, 1).tolist()) == sorted(theirs()[rows].tolist())
    ways = {
        "mtlearn, diverse beam search": ours,
        "transformers, group beam search": theirs,
        "mtlearn, beam search": our_beam,
        "transformers, beam search": their_beam,
    }
    ratios(f"tiny GPT-2, {prompts} prompts, {WIDTH} beams, 3 groups, {NEW_WORDS} words", ways, repeats=9, target="never slower than the peer")


def beside_a_loop(names: int) -> None:
    model, examples = describer(), corpus().test
    state = model.read(examples.names[:names], examples.name_lengths[:names])
    plain = {"width": WIDTH, "start": START, "end": END, "max_steps": MAX_STEPS}
    limits = {"groups": WIDTH, "strength": 0.5, **plain}

    @torch.no_grad()
    def beam() -> object:
        return beam_search(model.step, state, **plain)

    title = f"the describer, {{}} names, {WIDTH} beams, {WIDTH} groups"
    ways = {"beam search, batched": beam, "diverse beam search, batched": lambda: diverse_beam_search(model.step, state, **limits)}
    ratios(title.format(names), ways, repeats=5, target="diverse at most 1.5")
    state = model.read(examples.names[:FEW], examples.name_lengths[:FEW])
    ways = {
        "diverse beam search, batched": lambda: diverse_beam_search(model.step, state, **limits),
        "diverse, a hypothesis at a time": lambda: loop_search(model.step, state, **limits),
    }
    ratios(title.format(FEW), ways, repeats=3)


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for prompts in (1, 16):
        beside_generate(prompts)
    beside_a_loop(200)


if __name__ == "__main__":
    main()
