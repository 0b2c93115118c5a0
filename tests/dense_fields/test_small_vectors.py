"""Vectors of types that no engine here has, down to the messages."""

from __future__ import annotations

import struct
from contextlib import suppress

import numpy as np
import pytest
from llama_index.core.vector_stores.types import (
    VectorStoreQuery,
)
from pymilvus import DataType
from pymilvus.grpc_gen import schema_pb2

from llama_index_milvus_async import (
    IndexManagement,
    MilvusVectorStore,
)
from tests.fixtures.stores import DIM, collection_name, make_nodes

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
    (request,) = fake_milvus.requests["Upsert"]
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
