"""What users import and pickle: the public names, where they are, and what shows them."""

import importlib
import pickle
import traceback
from datetime import timedelta

import pytest
from llama_index.core.vector_stores.types import FilterCondition

import llama_index_milvus_async as package
from llama_index_milvus_async import errors

#: The public files, and what each has been imported from them for.
FILES = {
    "embeddings": ["CoalescingEmbedding"],
    "documents": ["StoredDocument"],
    "errors": errors.__all__,
    "ingestion": ["IngestResult", "aingest", "ingest"],
    "rankers": ["NewestFirst"],
    "events": ["MilvusOperationEndEvent", "MilvusOperationStartEvent"],
    "sparse": [
        "BGEM3SparseEmbeddingFunction",
        "BM25BuiltInFunction",
        "BaseSparseEmbeddingFunction",
    ],
    "stats": ["KindStats"],
    "store": ["IndexManagement", "MilvusVectorStore"],
}

INSTANCES = [
    errors.ConfigurationError("dim is 0"),
    errors.NodeError([("a", "has no embedding")]),
    errors.FilterError("no"),
    errors.MigrationError("2 are missing", ["a"], ["b"]),
    errors.PymilvusNotSupportedError("the installed pymilvus 9.9"),
    errors.UnreachableError("query", "gone", 2),
    errors.PartialWriteError("insert", "gone", 2, ["a"], ["b"], ["c"]),
    errors.IngestionError("gone", 2, 3, ["a"], ["b"], ["c"]),
    errors.WriteOutcomeUnknownError("insert", "gone", 0, [], [], ["c"]),
    package.MilvusOperationStartEvent(operation="add", collection_name="books", count=3),
    package.MilvusOperationEndEvent(
        operation="add", collection_name="books", seconds=1.5, shared={"insert": 2}
    ),
    package.StoredDocument("a", 3),
    package.KindStats(calls=3, rpcs=1),
    package.IngestResult(documents=3, nodes=9),
    package.NewestFirst("published", half_life=timedelta(days=30)),
    package.IndexManagement.NO_VALIDATION,
    package.FilterOperatorFunction.ARRAY_CONTAINS_ANY,
    package.ScalarMetadataFilters(
        filters=[package.ScalarMetadataFilter(key="tags", value="x")],
        condition=FilterCondition.AND,
    ),
]


def kept(value):
    """What makes two of a class alike; exceptions compare by identity."""
    if isinstance(value, BaseException):
        return type(value), str(value)
    return value


@pytest.mark.parametrize(
    ("file", "name"), [(file, name) for file, names in FILES.items() for name in names]
)
def test_a_name_stays_where_it_was_imported_from(file, name):
    module = importlib.import_module(f"llama_index_milvus_async.{file}")
    assert getattr(module, name) is getattr(package, name)


def test_every_public_file_says_what_is_public():
    in_files = {name for names in FILES.values() for name in names}
    filters = {"FilterOperatorFunction", "ScalarMetadataFilter", "ScalarMetadataFilters"}
    assert set(package.__all__) == in_files | filters


@pytest.mark.parametrize("name", package.__all__)
def test_a_class_is_shown_and_pickled_by_the_name_that_users_import(name):
    cls = getattr(package, name)
    assert f"{cls.__module__}.{cls.__qualname__}" == f"llama_index_milvus_async.{name}"
    assert pickle.loads(pickle.dumps(cls)) is cls


@pytest.mark.parametrize("instance", INSTANCES, ids=lambda instance: type(instance).__name__)
def test_a_pickle_comes_back_and_names_no_private_file(instance):
    data = pickle.dumps(instance)
    assert b"llama_index_milvus_async" in data
    assert b"llama_index_milvus_async._" not in data
    assert kept(pickle.loads(data)) == kept(instance)


def test_a_traceback_shows_the_name_that_users_import():
    [line] = traceback.format_exception_only(errors.NodeError([("a", "is wrong")]))
    assert line.startswith("llama_index_milvus_async.NodeError: Nothing was written. ")


def test_an_error_without_an_answer_says_so():
    assert errors.PartialWriteError("insert", "refused").is_answer
    for cls in (
        errors.UnreachableError,
        errors.RequestTimeoutError,
        errors.WriteOutcomeUnknownError,
    ):
        assert not cls("insert", "gone").is_answer


def test_the_tree_of_errors_is_complete():
    drawn = {
        line.split("── ")[1].split()[0] for line in errors.__doc__.splitlines() if "──" in line
    }
    assert drawn | {"MilvusVectorStoreError"} == set(errors.__all__)
