"""Copies from one layout to another one: what each column becomes, and what has no place."""

from __future__ import annotations

import pytest
from llama_index.core.schema import TextNode
from pymilvus import DataType

from llama_index_milvus_async.errors import CollectionError, MigrationError
from llama_index_milvus_async.migration import check_nodes, copy_nodes
from tests.fixtures.engines import new_client
from tests.fixtures.stores import DIM, collection_name, make_nodes


@pytest.fixture(scope="module")
def raw_lite(lite):
    client = new_client(lite.uri)
    yield client
    client.close()


def never(texts):
    raise AssertionError(f"{texts} are encoded again")


def lengths(texts):
    return [{len(text): 1.0, i: 0.5} for i, text in enumerate(texts, 1_000)]


@pytest.fixture(scope="module")
def with_vectors(make_lite_store):
    """A store with sparse vectors that are computed here, and with a second dense field."""
    store = make_lite_store(
        dim=DIM,
        dense_fields={"image": {"dim": 4}},
        enable_sparse=True,
        sparse_embedding_function=(lengths, lengths),
    )
    nodes = make_nodes(12, number=lambda i: i)
    for i, node in enumerate(nodes):
        node.metadata["image"] = [float(i), 1.0, 0.0, 0.5]
    store.add(nodes)
    return store


def test_every_vector_travels_as_it_is(with_vectors, make_lite_store):
    target = make_lite_store(
        dense_fields={"image": {"dim": 4}},
        enable_sparse=True,
        sparse_embedding_field="words",
        sparse_embedding_function=(never, never),
    )
    copy_nodes(with_vectors, target, batch_size=5)
    report = check_nodes(with_vectors, target)
    assert report.is_equal, report
    [node] = target.iter_nodes(after="node-8", include_embeddings=True)
    assert node.metadata == {
        "number": 9,
        "image": [9.0, 1.0, 0.0, 0.5],
        "words": {14: 1.0, 1009: 0.5},
    }
    assert target.get_nodes(["node-9"], include_embeddings=False)[0].metadata == {"number": 9}


def test_vectors_without_a_place_are_refused(with_vectors, make_lite_store):
    with pytest.raises(CollectionError, match=r"vectors in 'image'.*dense_fields=\{'image'"):
        copy_nodes(with_vectors, make_lite_store())
    with pytest.raises(CollectionError, match=r"sparse vectors in .*enable_sparse=True"):
        copy_nodes(with_vectors, make_lite_store(dense_fields={"image": {"dim": 4}}))
    target = make_lite_store(dim=DIM, dense_fields={"audio": {"dim": 4}})
    with pytest.raises(CollectionError, match=r"needs vectors in \['audio'\]"):
        copy_nodes(make_store_of(make_lite_store), target)


def make_store_of(make_lite_store):
    store = make_lite_store(dim=DIM)
    store.add(make_nodes(3))
    return store


def test_bm25_is_computed_by_the_target(with_vectors, make_lite_store):
    target = make_lite_store(dense_fields={"image": {"dim": 4}}, enable_sparse=True)
    copy_nodes(with_vectors, target)
    assert "sparse_embedding" not in next(target.iter_nodes(include_embeddings=True)).metadata
    assert check_nodes(with_vectors, target).is_equal
    back = make_lite_store(dense_fields={"image": {"dim": 4}})
    copy_nodes(target, back)
    assert check_nodes(target, back).is_equal


def test_columns_and_partition_key_may_be_others(source, make_lite_store):
    target = make_lite_store(
        partition_key_field="language",
        scalar_fields={"number": {"type": DataType.INT64, "index": True}},
    )
    copy_nodes(source, target)
    assert check_nodes(source, target).is_equal


@pytest.fixture
def numbered(raw_lite, lite):
    """Rows that were not written by LlamaIndex, whose ids are numbers."""
    name = collection_name("numbered")
    schema = raw_lite.create_schema(enable_dynamic_field=True)
    schema.add_field("pk", DataType.INT64, is_primary=True)
    schema.add_field("body", DataType.VARCHAR, max_length=65_535)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
    indexes = raw_lite.prepare_index_params()
    indexes.add_index("vector", index_type="FLAT", metric_type="L2")
    raw_lite.create_collection(name, schema=schema, index_params=indexes)
    rows = [
        {"pk": i, "body": f"body {i}", "vector": [i, 1], "year": 2000 + i} for i in range(-5, 25)
    ]
    raw_lite.insert(name, rows)
    yield name
    raw_lite.drop_collection(name)


def test_rows_of_other_applications_become_nodes(numbered, make_lite_store):
    source = make_lite_store(collection_name=numbered, text_key="body", embedding_field="vector")
    target = make_lite_store()
    copy_nodes(source, target, batch_size=7)
    assert check_nodes(source, target).is_equal
    [node] = target.get_nodes(["-3"])
    assert (node.text, node.metadata, node.embedding) == ("body -3", {"year": 1997}, [-3.0, 1.0])
    # Numbers and texts have different orders.
    target.delete_nodes(["-4", "3", "20"])
    target.add([TextNode(id_="one more", text="x", embedding=[1.0, 1.0])])
    report = check_nodes(source, target)
    assert (report.missing, report.extra) == (["-4", "3", "20"], ["one more"])
    target.delete_nodes(["one more"])
    assert copy_nodes(source, target).copied == 3
    # And back, where ids are numbers again: any of 64 bits, such as hashes, and nothing else.
    source.delete_nodes(["2", "10"])
    ends = ["-9223372036854775807", "-1000000000000000000", "9223372036854775807"]
    target.add([TextNode(id_=one, text="x", embedding=[1.0, 1.0]) for one in ends])
    assert copy_nodes(target, source).copied == 5
    assert check_nodes(target, source).is_equal
    target.delete_nodes(ends)
    assert check_nodes(source, target).missing == ends
    assert copy_nodes(source, target).copied == 3
    for one in ("9223372036854775808", "abc"):
        target.add([TextNode(id_=one, text="x", embedding=[1.0, 1.0])])
        with pytest.raises(MigrationError, match=f"the copy stopped .*{one}"):
            copy_nodes(target, source)
        target.delete_nodes([one])


def test_a_node_that_is_too_large_is_named(raw_lite, numbered, make_lite_store):
    # Milvus Lite counts characters, servers bytes.
    raw_lite.insert(numbered, [{"pk": 11, "body": "é" * 40_000, "vector": [1, 1]}])
    source = make_lite_store(collection_name=numbered, text_key="body", embedding_field="vector")
    target = make_lite_store()
    with pytest.raises(MigrationError, match=r"node '11': .*text.* 80000 bytes"):
        copy_nodes(source, target, batch_size=10)

    def cut(node):
        node.text = node.text[:100]
        return node

    assert copy_nodes(source, target, transform=cut).copied == 30


def test_rows_of_the_other_package_get_the_new_layout(raw_lite, make_lite_store):
    name = collection_name("upstream")
    schema = raw_lite.create_schema(enable_dynamic_field=True)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=65_535)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=DIM)
    schema.add_field("doc_id", DataType.VARCHAR, max_length=65_535)
    raw_lite.create_collection(name, schema=schema)
    source = make_lite_store(collection_name=name)
    source.add(make_nodes(5, year=lambda i: 2000 + i))
    target = make_lite_store()
    copy_nodes(source, target)
    assert check_nodes(source, target).is_equal
    fields = target.client.describe_collection(target.collection_name)["fields"]
    assert "_node_content" in {field["name"] for field in fields}


def test_a_target_that_numbers_its_rows_is_refused(source, raw_lite, make_lite_store):
    name = collection_name("auto_id")
    schema = raw_lite.create_schema(auto_id=True)
    schema.add_field("pk", DataType.INT64, is_primary=True)
    schema.add_field("text", DataType.VARCHAR, max_length=100)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=DIM)
    raw_lite.create_collection(name, schema=schema)
    with pytest.raises(CollectionError, match=r"numbers its rows itself \(auto_id\)"):
        copy_nodes(source, make_lite_store(collection_name=name))
