"""Documentation corpus: the pages of the public functions and classes of the scientific packages, and the See Also links between them.

Real data that need no download: the docstrings of the installed packages. One page::

    name      numpy.linalg.svd
    library   numpy                module   numpy.linalg          source   numpy.linalg
    summary   Singular Value Decomposition.
    sections  Extended Summary, Parameters, Returns, Raises, See Also, Notes, Examples
    see_also  scipy.linalg.svd, scipy.linalg.svdvals              as they are written
    links     scipy.linalg.svd, scipy.linalg.svdvals              those that are pages of the corpus, by their canonical names

What can be had of it::

    corpus = documentation(("numpy", "scipy"))       # pages, in the order of LIBRARIES and of names
    corpus.page("numpy.linalg.svd").section("Notes")
    corpus.fingerprint                               # versions and SHA-256, to record beside a result
    graph = link_graph(corpus, smallest=5)           # See Also, symmetric, in components of at least five pages
    x = text_features([page.summary for page in graph.pages], dim=64)
    parts = split(graph.pages, seed=0)               # train, validation, test by a hash of the name
    graph.data(x, label="module")                    # a torch_geometric Data

**What is read.** The modules of :data:`MODULES`, which are those of each library's reference, and of each the names of ``__all__``; where a
module has none, the public names that it or a module below it defines. A page is a class, a function, or an object that can be called and
has a docstring of its own (NumPy's universal functions, SciPy's distributions).

**What is left out.** Methods; whatever is not called; names with a leading underscore; names whose look-up warns that they are deprecated;
objects of another library; docstrings that are nothing but a signature (those that Python writes for data classes and named tuples); the modules
for tests, for a device that a build may lack (``torch.cuda``, ``torch.distributed`` ...) or for a package that may be missing. Where networkx's
back ends add to its docstrings, the text without them is read.

An object that is reached by several public names is one page. Its name comes from the module that stands first in :data:`MODULES`, and there it is
the object's own name if it is public, else the first of the alphabet; the other names are its ``aliases``.

**Why it repeats.** Importing one library can change the docstrings of another (SciPy writes into one of NumPy's), the order of sets and the
environment show in some, and some hold a random sample. So each library is imported in a Python process of its own, with a fixed hash seed and
without the libraries' environment variables, and example outputs that are marked "may vary" are left out. What was parsed is kept in the user's
cache, one file for a library's version. The pages depend on the versions of the libraries: record :attr:`Corpus.fingerprint` with a result.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mtlearn import paths
from mtlearn.datasets.functions import DISTRIBUTIONS
from mtlearn.datasets.kept_rows import load_rows, save_rows
from mtlearn.tables import nearest

if TYPE_CHECKING:  # the pages alone need no PyTorch
    from torch import Tensor
    from torch_geometric.data import Data

# Public modules, first the one whose name an object should carry that is found in several. A module that the installed version lacks is passed over.
MODULES: Mapping[str, tuple[str, ...]] = {
    "numpy": (
        "numpy",
        *(f"numpy.{name}" for name in ("linalg", "fft", "random", "ma", "strings", "char", "rec", "emath", "dtypes", "exceptions", "ctypeslib")),
        *(f"numpy.lib.{name}" for name in ("array_utils", "format", "introspect", "mixins", "npyio", "recfunctions", "stride_tricks")),
        "numpy.polynomial",
        *(f"numpy.polynomial.{name}" for name in ("polynomial", "chebyshev", "hermite", "hermite_e", "laguerre", "legendre", "polyutils")),
    ),
    "scipy": (
        "scipy",
        *("scipy.cluster.hierarchy", "scipy.cluster.vq", "scipy.constants", "scipy.datasets", "scipy.differentiate", "scipy.fft", "scipy.fftpack"),
        *("scipy.integrate", "scipy.interpolate", "scipy.io", "scipy.io.arff", "scipy.io.matlab", "scipy.io.wavfile", "scipy.linalg"),
        *("scipy.linalg.interpolative", "scipy.ndimage", "scipy.optimize", "scipy.optimize.elementwise", "scipy.signal", "scipy.signal.windows"),
        *("scipy.sparse", "scipy.sparse.csgraph", "scipy.sparse.linalg", "scipy.spatial", "scipy.spatial.distance", "scipy.spatial.transform"),
        *("scipy.special", "scipy.stats", "scipy.stats.contingency", "scipy.stats.mstats", "scipy.stats.qmc", "scipy.stats.sampling"),
    ),
    "networkx": (
        "networkx",
        *(f"networkx.algorithms.{name}" for name in ("approximation", "bipartite", "community", "connectivity", "flow", "isomorphism", "coloring")),
        *(f"networkx.algorithms.{name}" for name in ("node_classification", "threshold", "tournament", "tree")),
        *("networkx.classes.coreviews", "networkx.classes.filters", "networkx.classes.reportviews", "networkx.drawing.nx_agraph"),
        *("networkx.drawing.nx_pydot", "networkx.utils"),
    ),
    "sklearn": (
        "sklearn",
        *(f"sklearn.{name}" for name in ("base", "calibration", "cluster", "compose", "covariance", "cross_decomposition", "datasets")),
        *(f"sklearn.{name}" for name in ("decomposition", "discriminant_analysis", "dummy", "ensemble", "exceptions", "feature_extraction")),
        *(f"sklearn.{name}" for name in ("feature_extraction.image", "feature_extraction.text", "feature_selection", "frozen", "gaussian_process")),
        *(f"sklearn.{name}" for name in ("gaussian_process.kernels", "impute", "inspection", "isotonic", "kernel_approximation", "kernel_ridge")),
        *(f"sklearn.{name}" for name in ("linear_model", "manifold", "metrics", "metrics.cluster", "metrics.pairwise", "mixture", "model_selection")),
        *(f"sklearn.{name}" for name in ("multiclass", "multioutput", "naive_bayes", "neighbors", "neural_network", "pipeline", "preprocessing")),
        *(f"sklearn.{name}" for name in ("random_projection", "semi_supervised", "svm", "tree", "utils")),
        *(f"sklearn.utils.{name}" for name in ("class_weight", "discovery", "extmath", "graph", "metadata_routing", "metaestimators", "multiclass")),
        *(f"sklearn.utils.{name}" for name in ("parallel", "random", "sparsefuncs", "validation")),
    ),
    "torch": (
        *("torch.nn.functional", "torch", "torch.nn", "torch.nn.attention", "torch.nn.init", "torch.nn.utils", "torch.nn.utils.parametrizations"),
        *("torch.nn.utils.parametrize", "torch.nn.utils.prune", "torch.nn.utils.rnn", "torch.linalg", "torch.fft", "torch.special", "torch.sparse"),
        *("torch.signal.windows", "torch.nested", "torch.masked", "torch.random", "torch.distributions", "torch.distributions.kl", "torch.optim"),
        *("torch.optim.lr_scheduler", "torch.optim.swa_utils", "torch.autograd", "torch.autograd.forward_ad", "torch.autograd.functional"),
        *("torch.autograd.graph", "torch.func", "torch.amp", "torch.fx", "torch.hub", "torch.jit", "torch.overrides", "torch.utils.checkpoint"),
        "torch.utils.data",
    ),
}
LIBRARIES = tuple(MODULES)

Label = Literal["library", "module", "topic"]
Group = Literal["name", "summary", "source", "topic", "module"]

# Headings that are written in several ways; "Keyword args" (torch) are parameters beside the main ones.
_SAME = {
    "arg": "Parameters", "args": "Parameters", "argument": "Parameters", "arguments": "Parameters", "parameter": "Parameters",
    "keyword args": "Other Parameters", "keyword arg": "Other Parameters", "keyword arguments": "Other Parameters", "kwargs": "Other Parameters",
    "example": "Examples", "note": "Notes", "return": "Returns", "yield": "Yields", "raise": "Raises", "warn": "Warns", "warning": "Warnings",
    "reference": "References", "attribute": "Attributes", "method": "Methods", "seealso": "See Also", "also see": "See Also",
}  # fmt: skip
# What opens an indented block: Google's headings ("Args:") and directives; with an underline any few words are a heading.
_BLOCK = re.compile(
    r"\.\. (?P<directive>note|warning|seealso)::[ \t]*(?P<text>.*)"
    r"|(?P<google>args?|arguments?|parameters?|keyword arg(?:ument)?s?|kwargs|inputs?|outputs?|shape|returns?|yields?|raises?|warnings?|examples?"
    r"|notes?|references?|attributes?|variables|see also)[ \t]*::?[ \t]*",
    re.IGNORECASE,
)
_RULES = ("---", "===")
_TITLE = re.compile(r"[A-Za-z]+(?: [A-Za-z]+){0,3}:?")
_UNDERLINE = re.compile(r"-{3,}|={3,}")
_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_ROLE = re.compile(rf"(?::[\w:]+:)?`{{1,2}}(?:[^`<]*<)?~?!?({_NAME})(?:\(\))?>?`{{1,2}}")
_CALL = re.compile(r"\s*(?:\d+\.\s+)?(?:[A-Za-z_]\w*\.)*([A-Za-z_]\w*)(?=\()")
_NAMES = re.compile(rf"{_NAME}(?:\(\))?(?:\s*,\s*{_NAME}(?:\(\))?)*,?")


@dataclass(frozen=True)
class Page:
    """One documented function or class.

    Attributes:
        name: canonical public name, "scipy.linalg.svd".
        library: one of :data:`LIBRARIES`.
        module: the public module of the name, "scipy.linalg".
        source: the module that defines it, "scipy.linalg._decomp_svd"; ``module`` where compiled code does not say.
        kind: "class" or "function" (which is whatever else can be called).
        signature: the signatures that open the docstring, a line each; mostly there are none.
        summary: first paragraph, white space made single.
        sections: heading and text, in the order of the docstring; what stands between the summary and the first heading is "Extended Summary".
            Headings that are written in several ways have one form: "Args" is "Parameters", "Keyword args" is "Other Parameters", "Example" is
            "Examples", ``.. note::`` opens "Notes", ``.. seealso::`` opens "See Also".
        see_also: the names in the section See Also as they are written, without roles and marks.
        links: the canonical names of those that are pages of the corpus, without itself, each once, in the order written.
        aliases: its other public names.
    """

    name: str
    library: str
    module: str
    source: str
    kind: str
    signature: str
    summary: str
    sections: tuple[tuple[str, str], ...]
    see_also: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def topic(self) -> str:
        """The module, or where that is the whole library at most three public parts of ``source``: "networkx.algorithms.centrality"."""
        if self.module != self.library:
            return self.module
        return ".".join(itertools.takewhile(lambda part: not part.startswith("_"), self.source.split(".")[:3]))

    def section(self, heading: str) -> str:
        """The text under a heading, "" where the page has none."""
        return dict(self.sections).get(heading, "")

    def body(self, *, without: Sequence[str] = ("See Also", "References")) -> str:
        """The text of all sections but those ``without``, an empty line between two; neither the summary nor the headings."""
        return "\n\n".join(text for heading, text in self.sections if heading not in without)


@dataclass(frozen=True)
class Corpus:
    """The pages of some libraries.

    Attributes:
        pages: in the order of :data:`LIBRARIES`, then of names.
        versions: pairs of library and version.
        sha256: of the pages' contents, links included.
    """

    pages: tuple[Page, ...] = field(repr=False)
    versions: tuple[tuple[str, str], ...]
    sha256: str

    def page(self, name: str) -> Page:
        """The page of a public name, its canonical one or another. ValueError suggests the nearest."""
        if name not in self._known:
            raise ValueError(f"the corpus has no page {name!r}{nearest(name, list(self._known))}")
        return self._known[name]

    @property
    def fingerprint(self) -> dict[str, object]:
        """What a recorded result needs to say which pages it was read from: ``{"versions": {library: version}, "sha256": ..., "pages": number}``."""
        return {"versions": dict(self.versions), "sha256": self.sha256, "pages": len(self.pages)}

    @cached_property
    def _known(self) -> dict[str, Page]:
        known = {alias: page for page in self.pages for alias in page.aliases}
        return known | {page.name: page for page in self.pages}


@dataclass(frozen=True, eq=False)
class LinkGraph:
    """Pages and the See Also links between them.

    Attributes:
        pages: the nodes.
        edges: (m, 2) int64, each link once with the lower index first, in ascending order.
    """

    pages: tuple[Page, ...]
    edges: Tensor

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The canonical names of the nodes."""
        return tuple(page.name for page in self.pages)

    @property
    def edge_index(self) -> Tensor:
        """(2, 2m) int64: both directions of every link, sorted, as torch_geometric's layers take it."""
        import torch

        both = torch.cat([self.edges, self.edges.flip(1)])
        return both[torch.argsort(both[:, 0] * max(len(self.pages), 1) + both[:, 1])].T.contiguous()

    def data(self, x: Tensor | None = None, *, label: Label = "module", most: int | None = None) -> Data:
        """A ``torch_geometric.data.Data`` with ``x`` (n, d), ``edge_index`` and ``y`` (n,) of :func:`labels`.

        Raises:
            ValueError: ``x`` has not a row a page, or the label is unknown.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what its import says of PyTorch's own deprecations is not ours to report
            from torch_geometric.data import Data  # here, because the pages alone need it not

        if x is not None and (x.dim() != 2 or len(x) != len(self.pages)):
            raise ValueError(f"x must have shape ({len(self.pages)}, d), a row a page, got {tuple(x.shape)}")
        return Data(x=x, edge_index=self.edge_index, y=labels(self.pages, label, most=most)[0], num_nodes=len(self.pages))


@dataclass(frozen=True)
class Split:
    """Indices of pages, ascending; no page is in two parts and each is in one."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


def documentation(libraries: Sequence[str] = LIBRARIES) -> Corpus:
    """The pages of ``libraries``, in whatever order they are named.

    The first reading of a version imports the library in another process and takes some seconds; later ones come from the user's cache (a broken
    file there is written anew; a folder that cannot be written is done without).

    Raises:
        ValueError: no library, one twice, or one that is not in :data:`LIBRARIES`.
        RuntimeError: a library is not installed or cannot be imported.
    """
    if isinstance(libraries, str) or not libraries or len(set(libraries)) < len(libraries) or not set(libraries) <= set(LIBRARIES):
        raise ValueError(f"libraries must be some of {', '.join(LIBRARIES)}, each once, in a tuple or list, got {libraries!r}")
    return _corpus(tuple(library for library in LIBRARIES if library in libraries))


@cache
def _corpus(libraries: tuple[str, ...]) -> Corpus:
    versions = tuple((library, installed_version(library)) for library in libraries)
    with ThreadPoolExecutor(2) as pool:  # two cores are enough for the suite; the threads wait for other processes
        rows = list(pool.map(_library_rows, libraries))
    pages = _linked([page for part in rows for page in _pages(part)])
    digest = hashlib.sha256(b"".join(rows))
    for page in pages:
        digest.update(json.dumps(page.links).encode())
    return Corpus(pages, versions, digest.hexdigest())


def installed_version(library: str) -> str:
    """The version of a library. RuntimeError where it is not installed."""
    distribution = DISTRIBUTIONS.get(library, library)
    try:
        return version(distribution)
    except PackageNotFoundError:
        raise RuntimeError(f"{distribution} is not installed in {sys.prefix}: install it, or leave {library!r} out of the libraries") from None


def link_graph(corpus: Corpus, *, smallest: int = 5) -> LinkGraph:
    """The See Also links as a graph without directions: the pages in components of at least ``smallest``, in the order of the corpus.

    ``smallest=1`` keeps every page, those without a link too.

    Raises:
        ValueError: ``smallest`` is below 1.
    """
    import torch
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if smallest < 1:
        raise ValueError(f"smallest must be at least 1, got {smallest}")
    number = {page.name: i for i, page in enumerate(corpus.pages)}
    found = sorted({tuple(sorted((number[page.name], number[link]))) for page in corpus.pages for link in page.links})
    edges = torch.tensor(found, dtype=torch.long).reshape(-1, 2)
    n = len(corpus.pages)
    adjacency = coo_array((torch.ones(len(edges)).numpy(), (edges[:, 0].numpy(), edges[:, 1].numpy())), shape=(n, n))
    component = torch.from_numpy(connected_components(adjacency, directed=False)[1]).long()
    kept = component.bincount()[component] >= smallest
    order = kept.cumsum(0) - 1
    return LinkGraph(tuple(page for page, keep in zip(corpus.pages, kept.tolist(), strict=True) if keep), order[edges[kept[edges[:, 0]]]])


def labels(pages: Sequence[Page], label: Label = "module", *, most: int | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """Classes of pages: y (n,) int64 and the classes' names, the largest first, ties in the order of the alphabet.

    Args:
        pages: n pages.
        label: "library", "module" (of the public name) or "topic" (of the definition: networkx has most of its functions in one module).
        most: keep the ``most`` largest classes; pages of another get -1.

    Raises:
        ValueError: the label is unknown or ``most`` is below 1.
    """
    import torch

    if label not in get_args(Label):
        raise ValueError(f"label must be one of {', '.join(get_args(Label))}, got {label!r}")
    if most is not None and most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    values = [getattr(page, label) for page in pages]
    classes = tuple(name for name, _ in sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))[:most]
    number = {name: i for i, name in enumerate(classes)}
    return torch.tensor([number.get(value, -1) for value in values], dtype=torch.long), classes


def text_features(texts: Sequence[str], dim: int = 64, *, min_documents: int = 2) -> Tensor:
    """Texts as vectors (n, dim), float32: a truncated singular value decomposition of their TF-IDF, divided by the overall standard deviation.

    Words of two and more letters or digits, without English stop words and those of fewer than ``min_documents`` texts; term frequency
    1 + log tf; rows of length 1 before the decomposition. The vectors are fitted on all of ``texts``: no label is used. They repeat to the bit
    for the same texts on one machine and thread count.

    Raises:
        ValueError: fewer texts or words than ``dim`` + 1, or ``dim`` below 1.
    """
    import numpy as np
    import torch
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    if dim < 1 or min_documents < 1:
        raise ValueError(f"dim and min_documents must be at least 1, got {dim} and {min_documents}")
    vectorizer = TfidfVectorizer(stop_words="english", min_df=min_documents, sublinear_tf=True)
    try:
        table = vectorizer.fit_transform(texts)  # (n, words)
    except ValueError as error:  # what it says of an empty vocabulary is true but does not say of what
        raise ValueError(f"no word is left in {len(texts)} texts: {error}") from None
    if min(table.shape) <= dim:
        raise ValueError(f"dim must be below the number of texts and of words, {table.shape[0]} and {table.shape[1]}, got {dim}")
    vectors = TruncatedSVD(dim, algorithm="arpack", random_state=0).fit_transform(table)
    return torch.from_numpy((vectors / vectors.std()).astype(np.float32))


def split(pages: Sequence[Page], *, seed: int = 0, train: float = 0.7, validation: float = 0.1, by: Group = "name") -> Split:
    """Three parts of the pages, the rest after ``train`` and ``validation`` being the test part.

    The part of a page follows from a hash of ``seed`` and of its value of ``by`` alone, so it is the same for every choice of pages and another
    version of a library moves no page; the sizes are only about the fractions asked for.

    Args:
        pages: n pages.
        seed: another seed, another split.
        train: fraction for training.
        validation: fraction for validation.
        by: pages with the same value stay together: "name" (each for itself), "summary" (twins), "source" (one file), "topic" or "module".

    Raises:
        ValueError: fractions below 0 or above 1 in sum, or an unknown ``by``.
    """
    if not (0 <= train <= 1 and 0 <= validation <= 1 and train + validation <= 1 + 1e-9):
        raise ValueError(f"train and validation must be fractions with a sum of at most 1, got {train} and {validation}")
    if by not in get_args(Group):
        raise ValueError(f"by must be one of {', '.join(get_args(Group))}, got {by!r}")
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for i, page in enumerate(pages):
        digest = hashlib.sha256(f"{seed}/{getattr(page, by)}".encode()).digest()
        place = int.from_bytes(digest[:7], "big") / 2**56  # in [0, 1)
        parts["train" if place < train else "validation" if place < train + validation else "test"].append(i)
    return Split(*(tuple(part) for part in parts.values()))


# Reading a docstring


def parse_docstring(docstring: str, name: str = "") -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """Signature, summary and sections of a docstring, as :class:`Page` has them.

    Args:
        docstring: in numpydoc's style (headings with underlines) or Google's (``Args:`` with an indented block).
        name: the object's own name; only its calls are taken for signatures.
    """
    lines = [line for line in inspect.cleandoc(docstring).split("\n") if "# may vary" not in line]
    signature, lines = _signature(lines, name)
    texts: dict[str, list[str]] = {}
    heading = "Extended Summary"
    start = i = 0  # the section's first line, the line at hand

    def close(*more: str) -> None:
        texts.setdefault(heading, []).extend(text for text in (*more, _text(lines[start:i])) if text)

    while i < len(lines):
        if _heading(lines, i) and not (i > start and lines[i - 1].startswith(_RULES)):  # else the head of a table
            close()
            heading = _normal(lines[i])
            start = i = i + 2
        elif heading == "Extended Summary" and (block := _BLOCK.fullmatch(lines[i])):
            close()
            heading = _normal(block["directive"] or block["google"])
            start = i = i + 1
            while i < len(lines) and not lines[i][:1].strip():  # indented or empty
                i += 1
            close(block["text"] or "")
            heading, start = "Extended Summary", i
        else:
            i += 1
    close()
    summary, rest = _summary("\n\n".join(texts.pop("Extended Summary")))
    sections = [(heading, "\n\n".join(parts)) for heading, parts in texts.items() if parts]
    return signature, summary, tuple([("Extended Summary", rest)] * bool(rest) + sections)


def see_also_names(section: str) -> tuple[str, ...]:
    """The names that a section See Also refers to, each once, in order: "name, name : description", with roles or without.

    Of a line that is prose, and of the descriptions, only what stands in backquotes of a line of its own list counts.
    """
    found: dict[str, None] = {}
    for line in section.split("\n"):
        if line[:1].isspace() or not line:
            continue  # the description of the line above
        listed = re.split(r"\s:(?:\s|$)|(?<=[\w`\)]):(?:\s|$)", line.removeprefix("* ").removeprefix("- ").strip(), maxsplit=1)[0]
        plain = _ROLE.sub(r"\1", listed).strip().rstrip(".")
        if _NAMES.fullmatch(plain):
            found.update((name.strip().removesuffix("()"), None) for name in plain.split(",") if name.strip())
        else:
            found.update((match[1], None) for match in _ROLE.finditer(listed))
    return tuple(found)


def _heading(lines: Sequence[str], i: int) -> bool:
    """Whether line ``i`` is a heading: a few words at the margin, with an underline."""
    if i + 1 >= len(lines) or not lines[i + 1].startswith(_RULES):  # nearly all lines end here, and quickly
        return False
    return bool(_TITLE.fullmatch(lines[i].rstrip()) and _UNDERLINE.fullmatch(lines[i + 1].rstrip()))


def _normal(heading: str) -> str:
    plain = heading.strip().rstrip(":").strip()
    return _SAME.get(plain.lower(), plain.title())


def _text(lines: Sequence[str]) -> str:
    """Lines without empty ones at the ends, and without their common indentation."""
    return textwrap.dedent("\n".join(lines)).strip("\n").rstrip()


def _signature(lines: list[str], name: str) -> tuple[str, list[str]]:
    """The opening lines that are calls of ``name`` and what they return, and the lines after them."""
    signatures: list[str] = []
    i = 0
    while i < len(lines):
        if not lines[i].strip() or (signatures and lines[i].strip() == "--"):  # "--" ends a signature of compiled code
            i += 1
            continue
        opening = _CALL.match(lines[i])
        if not opening or (name and opening[1] not in (name, "__init__")):
            break
        call, last = lines[i].strip(), i
        while call.count("(") + call.count("[") > call.count(")") + call.count("]") and last + 1 < len(lines) and lines[last + 1].strip():
            last += 1
            call += " " + lines[last].strip()
        depth, end = 0, len(call)
        for place, letter in enumerate(call):
            depth += (letter == "(") - (letter == ")")
            if letter == ")" and depth == 0:
                end = place + 1
                break
        if call[end:].strip() and not re.match(r"\s*(->|→)", call[end:]):
            break  # a sentence that begins with a call
        signatures.append(call)
        i = last + 1
    return "\n".join(signatures), lines[i:]


def _summary(text: str) -> tuple[str, str]:
    """The first paragraph that is no directive, in one line, and the rest."""
    paragraphs = re.split(r"\n[ \t]*\n", text)
    for i, paragraph in enumerate(paragraphs):
        if paragraph.strip() and not paragraph.startswith((" ", "\t", "..")):
            return " ".join(paragraph.split()), "\n\n".join(paragraphs[:i] + paragraphs[i + 1 :]).strip("\n")
    return "", text


# Reading a library


def _library_rows(library: str) -> bytes:
    """The pages of a library as rows, from the cache where it holds them."""
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]  # another parser, another file
    name = f"{library}-{installed_version(library)}-py{sys.version_info[0]}{sys.version_info[1]}-{code}.jsonl.gz"
    path = paths.cache() / "documentation" / name
    if (kept := load_rows(path)) is not None:
        return kept
    with tempfile.TemporaryDirectory(prefix="mtlearn-") as folder:
        rows = _read_apart(library, Path(folder) / name)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time and nothing else
        save_rows(path, rows)
    return rows


def _read_apart(library: str, path: Path) -> bytes:
    """Let a fresh Python import and read a library, so that nothing which this one has imported or was started with shows."""
    ours = ("PYTHON", "NUMPY", "NPY", "SCIPY", "NETWORKX", "SKLEARN", "TORCH", "PYTORCH")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours) or key == "PYTHONHOME"}
    environment |= {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)}
    code = "import sys; from mtlearn.datasets import documentation as d; d.save_rows(d.Path(sys.argv[2]), d._rows(d.read_library(sys.argv[1])))"
    command = [sys.executable, "-P", "-W", "ignore", "-c", code, library, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    rows = load_rows(path)
    if rows is None:
        last = done.stderr.strip().rpartition("\n")[2] or (f"Python ended with {done.returncode}" if done.returncode else "it has no page")
        raise RuntimeError(f"the documentation of {library} cannot be read: {last}")
    return rows


def read_library(library: str) -> tuple[Page, ...]:
    """Import a library's public modules in this process and read their pages, without links, in the order of names.

    Raises:
        ImportError: the library cannot be imported.
    """
    found: dict[int, tuple[object, list[str]]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module(library)  # if this fails there is nothing to read
        modules = {name: _module(name) for name in MODULES[library]}
    for module_name, module in modules.items():
        for name, thing in () if module is None else _public(module, library):
            found.setdefault(id(thing), (thing, []))[1].append(f"{module_name}.{name}")
    pages = []
    for thing, names in found.values():
        home = names[0].rpartition(".")[0]
        own = f"{home}.{getattr(thing, '__name__', '')}"
        canonical = own if own in names else names[0]
        source = getattr(thing, "__module__", None)
        signature, summary, sections = parse_docstring(_docstring(thing), canonical.rpartition(".")[2])
        if summary:
            see_also = see_also_names(dict(sections).get("See Also", ""))
            kind = "class" if inspect.isclass(thing) else "function"
            module_of = source if isinstance(source, str) else home
            others = tuple(sorted(set(names) - {canonical}))
            pages.append(Page(canonical, library, home, module_of, kind, signature, summary, sections, see_also, (), others))
    return tuple(sorted(pages, key=lambda page: page.name))


def _module(name: str) -> Any:
    """A module by its public name, None where the installed version lacks it or it needs a package that is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:  # numpy.emath is another module under a public name
        parent, _, last = name.rpartition(".")
        found = getattr(_module(parent), last, None) if parent else None
        return found if inspect.ismodule(found) else None


def _public(module: Any, library: str) -> Iterator[tuple[str, object]]:
    """The names and objects of a module that make pages, in the order of names."""
    listed = getattr(module, "__all__", None)
    for name in sorted(set(dir(module) if listed is None else listed)):
        if name.startswith("_"):
            continue
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                thing = getattr(module, name)
                if inspect.ismodule(thing) or not callable(thing) or not _docstring(thing):
                    continue
                source = getattr(thing, "__module__", None)
            except Exception:  # a lazy name whose optional package is missing raises what it likes
                continue
        if any(issubclass(warning.category, DeprecationWarning | PendingDeprecationWarning | FutureWarning) for warning in said):
            continue
        if not isinstance(source, str):  # some compiled code does not say where it is from: then its module must claim it
            foreign = listed is None
        else:
            below = f"{source}.".startswith(f"{module.__name__}.")
            foreign = source.partition(".")[0] != library or not (listed is not None or below or inspect.isbuiltin(thing))
        if not foreign:
            yield name, thing


def _docstring(thing: object) -> str:
    """An object's own docstring, "" where it has none or only that of its class."""
    thing = getattr(thing, "orig_func", thing)  # networkx: the function without the notes of back ends that happen to be installed
    docstring = getattr(thing, "__doc__", None)
    if not isinstance(docstring, str) or (not inspect.isclass(thing) and docstring is getattr(type(thing), "__doc__", None)):
        return ""
    return "" if docstring.startswith("Members:") else docstring  # an enumeration of compiled code


# Links


def _linked(pages: Sequence[Page]) -> tuple[Page, ...]:
    """The pages with their See Also names resolved."""
    known = {alias: page.name for page in pages for alias in page.aliases} | {page.name: page.name for page in pages}
    ends: dict[str, set[str]] = {}  # "algorithms.flow.edmonds_karp" and every shorter end, to pages
    for page in pages:
        for name in {page.name, *page.aliases, f"{page.source}.{page.name.rpartition('.')[2]}"}:
            parts = name.split(".")
            for i in range(1, len(parts)):
                ends.setdefault(".".join(parts[i:]), set()).add(page.name)
            known.setdefault(name, page.name)
    library_of = {page.name: page.library for page in pages}
    linked = []
    for page in pages:
        targets = (_resolve(written, page, known, ends, library_of) for written in page.see_also)
        linked.append(replace(page, links=tuple(dict.fromkeys(target for target in targets if target and target != page.name))))
    return tuple(linked)


def _resolve(written: str, page: Page, known: Mapping[str, str], ends: Mapping[str, set[str]], library_of: Mapping[str, str]) -> str | None:
    """The page that a name on ``page`` means.

    A full name; else a name in the module of the page, in that of its source, or above them; else the only page of the library that ends so.
    """
    written = re.sub(r"^np\.", "numpy.", written)
    if written in known:
        return known[written]
    for home in (page.module, page.source):
        parts = home.split(".")
        for i in range(len(parts), 0, -1):
            if (candidate := f"{'.'.join(parts[:i])}.{written}") in known:
                return known[candidate]
    near = [name for name in ends.get(written, ()) if library_of[name] == page.library]
    return near[0] if len(near) == 1 else None


# The cache


_STORED = tuple(name for name in Page.__dataclass_fields__ if name != "links")  # links depend on which libraries are together


def _rows(pages: Sequence[Page]) -> bytes:
    return "".join(json.dumps([getattr(page, name) for name in _STORED], separators=(",", ":")) + "\n" for page in pages).encode("ascii")


def _pages(rows: bytes) -> list[Page]:
    found = []
    for row in json.loads(b"[" + b",".join(rows.splitlines()) + b"]"):
        values: dict[str, Any] = dict(zip(_STORED, row, strict=True))
        values["sections"] = tuple((heading, text) for heading, text in values["sections"])
        values |= {name: tuple(values[name]) for name in ("see_also", "aliases")}
        found.append(Page(**values))
    return found
