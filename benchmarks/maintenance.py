"""Count, iterate and update, each against what a user would write without it.

    python -m benchmarks.maintenance --uri http://localhost:19530 --nodes 100000

It makes a collection of its own and drops it. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from pymilvus import MilvusClient

from llama_index_milvus_async import MilvusVectorStore
from tests.fixtures.loops import measure_stall
from tests.fixtures.stores import make_nodes

FIELDS = ["id", "doc_id", "text", "_node_content", "_node_type"]
ALL = MetadataFilters(filters=[])
PAGE = 1_000
#: Nodes that are changed one by one, from which the time of all is told.
ONE_BY_ONE = 200


def resident_mb() -> float:
    """The process's resident memory; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
    except OSError:
        return 0.0


async def seconds(work: Callable[[], Awaitable[object]], rounds: int) -> float:
    """The median time of some rounds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        await work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def iterate_raw(raw: MilvusClient, name: str) -> int:
    """Read every row by pymilvus' own iterator."""
    iterator, count = raw.query_iterator(name, batch_size=PAGE, output_fields=FIELDS), 0
    while page := iterator.next():
        count += len(page)
    iterator.close()
    return count


async def update_one_by_one(store: MilvusVectorStore, ids: list[str]) -> None:
    """Get, change and add nodes, one after the other."""
    for node_id in ids:
        [node] = await store.aget_nodes([node_id], include_embeddings=True)
        node.metadata["changed"] = 1
        await store.async_add([node])


async def run(uri: str, token: str, count: int, updated: int, dim: int, rounds: int) -> None:
    """Measure, and print one line for each."""
    name = f"bench_maintenance_{uuid.uuid4().hex[:8]}"
    raw = MilvusClient(uri, token=token)
    store = MilvusVectorStore(uri, token, name, dim=dim)
    try:
        for start in range(0, count, 10_000):
            size = min(10_000, count - start)
            await store.async_add(
                make_nodes(size, dim, start, f"n{start}", part=lambda i, at=start: at + i)
            )
        raw.flush(name)

        growth = stall = 0.0

        async def iterate() -> None:
            nonlocal growth, stall
            before, number = resident_mb(), 0
            async with measure_stall() as measured:
                async for _ in store.aiter_nodes(batch_size=PAGE):
                    number += 1
                    if number % PAGE == 0:
                        growth = max(growth, resident_mb() - before)
            stall = max(stall, measured.net_ms)
            assert number == count

        async def iterate_by_pymilvus() -> None:
            assert await asyncio.to_thread(iterate_raw, raw, name) == count

        theirs = count / await seconds(iterate_by_pymilvus, rounds)
        ours = count / await seconds(iterate, rounds)
        print(f"iterate: {ours:,.0f} nodes/s, pymilvus' iterator {theirs:,.0f} rows/s")
        print(f"         {ours / theirs:.2f} x, memory +{growth:.1f} MB, stall {stall:.0f} ms")

        async def count_raw() -> None:
            await asyncio.to_thread(raw.query, name, "", ["count(*)"], timeout=60)

        theirs, ours = await seconds(count_raw, 50), await seconds(store.acount, 50)
        print(
            f"count:   {ours * 1e3:.1f} ms, pymilvus {theirs * 1e3:.1f} ms, {ours / theirs:.2f} x"
        )

        some = MetadataFilters(filters=[MetadataFilter(key="part", value=updated, operator="<")])
        began = time.perf_counter()
        assert await store.aupdate_metadata(some, set={"changed": 2}) == updated
        ours = time.perf_counter() - began
        ids = [f"n0-{i}" for i in range(min(ONE_BY_ONE, updated))]
        began = time.perf_counter()
        await update_one_by_one(store, ids)
        theirs = (time.perf_counter() - began) * updated / len(ids)
        print(f"update:  {ours:.1f} s for {updated:,} nodes, one by one {theirs:.1f} s")
        print(f"         {theirs / ours:.0f} x as fast")
    finally:
        await store.aclose()
        raw.drop_collection(name)
        raw.close()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uri", required=True)
    parser.add_argument("--token", default="")
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--updated", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    updated = min(given.updated, given.nodes)
    asyncio.run(run(given.uri, given.token, given.nodes, updated, given.dim, given.rounds))


if __name__ == "__main__":
    main()
