"""Responses of Milvus: rows and hits, read a column at a time.

The columns are taken out of the message at once, which costs little. A row is made of them when it
is asked for, so that a long response does not hold the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import orjson

from .._rpc import Hits, Row
from ..errors import RowError

#: The value of a row, by its position.
_Getter = Callable[[int], Any]

#: Bytes of a dense vector of some dimension, by its place in `schema.proto`'s VectorField.
_VECTOR_BYTES: dict[str, Callable[[int], int]] = {
    "float_vector": lambda dim: 4 * dim,
    "float16_vector": lambda dim: 2 * dim,
    "bfloat16_vector": lambda dim: 2 * dim,
    "int8_vector": lambda dim: dim,
    "binary_vector": lambda dim: dim // 8,
}
#: An entry of a sparse vector.
_SPARSE = np.dtype([("index", "<u4"), ("value", "<f4")])


class ResponseRows(Sequence[Row]):
    """The rows of a response; see `_rpc.Rows`.

    Args:
        fields: `schema.proto`'s FieldData of each column.
        output_fields: The names that the request asked for, as the response repeats them.
        length: The number of rows, where the response says so.

    Attributes:
        size: Bytes of the rows, estimated: protobuf takes 15 ms to count 10 MB.
    """

    def __init__(
        self, fields: Iterable[Any], output_fields: Iterable[str], length: int | None = None
    ) -> None:
        self.size = 0
        self._columns: dict[str, _Getter] = {}
        self._dynamic: _Getter | None = None
        lengths = set() if length is None else {length}
        for field in fields:
            column, rows, size = _column(field)
            self.size += size
            lengths.add(rows)
            if field.is_dynamic:
                self._dynamic = column
            self._columns[field.field_name] = column
        if len(lengths) > 1:
            raise RowError(f"a response has columns of different lengths, {sorted(lengths)}")
        self._length = next(iter(lengths), 0)
        #: Keys of the dynamic field that were asked for by name; without any, all come.
        self._keys = set(output_fields) - self._columns.keys()
        self._fixed = [(name, get) for name, get in self._columns.items() if get != self._dynamic]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Row]:
        return map(self.row, range(self._length))

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self.row(position) for position in range(self._length)[index]]
        return self.row(range(self._length)[index])

    def row(self, position: int) -> dict[str, Any]:
        """The row at a position; see `_rpc.Rows.row`.

        Raises:
            RowError: It has JSON or a sparse vector that cannot be read.
        """
        try:
            row = {name: get(position) for name, get in self._fixed}
            if self._dynamic is not None:
                values = self._dynamic(position) or {}
                if self._keys:
                    values = {key: value for key, value in values.items() if key in self._keys}
                # A column that was added later, which filters see, goes before a key.
                row = {**values, **row}
        except ValueError as error:  # JSON, or a sparse vector, that is none
            raise RowError(f"a row cannot be read ({error})") from error
        return row

    def vectors(self, name: str, positions: range) -> npt.NDArray[Any] | None:
        """The vectors of a dense column as one array; see `_rpc.Rows.vectors`."""
        column = self._columns[name]
        assert isinstance(column, _DenseVectors)
        return column.array(positions)


class _DenseVectors:
    """The vectors of a column, which are bytes one after the other.

    Args:
        data: The bytes.
        width: Bytes of one vector.
        dtype: The type of a number, as far as numpy has it; bytes otherwise.
        places: For each row the place of its vector among those that there are.
    """

    def __init__(self, data: bytes, width: int, dtype: str, places: Sequence[int | None]) -> None:
        self._data = data
        self._width = width
        self._dtype = dtype
        self._places = places

    def __call__(self, position: int) -> bytes | None:
        place = self._places[position]
        if place is None:
            return None
        return self._data[place * self._width : (place + 1) * self._width]

    def array(self, positions: range) -> npt.NDArray[Any] | None:
        """The vectors of some rows, shape `(rows, numbers of a vector)`; `None` if one has none."""
        places = [self._places[position] for position in positions]
        if None in places:
            return None
        array = np.frombuffer(self._data, dtype=self._dtype)
        return array.reshape(-1, self._width // array.itemsize)[np.asarray(places, dtype=np.intp)]


def _column(field: Any) -> tuple[_Getter, int, int]:
    """How to get the value of a row, how many rows there are, and their bytes.

    What kind of values there are is read from where they are: a response names the types of new
    versions of Milvus before this package knows them.
    """
    kind = field.WhichOneof("field")
    if kind == "scalars" and field.scalars.HasField("string_data") and not field.valid_data:
        texts = list(field.scalars.string_data.data)  # nearly every column is one of these
        return texts.__getitem__, len(texts), sum(map(len, texts))
    valid = list(field.valid_data)
    if kind == "vectors":
        return _vectors(field.vectors, valid)
    if kind not in ("scalars", None):
        raise RowError(
            f"the column {field.field_name!r} has values of a kind that cannot be read ({kind}); "
            "name the output_fields that you need, without it"
        )
    place = field.scalars.WhichOneof("data")
    if place is None:  # no value but nulls
        return lambda position: None, len(valid), 0
    values = list(getattr(field.scalars, place).data)
    if valid:
        places = _places(valid, len(values))
        values = [None if at is None else values[at] for at in places]
    if place == "json_data":
        return _json(values), len(values), sum(map(len, filter(None, values)))
    if place == "array_data":
        arrays = [None if value is None else _array(value) for value in values]
        return arrays.__getitem__, len(arrays), 64 * len(arrays)
    texts = place == "string_data"
    size = sum(map(len, filter(None, values))) if texts else 8 * len(values)
    return values.__getitem__, len(values), size


def _json(values: Sequence[bytes | None]) -> _Getter:
    def get(position: int) -> Any:
        value = values[position]
        return orjson.loads(value) if value else None

    return get


def _array(scalars: Any) -> list[Any]:
    """The elements of one array."""
    place = scalars.WhichOneof("data")
    return [] if place is None else list(getattr(scalars, place).data)


def _vectors(vectors: Any, valid: Sequence[bool]) -> tuple[_Getter, int, int]:
    place = vectors.WhichOneof("data")
    if place == "sparse_float_vector":
        contents = list(vectors.sparse_float_vector.contents)
        places = _places(valid, len(contents))
        return _sparse(contents, places), len(places), sum(map(len, contents))
    if place is None:
        nothing = _DenseVectors(b"", 1, "u1", _places(valid, 0))
        return nothing, len(valid), 0
    if place not in _VECTOR_BYTES:
        raise RowError(f"vectors of a kind that cannot be read ({place})")
    width = _VECTOR_BYTES[place](vectors.dim)
    if place == "float_vector":
        # The bytes as they came: numbers one by one take five times as long. Before them are the
        # tag of the packed field and their length.
        message = vectors.float_vector.SerializeToString()
        data = message[len(message) - 4 * len(vectors.float_vector.data) :]
    else:
        data = getattr(vectors, place)
    places = _places(valid, len(data) // width if width else 0)
    dtype = "<f4" if place == "float_vector" else "u1"
    return _DenseVectors(data, width, dtype, places), len(places), len(data)


def _places(valid: Sequence[bool], count: int) -> Sequence[int | None]:
    """For each row the place of its value among those that there are, `None` for null."""
    if not valid:
        return range(count)
    if count == len(valid):  # for null there is a value that means nothing
        return [place if is_valid else None for place, is_valid in enumerate(valid)]
    if count != sum(valid):
        raise RowError(f"a column has {count} values for {sum(valid)} rows")
    before = accumulate(valid, initial=0)
    return [place if is_valid else None for place, is_valid in zip(before, valid, strict=False)]


def _sparse(contents: Sequence[bytes], places: Sequence[int | None]) -> _Getter:
    def get(position: int) -> dict[int, float] | None:
        place = places[position]
        if place is None:
            return None
        entries = np.frombuffer(contents[place], dtype=_SPARSE)
        return dict(zip(entries["index"].tolist(), entries["value"].tolist(), strict=True))

    return get


def rows(response: Any) -> ResponseRows:
    """The rows of a `QueryResults`."""
    return ResponseRows(response.fields_data, response.output_fields)


class SearchResponse(list[Hits]):
    """The hits of each search of a response.

    Attributes:
        size: Bytes of the hits, estimated.
    """

    size: int = 0


def hits(response: Any) -> SearchResponse:
    """The hits of each search of a `SearchResults`."""
    results = response.results
    place = results.ids.WhichOneof("id_field")
    ids = [] if place is None else list(getattr(results.ids, place).data)
    scores = list(results.scores)
    found = ResponseRows(results.fields_data, results.output_fields, len(ids))
    hits_of_each = SearchResponse()
    hits_of_each.size = found.size + 16 * len(ids)
    start = 0
    for count in results.topks:
        end = start + count
        if end > min(len(ids), len(scores)):
            raise RowError(f"a response has fewer hits than it says, {sum(results.topks)}")
        hits_of_each.append(Hits(ids[start:end], scores[start:end], found, range(start, end)))
        start = end
    return hits_of_each
