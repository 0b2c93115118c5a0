"""The connections of the process, each with the number of stores that use it.

A connection belongs to an event loop, or to the blocking side, and to an address with a login and
options (`ConnectionKey`). Stores that have these in common use one; the last one that gives it up
has it closed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

from pymilvus import AsyncMilvusClient, MilvusClient

from .._concurrency.drivers import block, run_sync, running_loop
from .._concurrency.exceptions import own_copy
from .._concurrency.slices import Slices
from .._wire.address import Address, ConnectionKey, connect_timeout
from .._wire.status import translated
from .._wire.stub import Stub, async_handler, async_stub, blocking_stub
from ..errors import store_closed
from . import lite
from .asynchronous import AsyncTransport
from .retries import retry_until_deadline

logger = logging.getLogger(__name__)

# asyncio refers to its tasks weakly.
_closing: set[asyncio.Task[Any]] = set()


class OpenClient:
    """A client that is connected; see `transport.Connected`."""

    def __init__(self, client: Any, stub: Stub, address: Address) -> None:
        self.client = client
        self.stub = stub
        self.closed = False
        self._address = address
        self._opened = lite.open_file(address)

    @property
    def is_current(self) -> bool:
        """Whether it can be used: not closed, and its `.db` folder, if any, was not removed."""
        if self.closed:
            return False
        return self._opened is None or lite.open_file(self._address) == self._opened


class BlockingConnection:
    """A blocking connection of the process, used by any number of threads.

    Args:
        address: Where to connect to.
    """

    loop = None

    def __init__(self, address: Address) -> None:
        self.address = address
        self.users = 0
        self._lock = threading.Lock()
        self._connected: OpenClient | None = None
        self._closed = False

    def connected(self, timeout: float | None) -> OpenClient:
        """Connect where there is no connection yet; blocks.

        Raises:
            StoreClosedError: It was closed for good.
        """
        connected = self._connected
        if connected is None or not connected.is_current:
            with self._lock:
                if self._closed:
                    raise store_closed()
                connected = self._connected
                if connected is None or not connected.is_current:
                    client = new_blocking_client(self.address, timeout)
                    stub = blocking_stub(client, self.address)
                    self._connected, old = OpenClient(client, stub, self.address), connected
                    connected = self._connected
                    if old is not None:
                        old.closed = True
                        old.client.close()
        return connected

    def close(self) -> None:
        """Close it for good; blocks while another thread is just connecting."""
        with self._lock:
            self._closed = True
            connected, self._connected = self._connected, None
        if connected is not None:
            connected.closed = True
            connected.client.close()

    def close_if_idle(self) -> None:
        """Leave it open: a child of a fork can go on where only this side was used."""


class LoopConnection:
    """The async connection of one event loop.

    Args:
        address: Where to connect to.
        loop: The event loop.
    """

    def __init__(self, address: Address, loop: asyncio.AbstractEventLoop) -> None:
        self.address = address
        self.loop = loop
        self.users = 0
        #: Who shares RPCs over it, by what they have in common.
        self.transports: weakref.WeakValueDictionary[Hashable, AsyncTransport]
        self.transports = weakref.WeakValueDictionary()
        #: Done, with the error if there was one, when the attempts that are under way have ended.
        self._connecting: asyncio.Future[Exception | None] | None = None
        self._connected: OpenClient | None = None
        self._closed = False

    async def connected(self, timeout: float | None) -> OpenClient:
        """Connect where there is no connection yet.

        Raises:
            StoreClosedError: It was closed for good.
        """
        while True:
            connected = self._connected
            if connected is not None and connected.is_current:
                return connected
            self._check_open()
            # One caller connects: several would open a channel each, and leak all but one. The
            # others go on in one iteration of the loop, so that what they ask for shares RPCs.
            if self._connecting is None:
                return await self._connect_for_all(connect_timeout(timeout))
            connecting = self._connecting
            await asyncio.wait([connecting])
            if (error := connecting.result()) is not None:
                raise own_copy(error)

    async def _connect_for_all(self, timeout: float) -> OpenClient:
        connecting = self._connecting = self.loop.create_future()
        error = None
        try:
            return await retry_until_deadline(self._connect, timeout=timeout, sleep=asyncio.sleep)
        except Exception as failure:
            error = failure
            raise
        finally:
            self._connecting = None
            connecting.set_result(error)
            del error  # or the exception, its traceback and this frame would be a cycle

    async def _connect(self, seconds: float | None) -> OpenClient:
        self._check_open()
        await self._disconnect()  # from a folder that was removed
        with translated("connect", self.address):
            lite.check_installed(self.address)
            lite.forget_removed(self.address)
            arguments = async_arguments(self.address, seconds)
            if self.address.is_lite:  # the constructor starts it, which takes up to half a second
                client = await asyncio.to_thread(AsyncMilvusClient, **arguments)
            else:
                client = AsyncMilvusClient(**arguments)
            try:
                handler = await async_handler(client)
                self._check_open()
                connected = OpenClient(client, async_stub(handler, self.address), self.address)
            except BaseException:
                await client.close()
                raise
        self._connected = connected
        return connected

    def _check_open(self) -> None:
        if self._closed:
            raise store_closed()

    async def close(self) -> None:
        """Close it for good; on its loop, or on none where that is closed."""
        self._closed = True
        await self._disconnect()

    async def _disconnect(self) -> None:
        if (connected := self._connected) is not None:
            connected.closed = True
            # pymilvus' client can be closed again, where this is cut short.
            await connected.client.close()
            if self._connected is connected:
                self._connected = None

    def close_if_idle(self) -> None:
        """Disconnect until the next call, unless requests are under way.

        A process that has an open channel of grpc.aio forks children that hang or crash in their
        first call.
        """
        if self._is_idle():
            _run_on_loop(self.loop, self._disconnect_if_idle, wait=True)

    def _is_idle(self) -> bool:
        return all(transport.is_idle for transport in list(self.transports.values()))

    async def _disconnect_if_idle(self) -> None:
        if self._is_idle():  # a request may have begun since
            await self._disconnect()


class Registry:
    """The connections of the process, each with the number of stores that use it."""

    def __init__(self) -> None:
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """Start without the parent's connections."""
        # Reentrant: the garbage collector may end a store, which releases, anywhere.
        self._lock = threading.RLock()
        # By the loop itself: id() is reused. A weak key would never die, because the client's
        # channel refers to its loop; connections of closed loops are closed instead.
        self._connections: dict[
            tuple[ConnectionKey, asyncio.AbstractEventLoop | None],
            BlockingConnection | LoopConnection,
        ] = {}
        self._slices: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Slices]
        self._slices = weakref.WeakKeyDictionary()

    def acquire_blocking(self, address: Address) -> BlockingConnection:
        """The blocking connection to an address, with one user more."""
        with self._lock:
            key = (address.connection_key, None)
            connection = self._connections.get(key)
            if connection is None:
                connection = self._connections[key] = BlockingConnection(address)
            connection.users += 1
            assert isinstance(connection, BlockingConnection)
            return connection

    def acquire(self, address: Address, loop: asyncio.AbstractEventLoop) -> LoopConnection:
        """The connection of an event loop to an address, with one user more."""
        with self._lock:
            self.prune()
            key = (address.connection_key, loop)
            connection = self._connections.get(key)
            if connection is None:
                connection = self._connections[key] = LoopConnection(address, loop)
            connection.users += 1
            assert isinstance(connection, LoopConnection)
            return connection

    def slices(self, loop: asyncio.AbstractEventLoop) -> Slices:
        """Where the conversions of an event loop take turns, those of all stores."""
        with self._lock:
            return self._slices.setdefault(loop, Slices())

    def release(self, connection: BlockingConnection | LoopConnection) -> bool:
        """Give up one use; returns whether it was the last, so that the connection has to close."""
        with self._lock:
            connection.users -= 1
            if connection.users > 0:
                return False
            key = (connection.address.connection_key, connection.loop)
            if self._connections.get(key) is connection:
                del self._connections[key]
            return True

    def prune(self) -> None:
        """Close the connections of event loops that have ended."""
        closed = [key for key in self._connections if key[1] is not None and key[1].is_closed()]
        for key in closed:
            close_from_outside(self._connections.pop(key))

    def before_fork(self) -> None:
        """Close what would make children of a fork hang."""
        with self._lock:
            connections = list(self._connections.values())
        for connection in connections:
            connection.close_if_idle()


#: Those of this process.
registry = Registry()


class BlockingClient(MilvusClient):  # type: ignore[misc] # pymilvus has no types
    """A `MilvusClient` that tells whether it was closed, and which `.db` folder it has open."""

    closed = False
    opened: lite.FileId | None = None

    def close(self) -> None:
        self.closed = True
        super().close()


def new_blocking_client(address: Address, timeout: float | None) -> BlockingClient:
    """Connect a sync client. Blocks."""
    lite.check_installed(address)

    async def attempt(seconds: float | None) -> BlockingClient:
        with translated("connect", address):
            lite.forget_removed(address)
            client = BlockingClient(**address.client_arguments(seconds))
            client.opened = lite.open_file(address)
            return client

    connecting = retry_until_deadline(attempt, timeout=connect_timeout(timeout), sleep=block)
    return run_sync(connecting)


def async_arguments(address: Address, timeout: float | None) -> dict[str, Any]:
    arguments = address.client_arguments(timeout)
    # pymilvus' async client takes no alias.
    arguments.pop("alias", None)
    return arguments


def close_from_outside(
    connection: BlockingConnection | LoopConnection, *, wait: bool = False
) -> None:
    """Close a connection from blocking code or from another loop than its own.

    Args:
        connection: The connection.
        wait: Whether to wait, a second at most, for the loop that has to close it.
    """
    if isinstance(connection, BlockingConnection):
        connection.close()
    else:
        _run_on_loop(connection.loop, connection.close, wait=wait)


def _run_on_loop(
    loop: asyncio.AbstractEventLoop, close: Callable[[], Any], *, wait: bool = False
) -> None:
    if loop is running_loop():
        try:
            # Mostly closing does not suspend, and the channel is closed when this returns.
            run_sync(close())
        except RuntimeError:
            # It does while requests are under way, and while pymilvus is connecting.
            _start(loop, close)
        except Exception:
            logger.info("a connection could not be closed", exc_info=True)
        return
    if loop.is_running():
        ended = threading.Event()
        # The loop makes the coroutine, and not this thread: one that ends now would drop it.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_start, loop, close, ended)
            if wait:
                ended.wait(1)
            return
    with suppress(Exception):
        run_sync(close())


def _start(
    loop: asyncio.AbstractEventLoop,
    close: Callable[[], Any],
    ended: threading.Event | None = None,
) -> None:
    """Close in a task; sets `ended` when that is done."""

    def end(task: asyncio.Task[Any]) -> None:
        _closing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.info("a connection could not be closed", exc_info=error)
        if ended is not None:
            ended.set()

    task = loop.create_task(close())
    _closing.add(task)
    task.add_done_callback(end)
