"""Nodes become rows and rows become the same nodes; no engine takes part.

The row goes through JSON in between, as it does on its way to Milvus.
"""

from __future__ import annotations

import datetime
import enum
import itertools
import json
import math
import struct
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
from pymilvus import DataType

from llama_index_milvus_async._operations.writes import split
from llama_index_milvus_async._rpc import WrittenColumn
from llama_index_milvus_async._translation import node_json
from llama_index_milvus_async._translation.engine import Engine
from llama_index_milvus_async._translation.layout import VECTOR_TYPES, Column, Layout
from llama_index_milvus_async._translation.node_to_row import PackedRow, RowPacker
from llama_index_milvus_async._translation.row_to_node import RowReader
from llama_index_milvus_async.errors import CollectionError, NodeError, RowError

EMBEDDING = [0.5, -0.25]
EMBEDDING_BYTES = struct.pack("<2f", *EMBEDDING)
SENT_AS_BYTES = {DataType.JSON, *VECTOR_TYPES}
FLOAT32_MAX = float(np.finfo(np.float32).max)


def layout(*columns: Column, dynamic: bool = True, **parts: Any) -> Layout:
    """The layout of a new collection; `columns` are added or, by name, replaced."""
    own = [
        Column("id", DataType.VARCHAR, 65_535),
        Column("doc_id", DataType.VARCHAR, 65_535),
        Column("text", DataType.VARCHAR, 65_535),
        Column("_node_content", DataType.VARCHAR, 65_535),
        Column("_node_type", DataType.VARCHAR, 256),
        Column("embedding", DataType.FLOAT_VECTOR, dim=2),
        *columns,
    ]
    defaults: dict[str, Any] = {
        "collection_name": "c",
        "columns": {column.name: column for column in own},
        "primary_key": "id",
        "auto_id": False,
        "doc_id_field": "doc_id",
        "text_key": "text",
        "dense_fields": ("embedding",),
        "sparse_field": None,
        "dynamic": dynamic,
        "engine": Engine.parse("v2.3.5"),
    }
    return Layout(**{**defaults, **parts})


def without(base: Layout, *names: str, **parts: Any) -> Layout:
    """A layout that lacks columns."""
    columns = {name: c for name, c in base.columns.items() if name not in names}
    fields = {name: getattr(base, name) for name in Layout.__dataclass_fields__}
    return Layout(**{**fields, "columns": columns, **parts})


#: As the upstream plugin makes collections: the serialized node is a key of the dynamic field.
UPSTREAM = without(layout(), "_node_content", "_node_type")
#: Made by hand: columns, and nothing else.
PLAIN = without(
    layout(Column("year", DataType.INT64), dynamic=False),
    "_node_content",
    "_node_type",
    "doc_id",
    doc_id_field=None,
)


def pack(node: BaseNode, into: Layout | None = None) -> PackedRow:
    packer = RowPacker(into or layout())
    row = packer.pack(node)
    packer.raise_problems()
    assert row is not None
    return row


def problems(node: BaseNode, into: Layout | None = None) -> list[str]:
    """What is wrong with a node, without its id."""
    packer = RowPacker(into or layout())
    assert (packer.pack(node) is None) == bool(packer.problems)
    assert {node_id for node_id, _ in packer.problems} <= {node.node_id}
    return [problem for _, problem in packer.problems]


def stored(row: PackedRow, of: Layout | None = None) -> dict[str, Any]:
    """What Milvus has of a row: columns and keys of the dynamic field, JSON decoded."""
    of = of or layout()
    columns = {column.name: column for column in of.written_columns}
    assert {name for name, column in columns.items() if not column.optional} <= row.values.keys()
    values: dict[str, Any] = {}
    for name, value in row.values.items():
        assert isinstance(value, bytes) == (columns[name].type in SENT_AS_BYTES)
        if columns[name].is_dynamic:
            values |= json.loads(value)
        else:
            values[name] = json.loads(value) if columns[name].type is DataType.JSON else value
    return values


def read(row: PackedRow, of: Layout | None = None, *output_fields: str) -> BaseNode:
    """Read a row back, as Milvus returns it: the fields that were asked for."""
    of = of or layout()
    has = stored(row, of)
    dynamic = {key: value for key, value in has.items() if key not in of.columns}
    reader = RowReader(of, output_fields)
    fields = reader.fields
    asked = dynamic if "$meta" in fields else {}
    return reader.node({**asked, **{name: has[name] for name in fields if name in has}})


def bare(node: BaseNode) -> BaseNode:
    """The node as it comes back from a store: without its embedding."""
    return node.model_copy(update={"embedding": None})


def text_node(**kwargs: Any) -> TextNode:
    return TextNode(**{"id_": "1", "text": "some text", "embedding": EMBEDDING, **kwargs})


def with_source(doc_id: str, **kwargs: Any) -> TextNode:
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=doc_id)}
    return text_node(relationships=source, **kwargs)


RELATIONSHIPS: dict[NodeRelationship, Any] = {
    NodeRelationship.SOURCE: RelatedNodeInfo(
        node_id="doc", node_type=ObjectType.DOCUMENT, hash="abc", metadata={"page": 1}
    ),
    NodeRelationship.PREVIOUS: RelatedNodeInfo(node_id="previous", node_type=ObjectType.TEXT),
    NodeRelationship.NEXT: RelatedNodeInfo(node_id="next"),
    NodeRelationship.PARENT: RelatedNodeInfo(node_id="parent", node_type="of my own"),
    NodeRelationship.CHILD: [RelatedNodeInfo(node_id="a"), RelatedNodeInfo(node_id="b")],
}


def nodes_of_every_kind() -> dict[str, BaseNode]:
    """Nodes of every class, with every field away from its default, by what they are.

    Their ids are their names, so that they fit into one collection.
    """
    media = MediaResource(path="/a/cat.png", url="http://example.org/cat.png", mimetype="image/png")
    kinds: dict[str, BaseNode] = {
        "text": TextNode(text="some text"),
        "empty text": TextNode(text=""),
        "text with everything": TextNode(
            text="some text",
            metadata={"a": {"deep": [1, {"er": None}]}, "ü": "中文 🎉", "n": 2**53 + 1},
            relationships=RELATIONSHIPS,
            excluded_embed_metadata_keys=["a"],
            excluded_llm_metadata_keys=["ü"],
            metadata_template="{key} = {value}",
            metadata_separator=" | ",
            text_template="{content}\n{metadata_str}",
            mimetype="text/html",
            start_char_idx=3,
            end_char_idx=12,
        ),
        "document": Document(text="some text", metadata={"a": 1}),
        "document without text": Document(),
        "document with mimetype": Document(
            text_resource=MediaResource(text="<p>", mimetype="text/html"), metadata={"a": 1}
        ),
        "image": ImageNode(
            text="a caption",
            image="aGk=",
            image_path="/a/cat.png",
            image_url="http://example.org/cat.png",
            image_mimetype="image/png",
            text_embedding=[0.5, 0.25],
        ),
        "index": IndexNode(text="a summary", index_id="another index"),
        "index of a text": IndexNode(
            text="a summary",
            index_id="i",
            obj=TextNode(id_="inner", text="inner", embedding=[0.5], metadata={"a": [1]}),
        ),
        "index of a document": IndexNode(
            text="a summary", index_id="i", obj=Document(id_="inner", text="inner")
        ),
        "node": Node(text_resource=MediaResource(text="some text"), metadata={"a": 1}),
        "node without text": Node(),
        "node with mimetype": Node(text_resource=MediaResource(text="<p>", mimetype="text/html")),
        "node with an embedding of its text": Node(
            text_resource=MediaResource(text="some text", embeddings={"dense": [0.5]})
        ),
        "node whose text resource has no text": Node(
            text_resource=MediaResource(mimetype="text/html")
        ),
        "node whose text resource is empty": Node(text_resource=MediaResource()),
        "node of other media": Node(
            image_resource=media,
            audio_resource=MediaResource(path="/a/cat.mp3"),
            video_resource=MediaResource(text="a transcript"),
            text_template="{content}",
            relationships=RELATIONSHIPS,
        ),
    }
    for name, node in kinds.items():
        node.id_ = name
        node.embedding = EMBEDDING
    return kinds


KINDS = nodes_of_every_kind()


class Colour(enum.Enum):
    RED = "red"


class Name(str, enum.Enum):
    ANN = "ann"


#: As pandas has it, which need not be installed.
MISSING = type("NAType", (), {"__module__": "pandas._libs.missing"})()

#: Values that are no JSON, and what comes back for them.
CARRIED: dict[str, tuple[Any, Any]] = {
    "numpy bool": (np.bool_(True), True),
    "numpy integer": (np.int64(2**53 + 1), 2**53 + 1),
    "numpy float32": (np.float32(0.5), 0.5),
    "numpy float64": (np.float64(0.1), 0.1),
    "numpy text": (np.str_("a"), "a"),
    "array": (np.array([1, 2]), [1, 2]),
    "matrix": (np.array([[0.5], [1.5]]), [[0.5], [1.5]]),
    "datetime": (datetime.datetime(2024, 2, 29, 12, 30), "2024-02-29T12:30:00"),
    "datetime with zone": (
        datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone.utc),
        "2024-02-29T00:00:00Z",
    ),
    "date": (datetime.date(2024, 2, 29), "2024-02-29"),
    "uuid": (
        uuid.UUID("12345678-1234-5678-1234-567812345678"),
        "12345678-1234-5678-1234-567812345678",
    ),
    "enumeration": (Colour.RED, "red"),
    "enumeration of texts": (Name.ANN, "ann"),
    "set": ({3, 1, 2}, [1, 2, 3]),
    "frozen set": (frozenset("ba"), ["a", "b"]),
    "set of several types": ({"a", 1}, [1, "a"]),
    "tuple": ((1, "a"), [1, "a"]),
    "mapping by integers": ({1: "a"}, {"1": "a"}),
    "NaN": (math.nan, None),
    "infinities": ([math.inf, -math.inf], [None, None]),
    "numpy NaN": (np.float32("nan"), None),
    "array with NaN": (np.array([math.nan, 0.5]), [None, 0.5]),
    "nested NaN": ({"a": [1, {"b": (math.nan, np.float64("inf"))}]}, {"a": [1, {"b": [None] * 2}]}),
    "no time of numpy": (np.datetime64("NaT", "s"), None),
    "missing of pandas": ({"a": [MISSING]}, {"a": [None]}),
    "nested": ({"at": [datetime.date(2024, 2, 29), {np.int8(1)}]}, {"at": ["2024-02-29", [1]]}),
}

#: Values that JSON, or the 64 bits of its numbers, have no place for.
NOT_CARRIED: dict[str, Any] = {
    "object": object(),
    "array of objects": np.array([object()]),
    "lone surrogate": "\ud800",
    "nested lone surrogate": {"a": ["b", "\udfff"]},
    "key that is a lone surrogate": {"\ud800": 1},
    "key that is a tuple": {(1, 2): 3},
    "integer above 64 bits": 2**64,
    "integer below 64 bits": -(2**63) - 1,
    "integer of 5,000 digits": 10**5_000,
    "bytes that are no UTF-8": b"\xff",
}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
OWN_NAMES = ["$meta", "document_id", "ref_doc_id", "_shadowed_id", *layout().columns]
json_metadata = st.dictionaries(st.text() | st.sampled_from(OWN_NAMES), json_values)


# Round trips


@given(metadata=json_metadata, text=st.text())
def test_metadata_of_any_json_shape_comes_back(metadata, text):
    for of in (layout(), UPSTREAM):
        node = read(pack(text_node(metadata=metadata, text=text), of), of)
        # As JSON, because True == 1 == 1.0, and because the order of the keys counts, too.
        assert json.dumps(node.metadata) == json.dumps(metadata)
        assert node.text == text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of", [layout(), UPSTREAM], ids=["own layout", "upstream's layout"])
def test_a_node_comes_back_equal(kind, of):
    node = KINDS[kind]
    back = read(pack(node, of), of)
    assert type(back) is type(node)
    assert back == bare(node)


@pytest.mark.parametrize("kind", CARRIED)
def test_a_value_comes_back_as_json_carries_it(kind):
    value, carried = CARRIED[kind]
    row = pack(text_node(metadata={"k": value}))
    back = read(row)
    assert json.dumps(back.metadata) == json.dumps({"k": carried})
    # What filters see is what readers see.
    assert json.dumps(stored(row)["k"]) == json.dumps(carried)


def test_a_key_that_is_no_text_becomes_one():
    node = text_node()
    node.metadata[1] = "a"  # pydantic lets it pass here, but warns when the node is dumped
    with pytest.warns(UserWarning, match="Expected `str`"):
        row = pack(node)
    assert stored(row)["1"] == "a"


def test_packing_leaves_the_node_as_it_was():
    node = KINDS["text with everything"]
    before = node.model_copy(deep=True)
    pack(node)
    assert node == before


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
def test_an_embedding_may_be_an_array(dtype):
    array = np.array([1, 0], dtype=dtype)
    row = pack(text_node().model_copy(update={"embedding": array}))
    assert row.values["embedding"] == struct.pack("<2f", 1.0, 0.0)


# A node of the usual class is serialized by a shorter way, unless something about it is unusual.

#: Values that `orjson` writes otherwise than `json`, or not at all.
odd_values = st.sampled_from(
    [value for value, _ in CARRIED.values()]
    + list(NOT_CARRIED.values())
    + [10**30, 2**63, -(2**63)]
)
any_metadata = st.dictionaries(
    st.text() | st.sampled_from(["image", Name.ANN, "\ud800"]),
    json_values | odd_values | st.lists(odd_values, max_size=2),
    max_size=3,
)
related_nodes = st.builds(
    RelatedNodeInfo.model_construct,
    node_id=st.text(),
    node_type=st.sampled_from([None, "of my own", *ObjectType]),
    metadata=any_metadata,
    hash=st.none() | st.text(),
)
text_nodes = st.builds(
    TextNode.model_construct,
    id_=st.text(),
    embedding=st.just(EMBEDDING),
    metadata=any_metadata,
    relationships=st.dictionaries(
        st.sampled_from(list(NodeRelationship)),
        related_nodes | st.lists(related_nodes, max_size=2),
        max_size=2,
    ),
    excluded_embed_metadata_keys=st.lists(st.text(), max_size=2),
    text=st.text(),
    start_char_idx=st.none() | st.integers(),
    metadata_template=st.text(),
)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@given(node=text_nodes, without=st.sampled_from([frozenset(), frozenset({"image"})]))
def test_the_shorter_way_writes_what_the_longer_one_writes(node, without):
    class Unusual(TextNode):
        pass

    unusual = Unusual.model_construct(**node.__dict__)
    try:
        expected = node_json.serialize(unusual, without)
    except node_json.NOT_JSON:
        with pytest.raises(node_json.NOT_JSON):
            node_json.serialize(node, without)
        return
    content, metadata = node_json.serialize(node, without)
    # As texts, because True == 1 == 1.0; the order of fields does not matter.
    assert sorted_json(json.loads(content)) == sorted_json(json.loads(expected[0]))
    assert json.dumps(metadata) == json.dumps(expected[1])


def sorted_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def test_the_usual_node_takes_the_shorter_way(monkeypatch):
    monkeypatch.setattr(node_json, "_dumped", None)
    node = text_node(metadata={"a": [1, {"b": 0.5}]}, relationships=RELATIONSHIPS)
    assert read(pack(node)) == bare(node)


# Rows


def test_the_columns_that_are_written_are_those_that_milvus_does_not_fill():
    of = layout(
        Column("tags", DataType.ARRAY, 9, element_type=DataType.VARCHAR, optional=True),
        Column("sparse", DataType.SPARSE_FLOAT_VECTOR, generated=True, optional=True),
    )
    assert of.written_columns[-3:] == (
        WrittenColumn("embedding", DataType.FLOAT_VECTOR, dim=2),
        WrittenColumn("tags", DataType.ARRAY, element_type=DataType.VARCHAR, optional=True),
        WrittenColumn("$meta", DataType.JSON, is_dynamic=True),
    )
    assert "sparse" not in {column.name for column in of.written_columns}
    numbered = layout(auto_id=True, dynamic=False)
    assert not {"id", "$meta"} & {column.name for column in numbered.written_columns}


def test_metadata_that_has_no_column_is_in_the_node_where_there_is_no_dynamic_field():
    of = layout(Column("year", DataType.INT64), dynamic=False)
    node = text_node(metadata={"year": 1, "month": 2})
    row = pack(node, of)
    assert "month" not in stored(row, of)
    assert read(row, of) == bare(node)


def test_a_row_without_metadata_has_an_empty_dynamic_field():
    taken = ("document_id", "ref_doc_id")
    of = layout(*[Column(name, DataType.VARCHAR, 9, optional=True) for name in taken])
    assert pack(text_node(), of).values["$meta"] == b"{}"


def test_a_row_has_the_names_that_llamaindex_uses():
    row = stored(pack(with_source("doc", metadata={"page": 1, "tags": ["a"]})))
    content = row.pop("_node_content")
    assert row == {
        "id": "1",
        "doc_id": "doc",
        "document_id": "doc",
        "ref_doc_id": "doc",
        "text": "some text",
        "embedding": EMBEDDING_BYTES,
        "page": 1,
        "tags": ["a"],
        "_node_type": "TextNode",
    }
    assert "some text" not in content
    assert "0.25" not in content


@pytest.mark.parametrize("of", [layout(), UPSTREAM], ids=["own layout", "upstream's layout"])
def test_a_node_without_a_document_has_the_id_that_llamaindex_writes(of):
    expected = node_to_metadata_dict(text_node())["doc_id"]
    assert stored(pack(text_node(), of), of)["doc_id"] == expected


@pytest.mark.parametrize(
    "kind", ["text", "text with everything", "image", "index", "index of a text", "node"]
)
def test_llamaindex_own_function_reads_the_row(kind):
    node = KINDS[kind]
    row = stored(pack(node))
    assert metadata_dict_to_node(row, text=row["text"]) == bare(node)


@pytest.mark.parametrize("kind", ["text", "text with everything", "image", "index", "node"])
def test_a_row_that_llamaindex_own_function_made_is_read(kind):
    node = KINDS[kind]
    row = node_to_metadata_dict(node, remove_text=True)
    row |= {"id": node.node_id, "text": node.get_content(), "embedding": EMBEDDING_BYTES}
    assert RowReader(UPSTREAM).node(row) == bare(node)


def test_a_row_of_utf8_has_the_size_of_its_bytes():
    ascii_row = pack(text_node(text="a" * 1_000))
    wide_row = pack(text_node(text="中" * 1_000))
    assert wide_row.size - ascii_row.size == 2_000
    assert ascii_row.size >= 1_000 + len(ascii_row.values["_node_content"])


rows = st.lists(st.integers(0, 50).map(lambda size: PackedRow("x", {}, size)))


@given(rows=rows, max_rows=st.integers(1, 6), max_bytes=st.integers(1, 120))
def test_batches_are_bounded_by_rows_and_by_bytes_and_no_smaller_than_needed(
    rows, max_rows, max_bytes
):
    batches = [list(batch) for batch in split(rows, max_rows, max_bytes)]
    assert list(itertools.chain.from_iterable(batches)) == rows
    for batch in batches:
        assert 1 <= len(batch) <= max_rows
        assert len(batch) == 1 or sum(row.size for row in batch) <= max_bytes
    for batch, following in itertools.pairwise(batches):
        with_one_more = sum(row.size for row in [*batch, following[0]])
        assert len(batch) == max_rows or with_one_more > max_bytes


# What is refused


@pytest.mark.parametrize("kind", NOT_CARRIED)
@pytest.mark.parametrize("of", [layout(), UPSTREAM, PLAIN], ids=["own", "upstream's", "by hand"])
def test_metadata_that_json_cannot_carry_is_a_problem(kind, of):
    (problem,) = problems(text_node(metadata={"year": NOT_CARRIED[kind]}), of)
    assert problem.startswith("its metadata['year']")


@pytest.mark.parametrize("class_", [TextNode, Document])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([0, 1, 2, {"b": object()}], "['a'][3]['b'] is of type object, which JSON cannot carry"),
        ((1, {"b": {2**64}}), "['a'][1]['b'][0] is an integer of more than 64 bits"),
        ({"b": ["x\ud800"]}, "['a']['b'][0] has a lone surrogate at position 1"),
        ([{"\ud800": 1}], "['a'][0] has a key that has a lone surrogate at position 0"),
        ({"b": {(1, 2): 3}}, "['a']['b'] has a key of type tuple; a key must be a string"),
        ({1: {"b": object()}}, "['a'][1]['b'] is of type object"),
        (np.array([1, object()]), "['a'][1] is of type object"),
        (b"\xff", "['a'] is of type bytes"),
    ],
)
def test_what_json_cannot_carry_is_named_by_its_path_and_type(class_, value, says):
    node = class_(id_="1", text="t", embedding=EMBEDDING, metadata={"fine": 1, "a": value})
    (problem,) = problems(node)
    assert f"its metadata{says}" in problem


def test_what_json_cannot_carry_is_named_in_other_fields_too():
    related = RelatedNodeInfo(node_id="n", metadata={"a": [object()]})
    node = text_node(relationships={NodeRelationship.NEXT: related})
    (problem,) = problems(node)
    assert problem.startswith("its relationships['NEXT']['metadata']['a'][0] is of type object")
    image = ImageNode(id_="1", text="t", embedding=EMBEDDING, text_embedding=[math.nan])
    assert problems(image) == ["its text_embedding[0] is nan, which JSON cannot carry"]


def test_numbers_that_are_none_become_null_in_the_metadata_of_other_nodes_too():
    inner = TextNode(text="inner", metadata={"a": math.nan})
    related = RelatedNodeInfo(node_id="n", metadata={"a": [math.inf]})
    node = IndexNode(
        id_="1",
        text="t",
        index_id="i",
        obj=inner,
        embedding=EMBEDDING,
        relationships={NodeRelationship.NEXT: related},
    )
    back = read(pack(node))
    assert isinstance(back, IndexNode)
    assert back.obj.metadata == {"a": None}
    assert back.relationships[NodeRelationship.NEXT].metadata == {"a": [None]}


@pytest.mark.parametrize("class_", [TextNode, Document])
def test_metadata_that_contains_itself_is_a_problem(class_):
    cycle: list[Any] = []
    cycle.append(cycle)
    node = class_(id_="1", text="t", embedding=EMBEDDING, metadata={"fine": 1})
    node.metadata["k"] = cycle
    (problem,) = problems(node)
    assert problem == "its metadata['k'] is nested too deeply for JSON, or contains itself"


@pytest.mark.parametrize(
    "embedding",
    [
        pytest.param(values, id=name)
        for name, values in {
            "NaN": [math.nan, 0.0],
            "infinity": [math.inf, 0.0],
            "infinities that cancel": [math.inf, -math.inf],
            "above 32 bits": [1e39, 0.0],
            "above 32 bits, cancelling": [1e39, -1e39],
            "integer above 64 bits": [10**400, 0],
            "none": [None, 1.0],
            "array with NaN": np.array([math.nan, 0.0]),
            "array above 32 bits": np.array([1e39, 0.0]),
            "float16 infinity": np.array([math.inf, 0.0], dtype=np.float16),
        }.items()
    ],
)
def test_an_embedding_of_no_finite_32_bit_numbers_is_a_problem(embedding):
    node = text_node().model_copy(update={"embedding": embedding})
    (problem,) = problems(node)
    assert "finite" in problem


def test_an_embedding_of_texts_is_a_problem():
    node = text_node().model_copy(update={"embedding": ["a", "b"]})
    (problem,) = problems(node)
    assert "its embedding is not a list of numbers" in problem


@pytest.mark.parametrize(
    "embedding",
    [
        [FLOAT32_MAX, FLOAT32_MAX],
        [FLOAT32_MAX, -FLOAT32_MAX],
        np.array([FLOAT32_MAX, FLOAT32_MAX]),
        [0.0, 1e-45],
        [0, 1],
        (0.5, 0.25),
        [np.float32(0.5), np.float64(0.25)],
    ],
    ids=str,
)
def test_an_embedding_of_finite_32_bit_numbers_is_none(embedding):
    assert problems(text_node().model_copy(update={"embedding": embedding})) == []


@pytest.mark.parametrize("values", [[], [0.5], [0.5] * 3, np.ones(3)], ids=str)
def test_the_dimension_found_and_the_one_expected_are_named(values):
    node = text_node().model_copy(update={"embedding": values})
    assert problems(node) == [f"its embedding has {len(values)} dimensions, the collection 2"]


@pytest.mark.parametrize(
    "array",
    [
        np.array(0.5),
        np.ones((1, 2)),
        np.ones((2, 1)),
        np.array([True, False]),
        np.array(["a", "b"]),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
def test_an_array_of_another_shape_or_type_is_a_problem(array):
    node = text_node().model_copy(update={"embedding": array})
    (problem,) = problems(node)
    assert str(array.dtype) in problem


def test_a_column_that_is_not_for_metadata_takes_none_where_there_is_no_other_place():
    assert "'text'" in problems(text_node(metadata={"text": "v"}), PLAIN)[0]
    of = without(layout(dynamic=False), "_node_content", "_node_type")
    assert problems(with_source("doc", metadata={"doc_id": "doc"}), of) == []
    assert "'doc_id'" in problems(with_source("doc", metadata={"doc_id": "another"}), of)[0]


@pytest.mark.parametrize("letter", ["a", "é", "中", "🎉"])
@pytest.mark.parametrize("what", ["text", "id", "source document"])
def test_texts_are_measured_in_bytes(what, letter):
    def node(size: int) -> BaseNode:
        width = len(letter.encode())
        value = letter * (size // width) + "a" * (size % width)
        assert len(value.encode()) == size
        if what == "source document":
            return with_source(value)
        return text_node(**{"id_" if what == "id" else "text": value})

    of = layout(*[Column(name, DataType.VARCHAR, 300) for name in ("id", "doc_id", "text")])
    assert problems(node(300), of) == []
    (problem,) = problems(node(301), of)
    assert what in problem
    assert "301 bytes" in problem
    assert "300" in problem.replace("301", "")


def test_long_document_ids_fill_the_dynamic_field_too():
    # It has them twice, so that it overflows before the serialized node does.
    (problem,) = problems(with_source("d" * 40_000))
    assert "80034 bytes" in problem
    assert "65536" in problem
    assert "the largest part is the id of its source document (80,007 bytes)" in problem
    assert problems(with_source("d" * 32_000)) == []


def test_every_problem_of_every_node_is_reported_at_once():
    packer = RowPacker(layout())
    packer.pack(text_node(id_="both", embedding=None, text="a" * 70_000))
    packer.pack(text_node(id_="good"))
    packer.pack(text_node(id_="key", metadata={"text": object()}))
    with pytest.raises(NodeError, match="Nothing was written") as caught:
        packer.raise_problems()
    assert [node_id for node_id, _ in caught.value.problems] == ["both", "both", "key"]


def test_the_message_stays_readable_whatever_is_in_the_nodes():
    packer = RowPacker(layout())
    for number in range(50):
        packer.pack(text_node(id_="x" * 70_000 + str(number), metadata={"k" * 70_000: "v"}))
    with pytest.raises(NodeError) as caught:
        packer.raise_problems()
    assert len(str(caught.value)) < 10_000
    assert len(caught.value.problems) >= 100
    assert caught.value.problems[0][0].endswith("x0")


# Scalar columns

WRONG: list[tuple[DataType, Any]] = [
    (DataType.INT8, 128),
    (DataType.INT16, -32_769),
    (DataType.INT32, 2**31),
    (DataType.INT64, 2**63),
    (DataType.INT64, 1.0),
    (DataType.INT64, True),
    (DataType.INT64, "1"),
    (DataType.INT64, None),
    (DataType.BOOL, 1),
    (DataType.BOOL, "true"),
    (DataType.FLOAT, "1.0"),
    (DataType.FLOAT, True),
    (DataType.FLOAT, 1e39),
    (DataType.DOUBLE, [1.0]),
    (DataType.VARCHAR, 1),
    (DataType.VARCHAR, "é" * 51),
    (DataType.VARCHAR, None),
    (DataType.ARRAY, "ab"),
    (DataType.ARRAY, [1, "a"]),
    (DataType.ARRAY, [True]),
    (DataType.ARRAY, [None]),
    (DataType.ARRAY, [2**63]),
    (DataType.TIMESTAMPTZ, 1_700_000_000),
    (DataType.TIMESTAMPTZ, "2025-05-01T23:59:59"),
    (DataType.TIMESTAMPTZ, "2025-02-30T23:59:59Z"),
    (DataType.TIMESTAMPTZ, "soon"),
    (DataType.JSON, "ab"),
    (DataType.JSON, '{"a": 1}'),
    (DataType.JSON, [1]),
    (DataType.JSON, 1),
    (DataType.JSON, None),
]
RIGHT: list[tuple[DataType, Any]] = [
    (DataType.INT8, -128),
    (DataType.INT16, 32_767),
    (DataType.INT32, -(2**31)),
    (DataType.INT64, 2**63 - 1),
    (DataType.INT64, np.int64(5)),
    (DataType.BOOL, False),
    (DataType.FLOAT, 1),
    (DataType.FLOAT, FLOAT32_MAX),
    (DataType.DOUBLE, 1e300),
    (DataType.VARCHAR, ""),
    (DataType.VARCHAR, "é" * 50),
    (DataType.VARCHAR, datetime.date(2024, 2, 29)),
    (DataType.VARCHAR, Colour.RED),
    (DataType.ARRAY, [1]),
    (DataType.ARRAY, np.array([1])),
    (DataType.ARRAY, []),
    (DataType.TIMESTAMPTZ, "2025-05-01T23:59:59+08:00"),
    (DataType.TIMESTAMPTZ, "2025-05-01 23:59:59.123456789Z"),
    (DataType.TIMESTAMPTZ, datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone.utc)),
    (DataType.JSON, {"a": [1]}),
]


def with_scalar(data_type: DataType, **kwargs: Any) -> Layout:
    if data_type is DataType.ARRAY:
        kwargs["element_type"] = DataType.INT64
    return layout(Column("k", data_type, 100, **kwargs))


@pytest.mark.parametrize(("data_type", "value"), WRONG, ids=str)
def test_a_value_of_the_wrong_type_for_its_column_is_a_problem(data_type, value):
    (problem,) = problems(text_node(metadata={"k": value}), with_scalar(data_type))
    assert "'k'" in problem
    assert data_type.name in problem


@pytest.mark.parametrize(("data_type", "value"), RIGHT, ids=str)
def test_a_value_of_the_right_type_fills_its_column(data_type, value):
    of = with_scalar(data_type)
    node = text_node(metadata={"k": value})
    assert read(pack(node, of), of).metadata == {"k": stored(pack(node, of), of)["k"]}


def test_a_missing_value_is_a_problem_unless_the_column_is_optional():
    (problem,) = problems(text_node(), with_scalar(DataType.INT64))
    assert "'k'" in problem
    assert "missing" in problem
    optional = with_scalar(DataType.INT64, optional=True)
    assert problems(text_node(), optional) == []
    assert problems(text_node(metadata={"k": None}), optional) == []


def test_a_json_column_is_measured_in_bytes():
    of = without(with_scalar(DataType.JSON), "_node_content", "_node_type", dynamic=False)
    largest = {"a": "é" * ((65_536 - len('{"a":""}')) // 2)}
    assert problems(text_node(metadata={"k": largest}), of) == []
    (problem,) = problems(text_node(metadata={"k": {"a": largest["a"] + "é"}}), of)
    assert "65538 bytes" in problem
    assert "65536" in problem


# Collections made by hand


def test_a_collection_of_columns_takes_text_embedding_and_its_columns():
    row = pack(text_node(metadata={"year": np.int64(2024)}), PLAIN)
    assert row.values == {
        "id": "1",
        "text": "some text",
        "embedding": EMBEDDING_BYTES,
        "year": 2024,
    }
    node = read(row, PLAIN)
    assert (node.node_id, node.get_content(), node.metadata) == ("1", "some text", {"year": 2024})


def test_metadata_without_a_column_is_a_problem_where_there_is_no_dynamic_field():
    (problem,) = problems(text_node(metadata={"year": 2024, "month": 2}), PLAIN)
    assert "'month'" in problem


@pytest.mark.parametrize("node_id", ["-9223372036854775808", "0", "9223372036854775807"])
def test_an_integer_primary_key_takes_integers(node_id):
    of = layout(Column("id", DataType.INT64))
    row = pack(text_node(id_=node_id), of)
    assert row.values["id"] == int(node_id)
    assert read(row, of).node_id == node_id


@pytest.mark.parametrize(
    "node_id", ["a", "1.0", "9223372036854775808", "", "1\n", "٣", " 1", "007", "-0", "+1", "1_0"]
)
def test_an_integer_primary_key_takes_nothing_else(node_id):
    (problem,) = problems(text_node(id_=node_id), layout(Column("id", DataType.INT64)))
    assert "INT64" in problem or "empty" in problem


def test_a_sparse_vector_column_is_named_where_a_dense_one_is_needed():
    of = layout(Column("embedding", DataType.SPARSE_FLOAT_VECTOR))
    with pytest.raises(CollectionError, match="SPARSE_FLOAT_VECTOR"):
        RowPacker(of)


# Reading


def test_vectors_are_fetched_only_when_they_are_named():
    row = pack(text_node())
    assert "embedding" not in RowReader(layout()).fields
    assert read(row).embedding is None
    assert read(row, None, "embedding").embedding == EMBEDDING


def test_the_vector_of_another_field_is_the_embedding_where_that_is_asked_for():
    of = layout(Column("other", DataType.FLOAT_VECTOR, dim=2))
    reader = RowReader(of, ["other"], "other")
    row = {**stored(pack(text_node())), "other": struct.pack("<2f", 1.0, 2.0)}
    assert "embedding" not in reader.fields
    assert reader.node(row).embedding == [1.0, 2.0]


def test_the_id_of_the_row_is_the_id_of_the_node():
    row = stored(pack(text_node(id_="written as")))
    assert RowReader(layout()).node({**row, "id": "found as"}).node_id == "found as"


def test_rows_that_hold_no_node_have_every_field_as_metadata_or_the_named_ones():
    row = {"id": 7, "text": "t", "doc_id": "d", "year": 2024, "tags": ["a"], "$meta": {"x": 1}}
    of = without(layout(Column("year", DataType.INT64)), "_node_content", "_node_type")
    node = RowReader(of).node(row)
    assert (node.node_id, node.get_content()) == ("7", "t")
    assert node.metadata == {"year": 2024, "tags": ["a"]}
    assert RowReader(of, ["year", "embedding"]).node(row).metadata == {"year": 2024}


@pytest.mark.parametrize("content", ["no JSON", "[1]", '"text"', '{"metadata": 5}', "{" * 2_000])
def test_a_row_whose_node_cannot_be_read_is_named(content):
    row = {"id": "the row", "text": "t", "_node_content": content, "_node_type": "TextNode"}
    with pytest.raises(RowError, match="'the row'") as caught:
        RowReader(layout()).node(row)
    assert len(str(caught.value)) < 500


def test_a_node_of_an_unknown_class_is_read_as_a_text():
    row = {**stored(pack(text_node())), "_node_type": "OfMyOwn"}
    assert RowReader(layout()).node(row) == bare(text_node())


def test_output_fields_that_are_no_names_are_read_with_the_whole_dynamic_field():
    assert RowReader(layout(), ["k"]).fields[-1] == "k"
    assert "$meta" in RowReader(layout(), ["k", "a.b"]).fields
    assert not {"k", "a.b"} & set(RowReader(layout(), ["k", "a.b"]).fields)
