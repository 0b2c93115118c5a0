"""What ranks the hits of one search: functions of Milvus, and callables."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.schema import NodeWithScore, TextNode
from pymilvus import DataType, Function, FunctionScore, FunctionType

from llama_index_milvus_async import NewestFirst, QueryError
from tests.query.corpus import (
    BY_ID,
    FULL_PRECISION,
    MMR,
    QUERIES,
    N,
    expected_similarities,
    filters,
    query_for,
)

lite = pytest.mark.engines("lite")
NEWEST = NewestFirst("year")
MOST_SIMILAR = list(expected_similarities("COSINE", QUERIES[0]).items())


@pytest.fixture(scope="module")
def store(make_filled_store):
    """A store with a column of years."""
    return make_filled_store(
        similarity_metric="COSINE", scalar_fields={"year": {"type": DataType.INT64}}
    )


@pytest.fixture
def reopened(store, on_same_collection):
    """Makes further stores on the collection, with another `query_ranker`."""
    scalar_fields = {"year": {"type": DataType.INT64}}
    return lambda ranker: on_same_collection(query_ranker=ranker, scalar_fields=scalar_fields)


def year(node_id):
    return BY_ID[node_id].metadata["year"]


def newest(count):
    """The most similar ones, the newest of them first, and their similarities."""
    return sorted(MOST_SIMILAR[:count], key=lambda hit: -year(hit[0]))


def decay(origin, scale=10):
    """Halves a score with each `scale` years."""
    params = {"reranker": "decay", "function": "exp", "origin": origin, "scale": scale}
    return Function("decay", FunctionType.RERANK, ["year"], params=params)


def boost(filter, weight):
    params = {"reranker": "boost", "filter": filter, "weight": weight}
    return Function("boost", FunctionType.RERANK, [], params=params)


def assert_hits(result, expected):
    assert result.ids == [one for one, _ in expected]
    scores = [score for _, score in expected]
    assert result.similarities == pytest.approx(scores, abs=FULL_PRECISION)
    assert [node.node_id for node in result.nodes] == result.ids
    assert [node.text for node in result.nodes] == [BY_ID[one].text for one in result.ids]


async def test_a_callable_ranks_more_hits_than_are_returned(store, coloured):
    store = coloured(store)
    query = query_for(similarity_top_k=5)
    assert_hits(await store.query(query, milvus_ranker=NEWEST), newest(20)[:5])
    result = await store.query(query, milvus_ranker=NEWEST, ranker_prefetch_k=N)
    assert_hits(result, newest(N)[:5])
    result = await store.query(query, milvus_ranker=NEWEST, ranker_prefetch_k=1)
    assert_hits(result, newest(5))


async def test_pages_and_thresholds_are_of_what_is_ranked(store, coloured):
    store = coloured(store)
    query = query_for(similarity_top_k=5)
    result = await store.query(query, milvus_ranker=NEWEST, offset=13)
    assert_hits(result, newest(20)[13:18])
    with pytest.raises(QueryError, match=r"offset is 16: .* the 20 that are ranked"):
        await store.query(query, milvus_ranker=NEWEST, offset=16)

    def by_year(query, legs):
        [hits] = legs
        return [NodeWithScore(node=one.node, score=year(one.node.node_id)) for one in hits]

    result = await store.query(query, milvus_ranker=by_year, score_threshold=1930)
    assert result.similarities == [year(one) for one in result.ids]
    assert result.ids == [one for one, _ in MOST_SIMILAR[:5] if year(one) >= 1930]


async def test_mmr_chooses_from_the_first_that_a_ranker_leaves(store, coloured):
    store = coloured(store)
    query = query_for(mode=MMR, similarity_top_k=4, mmr_threshold=0.5)
    result = await store.query(query, milvus_ranker=NEWEST, mmr_prefetch_k=10, ranker_prefetch_k=N)
    candidates = [one for one, _ in newest(N)[:10]]
    scores, ids = get_top_k_mmr_embeddings(
        QUERIES[0],
        [BY_ID[one].embedding for one in candidates],
        similarity_top_k=4,
        embedding_ids=candidates,
        mmr_threshold=0.5,
    )
    assert_hits(result, list(zip(ids, scores, strict=True)))
    shown = await store.query(
        query, milvus_ranker=NEWEST, mmr_prefetch_k=10, ranker_prefetch_k=N, offset=1
    )
    assert shown.ids[:3] == ids[1:]
    own = NodeWithScore(node=TextNode(id_="own", text="own"), score=1.0)
    with pytest.raises(QueryError, match=r"returned nodes that it was not given, \['own'\]; MMR"):
        await store.query(query, milvus_ranker=lambda query, legs: [own, *legs[0]])
    assert (await store.query(query, milvus_ranker=lambda query, legs: [])).ids == []


async def test_the_ranker_of_the_store_is_every_query_s(reopened, coloured):
    plain = reopened(NEWEST)
    store = coloured(plain)
    query = query_for(similarity_top_k=5)
    assert_hits(await store.query(query), newest(20)[:5])
    [one, other] = await store.query_many([query, query])
    assert one.ids == other.ids == [one for one, _ in newest(20)[:5]]
    result = await store.query(query, milvus_ranker=lambda query, legs: legs[0][::-1])
    assert_hits(result, MOST_SIMILAR[19:14:-1])
    blank = query_for(query_embedding=None, filters=filters(("year", "<", 1903)))
    assert len((await store.query(blank)).ids) == 3  # in no order of similarity
    plain.query_ranker = None
    assert_hits(await store.query(query), MOST_SIMILAR[:5])


async def test_rankers_of_concurrent_queries_do_not_mix(store):
    asked = [None, NEWEST, lambda query, legs: legs[0][::-1], NEWEST, None] * 3
    query = query_for(similarity_top_k=5)
    results = await asyncio.gather(
        *(
            store.aquery(query, milvus_ranker=ranker) if ranker else store.aquery(query)
            for ranker in asked
        )
    )
    expected = [MOST_SIMILAR[:5], newest(20)[:5], MOST_SIMILAR[19:14:-1]]
    for i, result in enumerate(results):
        assert_hits(result, expected[{3: 1, 4: 0}.get(i % 5, i % 5)])


@pytest.mark.engines("standalone")
async def test_milvus_2_3_would_ignore_a_function(store, reopened, coloured):
    lacks = r"milvus_ranker: Milvus 2\.3\.5 has no functions that rerank; .* a callable ranks on ev"
    with pytest.raises(QueryError, match=lacks):
        await coloured(store).query(query_for(), milvus_ranker=decay(1960))
    with pytest.raises(QueryError, match="query_ranker: Milvus 2"):
        await coloured(reopened(decay(1960))).query(query_for(mode=MMR))


def decayed(origin, scale=10):
    """Every node with its similarity, halved with each so many years, best first."""
    weighed = [
        (one, score * 0.5 ** (abs(year(one) - origin) / scale)) for one, score in MOST_SIMILAR
    ]
    return sorted(weighed, key=lambda hit: -hit[1])


@lite
async def test_a_function_decays(store, reopened, coloured):
    query = query_for(similarity_top_k=5)
    ranked = {"milvus_ranker": decay(1940), "ranker_prefetch_k": N}
    expected = decayed(1940)
    assert_hits(await coloured(store).query(query, **ranked), expected[:5])
    assert_hits(await coloured(store).query(query, **ranked, offset=7), expected[7:12])
    result = await coloured(store).query(query, **ranked, score_threshold=expected[2][1] - 1e-6)
    assert_hits(result, expected[:3])
    result = await coloured(reopened(decay(1940))).query(query, ranker_prefetch_k=N)
    assert_hits(result, expected[:5])


@lite
async def test_a_function_decays_before_mmr_chooses(store, coloured):
    query = query_for(mode=MMR, similarity_top_k=10, mmr_threshold=1.0)
    result = await coloured(store).query(
        query, milvus_ranker=decay(1940, scale=1), mmr_prefetch_k=10, ranker_prefetch_k=N
    )
    chosen = {one for one, _ in decayed(1940, scale=1)[:10]}
    assert result.ids == [one for one, _ in MOST_SIMILAR if one in chosen]


@lite
async def test_a_function_score_boosts(store, coloured):
    score = FunctionScore(
        [boost("year >= 1940", 3), boost("year >= 1950", 2)],
        params={"boost_mode": "Multiply", "function_mode": "Sum"},
    )
    expected = [
        (one, similar * (5 if year(one) >= 1950 else 3 if year(one) >= 1940 else 1))
        for one, similar in MOST_SIMILAR
    ]
    expected = sorted(expected, key=lambda hit: -hit[1])[:5]
    result = await coloured(store).query(
        query_for(similarity_top_k=5), milvus_ranker=score, ranker_prefetch_k=N
    )
    assert_hits(result, expected)


@lite
async def test_functions_of_concurrent_queries_do_not_mix(store):
    origins = [1900, 1930, 1959] * 4
    query = query_for(similarity_top_k=5)
    await store.aquery(query)  # which begins the count
    before = store.stats()["search"].rpcs
    results = await asyncio.gather(
        *(
            store.aquery(query, milvus_ranker=decay(origin), ranker_prefetch_k=N)
            for origin in origins
        )
    )
    assert store.stats()["search"].rpcs - before < len(origins)
    for origin, result in zip(origins, results, strict=True):
        assert_hits(result, decayed(origin)[:5])


@lite
async def test_a_column_that_is_none_is_named(store, coloured):
    stamp = Function("d", FunctionType.RERANK, ["kind"], params=decay(1900).params)
    with pytest.raises(QueryError, match=r"'kind', .* has none .*scalar_fields=\{'kind': DataTy"):
        await coloured(store).query(query_for(), milvus_ranker=stamp)
