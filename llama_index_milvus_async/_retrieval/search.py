"""Queries to search requests, and hits to query results.

`SearchOptions` are the keyword arguments of one call, `PreparedSearch` is what the core sends.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.vector_stores.types import (
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from .._requests import HybridSearch, Search
from .._translation import filters as _filters
from .._translation.engine import Engine
from .._translation.rows import RowReader, decoded
from .._translation.schema import Column, Index, Layout
from .._translation.vectors import packed, unpacked
from ..errors import ConfigurationError, QueryError
from ..sparse import sparse_vector
from .ranking import (
    CallableRanker,
    Ranker,
    RelativeScore,
    ServerRanker,
    check_weights,
    mmr,
    ranker_of,
    similarity,
)

T = TypeVar("T")

#: Milvus' largest top k (https://milvus.io/docs/limitations.md#Top-K).
MAX_TOP_K = 16_384
#: Milvus Lite's own `ef` of an HNSW search that names none.
LITE_DEFAULT_EF = 64
#: What has an index of Milvus Lite visit every row, by the beginning of its type's name. Its
#: `AUTOINDEX` is an HNSW.
LITE_EXHAUSTIVE = {
    "HNSW": {"ef": 2**20},
    "AUTOINDEX": {"ef": 2**20},
    "IVF": {"nprobe": 2**16},
}
#: Candidates that MMR chooses from, as a multiple of the top k; upstream's default.
DEFAULT_MMR_PREFETCH_FACTOR = 4.0

_Mode = VectorStoreQueryMode
SUPPORTED_MODES = (_Mode.DEFAULT, _Mode.SPARSE, _Mode.TEXT_SEARCH, _Mode.HYBRID, _Mode.MMR)


@dataclass(frozen=True)
class ReadOptions:
    """Keyword arguments of every read; names as in the upstream plugin where it has them.

    Attributes:
        milvus_partition_names: Partitions to read, a name or a list; all by default.
        consistency_level: Consistency of this read alone.
        timeout: Seconds for each RPC of this call.
    """

    milvus_partition_names: str | Sequence[str] | None = None
    consistency_level: str | None = None
    timeout: float | None = None

    @property
    def partition_names(self) -> tuple[str, ...] | None:
        """The partitions, `None` for all."""
        given = self.milvus_partition_names
        if given is None:
            return None
        names = (given,) if isinstance(given, str) else given
        if not _are_texts(names) or not names or not all(names):
            raise QueryError(
                f"milvus_partition_names is {given!r}; name partitions, or leave it out to read all"
            )
        return tuple(names)


@dataclass(frozen=True)
class SearchOptions(ReadOptions):
    """Keyword arguments of a query.

    Attributes:
        milvus_scalar_filters: Filters on array columns, combined with the others by AND.
        milvus_search_config: Search parameters in place of the store's `search_config`.
        sparse_search_config: Search parameters of the sparse field.
        milvus_ranker: The ranker of a hybrid search in place of the store's.
        string_expr: A Milvus boolean expression, combined with the filters by AND.
        mmr_prefetch_factor: MMR's candidates as a multiple of the top k.
        mmr_prefetch_k: MMR's candidates as a number.
        mmr_threshold: MMR's balance, 0 (different) to 1 (relevant).
        mmr_over: Where MMR's candidates come from, `"dense"` or `"hybrid"`.
        hybrid_fields: The dense fields of a hybrid search; the query's alone by default.
        offset: Hits to skip.
        group_by_field: Return one hit, or `group_size`, for each value of this field.
        group_size: Hits of each group.
        strict_group_size: Whether to look on until each group is full.
        score_threshold: Return hits of at least this similarity.
    """

    milvus_scalar_filters: Any = None
    milvus_search_config: Mapping[str, Any] | None = None
    sparse_search_config: Mapping[str, Any] | None = None
    milvus_ranker: Any = None
    string_expr: str | None = None
    mmr_prefetch_factor: float | None = None
    mmr_prefetch_k: int | None = None
    mmr_threshold: float | None = None
    mmr_over: str = "dense"
    hybrid_fields: Sequence[str] | None = None
    offset: int = 0
    group_by_field: str | None = None
    group_size: int | None = None
    strict_group_size: bool | None = None
    score_threshold: float | None = None

    @property
    def grouping(self) -> tuple[tuple[str, Any], ...]:
        """What becomes a keyword argument of pymilvus' search, beside the offset."""
        names = ("group_by_field", "group_size", "strict_group_size")
        values = [(name, getattr(self, name)) for name in names]
        return tuple((name, value) for name, value in values if value)


def read_options(cls: type[Any], operation: str, arguments: Mapping[str, Any]) -> Any:
    """Build the options of a call from its keyword arguments.

    Raises:
        ConfigurationError: An argument is unknown. It is refused rather than ignored: a
            misspelt partition or filter would otherwise widen the result.
    """
    known = [field.name for field in fields(cls)]
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise ConfigurationError(
            f"{operation}() got unknown keyword arguments {unknown}; it takes {sorted(known)}"
        )
    return cls(**arguments)


@dataclass(frozen=True)
class StoreOptions:
    """The store's own settings, used where a query names none.

    Attributes:
        consistency_level: The level of reads.
        output_fields: Fields to fetch with each hit.
        search_config: Search parameters of dense fields.
        hybrid_ranker: The ranker of hybrid searches, as `ranker_of` takes it.
        hybrid_ranker_params: Its parameters.
    """

    consistency_level: str
    output_fields: Sequence[str]
    search_config: Mapping[str, Any]
    hybrid_ranker: Any
    hybrid_ranker_params: Mapping[str, Any]


@dataclass(frozen=True)
class Leg:
    """One search of a query.

    Attributes:
        request: What it may have in common with other queries'.
        data: What it has not: a vector, a sparse vector, or a text for Milvus to encode.
        metric: The metric of the field.
        exhaustive: The request of a second search where the first came short, `None` where the
            engine never does.
    """

    request: Search
    data: Any
    metric: str
    exhaustive: Search | None = None


@dataclass(frozen=True)
class PreparedSearch:
    """The searches of one query, ready to be sent.

    Attributes:
        legs: Its searches: one, or those of a hybrid search.
        hybrid: The request that has Milvus fuse the legs; `None` for one leg, and where they are
            searched each on its own and fused here.
        ranker: How the legs are fused; `None` where there is one.
        limit: How many hits remain of those fused here.
        layout: The collection.
        reader: Makes nodes of the hits.
    """

    legs: tuple[Leg, ...]
    hybrid: HybridSearch | None
    ranker: Ranker | None
    limit: int
    layout: Layout
    reader: RowReader


def check_query(query: VectorStoreQuery, options: SearchOptions) -> None:
    """Check what can be checked without a connection.

    Raises:
        QueryError: The mode is not supported; text, embedding, top k or alpha are missing or bad.
    """
    if query.mode not in SUPPORTED_MODES:
        supported = ", ".join(mode.name for mode in SUPPORTED_MODES)
        raise QueryError(f"mode {query.mode!s} is not supported; supported are {supported}")
    mode = VectorStoreQueryMode(query.mode)
    _check_types(query, options)
    if options.milvus_ranker is not None:
        ranker_of(options.milvus_ranker, None, "milvus_ranker")
        if query.alpha not in (None, 0, 1):
            raise QueryError("alpha and milvus_ranker both say how to rank; pass one of them")
    if options.mmr_over not in ("dense", "hybrid"):
        raise QueryError(f"mmr_over is {options.mmr_over!r}; it must be 'dense' or 'hybrid'")
    check_top_k("similarity_top_k", query.similarity_top_k)
    for name in ("sparse_top_k", "hybrid_top_k"):
        if getattr(query, name) is not None:
            check_top_k(name, getattr(query, name))
    alpha = query.alpha
    if alpha is not None and not (_is_number(alpha) and 0 <= alpha <= 1):
        raise QueryError(f"alpha is {alpha!r}; it must be a number in 0 (sparse) to 1 (dense)")
    if needs_embedding(query, options) and (
        query.query_embedding is None or not len(query.query_embedding)
    ):
        raise QueryError(f"mode {mode.name} needs query_embedding, and it is missing")
    if searches_sparse(query, options) and not (query.query_str or "").strip():
        raise QueryError(f"mode {mode.name} needs query_str, and it is missing or empty")
    _check_mmr(query, options)
    _check_paging(query, options)


def is_hybrid(query: VectorStoreQuery, options: SearchOptions) -> bool:
    """Whether a query searches dense and sparse fields."""
    return query.mode == _Mode.HYBRID or (query.mode == _Mode.MMR and options.mmr_over == "hybrid")


def searches_dense(query: VectorStoreQuery, options: SearchOptions) -> bool:
    """Whether a query searches dense fields."""
    if is_hybrid(query, options):
        return query.alpha != 0
    return query.mode in (_Mode.DEFAULT, _Mode.MMR)


def needs_embedding(query: VectorStoreQuery, options: SearchOptions) -> bool:
    """Whether a query needs an embedding: MMR compares by it also what it has found by texts."""
    return searches_dense(query, options) or query.mode == _Mode.MMR


def searches_sparse(query: VectorStoreQuery, options: SearchOptions) -> bool:
    """Whether a query searches the sparse field, for which it needs a text."""
    if is_hybrid(query, options):
        return query.alpha != 1
    return query.mode in (_Mode.SPARSE, _Mode.TEXT_SEARCH)


def _check_types(query: VectorStoreQuery, options: SearchOptions) -> None:
    texts = {
        "query_str": query.query_str,
        "embedding_field": query.embedding_field,
        "string_expr": options.string_expr,
    }
    for name, text in texts.items():
        if not isinstance(text, (str, type(None))):
            raise QueryError(f"{name} is {text!r}; it must be a text")
    check_ids("node_ids", query.node_ids)
    check_ids("doc_ids", query.doc_ids)
    check_output_fields(query.output_fields)
    fields = options.hybrid_fields
    if fields is not None and (not _are_texts(fields) or not fields):
        raise QueryError(f"hybrid_fields is {fields!r}; it must be a list of dense vector fields")
    embedding = query.query_embedding
    if embedding is not None and not isinstance(embedding, Collection):
        raise QueryError(f"query_embedding is {embedding!r}; it must be a list of numbers")
    for name in ("milvus_search_config", "sparse_search_config"):
        if getattr(options, name) is not None:
            _check_search_config(name, getattr(options, name))


def check_ids(argument: str, ids: Any) -> None:
    """Check that ids come as several, however many, and not as one.

    Raises:
        QueryError: They do not.
    """
    if ids is not None and not _are_several(ids):
        raise QueryError(f"{argument} is {ids!r}; it must be a list of ids")


def check_output_fields(names: Any) -> None:
    """Check the fields that a read is to return.

    Raises:
        QueryError: They are no list of names. A text would be taken for a list of its letters.
    """
    if names is not None and not _are_texts(names):
        raise QueryError(f"output_fields is {names!r}; it must be a list of names")


def _are_several(values: Any) -> bool:
    """Whether values are a collection; a text is one value, not its letters."""
    return isinstance(values, Collection) and not isinstance(values, str)


def _are_texts(values: Any) -> bool:
    """Whether values are several texts, none or more, and not one."""
    return _are_several(values) and all(isinstance(value, str) for value in values)


def _check_search_config(argument: str, config: Any) -> None:
    if not isinstance(config, Mapping) or not isinstance(config.get("params") or {}, Mapping):
        raise QueryError(
            f"{argument} is {config!r}; it must be a mapping such as "
            '{"ef": 64} or {"params": {"ef": 64}}'
        )
    if "offset" in {*config, *(config.get("params") or {})}:
        raise QueryError(f"{argument} has an offset; pass it to the query itself, as offset=...")


def _check_paging(query: VectorStoreQuery, options: SearchOptions) -> None:
    offset, field, size = options.offset, options.group_by_field, options.group_size
    if not isinstance(offset, int) or isinstance(offset, bool) or not 0 <= offset < MAX_TOP_K:
        raise QueryError(f"offset is {offset!r}; it must be an integer in 0..{MAX_TOP_K - 1}")
    if offset:
        _check_pool(query, options)
    if field is not None and (not isinstance(field, str) or not field):
        raise QueryError(f"group_by_field is {field!r}; it must be the name of a field")
    for name in ("group_size", "strict_group_size"):
        if getattr(options, name) is not None and field is None:
            raise QueryError(f"{name} has no effect without group_by_field; pass both")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise QueryError(f"group_size is {size!r}; it must be an integer of at least 1")
    threshold = options.score_threshold
    if threshold is not None and not (_is_number(threshold) and math.isfinite(threshold)):
        raise QueryError(f"score_threshold is {threshold!r}; it must be a number")


def _check_pool(query: VectorStoreQuery, options: SearchOptions) -> None:
    """Check that what hits are chosen from reaches beyond those that are skipped.

    It has to be the same for every page: a hit's rank changes with the candidates beside it.
    """
    top_k, offset = query.similarity_top_k, options.offset
    if query.mode == _Mode.MMR and offset + top_k > (pool := _mmr_candidates(top_k, options)):
        raise QueryError(
            f"offset is {offset}: MMR chooses {offset} and {top_k} hits of {pool} candidates; pass "
            "a larger mmr_prefetch_k, the same for every page"
        )
    if query.mode != _Mode.HYBRID or query.alpha in (0, 1):
        return
    size = query.hybrid_top_k or top_k
    if offset + size > min(top_k, query.sparse_top_k or top_k):
        raise QueryError(
            f"offset is {offset}: {offset} and {size} hits are more than each leg of a hybrid "
            "search fetches; pass a similarity_top_k (and sparse_top_k, if any) of at least "
            f"{offset + size}, the same for every page, and hybrid_top_k={size} as the size of one"
        )


def check_top_k(name: str, value: Any) -> None:
    """Check a number of hits against Milvus' limits.

    Raises:
        QueryError: It is not an integer in 1..16,384.
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise QueryError(f"{name} is {value!r}; it must be an integer")
    if not 1 <= value <= MAX_TOP_K:
        raise QueryError(f"{name} is {value}; Milvus takes 1 to {MAX_TOP_K}")


def _check_mmr(query: VectorStoreQuery, options: SearchOptions) -> None:
    if options.mmr_prefetch_factor is not None and options.mmr_prefetch_k is not None:
        raise QueryError("mmr_prefetch_factor and mmr_prefetch_k exclude each other; pass one")
    factor = options.mmr_prefetch_factor
    if factor is not None and not (_is_number(factor) and 1 <= factor < math.inf):
        raise QueryError(f"mmr_prefetch_factor is {factor!r}; it must be a number of at least 1")
    if options.mmr_prefetch_k is not None:
        check_top_k("mmr_prefetch_k", options.mmr_prefetch_k)
    threshold = _mmr_threshold(query, options)
    if threshold is not None and not (_is_number(threshold) and 0 <= threshold <= 1):
        raise QueryError(f"mmr_threshold is {threshold!r}; it must be a number in 0..1")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _mmr_threshold(query: VectorStoreQuery, options: SearchOptions) -> float | None:
    return query.mmr_threshold if options.mmr_threshold is None else options.mmr_threshold


def prepare_search(
    query: VectorStoreQuery,
    options: SearchOptions,
    layout: Layout,
    indexes: Mapping[str, Index],
    store: StoreOptions,
    sparse: Any = None,
) -> PreparedSearch:
    """Prepare the searches of a query that `check_query` has passed.

    Args:
        query: The query.
        options: The keyword arguments of the call.
        layout: The collection.
        indexes: The indexes of its vector columns.
        store: The store's own settings.
        sparse: The encoded text of the query, where the store encodes it.

    Raises:
        CollectionError: The embedding field is no dense vector column.
        FilterError: A filter cannot be expressed.
        QueryError: The collection, or the server, is not set up for the mode; the embedding has
            another dimension or values that are no numbers; the ranker does not fit.
    """
    if options.group_by_field is not None:
        layout.engine.require(Engine.has_grouping, "group_by_field", QueryError)
    named = list(store.output_fields if query.output_fields is None else query.output_fields)
    field = query.embedding_field or layout.embedding_field
    reader = RowReader(layout, named, field)
    limit = _limit(query, options)
    dense_fields: Sequence[str] = []
    if needs_embedding(query, options):
        dense_fields = _dense_fields(field, query, options)
    fields = dense_fields if searches_dense(query, options) else []
    is_fused = len(fields) + searches_sparse(query, options) > 1
    legs: list[Leg] = []
    build = partial(_leg, query, options, layout, indexes, store)
    for name in fields:
        column = layout.dense_column(name)
        count = max(query.similarity_top_k, limit) if is_fused else limit
        config = options.milvus_search_config
        if config is None:
            config = store.search_config
            _check_search_config("search_config", config)
        legs.append(build(name, _vector(query.query_embedding, name, column), config, count))
    if searches_sparse(query, options):
        sparse_field = _sparse_field(query, layout)
        count = query.sparse_top_k or query.similarity_top_k
        count = max(count, limit) if is_fused else limit
        config = options.sparse_search_config or {}
        legs.append(build(sparse_field, _sparse_data(query, layout, sparse), config, count))

    fetched = _fetched(query, layout, reader, field)
    ranker = _ranker(query, options, store, legs) if len(legs) > 1 else None
    if ranker is None or isinstance(ranker, (CallableRanker, RelativeScore)):
        # Ranked here, so that each leg needs the rows, and the skipping comes after the fusion.
        paging = _paging(query, options) if ranker is None else ()
        legs = [_with_rows(leg, fetched, paging) for leg in legs]
        return PreparedSearch(tuple(legs), None, ranker, limit, layout, reader)
    if isinstance(ranker, ServerRanker):
        layout.engine.require(Engine.has_rerank_functions, "the ranker", QueryError)
    for leg in legs:
        ranges = {"radius", "range_filter"} & leg.request.params["params"].keys()
        if ranges:
            asked = f"search parameters {sorted(ranges)} of field {leg.request.field_name!r}"
            layout.engine.require(Engine.has_ranges_in_hybrid_search, asked, QueryError)
    hybrid = HybridSearch(
        collection_name=layout.collection_name,
        legs=tuple(_hybrid_leg(leg) for leg in legs),
        ranker=ranker.for_milvus(),
        ranker_key=id(ranker.function) if isinstance(ranker, ServerRanker) else ranker,
        limit=limit,
        output_fields=fetched,
        partition_names=options.partition_names,
        consistency_level=options.consistency_level or store.consistency_level,
        options=_paging(query, options),
        one_at_a_time=layout.engine.slows_down_concurrent_searches,
    )
    return PreparedSearch(tuple(legs), hybrid, ranker, limit, layout, reader)


def _paging(query: VectorStoreQuery, options: SearchOptions) -> tuple[tuple[str, Any], ...]:
    """Keyword arguments of pymilvus' search that say which hits to return."""
    # MMR skips what it has chosen, not what it chooses from.
    if not options.offset or query.mode == _Mode.MMR:
        return options.grouping
    return (("offset", options.offset), *options.grouping)


def _with_rows(leg: Leg, fetched: tuple[str, ...], options: tuple[tuple[str, Any], ...]) -> Leg:
    """A leg whose hits come with their rows."""
    request = replace(leg.request, output_fields=fetched, options=options)
    exhaustive = leg.exhaustive
    if exhaustive is not None:
        exhaustive = replace(exhaustive, output_fields=fetched, options=options)
    return replace(leg, request=request, exhaustive=exhaustive)


def _hybrid_leg(leg: Leg) -> Search:
    # What a filter leaves of an approximate search may be too little, and is not seen here.
    exhaustive = leg.exhaustive if leg.request.expression else None
    return exhaustive or leg.request


def _limit(query: VectorStoreQuery, options: SearchOptions) -> int:
    """How many hits to ask for, those skipped not counted."""
    limit = query.similarity_top_k
    if query.mode == _Mode.HYBRID:
        limit = query.hybrid_top_k or limit
    elif query.mode in (_Mode.SPARSE, _Mode.TEXT_SEARCH):
        limit = query.sparse_top_k or limit
    elif query.mode == _Mode.MMR:
        limit = _mmr_candidates(limit, options)
    return int(limit)


def _dense_fields(
    field: str | None, query: VectorStoreQuery, options: SearchOptions
) -> Sequence[str]:
    """The dense fields that a query searches."""
    if field is None:
        raise QueryError(
            f"mode {VectorStoreQueryMode(query.mode).name} searches dense embeddings, and the "
            "store has none; pass enable_dense=True to its constructor"
        )
    if options.hybrid_fields is None or not is_hybrid(query, options):
        return [field]
    if len(set(options.hybrid_fields)) < len(options.hybrid_fields):
        raise QueryError(f"hybrid_fields has a field twice: {list(options.hybrid_fields)}")
    return list(options.hybrid_fields)


def _fetched(
    query: VectorStoreQuery, layout: Layout, reader: RowReader, field: str | None
) -> tuple[str, ...]:
    """The fields to fetch with each hit; the primary key comes in any case."""
    fetched = [name for name in reader.fields if name != layout.primary_key]
    if query.mode == _Mode.MMR and field is not None and field not in fetched:
        fetched.append(field)
    return tuple(fetched)


def _leg(
    query: VectorStoreQuery,
    options: SearchOptions,
    layout: Layout,
    indexes: Mapping[str, Index],
    store: StoreOptions,
    field: str,
    data: Any,
    config: Mapping[str, Any],
    limit: int,
) -> Leg:
    index = indexes[field]
    all_rows = _exhaustive_params(field, index, layout)
    params = _search_params(config, index, limit, layout, raise_ef="ef" in all_rows)
    request = Search(
        collection_name=layout.collection_name,
        field_name=field,
        limit=limit,
        expression=_filters.build_expression(
            layout.filter_columns,
            filters=query.filters,
            # VectorStoreIndex.as_retriever() says "every node" with an empty list, where the
            # store keeps the nodes itself.
            node_ids=query.node_ids or None,
            doc_ids=query.doc_ids,
            scalar_filters=options.milvus_scalar_filters,
            string_expr=options.string_expr,
        ),
        output_fields=(),
        partition_names=options.partition_names,
        consistency_level=options.consistency_level or store.consistency_level,
        params=params,
        options=(),
        one_at_a_time=layout.engine.slows_down_concurrent_searches,
    )
    exhaustive = None
    if all_rows:
        largest = {**params["params"], **all_rows}
        exhaustive = replace(request, params={**params, "params": largest})
    return Leg(request, data, index.metric, exhaustive)


def _sparse_field(query: VectorStoreQuery, layout: Layout) -> str:
    if layout.sparse_field is None:
        raise QueryError(
            f"mode {VectorStoreQueryMode(query.mode).name} searches sparse embeddings, and the "
            "store has none; pass enable_sparse=True to its constructor"
        )
    return layout.sparse_field


def _sparse_data(query: VectorStoreQuery, layout: Layout, sparse: Any) -> Any:
    """What to search the sparse field for: an embedding, or the text for Milvus to encode."""
    if not layout.encodes_sparse:
        return query.query_str
    try:
        return sparse_vector(sparse)
    except ValueError as error:
        raise QueryError(f"the sparse embedding of query_str {error}") from error


def _ranker(
    query: VectorStoreQuery, options: SearchOptions, store: StoreOptions, legs: Sequence[Leg]
) -> Ranker:
    ranker: Ranker
    if options.milvus_ranker is not None:
        ranker = ranker_of(options.milvus_ranker, None, "milvus_ranker")
    elif query.alpha not in (None, 0, 1):
        # Several dense fields share the dense weight.
        alpha = float(query.alpha)
        dense = [alpha / (len(legs) - 1)] * (len(legs) - 1)
        ranker = RelativeScore((*dense, 1.0 - alpha))
    else:
        ranker = ranker_of(store.hybrid_ranker, store.hybrid_ranker_params, "hybrid_ranker")
    check_weights(ranker, [leg.request.field_name for leg in legs])
    if options.group_by_field is not None and isinstance(ranker, (CallableRanker, RelativeScore)):
        raise QueryError(
            "group_by_field: a hybrid search groups where Milvus ranks; leave alpha out and pass "
            "no callable as ranker"
        )
    if isinstance(ranker, CallableRanker) and query.mode == _Mode.MMR:
        raise QueryError("mmr_over='hybrid' takes no callable as ranker; pass another ranker")
    return ranker


def _vector(embedding: Any, field: str, column: Column) -> Any:
    try:
        return packed(embedding, column.type, column.dim)
    except ValueError as error:
        raise QueryError(
            f"query_embedding {error} (field {field!r}); the query must be embedded by the model "
            "of the documents"
        ) from error


def _mmr_candidates(top_k: int, options: SearchOptions) -> int:
    if options.mmr_prefetch_k is not None:
        return max(top_k, int(options.mmr_prefetch_k))
    factor = options.mmr_prefetch_factor
    return min(MAX_TOP_K, int(top_k * (DEFAULT_MMR_PREFETCH_FACTOR if factor is None else factor)))


def _search_params(
    config: Mapping[str, Any], index: Index, limit: int, layout: Layout, *, raise_ef: bool
) -> dict[str, Any]:
    """Turn a search config, flat or with nested `params`, into pymilvus' form.

    The server reads the parameters of an index type only from the nested dictionary.
    """
    top_level = {"metric_type", "ignore_growing", "hints", "round_decimal", "analyzer_name"}
    outer = {key: value for key, value in config.items() if key in top_level}
    params = {key: value for key, value in config.items() if key not in {*top_level, "params"}}
    params.update(config.get("params") or {})
    if raise_ef:
        # Lite answers with fewer than `limit` hits where `ef` is less; a server never does.
        try:
            ef = int(params.get("ef", LITE_DEFAULT_EF))
        except (TypeError, ValueError) as error:
            raise QueryError(
                f"search parameter ef is {params['ef']!r}; it must be a number"
            ) from error
        params["ef"] = max(limit, ef)
    if index.metric == "BM25" and layout.engine.negates_bm25:
        for name in {"radius", "range_filter"} & params.keys():
            if not _is_number(params[name]):
                raise QueryError(
                    f"search parameter {name} is {params[name]!r}; it must be a number"
                )
            params[name] = -params[name]
    return {**outer, "params": params}


def _exhaustive_params(field: str, index: Index, layout: Layout) -> Mapping[str, int]:
    """What has an approximate index of Milvus Lite visit every row; nothing for others."""
    if layout.engine.drops_hits_after_search and field != layout.sparse_field:
        for beginning, params in LITE_EXHAUSTIVE.items():
            if index.type.upper().startswith(beginning):
                return params
    return {}


@dataclass(frozen=True)
class ScoredHits:
    """Hits, best first, with the keys that pymilvus gives them, and their similarities."""

    hits: list[Mapping[str, Any]]
    similarities: list[float]


def choose_hits(
    query: VectorStoreQuery,
    options: SearchOptions,
    search: PreparedSearch,
    hits: Sequence[Sequence[Mapping[str, Any]]],
) -> list[ScoredHits]:
    """Choose the hits that become nodes.

    Args:
        query: The query.
        options: The keyword arguments of the call.
        search: The search that was sent.
        hits: The hits with the keys that pymilvus gives them, best first: those of each leg, or
            those that Milvus has fused.

    Returns:
        The hits of the result; or those of each leg, where a ranker of the user is to rank them.
    """
    legs = [decoded(found) for found in hits]
    if isinstance(search.ranker, CallableRanker):
        return [
            ScoredHits(found, [similarity(leg.metric, hit["distance"]) for hit in found])
            for leg, found in zip(search.legs, legs, strict=True)
        ]
    found, scores = _similar_enough(*_scored(query, options, search, legs), options)
    if query.mode == _Mode.MMR and found:
        found, scores = _diverse(query, options, search, found)
    return [ScoredHits(found, scores)]


def node_of(search_and_hit: tuple[PreparedSearch, Mapping[str, Any]]) -> BaseNode:
    """Make the node of a hit."""
    search, hit = search_and_hit
    key = search.layout.primary_key
    return search.reader.node({**hit["entity"], key: _primary_key(hit, key)})


def check_ranked(
    options: SearchOptions, search: PreparedSearch, returned: Any
) -> tuple[list[BaseNode], list[float]]:
    """The nodes of a result and their scores, as a ranker of the user returned them.

    Raises:
        QueryError: It returned something else.
    """
    ranked: list[Any] = list(returned) if isinstance(returned, Iterable) else [None]
    if not all(isinstance(one, NodeWithScore) for one in ranked):
        if inspect.iscoroutine(returned):
            returned.close()  # else Python warns that nobody awaited it
        rank = cast(CallableRanker, search.ranker).rank
        raise QueryError(
            f"the ranker {rank!r} returned a {type(returned).__name__}; it must return a list of "
            "NodeWithScore"
        )
    ranked = ranked[options.offset : options.offset + search.limit]
    scores = [float(one.score or 0.0) for one in ranked]
    return _similar_enough([one.node for one in ranked], scores, options)


def _similar_enough(
    items: list[T], scores: list[float], options: SearchOptions
) -> tuple[list[T], list[float]]:
    """Those of the items whose scores reach the threshold, and their scores."""
    least = options.score_threshold
    if least is None:
        return items, scores
    kept = [i for i, score in enumerate(scores) if score >= least]
    return [items[i] for i in kept], [scores[i] for i in kept]


def _scored(
    query: VectorStoreQuery,
    options: SearchOptions,
    search: PreparedSearch,
    legs: Sequence[list[Mapping[str, Any]]],
) -> tuple[list[Mapping[str, Any]], list[float]]:
    """The hits of the result and their similarities."""
    if len(legs) == 1:
        [found] = legs
        if search.hybrid is not None:
            return found, [float(hit["distance"]) for hit in found]
        return found, [similarity(search.legs[0].metric, hit["distance"]) for hit in found]
    key = search.layout.primary_key
    by_id = {_primary_key(hit, key): hit for leg in legs for hit in leg}
    pairs = [[(_primary_key(hit, key), hit["distance"]) for hit in leg] for leg in legs]
    fused = cast(RelativeScore, search.ranker).fuse(pairs, [leg.metric for leg in search.legs])
    skipped = 0 if query.mode == _Mode.MMR else options.offset
    fused = fused[skipped : skipped + search.limit]
    return [by_id[one] for one, _ in fused], [score for _, score in fused]


def _primary_key(hit: Mapping[str, Any], name: str) -> Any:
    # Servers before 2.4 do not say what the primary key is called; pymilvus calls it "id" then.
    return hit[name] if name in hit else hit["id"]


def _diverse(
    query: VectorStoreQuery,
    options: SearchOptions,
    search: PreparedSearch,
    hits: Sequence[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], list[float]]:
    """Choose by maximal marginal relevance."""
    column = search.layout.dense_column(query.embedding_field or search.layout.embedding_field)
    chosen, scores = mmr(
        unpacked(_vector(query.query_embedding, column.name, column), column.type, column.dim),
        np.asarray([unpacked(hit["entity"][column.name], column.type, column.dim) for hit in hits]),
        query.similarity_top_k + options.offset,
        _mmr_threshold(query, options),
    )
    chosen, scores = chosen[options.offset :], scores[options.offset :]
    return [hits[position] for position in chosen], scores


def empty_result() -> VectorStoreQueryResult:
    """The result of a query that nothing can match."""
    return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
