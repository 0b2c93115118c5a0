"""Tables and plots of what `scale.py` measured.

`python -m benchmarks.scale_report benchmarks/results/scale.json` makes them again.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import report
from .circumstances import circumstances_text

COLOURS = {"this": "#1f6fb4", "raw": "#3a3a3a"}
NAMES = {"this": "this store", "raw": "raw client, in bulk"}
#: What is asked at each size, for readers.
QUERIES = {"queries": "all rows", "filtered": "one tenant of 100"}
#: What must be reached: rows a second as a multiple of the raw client's, and resident memory.
RATE, MIB = 1.1, 400


def write(results: report.Json, directory: Path) -> None:
    """Write figures and tables of what there is so far."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "scale.json").write_text(json.dumps(results, indent=1) + "\n")
    (directory / "scale.md").write_text(markdown(results))


def markdown(results: report.Json) -> str:
    """The results as a page."""
    options = results["options"]
    parts = [
        "# A million nodes",
        f"{circumstances_text(results, results.get('engine', ''))} {options['nodes']:,} nodes "
        f"of {options['dim']} dimensions and 250 characters, HNSW with M = 16 and efConstruction = "
        "64. What is measured is in [README.md](../README.md#a-million-nodes).",
    ]
    for part in (_loads, _queries, _operations, _deletes, _killed):
        parts += filter(None, [part(results)])
    return "\n\n".join(parts) + "\n"


def _loads(results: report.Json) -> str:
    if not results.get("loads"):
        return ""
    loads, raw, samples = results["loads"], results["raw"], results["samples"]
    beside = list(_until(loads, raw["rows"]))
    ours = sum(load["rows"] for load in beside) / sum(load["seconds"] for load in beside)
    bulk, ready = raw["rows"] / raw["seconds"], raw["rows"] / raw["seconds_of_inserts"]
    every = sum(load["rows"] for load in loads) / sum(load["seconds"] for load in loads)
    stall = max(load["net_stall_ms"] for load in loads)
    passes = max(load["collector_ms"] for load in loads)
    most = max(sample["mib"] for sample in samples)
    rows = [
        [f"this store, first {raw['rows']:,}", f"{ours:,.0f}"],
        [f"raw client, {raw['rows']:,}", f"{bulk:,.0f}"],
        ["raw client, rows made before the clock runs", f"{ready:,.0f}"],
        [f"this store, {sum(load['rows'] for load in loads):,}", f"{every:,.0f}"],
    ]
    return "\n\n".join(
        [
            "## Adding",
            report.table(["from a generator", "rows a second"], rows),
            f"This store has {ours / bulk:.2f} times the raw client's rate (target: at least "
            f"{RATE}). The process has at most {most:,.0f} MiB (target: {MIB}), "
            f"{_growth(samples):,.0f} MiB more in the second half than in the first. The loop "
            f"stands still for at most {stall:.0f} ms beyond the noise of the machine (target: "
            f"{report.STALL_MS:g}), the passes of Python's garbage collector aside, the longest of "
            f"which is {passes:.0f} ms.",
        ]
    )


def _until(loads: list[report.Json], rows: int) -> Iterator[report.Json]:
    so_far = 0
    for load in loads:
        so_far += load["rows"]
        if so_far > rows:
            return
        yield load


def _growth(samples: list[report.Json]) -> float:
    half = samples[-1]["rows"] / 2
    most = [
        max((each["mib"] for each in samples if (each["rows"] > half) == later), default=0.0)
        for later in (False, True)
    ]
    return max(0.0, most[1] - most[0])


def _queries(results: report.Json) -> str:
    rows = []
    for stage in results["stages"]:
        for key, title in QUERIES.items():
            ours, theirs = (_median(stage[key], who) for who in ("this", "raw"))
            rows.append(
                [
                    f"{stage['rows']:,}",
                    title,
                    f"{ours:.2f} s",
                    f"{theirs:.2f} s",
                    f"{ours / theirs:.2f}",
                    f"{max(each['net_stall_ms'] for each in stage[key]):.0f} ms",
                ]
            )
    if not rows:
        return ""
    count = results["options"]["queries"]
    header = ["rows", "searched", "this store", "raw client, in bulk", "ratio", "longest stall"]
    return "\n\n".join(
        [
            "## Queries",
            f"{count:,} concurrent queries, top 10, against one search with {count:,} vectors "
            "whose hits are read but become no nodes. Medians.",
            report.table(header, rows),
        ]
    )


def _operations(results: report.Json) -> str:
    rows = []
    for stage in results["stages"]:
        count, iterate = stage["count"], stage["iterate"]
        rows.append(
            [
                f"{stage['rows']:,}",
                f"{count['this'] * 1_000:.1f} ms",
                f"{count['this'] / count['raw']:.2f}",
                f"{stage['rows'] / iterate['this']:,.0f}",
                f"{iterate['raw'] / iterate['this']:.2f}",
                f"{iterate['growth_mib']:,.0f} MiB",
                f"{iterate['net_stall_ms']:.0f} ms",
            ]
        )
    if not rows:
        return ""
    header = ["rows", "`acount`", "÷ raw", "`aiter_nodes`: rows a second", "÷ raw"]
    header += ["memory grows by", "longest stall"]
    return "\n\n".join(["## Counting, and reading all rows", report.table(header, rows)])


def _deletes(results: report.Json) -> str:
    if not results.get("deletes"):
        return ""
    rows = [
        [f"{each['nodes']:,}", f"{each['seconds']:.2f} s", f"{each['net_stall_ms']:.0f} ms"]
        for each in results["deletes"]
    ]
    table = report.table(["nodes", "seconds", "longest stall"], rows)
    return f"## Deleting by a filter\n\n{table}"


def _killed(results: report.Json) -> str:
    its = results.get("killed")
    if not its:
        return ""
    return (
        f"## A server that is killed\n\n{its['rows']:,} nodes were upserted in "
        f"{its['seconds']:.0f} s; half way the server was killed (`kill -9`), and was back after "
        f"{its['seconds_of_restart']:.0f} s. `aingest` ended with {its['rows']:,} nodes "
        f"written; the collection has {its['counted']:,}."
    )


def _median(rounds: list[report.Json], who: str) -> float:
    return statistics.median(each[who] for each in rounds)


def draw(results: report.Json, directory: Path) -> None:
    """Draw the load, and how queries cost more as the collection grows."""
    try:
        from matplotlib import pyplot
    except ImportError:
        print("matplotlib is not installed: there are no plots")
        return
    if results.get("samples"):
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2))
        _draw_load(axes, results)
        figure.tight_layout()
        figure.savefig(directory / "scale_load.png", dpi=110)
        pyplot.close(figure)
    if results["stages"]:
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2))
        for axis, (key, title) in zip(axes, QUERIES.items(), strict=True):
            _draw_queries(axis, results, key, title)
        figure.tight_layout()
        figure.savefig(directory / "scale_queries.png", dpi=110)
        pyplot.close(figure)


def _draw_load(axes: Any, results: report.Json) -> None:
    samples = results["samples"]
    seconds = [each["seconds"] for each in samples]
    for axis, key, title, factor in (
        (axes[0], "rows", "Nodes in Milvus, in thousands", 1_000),
        (axes[1], "mib", "Memory of this process, in MiB: flat is good", 1),
    ):
        values = [each[key] / factor for each in samples]
        axis.plot(seconds, values, color=COLOURS["this"])
        axis.set_title(title, size=10, loc="left")
        axis.set_xlabel("seconds of adding")
        _clean(axis, max(values))


def _draw_queries(axis: Any, results: report.Json, key: str, title: str) -> None:
    sizes = [stage["rows"] for stage in results["stages"]]
    most = 0.0
    for who, name in NAMES.items():
        took = [_median(stage[key], who) for stage in results["stages"]]
        axis.plot(sizes, took, "o-", color=COLOURS[who], label=name)
        most = max(most, *took)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set_xticks(sizes)
    axis.minorticks_off()
    axis.set_xlabel("rows in the collection")
    count = results["options"]["queries"]
    axis.set_title(
        f"Seconds of {count:,} queries over {title}: less is better", size=10, loc="left"
    )
    axis.legend(frameon=False, loc="upper left")
    _clean(axis, most)


def _clean(axis: Any, most: float) -> None:
    axis.set_ylim(0, most * 1.25)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    file = Path(sys.argv[1])
    measured = json.loads(file.read_text())
    write(measured, file.parent)
    draw(measured, file.parent)
