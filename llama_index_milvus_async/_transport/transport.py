"""One attempt of a request, over a connection and in the turn of its collection."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from .._concurrency.backoff import MAX_RESENDS, NotSentError
from .._concurrency.fair_lock import FairLock, Ticket
from .._wire.address import Address
from .._wire.logs import expected_failures
from .._wire.status import READS, translated
from .._wire.stub import Stub
from ..errors import RequestTimeoutError, ServerError, UnreachableError
from .session import CollectionMemory, Session

logger = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")

#: Says how many seconds are left, `None` without a deadline.
Left = Callable[[], float | None]

#: After this many seconds without a release, the holders of a lock are presumed gone: their loop
#: has stopped for good.
HOLDERS_GONE_AFTER = 30.0
#: Seconds after a lost connection in which Milvus Lite may still be at what it was asked for: of
#: the requests that we send, the largest take it a tenth of that.
LITE_SETTLES_AFTER = 0.5


class Connected(Protocol):
    """A client that is connected.

    Attributes:
        client: pymilvus' client, for what is rare.
        stub: The data RPCs on its channel.
        closed: Whether it was closed since.
    """

    client: Any
    stub: Stub
    closed: bool


class Transport(ABC):
    """Sends one attempt of a request at a time.

    Args:
        address: Where Milvus is.
        session: What the process remembers of the database.
    """

    #: The loop that attempts wait on, `None` for those that block their thread.
    loop: asyncio.AbstractEventLoop | None = None

    def __init__(self, address: Address, session: Session) -> None:
        self.address = address
        self.session = session

    @abstractmethod
    async def _attempt(
        self,
        operation: str,
        send: Callable[[Connected, float | None], Any],
        left: Left,
        *,
        has_status: bool,
    ) -> Any:
        """Make one attempt over the connection, which is made where there is none."""

    @abstractmethod
    async def connect(self, timeout: float | None) -> None:
        """Connect where there is no connection yet, by as many attempts as fit into the time.

        Raises:
            UnreachableError: Nobody has answered; further attempts are of no use.
            StoreClosedError: It was closed for good.
        """

    @abstractmethod
    async def _wait_for(self, ticket: Ticket, lock: FairLock, seconds: float) -> None:
        """Wait for a lock for some seconds."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Wait."""

    async def rpc(
        self,
        operation: str,
        rpc: str,
        collection_name: str,
        message: Any,
        left: Left,
        *,
        rewriting: bool = False,
    ) -> Any:
        """Send a message on the stub; returns the response of a success.

        Args:
            operation: What the message asks for.
            rpc: The RPC.
            collection_name: The collection.
            message: The message.
            left: Says how many seconds are left.
            rewriting: Whether the caller has the collection for itself; see `rewriting`.

        Raises:
            ServerError: Milvus refused, or did not answer.
        """

        def send(connected: Connected, seconds: float | None) -> Any:
            return connected.stub.send(rpc, message, seconds)

        memory = self.session.memory(collection_name)
        return await self._in_turn(
            operation, memory, send, left, has_status=True, rewriting=rewriting
        )

    @asynccontextmanager
    async def rewriting(self, collection_name: str, left: Left) -> AsyncIterator[None]:
        """Keep all other writes of this process away from a collection.

        Who reads rows to write them again would undo what others write between the two.

        Raises:
            RequestTimeoutError: The time was over before.
        """
        lock = self.session.memory(collection_name).rewriting
        ticket = lock.enqueue(self.loop)
        try:
            with translated("update", self.address):
                await self._acquire(lock, ticket, left)
            yield
        finally:
            lock.release(ticket)

    async def call(
        self, method: str, collection_name: str, *args: Any, left: Left, **kwargs: Any
    ) -> Any:
        """Call a public method of pymilvus' client, which makes further attempts itself.

        Raises:
            ServerError: Milvus refused, or did not answer.
        """
        if collection_name:
            args = (collection_name, *args)

        def send(connected: Connected, seconds: float | None) -> Any:
            if seconds is None:
                kwargs["retry_times"] = MAX_RESENDS
            return getattr(connected.client, method)(*args, timeout=seconds, **kwargs)

        memory = self.session.memory(collection_name)
        with expected_failures():
            return await self._in_turn(method, memory, send, left, has_status=False)

    async def _in_turn(
        self,
        operation: str,
        memory: CollectionMemory,
        send: Callable[[Connected, float | None], Any],
        left: Left,
        *,
        has_status: bool,
        rewriting: bool = False,
    ) -> Any:
        """Make an attempt while holding the locks that it needs."""
        # Milvus Lite in this process is not started anew behind our back.
        opened = None if memory.locks is None or self.address.is_lite else memory.locks.opened
        alone = opened is not None and not opened.is_certain
        needed = memory.needed_locks(operation, rewriting=rewriting, alone=alone)
        if not needed:
            return await self._attempt(operation, send, left, has_status=has_status)
        held: list[tuple[FairLock, Ticket]] = []
        cooldown = 0.0
        lost_before = 0
        try:
            for lock, shared in needed:
                ticket = lock.enqueue(self.loop, shared=shared)
                held.append((lock, ticket))
                with translated(operation, self.address):
                    await self._acquire(lock, ticket, left)
            if opened is not None:
                lost_before = opened.lost
            response = await self._attempt(operation, send, left, has_status=has_status)
        except BaseException as error:
            # Nobody needs to wait for a read that goes on.
            waits = operation not in READS and _may_go_on(error)
            if waits and all(ticket.done() for _, ticket in held):
                cooldown = LITE_SETTLES_AFTER
            if opened is not None and isinstance(error, UnreachableError):
                self.session.note_lost_connection()
            elif opened is not None and isinstance(error, ServerError) and error.is_answer:
                opened.note_answer(lost_before)
            raise
        else:
            if opened is not None:
                opened.note_answer(lost_before)
            return response
        finally:
            for lock, ticket in held:
                lock.release(ticket, cooldown=0.0 if ticket.shared else cooldown)

    async def _acquire(self, lock: FairLock, ticket: Ticket, left: Left) -> None:
        """Wait for a lock, and until what went before has settled.

        Raises:
            NotSentError: The time was over before.
        """
        while not ticket.done():
            generation, seconds = lock.generation, left()
            longest = HOLDERS_GONE_AFTER if seconds is None else min(seconds, HOLDERS_GONE_AFTER)
            await self._wait_for(ticket, lock, longest)
            if ticket.done():
                break
            if longest == seconds:
                raise NotSentError("others held the lock of the collection")
            lock.evict_stalled(generation)
        if cooldown := lock.cooldown():
            await self.sleep(cooldown)


def _may_go_on(error: BaseException) -> bool:
    """Whether the server may still be at what a request asked for when its caller was told."""
    if isinstance(error, (UnreachableError, RequestTimeoutError)):
        return not error.nothing_done
    return not isinstance(error, Exception)  # cancelled, interrupted
