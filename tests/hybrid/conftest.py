"""Stores that hold the nodes of `corpus.py`, shared by the tests of one file."""

from __future__ import annotations

import pytest

from llama_index_milvus_async import (
    MilvusVectorStore,
)
from tests.fixtures.stores import DIM, collection_name, store_factory
from tests.hybrid.corpus import (
    DEFAULT,
    NODES,
    BagOfWords,
    N,
    Setup,
    make_setup,
    query_for,
)


@pytest.fixture(
    scope="module",
    params=[(metric, who) for metric in ("COSINE", "IP", "L2") for who in ("encoder", "bm25")],
    ids="-".join,
)
def setup(make_shared_store, request):
    """Each dense metric beside each kind of sparse embeddings."""
    metric, who = request.param
    return make_setup(make_shared_store, metric, who == "bm25")


@pytest.fixture(scope="module", params=["encoder", "bm25"])
def either(make_shared_store, request):
    """Each kind of sparse embeddings, for what does not depend on the dense metric."""
    return make_setup(make_shared_store, "COSINE", request.param == "bm25")


@pytest.fixture(scope="module")
def encoded(make_shared_store):
    return make_setup(make_shared_store, "COSINE", False)


@pytest.fixture(scope="module")
def full_text(make_shared_store):
    return make_setup(make_shared_store, "COSINE", True)


@pytest.fixture
def reopen(engine):
    """Makes stores on collections of others; nothing is dropped with them."""
    stores = []
    yield store_factory(engine, "", stores)
    for store in stores:
        store.close()


@pytest.fixture
def on_encoded(encoded, reopen):
    """Makes further stores on the collection of `encoded`."""

    def make(**kwargs):
        given = {
            "collection_name": encoded.store.collection_name,
            "similarity_metric": "COSINE",
            "enable_sparse": True,
            "sparse_embedding_function": BagOfWords(),
        }
        return reopen(**{**given, **kwargs})

    return make


@pytest.fixture(scope="module", params=["COSINE", "IP", "L2"])
def dense(make_shared_store, request):
    """A store without sparse embeddings, which every engine has."""
    store = make_shared_store(
        collection_name=collection_name("hybrid_dense"), similarity_metric=request.param
    )
    store.add(NODES, force_flush=True)
    setup = Setup(store, request.param, False)
    assert len(store.query(query_for(DEFAULT, similarity_top_k=N)).ids) == N
    return setup


@pytest.fixture
def unconnected():
    """A store without a server, for what is refused before anything is sent."""
    return MilvusVectorStore(uri="http://127.0.0.1:1", dim=DIM, enable_sparse=True)


@pytest.fixture(scope="module")
def scratch(make_shared_store):
    """A store whose collection is emptied for each test: faster than one for each."""
    store = make_shared_store(
        collection_name=collection_name("scratch"),
        similarity_metric="COSINE",
        enable_sparse=True,
        sparse_embedding_function=BagOfWords(),
    )
    return store.connect()


@pytest.fixture
def make_encoded(scratch, reopen):
    """Makes stores with an encoder, on one empty collection."""
    scratch.clear()

    def make(encoder, **kwargs):
        given = {
            "collection_name": scratch.collection_name,
            "similarity_metric": "COSINE",
            "enable_sparse": True,
            "sparse_embedding_function": encoder,
        }
        return reopen(**{**given, **kwargs})

    return make
