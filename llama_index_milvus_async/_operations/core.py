"""Every operation of the store, once, as coroutines over a `Backend`.

Nothing here knows whether it runs on an event loop or in a blocking call.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar, cast

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)

from .._concurrency.drivers import is_asynchronous
from .._concurrency.once import Once
from .._requests import DeleteDocuments, GetByIds, HybridSearch, Insert, Search
from .._retrieval.ranking import CallableRanker, ClientRanker
from .._retrieval.search import (
    PreparedSearch,
    ReadOptions,
    ScoredHits,
    SearchOptions,
    StoreOptions,
    check_ids,
    check_output_fields,
    check_query,
    check_ranked,
    choose_hits,
    empty_result,
    node_of,
    prepare_search,
    searches_sparse,
)
from .._translation import filters as _filters
from .._translation.engine import Engine
from .._translation.rows import PackedRow, RowPacker, RowReader
from .._translation.schema import (
    VECTOR_TYPES,
    CollectionSettings,
    Index,
    Layout,
    check_engine,
    check_layout,
    check_metric,
    differing_properties,
    new_index,
    new_schema,
)
from .._transport.backend import (
    MAX_IDS,
    MAX_INSERT_BYTES,
    MAX_SEARCH_HITS,
    MAX_SEARCH_VECTORS,
    Backend,
)
from .._wire.status import is_too_large
from ..errors import (
    CollectionError,
    ConfigurationError,
    PartialWriteError,
    QueryError,
    RequestTimeoutError,
    ServerError,
    UnreachableError,
    WriteOutcomeUnknownError,
)
from ..sparse import SparseEncoder

logger = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")

#: A search of a query: the query's number, and the leg's.
_Place = tuple[int, int]

#: Rows of one page. A row is at most about 200 KiB, and a response must stay below 512 MiB.
ROWS_PER_PAGE = 2_000


@dataclass(frozen=True)
class Ready:
    """What making ready has found out.

    Attributes:
        layout: The collection's columns.
        indexes: The index of each vector column.
    """

    layout: Layout
    indexes: Mapping[str, Index]


@dataclass(frozen=True)
class WriteOptions:
    """Keyword arguments of an `add`.

    Attributes:
        milvus_partition_name: The partition to write to; Milvus' default one by default.
        force_flush: Seal the rows before returning.
        show_progress: Show a bar.
        timeout: Seconds for each RPC of this call.
    """

    milvus_partition_name: str | None = None
    force_flush: bool = False
    show_progress: bool = False
    timeout: float | None = None

    def __post_init__(self) -> None:
        _check_partition(self.milvus_partition_name)


@dataclass(frozen=True)
class DeleteOptions:
    """Keyword arguments of a delete.

    Attributes:
        milvus_partition_name: Delete within this partition only.
        timeout: Seconds for each RPC of this call.
    """

    milvus_partition_name: str | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        _check_partition(self.milvus_partition_name)


@dataclass(frozen=True)
class GetOptions(ReadOptions):
    """Keyword arguments of `get_nodes`.

    Attributes:
        output_fields: Fields to fetch beside the node, in place of the store's.
    """

    output_fields: Sequence[str] | None = None


@dataclass
class Overwrite:
    """Whether the collection has still to be dropped, which happens once in a store's life."""

    pending: bool


async def make_ready(backend: Backend, settings: CollectionSettings, overwrite: Overwrite) -> Ready:
    """Find or create the collection, its index and its properties, and load it.

    Args:
        backend: Where to send requests.
        settings: What the collection has to be.
        overwrite: Whether to drop the collection first; settled when that is done.

    Raises:
        CollectionError: The existing collection does not fit.
        ConfigurationError: `dim` is missing for a new collection.
    """
    name = settings.collection_name
    engine = Engine.parse(await backend.server_version())
    check_engine(settings, engine)
    if engine.needs_one_writer:
        backend.note_collection_of_lite(name)
    description = await backend.describe_collection(name)
    if description is not None and overwrite.pending:
        if description["collection_name"] != name:
            raise ConfigurationError(
                f"overwrite=True: {name!r} is an alias of {description['collection_name']!r}; "
                "name the collection itself to overwrite it"
            )
        new_schema(settings)  # Raises before the drop what would fail after it.
        description = await _unless_done(
            lambda: backend.drop_collection(name),
            lambda: backend.describe_collection(name),
            is_done=lambda description: description is None,
        )
    # Not earlier: after a failure the next attempt has to refuse, or to drop, again.
    overwrite.pending = False
    if description is None:
        schema = new_schema(settings)
        description = await _unless_done(
            lambda: backend.create_collection(name, schema, settings.consistency_level),
            lambda: backend.describe_collection(name),
        )
        logger.info("created collection %r", name)
        if description is None:
            raise CollectionError(f"collection {name!r} was dropped while it was made ready")
    layout = Layout.from_description(description, settings, engine)
    check_layout(layout, settings)

    indexes = await _make_indexes(backend, settings, layout)
    await _apply_properties(backend, settings, description.get("properties") or {})
    # Without indexes a collection cannot be loaded; whoever manages them does both.
    if all(index.type for index in indexes.values()) and not await backend.is_loaded(name):
        await backend.load_collection(name)
    return Ready(layout, indexes)


async def _unless_done(
    change: Callable[[], Awaitable[None]],
    describe: Callable[[], Awaitable[T]],
    is_done: Callable[[T], bool] = lambda description: description is not None,
) -> T:
    """Change the collection; returns its description afterwards.

    A refusal is none where things are as wanted: another process was faster, or an earlier attempt
    has succeeded and its answer was lost.
    """
    try:
        await change()
    except (UnreachableError, RequestTimeoutError):
        raise
    except ServerError:
        description = await describe()
        if not is_done(description):
            raise
        return description
    return await describe()


async def _make_indexes(
    backend: Backend, settings: CollectionSettings, layout: Layout
) -> dict[str, Index]:
    """Create the indexes that are missing; returns those of all vector columns."""
    name = settings.collection_name
    used = {field.name: field for field in settings.vectors}
    indexes: dict[str, Index] = {}
    for column in layout.columns.values():
        if column.type not in VECTOR_TYPES:
            continue
        field = used.get(column.name)
        index = await backend.describe_index(name, column.name)
        if index is None and field is not None and settings.create_index:
            wanted = new_index(field, layout.engine)
            index = await _unless_done(
                partial(backend.create_index, name, wanted),
                partial(backend.describe_index, name, column.name),
            )
        elif index is not None and field is not None:
            check_metric(index, field, name)
        index = index or {}
        metric = str(index.get("metric_type", field.metric if field else "")).upper()
        indexes[column.name] = Index(metric, str(index.get("index_type", "")))
    return indexes


async def _apply_properties(
    backend: Backend, settings: CollectionSettings, described: Mapping[str, Any]
) -> None:
    missing = differing_properties(settings.properties, described)
    if not missing:
        return
    name = settings.collection_name
    # How segments are mapped into memory can only be changed while none is.
    if any("mmap" in key for key in missing) and await backend.is_loaded(name):
        await backend.release_collection(name)
    await backend.alter_properties(name, missing)


class Core:
    """The operations on one collection over one backend.

    Args:
        backend: Where requests go.
        ready: Makes the collection ready, once for the store.
        upsert: Whether `add` replaces rows of the same id.
        batch_size: Most rows of one insert.
        encoder: Encodes texts as sparse vectors, where the store and not Milvus does.
        options: What reads ask for where they name nothing.
    """

    def __init__(
        self,
        backend: Backend,
        ready: Once[Ready],
        *,
        upsert: bool,
        batch_size: int,
        encoder: SparseEncoder | None,
        options: StoreOptions,
    ) -> None:
        self._backend = backend
        self._once = ready
        self._upsert = upsert
        self._batch_size = batch_size
        self._encoder = encoder
        self._options = options

    async def ready(self) -> Ready:
        """Make the collection ready where it is not yet."""
        return await self._backend.once(self._once)

    async def add(self, nodes: Sequence[BaseNode], options: WriteOptions) -> list[str]:
        """Write nodes; returns their ids in the order of the nodes."""
        if not nodes:
            return []
        layout = (await self.ready()).layout
        if layout.auto_id:
            raise CollectionError(
                f"collection {layout.collection_name!r} numbers its rows itself (auto_id), so that "
                "nodes cannot keep their ids: it can be read and queried, not added to"
            )
        if layout.unfilled_vectors:
            raise CollectionError(
                f"collection {layout.collection_name!r} needs a vector for each of the fields "
                f"{layout.unfilled_vectors} as well, and nodes have embeddings for "
                f"{list(layout.dense_fields)} only: it can be read and queried, not added to. Name "
                "further fields in dense_fields"
            )
        packer = RowPacker(layout)
        if layout.encodes_sparse:
            texts = [node.get_content(metadata_mode=MetadataMode.NONE) for node in nodes]
            sparse = await self._encode(texts, queries=False)
            pairs = list(zip(nodes, sparse, strict=True))
            rows = await self._backend.convert(pairs, lambda pair: packer.pack(*pair))
        else:
            rows = await self._backend.convert(nodes, packer.pack)
        packer.raise_problems()
        unique = {row.node_id: row for row in rows if row is not None}
        if len(unique) < len(nodes):
            logger.warning(
                "%d of %d nodes have an id that a later one of the same call has; the last of "
                "each id is kept",
                len(nodes) - len(unique),
                len(nodes),
            )
        await self._write(list(unique.values()), layout, options)
        if options.force_flush:
            await self._backend.flush(layout.collection_name, options.timeout)
        elif layout.engine.scans_unflushed_rows:
            self._backend.note_rows_of_lite(layout.collection_name, len(unique))
        return [node.node_id for node in nodes]

    async def _encode(self, texts: Sequence[str], *, queries: bool) -> Sequence[Any]:
        """Encode texts as sparse vectors."""
        if self._encoder is None:
            raise CollectionError(
                "the collection's sparse vectors are computed on this side, and the store has no "
                "sparse_embedding_function; pass the one that they were computed with"
            )
        return await self._backend.encode(self._encoder, texts, queries=queries)

    async def _write(
        self, rows: Sequence[PackedRow], layout: Layout, options: WriteOptions
    ) -> None:
        # Lite merges the dynamic keys of an upserted row into the old ones, and its insert
        # replaces the row; a server does the opposite, and its insert would double the row.
        upsert = self._upsert and not layout.engine.merges_upserted_rows

        repeatable = self._upsert or layout.engine.replaces_on_insert
        partition = options.milvus_partition_name
        request = Insert(layout.collection_name, layout.primary_key, partition, upsert, repeatable)

        batches = list(split(rows, self._batch_size, MAX_INSERT_BYTES))
        with _progress(len(rows), options) as written:

            async def send(batch: Sequence[PackedRow]) -> None:
                size = sum(row.size for row in batch)
                values = [row.values for row in batch]
                await self._backend.insert(request, values, size, options.timeout)
                written(len(batch))

            outcomes = await self._backend.send_all(batches, send)
        failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if not failures:
            return
        ids: dict[str, list[str]] = {"written": [], "not_written": [], "unknown": []}
        for batch, outcome in zip(batches, outcomes, strict=True):
            ids[_fate(outcome)].extend(row.node_id for row in batch)
        first = next((one for one in failures if isinstance(one, ServerError)), failures[0])
        if ids["unknown"] and not repeatable:
            lost = next(error for error in failures if _fate(error) == "unknown")
            assert isinstance(lost, ServerError)
            raise WriteOutcomeUnknownError(lost.operation, lost.message, lost.code, **ids) from lost
        if len(batches) == 1 or not isinstance(first, ServerError):
            raise first
        raise PartialWriteError(first.operation, first.message, first.code, **ids) from first

    async def delete(self, doc_ids: str | Sequence[str], options: DeleteOptions) -> None:
        """Delete the nodes of documents."""
        wanted = [doc_ids] if isinstance(doc_ids, str) else list(doc_ids)
        for doc_id in wanted:
            _check_id("ref_doc_id", doc_id)
        if not wanted:
            return
        layout = (await self.ready()).layout
        select = partial(_filters.doc_ids_expression, layout.filter_columns)
        partition = options.milvus_partition_name
        if partition is not None and not layout.engine.deletes_within_partition:
            await self._delete([select(chunk) for chunk in _chunks(wanted)], layout, options)
            return
        request = DeleteDocuments(layout.collection_name, partition, select)
        for chunk in _chunks(wanted):
            await self._backend.delete_documents(request, chunk, options.timeout)

    async def delete_nodes(
        self,
        node_ids: Sequence[str] | None,
        filters: MetadataFilters | None,
        options: DeleteOptions,
    ) -> None:
        """Delete nodes by id, by filter, or by both."""
        if node_ids is None and (filters is None or not filters.filters):
            raise QueryError(
                "delete_nodes() needs node_ids or filters; to delete everything call clear()"
            )
        _check_ids(node_ids)
        if node_ids is not None and not node_ids:
            return
        layout = (await self.ready()).layout
        expressions = self._selections(layout, node_ids, filters)
        if "" in expressions:
            raise QueryError(
                "delete_nodes() got filters that every node passes; to delete everything call "
                "clear()"
            )
        await self._delete(expressions, layout, options)

    async def clear(self, timeout: float | None) -> None:
        """Delete every row; collection, index, partitions, aliases and grants stay."""
        layout = (await self.ready()).layout
        everything = _filters.everything_expression(layout.filter_columns)
        await self._delete([everything], layout, DeleteOptions(timeout=timeout))

    async def _delete(
        self, expressions: Sequence[str], layout: Layout, options: DeleteOptions
    ) -> None:
        partition = options.milvus_partition_name
        if partition is not None and not layout.engine.deletes_within_partition:
            expressions = await self._within_partition(
                partition, expressions, layout, options.timeout
            )
        for expression in expressions:
            await self._backend.delete(
                layout.collection_name,
                expression,
                partition_name=partition,
                timeout=options.timeout,
            )

    async def _within_partition(
        self, partition: str, expressions: Sequence[str], layout: Layout, timeout: float | None
    ) -> list[str]:
        """Select by primary key what expressions match in the partition of a delete.

        Milvus Lite (up to 3.2.2) deletes what they match in every partition.
        """
        if not await self._backend.has_partition(layout.collection_name, partition, timeout):
            raise ServerError("delete", f"partition not found: {partition!r}")
        within = ReadOptions(milvus_partition_names=partition, timeout=timeout)
        ids: list[str] = []
        for expression in expressions:
            rows = await self._read_all(layout, expression, [layout.primary_key], within)
            ids += [str(row[layout.primary_key]) for row in rows]
        return [_filters.ids_expression(layout.filter_columns, chunk) for chunk in _chunks(ids)]

    async def get_nodes(
        self,
        node_ids: Sequence[str] | None,
        filters: MetadataFilters | None,
        options: GetOptions,
    ) -> list[BaseNode]:
        """Read nodes by id, in the order of the ids, or by filter, or by both."""
        if node_ids is None and filters is None:
            raise QueryError("Either node_ids or filters must be provided.")
        _check_ids(node_ids)
        check_output_fields(options.output_fields)
        if node_ids is not None and not node_ids:
            return []
        layout = (await self.ready()).layout
        named = (
            self._options.output_fields if options.output_fields is None else options.output_fields
        )
        reader = RowReader(layout, named)
        rows: list[Mapping[str, Any]] = []
        if node_ids is not None and filters is None:
            request = GetByIds(
                layout.collection_name,
                layout.primary_key,
                output_fields=tuple(reader.fields),
                partition_names=options.partition_names,
                consistency_level=options.consistency_level or self._options.consistency_level,
                select=partial(_filters.ids_expression, layout.filter_columns),
            )

            async def get(ids: Sequence[str]) -> Sequence[Mapping[str, Any]]:
                return await self._backend.get_by_ids(request, ids, options.timeout)

            for chunk in _chunks(node_ids):
                rows += await _in_parts(chunk, get)
        else:
            for expression in self._selections(layout, node_ids, filters):
                rows += await self._read_all(layout, expression, reader.fields, options)
        nodes = await self._backend.convert(rows, reader.node)
        if node_ids is None:
            return nodes
        by_id = {node.node_id: node for node in nodes}
        return [by_id[node_id] for node_id in dict.fromkeys(node_ids) if node_id in by_id]

    def _selections(
        self,
        layout: Layout,
        node_ids: Sequence[str] | None,
        filters: MetadataFilters | None,
    ) -> list[str]:
        """The expressions that together select ids and filters."""
        chunks: Iterable[Sequence[str] | None] = [None] if node_ids is None else _chunks(node_ids)
        return [
            _filters.build_expression(layout.filter_columns, filters=filters, node_ids=chunk)
            for chunk in chunks
        ]

    async def _read_all(
        self, layout: Layout, expression: str, fields: Sequence[str], options: ReadOptions
    ) -> list[Mapping[str, Any]]:
        """Read every row that an expression matches."""
        read = partial(
            self._backend.query,
            layout.collection_name,
            output_fields=fields,
            partition_names=options.partition_names,
            consistency_level=options.consistency_level or self._options.consistency_level,
            timeout=options.timeout,
        )
        limit = ROWS_PER_PAGE

        async def read_page(expression: str, **arguments: Any) -> list[Mapping[str, Any]]:
            nonlocal limit
            while True:
                try:
                    return await read(expression, limit=limit, **arguments)
                except ServerError as error:
                    if limit == 1 or not is_too_large(error):
                        raise
                    limit //= 2

        everything = _filters.everything_expression(layout.filter_columns)
        page = await read_page(expression or everything)
        if len(page) < limit:
            return page
        # More than a page: start again, ordered by primary key. A limit alone returns any rows;
        # as an iterator's request they come sorted, on Lite as well. Such requests ignore the
        # consistency level, which the read above has already waited for.
        rows: list[Mapping[str, Any]] = []
        page_expression = expression or everything
        while True:
            page = await read_page(page_expression, iterator="True", reduce_stop_for_best="False")
            rows += page
            if len(page) < limit:
                return rows
            last = max(row[layout.primary_key] for row in page)
            page_expression = _filters.next_page_expression(layout.filter_columns, expression, last)

    async def query(
        self, query: VectorStoreQuery, options: SearchOptions
    ) -> VectorStoreQueryResult:
        """Answer a query."""
        [result] = await self.query_many([query], options)
        return result

    async def query_many(
        self, queries: Sequence[VectorStoreQuery], options: SearchOptions
    ) -> list[VectorStoreQueryResult]:
        """Answer queries, those that ask alike in common RPCs; results in their order."""
        for query in queries:
            check_query(query, options)
        results = [empty_result() for _ in queries]
        asked = [i for i, query in enumerate(queries) if query.doc_ids is None or query.doc_ids]
        if not asked:
            return results
        ready = await self.ready()
        layout = ready.layout
        sparse: dict[int, Any] = {}
        if layout.encodes_sparse:
            texts = {
                i: queries[i].query_str or "" for i in asked if searches_sparse(queries[i], options)
            }
            encoded = await self._encode(list(texts.values()), queries=True) if texts else []
            sparse = dict(zip(texts, encoded, strict=True))

        def prepare(i: int) -> PreparedSearch:
            return prepare_search(
                queries[i], options, layout, ready.indexes, self._options, sparse.get(i)
            )

        prepared = await self._backend.convert(asked, prepare)
        searches = dict(zip(asked, prepared, strict=True))
        hits = await self._search(searches, options)

        chosen: dict[int, list[ScoredHits]] = {}

        def hits_of_all() -> Iterator[tuple[PreparedSearch, Mapping[str, Any]]]:
            for i in asked:
                chosen[i] = choose_hits(queries[i], options, searches[i], hits[i])
                for scored in chosen[i]:
                    yield from ((searches[i], hit) for hit in scored.hits)

        nodes = iter(await self._backend.convert(hits_of_all(), node_of))
        for i in asked:
            legs = [(list(islice(nodes, len(one.hits))), one.similarities) for one in chosen[i]]
            if len(legs) == 1:
                [(found, similarities)] = legs
            else:
                found, similarities = await self._rank(queries[i], options, searches[i], legs)
            results[i] = VectorStoreQueryResult(
                nodes=found, similarities=similarities, ids=[node.node_id for node in found]
            )
        return results

    async def _rank(
        self,
        query: VectorStoreQuery,
        options: SearchOptions,
        search: PreparedSearch,
        legs: Sequence[tuple[Sequence[BaseNode], Sequence[float]]],
    ) -> tuple[list[BaseNode], list[float]]:
        """Have a ranker of the user rank the nodes of each leg."""
        candidates = [
            [
                NodeWithScore(node=node, score=score)
                for node, score in zip(nodes, similarities, strict=True)
            ]
            for nodes, similarities in legs
        ]
        rank = cast(CallableRanker, search.ranker).rank
        if not is_asynchronous(rank):
            rank = partial(_listed, rank)
        returned = await self._backend.call(rank, query, candidates)
        return check_ranked(options, search, returned)

    async def _search(
        self, searches: Mapping[int, PreparedSearch], options: SearchOptions
    ) -> dict[int, list[Sequence[Any]]]:
        """Send searches; returns for each the hits of its legs, or those that Milvus has fused."""
        wanted: dict[_Place, tuple[Search | HybridSearch, Any]] = {}
        for i, search in searches.items():
            if search.hybrid is not None:
                wanted[i, 0] = search.hybrid, tuple(leg.data for leg in search.legs)
            else:
                for number, leg in enumerate(search.legs):
                    wanted[i, number] = leg.request, leg.data
        found = await self._send_searches(wanted, options.timeout)
        # Lite's HNSW drops what the filter refuses, and what was deleted, after the search.
        short: dict[_Place, tuple[Search | HybridSearch, Any]] = {
            (i, number): (leg.exhaustive, leg.data)
            for i, search in searches.items()
            if search.hybrid is None
            for number, leg in enumerate(search.legs)
            if leg.exhaustive is not None and len(found[i, number]) < leg.request.limit
        }
        if short:
            found.update(await self._send_searches(short, options.timeout))
        hits: dict[int, list[Sequence[Any]]] = {i: [] for i in searches}
        for i, number in sorted(found):
            hits[i].append(found[i, number])
        return hits

    async def _send_searches(
        self, wanted: Mapping[_Place, tuple[Search | HybridSearch, Any]], timeout: float | None
    ) -> dict[_Place, Sequence[Any]]:
        """Send searches, those that ask alike in common requests."""
        alike: dict[Search | HybridSearch, list[_Place]] = {}
        for place, (request, _) in wanted.items():
            alike.setdefault(request, []).append(place)
        batches = [
            (request, places[start : start + count])
            for request, places in alike.items()
            for count in [max(1, min(MAX_SEARCH_VECTORS, MAX_SEARCH_HITS // request.limit))]
            for start in range(0, len(places), count)
        ]
        found: dict[_Place, Sequence[Any]] = {}

        async def send(batch: tuple[Search | HybridSearch, list[_Place]]) -> None:
            request, places = batch

            async def search(data: Sequence[Any]) -> list[Any]:
                if isinstance(request, HybridSearch):
                    return await self._backend.hybrid_search(request, data, timeout)
                return await self._backend.search(request, data, timeout)

            hits = await _in_parts([wanted[place][1] for place in places], search)
            found.update(zip(places, hits, strict=True))

        for outcome in await self._backend.send_all(batches, send):
            if isinstance(outcome, Exception):
                raise outcome
        return found


async def _in_parts(
    items: Sequence[Item], read: Callable[[Sequence[Item]], Awaitable[Sequence[T]]]
) -> Sequence[T]:
    """Read what belongs to items, those that a message is too small for in several requests."""
    try:
        return await read(items)
    except ServerError as error:
        if len(items) == 1 or not is_too_large(error):
            raise
    half = len(items) // 2
    return [*await _in_parts(items[:half], read), *await _in_parts(items[half:], read)]


def _listed(rank: ClientRanker, *arguments: Any) -> Any:
    """Call a ranker, which may be a generator function: that works where it is read."""
    returned = rank(*arguments)
    return list(returned) if isinstance(returned, Iterator) else returned


def _fate(outcome: Exception | bool) -> str:
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


def _chunks(ids: Sequence[str]) -> list[Sequence[str]]:
    unique = list(dict.fromkeys(ids))
    return [unique[i : i + MAX_IDS] for i in range(0, len(unique), MAX_IDS)]


def _check_partition(name: str | None) -> None:
    if name is not None and not name:
        raise ConfigurationError(
            f"milvus_partition_name is {name!r}; name a partition, or leave it out"
        )


def _check_ids(node_ids: Sequence[str] | None) -> None:
    check_ids("node_ids", node_ids)
    for node_id in node_ids or ():
        _check_id("node_ids", node_id)


def _check_id(argument: str, value: object) -> None:
    if not isinstance(value, str):
        raise QueryError(f"{argument} has {value!r}, a {type(value).__name__}; ids are texts")
