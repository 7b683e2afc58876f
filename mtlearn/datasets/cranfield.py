"""Cranfield: 1,400 abstracts on aerodynamics, 225 questions, and which abstracts answer them; the first test collection of text retrieval.

    collection = read_cranfield()
    collection.documents[0].title        "experimental investigation of the aerodynamics of a wing in a slipstream ."
    collection.queries[0]                "what similarity laws must be obeyed when constructing aeroelastic models of heated high speed aircraft ."
    collection.relevant[0]               (183, 28, 30, ...)      indices of documents

The files are the benchmark ``cranfield`` (:mod:`mtlearn.datasets.benchmarks`). Questions carry numbers with gaps there, while the judgements count
them from 1 to 225 in order: they are matched by their order. Documents without text (two of them) stay, empty.
"""

import re
from dataclasses import dataclass

from mtlearn.datasets.benchmarks import fetch


@dataclass(frozen=True)
class Document:
    """Title and text of an abstract; the text, which repeats the title at its beginning in the file, is without it here."""

    title: str
    text: str


@dataclass(frozen=True)
class Cranfield:
    """The collection.

    Attributes:
        documents: 1,400.
        queries: 225 questions.
        relevant: of each question the indices of the documents that answer it, each once.
    """

    documents: tuple[Document, ...]
    queries: tuple[str, ...]
    relevant: tuple[tuple[int, ...], ...]


def read_cranfield() -> Cranfield:
    """The whole collection. MissingFileError where a file is not here and cannot be downloaded."""
    paths = [fetch("cranfield", name) for name in ("cran.all.1400.xml", "cran.qry.xml", "cranqrel.trec.txt")]
    documents, queries, judgements = (path.read_text(encoding="utf-8", errors="replace") for path in paths)
    return parse_cranfield(documents, queries, judgements)


def parse_cranfield(documents: str, queries: str, judgements: str) -> Cranfield:
    """The collection from the contents of its three files. ValueError where a judgement is of a document or question that is not there."""
    found = []
    for block in re.findall(r"<doc>(.*?)</doc>", documents, re.DOTALL):
        title, text = _field(block, "title"), _field(block, "text")
        found.append(Document(title, text.removeprefix(title).strip()))
    asked = tuple(_field(block, "title") for block in re.findall(r"<top>(.*?)</top>", queries, re.DOTALL))
    relevant: list[dict[int, None]] = [{} for _ in asked]
    for number, line in enumerate(judgements.splitlines(), 1):
        if not line.strip():
            continue
        query, _, document, grade = line.split()
        if not (1 <= int(query) <= len(asked) and 1 <= int(document) <= len(found)):
            raise ValueError(f"judgement {number} is of question {query} and document {document}; there are {len(asked)} and {len(found)}")
        if int(grade) > 0:
            relevant[int(query) - 1][int(document) - 1] = None
    return Cranfield(tuple(found), asked, tuple(tuple(row) for row in relevant))


def _field(block: str, name: str) -> str:
    match = re.search(rf"<{name}>(.*?)</{name}>", block, re.DOTALL)
    return " ".join(match[1].split()) if match else ""
