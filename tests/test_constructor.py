"""The constructor: its signature, its checks, and what copies of a store keep. Needs no engine."""

import copy
import inspect
import json
import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from enum import Enum
from pathlib import Path

import grpc
import numpy as np
import pytest
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from pymilvus import DataType, WeightedRanker

from llama_index_milvus_async import IndexManagement, MilvusVectorStore, NewestFirst
from llama_index_milvus_async.errors import ConfigurationError, MilvusVectorStoreError
from llama_index_milvus_async.sparse import BM25BuiltInFunction
from tests.fixtures.labels import label
from tests.fixtures.memory import living

# The signature of upstream 1.2.0: names, order and defaults. Two defaults are others here:
# upstream's upsert_mode=False, and its similarity_metric="IP", which here is that of a new
# collection, while an existing index keeps its own.
UPSTREAM = {
    "uri": "./milvus_llamaindex.db",
    "token": "",
    "collection_name": "llamacollection",
    "overwrite": False,
    "upsert_mode": True,
    "collection_properties": None,
    "doc_id_field": "doc_id",
    "text_key": "text",
    "scalar_field_names": None,
    "scalar_field_types": None,
    "enable_dense": True,
    "dim": None,
    "embedding_field": "embedding",
    "enable_sparse": False,
    "sparse_embedding_field": "sparse_embedding",
    "sparse_embedding_function": None,
    "index_management": IndexManagement.CREATE_IF_NOT_EXISTS,
    "batch_size": 100,
    "index_config": None,
    "sparse_index_config": None,
    "search_config": None,
    "similarity_metric": None,
    "consistency_level": "Session",
    "output_fields": None,
    "hybrid_ranker": "RRFRanker",
    "hybrid_ranker_params": {},
    "use_async_client": True,
}
NEW = {
    "id_field": "id",
    "timeout": 60,
    "max_in_flight": 8,
    "coalesce": True,
    "dense_fields": None,
    "scalar_fields": None,
    "metadata_indexes": None,
    "index_doc_id": None,
    "num_shards": None,
    "replica_number": None,
    "partition_key_field": None,
    "num_partitions": None,
    "partition_key_isolation": False,
    "description": None,
    "query_ranker": None,
}

SECRETS = {"token": "root:topsecret", "password": "hunter22"}
# Every argument, with a value that is not its default where another is allowed.
ARGUMENTS = {
    "uri": "http://milvus.example:19530",
    "collection_name": "books",
    "overwrite": True,
    "upsert_mode": False,
    "collection_properties": {"collection.ttl.seconds": 3600},
    "doc_id_field": "document",
    "text_key": "body",
    "scalar_field_names": ["year", "author"],
    "scalar_field_types": [DataType.INT64, DataType.VARCHAR],
    "enable_dense": True,
    "dim": 16,
    "embedding_field": "vector",
    "enable_sparse": False,
    "sparse_embedding_field": "sparse",
    "sparse_embedding_function": None,
    "index_management": IndexManagement.NO_VALIDATION,
    "batch_size": 7,
    "index_config": {"index_type": "HNSW", "params": {"M": 16}},
    "sparse_index_config": {"index_type": "SPARSE_WAND"},
    "search_config": {"ef": 64},
    "similarity_metric": "L2",
    "consistency_level": "Strong",
    "output_fields": ["year"],
    "hybrid_ranker": "WeightedRanker",
    "hybrid_ranker_params": {"weights": [0.25, 0.75]},
    "use_async_client": False,
    "id_field": "key",
    "timeout": None,
    "max_in_flight": 3,
    "coalesce": False,
    "dense_fields": {"image": {"dim": 4, "type": DataType.FLOAT_VECTOR, "metric_type": "L2"}},
    "scalar_fields": {"tenant": {"type": DataType.VARCHAR, "nullable": False, "index": True}},
    "metadata_indexes": {"stats.year": {"type": DataType.DOUBLE}},
    "index_doc_id": False,
    "num_shards": 2,
    "replica_number": 3,
    "partition_key_field": "tenant",
    "num_partitions": 7,
    "partition_key_isolation": True,
    "description": "What is in it",
    "query_ranker": None,  # objects are written by their names, which are refused
}
CLIENT_OPTIONS = {
    "db_name": "library",
    "user": "root",
    "secure": True,
    "server_pem_path": "/etc/server.pem",
    "client_pem_path": "/etc/client.pem",
    "client_key_path": "/etc/client.key",
    "ca_pem_path": "/etc/ca.pem",
    "server_name": "milvus.example",
    "grpc_options": {"grpc.keepalive_time_ms": 1000},
    "alias": "main",
}


def new_store(**changes):
    return MilvusVectorStore(**{**ARGUMENTS, **CLIENT_OPTIONS, **SECRETS, **changes})


def state_of(store):
    """Every argument as the store keeps it, the secrets and the client's options among them."""
    names = [*ARGUMENTS, *SECRETS, "client_options"]
    return {name: getattr(store, name) for name in names}


def channels():
    return living(grpc.Channel, grpc.aio.Channel)


# Signature


def test_the_parameters_are_those_of_upstream_in_its_order_with_its_defaults():
    _, *parameters = inspect.signature(MilvusVectorStore.__init__).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(found.items()) == list(UPSTREAM.items())
    assert parameters[-1].kind is inspect.Parameter.VAR_KEYWORD


def test_new_parameters_are_keyword_only():
    parameters = inspect.signature(MilvusVectorStore.__init__).parameters.values()
    assert {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} == NEW


def test_arguments_may_be_passed_by_position():
    store = MilvusVectorStore("http://h:1", "a:b", "books", True, False, None, dim=4)
    assert (store.uri, store.token, store.collection_name) == ("http://h:1", "a:b", "books")
    assert store.overwrite


def test_it_is_a_vector_store_of_llama_index_under_upstreams_name():
    assert issubclass(MilvusVectorStore, BasePydanticVectorStore)
    assert MilvusVectorStore.class_name() == "MilvusVectorStore"


# No I/O


def test_an_unreachable_address_is_no_error_and_nothing_is_connected():
    before = {*channels(), *threading.enumerate()}
    MilvusVectorStore(uri="http://host.invalid:1", token="a:b", dim=4, overwrite=True)
    assert {*channels(), *threading.enumerate()} <= before


def test_no_file_is_made_and_none_is_needed(tmp_path):
    path = tmp_path / "milvus.db"
    MilvusVectorStore(uri=str(path), dim=4)
    MilvusVectorStore(uri=str(tmp_path / "missing" / "milvus.db"), dim=4)
    assert list(tmp_path.iterdir()) == []


# Fields


def test_the_arguments_of_these_tests_are_all_there_are():
    assert set(ARGUMENTS) | {"token"} == set(UPSTREAM) | set(NEW)


def test_all_arguments_become_fields():
    expected = {**ARGUMENTS, **SECRETS, "client_options": CLIENT_OPTIONS}
    assert state_of(new_store()) == expected


def test_defaults_become_fields():
    store = MilvusVectorStore()
    for name, default in {**UPSTREAM, **NEW}.items():
        value = getattr(store, name)
        # Upstream's "no configuration" is None; an empty one says the same.
        assert value == default or (default is None and value in ({}, []))


def test_stores_do_not_share_what_they_were_given():
    config = {"index_type": "FLAT"}
    first = MilvusVectorStore(index_config=config)
    second = MilvusVectorStore(index_config=config)
    first.index_config["nlist"] = 1
    first.hybrid_ranker_params["k"] = 1
    assert config == second.index_config == {"index_type": "FLAT"}
    assert second.hybrid_ranker_params == MilvusVectorStore().hybrid_ranker_params == {}


@pytest.mark.parametrize(
    ("given", "kept"),
    [("ip", "IP"), ("l2", "L2"), ("euclidean", "L2"), ("cosine", "COSINE"), ("Cosine", "COSINE")],
)
def test_metrics_are_taken_in_any_spelling(given, kept):
    assert MilvusVectorStore(similarity_metric=given).similarity_metric == kept


@pytest.mark.parametrize("level", ["Strong", "Session", "Bounded", "Eventually"])
def test_consistency_levels_are_taken_in_any_case(level):
    assert MilvusVectorStore(consistency_level=level.lower()).consistency_level == level


def test_index_management_is_taken_by_name():
    store = MilvusVectorStore(index_management="no_validation")
    assert store.index_management is IndexManagement.NO_VALIDATION


def test_index_management_of_the_upstream_plugin_is_understood():
    upstream = Enum("IndexManagement", {"NO_VALIDATION": "no_validation"})
    store = MilvusVectorStore(index_management=upstream.NO_VALIDATION)
    assert store.index_management is IndexManagement.NO_VALIDATION


def test_a_path_object_is_a_uri(tmp_path):
    assert MilvusVectorStore(uri=Path("milvus.db")).uri == "milvus.db"


def test_no_password_is_none_as_well():
    store = MilvusVectorStore(token=None, password=None)
    assert (store.token, store.password) == ("", "")


def test_repr_and_str_show_address_and_collection():
    for shown in (repr(new_store()), str(new_store())):
        assert "http://milvus.example:19530" in shown
        assert "books" in shown
        assert "library" in shown


# Checks


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"uri": ""}, r"uri is empty; pass a server's address such as .* or a path that ends"),
        ({"uri": None}, r"uri is None; pass a server's address"),
        ({"uri": "localhost:19530"}, r"uri is 'localhost:19530'; it must be a server's address"),
        ({"uri": "./milvus"}, r"uri is './milvus'; .* a path that ends in \".db\""),
        ({"uri": "milvus.DB"}, r"uri is 'milvus.DB'; .* a path that ends in \".db\""),
        ({"uri": "http://h/x.db"}, r"uri is 'http://h/x.db'; it must be a server's address"),
        ({"uri": "http://[::1"}, r"uri is 'http://\[::1'; it must be a server's address"),
        ({"uri": "http://:19530"}, r"uri is 'http://:19530'; .* with a host and a port"),
        ({"uri": "http://h:port"}, r"uri is 'http://h:port'; .* with a host and a port"),
        ({"uri": "http://h:99999"}, r"uri is 'http://h:99999'; .* a port in 1\.\.65535"),
        ({"token": 5}, r"token is a value of type int; it must be a string"),
        ({"password": 5}, r"password is a value of type int; it must be a string"),
        ({"collection_name": ""}, r"collection_name is ''; it must be a name"),
        ({"collection_name": None}, r"collection_name is None; it must be a name"),
        ({"overwrite": "perhaps", "dim": 4}, r"overwrite is 'perhaps'; it must be True or False"),
        ({"upsert_mode": "perhaps"}, r"upsert_mode is 'perhaps'; it must be True or False"),
        (
            {"use_async_client": "perhaps"},
            r"use_async_client is 'perhaps'; it must be True or False",
        ),
        (
            {"collection_properties": [1]},
            r"collection_properties is \[1\]; it must be a dictionary",
        ),
        ({"doc_id_field": ""}, r"doc_id_field is ''; it must be a name"),
        ({"text_key": 3}, r"text_key is 3; it must be a name"),
        ({"embedding_field": ""}, r"embedding_field is ''; it must be a name"),
        ({"id_field": ""}, r"id_field is ''; it must be a name"),
        (
            {"embedding_field": "text"},
            r"'text', which is also text_key; fields need distinct",
        ),
        ({"id_field": "_node_content"}, r"'_node_content', which is also"),
        (
            {"scalar_field_names": ["embedding"], "scalar_field_types": [DataType.INT64]},
            r"scalar_field_names is 'embedding', which is also embedding_field",
        ),
        (
            {"scalar_field_names": ["a", "a"], "scalar_field_types": [DataType.INT64] * 2},
            r"fields need distinct names",
        ),
        (
            {"scalar_field_names": ["a", "b"], "scalar_field_types": [DataType.INT64]},
            r"scalar_field_names has a length of 2, and scalar_field_types of 1; pass one type for",
        ),
        ({"scalar_field_names": ["a"]}, r"has a length of 1, and scalar_field_types of 0"),
        (
            {"scalar_field_types": [DataType.INT64]},
            r"has a length of 0, and scalar_field_types of 1",
        ),
        (
            {"scalar_field_names": ["a"], "scalar_field_types": [DataType.FLOAT_VECTOR]},
            r"scalar_field_types has .*FLOAT_VECTOR.* for 'a'; allowed DataTypes are .*VARCHAR",
        ),
        (
            {"scalar_field_names": ["a"], "scalar_field_types": ["VARCHAR"]},
            r"scalar_field_types has 'VARCHAR' for 'a'; allowed DataTypes are",
        ),
        ({"dim": 0}, r"dim is 0; it must be an integer in 1\.\.32768"),
        ({"dim": -3}, r"dim is -3; it must be an integer in 1\.\.32768"),
        ({"dim": 32_769}, r"dim is 32769; it must be an integer in 1\.\.32768"),
        ({"dim": 384.0}, r"dim is 384.0; it must be an integer"),
        ({"dim": "0"}, r"dim is 0; it must be an integer in 1\.\.32768"),
        ({"dim": "384.5"}, r"dim is 384.5; it must be an integer"),
        ({"dim": "many"}, r"dim is 'many'; it must be an integer"),
        ({"dim": True}, r"dim is True; it must be an integer"),
        ({"description": "a\ud800"}, r"description has a lone surrogate at position 1"),
        ({"enable_dense": False}, r"enable_dense=False .* leave nothing to search"),
        (
            {"sparse_embedding_function": BM25BuiltInFunction()},
            r"sparse_embedding_function has no effect without enable_sparse=True",
        ),
        (
            {"enable_sparse": True, "sparse_embedding_function": object()},
            r"sparse_embedding_function is a value of type object; it must be a function of Milvus",
        ),
        (
            {"enable_sparse": True, "sparse_embedding_function": BM25BuiltInFunction("text", "x")},
            r"sparse_embedding_function writes \['x'\]",
        ),
        (
            {"index_management": "sometimes"},
            r"index_management is 'sometimes'; it must be one of "
            r"\['no_validation', 'create_if_not_exists'\]",
        ),
        ({"batch_size": 0}, r"batch_size is 0; it must be an integer of at least 1"),
        ({"batch_size": 1.5}, r"batch_size is 1.5; it must be an integer of at least 1"),
        ({"max_in_flight": 0}, r"max_in_flight is 0; it must be an integer of at least 1"),
        ({"index_config": "FLAT"}, r"index_config is 'FLAT'; it must be a dictionary"),
        (
            {"index_config": {"params": 5}},
            r"index_config is {'params': 5}; it must be a dictionary",
        ),
        (
            {"index_config": {"index_type": "HNWS"}},
            r"index_config has index_type='HNWS'; a FLOAT_VECTOR has .*; did you mean 'HNSW'",
        ),
        ({"index_config": {"index_type": "BIN_FLAT"}}, r"index_type='BIN_FLAT'; a FLOAT_.*'\]$"),
        ({"index_config": {"index_type": 5}}, r"has index_type=5; a FLOAT_VECTOR has one of"),
        (
            {"index_config": {"metric_type": "HAMMING"}},
            r"has metric_type='HAMMING'; a FLOAT_VECTOR",
        ),
        (
            {"enable_sparse": True, "sparse_index_config": {"index_type": "INVERTED_INDEX"}},
            r"a SPARSE_FLOAT_VECTOR has .*; did you mean 'SPARSE_INVERTED_INDEX'\?$",
        ),
        (
            {"dense_fields": {"image": {"dim": 4, "index_type": "ivfflat"}}},
            r"dense_fields\['image'\] has index_type='ivfflat'; .*; did you mean 'IVF_FLAT'\?$",
        ),
        ({"search_config": "ef"}, r"search_config is 'ef'; it must be a dictionary"),
        (
            {"similarity_metric": "manhattan"},
            r"similarity_metric is 'manhattan'; it must be one of "
            r"\['IP', 'L2', 'COSINE', 'EUCLIDEAN'\]$",
        ),
        ({"similarity_metric": "cosin"}, r"is 'cosin'; .*; did you mean 'COSINE'\?$"),
        (
            {"consistency_level": "Weak"},
            r"consistency_level is 'Weak'; it must be one of "
            r"\['Strong', 'Session', 'Bounded', 'Eventually'\]",
        ),
        ({"output_fields": "year"}, r"output_fields is 'year'; it must be a list of names"),
        ({"output_fields": ["year", 5]}, r"output_fields has 5; it must be a list of names"),
        ({"scalar_field_names": "year"}, r"scalar_field_names is 'year'; it must be a list of"),
        ({"client_options": ["k3y"]}, r"client_options is a value of type list; it must be a dict"),
        ({"db_name": 5}, r"db_name is a value of type int; it must be a string"),
        ({"secure": "perhaps"}, r"secure is a value of type str; it must be True or False"),
        ({"grpc_options": [1]}, r"grpc_options is a value of type list; it must be a dictionary"),
        ({"dim": 0, "batch_size": 0}, r"dim is 0; it .*; batch_size is 0; it must be an integer"),
        (
            {"hybrid_ranker": "BestRanker"},
            r"hybrid_ranker is 'BestRanker'; it must be one of \['RRFRanker', 'WeightedRanker'\]",
        ),
        *(
            (
                {"query_ranker": ranker},
                r"query_ranker is .*; it must be a Function with .*hybrid_ra",
            )
            for ranker in ("RRFRanker", "<NewestFirst>", WeightedRanker(1, 0))
        ),
        ({"query_ranker": 3}, r"query_ranker is 3; it must be one of"),
        ({"query_ranker": NewestFirst}, r"query_ranker is the class NewestFirst; pass an object"),
        ({"hybrid_ranker_params": "k"}, r"hybrid_ranker_params is 'k'; it must be a dictionary"),
        (
            {"hybrid_ranker_params": {"weights": [1, 1]}},
            r"hybrid_ranker_params has \['weights'\]; RRFRanker takes \['k'\]",
        ),
        ({"hybrid_ranker_params": {"k": 0}}, r"has k=0; it must be a number in \(0, 16384\)"),
        ({"hybrid_ranker_params": {"k": "1"}}, r"has k='1'; it must be a number in"),
        (
            {"hybrid_ranker": "WeightedRanker", "hybrid_ranker_params": {"weights": [1]}},
            r"has weights=\[1(\.0)?\]; pass two weights",
        ),
        (
            {"hybrid_ranker": "WeightedRanker", "hybrid_ranker_params": {"weights": [1, 2]}},
            r"has weights=\[1, 2\]; they must be numbers in 0\.\.1",
        ),
        ({"timeout": 0}, r"timeout is 0; it must be a number of seconds above 0, or None"),
        (
            {"timeout": "soon"},
            r"timeout is 'soon'; it must be a number of seconds above 0, or None",
        ),
        ({"timeout": float("inf")}, r"timeout is inf; it must be a number of seconds above 0"),
        ({"timeout": float("nan")}, r"timeout is nan; it must be a number of seconds above 0"),
    ],
    ids=label,
)
def test_an_argument_that_is_not_allowed_is_refused_with_what_is(arguments, sentence):
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        MilvusVectorStore(**arguments)
    assert isinstance(caught.value, MilvusVectorStoreError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"dim": 1},
        {"dim": 32_768},
        {"uri": "https://cloud.example:443"},
        {"uri": "tcp://127.0.0.1:19530"},
        {"uri": "http://[::1]:19530"},
        {"uri": "unix:/run/milvus.sock"},
        {"uri": "unix:///run/milvus.sock"},
        {"uri": "https://cloud.example"},
        {"uri": "./me@home.db"},
        {"timeout": 0.5},
        {"hybrid_ranker_params": {"k": 60}},
        {"hybrid_ranker": "WeightedRanker"},
        {"scalar_field_names": [], "scalar_field_types": []},
    ],
    ids=label,
)
def test_what_is_allowed_is_taken(arguments):
    store = MilvusVectorStore(**arguments)
    assert {name: getattr(store, name) for name in arguments} == arguments


# Names


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("host", "uri"),
        ("port", "uri"),
        ("address", "uri"),
        ("milvus_uri", "uri"),
        ("api_key", "token"),
        ("collection", "collection_name"),
        ("colection_name", "collection_name"),
        ("dimension", "dim"),
        ("embed_dim", "dim"),
        ("metric", "similarity_metric"),
        ("similarty_metric", "similarity_metric"),
        ("similarity_metrics", "similarity_metric"),
        ("overwite", "overwrite"),
        ("overwrte", "overwrite"),
        ("upsert", "upsert_mode"),
        ("enable_hybrid", "enable_sparse"),
        ("index_params", "index_config"),
        ("search_params", "search_config"),
        ("database", "db_name"),
        ("username", "user"),
        ("server_pem_pth", "server_pem_path"),
        ("Collection_Name", "collection_name"),
    ],
)
def test_an_unknown_argument_is_refused_with_the_one_that_is_meant(name, meant):
    expected = rf"got unknown arguments: '{name}' \(did you mean '{meant}'\?\)"
    with pytest.raises(ConfigurationError, match=expected):
        MilvusVectorStore(**{name: "x"})


def test_unknown_arguments_are_told_all_at_once_with_those_that_there_are():
    with pytest.raises(ConfigurationError) as caught:
        MilvusVectorStore(host="h", xyz=1)
    assert "'host' (did you mean 'uri'?), 'xyz'. It takes its own, and " in str(caught.value)
    for name in CLIENT_OPTIONS:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda **unknown: MilvusVectorStore(**unknown),
        lambda **unknown: MilvusVectorStore(client_options=unknown),
        lambda **unknown: MilvusVectorStore.from_dict({**MilvusVectorStore().to_dict(), **unknown}),
        lambda **unknown: MilvusVectorStore.from_dict(MilvusVectorStore().to_dict(), **unknown),
        lambda **unknown: MilvusVectorStore().model_copy(update=unknown),
    ],
    ids=["constructor", "client_options", "data", "from_dict", "model_copy"],
)
def test_what_nobody_knows_is_refused_on_every_way_and_its_value_not_shown(build):
    with pytest.raises(ConfigurationError, match=r"'api_key' \(did you mean 'token'\?\)") as caught:
        build(api_key="s3cret")
    assert "s3cret" not in str(caught.value)


def test_a_token_among_the_clients_options_is_not_kept_where_it_is_shown():
    with pytest.raises(ConfigurationError, match="'token'") as caught:
        MilvusVectorStore(client_options={"token": "s3cret"})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"dim": "1536"}, {"dim": 1536}),
        ({"dim": np.int64(8)}, {"dim": 8}),
        ({"batch_size": " 50 "}, {"batch_size": 50}),
        ({"max_in_flight": "4"}, {"max_in_flight": 4}),
        ({"timeout": "2.5"}, {"timeout": 2.5}),
        ({"timeout": np.float32(2)}, {"timeout": 2.0}),
        ({"upsert_mode": "true"}, {"upsert_mode": True}),
        ({"dense_fields": {"image": {"dim": "4"}}}, {}),
        ({"index_config": {"index_type": "hnsw"}}, {"index_config": {"index_type": "HNSW"}}),
        ({"index_config": {"metric_type": "euclidean"}}, {"index_config": {"metric_type": "L2"}}),
        ({"sparse_index_config": {"params": None}}, {"sparse_index_config": {}}),
        ({"doc_id_field": "id"}, {"doc_id_field": "id"}),
        ({"secure": "true"}, {"client_options": {"secure": True}}),
        ({"ca_pem_path": Path("ca.pem")}, {"client_options": {"ca_pem_path": "ca.pem"}}),
    ],
    ids=label,
)
def test_what_comes_from_the_environment_is_what_it_says(given, kept):
    store = MilvusVectorStore(**given)
    for name, value in kept.items():
        assert getattr(store, name) == value
        assert type(getattr(store, name)) is type(value)
    for settings in store.dense_fields.values():
        assert settings["dim"] == 4


# Assignment


#: Fields that every operation reads, with another value than `ARGUMENTS` has.
CHANGES = {
    "upsert_mode": True,
    "search_config": {"ef": 128},
    "consistency_level": "Bounded",
    "output_fields": ["author"],
    "hybrid_ranker": "RRFRanker",
    "hybrid_ranker_params": {"weights": [0.5, 0.5]},
    "query_ranker": NewestFirst("year"),
    "use_async_client": True,
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_operations_read_may_be_changed(name):
    store = new_store(hybrid_ranker_params={})
    before, parts = state_of(store), (store._connections, store._ready)
    setattr(store, name, CHANGES[name])
    assert state_of(store) == {**before, name: CHANGES[name]}
    assert (store._connections, store._ready) == parts
    assert state_of(copy.copy(store))[name] == CHANGES[name]


def test_an_assigned_value_is_what_the_next_read_asks_for():
    store = new_store(hybrid_ranker_params={})
    assert store._defaults.consistency_level == "Strong"
    store.consistency_level = "bounded"
    store.output_fields = None
    assert (store._defaults.consistency_level, store._defaults.output_fields) == ("Bounded", [])


@pytest.mark.parametrize("name", sorted({*ARGUMENTS, *SECRETS, "client_options"} - {*CHANGES}))
def test_what_a_store_is_built_by_cannot_be_changed(name):
    store = new_store()
    before = state_of(store)
    with pytest.raises(ConfigurationError) as caught:
        setattr(store, name, before[name])
    assert str(caught.value) == (
        f"{name} cannot be changed in a store that is built: build another one, "
        f"store.model_copy(update={{'{name}': ...}})"
    )
    assert state_of(store) == before


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("upsert_mode", "perhaps", r"upsert_mode is 'perhaps'; it must be True or False"),
        ("use_async_client", None, r"use_async_client is None; it must be True or False"),
        ("search_config", "ef", r"search_config is 'ef'; it must be a dictionary"),
        ("consistency_level", "Stronk", r"consistency_level is 'Stronk'; it must be one of"),
        ("output_fields", "year", r"output_fields is 'year'; it must be a list of names"),
        ("hybrid_ranker", "BestRanker", r"hybrid_ranker is 'BestRanker'; it must be one of"),
        ("hybrid_ranker", "RRFRanker", r"has \['weights'\]; RRFRanker takes \['k'\]"),
        ("hybrid_ranker_params", {"weights": [1]}, r"has weights=\[1(\.0)?\]; pass two weights"),
        ("consistency", "Strong", r"no argument 'consistency'; did you mean 'consistency_level'\?"),
        ("xyz", "Strong", r"no argument 'xyz'$"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_and_the_old_one_kept(name, value, sentence):
    store = new_store(dense_fields=None)
    before = state_of(store)
    with pytest.raises(ConfigurationError, match=sentence):
        setattr(store, name, value)
    assert state_of(store) == before


# Copies


def through_pickle(store):
    return pickle.loads(pickle.dumps(store))


def through_model_copy(store):
    return store.model_copy()


def through_deep_model_copy(store):
    return store.model_copy(deep=True)


def through_dict(store):
    return MilvusVectorStore.from_dict(store.to_dict(), **SECRETS)


def through_json(store):
    return MilvusVectorStore.from_json(store.to_json(), **SECRETS)


COPIERS = [
    copy.copy,
    copy.deepcopy,
    through_model_copy,
    through_deep_model_copy,
    through_pickle,
    through_dict,
    through_json,
]


@pytest.mark.parametrize("copier", COPIERS)
def test_a_copy_keeps_every_argument_but_overwrite(copier):
    store = new_store()
    copied = copier(store)
    assert copied is not store
    assert state_of(copied) == {**state_of(store), "overwrite": False}
    assert store.overwrite  # the original is as it was


@pytest.mark.parametrize("copier", COPIERS)
def test_a_copy_of_a_copy_is_the_same(copier):
    assert state_of(copier(copier(new_store()))) == state_of(copier(new_store()))


@pytest.mark.parametrize("copier", COPIERS)
def test_a_copy_of_a_store_without_a_metric_has_none(copier):
    """Otherwise the copy would ask for one, which an existing index may not have."""
    copied = copier(MilvusVectorStore(dense_fields={"image": {"dim": 4}}))
    assert copied.similarity_metric is None
    assert "metric_type" not in copied.dense_fields["image"]


@pytest.mark.parametrize("copier", [copy.deepcopy, through_pickle, through_deep_model_copy])
def test_a_deep_copy_shares_nothing(copier):
    store = new_store()
    copied = copier(store)
    copied.index_config["params"]["M"] = 1
    copied.client_options["grpc_options"].clear()
    assert state_of(store) == state_of(new_store())


@pytest.mark.parametrize("copier", COPIERS)
def test_a_closed_stores_copy_is_open(copier):
    store = new_store()
    store.close()
    assert state_of(copier(store)) == {**state_of(store), "overwrite": False}


def test_model_copy_takes_changes():
    copied = new_store().model_copy(update={"collection_name": "films"})
    assert state_of(copied) == {**state_of(new_store(overwrite=False)), "collection_name": "films"}
    with pytest.raises(ConfigurationError, match="dim is 0"):
        new_store().model_copy(update={"dim": 0})


def test_from_dict_takes_changes_and_leaves_the_dictionary_alone():
    data = new_store().to_dict()
    before = copy.deepcopy(data)
    assert MilvusVectorStore.from_dict(data, timeout=5, db_name="other").timeout == 5
    assert data == before


def test_from_dict_takes_a_client_option_in_place_of_the_old_one():
    rebuilt = MilvusVectorStore.from_dict(new_store().to_dict(), db_name="other")
    assert rebuilt.client_options == {**CLIENT_OPTIONS, "db_name": "other"}


def test_a_subclass_is_copied_as_such():
    class Subclass(MilvusVectorStore):
        pass

    store = Subclass(dim=4)
    assert type(copy.copy(store)) is type(copy.deepcopy(store)) is type(store.model_copy())
    assert type(Subclass.from_dict(store.to_dict())) is Subclass


def test_to_json_is_to_dict_in_json():
    assert json.loads(new_store().to_json()) == json.loads(json.dumps(new_store().to_dict()))


def test_a_pickle_names_no_private_file():
    assert b"llama_index_milvus_async._" not in pickle.dumps(new_store())


def test_a_pickle_reaches_a_spawned_process_with_everything():
    store = new_store()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(state_of, store).result()
    assert there == {**state_of(store), "overwrite": False}
