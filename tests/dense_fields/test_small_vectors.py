"""Vectors of types that no engine here has, down to the messages."""

from __future__ import annotations

import struct
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ClassVar

import grpc
import numpy as np
import pytest
from google.protobuf.message_factory import GetMessageClass
from llama_index.core.vector_stores.types import (
    VectorStoreQuery,
)
from pymilvus import DataType
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from llama_index_milvus_async import (
    IndexManagement,
    MilvusVectorStore,
)
from tests.fixtures.stores import DIM, collection_name, make_nodes


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

    def _Upsert(self, request):
        return {"upsert_cnt": request.num_rows, "succ_index": list(range(request.num_rows))}

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
        return self.requests["Upsert"][0].fields_data

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
