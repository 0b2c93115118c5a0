"""The blocking side: coroutines that never suspend, over a `MilvusClient`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

from .._concurrency.drivers import block, call, running_loop
from .._concurrency.fair_lock import FairLock, Ticket
from .._concurrency.once import Once
from .._rpc import DeleteDocuments, GetByIds, Hits, HybridSearch, Insert, Row, Search
from .._wire.address import Address
from .._wire.status import check, translate
from .backend import Backend, Begun, Encoder
from .rpcs import send_delete_documents, send_get, send_hybrid_search, send_insert, send_search
from .session import Session
from .transport import Connected, Left, Transport

logger = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")


class BlockingTransport(Transport):
    """Sends attempts over a connection of the process; blocks the calling thread.

    Args:
        address: Where Milvus is.
        session: What the process remembers of the database.
        connect: Returns the connected client, which is made where there is none.
    """

    def __init__(
        self, address: Address, session: Session, connect: Callable[[], Connected]
    ) -> None:
        super().__init__(address, session)
        self._connect = connect

    async def _attempt(
        self,
        operation: str,
        send: Callable[[Connected, float | None], Any],
        left: Left,
        *,
        has_status: bool,
    ) -> Any:
        connected = self._connect()
        try:
            response = send(connected, left())
            if has_status:
                check(response.status)
            return response
        except Exception as error:
            recovered = (
                has_status and connected.stub.can_recover and self._recover(connected, error)
            )
            failure = translate(operation, error, self.address, recovered=recovered)
            if failure is error:
                raise
            raise failure from failure.__cause__

    def _recover(self, connected: Connected, error: Exception) -> bool:
        try:
            return bool(connected.stub.recover(error))
        except Exception:
            logger.info("no other address was found", exc_info=True)
            return False

    async def connect(self, timeout: float | None) -> None:
        self._connect()

    async def _wait_for(self, ticket: Ticket, lock: FairLock, seconds: float) -> None:
        loop = running_loop()
        if loop is not None and lock.needs(loop):
            # What holds the lock on the loop that this call blocks could not end before the call.
            lock.release(ticket)
            return
        with suppress(FutureTimeoutError):
            ticket.result(seconds)

    async def sleep(self, seconds: float) -> None:
        await block(seconds)


class _Deferred(Generic[T]):
    """A coroutine that runs where it is awaited."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coroutine.__await__()

    def cancel(self) -> None:
        self._coroutine.close()


class BlockingBackend(Backend):
    """Requests of blocking calls: each is an RPC of its own."""

    async def insert(
        self, request: Insert, rows: Sequence[Row], size: int, timeout: float | None
    ) -> None:
        send = partial(send_insert, self._transport, request, rows)
        name, repeatable = request.collection_name, request.repeatable
        await self._repeat(name, send, timeout, repeatable=repeatable)

    async def search(
        self, request: Search, data: Sequence[Any], timeout: float | None
    ) -> Sequence[Hits]:
        send = partial(send_search, self._transport, request, data)
        return await self._repeat(request.collection_name, send, timeout)

    async def hybrid_search(
        self, request: HybridSearch, data: Sequence[tuple[Any, ...]], timeout: float | None
    ) -> Sequence[Hits]:
        send = partial(send_hybrid_search, self._transport, request, data)
        return await self._repeat(request.collection_name, send, timeout)

    async def get_by_ids(
        self, request: GetByIds, ids: Sequence[str], timeout: float | None
    ) -> list[Row]:
        send = partial(send_get, self._transport, request, ids)
        rows_of_each = await self._repeat(request.collection_name, send, timeout)
        return [row for rows in rows_of_each for row in rows]

    async def delete_documents(
        self, request: DeleteDocuments, doc_ids: Sequence[str], timeout: float | None
    ) -> None:
        send = partial(send_delete_documents, self._transport, request, doc_ids)
        await self._repeat(request.collection_name, send, timeout)

    async def encode(self, encoder: Encoder, texts: Sequence[str], *, queries: bool) -> list[Any]:
        return encoder.encode(texts, queries=queries)

    async def once(self, once: Once[T]) -> T:
        return once.get()

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> Begun[T]:
        return _Deferred(coroutine)

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

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return function(*arguments)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return call(function, *arguments)
