"""Embed the nodes of a collection with another model, into a new collection, while it is served."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
)
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, TextNode

from .._concurrency.drivers import run_on_own_loop
from .._lifecycle import (
    Found,
    check_store,
    collection_of,
    drops_collection,
    expected_layout,
    find_collection,
    have_same_place,
)
from .._operations import Ready
from .._retrieval.values import check_count, check_flag, described
from .._translation.layout import Layout
from .._translation.names import check_new_name
from ..errors import CollectionError, ConfigurationError
from ..store import MilvusVectorStore
from ._aliases import collection_named, point_alias
from ._catching_up import Reembedding, carried_vectors, check_model, embed_nodes, text_of
from ._places import index_settings
from ._progress import ProgressCallback, check_callback
from ._sides import first_nodes, named, no_collection, open_source

#: Nodes that are embedded and written at a time.
DEFAULT_BATCH_SIZE = 256
#: Nodes without a text, after which a collection is taken for one without texts.
_BLANK = 100


@dataclass(frozen=True)
class ReembedReport:
    """What re-embedding a collection has done.

    Attributes:
        collection: The new collection.
        previous: The old one, which is kept until you drop it.
        alias: The alias that points to the new collection now; `None` where none was named.
        embedded: The nodes that this call has embedded and written, those of meanwhile included.
        already_there: The nodes that an earlier call had written.
        removed: The nodes that were deleted from the old collection meanwhile, and so from the new.
        seconds: The time that it took.
    """

    collection: str
    previous: str
    alias: str | None
    embedded: int = 0
    already_there: int = 0
    removed: int = 0
    seconds: float = 0.0


def reembed(
    store: MilvusVectorStore,
    embed_model: BaseEmbedding,
    *,
    into: str | MilvusVectorStore,
    alias: str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    remove_extra: bool = False,
    pause_writers: AbstractContextManager[Any] | None = None,
    on_progress: ProgressCallback | None = None,
) -> ReembedReport:
    """Embed the nodes of a collection with another model, into a new collection. Blocks.

    The old collection is only read, and can be asked and written to all the time. What is added,
    changed or deleted there meanwhile is found by comparing the nodes of both collections, page by
    page, until there is no difference. Then `alias` is switched to the new collection, in one step.
    The old one stays until you drop it.

    Texts are embedded as LlamaIndex does it, metadata included (`MetadataMode.EMBED`), a batch
    while the one before is written. Interrupted at any point and called again with the same
    arguments it goes on: nodes that are there already and have not changed are not embedded again.

    **Questions.** A question that was embedded by the one model must not reach the collection of
    the other one, and an alias does not keep them apart: it may be switched between embedding a
    question and sending it. Have programs ask
    [`current_collection`][llama_index_milvus_async.migration.current_collection] first, and use the
    store and the model of that collection for both. So no question fails, and none meets vectors of
    the other model.

    **Writes.** What is written to the old collection after the last comparison does not reach the
    new one. Pass `pause_writers` for none to be: it is entered before the last comparison, and left
    when the alias is switched.

    Args:
        store: The old collection, by its name or by the alias.
        embed_model: The new model.
        into: The name of the new collection, which is made as the store would make it, with the
            model's dimension and the old one's metric; or a store, for another index, further
            columns or sparse embeddings. A collection that is there already has to be one that an
            earlier call has begun.
        alias: The alias to switch, which points to the old collection, or is not there yet. Without
            one, nothing is switched.
        batch_size: Nodes that are embedded and written at a time.
        remove_extra: Whether nodes of a new collection that is there already, which the old one
            does not have, are deleted. By default they are an error: it may be the wrong
            collection.
        pause_writers: A context manager inside of which nobody writes to the old collection, such
            as a lock that writers hold while they write. For `areembed` an asynchronous one.
        on_progress: What is called with a `Progress` after each batch.

    Returns:
        What was done.

    Raises:
        ConfigurationError: An argument is not allowed, or does not fit the collections: `alias` is
            the name of a collection or points to another one, the new collection has another
            dimension or vectors of another model. Nothing was written.
        CollectionError: There is no old collection, it has no texts, or the new one has nodes that
            the old one does not have. Nothing was written.
        EncoderError: The model did not return an embedding for each text.
        MigrationError: The model raised something, which is its `__cause__`; a node does not fit
            the new collection; or writers were not paused. Call again to go on.
        PartialWriteError: A batch failed after others were written; call again to go on.
        ServerError: Milvus refused or could not be reached; call again to go on.
        Exception: What `on_progress` raised; call again to go on.
    """
    if pause_writers is not None and not hasattr(pause_writers, "__enter__"):
        raise ConfigurationError(
            f"pause_writers is {described(pause_writers)}; it must be a context manager, such as a "
            "threading.Lock; areembed() takes an asynchronous one"
        )
    return run_on_own_loop(
        areembed(
            store,
            embed_model,
            into=into,
            alias=alias,
            batch_size=batch_size,
            remove_extra=remove_extra,
            pause_writers=None if pause_writers is None else _blocking(pause_writers),
            on_progress=on_progress,
        )
    )


@asynccontextmanager
async def _blocking(manager: AbstractContextManager[Any]) -> AsyncIterator[None]:
    """A context manager that may block, on a loop on which nothing else runs."""
    with manager:
        yield


async def areembed(
    store: MilvusVectorStore,
    embed_model: BaseEmbedding,
    *,
    into: str | MilvusVectorStore,
    alias: str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    remove_extra: bool = False,
    pause_writers: AbstractAsyncContextManager[Any] | None = None,
    on_progress: ProgressCallback | None = None,
) -> ReembedReport:
    """Embed the nodes of a collection anew without blocking the event loop; see `reembed`."""
    _check_arguments(embed_model, into, alias, pause_writers)
    check_count("batch_size", batch_size, ConfigurationError)
    check_flag("remove_extra", remove_extra)
    check_callback(on_progress)
    check_store("store", store)
    began = time.perf_counter()
    new_name = into if isinstance(into, str) else into.collection_name
    found = await find_collection(store)
    if found is None:
        raise no_collection(named(store), "store")
    previous = str(found.description.get("collection_name", store.collection_name))
    pointed = None if alias is None else await _points_to(store, into, alias, previous, new_name)
    async with AsyncExitStack() as stack:
        # By its own name: the alias may be switched while it is read.
        source = store.model_copy(update={"collection_name": previous})
        stack.push_async_callback(source.aclose)
        if alias is not None and pointed == new_name:
            # An earlier call has done it all.
            await _check_switched(store, into, embed_model)
            return ReembedReport(new_name, previous, alias, seconds=time.perf_counter() - began)
        await _check_names(store, into, new_name, previous)
        old = await open_source(source, "store")
        [vector] = await embed_nodes(embed_model, [await _node_with_text(source)])
        dim = len(vector)
        target = _target(store, into, old, found, dim)
        if target is not into:
            stack.push_async_callback(target.aclose)
        _check_dimension(expected_layout(target), dim, new_name)
        exists = not drops_collection(target) and await find_collection(target) is not None
        new = await _create(target, dim)
        _check_dimension(new.layout, dim, new_name)
        work = Reembedding(
            source,
            target,
            carried_vectors(old.layout, new.layout, with_sparse=isinstance(into, str)),
            old,
            new,
            embed_model,
            batch_size,
            on_progress,
        )
        if exists:
            await work.check_begun(remove_extra=remove_extra)
        await work.fill()
        await work.catch_up(until=0 if pause_writers is None else batch_size)
        if pause_writers is not None:
            await stack.enter_async_context(pause_writers)
            await work.finish()
        if alias is not None:
            pointed = await _points_to(store, into, alias, previous, new_name)
            if pointed != new_name:
                await point_alias(target, alias, new_name, is_new=pointed is None)
    return ReembedReport(
        new_name,
        previous,
        alias,
        work.embedded,
        work.already_there,
        work.removed,
        time.perf_counter() - began,
    )


def _check_arguments(
    embed_model: object, into: object, alias: object, pause_writers: object
) -> None:
    """Check arguments by themselves.

    Raises:
        ConfigurationError: One is not allowed.
    """
    if not isinstance(embed_model, BaseEmbedding):
        raise ConfigurationError(
            f"embed_model is {described(embed_model)}; it must be an embedding model of LlamaIndex"
        )
    if isinstance(into, MilvusVectorStore):
        if not into.upsert_mode:
            raise ConfigurationError(
                "into is a store with upsert_mode=False, which would keep nodes that change "
                "meanwhile twice; build it with upsert_mode=True"
            )
    elif not isinstance(into, str) or not into:
        raise ConfigurationError(
            f"into is {described(into)}; it must be the name of the new collection, or a "
            "MilvusVectorStore"
        )
    if isinstance(into, str):
        check_new_name("into", into)
    if alias is not None:
        if not isinstance(alias, str):
            raise ConfigurationError(f"alias is {described(alias)}; it must be a name")
        check_new_name("alias", alias)
        if alias == (into if isinstance(into, str) else into.collection_name):
            raise ConfigurationError(
                f"alias={alias!r} is the name of the new collection, and an alias needs a name of "
                "its own; name another one"
            )
    if pause_writers is not None and not hasattr(pause_writers, "__aenter__"):
        raise ConfigurationError(
            f"pause_writers is {described(pause_writers)}; it must be an asynchronous context "
            "manager, such as an asyncio.Lock"
        )


async def _points_to(
    store: MilvusVectorStore,
    into: str | MilvusVectorStore,
    alias: str,
    previous: str,
    new_name: str,
) -> str | None:
    """The collection that an alias points to: the old one, the new one, or `None` without any.

    Raises:
        ConfigurationError: It is not an alias, or points to another collection.
    """
    if isinstance(into, MilvusVectorStore) and not have_same_place(store, into):
        raise ConfigurationError(
            f"alias={alias!r} cannot point from the collection {named(store)} to {named(into)}: an "
            "alias and its collections are in one database of one Milvus. Leave it out, and switch "
            "by the address"
        )
    found = await collection_named(store, alias)
    if found == alias:
        raise ConfigurationError(
            f"alias={alias!r} is the name of a collection, and an alias needs a name of its own. "
            f"Name another one; or give that collection another name first, and its name to an "
            f"alias: client.rename_collection({alias!r}, {alias + '_v1'!r}), then "
            f"client.create_alias({alias + '_v1'!r}, {alias!r})"
        )
    if found not in (None, previous, new_name):
        raise ConfigurationError(
            f"alias={alias!r} points to the collection {found!r}, neither to the old one, "
            f"{previous!r}, nor to the new one, {new_name!r}; name that collection as the old one, "
            "or another alias"
        )
    return found


async def _check_names(
    store: MilvusVectorStore, into: str | MilvusVectorStore, new_name: str, previous: str
) -> None:
    """Check that the new collection is neither the old one nor an alias.

    Raises:
        ConfigurationError: It is.
    """
    place = into if isinstance(into, MilvusVectorStore) else store
    found = await collection_named(place, new_name)
    if found is not None and found != new_name:
        raise ConfigurationError(
            f"into={new_name!r} is an alias of {found!r}; name the new collection itself"
        )
    if new_name == previous and have_same_place(store, place):
        raise ConfigurationError(
            f"into={new_name!r} is the old collection; name another one, which is made"
        )


def _target(
    store: MilvusVectorStore,
    into: str | MilvusVectorStore,
    old: Ready,
    found: Found,
    dim: int,
) -> MilvusVectorStore:
    """The store of the new collection."""
    if isinstance(into, MilvusVectorStore):
        return into
    field = old.layout.embedding_field
    if field is None or not store.enable_dense:
        raise ConfigurationError(
            f"into={into!r}: the old store has no embedding_field, whose dimension the new "
            "collection could change; pass a store as into"
        )
    update: dict[str, Any] = {"collection_name": into, "dim": dim, "upsert_mode": True}
    if not store.index_config:
        update["index_config"] = index_settings(found.indexes.get(field))
    elif store.similarity_metric is None and "metric_type" not in store.index_config:
        update["similarity_metric"] = old.indexes[field].metric or None
    return store.model_copy(update=update)


async def _create(target: MilvusVectorStore, dim: int) -> Ready:
    """Set the new collection up, which is made where it is missing."""
    if drops_collection(target):
        await target.aconnect()
    if target.enable_dense and target.dim is None and await find_collection(target) is None:
        async with target.model_copy(update={"dim": dim}):
            pass  # once connected, it has created the collection
    return await collection_of(target)


async def _check_switched(
    store: MilvusVectorStore, into: str | MilvusVectorStore, embed_model: BaseEmbedding
) -> None:
    """Check that a collection to which the alias points already is what was asked for.

    Raises:
        ConfigurationError: Its vectors are those of another model.
    """
    if isinstance(into, MilvusVectorStore):
        await check_model(into, embed_model)
        return
    update = {"collection_name": into, "dim": None, "similarity_metric": None}
    async with store.model_copy(update=update) as switched:
        await check_model(switched, embed_model)


def _check_dimension(layout: Layout, dim: int, name: str) -> None:
    """Check that the new collection takes the vectors of the model.

    Raises:
        ConfigurationError: It does not.
    """
    field = layout.embedding_field
    if field is None:
        raise ConfigurationError(
            f"into={name!r} has no dense embeddings (enable_dense=False); pass a store that has"
        )
    found = layout.dense_column(field).dim
    if found not in (None, dim):
        raise ConfigurationError(
            f"into={name!r} has {found} dimensions in {field!r}, and embed_model makes {dim}; name "
            "another collection, or pass a store with the dim of the model"
        )


async def _node_with_text(source: MilvusVectorStore) -> BaseNode:
    """A node of the old collection that has a text; some other one where it is empty.

    Raises:
        CollectionError: It has no texts.
    """
    nodes = await first_nodes(source, _BLANK)
    for node in nodes:
        if text_of(node).strip():
            return node
    if nodes:
        raise CollectionError(
            f"the collection {named(source)} has no texts to embed: those of its first "
            f"{len(nodes)} nodes are empty; text_key={source.text_key!r} has to be the field of "
            "the texts"
        )
    return TextNode(text="text")
