"""Moving house: `python -m benchmarks.moving`.

`acopy_nodes` from a file of Milvus Lite to a server, against the raw client that only reads the
same rows and one that only writes them: the slower of the two is the most that a copy can reach,
which does both. Every step is a process of its own, so that its memory is its own; in those that
read, Milvus Lite is part of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pymilvus import MilvusClient

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.migration import acopy_nodes
from tests.fixtures.engines import new_client

from . import report
from .contenders import HNSW
from .data import chunks_of_nodes, row_of
from .engines import add_arguments, running
from .layout import FIELDS, iterate_raw
from .memory import in_child, resident_mib, sampling

NAME, RAW_NAME = "benchmark_moving", "benchmark_moving_raw"
BATCH = 500
#: What must be reached: rows a second, as a share of the slower side's.
SHARE = 0.8
#: The first part of a copy, in which Milvus Lite and the interpreter take what they need.
BEGINNING = 0.2


def store_at(uri: str, token: str, dim: int, **kwargs: Any) -> MilvusVectorStore:
    """A store of the nodes, or of their copies."""
    kwargs = {"collection_name": NAME, "dim": dim, "batch_size": BATCH, **kwargs}
    return MilvusVectorStore(uri, token, **kwargs)


async def fill(file: str, nodes: int, dim: int) -> None:
    """Make the file."""
    async with store_at(file, "", dim) as store:
        for chunk in chunks_of_nodes(nodes, dim, BATCH):
            await store.async_add(chunk)


def read(file: str) -> dict[str, Any]:
    """Read all rows with the raw client's iterator; returns rows and seconds, and the memory."""
    samples: list[float] = []
    began = time.perf_counter()
    with sampling(lambda: samples.append(resident_mib())):
        client = MilvusClient(file)
        client.load_collection(NAME)
        rows = iterate_raw(client, NAME, [*FIELDS, "embedding"], BATCH)
        client.close()
    return {"rows": rows, "seconds": time.perf_counter() - began, "mib": max(samples)}


async def write(uri: str, token: str, nodes: int, dim: int) -> dict[str, Any]:
    """Write the rows with the raw client; returns rows and seconds, the making of rows aside."""
    async with store_at(uri, token, dim, collection_name=RAW_NAME, index_config=HNSW) as store:
        await store.aconnect()
        await asyncio.to_thread(store.client.load_collection, store.collection_name)
        seconds = 0.0
        for chunk in chunks_of_nodes(nodes, dim, BATCH):
            rows = [row_of(node) for node in chunk]
            began = time.perf_counter()
            await asyncio.to_thread(store.client.upsert, store.collection_name, rows)
            seconds += time.perf_counter() - began
        return {"rows": nodes, "seconds": seconds}


async def copy(file: str, uri: str, token: str, dim: int) -> dict[str, Any]:
    """Copy; returns rows and seconds, and the memory."""
    samples: list[tuple[int, float]] = []
    async with (
        store_at(file, "", dim) as source,
        store_at(uri, token, dim, index_config=HNSW) as target,
    ):
        done = 0

        def note(progress: Any) -> None:
            nonlocal done
            done = progress.done

        with sampling(lambda: samples.append((done, resident_mib()))):
            copied = await acopy_nodes(source, target, on_progress=note)
    most = max(mib for _, mib in samples)
    begun = [mib for rows, mib in samples if rows <= copied.copied * BEGINNING]
    return {
        "rows": copied.copied,
        "seconds": copied.seconds,
        "mib": most,
        "growth_mib": max(0.0, most - max(begun)),
    }


async def step(given: argparse.Namespace) -> dict[str, Any]:
    """Take one step in this process; the addresses and the token come by its stdin."""
    file, uri, token = json.loads(sys.stdin.read())
    if given.step == "copy":
        return await copy(file, uri, token, given.dim)
    if given.step == "write":
        return await write(uri, token, given.nodes, given.dim)
    if given.step == "read":
        return await asyncio.to_thread(read, file)
    await fill(file, given.nodes, given.dim)
    return {}


async def run(given: argparse.Namespace, uri: str, file: str) -> None:
    """Take all steps, and print what they took."""
    sizes = ("--nodes", str(given.nodes), "--dim", str(given.dim))
    its = {
        name: await in_child(
            "benchmarks.moving", "--step", name, *sizes, given=[file, uri, given.token]
        )
        for name in ("fill", "read", "write", "copy")
    }
    del its["fill"]
    rates = {name: found["rows"] / found["seconds"] for name, found in its.items()}
    titles = {
        "read": "the raw client reads",
        "write": "the raw client writes, rows ready",
        "copy": "`acopy_nodes`",
    }
    print(f"{given.nodes:,} nodes of {given.dim} dimensions, batches of {BATCH}.\n")
    header = ["what", "rows a second", "seconds", "memory at most"]
    rows = [
        [title, f"{rates[name]:,.0f}", f"{its[name]['seconds']:.1f}", memory_text(its[name])]
        for name, title in titles.items()
    ]
    print(report.table(header, rows))
    share = rates["copy"] / min(rates["read"], rates["write"])
    more = its["copy"]["mib"] - its["read"]["mib"]
    print(
        f"\nThe copy has {share:.2f} of the slower side's rate (target: at least {SHARE}). Milvus "
        f"Lite holds the collection in memory, in the process that reads it: the copy takes "
        f"{more:,.0f} MiB more than reading alone, and {its['copy']['growth_mib']:,.0f} MiB more "
        f"in the end than while the first {BEGINNING:.0%} of the rows are copied."
    )


def memory_text(found: dict[str, Any]) -> str:
    """The memory of a step; of one that only writes it is not of interest."""
    return f"{found['mib']:,.0f} MiB" if "mib" in found else report.NONE


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.moving", description=__doc__.splitlines()[0]
    )
    add_arguments(parser)
    add = parser.add_argument
    add("--nodes", type=int, default=100_000, help="how many (%(default)s)")
    add("--dim", type=int, default=768, help="dimension of their vectors (%(default)s)")
    add("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(asyncio.run(step(given))))
        return
    with (
        tempfile.TemporaryDirectory() as directory,
        running(given.engine, given.uri, given.token) as engine,
    ):
        try:
            asyncio.run(run(given, engine.uri, os.fspath(Path(directory) / "moving.db")))
        finally:
            client = new_client(engine.uri, engine.token)
            for name in (NAME, RAW_NAME):
                client.drop_collection(name)
            client.close()


if __name__ == "__main__":
    main()
