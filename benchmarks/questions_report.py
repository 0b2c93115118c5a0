"""Tables and a plot of what `questions.py` measured.

`python -m benchmarks.questions_report benchmarks/results/questions.json` makes them again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

#: The variants, with what tables and plots call them and their colours.
NAMES = {
    "upstream": "upstream's store",
    "plain": "this store",
    "coalescing": "this store and CoalescingEmbedding",
    "ideal": "ideal: one call of the model, one search",
}
COLOURS = {
    "upstream": "#b8b8b8",
    "plain": "#7aa6d8",
    "coalescing": "#1f5fa8",
    "ideal": "#e0a030",
}


#: What is drawn of latencies: the line, and its name.
PERCENTILES = {"p50": ("o-", "half of the answers"), "p99": ("s--", "99 of 100 answers")}


def write(results: Json, directory: Path) -> None:
    """Write figures, tables and the plot."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "questions.json").write_text(json.dumps(results, indent=1) + "\n")
    (directory / "questions.md").write_text(markdown(results))
    print(markdown(results))
    draw(results, directory / "questions.png")


def markdown(results: Json) -> str:
    """The results as a page."""
    lines = [
        "# From questions to nodes",
        "",
        f"{results['date']}, {results['machine']}, load {results['load']}, Python "
        f"{results['python']}; {results['where']}, {results['rows']:,} rows, top "
        f"{results['top_k']}, all-MiniLM-L6-v2. The best of several rounds, in which the variants "
        "take turns. Times are for all questions together; CPU is this process's. The language "
        "model of `aquery` answers at once. *Ideal* embeds all questions in one call of the model, "
        "and searches all embeddings in one `aquery_many`.",
        "",
        "| call | at once | upstream | this store | with `CoalescingEmbedding` | ideal "
        "| ÷ upstream | ÷ this store | ÷ ideal | CPU ÷ ideal |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results["together"]:
        upstream, plain, coalescing, ideal = (row.get(name) for name in NAMES)
        lines.append(
            f"| `{row['call']}` | {row['questions']:,} | {_ms(upstream)} | {_ms(plain)} "
            f"| {_ms(coalescing)} | {_ms(ideal)} | {_ratio(coalescing, upstream)} "
            f"| {_ratio(coalescing, plain)} | {_ratio(coalescing, ideal)} "
            f"| {_ratio(coalescing, ideal, 'cpu')} |"
        )
    if results["under_load"]:
        lines += [
            "",
            "## Under load",
            "",
            "Questions arrive at random (Poisson), at shares of the capacity that each variant has "
            "in a closed loop just before. Latency counts from the arrival.",
            "",
            "| call | | capacity | load | p50 | p99 | not answered |",
            "|---|---|---:|---:|---:|---:|---:|",
        ]
    lines += [
        f"| `{row['call']}` | {NAMES[row['variant']]} | {row['capacity']:,.0f}/s "
        f"| {row['load']:.0%} | {row['p50'] * 1000:,.0f} ms | {row['p99'] * 1000:,.0f} ms "
        f"| {row['failed']:.0f} |"
        for row in results["under_load"]
    ]
    return "\n".join(lines) + "\n"


def _ms(took: dict[str, float] | None) -> str:
    return "" if took is None else f"{took['wall'] * 1000:,.0f} ms"


def _ratio(above: dict[str, float], below: dict[str, float] | None, what: str = "wall") -> str:
    return "" if below is None else f"{above[what] / below[what]:.2f}"


def draw(results: Json, path: Path) -> None:
    """Draw how many questions are answered a second, and how long one waits."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: there is no plot")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in results["together"] if row["call"] == "aretrieve"]
    loads = [row for row in results["under_load"] if row["call"] == "aretrieve"]
    figure, axes = pyplot.subplots(1, 2 if loads else 1, figsize=(11, 4.6), squeeze=False)
    _draw_rates(axes[0][0], rows)
    if loads:
        _draw_latencies(axes[0][1], loads)
    figure.suptitle(
        f"Questions to an index: embedded by all-MiniLM-L6-v2 and searched in {results['where']}, "
        f"on {results['machine'].split(',')[0]}",
        size=11,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_rates(axis: Any, rows: list[Json]) -> None:
    width = 0.8 / len(NAMES)
    for offset, name in enumerate(NAMES):
        for place, row in enumerate(rows):
            if name not in row:
                continue
            rate = row["questions"] / row[name]["wall"]
            x = place + (offset - (len(NAMES) - 1) / 2) * width
            bar = axis.bar(x, rate, width * 0.94, color=COLOURS[name])
            axis.bar_label(bar, [f"{rate:,.0f}"], size=8)
            if place == 0:
                bar.set_label(NAMES[name])
    axis.set_xticks(range(len(rows)), [f"{row['questions']:,}" for row in rows])
    axis.set_xlabel("questions that arrive at the same time")
    axis.set_title("Questions answered each second: more is better", size=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(y=0.5)
    axis.legend(frameon=False, fontsize=8, loc="upper left")


def _draw_latencies(axis: Any, rows: list[Json]) -> None:
    for name in NAMES:
        own = [row for row in rows if row["variant"] == name]
        if not own:
            continue
        rates = [row["load"] * row["capacity"] for row in own]
        for key, (style, _) in PERCENTILES.items():
            latencies = [row[key] * 1000 for row in own]
            axis.plot(rates, latencies, style, ms=4, color=COLOURS[name])
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.yaxis.set_minor_formatter(lambda value, _: f"{value:,g}")
    axis.set_xlim(left=0)
    axis.set_xlabel("questions that arrive each second, at 50, 80 and 95 % of what is possible")
    axis.set_title("Milliseconds until the answer: less is better", size=10)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    for style, label in PERCENTILES.values():
        axis.plot([], [], style, ms=4, color="#555555", label=label)
    axis.legend(frameon=False, fontsize=8, loc="lower right")


if __name__ == "__main__":
    file = Path(sys.argv[1])
    write(json.loads(file.read_text()), file.parent)
