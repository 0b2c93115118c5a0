"""What the log shows of failures that the store handles or tells itself: nothing."""

import asyncio
import contextvars
import logging
import threading

import grpc
import pytest
from llama_index.core.vector_stores.types import VectorStoreQuery

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async._wire.logs import expected_failures
from llama_index_milvus_async.errors import LiteFileError, ServerError
from tests.fixtures.stores import DIM, make_nodes

#: They pass nothing on to the root logger.
LOGGERS_OF_PYMILVUS = ("pymilvus", "pymilvus.milvus_client")
FAILING = logging.getLogger("pymilvus.decorators")


class Problems(logging.Handler):
    """Keeps what is logged as a warning or worse."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.records = []

    def emit(self, record):
        self.records.append(record)

    @property
    def messages(self):
        return [record.getMessage() for record in self.records]


@pytest.fixture
def problems():
    """What is logged as a warning or worse, by anybody in this process."""
    handler = Problems()
    loggers = [logging.getLogger(name) for name in ("", *LOGGERS_OF_PYMILVUS)]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler
    for logger in loggers:
        logger.removeHandler(handler)


def query():
    return VectorStoreQuery(query_embedding=[1.0] * DIM, similarity_top_k=2)


# The mechanism


def test_an_expected_failure_is_not_logged_and_can_be_looked_at(problems):
    with expected_failures() as records:
        FAILING.error("expected")
    FAILING.error("after")
    assert [record.getMessage() for record in records] == ["expected"]
    assert problems.messages == ["after"]


def test_blocks_can_be_nested_and_end_with_an_error(problems):
    with expected_failures() as outer:
        with pytest.raises(ValueError), expected_failures():
            FAILING.error("inner")
            raise ValueError
        FAILING.error("outer")
    FAILING.error("after")
    assert [record.getMessage() for record in outer] == ["outer"]
    assert problems.messages == ["after"]


def test_other_loggers_and_other_threads_are_logged(problems):
    with expected_failures():
        logging.getLogger("pymilvus.client").error("of another logger")
        thread = threading.Thread(target=FAILING.error, args=["of another thread"])
        thread.start()
        thread.join()
    assert problems.messages == ["of another logger", "of another thread"]


async def test_a_thread_that_is_waited_for_is_not_another(problems):
    with expected_failures() as records:
        await asyncio.to_thread(FAILING.error, "expected")
    assert len(records) == 1
    assert problems.messages == []


async def test_other_tasks_are_logged(problems):
    entered, told = asyncio.Event(), asyncio.Event()

    async def expecting():
        with expected_failures():
            entered.set()
            await told.wait()
            FAILING.error("expected")

    task = asyncio.create_task(expecting())
    await entered.wait()
    FAILING.error("of another task")
    told.set()
    await task
    assert problems.messages == ["of another task"]


def test_a_coroutine_may_end_in_another_context(problems):
    # As one that is left on a loop and garbage-collected does.
    async def expecting():
        with expected_failures():
            await asyncio.sleep(10)

    coroutine = expecting()
    with pytest.raises(RuntimeError, match="no running event loop"):
        contextvars.copy_context().run(coroutine.send, None)
    FAILING.error("after")
    assert problems.messages == ["after"]


# Stores


@pytest.mark.engines("lite")
async def test_a_collection_that_another_store_was_quicker_to_make(
    recorder, make_store, coloured, problems
):
    store = coloured(make_store(uri=recorder.uri))
    other = make_store(collection_name=store.store.collection_name)

    def be_quicker(call):
        if call.method == "CreateCollection":
            other.connect()

    recorder.intercept = be_quicker
    await store.connect()
    await store.add(make_nodes(1))
    assert len(recorder.named("CreateCollection")) == 1
    assert problems.messages == []


@pytest.mark.engines("lite")
async def test_a_refusal_is_told_once(recorder, make_store, coloured, problems):
    store = coloured(make_store(uri=recorder.uri))

    def refuse(call):
        if call.method == "CreateCollection":
            return grpc.StatusCode.INVALID_ARGUMENT, "not now"
        return None

    recorder.intercept = refuse
    with pytest.raises(ServerError, match="not now"):
        await store.connect()
    assert problems.messages == []


@pytest.mark.engines("lite")
async def test_what_a_user_asks_of_the_client_is_logged_as_ever(shared, problems):
    with pytest.raises(Exception, match="nowhere"):
        shared.client.describe_collection("nowhere")
    assert any("nowhere" in message for message in problems.messages)


async def test_milvus_lite_in_this_process(lite_path, coloured, problems):
    pytest.importorskip("milvus_lite")
    store = coloured(MilvusVectorStore(uri=lite_path, dim=DIM, enable_sparse=True))
    await store.connect()
    await store.add(make_nodes(2), force_flush=True)
    assert len((await store.query(query())).ids) == 2
    await store.delete("doc-0")
    await store.clear()
    await store.close()
    assert problems.messages == []


async def test_a_path_that_cannot_be_opened_is_told_once(tmp_path, coloured, problems):
    pytest.importorskip("milvus_lite")
    path = tmp_path / "milvus.db"
    path.write_text("a file where Milvus Lite makes a folder")
    store = coloured(MilvusVectorStore(uri=str(path), dim=DIM, timeout=1))
    with pytest.raises(LiteFileError):
        await store.connect()
    await store.close()
    assert problems.messages == []
