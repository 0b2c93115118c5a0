"""The hits of `_search_response` are those that pymilvus would have made of the same response."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.vector_stores.types import VectorStoreQuery
from pymilvus import DataType
from pymilvus.client.search_result import SearchResult
from pymilvus.grpc_gen import schema_pb2

from llama_index_milvus_async._wire import search_response as _search_response
from llama_index_milvus_async._wire.search_response import read
from tests.fixtures.stores import make_nodes

DIM = 3
SCALARS = {
    "text": DataType.VARCHAR,
    "year": DataType.INT64,
    "small": DataType.INT8,
    "score": DataType.DOUBLE,
    "weight": DataType.FLOAT,
    "open": DataType.BOOL,
}

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
row = st.fixed_dictionaries(
    {
        "id": text,
        "distance": finite,
        "text": text,
        "year": st.integers(-(2**63), 2**63 - 1),
        "small": st.integers(-128, 127),
        "score": st.floats(allow_nan=False, allow_infinity=False),
        "weight": finite,
        "open": st.booleans(),
        "embedding": st.lists(finite, min_size=DIM, max_size=DIM),
        "data": json_value,
        "$meta": st.dictionaries(text, json_value, max_size=4),
    }
)


def response(
    queries: list[list[dict[str, Any]]], output_fields: list[str], primary_key: str = "id"
) -> Any:
    """What a server answers: the rows of all queries in columns."""
    rows = [row for rows in queries for row in rows]
    data = schema_pb2.SearchResultData(
        num_queries=len(queries),
        topks=[len(rows) for rows in queries],
        scores=[row["distance"] for row in rows],
        output_fields=output_fields,
        primary_field_name=primary_key,
    )
    data.ids.str_id.data.extend([row["id"] for row in rows])
    for name, kind in SCALARS.items():
        column = data.fields_data.add(field_name=name, type=kind)
        values = getattr(column.scalars, _search_response.SCALARS[kind])
        values.data.extend([row[name] for row in rows])
    for name, dynamic in (("data", False), ("$meta", True)):
        column = data.fields_data.add(field_name=name, type=DataType.JSON, is_dynamic=dynamic)
        column.scalars.json_data.data.extend([orjson.dumps(row[name]) for row in rows])
    column = data.fields_data.add(field_name="embedding", type=DataType.FLOAT_VECTOR)
    column.vectors.dim = DIM
    for one in rows:
        column.vectors.float_vector.data.extend(one["embedding"])
    return data


def plain(queries: Any) -> list[list[dict[str, Any]]]:
    return [[{**hit, "entity": dict(hit["entity"])} for hit in hits] for hits in queries]


@given(
    queries=st.lists(st.lists(row, max_size=4), min_size=1, max_size=4),
    # Keys of the dynamic field are named like columns, or the field itself, or nothing is.
    named=st.sampled_from([[], ["page", "a"], ["$meta"]]),
    primary_key=st.sampled_from(["id", "pk", ""]),
)
@settings(deadline=None, max_examples=150)
def test_hits_equal_those_of_pymilvus(
    queries: list[list[dict[str, Any]]], named: list[str], primary_key: str
) -> None:
    data = response(queries, [*SCALARS, "data", "embedding", *named], primary_key)
    found = read(data, orjson.loads)
    assert found is not None
    assert plain(found) == plain(SearchResult(data))
    assert [len(hits) for hits in found] == [len(rows) for rows in queries]


ROW: dict[str, Any] = {
    "id": "a",
    "distance": 0.5,
    "text": "",
    "year": 1,
    "small": 1,
    "score": 0.5,
    "weight": 0.5,
    "open": True,
    "embedding": [1.0, 2.0, 3.0],
    "data": {},
    "$meta": {"page": 1},
}


def test_hits_are_a_sequence() -> None:
    rows = [{**ROW, "id": str(i)} for i in range(5)]
    found = read(response([rows[:2], rows[2:]], []), orjson.loads)
    assert found is not None
    hits = found[1]
    assert [hit["id"] for hit in hits] == ["2", "3", "4"]
    assert (hits[0]["id"], hits[-1]["id"]) == ("2", "4")
    assert [hit["id"] for hit in hits[1:]] == ["3", "4"]
    assert [hit["id"] for hit in reversed(hits)] == ["4", "3", "2"]
    with pytest.raises(IndexError):
        hits[3]


def test_the_size_is_about_that_of_the_response() -> None:
    data = response([[{**ROW, "text": "t" * 1_000, "$meta": {"key": "v" * 1_000}}] * 20], [])
    found = read(data, orjson.loads)
    assert found is not None
    assert 0.9 * data.ByteSize() < found.size < 1.1 * data.ByteSize()


def test_integer_ids() -> None:
    data = response([[ROW]], [])
    data.ids.int_id.data.append(7)
    found = read(data, orjson.loads)
    assert found is not None
    assert found[0][0]["id"] == SearchResult(data)[0][0]["id"] == 7


def with_nulls(data: Any) -> None:
    data.fields_data[0].valid_data.append(False)


def with_arrays(data: Any) -> None:
    data.fields_data.add(field_name="tags", type=DataType.ARRAY)


def with_a_short_column(data: Any) -> None:
    del data.fields_data[0].scalars.string_data.data[:]


def with_elements(data: Any) -> None:
    data.element_indices.data.append(3)


@pytest.mark.parametrize("special", [with_nulls, with_arrays, with_a_short_column, with_elements])
def test_what_it_was_not_written_for_is_left_to_pymilvus(special: Any) -> None:
    data = response([[ROW]], [])
    special(data)
    assert read(data, orjson.loads) is None


async def test_only_calls_that_ask_for_it_are_read_here(make_store, monkeypatch) -> None:
    """What the user searches through `aclient` comes as pymilvus' own classes."""
    store = make_store(similarity_metric="L2")
    nodes = make_nodes(5)
    await store.async_add(nodes)
    reads: list[Any] = []

    def counted(*args: Any) -> Any:
        reads.append(read(*args))
        return reads[-1]

    monkeypatch.setattr(_search_response, "read", counted)
    found = await store.aclient.search(
        store.collection_name,
        data=[nodes[2].embedding],
        limit=2,
        output_fields=["text"],
        consistency_level="Strong",
    )
    assert isinstance(found, SearchResult)
    assert reads == []

    query = VectorStoreQuery(query_embedding=nodes[2].embedding, similarity_top_k=2)
    result = await store.aquery(query, consistency_level="Strong")
    assert len(reads) == 1
    assert reads[0] is not None
    assert result.ids[0] == found[0][0]["id"] == nodes[2].node_id
    np.testing.assert_allclose(
        result.similarities, [1 / (1 + hit["distance"]) for hit in found[0]], rtol=1e-6
    )
