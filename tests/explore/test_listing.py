"""Code shown from where it lives."""

import functools

import pytest

from mtlearn.explore import source
from mtlearn.lab import seeds
from mtlearn.lab.experiment import Settings


def plain(x: int) -> int:
    """Twice x.

    Over several lines, with code: ``'''x'''``.
    """
    return 2 * x


def raw() -> str:
    r"""A raw \docstring."""
    return """not "a" docstring"""


def bare() -> str:
    text = """no docstring"""
    return text.upper()


def only_documented() -> None:
    """Nothing but this."""


class Parent:
    """A parent with a docstring."""

    def method(self) -> int:
        """The method's own."""
        return 1


class Child(Parent):
    def method(self) -> int:  # the parent's docstring is inherited, its own code has none
        text = """kept"""
        return len(text)


@functools.cache
def decorated() -> int:
    """Gone."""
    return 1


@pytest.mark.parametrize(
    ("thing", "code"),
    [
        (plain, "def plain(x: int) -> int:\n    return 2 * x"),
        (raw, 'def raw() -> str:\n    return """not "a" docstring"""'),
        (bare, 'def bare() -> str:\n    text = """no docstring"""\n    return text.upper()'),
        (only_documented, 'def only_documented() -> None:\n    """Nothing but this."""'),
        (Parent.method, "def method(self) -> int:\n    return 1"),
        (decorated, "@functools.cache\ndef decorated() -> int:\n    return 1"),
    ],
)
def test_without_the_docstring(thing: object, code: str):
    assert repr(source(thing)) == code
    assert source(thing)._repr_markdown_() == f"```python\n{code}\n```"


def test_an_inherited_docstring_takes_nothing_away():
    assert '"""kept"""' in repr(source(Child)) and '"""kept"""' in repr(source(Child.method))


def test_with_the_docstring():
    assert '"""Twice x.' in repr(source(plain, doc=True)) and "return 2 * x" in repr(source(plain, doc=True))


def test_of_the_suites_own_code():
    """What is shown is the source, and runs."""
    code = repr(source(seeds.stream))
    assert "independent" not in code and code.startswith("def stream(")
    compile(code, "stream", "exec")
    shown = repr(source(Settings))
    assert "Base of every experiment's settings" not in shown and '"""The settings as JSON types' in shown
    compile(shown, "Settings", "exec")


def test_what_has_no_source():
    with pytest.raises(TypeError):
        source(len)
