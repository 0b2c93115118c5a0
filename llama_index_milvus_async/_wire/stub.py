"""The data RPCs of a pymilvus client, sent over the client's own channel.

This is the only file that uses private names of pymilvus. Two are needed: the handler of a client
(`_get_connection`) and the handler's stub (`_stub`, `_async_stub`). Of a third one
(`_on_rpc_error`), the fail-over of global clusters is lost where it is missing, and nothing else.

Login, TLS, keep-alive and the client's identifier are in the channel and its interceptors. The
database is not, and has to be sent with each call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import pymilvus
from pymilvus import AsyncMilvusClient, MilvusClient

from ..errors import PymilvusNotSupportedError
from .address import Address

try:
    from pymilvus.client.ts_utils import get_collection_ts
except ImportError:  # only what `last_write` is for is lost
    get_collection_ts = None

#: The RPCs that the store sends itself, as `milvus.proto` has them.
RPCS = ("Insert", "Upsert", "Delete", "Search", "HybridSearch", "Query")


class Stub:
    """The data RPCs of one client.

    Args:
        handler: pymilvus' handler of the client. It may connect anew and change its stub.
        attribute: The name of the stub.
        address: Where the client is connected to.

    Raises:
        PymilvusNotSupportedError: The handler has no such stub.
    """

    def __init__(self, handler: Any, attribute: str, address: Address) -> None:
        self._handler = handler
        self._attribute = attribute
        self._database = ("dbname", address.database)
        # Of other connections gRPC takes care itself, and without cutting other requests.
        self._is_global_cluster = address.is_global_cluster
        stub = getattr(handler, attribute, None)
        missing = [rpc for rpc in RPCS if not callable(getattr(stub, rpc, None))]
        if missing:
            raise _not_supported(f"{type(handler).__name__}.{attribute}", missing)

    def send(self, rpc: str, message: Any, timeout: float | None) -> Any:
        """Make one attempt: returns the response, or an awaitable of it."""
        metadata = (
            self._database,
            # When the client sent the request, in milliseconds: the server's access log shows it.
            ("client-request-unixmsec", str(time.time_ns() // 1_000_000)),
        )
        call = getattr(getattr(self._handler, self._attribute), rpc)
        return call(message, timeout=timeout, metadata=metadata)

    def recover(self, error: Exception) -> Any:
        """Have pymilvus look for another address after an error, where it knows of several.

        pymilvus calls this in its retry loop, which requests on the stub do not pass.

        Returns:
            Whether it has connected to another one, or an awaitable of that.
        """
        return self._handler._on_rpc_error(error)

    @property
    def can_recover(self) -> bool:
        """Whether pymilvus may know of another address."""
        return self._is_global_cluster and hasattr(self._handler, "_on_rpc_error")


def last_write(endpoint: str, database: str, collection_name: str) -> int:
    """The timestamp of the last write of pymilvus' own clients in this process, 0 without one.

    pymilvus keeps it, so that reads with the level "Session" see what `store.client` has written.
    """
    if get_collection_ts is None:
        return 0
    return int(get_collection_ts(collection_name, endpoint, database) or 0)


class ConnectedClient(AsyncMilvusClient):  # type: ignore[misc] # pymilvus has no types
    """An `AsyncMilvusClient` over a connection that is made elsewhere.

    All methods of pymilvus' client get their connection by `_get_connection`.

    Args:
        connect: Connects and returns the handler.
        **arguments: pymilvus' own.
    """

    #: Whether it was closed; users may close what `store.aclient` gives them.
    closed = False

    def __init__(self, connect: Callable[[], Any], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._connect_elsewhere = connect

    async def _get_connection(self) -> Any:
        if self.closed:
            return await super()._get_connection()
        return await self._connect_elsewhere()

    async def __aenter__(self) -> ConnectedClient:
        await self._get_connection()
        return self

    async def close(self) -> None:
        """Stop using the connection, which others may go on using."""
        self.closed = True
        await super().close()


async def async_handler(client: AsyncMilvusClient) -> Any:
    """The handler of an async client, which is connected where it is not yet."""
    return await _connection_of(client)()


def async_stub(handler: Any, address: Address) -> Stub:
    """The data RPCs of an async client's handler, as coroutines."""
    return Stub(handler, "_async_stub", address)


def blocking_stub(client: MilvusClient, address: Address) -> Stub:
    """The data RPCs of a sync client."""
    return Stub(_connection_of(client)(), "_stub", address)


def _connection_of(client: Any) -> Callable[[], Any]:
    method: Callable[[], Any] | None = getattr(client, "_get_connection", None)
    if method is None:
        raise _not_supported(type(client).__name__, ["_get_connection"])
    return method


def _not_supported(where: str, missing: Iterable[str]) -> PymilvusNotSupportedError:
    return PymilvusNotSupportedError(
        f"the installed pymilvus {pymilvus.__version__} is not supported: {where} has no "
        f"{', '.join(missing)}, by which requests are sent. Install a version that is: "
        'pip install "pymilvus>=2.6.16,<3.1"'
    )
