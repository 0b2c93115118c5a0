"""Queries to search requests, and hits to query results.

`SearchOptions` are the keyword arguments of one call, `PreparedSearch` is what the core sends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
from llama_index.core.vector_stores.types import (
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from . import _filters
from ._ranking import mmr, similarity
from ._requests import Search
from ._rows import RowReader, is_finite
from ._schema import Layout
from .errors import ConfigurationError, QueryError

#: Milvus' largest top k (https://milvus.io/docs/limitations.md#Top-K).
MAX_TOP_K = 16_384
#: Milvus Lite's own `ef` of an HNSW search that names none.
LITE_DEFAULT_EF = 64
#: An `ef` that visits every row of a collection of Milvus Lite.
LITE_LARGEST_EF = 2**20
#: Candidates that MMR chooses from, as a multiple of the top k; upstream's default.
DEFAULT_MMR_PREFETCH_FACTOR = 4.0

SUPPORTED_MODES = (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR)


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
        names = self.milvus_partition_names
        return (names,) if isinstance(names, str) else tuple(names) if names else None


@dataclass(frozen=True)
class SearchOptions(ReadOptions):
    """Keyword arguments of a query.

    Attributes:
        milvus_scalar_filters: Filters on array columns, combined with the others by AND.
        milvus_search_config: Search parameters in place of the store's `search_config`.
        string_expr: A Milvus boolean expression, combined with the filters by AND.
        mmr_prefetch_factor: MMR's candidates as a multiple of the top k.
        mmr_prefetch_k: MMR's candidates as a number.
        mmr_threshold: MMR's balance, 0 (different) to 1 (relevant).
    """

    milvus_scalar_filters: Any = None
    milvus_search_config: Mapping[str, Any] | None = None
    string_expr: str | None = None
    mmr_prefetch_factor: float | None = None
    mmr_prefetch_k: int | None = None
    mmr_threshold: float | None = None


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
class PreparedSearch:
    """The search of one query, ready to be sent.

    Attributes:
        request: What it may have in common with other queries'.
        vector: What it has not: the query's vector.
        exhaustive: The request of a second search where the first came short, `None` where the
            engine never does.
        primary_key: The collection's.
        metric: The vector column's.
        reader: Makes nodes of the hits.
    """

    request: Search
    vector: Sequence[float]
    exhaustive: Search | None
    primary_key: str
    metric: str
    reader: RowReader


def check_query(query: VectorStoreQuery, options: SearchOptions) -> None:
    """Check what can be checked without a connection.

    Raises:
        QueryError: The mode is not supported, the embedding or the top k is missing or bad.
    """
    if query.mode not in SUPPORTED_MODES:
        supported = ", ".join(mode.name for mode in SUPPORTED_MODES)
        raise QueryError(f"mode {query.mode!s} is not supported; supported are {supported}")
    if query.query_embedding is None or not len(query.query_embedding):
        raise QueryError(
            f"mode {VectorStoreQueryMode(query.mode).name} needs query_embedding, and it is missing"
        )
    check_top_k("similarity_top_k", query.similarity_top_k)
    if query.mode == VectorStoreQueryMode.MMR:
        _check_mmr(query, options)


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
    *,
    metric: str,
    index_type: str,
    consistency_level: str,
    output_fields: Sequence[str],
    search_config: Mapping[str, Any],
) -> PreparedSearch:
    """Prepare the search of a query that `check_query` has passed.

    Args:
        query: The query.
        options: The keyword arguments of the call.
        layout: The collection.
        metric: The metric of the vector column's index.
        index_type: The type of that index.
        consistency_level: The store's, used where the call names none.
        output_fields: The store's output fields, used where the query names none.
        search_config: The store's search parameters, used where the call names none.

    Raises:
        CollectionError: The embedding field is no dense vector column.
        FilterError: A filter cannot be expressed.
        QueryError: The embedding has another dimension or values that are no numbers.
    """
    field = query.embedding_field or layout.embedding_field
    column = layout.vector_column(field)
    vector = _vector(query.query_embedding, field, column.dim)
    limit = int(query.similarity_top_k)
    named = list(output_fields if query.output_fields is None else query.output_fields)
    if query.mode == VectorStoreQueryMode.MMR:
        limit = _mmr_candidates(limit, options)
    config = search_config if options.milvus_search_config is None else options.milvus_search_config
    expression = _filters.build_expression(
        layout.filter_columns,
        filters=query.filters,
        # VectorStoreIndex.as_retriever() says "every node" with an empty list, where the store
        # keeps the nodes itself.
        node_ids=query.node_ids or None,
        doc_ids=query.doc_ids,
        scalar_filters=options.milvus_scalar_filters,
        string_expr=options.string_expr,
    )
    params = _search_params(config, index_type, limit, layout)
    reader = RowReader(layout, named, field)
    # Every hit comes with its primary key.
    fetched = [name for name in reader.fields if name != layout.primary_key]
    if query.mode == VectorStoreQueryMode.MMR and field not in fetched:
        fetched.append(field)
    request = Search(
        collection_name=layout.collection_name,
        field_name=field,
        limit=limit,
        expression=expression,
        output_fields=tuple(fetched),
        partition_names=options.partition_names,
        consistency_level=options.consistency_level or consistency_level,
        params=params,
        one_at_a_time=layout.dialect.is_lite,
    )
    exhaustive = None
    if _is_hnsw_of_lite(index_type, layout):
        largest = {**params["params"], "ef": LITE_LARGEST_EF}
        exhaustive = replace(request, params={**params, "params": largest})
    return PreparedSearch(request, vector, exhaustive, layout.primary_key, metric, reader)


def _vector(embedding: Any, field: str, dim: int | None) -> Sequence[float]:
    """Check a query's embedding; returns it as a list, which pymilvus packs fastest."""
    if isinstance(embedding, list) and len(embedding) == dim and is_finite(embedding):
        return embedding
    try:
        # What is too large for 32 bits becomes infinite, and is refused as such.
        with np.errstate(over="ignore"):
            vector = np.asarray(embedding, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise QueryError(f"query_embedding is no list of numbers: {error}") from error
    if vector.shape != (dim,):
        raise QueryError(
            f"query_embedding has shape {vector.shape}, the field {field!r} has dimension {dim}; "
            "the query must be embedded by the model of the documents"
        )
    if not np.isfinite(vector).all():
        raise QueryError("query_embedding has a value that is no finite 32-bit number")
    return cast(Sequence[float], vector.tolist())


def _mmr_candidates(top_k: int, options: SearchOptions) -> int:
    if options.mmr_prefetch_k is not None:
        return max(top_k, int(options.mmr_prefetch_k))
    factor = options.mmr_prefetch_factor
    return min(MAX_TOP_K, int(top_k * (DEFAULT_MMR_PREFETCH_FACTOR if factor is None else factor)))


def _search_params(
    config: Mapping[str, Any], index_type: str, limit: int, layout: Layout
) -> dict[str, Any]:
    """Turn a search config, flat or with nested `params`, into pymilvus' form.

    The server reads the parameters of an index type only from the nested dictionary.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("params") or {}, Mapping):
        raise QueryError(
            f"milvus_search_config (or search_config) is {config!r}; it must be a mapping such as "
            '{"ef": 64} or {"params": {"ef": 64}}'
        )
    top_level = {"metric_type", "ignore_growing", "hints", "round_decimal"}
    outer = {key: value for key, value in config.items() if key in top_level}
    params = {key: value for key, value in config.items() if key not in {*top_level, "params"}}
    params.update(config.get("params") or {})
    if _is_hnsw_of_lite(index_type, layout):
        # Lite answers with fewer than `limit` hits where `ef` is less; a server never does.
        try:
            ef = int(params.get("ef", LITE_DEFAULT_EF))
        except (TypeError, ValueError) as error:
            raise QueryError(
                f"search parameter ef is {params['ef']!r}; it must be a number"
            ) from error
        params["ef"] = max(limit, ef)
    return {**outer, "params": params}


def _is_hnsw_of_lite(index_type: str, layout: Layout) -> bool:
    return layout.dialect.is_lite and index_type.upper().startswith("HNSW")


def build_result(
    query: VectorStoreQuery,
    options: SearchOptions,
    search: PreparedSearch,
    hits: Sequence[Mapping[str, Any]],
) -> VectorStoreQueryResult:
    """Make the result of a query.

    Args:
        query: The query.
        options: The keyword arguments of the call.
        search: The search that was sent.
        hits: Its hits with the keys that pymilvus gives them, best first.
    """
    hits = list(hits)
    scores = [similarity(search.metric, hit["distance"]) for hit in hits]
    if query.mode == VectorStoreQueryMode.MMR and hits:
        chosen, scores = mmr(
            np.asarray(search.vector),
            np.asarray([hit["entity"][search.request.field_name] for hit in hits]),
            query.similarity_top_k,
            _mmr_threshold(query, options),
        )
        hits = [hits[position] for position in chosen]
    key = search.primary_key
    nodes = [search.reader.node({**hit["entity"], key: hit[key]}) for hit in hits]
    return VectorStoreQueryResult(
        nodes=nodes, similarities=scores, ids=[node.node_id for node in nodes]
    )


def empty_result() -> VectorStoreQueryResult:
    """The result of a query that nothing can match."""
    return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
