import pytest
from real_files import REAL

from mtlearn.datasets.cranfield import Document, parse_cranfield, read_cranfield

DOCUMENTS = """<doc>
<docno>1</docno>
<title>flow past
a plate .</title>
<text>flow past
a plate .
  the flow is studied .</text>
</doc>
<doc><docno>2</docno><title></title><text></text></doc>
"""
QUERIES = "<xml><top>\n<num> 1</num>\n<title>\nwhat is flow .\n</title>\n</top><top><num> 4</num><title>and what\nis a plate .</title></top></xml>"


def test_parsing() -> None:
    found = parse_cranfield(DOCUMENTS, QUERIES, "1 0 1 1\n1 0 1 3\n2 0 2 0\n2 0 1 1\n\n")
    assert found.documents == (Document("flow past a plate .", "the flow is studied ."), Document("", ""))
    assert found.queries == ("what is flow .", "and what is a plate .")
    assert found.relevant == ((0,), (0,))  # each once; a grade of 0 is no answer; questions are counted, whatever number they carry


@pytest.mark.parametrize(
    ("line", "words"), [("3 0 1 1", "of question 3 and document 1; there are 2 and 2"), ("1 0 9 1", "question 1 and document 9")]
)
def test_judgements_of_what_is_not_there(line: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_cranfield(DOCUMENTS, QUERIES, line)


@pytest.mark.skipif(not (REAL / "cranfield").exists(), reason="needs the published files")
def test_published_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    found = read_cranfield()
    assert (len(found.documents), len(found.queries)) == (1400, 225)
    assert sum(not document.text for document in found.documents) == 2
    assert all(found.relevant)
    assert found.relevant[0][:3] == (183, 28, 30)
