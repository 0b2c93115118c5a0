"""Nodes and their metadata as JSON.

A `TextNode` with nothing unusual in it goes to `orjson` as it is, at a tenth of the cost. All
others are dumped by pydantic, as in LlamaIndex's own `node_to_metadata_dict`, and pass
`plain_json`, which also finds what JSON cannot carry.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import orjson
from llama_index.core.schema import (
    BaseNode,
    NodeRelationship,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)

from .plain_json import NOT_JSON, plain_json
from .plain_nodes import RELATED_NODE_FIELDS, TEXT_NODE_FIELDS

_NONE = type(None)
_ATOMS = frozenset({str, int, bool, _NONE})


def serialize(node: BaseNode, without: frozenset[str]) -> tuple[bytes, Mapping[str, Any]]:
    """Serialize a node without its text and embedding, as `node_to_metadata_dict` does.

    Args:
        node: The node.
        without: Metadata keys to leave out.

    Returns:
        The node as JSON, and its metadata as JSON carries it.

    Raises:
        NotJsonError: JSON, or the 64 bits of its integers, cannot carry it.
        Exception: Another one of `NOT_JSON`: the node cannot be dumped.
    """
    if type(node) is TextNode:
        try:
            if (fields := _text_node_fields(node, without)) is not None and _is_plain(fields):
                return orjson.dumps(fields), fields["metadata"]
        except (orjson.JSONEncodeError, RecursionError):
            pass  # what is wrong is found below
    plain = plain_json(_dumped(node, without))
    return dumps(plain), plain["metadata"]


def plain_metadata(metadata: Mapping[str, Any], without: frozenset[str]) -> dict[str, Any]:
    """Metadata as JSON carries it.

    Raises:
        NotJsonError: JSON, or the 64 bits of its integers, cannot carry it.
    """
    return plain_json(_left(metadata, without), "metadata")


def dumps(value: Any) -> bytes:
    """Serialize what JSON carries, however deep it is nested."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _text_node_fields(node: TextNode, without: frozenset[str]) -> dict[str, Any] | None:
    """The dictionary that becomes the JSON of a `TextNode`, `None` where it takes pydantic."""
    fields = node.__dict__
    if fields.keys() != TEXT_NODE_FIELDS:
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
    if type(related) is not RelatedNodeInfo or related.__dict__.keys() != RELATED_NODE_FIELDS:
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


def _dumped(node: BaseNode, without: frozenset[str]) -> dict[str, Any]:
    """Dump any node.

    `node_to_metadata_dict` dumps the embedding only to drop it, five times the cost at 768
    dimensions.
    """
    try:
        data = node.model_dump(exclude={"embedding"})
    except NOT_JSON:
        plain_json(_left(node.metadata, without), "metadata")  # which names the key
        raise
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
    return data


def _drop_keys(data: dict[str, Any], without: frozenset[str]) -> None:
    """Drop metadata keys of a dumped node, and of the nodes that its relationships describe."""
    related = data.get("relationships", {}).values()
    described = [one for some in related for one in (some if isinstance(some, list) else [some])]
    for holder in [data, *described]:
        for key in without:
            holder["metadata"].pop(key, None)
