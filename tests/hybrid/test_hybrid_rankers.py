"""What fuses the legs of a hybrid query: Milvus' rankers, functions, and the user's own."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import pytest
from llama_index.core.schema import NodeWithScore, TextNode
from pymilvus import Function, FunctionType, RRFRanker, WeightedRanker

from llama_index_milvus_async import (
    ConfigurationError,
    QueryError,
    ServerError,
)
from llama_index_milvus_async.sparse import BM25BuiltInFunction
from tests.fixtures.labels import label
from tests.hybrid.corpus import (
    BY_ID,
    DEFAULT,
    FULL_PRECISION,
    HYBRID,
    MMR,
    SPARSE,
    TEXT_SEARCH,
    N,
    assert_best,
    best,
    lite,
    normal,
    query_for,
    rerank,
    rrf,
    rrf_here,
    similar,
    unnormal,
    weighted,
)


def weighted_here(*weights):
    """Weighted fusion as a callable, of COSINE and of what the sparse embeddings have."""

    def rank(query, legs):
        scores, nodes = Counter(), {}
        for leg, weight, metric in zip(legs, weights, ("COSINE", "IP"), strict=True):
            for hit in leg:
                scores[hit.node.node_id] += weight * normal(metric, hit.score)
                nodes[hit.node.node_id] = hit.node
        return [NodeWithScore(node=nodes[i], score=score) for i, score in scores.most_common()]

    return rank


RANKERS = {
    "rrf name": ("RRFRanker", {"k": 5}, rrf, (5,)),
    "rrf object": (RRFRanker(5), {}, rrf, (5,)),
    "rrf function": (rerank(reranker="rrf", k=5), {}, rrf, (5,)),
    "rrf callable": (rrf_here(5), {}, rrf, (5,)),
    "weighted name": ("WeightedRanker", {"weights": [0.75, 0.5]}, weighted, ((0.75, 0.5),)),
    "weighted object": (WeightedRanker(0.75, 0.5), {}, weighted, ((0.75, 0.5),)),
    "weighted callable": (weighted_here(0.75, 0.5), {}, weighted, ((0.75, 0.5),)),
    "weighted function": (
        rerank(reranker="weighted", weights=[0.75, 0.5], norm_score=True),
        {},
        weighted,
        ((0.75, 0.5),),
    ),
    "not normalized": (
        "WeightedRanker",
        {"weights": [1, 0.25], "norm_score": False},
        weighted,
        ((1, 0.25), unnormal),
    ),
}


@lite
@pytest.mark.parametrize("name", list(RANKERS))
@pytest.mark.parametrize("offset", [0, 2])
async def test_a_ranker_of_the_store(on_encoded, encoded, coloured, name, offset):
    """Whoever computes it, Milvus or this side, it is the same."""
    ranker, params, fuse, arguments = RANKERS[name]
    store = coloured(on_encoded(hybrid_ranker=ranker, hybrid_ranker_params=params))
    query = query_for(hybrid_top_k=7, sparse_top_k=15)
    result = await store.query(query, offset=offset)
    assert_best(result, encoded.hybrid(query, fuse, *arguments), 7, offset)


@lite
@pytest.mark.parametrize("name", [name for name in RANKERS if not RANKERS[name][1]])
async def test_a_ranker_of_the_query(on_encoded, encoded, coloured, name):
    ranker, _, fuse, arguments = RANKERS[name]
    store = coloured(on_encoded(hybrid_ranker="WeightedRanker"))
    result = await store.query(query_for(), milvus_ranker=ranker)
    assert_best(result, encoded.hybrid(query_for(), fuse, *arguments), 10)
    result = await store.query(query_for())  # for that query alone
    assert_best(result, encoded.hybrid(query_for(), weighted, (1, 1)), 10)


@lite
async def test_a_ranker_of_the_query_by_name_has_milvus_defaults(on_encoded, encoded, coloured):
    store = coloured(on_encoded(hybrid_ranker_params={"k": 1}))
    result = await store.query(query_for(), milvus_ranker="RRFRanker")
    assert_best(result, encoded.hybrid(query_for(), rrf, 60), 10)


@lite
async def test_a_function_of_milvus_decays(either, coloured):
    decay = Function(
        "decay",
        FunctionType.RERANK,
        ["year"],
        params={
            "reranker": "decay",
            "function": "gauss",
            "origin": 1920,
            "offset": 0,
            "decay": 0.5,
            "scale": 1,
        },
    )
    query = query_for(similarity_top_k=N, hybrid_top_k=3)
    result = await coloured(either.store).query(query, milvus_ranker=decay)
    assert set(result.ids) <= {"node-18", "node-19", "node-20", "node-21", "node-22"}


@lite
async def test_rerankers_of_milvus_that_are_wrong_surface_with_its_reason(either, coloured):
    with pytest.raises(ServerError, match="weights"):
        await coloured(either.store).query(
            query_for(), milvus_ranker=rerank(reranker="weighted", weights=[1, 1, 1])
        )


@lite
async def test_a_callable_gets_the_query_and_the_hits_of_each_leg(setup, coloured):
    called = []

    def rank(*arguments):
        called.append(arguments)
        return []

    query = query_for(similarity_top_k=6, sparse_top_k=4, hybrid_top_k=3)
    result = await coloured(setup.store).query(query, milvus_ranker=rank)
    assert result.ids == []
    [(given, legs)] = called
    assert given is query
    for leg, (metric, distances), count in zip(legs, setup.legs(query), (6, 4), strict=True):
        expected = best((metric, distances), count)
        assert [hit.node.node_id for hit in leg] == expected
        assert [hit.node.text for hit in leg] == [BY_ID[i].text for i in expected]
        scores = [similar(metric, distances[i]) for i in expected]
        assert [hit.score for hit in leg] == pytest.approx(scores, abs=FULL_PRECISION)


@lite
async def test_a_callable_has_the_last_word(encoded, coloured):
    """On order, scores, nodes and number, up to what was asked for."""
    own = NodeWithScore(node=TextNode(id_="own", text="own"), score=None)

    def rank(query, legs):
        yield own
        yield from reversed(legs[0])

    store = coloured(encoded.store)
    result = await store.query(query_for(similarity_top_k=4), milvus_ranker=rank)
    nearest = (await store.query(query_for(DEFAULT, similarity_top_k=4))).ids
    assert result.ids == ["own", *nearest[:0:-1]]
    assert result.similarities[0] == 0.0
    assert result.nodes[0] is own.node


@lite
async def test_an_exception_of_a_callable_passes_through(encoded, coloured):
    error = KeyError("its own")

    def rank(query, legs):
        raise error

    with pytest.raises(KeyError) as raised:
        await coloured(encoded.store).query(query_for(), milvus_ranker=rank)
    assert raised.value is error
    assert len((await coloured(encoded.store).query(query_for())).ids) == 10


@lite
@pytest.mark.parametrize("answer", [None, 3, [TextNode(text="no score")], [("node-1", 0.5)]])
async def test_what_a_callable_must_not_return_is_refused(encoded, coloured, answer):
    with pytest.raises((QueryError, ConfigurationError), match="ranker"):
        await coloured(encoded.store).query(query_for(), milvus_ranker=lambda query, legs: answer)


@lite
@pytest.mark.parametrize("alpha", [0, 1])
async def test_a_ranker_of_the_store_is_not_asked_about_one_leg(on_encoded, coloured, alpha):
    def rank(query, legs):
        raise AssertionError("nothing to rank")

    for ranker in (rank, WeightedRanker(0.5, 0.5), rerank(reranker="rrf")):
        store = coloured(on_encoded(hybrid_ranker=ranker))
        assert len((await store.query(query_for(alpha=alpha))).ids) == 10


@lite
async def test_a_callable_runs_beside_the_event_loop(encoded, coloured, colour):
    here, threads = threading.get_ident(), []

    def rank(query, legs):
        threads.append(threading.get_ident())
        return legs[0]

    def generate(query, legs):
        threads.append(threading.get_ident())
        yield from legs[0]

    for ranker in (rank, generate):
        result = await coloured(encoded.store).query(query_for(), milvus_ranker=ranker)
        assert len(result.ids) == 10
    assert all((thread == here) == (colour == "sync") for thread in threads)


@lite
async def test_a_coroutine_function_ranks(encoded, coloured):
    async def rank(query, legs):
        await asyncio.sleep(0)
        return legs[1][:3]

    store = coloured(encoded.store)
    result = await store.query(query_for(), milvus_ranker=rank)
    expected = await store.query(query_for(SPARSE, similarity_top_k=3))
    assert (result.ids, result.similarities) == (expected.ids, expected.similarities)
    with pytest.raises(QueryError, match="returned a coroutine"):  # and no warning of it
        await store.query(query_for(), milvus_ranker=lambda query, legs: rank(query, legs))


@lite
async def test_a_ranker_that_is_assigned_is_the_next_query_s(on_encoded, encoded, coloured):
    store = on_encoded(hybrid_ranker="RRFRanker")
    store.hybrid_ranker = WeightedRanker(0.25, 1.0)
    result = await coloured(store).query(query_for())
    assert_best(result, encoded.hybrid(query_for(), weighted, (0.25, 1.0)), 10)


@lite
async def test_mmr_chooses_from_what_a_callable_leaves(either, coloured):
    store, query = coloured(either.store), query_for(MMR, similarity_top_k=3)
    options = {"mmr_over": "hybrid", "mmr_prefetch_k": 8}
    result = await store.query(query, milvus_ranker=rrf_here(60), **options)
    expected = await store.query(query, milvus_ranker=RRFRanker(60), **options)
    assert (result.ids, result.similarities) == (expected.ids, expected.similarities)


@lite
@pytest.mark.parametrize("mode", [SPARSE, TEXT_SEARCH])
async def test_one_sparse_search_is_ranked(either, coloured, mode):
    """Milvus Lite gives the scores of BM25 a minus, boosted ones too, and others none."""
    store, query = coloured(either.store), query_for(mode, similarity_top_k=5)
    plain = await store.query(query_for(mode, similarity_top_k=N))
    found = list(zip(plain.ids, plain.similarities, strict=True))

    def best_by(weight):
        weighed = [(i, score * weight(BY_ID[i].metadata["year"])) for i, score in found]
        return sorted(weighed, key=lambda hit: -hit[1])[:5]

    decay = {"reranker": "decay", "function": "exp", "origin": 1920, "scale": 10}
    for ranker, expected in (
        (
            Function("r", FunctionType.RERANK, ["year"], params=decay),
            best_by(lambda year: 0.5 ** (abs(year - 1920) / 10)),
        ),
        (
            rerank(reranker="boost", filter="year > 1920", weight=7),
            best_by(lambda year: 7 if year > 1920 else 1),
        ),
        (
            lambda query, legs: sorted(legs[0], key=lambda hit: hit.node.metadata["year"]),
            sorted(found, key=lambda hit: BY_ID[hit[0]].metadata["year"])[:5],
        ),
    ):
        result = await store.query(query, milvus_ranker=ranker, ranker_prefetch_k=N)
        scores = [score for _, score in expected]
        assert result.similarities == pytest.approx(scores, abs=FULL_PRECISION)
        assert len(set(scores)) < 5 or result.ids == [i for i, _ in expected]


@lite
@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.3, 0.2)])
async def test_the_number_of_weights_has_to_fit(either, coloured, weights):
    message = (
        rf"the ranker has {len(weights)} weights and the query searches 2 fields, "
        r"\['embedding', 'sparse_embedding'\]"
    )
    for mode in (HYBRID, MMR):
        with pytest.raises(QueryError, match=message):
            await coloured(either.store).query(
                query_for(mode), mmr_over="hybrid", milvus_ranker=WeightedRanker(*weights)
            )


@lite
@pytest.mark.parametrize(
    ("ranker", "message"),
    [
        ("BestRanker", "milvus_ranker is 'BestRanker'; it must be one of"),
        ("", "milvus_ranker is ''"),
        (60, "milvus_ranker is 60"),
        ({"k": 60}, "milvus_ranker is {'k': 60}"),
        (BM25BuiltInFunction(), "milvus_ranker is a function of type BM25"),
        (RRFRanker(0), "has k=0"),
        (WeightedRanker(2, 1), r"has weights=\[2, 1\]"),
    ],
    ids=label,
)
async def test_what_is_no_ranker_is_refused_and_named(encoded, coloured, ranker, message):
    for mode in (HYBRID, MMR):
        with pytest.raises(ConfigurationError, match=message):
            await coloured(encoded.store).query(
                query_for(mode), milvus_ranker=ranker, mmr_over="hybrid"
            )


@pytest.mark.parametrize("over", ["sparse", "", None, "HYBRID"])
async def test_what_mmr_may_be_over(unconnected, coloured, over):
    with pytest.raises(QueryError, match=f"mmr_over is {over!r}; it must be 'dense' or 'hybrid'"):
        await coloured(unconnected).query(query_for(MMR), mmr_over=over)
