"""Show code in a notebook from where it lives, so that text and code never drift apart."""

import ast
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
    match getattr(ast.parse(code).body[0], "body", []):
        case [ast.Expr(value=ast.Constant(value=str()), lineno=first, end_lineno=last), _, *_] if not doc:
            lines = code.splitlines()
            del lines[first - 1 : last]
            code = "\n".join(lines)
    return Source(code)
