"""Change the metadata of nodes that are stored.

Milvus 2.6 and Milvus Lite can be sent some columns of a row alone (partial update). It is not used:
the serialized node has to be read to be changed, a key of the dynamic field cannot be removed that
way, and the server reads and writes the whole row all the same, in no transaction either. It would
save sending the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llama_index.core.vector_stores.types import MetadataFilters

from .._retrieval.options import ReadOptions, UpdateOptions
from .._rpc import Query, Row
from .._translation import filters as _filters
from .._translation.layout import Layout
from .._translation.node_to_row import PackedRow
from .._translation.row_update import MetadataChange, RowUpdater
from .._transport.limits import MAX_IDS, MAX_INSERT_BYTES, MAX_ROWS
from ..errors import (
    CollectionError,
    MilvusVectorStoreError,
    PartialWriteError,
    QueryError,
    ServerError,
)
from .context import Context
from .ids import check_node_ids, chunks, expressions_of, in_parts
from .missing_keys import warn_of_missing_filters
from .pages import Pages, rows_per_page
from .partitions import require_partitions
from .setup import Ready
from .writes import insert_request, split, write_outcome

#: What was written before, by anyone, must not be undone.
_LEVEL = "Strong"


async def update_metadata(
    context: Context,
    filters: MetadataFilters | None,
    node_ids: Sequence[str] | None,
    change: MetadataChange,
    options: UpdateOptions,
) -> int:
    """Change the metadata of the nodes that match; returns their number."""
    if filters is None and node_ids is None:
        raise QueryError(
            "update_metadata() needs filters or node_ids; for every node pass "
            "filters=MetadataFilters(filters=[])"
        )
    check_node_ids(node_ids)
    filters = _filters.metadata_filters(filters)
    if node_ids is not None and not node_ids:
        return 0

    async def run(ready: Ready) -> int:
        update = _Update(context, ready.layout, filters, change, options)
        try:
            count = await update.run(node_ids)
        except PartialWriteError:
            raise
        except MilvusVectorStoreError as error:
            if not update.written:
                raise
            raise _partial(error, update.written) from error
        if not count:
            await warn_of_missing_filters(context, ready, filters)
        return count

    return await context.with_ready(run, missing=0)


def _partial(
    error: Exception,
    written: Sequence[str],
    not_written: Sequence[str] = (),
    unknown: Sequence[str] = (),
) -> PartialWriteError:
    code = error.code if isinstance(error, ServerError) else 0
    message = error.message if isinstance(error, ServerError) else str(error)
    return PartialWriteError("update", message, code, written, not_written, unknown)


class _Update:
    """One call of `update_metadata`.

    Args:
        context: The collection.
        layout: Its columns.
        filters: What the nodes match.
        change: What to change.
        options: Partitions and timeout.

    Attributes:
        written: Ids of the nodes that were written.
    """

    def __init__(
        self,
        context: Context,
        layout: Layout,
        filters: MetadataFilters,
        change: MetadataChange,
        options: UpdateOptions,
    ) -> None:
        if layout.auto_id:
            raise CollectionError(
                f"collection {layout.collection_name!r} numbers its rows itself (auto_id), so that "
                "a row that is written again gets another id: it can be read and queried, not "
                "updated"
            )
        if (key := layout.partition_key) is not None and (key in change.set or key in change.unset):
            raise QueryError(
                f"{key!r} is the partition key of the collection, and a row stays in its "
                "partition; add the nodes again to change it"
            )
        self._context = context
        self._layout = layout
        self._filters = filters
        self._options = options
        self._updater = RowUpdater(layout, change.checked(layout))
        self._rows = min(MAX_IDS, rows_per_page(layout, self._updater.fields))
        self.written: list[str] = []

    async def run(self, node_ids: Sequence[str] | None) -> int:
        layout, count = self._layout, 0
        key = layout.primary_key
        for partition in await self._partitions():
            if node_ids is not None:
                for chunk in chunks(node_ids, self._rows):
                    count += await self._rewrite(partition, chunk)
                continue
            [expression] = expressions_of(layout, None, self._filters)
            options = self._reading(partition)
            pages = Pages(self._context, layout, expression, [key], options, rows=self._rows)
            await pages.settle()
            while page := await pages.next():
                count += await self._rewrite(partition, [str(row[key]) for row in page])
        if layout.engine.scans_unflushed_rows:
            self._context.backend.note_unflushed_rows(layout.collection_name, len(self.written))
        return count

    async def _partitions(self) -> Sequence[str | None]:
        """The partitions to go through; `None` where Milvus knows which one a row is in."""
        if self._options.partition_names is not None:
            asked = f"milvus_partition_names={list(self._options.partition_names)}"
            require_partitions(self._layout, asked)
        if self._layout.partition_key is not None or not self._layout.engine.has_partitions:
            return [None]
        names = await self._context.backend.partition_names(
            self._layout.collection_name, self._options.timeout
        )
        named = self._options.partition_names
        for name in named or ():
            if name not in names:  # which Milvus Lite takes for one without rows
                raise ServerError("update", f"partition not found: {name!r}")
        if named is not None:
            return named
        return names if len(names) > 1 else [None]

    def _reading(self, partition: str | None) -> ReadOptions:
        named = self._options.milvus_partition_names if partition is None else partition
        return ReadOptions(named, _LEVEL, self._options.timeout)

    async def _rewrite(self, partition: str | None, ids: Sequence[str]) -> int:
        """Change those of some nodes that match, while nobody else of this process writes."""
        name, timeout = self._layout.collection_name, self._options.timeout
        async with self._context.backend.rewriting(name, timeout):
            return await self._read_and_write(partition, ids)

    async def _read_and_write(self, partition: str | None, ids: Sequence[str]) -> int:
        context, layout, updater = self._context, self._layout, self._updater
        timeout, options = self._options.timeout, self._reading(partition)
        query = Query(
            layout.collection_name,
            "",
            tuple(updater.fields),
            options.partition_names,
            _LEVEL,
            limit=MAX_ROWS,
        )

        async def read(ids: Sequence[str]) -> Sequence[Row]:
            [expression] = expressions_of(layout, ids, self._filters)
            return await context.backend.query(replace(query, expression=expression), timeout)

        rows = await in_parts(ids, read)
        changed = await context.backend.convert(rows, updater.update)
        updater.raise_problems()
        request = insert_request(layout, partition, replace=True)
        packed = [row for row in changed if row is not None]
        batches = list(split(packed, context.batch_size, MAX_INSERT_BYTES))

        async def send(batch: Sequence[PackedRow]) -> None:
            await context.backend.rewrite(request, [row.values for row in batch], timeout)

        outcomes = await context.backend.send_all(batches, send)
        found: dict[str, list[str]] = {"written": self.written, "not_written": [], "unknown": []}
        for batch, outcome in zip(batches, outcomes, strict=True):
            found[write_outcome(outcome)] += [row.node_id for row in batch]
        for outcome in outcomes:
            if isinstance(outcome, MilvusVectorStoreError) and (
                found["written"] or found["unknown"]
            ):
                raise _partial(outcome, **found) from outcome
            if isinstance(outcome, Exception):
                raise outcome
        return len(rows)
