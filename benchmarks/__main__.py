"""Runs the benchmark: `python -m benchmarks`, or `make bench`."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import datetime
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import tests

from . import report
from .circumstances import circumstances
from .contenders import Upstream
from .engines import STARTED, running, why_not
from .settings import FULL_ONLY, WORKLOADS, Options
from .workloads import Bench

PACKAGES = (
    "llama-index-milvus-async",
    "llama-index-vector-stores-milvus",
    "llama-index-core",
    "pymilvus",
    "grpcio",
    "milvus-lite",
    "milvus",
)


def main() -> None:
    """Read the command line, run, and write the results."""
    options = read_options()
    # pymilvus logs a traceback for every call that an overloaded server refuses.
    logging.disable(logging.ERROR)
    began = time.perf_counter()
    results = asyncio.run(run(options))
    results["minutes"] = round((time.perf_counter() - began) / 60, 1)
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "results.json"
    if options.keep and file.exists():
        report.keep(json.loads(file.read_text()), results)
    file.write_text(json.dumps(results, indent=1) + "\n")
    for written in [file.name, *report.write(results, options.output)]:
        print(f"wrote {written}")
    if results["failures"]:
        sys.exit(1)


async def run(options: Options) -> dict[str, Any]:
    """Run every workload on every engine."""
    found_in = circumstances(PACKAGES)
    notes = [note for note in [Upstream.why_not()] if note]
    engines: list[dict[str, Any]] = []
    failures: list[str] = []
    for name in options.engines:
        reason = "" if options.uri else why_not(name)
        if reason:
            notes.append(f"{name}: {reason}")
            continue
        with running(name, options.uri, options.token) as engine:
            bench = Bench(engine, options, say)
            workloads = await bench.run()
            failures += bench.failures
            engines.append(
                {
                    "name": name,
                    "version": engine.version,
                    "is_lite": engine.is_lite,
                    "workloads": [dataclasses.asdict(each) for each in workloads if each.rounds],
                }
            )
    for note in [*notes, *failures]:
        say(note)
    return {
        **found_in,
        "options": options.shown(),
        "notes": notes,
        "failures": failures,
        "engines": engines,
    }


def say(line: str) -> None:
    """Tell the progress."""
    print(f"{datetime.datetime.now():%H:%M:%S} {line}", flush=True)


def read_options() -> Options:
    """Read the command line."""
    usual = Options()
    groups = "\n".join(f"  {key:12} {what}" for key, what in WORKLOADS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compares this store with the plugin it replaces and the bare client.",
        epilog=f"workloads:\n{groups}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--uri", default=tests.MILVUS_URI, help="a running server (default: start the engines)")
    add("--token", default=tests.MILVUS_TOKEN, help="its token")
    add("--engines", type=listed(STARTED), default=None, help=f"of {', '.join(STARTED)}")
    add("--workloads", type=listed(WORKLOADS), default=None, help="groups, by commas; see below")
    add("--quick", action="store_true", help="seconds instead of minutes; figures mean nothing")
    add("--full", action="store_true", help=f"also {', '.join(FULL_ONLY)}")
    add("--output", type=Path, default=usual.output, help="directory of the results")
    add("--keep", action="store_true", help="keep results that are there and not measured again")
    numbers = {
        "rounds": "rounds of each workload",
        "count": "concurrent adds, and concurrent queries",
        "dim": "dimension of the vectors",
        "big-rows": "rows of the large collection on a server",
        "big-rows-lite": "the same on Milvus Lite",
        "bulk": "nodes of one large add",
        "memory": "nodes added from the generator",
    }
    for name, what in numbers.items():
        default = getattr(usual, name.replace("-", "_"))
        add(f"--{name}", type=int, help=f"{what} (default {default:,})")
    for name in ("open-seconds", "load-seconds", "patience"):
        default = getattr(usual, name.replace("-", "_"))
        add(f"--{name}", type=float, help=f"see settings.py (default {default:g})")
    given = parser.parse_args()

    options = usual.quick() if given.quick else usual
    if given.full:
        options = dataclasses.replace(options, workloads=tuple(WORKLOADS))
    names = [field.name for field in dataclasses.fields(Options)]
    chosen = {name: getattr(given, name, None) for name in names}
    options = dataclasses.replace(options, **{k: v for k, v in chosen.items() if v is not None})
    return dataclasses.replace(options, engines=("external",)) if options.uri else options


def listed(known: Any) -> Any:
    """A reader of names separated by commas."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        unknown = ", ".join(sorted(set(names) - set(known)))
        if unknown:
            raise argparse.ArgumentTypeError(f"no such name: {unknown}")
        return names

    return read


if __name__ == "__main__":
    main()
