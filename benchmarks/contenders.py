"""Who is compared: this store, the plugin it replaces, and the bare client as the floor.

All have collections of the same index, metric and consistency level, the same nodes, and the same
client options.
"""

# ruff: noqa: D102 - methods that override are documented where they are declared

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryResult
from pymilvus import AsyncMilvusClient, MilvusClient

from llama_index_milvus_async import MilvusVectorStore
from tests.fixtures.engines import Engine

from .data import Batch

UPSTREAM = "llama-index-vector-stores-milvus"

#: pymilvus' default, a ping every 10 s, makes Milvus Lite cut idle connections.
CLIENT_OPTIONS = {"dedicated": True, "grpc_options": {"grpc.keepalive_time_ms": 300_000}}

Index = Mapping[str, Any]
FLAT: Index = {"index_type": "FLAT"}
#: Smaller than Milvus recommends, so that building takes a minute or two.
HNSW: Index = {"index_type": "HNSW", "M": 16, "efConstruction": 64}
SEARCH_OF_HNSW: Index = {"params": {"ef": 64}}

Ids = list[str]


class Contender(ABC):
    """One way to do the work of a workload, on one collection.

    Args:
        engine: Where the collection is.
        collection: Its name; `open` creates it where it is missing.
        dim: Dimension of the vectors.
        top_k: Hits of each query.
        index: The index of a new collection.
        level: The consistency level of collection and reads.
    """

    key: ClassVar[str]
    label: ClassVar[str]

    def __init__(
        self,
        engine: Engine,
        collection: str,
        dim: int,
        top_k: int,
        index: Index = FLAT,
        level: str = "Strong",
        upsert: bool = True,
    ) -> None:
        self.engine = engine
        self.collection = collection
        self.dim = dim
        self.top_k = top_k
        self.index = index
        self.level = level
        self.upsert = upsert

    @property
    def search_config(self) -> dict[str, Any]:
        """Search parameters of the index."""
        return dict(SEARCH_OF_HNSW) if self.index["index_type"] == "HNSW" else {}

    def store_arguments(self) -> dict[str, Any]:
        """Arguments that this store and the plugin have in common."""
        return {
            "uri": self.engine.uri,
            "token": self.engine.token,
            "collection_name": self.collection,
            "dim": self.dim,
            "index_config": dict(self.index),
            "search_config": self.search_config,
            "consistency_level": self.level,
            "upsert_mode": self.upsert,
            **CLIENT_OPTIONS,
        }

    @abstractmethod
    async def open(self) -> None:
        """Connect, and create the collection where it is missing."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connections."""

    @abstractmethod
    async def add_one(self, batch: Batch, position: int) -> None:
        """Add one node of a batch."""

    @abstractmethod
    async def query_one(self, vector: list[float]) -> Ids:
        """Answer one query."""

    @abstractmethod
    def add_one_sync(self, batch: Batch, position: int) -> None:
        """Add one node of a batch, in code without an event loop."""

    @abstractmethod
    def query_one_sync(self, vector: list[float]) -> Ids:
        """Answer one query, in code without an event loop."""

    async def add_each(self, batch: Batch) -> None:
        """Add nodes as an application does that has them one by one: all calls at once."""
        await asyncio.gather(*(self.add_one(batch, i) for i in range(len(batch))))

    async def add_one_by_one(self, batch: Batch) -> None:
        """Add nodes one after the other, as sync code does; in a thread without an event loop."""

        def add() -> None:
            for position in range(len(batch)):
                self.add_one_sync(batch, position)

        await asyncio.to_thread(add)

    @abstractmethod
    async def add_all(self, batch: Batch) -> None:
        """Add many nodes at once."""

    async def query_each(self, vectors: Sequence[list[float]]) -> list[Ids]:
        """Answer queries as an application does that has them one by one: all calls at once."""
        return await asyncio.gather(*map(self.query_one, vectors))


class _Store(Contender):
    """A LlamaIndex vector store."""

    store: Any

    async def add_one(self, batch: Batch, position: int) -> None:
        await self.store.async_add([batch.nodes[position]])

    async def add_all(self, batch: Batch) -> None:
        await self.store.async_add(batch.nodes)

    async def query_one(self, vector: list[float]) -> Ids:
        return _ids_of_nodes(await self.store.aquery(self._query(vector)))

    def add_one_sync(self, batch: Batch, position: int) -> None:
        self.store.add([batch.nodes[position]])

    def query_one_sync(self, vector: list[float]) -> Ids:
        return _ids_of_nodes(self.store.query(self._query(vector)))

    def _query(self, vector: list[float]) -> VectorStoreQuery:
        return VectorStoreQuery(query_embedding=vector, similarity_top_k=self.top_k)


def _ids_of_nodes(result: VectorStoreQueryResult) -> Ids:
    """The ids, of the nodes: so that no store is measured that has not made them."""
    return [node.node_id for node in result.nodes or ()]


class ThisStore(_Store):
    """`llama_index_milvus_async.MilvusVectorStore`."""

    key = "this"
    label = "this store"
    coalesce: ClassVar[bool] = True

    async def open(self) -> None:
        arguments = self.store_arguments()
        if "coalesce" in inspect.signature(MilvusVectorStore).parameters:
            arguments["coalesce"] = self.coalesce
        self.store = MilvusVectorStore(**arguments)
        await self.store.aconnect()

    async def close(self) -> None:
        await self.store.aclose()


class Uncoalesced(ThisStore):
    """This store with an RPC of its own for each call."""

    key = "uncoalesced"
    label = "this store, coalesce=False"
    coalesce = False


class Upstream(_Store):
    """The plugin `llama-index-vector-stores-milvus`."""

    key = "upstream"
    label = "upstream plugin"

    @staticmethod
    def why_not() -> str:
        """Why it cannot take part, or an empty string."""
        try:
            importlib.metadata.version(UPSTREAM)
        except importlib.metadata.PackageNotFoundError:
            return f"{UPSTREAM} is not installed: it takes no part"
        return ""

    async def open(self) -> None:
        from llama_index.vector_stores.milvus import MilvusVectorStore as UpstreamStore

        # Its constructor connects and creates, and blocks for that.
        self.store = await asyncio.to_thread(UpstreamStore, **self.store_arguments())

    async def close(self) -> None:
        await self.store.aclient.close()
        self.store.client.close()


class Floor(Contender):
    """The bare client with as few requests as the work can be done in.

    Rows are built before the clock runs, and are inserted into a collection of this store's
    schema. What a query has found is read from the response, since pymilvus decodes it then.
    """

    key = "floor"
    label = "raw client, bulk (floor)"

    ROWS_PER_INSERT = 1_000
    INSERTS_IN_FLIGHT = 4
    FIELDS = ("text", "_node_content", "_node_type")
    #: Vectors per search, and searches in flight. `calibrate` takes the fastest.
    PLANS = ((1_000, 1), (128, 4), (100, 2), (64, 4))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plan = self.PLANS[0]
        self.client = AsyncMilvusClient(
            uri=self.engine.uri, token=self.engine.token, **CLIENT_OPTIONS
        )

    @cached_property
    def sync_client(self) -> MilvusClient:
        """The client of the sync calls."""
        return MilvusClient(uri=self.engine.uri, token=self.engine.token, **CLIENT_OPTIONS)

    async def open(self) -> None:
        creator = MilvusVectorStore(**self.store_arguments())
        await creator.aconnect()
        await creator.aclose()
        await self.client.has_collection(self.collection)  # connects

    async def close(self) -> None:
        await self.client.close()
        if "sync_client" in vars(self):
            self.sync_client.close()

    async def add_one(self, batch: Batch, position: int) -> None:
        await self._write([batch.rows[position]])

    def add_one_sync(self, batch: Batch, position: int) -> None:
        client = self.sync_client
        write = client.upsert if self.upsert else client.insert
        write(self.collection, [batch.rows[position]])

    async def _write(self, rows: list[dict[str, Any]]) -> None:
        """The same operation as that of the stores."""
        write = self.client.upsert if self.upsert else self.client.insert
        await write(self.collection, rows)

    async def add_each(self, batch: Batch) -> None:
        await self.add_all(batch)

    async def add_all(self, batch: Batch) -> None:
        size = self.ROWS_PER_INSERT
        parts = [batch.rows[start : start + size] for start in range(0, len(batch), size)]
        in_flight = asyncio.Semaphore(self.INSERTS_IN_FLIGHT)

        async def write(rows: list[dict[str, Any]]) -> None:
            async with in_flight:
                await self._write(rows)

        await asyncio.gather(*map(write, parts))

    async def query_one(self, vector: list[float]) -> Ids:
        return (await self._search([vector]))[0]

    def query_one_sync(self, vector: list[float]) -> Ids:
        found = self.sync_client.search(self.collection, **self._search_arguments([vector]))
        return self._read(found)[0]

    async def query_each(self, vectors: Sequence[list[float]]) -> list[Ids]:
        size, at_once = self.plan
        parts = [vectors[start : start + size] for start in range(0, len(vectors), size)]
        in_flight = asyncio.Semaphore(at_once)

        async def search(part: Sequence[list[float]]) -> list[Ids]:
            async with in_flight:
                return await self._search(part)

        found = await asyncio.gather(*map(search, parts))
        return [ids for part in found for ids in part]

    async def calibrate(self, vectors: Sequence[list[float]]) -> dict[str, float]:
        """Try every plan twice and keep the fastest; returns each one's best seconds."""
        tried = {(min(size, len(vectors)), at_once) for size, at_once in self.PLANS}
        best = dict.fromkeys(sorted(tried), float("inf"))
        for _ in range(2):
            for plan in best:
                self.plan = plan
                began = time.perf_counter()
                await self.query_each(vectors)
                best[plan] = min(best[plan], time.perf_counter() - began)
        self.plan = min(best, key=lambda plan: best[plan])
        return {f"{size} vectors, {n} in flight": seconds for (size, n), seconds in best.items()}

    async def _search(self, vectors: Sequence[list[float]]) -> list[Ids]:
        arguments = self._search_arguments(vectors)
        return self._read(await self.client.search(self.collection, **arguments))

    def _search_arguments(self, vectors: Sequence[list[float]]) -> dict[str, Any]:
        return {
            "data": list(vectors),
            "anns_field": "embedding",
            "limit": self.top_k,
            "output_fields": list(self.FIELDS),
            "search_params": self.search_config,
            "consistency_level": self.level,
        }

    def _read(self, found: Any) -> list[Ids]:
        """Read what a search has found, since pymilvus decodes it only then."""
        for hits in found:
            for hit in hits:
                entity = hit["entity"]
                for field in self.FIELDS:
                    entity[field]
        return [[hit["id"] for hit in hits] for hits in found]


def hnsw_store(engine: Engine, **kwargs: Any) -> MilvusVectorStore:
    """This store with an HNSW index, where it is compared with nothing but itself and raw calls."""
    return MilvusVectorStore(
        engine.uri,
        engine.token,
        index_config=dict(HNSW),
        search_config=dict(SEARCH_OF_HNSW),
        consistency_level="Session",
        **kwargs,
    )


def contenders() -> list[type[Contender]]:
    """Those that can take part here."""
    return [Floor, ThisStore, *_upstream()]


def contenders_under_load() -> list[type[Contender]]:
    """Those whose latency under load is measured: the stores, with and without coalescing."""
    return [ThisStore, Uncoalesced, *_upstream()]


def _upstream() -> list[type[Contender]]:
    return [] if Upstream.why_not() else [Upstream]
