"""Nodes that are made without validation are those that LlamaIndex itself makes."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.schema import (
    NodeRelationship,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)
from pydantic import BaseModel, ValidationError

from llama_index_milvus_async._translation import plain_nodes
from llama_index_milvus_async._translation.node_json import serialize
from llama_index_milvus_async._translation.plain_nodes import plain_text_node

TEXT = st.text(max_size=3)
INTEGER = st.integers(-(2**63), 2**63 - 1)
JSON = st.one_of(
    st.none(), st.booleans(), INTEGER, st.floats(), TEXT, st.just([1, {"a": None}]), st.just({})
)
METADATA = st.dictionaries(TEXT, JSON, max_size=2)


def objects(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """JSON objects with their keys in order."""
    return st.tuples(*fields.values()).map(lambda values: dict(zip(fields, values, strict=True)))


RELATED = {
    "node_id": TEXT,
    "node_type": st.none() | st.sampled_from([kind.value for kind in ObjectType]) | TEXT,
    "metadata": METADATA,
    "hash": st.none() | TEXT,
    "class_name": TEXT,
}
KINDS = st.sampled_from([kind.value for kind in NodeRelationship])
FIELDS = {
    "id_": TEXT,
    "embedding": st.none(),
    "metadata": METADATA,
    "excluded_embed_metadata_keys": st.lists(TEXT, max_size=2),
    "excluded_llm_metadata_keys": st.lists(TEXT, max_size=2),
    "relationships": st.dictionaries(KINDS, objects(RELATED), max_size=2),
    "metadata_template": TEXT,
    "metadata_separator": TEXT,
    "text": TEXT,
    "mimetype": TEXT,
    "start_char_idx": st.none() | INTEGER,
    "end_char_idx": st.none() | INTEGER,
    "text_template": TEXT,
    "class_name": TEXT,
}
CHILD = RelatedNodeInfo(node_id="c", node_type=ObjectType.TEXT, metadata={"k": [1]}, hash="h")
NODE = TextNode(
    id_="a",
    text="t",
    metadata={"k": 1, "deep": {"list": [1, {"x": None}]}},
    excluded_embed_metadata_keys=["k"],
    relationships={NodeRelationship.SOURCE: CHILD},
    start_char_idx=1,
)


def parsed(node: TextNode) -> dict[str, Any]:
    """The JSON of a node as rows have it, parsed anew."""
    data = json.loads(serialize(node, frozenset())[0])
    assert isinstance(data, dict)
    return data


def state(value: Any) -> Any:
    """All that a value consists of: types, order, and what models keep beside their fields."""
    if isinstance(value, BaseModel):
        kept = value.__pydantic_fields_set__, value.__pydantic_extra__, value.__pydantic_private__
        return type(value), state(vars(value)), kept
    if isinstance(value, dict):
        return dict, [(type(key), key, state(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return list, [state(inner) for inner in value]
    return type(value), repr(value)


def both(data: dict[str, Any]) -> tuple[TextNode | None, TextNode]:
    """The node that is made here, if any, and the one of LlamaIndex."""
    copies = [json.loads(json.dumps(data)) for _ in range(2)]
    validated = TextNode.from_dict({**copies[0], "id_": "found", "text": "as found"})
    return plain_text_node(copies[1], "found", "as found"), validated


@given(objects(FIELDS))
def test_nodes_are_those_of_llama_index(data: dict[str, Any]) -> None:
    plain, validated = both(data)
    assert plain is not None
    assert state(plain) == state(validated)


@given(objects(FIELDS), st.sampled_from(sorted(FIELDS)), JSON)
def test_a_value_of_another_type_makes_no_other_node(
    data: dict[str, Any], field: str, value: Any
) -> None:
    try:
        plain, validated = both({**data, field: value})
    except ValidationError:
        assert plain_text_node({**data, field: value}, "found", "as found") is None
    else:
        assert plain is None or state(plain) == state(validated)


@pytest.fixture
def pair() -> tuple[TextNode, TextNode]:
    plain, validated = both(parsed(NODE))
    assert plain is not None
    return plain, validated


def test_all_that_is_asked_of_a_node_is_the_same(pair: tuple[TextNode, TextNode]) -> None:
    plain, validated = pair
    assert plain == validated
    assert plain.hash == validated.hash
    assert plain.model_dump() == validated.model_dump()
    assert plain.model_dump_json() == validated.model_dump_json()
    assert plain.model_dump(exclude_unset=True) == validated.model_dump(exclude_unset=True)
    assert plain.to_json() == validated.to_json()
    assert plain.get_content("all") == validated.get_content("all")
    assert plain.source_node == validated.source_node
    assert repr(plain) == repr(validated)
    assert str(plain) == str(validated)
    assert dir(plain) == dir(validated)
    for copied in (plain.model_copy(deep=True), pickle.loads(pickle.dumps(plain))):
        assert state(copied) == state(validated)


def test_nodes_can_be_changed_and_check_what_is_assigned(pair: tuple[TextNode, TextNode]) -> None:
    for node in pair:
        node.metadata["new"] = 1
        node.text = "changed"
        node.node_id = "b"
        node.embedding = [1]
        node.relationships[NodeRelationship.PARENT] = CHILD
        node.excluded_llm_metadata_keys.append("new")
        del node.start_char_idx
        with pytest.raises(ValidationError, match="valid string"):
            node.text = 1
        with pytest.raises(ValueError, match="other"):
            node.other = 1
    assert state(pair[0]) == state(pair[1])


def test_nodes_have_nothing_in_common() -> None:
    one, other = (both(parsed(NODE))[0] for _ in range(2))
    assert one is not None and other is not None
    parts = [vars(node).values() for node in (one, other)]
    mutable = [{id(part) for part in some if isinstance(part, (dict, list, set))} for some in parts]
    assert len(mutable[0]) == 4
    assert not mutable[0] & mutable[1]


def test_the_names_of_fields_that_nodes_share_never_change(pair: tuple[TextNode, TextNode]) -> None:
    node = pair[0]
    names = set(node.model_fields_set)
    node.text = "changed"
    del node.start_char_idx
    node.start_char_idx = 1
    node.model_copy(update={"text": "again", "other": 1})
    copy.deepcopy(node).text = "again"
    pickle.loads(pickle.dumps(node)).text = "again"
    node.__setstate__({**node.__getstate__(), "__pydantic_fields_set__": {"text"}})
    found, validated = both(parsed(NODE))
    assert found is not None
    assert found.model_fields_set == validated.model_fields_set == names


RELATED_DATA = parsed(NODE)["relationships"]["1"]


@pytest.mark.parametrize(
    "changes",
    [
        {"embedding": [1.0]},
        {"metadata": None},
        {"metadata": [["a", 1]]},
        {"excluded_embed_metadata_keys": [1]},
        {"excluded_llm_metadata_keys": "ab"},
        {"relationships": []},
        {"relationships": {"5": [RELATED_DATA]}},
        {"relationships": {"6": RELATED_DATA}},
        {"relationships": {"1": {**RELATED_DATA, "node_id": 1}}},
        {"relationships": {"1": {**RELATED_DATA, "node_type": 1}}},
        {"relationships": {"1": {**RELATED_DATA, "metadata": None}}},
        {"relationships": {"1": {**RELATED_DATA, "hash": 1}}},
        {"relationships": {"1": {"node_id": "a"}}},
        {"relationships": {"1": None}},
        {"metadata_template": None},
        {"metadata_separator": 1},
        {"mimetype": None},
        {"start_char_idx": "1"},
        {"end_char_idx": True},
        {"start_char_idx": 1.0},
        {"text_template": 1},
        {"extra_info": {}},
        {"new_field": 1},
    ],
    ids=repr,
)
def test_what_is_not_plain_is_left_to_llama_index(changes: dict[str, Any]) -> None:
    assert plain_text_node({**parsed(NODE), **changes}, "found", "as found") is None


@pytest.mark.parametrize("data", [None, [], "text", 1, {}, {"id_": "a"}], ids=repr)
def test_what_is_no_node_is_left_to_llama_index(data: Any) -> None:
    assert plain_text_node(data, "found", "as found") is None


def test_another_order_of_the_fields_is_left_to_llama_index() -> None:
    assert plain_text_node(dict(reversed(parsed(NODE).items())), "found", "as found") is None


def test_classes_that_have_changed_are_left_to_llama_index(monkeypatch: Any) -> None:
    assert plain_nodes._IS_AS_KNOWN
    monkeypatch.setattr(TextNode, "from_dict", lambda data: TextNode.model_construct(**data))
    assert not plain_nodes._is_as_known()
