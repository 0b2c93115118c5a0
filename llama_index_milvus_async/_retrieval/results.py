"""From hits to the nodes and similarities of a result."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.vector_stores.types import VectorStoreQueryResult

from .._rpc import Hits
from .._translation.layout import Column
from .._translation.vectors import numbers_of, unpacked
from ..errors import QueryError, RowError
from .mmr import mmr
from .modes import mmr_threshold
from .options import SearchOptions
from .plan import PreparedSearch, query_vector
from .ranking import CallableRanker, RelativeScore, ServerRanker, similarity

#: Products of numbers that MMR may compute on an event loop: about a millisecond of work.
MAX_MMR_PRODUCTS = 1_000_000

T = TypeVar("T")
#: The hits of a search, and the position of one among them.
Hit: TypeAlias = tuple[Hits, int]


@dataclass(frozen=True)
class ScoredHits:
    """Hits, best first, and their similarities.

    Attributes:
        hits: For each the hits that it is one of, and its position among them.
        similarities: Their similarities, which rise with relevance.
    """

    hits: list[Hit]
    similarities: list[float]


def choose_hits(search: PreparedSearch, legs: Sequence[Hits]) -> list[ScoredHits]:
    """Choose the hits that become nodes.

    Args:
        search: The search that was sent.
        legs: The hits of each leg, or those that Milvus has fused.

    Returns:
        The hits of the result; or those of each leg, where a ranker of the user is to rank them.
    """
    if search.ranks_here:
        return [
            ScoredHits(_all(found), _similarities(leg.metric, found))
            for leg, found in zip(search.legs, legs, strict=True)
        ]
    found, scores = _similar_enough(*_scored(search, legs), search.options)
    if search.mode.diversifies and found:
        chosen, scores = _diverse(search, found)
        found = [found[position] for position in chosen]
    return [ScoredHits(found, scores)]


def takes_long(search: PreparedSearch, count: int) -> bool:
    """Whether choosing from so many hits takes so long that it must not run on an event loop."""
    if not search.mode.diversifies:
        return False
    column = search.layout.dense_column(
        search.query.embedding_field or search.layout.embedding_field
    )
    chosen = search.query.similarity_top_k + search.options.offset
    return min(count, search.limit) * (column.dim or 0) * (chosen + 4) > MAX_MMR_PRODUCTS


def node_of(search_and_hit: tuple[PreparedSearch, Hit]) -> BaseNode:
    """Make the node of a hit."""
    search, (hits, position) = search_and_hit
    row = hits.row(position)
    row[search.layout.primary_key] = hits.ids[position]
    return search.reader.node(row)


def _all(hits: Hits) -> list[Hit]:
    return [(hits, position) for position in range(len(hits))]


def _similarities(metric: str, hits: Hits) -> list[float]:
    return [similarity(metric, distance) for distance in hits.distances]


def choose_ranked(
    search: PreparedSearch, returned: Any, found: Mapping[str, Hit]
) -> tuple[list[BaseNode], list[float]]:
    """The nodes of a result and their scores, of those that a ranker of the user returned.

    Args:
        search: The search.
        returned: What the ranker returned.
        found: The hits that it was given, by the ids of their nodes.

    Raises:
        QueryError: It returned something else than scored nodes; or, for MMR, other nodes.
    """
    ranked: list[Any] = list(returned) if isinstance(returned, Iterable) else [None]
    rank = cast(CallableRanker, search.ranker).rank
    name = getattr(rank, "__qualname__", type(rank).__name__)
    if not all(isinstance(one, NodeWithScore) for one in ranked):
        if inspect.iscoroutine(returned):
            returned.close()  # else Python warns that nobody awaited it
        raise QueryError(
            f"the ranker {name} returned a {type(returned).__name__}; it must return a list of "
            "NodeWithScore"
        )
    ranked = _page(search, ranked)
    nodes, scores = _similar_enough(
        [one.node for one in ranked], [float(one.score or 0.0) for one in ranked], search.options
    )
    if not search.mode.diversifies or not nodes:
        return nodes, scores
    if strange := [node.node_id for node in nodes if node.node_id not in found]:
        raise QueryError(
            f"the ranker {name} returned nodes that it was not given, {strange[:3]}; MMR chooses "
            "by the embeddings of those that were found"
        )
    chosen, scores = _diverse(search, [found[node.node_id] for node in nodes])
    return [nodes[position] for position in chosen], scores


def _page(search: PreparedSearch, ranked: Sequence[T]) -> list[T]:
    """Those of all that was ranked that are wanted."""
    # MMR skips what it has chosen, not what it chooses from.
    skipped = 0 if search.mode.diversifies else search.options.offset
    return list(ranked[skipped : skipped + search.limit])


def _similar_enough(
    items: list[T], scores: list[float], options: SearchOptions
) -> tuple[list[T], list[float]]:
    """Those of the items whose scores reach the threshold, and their scores."""
    least = options.score_threshold
    if least is None:
        return items, scores
    kept = [i for i, score in enumerate(scores) if score >= least]
    return [items[i] for i in kept], [scores[i] for i in kept]


def _scored(search: PreparedSearch, legs: Sequence[Hits]) -> tuple[list[Hit], list[float]]:
    """The hits of the result and their similarities."""
    if len(legs) == 1:
        [found] = legs
        ranker = search.ranker
        if search.hybrid is not None or (
            isinstance(ranker, ServerRanker) and not ranker.keeps_metric
        ):
            scores = list(found.distances)
        else:
            scores = _similarities(search.legs[0].metric, found)
        if search.is_paged:
            return _all(found), scores
        return _page(search, _all(found)), _page(search, scores)
    hit_of = {hits.ids[position]: (hits, position) for leg in legs for hits, position in _all(leg)}
    pairs = [list(zip(leg.ids, leg.distances, strict=True)) for leg in legs]
    fused = cast(RelativeScore, search.ranker).fuse(pairs, [leg.metric for leg in search.legs])
    fused = _page(search, fused)
    return [hit_of[one] for one, _ in fused], [score for _, score in fused]


def _diverse(search: PreparedSearch, hits: Sequence[Hit]) -> tuple[list[int], list[float]]:
    """Choose by maximal marginal relevance: positions of hits, and the scores of the choice."""
    query, options = search.query, search.options
    column = search.layout.dense_column(query.embedding_field or search.layout.embedding_field)
    chosen, scores = mmr(
        unpacked(query_vector(query, column), column.type, column.dim),
        _vectors(hits, column),
        query.similarity_top_k + options.offset,
        mmr_threshold(query, options),
    )
    return chosen[options.offset :], scores[options.offset :]


def _vectors(hits: Sequence[Hit], column: Column) -> npt.NDArray[Any]:
    """The vectors of hits, shape `(hits, dimension)`.

    Raises:
        RowError: A hit has none.
    """
    found = {id(response): response for response, _ in hits}
    arrays: dict[int, npt.NDArray[Any]] = {}
    for key, response in found.items():
        vectors = response.vectors(column.name)
        if vectors is None:
            raise RowError(
                f"a row that was found has no vector in the field {column.name!r}, by which mode "
                "MMR compares"
            )
        arrays[key] = numbers_of(vectors, column.type, column.dim)
    if len(arrays) == 1:
        [vectors] = arrays.values()
        return vectors[[position for _, position in hits]]
    return np.stack([arrays[id(response)][position] for response, position in hits])


def empty_result() -> VectorStoreQueryResult:
    """The result of a query that nothing can match."""
    return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
