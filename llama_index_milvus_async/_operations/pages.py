"""Rows in the order of the primary key, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .._retrieval.options import ReadOptions
from .._rpc import Query, Row
from .._translation import filters as _filters
from .._translation.layout import VECTOR_TYPES, Layout
from .._wire.responses import ResponseRows
from .._wire.status import is_too_large
from ..errors import RowError, ServerError
from .context import Context
from .partitions import check_partitions

#: Rows of a page for a caller who wants them all anyway.
ROWS_PER_PAGE = 2_000
#: Bytes of a page, as far as the page before lets them be foreseen: reading a response holds the
#: event loop, for about 2 ms per MiB.
PAGE_BYTES = 4 * 2**20
#: Bytes of a row that are assumed before the first page, its vectors not counted.
_FIRST_ROW_BYTES = 2 * 2**10
#: Milvus' name for the number of the rows that match.
_COUNT = "count(*)"


class Pages:
    """The rows that an expression matches, in the order of the primary key.

    Each page is a request of its own, for the keys after the last one of the page before. So it
    does not matter what is written meanwhile: a row that is there all the time comes once.

    Of several rows with the same key, which a server keeps where they were inserted and not
    upserted, one comes.

    Args:
        context: The collection.
        layout: Its columns.
        expression: What to read; everything, where it is empty.
        fields: The output fields, the primary key among them.
        options: Partitions, consistency level and timeout.
        rows: Most rows of a page; bytes bound it besides.
        after: The primary key after which to begin.
    """

    def __init__(
        self,
        context: Context,
        layout: Layout,
        expression: str,
        fields: Sequence[str],
        options: ReadOptions,
        *,
        rows: int = ROWS_PER_PAGE,
        after: str | int | None = None,
    ) -> None:
        self.layout = layout
        self.last = after
        self._context = context
        self._expression = expression
        self._options = options
        self._rows = rows
        self._limit = min(rows, rows_per_page(layout, fields))
        self._at_end = False
        every = expression or _filters.everything_expression(layout)
        self._query = _query(context, layout, every, options, fields)

    async def settle(self) -> None:
        """Wait until reads see what the consistency level promises; pages by themselves do not."""
        key = (self.layout.primary_key,)
        await self._send(replace(self._query, output_fields=key, limit=1))

    async def all_at_once(self) -> list[Row] | None:
        """All rows, where they are not more than a page; `None` otherwise.

        It heeds the consistency level, so that pages which are read afterwards need not `settle`.
        """
        rows, limit = await self._read(replace(self._query, limit=self._limit))
        if len(rows) == limit:
            return None
        if len(rows) and not self.layout.engine.replaces_on_insert:
            # Milvus drops rows of the same key after it has applied the limit (seen with 2.3.5).
            # What has to be visible is by now.
            counted = replace(self._query, consistency_level="Eventually")
            if await _count(self._context, counted, self._options.timeout) > limit:
                return None
        try:
            return sorted(rows, key=lambda row: row[self.layout.primary_key])
        except KeyError as error:
            # Milvus Lite leaves out a column that is no longer there: the layout is an old one.
            raise RowError(f"rows came without the primary key {error}") from error

    async def next(self, limit: int | None = None) -> Sequence[Row]:
        """The next page; empty after the last.

        Args:
            limit: Most rows.
        """
        if self._at_end:
            return []
        query = replace(self._query, in_order=True)
        if self.last is not None:
            after = _filters.next_page_expression(self.layout, self._expression, self.last)
            query = replace(query, expression=after)
        asked = self._limit if limit is None else min(self._limit, limit)
        rows, asked = await self._read(replace(query, limit=asked))
        # A page that is not full is the last one, if no rows of the same key were dropped from it.
        self._at_end = not rows or (len(rows) < asked and self.layout.engine.replaces_on_insert)
        if rows:
            self.last = rows[-1][self.layout.primary_key]
        return rows

    async def _read(self, query: Query) -> tuple[ResponseRows, int]:
        """Read rows, fewer where a message is too small for them; also returns the limit."""
        limit = query.limit or 1
        while True:
            try:
                rows = await self._send(replace(query, limit=limit))
            except ServerError as error:
                if limit == 1 or not is_too_large(error):
                    raise
                limit = self._limit = limit // 2
            else:
                break
        if rows:
            # It may grow again: rows differ in size.
            fitting = PAGE_BYTES * len(rows) // max(1, rows.size)
            self._limit = max(1, min(self._rows, fitting, 2 * max(limit, self._limit)))
        return rows, limit

    async def _send(self, query: Query) -> ResponseRows:
        await check_partitions(self._context, self.layout, "query", self._options)
        return await self._context.backend.query(query, self._options.timeout)


async def count_rows(
    context: Context, layout: Layout, expression: str, options: ReadOptions
) -> int:
    """Have Milvus count the rows that an expression matches, all of them where it is empty."""
    await check_partitions(context, layout, "query", options)
    if options.partition_names is not None:
        # Milvus Lite (up to 3.2.2) counts those of all partitions where there is no expression.
        expression = expression or _filters.everything_expression(layout)
    query = _query(context, layout, expression, options)
    return await _count(context, query, options.timeout)


def _query(
    context: Context,
    layout: Layout,
    expression: str,
    options: ReadOptions,
    fields: Sequence[str] = (),
) -> Query:
    """A read of the rows that an expression matches, as its caller, or the store, wants it."""
    return Query(
        layout.collection_name,
        expression,
        tuple(fields),
        options.partition_names,
        options.consistency_level or context.options.consistency_level,
    )


async def _count(context: Context, query: Query, timeout: float | None) -> int:
    # Servers refuse a limit here.
    [row] = await context.backend.query(replace(query, output_fields=(_COUNT,)), timeout)
    return int(row[_COUNT])


async def read_all(
    context: Context,
    layout: Layout,
    expression: str,
    fields: Sequence[str],
    options: ReadOptions,
) -> list[Row]:
    """Read every row that an expression matches, in the order of the primary key."""
    pages = Pages(context, layout, expression, fields, options)
    rows = await pages.all_at_once()
    if rows is None:
        rows = []
        while page := await pages.next():
            rows += page
    return rows


async def read_some(
    context: Context,
    layout: Layout,
    expression: str,
    fields: Sequence[str],
    options: ReadOptions,
    limit: int,
) -> list[Row]:
    """Read the first rows that an expression matches, in the order of the primary key."""
    pages = Pages(context, layout, expression, fields, options)
    await pages.settle()
    rows: list[Row] = []
    while len(rows) < limit and (page := await pages.next(limit - len(rows))):
        rows += page
    return rows


def rows_per_page(layout: Layout, fields: Sequence[str]) -> int:
    """How many rows a page has room for, by the dimensions of their vectors."""
    columns = [layout.columns[name] for name in fields if name in layout.columns]
    dims = [column.dim or 0 for column in columns if column.type in VECTOR_TYPES]
    return max(1, PAGE_BYTES // (_FIRST_ROW_BYTES + 4 * sum(dims)))
