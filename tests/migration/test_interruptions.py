"""A copy that is interrupted, or whose source changes meanwhile: called again, it ends exactly."""

from __future__ import annotations

import asyncio
import signal
import sys

import pytest
from llama_index.core.schema import MetadataMode

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.errors import MigrationError
from llama_index_milvus_async.migration import (
    acheck_nodes,
    acopy_nodes,
    check_nodes,
    copy_nodes,
    reembed,
)
from tests.fixtures.stores import make_nodes
from tests.fixtures.words import WordEmbedding
from tests.migration.conftest import NODES

PROGRAM = """
import sys, time
from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.migration import copy_nodes, reembed
from tests.fixtures.words import WordEmbedding

operation, uri, *names = sys.argv[1:]
source, target = (MilvusVectorStore(uri, collection_name=name) for name in names)

def wait_to_be_killed(progress):
    if progress.done >= 20:
        print("some are there", flush=True)
        time.sleep(600)

batches = {"batch_size": 10, "on_progress": wait_to_be_killed}
if operation == "copy":
    copy_nodes(source, target, **batches)
else:
    reembed(source, WordEmbedding(dim=16), into=target, **batches)
"""


@pytest.fixture
def target(make_lite_store):
    return make_lite_store()


def at(done, change):
    """A callback that does something once so many nodes are copied."""
    left = [change]

    def callback(progress):
        if progress.done >= done and left:
            left.pop()()

    return callback


@pytest.fixture
def kill_amid(source, target, python_with_package):
    """Begins an operation in a process that is killed when some nodes are there."""
    if sys.platform == "win32":
        pytest.skip("kill -9")

    def kill_amid(operation):
        names = source.collection_name, target.collection_name
        program = python_with_package.start("-c", PROGRAM, operation, source.uri, *names)
        program.wait_until_it_says("some are there")
        program.send_signal(signal.SIGKILL)
        program.exit_status()

    return kill_amid


def test_a_killed_copy_goes_on(source, target, kill_amid):
    kill_amid("copy")
    report = copy_nodes(source, target)
    assert 20 <= report.already_there < 60
    assert report.already_there + report.copied == 60
    assert check_nodes(source, target).is_equal


def test_a_killed_reembedding_goes_on(source, target, kill_amid):
    kill_amid("reembed")
    model = WordEmbedding(dim=16)
    report = reembed(source, model, into=target)
    assert 20 <= report.already_there < 60
    assert report.already_there + report.embedded == 60
    assert check_nodes(source, target, vectors=False).is_equal
    for node in target.iter_nodes(include_embeddings=True):
        vector = model.get_text_embedding(node.get_content(MetadataMode.EMBED))
        assert node.embedding == pytest.approx(vector)


async def test_a_killed_server_is_waited_for(source, lite_server):
    target = MilvusVectorStore(lite_server.uri)

    def restart():
        lite_server.stop()
        lite_server.start()

    await acopy_nodes(source, target, batch_size=10, on_progress=at(20, restart))
    assert (await acheck_nodes(source, target)).is_equal
    await target.aclose()


async def test_a_cancelled_copy_goes_on(source, target):
    def cancel(progress):
        if progress.done >= 20:
            task.cancel()

    task = asyncio.create_task(acopy_nodes(source, target, batch_size=10, on_progress=cancel))
    with pytest.raises(asyncio.CancelledError):
        await task
    await acopy_nodes(source, target)
    assert (await acheck_nodes(source, target)).is_equal


async def test_a_failing_callback_leaves_nothing_running(source, target):
    def fail(progress):
        if progress.done:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await acopy_nodes(source, target, batch_size=10, on_progress=fail)
    await acopy_nodes(source, target)
    assert (await acheck_nodes(source, target)).is_equal


@pytest.fixture
def changing(make_lite_store):
    """A source of which tests change nodes while it is copied."""
    store = make_lite_store()
    store.add(NODES)
    return store


def test_what_is_added_meanwhile_is_fetched(changing, target):
    # Also where as many are deleted, and the numbers are equal.
    before = make_nodes(2, prefix="a")
    callback = at(20, lambda: changing.add(before))
    report = copy_nodes(changing, target, batch_size=10, on_progress=callback)
    assert report.copied == 62
    assert check_nodes(changing, target).is_equal


def test_what_is_deleted_meanwhile_is_told(changing, target):
    def change():
        changing.add(make_nodes(1, prefix="a"))
        changing.delete_nodes([NODES[0].node_id])

    with pytest.raises(MigrationError, match=r"1 node that the source does not have any more") as e:
        copy_nodes(changing, target, batch_size=10, on_progress=at(20, change))
    assert e.value.extra == [NODES[0].node_id]
    target.delete_nodes(e.value.extra)
    assert check_nodes(changing, target).is_equal


def test_a_file_that_is_not_changed_is_not_read_again(lite_path, target, monkeypatch):
    source = MilvusVectorStore(lite_path)
    source.add(NODES)
    monkeypatch.setattr(MilvusVectorStore, "aiter_ids", None)
    assert copy_nodes(source, target).copied == 60
    source.close()
