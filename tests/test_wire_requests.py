"""The messages of `_wire.requests` are those that pymilvus would have made of the same calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymilvus import (
    DataType,
    Function,
    FunctionScore,
    FunctionType,
    RRFRanker,
    WeightedRanker,
)
from pymilvus.client.prepare import Prepare
from pymilvus.grpc_gen import common_pb2

from llama_index_milvus_async._retrieval.rerank_functions import read_functions
from llama_index_milvus_async._rpc import HybridSearch, Insert, Query, Search, WrittenColumn
from llama_index_milvus_async._wire import requests
from tests.fixtures.labels import label

DIM = 8
DATABASE = "library"

int64 = st.integers(-(2**63), 2**63 - 1)
float32 = st.floats(allow_nan=False, allow_infinity=False, width=32)
float64 = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_value = st.recursive(
    st.none() | st.booleans() | int64 | float32 | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)

SCALARS = {
    DataType.BOOL: st.booleans(),
    DataType.INT8: st.integers(-128, 127),
    DataType.INT16: st.integers(-(2**15), 2**15 - 1),
    DataType.INT32: st.integers(-(2**31), 2**31 - 1),
    DataType.INT64: int64,
    DataType.FLOAT: float32,
    DataType.DOUBLE: float64,
    DataType.VARCHAR: text,
}
VECTORS = {
    DataType.FLOAT_VECTOR: st.lists(float32, min_size=DIM, max_size=DIM),
    DataType.FLOAT16_VECTOR: st.binary(min_size=2 * DIM, max_size=2 * DIM),
    DataType.BFLOAT16_VECTOR: st.binary(min_size=2 * DIM, max_size=2 * DIM),
    DataType.INT8_VECTOR: st.binary(min_size=DIM, max_size=DIM),
    DataType.BINARY_VECTOR: st.binary(min_size=DIM // 8, max_size=DIM // 8),
    DataType.SPARSE_FLOAT_VECTOR: st.dictionaries(
        st.integers(0, 2**32 - 2), float32, min_size=1, max_size=3
    ),
}


class Column(NamedTuple):
    """A column in both forms, and the values that pymilvus is given."""

    written: WrittenColumn
    field: dict[str, Any]
    values: st.SearchStrategy[Any]


def column(
    name: str,
    kind: DataType,
    values: st.SearchStrategy[Any],
    element_type: DataType | None = None,
    **field: Any,
) -> Column:
    optional = "nullable" in field or "default_value" in field
    dim = DIM if kind in VECTORS and kind != DataType.SPARSE_FLOAT_VECTOR else 0
    params = {"dim": dim} if dim else {"max_length": 65_535, "max_capacity": 100}
    return Column(
        WrittenColumn(name, kind, dim=dim, element_type=element_type, optional=optional),
        {"name": name, "type": kind, "params": params, "element_type": element_type, **field},
        st.none() | values if optional else values,
    )


ZONED = st.sampled_from(["2025-05-01T23:59:59+08:00", "1969-12-31T00:00:00Z"])
PLAIN = [
    *(column(f"a_{kind.name}", kind, values) for kind, values in SCALARS.items()),
    column("zoned", DataType.TIMESTAMPTZ, ZONED),
    # pymilvus takes a text for JSON, and cannot write its null.
    column("json", DataType.JSON, json_value.filter(lambda one: not isinstance(one, str | None))),
    *(
        column(f"array_of_{kind.name}", DataType.ARRAY, st.lists(values, max_size=3), kind)
        for kind, values in SCALARS.items()
    ),
    *(column(f"a_{kind.name}", kind, values) for kind, values in VECTORS.items()),
]
NULLABLE = [
    column(f"maybe_{plain.written.name}", plain.written.type, plain.values,
           plain.written.element_type, nullable=True)
    for plain in PLAIN
]  # fmt: skip
COLUMNS = [
    column("id", DataType.VARCHAR, text, is_primary=True),
    *PLAIN,
    *NULLABLE,
    column("year", DataType.INT64, int64, default_value=1999),
    column("status", DataType.VARCHAR, text, default_value="new"),
]
GENERATED = {
    "name": "bm25",
    "type": DataType.SPARSE_FLOAT_VECTOR,
    "params": {},
    "is_function_output": True,
}
FIELDS = [*(one.field for one in COLUMNS), GENERATED]
WRITTEN = (
    *(one.written for one in COLUMNS),
    WrittenColumn("$meta", DataType.JSON, is_dynamic=True),
)
NAMES = {one.name for one in WRITTEN}

metadata = st.dictionaries(text.filter(lambda key: key not in NAMES), json_value, max_size=4)
row = st.builds(
    lambda dynamic, own: {**dynamic, **own},
    metadata,
    st.fixed_dictionaries(
        {one.written.name: one.values for one in COLUMNS if not one.written.optional},
        optional={one.written.name: one.values for one in COLUMNS if one.written.optional},
    ),
)

messages = pytest.mark.parametrize("upsert", [False, True], ids=["insert", "upsert"])


def packed_value(kind: DataType, value: Any) -> Any:
    """A value in the form of `WrittenColumn`."""
    if kind == DataType.JSON:
        return orjson.dumps(value)
    if kind == DataType.FLOAT_VECTOR:
        return np.asarray(value, dtype="<f4").tobytes()
    if kind == DataType.SPARSE_FLOAT_VECTOR:
        entries = np.array(sorted(value.items()), dtype=[("index", "<u4"), ("value", "<f4")])
        return entries.tobytes()
    return value


def packed(rows: list[dict[str, Any]], columns: Sequence[WrittenColumn]) -> list[dict[str, Any]]:
    """Rows in the form of `WrittenColumn`."""
    own = {one.name: one for one in columns if not one.is_dynamic}
    result = []
    for one in rows:
        dynamic = {key: value for key, value in one.items() if key not in own}
        values = {
            name: None
            if one[name] is None and written.optional
            else packed_value(written.type, one[name])
            for name, written in own.items()
            if name in one
        }
        result.append({**values, "$meta": orjson.dumps(dynamic)})
    return result


def build(
    rows: list[dict[str, Any]],
    upsert: bool,
    columns: tuple[WrittenColumn, ...] = WRITTEN,
    partition: str | None = "p",
) -> Any:
    request = Insert("books", columns, "id", partition, upsert, upsert, schema_timestamp=7)
    return requests.insert(request, packed(rows, columns), DATABASE)


def expected(
    rows: list[dict[str, Any]],
    upsert: bool,
    fields: list[dict[str, Any]] = FIELDS,
    partition: str = "p",
    enable_dynamic: bool = True,
) -> Any:
    prepare = Prepare.row_upsert_param if upsert else Prepare.row_insert_param
    options = {"enable_dynamic": enable_dynamic, "schema_timestamp": 7}
    message = prepare("books", rows, partition, fields, [], **options)
    element_types = {one["name"]: one["element_type"] for one in fields if "element_type" in one}
    for column in message.fields_data:
        if column.type == DataType.ARRAY:  # only the kind of the elements says what they are
            column.scalars.array_data.element_type = element_types[column.field_name]
        if column.type == DataType.SPARSE_FLOAT_VECTOR and not column.HasField("vectors"):
            column.vectors.SetInParent()
    return message


def without_database(message: Any) -> Any:
    """The message as pymilvus makes it, which names the database in the call's metadata only."""
    assert message.db_name == DATABASE
    copy = type(message)()
    copy.CopyFrom(message)
    copy.db_name = ""
    for leg in getattr(copy, "requests", ()):
        assert leg.db_name == DATABASE
        leg.db_name = ""
    return copy


# Rows


@messages
@given(rows=st.lists(row, min_size=1, max_size=4))
@settings(max_examples=25)
def test_rows_are_packed_as_by_pymilvus(upsert: bool, rows: list[dict[str, Any]]) -> None:
    assert without_database(build(rows, upsert)) == expected(rows, upsert)


def plain_row(**values: Any) -> dict[str, Any]:
    """A row with the least value of each column that needs one."""
    least: dict[DataType, Any] = {
        DataType.BOOL: False,
        DataType.VARCHAR: "",
        DataType.TIMESTAMPTZ: "2025-05-01T23:59:59+08:00",
        DataType.JSON: {},
        DataType.ARRAY: [],
        DataType.FLOAT_VECTOR: [0.0] * DIM,
        DataType.FLOAT16_VECTOR: bytes(2 * DIM),
        DataType.BFLOAT16_VECTOR: bytes(2 * DIM),
        DataType.INT8_VECTOR: bytes(DIM),
        DataType.BINARY_VECTOR: bytes(DIM // 8),
        DataType.SPARSE_FLOAT_VECTOR: {0: 0.0},
    }
    needed = [one.written for one in COLUMNS if not one.written.optional]
    return {**{one.name: least.get(one.type, 0) for one in needed}, **values}


@messages
def test_columns_in_which_all_rows_are_null(upsert: bool) -> None:
    rows = [plain_row(id="a"), plain_row(id="b")]
    message = without_database(build(rows, upsert))
    assert message == expected(rows, upsert)
    empty = [one for one in message.fields_data if one.field_name.startswith("maybe_")]
    assert len(empty) == len(NULLABLE)
    assert all(list(one.valid_data) == [False, False] for one in empty)


@messages
@pytest.mark.parametrize("given_values", [[1], [1, None], [None, 1], [None, 1, None, 2]], ids=str)
def test_nulls_between_values(upsert: bool, given_values: list[int | None]) -> None:
    """They have no place among the values, only a False in `valid_data`."""
    fields = [
        {"name": "id", "type": DataType.VARCHAR, "params": {"max_length": 9}, "is_primary": True},
        {"name": "n", "type": DataType.INT64, "params": {}, "nullable": True},
    ]
    columns = (
        WrittenColumn("id", DataType.VARCHAR),
        WrittenColumn("n", DataType.INT64, optional=True),
    )
    rows = [{"id": str(i), "n": value} for i, value in enumerate(given_values)]
    message = build(rows, upsert, columns)
    assert without_database(message) == expected(rows, upsert, fields, enable_dynamic=False)
    assert list(message.fields_data[1].scalars.long_data.data) == [
        value for value in given_values if value is not None
    ]


NASTY = [
    "",
    "\0",
    '"',
    "'",
    "\\",
    "\n\r\t\x0b\x1f\x7f",
    "日本語 العربية 🜁 e\u0301 \u200d\ufeff",
    "\U0010ffff",
    '{"a": 1}',
    "x" * 65_535,
]


@messages
@pytest.mark.parametrize("value", NASTY, ids=lambda value: ascii(value[:12]))
def test_nasty_texts(upsert: bool, value: str) -> None:
    rows = [
        plain_row(
            **{value: value},
            id=value,
            a_VARCHAR=value,
            json={value: [value]},
            array_of_VARCHAR=[value, value],
            status=value,
        )
    ]
    message = without_database(build(rows, upsert))
    assert message == expected(rows, upsert)


@messages
def test_the_default_partition_and_no_dynamic_field(upsert: bool) -> None:
    rows = [plain_row(id="a")]
    message = build(rows, upsert, WRITTEN[:-1], partition=None)
    assert without_database(message) == expected(rows, upsert, partition="", enable_dynamic=False)


@pytest.mark.parametrize("missing", ["a_VARCHAR", "a_FLOAT_VECTOR", "json"])
def test_a_row_without_a_value_that_it_needs_is_a_mistake(missing: str) -> None:
    rows = packed([plain_row(id="a")], WRITTEN)
    del rows[0][missing]
    with pytest.raises(KeyError, match=missing):
        requests.insert(Insert("books", WRITTEN, "id", None, False, False), rows, "")


def test_a_large_vector_column_is_packed_whole() -> None:
    """The length of the column takes several bytes to write."""
    vectors = np.random.default_rng(0).normal(size=(300, 768)).astype("<f4")
    columns = (WrittenColumn("embedding", DataType.FLOAT_VECTOR, dim=768),)
    rows = [{"embedding": vector.tobytes()} for vector in vectors]
    request = Insert("books", columns, "id", None, False, False)
    [field] = requests.insert(request, rows, "").fields_data
    assert field.vectors.dim == 768
    assert np.array_equal(field.vectors.float_vector.data, vectors.ravel())


# Deletes and queries


@pytest.mark.parametrize("partition", [None, "p"])
@pytest.mark.parametrize("expression", ['doc_id in ["a", "\\"b\\""]', NASTY[6], "n > 3"])
def test_a_delete(expression: str, partition: str | None) -> None:
    message = without_database(requests.delete("books", expression, partition, DATABASE))
    assert message == Prepare.delete_request("books", expression, partition, 0)


CONSISTENCY = {"Strong": (0, 0), "Session": (1, 456), "Bounded": (2, 2), "Eventually": (3, 1)}
levels = pytest.mark.parametrize("level", CONSISTENCY)


def consistency(level: str) -> dict[str, Any]:
    """What pymilvus' request builders get of a consistency level."""
    number, timestamp = CONSISTENCY[level]
    return {
        "consistency_level": number,
        "guarantee_timestamp": timestamp,
        "use_default_consistency": False,
    }


@levels
@pytest.mark.parametrize("limit", [None, 0, 7])
@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("partitions", [None, (), ("p", "q")], ids=str)
def test_a_query(
    level: str, limit: int | None, in_order: bool, partitions: tuple[str, ...] | None
) -> None:
    request = Query("books", 'id > "a"', ("id", "$meta"), partitions, level, limit, in_order)
    message = requests.query(request, *CONSISTENCY[level], DATABASE)
    bound = consistency(level)
    if in_order:  # what `construct_guarantee_ts` makes of an iterator's request
        bound |= {"guarantee_timestamp": 0, "use_default_consistency": True}
    theirs = Prepare.query_request(
        "books",
        'id > "a"',
        ["id", "$meta"],
        partitions and list(partitions),
        limit=limit,
        **({"iterator": "True"} if in_order else {}),
        **bound,
    )
    assert same(message, theirs)


# Searches


def pairs(values: Any) -> dict[str, Any]:
    """Key-value pairs, whose order means nothing; JSON is read."""
    found = {pair.key: pair.value for pair in values}
    assert len(found) == len(values)
    if "params" in found:
        found["params"] = orjson.loads(found["params"])
    return found


def same(ours: Any, theirs: Any) -> bool:
    """Whether two requests mean the same; says where they do not."""
    parts = [without_database(ours), type(theirs).FromString(theirs.SerializeToString())]
    for name in ("search_params", "query_params", "rank_params"):
        if hasattr(theirs, name):
            assert pairs(getattr(parts[0], name)) == pairs(getattr(parts[1], name))
            for part in parts:
                part.ClearField(name)
    if hasattr(theirs, "requests"):
        for leg, other in zip(ours.requests, theirs.requests, strict=True):
            assert same(leg, other)
        for part in parts:
            part.ClearField("requests")
    if hasattr(theirs, "placeholder_group"):
        groups = [common_pb2.PlaceholderGroup.FromString(part.placeholder_group) for part in parts]
        assert groups[0] == groups[1]
    assert parts[0] == parts[1]
    return True


#: What is searched for: for us, for pymilvus.
DATA: dict[str, tuple[DataType, list[Any], Any]] = {
    "dense": (
        DataType.FLOAT_VECTOR,
        [np.full(DIM, number, "<f4").tobytes() for number in (0.1, -0.5)],
        [[0.1] * DIM, [-0.5] * DIM],
    ),
    "sparse": (
        DataType.SPARSE_FLOAT_VECTOR,
        [packed_value(DataType.SPARSE_FLOAT_VECTOR, {7: 0.5, 2**32 - 2: 0.1})],
        [{7: 0.5, 2**32 - 2: 0.1}],
    ),
    "texts": (DataType.VARCHAR, NASTY, NASTY),
    **{
        kind.name: (kind, [bytes(width)], [bytes(width)])
        for kind, width in {
            DataType.FLOAT16_VECTOR: 2 * DIM,
            DataType.BFLOAT16_VECTOR: 2 * DIM,
            DataType.INT8_VECTOR: DIM,
            DataType.BINARY_VECTOR: DIM // 8,
        }.items()
    },
}


def search(kind: str = "dense", **changes: Any) -> Search:
    values: dict[str, Any] = {
        "collection_name": "books",
        "field_name": "embedding",
        "data_type": DATA[kind][0],
        "limit": 10,
        "expression": "year > 1999",
        "output_fields": ("id", "text", "$meta"),
        "partition_names": None,
        "consistency_level": "Session",
        "params": {"params": {"ef": 64}},
        "options": (),
        "one_at_a_time": False,
    }
    return Search(**{**values, **changes})


def theirs_of(request: Search, data: Any, *, is_leg: bool = False) -> Any:
    """What pymilvus makes of a search; legs of a hybrid search have no output fields."""
    partitions = request.partition_names
    return Prepare.search_requests_with_expr(
        collection_name=request.collection_name,
        anns_field=request.field_name,
        param=dict(request.params),
        limit=request.limit,
        data=data,
        expr=request.expression,
        partition_names=partitions and list(partitions),
        output_fields=None if is_leg else list(request.output_fields),
        schema={"fields": [{"name": request.field_name, "type": request.data_type}]},
        **dict(request.options),
        **consistency(request.consistency_level),
    )


def check_search(request: Search, kind: str = "dense") -> None:
    _, ours, theirs = DATA[kind]
    level = CONSISTENCY[request.consistency_level]
    message = requests.search(request, ours, *level, DATABASE)
    assert message.nq == len(ours)
    assert same(message, theirs_of(request, theirs))


@pytest.mark.parametrize("kind", DATA)
def test_what_is_searched_for(kind: str) -> None:
    check_search(search(kind), kind)


@levels
def test_consistency_levels_of_a_search(level: str) -> None:
    check_search(search(consistency_level=level))


@pytest.mark.parametrize("partitions", [None, (), ("p",), ("p", "q")], ids=str)
@pytest.mark.parametrize("expression", ["", NASTY[6]], ids=ascii)
def test_partitions_and_filters_of_a_search(
    partitions: tuple[str, ...] | None, expression: str
) -> None:
    check_search(search(partition_names=partitions, expression=expression))


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"params": {}},
        {"params": None},
        {"nprobe": 8},
        {"params": {"nprobe": 8}, "level": 3},
        {"metric_type": "COSINE", "params": {"radius": 0.5, "range_filter": 0.9}},
        {"metric_type": "L2", "nprobe": 8, "params": {"nprobe": 8}},
        {"hints": "iterative_filter", "params": {"ef": 10}},
        {"analyzer_name": "german", "params": {"drop_ratio_search": 0.2}},
        {"ignore_growing": True},
        {"params": {"page_retain_order": True}},
        {"params": {"nested": {"a": [1, None, "ü"]}}},
    ],
    ids=label,
)
def test_parameters_of_a_search(params: dict[str, Any]) -> None:
    request = search(params=params)
    of_index = params.get("params") or {}
    theirs = theirs_of(search(params={**params, "params": of_index}), DATA["dense"][2])
    message = requests.search(request, DATA["dense"][1], *CONSISTENCY["Session"], DATABASE)
    assert same(message, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"offset": 20},
        {"group_by_field": "doc_id"},
        {"group_by_field": "doc_id", "group_size": 3, "strict_group_size": True},
        {"group_by_field": "doc_id", "group_size": 3, "strict_group_size": False, "offset": 5},
    ],
    ids=label,
)
def test_options_of_a_search(options: dict[str, Any]) -> None:
    check_search(search(options=tuple(options.items())))


# Hybrid searches


def legs() -> tuple[Search, Search]:
    text_leg = search("texts", field_name="bm25", params={"analyzer_name": "german"}, limit=30)
    return search(field_name="embedding", limit=20), text_leg


def hybrid(ranker: Any, **changes: Any) -> HybridSearch:
    values: dict[str, Any] = {
        "collection_name": "books",
        "legs": legs(),
        "ranker": ranker,
        "ranker_key": "",
        "limit": 10,
        "output_fields": ("id", "$meta"),
        "partition_names": None,
        "consistency_level": "Bounded",
        "options": (),
        "one_at_a_time": False,
    }
    return HybridSearch(**{**values, **changes})


def check_hybrid(request: HybridSearch, their_ranker: Any) -> None:
    level = request.consistency_level
    texts = ["a query", NASTY[6]]
    data = list(zip(DATA["dense"][1], texts, strict=True))
    message = requests.hybrid_search(request, data, *CONSISTENCY[level], DATABASE)
    # Legs have the partitions, the consistency and the options of the whole.
    common: dict[str, Any] = {
        "partition_names": request.partition_names,
        "options": request.options,
        "consistency_level": level,
    }
    of_legs = [
        theirs_of(replace(leg, **common), column, is_leg=True)
        for leg, column in zip(request.legs, (DATA["dense"][2], texts), strict=True)
    ]
    partitions = request.partition_names
    theirs = Prepare.hybrid_search_request_with_ranker(
        "books",
        of_legs,
        their_ranker,
        request.limit,
        partitions and list(partitions),
        list(request.output_fields),
        **dict(request.options),
        **consistency(level),
    )
    assert same(message, theirs)


MODEL = Function(
    name="reranker",
    input_field_names=["text"],
    function_type=FunctionType.RERANK,
    params={"reranker": "model", "provider": "tei", "queries": ["a", "ü"], "max": 3},
)
DECAY = Function(
    name="decay",
    input_field_names=["year"],
    function_type=FunctionType.RERANK,
    params={"reranker": "decay", "function": "gauss", "origin": 2000, "scale": 10, "decay": 0.5},
)


@pytest.mark.parametrize(
    ("ranker", "theirs"),
    [
        ({"strategy": "rrf", "params": {"k": 60}}, RRFRanker(60)),
        (
            {"strategy": "weighted", "params": {"weights": [0.3, 0.7], "norm_score": True}},
            WeightedRanker(0.3, 0.7),
        ),
        (RRFRanker(10).dict(), RRFRanker(10)),
        (WeightedRanker(1, 0, norm_score=False).dict(), WeightedRanker(1, 0, norm_score=False)),
        (read_functions(DECAY, "milvus_ranker"), DECAY),
        (read_functions(MODEL, "milvus_ranker"), MODEL),
    ],
    ids=["rrf", "weighted", "rrf.dict", "weighted.dict", "decay", "model"],
)
def test_rankers(ranker: Any, theirs: Any) -> None:
    check_hybrid(hybrid(ranker), theirs)


def test_a_function_score() -> None:
    """Pymilvus refuses it for a hybrid search; the message has room for it."""
    score = FunctionScore(
        functions=[DECAY, MODEL], params={"boost_mode": "sum", "function_mode": "multiply"}
    )
    data = [(DATA["dense"][1][0], "a query")]
    ranker = read_functions(score, "milvus_ranker")
    message = requests.hybrid_search(hybrid(ranker), data, *CONSISTENCY["Bounded"], DATABASE)
    [one] = DATA["dense"][2][:1]
    theirs = Prepare.search_requests_with_expr(
        "books", "embedding", {}, 10, data=[one], ranker=score
    )
    assert message.function_score == theirs.function_score
    assert [function.name for function in message.function_score.functions] == ["decay", "reranker"]
    assert set(pairs(message.rank_params)) == {"limit", "round_decimal", "offset"}


BOOST = Function(
    name="boost",
    input_field_names=[],
    function_type=FunctionType.RERANK,
    description="new ones",
    params={
        "reranker": "boost",
        "filter": 'kind == "ü"',
        "weight": 1.5,
        "random_score": {"seed": 1},
    },
)


@pytest.mark.parametrize(
    "theirs",
    [
        DECAY,
        MODEL,
        BOOST,
        FunctionScore([BOOST, BOOST], {"boost_mode": "Sum", "function_mode": "Sum"}),
    ],
    ids=["decay", "model", "boost", "score"],
)
def test_a_ranker_of_a_search_is_what_pymilvus_sends(theirs: Any) -> None:
    request = search(ranker=read_functions(theirs, "milvus_ranker"))
    message = requests.search(request, DATA["dense"][1][:1], *CONSISTENCY["Bounded"], DATABASE)
    expected = Prepare.search_requests_with_expr(
        "books", "embedding", {}, 10, data=DATA["dense"][2][:1], ranker=theirs
    )
    assert message.HasField("function_score")
    assert message.function_score == expected.function_score
    plain = requests.search(search(), DATA["dense"][1][:1], *CONSISTENCY["Bounded"], DATABASE)
    assert not plain.HasField("function_score")
    message.ClearField("function_score")
    assert message == plain


@levels
@pytest.mark.parametrize("partitions", [None, ("p", "q")], ids=str)
def test_consistency_and_partitions_of_a_hybrid_search(
    level: str, partitions: tuple[str, ...] | None
) -> None:
    request = hybrid(RRFRanker().dict(), consistency_level=level, partition_names=partitions)
    check_hybrid(request, RRFRanker())


@pytest.mark.parametrize(
    "options",
    [
        {"offset": 20},
        {"group_by_field": "doc_id"},
        {"group_by_field": "doc_id", "group_size": 3, "strict_group_size": True, "offset": 5},
    ],
    ids=label,
)
def test_options_of_a_hybrid_search(options: dict[str, Any]) -> None:
    check_hybrid(hybrid(RRFRanker().dict(), options=tuple(options.items())), RRFRanker())


def test_every_query_needs_an_item_for_each_leg() -> None:
    ranker = RRFRanker().dict()
    with pytest.raises(ValueError, match="zip"):
        requests.hybrid_search(hybrid(ranker), [(b"", "a"), (b"",)], 0, 0, "")
    with pytest.raises(ValueError, match="zip"):
        requests.hybrid_search(hybrid(ranker), [(b"",)], 0, 0, "")


def test_a_search_with_a_long_filter_is_not_kept() -> None:
    request = search(expression=f'id in ["{"x" * 10_000}"]')
    before = requests._unvarying.cache_info().currsize
    message = requests.search(request, DATA["dense"][1], *CONSISTENCY["Session"], DATABASE)
    assert same(message, theirs_of(request, DATA["dense"][2]))
    assert requests._unvarying.cache_info().currsize == before


def test_requests_that_differ_in_a_parameter_differ() -> None:
    """What equal searches have in common is kept; parameters are not compared by `==`."""
    for params in ({"params": {"ef": 10}}, {"params": {"ef": 10.0}}, {"params": {"ef": True}}):
        request = search(params=params)
        message = requests.search(request, DATA["dense"][1], *CONSISTENCY["Session"], DATABASE)
        assert same(message, theirs_of(request, DATA["dense"][2]))
