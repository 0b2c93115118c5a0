"""The requests of `_insert_message` are those that pymilvus would have made of the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymilvus import DataType
from pymilvus.client.entity_helper import sparse_rows_to_proto
from pymilvus.client.prepare import Prepare
from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from llama_index_milvus_async._wire import insert_message as _insert_message
from tests.fixtures.labels import label
from tests.fixtures.stores import make_nodes

DIM = 3
FIELDS: list[dict[str, Any]] = [
    {"name": "id", "type": DataType.VARCHAR, "params": {"max_length": 100}, "is_primary": True},
    {"name": "text", "type": DataType.VARCHAR, "params": {"max_length": 65_535}},
    {"name": "year", "type": DataType.INT64, "params": {}},
    {"name": "small", "type": DataType.INT8, "params": {}},
    {"name": "score", "type": DataType.DOUBLE, "params": {}},
    {"name": "weight", "type": DataType.FLOAT, "params": {}},
    {"name": "open", "type": DataType.BOOL, "params": {}},
    {"name": "embedding", "type": DataType.FLOAT_VECTOR, "params": {"dim": DIM}},
    {"name": "sparse", "type": DataType.SPARSE_FLOAT_VECTOR, "params": {}},
    {"name": "bm25", "type": DataType.SPARSE_FLOAT_VECTOR, "is_function_output": True},
]
SCHEMA = {"fields": FIELDS, "enable_dynamic_field": True}

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
row = st.builds(
    lambda metadata, own: {**metadata, **own},
    st.dictionaries(text.filter(lambda key: key != "$meta"), json_value, max_size=4),
    st.fixed_dictionaries(
        {
            "id": text,
            "text": text,
            "year": st.integers(-(2**63), 2**63 - 1),
            "small": st.integers(-128, 127),
            "score": st.floats(allow_nan=False, allow_infinity=False),
            "weight": finite,
            "open": st.booleans(),
            "embedding": st.lists(finite, min_size=DIM, max_size=DIM),
            "sparse": st.dictionaries(st.integers(0, 2**32 - 2), finite, min_size=1, max_size=3),
        }
    ),
)


def build(message: Any, rows: list[dict[str, Any]], schema: Any = SCHEMA) -> Any:
    parts = (message, schema_pb2.FieldData, orjson.dumps, sparse_rows_to_proto)
    builder = _insert_message._Builder(*parts)
    return builder.build("books", rows, "p", schema, 7)


def expected(message: Any, rows: list[dict[str, Any]]) -> Any:
    prepare = {
        milvus_pb2.InsertRequest: Prepare.row_insert_param,
        milvus_pb2.UpsertRequest: Prepare.row_upsert_param,
    }[message]
    options = {"enable_dynamic": True, "schema_timestamp": 7}
    return prepare("books", rows, "p", FIELDS, [], **options)


messages = pytest.mark.parametrize(
    "message", [milvus_pb2.InsertRequest, milvus_pb2.UpsertRequest], ids=["insert", "upsert"]
)


@messages
@given(rows=st.lists(row, min_size=1, max_size=5))
@settings(deadline=None, max_examples=100)
def test_a_message_equals_the_one_of_pymilvus(message: Any, rows: list[dict[str, Any]]) -> None:
    assert build(message, rows) == expected(message, rows)


@messages
def test_arrays_are_packed_like_lists(message: Any) -> None:
    plain = {"id": "a", "text": "", "year": 1, "small": 1, "score": 0.5, "weight": 0.5}
    rows = [{**plain, "open": True, "embedding": [1.0, 2.0, 3.0], "sparse": {1: 0.5}}]
    arrays = [{**rows[0], "embedding": np.array([1, 2, 3], dtype=np.float32)}]
    assert build(message, arrays) == expected(message, rows)


GOOD: dict[str, Any] = {
    "id": "a",
    "text": "",
    "year": 1,
    "small": 1,
    "score": 0.5,
    "weight": 0.5,
    "open": True,
    "embedding": [1.0, 2.0, 3.0],
    "sparse": {7: 0.5},
}


@pytest.mark.parametrize(
    "change",
    [
        {"embedding": [1.0, 2.0]},
        {"embedding": None},
        {"sparse": {-1: 0.5}},
        {"sparse": None},
        {"year": "1999"},
        {"text": None},
        {"metadata": object()},
    ],
    ids=label,
)
def test_what_it_cannot_pack_is_left_to_pymilvus(change: dict[str, Any]) -> None:
    assert build(milvus_pb2.InsertRequest, [GOOD, {**GOOD, **change}]) is None


def test_a_missing_column_is_left_to_pymilvus() -> None:
    rows = [{key: value for key, value in GOOD.items() if key != "year"}]
    assert build(milvus_pb2.InsertRequest, rows) is None


@pytest.mark.parametrize(
    "field",
    [
        {"name": "n", "type": DataType.INT64, "nullable": True},
        {"name": "d", "type": DataType.INT64, "default_value": 3},
        {"name": "a", "type": DataType.INT64, "auto_id": True},
        {"name": "tags", "type": DataType.ARRAY, "params": {}},
        {"name": "half", "type": DataType.FLOAT16_VECTOR, "params": {"dim": 3}},
    ],
    ids=lambda field: field["name"],
)
def test_schemas_of_other_kinds_are_left_to_pymilvus(field: dict[str, Any]) -> None:
    schema = {**SCHEMA, "fields": [*FIELDS, field]}
    assert build(milvus_pb2.InsertRequest, [{**GOOD, field["name"]: 1}], schema) is None


async def test_only_calls_with_checked_rows_are_packed_here(make_store) -> None:
    """What the user sends through `aclient` is pymilvus' own business, and so are its errors."""
    store = make_store()
    await store.aconnect()
    calls: list[int] = []
    handler = store.aclient._handler
    packed = handler._prepare_row_insert_request

    async def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(bool(kwargs.get(_insert_message.CHECKED_ROWS)))
        return await packed(*args, **kwargs)

    handler._prepare_row_insert_request = counted
    await store.async_add(make_nodes(3))
    row = {"id": "own", "doc_id": "d", "text": "t", "embedding": [1.0] * 8}
    row |= {"_node_content": "", "_node_type": ""}
    await store.aclient.insert(store.collection_name, [row])
    assert calls == [1, 0]
    assert len(await store.aget_nodes(["node-0", "node-1", "node-2"])) == 3
