"""Many processes: on one server, forked, in pools, as workers, and at their end."""

from __future__ import annotations

import json
import re
import signal
import sys
import textwrap
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.request import urlopen

import pytest
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQuery

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.errors import LiteFileError
from tests.fixtures.programs import SECONDS
from tests.fixtures.servers import free_port
from tests.fixtures.stores import DIM

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="fork and signals")

COMMON = """
import asyncio, json, os, signal, sys, threading, time
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index_milvus_async import MilvusVectorStore

uri, token, collection, *more = sys.argv[1:]
store = MilvusVectorStore(
    uri=uri, token=token, collection_name=collection, dim=8, consistency_level="Strong", timeout=20
)
query = VectorStoreQuery(query_embedding=[1.0] * 8, similarity_top_k=2)

def nodes(name, count=2):
    return [
        TextNode(id_=f"{name}-{i}", text="text", embedding=[1.0 + i] * 8) for i in range(count)
    ]

def listen():
    deadline = time.monotonic() + 200
    while not os.path.exists(os.environ["GO"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)

def say(*words):
    # In one piece: other threads and processes write to the same file.
    os.write(1, "".join(f"{word}\\n" for word in words).encode())

def write(name):
    say(*store.add(nodes(name)))

def read():
    assert len(store.query(query).ids) == 2

async def awrite(name):
    say(*await store.async_add(nodes(name)))

async def aread():
    assert len((await store.aquery(query)).ids) == 2

async def use_asynchronously(name):
    await asyncio.gather(*(awrite(f"{name}.{n}") for n in range(3)))
    await asyncio.gather(*(aread() for _ in range(3)))

def use(name=""):
    name = name or f"process{os.getpid()}"
    write(f"{name}.first")
    read()
    for turn in range(2):
        asyncio.run(use_asynchronously(f"{name}.{turn}"))
    read()
    write(f"{name}.last")
"""
#: Nodes that `use` writes.
USED = 16


@pytest.fixture
def start(python_with_package):
    """Starts a script that uses the collection of a store."""

    def start(store, *scripts, more=()):
        return python_with_package.start("-c", script_of(*scripts), *where_is(store), *more)

    return start


@pytest.fixture
def lite_store(lite_path):
    """A store in a file of Milvus Lite, which it has not opened yet."""
    pytest.importorskip("milvus_lite")
    store = MilvusVectorStore(uri=lite_path, collection_name="processes", dim=DIM)
    with closing(store):
        yield store


def script_of(*parts):
    return "".join(map(textwrap.dedent, (COMMON, *parts)))


def where_is(store):
    return [store.uri, store.token, store.collection_name]


def ids_in(store):
    return sorted(node.node_id for node in store.get_nodes(filters=MetadataFilters(filters=[])))


def ids_said(*lines):
    """What Milvus has acknowledged."""
    return sorted(line for line in lines if "-" in line)


# One server


TOGETHER = """
    async def main():
        ids = [node.node_id for node in own]
        assert await store.async_add(own) == ids
        say(*ids)
        mine = VectorStoreQuery(query_embedding=[1.0] * 8, similarity_top_k=100, node_ids=ids)
        assert sorted((await store.aquery(mine)).ids) == sorted(ids)
        assert [node.node_id for node in await store.aget_nodes(ids)] == ids

    own = nodes(more[0], 50)
    say("ready")
    listen()
    asyncio.run(main())
"""


def test_processes_that_start_together_make_one_collection(start, make_store, raw):
    store = make_store()
    processes = [start(store, TOGETHER, more=[f"process{number}"]) for number in range(6)]
    for process in processes:
        process.wait_until_it_says("ready")
    for process in processes:
        process.tell()
    ids = ids_said(*(line for process in processes for line in process.succeed()))
    assert len(set(ids)) == 6 * 50
    assert ids_in(store) == ids
    assert len(raw.list_indexes(store.collection_name, field_name="embedding")) == 1


# Forks


FORK = """
def fork(child):
    pid = os.fork()
    if not pid:
        child()
        sys.exit()  # as the workers of gunicorn do, and without closing anything
    return pid

def wait_for(pids):
    pids, deadline = set(pids), time.monotonic() + 200
    while pids:
        if time.monotonic() > deadline:
            for pid in pids:
                os.kill(pid, signal.SIGABRT)  # faulthandler tells where they are
            raise AssertionError(f"{len(pids)} children hung")
        for pid in list(pids):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                pids.remove(pid)
                assert status == 0, f"a child ended with {status}"
        time.sleep(0.01)
"""
PREFORK = """
    if more == ["after use"]:
        use("earlier")
    children = [fork(use) for _ in range(3)]
    use()
    wait_for(children)
    use("afterwards")
"""


@pytest.mark.parametrize("when", ["before use", "after use"])
def test_forked_workers_and_their_parent_use_a_store_at_once(start, make_store, when):
    store = make_store()
    ids = ids_said(*start(store, FORK, PREFORK, more=[when]).succeed())
    uses = Counter(node_id.partition(".")[0] for node_id in ids)
    assert len(uses) == 5 + (when == "after use")
    assert set(uses.values()) == {USED}
    assert ids_in(store) == ids


FORK_DURING_CALLS = """
    def block(thread):
        number = 0
        while not stop.is_set():
            read()
            write(f"thread{thread}.{(number := number + 1)}")

    async def work(task):
        number = 0
        while not stop.is_set():
            await aread()
            await awrite(f"task{task}.{(number := number + 1)}")

    async def gather():
        await asyncio.gather(*(work(task) for task in range(3)))

    def in_a_thread(call, *arguments):
        try:
            call(*arguments)
        except BaseException as error:
            failures.append(error)

    stop, failures = threading.Event(), []
    calls = {
        "blocking": [(block, thread) for thread in range(3)],
        "asynchronous": [(lambda: asyncio.run(gather()),)],
    }
    threads = [threading.Thread(target=in_a_thread, args=call) for call in calls[more[0]]]
    use("earlier")
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.1)
        wait_for([fork(use)])
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures
    use("afterwards")
"""


# Until such a fork waits for them: the child takes from the parent what wakes its loops.
BREAKS_BOTH = pytest.mark.xfail(run=False, reason="asynchronous calls are under way")


@pytest.mark.engines("lite")
@pytest.mark.parametrize("calls", ["blocking", pytest.param("asynchronous", marks=BREAKS_BOTH)])
def test_a_fork_during_calls_of_other_threads_harms_nobody(start, make_store, recorder, calls):
    def slow(call):
        if call.adds or call.method == "Search":
            time.sleep(0.05)  # some are under way at any moment

    recorder.intercept = slow
    store = make_store(uri=recorder.uri)
    ids = ids_said(*start(store, FORK, FORK_DURING_CALLS, more=[calls]).succeed())
    assert ids_in(store) == ids


FORK_OF_EMBEDDED = """
    use("earlier")
    wait_for([fork(lambda: None)])
    say("forked")
    listen()
    use("afterwards")
"""


def test_a_forked_child_leaves_the_file_to_its_parent(start, lite_store):
    process = start(lite_store, FORK, FORK_OF_EMBEDDED)
    process.wait_until_it_says("forked")
    with pytest.raises(LiteFileError):
        lite_store.connect()
    process.tell()
    assert ids_said(*process.succeed()) == ids_in(lite_store)


# Pools


POOLS = """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    def work(store, number):
        ids = store.add(nodes(f"blocking{number}"))
        ids += asyncio.run(store.async_add(nodes(f"asynchronous{number}")))
        assert [node.node_id for node in asyncio.run(store.aget_nodes(ids))] == ids
        assert [node.node_id for node in store.get_nodes(ids)] == ids
        return ids

    def main():
        context = multiprocessing.get_context(more[0])
        context.set_forkserver_preload(["llama_index_milvus_async"])
        use("earlier")
        with context.Pool(2) as pool:
            for ids in pool.starmap(work, [(store, number) for number in range(4)]):
                say(*ids)
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            for ids in pool.map(work, [store] * 4, range(4, 8)):
                say(*ids)
        use("afterwards")

    if __name__ == "__main__":
        main()
"""


@pytest.mark.engines("lite")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_pools_work_with_a_store_that_is_sent_to_them(
    make_store, python_with_package, tmp_path, method
):
    store = make_store()
    script = tmp_path / "pools.py"  # those that are not forked import it
    script.write_text(script_of(POOLS))
    ids = ids_said(*python_with_package.start(script, *where_is(store), method).succeed())
    assert len(ids) == 2 * USED + 8 * 4
    assert ids_in(store) == ids


# Workers


ARGUMENTS = """
    import json, os, sys
    sys.argv[1:] = json.loads(os.environ["STORE"])
"""
SERVICE = """
    async def live(receive, send):
        await receive()
        async with store:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            return await live(receive, send)
        ids = await store.async_add(nodes(scope["path"].strip("/")))
        await aread()
        answer = {"pid": os.getpid(), "ids": [n.node_id for n in await store.aget_nodes(ids)]}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
"""


@pytest.fixture
def serve(python_with_package, tmp_path):
    """Starts a service with two workers; returns its program and its address."""
    pytest.importorskip("uvicorn")
    programs = []

    def serve(store):
        (tmp_path / "service.py").write_text(textwrap.dedent(ARGUMENTS) + script_of(SERVICE))
        port = str(free_port())
        arguments = ["--workers", "2", "--port", port, "--app-dir", str(tmp_path)]
        service = python_with_package.start(
            *("-m", "uvicorn", "service:app", *arguments), STORE=json.dumps(where_is(store))
        )
        programs.append(service)
        started = "Application startup complete"
        service.wait_until(lambda: service.stderr.count(started) == 2, "both workers start")
        return service, f"http://127.0.0.1:{port}"

    yield serve
    for program in programs:
        program.kill()


@pytest.mark.engines("lite")
def test_workers_of_uvicorn_share_a_new_collection(make_store, serve):
    store = make_store()
    service, url = serve(store)

    def request(number):
        with urlopen(f"{url}/request{number}", timeout=SECONDS) as answer:
            return json.load(answer)

    answers = []
    with ThreadPoolExecutor(20) as threads:
        # Which worker takes a connection is up to the system.
        while len({answer["pid"] for answer in answers}) < 2 and len(answers) < 1_000:
            answers += threads.map(request, range(len(answers), len(answers) + 40))
    assert len({answer["pid"] for answer in answers}) == 2
    ids = sorted(node_id for answer in answers for node_id in answer["ids"])
    assert len(ids) == 2 * len(answers)
    assert ids_in(store) == ids
    service.send_signal(signal.SIGTERM)
    assert service.exit_status() in (0, -signal.SIGTERM), service.stderr
    assert service.stderr.count("Application shutdown complete") == 2
    # uvicorn logs what fails in a worker, and Python what is left over. The workers race for the
    # collection: other packages may log that as they like, as long as no request fails.
    assert not re.search(
        r"^ERROR:|^Exception ignored|never retrieved|was destroyed", service.stderr, re.M
    )


# Ends


ENDS = {
    "after blocking calls": """
        write("a")
        read()
    """,
    "after asyncio.run": """
        asyncio.run(use_asynchronously("a"))
    """,
    "with calls pending on a loop": """
        loop = asyncio.new_event_loop()
        loop.run_until_complete(use_asynchronously("a"))
        tasks = [loop.create_task(call) for call in (aread(), awrite("b"), aread(), awrite("c"))]
        loop.run_until_complete(asyncio.sleep(0.01))
    """,
    "with calls that asyncio.run cancels": """
        async def main():
            await use_asynchronously("a")
            tasks.extend(map(asyncio.ensure_future, (aread(), awrite("b"), aread(), awrite("c"))))
            await asyncio.sleep(0.01)

        tasks = []
        asyncio.run(main())
    """,
    "by sys.exit in a coroutine": """
        async def main():
            await use_asynchronously("a")
            tasks.extend(map(asyncio.ensure_future, (aread(), awrite("b"), aread(), awrite("c"))))
            await asyncio.sleep(0.01)
            say("ends")
            sys.exit(3)

        tasks = []
        asyncio.run(main())
    """,
    "by Ctrl-C in asyncio.run": """
        async def repeat(call, *arguments):
            for number in range(10_000):
                await call(*(f"{argument}.{number}" for argument in arguments))

        async def main():
            await use_asynchronously("a")
            say("ready")
            writes = [repeat(awrite, name) for name in "bcd"]
            await asyncio.gather(*writes, *(repeat(aread) for _ in range(3)))

        asyncio.run(main())
    """,
    "by Ctrl-C in a blocking call": """
        write("a")
        say("ready")
        for number in range(10_000):
            write(f"b.{number}")
            read()
    """,
    "with a daemon thread in a call": """
        def repeat():
            for number in range(10_000):
                write(f"b.{number}")
                read()

        write("a")
        threading.Thread(target=repeat, daemon=True).start()
        time.sleep(0.3)
    """,
    "with a daemon thread that runs a loop": """
        async def repeat(name):
            for number in range(10_000):
                await awrite(f"{name}.{number}")
                await aread()

        async def main():
            await asyncio.gather(*(repeat(name) for name in "bcd"))

        write("a")
        threading.Thread(target=asyncio.run, args=[main()], daemon=True).start()
        time.sleep(0.3)
    """,
}
#: What the traceback of a KeyboardInterrupt has at its margin.
INTERRUPTED = {
    "",
    "Traceback (most recent call last):",
    "asyncio.exceptions.CancelledError",
    "During handling of the above exception, another exception occurred:",
    "KeyboardInterrupt",
}


@pytest.fixture(params=["server", "file"])
def store_in(request, make_store, lite_store):
    """A store of Milvus Lite as a process of its own, or in the process that opens the file."""
    return lite_store if request.param == "file" else make_store()


@pytest.mark.engines("lite")
@pytest.mark.parametrize("how", [how for how in ENDS if "Ctrl-C" not in how])
def test_a_process_that_closes_nothing_ends_quietly(start, store_in, how):
    process = start(store_in, ENDS[how], 'say("ends")')
    process.wait_until_it_says("ends")
    if store_in.uri.endswith(".db") and "daemon" in how:
        # Python ends the threads before Milvus Lite is closed. What a call of theirs meets in
        # between, if it comes to that, is a traceback, or an end that never comes.
        time.sleep(1)
        process.kill()
        assert_is_kept(store_in, process)
        return
    if meets_milvus_lite_too_late(store_in, process):
        return
    status = process.exit_status()
    assert process.stderr == ""
    assert status == (3 if "sys.exit" in how else 0)
    assert_is_kept(store_in, process)


@pytest.mark.engines("lite")
@pytest.mark.parametrize("how", [how for how in ENDS if "Ctrl-C" in how])
def test_an_interrupted_process_tells_that_and_nothing_else(start, store_in, how):
    process = start(store_in, ENDS[how])
    process.wait_until_it_says("ready")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    if meets_milvus_lite_too_late(store_in, process):
        return
    status = process.exit_status()
    margin = {line for line in process.stderr.splitlines() if not line.startswith(" ")}
    assert margin <= INTERRUPTED, process.stderr
    assert process.stderr.endswith("KeyboardInterrupt\n")
    # Milvus Lite runs so much when it closes the file that Python forgets why it ends.
    assert status == -signal.SIGINT or (status == 1 and store_in.uri.endswith(".db"))
    assert_is_kept(store_in, process)


def meets_milvus_lite_too_late(store, process):
    """Whether a request has come to Milvus Lite in a process whose threads Python had ended.

    Its gRPC server (1.85) dies of that, and may have Python wait for it for ever. It takes a call
    that is cancelled, or left alone, in the last moment of a process.
    """
    if not store.uri.endswith(".db"):
        return False
    if not process.tells_before_its_end("cannot schedule new futures after shutdown"):
        return False
    process.kill()
    assert_is_kept(store, process)
    return True


def assert_is_kept(store, process):
    ids = ids_said(*process.stdout.splitlines())
    assert "a-0" in ids or "a.0-0" in ids
    assert set(ids) <= set(ids_in(store))


# One file


HOLD = """
    use("first")
    say("open")
    listen()
"""


@pytest.mark.parametrize("how", ["by itself", "by kill -9"])
async def test_a_file_can_be_opened_when_the_process_that_has_it_has_ended(start, lite_store, how):
    process = start(lite_store, HOLD)
    process.wait_until_it_says("open")
    query = VectorStoreQuery(query_embedding=[1.0] * DIM, similarity_top_k=100)
    with pytest.raises(LiteFileError, match="one process at a time") as caught:
        await lite_store.aquery(query)
    assert lite_store.uri in str(caught.value)
    with pytest.raises(LiteFileError, match="run a server for both"):
        lite_store.query(query)
    if how == "by itself":
        process.tell()
    else:
        process.send_signal(signal.SIGKILL)
    assert process.exit_status() == (0 if how == "by itself" else -signal.SIGKILL)
    ids = ids_said(*process.stdout.splitlines())
    assert len(ids) == USED
    assert sorted((await lite_store.aquery(query)).ids) == ids
    assert ids_in(lite_store) == ids
