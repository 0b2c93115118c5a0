"""Columns of Milvus as those of Arrow, in the layout that Milvus' bulk import takes.

| type of Milvus | type of Arrow |
|---|---|
| BOOL, INT8 to INT64, FLOAT, DOUBLE | the same |
| VARCHAR, TIMESTAMPTZ, GEOMETRY, TEXT | string |
| JSON, the dynamic field `$meta` | string, of JSON |
| ARRAY | list of its elements |
| FLOAT_VECTOR | list of float |
| INT8_VECTOR | list of int8 |
| FLOAT16_VECTOR, BFLOAT16_VECTOR, BINARY_VECTOR | list of uint8, the vector's bytes |
| SPARSE_FLOAT_VECTOR | string, of a JSON object of index to value |

They are those of pymilvus' `LocalBulkWriter`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from pymilvus import DataType

from .._translation.layout import DYNAMIC_FIELD, Column, Layout
from .._translation.node_json import dumps
from ..errors import CollectionError

_SCALARS: Mapping[DataType, pa.DataType] = {
    DataType.BOOL: pa.bool_(),
    DataType.INT8: pa.int8(),
    DataType.INT16: pa.int16(),
    DataType.INT32: pa.int32(),
    DataType.INT64: pa.int64(),
    DataType.FLOAT: pa.float32(),
    DataType.DOUBLE: pa.float64(),
}
#: Types that are written as texts. By name: older versions of pymilvus do not have all of them.
_TEXTS = frozenset({"VARCHAR", "TIMESTAMPTZ", "GEOMETRY", "TEXT", "JSON", "SPARSE_FLOAT_VECTOR"})
#: The numbers in which the bytes of a dense vector are written.
VECTOR_ITEMS: Mapping[DataType, pa.DataType] = {
    DataType.FLOAT_VECTOR: pa.float32(),
    DataType.FLOAT16_VECTOR: pa.uint8(),
    DataType.BFLOAT16_VECTOR: pa.uint8(),
    DataType.INT8_VECTOR: pa.int8(),
    DataType.BINARY_VECTOR: pa.uint8(),
}
#: How many of them a vector of one dimension has.
_ITEMS_PER_DIMENSION: Mapping[DataType, float] = {
    DataType.FLOAT16_VECTOR: 2,
    DataType.BFLOAT16_VECTOR: 2,
    DataType.BINARY_VECTOR: 1 / 8,
}


def arrow_type(column: Column) -> pa.DataType:
    """The type of Arrow that the values of a column have.

    Raises:
        CollectionError: There is none.
    """
    kind = column.type
    if kind in VECTOR_ITEMS:
        return pa.list_(VECTOR_ITEMS[kind])
    if kind in _SCALARS:
        return _SCALARS[kind]
    if kind.name in _TEXTS:
        return pa.string()
    if kind == DataType.ARRAY and column.element_type is not None:
        return pa.list_(arrow_type(Column(column.name, column.element_type)))
    raise CollectionError(
        f"the column {column.name!r} has the type {kind.name}, which cannot be exported"
    )


def items_of_vector(kind: DataType, dim: int) -> int:
    """How many numbers a vector of a type and a dimension is written as."""
    return int(dim * _ITEMS_PER_DIMENSION.get(kind, 1))


def dimension_of(kind: DataType, items: int) -> int:
    """The dimension of a vector of a type that is written as so many numbers."""
    return int(items / _ITEMS_PER_DIMENSION.get(kind, 1))


def arrow_array(column: Column, values: Sequence[Any]) -> pa.Array:
    """The values of a column, as rows have them; see `_rpc.Rows.row`."""
    kind = column.type
    if kind in VECTOR_ITEMS:
        return _vectors(values, VECTOR_ITEMS[kind])
    if kind in (DataType.JSON, DataType.SPARSE_FLOAT_VECTOR):
        values = [None if value is None else json_text(value) for value in values]
    return pa.array(values, arrow_type(column))


def dynamic_array(layout: Layout, rows: Sequence[Mapping[str, Any]]) -> pa.Array:
    """The dynamic field of rows: what they have beside their columns."""
    columns = layout.columns
    texts = [json_text({k: v for k, v in row.items() if k not in columns}) for row in rows]
    return pa.array(texts, pa.string())


def arrow_schema(layout: Layout, names: Sequence[str]) -> pa.Schema:
    """The columns of a file, the dynamic field among them."""
    return pa.schema(
        (name, pa.string() if name == DYNAMIC_FIELD else arrow_type(layout.columns[name]))
        for name in names
    )


def json_text(value: Any) -> str:
    """A value as JSON. Sparse vectors have integers for keys, which become texts."""
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    except orjson.JSONEncodeError:
        return dumps(value).decode()


def json_value(text: str | None) -> Any:
    """The value of JSON.

    Raises:
        ValueError: It is not JSON.
    """
    return None if text is None else json.loads(text)


def bytes_of_vectors(array: pa.ListArray, kind: DataType) -> list[bytes | None]:
    """The vectors of a column as rows have them: bytes, and `None` where there is none."""
    dtype = np.dtype("<f4") if kind == DataType.FLOAT_VECTOR else np.dtype("u1")
    lengths = array.value_lengths().to_pylist()
    data = array.flatten().to_numpy(zero_copy_only=False).view(np.ndarray)
    content = (data.astype("<f4") if dtype.kind == "f" else data.view(dtype)).tobytes()
    vectors: list[bytes | None] = []
    start = 0
    for length in lengths:
        if length is None:
            vectors.append(None)
            continue
        end = start + length * dtype.itemsize
        vectors.append(content[start:end])
        start = end
    return vectors


def _vectors(values: Sequence[bytes | None], item: pa.DataType) -> pa.ListArray:
    """Vectors, from their bytes at once: number by number takes fifty times as long."""
    size = item.bit_width // 8
    lengths = [0 if value is None else len(value) // size for value in values]
    content = b"".join(value for value in values if value is not None)
    numbers = pa.Array.from_buffers(item, len(content) // size, [None, pa.py_buffer(content)])
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    missing = pa.array([value is None for value in values])
    mask = missing if None in values else None
    return pa.ListArray.from_arrays(offsets, numbers, mask=mask)
