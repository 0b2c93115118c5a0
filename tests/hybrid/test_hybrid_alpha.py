"""`alpha`, and how many hits each leg and the answer have."""

from __future__ import annotations

import math
import re

import pytest
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from pymilvus import RRFRanker, WeightedRanker

from llama_index_milvus_async import (
    QueryError,
)
from tests.fixtures.labels import label
from tests.hybrid.corpus import (
    BY_ID,
    DEFAULT,
    HYBRID,
    MMR,
    NODES,
    SPARSE,
    TEXT_SEARCH,
    N,
    assert_best,
    best,
    dense_scores,
    lite,
    query_for,
    relative,
    similar,
    weighted,
)


@lite
@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
async def test_alpha_weighs(setup, coloured, alpha):
    query = query_for(alpha=alpha)
    result = await coloured(setup.store).query(query)
    assert_best(result, setup.hybrid(query, relative, (alpha, 1 - alpha)), 10)


@lite
@pytest.mark.parametrize("alpha", [0, 0.0])
async def test_alpha_0_is_sparse_alone(setup, coloured, alpha):
    query = query_for(alpha=alpha, query_embedding=None)
    assert_best(await coloured(setup.store).query(query), setup.sparse(query)[1], 10)


@lite
@pytest.mark.parametrize("alpha", [1, 1.0])
async def test_alpha_1_is_dense_alone(setup, coloured, alpha):
    query = query_for(alpha=alpha, query_str=None)
    metric, distances = setup.dense(query)
    expected = {node_id: similar(metric, distance) for node_id, distance in distances.items()}
    assert_best(await coloured(setup.store).query(query), expected, 10)


@lite
async def test_alpha_is_ignored_by_other_modes(either, coloured):
    store = coloured(either.store)
    for mode in (DEFAULT, SPARSE, MMR):
        plain = await store.query(query_for(mode))
        for alpha in (0.0, 1.0):
            given = await store.query(query_for(mode, alpha=alpha))
            assert (given.ids, given.similarities) == (plain.ids, plain.similarities)


@lite
async def test_with_alpha_0_the_candidates_of_mmr_are_those_of_the_sparse_search(either, coloured):
    store = coloured(either.store)
    query = query_for(MMR, similarity_top_k=8, alpha=0.0, mmr_threshold=1.0)
    result = await store.query(query, mmr_over="hybrid", mmr_prefetch_k=8)
    sparse = await store.query(query_for(SPARSE, similarity_top_k=8))
    assert set(result.ids) == set(sparse.ids)
    nearest = dense_scores(either.metric, query.query_embedding, NODES)
    assert result.ids == [one for one in best((either.metric, nearest), N) if one in result.ids]


@lite
async def test_alpha_weighs_the_candidates_of_mmr(setup, coloured):
    query = query_for(MMR, similarity_top_k=4, alpha=0.25)
    candidates = setup.hybrid(query_for(similarity_top_k=12), relative, (0.25, 0.75))
    ids = best(("fused", candidates), 12)
    _, chosen = get_top_k_mmr_embeddings(
        query.query_embedding,
        [BY_ID[node_id].embedding for node_id in ids],
        similarity_top_k=4,
        embedding_ids=ids,
    )
    result = await coloured(setup.store).query(query, mmr_over="hybrid", mmr_prefetch_k=12)
    assert result.ids == chosen


@lite
async def test_alpha_goes_before_the_ranker_of_the_store(on_encoded, encoded, coloured):
    store = on_encoded(hybrid_ranker=WeightedRanker(1.0, 0.5))
    query = query_for(alpha=0.25)
    result = await coloured(store).query(query)
    assert_best(result, encoded.hybrid(query, relative, (0.25, 0.75)), 10)


@pytest.mark.parametrize("alpha", [0.01, 0.25, 0.99])
async def test_alpha_and_a_ranker_of_the_query_exclude_each_other(unconnected, coloured, alpha):
    with pytest.raises(QueryError, match="alpha and milvus_ranker both say how to rank"):
        await coloured(unconnected).query(query_for(alpha=alpha), milvus_ranker=RRFRanker())


@pytest.mark.parametrize("mode", [HYBRID, DEFAULT])
@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, math.inf, "0.5", True, [0.5]])
async def test_a_bad_alpha_is_refused(unconnected, coloured, mode, alpha):
    query = query_for(mode)
    query.alpha = alpha
    with pytest.raises(QueryError, match=re.escape(f"alpha is {alpha!r}; it must be a number")):
        await coloured(unconnected).query(query)


@lite
@pytest.mark.parametrize(
    "top_ks",
    [
        {"similarity_top_k": 3},
        {"similarity_top_k": 3, "sparse_top_k": 30},
        {"similarity_top_k": 30, "sparse_top_k": 3, "hybrid_top_k": 5},
        {"similarity_top_k": 2, "sparse_top_k": 1, "hybrid_top_k": 25},
        {"similarity_top_k": 20, "hybrid_top_k": 2},
        {"similarity_top_k": 1, "hybrid_top_k": N},
    ],
    ids=label,
)
async def test_numbers_of_hits(either, coloured, top_ks):
    store, weights = coloured(either.store), (0.6, 0.4)
    """The legs find as many as asked for, whatever is returned of them."""
    limit = top_ks.get("hybrid_top_k", top_ks["similarity_top_k"])
    query = query_for(**top_ks)
    result = await store.query(query, milvus_ranker=WeightedRanker(*weights))
    assert_best(result, either.hybrid(query, weighted, weights), limit)

    query = query_for(**top_ks, alpha=0.6)
    result = await store.query(query)
    assert_best(result, either.hybrid(query, relative, weights), limit)


ONE_LEG = [
    ({"similarity_top_k": 3}, 0),
    ({"similarity_top_k": 3, "hybrid_top_k": 5}, 0),
    ({"similarity_top_k": 20, "sparse_top_k": 20, "hybrid_top_k": 5}, 0),
    ({"similarity_top_k": 3}, 3),
    ({"similarity_top_k": 3, "hybrid_top_k": 5}, 3),
]


@lite
@pytest.mark.parametrize(
    ("top_ks", "offset"),
    ONE_LEG,
    ids=label,
)
@pytest.mark.parametrize("alpha", [0, 1])
async def test_numbers_of_hits_of_one_leg(either, coloured, top_ks, offset, alpha):
    query = query_for(**top_ks, alpha=alpha)
    result = await coloured(either.store).query(query, offset=offset)
    limit = min(query.hybrid_top_k or query.similarity_top_k, query.similarity_top_k)
    assert_best(result, either.legs(query)[1 - alpha][1], limit, offset)
    assert len(result.ids) == limit


@lite
@pytest.mark.parametrize("mode", [SPARSE, TEXT_SEARCH])
@pytest.mark.parametrize(
    ("top_ks", "limit"),
    [
        ({"similarity_top_k": 4}, 4),
        ({"similarity_top_k": 4, "sparse_top_k": 7}, 7),
        ({"similarity_top_k": 7, "sparse_top_k": 4}, 4),
        ({"similarity_top_k": 4, "hybrid_top_k": 7}, 4),
    ],
    ids=label,
)
async def test_numbers_of_sparse_hits(either, coloured, mode, top_ks, limit):
    query = query_for(mode, **top_ks)
    result = await coloured(either.store).query(query)
    assert_best(result, either.sparse(query)[1], limit)
    assert len(result.ids) == limit


@lite
async def test_a_top_k_past_the_collection_returns_what_there_is(either, coloured):
    query = query_for(similarity_top_k=16_384)
    result = await coloured(either.store).query(query, milvus_ranker=WeightedRanker(0.5, 1.0))
    assert len(result.ids) == N
    assert_best(result, either.hybrid(query, weighted, (0.5, 1.0)), N)


@pytest.mark.parametrize("name", ["similarity_top_k", "sparse_top_k", "hybrid_top_k"])
@pytest.mark.parametrize("top_k", [0, -1, 16_385, True, 2.0, "10"])
async def test_a_bad_top_k_is_refused_and_named(unconnected, coloured, name, top_k):
    query = query_for()
    setattr(query, name, top_k)
    with pytest.raises(QueryError, match=f"{name} is {top_k!r}"):
        await coloured(unconnected).query(query)
