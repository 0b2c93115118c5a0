"""Filters, ids and search parameters restrict every leg of a hybrid query."""

from __future__ import annotations

import pytest
from pymilvus import WeightedRanker

from llama_index_milvus_async import (
    QueryError,
    ServerError,
)
from tests.hybrid.corpus import (
    BY_ID,
    DEFAULT,
    FULL_PRECISION,
    HYBRID,
    MMR,
    NODES,
    SPARSE,
    TEXT_SEARCH,
    N,
    assert_best,
    best,
    filters,
    lite,
    make_setup,
    query_for,
    relative,
    restricted,
    restrictions,
    weighted,
)

# The same computed here


def assert_same(result, expected):
    """Two results are the same, up to the order of equal scores."""
    assert result.similarities == pytest.approx(expected.similarities, abs=FULL_PRECISION)
    assert len(result.ids) == len(set(result.ids))
    last = min(result.similarities, default=0.0) + FULL_PRECISION
    for one, other in ((result, expected), (expected, result)):
        scores = dict(zip(other.ids, other.similarities, strict=True))
        for node_id, score in zip(one.ids, one.similarities, strict=True):
            assert scores.get(node_id, score) == pytest.approx(score, abs=FULL_PRECISION)
            assert node_id in scores or score <= last  # one of equals at the end
    assert [node.text for node in result.nodes] == [BY_ID[i].text for i in result.ids]


@pytest.fixture(scope="module")
def hnsw(make_shared_store):
    index = {"index_type": "HNSW", "M": 8, "efConstruction": 64}
    return make_setup(make_shared_store, "COSINE", False, index_config=index)


# What restricts


@lite
@restrictions
@pytest.mark.parametrize("mode", [SPARSE, TEXT_SEARCH])
async def test_restrictions_of_sparse_search(either, coloured, mode, name):
    query, options, nodes = restricted(name, mode)
    result = await coloured(either.store).query(query, **options)
    assert_best(result, either.sparse(query, nodes)[1], 10)


@lite
@restrictions
async def test_every_leg_is_restricted(either, coloured, name):
    store = coloured(either.store)
    query, options, nodes = restricted(name, HYBRID, similarity_top_k=6)
    legs, weights = either.legs(query, nodes), (0.25, 0.75)
    result = await store.query(query, milvus_ranker=WeightedRanker(*weights), **options)
    assert_best(result, weighted(legs, [6, 6], weights), 6)
    result = await store.query(restricted(name, HYBRID, alpha=0.25)[0], **options)
    assert_best(result, relative(legs, [10, 10], weights), 10)
    for alpha in (0, 1):
        result = await store.query(restricted(name, HYBRID, alpha=alpha)[0], **options)
        assert_best(result, legs[1 - alpha][1], 10)


@lite
@restrictions
async def test_mmr_over_hybrid_is_restricted(either, coloured, name):
    query, options, nodes = restricted(name, MMR)
    result = await coloured(either.store).query(query, mmr_over="hybrid", **options)
    assert set(result.ids) <= {node.node_id for node in nodes}
    assert len(result.ids) == min(10, len(nodes))


@lite
@pytest.mark.parametrize("mode", [SPARSE, TEXT_SEARCH, HYBRID, MMR])
async def test_no_documents_match_nothing(either, coloured, mode):
    result = await coloured(either.store).query(query_for(mode, doc_ids=[]), mmr_over="hybrid")
    assert (result.ids, result.nodes, result.similarities) == ([], [], [])


@lite
@pytest.mark.parametrize("mode", [SPARSE, HYBRID])
async def test_no_node_ids_restrict_nothing(either, coloured, mode):
    store = coloured(either.store)
    assert_same(await store.query(query_for(mode, node_ids=[])), await store.query(query_for(mode)))


@lite
@pytest.mark.parametrize("mode", [SPARSE, HYBRID])
async def test_ids_that_are_not_there_match_nothing(either, coloured, mode):
    assert (await coloured(either.store).query(query_for(mode, node_ids=["no"]))).ids == []


@lite
async def test_a_filter_does_not_change_the_scores_of_bm25(full_text, coloured):
    """Its statistics are of the whole collection."""
    store = coloured(full_text.store)
    everything = await store.query(query_for(TEXT_SEARCH, similarity_top_k=N))
    scores = dict(zip(everything.ids, everything.similarities, strict=True))
    some = await store.query(
        query_for(TEXT_SEARCH, similarity_top_k=N, filters=filters(("kind", "==", "poem")))
    )
    assert 3 < len(some.ids) < len(everything.ids)
    assert some.similarities == pytest.approx([scores[i] for i in some.ids])


@lite
async def test_a_wrong_expression_surfaces_with_the_server_s_reason(either, coloured):
    with pytest.raises(ServerError, match=r"hybrid.*failed"):
        await coloured(either.store).query(query_for(), string_expr="year >")


# Search parameters


def within(leg, near, far):
    """The ids between two places of a ranking, and the distances that bound them."""
    distances, ids = leg[1], best(leg, N)

    def between(one, other):
        return (distances[ids[one]] + distances[ids[other]]) / 2

    return ids[near:far], between(near - 1, near), between(far - 1, far)


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
async def test_a_range_of_distances(dense, coloured, nested):
    ids, near, far = within(dense.dense(query_for()), 2, 7)
    config = {"radius": far, "range_filter": near}
    result = await coloured(dense.store).query(
        query_for(DEFAULT), milvus_search_config={"params": config} if nested else config
    )
    assert result.ids == ids


@lite
@pytest.mark.parametrize("mode", [SPARSE, TEXT_SEARCH])
async def test_a_range_of_sparse_scores(either, coloured, mode):
    """Of BM25 in the sense of a server, though Milvus Lite gives them a minus."""
    ids, near, far = within(either.sparse(query_for()), 2, 7)
    result = await coloured(either.store).query(
        query_for(mode), sparse_search_config={"radius": far, "range_filter": near}
    )
    assert result.ids == ids


@lite
@pytest.mark.parametrize("alpha", [0, 0.5, 1])
async def test_ranges_of_both_legs(encoded, coloured, alpha):
    query = query_for(alpha=alpha)
    dense_ids, dense_near, dense_far = within(encoded.dense(query), 2, 7)
    sparse_ids, sparse_near, sparse_far = within(encoded.sparse(query), 3, 9)
    result = await coloured(encoded.store).query(
        query,
        milvus_search_config={"radius": dense_far, "range_filter": dense_near},
        sparse_search_config={"radius": sparse_far, "range_filter": sparse_near},
    )
    expected = {0: set(sparse_ids), 0.5: {*dense_ids, *sparse_ids}, 1: set(dense_ids)}[alpha]
    assert set(result.ids) <= expected
    assert len(result.ids) == min(10, len(expected))


@lite
async def test_ranges_of_legs_that_milvus_fuses_are_refused_on_lite(encoded, coloured):
    with pytest.raises(QueryError, match=r"\['radius'\].*Milvus Lite .* ignores them.*pass alpha"):
        await coloured(encoded.store).query(query_for(), sparse_search_config={"radius": 2.0})


@lite
@pytest.mark.parametrize(
    ("mode", "alpha"), [(SPARSE, None), (TEXT_SEARCH, None), (HYBRID, None), (HYBRID, 0.5)]
)
async def test_a_sparse_parameter_that_milvus_refuses(encoded, coloured, mode, alpha):
    with pytest.raises(ServerError, match=r"failed.*only drop_ratio_search=0 is supported"):
        await coloured(encoded.store).query(
            query_for(mode, alpha=alpha), sparse_search_config={"drop_ratio_search": 0.2}
        )


@lite
@pytest.mark.parametrize("mode", [SPARSE, HYBRID])
async def test_a_sparse_parameter_that_milvus_takes(encoded, coloured, mode):
    store = coloured(encoded.store)
    result = await store.query(
        query_for(mode), sparse_search_config={"params": {"drop_ratio_search": 0.0}}
    )
    assert_same(result, await store.query(query_for(mode)))


@lite
@pytest.mark.parametrize("ef", [None, 1])
@pytest.mark.parametrize("name", [None, "filters", "node_ids"])
async def test_an_approximate_leg_finds_enough(hnsw, coloured, ef, name):
    """Milvus Lite itself searches `ef` rows, and filters them afterwards."""
    config = {} if ef is None else {"milvus_search_config": {"ef": ef}}
    store, weights = coloured(hnsw.store), (0.5, 0.75)
    query, options, nodes = query_for(), {}, NODES
    if name is not None:
        query, options, nodes = restricted(name, HYBRID)
    legs = hnsw.legs(query, nodes)
    result = await store.query(query, milvus_ranker=WeightedRanker(*weights), **options, **config)
    assert_best(result, weighted(legs, [10, 10], weights), 10)
    query.alpha = 0.25
    result = await store.query(query, **options, **config)
    assert_best(result, relative(legs, [10, 10], (0.25, 0.75)), 10)
    query.alpha = 1
    result = await store.query(query, **options, **config)
    assert_best(result, legs[0][1], 10)


@lite
async def test_parameters_of_the_dense_leg_are_not_those_of_the_sparse_one(encoded, coloured):
    config = {"drop_ratio_search": 0.2}
    store = coloured(encoded.store)
    await store.query(query_for(SPARSE), milvus_search_config=config)
    await store.query(query_for(DEFAULT), sparse_search_config=config)


@lite
@pytest.mark.parametrize("config", [[1], "ef=4", 3, ""])
async def test_bad_sparse_parameters_are_refused_and_named(encoded, coloured, config):
    with pytest.raises(QueryError, match="sparse_search_config"):
        await coloured(encoded.store).query(query_for(SPARSE), sparse_search_config=config)
