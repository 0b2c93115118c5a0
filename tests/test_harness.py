"""Tests of the tests' own machinery."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests import fixtures
from tests.fixtures import engines
from tests.fixtures.loops import watched
from tests.fixtures.servers import answers
from tests.fixtures.stores import ASYNC_NAMES, FLUSHING, Coloured, collection_name, make_nodes
from tests.fixtures.waiting import wait_until

# Engines


def test_an_engine_answers_and_tells_its_version(engine, raw):
    assert engine.is_lite == (engine.name == "lite")
    assert raw.get_server_version() == engine.version


@pytest.mark.skipif(bool(engines.MILVUS_URI), reason="MILVUS_URI names the engine")
def test_the_mark_chooses_engines(monkeypatch):
    monkeypatch.setattr(engines.StandaloneServer, "why_not", lambda: "")
    assert engines.engine_parameters(()) == ["lite", "standalone"]
    assert engines.engine_parameters(("standalone",)) == ["standalone"]
    with pytest.raises(pytest.UsageError, match="no such engine: light"):
        engines.engine_parameters(("light",))


def test_an_engine_that_cannot_run_is_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr(engines, "MILVUS_URI", "")
    monkeypatch.setattr(engines.StandaloneServer, "why_not", lambda: "because")
    (parameter,) = engines.engine_parameters(("standalone",))
    assert [mark.kwargs for mark in parameter.marks] == [{"reason": "because"}]


def test_an_external_server_stands_in_for_standalone_only(monkeypatch):
    monkeypatch.setattr(engines, "MILVUS_URI", "http://example.org:19530")
    assert engines.engine_parameters(()) == ["external"]
    assert engines.engine_parameters(("standalone",)) == ["external"]
    (parameter,) = engines.engine_parameters(("lite",))
    assert parameter.marks[0].name == "skip"


def test_a_server_starts_again_on_the_same_port_with_its_data(lite_server):
    client = engines.new_client(lite_server.uri)
    client.create_collection("kept", dimension=4)
    client.close()
    lite_server.stop()
    assert not answers(lite_server.uri)
    lite_server.start()
    client = engines.new_client(lite_server.uri)
    assert client.list_collections() == ["kept"]
    client.close()


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_nothing_is_left_when_the_run_is_killed(tmp_path):
    directory = tmp_path / "server"
    directory.mkdir()
    litter = tmp_path / "litter"
    litter.touch()
    start_and_hang = (
        "import os, subprocess, sys, time\n"
        "command = [sys.executable, sys.argv[1], str(os.getpid()), *sys.argv[2:], '--']\n"
        "server = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'\n"
        "subprocess.Popen([*command, sys.executable, '-c', server])\n"
        "time.sleep(600)\n"
    )
    supervisor = os.path.join(os.path.dirname(fixtures.__file__), "supervise.py")
    command = [sys.executable, "-c", start_and_hang, supervisor, str(directory), str(litter)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as run:
        server = int(run.stdout.readline())
        assert is_running(server)
        run.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_running(server))
    wait_until(lambda: not litter.exists() and not directory.exists())


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# Stores and nodes


async def test_one_test_body_calls_either_colour(coloured, colour):
    class Store:
        def query(self, query):
            return "sync", query

        async def aquery(self, query):
            return "async", query

    assert await coloured(Store()).query(1) == (colour, 1)


def test_what_has_no_twin_is_refused():
    with pytest.raises(AttributeError, match=r"use \.store\.client"):
        Coloured(object(), "sync").client  # noqa: B018


def test_nodes_are_the_same_every_time():
    nodes = make_nodes(5, year=lambda i: 2000 + i, kind="a")
    assert nodes == make_nodes(5, year=lambda i: 2000 + i, kind="a")
    assert nodes[4].ref_doc_id == "doc-1"
    assert nodes[4].metadata == {"year": 2004, "kind": "a"}
    assert np.linalg.norm([n.embedding for n in nodes], axis=1) == pytest.approx(1, abs=1e-6)
    assert nodes[0].embedding == np.float32(nodes[0].embedding).tolist()


def test_a_collection_name_is_new_valid_and_short():
    name = collection_name("test_x[lite-async]" + "y" * 300)
    assert name.startswith("test_x_lite_async_y")
    assert name.isidentifier()
    assert len(name) < 100
    assert name != collection_name("test_x[lite-async]" + "y" * 300)


async def test_every_coloured_name_exists_on_the_store(make_store):
    store = make_store()
    assert all(hasattr(store, n) for pair in ASYNC_NAMES.items() for n in pair)


@pytest.mark.engines("lite")
async def test_the_fixtures_know_the_threads_in_which_stores_flush(make_store, monkeypatch):
    names, start = [], threading.Thread.start
    monkeypatch.setattr(
        threading.Thread, "start", lambda thread: (names.append(thread.name), start(thread))
    )
    await make_store().async_add(make_nodes(1_000))
    assert FLUSHING in names


# Loops


async def test_the_heartbeat_sees_a_blocked_loop_only(heartbeat):
    async with heartbeat() as blocked:
        await asyncio.sleep(0.01)
        time.sleep(0.2)  # noqa: ASYNC251
    assert blocked.loop_ms >= 200
    assert blocked.bystander_ms > 0
    idle = []
    for _ in range(3):  # a busy machine spoils some
        async with heartbeat() as stall:
            await asyncio.sleep(0.2)
        idle.append(stall.net_ms)
    assert min(idle) < 100


async def test_the_heartbeat_tells_passes_of_the_collector_apart(heartbeat):
    def slow(phase, _info):
        if phase == "start":
            time.sleep(0.2)

    async with heartbeat() as stall:
        gc.callbacks.append(slow)
        gc.collect()
        gc.callbacks.remove(slow)
    assert stall.collector_ms >= 200
    assert stall.loop_ms >= 200
    assert stall.without_collector_ms < stall.loop_ms


async def test_an_unhandled_exception_of_the_loop_fails_the_test():
    async def test():
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)

    with pytest.raises(AssertionError, match="unhandled by the loop"):
        await watched(test)()


async def test_an_unretrieved_exception_of_a_task_fails_the_test():
    async def fail():
        raise ValueError

    async def test():
        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        del task

    with pytest.raises(AssertionError, match="exception was never retrieved"):
        await watched(test)()


async def test_a_task_left_pending_fails_the_test(monkeypatch):
    monkeypatch.setattr("tests.fixtures.loops.SECONDS_FOR_TASKS_TO_END", 0.01)
    left = []

    async def test():
        left.append(asyncio.create_task(asyncio.sleep(60)))

    with pytest.raises(AssertionError, match="tasks left pending"):
        await watched(test)()
    left[0].cancel()
