"""Indexes of metadata keys without a column, which no engine here has: the messages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from pymilvus import DataType

from llama_index_milvus_async import CollectionError, ConfigurationError, MilvusVectorStore
from llama_index_milvus_async._lifecycle import Found
from llama_index_milvus_async._translation.engine import Engine
from llama_index_milvus_async._translation.filters import build_expression
from llama_index_milvus_async._translation.layout import Layout
from llama_index_milvus_async._translation.scalar_indexes import (
    ScalarIndex,
    path_indexes,
    steps_of_path,
)
from llama_index_milvus_async._translation.schema import new_index_params, new_schema
from llama_index_milvus_async.migration._places import _metadata_indexes
from tests.fixtures.fake_milvus import FakeMilvus
from tests.fixtures.stores import DIM, MakeStore, collection_name

NEW = Engine.parse("v2.6.6")


def settings_of(indexes: Any, **arguments: Any) -> Any:
    return MilvusVectorStore(dim=DIM, metadata_indexes=indexes, **arguments)._settings()


def paths(settings: Any, engine: Engine = NEW) -> list[tuple[str, str, str]]:
    indexes = ((one.field_name, one._configs) for one in new_index_params(settings, engine))
    return [
        (name, config["json_path"], config["json_cast_type"])
        for name, config in indexes
        if "json_path" in config
    ]


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("author", DataType.VARCHAR, [("$meta", "author", "VARCHAR")]),
        (
            "stats.year",
            "double",
            [("$meta", '$meta["stats.year"]', "DOUBLE"), ("$meta", 'stats["year"]', "DOUBLE")],
        ),
        (
            '$meta["a.b"]',
            DataType.BOOL,
            [("$meta", r'$meta["$meta[\"a.b\"]"]', "BOOL"), ("$meta", '$meta["a.b"]', "BOOL")],
        ),
        ('a "b"', {"type": DataType.VARCHAR}, [("$meta", r'$meta["a \"b\""]', "VARCHAR")]),
        (
            "tags",
            {"type": DataType.ARRAY, "element_type": DataType.VARCHAR},
            [("$meta", "tags", "ARRAY_VARCHAR")],
        ),
        ("extra.a", DataType.BOOL, [("extra", 'extra["a"]', "BOOL")]),
    ],
)
def test_an_index_is_of_the_paths_that_filters_read(key: str, given: Any, expected: Any) -> None:
    settings = settings_of({key: given}, scalar_fields={"extra": DataType.JSON})
    found = paths(settings)
    assert found == expected
    layout = Layout.from_description(new_schema(settings, NEW).to_dict(), settings, NEW)
    filters = MetadataFilters(filters=[MetadataFilter(key=key, value="x")])
    expression = build_expression(layout, filters=filters)
    assert all(path in expression for _, path, _ in found)


def test_names_of_indexes_are_such_as_milvus_takes() -> None:
    keys = {"author": "VARCHAR", "stats.year": "DOUBLE", "größe": "DOUBLE", "x" * 300: "BOOL"}
    names = [one.index_name for one in new_index_params(settings_of(keys), NEW)]
    assert "author" in names
    assert len(set(names)) == len(names) == 2 + 5
    assert all(name.isascii() and name.isidentifier() and len(name) < 256 for name in names)


@pytest.mark.parametrize(
    ("indexes", "message"),
    [
        (["author"], "metadata_indexes is .* it must be a dictionary of metadata key to type"),
        (
            {"a": DataType.INT64},
            r"metadata_indexes\['a'\] has type=.*; allowed DataTypes are BOOL, DOUBLE",
        ),
        ({"a": DataType.ARRAY}, r"metadata_indexes\['a'\] has no element_type"),
        ({"a": {"type": "BOOL", "element_type": "BOOL"}}, "only an ARRAY has one"),
        ({"a": {"type": "BOOL", "index": True}}, r"has 'index'; it takes \['type', 'element_type'"),
        ({"l[0]": "BOOL"}, "is a place in a list; an index is of all of it"),
        ({"tenant": "VARCHAR"}, "has 'tenant', which partition_key_field makes a column; for"),
        ({"doc_id": "VARCHAR"}, "has 'doc_id', which doc_id_field makes a column; .* index_doc_id"),
        ({"document_id": "VARCHAR"}, "in the collection 'c': rows have a column of that name"),
        ({"a][b": "VARCHAR"}, "in the collection 'c': Milvus cannot address a key"),
        ({"a": "BOOL", '$meta["a"]': "BOOL"}, "both are the path a; Milvus has one index"),
    ],
)
def test_what_cannot_have_an_index_is_refused(indexes: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        paths(settings_of(indexes, collection_name="c", partition_key_field="tenant"))


@pytest.mark.parametrize("found", ["/a~1b/c", '$meta["a/b"]["c"]'])
def test_an_index_that_others_made_is_known_by_its_path(found: str) -> None:
    index = ScalarIndex("$meta", "n", "INVERTED", {"json_path": '$meta["a/b"]["c"]'})
    assert index.is_of({"index_name": "theirs", "json_path": found})
    assert not index.is_of({"index_name": "theirs", "json_path": "/a/b/c"})
    assert not index.is_of({"index_name": "embedding"})


@pytest.mark.parametrize(
    ("column", "path", "cast"),
    [
        ("$meta", "author", "VARCHAR"),
        ("$meta", "/stats/year", "DOUBLE"),
        ("$meta", '$meta["a.b"]', "BOOL"),
        ("$meta", r'$meta["a \"ü\""]["c"]', "VARCHAR"),
        ("$meta", "tags", "ARRAY_VARCHAR"),
        ("extra", 'extra["a"]', "BOOL"),
        ("extra", "/extra/a", "BOOL"),
    ],
)
def test_a_collection_that_is_made_like_another_has_its_indexes_of_paths(
    column: str, path: str, cast: str
) -> None:
    index = {"field_name": column, "json_path": path, "json_cast_type": cast.lower()}
    asked = _metadata_indexes(Found({}, {}, [index]))
    settings = settings_of(asked, scalar_fields={"extra": DataType.JSON})
    layout = Layout.from_description(new_schema(settings, NEW).to_dict(), settings, NEW)
    made = {
        (one.column, tuple(steps_of_path(str(one.path)))) for one in path_indexes(layout, settings)
    }
    assert (column, tuple(steps_of_path(path))) in made


def test_a_collection_without_a_dynamic_field_has_none() -> None:
    settings = replace(settings_of({"author": "VARCHAR"}), metadata_indexes={})
    schema = {**new_schema(settings, NEW).to_dict(), "enable_dynamic_field": False}
    layout = Layout.from_description(schema, settings, NEW)
    with pytest.raises(ConfigurationError, match="the collection has no dynamic field"):
        path_indexes(layout, settings_of({"author": "VARCHAR"}))


def test_indexes_are_created_and_compared(fake_milvus: FakeMilvus) -> None:
    def store(**indexes: Any) -> MilvusVectorStore:
        return MilvusVectorStore(
            uri=fake_milvus.uri,
            collection_name=name,
            dim=DIM,
            index_doc_id=False,
            metadata_indexes=indexes,
        )

    name = collection_name("indexed")
    with store(author=DataType.VARCHAR):
        made = fake_milvus.requests["CreateIndex"][1:]
    [params] = [{pair.key: pair.value for pair in one.extra_params} for one in made]
    assert params == {"index_type": "INVERTED", "json_path": "author", "json_cast_type": "VARCHAR"}
    assert [(one.field_name, one.index_name) for one in made] == [("$meta", "author")]

    # Of an existing collection what is missing is added, and the rest is compared.
    with store(author=DataType.VARCHAR, year=DataType.DOUBLE):
        made = fake_milvus.requests["CreateIndex"][2:]
    assert [one.index_name for one in made] == ["year"]
    with pytest.raises(CollectionError, match="the path year: it is for values of type DOUBLE"):
        store(year=DataType.VARCHAR).connect()

    fake_milvus.version = "v2.5.12"
    with pytest.raises(ConfigurationError, match=r"Milvus 2\.5\.12 has none that filters can rely"):
        store(author=DataType.VARCHAR).connect()


@pytest.mark.engines("lite", "standalone")
def test_an_engine_without_them_is_told_before_anything_is_created(
    make_store: MakeStore, raw: Any
) -> None:
    store = make_store(metadata_indexes={"author": DataType.VARCHAR})
    with pytest.raises(ConfigurationError, match=r"scalar_fields\); Milvus 2\.6 and newer have"):
        store.connect()
    assert not raw.has_collection(store.collection_name)
