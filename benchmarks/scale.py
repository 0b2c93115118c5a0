"""A million nodes: `python -m benchmarks.scale`.

Nodes come from a generator and go to a server with `aingest`, beside the raw client that inserts
the same. On the way, at 10,000 and 100,000 rows and at the end: queries, counting and reading all
rows, each against the raw client. Then deletes, and a load in which the server is killed. What is
measured is written after each part, so that a run which is interrupted leaves what it has.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from pymilvus import DataType

from llama_index_milvus_async import MilvusVectorStore, aingest
from tests.fixtures.engines import Engine
from tests.fixtures.loops import Stall, measure_stall
from tests.fixtures.servers import Server

from . import data, report, scale_report, tenants
from .circumstances import circumstances
from .contenders import SEARCH_OF_HNSW, hnsw_store
from .engines import add_arguments, build_index_of_store, engine_at, running, started
from .layout import FIELDS, PACKAGES, iterate_raw
from .measure import settle
from .memory import resident_mib, sampling

#: Nodes of an insert of either, and inserts under way at once.
BATCH, IN_FLIGHT = 1_000, 4
TEXT = 250
TOP_K = 10
#: Tenants, in whose rows the filtered queries look.
TENANTS = 100
SECONDS_BETWEEN_SAMPLES = 0.5
SCALARS: dict[str, Any] = {
    "tenant": {"type": DataType.VARCHAR, "max_length": 64, "index": True},
    "number": {"type": DataType.INT64, "index": True},
}


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        nodes: Nodes in the end.
        stages: Rows at which there are queries, apart from the end.
        dim: Dimension of their vectors.
        raw: Nodes that the raw client inserts; its rate is compared with that of as many of ours.
        killed: Nodes of the load in which the server is killed.
        queries: Concurrent queries.
        rounds: Rounds of the queries.
    """

    nodes: int = 1_000_000
    stages: tuple[int, ...] = (10_000, 100_000)
    dim: int = 128
    raw: int = 200_000
    killed: int = 100_000
    queries: int = 1_000
    rounds: int = 3

    def quick(self) -> Options:
        """The same in seconds, to see that everything works; its figures mean nothing."""
        return dataclasses.replace(
            self, nodes=300, stages=(100,), dim=8, raw=100, killed=200, queries=5, rounds=1
        )

    def of_size(self, nodes: int) -> Options:
        """The same with so many nodes."""
        return dataclasses.replace(
            self,
            nodes=nodes,
            stages=tuple(stage for stage in self.stages if stage < nodes),
            raw=min(self.raw, nodes),
            killed=min(self.killed, nodes),
        )


def nodes_from(start: int, stop: int, dim: int) -> Iterator[TextNode]:
    """Make nodes one after the other, always the same."""
    for first in range(start, stop, BATCH):
        count = min(BATCH, stop - first)
        for at, node in enumerate(data.make_nodes(count, dim, prefix=f"n{first}", seed=first)):
            number = first + at
            node.text = node.text[:TEXT]
            node.metadata = {"number": number, "tenant": f"tenant-{number % TENANTS}"}
            yield node


def below(number: int) -> MetadataFilters:
    """The filter for the first so many nodes."""
    return MetadataFilters(filters=[MetadataFilter(key="number", value=number, operator="<")])


def stood(stall: Stall) -> report.Json:
    """How long the loop stood still, the passes of the garbage collector aside, and beside them."""
    return {
        "net_stall_ms": max(0.0, stall.without_collector_ms - stall.bystander_ms),
        "bystander_ms": stall.bystander_ms,
        "collector_ms": stall.collector_ms,
    }


class Scale:
    """The collections of a run, and what is measured on them.

    Args:
        engine: The engine.
        options: How many nodes, and so on.
    """

    def __init__(self, engine: Engine, options: Options) -> None:
        self._engine = engine
        self._options = options
        self._prefix = f"scale_{uuid.uuid4().hex[:8]}"
        self.store = self.make_store("all", upsert=False)
        self._samples: list[report.Json] = []
        self._written = 0

    def make_store(self, name: str, *, upsert: bool, timeout: float = 60.0) -> MilvusVectorStore:
        """A store of a collection of its own."""
        return hnsw_store(
            self._engine,
            collection_name=f"{self._prefix}_{name}",
            dim=self._options.dim,
            scalar_fields=SCALARS,
            upsert_mode=upsert,
            batch_size=BATCH,
            timeout=timeout,
        )

    async def _ingest(self, store: MilvusVectorStore, start: int, stop: int, note: Any) -> float:
        """Add nodes; returns the seconds that it took until all were acknowledged."""
        began = time.perf_counter()
        done = await aingest(
            store,
            nodes_from(start, stop, self._options.dim),
            [],
            batch_size=BATCH,
            max_in_flight=IN_FLIGHT,
            on_progress=note,
        )
        seconds = time.perf_counter() - began
        assert done.nodes == stop - start
        return seconds

    def _sample(self) -> None:
        self._samples.append(
            {"seconds": time.perf_counter(), "rows": self._written, "mib": resident_mib()}
        )

    async def load(self, stop: int) -> report.Json:
        """Add nodes up to a number; returns rows a second, memory and stalls."""
        store, start = self.store, self._written
        await store.aconnect()
        await settle(0.5)

        def note(done: Any) -> None:
            self._written = start + done.nodes

        async with measure_stall() as stall:
            with sampling(self._sample, SECONDS_BETWEEN_SAMPLES):
                seconds = await self._ingest(store, start, stop, note)
        self._written = stop
        return {"rows": stop - start, "seconds": seconds, **stood(stall)}

    async def load_raw(self) -> report.Json:
        """Insert nodes with the raw client; returns seconds with and without making the rows."""
        store = self.make_store("raw", upsert=False)
        await store.aconnect()
        name = store.collection_name

        async def insert(batch: list[report.Json]) -> None:
            await store.aclient.insert(name, batch, timeout=60)

        ready = whole = 0.0
        nodes = nodes_from(0, self._options.raw, self._options.dim)
        await settle(0.5)
        while True:
            began = time.perf_counter()
            part = list(itertools.islice(nodes, BATCH * IN_FLIGHT * 5))
            if not part:
                break
            rows = [data.row_of(node) for node in part]
            inserting = time.perf_counter()
            batches = [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]
            await tenants.at_once(insert, batches, IN_FLIGHT)
            ended = time.perf_counter()
            ready += ended - inserting
            whole += ended - began
        count = await store.acount(consistency_level="Strong")
        assert count == self._options.raw
        await asyncio.to_thread(store.client.drop_collection, name)
        await store.aclose()
        return {"rows": count, "seconds": whole, "seconds_of_inserts": ready}

    async def load_while_killed(self, server: Server) -> report.Json:
        """Kill the server in the midst of a load, start it anew, and count the rows."""
        nodes = self._options.killed
        store = self.make_store("killed", upsert=True, timeout=600.0)
        await store.aconnect()
        restarts: list[float] = []

        async def restart() -> None:
            began = time.perf_counter()
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            restarts.append(time.perf_counter() - began)

        restarting: list[asyncio.Task[None]] = []

        async def note(done: Any) -> None:
            if done.nodes >= nodes // 2 and not restarting:
                restarting.append(asyncio.create_task(restart()))

        seconds = await self._ingest(store, 0, nodes, note)
        await asyncio.gather(*restarting)
        count = await store.acount(consistency_level="Strong", timeout=600.0)
        await asyncio.to_thread(store.client.drop_collection, store.collection_name)
        await store.aclose()
        return {
            "rows": nodes,
            "counted": count,
            "seconds": seconds,
            "seconds_of_restart": restarts[0],
        }

    async def measure(self) -> report.Json:
        """Queries, counting, and reading all rows, at the present size."""
        began = time.perf_counter()
        await asyncio.to_thread(build_index_of_store, self._engine, self.store, self._written)
        indexed = time.perf_counter() - began
        found: report.Json = {"rows": self._written, "seconds_to_index": indexed}
        one = MetadataFilters(filters=[MetadataFilter(key="tenant", value="tenant-7")])
        for name, filters, expression in (
            ("queries", None, ""),
            ("filtered", one, 'tenant == "tenant-7"'),
        ):
            found[name] = [
                await self._queries(filters, expression) for _ in range(self._options.rounds)
            ]
        found["count"] = await self._count()
        found["iterate"] = await self._iterate()
        return found

    async def _queries(self, filters: MetadataFilters | None, expression: str) -> report.Json:
        store, options = self.store, self._options
        some = list(nodes_from(0, min(options.queries, self._written), options.dim))
        vectors = data.make_queries(some, options.queries)
        asked = [
            VectorStoreQuery(query_embedding=vector, similarity_top_k=TOP_K, filters=filters)
            for vector in vectors
        ]
        await store.aquery(asked[0])
        await settle(0.5)
        async with measure_stall() as stall:
            began = time.perf_counter()
            answers = await asyncio.gather(*map(store.aquery, asked))
            ours = time.perf_counter() - began
        assert all(answer.ids for answer in answers)
        del answers
        await settle(0.5)
        began = time.perf_counter()
        hits = await store.aclient.search(
            store.collection_name,
            vectors,
            filter=expression,
            limit=TOP_K,
            output_fields=FIELDS,
            search_params=dict(SEARCH_OF_HNSW),
            anns_field="embedding",
            consistency_level="Session",
            timeout=600,
        )
        for of_query in hits:
            for hit in of_query:
                _ = [hit["entity"][field] for field in FIELDS]
        theirs = time.perf_counter() - began
        return {"this": ours, "raw": theirs, **stood(stall)}

    async def _count(self) -> report.Json:
        store, took = self.store, {"this": 0.0, "raw": 0.0}
        for _ in range(5):
            began = time.perf_counter()
            assert await store.acount() == self._written
            took["this"] += (time.perf_counter() - began) / 5
            began = time.perf_counter()
            await store.aclient.query(
                store.collection_name, filter="", output_fields=["count(*)"], timeout=60
            )
            took["raw"] += (time.perf_counter() - began) / 5
        return took

    async def _iterate(self) -> report.Json:
        store, number, most = self.store, 0, 0.0
        await settle(0.5)
        before = resident_mib()
        async with measure_stall() as stall:
            began = time.perf_counter()
            async for _node in store.aiter_nodes():
                number += 1
                if number % BATCH == 0:
                    most = max(most, resident_mib() - before)
            ours = time.perf_counter() - began
        assert number == self._written
        await settle(0.5)
        began = time.perf_counter()
        rows = await asyncio.to_thread(iterate_raw, store.client, store.collection_name)
        assert rows == number
        theirs = time.perf_counter() - began
        return {"this": ours, "raw": theirs, "growth_mib": most, **stood(stall)}

    async def delete(self) -> list[report.Json]:
        """Delete by filter: one node, then 10,000, then half of all, at most 500,000."""
        found, left, gone = [], self._written, 0
        for count in (1, min(10_000, left // 10), min(500_000, left // 2)):
            async with measure_stall() as stall:
                began = time.perf_counter()
                await self.store.adelete_nodes(filters=below(gone + count), timeout=600)
                seconds = time.perf_counter() - began
            gone += count
            assert await self.store.acount(consistency_level="Strong") == left - gone
            found.append({"nodes": count, "seconds": seconds, **stood(stall)})
        return found

    def samples(self) -> list[report.Json]:
        """The samples of all loads, with the seconds in which nothing was loaded left out."""
        shown: list[report.Json] = []
        away = 0.0
        for before, sample in itertools.pairwise([self._samples[0], *self._samples]):
            gap = sample["seconds"] - before["seconds"]
            if sample["rows"] == before["rows"] and gap > 2 * SECONDS_BETWEEN_SAMPLES:
                away += gap
            shown.append(
                {**sample, "seconds": sample["seconds"] - self._samples[0]["seconds"] - away}
            )
        return shown

    async def drop(self) -> None:
        """Drop the collection and close the store."""
        await asyncio.to_thread(self.store.client.drop_collection, self.store.collection_name)
        await self.store.aclose()


async def run(given: argparse.Namespace, options: Options) -> None:
    """Measure all parts, and write what there is after each."""
    results: report.Json = {
        **circumstances(PACKAGES),
        "options": dataclasses.asdict(options),
        "stages": [],
    }

    def keep(part: str, found: Any) -> None:
        results[part] = found
        print(part, json.dumps(found)[:2_000], flush=True)
        scale_report.write(results, given.output)

    with running(given.engine, given.uri, given.token) as engine:
        results["engine"] = f"{report.engine_title({'name': engine.name})} {engine.version}"
        scale = Scale(engine, options)
        try:
            keep("raw", await scale.load_raw())
            loads = []
            for stop in sorted({*options.stages, options.raw, options.nodes}):
                loads.append(await scale.load(stop))
                results["samples"] = scale.samples()
                keep("loads", loads)
                if stop in (*options.stages, options.nodes):
                    keep("stages", [*results["stages"], await scale.measure()])
            keep("deletes", await scale.delete())
        finally:
            await scale.drop()
    if not given.uri:
        with started(given.engine) as server:
            scale = Scale(engine_at(given.engine, server.uri, ""), options)
            keep("killed", await scale.load_while_killed(server))
    scale_report.draw(results, given.output)
    print(scale_report.markdown(results))


def main() -> None:
    """Read the command line, measure, and write the results."""
    usual = Options()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__.splitlines()[0]
    )
    add_arguments(parser)
    add = parser.add_argument
    add("--nodes", type=int, default=usual.nodes, help="how many (%(default)s)")
    add("--quick", action="store_true", help="seconds instead of minutes; figures mean nothing")
    add("--output", type=Path, default=Path("benchmarks/results"), help="directory (%(default)s)")
    given = parser.parse_args()
    options = usual.quick() if given.quick else usual.of_size(given.nodes)
    asyncio.run(run(given, options))


if __name__ == "__main__":
    main()
