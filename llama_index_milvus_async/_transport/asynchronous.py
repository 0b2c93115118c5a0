"""The asynchronous side: coroutines over an `AsyncMilvusClient` of one event loop.

Calls that wait at the same time share RPCs: each of the coalesced requests has a
`_concurrency.coalescing.RequestKind`, whose items are what one caller asks for: rows, vectors, ids.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

from .._concurrency.backoff import NotSentError
from .._concurrency.coalescing import Coalescer, RequestKind
from .._concurrency.drivers import acall, gather_or_cancel
from .._concurrency.fair_lock import FairLock, Ticket
from .._concurrency.once import Once
from .._concurrency.slices import Slices
from .._rpc import DeleteDocuments, GetByIds, Hits, HybridSearch, Insert, Row, Search
from .._wire.address import Address
from .._wire.responses import SearchResponse
from .._wire.status import READS, check, is_refusal_of_data, translate
from ..errors import FilterError, RowError, UnreachableError
from .backend import Backend, Begun, Encoder
from .limits import (
    FIRST_HIT_BYTES,
    MAX_ENCODED,
    MAX_IDS,
    MAX_INSERT_BYTES,
    MAX_LITE_SEARCH_VECTORS,
    MAX_QUEUED_BYTES,
    MAX_RESPONSE_BYTES,
    MAX_SEARCH_VECTORS,
)
from .retries import combined_error, is_retryable, time_left
from .rpcs import (
    loaded,
    send_delete_documents,
    send_get,
    send_hybrid_search,
    send_insert,
    send_search,
)
from .session import Session
from .transport import Connected, Left, Transport

logger = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")

# Sends one RPC for items of several callers; the result has one entry for each item.
_Send = Callable[[Transport, Any, Sequence[Any], Left], Awaitable[Sequence[Any]]]

# Errors of an encoder that may be the fault of one text.
_ERRORS_OF_A_TEXT = (ValueError, TypeError, LookupError, ArithmeticError)


@dataclass(frozen=True)
class Sharing:
    """What two stores must have in common to share RPCs, beside the connection.

    Attributes:
        collection_name: The collection; requests for different ones share nothing anyway.
        max_in_flight: RPCs under way at once on one event loop.
        rows_per_insert: Most rows of one insert.
        coalesce: Whether calls that wait at the same time share RPCs.
    """

    collection_name: str
    max_in_flight: int
    rows_per_insert: int
    coalesce: bool


class Connection(Protocol):
    """The connection of an event loop."""

    async def connected(self, timeout: float | None) -> Connected:
        """Connect where there is no connection yet, in so many seconds.

        Raises:
            StoreClosedError: It was closed for good.
        """
        ...


class AsyncTransport(Transport):
    """Sends attempts over the connection of an event loop, so many at a time.

    Args:
        address: Where Milvus is.
        session: What the process remembers of the database.
        sharing: The limits.
        connection: Connects where there is no connection yet.
    """

    def __init__(
        self, address: Address, session: Session, sharing: Sharing, connection: Connection
    ) -> None:
        super().__init__(address, session)
        self.loop = asyncio.get_running_loop()
        self._connection = connection
        self._in_flight = asyncio.Semaphore(sharing.max_in_flight)
        self._attempts = 0
        self._hit_bytes: float = FIRST_HIT_BYTES
        self.coalescer = Coalescer(
            max_in_flight=sharing.max_in_flight,
            max_queued_bytes=MAX_QUEUED_BYTES,
            coalesce=sharing.coalesce,
        )
        rows, vectors, lite_vectors = (
            sharing.rows_per_insert,
            MAX_SEARCH_VECTORS,
            MAX_LITE_SEARCH_VECTORS,
        )
        kind = self._kind
        one = {"max_in_flight": 1}
        self.inserts = kind("insert", send_insert, rows, MAX_INSERT_BYTES)
        # Who writes to Milvus Lite has it alone: calls that waited for each other, with few rows in
        # each, would keep the next rows from sharing one.
        self.lite_inserts = kind("insert", send_insert, rows, MAX_INSERT_BYTES, **one)
        self.searches = kind("search", send_search, vectors, MAX_RESPONSE_BYTES)
        self.lite_searches = kind("search", send_search, lite_vectors, MAX_RESPONSE_BYTES, **one)
        self.hybrids = kind("hybrid", send_hybrid_search, vectors, MAX_RESPONSE_BYTES)
        self.lite_hybrids = kind(
            "hybrid", send_hybrid_search, lite_vectors, MAX_RESPONSE_BYTES, **one
        )
        self.gets = kind("get", send_get, MAX_IDS, MAX_QUEUED_BYTES)
        self.deletes = kind("delete", send_delete_documents, MAX_IDS, MAX_QUEUED_BYTES)
        self.lite_deletes = kind("delete", send_delete_documents, MAX_IDS, MAX_QUEUED_BYTES, **one)
        # One call at a time: models are seldom made to be called by several threads.
        self.encodings: RequestKind[Any, Any, Any] = RequestKind(
            "encode",
            _send_texts,
            MAX_ENCODED,
            MAX_ENCODED,
            MAX_QUEUED_BYTES,
            # One text may be at fault; where a service is away, all of them would be asked again.
            is_separable=lambda error: isinstance(error, _ERRORS_OF_A_TEXT),
            may_resend=lambda key, error: False,
            max_in_flight=1,
        )

    def _kind(
        self, name: str, send: _Send, max_items: int, max_bytes: int, **options: Any
    ) -> RequestKind[Any, Sequence[Any], Any]:
        async def call(
            request: Any, groups: Sequence[Sequence[Any]], timeout: float | None
        ) -> Sequence[Any]:
            left = time_left(timeout)
            items = groups[0] if len(groups) == 1 else [one for group in groups for one in group]

            async def attempt() -> Sequence[Any]:
                return await send(self, request, items, left)

            results = await loaded(self, request.collection_name, attempt, left)
            if isinstance(results, SearchResponse):
                self._note_response(results)
            if len(groups) == 1:
                return [results]
            rest = iter(results)
            return [list(islice(rest, len(group))) for group in groups]

        return RequestKind(
            name,
            call,
            max_items,
            max_items,
            max_bytes,
            is_separable=_is_separable,
            may_resend=_may_resend,
            after=combined_error,
            **options,
        )

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return not self._attempts and self.coalescer.is_idle

    def _note_response(self, found: SearchResponse) -> None:
        """Remember how many bytes hits have, quickly where they become more, slowly otherwise."""
        if count := sum(map(len, found)):
            self._hit_bytes = max(found.size / count, self._hit_bytes / 2)

    def response_bytes(self, hits: int) -> int:
        """Bytes of a response with so many hits, as far as earlier ones let them be foreseen."""
        return int(hits * self._hit_bytes)

    async def _attempt(
        self,
        operation: str,
        send: Callable[[Connected, float | None], Any],
        left: Left,
        *,
        has_status: bool,
    ) -> Any:
        self._attempts += 1
        try:
            connected = await self._connection.connected(left())
            if self._in_flight.locked():
                await self._wait_for_slot(operation, left)
            else:
                await self._in_flight.acquire()
            try:
                return await self._send(connected, operation, send, left, has_status=has_status)
            finally:
                self._in_flight.release()
        finally:
            self._attempts -= 1

    async def _send(
        self,
        connected: Connected,
        operation: str,
        send: Callable[[Connected, float | None], Any],
        left: Left,
        *,
        has_status: bool,
    ) -> Any:
        if connected.closed:
            raise _lost(operation, nothing_done=True)
        try:
            response = await send(connected, left())
            if has_status:
                check(response.status)
            return response
        except asyncio.CancelledError:
            # gRPC cancels what is under way when its channel is closed, and not our task.
            if not connected.closed or _is_cancelled():
                raise
            raise _lost(operation, nothing_done=operation in READS) from None
        except Exception as error:
            recovered = False
            if has_status and connected.stub.can_recover:
                recovered = await self._recover(connected, error)
            failure = translate(operation, error, self.address, recovered=recovered)
            if failure is error:
                raise
            raise failure from failure.__cause__

    async def connect(self, timeout: float | None) -> None:
        await self._connection.connected(timeout)

    async def _recover(self, connected: Connected, error: Exception) -> bool:
        try:
            return bool(await connected.stub.recover(error))
        except Exception:
            logger.info("no other address was found", exc_info=True)
            return False

    async def _wait_for_slot(self, operation: str, left: Left) -> None:
        """Wait until one of the requests in flight has ended.

        Raises:
            RequestTimeoutError: The time was over before.
        """
        acquiring = asyncio.ensure_future(self._in_flight.acquire())
        try:
            await asyncio.wait([acquiring], timeout=left())
        except asyncio.CancelledError:
            if not acquiring.cancel():
                self._in_flight.release()
            raise
        if acquiring.cancel():
            error = NotSentError("others were under way")
            raise translate(operation, error, self.address) from error

    async def _wait_for(self, ticket: Ticket, lock: FairLock, seconds: float) -> None:
        await asyncio.wait([asyncio.wrap_future(ticket)], timeout=seconds)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class AsyncBackend(Backend):
    """Requests of async calls, which share RPCs.

    Args:
        transport: Sends the RPCs, those of other stores of the same collection as well.
        timeout: The store's own seconds for each request, `None` for no deadline.
        flush_soon: Has a collection of Milvus Lite flushed in the background.
        slices: Where the conversions of the event loop take turns.
        max_in_flight: How many items of one call are sent at the same time.
    """

    _transport: AsyncTransport

    def __init__(
        self,
        transport: AsyncTransport,
        timeout: float | None,
        flush_soon: Callable[[str], object],
        slices: Slices,
        max_in_flight: int,
    ) -> None:
        super().__init__(transport, timeout, flush_soon)
        self._slices = slices
        self._max_in_flight = max_in_flight

    async def _submit(
        self,
        kind: RequestKind[Any, Sequence[Any], Any],
        request: Any,
        items: Sequence[Any],
        timeout: float | None,
        size: int = 0,
    ) -> Any:
        """Send items in one RPC with those of equal requests that wait at the same time."""
        self._check_open()
        await self._transport.connect(self._seconds(timeout))
        try:
            return await self._transport.coalescer.submit(
                kind,
                request,
                items,
                weight=len(items),
                size=size,
                timeout=self._seconds(timeout),
            )
        except asyncio.TimeoutError as error:
            failure = translate(kind.name, error, self._transport.address)
            if failure is error:
                raise
            raise failure from failure.__cause__

    async def insert(
        self, request: Insert, rows: Sequence[Row], size: int, timeout: float | None
    ) -> None:
        transport = self._transport
        kind = transport.lite_inserts if self._has_locks(request) else transport.inserts
        await self._submit(kind, request, rows, timeout, size)

    # Not coroutine functions: thousands of searches may wait at the same time, and each coroutine
    # on the way is one more object for the garbage collector.

    def search(
        self, request: Search, data: Sequence[Any], timeout: float | None
    ) -> Coroutine[Any, Any, Sequence[Hits]]:
        transport = self._transport
        kind = transport.lite_searches if request.one_at_a_time else transport.searches
        size = transport.response_bytes(len(data) * request.limit)
        return self._submit(kind, request, data, timeout, size)

    def hybrid_search(
        self, request: HybridSearch, data: Sequence[tuple[Any, ...]], timeout: float | None
    ) -> Coroutine[Any, Any, Sequence[Hits]]:
        transport = self._transport
        kind = transport.lite_hybrids if request.one_at_a_time else transport.hybrids
        size = transport.response_bytes(len(data) * request.limit)
        return self._submit(kind, request, data, timeout, size)

    async def get_by_ids(
        self, request: GetByIds, ids: Sequence[str], timeout: float | None
    ) -> list[Row]:
        rows_of_each = await self._submit(self._transport.gets, request, ids, timeout)
        return [row for rows in rows_of_each for row in rows]

    async def delete_documents(
        self, request: DeleteDocuments, doc_ids: Sequence[str], timeout: float | None
    ) -> None:
        transport = self._transport
        kind = transport.lite_deletes if self._has_locks(request) else transport.deletes
        await self._submit(kind, request, doc_ids, timeout)

    def _has_locks(self, request: Insert | DeleteDocuments) -> bool:
        """Whether one writes to the collection at a time."""
        return self._transport.session.memory(request.collection_name).locks is not None

    async def encode(self, encoder: Encoder, texts: Sequence[str], *, queries: bool) -> list[Any]:
        chunks = [texts[i : i + MAX_ENCODED] for i in range(0, len(texts), MAX_ENCODED)]
        transport = self._transport
        encoded = await gather_or_cancel(
            transport.coalescer.submit(
                transport.encodings, (encoder, queries), chunk, weight=len(chunk), timeout=None
            )
            for chunk in chunks
        )
        return [vector for vectors in encoded for vector in vectors]

    async def once(self, once: Once[T]) -> T:
        return await once.aget()

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> Begun[T]:
        task = asyncio.get_running_loop().create_task(coroutine)
        # The loop reports an exception that nobody retrieves, as of one that is given up.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return task

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

        workers = min(len(items), self._max_in_flight)
        if workers == 1:
            await worker()
        else:
            await gather_or_cancel(worker() for _ in range(workers))
        return outcomes

    async def convert(self, items: Iterable[Item], convert: Callable[[Item], T]) -> list[T]:
        return await self._slices.convert(items, convert)

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.to_thread(function, *arguments)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await acall(function, *arguments)


async def _send_texts(
    encoder_and_kind: tuple[Encoder, bool],
    groups: Sequence[Sequence[str]],
    timeout: float | None,
) -> Sequence[list[Any]]:
    encoder, queries = encoder_and_kind
    texts = [text for group in groups for text in group]
    vectors = iter(await encoder.aencode(texts, queries=queries))
    return [[next(vectors) for _ in group] for group in groups]


def _lost(operation: str, *, nothing_done: bool) -> UnreachableError:
    """The error of a request whose client was closed."""
    error = UnreachableError(operation, "the client was closed before the answer")
    error.nothing_done = nothing_done
    return error


def _is_cancelled() -> bool:
    """Whether the running task was asked to end; Python 3.10 does not tell."""
    return bool(getattr(asyncio.current_task(), "cancelling", int)())


def _is_separable(error: Exception) -> bool:
    """Whether some callers of a coalesced request may be spared an error that others cause."""
    return is_refusal_of_data(error) or isinstance(error, (FilterError, RowError))


def _may_resend(request: Any, error: Exception) -> bool:
    """Whether a coalesced request may be sent again after an error."""
    return is_retryable(error, not isinstance(request, Insert) or request.repeatable)
