"""A collection to copy, on Milvus Lite, and collections to copy it to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from pymilvus import MilvusException

from llama_index_milvus_async import MilvusVectorStore
from tests.fixtures.stores import DIM, MakeStore, collection_name, make_nodes

#: The nodes of `source`; their ids have the order of their numbers.
NODES = make_nodes(60, number=lambda i: i, language=lambda i: "de" if i % 3 else "en")
for _i, _node in enumerate(NODES):
    _node.id_ = f"node {_i:03}"


@pytest.fixture(scope="module")
def lite(get_engine):
    return get_engine("lite")


@pytest.fixture(scope="module")
def make_lite_store(lite) -> Iterator[MakeStore]:
    """Makes stores on Milvus Lite, whose collections are dropped at the end of the file."""
    stores: list[MilvusVectorStore] = []

    def make(**arguments) -> MilvusVectorStore:
        given = {"uri": lite.uri, "collection_name": collection_name("migration"), **arguments}
        stores.append(MilvusVectorStore(**given))
        return stores[-1]

    yield make
    for store in stores:
        with suppress(Exception):
            drop(store)
        store.close()


def drop(store: MilvusVectorStore) -> None:
    with suppress(MilvusException):
        store.client.drop_collection(store.collection_name)


@pytest.fixture(scope="module")
def source(make_lite_store) -> MilvusVectorStore:
    """Sixty nodes, compared by COSINE; tests leave it as it is."""
    store = make_lite_store(dim=DIM, similarity_metric="COSINE")
    store.add(NODES)
    return store
