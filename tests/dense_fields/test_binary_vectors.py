"""Embeddings of bits: their columns, metrics and exact values."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
)
from pymilvus import DataType

from llama_index_milvus_async import (
    MilvusVectorStore,
    NodeError,
    QueryError,
)
from tests.dense_fields.corpus import (
    BITS,
    BITS_QUERY,
    EVERYTHING,
    FULL_PRECISION,
    MMR,
    bits_query,
    bits_similarities,
    make_bits,
    standalone,
)
from tests.fixtures.stores import make_nodes


def metric_of(store):
    return store.dense_fields["bits"]["metric_type"]


def test_a_store_may_have_further_fields_only():
    MilvusVectorStore(
        enable_dense=False, dense_fields={"bits": {"dim": 8, "type": DataType.BINARY_VECTOR}}
    )


@standalone
def test_bits_get_a_column_and_an_index(bits, raw):
    fields = {f["name"]: f for f in raw.describe_collection(bits.collection_name)["fields"]}
    assert (fields["bits"]["type"], "embedding" in fields) == (DataType.BINARY_VECTOR, False)
    index = raw.describe_index(bits.collection_name, "bits")
    assert (index["index_type"], index["metric_type"]) == ("BIN_FLAT", metric_of(bits))


@standalone
@pytest.mark.parametrize(
    "form",
    [
        lambda bits: bits.astype(float).tolist(),
        lambda bits: bits.tolist(),
        lambda bits: bits,
        lambda bits: np.packbits(bits).tobytes(),
    ],
    ids=["floats", "integers", "array", "bytes"],
)
async def test_the_nearest_bits_are_found_best_first(bits, coloured, form):
    expected = np.sort(bits_similarities(metric_of(bits)))[::-1]
    by_id = {f"node-{i}": s for i, s in enumerate(bits_similarities(metric_of(bits)))}
    for top_k in (1, 10, 60):
        result = await coloured(bits).query(
            bits_query(query_embedding=form(BITS_QUERY), similarity_top_k=top_k)
        )
        assert result.similarities == pytest.approx(expected[:top_k].tolist(), abs=FULL_PRECISION)
        assert result.similarities == pytest.approx([by_id[i] for i in result.ids], abs=1e-5)


@standalone
async def test_the_same_bits_have_similarity_one(bits, coloured):
    result = await coloured(bits).query(
        bits_query(query_embedding=BITS[17].tolist(), similarity_top_k=1)
    )
    assert (result.ids, result.similarities) == (["node-17"], [1.0])


@standalone
async def test_bits_come_back_exactly(bits, coloured):
    result = await coloured(bits).query(bits_query(output_fields=["bits"]))
    nodes = make_bits()
    assert len(result.nodes) == len(nodes)
    for node in result.nodes:
        assert node == nodes[int(node.node_id.split("-")[1])]
    nodes = await coloured(bits).get_nodes(filters=EVERYTHING)
    assert {node.node_id: node for node in nodes} == {node.node_id: node for node in make_bits()}
    (without,) = await coloured(bits).get_nodes(["node-3"], include_embeddings=False)
    assert without.embedding is None


@standalone
async def test_bits_are_filtered_and_cut(bits, coloured):
    scores = bits_similarities(metric_of(bits))
    old = MetadataFilters(filters=[MetadataFilter(key="year", operator="<", value=1920)])
    cutoff = float(np.sort(scores[:20])[::-1][4]) - 1e-6
    result = await coloured(bits).query(bits_query(filters=old), score_threshold=cutoff)
    assert set(result.ids) == {f"node-{i}" for i in range(20) if scores[i] >= cutoff}


@standalone
@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda bits: bits.tolist(), id="list"),
        pytest.param(
            lambda bits: np.packbits(bits).tobytes(),
            id="bytes",
        ),
    ],
)
async def test_mmr_over_bits(bits, coloured, form):
    query = bits_query(query_embedding=form(BITS_QUERY), mode=MMR, similarity_top_k=5)
    query.mmr_threshold = 1.0
    result = await coloured(bits).query(query, mmr_prefetch_k=60)
    cosines = BITS @ BITS_QUERY / np.linalg.norm(BITS, axis=1) / np.linalg.norm(BITS_QUERY)
    assert result.similarities == pytest.approx(np.sort(cosines)[::-1][:5].tolist(), abs=1e-5)


@standalone
@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        ([1.0] * 31, "has 31 bits, the collection 32"),
        (b"abc", "has 24 bits, the collection 32"),
        ([0.5] * 32, "neither 0 nor 1"),
        ([math.nan] * 32, "neither 0 nor 1"),
    ],
    ids=["dimension", "bytes", "fractions", "NaN"],
)
async def test_what_are_no_bits_is_refused(bits, coloured, embedding, message):
    with pytest.raises(QueryError, match=rf"query_embedding .*{message} \(field 'bits'\)"):
        await coloured(bits).query(bits_query(query_embedding=embedding))
    if isinstance(embedding, bytes):
        return  # no embedding of a node
    nodes = make_nodes(2, prefix="new")
    nodes[0].embedding = BITS[0].astype(float).tolist()
    nodes[1].embedding = embedding
    with pytest.raises(NodeError, match=rf"'new-1': its embedding .*{message}"):
        await coloured(bits).add(nodes)
    assert await coloured(bits).get_nodes(["new-0", "new-1"]) == []


@standalone
async def test_bits_are_added_replaced_and_deleted(make_shared_store, bits, coloured):
    kwargs = {"collection_name": bits.collection_name, "dense_fields": bits.dense_fields}
    writer = coloured(make_shared_store(enable_dense=False, dim=None, **kwargs))
    (node,) = make_nodes(1, prefix="new")
    for content in (BITS[0], BITS_QUERY):
        node.embedding = content.astype(float).tolist()
        await writer.add([node])
        assert await writer.get_nodes(["new-0"], output_fields=["bits"]) == [node]
    result = await writer.query(bits_query(similarity_top_k=1))
    assert (result.ids, result.similarities) == (["new-0"], [1.0])
    await writer.delete_nodes(["new-0"])
    assert await writer.get_nodes(["new-0"]) == []


@standalone
async def test_concurrent_queries_over_bits(bits):
    queries = [bits_query(query_embedding=BITS[i].tolist(), similarity_top_k=1) for i in range(20)]
    results = await asyncio.gather(*(bits.aquery(query) for query in queries))
    assert [result.ids for result in results] == [[f"node-{i}"] for i in range(20)]
