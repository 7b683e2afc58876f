"""Search among docstrings: the summary of a function is the query, the rest of its docstring the document to be found.

    pairs = docstring_pairs(("numpy", "scipy"))
    pairs[0].query, pairs[0].document, pairs[0].page.name

Real data that need no download (:mod:`mtlearn.datasets.documentation`). A document holds neither the summary nor the section See Also, which name
what is like it, nor the references. Pages that share their summary, or the first words of their body, with an earlier page are left out: each query
has one right answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from mtlearn.datasets.documentation import LIBRARIES, Page, documentation
from mtlearn.datasets.functions import subtokens
from mtlearn.layers.tokens import words

SAME = 40  # first words of a body by which twins are known


@dataclass(frozen=True)
class DocstringPair:
    """A page as a query and its document.

    Attributes:
        page: where both come from.
        query: the summary.
        document: the sections but See Also and References, without headings.
    """

    page: Page
    query: str
    document: str

    @property
    def name(self) -> str:
        """The function's own name as words: "logsumexp", "eigvals banded"."""
        return " ".join(subtokens(self.page.name.rpartition(".")[2]))

    @property
    def library(self) -> str:
        """Its library."""
        return self.page.library


def docstring_pairs(libraries: Sequence[str] = LIBRARIES, *, query: tuple[int, int] = (4, 30), document: int = 30) -> tuple[DocstringPair, ...]:
    """The pairs of some libraries, in the order of the corpus.

    Args:
        libraries: some of :data:`~mtlearn.datasets.documentation.LIBRARIES`.
        query: fewest and most words of a summary; others are left out.
        document: fewest words of a document.

    Raises:
        ValueError: bounds below 1 or in the wrong order, or unknown libraries.
    """
    if not 1 <= query[0] <= query[1] or document < 1:
        raise ValueError(f"bounds must be at least 1 and in order, got query={query}, document={document}")
    return _pairs(tuple(libraries), query, document)


@cache
def _pairs(libraries: tuple[str, ...], query: tuple[int, int], document: int) -> tuple[DocstringPair, ...]:
    found: list[DocstringPair] = []
    seen: set[tuple[str, ...]] = set()
    for page in documentation(libraries).pages:
        summary, body = tuple(words(page.summary)), page.body()
        start = tuple(words(body)[: max(SAME, document)])
        if not query[0] <= len(summary) <= query[1] or len(start) < document:
            continue
        twins = {("summary", *summary), ("body", *start[:SAME])}
        if not twins & seen:
            seen |= twins
            found.append(DocstringPair(page, page.summary, body))
    return tuple(found)
