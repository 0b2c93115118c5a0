"""Read nodes by id or by filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import MetadataFilters

from .._retrieval.options import GetOptions, ReadOptions
from .._retrieval.values import check_output_fields
from .._rpc import GetByIds, Query, Row
from .._translation import filters as _filters
from .._translation.layout import Layout
from .._translation.row_to_node import RowReader
from .._wire.status import is_too_large
from ..errors import QueryError, ServerError
from .context import Context
from .ids import check_node_ids, chunks, expressions_of, in_parts
from .setup import Ready

#: Rows of one page. A row is at most about 200 KiB, and a response must stay below 512 MiB.
ROWS_PER_PAGE = 2_000


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
    if node_ids is not None and not node_ids:
        return []

    async def read(ready: Ready) -> list[BaseNode]:
        layout, named = ready.layout, options.output_fields
        reader = RowReader(layout, context.options.output_fields if named is None else named)
        rows: list[Row] = []
        if node_ids is not None and filters is None:
            rows = await _read_by_ids(context, layout, node_ids, reader.fields, options)
        else:
            for expression in expressions_of(layout, node_ids, filters):
                rows += await read_all(context, layout, expression, reader.fields, options)
        return await context.backend.convert(rows, reader.node)

    nodes = await context.with_ready(read)
    if node_ids is None:
        return nodes
    by_id = {node.node_id: node for node in nodes}
    return [by_id[node_id] for node_id in dict.fromkeys(node_ids) if node_id in by_id]


async def _read_by_ids(
    context: Context,
    layout: Layout,
    node_ids: Sequence[str],
    fields: Sequence[str],
    options: ReadOptions,
) -> list[Row]:
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
        rows += await in_parts(chunk, get)
    return rows


async def read_all(
    context: Context,
    layout: Layout,
    expression: str,
    fields: Sequence[str],
    options: ReadOptions,
) -> list[Row]:
    """Read every row that an expression matches, in pages."""
    everything = _filters.everything_expression(layout)
    query = Query(
        layout.collection_name,
        expression or everything,
        tuple(fields),
        options.partition_names,
        options.consistency_level or context.options.consistency_level,
        limit=ROWS_PER_PAGE,
    )

    async def read_page(query: Query) -> tuple[Sequence[Row], int]:
        """Read one page, and how many rows it may have."""
        assert query.limit is not None
        limit = query.limit
        while True:
            try:
                page = await context.backend.query(replace(query, limit=limit), options.timeout)
                return page, limit
            except ServerError as error:
                if limit == 1 or not is_too_large(error):
                    raise
                limit //= 2

    page, limit = await read_page(query)
    if len(page) < limit:
        return list(page)
    # More than a page: start again, ordered by primary key. A limit alone returns any rows. Ordered
    # reads ignore the consistency level, which the read above has already waited for.
    rows: list[Row] = []
    query = replace(query, in_order=True, limit=limit)
    while True:
        page, limit = await read_page(query)
        rows += page
        if len(page) < limit:
            return rows
        last = max(row[layout.primary_key] for row in page)
        next_page = _filters.next_page_expression(layout, expression, last)
        query = replace(query, expression=next_page, limit=limit)
