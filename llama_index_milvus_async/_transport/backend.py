"""The only file with two colours: connections to Milvus, asynchronous and blocking.

`Backend` has one typed coroutine method for each request the core makes. `AsyncBackend` awaits
them on an `AsyncMilvusClient` of the running loop; `SyncBackend`'s coroutines call a
`MilvusClient` and never suspend, so that `run_sync` can drive the same core without a loop.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pymilvus import AnnSearchRequest, AsyncMilvusClient, CollectionSchema, MilvusClient
from pymilvus.client.types import LoadState
from pymilvus.milvus_client.index import IndexParams

from .._concurrency.coalescing import Coalescer, Kind, NotUnderWayError
from .._concurrency.drivers import acall, call, gather_or_cancel
from .._concurrency.slices import Slices
from .._requests import DeleteDocuments, GetByIds, HybridSearch, Insert, Search
from .._translation.row_to_node import decoded
from .._wire import insert_message as _insert_message
from .._wire import search_response as _search_response
from .._wire import single_attempt as _single_attempt
from .._wire.address import connect_timeout
from .._wire.single_attempt import single_attempts
from .._wire.status import is_refusal_of_data, translated
from ..errors import FilterError, RequestTimeoutError, RowError, ServerError, UnreachableError
from .retries import after_attempts, block, may_repeat, persist, time_left

if TYPE_CHECKING:
    from .._concurrency.fair_lock import Turn, Turns
    from .._concurrency.once import Once
    from .connections import Connections

logger = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")
Read = TypeVar("Read", Search, HybridSearch, GetByIds)

# Says how many seconds are left, `None` without a time-out.
_Left = Callable[[], float | None]

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

# Milvus' code for a collection that is not in memory: it was released, or its server restarted.
_NOT_LOADED = 101
# Times that a request has it loaded: a server may restart again meanwhile.
_MOST_LOADS = 3

# Errors of an encoder that may be the fault of one text.
_ERRORS_OF_A_TEXT = (ValueError, TypeError, LookupError, ArithmeticError)

# Of coalesced requests: it is the coalescer that sends them again.
_ONE_ATTEMPT = {"repeatedly": False}
# Of coalesced searches: hits are read here.
_READ = {_search_response.HITS_ON_DEMAND: True, **_ONE_ATTEMPT}

#: Seconds in which nobody has left a line, after which the turns in it are taken for abandoned:
#: their loop has stopped for good.
_LONGEST_TURN = 30.0
#: Seconds after which Milvus Lite has done what it was asked for over a connection that was lost:
#: of the requests that we send, the largest take it a tenth of that.
_SETTLES_AFTER = 0.5


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


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


class Encoder(Protocol):
    """Encodes texts as sparse vectors."""

    def encode(self, texts: Sequence[str], *, queries: bool) -> list[Any]:
        """Encode texts. Blocks."""
        ...

    async def aencode(self, texts: Sequence[str], *, queries: bool) -> list[Any]:
        """Encode texts, without blocking the event loop."""
        ...


class Backend(ABC):
    """The requests that the core makes, each as a coroutine method.

    `timeout` is seconds for the RPC, `None` for the store's own.

    Raises:
        ServerError: From every request, or one of its subclasses; never pymilvus' or gRPC's own.
    """

    #: The loop that requests wait on, `None` for those that block their thread.
    _loop: asyncio.AbstractEventLoop | None = None

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    @abstractmethod
    async def _connect(self) -> object:
        """Connect where there is no connection yet."""

    @abstractmethod
    async def _attempt(self, method: str, args: Any, left: _Left, kwargs: Any) -> Any:
        """Call a method of the pymilvus client once."""

    @abstractmethod
    async def _sleep(self, seconds: float) -> None:
        """Wait."""

    @abstractmethod
    async def _wait_for(self, turn: Turn, turns: Turns, seconds: float) -> None:
        """Wait for a turn for some seconds."""

    async def _take(self, turn: Turn, turns: Turns, left: _Left) -> None:
        """Wait for a turn, and until what went before has settled.

        Raises:
            NotUnderWayError: The time was over before.
        """
        while not turn.done():
            moves, seconds = turns.moves, left()
            longest = _LONGEST_TURN if seconds is None else min(seconds, _LONGEST_TURN)
            await self._wait_for(turn, turns, longest)
            if turn.done():
                break
            if longest == seconds:
                raise NotUnderWayError("others had their turns")
            turns.skip(moves)
        if rest := turns.rest():
            await self._sleep(rest)

    async def _call(
        self,
        method: str,
        *args: Any,
        timeout: float | None,
        repeatedly: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Call a method of the pymilvus client.

        `timeout` is for all attempts. `repeatedly` has the method called again after a lost
        connection or a refusal for overload, which must do no harm.
        """
        timeout = self._connections.seconds(timeout)
        lines = self._connections.lines(method, *args)

        async def attempt(seconds: float | None) -> Any:
            left = time_left(seconds)
            stood: list[tuple[Turns, Turn]] = []
            rest = 0.0
            try:
                for turns, shared in lines:
                    turn = turns.ask(self._loop, shared=shared)
                    stood.append((turns, turn))
                    wait = partial(self._take, turn, turns, left)
                    if _insert_message.CHECKED_ROWS in kwargs:
                        # Packing takes as long as sending does.
                        kwargs[_insert_message.BEFORE_SENDING] = wait
                    else:
                        with translated(method, self._connections.address):
                            await wait()
                return await self._attempt(method, args, left, kwargs)
            except BaseException as error:
                if _may_go_on(error) and all(turn.done() for _, turn in stood):
                    rest = _SETTLES_AFTER
                raise
            finally:
                for turns, turn in stood:
                    # Nobody needs to wait for a read that goes on.
                    turns.leave(turn, rest=0.0 if turn.shared else rest)

        await self._connect()
        if not repeatedly:
            return await attempt(timeout)
        return await persist(attempt, timeout=timeout, sleep=self._sleep)

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
    async def convert(self, items: Iterable[Item], convert: Callable[[Item], T]) -> list[T]:
        """Convert items one by one, giving the event loop back between slices of time."""

    @abstractmethod
    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that a user has passed; it may block, or be a coroutine function."""

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

    async def load_collection(self, name: str, timeout: float | None = None) -> None:
        """Load a collection and wait until it can be searched."""
        await self._call("load_collection", name, timeout=timeout)

    async def release_collection(self, name: str) -> None:
        """Release a collection from memory."""
        await self._call("release_collection", name, timeout=None)

    async def flush(self, name: str, timeout: float | None = None) -> None:
        """Seal what was written so far."""
        await self._call("flush", name, timeout=timeout)

    def note_collection_of_lite(self, name: str) -> None:
        """Tell that Milvus Lite has the collection, which it does not serve to all at once."""
        self._connections.note_collection_of_lite(name)

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
        self,
        name: str,
        expression: str,
        *,
        partition_name: str | None,
        timeout: float | None,
        **options: Any,
    ) -> None:
        """Delete the rows that an expression matches."""
        delete = partial(
            self._delete,
            name,
            filter=expression,
            partition_name=partition_name,
            **options,
        )
        try:
            await self._loaded(name, delete, timeout)
        finally:
            # Also after a failure: the server may have deleted all the same.
            self._connections.note_delete(name)

    async def _delete(self, name: str, **options: Any) -> object:
        return await self._call("delete", name, **options)

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
            **options,
        )
        return decoded(await self._loaded(name, read, timeout))

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
            **dict(request.options),
            **options,
        )
        found: list[Any] = await self._loaded(request.collection_name, read, timeout)
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
            **dict(request.options),
            **options,
        )
        found: list[Any] = await self._loaded(request.collection_name, read, timeout)
        return found

    @abstractmethod
    async def encode(
        self, encoder: Encoder, texts: Sequence[str], *, queries: bool
    ) -> Sequence[Any]:
        """Encode texts as sparse vectors.

        Raises:
            EncoderError: The encoder returned what is no list of vectors.
            Exception: What the encoder raised.
        """

    async def _loaded(
        self, name: str, request: Callable[..., Awaitable[T]], timeout: float | None
    ) -> T:
        """Make a request that needs the collection in memory; load it where it is no longer.

        `timeout` is for all of it.
        """
        left = time_left(self._connections.seconds(timeout))
        for _ in range(_MOST_LOADS):
            try:
                return await request(timeout=left())
            except ServerError as error:
                if error.code != _NOT_LOADED:
                    raise
            logger.info("loading collection %r again", name)
            await self.load_collection(name, left())
        return await request(timeout=left())

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
            **options,
        )
        return decoded(await self._loaded(request.collection_name, read, timeout))

    async def delete_documents(
        self, request: DeleteDocuments, doc_ids: Sequence[str], timeout: float | None
    ) -> None:
        """Delete the rows of documents."""
        await self._delete_documents(request, doc_ids, timeout)

    async def _delete_documents(
        self,
        request: DeleteDocuments,
        doc_ids: Sequence[str],
        timeout: float | None,
        **options: Any,
    ) -> None:
        await self.delete(
            request.collection_name,
            request.select(doc_ids),
            partition_name=request.partition_name,
            timeout=timeout,
            **options,
        )

    def _leveled(self, request: Read) -> Read:
        """Ask for the consistency level that means what the request says."""
        name, level = request.collection_name, request.consistency_level
        needed = self._connections.read_level(name, level)
        return request if needed == level else replace(request, consistency_level=needed)


class SyncBackend(Backend):
    """Requests on a `MilvusClient`; its coroutines never suspend."""

    async def _connect(self) -> object:
        return self._connections.sync_client()

    async def _attempt(self, method: str, args: Any, left: _Left, kwargs: Any) -> Any:
        client = self._connections.sync_client()
        with translated(method, self._connections.address), single_attempts():
            return getattr(client, method)(*args, timeout=left(), **kwargs)

    async def _sleep(self, seconds: float) -> None:
        await block(seconds)

    async def _wait_for(self, turn: Turn, turns: Turns, seconds: float) -> None:
        loop = running_loop()
        if loop is not None and turns.has(loop):
            # A turn on the loop that this call holds could not end before the call does.
            turns.leave(turn)
            return
        with suppress(FutureTimeoutError):
            turn.result(seconds)

    async def once(self, once: Once[T]) -> T:
        return once.get()

    async def insert(
        self, request: Insert, rows: Sequence[Mapping[str, Any]], size: int, timeout: float | None
    ) -> None:
        await persist(
            lambda left: self._insert(request, rows, left, **_ONE_ATTEMPT),
            timeout=self._connections.seconds(timeout),
            repeatable=request.repeatable,
            sleep=self._sleep,
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

    async def convert(self, items: Iterable[Item], convert: Callable[[Item], T]) -> list[T]:
        return [convert(item) for item in items]

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return call(function, *arguments)

    async def encode(
        self, encoder: Encoder, texts: Sequence[str], *, queries: bool
    ) -> Sequence[Any]:
        return encoder.encode(texts, queries=queries)


class BlockingClient(MilvusClient):  # type: ignore[misc] # pymilvus has no types
    """The `MilvusClient` of blocking calls; connects when it is made."""

    #: Whether it was closed; users may close what `store.client` gives them.
    closed = False

    def __init__(self, connections: Connections, timeout: float | None) -> None:
        super().__init__(**connections.address.client_arguments(timeout))
        _single_attempt.install(self._get_connection())

    def close(self) -> None:
        self.closed = True
        super().close()


class LoopClient(AsyncMilvusClient):  # type: ignore[misc] # pymilvus has no types
    """The `AsyncMilvusClient` of one event loop, safe to be called by many tasks at once.

    Concurrent first calls on pymilvus' own client open a channel each and leak all but one.
    """

    #: Whether it was closed; users may close what `store.aclient` gives them.
    closed = False

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

    async def close(self) -> None:
        self.closed = True
        await super().close()


class AsyncBackend(Backend):
    """Requests on an `AsyncMilvusClient` of the loop that it was made on."""

    def __init__(self, connections: Connections) -> None:
        super().__init__(connections)
        self._loop = asyncio.get_running_loop()
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
        kind = partial(
            Kind, is_separable=_is_separable, may_resend=_may_resend, after=after_attempts
        )
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
            is_separable=lambda error: isinstance(error, _ERRORS_OF_A_TEXT),
            may_resend=lambda key, error: False,
            max_in_flight=1,
        )
        self._gets = kind("get", self._send_ids, MAX_IDS, MAX_IDS, MAX_QUEUED_BYTES)
        self._deletes = kind("delete", self._send_doc_ids, MAX_IDS, MAX_IDS, MAX_QUEUED_BYTES)

    def client(self) -> LoopClient:
        """The client of this loop, which connects at its first call."""
        if self._client is None or self._client.closed:
            self._connected = False
            with translated("connect", self._connections.address):
                self._client = LoopClient(self._connections)
        return self._client

    async def connect(self) -> LoopClient:
        """The connected client of this loop."""
        if self._client is not None and self._connected and not self._client.closed:
            return self._client
        connections = self._connections
        connections.check_open()

        async def attempt(left: float | None) -> LoopClient:
            with translated("connect", connections.address):
                if self._client is None and connections.address.is_lite:
                    # The constructor starts Lite, up to half a second; the first of several wins.
                    client = await asyncio.to_thread(LoopClient, connections)
                    self._client = self._client or client
                client = self.client()
                await client.__aenter__()
                if connections.closed or client is not self._client:
                    # It was closed while it had no channel yet that could be.
                    await client.close()
                    connections.check_open()
                    return await attempt(left)
                return client

        timeout = connect_timeout(connections.timeout)
        client = await persist(attempt, timeout=timeout, sleep=self._sleep)
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

    async def _connect(self) -> LoopClient:
        return await self.connect()

    async def _attempt(self, method: str, args: Any, left: _Left, kwargs: Any) -> Any:
        self._calls += 1
        try:
            client = await self.connect()
            async with AsyncExitStack() as stack:
                take_turn = kwargs.get(_insert_message.BEFORE_SENDING)

                async def take_slot() -> None:
                    # After the turn, as all requests do, or two would wait for each other.
                    if take_turn is not None:
                        await take_turn()
                    await stack.enter_async_context(self._slot(left))
                    if client.closed:
                        raise _lost(method, nothing_done=True)

                with translated(method, self._connections.address), single_attempts():
                    if take_turn is None:
                        await take_slot()
                    else:
                        kwargs[_insert_message.BEFORE_SENDING] = take_slot
                    return await self._request(client, method, args, left(), kwargs)
        finally:
            self._calls -= 1

    async def _request(
        self, client: LoopClient, method: str, args: Any, timeout: float | None, kwargs: Any
    ) -> Any:
        try:
            return await getattr(client, method)(*args, timeout=timeout, **kwargs)
        except asyncio.CancelledError:
            # gRPC cancels what is under way when its channel is closed, and not our task.
            if not client.closed or _is_cancelled():
                raise
            raise _lost(method, nothing_done=method in _single_attempt.READS) from None

    @asynccontextmanager
    async def _slot(self, left: _Left) -> AsyncIterator[None]:
        """One of the requests in flight.

        Raises:
            NotUnderWayError: The time was over before.
        """
        if self._in_flight.locked():
            acquiring = asyncio.ensure_future(self._in_flight.acquire())
            try:
                await asyncio.wait([acquiring], timeout=left())
            except asyncio.CancelledError:
                if not acquiring.cancel():
                    self._in_flight.release()
                raise
            if acquiring.cancel():
                raise NotUnderWayError("others were under way")
        else:
            await self._in_flight.acquire()
        try:
            yield
        finally:
            self._in_flight.release()

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _wait_for(self, turn: Turn, turns: Turns, seconds: float) -> None:
        await asyncio.wait([asyncio.wrap_future(turn)], timeout=seconds)

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
        deadline = self._connections.seconds(timeout)
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
        options = {_insert_message.CHECKED_ROWS: True, **_ONE_ATTEMPT}
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
        for row in await self._get_by_ids(request, list(ids), timeout, **_ONE_ATTEMPT):
            # Milvus has numbers that are asked for as "7" and as "007".
            by_id.setdefault(str(row[request.primary_key]), []).append(row)
        return [[row for node_id in item for row in by_id[node_id]] for item in items]

    async def delete_documents(
        self, request: DeleteDocuments, doc_ids: Sequence[str], timeout: float | None
    ) -> None:
        await self._submit(self._deletes, request, doc_ids, weight=len(doc_ids), timeout=timeout)

    async def _send_doc_ids(
        self, request: DeleteDocuments, items: Sequence[Sequence[str]], timeout: float | None
    ) -> Sequence[None]:
        doc_ids = dict.fromkeys(doc_id for item in items for doc_id in item)
        await self._delete_documents(request, list(doc_ids), timeout, **_ONE_ATTEMPT)
        return [None] * len(items)

    async def _delete(self, name: str, **options: Any) -> object:
        """Delete, and see the server's errors.

        `AsyncMilvusClient.delete` answers with a count of 0 both when nothing matched and when
        the server refused. Deleting again is harmless, and the blocking client does report
        errors. (The answer is never false, even where it is shown as `{}`; some are lists of ids.)
        """
        left = time_left(options["timeout"])
        deleted = await super()._delete(name, **options)
        if isinstance(deleted, Mapping) and not deleted.get("delete_count"):
            again = SyncBackend(self._connections)._delete(name, **{**options, "timeout": left()})
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

    async def convert(self, items: Iterable[Item], convert: Callable[[Item], T]) -> list[T]:
        return await self._slices.convert(items, convert)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await acall(function, *arguments)

    async def encode(
        self, encoder: Encoder, texts: Sequence[str], *, queries: bool
    ) -> Sequence[Any]:
        chunks = [texts[i : i + MAX_ENCODED] for i in range(0, len(texts), MAX_ENCODED)]
        encoded = await gather_or_cancel(
            self.coalescer.submit(
                self._encodings, (encoder, queries), chunk, weight=len(chunk), timeout=None
            )
            for chunk in chunks
        )
        return [vector for vectors in encoded for vector in vectors]

    async def _send_texts(
        self,
        encoder_and_kind: tuple[Encoder, bool],
        items: Sequence[Sequence[str]],
        timeout: float | None,
    ) -> Sequence[list[Any]]:
        encoder, queries = encoder_and_kind
        texts = [text for item in items for text in item]
        vectors = iter(await encoder.aencode(texts, queries=queries))
        return [[next(vectors) for _ in item] for item in items]


def _lost(method: str, *, nothing_done: bool) -> UnreachableError:
    """The error of a request whose client was closed."""
    error = UnreachableError(method, "the client was closed before the answer")
    error.nothing_done = nothing_done
    return error


def _is_cancelled() -> bool:
    """Whether the running task was asked to end; Python 3.10 does not tell."""
    return bool(getattr(asyncio.current_task(), "cancelling", int)())


def _may_go_on(error: BaseException) -> bool:
    """Whether the server may still be at what a request asked for when its caller was told."""
    if isinstance(error, (UnreachableError, RequestTimeoutError)):
        return not error.nothing_done
    return not isinstance(error, Exception)  # cancelled, interrupted


def _is_separable(error: Exception) -> bool:
    """Whether some callers of a coalesced request may be spared an error that others cause."""
    return is_refusal_of_data(error) or isinstance(error, (FilterError, RowError))


def _may_resend(request: Any, error: Exception) -> bool:
    """Whether a coalesced request may be sent again after an error."""
    return may_repeat(error, not isinstance(request, Insert) or request.repeatable)


def _list(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else list(names)
