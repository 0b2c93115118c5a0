"""Rows that nobody's store has written: each is a node or a `RowError`, and nothing else happens.

The rows are put into Milvus behind the store's back. What is in them is data from outside, which
may name classes, files and addresses: none is imported, opened or called.
"""

import asyncio
import base64
import contextlib
import json
import os
import pickle
import resource
import sys
import time

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.schema import BaseNode, Document, ImageNode, IndexNode, Node, TextNode
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQuery
from pymilvus import DataType
from pymilvus.client.prepare import Prepare

from llama_index_milvus_async._expressions import Dialect
from llama_index_milvus_async._rows import RowReader
from llama_index_milvus_async._schema import Column, Layout
from llama_index_milvus_async.errors import MilvusVectorStoreError, RowError
from tests.fixtures.stores import DIM, collection_name, make_nodes

SECONDS = 5.0  # for a row, on a busy machine; a good one takes microseconds
MEBIBYTE = 2**20


class Exploit:
    def __reduce__(self):
        return os.system, ("echo pwned",)


PICKLE = pickle.dumps(Exploit())
#: A node's serialized form, to be spoiled.
GOOD = {
    **{"id_": "other", "embedding": None, "metadata": {"a": 1}, "class_name": "TextNode"},
    **{"excluded_embed_metadata_keys": [], "relationships": {}, "text": ""},
}


def spoiled(**changes):
    return json.dumps({**GOOD, **changes})


#: Name to the serialized node of a row, always a text, at most 65,535 bytes.
CONTENTS = {
    # No JSON, or none of an object
    **{"blank": " ", "words": "not json", "open": "{", "half": spoiled()[:40], "nul": "\x00"},
    **{"null": "null", "list": "[1, 2]", "number": "7", "text": '"text"', "true": "true"},
    **{"pairs": '[["id_", "x"], ["text", "y"]]', "trailing": spoiled() + spoiled()},
    **{"bom": "\ufeff" + spoiled(), "single-quotes": str(GOOD), "comment": spoiled() + "//"},
    **{"utf-7": "+AHs-", "yaml": "!!python/object/apply:os.system ['echo pwned']"},
    # Objects of another shape
    **{"empty": "{}", "strange": '{"a": [1, {"b": null}]}', "no-keys": '{"": ""}'},
    "wrong-types": spoiled(metadata=7, relationships=[], embedding="x"),
    "metadata-list": spoiled(metadata=[["a", 1]]),
    "relationships-text": spoiled(relationships="SOURCE"),
    "relationships-unknown": spoiled(relationships={"99": {"node_id": "x"}}),
    "relationships-wrong": spoiled(relationships={"1": {"node_id": {"a": 1}}}),
    "relationships-list": spoiled(relationships={"1": [{"node_id": "x"}]}),
    "id-object": spoiled(id_={"$oid": "x"}),
    "embedding-texts": spoiled(embedding=["a", "b"]),
    "resource-text": spoiled(text_resource="text"),
    "resource-list": spoiled(text_resource=[["text", "t"]]),
    "resource-wrong": spoiled(text_resource={"text": {"a": 1}, "data": 5, "path": 7}),
    "unknown-keys": spoiled(**{"__class__": "os", "__dict__": {}, "__init__": 1, "self": 2}),
    "model-config": spoiled(model_config={"extra": "allow"}, __pydantic_extra__={}),
    # Numbers and texts at the edge
    "nan": '{"metadata": {"a": NaN, "b": Infinity, "c": -Infinity, "d": 1e999}}',
    "duplicates": '{"id_": "a", "id_": "b", "metadata": {"k": 1, "k": 2}}',
    "long-number": f'{{"metadata": {{"a": {"9" * 60_000}}}}}',
    "long-exponent": '{"metadata": {"a": 1e1000000000, "b": -1E-1000000000}}',
    "surrogate": '{"metadata": {"a": "\\ud800", "\\udfff": 1}, "id_": "\\ud800"}',
    "surrogate-pair": '{"metadata": {"a": "\\ud83c\\udf89", "b": "\\ud83c\\ud83c"}}',
    "escaped-nul": '{"metadata": {"a\\u0000": "\\u0000"}}',
    # Bombs
    "deep-lists": "[" * 60_000,
    "deep-closed": '{"metadata": {"a": ' + "[" * 20_000 + "]" * 20_000 + "}}",
    "deep-objects": '{"metadata": ' + '{"a":' * 9_000 + "1" + "}" * 9_001,
    "deep-within-reason": '{"metadata": {"a": ' + "[" * 150 + "]" * 150 + "}}",
    "many-relationships": spoiled(
        relationships={"5": [{"node_id": f"n{i}", "metadata": {}} for i in range(1_500)]}
    ),
    "many-keys": spoiled(metadata={f"k{i}": i for i in range(4_000)}),
    "long-text": spoiled(metadata={"a": "x" * 60_000}),
    "collisions": spoiled(metadata={str(2**61 - 1 + i * (2**61 - 1)): i for i in range(1_500)}),
    "nested-index": json.dumps(
        {"obj": {"__type__": "4", "__data__": {**GOOD, "obj": {"__data__": {}, "__type__": "3"}}}}
    ),
    # What other formats would execute
    "pickle": base64.b64encode(PICKLE).decode(),
    "pickle-text": PICKLE.decode("latin-1"),
    "pickle-embedding": spoiled(embedding={"__reduce__": ["os.system", ["echo pwned"]]}),
    "jsonpickle": '{"py/object": "os.system", "py/reduce": [{"py/function": "os.system"}, ["x"]]}',
    "langchain": '{"lc": 1, "type": "constructor", "id": ["os", "system"], "kwargs": {}}',
    "class-name": spoiled(class_name="os.system"),
    "import": spoiled(class_name="tests.test_hostile_rows.Exploit", module="antigravity"),
    "template": spoiled(text_template="{metadata_str.__class__.__mro__}", metadata_template="{0}"),
    "format": spoiled(metadata_seperator="{}" * 100, text_template="{content!r:>99999999999}"),
    # Files and addresses
    "path": spoiled(image_path="/etc/passwd", image_url="http://127.0.0.1:9/x", image="####"),
    "resources": spoiled(
        text_resource={"path": "/etc/passwd", "url": "http://127.0.0.1:9/", "mimetype": "x/y"},
        image_resource={"data": base64.b64encode(b"\x89PNG" * 100).decode(), "path": "/etc/passwd"},
        audio_resource={"url": "file:///etc/passwd"},
        video_resource={"path": "\x00"},
    ),
    "resource-data": spoiled(image_resource={"data": "!!! no base64 !!!", "mimetype": None}),
}  # fmt: skip
#: What a row says that its node is.
TYPES = [
    *("TextNode", "Document", "ImageNode", "IndexNode", "Node", "", "BaseNode", "ObjectType"),
    *("os.system", "builtins.eval", "__import__('os')", "tests.test_hostile_rows.Exploit", "\x00"),
    *("antigravity", "../../etc/passwd", "TextNode ", "textnode", "T" * 250, "MilvusVectorStore"),
]
#: What else a key of the dynamic field may hold in the place of a text.
OTHER_VALUES = [0, 1, -1.5, True, False, [], [1], ["TextNode"], {}, {"a": 1}, GOOD, [GOOD], None]

# Without an engine

COLUMNS = {
    column.name: column
    for column in [
        *(Column(name, DataType.VARCHAR, 65_535) for name in ("id", "doc_id", "text")),
        Column("_node_content", DataType.VARCHAR, 65_535),
        Column("_node_type", DataType.VARCHAR, 256),
        Column("embedding", DataType.FLOAT_VECTOR, dim=2),
    ]
}


def reader(*without, **parts):
    layout = Layout(
        **{
            **{"collection_name": "c", "primary_key": "id", "auto_id": False, "text_key": "text"},
            **{"columns": {k: v for k, v in COLUMNS.items() if k not in without}},
            **{"doc_id_field": "doc_id", "dense_fields": ("embedding",), "sparse_field": None},
            **{"dynamic": True, "dialect": Dialect.parse("v2.3.5"), **parts},
        }
    )
    return RowReader(layout)


READER = reader()
#: The serialized node is a key of the dynamic field, where it may be of any type.
DYNAMIC_READER = reader("_node_content", "_node_type")

#: What a row must not make Python do; events of `sys.audit`.
FORBIDDEN = (
    *("exec", "os.", "subprocess.", "socket.", "pickle.", "marshal.", "shutil.", "ctypes."),
    *("urllib.", "code.", "open", "tempfile.", "webbrowser.", "http.", "glob.", "import"),
)  # fmt: skip
_watching: list[list[str]] = []


def _hook(event, arguments):
    if _watching and event.startswith(FORBIDDEN):
        _watching[-1].append(f"{event} {arguments!r}"[:300])


@pytest.fixture(scope="module", autouse=True)
def hook():
    # Hooks cannot be removed; this one is idle when nobody watches.
    sys.addaudithook(_hook)
    # What the classes import when they are first used is not the rows' doing.
    for node_class in (TextNode, Node, Document, ImageNode, IndexNode):
        for content in ("resources", "nested-index", "path"):
            with contextlib.suppress(Exception):
                READER.node(row(CONTENTS[content], node_class.class_name()))


@contextlib.contextmanager
def nothing_happens():
    seen = []
    _watching.append(seen)
    try:
        yield
    finally:
        _watching.pop()
    assert not seen


def row(content, kind="TextNode", text="t", **more):
    return {"id": "the row", "text": text, "_node_content": content, "_node_type": kind, **more}


def read(reader, given):
    """Reads a row; returns its node, or `None` where a `RowError` names the row."""
    began = time.perf_counter()
    try:
        with nothing_happens():
            node = reader.node(given)
    except RowError as error:
        assert "'the row'" in str(error)
        assert len(str(error)) < 600
        node = None
    assert time.perf_counter() - began < SECONDS
    if node is not None:
        assert isinstance(node, BaseNode)
        assert node.node_id == "the row"
        assert type(node) in (TextNode, Node, Document, ImageNode, IndexNode)
    return node


@pytest.mark.parametrize("kind", TYPES)
def test_content_of_any_kind_is_a_node_or_a_row_error(kind):
    for content in CONTENTS.values():
        read(READER, row(content, kind))
        read(DYNAMIC_READER, row(content, kind))


def test_good_content_of_any_class_is_a_node():
    for kind in TYPES:
        assert read(READER, row(spoiled(index_id="i"), kind)) is not None


@pytest.mark.parametrize("content", OTHER_VALUES, ids=repr)
def test_content_that_is_no_text(content):
    for kind in TYPES:
        read(DYNAMIC_READER, row(content, kind))
    read(DYNAMIC_READER, {"id": "the row"})


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            value,
            marks=pytest.mark.xfail(
                isinstance(value, (list, dict)) and bool(value),
                reason="TypeError: unhashable type, which is no error of this package",
                strict=True,
            ),
        )
        for value in OTHER_VALUES
    ],
    ids=repr,
)
def test_a_node_type_that_is_no_text(kind):
    read(DYNAMIC_READER, row(spoiled(), kind))


#: Values that a VARCHAR column does not have, but a key of the dynamic field may.
@pytest.mark.parametrize("text", OTHER_VALUES, ids=repr)
def test_a_text_that_is_no_text(text):
    for kind in ("TextNode", "Document", "Node", "ImageNode"):
        read(DYNAMIC_READER, row(spoiled(), kind, text=text))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            value,
            marks=pytest.mark.xfail(
                bool(value), reason="pydantic's ValidationError passes through", strict=True
            ),
        )
        for value in OTHER_VALUES
    ],
    ids=repr,
)
def test_a_text_that_is_no_text_in_a_row_without_a_node(text):
    read(DYNAMIC_READER, {"id": "the row", "text": text, "doc_id": "d"})


@pytest.mark.parametrize("doc_id", OTHER_VALUES, ids=repr)
def test_a_document_id_that_is_no_text(doc_id):
    read(DYNAMIC_READER, {"id": "the row", "text": "t", "doc_id": doc_id})
    read(DYNAMIC_READER, row(spoiled(), doc_id=doc_id, ref_doc_id=doc_id))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = st.dictionaries(
    st.sampled_from(
        [
            *(*GOOD, "obj", "index_id", "image", "mimetype", "text_resource", "image_resource"),
            *("hash", "start_char_idx", "end_char_idx", "metadata_template", "text_template"),
        ]
    ),
    JSON,
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(FIELDS, st.sampled_from(TYPES))
def test_any_fields_are_a_node_or_a_row_error(fields, kind):
    read(READER, row(json.dumps({**GOOD, **fields}), kind))


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text(alphabet='{}[]",:\\u0eE-+.ntf d8', max_size=60), st.sampled_from(TYPES))
def test_any_text_is_a_node_or_a_row_error(content, kind):
    read(READER, row(content, kind))


def test_a_bomb_takes_no_memory_to_speak_of():
    """65,535 bytes are what Milvus holds; Milvus Lite takes more."""
    contents = [
        "[" * (16 * MEBIBYTE),
        '{"metadata": ' + '{"a":' * MEBIBYTE + "1" + "}" * (MEBIBYTE + 1),
        '{"metadata": {"a": ' + "9" * (4 * MEBIBYTE) + "}}",
        '{"relationships": {"5": [' + '{"node_id": "x"},' * 100_000 + '{"node_id": "y"}]}}',
        spoiled(metadata={"a": "\\" * MEBIBYTE}),
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in contents:
        read(READER, row(content))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 512 * MEBIBYTE


# In an engine


def insert(raw, name, rows):
    """Inserts in parts: a request may be refused as a whole."""
    for start in range(0, len(rows), 20):
        raw.insert(name, rows[start : start + 20])


def unit(number):
    """A vector that only row `number` is near to."""
    angle = [0.0] * DIM
    angle[number % DIM] = 1.0
    angle[(number // DIM) % DIM] += 0.5
    return angle


@pytest.fixture(scope="module")
def in_columns(make_shared_store, raw):
    """A store with a bad row for each content and type, and four good ones."""
    store = make_shared_store().connect()
    pairs = [(name, content, "TextNode") for name, content in CONTENTS.items()]
    pairs += [(f"type {kind[:40]!r}", spoiled(), kind) for kind in TYPES]
    rows = [
        {
            **{"id": f"bad {name}", "doc_id": "d", "text": f"text of {name}"},
            **{"_node_content": content, "_node_type": kind, "embedding": unit(number)},
        }
        for number, (name, content, kind) in enumerate(pairs)
    ]
    insert(raw, store.collection_name, rows)
    store.add(make_nodes(4))
    assert len(store.get_nodes(["node-0", "node-1"])) == 2
    return store, [made["id"] for made in rows]


@pytest.fixture(scope="module")
def in_dynamic_field(make_shared_store, raw):
    """The same, where the serialized node is a key of the dynamic field and may be missing."""
    name = collection_name("hostile")
    schema = raw.create_schema(enable_dynamic_field=True)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=1_000)
    schema.add_field("text", DataType.VARCHAR, max_length=65_535)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=DIM)
    index = raw.prepare_index_params()
    index.add_index("embedding", index_type="FLAT", metric_type="IP")
    raw.create_collection(name, schema=schema, index_params=index)
    # The dynamic field of a server holds 65,536 bytes, in which a quote takes two.
    wholes = {k: c for k, c in CONTENTS.items() if len(orjson.dumps(c)) < 60_000}
    rows = [
        *({"_node_content": c, "_node_type": "TextNode", "id": k} for k, c in wholes.items()),
        *({"_node_content": v, "id": f"content {v!r}"} for v in OTHER_VALUES),
        *({"doc_id": v, "ref_doc_id": v, "id": f"doc {v!r}"} for v in OTHER_VALUES),
        {"id": "nothing at all"},
        {"id": "a column's name", "id_": 5, "embedding ": 7, "$meta ": 1, "": 3},
        {"id": "deep", "deep": json.loads("[" * 200 + "]" * 200)},
    ]
    rows = [
        {"text": "t", **made, "id": f"bad {made['id']}", "embedding": unit(number)}
        for number, made in enumerate(rows)
    ]
    insert(raw, name, rows)
    store = make_shared_store(collection_name=name).connect()
    store.add(make_nodes(4))
    assert len(store.get_nodes(["node-0", "node-1"])) == 2
    return store, [made["id"] for made in rows]


@pytest.fixture(scope="module")
def layouts(in_columns, in_dynamic_field):
    return {"in_columns": in_columns, "in_dynamic_field": in_dynamic_field}


async def outcome(reading, row_id):
    """What reading one row comes to: its node, or `None` for an error that names it."""
    began = time.perf_counter()
    try:
        found = await reading
    except RowError as error:
        assert repr(row_id) in str(error)
        return None
    finally:
        assert time.perf_counter() - began < 4 * SECONDS
    nodes = found if isinstance(found, list) else found.nodes
    [node] = nodes
    assert node.node_id == row_id
    return node


def asked(**kwargs):
    return VectorStoreQuery(query_embedding=[1.0] * DIM, similarity_top_k=1, **kwargs)


@pytest.mark.parametrize("layout", ["in_columns", "in_dynamic_field"])
async def test_every_row_is_a_node_or_an_error_that_names_it(layouts, coloured, layout):
    bare, ids = layouts[layout]
    store = coloured(bare)
    good = 0
    for row_id in ids:
        # A Strong read waits for a tick; the fixture's own has seen all rows.
        level = {"consistency_level": "Eventually"}
        got = await outcome(store.get_nodes([row_id], **level), row_id)
        found = await outcome(store.query(asked(node_ids=[row_id]), **level), row_id)
        assert (got is None) == (found is None)
        good += got is not None
    assert len(ids) / 5 < good < len(ids)
    assert len(await store.get_nodes([f"node-{i}" for i in range(4)])) == 4


@pytest.mark.parametrize("layout", ["in_columns", "in_dynamic_field"])
async def test_a_bad_row_fails_its_own_query_alone(layouts, layout):
    """Coalesced queries share an RPC and nothing else."""
    store, ids = layouts[layout]
    good = [f"node-{i}" for i in range(4)]
    asking = [
        *((row_id, store.aget_nodes([row_id])) for row_id in [*ids, *good]),
        *((row_id, store.aquery(asked(node_ids=[row_id]))) for row_id in [*ids, *good]),
    ]
    outcomes = await asyncio.gather(*(outcome(reading, row_id) for row_id, reading in asking))
    by_id = {}
    for (row_id, _), node in zip(asking, outcomes, strict=True):
        by_id.setdefault(row_id, []).append(node)
    assert all(None not in by_id[row_id] for row_id in good)
    assert any(None in nodes for nodes in by_id.values())
    gets = store.stats()["get"]
    assert gets.items_per_rpc > 2


async def test_a_bad_hit_fails_the_search_that_found_it(in_columns, engine):
    """The same search for many vectors: one RPC, of which each takes its own hits."""
    store, _ = in_columns
    nodes = make_nodes(4)
    vectors = [nodes[i % 4].embedding if i % 2 else unit(i) for i in range(60)]
    queries = [VectorStoreQuery(query_embedding=v, similarity_top_k=1) for v in vectors]
    alone = []
    for query in queries:
        try:
            alone.append((await store.aquery(query)).ids)
        except RowError:
            alone.append(None)
    before = store.stats()["search"].rpcs
    together = await asyncio.gather(
        *(store.aquery(query) for query in queries), return_exceptions=True
    )
    assert store.stats()["search"].rpcs - before < len(queries) / 2
    assert None in alone and any(alone)
    for expected, answer in zip(alone, together, strict=True):
        if expected is None:
            assert type(answer) is RowError
        else:
            assert answer.ids == expected


async def test_errors_of_coalesced_queries_are_not_one_object(in_columns):
    store, _ = in_columns
    answers = await asyncio.gather(
        *(store.aget_nodes(["bad words"]) for _ in range(10)), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {RowError}
    assert len({id(answer) for answer in answers}) == 10


async def test_bad_rows_can_be_deleted(make_store, raw, coloured):
    store = coloured(make_store())
    await store.connect()
    bad = {"id": "bad", "doc_id": "d", "text": "t", "_node_content": "{", "_node_type": ""}
    raw.insert(store.store.collection_name, [{**bad, "embedding": unit(1)}])
    everything = MetadataFilters(filters=[])
    with pytest.raises(RowError, match="'bad'"):
        await store.get_nodes(filters=everything)
    await store.delete_nodes(["bad"])
    assert await store.get_nodes(filters=everything) == []


# What pymilvus would not send, and clients in other languages might


def insert_bytes(raw, name, rows, dynamic):
    """Inserts rows whose dynamic fields are these bytes."""
    handler = raw._get_connection()
    description = raw.describe_collection(name)
    request = Prepare.row_insert_param(
        name,
        rows,
        "",
        fields_info=description["fields"],
        enable_dynamic=True,
    )
    [meta] = [field for field in request.fields_data if field.is_dynamic]
    del meta.scalars.json_data.data[:]
    meta.scalars.json_data.data.extend(dynamic)
    return handler._stub.Insert(request, timeout=10)


#: Dynamic fields that parsers disagree about.
BYTES = {
    "deep": b'{"a": ' + b"[" * 3_000 + b"]" * 3_000 + b"}",
    "no-json": b"{",
    "no-object": b"[1]",
    "number": b"7",
    "null": b"null",
    "empty": b"",
    "nan": b'{"a": NaN}',
    "long-number": b'{"a": ' + b"9" * 5_000 + b"}",
    "not-utf-8": b'{"a": "\xff\xfe"}',
    "surrogate": b'{"a": "\\ud800"}',
    "duplicates": b'{"_node_content": "{}", "_node_content": 5}',
    "columns": b'{"id": "other", "text": 5, "embedding": [1]}',
}
#: Those that engines store and clients fail to read, by engine and colour.
PASSED_THROUGH = {
    "lite": {"sync": ("nan", "surrogate"), "async": ("nan", "surrogate")},
    "standalone": {
        "sync": ("deep", "not-utf-8", "surrogate"),
        "async": ("deep", "not-utf-8", "surrogate", "null"),
    },
}


@pytest.fixture(scope="module")
def foreign(make_shared_store, raw):
    """A store with those of the rows that the engine takes, and their names."""
    store = make_shared_store().connect()
    taken = []
    for number, (name, dynamic) in enumerate(BYTES.items()):
        made = {"doc_id": "d", "text": "t", "_node_content": spoiled(), "_node_type": "TextNode"}
        made = {**made, "id": f"bad {name}", "embedding": unit(number)}
        response = None
        with contextlib.suppress(Exception):  # the engine's own trouble is not this package's
            response = insert_bytes(raw, store.collection_name, [made], [dynamic])
        if response is not None and not response.status.code:
            taken.append(name)
    store.add(make_nodes(4))
    return store, taken


@pytest.mark.parametrize("name", BYTES)
async def test_a_dynamic_field_that_pymilvus_would_not_write(
    foreign, coloured, colour, name, engine, request
):
    """It is refused by the engine, or the row is a node or an error of this package."""
    store, taken = coloured(foreign[0]), foreign[1]
    if name in PASSED_THROUGH["lite" if engine.is_lite else "standalone"][colour]:
        reason = "orjson's JSONDecodeError, or an AttributeError, passes through"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    row_id = f"bad {name}"
    for reading in (
        lambda: store.get_nodes([row_id], output_fields=["a"]),
        lambda: store.query(asked(node_ids=[row_id], output_fields=["a"])),
        lambda: store.get_nodes([row_id]),
        lambda: store.query(asked(node_ids=[row_id])),
    ):
        if name in taken:
            with contextlib.suppress(MilvusVectorStoreError):
                await reading()
    assert len(await store.get_nodes(["node-0"])) == 1


@pytest.mark.xfail(reason="pymilvus decodes the whole response, for all callers", strict=True)
async def test_a_dynamic_field_that_cannot_be_read_fails_its_own_reader_alone(foreign):
    store, _ = foreign
    options = {"output_fields": ["a"]}
    answers = await asyncio.gather(
        store.aget_nodes(["bad surrogate"], **options),
        *(store.aget_nodes([f"node-{i}"], **options) for i in range(4)),
        return_exceptions=True,
    )
    assert not [answer for answer in answers[1:] if isinstance(answer, Exception)]
