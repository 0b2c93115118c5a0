"""Nodes to rows.

A row has the layout of the upstream plugin: the node as JSON without text and embedding under
`_node_content`, its class under `_node_type`, every metadata key beside them, and the id of the
source document under `doc_id`, `document_id` and `ref_doc_id`. Where each part is stored, in a
column or in the dynamic field, is the collection's `Layout`.

Sizes are UTF-8 bytes, as Milvus counts them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from llama_index.core.schema import BaseNode, MetadataMode
from pydantic_core import PydanticSerializationError, to_jsonable_python
from pymilvus import DataType

from ..errors import NodeError
from .layout import (
    DOC_ID_KEYS,
    DYNAMIC_FIELD,
    INTEGER_TYPES,
    NO_DOC_ID,
    NODE_CONTENT_FIELD,
    NODE_TYPE_FIELD,
    Column,
    Layout,
)
from .numbers import is_integer, is_number
from .sparse_vectors import sparse_vector
from .vectors import FLOAT32_MAX, packed

#: Milvus' bound on the dynamic field of one row, as JSON (`common.MaxDynamicFieldSize`; the
#: server answers code 1100 beyond it). Lite has none; the bound is kept there as well, so that
#: what was built on a laptop can move to a server.
MAX_DYNAMIC_BYTES = 65_536

_INTEGER_BITS = {
    DataType.INT8: 8,
    DataType.INT16: 16,
    DataType.INT32: 32,
    DataType.INT64: 64,
}
#: What is raised for a value that JSON cannot carry.
_NO_JSON = (TypeError, ValueError, RecursionError, PydanticSerializationError)

# pymilvus serializes the dynamic field with orjson, which ends at 64 bits.
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**64 - 1
# As it is written back: an id such as "007" would not be found again.
_INTEGER_ID = re.compile(r"0|-?[1-9][0-9]{0,18}")
_LONG_INTEGER = re.compile(r"\d{19}")


@dataclass(frozen=True)
class PackedRow:
    """A row ready to be sent.

    Attributes:
        node_id: The id of the node it was made of.
        values: Column or dynamic key to value, as pymilvus takes rows.
        size: Estimated bytes in the message.
    """

    node_id: str
    values: dict[str, Any]
    size: int


class RowPacker:
    """Makes rows of nodes for one collection, and finds what Milvus would refuse.

    Args:
        layout: The collection.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._dense = [layout.dense_column(name) for name in layout.dense_fields]
        self._further = frozenset(layout.dense_fields[1:])
        self._dense_bytes = 4 * sum(column.dim or 0 for column in self._dense)
        self.problems: list[tuple[str, str]] = []

    def pack(self, node: BaseNode, sparse: Any = None) -> PackedRow | None:
        """Make the row of a node.

        What is wrong with the node is added to `problems`.

        Args:
            node: The node.
            sparse: Its sparse embedding, where the store computes it.

        Returns:
            The row, or `None` where the node cannot be stored.
        """
        before = len(self.problems)

        def report(problem: str) -> None:
            self.problems.append((node.node_id, problem))

        layout = self._layout
        primary_key = self._id_value(node.node_id, report)
        vectors = self._vectors(node, sparse, report)
        text = node.get_content(metadata_mode=MetadataMode.NONE)
        text_bytes = _check_text("text", text, layout.max_bytes(layout.text_key), report)
        doc_id = node.ref_doc_id or NO_DOC_ID
        values: dict[str, Any] = {}
        content_bytes = 0
        if layout.holds_nodes:
            content_bytes = self._add_node(node, values, doc_id, report)
        else:
            self._add_metadata(node, values, doc_id, report)
        self._add_scalars(node, values, report)
        if layout.doc_id_field is not None:
            if doc_id != NO_DOC_ID:
                limit = layout.max_bytes(layout.doc_id_field)
                _check_text("the id of its source document", doc_id, limit, report)
            values[layout.doc_id_field] = doc_id
        values[layout.primary_key] = primary_key
        values[layout.text_key] = text
        values.update(vectors)
        if len(self.problems) > before:
            return None
        size = self._dense_bytes + text_bytes + 2 * content_bytes
        if layout.sparse_field in vectors:
            size += 8 * len(vectors[layout.sparse_field])
        return PackedRow(node.node_id, values, size)

    def raise_problems(self) -> None:
        """Raise what `pack` has found.

        Raises:
            NodeError: Naming every problem of every node.
        """
        if self.problems:
            raise NodeError(self.problems)

    def _id_value(self, node_id: str, report: Callable[[str], None]) -> str | int:
        layout = self._layout
        if not node_id:
            report("the id is empty")
        elif not layout.integer_ids:
            _check_text("the id", node_id, layout.max_bytes(layout.primary_key), report)
        elif not _INTEGER_ID.fullmatch(node_id) or not _fits(int(node_id), 64):
            report(f"the primary key {layout.primary_key!r} is INT64, and the id is not an integer")
        else:
            return int(node_id)
        return node_id

    def _vectors(
        self, node: BaseNode, sparse: Any, report: Callable[[str], None]
    ) -> dict[str, Any]:
        """The values of the vector columns."""
        vectors: dict[str, Any] = {}
        for position, column in enumerate(self._dense):
            if position == 0:
                what, embedding = "its embedding", node.embedding
            else:
                what = f"its embedding {column.name!r} (the metadata key of that name)"
                embedding = node.metadata.get(column.name)
            if embedding is None:
                if not column.optional:
                    missing = "it has no embedding"
                    report(f"{missing} {column.name!r}, a metadata key" if position else missing)
                continue
            try:
                vectors[column.name] = packed(embedding, column.type, column.dim)
            except ValueError as error:
                report(f"{what} {error}")
        sparse_field = self._layout.sparse_field
        if sparse_field is not None and self._layout.encodes_sparse:
            try:
                vectors[sparse_field] = sparse_vector(sparse)
            except ValueError as error:
                report(f"its sparse embedding {error}")
        return vectors

    def _add_node(
        self,
        node: BaseNode,
        values: dict[str, Any],
        doc_id: str,
        report: Callable[[str], None],
    ) -> int:
        """Add the serialized node and its metadata; return the bytes of the former."""
        layout = self._layout
        try:
            content = _node_json(node, self._further)
            content_bytes = len(content.encode())
            metadata = _plain_metadata(self._metadata(node))
        except _NO_JSON as error:
            report(f"its metadata or fields cannot be carried by JSON: {error}")
            return 0
        if layout.node_in_column and content_bytes > layout.max_bytes(NODE_CONTENT_FIELD):
            report(
                f"its metadata, relationships and ids take {content_bytes} bytes as JSON, Milvus "
                f"allows {layout.max_bytes(NODE_CONTENT_FIELD)}"
            )
        self._check_keys(metadata, doc_id, report)
        values.update(metadata)
        for key in DOC_ID_KEYS:
            if layout.dynamic and key not in layout.columns:
                values[key] = doc_id
        values[NODE_CONTENT_FIELD] = content
        values[NODE_TYPE_FIELD] = node.class_name()
        self._check_dynamic(values, content_bytes, report)
        return content_bytes

    def _add_metadata(
        self,
        node: BaseNode,
        values: dict[str, Any],
        doc_id: str,
        report: Callable[[str], None],
    ) -> None:
        """Add the metadata to a row that holds no node; there are only columns for it."""
        try:
            metadata = _plain_metadata(self._metadata(node))
            text = _compact_json(metadata)
            text.encode()
            _check_integers(text)
        except _NO_JSON as error:
            report(f"its metadata cannot be carried by JSON: {error}")
            return
        self._check_keys(metadata, doc_id, report)
        for key in metadata.keys() - self._layout.columns.keys() - {DYNAMIC_FIELD}:
            report(
                f"metadata key {key!r} cannot be stored: the collection has neither a column "
                "of that name nor a dynamic field"
            )
        values.update(metadata)

    def _metadata(self, node: BaseNode) -> Mapping[str, Any]:
        """The metadata without embeddings."""
        if self._further.isdisjoint(node.metadata):
            return node.metadata
        return {key: value for key, value in node.metadata.items() if key not in self._further}

    def _check_keys(
        self, metadata: Mapping[str, Any], doc_id: str, report: Callable[[str], None]
    ) -> None:
        layout = self._layout
        for key in metadata.keys() & layout.own_columns:
            # The id of the document under its own name says nothing new, and readers do that.
            if not (key == layout.doc_id_field and metadata[key] == doc_id):
                report(f"the metadata key {key!r} is the name of a column of the store; rename it")
        if DYNAMIC_FIELD in metadata:
            report(f"the metadata key {DYNAMIC_FIELD!r} is reserved by Milvus; rename it")

    def _check_dynamic(
        self, values: Mapping[str, Any], content_bytes: int, report: Callable[[str], None]
    ) -> None:
        # The metadata and the document's id, which the dynamic field has under three keys, are
        # part of the content, so that its size bounds the dynamic field's, and the exact count
        # is only taken near the limit. Where the content is in the dynamic field itself, it is
        # there as escaped text, up to six times as long.
        factor = len(DOC_ID_KEYS) + (0 if self._layout.node_in_column else 6)
        if factor * content_bytes + 1_024 < MAX_DYNAMIC_BYTES:
            return
        columns = self._layout.columns
        dynamic = {key: value for key, value in values.items() if key not in columns}
        size = len(_compact_json(dynamic).encode())
        if size > MAX_DYNAMIC_BYTES:
            largest = max(dynamic, key=lambda key: len(str(dynamic[key])))
            report(
                f"its metadata takes {size} bytes as JSON in the dynamic field, Milvus allows "
                f"{MAX_DYNAMIC_BYTES}; the largest key is {largest!r}"
            )

    def _add_scalars(
        self, node: BaseNode, values: dict[str, Any], report: Callable[[str], None]
    ) -> None:
        for name, column in self._layout.scalar_columns.items():
            if name in values:
                problem = _scalar_problem(column, values[name])
            elif name in node.metadata:
                continue  # JSON cannot carry the metadata, which has been reported
            else:
                problem = None if column.optional else "is missing"
            if problem:
                report(f"metadata key {name!r} of column type {column.type.name} {problem}")


def _check_text(what: str, text: str, limit: int, report: Callable[[str], None]) -> int:
    """Report a text over `limit` bytes or without UTF-8; return its bytes."""
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        report(f"{what} has a lone surrogate at position {error.start}, which UTF-8 cannot encode")
        return 0
    if size > limit:
        report(f"{what} takes {size} bytes, Milvus allows {limit}")
    return size


def _fits(value: int, bits: int) -> bool:
    limit: int = 2 ** (bits - 1)
    return -limit <= value < limit


def _scalar_problem(column: Column, value: Any) -> str | None:
    """What is wrong with a value for a column, or `None`."""
    if value is None:
        return None if column.optional else "is None"
    kind = column.type
    if kind in INTEGER_TYPES:
        if not is_integer(value):
            return f"is {value!r}, which is not an integer"
        return None if _fits(value, _INTEGER_BITS[kind]) else f"is {value}, out of range"
    if kind == DataType.BOOL:
        return None if isinstance(value, bool) else f"is {value!r}, which is neither true nor false"
    if kind in (DataType.FLOAT, DataType.DOUBLE):
        if not is_number(value):
            return f"is {value!r}, which is not a number"
        # Milvus would store infinity.
        over = kind == DataType.FLOAT and abs(value) > FLOAT32_MAX
        return f"is {value}, out of range" if over else None
    if kind == DataType.VARCHAR:
        if not isinstance(value, str):
            return f"is {value!r}, which is not a text"
        try:
            size = len(value.encode())
        except UnicodeEncodeError as error:
            return f"has a lone surrogate at position {error.start}, which UTF-8 cannot encode"
        over = column.max_bytes is not None and size > column.max_bytes
        return f"takes {size} bytes, Milvus allows {column.max_bytes}" if over else None
    if kind == DataType.ARRAY:
        return None if isinstance(value, list) else f"is {value!r}, which is not a list"
    if kind == DataType.JSON:
        # pymilvus parses texts, and servers take objects only.
        if not isinstance(value, dict):
            return f"is {value!r}, which is not a JSON object"
        size = len(_compact_json(value).encode())
        over = size > MAX_DYNAMIC_BYTES
        return f"takes {size} bytes as JSON, Milvus allows {MAX_DYNAMIC_BYTES}" if over else None
    return None


def _compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _node_json(node: BaseNode, without: frozenset[str] = frozenset()) -> str:
    """Serialize a node as LlamaIndex's `node_to_metadata_dict` does, without its embedding.

    That function dumps the embedding only to drop it, five times the cost at 768 dimensions.

    Args:
        node: The node.
        without: Metadata keys to leave out.
    """
    data = node.model_dump(exclude={"embedding"})
    data["embedding"] = None
    if without:
        _drop_keys(data, without)
    if "text" in data:
        data["text"] = ""
    resource = data.get("text_resource")
    if resource is not None:
        others = {k: v for k, v in resource.items() if k != "text" and v is not None}
        if resource["text"] is None:
            others["text"] = None  # no text is not an empty text, which its column has for both
        if others:
            data["text_resource"] = others
        else:
            # LlamaIndex's own readers expect the text resource to be gone with its text.
            del data["text_resource"]
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, default=_to_json)
    _check_integers(text)
    return text


def _drop_keys(data: dict[str, Any], without: frozenset[str]) -> None:
    """Drop metadata keys of a dumped node, and of the nodes that its relationships describe."""
    related = data.get("relationships", {}).values()
    described = [one for some in related for one in (some if isinstance(some, list) else [some])]
    for holder in [data, *described]:
        for key in without:
            holder["metadata"].pop(key, None)


def _plain_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as JSON can carry it, for the dynamic field and the scalar columns."""
    if all(
        type(key) is str and type(value) in (str, bool, int, type(None))
        for key, value in metadata.items()
    ):
        return dict(metadata)
    plain: dict[str, Any] = json.loads(json.dumps(metadata, allow_nan=False, default=_to_json))
    return plain


def _to_json(value: Any) -> Any:
    """Convert what `json` does not know: numpy, dates, UUIDs, enumerations, sets, ..."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        # Sorted, so that equal sets make equal rows.
        return sorted(value, key=lambda item: (type(item).__name__, str(item)))
    return to_jsonable_python(value)


def _check_integers(text: str) -> None:
    if _LONG_INTEGER.search(text) is None:
        return

    def check(digits: str) -> int:
        value = int(digits)
        if not _MIN_INTEGER <= value <= _MAX_INTEGER:
            raise ValueError(f"the integer {digits} has more than 64 bits")
        return value

    json.loads(text, parse_int=check)
