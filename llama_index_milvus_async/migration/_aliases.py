"""Which collection a name means, and what an alias points to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .._concurrency.drivers import run_sync
from .._lifecycle import blocking_backend, check_store
from .._transport.backend import Backend
from ..errors import CollectionError
from ..store import MilvusVectorStore
from ._sides import named

T = TypeVar("T")


def current_collection(store: MilvusVectorStore) -> str:
    """The collection that a store's `collection_name` means now. Blocks.

    An alias may point to another collection at any moment, and a vector of one embedding model
    means nothing to the collection of another one. So a program that has to go on while an alias is
    switched asks this *before* it embeds, and sends question and vector to the collection of that
    name, never to the alias.

    The store is not connected by this: nothing is created, dropped or loaded.

    Args:
        store: A store whose `collection_name` is an alias, or a collection.

    Returns:
        The collection's own name.

    Raises:
        CollectionError: There is neither an alias nor a collection of that name.
        ServerError: Milvus refused or could not be reached.
    """
    check_store("store", store)
    return _found(store, _collection_named(store, store.collection_name))


async def acurrent_collection(store: MilvusVectorStore) -> str:
    """Which collection a name means, without blocking the event loop; see `current_collection`."""
    check_store("store", store)
    return _found(store, await collection_named(store, store.collection_name))


def _found(store: MilvusVectorStore, name: str | None) -> str:
    if name is None:
        raise CollectionError(f"there is neither a collection nor an alias {named(store)}")
    return name


async def collection_named(store: MilvusVectorStore, name: str) -> str | None:
    """The collection of a name, or that an alias of the name points to; `None` without one."""
    return await asyncio.to_thread(_collection_named, store, name)


def _collection_named(store: MilvusVectorStore, name: str) -> str | None:
    async def ask(backend: Backend) -> str | None:
        description = await backend.describe_collection(name)
        return None if description is None else str(description.get("collection_name", name))

    return _run(store, ask)


async def point_alias(store: MilvusVectorStore, alias: str, name: str, *, is_new: bool) -> None:
    """Have an alias point to a collection from now on, in one step.

    Args:
        store: Where both are.
        alias: The alias.
        name: The collection.
        is_new: Whether the alias has to be made.
    """

    async def change(backend: Backend) -> None:
        if is_new:
            await backend.create_alias(name, alias)
        else:
            await backend.alter_alias(name, alias)

    await asyncio.to_thread(_run, store, change)


def _run(store: MilvusVectorStore, ask: Callable[[Backend], Coroutine[Any, Any, T]]) -> T:
    with blocking_backend(store) as backend:
        return run_sync(ask(backend))
