"""Nodes with several embeddings each, and the right answers, computed here."""

from __future__ import annotations

import numpy as np
import pytest
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from tests.fixtures.stores import DIM, make_nodes

lite = pytest.mark.engines("lite")
standalone = pytest.mark.engines("standalone")

N = 24
IMAGE_DIM = 4
EVERYTHING = MetadataFilters(filters=[])
FULL_PRECISION = 1e-5  # Milvus computes in 32 bits
HYBRID, MMR = VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.MMR
HNSW = {"index_type": "HNSW", "M": 8, "efConstruction": 32}
FIELDS = {
    "image": {"dim": IMAGE_DIM, "metric_type": "L2", **HNSW},
    "title": {"dim": DIM, "metric_type": "COSINE"},
}
METRICS = {"embedding": "IP", "image": "L2", "title": "COSINE"}


def vectors_of(n, dim, seed):
    return [node.embedding for node in make_nodes(n, dim=dim, seed=seed)]


# Vectors of lengths 1 to 3, so that the three metrics rank differently.
IMAGES = [
    (np.float32(v) * np.float32(1 + i % 3)).tolist()
    for i, v in enumerate(vectors_of(N, IMAGE_DIM, 11))
]
TITLES = [
    (np.float32(v) * np.float32(1 + i % 3)).tolist() for i, v in enumerate(vectors_of(N, DIM, 12))
]
QUERIES = {
    "embedding": vectors_of(1, DIM, 21)[0],
    "image": vectors_of(1, IMAGE_DIM, 22)[0],
    "title": vectors_of(1, DIM, 23)[0],
}


def make_collection(prefix="node"):
    """Nodes that carry two further embeddings in their metadata."""
    nodes = make_nodes(
        N,
        prefix=prefix,
        year=lambda i: 1900 + i,
        image=lambda i: IMAGES[i],
        title=lambda i: TITLES[i],
    )
    for i, node in enumerate(nodes):
        # Of different lengths, so that no two are as good an answer.
        node.set_content(("cedar" if i % 2 == 0 else "apple") + " birch" * i)
    return nodes


def bare(node, **metadata):
    """A node as it comes back: without its embeddings, but with what is asked for."""
    kept = {key: value for key, value in node.metadata.items() if key not in FIELDS}
    return node.model_copy(update={"embedding": None, "metadata": {**kept, **metadata}})


NODES = make_collection()
BY_ID = {node.node_id: node for node in NODES}
VECTORS = {
    "embedding": np.array([node.embedding for node in NODES]),
    "image": np.array(IMAGES),
    "title": np.array(TITLES),
}


def query_for(field=None, **kwargs):
    embedding = QUERIES[field or "embedding"]
    defaults = {"query_embedding": embedding, "embedding_field": field, "similarity_top_k": 10}
    return VectorStoreQuery(**{**defaults, **kwargs})


def similarities(field, query, vectors=None):
    """The similarity of every vector of a field, as the package defines it."""
    matrix, query = np.array(VECTORS[field] if vectors is None else vectors), np.array(query)
    if METRICS[field] == "L2":
        return 1 / (1 + ((matrix - query) ** 2).sum(axis=1))
    products = matrix @ query
    if METRICS[field] == "IP":
        return products
    return products / np.linalg.norm(matrix, axis=1) / np.linalg.norm(query)


def best_first(field, query, top_k=N):
    scores = similarities(field, query)
    order = np.argsort(-scores)[:top_k]
    return [NODES[i].node_id for i in order], [float(scores[i]) for i in order]


def assert_same(result, expected):
    ids, scores = expected
    assert result.ids == ids
    assert result.similarities == pytest.approx(scores, abs=FULL_PRECISION)


BITS_DIM = 32
BITS = np.random.default_rng(3).integers(0, 2, (60, BITS_DIM))
BITS_QUERY = np.random.default_rng(4).integers(0, 2, BITS_DIM)


def make_bits():
    nodes = make_nodes(len(BITS), year=lambda i: 1900 + i)
    for node, bits in zip(nodes, BITS, strict=True):
        node.embedding = bits.astype(float).tolist()
    return nodes


def bits_similarities(metric, query=BITS_QUERY):
    different = (query != BITS).sum(axis=1)
    if metric == "HAMMING":
        return 1 / (1 + different)
    return (BITS & query).sum(axis=1) / (BITS | query).sum(axis=1)


def bits_query(**kwargs):
    embedding = BITS_QUERY.astype(float).tolist()
    return VectorStoreQuery(**{"query_embedding": embedding, "similarity_top_k": 60, **kwargs})
