"""Concurrent hybrid queries share requests and calls of the encoder, and do not mix."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from pymilvus import RRFRanker, WeightedRanker

from llama_index_milvus_async import (
    QueryError,
)
from tests.fixtures.stores import DIM, make_nodes
from tests.hybrid.corpus import (
    DEFAULT,
    HYBRID,
    MMR,
    NODES,
    QUERIES,
    SPARSE,
    TEXT,
    TEXT_SEARCH,
    WORDS,
    BagOfWords,
    assert_identical,
    filters,
    lite,
    query_for,
    rerank,
)


def many_queries(count, **kwargs):
    vectors = [node.embedding for node in make_nodes(count, seed=3)]
    texts = [f"{WORDS[i % 8]} {WORDS[(i // 8) % 8]} {WORDS[i % 3]}" for i in range(count)]
    return [
        query_for(query_embedding=vector, query_str=text, **kwargs)
        for vector, text in zip(vectors, texts, strict=True)
    ]


def another(setup, make):
    """A store on the same collection, whose statistics begin at zero."""
    store = setup.store
    return make(
        collection_name=store.collection_name,
        similarity_metric=setup.metric,
        enable_sparse=True,
        sparse_embedding_function=None if setup.full_text else BagOfWords(),
    )


@lite
async def test_concurrent_hybrid_queries_share_rpcs(either, reopen):
    queries = many_queries(100)
    alone = [await either.store.aquery(query) for query in queries]
    store = another(either, reopen)
    results = await asyncio.gather(*(store.aquery(query) for query in queries))
    assert_identical(results, alone)
    assert len({tuple(result.ids) for result in results}) > 50

    stats = store.stats()
    assert stats["hybrid"].calls == stats["hybrid"].items == 100
    assert stats["hybrid"].rpcs <= 10
    assert "search" not in stats
    if not either.full_text:
        assert stats["encode"].rpcs <= 10


@lite
async def test_without_coalescing_each_hybrid_query_is_an_rpc(on_encoded, encoded):
    store = on_encoded(coalesce=False)
    queries = many_queries(10)
    results = await asyncio.gather(*(store.aquery(query) for query in queries))
    assert_identical(results, [await encoded.store.aquery(query) for query in queries])
    assert store.stats()["hybrid"].rpcs == store.stats()["encode"].rpcs == 10


@lite
async def test_the_legs_of_concurrent_queries_share_rpcs_where_alpha_weighs(either, reopen):
    queries = many_queries(50, alpha=0.3)
    alone = [await either.store.aquery(query) for query in queries]
    store = another(either, reopen)
    results = await asyncio.gather(*(store.aquery(query) for query in queries))
    assert_identical(results, alone)
    stats = store.stats()
    assert stats["search"].calls == 100
    assert stats["search"].rpcs <= 8


VARIATIONS = [
    ({}, {}),
    ({}, {"milvus_ranker": RRFRanker(1)}),
    ({}, {"milvus_ranker": WeightedRanker(0.9, 0.1)}),
    ({}, {"milvus_ranker": WeightedRanker(0.1, 0.9)}),
    ({}, {"milvus_ranker": WeightedRanker(0.1, 0.9, norm_score=False)}),
    ({}, {"milvus_ranker": rerank(reranker="rrf", k=2)}),
    ({}, {"milvus_ranker": rerank(reranker="weighted", weights=[0.2, 0.8])}),
    ({"alpha": 0.25}, {}),
    ({"alpha": 0.75}, {}),
    ({"alpha": 0}, {}),
    ({"alpha": 1}, {}),
    ({"similarity_top_k": 7}, {}),
    ({"hybrid_top_k": 3}, {}),
    ({"sparse_top_k": 4, "similarity_top_k": 4}, {}),
    ({"filters": filters(("kind", "==", "poem"))}, {}),
    ({"filters": filters(("kind", "==", "play"))}, {}),
    ({"doc_ids": ["doc-1", "doc-2", "doc-3"]}, {}),
    ({"hybrid_top_k": 8}, {"offset": 2}),
    ({}, {"group_by_field": "kind"}),
    ({}, {"score_threshold": 0.02}),
    ({"output_fields": ["embedding"]}, {}),
]


@lite
async def test_queries_that_differ_do_not_mix(either):
    """Each gets what it gets alone, and no two kinds of query get the same."""
    queries = [
        (query_for(query_embedding=QUERIES[i % 8], **kwargs), options)
        for i in range(3)
        for kwargs, options in VARIATIONS
    ]
    alone = [await either.store.aquery(query, **options) for query, options in queries]
    together = (either.store.aquery(query, **options) for query, options in queries)
    assert_identical(await asyncio.gather(*together), alone)
    first = alone[: len(VARIATIONS)]
    answers = {(*r.ids, *np.round(r.similarities, 6), r.nodes[0].embedding is None) for r in first}
    assert len(answers) == len(VARIATIONS)


@lite
async def test_queries_of_all_modes_at_once(either):
    modes = [DEFAULT, SPARSE, TEXT_SEARCH, HYBRID, MMR]
    queries = [query_for(modes[i % 5], query_embedding=QUERIES[i % 8]) for i in range(50)]
    alone = [await either.store.aquery(query) for query in queries]
    assert_identical(
        await asyncio.gather(*(either.store.aquery(query) for query in queries)), alone
    )


@lite
async def test_query_many_of_all_modes(either, coloured):
    modes = [DEFAULT, SPARSE, TEXT_SEARCH, HYBRID, MMR]
    queries = [
        query_for(
            modes[i % 5], query_embedding=QUERIES[i % 8], alpha=[None, 0, 0.5, 1][i % 4], **kwargs
        )
        for i in range(40)
        for kwargs in [{"doc_ids": []} if i % 11 == 3 else {}]
    ]
    store = coloured(either.store)
    alone = [await store.query(query, mmr_over="hybrid") for query in queries]
    assert_identical(await store.query_many(queries, mmr_over="hybrid"), alone)
    assert [len(one.ids) for one in alone].count(0) == 4
    assert await store.query_many([], mmr_over="hybrid") == []


@lite
async def test_query_many_with_a_bad_query_asks_nothing(make_encoded, coloured):
    encoder = BagOfWords()
    store = coloured(make_encoded(encoder))
    await store.add(NODES[:5])
    encoder.calls.clear()
    with pytest.raises(QueryError, match="needs query_str"):
        await store.query_many([query_for(), query_for(SPARSE, query_str=""), query_for()])
    assert encoder.calls == []
    assert not store.store.stats().get("hybrid")


@lite
async def test_a_bad_query_fails_alone(either):
    bad = [
        query_for(query_embedding=[1.0] * (DIM + 1)),
        query_for(query_str=" "),
        query_for(alpha=0.5, hybrid_top_k=16_385),
    ]
    queries = many_queries(30)
    queries[5], queries[15], queries[25] = bad
    outcomes = await asyncio.gather(
        *(either.store.aquery(query) for query in queries), return_exceptions=True
    )
    failed = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, QueryError)]
    assert failed == [5, 15, 25]
    assert {len(o.ids) for i, o in enumerate(outcomes) if i not in failed} == {10}


class OutOfService(BagOfWords):
    """Fails as a service that is away does, with an exception of its own."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    async def async_encode_queries(self, queries):
        self.asked += 1
        raise RuntimeError("503 Service Unavailable")


@lite
@pytest.mark.parametrize("together", [True, False])
async def test_a_service_that_is_away_is_not_asked_for_each_text(make_encoded, together):
    encoder = OutOfService()
    store = make_encoded(encoder)
    texts = [f"{TEXT} {i}" for i in range(1_000 if together else 50)]
    queries = [query_for(query_str=text) for text in texts]
    calls = [store.aquery_many(queries)] if together else map(store.aquery, queries)
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {str(outcome) for outcome in outcomes} == {"503 Service Unavailable"}
    await asyncio.sleep(0.1)
    # Those that come while one is under way share the next; on a busy machine it is not the last.
    assert encoder.asked <= (10 if together else 25)
