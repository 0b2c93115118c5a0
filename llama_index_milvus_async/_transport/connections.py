"""Connections to Milvus: a store's clients, one for each event loop and one for blocking calls.

Here is also what the process has to remember of its collections, whichever client wrote to them.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from .._concurrency.fair_lock import Turns
from .._concurrency.once import Once
from .._wire.address import Address, check_lite_installed, connect_timeout, leave_lite_to_parent
from .._wire.status import translated
from ..errors import StoreClosedError
from ..stats import KindStats
from .backend import AsyncBackend, BlockingClient, SyncBackend, run_sync, running_loop
from .retries import block, persist

T = TypeVar("T")

#: Under "Session" Milvus shows a process its own inserts, but its own deletions only from the
#: next time tick on (0.2 s by default). Reads that follow an own delete within this many seconds
#: ask for "Strong"; the margin is for servers whose ticks lag.
DELETE_SETTLES_AFTER = 3.0

#: Rows of Milvus Lite that may be unflushed: each adds 75 µs to every search.
LITE_UNFLUSHED_ROWS = 1_000


@dataclass(frozen=True)
class Lines:
    """Who may use a collection of Milvus Lite (3.2.2) at the same time.

    Attributes:
        writers: One at a time. Killed after several had written at the same time, it loses rows
            that it had acknowledged.
        users: Readers together, a flush alone: reads do not see the rows that a flush is just
            writing to a file, and it does not drop a collection meanwhile.
    """

    writers: Turns = field(default_factory=Turns)
    users: Turns = field(default_factory=Turns)


#: For each request its lines, and whether it shares its turn in them.
_LINES = {
    "insert": [("writers", False)],
    "upsert": [("writers", False)],
    "delete": [("writers", False)],
    "flush": [("writers", False), ("users", False)],
    "drop_collection": [("writers", False), ("users", False)],
    "search": [("users", True)],
    "hybrid_search": [("users", True)],
    "query": [("users", True)],
}


class Connections:
    """The clients of one store: one for blocking calls, one for each event loop.

    Args:
        address: Where to connect to.
        timeout: Seconds for each request, further attempts included; `None` for no deadline.
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
        self._of_lite: set[str] = set()
        self.closed = False
        self._onces: list[Once[Any]] = []
        self._forget()
        _live.add(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        self._sync_client: BlockingClient | None = None
        # By the loop itself: id() is reused. A weak key would never die, because the client's
        # channel refers to its loop; closed loops are pruned instead.
        self._loops: dict[asyncio.AbstractEventLoop, AsyncBackend] = {}

    def once(self, make: Callable[[], T]) -> Once[T]:
        """A value that is made once over these connections."""
        once = Once(make)
        self._onces.append(once)
        return once

    def seconds(self, timeout: float | None) -> float | None:
        """Seconds for a request that has a time-out of its own, or none."""
        return self.timeout if timeout is None else timeout

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

    def sync_client(self) -> BlockingClient:
        """The connected blocking client; connects in the calling thread."""
        self.check_open()
        client = self._sync_client
        if client is None or client.closed:
            with self._connecting:
                self.check_open()  # it may have been closed while this thread waited
                client = self._sync_client
                if client is None or client.closed:
                    client = self._sync_client = self._new_sync_client()
        return client

    def _new_sync_client(self) -> BlockingClient:
        check_lite_installed(self.address)

        async def attempt(left: float | None) -> BlockingClient:
            with translated("connect", self.address):
                return BlockingClient(self, left)

        return run_sync(persist(attempt, timeout=connect_timeout(self.timeout), sleep=block))

    def stats(self) -> dict[str, KindStats]:
        """The counts of every event loop so far, by kind of request."""
        total = {name: replace(counts) for name, counts in self._ended.items()}
        with self._lock:
            backends = list(self._loops.values())
        for backend in backends:
            _add_counts(total, backend.coalescer.stats())
        return total

    def opening(self) -> AbstractContextManager[object]:
        """Held while a collection of Milvus Lite in this process is made ready.

        Milvus Lite (up to 3.2.2) opens a collection once for each of those that first ask for it
        at the same time, and then some write where others do not look.
        """
        if not self.address.is_lite:
            return nullcontext()
        return _opening.setdefault(self.address.place, threading.Lock())

    def note_collection_of_lite(self, collection_name: str) -> None:
        """Have this process' requests for a collection stand in line where Milvus Lite needs it."""
        self._of_lite.add(collection_name)

    def lines(self, method: str, *args: Any) -> Sequence[tuple[Turns, bool]]:
        """The lines that a request has to stand in, and whether it shares its turn there."""
        if not args or args[0] not in self._of_lite or method not in _LINES:
            return ()
        lines = _lines.setdefault(self._key(args[0]), Lines())
        return [(getattr(lines, line), shared) for line, shared in _LINES[method]]

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
        now = time.monotonic()
        for key, deleted_at in list(_deleted_at.items()):
            if now - deleted_at > DELETE_SETTLES_AFTER:
                _deleted_at.pop(key, None)
        _deleted_at[self._key(collection_name)] = now

    def read_level(self, collection_name: str, level: str) -> str:
        """The consistency level that a read has to ask for, to mean `level`."""
        if level != "Session":
            return level
        deleted_at = _deleted_at.get(self._key(collection_name))
        recent = deleted_at is not None and time.monotonic() - deleted_at < DELETE_SETTLES_AFTER
        return "Strong" if recent else level

    def _key(self, collection_name: str) -> tuple[str, str, str]:
        database = str(self.address.options.get("db_name", ""))
        return self.address.place, database, collection_name

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


def _add_counts(total: dict[str, KindStats], more: Mapping[str, KindStats]) -> None:
    for name, counts in more.items():
        sums = total.setdefault(name, KindStats())
        for counter in fields(KindStats):
            value = getattr(sums, counter.name) + getattr(counts, counter.name)
            setattr(sums, counter.name, value)


def _close_from_outside(
    loop: asyncio.AbstractEventLoop, backend: AsyncBackend, wait: bool = False
) -> None:
    """Close a client from blocking code or from another loop than its own."""
    if not loop.is_running() or loop is running_loop():
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
_lines: dict[tuple[str, str, str], Lines] = {}
_opening: dict[str, threading.Lock] = {}


def _before_fork() -> None:
    for connections in list(_live):
        connections.before_fork()


def _after_fork_in_child() -> None:
    leave_lite_to_parent()
    # The parent's threads hold them.
    _lines.clear()
    _opening.clear()
    for connections in list(_live):
        connections.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
