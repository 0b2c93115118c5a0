"""Nodes to Parquet files and back: the same nodes, the same rows, and files that others read."""

from __future__ import annotations

import asyncio
import errno
import json
import pkgutil
import threading

import pandas as pd
import pyarrow as pa
import pytest
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from pyarrow import parquet
from pymilvus import DataType, MilvusClient

from llama_index_milvus_async import (
    ConfigurationError,
    MigrationError,
)
from llama_index_milvus_async.migration import (
    aexport_nodes,
    aimport_nodes,
    export_nodes,
    import_nodes,
)
from llama_index_milvus_async.migration._command_line import main
from tests.fixtures.stores import DIM, make_nodes

COLUMNS = {"year": DataType.INT64, "tags": {"type": DataType.ARRAY, "element_type": "VARCHAR"}}
OLD = MetadataFilters(filters=[MetadataFilter(key="year", value=1990, operator="<")])


def all_kinds():
    """A node of each class, with all that a node can have."""
    embeddings = [node.embedding for node in make_nodes(6)]
    links = {
        NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc-1", metadata={"page": 1}),
        NodeRelationship.NEXT: RelatedNodeInfo(node_id="b"),
        NodeRelationship.CHILD: [RelatedNodeInfo(node_id="c"), RelatedNodeInfo(node_id="d")],
    }
    nodes = [
        TextNode(
            text='Tea "at" six\n\u2028 🫖',
            metadata={"lang": "en", "nested": {"a": [1, None, 2.5]}, "id": "a key of a column"},
            excluded_embed_metadata_keys=["lang"],
            excluded_llm_metadata_keys=["nested"],
            relationships=links,
            start_char_idx=3,
            end_char_idx=9,
            text_template="{content}",
        ),
        Document(text="", metadata={"lang": "fr"}),
        IndexNode(text="of others", index_id="there"),
        ImageNode(text="a picture", image_url="http://localhost/a.png"),
        TextNode(text="plain"),
        TextNode(text="large", metadata={"text": "x" * 20_000}),
    ]
    for number, (node, embedding) in enumerate(zip(nodes, embeddings, strict=True)):
        node.id_ = f"node {number}"
        node.embedding = embedding
        node.metadata |= {"year": 1988 + number, "tags": ["a", f"tag-{number}"]}
    return nodes


@pytest.fixture(scope="module")
def source(make_shared_store):
    store = make_shared_store(scalar_fields=COLUMNS)
    store.add(all_kinds())
    return store


@pytest.fixture(scope="module")
def target(make_shared_store, source):
    return make_shared_store(scalar_fields=COLUMNS)


@pytest.fixture
def export(colour):
    async def call(*args, **kwargs):
        if colour == "sync":
            return export_nodes(*args, **kwargs)
        return await aexport_nodes(*args, **kwargs)

    return call


@pytest.fixture
def import_(colour):
    async def call(*args, **kwargs):
        if colour == "sync":
            return import_nodes(*args, **kwargs)
        return await aimport_nodes(*args, **kwargs)

    return call


def nodes_of(store, filters=None):
    return [node.to_dict() for node in store.iter_nodes(filters, include_embeddings=True)]


def rows_of(raw, store):
    rows = raw.query(store.collection_name, filter='id >= ""', output_fields=["*"], limit=100)
    return sorted(json.dumps(row, default=str, sort_keys=True) for row in rows)


async def test_a_round_trip_is_equal(raw, source, export, import_, tmp_path):
    path = tmp_path / "nodes.parquet"
    nodes, rows = nodes_of(source), rows_of(raw, source)
    seen = []
    assert await export(source, path, on_progress=seen.append) == 6
    assert (seen[-1].operation, seen[-1].done, seen[-1].total) == ("export", 6, 6)
    assert [each.name for each in tmp_path.iterdir()] == ["nodes.parquet"]
    source.clear()
    for _ in range(2):  # again is the same
        assert await import_(path, source, on_progress=seen.append) == 6
    assert (seen[-1].operation, seen[-1].done, seen[-1].total) == ("import", 6, 6)
    assert nodes_of(source) == nodes
    assert rows_of(raw, source) == rows


@pytest.mark.engines("lite")
def test_the_file_has_the_layout_of_bulk_import(source, tmp_path):
    """As pymilvus' `LocalBulkWriter` writes it for the same collection."""
    path = tmp_path / "nodes.parquet"
    export_nodes(source, path)
    file = parquet.ParquetFile(path)
    assert {field.name: str(field.type) for field in file.schema_arrow} == {
        "id": "string",
        "doc_id": "string",
        "text": "string",
        "_node_content": "string",
        "_node_type": "string",
        "year": "int64",
        "tags": "list<element: string>",
        "embedding": "list<element: float>",
        "$meta": "string",
    }
    frame = pd.read_parquet(path)
    assert list(frame["id"]) == [f"node {number}" for number in range(6)]
    assert frame["text"][0] == 'Tea "at" six\n\u2028 🫖'
    assert frame["embedding"][0].tolist() == pytest.approx(make_nodes(1)[0].embedding)
    metadata = [json.loads(each) for each in frame["$meta"]]
    assert metadata[0]["nested"] == {"a": [1, None, 2.5]}
    assert metadata[0]["document_id"] == "doc-1"


@pytest.mark.engines("lite")
def test_filters_choose(source, tmp_path):
    path = tmp_path / "nodes.parquet"
    assert export_nodes(source, path, filters=OLD) == 2
    assert list(pd.read_parquet(path)["year"]) == [1988, 1989]


@pytest.mark.engines("lite")
def test_files_of_others_become_nodes(target, tmp_path):
    """Numbers of 64 bits, lists of fixed size, and further columns."""
    path = tmp_path / "others.parquet"
    vectors = pa.array([[0.5] * DIM, [0.25] * DIM], pa.list_(pa.float64(), DIM))
    table = pa.table(
        {
            "id": [101, 102],
            "text": ["one", None],
            "embedding": vectors,
            "title": ["A", None],
            "year": [2001, 2002],
            "tags": [["x"], []],
            "when": pa.array([0, 10**9], pa.timestamp("s")),
        }
    )
    parquet.write_table(table, path)
    assert import_nodes(path, target) == 2
    nodes = target.get_nodes(["101", "102"], include_embeddings=True)
    target.delete_nodes(["101", "102"])
    assert [(node.text, node.embedding[0]) for node in nodes] == [("one", 0.5), ("", 0.25)]
    assert nodes[0].metadata == {
        "title": "A",
        "year": 2001,
        "tags": ["x"],
        "when": "1970-01-01T00:00:00",
    }


def write(path, **columns):
    known = {
        "id": ["a", "b"],
        "text": ["one", "two"],
        "embedding": [[1.0] * DIM] * 2,
        "year": [1, 2],
        "tags": [[], []],
    }
    columns = {name: values for name, values in (known | columns).items() if values is not None}
    parquet.write_table(pa.table(columns), path)


NAN = [[1.0] * DIM, [1.0] * (DIM - 1) + [float("nan")]]


@pytest.mark.engines("lite")
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": None, "text": None}, "lacks the columns 'id' for the ids .*, 'text' for the texts"),
        ({"embedding": None}, "lacks the columns 'embedding' for the vectors of .*'embedding'"),
        ({"embedding": [[1.0] * DIM, [1.0] * 7]}, r"row 1 \(id 'b'\) has a vector of 7 dimensions"),
        ({"embedding": [[1.0] * DIM, None]}, r"row 1 \(id 'b'\) has no vector"),
        ({"embedding": NAN}, r"row 1 \(id 'b'\) has a value that is not a finite"),
        ({"embedding": ["1", "2"]}, "should have vectors, which are lists of numbers"),
        ({"embedding": [["x"], ["y"]]}, "should have vectors, which are lists of numbers"),
        ({"id": ["a", None]}, r"row 1 has no id"),
    ],
)
def test_files_that_do_not_fit_are_refused(target, tmp_path, columns, message):
    path = tmp_path / "bad.parquet"
    write(path, **columns)
    before = target.count()
    with pytest.raises(ConfigurationError, match=message):
        import_nodes(path, target)
    assert target.count() == before


@pytest.mark.engines("lite")
def test_a_node_that_does_not_fit_says_what_was_written(target, tmp_path):
    path = tmp_path / "bad.parquet"
    write(path, year=["one", "two"])
    with pytest.raises(MigrationError, match=r"stopped after 0 nodes.*'year'.*not an integer"):
        import_nodes(path, target)
    write(path, **{"$meta": ["{}", "{"]})
    with pytest.raises(MigrationError, match="a row cannot be read"):
        import_nodes(path, target)


@pytest.mark.engines("lite")
def test_a_file_that_is_cut_off_is_refused(source, target, tmp_path):
    path = tmp_path / "nodes.parquet"
    export_nodes(source, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match="is not a Parquet file that can be read"):
        import_nodes(path, target)


@pytest.mark.engines("lite")
def test_a_damaged_file_is_refused(source, target, tmp_path):
    path = tmp_path / "nodes.parquet"
    export_nodes(source, path)
    whole, group = path.read_bytes(), parquet.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    before = target.count()
    # The ids are read before anything is written, and the texts after that.
    for column, error in (("id", ConfigurationError), ("text", MigrationError)):
        [place] = [each for each in columns if each.path_in_schema == column]
        start, size = place.dictionary_page_offset, place.total_compressed_size
        path.write_bytes(whole[:start] + b"\xff" * size + whole[start + size :])
        with pytest.raises(error, match="damaged"):
            import_nodes(path, target)
    assert target.count() == before


PARTS_OF_WRITING = [
    "pyarrow.parquet.ParquetWriter",
    "pyarrow.parquet.ParquetWriter.write_table",
    "pyarrow.parquet.ParquetWriter.close",
]


@pytest.mark.engines("lite")
@pytest.mark.parametrize("method", PARTS_OF_WRITING)
def test_a_full_disk_leaves_no_file(source, tmp_path, monkeypatch, method):
    def full(*arguments, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(method, full)
    with pytest.raises(OSError, match=r"No space left on device: .*nodes\.parquet") as caught:
        export_nodes(source, tmp_path / "nodes.parquet")
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


@pytest.mark.engines("lite")
def test_a_failed_export_leaves_no_file(source, tmp_path):
    path = tmp_path / "nodes.parquet"

    def fail(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_nodes(source, path, on_progress=fail)
    assert not list(tmp_path.iterdir())
    path.write_text("mine")
    with pytest.raises(ConfigurationError, match="is there already; pass overwrite=True"):
        export_nodes(source, path)
    with pytest.raises(KeyboardInterrupt):
        export_nodes(source, path, overwrite=True, on_progress=fail)
    assert path.read_text() == "mine"
    assert export_nodes(source, path, overwrite=True) == 6
    assert len(pd.read_parquet(path)) == 6


@pytest.mark.engines("lite")
@pytest.mark.parametrize("method", PARTS_OF_WRITING)
async def test_an_export_that_is_cancelled_while_it_writes_leaves_no_file(
    source, tmp_path, monkeypatch, method
):
    writing, go_on = threading.Event(), threading.Event()
    original = pkgutil.resolve_name(method)

    def wait(*arguments, **more):
        writing.set()
        go_on.wait()
        return original(*arguments, **more)

    monkeypatch.setattr(method, wait)
    exporting = asyncio.create_task(aexport_nodes(source, tmp_path / "nodes.parquet"))
    await asyncio.to_thread(writing.wait)
    assert list(tmp_path.iterdir())
    exporting.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await exporting
    for left in tmp_path.iterdir():  # it was just ending, and is whole
        assert left.name == "nodes.parquet"
        assert len(pd.read_parquet(left)) == 6


@pytest.mark.engines("lite")
def test_arguments_are_checked_before_anything_happens(source, target, tmp_path):
    with pytest.raises(ConfigurationError, match=r"store is .* of type str"):
        export_nodes("notes", tmp_path / "nodes.parquet")
    with pytest.raises(ConfigurationError, match="path is None"):
        export_nodes(source, None)
    with pytest.raises(ConfigurationError, match="is a folder"):
        export_nodes(source, tmp_path, overwrite=True)
    with pytest.raises(ConfigurationError, match="there is no folder"):
        export_nodes(source, tmp_path / "missing" / "nodes.parquet")
    with pytest.raises(ConfigurationError, match="there is no such file"):
        import_nodes(tmp_path / "nodes.parquet", target)


# Collections of other kinds, on Milvus Lite


def raw_collection(make_lite_store, fields, *, dynamic, **arguments):
    """A collection that something else has made, and a store of it."""
    store = make_lite_store(**arguments)
    client = MilvusClient(store.uri)
    schema = client.create_schema(enable_dynamic_field=dynamic)
    for name, data_type, options in fields:
        schema.add_field(name, data_type, **options)
    vector = arguments.get("embedding_field", "embedding")
    schema.add_field(vector, DataType.FLOAT_VECTOR, dim=DIM)
    indexes = client.prepare_index_params()
    indexes.add_index(vector, index_type="FLAT", metric_type="COSINE")
    client.create_collection(store.collection_name, schema=schema, index_params=indexes)
    client.close()
    return store


def as_dicts(nodes):
    return [node.to_dict() for node in nodes]


def test_the_layout_of_the_other_package_becomes_the_new_one(make_lite_store, tmp_path):
    """There the text, the node and its metadata share the dynamic field."""
    text = {"max_length": 65_535}
    fields = [
        ("id", DataType.VARCHAR, {"is_primary": True, **text}),
        ("doc_id", DataType.VARCHAR, text),
    ]
    old = raw_collection(make_lite_store, fields, dynamic=True)
    old.add(all_kinds())
    assert export_nodes(old, tmp_path / "old.parquet") == 6
    new = make_lite_store()
    assert import_nodes(tmp_path / "old.parquet", new) == 6
    assert nodes_of(new) == nodes_of(old)
    with new.model_copy() as again:
        assert again.connect()._ready.get().indexes["embedding"].metric == "COSINE"


def test_rows_without_nodes_become_nodes_and_rows(make_lite_store, tmp_path):
    fields = [
        ("pk", DataType.INT64, {"is_primary": True}),
        ("body", DataType.VARCHAR, {"max_length": 100}),
        ("year", DataType.INT64, {"nullable": True}),
        ("extra", DataType.JSON, {}),
        ("score", DataType.FLOAT, {}),
    ]
    names = {"text_key": "body", "embedding_field": "vec"}
    old = raw_collection(make_lite_store, fields, dynamic=False, **names)
    vectors = [node.embedding for node in make_nodes(2)]
    rows = [
        {"pk": -5, "body": "b 🫖", "year": None, "extra": {"a": [1]}, "score": 0.1},
        {"pk": 7, "body": "c", "year": 1, "extra": {}, "score": 2.5},
    ]
    client = old.client
    client.insert(
        old.collection_name,
        [{**row, "vec": vector} for row, vector in zip(rows, vectors, strict=True)],
    )
    assert export_nodes(old, tmp_path / "old.parquet") == 2
    # The same columns, and the columns of a new collection.
    same = raw_collection(make_lite_store, fields, dynamic=False, **names)
    assert import_nodes(tmp_path / "old.parquet", same) == 2
    found = [
        client.query(each.collection_name, "pk > -9", output_fields=["*"]) for each in (old, same)
    ]
    assert found[0] == found[1]
    new = make_lite_store()
    assert import_nodes(tmp_path / "old.parquet", new) == 2
    assert new.get_nodes(["-5"])[0].metadata == old.get_nodes(["-5"])[0].metadata
    assert as_dicts(new.get_nodes(["-5", "7"], include_embeddings=True)) == as_dicts(
        old.get_nodes(["-5", "7"], include_embeddings=True)
    )


def test_all_vectors_travel(make_lite_store, tmp_path):
    """Sparse ones are not computed anew, and those of `dense_fields` stay with their columns."""

    def encode(texts):
        return [{len(text): 0.1, 2**31: 3.0} for text in texts]

    def refuse(texts):
        raise AssertionError("nothing has to be encoded")

    arguments = {"enable_sparse": True, "dense_fields": {"title": {"dim": 2}}, "dim": DIM}
    old = make_lite_store(sparse_embedding_function=(encode, encode), **arguments)
    nodes = make_nodes(3)
    for number, node in enumerate(nodes):
        node.metadata["title"] = [float(number), 0.5]
    old.add(nodes)
    path = tmp_path / "old.parquet"
    export_nodes(old, path)
    sparse = pd.read_parquet(path)["sparse_embedding"][0]
    assert json.loads(sparse) == {"14": pytest.approx(0.1), "2147483648": 3.0}
    new = make_lite_store(sparse_embedding_function=(refuse, refuse), **arguments)
    import_nodes(path, new)
    fields = ["id", "embedding", "title", "sparse_embedding"]
    found = [each.client.query(each.collection_name, 'id != ""', fields) for each in (old, new)]
    assert found[0] == found[1]
    assert nodes_of(new) == nodes_of(old)


def test_vectors_without_a_place_are_refused(make_lite_store, tmp_path):
    old = make_lite_store(dim=DIM, dense_fields={"title": {"dim": 2}})
    [node] = make_nodes(1, title=[0.5, 1.0])
    old.add([node])
    export_nodes(old, tmp_path / "old.parquet")
    new = make_lite_store()
    with pytest.raises(
        ConfigurationError, match=r"has vectors in \['title'\], and the store has no"
    ):
        import_nodes(tmp_path / "old.parquet", new)
    assert not new.client.has_collection(new.collection_name)


def test_what_milvus_computes_is_left_out(make_lite_store, tmp_path):
    store = make_lite_store(enable_sparse=True, dim=DIM)
    store.add(make_nodes(2))
    path = tmp_path / "nodes.parquet"
    export_nodes(store, path)
    assert "sparse_embedding" not in pd.read_parquet(path).columns
    import_nodes(path, store)
    assert store.count() == 2


def test_the_same_from_a_shell(make_lite_store, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MILVUS_TOKEN", "")
    old = make_lite_store(dim=DIM)
    old.add(make_nodes(3))
    path, new = str(tmp_path / "notes.parquet"), make_lite_store()
    assert main(["export", f"{old.uri}#{old.collection_name}", path]) == 0
    assert main(["import", path, f"{new.uri}#{new.collection_name}"]) == 0
    printed = capsys.readouterr().out
    assert "exported 3 nodes" in printed
    assert "imported 3 nodes" in printed
    assert nodes_of(new) == nodes_of(old)
    assert main(["export", f"{old.uri}#{old.collection_name}", path]) == 2
    assert "--overwrite" in capsys.readouterr().err
