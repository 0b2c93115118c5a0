"""Maximal marginal relevance chooses as LlamaIndex does."""

from __future__ import annotations

import numpy as np
import pytest
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.vector_stores.types import (
    FilterOperator,
)

from llama_index_milvus_async import (
    QueryError,
)
from tests.query.corpus import (
    BY_ID,
    FULL_PRECISION,
    MMR,
    NODES,
    QUERIES,
    N,
    expected_similarities,
    filters,
    query_for,
    reference,
)


def core_mmr(vector, top_k, threshold, candidates=NODES):
    return get_top_k_mmr_embeddings(
        vector,
        [node.embedding for node in candidates],
        similarity_top_k=top_k,
        embedding_ids=[node.node_id for node in candidates],
        mmr_threshold=threshold,
    )


@pytest.mark.parametrize("threshold", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("given_by", ["query", "keyword"])
async def test_mmr_on_all_candidates_chooses_as_llama_index_does(
    metric_store, coloured, threshold, given_by
):
    by_query = threshold if given_by == "query" else None
    kwargs = {"mmr_threshold": threshold} if given_by == "keyword" else {}
    result = await coloured(metric_store).query(
        query_for(mode=MMR, mmr_threshold=by_query), mmr_prefetch_k=N, **kwargs
    )
    if threshold == 0.0:
        # Every candidate scores zero at first, so that the first of them is chosen: the nearest.
        ranked = expected_similarities(metric_store.similarity_metric, QUERIES[0])
        candidates = [BY_ID[node_id] for node_id in ranked]
        scores, ids = core_mmr(QUERIES[0], 10, threshold, candidates)
    else:
        scores, ids = core_mmr(QUERIES[0], 10, threshold)
    assert result.ids == ids
    assert result.similarities == pytest.approx(scores, abs=FULL_PRECISION)
    assert [node.node_id for node in result.nodes] == ids


async def test_the_keyword_s_threshold_goes_before_the_query_s(store, coloured):
    result = await coloured(store).query(
        query_for(mode=MMR, mmr_threshold=0.1), mmr_threshold=1.0, mmr_prefetch_k=N
    )
    assert result.ids == reference(query_for()).ids


async def test_mmr_returns_stored_nodes_and_no_embedding_unless_named(store, coloured):
    plain = await coloured(store).query(query_for(mode=MMR))
    assert plain.nodes == [BY_ID[i].model_copy(update={"embedding": None}) for i in plain.ids]
    named = await coloured(store).query(query_for(mode=MMR, output_fields=["embedding"]))
    assert named.nodes == [BY_ID[i] for i in named.ids]
    assert len(named.ids) == 10


@pytest.mark.parametrize(
    ("kwargs", "candidates"),
    [
        ({"mmr_prefetch_factor": 1}, 10),
        ({"mmr_prefetch_factor": 2.5}, 25),
        ({"mmr_prefetch_factor": np.float64(2.5)}, 25),
        ({}, 40),
        ({"mmr_prefetch_k": 10}, 10),
        ({"mmr_prefetch_k": 33}, 33),
        ({"mmr_prefetch_k": 3}, 10),  # fewer than top k cannot be meant
    ],
)
async def test_mmr_chooses_among_as_many_candidates_as_asked(store, coloured, kwargs, candidates):
    result = await coloured(store).query(query_for(mode=MMR, mmr_threshold=0.2), **kwargs)
    nearest = [BY_ID[i] for i in reference(query_for(similarity_top_k=candidates)).ids]
    assert result.ids == core_mmr(QUERIES[0], 10, 0.2, nearest)[1]


async def test_mmr_chooses_among_what_passes_the_filters(store, coloured):
    poems = [node for node in NODES if node.metadata["kind"] == "poem"]
    result = await coloured(store).query(
        query_for(mode=MMR, filters=filters(("kind", FilterOperator.EQ, "poem"))),
        mmr_prefetch_k=N,
    )
    assert result.ids == core_mmr(QUERIES[0], 10, None, poems)[1]


async def test_mmr_of_nothing_and_of_less_than_top_k(store, coloured):
    nothing = await coloured(store).query(query_for(mode=MMR, node_ids=["unknown"]))
    assert (nothing.nodes, nothing.similarities, nothing.ids) == ([], [], [])
    two = await coloured(store).query(query_for(mode=MMR, node_ids=["node-1", "node-2"]))
    assert sorted(two.ids) == ["node-1", "node-2"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mmr_prefetch_factor": 4, "mmr_prefetch_k": 20}, "exclude each other"),
        ({"mmr_prefetch_factor": 0.9}, "mmr_prefetch_factor is 0.9"),
        ({"mmr_prefetch_factor": "4"}, "mmr_prefetch_factor is '4'"),
        ({"mmr_prefetch_factor": float("nan")}, "mmr_prefetch_factor is nan"),
        ({"mmr_prefetch_factor": float("inf")}, "mmr_prefetch_factor is inf"),
        ({"mmr_prefetch_k": 0}, "mmr_prefetch_k is 0"),
        ({"mmr_prefetch_k": 16_385}, "mmr_prefetch_k is 16385"),
        ({"mmr_prefetch_k": 20.0}, "mmr_prefetch_k is 20.0"),
        ({"mmr_threshold": -0.1}, "mmr_threshold is -0.1"),
        ({"mmr_threshold": 1.1}, "mmr_threshold is 1.1"),
        ({"mmr_threshold": float("nan")}, "mmr_threshold is nan"),
        ({"mmr_threshold": "0.5"}, "mmr_threshold is '0.5'"),
    ],
)
async def test_a_bad_argument_of_mmr_is_refused_and_named(store, coloured, kwargs, message):
    with pytest.raises(QueryError, match=message):
        await coloured(store).query(query_for(mode=MMR), **kwargs)


async def test_a_bad_threshold_of_the_query_is_refused(store, coloured):
    with pytest.raises(QueryError, match=r"mmr_threshold is 1\.5"):
        await coloured(store).query(query_for(mode=MMR, mmr_threshold=1.5))
