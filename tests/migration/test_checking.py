"""`check_nodes`: what is missing, extra and different, and what to do about it."""

from __future__ import annotations

import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

from llama_index_milvus_async.errors import CollectionError, ConfigurationError
from llama_index_milvus_async.migration import Difference, check_nodes, copy_nodes
from tests.migration.conftest import NODES


@pytest.fixture(scope="module")
def other(source, make_lite_store):
    """A copy of the source of which some nodes are others."""
    store = make_lite_store()
    copy_nodes(source, store)
    changed = [NODES[i].model_copy(deep=True) for i in range(5)]
    changed[0].text = "another text"
    changed[1].metadata = {"number": 1, "new": True}
    changed[2].embedding = NODES[3].embedding
    changed[3].relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="another")
    changed[4].id_ = "zzz"
    store.add(changed)
    store.delete_nodes([NODES[58].node_id, NODES[59].node_id])
    return store


def test_everything_that_differs_is_found(source, other):
    seen = []
    report = check_nodes(source, other, on_progress=seen.append)
    assert not report.is_equal
    assert (report.source_count, report.target_count) == (60, 59)
    assert report.missing == [NODES[58].node_id, NODES[59].node_id]
    assert report.extra == ["zzz"]
    assert report.different == [
        Difference("node 000", ("text",)),
        Difference("node 001", ("metadata['language']", "metadata['new']")),
        Difference("node 002", ("embedding",)),
        Difference("node 003", ("relationships",)),
    ]
    assert (seen[-1].operation, seen[-1].done) == ("check", 60)
    assert str(report) == (
        "not equal: 60 nodes in the source, 59 in the target\n"
        "  2 missing in the target: node 058, node 059\n"
        "    copy again, which writes what is missing\n"
        "  1 in the target only: zzz\n"
        "    delete them there, if they are not meant to be there\n"
        "  4 different: node 000 (text), node 001 (metadata['language'], metadata['new']), "
        "node 002 (embedding), node 003 (relationships)\n"
        "    copy again without resuming, which replaces them"
    )


def test_vectors_may_be_left_out(source, other):
    report = check_nodes(source, other, vectors=False)
    assert report.different_count == 3


def test_some_nodes_are_compared(source, other):
    number = MetadataFilter(key="number", value=2, operator=">=")
    few = MetadataFilters(filters=[number, MetadataFilter(key="number", value=3, operator="<")])
    report = check_nodes(source, other, filters=few, vectors=False)
    assert report.is_equal
    assert str(report) == "equal: 1 node in both"


def test_arguments_are_checked(source, make_lite_store):
    with pytest.raises(ConfigurationError, match="vectors"):
        check_nodes(source, source, vectors="no")
    with pytest.raises(CollectionError, match="target: there is no collection"):
        check_nodes(source, make_lite_store(dim=8))
