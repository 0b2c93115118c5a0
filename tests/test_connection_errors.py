"""No connection, or none any more: the right exception, in time, that says what to do."""

import asyncio
import logging
import socket
import subprocess
import sys
import threading

import pytest
from llama_index.core.vector_stores.types import VectorStoreQuery
from pymilvus.exceptions import MilvusException

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.errors import (
    ConfigurationError,
    LiteFileError,
    LiteNotInstalledError,
    MilvusVectorStoreError,
    RequestTimeoutError,
    ServerError,
    UnreachableError,
)
from tests.fixtures.recorder import recording
from tests.fixtures.servers import free_port
from tests.fixtures.stores import DIM, make_nodes
from tests.fixtures.waiting import in_time

pytestmark = pytest.mark.starts

TIMEOUT = 1.0
#: pymilvus' own timeout for a connection: below it, the store's was heeded. It leaves room for a
#: busy machine.
PYMILVUS_TIMEOUT = 10.0


def query():
    return VectorStoreQuery(query_embedding=[1.0] * DIM, similarity_top_k=10)


def new_store(uri, **kwargs):
    return MilvusVectorStore(**{"uri": uri, "dim": DIM, "timeout": TIMEOUT, **kwargs})


@pytest.fixture
def black_hole():
    """Accepts connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted = []

        def accept():
            try:
                while True:
                    accepted.append(listener.accept()[0])
            except OSError:
                return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(PYMILVUS_TIMEOUT)
    for connection in accepted:
        connection.close()


async def error_of(operation, kind):
    with pytest.raises(kind) as caught:
        await operation()
    return caught.value


async def assert_no_connection(store, kind, *fragments):
    """Every kind of operation fails so, within the timeout, and again when it is repeated."""
    for operation in (
        lambda: store.query(query()),
        lambda: store.add(make_nodes(1)),
        lambda: store.get_nodes(["node-0"]),
        lambda: store.delete_nodes(["node-0"]),
        store.connect,
    ):
        error = await in_time(lambda: error_of(operation, kind), PYMILVUS_TIMEOUT)  # noqa: B023
        for fragment in fragments:
            assert fragment in str(error)
    # What callers may catch already.
    assert isinstance(error, MilvusVectorStoreError)
    assert isinstance(error, MilvusException)
    assert isinstance(error, OSError)  # ConnectionError or TimeoutError
    await store.close()


# Servers


async def test_a_refused_port(coloured):
    uri = f"http://127.0.0.1:{free_port()}"
    await assert_no_connection(
        coloured(new_store(uri)),
        UnreachableError,
        f"no connection to {uri}: nothing listens at {uri[7:]} (Connection refused)",
    )


async def test_a_host_that_does_not_resolve(coloured):
    uri = "http://no-such-host.invalid:19530"
    await assert_no_connection(
        coloured(new_store(uri)),
        UnreachableError,
        f"no connection to {uri}: the name of the host in {uri[7:]!r} is not known",
    )


async def test_a_server_without_tls(lite_server, coloured):
    uri = lite_server.uri.replace("http", "https")
    told = f"does not speak TLS; write {lite_server.uri!r}"
    await assert_no_connection(coloured(new_store(uri)), UnreachableError, told)


async def test_a_database_that_does_not_exist(engine, coloured):
    store = coloured(new_store(engine.uri, token=engine.token, db_name="nodb", timeout=10))
    with pytest.raises(ServerError) as caught:
        await store.connect()
    assert "db_name 'nodb' does not exist. Create it" in str(caught.value)
    assert "create_database('nodb')" in str(caught.value)
    await store.close()


@pytest.mark.parametrize(
    "operation",
    [
        lambda store, name: store.add(make_nodes(1), milvus_partition_name=name),
        lambda store, name: store.delete("doc-0", milvus_partition_name=name),
        lambda store, name: store.delete_nodes(["node-0"], milvus_partition_name=name),
        lambda store, name: store.query(query(), milvus_partition_names=[name]),
        lambda store, name: store.get_nodes(["node-0"], milvus_partition_names=[name]),
    ],
    ids=["add", "delete", "delete nodes", "query", "get"],
)
async def test_a_partition_that_does_not_exist(shared, coloured, operation):
    with pytest.raises(ServerError) as caught:
        await operation(coloured(shared), "nowhere")
    assert "partition 'nowhere' does not exist. Create it" in str(caught.value)
    assert "create_partition(store.collection_name, 'nowhere')" in str(caught.value)


async def test_a_server_that_never_answers(black_hole, coloured):
    told = f"no answer from {black_hole} in time"
    await assert_no_connection(coloured(new_store(black_hole)), RequestTimeoutError, told)


async def test_something_that_is_no_milvus(coloured):
    # What answers is not gRPC.
    def answer():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, daemon=True).start()
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        await assert_no_connection(
            coloured(new_store(uri)), UnreachableError, f"no connection to {uri}"
        )
        listener.shutdown(socket.SHUT_RDWR)


async def ticks_during(coroutine):
    """How often the loop came round, at most every 10 ms, until a coroutine was done."""
    task = asyncio.ensure_future(coroutine)
    ticks = 0
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    await asyncio.gather(task, return_exceptions=True)
    return ticks


async def test_waiting_for_a_server_does_not_hold_the_loop(black_hole):
    store = new_store(black_hole)
    assert await ticks_during(store.aquery(query())) > 10  # of about 100
    await store.aclose()


async def test_a_caller_can_stop_waiting_and_close_without_holding_the_loop(black_hole):
    store = new_store(black_hole, timeout=2)

    async def stop_waiting():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(store.aquery(query()), 0.1)

    await in_time(stop_waiting, 2)
    # The thread that connects cannot be stopped, so that closing waits for it.
    assert await ticks_during(store.aclose()) > 10  # of about 190


@pytest.mark.parametrize("uri", ["ftp://127.0.0.1:19530", "milvus://localhost:19530"])
async def test_a_wrong_scheme_is_told_with_the_right_ones(coloured, uri):
    store = coloured(new_store(uri))
    with pytest.raises(ConfigurationError) as caught:
        await store.query(query())
    assert uri in str(caught.value)
    assert '"http://localhost:19530"' in str(caught.value)
    assert '".db"' in str(caught.value)
    await store.close()


async def test_without_a_timeout_connecting_still_ends(coloured):
    store = coloured(new_store(f"http://127.0.0.1:{free_port()}", timeout=None))
    with pytest.raises(UnreachableError):
        await store.query(query())
    await store.close()


# Servers that go away


async def test_a_store_works_again_when_its_server_does(lite_server, coloured):
    store = coloured(new_store(lite_server.uri, timeout=2, consistency_level="Strong"))
    await store.add(make_nodes(2))
    lite_server.stop()
    for operation in (
        lambda: store.query(query()),
        lambda: store.get_nodes(["node-0"]),
        lambda: store.add(make_nodes(1, prefix="lost")),
        lambda: store.delete_nodes(["node-0"]),
        lambda: store.delete("doc-0"),
        store.clear,
    ):
        kinds = (UnreachableError, RequestTimeoutError)
        error = await in_time(lambda: error_of(operation, kinds), 2 + PYMILVUS_TIMEOUT)  # noqa: B023
        assert lite_server.uri in str(error)
    lite_server.start()
    assert sorted((await store.query(query())).ids) == ["node-0", "node-1"]
    await store.add(make_nodes(1, prefix="new"))
    assert [node.node_id for node in await store.get_nodes(["new-0"])] == ["new-0"]
    await store.delete_nodes(["new-0"])
    assert await store.get_nodes(["new-0"]) == []
    await store.close()


async def test_calls_under_way_fail_when_the_server_dies(lite_server, coloured):
    with recording(lite_server.uri) as recorder:
        store = coloured(new_store(recorder.uri, timeout=5))
        await store.add(make_nodes(2))

        def die(call):
            if call.method == "Search":
                lite_server.stop()

        recorder.intercept = die
        with pytest.raises(ServerError) as caught:
            await store.query(query())
        assert caught.value.operation == "search"
        recorder.intercept = None
        await store.close()


# Files


async def test_a_missing_folder_is_told_and_nothing_is_made(tmp_path, coloured):
    pytest.importorskip("milvus_lite")
    path = tmp_path / "missing" / "milvus.db"
    store = coloured(new_store(str(path)))
    with pytest.raises(LiteFileError) as caught:
        await store.query(query())
    assert str(path) in str(caught.value)
    assert f"the folder {str(path.parent)!r} does not exist; make it" in str(caught.value)
    assert "process" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    path.parent.mkdir()
    assert (await store.query(query())).ids == []
    await store.close()


async def test_the_client_of_a_path_that_cannot_be_opened_is_told(tmp_path):
    pytest.importorskip("milvus_lite")
    store = new_store(str(tmp_path / "missing" / "milvus.db"))
    with pytest.raises(LiteFileError, match="does not exist; make it"):
        _ = store.aclient
    await store.aclose()


async def test_a_database_of_milvus_lite_2_is_told_and_left_alone(tmp_path, coloured):
    # One file, of SQLite; Milvus Lite 3 would make a folder in its place.
    pytest.importorskip("milvus_lite")
    content = b"SQLite format 3\0" + bytes(100)
    path = tmp_path / "milvus.db"
    path.write_bytes(content)
    store = coloured(new_store(path))
    for operation in (store.connect, lambda: store.query(query())):
        with pytest.raises(LiteFileError) as caught:
            await operation()
        assert f"cannot open {str(path)!r}: it is a file" in str(caught.value)
        assert "Milvus Lite 2" in str(caught.value)
        assert "name another path" in str(caught.value)
        assert "one process at a time" not in str(caught.value)
    assert path.read_bytes() == content
    await store.close()


HOLD = """
import sys
from pymilvus import MilvusClient
client = MilvusClient(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
client.close()
"""


async def test_a_file_in_use_by_another_process_is_told(lite_path, coloured, caplog):
    pytest.importorskip("milvus_lite")
    with subprocess.Popen(  # noqa: ASYNC220 - it may block: nothing else is on the loop
        [sys.executable, "-W", "ignore", "-c", HOLD, lite_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout.readline() == b"open\n"
        store = coloured(new_store(lite_path, timeout=20))
        for level in (logging.WARNING, logging.CRITICAL + 1):  # the log of users may be silent
            caplog.set_level(level, "milvus_lite")
            with pytest.raises(LiteFileError, match="another process has it open") as caught:
                await store.query(query())
        assert lite_path in str(caught.value)
        assert f"milvus-lite server --data-dir {lite_path}" in str(caught.value)
        assert "folder" not in str(caught.value)
        assert isinstance(caught.value, UnreachableError)
        holder.stdin.close()
        holder.wait()
    # The same store works once the other has let go.
    assert (await store.query(query())).ids == []
    await store.close()


async def test_two_stores_of_one_process_share_a_file(lite_path, coloured):
    pytest.importorskip("milvus_lite")
    first, second = coloured(new_store(lite_path)), coloured(new_store(lite_path))
    await first.add(make_nodes(1))
    assert (await second.query(query())).ids == ["node-0"]
    await first.close()
    assert (await second.query(query())).ids == ["node-0"]
    await second.close()


async def test_milvus_lite_that_is_not_installed_is_told_with_the_extra(
    lite_path, coloured, monkeypatch
):
    monkeypatch.setitem(sys.modules, "milvus_lite", None)  # makes the import fail
    monkeypatch.delitem(sys.modules, "milvus_lite.server_manager", raising=False)
    store = coloured(new_store(lite_path))
    with pytest.raises(LiteNotInstalledError) as caught:
        await store.query(query())
    assert isinstance(caught.value, ImportError)
    assert 'it is not installed. Run `pip install "llama-index-milvus-async[lite]"`' in str(
        caught.value
    )
    assert "http://localhost:19530" in str(caught.value)
    assert lite_path in str(caught.value)
    await store.close()


@pytest.mark.parametrize(
    ("module", "told", "remedy"),
    [
        (
            "import pkg_resources_of_milvus_lite_2 as pkg_resources",
            "is broken (ModuleNotFoundError: No module named 'pkg_resources_of_milvus_lite_2')",
            "pip install --force-reinstall milvus-lite",
        ),
        (
            "raise ModuleNotFoundError(\"No module named 'pkg_resources'\", name='pkg_resources')",
            "is too old for this environment (ModuleNotFoundError: No module named 'pkg_re",
            '"setuptools<81"',
        ),
        (
            "raise OSError('libmilvus.so: cannot open shared object file')",
            "is broken (OSError: libmilvus.so: cannot open shared object file)",
            "pip install --force-reinstall milvus-lite",
        ),
    ],
    ids=["a module is missing", "too old", "a library is missing"],
)
def test_milvus_lite_that_cannot_be_imported_is_told_with_the_reason(
    tmp_path, lite_path, monkeypatch, module, told, remedy
):
    for name in [name for name in sys.modules if name.partition(".")[0] == "milvus_lite"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "milvus_lite").mkdir()
    (tmp_path / "milvus_lite" / "__init__.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    store = new_store(lite_path)
    with pytest.raises(LiteNotInstalledError) as caught:
        store.connect()
    store.close()
    assert told in str(caught.value)
    assert remedy in str(caught.value)
    assert "not installed" not in str(caught.value)
    assert isinstance(caught.value.__cause__, (ImportError, OSError))


async def test_milvus_lite_is_not_needed_for_a_server(engine, make_store, coloured, monkeypatch):
    monkeypatch.setitem(sys.modules, "milvus_lite", None)
    await coloured(make_store()).connect()
