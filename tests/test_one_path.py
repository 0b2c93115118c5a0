"""One path through each operation on Milvus Lite, for `make check`; the rest is elsewhere."""

import pytest
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from tests.fixtures.stores import make_nodes

pytestmark = [pytest.mark.path, pytest.mark.engines("lite")]

MODES = (
    VectorStoreQueryMode.DEFAULT,
    VectorStoreQueryMode.TEXT_SEARCH,
    VectorStoreQueryMode.SPARSE,
    VectorStoreQueryMode.HYBRID,
    VectorStoreQueryMode.MMR,
)


def query_for(node, mode=VectorStoreQueryMode.DEFAULT, **arguments):
    return VectorStoreQuery(
        query_embedding=node.embedding,
        query_str=node.text,
        mode=mode,
        similarity_top_k=2,
        sparse_top_k=2,
        hybrid_top_k=2,
        **arguments,
    )


async def test_a_store_is_filled_asked_and_emptied(make_store, coloured):
    store = coloured(make_store(enable_sparse=True))
    nodes = make_nodes(8, year=lambda i: 2000 + i)
    ids = [node.node_id for node in nodes]
    await store.connect()
    assert await store.add(nodes) == ids

    for mode in MODES:
        result = await store.query(query_for(nodes[3], mode))
        assert result.ids[0] == "node-3", mode
        assert result.nodes[0].metadata == {"year": 2003}
    late = MetadataFilters(filters=[MetadataFilter(key="year", value=2006, operator=">=")])
    assert set((await store.query(query_for(nodes[0], filters=late))).ids) == {"node-6", "node-7"}
    results = await store.query_many([query_for(node) for node in nodes])
    assert [result.ids[0] for result in results] == ids

    assert [node.node_id for node in await store.get_nodes(["node-5", "node-1"])] == [
        "node-5",
        "node-1",
    ]
    assert len(await store.get_nodes(filters=late)) == 2
    await store.delete("doc-0")
    await store.delete_nodes(["node-4"])
    await store.delete_nodes(filters=late)
    everything = MetadataFilters(filters=[])
    assert [node.node_id for node in await store.get_nodes(filters=everything)] == ["node-5"]
    await store.clear()
    assert await store.get_nodes(filters=everything) == []
    await store.close()


async def test_a_store_on_a_file_works(lite_path, coloured):
    pytest.importorskip("milvus_lite")
    from llama_index_milvus_async import MilvusVectorStore

    store = coloured(MilvusVectorStore(uri=lite_path, dim=8, consistency_level="Strong"))
    nodes = make_nodes(4)
    await store.add(nodes)
    assert (await store.query(query_for(nodes[2]))).ids[0] == "node-2"
    await store.close()
