"""Count nodes, go through them, and list their documents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import NoneType
from typing import Generic, TypeVar

from llama_index.core.schema import BaseNode, Document
from llama_index.core.vector_stores.types import MetadataFilters

from .._retrieval.options import ReadOptions
from .._retrieval.values import check_count, check_flag, check_output_fields, described
from .._rpc import Row
from .._translation import filters as _filters
from .._translation.layout import NO_DOC_ID, NODE_TYPE_FIELD, Layout, stored_columns
from .._translation.row_to_node import RowReader
from .._transport.backend import Begun
from ..documents import StoredDocument
from ..errors import CollectionError, QueryError
from .context import Context
from .ids import check_node_ids, expressions_of
from .missing_keys import warn_of_missing_filters
from .pages import Pages, count_rows
from .reads import fields_to_read
from .setup import Ready

T = TypeVar("T")

#: Rows of a page of `list_documents`, which have no more than two ids.
_ROWS_OF_IDS = 5_000


async def count(
    context: Context,
    filters: MetadataFilters | None,
    node_ids: Sequence[str] | None,
    options: ReadOptions,
) -> int:
    """Count the nodes that match, all of them without filters and ids."""
    check_node_ids(node_ids)
    filters = _filters.metadata_filters(filters)

    async def read(ready: Ready) -> int:
        layout = ready.layout
        expressions = expressions_of(layout, node_ids, filters)
        count = sum([await count_rows(context, layout, each, options) for each in expressions])
        if not count:
            await warn_of_missing_filters(context, ready, filters)
        return count

    return await context.with_ready(read, missing=0)


class Iteration(ABC, Generic[T]):
    """How far one iteration over a collection has come.

    Args:
        filters: What the rows match.
        options: Partitions, consistency level and timeout.
        batch_size: Most rows of a page.
        after: The id after which to begin; the beginning by default.

    Raises:
        FilterError, QueryError: One of them is not allowed.
    """

    def __init__(
        self,
        filters: MetadataFilters | None,
        options: ReadOptions,
        *,
        batch_size: int,
        after: str | None,
    ) -> None:
        check_count("batch_size", batch_size)
        if not isinstance(after, (str, NoneType)):
            raise QueryError(f"after is {described(after)}; it must be the id of a node, a string")
        self._filters = _filters.metadata_filters(filters)
        self._options = options
        self._batch_size = batch_size
        self._pages: Pages | None = None
        self._last: str | int | None = after
        self._begun: Begun[Sequence[Row]] | None = None

    @abstractmethod
    def _begin(self, context: Context, layout: Layout) -> Sequence[str]:
        """Prepare for the rows of a layout; returns the fields to read."""

    @abstractmethod
    def _item(self, row: Row) -> T:
        """What is made of a row."""

    async def next_page(self, context: Context) -> list[T]:
        """What the next rows become, in the order of the primary key; nothing after the last."""
        return await context.with_ready(lambda ready: self._read(context, ready), missing=[])

    async def _read(self, context: Context, ready: Ready) -> list[T]:
        pages, is_first = self._pages, self._pages is None
        if pages is None or pages.layout is not ready.layout:
            # At the beginning, and where the collection has changed.
            self.close()
            fields = self._begin(context, ready.layout)
            [expression] = expressions_of(ready.layout, None, self._filters)
            pages = Pages(
                context,
                ready.layout,
                expression,
                fields,
                self._options,
                rows=self._batch_size,
                after=self._last,
            )
            await pages.settle()
            self._pages = pages
        begun, self._begun = self._begun, None
        rows = await (pages.next() if begun is None else begun)
        if is_first and not rows:
            await warn_of_missing_filters(context, ready, self._filters)
        last = pages.last
        if rows:
            # Milvus reads the next page while something is made of this one, and used.
            self._begun = context.backend.begin(pages.next())
        items = await context.backend.convert(rows, self._item)
        self._last = last
        return items

    def close(self) -> None:
        """Give up the page that is being read."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.cancel()


class NodeIteration(Iteration[BaseNode]):
    """How far one iteration over nodes has come.

    Args:
        filters: What the nodes match.
        options: Partitions, consistency level and timeout.
        batch_size: Most nodes of a page.
        include_embeddings: Whether the nodes carry their embeddings.
        output_fields: Fields in place of the store's.
        after: The id after which to begin.

    Raises:
        ConfigurationError, FilterError, QueryError: One of them is not allowed.
    """

    def __init__(
        self,
        filters: MetadataFilters | None,
        options: ReadOptions,
        *,
        batch_size: int,
        include_embeddings: bool,
        output_fields: Sequence[str] | None,
        after: str | None = None,
    ) -> None:
        super().__init__(filters, options, batch_size=batch_size, after=after)
        check_output_fields(output_fields)
        check_flag("include_embeddings", include_embeddings)
        self._include_embeddings = include_embeddings
        self._output_fields = output_fields

    def _begin(self, context: Context, layout: Layout) -> Sequence[str]:
        named, include = self._output_fields, self._include_embeddings
        fields = fields_to_read(context, layout, named, include)
        if include and layout.encodes_sparse:
            fields.append(str(layout.sparse_field))
        self._reader = RowReader(layout, fields)
        return self._reader.fields

    def _item(self, row: Row) -> BaseNode:
        return self._reader.node(row)


class IdIteration(Iteration[str]):
    """How far one iteration over ids has come; see `Iteration`."""

    def _begin(self, context: Context, layout: Layout) -> Sequence[str]:
        self._primary_key = layout.primary_key
        return [layout.primary_key]

    def _item(self, row: Row) -> str:
        return str(row[self._primary_key])


class RowIteration(Iteration[Row]):
    """How far one iteration over whole rows has come; see `Iteration`.

    Args:
        filters: What the rows match.
        options: Partitions, consistency level and timeout.
        layout: The columns that the rows have.
        batch_size: Most rows of a page.
    """

    def __init__(
        self,
        filters: MetadataFilters | None,
        options: ReadOptions,
        layout: Layout,
        *,
        batch_size: int,
    ) -> None:
        super().__init__(filters, options, batch_size=batch_size, after=None)
        self._layout = layout

    def _begin(self, context: Context, layout: Layout) -> Sequence[str]:
        if layout.columns != self._layout.columns:
            raise CollectionError(
                f"collection {layout.collection_name!r} has got other columns while its rows were "
                "read; begin again"
            )
        return stored_columns(layout)

    def _item(self, row: Row) -> Row:
        return row


async def next_page(context: Context, iteration: Iteration[T]) -> list[T]:
    """What the next rows of an iteration become; nothing after the last."""
    return await iteration.next_page(context)


async def list_documents(
    context: Context, filters: MetadataFilters | None, options: ReadOptions
) -> list[StoredDocument]:
    """The documents of the nodes that match, in the order of their ids."""
    filters = _filters.metadata_filters(filters)

    async def read(ready: Ready) -> list[StoredDocument]:
        layout = ready.layout
        if layout.doc_id_field is None:
            raise CollectionError(
                f"collection {layout.collection_name!r} has neither a column for the ids of "
                "documents nor a dynamic field, so that its documents cannot be listed"
            )
        fields = [layout.primary_key, layout.doc_id_field]
        if layout.holds_nodes:
            fields.append(NODE_TYPE_FIELD)
        [expression] = expressions_of(layout, None, filters)
        pages = Pages(context, layout, expression, fields, options, rows=_ROWS_OF_IDS)
        await pages.settle()
        nodes_of: dict[str | None, int] = {}

        def note(row: Row) -> None:
            doc_id = _document_of(layout, row)
            nodes_of[doc_id] = nodes_of.get(doc_id, 0) + 1

        while page := await pages.next():
            await context.backend.convert(page, note)
        if not nodes_of:
            await warn_of_missing_filters(context, ready, filters)
        # Those of no document come last.
        ids = sorted(nodes_of, key=lambda doc_id: (doc_id is None, doc_id or ""))
        return [StoredDocument(doc_id, nodes_of[doc_id]) for doc_id in ids]

    return await context.with_ready(read, missing=[])


def _document_of(layout: Layout, row: Row) -> str | None:
    """The id of a row's document; a document that was not split is its own node."""
    doc_id = row.get(layout.doc_id_field or "")
    if doc_id is not None and doc_id != NO_DOC_ID:
        return str(doc_id)
    if row.get(NODE_TYPE_FIELD) == Document.class_name():
        return str(row[layout.primary_key])
    return None
