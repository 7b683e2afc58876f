"""The report: one page that needs nothing else, with every claim; and plots with a dot for every seed."""

import base64
import dataclasses
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import toy_experiment
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from toy_experiment import Toy

from mtlearn.explore.style import CYCLE, GREY
from mtlearn.lab.report import claim_figure, comparison, interval, plot_arms, plot_claim, write_report
from mtlearn.lab.result import Result, summarise

VOID = {"meta", "img", "br", "hr", "link", "input"}


def result(scale: str = "quick", *, seeds: int = 4, lift: float = 0.0) -> Result:
    measured = [
        ({"trained": {"loss": 0.1 * k, "luck": 1.0}, "untrained": {"loss": 2.0 + 0.1 * k + lift, "luck": 1.0}, "extra": {"size": float(k)}}, 0.5)
        for k in range(seeds)
    ]
    return summarise(toy_experiment.experiment(), scale, Toy(seeds), measured)


class Page(HTMLParser):
    """Collects what a page says and loads; fails where its tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.raw = text
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Result, Result]:
    """The page of a paper with a recorded and a fresh result; the results."""
    root = toy_experiment.lay_out(tmp_path_factory.mktemp("checkout"))
    laptop, quick = result("laptop", seeds=5), result()
    path = root / "data" / "results" / "toy.json"
    path.parent.mkdir(parents=True)
    path.write_text(laptop.to_json())
    with pytest.MonkeyPatch.context() as patch:
        toy_experiment.install(root, patch.setattr)
        page = write_report(root / "deep" / "index.html", {"toy": [laptop, quick]})
    assert page == root / "deep" / "index.html"
    return Page(page.read_text(encoding="utf-8")), laptop, quick


def test_the_page_needs_nothing_else(written: tuple[Page, Result, Result]):
    page = written[0]
    loads = [(tag, name, value) for tag, name, value in page.attributes if name in ("src", "href", "srcset", "data", "action", "poster", "style")]
    for tag, name, value in loads:
        assert (tag, name) in {("img", "src"), ("a", "href")}
        assert value.startswith("data:image/svg+xml;base64," if tag == "img" else ("#", "https://arxiv.org/abs/")), value[:80]
    assert page.tags["script"] == page.tags["link"] == page.tags["iframe"] == 0
    links = [value for tag, _, value in loads if tag == "a" and value.startswith("#")]
    assert links and {link[1:] for link in links} <= {value for _, name, value in page.attributes if name == "id"}
    assert "@import" not in page.raw and "url(" not in page.raw


def test_every_claim_is_there(written: tuple[Page, Result, Result]):
    page, *results = written
    assert page.tags["figure"] == page.tags["img"] == 6
    for found in results:
        for claim in found.claims:
            words = claim.says or comparison(claim)
            assert f"{claim.verdict} : {words}" in page.text
            assert f"({comparison(claim)}: {interval(claim)}, must exceed {claim.margin:g})" in page.text
        assert found.command in page.text and f"{found.seeds} pairs (seeds)" in page.text
    assert [claim.verdict for claim in results[0].claims] == ["holds", "fails", "undecided"]
    for words in (
        "1 of 3 papers have results here", "A Toy & its line", "Ada Lovelace, Blaise Pascal. Journal of Toys 2020. arXiv:2001.00001", "Chapter Toys.",
        "Fit a line <and [be] done>.", "Training [a line] <lowers> the loss by more than 0.1.", "Does a line learn?",
        "Laptop scale, as recorded", "Quick scale, run here",
        "nested [[1, 2], [3]]", "torch 2", "trained loss", "extra size",
    ):  # fmt: skip
        assert words in page.text, words
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert alts[0].startswith("trained vs untrained on loss: ") and alts[0].endswith("; the claim holds")


def test_a_page_without_results(toy_root: Path):
    page = Page(write_report(toy_root / "index.html", {}).read_text())
    assert "0 of 3 papers have results here" in page.text and page.tags["figure"] == 0


def test_one_seed_has_no_interval(toy_root: Path):
    page = Page(write_report(toy_root / "index.html", {"toy": [result(seeds=1)]}).read_text())
    assert "2 (one pair: no interval)" in page.text and "1 pair (seeds)" in page.text and "undecided" in page.text


def drawing(address: str) -> ElementTree.Element:
    return ElementTree.fromstring(base64.b64decode(address.removeprefix("data:image/svg+xml;base64,")))


def test_figures_are_drawings_that_load_nothing_and_repeat():
    found = result()
    address = claim_figure(found, found.claims[0])
    svg = drawing(address)
    assert svg.tag.endswith("svg")
    links = [value for element in svg.iter() for name, value in element.attrib.items() if name.endswith("href")]
    assert all(link.startswith("#") for link in links)
    assert claim_figure(found, found.claims[0]) == address


def axes() -> Axes:
    return Figure().subplots()


def dots(on: Axes) -> list[int]:
    """How many dots each drawn set has."""
    return [len(line.get_xdata()) for line in on.lines if line.get_marker() == "o"]


@pytest.mark.parametrize("seeds", [1, 2, 7])
def test_a_dot_for_every_seed(seeds: int):
    on, found = axes(), result(seeds=seeds)
    plot_arms(on, found, "loss")
    assert dots(on) == [seeds, seeds]
    assert sorted(on.lines[0 if seeds == 1 else 1].get_xdata()) == pytest.approx([0.1 * k for k in range(seeds)])
    assert [label.get_text() for label in on.get_yticklabels()] == ["trained", "untrained"]
    assert on.get_xlabel() == "loss (squared error)"
    # rows do not run into each other
    heights = [line.get_ydata() for line in on.lines if line.get_marker() == "o"]
    assert max(heights[0]) < 0.5 < min(heights[1])


def test_the_tick_is_the_mean_and_the_band_the_interval():
    on, found = axes(), result()
    plot_arms(on, found, "loss", arms=["untrained"])
    band, _, tick = on.lines
    assert list(tick.get_xdata()) == pytest.approx([2.15, 2.15])
    half = 3.18245 * found.arms["untrained"]["loss"].sd / 2  # Student's t with three degrees of freedom, four seeds
    assert list(band.get_xdata()) == pytest.approx([2.15 - half, 2.15 + half], abs=1e-4)


def test_arms_marked_are_coloured():
    on = axes()
    plot_arms(on, result(), "loss", mark=["untrained"])
    assert [line.get_color() for line in on.lines if line.get_marker() == "o"] == [GREY, CYCLE[0]]
    on = axes()
    plot_arms(on, result(), "loss")
    assert [line.get_color() for line in on.lines if line.get_marker() == "o"] == list(CYCLE[:2])


def test_a_metric_without_unit_and_of_one_arm():
    on = axes()
    plot_arms(on, result(), "size")
    assert dots(on) == [4] and on.get_xlabel() == "size" and [label.get_text() for label in on.get_yticklabels()] == ["extra"]


def test_an_unknown_metric_names_those_there_are():
    with pytest.raises(ValueError, match=r"^no arm has the metric 'los'; there are loss, luck, size$"):
        plot_arms(axes(), result(), "los")


def test_the_claims_dot_margin_and_word():
    on, found = axes(), result(seeds=5, lift=3.0)
    claim = found.claims[0]
    plot_claim(on, claim, unit="squared error")
    assert dots(on) == [1] and on.get_title() == claim.verdict == "holds" and on.get_xlabel() == "difference (squared error)"
    margin = next(line for line in on.lines if line.get_linestyle() == "--")
    assert set(margin.get_xdata()) == {claim.margin}
    assert any(text.get_text() == "must exceed 0.1" for text in on.texts)
    low, high = on.get_xlim()
    assert low < min(claim.margin, claim.difference) and max(claim.margin, claim.difference) < high


def test_a_claim_of_one_pair_or_without_spread_is_drawn():
    for claim in (*result(seeds=1).claims, dataclasses.replace(result().claims[2], margin=0.0)):
        on = axes()
        plot_claim(on, claim)
        assert dots(on) == [1] and on.get_xlabel() == "difference"


def test_words():
    found = result(seeds=3).claims
    assert comparison(found[0]) == "trained vs untrained on loss" and comparison(found[1]) == "trained on luck"
    assert interval(found[0]) == "2 [2, 2]"
    assert re.fullmatch(r"2 \(one pair: no interval\)", interval(result(seeds=1).claims[0]))
