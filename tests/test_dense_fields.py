"""Several dense fields, vectors of other types, and index types."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import pickle
import struct
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ClassVar

import grpc
import numpy as np
import pytest
from google.protobuf.message_factory import GetMessageClass
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from pymilvus import CollectionSchema, DataType, FieldSchema, RRFRanker, WeightedRanker
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from llama_index_milvus_async import (
    CollectionError,
    ConfigurationError,
    IndexManagement,
    MilvusVectorStore,
    NodeError,
    QueryError,
    ServerError,
)
from tests.fixtures.labels import label
from tests.fixtures.stores import DIM, Coloured, collection_name, make_nodes

lite = pytest.mark.engines("lite")
standalone = pytest.mark.engines("standalone")

N = 24
IMAGE_DIM = 4
EVERYTHING = MetadataFilters(filters=[])
FULL_PRECISION = 1e-5  # Milvus computes in 32 bits
HYBRID, MMR = VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.MMR
HNSW = {"index_type": "HNSW", "M": 8, "efConstruction": 32}
FIELDS = {
    "image": {"dim": IMAGE_DIM, "metric_type": "L2", **HNSW},
    "title": {"dim": DIM, "metric_type": "COSINE"},
}
METRICS = {"embedding": "IP", "image": "L2", "title": "COSINE"}


def vectors_of(n, dim, seed):
    return [node.embedding for node in make_nodes(n, dim=dim, seed=seed)]


# Vectors of lengths 1 to 3, so that the three metrics rank differently.
IMAGES = [
    (np.float32(v) * np.float32(1 + i % 3)).tolist()
    for i, v in enumerate(vectors_of(N, IMAGE_DIM, 11))
]
TITLES = [
    (np.float32(v) * np.float32(1 + i % 3)).tolist() for i, v in enumerate(vectors_of(N, DIM, 12))
]
QUERIES = {
    "embedding": vectors_of(1, DIM, 21)[0],
    "image": vectors_of(1, IMAGE_DIM, 22)[0],
    "title": vectors_of(1, DIM, 23)[0],
}


def make_collection(prefix="node"):
    """Nodes that carry two further embeddings in their metadata."""
    nodes = make_nodes(
        N,
        prefix=prefix,
        year=lambda i: 1900 + i,
        image=lambda i: IMAGES[i],
        title=lambda i: TITLES[i],
    )
    for i, node in enumerate(nodes):
        # Of different lengths, so that no two are as good an answer.
        node.set_content(("cedar" if i % 2 == 0 else "apple") + " birch" * i)
    return nodes


def bare(node, **metadata):
    """A node as it comes back: without its embeddings, but with what is asked for."""
    kept = {key: value for key, value in node.metadata.items() if key not in FIELDS}
    return node.model_copy(update={"embedding": None, "metadata": {**kept, **metadata}})


NODES = make_collection()
BY_ID = {node.node_id: node for node in NODES}
VECTORS = {
    "embedding": np.array([node.embedding for node in NODES]),
    "image": np.array(IMAGES),
    "title": np.array(TITLES),
}


@pytest.fixture(scope="module")
def store(make_shared_store):
    """Three dense fields, and full text; the nodes are not changed."""
    store = make_shared_store(dense_fields=FIELDS, enable_sparse=True)
    store.add(NODES)
    return store


@pytest.fixture(scope="module")
def dense_only(make_shared_store):
    store = make_shared_store(dense_fields=FIELDS)
    store.add(NODES)
    return store


@pytest.fixture(scope="module")
def on_same_collection(store, make_shared_store):
    def make(**kwargs):
        shared = {"dense_fields": FIELDS, "enable_sparse": True}
        return make_shared_store(collection_name=store.collection_name, **{**shared, **kwargs})

    return make


def query_for(field=None, **kwargs):
    embedding = QUERIES[field or "embedding"]
    defaults = {"query_embedding": embedding, "embedding_field": field, "similarity_top_k": 10}
    return VectorStoreQuery(**{**defaults, **kwargs})


def similarities(field, query, vectors=None):
    """The similarity of every vector of a field, as the package defines it."""
    matrix, query = np.array(VECTORS[field] if vectors is None else vectors), np.array(query)
    if METRICS[field] == "L2":
        return 1 / (1 + ((matrix - query) ** 2).sum(axis=1))
    products = matrix @ query
    if METRICS[field] == "IP":
        return products
    return products / np.linalg.norm(matrix, axis=1) / np.linalg.norm(query)


def best_first(field, query, top_k=N):
    scores = similarities(field, query)
    order = np.argsort(-scores)[:top_k]
    return [NODES[i].node_id for i in order], [float(scores[i]) for i in order]


def assert_same(result, expected):
    ids, scores = expected
    assert result.ids == ids
    assert result.similarities == pytest.approx(scores, abs=FULL_PRECISION)


every_field = pytest.mark.parametrize("field", list(METRICS))


# The collection


@lite
def test_each_field_gets_a_column_and_an_index(store, raw):
    fields = {f["name"]: f for f in raw.describe_collection(store.collection_name)["fields"]}
    for name, dim in {"embedding": DIM, "image": IMAGE_DIM, "title": DIM}.items():
        assert fields[name]["type"] == DataType.FLOAT_VECTOR
        assert int(fields[name]["params"]["dim"]) == dim
        assert raw.describe_index(store.collection_name, name)["metric_type"] == METRICS[name]
    assert raw.describe_index(store.collection_name, "image")["index_type"] == "HNSW"
    assert raw.describe_index(store.collection_name, "title")["index_type"] == "FLAT"


@lite
def test_the_parameters_of_the_index_reach_milvus_lite(store, raw):
    described = raw.describe_index(store.collection_name, "image")
    assert described["params"] == {"M": 8, "efConstruction": 32}


@lite
async def test_embeddings_are_kept_out_of_the_json_and_of_the_dynamic_field(store, raw):
    fields = ["_node_content", "$meta", "image", "title"]
    (row,) = raw.query(store.collection_name, filter='id == "node-3"', output_fields=fields)
    content = json.loads(row["_node_content"])
    assert content["metadata"] == {"year": 1903}
    assert (row["image"], row["title"]) == (IMAGES[3], TITLES[3])
    dynamic = raw.query(store.collection_name, filter='id == "node-3"', output_fields=["$meta"])[0]
    assert "image" not in dynamic.get("$meta", dynamic)
    assert not raw.query(store.collection_name, filter='exists $meta["image"]')


@lite
async def test_embeddings_are_kept_out_of_the_relationships(make_store, raw):
    """A node parser copies the metadata of a document to its nodes, and to their relationships."""
    store = make_store(dense_fields={"image": {"dim": IMAGE_DIM}})
    (node,) = make_nodes(1, image=IMAGES[0])
    source = RelatedNodeInfo(node_id="doc-0", metadata={"image": IMAGES[0]})
    node.relationships[NodeRelationship.SOURCE] = source
    store.add([node])
    (row,) = raw.query(
        store.collection_name, filter='id == "node-0"', output_fields=["_node_content"]
    )
    assert "image" not in row["_node_content"]


@lite
async def test_a_node_comes_back_without_its_embeddings(store, coloured):
    result = await coloured(store).query(query_for())
    assert result.nodes == [bare(BY_ID[node_id]) for node_id in result.ids]
    nodes = await coloured(store).get_nodes(["node-5", "node-2"])
    assert nodes == [bare(BY_ID["node-5"]), bare(BY_ID["node-2"])]


@lite
async def test_the_caller_s_nodes_stay_as_they_were(make_store, coloured):
    store = coloured(make_store(dense_fields=FIELDS))
    nodes = make_collection()
    await store.add(nodes)
    assert nodes == make_collection()


@lite
async def test_named_embeddings_come_in_the_metadata_exactly(store, coloured):
    store = coloured(store)
    (node,) = await store.get_nodes(["node-4"], output_fields=["image"])
    assert node == bare(BY_ID["node-4"], image=IMAGES[4])
    (node,) = await store.get_nodes(["node-4"], output_fields=["title", "embedding", "image"])
    assert node == BY_ID["node-4"]
    result = await store.query(query_for(output_fields=["title", "image"]))
    for node in result.nodes:
        assert node.embedding is None
        original = BY_ID[node.node_id].metadata
        assert (node.metadata["image"], node.metadata["title"]) == (
            original["image"],
            original["title"],
        )


@lite
async def test_the_store_s_output_fields_name_embeddings_for_every_read(
    on_same_collection, coloured
):
    store = coloured(on_same_collection(output_fields=["embedding", "image", "title"]))
    assert (await store.query(query_for())).nodes == [
        BY_ID[node_id] for node_id in best_first("embedding", QUERIES["embedding"], 10)[0]
    ]
    assert await store.get_nodes(["node-7"]) == [BY_ID["node-7"]]
    (node,) = await store.get_nodes(["node-7"], output_fields=[])
    assert node == bare(BY_ID["node-7"])


@lite
async def test_the_field_that_a_query_chooses_is_the_embedding_of_its_nodes(store, coloured):
    result = await coloured(store).query(query_for("image", output_fields=["image", "embedding"]))
    for node in result.nodes:
        original = BY_ID[node.node_id]
        assert node.embedding == original.metadata["image"]
        assert node.metadata["embedding"] == original.embedding


@lite
async def test_what_was_read_with_its_embeddings_can_be_written_again(store, make_store, coloured):
    fields = ["embedding", "image", "title"]
    nodes = await coloured(store).get_nodes(filters=EVERYTHING, output_fields=fields)
    other = coloured(make_store(dense_fields=FIELDS))
    await other.add(nodes)
    again = await other.get_nodes(filters=EVERYTHING, output_fields=fields)
    assert {node.node_id: node for node in again} == BY_ID


@lite
@pytest.mark.parametrize("make", [np.array, np.float32, tuple], ids=["float64", "float32", "tuple"])
async def test_embeddings_in_the_metadata_may_be_arrays(make_store, coloured, make):
    store = coloured(make_store(dense_fields={"image": FIELDS["image"]}))
    await store.add(make_nodes(3, image=lambda i: make(IMAGES[i])))
    nodes = await store.get_nodes(["node-0", "node-1", "node-2"], output_fields=["image"])
    assert [node.metadata["image"] for node in nodes] == IMAGES[:3]


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
async def test_hybrid_without_sparse_embeddings_says_what_enables_them(dense_only, coloured):
    with pytest.raises(QueryError, match="enable_sparse=True"):
        await coloured(dense_only).query(hybrid_query(), hybrid_fields=TWO)


# Bad nodes

BAD_IMAGES = [
    pytest.param({"image": [1.0, 2.0]}, "has 2 dimensions, the collection 4", id="short"),
    pytest.param({"image": []}, "has 0 dimensions", id="empty"),
    pytest.param({"image": [1.0, 2.0, 3.0, math.nan]}, "no finite", id="NaN"),
    pytest.param({"image": [1.0, 2.0, 3.0, 1e39]}, "no finite", id="too large"),
    pytest.param({"image": ["a", "b", "c", "d"]}, "no list of numbers", id="texts"),
    pytest.param({"image": "a picture"}, "no list of numbers", id="text"),
    pytest.param({"image": [IMAGES[0]]}, r"shape", id="nested"),
    pytest.param({"image": None}, "has no embedding 'image', a metadata key", id="None"),
    pytest.param({}, "has no embedding 'image', a metadata key", id="missing"),
]


@lite
@pytest.mark.parametrize(("metadata", "message"), BAD_IMAGES)
async def test_a_bad_embedding_is_named_and_nothing_is_written(store, coloured, metadata, message):
    nodes = make_collection("new")[:3]
    del nodes[1].metadata["image"]
    nodes[1].metadata.update(metadata)
    with pytest.raises(NodeError, match=message) as error:
        await coloured(store).add(nodes)
    ((node_id, problem),) = error.value.problems
    assert node_id == "new-1"
    assert "'image'" in problem
    assert await coloured(store).get_nodes([node.node_id for node in nodes]) == []


@lite
async def test_every_problem_of_every_field_is_named(store, coloured):
    nodes = make_collection("new")[:3]
    nodes[0].embedding = None
    nodes[0].metadata["image"] = [1.0]
    del nodes[2].metadata["title"]
    with pytest.raises(NodeError) as error:
        await coloured(store).add(nodes)
    assert [
        (node_id, "'image'" in text, "'title'" in text) for node_id, text in error.value.problems
    ] == [
        ("new-0", False, False),
        ("new-0", True, False),
        ("new-2", False, True),
    ]
    assert await coloured(store).get_nodes([node.node_id for node in nodes]) == []


# Changes


@lite
async def test_an_upsert_replaces_every_embedding(make_store, coloured):
    store = coloured(make_store(dense_fields=FIELDS, upsert_mode=True))
    await store.add(make_collection()[:4])
    changed = make_collection()[:2]
    for node in changed:
        node.metadata["image"] = IMAGES[20]
        node.metadata["title"] = TITLES[20]
    await store.add(changed)
    fields = ["embedding", "image", "title"]
    ids = [node.node_id for node in NODES[:4]]
    assert await store.get_nodes(ids, output_fields=fields) == [*changed, *NODES[2:4]]
    result = await store.query(query_for("image", query_embedding=IMAGES[20], similarity_top_k=2))
    assert sorted(result.ids) == ["node-0", "node-1"]
    assert result.similarities == [1.0, 1.0]


@lite
async def test_what_is_deleted_is_found_by_no_field(make_store, coloured):
    store = coloured(make_store(dense_fields=FIELDS))
    await store.add(make_collection())
    await store.delete("doc-0")
    await store.delete_nodes(["node-4"])
    for field in METRICS:
        result = await store.query(query_for(field, similarity_top_k=N))
        assert set(result.ids) == {f"node-{i}" for i in range(5, N)}
    await store.clear()
    assert (await store.query(query_for("image"))).ids == []


# Specifications


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["image"], r"dense_fields is \['image'\]; it must be a dictionary"),
        ("image", r"dense_fields is 'image'; it must be a dictionary"),
        ({"image": 4}, r"dense_fields\['image'\] is 4; it must be a dictionary"),
        ({"image": None}, r"dense_fields\['image'\] is None; it must be a dictionary"),
        ({"": {"dim": 4}}, r"dense_fields is ''; it must be a name"),
        ({7: {"dim": 4}}, r"dense_fields is 7; it must be a name"),
        ({"image": {"dim": 0}}, r"dense_fields\['image'\]: dim is 0; .* 1\.\.32768"),
        ({"image": {"dim": 32_769}}, r"dense_fields\['image'\]: dim is 32769"),
        ({"image": {"dim": "4"}}, r"dense_fields\['image'\]: dim is '4'"),
        ({"image": {"dim": True}}, r"dense_fields\['image'\]: dim is True"),
        ({"image": {"dim": 4, "metric_type": "HAMMING"}}, r"\['image'\] has metric_type='HAMMING'"),
        ({"image": {"dim": 4, "metric_type": "nope"}}, r"one of \['IP', 'L2', 'COSINE'\]"),
        ({"image": {"dim": 4, "type": DataType.VARCHAR}}, r"\['image'\] has type=.*FLOAT16_VECTOR"),
        ({"image": {"dim": 4, "type": "FLOAT_VECTOR"}}, r"\['image'\] has type='FLOAT_VECTOR'"),
        (
            {"image": {"dim": 4, "type": DataType.SPARSE_FLOAT_VECTOR}},
            r"\['image'\] has type=.*BINARY_VECTOR",
        ),
        (
            {"bits": {"dim": 12, "type": DataType.BINARY_VECTOR}},
            r"\['bits'\] has dim=12; .* multiple of 8",
        ),
        (
            {"bits": {"dim": 8, "type": DataType.BINARY_VECTOR, "metric_type": "IP"}},
            r"\['bits'\] has metric_type='IP'; a BINARY_VECTOR has one of \['HAMMING', 'JACCARD'\]",
        ),
        ({"embedding": {"dim": 4}}, "dense_fields is 'embedding', the name of embedding_field"),
        ({"text": {"dim": 4}}, "dense_fields is 'text', the name of text_key"),
        ({"id": {"dim": 4}}, "dense_fields is 'id', the name of id_field"),
        ({"doc_id": {"dim": 4}}, "dense_fields is 'doc_id', the name of doc_id_field"),
        ({"_node_content": {"dim": 4}}, "'_node_content', the name of the serialized node"),
    ],
)
def test_a_bad_specification_is_refused(fields, message):
    with pytest.raises(ConfigurationError, match=message):
        MilvusVectorStore(dense_fields=fields, dim=DIM)


def test_names_of_scalar_and_sparse_fields_are_taken():
    with pytest.raises(ConfigurationError, match="scalar_field_names is 'year', the name of dense"):
        MilvusVectorStore(
            dim=DIM,
            dense_fields={"year": {"dim": 4}},
            scalar_field_names=["year"],
            scalar_field_types=[DataType.INT64],
        )
    with pytest.raises(ConfigurationError, match="dense_fields is 'sparse_embedding', the name of"):
        MilvusVectorStore(
            dim=DIM, dense_fields={"sparse_embedding": {"dim": 4}}, enable_sparse=True
        )


@pytest.mark.parametrize("kind", [[], {}], ids=["list", "dict"])
def test_a_type_that_cannot_be_hashed_is_refused(kind):
    with pytest.raises(ConfigurationError, match=r"dense_fields\['image'\] has type="):
        MilvusVectorStore(dense_fields={"image": {"dim": 4, "type": kind}}, dim=DIM)


def test_a_specification_is_completed():
    store = MilvusVectorStore(
        dim=DIM,
        dense_fields={
            "image": {"dim": 4, "metric_type": "cosine", **HNSW},
            "bits": {"dim": 16, "type": DataType.BINARY_VECTOR},
        },
    )
    assert store.dense_fields == {
        "image": {"dim": 4, "type": DataType.FLOAT_VECTOR, "metric_type": "COSINE", **HNSW},
        "bits": {"dim": 16, "type": DataType.BINARY_VECTOR, "metric_type": "HAMMING"},
    }


def test_the_caller_s_specification_stays_as_it_was():
    given = copy.deepcopy(FIELDS)
    MilvusVectorStore(dim=DIM, dense_fields=given).dense_fields["image"]["dim"] = 9
    assert given == FIELDS


COPIES = {
    "pickle": lambda store: pickle.loads(pickle.dumps(store)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "model_copy": lambda store: store.model_copy(),
    "to_dict": lambda store: type(store).from_dict(store.to_dict()),
    "to_json": lambda store: type(store).from_json(store.to_json()),
    "json of to_dict": lambda store: type(store).from_dict(json.loads(json.dumps(store.to_dict()))),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_have_the_fields(how):
    kinds = [DataType.FLOAT16_VECTOR, DataType.INT8_VECTOR, DataType.BINARY_VECTOR]
    fields = {kind.name.lower(): {"dim": 8, "type": kind} for kind in kinds}
    store = MilvusVectorStore(dim=DIM, dense_fields={**FIELDS, **fields})
    copied = COPIES[how](store)
    assert copied.dense_fields == store.dense_fields
    assert {type(each["type"]) for each in copied.dense_fields.values()} == {DataType}


@lite
@pytest.mark.parametrize("how", COPIES)
async def test_copies_work(store, how):
    copied = COPIES[how](store)
    try:
        assert_same(
            await copied.aquery(query_for("image")), best_first("image", QUERIES["image"], 10)
        )
    finally:
        await copied.aclose()


# Existing collections


@lite
async def test_a_collection_without_the_field_is_refused(raw, make_store, coloured):
    name = collection_name("plain")
    await coloured(make_store(collection_name=name)).connect()
    other = coloured(make_store(collection_name=name, dense_fields={"image": {"dim": 4}}))
    with pytest.raises(CollectionError) as error:
        await other.connect()
    for part in ("'image'", "no such field", "FLOAT_VECTOR", "dense_fields", "['embedding']"):
        assert part in str(error.value)
    assert [f["name"] for f in raw.describe_collection(name)["fields"]].count("image") == 0


@lite
@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"image": {"dim": 5}}, ["dimension 4", "dense_fields={'image': {'dim': 4}}"]),
        (
            {"image": {"dim": 4, "type": DataType.FLOAT16_VECTOR}},
            ["'image'", "found FLOAT_VECTOR", "FLOAT16_VECTOR"],
        ),
        (
            {"image": {"dim": 8, "type": DataType.BINARY_VECTOR}},
            ["'image'", "found FLOAT_VECTOR", "BINARY_VECTOR"],
        ),
        ({"note": {"dim": 4}}, ["'note'", "found VARCHAR", "FLOAT_VECTOR"]),
        (
            {"image": {"dim": 4, "metric_type": "COSINE"}},
            ["metric L2", "dense_fields={'image': {'metric_type': 'L2'}}"],
        ),
    ],
    ids=["dimension", "type", "binary", "scalar", "metric"],
)
async def test_a_collection_whose_field_differs_is_refused(make_store, coloured, fields, parts):
    name = collection_name("other")
    scalar = {"scalar_field_names": ["note"], "scalar_field_types": [DataType.VARCHAR]}
    made = make_store(collection_name=name, dense_fields={"image": FIELDS["image"]}, **scalar)
    await coloured(made).connect()
    other = coloured(make_store(collection_name=name, dense_fields=fields))
    with pytest.raises(CollectionError) as error:
        await other.connect()
    assert all(part in str(error.value) for part in parts), str(error.value)


@lite
@pytest.mark.parametrize("settings", [{"metric_type": "COSINE"}, {"metric_type": "L2", "dim": 5}])
async def test_the_remedy_for_a_further_field_names_dense_fields(on_same_collection, settings):
    fields = {"image": {"dim": 4, **settings}}
    other = on_same_collection(dense_fields=fields)
    with pytest.raises(CollectionError) as error:
        other.connect()
    remedy = str(error.value).replace(other.collection_name, "")
    assert "dense_fields" in remedy
    assert "similarity_metric" not in remedy


@lite
async def test_the_collection_decides_where_no_dimension_is_given(on_same_collection, coloured):
    fields = {"image": {"metric_type": "L2"}, "title": {"metric_type": "COSINE"}}
    store = coloured(on_same_collection(dense_fields=fields, dim=None))
    assert_same(await store.query(query_for("image")), best_first("image", QUERIES["image"], 10))


@lite
async def test_a_new_collection_needs_the_dimension(make_store, coloured, raw):
    store = make_store(dense_fields={"image": {"metric_type": "L2"}})
    with pytest.raises(ConfigurationError, match="dimension of 'image'"):
        await coloured(store).connect()
    assert not raw.has_collection(store.collection_name)


@lite
async def test_a_store_that_knows_one_field_reads_and_does_not_write(on_same_collection, coloured):
    one = coloured(on_same_collection(dense_fields=None))
    assert_same(await one.query(query_for("title")), best_first("title", QUERIES["title"], 10))
    (node,) = await one.get_nodes(["node-1"], output_fields=["image"])
    assert node == bare(BY_ID["node-1"], image=IMAGES[1])
    with pytest.raises(CollectionError, match=r"\['image', 'title'\].*dense_fields"):
        await one.add(make_nodes(1))


@lite
async def test_a_collection_made_by_hand(make_store, coloured, raw):
    """Its rows hold no nodes, and one of its fields may be left out."""
    name = collection_name("by_hand")
    fields = [
        FieldSchema("pk", DataType.VARCHAR, max_length=64, is_primary=True),
        FieldSchema("text", DataType.VARCHAR, max_length=1000),
        FieldSchema("embedding", DataType.FLOAT_VECTOR, dim=DIM),
        FieldSchema("image", DataType.FLOAT_VECTOR, dim=IMAGE_DIM),
    ]
    raw.create_collection(name, schema=CollectionSchema(fields))
    store = coloured(make_store(collection_name=name, dense_fields={"image": FIELDS["image"]}))
    nodes = make_nodes(3, image=lambda i: IMAGES[i])
    for node in nodes:
        node.relationships = {}
    await store.add(nodes)
    result = await store.query(query_for("image", query_embedding=IMAGES[1], similarity_top_k=1))
    assert (result.ids, result.similarities) == (["node-1"], [1.0])
    assert result.nodes[0].metadata == {}
    (node,) = await store.get_nodes(["node-2"], output_fields=["image", "embedding"])
    assert (node.embedding, node.metadata) == (nodes[2].embedding, {"image": IMAGES[2]})


# Servers with one vector field


@standalone
async def test_a_server_with_one_vector_field_says_so(make_store, coloured, raw, engine):
    if "2.3" not in engine.version:
        pytest.skip(f"{engine.version} has several")
    store = make_store(dense_fields={"image": {"dim": 4}})
    with pytest.raises(
        ConfigurationError, match=r"\['embedding', 'image'\].*Milvus v?2\.3\.5.*2\.4"
    ):
        await coloured(store).connect()
    assert not raw.has_collection(store.collection_name)


@lite
@pytest.mark.parametrize(
    "kind",
    [
        DataType.FLOAT16_VECTOR,
        DataType.BFLOAT16_VECTOR,
        DataType.INT8_VECTOR,
        DataType.BINARY_VECTOR,
    ],
    ids=lambda kind: kind.name,
)
async def test_a_type_that_the_engine_lacks_is_refused(make_store, coloured, raw, kind):
    store = make_store(dense_fields={"small": {"dim": 8, "type": kind}})
    lacks = rf"field 'small' of type {kind.name}: Milvus Lite .* has no {kind.name} fields; Milvus"
    with pytest.raises(ConfigurationError, match=lacks):
        await coloured(store).connect()
    assert not raw.has_collection(store.collection_name)


# Bits

BITS_DIM = 32
BITS = np.random.default_rng(3).integers(0, 2, (60, BITS_DIM))
BITS_QUERY = np.random.default_rng(4).integers(0, 2, BITS_DIM)


def make_bits():
    nodes = make_nodes(len(BITS), year=lambda i: 1900 + i)
    for node, bits in zip(nodes, BITS, strict=True):
        node.embedding = bits.astype(float).tolist()
    return nodes


@pytest.fixture(scope="module", params=["HAMMING", "JACCARD"])
def bits(request, make_shared_store):
    spec = {"dim": BITS_DIM, "type": DataType.BINARY_VECTOR, "metric_type": request.param}
    store = make_shared_store(enable_dense=False, dim=None, dense_fields={"bits": spec})
    store.add(make_bits())
    return store


def bits_similarities(metric, query=BITS_QUERY):
    different = (query != BITS).sum(axis=1)
    if metric == "HAMMING":
        return 1 / (1 + different)
    return (BITS & query).sum(axis=1) / (BITS | query).sum(axis=1)


def metric_of(store):
    return store.dense_fields["bits"]["metric_type"]


def bits_query(**kwargs):
    embedding = BITS_QUERY.astype(float).tolist()
    return VectorStoreQuery(**{"query_embedding": embedding, "similarity_top_k": 60, **kwargs})


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
    nodes = await coloured(bits).get_nodes(filters=EVERYTHING, output_fields=["bits"])
    assert {node.node_id: node for node in nodes} == {node.node_id: node for node in make_bits()}
    assert (await coloured(bits).get_nodes(["node-3"]))[0].embedding is None


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
    writer = coloured(make_shared_store(enable_dense=False, dim=None, upsert_mode=True, **kwargs))
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


# Types that no engine here has, down to the messages


class FakeMilvus(grpc.GenericRpcHandler):
    """A server that takes any schema, keeps what is inserted and returns all of it.

    Attributes:
        requests: What was sent, by method.
    """

    METHODS: ClassVar = milvus_pb2.DESCRIPTOR.services_by_name["MilvusService"].methods_by_name

    def __init__(self):
        self.requests = defaultdict(list)
        self._server = grpc.server(ThreadPoolExecutor(4), handlers=(self,))
        self.uri = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, details):
        name = details.method.rpartition("/")[2]
        method = self.METHODS[name]
        answer = getattr(self, f"_{name}", lambda request: {})

        def handle(request, context):
            self.requests[name].append(request)
            return GetMessageClass(method.output_type)(**answer(request))

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )

    def _GetVersion(self, request):
        return {"version": "v2.6.0"}

    def _Connect(self, request):
        return {"identifier": 1, "server_info": {"build_tags": "v2.6.0"}}

    def _DescribeCollection(self, request):
        if not self.requests["CreateCollection"]:
            return {"status": {"code": 100, "error_code": 4, "reason": "collection not found"}}
        created = self.requests["CreateCollection"][0]
        schema = schema_pb2.CollectionSchema.FromString(created.schema)
        return {"schema": schema, "collection_name": created.collection_name}

    def _GetLoadState(self, request):
        return {"state": 3}

    def _Insert(self, request):
        return {"insert_cnt": request.num_rows, "succ_index": list(range(request.num_rows))}

    def _Query(self, request):
        return {"fields_data": self._columns(), "output_fields": list(request.output_fields)}

    def _Search(self, request):
        columns = self._columns()
        (ids,) = [field.scalars.string_data for field in columns if field.field_name == "id"]
        wanted = [field for field in columns if field.field_name in request.output_fields]
        results = {
            "num_queries": 1,
            "top_k": len(ids.data),
            "topks": [len(ids.data)],
            "scores": [1.0 - i / 10 for i in range(len(ids.data))],
            "ids": {"str_id": ids},
            "fields_data": wanted,
            "output_fields": list(request.output_fields),
            "primary_field_name": "id",
        }
        return {"results": results}

    _HybridSearch = _Search

    def _columns(self):
        return self.requests["Insert"][0].fields_data

    def sent_vectors(self):
        """Type and bytes of the vectors of each search, in the order of its legs."""
        legs = [*self.requests["Search"]]
        for request in self.requests["HybridSearch"]:
            legs += request.requests
        groups = [common_pb2.PlaceholderGroup.FromString(leg.placeholder_group) for leg in legs]
        return [
            (placeholder.type, list(placeholder.values))
            for group in groups
            for placeholder in group.placeholders
        ]

    def close(self):
        self._server.stop(None).wait()


SMALL = {
    DataType.FLOAT16_VECTOR: ([0.5, -1.25, 65504.0, 2.0**-24], "<4e", 102, "float16_vector"),
    DataType.BFLOAT16_VECTOR: ([0.5, -1.25, 2.0**100, 2.0**-126], None, 103, "bfloat16_vector"),
    DataType.INT8_VECTOR: ([-128, 127, 0, 5], "4b", 105, "int8_vector"),
    DataType.BINARY_VECTOR: ([1, 0, 0, 1, 1, 0, 0, 0], None, 100, "binary_vector"),
}


def small_bytes(kind, values):
    """What a message has of a vector, by other means than the package's."""
    if kind == DataType.BINARY_VECTOR:
        return bytes([int("".join(str(int(value)) for value in values), 2)])
    if kind == DataType.BFLOAT16_VECTOR:
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(SMALL[kind][1], *values)


@pytest.fixture
def fake_milvus():
    fake = FakeMilvus()
    yield fake
    fake.close()


@pytest.fixture(params=SMALL, ids=lambda kind: kind.name)
def small(request, fake_milvus):
    """A store on it with a field of a small type, and two nodes with that."""
    kind = request.param
    values = SMALL[kind][0]
    store = MilvusVectorStore(
        uri=fake_milvus.uri,
        # pymilvus remembers schemas by address, and a port may be used again.
        collection_name=collection_name("small"),
        dim=DIM,
        dense_fields={"small": {"dim": len(values), "type": kind}},
        enable_sparse=True,
        index_management=IndexManagement.NO_VALIDATION,  # pymilvus waits half a second for each
    )
    vectors = [values, values[::-1]]
    yield kind, store, make_nodes(2, small=lambda i: list(vectors[i])), vectors
    store.close()


async def test_vectors_of_small_types_are_sent_exactly(small, fake_milvus, coloured):
    kind, store, nodes, vectors = small
    await coloured(store).add(nodes)
    created = fake_milvus.requests["CreateCollection"][0]
    fields = {
        field.name: field for field in schema_pb2.CollectionSchema.FromString(created.schema).fields
    }
    assert fields["small"].data_type == kind
    assert {one.key: one.value for one in fields["small"].type_params} == {
        "dim": str(len(vectors[0]))
    }
    (request,) = fake_milvus.requests["Insert"]
    columns = {column.field_name: column for column in request.fields_data}
    assert (columns["small"].type, columns["small"].vectors.dim) == (kind, len(vectors[0]))
    sent = getattr(columns["small"].vectors, SMALL[kind][3])
    assert bytes(sent) == b"".join(small_bytes(kind, vector) for vector in vectors)
    assert "small" not in columns["_node_content"].scalars.string_data.data[0]


async def test_vectors_of_small_types_come_back_exactly(small, coloured):
    _, store, nodes, vectors = small
    store = coloured(store)
    await store.add(nodes)
    read = await store.get_nodes(["node-0", "node-1"], output_fields=["small", "embedding"])
    assert [node.metadata["small"] for node in read] == vectors
    assert [node.embedding for node in read] == [node.embedding for node in nodes]
    query = VectorStoreQuery(query_embedding=nodes[0].embedding, similarity_top_k=2)
    query.output_fields = ["small"]
    result = await store.query(query)
    assert [node.metadata["small"] for node in result.nodes] == vectors
    query = VectorStoreQuery(query_embedding=vectors[0], similarity_top_k=2)
    query.embedding_field, query.output_fields = "small", ["small"]
    result = await store.query(query)
    assert [node.embedding for node in result.nodes] == vectors


@pytest.mark.parametrize("mode", ["default", "hybrid", "mmr"])
async def test_queries_of_small_types_are_sent_exactly(small, fake_milvus, coloured, mode):
    kind, store, nodes, vectors = small
    await coloured(store).add(nodes)
    query = VectorStoreQuery(
        query_embedding=vectors[0],
        query_str="text",
        similarity_top_k=2,
        embedding_field="small",
        mode=mode,
    )
    result = await coloured(store).query(query)
    assert sorted(result.ids) == ["node-0", "node-1"]
    sent = fake_milvus.sent_vectors()
    assert sent[0] == (SMALL[kind][2], [small_bytes(kind, vectors[0])])
    assert len(sent) == (2 if mode == "hybrid" else 1)


def test_queries_of_small_types_share_a_request(small, fake_milvus):
    """Whatever each of them was given; the server's answer, to one only, does not matter."""
    kind, store, nodes, vectors = small
    store.add(nodes)
    queries = [
        VectorStoreQuery(query_embedding=vector, similarity_top_k=2, embedding_field="small")
        for vector in (vectors[0], np.array(vectors[1]), tuple(vectors[0]))
    ]
    with suppress(Exception):
        store.query_many(queries)
    expected = [small_bytes(kind, vector) for vector in (*vectors, vectors[0])]
    assert fake_milvus.sent_vectors() == [(SMALL[kind][2], expected)]


# Index types


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
        if raw.list_indexes(name):
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
        ({"index_type": "NONSENSE"}, "invalid index type: NONSENSE"),
        ({"index_type": "HNSW", "M": 5000, "efConstruction": 32}, "M out of range"),
        ({"index_type": "HNSW", "M": "x", "efConstruction": 32}, "M out of range"),
        ({"index_type": "HNSW"}, "efConstruction out of range"),
        ({"index_type": "IVF_FLAT", "nlist": 0}, "nlist out of range"),
        ({"index_type": "IVF_FLAT", "params": {"nlist": 0}}, "nlist out of range"),
        ({"index_type": "IVF_PQ", "nlist": 8, "m": 3}, "divided by `m`"),
        ({"index_type": "BIN_FLAT"}, "binary vector"),
        ({"index_type": "FLAT", "metric_type": "HAMMING"}, "metric type"),
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
