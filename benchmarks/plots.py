"""The plots. Needs matplotlib, which the package and its tests do without."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from .report import (
    LOAD_NAMES,
    LONE,
    NAMES,
    TARGETS,
    Json,
    Spread,
    engine_title,
    ratio,
    spread,
    title_of,
    under_load,
    workload_of,
)

COLOURS = {
    "this": "#1f6fb4",
    "uncoalesced": "#85b7dd",
    "upstream": "#e08a3c",
    "floor": "#3a3a3a",
}
#: Workloads of the plot in seconds.
SECONDS = ("single_queries", "single_adds")
SECONDS_NAMES = {
    "this": "llama-index-milvus-async",
    "upstream": "llama-index-vector-stores-milvus",
}
TIMES = "\N{MULTIPLICATION SIGN}"
INK, FAINT = "#2b2b2b", "#d9d9d9"

STYLE = {
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "savefig.facecolor": "white",
}


def write(results: Json, output: Path) -> list[str]:
    """Write the plots for which there are figures; returns the files' names."""
    plots = {
        "seconds.png": _seconds,
        "ratios.png": _ratios,
        "latency.png": _latency,
        "load.png": _load,
        "memory.png": _memory,
    }
    written = []
    with pyplot.rc_context(STYLE):
        for name, plot in plots.items():
            figure = plot(results)
            if figure is not None:
                figure.savefig(output / name)
                pyplot.close(figure)
                written.append(name)
    return written


# -- seconds ---------------------------------------------------------------------------------


def _seconds(results: Json) -> Any:
    """What a thousand concurrent calls take, for the README: narrow enough for a phone."""
    shown = [
        (engine, workload)
        for key in SECONDS
        for engine in results["engines"]
        if spread(workload := workload_of(engine, key), "upstream", "seconds")
    ]
    if not shown:
        return None
    figure, axes = pyplot.subplots(
        len(shown), 1, figsize=(5.6, 0.7 + 1.15 * len(shown)), squeeze=False, layout="constrained"
    )
    for axis, (engine, workload) in zip(axes[:, 0], shown, strict=True):
        _second_bars(axis, workload)
        name = "Milvus Lite" if engine["is_lite"] else "Milvus server"
        axis.set_title(f"{title_of(workload)}\n{name}", loc="left", size=13)
    whos = ("this", "upstream")
    figure.legend(
        handles=[Patch(color=COLOURS[who], label=SECONDS_NAMES[who]) for who in whos],
        loc="outside upper left",
        fontsize=13,
    )
    return figure


def _second_bars(axis: Any, workload: Json) -> None:
    """The bars of a workload from 0, each with its seconds; the scale is the workload's own."""
    for y, who in enumerate(("this", "upstream")):
        found = spread(workload, who, "seconds")
        if found is None:
            continue
        axis.barh(y, found.median, 0.84, color=COLOURS[who])
        axis.annotate(
            f"{found.median:.0f} s" if found.median >= 20 else f"{found.median:.1f} s",
            (found.median, y),
            (6, 0),
            textcoords="offset points",
            va="center",
            size=14,
            weight="bold" if who == "this" else "normal",
        )
    axis.set_ylim(1.55, -0.55)
    axis.margins(x=0.2)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines["bottom"].set_visible(False)


# -- ratios to the floor ---------------------------------------------------------------------


def _ratios(results: Json) -> Any:
    shown = []
    for engine in results["engines"]:
        compared = [
            (workload, figure)
            for workload in engine["workloads"]
            for figure in (workload["measure"], *(["cpu_p50"] if workload["key"] in LONE else []))
            if ratio(workload, "this", "floor", figure)
        ]
        if compared:
            shown.append((engine, compared))
    if not shown:
        return None
    heights = [len(compared) for _, compared in shown]
    figure, axes = pyplot.subplots(
        len(shown),
        1,
        figsize=(10, 1.9 + 0.62 * sum(heights) + 0.7 * len(shown)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axis, (engine, compared) in zip(axes[:, 0], shown, strict=True):
        _ratio_bars(axis, engine, compared)
    axes[-1, 0].set_xlabel("time ÷ time of the floor, logarithmic (further left is better)")
    figure.legend(
        handles=[
            Patch(color=COLOURS["this"], label=NAMES["this"]),
            Patch(color=COLOURS["upstream"], label="upstream plugin"),
            Line2D([], [], color=COLOURS["floor"], label="floor: the raw client, in bulk"),
            Line2D([], [], color="#c0182b", lw=2.2, label="target of this store"),
        ],
        loc="outside upper center",
        ncols=4,
    )
    return figure


def _ratio_bars(axis: Any, engine: Json, compared: list[tuple[Json, str]]) -> None:
    height = 0.38
    bounds = {
        (t.workload, t.figure): t.bound(engine["is_lite"]) for t in TARGETS if t.below == "floor"
    }
    ends = [1.0]
    for position, (workload, figure) in enumerate(compared):
        of_figure = "" if figure == workload["measure"] else figure
        bound = bounds.get((workload["key"], of_figure))
        for who, offset in (("this", -height / 2), ("upstream", height / 2)):
            found = ratio(workload, who, "floor", figure)
            if found is None:
                continue
            y = position + offset
            # From the floor: on a logarithmic axis a bar has no other natural beginning.
            axis.barh(y, found.median - 1, height * 0.92, left=1, color=COLOURS[who])
            axis.plot([found.least, found.most], [y, y], color=INK, lw=1, alpha=0.6)
            end = max(found.median, found.most, 1)
            ends += [end, found.least]
            if who == "this" and bound:
                end = max(end, bound)
                ends.append(bound)
            axis.annotate(
                _times(found), (end, y), (6, 0), textcoords="offset points", va="center", size=9
            )
        if bound:
            axis.plot(
                [bound, bound], [position - height, position], color="#c0182b", lw=2.2, zorder=5
            )
    axis.axvline(1, color=COLOURS["floor"], lw=1.3)
    axis.set_xscale("log")
    axis.set_xlim(min(0.8, min(ends) * 0.85), max(ends) * 1.6)
    axis.set_ylim(len(compared) - 0.45, -0.55)
    axis.set_yticks(range(len(compared)), [_label(*each) for each in compared])
    axis.tick_params(axis="y", length=0)
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if tick < max(ends) * 1.6]
    ticks = [tick for tick in ticks if tick > axis.get_xlim()[0]]
    axis.set_xticks(ticks, [f"{tick:g}{TIMES}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(axis="x", color=FAINT, lw=0.7)
    axis.set_title(engine_title(engine), loc="left")


def _label(workload: Json, figure: str) -> str:
    """The title, with what is compared where it is not all the time, in readable lines."""
    what = {"p50": " (p50)", "cpu_p50": " (CPU)"}.get(figure, "")
    title = title_of(workload) + what
    head, comma, tail = title.partition(", ")
    return f"{head},\n{tail}" if comma and len(title) > 30 else title


def _times(found: Spread) -> str:
    value = found.median
    return (
        f"{value:.0f}{TIMES}"
        if value >= 20
        else f"{value:.1f}{TIMES}"
        if value >= 5
        else f"{value:.2f}{TIMES}"
    )


# -- latencies -------------------------------------------------------------------------------


def _latency(results: Json) -> Any:
    engines = [
        (engine, [each for each in engine["workloads"] if each["measure"] == "query_p50"])
        for engine in results["engines"]
    ]
    engines = [(engine, workloads) for engine, workloads in engines if workloads]
    if not engines:
        return None
    columns = max(len(workloads) for _, workloads in engines)
    figure, axes = pyplot.subplots(
        len(engines),
        columns,
        figsize=(1.4 + 3.3 * columns, 0.9 + 3.3 * len(engines)),
        squeeze=False,
        sharey="row",
        layout="constrained",
    )
    for row, (engine, workloads) in zip(axes, engines, strict=True):
        for axis in row[len(workloads) :]:
            axis.set_visible(False)
        for axis, workload in zip(row, workloads, strict=False):
            _percentile_bars(axis, workload)
        row[0].set_ylabel(f"{engine_title(engine)}\nms, logarithmic")
        row[0].yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    figure.legend(
        handles=[
            Patch(color=COLOURS["this"], label=NAMES["this"]),
            Patch(color=COLOURS["upstream"], label="upstream plugin"),
        ],
        loc="outside upper center",
        ncols=2,
        title="Latency from arrival to answer, half adds and half queries, consistency Strong",
    )
    return figure


def _percentile_bars(axis: Any, workload: Json) -> None:
    figures = [f"{kind}_{p}" for kind in ("add", "query") for p in ("p50", "p95", "p99")]
    places = [0, 1, 2, 3.6, 4.6, 5.6]
    for who, offset in (("this", -0.2), ("upstream", 0.2)):
        for place, name in zip(places, figures, strict=True):
            found = spread(workload, who, name)
            if found is None:
                continue
            value = found.median * 1000
            axis.bar(place + offset, value, 0.38, color=COLOURS[who])
            axis.annotate(
                f"{value:,.0f}" if value >= 9.5 else f"{value:.1f}",
                (place + offset, value),
                (0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                rotation=90,
                size=7.5,
            )
    axis.set_yscale("log")
    axis.margins(y=0.22)
    axis.set_xticks(places, ["p50", "p95", "p99"] * 2)
    for place, text in ((1, "adds"), (4.6, "queries")):
        axis.annotate(
            text,
            (place, 0),
            (0, -26),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="top",
        )
    axis.grid(axis="y", color=FAINT, lw=0.7)
    details = workload["details"]
    what = "what upstream sustains" if details["factor"] == 1 else "twice that"
    far = ",\n" + workload["title"].split(", ")[-1] if "away" in workload["title"] else "\n "
    axis.set_title(f"{details['rate']:,.0f}/s, {what}{far}", size=10)


# -- latency under load ----------------------------------------------------------------------


def _load(results: Json) -> Any:
    shown = [(engine, calls) for engine in results["engines"] if (calls := under_load(engine))]
    if not shown:
        return None
    columns = max(len(calls) for _, calls in shown)
    figure, axes = pyplot.subplots(
        len(shown),
        columns,
        figsize=(1.4 + 5.0 * columns, 1.3 + 3.5 * len(shown)),
        squeeze=False,
        layout="constrained",
    )
    for row, (engine, calls) in zip(axes, shown, strict=True):
        for axis in row[len(calls) :]:
            axis.set_visible(False)
        for axis, (call, workloads) in zip(row, calls.items(), strict=False):
            _load_lines(axis, workloads)
            axis.set_title(call, size=10)
        row[0].set_ylabel(f"{engine_title(engine)}\nms, logarithmic")
    for axis in axes[-1]:
        axis.set_xlabel("load, as a share of the contender's own capacity")
    line: Any = {"color": COLOURS["floor"], "lw": 1.6}
    point: Any = {"marker": "D", "mfc": "white", "ls": "none", "color": COLOURS["this"]}
    whos = ("this", "uncoalesced", "upstream")
    figure.legend(
        handles=[
            *(Patch(color=COLOURS[who], label=LOAD_NAMES[who]) for who in whos),
            Line2D([], [], label="p50", **line),
            Line2D([], [], label="p99", ls="--", **line),
            Line2D([], [], label=f"{LOAD_NAMES['this_at_upstream']}, p50 and p99", **point),
        ],
        loc="outside upper center",
        ncols=3,
        title="Latency from arrival to answer of calls that arrive at random; at the right, "
        "the capacity",
    )
    return figure


def _load_lines(axis: Any, workloads: list[Json]) -> None:
    loads = [each["details"]["load"] for each in workloads]
    ends: list[tuple[float, str]] = []
    for who in ("this", "uncoalesced", "upstream"):
        for name, style in (("p50", "-"), ("p99", "--")):
            found = [spread(each, who, name) for each in workloads]
            points = [
                (load, value.median * 1000)
                for load, value in zip(loads, found, strict=True)
                if value
            ]
            if not points:
                continue
            x, y = zip(*points, strict=True)
            axis.plot(x, y, style, marker="o", ms=4, lw=1.6, color=COLOURS[who])
            if name == "p50":
                ends.append((y[-1], who))
    for load, each in zip(loads, workloads, strict=True):
        for name in ("p50", "p99"):
            at_upstreams_rate = spread(each, "this_at_upstream", name)
            if at_upstreams_rate:
                axis.plot(
                    load,
                    at_upstreams_rate.median * 1000,
                    "D",
                    ms=6,
                    mfc="white",
                    color=COLOURS["this"],
                )
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.margins(x=0.16)
    axis.set_xticks(loads, [f"{load:.0%}" for load in loads])
    axis.grid(axis="y", color=FAINT, lw=0.7)
    bottom, top = axis.get_ylim()
    lowest = 0.0
    for value, who in sorted(ends):
        height = max(lowest, math.log(value / bottom) / math.log(top / bottom))
        lowest = height + 0.05  # the next label is not written over this one
        capacity = workloads[0]["details"]["capacity"][who]
        axis.annotate(
            f"{capacity:,.0f}/s",
            (loads[-1], height),
            (7, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="center",
            size=8.5,
            color=COLOURS[who],
        )


# -- memory ----------------------------------------------------------------------------------


def _memory(results: Json) -> Any:
    shown = [
        (engine, workload)
        for engine in results["engines"]
        if (workload := workload_of(engine, "memory")) and workload["rounds"]
    ]
    if not shown:
        return None
    figure, axes = pyplot.subplots(
        1,
        len(shown),
        figsize=(5.2 * len(shown), 3.6),
        squeeze=False,
        layout="constrained",
    )
    for axis, (engine, workload) in zip(axes[0], shown, strict=True):
        for who in ("this", "upstream"):
            samples = workload["details"].get(who)
            if samples:
                added, mib = zip(*samples, strict=True)
                axis.plot(added, mib, color=COLOURS[who], lw=1.6, label=NAMES[who])
        highest = max(mib for who in NAMES for _, mib in workload["details"].get(who, ()))
        axis.set_ylim(0, highest * 1.2)
        axis.set_title(engine_title(engine), loc="left")
        axis.set_xlabel("nodes added, from a generator in chunks")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.grid(color=FAINT, lw=0.7)
        axis.legend(loc="lower right")
    axes[0][0].set_ylabel("resident memory, MiB")
    return figure
