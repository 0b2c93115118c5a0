"""Stores whose nodes have several embeddings, shared by the tests of one file."""

from __future__ import annotations

import pytest
from pymilvus import DataType

from tests.dense_fields.corpus import (
    BITS_DIM,
    FIELDS,
    NODES,
    make_bits,
)


@pytest.fixture(scope="module")
def store(make_shared_store):
    """Three dense fields, and full text; the nodes are not changed."""
    store = make_shared_store(dense_fields=FIELDS, enable_sparse=True)
    store.add(NODES)
    return store


@pytest.fixture(scope="module")
def on_same_collection(store, make_shared_store):
    def make(**kwargs):
        shared = {"dense_fields": FIELDS, "enable_sparse": True}
        return make_shared_store(collection_name=store.collection_name, **{**shared, **kwargs})

    return make


@pytest.fixture(scope="module", params=["HAMMING", "JACCARD"])
def bits(request, make_shared_store):
    spec = {"dim": BITS_DIM, "type": DataType.BINARY_VECTOR, "metric_type": request.param}
    store = make_shared_store(enable_dense=False, dim=None, dense_fields={"bits": spec})
    store.add(make_bits())
    return store
