"""What tenants cost that are kept apart by filter, partition key, partition, collection, database.

A part of `benchmarks.layout`. Each way has a server of its own, so that its memory is that of the
tenants; a server that runs already keeps what it had, and is given back as it was.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from pymilvus import DataType, MilvusException

from llama_index_milvus_async import MilvusVectorStore, MilvusVectorStoreError
from tests.fixtures.engines import Engine, new_client

from . import data, report
from .contenders import hnsw_store
from .engines import build_index_of_store, running
from .measure import CallClock, settle
from .memory import resident_mib

if TYPE_CHECKING:
    from .layout import Options

#: Calls that are under way at once while tenants are created and filled.
AT_ONCE = 8


def one_tenant(tenant: str) -> MetadataFilters:
    """The filter for the nodes of a tenant."""
    return MetadataFilters(filters=[MetadataFilter(key="tenant", value=tenant)])


class Way(ABC):
    """A way to keep tenants apart.

    Args:
        engine: The engine.
        dim: Dimension of the vectors.
    """

    name: str
    #: Most tenants that Milvus allows, or fewer.
    most: int | None = None

    def __init__(self, engine: Engine, dim: int) -> None:
        self._engine = engine
        self._dim = dim
        self._prefix = f"tenants_{uuid.uuid4().hex[:8]}"
        self._stores: dict[str, MilvusVectorStore] = {}

    @abstractmethod
    async def start(self) -> None:
        """Create what all tenants share."""

    @abstractmethod
    async def create(self, tenant: str) -> None:
        """Create what is a tenant's own."""

    @abstractmethod
    async def add(self, tenant: str, nodes: list[TextNode]) -> None:
        """Write nodes of a tenant."""

    @abstractmethod
    async def query(self, tenant: str, embedding: list[float]) -> Sequence[str]:
        """The ids of the nearest nodes of a tenant."""

    async def build_index(self, rows: int) -> None:
        """Have everything written, indexed and loaded; each collection has so many rows."""

        async def build(store: MilvusVectorStore) -> None:
            await asyncio.to_thread(build_index_of_store, self._engine, store, rows)

        await at_once(build, self._stores.values())

    async def drop(self) -> None:
        """Drop everything."""
        for store in self._stores.values():
            await asyncio.to_thread(store.client.drop_collection, store.collection_name)

    async def close(self) -> None:
        """Close the stores."""
        for store in self._stores.values():
            await store.aclose()

    async def _open(self, name: str, **layout: Any) -> MilvusVectorStore:
        self._stores[name] = hnsw_store(
            self._engine,
            dim=self._dim,
            upsert_mode=False,
            **{"collection_name": f"{self._prefix}_{name}", **layout},
        )
        await self._stores[name].aconnect()
        return self._stores[name]


class Filter(Way):
    """Nothing but a filter, on a column with an index."""

    name = "filter"
    layout: dict[str, Any] = {  # noqa: RUF012
        "scalar_fields": {"tenant": {"type": DataType.VARCHAR, "max_length": 64, "index": True}}
    }

    async def start(self) -> None:
        """Create the collection."""
        self._store = await self._open("all", **self.layout)

    async def create(self, tenant: str) -> None:
        """A tenant has nothing of its own."""

    async def add(self, tenant: str, nodes: list[TextNode]) -> None:
        """Name the tenant in the metadata."""
        for node in nodes:
            node.metadata["tenant"] = tenant
        await self._store.async_add(nodes)

    async def query(self, tenant: str, embedding: list[float]) -> Sequence[str]:
        """Filter by the tenant."""
        return await ids(self._store, embedding, filters=one_tenant(tenant))


class PartitionKey(Filter):
    """A filter on the column that Milvus partitions by."""

    name = "partition key"
    layout = {"partition_key_field": "tenant", "num_partitions": 16}  # noqa: RUF012


class Partition(Way):
    """A partition for each tenant."""

    name = "partition"
    #: The limit is 4,096 in Milvus 2.3 and 1,024 in later versions, the default one included.
    most = 1_000

    async def start(self) -> None:
        """Create the collection."""
        self._store = await self._open("all")

    async def create(self, tenant: str) -> None:
        """Create a partition."""
        await self._store.aclient.create_partition(self._store.collection_name, tenant)

    async def add(self, tenant: str, nodes: list[TextNode]) -> None:
        """Write to the tenant's partition."""
        await self._store.async_add(nodes, milvus_partition_name=tenant)

    async def query(self, tenant: str, embedding: list[float]) -> Sequence[str]:
        """Read the tenant's partition."""
        return await ids(self._store, embedding, milvus_partition_names=[tenant])


class Collection(Way):
    """A collection for each tenant."""

    name = "collection"

    async def start(self) -> None:
        """Tenants share nothing."""

    async def create(self, tenant: str) -> None:
        """Create a collection, with a store of its own."""
        await self._open(tenant)

    async def add(self, tenant: str, nodes: list[TextNode]) -> None:
        """Write to the tenant's collection."""
        await self._stores[tenant].async_add(nodes)

    async def query(self, tenant: str, embedding: list[float]) -> Sequence[str]:
        """Read the tenant's collection."""
        return await ids(self._stores[tenant], embedding)


class Database(Collection):
    """A database for each tenant, with one collection."""

    name = "database"
    #: The limit is 64, the default one included.
    most = 60

    async def start(self) -> None:
        """Connect to the default database."""
        self._client = new_client(self._engine.uri, self._engine.token)

    async def create(self, tenant: str) -> None:
        """Create a database with one collection."""
        name = f"{self._prefix}_{tenant}"
        await asyncio.to_thread(self._client.create_database, name)
        await self._open(tenant, collection_name="nodes", db_name=name)

    async def drop(self) -> None:
        """Drop the databases too."""
        await super().drop()
        for tenant in self._stores:
            await asyncio.to_thread(self._client.drop_database, f"{self._prefix}_{tenant}")

    async def close(self) -> None:
        """Close the client too."""
        await super().close()
        self._client.close()


WAYS: tuple[type[Way], ...] = (Filter, PartitionKey, Partition, Collection, Database)


async def ids(
    store: MilvusVectorStore, embedding: list[float], filters: Any = None, **kwargs: Any
) -> Sequence[str]:
    """The ids of the nearest nodes."""
    query = VectorStoreQuery(query_embedding=embedding, similarity_top_k=10, filters=filters)
    return (await store.aquery(query, **kwargs)).ids or []


async def costs(engine: str, uri: str, token: str, options: Options) -> AsyncIterator[report.Json]:
    """What each way costs, with each number of tenants that Milvus allows it."""
    for way in WAYS:
        for asked in sorted({min(n, way.most or n) for n in options.tenants}):
            with running(engine, uri, token) as server:
                its = way(server, options.dim)
                found = {"way": way.name, "asked": asked, "version": server.version}
                try:
                    yield found | await cost(its, asked, server, options)
                except (MilvusException, MilvusVectorStoreError, TimeoutError) as error:
                    yield found | {"failure": type(error).__name__}
                finally:
                    if uri:  # else the server goes with all that it has
                        await its.drop()
                    await its.close()


async def cost(way: Way, asked: int, server: Engine, options: Options) -> report.Json:
    """What one way costs with so many tenants, or as many as can be created in time."""
    await settle(options.rest)
    pid = pid_of(server.uri)
    before = resident_mib(pid) if pid else 0.0
    began = time.perf_counter()
    await way.start()
    created: list[str] = []

    async def create(tenant: str) -> None:
        if time.perf_counter() - began < options.patience:
            await way.create(tenant)
            created.append(tenant)

    await at_once(create, [f"tenant_{number}" for number in range(asked)])
    create_seconds = time.perf_counter() - began

    each = max(1, options.nodes // len(created))
    began = time.perf_counter()

    async def fill(tenant: str) -> None:
        await way.add(tenant, data.make_nodes(each, options.dim, prefix=tenant))

    await at_once(fill, created)
    await way.build_index(each if isinstance(way, Collection) else each * len(created))
    fill_seconds = time.perf_counter() - began

    clock = CallClock()
    count = options.rounds * options.calls
    embeddings = data.make_queries(data.make_nodes(count, options.dim), count)
    await way.query(created[0], embeddings[0])
    for tenant, embedding in zip(itertools.cycle(created), embeddings, strict=False):
        with clock:
            found = await way.query(tenant, embedding)
        assert found and all(node_id.startswith(f"{tenant}-") for node_id in found)
    return {
        "tenants": len(created),
        "nodes": each,
        "create_seconds": create_seconds,
        "fill_seconds": fill_seconds,
        "memory_mib": resident_mib(pid) - before if pid else None,
        "query_seconds": clock.figures()["p50"],
    }


async def at_once(
    call: Callable[[Any], Awaitable[object]], items: Iterable[Any], calls: int = AT_ONCE
) -> None:
    """Make a call for each item, so many of them under way at once."""
    remaining = iter(items)

    async def work() -> None:
        for item in remaining:
            await call(item)

    await asyncio.gather(*(work() for _ in range(calls)))


def pid_of(uri: str) -> int | None:
    """The process that listens at a local address; `None` where the system does not tell."""
    port = f"{urlsplit(uri).port or 0:04X}"
    sockets = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", table).read_text().splitlines()[1:]
        except OSError:
            continue
        fields = map(str.split, lines)
        listening = (each for each in fields if each[3] == "0A" and each[1].endswith(f":{port}"))
        sockets |= {f"socket:[{each[9]}]" for each in listening}
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(descriptor) in sockets:
                return int(descriptor.parts[2])
        except OSError:
            continue  # closed meanwhile, or another user's
    return None


def markdown(found: Sequence[report.Json]) -> str:
    """The costs as a table."""
    header = [
        "kept apart by",
        "tenants",
        "nodes of each",
        "create",
        "fill, index",
        "memory",
        "query",
    ]
    notes = [
        f"Created and filled with {AT_ONCE} calls at once. Memory is what the process of Milvus "
        "has grown by when all nodes are there; a query is one tenant's, one at a time. Milvus "
        "allows 64 databases, and 1,024 partitions of a collection (4,096 in 2.3), so that there "
        f"are at most {Database.most} and {Partition.most:,} here.",
    ]
    if any(each["asked"] > each.get("tenants", each["asked"]) for each in found):
        notes.append("Where fewer tenants are shown than asked for, the time was up.")
    return "\n\n".join([report.table(header, map(_row, found)), *notes])


def _row(cost: report.Json) -> list[str]:
    way, asked = cost["way"], f"{cost['asked']:,}"
    if "failure" in cost:
        return [way, f"{asked}: {cost['failure']}", *[report.NONE] * 5]
    memory = cost["memory_mib"]
    return [
        way,
        asked if cost["tenants"] == cost["asked"] else f"{cost['tenants']:,} of {asked}",
        f"{cost['nodes']:,}",
        f"{report.number_text(cost['create_seconds'])} s",
        f"{report.number_text(cost['fill_seconds'])} s",
        report.NONE if memory is None else f"{memory:,.0f} MiB",
        f"{report.number_text(cost['query_seconds'] * 1_000)} ms",
    ]
