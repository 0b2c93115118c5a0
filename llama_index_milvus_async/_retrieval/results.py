"""From hits to the nodes and similarities of a result."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.vector_stores.types import VectorStoreQueryResult

from .._translation.row_to_node import decoded
from .._translation.vectors import unpacked
from ..errors import QueryError
from .mmr import mmr
from .modes import mmr_threshold
from .options import SearchOptions
from .plan import PreparedSearch, query_vector
from .ranking import CallableRanker, RelativeScore, similarity

T = TypeVar("T")


@dataclass(frozen=True)
class ScoredHits:
    """Hits, best first, with the keys that pymilvus gives them, and their similarities."""

    hits: list[Mapping[str, Any]]
    similarities: list[float]


def choose_hits(
    search: PreparedSearch, hits: Sequence[Sequence[Mapping[str, Any]]]
) -> list[ScoredHits]:
    """Choose the hits that become nodes.

    Args:
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
    found, scores = _similar_enough(*_scored(search, legs), search.options)
    if search.mode.diversifies and found:
        found, scores = _diverse(search, found)
    return [ScoredHits(found, scores)]


def node_of(search_and_hit: tuple[PreparedSearch, Mapping[str, Any]]) -> BaseNode:
    """Make the node of a hit."""
    search, hit = search_and_hit
    key = search.layout.primary_key
    return search.reader.node({**hit["entity"], key: _primary_key(hit, key)})


def check_ranked(search: PreparedSearch, returned: Any) -> tuple[list[BaseNode], list[float]]:
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
    ranked = ranked[search.options.offset : search.options.offset + search.limit]
    scores = [float(one.score or 0.0) for one in ranked]
    return _similar_enough([one.node for one in ranked], scores, search.options)


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
    search: PreparedSearch, legs: Sequence[list[Mapping[str, Any]]]
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
    skipped = 0 if search.mode.diversifies else search.options.offset
    fused = fused[skipped : skipped + search.limit]
    return [by_id[one] for one, _ in fused], [score for _, score in fused]


def _primary_key(hit: Mapping[str, Any], name: str) -> Any:
    # Servers before 2.4 do not say what the primary key is called; pymilvus calls it "id" then.
    return hit[name] if name in hit else hit["id"]


def _diverse(
    search: PreparedSearch, hits: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], list[float]]:
    """Choose by maximal marginal relevance."""
    query, options = search.query, search.options
    column = search.layout.dense_column(query.embedding_field or search.layout.embedding_field)
    chosen, scores = mmr(
        unpacked(query_vector(query, column), column.type, column.dim),
        np.asarray([unpacked(hit["entity"][column.name], column.type, column.dim) for hit in hits]),
        query.similarity_top_k + options.offset,
        mmr_threshold(query, options),
    )
    chosen, scores = chosen[options.offset :], scores[options.offset :]
    return [hits[position] for position in chosen], scores


def empty_result() -> VectorStoreQueryResult:
    """The result of a query that nothing can match."""
    return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
