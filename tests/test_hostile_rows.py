"""Rows that nobody's store has written: each is a node or a `RowError`, and nothing else happens.

The rows are put into Milvus behind the store's back. What is in them is data from outside, which
may name classes, files and addresses: none is imported, opened or called.
"""

import ast
import asyncio
import base64
import contextlib
import json
import os
import pickle
import sys
import threading
import time
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.schema import BaseNode, Document, ImageNode, IndexNode, Node, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery
from pymilvus import DataType
from pymilvus.client.prepare import Prepare

import llama_index_milvus_async
from llama_index_milvus_async._translation.engine import Engine
from llama_index_milvus_async._translation.layout import Column, Layout
from llama_index_milvus_async._translation.row_to_node import RowReader
from llama_index_milvus_async.errors import MilvusVectorStoreError, RowError
from tests.fixtures.labels import label
from tests.fixtures.memory import MEBIBYTE, WHY_NOT, Peak
from tests.fixtures.stores import DIM, collection_name, make_nodes

SECONDS = 5.0  # of a processor, for a row; a good one takes microseconds
#: Keyword arguments of a read that need not wait for a tick: the rows were seen before.
NOW = {"consistency_level": "Eventually"}


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
OTHER_VALUES = {
    **{"zero": 0, "one": 1, "float": -1.5, "true": True, "false": False, "null": None},
    **{"no-elements": [], "elements": [1], "texts": ["TextNode"], "nodes": [GOOD]},
    **{"no-keys": {}, "keys": {"a": 1}, "node": GOOD},
}

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
            **{"dynamic": True, "engine": Engine.parse("v2.3.5"), **parts},
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
#: What happened, by the thread that is watched.
_seen: dict[int, list[str]] = {}


def _hook(event, arguments):
    if _seen and event.startswith(FORBIDDEN):
        seen = _seen.get(threading.get_ident())
        if seen is not None:
            seen.append(f"{event} {arguments!r}"[:300])


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
    thread = threading.get_ident()
    seen = _seen[thread] = []
    try:
        yield
    finally:
        del _seen[thread]
    assert not seen


@pytest.mark.parametrize("event", ["os.system", "import", "open", "socket.connect", "exec"])
def test_the_hook_sees_what_must_not_happen(event):
    with pytest.raises(AssertionError, match=event), nothing_happens():
        sys.audit(event, "something")


def row(content, kind="TextNode", text="t", **more):
    return {"id": "the row", "text": text, "_node_content": content, "_node_type": kind, **more}


def read(reader, given):
    """Reads a row; returns its node, or `None` where a `RowError` names the row."""
    began = time.thread_time()
    try:
        with nothing_happens():
            node = reader.node(given)
    except RowError as error:
        assert "'the row'" in str(error)
        assert len(str(error)) < 600
        node = None
    assert time.thread_time() - began < SECONDS
    if node is not None:
        assert isinstance(node, BaseNode)
        assert node.node_id == "the row"
        assert type(node) in (TextNode, Node, Document, ImageNode, IndexNode)
    return node


@pytest.mark.parametrize("kind", TYPES, ids=label)
def test_content_of_any_kind_is_a_node_or_a_row_error(kind):
    for content in CONTENTS.values():
        read(READER, row(content, kind))
        read(DYNAMIC_READER, row(content, kind))


def test_good_content_of_any_class_is_a_node():
    for kind in TYPES:
        assert read(READER, row(spoiled(index_id="i"), kind)) is not None


@pytest.mark.parametrize("content", OTHER_VALUES.values(), ids=OTHER_VALUES)
def test_content_that_is_no_text(content):
    for kind in TYPES:
        read(DYNAMIC_READER, row(content, kind))
    read(DYNAMIC_READER, {"id": "the row"})


@pytest.mark.parametrize("kind", OTHER_VALUES.values(), ids=OTHER_VALUES)
def test_a_node_type_that_is_no_text(kind):
    read(DYNAMIC_READER, row(spoiled(), kind))


@pytest.mark.parametrize("text", OTHER_VALUES.values(), ids=OTHER_VALUES)
def test_a_text_that_is_no_text(text):
    for kind in ("TextNode", "Document", "Node", "ImageNode"):
        read(DYNAMIC_READER, row(spoiled(), kind, text=text))


@pytest.mark.parametrize("text", OTHER_VALUES.values(), ids=OTHER_VALUES)
def test_a_text_that_is_no_text_in_a_row_without_a_node(text):
    read(DYNAMIC_READER, {"id": "the row", "text": text, "doc_id": "d"})


@pytest.mark.parametrize("doc_id", OTHER_VALUES.values(), ids=OTHER_VALUES)
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


@settings(max_examples=300)
@given(FIELDS, st.sampled_from(TYPES))
def test_any_fields_are_a_node_or_a_row_error(fields, kind):
    read(READER, row(json.dumps({**GOOD, **fields}), kind))


@settings(max_examples=300)
@given(st.text() | st.text(alphabet='{}[]",:\\u0eE-+.ntf d8', max_size=60), st.sampled_from(TYPES))
def test_any_text_is_a_node_or_a_row_error(content, kind):
    read(READER, row(content, kind))


#: Bombs that Milvus Lite takes, which knows no 65,535 bytes.
BOMBS = {
    "lists": "[" * (16 * MEBIBYTE),
    "objects": '{"metadata": ' + '{"a":' * MEBIBYTE + "1" + "}" * (MEBIBYTE + 1),
    "digits": '{"metadata": {"a": ' + "9" * (4 * MEBIBYTE) + "}}",
    "relationships": (
        '{"relationships": {"5": [' + '{"node_id": "x"},' * 20_000 + '{"node_id": "y"}]}}'
    ),
    "escapes": spoiled(metadata={"a": "\\" * MEBIBYTE}),
}


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_takes_little_more_memory_than_it_is_long(bomb):
    with Peak() as peak:
        read(READER, row(bomb))
    assert peak.grown < 100 * MEBIBYTE


# The package itself

FORBIDDEN_MODULES = {
    *("builtins", "cloudpickle", "code", "codeop", "ctypes", "dill", "ftplib", "http", "imp"),
    *("importlib", "joblib", "jsonpickle", "marshal", "pickle", "pkgutil", "pty", "requests"),
    *("runpy", "shelve", "shutil", "smtplib", "socket", "subprocess", "tempfile", "urllib"),
    *("webbrowser", "xml", "yaml", "zipimport"),
}
#: Their harmless parts.
ALLOWED_MODULES = {"importlib.metadata", "urllib.parse"}
FORBIDDEN_CALLS = {"__import__", "breakpoint", "compile", "eval", "exec", "input", "open"}
ALLOWED_OF_OS = {"getpid", "path", "register_at_fork"}
FORBIDDEN_ARGUMENTS = {"allow_pickle", "shell"}
#: What files may do that see no data: import pymilvus by its name, try whether a model of the user
#: can be pickled, and look after the folder of Milvus Lite in this process.
ALLOWED_OF_FILES = {
    "_pymilvus.py": {"importlib", "os.environ"},
    "_transport/lite.py": {"shutil", "os.stat", "os.fstat"},
    "embeddings.py": {"pickle"},
    # The command line reads secrets and models that its user names, and goes on where nobody reads
    # what it prints; files get their names whole.
    "migration/_command_line.py": {"os.devnull", "os.dup2"},
    "migration/_models.py": {"importlib"},
    "migration/_parquet.py": {"importlib.util", "os.PathLike"},
    "migration/_parquet_files.py": {"os.fsync", "os.replace"},
    "migration/_places.py": {"os.environ"},
}


def dangers(source):
    """What code can do that may execute, import or open what data name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module]
            if node.module == "os":
                found += [f"os.{alias.name}" for alias in node.names]
        else:
            modules = []
        found += [
            module
            for module in modules
            if module.partition(".")[0] in FORBIDDEN_MODULES and module not in ALLOWED_MODULES
        ]
        if isinstance(node, ast.Name) and node.id in FORBIDDEN_CALLS:
            found.append(node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            of_os = node.value.id == "os" and node.attr not in ALLOWED_OF_OS
            found += [f"os.{node.attr}"] if of_os else []
        if isinstance(node, ast.keyword) and node.arg in FORBIDDEN_ARGUMENTS:
            found.append(f"{node.arg}=")
    return found


def test_the_package_neither_evaluates_nor_unpickles_nor_runs_anything():
    directory = Path(llama_index_milvus_async.__file__).parent
    modules = sorted(directory.rglob("*.py"))
    assert len(modules) > 10
    names = {path: path.relative_to(directory).as_posix() for path in modules}
    found = {names[path]: set(dangers(path.read_text())) for path in modules}
    assert {name: each for name, each in found.items() if each} == ALLOWED_OF_FILES


@pytest.mark.parametrize(
    ("source", "danger"),
    [
        ("eval(row)", "eval"),
        ("f = exec", "exec"),
        ("import numpy, pickle", "pickle"),
        ("def f():\n    from pickle import loads as parse", "pickle"),
        ("import importlib", "importlib"),
        ("from importlib import import_module", "importlib"),
        ("__import__(name)", "__import__"),
        ("os.system(row)", "os.system"),
        ("from os import popen", "os.popen"),
        ("import subprocess as s", "subprocess"),
        ("np.load(data, allow_pickle=True)", "allow_pickle="),
        ("with open(path): ...", "open"),
        ("import urllib.request", "urllib.request"),
    ],
    ids=label,
)
def test_the_search_for_dangers_finds_them(source, danger):
    assert danger in dangers(source)
    assert dangers("from urllib.parse import quote\nimport os, re\nre.compile('a')") == []


# In an engine


def insert(raw, name, rows):
    """Inserts in parts: a request may be refused as a whole."""
    for start in range(0, len(rows), 20):
        raw.insert(name, rows[start : start + 20])


def vector(number):
    """One of 64 vectors."""
    angle = [0.0] * DIM
    angle[number % DIM] = 1.0
    angle[(number // DIM) % DIM] += 0.5
    return angle


@pytest.fixture(scope="module")
def in_columns(make_shared_store, raw):
    """A store with a bad row for each content and type, and four good ones; the ids of the bad."""
    store = make_shared_store().connect()
    pairs = [(name, content, "TextNode") for name, content in CONTENTS.items()]
    pairs += [(f"type {kind[:40]!r}", spoiled(), kind) for kind in TYPES]
    rows = [
        {
            **{"id": f"bad {name}", "doc_id": "d", "text": f"text of {name}"},
            **{"_node_content": content, "_node_type": kind, "embedding": vector(number)},
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
        *({"_node_content": v, "id": f"content {k}"} for k, v in OTHER_VALUES.items()),
        *({"doc_id": v, "ref_doc_id": v, "id": f"doc {k}"} for k, v in OTHER_VALUES.items()),
        {"id": "nothing at all"},
        {"id": "a column's name", "id_": 5, "embedding ": 7, "$meta ": 1, "": 3},
        {"id": "deep", "deep": json.loads("[" * 200 + "]" * 200)},
    ]
    rows = [
        {"text": "t", **made, "id": f"bad {made['id']}", "embedding": vector(number)}
        for number, made in enumerate(rows)
    ]
    insert(raw, name, rows)
    store = make_shared_store(collection_name=name).connect()
    store.add(make_nodes(4))
    assert len(store.get_nodes(["node-0", "node-1"])) == 2
    return store, [made["id"] for made in rows]


@pytest.fixture(params=["in_columns", "in_dynamic_field"])
def layout(request, in_columns, in_dynamic_field):
    return {"in_columns": in_columns, "in_dynamic_field": in_dynamic_field}[request.param]


async def outcome(reading, row_id):
    """What reading one row comes to: its node, or `None` for an error that names it."""
    began = time.process_time()
    try:
        found = await reading
    except RowError as error:
        assert repr(row_id) in str(error)
        return None
    finally:
        assert time.process_time() - began < 4 * SECONDS
    [node] = found if isinstance(found, list) else found.nodes
    assert node.node_id == row_id
    return node


def asked(**kwargs):
    return VectorStoreQuery(query_embedding=[1.0] * DIM, similarity_top_k=1, **kwargs)


async def test_every_row_is_a_node_or_an_error_that_names_it(layout, coloured):
    bare, ids = layout
    store = coloured(bare)
    # What pymilvus imports with the first of each request is not the rows' doing either.
    assert len(await store.get_nodes([f"node-{i}" for i in range(4)])) == 4
    assert len((await store.query(asked(node_ids=["node-0"]))).ids) == 1
    good = 0
    with nothing_happens():
        for row_id in ids:
            got = await outcome(store.get_nodes([row_id], **NOW), row_id)
            found = await outcome(store.query(asked(node_ids=[row_id]), **NOW), row_id)
            assert (got is None) == (found is None)
            good += got is not None
    assert len(ids) / 5 < good < len(ids)


async def test_a_bad_row_fails_its_own_query_alone(layout):
    """Coalesced queries share an RPC and nothing else."""
    store, ids = layout
    good = [f"node-{i}" for i in range(4)]
    items, rpcs = items_and_rpcs(store)
    asking = [
        *((row_id, store.aget_nodes([row_id], **NOW)) for row_id in [*ids, *good]),
        *((row_id, store.aquery(asked(node_ids=[row_id]), **NOW)) for row_id in [*ids, *good]),
    ]
    outcomes = await asyncio.gather(*(outcome(reading, row_id) for row_id, reading in asking))
    by_id = {}
    for (row_id, _), node in zip(asking, outcomes, strict=True):
        by_id.setdefault(row_id, []).append(node)
    assert all(None not in by_id[row_id] for row_id in good)
    assert any(None in nodes for nodes in by_id.values())
    # Of this test alone: others of the store ask one by one.
    items_after, rpcs_after = items_and_rpcs(store)
    assert items_after - items > 2 * (rpcs_after - rpcs)


def items_and_rpcs(store):
    gets = store.stats().get("get")
    return (gets.items, gets.rpcs) if gets else (0, 0)


async def test_a_bad_hit_fails_the_search_that_found_it(in_columns):
    """The same search for many vectors: one RPC, of which each takes its own hits."""
    store, _ = in_columns
    nodes = make_nodes(4)
    vectors = [nodes[i % 4].embedding if i % 2 else vector(i) for i in range(60)]
    queries = [VectorStoreQuery(query_embedding=v, similarity_top_k=1) for v in vectors]
    alone = []
    for query in queries:
        try:
            alone.append((await store.aquery(query, **NOW)).ids)
        except RowError:
            alone.append(None)
    before = store.stats()["search"].rpcs
    together = await asyncio.gather(
        *(store.aquery(query, **NOW) for query in queries), return_exceptions=True
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
        *(store.aget_nodes(["bad words"], **NOW) for _ in range(10)), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {RowError}
    assert len({id(answer) for answer in answers}) == 10


async def test_bad_rows_can_be_deleted(in_columns, raw, coloured, colour):
    store = coloured(in_columns[0])
    row_id = f"to be deleted, {colour}"
    bad = {"id": row_id, "doc_id": "d", "text": "t", "_node_content": "{", "_node_type": ""}
    raw.insert(store.store.collection_name, [{**bad, "embedding": FAR}])
    with pytest.raises(RowError, match=row_id):
        await store.get_nodes([row_id])
    await store.delete_nodes([row_id])
    assert await store.get_nodes([row_id]) == []


# What pymilvus would not send, and clients in other languages might

#: A vector that no search of these tests finds.
FAR = [-1.0] * DIM


def insert_bytes(raw, name, rows, dynamic):
    """Inserts rows whose dynamic fields are these bytes."""
    handler = raw._get_connection()
    fields = raw.describe_collection(name)["fields"]
    request = Prepare.row_insert_param(name, rows, "", fields_info=fields, enable_dynamic=True)
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


@pytest.fixture(scope="module")
def foreign(in_columns, raw):
    """A store with those of the rows that the engine takes, and their names."""
    store, _ = in_columns
    taken = []
    for name, dynamic in BYTES.items():
        made = {"doc_id": "d", "text": "t", "_node_content": spoiled(), "_node_type": "TextNode"}
        made = {**made, "id": f"foreign {name}", "embedding": FAR}
        response = None
        with contextlib.suppress(Exception):  # the engine's own trouble is not this package's
            response = insert_bytes(raw, store.collection_name, [made], [dynamic])
        if response is not None and not response.status.code:
            taken.append(name)
    assert len(store.get_nodes(["node-0", "node-1"])) == 2
    return store, taken


@pytest.mark.parametrize("name", BYTES)
async def test_a_dynamic_field_that_pymilvus_would_not_write(foreign, coloured, name):
    """It is refused by the engine, or the row is a node or an error of this package."""
    store, taken = coloured(foreign[0]), foreign[1]
    row_id = f"foreign {name}"
    for reading in (
        lambda: store.get_nodes([row_id], output_fields=["a"], **NOW),
        lambda: store.query(asked(node_ids=[row_id], output_fields=["a"]), **NOW),
        lambda: store.get_nodes([row_id], **NOW),
        lambda: store.query(asked(node_ids=[row_id]), **NOW),
    ):
        if name in taken:
            with contextlib.suppress(MilvusVectorStoreError):
                await reading()
    assert len(await store.get_nodes(["node-0"], **NOW)) == 1


async def test_a_dynamic_field_that_cannot_be_read_fails_its_own_reader_alone(foreign):
    store, taken = foreign
    assert "surrogate" in taken
    options = {"output_fields": ["a"], **NOW}
    answers = await asyncio.gather(
        store.aget_nodes(["foreign surrogate"], **options),
        *(store.aget_nodes([f"node-{i}"], **options) for i in range(4)),
        return_exceptions=True,
    )
    assert isinstance(answers[0], RowError)
    assert not [answer for answer in answers[1:] if isinstance(answer, Exception)]
