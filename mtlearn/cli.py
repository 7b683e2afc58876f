"""The command ``mtlearn``. What a call does not need is not imported: the catalogue answers without PyTorch."""

import dataclasses
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtlearn import papers as catalogue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtlearn.lab.checkpoints import Checkpoint
    from mtlearn.lab.result import Result
    from mtlearn.lab.runner import Outcome

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Learn multi-task representation learning from sixty-eight papers: read, run and touch them.",
)
data_app = typer.Typer(no_args_is_help=True, help="Real benchmark files: where they come from, fetching, checking.")
checkpoints_app = typer.Typer(no_args_is_help=True, help="The small trained models that ship, and how they were made.")
app.add_typer(data_app, name="data")
app.add_typer(checkpoints_app, name="checkpoints")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Seeds = Annotated[int | None, typer.Option(min=1, help="Seeds 0 to N-1; the scale's own number when omitted.")]
Device = Annotated[str, typer.Option(help="Where PyTorch computes: cpu, cuda, mps.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes on this machine; a core each when omitted.")]
Dask = Annotated[str | None, typer.Option(metavar="ADDRESS", help="Run on a Dask cluster, tcp://host:port.")]
Folder = Annotated[Path | None, typer.Option("--store", help="Folder of the results; MTLEARN_RESULTS or ./results when omitted.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Run again what is stored; the old file is kept aside.")]
Check = Annotated[bool, typer.Option("--check", help="Exit 1 where a verdict differs from the recorded one (laptop scale).")]
ScaleOption = Annotated[str, typer.Option(help="quick (seconds), laptop (the claim), paper (GPU, real data).")]

WRONG_USE, BROKEN, INTERRUPTED = 2, 1, 130


@app.command("papers")
def list_papers(chapter: Annotated[str | None, typer.Option(help="One chapter only.")] = None, as_json: Json = False) -> None:
    """List the catalogue and which parts of each paper exist."""
    rows = catalogue.papers(chapter)
    if as_json:
        parts = ("method", "experiment", "explorer", "notebook", "tests")
        fields = ("slug", "title", "chapter", "year", "arxiv")
        print(json.dumps([{name: getattr(paper, name) for name in (*fields, *parts)} for paper in rows], indent=2))
        return
    import rich.box
    from rich.table import Table

    table = Table(box=rich.box.SIMPLE_HEAD)
    for heading in ("chapter", "paper", "title", "year", "parts"):
        table.add_column(heading, no_wrap=heading != "title")
    last = ""
    for paper in rows:
        letters = "".join(letter if getattr(paper, part) else "·" for letter, part in zip("MEXNT", _PARTS, strict=True))
        table.add_row(paper.chapter if paper.chapter != last else "", paper.slug, paper.title, str(paper.year), letters)
        last = paper.chapter
    _console().print(table)
    _console().print("parts: M method, E experiment, X explorer, N notebook, T tests", style="dim")


_PARTS = ("method", "experiment", "explorer", "notebook", "tests")


@app.command()
def show(paper: str) -> None:
    """Tell a paper's idea, its claims with their verdicts, and where the code is."""
    from rich.markup import escape

    row = catalogue.paper(paper)
    console = _console()
    console.print(f"[bold]{escape(row.title)}[/]")
    link = f" https://arxiv.org/abs/{row.arxiv}" if row.arxiv else ""
    console.print(f"{escape(', '.join(row.authors))}. {escape(row.venue)} {row.year}.{link}")
    console.print(f"\n{escape(row.idea)}\n")
    for part in (*_PARTS, "result"):
        console.print(f"  {part:<11}{getattr(row, part) or '-'}")
    if row.result is not None:
        from mtlearn.lab.result import recorded

        console.print()
        _print_verdicts([recorded(paper)])
        console.print(f"run it: mtlearn run {paper} --scale quick", style="dim")


@app.command()
def run(
    paper: str,
    scale: ScaleOption = "laptop",
    seeds: Seeds = None,
    device: Device = "cpu",
    jobs: Jobs = None,
    dask: Dask = None,
    store: Folder = None,
    fresh: Fresh = False,
    check: Check = False,
    as_json: Json = False,
) -> None:
    """Run one paper's experiment, or finish one that was cut off, and judge its claims."""
    outcome = _run([paper], scale, seeds, device, jobs, dask, store, fresh, check)
    if as_json and outcome.results:
        print(outcome.results[0].to_json())
    else:
        _print_verdicts(outcome.results)
    _finish(outcome, check)


@app.command()
def reproduce(
    papers: Annotated[list[str] | None, typer.Argument(metavar="[PAPER]...")] = None,
    chapter: Annotated[str | None, typer.Option(help="All finished papers of a chapter.")] = None,
    tour: Annotated[bool, typer.Option("--tour", help="The leading claim of each chapter, at quick scale.")] = False,
    scale: Annotated[str | None, typer.Option(help="quick, laptop or paper; laptop when omitted, quick for the tour.")] = None,
    seeds: Seeds = None,
    device: Device = "cpu",
    jobs: Jobs = None,
    dask: Dask = None,
    store: Folder = None,
    fresh: Fresh = False,
    check: Check = False,
    output: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("report"),
) -> None:
    """Run many papers, print their verdicts and write the report. Without a name: every paper that has an experiment."""
    if sum((bool(papers), chapter is not None, tour)) > 1:
        raise ValueError("give paper names, --chapter or --tour, one of them")
    if tour:
        slugs = [
            next(iter(found)) for c in catalogue.chapters() if (found := [p.slug for p in catalogue.papers(c.slug) if p.experiment and p.result])
        ]
    else:
        slugs = list(dict.fromkeys(papers or [p.slug for p in catalogue.papers(chapter) if p.experiment]))
    if not slugs:
        raise ValueError(f"no paper of {chapter or 'the catalogue'} has an experiment{' with a recorded result' if tour else ''} yet")
    outcome = _run(slugs, scale or ("quick" if tour else "laptop"), seeds, device, jobs, dask, store, fresh, check)
    _print_verdicts(outcome.results, leading=tour)
    path = _write_report(output, outcome.results)
    console = _console()
    console.print(f"\nreport: {path}")
    if tour:
        console.print(
            "next: `make lab` opens notebooks/00_start_here.ipynb; `mtlearn papers` lists everything; `mtlearn show PAPER` tells one paper's story"
        )
    _finish(outcome, check)


@app.command()
def report(output: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("report"), store: Folder = None) -> None:
    """Write report/index.html: every claim, its figure, its verdict and how it was obtained."""
    from mtlearn.lab.runner import stored

    outcome = stored([catalogue.experiment(paper.slug) for paper in catalogue.papers() if paper.experiment], folder=store)
    _print_notes(outcome)
    print(f"report: {_write_report(output, outcome.results)}")


@app.command()
def lab() -> None:
    """Open JupyterLab on the notebooks."""
    from mtlearn.paths import notebooks

    command = [sys.executable, "-m", "jupyter", "lab", str(notebooks() / "00_start_here.ipynb")]
    if getattr(os, "geteuid", lambda: 1)() == 0:
        command.append("--allow-root")  # a container's only user; Jupyter refuses otherwise
    raise typer.Exit(subprocess.call(command))


@app.command()
def new(chapter: str, paper: str) -> None:
    """Lay out the folder, test and notebook of a paper that is not begun yet."""
    from mtlearn.paths import root
    from mtlearn.scaffold import scaffold

    checkout = root()
    if checkout is None:
        raise ValueError("`mtlearn new` writes into a checkout of the repository; this is an installed package")
    for path in scaffold(chapter, paper, checkout):
        print(f"wrote {path}")


@app.command()
def merge(
    base: Annotated[
        Path, typer.Argument(help="The checkpoint that all others were fine-tuned from: FILE.safetensors, or FILE.safetensors.index.json.")
    ],
    tuned: Annotated[list[Path], typer.Argument(help="One or more fine-tuned checkpoints of the same architecture.")],
    out: Annotated[Path, typer.Option(help="The file to write; one that is there is replaced when the new one is whole.")],
    method: Annotated[str, typer.Option(help="average, task_arithmetic, ties, dare, magnitude, random or consensus.")] = "task_arithmetic",
    scale: Annotated[
        float | None, typer.Option(help="Factor of the merged task vector; 1 for average and ties, else 0.3. Negative: unlearn.")
    ] = None,
    weight: Annotated[list[float] | None, typer.Option(help="average: one for each fine-tuned checkpoint, in order.")] = None,
    keep: Annotated[float, typer.Option(help="ties, magnitude, random: share of each task vector that survives.")] = 0.2,
    drop: Annotated[float, typer.Option(help="dare: share of each task vector that is dropped.")] = 0.9,
    agree: Annotated[int, typer.Option(help="consensus: how many tasks must keep a weight.")] = 2,
    threshold: Annotated[float, typer.Option(help="consensus: of the TALL masks.")] = 0.4,
    seed: Annotated[int, typer.Option(help="dare, random: of the draws.")] = 0,
) -> None:
    """Merge safetensors checkpoints into one, piece by piece: memory does not grow with their size."""
    from rich.console import Console
    from rich.progress import Progress

    from mtlearn.merging.merge import METHODS, merge_files
    from mtlearn.merging.tall_masks.method import consensus_rule

    if method not in (*METHODS, "consensus"):
        raise ValueError(f"--method must be one of {', '.join((*METHODS, 'consensus'))}, got {method!r}")
    if agree > len(tuned) + 1:
        raise ValueError(f"--agree must be at most {len(tuned) + 1}, one more than the fine-tuned checkpoints, got {agree}")

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(method, total=None)
        path = merge_files(
            base,
            tuned,
            out,
            consensus_rule(agree, threshold) if method == "consensus" else method,  # type: ignore[arg-type]  # one of METHODS
            scale=scale,
            weights=tuple(weight) if weight else None,
            keep=keep,
            drop=drop,
            seed=seed,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    print(f"wrote {path}, {path.stat().st_size:,} bytes")


@app.command()
def mmteb(
    encoder: Annotated[str, typer.Argument(help="module:function, from a list of texts to (n, d) numbers; a module of this folder will do.")],
    category: Annotated[str | None, typer.Option(help="Tasks of one category only, such as Retrieval.")] = None,
    real: Annotated[bool, typer.Option("--real", help="Also Cranfield, SICK, STS and MSR: `mtlearn data fetch cranfield sts`.")] = False,
    alone: Annotated[bool, typer.Option("--alone", help="Without the encoders that stand beside.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the pages, pairs and names that are drawn.")] = 0,
    store: Annotated[Path | None, typer.Option(help="Folder of the scores; mmteb in the folder of results when omitted.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Score everything anew.")] = False,
    as_json: Json = False,
) -> None:
    """Score a text encoder on the small embedding benchmark, beside classical embedders and the suite's own."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from mtlearn.retrieval.mmteb.leaderboard import Board, peers, summary
    from mtlearn.retrieval.mmteb.models import load_encoder
    from mtlearn.retrieval.mmteb.tasks import CATEGORIES
    from mtlearn.retrieval.mmteb.worlds import benchmark, real_tasks
    from mtlearn.tables import nearest

    encode = load_encoder(encoder)
    if category is not None and category not in CATEGORIES:
        raise ValueError(f"there is no category {category!r}{nearest(category, CATEGORIES)}; the categories are {', '.join(CATEGORIES)}")
    tasks = [task for task in (*benchmark(seed), *(real_tasks() if real else ())) if category in (None, task.category)]
    board, console = Board(store), Console(stderr=True)
    runs = {encoder: encode} | ({} if alone else {name: other for name, other in peers(tasks, seed=seed).items() if name != encoder})
    found: dict[str, dict[str, float]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(runs) * len(tasks))
        for number, (name, run) in enumerate(runs.items()):
            progress.update(bar, description=name, completed=number * len(tasks))
            try:
                found[name] = board.run(name, run, tasks, fresh=fresh, on_score=lambda *_: progress.advance(bar))
            except KeyboardInterrupt:
                progress.stop()
                print(f"interrupted: finished scores are in {board.path(name)}, the same command goes on from there", file=sys.stderr)
                raise typer.Exit(INTERRUPTED) from None
    rows = summary(found, tasks)
    if as_json:
        print(json.dumps({"encoder": encoder, "seed": seed, "scores": found[encoder], "board": rows}, indent=2))
        return
    _print_board(encoder, rows, {task.name: (task.category, task.measure) for task in tasks}, found)


def _print_board(encoder: str, rows: "Sequence[dict[str, Any]]", tasks: dict[str, tuple[str, str]], found: dict[str, dict[str, float]]) -> None:
    """The encoder's tasks, each beside the best of the others; then all encoders by category."""
    import rich.box
    from rich.table import Table

    others = [name for name in found if name != encoder]
    table = Table(box=rich.box.SIMPLE_HEAD)
    for heading in ("category", "task", "main score", "", *(("best of the others",) if others else ())):
        table.add_column(heading, justify="right" if not heading else "left")
    last = ""
    for task, (category, measure) in tasks.items():
        best = max(others, key=lambda name: found[name][task], default="")
        beside = (_plain(f"{found[best][task]:.3f} {best}"),) if best else ()
        table.add_row(category if category != last else "", _plain(task), measure, f"{found[encoder][task]:.3f}", *beside)
        last = category
    _console().print(table)
    kinds = list(rows[0]["categories"])
    board = Table(box=rich.box.SIMPLE_HEAD)
    for heading in ("encoder", "mean", "type mean", *(("beaten",) if others else ()), *kinds):
        board.add_column(heading, justify="left" if heading == "encoder" else "right", no_wrap=heading in ("encoder", "mean"), overflow="fold")
    for row in rows:
        points = (f"{row['borda']:.1f}",) if others else ()
        values = [f"{row[name]:.3f}" for name in ("mean", "type mean")]
        board.add_row(
            _plain(row["encoder"]),
            *values,
            *points,
            *(f"{row['categories'][kind]:.3f}" for kind in kinds),
            style="bold" if row["encoder"] == encoder else "",
        )
    _console(wide=200).print(board)
    if others:
        note = (
            "beaten: other encoders, a task, a tie is half of one (Borda). The suite's encoders have seen docstrings of these libraries in training."
        )
        _console().print(note, style="dim")


@data_app.command("list")
def data_list() -> None:
    """List every file: dataset, size, licence, where it is."""
    import rich.box
    from rich.table import Table

    from mtlearn.datasets import benchmarks

    table = Table(box=rich.box.SIMPLE_HEAD)
    for heading in ("dataset", "file", "bytes", "licence", "SHA-256", "where it is; else where it comes from"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "bytes" else "left")
    for name in benchmarks.names():
        row = benchmarks.benchmark(name)
        for file in row.files:
            where = benchmarks.locate(name, file.name) or f"- {file.address or file.made}"
            cells = (name if file is row.files[0] else "", file.name, f"{file.bytes:,}", row.licence, file.sha256[:12], str(where))
            table.add_row(*map(_plain, cells))
    _console(wide=260).print(table)


@data_app.command("fetch")
def data_fetch(names: Annotated[list[str] | None, typer.Argument(metavar="[DATASET]...")] = None) -> None:
    """Fetch datasets (all when none is named) into the cache, or find them in MTLEARN_DATA."""
    from mtlearn.datasets import benchmarks

    wrong = []
    for row in [benchmarks.benchmark(name) for name in names or benchmarks.names()]:
        for file in row.files:
            try:
                print(benchmarks.fetch(row.name, file.name, progress=sys.stderr.isatty()))
            except (benchmarks.MissingFileError, benchmarks.RefusedFileError) as error:  # the other files are fetched all the same
                wrong.append(str(error))
    _leave_with(wrong)


@data_app.command("verify")
def data_verify(names: Annotated[list[str] | None, typer.Argument(metavar="[DATASET]...")] = None) -> None:
    """Compare the files that are here with their recorded SHA-256; exit 1 where one is wrong."""
    from mtlearn.datasets import benchmarks

    wrong = []
    for check in [check for name in names or benchmarks.names() for check in benchmarks.verify(name)]:
        print(f"{check.state:<8}{check.dataset}/{check.file}{f' in {check.path.parent}' if check.path else ''}")
        if check.state == "wrong":
            wrong.append(f"{check.path} is not the published file; move it away and `mtlearn data fetch {check.dataset}` gets the right one")
    _leave_with(wrong)


@checkpoints_app.command("list")
def checkpoints_list() -> None:
    """List the shipped models: size, what was measured, how long they took."""
    from rich.table import Table

    from mtlearn.lab.checkpoints import CheckpointError, provenance

    table = Table("name", "bytes", "CPU seconds", "measured", box=None)
    wrong = []
    for checkpoint in _checkpoints():
        try:
            found = provenance(checkpoint)
        except CheckpointError as error:
            wrong.append(str(error))
            continue
        measured = ", ".join(f"{name} {value:.3g}" for name, value in found["measured"].items())
        table.add_row(checkpoint.name, f"{found['bytes']:,}", f"{found['cpu_seconds']:,}", measured)
    _console().print(table)
    _leave_with(wrong)


@checkpoints_app.command("make")
def checkpoints_make(name: str) -> None:
    """Train a shipped model again and replace its files."""
    from mtlearn.lab.checkpoints import make
    from mtlearn.tables import nearest

    known = {checkpoint.name: checkpoint for checkpoint in _checkpoints()}
    if name not in known:
        raise ValueError(f"there is no checkpoint {name!r}{nearest(name, known)}; the checkpoints are {', '.join(known)}")
    print(json.dumps(make(known[name], progress=name), indent=2))


def _checkpoints() -> "list[Checkpoint]":
    from importlib import import_module

    rows = [paper for paper in catalogue.papers() if paper.experiment]
    modules = [import_module(f"mtlearn.{paper.chapter}.{paper.slug}.experiment") for paper in rows]
    return [checkpoint for module in modules for checkpoint in getattr(module, "CHECKPOINTS", ())]


def _run(
    slugs: "Sequence[str]",
    scale: str,
    seeds: int | None,
    device: str,
    jobs: int | None,
    dask: str | None,
    store: Path | None,
    fresh: bool,
    check: bool,
) -> "Outcome":
    """Run with a progress bar on stderr, so that stdout holds results alone."""
    rows = [catalogue.paper(slug) for slug in slugs]  # a wrong name is told before anything heavy is loaded
    if check:
        if scale != "laptop":
            raise ValueError(f"--check compares with the recorded laptop results, so it needs --scale laptop, got {scale}")
        from mtlearn.lab.result import recorded

        for row in rows:
            recorded(row.slug)  # what is missing is told before an hour is spent
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from mtlearn.lab import runner

    experiments = [catalogue.experiment(row.slug) for row in rows]
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("seeds", total=None)

        def on_plan(todo: int, stored: int) -> None:
            progress.update(bar, total=todo + stored, completed=stored)
            if stored:
                console.print(f"{stored} of {todo + stored} seeds were in the store already; --fresh runs them again", style="dim", soft_wrap=True)

        def on_seed(paper: str, seed: int) -> None:
            progress.update(bar, advance=1, description=f"{paper}, seed {seed}")

        try:
            outcome = runner.run(
                experiments, scale, seeds=seeds, device=device, jobs=jobs, dask=dask, folder=store, fresh=fresh, on_plan=on_plan, on_seed=on_seed
            )
        except KeyboardInterrupt:
            progress.stop()
            print("interrupted: finished seeds are kept, the same command goes on from there", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
    _print_notes(outcome)
    return outcome


def _print_notes(outcome: "Outcome") -> None:
    for note in outcome.notes:
        print(f"note: {note}", file=sys.stderr)


def _finish(outcome: "Outcome", check: bool) -> None:
    """Report what broke and which verdicts differ; leave with 1 where there is any."""
    wrong = [f"{f.paper}, seed {f.seed}: {f.error}" for f in outcome.failures]
    if os.environ.get("MTLEARN_TRACEBACK"):
        for failure in outcome.failures:
            print(failure.traceback, file=sys.stderr)
    if check:
        from mtlearn.lab.result import recorded

        for result in outcome.results:
            then = recorded(result.paper).claims
            names = [dataclasses.replace(c, difference=0, low=None, high=None, verdict="undecided") for c in then]
            if names != [dataclasses.replace(c, difference=0, low=None, high=None, verdict="undecided") for c in result.claims]:
                again = f"`mtlearn run {result.paper} --scale laptop --json`"
                wrong.append(f"{result.paper}: its claims are not the recorded ones; record them anew with {again}")
                continue
            wrong += [
                f"{result.paper}: {_says(now)}: {now.verdict} now, {before.verdict} as recorded"
                for now, before in zip(result.claims, then, strict=True)
                if now.verdict != before.verdict
            ]
    _leave_with(wrong)


def _leave_with(wrong: "Sequence[str]") -> None:
    """A line on stderr for each thing that is wrong, and exit status 1; nothing where all is well."""
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    if wrong:
        raise typer.Exit(BROKEN)


def _says(verdict: Any) -> str:
    from mtlearn.lab.report import comparison

    return verdict.says or comparison(verdict)


def _print_verdicts(results: "Sequence[Result]", *, leading: bool = False) -> None:
    if not results:
        return
    import rich.box
    from rich.table import Table

    from mtlearn.lab.report import interval

    table = Table(box=rich.box.SIMPLE_HEAD)
    for heading in ("paper", "claim", "difference, 95 % interval", "margin", "verdict"):
        table.add_column(heading)
    colours = {"holds": "green", "fails": "red", "undecided": "yellow"}
    for result in results:
        for number, verdict in enumerate(result.claims[:1] if leading else result.claims):
            word = f"[{colours[verdict.verdict]}]{verdict.verdict}[/]"
            table.add_row(result.paper if number == 0 else "", _plain(_says(verdict)), interval(verdict), f"{verdict.margin:g}", word)
    _console().print(table)


def _write_report(output: Path, results: "Sequence[Result]") -> Path:
    from mtlearn.lab.report import write_report
    from mtlearn.lab.result import recorded

    here: dict[str, list[Result]] = {paper.slug: [recorded(paper.slug)] for paper in catalogue.papers() if paper.result}
    for result in results:
        here.setdefault(result.paper, []).append(result)
    return write_report(output / "index.html", here)


def _plain(text: str) -> Any:
    """Text whose square brackets are no markup."""
    from rich.text import Text

    return Text(text)


def _console(*, wide: int = 160) -> Any:
    """The terminal, or a page ``wide`` columns wide where stdout is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else wide)


def main() -> None:
    """Entry point: errors become one line on stderr; 2 for wrong use, 1 for a part that broke, 130 after Ctrl-C."""
    try:
        sys.exit(app(standalone_mode=False))
    except typer.TyperException as error:
        if message := error.format_message():  # there is none where the help was printed
            context = getattr(error, "ctx", None)
            _say(message + (f" (`{context.command_path} --help` tells more)" if context else ""))
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("MTLEARN_TRACEBACK"):
            traceback.print_exception(error)
        expected = isinstance(error, (ValueError, RuntimeError, OSError)) or type(error) is LookupError
        _say(str(error) if expected else f"{type(error).__name__}: {error}; MTLEARN_TRACEBACK=1 shows where")
        sys.exit(WRONG_USE if expected and not isinstance(error, (RuntimeError, OSError)) else BROKEN)


def _say(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
