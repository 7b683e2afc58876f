"""Show code in a notebook from where it lives, so that text and code never drift apart."""

import inspect
from dataclasses import dataclass
from textwrap import dedent
from typing import Any


@dataclass(frozen=True)
class Source:
    """Python source that a notebook renders with colours."""

    code: str

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.code}\n```"

    def __repr__(self) -> str:
        return self.code


def source(thing: Any, *, doc: bool = False) -> Source:
    """The source of a function, method or class, without its docstring unless ``doc``."""
    code = dedent(inspect.getsource(thing)).rstrip()
    text = inspect.getdoc(thing)
    if not doc and text and '"""' in code:
        opening = code.index('"""')
        closing = code.index('"""', opening + 3) + 3
        code = code[: code.rindex("\n", 0, opening)] + code[closing:]
    return Source(code)
