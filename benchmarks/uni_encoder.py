"""Uni-Encoder: one pass over all candidates beside a cross-encoder and a bi-encoder on the same weights, and beside BertModel with the same mask."""

import torch
from ratios import ratios
from torch import Tensor

from mtlearn.layers.text_encoders import TokenEncoder, masked_mean
from mtlearn.pairs.uni_encoder.method import UniEncoder, attention_mask, cost, each_alone

WIDTH, LAYERS, HEADS, REPLY = 128, 4, 4, 12


def draw(contexts: int, n: int, candidates: int) -> tuple[Tensor, Tensor]:
    """Contexts (B, n) and pools (B, C, 12) of random tokens."""
    draws = torch.Generator().manual_seed(0)
    return torch.randint(5, 1000, (contexts, n), generator=draws), torch.randint(5, 1000, (contexts, candidates, REPLY), generator=draws)


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    body = TokenEncoder(1000, WIDTH, HEADS, LAYERS, longest=600)
    model = UniEncoder(body).eval()

    def apart(context: Tensor, candidates: Tensor) -> Tensor:
        """A bi-encoder: context and candidates in batches of their own."""
        first, second = (masked_mean(body(tokens), tokens != 0) for tokens in (context, candidates.flatten(0, 1)))
        return (second.view(*candidates.shape[:2], -1) @ first[..., None])[..., 0]

    for n, candidates in ((128, 10), (128, 50), (256, 10), (32, 50)):
        context, pool = draw(2, n, candidates)
        counted = cost(n, [REPLY] * candidates, "cross").multiply_adds(WIDTH, 4 * WIDTH, LAYERS) / cost(n, [REPLY] * candidates).multiply_adds(
            WIDTH, 4 * WIDTH, LAYERS
        )
        ratios(
            f"Context of {n}, {candidates} candidates of {REPLY} tokens",
            {
                "uni-encoder": lambda context=context, pool=pool: model(context, pool),  # type: ignore[misc]
                "cross-encoder": lambda context=context, pool=pool: each_alone(model, context, pool),  # type: ignore[misc]
                "bi-encoder": lambda context=context, pool=pool: apart(context, pool),  # type: ignore[misc]
            },
            repeats=5,
            target=f"the paper: about 4 for the cross-encoder; multiply-adds: {counted:.1f}",
        )

    try:
        from transformers import BertConfig, BertModel
    except ImportError:
        print("transformers is not installed: BertModel is left out")
        return
    config = BertConfig(
        vocab_size=1000,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=600,
    )
    bert = BertModel(config).eval()
    context, pool = draw(2, 128, 10)
    laid = model.lay_out(context, pool)

    def of_the_library() -> Tensor:
        mask = attention_mask(laid.segments).long()
        states: Tensor = bert(input_ids=laid.tokens, token_type_ids=laid.types, position_ids=laid.positions, attention_mask=mask).last_hidden_state
        return states

    ratios(
        "States under the arrow mask, context of 128, 10 candidates",
        {"transformers.BertModel": of_the_library, "ours": lambda: model.states(laid)},
        repeats=9,
        target="at most 1",
    )


if __name__ == "__main__":
    main()
