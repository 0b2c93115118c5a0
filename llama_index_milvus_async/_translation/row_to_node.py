"""Rows to nodes; see `node_to_row` for what a row has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    IndexNode,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from pydantic_core import from_json

from ..errors import RowError
from .expressions import is_plain
from .layout import (
    DYNAMIC_FIELD,
    NO_DOC_ID,
    NODE_CONTENT_FIELD,
    NODE_TYPE_FIELD,
    VECTOR_TYPES,
    Layout,
    output_columns,
)
from .node_content import expanded
from .plain_nodes import plain_text_node
from .vectors import DENSE_METRICS, unpacked

_NODE_CLASSES: dict[str, type[BaseNode]] = {
    node_class.class_name(): node_class
    for node_class in (TextNode, Node, Document, ImageNode, IndexNode)
}


class RowReader:
    """Makes nodes of rows and hits.

    Args:
        layout: The collection.
        output_fields: Fields that the caller named. The embedding column among them has the
            nodes carry their embeddings, and other vector columns are metadata of the nodes. For
            rows that hold no serialized node, they are the metadata; without any, every column
            and dynamic key is.
        embedding_field: The vector column that `node.embedding` is read from.
    """

    def __init__(
        self, layout: Layout, output_fields: Sequence[str] = (), embedding_field: str | None = None
    ) -> None:
        self._layout = layout
        self._embedding_field = embedding_field or layout.embedding_field
        self._vectors = {
            name: layout.columns[name]
            for name in output_fields
            if name in layout.columns and layout.columns[name].type in VECTOR_TYPES
        }
        # Every scalar field comes by default, so that "*" adds nothing.
        self._named = [name for name in output_fields if name not in {*self._vectors, "*"}]

    @property
    def fields(self) -> list[str]:
        """The `output_fields` of the request.

        Always named: without, the server returns ids alone and Lite everything, and `"*"`
        returns the vectors on both.
        """
        layout = self._layout
        fields = [layout.primary_key, layout.text_key]
        if layout.holds_nodes:
            fields += [NODE_CONTENT_FIELD, NODE_TYPE_FIELD]
        if self._named:
            # A server takes only names for output fields, and has other keys in here.
            fields += [
                name
                if name in layout.columns or is_plain(name) or not layout.dynamic
                else DYNAMIC_FIELD
                for name in self._named
            ]
        elif not layout.node_in_column:
            fields += output_columns(layout)
        if layout.doc_id_field and not layout.node_in_column:
            fields.append(layout.doc_id_field)
        fields += self._vectors
        if DYNAMIC_FIELD in fields:
            # A search that names some keys of the dynamic field beside it returns only those.
            fields = [name for name in fields if name in layout.columns or name == DYNAMIC_FIELD]
        return list(dict.fromkeys(fields))

    def node(self, row: Mapping[str, Any]) -> BaseNode:
        """Make the node of a row.

        Args:
            row: Column, or key of the dynamic field, to value; dense vectors are bytes, as
                `_rpc.WrittenColumn` has them, and sparse ones dictionaries.

        Raises:
            RowError: The row, or the serialized node in it, cannot be read.
        """
        try:
            return self._node(row)
        except RowError:
            raise
        except Exception as error:
            # The row is data from outside.
            name = "a row"
            with suppress(Exception):
                name = f"row {str(row[self._layout.primary_key])!r}"
            raise RowError(f"{name} cannot be read ({_summary(error)})") from error

    def _node(self, row: Mapping[str, Any]) -> BaseNode:
        layout = self._layout
        node_id = str(row[layout.primary_key])
        text = row.get(layout.text_key)
        content = row.get(NODE_CONTENT_FIELD)
        if content:
            node = _node_from_json(content, row.get(NODE_TYPE_FIELD), text, node_id)
        else:
            node = TextNode(id_=node_id, text=text or "", metadata=self._metadata(row))
            doc_id = row.get(layout.doc_id_field) if layout.doc_id_field else None
            if isinstance(doc_id, str) and doc_id != NO_DOC_ID:
                source = RelatedNodeInfo(node_id=doc_id)
                node.relationships[NodeRelationship.SOURCE] = source
        for name, column in self._vectors.items():
            if (vector := row.get(name)) is None:
                continue
            if column.type in DENSE_METRICS:
                vector = unpacked(vector, column.type, column.dim)
            if name == self._embedding_field:
                node.embedding = vector
            else:
                node.metadata[name] = vector
        return node

    def _metadata(self, row: Mapping[str, Any]) -> dict[str, Any]:
        layout = self._layout
        if self._named:
            return {name: row.get(name) for name in self._named if name != layout.text_key}
        hidden = {*layout.own_columns, layout.text_key, layout.doc_id_field, DYNAMIC_FIELD}
        return {key: value for key, value in row.items() if key not in hidden}


def _node_from_json(content: str, class_name: str | None, text: Any, node_id: str) -> BaseNode:
    try:
        node_class = _NODE_CLASSES.get(class_name or "", TextNode)
        data = _parsed(content)
        if node_class is TextNode and (text is None or type(text) is str):
            plain = plain_text_node(data, node_id, text or "")
            if plain is not None:
                return plain
        data = dict(data)
        # Set before the node is made: pydantic takes as long for each later assignment as for a
        # whole small model.
        data["id_"] = node_id
        if issubclass(node_class, Node):
            stored_resource = "text_resource" in data
            resource = data.pop("text_resource", None)
            data.pop("text", None)
            if resource is not None:
                data["text_resource"] = {"text": text, **resource}
            elif not stored_resource:
                data["text_resource"] = {"text": text}
        else:
            data.pop("text_resource", None)
            data["text"] = text or ""
        node = node_class.from_dict(data)
    except Exception as error:
        # The row is data from outside: whatever a malformed one makes the parsers raise is
        # reported as what it is, a bad row.
        raise RowError(
            f"row {node_id!r}: its {NODE_CONTENT_FIELD} is not a serialized node "
            f"({_summary(error)})"
        ) from error
    return node


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def _parsed(content: str) -> Any:
    plain = expanded(content)
    try:
        return from_json(plain)
    except ValueError:
        # It parses twice as fast and knows neither deep nesting nor lone surrogates.
        return json.loads(plain)
