from pathlib import Path

import pytest
from real_files import REAL

from mtlearn.datasets import sentence_pairs
from mtlearn.datasets.sentence_pairs import ScoredPair, read_pairs

SICK = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n1\tA dog runs\tA dog is running\t5\tENTAILMENT\n"
STS = "4\tthe activity of learning\tthe process of learning.\n\ta pair\twithout a score\n0\tone\tanother\n"
MSR = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said so.\tSo he said.\n\n0\t7\t9\tHe said so.\tShe did not.\n"


def read(monkeypatch: pytest.MonkeyPatch, folder: Path, source: str, content: str) -> tuple[ScoredPair, ...]:
    path = folder / "file.txt"
    path.write_text(content, encoding="utf-8")
    monkeypatch.setattr(sentence_pairs, "fetch", lambda dataset, file: path)
    return read_pairs(source, "train")  # type: ignore[arg-type]


def test_scores_are_between_0_and_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert read(monkeypatch, tmp_path, "sick", SICK) == (ScoredPair("A dog runs", "A dog is running", 1.0),)
    assert read(monkeypatch, tmp_path, "sick", SICK.replace("\t5\t", "\t2\t"))[0].score == 0.25
    assert [pair.score for pair in read(monkeypatch, tmp_path, "sts", STS)] == [0.8, 0.0]
    assert read(monkeypatch, tmp_path, "msr", MSR)[1] == ScoredPair("He said so.", "She did not.", 0.0)


@pytest.mark.parametrize(
    ("source", "content", "words"),
    [
        ("sts", "4\tonly one\n", "file.txt, line 1: 3 fields are wanted, got 2"),
        ("sts", "4\ta\tb\nmuch\ta\tb\n", "file.txt, line 2: the score must be a number, got 'much'"),
        ("sick", SICK.replace("\t5\t", "\t0\t"), "file.txt, line 2: the score must be between 1 and 5, got 0"),
    ],
)
def test_lines_that_are_no_pairs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, content: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(monkeypatch, tmp_path, source, content)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="source must be one of sick, sts, msr and part one of train, validation, test, got 'nli' and 'train'"):
        read_pairs("nli", "train")  # type: ignore[arg-type]


@pytest.mark.skipif(not (REAL / "sts").exists(), reason="needs the published files")
def test_published_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLEARN_DATA", str(REAL))
    counts = {source: [len(read_pairs(source, part)) for part in ("train", "validation", "test")] for source in ("sick", "sts", "msr")}  # type: ignore[arg-type]
    assert counts == {"sick": [4500, 500, 4927], "sts": [3000, 750, 6750], "msr": [3576, 500, 1725]}
    assert read_pairs("sts", "train")[0] == ScoredPair(
        "the activity of learning or being trained", "the gradual process of acquiring knowledge.", 0.8
    )
