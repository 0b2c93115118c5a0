"""Servers that die and come back, and disks that are full: what was acknowledged is there."""

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from llama_index_milvus_async import MilvusVectorStore
from llama_index_milvus_async.errors import (
    ServerError,
    WriteOutcomeUnknownError,
)
from tests.faults.cases import (
    LONG,
    OPERATIONS,
    RIGHT,
    ROOM,
    SPARSE,
    Case,
    assert_kind,
    attempt,
    in_parallel,
    rows_of,
)
from tests.fixtures.engines import new_client
from tests.fixtures.servers import LiteServer
from tests.fixtures.stores import Coloured, collection_name

# Operations

WRITES = ("add", "upsert", "delete", "delete_nodes", "clear")


# Servers that die


@pytest.mark.parametrize(
    ("name", "at"), [("lite", "request"), ("lite", "answer"), ("standalone", "answer")]
)
async def test_the_server_is_killed_and_restarted_in_mid_flight(get_mortal, name, at):
    """All operations are under way, in both colours, when the server dies."""
    mortal = get_mortal(name)
    proxy, is_lite = mortal.proxy, name == "lite"
    options = {"uri": mortal.uri, "dim": 8, "consistency_level": "Strong", "timeout": LONG}
    options |= SPARSE if is_lite else {}
    shared = collection_name("killed")
    # A collection of standalone takes 3 s to make, and clearing would clear what is not its own.
    operations = OPERATIONS if is_lite else [o for o in OPERATIONS if o not in ("hybrid", "clear")]
    cases = []
    for operation in operations:
        for colour in ("sync", "async"):
            # Writers to one collection of Milvus Lite stand in line, and `clear` clears all of it.
            alone = operation == "clear" or (is_lite and operation in WRITES)
            own = f"{shared}_{operation}_{colour}" if alone else shared
            upsert = operation != "add"
            # A connection of its own, for what is held holds all that comes over the connection.
            options["grpc_options"] = {"grpc.primary_user_agent": f"{operation}-{colour}"}
            store = MilvusVectorStore(**options, collection_name=own, upsert_mode=upsert)
            cases.append(Case(operation, Coloured(store, colour), f"{operation}-{colour}", is_lite))
    for case in cases:
        await case.prepare()

    # Each blocking call holds a thread, as does the wait for it.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2 * len(cases)))
    held, go = threading.Semaphore(0), threading.Event()

    def hold():
        held.release()
        go.wait(LONG)

    for method in {case.method for case in cases}:
        proxy.trap(method, at=at, do=hold, times=float("inf"))
    running = [asyncio.ensure_future(attempt(in_parallel(case))) for case in cases]
    for _ in cases:
        assert await asyncio.to_thread(held.acquire, timeout=LONG)
    await asyncio.to_thread(mortal.kill)
    proxy.disarm()
    go.set()
    await asyncio.to_thread(mortal.restart)
    outcomes = await asyncio.gather(*running)
    raw = new_client(mortal.server.uri)
    wrong = []
    for case, (outcome, seconds) in zip(cases, outcomes, strict=True):
        try:
            if case.operation != "connect" or not isinstance(outcome, BaseException):
                assert_kind(outcome, WriteOutcomeUnknownError if case.is_insert else RIGHT)
            assert seconds < LONG + ROOM
            case.assert_rows(raw, outcome)
            await case.assert_usable()
        except Exception as error:
            wrong.append((case.operation, case.store.colour, repr(error)))
    for case in cases:
        await case.store.store.aclose()
    raw.close()
    assert not wrong, "\n".join(map(str, wrong))


async def test_the_server_restarts_with_what_was_acknowledged(get_mortal, colour):
    mortal = get_mortal("lite")
    store = MilvusVectorStore(
        mortal.uri, collection_name=collection_name(), dim=8, consistency_level="Strong"
    )
    case = Case("add", Coloured(store, colour), "kept", True)
    await case.prepare()
    await case.store.delete_nodes(["kept-7"])
    mortal.kill_and_restart()
    nodes = await case.store.get_nodes([f"kept-{number}" for number in range(8)])
    assert [node.node_id for node in nodes] == [f"kept-{number}" for number in range(7)]
    await case.assert_usable()
    await store.aclose()


# Disks that are full


class FullDisk:
    """A Milvus Lite server whose files cannot grow, until they can again."""

    def __init__(self, server):
        self.server = server

    def fill(self):
        import resource

        largest = max(file.stat().st_size for file in self.server.directory.rglob("*.*"))
        self._limit(min(largest, 2**14), resource.RLIM_INFINITY)

    def free(self):
        import resource

        self._limit(resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    def _limit(self, *limits):
        import resource

        supervisor = self.server._process.pid
        children = f"/proc/{supervisor}/task/{supervisor}/children"
        with open(children) as file:
            for pid in file.read().split():
                resource.prlimit(int(pid), resource.RLIMIT_FSIZE, limits)


class FullTmpfs(FullDisk):
    """The same on a small file system that is full."""

    def fill(self):
        filler = self.server.directory / "data" / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4_096)

    def free(self):
        (self.server.directory / "data" / "filler").unlink()


@pytest.fixture(params=["limit", "tmpfs"])
def full_disk(request, tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("limits another process' files by Linux' own means")
    server = LiteServer(tmp_path / "server")
    data = server.directory / "data"
    mounted = False
    if request.param == "tmpfs":
        data.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(data)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("may not mount a tmpfs")
        mounted = True
    try:
        server.start()
        yield (FullTmpfs if mounted else FullDisk)(server)
    finally:
        server.stop()
        if mounted:
            subprocess.run(["umount", "-l", str(data)], check=True)
        server.remove()


@pytest.mark.starts
async def test_a_full_disk(full_disk, coloured):
    uri = full_disk.server.uri
    store = MilvusVectorStore(uri, dim=8, consistency_level="Strong", timeout=5)
    case = Case("add", coloured(store), "disk", True)
    await case.prepare()
    full_disk.fill()
    acknowledged, refused = [], []
    for number in range(20):
        nodes = case.nodes(20, f"-big{number}", text="x" * 30_000)
        outcome, seconds = await attempt(case.store.add(nodes))
        assert seconds < 5 + ROOM
        written = not isinstance(outcome, BaseException)
        (acknowledged if written else refused).extend(node.node_id for node in nodes)
        if not written:
            assert isinstance(outcome, ServerError)
    assert refused
    full_disk.free()
    await case.assert_usable()
    # Also after a crash: what was acknowledged is there.
    full_disk.server.stop()
    full_disk.server.start()
    raw = new_client(uri)
    found = Counter(
        node_id for node_id, _ in rows_of(raw, store.collection_name, "disk").elements()
    )
    raw.close()
    assert not [node_id for node_id in acknowledged if found[node_id] != 1]
    assert all(count == 1 for count in found.values())
    await case.assert_usable()
    await store.aclose()


# Everything at once


def test_nothing_is_lost_in_a_short_soak(python_with_package):
    python_with_package.run("-m", "tests.soak", "--engine", "lite", "--seconds", "20")
