"""Whether the partitions that a caller names exist."""

from __future__ import annotations

from .._retrieval.options import ReadOptions
from .._translation.engine import Engine
from .._translation.layout import Layout
from .._wire.causes import NO_PARTITION, missing_partition
from ..errors import QueryError, ServerError
from .context import Context


def require_partitions(layout: Layout, asked: str) -> None:
    """Check that the engine has partitions, and that the caller is to choose them.

    Milvus Lite (up to 3.2.2) writes to a named one beside a partition key, where reads by the key
    do not look.

    Raises:
        QueryError: It has none, and would write to, or read, the whole collection; or Milvus
            chooses them by a key.
    """
    layout.engine.require(Engine.has_partitions, asked, QueryError)
    if layout.partition_key is not None:
        raise QueryError(
            f"{asked}: in collection {layout.collection_name!r} Milvus chooses the partition of a "
            f"row by its {layout.partition_key!r}; leave the name out, and filter by that key"
        )


async def check_partitions(
    context: Context, layout: Layout, operation: str, options: ReadOptions
) -> None:
    """Refuse to read from a partition that does not exist, as servers do.

    Milvus Lite (from 3 up to 3.2.2) finds nothing in it.

    Raises:
        QueryError: The engine has no partitions, or Milvus chooses them.
        ServerError: There is no such partition.
    """
    if options.partition_names is not None:
        require_partitions(layout, f"milvus_partition_names={list(options.partition_names)}")
    if not layout.engine.ignores_unknown_partitions:
        return
    for name in options.partition_names or ():
        if not await context.backend.knows_partition(layout.collection_name, name, options.timeout):
            raise ServerError(operation, missing_partition(name), NO_PARTITION)
