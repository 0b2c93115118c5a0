"""`_wire.responses` reads what pymilvus reads of the same response, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymilvus import DataType
from pymilvus.client import entity_helper
from pymilvus.client.search_result import SearchResult
from pymilvus.client.types import HybridExtraList
from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from llama_index_milvus_async._rpc import Hits
from llama_index_milvus_async._wire import responses
from llama_index_milvus_async.errors import RowError

DIM = 8

int64 = st.integers(-(2**63), 2**63 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_value = st.recursive(
    st.none() | st.booleans() | int64 | finite | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)

#: Where the values are, and what they are.
SCALARS: dict[DataType, tuple[str, st.SearchStrategy[Any]]] = {
    DataType.BOOL: ("bool_data", st.booleans()),
    DataType.INT8: ("int_data", st.integers(-128, 127)),
    DataType.INT16: ("int_data", st.integers(-(2**15), 2**15 - 1)),
    DataType.INT32: ("int_data", st.integers(-(2**31), 2**31 - 1)),
    DataType.INT64: ("long_data", int64),
    DataType.FLOAT: ("float_data", finite),
    DataType.DOUBLE: ("double_data", st.floats(allow_nan=False, allow_infinity=False)),
    DataType.VARCHAR: ("string_data", text),
    DataType.TIMESTAMPTZ: ("string_data", st.just("2025-05-01T23:59:59+08:00")),
}
ELEMENTS = [kind for kind in SCALARS if kind != DataType.TIMESTAMPTZ]
VECTOR_BYTES = {
    DataType.FLOAT_VECTOR: 4 * DIM,
    DataType.FLOAT16_VECTOR: 2 * DIM,
    DataType.BFLOAT16_VECTOR: 2 * DIM,
    DataType.INT8_VECTOR: DIM,
    DataType.BINARY_VECTOR: DIM // 8,
}
DENSE = {
    DataType.FLOAT_VECTOR: st.lists(finite, min_size=DIM, max_size=DIM).map(
        lambda numbers: np.array(numbers, dtype="<f4").tobytes()
    ),
    **{
        kind: st.binary(min_size=width, max_size=width)
        for kind, width in VECTOR_BYTES.items()
        if kind != DataType.FLOAT_VECTOR
    },
}
sparse = st.dictionaries(st.integers(0, 2**32 - 2), finite, max_size=3)


class Column:
    """A column of a response."""

    def __init__(
        self,
        name: str,
        kind: DataType,
        values: st.SearchStrategy[Any],
        element_type: DataType | None = None,
        *,
        nullable: bool = False,
    ) -> None:
        self.name = name
        self.kind = kind
        self.element_type = element_type
        self.nullable = nullable
        self.values = st.none() | values if nullable else values

    def message(self, values: Sequence[Any], *, compact: bool = True) -> Any:
        """What a server answers.

        Args:
            values: For each row its value, as a row of `_rpc.Rows` has it.
            compact: Whether nulls have no place among the values, rather than one with any value.
        """
        field = schema_pb2.FieldData(field_name=self.name, type=self.kind)
        field.is_dynamic = self.name == "$meta"
        if self.nullable:
            field.valid_data.extend([value is not None for value in values])
            if self.kind in DENSE or self.kind == DataType.SPARSE_FLOAT_VECTOR or compact:
                values = [value for value in values if value is not None]
        if self.kind in SCALARS:
            place, _ = SCALARS[self.kind]
            data = getattr(field.scalars, place).data
            nothing = {"bool_data": False, "string_data": ""}.get(place, 0)
            data.extend([nothing if one is None else one for one in values])
        elif self.kind == DataType.JSON:
            field.scalars.json_data.data.extend(
                b"" if one is None and self.nullable else orjson.dumps(one) for one in values
            )
        elif self.kind == DataType.ARRAY:
            assert self.element_type is not None
            field.scalars.array_data.element_type = self.element_type
            for value in values:
                place, _ = SCALARS[self.element_type]
                getattr(field.scalars.array_data.data.add(), place).data.extend(value or [])
        elif self.kind == DataType.SPARSE_FLOAT_VECTOR:
            field.vectors.sparse_float_vector.contents.extend(packed(one) for one in values)
        else:
            field.vectors.dim = DIM
            data = b"".join(values)
            if self.kind == DataType.FLOAT_VECTOR:
                field.vectors.float_vector.data.extend(np.frombuffer(data, "<f4"))
            else:
                setattr(field.vectors, self.kind.name.lower(), data)
        return field


def packed(vector: dict[int, float]) -> bytes:
    dtype = [("index", "<u4"), ("value", "<f4")]
    return np.array(sorted(vector.items()), dtype=dtype).tobytes()


PLAIN = [
    *(Column(kind.name, kind, values) for kind, (_, values) in SCALARS.items()),
    Column("JSON", DataType.JSON, json_value),
    *(
        Column(f"ARRAY_{kind.name}", DataType.ARRAY, st.lists(SCALARS[kind][1], max_size=3), kind)
        for kind in ELEMENTS
    ),
    *(Column(kind.name, kind, values) for kind, values in DENSE.items()),
    Column("SPARSE", DataType.SPARSE_FLOAT_VECTOR, sparse),
]
NULLABLE = [
    Column(f"maybe_{one.name}", one.kind, one.values, one.element_type, nullable=True)
    for one in PLAIN
]
META = Column(
    "$meta",
    DataType.JSON,
    # Also keys like those of columns that were not asked for.
    st.dictionaries(st.sampled_from(["page", "a", "id", "ü", "$meta"]) | text, json_value),
)
NAMES = {one.name for one in [*PLAIN, *NULLABLE]}
COLUMNS = [*PLAIN, *NULLABLE, META]

row = st.fixed_dictionaries({one.name: one.values for one in COLUMNS}).map(
    lambda row: {
        **row,
        "$meta": {key: value for key, value in row["$meta"].items() if key not in NAMES},
    }
)
#: Names of the dynamic field that are asked for: keys of it, itself, or none.
asked = st.sampled_from([[], ["page", "a"], ["$meta"]])


def messages(rows: Sequence[dict[str, Any]], *, compact: bool = False) -> list[Any]:
    return [one.message([row[one.name] for row in rows], compact=compact) for one in COLUMNS]


def flat(row: dict[str, Any], asked: Sequence[str]) -> dict[str, Any]:
    """A row as it should be read."""
    dynamic = row["$meta"]
    if asked and asked != ["$meta"]:
        dynamic = {key: value for key, value in dynamic.items() if key in asked}
    return {**{key: value for key, value in row.items() if key != "$meta"}, **dynamic}


def of_pymilvus(row: dict[str, Any]) -> dict[str, Any]:
    """A row of pymilvus, with dense vectors as bytes."""
    result = dict(row)
    for column in COLUMNS:
        value = result.get(column.name)
        if value is None or column.name not in NAMES or column.kind not in DENSE:
            continue
        if column.kind == DataType.FLOAT_VECTOR:
            value = np.asarray(value, dtype="<f4").tobytes()
        result[column.name] = value[0] if isinstance(value, list) else value
    return result


# Rows


def query_results(rows: Sequence[dict[str, Any]], asked: Sequence[str], *, compact: bool) -> Any:
    return milvus_pb2.QueryResults(
        fields_data=messages(rows, compact=compact), output_fields=[*NAMES, *asked]
    )


@given(rows=st.lists(row, max_size=4), asked=asked)
@settings(max_examples=25)
def test_rows_equal_those_of_pymilvus(rows: list[dict[str, Any]], asked: list[str]) -> None:
    response = query_results(rows, asked, compact=False)
    _, dynamic_fields = entity_helper.extract_dynamic_field_from_result(response)
    theirs: list[dict[str, Any]] = [{} for _ in rows]
    lazy = [
        field
        for field in response.fields_data
        if entity_helper.extract_row_data_from_fields_data_v2(field, theirs)
    ]
    of_theirs = list(HybridExtraList(lazy, theirs, dynamic_fields=dynamic_fields))
    read = list(responses.rows(response))
    assert read == [of_pymilvus(one) for one in of_theirs]
    assert read == [flat(one, asked) for one in rows]


@given(rows=st.lists(row, max_size=4), asked=asked)
@settings(max_examples=25)
def test_rows_in_which_nulls_have_no_values(rows: list[dict[str, Any]], asked: list[str]) -> None:
    """So servers up to 2.4 answer, and pymilvus cannot read."""
    read = responses.rows(query_results(rows, asked, compact=True))
    assert list(read) == [flat(one, asked) for one in rows]


LEAST: dict[str, Any] = {"id": "a", "n": None, "$meta": {"page": 1}}


def small(rows: Sequence[dict[str, Any]], **kwargs: Any) -> Any:
    """A response of three columns."""
    columns = [
        Column("id", DataType.VARCHAR, text),
        Column("n", DataType.INT64, int64, nullable=True),
        META,
    ]
    fields = [one.message([row[one.name] for row in rows], **kwargs) for one in columns]
    return milvus_pb2.QueryResults(fields_data=fields, output_fields=["id", "n", "$meta"])


def test_rows_are_a_sequence() -> None:
    read = responses.rows(small([{**LEAST, "id": str(i)} for i in range(5)]))
    assert len(read) == 5
    assert (read[0]["id"], read[-1]["id"]) == ("0", "4")
    assert [one["id"] for one in read[1:3]] == ["1", "2"]
    assert [one["id"] for one in reversed(read)] == ["4", "3", "2", "1", "0"]
    with pytest.raises(IndexError):
        read[5]


def test_no_rows() -> None:
    assert list(responses.rows(small([]))) == []
    assert list(responses.rows(milvus_pb2.QueryResults())) == []


def test_a_column_that_was_added_later_goes_before_a_key_of_its_name() -> None:
    """A filter sees the column."""
    read = responses.rows(small([{"id": "a", "n": None, "$meta": {"n": 7, "id": "b", "k": 1}}]))
    assert read[0] == {"id": "a", "n": None, "k": 1}


@pytest.mark.parametrize("data", [b"{", b"\xff", b'{"a": NaN}', b'{"a": "\xed\xa0\x80"}'])
@pytest.mark.parametrize("name", ["$meta", "JSON"])
def test_json_that_cannot_be_read(name: str, data: bytes) -> None:
    """Only the row that has it fails."""
    response = milvus_pb2.QueryResults()
    field = response.fields_data.add(field_name=name, type=DataType.JSON)
    field.is_dynamic = name == "$meta"
    field.scalars.json_data.data.extend([b'{"a": 1}', data])
    read = responses.rows(response)
    assert read[0] == ({"a": 1} if name == "$meta" else {"JSON": {"a": 1}})
    with pytest.raises(RowError, match="a row cannot be read"):
        read[1]


def test_a_sparse_vector_that_cannot_be_read() -> None:
    response = milvus_pb2.QueryResults()
    field = response.fields_data.add(field_name="sparse", type=DataType.SPARSE_FLOAT_VECTOR)
    field.vectors.sparse_float_vector.contents.extend([b"", b"1234567"])
    read = responses.rows(response)
    assert read[0] == {"sparse": {}}
    with pytest.raises(RowError, match="a row cannot be read"):
        read[1]


@pytest.mark.parametrize("column", range(3))
def test_columns_of_different_lengths(column: int) -> None:
    response = small([LEAST, LEAST])
    if column == 1:
        response.fields_data[1].valid_data.append(True)
        response.fields_data[1].scalars.long_data.data.append(1)
    else:
        scalars = response.fields_data[column].scalars
        getattr(scalars, scalars.WhichOneof("data")).data.pop()
    with pytest.raises(RowError, match=r"columns of different lengths, \[\d, \d\]"):
        responses.rows(response)


@pytest.mark.parametrize("values", [1, 4])
@pytest.mark.parametrize("kind", [DataType.INT64, DataType.FLOAT_VECTOR, DataType.JSON])
def test_neither_a_value_for_each_row_nor_for_each_that_has_one(
    kind: DataType, values: int
) -> None:
    response = milvus_pb2.QueryResults()
    field = response.fields_data.add(field_name="n", type=kind, valid_data=[True, False, True])
    if kind == DataType.INT64:
        field.scalars.long_data.data.extend([0] * values)
    elif kind == DataType.JSON:
        field.scalars.json_data.data.extend([b"1"] * values)
    else:
        field.vectors.dim = DIM
        field.vectors.float_vector.data.extend([0.0] * DIM * values)
    with pytest.raises(RowError, match=f"{values} values for 2 rows"):
        responses.rows(response)


def test_structures_and_arrays_of_vectors_are_refused() -> None:
    response = milvus_pb2.QueryResults()
    field = response.fields_data.add(field_name="chunks")
    field.struct_arrays.fields.add(field_name="text")
    with pytest.raises(RowError, match=r"'chunks' .*struct_arrays.*output_fields"):
        responses.rows(response)
    field.ClearField("struct_arrays")
    field.vectors.vector_array.dim = DIM
    with pytest.raises(RowError, match="vector_array"):
        responses.rows(response)


def test_scalars_of_types_that_the_package_does_not_know() -> None:
    """Where the values are is read from the message, whatever their type is called."""
    response = milvus_pb2.QueryResults()
    shape = response.fields_data.add(field_name="shape", type=DataType.GEOMETRY)
    shape.scalars.geometry_data.data.extend([b"\0"])
    new = schema_pb2.FieldData.FromString(
        b"\x08\xe7\x07" + schema_pb2.FieldData(field_name="new").SerializeToString()
    )
    assert new.type == 999
    new.scalars.string_data.data.append("x")
    response.fields_data.append(new)
    assert list(responses.rows(response)) == [{"shape": b"\0", "new": "x"}]


# Hits


def search_results(
    searches: Sequence[Sequence[dict[str, Any]]],
    asked: Sequence[str] = (),
    fields: list[Any] | None = None,
    ids: Sequence[str | int] | None = None,
) -> Any:
    rows = [row for rows in searches for row in rows]
    results = schema_pb2.SearchResultData(
        num_queries=len(searches),
        topks=[len(rows) for rows in searches],
        scores=[number / 4 for number in range(len(rows))],
        output_fields=[*NAMES, *asked],
        primary_field_name="id",
        fields_data=messages(rows) if fields is None else fields,
    )
    ids = [f"id-{number}" for number in range(len(rows))] if ids is None else ids
    if ids and isinstance(ids[0], int):
        results.ids.int_id.data.extend(ids)
    else:
        results.ids.str_id.data.extend(ids)
    return milvus_pb2.SearchResults(results=results)


@given(searches=st.lists(st.lists(row, max_size=3), min_size=1, max_size=4), asked=asked)
@settings(max_examples=25)
def test_hits_equal_those_of_pymilvus(
    searches: list[list[dict[str, Any]]], asked: list[str]
) -> None:
    response = search_results(searches, asked)
    found = responses.hits(response)
    theirs = SearchResult(response.results)
    assert [len(hits) for hits in found] == [len(rows) for rows in searches]
    for hits, of_theirs in zip(found, theirs, strict=True):
        assert list(hits) == [of_pymilvus(hit["entity"]) for hit in of_theirs]
        assert list(hits.ids) == list(of_theirs.ids)
        assert list(hits.distances) == list(of_theirs.distances)
    read = [one for hits in found for one in hits]
    assert read == [flat(one, asked) for rows in searches for one in rows]


def vector_response(lengths: Sequence[int], kind: DataType, *, nullable: bool = False) -> Any:
    """Hits with vectors only, each made of its number's bytes."""
    column = Column("v", kind, st.none(), nullable=nullable)
    width = VECTOR_BYTES[kind]
    vectors = [
        np.full(DIM, number, "<f4").tobytes()
        if kind == DataType.FLOAT_VECTOR
        else bytes([number]) * width
        for number in range(sum(lengths))
    ]
    values: list[Any] = list(vectors)
    if nullable:
        values[1] = None
    searches = [[{}] * length for length in lengths]
    return search_results(searches, fields=[column.message(values)]), values


@pytest.mark.parametrize("kind", DENSE, ids=lambda kind: kind.name)
def test_vectors_of_hits(kind: DataType) -> None:
    response, values = vector_response([2, 0, 3], kind)
    found = responses.hits(response)
    last = found[2].vectors("v")
    assert last is not None
    numbers = DIM if kind == DataType.FLOAT_VECTOR else VECTOR_BYTES[kind]
    assert last.shape == (3, numbers)
    assert last.dtype == (np.float32 if kind == DataType.FLOAT_VECTOR else np.uint8)
    assert [vector.tobytes() for vector in last] == values[2:]
    assert [hit["v"] for hit in found[2]] == values[2:]
    part = found[2][1:].vectors("v")
    assert part is not None
    assert np.array_equal(part, last[1:])
    none = found[1].vectors("v")
    assert none is not None
    assert none.shape == (0, numbers)


@pytest.mark.parametrize("kind", DENSE, ids=lambda kind: kind.name)
def test_vectors_of_hits_where_one_has_none(kind: DataType) -> None:
    response, values = vector_response([3, 2], kind, nullable=True)
    found = responses.hits(response)
    assert [hit["v"] for hits in found for hit in hits] == values
    assert found[0].vectors("v") is None
    rest = found[1].vectors("v")
    assert rest is not None
    assert [vector.tobytes() for vector in rest] == values[3:]


def test_vectors_where_all_are_null() -> None:
    column = Column("v", DataType.FLOAT_VECTOR, st.none(), nullable=True)
    field = column.message([None, None])
    field.vectors.ClearField("float_vector")
    [hits] = responses.hits(search_results([[{}, {}]], fields=[field]))
    assert list(hits) == [{"v": None}, {"v": None}]
    assert hits.vectors("v") is None


def test_hits_are_a_sequence() -> None:
    column = Column("text", DataType.VARCHAR, text)
    fields = [column.message([f"text {i}" for i in range(5)])]
    _, hits = responses.hits(search_results([[{}] * 2, [{}] * 3], fields=fields))
    assert [hit["text"] for hit in hits] == ["text 2", "text 3", "text 4"]
    assert (hits[0]["text"], hits[-1]["text"]) == ("text 2", "text 4")
    assert [hit["text"] for hit in reversed(hits)] == ["text 4", "text 3", "text 2"]
    part = hits[1:]
    assert isinstance(part, Hits)
    assert [hit["text"] for hit in part] == ["text 3", "text 4"]
    assert (list(part.ids), list(part.distances)) == (["id-3", "id-4"], [0.75, 1.0])
    assert [hit["text"] for hit in hits[::-2]] == ["text 4", "text 2"]
    assert list(hits[::-2].ids) == ["id-4", "id-2"]
    assert len(hits[3:]) == 0
    with pytest.raises(IndexError):
        hits[3]


def test_no_hits() -> None:
    found = responses.hits(search_results([[], []], fields=[]))
    assert [list(hits) for hits in found] == [[], []]
    # The columns may come all the same, without the place where values would be.
    fields = [schema_pb2.FieldData(field_name="text", type=DataType.VARCHAR)]
    [hits] = responses.hits(search_results([[]], fields=fields))
    assert (len(hits), list(hits.ids), list(hits.distances)) == (0, [], [])


def test_hits_without_fields() -> None:
    [hits] = responses.hits(search_results([[{}, {}]], fields=[]))
    assert list(hits) == [{}, {}]
    assert list(hits.ids) == ["id-0", "id-1"]


def test_integer_ids() -> None:
    response = search_results([[{}], [{}, {}]], fields=[], ids=[2**63 - 1, -1, 0])
    found = responses.hits(response)
    assert [list(hits.ids) for hits in found] == [[2**63 - 1], [-1, 0]]
    assert [list(hits.ids) for hits in SearchResult(response.results)] == [[2**63 - 1], [-1, 0]]


def test_a_response_that_says_more_hits_than_it_has() -> None:
    response = search_results([[{}], [{}, {}]], fields=[])
    response.results.topks[1] = 3
    with pytest.raises(RowError, match="fewer hits than it says, 4"):
        responses.hits(response)


def test_columns_that_are_shorter_than_the_hits() -> None:
    fields = [Column("text", DataType.VARCHAR, text).message(["a"])]
    with pytest.raises(RowError, match=r"different lengths, \[1, 2\]"):
        responses.hits(search_results([[{}, {}]], fields=fields))


def test_the_size_is_about_that_of_the_response() -> None:
    columns = [
        Column("text", DataType.VARCHAR, text).message(["t" * 1_000] * 20),
        META.message([{"key": "v" * 1_000}] * 20),
        Column("v", DataType.FLOAT_VECTOR, st.none()).message([bytes(4 * DIM)] * 20),
    ]
    response = search_results([[{}] * 20], fields=columns)
    assert 0.9 * response.ByteSize() < responses.hits(response).size < 1.1 * response.ByteSize()
