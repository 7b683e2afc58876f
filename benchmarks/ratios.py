"""What the benchmarks share: alternating timings of several ways to do one thing, printed as ratios to the first."""

import statistics
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.table import Table


def ratios(title: str, ways: Mapping[str, Callable[[], object]], *, repeats: int = 15, target: str = "") -> dict[str, float]:
    """Time each way ``repeats`` times in turn, so that a busy machine slows all alike; print medians and ratios to the first."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = next(iter(medians.values()))
    table = Table(title=f"{title}{f' ({target})' if target else ''}", title_justify="left")
    for heading in ("way", "median, ms", "ratio"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for name, median in medians.items():
        table.add_row(name, f"{1e3 * median:.2f}", f"{median / first:.2f}")
    Console(width=110).print(table)
    return {name: median / first for name, median in medians.items()}
