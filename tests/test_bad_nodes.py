"""Nodes that Milvus cannot hold are refused, all at once, before anything is written.

The limits are held against the engines' own: what is allowed is stored, and what is refused a
server would refuse as well.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import orjson
import pytest
from llama_index.core.schema import BaseNode, NodeRelationship, RelatedNodeInfo, TextNode
from pymilvus import DataType, MilvusClient, MilvusException

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.errors import NodeError
from tests.fixtures.stores import collection_name
from tests.fixtures.words import noise
from tests.test_rows import NOT_CARRIED

DIM = 2
VARCHAR_BYTES = 65_535
DYNAMIC_BYTES = 65_536
FLOAT32_MAX = float(np.finfo(np.float32).max)


@pytest.fixture(scope="module")
def store(make_shared_store) -> MilvusVectorStore:
    store = make_shared_store(dim=DIM)
    store.add([good("there before")])
    return store


@pytest.fixture(scope="module")
def upstream_store(make_shared_store, raw) -> MilvusVectorStore:
    """A store on a collection such as upstream makes: the node is in the dynamic field."""
    name = collection_name("upstream")
    schema = raw.create_schema(enable_dynamic_field=True)
    schema.add_field("id", DataType.VARCHAR, max_length=VARCHAR_BYTES, is_primary=True)
    schema.add_field("doc_id", DataType.VARCHAR, max_length=VARCHAR_BYTES)
    schema.add_field("text", DataType.VARCHAR, max_length=VARCHAR_BYTES)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=DIM)
    raw.create_collection(name, schema=schema)
    return make_shared_store(collection_name=name, dim=DIM)


def good(node_id: str = "good", **kwargs: Any) -> TextNode:
    return TextNode(**{"id_": node_id, "text": "some text", "embedding": [1.0, 0.0], **kwargs})


def unvalidated(embedding: Any) -> TextNode:
    """A node with an embedding that pydantic would convert or refuse."""
    return good("bad").model_copy(update={"embedding": embedding})


def with_source(doc_id: str, node_id: str = "bad") -> TextNode:
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=doc_id)}
    return good(node_id, relationships=source)


def count(raw: MilvusClient, store: MilvusVectorStore) -> int:
    (row,) = raw.query(
        store.collection_name,
        filter='id >= ""',
        output_fields=["count(*)"],
        consistency_level="Strong",
    )
    return int(row["count(*)"])


def bad_nodes() -> dict[str, tuple[BaseNode, str]]:
    """Bad nodes by what is wrong with them, and what the message has to say."""
    finite = "not a finite 32-bit number"
    over = f"{VARCHAR_BYTES + 1} bytes.* {VARCHAR_BYTES}"
    bad: dict[str, tuple[BaseNode, str]] = {
        "no embedding": (good("bad", embedding=None), "no embedding"),
        "empty embedding": (good("bad", embedding=[]), "0 dimensions.* 2"),
        "short embedding": (good("bad", embedding=[1.0]), "1 dimensions.* 2"),
        "long embedding": (good("bad", embedding=[1.0] * 3), "3 dimensions.* 2"),
        "long array": (unvalidated(np.ones(3)), "3 dimensions.* 2"),
        "matrix": (unvalidated(np.ones((2, 2))), r"shape \(2, 2\)"),
        "NaN": (good("bad", embedding=[math.nan, 0.0]), finite),
        "NaN in an array": (unvalidated(np.array([0.0, math.nan])), finite),
        "infinity": (good("bad", embedding=[0.0, -math.inf]), finite),
        "infinities that cancel": (good("bad", embedding=[math.inf, -math.inf]), finite),
        "infinity in an array": (unvalidated(np.array([math.inf, 0.0], np.float32)), finite),
        "too large for 32 bits": (good("bad", embedding=[2 * FLOAT32_MAX, 0.0]), finite),
        "too large, cancelling": (good("bad", embedding=[1e39, -1e39]), finite),
        "too large in an array": (unvalidated(np.array([1e39, 0.0])), finite),
        "None in an embedding": (unvalidated([None, 1.0]), finite),
        "long text": (good("bad", text="a" * (VARCHAR_BYTES + 1)), f"text takes {over}"),
        "long text in wide letters": (good("bad", text="é" * 32_768), f"text takes {over}"),
        "long id": (good("x" * (VARCHAR_BYTES + 1)), f"id takes {over}"),
        "long id in wide letters": (good("🎉" * 16_384), f"id takes {over}"),
        "long source": (with_source("x" * (VARCHAR_BYTES + 1)), f"source document takes {over}"),
        "empty id": (good(""), "id is empty"),
        "lone surrogate in the text": (good("bad", text="a\ud800"), "surrogate at position 1"),
        "lone surrogate in the id": (good("\ud800"), "id has a lone surrogate"),
        "large metadata": (
            good("bad", metadata={"k": list(range(20_000))}),
            rf"takes 108\d\d\d bytes.*{DYNAMIC_BYTES}.*'k'",
        ),
        "many relationships": (
            good(
                "bad",
                relationships={
                    NodeRelationship.CHILD: [
                        RelatedNodeInfo(node_id=noise(36, i)) for i in range(3_000)
                    ]
                },
            ),
            rf"takes \d+ bytes as JSON and \d+ compressed.*{VARCHAR_BYTES}.* CHILD",
        ),
    }
    for name, value in NOT_CARRIED.items():
        bad[f"metadata: {name}"] = (good("bad", metadata={"k": value}), r"metadata\['k'\]")
    return bad


BAD = bad_nodes()


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_node_is_named_and_nothing_is_written(store, raw, coloured, kind):
    bad, says = BAD[kind]
    with pytest.raises(NodeError, match=f"(?s)Nothing was written.*{says}") as caught:
        await coloured(store).add([good("first"), bad, good("last")])
    assert {node_id for node_id, _ in caught.value.problems} == {bad.node_id}
    assert count(raw, store) == 1


async def test_nothing_is_written_of_earlier_batches_either(store, raw, coloured):
    nodes = [good(f"good {i}") for i in range(250)]  # more than one batch
    with pytest.raises(NodeError):
        await coloured(store).add([*nodes, good("bad", embedding=None)])
    assert count(raw, store) == 1


async def test_a_bad_node_is_refused_though_a_later_one_has_its_id(store, raw, coloured):
    with pytest.raises(NodeError, match="no embedding"):
        await coloured(store).add([good("twice", embedding=None), good("twice")])
    assert count(raw, store) == 1


async def test_all_offenders_are_named_at_once_with_what_was_found_and_what_is_allowed(
    store, coloured
):
    nodes = [
        good("too long", text="中" * 21_846),
        good("fine"),
        good("of another model", embedding=[1.0] * 384),
        good("without", embedding=None, text="a" * 70_000),
    ]
    with pytest.raises(NodeError) as caught:
        await coloured(store).add(nodes)
    expected = {
        "too long": ["65538 bytes", "65535"],
        "of another model": ["384 dimensions", "collection 2"],
        "without": ["no embedding", "70000 bytes", "65535"],
    }
    assert {node_id for node_id, _ in caught.value.problems} == set(expected)
    message = str(caught.value)
    for node_id, parts in expected.items():
        assert f"node {node_id!r}" in message
        problems = "; ".join(p for i, p in caught.value.problems if i == node_id)
        for part in parts:
            assert part in problems
            assert part in message


async def test_many_offenders_are_listed_whole_in_the_error_and_shortly_in_its_message(
    store, coloured
):
    nodes = [good(f"bad {i}", embedding=None) for i in range(500)]
    with pytest.raises(NodeError, match=r"and 490 more \(see \.problems\)") as caught:
        await coloured(store).add(nodes)
    assert [node_id for node_id, _ in caught.value.problems] == [n.node_id for n in nodes]


# At the limits


@pytest.mark.parametrize("letter", ["a", "é", "中", "🎉"])
async def test_a_text_of_the_largest_size_is_stored_and_one_byte_more_is_not(
    store, coloured, letter
):
    largest = good("largest", text=filled(letter, VARCHAR_BYTES))
    await coloured(store).add([largest])
    assert await coloured(store).get_nodes(["largest"]) == [largest]
    with pytest.raises(NodeError, match=f"{VARCHAR_BYTES + 1} bytes"):
        await coloured(store).add([good("larger", text=filled(letter, VARCHAR_BYTES + 1))])
    await coloured(store).delete_nodes(["largest"])
    assert await coloured(store).get_nodes(["largest"]) == []


@pytest.mark.parametrize("letter", ["a", "é", "中", "🎉"])
async def test_a_very_long_id_is_stored_and_found_and_deleted(store, coloured, letter):
    # The id is part of the serialized node as well, which leaves it a little less than a column.
    node = good(filled(letter, 65_000))
    await coloured(store).add([node])
    assert await coloured(store).get_nodes([node.node_id]) == [node]
    await coloured(store).delete_nodes([node.node_id])
    assert await coloured(store).get_nodes([node.node_id]) == []


def filled(letter: str, size: int) -> str:
    """A text of that letter, of that many bytes."""
    width = len(letter.encode())
    return letter * (size // width) + "a" * (size % width)


NASTY = 'é 中 🎉 "quoted" \\ \n \0'


def with_padded_source(value: str, pad: int) -> TextNode:
    node = with_source(value, "largest")
    node.metadata["pad"] = "x" * pad
    return node


def with_padded_template(pad: int) -> TextNode:
    """The template is in the serialized node only, the metadata beside it as well."""
    return good("largest", metadata={"k": NASTY}, text_template="{content}" + "x" * pad)


def size_of_node(row: dict[str, Any]) -> int:
    return len(row["_node_content"].encode())


def size_of_dynamic_field(row: dict[str, Any]) -> int:
    columns = ("id", "doc_id", "text", "embedding")
    return len(orjson.dumps({key: value for key, value in row.items() if key not in columns}))


@pytest.mark.parametrize(
    ("layout", "size_of", "limit"),
    [
        ("store", size_of_node, VARCHAR_BYTES),
        ("upstream_store", size_of_dynamic_field, DYNAMIC_BYTES),
    ],
)
async def test_a_node_of_the_largest_size_is_stored_as_it_is_and_a_larger_one_compressed(
    request, raw, engine, coloured, layout, size_of, limit
):
    store = coloured(request.getfixturevalue(layout))
    name = store.store.collection_name

    async def added(node: TextNode) -> dict[str, Any]:
        await store.add([node])
        assert await store.get_nodes(["largest"]) == [node]
        (row,) = raw.query(
            name, filter='id == "largest"', output_fields=["*"], consistency_level="Strong"
        )
        await store.delete_nodes(["largest"])
        return dict(row)

    pad = limit - size_of(await added(with_padded_template(0)))
    row = await added(with_padded_template(pad))
    assert size_of(row) == limit
    assert row["_node_content"].startswith("{")
    larger = await added(with_padded_template(pad + 1))
    assert larger["_node_content"].startswith("zlib:")
    if not engine.is_lite:  # which has other limits, or none
        row["_node_content"] += " "
        with pytest.raises(MilvusException, match=f"{limit + 1}.*{limit}"):
            raw.insert(name, [row])


async def test_document_ids_that_fill_the_dynamic_field_are_stored_and_one_byte_more_is_not(
    store, raw, engine, coloured
):
    limit = DYNAMIC_BYTES
    store = coloured(store)
    name = store.store.collection_name

    async def found(value: str, pad: int) -> int:
        """The bytes that the error finds too many."""
        with pytest.raises(NodeError) as caught:
            await store.add([with_padded_source(value, pad)])
        problems = "; ".join(problem for _, problem in caught.value.problems)
        match = re.search(rf"takes (\d+) bytes as JSON in the dynamic field.*{limit}", problems)
        assert match, problems
        return int(match[1])

    # A letter of the id counts twice. Cut an id that is too long; the pad fills the rest.
    value = "a" * limit
    surplus = await found(value, 0) - limit
    value = value[: -(surplus // 2 + 1)]
    pad = limit + 100 - await found(value, 100)

    largest = with_padded_source(value, pad)
    await store.add([largest])
    assert await store.get_nodes(["largest"]) == [largest]
    assert await found(value, pad + 1) == limit + 1

    (row,) = raw.query(
        name, filter='id == "largest"', output_fields=["*"], consistency_level="Strong"
    )
    await store.delete_nodes(["largest"])
    if not engine.is_lite:  # which has no limit
        row["pad"] += "x"
        with pytest.raises(MilvusException, match=f"{limit + 1}.*{limit}"):
            raw.insert(name, [dict(row)])
