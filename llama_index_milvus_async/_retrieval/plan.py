"""From a query to the searches that are sent for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from llama_index.core.vector_stores.types import VectorStoreQuery
from pymilvus import DataType

from .._rpc import HybridSearch, RankByFunctions, Search
from .._translation import filters as _filters
from .._translation.engine import Engine
from .._translation.index_types import ignored_params
from .._translation.layout import Column, Index, Layout
from .._translation.row_to_node import RowReader
from .._translation.sparse_vectors import NoWeightsError, sparse_bytes, sparse_vector
from .._translation.vectors import packed
from ..errors import QueryError
from .checks import has_text, lacking
from .modes import Mode, mode_of, ranked_candidates
from .options import SearchOptions, StoreOptions
from .ranking import (
    CallableRanker,
    Ranker,
    RelativeScore,
    ServerRanker,
    check_weights,
    only_fuses,
    ranker_of,
)
from .rerank_functions import check_columns
from .search_params import exhaustive_params, search_params, warn_of_ignored
from .values import check_search_config

T = TypeVar("T")

#: Requests, expressions and readers that a collection remembers. Filters that differ for each user
#: make many.
MAX_REMEMBERED = 256
#: Characters of the longest expression of such a request.
MAX_REMEMBERED_EXPRESSION = 1_000


@dataclass(frozen=True)
class Leg:
    """One search of a query.

    Attributes:
        request: What it may have in common with other queries'.
        data: What it has not: a vector, a sparse vector, or a text for Milvus to encode. `None`
            where the text has no weights: there is nothing to search for, and nothing found.
        metric: The metric of the field.
        exhaustive: The request of a second search where the first came short, `None` where the
            engine never does.
    """

    request: Search
    data: Any
    metric: str
    exhaustive: Search | None = None


class _SearchKey(NamedTuple):
    """What the searches of one field differ in, within one call."""

    field: str
    limit: int
    expression: str
    output_fields: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]
    ranker: RankByFunctions | None


@dataclass(frozen=True)
class PreparedSearch:
    """The searches of one query, ready to be sent.

    Attributes:
        query: The query.
        options: The keyword arguments of the call.
        mode: The mode of the query.
        legs: Its searches: one, or those of a hybrid search.
        hybrid: The request that has Milvus fuse the legs; `None` for one leg, and where they are
            searched each on its own and fused here.
        ranker: What makes one list of the legs, or ranks that of one; `None` where one is taken as
            it is found.
        limit: How many hits remain of those that are fused or ranked.
        layout: The collection.
        reader: Makes nodes of the hits.
    """

    query: VectorStoreQuery
    options: SearchOptions
    mode: Mode
    legs: tuple[Leg, ...]
    hybrid: HybridSearch | None
    ranker: Ranker | None
    limit: int
    layout: Layout
    reader: RowReader

    @property
    def lists(self) -> int:
        """How many lists of hits it has: one, or one of each leg that is fused here."""
        return 1 if self.hybrid is not None else len(self.legs)

    @property
    def ranks_here(self) -> bool:
        """Whether a callable of the user is to rank the nodes of each leg."""
        return isinstance(self.ranker, CallableRanker)

    @property
    def is_paged(self) -> bool:
        """Whether the hits are found as they are wanted: skipped, and no more than that."""
        # Milvus 2.6 skips twice where it ranks what one search finds, before and after.
        return self.hybrid is not None or self.ranker is None or bool(self.options.grouping)

    @property
    def hybrid_data(self) -> tuple[Any, ...]:
        """What the legs of `hybrid` search for."""
        return tuple(leg.data for leg in self.legs if leg.data is not None)


def query_vector(query: VectorStoreQuery, column: Column) -> Any:
    """The embedding of a query in the form that a column takes.

    Raises:
        QueryError: It has another dimension, or values that the column cannot hold.
    """
    return _packed("query_embedding", query.query_embedding, column)


def _packed(argument: str, embedding: Any, column: Column) -> Any:
    try:
        return packed(embedding, column.type, column.dim)
    except ValueError as error:
        raise QueryError(
            f"{argument} {error} (field {column.name!r}); the query must be embedded by the "
            "model of the documents"
        ) from error


class SearchMemory:
    """What searches of one collection have in common, from call to call.

    Readers, expressions and requests.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was made for a key; made now, where that was not or is forgotten."""
        made: T | None = self._made.get(key)
        if made is None:
            made = make()
            if len(self._made) >= MAX_REMEMBERED:
                self._made.clear()
            self._made[key] = made
        return made


class SearchPlanner:
    """Prepares the searches of the queries of one call.

    What queries have in common is made once: the expression of the same filters, and the request
    of a field.

    Args:
        options: The keyword arguments of the call.
        layout: The collection.
        indexes: The indexes of its vector columns.
        store: The store's own settings.
        memory: What calls on the collection have in common.

    Raises:
        QueryError: The engine cannot do what the keyword arguments ask for.
    """

    def __init__(
        self,
        options: SearchOptions,
        layout: Layout,
        indexes: Mapping[str, Index],
        store: StoreOptions,
        memory: SearchMemory | None = None,
    ) -> None:
        if options.group_by_field is not None:
            layout.engine.require(Engine.has_grouping, "group_by_field", QueryError)
        self._options = options
        self._layout = layout
        self._indexes = indexes
        self._store = store
        self._partition_names = options.partition_names
        self._consistency_level = options.consistency_level or store.consistency_level
        self._expressions: dict[tuple[int, int, int], str] = {}
        self._memory = memory or SearchMemory()
        self._requests: dict[_SearchKey, tuple[Search, Search | None]] = {}

    def prepare(self, query: VectorStoreQuery, sparse: Any = None) -> PreparedSearch:
        """Prepare the searches of a query that `check_query` has passed.

        Args:
            query: The query. It must live as long as the planner, and stay as it is.
            sparse: The encoded text of the query, where the store encodes it.

        Raises:
            CollectionError: The embedding field is not a dense vector column.
            FilterError: A filter cannot be expressed.
            QueryError: The collection, or the server, is not set up for the mode; the embedding
                has another dimension or values that are not numbers; the ranker does not fit.
        """
        options, layout = self._options, self._layout
        mode = mode_of(query, options)
        embedding_field = query.embedding_field or layout.embedding_field
        named = self._named_fields(query)
        reader, fetched = self._reader(tuple(named), embedding_field, mode.diversifies)
        limit = mode.limit(query, options)

        dense_fields: Sequence[str] = []
        if mode.needs_embedding(query):
            dense_fields = _dense_fields(embedding_field, mode, options)
        if not mode.searches_dense(query):
            dense_fields = []
        sparse_field = _sparse_field(query, mode, layout, options)
        fields = [*dense_fields, *([sparse_field] if sparse_field is not None else [])]
        ranker = self._ranker(query, mode, fields)
        several = len(fields) > 1
        fused_by_milvus = several and not isinstance(ranker, (CallableRanker, RelativeScore))
        # MMR skips what it has chosen, not what it chooses from.
        offset = options.offset if not mode.diversifies else 0
        paging = (*((("offset", offset),) if offset else ()), *options.grouping)
        # Skipping comes after the ranking; Milvus groups what it ranks.
        of_leg = paging if ranker is None or (options.grouping and not several) else ()

        legs: list[Leg] = []
        expression = self._expression(query)
        for field in fields:
            is_sparse = field == sparse_field
            if is_sparse:
                data = _sparse_data(query, layout, sparse)
            else:
                data = _dense_data(query, mode, layout.dense_column(field), options)
            count = limit
            if mode.is_hybrid:
                count = mode.candidates(query, options, sparse=is_sparse)
            if of_leg or ranker is None:
                count = min(count, limit)
            elif not several:
                count = _ranked(count, limit, offset, mode, options)
            request, exhaustive = self._request(
                _SearchKey(
                    field,
                    count,
                    expression,
                    # What is ranked here needs its rows.
                    () if fused_by_milvus else fetched,
                    of_leg,
                    ranker.functions if isinstance(ranker, ServerRanker) and not several else None,
                )
            )
            legs.append(Leg(request, data, self._indexes[field].metric, exhaustive))

        hybrid = self._hybrid(legs, ranker, limit, fetched, paging) if fused_by_milvus else None
        return PreparedSearch(
            query, options, mode, tuple(legs), hybrid, ranker, limit, layout, reader
        )

    def prepare_listing(self, query: VectorStoreQuery) -> tuple[str, RowReader]:
        """The expression of the nodes that a query without an embedding asks for, and their reader.

        Raises:
            FilterError: A filter cannot be expressed.
        """
        embedding_field = query.embedding_field or self._layout.embedding_field
        reader, _ = self._reader(tuple(self._named_fields(query)), embedding_field, False)
        return self._expression(query), reader

    def _named_fields(self, query: VectorStoreQuery) -> Sequence[str]:
        return self._store.output_fields if query.output_fields is None else query.output_fields

    def _reader(
        self, named: tuple[str, ...], embedding_field: str | None, with_embedding: bool
    ) -> tuple[RowReader, tuple[str, ...]]:
        """What makes nodes of hits, and the fields to fetch with each."""

        def make() -> tuple[RowReader, tuple[str, ...]]:
            reader = RowReader(self._layout, named, embedding_field)
            # The primary key comes in any case.
            fetched = [name for name in reader.fields if name != self._layout.primary_key]
            if with_embedding and embedding_field is not None:
                fetched.append(embedding_field)
            return reader, tuple(dict.fromkeys(fetched))

        return self._memory.get((named, embedding_field, with_embedding), make)

    def _expression(self, query: VectorStoreQuery) -> str:
        """The filter of a query; queries mostly have the same objects in common."""
        key = id(query.filters), id(query.node_ids), id(query.doc_ids)
        if key not in self._expressions:
            options, known = self._options, None
            if not (
                query.node_ids
                or query.doc_ids is not None
                or options.milvus_scalar_filters is not None
                or options.string_expr
            ):
                known = _filters.fingerprint(query.filters)
            if known is None:
                self._expressions[key] = self._new_expression(query)
            else:
                self._expressions[key] = self._memory.get(
                    known, lambda: self._new_expression(query)
                )
        return self._expressions[key]

    def _new_expression(self, query: VectorStoreQuery) -> str:
        return _filters.build_expression(
            self._layout,
            filters=query.filters,
            # VectorStoreIndex.as_retriever() says "every node" with an empty list, where the
            # store keeps the nodes itself.
            node_ids=query.node_ids or None,
            doc_ids=query.doc_ids,
            scalar_filters=self._options.milvus_scalar_filters,
            string_expr=self._options.string_expr,
        )

    def _request(self, key: _SearchKey) -> tuple[Search, Search | None]:
        """The search of a field, and the exhaustive one of the same."""
        if key not in self._requests:
            config = self._config(key.field)
            if key.ranker is None and len(key.expression) <= MAX_REMEMBERED_EXPRESSION:
                # A search config is whatever its owner has made of it by now.
                known = key, self._partition_names, self._consistency_level, repr(config)
                made = self._memory.get(known, lambda: self._new_request(key, config))
            else:
                made = self._new_request(key, config)
            self._requests[key] = made
        return self._requests[key]

    def _new_request(
        self, key: _SearchKey, config: Mapping[str, Any]
    ) -> tuple[Search, Search | None]:
        layout, index = self._layout, self._indexes[key.field]
        check_search_config("search_config", config)
        all_rows = exhaustive_params(key.field, index, layout)
        if ignored := ignored_params(index.type, {**config, **(config.get("params") or {})}):
            warn_of_ignored(layout.collection_name, key.field, index.type, tuple(ignored))
        params = search_params(config, index, key.limit, layout, raise_ef="ef" in all_rows)
        request = Search(
            collection_name=layout.collection_name,
            field_name=key.field,
            data_type=self._data_type(key.field),
            limit=key.limit,
            expression=key.expression,
            output_fields=key.output_fields,
            partition_names=self._partition_names,
            consistency_level=self._consistency_level,
            params=params,
            options=key.options,
            one_at_a_time=layout.engine.slows_down_concurrent_searches,
            ranker=key.ranker,
        )
        if not all_rows:
            return request, None
        largest = {**params["params"], **all_rows}
        return request, replace(request, params={**params, "params": largest})

    def _data_type(self, field: str) -> DataType:
        """What the field is searched for: vectors of its type, or texts that Milvus encodes."""
        column = self._layout.columns[field]
        is_text = field == self._layout.sparse_field and not self._layout.encodes_sparse
        return DataType.VARCHAR if is_text else column.type

    def _config(self, field: str) -> Mapping[str, Any]:
        """The search parameters of a field, as the caller spells them."""
        if field == self._layout.sparse_field:
            return self._options.sparse_search_config or {}
        if self._options.milvus_search_config is not None:
            return self._options.milvus_search_config
        return self._store.search_config

    def _hybrid(
        self,
        legs: Sequence[Leg],
        ranker: Any,
        limit: int,
        output_fields: tuple[str, ...],
        options: tuple[tuple[str, Any], ...],
    ) -> HybridSearch:
        layout = self._layout
        searched = [number for number, leg in enumerate(legs) if leg.data is not None]
        if len(searched) < len(legs):
            legs, ranker = [legs[number] for number in searched], ranker.of_legs(searched)
        for leg in legs:
            ranges = {"radius", "range_filter"} & leg.request.params["params"].keys()
            if ranges:
                asked = f"search parameters {sorted(ranges)} of field {leg.request.field_name!r}"
                layout.engine.require(Engine.has_ranges_in_hybrid_search, asked, QueryError)
        return HybridSearch(
            collection_name=layout.collection_name,
            legs=tuple(_hybrid_leg(leg) for leg in legs),
            ranker=ranker.for_milvus(),
            ranker_key=ranker,
            limit=limit,
            output_fields=output_fields,
            partition_names=self._partition_names,
            consistency_level=self._consistency_level,
            options=options,
            one_at_a_time=layout.engine.slows_down_concurrent_searches,
        )

    def _ranker(self, query: VectorStoreQuery, mode: Mode, fields: Sequence[str]) -> Ranker | None:
        """What ranks the hits of a query, checked; `None` for nothing.

        Of what says how to rank, the query comes before the store, and what is said for hybrid
        searches before what is said for all.
        """
        options, layout = self._options, self._layout
        several = len(fields) > 1
        asks_for_hybrid_ranker = mode.is_hybrid and self._store.names_hybrid_ranker
        argument, ranker = "query_ranker", self._query_ranker
        if options.milvus_ranker is not None:
            argument, ranker = "milvus_ranker", self._milvus_ranker
        elif several and query.alpha not in (None, 0, 1):
            # Several dense fields share the dense weight.
            alpha = float(query.alpha)
            dense = [alpha / (len(fields) - 1)] * (len(fields) - 1)
            ranker = RelativeScore((*dense, 1.0 - alpha))
        elif asks_for_hybrid_ranker or (several and ranker is None):
            argument, ranker = "hybrid_ranker", self._hybrid_ranker if several else None
        if ranker is None and options.ranker_prefetch_k is not None:
            raise QueryError("ranker_prefetch_k has no effect without milvus_ranker; pass both")
        if ranker is None or (only_fuses(ranker) and not several):
            return None
        if several:
            check_weights(ranker, fields)
        if options.group_by_field is not None and isinstance(
            ranker, (CallableRanker, RelativeScore)
        ):
            raise QueryError(
                "group_by_field: Milvus groups where it ranks itself; leave alpha out, and do not "
                "pass a callable as ranker"
            )
        if isinstance(ranker, ServerRanker):
            layout.engine.require(Engine.has_rerank_functions, argument, QueryError)
            check_columns(ranker.functions, layout, argument)
            return ranker.of_query(query)
        return ranker

    # Read once for all queries of the call.

    @cached_property
    def _milvus_ranker(self) -> Ranker:
        return ranker_of(self._options.milvus_ranker, None, "milvus_ranker")

    @cached_property
    def _hybrid_ranker(self) -> Ranker:
        store = self._store
        return ranker_of(store.hybrid_ranker, store.hybrid_ranker_params, "hybrid_ranker")

    @cached_property
    def _query_ranker(self) -> Ranker | None:
        given = self._store.query_ranker
        return None if given is None else ranker_of(given, None, "query_ranker")


def _ranked(count: int, limit: int, offset: int, mode: Mode, options: SearchOptions) -> int:
    """How many hits of one search are ranked, of which a page is returned.

    It has to be the same for every page.
    """
    # A hybrid search that is left with one leg ranks what that leg finds.
    ranked = count if mode.is_hybrid else ranked_candidates(limit, options)
    if offset and offset + limit > ranked:
        name = "similarity_top_k" if mode.is_hybrid else "ranker_prefetch_k"
        raise QueryError(
            f"offset is {offset}: {offset} and {limit} hits are more than the {ranked} that are "
            f"ranked; pass a larger {name}, the same for every page"
        )
    return ranked


def _dense_fields(field: str | None, mode: Mode, options: SearchOptions) -> Sequence[str]:
    """The dense fields that a query searches."""
    if field is None:
        raise QueryError(
            f"mode {mode.name} searches dense embeddings, and the store has none; pass "
            "enable_dense=True to its constructor"
        )
    if options.hybrid_fields is None or not mode.is_hybrid:
        return [field]
    if len(set(options.hybrid_fields)) < len(options.hybrid_fields):
        raise QueryError(f"hybrid_fields has a field twice: {list(options.hybrid_fields)}")
    return list(options.hybrid_fields)


def _dense_data(query: VectorStoreQuery, mode: Mode, column: Column, options: SearchOptions) -> Any:
    """What to search a dense field for: an embedding of its own, or that of the query."""
    own = options.hybrid_fields
    if mode.is_hybrid and isinstance(own, Mapping) and own.get(column.name) is not None:
        return _packed(f"hybrid_fields[{column.name!r}]", own[column.name], column)
    return query_vector(query, column)


def _sparse_field(
    query: VectorStoreQuery, mode: Mode, layout: Layout, options: SearchOptions
) -> str | None:
    """The sparse field, where a query searches it."""
    if not mode.searches_sparse(query):
        return None
    if layout.sparse_field is not None:
        if not has_text(query):
            raise lacking("query_str", query, mode)
        return layout.sparse_field
    if not (mode.searches_dense(query) and options.has_several_dense_fields):
        raise QueryError(
            f"mode {mode.name} searches sparse embeddings, and the store has none; pass "
            "enable_sparse=True to its constructor, and another collection_name: a collection that "
            "exists gets no sparse field"
        )
    if query.alpha is not None:
        raise QueryError(
            f"alpha is {query.alpha}: it weighs dense embeddings against sparse ones, and the "
            "store has none of these; leave it out, or pass milvus_ranker=WeightedRanker(...) with "
            "a weight for each of hybrid_fields"
        )
    return None


def _sparse_data(query: VectorStoreQuery, layout: Layout, sparse: Any) -> Any:
    """What to search the sparse field for: an embedding, or the text for Milvus to encode.

    `None` where an encoder finds no weights in the text, such as "the" or "???". As with BM25 of
    Milvus, whose analyzer may leave no word of it, that is not an error.
    """
    if not layout.encodes_sparse:
        return query.query_str
    try:
        return sparse_bytes(sparse_vector(sparse))
    except NoWeightsError:
        return None
    except ValueError as error:
        raise QueryError(f"the sparse embedding of query_str {error}") from error


def _hybrid_leg(leg: Leg) -> Search:
    # What a filter leaves of an approximate search may be too little, and is not seen here.
    exhaustive = leg.exhaustive if leg.request.expression else None
    return exhaustive or leg.request
