"""On Milvus Lite 2 nodes are written, read, replaced, changed and deleted as elsewhere."""

import pytest
from llama_index.core.schema import Document, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from tests.fixtures.stores import DIM, make_nodes

pytestmark = pytest.mark.engines("lite2")

METADATA = {
    "text": "a key that is a column",
    "id": 7,
    "nested": {"list": [1, 2.5, None, {"deep": True}]},
    "ü € 😀": 'quotes " and \\ and\nlines',
    "none": None,
}


@pytest.fixture
def store(make_store, coloured):
    return coloured(make_store())


def where(key, value, operator=FilterOperator.EQ):
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


async def test_nodes_come_back_equal(store):
    source = RelatedNodeInfo(node_id="doc", metadata={"a": 1})
    (vector,) = (node.embedding for node in make_nodes(1))
    nodes = [
        TextNode(
            id_="chunk",
            text="Line one.\nLine two.",
            metadata=METADATA,
            embedding=vector,
            relationships={NodeRelationship.SOURCE: source},
        ),
        Document(id_="whole", text="", metadata={}, embedding=vector),
    ]
    assert await store.add(nodes) == ["chunk", "whole"]
    stored = {node.node_id: node for node in await store.get_nodes(["chunk", "whole"])}
    assert [stored["chunk"], stored["whole"]] == nodes
    assert [node.node_id for node in await store.get_nodes(filters=where("id", 7))] == ["chunk"]


async def test_the_same_id_is_the_same_node(store):
    nodes = make_nodes(6, kind="old")
    await store.add(nodes)
    changed = [node.model_copy(update={"text": "new"}) for node in nodes[:3]]
    await store.add(changed)
    assert await store.count(MetadataFilters(filters=[])) == 6
    query = VectorStoreQuery(query_embedding=nodes[0].embedding, similarity_top_k=6)
    found = await store.query(query)
    assert sorted(found.ids) == sorted(node.node_id for node in nodes)
    assert sorted(node.get_content() for node in found.nodes).count("new") == 3


async def test_nodes_are_changed_and_deleted(store):
    nodes = make_nodes(10, number=lambda i: i)
    await store.add(nodes)
    assert await store.update_metadata(where("number", 3), set={"kind": "odd"}) == 1
    (changed,) = await store.get_nodes(filters=where("kind", "odd"))
    assert changed.node_id == "node-3"
    assert changed.embedding == nodes[3].embedding
    await store.delete("doc-0")  # nodes 0 to 3
    await store.delete_nodes(["node-4"])
    await store.delete_nodes(filters=where("number", 8, FilterOperator.GTE))
    left = await store.get_nodes(filters=MetadataFilters(filters=[]))
    assert sorted(node.node_id for node in left) == ["node-5", "node-6", "node-7"]
    assert await store.count(MetadataFilters(filters=[])) == 3
    await store.clear()
    assert await store.count(MetadataFilters(filters=[])) == 0


async def test_mmr_chooses_among_candidates(store):
    near, copy, other = [1.0] + [0.0] * (DIM - 1), [0.99] + [0.1] + [0.0] * (DIM - 2), [0.0, 1.0]
    vectors = {"near": near, "copy": copy, "other": other + [0.0] * (DIM - 2)}
    await store.add([TextNode(id_=k, text=k, embedding=v) for k, v in vectors.items()])
    query = VectorStoreQuery(
        query_embedding=near,
        similarity_top_k=2,
        mode=VectorStoreQueryMode.MMR,
        mmr_threshold=0.1,
    )
    assert (await store.query(query)).ids == ["near", "other"]
