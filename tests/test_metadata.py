"""Any metadata is accepted: keys with the names of columns, and what is large.

What is written comes back, and filters mean the node's own metadata where it has the key.
"""

from __future__ import annotations

import base64
import json
import random
import zlib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.llms import ChatMessage
from llama_index.core.memory.vector_memory import _stringify_chat_message
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from pymilvus import DataType

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async._translation.engine import Engine
from llama_index_milvus_async._translation.filters import build_expression
from llama_index_milvus_async._translation.layout import Column, Layout
from llama_index_milvus_async._translation.node_content import MAX_NODE_BYTES, expanded
from llama_index_milvus_async._translation.row_to_node import RowReader
from llama_index_milvus_async.errors import NodeError, RowError
from llama_index_milvus_async.filters import FilterOperatorFunction, ScalarMetadataFilter
from tests.fixtures.stores import collection_name
from tests.fixtures.words import noise
from tests.test_filters import Model
from tests.test_rows import (
    OWN_NAMES,
    UPSTREAM,
    bare,
    json_values,
    layout,
    pack,
    problems,
    read,
    stored,
    text_node,
    with_source,
    without,
)

Op = FilterOperator
MILVUS_26 = Engine.parse("v2.6.3")
LAYOUTS = {"own": layout(engine=MILVUS_26), "upstream's": without(UPSTREAM, engine=MILVUS_26)}
#: Names that a filter can mean in rows without such a metadata key.
WITH_A_COLUMN = {"_node_content", "id", "text", "_node_type", "doc_id", "document_id", "ref_doc_id"}


def one(key: str, operator: FilterOperator = Op.EQ, value: Any = None) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, operator=operator, value=value)])


def matches(row: Mapping[str, Any], filters: MetadataFilters, of: Layout) -> bool:
    expression = build_expression(of, filters=filters)
    return not expression or Model(expression, row, three_valued=True).run() is True


# Keys with the names of columns, without an engine

scalars = st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=3) | st.just("doc")
metadata = st.dictionaries(
    st.sampled_from([*OWN_NAMES, "k", "a b", "_shadowed__shadowed_id", "_has_shadowed_id"]),
    scalars | json_values,
    max_size=5,
)


@pytest.mark.parametrize("of", LAYOUTS.values(), ids=LAYOUTS)
@given(metadata=metadata, others=metadata)
def test_a_filter_finds_exactly_the_nodes_whose_metadata_it_describes(of, metadata, others):
    rows = [stored(pack(with_source("doc", metadata=each), of), of) for each in (metadata, others)]
    assert RowReader(of).node(rows[0]).metadata == metadata
    for key, value in metadata.items():
        if type(value) is not str and (type(value) is not int or abs(value) > 2**53):
            continue
        for row, own in zip(rows, (metadata, others), strict=True):
            if key not in own and key in WITH_A_COLUMN:
                continue  # the next test
            found = own.get(key)
            if isinstance(found, dict):
                continue  # see the module `keys`
            equal = found is not None and found == value
            assert matches(row, one(key, Op.EQ, value), of) == equal
            assert matches(row, one(key, Op.NE, value), of) != equal


@pytest.mark.parametrize("of", LAYOUTS.values(), ids=LAYOUTS)
def test_where_a_node_has_no_such_key_the_column_is_meant(of):
    row = stored(pack(with_source("doc", metadata={"doc_id": None, "text": "own"}), of), of)
    for key, value in {"id": "1", "_node_type": "TextNode", "document_id": "doc"}.items():
        assert matches(row, one(key, Op.EQ, value), of)
        assert not matches(row, one(key, Op.NE, value), of)
    assert not matches(row, one("doc_id", Op.EQ, "doc"), of)
    assert matches(row, one("doc_id", Op.IS_EMPTY), of)
    assert not matches(row, one("text", Op.EQ, "some text"), of)
    assert matches(row, one("text", Op.EQ, "own"), of)


def test_the_id_of_the_document_under_its_own_names_is_stored_once():
    node = with_source("doc", metadata={"doc_id": "doc", "ref_doc_id": "doc", "document_id": "x"})
    row = stored(pack(node))
    assert read(pack(node)) == bare(node)
    assert {key for key in row if "shadowed" in key} == {
        "_shadowed_document_id",
        "_has_shadowed_document_id",
    }
    assert row["doc_id"] == row["document_id"] == row["ref_doc_id"] == "doc"


def test_a_key_is_shadowed_by_the_columns_that_there_are():
    of = without(layout(Column("body", DataType.VARCHAR, 100)), "text", text_key="body")
    row = stored(pack(text_node(metadata={"text": 1, "body": 2}), of), of)
    assert (row["text"], row["_shadowed_body"], row["body"]) == (1, 2, "some text")


def test_metadata_for_columns_and_vectors_stays_what_it_is():
    of = layout(
        Column("document_id", DataType.INT64),
        Column("other", DataType.FLOAT_VECTOR, dim=2),
        dense_fields=("embedding", "other"),
    )
    row = pack(text_node(metadata={"document_id": 5, "other": [0.5, 1.0], "embedding": "e"}), of)
    assert row.values["document_id"] == 5
    assert json.loads(row.values["$meta"]) == {
        "ref_doc_id": "None",
        "_shadowed_embedding": "e",
        "_has_shadowed_embedding": True,
    }
    assert read(row, of).metadata == {"document_id": 5, "embedding": "e"}


# What is large, without an engine


def related(count: int, **kwargs: Any) -> dict[NodeRelationship, Any]:
    return {
        NodeRelationship.CHILD: [
            RelatedNodeInfo(node_id=noise(36, seed), **kwargs) for seed in range(count)
        ]
    }


def chat_turn() -> TextNode:
    """As LlamaIndex's `VectorMemory` stores a message: twice in the metadata."""
    words = [noise(8, seed) for seed in range(500)]
    said = " ".join(random.Random(0).choices(words, k=40_000 // 9))
    message = _stringify_chat_message(ChatMessage(role="user", content=said))
    return text_node(text=said, metadata={"sub_dicts": [message]})


LARGE: dict[str, TextNode] = {
    "metadata of 20 KB in each of three relationships": text_node(
        metadata={"page": noise(20_000), "n": 1},
        relationships={
            kind: RelatedNodeInfo(node_id=kind.name, metadata={"page": noise(20_000)})
            for kind in list(NodeRelationship)[:3]
        },
    ),
    "1,000 relationships": text_node(relationships=related(1_000)),
    "700 relationships with hashes": text_node(relationships=related(700, hash="ab" * 32)),
    "a chat turn of 40 KB": chat_turn(),
    "a text of 70 KB in the metadata": text_node(metadata={"k": "long " * 14_000, "n": 1}),
    "an id of 60 KB and metadata of 10 KB": text_node(
        id_="x" * 60_000, metadata={"a": "y" * 10_000}
    ),
}


@pytest.mark.parametrize("of", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kind", LARGE)
def test_a_large_node_comes_back_equal(kind, of):
    row = pack(LARGE[kind], of)
    assert read(row, of) == bare(LARGE[kind])
    content = stored(row, of)["_node_content"]
    assert content.startswith("zlib:")
    assert json.loads(zlib.decompress(base64.b64decode(content[5:])))["id_"] == LARGE[kind].id_
    assert len(content) <= 65_535
    assert len(row.values["$meta"]) <= 65_536


@pytest.mark.parametrize("of", LAYOUTS.values(), ids=LAYOUTS)
def test_filters_see_the_beginning_of_texts_where_the_metadata_is_too_large(of):
    metadata = {"long": "a" * 70_000, "n": 5, "parts": ["b" * 2_000, {"c": "d" * 2_000}]}
    row = stored(pack(text_node(metadata=metadata), of), of)
    assert row["n"] == 5
    assert row["long"] == "a" * 1_024
    assert row["parts"] == ["b" * 1_024, {"c": "d" * 1_024}]
    small = stored(pack(text_node(metadata={"long": "a" * 20_000}), of), of)
    assert small["long"] == "a" * 20_000


def test_a_node_that_fits_is_not_compressed():
    def node(pad: int) -> BaseNode:
        return text_node(text_template="{content}" + "x" * pad)

    fits = 65_535 - len(pack(node(0)).values["_node_content"])
    assert len(pack(node(fits)).values["_node_content"]) == 65_535
    assert pack(node(fits)).values["_node_content"].startswith("{")
    assert pack(node(fits + 1)).values["_node_content"].startswith("zlib:")


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (
            ImageNode(id_="1", text="t", image=noise(90_000), embedding=[0.5, -0.25]),
            "the field image (90,002 bytes)",
        ),
        (text_node(metadata={"a": noise(40_000, 1), "b": noise(60_000, 2)}), "metadata key 'b'"),
        (text_node(relationships=related(3_000)), "the relationship CHILD"),
        (text_node(text_template=noise(90_000)), "the field text_template"),
    ],
)
@pytest.mark.parametrize("of", LAYOUTS.values(), ids=LAYOUTS)
def test_what_is_still_too_large_is_refused_and_its_largest_part_is_named(node, says, of):
    (problem,) = problems(node, of)
    assert "Milvus allows 6553" in problem
    assert "the largest part is the " in problem
    assert says in problem


def test_lists_that_are_too_large_for_filters_are_refused():
    (problem,) = problems(text_node(metadata={"n": 1, "l": list(range(20_000))}))
    assert "in the dynamic field, Milvus allows 65536" in problem
    assert "the metadata key 'l'" in problem


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("zlib:", "cut off"),
        ("zlib:%%", "base64|non-alphabet|Only base64 data"),
        ("zlib:" + base64.b64encode(b"no zlib").decode(), "not compressed by zlib"),
        ("zlib:" + base64.b64encode(zlib.compress(b"x" * 999)[:-4]).decode(), "cut off"),
        (
            "zlib:" + base64.b64encode(zlib.compress(b" " * (MAX_NODE_BYTES + 1))).decode(),
            f"more than {MAX_NODE_BYTES} bytes",
        ),
    ],
)
def test_a_compressed_node_that_cannot_be_read_is_named(content, says):
    with pytest.raises(ValueError, match=says):
        expanded(content)
    row = {"id": "the row", "text": "t", "_node_content": content, "_node_type": "TextNode"}
    with pytest.raises(RowError, match="'the row'"):
        RowReader(layout()).node(row)


# On the engines: a table of clashing keys in one collection of either layout


OWN_KEYS = [
    "id", "text", "doc_id", "ref_doc_id", "document_id", "embedding", "sparse_embedding",
    "_node_content", "_node_type", "$meta", "_shadowed_id", "_has_shadowed_id", "RowID",
    "Timestamp", "_seq", "_partition",
]  # fmt: skip


def node(node_id: str, doc_id: str = "source", **kwargs: Any) -> TextNode:
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=doc_id)}
    fields = {"text": "some text", "embedding": [1.0, 0.0], "relationships": source, **kwargs}
    return TextNode(id_=node_id, **fields)


TABLE = {
    each.node_id: each
    for each in [
        node("all", metadata={key: f"own {key}" for key in OWN_KEYS}),
        node("numbers", metadata={key: number for number, key in enumerate(OWN_KEYS)}),
        node("lists", metadata={key: ["a", "in lists"] for key in OWN_KEYS}),
        node("nested", metadata={key: {"x": {"y": 7}} for key in OWN_KEYS}),
        node("null", metadata=dict.fromkeys(OWN_KEYS)),
        node("keep", metadata={"document_id": "keep"}),
        node("source of keep", "keep"),
        node("none"),
        node("paths", metadata={"m": {"x": 1, "y": {"z": 2}}, "a b": 3, "l": [4, "five"]}),
        node("literal", metadata={'m["x"]': 1, "m": {"x": 5}, "l[0]": 4, '$meta["a b"]': 3}),
        node("large", metadata={"id": "large", "k": "long " * 14_000}),
    ]
}


@pytest.fixture(scope="module", params=["own", "upstream's"])
def store(request, make_shared_store, raw) -> MilvusVectorStore:
    """A store with the nodes of `TABLE`, in a collection of its own or such as upstream makes."""
    name = collection_name("metadata")
    if request.param == "upstream's":
        schema = raw.create_schema(enable_dynamic_field=True)
        for column in ("id", "doc_id", "text"):
            schema.add_field(column, DataType.VARCHAR, max_length=65_535, is_primary=column == "id")
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=2)
        raw.create_collection(name, schema=schema)
    store = make_shared_store(collection_name=name, dim=2)
    store.add(list(TABLE.values()))
    return store


async def found(store: Any, filters: MetadataFilters) -> set[str]:
    return {each.node_id for each in await store.get_nodes(filters=filters)}


async def test_every_key_comes_back(store, coloured):
    assert await coloured(store).get_nodes(list(TABLE)) == list(TABLE.values())


def can_look_for_lists(engine: Any, key: str) -> bool:
    """Whether the engine has words for `ANY` under a key."""
    if engine.is_lite:  # only under plain names
        return key not in ("$meta", "_seq", "_partition")
    # A text that a column has may contain it, too.
    return Engine.parse(engine.version).has_infix_like or key not in WITH_A_COLUMN


async def test_every_key_can_be_filtered(store, engine, coloured):
    store = coloured(store)
    for number, key in enumerate(OWN_KEYS):
        assert await found(store, one(key, Op.EQ, f"own {key}")) == {"all"}, key
        assert await found(store, one(key, Op.IN, [number, 99])) == {"numbers"}, key
        assert await found(store, one(f"{key}.x.y", Op.EQ, 7)) == {"nested"}, key
        assert await found(store, one(f'$meta["{key}"]["x"]["y"]', Op.EQ, 7)) == {"nested"}, key
        if can_look_for_lists(engine, key):
            assert await found(store, one(key, Op.ANY, ["in lists"])) == {"lists"}, key


async def test_a_key_that_a_node_has_not_means_the_column(store, coloured):
    store = coloured(store)
    assert await found(store, one("id", Op.EQ, "none")) == {"none"}
    assert await found(store, one("id", Op.EQ, "large")) == {"large"}
    assert await found(store, one("id", Op.EQ, "all")) == set()
    has_own = {"all", "numbers", "lists", "nested", "null", "keep"}
    assert (
        await found(store, one("document_id", Op.EQ, "source"))
        == {each.node_id for each in TABLE.values() if each.ref_doc_id == "source"} - has_own
    )
    assert await found(store, one("document_id", Op.EQ, "keep")) == {"keep", "source of keep"}
    assert await found(store, one("ref_doc_id", Op.EQ, "keep")) == {"source of keep"}
    assert await found(store, one("document_id", Op.NE, "keep")) == set(TABLE) - {
        "keep",
        "source of keep",
    }
    # Milvus before 2.6 does not tell a mapping from null.
    assert await found(store, one("text", Op.IS_EMPTY)) - {"nested"} == {"null"}


async def test_a_query_heeds_them_and_doc_ids_mean_the_document(store, coloured):
    store = coloured(store)
    for mode in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR):
        query = VectorStoreQuery(
            query_embedding=[1.0, 0.0],
            similarity_top_k=20,
            mode=mode,
            filters=one("text", Op.EQ, "own text"),
        )
        assert (await store.query(query)).ids == ["all"]
    query = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=20, doc_ids=["keep"])
    assert (await store.query(query)).ids == ["source of keep"]


async def test_scalar_filters_heed_them(store, coloured):
    query = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=20)
    for operator, value in [("ARRAY_CONTAINS", "in lists"), ("ARRAY_LENGTH", 2)]:
        leaf = ScalarMetadataFilter(
            key="id", value=value, operator=FilterOperatorFunction[operator]
        )
        result = await coloured(store).query(query, milvus_scalar_filters=leaf)
        assert result.ids == ["lists"]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ('m["x"]', 1, {"paths", "literal"}),
        ("m['x']", 5, {"literal"}),
        ('m["x"]', 5, set()),
        ('m["y"]["z"]', 2, {"paths"}),
        ('$meta["m"]["x"]', 5, {"literal"}),
        ('$meta["a b"]', 3, {"paths", "literal"}),
        ("l[0]", 4, {"paths", "literal"}),
        ("l[1]", "five", {"paths"}),
        ("l[9]", 4, set()),
        ('$meta["id"]', "own id", {"all"}),
        ('$meta["document_id"]', "keep", {"keep", "source of keep"}),
    ],
)
async def test_keys_in_the_syntax_of_milvus(store, coloured, key, value, expected):
    store = coloured(store)
    assert await found(store, one(key, Op.EQ, value)) == expected
    assert await found(store, one(key, Op.NE, value)) == set(TABLE) - expected
    negation = MetadataFilters(filters=[one(key, Op.NE, value)], condition=FilterCondition.NOT)
    assert await found(store, negation) == expected


async def test_deleting_by_a_filter_keeps_what_its_metadata_keeps(store, coloured):
    store = coloured(store)
    doomed = [
        node("keep me", "doomed", metadata={"document_id": "keep", "k": 1}),
        node("delete me", "doomed", metadata={"k": 1}),
    ]
    await store.add(doomed)
    filters = MetadataFilters(filters=[one("document_id", Op.NE, "keep"), one("k", Op.EQ, 1)])
    await store.delete_nodes(filters=filters)
    assert await found(store, one("k", Op.EQ, 1)) == {"keep me"}
    await store.delete("doomed")
    assert await found(store, one("k", Op.EQ, 1)) == set()


async def test_a_row_that_is_replaced_loses_the_keys_that_it_had(store, coloured):
    store = coloured(store)
    await store.add([node("again", metadata={"id": "first", "k": 2})])
    await store.add([node("again", metadata={"k": 2})])
    filters = MetadataFilters(filters=[one("id", Op.EQ, "first"), one("k", Op.EQ, 2)])
    if store.store.upsert_mode:
        assert await found(store, filters) == set()
    await store.delete_nodes(["again"])


async def test_metadata_that_is_too_large_for_filters_is_said(store, coloured, caplog):
    with caplog.at_level("WARNING"):
        await coloured(store).add([TABLE["large"]])
    assert "the metadata of 1 of 1 nodes is larger than what Milvus takes" in caplog.text
    with pytest.raises(NodeError, match="the relationship CHILD"):
        await coloured(store).add([node("too large", relationships=related(3_000))])
