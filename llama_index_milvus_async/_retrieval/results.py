"""From hits to the nodes and similarities of a result."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
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
from .ranking import CallableRanker, RelativeScore, similarity

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
    if isinstance(search.ranker, CallableRanker):
        return [
            ScoredHits(_all(found), _similarities(leg.metric, found))
            for leg, found in zip(search.legs, legs, strict=True)
        ]
    found, scores = _similar_enough(*_scored(search, legs), search.options)
    if search.mode.diversifies and found:
        found, scores = _diverse(search, found)
    return [ScoredHits(found, scores)]


def takes_long(search: PreparedSearch, legs: Sequence[Hits]) -> bool:
    """Whether `choose_hits` takes so long that it must not run on an event loop."""
    if not search.mode.diversifies:
        return False
    column = search.layout.dense_column(
        search.query.embedding_field or search.layout.embedding_field
    )
    chosen = search.query.similarity_top_k + search.options.offset
    return sum(map(len, legs)) * (column.dim or 0) * (chosen + 4) > MAX_MMR_PRODUCTS


def node_of(search_and_hit: tuple[PreparedSearch, Hit]) -> BaseNode:
    """Make the node of a hit."""
    search, (hits, position) = search_and_hit
    return search.reader.node({**hits[position], search.layout.primary_key: hits.ids[position]})


def _all(hits: Hits) -> list[Hit]:
    return [(hits, position) for position in range(len(hits))]


def _similarities(metric: str, hits: Hits) -> list[float]:
    return [similarity(metric, distance) for distance in hits.distances]


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


def _scored(search: PreparedSearch, legs: Sequence[Hits]) -> tuple[list[Hit], list[float]]:
    """The hits of the result and their similarities."""
    if len(legs) == 1:
        [found] = legs
        if search.hybrid is not None:
            return _all(found), list(found.distances)
        return _all(found), _similarities(search.legs[0].metric, found)
    hit_of = {hits.ids[position]: (hits, position) for leg in legs for hits, position in _all(leg)}
    pairs = [list(zip(leg.ids, leg.distances, strict=True)) for leg in legs]
    fused = cast(RelativeScore, search.ranker).fuse(pairs, [leg.metric for leg in search.legs])
    skipped = 0 if search.mode.diversifies else search.options.offset
    fused = fused[skipped : skipped + search.limit]
    return [hit_of[one] for one, _ in fused], [score for _, score in fused]


def _diverse(search: PreparedSearch, hits: Sequence[Hit]) -> tuple[list[Hit], list[float]]:
    """Choose by maximal marginal relevance."""
    query, options = search.query, search.options
    column = search.layout.dense_column(query.embedding_field or search.layout.embedding_field)
    chosen, scores = mmr(
        unpacked(query_vector(query, column), column.type, column.dim),
        _vectors(hits, column),
        query.similarity_top_k + options.offset,
        mmr_threshold(query, options),
    )
    chosen, scores = chosen[options.offset :], scores[options.offset :]
    return [hits[position] for position in chosen], scores


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
