"""Nodes to rows.

A row has the layout of the upstream plugin: the node as JSON without text and embedding under
`_node_content`, its class under `_node_type`, every metadata key beside them, and the id of the
source document under `doc_id`, `document_id` and `ref_doc_id`. Where each part is stored, in a
column or in the dynamic field, is the collection's `Layout`.

Sizes are UTF-8 bytes, as Milvus counts them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode

from ..errors import NodeError
from .column_values import MAX_JSON_BYTES, check_text, fits, sent_value
from .engine import Engine
from .layout import (
    DYNAMIC_FIELD,
    NO_DOC_ID,
    NODE_CONTENT_FIELD,
    NODE_TYPE_FIELD,
    Column,
    Layout,
)
from .node_content import compressed, largest_part, shortened
from .node_json import dumps, plain_metadata, serialize
from .plain_json import NOT_JSON, NotJsonError
from .sparse_vectors import sparse_bytes, sparse_vector
from .vectors import packed

# As it is written back: an id such as "007" would not be found again.
_INTEGER_ID = re.compile(r"0|-?[1-9][0-9]{0,18}")


@dataclass(frozen=True)
class PackedRow:
    """A row ready to be sent.

    Attributes:
        node_id: The id of the node it was made of.
        values: Column to value, in the form of `_rpc.WrittenColumn`.
        size: Estimated bytes in the message.
    """

    node_id: str
    values: dict[str, Any]
    size: int


class RowPacker:
    """Makes rows of nodes for one collection, and finds what Milvus would refuse.

    Args:
        layout: The collection.
        with_vectors: Whether the rows have the vectors of their nodes.
    """

    def __init__(self, layout: Layout, *, with_vectors: bool = True) -> None:
        self._layout = layout
        dense = layout.dense_fields if with_vectors else ()
        self._dense = [layout.dense_column(name) for name in dense]
        self._sparse_field = layout.sparse_field if with_vectors and layout.encodes_sparse else None
        self._further = frozenset(layout.dense_fields[1:])
        engine = layout.engine
        #: Why a value is missed that a newer engine would not miss.
        self._no_null = ""
        if not engine.has_null:
            null = Engine.has_null
            self._no_null = f": {engine} {null.lack}; {null.who()} {null.remedy}"
        #: Of how many nodes filters see long texts shortened.
        self.shortened = 0
        self.problems: list[tuple[str, str]] = []

    def pack(self, node: BaseNode, sparse: Any = None) -> PackedRow | None:
        """Make the row of a node.

        What is wrong with the node is added to `problems`.

        Args:
            node: The node.
            sparse: Its sparse embedding, where the store has computed it.

        Returns:
            The row, or `None` where the node cannot be stored.
        """
        before = len(self.problems)

        def report(problem: str) -> None:
            self.problems.append((node.node_id, problem))

        layout = self._layout
        values: dict[str, Any] = {layout.primary_key: self._id_value(node.node_id, report)}
        without = self._further
        if self._sparse_field is not None and (carried := carried_sparse(layout, node)) is not None:
            sparse, without = carried, without | {self._sparse_field}
        self._add_vectors(node, sparse, values, report)
        text = node.get_content(metadata_mode=MetadataMode.NONE)
        text_bytes = check_text("text", text, layout.max_bytes(layout.text_key), report)
        doc_id = node.ref_doc_id or NO_DOC_ID
        field = layout.doc_id_field
        if field not in (None, layout.primary_key) and doc_id != NO_DOC_ID:
            check_text(
                "the id of its source document", doc_id, layout.max_bytes(str(field)), report
            )
        own = {layout.text_key: text, **dict.fromkeys(layout.doc_id_names, doc_id)}
        if layout.holds_nodes:
            self._add_node(node, without, values, own, doc_id, report)
        else:
            self._add_metadata(node, without, values, doc_id, report)
            values.update(own)
        self._add_scalars(node, values, report)
        if len(self.problems) > before:
            return None
        sizes = [len(value) for value in values.values() if type(value) in (str, bytes)]
        return PackedRow(node.node_id, values, sum(sizes) + text_bytes - len(text))

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
            check_text("the id", node_id, layout.max_bytes(layout.primary_key), report)
            if not layout.engine.takes_id(node_id):
                report(f"the id {node_id!r}: {layout.engine} {Engine.has_any_id.lack}")
        elif not _INTEGER_ID.fullmatch(node_id) or not fits(int(node_id), 64):
            report(f"the primary key {layout.primary_key!r} is INT64, and the id is not an integer")
        else:
            return int(node_id)
        return node_id

    def _add_vectors(
        self,
        node: BaseNode,
        sparse: Any,
        values: dict[str, Any],
        report: Callable[[str], None],
    ) -> None:
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
                values[column.name] = packed(embedding, column.type, column.dim)
            except ValueError as error:
                report(f"{what} {error}")
        if self._sparse_field is not None:
            try:
                values[self._sparse_field] = sparse_bytes(sparse_vector(sparse))
            except ValueError as error:
                report(f"its sparse embedding {error}")

    def _add_node(
        self,
        node: BaseNode,
        without: frozenset[str],
        values: dict[str, Any],
        own: dict[str, Any],
        doc_id: str,
        report: Callable[[str], None],
    ) -> None:
        """Add the serialized node, and what the row has beside it."""
        layout = self._layout
        try:
            content, metadata = serialize(node, without)
        except NOT_JSON as error:
            report(f"its {_not_json(error)}")
            return
        own[NODE_TYPE_FIELD] = node.class_name()
        own[NODE_CONTENT_FIELD] = content.decode()
        if layout.node_in_column and len(content) > layout.max_bytes(NODE_CONTENT_FIELD):
            own[NODE_CONTENT_FIELD] = self._compressed(content, report)
        columns = layout.columns
        if scalar := layout.scalar_columns:
            values.update((key, metadata[key]) for key in metadata.keys() & scalar.keys())
            metadata = {key: value for key, value in metadata.items() if key not in scalar}
        if not layout.dynamic:  # what has no column is in the serialized node only
            values.update((key, own[key]) for key in own.keys() & columns.keys())
            return
        if layout.metadata_keys.has_shadowed(metadata):
            metadata = self._shadowed(metadata, doc_id)
        for key in own.keys() & columns.keys():
            values[key] = own.pop(key)
        with suppress(UnicodeEncodeError):  # of a text, and reported as such
            values[DYNAMIC_FIELD] = self._dynamic(metadata, own, content, report)

    def _shadowed(self, metadata: Mapping[str, Any], doc_id: str) -> dict[str, Any]:
        """The filterable copy of metadata some of whose keys are shadowed."""
        # The id of the document under its own names says nothing new, and readers do that.
        layout = self._layout
        has_column = layout.doc_id_field != layout.primary_key
        said = dict.fromkeys(layout.doc_id_names, doc_id) if has_column else {}
        return self._layout.metadata_keys.renamed(
            {k: v for k, v in metadata.items() if not (k in said and v == said[k])}
        )

    def _dynamic(
        self,
        metadata: Mapping[str, Any],
        own: dict[str, Any],
        content: bytes,
        report: Callable[[str], None],
    ) -> bytes:
        """The JSON of the dynamic field: the filterable copy of metadata, and what has no column.

        What is too large is made smaller: first the serialized node, where it is in here; then
        the texts of the copy.
        """
        dynamic = dumps({**metadata, **own})
        if len(dynamic) <= MAX_JSON_BYTES:
            return dynamic
        size = len(dynamic)
        if NODE_CONTENT_FIELD in own and (packed := compressed(content)) is not None:
            own[NODE_CONTENT_FIELD] = packed
            dynamic = dumps({**metadata, **own})
        if len(dynamic) > MAX_JSON_BYTES:
            dynamic = dumps({**shortened(metadata), **own})
            self.shortened += len(dynamic) <= MAX_JSON_BYTES
        if len(dynamic) > MAX_JSON_BYTES:
            has_node = NODE_CONTENT_FIELD in own
            largest = largest_part(content, metadata_only=not has_node, beside=self._named(own))
            report(
                f"its metadata takes {size} bytes as JSON in the dynamic field, Milvus "
                f"allows {MAX_JSON_BYTES}; the largest part is {largest}"
            )
        return dynamic

    def _named(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """What the dynamic field has beside node and metadata, by what it is to the user."""
        named: dict[str, Any] = {}
        if self._layout.text_key in own:
            named["the text"] = own[self._layout.text_key]
        ids = [own[key] for key in self._layout.doc_id_names if key in own]
        return {**named, "the id of its source document": ids}

    def _compressed(self, content: bytes, report: Callable[[str], None]) -> str:
        """Compress a serialized node that is too large for its column."""
        limit = self._layout.max_bytes(NODE_CONTENT_FIELD)
        packed = compressed(content)
        if packed is not None and len(packed) <= limit:
            return packed
        size = f"more than {limit}" if packed is None else len(packed)
        report(
            f"all of it but text and embedding takes {len(content)} bytes as JSON and {size} "
            f"compressed, Milvus allows {limit}; the largest part is {largest_part(content)}"
        )
        return ""

    def _add_metadata(
        self,
        node: BaseNode,
        without: frozenset[str],
        values: dict[str, Any],
        doc_id: str,
        report: Callable[[str], None],
    ) -> None:
        """Add the metadata to a row that holds no node; there are only columns for it."""
        layout = self._layout
        try:
            metadata = plain_metadata(node.metadata, without)
        except NOT_JSON as error:
            report(f"its {_not_json(error)}")
            return
        for key, value in metadata.items():
            if key in layout.scalar_columns:
                values[key] = value
            # The id of the document under its own name says nothing new, and readers do that.
            elif not (key == layout.doc_id_field and value == doc_id):
                report(
                    f"metadata key {key!r} cannot be stored: the collection has neither a column "
                    "for it nor a dynamic field"
                )

    def _add_scalars(
        self, node: BaseNode, values: dict[str, Any], report: Callable[[str], None]
    ) -> None:
        for name, column in self._layout.scalar_columns.items():

            def about(problem: str, name: str = name, column: Column = column) -> None:
                report(f"metadata key {name!r} of column type {column.type.name} {problem}")

            if name in values:
                values[name] = sent_value(column, values[name], about)
            elif name not in node.metadata and not column.optional:
                about(f"is missing{self._no_null}")


def carried_sparse(layout: Layout, node: BaseNode) -> Mapping[int, float] | None:
    """The sparse embedding that a node carries in its metadata, under the name of the column.

    Metadata that is no embedding, which JSON can carry, has texts for keys.
    """
    if not layout.encodes_sparse:
        return None
    value = node.metadata.get(str(layout.sparse_field))
    is_vector = isinstance(value, dict) and type(next(iter(value), None)) is int
    return value if is_vector else None


def _not_json(error: Exception) -> str:
    """What is wrong with a value that JSON cannot carry; goes on after "its "."""
    if isinstance(error, NotJsonError):
        return str(error)
    return f"metadata or fields cannot be carried by JSON: {error}"
