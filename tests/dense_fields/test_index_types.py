"""Indexes of every type find the nearest, and their parameters arrive."""

from __future__ import annotations

import numpy as np
import pytest
from llama_index.core.vector_stores.types import (
    VectorStoreQuery,
)
from pymilvus import DataType

from llama_index_milvus_async import (
    MilvusVectorStore,
    ServerError,
)
from tests.dense_fields.corpus import (
    BITS_DIM,
    FULL_PRECISION,
    HNSW,
    QUERIES,
    bits_query,
    bits_similarities,
    lite,
    make_bits,
    standalone,
)
from tests.fixtures.labels import label
from tests.fixtures.stores import DIM, Coloured, make_nodes


def expected_best(nodes, query, top_k):
    scores = np.array([node.embedding for node in nodes]) @ np.array(query)
    order = np.argsort(-scores)[:top_k]
    return [nodes[i].node_id for i in order], [float(scores[i]) for i in order]


INDEX_NODES = make_nodes(300, seed=31)
INDEX_QUERY = QUERIES["embedding"]


def with_ids(cases):
    return [pytest.param(*case, id=case[0]["index_type"]) for case in cases]


@pytest.fixture(scope="module")
def indexed(make_shared_store):
    """A collection that gets one index after the other."""
    store = make_shared_store()
    store.add(INDEX_NODES, force_flush=True)
    return store


@pytest.fixture
def with_index(indexed, make_store, raw):
    """Makes stores on the collection with another index."""

    def make(**kwargs):
        name = indexed.collection_name
        raw.release_collection(name)
        if raw.list_indexes(name, field_name="embedding"):
            raw.drop_index(name, "embedding")
        store = MilvusVectorStore(
            **{
                "uri": indexed.uri,
                "token": indexed.token,
                "collection_name": name,
                "dim": DIM,
                "consistency_level": "Strong",
                **kwargs,
            }
        )
        stores.append(store)
        return store

    stores = []
    yield make
    for store in stores:
        store.close()


LITE_INDEXES = [
    ({"index_type": "FLAT"}, {}),
    (HNSW, {"ef": 300}),
    ({"index_type": "HNSW_SQ", "M": 16}, {"ef": 300}),
    ({"index_type": "IVF_FLAT", "nlist": 8}, {"nprobe": 128}),
    ({"index_type": "IVF_SQ8", "nlist": 8}, {"nprobe": 128}),
    ({"index_type": "AUTOINDEX"}, {}),
]
SERVER_INDEXES = [
    ({"index_type": "FLAT"}, {}),
    (HNSW, {"ef": 300}),
    ({"index_type": "IVF_FLAT", "nlist": 8}, {"nprobe": 8}),
    ({"index_type": "IVF_SQ8", "nlist": 8}, {"nprobe": 8}),
    ({"index_type": "IVF_PQ", "nlist": 8, "m": 4, "nbits": 8}, {"nprobe": 8}),
    ({"index_type": "SCANN", "nlist": 8}, {"nprobe": 8, "reorder_k": 300}),
    ({"index_type": "DISKANN"}, {"search_list": 300}),
    ({"index_type": "AUTOINDEX"}, {}),
]


async def check_index(store, coloured, raw, config, search):
    """Whether the store makes the index, and searches with and without its parameters."""
    reader = coloured(store)
    query = VectorStoreQuery(query_embedding=INDEX_QUERY, similarity_top_k=10)
    for kwargs in (
        {},
        {"milvus_search_config": search},
        {"milvus_search_config": {"params": search}},
    ):
        result = await reader.query(query, **kwargs)
        assert len(result.ids) == 10
    described = raw.describe_index(store.collection_name, "embedding")
    assert (described["index_type"], described["metric_type"]) == (config["index_type"], "IP")
    exact = expected_best(INDEX_NODES, INDEX_QUERY, 10)
    found = set(result.ids) & set(exact[0])
    # With these parameters every row is looked at; only quantized vectors may change places.
    assert len(found) >= (6 if "SQ" in config["index_type"] or "PQ" in config["index_type"] else 10)
    return described


@lite
@pytest.mark.parametrize(("config", "search"), with_ids(LITE_INDEXES))
async def test_an_index_of_milvus_lite(with_index, coloured, raw, config, search):
    store = with_index(index_config=config, search_config=search)
    await check_index(store, coloured, raw, config, search)


@standalone
@pytest.mark.parametrize(("config", "search"), with_ids(SERVER_INDEXES))
async def test_an_index_of_a_server(with_index, raw, config, search):
    def coloured(store):
        return Coloured(store, "async")

    store = with_index(index_config=config, search_config=search)
    described = await check_index(store, coloured, raw, config, search)
    for name, value in config.items():
        assert described[name] == str(value)


@standalone
@pytest.mark.parametrize("metric", ["IP", "L2", "COSINE"])
async def test_the_metric_of_an_index_config(with_index, raw, metric):
    flat = {"index_type": "IVF_FLAT", "params": {"nlist": 8}}
    store = with_index(index_config=flat, similarity_metric=metric)
    query = VectorStoreQuery(query_embedding=INDEX_NODES[9].embedding, similarity_top_k=3)
    result = await store.aquery(query)
    assert result.ids[0] == "node-9"
    assert result.similarities == pytest.approx(sorted(result.similarities, reverse=True))
    assert result.similarities[0] == pytest.approx(1.0, abs=FULL_PRECISION)
    described = raw.describe_index(store.collection_name, "embedding")
    assert (described["metric_type"], described["nlist"]) == (metric, "8")


@standalone
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"index_type": "HNSW", "M": 5000, "efConstruction": 32}, "M out of range"),
        ({"index_type": "HNSW", "M": "x", "efConstruction": 32}, "M out of range"),
        ({"index_type": "IVF_FLAT", "nlist": 0}, "nlist out of range"),
        ({"index_type": "IVF_FLAT", "params": {"nlist": 0}}, "nlist out of range"),
        ({"index_type": "IVF_PQ", "nlist": 8, "m": 3}, "divided by `m`"),
    ],
    ids=label,
)
async def test_wrong_parameters_are_the_server_s_error(with_index, coloured, config, message):
    store = coloured(with_index(index_config=config))
    with pytest.raises(ServerError, match=rf"^create_index failed \(code \d+\): .*{message}"):
        await store.connect()
    with pytest.raises(ServerError, match=message):  # and it is not forgotten
        await store.add(make_nodes(1))


@standalone
async def test_after_wrong_parameters_the_right_ones_work(make_store, coloured):
    wrong = make_store(index_config={"index_type": "IVF_FLAT", "nlist": 0})
    with pytest.raises(ServerError, match="nlist"):
        await coloured(wrong).connect()
    right = make_store(
        collection_name=wrong.collection_name, index_config={"index_type": "IVF_FLAT", "nlist": 8}
    )
    await coloured(right).add(make_nodes(3))
    query = VectorStoreQuery(query_embedding=make_nodes(3)[1].embedding, similarity_top_k=1)
    assert (await coloured(right).query(query)).ids == ["node-1"]


@standalone
async def test_an_index_over_bits_with_parameters(make_store, raw):
    spec = {"dim": BITS_DIM, "type": DataType.BINARY_VECTOR, "metric_type": "jaccard"}
    index = {"index_type": "BIN_IVF_FLAT", "nlist": 4}
    store = make_store(enable_dense=False, dim=None, dense_fields={"bits": {**spec, **index}})
    await store.async_add(make_bits(), force_flush=True)
    described = raw.describe_index(store.collection_name, "bits")
    assert {key: described[key] for key in ("index_type", "nlist", "metric_type")} == {
        "index_type": "BIN_IVF_FLAT",
        "nlist": "4",
        "metric_type": "JACCARD",
    }
    result = await store.aquery(bits_query(), milvus_search_config={"nprobe": 4})
    expected = np.sort(bits_similarities("JACCARD"))[::-1].tolist()
    assert result.similarities == pytest.approx(expected, abs=FULL_PRECISION)


@standalone
async def test_the_server_s_index_obeys_the_search_parameters(make_store):
    """Of a built index few lists are searched, or all; below about 1,000 rows there is none."""
    config = {"index_type": "IVF_FLAT", "nlist": 64}
    store = make_store(index_config=config, search_config={"nprobe": 1}, similarity_metric="L2")
    nodes = make_nodes(3000, seed=41)
    await store.async_add(nodes, force_flush=True)
    store.client.release_collection(store.collection_name)
    store.client.load_collection(store.collection_name)  # waits for the index
    query = VectorStoreQuery(query_embedding=INDEX_QUERY, similarity_top_k=3000)
    few = len((await store.aquery(query)).ids)
    some = len((await store.aquery(query, milvus_search_config={"nprobe": 16})).ids)
    every = len((await store.aquery(query, milvus_search_config={"params": {"nprobe": 64}})).ids)
    assert few < some < every == 3000
