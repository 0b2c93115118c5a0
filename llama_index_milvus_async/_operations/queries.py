"""Answer queries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, cast

from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryResult

from .._concurrency.drivers import is_asynchronous
from .._retrieval.checks import (
    asks_for_all_that_match,
    check_query,
    check_search_options,
    has_text,
)
from .._retrieval.modes import mode_of
from .._retrieval.options import SearchOptions
from .._retrieval.plan import PreparedSearch, SearchPlanner
from .._retrieval.ranking import CallableRanker, ClientRanker
from .._retrieval.results import (
    Hit,
    ScoredHits,
    choose_hits,
    choose_ranked,
    empty_result,
    node_of,
    takes_long,
)
from .._retrieval.values import are_several, check_is_query, described
from .._rpc import NO_HITS, Hits, HybridSearch, Search
from .._translation.layout import DYNAMIC_FIELD
from .._transport.limits import MAX_SEARCH_HITS, MAX_SEARCH_VECTORS
from ..errors import QueryError, ServerError
from .context import Context
from .ids import in_parts
from .listings import explained, list_matching
from .missing_keys import warn_of_missing_filters, warn_of_missing_keys
from .partitions import check_partitions
from .setup import Ready

#: A search of a query: the query's number, and the leg's.
_Place = tuple[int, int]
#: What is sent for it: the request, and the data that it does not share with others.
_Wanted = Mapping[_Place, tuple[Search | HybridSearch, Any]]

#: Output fields that are not keys.
_ALL_FIELDS = frozenset({"*", DYNAMIC_FIELD})


@dataclass(frozen=True)
class Found:
    """What a query has found.

    Attributes:
        search: The search.
        legs: The hits of the result; or those of each leg, where a ranker of the user is to rank
            them.
        nodes: Their nodes.
    """

    search: PreparedSearch
    legs: Sequence[ScoredHits]
    nodes: Sequence[list[BaseNode]]


async def query(
    context: Context, query: VectorStoreQuery, options: SearchOptions
) -> VectorStoreQueryResult:
    """Answer a query."""
    check_is_query("query", query)
    check_search_options(options)
    await context.backend.convert((query,), partial(check_query, options=options))
    if query.doc_ids is not None and not query.doc_ids:
        return empty_result()
    if asks_for_all_that_match(query, options):
        [answer] = await list_matching(context, [query], options)
        return answer
    found: Sequence[Found] = await context.with_ready(
        partial(_find, context, (query,), options), missing=()
    )
    return await _result(context, found[0]) if found else empty_result()


async def query_many(
    context: Context, queries: Sequence[VectorStoreQuery], options: SearchOptions
) -> list[VectorStoreQueryResult]:
    """Answer queries, those that ask alike in common RPCs; results in their order."""
    if not are_several(queries):
        raise QueryError(f"queries is {described(queries)}; it must be a list of queries")
    for position, query in enumerate(queries):
        check_is_query(f"queries[{position}]", query)
    check_search_options(options)
    # All of them before the first is sent.
    await context.backend.convert(queries, partial(check_query, options=options))
    asked, listed = _kinds(queries, options)
    searching = list(map(queries.__getitem__, asked))
    listing = list(map(queries.__getitem__, listed))
    find = partial(_find, context, searching, options)
    found: list[Found] = await context.with_ready(find, missing=[]) if asked else []
    answers = await list_matching(context, listing, options) if listed else []
    results: list[VectorStoreQueryResult | None] = [None] * len(queries)
    for i, one in zip(asked[: len(found)], found, strict=True):
        results[i] = await _result(context, one)
    for i, answer in zip(listed, answers, strict=True):
        results[i] = answer
    return [empty_result() if result is None else result for result in results]


def _kinds(
    queries: Sequence[VectorStoreQuery], options: SearchOptions
) -> tuple[list[int], list[int]]:
    """The queries that search, and those that ask for all that match, by their numbers.

    Nothing can match the others.
    """
    kinds: tuple[list[int], list[int]] = [], []
    for i, query in enumerate(queries):
        if query.doc_ids is None or query.doc_ids:
            kinds[asks_for_all_that_match(query, options)].append(i)
    return kinds


async def _find(
    context: Context, queries: Sequence[VectorStoreQuery], options: SearchOptions, ready: Ready
) -> list[Found]:
    """Search for queries, and make the nodes of what is found."""
    await check_partitions(context, ready.layout, "search", options)
    searches = await _prepare(context, ready, queries, options)
    if ready.layout.engine.scans_unflushed_rows:
        context.backend.note_search(ready.layout.collection_name)
    try:
        hits = await _search(context, searches, options)
    except ServerError as error:
        raise explained(error, options) from error
    found = await _make_nodes(context, searches, hits)
    await _warn_of_missing_keys(context, ready, found)
    return found


async def _result(context: Context, found: Found) -> VectorStoreQueryResult:
    if found.search.ranks_here:
        nodes, similarities = await _rank(context, found)
    else:
        nodes, similarities = found.nodes[0], found.legs[0].similarities
    ids = [node.node_id for node in nodes]
    return VectorStoreQueryResult(nodes=nodes, similarities=similarities, ids=ids)


async def _prepare(
    context: Context, ready: Ready, queries: Sequence[VectorStoreQuery], options: SearchOptions
) -> list[PreparedSearch]:
    """Prepare the searches of queries."""
    sparse: dict[int, Any] = {}
    if ready.layout.encodes_sparse:
        texts = {
            i: query.query_str or ""
            for i, query in enumerate(queries)
            if mode_of(query, options).searches_sparse(query) and has_text(query)
        }
        encoded = await context.encode(list(texts.values()), queries=True) if texts else []
        sparse = dict(zip(texts, encoded, strict=True))
    planner = SearchPlanner(options, ready.layout, ready.indexes, context.options, ready.searches)
    return await context.backend.convert(
        enumerate(queries), lambda numbered: planner.prepare(numbered[1], sparse.get(numbered[0]))
    )


async def _search(
    context: Context, searches: Sequence[PreparedSearch], options: SearchOptions
) -> list[list[Hits]]:
    """Send searches; returns for each the hits of its legs, or those that Milvus has fused."""
    wanted: dict[_Place, tuple[Search | HybridSearch, Any]] = {}
    for i, search in enumerate(searches):
        if search.hybrid is not None:
            wanted[i, 0] = search.hybrid, search.hybrid_data
        else:
            for number, leg in enumerate(search.legs):
                if leg.data is not None:
                    wanted[i, number] = leg.request, leg.data
    found = await _send_searches(context, wanted, options.timeout)
    # Lite's HNSW drops what the filter refuses, and what was deleted, after the search.
    short: dict[_Place, tuple[Search | HybridSearch, Any]] = {
        (i, number): (leg.exhaustive, leg.data)
        for i, search in enumerate(searches)
        if search.hybrid is None
        for number, leg in enumerate(search.legs)
        if leg.exhaustive is not None
        and leg.data is not None
        and len(found[i, number]) < leg.request.limit
    }
    if short:
        found.update(await _send_searches(context, short, options.timeout))
    return [
        [found.get((i, number), NO_HITS) for number in range(search.lists)]
        for i, search in enumerate(searches)
    ]


async def _send_searches(
    context: Context, wanted: _Wanted, timeout: float | None
) -> dict[_Place, Hits]:
    """Send searches, those that ask alike in common requests."""
    if len(wanted) != 1:
        return await _send_in_batches(context, wanted, timeout)
    # Nearly all calls are of this kind, and a thousand of them may wait at the same time.
    [(place, (request, data))] = wanted.items()
    [hits] = await _sender(context, request)(request, [data], timeout)
    return {place: hits}


async def _send_in_batches(
    context: Context, wanted: _Wanted, timeout: float | None
) -> dict[_Place, Hits]:
    alike: dict[Search | HybridSearch, list[_Place]] = {}
    for place, (request, _) in wanted.items():
        alike.setdefault(request, []).append(place)
    batches = [
        (request, places[start : start + count])
        for request, places in alike.items()
        for count in [max(1, min(MAX_SEARCH_VECTORS, MAX_SEARCH_HITS // request.limit))]
        for start in range(0, len(places), count)
    ]
    found: dict[_Place, Hits] = {}

    async def send(batch: tuple[Search | HybridSearch, list[_Place]]) -> None:
        request, places = batch
        read = partial(_sender(context, request), request, timeout=timeout)
        hits = await in_parts([wanted[place][1] for place in places], read)
        found.update(zip(places, hits, strict=True))

    for outcome in await context.backend.send_all(batches, send):
        if isinstance(outcome, Exception):
            raise outcome
    return found


def _sender(
    context: Context, request: Search | HybridSearch
) -> Callable[..., Awaitable[Sequence[Hits]]]:
    backend = context.backend
    return backend.hybrid_search if isinstance(request, HybridSearch) else backend.search


async def _make_nodes(
    context: Context, searches: Sequence[PreparedSearch], hits: Sequence[Sequence[Hits]]
) -> list[Found]:
    """Choose hits, and make their nodes."""
    in_thread = context.backend.in_thread
    chosen: dict[int, list[ScoredHits]] = {
        i: await in_thread(choose_hits, search, hits[i])
        for i, search in enumerate(searches)
        if not search.ranks_here and takes_long(search, sum(map(len, hits[i])))
    }

    def chosen_hits() -> Iterator[tuple[PreparedSearch, Hit]]:
        for i, search in enumerate(searches):
            if i not in chosen:
                chosen[i] = choose_hits(search, hits[i])
            for scored in chosen[i]:
                for hit in scored.hits:
                    yield search, hit

    nodes = iter(await context.backend.convert(chosen_hits(), node_of))
    return [
        Found(search, chosen[i], [list(islice(nodes, len(leg.hits))) for leg in chosen[i]])
        for i, search in enumerate(searches)
    ]


async def _warn_of_missing_keys(context: Context, ready: Ready, found: Sequence[Found]) -> None:
    """Warn of keys that may be why nothing was found, and of output fields that no node has."""
    known = ready.keys_looked_up
    for one in found:
        query, options = one.search.query, one.search.options
        nodes = [node for nodes in one.nodes for node in nodes]
        if not nodes:
            lists = options.milvus_scalar_filters
            await warn_of_missing_filters(context, ready, query.filters, lists)
            continue
        named = (
            context.options.output_fields if query.output_fields is None else query.output_fields
        )
        if not named:
            continue
        unseen = [name for name in named if name not in known and name not in _ALL_FIELDS]
        known |= {name for name in unseen if any(name in node.metadata for node in nodes)}
        await warn_of_missing_keys(context, ready, unseen, "output_fields names")


async def _rank(context: Context, found: Found) -> tuple[list[BaseNode], list[float]]:
    """Have a ranker of the user rank the nodes of each leg."""
    search = found.search
    candidates = [
        [
            NodeWithScore(node=node, score=score)
            for node, score in zip(nodes, leg.similarities, strict=True)
        ]
        for nodes, leg in zip(found.nodes, found.legs, strict=True)
    ]
    rank = cast(CallableRanker, search.ranker).rank
    if not is_asynchronous(rank):
        rank = partial(_call_and_collect, rank)
    returned = await context.backend.call(rank, search.query, candidates)
    hit_of = {
        node.node_id: hit
        for nodes, leg in zip(found.nodes, found.legs, strict=True)
        for node, hit in zip(nodes, leg.hits, strict=True)
    }
    if takes_long(search, len(hit_of)):
        return await context.backend.in_thread(choose_ranked, search, returned, hit_of)
    return choose_ranked(search, returned, hit_of)


def _call_and_collect(rank: ClientRanker, *arguments: Any) -> Any:
    """Call a ranker, which may be a generator function: that works where it is read."""
    returned = rank(*arguments)
    return list(returned) if isinstance(returned, Iterator) else returned
