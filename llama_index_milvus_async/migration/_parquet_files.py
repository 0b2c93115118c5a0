"""Parquet files: the rows of a collection into one, and nodes out of one. Needs pyarrow."""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
from llama_index.core.schema import BaseNode
from pyarrow import parquet
from pymilvus import DataType

from .._operations import Ready
from .._rpc import Row
from .._translation.layout import (
    DYNAMIC_FIELD,
    VECTOR_TYPES,
    Column,
    Index,
    Layout,
    stored_columns,
)
from .._translation.row_to_node import RowReader
from ..errors import ConfigurationError, RowError
from ._arrow import (
    VECTOR_ITEMS,
    arrow_array,
    arrow_schema,
    bytes_of_vectors,
    dimension_of,
    dynamic_array,
    items_of_vector,
    json_value,
)

#: Rows and bytes of a row group, which its writer and its readers hold in memory whole.
_GROUP_ROWS = 10_000
_GROUP_BYTES = 16 * 2**20
#: Rows that are made nodes at once.
_BATCH_ROWS = 1_000
#: What Arrow raises where a file is cut off or damaged.
_UNREADABLE = (OSError, pa.ArrowException)
#: The key of a file's metadata that says which part each column plays, and its type in Milvus.
_ROLES = b"llama_index_milvus_async"


class RowFile:
    """A file to be written; it has its name only once it is whole.

    Its methods may run in threads, where `discard` may come while a cancelled call goes on.

    Args:
        path: The file.
        ready: The collection that the rows come from.

    Raises:
        CollectionError: A column has a type that cannot be written.
    """

    def __init__(self, path: Path, ready: Ready) -> None:
        self._path = path
        self._layout = layout = ready.layout
        self._names = stored_columns(layout)
        schema = arrow_schema(layout, self._names)
        self._schema = schema.with_metadata({_ROLES: _Roles.of_collection(ready).dumps()})
        self._pages: list[pa.RecordBatch] = []
        self._lock = threading.Lock()
        self._unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
        self._file: BinaryIO | None = None
        self._writer: parquet.ParquetWriter | None = None
        self._is_discarded = False

    def open(self) -> None:
        """Begin the file, under another name.

        Raises:
            ConfigurationError: It cannot be made.
            OSError: It cannot be written.
        """
        with self._writing():
            if self._is_discarded:
                return
            try:
                self._file = self._unfinished.open("xb")
            except OSError as error:
                raise ConfigurationError(
                    f"path={str(self._path)!r} cannot be written ({error.strerror or error})"
                ) from error
            # Numbers of vectors hardly ever repeat.
            texts = [field.name for field in self._schema if not pa.types.is_list(field.type)]
            self._writer = parquet.ParquetWriter(self._file, self._schema, use_dictionary=texts)

    def write(self, rows: Sequence[Row]) -> None:
        """Take rows; they are written when they fill a row group.

        Raises:
            OSError: They cannot be.
        """
        rows = list(rows)
        columns = self._layout.columns
        arrays = [
            dynamic_array(self._layout, rows)
            if name == DYNAMIC_FIELD
            else arrow_array(columns[name], [row.get(name) for row in rows])
            for name in self._names
        ]
        page = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        with self._writing():
            self._pages.append(page)
            rows_waiting = sum(page.num_rows for page in self._pages)
            bytes_waiting = sum(page.nbytes for page in self._pages)
            if rows_waiting >= _GROUP_ROWS or bytes_waiting >= _GROUP_BYTES:
                self._write_group()

    def finish(self) -> None:
        """Give the file its name.

        Raises:
            OSError: It cannot be written to its end.
        """
        with self._writing():
            assert self._file is not None and self._writer is not None
            if self._pages:
                self._write_group()
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._unfinished, self._path)

    def discard(self) -> None:
        """Remove what was written."""
        with self._lock:
            self._is_discarded = True
            # Whatever failed before may fail again: closing writes what a full disk did not take.
            if self._writer is not None:
                with contextlib.suppress(Exception):
                    self._writer.close()
                self._writer.is_open = False  # else it closes again when it is garbage
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._unfinished.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except OSError as error:  # which often does not say which file
                raise OSError(error.errno, error.strerror or str(error), str(self._path)) from error

    def _write_group(self) -> None:
        assert self._writer is not None
        table = pa.Table.from_batches(self._pages, self._schema)
        self._pages = []
        self._writer.write_table(table, row_group_size=table.num_rows)


@dataclass(frozen=True)
class _Roles:
    """Which part each column of a file plays, and the types that columns have in Milvus.

    Files that something else has written do not say so: then they are those of the target.
    """

    primary_key: str
    text_key: str
    doc_id_field: str | None
    dense_fields: Sequence[str]
    sparse_field: str | None
    types: Mapping[str, str]
    metrics: Mapping[str, str]

    @classmethod
    def of_collection(cls, ready: Ready) -> _Roles:
        types = {name: column.type.name for name, column in ready.layout.columns.items()}
        metrics = {name: index.metric for name, index in ready.indexes.items()}
        return cls._of_layout(ready.layout, types, metrics)

    @property
    def vectors(self) -> list[str]:
        """The columns of vectors that nodes have."""
        return [*self.dense_fields, *([self.sparse_field] if self.sparse_field else [])]

    @classmethod
    def of_file(cls, schema: pa.Schema, target: Layout) -> _Roles:
        written = (schema.metadata or {}).get(_ROLES)
        return cls(**orjson.loads(written)) if written else cls._of_layout(target, {}, {})

    @classmethod
    def _of_layout(
        cls, layout: Layout, types: Mapping[str, str], metrics: Mapping[str, str]
    ) -> _Roles:
        return cls(
            layout.primary_key,
            layout.text_key,
            layout.doc_id_field,
            layout.dense_fields,
            layout.sparse_field,
            types,
            metrics,
        )

    def dumps(self) -> bytes:
        return orjson.dumps(self.__dict__)


class NodeFile:
    """The nodes of a file.

    Args:
        path: The file.
        target: The collection that they are for. Where it is still to be made, its vectors may have
            no dimension yet; then the file decides.
        rows: Most nodes of a batch.

    Attributes:
        total: The number of nodes.
        like: The file as a collection.

    Raises:
        ConfigurationError: It is not a Parquet file, columns are missing, or vectors are not those
            of the collection.
    """

    def __init__(self, path: Path, target: Layout, rows: int = _BATCH_ROWS) -> None:
        self._path = path
        self._target_sparse = target.sparse_field if target.encodes_sparse else None
        self._lock = threading.Lock()  # `close` may come while a cancelled call still reads
        try:
            self._file = parquet.ParquetFile(path)
        except _UNREADABLE as error:
            raise ConfigurationError(
                f"path={str(path)!r} is not a Parquet file that can be read ({error})"
            ) from error
        try:
            self._begin(target, rows)
        except BaseException as error:
            self._file.close()
            if isinstance(error, _UNREADABLE):
                raise self._refusal(f"it is damaged ({error})") from error
            raise

    def _begin(self, target: Layout, rows: int) -> None:
        schema = self._file.schema_arrow
        names = schema.names
        self._roles = roles = _Roles.of_file(schema, target)
        sparse = (self._target_sparse, roles.sparse_field) if self._target_sparse else ()
        self._sparse = next((name for name in sparse if name in names), None)
        #: The dense columns of the target, by the column of the file that they are filled from.
        self._dense = self._find_dense(target, names)
        self._check_columns(target, schema)
        self._types = {name: self._type_of(name, schema) for name in names}
        self._check_rows(rows)
        layout = self._layout(target)
        embedding = layout.embedding_field
        metric = roles.metrics.get(embedding or "", "")
        self.like = Ready(layout, {embedding: Index(metric, "")} if embedding else {}, {})
        self.total = int(self._file.metadata.num_rows)
        self._reader = RowReader(layout, list(self._dense), embedding)
        used = {*self._dense, self._sparse}
        read = [name for name in names if self._types[name] not in VECTOR_TYPES or name in used]
        self._batches = self._file.iter_batches(rows, columns=read)

    def next(self) -> list[BaseNode]:
        """The next nodes; none after the last.

        Raises:
            RowError: A row holds no readable node.
        """
        with self._lock:
            try:
                batch = next(self._batches, None)
            except _UNREADABLE as error:
                raise RowError(f"{self._path} is damaged ({error})") from error
            if batch is None:
                return []
            rows = self._rows_of(batch)
            nodes = [self._reader.node(row) for row in rows]
            if self._sparse is not None:
                for node, row in zip(nodes, rows, strict=True):
                    if row[self._sparse] is not None:
                        node.metadata[str(self._target_sparse)] = row[self._sparse]
            return nodes

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    def _find_dense(self, target: Layout, names: Sequence[str]) -> dict[str, Column]:
        """The columns of the file that the dense columns of the target are filled from."""
        found: dict[str, Column] = {}
        for position, name in enumerate(target.dense_fields):
            column = target.dense_column(name)
            if position == 0 and name not in names and self._roles.dense_fields:
                name = self._roles.dense_fields[0]
            if name in names or not column.optional:
                found[name] = column
        return found

    def _check_columns(self, target: Layout, schema: pa.Schema) -> None:
        roles, names = self._roles, schema.names
        wanted = {roles.primary_key: f"the ids (the store's {target.primary_key!r})"}
        if DYNAMIC_FIELD not in names:  # where collections of the other package have the texts
            wanted[roles.text_key] = f"the texts (the store's {target.text_key!r})"
        for name, column in self._dense.items():
            wanted[name] = f"the vectors of the store's {column.name!r}"
        missing = [f"{name!r} for {what}" for name, what in wanted.items() if name not in names]
        if missing:
            raise self._refusal(
                f"it lacks the columns {', '.join(missing)}, and has {names}. Rename columns of "
                "the file, or pass a store whose id_field, text_key, embedding_field and "
                "dense_fields name them"
            )
        for name in self._dense:
            kind = schema.field(name).type
            if not _is_list(kind) or not _is_number(kind.value_type):
                raise self._refusal(
                    f"the column {name!r} has values of type {kind}, and should have vectors, "
                    "which are lists of numbers"
                )
        used = {*self._dense, self._sparse}
        unused = [name for name in roles.vectors if name in names and name not in used]
        if unused:
            raise self._refusal(
                f"it has vectors in {unused}, and the store has no place for them. Pass a store "
                "with dense_fields, or with enable_sparse and a sparse_embedding_function, that "
                "has, or drop these columns from the file"
            )

    def _type_of(self, name: str, schema: pa.Schema) -> DataType:
        """The type in Milvus that the values of a column have."""
        written = self._roles.types.get(name)
        if written is not None and written in DataType.__members__:
            return DataType[written]
        if name in self._dense:
            # Bytes mean what they mean to the collection, and numbers are numbers.
            kind = self._dense[name].type
            return kind if schema.field(name).type.value_type == pa.uint8() else _FLOATS
        if name == self._sparse:
            return DataType.SPARSE_FLOAT_VECTOR
        return DataType.NONE

    def _check_rows(self, rows: int) -> None:
        """Check all ids and dense vectors of the file, before anything is written."""
        key = self._roles.primary_key
        first = 0
        for batch in self._file.iter_batches(rows, columns=[key, *self._dense]):
            ids = batch.column(key)
            if ids.null_count:
                position = int(np.argmax(np.asarray(ids.is_null())))
                raise self._refusal(f"row {first + position} has no id in the column {key!r}")
            for name, column in self._dense.items():
                try:
                    array = _list_array(batch, name, self._types[name])
                except pa.ArrowInvalid as error:
                    raise self._refusal(f"the vectors of the column {name!r}: {error}") from error
                problem = self._problem(array, name, column)
                if problem is not None:
                    position, what = problem
                    row = f"row {first + position} (id {ids[position].as_py()!r})"
                    raise self._refusal(f"{row} has {what} in the column {name!r}")
            first += batch.num_rows

    def _refusal(self, problem: str) -> ConfigurationError:
        return ConfigurationError(f"path={str(self._path)!r}: {problem}. Nothing was written")

    def _problem(self, array: pa.ListArray, name: str, column: Column) -> tuple[int, str] | None:
        """The first row whose vector does not fit, and what is wrong with it."""
        kind = self._types[name]
        lengths = np.asarray(array.value_lengths().fill_null(-1))
        if column.dim is None and (lengths > 0).any():
            first = int(lengths[np.argmax(lengths > 0)])
            column = self._dense[name] = replace(column, dim=dimension_of(kind, first))
        items = items_of_vector(kind, column.dim or 0)
        fitting = lengths == items
        if column.optional:
            fitting |= lengths == -1
        if not fitting.all():
            position = int(np.argmin(fitting))
            length = int(lengths[position])
            if length < 0:
                return position, "no vector"
            dims = dimension_of(kind, length)
            return position, f"a vector of {dims} dimensions in place of {column.dim}"
        numbers = array.flatten()
        good = np.asarray(numbers.is_valid())
        if kind == _FLOATS:
            good &= np.isfinite(np.asarray(numbers))
        if not good.all():
            # Of the rows that have a vector, which may not be all.
            with_vector = np.flatnonzero(lengths >= 0)
            row = with_vector[int(np.argmin(good)) // items]
            return int(row), "a value that is not a finite 32-bit number (NaN, infinity)"
        return None

    def _layout(self, target: Layout) -> Layout:
        """The file as a collection of Milvus, whose rows are read."""
        roles = self._roles
        columns = {
            name: Column(name, kind, dim=self._dense[name].dim if name in self._dense else None)
            for name, kind in self._types.items()
            if name != DYNAMIC_FIELD
        }
        return Layout(
            collection_name=self._path.name,
            columns=columns,
            primary_key=roles.primary_key,
            auto_id=False,
            doc_id_field=roles.doc_id_field,
            text_key=roles.text_key,
            dense_fields=tuple(self._dense),
            sparse_field=self._sparse,
            dynamic=DYNAMIC_FIELD in self._types,
            engine=target.engine,
        )

    def _rows_of(self, batch: pa.RecordBatch) -> list[dict[str, Any]]:
        names = batch.schema.names
        try:
            values = [self._values(batch, name) for name in names]
        except ValueError as error:
            raise RowError(f"{self._path}: a row cannot be read ({error})") from error
        rows = [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
        if DYNAMIC_FIELD not in names:
            return rows
        # A column goes before a key.
        return [{**(row.pop(DYNAMIC_FIELD) or {}), **row} for row in rows]

    def _values(self, batch: pa.RecordBatch, name: str) -> Sequence[Any]:
        kind = self._types[name]
        if name in self._dense:
            return bytes_of_vectors(_list_array(batch, name, kind), kind)
        values: list[Any] = batch.column(name).to_pylist()
        if name == DYNAMIC_FIELD or kind == DataType.JSON:
            return [json_value(value) for value in values]
        if kind == DataType.SPARSE_FLOAT_VECTOR:
            return [_sparse(json_value(value)) for value in values]
        return values


_FLOATS = DataType.FLOAT_VECTOR


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _list_array(batch: pa.RecordBatch, name: str, kind: DataType) -> pa.ListArray:
    """A column of vectors, in whichever of Arrow's kinds of lists and numbers it is written."""
    return batch.column(name).cast(pa.list_(VECTOR_ITEMS[kind]))


def _sparse(vector: Mapping[str, float] | None) -> dict[int, float] | None:
    return None if vector is None else {int(key): value for key, value in vector.items()}
