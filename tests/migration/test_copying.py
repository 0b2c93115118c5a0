"""`copy_nodes`: the nodes of the source, vectors included, and no others, come what may."""

from __future__ import annotations

import pytest

from llama_index_milvus_async.errors import CollectionError
from llama_index_milvus_async.migration import acheck_nodes, acopy_nodes, copy_nodes
from tests.fixtures.stores import make_nodes
from tests.migration.conftest import NODES


@pytest.fixture
def target(make_lite_store):
    """A collection that does not exist yet."""
    return make_lite_store()


async def test_a_copy_has_what_the_source_has(source, target):
    seen = []
    report = await acopy_nodes(source, target, batch_size=25, on_progress=seen.append)
    assert (report.copied, report.already_there, report.extra) == (60, 0, 0)
    assert [progress.done for progress in seen] == [0, 25, 50, 60]
    assert {progress.total for progress in seen} == {60}
    checked = await acheck_nodes(source, target)
    assert checked.is_equal, checked
    assert checked.source_count == checked.target_count == 60


def test_it_goes_on_where_it_was_interrupted(source, target):
    copy_nodes(source, target)
    target.delete_nodes([NODES[3].node_id, NODES[40].node_id])
    report = copy_nodes(source, target)
    assert (report.copied, report.already_there) == (2, 58)
    assert target.count() == 60


def test_nodes_of_others_in_the_target_are_refused(source, target):
    copy_nodes(source, target, batch_size=50)
    target.add(make_nodes(1, prefix="other"))
    with pytest.raises(CollectionError, match=r"has 1 node.*'other-0'.*Nothing was written"):
        copy_nodes(source, target)
    assert copy_nodes(source, target, keep_extra=True).extra == 1
