"""Read nodes by id or by filter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import MetadataFilters

from .._retrieval.options import GetOptions
from .._retrieval.values import check_count, check_output_fields
from .._rpc import GetByIds, Row
from .._translation import filters as _filters
from .._translation.layout import Layout
from .._translation.row_to_node import RowReader
from ..errors import QueryError
from .context import Context
from .ids import check_node_ids, chunks, expressions_of, in_parts
from .missing_keys import warn_of_missing_filters
from .pages import read_all, read_some
from .partitions import check_partitions
from .setup import Ready


async def get_nodes(
    context: Context,
    node_ids: Sequence[str] | None,
    filters: MetadataFilters | None,
    options: GetOptions,
) -> list[BaseNode]:
    """Read nodes by id, in the order of the ids, or by filter, or by both."""
    if node_ids is None and filters is None:
        raise QueryError(
            "get_nodes() needs node_ids or filters; for every node pass "
            "filters=MetadataFilters(filters=[])"
        )
    check_node_ids(node_ids)
    if filters is not None:
        filters = _filters.metadata_filters(filters)
    check_output_fields(options.output_fields)
    if options.limit is not None:
        check_count("limit", options.limit)
    if node_ids is not None and not node_ids:
        return []

    async def read(ready: Ready) -> list[BaseNode]:
        layout = ready.layout
        named, include = options.output_fields, options.include_embeddings
        reader = RowReader(layout, fields_to_read(context, layout, named, include))
        rows: Sequence[Row]
        if node_ids is not None:
            rows = await _read_by_ids(context, layout, node_ids, filters, reader.fields, options)
        else:
            [expression] = expressions_of(layout, None, filters)
            if options.limit is None:
                rows = await read_all(context, layout, expression, reader.fields, options)
            else:
                rows = await read_some(
                    context, layout, expression, reader.fields, options, options.limit
                )
        if not rows:
            await warn_of_missing_filters(context, ready, filters)
        return await context.backend.convert(rows, reader.node)

    return await context.with_ready(read, missing=[])


def fields_to_read(
    context: Context, layout: Layout, named: Sequence[str] | None, include_embeddings: bool
) -> list[str]:
    """The fields of a read: those that are named, and all vectors that `add` takes from a node."""
    fields = context.options.output_fields if named is None else named
    return [*fields, *layout.dense_fields] if include_embeddings else list(fields)


async def _read_by_ids(
    context: Context,
    layout: Layout,
    node_ids: Sequence[str],
    filters: MetadataFilters | None,
    fields: Sequence[str],
    options: GetOptions,
) -> list[Row]:
    """Read rows in the order of their ids, one for each."""
    await check_partitions(context, layout, "query", options)
    request = GetByIds(
        layout.collection_name,
        layout.primary_key,
        layout.integer_ids,
        output_fields=tuple(fields),
        partition_names=options.partition_names,
        consistency_level=options.consistency_level or context.options.consistency_level,
        select=partial(_filters.ids_expression, layout),
    )

    async def get(ids: Sequence[str]) -> Sequence[Row]:
        return await context.backend.get_by_ids(request, ids, options.timeout)

    rows: list[Row] = []
    for chunk in chunks(node_ids):
        if filters is None:
            found = await in_parts(chunk, get)
        else:
            [expression] = expressions_of(layout, chunk, filters)
            found = await read_all(context, layout, expression, fields, options)
        by_id = {str(row[layout.primary_key]): row for row in found}
        rows += [by_id[node_id] for node_id in chunk if node_id in by_id]
        if options.limit is not None and len(rows) >= options.limit:
            return rows[: options.limit]
    return rows
