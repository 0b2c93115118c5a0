"""A store without `dim`: the first nodes decide the dimensions of a new collection."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from pymilvus import DataType

from llama_index_milvus_async import ConfigurationError, NodeError
from llama_index_milvus_async._translation.first_nodes import DimensionReader
from llama_index_milvus_async._translation.settings import VectorField
from tests.fixtures.stores import DIM, collection_name, make_nodes
from tests.test_new_collections import SETTINGS

ALL = MetadataFilters(filters=[])
FIELDS = [
    VectorField("embedding", DataType.FLOAT_VECTOR, None, None, {}),
    VectorField("bits", DataType.BINARY_VECTOR, None, None, {}, in_dense_fields=True),
    VectorField("image", DataType.FLOAT_VECTOR, 4, None, {}, in_dense_fields=True),
]


def node(node_id: str, embedding: Any, **metadata: Any) -> TextNode:
    # Without the validation of the embedding, which other readers of LlamaIndex leave out too.
    made = TextNode(id_=node_id, text="text", metadata=metadata)
    made.__dict__["embedding"] = embedding
    return made


@pytest.mark.parametrize(
    ("embedding", "bits", "expected"),
    [
        ([1.0] * 3, b"\1\2", {"embedding": 3, "bits": 16}),
        (np.ones(3), [0, 1] * 4, {"embedding": 3, "bits": 8}),
        (None, b"\1", "it has no embedding"),
        ([1.0] * 3, None, "it has no embedding 'bits', a metadata key"),
        ([], b"\1", "its embedding has 0 dimensions, Milvus allows 1..32768"),
        ([1.0], [0, 1], "its embedding 'bits' has 2 dimensions, Milvus allows a multiple of 8"),
        ("1.0", b"\1", "its embedding is not a list of numbers"),
        (np.ones((2, 3)), b"\1", "its embedding is not a list of numbers"),
        ([1.0] * 4, b"\1", "its embedding has 4 dimensions, that of the first node 3"),
    ],
)
def test_dimensions_are_those_of_all_nodes(embedding: Any, bits: Any, expected: Any) -> None:
    reader = DimensionReader(replace(SETTINGS, dense=FIELDS))
    if isinstance(expected, str) and "first node" in expected:
        reader.read(node("first", [1.0] * 3, bits=b"\1"))
    reader.read(node("n", embedding, bits=bits))
    if not isinstance(expected, str):
        assert reader.dimensions() == expected
        return
    with pytest.raises(NodeError) as caught:
        reader.dimensions()
    assert caught.value.problems == [("n", expected)]


@pytest.mark.engines("lite")
async def test_nothing_is_there_until_the_first_nodes_make_it(
    make_store, coloured, raw, caplog
) -> None:
    name = collection_name()
    writer, reader = (make_store(dim=None, collection_name=name) for _ in range(2))
    query = VectorStoreQuery(query_embedding=[1.0] * DIM, similarity_top_k=2)
    listing = VectorStoreQuery(filters=MetadataFilters(filters=[MetadataFilter(key="a", value=1)]))
    with caplog.at_level(logging.WARNING):
        for store in (coloured(writer), coloured(reader)):
            await store.connect()
            assert (await store.query(query)).ids == (await store.query(listing)).ids == []
            assert (
                await store.query_many([query, query])
                == [VectorStoreQueryResult(nodes=[], similarities=[], ids=[])] * 2
            )
            assert await store.get_nodes(filters=ALL) == await store.list_documents() == []
            assert await store.count() == await store.update_metadata(ALL, set={"a": 1}) == 0
            await store.delete("doc")
            await store.delete_nodes(["node-0"])
            await store.clear()
        assert list(reader.iter_nodes()) == []
    [told, _] = [one for one in caplog.records if "there is no collection" in one.getMessage()]
    assert "Is the name misspelt?" in told.getMessage()
    with pytest.raises(ConfigurationError, match="dim is missing: a schema has the dimension"):
        writer.schema()
    assert "embedding" in [index.field_name for index in writer.index_params()]
    with pytest.raises(NodeError, match=r"'odd'.* has 3 dimensions, that of the first node 8"):
        await coloured(writer).add([*make_nodes(2), node("odd", [1.0] * 3)])
    assert not raw.has_collection(name)

    await coloured(writer).add(make_nodes(3))
    assert await coloured(reader).count() == await coloured(writer).count() == 3
    assert len((await coloured(reader).query(query)).ids) == 2
    with pytest.raises(NodeError, match="has 3 dimensions, the collection 8"):
        await coloured(writer).add([node("odd", [1.0] * 3)])


async def test_adds_at_the_same_time_make_one_collection(make_store, engine, raw) -> None:
    name = collection_name()
    # Each its own, as in processes that start together.
    stores = [make_store(dim=None, collection_name=name) for _ in range(3)]
    dims = (DIM, DIM, 4)
    outcomes = await asyncio.gather(
        *(
            store.async_add(make_nodes(2, dim=dim, prefix=f"{number}-{i}"))
            for number, (store, dim) in enumerate(zip(stores, dims, strict=True))
            for i in range(3)
        ),
        return_exceptions=True,
    )
    fields = raw.describe_collection(name)["fields"]
    [dim] = [field["params"]["dim"] for field in fields if field["name"] == "embedding"]
    written = [one for one in outcomes if not isinstance(one, BaseException)]
    assert {type(one) for one in outcomes if isinstance(one, BaseException)} == {NodeError}
    assert len(written) == (6 if dim == DIM else 3)
    assert await stores[0].acount(consistency_level="Strong") == 2 * len(written)


@pytest.mark.engines("lite")
async def test_overwrite_without_dim_drops_at_once_and_waits(make_store, coloured, raw) -> None:
    first = make_store()
    first.add(make_nodes(2))
    name = first.collection_name
    store = make_store(collection_name=name, dim=None, overwrite=True)
    await coloured(store).connect()
    assert not raw.has_collection(name)
    await coloured(store).add(make_nodes(1, dim=4))
    assert await coloured(store).count() == 1


@pytest.mark.engines("lite")
async def test_further_dense_fields_take_the_dimensions_of_the_first_nodes(
    make_store, coloured
) -> None:
    store = coloured(make_store(dim=None, dense_fields={"image": {"metric_type": "L2"}}))
    [one] = make_nodes(1)
    one.metadata["image"] = [1.0, 2.0, 3.0]
    with pytest.raises(NodeError, match="it has no embedding 'image', a metadata key"):
        await store.add(make_nodes(1))
    await store.add([one])
    query = VectorStoreQuery(
        query_embedding=[1.0, 2.0, 3.0], embedding_field="image", similarity_top_k=1
    )
    assert (await store.query(query)).ids == ["node-0"]
