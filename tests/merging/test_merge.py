"""Merging whole checkpoints: the same numbers in memory, from file to file and by the rules on vectors; and every way to go wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from mtlearn.cli import app
from mtlearn.merging import merge as module
from mtlearn.merging import task_vectors as tv
from mtlearn.merging.merge import METHODS, Recipe, merge, merge_files
from mtlearn.merging.tall_masks.method import consensus_rule

PUBLIC = json.loads((Path(__file__).parent / "public" / "fusion_bench.json").read_text())


def state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "embedding": torch.randn(90, 40, generator=g).to(dtype),
        "norm": torch.randn(40, generator=g).to(dtype),
        "scalar": torch.randn((), generator=g).to(dtype),
        "nothing": torch.zeros(0, 3, dtype=dtype),
        "steps": torch.tensor(seed),
    }


BASE, TUNED = state(0), [state(n) for n in (1, 2, 3)]
VECTORS = [tv.task_vector(BASE, tuned) for tuned in TUNED]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 1000)  # so that an entry has several


def files(folder: Path, states: list[dict[str, Tensor]]) -> list[Path]:
    paths = [folder / f"{number}.safetensors" for number in range(len(states))]
    for path, found in zip(paths, states, strict=True):
        save_file(found, path, {"format": "pt"})
    return paths


def expected(method: str) -> dict[str, Tensor]:
    if method == "average":
        return tv.apply(BASE, tv.average(VECTORS))
    if method == "ties":
        return tv.apply(BASE, tv.ties(VECTORS))
    total = tv.add(VECTORS)
    if method == "task_arithmetic":
        return tv.apply(BASE, total, 0.3)
    rows = torch.stack([tv.flatten(vector) for vector in VECTORS])
    cut = tv.trim_(rows, torch.stack([tv.magnitude_threshold(row, 0.2) for row in rows]))
    return tv.apply(BASE, tv.unflatten(cut.sum(0), total), 0.3)


@pytest.mark.parametrize("method", ["average", "task_arithmetic", "ties", "magnitude"])
def test_pieces_give_what_the_rules_give(method: str) -> None:
    merged = merge(BASE, TUNED, method)  # type: ignore[arg-type]
    assert list(merged) == list(BASE)
    for name, value in expected(method).items():
        torch.testing.assert_close(merged[name], value, rtol=0, atol=1e-6)
    assert merged["steps"].item() == 0


def test_task_arithmetic_and_ties_have_the_numbers_of_public_code() -> None:
    base, vectors = torch.tensor(PUBLIC["base"]), torch.tensor(PUBLIC["vectors"])
    tuned = [{"w": base + vector} for vector in vectors]
    torch.testing.assert_close(merge({"w": base}, tuned, scale=0.3)["w"], torch.tensor(PUBLIC["task_arithmetic"]), rtol=0, atol=1e-6)
    zero = {"w": torch.zeros(24)}
    for case in PUBLIC["ties"]:
        if case["combine"] == "mean":
            merged = merge(zero, [{"w": vector} for vector in vectors], "ties", keep=case["keep"])["w"]
            torch.testing.assert_close(merged, torch.tensor(case["merged"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_files_give_the_same_bits_as_memory(tmp_path: Path, method: str, dtype: torch.dtype) -> None:
    states = [state(n, dtype) for n in range(4)]
    base, *tuned = files(tmp_path, states)
    seen: list[tuple[int, int]] = []
    out = merge_files(base, tuned, tmp_path / "out.safetensors", method, progress=lambda *at: seen.append(at))  # type: ignore[arg-type]
    merged = merge(states[0], states[1:], method)  # type: ignore[arg-type]
    found = load_file(out)
    assert set(found) == set(merged)
    for name, value in merged.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name
    assert seen[-1][0] == seen[-1][1] == 3641
    with safe_open(out, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.safetensors", "1.safetensors", "2.safetensors", "3.safetensors", "out.safetensors"]


def test_random_methods_repeat_and_do_not_depend_on_other_entries() -> None:
    first, again, other = (merge(BASE, TUNED, "dare", seed=seed)["norm"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    alone = merge({"norm": BASE["norm"]}, [{"norm": tuned["norm"]} for tuned in TUNED], "dare")["norm"]
    assert torch.equal(first, alone)
    dropped = merge({"w": torch.zeros(100_000)}, [{"w": torch.ones(100_000)}], "dare", drop=0.75, scale=1.0)["w"]
    assert set(dropped.unique().tolist()) == {0.0, 4.0}
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)
    kept = merge({"w": torch.zeros(100_000)}, [{"w": torch.ones(100_000)}], "random", keep=0.25, scale=1.0)["w"]
    assert kept.mean().item() == pytest.approx(0.25, abs=0.01)


def test_modules_weights_and_scale() -> None:
    models = [nn.Linear(3, 2) for _ in range(3)]
    merged = merge(models[0], models[1:], "average", weights=(1, 3))
    torch.testing.assert_close(merged["weight"], (models[1].weight + 3 * models[2].weight).detach() / 4)
    unlearned = merge(models[0], models[1:2], scale=-1.0)
    torch.testing.assert_close(unlearned["bias"], (2 * models[0].bias - models[1].bias).detach())
    same = merge(models[0], [models[0]] * 3)
    assert torch.equal(same["weight"], models[0].weight)


def test_tied_weights_are_merged_once_and_stay_tied() -> None:
    def tied(seed: int) -> dict[str, Tensor]:
        weight = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed))
        return {"in": weight, "out": weight}

    merged = merge(tied(0), [tied(1), tied(2)], "dare")
    assert merged["in"] is merged["out"]


def test_a_rule_of_your_own() -> None:
    merged = merge(BASE, TUNED, lambda rows: rows.amax(0), scale=1.0)
    torch.testing.assert_close(merged["norm"], BASE["norm"] + torch.stack([vector["norm"] for vector in VECTORS]).amax(0))
    with pytest.raises(ValueError, match=r"the rule must return \(1000,\) for \(3, 1000\), got \(3, 1000\)"):
        merge(BASE, TUNED, lambda rows: rows)


@pytest.mark.parametrize("keep", [0.001, 0.2, 0.999, 1.0])
@pytest.mark.parametrize("values", ["normal", "zeros", "few"])
def test_the_threshold_over_pieces_is_exact(keep: float, values: str) -> None:
    g = torch.Generator().manual_seed(3)
    rows = torch.randn(2, 5000, generator=g)
    if values == "zeros":
        rows *= torch.rand(2, 5000, generator=g) < 0.3
    if values == "few":
        rows = rows.round()
    vectors = [{"a": row[:3333].clone(), "b": row[3333:].clone()} for row in rows]
    zero = {name: torch.zeros_like(value) for name, value in vectors[0].items()}
    merged = merge(zero, vectors, "ties", keep=keep)
    for name, value in tv.ties(vectors, keep=keep).items():
        torch.testing.assert_close(merged[name], value)


def test_a_misleading_sample_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 220_000  # a stride of 2: the sample sees the small half only
    row = torch.arange(size, dtype=torch.float32)
    row[::2] = -1e-3 * torch.arange(size // 2)
    monkeypatch.setattr(module, "PIECE", 1 << 16)
    sources = [module._Memory({"w": torch.zeros(size)}, "base"), module._Memory({"w": row}, "tuned")]
    assert module._thresholds(sources, ["w"], 0.2).item() == tv.magnitude_threshold(row, 0.2).item()


def test_weights_that_cancel_take_the_sign_of_most_over_the_whole_model() -> None:
    base = {"a": torch.zeros(2), "b": torch.zeros(3)}
    first = {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([-1.0, -1.0, -1.0])}
    second = {"a": torch.tensor([-1.0, -1.0]), "b": torch.tensor([-1.0, -1.0, -1.0])}
    merged = merge(base, [first, second], "ties", keep=1.0)
    assert merged["a"].tolist() == [-1.0, -1.0]
    assert merge(first, [first], "ties")["a"].tolist() == [1.0, 1.0]


def test_checkpoints_in_several_files(tmp_path: Path) -> None:
    save_file({"norm": BASE["norm"], "steps": BASE["steps"]}, tmp_path / "part1.safetensors")
    save_file({"embedding": BASE["embedding"], "scalar": BASE["scalar"], "nothing": BASE["nothing"]}, tmp_path / "part2.safetensors")
    table = {name: "part1.safetensors" if name in ("norm", "steps") else "part2.safetensors" for name in BASE}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    tuned = files(tmp_path, TUNED)
    found = load_file(merge_files(index, tuned, tmp_path / "out.safetensors"))
    for name, value in merge(BASE, TUNED).items():
        assert torch.equal(found[name], value)
    index.write_text(json.dumps({"weight_map": {**table, "ghost": "part1.safetensors"}}))
    with pytest.raises(ValueError, match="promises an entry 'ghost'"):
        merge_files(index, tuned, tmp_path / "out.safetensors")
    index.write_text(json.dumps({"weight_map": {"norm": "part9.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"part9.safetensors, which .* names"):
        merge_files(index, tuned, tmp_path / "out.safetensors")
    for wrong in ("{}", "[", json.dumps({"weight_map": [1]})):
        index.write_text(wrong)
        with pytest.raises(ValueError, match="is no index of a safetensors checkpoint"):
            merge_files(index, tuned, tmp_path / "out.safetensors")


# ------------------------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "soup"}, "method must be one of average, task_arithmetic, ties"),
        ({"method": "ties", "keep": 0}, r"keep must be in \(0, 1\], got 0"),
        ({"method": "dare", "drop": 1.0}, r"drop must be in \[0, 1\)"),
        ({"scale": float("nan")}, "scale must be finite"),
        ({"method": "average", "weights": (1, -1, 0)}, "sum not 0"),
        ({"method": "average", "weights": (1, 1)}, "got 2 for 3"),
        ({"method": "ties", "weights": (1, 1, 1)}, "weights belong to method 'average', not to 'ties'"),
        ({"seed": -1}, "seed must be 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        merge(BASE, TUNED, **options)  # type: ignore[arg-type]


def test_states_that_do_not_fit_are_refused_and_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no fine-tuned checkpoint"):
        merge(BASE, [])
    base, tuned = files(tmp_path, [BASE, {**TUNED[0], "norm": torch.ones(3)}])
    out = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match=r"'norm' has shape \(3,\) in .*1.safetensors, \(40,\) in the base"):
        merge_files(base, [tuned], out)
    bad = TUNED[0]["embedding"].clone()
    bad[50, 3] = float("nan")
    for method in METHODS:
        with pytest.raises(ValueError, match="'embedding' holds values that are NaN or infinite in fine-tuned model 1"):
            merge(BASE, [TUNED[1], {**TUNED[0], "embedding": bad}], method)
    save_file({**TUNED[0], "embedding": bad}, tuned)
    out.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"'embedding' holds values that are NaN or infinite in .*1.safetensors"):
        merge_files(base, [tuned], out)
    assert out.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 3


def test_files_that_are_missing_cut_off_or_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = files(tmp_path, [BASE, TUNED[0]])
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.safetensors"):
        merge_files(tmp_path / "none.safetensors", [tuned], out)
    with pytest.raises(FileNotFoundError, match="it is a folder"):
        merge_files(base, [tmp_path], out)
    with pytest.raises(ValueError, match="is a folder; give the name of a file"):
        merge_files(base, [tuned], tmp_path)
    with pytest.raises(ValueError, match="one of the checkpoints to merge"):
        merge_files(base, [tuned], base)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        merge_files(base, [tuned], tmp_path / "no" / "out.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(tuned.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut.safetensors is no whole safetensors file .* cut off or damaged"):
        merge_files(base, [cut], out)
    full = shutil.disk_usage(tmp_path)._replace(free=100)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: full)
        with pytest.raises(OSError, match=r"has 100 bytes free, the merged file needs [\d,]+; nothing was written"):
            merge_files(base, [tuned], out)

    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "_bytes", no_space)
        with pytest.raises(OSError, match=r"cannot write .*out.safetensors: No space left on device; what it held before is kept"):
            merge_files(base, [tuned], out)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", no_space)
        with pytest.raises(OSError, match="what it held before is kept"):
            merge_files(base, [tuned], out)
    with monkeypatch.context() as patched:
        patched.setattr(module.tempfile, "mkstemp", no_space)
        with pytest.raises(OSError, match="cannot write into"):
            merge_files(base, [tuned], out)
    assert out.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"0.safetensors", "1.safetensors", "cut.safetensors", "out.safetensors"}


def test_the_command_merges_and_says_what_it_wrote(tmp_path: Path) -> None:
    paths = [str(path) for path in files(tmp_path, [BASE, *TUNED])]
    out = tmp_path / "merged.safetensors"
    run = CliRunner().invoke(app, ["merge", *paths, "--method", "ties", "--scale", "0.5", "--out", str(out)])
    assert run.exit_code == 0, run.output
    assert f"wrote {out}" in run.output
    assert torch.equal(load_file(out)["embedding"], merge(BASE, TUNED, "ties", scale=0.5)["embedding"])
    agreed = CliRunner().invoke(app, ["merge", *paths, "--method", "consensus", "--agree", "1", "--out", str(out)])
    assert agreed.exit_code == 0, agreed.output
    assert torch.equal(load_file(out)["embedding"], merge(BASE, TUNED, consensus_rule(1, 0.4))["embedding"])
    for wrong, words in ((["--method", "soup"], "--method must be one of"), (["--method", "consensus", "--agree", "5"], "--agree must be at most 4")):
        refused = CliRunner().invoke(app, ["merge", *paths, *wrong, "--out", str(out)])
        assert words in str(refused.exception)
    weighed = CliRunner().invoke(app, ["merge", *paths[:3], "--method", "average", "--weight", "1", "--weight", "2", "--out", str(out)])
    assert weighed.exit_code == 0, weighed.output
    assert torch.equal(load_file(out)["norm"], merge(BASE, TUNED[:2], "average", weights=(1, 2))["norm"])


def test_memory_stays_near_a_piece(tmp_path: Path) -> None:
    """What the merge itself allocates is far less than one checkpoint."""
    big = {f"layer{n}": torch.zeros(400_000) for n in range(5)}
    paths = files(tmp_path, [big, big, big])
    import tracemalloc  # numpy and Python report what they allocate; mapped files are not allocated

    tracemalloc.start()
    merge_files(paths[0], paths[1:], tmp_path / "out.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < paths[0].stat().st_size / 2


def test_recipes_are_checked_when_they_are_made() -> None:
    assert Recipe().method == "task_arithmetic"
    with pytest.raises(ValueError, match="keep"):
        Recipe(keep=2)
