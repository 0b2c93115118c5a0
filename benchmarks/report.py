"""Results as tables and plots.

    python -m benchmarks.report benchmarks/results/results.json

writes them again from the figures, beside the file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .circumstances import packages_text

NAMES = {"floor": "raw client", "this": "this store", "upstream": "upstream"}
#: Whose latency under load is measured.
LOAD_NAMES = {
    "this": "this store",
    "uncoalesced": "this store, coalesce=False",
    "upstream": "upstream",
    "this_at_upstream": "this store at upstream's rate",
}
ENGINES = {"standalone": "Milvus standalone", "lite": "Milvus Lite, own process"}
#: Growth of memory that counts as flat, over the half of the nodes that it is taken over. Keeping
#: the nodes would take 25 KiB for each.
FLAT_MIB = 16.0
STALL_MS = 25.0
#: In a table: not measured.
NONE = "-"
#: Calls one at a time, async; the same key with "_sync" is the same call, sync.
LONE = ("lone_query", "lone_query_sync", "lone_add", "lone_add_sync")
#: Marks what has not been measured in this run.
KEPT = "\N{DAGGER}"
#: What two runs must have in common to be parts of one.
_CIRCUMSTANCES = ("date", "machine", "python", "packages")

Json = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """A median, and what it is the median of."""

    median: float
    least: float
    most: float
    rounds: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread | None:
        """The spread of values; `None` without any."""
        if not values:
            return None
        return Spread(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Target:
    """What a ratio must reach.

    Attributes:
        workload: Its key.
        title: What is compared, for readers.
        above: The contender above the line of the fraction.
        below: The one below it.
        at_most: Whether less is better.
        standalone: The bound on a server.
        lite: The bound on Milvus Lite.
        figure: What is compared, where it is not the workload's measure.
    """

    workload: str
    title: str
    above: str
    below: str
    at_most: bool
    standalone: float
    lite: float
    figure: str = ""

    def bound(self, is_lite: bool) -> float:
        """The bound on an engine."""
        return self.lite if is_lite else self.standalone

    def shown(self, is_lite: bool) -> str:
        """The bound in words."""
        return f"{'≤' if self.at_most else '≥'} {self.bound(is_lite):g}"

    def is_met(self, value: float, is_lite: bool) -> bool:
        """Whether a ratio reaches the bound."""
        bound = self.bound(is_lite)
        return value <= bound if self.at_most else value >= bound


def _lone_targets() -> Iterator[Target]:
    for key, title, cpu in (("lone_add", "a lone add", 0.85), ("lone_query", "a lone query", 0.95)):
        for suffix, kind in (("", "async"), ("_sync", "sync")):
            workload, what = f"{key}{suffix}", f"{title}, {kind}"
            yield Target(workload, f"{what}: CPU", "this", "floor", True, cpu, cpu, "cpu_p50")
            yield Target(workload, f"{what}: p50", "this", "floor", True, 1.0, 1.0)
            if key == "lone_add":
                yield Target(workload, f"{what}: p50", "upstream", "this", False, 1.1, 1.1)


TARGETS = (
    *_lone_targets(),
    Target("sync_adds", "sync adds one by one", "upstream", "this", False, 1.2, 1.2),
    Target("single_adds", "concurrent single adds", "this", "floor", True, 0.95, 0.95),
    Target("single_adds", "concurrent single adds", "upstream", "this", False, 6, 4),
    Target("single_queries", "concurrent single queries", "this", "floor", True, 1.15, 1.15),
    Target("single_queries", "concurrent single queries", "upstream", "this", False, 2.5, 80),
    Target("bulk_add", "one large add", "this", "floor", True, 0.95, 0.95),
    Target("bulk_add", "one large add", "upstream", "this", False, 1.6, 1.15),
)


# -- figures ---------------------------------------------------------------------------------


def workload_of(engine: Json, key: str) -> Json | None:
    """A workload of an engine, where it was run."""
    return next((each for each in engine["workloads"] if each["key"] == key), None)


def spread(workload: Json | None, who: str, figure: str) -> Spread | None:
    """A figure of a contender over the rounds."""
    rounds = workload["rounds"] if workload else []
    return Spread.of([each[who][figure] for each in rounds if figure in each.get(who, ())])


def ratio(workload: Json | None, above: str, below: str, figure: str = "") -> Spread | None:
    """The ratio of two contenders within each round, over the rounds."""
    if workload is None:
        return None
    figure = figure or workload["measure"]
    pairs = [
        (each[above][figure], each[below][figure])
        for each in workload["rounds"]
        if figure in each.get(above, ()) and figure in each.get(below, ())
    ]
    return Spread.of([a / b for a, b in pairs if b])


def title_of(workload: Json) -> str:
    """The title for readers, marked where the figures are of an earlier run."""
    return f"{workload['title']}{_mark(workload)}"


def keep(earlier: Json, results: Json) -> None:
    """Take over the workloads of an earlier run that this one has not measured.

    They are marked, unless everything is as it was: then the two are parts of one run.
    """
    is_one_run = all(earlier[key] == results[key] for key in _CIRCUMSTANCES)
    new = {engine["name"]: engine for engine in results["engines"]}
    engines = []
    for old in earlier["engines"]:
        engine = new.pop(old["name"], {**old, "workloads": []})
        measured = {each["key"]: each for each in engine["workloads"]}
        if not is_one_run:
            for each in old["workloads"]:
                each.setdefault("kept_from", earlier["date"])
        workloads = [measured.pop(each["key"], each) for each in old["workloads"]]
        engine["workloads"] = [*workloads, *measured.values()]
        engines.append(engine)
    results["engines"] = [*engines, *new.values()]


def under_load(engine: Json) -> dict[str, list[Json]]:
    """The workloads of latency under load: what is called to one for each load."""
    found: dict[str, list[Json]] = {}
    for each in engine["workloads"]:
        if "load" in each["details"]:
            found.setdefault(each["details"]["call"], []).append(each)
    return found


def worst_stall(engine: Json, who: str) -> tuple[Spread, str] | None:
    """The longest stall of any workload beyond the machine's noise, and which one it was."""
    found = [
        (stall, title_of(workload))
        for workload in engine["workloads"]
        if (stall := spread(workload, who, "net_stall_ms"))
    ]
    return max(found, key=lambda each: each[0].median) if found else None


# -- tables ----------------------------------------------------------------------------------


def write(results: Json, output: Path) -> list[str]:
    """Write the tables, and the plots where matplotlib is there; returns the files' names."""
    try:
        from . import plots
    except ImportError:
        names = []
    else:
        names = plots.write(results, output)
    text = markdown(results, names)
    (output / "results.md").write_text(text)
    return ["results.md", *names]


def markdown(results: Json, plots: Sequence[str] = ()) -> str:
    """All tables."""
    options = results["options"]
    parts = [
        "# Results",
        f"{results['date']}, {results['machine']}, Python {results['python']}; "
        f"{packages_text(results)}. "
        f"{options['dim']} dimensions, top {options['top_k']}, up to {options['rounds']} rounds, "
        f"{results['minutes']:g} minutes. Figures are medians over rounds; ratios are taken "
        "within a round, with their least and greatest in parentheses. What is measured is "
        "in [README.md](../README.md).",
        *(f"Note: {note}." for note in [*results["notes"], *results["failures"]]),
        *_kept(results),
        "## Targets",
        targets_table(results),
    ]
    if "seconds.png" in plots:
        parts.append("![Seconds that a thousand concurrent calls take](seconds.png)")
    if "ratios.png" in plots:
        parts.append("![Time of each workload as a multiple of the floor](ratios.png)")
    for engine in results["engines"]:
        parts += engine_tables(engine)
    if "latency.png" in plots:
        parts.append("![Latency of calls that arrive at a fixed rate](latency.png)")
    if "load.png" in plots:
        parts.append("![Latency at shares of the capacity](load.png)")
    if "memory.png" in plots:
        parts.append("![Memory while nodes are added from a generator](memory.png)")
    return "\n\n".join(parts) + "\n"


def targets_table(results: Json) -> str:
    """What must be reached, and whether it is."""
    engines = results["engines"]
    header = ["workload", "ratio"]
    for engine in engines:
        header += [engine_title(engine), "target", "met"]
    rows = []
    for target in TARGETS:
        row = [target.title, f"{NAMES[target.above]} ÷ {_below(target)}"]
        for engine in engines:
            workload = workload_of(engine, target.workload)
            found = ratio(workload, target.above, target.below, target.figure)
            met = found and target.is_met(found.median, engine["is_lite"])
            shown = ratio_text(found) + _mark(workload)
            row += [shown, target.shown(engine["is_lite"]), yes_or_no(met)]
        if any(row[2::3][i] != NONE for i in range(len(engines))):
            rows.append(row)
    row = ["any of them, longest stall of the loop", "this store"]
    for engine in engines:
        stall = worst_stall(engine, "this")
        shown = f"{stall[0].median:.0f} ms ({stall[1]})" if stall else NONE
        row += [shown, f"≤ {STALL_MS:g} ms", yes_or_no(stall and stall[0].median <= STALL_MS)]
    rows.append(row)
    row = ["nodes from a generator, memory", "this store"]
    for engine in engines:
        memory = workload_of(engine, "memory")
        growth = spread(memory, "this", "growth_mib")
        shown = f"grows by {growth.median:.1f} MiB{_mark(memory)}" if growth else NONE
        row += [
            shown,
            f"flat (≤ {FLAT_MIB:g} MiB)",
            yes_or_no(growth and growth.median <= FLAT_MIB),
        ]
    rows.append(row)
    return table(header, rows)


def engine_tables(engine: Json) -> list[str]:
    """Everything measured on an engine."""
    parts = [f"## {engine_title(engine)} ({engine['version'].removeprefix('v')})"]
    timed = [each for each in engine["workloads"] if each["measure"] == "seconds"]
    lone = [each for each in engine["workloads"] if each["key"] in LONE]
    mixed = [each for each in engine["workloads"] if each["measure"] == "query_p50"]
    loaded = under_load(engine)
    memory = workload_of(engine, "memory")
    if timed:
        parts += ["### Time", time_table(timed)]
    if lone:
        parts += [
            "### Calls one at a time, of them CPU the median of this process",
            lone_table(lone),
        ]
    if mixed:
        parts += ["### Calls at a fixed arrival rate, latency in ms", mixed_table(mixed)]
    for call, workloads in loaded.items():
        parts += [f"### Latency under load in ms: {call}", load_table(workloads)]
        parts.append(capacities(workloads[0]["details"]))
    if loaded:
        parts.append(
            "Calls arrive at random, whether or not the earlier ones are done; a latency counts "
            "from the arrival. A load is a share of the contender's own capacity, its throughput "
            "in a closed loop just before. All rates are of this run: compare the ratios of "
            "contenders and of loads with those of other runs and machines, not the rates and "
            "milliseconds."
        )
    if timed or mixed:
        parts += [
            "### Processor time of this process, and the longest stall of the loop",
            "Seconds for 1,000 operations; milliseconds beyond the longest gap of a bystander.",
            cost_table([*timed, *mixed]),
        ]
    if memory and memory["rounds"]:
        parts += ["### Resident memory in MiB, nodes from a generator", memory_table(memory)]
    return parts


def time_table(workloads: Iterable[Json]) -> str:
    """Throughput workloads."""
    header = ["workload", *NAMES.values()]
    header += ["this store ÷ floor", "upstream ÷ floor", "upstream ÷ this store", "rounds"]
    rows = []
    for each in workloads:
        rounds = [spread(each, who, "seconds") for who in NAMES]
        rows.append(
            [
                title_of(each),
                *(f"{found.median:.3f} s" if found else NONE for found in rounds),
                ratio_text(ratio(each, "this", "floor")),
                ratio_text(ratio(each, "upstream", "floor")),
                ratio_text(ratio(each, "upstream", "this")),
                _rounds(rounds),
            ]
        )
    return table(header, rows)


def lone_table(workloads: Iterable[Json]) -> str:
    """Calls one at a time."""
    header = ["call"]
    header += [f"{name}, p50 / p99 / CPU" for name in NAMES.values()]
    header += ["this store ÷ raw client, p50", "the same, CPU"]
    header += ["upstream ÷ this store, p50", "the same, CPU", "calls a round"]
    rows = []
    for each in workloads:
        row = [title_of(each)]
        for who in NAMES:
            found = [spread(each, who, figure) for figure in ("p50", "p99", "cpu_p50")]
            values = [f"{one.median * 1000:.2f}" for one in found if one]
            row.append(" / ".join(values) or NONE)
        for above, below in (("this", "floor"), ("upstream", "this")):
            row += [ratio_text(ratio(each, above, below, figure)) for figure in ("p50", "cpu_p50")]
        calls = spread(each, "this", "operations")
        rows.append([*row, f"{calls.median:.0f}" if calls else NONE])
    return table(header, rows)


def mixed_table(workloads: Iterable[Json]) -> str:
    """Open loops."""
    figures = [f"{kind}_{p}" for kind in ("add", "query") for p in ("p50", "p95", "p99")]
    header = ["arrivals", "contender", *(figure.replace("_", " ") for figure in figures)]
    header.append("failed calls")
    rows = []
    for each in workloads:
        for who in ("this", "upstream"):
            found = [spread(each, who, figure) for figure in figures]
            if any(found):
                shown = [f"{value.median * 1000:,.0f}" if value else NONE for value in found]
                failed = spread(each, who, "failed")
                shown.append(f"{failed.most:.0f}" if failed else NONE)
                rows.append([title_of(each), NAMES[who], *shown])
    return table(header, rows)


def load_table(workloads: Sequence[Json]) -> str:
    """Latencies at shares of the capacity, a contender after the other."""
    figures = ("p50", "p95", "p99", "max")
    header = ["contender", "load", "rate asked", "rate served", *figures, "calls", "failed"]
    rows = []
    for who, name in LOAD_NAMES.items():
        for each in workloads:
            asked, served = spread(each, who, "rate"), spread(each, who, "served")
            calls, failed = spread(each, who, "operations"), spread(each, who, "failed")
            if not (asked and served and calls and failed):
                continue
            found = [spread(each, who, figure) for figure in figures]
            rows.append(
                [
                    name,
                    f"{each['details']['load']:.0%}",
                    f"{number_text(asked.median)}/s",
                    f"{number_text(served.median)}/s",
                    *(number_text(value.median * 1000) if value else NONE for value in found),
                    f"{calls.median:,.0f}",
                    f"{failed.most:.0f}",
                ]
            )
    return table(header, rows)


def capacities(details: Json) -> str:
    """What the loads are shares of, and who is missing."""
    found = "; ".join(
        f"{LOAD_NAMES[who]} {number_text(rate)}/s ({details['concurrency'][who]:,} calls at once)"
        for who, rate in details["capacity"].items()
    )
    missing = "".join(
        f" Without {LOAD_NAMES[who]}, whose concurrent calls failed with {error}."
        for who, error in details["without"].items()
    )
    return f"Capacity: {found}.{missing}"


def cost_table(workloads: Iterable[Json]) -> str:
    """Processor time and stalls."""
    header = ["workload", *(f"CPU, {name}" for name in NAMES.values())]
    header += [f"stall, {name}" for name in NAMES.values()]
    rows = []
    for each in workloads:
        cpu = [spread(each, who, "cpu_seconds_per_1000") for who in NAMES]
        stall = [spread(each, who, "net_stall_ms") for who in NAMES]
        rows.append(
            [
                title_of(each),
                *(f"{found.median:.2f}" if found else NONE for found in cpu),
                *(f"{found.median:.0f}" if found else NONE for found in stall),
            ]
        )
    return table(header, rows)


def memory_table(workload: Json) -> str:
    """Memory."""
    rows = []
    for who in ("this", "upstream"):
        found = [spread(workload, who, f"{name}_mib") for name in ("start", "peak", "growth")]
        if any(found):
            rows.append(
                [NAMES[who], *(f"{value.median:.1f}" if value else NONE for value in found)]
            )
    return table(["contender", "start", "peak", "growth, second quarter to last"], rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def engine_title(engine: Json) -> str:
    """The name of an engine for readers."""
    return ENGINES.get(engine["name"], "Milvus")


def _kept(results: Json) -> list[str]:
    """The note on what has not been measured in this run."""
    workloads = [each for engine in results["engines"] for each in engine["workloads"]]
    dates = sorted({each["kept_from"] for each in workloads if "kept_from" in each})
    if not dates:
        return []
    return [
        f"{KEPT}: not measured in this run, but in an earlier one of {' and '.join(dates)}, with "
        "the versions of then."
    ]


def _mark(workload: Json | None) -> str:
    return f" {KEPT}" if workload and "kept_from" in workload else ""


def _below(target: Target) -> str:
    is_bulk = target.below == "floor" and target.workload not in LONE
    return "floor" if is_bulk else NAMES[target.below]


def number_text(value: float) -> str:
    """A number with about three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio_text(found: Spread | None) -> str:
    """The median, and where there are several rounds the least and the greatest."""
    if found is None:
        return NONE
    if found.rounds == 1:
        return number_text(found.median)
    return f"{number_text(found.median)} ({number_text(found.least)} to {number_text(found.most)})"


def _rounds(found: Sequence[Spread | None]) -> str:
    numbers = [each.rounds for each in found if each]
    return " / ".join(map(str, numbers)) if len(set(numbers)) > 1 else str(max(numbers))


def yes_or_no(met: object) -> str:
    """Whether a target is met; `None` where nothing was measured."""
    return NONE if met is None else "yes" if met else "**no**"


def main() -> None:
    """Read figures, and write tables and plots beside them."""
    parser = argparse.ArgumentParser(description="Writes tables and plots again.")
    parser.add_argument("results", type=Path)
    file = parser.parse_args().results
    print(*write(json.loads(file.read_text()), file.parent), sep="\n")


if __name__ == "__main__":
    main()
