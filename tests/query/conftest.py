"""Stores that hold the nodes of `corpus.py`, shared by the tests of one file."""

from __future__ import annotations

import pytest

from tests.fixtures.stores import collection_name
from tests.query.corpus import (
    ARCHIVED,
    NODES,
    N,
    build_index,
    query_for,
)


@pytest.fixture(scope="module")
def make_filled_store(make_shared_store):
    """Makes stores that hold `NODES`."""

    def make(**kwargs):
        name = collection_name("query")
        writer = make_shared_store(collection_name=name, **kwargs)
        writer.connect()
        writer.client.create_partition(name, "archive")
        writer.add(NODES[:-ARCHIVED])
        # An index is built of sealed rows only, and HNSW is tested, too.
        writer.add(NODES[-ARCHIVED:], milvus_partition_name="archive", force_flush=True)
        assert len(writer.query(query_for(similarity_top_k=N)).ids) == N
        # What one Strong read has seen every later read sees, without waiting for a time tick.
        return make_shared_store(
            **{"collection_name": name, "consistency_level": "Eventually", **kwargs}
        )

    return make


@pytest.fixture(scope="module")
def store(make_filled_store):
    return make_filled_store(similarity_metric="COSINE")


@pytest.fixture(scope="module")
def on_same_collection(store, make_shared_store):
    """Makes further stores on the collection."""

    def make(**kwargs):
        shared = {
            "collection_name": store.collection_name,
            "similarity_metric": "COSINE",
            "consistency_level": "Eventually",
        }
        return make_shared_store(**{**shared, **kwargs})

    return make


@pytest.fixture(scope="module", params=["COSINE", "IP", "L2"])
def metric_store(request, make_filled_store):
    if request.param == "COSINE":
        return request.getfixturevalue("store")
    return make_filled_store(similarity_metric=request.param)


@pytest.fixture(scope="module")
def hnsw_store(make_filled_store):
    store = make_filled_store(
        similarity_metric="COSINE",
        index_config={"index_type": "HNSW", "M": 16, "efConstruction": 200},
        search_config={"ef": 4},
    )
    build_index(store)
    return store
