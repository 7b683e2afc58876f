import pytest
import torch
from torch import nn

from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.attention import SelfAttention


def test_it_is_pytorchs_multi_head_attention() -> None:
    with seeded(0):
        ours, theirs = SelfAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.query_key_value.weight)
        theirs.in_proj_bias.copy_(ours.query_key_value.bias)
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = torch.randn(4, 7, 12, generator=stream(0))
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 5])[:, None]
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0], atol=1e-6, rtol=1e-5)
    hidden = theirs(x, x, x, key_padding_mask=~mask, need_weights=False)[0]
    torch.testing.assert_close(ours(x, mask)[mask], hidden[mask], atol=1e-6, rtol=1e-5)


def test_padding_changes_nothing_and_leading_dimensions_are_a_batch() -> None:
    with seeded(0):
        attention = SelfAttention(8, 2)
    x = torch.randn(2, 3, 5, 8, generator=stream(1))
    mask = torch.arange(5) < 3
    mask = mask.expand(2, 3, -1)
    torch.testing.assert_close(attention(x, mask)[:, :, :3], attention(x[:, :, :3]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(attention(x)[1, 2], attention(x[1, 2][None])[0], atol=1e-6, rtol=1e-5)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(attention(x[..., order, :]), attention(x)[..., order, :], atol=1e-6, rtol=1e-5)


def test_bad_width() -> None:
    with pytest.raises(ValueError, match="width must be a multiple of heads, got width=8, heads=3"):
        SelfAttention(8, 3)
