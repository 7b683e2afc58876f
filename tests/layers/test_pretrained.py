import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny_bert import tiny_bert

from mtlearn.layers.decomposable_attention import DecomposableAttention, MeanOfWords
from mtlearn.layers.pretrained import pretrained, word_table
from mtlearn.layers.text_encoders import BiEncoder, CrossEncoder, PolyEncoder


def test_a_pretrained_body_stands_in_the_place_of_ours(tmp_path: Path) -> None:
    body, tokeniser = pretrained(tiny_bert(tmp_path, layers=2))
    body.eval()
    assert (body.width, body.padding, len(tokeniser)) == (8, 0, 67)
    tokens = tokeniser(["a matrix", "the transform of a long signal"], 12)
    there = tokens != 0
    with torch.no_grad():
        states = body.states(tokens)
        assert len(states) == 3
        theirs = body.model(input_ids=tokens, attention_mask=there.long()).last_hidden_state
        torch.testing.assert_close(body(tokens), theirs)
        square = there[:, :, None] & there[:, None]
        torch.testing.assert_close(body(tokens, mask=square)[there], theirs[there], atol=1e-5, rtol=1e-4)
        places = torch.arange(tokens.shape[1]).expand(2, -1)
        torch.testing.assert_close(body(tokens, positions=places), theirs)
        bi = BiEncoder(body)
        torch.testing.assert_close(bi.embed(tokens)[0], bi.embed(tokeniser(["a matrix"], 12))[0], atol=1e-5, rtol=1e-4)
        joint, types = tokeniser.pairs(["a matrix"], ["the signal"], 12)
        assert types.tolist() == [[0, 0, 0, 0, 1, 1, 1]]
        assert CrossEncoder(body)(joint, types).shape == (1,)
        assert PolyEncoder(body, 2)(tokens, tokens[None].expand(2, -1, -1)).shape == (2, 2)


def test_an_input_beyond_the_models_positions_is_refused(tmp_path: Path) -> None:
    body, _ = pretrained(tiny_bert(tmp_path))
    assert body.longest == 160
    with pytest.raises(ValueError, match="the input has 163 tokens, 3 more than the 160 positions of the model"):
        body(torch.full((1, 163), 7))


def test_texts_are_refused_by_name(tmp_path: Path) -> None:
    _, tokeniser = pretrained(tiny_bert(tmp_path))
    with pytest.raises(ValueError, match="text 1 is empty"):
        tokeniser(["a", " "], 12)
    with pytest.raises(ValueError, match="text 0 has 7 tokens, 3 more than the limit of 4; truncate=True cuts it"):
        tokeniser(["a a a a a"], 4)
    assert tokeniser(["a a a a a"], 4, truncate=True).shape == (1, 4)
    with pytest.raises(ValueError, match="pair 0 has 8 tokens, 2 more than the limit of 6"):
        tokeniser.pairs(["a a a"], ["a a"], 6)
    assert tokeniser.pairs(["a a a"], ["a a"], 6, truncate=True)[0].shape == (1, 6)
    with pytest.raises(ValueError, match="as many first as second texts are needed, got 1 and 2"):
        tokeniser.pairs(["a"], ["a", "a"], 6)


WORDS = pytest.mark.skipif(find_spec("wordllama") is None, reason="needs the package wordllama: pip install 'mtlearn[words]'")


@WORDS
def test_a_real_sentence_encoder_knows_what_sentences_mean() -> None:
    vectors, tokeniser = word_table()
    assert vectors.shape == (32_001, 256) and len(tokeniser) == 32_001
    first = tokeniser(["A cat sat on the mat.", "The shares fell on Monday."], 20)
    second = tokeniser(["A kitten rests on a rug.", "Stock prices dropped this week."], 20)
    encoder = MeanOfWords(vectors)
    similarity = encoder.embed(first) @ encoder.embed(second).T
    assert similarity.diagonal().min() > 0.25 > 0.15 > max(similarity[0, 1], similarity[1, 0])
    assert DecomposableAttention(vectors)(first, second).shape == (2,)
    with pytest.raises(ValueError, match="text 0 is empty"):
        tokeniser([""], 20)
    with pytest.raises(ValueError, match="text 0 has 3 tokens, 1 more than the limit of 2"):
        tokeniser(["a cat sat"], 2)


def test_missing_packages_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(ImportError, match=r"pip install 'mtlearn\[words\]'"):
            word_table()
    monkeypatch.setattr("mtlearn.layers.pretrained.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs the package wordllama"):
        word_table()
