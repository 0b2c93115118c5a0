"""Setting up: find or create the collection, its indexes and properties, and load it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from pymilvus import CollectionSchema

from .._retrieval.plan import SearchMemory
from .._translation.compatibility import (
    ISOLATION_PROPERTY,
    check_collection,
    check_engine,
    check_index_metric,
    check_layout,
    check_replicas,
    check_scalar_index,
    check_vector_types,
    differing_properties,
)
from .._translation.engine import Engine
from .._translation.layout import VECTOR_TYPES, Index, Layout
from .._translation.scalar_indexes import (
    ScalarIndex,
    new_scalar_index,
    path_indexes,
    scalar_indexes,
)
from .._translation.schema import new_index, new_index_params, new_schema
from .._translation.settings import CollectionSettings
from .._transport.backend import Backend
from ..errors import (
    CollectionError,
    ConfigurationError,
    RequestTimeoutError,
    ServerError,
    UnreachableError,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds to look at a collection again after a refusal, which has its own message meanwhile.
_LOOK_AGAIN_SECONDS = 5.0


@dataclass(frozen=True)
class Ready:
    """What setting up has found out.

    Attributes:
        layout: The collection's columns.
        indexes: The index of each vector column.
        schema: What the collection's description says of its schema, and of which collection of
            its name it is.
        keys_looked_up: The metadata keys that were looked up; see `missing_keys`.
        searches: What searches have in common.
    """

    layout: Layout
    indexes: Mapping[str, Index]
    schema: Mapping[str, Any]
    keys_looked_up: set[str] = field(default_factory=set, compare=False)
    searches: SearchMemory = field(default_factory=SearchMemory, compare=False)

    async def is_current(self, backend: Backend) -> bool:
        """Whether the collection is still as it was found.

        Raises:
            CollectionError: There is no such collection any more.
        """
        name = self.layout.collection_name
        description = await backend.describe_collection(name, _LOOK_AGAIN_SECONDS)
        if description is None:
            raise collection_gone(name)
        return self.schema == _schema_of(description)


def collection_gone(name: str) -> CollectionError:
    """The error of an operation on a collection that was dropped."""
    return CollectionError(
        f"there is no collection {name!r} any more: it was dropped after the store had set "
        "it up; call refresh() to create it again"
    )


@dataclass(frozen=True)
class Missing:
    """What setting up has found where there is no collection, and nodes decide its dimensions.

    Attributes:
        settings: What the collection has to be.
    """

    settings: CollectionSettings


@dataclass
class FirstNodes:
    """What the first nodes of a collection decide, where the store's arguments do not.

    Attributes:
        dimensions: For each dense field without a dimension that of the nodes which are being
            added; `None` while there are none.
        warned: Whether the store has told that its collection does not exist.
    """

    dimensions: Mapping[str, int] | None = None
    warned: bool = False


@dataclass
class Overwrite:
    """Whether the collection has still to be dropped, which happens once in a store's life.

    Attributes:
        pending: Whether it has.
        writes: What this process had written to the collection when the store was built.
    """

    pending: bool
    writes: int = 0


async def set_up(
    backend: Backend, settings: CollectionSettings, overwrite: Overwrite, first: FirstNodes
) -> Ready | Missing:
    """Find or create the collection, its indexes and its properties, and load it.

    Args:
        backend: Where to send requests.
        settings: What the collection has to be.
        overwrite: Whether to drop the collection first; settled when that is done.
        first: The dimensions of a new collection, where the settings have none.

    Returns:
        The collection; or that it is missing, where nobody knows its dimensions yet.

    Raises:
        CollectionError: The existing collection does not fit.
        ConfigurationError: A new collection could not be made, or the collection that is to be
            dropped has rows that were written since the store was built.
    """
    name = settings.collection_name
    engine = Engine.parse(await backend.server_version())
    check_engine(settings, engine)
    if backend.database:
        asked = f"db_name={backend.database!r}"
        engine.require(Engine.has_databases, asked, ConfigurationError)
    if engine.ignores_logins:
        backend.warn_of_ignored_login()
    backend.note_collection(name, name, locks=engine.needs_one_writer)
    description = await backend.describe_collection(name)
    if description is None or overwrite.pending:
        # Raises before the collection what would fail after it.
        check_vector_types(settings, engine)
        new_schema(settings.with_any_dimension(), engine)
        if settings.create_index:
            new_index_params(settings, engine)
    if description is not None and overwrite.pending:
        await _drop(backend, settings, description, overwrite)
        description = None
    elif overwrite.pending:
        backend.remove_unfinished_collection(name)
    # Not earlier: after a failure the next attempt has to refuse, or to drop, again.
    overwrite.pending = False
    is_new = description is None
    if description is None:
        decided = settings.with_dimensions(first.dimensions or {})
        if decided.lacks_dimensions:
            return Missing(settings)
        # Another process may have been faster, so that its nodes have decided: from here on the
        # collection says which dimensions it has.
        description = await _create(backend, decided, engine)
    real_name = description.get("collection_name", name)
    backend.note_collection(name, real_name, locks=engine.needs_one_writer)
    layout = Layout.from_description(description, settings, engine)
    check_layout(layout, settings)
    check_vector_types(settings, engine)
    check_collection(description, settings, engine)
    paths = path_indexes(layout, settings) if settings.create_index else []

    backend.note_replicas(name, settings.replica_number)
    indexes = await _create_indexes(backend, settings, layout)
    if settings.create_index:
        await _create_scalar_indexes(backend, settings, layout, paths, is_new=is_new)
    await _apply_properties(backend, settings, description.get("properties") or {})
    # Without indexes a collection cannot be loaded; whoever manages them does both.
    if all(index.type for index in indexes.values()):
        if not await backend.is_loaded(name):
            # Another process may be loading it with fewer indexes than it has by now, which Milvus
            # does not change.
            await _change(
                lambda: backend.load_collection(name),
                lambda: backend.becomes_loaded(name),
                is_done=bool,
            )
        elif engine.keeps_shards and settings.replica_number is not None:
            check_replicas(settings, await backend.count_replicas(name))
    return Ready(layout, indexes, _schema_of(description))


async def schema_of_new(backend: Backend, settings: CollectionSettings) -> CollectionSchema:
    """The schema, as pymilvus has it, of a collection that would be made.

    Raises:
        ConfigurationError: It could not be made, or has no dimension.
    """
    return new_schema(settings, await _checked_engine(backend, settings))


async def index_params_of_new(backend: Backend, settings: CollectionSettings) -> Any:
    """The indexes, as pymilvus has them, of a collection that would be made.

    Raises:
        ConfigurationError: It could not be made.
    """
    return new_index_params(settings, await _checked_engine(backend, settings))


async def _checked_engine(backend: Backend, settings: CollectionSettings) -> Engine:
    engine = Engine.parse(await backend.server_version())
    check_engine(settings, engine)
    check_vector_types(settings, engine)
    new_schema(settings.with_any_dimension(), engine)
    new_index_params(settings, engine)
    return engine


def _schema_of(description: Mapping[str, Any]) -> Mapping[str, Any]:
    """What of a description changes where a collection is made anew, or its schema is altered."""
    # Milvus Lite tells neither ids nor times.
    keys = ("collection_id", "update_timestamp", "enable_dynamic_field", "fields", "functions")
    return {key: description.get(key) for key in keys}


async def _drop(
    backend: Backend,
    settings: CollectionSettings,
    description: Mapping[str, Any],
    overwrite: Overwrite,
) -> None:
    name = settings.collection_name
    if description["collection_name"] != name:
        raise ConfigurationError(
            f"overwrite=True: {name!r} is an alias of {description['collection_name']!r}; "
            "name the collection itself to overwrite it"
        )
    if backend.count_writes(name) > overwrite.writes:
        raise ConfigurationError(
            f"overwrite=True: another store of this process has written to the collection {name!r} "
            "since this store was built, and its rows would be dropped. overwrite acts at the "
            "first operation: call connect() (or aconnect()) right after building the store to "
            "drop what is there then, or build it without overwrite to keep the rows"
        )
    await _change(
        lambda: backend.drop_collection(name),
        lambda: backend.describe_collection(name),
        is_done=lambda description: description is None,
    )


async def _create(
    backend: Backend, settings: CollectionSettings, engine: Engine
) -> Mapping[str, Any]:
    """Create the collection; returns its description."""
    name = settings.collection_name
    schema = new_schema(settings, engine)
    options: dict[str, Any] = {"consistency_level": settings.consistency_level}
    if settings.num_shards is not None:
        options["num_shards"] = settings.num_shards
    if settings.num_partitions is not None:
        options["num_partitions"] = settings.num_partitions
    if settings.partition_key_isolation:
        # Not later: it cannot be changed once there is an index.
        options["properties"] = {ISOLATION_PROPERTY: "true"}
    description = await _change(
        lambda: backend.create_collection(name, schema, options),
        lambda: backend.describe_collection(name),
    )
    logger.info("created collection %r", name)
    if description is None:
        raise CollectionError(f"collection {name!r} was dropped while it was being set up")
    return description


async def _change(
    change: Callable[[], Awaitable[None]],
    describe: Callable[[], Awaitable[T]],
    is_done: Callable[[T], bool] = lambda description: description is not None,
) -> T:
    """Change the collection; returns its description afterwards.

    A refusal does not count where things are as wanted: another process was faster, or an earlier
    attempt has succeeded and its answer was lost.
    """
    try:
        await change()
    except (UnreachableError, RequestTimeoutError):
        raise
    except ServerError:
        description = await describe()
        if not is_done(description):
            raise
        return description
    return await describe()


async def _create_indexes(
    backend: Backend, settings: CollectionSettings, layout: Layout
) -> dict[str, Index]:
    """Create the indexes that are missing; returns those of all vector columns."""
    name = settings.collection_name
    used = {field.name: field for field in settings.vectors}
    indexes: dict[str, Index] = {}
    for column in layout.columns.values():
        if column.type not in VECTOR_TYPES:
            continue
        field = used.get(column.name)
        index = await backend.describe_index(name, column.name)
        if index is None and field is not None and settings.create_index:
            wanted = new_index(field, layout.engine)
            # Milvus Lite has no RPC to wait by, and logs an error where it is called.
            wait = not layout.engine.builds_indexes_at_once
            index = await _change(
                partial(backend.create_index, name, wanted, wait=wait),
                partial(backend.describe_index, name, column.name),
            )
        elif index is not None and field is not None:
            check_index_metric(index, field, name)
        index = index or {}
        metric = str(index.get("metric_type") or (field.new_metric if field else "")).upper()
        indexes[column.name] = Index(metric, str(index.get("index_type", "")))
    return indexes


async def _create_scalar_indexes(
    backend: Backend,
    settings: CollectionSettings,
    layout: Layout,
    paths: Sequence[ScalarIndex],
    *,
    is_new: bool,
) -> None:
    """Create the indexes of scalar columns, and of paths, that are missing.

    Nobody waits until they are built: a collection can be loaded and searched meanwhile.
    """
    name = settings.collection_name
    # Of its own accord, the store adds no index to a collection that exists.
    by_default = is_new and settings.index_doc_id is None
    wanted = replace(settings, index_doc_id=True) if by_default else settings
    for index in [*scalar_indexes(wanted, layout.engine), *paths]:
        if index.path is None and index.column not in layout.columns:
            raise CollectionError(
                f"Collection {name!r}: found no field {index.column!r} to index. Leave out its "
                "index, or index_doc_id=True, or use another collection_name"
            )
        describe = partial(_describe_scalar_index, backend, name, index)
        found = None if is_new else await describe()
        if found is not None:
            check_scalar_index(found, index, name)
            continue
        await _change(
            partial(backend.create_index, name, new_scalar_index(index, layout.engine), wait=False),
            describe,
        )


async def _describe_scalar_index(
    backend: Backend, name: str, index: ScalarIndex
) -> Mapping[str, Any] | None:
    if index.path is None:
        return await backend.describe_index(name, index.column)
    # A column has any number of them, and which column Milvus names is not always the same.
    return next(filter(index.is_of, await backend.describe_indexes(name)), None)


async def _apply_properties(
    backend: Backend, settings: CollectionSettings, described: Mapping[str, Any]
) -> None:
    missing = differing_properties(settings.properties, described)
    if not missing:
        return
    name = settings.collection_name
    # How segments are mapped into memory can only be changed while none is.
    if any("mmap" in key for key in missing) and await backend.is_loaded(name):
        await backend.release_collection(name)
    await backend.alter_properties(name, missing)
