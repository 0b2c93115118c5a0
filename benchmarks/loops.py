"""asyncio's event loop and uvloop's: `python -m benchmarks.loops`.

The same calls on both loops, in turns: 1,000 single queries at once, 1,000 single adds at once, and
lone queries one after the other; by this store, by this store without coalescing, and by the bare
client, each of whose calls is a request. The best of some rounds counts, on the clock and of the
processor time of this process, which other work of the machine hardly changes. It needs uvloop, and
takes four minutes. On Milvus Lite it takes far longer, since a thousand queries that share no
search go through all rows a thousand times.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

import tests
from tests.fixtures.engines import Engine

from .contenders import Contender, Floor, ThisStore, Uncoalesced
from .data import make_batch, make_queries
from .engines import running

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
CONTENDERS: tuple[type[Contender], ...] = (ThisStore, Uncoalesced, Floor)
NAMES = {"this": "this store", "uncoalesced": "the same, `coalesce=False`", "floor": "bare client"}
DIM, TOP_K = 128, 10
LONE = 200

#: Contender, work and loop to the least seconds of a call, on the clock and of the processor.
Figures = dict[tuple[str, str, str], tuple[float, float]]


def measure(engine: Engine, calls: int, rounds: int) -> Figures:
    """Run all of it on both loops, in turns."""
    best: Figures = {}
    batch = make_batch(calls, DIM)
    queries = make_queries(batch.nodes, calls)

    async def run(kind: type[Contender], loop: str) -> None:
        contender = kind(engine, f"benchmark_loops_{os.getpid()}", DIM, TOP_K, level="Session")
        await contender.open()
        await asyncio.gather(*map(contender.query_one, queries[:8]))
        works: dict[str, tuple[int, Callable[[], Awaitable[Any]]]] = {
            "queries at once": (
                calls,
                lambda: asyncio.gather(*map(contender.query_one, queries)),
            ),
            "adds at once": (
                calls,
                lambda: asyncio.gather(*(contender.add_one(batch, i) for i in range(calls))),
            ),
            "a lone query": (LONE, lambda: one_by_one(contender, queries[:LONE])),
        }
        for work, (n, call) in works.items():
            wall, cpu = time.perf_counter(), time.process_time()
            await call()
            wall, cpu = (time.perf_counter() - wall) / n, (time.process_time() - cpu) / n
            key = (contender.key, work, loop)
            before = best.get(key, (wall, cpu))
            best[key] = min(wall, before[0]), min(cpu, before[1])
        await contender.close()

    prepare(engine, batch)
    try:
        for round_ in range(rounds):
            for kind in CONTENDERS:
                names = list(LOOPS) if round_ % 2 else list(LOOPS)[::-1]
                for name in names:
                    loop = LOOPS[name]()
                    loop.run_until_complete(run(kind, name))
                    loop.run_until_complete(loop.shutdown_default_executor())
                    loop.close()
    finally:
        drop(engine)
    return best


async def one_by_one(contender: Contender, queries: list[list[float]]) -> None:
    """Ask one question after the other."""
    for query in queries:
        await contender.query_one(query)


def prepare(engine: Engine, batch: Any) -> None:
    """Make the collection, and write what is queried."""

    async def write() -> None:
        store = ThisStore(engine, f"benchmark_loops_{os.getpid()}", DIM, TOP_K, level="Session")
        await store.open()
        await store.store.async_add(batch.nodes, force_flush=True)
        await store.close()

    asyncio.run(write())


def drop(engine: Engine) -> None:
    """Drop the collection."""
    from pymilvus import MilvusClient

    client = MilvusClient(engine.uri, token=engine.token)
    client.drop_collection(f"benchmark_loops_{os.getpid()}")
    client.close()


def markdown(engine: str, figures: Figures) -> str:
    """The figures of an engine as a table."""
    lines = [
        f"## {engine}",
        "",
        "| | | calls a second: asyncio | uvloop | uvloop ÷ asyncio | µs of CPU for a call: asyncio "
        "| uvloop | uvloop ÷ asyncio |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for work in dict.fromkeys(work for _, work, _ in figures):
        for who, name in NAMES.items():
            (wall, cpu), (fast_wall, fast_cpu) = (figures[who, work, loop] for loop in LOOPS)
            lines.append(
                f"| {work} | {name} | {1 / wall:,.0f} | {1 / fast_wall:,.0f} "
                f"| {wall / fast_wall:.2f} | {cpu * 1e6:,.0f} | {fast_cpu * 1e6:,.0f} "
                f"| {fast_cpu / cpu:.2f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line, measure, and write the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loops", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--engines", default="standalone", help="which to start (%(default)s)")
    add("--uri", default="", help="a server that runs, in the place of the engines")
    add("--token", default=tests.MILVUS_TOKEN, help="its token (MILVUS_TOKEN)")
    add("--calls", type=int, default=1_000, help="calls at once (%(default)s)")
    add("--rounds", type=int, default=3, help="rounds (%(default)s)")
    add("--output", type=Path, default=Path("benchmarks/results"), help="directory (%(default)s)")
    args = parser.parse_args()
    load = f"{os.getloadavg()[0]:.0f}"
    pages = [
        "# Event loops",
        "",
        f"{os.cpu_count()} cores, load {load}; {args.calls:,} nodes of {DIM} dimensions, top "
        f"{TOP_K}; the best of {args.rounds} rounds, in which the loops take turns.",
        "",
    ]
    for name in ["external"] if args.uri else args.engines.split(","):
        with running(name, args.uri, args.token) as engine:
            figures = measure(engine, args.calls, args.rounds)
            pages.append(markdown(engine.name, figures))
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "loops.md").write_text("\n".join(pages))
    print("\n".join(pages))


if __name__ == "__main__":
    main()
