"""The nodes that are asked for, and the answers of LlamaIndex's own simple store."""

from __future__ import annotations

import time

import numpy as np
import pytest
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from tests.fixtures.stores import make_nodes

N = 60
KINDS = ("essay", "poem", "letter")
ARCHIVED = 20  # the last nodes, in a partition of their own
MMR = VectorStoreQueryMode.MMR
FULL_PRECISION = 1e-5  # Milvus computes in 32 bits


def make_collection():
    """Nodes with metadata of many shapes, and vectors of lengths 1 to 3."""
    nodes = make_nodes(
        N,
        year=lambda i: 1900 + i,
        kind=lambda i: KINDS[i % 3],
        tags=lambda i: ["even", "all"] if i % 2 == 0 else ["all"],
        place=lambda i: {"city": f"city-{i}", "at": [i / 4, None]},
    )
    for i, node in enumerate(nodes):
        node.embedding = (np.float32(node.embedding) * np.float32(1 + i % 3)).tolist()
    return nodes


NODES = make_collection()
BY_ID = {node.node_id: node for node in NODES}
QUERIES = [node.embedding for node in make_nodes(8, seed=1)]


def query_for(**kwargs):
    return VectorStoreQuery(**{"query_embedding": QUERIES[0], "similarity_top_k": 10, **kwargs})


def reference(query):
    """What LlamaIndex's own store answers; it has no `doc_ids`."""
    simple = SimpleVectorStore()
    docs = query.doc_ids
    simple.add([node for node in NODES if docs is None or node.ref_doc_id in docs])
    return simple.query(query)


def assert_same(result, expected):
    assert result.ids == expected.ids
    assert result.similarities == pytest.approx(expected.similarities, abs=FULL_PRECISION)
    assert [node.node_id for node in result.nodes] == result.ids


def filters(*triples, condition="and"):
    return MetadataFilters(
        filters=[MetadataFilter(key=k, operator=o, value=v) for k, o, v in triples],
        condition=condition,
    )


def expected_similarities(metric, vector):
    """Id to similarity of every node, best first."""
    vector, matrix = np.array(vector), np.array([node.embedding for node in NODES])
    similarities = {
        "COSINE": matrix @ vector / np.linalg.norm(matrix, axis=1) / np.linalg.norm(vector),
        "IP": matrix @ vector,
        "L2": 1 / (1 + ((matrix - vector) ** 2).sum(axis=1)),
    }[metric]
    best_first = np.argsort(-similarities)
    return {NODES[i].node_id: float(similarities[i]) for i in best_first}


def build_index(store):
    """Waits for the index, which a server builds in the background, and loads it.

    Until then a server compares rows, or searches an index of its own that finds less.
    """
    client, name = store.client, store.collection_name
    rows = store.count(consistency_level="Strong")
    while client.describe_index(name, "embedding").get("indexed_rows", rows) < rows:
        time.sleep(0.1)
    client.release_collection(name)
    client.load_collection(name)
