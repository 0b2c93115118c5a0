"""Whether the partitions that a caller names exist."""

from __future__ import annotations

from .._retrieval.options import ReadOptions
from .._translation.layout import Layout
from .._wire.causes import NO_PARTITION, missing_partition
from ..errors import ServerError
from .context import Context


async def check_partitions(
    context: Context, layout: Layout, operation: str, options: ReadOptions
) -> None:
    """Refuse to read from a partition that does not exist, as servers do.

    Milvus Lite (up to 3.2.2) finds nothing in it.

    Raises:
        ServerError: There is no such partition.
    """
    if not layout.engine.ignores_unknown_partitions:
        return
    for name in options.partition_names or ():
        if not await context.backend.knows_partition(layout.collection_name, name, options.timeout):
            raise ServerError(operation, missing_partition(name), NO_PARTITION)
