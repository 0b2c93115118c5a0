"""What can be checked of a query before anything is known of the collection."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from .._translation.filters import list_filters, metadata_filters
from .._translation.numbers import is_number
from ..errors import QueryError
from .modes import MMR_OVER, MODES, Mode, mmr_candidates, mmr_threshold, mode_of
from .options import SearchOptions
from .ranking import only_fuses, ranker_of
from .values import (
    MAX_TOP_K,
    are_texts,
    check_embedding,
    check_flag,
    check_ids,
    check_output_fields,
    check_search_config,
    check_top_k,
)

# Members are equal to their texts, which callers pass as well, and have other hashes.
_MODES = tuple(MODES)


def check_search_options(options: SearchOptions) -> None:
    """Check what the keyword arguments of a call say by themselves.

    Raises:
        QueryError: One is of another type or out of range.
        FilterError: `milvus_scalar_filters` are not filters.
        ConfigurationError: `milvus_ranker` is not a ranker.
    """
    if options.milvus_ranker is not None:
        ranker_of(options.milvus_ranker, None, "milvus_ranker")
    if not isinstance(options.string_expr, (str, type(None))):
        raise QueryError(f"string_expr is {options.string_expr!r}; it must be a string")
    if options.mmr_over not in tuple(MMR_OVER):  # which needs no hash
        raise QueryError(f"mmr_over is {options.mmr_over!r}; it must be 'dense' or 'hybrid'")
    if options.hybrid_fields is not None:
        _check_hybrid_fields(options.hybrid_fields)
    if options.milvus_scalar_filters is not None:
        list_filters(options.milvus_scalar_filters)
    for name in ("milvus_search_config", "sparse_search_config"):
        if getattr(options, name) is not None:
            check_search_config(name, getattr(options, name))
    if options.ranker_prefetch_k is not None:
        check_top_k("ranker_prefetch_k", options.ranker_prefetch_k)
    _check_mmr(options)
    _check_paging(options)


def check_query(query: VectorStoreQuery, options: SearchOptions) -> None:
    """Check a query whose keyword arguments `check_search_options` has passed.

    Raises:
        QueryError: The mode is not supported; text, embedding, top k or alpha are missing or bad.
        FilterError: Its filters are something else.
    """
    if query.mode not in _MODES:
        supported = ", ".join(mode.name for mode in MODES.values())
        name = getattr(query.mode, "name", query.mode)
        raise QueryError(f"mode {name} is not supported; supported are {supported}")
    mode = mode_of(query, options)
    _check_types(query)
    check_top_k("similarity_top_k", query.similarity_top_k)
    for name in ("sparse_top_k", "hybrid_top_k"):
        if getattr(query, name) is not None:
            check_top_k(name, getattr(query, name))
    alpha = query.alpha
    if alpha is not None and not _is_share(alpha):
        raise QueryError(f"alpha is {alpha!r}; it must be a number from 0 (sparse) to 1 (dense)")
    if options.milvus_ranker is not None and alpha not in (None, 0, 1):
        raise QueryError("alpha and milvus_ranker both say how to rank; pass one of them")
    _check_ranker(mode, options)
    if mode.needs_embedding(query) and not _has_embedding(query):
        if not asks_for_all_that_match(query, options):
            raise lacking("query_embedding", query, mode)
        for name in ("score_threshold", "group_by_field", "milvus_ranker"):
            if getattr(options, name) is not None:
                raise QueryError(
                    f"{name} is for hits of a search, and a query without query_embedding returns "
                    "nodes that match, in no order of similarity; leave it out, or embed a question"
                )
    # Without a sparse field, which is not known here, several dense ones need no text.
    needs_text = mode.searches_sparse(query) and not options.has_several_dense_fields
    if needs_text and not has_text(query):
        raise lacking("query_str", query, mode)
    threshold = mmr_threshold(query, options)
    if threshold is not None and not _is_share(threshold):
        raise QueryError(f"mmr_threshold is {threshold!r}; it must be a number in 0..1")
    if options.offset:
        _check_pool(query, mode, options)


def asks_for_all_that_match(query: VectorStoreQuery, options: SearchOptions) -> bool:
    """Whether a query has no embedding, and says by other means which nodes it wants.

    So ask LlamaIndex's auto-retrievers where a question is only about metadata.
    """
    if query.mode != VectorStoreQueryMode.DEFAULT or _has_embedding(query):
        return False
    return bool(
        metadata_filters(query.filters).filters
        or query.node_ids  # an empty list means every node
        or query.doc_ids is not None
        or options.milvus_scalar_filters
        or (options.string_expr and options.string_expr.strip())
    )


def _has_embedding(query: VectorStoreQuery) -> bool:
    return query.query_embedding is not None and len(query.query_embedding) > 0


def has_text(query: VectorStoreQuery) -> bool:
    """Whether a query has a text that can be searched for."""
    return bool(query.query_str and query.query_str.strip())


def lacking(attribute: str, query: VectorStoreQuery, mode: Mode) -> QueryError:
    """The error of a query without its embedding or its text.

    Args:
        attribute: `"query_embedding"` or `"query_str"`.
        query: The query.
        mode: Its mode, which needs it.
    """
    needs = f"mode {mode.name} needs {attribute}, and it is missing"
    if query.query_str is None or has_text(query):
        how = "embed the question first" if attribute == "query_embedding" else "pass the question"
        return QueryError(f"{needs}; {how}, or ask through a retriever (index.as_retriever())")
    why = " (LlamaIndex makes no embedding of an empty text)"
    return QueryError(
        f"the question is empty (query_str is {query.query_str!r}): ask something, or read nodes "
        f"by their metadata with get_nodes(filters=...); {needs}"
        + (why if attribute == "query_embedding" else "")
    )


def _check_types(query: VectorStoreQuery) -> None:
    for name in ("query_str", "embedding_field"):
        text = getattr(query, name)
        if not isinstance(text, (str, type(None))):
            raise QueryError(f"{name} is {text!r}; it must be a string")
    check_ids("node_ids", query.node_ids)
    check_ids("doc_ids", query.doc_ids)
    metadata_filters(query.filters)
    check_output_fields(query.output_fields)
    embedding = query.query_embedding
    if embedding is not None:
        check_embedding("query_embedding", embedding)


def _check_hybrid_fields(fields: Any) -> None:
    embeddings = fields if isinstance(fields, Mapping) else {}
    names = embeddings.keys() or fields
    if not names or not are_texts(names):
        raise QueryError(
            f"hybrid_fields is {fields!r}; it must be a list of dense vector fields, or a "
            "dictionary of such fields to embeddings"
        )
    for name, embedding in embeddings.items():
        if embedding is not None:
            check_embedding(f"hybrid_fields[{name!r}]", embedding)


def _check_mmr(options: SearchOptions) -> None:
    if options.mmr_prefetch_factor is not None and options.mmr_prefetch_k is not None:
        raise QueryError("mmr_prefetch_factor and mmr_prefetch_k exclude each other; pass one")
    factor = options.mmr_prefetch_factor
    if factor is not None and not (is_number(factor) and 1 <= factor < math.inf):
        raise QueryError(f"mmr_prefetch_factor is {factor!r}; it must be a number of at least 1")
    if options.mmr_prefetch_k is not None:
        check_top_k("mmr_prefetch_k", options.mmr_prefetch_k)


def _check_paging(options: SearchOptions) -> None:
    offset, field, size = options.offset, options.group_by_field, options.group_size
    if not isinstance(offset, int) or isinstance(offset, bool) or not 0 <= offset < MAX_TOP_K:
        raise QueryError(f"offset is {offset!r}; it must be an integer in 0..{MAX_TOP_K - 1}")
    if field is not None and (not isinstance(field, str) or not field):
        raise QueryError(f"group_by_field is {field!r}; it must be the name of a field")
    check_flag("strict_group_size", options.strict_group_size)
    for name in ("group_size", "strict_group_size"):
        if getattr(options, name) is not None and field is None:
            raise QueryError(f"{name} has no effect without group_by_field; pass both")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise QueryError(f"group_size is {size!r}; it must be an integer of at least 1")
    threshold = options.score_threshold
    if threshold is not None and not (is_number(threshold) and math.isfinite(threshold)):
        raise QueryError(f"score_threshold is {threshold!r}; it must be a number")


def _check_ranker(mode: Mode, options: SearchOptions) -> None:
    """Check that a ranker suits a mode, whatever the collection is."""
    if mode.is_hybrid:
        if options.ranker_prefetch_k is not None:
            raise QueryError(
                "ranker_prefetch_k is for searches of one field; what a hybrid search ranks is "
                "named by similarity_top_k and sparse_top_k, for MMR by mmr_prefetch_k"
            )
        return
    if options.ranker_prefetch_k is not None and options.group_by_field is not None:
        raise QueryError("ranker_prefetch_k has no effect with group_by_field; pass one of them")
    given = options.milvus_ranker
    if given is not None and only_fuses(ranker_of(given, None, "milvus_ranker")):
        raise QueryError(
            f"milvus_ranker fuses the hits of several searches, and mode {mode.name} makes one: "
            "there is nothing to fuse. Use mode HYBRID, or pass a Function with reranker='decay' "
            "or 'boost', a FunctionScore, or a callable"
        )


def _check_pool(query: VectorStoreQuery, mode: Mode, options: SearchOptions) -> None:
    """Check that what hits are chosen from reaches beyond those that are skipped.

    It has to be the same for every page: a hit's rank changes with the candidates beside it.
    """
    top_k, offset = query.similarity_top_k, options.offset
    if mode.diversifies and offset + top_k > (pool := mmr_candidates(top_k, options)):
        raise QueryError(
            f"offset is {offset}: this page needs {offset} + {top_k} hits, and MMR has {pool} "
            "candidates; pass a larger mmr_prefetch_k, the same for every page"
        )
    if mode.diversifies or not (mode.searches_dense(query) and mode.searches_sparse(query)):
        return
    size = mode.page_size(query)
    if offset + size > min(top_k, query.sparse_top_k or top_k):
        raise QueryError(
            f"offset is {offset}: this page needs {offset} + {size} hits, and each leg of the "
            "hybrid search fetches fewer; pass a similarity_top_k (and sparse_top_k, if set) of "
            f"at least {offset + size}, the same for every page, and {mode.top_k}={size} as the "
            "size of a page"
        )


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1
