"""What operations see of Milvus: a `Backend` with one coroutine method for each request.

It decides on further attempts and on what shares an RPC. The coroutines of the blocking side never
suspend, so that `run_sync` can drive them.
"""

from __future__ import annotations

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
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

from pymilvus import CollectionSchema

from .._concurrency.backoff import pause_after
from .._concurrency.once import Once
from .._rpc import DeleteDocuments, GetByIds, Hits, HybridSearch, Insert, Query, Row, Search
from .._wire.responses import ResponseRows
from .._wire.status import is_unknown_request
from ..errors import ServerError, store_closed
from . import lite
from .retries import retry_until_deadline, time_left
from .rpcs import load_options, loaded, send_delete, send_insert, send_query
from .transport import Left, Transport

T = TypeVar("T")
Item = TypeVar("Item")
Later = TypeVar("Later", covariant=True)


class Encoder(Protocol):
    """Encodes texts as sparse vectors."""

    def encode(self, texts: Sequence[str], *, queries: bool) -> list[Any]:
        """Encode texts. Blocks."""
        ...

    async def aencode(self, texts: Sequence[str], *, queries: bool) -> list[Any]:
        """Encode texts without blocking the event loop."""
        ...


class Begun(Awaitable[Later], Protocol[Later]):
    """A coroutine that was begun."""

    def cancel(self) -> object:
        """Give it up; nobody awaits it then."""
        ...


class Backend(ABC):
    """The requests that operations make, each as a coroutine method.

    `timeout` is seconds for the request, further attempts included; `None` for the store's own.

    Raises:
        ServerError: From every request, or one of its subclasses; never pymilvus' or gRPC's own.

    Args:
        transport: Sends one attempt.
        timeout: The store's own seconds for each request, `None` for no deadline.
        flush_soon: Has a collection of Milvus Lite flushed in the background.
    """

    def __init__(
        self,
        transport: Transport,
        timeout: float | None,
        flush_soon: Callable[[str], object],
    ) -> None:
        self._transport = transport
        self._timeout = timeout
        self._flush_soon = flush_soon
        #: Whether the store was closed; others may go on using the transport.
        self.closed = False

    def _check_open(self) -> None:
        """Refuse to send anything once the store is closed.

        Raises:
            StoreClosedError: It is.
        """
        if self.closed:
            raise store_closed()

    def _seconds(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout

    # Definition of collections, through pymilvus' public methods.

    async def _call(
        self,
        method: str,
        collection_name: str = "",
        *args: Any,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call a public method of pymilvus' client, which must do no harm when repeated."""

        async def attempt(seconds: float | None) -> Any:
            self._check_open()
            left = time_left(seconds)
            return await self._transport.call(method, collection_name, *args, left=left, **kwargs)

        timeout = self._seconds(timeout)
        await self._transport.connect(timeout)
        return await retry_until_deadline(attempt, timeout=timeout, sleep=self._transport.sleep)

    async def server_version(self) -> str:
        """The version that the server tells; Milvus Lite 2 does not know the question."""
        try:
            return str(await self._call("get_server_version"))
        except ServerError as error:
            if not is_unknown_request(error):
                raise
            return f"milvus_lite-{lite.version_2(self._transport.address)}"

    @property
    def database(self) -> str:
        """The database, empty for the default one."""
        return self._transport.address.database

    async def describe_collection(
        self, name: str, timeout: float | None = None
    ) -> Mapping[str, Any] | None:
        """The description of a collection or of an alias' collection; `None` without one."""
        if not await self._call("has_collection", name, timeout=timeout):
            return None
        description: Mapping[str, Any] = await self._call(
            "describe_collection", name, timeout=timeout
        )
        return description

    async def has_partition(self, name: str, partition_name: str, timeout: float | None) -> bool:
        """Whether a collection has a partition."""
        return bool(await self._call("has_partition", name, partition_name, timeout=timeout))

    async def knows_partition(self, name: str, partition_name: str, timeout: float | None) -> bool:
        """Whether a collection had a partition when the process last asked."""
        known = self._transport.session.memory(name).partitions
        if partition_name not in known and await self.has_partition(name, partition_name, timeout):
            known.add(partition_name)
        return partition_name in known

    async def partition_names(self, name: str, timeout: float | None) -> list[str]:
        """The partitions of a collection."""
        return list(await self._call("list_partitions", name, timeout=timeout))

    async def create_collection(
        self, name: str, schema: CollectionSchema, options: Mapping[str, Any]
    ) -> None:
        """Create a collection without an index.

        Args:
            name: Its name.
            schema: Its schema.
            options: Further arguments of pymilvus' `create_collection`.

        Raises:
            CollectionError: A crash of Milvus Lite has left what it will not make anew.
        """
        lite.refuse_unfinished(self._transport.address, name)
        await self._call("create_collection", name, schema=schema, **options)

    async def drop_collection(self, name: str) -> None:
        """Drop a collection."""
        await self._call("drop_collection", name)

    async def create_alias(self, name: str, alias: str) -> None:
        """Make an alias of a collection."""
        await self._call("create_alias", name, alias)

    async def alter_alias(self, name: str, alias: str) -> None:
        """Have an alias point to a collection, in one step."""
        await self._call("alter_alias", name, alias)

    def warn_of_ignored_login(self) -> None:
        """Say once that the engine heeds no token and no password, where there is one."""
        lite.warn_of_login(self._transport.address)

    def remove_unfinished_collection(self, name: str) -> None:
        """Remove what a crash of Milvus Lite has left of a collection that has no description."""
        lite.remove_unfinished(self._transport.address, name)

    async def alter_properties(self, name: str, properties: Mapping[str, Any]) -> None:
        """Set properties of a collection."""
        await self._call("alter_collection_properties", name, properties=dict(properties))

    async def describe_index(self, name: str, field_name: str) -> Mapping[str, Any] | None:
        """The index of a column, or `None`."""
        names = await self._call("list_indexes", name, field_name=field_name)
        if not names:
            return None
        index: Mapping[str, Any] = await self._call("describe_index", name, index_name=names[0])
        return index

    async def describe_indexes(self, name: str) -> list[Mapping[str, Any]]:
        """The indexes of a collection, those of paths in JSON among them."""
        names = await self._call("list_indexes", name)
        return [await self._call("describe_index", name, index_name=one) for one in names]

    async def create_index(self, name: str, index_params: Any, *, wait: bool) -> None:
        """Create an index, and wait until it is built where `wait` says so."""
        await self._call("create_index", name, index_params, sync=wait)

    async def is_loaded(self, name: str) -> bool:
        """Whether a collection can be searched."""
        return await self._load_state(name) == "Loaded"

    async def becomes_loaded(self, name: str) -> bool:
        """Whether a collection can be searched, where it is being loaded when that has ended."""
        left, looks = time_left(self._timeout), 0
        while (state := await self._load_state(name)) == "Loading":
            looks += 1
            pause, seconds = pause_after(looks), left()
            if seconds is not None and pause >= seconds:
                return False
            await self._transport.sleep(pause)
        return state == "Loaded"

    async def _load_state(self, name: str) -> str:
        state = await self._call("get_load_state", name)
        return str(getattr(state["state"], "name", state["state"]))

    async def load_collection(self, name: str, timeout: float | None = None) -> None:
        """Load a collection and wait until it can be searched."""
        options = load_options(self._transport, name)
        await self._call("load_collection", name, timeout=timeout, **options)

    def note_replicas(self, name: str, replica_number: int | None) -> None:
        """Tell how many copies of a collection to load, also where it is loaded again."""
        if replica_number is not None:
            self._transport.session.memory(name).replica_number = replica_number

    async def count_replicas(self, name: str) -> int:
        """How many copies of a loaded collection there are."""
        return len(await self._call("describe_replica", name))

    async def release_collection(self, name: str) -> None:
        """Release a collection from memory."""
        await self._call("release_collection", name)

    async def flush(self, name: str, timeout: float | None = None) -> None:
        """Seal what was written so far."""
        self._transport.session.memory(name).unflushed.begin_flush()
        await self._call("flush", name, timeout=timeout)

    def note_collection(self, name: str, real_name: str, *, locks: bool) -> None:
        """Tell what a collection is really called, and whether its users need locks."""
        self._transport.session.note_collection(name, real_name, locks=locks)

    def count_writes(self, name: str) -> int:
        """How many writes to a collection this process has had acknowledged."""
        return self._transport.session.memory(name).writes

    def note_unflushed_rows(self, name: str, count: int) -> None:
        """Tell that rows were written to Milvus Lite, which searches unflushed ones slowly."""
        if self._transport.session.memory(name).unflushed.wrote(count):
            self._flush_soon(name)

    def note_search(self, name: str) -> None:
        """Tell that a collection of Milvus Lite is searched."""
        if self._transport.session.memory(name).unflushed.searched():
            self._flush_soon(name)

    # Data, through the wire.

    @abstractmethod
    async def insert(
        self, request: Insert, rows: Sequence[Row], size: int, timeout: float | None
    ) -> None:
        """Insert or upsert rows of `size` bytes, as estimated."""

    @abstractmethod
    async def search(
        self, request: Search, data: Sequence[Any], timeout: float | None
    ) -> Sequence[Hits]:
        """Search a vector column; the hits of each of the data."""

    @abstractmethod
    async def hybrid_search(
        self, request: HybridSearch, data: Sequence[tuple[Any, ...]], timeout: float | None
    ) -> Sequence[Hits]:
        """Search several vector columns; the fused hits of each tuple of data."""

    @abstractmethod
    async def get_by_ids(
        self, request: GetByIds, ids: Sequence[str], timeout: float | None
    ) -> list[Row]:
        """Read rows by primary key, in any order."""

    @abstractmethod
    async def delete_documents(
        self, request: DeleteDocuments, doc_ids: Sequence[str], timeout: float | None
    ) -> None:
        """Delete the rows of documents."""

    async def _repeat(
        self,
        collection_name: str,
        send: Callable[[Left], Awaitable[T]],
        timeout: float | None,
        *,
        repeatable: bool = True,
    ) -> T:
        """Make attempts of a data request, each of which has the collection loaded if need be."""

        async def attempt(seconds: float | None) -> T:
            self._check_open()
            left = time_left(seconds)
            return await loaded(self._transport, collection_name, lambda: send(left), left)

        timeout = self._seconds(timeout)
        await self._transport.connect(timeout)
        return await retry_until_deadline(
            attempt,
            timeout=timeout,
            repeatable=repeatable,
            sleep=self._transport.sleep,
        )

    async def query(self, request: Query, timeout: float | None) -> ResponseRows:
        """Read the rows that an expression matches."""
        send = partial(send_query, self._transport, request)
        return await self._repeat(request.collection_name, send, timeout)

    async def delete(
        self,
        collection_name: str,
        expression: str,
        *,
        partition_name: str | None,
        timeout: float | None,
    ) -> None:
        """Delete the rows that an expression matches."""
        send = partial(send_delete, self._transport, collection_name, expression, partition_name)
        await self._repeat(collection_name, send, timeout)

    @asynccontextmanager
    async def rewriting(self, collection_name: str, timeout: float | None) -> AsyncIterator[None]:
        """Keep all other writes of this process away from a collection; see `rewrite`."""
        self._check_open()
        left = time_left(self._seconds(timeout))
        async with self._transport.rewriting(collection_name, left):
            yield

    async def rewrite(self, request: Insert, rows: Sequence[Row], timeout: float | None) -> None:
        """Write rows that were read inside of `rewriting`.

        In RPCs of their own: what they would share one with waits for them.
        """
        send = partial(send_insert, self._transport, request, rows)
        await self._repeat(
            request.collection_name, lambda left: send(left, rewriting=True), timeout
        )

    # Work that is not Milvus'.

    @abstractmethod
    async def encode(self, encoder: Encoder, texts: Sequence[str], *, queries: bool) -> list[Any]:
        """Encode texts as sparse vectors.

        Raises:
            EncoderError: The encoder returned something else than a list of vectors.
            Exception: What the encoder raised.
        """

    @abstractmethod
    async def once(self, once: Once[T]) -> T:
        """Return what `once` makes."""

    @abstractmethod
    def begin(self, coroutine: Coroutine[Any, Any, T]) -> Begun[T]:
        """Begin a coroutine whose result is needed later.

        On an event loop it runs on meanwhile; a blocking call runs it where it is awaited.
        """

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
    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a long computation without holding the event loop."""

    @abstractmethod
    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that a user has passed; it may block, or be a coroutine function."""
