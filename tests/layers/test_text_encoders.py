import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtlearn.lab.seeds import seeded, stream
from mtlearn.layers.text_encoders import BiEncoder, CrossEncoder, JointEncoder, PolyEncoder, TokenEncoder, late_attention, masked_mean, pool

TOKENS = torch.tensor([[2, 7, 9, 3, 0], [2, 8, 3, 0, 0]])


def body(**options: object) -> TokenEncoder:
    with seeded(0):
        return TokenEncoder(20, 8, 2, 2, 16, longest=12, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"norm_first": True, "tied": True}])
def test_states_do_not_depend_on_padding_or_on_the_batch(options: dict[str, bool]) -> None:
    encoder = body(**options)
    states = encoder.states(TOKENS)
    assert [tuple(state.shape) for state in states] == [(2, 5, 8)] * 3
    torch.testing.assert_close(encoder(TOKENS), states[-1])
    torch.testing.assert_close(encoder(TOKENS[1:, :3]), states[-1][1:, :3], atol=1e-6, rtol=1e-5)
    wider = encoder(F.pad(TOKENS, (0, 4)))
    torch.testing.assert_close(wider[:, :5][TOKENS != 0], states[-1][TOKENS != 0], atol=1e-6, rtol=1e-5)


def test_positions_and_types_are_those_given() -> None:
    encoder = body()
    places = torch.arange(5).expand(2, -1)
    torch.testing.assert_close(encoder(TOKENS, positions=places, types=torch.zeros_like(TOKENS)), encoder(TOKENS))
    assert not torch.allclose(encoder(TOKENS, positions=places + 3), encoder(TOKENS))
    assert not torch.allclose(encoder(TOKENS, types=torch.ones_like(TOKENS)), encoder(TOKENS))


def test_it_starts_from_word_vectors() -> None:
    vectors = torch.randn(20, 8, generator=stream(0))
    encoder = body(vectors=vectors)
    torch.testing.assert_close(encoder.token.weight[1:], vectors[1:])
    assert not encoder.token.weight[0].any()


def test_bad_input_is_named() -> None:
    encoder = body()
    with pytest.raises(ValueError, match="tokens must be between 0 and 19, got 2 to 20"):
        encoder(torch.tensor([[2, 20]]))
    with pytest.raises(ValueError, match="positions must be between 0 and 11, got 0 to 12"):
        encoder(torch.tensor([[2, 3]]), positions=torch.tensor([[0, 12]]))
    with pytest.raises(ValueError, match="types must be between 0 and 1, got 0 to 2"):
        encoder(torch.tensor([[2, 3]]), types=torch.tensor([[0, 2]]))
    with pytest.raises(ValueError, match="the input has 14 tokens, 2 more than the 12 positions"):
        encoder(torch.full((1, 14), 2))
    with pytest.raises(ValueError, match=r"tokens must be \(n, length\) with a length of at least 1, got \(2, 0\)"):
        encoder(torch.zeros(2, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"vectors must be \(20, 8\), got \(3, 8\)"):
        body(vectors=torch.zeros(3, 8))
    with pytest.raises(ValueError, match="size, longest and types must be at least 1"):
        TokenEncoder(0)
    for build in (lambda: CrossEncoder(encoder, 0), lambda: PolyEncoder(encoder, 0)):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            build()
    with pytest.raises(ValueError, match="pooling must be 'mean' or 'first', got 'max'"):
        BiEncoder(encoder, "max")  # type: ignore[arg-type]


def test_pooling() -> None:
    states, mask = torch.randn(2, 3, 4, generator=stream(0)), torch.tensor([[True, True, False], [False, False, False]])
    torch.testing.assert_close(masked_mean(states, mask)[0], states[0, :2].mean(0))
    assert not masked_mean(states, mask)[1].any()
    torch.testing.assert_close(pool(states, mask, "first"), states[:, 0])


def test_the_bi_encoder_reads_each_text_alone() -> None:
    encoder = BiEncoder(body())
    vectors = encoder.embed(TOKENS)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(encoder.embed(TOKENS[1:, :3]), vectors[1:], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(encoder(TOKENS, TOKENS.flip(0)), (vectors[0] @ vectors[1]).expand(2))


def test_the_cross_encoder() -> None:
    encoder = CrossEncoder(body())
    types = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 1, 0, 0]])
    torch.testing.assert_close(encoder(TOKENS, types), encoder.head(encoder.body(TOKENS, types=types)[:, 0])[:, 0])
    assert CrossEncoder(body(), outputs=3)(TOKENS).shape == (2, 3)
    meaned = CrossEncoder(body(), pooling="mean")
    torch.testing.assert_close(meaned(TOKENS[1:, :3]), meaned(TOKENS)[1:], atol=1e-6, rtol=1e-5)


def test_the_joint_encoder_joins_the_texts_itself() -> None:
    encoder = JointEncoder(body())
    joint, types = torch.tensor([[7, 9, 5], [8, 6, 4]]), torch.tensor([[0, 0, 1], [0, 1, 1]])
    scores = encoder(torch.tensor([[7, 9], [8, 0]]), torch.tensor([[5, 0], [6, 4]]))
    torch.testing.assert_close(scores, CrossEncoder.forward(encoder, joint, types))
    classed = JointEncoder(encoder.body, class_token=True)
    classed.head = encoder.head
    torch.testing.assert_close(classed(torch.tensor([[7, 9], [8, 0]]), torch.tensor([[2, 5, 0], [2, 6, 4]])), scores)
    with pytest.raises(ValueError, match="as many first as second texts are needed, got 2 and 0"):
        encoder(joint[:2])


def by_hand(states: Tensor, candidate: Tensor, codes: Tensor) -> Tensor:
    """The paper's equations for one context without padding and one candidate."""
    root = math.sqrt(states.shape[-1])
    summary = (codes @ states.T / root).softmax(1) @ states
    return candidate @ ((summary @ candidate / root).softmax(0) @ summary) / root


def test_the_poly_encoder() -> None:
    with seeded(1):
        encoder = PolyEncoder(body(), codes=3)
    candidates = torch.tensor([[[5, 6, 0], [7, 0, 0]], [[5, 6, 4], [9, 9, 0]]])
    scores = encoder(TOKENS, candidates)
    vectors = pool(encoder.body(candidates.view(4, 3)), candidates.view(4, 3) != 0).view(2, 2, 8)
    states = encoder.body(TOKENS)
    torch.testing.assert_close(scores[0, 1], by_hand(states[0, :4], vectors[0, 1], encoder.codes))
    torch.testing.assert_close(scores[1, 0], by_hand(states[1, :3], vectors[1, 0], encoder.codes))
    torch.testing.assert_close(encoder(TOKENS, candidates.flip(1)), scores.flip(1))
    one = torch.zeros(1, 8)  # a code of zeros averages the context: a bi-encoder
    mean = masked_mean(states, TOKENS != 0)
    torch.testing.assert_close(late_attention(states, TOKENS != 0, vectors, one), (vectors @ mean[..., None])[..., 0] / math.sqrt(8))
