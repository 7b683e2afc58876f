"""Texts as characters: the alphabet by hand, what is read of this Python and its libraries, and windows against a plain loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlearn.datasets import texts
from mtlearn.datasets.texts import ALPHABET, Text, Topic, decode, encode, library_text, plain, reference_text, reference_topics, source_text, windows

ARTICLE = """\
Sequence Types
**************

There are three
basic types.

   >>> code

* a list item

Common Operations
=================

"len" counts. It is quick.

+----+
| a  |
+----+

Details
-------

None here.
"""


def test_the_alphabet_is_newline_and_printable_ascii() -> None:
    assert len(ALPHABET) == texts.NUMBER_OF_TOKENS == 96
    assert ALPHABET[0] == "\n" and ALPHABET[1] == " " and ALPHABET[-1] == "~"
    assert encode("\n A~").tolist() == [0, 1, 34, 95]


@given(st.text(ALPHABET, max_size=60))
@settings(deadline=None)
def test_decoding_undoes_encoding(text: str) -> None:
    assert decode(encode(text)) == text


@given(st.text(max_size=60))
@settings(deadline=None)
def test_plain_text_can_be_encoded_and_is_plain_already(text: str) -> None:
    once = plain(text)
    assert decode(encode(once)) == once == plain(once)


def test_plain_by_hand() -> None:
    assert plain("\u201cIt\u2019s\u201d \u2014 a\tb \r\nc\u2026\u00df  ") == '"It\'s" - a    b\nc...'


def test_a_text_is_split_by_position() -> None:
    text = Text("digits", "0123456789" * 10)
    train, validation, test = text.split(validation=0.1, test=0.15)
    assert (len(train), len(validation), len(test)) == (75, 10, 15)
    assert train.characters + validation.characters + test.characters == text.characters
    assert text.split()[1].characters == ""
    assert text.first(3).characters == "012" and text.first(1000) == text
    assert text.fingerprint == Text("other", text.characters).fingerprint != text.first(3).fingerprint


def test_windows_are_those_of_a_loop() -> None:
    tokens = torch.arange(1, 21)
    places = torch.tensor([[0, 2], [5, 19]])
    contexts, following = windows(tokens, 4, places)
    assert contexts.shape == (2, 2, 4)
    for place, context, token in zip(places.flatten().tolist(), contexts.view(-1, 4).tolist(), following.flatten().tolist(), strict=True):
        before = [0] * 4 + tokens.tolist()[:place]
        assert context == before[-4:] and token == tokens[place]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: encode("a\u00e9"), "'\u00e9' at place 1 is not among the 96 characters"),
        (lambda: decode([5, 96]), "tokens must be between 0 and 95, got 96"),
        (lambda: Text("a", "abc").split(validation=0.5, test=0.5), "together below 1, got 0.5 and 0.5"),
        (lambda: Text("a", "abc").first(0), "characters must be at least 1, got 0"),
        (lambda: windows(torch.zeros(5, dtype=torch.int64), 0, torch.zeros(1, dtype=torch.int64)), "context must be at least 1, got 0"),
        (lambda: windows(torch.zeros(5, dtype=torch.int64), 2, torch.tensor([5])), "places must be between 0 and 4, got 5"),
        (lambda: source_text("json"), "modules must be a tuple of names, got 'json'"),
        (lambda: source_text(()), "modules must be a tuple of names"),
        (lambda: source_text(("argpars",)), "no module 'argpars'.*argparse"),
        (lambda: source_text(("../x",)), "no module '../x'"),
        (lambda: library_text("numpi"), "libraries must be some of numpy"),
    ],
)
def test_bad_input_is_named(call, says) -> None:
    with pytest.raises(ValueError, match=says):
        call()


def test_an_article_by_hand() -> None:
    topic = Topic("typesseq", ARTICLE)
    assert topic.title == "Sequence Types"
    assert [(part.heading, part.depth) for part in topic.sections] == [("Sequence Types", 0), ("Common Operations", 1), ("Details", 2)]
    assert topic.sections[2].text == "None here."
    assert topic.paragraphs == ("There are three basic types.", '"len" counts. It is quick.', "None here.")


def test_the_reference_topics_are_long_articles() -> None:
    topics = reference_topics()
    names = [topic.name for topic in topics]
    assert len(topics) > 60 and names == sorted(names) and "typesseq" in names
    assert len({topic.text for topic in topics}) == len(topics)
    longest = max(topics, key=lambda topic: len(topic.text))
    assert len(longest.sections) > 5 and len(longest.paragraphs) > 20
    for topic in topics:
        assert set(topic.text) <= set(ALPHABET) and topic.title and topic.sections
        assert topic.sections[0].heading == topic.title
    text = reference_text()
    assert len(text) > 400_000 and text.version.startswith("Python 3")
    assert all(topic.text in text.characters for topic in topics[:5])


def test_docstrings_of_a_library_as_one_text() -> None:
    text = library_text("networkx")
    assert text.version.startswith("networkx 3") and len(text) > 500_000
    assert "Parameters\n----------\n" in text.characters and "Extended Summary" not in text.characters
    assert set(text.characters) <= set(ALPHABET)
    assert text.tokens.shape == (len(text),) and decode(text.tokens[:500]) == text.characters[:500]
    assert library_text("networkx") is text


def test_source_of_modules_as_one_text() -> None:
    text = source_text(("json", "textwrap"))
    assert "class JSONDecoder" in text.characters and "def shorten" in text.characters
    assert text.characters.index("class JSONDecoder") < text.characters.index("def shorten")
    assert source_text(("textwrap",)).characters in text.characters
