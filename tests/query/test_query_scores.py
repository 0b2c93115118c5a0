"""Similarities of every metric, and the search parameters of an index."""

from __future__ import annotations

import pytest
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import NodeWithScore
from llama_index.core.vector_stores.types import (
    FilterOperator,
)

from tests.fixtures.labels import label
from tests.fixtures.stores import make_nodes
from tests.query.corpus import (
    BY_ID,
    FULL_PRECISION,
    NODES,
    QUERIES,
    N,
    assert_same,
    build_index,
    expected_similarities,
    filters,
    query_for,
    reference,
)

# Scores


@pytest.mark.parametrize("mode", ["all", "filtered"])
async def test_similarity_rises_with_relevance_in_every_metric(metric_store, coloured, mode):
    expected = expected_similarities(metric_store.similarity_metric, QUERIES[1])
    restriction = None
    if mode == "filtered":
        restriction = filters(("kind", FilterOperator.EQ, "essay"))
        expected = {i: s for i, s in expected.items() if BY_ID[i].metadata["kind"] == "essay"}
    result = await coloured(metric_store).query(
        query_for(query_embedding=QUERIES[1], similarity_top_k=N, filters=restriction)
    )
    assert result.ids == list(expected)
    assert result.similarities == pytest.approx(list(expected.values()), abs=FULL_PRECISION)
    assert result.similarities == sorted(result.similarities, reverse=True)


async def test_a_similarity_cutoff_cuts_right_in_every_metric(metric_store, coloured):
    expected = list(expected_similarities(metric_store.similarity_metric, QUERIES[2]).items())
    cutoff = (expected[6][1] + expected[7][1]) / 2
    result = await coloured(metric_store).query(
        query_for(query_embedding=QUERIES[2], similarity_top_k=N)
    )
    scored = [
        NodeWithScore(node=node, score=similarity)
        for node, similarity in zip(result.nodes, result.similarities, strict=True)
    ]
    kept = SimilarityPostprocessor(similarity_cutoff=cutoff).postprocess_nodes(scored)
    assert [each.node.node_id for each in kept] == [node_id for node_id, _ in expected[:7]]


@pytest.mark.parametrize("metric_store", ["L2"], indirect=True)
async def test_for_l2_the_node_itself_has_similarity_one_and_no_other(metric_store, coloured):
    result = await coloured(metric_store).query(query_for(query_embedding=NODES[5].embedding))
    assert (result.ids[0], result.similarities[0]) == ("node-5", 1.0)
    assert all(0 < similarity < 1 for similarity in result.similarities[1:])


# Search parameters

# A range search shows that the parameters arrive: hits at or below the radius are left out.
RADIUS = 0.3


@pytest.mark.parametrize(
    "config",
    [
        {"radius": RADIUS},
        {"params": {"radius": RADIUS}},
        {"metric_type": "COSINE", "params": {"radius": RADIUS}},
        {"metric_type": "COSINE", "radius": RADIUS},
    ],
)
@pytest.mark.parametrize("given_to", ["call", "store"])
async def test_search_parameters_apply_flat_and_nested(
    store, on_same_collection, coloured, config, given_to
):
    everything = reference(query_for(similarity_top_k=N)).similarities
    expected = [similarity for similarity in everything if similarity > RADIUS]
    kwargs = {"milvus_search_config": config} if given_to == "call" else {}
    searched = store if given_to == "call" else on_same_collection(search_config=config)
    result = await coloured(searched).query(query_for(similarity_top_k=N), **kwargs)
    assert result.similarities == pytest.approx(expected, abs=FULL_PRECISION)
    assert 0 < len(expected) < N


async def test_the_call_s_search_parameters_replace_the_store_s(on_same_collection, coloured):
    store = coloured(on_same_collection(search_config={"radius": 0.99}))
    assert (await store.query(query_for())).ids == []
    assert len((await store.query(query_for(), milvus_search_config={})).ids) == 10


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"milvus_search_config": {"ef": 8}},
        {"milvus_search_config": {"params": {"ef": 8}}},
        {"milvus_search_config": {"metric_type": "COSINE", "params": {"ef": 8}}},
        {"milvus_search_config": {"ef": 200}},
        {"milvus_search_config": {}},
    ],
    ids=label,
)
@pytest.mark.parametrize("top_k", [1, 40, N + 100])
async def test_an_hnsw_index_finds_top_k_also_beyond_ef(hnsw_store, coloured, top_k, kwargs):
    query = query_for(similarity_top_k=top_k)
    assert_same(await coloured(hnsw_store).query(query, **kwargs), reference(query))


@pytest.mark.parametrize("top_k", [1, 5, 20])
async def test_an_hnsw_index_finds_top_k_of_what_passes_a_filter(hnsw_store, coloured, top_k):
    query = query_for(similarity_top_k=top_k, filters=filters(("kind", "==", "poem")))
    result = await coloured(hnsw_store).query(query, milvus_search_config={})
    assert_same(result, reference(query))


@pytest.fixture(scope="module")
def tenants(make_shared_store):
    store = make_shared_store(
        similarity_metric="COSINE",
        index_config={"index_type": "HNSW", "M": 16, "efConstruction": 64},
        batch_size=2_000,
    )
    store.add(make_nodes(2_000, tenant=lambda i: i % 100), force_flush=True)
    build_index(store)
    return store


async def test_an_hnsw_index_finds_the_few_among_many_that_pass_a_filter(tenants, coloured):
    # The search of the index looks at some rows only, and nearly all of them are refused.
    query = query_for(similarity_top_k=20, filters=filters(("tenant", "==", 7)))
    found = (await coloured(tenants).query(query)).ids
    assert sorted(found) == sorted(f"node-{i}" for i in range(7, 2_000, 100))


@pytest.mark.engines("lite")
@pytest.mark.parametrize("index_type", ["AUTOINDEX", "IVF_FLAT", "IVF_SQ8", "HNSW_SQ"])
async def test_every_approximate_index_of_lite_finds_the_few(make_store, coloured, index_type):
    # `AUTOINDEX` is an HNSW there.
    store = make_store(
        similarity_metric="COSINE", index_config={"index_type": index_type}, batch_size=2_000
    )
    store.add(make_nodes(2_000, tenant=lambda i: i % 100), force_flush=True)
    build_index(store)
    query = query_for(similarity_top_k=20, filters=filters(("tenant", "==", 7)))
    expected = sorted(f"node-{i}" for i in range(7, 2_000, 100))
    assert sorted((await coloured(store).query(query)).ids) == expected
    query = query_for(similarity_top_k=500)
    assert len((await coloured(store).query(query)).ids) == 500
