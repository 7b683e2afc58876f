import pytest
import torch
from torch import nn

from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.attention import SelfAttention, Transformer, TransformerLayer


def draw(*shape: int, name: str = "x") -> torch.Tensor:
    return torch.randn(shape, generator=stream(0, name))


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_layer_is_pytorchs(norm_first: bool) -> None:
    with seeded(0):
        ours = TransformerLayer(12, 3, 20, norm_first=norm_first)
        theirs = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first)
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(ours.attention.query_key_value.weight)
        theirs.self_attn.in_proj_bias.copy_(ours.attention.query_key_value.bias)
    theirs.self_attn.out_proj.load_state_dict(ours.attention.out.state_dict())
    theirs.linear1.load_state_dict(ours.feed[0].state_dict())
    theirs.linear2.load_state_dict(ours.feed[2].state_dict())
    theirs.norm1.load_state_dict(ours.norms[0].state_dict())
    theirs.norm2.load_state_dict(ours.norms[1].state_dict())
    x, mask = draw(4, 7, 12), torch.arange(7) < torch.tensor([7, 3, 1, 5])[:, None]
    torch.testing.assert_close(ours(x, mask)[mask], theirs(x, src_key_padding_mask=~mask)[mask], atol=1e-5, rtol=1e-5)


def test_a_mask_of_rows_and_columns() -> None:
    with seeded(0):
        attention = SelfAttention(8, 2)
    x = draw(2, 5, 8)
    length = torch.tensor([5, 3])
    seen = torch.arange(5) < length[:, None]
    torch.testing.assert_close(attention(x, seen), attention(x, seen[:, None].expand(-1, 5, -1)), atol=1e-6, rtol=1e-5)
    causal = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, -1, -1)
    torch.testing.assert_close(attention(x, causal)[:, :3], attention(x[:, :3], causal[:, :3, :3]), atol=1e-6, rtol=1e-5)


def test_tied_queries_are_the_keys() -> None:
    with seeded(0):
        tied, free = SelfAttention(8, 2, tied=True), SelfAttention(8, 2)
    with torch.no_grad():
        weight, bias = tied.query_key_value.weight, tied.query_key_value.bias
        free.query_key_value.weight.copy_(torch.cat([weight[:8], weight]))
        free.query_key_value.bias.copy_(torch.cat([bias[:8], bias]))
    free.out.load_state_dict(tied.out.state_dict())
    torch.testing.assert_close(tied(draw(2, 5, 8)), free(draw(2, 5, 8)), atol=1e-6, rtol=1e-5)


def test_the_stack_gives_every_state_and_no_nan_for_padding() -> None:
    with seeded(0):
        stack = Transformer(8, 2, layers=3, norm_first=True)
    x = draw(3, 4, 8)
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    states = stack.states(x, mask)
    assert len(states) == 4 and states[0] is x
    assert all(state.isfinite().all() for state in states)
    torch.testing.assert_close(states[-1], stack(x, mask))
    torch.testing.assert_close(stack(x[1:2, :2]), states[-1][1:2, :2], atol=1e-6, rtol=1e-5)
    square = mask[:, :, None] & mask[:, None]
    torch.testing.assert_close(stack(x, square)[mask], states[-1][mask], atol=1e-6, rtol=1e-5)
    assert stack(x, square).isfinite().all()


def test_bad_numbers() -> None:
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        Transformer(8, 2, layers=0)
    with pytest.raises(ValueError, match="width must be a multiple of heads"):
        Transformer(8, 3)
