"""Whether the partitions that a caller names exist."""

from __future__ import annotations

from .._retrieval.options import ReadOptions
from .._translation.engine import Engine
from .._translation.layout import Layout
from .._wire.causes import NO_PARTITION, missing_partition
from ..errors import QueryError, ServerError
from .context import Context


def require_partitions(layout: Layout, asked: str) -> None:
    """Check that the engine has partitions.

    Raises:
        QueryError: It has none, and would write to, or read, the whole collection.
    """
    layout.engine.require(Engine.has_partitions, asked, QueryError)


async def check_partitions(
    context: Context, layout: Layout, operation: str, options: ReadOptions
) -> None:
    """Refuse to read from a partition that does not exist, as servers do.

    Milvus Lite (from 3 up to 3.2.2) finds nothing in it.

    Raises:
        QueryError: The engine has no partitions.
        ServerError: There is no such partition.
    """
    if options.partition_names is not None:
        require_partitions(layout, f"milvus_partition_names={list(options.partition_names)}")
    if not layout.engine.ignores_unknown_partitions:
        return
    for name in options.partition_names or ():
        if not await context.backend.knows_partition(layout.collection_name, name, options.timeout):
            raise ServerError(operation, missing_partition(name), NO_PARTITION)
