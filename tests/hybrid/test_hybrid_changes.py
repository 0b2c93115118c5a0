"""What is written again, and copies of stores with their encoders and rankers."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import time

import pytest
from pymilvus import RRFRanker, WeightedRanker
from pymilvus.grpc_gen.milvus_pb2 import SearchRequest

from llama_index_milvus_async import (
    ConfigurationError,
    MilvusVectorStore,
)
from llama_index_milvus_async._operations import queries
from tests.fixtures.stores import make_nodes
from tests.hybrid.corpus import (
    DEFAULT,
    SPARSE,
    BagOfWords,
    assert_identical,
    lite,
    query_for,
    rerank,
    rrf_here,
)


@pytest.fixture(params=["encoder", "bm25"])
def changing(make_store, request):
    return make_store(
        enable_sparse=True,
        similarity_metric="COSINE",
        sparse_embedding_function=BagOfWords() if request.param == "encoder" else None,
    )


@lite
@pytest.mark.parametrize("force_flush", [False, True])
async def test_what_is_written_again_is_found_by_its_new_words(changing, coloured, force_flush):
    store = coloured(changing)
    texts = ["apple birch", "birch cedar", "cedar daisy"]
    nodes = make_nodes(3)
    for node, text in zip(nodes, texts, strict=True):
        node.text = text
    await store.add(nodes, force_flush=force_flush)

    async def found(word, **kwargs):
        result = await store.query(query_for(SPARSE, query_str=word, **kwargs))
        return sorted(result.ids)

    assert await found("birch") == ["node-0", "node-1"]
    nodes[0].text = "elder daisy"
    await store.add([nodes[0]], force_flush=force_flush)
    assert await found("birch") == ["node-1"]
    assert await found("apple") == []
    assert await found("daisy") == ["node-0", "node-2"]
    result = await store.query(query_for(query_str="elder"))
    assert sorted(result.ids) == ["node-0", "node-1", "node-2"]
    assert {node.text for node in result.nodes} == {"elder daisy", "birch cedar", "cedar daisy"}

    await store.delete_nodes(["node-1"])
    assert await found("birch") == []
    assert await found("cedar") == ["node-2"]
    for alpha in (None, 0, 0.5, 1):
        query = query_for(query_str="cedar daisy", alpha=alpha)
        assert sorted((await store.query(query)).ids) == ["node-0", "node-2"]
    await store.delete("doc-0")
    assert await found("daisy") == []
    assert (await store.query(query_for(query_str="daisy"))).ids == []


COPIES = {
    "pickle": lambda store: pickle.loads(pickle.dumps(store)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "model_copy": lambda store: store.model_copy(),
    "from_dict": lambda store: MilvusVectorStore.from_dict(
        store.to_dict(), sparse_embedding_function=store.sparse_embedding_function
    ),
    "from_json": lambda store: MilvusVectorStore.from_json(
        store.to_json(), sparse_embedding_function=store.sparse_embedding_function
    ),
}


@lite
@pytest.mark.parametrize(
    ("how", "ranker"),
    [
        *((how, ("WeightedRanker", {"weights": [0.5, 0.75]})) for how in COPIES),
        # An object cannot be written as JSON.
        *((how, (WeightedRanker(0.5, 0.75), {})) for how in COPIES if "from" not in how),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value[0]).__name__,
)
async def test_a_copy_of_a_store_answers_as_the_store(encoded, coloured, how, ranker):
    given = dict(zip(("hybrid_ranker", "hybrid_ranker_params"), ranker, strict=True))
    original = encoded.store.model_copy(update=given)
    store = COPIES[how](original)
    try:
        for query in (query_for(), query_for(SPARSE), query_for(alpha=0.25)):
            expected = await coloured(original).query(query)
            assert_identical([await coloured(store).query(query)], [expected])
        assert store.hybrid_ranker_params == ranker[1]
    finally:
        await coloured(store).close()
        await coloured(original).close()


@lite
def test_an_encoder_and_its_state_are_not_written(encoded):
    for dump in (encoded.store.to_json(), repr(encoded.store.to_dict()), repr(encoded.store)):
        assert "object at" not in dump
        assert "vocabulary" not in dump


@lite
def test_a_store_rebuilt_without_its_encoder_says_so(encoded):
    with pytest.raises(ConfigurationError, match="function is a value of type str"):
        MilvusVectorStore.from_dict(encoded.store.to_dict())
    given = encoded.store.sparse_embedding_function
    store = MilvusVectorStore.from_dict(encoded.store.to_dict(), sparse_embedding_function=given)
    store.close()


@pytest.mark.parametrize("ranker", [rrf_here(60), rerank(reranker="rrf"), RRFRanker(5)], ids=type)
def test_a_ranker_that_is_lost_is_refused_rather_than_replaced(ranker):
    store = MilvusVectorStore(uri="http://127.0.0.1:1", hybrid_ranker=ranker)
    with pytest.raises(ConfigurationError, match="hybrid_ranker is"):
        MilvusVectorStore.from_dict(store.to_dict())
    again = MilvusVectorStore.from_dict(store.to_dict(), hybrid_ranker=ranker)
    assert again.hybrid_ranker is ranker


async def test_the_analyzer_of_a_query_is_sent_as_milvus_reads_it(recorder, make_store, coloured):
    """Beside the parameters of the index, among which it would be ignored."""
    store = make_store(uri=recorder.uri)
    await coloured(store).connect()
    config = {"analyzer_name": "english", "ef": 64}
    await coloured(store).query(query_for(DEFAULT), milvus_search_config=config)
    [search] = [call for call in recorder.calls if call.method == "Search"]
    request = SearchRequest.FromString(search.body)
    sent = {pair.key: pair.value for pair in request.search_params}
    assert sent["analyzer_name"] == "english"
    assert json.loads(sent["params"])["ef"] == 64


@lite
@pytest.mark.usefixtures("slices_of_users")
async def test_the_nodes_of_one_query_are_made_in_slices(make_store, monkeypatch):
    store = make_store()
    await store.async_add(make_nodes(300))
    ticks, seen = 0, []
    node_of = queries.node_of

    def slow_node_of(hit):
        seen.append(ticks)
        time.sleep(0.001)
        return node_of(hit)

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(queries, "node_of", slow_node_of)
    ticking = asyncio.ensure_future(tick())
    result = await store.aquery(query_for(DEFAULT, similarity_top_k=300))
    ticking.cancel()
    assert len(result.ids) == len(seen) == 300
    assert len(set(seen)) > 30


@lite
@pytest.mark.parametrize("dense", [True, False], ids=["hybrid", "sparse only"])
async def test_what_is_read_can_be_written(make_store, coloured, dense):
    """Sparse vectors are computed anew of the text that comes back."""
    store = coloured(make_store(enable_sparse=True, enable_dense=dense, dim=8 if dense else None))
    nodes = make_nodes(3)
    for node, text in zip(nodes, ["apple birch", "birch cedar", "cedar daisy"], strict=True):
        node.text = text
    await store.add(nodes)
    read = await store.get_nodes([node.node_id for node in nodes])
    assert [node.embedding for node in read] == [
        node.embedding if dense else None for node in nodes
    ]
    await store.delete_nodes([node.node_id for node in nodes])
    await store.add(read)
    result = await store.query(query_for(SPARSE, query_str="birch"))
    assert sorted(result.ids) == ["node-0", "node-1"]
    assert await store.get_nodes([node.node_id for node in nodes]) == read
