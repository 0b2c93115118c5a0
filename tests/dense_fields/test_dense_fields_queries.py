"""A query searches the dense field that it names, by the metric of that field."""

from __future__ import annotations

import asyncio
import math

import pytest
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from pymilvus import RRFRanker, WeightedRanker

from llama_index_milvus_async import (
    CollectionError,
    QueryError,
)
from tests.dense_fields.corpus import (
    BY_ID,
    FIELDS,
    FULL_PRECISION,
    HYBRID,
    METRICS,
    MMR,
    NODES,
    QUERIES,
    VECTORS,
    N,
    assert_same,
    best_first,
    lite,
    query_for,
)

#


@pytest.fixture(scope="module")
def dense_only(make_shared_store):
    store = make_shared_store(dense_fields=FIELDS)
    store.add(NODES)
    return store


every_field = pytest.mark.parametrize("field", list(METRICS))


# Queries


@lite
@every_field
@pytest.mark.parametrize("top_k", [1, 5, N, N + 50])
async def test_the_field_and_its_metric_decide(store, coloured, field, top_k):
    result = await coloured(store).query(query_for(field, similarity_top_k=top_k))
    assert_same(result, best_first(field, QUERIES[field], top_k))


@lite
@every_field
async def test_filters_and_cutoffs_apply_to_each_field(store, coloured, field):
    old = MetadataFilters(filters=[MetadataFilter(key="year", operator="<", value=1910)])
    ids, scores = best_first(field, QUERIES[field])
    kept = [(i, s) for i, s in zip(ids, scores, strict=True) if BY_ID[i].metadata["year"] < 1910]
    result = await coloured(store).query(query_for(field, filters=old, similarity_top_k=N))
    assert_same(result, tuple(map(list, zip(*kept, strict=True))))
    cutoff = (kept[3][1] + kept[4][1]) / 2
    result = await coloured(store).query(
        query_for(field, filters=old, similarity_top_k=N), score_threshold=cutoff
    )
    assert result.ids == [i for i, _ in kept[:4]]


@lite
async def test_queries_over_different_fields_at_once(store, coloured):
    queries = [query_for(field) for field in METRICS] * 3
    expected = [best_first(field, QUERIES[field], 10) for field in METRICS] * 3
    for result, best in zip(await coloured(store).query_many(queries), expected, strict=True):
        assert_same(result, best)
    results = await asyncio.gather(*(store.aquery(query) for query in queries))
    for result, best in zip(results, expected, strict=True):
        assert_same(result, best)


@lite
async def test_search_parameters_apply_to_the_field_of_the_query(store, coloured):
    ids, scores = best_first("title", QUERIES["title"])
    result = await coloured(store).query(
        query_for("title", similarity_top_k=N), milvus_search_config={"radius": 0.2}
    )
    expected = [i for i, score in zip(ids, scores, strict=True) if score > 0.2]
    assert result.ids == expected
    assert 0 < len(expected) < N


@lite
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
@every_field
async def test_mmr_chooses_by_the_field_of_the_query(store, coloured, field, threshold):
    result = await coloured(store).query(
        query_for(field, mode=MMR, similarity_top_k=6, mmr_threshold=threshold),
        mmr_prefetch_k=N,
    )
    order = best_first(field, QUERIES[field])[0]
    vectors = [VECTORS[field][int(node_id.split("-")[1])].tolist() for node_id in order]
    scores, ids = get_top_k_mmr_embeddings(
        QUERIES[field],
        vectors,
        similarity_top_k=6,
        embedding_ids=order,
        mmr_threshold=threshold,
    )
    assert_same(result, (ids, scores))
    assert [node.embedding for node in result.nodes] == [None] * 6
    assert not {"image", "title"} & result.nodes[0].metadata.keys()


@lite
@pytest.mark.parametrize("field", ["image", "title"])
async def test_a_query_of_another_dimension_is_refused(store, coloured, field):
    query = query_for(field, query_embedding=[1.0, 2.0, 3.0])
    with pytest.raises(QueryError, match=rf"has 3 dimensions, .*field '{field}'"):
        await coloured(store).query(query)


@lite
async def test_an_embedding_of_the_wrong_field_is_refused(store, coloured):
    with pytest.raises(QueryError, match=r"has 8 dimensions, the collection 4 \(field 'image'\)"):
        await coloured(store).query(query_for("image", query_embedding=QUERIES["embedding"]))


@lite
@pytest.mark.parametrize("field", ["nope", "text", "sparse_embedding", "year"])
async def test_a_field_without_dense_vectors_is_refused(store, coloured, field):
    query = query_for(embedding_field=field)
    with pytest.raises(CollectionError, match=rf"'{field}'.*\['embedding', 'image', 'title'\]"):
        await coloured(store).query(query)


# Hybrid


def ranks(legs, weights=None, score=None):
    """Fuse ids and scores of legs, each best first; reciprocal ranks without weights."""
    fused = {}
    for number, (ids, scores) in enumerate(legs):
        for rank, (node_id, value) in enumerate(zip(ids, scores, strict=True), start=1):
            part = 1 / (60 + rank) if weights is None else weights[number] * score[number](value)
            fused[node_id] = fused.get(node_id, 0.0) + part
    return fused


def assert_fused(result, fused, top_k=10):
    """Whether the result has the best of the fused scores; equal ones may be in any order."""
    best = sorted(fused.values(), reverse=True)[:top_k]
    assert result.similarities == pytest.approx(best, abs=FULL_PRECISION)
    assert len(set(result.ids)) == len(best)
    for node_id, score in zip(result.ids, result.similarities, strict=True):
        assert fused[node_id] == pytest.approx(score, abs=FULL_PRECISION)


async def legs_of(store, fields, query):
    """What each field finds alone, and then the texts."""
    embedding = query.query_embedding
    legs = [best_first(field, embedding) for field in fields]
    text = await store.query(
        VectorStoreQuery(query_str=query.query_str, similarity_top_k=N, mode="text_search")
    )
    return [*legs, (text.ids, text.similarities)]


def hybrid_query(**kwargs):
    return query_for(mode=HYBRID, query_str="cedar", sparse_top_k=N, **kwargs)


TWO = ["embedding", "title"]


@lite
async def test_reciprocal_ranks_of_two_dense_fields_and_texts(store, coloured):
    store = coloured(store)
    query = hybrid_query(similarity_top_k=N, hybrid_top_k=10)
    for ranker in (None, RRFRanker(60)):
        result = await store.query(query, hybrid_fields=TWO, milvus_ranker=ranker)
        assert_fused(result, ranks(await legs_of(store, TWO, query)))


@lite
@pytest.mark.parametrize("weights", [(0.6, 0.4, 0.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)])
async def test_each_dense_field_has_its_weight(store, coloured, weights):
    query = hybrid_query(similarity_top_k=N, hybrid_top_k=10)
    result = await coloured(store).query(
        query, hybrid_fields=TWO, milvus_ranker=WeightedRanker(*weights, norm_score=True)
    )
    legs = [best_first(field, query.query_embedding) for field in TWO]
    scores = [lambda s: 0.5 + math.atan(s) / math.pi, lambda s: (1 + s) / 2]
    assert_fused(result, ranks(legs, weights, scores))


@lite
async def test_the_order_of_the_fields_is_that_of_the_weights(store, coloured):
    query = hybrid_query(similarity_top_k=N, hybrid_top_k=10)
    one = await coloured(store).query(
        query, hybrid_fields=TWO, milvus_ranker=WeightedRanker(0.9, 0.1, 0.2)
    )
    other = await coloured(store).query(
        query, hybrid_fields=TWO[::-1], milvus_ranker=WeightedRanker(0.1, 0.9, 0.2)
    )
    swapped = await coloured(store).query(
        query, hybrid_fields=TWO[::-1], milvus_ranker=WeightedRanker(0.9, 0.1, 0.2)
    )
    assert one.similarities == pytest.approx(other.similarities, abs=FULL_PRECISION)
    assert one.similarities != pytest.approx(swapped.similarities, abs=FULL_PRECISION)


@lite
async def test_a_ranker_of_the_user_gets_a_list_of_each_field(store, coloured):
    seen = []

    def ranker(query, legs):
        seen.extend(legs)
        return legs[1]

    query = hybrid_query()
    result = await coloured(store).query(query, hybrid_fields=TWO, milvus_ranker=ranker)
    assert [[one.node.node_id for one in leg] for leg in seen[:2]] == [
        best_first(field, query.query_embedding, 10)[0] for field in TWO
    ]
    assert len(seen) == 3
    assert_same(result, best_first("title", query.query_embedding, 10))


@lite
async def test_without_hybrid_fields_the_query_s_field_is_searched(store, coloured):
    query = hybrid_query(embedding_field="title", similarity_top_k=N, hybrid_top_k=10)
    query.query_embedding = QUERIES["title"]
    result = await coloured(store).query(query, milvus_ranker=WeightedRanker(1.0, 0.0))
    ids, scores = best_first("title", QUERIES["title"])
    assert_fused(result, {i: (1 + s) / 2 for i, s in zip(ids, scores, strict=True)})


@lite
@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0,), (0.1, 0.2, 0.3, 0.4)])
async def test_another_number_of_weights_is_refused(store, coloured, weights):
    with pytest.raises(QueryError) as error:
        await coloured(store).query(
            hybrid_query(), hybrid_fields=TWO, milvus_ranker=WeightedRanker(*weights)
        )
    assert f"{len(weights)} weights" in str(error.value)
    assert "['embedding', 'title', 'sparse_embedding']" in str(error.value)


@lite
@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ("title", QueryError, r"hybrid_fields is 'title'; it must be a list"),
        ([], QueryError, r"hybrid_fields is \[\]; it must be a list"),
        (["title", "nope"], CollectionError, r"'nope'.*\['embedding', 'image', 'title'\]"),
        (["title", "text"], CollectionError, r"'text'.* VARCHAR"),
        (["title", "image"], QueryError, r"has 8 dimensions, the collection 4 \(field 'image'\)"),
    ],
)
async def test_bad_hybrid_fields_are_refused(store, coloured, fields, error, message):
    with pytest.raises(error, match=message):
        await coloured(store).query(hybrid_query(), hybrid_fields=fields)


@lite
async def test_dense_fields_alone_are_searched_with_alpha_one(dense_only, coloured):
    result = await coloured(dense_only).query(
        query_for("title", mode=HYBRID, alpha=1.0), hybrid_fields=["title"]
    )
    assert_same(result, best_first("title", QUERIES["title"], 10))


@lite
async def test_every_dense_field_counts_with_alpha_one(dense_only, coloured):
    query = query_for(mode=HYBRID, alpha=1.0, similarity_top_k=N)
    both = await coloured(dense_only).query(query, hybrid_fields=TWO)
    alone = await coloured(dense_only).query(query, hybrid_fields=TWO[:1])
    assert both.ids != alone.ids


@lite
async def test_dense_fields_alone_take_a_ranker_with_alpha_one(dense_only, coloured):
    query = query_for(mode=HYBRID, alpha=1.0, similarity_top_k=N)
    legs = [best_first(field, query.query_embedding) for field in TWO]
    store = coloured(dense_only)
    result = await store.query(query, hybrid_fields=TWO, milvus_ranker=RRFRanker(60))
    assert_fused(result, ranks(legs), N)
    ranker = WeightedRanker(0.3, 0.7, norm_score=True)
    result = await store.query(query, hybrid_fields=TWO, milvus_ranker=ranker)
    scores = [lambda s: 0.5 + math.atan(s) / math.pi, lambda s: (1 + s) / 2]
    assert_fused(result, ranks(legs, (0.3, 0.7), scores), N)
    for weights in ((1.0,), (0.2, 0.3, 0.5)):
        with pytest.raises(QueryError, match=rf"{len(weights)} weights .*\['embedding', 'title'\]"):
            await store.query(query, hybrid_fields=TWO, milvus_ranker=WeightedRanker(*weights))


@lite
async def test_two_dense_fields_are_a_hybrid_without_texts(dense_only, coloured):
    store = coloured(dense_only)
    query = query_for(mode=HYBRID, similarity_top_k=N, hybrid_top_k=10)
    legs = [best_first(field, query.query_embedding) for field in TWO]
    assert_fused(await store.query(query, hybrid_fields=TWO), ranks(legs))
    ranker = WeightedRanker(0.3, 0.7, norm_score=True)
    scores = [lambda s: 0.5 + math.atan(s) / math.pi, lambda s: (1 + s) / 2]
    result = await store.query(query, hybrid_fields=TWO, milvus_ranker=ranker)
    assert_fused(result, ranks(legs, (0.3, 0.7), scores))
    result = await store.query(query, hybrid_fields=TWO, milvus_ranker=lambda query, legs: legs[1])
    assert_same(result, best_first("title", query.query_embedding, 10))


@lite
@pytest.mark.parametrize("text", [None, "cedar"])
async def test_fields_of_other_models_have_embeddings_of_their_own(
    store, dense_only, coloured, text
):
    store = coloured(store if text else dense_only)
    query = query_for(mode=HYBRID, query_str=text, similarity_top_k=N, sparse_top_k=N)
    own = {"embedding": None, "image": QUERIES["image"], "title": QUERIES["title"]}
    result = await store.query(query, hybrid_fields=own)
    legs = [best_first(field, QUERIES[field]) for field in own]
    if text:
        legs = [*legs, (await legs_of(store, [], query))[0]]
    assert_fused(result, ranks(legs), N)


@lite
@pytest.mark.parametrize(
    ("kwargs", "fields", "message"),
    [
        ({}, TWO[:1], "enable_sparse=True"),
        ({"alpha": 0}, TWO, "enable_sparse=True"),
        ({"alpha": 0.5}, TWO, r"alpha is 0\.5: it weighs dense .* pass milvus_ranker=Weighted"),
        ({}, {"title": None, "image": [1.0] * 8}, r"hybrid_fields\['image'\] has 8 dimensions"),
        ({}, {"title": None, "image": 3}, r"hybrid_fields\['image'\] is 3; it must be a list"),
    ],
    ids=["one", "sparse alone", "alpha", "dimension", "not an embedding"],
)
async def test_a_hybrid_of_dense_fields_that_cannot_be(
    dense_only, coloured, kwargs, fields, message
):
    with pytest.raises(QueryError, match=message):
        await coloured(dense_only).query(hybrid_query(**kwargs), hybrid_fields=fields)


@lite
async def test_a_store_with_texts_needs_one_for_a_hybrid(store, coloured):
    with pytest.raises(QueryError, match="mode HYBRID needs query_str, and it is missing"):
        await coloured(store).query(query_for(mode=HYBRID), hybrid_fields=TWO)
