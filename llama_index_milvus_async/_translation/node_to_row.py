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
from dataclasses import dataclass
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode

from ..errors import NodeError
from .column_values import MAX_JSON_BYTES, check_text, fits, sent_value
from .layout import (
    DOC_ID_KEYS,
    DYNAMIC_FIELD,
    NO_DOC_ID,
    NODE_CONTENT_FIELD,
    NODE_TYPE_FIELD,
    Column,
    Layout,
)
from .node_json import NOT_JSON, dumps, plain_metadata, serialize
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
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._dense = [layout.dense_column(name) for name in layout.dense_fields]
        self._further = frozenset(layout.dense_fields[1:])
        self._dynamic_doc_ids = [key for key in DOC_ID_KEYS if key not in layout.columns]
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
        # Column, or key of the dynamic field, to value.
        values: dict[str, Any] = {layout.primary_key: self._id_value(node.node_id, report)}
        self._add_vectors(node, sparse, values, report)
        text = node.get_content(metadata_mode=MetadataMode.NONE)
        text_bytes = check_text("text", text, layout.max_bytes(layout.text_key), report)
        values[layout.text_key] = text
        doc_id = node.ref_doc_id or NO_DOC_ID
        if layout.holds_nodes:
            self._add_node(node, values, doc_id, report)
        else:
            self._add_metadata(node, values, doc_id, report)
        self._add_scalars(node, values, report)
        if layout.doc_id_field not in (None, layout.primary_key):
            if doc_id != NO_DOC_ID:
                limit = layout.max_bytes(layout.doc_id_field)
                check_text("the id of its source document", doc_id, limit, report)
            values[layout.doc_id_field] = doc_id
        if layout.dynamic:
            try:
                self._move_dynamic(values, report)
            except NOT_JSON:
                if len(self.problems) == before:
                    raise
                # A text without UTF-8, which has been reported.
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
        sparse_field = self._layout.sparse_field
        if sparse_field is not None and self._layout.encodes_sparse:
            try:
                values[sparse_field] = sparse_bytes(sparse_vector(sparse))
            except ValueError as error:
                report(f"its sparse embedding {error}")

    def _add_node(
        self,
        node: BaseNode,
        values: dict[str, Any],
        doc_id: str,
        report: Callable[[str], None],
    ) -> None:
        """Add the serialized node and its metadata."""
        layout = self._layout
        try:
            content, metadata = serialize(node, self._further)
        except NOT_JSON as error:
            report(f"its metadata or fields cannot be carried by JSON: {error}")
            return
        if layout.node_in_column and len(content) > layout.max_bytes(NODE_CONTENT_FIELD):
            report(
                f"its metadata, relationships and ids take {len(content)} bytes as JSON, Milvus "
                f"allows {layout.max_bytes(NODE_CONTENT_FIELD)}"
            )
        self._check_keys(metadata, doc_id, report)
        if layout.dynamic:
            values.update(metadata)
            values.update(dict.fromkeys(self._dynamic_doc_ids, doc_id))
        else:  # what has no column is in the serialized node only
            values.update((key, metadata[key]) for key in metadata.keys() & layout.columns.keys())
        values[NODE_CONTENT_FIELD] = content.decode()
        values[NODE_TYPE_FIELD] = node.class_name()

    def _add_metadata(
        self,
        node: BaseNode,
        values: dict[str, Any],
        doc_id: str,
        report: Callable[[str], None],
    ) -> None:
        """Add the metadata to a row that holds no node; there are only columns for it."""
        try:
            metadata = plain_metadata(node.metadata, self._further)
        except NOT_JSON as error:
            report(f"its metadata cannot be carried by JSON: {error}")
            return
        self._check_keys(metadata, doc_id, report)
        for key in metadata.keys() - self._layout.columns.keys() - {DYNAMIC_FIELD}:
            report(
                f"metadata key {key!r} cannot be stored: the collection has neither a column "
                "of that name nor a dynamic field"
            )
        values.update(metadata)

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

    def _move_dynamic(self, values: dict[str, Any], report: Callable[[str], None]) -> None:
        """Move what has no column into the dynamic field."""
        columns = self._layout.columns
        dynamic = {key: values.pop(key) for key in [*values] if key not in columns}
        content = dumps(dynamic)
        values[DYNAMIC_FIELD] = content
        if len(content) > MAX_JSON_BYTES:
            largest = max(dynamic, key=lambda key: len(str(dynamic[key])))
            report(
                f"its metadata takes {len(content)} bytes as JSON in the dynamic field, Milvus "
                f"allows {MAX_JSON_BYTES}; the largest key is {largest!r}"
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
                about("is missing")
