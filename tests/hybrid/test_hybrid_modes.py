"""Each query mode on a hybrid collection, compared with the same computed here."""

from __future__ import annotations

import numpy as np
import pytest
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.vector_stores.types import (
    VectorStoreQueryMode,
)
from pymilvus import RRFRanker, WeightedRanker

from llama_index_milvus_async import (
    QueryError,
)
from tests.hybrid.corpus import (
    BY_ID,
    DEFAULT,
    FULL_PRECISION,
    HYBRID,
    MMR,
    NODES,
    SPARSE,
    TEXT,
    TEXT_SEARCH,
    WORDS,
    N,
    assert_best,
    best,
    bm25_scores,
    inner_products,
    lite,
    query_for,
    relative,
    rrf,
    rrf_here,
    similar,
    unnormal,
    weighted,
    words_of,
)

# The same computed here


def test_the_corpus_is_unambiguous():
    """Ties would be broken here in one way and in Milvus in another."""
    for scores in (inner_products(TEXT), bm25_scores(TEXT)):
        ordered = sorted(scores.values())
        assert min(np.diff(ordered)) > 10 * FULL_PRECISION
        assert N // 2 < len(ordered) < N
    assert len({len(words_of(node.text)) for node in NODES}) == N


# Modes


@lite
@pytest.mark.parametrize("top_k", [1, 10, N])
async def test_dense(setup, coloured, top_k):
    query = query_for(DEFAULT, similarity_top_k=top_k)
    metric, distances = setup.dense(query)
    expected = {node_id: similar(metric, distance) for node_id, distance in distances.items()}
    assert_best(await coloured(setup.store).query(query), expected, top_k)


@lite
@pytest.mark.parametrize("mode", [SPARSE, TEXT_SEARCH])
@pytest.mark.parametrize("text", [TEXT, "hazel", "daisy, DAISY! grass?", " ".join(WORDS)])
async def test_sparse(either, coloured, mode, text):
    query = query_for(mode, query_str=text, query_embedding=None)
    result = await coloured(either.store).query(query)
    assert_best(result, either.sparse(query)[1], 10)
    assert len(result.ids) == 10
    assert min(result.similarities) > 0


@lite
async def test_a_sparse_search_finds_what_has_a_word_of_the_query(either, coloured):
    query = query_for(SPARSE, query_str="hazel", similarity_top_k=N)
    result = await coloured(either.store).query(query)
    assert set(result.ids) == {node.node_id for node in NODES if "hazel" in node.text}


@lite
async def test_full_text_finds_nothing_by_unknown_words(full_text, coloured):
    result = await coloured(full_text.store).query(query_for(TEXT_SEARCH, query_str="zebra"))
    assert (result.ids, result.nodes, result.similarities) == ([], [], [])


@lite
async def test_hybrid_with_unknown_words_is_dense(full_text, coloured):
    store = coloured(full_text.store)
    result = await store.query(query_for(query_str="zebra"))
    assert result.ids == (await store.query(query_for(DEFAULT))).ids
    assert result.similarities == pytest.approx([1 / (61 + rank) for rank in range(10)])


@lite
@pytest.mark.parametrize("k", [60, 1, 0.5])
async def test_rrf(setup, coloured, k):
    query = query_for()
    result = await coloured(setup.store).query(query, milvus_ranker=RRFRanker(k))
    assert_best(result, setup.hybrid(query, rrf, k), 10)


@lite
async def test_hybrid_is_rrf_by_default(setup, coloured):
    result = await coloured(setup.store).query(query_for())
    assert_best(result, setup.hybrid(query_for(), rrf), 10)


@lite
@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, 1.0), (1.0, 0.0), (0.0, 0.5)])
async def test_weights(setup, coloured, weights):
    ranker = WeightedRanker(*weights)
    result = await coloured(setup.store).query(query_for(), milvus_ranker=ranker)
    assert_best(result, setup.hybrid(query_for(), weighted, weights), 10)


@lite
@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, 0.5)])
async def test_weights_of_scores_that_are_not_normalized(setup, coloured, weights):
    ranker = WeightedRanker(*weights, norm_score=False)
    result = await coloured(setup.store).query(query_for(), milvus_ranker=ranker)
    assert_best(result, setup.hybrid(query_for(), weighted, weights, unnormal), 10)


@lite
@pytest.mark.parametrize("threshold", [None, 0.3, 1.0])
async def test_mmr_over_hybrid(either, coloured, threshold):
    """Of all nodes as candidates, so that the ties of RRF do not matter."""
    query = query_for(MMR, mmr_threshold=threshold)
    result = await coloured(either.store).query(query, mmr_over="hybrid", mmr_prefetch_k=N)
    scores, ids = get_top_k_mmr_embeddings(
        query.query_embedding,
        [node.embedding for node in NODES],
        similarity_top_k=10,
        embedding_ids=list(BY_ID),
        mmr_threshold=threshold,
    )
    assert result.ids == ids
    assert result.similarities == pytest.approx(scores, abs=FULL_PRECISION)
    assert [node.embedding for node in result.nodes] == [None] * 10


@lite
@pytest.mark.parametrize("weights", [(0.5, 1.0), (1.0, 0.0)])
async def test_mmr_chooses_from_the_hybrid_candidates(setup, coloured, weights):
    query = query_for(MMR, similarity_top_k=4)
    candidates = setup.hybrid(query_for(similarity_top_k=12), weighted, weights)
    ids = best(("fused", candidates), 12)
    scores, chosen = get_top_k_mmr_embeddings(
        query.query_embedding,
        [BY_ID[node_id].embedding for node_id in ids],
        similarity_top_k=4,
        embedding_ids=ids,
    )
    result = await coloured(setup.store).query(
        query, mmr_over="hybrid", mmr_prefetch_k=12, milvus_ranker=WeightedRanker(*weights)
    )
    assert result.ids == chosen
    assert result.similarities == pytest.approx(scores, abs=FULL_PRECISION)


@lite
async def test_mmr_is_over_dense_by_default(either, coloured):
    store = coloured(either.store)
    result = await store.query(query_for(MMR, query_str=None), mmr_prefetch_k=12)
    nearest = (await store.query(query_for(DEFAULT, similarity_top_k=12))).ids
    assert set(result.ids) < set(nearest)
    again = await store.query(query_for(MMR), mmr_prefetch_k=12, mmr_over="dense")
    assert (again.ids, again.similarities) == (result.ids, result.similarities)


@lite
@pytest.mark.parametrize("mode", [SPARSE, TEXT_SEARCH, HYBRID, MMR])
async def test_nodes_come_back_as_they_were_stored(either, coloured, mode):
    result = await coloured(either.store).query(query_for(mode), mmr_over="hybrid")
    assert len(result.ids) == 10
    assert result.nodes == [
        BY_ID[node_id].model_copy(update={"embedding": None}) for node_id in result.ids
    ]


@lite
@pytest.mark.parametrize("mode", [SPARSE, HYBRID, MMR])
async def test_embeddings_come_on_request(either, coloured, mode):
    query = query_for(mode, output_fields=["embedding"])
    result = await coloured(either.store).query(query, mmr_over="hybrid")
    assert len(result.ids) == 10
    assert result.nodes == [BY_ID[node_id] for node_id in result.ids]


# Questions without a word that the sparse side knows: an encoder is as Milvus' BM25

UNKNOWN = ["???", "zebra"]


@lite
@pytest.mark.parametrize("text", UNKNOWN)
async def test_a_question_without_known_words_has_no_sparse_hits(either, coloured, text):
    store = coloured(either.store)
    for mode, alpha in ((SPARSE, None), (TEXT_SEARCH, None), (HYBRID, 0)):
        assert (await store.query(query_for(mode, alpha=alpha, query_str=text))).ids == []


@lite
@pytest.mark.parametrize(
    ("ranker", "alpha", "fuse", "arguments"),
    [
        (None, None, rrf, ()),
        (WeightedRanker(0.25, 1.0), None, weighted, ((0.25, 1.0),)),
        (None, 0.25, relative, ((0.25, 0.75),)),
        (rrf_here(60), None, rrf, ()),
    ],
    ids=["rrf", "weights", "alpha", "callable"],
)
async def test_a_hybrid_question_without_known_words_is_ranked_by_its_dense_hits(
    either, coloured, ranker, alpha, fuse, arguments
):
    queries = [
        query_for(query_str=text, similarity_top_k=12, hybrid_top_k=5, alpha=alpha)
        for text in (*UNKNOWN, TEXT)
    ]
    results = await coloured(either.store).query_many(queries, milvus_ranker=ranker)
    for query, result in zip(queries, results, strict=True):
        assert_best(result, either.hybrid(query, fuse, *arguments), 5)


@lite
async def test_a_ranker_gets_an_empty_list_for_the_leg_without_hits(either, coloured):
    seen = []

    def ranker(query, legs):
        seen.extend(map(len, legs))
        return legs[0]

    query = query_for(query_str="zebra", similarity_top_k=7)
    result = await coloured(either.store).query(query, milvus_ranker=ranker)
    assert seen == [7, 0]
    assert result.ids == best(either.dense(query), 7)


@lite
async def test_mmr_over_the_dense_hits_of_a_question_without_known_words(either, coloured):
    query = query_for(MMR, query_str="zebra", similarity_top_k=4)
    result = await coloured(either.store).query(query, mmr_over="hybrid", mmr_prefetch_k=12)
    assert result.ids == (await coloured(either.store).query(query, mmr_prefetch_k=12)).ids


@pytest.mark.parametrize("mode", [SPARSE, TEXT_SEARCH, HYBRID, MMR])
@pytest.mark.parametrize("text", ["", "  \n", None], ids=repr)
async def test_a_missing_text_is_refused(unconnected, coloured, mode, text):
    needs = f"mode {mode.name} needs query_str, and it is missing"
    begins = needs if text is None else "the question is empty (query_str is "
    with pytest.raises(QueryError, match=needs) as error:
        await coloured(unconnected).query(query_for(mode, query_str=text), mmr_over="hybrid")
    assert str(error.value).startswith(begins)


@pytest.mark.parametrize("mode", [DEFAULT, HYBRID, MMR])
@pytest.mark.parametrize("embedding", [None, []], ids=repr)
async def test_a_missing_embedding_is_refused(unconnected, coloured, mode, embedding):
    needs = f"mode {mode.name} needs query_embedding, and it is missing"
    with pytest.raises(QueryError, match=f"^{needs}; embed the question first"):
        await coloured(unconnected).query(query_for(mode, query_embedding=embedding))
    query = query_for(mode, query_embedding=embedding, query_str=" ")
    with pytest.raises(QueryError, match=f"^the question is empty .*: ask something.*{needs}"):
        await coloured(unconnected).query(query)


@pytest.mark.parametrize(
    "mode",
    [
        VectorStoreQueryMode.SEMANTIC_HYBRID,
        *map(VectorStoreQueryMode, ("svm", "logistic_regression", "linear_regression")),
    ],
)
async def test_an_unsupported_mode_is_refused_with_those_supported(unconnected, coloured, mode):
    message = (
        f"mode .*{mode.name}.* is not supported; supported are "
        "DEFAULT, SPARSE, TEXT_SEARCH, HYBRID, MMR$"
    )
    with pytest.raises(QueryError, match=message):
        await coloured(unconnected).query(query_for(mode))
