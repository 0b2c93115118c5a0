"""What a layout gains, and one call for many nodes: `python -m benchmarks.layout`.

On one engine, with the same nodes in collections of different layouts: a query with a filter,
`delete(ref_doc_id)`, counting, iterating and updating, each against what one has without it. Those
that are compared take turns, call by call. Then what 100 and 10,000 tenants cost, kept apart in
each of the five ways (`tenants.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index.core.schema import NodeRelationship, RelatedNodeInfo
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from pymilvus import DataType, MilvusClient

from llama_index_milvus_async import MilvusVectorStore
from tests.fixtures.engines import Engine
from tests.fixtures.loops import measure_stall

from . import data, report, tenants
from .circumstances import circumstances, circumstances_text
from .contenders import hnsw_store
from .engines import add_arguments, build_index_of_store, running
from .measure import CallClock, Figures, settle
from .memory import resident_mib
from .workloads import rotated

#: Layouts of the collections that are compared.
_COLUMN = {"type": DataType.VARCHAR, "max_length": 64}
LAYOUTS: dict[str, dict[str, Any]] = {
    "dynamic field": {"index_doc_id": False},
    "column": {"scalar_fields": {"tenant": _COLUMN}, "index_doc_id": False},
    "index": {"scalar_fields": {"tenant": {**_COLUMN, "index": True}}, "index_doc_id": True},
    "partition key": {"partition_key_field": "tenant", "num_partitions": 16},
}
#: What must be reached. That a layout is never slower has no other bound on any engine.
TARGETS = tuple(
    report.Target(workload, title, above, below, at_most, bound, bound)
    for workload, title, above, below, at_most, bound in (
        ("query", "query with a filter", "index", "column", True, 1.0),
        ("query", "query with a filter", "index", "dynamic field", True, 1.0),
        ("query", "query with a filter", "partition key", "column", True, 1.0),
        ("query", "query with a filter", "partition key", "index", True, 1.0),
        ("delete", "delete(ref_doc_id)", "index", "column", True, 1.0),
        ("count", "acount()", "this store", "raw client", True, 1.2),
        ("iterate", "aiter_nodes()", "raw client", "this store", False, 0.8),
        ("update", "aupdate_metadata()", "one by one", "this store", False, 5.0),
    )
)
PACKAGES = ("llama-index-milvus-async", "llama-index-core", "pymilvus", "milvus", "milvus-lite")
PARTS = ("layouts", "tenants")
TOP_K = 10
PAGE = 1_000
#: Most that the process may grow by while it iterates.
GROWTH_MIB = 57
#: Columns that the raw client reads when it iterates: those that make a node.
FIELDS = ["id", "doc_id", "text", "_node_content", "_node_type"]

Calls = Mapping[str, Callable[[int], Awaitable[object]]]
Round = dict[str, Figures]


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        nodes: Nodes in each collection, ten of a document.
        dim: Dimension of their vectors.
        apart: Tenants whose nodes are in one collection, where layouts are compared.
        rounds: Rounds of each comparison.
        calls: Calls of each contender in a round.
        updated: Nodes whose metadata is updated.
        one_by_one: Nodes of a round that are changed one by one; the time of all is told from them.
        tenants: Numbers of tenants, of which the costs are measured.
        patience: Seconds after which no more tenants are created.
        rest: Seconds of rest before each measurement.
    """

    nodes: int = 100_000
    dim: int = 128
    apart: int = 100
    rounds: int = 5
    calls: int = 20
    updated: int = 10_000
    one_by_one: int = 20
    tenants: tuple[int, ...] = (100, 10_000)
    patience: float = 120.0
    rest: float = 0.5

    def quick(self) -> Options:
        """The same in seconds, to see that everything works; its figures mean nothing."""
        return dataclasses.replace(
            self,
            nodes=200,
            dim=8,
            apart=4,
            rounds=1,
            calls=2,
            updated=20,
            one_by_one=2,
            tenants=(2,),
            patience=10.0,
            rest=0.0,
        )


class Layouts:
    """The same nodes in a collection of each layout.

    Args:
        engine: The engine.
        options: How many nodes, and so on.
    """

    def __init__(self, engine: Engine, options: Options) -> None:
        self._options = options
        self._engine = engine
        self._prefix = f"layout_{uuid.uuid4().hex[:8]}"
        self._stores = {name: self._store(name, upsert=False) for name in LAYOUTS}
        # With a partition key, Milvus 2.3 cannot replace rows; nothing is replaced there.
        self._changing = self._store("column", upsert=True)
        self._queries: list[list[float]] = []

    def _store(self, layout: str, *, upsert: bool) -> MilvusVectorStore:
        return hnsw_store(
            self._engine,
            collection_name=f"{self._prefix}_{layout.replace(' ', '_')}",
            dim=self._options.dim,
            upsert_mode=upsert,
            **LAYOUTS[layout],
        )

    async def fill(self) -> None:
        """Write the nodes, and wait for their index."""
        options, number = self._options, itertools.count()
        chunks = data.chunks_of_nodes(options.nodes, options.dim, 10_000)
        for nodes in chunks:
            for node in nodes:
                node.metadata |= {
                    "number": (at := next(number)),
                    "tenant": f"tenant-{at % options.apart}",
                }
                document = RelatedNodeInfo(node_id=f"document-{at // 10}")
                node.relationships[NodeRelationship.SOURCE] = document
            if not self._queries:
                self._queries = data.make_queries(nodes, min(len(nodes), 1_000))
            for store in self._stores.values():
                await store.async_add(nodes)
        for store in self._stores.values():
            await asyncio.to_thread(build_index_of_store, self._engine, store, options.nodes)

    async def drop(self) -> None:
        """Drop the collections and close the stores."""
        await self._changing.aclose()
        for store in self._stores.values():
            await asyncio.to_thread(store.client.drop_collection, store.collection_name)
            await store.aclose()

    async def compare(self) -> list[report.Json]:
        """Measure everything; what changes the rows comes last."""
        options = self._options
        return [
            workload("query", "p50", await self._turns(self._query_calls(), options.calls)),
            workload("count", "p50", await self._turns(self._count_calls(), options.calls)),
            workload("iterate", "seconds", await self._iterations()),
            workload("delete", "p50", await self._turns(self._delete_calls(), options.calls)),
            workload("update", "seconds", await self._updates()),
        ]

    async def _turns(self, calls: Calls, count: int) -> list[Round]:
        """Let those that are compared take turns, in an order that rotates."""
        numbers = itertools.count()
        rounds = []
        for call in calls.values():
            await call(next(numbers))
        for _ in range(self._options.rounds):
            await settle(self._options.rest)
            clocks = {name: CallClock() for name in calls}
            for turn in range(count):
                number = next(numbers)
                for name in rotated(list(calls), turn):
                    with clocks[name]:
                        await calls[name](number)
            rounds.append({name: clock.figures() for name, clock in clocks.items()})
        return rounds

    def _query_calls(self) -> Calls:
        def of(store: MilvusVectorStore) -> Callable[[int], Awaitable[object]]:
            async def call(number: int) -> None:
                query = VectorStoreQuery(
                    query_embedding=self._queries[number % len(self._queries)],
                    similarity_top_k=TOP_K,
                    filters=tenants.one_tenant(f"tenant-{number % self._options.apart}"),
                )
                assert (await store.aquery(query)).ids

            return call

        return {name: of(store) for name, store in self._stores.items()}

    def _count_calls(self) -> Calls:
        store = self._stores["column"]

        async def raw(_number: int) -> None:
            [row] = await store.aclient.query(
                store.collection_name, filter="", output_fields=["count(*)"], timeout=60
            )
            assert row["count(*)"] == self._options.nodes

        async def ours(_number: int) -> None:
            assert await store.acount() == self._options.nodes

        return {"this store": ours, "raw client": raw}

    def _delete_calls(self) -> Calls:
        def of(store: MilvusVectorStore) -> Callable[[int], Awaitable[object]]:
            # The first documents are those of nodes that are updated afterwards.
            last = self._options.nodes // 10 - 1
            return lambda number: store.adelete(f"document-{last - number}")

        return {name: of(self._stores[name]) for name in ("column", "index")}

    async def _iterations(self) -> list[Round]:
        store, rounds = self._stores["column"], []
        for _ in range(self._options.rounds):
            await settle(self._options.rest)
            before, growth, number = resident_mib(), 0.0, 0
            async with measure_stall() as stall:
                began = time.perf_counter()
                async for _node in store.aiter_nodes(batch_size=PAGE):
                    number += 1
                    if number % PAGE == 0:
                        growth = max(growth, resident_mib() - before)
                ours = time.perf_counter() - began
            assert number == self._options.nodes
            await settle(self._options.rest)
            began = time.perf_counter()
            rows = await asyncio.to_thread(iterate_raw, store.client, store.collection_name)
            assert rows == number
            theirs = time.perf_counter() - began
            its = {"seconds": ours, "growth_mib": growth, "net_stall_ms": stall.net_ms}
            rounds.append({"this store": its, "raw client": {"seconds": theirs}})
        return rounds

    async def _updates(self) -> list[Round]:
        options, rounds = self._options, []
        some = MetadataFilters(
            filters=[MetadataFilter(key="number", value=options.updated, operator="<")]
        )
        ids = (f"chunk-0-{number}" for number in itertools.cycle(range(options.updated)))
        for number in range(options.rounds):
            await settle(options.rest)
            began = time.perf_counter()
            changed = await self._changing.aupdate_metadata(some, set={"changed": number})
            ours = time.perf_counter() - began
            assert changed == options.updated
            await settle(options.rest)
            began = time.perf_counter()
            for node_id in itertools.islice(ids, options.one_by_one):
                await change_one(self._changing, node_id)
            theirs = (time.perf_counter() - began) * options.updated / options.one_by_one
            rounds.append({"this store": {"seconds": ours}, "one by one": {"seconds": theirs}})
        return rounds


async def change_one(store: MilvusVectorStore, node_id: str) -> None:
    """Change metadata as one does without `update_metadata`."""
    [node] = await store.aget_nodes([node_id], include_embeddings=True)
    node.metadata["changed"] = -1
    await store.async_add([node])


def iterate_raw(
    client: MilvusClient, name: str, fields: Sequence[str] = FIELDS, page: int = PAGE
) -> int:
    """Read every row by pymilvus' own iterator; returns how many there were."""
    iterator = client.query_iterator(name, batch_size=page, output_fields=list(fields))
    count = 0
    while rows := iterator.next():
        count += len(rows)
    iterator.close()
    return count


def workload(key: str, measure: str, rounds: list[Round]) -> report.Json:
    """A comparison, as `report` reads it."""
    return {"key": key, "measure": measure, "rounds": rounds}


# -- results ---------------------------------------------------------------------------------


def markdown(part: str, results: report.Json) -> str:
    """The results of a part as a page."""
    options, engine = results["options"], f"{results['engine']} {results['version']}"
    measured = (
        f"{circumstances_text(results, engine)} "
        f"{options['nodes']:,} nodes of {options['dim']} dimensions, HNSW. What is measured is in "
        "[README.md](../README.md#layouts-and-tenants)."
    )
    if part == "tenants":
        parts = ["# What tenants cost", measured, tenants.markdown(results["measured"])]
    else:
        workloads = {each["key"]: each for each in results["measured"]}
        parts = [
            "# Layouts and operations",
            f"{measured} Times are medians over {options['rounds']} rounds; ratios are taken "
            "within a round, with their least and greatest in parentheses.",
            report.table(["what", "A ÷ B", "A", "B", "ratio", "target", "met"], _rows(workloads)),
            _iteration(workloads["iterate"]),
        ]
    return "\n\n".join(parts) + "\n"


def _rows(workloads: Mapping[str, report.Json]) -> Iterator[list[str]]:
    for target in TARGETS:
        its = workloads[target.workload]
        found = report.ratio(its, target.above, target.below)
        sides = [report.spread(its, who, its["measure"]) for who in (target.above, target.below)]
        yield [
            target.title,
            f"{target.above} ÷ {target.below}",
            *(report.NONE if side is None else _time(side.median) for side in sides),
            report.ratio_text(found),
            target.shown(False),
            report.yes_or_no(found and target.is_met(found.median, False)),
        ]


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{report.number_text(seconds * 1_000)} ms"


def _iteration(its: report.Json) -> str:
    figures = [each["this store"] for each in its["rounds"]]
    growth, stall = (max(each[name] for each in figures) for name in ("growth_mib", "net_stall_ms"))
    return (
        f"While `aiter_nodes` runs, the process grows by at most {growth:.0f} MiB (target: "
        f"{GROWTH_MIB}), and the loop stands still for at most {stall:.0f} ms beyond the noise of "
        f"the machine (target: {report.STALL_MS:g})."
    )


# -- command line ----------------------------------------------------------------------------


async def run(part: str, given: argparse.Namespace, options: Options) -> report.Json:
    """Measure one part."""
    found_in = circumstances(PACKAGES)
    measured: list[report.Json] = []
    if part == "tenants":
        async for cost in tenants.costs(given.engine, given.uri, given.token, options):
            version = cost.pop("version")
            print(cost, flush=True)
            measured.append(cost)
    else:
        with running(given.engine, given.uri, given.token) as engine:
            version = engine.version
            measured = await compare_layouts(engine, options)
    return {
        **found_in,
        "engine": report.engine_title({"name": "external" if given.uri else given.engine}),
        "version": version,
        "options": dataclasses.asdict(options),
        "measured": measured,
    }


async def compare_layouts(engine: Engine, options: Options) -> list[report.Json]:
    """Fill collections, compare them, and drop them."""
    layouts = Layouts(engine, options)
    try:
        await layouts.fill()
        return await layouts.compare()
    finally:
        await layouts.drop()


def main() -> None:
    """Read the command line, measure, and write the results."""
    usual = Options()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.layout", description=__doc__.splitlines()[0]
    )
    add_arguments(parser)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (both)")
    add("--quick", action="store_true", help="seconds instead of minutes; figures mean nothing")
    add("--nodes", type=int, help=f"nodes in each collection ({usual.nodes:,})")
    add("--dim", type=int, help=f"dimension of their vectors ({usual.dim})")
    add("--rounds", type=int, help=f"rounds of each comparison ({usual.rounds})")
    add("--tenants", type=int, nargs="+", help="numbers of tenants (100 10000)")
    add("--patience", type=float, help=f"seconds to create tenants ({usual.patience:g})")
    add("--output", type=Path, default=Path("benchmarks/results"), help="directory (%(default)s)")
    given = parser.parse_args()
    options = usual.quick() if given.quick else usual
    chosen = {field.name: getattr(given, field.name, None) for field in dataclasses.fields(options)}
    options = dataclasses.replace(options, **{k: v for k, v in chosen.items() if v is not None})
    options = dataclasses.replace(options, updated=min(options.updated, options.nodes // 2))
    given.output.mkdir(parents=True, exist_ok=True)
    for part in given.parts:
        results = asyncio.run(run(part, given, options))
        (given.output / f"{part}.json").write_text(json.dumps(results, indent=1) + "\n")
        (given.output / f"{part}.md").write_text(markdown(part, results))
        print(markdown(part, results))


if __name__ == "__main__":
    main()
