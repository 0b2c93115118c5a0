"""Add and delete nodes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import MetadataFilters

from .._retrieval.options import DeleteOptions, ReadOptions, WriteOptions
from .._retrieval.values import are_several, as_nodes, described
from .._rpc import DeleteDocuments, Insert
from .._translation import filters as _filters
from .._translation.engine import Engine
from .._translation.layout import Layout
from .._translation.node_content import MAX_COPIED_TEXT
from .._translation.node_to_row import PackedRow, RowPacker, carried_sparse
from .._transport.limits import MAX_INSERT_BYTES
from .._wire.causes import NO_PARTITION, missing_partition
from ..errors import (
    CollectionError,
    PartialWriteError,
    QueryError,
    ServerError,
    WriteOutcomeUnknownError,
)
from .context import Context
from .ids import check_id, check_node_ids, chunks, expressions_of
from .pages import read_all
from .partitions import require_partitions
from .setup import Ready

logger = logging.getLogger(__name__)


async def add(context: Context, nodes: Sequence[BaseNode], options: WriteOptions) -> list[str]:
    """Write nodes; returns their ids in the order of the nodes."""
    nodes = as_nodes(nodes)
    if not nodes:
        return []

    async def write(ready: Ready) -> tuple[Layout, int]:
        _check_addable(ready.layout)
        _check_partition(ready.layout, options.milvus_partition_name)
        rows = await _pack(context, ready.layout, nodes)
        await _write(context, ready.layout, rows, options)
        return ready.layout, len(rows)

    layout, count = await context.with_ready_for(nodes, write)
    if options.force_flush:
        await context.backend.flush(layout.collection_name, options.timeout)
    elif layout.engine.scans_unflushed_rows:
        context.backend.note_unflushed_rows(layout.collection_name, count)
    return [node.node_id for node in nodes]


def _check_addable(layout: Layout) -> None:
    """Check that nodes can be added at all."""
    if layout.auto_id:
        raise CollectionError(
            f"collection {layout.collection_name!r} numbers its rows itself (auto_id), so that "
            "nodes cannot keep their ids: it can be read and queried, not added to"
        )
    if layout.text_key in (layout.primary_key, layout.doc_id_field):
        raise CollectionError(
            f"collection {layout.collection_name!r} has the texts in {layout.text_key!r} "
            "(text_key), which holds ids as well: it can be read and queried, not added to"
        )
    if layout.unfilled_vectors:
        raise CollectionError(
            f"collection {layout.collection_name!r} needs a vector for each of the fields "
            f"{layout.unfilled_vectors} as well, and nodes have embeddings for "
            f"{list(layout.dense_fields)} only: it can be read and queried, not added to. Name "
            "further fields in dense_fields"
        )


async def _pack(context: Context, layout: Layout, nodes: Sequence[BaseNode]) -> list[PackedRow]:
    """Check nodes and make their rows, one for each id."""
    packer = RowPacker(layout)
    if layout.encodes_sparse:
        encoded = [node for node in nodes if carried_sparse(layout, node) is None]
        texts = [node.get_content(metadata_mode=MetadataMode.NONE) for node in encoded]
        sparse = await context.encode(texts, queries=False) if texts else []
        of_node = {id(node): vector for node, vector in zip(encoded, sparse, strict=True)}
        pairs = [(node, of_node.get(id(node))) for node in nodes]
        rows = await context.backend.convert(pairs, lambda pair: packer.pack(*pair))
    else:
        rows = await context.backend.convert(nodes, packer.pack)
    packer.raise_problems()
    if packer.shortened:
        logger.warning(
            "the metadata of %d of %d nodes is larger than what Milvus takes for filters, which "
            "see only the first %d characters of each text in it. The nodes are stored whole",
            packer.shortened,
            len(nodes),
            MAX_COPIED_TEXT,
        )
    unique = {row.node_id: row for row in rows if row is not None}
    if len(unique) < len(nodes):
        logger.warning(
            "%d of %d nodes have the same id as a later node of this call; the last node of each "
            "id is kept",
            len(nodes) - len(unique),
            len(nodes),
        )
    return list(unique.values())


def _check_partition(layout: Layout, name: str | None) -> None:
    if name is not None:
        require_partitions(layout, f"milvus_partition_name={name!r}")


async def _write(
    context: Context, layout: Layout, rows: Sequence[PackedRow], options: WriteOptions
) -> None:
    request = insert_request(layout, options.milvus_partition_name, replace=context.upsert)
    batches = list(split(rows, context.batch_size, MAX_INSERT_BYTES))
    with _progress(len(rows), options) as written:

        async def send(batch: Sequence[PackedRow]) -> None:
            size = sum(row.size for row in batch)
            values = [row.values for row in batch]
            await context.backend.insert(request, values, size, options.timeout)
            written(len(batch))

        outcomes = await context.backend.send_all(batches, send)
    if not all(outcome is True for outcome in outcomes):
        _raise_failure(batches, outcomes, request.repeatable)


def insert_request(layout: Layout, partition_name: str | None, *, replace: bool) -> Insert:
    """The request that inserts rows, or replaces those of the same ids.

    Raises:
        CollectionError: The engine would hide rows that it replaces.
    """
    if replace and layout.partition_key is not None:
        layout.engine.require(
            Engine.upserts_by_partition_key,
            f"collection {layout.collection_name!r} has the partition key "
            f"{layout.partition_key!r}, so that nodes can only be added with upsert_mode=False, "
            "and not be updated",
            CollectionError,
        )
    return Insert(
        layout.collection_name,
        layout.written_columns,
        layout.primary_key,
        partition_name,
        # Lite merges the dynamic keys of an upserted row into the old ones, and its insert replaces
        # the row; a server does the opposite, and its insert would double the row.
        upsert=replace and not layout.engine.merges_upserted_rows,
        repeatable=replace or layout.engine.replaces_on_insert,
        schema_timestamp=layout.schema_timestamp,
    )


def _raise_failure(
    batches: Sequence[Sequence[PackedRow]], outcomes: Sequence[Exception | bool], repeatable: bool
) -> None:
    """Raise the error of an add of which batches failed."""
    failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    ids: dict[str, list[str]] = {"written": [], "not_written": [], "unknown": []}
    for batch, outcome in zip(batches, outcomes, strict=True):
        ids[write_outcome(outcome)].extend(row.node_id for row in batch)
    first = next((one for one in failures if isinstance(one, ServerError)), failures[0])
    if ids["unknown"] and not repeatable:
        lost = next(error for error in failures if write_outcome(error) == "unknown")
        assert isinstance(lost, ServerError)
        raise WriteOutcomeUnknownError(lost.operation, lost.message, lost.code, **ids) from lost
    if not isinstance(first, ServerError) and (ids["written"] or ids["unknown"]):
        raise PartialWriteError("insert", str(first), 0, **ids) from first
    if len(batches) == 1 or not isinstance(first, ServerError):
        raise first
    raise PartialWriteError(first.operation, first.message, first.code, **ids) from first


def write_outcome(outcome: Exception | bool) -> str:
    """What has become of the rows of a batch: written, not_written or unknown."""
    if outcome is True:
        return "written"
    if isinstance(outcome, ServerError) and not outcome.is_answer and not outcome.nothing_done:
        return "unknown"
    return "not_written"


@contextmanager
def _progress(count: int, options: WriteOptions) -> Iterator[Callable[[int], object]]:
    """Show a bar where it is wanted; yields what tells it of rows that were written."""
    if not options.show_progress:
        yield lambda count: None
        return
    from tqdm.auto import tqdm  # not for those who want no bar: it looks for Jupyter's widgets

    with tqdm(total=count, desc="Writing", unit="node") as bar:
        yield bar.update


def split(
    rows: Sequence[PackedRow], max_rows: int, max_bytes: int
) -> Iterable[Sequence[PackedRow]]:
    """Split rows into batches bounded by rows and by bytes; a batch has at least one row."""
    start, size = 0, 0
    for position, row in enumerate(rows):
        full = position - start >= max_rows or size + row.size > max_bytes
        if full and position > start:
            yield rows[start:position]
            start, size = position, 0
        size += row.size
    if start < len(rows):
        yield rows[start:]


async def delete(context: Context, doc_ids: str | Sequence[str], options: DeleteOptions) -> None:
    """Delete the nodes of documents."""
    if not isinstance(doc_ids, str) and not are_several(doc_ids):
        raise QueryError(
            f"ref_doc_id is {described(doc_ids)}; it must be the id of a document (a string), or "
            "a list of ids"
        )
    wanted = [doc_ids] if isinstance(doc_ids, str) else list(doc_ids)
    for doc_id in wanted:
        check_id("ref_doc_id", doc_id)
    if not wanted:
        return

    async def remove(ready: Ready) -> None:
        layout = ready.layout
        select = partial(_filters.documents_expression, layout)
        partition = options.milvus_partition_name
        _check_partition(layout, partition)
        if partition is not None and not layout.engine.deletes_within_partition:
            await _delete(context, layout, [select(chunk) for chunk in chunks(wanted)], options)
            return
        request = DeleteDocuments(layout.collection_name, partition, layout.doc_id_field, select)
        for chunk in chunks(wanted):
            await context.backend.delete_documents(request, chunk, options.timeout)

    await context.with_ready(remove, missing=None)


async def delete_nodes(
    context: Context,
    node_ids: Sequence[str] | None,
    filters: MetadataFilters | None,
    options: DeleteOptions,
) -> None:
    """Delete nodes by id, by filter, or by both."""
    filters = _filters.metadata_filters(filters)
    if node_ids is None and not filters.filters:
        raise QueryError(
            "delete_nodes() needs node_ids or filters; to delete everything call clear()"
        )
    check_node_ids(node_ids)
    if node_ids is not None and not node_ids:
        return

    async def remove(ready: Ready) -> None:
        expressions = expressions_of(ready.layout, node_ids, filters)
        if "" in expressions:
            raise QueryError(
                "delete_nodes() got filters that every node passes; to delete everything call "
                "clear()"
            )
        await _delete(context, ready.layout, expressions, options)

    await context.with_ready(remove, missing=None)


async def clear(context: Context, timeout: float | None) -> None:
    """Delete every row; collection, index, partitions, aliases and grants stay."""

    async def remove(ready: Ready) -> None:
        everything = _filters.everything_expression(ready.layout)
        await _delete(context, ready.layout, [everything], DeleteOptions(timeout=timeout))

    await context.with_ready(remove, missing=None)


async def _delete(
    context: Context, layout: Layout, expressions: Sequence[str], options: DeleteOptions
) -> None:
    partition = options.milvus_partition_name
    _check_partition(layout, partition)
    if partition is not None and not layout.engine.deletes_within_partition:
        expressions = await _within_partition(
            context, layout, partition, expressions, options.timeout
        )
    for expression in expressions:
        await context.backend.delete(
            layout.collection_name,
            expression,
            partition_name=partition,
            timeout=options.timeout,
        )


async def _within_partition(
    context: Context,
    layout: Layout,
    partition: str,
    expressions: Sequence[str],
    timeout: float | None,
) -> list[str]:
    """Select by primary key what expressions match in the partition of a delete.

    Milvus Lite (up to 3.2.2) deletes what they match in every partition.
    """
    if not await context.backend.has_partition(layout.collection_name, partition, timeout):
        raise ServerError("delete", missing_partition(partition), NO_PARTITION)
    within = ReadOptions(milvus_partition_names=partition, timeout=timeout)
    ids: list[str] = []
    for expression in expressions:
        rows = await read_all(context, layout, expression, [layout.primary_key], within)
        ids += [str(row[layout.primary_key]) for row in rows]
    return [_filters.ids_expression(layout, chunk) for chunk in chunks(ids)]
