"""The only file with two colours: connections to Milvus, asynchronous and blocking.

`Backend` has one typed coroutine method for each request the core makes. `AsyncBackend` awaits
them on an `AsyncMilvusClient` of the running loop; `SyncBackend`'s coroutines call a
`MilvusClient` and never suspend, so that `run_sync` can drive the same core without a loop.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import logging
import math
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Generic, TypeVar

from pymilvus import AnnSearchRequest, AsyncMilvusClient, CollectionSchema, MilvusClient
from pymilvus.client.types import LoadState
from pymilvus.milvus_client.index import IndexParams

from . import _insert_message, _search_response, _single_attempt
from ._coalescing import MAX_RESENDS, Coalescer, Kind, KindStats, pause_after
from ._failures import is_overload, is_refusal_of_data, translated
from ._requests import DeleteDocuments, GetByIds, HybridSearch, Insert, Search
from ._single_attempt import SINGLE_ATTEMPT
from ._slices import Slices
from .errors import LiteNotInstalledError, ServerError, StoreClosedError, UnreachableError
from .sparse import SparseEncoder

logger = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")
Read = TypeVar("Read", Search, HybridSearch, GetByIds)

#: Seconds to wait for a connection, pymilvus' own default.
CONNECT_TIMEOUT = 10.0

#: Under "Session" Milvus shows a process its own inserts, but its own deletions only from the
#: next time tick on (0.2 s by default). Reads that follow an own delete within this many seconds
#: ask for "Strong"; the margin is for servers whose ticks lag.
DELETE_SETTLES_AFTER = 3.0

#: Most bytes of one insert, estimated. Far below the 64 MiB that a server takes: pymilvus packs a
#: request in one go, and this much takes it about 10 ms, for which the event loop stands still.
MAX_INSERT_BYTES = 2**19
#: Most vectors of one search. More gain nothing on a server of two cores, and an exhaustive search
#: over 100,000 rows takes 10 ms for each.
MAX_SEARCH_VECTORS = 250
#: Most hits of one search that a caller has put together: where the size of hits is not known, no
#: response should be near what a server sends.
MAX_SEARCH_HITS = 2_000
#: Most vectors of one search of Milvus Lite, which takes the same time over unflushed rows for one
#: vector as for many, and is slower where searches overlap than one after the other.
MAX_LITE_SEARCH_VECTORS = 1_000
#: Most bytes of a search's response, as far as earlier responses let them be foreseen: reading
#: them holds the event loop, and a server sends 512 MiB at most.
MAX_RESPONSE_BYTES = 16 * 2**20
#: Bytes of a hit that are assumed before the first response.
FIRST_HIT_BYTES = 8 * 2**10
#: Most texts of one call of a sparse encoder, so that queries need not wait long behind documents.
MAX_ENCODED = 100
#: Most ids of one expression, whose cost grows faster than their number.
MAX_IDS = 1_000
#: Most bytes of rows that wait on one event loop; calls beyond it wait before they queue.
MAX_QUEUED_BYTES = 64 * 2**20

#: Rows of Milvus Lite that may be unflushed: each adds 75 µs to every search.
LITE_UNFLUSHED_ROWS = 1_000

# Milvus' code for a collection that is not in memory: it was released, or its server restarted.
_NOT_LOADED = 101

# Otherwise gRPC lets all channels of a process to one address share a connection: where the
# server ends that of an idle client, the first call of a new one fails with it.
_GRPC_OPTIONS = {
    "grpc.use_local_subchannel_pool": 1,
    # A server that comes back is found within 2 seconds, not 2 minutes; one attempt to connect
    # takes 5 seconds at most, not 20.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2_000,
    "grpc.min_reconnect_backoff_ms": 5_000,
}

# Of coalesced searches: the coalescer makes further attempts, and hits are read here.
_READ = {_search_response.HITS_ON_DEMAND: True, SINGLE_ATTEMPT: True}

# Idle connections to Lite are cut ("too_many_pings") with pymilvus' pings every 10 s.
_LITE_GRPC_OPTIONS = {"grpc.keepalive_time_ms": 300_000}


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, without an event loop.

    Raises:
        RuntimeError: The coroutine suspended; it was not written for `SyncBackend`.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} suspended under the blocking backend")


@dataclass(frozen=True)
class Address:
    """Where Milvus is and how to log in; secrets are kept out of `repr`."""

    uri: str
    token: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_lite(self) -> bool:
        """Whether pymilvus starts Milvus Lite in this process for the URI."""
        return self.uri.endswith(".db")

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts that must not be shown: token, password, and the header made of them."""
        _, _, token_password = self.token.partition(":")
        login = self.password and f"{self.options.get('user', '')}:{self.password}"
        plain = (self.token, login)
        encoded = [base64.b64encode(text.encode()).decode() for text in plain]
        return tuple(filter(None, (self.token, token_password, self.password, *encoded)))

    def client_arguments(self, timeout: float | None) -> dict[str, Any]:
        """Arguments of both pymilvus clients.

        `dedicated`, because shared channels ignore the TLS and gRPC options of all but their
        first user and are never closed.
        """
        arguments = dict(self.options)
        ours = {**_GRPC_OPTIONS, **(_LITE_GRPC_OPTIONS if self.is_lite else {})}
        arguments["grpc_options"] = {**ours, **(arguments.get("grpc_options") or {})}
        connect = CONNECT_TIMEOUT if timeout is None else min(timeout, CONNECT_TIMEOUT)
        return {
            **arguments,
            "uri": self.uri,
            "token": self.token,
            "password": self.password,
            "timeout": connect,
            "dedicated": True,
        }


class Once(Generic[T]):
    """Makes a value once, for callers of both colours on any number of threads and loops.

    The first caller makes it; others wait without holding their loop. An asynchronous caller
    has it made in a thread, so that neither its cancellation nor the end of its loop undoes the
    work, and a blocking caller on the same loop's thread cannot deadlock. After a failure the
    next caller tries again.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._running: Future[T] | None = None
        self._done: Future[T] | None = None

    @property
    def value(self) -> T | None:
        """The value, or `None` before it is made."""
        return self._done.result() if self._done else None

    def get(self) -> T:
        """Return the value, making it in this thread or waiting for the thread that does."""
        future, mine = self._claim()
        if mine:
            self._run(future)
        return future.result()

    async def aget(self) -> T:
        """Return the value, making it in a new thread or waiting for the thread that does."""
        if self._done:
            return self._done.result()
        future, mine = self._claim()
        if mine:
            name = "llama-index-milvus-async-ready"
            threading.Thread(target=self._run, args=(future,), name=name, daemon=True).start()
        return await asyncio.wrap_future(future)

    def _claim(self) -> tuple[Future[T], bool]:
        with self._lock:
            if self._done:
                return self._done, False
            if self._running:
                return self._running, False
            self._running = Future()
            # A running future cannot be cancelled: a cancelled waiter only stops waiting.
            self._running.set_running_or_notify_cancel()
            return self._running, True

    def _run(self, future: Future[T]) -> None:
        try:
            value = self._make()
        except BaseException as error:
            with self._lock:
                self._running = None
            future.set_exception(error)
        else:
            future.set_result(value)
            with self._lock:
                self._running, self._done = None, future

    def after_fork_in_child(self) -> None:
        """Forget a thread of the parent that was making the value."""
        self._lock = threading.Lock()
        self._running = None


class Backend(ABC):
    """The requests that the core makes, each as a coroutine method.

    `timeout` is seconds for the RPC, `None` for the store's own.

    Raises:
        ServerError: From every request, or one of its subclasses; never pymilvus' or gRPC's own.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    @abstractmethod
    async def _call(self, method: str, *args: Any, timeout: float | None, **kwargs: Any) -> Any:
        """Call a method of the pymilvus client."""

    @abstractmethod
    async def once(self, once: Once[T]) -> T:
        """Return what `once` makes."""

    @abstractmethod
    async def send_all(
        self, items: Sequence[Item], send: Callable[[Item], Awaitable[object]]
    ) -> list[Exception | bool]:
        """Send every item, until one fails.

        Returns:
            For each item `True` when it was sent, the exception when it failed, `False` when it
            was not sent because another had failed.
        """

    @abstractmethod
    async def convert(self, items: Sequence[Item], convert: Callable[[Item], T]) -> list[T]:
        """Convert items one by one, giving the event loop back between slices of time."""

    async def server_version(self) -> str:
        """The version that the server tells."""
        return str(await self._call("get_server_version", timeout=None))

    async def describe_collection(self, name: str) -> Mapping[str, Any] | None:
        """The description of a collection or of an alias' collection; `None` without one."""
        if not await self._call("has_collection", name, timeout=None):
            return None
        description: Mapping[str, Any] = await self._call("describe_collection", name, timeout=None)
        return description

    async def has_partition(self, name: str, partition_name: str, timeout: float | None) -> bool:
        """Whether a collection has a partition."""
        return bool(await self._call("has_partition", name, partition_name, timeout=timeout))

    async def create_collection(
        self, name: str, schema: CollectionSchema, consistency_level: str
    ) -> None:
        """Create a collection without an index."""
        await self._call(
            "create_collection",
            name,
            schema=schema,
            consistency_level=consistency_level,
            timeout=None,
        )

    async def drop_collection(self, name: str) -> None:
        """Drop a collection."""
        await self._call("drop_collection", name, timeout=None)

    async def alter_properties(self, name: str, properties: Mapping[str, Any]) -> None:
        """Set properties of a collection."""
        await self._call(
            "alter_collection_properties", name, properties=dict(properties), timeout=None
        )

    async def describe_index(self, name: str, field_name: str) -> Mapping[str, Any] | None:
        """The index of a column, or `None`."""
        names = await self._call("list_indexes", name, field_name=field_name, timeout=None)
        if not names:
            return None
        index: Mapping[str, Any] = await self._call(
            "describe_index", name, index_name=names[0], timeout=None
        )
        return index

    async def create_index(self, name: str, index_params: IndexParams) -> None:
        """Create an index."""
        await self._call("create_index", name, index_params, timeout=None)

    async def is_loaded(self, name: str) -> bool:
        """Whether a collection can be searched."""
        state = await self._call("get_load_state", name, timeout=None)
        return bool(state["state"] == LoadState.Loaded)

    async def load_collection(self, name: str) -> None:
        """Load a collection and wait until it can be searched."""
        await self._call("load_collection", name, timeout=None)

    async def release_collection(self, name: str) -> None:
        """Release a collection from memory."""
        await self._call("release_collection", name, timeout=None)

    async def flush(self, name: str, timeout: float | None = None) -> None:
        """Seal what was written so far."""
        await self._call("flush", name, timeout=timeout)

    def note_rows_of_lite(self, name: str, count: int) -> None:
        """Tell that rows were written to Milvus Lite, which searches unflushed ones slowly."""
        self._connections.note_rows_of_lite(name, count)

    async def insert(
        self, request: Insert, rows: Sequence[Mapping[str, Any]], size: int, timeout: float | None
    ) -> None:
        """Insert or upsert rows of `size` bytes, as estimated."""
        await self._insert(request, rows, timeout)

    async def _insert(
        self,
        request: Insert,
        rows: Sequence[Mapping[str, Any]],
        timeout: float | None,
        **options: Any,
    ) -> None:
        await self._call(
            "upsert" if request.upsert else "insert",
            request.collection_name,
            list(rows),
            partition_name=request.partition_name,
            timeout=timeout,
            **options,
        )

    async def delete(
        self, name: str, expression: str, *, partition_name: str | None, timeout: float | None
    ) -> None:
        """Delete the rows that an expression matches."""
        try:
            await self._loaded(
                name, lambda: self._delete(name, expression, partition_name, timeout)
            )
        finally:
            # Also after a failure: the server may have deleted all the same.
            self._connections.note_delete(name)

    async def _delete(
        self, name: str, expression: str, partition_name: str | None, timeout: float | None
    ) -> object:
        return await self._call(
            "delete", name, filter=expression, partition_name=partition_name, timeout=timeout
        )

    async def query(
        self,
        name: str,
        expression: str,
        *,
        output_fields: Sequence[str],
        partition_names: Sequence[str] | None,
        consistency_level: str,
        timeout: float | None,
        **options: Any,
    ) -> list[Mapping[str, Any]]:
        """Read the rows that an expression matches."""
        read = partial(
            self._call,
            "query",
            name,
            filter=expression,
            output_fields=list(output_fields),
            partition_names=_list(partition_names),
            consistency_level=self._connections.read_level(name, consistency_level),
            timeout=timeout,
            **options,
        )
        return list(await self._loaded(name, read))

    async def search(
        self, request: Search, vectors: Sequence[Sequence[float]], timeout: float | None
    ) -> list[Any]:
        """Search a vector column; one list of hits for each vector, best first."""
        return await self._search(self._leveled(request), vectors, timeout)

    async def _search(
        self,
        request: Search,
        vectors: Sequence[Sequence[float]],
        timeout: float | None,
        **options: Any,
    ) -> list[Any]:
        read = partial(
            self._call,
            "search",
            request.collection_name,
            data=list(vectors),
            anns_field=request.field_name,
            limit=request.limit,
            filter=request.expression,
            search_params=dict(request.params),
            output_fields=list(request.output_fields),
            partition_names=_list(request.partition_names),
            consistency_level=request.consistency_level,
            timeout=timeout,
            **dict(request.options),
            **options,
        )
        found: list[Any] = await self._loaded(request.collection_name, read)
        return found

    async def hybrid_search(
        self, request: HybridSearch, data: Sequence[tuple[Any, ...]], timeout: float | None
    ) -> list[Any]:
        """Search several columns; one list of fused hits for each tuple of data, best first."""
        return await self._hybrid_search(self._leveled(request), data, timeout)

    async def _hybrid_search(
        self,
        request: HybridSearch,
        data: Sequence[tuple[Any, ...]],
        timeout: float | None,
        **options: Any,
    ) -> list[Any]:
        legs = [
            AnnSearchRequest(
                data=list(column),
                anns_field=leg.field_name,
                param=dict(leg.params),
                limit=leg.limit,
                expr=leg.expression or None,
            )
            for leg, column in zip(request.legs, zip(*data, strict=True), strict=True)
        ]
        read = partial(
            self._call,
            "hybrid_search",
            request.collection_name,
            legs,
            request.ranker,
            limit=request.limit,
            output_fields=list(request.output_fields),
            partition_names=_list(request.partition_names),
            consistency_level=request.consistency_level,
            timeout=timeout,
            **dict(request.options),
            **options,
        )
        found: list[Any] = await self._loaded(request.collection_name, read)
        return found

    @abstractmethod
    async def encode(
        self, encoder: SparseEncoder, texts: Sequence[str], *, queries: bool
    ) -> Sequence[Any]:
        """Encode texts as sparse vectors.

        Raises:
            EncoderError: The encoder returned what is no list of vectors.
            Exception: What the encoder raised.
        """

    async def _loaded(self, name: str, request: Callable[[], Awaitable[T]]) -> T:
        """Make a request that needs the collection in memory; load it where it is no longer."""
        try:
            return await request()
        except ServerError as error:
            if error.code != _NOT_LOADED:
                raise
        logger.info("loading collection %r again", name)
        await self.load_collection(name)
        return await request()

    async def get_by_ids(
        self, request: GetByIds, ids: Sequence[str], timeout: float | None
    ) -> list[Mapping[str, Any]]:
        """Read rows by primary key, in any order."""
        return await self._get_by_ids(self._leveled(request), ids, timeout)

    async def _get_by_ids(
        self, request: GetByIds, ids: Sequence[str], timeout: float | None, **options: Any
    ) -> list[Mapping[str, Any]]:
        read = partial(
            self._call,
            "query",
            request.collection_name,
            filter=request.select(ids),
            output_fields=list(request.output_fields),
            partition_names=_list(request.partition_names),
            consistency_level=request.consistency_level,
            timeout=timeout,
            **options,
        )
        return list(await self._loaded(request.collection_name, read))

    async def delete_documents(
        self, request: DeleteDocuments, doc_ids: Sequence[str], timeout: float | None
    ) -> None:
        """Delete the rows of documents."""
        await self._delete_documents(request, doc_ids, timeout)

    async def _delete_documents(
        self, request: DeleteDocuments, doc_ids: Sequence[str], timeout: float | None
    ) -> None:
        await self.delete(
            request.collection_name,
            request.select(doc_ids),
            partition_name=request.partition_name,
            timeout=timeout,
        )

    def _leveled(self, request: Read) -> Read:
        """Ask for the consistency level that means what the request says."""
        name, level = request.collection_name, request.consistency_level
        needed = self._connections.read_level(name, level)
        return request if needed == level else replace(request, consistency_level=needed)


class SyncBackend(Backend):
    """Requests on a `MilvusClient`; its coroutines never suspend."""

    async def _call(self, method: str, *args: Any, timeout: float | None, **kwargs: Any) -> Any:
        client = self._connections.sync_client()
        deadline = self._connections.timeout if timeout is None else timeout
        with translated(method, self._connections.address):
            return getattr(client, method)(*args, timeout=deadline, **kwargs)

    async def once(self, once: Once[T]) -> T:
        return once.get()

    async def insert(
        self, request: Insert, rows: Sequence[Mapping[str, Any]], size: int, timeout: float | None
    ) -> None:
        deadline = self._connections.timeout if timeout is None else timeout
        _until(
            deadline,
            lambda left: run_sync(self._insert(request, rows, left, **{SINGLE_ATTEMPT: True})),
            partial(_may_resend, request),
        )

    async def send_all(
        self, items: Sequence[Item], send: Callable[[Item], Awaitable[object]]
    ) -> list[Exception | bool]:
        outcomes: list[Exception | bool] = [False] * len(items)
        for position, item in enumerate(items):
            try:
                await send(item)
            except Exception as error:
                outcomes[position] = error
                break
            outcomes[position] = True
        return outcomes

    async def convert(self, items: Sequence[Item], convert: Callable[[Item], T]) -> list[T]:
        return [convert(item) for item in items]

    async def encode(
        self, encoder: SparseEncoder, texts: Sequence[str], *, queries: bool
    ) -> Sequence[Any]:
        return encoder.encode(texts, queries=queries)


class LoopClient(AsyncMilvusClient):  # type: ignore[misc] # pymilvus has no types
    """The `AsyncMilvusClient` of one event loop, safe to be called by many tasks at once.

    Concurrent first calls on pymilvus' own client open a channel each and leak all but one.
    """

    def __init__(self, connections: Connections) -> None:
        arguments = connections.address.client_arguments(connections.timeout)
        # pymilvus' asynchronous client takes no alias.
        arguments.pop("alias", None)
        super().__init__(**arguments)
        self._connections = connections
        self._connecting = asyncio.Lock()
        self._installed: Any = None  # the handler that has our packing and reading

    async def _connect(self) -> None:
        # pymilvus calls this in `__aenter__` and before a first request.
        await self._connections.make_ready()
        async with self._connecting:
            await super()._connect()
            if self._handler is not self._installed:
                _insert_message.install(self._handler)
                _search_response.install(self._handler)
                _single_attempt.install(self._handler)
                self._installed = self._handler


class AsyncBackend(Backend):
    """Requests on an `AsyncMilvusClient` of the loop that it was made on."""

    def __init__(self, connections: Connections) -> None:
        super().__init__(connections)
        self._client: LoopClient | None = None
        self._connected = False
        self._in_flight = asyncio.Semaphore(connections.max_in_flight)
        self._calls = 0
        self._slices = Slices()
        self.coalescer = Coalescer(
            max_in_flight=connections.max_in_flight,
            max_queued_bytes=MAX_QUEUED_BYTES,
            coalesce=connections.coalesce,
        )
        # Name, call, most items, most weight, most bytes.
        kind = partial(Kind, is_separable=is_refusal_of_data, may_resend=_may_resend)
        most_rows = connections.rows_per_insert
        self._inserts = kind("insert", self._send_rows, most_rows, most_rows, MAX_INSERT_BYTES)
        search = partial(kind, "search", self._send_vectors)
        most_vectors = (MAX_SEARCH_VECTORS, MAX_SEARCH_VECTORS, MAX_RESPONSE_BYTES)
        self._searches = search(*most_vectors)
        most_vectors = (MAX_LITE_SEARCH_VECTORS, MAX_LITE_SEARCH_VECTORS, MAX_RESPONSE_BYTES)
        self._lite_searches = search(*most_vectors, max_in_flight=1)
        self._hit_bytes: float = FIRST_HIT_BYTES
        hybrid = partial(kind, "hybrid", self._send_hybrid)
        self._hybrids = hybrid(MAX_SEARCH_VECTORS, MAX_SEARCH_VECTORS, MAX_RESPONSE_BYTES)
        self._lite_hybrids = hybrid(*most_vectors, max_in_flight=1)
        # One at a time: models are seldom made to be called by several threads.
        self._encodings: Kind[Any, Any, Any] = Kind(
            "encode",
            self._send_texts,
            MAX_ENCODED,
            MAX_ENCODED,
            MAX_QUEUED_BYTES,
            # One text may be at fault; where a service is away, all of them would be asked again.
            is_separable=lambda error: not isinstance(error, (OSError, asyncio.TimeoutError)),
            may_resend=lambda key, error: False,
            max_in_flight=1,
        )
        self._gets = kind("get", self._send_ids, MAX_IDS, MAX_IDS, MAX_QUEUED_BYTES)
        self._deletes = kind("delete", self._send_doc_ids, MAX_IDS, MAX_IDS, MAX_QUEUED_BYTES)

    def client(self) -> LoopClient:
        """The client of this loop, which connects at its first call."""
        if self._client is None:
            self._client = LoopClient(self._connections)
        return self._client

    async def connect(self) -> LoopClient:
        """The connected client of this loop."""
        if self._client is not None and self._connected:
            return self._client
        address = self._connections.address
        with translated("connect", address):
            if self._client is None and address.is_lite:
                # The constructor starts Lite, up to half a second; the first of several wins.
                client = await asyncio.to_thread(LoopClient, self._connections)
                self._client = self._client or client
            client = self.client()
            await client.__aenter__()
        self._connected = True
        return client

    async def close(self) -> None:
        """Close the client; must run on its loop, or on none where that is closed."""
        client, self._client, self._connected = self._client, None, False
        if client is not None:
            await client.close()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return not self._calls and self.coalescer.is_idle

    async def _call(self, method: str, *args: Any, timeout: float | None, **kwargs: Any) -> Any:
        deadline = self._connections.timeout if timeout is None else timeout
        self._calls += 1
        try:
            client = await self.connect()
            async with self._in_flight:
                with translated(method, self._connections.address):
                    return await getattr(client, method)(*args, timeout=deadline, **kwargs)
        finally:
            self._calls -= 1

    async def once(self, once: Once[T]) -> T:
        return await once.aget()

    async def _submit(
        self,
        kind: Kind[Any, Sequence[Any], Any],
        request: Any,
        items: Sequence[Any],
        *,
        weight: int,
        size: int = 0,
        timeout: float | None,
    ) -> Any:
        """Send items in one RPC with those of equal requests that wait at the same time."""
        deadline = self._connections.timeout if timeout is None else timeout
        with translated(kind.name, self._connections.address):
            return await self.coalescer.submit(
                kind, request, items, weight=weight, size=size, timeout=deadline
            )

    async def insert(
        self, request: Insert, rows: Sequence[Mapping[str, Any]], size: int, timeout: float | None
    ) -> None:
        await self._submit(
            self._inserts, request, rows, weight=len(rows), size=size, timeout=timeout
        )

    async def _send_rows(
        self, request: Insert, items: Sequence[Sequence[Any]], timeout: float | None
    ) -> Sequence[None]:
        rows = [row for item in items for row in item]
        if request.upsert:
            # Of equal ids in one upsert a server keeps the first, or refuses all of them.
            rows = list({row[request.primary_key]: row for row in rows}.values())
        options = {_insert_message.CHECKED_ROWS: True, SINGLE_ATTEMPT: True}
        await self._insert(request, rows, timeout, **options)
        return [None] * len(items)

    async def search(
        self, request: Search, vectors: Sequence[Sequence[float]], timeout: float | None
    ) -> list[Any]:
        hits: list[Any] = await self._submit(
            self._lite_searches if request.one_at_a_time else self._searches,
            self._leveled(request),
            vectors,
            weight=len(vectors),
            size=int(len(vectors) * request.limit * self._hit_bytes),
            timeout=timeout,
        )
        return hits

    async def _send_vectors(
        self, request: Search, items: Sequence[Sequence[Any]], timeout: float | None
    ) -> Sequence[list[Any]]:
        vectors = [vector for item in items for vector in item]
        return self._shared_out(items, await self._search(request, vectors, timeout, **_READ))

    async def hybrid_search(
        self, request: HybridSearch, data: Sequence[tuple[Any, ...]], timeout: float | None
    ) -> list[Any]:
        hits: list[Any] = await self._submit(
            self._lite_hybrids if request.one_at_a_time else self._hybrids,
            self._leveled(request),
            data,
            weight=len(data),
            size=int(len(data) * request.limit * self._hit_bytes),
            timeout=timeout,
        )
        return hits

    async def _send_hybrid(
        self, request: HybridSearch, items: Sequence[Sequence[Any]], timeout: float | None
    ) -> Sequence[list[Any]]:
        data = [one for item in items for one in item]
        return self._shared_out(items, await self._hybrid_search(request, data, timeout, **_READ))

    def _shared_out(self, items: Sequence[Sequence[Any]], found: list[Any]) -> Sequence[list[Any]]:
        """Give each item the hits of its searches."""
        self._note_response(found)
        hits = iter(found)
        return [[next(hits) for _ in item] for item in items]

    def _note_response(self, found: list[Any]) -> None:
        """Remember how many bytes hits have, quickly where they become more, slowly otherwise."""
        count = sum(map(len, found))
        if count and isinstance(found, _search_response.Response):
            self._hit_bytes = max(found.size / count, self._hit_bytes / 2)

    async def get_by_ids(
        self, request: GetByIds, ids: Sequence[str], timeout: float | None
    ) -> list[Mapping[str, Any]]:
        rows: list[Mapping[str, Any]] = await self._submit(
            self._gets, self._leveled(request), ids, weight=len(ids), timeout=timeout
        )
        return rows

    async def _send_ids(
        self, request: GetByIds, items: Sequence[Sequence[str]], timeout: float | None
    ) -> Sequence[list[Mapping[str, Any]]]:
        ids = dict.fromkeys(node_id for item in items for node_id in item)
        by_id: dict[str, list[Mapping[str, Any]]] = {node_id: [] for node_id in ids}
        options = {SINGLE_ATTEMPT: True}
        for row in await self._get_by_ids(request, list(ids), timeout, **options):
            by_id[str(row[request.primary_key])].append(row)
        return [[row for node_id in item for row in by_id[node_id]] for item in items]

    async def delete_documents(
        self, request: DeleteDocuments, doc_ids: Sequence[str], timeout: float | None
    ) -> None:
        await self._submit(self._deletes, request, doc_ids, weight=len(doc_ids), timeout=timeout)

    async def _send_doc_ids(
        self, request: DeleteDocuments, items: Sequence[Sequence[str]], timeout: float | None
    ) -> Sequence[None]:
        doc_ids = dict.fromkeys(doc_id for item in items for doc_id in item)
        await self._delete_documents(request, list(doc_ids), timeout)
        return [None] * len(items)

    async def _delete(
        self, name: str, expression: str, partition_name: str | None, timeout: float | None
    ) -> object:
        """Delete, and see the server's errors.

        `AsyncMilvusClient.delete` answers with a count of 0 both when nothing matched and when
        the server refused. Deleting again is harmless, and the blocking client does report
        errors. (The answer is never false, even where it is shown as `{}`; some are lists of ids.)
        """
        deleted = await super()._delete(name, expression, partition_name, timeout)
        if isinstance(deleted, Mapping) and not deleted.get("delete_count"):
            blocking = SyncBackend(self._connections)
            again = blocking._delete(name, expression, partition_name, timeout)
            deleted = await asyncio.to_thread(run_sync, again)
        return deleted

    async def send_all(
        self, items: Sequence[Item], send: Callable[[Item], Awaitable[object]]
    ) -> list[Exception | bool]:
        outcomes: list[Exception | bool] = [False] * len(items)
        remaining = iter(enumerate(items))
        failed = False

        async def worker() -> None:
            nonlocal failed
            for position, item in remaining:
                if failed:
                    return
                try:
                    await send(item)
                except Exception as error:
                    outcomes[position] = error
                    failed = True
                else:
                    outcomes[position] = True

        workers = min(len(items), self._connections.max_in_flight)
        if workers == 1:
            await worker()
        else:
            await asyncio.gather(*(worker() for _ in range(workers)))
        return outcomes

    async def convert(self, items: Sequence[Item], convert: Callable[[Item], T]) -> list[T]:
        return await self._slices.convert(items, convert)

    async def encode(
        self, encoder: SparseEncoder, texts: Sequence[str], *, queries: bool
    ) -> Sequence[Any]:
        chunks = [texts[i : i + MAX_ENCODED] for i in range(0, len(texts), MAX_ENCODED)]
        encoded = await asyncio.gather(
            *(
                self.coalescer.submit(
                    self._encodings, (encoder, queries), chunk, weight=len(chunk), timeout=None
                )
                for chunk in chunks
            )
        )
        return [vector for vectors in encoded for vector in vectors]

    async def _send_texts(
        self,
        encoder_and_kind: tuple[SparseEncoder, bool],
        items: Sequence[Sequence[str]],
        timeout: float | None,
    ) -> Sequence[list[Any]]:
        encoder, queries = encoder_and_kind
        texts = [text for item in items for text in item]
        vectors = iter(await encoder.aencode(texts, queries=queries))
        return [[next(vectors) for _ in item] for item in items]


class Connections:
    """The clients of one store: one for blocking calls, one for each event loop.

    Args:
        address: Where to connect to.
        timeout: Seconds for each RPC, `None` for pymilvus' own retrying.
        max_in_flight: RPCs under way at once on one event loop.
        rows_per_insert: Most rows of one insert.
        coalesce: Whether calls that wait at the same time share RPCs.
    """

    def __init__(
        self,
        address: Address,
        timeout: float | None,
        max_in_flight: int,
        rows_per_insert: int,
        coalesce: bool,
    ) -> None:
        self.address = address
        self.timeout = timeout
        self.max_in_flight = max_in_flight
        self.rows_per_insert = rows_per_insert
        self.coalesce = coalesce
        self._ended: dict[str, KindStats] = {}
        self._unflushed: dict[str, int] = {}
        self.closed = False
        self._onces: list[Once[Any]] = []
        self._forget()
        _live.add(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        self._sync_client: MilvusClient | None = None
        # By the loop itself: id() is reused. A weak key would never die, because the client's
        # channel refers to its loop; closed loops are pruned instead.
        self._loops: dict[asyncio.AbstractEventLoop, AsyncBackend] = {}

    def once(self, make: Callable[[], T]) -> Once[T]:
        """A value that is made once over these connections."""
        once = Once(make)
        self._onces.append(once)
        return once

    async def make_ready(self) -> None:
        """Make what has to be made once before clients are used."""
        for once in self._onces:
            await once.aget()

    def sync(self) -> SyncBackend:
        """The backend for blocking calls."""
        self.check_open()
        return SyncBackend(self)

    def of_running_loop(self) -> AsyncBackend:
        """The backend of the running event loop."""
        self.check_open()
        loop = asyncio.get_running_loop()
        backend = self._loops.get(loop)
        if backend is None:
            with self._lock:
                self._prune()
                backend = self._loops[loop] = AsyncBackend(self)
        return backend

    def sync_client(self) -> MilvusClient:
        """The connected blocking client; connects in the calling thread."""
        self.check_open()
        if self._sync_client is None:
            with self._connecting:
                self.check_open()  # it may have been closed while this thread waited
                if self._sync_client is None:
                    check_lite_installed(self.address)
                    with translated("connect", self.address):
                        arguments = self.address.client_arguments(self.timeout)
                        client = MilvusClient(**arguments)
                        _single_attempt.install(client._get_connection())
                        self._sync_client = client
        return self._sync_client

    def stats(self) -> dict[str, KindStats]:
        """The counts of every event loop so far, by kind of request."""
        total = {name: replace(counts) for name, counts in self._ended.items()}
        with self._lock:
            backends = list(self._loops.values())
        for backend in backends:
            _add_counts(total, backend.coalescer.stats())
        return total

    def note_rows_of_lite(self, collection_name: str, count: int) -> None:
        """Have Milvus Lite flush, in a thread, once enough rows were written."""
        with self._lock:
            rows = self._unflushed.get(collection_name, 0) + count
            self._unflushed[collection_name] = rows % LITE_UNFLUSHED_ROWS
        if rows >= LITE_UNFLUSHED_ROWS:
            name = "llama-index-milvus-async-flush"
            args = (collection_name,)
            threading.Thread(target=self._flush, args=args, name=name, daemon=True).start()

    def _flush(self, collection_name: str) -> None:
        # Only a matter of speed: a closed store, a dropped collection, are no reason to complain.
        with suppress(Exception):
            run_sync(SyncBackend(self).flush(collection_name))

    def note_delete(self, collection_name: str) -> None:
        """Remember that this process has just deleted from a collection."""
        _deleted_at[self._key(collection_name)] = time.monotonic()

    def read_level(self, collection_name: str, level: str) -> str:
        """The consistency level that a read has to ask for, to mean `level`."""
        if level != "Session":
            return level
        deleted_at = _deleted_at.get(self._key(collection_name))
        recent = deleted_at is not None and time.monotonic() - deleted_at < DELETE_SETTLES_AFTER
        return "Strong" if recent else level

    def _key(self, collection_name: str) -> tuple[str, str, str]:
        database = str(self.address.options.get("db_name", ""))
        return self.address.uri, database, collection_name

    def close(self) -> None:
        """Close every client. Those of loops in other threads are closed by their loops."""
        for loop, backend in self._take_loops():
            _close_from_outside(loop, backend)
        self._close_sync()

    async def aclose(self) -> None:
        """Close every client, the running loop's before returning."""
        running = asyncio.get_running_loop()
        for loop, backend in self._take_loops():
            if loop is running:
                await backend.close()
            else:
                _close_from_outside(loop, backend)
        # In a thread: it waits where another thread is just connecting.
        await asyncio.to_thread(self._close_sync)

    def _take_loops(self) -> list[tuple[asyncio.AbstractEventLoop, AsyncBackend]]:
        with self._lock:
            self.closed = True
            loops = list(self._loops.items())
            for _, backend in loops:
                _add_counts(self._ended, backend.coalescer.stats())
            self._loops.clear()
        return loops

    def _close_sync(self) -> None:
        with self._connecting:
            client, self._sync_client = self._sync_client, None
        if client is not None:
            client.close()

    def check_open(self) -> None:
        """Refuse to go on once closed.

        Raises:
            StoreClosedError: The store was closed.
        """
        if self.closed:
            raise StoreClosedError("the store is closed; build a new one to go on")

    def _prune(self) -> None:
        for loop in [loop for loop in self._loops if loop.is_closed()]:
            backend = self._loops.pop(loop)
            _add_counts(self._ended, backend.coalescer.stats())
            _close_from_outside(loop, backend)

    def before_fork(self) -> None:
        """Close idle asynchronous clients.

        A process that has an open channel of grpc.aio forks children that hang or crash in
        their first call; the next call here connects again.
        """
        with self._lock:
            for loop, backend in self._loops.items():
                if backend.is_idle:
                    _close_from_outside(loop, backend, wait=True)

    def after_fork_in_child(self) -> None:
        """Leave the parent's connections alone and start without any."""
        self._forget()
        for once in self._onces:
            once.after_fork_in_child()


def _may_resend(request: Any, error: Exception) -> bool:
    """Whether a request may be sent again after an error, if there is time."""
    if is_overload(error):
        return True
    if not isinstance(error, UnreachableError):
        return False
    return error.nothing_done or not isinstance(request, Insert) or request.repeatable


def _until(
    deadline: float | None,
    attempt: Callable[[float | None], None],
    may_resend: Callable[[Exception], bool],
) -> None:
    """Make attempts, with pauses, until one succeeds or fails for good. Blocks.

    Args:
        deadline: Seconds for all of them; without it their number is bounded.
        attempt: Makes one, in the seconds that are left.
        may_resend: Whether another may be made after an error.
    """
    ends = math.inf if deadline is None else time.monotonic() + deadline
    for attempts in itertools.count(1):
        try:
            attempt(None if deadline is None else max(0.001, ends - time.monotonic()))
            return
        except ServerError as error:
            pause = pause_after(attempts)
            last = attempts > MAX_RESENDS if deadline is None else time.monotonic() + pause >= ends
            if last or not may_resend(error):
                raise
        time.sleep(pause)


def _add_counts(total: dict[str, KindStats], more: Mapping[str, KindStats]) -> None:
    for name, counts in more.items():
        sums = total.setdefault(name, KindStats())
        for counter in fields(KindStats):
            value = getattr(sums, counter.name) + getattr(counts, counter.name)
            setattr(sums, counter.name, value)


def _list(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else list(names)


def check_lite_installed(address: Address) -> None:
    """Check that Milvus Lite is there where the URI needs it.

    Raises:
        LiteNotInstalledError: It is not.
    """
    if not address.is_lite:
        return
    try:
        import milvus_lite  # noqa: F401
    except ImportError as error:
        raise LiteNotInstalledError(
            f"the URI {address.uri!r} names a local file, which Milvus Lite serves, and it is not "
            'installed. Run `pip install "llama-index-milvus-async[lite]"`, or pass the URI of a '
            'server, for example "http://localhost:19530"'
        ) from error


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _close_from_outside(
    loop: asyncio.AbstractEventLoop, backend: AsyncBackend, wait: bool = False
) -> None:
    """Close a client from blocking code or from another loop than its own."""
    if not loop.is_running() or loop is _running_loop():
        # Closing suspends only while requests are under way, so that no loop is needed.
        with suppress(Exception):
            run_sync(backend.close())
        return
    with suppress(RuntimeError):
        closing = asyncio.run_coroutine_threadsafe(backend.close(), loop)
        if wait:
            with suppress(Exception):
                closing.result(timeout=1)


_live: weakref.WeakSet[Connections] = weakref.WeakSet()
_deleted_at: dict[tuple[str, str, str], float] = {}


def _before_fork() -> None:
    for connections in list(_live):
        connections.before_fork()


def _after_fork_in_child() -> None:
    for connections in list(_live):
        connections.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
