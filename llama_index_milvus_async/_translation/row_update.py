"""Rows with other metadata: the serialized node and its filterable copy change together."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any

import orjson
from pymilvus import DataType

from ..errors import QueryError
from .column_values import MAX_JSON_BYTES, sent_value
from .layout import DYNAMIC_FIELD, NODE_CONTENT_FIELD, NODE_TYPE_FIELD, VECTOR_TYPES, Layout
from .node_json import dumps, plain_metadata
from .node_to_row import PackedRow, RowPacker
from .plain_json import NOT_JSON, NotJsonError
from .row_to_node import RowReader
from .sparse_vectors import sparse_bytes, sparse_vector


@dataclass(frozen=True)
class MetadataChange:
    """A change of metadata.

    Attributes:
        set: Keys that get a value, whether they had one or not.
        unset: Keys that go, where they are.
    """

    set: Mapping[str, Any]
    unset: Collection[str]

    @classmethod
    def of(cls, set: Any, unset: Any) -> MetadataChange:
        """Read the arguments of an update.

        Raises:
            QueryError: They are not a mapping and a list of keys, or change nothing.
        """
        if not isinstance(set, (Mapping, NoneType)):
            raise QueryError(f"set is {set!r}; it must be a dictionary of metadata key to value")
        if not isinstance(unset, Collection) or isinstance(unset, (str, bytes, Mapping)):
            raise QueryError(f"unset is {unset!r}; it must be a list of metadata keys")
        changes = dict(set or {})
        for argument, keys in (("set", changes), ("unset", unset)):
            for key in keys:
                if not isinstance(key, str):
                    raise QueryError(f"{argument} has the key {key!r}; a key must be a string")
        if both := sorted(changes.keys() & frozenset(unset)):
            raise QueryError(f"set and unset both name {both}; name each key in only one of them")
        if not changes and not unset:
            raise QueryError(
                "update_metadata() needs set={key: value} or unset=[key], to say what to change"
            )
        return cls(changes, frozenset(unset))

    def checked(self, layout: Layout) -> MetadataChange:
        """The change with values as JSON carries them.

        Raises:
            QueryError: Every row of the collection would refuse it.
        """
        for key in layout.dense_fields[1:]:
            if key in self.set or key in self.unset:
                raise QueryError(
                    f"{key!r} is a vector field (dense_fields), whose vectors update_metadata() "
                    "keeps; add the nodes again to change them"
                )
        try:
            plain = plain_metadata(self.set, frozenset())
        except NotJsonError as error:
            raise QueryError(f"set{str(error).removeprefix('metadata')}") from error
        except NOT_JSON as error:
            raise QueryError(f"set has what JSON cannot carry: {error}") from error
        problems: list[str] = []
        for name, column in layout.scalar_columns.items():
            if name in plain:
                about = f"set[{name!r}] (a column of type {column.type.name})"
                found: list[str] = []
                sent_value(column, plain[name], found.append)
                problems += [f"{about} {problem}" for problem in found]
            elif name in self.unset and not column.optional:
                problems.append(f"unset has {name!r}, a column that needs a value in every row")
        if problems:
            raise QueryError("; ".join(problems))
        return MetadataChange(plain, self.unset)


class RowUpdater:
    """Changes the metadata of rows as they were read.

    A row changes in what tells the row of its node with the new metadata from that with the old.
    All else stays as it is: vectors, columns and dynamic keys that are not the node's.

    Args:
        layout: The collection.
        change: The change, checked.
    """

    def __init__(self, layout: Layout, change: MetadataChange) -> None:
        self._layout = layout
        self._change = change
        self._reader = RowReader(layout)
        self._packer = RowPacker(layout, with_vectors=False)
        self._columns = [one for one in layout.written_columns if not one.is_dynamic]
        self._vectors = {one.name for one in self._columns if one.type in VECTOR_TYPES}

    @property
    def fields(self) -> list[str]:
        """The output fields of the read."""
        return [one.name for one in self._layout.written_columns]

    def raise_problems(self) -> None:
        """Raise what `update` has found.

        Raises:
            NodeError: Naming every problem of every node.
        """
        self._packer.raise_problems()

    def update(self, row: Mapping[str, Any]) -> PackedRow | None:
        """Make the changed row.

        Args:
            row: The row, of which all `fields` were read.

        Returns:
            The row as it is to be written; `None` where nothing of it changes, or where it cannot,
            which `raise_problems` tells.

        Raises:
            RowError: It holds no readable node.
        """
        node = self._reader.node({k: v for k, v in row.items() if k not in self._vectors})
        before = self._packer.pack(node)
        node.metadata = {
            key: value
            for key, value in {**node.metadata, **self._change.set}.items()
            if key not in self._change.unset
        }
        after = self._packer.pack(node)
        if before is None or after is None or before.values == after.values:
            return None
        # A row that others have written holds no node, and goes on without.
        kept = () if row.get(NODE_CONTENT_FIELD) else (NODE_CONTENT_FIELD, NODE_TYPE_FIELD)
        values: dict[str, Any] = {}
        for column in self._columns:
            new = after.values.get(column.name)
            if column.name in kept or new == before.values.get(column.name):
                new = self._sent(column.type, row.get(column.name))
            if new is not None:
                values[column.name] = new
        if self._layout.dynamic:
            values[DYNAMIC_FIELD] = self._dynamic(node.node_id, row, before, after, kept)
        size = sum(len(value) for value in values.values() if type(value) in (str, bytes))
        return PackedRow(node.node_id, values, size)

    def _dynamic(
        self,
        node_id: str,
        row: Mapping[str, Any],
        before: PackedRow,
        after: PackedRow,
        kept: Collection[str],
    ) -> bytes:
        old, new = (_loads(packed.values[DYNAMIC_FIELD]) for packed in (before, after))
        dynamic = {
            key: value
            for key, value in row.items()
            if key not in self._layout.columns and (key in new or key not in old)
        }
        changed = {k: v for k, v in new.items() if k not in old or old[k] != v}
        dynamic.update((key, value) for key, value in changed.items() if key not in kept)
        content = dumps(dynamic)
        if len(content) > MAX_JSON_BYTES:
            problem = (
                f"its dynamic field would take {len(content)} bytes as JSON, Milvus allows "
                f"{MAX_JSON_BYTES}"
            )
            self._packer.problems.append((node_id, problem))
        return content

    @staticmethod
    def _sent(kind: DataType, value: Any) -> Any:
        """A value as it was read, in the form of `_rpc.WrittenColumn`."""
        if value is None:
            return None
        if kind == DataType.SPARSE_FLOAT_VECTOR:
            return sparse_bytes(sparse_vector(value))
        return dumps(value) if kind == DataType.JSON else value


def _loads(content: bytes) -> dict[str, Any]:
    try:
        return dict(orjson.loads(content))
    except orjson.JSONDecodeError:  # nested more deeply than it reads
        return dict(json.loads(content))
