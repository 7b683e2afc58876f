"""Dynamic fusion inside ``generate`` of the library transformers: a logits processor that holds the small models.

::

    processor = fusion_processor(small, [expert], examples=prompt_examples.shape[1])
    large.generate(prompt, logits_processor=[processor], do_sample=True, temperature=0.05)

The large model is whoever generates. ``generate`` hands its logits to the processor at every step, and gets the fused log-probabilities back. Greedy
decoding, sampling, temperature and batches are those of the library.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlearn.merging.logits_fusion.method import EVIDENCE, Rule, change, fuse, log_probabilities, searched


class CachedLogits:
    """The next token's logits of a causal language model, reading each token once.

    The keys and values of what was read are kept; when the prefix is not the last one with a token more (another text, reordered beams), all of it is
    read again.

    Args:
        model: a causal language model of the library transformers.
        padding: the token that fills prefixes up on the left, which is not to be read; None where there is none.
    """

    def __init__(self, model: Any, *, padding: int | None = None) -> None:
        self.model, self.padding = model, padding
        self._read: Tensor | None = None
        self._cache: Any = None

    @torch.no_grad()
    def __call__(self, prefix: Tensor) -> Tensor:
        """(B, L) to (B, V)."""
        known = self._read
        follows = known is not None and len(known) == len(prefix) and known.shape[1] == prefix.shape[1] - 1 and torch.equal(known, prefix[:, :-1])
        mask = torch.ones_like(prefix) if self.padding is None else (prefix != self.padding).long()
        place = (mask.cumsum(1) - 1).clamp_min(0)
        new = prefix[:, -1:] if follows else prefix
        said = self.model(
            input_ids=new,
            attention_mask=mask,
            position_ids=place[:, -new.shape[1] :],
            past_key_values=self._cache if follows else None,
            use_cache=True,
        )
        self._read, self._cache = prefix.clone(), said.past_key_values
        logits: Tensor = said.logits[:, -1]
        return logits


def fusion_processor(
    small: Callable[[Tensor], Tensor], experts: Sequence[Callable[[Tensor], Tensor]], *, rule: Rule | None = None, examples: int = 0
) -> Any:
    """A ``LogitsProcessor`` that fuses the generating model's logits with those of the small models.

    Args:
        small: any callable from prefixes (B, L) to logits (B, V): :class:`CachedLogits` of a model, or something else.
        experts: the same for the tuned small models, at least one.
        rule: gives the strengths; the published search when omitted. Its evidence is of what is being written, not of the prompt.
        examples: tokens at the start of the prompt that the large model alone shall read: in-context learning.

    Raises:
        ImportError: transformers is not installed.
        ValueError: no expert, or a negative number of examples; at each step see
            :func:`~mtlearn.merging.logits_fusion.method.log_probabilities`, and where the examples fill the whole prompt.
    """
    try:
        from transformers import LogitsProcessor
    except ImportError:
        raise ImportError('fusion_processor needs the library transformers: pip install "mtlearn[hf]"') from None
    if len(experts) == 0:
        raise ValueError("at least one expert is needed, got none")
    if examples < 0:
        raise ValueError(f"examples must be the number of tokens that the large model alone reads, at least 0, got {examples}")

    class DynamicFusion(LogitsProcessor):
        """Replaces the large model's scores by log-probabilities of the fused distribution; ``alpha`` has the strengths of each step."""

        def __init__(self) -> None:
            self.alpha: list[Tensor] = []
            self._gain: Tensor | None = None  # of every token, (T, B, V), at the last step
            self._evidence: Tensor | None = None
            self._length = 0

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            """Tokens (B, L) and the large model's scores (B, V) to the fused log-probabilities."""
            prefix = input_ids[:, examples:]
            if prefix.shape[1] == 0:
                raise ValueError(f"the prompt must go on after the examples={examples} tokens for the large model, it has {input_ids.shape[1]}")
            log_p, log_q, log_q_t = log_probabilities(scores, small(prefix), torch.stack([expert(prefix) for expert in experts]))
            evidence = self._seen(prefix, len(experts), log_q)
            alpha = (rule or searched())(log_p, log_q, log_q_t, evidence)
            self.alpha.append(alpha)
            self._gain = change(log_q, log_q_t)
            return fuse(log_p, log_q, log_q_t, alpha).to(scores.dtype)

        def _seen(self, prefix: Tensor, count: int, log_q: Tensor) -> Tensor:
            """The evidence (T, B, n): what each expert gained on the tokens written since this text began."""
            if self._gain is None or self._evidence is None or prefix.shape[1] != self._length + 1 or self._gain.shape[1] != len(prefix):
                self.alpha = []  # another text begins
                self._evidence = log_q.new_zeros(count, len(prefix), 0)
            else:
                gained = self._gain.gather(-1, prefix[:, -1:].expand(count, -1, -1))
                self._evidence = torch.cat([self._evidence, gained], -1)[..., -EVIDENCE:]
            self._length = prefix.shape[1]
            return self._evidence

    return DynamicFusion()
