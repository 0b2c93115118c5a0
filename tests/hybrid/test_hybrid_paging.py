"""Offsets, groups and thresholds of dense, sparse and hybrid queries."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from pymilvus import WeightedRanker

from llama_index_milvus_async import (
    QueryError,
    ServerError,
)
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
    query_for,
    rrf_here,
    similar,
    weighted,
)


@pytest.mark.parametrize("offset", [1, 5, N - 3, N + 3])
async def test_hits_are_skipped(dense, coloured, offset):
    result = await coloured(dense.store).query(query_for(DEFAULT), offset=offset)
    expected = best(dense.dense(query_for()), N)
    assert result.ids == expected[offset : offset + 10]


@lite
@pytest.mark.parametrize("mode", [SPARSE, TEXT_SEARCH])
@pytest.mark.parametrize("offset", [1, 5, 30, 100])
async def test_sparse_hits_are_skipped(either, coloured, mode, offset):
    result = await coloured(either.store).query(query_for(mode), offset=offset)
    assert_best(result, either.sparse(query_for())[1], 10, offset)


PAGED = {
    "rrf": (HYBRID, None, {}),
    "weights": (HYBRID, None, {"milvus_ranker": WeightedRanker(0.5, 1.0)}),
    "alpha": (HYBRID, 0.5, {}),
    "callable": (HYBRID, None, {"milvus_ranker": rrf_here(60)}),
    "mmr": (MMR, None, {"mmr_prefetch_k": 20}),
    "mmr over hybrid": (MMR, None, {"mmr_over": "hybrid", "mmr_prefetch_k": 20}),
}


@lite
@pytest.mark.parametrize("name", PAGED)
async def test_pages_are_of_one_ranking(either, coloured, name):
    mode, alpha, options = PAGED[name]
    store, pages = coloured(either.store), []
    size = (
        {"similarity_top_k": 20, "hybrid_top_k": 4} if mode is HYBRID else {"similarity_top_k": 4}
    )
    for offset in range(0, 20, 4):
        query = query_for(mode, alpha=alpha, **size)
        pages += (await store.query(query, offset=offset, **options)).ids
    everything = query_for(mode, alpha=alpha, similarity_top_k=20)
    assert len(set(pages)) == 20
    if name != "mmr over hybrid":  # of as many candidates, where RRF has ties at the end
        assert pages == (await store.query(everything, **options)).ids


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (
            query_for(),
            {"offset": 1},
            "offset is 1: this page needs 1 \\+ 10 hits, .* least 11",
        ),
        (query_for(alpha=0.5), {"offset": 5}, "at least 15"),
        (query_for(hybrid_top_k=3), {"offset": 8}, "at least 11, .*hybrid_top_k=3"),
        (query_for(hybrid_top_k=3, sparse_top_k=5), {"offset": 3}, "at least 6"),
        (query_for(MMR), {"offset": 31}, "needs 31 \\+ 10 hits, and MMR has 40 candidates"),
        (query_for(MMR), {"offset": 1, "mmr_prefetch_k": 10}, "larger mmr_prefetch_k"),
    ],
    ids=label,
)
async def test_a_page_beyond_the_candidates_is_refused(
    unconnected, coloured, query, options, message
):
    with pytest.raises(QueryError, match=message):
        await coloured(unconnected).query(query, **options)


@pytest.mark.parametrize("offset", [-1, 16_384, True, 1.5, "1", None])
async def test_a_bad_offset_is_refused(unconnected, coloured, offset):
    with pytest.raises(QueryError, match=f"offset is {offset!r}; it must be an integer in 0"):
        await coloured(unconnected).query(query_for(DEFAULT), offset=offset)


def grouped(expected, limit, size=1, strict=False):
    """The best of each kind, the kind with the best first."""
    groups = {}
    for node_id in sorted(expected, key=expected.__getitem__, reverse=True):
        groups.setdefault(BY_ID[node_id].metadata["kind"], []).append(node_id)
    kept = [group[:size] for group in groups.values() if not strict or len(group) >= size]
    return [node_id for group in kept[:limit] for node_id in group]


GROUPINGS = [
    (3, {}),
    (10, {}),
    (2, {"group_size": 3}),
    (3, {"group_size": 2, "strict_group_size": False}),
]


@lite
@pytest.mark.parametrize(("limit", "options"), GROUPINGS, ids=label)
@pytest.mark.parametrize("mode", [DEFAULT, SPARSE, HYBRID])
async def test_groups(either, coloured, mode, limit, options):
    query = query_for(mode, similarity_top_k=N, sparse_top_k=N, hybrid_top_k=limit)
    if mode == DEFAULT:
        query.similarity_top_k = limit
        metric, distances = either.dense(query)
        expected = {i: similar(metric, distance) for i, distance in distances.items()}
    elif mode == SPARSE:
        query.sparse_top_k = limit
        expected = either.sparse(query)[1]
    else:
        expected = either.hybrid(query, weighted, (0.5, 0.75))
        options = {**options, "milvus_ranker": WeightedRanker(0.5, 0.75)}
    result = await coloured(either.store).query(query, group_by_field="kind", **options)
    assert result.ids == grouped(expected, limit, options.get("group_size", 1))
    scores = [expected[node_id] for node_id in result.ids]
    assert result.similarities == pytest.approx(scores, abs=FULL_PRECISION)


@lite
async def test_groups_that_are_not_full_are_left_out(encoded, coloured):
    """Of the nodes that pass the filter, three are essays and one is a poem."""
    query = query_for(
        DEFAULT, node_ids=["node-0", "node-4", "node-8", "node-1"], similarity_top_k=4
    )
    store = coloured(encoded.store)
    options = {"group_by_field": "kind", "group_size": 2}
    found = await store.query(query, **options)
    assert sorted(node.metadata["kind"] for node in found.nodes) == ["essay", "essay", "poem"]
    found = await store.query(query, strict_group_size=True, **options)
    assert [node.metadata["kind"] for node in found.nodes] == ["essay", "essay"]


@lite
@pytest.mark.parametrize(
    ("mode", "kwargs", "options"),
    [
        (HYBRID, {"alpha": 0.5}, {}),
        (HYBRID, {}, {"milvus_ranker": rrf_here(60)}),
        (MMR, {"alpha": 0.5}, {"mmr_over": "hybrid"}),
    ],
    ids=["alpha", "callable", "mmr"],
)
async def test_groups_are_refused_where_milvus_does_not_rank(
    either, coloured, mode, kwargs, options
):
    with pytest.raises(QueryError, match="group_by_field: Milvus groups where it ranks itself"):
        await coloured(either.store).query(
            query_for(mode, **kwargs), group_by_field="kind", **options
        )


@lite
async def test_an_unknown_field_to_group_by_surfaces_with_the_server_s_reason(either, coloured):
    with pytest.raises(ServerError, match="no_such_field"):
        await coloured(either.store).query(query_for(DEFAULT), group_by_field="no_such_field")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 2}, "group_size has no effect without group_by_field; pass both"),
        ({"strict_group_size": True}, "strict_group_size has no effect without group_by_field"),
        ({"group_by_field": ""}, "group_by_field is ''; it must be the name of a field"),
        ({"group_by_field": ["kind"]}, "group_by_field is"),
        ({"group_by_field": "kind", "group_size": 0}, "group_size is 0; it must be an integer"),
        ({"group_by_field": "kind", "group_size": True}, "group_size is True"),
        ({"group_by_field": "kind", "group_size": 1.5}, r"group_size is 1\.5"),
    ],
    ids=label,
)
async def test_a_bad_group_size_is_refused(unconnected, coloured, options, message):
    with pytest.raises(QueryError, match=message):
        await coloured(unconnected).query(query_for(DEFAULT), **options)


async def check_threshold(store, query, **options):
    everything = await store.query(query, **options)
    assert len(everything.ids) == 10
    for threshold in (everything.similarities[4], np.float32(-1e9), 1e9):
        result = await store.query(query, score_threshold=threshold, **options)
        kept = [score >= threshold for score in everything.similarities]
        assert result.ids == [i for i, keep in zip(everything.ids, kept, strict=True) if keep]
        assert [node.node_id for node in result.nodes] == result.ids
        assert all(score >= threshold for score in result.similarities)
    assert result.ids == []


async def test_a_threshold_is_of_similarity_for_every_metric(dense, coloured):
    await check_threshold(coloured(dense.store), query_for(DEFAULT))
    await check_threshold(coloured(dense.store), query_for(alpha=1.0))


@lite
@pytest.mark.parametrize(
    ("mode", "alpha", "options"),
    [
        (SPARSE, None, {}),
        (TEXT_SEARCH, None, {}),
        (HYBRID, None, {}),
        (HYBRID, None, {"milvus_ranker": WeightedRanker(0.5, 1.0)}),
        (HYBRID, None, {"milvus_ranker": rrf_here(60)}),
        (HYBRID, 0.25, {}),
        (HYBRID, 0.0, {}),
    ],
)
async def test_a_threshold_of_sparse_and_hybrid_search(either, coloured, mode, alpha, options):
    await check_threshold(coloured(either.store), query_for(mode, alpha=alpha), **options)


async def test_mmr_chooses_among_what_is_similar_enough(dense, coloured):
    store = coloured(dense.store)
    least = (await store.query(query_for(DEFAULT))).similarities[5]
    query = query_for(MMR, mmr_threshold=0.4)
    result = await store.query(query, score_threshold=least)
    nearest = (await store.query(query_for(DEFAULT, similarity_top_k=6))).ids
    assert set(result.ids) == set(nearest)


@pytest.mark.parametrize("threshold", [math.nan, math.inf, "0.5", True, [0.5]])
async def test_a_bad_threshold_is_refused(unconnected, coloured, threshold):
    message = re.escape(f"score_threshold is {threshold!r}; it must be a number")
    with pytest.raises(QueryError, match=message):
        await coloured(unconnected).query(query_for(DEFAULT), score_threshold=threshold)
