"""Further embeddings of a node have columns of their own, and come back as they were stored."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo
from llama_index.core.vector_stores.types import MetadataFilters
from pymilvus import DataType

from llama_index_milvus_async import (
    NodeError,
)
from tests.dense_fields.corpus import (
    BY_ID,
    EVERYTHING,
    FIELDS,
    IMAGE_DIM,
    IMAGES,
    METRICS,
    NODES,
    QUERIES,
    TITLES,
    N,
    bare,
    best_first,
    lite,
    make_collection,
    query_for,
)
from tests.fixtures.stores import DIM, make_nodes

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
async def test_a_hit_comes_without_its_embeddings(store, coloured):
    result = await coloured(store).query(query_for())
    assert result.nodes == [bare(BY_ID[node_id]) for node_id in result.ids]


@lite
async def test_a_node_is_read_with_every_embedding_unless_they_are_left_out(store, coloured):
    wanted = [BY_ID["node-5"], BY_ID["node-2"]]
    assert await coloured(store).get_nodes(["node-5", "node-2"]) == wanted
    nodes = await coloured(store).get_nodes(["node-5", "node-2"], include_embeddings=False)
    assert nodes == [bare(node) for node in wanted]


@lite
async def test_what_is_read_can_be_written(make_store, coloured):
    store = coloured(make_store(dense_fields=FIELDS))
    await store.add(make_collection())
    everything = MetadataFilters(filters=[])
    read = await store.get_nodes(filters=everything)
    await store.clear()
    await store.add(read)
    again = await store.get_nodes(filters=everything)
    assert {node.node_id: node for node in again} == BY_ID
    for field in ("embedding", "image", "title"):
        found = await store.query(query_for(field))
        assert found.ids == best_first(field, QUERIES[field], 10)[0]


@lite
async def test_the_caller_s_nodes_stay_as_they_were(make_store, coloured):
    store = coloured(make_store(dense_fields=FIELDS))
    nodes = make_collection()
    await store.add(nodes)
    assert nodes == make_collection()


@lite
async def test_named_embeddings_come_in_the_metadata_exactly(store, coloured):
    store = coloured(store)
    for fields in (["image"], ["title", "embedding", "image"]):
        (node,) = await store.get_nodes(["node-4"], output_fields=fields)
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
    (node,) = await store.get_nodes(["node-7"], include_embeddings=False, output_fields=[])
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


# Bad nodes

BAD_IMAGES = [
    pytest.param({"image": [1.0, 2.0]}, "has 2 dimensions, the collection 4", id="short"),
    pytest.param({"image": []}, "has 0 dimensions", id="empty"),
    pytest.param({"image": [1.0, 2.0, 3.0, math.nan]}, "not a finite", id="NaN"),
    pytest.param({"image": [1.0, 2.0, 3.0, 1e39]}, "not a finite", id="too large"),
    pytest.param({"image": ["a", "b", "c", "d"]}, "not a list of numbers", id="texts"),
    pytest.param({"image": "a picture"}, "not a list of numbers", id="text"),
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
    store = coloured(make_store(dense_fields=FIELDS))
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
