"""The two collections of a move: what each has to be, and what both have in common."""

from __future__ import annotations

from dataclasses import dataclass

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import MetadataFilters

from .._lifecycle import (
    check_store,
    collection_of,
    drops_collection,
    find_collection,
    have_same_collection,
)
from .._operations import Ready
from ..errors import CollectionError, ConfigurationError
from ..store import MilvusVectorStore

#: Reads that decide what is to be done see everything that was written before.
STRONG = "Strong"


def named(store: MilvusVectorStore) -> str:
    """A collection as messages name it: where it is, and its name."""
    return f"{store.collection_name!r} at {store.uri}"


def no_collection(shown: str, argument: str = "") -> CollectionError:
    """The error of a collection that has to be there and is not.

    Args:
        shown: The collection, as `named` shows it.
        argument: The argument that names it, if one does.
    """
    prefix = f"{argument}: " if argument else ""
    return CollectionError(
        f"{prefix}there is no collection {shown}; look for a typing error in its name, in the "
        "database (db_name) or in the path"
    )


async def open_source(store: MilvusVectorStore, argument: str = "source") -> Ready:
    """Initialize a store that is read from; never creates or drops its collection.

    Raises:
        ConfigurationError: It is not a store, or would drop its collection.
        CollectionError: There is no such collection.
        MilvusVectorStoreError: As `connect` does.
    """
    check_store(argument, store)
    if drops_collection(store):
        raise ConfigurationError(
            f"{argument} was built with overwrite=True, which drops its collection before it is "
            "read; build it without"
        )
    if await find_collection(store) is None:
        raise no_collection(named(store), argument)
    return await collection_of(store)


async def open_target(store: MilvusVectorStore, source: MilvusVectorStore, like: Ready) -> Ready:
    """Initialize a store that is written to.

    A collection that does not exist gets the source's dimension and metric, where the store's
    arguments leave them open.

    Raises:
        ConfigurationError: It is not a store, or is the source's collection.
        CollectionError: What the source has does not fit.
        MilvusVectorStoreError: As `connect` does.
    """
    if drops_collection(store):
        await store.aconnect()
    if await find_collection(store) is None:
        await create_like(store, like)
    ready = await collection_of(store)
    if have_same_collection(source, store):
        raise ConfigurationError(
            f"source and target are the same collection, {named(store)}; name another one as target"
        )
    return ready


async def create_like(store: MilvusVectorStore, like: Ready) -> None:
    """Create the collection of a store, with the dimension and the metric of another one."""
    update: dict[str, object] = {}
    field = like.layout.embedding_field
    if store.enable_dense and field is not None:
        if store.dim is None:
            update["dim"] = like.layout.dense_column(field).dim
        if not _names_metric(store):
            update["similarity_metric"] = like.indexes[field].metric or None
    async with store.model_copy(update=update):
        pass  # initialized, it has created the collection


def _names_metric(store: MilvusVectorStore) -> bool:
    return store.similarity_metric is not None or "metric_type" in store.index_config


async def first_nodes(
    store: MilvusVectorStore, count: int, *, include_embeddings: bool = False
) -> list[BaseNode]:
    """The first nodes of a collection, in the order of the primary key.

    Raises:
        CollectionError: The collection has no column of the store's `text_key`.
        RowError: A row holds no readable node.
        ServerError: Milvus refused or could not be reached.
    """
    return await store.aget_nodes(
        filters=MetadataFilters(filters=[]),
        limit=count,
        include_embeddings=include_embeddings,
        consistency_level=STRONG,
    )


@dataclass(frozen=True)
class Vectors:
    """How the vectors of a source reach the target beside `node.embedding`, in the metadata.

    Attributes:
        sparse_from: The metadata key under which nodes of the source carry their sparse embedding.
        sparse_to: The key under which the target takes it; `None` where the target makes its own.
    """

    sparse_from: str | None
    sparse_to: str | None


def check_fit(
    source: Ready, target: Ready, target_store: MilvusVectorStore, *, is_transformed: bool
) -> Vectors:
    """Check that the nodes of one collection can be written to another one.

    Args:
        source: The collection that is read.
        target: The one that is written.
        target_store: Its store.
        is_transformed: Whether nodes are changed on the way, and may get other vectors.

    Raises:
        CollectionError: They cannot. The message names what differs, and what to do.
    """
    old, new = source.layout, target.layout
    name = new.collection_name
    if new.auto_id:
        raise CollectionError(
            f"the target {name!r} numbers its rows itself (auto_id), so that nodes cannot keep "
            "their ids; copy to a collection that takes ids"
        )
    if new.unfilled_vectors:
        raise CollectionError(
            f"the target {name!r} needs vectors in the fields {new.unfilled_vectors} as well; name "
            "them in dense_fields of its store"
        )
    pairs = [(field, field) for field in old.dense_fields[1:]]
    if old.embedding_field is not None:
        pairs.insert(0, (old.embedding_field, new.embedding_field or ""))
    for ours, theirs in pairs:
        if is_transformed:
            break
        before, after = old.columns[ours], new.columns.get(theirs)
        if after is None or theirs not in new.dense_fields:
            raise CollectionError(
                f"the source has vectors in {ours!r}, and the target {name!r} has no place for "
                f"them; give its store dense_fields={{{ours!r}: {{'dim': {before.dim}}}}}, or "
                "leave them out of the source's store"
            )
        if before.dim != after.dim:
            raise CollectionError(
                f"the vectors of {ours!r} have {before.dim} dimensions in the source, and "
                f"{after.dim} in the target {name!r}; vectors travel as they are. For another "
                "embedding model use reembed()"
            )
        if before.type is not after.type:
            raise CollectionError(
                f"the vectors of {ours!r} are of type {before.type.name} in the source, and of "
                f"type {after.type.name} in the target {name!r}; vectors travel as they are"
            )
        metrics = source.indexes[ours].metric, target.indexes[theirs].metric
        chosen = ours != old.embedding_field or _names_metric(target_store)
        if all(metrics) and metrics[0] != metrics[1] and not chosen:
            raise CollectionError(
                f"the source compares its vectors by {metrics[0]}, and the target {name!r} by "
                f"{metrics[1]}; pass similarity_metric={metrics[1]!r} to the target's store if "
                f"that is meant, or make it anew with similarity_metric={metrics[0]!r}"
            )
    lacking = [field for field in new.dense_fields if field not in dict(pairs).values()]
    lacking = [field for field in lacking if not new.columns[field].optional]
    if lacking and not is_transformed:
        raise CollectionError(
            f"the target {name!r} needs vectors in {lacking}, which the source does not have; name "
            "them in the source's dense_fields if it has, or add them by a transform"
        )
    if not old.encodes_sparse:
        return Vectors(None, None)
    if new.sparse_field is None and not is_transformed:
        raise CollectionError(
            f"the source has sparse vectors in {old.sparse_field!r}, and the target {name!r} has "
            "none; build its store with enable_sparse=True, or the source's without"
        )
    return Vectors(old.sparse_field, new.sparse_field if new.encodes_sparse else None)
