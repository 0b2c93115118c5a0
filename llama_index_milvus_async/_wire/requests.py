"""Requests as protobuf messages, built a column at a time.

Messages of the Milvus API (milvus-proto) are compatible across versions by Milvus' own policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson
from pymilvus import DataType, FunctionType
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from .._rpc import HybridSearch, Insert, Query, RankByFunctions, Row, Search, WrittenColumn

# The keys are plain numbers, because hashing a member of an enumeration costs ten times as much.
#: Where the values of a scalar column are in `schema.proto`'s ScalarField.
_SCALARS = {
    int(DataType.BOOL): "bool_data",
    int(DataType.INT8): "int_data",
    int(DataType.INT16): "int_data",
    int(DataType.INT32): "int_data",
    int(DataType.INT64): "long_data",
    int(DataType.FLOAT): "float_data",
    int(DataType.DOUBLE): "double_data",
    int(DataType.VARCHAR): "string_data",
    int(DataType.TIMESTAMPTZ): "string_data",
    int(DataType.JSON): "json_data",
}
#: Where those of a vector column are in VectorField, if they are all bytes.
_BYTES = {
    int(DataType.BINARY_VECTOR): "binary_vector",
    int(DataType.FLOAT16_VECTOR): "float16_vector",
    int(DataType.BFLOAT16_VECTOR): "bfloat16_vector",
    int(DataType.INT8_VECTOR): "int8_vector",
}
#: Longest filter of a search that is kept, in characters: so many are at most 4 MB.
_LONGEST_KEPT = 4_000
_PLACEHOLDER_TAG = "$0"


def insert(request: Insert, rows: Sequence[Row], database: str) -> Any:
    """An `InsertRequest`, or an `UpsertRequest`."""
    message_type = milvus_pb2.UpsertRequest if request.upsert else milvus_pb2.InsertRequest
    message = message_type(
        db_name=database,
        collection_name=request.collection_name,
        partition_name=request.partition_name or "",
        num_rows=len(rows),
        schema_timestamp=request.schema_timestamp,
    )
    for column in request.columns:
        # In place: protobuf would copy a column that was made elsewhere.
        _add_column(message.fields_data.add(), column, rows)
    return message


def _add_column(field: Any, column: WrittenColumn, rows: Sequence[Row]) -> None:
    name, kind = column.name, int(column.type)
    field.field_name = name
    field.type = kind
    if column.is_dynamic:
        field.is_dynamic = True
    values: list[Any]
    if column.optional:
        values = [row.get(name) for row in rows]
        field.valid_data.extend([value is not None for value in values])
        values = [value for value in values if value is not None]
    else:
        values = [row[name] for row in rows]
    if (place := _SCALARS.get(kind)) is not None:
        getattr(field.scalars, place).data.extend(values)
    elif kind == DataType.ARRAY:
        array = field.scalars.array_data
        array.element_type = column.element_type
        place = _SCALARS[int(column.element_type or 0)]
        for value in values:
            getattr(array.data.add(), place).data.extend(value)
    else:
        _add_vectors(field, column, values)


def _add_vectors(field: Any, column: WrittenColumn, vectors: Sequence[bytes]) -> None:
    field.vectors.dim = column.dim
    if not vectors:  # only nulls: pymilvus leaves the kind of the vectors open, too
        return
    if column.type == DataType.SPARSE_FLOAT_VECTOR:
        field.vectors.sparse_float_vector.contents.extend(vectors)
    elif column.type == DataType.FLOAT_VECTOR:
        _parse_floats(field.vectors.float_vector, b"".join(vectors))
    else:
        setattr(field.vectors, _BYTES[column.type], b"".join(vectors))


def _parse_floats(message: Any, data: bytes) -> None:
    """Fill a `FloatArray` with packed numbers, which costs a tenth of adding one by one."""
    # Field 1, length-delimited: https://protobuf.dev/programming-guides/encoding/#packed
    message.ParseFromString(b"\x0a" + _varint(len(data)) + data)


def _varint(number: int) -> bytes:
    """Encode a length: https://protobuf.dev/programming-guides/encoding/#varints."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def delete(collection_name: str, expression: str, partition_name: str | None, database: str) -> Any:
    """A `DeleteRequest`."""
    return milvus_pb2.DeleteRequest(
        db_name=database,
        collection_name=collection_name,
        partition_name=partition_name or "",
        expr=expression,
    )


def query(request: Query, consistency_level: int, guarantee_timestamp: int, database: str) -> Any:
    """A `QueryRequest`."""
    params = {"ignore_growing": "False", "reduce_stop_for_best": "False"}
    if request.limit is not None:
        params["limit"] = str(request.limit)
    if request.in_order:
        # Only what asks as pymilvus' iterator does is answered in the order of the primary key. Its
        # timestamp has another meaning: the answer is what was there at that time, and 0 means now.
        params["iterator"] = "True"
        guarantee_timestamp = 0
    return milvus_pb2.QueryRequest(
        db_name=database,
        collection_name=request.collection_name,
        expr=request.expression,
        output_fields=request.output_fields,
        partition_names=request.partition_names,
        consistency_level=consistency_level,
        guarantee_timestamp=guarantee_timestamp,
        use_default_consistency=request.in_order,
        query_params=_pairs(params),
    )


def search(
    request: Search,
    data: Sequence[bytes | str],
    consistency_level: int,
    guarantee_timestamp: int,
    database: str,
) -> Any:
    """A `SearchRequest`."""
    if len(request.expression) <= _LONGEST_KEPT:
        message = milvus_pb2.SearchRequest.FromString(_unvarying(request))
    else:
        message = _plain_search(request)
    message.db_name = database
    message.nq = len(data)
    message.placeholder_group = _placeholders(request.data_type, data)
    message.consistency_level = consistency_level
    message.guarantee_timestamp = guarantee_timestamp
    return message


@lru_cache(maxsize=256)
def _unvarying(request: Search) -> bytes:
    """What equal searches have in common; parsing it costs a tenth of building it."""
    return bytes(_plain_search(request).SerializeToString())


def _plain_search(request: Search) -> Any:
    return _search(request, request.partition_names, request.output_fields, request.options)


def hybrid_search(
    request: HybridSearch,
    data: Sequence[Sequence[bytes | str]],
    consistency_level: int,
    guarantee_timestamp: int,
    database: str,
) -> Any:
    """A `HybridSearchRequest`; `data` has for each query one item for each leg."""
    legs = []
    for leg, column in zip(request.legs, zip(*data, strict=True), strict=True):
        # Offset and grouping stand in the legs as well, as pymilvus has it.
        message = _search(leg, request.partition_names, (), request.options)
        message.db_name = database
        message.nq = len(data)
        message.placeholder_group = _placeholders(leg.data_type, column)
        message.consistency_level = consistency_level
        message.guarantee_timestamp = guarantee_timestamp
        legs.append(message)
    options = dict(request.options)
    rank_params: dict[str, Any] = {
        "limit": request.limit,
        "round_decimal": -1,
        "offset": options.pop("offset", 0),
        **options,
    }
    ranker, function_score = request.ranker, None
    if isinstance(ranker, RankByFunctions):
        function_score = _function_score(ranker)
    else:
        rank_params |= ranker
    return milvus_pb2.HybridSearchRequest(
        db_name=database,
        collection_name=request.collection_name,
        partition_names=request.partition_names,
        requests=legs,
        output_fields=request.output_fields,
        consistency_level=consistency_level,
        guarantee_timestamp=guarantee_timestamp,
        rank_params=_pairs(rank_params),
        function_score=function_score,
    )


def _search(
    request: Search,
    partition_names: tuple[str, ...] | None,
    output_fields: tuple[str, ...],
    options: tuple[tuple[str, Any], ...],
) -> Any:
    """A search without its data."""
    params = dict(request.params)
    of_index = params.pop("params", None) or {}
    entries: dict[str, Any] = {
        "anns_field": request.field_name,
        "topk": request.limit,
        "round_decimal": -1,
        "ignore_growing": params.get("ignore_growing", False),
        **dict(options),
    }
    for key in ("metric_type", "hints", "analyzer_name"):
        if params.get(key) is not None:
            entries[key] = params[key]
    # Servers before 2.5.2 read the parameters of an index here, later ones all of them.
    entries["params"] = {**params, **of_index}
    return milvus_pb2.SearchRequest(
        collection_name=request.collection_name,
        partition_names=partition_names,
        output_fields=output_fields,
        dsl=request.expression,
        dsl_type=common_pb2.DslType.BoolExprV1,
        search_params=_pairs(entries),
        function_score=None if request.ranker is None else _function_score(request.ranker),
    )


def _placeholders(data_type: DataType, data: Sequence[bytes | str]) -> bytes:
    """What is searched for, as the bytes of a `PlaceholderGroup`."""
    group = common_pb2.PlaceholderGroup()
    values = [one.encode() if isinstance(one, str) else one for one in data]
    # Types of placeholders have the numbers of those of columns.
    group.placeholders.add(tag=_PLACEHOLDER_TAG, type=int(data_type), values=values)
    return bytes(group.SerializeToString())


def _function_score(ranker: RankByFunctions) -> Any:
    """A `FunctionScore`."""
    functions = [
        schema_pb2.FunctionSchema(
            name=function.name,
            type=int(FunctionType.RERANK),
            description=function.description,
            input_field_names=function.input_fields,
            params=_pairs(dict(function.params)),
        )
        for function in ranker.functions
    ]
    return schema_pb2.FunctionScore(functions=functions, params=_pairs(dict(ranker.params)))


def _pairs(values: Mapping[str, Any]) -> Iterable[Any]:
    return [
        common_pb2.KeyValuePair(
            key=key,
            value=orjson.dumps(value).decode() if isinstance(value, dict) else str(value),
        )
        for key, value in values.items()
    ]
