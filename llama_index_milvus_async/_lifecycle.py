"""A store's connections: made at the first use, closed once, and what runs over them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from pymilvus import AsyncMilvusClient, CollectionSchema, MilvusClient

from ._arguments import StoreArguments
from ._concurrency.drivers import run_sync
from ._concurrency.once import Once
from ._observability import is_observed, observing
from ._operations import (
    Context,
    FirstNodes,
    Missing,
    Overwrite,
    Ready,
    collection_gone,
    index_params_of_new,
    schema_of_new,
    set_up,
)
from ._retrieval.values import described
from ._translation.engine import Engine
from ._translation.layout import Column, Layout
from ._translation.settings import CollectionSettings
from ._transport.asynchronous import Sharing
from ._transport.backend import Backend
from ._transport.connections import Connections
from ._transport.lite import open_lock
from ._wire.address import Address
from .errors import ConfigurationError
from .stats import KindStats

P = ParamSpec("P")
T = TypeVar("T")
Self = TypeVar("Self", bound="ConnectedStore")


class ConnectedStore(StoreArguments):
    """A store that connects when it is first used, for any number of event loops and threads.

    Args:
        **arguments: Those of `StoreArguments`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # Now, so that threads which use the store first at the same time share them, and that what
        # other stores write from now on is not taken for what overwrite is to drop.
        self._ready, self._overwrite, self._first  # noqa: B018

    # Cached properties as in `StoreArguments`: they are read by every operation.

    @cached_property
    def _connections(self) -> Connections:
        return Connections(
            Address(self.uri, self.token, self.password, self.client_options),
            self.timeout,
            Sharing(self.collection_name, self.max_in_flight, self.batch_size, self.coalesce),
        )

    @cached_property
    def _ready(self) -> Once[Ready | Missing]:
        # That there is no collection is not remembered: anyone may make it.
        return self._connections.once(self._set_up, lambda found: isinstance(found, Ready))

    @cached_property
    def _first(self) -> FirstNodes:
        return FirstNodes()

    @cached_property
    def _overwrite(self) -> Overwrite:
        if not self.overwrite:
            return Overwrite(pending=False)
        return Overwrite(True, self._connections.memory(self.collection_name).writes)

    def _set_up(self) -> Ready | Missing:
        connections = self._connections
        with open_lock(connections.address):
            return run_sync(
                set_up(connections.blocking(), self._settings(), self._overwrite, self._first)
            )

    @property
    def client(self) -> MilvusClient:
        """A connected pymilvus `MilvusClient`; initializes the store. Blocks.

        What is called on it raises pymilvus's exceptions.

        Raises:
            MilvusVectorStoreError: As `connect` does.
        """
        self._ready.get()
        return self._connections.client()

    @property
    def aclient(self) -> AsyncMilvusClient:
        """The pymilvus `AsyncMilvusClient` of the running event loop.

        Its first call initializes the store and connects, once for concurrent ones, and may raise
        what `connect` does; otherwise calls raise pymilvus's exceptions. Does not block, except
        where it starts Milvus Lite (half a second). After `aconnect()` all of this has happened.

        Raises:
            ConfigurationError: No event loop is running, or `use_async_client` is `False`.
            LiteFileError: Milvus Lite cannot open the path.
            StoreClosedError: The store is closed.
        """
        if not self.use_async_client:
            raise ConfigurationError(
                "aclient is not available, because the store was built with "
                "use_async_client=False; use `client`"
            )
        try:
            return self._connections.async_client()
        except RuntimeError as error:
            raise ConfigurationError(
                "aclient belongs to an event loop, and none is running here; use it inside a "
                "coroutine, or use `client`"
            ) from error

    def schema(self) -> CollectionSchema:  # type: ignore[override]
        """The schema of the collection as the store would create it, for `MilvusClient`. Blocks.

        Creates nothing; asks Milvus for its version only.

        Raises:
            ConfigurationError: The collection could not be created: `dim` is missing, or Milvus is
                too old for what the arguments ask.
            MilvusVectorStoreError: As `connect` does.
        """
        return self._of_new(schema_of_new)

    def index_params(self) -> Any:
        """The indexes as the store would create them, for `MilvusClient`. Blocks; see `schema`."""
        return self._of_new(index_params_of_new)

    def _of_new(
        self, describe: Callable[[Backend, CollectionSettings], Coroutine[Any, Any, T]]
    ) -> T:
        connections = self._connections
        connections.check_open()
        with open_lock(connections.address):
            return run_sync(describe(connections.blocking(), self._settings()))

    def connect(self: Self) -> Self:
        """Initialize the store now rather than at the first operation. Blocks.

        Once it is ready, this does nothing. Where there is no collection, and no `dim`, the store
        connects, and the first nodes make the collection.

        Raises:
            ConfigurationError: `overwrite` names an alias, or another store of this process has
                written what it would drop, Milvus is too old for what the arguments ask, or the
                URI or a certificate cannot be used.
            CollectionError: The existing collection does not fit the arguments.
            LiteNotInstalledError: The URI is a `.db` path, and Milvus Lite is not installed.
            LiteFileError: Milvus Lite cannot open the path.
            UnreachableError: Nobody answers at the address; `CertificateError` where the server's
                certificate is not trusted.
            AuthenticationError: Token or password are wrong; `PermissionDeniedError` where a
                privilege is missing.
            RequestTimeoutError: Milvus did not answer in time.
            ServerError: Milvus refused.
            StoreClosedError: The store is closed.
        """
        self._connections.check_open()
        self._ready.get()
        return self

    async def aconnect(self: Self) -> Self:
        """Initialize the store and connect on the running loop, without blocking it.

        Raises:
            MilvusVectorStoreError: As `connect` does.
        """
        self._connections.check_open()
        await self._ready.aget()
        if self.use_async_client:
            await self._connections.connect()
        return self

    def refresh(self) -> None:
        """Set the collection up again, as the first operation did. Blocks.

        What the store remembers of a collection may become wrong where it is dropped and made
        again, or altered, elsewhere. An operation that is refused for that notices by itself;
        call this where the collection is gone and has to be created again, or where nothing is
        refused: another metric, other indexes.

        Raises:
            MilvusVectorStoreError: As `connect` does.
        """
        self._connections.check_open()
        self._ready.forget()
        self._ready.get()

    async def arefresh(self) -> None:
        """Set the collection up again without blocking the event loop; see `refresh`.

        Raises:
            MilvusVectorStoreError: As `connect` does.
        """
        self._connections.check_open()
        self._ready.forget()
        await self._ready.aget()

    def close(self) -> None:
        """Close all connections; the store cannot be used again. Closing twice is allowed.

        Blocks where a thread is just connecting, until it has (10 seconds at most). Clients of
        event loops that run in other threads are closed by their loops, soon after this returns.

        Stores share connections, and the last one that uses a connection closes it. Then calls
        under way end at once: in `StoreClosedError` where they have done nothing. A write that was
        sent may be carried out, and ends as if its connection was lost: in
        `WriteOutcomeUnknownError` where it must not be repeated, otherwise in `UnreachableError`.
        Where others use the connection, what this store has sent is carried out, and nothing
        more is sent. An `add` that was written in part ends in `PartialWriteError`.
        """
        self._connections.close()

    async def aclose(self) -> None:
        """Close all connections without blocking the event loop; see `close`.

        The client of the running loop is closed when this returns.
        """
        await self._connections.aclose()

    def __enter__(self: Self) -> Self:
        """Initialize the store; see `connect`."""
        return self.connect()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self: Self) -> Self:
        """Initialize the store; see `aconnect`."""
        return await self.aconnect()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def stats(self) -> dict[str, KindStats]:
        """Counts of the async calls since the store was built, by kind of request.

        Kinds are `"insert"` (upserts included), `"search"`, `"hybrid"`, `"get"` (by ids),
        `"delete"` (of documents) and `"encode"` (texts to sparse embeddings; its RPCs are calls
        of the encoder). `calls` is what was asked, `rpcs` what was sent; see
        [`KindStats`][llama_index_milvus_async.KindStats]. Does not block.
        """
        return self._connections.stats()

    def _block(
        self,
        name: str,
        operation: Callable[Concatenate[Context, P], Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run an operation over the sync client; the first argument is what it is about."""
        if is_observed():
            with observing(self, name, self.collection_name, args[0]) as outcome:
                outcome.result = result = self._run(operation, *args, **kwargs)
                return result
        return self._run(operation, *args, **kwargs)

    def _run(
        self,
        operation: Callable[Concatenate[Context, P], Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        context = self._context(self._connections.blocking())
        return run_sync(operation(context, *args, **kwargs))

    def _await(
        self,
        name: str,
        operation: Callable[Concatenate[Context, P], Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Awaitable[T]:
        """Run an operation on the running event loop, as `_block` does.

        Await it at once. It is not a coroutine function itself: thousands of calls may wait at the
        same time, and each coroutine on the way is one more object for the garbage collector.
        """
        if is_observed():
            return self._await_observed(name, operation, *args, **kwargs)
        return self._arun(operation, *args, **kwargs)

    async def _await_observed(
        self,
        name: str,
        operation: Callable[Concatenate[Context, P], Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        with observing(self, name, self.collection_name, args[0]) as outcome:
            outcome.result = result = await self._arun(operation, *args, **kwargs)
            return result

    def _arun(
        self,
        operation: Callable[Concatenate[Context, P], Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Awaitable[T]:
        if not self.use_async_client:
            return asyncio.to_thread(lambda: self._run(operation, *args, **kwargs))
        return operation(self._context(self._connections.of_running_loop()), *args, **kwargs)

    def _context(self, backend: Backend) -> Context:
        return Context(
            backend,
            self._ready,
            upsert=self.upsert_mode,
            batch_size=self.batch_size,
            encoder=self._encoder,
            options=self._defaults,
            first=self._first,
        )


# What the parts that work with stores ask of them beside what users do.


def check_store(argument: str, store: object) -> None:
    """Check that an argument is a store.

    Raises:
        ConfigurationError: It is not.
    """
    if not isinstance(store, ConnectedStore):
        raise ConfigurationError(
            f"{argument} is {described(store)}; it must be a MilvusVectorStore"
        )


async def collection_of(store: ConnectedStore) -> Ready:
    """What initializing a store has found out of its collection; does so where it is still to be.

    Raises:
        CollectionError: There is none, and no dimension to create it with.
        MilvusVectorStoreError: As `connect` does.
    """
    await store.aconnect()
    found = await store._ready.aget()  # noqa: SLF001
    if not isinstance(found, Ready):
        raise collection_gone(store.collection_name)
    return found


@dataclass(frozen=True)
class Found:
    """A collection as Milvus describes it.

    Attributes:
        description: What pymilvus' `describe_collection` returned.
        indexes: What it returned for the index of each column that has one.
        path_indexes: What it returned for each index of a path in the dynamic field or in a column.
    """

    description: Mapping[str, Any]
    indexes: Mapping[str, Mapping[str, Any]]
    path_indexes: Sequence[Mapping[str, Any]] = ()

    @property
    def fields(self) -> Sequence[Mapping[str, Any]]:
        """Its columns."""
        fields: Sequence[Mapping[str, Any]] = self.description["fields"]
        return fields


async def find_collection(store: ConnectedStore) -> Found | None:
    """Look at a store's collection without initializing the store; `None` where there is none.

    Raises:
        MilvusVectorStoreError: As `connect` does.
    """
    connections = store._connections  # noqa: SLF001
    connections.check_open()
    address, name = connections.address, store.collection_name

    async def look(backend: Backend) -> Found | None:
        description = await backend.describe_collection(name)
        if description is None:
            return None
        indexes = await backend.describe_indexes(name)
        of_columns = {one["field_name"]: one for one in indexes if "json_path" not in one}
        of_paths = [one for one in indexes if "json_path" in one]
        return Found(description, of_columns, of_paths)

    def run() -> Found | None:
        if address.is_lite and not os.path.exists(address.place):
            return None  # Milvus Lite would make an empty database
        with blocking_backend(store) as backend:
            return run_sync(look(backend))

    return await asyncio.to_thread(run)


def drops_collection(store: ConnectedStore) -> bool:
    """Whether initializing the store, which is still to be, drops its collection first."""
    return store._overwrite.pending  # noqa: SLF001


def have_same_collection(one: ConnectedStore, other: ConnectedStore) -> bool:
    """Whether two initialized stores have the same collection, by whatever name."""
    first, second = (
        store._connections.memory(store.collection_name)  # noqa: SLF001
        for store in (one, other)
    )
    return first is second


def expected_layout(store: ConnectedStore) -> Layout:
    """The columns that play a part for LlamaIndex, of a collection that is still to be made."""
    settings = store._settings()  # noqa: SLF001
    return Layout(
        collection_name=settings.collection_name,
        columns={
            field.name: Column(
                field.name, field.type, dim=field.dim, generated=field.function is not None
            )
            for field in settings.vectors
        },
        primary_key=settings.id_field,
        auto_id=False,
        doc_id_field=settings.doc_id_field,
        text_key=settings.text_key,
        dense_fields=tuple(field.name for field in settings.dense),
        sparse_field=settings.sparse.name if settings.sparse else None,
        dynamic=True,
        engine=Engine.parse(""),  # which nobody asks here
    )


def have_same_place(one: ConnectedStore, other: ConnectedStore) -> bool:
    """Whether two stores have the same database of the same Milvus."""
    first, second = (store._connections.address for store in (one, other))  # noqa: SLF001
    return (first.place, first.database) == (second.place, second.database)


@contextmanager
def blocking_backend(store: ConnectedStore) -> Iterator[Backend]:
    """What a store's requests go through, without connecting the store. Blocks."""
    connections = store._connections  # noqa: SLF001
    connections.check_open()
    with open_lock(connections.address):
        yield connections.blocking()


def changes_of_file(store: ConnectedStore) -> tuple[int, float] | None:
    """What becomes another value with each change of a collection; `None` where nobody knows.

    It is known of a file of Milvus Lite, which only this process can have open.
    """
    connections = store._connections  # noqa: SLF001
    if not connections.address.is_lite:
        return None
    memory = connections.memory(store.collection_name)
    return memory.writes, memory.deleted_at
