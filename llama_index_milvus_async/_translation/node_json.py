"""Nodes and their metadata as JSON.

`orjson` writes what it writes as `json` does, which is nearly everything, at a tenth of the cost.
The rest goes the way of LlamaIndex's own `node_to_metadata_dict`, which also finds what JSON
cannot carry.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from llama_index.core.schema import (
    BaseNode,
    NodeRelationship,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)
from pydantic_core import PydanticSerializationError, to_jsonable_python

#: What is raised for a value that JSON cannot carry.
NOT_JSON = (TypeError, ValueError, RecursionError, PydanticSerializationError)

_NONE = type(None)
_ATOMS = frozenset({str, int, bool, _NONE})
# A field that a later version of LlamaIndex adds may be serialized in its own way.
_TEXT_NODE_FIELDS = frozenset(
    {
        "id_",
        "embedding",
        "metadata",
        "excluded_embed_metadata_keys",
        "excluded_llm_metadata_keys",
        "relationships",
        "metadata_template",
        "metadata_separator",
        "text",
        "mimetype",
        "start_char_idx",
        "end_char_idx",
        "text_template",
    }
)
_RELATED_FIELDS = frozenset({"node_id", "node_type", "metadata", "hash"})

# orjson, on both sides of the connection, ends at 64 bits.
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**64 - 1
_LONG_INTEGER = re.compile(r"\d{19}")


def serialize(node: BaseNode, without: frozenset[str]) -> tuple[bytes, Mapping[str, Any]]:
    """Serialize a node without its text and embedding, as `node_to_metadata_dict` does.

    Args:
        node: The node.
        without: Metadata keys to leave out.

    Returns:
        The node as JSON, and its metadata as JSON carries it.

    Raises:
        Exception: One of `NOT_JSON`: JSON, or the 64 bits of its integers, cannot carry it.
    """
    if type(node) is TextNode:
        try:
            if (fields := _text_node_fields(node, without)) is not None and _is_plain(fields):
                return orjson.dumps(fields), fields["metadata"]
        except (orjson.JSONEncodeError, RecursionError):
            pass  # what is wrong is found below
    content = _node_json(node, without).encode()
    return content, _carried(_left(node.metadata, without))


def plain_metadata(metadata: Mapping[str, Any], without: frozenset[str]) -> dict[str, Any]:
    """Metadata as JSON carries it.

    Raises:
        Exception: One of `NOT_JSON`: JSON, or the 64 bits of its integers, cannot carry it.
    """
    plain = _carried(_left(metadata, without))
    text = json.dumps(plain, ensure_ascii=False)
    text.encode()
    _check_integers(text)
    return plain


def dumps(value: Any) -> bytes:
    """Serialize what JSON carries, however deep it is nested."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _text_node_fields(node: TextNode, without: frozenset[str]) -> dict[str, Any] | None:
    """The dictionary that becomes the JSON of a `TextNode`, `None` where it takes pydantic."""
    fields = node.__dict__
    if fields.keys() != _TEXT_NODE_FIELDS:
        return None
    relationships: dict[str, Any] = {}
    for kind, related in fields["relationships"].items():
        if type(kind) is not NodeRelationship:
            return None
        if type(related) is RelatedNodeInfo:
            described = _related_fields(related, without)
        elif type(related) is list:
            described = [_related_fields(each, without) for each in related]
        else:
            return None
        relationships[str(kind.value)] = described
    return {
        **fields,
        "embedding": None,
        "metadata": _left(fields["metadata"], without),
        "relationships": relationships,
        "text": "",
        "class_name": "TextNode",
    }


def _related_fields(related: RelatedNodeInfo, without: frozenset[str]) -> Any:
    if type(related) is not RelatedNodeInfo or related.__dict__.keys() != _RELATED_FIELDS:
        return related  # which is not plain
    fields = {**related.__dict__, "class_name": "RelatedNodeInfo"}
    if type(fields["node_type"]) is ObjectType:
        fields["node_type"] = fields["node_type"].value
    fields["metadata"] = _left(fields["metadata"], without)
    return fields


def _left(metadata: Mapping[str, Any], without: frozenset[str]) -> Mapping[str, Any]:
    """Metadata without some keys."""
    if not without or without.isdisjoint(metadata):
        return metadata
    return {key: value for key, value in metadata.items() if key not in without}


def _is_plain(value: Any) -> bool:
    """Whether `orjson` and `json` write a value alike: not a NaN, a date, a subclass, ..."""
    kind = type(value)
    if kind is dict:
        for key, inner in value.items():
            if type(key) is not str or not (type(inner) in _ATOMS or _is_plain(inner)):
                return False
        return True
    if kind is list:
        return all(type(inner) in _ATOMS or _is_plain(inner) for inner in value)
    return kind in _ATOMS or (kind is float and math.isfinite(value))


def _node_json(node: BaseNode, without: frozenset[str]) -> str:
    """Serialize any node.

    `node_to_metadata_dict` dumps the embedding only to drop it, five times the cost at 768
    dimensions.
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


def _carried(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as it comes back from JSON."""
    if type(metadata) is dict and _is_plain(metadata):
        return metadata
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
