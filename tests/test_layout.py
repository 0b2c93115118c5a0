"""The layout of a new collection: columns for metadata keys, their indexes, shards, replicas."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.types import VectorStoreQuery
from pymilvus import DataType, MilvusClient
from pymilvus.grpc_gen import milvus_pb2

from llama_index_milvus_async import (
    CollectionError,
    ConfigurationError,
    FilterOperatorFunction,
    MilvusVectorStore,
    NodeError,
    ScalarMetadataFilter,
    ScalarMetadataFilters,
    ServerError,
)
from llama_index_milvus_async._translation.engine import Engine as Version
from llama_index_milvus_async._translation.scalar_fields import check_scalar_fields, scalar_field
from llama_index_milvus_async._translation.scalar_indexes import scalar_indexes
from tests.fixtures.engines import Engine
from tests.fixtures.recorder import Recorder
from tests.fixtures.stores import DIM, MakeStore, collection_name
from tests.test_new_collections import SETTINGS

FIELDS: dict[str, Any] = {
    "tenant": {"type": DataType.VARCHAR, "max_length": 16, "nullable": True, "index": True},
    "level": {"type": DataType.INT32, "default": 7, "index": True},
    "price": {"type": DataType.DOUBLE, "nullable": True},
    "done": {"type": DataType.BOOL, "default": False, "index": True},
    "extra": {"type": DataType.JSON, "nullable": True},
    "tags": {
        "type": DataType.ARRAY,
        "element_type": DataType.VARCHAR,
        "max_length": 8,
        "max_capacity": 3,
        "nullable": True,
    },
}
FULL = {
    "tenant": "acme",
    "level": 1,
    "price": 2.5,
    "done": True,
    "extra": {"a": 1},
    "tags": ["x", "y"],
}
SETTINGS_OF_COLLECTION = {"num_shards": 2, "replica_number": 1, "description": "Laid out"}


def node(node_id: str, **metadata: Any) -> TextNode:
    return TextNode(id_=node_id, text="text", embedding=[1.0] * DIM, metadata=metadata)


@pytest.fixture(scope="module")
def laid_out(make_shared_store: MakeStore) -> MilvusVectorStore:
    store = make_shared_store(scalar_fields=FIELDS, **SETTINGS_OF_COLLECTION)
    store.add([node("full", **FULL)])
    return store


@pytest.fixture
def has_null(engine: Engine) -> bool:
    return engine.name != "standalone"


async def ids(store: Any, *filters: MetadataFilter) -> list[str]:
    nodes = await store.get_nodes(filters=MetadataFilters(filters=list(filters)))
    return sorted(one.node_id for one in nodes)


async def test_metadata_fills_columns_that_filters_compare(laid_out, coloured, raw) -> None:
    store = coloured(laid_out)
    types = {
        f["name"]: f["type"] for f in raw.describe_collection(laid_out.collection_name)["fields"]
    }
    assert {name: types[name] for name in FIELDS} == {n: f["type"] for n, f in FIELDS.items()}
    [found] = await store.get_nodes(node_ids=["full"])
    assert found.metadata == FULL
    for name in ("tenant", "level", "price"):
        assert "full" in await ids(store, MetadataFilter(key=name, value=FULL[name]))
    tagged = ScalarMetadataFilter(
        key="tags", value="y", operator=FilterOperatorFunction.ARRAY_CONTAINS
    )
    query = VectorStoreQuery(query_embedding=[1.0] * DIM, similarity_top_k=1)
    result = await store.query(query, milvus_scalar_filters=ScalarMetadataFilters(filters=[tagged]))
    assert result.ids == ["full"]


async def test_a_missing_value_is_null_or_the_default_or_refused(
    laid_out, coloured, has_null
) -> None:
    store = coloured(laid_out)
    if not has_null:
        with pytest.raises(
            NodeError, match=r"'tenant' of .* is missing: Milvus 2.3.5 has no .* 2.5"
        ):
            await store.add([node("bare")])
        return
    await store.add([node("bare")])
    [found] = await store.get_nodes(node_ids=["bare"])
    assert found.metadata == {}
    assert "bare" in await ids(store, MetadataFilter(key="level", value=7))
    empty = MetadataFilter(key="tenant", value=None, operator=FilterOperator.IS_EMPTY)
    assert await ids(store, empty) == ["bare"]


async def test_values_that_a_column_cannot_hold_are_refused(laid_out, coloured) -> None:
    store = coloured(laid_out)
    for key, value, problem in (
        ("tenant", "x" * 17, "takes 17 bytes, Milvus allows 16"),
        ("tags", ["a"] * 4, "has 4 elements, Milvus allows 3"),
        ("level", "high", "not an integer"),
    ):
        with pytest.raises(NodeError, match=f"{key!r}.* {problem}"):
            await store.add([node("bad", **{**FULL, key: value})])


@pytest.mark.in_order
def test_indexes_are_what_the_engine_has(laid_out, engine, raw) -> None:
    def index(name: str) -> Any:
        names = raw.list_indexes(laid_out.collection_name, field_name=name)
        return raw.describe_index(laid_out.collection_name, name)["index_type"] if names else None

    expected = {"tenant": "INVERTED", "level": "INVERTED", "done": "INVERTED", "doc_id": "INVERTED"}
    if engine.name == "standalone":
        expected = {"tenant": "Trie", "level": "STL_SORT", "done": None, "doc_id": "Trie"}
    assert {name: index(name) for name in expected} == expected
    assert index("price") is None


@pytest.mark.in_order
def test_an_existing_collection_is_compared(laid_out, make_shared_store, engine) -> None:
    """Makes an index that the collection did not have."""

    def open_with(**arguments: Any) -> MilvusVectorStore:
        name = laid_out.collection_name
        return make_shared_store(**{"collection_name": name, **arguments}).connect()

    open_with(scalar_fields=FIELDS, **SETTINGS_OF_COLLECTION)
    changed = [
        ("tenant", {"max_length": 17}, "max_length=16, asked for max_length=17. Pass 'max_length'"),
        ("tags", {"max_capacity": 4}, "max_capacity=3, asked for max_capacity=4"),
        ("level", {"type": DataType.INT64}, "found INT32, asked for INT64. Pass DataType.INT32"),
        ("price", {"index": "STL_SORT"} if engine.name == "standalone" else {}, None),
    ]
    if engine.name != "standalone":
        changed.append(("level", {"default": 8}, "default=7, asked for default=8"))
    for name, change, message in changed:
        fields = {name: {**FIELDS[name], **change}}
        if message is None:
            open_with(scalar_fields=fields)
            continue
        with pytest.raises(CollectionError, match=message):
            open_with(scalar_fields=fields)
    with pytest.raises(CollectionError, match=r"'other': found no such field.* Leave it out"):
        open_with(scalar_fields={"other": DataType.BOOL})
    if engine.name == "standalone":
        for argument, value in (("num_shards", 1), ("description", "Other"), ("replica_number", 2)):
            with pytest.raises(CollectionError, match=f"{argument}=.*, asked for {argument}="):
                open_with(**{argument: value})


@pytest.mark.engines("lite")
def test_points_in_time_go_into_columns(make_store) -> None:
    at = datetime(2025, 5, 1, 12, tzinfo=timezone.utc)
    fields = {
        "at": {"type": DataType.TIMESTAMPTZ, "nullable": True},
        "since": {"type": DataType.TIMESTAMPTZ, "default": at},
    }
    store = make_store(scalar_fields=fields)
    store.add([node("then", at=at), node("never")])
    with pytest.raises(NodeError, match=r"'at' .* is '2025-05-01T12:00:00', which is not a point"):
        store.add([node("somewhere", at=at.replace(tzinfo=None))])
    make_store(collection_name=store.collection_name, scalar_fields=fields).connect()
    fields["since"]["default"] = "2026-05-01T12:00:00Z"
    with pytest.raises(CollectionError, match="'since': found default="):
        make_store(collection_name=store.collection_name, scalar_fields=fields).connect()
    found = {one.node_id: one.metadata for one in store.get_nodes(node_ids=["then", "never"])}
    assert found["never"] == {}
    assert datetime.fromisoformat(found["then"]["at"]) == at


def test_schema_and_indexes_are_what_would_be_created(make_store, raw: MilvusClient) -> None:
    store = make_store(scalar_fields=FIELDS, **SETTINGS_OF_COLLECTION)
    name = store.collection_name
    schema, index_params = store.schema(), store.index_params()
    assert not raw.has_collection(name)
    raw.create_collection(name, schema=schema, num_shards=2, consistency_level="Strong")
    for index in index_params:
        single = MilvusClient.prepare_index_params()
        single.append(index)
        raw.create_index(name, single, sync=False)
    store.add([node("full", **FULL)])
    assert [one.metadata for one in store.get_nodes(node_ids=["full"])] == [FULL]


@pytest.mark.engines("standalone")
def test_shards_and_replicas_are_sent(recorder: Recorder, make_store) -> None:
    store = make_store(uri=recorder.uri, **SETTINGS_OF_COLLECTION)
    store.connect()
    [create] = [
        milvus_pb2.CreateCollectionRequest.FromString(call.body)
        for call in recorder.named("CreateCollection")
    ]
    assert create.shards_num == 2
    store.client.release_collection(store.collection_name)
    store.add([node("one")])
    store.count()
    loads = [
        milvus_pb2.LoadCollectionRequest.FromString(call.body)
        for call in recorder.named("LoadCollection")
    ]
    assert [load.replica_number for load in loads] == [1] * len(loads)
    assert len(loads) == 2
    store.client.release_collection(name := store.collection_name)
    with pytest.raises(ServerError, match="replica_number is more than the server has query nodes"):
        make_store(collection_name=name, replica_number=9).connect()


@pytest.mark.engines("standalone")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_shards": 17}, "num_shards is too large; the server allows 16"),
        (
            {"partition_key_field": "tenant", "num_partitions": 5_000},
            "num_partitions is too large; the server allows 4096",
        ),
        (
            {"scalar_fields": {f"f{i}": DataType.BOOL for i in range(70)}},
            "too many fields, each of scalar_fields one; the server allows 64",
        ),
    ],
)
def test_what_is_too_many_for_the_server_is_named(
    arguments: dict[str, Any], message: str, make_store, raw
) -> None:
    store = make_store(**arguments)
    with pytest.raises(ServerError, match=message):
        store.connect()
    assert not raw.has_collection(store.collection_name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["tenant"], "scalar_fields is .* it must be a dictionary"),
        ({"t": {}}, "has no type; allowed DataTypes are .* VARCHAR"),
        ({"t": {"type": "TEXTT"}}, "has type='TEXTT'; allowed"),
        ({"t": {"type": DataType.FLOAT_VECTOR}}, "has type=.*; allowed"),
        ({"t": {"type": DataType.ARRAY}}, "has no element_type"),
        ({"t": {"type": DataType.ARRAY, "element_type": DataType.JSON}}, "has element_type="),
        ({"t": {"type": DataType.INT64, "max_length": 5}}, "has max_length=5; only a VARCHAR"),
        ({"t": {"type": DataType.VARCHAR, "max_length": 0}}, "in 1..65535"),
        ({"t": {"type": DataType.VARCHAR, "max_capacity": 5}}, "only an ARRAY has one"),
        ({"t": {"type": DataType.VARCHAR, "nullable": 1}}, "it must be True or False"),
        ({"t": {"type": DataType.INT64, "default": "a"}}, "default that is 'a', which is not an"),
        ({"t": {"type": DataType.INT8, "default": 500}}, "default that is 500, out of range"),
        ({"t": {"type": DataType.JSON, "default": {}}}, "of type JSON has none"),
        ({"t": {"type": DataType.VARCHAR, "max_length": 2, "default": "abc"}}, "takes 3 bytes"),
        ({"t": {"type": DataType.VARCHAR, "indexed": True}}, "did you mean 'index'"),
        ({"t": {"type": DataType.VARCHAR, "index": 3}}, "has index=3; it must be True"),
        ({"t": {"type": DataType.VARCHAR, "index": {"params": 3}}}, "has index=.*; it must be"),
        ({"t": {"type": DataType.VARCHAR, "index": {"field_name": "u"}}}, "an index with 'field_"),
        ({"t": {"type": DataType.JSON, "index": True}}, "none as a whole; .* such as 't.key'"),
        ({"t": {"type": DataType.DOUBLE, "default": float("nan")}}, "nan, which is not a finite"),
        ({"t": {"type": DataType.TIMESTAMPTZ, "default": datetime(2025, 5, 1)}}, "with an offset"),
        (
            {"t": {"type": DataType.TIMESTAMPTZ, "default": "2025-13-01T00:00:00Z"}},
            "with an offset",
        ),
    ],
)
def test_settings_that_no_server_takes_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MilvusVectorStore(dim=DIM, scalar_fields=fields)


def test_a_key_is_named_once_and_copies_keep_the_settings() -> None:
    with pytest.raises(
        ConfigurationError, match="scalar_fields is 't', which is also scalar_field_"
    ):
        MilvusVectorStore(
            dim=DIM,
            scalar_field_names=["t"],
            scalar_field_types=[DataType.BOOL],
            scalar_fields={"t": DataType.BOOL},
        )
    store = MilvusVectorStore(dim=DIM, scalar_fields=FIELDS, **SETTINGS_OF_COLLECTION)
    for copied in (MilvusVectorStore.from_dict(store.to_dict()), store.model_copy()):
        assert copied.scalar_fields == store.scalar_fields
        assert copied.num_shards == 2


@pytest.mark.parametrize(
    ("version", "kind", "index", "expected"),
    [
        ("v2.3.5", DataType.VARCHAR, True, "Trie"),
        ("v2.3.5", DataType.FLOAT, True, "STL_SORT"),
        ("v2.3.5", DataType.BOOL, True, None),
        ("v2.4.0", DataType.BOOL, True, "INVERTED"),
        ("v2.4.0", DataType.ARRAY, True, None),
        ("v2.6.0", DataType.ARRAY, True, "INVERTED"),
        ("v2.6.6", DataType.TIMESTAMPTZ, True, "STL_SORT"),
        ("v2.6.0", DataType.VARCHAR, {"index_type": "ngram", "min_gram": 2}, "NGRAM"),
        ("milvus_lite-3.2.2", DataType.VARCHAR, True, "INVERTED"),
        ("milvus_lite-3.2.2", DataType.ARRAY, True, None),
        (
            "v2.3.5",
            DataType.VARCHAR,
            "INVERTED",
            "Milvus 2.3.5 has no INVERTED indexes; Milvus 2.4",
        ),
        ("v2.4.0", DataType.INT64, "BITMAP", "Milvus 2.4.0 has no such index.*; Milvus 2.5"),
        ("v2.6.0", DataType.FLOAT, "BITMAP", r"has one of \['STL_SORT', 'INVERTED', 'AUTOINDEX'\]"),
        ("milvus_lite-3.2.2", DataType.VARCHAR, "TRIE", "Lite 3.2.2 has only indexes of type INV"),
    ],
)
def test_each_engine_has_its_index_types(
    version: str, kind: DataType, index: Any, expected: str | None
) -> None:
    field: dict[str, Any] = {"type": kind, "index": index}
    if kind is DataType.ARRAY:
        field["element_type"] = DataType.INT64
    [(name, checked)] = check_scalar_fields({"f": field}).items()
    settings = replace(SETTINGS, scalar_fields={name: scalar_field(name, checked)})
    engine = Version.parse(version)
    if expected is None or " " not in expected:
        assert [one.type for one in scalar_indexes(settings, engine)] == [expected] * bool(expected)
        return
    with pytest.raises(ConfigurationError, match=expected):
        scalar_indexes(settings, engine)


@pytest.mark.engines("standalone")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scalar_fields": {"t": DataType.TIMESTAMPTZ}}, "'t'.* TIMESTAMPTZ: Milvus 2.3.5 has no"),
        ({"scalar_fields": {"t": {"type": "BOOL", "index": "BITMAP"}}}, "index='BITMAP': Milvus"),
    ],
)
def test_what_the_engine_lacks_is_refused_before_anything_is_created(
    arguments: dict[str, Any], message: str, make_store, raw
) -> None:
    store = make_store(collection_name=collection_name(), **arguments)
    with pytest.raises(ConfigurationError, match=message):
        store.connect()
    assert not raw.has_collection(store.collection_name)
