"""Text nodes made without validation, where it would change nothing.

For most hits pydantic's validation takes longer than everything else. The row of a `TextNode` has
its fields as JSON carries them; where each has the very type that the field is declared with,
validation returns it as it is, and the node is put together here. All others go through pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode

Model = TypeVar("Model", bound=BaseModel)

# In the order in which models have, and dump, them.
_FIELDS = (
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
)
_RELATED_FIELDS = ("node_id", "node_type", "metadata", "hash")
_KEYS = (*_FIELDS, "class_name")
_RELATED_KEYS = (*_RELATED_FIELDS, "class_name")
#: The fields that are known. One that a later version of LlamaIndex adds may be serialized, or
#: validated, in its own way.
TEXT_NODE_FIELDS = frozenset(_FIELDS)
RELATED_NODE_FIELDS = frozenset(_RELATED_FIELDS)
_TEXT_NODE_FIELDS_SET = set(_FIELDS)
_RELATED_NODE_FIELDS_SET = set(_RELATED_FIELDS)

_RELATIONSHIPS: Mapping[Any, NodeRelationship] = {kind.value: kind for kind in NodeRelationship}
_OPTIONAL_TEXT = frozenset({str, type(None)})
_OPTIONAL_INTEGER = frozenset({int, type(None)})

_set = object.__setattr__  # that of a node validates


def plain_text_node(data: Any, node_id: str, text: str) -> TextNode | None:
    """Make the node that `TextNode.from_dict` would make; `None` where only that can tell.

    Args:
        data: The parsed JSON of a serialized node, whose lists and dictionaries the node takes.
        node_id: The id of the node, in place of the one in `data`.
        text: The text of the node, in place of the one in `data`.
    """
    if not _IS_AS_KNOWN or type(data) is not dict or tuple(data) != _KEYS:
        return None
    (
        _,
        embedding,
        metadata,
        not_embedded,
        not_for_llm,
        relationships,
        metadata_template,
        metadata_separator,
        _,
        mimetype,
        start,
        end,
        text_template,
        _,
    ) = data.values()
    if not (
        embedding is None
        and type(metadata) is dict
        and _are_texts(not_embedded)
        and _are_texts(not_for_llm)
        and type(relationships) is dict
        and type(metadata_template) is str
        and type(metadata_separator) is str
        and type(mimetype) is str
        and type(start) in _OPTIONAL_INTEGER
        and type(end) in _OPTIONAL_INTEGER
        and type(text_template) is str
    ):
        return None
    related = {}
    for kind, described in relationships.items():
        relationship, info = _RELATIONSHIPS.get(kind), _related_node(described)
        if relationship is None or info is None:
            return None
        related[relationship] = info
    fields = {
        "id_": node_id,
        "embedding": None,
        "metadata": metadata,
        "excluded_embed_metadata_keys": not_embedded,
        "excluded_llm_metadata_keys": not_for_llm,
        "relationships": related,
        "metadata_template": metadata_template,
        "metadata_separator": metadata_separator,
        "text": text,
        "mimetype": mimetype,
        "start_char_idx": start,
        "end_char_idx": end,
        "text_template": text_template,
    }
    return _unvalidated(TextNode, fields, _TEXT_NODE_FIELDS_SET)


def _related_node(data: Any) -> RelatedNodeInfo | None:
    if type(data) is not dict or tuple(data) != _RELATED_KEYS:
        return None
    node_id, node_type, metadata, content_hash, _ = data.values()
    if not (
        type(node_id) is str
        and type(node_type) in _OPTIONAL_TEXT
        and type(metadata) is dict
        and type(content_hash) in _OPTIONAL_TEXT
    ):
        return None
    fields = {
        "node_id": node_id,
        "node_type": node_type,
        "metadata": metadata,
        "hash": content_hash,
    }
    return _unvalidated(RelatedNodeInfo, fields, _RELATED_NODE_FIELDS_SET)


def _are_texts(value: Any) -> bool:
    return type(value) is list and (not value or all(type(one) is str for one in value))


def _unvalidated(cls: type[Model], fields: dict[str, Any], fields_set: set[str]) -> Model:
    """Make a model as `model_construct` does, without looking for defaults and aliases.

    Args:
        cls: The class.
        fields: Its fields.
        fields_set: Their names. All models have this very set: it grows where a field is set
            that is not in it yet, and there is none.
    """
    model = cls.__new__(cls)
    _set(model, "__dict__", fields)
    _set(model, "__pydantic_fields_set__", fields_set)
    _set(model, "__pydantic_extra__", None)
    _set(model, "__pydantic_private__", None)
    return model


def _state(model: Any) -> Any:
    """All that a model consists of, with types and order."""
    if isinstance(model, BaseModel):
        fields = [(name, _state(value)) for name, value in vars(model).items()]
        return type(model), fields, model.__pydantic_fields_set__, model.__pydantic_private__
    if isinstance(model, dict):
        return [(type(key), key, _state(value)) for key, value in model.items()]
    return type(model), model


def _is_as_known() -> bool:
    """Whether LlamaIndex's classes are those that this module knows: a version may alter them."""
    related = dict(zip(_RELATED_KEYS, ("a", "4", {"b": 1.5}, "c", ""), strict=True))
    values = ("d", None, {"e": [1]}, ["e"], ["f"], {"1": related}, "g", "h", "i", "j", 1, None, "k")
    data = dict(zip(_KEYS, (*values, ""), strict=True))
    made = plain_text_node(data, "d", "i")
    return bool(_state(made) == _state(TextNode.from_dict(data)))


_IS_AS_KNOWN = True
_IS_AS_KNOWN = _is_as_known()
