"""The documentation corpus: the installed libraries, a toy in place of one of them, and docstrings by hand."""

import gzip
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtlearn.datasets import documentation as d
from mtlearn.datasets.documentation import Corpus, Page

FOUR = ("numpy", "scipy", "networkx", "sklearn")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    """All libraries, read anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTLEARN_CACHE", str(tmp_path_factory.mktemp("cache")))
        d._corpus.cache_clear()
        yield d.documentation()
        d._corpus.cache_clear()


@pytest.fixture(scope="module")
def graph(corpus: Corpus) -> d.LinkGraph:
    return d.link_graph(corpus)


# Known pages


def test_a_known_page(corpus: Corpus):
    page = corpus.page("numpy.linalg.svd")
    assert (page.name, page.library, page.module, page.topic, page.kind) == ("numpy.linalg.svd", "numpy", "numpy.linalg", "numpy.linalg", "function")
    assert page.summary == "Singular Value Decomposition."
    assert [heading for heading, _ in page.sections] == ["Extended Summary", "Parameters", "Returns", "Raises", "See Also", "Notes", "Examples"]
    assert page.section("Parameters").startswith("a : (..., M, N) array_like\n    A real or complex array")
    assert page.section("Warns") == ""
    assert page.see_also == page.links == ("scipy.linalg.svd", "scipy.linalg.svdvals")
    body = page.body()
    assert page.section("Notes") in body and "scipy.linalg.svdvals" not in body and page.summary not in body
    assert page.body(without=("Notes",)).count("scipy.linalg.svdvals") == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("numpy.sin", {"summary": "Trigonometric sine, element-wise.", "kind": "function"}),  # its docstring begins with its signature
        ("numpy.dtype", {"summary": "Create a data type object.", "kind": "class"}),  # compiled: "--" after the signature
        ("numpy.emath.sqrt", {"source": "numpy.lib.scimath", "aliases": ()}),  # a public name of another module
        ("scipy.special.airy", {"summary": "Airy functions and their derivatives."}),  # two signatures
        ("scipy.stats.norm", {"summary": "A normal continuous random variable.", "topic": "scipy.stats"}),  # an object that can be called
        ("networkx.shortest_path", {"module": "networkx", "topic": "networkx.algorithms.shortest_paths"}),
        ("sklearn.svm.SVC", {"kind": "class", "source": "sklearn.svm._classes", "topic": "sklearn.svm"}),
        ("torch.nn.functional.conv1d", {"aliases": ("torch.conv1d",), "module": "torch.nn.functional", "topic": "torch.nn.functional"}),
        ("torch.add", {"signature": "add(input, other, *, alpha=1, out=None) -> Tensor", "topic": "torch"}),
        ("torch.linalg.svd", {"summary": "Computes the singular value decomposition (SVD) of a matrix.", "module": "torch.linalg"}),
        ("torch.nn.Linear", {"kind": "class", "source": "torch.nn.modules.linear", "topic": "torch.nn"}),
    ],
)
def test_pages_of_each_kind(corpus: Corpus, name: str, expected: dict[str, object]):
    page = corpus.page(name)
    assert {field: getattr(page, field) for field in expected} == expected


def test_googles_style(corpus: Corpus):
    page = corpus.page("torch.linalg.svd")
    assert page.signature.startswith("linalg.svd(A, full_matrices=True, *, driver=None")
    headings = [heading for heading, _ in page.sections]
    assert headings == ["Extended Summary", "Notes", "Warnings", "See Also", "Parameters", "Other Parameters", "Returns", "Examples"]
    assert page.section("Parameters").startswith("A (Tensor): tensor of shape")
    assert {"torch.linalg.svdvals", "torch.linalg.eig"} <= set(page.links)


def test_one_object_is_one_page_under_any_of_its_names(corpus: Corpus):
    page = corpus.page("torch.conv1d")
    assert page.name == "torch.nn.functional.conv1d" and page is corpus.page("torch.nn.functional.conv1d")
    names = [name for page in corpus.pages for name in (page.name, *page.aliases)]
    assert len(set(names)) == len(names)
    with pytest.raises(ValueError, match=r"the corpus has no page 'numpy.linalg.svdd': did you mean numpy.linalg.svd"):
        corpus.page("numpy.linalg.svdd")


def test_links_of_homonyms_stay_in_their_module(corpus: Corpus):
    assert "numpy.polynomial.polynomial.polyint" in corpus.page("numpy.polynomial.polynomial.polyder").links
    assert "numpy.polyint" in corpus.page("numpy.polyder").links
    assert "scipy.fftpack.ifft" in corpus.page("scipy.fftpack.fft").links
    assert corpus.page("scipy.signal.csd").links == tuple(f"scipy.signal.{name}" for name in ("periodogram", "lombscargle", "welch", "coherence"))
    assert "networkx.maximum_flow" in corpus.page("networkx.algorithms.connectivity.local_edge_connectivity").links


# Every page


def test_every_page_is_in_order(corpus: Corpus):
    assert len(corpus.pages) > 5000
    keys = [(d.LIBRARIES.index(page.library), page.name) for page in corpus.pages]
    assert keys == sorted(set(keys))
    names = {page.name for page in corpus.pages}
    for page in corpus.pages:
        assert page.name.rpartition(".")[0] == page.module and page.module in d.MODULES[page.library]
        assert not any(part.startswith("_") for part in page.name.split(".")), page.name
        assert page.summary and page.summary == " ".join(page.summary.split()) and not page.summary.startswith("..")
        assert page.topic == page.library or page.topic.startswith(page.library + ".")
        assert set(page.links) <= names - {page.name} and len(set(page.links)) == len(page.links) <= len(page.see_also)
        assert len({heading for heading, _ in page.sections}) == len(page.sections)
        assert all(text.strip() for _, text in page.sections)
        assert "# may vary" not in page.body()


def test_what_is_left_out(corpus: Corpus):
    known = {name for page in corpus.pages for name in (page.name, *page.aliases)}
    assert known.isdisjoint(["numpy.testing.assert_allclose", "torch.cuda.synchronize"])  # for tests, for a device
    assert known.isdisjoint(["networkx.Graph.add_edge", "scipy.linalg.basic.solve"])  # a method, a deprecated module
    assert known.isdisjoint(["sklearn.calibration.expit", "torch.AggregationType"])  # of another library, an enumeration of compiled code
    assert not any(".tests" in page.source or ".testing" in page.source for page in corpus.pages)
    assert corpus.page("networkx.Graph")


def test_the_sizes_are_those_of_the_libraries(corpus: Corpus):
    sizes = {library: sum(page.library == library for page in corpus.pages) for library in d.LIBRARIES}
    assert all(sizes[library] > least for library, least in {"numpy": 900, "scipy": 1400, "networkx": 800, "sklearn": 500, "torch": 1000}.items())
    unresolved = sum(len(page.see_also) - len(page.links) for page in corpus.pages)
    assert unresolved < 0.1 * sum(len(page.see_also) for page in corpus.pages)


def test_the_fingerprint_says_what_was_read(corpus: Corpus):
    found = json.loads(json.dumps(corpus.fingerprint))
    assert list(found) == ["versions", "sha256", "pages"] and found["pages"] == len(corpus.pages) and len(found["sha256"]) == 64
    assert found["versions"]["networkx"] == nx.__version__ and list(found["versions"]) == list(d.LIBRARIES)
    part = d.documentation(("networkx", "numpy"))
    assert part is d.documentation(["numpy", "networkx"]) and part.sha256 != corpus.sha256
    assert {page.library for page in part.pages} == {"numpy", "networkx"} == set(dict(part.versions))
    assert corpus.page("numpy.linalg.svd").links and not part.page("numpy.linalg.svd").links  # links go to pages of the corpus only


# The graph


def test_the_graph_holds_the_links_of_large_components(corpus: Corpus, graph: d.LinkGraph):
    everything = nx.Graph()
    everything.add_nodes_from(page.name for page in corpus.pages)
    everything.add_edges_from((page.name, link) for page in corpus.pages for link in page.links)
    large = set().union(*(part for part in nx.connected_components(everything) if len(part) >= 5))
    assert set(graph.names) == large and list(graph.names) == [page.name for page in corpus.pages if page.name in large]
    wanted = {frozenset(edge) for edge in everything.edges if large.issuperset(edge)}
    assert {frozenset((graph.names[i], graph.names[j])) for i, j in graph.edges.tolist()} == wanted
    assert len(graph.edges) == len(wanted) > 3000 and len(graph.pages) > 1500


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch_geometric's import calls it
def test_the_edge_index_is_symmetric(graph: d.LinkGraph):
    from torch_geometric.utils import coalesce, contains_self_loops, is_undirected

    assert graph.edge_index.shape == (2, 2 * len(graph.edges)) and graph.edge_index.dtype == torch.long
    assert is_undirected(graph.edge_index) and not contains_self_loops(graph.edge_index)
    assert torch.equal(coalesce(graph.edge_index), graph.edge_index)
    assert (graph.edges[:, 0] < graph.edges[:, 1]).all()


def toy_pages() -> tuple[Page, ...]:
    """A chain a - b - c, a pair d - e, and f alone."""
    links = {"a": ("b",), "b": ("a", "c"), "c": (), "d": (), "e": ("d",), "f": ()}
    page = Page("x", "numpy", "numpy", "numpy", "function", "", "Do it.", ())
    return tuple(replace(page, name=f"numpy.{name}", links=tuple(f"numpy.{link}" for link in to)) for name, to in links.items())


@pytest.mark.parametrize(
    ("smallest", "names", "edges"),
    [(1, "abcdef", [[0, 1], [1, 2], [3, 4]]), (2, "abcde", [[0, 1], [1, 2], [3, 4]]), (3, "abc", [[0, 1], [1, 2]]), (4, "", [])],
)
def test_the_smallest_component(smallest: int, names: str, edges: list[list[int]]):
    graph = d.link_graph(Corpus(toy_pages(), (), ""), smallest=smallest)
    assert graph.names == tuple(f"numpy.{name}" for name in names) and graph.edges.tolist() == edges
    assert graph.edge_index.shape == (2, 2 * len(edges)) and graph.data().num_nodes == len(names)


def test_a_graph_without_pages():
    graph = d.link_graph(Corpus((), (), ""), smallest=1)
    assert graph.pages == () and graph.edges.shape == (0, 2) and graph.edge_index.shape == (2, 0)


def test_data_for_torch_geometric(graph: d.LinkGraph):
    x = torch.rand(len(graph.pages), 3)
    data = graph.data(x, label="library")
    assert data.validate() and data.x is x and data.num_nodes == len(graph.pages)
    y, classes = d.labels(graph.pages, "library")
    assert torch.equal(data.y, y) and [classes[i] for i in y.tolist()] == [page.library for page in graph.pages]
    with pytest.raises(ValueError, match=rf"x must have shape \({len(x)}, d\), a row a page, got \(3,\)"):
        graph.data(torch.rand(3))


def test_labels_count_from_the_largest_class(graph: d.LinkGraph):
    y, classes = d.labels(graph.pages, "topic", most=10)
    sizes = [int((y == i).sum()) for i in range(10)]
    assert len(classes) == 10 and sizes == sorted(sizes, reverse=True)
    every, names = d.labels(graph.pages, "topic")
    assert torch.equal(torch.where(every < 10, every, -1), y) and names[:10] == classes and len(names) > 10
    tied = [replace(page, module=f"numpy.{module}") for page, module in zip(toy_pages(), "bbaacd", strict=True)]
    assert d.labels(tied)[1] == ("numpy.a", "numpy.b", "numpy.c", "numpy.d")


# Features and splits


def test_features_are_scaled_and_repeat(graph: d.LinkGraph):
    summaries = [page.summary for page in graph.pages]
    x = d.text_features(summaries, 64)
    assert x.shape == (len(summaries), 64) and x.dtype == torch.float32 and float(x.std()) == pytest.approx(1, abs=1e-3)
    assert torch.equal(x, d.text_features(summaries, 64))
    # the same words, the same vector; and a neighbour is nearer than a page at random
    first, second = graph.edges[:, 0], graph.edges[:, 1]
    near = torch.cosine_similarity(x[first], x[second]).mean()
    far = torch.cosine_similarity(x[first], x[second.roll(1000)]).mean()
    assert near > far + 0.3


def test_features_are_a_truncated_decomposition():
    texts = ["red green", "green blue", "blue red", "red red green blue"]
    x = d.text_features(texts, 2, min_documents=1)
    assert x.shape == (4, 2) and float(x.std(correction=0)) == pytest.approx(1, abs=1e-5)
    table = torch.tensor([[0, 1, 1], [1, 1, 0], [1, 0, 1]], dtype=torch.double) / 2**0.5  # blue, green, red: each in three of the texts
    last = torch.tensor([[1, 1, 1 + torch.log(torch.tensor(2.0)).item()]], dtype=torch.double)
    full = torch.cat([table, last / last.norm()])
    u, s, _ = torch.linalg.svd(full, full_matrices=False)
    wanted = (u * s)[:, :2]
    wanted = (wanted * x.norm() / wanted.norm()).float()
    assert torch.allclose(x @ x.T, wanted @ wanted.T, atol=1e-5)  # but for the signs of the columns


@pytest.mark.parametrize("by", ["name", "summary", "source", "topic", "module"])
def test_a_split_is_disjoint_complete_and_stable(corpus: Corpus, by: d.Group):
    split = d.split(corpus.pages, by=by)
    parts = (split.train, split.validation, split.test)
    assert sorted(itertools.chain(*parts)) == list(range(len(corpus.pages)))
    assert all(list(part) == sorted(part) for part in parts)
    groups = [{getattr(corpus.pages[i], by) for i in part} for part in parts]
    assert all(not one & other for one, other in itertools.combinations(groups, 2))
    fewer = corpus.pages[1::3]  # the part of a page does not depend on the others
    again = d.split(fewer, by=by)
    assert {fewer[i].name for i in again.test} == {corpus.pages[i].name for i in split.test} & {page.name for page in fewer}
    assert d.split(corpus.pages, by=by, seed=1) != split


def test_the_fractions_of_a_split(corpus: Corpus):
    n = len(corpus.pages)
    split = d.split(corpus.pages, train=0.5, validation=0.25)
    assert [len(part) / n for part in (split.train, split.validation, split.test)] == pytest.approx([0.5, 0.25, 0.25], abs=0.03)
    assert d.split(corpus.pages, train=1, validation=0).train == tuple(range(n))
    assert d.split(corpus.pages, train=0, validation=0).test == tuple(range(n))
    assert d.split((), seed=3) == d.Split((), (), ())


# What is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: d.documentation(("numpy", "pandas")), r"some of numpy, scipy, networkx, sklearn, torch, each once, .* got \('numpy', 'pandas'\)"),
        (lambda: d.documentation("numpy"), "in a tuple or list, got 'numpy'"),
        (lambda: d.documentation(()), r"got \(\)"),
        (lambda: d.documentation(("numpy", "numpy")), "each once"),
        (lambda: d.link_graph(Corpus((), (), ""), smallest=0), "smallest must be at least 1, got 0"),
        (lambda: d.labels(toy_pages(), "colour"), "label must be one of library, module, topic, got 'colour'"),
        (lambda: d.labels(toy_pages(), most=0), "most must be at least 1, got 0"),
        (lambda: d.split(toy_pages(), train=0.8, validation=0.3), "a sum of at most 1, got 0.8 and 0.3"),
        (lambda: d.split(toy_pages(), train=-0.1), "fractions with"),
        (lambda: d.split(toy_pages(), train=float("nan")), "fractions with"),
        (lambda: d.split(toy_pages(), by="colour"), "by must be one of name, summary, source, topic, module, got 'colour'"),
        (lambda: d.text_features(["red green"] * 3, 0), "at least 1, got 0 and 2"),
        (lambda: d.text_features(["red green"] * 3, 2), "dim must be below the number of texts and of words, 3 and 2, got 2"),
        (lambda: d.text_features(["the of"] * 3, 2), "no word is left in 3 texts"),
    ],
)
def test_bad_arguments_name_the_right_values(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> str:
        raise d.PackageNotFoundError(name)

    monkeypatch.setattr(d, "version", missing)
    d._corpus.cache_clear()
    with pytest.raises(RuntimeError, match=r"scikit-learn is not installed in .*: install it, or leave 'sklearn' out of the libraries"):
        d.documentation(("sklearn",))


# A toy in place of networkx

TOY = '''
"""A library whose import prints and warns."""
import json, os, sys, warnings
from functools import partial
from json import dumps
print("hello"); print("hello", file=sys.stderr); warnings.warn("a warning")
from networkx.deep._hidden import shown

def plain(x):
    """Do one thing,
    plainly.

    More of it.

    See Also
    --------
    other, shown : two at once
    networkx.deep.below
    plain : itself
    json.loads : not of here
    """
same = plain
def other():
    "Do another."
def undocumented(): ...
def _private():
    "Private."
class Shape:
    "A shape."
    def area(self):
        "Its area."
    def __call__(self): ...
unit = Shape()  # can be called, and has only the docstring of its class
double = Shape()
double.__doc__ = "An object with a docstring of its own."
numbers = 3
class Row(tuple):
    "Row(a, b)"
def sets():
    pass
sets.__doc__ = "Show a set: " + " ".join({"red", "green", "blue", "white", "black"}) + "."
def environment():
    pass
environment.__doc__ = "Show " + os.environ.get("NETWORKX_TOY", "nothing") + " and " + os.environ.get("TOY", "nothing") + "."
def optimised():
    "Read."
def sample():
    pass
sample.__doc__ = f"""Draw.

Examples
--------
>>> draw()
{os.urandom(4).hex()}  # may vary
>>> 1 + 1
2
"""
def __getattr__(name):
    if name == "old":
        warnings.warn("old is deprecated", DeprecationWarning)
        return other
    if name == "absent":
        raise ImportError("needs another package")
    raise AttributeError(name)
def __dir__():
    return [*globals(), "old", "absent"]
'''


UTILS = """
__all__ = ["tool", "same"]
from networkx import same
def tool():
    "A tool."
def spare():
    "Spare."
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package ``networkx`` that stands before the real one; the cache is its own."""
    deep = tmp_path / "site" / "networkx" / "deep"
    deep.mkdir(parents=True)
    (deep.parent / "__init__.py").write_text(TOY)
    (deep / "__init__.py").write_text('def below():\n    "Below."\n')
    (deep / "_hidden.py").write_text('def shown():\n    "Shown."\n')
    (deep.parent / "utils.py").write_text(UTILS)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("MTLEARN_CACHE", str(tmp_path / "cache"))
    d._corpus.cache_clear()
    yield deep.parent
    d._corpus.cache_clear()


def read_again() -> Corpus:
    d._corpus.cache_clear()
    return d.documentation(("networkx",))


def kept(toy: Path) -> list[Path]:
    return sorted((toy.parents[1] / "cache" / "documentation").iterdir())


def test_what_makes_a_page(toy: Path, capfd: pytest.CaptureFixture[str]):
    found = read_again()
    assert [page.name for page in found.pages] == [
        f"networkx.{name}" for name in ("Shape", "double", "environment", "optimised", "other", "plain", "sample", "sets", "shown", "utils.tool")
    ]
    assert capfd.readouterr() == ("", "")
    page = found.page("networkx.same")
    assert (
        page
        == found.page("networkx.utils.same")
        == Page(
            name="networkx.plain",
            library="networkx",
            module="networkx",
            source="networkx",
            kind="function",
            signature="",
            summary="Do one thing, plainly.",
            sections=(("Extended Summary", "More of it."), ("See Also", page.section("See Also"))),
            see_also=("other", "shown", "networkx.deep.below", "plain", "json.loads"),
            links=("networkx.other", "networkx.shown"),
            aliases=("networkx.same", "networkx.utils.same"),
        )
    )
    assert found.page("networkx.other").aliases == ()  # its old name is deprecated
    assert found.page("networkx.shown").source == "networkx.deep._hidden" and found.page("networkx.shown").topic == "networkx.deep"
    assert [page.kind for page in found.pages[:2]] == ["class", "function"]
    assert found.page("networkx.sample").section("Examples") == ">>> draw()\n>>> 1 + 1\n2"


def test_the_same_makes_a_page_in_this_process(toy: Path, monkeypatch: pytest.MonkeyPatch):
    wanted = read_again().pages
    toys = toy.rename(toy.with_name("toys"))
    for path in toys.rglob("*.py"):
        path.write_text(path.read_text().replace("networkx", "toys"))
    monkeypatch.setattr(d, "MODULES", {"toys": ("toys", "toys.utils", "toys.lost")})
    found = d.read_library("toys")
    for name in [name for name in sys.modules if name.partition(".")[0] == "toys"]:
        monkeypatch.delitem(sys.modules, name)
    assert [page.name.removeprefix("toys") for page in found] == [page.name.removeprefix("networkx") for page in wanted]
    assert [page.kind for page in found] == [page.kind for page in wanted]


def test_the_environment_does_not_show(toy: Path, monkeypatch: pytest.MonkeyPatch):
    first = read_again()
    assert first.page("networkx.environment").summary == "Show nothing and nothing."
    for path in kept(toy):
        path.unlink()
    for name, value in {"PYTHONHASHSEED": "7", "PYTHONOPTIMIZE": "2", "NETWORKX_TOY": "this", "PYTHONWARNINGS": "error"}.items():
        monkeypatch.setenv(name, value)
    assert read_again() == first


def test_the_cache_is_used(toy: Path):
    first = read_again()
    (path,) = kept(toy)
    assert path.name.startswith(f"networkx-{nx.__version__}-py3")
    (toy / "__init__.py").write_text("raise RuntimeError('read again')")
    assert read_again() == first


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-20],
        lambda data: b"text",
        lambda data: gzip.compress(gzip.decompress(data).replace(b"plainly", b"plaintly")),
        lambda data: gzip.compress(gzip.decompress(data)[:64] + b"\n"),
    ],
    ids=["empty", "cut", "text", "changed", "no rows"],
)
def test_a_broken_file_is_written_anew(toy: Path, damage):
    first = read_again()
    (path,) = kept(toy)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert read_again() == first
    assert path.read_bytes() == whole and kept(toy) == [path]  # the same bytes, and nothing beside them


def test_a_cache_that_cannot_be_written_is_done_without(toy: Path, monkeypatch: pytest.MonkeyPatch):
    first = read_again()
    wall = toy.parents[1] / "wall"
    wall.write_text("a file where the folder would be")
    monkeypatch.setenv("MTLEARN_CACHE", str(wall))
    assert read_again() == first and wall.read_text().startswith("a file")


def test_another_version_is_another_file(toy: Path, monkeypatch: pytest.MonkeyPatch):
    first = read_again()
    monkeypatch.setattr(d, "version", lambda name: "99.0")
    second = read_again()
    assert second.pages == first.pages and second.sha256 == first.sha256 and second.versions == (("networkx", "99.0"),)
    assert len(kept(toy)) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise OSError('a broken library')", "the documentation of networkx cannot be read: OSError: a broken library"),
        ("import os; os._exit(3)", "the documentation of networkx cannot be read: Python ended with 3"),
        ("", "the documentation of networkx cannot be read: it has no page"),
    ],
)
def test_a_library_that_cannot_be_read(toy: Path, source: str, message: str):
    (toy / "__init__.py").write_text(source)
    (toy / "utils.py").write_text("")
    with pytest.raises(RuntimeError, match=message):
        read_again()


def test_a_library_is_read_in_this_process_too(corpus: Corpus):
    wanted = [replace(page, links=()) for page in corpus.pages if page.library == "networkx"]
    assert list(d.read_library("networkx")) == wanted


def test_back_ends_of_networkx_do_not_show(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "fake_nx-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-nx\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[networkx.backends]\nfake = fake_nx:Backend\n[networkx.backend_info]\nfake = fake_nx:info\n")
    (tmp_path / "fake_nx.py").write_text(
        'class Backend: ...\ndef info():\n    return {"functions": {"shortest_path": {"additional_docs": "Fake."}}}\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    code = "import networkx; print('Fake.' in networkx.shortest_path.__doc__)"
    said = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True)
    assert said.stdout == "True\n"  # the back end is at work
    found = d._linked(d._pages(d._read_apart("networkx", tmp_path / "rows.gz")))
    assert [page.name for page in found] == [page.name for page in corpus.pages if page.library == "networkx"]
    assert not any(heading == "Backends" for page in found for heading, _ in page.sections)


def test_two_processes_read_the_same(corpus: Corpus, tmp_path: Path):
    """With other hash seeds, other things imported before and a cache of their own; and without a warning or PyTorch."""
    code = (
        "import sys, {first}\nfrom mtlearn.datasets import documentation as d\ncorpus = d.documentation(('numpy', 'networkx'))\n"
        "parts = d.split(corpus.pages)\nprint(corpus.sha256, hash(parts), 'torch' in sys.modules)"
    )
    said = []
    for seed, first in (("1", "scipy.special"), ("2", "networkx")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "MTLEARN_CACHE": str(tmp_path / seed)}
        command = [sys.executable, "-W", "error", "-c", code.format(first=first)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        said.append(done.stdout.split())
    ours = d.documentation(("numpy", "networkx"))
    assert said == [[ours.sha256, str(hash(d.split(ours.pages))), "False"]] * 2


# Docstrings by hand


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("", ("", "", ())),
        ("f(x)", ("f(x)", "", ())),
        ("f(x) -> float\n\nGive it.", ("f(x) -> float", "Give it.", ())),
        ("1. f(x)\n2. f(x,\n     y)\n--\n\nGive it.", ("1. f(x)\n2. f(x, y)", "Give it.", ())),
        ("f(x) is a sentence.", ("", "f(x) is a sentence.", ())),
        ("g(x)\n\nRest.", ("", "g(x)", (("Extended Summary", "Rest."),))),  # not its own name
        ("__init__(a)\nMake it.", ("__init__(a)", "Make it.", ())),
        ("One\n  two.\n\n\nMore.\n\nYet more.", ("", "One two.", (("Extended Summary", "More.\n\nYet more."),))),
        (".. deprecated:: 1\n   Gone.\n\nOne.", ("", "One.", (("Extended Summary", ".. deprecated:: 1\n   Gone."),))),
        ("    Indented.\n    More", ("", "Indented. More", ())),
        ("One.\n\nParameters\n----------\nx : int\n    It.\n", ("", "One.", (("Parameters", "x : int\n    It."),))),
        ("One.\n\nArgs\n====\nx\nArgs\n----\ny", ("", "One.", (("Parameters", "x\n\ny"),))),  # the same heading twice
        ("One.\n\nNotes\n-----\n\nReturns\n-------\ny", ("", "One.", (("Returns", "y"),))),  # an empty section
        ("One.\n\nNotes\n-----\nExample:\n    x", ("", "One.", (("Notes", "Example:\n    x"),))),  # inside a section nothing opens
        ("One.\n\n=====\na b\n=====\n1 2\n=====", ("", "One.", (("Extended Summary", "=====\na b\n=====\n1 2\n====="),))),
        (
            "One.\n\nArgs:\n    x: a\n        b\n\n    y: c\nAfter.",
            ("", "One.", (("Extended Summary", "After."), ("Parameters", "x: a\n    b\n\ny: c"))),
        ),
        ("One.\n\n.. note:: first\n   second\n\nExample::\n\n    >>> 1", ("", "One.", (("Notes", "first\n\nsecond"), ("Examples", ">>> 1")))),
        (".. seealso:: :func:`g`", ("", "", (("See Also", ":func:`g`"),))),
        ("One.\n\nNotes\n-----\nReturns\n-------\ny", ("", "One.", (("Returns", "y"),))),
        ("One.\n\nExamples\n--------\n>>> f()\n0.3  # may vary\n>>> 2\n2", ("", "One.", (("Examples", ">>> f()\n>>> 2\n2"),))),
    ],
)
def test_docstrings_fall_into_parts(docstring: str, expected):
    assert d.parse_docstring(docstring, "f") == expected


LINES = ["", "Text.", "    indented", "Notes", "-----", "=====", "Args:", ".. note:: x", ".. seealso::", "f(x, (y", ") -> z", "f(x)", "--", "(("]


@given(st.lists(st.sampled_from(LINES), max_size=12))
def test_no_text_is_lost_or_repeated(lines: list[str]):
    docstring = "\n".join(f"{line} w{i}" if line.strip().rstrip(".") in ("Text", "indented") else line for i, line in enumerate(lines))
    signature, summary, sections = d.parse_docstring(docstring, "f")
    found = " ".join([signature, summary, *(text for _, text in sections)])
    assert sorted(word for word in found.split() if word[0] == "w") == sorted(word for word in docstring.split() if word[0] == "w")
    assert summary == " ".join(summary.split()) and all(text.strip() for _, text in sections)
    assert len(dict(sections)) == len(sections)


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("a : text\n    b : not a name", "a"),
        ("a, b.c : text", "a b.c"),
        ("a,\nb", "a b"),
        ("a: text\nb():", "a b"),
        (":func:`a`, :meth:`~x.b` : text", "a x.b"),
        ("`a`\n``b()``", "a b"),
        ("* :func:`a`\n- b : text", "a b"),
        (":py:func:`text <x.a>`", "x.a"),
        ("For more see `a` and the others.", "a"),
        ("For more see the others", ""),
        (":ref:`a-b`", ""),
        ("a\na", "a"),
        ("a.\n..", "a"),
        ("", ""),
    ],
)
def test_names_of_see_also(section: str, names: str):
    assert d.see_also_names(section) == tuple(names.split())


def test_names_resolve_from_near_to_far():
    blank = Page("", "numpy", "", "", "function", "", "Do it.", ())

    def page(name: str, source: str = "", *, see_also: tuple[str, ...] = (), library: str = "numpy", aliases: tuple[str, ...] = ()) -> Page:
        module = name.rpartition(".")[0]
        return replace(blank, name=name, module=module, source=source or module, see_also=see_also, library=library, aliases=aliases)

    written = ("here", "numpy.here", "np.alone", "far", "twice", "sub.here", "priv.inner", "known_as", "nowhere", "scipy.alone", "alone")
    pages = [
        page("numpy.ma.asks", see_also=written),
        page("numpy.ma.here"),
        page("numpy.here"),
        page("numpy.alone"),
        page("numpy.lib.far"),
        page("numpy.x.twice"),
        page("numpy.y.twice"),
        page("numpy.sub.here"),
        page("numpy.inner", "numpy.lib.priv"),
        page("numpy.first", aliases=("numpy.known_as",)),
        page("scipy.alone", library="scipy"),
    ]
    (asks, *_) = d._linked(pages)
    assert asks.links == (
        "numpy.ma.here",
        "numpy.here",
        "numpy.alone",
        "numpy.lib.far",
        "numpy.sub.here",
        "numpy.inner",
        "numpy.first",
        "scipy.alone",
    )
