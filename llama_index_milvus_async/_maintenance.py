"""The public pairs that look after what is stored: count, go through, list, update."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any, TypeVar

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import MetadataFilters

from . import _operations as operations
from ._arguments import read_call_options
from ._concurrency.slices import SLICE
from ._lifecycle import ConnectedStore
from ._retrieval.options import ReadOptions, UpdateOptions
from ._rpc import Row
from ._translation.layout import Layout
from .documents import StoredDocument

T = TypeVar("T")

#: Most nodes of one page of `iter_nodes`.
DEFAULT_PAGE_SIZE = 1_000
#: Most ids of one page of `iter_ids`. Milvus Lite goes through all rows for each page.
DEFAULT_ID_PAGE_SIZE = 10_000


class MaintainedStore(ConnectedStore):
    """A store whose nodes can be counted, gone through, listed and updated.

    Args:
        **arguments: Those of `StoreArguments`.
    """

    def count(
        self,
        filters: MetadataFilters | None = None,
        *,
        node_ids: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> int:
        """Count the nodes that match, without reading them. Blocks.

        Milvus counts rows: a node that was added twice without `upsert_mode` counts twice on a
        server.

        Args:
            filters: Metadata filters; all nodes by default.
            node_ids: Ids, any number, to count those of them that are there.
            **kwargs: `milvus_partition_names` (str or list); `consistency_level` (str); `timeout`
                (float), seconds for each RPC, the store's where it is `None`.

        Raises:
            ConfigurationError: A keyword argument is unknown or not allowed.
            QueryError: `node_ids` is not a list of texts.
            FilterError: A filter cannot be expressed.
            ServerError: Milvus refused or could not be reached.
        """
        options = read_call_options(ReadOptions, "count", kwargs)
        return self._block("count", operations.count, filters, node_ids, options)

    async def acount(
        self,
        filters: MetadataFilters | None = None,
        *,
        node_ids: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> int:
        """Count the nodes that match without blocking the event loop; see `count`."""
        options = read_call_options(ReadOptions, "acount", kwargs)
        return await self._await("acount", operations.count, filters, node_ids, options)

    def iter_nodes(
        self,
        filters: MetadataFilters | None = None,
        *,
        batch_size: int = DEFAULT_PAGE_SIZE,
        include_embeddings: bool = False,
        output_fields: Sequence[str] | None = None,
        after: str | None = None,
        **kwargs: Any,
    ) -> Generator[BaseNode, None, None]:
        """Go through the nodes that match, one by one, without holding them all. Blocks.

        They come in the order of the primary key, no more of them in memory than two pages have.
        A node that is there all the time comes exactly once, whatever is written meanwhile. One
        that is added, changed or deleted meanwhile comes as it is when its page is read. Leave
        whenever you like: nothing stays open.

        Args:
            filters: Metadata filters; all nodes by default.
            batch_size: Most nodes of one page. A page has fewer where they are large.
            include_embeddings: Whether the nodes carry their embeddings, so that `add` takes them
                back: those of `dense_fields`, and sparse ones that Milvus has not computed itself,
                in their metadata.
            output_fields: Fields in place of the store's.
            after: The id of a node, to begin with the one that follows it.
            **kwargs: As for `count`. What was written before the first page is seen as the
                consistency level says.

        Yields:
            The nodes.

        Raises:
            ConfigurationError: `include_embeddings` or a keyword argument is not allowed.
            QueryError: `batch_size`, `output_fields` or `after` are not allowed.
            FilterError: A filter cannot be expressed. This and the following at the first node.
            RowError: A row holds no readable node.
            ServerError: Milvus refused or could not be reached.
        """
        options = read_call_options(ReadOptions, "iter_nodes", kwargs)
        return self._iterate(
            "iter_nodes",
            operations.NodeIteration(
                filters,
                options,
                batch_size=batch_size,
                include_embeddings=include_embeddings,
                output_fields=output_fields,
                after=after,
            ),
        )

    def aiter_nodes(
        self,
        filters: MetadataFilters | None = None,
        *,
        batch_size: int = DEFAULT_PAGE_SIZE,
        include_embeddings: bool = False,
        output_fields: Sequence[str] | None = None,
        after: str | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[BaseNode, None]:
        """Go through the nodes that match without blocking the event loop; see `iter_nodes`.

        Use it as `async for node in store.aiter_nodes(): ...`.
        """
        options = read_call_options(ReadOptions, "aiter_nodes", kwargs)
        return self._aiterate(
            "aiter_nodes",
            operations.NodeIteration(
                filters,
                options,
                batch_size=batch_size,
                include_embeddings=include_embeddings,
                output_fields=output_fields,
                after=after,
            ),
        )

    def iter_ids(
        self,
        filters: MetadataFilters | None = None,
        *,
        batch_size: int = DEFAULT_ID_PAGE_SIZE,
        after: str | None = None,
        **kwargs: Any,
    ) -> Generator[str, None, None]:
        """Go through the ids of the nodes that match, without reading the nodes. Blocks.

        They come as the nodes of `iter_nodes` do.

        Args:
            filters: Metadata filters; all nodes by default.
            batch_size: Most ids of one page.
            after: An id, to begin with the one that follows it.
            **kwargs: As for `count`.

        Yields:
            The ids, in the order of the primary key.

        Raises:
            ConfigurationError: A keyword argument is unknown or not allowed.
            QueryError: `batch_size` or `after` are not allowed.
            FilterError: A filter cannot be expressed. This and the following at the first id.
            ServerError: Milvus refused or could not be reached.
        """
        options = read_call_options(ReadOptions, "iter_ids", kwargs)
        return self._iterate(
            "iter_ids",
            operations.IdIteration(filters, options, batch_size=batch_size, after=after),
        )

    def aiter_ids(
        self,
        filters: MetadataFilters | None = None,
        *,
        batch_size: int = DEFAULT_ID_PAGE_SIZE,
        after: str | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        """Go through ids without blocking the event loop; see `iter_ids`.

        Use it as `async for node_id in store.aiter_ids(): ...`.
        """
        options = read_call_options(ReadOptions, "aiter_ids", kwargs)
        return self._aiterate(
            "aiter_ids",
            operations.IdIteration(filters, options, batch_size=batch_size, after=after),
        )

    def _iterate(self, name: str, iteration: operations.Iteration[T]) -> Generator[T, None, None]:
        try:
            while page := self._block(name, operations.next_page, iteration):
                yield from page
        finally:
            iteration.close()

    async def _aiterate(
        self, name: str, iteration: operations.Iteration[T]
    ) -> AsyncGenerator[T, None]:
        try:
            while page := await self._await(name, operations.next_page, iteration):
                began = time.perf_counter()
                for item in page:
                    yield item
                    # What the caller does with the items of a page may never wait for anything.
                    if time.perf_counter() - began > SLICE:
                        await asyncio.sleep(0)
                        began = time.perf_counter()
        finally:
            iteration.close()

    def list_documents(
        self, filters: MetadataFilters | None = None, **kwargs: Any
    ) -> list[StoredDocument]:
        """List the documents that nodes belong to, with the number of their nodes. Blocks.

        Every node's ids are read, and nothing else of them. Memory is taken for each document,
        not for each node.

        Args:
            filters: Metadata filters; documents of all nodes by default. Only nodes that match
                are counted.
            **kwargs: As for `count`.

        Returns:
            The documents in the order of their ids. A document that was stored whole, as a node,
            is its own; all other nodes without a document are those of `doc_id=None`, which
            comes last.

        Raises:
            ConfigurationError: A keyword argument is unknown or not allowed.
            CollectionError: The collection does not store ids of documents.
            FilterError: A filter cannot be expressed.
            ServerError: Milvus refused or could not be reached.
        """
        options = read_call_options(ReadOptions, "list_documents", kwargs)
        return self._block("list_documents", operations.list_documents, filters, options)

    async def alist_documents(
        self, filters: MetadataFilters | None = None, **kwargs: Any
    ) -> list[StoredDocument]:
        """List documents without blocking the event loop; see `list_documents`."""
        options = read_call_options(ReadOptions, "alist_documents", kwargs)
        return await self._await("alist_documents", operations.list_documents, filters, options)

    def update_metadata(
        self,
        filters: MetadataFilters | None = None,
        *,
        node_ids: Sequence[str] | None = None,
        set: Mapping[str, Any] | None = None,
        unset: Sequence[str] = (),
        **kwargs: Any,
    ) -> int:
        """Change metadata of the nodes that match, and keep all else, vectors included. Blocks.

        The serialized nodes change together with what filters see of them: columns of
        `scalar_field_names`, and the dynamic field. Rows stay in their partitions. The ids of
        documents are not metadata, and stay.

        The rows are read with their vectors and written again, some hundreds at a time. Meanwhile
        other writes of this process wait, so that none is undone: a node that it deletes does not
        come back. Milvus has no transactions: what another process writes to a node, or deletes,
        in the few milliseconds between reading and writing it, is undone.

        Doing it again does no harm, also after an error or a lost connection.

        Args:
            filters: Metadata filters. Filters without a condition select every node.
            node_ids: Ids, any number; those that are not in the collection are left out.
            set: Metadata keys to values.
            unset: Metadata keys to remove where they are.
            **kwargs: `milvus_partition_names` (str or list); `timeout` (float), seconds for each
                RPC, the store's where it is `None`.

        Returns:
            The number of nodes that match, those included that were so already.

        Raises:
            ConfigurationError: A keyword argument is unknown or not allowed.
            QueryError: Neither filters nor ids are given, or neither `set` nor `unset`; or a key
                or a value is not allowed. Nothing is changed.
            CollectionError: The collection numbers its rows itself (`auto_id`).
            FilterError: A filter cannot be expressed.
            NodeError: A node would become larger than Milvus allows.
            RowError: A row holds no readable node.
            PartialWriteError: It failed after nodes were changed; it has their ids.
            ServerError: Milvus refused or could not be reached.
        """
        change = operations.MetadataChange.of(set, unset)
        options = read_call_options(UpdateOptions, "update_metadata", kwargs)
        return self._block(
            "update_metadata", operations.update_metadata, filters, node_ids, change, options
        )

    async def aupdate_metadata(
        self,
        filters: MetadataFilters | None = None,
        *,
        node_ids: Sequence[str] | None = None,
        set: Mapping[str, Any] | None = None,
        unset: Sequence[str] = (),
        **kwargs: Any,
    ) -> int:
        """Change metadata of nodes without blocking the event loop; see `update_metadata`."""
        change = operations.MetadataChange.of(set, unset)
        options = read_call_options(UpdateOptions, "aupdate_metadata", kwargs)
        return await self._await(
            "aupdate_metadata", operations.update_metadata, filters, node_ids, change, options
        )


async def pages_of_rows(
    store: MaintainedStore, filters: MetadataFilters | None, layout: Layout
) -> AsyncGenerator[Sequence[Row], None]:
    """Go through the whole rows that match, a page at a time; for `migration`.

    Args:
        store: The collection.
        filters: Metadata filters; all rows by default.
        layout: The columns that the rows have.

    Yields:
        Rows, as `_rpc.Rows` has them. What was written before, by anyone, is among them.
    """
    options = ReadOptions(consistency_level="Strong")
    iteration = operations.RowIteration(filters, options, layout, batch_size=DEFAULT_PAGE_SIZE)
    try:
        while page := await store._await("export", operations.next_page, iteration):  # noqa: SLF001
            yield page
    finally:
        iteration.close()
