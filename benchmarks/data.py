"""Nodes, the rows that the raw client inserts in their place, and queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.utils import node_to_metadata_dict

from .settings import TEXT_LENGTH

_SENTENCE = "vector store node text query index search recall latency batch request answer "


@dataclass(frozen=True)
class Batch:
    """Nodes, and the same as rows ready for the raw client."""

    nodes: list[TextNode]
    rows: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.nodes)

    def part(self, start: int, stop: int) -> Batch:
        """The nodes and rows from `start` to before `stop`."""
        return Batch(self.nodes[start:stop], self.rows[start:stop])


def make_batch(n: int, dim: int, *, prefix: str = "node", seed: int = 0) -> Batch:
    """Make nodes and their rows; the same arguments make the same."""
    nodes = make_nodes(n, dim, prefix=prefix, seed=seed)
    return Batch(nodes, [row_of(node) for node in nodes])


def make_nodes(n: int, dim: int, *, prefix: str = "node", seed: int = 0) -> list[TextNode]:
    """Make nodes with random unit vectors, a text of 500 characters and a little metadata."""
    random = np.random.default_rng(seed)
    return [
        TextNode(
            id_=f"{prefix}-{i}",
            text=_text(i),
            embedding=vector,
            metadata={"page": i % 100, "source": f"file-{i // 100}.txt"},
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"doc-{i // 10}")},
        )
        for i, vector in enumerate(_unit_vectors(random, n, dim).tolist())
    ]


def chunks_of_nodes(n: int, dim: int, size: int) -> Iterator[list[TextNode]]:
    """Make nodes as a reader of files would: one chunk at a time."""
    for start in range(0, n, size):
        yield make_nodes(min(size, n - start), dim, prefix=f"chunk-{start}", seed=start)


def row_of(node: TextNode) -> dict[str, Any]:
    """The row of a node: the layout that LlamaIndex defines and both stores write."""
    row = node_to_metadata_dict(node, remove_text=True, text_field="text")
    return {**row, "id": node.node_id, "text": node.text, "embedding": node.embedding}


def make_queries(nodes: list[TextNode], n: int) -> list[list[float]]:
    """Make vectors near those of the nodes: query `i` finds node `i % len(nodes)` first."""
    near = np.array([node.embedding for node in nodes[:n]], dtype=np.float32)
    near = np.resize(near, (n, near.shape[1]))
    noise = _unit_vectors(np.random.default_rng(1), n, near.shape[1])
    vectors: list[list[float]] = (near + 0.1 * noise).astype(np.float32).tolist()
    return vectors


def _unit_vectors(random: np.random.Generator, n: int, dim: int) -> Any:
    vectors = random.normal(size=(n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _text(number: int) -> str:
    start = f"Passage {number} of {number % 7}. "
    return (start + _SENTENCE * (TEXT_LENGTH // len(_SENTENCE) + 1))[:TEXT_LENGTH]
