"""What one store uses of the connections of the process."""

from __future__ import annotations

import _thread
import asyncio
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar

from pymilvus import MilvusClient

from .._concurrency.drivers import run_sync, running_loop
from .._concurrency.once import Once
from .._wire.address import Address
from .._wire.status import translated
from .._wire.stub import ConnectedClient, async_handler
from ..errors import store_closed
from ..stats import KindStats
from . import lite, session
from .asynchronous import AsyncBackend, AsyncTransport, Sharing
from .blocking import BlockingBackend, BlockingTransport
from .flushing import UnflushedRows
from .registry import (
    BlockingClient,
    BlockingConnection,
    LoopConnection,
    OpenClient,
    async_arguments,
    close_from_outside,
    new_blocking_client,
    registry,
)
from .session import CollectionMemory, Session

T = TypeVar("T")

#: How long closing waits for a flush of Milvus Lite, which is only a matter of speed.
SECONDS_FOR_A_FLUSH = 5.0


class _Uses:
    """What one store uses: kept apart from it, so that its end can give them up."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.closed = False
        self.blocking: BlockingConnection | None = None
        self.connecting = threading.Lock()
        self.client: BlockingClient | None = None  # the user's
        self.loops: dict[asyncio.AbstractEventLoop, _LoopUse] = {}
        #: Counts of loops that have ended.
        self.ended: dict[str, KindStats] = {}

    def refuse(self) -> None:
        """Refuse calls from now on."""
        with self.lock:
            self.closed = True
            for use in self.loops.values():
                use.backend.closed = True

    def take_all(self) -> list[BlockingConnection | LoopConnection]:
        """Give up everything; returns the connections that have to close."""
        with self.lock:
            self.refuse()
            loops, self.loops = self.loops, {}
            blocking, self.blocking = self.blocking, None
        used: list[Any] = [use.connection for use in loops.values()]
        used += [] if blocking is None else [blocking]
        to_close = [connection for connection in used if registry.release(connection)]
        for use in loops.values():
            _add_counts(self.ended, use.counts())
        return to_close

    def prune(self) -> None:
        """Give up connections of loops that have ended."""
        for loop in [loop for loop in self.loops if loop.is_closed()]:
            use = self.loops.pop(loop)
            _add_counts(self.ended, use.counts())
            if registry.release(use.connection):
                close_from_outside(use.connection)


class _LoopUse:
    """What one store uses on one event loop."""

    def __init__(
        self, connection: LoopConnection, transport: AsyncTransport, backend: AsyncBackend
    ) -> None:
        self.connection = connection
        self.transport = transport
        self.backend = backend
        #: The user's client. Whoever holds it holds the store; the store does not hold it.
        self.client: weakref.ref[ConnectedClient] | None = None
        #: What other stores had counted before this one shared with them.
        self._before = dict(transport.coalescer.stats())

    def counts(self) -> dict[str, KindStats]:
        """The counts since this store began to share."""
        counts = {name: replace(now) for name, now in self.transport.coalescer.stats().items()}
        _add_counts(counts, self._before, sign=-1)
        return counts


class Connections:
    """How one store reaches Milvus.

    Args:
        address: Where to connect to.
        timeout: Seconds for each request, further attempts included; `None` for no deadline.
        sharing: What it must have in common with another store to share RPCs with it.
    """

    def __init__(self, address: Address, timeout: float | None, sharing: Sharing) -> None:
        self.address = address
        self.timeout = timeout
        self.sharing = sharing
        self._session = Session(address.place, address.database, address.endpoint)
        self._onces: list[Once[Any]] = []
        self._uses = _Uses()
        self._blocking_transport = BlockingTransport(address, self._session, self._connect_blocking)
        # Weakly, for what a store uses must not keep it alive.
        self._flush_soon = partial(_flush_soon, weakref.ref(self))
        self._flushing: dict[threading.Thread, UnflushedRows] = {}
        self._finalizer = weakref.finalize(self, _drop, self._uses)
        self._finalizer.atexit = False
        _live.add(self)

    def once(self, make: Callable[[], T], keep: Callable[[T], bool]) -> Once[T]:
        """A value that is made once over these connections; see `Once`."""
        once = Once(make, keep)
        self._onces.append(once)
        return once

    def check_open(self) -> None:
        """Refuse to go on once closed.

        Raises:
            StoreClosedError: The store was closed.
        """
        if self._uses.closed:
            raise store_closed()

    def blocking(self) -> BlockingBackend:
        """The backend for blocking calls."""
        self.check_open()
        return BlockingBackend(self._blocking_transport, self.timeout, self._flush_soon)

    def of_running_loop(self) -> AsyncBackend:
        """The backend of the running event loop."""
        self.check_open()
        return self._use_running_loop().backend

    def _use_running_loop(self) -> _LoopUse:
        uses, loop = self._uses, asyncio.get_running_loop()
        if (use := uses.loops.get(loop)) is not None:
            return use
        with uses.lock:
            self.check_open()
            uses.prune()
            if (use := uses.loops.get(loop)) is not None:
                return use
            connection = registry.acquire(self.address, loop)
            transport = connection.transports.get(self.sharing)
            if transport is None:
                transport = AsyncTransport(self.address, self._session, self.sharing, connection)
                connection.transports[self.sharing] = transport
            backend = AsyncBackend(
                transport,
                self.timeout,
                self._flush_soon,
                registry.slices(loop),
                self.sharing.max_in_flight,
            )
            use = uses.loops[loop] = _LoopUse(connection, transport, backend)
            return use

    async def connect(self) -> None:
        """Connect on the running loop now."""
        await self._use_running_loop().connection.connected(self.timeout)

    def transport(self) -> AsyncTransport:
        """What sends the requests of the running loop."""
        return self._use_running_loop().transport

    def memory(self, collection_name: str) -> CollectionMemory:
        """What the process remembers of a collection."""
        return self._session.memory(collection_name)

    def client(self) -> MilvusClient:
        """A sync client for the user, with a connection of its own. Blocks.

        Its own, because a user may change the client's database, or close it.
        """
        uses = self._uses
        with uses.connecting:
            self.check_open()
            client = uses.client
            if client is not None and client.opened != lite.open_file(self.address):
                client.close()
            if client is None or client.closed:
                uses.client = new_blocking_client(self.address, self.timeout)
            return uses.client

    def async_client(self) -> ConnectedClient:
        """The running loop's client for the user, over the connection of the loop."""
        use = self._use_running_loop()
        client = use.client() if use.client is not None else None
        if client is None or client.closed:

            async def connect() -> Any:
                self.check_open()
                for once in self._onces:
                    await once.aget()
                connected = await use.connection.connected(self.timeout)
                return await async_handler(connected.client)

            with translated("connect", self.address):
                client = ConnectedClient(connect, **async_arguments(self.address, self.timeout))
            use.client = weakref.ref(client)
        return client

    def _connect_blocking(self) -> OpenClient:
        uses = self._uses
        connection = uses.blocking
        if connection is None:
            with uses.lock:
                self.check_open()
                if uses.blocking is None:
                    uses.blocking = registry.acquire_blocking(self.address)
                connection = uses.blocking
        return connection.connected(self.timeout)

    def stats(self) -> dict[str, KindStats]:
        """The counts of every event loop so far, by kind of request."""
        with self._uses.lock:
            total = {name: replace(counts) for name, counts in self._uses.ended.items()}
            uses = list(self._uses.loops.values())
        for use in uses:
            _add_counts(total, use.counts())
        return total

    def close(self) -> None:
        """Give up the connections, and close those that nobody else uses.

        Those of loops in other threads are closed by their loops.
        """
        self._uses.refuse()
        self._end_flushes()
        for connection in self._uses.take_all():
            close_from_outside(connection)
        self._close_client()

    async def aclose(self) -> None:
        """Give up the connections without blocking; see `close`.

        The running loop's is closed before this returns.
        """
        self._uses.refuse()
        # Not cut short where the caller is cancelled: nobody else would close them.
        await asyncio.shield(self._close_all())

    async def _close_all(self) -> None:
        if self._flushing:
            await asyncio.to_thread(self._end_flushes)
        for connection in self._uses.take_all():
            if isinstance(connection, LoopConnection) and connection.loop is running_loop():
                await connection.close()
            else:
                # In a thread: it waits where another thread is just connecting.
                await asyncio.to_thread(close_from_outside, connection, wait=True)
        await asyncio.to_thread(self._close_client)

    def _start_flush(self, collection_name: str) -> None:
        unflushed = self.memory(collection_name).unflushed

        def flush() -> None:
            # Only a matter of speed: a dropped collection, say, is no reason to complain.
            with suppress(Exception):
                backend = self.blocking()
                self._connect_blocking()  # while that is allowed: closing has it flush at once
                unflushed.wait_until_due()
                run_sync(backend.flush(collection_name))
            unflushed.ended()
            self._flushing.pop(thread, None)

        name = "llama-index-milvus-async-flush"
        thread = threading.Thread(target=flush, name=name, daemon=True)
        self._flushing[thread] = unflushed
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending
            unflushed.ended()
            del self._flushing[thread]

    def _end_flushes(self) -> None:
        """Wait for what is flushed in the background.

        Milvus Lite complains where the process ends meanwhile.
        """
        for thread, unflushed in tuple(self._flushing.items()):
            unflushed.hasten()
            thread.join(SECONDS_FOR_A_FLUSH)

    def _close_client(self) -> None:
        with self._uses.connecting:
            client, self._uses.client = self._uses.client, None
        if client is not None:
            client.close()

    def after_fork_in_child(self) -> None:
        """Leave the parent's connections alone and start without any."""
        self._finalizer.detach()
        closed, self._uses = self._uses.closed, _Uses()
        self._uses.closed = closed
        self._finalizer = weakref.finalize(self, _drop, self._uses)
        self._finalizer.atexit = False
        for once in self._onces:
            once.after_fork_in_child()


def _add_counts(
    total: dict[str, KindStats], more: Mapping[str, KindStats], *, sign: int = 1
) -> None:
    for name, counts in more.items():
        sums = total.setdefault(name, KindStats())
        for counter in fields(KindStats):
            value = getattr(sums, counter.name) + sign * getattr(counts, counter.name)
            setattr(sums, counter.name, value)


def _flush_soon(reference: weakref.ref[Connections], collection_name: str) -> None:
    """Have a collection of Milvus Lite flushed when that is due, in a thread."""
    if (connections := reference()) is not None:
        connections._start_flush(collection_name)  # noqa: SLF001


_dropped: deque[_Uses] = deque()


def _drop(uses: _Uses) -> None:
    """Have given up what a store used that was garbage-collected without being closed.

    The collector may run anywhere, also where this thread holds the locks that closing needs; a
    thread of `threading` takes locks itself when it starts.
    """
    _dropped.append(uses)
    with suppress(RuntimeError):  # the interpreter is ending
        _thread.start_new_thread(_release_dropped, ())


def _release_dropped() -> None:
    while _dropped:
        with suppress(IndexError, ValueError):  # another thread is at it, too
            uses = _dropped[0]
            for connection in uses.take_all():
                with suppress(Exception):
                    close_from_outside(connection)
            if uses.client is not None:
                with suppress(Exception):
                    uses.client.close()
            _dropped.remove(uses)


_live: weakref.WeakSet[Connections] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    registry.after_fork_in_child()
    session.after_fork_in_child()
    for connections in list(_live):
        connections.after_fork_in_child()
    # Last: it may fail where Milvus Lite has changed.
    lite.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=registry.before_fork, after_in_child=_after_fork_in_child)
