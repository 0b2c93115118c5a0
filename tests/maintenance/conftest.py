"""One collection for the tests of a file; each has nodes of its own, by the key `test`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from llama_index.core.schema import BaseNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from pymilvus import DataType

from llama_index_milvus_async import MilvusVectorStore
from tests.fixtures.stores import Coloured, make_nodes

DIM = 2
#: Milvus and Python order them alike, whatever is in them.
NASTY_IDS = ["", " a", '"', "'", "\\", "\\\\", '\\"', "] or id in [", "a\nb", "a\tb", "中文", "🎉"]


@pytest.fixture(scope="module")
def shared(make_shared_store) -> MilvusVectorStore:
    return make_shared_store(
        dim=DIM,
        upsert_mode=True,
        scalar_field_names=["rating", "language"],
        scalar_field_types=[DataType.INT64, DataType.VARCHAR],
    )


@pytest.fixture
def prefix(request) -> str:
    return request.node.name


@pytest.fixture
async def nodes(shared, prefix) -> list[TextNode]:
    """Twelve nodes of this test, in the order of their ids; three documents of four nodes."""
    nodes = nodes_of(prefix, NASTY_IDS)
    await shared.async_add(nodes[::-1])
    return nodes


@pytest.fixture
def store(shared, coloured, nodes) -> Coloured:
    return coloured(shared)


@pytest.fixture
def mine(prefix) -> MetadataFilters:
    """A filter for the nodes of this test."""
    return where(test=prefix)


def nodes_of(prefix: str, endings: Sequence[str]) -> list[TextNode]:
    values: dict[str, Any] = {"test": prefix, "rating": lambda i: i, "language": "de"}
    nodes = make_nodes(len(endings), dim=DIM, number=lambda i: i, **values)
    for i, (node, ending) in enumerate(zip(nodes, sorted(endings), strict=True)):
        node.id_ = f"{prefix}{ending}"
        set_document(node, f"{prefix} doc {i // 4}")
    return nodes


def set_document(node: BaseNode, doc_id: str) -> None:
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=doc_id)


def where(**values: Any) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=k, value=v) for k, v in values.items()])


def ids(nodes: Sequence[BaseNode]) -> list[str]:
    return [node.node_id for node in nodes]
