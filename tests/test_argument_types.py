"""Arguments of operations that are of another type, or that nobody knows.

Each is refused by an error of the package that names it, in both colours, before anything is
sent: the store of these tests is nowhere.
"""

from __future__ import annotations

import inspect
import logging
import uuid

import pytest
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)

from llama_index_milvus_async import (
    ConfigurationError,
    MilvusVectorStore,
    MilvusVectorStoreError,
    ServerError,
)

NODE = TextNode(id_="a", text="some text", embedding=[1.0, 0.0])
QUERY = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=1)
FILTER = MetadataFilter(key="year", value=1704)
#: Nothing is read of it where an argument is refused.
FILTERS = MetadataFilters(filters=[FILTER])


class Anything:
    """A value of a type that nobody expects."""


def not_a(*fitting: type) -> list[object]:
    """Values of every type but these."""
    values = [7, 0.5, True, "text", b"bytes", ["a"], [None], {"a": 1}, {"a"}, (1,), Anything()]
    values.append(uuid.UUID(int=7))
    return [value for value in values if type(value) not in fitting]


#: Operation, its arguments by position, the argument by name that is wrong, and its wrong values.
#: `...` stands for a wrong value among the arguments by position.
ARGUMENTS = [
    ("add", (...,), "nodes", [None, *not_a()]),
    ("add", (...,), "nodes[0]", [[None], ["hello"], [7], [NodeWithScore(node=NODE)], {"a"}]),
    ("add", (...,), "nodes[1]", [[NODE, "hello"]]),
    ("delete", (...,), "ref_doc_id", [None, *not_a(str, list, set)]),
    ("delete", (...,), "ref_doc_id", [[7], [None], [uuid.UUID(int=7)], {7}]),
    ("delete_nodes", (...,), "node_ids", [*not_a(list, set), [7], [None]]),
    ("delete_nodes", (None, ...), "filters", [*not_a(), [FILTER], FILTERS.model_dump()]),
    ("delete_nodes", (["a"], ...), "filters", [*not_a(), [FILTER], FILTERS.model_dump()]),
    ("get_nodes", (...,), "node_ids", [*not_a(list, set), [7], [None]]),
    ("get_nodes", (None, ...), "filters", [*not_a(), [FILTER], FILTERS.model_dump()]),
    ("get_nodes", (["a"],), "output_fields", not_a(list, set)),
    ("get_nodes", (["a"],), "limit", [0, *not_a(int)]),
    ("get_nodes", (["a"],), "include_embeddings", not_a(bool)),
    ("count", (...,), "filters", [*not_a(), [FILTER], FILTERS.model_dump()]),
    ("count", (), "node_ids", [*not_a(list, set), [7], [None]]),
    ("list_documents", (...,), "filters", [*not_a(), [FILTER], FILTERS.model_dump()]),
    ("iter_nodes", (...,), "filters", [*not_a(), [FILTER], FILTERS.model_dump()]),
    ("iter_nodes", (), "batch_size", [0, None, *not_a(int)]),
    ("iter_nodes", (), "include_embeddings", not_a(bool)),
    ("iter_nodes", (), "output_fields", not_a(list, set)),
    ("iter_nodes", (), "after", not_a(str)),
    ("iter_ids", (), "batch_size", [0, None, *not_a(int)]),
    ("iter_ids", (), "after", not_a(str)),
    ("query", (...,), "query", [None, *not_a(), QueryBundle("text"), [QUERY], NODE]),
    ("query_many", (...,), "queries", [None, QUERY, *not_a(list, set, tuple)]),
    ("query_many", (...,), "queries[1]", [[QUERY, None], [QUERY, "text"], (QUERY, NODE)]),
    *(
        (operation, arguments, name, values)
        for operation, arguments in [("query", (QUERY,)), ("query_many", ([QUERY],))]
        for name, values in {
            "milvus_partition_names": [*not_a(str, list, set), "", [], [None], [""]],
            "consistency_level": not_a(),
            "timeout": [0, *not_a(int, float)],
            "milvus_search_config": not_a(dict),
            "sparse_search_config": not_a(dict),
            "milvus_ranker": not_a(),
            "ranker_prefetch_k": [0, *not_a(int)],
            "string_expr": not_a(str),
            "mmr_prefetch_factor": not_a(int, float),
            "mmr_prefetch_k": [-1, *not_a(int)],
            "mmr_threshold": [99, *not_a(float, int, bool)],
            "mmr_over": not_a(),
            "hybrid_fields": [[], [["x"]], *not_a(list, set)],
            "offset": not_a(int),
            "group_by_field": not_a(str),
            "score_threshold": not_a(int, float),
            "milvus_scalar_filters": not_a(dict, list, set, tuple),
        }.items()
    ),
    *(
        (operation, arguments, "milvus_partition_name", [*not_a(str), ""])
        for operation, arguments in [
            ("add", ([NODE],)),
            ("delete", ("doc",)),
            ("delete_nodes", (["a"],)),
        ]
    ),
    ("add", ([NODE],), "force_flush", not_a(bool)),
    ("add", ([NODE],), "show_progress", not_a(bool)),
    *(
        (operation, arguments, name, values)
        for operation, arguments in [
            ("get_nodes", (["a"],)),
            ("count", ()),
            ("list_documents", ()),
            ("iter_nodes", ()),
        ]
        for name, values in {
            "milvus_partition_names": [*not_a(str, list, set), "", [], [None]],
            "consistency_level": not_a(),
        }.items()
    ),
    *(
        (operation, arguments, "timeout", [0, *not_a(int, float)])
        for operation, arguments in [
            ("add", ([NODE],)),
            ("delete", ("doc",)),
            ("delete_nodes", (["a"],)),
            ("get_nodes", (["a"],)),
            ("clear", ()),
            ("count", ()),
            ("list_documents", ()),
            ("iter_nodes", ()),
        ]
    ),
]
FIELDS_OF_A_QUERY = {
    "query_embedding": [7, 0.5, True, Anything()],
    "similarity_top_k": not_a(int),
    "sparse_top_k": not_a(int),
    "hybrid_top_k": not_a(int),
    "doc_ids": [7, "text", b"bytes", {"a": 1}, Anything()],
    "node_ids": [7, "text", b"bytes", {"a": 1}, Anything()],
    "query_str": not_a(str),
    "output_fields": [7, "text", [None], Anything()],
    "embedding_field": not_a(str),
    "mode": not_a(),
    "alpha": not_a(int, float, bool),
    "filters": [*not_a(), [FILTER]],
    "mmr_threshold": not_a(int, float, bool),
}


@pytest.fixture
def store():
    return MilvusVectorStore(uri="http://host.invalid:1", dim=2, timeout=0.1)


async def refused(call, *arguments, **keywords) -> str:
    """The message of the error that a call ends in."""
    with pytest.raises(MilvusVectorStoreError) as caught:
        result = call(*arguments, **keywords)
        if inspect.isasyncgen(result):
            await anext(result)
        else:
            await result
    # A request would have ended in one.
    assert not isinstance(caught.value, ServerError)
    return str(caught.value)


@pytest.mark.parametrize(
    ("operation", "arguments", "name", "values"),
    ARGUMENTS,
    ids=[f"{i}-{row[0]}-{row[2]}" for i, row in enumerate(ARGUMENTS)],
)
async def test_what_is_of_another_type_is_refused_by_name(
    store, coloured, operation, arguments, name, values
):
    call = getattr(coloured(store), operation)
    for value in values:
        keywords = {} if ... in arguments else {name: value}
        given = [value if each is ... else each for each in arguments]
        assert name in await refused(call, *given, **keywords)


@pytest.mark.parametrize("name", FIELDS_OF_A_QUERY)
async def test_what_of_a_query_is_of_another_type_is_refused_by_name(store, coloured, name):
    for value in FIELDS_OF_A_QUERY[name]:
        query = VectorStoreQuery(query_embedding=[1.0, 0.0], query_str="a", similarity_top_k=1)
        setattr(query, name, value)
        assert name in await refused(coloured(store).query, query)


@pytest.mark.parametrize(
    ("operation", "arguments", "name", "meant"),
    [
        ("add", ([NODE],), "milvus_partition_names", "milvus_partition_name="),
        ("add", ([NODE],), "partition", "milvus_partition_name="),
        ("add", ([NODE],), "partitionName", "'partitionName'"),
        ("add", ([NODE],), "namespace", "milvus_partition_name="),
        ("add", ([NODE],), "force_flsh", "force_flush="),
        ("add", ([NODE],), "collection_name", "an argument of the constructor"),
        ("add", ([NODE],), "db_name", "an argument of the constructor"),
        ("delete", ("doc",), "milvus_partition_names", "milvus_partition_name="),
        ("delete_nodes", (["a"],), "filter", "filters="),
        ("get_nodes", (["a"],), "filter", "filters="),
        ("get_nodes", (["a"],), "ids", "node_ids="),
        ("get_nodes", (["a"],), "partition_name", "milvus_partition_names="),
        ("count", (), "filter", "filters="),
        ("list_documents", (), "partition", "milvus_partition_names="),
        ("iter_nodes", (), "consistency", "consistency_level="),
        ("query", (QUERY,), "filter", "filters= of VectorStoreQuery"),
        ("query", (QUERY,), "filters", "an argument of VectorStoreQuery"),
        ("query", (QUERY,), "output_fields", "an argument of VectorStoreQuery"),
        ("query", (QUERY,), "top_k", "similarity_top_k= of VectorStoreQuery"),
        ("query", (QUERY,), "expr", "string_expr="),
        ("query", (QUERY,), "milvus_partition_name", "milvus_partition_names="),
        ("query", (QUERY,), "similarity_metric", "an argument of the constructor"),
        ("query", (QUERY,), "xyz", "'xyz'. It takes consistency_level"),
        ("query_many", ([QUERY],), "mmr_treshold", "mmr_threshold="),
    ],
)
async def test_an_unknown_argument_is_refused_with_the_one_that_is_meant(
    store, coloured, operation, arguments, name, meant
):
    message = await refused(getattr(coloured(store), operation), *arguments, **{name: "secret"})
    assert repr(name) in message
    assert meant in message
    assert "secret" not in message


async def test_what_from_documents_hands_on_is_ignored_with_one_warning(store, coloured, caplog):
    handed_on = {"llm": object(), "service_context": None, "verbose": True, "use_async": True}
    with caplog.at_level(logging.WARNING, "llama_index_milvus_async"):
        for _ in range(3):
            assert await coloured(store).add([], **handed_on) == []
    [record] = caplog.records
    assert record.getMessage().endswith(
        "add() ignores the keyword arguments ['llm', 'service_context', 'use_async', 'verbose'], "
        "which mean nothing to the store"
    )


async def test_where_one_argument_means_nothing_another_is_refused_all_the_same(store, coloured):
    with pytest.raises(ConfigurationError, match="'milvus_partition_names'"):
        await coloured(store).add([], llm=None, milvus_partition_names=["a"])


@pytest.mark.parametrize("name", [*inspect.signature(MilvusVectorStore).parameters][:-1])
def test_no_value_of_an_argument_escapes_the_checks_of_the_constructor(name):
    values = [None, *not_a(), [], {}, [[]], {"": {}}, {"a": {"dim": 4, "type": []}}, {"params": 7}]
    for value in [*values, 10**400, -1, float("nan"), "\ud800", object]:
        # The arguments without which others have no effect.
        needed = {"enable_sparse": True, "dim": 4, name: value}
        try:
            MilvusVectorStore(**needed)
        except ConfigurationError as error:
            assert name.removesuffix("s") in str(error)


@pytest.mark.parametrize(
    "name", ["db_name", "user", "password", "secure", "server_pem_path", "grpc_options", "alias"]
)
def test_no_value_of_an_argument_of_the_client_escapes_either(name):
    for value in [None, *not_a()]:
        try:
            store = MilvusVectorStore(**{name: value})
        except ConfigurationError as error:
            assert str(error).startswith(f"{name} is a value of type {type(value).__name__}")
        else:
            repr(store), store.to_dict()
