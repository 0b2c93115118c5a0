"""A column that Milvus partitions by."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.types import VectorStoreQuery
from pymilvus import DataType
from pymilvus.grpc_gen import schema_pb2

from llama_index_milvus_async import (
    CollectionError,
    ConfigurationError,
    MilvusVectorStore,
    NodeError,
    QueryError,
)
from tests.fixtures.engines import Engine
from tests.fixtures.fake_milvus import FakeMilvus
from tests.fixtures.stores import DIM, MakeStore, collection_name

QUERY = VectorStoreQuery(query_embedding=[1.0] * DIM, similarity_top_k=10)


def node(node_id: str, **metadata: Any) -> TextNode:
    return TextNode(id_=node_id, text="text", embedding=[1.0] * DIM, metadata=metadata)


def of(tenant: str) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key="tenant", value=tenant)])


@pytest.fixture(scope="module")
def keyed(make_shared_store: MakeStore, engine: Engine) -> MilvusVectorStore:
    return make_shared_store(
        partition_key_field="tenant", num_partitions=7, upsert_mode=engine.name != "standalone"
    )


async def test_each_tenant_finds_its_own_nodes(keyed, coloured, raw) -> None:
    store = coloured(keyed)
    await store.clear()
    tenants = [f"tenant {number}" for number in range(9)]
    await store.add([node(f"of {tenant}", tenant=tenant) for tenant in tenants])
    for tenant in tenants:
        query = VectorStoreQuery(
            query_embedding=[1.0] * DIM, similarity_top_k=10, filters=of(tenant)
        )
        assert (await store.query(query)).ids == [f"of {tenant}"]
    assert len((await store.query(QUERY)).ids) == len(tenants)
    fields = raw.describe_collection(keyed.collection_name)["fields"]
    assert [f["name"] for f in fields if f.get("is_partition_key")] == ["tenant"]


@pytest.mark.engines("lite")
async def test_a_node_that_moves_to_another_tenant_leaves_the_first(keyed, coloured) -> None:
    store = coloured(keyed)
    await store.clear()
    for tenant in ("first", "second"):
        await store.add([node("moves", tenant=tenant)])
    assert await store.count() == 1
    assert [one.node_id for one in await store.get_nodes(filters=of("second"))] == ["moves"]
    assert await store.get_nodes(filters=of("first")) == []
    await store.delete_nodes(["moves"])
    assert await store.count() == 0


async def test_a_node_needs_the_key_and_no_partition_is_named(keyed, coloured) -> None:
    store = coloured(keyed)
    for metadata in ({}, {"tenant": None}, {"tenant": 7}):
        with pytest.raises(NodeError, match="metadata key 'tenant' of column type VARCHAR is"):
            await store.add([node("none", **metadata)])
    chosen = "Milvus chooses the partition of a row by its 'tenant'"
    named = {"milvus_partition_name": "_default"}
    for operation, given, options in (
        ("add", [node("one", tenant="a")], named),
        ("delete", "doc", named),
        ("delete_nodes", ["one"], named),
        ("query", QUERY, {"milvus_partition_names": "_default"}),
        ("get_nodes", ["one"], {"milvus_partition_names": ["_default"]}),
        ("count", of("a"), {"milvus_partition_names": ["_default"]}),
    ):
        with pytest.raises(QueryError, match=chosen):
            await getattr(store, operation)(given, **options)


@pytest.mark.engines("standalone")
async def test_an_upsert_is_refused_where_it_would_hide_the_row(keyed, make_shared_store, coloured):
    name = keyed.connect().collection_name
    store = coloured(make_shared_store(collection_name=name, partition_key_field="tenant"))
    with pytest.raises(CollectionError, match=r"upsert_mode=False, .*: Milvus 2\.3\.5 puts"):
        await store.add([node("one", tenant="a")])
    keyed.add([node("to be changed", tenant="of changes")])
    with pytest.raises(CollectionError, match=r"Milvus 2\.3\.5 puts upserted rows"):
        store.store.update_metadata(of("of changes"), set={"a": 1})


def test_an_existing_collection_is_compared(keyed, make_shared_store, engine) -> None:
    name = keyed.connect().collection_name
    make_shared_store(collection_name=name, partition_key_field="tenant").connect()
    with pytest.raises(CollectionError, match=r"found 'tenant', asked for .* Pass partition_key_f"):
        make_shared_store(collection_name=name, partition_key_field="author").connect()
    if engine.name == "standalone":
        with pytest.raises(CollectionError, match=r"num_partitions=7, asked for num_partitions=8"):
            make_shared_store(
                collection_name=name, partition_key_field="tenant", num_partitions=8
            ).connect()
    with pytest.raises(ConfigurationError, match=r"isolation=True: .* Milvus 2\.5 and newer"):
        make_shared_store(
            collection_name=name, partition_key_field="tenant", partition_key_isolation=True
        ).connect()


def test_what_is_asked_for_is_sent(fake_milvus: FakeMilvus) -> None:
    """To a server that has all of it."""
    store = MilvusVectorStore(
        uri=fake_milvus.uri,
        collection_name=collection_name("asked"),
        dim=DIM,
        partition_key_field="tenant",
        num_partitions=7,
        partition_key_isolation=True,
        num_shards=3,
        description="One for each tenant",
        index_management="no_validation",
    )
    store.connect().close()
    [created] = fake_milvus.requests["CreateCollection"]
    schema = schema_pb2.CollectionSchema.FromString(created.schema)
    assert (created.shards_num, created.num_partitions) == (3, 7)
    assert {one.key: one.value for one in created.properties} == {"partitionkey.isolation": "true"}
    assert schema.description == "One for each tenant"
    assert [field.name for field in schema.fields if field.is_partition_key] == ["tenant"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_partitions": 4}, "num_partitions=4 has no effect without partition_key_field"),
        ({"partition_key_isolation": True}, "partition_key_isolation=True has no effect"),
        ({"partition_key_field": "text"}, "partition_key_field is 'text', which is also text_key"),
        (
            {"partition_key_field": "t", "scalar_fields": {"t": DataType.BOOL}},
            "'t', of type BOOL; Milvus partitions by a VARCHAR or an INT64",
        ),
        (
            {
                "partition_key_field": "t",
                "scalar_fields": {"t": {"type": DataType.VARCHAR, "nullable": True}},
            },
            "scalar_fields has 'nullable': every node needs a value",
        ),
        ({"partition_key_field": "t", "num_partitions": 0}, "num_partitions is 0; it must be"),
    ],
)
def test_what_cannot_work_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MilvusVectorStore(dim=DIM, **arguments)
